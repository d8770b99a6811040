"""Event names, and the one place that emits them: log lines, metrics and tests listen to the same events.

An event is a ``noun.verb`` name, a level and named fields. Fields are plain scalars on purpose: an object that holds a
key cannot be passed by accident, and whatever else is passed shows up as its type's name. Tokens, keys and rendezvous
addresses are never given as fields; should one slip into a text all the same, :func:`redact` takes it out before
anybody sees it, subscribers included.

The way to standard error::

    emit() ─▶ subscribers (called at once, must not block)
       └────▶ format ─▶ bounded queue ─▶ writer thread ─▶ standard error
              (by way of logging,         └ full: the line is dropped and counted
               if others listen there)

A terminal or a pipe that nobody reads blocks whoever writes to it. Only the thread does, so the event loop never waits
for its log; the number of lost lines is written as soon as the reader is back.

A program that embeds the library and sets up ``logging`` by itself gets the same lines through its own handlers, in the
human form; :func:`configure_logging` is for our own commands.
"""

from __future__ import annotations

import abc
import enum
import functools
import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, TypeAlias

from .config import LogConfig

__all__ = [
    "EVENTS",
    "Event",
    "FieldValue",
    "LogWriter",
    "Trace",
    "configure_logging",
    "log_event",
    "redact",
]

FieldValue: TypeAlias = str | int | float | bool | enum.Enum | None
"""What a field may hold. An enum member shows as its value."""

ExcInfo: TypeAlias = (
    BaseException | tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None
)

# The server as a whole -----------------------------------------------------------------------------------------------

SERVER_STARTED: Final = "server.started"
SERVER_STOPPING: Final = "server.stopping"
SERVER_STOPPED: Final = "server.stopped"
TLS_RELOADED: Final = "tls.reloaded"
TLS_RELOAD_FAILED: Final = "tls.reload_failed"
CONNECTION_REFUSED: Final = "connection.refused"
CONNECTION_FAILED: Final = "connection.failed"
TOKEN_REFUSED: Final = "token.refused"
ENTITY_CREATED: Final = "entity.created"
ENTITY_UPDATED: Final = "entity.updated"
ENTITY_DELETED: Final = "entity.deleted"
INTERNAL_ERROR: Final = "internal.error"

# Control channels ----------------------------------------------------------------------------------------------------

LISTENER_REGISTERED: Final = "listener.registered"
LISTENER_LOST: Final = "listener.lost"
LISTENER_RENEWED: Final = "listener.renewed"
CONTROL_IGNORED: Final = "control.ignored"
RENDEZVOUS_MINTED: Final = "rendezvous.minted"
RENDEZVOUS_CLAIMED: Final = "rendezvous.claimed"
RENDEZVOUS_EXPIRED: Final = "rendezvous.expired"
RENDEZVOUS_REJECTED: Final = "rendezvous.rejected"

# Sessions ------------------------------------------------------------------------------------------------------------

SESSION_JOINED: Final = "session.joined"
SESSION_CLOSED: Final = "session.closed"

# Relayed HTTP requests -----------------------------------------------------------------------------------------------

REQUEST_SENT: Final = "request.sent"
REQUEST_ANSWERED: Final = "request.answered"
REQUEST_FAILED: Final = "request.failed"

# The library's listeners and senders ---------------------------------------------------------------------------------

CLIENT_ONLINE: Final = "client.online"
CLIENT_OFFLINE: Final = "client.offline"
CLIENT_RECONNECTING: Final = "client.reconnecting"

EVENTS: Final[Mapping[str, int]] = {
    SERVER_STARTED: logging.INFO,
    SERVER_STOPPING: logging.INFO,
    SERVER_STOPPED: logging.INFO,
    TLS_RELOADED: logging.INFO,
    TLS_RELOAD_FAILED: logging.WARNING,
    CONNECTION_REFUSED: logging.WARNING,
    CONNECTION_FAILED: logging.DEBUG,
    TOKEN_REFUSED: logging.WARNING,
    ENTITY_CREATED: logging.INFO,
    ENTITY_UPDATED: logging.INFO,
    ENTITY_DELETED: logging.INFO,
    INTERNAL_ERROR: logging.ERROR,
    LISTENER_REGISTERED: logging.INFO,
    LISTENER_LOST: logging.INFO,
    LISTENER_RENEWED: logging.DEBUG,
    CONTROL_IGNORED: logging.DEBUG,
    RENDEZVOUS_MINTED: logging.DEBUG,
    RENDEZVOUS_CLAIMED: logging.DEBUG,
    RENDEZVOUS_EXPIRED: logging.WARNING,
    RENDEZVOUS_REJECTED: logging.INFO,
    SESSION_JOINED: logging.INFO,
    SESSION_CLOSED: logging.INFO,
    REQUEST_SENT: logging.DEBUG,
    REQUEST_ANSWERED: logging.DEBUG,
    REQUEST_FAILED: logging.INFO,
    CLIENT_ONLINE: logging.INFO,
    CLIENT_OFFLINE: logging.WARNING,
    CLIENT_RECONNECTING: logging.INFO,
}
"""Every event with its usual level. ERROR: our bug. WARNING: refused or degraded. INFO: something came or went."""

_ROOMS: Final[Mapping[str, str]] = {
    "listener": "relaycore.control",
    "control": "relaycore.control",
    "rendezvous": "relaycore.control",
    "session": "relaycore.session",
    "request": "relaycore.session",
    "client": "relaycore.client",
}
"""Logger by the event's noun; every other noun is the gateway's."""

logging.getLogger("relaycore").addHandler(logging.NullHandler())  # a library is silent until its user asks


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Args:
      name: a key of :data:`EVENTS`.
      level: a level of the ``logging`` module.
      unix: wall clock, seconds.
      fields: as given to :meth:`Trace.emit`, secrets taken out.
    """

    name: str
    level: int
    unix: float
    fields: Mapping[str, FieldValue]

    def __str__(self) -> str:
        """The human form: name first, then the fields as ``name=value``, always one line."""
        text = self.name
        for name, value in self.fields.items():
            text += f" {name}={_human(value)}"
        return text


Subscriber: TypeAlias = Callable[[Event], None]


class Trace:
    """Emits events to the log and to subscribers. One per server or client; safe to call from any thread.

    Args:
      clock: wall clock in seconds; tests hand in their own.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._subscribers: tuple[Subscriber, ...] = ()  # replaced, never changed: emit reads it without a lock
        self._lock = threading.Lock()
        self._loggers = {
            name: logging.getLogger(_ROOMS.get(name.partition(".")[0], "relaycore.gateway")) for name in EVENTS
        }

    def emit(self, event: str, level: int | None = None, *, exc_info: ExcInfo = None, **fields: FieldValue) -> None:
        """Tell everybody that `event` happened. Never blocks and is no checkpoint.

        Args:
          event: a key of :data:`EVENTS`; another name is our bug and raises ``KeyError``.
          level: a level of the ``logging`` module where the usual one does not fit.
          exc_info: an exception, or what ``sys.exc_info()`` gives, whose traceback belongs into the log; it is for
            ``internal.error``.
          fields: scalars; None is kept and shows as ``-``.
        """
        logger = self._loggers[event]
        level = EVENTS[event] if level is None else level
        is_logged = logger.isEnabledFor(level)
        if not is_logged and not self._subscribers:
            return
        happened = Event(event, level, self._clock(), {name: _clean(value) for name, value in fields.items()})
        if is_logged:
            handler = None if exc_info is not None else _only_handler(logger)
            if handler is None:
                logger.log(level, "%s", happened, extra={"event": happened}, exc_info=exc_info)
            else:
                handler.put_event(happened, logger.name)
        for subscriber in self._subscribers:
            try:
                subscriber(happened)
            except Exception:
                logging.getLogger("relaycore.gateway").exception("a subscriber failed on %s", event)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every event from now on, in the emitting task. It must not block.

        Returns: a function that ends the subscription; calling it again is harmless.
        """
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(other for other in self._subscribers if other is not subscriber)

        return unsubscribe

    @contextmanager
    def recorded(self) -> Iterator[list[Event]]:
        """The events of a ``with`` block as a list that grows; for tests."""
        events: list[Event] = []
        unsubscribe = self.subscribe(events.append)
        try:
            yield events
        finally:
            unsubscribe()


def log_event(logger: logging.Logger, event: str, level: int, text: str, /, **fields: FieldValue) -> None:
    """Log an event of a program on top of the library, whose names are its own. Never blocks and is no checkpoint.

    Args:
      event: its stable name, as in :data:`EVENTS`.
      text: the line for people; JSON has the fields instead.
      fields: scalars.
    """
    if logger.isEnabledFor(level):
        happened = Event(event, level, time.time(), {name: _clean(value) for name, value in fields.items()})
        logger.log(level, "%s", text, extra={"event": happened})


# The last guard ------------------------------------------------------------------------------------------------------

_REMOVED: Final = "[removed]"

_SECRET: Final = re.compile(
    r"(?P<name>(?:\b|_|%26)(?:sig|signature|sharedaccesskey|sb-hc-token|sb-hc-rid)(?:=|%3d|%253d))[^\s&;,\"'\\]+"
    r"|\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]+"  # a JWT: base64url parts, the first of them a JSON object
    r"|(?<![a-z0-9+/])(?:[a-z0-9+/]|%2[bf]){43}(?:=|%3d)(?![a-z0-9+/=])",  # 32 bytes in base64: a key or a signature
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without anything that looks like a key, a signature, a token or a rendezvous secret.

    A guard against our own slips, not a licence to log secrets: it knows the forms they have in tokens, URLs and
    connection strings, and a bare key by its length.
    """
    # Each of these forms has one of them in it, and most of what is logged has none.
    if "=" not in text and "%" not in text and "eyj" not in text.lower():
        return text
    return _SECRET.sub(lambda match: f"{match['name'] or ''}{_REMOVED}", text)


def _clean(value: object) -> FieldValue:
    if type(value) is str:
        return redact(value)
    if type(value) is int or value is None:
        return value
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, int | float):
        return value
    return f"<{type(value).__name__}>"  # not a scalar: its repr may hold anything


_PLAIN: Final = re.compile(r"[!#-<>-~]+")
"""Visible ASCII without quotes and equal signs: what most fields hold."""


def _human(value: FieldValue) -> str:
    """One field as text. What a peer sent may hold blanks, quotes or line ends: such a text stands in quotes,
    escaped."""
    if type(value) is str and _PLAIN.fullmatch(value) is not None:
        return value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


# Formats -------------------------------------------------------------------------------------------------------------


def _timestamp(unix: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, milliseconds = divmod(int(unix * 1000), 1000)
    return f"{_date(seconds)}.{milliseconds:03d}Z"


@functools.lru_cache(maxsize=8)
def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _Formatter(logging.Formatter, abc.ABC):
    @abc.abstractmethod
    def format_event(self, event: Event, level_name: str, logger_name: str) -> str:
        """The line of an event without a traceback; the same as `format` makes of its record, in a tenth of the time.

        The event's fields are redacted already.
        """

    def _texts(self, record: logging.LogRecord) -> tuple[str, str]:
        """Message on one line, and the traceback or an empty text; both redacted."""
        message = redact(record.getMessage())
        if not message.isprintable():
            message = json.dumps(message)
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[1] else ""
        return message, redact(trace)


class HumanFormatter(_Formatter):
    """``2026-01-31T09:15:02.943Z INFO    listener.registered path=orders ...``; a traceback follows, indented."""

    def format_event(self, event: Event, level_name: str, logger_name: str) -> str:
        return f"{_timestamp(event.unix)} {level_name:<7} {event}"

    def format(self, record: logging.LogRecord) -> str:
        message, trace = self._texts(record)
        event = getattr(record, "event", None)
        unix = event.unix if isinstance(event, Event) else record.created
        line = f"{_timestamp(unix)} {record.levelname:<7} {message}"
        return line if not trace else line + "".join(f"\n    {part}" for part in trace.splitlines())


class JsonFormatter(_Formatter):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``event`` or ``message``, the fields, ``traceback``.

    A field named like one of those five is kept under its name with ``_`` behind it.
    """

    def format_event(self, event: Event, level_name: str, logger_name: str) -> str:
        return json.dumps(self._line(event, level_name, logger_name))

    @staticmethod
    def _line(event: Event, level_name: str, logger_name: str) -> dict[str, object]:
        line: dict[str, object] = {
            "time": _timestamp(event.unix),
            "level": level_name.lower(),
            "logger": logger_name,
            "event": event.name,
        }
        for name, value in event.fields.items():
            line[f"{name}_" if name in _JSON_NAMES else name] = value
        return line

    def format(self, record: logging.LogRecord) -> str:
        message, trace = self._texts(record)
        event = getattr(record, "event", None)
        line: dict[str, object]
        if isinstance(event, Event):
            line = self._line(event, record.levelname, record.name)
        else:
            line = {
                "time": _timestamp(record.created),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
            }
        if trace:
            line["traceback"] = trace
        return json.dumps(line)  # ASCII only: a line separator from a peer must not split the line for any reader


_JSON_NAMES: Final = frozenset({"time", "level", "logger", "event", "message", "traceback"})


# The writer ----------------------------------------------------------------------------------------------------------


_PAUSE: Final = 0.02
"""Seconds in which lines gather behind those that were written. Each time the thread runs it takes the interpreter from
the event loop, which costs both of them far more than the writing of a line."""

_BATCH_CHARS: Final = 4_096
"""Lines written at once: as much as a pipe takes in one piece, so that they stay whole beside those of others."""


class LogWriter:
    """Takes lines without waiting and writes them from a thread of its own. Close it to see the last ones.

    A line that comes alone is written at once; of many, those of 20 ms together.

    Args:
      write: writes a text of whole lines, about 4 KiB at most unless one of them is longer, and may block as long as it
        likes; called from the thread only. An ``OSError`` from it loses the lines.
      queue_lines: how many lines may wait; more are dropped and counted.
      format_dropped: makes the line that tells of dropped ones.
    """

    def __init__(
        self, write: Callable[[str], object], *, queue_lines: int, format_dropped: Callable[[int], str] | None = None
    ) -> None:
        self._write = write
        self._format_dropped = format_dropped or (lambda count: f"{count} log lines were dropped")
        self._queue_lines = queue_lines
        self._lock = threading.Lock()
        # Under the lock.
        self._queue: deque[str] = deque()
        self._dropped = 0
        self._dropped_unreported = 0
        self._is_resting = False
        self._is_closed = False
        self._wake = threading.Event()
        self._close = threading.Event()
        # A daemon, since a standard error that nobody reads must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="relaycore log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost because the queue was full."""
        return self._dropped

    def put_nowait(self, line: str) -> None:
        """Hand over one line without its line end. Never blocks."""
        with self._lock:
            if len(self._queue) >= self._queue_lines:
                self._dropped += 1
                self._dropped_unreported += 1
                return
            self._queue.append(line)
            if not self._is_resting:
                return
            self._is_resting = False
        self._wake.set()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is waiting, for at most `timeout` seconds, and stop the thread. Blocks; later lines are lost."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._close.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            has_written = False
            while lines := self._take_batch():
                self._write_lines(lines)
                self._report_dropped()
                has_written = True
            with self._lock:
                if self._queue:
                    continue
                if self._is_closed:
                    break
                self._is_resting = not has_written
                if self._is_resting:
                    self._wake.clear()
            if has_written:
                self._close.wait(_PAUSE)
            else:
                self._wake.wait()
        self._report_dropped()

    def _take_batch(self) -> list[str]:
        lines: list[str] = []
        size = 0
        with self._lock:
            while self._queue and (not lines or size + len(self._queue[0]) < _BATCH_CHARS):
                lines.append(self._queue.popleft())
                size += len(lines[-1]) + 1
        return lines

    def _report_dropped(self) -> None:
        with self._lock:
            count, self._dropped_unreported = self._dropped_unreported, 0
        if count:
            self._write_lines([self._format_dropped(count)])

    def _write_lines(self, lines: list[str]) -> None:
        try:
            self._write("\n".join(lines) + "\n")
        except OSError:  # the reader of the pipe is gone, or the disk is full: nobody is left to tell
            with self._lock:
                self._dropped += len(lines)


class _QueueHandler(logging.Handler):
    def __init__(self, writer: LogWriter, formatter: _Formatter) -> None:
        super().__init__()
        self._writer = writer
        self._events = formatter
        self.setFormatter(formatter)

    def put_event(self, event: Event, logger_name: str) -> None:
        """Write an event's line, past everything that ``logging`` does with a record on its way here."""
        self._writer.put_nowait(self._events.format_event(event, logging.getLevelName(event.level), logger_name))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # a wrong format string is our bug, and no reason to end what was being logged
            where = f"{record.pathname}:{record.lineno}"
            line = f"{record.levelname} {record.name}: a record could not be formatted ({where})"
        self._writer.put_nowait(line)


def _only_handler(logger: logging.Logger) -> _QueueHandler | None:
    """Our own handler where it alone gets what a logger logs, with nothing in between; None: that is for `logging`."""
    if logger.filters:
        return None
    found: _QueueHandler | None = None
    asked: logging.Logger | None = logger
    while asked is not None:
        for handler in asked.handlers:
            if type(handler) is logging.NullHandler:
                continue
            if found is not None or not isinstance(handler, _QueueHandler) or handler.filters or handler.level:
                return None
            found = handler
        asked = asked.parent if asked.propagate else None
    return found


def configure_logging(config: LogConfig, *, write: Callable[[str], object] | None = None) -> LogWriter:
    """Send the records of all ``relaycore`` loggers, and warnings of others, to standard error.

    Called again, it replaces what the previous call set up and closes that call's writer.

    Args:
      config: level, form and bound of the queue.
      write: takes the finished lines instead of standard error; may block.

    Returns: the writer; its owner closes it at the end, to see the last lines.
    """
    formatter: _Formatter = JsonFormatter() if config.format == "json" else HumanFormatter()

    def format_dropped(count: int) -> str:
        message = f"{count} log lines were dropped: nobody read them"
        return formatter.format(logging.LogRecord("relaycore.gateway", logging.WARNING, "", 0, message, (), None))

    writer = LogWriter(write or _write_stderr, queue_lines=config.queue_lines, format_dropped=format_dropped)
    handler = _QueueHandler(writer, formatter)
    root = logging.getLogger()
    for old in [other for other in root.handlers if isinstance(other, _QueueHandler)]:
        root.removeHandler(old)
        old._writer.close()
    root.addHandler(handler)
    levels: dict[Literal["debug", "info", "warning", "error"], int] = {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "warning": logging.WARNING,
        "error": logging.ERROR,
    }
    logging.getLogger("relaycore").setLevel(levels[config.level])
    return writer


def _write_stderr(line: str) -> None:
    """Past ``sys.stderr``, whose lock would make the loop wait for the thread whenever both write."""
    data = line.encode("utf-8", "backslashreplace")
    fd = 2 if sys.__stderr__ is None else sys.__stderr__.fileno()
    while data:
        data = data[os.write(fd, data) :]
