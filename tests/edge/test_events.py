"""Telling what happens to whoever wants to know."""

from __future__ import annotations

import logging

import trio
from trio.testing import wait_all_tasks_blocked

from relaycore.edge.events import EVENTS_KEPT, Event, EventLog, log_detail, log_kind


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


def test_an_event_is_a_line_for_people_and_fields_for_programs(caplog):
    """manager 8.10: stable names, levels by kind, the tracking id where there is one."""
    with caplog.at_level(logging.DEBUG, "relaycore.edge"):
        log_kind("hcm", Event(1.0, "orders", "refused", "a sender was refused", "id-1"))
        log_kind("connect", Event(1.0, "", "stopped", "over"))
        log_detail("connect", "joined", "sql", "x" * 99, sender="a")
    first, second, third = caplog.records
    assert (first.name, first.levelname) == ("relaycore.edge.hcm", "WARNING")
    assert first.getMessage() == "orders: refused: a sender was refused tracking_id=id-1"
    assert first.event.name == "hcm.refused"
    assert first.event.fields == {"name": "orders", "text": "a sender was refused", "tracking_id": "id-1"}
    assert (second.name, second.levelname, second.getMessage()) == ("relaycore.edge.connect", "INFO", "stopped: over")
    assert second.event.fields == {"name": "", "text": "over"}
    assert third.event.fields == {"name": "sql", "tracking_id": "x" * 64, "sender": "a"}
