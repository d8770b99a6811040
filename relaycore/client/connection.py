"""One connection through the relay, as bytes or as messages.

Two views of the same thing. `Connection` is a Trio stream: message types and boundaries are gone, ``send_eof`` ends our
direction and leaves the other one open. `MessageChannel` keeps them. Both end in the same way, which the relay forwards
word for word (wire contract 8.7)::

    send_eof()   Close 1000 "Shutdown"     reading goes on until the other side's Close
    aclose()     Close 1000 "CloseAsync"   unless one was sent; then waits, bounded, for the other side's Close,
                                           throwing data away, and closes the connection

An end without any Close is never an end of data: it raises `StreamLost` (8.8).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

import trio

from ..errors import RemoteProtocolError
from ..net.errors import StreamClosed, StreamGarbled
from ..net.websocket import LegStatistics, WebSocketLeg
from ..vocab import BytesLike
from ..wire.frames import Binary, Close, Text
from ..wire.http1 import Headers
from ..wire.limits import CLOSE_TIMEOUT
from ..wire.messages import RemoteEndpoint
from ..wire.status import CloseCode

__all__ = ["NORMAL_ENDS", "Connection", "ConnectionInfo", "MessageChannel"]

NORMAL_ENDS: Final = (None, CloseCode.NORMAL_CLOSURE)
"""Close codes that mean an orderly end of data. 1001 is not among them: it is what a relay sends that stops, or whose
hybrid connection was deleted, and a Java container that stops (13), each wherever the data happens to be."""

_COMPLAINT_TIMEOUT: Final = 1.0
"""Seconds for telling a peer which rule it broke, before its connection is cut."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What is known about a connection from its handshake.

    Attributes:
      path: the hybrid connection, as it is named in our connection string.
      suffix: what the sender's path has behind it, percent-decoded; usually ``""``.
      query: the sender's own query, as sent, without ``?`` and without what was meant for the relay.
      headers: on the listener's side the sender's request headers; on the sender's side those of the relay's answer.
      remote_endpoint: where the sender dialled from, as the relay saw it; None on the sender's side.
      subprotocol: the one both sides agreed on, or None.
      tracking_id: names this connection in the relay's logs; on the sender's side the id that it sent.
    """

    path: str
    suffix: str
    query: str
    headers: Headers = field(repr=False)
    remote_endpoint: RemoteEndpoint | None
    subprotocol: str | None
    tracking_id: str


class Connection(trio.abc.HalfCloseableStream):
    """A byte stream through the relay; made by `open_stream` and by a listener's ``accept``.

    Follows the contract of `trio.abc.HalfCloseableStream`: one task may send and one may receive at a time, a cancelled
    `send_all` leaves the stream unable to send, `aclose` under cancellation is forceful and the other side then sees a
    lost connection, not an end of data.

    The attributes of `ConnectionInfo` are attributes here too.
    """

    def __init__(self, leg: WebSocketLeg, info: ConnectionInfo) -> None:
        self.info = info
        self.path = info.path
        self.suffix = info.suffix
        self.query = info.query
        self.headers = info.headers
        self.remote_endpoint = info.remote_endpoint
        self.subprotocol = info.subprotocol
        self.tracking_id = info.tracking_id
        self._leg = leg
        self._is_closed = False
        # Owned by the sending task.
        self._is_sending = False
        # Owned by the receiving task, which aclose() may turn out.
        self._rest = memoryview(b"")
        self._receiving: trio.CancelScope | None = None
        self._reader_has_left: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.path!r} {self.tracking_id}{' closed' if self._is_closed else ''}>"

    # Sending ---------------------------------------------------------------------------------------------------------

    async def send_all(self, data: BytesLike) -> None:
        """Send bytes, as one binary message in frames of at most 64 KiB. Empty data sends nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: after `send_eof` or `aclose`.
          StreamLost: the connection is gone.

        A checkpoint. ``data`` is not kept.
        """
        self._begin_sending()
        try:
            if len(data) == 0:
                await trio.lowlevel.checkpoint()
                return
            await self._leg.send_binary(data)
        finally:
            self._is_sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` may find room. Raises as `send_all`; a checkpoint."""
        self._begin_sending()
        try:
            await self._leg.wait_send_might_not_block()
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """End our direction: Close 1000 ``Shutdown``. The other side reads ``b""``; what it still sends can be read.

        Does nothing when it was done before. Raises as `send_all`; a checkpoint.
        """
        if self._leg.close_sent is not None and not self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._begin_sending()
        try:
            await self._leg.send_close(CloseCode.NORMAL_CLOSURE, "Shutdown")
        finally:
            self._is_sending = False

    def _begin_sending(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection was closed")
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        if self._leg.close_sent is not None:
            raise trio.ClosedResourceError("the end of data was sent")
        self._is_sending = True

    # Receiving -------------------------------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes of data messages, text ones included as their UTF-8.

        Args:
          max_bytes: at most so many; without it, what one read brought, usually at most 64 KiB.

        Returns: ``b""`` once the other side has closed with 1000 or no code.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: after `aclose`, also when it comes while this waits.
          StreamClosed: closed with another code, such as 1001 by a relay that stops: more data may have been meant.
          StreamLost: the connection ended without a Close.
          StreamGarbled: the other side broke RFC 6455.

        A checkpoint; cancelling it loses nothing.
        """
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        self._check_may_receive()
        if self._rest:
            await trio.lowlevel.checkpoint()
            if self._is_closed:
                raise trio.ClosedResourceError("this connection was closed")
            return self._take(max_bytes)
        with trio.CancelScope() as self._receiving:
            try:
                data = await self._leg.receive_bytes()
            except RemoteProtocolError as error:
                raise await self._complain(error) from error
            finally:
                self._end_receiving()
            if not data:
                self._check_normal_end()
            elif max_bytes is not None and len(data) > max_bytes:
                self._rest = memoryview(data)
                return self._take(max_bytes)
            return data
        raise trio.ClosedResourceError("this connection was closed")

    def _take(self, max_bytes: int | None) -> bytes:
        data = bytes(self._rest[:max_bytes])
        self._rest = self._rest[len(data) :]
        return data

    def _check_may_receive(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection was closed")
        if self._receiving is not None:
            raise trio.BusyResourceError("another task is receiving on this connection")

    def _end_receiving(self) -> None:
        self._receiving = None
        if self._reader_has_left is not None:
            self._reader_has_left.set()

    def _check_normal_end(self) -> None:
        close = self._leg.close_received
        if close is not None and close.code is not None and close.code not in NORMAL_ENDS:
            raise StreamClosed(close.code, close.reason)

    async def _complain(self, error: RemoteProtocolError) -> StreamGarbled:
        """Tell the peer what it did wrong, and cut the connection: it is of no further use."""
        with trio.move_on_after(_COMPLAINT_TIMEOUT):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._leg.send_close(error.close_code)
        await trio.aclose_forcefully(self._leg)
        return StreamGarbled(
            str(error), section=error.section, close_code=error.close_code, http_status=error.http_status
        )

    # The end and the rest --------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close: say goodbye, wait for the other side's goodbye for at most 10 seconds, and hang up.

        A task that is receiving gets `trio.ClosedResourceError`. If one is in the middle of sending, its message cannot
        be ended properly: the connection is cut, and the other side sees a loss. Cancelled, it is forceful. May be
        called again. A checkpoint.
        """
        await self._close(CloseCode.NORMAL_CLOSURE, "CloseAsync", CLOSE_TIMEOUT)

    async def turn_away(self, code: int, close_timeout: float = CLOSE_TIMEOUT, *, reason: str = "") -> None:
        """Close with another code and less patience, otherwise as `aclose`.

        Args:
          code: the close code; the caller answers for it.
          close_timeout: seconds for the goodbyes.
          reason: words for the other side, at most 123 bytes of UTF-8.
        """
        await self._close(code, reason, close_timeout)

    @property
    def close_received(self) -> Close | None:
        """The other side's Close, once reading has come to it, or None. Its code is None where it named none."""
        return self._leg.close_received

    async def _close(self, code: int, reason: str, close_timeout: float) -> None:
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        try:
            if self._receiving is not None:
                self._reader_has_left = trio.Event()
                self._receiving.cancel()
                await self._reader_has_left.wait()
            if not self._leg.is_sending:
                await self._leg.close(code, reason, close_timeout=close_timeout)
        finally:
            await self._leg.aclose()  # at once: a cancelled leg closes forcefully, and a closed one does nothing

    def messages(self, *, max_message_bytes: int | None = None) -> MessageChannel:
        """Return a view that keeps message types and boundaries. It shares this connection; closing either closes both.

        Args:
          max_message_bytes: bound on one incoming message, 1 MiB without it; a longer one is the other side's fault and
            ends the connection (close code 1009).

        Use one view from the start: once a message was read in part as bytes, its rest can be read as bytes only.
        """
        if max_message_bytes is not None:
            self._leg.max_message_bytes = max_message_bytes
        return MessageChannel(self)

    def expect_preamble(self) -> None:
        """Say that a few bytes will be read here, and the rest by whoever takes the WebSocket below over, such as
        `splice`: what comes in is kept for that, up to 128 KiB. To be called before anything is read.

        Raises:
          LocalProtocolError: something has been read.
        """
        self._leg.keep_received()

    def read_on(self) -> None:
        """Take back `expect_preamble`: all the rest will be read here, and nothing is kept any more."""
        self._leg.forget_received()

    @property
    def is_detachable(self) -> bool:
        """True as long as `detach` is possible: nothing has been read without `expect_preamble` before it, the end of
        data has not been sent, and nobody is reading or sending."""
        return not self._is_closed and self._leg.is_detachable

    def detach(self) -> tuple[trio.abc.Stream, bytes]:
        """Give up the WebSocket below, to whoever carries its frames as they are; see `WebSocketLeg.detach`.

        Bytes that `receive_some` has not returned yet are among those frames.
        """
        found = self._leg.detach(len(self._rest))
        self._is_closed = True
        return found

    def statistics(self) -> LegStatistics:
        """Bytes and frames so far, both ways."""
        return self._leg.statistics()


class MessageChannel(trio.abc.Channel[str | bytes]):
    """The message view of a `Connection`: a Trio channel of ``str`` (text) and ``bytes`` (binary).

    Several tasks may send, each message stays whole; one may receive. ``async for`` ends at the other side's end.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def send(self, value: str | bytes) -> None:
        """Send one message; empty ones are kept.

        Raises:
          trio.ClosedResourceError: after ``send_eof`` or ``aclose``.
          StreamLost: the connection is gone.

        A checkpoint.
        """
        connection = self.connection
        if connection._is_closed or connection._leg.close_sent is not None:
            raise trio.ClosedResourceError("this connection was closed for sending")
        if isinstance(value, str):
            await connection._leg.send_text(value)
        else:
            await connection._leg.send_binary(value)

    async def receive(self) -> str | bytes:
        """Wait for the next message. Empty ones are kept; pings are answered on the way.

        Raises:
          trio.EndOfChannel: the other side closed with 1000 or no code.
          trio.ClosedResourceError, trio.BusyResourceError, StreamClosed, StreamLost: as `Connection.receive_some`.
          StreamGarbled: a message over the bound (1009), text that is not UTF-8 (1007), or another broken rule.

        A cancellation point always; other tasks run at least once per 64 KiB received. Cancelling it loses nothing.
        """
        connection = self.connection
        connection._check_may_receive()
        with trio.CancelScope() as connection._receiving:
            try:
                while True:
                    match await connection._leg.receive():
                        case Text(text):
                            return text
                        case Binary(data):
                            return data
                        case Close():
                            connection._check_normal_end()
                            raise trio.EndOfChannel
                        case _:
                            pass
            except trio.EndOfChannel:
                connection._check_normal_end()
                raise
            except RemoteProtocolError as error:
                raise await connection._complain(error) from error
            finally:
                connection._end_receiving()
        raise trio.ClosedResourceError("this connection was closed")

    async def send_eof(self) -> None:
        """End our direction, as `Connection.send_eof`."""
        await self.connection.send_eof()

    async def aclose(self) -> None:
        """Close the connection, as `Connection.aclose`."""
        await self.connection.aclose()
