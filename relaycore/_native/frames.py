"""Frames for legs that Python reads: control channels, the library's streams. Sessions go through ``session.py``."""

from __future__ import annotations

import threading
from typing import Final

from ..errors import LocalProtocolError, NativeError, RemoteProtocolError
from ..vocab import BytesLike
from ._rc import ffi, lib

RULES: Final = {
    lib.RC_EPROTO_RSV: ("a reserved bit is set, and no extension was agreed", "RFC 6455 5.2"),
    lib.RC_EPROTO_OPCODE: ("unknown opcode", "RFC 6455 5.2"),
    lib.RC_EPROTO_FRAGMENTED: ("fragmented control frame", "RFC 6455 5.5"),
    lib.RC_EPROTO_CONTROL_LENGTH: ("control frame with more than 125 bytes", "RFC 6455 5.5"),
    lib.RC_EPROTO_UNMASKED: ("unmasked frame from a client", "RFC 6455 5.1"),
    lib.RC_EPROTO_MASKED: ("masked frame from a server", "RFC 6455 5.1"),
    lib.RC_EPROTO_LENGTH: ("length not in its shortest form, or above 2^63 - 1", "RFC 6455 5.2"),
    lib.RC_EPROTO_CONTINUATION: ("continuation frame, and no message is open", "RFC 6455 5.4"),
    lib.RC_EPROTO_INTERLEAVED: ("new message inside an open one", "RFC 6455 5.4"),
    lib.RC_EPROTO_CLOSE_LENGTH: ("close payload of one byte", "RFC 6455 5.5.1"),
    lib.RC_EPROTO_CLOSE_CODE: ("close code that may not be sent", "RFC 6455 7.4"),
    lib.RC_EPROTO_CLOSE_UTF8: ("close reason is not UTF-8", "RFC 6455 8.1"),
}
"""What was seen, and the section that forbids it, by ``RC_EPROTO_*``."""


def close_code_of(failure: int) -> int:
    """The close code that a peer is told for a ``RC_EPROTO_*``: 1007 for text that is not UTF-8, else 1002."""
    return 1007 if failure == lib.RC_EPROTO_CLOSE_UTF8 else 1002


class FramingError(RemoteProtocolError):
    """The peer's bytes are not WebSocket frames as they must be; ``close_code`` is what to answer with.

    Attributes:
      pieces: what :meth:`Decoder.receive` read in front of the error in the same call; empty if the decoder did not
        raise this.
    """

    def __init__(self, failure: int, pieces: list[tuple[int, bool, bytes]]) -> None:
        message, section = RULES[failure]
        super().__init__(message, section=section, close_code=close_code_of(failure))
        self.pieces = pieces


def mask_implementation() -> str:
    """Name of the masking loop chosen for this processor: ``portable``, ``sse2``, ``avx2`` or ``neon``."""
    return ffi.string(lib.rc_mask_implementation()).decode("ascii")


def apply_mask(data: BytesLike, key: bytes, phase: int = 0) -> bytes:
    """XOR data with a mask key (RFC 6455 5.3); doing it twice gives the data back.

    Args:
      data: any length; only read.
      key: four bytes.
      phase: offset of ``data`` in its payload, where that does not begin with ``data``.

    Raises:
      LocalProtocolError: the key has not four bytes, or the phase is negative.
    """
    if len(key) != 4 or phase < 0:
        raise LocalProtocolError("a mask key has four bytes and a phase is not negative", section="RFC 6455 5.3")
    source = ffi.from_buffer("uint8_t[]", data)
    try:
        length = memoryview(data).nbytes
        masked = bytearray(length)
        target = ffi.from_buffer("uint8_t[]", masked, require_writable=True)
        try:
            lib.rc_python_mask(target, source, length, ffi.from_buffer("uint8_t[]", key), phase & 3)
        finally:
            ffi.release(target)
        return bytes(masked)
    finally:
        ffi.release(source)


def encode_frame(opcode: int, payload: BytesLike, *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """One frame, header and payload, RSV 0 and the length in its shortest form (RFC 6455 5.2).

    Args:
      opcode: 0, 1, 2, 8, 9 or 10.
      payload: up to 2 GiB; at most 125 bytes in a control frame.
      fin: last frame of its message; always true for control frames.
      mask: key of four bytes, which a client must use; None for a server.

    Raises:
      LocalProtocolError: such a frame may not be sent.
    """
    if mask is not None and len(mask) != 4:
        raise LocalProtocolError("a mask key has four bytes", section="RFC 6455 5.3")
    if not 0 <= opcode <= 15:
        raise LocalProtocolError(f"opcode {opcode} has more than four bits", section="RFC 6455 5.2")
    source = ffi.from_buffer("uint8_t[]", payload)
    try:
        length = memoryview(payload).nbytes
        room = lib.RC_HEADER_MAX + length
        frame = bytearray(room)
        out = ffi.from_buffer("uint8_t[]", frame, require_writable=True)
        key = ffi.NULL if mask is None else ffi.from_buffer("uint8_t[]", mask)
        try:
            result = lib.rc_python_encode(out, room, opcode, fin, source, length, key)
        finally:
            ffi.release(out)
    finally:
        ffi.release(source)
    if result < 0:
        raise LocalProtocolError(
            f"frame with opcode {opcode}, {length} bytes, fin={fin} may not be sent", section="RFC 6455 5.2"
        )
    return bytes(memoryview(frame)[:result])


SLICE_BYTES: Final = 65_536
"""A longer receive is decoded in slices of this size, so that the work area has a bound."""


class _WorkArea(threading.local):
    """Room for the results of one crossing; one per thread, because C runs without the GIL.

    A frame takes two bytes at least, hence the number of pieces. The pages of an area are only touched when they are
    used: ordinary traffic stays within a few KiB of it.
    """

    def __init__(self) -> None:
        self.room = SLICE_BYTES + lib.RC_CONTROL_MAX
        self.out = ffi.new("uint8_t[]", self.room)
        self.bytes_out = ffi.buffer(self.out, self.room)
        self.piece_room = SLICE_BYTES // 2 + 1
        self.pieces = ffi.new("struct rc_piece[]", self.piece_room)
        self.consumed = ffi.new("size_t *")


_work = _WorkArea()


class Decoder:
    """Strict RFC 6455 decoder for one incoming leg, fed with bytes as they come.

    Not for two threads at once. What follows a Close frame is counted and dropped.

    Args:
      masked: the peer is a client (its frames must be masked) or a server (they must not be).

    Source: RFC 6455 5.1-5.5, 7.4, 8.1.
    """

    __slots__ = ("_decoder",)

    def __init__(self, *, masked: bool) -> None:
        self._decoder = ffi.new("struct rc_decoder *")
        lib.rc_decoder_init(self._decoder, masked)

    def receive(self, data: BytesLike) -> list[tuple[int, bool, bytes]]:
        """Decode what one receive brought; crosses into C once per 64 KiB.

        Returns: pieces in order, as ``(opcode, fin, payload)``. A data message comes in one or more pieces, as its
          bytes arrive: the first carries opcode 1 or 2, the others 0, and ``fin`` is true on the last one only. An
          empty data frame is an empty piece. Control frames (8, 9, 10) are always whole.

        Raises:
          FramingError: (a RemoteProtocolError) the peer broke a rule; ``close_code`` is 1002 or 1007.
          LocalProtocolError: called again after that.
        """
        work = _work
        if self._decoder.failure:
            raise LocalProtocolError("this decoder has failed before", section="RFC 6455 7.1.7")
        found: list[tuple[int, bool, bytes]] = []
        with memoryview(data) as view:
            total = view.nbytes
            if total <= SLICE_BYTES:
                self._decode(view, total, work, found)
            else:
                with view.cast("B") as octets:
                    for start in range(0, total, SLICE_BYTES):
                        with octets[start : start + SLICE_BYTES] as part:
                            self._decode(part, part.nbytes, work, found)
        return found

    def _decode(self, data: memoryview, length: int, work: _WorkArea, found: list[tuple[int, bool, bytes]]) -> None:
        source = ffi.from_buffer("uint8_t[]", data)
        try:
            count = lib.rc_decode(
                self._decoder, source, length, work.out, work.room, work.pieces, work.piece_room, work.consumed
            )
        finally:
            ffi.release(source)
        failure = self._decoder.failure
        if count < 0 and not failure:
            raise NativeError(f"rc_decode returned {count}")
        if work.consumed[0] != length:
            raise NativeError(f"rc_decode left {length - work.consumed[0]} bytes")
        pieces, bytes_out = work.pieces, work.bytes_out
        for index in range(count):
            piece = pieces[index]
            offset = piece.offset
            found.append((piece.opcode, piece.fin, bytes_out[offset : offset + piece.length]))
        if failure:
            raise FramingError(failure, found)

    @property
    def frames_received(self) -> int:
        """Headers read so far, of data and control frames."""
        return self._decoder.frames

    @property
    def bytes_discarded(self) -> int:
        """Bytes that came behind a Close frame."""
        return self._decoder.discarded_bytes
