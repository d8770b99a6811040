"""The brain of a joined session, as one object; its rules are in ``native/src/rc_session.c`` and nowhere else."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import LocalProtocolError, NativeError
from ..vocab import BytesLike, Direction, LegKind
from ._rc import ffi, lib
from .frames import FramingError
from .pool import HEADROOM_BYTES, Buffer

if TYPE_CHECKING:
    from ._rc import CData

_LEGS: Final = {
    LegKind.WS_SERVER: lib.RC_LEG_WS_SERVER,
    LegKind.WS_CLIENT: lib.RC_LEG_WS_CLIENT,
    LegKind.RAW: lib.RC_LEG_RAW,
}

_TO_LISTENER: Final = lib.RC_TO_LISTENER
_TO_SENDER: Final = lib.RC_TO_SENDER
_MORE: Final = lib.RC_STEP_MORE


class StepEvent(enum.IntFlag):
    """What the mover has to do, besides sending the output."""

    CONTROL_OWED_BACK = lib.RC_STEP_CONTROL_OWED_BACK
    """The source leg is owed a Pong or a Close: call ``control()`` for the opposite direction."""
    DIRECTION_FINISHED = lib.RC_STEP_FINISHED
    """Nothing will be sent this way after this output. A RAW destination needs ``shutdown(SHUT_WR)``."""
    ABORT = lib.RC_STEP_ABORT
    """Cut both legs, without Close (spec 8.8)."""
    PROTOCOL_ERROR = lib.RC_STEP_PROTOCOL_ERROR
    """The source broke RFC 6455: send it what ``control()`` of the opposite direction gives, then cut both legs."""
    SOURCE_FINISHED = lib.RC_STEP_SOURCE_FINISHED
    """The source sent its Close or ended: whatever else it sends is dropped unread."""


# Building an IntFlag costs a microsecond; all 32 and the one bit that is not an event are made once.
_EVENTS: Final = tuple(StepEvent(bits & ~_MORE) for bits in range(64))


class Step(NamedTuple):
    """What one call gave.

    Attributes:
      output: bytes for the direction's destination leg, perhaps none. They lie in the buffer: send them before it is
        used again or given back, and in the order of the calls.
      consumed: bytes taken from the input.
      more: the output took all the room. Send it, then call :meth:`Session.resume`, or ``translate_from`` for the
        rest.
      events: what else is to be done.
    """

    output: memoryview
    consumed: int
    more: bool
    events: StepEvent


@dataclass(frozen=True, slots=True)
class DirectionStatistics:
    """A snapshot of one direction's counters.

    ``frames_*`` count frames of every kind, and none on a RAW leg. ``bytes_discarded`` are those of ``bytes_in`` that
    came behind the source's Close or after the relay closed. ``close_code`` is the code of the Close that went to the
    destination; None as long as there was none, and for a Close without a code.
    """

    bytes_in: int
    bytes_out: int
    payload_bytes: int
    bytes_discarded: int
    frames_in: int
    frames_out: int
    close_code: int | None


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """A snapshot of a session's counters."""

    to_listener: DirectionStatistics
    to_sender: DirectionStatistics


class Session:
    """Two directions between two legs, by the rules of the wire contract's section 8. No I/O and no waiting.

    A direction's *source* is the leg its bytes come from, its *destination* the one they go to: ``TO_LISTENER`` reads
    the sender's leg. Calls are for one thread at a time, but for :meth:`statistics`; each crosses into C once, and
    nothing is allocated there.

    Args:
      sender: what we are on the sender's leg.
      listener: what we are on the listener's leg.
    """

    __slots__ = ("_session", "_step")

    def __init__(self, sender: LegKind, listener: LegKind) -> None:
        self._session = ffi.new("struct rc_session *")
        self._step = ffi.new("struct rc_step *")
        if (
            lib.rc_session_init(self._session, _LEGS[sender], _LEGS[listener], os.urandom(lib.RC_SESSION_SEED_BYTES))
            < 0
        ):
            raise NativeError("rc_session_init refused the legs")

    def translate(self, direction: Direction, buffer: Buffer, received: int) -> Step:
        """Translate in place what was received into ``buffer.window[:received]``.

        Raises:
          LocalProtocolError: more bytes than the window has, or the buffer was given back.
        """
        if not 0 <= received <= len(buffer.window):
            raise LocalProtocolError(f"{received} bytes in a window of {len(buffer.window)}", section="rc_session.h")
        return self._translate(direction, buffer, HEADROOM_BYTES, received)

    def resume(self, direction: Direction, buffer: Buffer) -> Step:
        """Go on with the input of an in-place call whose step said ``more``, once its output was sent."""
        return self._translate(direction, buffer, max(buffer._rest_at, HEADROOM_BYTES), buffer._rest_bytes)

    def _translate(self, direction: Direction, buffer: Buffer, at: int, length: int) -> Step:
        # The one hot path of this file: no helper is called that a local name can spare.
        slab = buffer._slab
        if slab is None:
            raise LocalProtocolError("the buffer was given back", section="rc_pool.h")
        step = self._step
        index = _TO_LISTENER if direction is Direction.TO_LISTENER else _TO_SENDER
        result = lib.rc_session_translate(self._session, index, slab, at, length, step)
        if result < 0:
            raise NativeError(f"rc_session_translate returned {result}")
        consumed = step.consumed
        buffer._rest_at = at + consumed
        buffer._rest_bytes = length - consumed
        start = step.out_offset
        events = step.events
        return Step(buffer._view[start : start + step.out_bytes], consumed, (events & _MORE) != 0, _EVENTS[events])

    def translate_from(self, direction: Direction, data: BytesLike, offset: int, buffer: Buffer) -> Step:
        """Translate ``data[offset:]`` into a buffer, as far as there is room; for bytes that are not in a pool buffer.

        Raises:
          LocalProtocolError: the offset is outside the data, or the buffer was given back.
        """
        slab = _slab(buffer)
        with memoryview(data) as view, view.cast("B") as octets:
            if not 0 <= offset <= octets.nbytes:
                raise LocalProtocolError(f"offset {offset} of {octets.nbytes} bytes", section="rc_session.h")
            with octets[offset:] as rest:
                source = ffi.from_buffer("uint8_t[]", rest)
                try:
                    result = lib.rc_session_translate_from(
                        self._session, _index(direction), source, rest.nbytes, slab, buffer._slab_bytes, self._step
                    )
                finally:
                    ffi.release(source)
        return self._outcome("rc_session_translate_from", result, buffer)

    def receive_eof(self, direction: Direction, buffer: Buffer) -> Step:
        """The direction's source has ended its stream.

        From a RAW leg that is a half-close, passed on as Close 1000 or as ``DIRECTION_FINISHED``. From a WebSocket leg
        without Close it is ``ABORT``; behind its Close it is as it should be, and gives no event.

        The buffer must hold no input that waits for :meth:`resume`.
        """
        result = lib.rc_session_eof(self._session, _index(direction), _slab(buffer), buffer._slab_bytes, self._step)
        return self._outcome("rc_session_eof", result, buffer)

    def control(self, direction: Direction, buffer: Buffer) -> Step:
        """What we ourselves owe to this direction's destination: the Pongs for its Pings, our own Close.

        Empty when the output so far ends inside a frame; then it comes out of a later ``translate`` of this direction.
        The buffer must hold no input that waits for :meth:`resume`.
        """
        result = lib.rc_session_control(self._session, _index(direction), _slab(buffer), buffer._slab_bytes, self._step)
        return self._outcome("rc_session_control", result, buffer)

    def owes_control(self, direction: Direction) -> bool:
        """Is something owed to this direction's destination, whether or not it can go out now?"""
        return lib.rc_session_owes_control(self._session, _index(direction))

    def close(self, code: int, reason: bytes = b"") -> None:
        """Close both legs from our side (spec 13).

        Each leg gets this Close at its next frame boundary, unless it got one before; fetch it with :meth:`control`.
        From then on sources are read and dropped until their own Close. A second call changes nothing. After a protocol
        error only the text of the Close that the offender is owed changes.

        Raises:
          LocalProtocolError: code or reason may not stand in a Close frame.
        """
        if not 0 <= code <= 0xFFFF or lib.rc_session_close(self._session, code, reason, len(reason)) < 0:
            raise LocalProtocolError(f"close code {code} with {len(reason)} bytes of reason", section="RFC 6455 5.5.1")

    @property
    def is_finished(self) -> bool:
        """Both sources have ended and both destinations were told. Never true after an abort or a protocol error."""
        return lib.rc_session_is_finished(self._session)

    @property
    def failure(self) -> FramingError | None:
        """What a peer did to break RFC 6455, if one did."""
        failure = self._session.failure
        return FramingError(failure, []) if failure else None

    def statistics(self) -> SessionStatistics:
        """A snapshot, at any time and in any thread, also while another one moves the bytes."""
        return SessionStatistics(self._direction_statistics(_TO_LISTENER), self._direction_statistics(_TO_SENDER))

    def _direction_statistics(self, index: int) -> DirectionStatistics:
        counters = ffi.new("struct rc_direction_counters *")
        close_code = ffi.new("uint16_t *")
        lib.rc_session_counters(self._session, index, counters, close_code)
        return DirectionStatistics(
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            payload_bytes=counters.payload_bytes,
            bytes_discarded=counters.discarded_bytes,
            frames_in=counters.frames_in,
            frames_out=counters.frames_out,
            close_code=close_code[0] or None,
        )

    def _outcome(self, function: str, result: int, buffer: Buffer) -> Step:
        if result < 0:
            raise NativeError(f"{function} returned {result}")
        step = self._step
        start = step.out_offset
        events = step.events
        return Step(buffer._view[start : start + step.out_bytes], step.consumed, (events & _MORE) != 0, _EVENTS[events])


def _index(direction: Direction) -> int:
    return _TO_LISTENER if direction is Direction.TO_LISTENER else _TO_SENDER


def _slab(buffer: Buffer) -> CData:
    slab = buffer._slab
    if slab is None:
        raise LocalProtocolError("the buffer was given back", section="rc_pool.h")
    return slab
