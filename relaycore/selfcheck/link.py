"""Sockets of the load: plain and blocking, opened with a WebSocket handshake."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import RelayError
from ..wire.handshake import build_101

__all__ = [
    "SOCKET_TIMEOUT",
    "Route",
    "answer_upgrade",
    "connect",
    "dial",
    "head_end",
    "is_101",
    "receive_exactly",
    "request_head",
]

SOCKET_TIMEOUT: Final = 15.0
"""Seconds without any progress after which a measurement has failed; nothing here waits a second when all is well."""

_HEAD_MAX: Final = 16_384
_HANDSHAKE_KEY: Final = "cmVsYXljb3JlIHNlbGZjaA=="
"""Base64 of 16 bytes. A nonce guards against caches between strangers; here both ends are ours."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a WebSocket is dialled. ``headers`` may hold a token: it goes through pipes, never into arguments."""

    host: str
    port: int
    target: str
    headers: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Route:
        return cls(given["host"], given["port"], given["target"], tuple(given["headers"]))

    def plain(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port, "target": self.target, "headers": self.headers}


def connect(route: Route) -> socket.socket:
    """A TCP connection on which nothing waits for more to send."""
    made = socket.create_connection((route.host, route.port), timeout=SOCKET_TIMEOUT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def request_head(route: Route) -> bytes:
    """The upgrade request for a route."""
    lines: Sequence[str] = (
        f"GET {route.target} HTTP/1.1",
        f"Host: {route.host}:{route.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_HANDSHAKE_KEY}",
        "Sec-WebSocket-Version: 13",
        *route.headers,
    )
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def head_end(data: bytes) -> int:
    """Length of the head that `data` begins with; 0 while it is not complete.

    Raises:
      RelayError: it is too long to be one.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 and len(data) > _HEAD_MAX:
        raise RelayError("a peer answered something that is no HTTP head")
    return end + 4 if end >= 0 else 0


def is_101(head: bytes) -> None:
    """Check the answer to :func:`request_head`.

    Raises:
      RelayError: it refuses.
    """
    if not head.startswith(b"HTTP/1.1 101 "):
        line = head.partition(b"\r\n")[0].decode("latin-1")
        raise RelayError(f"a handshake was refused: {line}")


def answer_upgrade(head: bytes) -> bytes:
    """The answer to our own :func:`request_head`."""
    name, _, rest = head.partition(b"Sec-WebSocket-Key:")
    if not name.startswith(b"GET ") or not rest:
        raise RelayError("a client asked for something that is no WebSocket")
    return build_101(rest.partition(b"\r\n")[0].strip().decode("latin-1"), protocol=None)


def dial(route: Route) -> socket.socket:
    """Open a WebSocket to a route. Its far end is silent until spoken to, so that nothing follows the head.

    Raises:
      RelayError: refused, or the connection ended.
      OSError: nobody listens there.
    """
    link = connect(route)
    try:
        link.sendall(request_head(route))
        data = b""
        while not head_end(data):
            chunk = link.recv(_HEAD_MAX)
            if not chunk:
                raise RelayError("a connection ended inside its handshake")
            data += chunk
        is_101(data)
    except BaseException:
        link.close()
        raise
    return link


def receive_exactly(link: socket.socket, size: int) -> bytes:
    """The next `size` bytes.

    Raises:
      RelayError: the connection ended before.
    """
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        received = link.recv_into(view[at:])
        if not received:
            raise RelayError(f"a session ended after {at} of {size} bytes")
        at += received
    return bytes(data)
