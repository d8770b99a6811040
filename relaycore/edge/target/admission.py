"""How many connections an endpoint gets at once; who comes too many waits in a bounded queue, then hears why not."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ..config.settings import LimitSettings
from .failure import DialFailed

__all__ = ["Admission", "AdmissionStatistics"]


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """A snapshot.

    Attributes:
      open: inside now.
      queued: waiting now.
      admitted: let in since the start.
      refused_full, refused_waited, refused_sender: refused because the queue was full, because the wait became too
        long, because their address has enough.
    """

    open: int
    queued: int
    admitted: int
    refused_full: int
    refused_waited: int
    refused_sender: int


class Admission:
    """Lets connections in, first come, first served. For all connections of one entry.

    Attributes:
      limits: may be replaced at any time; those inside stay, those in the queue count by the new ones.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._places = trio.CapacityLimiter(limits.max_open or math.inf)
        self._by_sender: dict[str, int] = {}
        self._admitted = 0
        self._refused_full = 0
        self._refused_waited = 0
        self._refused_sender = 0

    @property
    def limits(self) -> LimitSettings:
        return self._limits

    @limits.setter
    def limits(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._places.total_tokens = limits.max_open or math.inf

    @asynccontextmanager
    async def enter(self, sender: str | None = None) -> AsyncIterator[None]:
        """Wait to be let in, and count as inside until the block ends. A checkpoint.

        Args:
          sender: its address; None if the relay does not say, which is then not limited by itself.

        Raises:
          DialFailed: 503, with the limit that was met.
        """
        limits = self._limits
        with self._counted(sender, limits.per_sender_open):
            place = object()
            await self._take_place(place, limits)
            self._admitted += 1
            try:
                yield
            finally:
                self._places.release_on_behalf_of(place)

    async def _take_place(self, place: object, limits: LimitSettings) -> None:
        try:
            self._places.acquire_on_behalf_of_nowait(place)
        except trio.WouldBlock:
            pass
        else:
            await self._checkpoint_holding(place)
            return
        if self._places.statistics().tasks_waiting >= limits.queue:
            self._refused_full += 1
            waiting = f", {limits.queue} more wait" if limits.queue else ""
            raise DialFailed(503, f"overloaded: {_are_open(limits.max_open)}{waiting}; try again later", "overloaded")
        with trio.move_on_after(limits.queue_timeout_s):
            await self._places.acquire_on_behalf_of(place)
            return
        self._refused_waited += 1
        raise DialFailed(
            503,
            f"overloaded: {_are_open(limits.max_open)}, and none ended within {limits.queue_timeout_s:g} s; "
            "try again later",
            "overloaded",
        )

    async def _checkpoint_holding(self, place: object) -> None:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self._places.release_on_behalf_of(place)
            raise

    def _counted(self, sender: str | None, limit: int) -> _Counted:
        if sender is not None and limit and self._by_sender.get(sender, 0) >= limit:
            self._refused_sender += 1
            text = f"overloaded: {sender} has {_connections(limit)} open, which is its limit"
            raise DialFailed(503, text, "overloaded")
        return _Counted(self._by_sender, sender)

    def statistics(self) -> AdmissionStatistics:
        """Return a snapshot."""
        found = self._places.statistics()
        return AdmissionStatistics(
            open=found.borrowed_tokens,
            queued=found.tasks_waiting,
            admitted=self._admitted,
            refused_full=self._refused_full,
            refused_waited=self._refused_waited,
            refused_sender=self._refused_sender,
        )


class _Counted:
    """One more of a sender, for as long as the block lasts: in the queue, too, lest one sender fills it."""

    def __init__(self, counts: dict[str, int], sender: str | None) -> None:
        self._counts = counts
        self._sender = sender

    def __enter__(self) -> None:
        if self._sender is not None:
            self._counts[self._sender] = self._counts.get(self._sender, 0) + 1

    def __exit__(self, *_: object) -> None:
        if self._sender is not None:
            self._counts[self._sender] -= 1
            if not self._counts[self._sender]:
                del self._counts[self._sender]


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _are_open(count: int) -> str:
    return f"{_connections(count)} {'is' if count == 1 else 'are'} open"
