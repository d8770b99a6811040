"""One subscriber's view of what happens: a bounded queue that never holds up whoever tells."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, Self, TypeVar

import trio

__all__ = ["Subscription"]

E = TypeVar("E")


class Subscription(AsyncIterator[E], Generic[E]):
    """Events for one reader, for ``async for``.

    Args:
      most: events that may wait; beyond that the oldest goes.

    Attributes:
      dropped: events this subscriber was too slow for.
    """

    def __init__(self, most: int) -> None:
        self.dropped = 0
        self._events: deque[E] = deque(maxlen=most)
        self._lot = trio.lowlevel.ParkingLot()
        self._is_ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        """Wait for the next event. A checkpoint."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._events:
            if self._is_ended:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise StopAsyncIteration
            await self._lot.park()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self._events.popleft()

    def _put(self, event: E) -> None:
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._lot.unpark()

    def _end(self) -> None:
        self._is_ended = True
        self._lot.unpark_all()
