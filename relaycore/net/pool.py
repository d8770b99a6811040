"""The native buffer pool as tasks see it: an empty pool is waited for, never an error."""

from __future__ import annotations

import trio

from .._native import Buffer, Pool, PoolStatistics


class BufferPool:
    """A fixed number of receive buffers, shared by all sessions of a server.

    A direction of a session borrows one buffer between a receive and the complete send, so an idle session owns
    none, and what slow readers can make the relay hold is at most the pool. Who finds the pool empty stops reading
    until a buffer comes back; waiters are served in the order of their coming.

    Args:
      buffers: how many there are; at least 1.
      buffer_bytes: how much one receive can take.
    """

    def __init__(self, *, buffers: int, buffer_bytes: int = 65_536) -> None:
        self._pool = Pool(buffers=buffers, buffer_bytes=buffer_bytes)
        self._waiting = trio.lowlevel.ParkingLot()

    async def borrow(self) -> Buffer:
        """Lease a buffer; give it back with :meth:`give_back`. A checkpoint only when the pool is empty."""
        # Those who already wait go first, or a busy session that never sleeps would starve them.
        buffer = None if self._waiting else self._pool.take()
        while buffer is None:
            await self._waiting.park()
            buffer = self._pool.take()
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """End a lease and wake one waiter. Views into the buffer are dead from here on."""
        self._pool.give(buffer)
        self._waiting.unpark()

    def statistics(self) -> PoolStatistics:
        """Snapshot: buffers, their size, how many are out now and at most, how often none was left."""
        return self._pool.statistics()
