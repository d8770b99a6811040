"""The connection of one request: its only reader, and its end.

The reader holds one piece of the body at most: while nobody takes it, nothing more is read, and the relay, and the
sender behind it, wait. It goes on reading behind the body, which is how the end of a sender is noticed.

Source: wire contract 9.5, 9.6 and 13.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import trio

from ..errors import RemoteProtocolError
from ..net.connect import open_websocket, parse_ws_url
from ..net.errors import StreamClosed, StreamLost
from ..net.proxy import Proxy
from ..net.tasks import bounded
from ..net.websocket import WebSocketLeg
from ..wire.frames import Close
from ..wire.limits import LISTENER_RENDEZVOUS_TIMEOUT
from ..wire.status import CloseCode

__all__ = ["RequestRendezvous", "dial_rendezvous"]


class RequestRendezvous:
    """The connection of one exchange, and the one piece of a body that may wait in it.

    Args:
      leg: fresh from its handshake, or from reading the request; belongs to whoever opened it.
      brings_body: whether the relay sends a body on it.
      on_end: called when the relay closes, or the connection is lost, other than at the end of a body.
    """

    def __init__(self, leg: WebSocketLeg, *, brings_body: bool, on_end: Callable[[], None]) -> None:
        self.leg = leg
        self.has_ended = trio.Event()
        """The reader has left: nothing comes any more, or nobody wants it."""
        self._on_end = on_end
        self._is_body_over = not brings_body
        self._has_body_begun = False
        self._is_discarding = False
        self._piece = memoryview(b"")
        self._loss: StreamLost | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def read(self) -> None:
        """Read until the relay's Close, or the end of the connection; the task of the reader."""
        try:
            while True:
                found = await self.leg.receive_piece()
                if isinstance(found, Close):
                    self._note_close(found)
                    return
                if self._is_discarding:
                    continue
                if self._is_body_over or found.is_text:
                    raise RemoteProtocolError("a message that belongs to no request", section="9.5")
                self._has_body_begun = True
                self._is_body_over = found.fin
                self._piece = memoryview(found.data)
                self._changed.unpark_all()
                while self._piece and not self._is_discarding:
                    await self._changed.park()
        except (StreamLost, RemoteProtocolError, trio.ClosedResourceError) as error:
            self._end(StreamLost(f"the request's connection is gone: {error}"))
            self._loss.__cause__ = error  # type: ignore[union-attr]
        finally:
            # Cancelled: a handler may wait for its body in a shield.
            if self._loss is None:
                self._loss = StreamLost("the request's connection is not read any more")
            self._changed.unpark_all()
            self.has_ended.set()

    def _note_close(self, close: Close) -> None:
        if not self._is_body_over and self._has_body_begun and close.code in (None, CloseCode.NORMAL_CLOSURE):
            self._is_body_over = True  # 9.5: how Java ends a body
            self._changed.unpark_all()
        elif close.code is None:
            self._end(StreamLost("the relay closed the request's connection"))
        else:
            self._end(StreamClosed(close.code, close.reason))

    def _end(self, loss: StreamLost) -> None:
        self._loss = loss
        self._on_end()
        self._changed.unpark_all()

    async def receive(self, max_bytes: int | None) -> bytes:
        """Take from the piece in hand, or wait for the next one. Errors and end as `HttpRequest.receive_some`."""
        while not self._piece:
            if self._is_body_over:
                return b""
            if self._is_discarding:
                raise StreamLost("the response is complete: the rest of the body was given up")
            if self._loss is not None:
                raise StreamLost(str(self._loss)) from self._loss
            await self._changed.park()
        data = bytes(self._piece[:max_bytes])
        self._piece = self._piece[len(data) :]
        if not self._piece:
            self._changed.unpark_all()
        return data

    def discard(self) -> None:
        """Throw away what is still to come."""
        self._is_discarding = True
        self._piece = memoryview(b"")
        self._changed.unpark_all()

    async def say_goodbye(self, code: int, reason: str, close_timeout: float) -> None:
        """Close, wait for the relay's Close, throwing data away, and hang up; in bounded time."""
        self.discard()
        with trio.move_on_after(close_timeout), contextlib.suppress(trio.BrokenResourceError):
            await self.leg.send_close(code, reason)
            await self.has_ended.wait()
        if self.has_ended.is_set():
            await self.leg.close()  # both Closes are there: lets the relay hang up first
        await self.leg.aclose()


async def dial_rendezvous(
    address: str, *, is_tls: bool, ssl_context: ssl.SSLContext | None, proxy: Proxy | None = None
) -> WebSocketLeg:
    """Open a WebSocket to a request's address, in at most 20 seconds. Whoever calls owns it.

    Args:
      address: as it came; a secret, which no error repeats.
      is_tls: whether it came over TLS, which it may not leave then.
      ssl_context: for ``wss``; None is the system's store.
      proxy: to dial through.

    Raises:
      RemoteProtocolError: the address is no WebSocket URL with a query, or drops TLS.
      ConnectionLost, Refused: as `open_websocket`.
    """
    url = parse_ws_url(address)
    if is_tls and not url.is_tls:
        raise RemoteProtocolError("the rendezvous address drops TLS", section="7.1")
    if "?" not in url.resource:
        raise RemoteProtocolError("the rendezvous address has no query", section="7.1")
    with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
        opened = await open_websocket(url, ssl_context=ssl_context, proxy=proxy)
    return opened.leg
