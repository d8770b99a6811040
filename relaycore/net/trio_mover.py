"""Moves the bytes of a joined pair in two Trio tasks: the fallback for every stream, and the engine's reference.

Theory of operation
-------------------
It waits for a leg to be readable, borrows a buffer, has one receive translated in one crossing, sends what
came out, and gives the buffer back.

::

      sender ──recv──▶ [buffer] ─translate─▶ send ──▶ listener       task TO_LISTENER
      sender ◀──send── [buffer] ◀─translate─ recv ─── listener       task TO_SENDER
                 ▲                               │
                 └── a Pong that the listener's Ping is owed goes out here, by whoever holds this leg's writer lock

Two facts shape it:

* **Each leg has one writer at a time.** Bytes of the other leg and frames of the brain's own (Pong, Close) go to
  the same leg, and the brain may only put its own between two frames. So "translate, then send all of it" happens
  under that leg's lock. A task that owes a leg a Pong and finds the lock taken leaves it: the holder looks once more
  after its send. Waiting for the lock could hold up the reading of one leg because of the other one's slowness.
* **Reading stops while sending blocks**: that is the whole of back-pressure. One direction holds at most one buffer.
"""

from __future__ import annotations

import math
import os
from typing import Final

import trio

from .._native import Buffer, Step, StepEvent
from ..vocab import CloseBy, Direction, LegKind
from .direct import direct_socket
from .linger import close_gently, is_reset
from .pool import BufferPool
from .session import EndReason, Session, SessionLeg, SessionResult

__all__ = ["TrioMover"]

_LAST_WORD_TIMEOUT: Final = 2.0
"""Seconds to get the Close for a broken rule out."""

_LEFTOVER_BYTES: Final = 1 << 20
"""How much a leg may send behind its Close and still be watched; nothing is due there, and it is thrown away."""


class TrioMover:
    """Runs sessions in Trio tasks.

    Args:
      pool: where buffers are borrowed.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool

    async def run(self, session: Session) -> SessionResult:
        """Move bytes until both sides are done, then close both streams.

        Both streams are closed when this returns or raises; cancelling it cuts both legs.
        """
        return await _Run(session, self._pool).run()


_BACK = {Direction.TO_LISTENER: Direction.TO_SENDER, Direction.TO_SENDER: Direction.TO_LISTENER}
_SOURCE = {Direction.TO_LISTENER: CloseBy.SENDER, Direction.TO_SENDER: CloseBy.LISTENER}


class _Run:
    """One session while it is moved; its driver."""

    def __init__(self, session: Session, pool: BufferPool) -> None:
        self._session = session
        self._brain = session.brain
        self._pool = pool
        self._half_closed_timeout = session.half_closed_timeout or math.inf
        self._source = {Direction.TO_LISTENER: session.sender, Direction.TO_SENDER: session.listener}
        self._writer = {direction: trio.Lock() for direction in Direction}
        self._is_torn = dict.fromkeys(Direction, False)
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._reason: EndReason | None = None
        self._by = CloseBy.RELAY
        self._is_half_closed = False
        self._offender: Direction | None = None

    def close_nowait(self, code: int, reason: bytes) -> None:
        if self._reason is not None:
            return
        self._brain.close(code, reason)
        self._end(EndReason.RELAY_CLOSED, CloseBy.RELAY)
        self._cut_soon()
        assert self._nursery is not None
        for direction in Direction:
            self._nursery.start_soon(self._send_control, direction)

    def _cut_soon(self) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._session.close_timeout)

    def check_sources_nowait(self) -> None:
        for direction, is_sending in self._is_torn.items():
            if is_sending and is_reset(self._source[direction].stream):
                self._abort(direction)

    async def run(self) -> SessionResult:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._session.driver = self
                    if self._session.is_closing:
                        self._end(EndReason.RELAY_CLOSED, CloseBy.RELAY)
                        self._cut_soon()
                    elif self._session.idle_timeout:
                        self._scope.deadline = trio.current_time() + self._session.idle_timeout
                    for direction in Direction:
                        if self._brain.owes_control(direction):
                            nursery.start_soon(self._send_control, direction)
                    nursery.start_soon(self._move, Direction.TO_LISTENER)
                    await self._move(Direction.TO_SENDER)
            self._nursery = None
            if self._scope.cancelled_caught and self._reason is None:
                silence = EndReason.HALF_CLOSED_TIMEOUT if self._is_half_closed else EndReason.IDLE_TIMEOUT
                self._end(silence, CloseBy.RELAY)
            await self._close_legs()
        finally:
            reason = None if self._reason is EndReason.PROTOCOL_ERROR else self._reason
            await self._session.part(reason)  # noqa: ASYNC102 - shields itself
        return SessionResult(self._reason or EndReason.CLOSED, self._by, self._brain.statistics())

    # ------------------------------------------------------------------------------------------------ one direction

    async def _move(self, direction: Direction) -> None:
        """Carry one direction to its end."""
        leg = self._source[direction]
        try:
            is_open = not leg.early or await self._relay_bytes(direction, leg.early)
            if is_open:
                if isinstance(leg.stream, trio.SocketStream):
                    await self._move_from_socket(direction, leg.stream)
                else:
                    await self._move_from_stream(direction, leg.stream)
        except (trio.BrokenResourceError, OSError):
            # Whichever leg it was: a pair that lost one leg without Close loses the other one too.
            self._abort(direction)
            return
        if leg.kind is not LegKind.RAW:
            await self._watch_closed_leg(leg)

    async def _watch_closed_leg(self, leg: SessionLeg) -> None:
        """Notice that a leg hangs up after its Close, which leaves nobody to answer and nobody to send to.

        One that only waits for the other side's Close stays connected; that is the half-close of 8.7 and may last.
        """
        budget = _LEFTOVER_BYTES
        try:
            while data := await leg.stream.receive_some(65_536):
                budget -= len(data)
                if budget < 0:
                    return
        except (trio.BrokenResourceError, OSError):
            pass
        self._half_closed_timeout = min(self._half_closed_timeout, self._session.close_timeout)
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._half_closed_timeout)

    async def _move_from_socket(self, direction: Direction, stream: trio.SocketStream) -> None:
        # The descriptor itself is read, since a buffer may only be borrowed once there is something to put into it,
        # and may be kept for the next receive if that has something too.
        fd = stream.socket.fileno()
        while True:
            await trio.lowlevel.wait_readable(fd)
            buffer = await self._pool.borrow()
            try:
                while True:
                    try:
                        received = os.readv(fd, [buffer.window])
                    except BlockingIOError:
                        break
                    if not await self._relay_buffer(direction, buffer, received):
                        return
                    if received < len(buffer.window):
                        break  # all there was; asking again would cost a call to hear so
                    await trio.lowlevel.checkpoint()
            finally:
                self._pool.give_back(buffer)

    async def _move_from_stream(self, direction: Direction, stream: trio.abc.Stream) -> None:
        while True:
            if not await self._relay_bytes(direction, await stream.receive_some(65_536)):
                return

    async def _relay_buffer(self, direction: Direction, buffer: Buffer, received: int) -> bool:
        """Translate in place what was received; False when this direction needs no further reading."""
        await self._acquire_writer(direction)
        try:
            if not received:
                await self._finish(direction, self._brain.receive_eof(direction, buffer))
                return False
            step = self._brain.translate(direction, buffer, received)
            while await self._finish(direction, step):
                if not step.more:
                    return True
                step = self._brain.resume(direction, buffer)
            return False
        finally:
            self._writer[direction].release()

    async def _relay_bytes(self, direction: Direction, data: bytes | bytearray) -> bool:
        """Translate bytes that some stream handed over; False when this direction needs no further reading."""
        buffer = await self._pool.borrow()
        try:
            await self._acquire_writer(direction)
            try:
                if not data:
                    await self._finish(direction, self._brain.receive_eof(direction, buffer))
                    return False
                step = self._brain.translate_from(direction, data, 0, buffer)
                offset = step.consumed
                while await self._finish(direction, step):
                    if not step.more:
                        return True
                    step = self._brain.translate_from(direction, data, offset, buffer)
                    offset += step.consumed
                return False
            finally:
                self._writer[direction].release()
        finally:
            self._pool.give_back(buffer)

    async def _acquire_writer(self, direction: Direction) -> None:
        # trio.Lock.acquire always lets the other tasks run, which costs more than the translation of a small frame.
        try:
            self._writer[direction].acquire_nowait()
        except trio.WouldBlock:
            await self._writer[direction].acquire()

    async def _finish(self, direction: Direction, step: Step) -> bool:
        """Send a step's output to its destination and act on its events. Called with that leg's writer lock held.

        Returns: whether this direction goes on.
        """
        events = step.events
        if events & StepEvent.SOURCE_FINISHED and not events & (StepEvent.PROTOCOL_ERROR | StepEvent.ABORT):
            # Before it is sent: a destination that reads nothing must not put the limit off.
            self._begin_half_close(direction)
        if step.output and events & StepEvent.PROTOCOL_ERROR:
            with trio.move_on_after(_LAST_WORD_TIMEOUT):
                await self._send(direction, step.output)
        elif step.output:
            await self._send(direction, step.output)
        if self._reason is None:
            if self._is_half_closed:
                self._scope.deadline = trio.current_time() + self._half_closed_timeout
            elif self._session.idle_timeout:
                self._scope.deadline = trio.current_time() + self._session.idle_timeout
        if not events:
            if self._brain.owes_control(direction):
                await self._send_control_locked(direction)
            return True
        if events & StepEvent.PROTOCOL_ERROR:
            self._end(EndReason.PROTOCOL_ERROR, _SOURCE[direction])
            self._offender = direction
            # Before anything is cancelled: a send towards the offender that is cut short leaves no place for a Close.
            with trio.move_on_after(_LAST_WORD_TIMEOUT):
                async with self._writer[_BACK[direction]]:
                    await self._tell_offender(direction)
            self._scope.cancel()
            return False
        if events & StepEvent.ABORT:
            self._abort(direction)
            return False
        if events & StepEvent.CONTROL_OWED_BACK:
            assert self._nursery is not None
            if not self._writer[_BACK[direction]].locked():
                self._nursery.start_soon(self._send_control, _BACK[direction])
        if self._brain.owes_control(direction):
            await self._send_control_locked(direction)
        await self._half_close_raw(direction, events)
        if self._is_all_sent(direction):
            self._end(EndReason.CLOSED, _SOURCE[direction])
            self._scope.cancel()
        return not events & StepEvent.SOURCE_FINISHED

    def _begin_half_close(self, direction: Direction) -> None:
        if self._is_half_closed:
            return
        self._is_half_closed = True
        if self._reason is None:
            self._by = _SOURCE[direction]
            self._scope.deadline = trio.current_time() + self._half_closed_timeout

    async def _half_close_raw(self, direction: Direction, events: StepEvent) -> None:
        # A raw leg has no Close frame: the end of its stream says the same.
        destination = self._destination(direction)
        if events & StepEvent.DIRECTION_FINISHED and destination.kind is LegKind.RAW:
            assert isinstance(destination.stream, trio.abc.HalfCloseableStream)
            await destination.stream.send_eof()

    async def _send(self, direction: Direction, output: memoryview) -> None:
        # A send that is cancelled or fails may have sent a part: whatever came behind it would stand inside a frame.
        self._is_torn[direction] = True
        stream = self._destination(direction).stream
        # Most sends fit, and then the turn that send_all gives to the other tasks costs more than the send. Whoever
        # calls this waits for its next bytes soon, and lets the others run there.
        direct = direct_socket(stream)
        sent = direct.send_nowait(output) if direct is not None else 0
        if sent < len(output):
            await stream.send_all(output[sent:])
        self._is_torn[direction] = False

    # ------------------------------------------------------------------------------------------------ frames of our own

    async def _send_control(self, direction: Direction) -> None:
        """Send what the brain itself owes to a leg, unless somebody is writing there: then that one does it."""
        try:
            self._writer[direction].acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            await self._send_control_locked(direction)
        except (trio.BrokenResourceError, OSError):
            self._abort(_BACK[direction])
        finally:
            self._writer[direction].release()

    async def _send_control_locked(self, direction: Direction) -> None:
        if self._is_torn[direction]:
            return
        # Never a buffer of the pool: the caller may hold one, and a pool that slow readers have emptied would keep back
        # the Close by which they are sent away.
        step = self._brain.control(direction, self._pool.scratch)
        if step.output:
            await self._send(direction, memoryview(bytes(step.output)))
        await self._half_close_raw(direction, step.events)
        if self._is_all_sent(direction):
            self._end(EndReason.CLOSED, CloseBy.RELAY)
            self._scope.cancel()

    # ------------------------------------------------------------------------------------------------ the end

    def _is_all_sent(self, direction: Direction) -> bool:
        """Whether both directions are over, asked by the holder of this direction's writer lock after its last send.

        The brain is finished once the second Close is translated. Then it may still be on its way out, or the first one
        may: whoever holds the other lock asks again after that.
        """
        return self._brain.is_finished and not self._writer[_BACK[direction]].locked()

    def _destination(self, direction: Direction) -> SessionLeg:
        return self._source[_BACK[direction]]

    def _end(self, reason: EndReason, by: CloseBy) -> None:
        """Note how the session ended; the first one to say so is right."""
        if self._reason is None:
            self._reason = reason
            if not self._is_half_closed:
                self._by = by

    def _abort(self, direction: Direction) -> None:
        self._end(EndReason.ABORTED, _SOURCE[direction])
        self._scope.cancel()

    async def _close_legs(self) -> None:
        """Let go of both legs as the end asks for: in order, or cut."""
        if self._reason is EndReason.PROTOCOL_ERROR:
            assert self._offender is not None
            await self._session.cut(self._destination(self._offender))
            with trio.move_on_after(_LAST_WORD_TIMEOUT):
                await self._tell_offender(self._offender)
            await close_gently(self._source[self._offender].stream)
        elif self._brain.is_finished:
            # 8.7: the relay closes first, once both have said goodbye.
            async with trio.open_nursery() as nursery:
                for leg in self._source.values():
                    nursery.start_soon(close_gently, leg.stream)

    async def _tell_offender(self, direction: Direction) -> None:
        # Inside an unfinished frame nothing can be said: then the cut has to do.
        try:
            await self._send_control_locked(_BACK[direction])
        except (trio.BrokenResourceError, OSError):
            return
