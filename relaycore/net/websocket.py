"""One WebSocket leg over a Trio stream, on top of the native frame codec.

Theory of operation
-------------------

*Reading.* One task reads. Each time it finds nothing more in the `MessageReader` it takes one chunk of at most 64 KiB
from the stream and gives it to the codec in one crossing. Pings are answered here, also if the caller wants data only.

*Writing.* Any task may send; whole messages take turns on a lock. A message is cut into frames of at most 64 KiB, and
``send_all`` gets about as much at a time: one long frame, or several short ones. Control frames overtake queued data:
while somebody holds the lock, a ping or pong is left in a slot that the holder empties after each ``send_all``. The
slots hold the latest ping and the latest pong only (RFC 6455 5.5.3 allows it), so that a flood of pings costs nothing.

*The pong nobody waits for.* The reader must not block on writing a pong: if the peer is itself blocked on sending,
nobody would move again. A pong that cannot leave at once therefore waits for a writable stream *while* the reader waits
for data, and only the wait is ever cancelled, never the sending.

*After a cancelled send* some, all or none of it is out. The leg then refuses to send any more; reading goes on. Only a
send that is cancelled before its first byte tears nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import trio

from .._native import encode_frame
from ..errors import LocalProtocolError, RemoteProtocolError
from ..vocab import BytesLike
from ..wire.frames import (
    OPCODE_BINARY,
    OPCODE_CLOSE,
    OPCODE_CONTINUATION,
    OPCODE_PING,
    OPCODE_PONG,
    OPCODE_TEXT,
    Close,
    Event,
    MessageReader,
    Piece,
    Ping,
    close_payload,
    frames_behind,
)
from ..wire.limits import CLOSE_TIMEOUT, MAX_FRAME_TO_CLIENT_BYTES
from .errors import StreamLost

__all__ = ["LegStatistics", "WebSocketLeg"]

RECEIVE_BYTES: Final = 65_536
"""One read, and so one native crossing."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_576
"""Bound on one assembled message where the caller sets none; websockets and trio-websocket have the same default."""

MAX_DISCARDED_BYTES: Final = 1_048_576
"""How much a leg that is closing throws away before it cuts a peer that goes on sending: nobody reads it any more."""

_MAX_KEPT_BYTES: Final = 2 * RECEIVE_BYTES
"""What `WebSocketLeg.keep_received` keeps: a preamble in small pieces, and a whole read behind it."""

_SERVER_HANGS_UP_TIMEOUT: Final = 1.0
"""Seconds that a server has to hang up once both Closes are there; .NET waits briefly for it too (8.7)."""

_SEND_BYTES: Final = 65_536 + 256
"""Frames up to this go out together: 64 KiB of payload, and the headers of the few messages that it usually is."""

_MASK_KEYS_AT_ONCE: Final = 256  # one system call per kilobyte of keys


@dataclass(frozen=True, slots=True)
class LegStatistics:
    """Counters of one leg since its 101. Bytes are those on the wire, frame headers included."""

    bytes_received: int
    bytes_sent: int
    frames_received: int
    frames_sent: int
    pings_answered: int


def _mask_keys() -> Iterator[bytes]:
    # RFC 6455 5.3: keys must come from a strong source and not be predictable from earlier ones.
    while True:
        block = os.urandom(4 * _MASK_KEYS_AT_ONCE)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


def _frames(opcode: int, data: BytesLike, fin: bool) -> Iterator[tuple[int, BytesLike, bool]]:
    """Cut a message, or part of one, into ``(opcode, payload, fin)`` of at most 64 KiB."""
    if len(data) > MAX_FRAME_TO_CLIENT_BYTES:
        rest = memoryview(data)
        while len(rest) > MAX_FRAME_TO_CLIENT_BYTES:
            yield opcode, rest[:MAX_FRAME_TO_CLIENT_BYTES], False
            opcode = OPCODE_CONTINUATION
            rest = rest[MAX_FRAME_TO_CLIENT_BYTES:]
        data = rest
    yield opcode, data, fin


class WebSocketLeg(trio.abc.AsyncResource):
    """One side of a WebSocket after its handshake.

    Args:
      stream: the transport; the leg owns it from here on.
      role: what *we* are. A client masks what it sends.
      early: bytes that came behind the peer's handshake in the same read.
      max_message_bytes: bound on one message from `receive`; the peer is at fault beyond it (close code 1009).
      validate_text: check text messages for UTF-8 (1007); when off, bad bytes become U+FFFD.

    One task may read at a time (`receive`, `receive_piece` or `receive_bytes`); any number may send. Reading may be
    cancelled at any time without loss. A cancelled send leaves the leg unable to send; see the module.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        role: Literal["client", "server"],
        early: BytesLike = b"",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        validate_text: bool = True,
    ) -> None:
        self.stream = stream
        self.role = role
        # Owned by the reading task.
        self._reader = MessageReader(
            masked=role == "server", max_message_bytes=max_message_bytes, validate_text=validate_text
        )
        self._is_receiving = False
        self._has_been_read = False
        self._early = early
        self._kept: bytearray | None = None
        self._bytes_handed_over = 0
        self._loss: StreamLost | None = None
        self.bytes_received = len(early)
        """Bytes read so far, `early` included. Any growth is a sign of life, also inside a slow message."""
        if early:
            self._reader.receive_data(early)
        # Owned by whoever holds the lock.
        self._send_lock = trio.Lock()
        self._mask_keys = _mask_keys() if role == "client" else None
        self._is_torn = False
        self._is_fragment_open = False
        self._bytes_sent = 0
        self._frames_sent = 0
        self._pings_answered = 0
        self.close_sent: Close | None = None
        """The Close that we sent, or None."""
        # Control frames that wait for the lock; the latest one of each kind.
        self._owed_pong: bytes | None = None
        self._owed_ping: bytes | None = None
        self._is_closed = False

    def keep_received(self) -> None:
        """Keep what comes in, up to 128 KiB, so that the stream can be given up although something was read.

        Only what `receive_bytes` takes counts as read then; the other ways of reading end it.

        Raises:
          LocalProtocolError: something has been read already.
        """
        if self._has_been_read:
            raise LocalProtocolError("what was read before this call is gone")
        self._kept = bytearray(self._early)

    def forget_received(self) -> None:
        """Keep nothing any more: what follows is read here. `detach` is not possible from the next read on."""
        self._kept = None

    @property
    def is_detachable(self) -> bool:
        """True as long as `detach` is possible: nothing has been read, unless `keep_received` was called in time and
        holds it, and nothing was sent but whole messages. While somebody reads or sends, it is False."""
        return not (
            self._is_closed
            or self._is_receiving
            or (self._has_been_read and self._kept is None)
            or self._is_torn
            or self._is_fragment_open
            or self.close_sent is not None
            or self._send_lock.locked()
        )

    def detach(self, unread_bytes: int = 0) -> tuple[trio.abc.Stream, bytes]:
        """Give up the stream to whoever carries its frames as they are, such as `Session`.

        Args:
          unread_bytes: the end of what `receive_bytes` has handed over, to be put back.

        Returns: the stream, and the frames that were taken from it and whose payload was not. Both belong to the
        caller; the leg is closed. A ping that is not answered yet is among the frames.

        Raises:
          LocalProtocolError: not `is_detachable`.
        """
        if not self.is_detachable:
            raise LocalProtocolError("a leg that was read or sent to in part cannot give up its stream")
        self._is_closed = True
        if self._kept is None:
            return self.stream, bytes(self._early)
        owed = b"" if self._owed_pong is None else self._encode_owed(self._owed_pong)
        return self.stream, owed + frames_behind(self._kept, self._bytes_handed_over - unread_bytes)

    def _encode_owed(self, payload: bytes) -> bytes:
        # As the peer had sent it, so masked if that is a client.
        return encode_frame(OPCODE_PING, payload, mask=b"\0\0\0\0" if self.role == "server" else None)

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def close_received(self) -> Close | None:
        """The peer's Close, once it has been reached in reading, or None."""
        return self._reader.close

    @property
    def is_between_messages(self) -> bool:
        """True if no incoming message has been handed over, or collected, in part."""
        return self._reader.is_between_messages

    @property
    def max_message_bytes(self) -> int:
        """Bound on one message from `receive`; may be set between two calls."""
        return self._reader.max_message_bytes

    @max_message_bytes.setter
    def max_message_bytes(self, value: int) -> None:
        self._reader.max_message_bytes = value

    async def receive(self) -> Event:
        """Wait for the next message or control frame.

        Pings are answered: the pong has left when its ping is returned, or else leaves with the next call that sends or
        reads, if more had come behind the ping or the peer takes nothing right now. A Close is *not* answered: what it
        means is the caller's business.

        Raises:
          StreamLost: the stream ended or broke before the peer's Close.
          RemoteProtocolError: the peer broke a rule; its ``close_code`` is what the peer may be told.
          trio.EndOfChannel: the Close has been returned already.
          trio.BusyResourceError: another task is reading.

        A cancellation point always; other tasks run at least once per 64 KiB received.
        """
        self._begin_receiving()
        self.forget_received()
        try:
            # Before anything is taken: what a cancelled call had in hand would be lost.
            await trio.lowlevel.checkpoint_if_cancelled()
            while (event := self._reader.next_event()) is None:
                if self._reader.close is not None:
                    raise trio.EndOfChannel
                await self._read_more()
            if isinstance(event, Ping):
                self._owed_pong = event.payload
                if self._reader.is_drained and not self._send_lock.locked():
                    await self._settle_owed()
            return event
        finally:
            self._is_receiving = False

    def receive_nowait(self) -> Event | None:
        """The next message or control frame that is in hand already; None when `receive` would have to read.

        The pong for a ping leaves with the next call that sends or reads. Raises as `receive`.
        """
        self._begin_receiving()
        self.forget_received()
        try:
            event = self._reader.next_event()
            if isinstance(event, Ping):
                self._owed_pong = event.payload
            return event
        finally:
            self._is_receiving = False

    async def receive_piece(self) -> Piece | Close:
        """Wait for what comes next of a data message, as it comes. Pings are answered, pongs swallowed.

        Returns: a piece, joined from what was in hand of one message, so usually at most 64 KiB; or the peer's Close.

        Raises: as `receive`; text is not checked, and no message is too long.

        A cancellation point always; other tasks run at least once per 64 KiB received.
        """
        self._begin_receiving()
        self.forget_received()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # as in `receive`
            while True:
                match self._reader.next_piece():
                    case Piece() | Close() as found:
                        return found
                    case Ping(payload):
                        self._owed_pong = payload
                    case None if self._reader.close is not None:
                        raise trio.EndOfChannel
                    case None:
                        await self._read_more()
        finally:
            self._is_receiving = False

    async def receive_bytes(self) -> bytes:
        """Wait for payload of data messages, types and boundaries ignored. Pings are answered, pongs swallowed.

        Returns: what one read brought, so usually at most 64 KiB; ``b""`` once the peer's Close has come, see
        `close_received`.

        Raises: as `receive`, without `trio.EndOfChannel`. A checkpoint.
        """
        self._begin_receiving()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # as in `receive`
            has_waited = False
            while not (data := self._reader.take_bytes()):
                match self._reader.next_event():
                    case Ping(payload):
                        self._owed_pong = payload
                    case Close():
                        break
                    case None if self._reader.close is not None:
                        break
                    case None:
                        await self._read_more()
                        has_waited = True
                    case _:
                        pass  # a pong, or an empty message: nothing to hand over
            if not has_waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._bytes_handed_over += len(data)
            return data
        finally:
            self._is_receiving = False

    def _begin_receiving(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this leg was closed")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is reading from this leg")
        self._is_receiving = self._has_been_read = True
        self._early = b""

    async def _read_more(self) -> None:
        if self._loss is not None:
            raise self._loss
        if self._owed_pong is not None and not self._send_lock.locked():
            # Either ends the wait: the loops above come back here if it was the pong.
            await self._settle_owed()
            return
        self._take(await self._read_once())
        if self._loss is not None:
            raise self._loss

    async def _read_once(self) -> BytesLike:
        try:
            return await self.stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError as error:
            self._loss = StreamLost("connection lost")
            self._loss.__cause__ = error
            return b""

    def _take(self, data: BytesLike) -> None:
        if data:
            self.bytes_received += len(data)
            if self._kept is not None:
                self._keep(self._kept, data)
            self._reader.receive_data(data)
        elif self._loss is None:
            self._loss = StreamLost("connection ended without a Close")

    def _keep(self, kept: bytearray, data: BytesLike) -> None:
        if len(kept) + len(data) > _MAX_KEPT_BYTES:
            self.forget_received()
        else:
            kept += data

    async def _settle_owed(self) -> None:
        """Wait until the owed control frames are out, or the stream has brought something, whichever is first.

        Only while nobody holds the lock: a holder sends them by itself. A loss is kept for the next `_read_more`, so
        that what came before it is handed over first.
        """
        reading = trio.CancelScope()
        writable = trio.CancelScope()
        failure: trio.ClosedResourceError | None = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_when_writable, writable, reading)
            with reading:
                try:
                    # Taken in here: leaving the nursery may be cancelled, and would lose it.
                    self._take(await self._read_once())
                except trio.ClosedResourceError as error:  # taken out of the nursery, which would wrap it
                    failure = error
            writable.cancel()
        if failure is not None:
            raise failure

    async def _flush_when_writable(self, writable: trio.CancelScope, reading: trio.CancelScope) -> None:
        # Holding the lock over the wait: a stream allows one task on its sending side, waiting included.
        try:
            with writable:
                async with self._send_lock:
                    await self.stream.wait_send_all_might_not_block()
                    # Out of reach of whoever cancels the reader: a pong cut in half would cost the sending side. The
                    # stream has room, so that this does not block; the bound is for streams that lie.
                    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                        await self._flush_owed()
        except (StreamLost, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reading side meets the same loss and reports it
        reading.cancel()

    # Writing ---------------------------------------------------------------------------------------------------------

    @property
    def is_sending(self) -> bool:
        """True while a task sends, or waits for room."""
        return self._send_lock.locked()

    async def send_text(self, text: str) -> None:
        """Send one text message; an empty one is sent as such. Errors as `send_binary`."""
        await self._send_message(OPCODE_TEXT, text.encode())

    async def send_binary(self, data: BytesLike) -> None:
        """Send one binary message, in frames of at most 64 KiB. An empty one is sent as one empty frame.

        ``data`` is not kept. Waits for its turn behind other messages. A checkpoint.

        Raises:
          StreamLost: the connection is gone, or an earlier send was cancelled half way.
          LocalProtocolError: our Close has been sent, or `send_fragment` has a message open.
          trio.ClosedResourceError: `aclose` has been called.
        """
        await self._send_message(OPCODE_BINARY, data)

    async def send_messages(self, messages: Sequence[str | BytesLike]) -> None:
        """Send several whole messages back to back: text for each `str`, else binary.

        They take one turn, so that no other message comes between, and leave in as few sends as possible: up to 64 KiB
        of frames at a time. Errors as `send_binary`; a cancellation may fall between two of them, and then the leg
        cannot send any more. A checkpoint, unless there are no messages.
        """
        parts = [
            (OPCODE_TEXT, message.encode()) if isinstance(message, str) else (OPCODE_BINARY, message)
            for message in messages
        ]
        await self._take_turn()
        try:
            self._check_may_begin()
            await self._flush_owed()
            await self._write_frames(frame for opcode, data in parts for frame in _frames(opcode, data, True))
            await self._flush_owed()
        finally:
            self._send_lock.release()

    async def send_fragment(self, data: BytesLike, *, fin: bool) -> None:
        """Send part of one binary message: the first call begins it, the one with ``fin`` ends it.

        In between only control frames may be sent, `send_close` included. Empty data is sent only with ``fin``, as an
        empty last frame, or as an empty message. Waits for its turn; frames and errors as `send_binary`. If it is
        cancelled before anything has left, the call may be repeated. A checkpoint.
        """
        await self._take_turn()
        try:
            self._check_may_send()
            await self._flush_owed()
            if data or fin:
                opcode = OPCODE_CONTINUATION if self._is_fragment_open else OPCODE_BINARY
                await self._write_frames(_frames(opcode, data, fin))
                self._is_fragment_open = not fin
                await self._flush_owed()
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._send_lock.release()

    async def send_ping(self, payload: bytes = b"") -> None:
        """Send a ping of at most 125 bytes; errors as `send_binary`.

        If a message is being sent right now, the ping goes out behind its current frame, and this call does not wait
        for it; a second ping then replaces the first. A checkpoint.
        """
        await self._send_control(OPCODE_PING, payload)

    async def send_pong(self, payload: bytes = b"") -> None:
        """Send a pong of at most 125 bytes, unsolicited or not; as `send_ping`."""
        await self._send_control(OPCODE_PONG, payload)

    async def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        """Send our Close, behind a message that is being sent; afterwards nothing more can be sent.

        Does nothing if it was sent before. ``reason`` is at most 123 bytes of UTF-8; with ``code`` None it is empty.

        Raises: as `send_binary`, and `LocalProtocolError` for a code or reason that may not be sent. A checkpoint.
        """
        payload = close_payload(code, reason)
        await self._send_lock.acquire()
        try:
            if self.close_sent is None:
                self._check_may_send()
                await self._write_frame(OPCODE_CLOSE, payload, True)
                self.close_sent = Close(code, reason)
        finally:
            self._send_lock.release()

    async def wait_send_might_not_block(self) -> None:
        """Wait until the stream may have room for more; waits its turn behind messages. Raises as `send_binary`."""
        await self._take_turn()
        try:
            self._check_may_send()
            await self.stream.wait_send_all_might_not_block()
        except trio.BrokenResourceError as error:
            raise StreamLost("connection lost") from error
        finally:
            self._send_lock.release()

    async def _send_message(self, opcode: int, data: BytesLike) -> None:
        await self._take_turn()
        try:
            self._check_may_begin()
            await self._flush_owed()
            if len(data) <= MAX_FRAME_TO_CLIENT_BYTES:
                await self._write_frame(opcode, data, True)
            else:
                await self._write_frames(_frames(opcode, data, True))
            await self._flush_owed()
        finally:
            self._send_lock.release()

    async def _send_control(self, opcode: int, payload: bytes) -> None:
        if len(payload) > 125:
            raise LocalProtocolError(f"control payload of {len(payload)} bytes, 125 at most", section="RFC 6455 5.5")
        self._check_may_send()
        if opcode == OPCODE_PING:
            self._owed_ping = payload
        else:
            self._owed_pong = payload
        try:
            self._send_lock.acquire_nowait()
        except trio.WouldBlock:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._flush_owed()
        finally:
            self._send_lock.release()

    async def _take_turn(self) -> None:
        try:
            self._send_lock.acquire_nowait()  # acquire() would cost a checkpoint of its own
        except trio.WouldBlock:
            await self._send_lock.acquire()

    def _check_may_send(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this leg was closed")
        if self.close_sent is not None:
            raise LocalProtocolError("our Close has been sent", section="RFC 6455 5.5.1")
        if self._is_torn and not self._send_lock.locked():
            raise StreamLost("an earlier send was cut off half way")

    def _check_may_begin(self) -> None:
        self._check_may_send()
        if self._is_fragment_open:
            raise LocalProtocolError("a message is being sent in fragments", section="RFC 6455 5.4")

    async def _flush_owed(self) -> None:
        while self.close_sent is None:
            if self._owed_pong is not None:
                payload, self._owed_pong = self._owed_pong, None
                await self._write_frame(OPCODE_PONG, payload, True)
                self._pings_answered += 1
            elif self._owed_ping is not None:
                payload, self._owed_ping = self._owed_ping, None
                await self._write_frame(OPCODE_PING, payload, True)
            else:
                return

    async def _write_frames(self, frames: Iterable[tuple[int, BytesLike, bool]]) -> None:
        """Send frames that belong together, with what is owed between two sends."""
        batch: list[bytes] = []
        size = 0
        has_begun = False
        try:
            for opcode, payload, fin in frames:
                frame = self._encode(opcode, payload, fin)
                if batch and size + len(frame) > _SEND_BYTES:
                    await self._write(batch)
                    has_begun = True
                    await self._flush_owed()
                    batch, size = [], 0
                batch.append(frame)
                size += len(frame)
            if batch:
                await self._write(batch)
        except BaseException:
            # Whoever is cancelled between two sends cannot know how much is out, and nobody could go on from there.
            self._is_torn = self._is_torn or has_begun
            raise

    async def _write_frame(self, opcode: int, payload: BytesLike, fin: bool) -> None:
        await self._write([self._encode(opcode, payload, fin)])

    def _encode(self, opcode: int, payload: BytesLike, fin: bool) -> bytes:
        mask = next(self._mask_keys) if self._mask_keys is not None else None
        return encode_frame(opcode, payload, fin=fin, mask=mask)

    async def _write(self, frames: list[bytes]) -> None:
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        if self._is_torn:
            raise StreamLost("an earlier send was cut off half way")
        await trio.lowlevel.checkpoint_if_cancelled()  # a cancellation that is already there tears nothing
        self._is_torn = True
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise StreamLost("connection lost") from error
        self._is_torn = False
        self._bytes_sent += len(data)
        self._frames_sent += len(frames)

    # The end ---------------------------------------------------------------------------------------------------------

    async def close(self, code: int = 1000, reason: str = "", *, close_timeout: float = CLOSE_TIMEOUT) -> None:
        """Say goodbye: send a Close unless one was sent, wait for the peer's, then close the stream.

        Data that still comes is thrown away, up to 1 MiB. All of it takes at most ``close_timeout`` seconds; a peer
        that is gone or breaks a rule ends the wait. No other task may be reading. Cancelled, it closes forcefully.
        """
        discarded = 0
        try:
            with trio.move_on_after(close_timeout):
                await self.send_close(code, reason)
                while self.close_received is None and discarded <= MAX_DISCARDED_BYTES:
                    discarded += len(await self.receive_bytes())
                if self.close_received is not None and self.role == "client":
                    # RFC 6455 7.1.1: the server hangs up first. Doing it before it has read our Close could reset the
                    # connection under it, and it would pass on a loss where there was a proper end.
                    with trio.move_on_after(_SERVER_HANGS_UP_TIMEOUT):
                        while discarded <= MAX_DISCARDED_BYTES and (data := await self.stream.receive_some()):
                            discarded += len(data)
        except (trio.BrokenResourceError, RemoteProtocolError, trio.ClosedResourceError):
            pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the stream as it stands, without any WebSocket goodbye. May be called again. A checkpoint."""
        self._is_closed = True
        with contextlib.suppress(trio.BrokenResourceError):  # a TLS goodbye on a broken connection
            await self.stream.aclose()

    def statistics(self) -> LegStatistics:
        """The counters as they stand."""
        return LegStatistics(
            bytes_received=self.bytes_received,
            bytes_sent=self._bytes_sent,
            frames_received=self._reader.frames_received,
            frames_sent=self._frames_sent,
            pings_answered=self._pings_answered,
        )
