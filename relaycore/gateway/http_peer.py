"""One client's HTTP/1.1 connection, as the task that serves it sees it: requests in, bytes out."""

from __future__ import annotations

from typing import Final

import trio

from ..errors import RemoteProtocolError
from ..net.direct import ReadingScope, direct_socket
from ..vocab import BytesLike
from ..wire.http1 import Body, EndOfRequest, RequestHead, RequestReader
from .state import Peer

__all__ = ["HttpPeer"]

_RECEIVE_BYTES: Final = 65_536
"""One read. Heads are small, and a large body wants few turns."""

_AHEAD_BYTES: Final = 65_536
"""What is read of a peer whose answer is not there yet: the next requests, or the beginning of a body. Beyond that the
network holds it, and its leaving is noticed only when the answer is sent."""

_PIECES_DROPPED: Final = 8
"""How many pieces in hand are dropped for the sake of the next request; behind more, closing is cheaper."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpPeer:
    """A connection on which requests come one after the other.

    Args:
      peer: the connection; its TLS handshake is done.
      max_head_bytes, max_headers: as for :class:`relaycore.wire.http1.RequestReader`.

    Used by one task at a time.

    Attributes:
      is_let_in: the present request has shown that it may be made; what becomes of it is not its sender's doing.
    """

    def __init__(self, peer: Peer, *, max_head_bytes: int, max_headers: int) -> None:
        self.peer = peer
        self.stream = peer.stream
        self._direct = direct_socket(peer.stream)
        self.reader = RequestReader(max_head_bytes=max_head_bytes, max_headers=max_headers)
        self._head: RequestHead | None = None
        self.is_let_in = False
        self._is_complete = True
        self._left: int | None = 0
        self._is_in_hand = False
        self._may_continue = False

    @property
    def head(self) -> RequestHead | None:
        """The request that is being served."""
        return self._head

    @property
    def is_complete(self) -> bool:
        """Whether all of that request has been read, so that another may follow. Reads nothing from the network."""
        if not self._is_complete and self._head is not None and self._left == 0:
            self._take_event()
        return self._is_complete

    def next_head(self) -> RequestHead | None:
        """Take a request head that is in hand. Raises as `RequestReader.next_event`."""
        event = self.reader.next_event()
        if not isinstance(event, RequestHead):
            return None
        self._head = event
        self.is_let_in = False
        self._left = None if event.is_chunked else event.content_length or 0
        self._is_complete = False
        self._may_continue = event.expects_continue
        self.peer.is_answered = False
        return event

    def fill_nowait(self) -> bool:
        """Read what is there, if the stream can tell. Returns: False at the end of the stream. Raises as `fill`."""
        data = self._direct.receive_nowait(_RECEIVE_BYTES) if self._direct is not None else None
        if data:
            self.reader.receive_data(data)
        return data != b""

    def reading_scope(self) -> ReadingScope | None:
        """What ends a `fill` that waits, with `trio.ClosedResourceError`; None where only a cancel scope does."""
        return self._direct.reading_scope() if self._direct is not None else None

    def forget(self) -> None:
        """The request is over."""
        self._head = None

    async def fill(self, *, is_due: bool = False) -> bool:
        """Read once. Returns: False at the end of the stream. A checkpoint, unless ``is_due`` and something is there.

        Args:
          is_due: more has been announced, so that trying comes before waiting.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """
        data: BytesLike | None
        if self._direct is not None:
            data = self._direct.receive_nowait(_RECEIVE_BYTES) if is_due else None
            if data is None:
                data = await self._direct.receive(_RECEIVE_BYTES)
        else:
            data = await self.stream.receive_some(_RECEIVE_BYTES)
        if not data:
            return False
        self.reader.receive_data(data)
        return True

    def drop_nowait(self) -> bool:
        """Drop what is in hand of a body that nobody wants. Returns: whether that was all of it."""
        try:
            for _ in range(_PIECES_DROPPED):
                if self._is_complete or self._take_event() is None:
                    break
        except RemoteProtocolError:
            return False
        return self._is_complete

    def take_nowait(self) -> bytes | None:
        """A piece of the body that is in hand, ``b""`` at its end; None: read more. Raises as `receive`."""
        return self._take_event()

    async def receive(self) -> bytes:
        """Wait for a piece of the body.

        Returns: what one read brought of it, or ``b""`` at its end.

        Raises:
          RemoteProtocolError: it is framed wrongly.
          trio.BrokenResourceError: the peer left before its end.

        A checkpoint when it has to read, and with every second piece of what was read at once.
        """
        while (piece := self._take_event()) is None:
            self._is_in_hand = False
            if not await self.fill(is_due=True):
                raise trio.BrokenResourceError("the peer left inside a request body")
        if self._is_in_hand:
            # Tiny chunks take long, and a read may bring thousands of them. Shielded, or the piece would be lost.
            self._is_in_hand = False
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            self._is_in_hand = True
        return piece

    async def send_continue(self, send_timeout: float) -> bool:
        """Answer ``Expect: 100-continue`` once, unless the body is coming or an answer has begun (RFC 9110 10.1.1).

        Returns: False when the peer does not take it. Otherwise as `send`.
        """
        if not self._may_continue or self.reader.trailing:
            return True
        return await self.send(_CONTINUE, send_timeout)

    async def send(self, data: bytes, send_timeout: float) -> bool:
        """Send, and wait at most so long for the peer to take it. Returns: whether it has.

        A checkpoint only when it waits.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """
        self._may_continue = False
        sent = self._direct.send_nowait(data) if self._direct is not None else 0
        if sent == len(data):
            return True
        with trio.move_on_after(send_timeout):
            await self.stream.send_all(memoryview(data)[sent:])
            return True
        return False

    async def watch(self) -> None:
        """Return when the peer has gone, and never otherwise: for waiting beside something else.

        What it sends meanwhile is kept, up to 64 KiB. Its end of stream counts as going: nobody who wants an answer
        closes. May be cancelled without loss.
        """
        try:
            while len(self.reader.trailing) < _AHEAD_BYTES:
                if not await self.fill():
                    return
        except trio.BrokenResourceError:
            return
        await trio.sleep_forever()

    def _take_event(self) -> bytes | None:
        if self._is_complete:
            return b""
        match self.reader.next_event():
            case Body(data):
                self._may_continue = False
                if self._left is not None:
                    self._left -= len(data)
                return data
            case EndOfRequest():
                self._is_complete = True
                return b""
        return None
