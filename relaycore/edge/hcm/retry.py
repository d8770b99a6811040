"""When a connection manager tries to register again: what the relay said decides.

A channel that was lost is opened again soon, and ever later while that fails: it is the network, or the relay starts
anew. A relay that *said* no goes on saying so until somebody puts a key, a right or the hybrid connection right; it is
asked once a minute, for ever.

Source: connection manager 8.3.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

__all__ = ["REFUSED_S", "RetrySchedule"]

_FIRST_S: Final = 0.2
"""Upper bound of the first wait after a loss; each further one is twice as long."""

_LONGEST_S: Final = 30.0
"""And never longer than this."""

REFUSED_S: Final = 60.0
"""The longest wait after the relay's no."""

_REFUSED_SPREAD: Final = 0.1
"""Part of that wait that is drawn: a relay without its hybrid connections refuses all managers in the same moment, and
they should not all ask again in one."""

_STABLE_S: Final = 60.0
"""How long a channel has to stand before its loss is met as a first one."""


class RetrySchedule:
    """The waits of one control channel: a `ReconnectPolicy`.

    Waits after a loss are drawn between 0 and their bound (full jitter): after a restart of the relay all managers come
    back together.

    Args:
      is_no: whether a cause is the relay's own no, which only somebody's doing can change.
      rng: where the jitter comes from.

    Attributes:
      attempts: losses and attempts that failed since the channel was last stable, whatever the causes.
      delay_s: the last wait in seconds; 0 before the first.
    """

    def __init__(self, is_no: Callable[[Exception], bool], rng: random.Random) -> None:
        self.attempts = 0
        self.delay_s = 0.0
        self._is_no = is_no
        self._rng = rng
        self._bound_s = _FIRST_S

    def next_delay(self, cause: Exception) -> float:
        """Count a failure; return how many seconds to wait."""
        self.attempts += 1
        if self._is_no(cause):
            self._bound_s = _FIRST_S  # whoever says no can be reached
            self.delay_s = REFUSED_S * self._rng.uniform(1 - _REFUSED_SPREAD, 1)
        else:
            bound_s, self._bound_s = self._bound_s, min(2 * self._bound_s, _LONGEST_S)
            self.delay_s = self._rng.uniform(0.0, bound_s)
        return self.delay_s

    def note_online(self, online_s: float) -> None:
        """Tell how long a channel stood that was lost."""
        if online_s >= _STABLE_S:
            self.attempts = 0
            self._bound_s = _FIRST_S
