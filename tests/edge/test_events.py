"""Telling what happens to whoever wants to know."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from relaycore.edge.events import EVENTS_KEPT, Event, EventLog


async def test_subscribers_get_what_comes():
    log = EventLog(now_unix=lambda: 7.0)
    log.emit("a", "before", "nobody listens")
    stream = log.subscribe()
    log.emit("a", "up", "two\nlines   and blanks")
    assert await anext(stream) == Event(7.0, "a", "up", "two lines and blanks")
    assert [event.kind for event in log.recent] == ["before", "up"]


async def test_waiting_is_woken():
    log = EventLog()
    stream = log.subscribe()
    seen = []

    async def read() -> None:
        async for event in stream:
            seen.append(event.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        log.emit("a", "up", "")
        log.emit("a", "down", "")
        await wait_all_tasks_blocked()
        assert seen == ["up", "down"]
        log.close()
    assert [event async for event in log.subscribe()] == []


async def test_a_slow_subscriber_loses_the_oldest():
    log = EventLog()
    stream = log.subscribe()
    for number in range(EVENTS_KEPT + 3):
        log.emit("a", str(number), "")
    assert stream.dropped == 3
    assert (await anext(stream)).kind == "3"
    assert len(log.recent) == EVENTS_KEPT


async def test_who_has_closed_hears_nothing():
    log = EventLog()
    stream = log.subscribe()
    stream.close()
    log.emit("a", "up", "")
    assert [event async for event in stream] == []


async def test_what_waits_is_read_before_the_end():
    log = EventLog()
    stream = log.subscribe()
    log.emit("a", "up", "")
    log.close()
    assert [event.kind async for event in stream] == ["up"]
