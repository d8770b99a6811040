"""Waits between a manager's attempts to register."""

from __future__ import annotations

import random

from relaycore.edge.hcm.retry import REFUSED_S, RetrySchedule

LOST = OSError("lost")
NO = PermissionError("no")


class Highest(random.Random):
    """Draws the upper end, so that bounds show."""

    def uniform(self, a: float, b: float) -> float:
        return b


def schedule(rng: random.Random | None = None) -> RetrySchedule:
    return RetrySchedule(lambda cause: cause is NO, rng or Highest())


def test_losses_are_met_at_growing_distances():
    """8.3 Reconnecting: 0.2 s, then exponential to 30 s."""
    waits = schedule()
    found = [waits.next_delay(LOST) for _ in range(11)]
    assert found == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
    assert waits.attempts == 11


def test_each_wait_is_drawn_from_all_of_it():
    """8.3: full jitter. After a restart of the relay no two managers wait alike."""
    many = [schedule(random.Random(seed)) for seed in range(50)]
    for waits in many:
        for _ in range(9):
            waits.next_delay(LOST)
    found = [waits.next_delay(LOST) for waits in many]
    assert len(set(found)) == 50
    assert min(found) < 5
    assert max(found) > 25
    assert all(0 <= wait <= 30 for wait in found)


def test_only_a_minute_up_starts_anew():
    """8.3: resets after 60 s up. A relay that takes channels and drops them again is met with growing waits."""
    waits = schedule()
    for _ in range(3):
        waits.next_delay(LOST)
    waits.note_online(59.9)
    assert waits.next_delay(LOST) == 1.6
    waits.note_online(60.0)
    assert waits.attempts == 0
    assert waits.next_delay(LOST) == 0.2


def test_a_no_is_asked_about_each_minute():
    """8.3 Unauthorized, NotFound: every 60 s, for ever; and a loss after that is a first one."""
    waits = schedule()
    for _ in range(5):
        waits.next_delay(LOST)
    assert [waits.next_delay(NO) for _ in range(100)] == [REFUSED_S] * 100
    assert REFUSED_S == 60
    assert waits.next_delay(LOST) == 0.2
    assert waits.attempts == 106


def test_managers_that_were_refused_together_do_not_come_again_together():
    """8.3: a relay that lost its hybrid connections refuses all of them at one stroke."""
    found = [schedule(random.Random(seed)).next_delay(NO) for seed in range(50)]
    assert len(set(found)) == 50
    assert 54 <= min(found) < 55
    assert 59 < max(found) <= 60
