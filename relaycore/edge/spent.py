"""Time that was spent on something: how often, and how long together."""

from __future__ import annotations

import msgspec

__all__ = ["Spent"]


class Spent(msgspec.Struct, frozen=True):
    """A sum of durations; the average is for whoever asks, over whatever time he likes."""

    count: int = 0
    seconds: float = 0.0

    def plus(self, seconds: float) -> Spent:
        """With one more."""
        return Spent(self.count + 1, self.seconds + seconds)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.count + other.count, self.seconds + other.seconds)
