"""Receive buffers from one mapping made at start, with head-room in front so that frames can be translated in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import LocalProtocolError, NativeError
from ._rc import ffi, lib

if TYPE_CHECKING:
    from ._rc import CData

HEADROOM_BYTES: Final = lib.RC_HEADROOM
"""Free bytes in front of received data: an outgoing header can be longer than what this receive brought of its own."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot. ``exhausted`` counts refused takes; ``peak`` is the most buffers out at one time."""

    buffers: int
    buffer_bytes: int
    in_use: int
    peak: int
    exhausted: int


class Buffer:
    """A lease on one slab, from :meth:`Pool.take` to :meth:`Pool.give`.

    Attributes:
      window: the writable part that a receive fills, ``buffer_bytes`` long. Whoever keeps it after ``give`` looks at
        somebody else's bytes.
    """

    __slots__ = ("_rest_at", "_rest_bytes", "_slab", "_slab_bytes", "_view", "lease", "window")

    def __init__(self, lease: int, slab: CData, view: memoryview, window: memoryview) -> None:
        self.lease = lease
        self.window = window
        self._slab: CData | None = slab
        self._slab_bytes = len(view)
        self._view = view
        # Input of Session.translate() that did not fit; see Session.resume().
        self._rest_at = 0
        self._rest_bytes = 0

    def __repr__(self) -> str:
        state = "given back" if self._slab is None else f"{len(self.window)} bytes"
        return f"<Buffer {self.lease & 0xFFFFFFFF} {state}>"


class Pool:
    """A fixed number of buffers. At the bound :meth:`take` answers None, and the caller stops reading.

    Pages cost memory only once a buffer has been used; the one given back last is taken next. For one thread.

    Args:
      buffers: how many, 1 to 2^20.
      buffer_bytes: size of a window, 1 to 2^24; the slab has :data:`HEADROOM_BYTES` more.

    Raises:
      LocalProtocolError: sizes out of range.
      MemoryError: the mapping was refused.
    """

    __slots__ = ("_lease", "_pool", "_slab", "_slabs")

    def __init__(self, *, buffers: int, buffer_bytes: int = 65_536) -> None:
        if not (0 < buffers <= lib.RC_POOL_BUFFERS_MAX and 0 < buffer_bytes <= lib.RC_POOL_BUFFER_BYTES_MAX):
            raise LocalProtocolError(f"no pool of {buffers} buffers of {buffer_bytes} bytes", section="rc_pool.h")
        pool = ffi.new("struct rc_pool *")
        if lib.rc_pool_open(pool, buffers, buffer_bytes) != lib.RC_OK:
            raise MemoryError(f"{buffers} buffers of {buffer_bytes} bytes")
        self._pool = pool
        self._lease = ffi.new("uint64_t *")
        self._slab = ffi.new("uint8_t **")
        # Every view is a slice of this one, so that the mapping lives until the last memoryview of it is gone.
        owner = ffi.gc(lib.rc_pool_slab(pool, 0), lambda _first: lib.rc_pool_close(pool))
        mapping = memoryview(ffi.buffer(owner, pool.slab_bytes * buffers))
        self._slabs: list[tuple[CData, memoryview, memoryview]] = []
        for number in range(buffers):
            start = number * pool.slab_bytes
            view = mapping[start : start + HEADROOM_BYTES + buffer_bytes]
            self._slabs.append((lib.rc_pool_slab(pool, number), view, view[HEADROOM_BYTES:]))

    def take(self) -> Buffer | None:
        """Borrow a buffer; None when all are out, which is counted. Never blocks."""
        if lib.rc_pool_take(self._pool, self._lease, self._slab) != lib.RC_OK:
            return None
        lease = self._lease[0]
        slab, view, window = self._slabs[lease & 0xFFFFFFFF]
        return Buffer(lease, slab, view, window)

    def give(self, buffer: Buffer) -> None:
        """Give a buffer back. Outputs of a session that lie in it are no longer valid.

        Raises:
          LocalProtocolError: it was given back before, or is of another pool.
        """
        if buffer._slab is None or self._slabs[buffer.lease & 0xFFFFFFFF][1] is not buffer._view:
            raise LocalProtocolError("this buffer is not out of this pool", section="rc_pool.h")
        if lib.rc_pool_give(self._pool, buffer.lease) != lib.RC_OK:
            raise NativeError("a live buffer has a stale lease")
        buffer._slab = None

    def statistics(self) -> PoolStatistics:
        pool = self._pool
        return PoolStatistics(
            buffers=pool.buffers,
            buffer_bytes=pool.buffer_bytes,
            in_use=pool.buffers - pool.free_count,
            peak=pool.peak,
            exhausted=pool.exhausted,
        )
