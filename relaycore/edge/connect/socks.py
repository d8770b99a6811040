"""What programs say to a proxy: SOCKS5, SOCKS4, SOCKS4a, CONNECT and absolute URLs, told apart by the first byte.

Bytes in, events out; nothing here reads or writes. The answers to a program are bytes that an event or `Wanted` holds.

::

    bytes ─▶ 05 ─ methods ─▶ Say ─ user, password ─▶ Say ─ request ─▶ Wanted
             04 ─ request ──────────────────────────────────────────▶ Wanted
             else an HTTP head ─────────────────────────────────────▶ Wanted
                                       whatever is wrong, anywhere ─▶ Farewell

A request with an absolute URL, ``GET http://host/path``, is meant for that server: its head is rewritten to the form
that servers expect, and asks the server to close behind its answer, so that the next request, maybe for another
server, comes on a connection of its own.

Source: RFC 1928, RFC 1929; SOCKS 4 and 4a as Ying-Da Lee wrote them down; RFC 9110 9.3.6, RFC 9112 3.2.2, RFC 7617;
connection manager 8.6.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import enum
import hmac
import ipaddress
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ...errors import ConfigError, RemoteProtocolError
from ...vocab import BytesLike
from ...wire.http1 import RequestHead, RequestReader, build_request, build_response

__all__ = ["Farewell", "ProxyEvent", "ProxyReader", "RequestKind", "Say", "Wanted", "Why", "parse_users"]

_MAX_USER_ID: Final = 255
"""Of SOCKS4, which sets no bound."""

_NO_AUTHENTICATION: Final = 0
_USER_AND_PASSWORD: Final = 2
_NONE_ACCEPTABLE: Final = 0xFF
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NO_ADDRESS: Final = b"\x01\x00\x00\x00\x00\x00\x00"
_SOCKS4_NO: Final = b"\x00\x5b" + bytes(6)

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?\.?")
_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+)(?::([0-9]{1,5}))?(/[^#]*|\?[^#]*)?", re.IGNORECASE)
_MAX_NAME: Final = 255

_CHALLENGE: Final = ("Proxy-Authenticate", 'Basic realm="relaycore", charset="UTF-8"')

_NOT_FOR_SERVERS: Final = frozenset(
    {"connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te"}
)
"""Fields of a request that are about the connection to the proxy (RFC 9110 7.6.1), or are written anew."""

_ABOUT_THE_MESSAGE: Final = frozenset({"content-length", "transfer-encoding", "trailer"})
"""Stay whatever ``Connection`` says: without them the body would be taken for another request."""


class RequestKind(enum.StrEnum):
    """How a program asked; label of a metric."""

    SOCKS5 = "socks5"
    SOCKS4 = "socks4"
    CONNECT = "connect"
    URL = "url"
    NONE = "none"  # nothing that a proxy could make sense of


class Why(enum.StrEnum):
    """Why a target is not reached; label of a metric."""

    NOT_ALLOWED = "not-allowed"  # none of the configured ones
    REFUSED = "refused"  # the endpoint, or its listener
    UNREACHABLE = "unreachable"  # no relay, no listener, no such name
    TIMED_OUT = "timed-out"
    FAILED = "failed"


_SOCKS5_REPLY: Final = {Why.NOT_ALLOWED: 2, Why.REFUSED: 5, Why.UNREACHABLE: 4, Why.TIMED_OUT: 6, Why.FAILED: 1}
_HTTP_STATUS: Final = {
    Why.NOT_ALLOWED: (403, "Forbidden"),
    Why.REFUSED: (502, "Bad Gateway"),
    Why.UNREACHABLE: (503, "Service Unavailable"),
    Why.TIMED_OUT: (504, "Gateway Timeout"),
    Why.FAILED: (502, "Bad Gateway"),
}


@dataclass(frozen=True, slots=True)
class Say:
    """Send this, and read on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Farewell:
    """Send this and close: what came makes no sense, or is not permitted.

    Attributes:
      text: what was wrong, for logs; holds no secret.
      is_authentication: the user or the password was wrong, or missing.
    """

    kind: RequestKind
    data: bytes
    text: str
    is_authentication: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program wants to be connected.

    Attributes:
      host: name or address, IPv6 without brackets; an IPv4 address in IPv6 clothes is IPv4 here.
      port: 0 to 65535.
      early: what goes to the target first: what the program sent behind its request, or the rewritten request.
    """

    kind: RequestKind
    host: str
    port: int
    early: bytes = field(default=b"", repr=False)

    def accepted(self) -> bytes:
        """What the program is told once the target is there."""
        match self.kind:
            case RequestKind.SOCKS5:
                return b"\x05\x00\x00" + _NO_ADDRESS
            case RequestKind.SOCKS4:
                return b"\x00\x5a" + bytes(6)
            case RequestKind.CONNECT:
                return b"HTTP/1.1 200 Connection established\r\n\r\n"
            case _:
                return b""

    def refused(self, why: Why, text: str) -> bytes:
        """What the program is told instead. SOCKS has a number for it, HTTP the whole text."""
        match self.kind:
            case RequestKind.SOCKS5:
                return _socks5_no(_SOCKS5_REPLY[why])
            case RequestKind.SOCKS4:
                return _SOCKS4_NO
            case _:
                return _http_answer(*_HTTP_STATUS[why], text)


ProxyEvent: TypeAlias = Say | Farewell | Wanted
_Story: TypeAlias = Generator[ProxyEvent | None]


class ProxyReader:
    """Reads one program's wish. Behind `Wanted` or `Farewell` it is at its end.

    Args:
      users: passwords by user; None: nobody is asked, and whatever somebody says about himself will do.
    """

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        self._users = users
        self._buffer = bytearray()
        self._story = self._tell()
        self._is_done = False

    def receive_data(self, data: BytesLike) -> None:
        """Take bytes from the program."""
        self._buffer += data

    def next_event(self) -> ProxyEvent | None:
        """Return the next event, or None when more bytes are needed, and ever after the last event."""
        if self._is_done:
            return None
        try:
            event = next(self._story)
        except _Wrong as wrong:
            event = wrong.farewell
        self._is_done = isinstance(event, Farewell | Wanted)
        return event

    # A generator is the state: where it stands is what is expected. It yields None while bytes are missing.

    def _tell(self) -> _Story:
        yield from self._need(1)
        match self._buffer[0]:
            case 5:
                yield from self._tell_socks5()
            case 4:
                yield from self._tell_socks4()
            case _:
                yield from self._tell_http()

    def _need(self, count: int) -> Generator[None]:
        while len(self._buffer) < count:
            yield None

    def _take(self, count: int) -> Generator[None, None, bytes]:
        yield from self._need(count)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    # SOCKS5 ----------------------------------------------------------------------------------------------------------

    def _tell_socks5(self) -> _Story:
        _, count = yield from self._take(2)
        methods = yield from self._take(count)
        if self._users is None and _NO_AUTHENTICATION in methods:
            yield Say(bytes((5, _NO_AUTHENTICATION)))
        elif _USER_AND_PASSWORD in methods:
            yield Say(bytes((5, _USER_AND_PASSWORD)))
            yield from self._check_user()
        else:
            text = "the program offers no user and password" if self._users is not None else "no method that is known"
            raise _Wrong(RequestKind.SOCKS5, bytes((5, _NONE_ACCEPTABLE)), text, is_authentication=True)
        version, command, _, kind = yield from self._take(4)
        if version != 5:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(1), "the request behind the greeting is not SOCKS5")
        if command != _CONNECT:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(7), f"only CONNECT is available, not command {command}")
        if kind not in (_IPV4, _NAME, _IPV6):
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(8), f"there is no address type {kind}")
        if kind == _NAME:
            (length,) = yield from self._take(1)
            host = _plain_name((yield from self._take(length)))
        else:
            host = _plain_address((yield from self._take(4 if kind == _IPV4 else 16)))
        port = int.from_bytes((yield from self._take(2)), "big")
        if host is None:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(1), "what is asked for is no name")
        yield Wanted(RequestKind.SOCKS5, host, port, bytes(self._buffer))

    def _check_user(self) -> _Story:
        version, length = yield from self._take(2)
        user = yield from self._take(length)
        (length,) = yield from self._take(1)
        password = yield from self._take(length)
        if version != 1:
            raise _Wrong(RequestKind.SOCKS5, b"\x01\x01", "user and password do not come as RFC 1929 says")
        if not self._is_known(user, password):
            raise _Wrong(RequestKind.SOCKS5, b"\x01\x01", "wrong user or password", is_authentication=True)
        yield Say(b"\x01\x00")

    # SOCKS4 ----------------------------------------------------------------------------------------------------------

    def _tell_socks4(self) -> _Story:
        _, command = yield from self._take(2)
        port = int.from_bytes((yield from self._take(2)), "big")
        address = yield from self._take(4)
        yield from self._take_text(_MAX_USER_ID)
        host: str | None = _plain_address(address)
        if address[:3] == b"\0\0\0" and address[3]:  # 4a: no address can be meant by this one, and a name follows
            host = _plain_name((yield from self._take_text(_MAX_NAME)))
        if self._users is not None:
            text = "SOCKS4 cannot carry a password; use SOCKS5 or HTTP"
            raise _Wrong(RequestKind.SOCKS4, b"\x00\x5d" + bytes(6), text, is_authentication=True)
        if command != _CONNECT:
            raise _Wrong(RequestKind.SOCKS4, _SOCKS4_NO, f"only CONNECT is available, not command {command}")
        if host is None:
            raise _Wrong(RequestKind.SOCKS4, _SOCKS4_NO, "what is asked for is no name")
        yield Wanted(RequestKind.SOCKS4, host, port, bytes(self._buffer))

    def _take_text(self, max_bytes: int) -> Generator[None, None, bytes]:
        """Bytes up to a zero, without it."""
        while (end := self._buffer.find(0, 0, max_bytes + 1)) < 0:
            if len(self._buffer) > max_bytes:
                raise _Wrong(RequestKind.SOCKS4, _SOCKS4_NO, f"a text is longer than {max_bytes} bytes")
            yield None
        return (yield from self._take(end + 1))[:-1]

    # HTTP ------------------------------------------------------------------------------------------------------------

    def _tell_http(self) -> _Story:
        reader = RequestReader(takes_connect=True)
        head = None
        while head is None:
            reader.receive_data(self._buffer)
            self._buffer.clear()
            try:
                head = reader.next_event()
            except RemoteProtocolError as error:
                text = f"the request is neither SOCKS nor HTTP that is taken here: {error}"
                raise _Wrong(RequestKind.NONE, _http_answer(error.http_status, "Bad Request", text), text) from error
            if head is None:
                yield None
        assert isinstance(head, RequestHead)
        if not self._is_signed(head):
            kind = RequestKind.CONNECT if head.method == "CONNECT" else RequestKind.URL
            text = "this proxy asks for a user and a password, and these are none or wrong"
            raise _Wrong(kind, _http_answer(407, "Proxy Authentication Required", text, _CHALLENGE), text, True)
        if head.method == "CONNECT":
            host, _, port = head.target.rpartition(":")
            yield _want(RequestKind.CONNECT, host, int(port), reader.trailing)
            return
        match = _URL.fullmatch(head.target)
        if match is None:
            text = "this is a proxy: it takes CONNECT, and requests with a whole http:// URL"
            raise _Wrong(RequestKind.NONE, _http_answer(400, "Bad Request", text), text)
        early = _rewritten(head, match[3] or "") + reader.trailing
        yield _want(RequestKind.URL, match[1], int(match[2] or 80), early)

    def _is_signed(self, head: RequestHead) -> bool:
        if self._users is None:
            return True
        scheme, _, coded = (head.headers.get("Proxy-Authorization") or "").partition(" ")
        try:
            user, colon, password = base64.b64decode(coded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and bool(colon) and self._is_known(user, password)

    def _is_known(self, user: bytes, password: bytes) -> bool:
        if self._users is None:
            return True
        try:
            expected = self._users.get(user.decode())
        except UnicodeDecodeError:
            return False
        return expected is not None and hmac.compare_digest(expected.encode(), password)


class _Wrong(Exception):
    """Ends the story with a `Farewell`."""

    def __init__(self, kind: RequestKind, data: bytes, text: str, is_authentication: bool = False) -> None:
        super().__init__(text)
        self.farewell = Farewell(kind, data, text, is_authentication)


def _socks5_no(reply: int) -> bytes:
    return bytes((5, reply, 0)) + _NO_ADDRESS


def _plain_address(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def _plain_name(raw: bytes) -> str | None:
    """A name as DNS spells it, or an address that came as text; None: it is neither."""
    try:
        text = raw.decode()
        if text.isascii():
            with contextlib.suppress(ValueError):
                return _plain_address(ipaddress.ip_address(text.strip("[]")).packed)
        else:
            text = text.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    return text if len(text) <= _MAX_NAME and _HOST_NAME.fullmatch(text) is not None else None


def _want(kind: RequestKind, host: str, port: int, early: bytes) -> Wanted:
    name = _plain_name(host.encode())
    if name is None or not 0 < port <= 65_535:
        text = "the target is no HOST:PORT"
        raise _Wrong(kind, _http_answer(400, "Bad Request", text), text)
    return Wanted(kind, name, port, early)


def _http_answer(status: int, reason: str, text: str, *more: tuple[str, str]) -> bytes:
    body = f"relaycore: {text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more]
    return build_response(status, reason, [*headers, ("Connection", "close")], body)


def _rewritten(head: RequestHead, target: str) -> bytes:
    """The head as a server expects it, without what was meant for the proxy."""
    nominated = {member.lower() for member in head.headers.members("Connection")} - _ABOUT_THE_MESSAGE
    upgrades = head.is_upgrade
    if upgrades:
        nominated.discard("upgrade")
    fields = [("Host", head.host or "")]
    fields += [
        (name, value)
        for name, value in head.headers
        if name.lower() not in nominated and name.lower() not in _NOT_FOR_SERVERS
    ]
    fields.append(("Connection", "Upgrade" if upgrades else "close"))
    if not target.startswith("/"):
        target = "*" if head.method == "OPTIONS" and not target else f"/{target}"
    request = build_request(head.method, target, fields)
    if head.http_version == "1.0":  # whoever speaks 1.0 cannot read what a server may send to 1.1
        request = request.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    return request


def parse_users(text: str, *, source: str = "") -> dict[str, str]:
    """Read ``USER:PASSWORD`` lines; empty ones and those that begin with ``#`` do not count.

    Raises:
      ConfigError: names the line, and does not repeat it; or there is no user at all.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.partition(":")
        if not colon or not user or not password or user in found:
            raise ConfigError(
                f"line {number} is not USER:PASSWORD, or names a user again", source=source, key="connect.proxy.users"
            )
        if len(user.encode()) > 255 or len(password.encode()) > 255:
            raise ConfigError(f"line {number} has more than 255 bytes", source=source, key="connect.proxy.users")
        found[user] = password
    if not found:
        raise ConfigError("there is no USER:PASSWORD line", source=source, key="connect.proxy.users")
    return found
