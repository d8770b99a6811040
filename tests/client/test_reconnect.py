"""Delays between attempts and before renewals."""

from __future__ import annotations

import random

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import relaycore
from relaycore import EndpointNotFound, Reconnecting, StreamClosed
from relaycore.client.reconnect import STABLE_ONLINE_S, Backoff, renewal_delay
from relaycore.testing.fake_relay import open_fake_relay
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


class Hourly:
    """A policy that notes what it is told."""

    def __init__(self) -> None:
        self.attempts = 0
        self.told: list[object] = []

    def next_delay(self, cause: Exception) -> float:
        self.attempts += 1
        self.told.append(cause)
        return 3600.0

    def note_online(self, online_s: float) -> None:
        self.told.append(online_s)


async def test_a_program_says_itself_when_to_try_again(autojump_clock: MockClock):
    """The policy is told each cause, and how long a lost channel stood; its delays are kept to."""
    policy = Hourly()
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        asked_at: list[float] = []

        async def serve() -> None:
            await (await relay.next_request("listen")).refuse(404, "Endpoint does not exist: orders")
            asked_at.append(trio.current_time())
            channel = await (await relay.next_request("listen")).accept()
            asked_at.append(trio.current_time())
            await trio.sleep(100)
            await channel.close(1011, "restart")

        nursery.start_soon(serve)
        async with relaycore.open_listener(
            relay.connection_string(), wait_online=False, keep_alive_s=1000, reconnect=policy
        ) as listener:
            events = listener.events()
            delays = [event.delay_s async for event in _first(events, 2)]
            assert delays == [3600.0, 3600.0]
            assert round(asked_at[1] - asked_at[0]) == 3600
            assert listener.status.attempts == 2
        not_found, online_s, closed = policy.told
        assert isinstance(not_found, EndpointNotFound)
        assert isinstance(closed, StreamClosed)
        assert round(online_s) == 100


async def _first(events, count: int):
    async for event in events:
        if isinstance(event, Reconnecting):
            yield event
            count -= 1
            if not count:
                return


async def test_a_listener_in_a_hurry_does_not_wait(autojump_clock: MockClock):
    """It tries at once, once; a hurry while nothing is waited for shortens no later wait."""
    async with (
        open_fake_relay() as relay,
        relaycore.open_listener(relay.connection_string(), wait_online=False, reconnect=Hourly()) as listener,
    ):
        for _ in range(3):
            request = await relay.next_request("listen")
            listener.hurry()
            events = listener.events()
            await request.refuse(503, "busy")
            assert isinstance(await anext(events), Reconnecting)
            listener.hurry()
        assert trio.current_time() < 3600
        await (await relay.next_request("listen")).refuse(503, "busy")
        await relay.next_request("listen")
        assert trio.current_time() >= 3600
