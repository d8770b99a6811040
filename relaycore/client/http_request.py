"""A relayed HTTP request as its handler sees it: what was asked for, and the body as a stream."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

import trio

from ..errors import RemoteProtocolError
from ..wire.address import split_target
from ..wire.http1 import Headers
from ..wire.messages import RemoteEndpoint, Request

if TYPE_CHECKING:
    from .http_exchange import Exchange
    from .http_response import HeadersLike, HttpResponder

__all__ = ["BodyTooLarge", "HttpRequest", "RequestHandler"]

DEFAULT_READ_BYTES: Final = 1_048_576
"""Bound of `HttpRequest.read` where the caller sets none, as for messages."""

_SEPARATOR = re.compile(r"/|%2[fF]")
_LEADING_SEPARATORS = re.compile(r"(?:/|%2[fF])*")


class BodyTooLarge(RemoteProtocolError):
    """`HttpRequest.read` met a longer body than it was asked for; answered with 413 if no handler catches it."""


class HttpRequest(trio.abc.ReceiveStream):
    """A relayed HTTP request, and its body as a Trio stream of bytes.

    Attributes:
      method: as the sender wrote it, such as ``GET``.
      target: as the relay gave it: path with the hybrid connection in front, and query. A relay may have decoded
        escapes in the path, blanks always.
      path: the hybrid connection, as named in our connection string.
      suffix: what the target has behind it, percent-decoded and without its first slash; usually ``""``.
      raw_suffix: the same as it stands in the target.
      query: without ``?``, as sent, and without what was meant for the relay.
      headers: the sender's, with repeated ones joined; what only concerns the sender's connection is not among them.
      remote_endpoint: where the sender dialled from, as the relay saw it; None if the relay does not say.
      tracking_id: names this request in the relay's logs.
      has_body: whether a body comes, which may be empty.
    """

    def __init__(self, exchange: Exchange, message: Request) -> None:
        self._exchange = exchange
        self._is_closed = False
        self._is_receiving = False
        self.method: str = message.method or ""
        self.target: str = message.requestTarget or "/"
        self.path: str = exchange.settings.path
        raw_path, self.query = split_target(self.target)
        self.raw_suffix: str = _raw_suffix(raw_path, self.path)
        self.suffix: str = unquote(self.raw_suffix, errors="replace")
        self.headers = Headers((message.requestHeaders or {}).items())
        self.remote_endpoint: RemoteEndpoint | None = message.remoteEndpoint
        self.tracking_id: str = message.id
        self.has_body: bool = bool(message.body)

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.path!r} {self.tracking_id}>"

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes of the body.

        Args:
          max_bytes: at most so many; without it, what came at a time, usually at most 64 KiB.

        Returns: ``b""`` at the end of the body, also if there is none.

        Raises:
          StreamLost: the sender or the relay was lost inside the body.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: after `aclose`.

        A checkpoint; cancelling it loses nothing. While it is not called the sender has to wait, but for what is on its
        way. After the response is complete the rest of the body is gone, and raises `StreamLost`.
        """
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving this body")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint()
            if self._is_closed:
                raise trio.ClosedResourceError("this body was closed")
            return await self._exchange.receive_body(max_bytes)
        finally:
            self._is_receiving = False

    async def read(self, max_bytes: int = DEFAULT_READ_BYTES) -> bytes:
        """Wait for the whole body, or what is left of it.

        Args:
          max_bytes: how much to hold in memory at most.

        Raises:
          RemoteProtocolError: there is more. Its ``http_status`` is 413, and so is the answer if no handler catches it.
          StreamLost, trio.BusyResourceError, trio.ClosedResourceError: as `receive_some`.

        A checkpoint. Cancelled, it loses what was read.
        """
        data = await self.receive_some()
        if not data:
            return b""
        collected = bytearray(data)
        while len(collected) <= max_bytes and (data := await self.receive_some()):
            collected += data
        if len(collected) > max_bytes:
            raise BodyTooLarge(
                f"The body is longer than {max_bytes} bytes", section="RFC 9110 15.5.14", http_status=413
            )
        return bytes(collected)

    async def aclose(self) -> None:
        """Give the body up: `receive_some` raises from now on. The request can still be answered. A checkpoint."""
        self._is_closed = True
        await trio.lowlevel.checkpoint()

    def respond(self, status: int = 200, headers: HeadersLike = (), *, reason: str | None = None) -> HttpResponder:
        """Begin the response; once per request. Nothing has left when this returns.

        ::

            async with request.respond(200, {"Content-Type": "text/plain"}) as response:
                await response.send_all(b"hello")

        Args:
          status: 200 to 999.
          headers: a name that comes several times is joined with ``, ``, and ``Set-Cookie`` kept apart. What describes
            the connection or frames the body (``Content-Length``, ``Transfer-Encoding``) is the relay's to set; given
            here it does no harm, and is not compared with the body.
          reason: reason phrase in Latin-1; the usual one without it.

        Raises:
          LocalProtocolError: a status, header or reason that may not be sent, headers of more than 64 KiB in all, or a
            second response.
        """
        return self._exchange.respond(status, headers, reason)

    @property
    def is_disconnected(self) -> bool:
        """True once the sender, or the way to it, is known to be gone before the response was complete.

        Only a request with a connection of its own (a long body, a response that streams) hears of it.
        """
        return self._exchange.is_disconnected

    async def wait_disconnected(self) -> None:
        """Wait until `is_disconnected`; for ever if that never comes. A checkpoint."""
        await self._exchange.wait_disconnected()


def _raw_suffix(raw_path: str, entity: str) -> str:
    """Return what stands in a path behind the entity, without the slash between them.

    The relay found our entity at the front, so its segments only have to be counted. Their slashes may be escaped.
    """
    begin = _LEADING_SEPARATORS.match(raw_path)
    assert begin is not None
    position = begin.end()
    for _ in range(entity.count("/") + 1):
        separator = _SEPARATOR.search(raw_path, position)
        if separator is None:
            return ""
        position = separator.end()
    return raw_path[position:]


RequestHandler: TypeAlias = Callable[[HttpRequest], Awaitable[None]]
"""Serves one request: answers it through `HttpRequest.respond` before it returns. If it raises, or returns without a
complete response, the sender gets 500, or a cut if something of a response has left already; the log has the traceback.
It never ends the listener."""
