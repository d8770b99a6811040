"""Events for subscribers: bounded, in order, to the end."""

from __future__ import annotations

import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from relaycore.client.status import EVENTS_KEPT, EventStream, Offline, Online, Reconnecting

LOST = OSError("lost")


async def test_events_come_in_order_and_end():
    stream = EventStream()
    stream._put(Online(0))
    stream._put(Reconnecting(LOST, 1.5))
    stream._put(Offline(None))
    stream._end()
    assert [event async for event in stream] == [Online(0), Reconnecting(LOST, 1.5), Offline(None)]
    assert [event async for event in stream] == []


async def test_a_slow_subscriber_loses_the_oldest():
    """Every queue has a bound: at this one the oldest event goes, and is counted."""
    stream = EventStream()
    for number in range(EVENTS_KEPT + 3):
        stream._put(Online(number))
    assert stream.dropped == 3
    with assert_checkpoints():
        assert await anext(stream) == Online(3)


async def test_waiting_for_an_event():
    stream = EventStream()
    found = []

    async def wait() -> None:
        found.extend([event async for event in stream])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        stream._put(Online(1))
        await wait_all_tasks_blocked()
        assert found == []
        stream._end()
    assert found == [Online(1)]
