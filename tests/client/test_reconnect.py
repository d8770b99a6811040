"""Delays between attempts and before renewals."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from relaycore.client.reconnect import STABLE_ONLINE_S, Backoff, renewal_delay
from relaycore.wire.limits import MIN_TOKEN_RENEWAL, RECONNECT_DELAYS


class Highest(random.Random):
    """Draws the upper end, so that bounds show."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bounds_of_the_delays():
    """spec 14: 0, 1, 2, 5, 10, 30 seconds, the last one for ever."""
    backoff = Backoff(Highest())
    assert [backoff.next_delay() for _ in range(8)] == [*RECONNECT_DELAYS, 30.0, 30.0]
    assert backoff.attempts == 8


def test_the_delays_are_jittered():
    """failures: thundering herd after a restart. Two listeners do not wait alike."""
    many = [Backoff(random.Random(seed)) for seed in range(50)]
    for backoff in many:
        for _ in range(5):
            backoff.next_delay()
    delays = [backoff.next_delay() for backoff in many]
    assert len(set(delays)) == 50
    assert min(delays) < 10
    assert max(delays) > 20
    assert all(0 <= delay <= 30 for delay in delays)


def test_only_a_stable_channel_starts_anew():
    """failures: a relay that takes listeners and drops them at once is met with growing delays."""
    backoff = Backoff(Highest())
    for _ in range(3):
        backoff.next_delay()
    backoff.note_online(STABLE_ONLINE_S - 1)
    assert backoff.next_delay() == 5
    backoff.note_online(STABLE_ONLINE_S)
    assert backoff.attempts == 0
    assert backoff.next_delay() == 0


@settings(deadline=None)  # a busy machine is no bug of ours
@given(remaining=st.floats(-1000, 10_000_000), seed=st.integers(0, 100))
def test_renewal_comes_before_the_expiry(remaining: float, seed: int):
    """spec 5.6: the relay allows for renewals at the expiry; ours come earlier, and never within 4 minutes."""
    delay = renewal_delay(remaining, random.Random(seed))
    assert delay >= MIN_TOKEN_RENEWAL
    if remaining > MIN_TOKEN_RENEWAL / 0.7:
        assert 0.7 * remaining <= delay <= 0.9 * remaining
