"""What happened, for whoever wants to know: the last events are remembered, further ones are told as they come.

In the log an event is called ``hcm.KIND`` or ``connect.KIND``. Connections that are joined and end are in the log only,
as ``joined`` and ``ended`` at DEBUG: a busy program would forget everything else over them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from ..net.subscription import Subscription
from ..trace import FieldValue, log_event

__all__ = ["CONNECT_KINDS", "EVENTS_KEPT", "HCM_KINDS", "Event", "EventLog", "EventStream", "log_detail", "log_kind"]

HCM_KINDS: Final = (
    "connected", "disconnected", "retrying", "unauthorized", "not-found", "withdrawn", "returned", "endpoint-up",
    "endpoint-degraded", "endpoint-down", "endpoint-changed", "metadata-failed", "refused", "left", "lost", "added",
    "changed", "removed", "paused", "resumed", "restarted", "draining", "drained", "stopping", "stopped",
    "reload-failed", "failed",
)  # fmt: skip
"""Kinds of a connection manager's events."""

CONNECT_KINDS: Final = (
    "listening", "not-listening", "resolved", "unresolved", "retry", "refused", "proxy-refused", "lost", "left",
    "added", "changed", "removed", "reload-failed", "state", "stopping", "stopped",
)  # fmt: skip
"""Kinds of a forwarder's events."""

_LEVELS: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        (
            "unauthorized", "not-found", "disconnected", "retrying", "withdrawn", "endpoint-down", "endpoint-degraded",
            "metadata-failed", "refused", "lost", "not-listening", "unresolved", "proxy-refused", "state",
        ),
        logging.WARNING,
    ),
    "reload-failed": logging.ERROR,
    "failed": logging.ERROR,
}  # fmt: skip
"""How loud an event is in the log; others are INFO."""

_TRACKING_CHARS: Final = 64
"""Of a tracking id, which a sender may choose, in events and log lines; a GUID and the gateway's suffix have less."""

Program = Literal["hcm", "connect"]

_LOGGERS: Final[Mapping[Program, logging.Logger]] = {
    "hcm": logging.getLogger("relaycore.edge.hcm"),
    "connect": logging.getLogger("relaycore.edge.connect"),
}

EVENTS_KEPT: Final = 256
"""Events that are remembered for late askers, and that one subscriber may be behind."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
      name: of the connection; ``""`` for the program as a whole.
      kind: one word for programs; which there are stands with whoever emits them.
      text: one line: what was tried, what came back, what it means.
      tracking_id: of the one connection through the relay that it is about, as the relay's own log has it; or ``""``.
    """

    time_unix: float
    name: str
    kind: str
    text: str
    tracking_id: str = ""


class EventStream(Subscription[Event]):
    """One subscriber's view, from `EventLog.subscribe` on. Ends when the log is closed.

    Attributes:
      dropped: events this subscriber was too slow for; the oldest go first.
    """

    def __init__(self, log: EventLog) -> None:
        super().__init__(EVENTS_KEPT)
        self._log = log

    def close(self) -> None:
        """Subscribe no longer; whoever waits is told the end. Not a checkpoint."""
        self._log._subscribers.discard(self)
        self._end()


class EventLog:
    """The last events of a program, and its subscribers."""

    def __init__(self, *, now_unix: Callable[[], float] = time.time) -> None:
        self._now_unix = now_unix
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._subscribers: set[EventStream] = set()
        self._is_closed = False

    @property
    def recent(self) -> tuple[Event, ...]:
        """The last events, the oldest first."""
        return tuple(self._kept)

    def emit(self, name: str, kind: str, text: str, tracking_id: str = "") -> None:
        """Note an event, and tell the subscribers. Not a checkpoint."""
        event = Event(self._now_unix(), name, kind, " ".join(text.split()), tracking_id[:_TRACKING_CHARS])
        self._kept.append(event)
        for subscriber in self._subscribers:
            subscriber._put(event)

    def subscribe(self) -> EventStream:
        """A stream of the events from now on."""
        stream = EventStream(self)
        if self._is_closed:
            stream._end()
        else:
            self._subscribers.add(stream)
        return stream

    def close(self) -> None:
        """No more events will come. Not a checkpoint."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber._end()
        self._subscribers.clear()


def log_kind(program: Program, event: Event) -> None:
    """Log an event: its text for people, name and fields in JSON. Not a checkpoint."""
    who = f"{event.name}: " if event.name else ""
    tail = f" tracking_id={event.tracking_id}" if event.tracking_id else ""
    fields: dict[str, FieldValue] = {"name": event.name, "text": event.text}
    if event.tracking_id:
        fields["tracking_id"] = event.tracking_id
    level = _LEVELS.get(event.kind, logging.INFO)
    log_event(_LOGGERS[program], f"{program}.{event.kind}", level, f"{who}{event.kind}: {event.text}{tail}", **fields)


def log_detail(
    program: Program, kind: Literal["joined", "ended"], name: str, tracking_id: str, **fields: FieldValue
) -> None:
    """Log at DEBUG what happens too often for an event. Not a checkpoint.

    Args:
      name: of the connection or forward.
      fields: what else is known.
    """
    if _LOGGERS[program].isEnabledFor(logging.DEBUG):
        fields = {"name": name, "tracking_id": tracking_id[:_TRACKING_CHARS], **fields}
        shown = " ".join(f"{field}={value}" for field, value in fields.items() if field != "name")
        log_event(_LOGGERS[program], f"{program}.{kind}", logging.DEBUG, f"{name}: {kind}: {shown}", **fields)
