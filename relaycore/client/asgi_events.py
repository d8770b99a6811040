"""What an ASGI application is told and what it may say: scopes from requests, and events in their order.

No I/O in here: scopes are built from values, and the two state machines take the application's events one by one. They
raise for an event that is wrong and stay as they were, so that the application may mend its ways::

    HTTP         start ─▶ body* ─▶ last body ─▶ (ignored)
    WebSocket    connecting ─┬─ accept ─▶ open ── send* ── close ─▶ closed
                             ├─ close ──────────────────────────▶ closed
                             └─ http.response.start ─▶ denying ── last body ─▶ closed

Source: the ASGI specification 3.0, "HTTP & WebSocket ASGI Message Format" 2.4; below "ASGI". A fault of the application
is a `LocalProtocolError`, or a `TypeError` where a value has the wrong type, raised from the ``send`` that it called.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from ..errors import ConfigError, LocalProtocolError
from ..wire.address import decode_path, split_target
from ..wire.http1 import is_token, is_value
from ..wire.limits import MAX_CLOSE_REASON_BYTES
from ..wire.messages import RemoteEndpoint
from ..wire.status import is_valid_close_code

__all__ = [
    "Accepting",
    "AsgiApp",
    "BodyPart",
    "Closing",
    "Event",
    "Mount",
    "Receive",
    "Refusing",
    "ResponseEvents",
    "ResponseStart",
    "Scope",
    "Send",
    "Sending",
    "WebSocketEvents",
    "http_scope",
    "lifespan_scope",
    "websocket_scope",
]

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_SECTION: Final = "ASGI"
_SPEC_VERSION: Final = "2.4"
_NO_BODY: Final = (204, 304)
_DENIED: Final = 403
_REASON_PHRASE_STATUSES: Final = range(400, 600)
_BOUNDARY: Final = re.compile(r"/|$")


def _fault(message: str) -> LocalProtocolError:
    return LocalProtocolError(message, section=_SECTION)


# Scopes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the application hangs.

    Attributes:
      entity: the hybrid connection, without slashes at its ends.
      root_path: what stands in front of the application's own paths: ``""``, or with a slash in front and none behind.
      is_tls: whether senders speak TLS.
      server: host and port of the relay.
    """

    entity: str
    root_path: str
    is_tls: bool
    server: tuple[str, int]

    @classmethod
    def at(cls, entity: str, root_path: str | None, *, is_tls: bool, server: tuple[str, int]) -> Mount:
        """Check and complete: without a ``root_path`` the hybrid connection is it.

        Raises:
          ConfigError: the root path has no slash in front.
        """
        root_path = f"/{entity}" if root_path is None else root_path.rstrip("/")
        if root_path and not root_path.startswith("/"):
            raise ConfigError(f"begins with a slash, as in '/{root_path}'", key="root_path")
        return cls(entity, root_path, is_tls, server)


def _common_scope(
    mount: Mount,
    *,
    kind: str,
    target: str,
    suffix: str,
    headers: Iterable[tuple[str, str]],
    remote: RemoteEndpoint | None,
    state: dict[str, Any],
) -> Scope:
    raw_path, query = split_target(target)
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": _SPEC_VERSION},
        "http_version": "1.1",
        "path": _path(mount, raw_path, suffix),
        # The relay shows blanks for the %20 of the sender (wire contract 9.4), and no sender can send a blank.
        "raw_path": raw_path.replace(" ", "%20").encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "root_path": mount.root_path,
        "headers": [
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
        ],
        "client": None if remote is None else (remote.address, remote.port),
        "server": mount.server,
        "state": state.copy(),
    }


def _path(mount: Mount, raw_path: str, suffix: str) -> str:
    """The decoded path as the application counts it: its root path, then what follows the hybrid connection.

    The sender may write the hybrid connection's name in other letters, since the relay compares without regard to case
    (3), and frameworks cut the root path off letter by letter.
    """
    wanted = mount.entity.casefold()
    for boundary in _BOUNDARY.finditer(raw_path, 1):
        if decode_path(raw_path[: boundary.start()]).casefold() == wanted:
            rest = unquote(raw_path[boundary.start() :])
            break
    else:  # the name has escaped slashes in it
        rest = f"/{suffix}" if suffix else ""
    return mount.root_path + rest or "/"


def http_scope(
    mount: Mount,
    *,
    method: str,
    target: str,
    suffix: str,
    headers: Iterable[tuple[str, str]],
    remote: RemoteEndpoint | None,
    state: dict[str, Any],
) -> Scope:
    """Return the scope of a request.

    Args:
      mount: where the application hangs.
      method: as sent.
      target: as the relay gave it: path and query, the path with blanks for ``%20``.
      suffix: the decoded rest of the path, for a target in which it cannot be found.
      headers: in their order.
      remote: where the sender dialled from.
      state: what the lifespan left; the scope gets a copy.
    """
    scope = _common_scope(mount, kind="http", target=target, suffix=suffix, headers=headers, remote=remote, state=state)
    scope["method"] = method.upper()
    scope["scheme"] = "https" if mount.is_tls else "http"
    return scope


def websocket_scope(
    mount: Mount,
    *,
    target: str,
    suffix: str,
    headers: Iterable[tuple[str, str]],
    remote: RemoteEndpoint | None,
    subprotocols: Iterable[str],
    state: dict[str, Any],
) -> Scope:
    """Return the scope of a WebSocket; arguments as `http_scope`."""
    scope = _common_scope(
        mount, kind="websocket", target=target, suffix=suffix, headers=headers, remote=remote, state=state
    )
    scope["scheme"] = "wss" if mount.is_tls else "ws"
    scope["subprotocols"] = list(subprotocols)
    scope["extensions"] = {"websocket.http.response": {}}
    return scope


def lifespan_scope(state: dict[str, Any]) -> Scope:
    """Return the scope of the application's life; ``state`` is the very dictionary that it may fill."""
    return {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}


# Reading events ------------------------------------------------------------------------------------------------------


def _type_of(event: Event) -> str:
    try:
        kind = event["type"]
    except KeyError:
        raise _fault("an event needs a 'type'") from None
    except TypeError:
        raise TypeError(f"an event is a dictionary, not {type(event).__name__}") from None
    if not isinstance(kind, str):
        raise TypeError(f"the 'type' of an event is a str, not {type(kind).__name__}")
    return kind


def _bytes_of(event: Event, key: str) -> bytes:
    value = event.get(key, b"")
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{key!r} of {event['type']} is bytes, not {type(value).__name__}")
    return bytes(value)


def _status_of(event: Event) -> int:
    status = event.get("status")
    if status is None:
        raise _fault(f"{event['type']} needs a 'status'")
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"'status' of {event['type']} is an int, not {type(status).__name__}")
    if not 200 <= status <= 599:
        raise _fault(f"the status of an answer is 200 to 599, not {status}")
    return int(status)


def _headers_of(event: Event) -> list[tuple[str, str]]:
    """The header fields, without ``Transfer-Encoding``, which is none of the application's business (ASGI).

    Checked here because a line end in a value would be another header: the relay would drop the field in silence.
    """
    found = []
    for pair in event.get("headers") or ():
        name, value = pair
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(f"names and values of headers are bytes, not {type(name).__name__}, {type(value).__name__}")
        shown = name.decode("latin-1")
        text = value.decode("latin-1").strip(" \t")
        if not is_token(shown):
            raise _fault(f"{shown!r} cannot be the name of a header")
        if not is_value(text):
            raise _fault(f"the value of header {shown!r} has a control character in it")
        if shown.lower() != "transfer-encoding":
            found.append((shown, text))
    return found


def _wrong_order(kind: str, expected: str) -> LocalProtocolError:
    return _fault(f"expected {expected}, not {kind!r}")


# HTTP ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResponseStart:
    """Status and headers; they are held back until the first part of the body."""

    status: int
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class BodyPart:
    """A piece of the body as the sender may see it: always empty for HEAD, 204 and 304."""

    data: bytes
    is_last: bool


class ResponseEvents:
    """The order of ``http.response.*`` events.

    Args:
      method: of the request, as sent.

    Attributes:
      start: status and headers, once they were given.
      is_complete: whether the last part of the body was given.
    """

    def __init__(self, method: str) -> None:
        self._is_head = method.upper() == "HEAD"
        self._has_no_body = False
        self._expected_bytes: int | None = None
        self._given_bytes = 0
        self.start: ResponseStart | None = None
        self.is_complete = False

    def take(self, event: Event) -> ResponseStart | BodyPart | None:
        """Check the next event.

        Returns: what it says; None for one that is ignored: a part of the body behind the last one.

        Raises:
          LocalProtocolError: out of order, an unknown type, a status or header that cannot be, a body that is longer or
            shorter than its ``Content-Length``.
          TypeError: a value of the wrong type.
        """
        kind = _type_of(event)
        if kind == "http.response.body" and self.start is not None:
            return None if self.is_complete else self._take_body(event)
        if kind != "http.response.start" or self.start is not None:
            raise _wrong_order(kind, "'http.response.start'" if self.start is None else "'http.response.body'")
        start = ResponseStart(_status_of(event), _headers_of(event))
        self._expected_bytes = _content_length(start.headers)
        self._has_no_body = self._is_head or start.status in _NO_BODY
        self.start = start
        return start

    def _take_body(self, event: Event) -> BodyPart:
        data = _bytes_of(event, "body")
        is_last = not event.get("more_body", False)
        if self._has_no_body:
            data = b""
        elif self._expected_bytes is not None:
            # The relay counts anew (wire contract 10), and would make a whole answer of half a one.
            given = self._given_bytes + len(data)
            if given > self._expected_bytes or (is_last and given < self._expected_bytes):
                raise _fault(f"the body has {given} bytes, its Content-Length is {self._expected_bytes}")
        self._given_bytes += len(data)
        self.is_complete = is_last
        return BodyPart(data, is_last)


def _content_length(headers: Iterable[tuple[str, str]]) -> int | None:
    values = {value for name, value in headers if name.lower() == "content-length"}
    if not values:
        return None
    (value, *others) = values
    if others or not (value.isascii() and value.isdigit()):
        raise _fault(f"Content-Length is one number, not {', '.join(sorted(values))!r}")
    return int(value)


# WebSocket -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepting:
    """``websocket.accept``. ``dropped_headers``: how many were given; the relay carries none (wire contract 7.2)."""

    subprotocol: str | None
    dropped_headers: int


@dataclass(frozen=True, slots=True)
class Refusing:
    """A no, with the status of ``websocket.http.response.start``, or 403 of ``websocket.close``.

    ``dropped_bytes``: of the answer's body; a rejection carries status and reason phrase only (wire contract 7.3).
    """

    status: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class Sending:
    """One message."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Closing:
    """``websocket.close`` on an open connection."""

    code: int
    reason: str


class _State(enum.Enum):
    CONNECTING = "'websocket.accept', 'websocket.close' or 'websocket.http.response.start'"
    DENYING = "'websocket.http.response.body'"
    OPEN = "'websocket.send' or 'websocket.close'"
    CLOSED = "nothing"


class WebSocketEvents:
    """The order of ``websocket.*`` events.

    Args:
      subprotocols: what the sender offered.
    """

    def __init__(self, subprotocols: Iterable[str]) -> None:
        self._offered = tuple(subprotocols)
        self._state = _State.CONNECTING
        self._status = 0
        self._body_bytes = 0

    @property
    def is_closed(self) -> bool:
        """Whether the application has said its last word."""
        return self._state is _State.CLOSED

    def take(self, event: Event) -> Accepting | Refusing | Sending | Closing | None:
        """Check the next event.

        Returns: what is to be done; None for nothing yet.

        Raises:
          LocalProtocolError: out of order, an unknown type, or a value that cannot be.
          TypeError: a value of the wrong type.
        """
        match self._state, _type_of(event):
            case _State.CONNECTING, "websocket.accept":
                return self._accept(event)
            case _State.CONNECTING, "websocket.close":
                self._state = _State.CLOSED
                return Refusing(_DENIED, 0)
            case _State.CONNECTING, "websocket.http.response.start":
                self._status = _status_of(event)
                _headers_of(event)
                self._state = _State.DENYING
                return None
            case _State.DENYING, "websocket.http.response.body":
                return self._deny(event)
            case _State.OPEN, "websocket.send":
                return _message_of(event)
            case _State.OPEN, "websocket.close":
                closing = _close_of(event)
                self._state = _State.CLOSED
                return closing
            case state, kind:
                raise _wrong_order(kind, state.value)

    def _accept(self, event: Event) -> Accepting:
        subprotocol = event.get("subprotocol")
        if subprotocol is not None and not isinstance(subprotocol, str):
            raise TypeError(f"'subprotocol' is a str or None, not {type(subprotocol).__name__}")
        if subprotocol is not None and subprotocol not in self._offered:
            raise _fault(f"the sender did not offer the sub-protocol {subprotocol!r}")
        accepting = Accepting(subprotocol, len(_headers_of(event)))
        self._state = _State.OPEN
        return accepting

    def _deny(self, event: Event) -> Refusing | None:
        self._body_bytes += len(_bytes_of(event, "body"))
        if event.get("more_body", False):
            return None
        self._state = _State.CLOSED
        return Refusing(self._status if self._status in _REASON_PHRASE_STATUSES else _DENIED, self._body_bytes)


def _message_of(event: Event) -> Sending:
    data, text = event.get("bytes"), event.get("text")
    if (data is None) is (text is None):
        raise _fault("websocket.send has 'bytes' or 'text', exactly one of them")
    if text is None:
        return Sending(_bytes_of(event, "bytes"))
    if not isinstance(text, str):
        raise TypeError(f"'text' of websocket.send is a str, not {type(text).__name__}")
    return Sending(text)


def _close_of(event: Event) -> Closing:
    code = event.get("code", 1000)
    reason = event.get("reason") or ""
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"'code' of websocket.close is an int, not {type(code).__name__}")
    if not isinstance(reason, str):
        raise TypeError(f"'reason' of websocket.close is a str, not {type(reason).__name__}")
    if not is_valid_close_code(code):
        raise _fault(f"{code} is no close code that may be sent")
    if len(reason.encode("utf-8")) > MAX_CLOSE_REASON_BYTES:
        raise _fault(f"the reason of a close has at most {MAX_CLOSE_REASON_BYTES} bytes")
    return Closing(int(code), reason)
