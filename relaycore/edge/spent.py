"""Time that was spent on something: how often, how long together, and how often how long."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from typing import Final

import msgspec

__all__ = ["BOUNDS_S", "Spent"]

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets in seconds, themselves included. From a dial within a data centre to the 30 s that a
sender has; two or three to each power of ten keep a percentile read off them within a factor of two or so."""


class Spent(msgspec.Struct, frozen=True):
    """Durations of the past, for whoever asks for their average or percentiles, over whatever time he likes.

    Attributes:
      buckets: how many were at most each of `BOUNDS_S` and above the bound before; the last is for longer ones.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)

    def plus(self, seconds: float) -> Spent:
        """With one more."""
        at = bisect_left(BOUNDS_S, seconds)
        buckets = (*self.buckets[:at], self.buckets[at] + 1, *self.buckets[at + 1 :])
        return Spent(self.count + 1, self.seconds + seconds, buckets)

    def __add__(self, other: Spent) -> Spent:
        buckets = tuple(mine + its for mine, its in zip(self.buckets, other.buckets, strict=True))
        return Spent(self.count + other.count, self.seconds + other.seconds, buckets)

    def cumulative(self) -> list[int]:
        """How many were at most each of `BOUNDS_S`; the last is all of them."""
        return list(itertools.accumulate(self.buckets))
