"""When to try again, and when to renew a token: numbers only, the waiting is done elsewhere.

A listener never gives up. A relay that was restarted or a hybrid connection that is being deleted and made anew answers
404 for a while, and a listener that stops at that has to be restarted by hand; the vendor's .NET library does stop.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

from ..wire.limits import MIN_TOKEN_RENEWAL, RECONNECT_DELAYS

__all__ = ["STABLE_ONLINE_S", "Backoff", "ReconnectPolicy", "renewal_delay"]

STABLE_ONLINE_S: Final = 60.0
"""How long a channel has to stand before its loss counts as a first one. A relay that takes listeners and drops them
again at once is met with growing delays."""

_RENEW_AFTER: Final = (0.7, 0.9)
"""Part of a token's remaining life after which it is renewed, drawn at random. The vendor's libraries renew at the very
expiry and so depend on the relay's allowance (5.6); and listeners started together need not renew together."""


class ReconnectPolicy(Protocol):
    """When one listener tries again, after a loss or an attempt that failed. An object serves one listener only."""

    @property
    def attempts(self) -> int:
        """Failed attempts, or losses, since the channel was last stable."""

    def next_delay(self, cause: Exception) -> float:
        """Count a failure; return how many seconds to wait before the next attempt.

        Args:
          cause: why the attempt failed or the channel ended. A `Refused` is the relay's own word.
        """

    def note_online(self, online_s: float) -> None:
        """Told before `next_delay` how long a channel stood that was lost."""


class Backoff:
    """The wire contract's delays: 0, 1, 2, 5, 10, 30, 30, ... seconds, each drawn between 0 and that (full jitter).

    Whatever the cause is: a `ReconnectPolicy` may judge otherwise.

    Args:
      rng: where the jitter comes from.

    Source: wire contract 13, 14. The jitter is ours: after a restart all listeners of a relay come back together.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.attempts = 0
        """Failed attempts, or losses, since the channel was last stable."""

    def next_delay(self, cause: Exception | None = None) -> float:
        """As of `ReconnectPolicy`; the cause makes no difference."""
        bound = RECONNECT_DELAYS[min(self.attempts, len(RECONNECT_DELAYS) - 1)]
        self.attempts += 1
        return self._rng.uniform(0.0, bound)

    def note_online(self, online_s: float) -> None:
        """Tell how long a channel stood before it was lost; a stable one starts the delays anew."""
        if online_s >= STABLE_ONLINE_S:
            self.attempts = 0


def renewal_delay(remaining_s: float, rng: random.Random) -> float:
    """Return how many seconds to wait before renewing a token that has ``remaining_s`` left.

    Never less than four minutes, which keeps a source of short tokens from being asked all the time; the relay's
    allowance of five minutes covers those (5.6).
    """
    return max(MIN_TOKEN_RENEWAL, remaining_s * rng.uniform(*_RENEW_AFTER))
