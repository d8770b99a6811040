"""What programs say to a proxy: SOCKS5, SOCKS4, SOCKS4a, CONNECT and absolute URLs, told apart by the first byte.

Bytes in, events out; nothing here reads or writes. The answers to a program are bytes that an event or `Wanted` holds.

::

    bytes ─▶ 05 ─ methods ─▶ Say ─ user, password ─▶ Say ─ request ─▶ Wanted
             04 ─ request ──────────────────────────────────────────▶ Wanted
             else an HTTP head ─────────────────────────────────────▶ Wanted
                                       whatever is wrong, anywhere ─▶ Farewell

A request with an absolute URL, ``GET http://host/path``, is one for the server itself: the head is rewritten to the form
that servers expect, and asks the server to close behind its answer, so that a second request, maybe for another server,
comes on a connection of its own.

Source: RFC 1928, RFC 1929; SOCKS 4 and 4a as Ying-Da Lee wrote them down; RFC 9110 9.3.6, RFC 9112 3.2.2, RFC 7617;
connection manager 8.6.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ...errors import ConfigError, RemoteProtocolError
from ...vocab import BytesLike
from ...wire.http1 import RequestHead, RequestReader, build_request, build_response

__all__ = ["Farewell", "ProxyEvent", "ProxyReader", "RequestKind", "Say", "Wanted", "Why", "parse_users"]

MAX_HEAD_BYTES: Final = 65_536
"""Of an HTTP request; cookies and tokens stand in it. A SOCKS request is at most 523 bytes."""

_MAX_USER_ID: Final = 255
"""Of SOCKS4, which sets no bound."""

_NO_AUTHENTICATION: Final = 0
_USER_AND_PASSWORD: Final = 2
_NONE_ACCEPTABLE: Final = 0xFF
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NO_ADDRESS: Final = b"\x01\x00\x00\x00\x00\x00\x00"

_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?\.?")
_URL = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+)(?::([0-9]{1,5}))?(/[^#]*|\?[^#]*)?", re.IGNORECASE)
_MAX_NAME: Final = 255

_CHALLENGE: Final = ("Proxy-Authenticate", 'Basic realm="relaycore", charset="UTF-8"')

_NOT_FOR_SERVERS: Final = frozenset({"connection", "proxy-connection", "proxy-authorization", "keep-alive", "te"})
"""Fields of a request that are about the connection to the proxy (RFC 9110 7.6.1)."""


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
                return bytes((5, _SOCKS5_REPLY[why], 0)) + _NO_ADDRESS
            case RequestKind.SOCKS4:
                return b"\x00\x5b" + bytes(6)
            case _:
                return _http_answer(*_HTTP_STATUS[why], text)


ProxyEvent: TypeAlias = Say | Farewell | Wanted


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

    def _tell(self) -> Iterator[ProxyEvent | None]:
        yield from self._need(1)
        match self._buffer[0]:
            case 5:
                yield from self._tell_socks5()
            case 4:
                yield from self._tell_socks4()
            case _:
                yield from self._tell_http()

    def _need(self, count: int) -> Iterator[None]:
        while len(self._buffer) < count:
            yield None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    # SOCKS5 ----------------------------------------------------------------------------------------------------------

    def _tell_socks5(self) -> Iterator[ProxyEvent | None]:
        yield from self._need(2)
        yield from self._need(2 + self._buffer[1])
        methods = self._take(2 + self._buffer[1])[2:]
        if self._users is None and _NO_AUTHENTICATION in methods:
            yield Say(bytes((5, _NO_AUTHENTICATION)))
        elif _USER_AND_PASSWORD in methods:
            yield Say(bytes((5, _USER_AND_PASSWORD)))
            yield from self._check_user()
        else:
            text = "the program offers no way to say who it is that is taken here"
            raise _Wrong(RequestKind.SOCKS5, bytes((5, _NONE_ACCEPTABLE)), text, is_authentication=True)
        yield from self._need(4)
        version, command, _, kind = self._take(4)
        if version != 5:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(1), "the request behind the greeting is not SOCKS5")
        if command != _CONNECT:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(7), f"only CONNECT is available, not command {command}")
        if kind == _NAME:
            yield from self._need(1)
            length = 1 + self._buffer[0]
        elif kind in (_IPV4, _IPV6):
            length = 4 if kind == _IPV4 else 16
        else:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(8), f"there is no address type {kind}")
        yield from self._need(length + 2)
        address, port = self._take(length), int.from_bytes(self._take(2), "big")
        host = _plain_name(address[1:]) if kind == _NAME else _plain_address(address)
        if host is None:
            raise _Wrong(RequestKind.SOCKS5, _socks5_no(1), "the name that is asked for is none")
        yield Wanted(RequestKind.SOCKS5, host, port, bytes(self._buffer))

    def _check_user(self) -> Iterator[ProxyEvent | None]:
        yield from self._need(2)
        yield from self._need(2 + self._buffer[1] + 1)
        version, length = self._take(2)
        user = self._take(length)
        yield from self._need(1 + self._buffer[0])
        password = self._take(1 + self._buffer[0])[1:]
        if version != 1:
            raise _Wrong(RequestKind.SOCKS5, b"\x01\x01", "user and password are not sent as RFC 1929 says")
        if not self._is_known(user, password):
            raise _Wrong(RequestKind.SOCKS5, b"\x01\x01", "wrong user or password", is_authentication=True)
        yield Say(b"\x01\x00")

    # SOCKS4 ----------------------------------------------------------------------------------------------------------

    def _tell_socks4(self) -> Iterator[ProxyEvent | None]:
        yield from self._need(8)
        _, command = self._take(2)
        port = int.from_bytes(self._take(2), "big")
        address = self._take(4)
        yield from self._take_text(_MAX_USER_ID)
        host: str | None = str(ipaddress.IPv4Address(address))
        if address[:3] == b"\0\0\0" and address[3]:  # 4a: a name follows
            name = bytearray()
            for found in self._take_text(_MAX_NAME):
                if found is None:
                    yield None
                else:
                    name += found
            host = _plain_name(bytes(name))
        if self._users is not None:
            text = "SOCKS4 cannot say a password; use SOCKS5 or HTTP"
            raise _Wrong(RequestKind.SOCKS4, b"\x00\x5d" + bytes(6), text, is_authentication=True)
        if command != _CONNECT:
            text = f"only CONNECT is available, not command {command}"
            raise _Wrong(RequestKind.SOCKS4, b"\x00\x5b" + bytes(6), text)
        if host is None:
            raise _Wrong(RequestKind.SOCKS4, b"\x00\x5b" + bytes(6), "the name that is asked for is none")
        yield Wanted(RequestKind.SOCKS4, host, port, bytes(self._buffer))
