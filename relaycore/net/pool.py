"""The native buffer pool as tasks see it: an empty pool is waited for, never an error."""

from __future__ import annotations

import dataclasses
from typing import Final

import trio

from .._native import Buffer, Pool, PoolStatistics

__all__ = ["BufferPool"]

_SMALL_BYTES: Final = 4_096
"""Size of a reserve buffer: a page, the least that a receive is worth."""

_SMALL_PER_BUFFER: Final = 4
"""Reserve buffers for each buffer: together a quarter of the pool's memory, and five times the directions served."""

_MAX_SMALL: Final = 1 << 20  # as the native pool has it


class BufferPool:
    """A fixed number of receive buffers, shared by all sessions of a server.

    A direction of a session borrows one buffer between a receive and the complete send, so an idle session owns
    none, and what slow readers can make the relay hold is at most the pool. Each reader that has stopped keeps one, so
    enough of them take them all. Then come the small ones of a *reserve*, which is made when it is first needed: the
    other sessions go on in small steps, and above all they still notice it when a peer goes. Who finds that empty too
    stops reading until a buffer comes back; waiters are served in the order of their coming.

    Args:
      buffers: how many there are; at least 1. The reserve has four times as many of 4 KiB.
      buffer_bytes: how much one receive can take.

    Attributes:
      scratch: a small buffer for frames of the relay's own. Whoever uses it copies the output before the next
        checkpoint, so one does for all: a Pong or a Close never waits for a buffer.
    """

    def __init__(self, *, buffers: int, buffer_bytes: int = 65_536) -> None:
        self._pool = Pool(buffers=buffers, buffer_bytes=buffer_bytes)
        self._buffers = buffers
        self._reserve: Pool | None = None
        self._from_reserve: set[Buffer] = set()
        self._waiting = trio.lowlevel.ParkingLot()
        scratch = Pool(buffers=1, buffer_bytes=_SMALL_BYTES).take()
        assert scratch is not None
        self.scratch = scratch

    async def borrow(self) -> Buffer:
        """Lease a buffer; give it back with :meth:`give_back`. A checkpoint only when there is none."""
        # Those who already wait go first, or a busy session that never sleeps would starve them.
        buffer = None if self._waiting else self._take()
        while buffer is None:
            await self._waiting.park()
            buffer = self._take()
        return buffer

    def _take(self) -> Buffer | None:
        buffer = self._pool.take()
        if buffer is not None:
            return buffer
        if self._reserve is None:
            small = min(self._buffers * _SMALL_PER_BUFFER, _MAX_SMALL)
            self._reserve = Pool(buffers=small, buffer_bytes=_SMALL_BYTES)
        buffer = self._reserve.take()
        if buffer is not None:
            self._from_reserve.add(buffer)
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End a lease and wake one waiter. Views into the buffer are dead from here on."""
        if buffer in self._from_reserve:
            assert self._reserve is not None
            self._from_reserve.remove(buffer)
            self._reserve.give(buffer)
        else:
            self._pool.give(buffer)
        self._waiting.unpark()

    def statistics(self) -> PoolStatistics:
        """Snapshot: buffers, their size, how many are out now and at most, how often none was left.

        Those of the reserve count as being out only.
        """
        counts = self._pool.statistics()
        return dataclasses.replace(counts, in_use=counts.in_use + len(self._from_reserve))
