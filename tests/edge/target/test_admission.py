"""How many at once: places, the queue, senders, and limits that change."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaycore.edge.config.settings import LimitSettings
from relaycore.edge.target.admission import Admission
from relaycore.edge.target.failure import DialFailed


async def refused(admission: Admission, sender: str | None = None) -> str:
    with pytest.raises(DialFailed) as caught:
        async with admission.enter(sender):
            pytest.fail("was let in")
    assert caught.value.status == 503
    return caught.value.text


async def test_without_limits_all_are_let_in():
    admission = Admission(LimitSettings())
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(admission.enter("192.0.2.7"))
        assert admission.statistics().open == 100
    assert (admission.statistics().open, admission.statistics().admitted) == (0, 100)


async def test_without_a_queue_one_too_many_is_refused_at_once():
    admission = Admission(LimitSettings(max_open=1))
    async with admission.enter():
        assert await refused(admission) == "overloaded: 1 connection is open; try again later"
    async with admission.enter():
        assert admission.statistics().refused_full == 1


async def test_the_queue_is_served_in_order(autojump_clock: MockClock):
    admission = Admission(LimitSettings(max_open=1, queue=2, queue_timeout_s=100))
    order = []

    async def visit(name: str) -> None:
        async with admission.enter():
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(visit, name)
            await wait_all_tasks_blocked()
        assert admission.statistics().queued == 2
        assert await refused(admission) == "overloaded: 1 connection is open, 2 more wait; try again later"
    assert order == ["a", "b", "c"]
    assert trio.current_time() == pytest.approx(3)


async def test_the_wait_is_bounded(autojump_clock: MockClock):
    admission = Admission(LimitSettings(max_open=1, queue=1, queue_timeout_s=5))
    async with admission.enter():
        assert "none ended within 5 s" in await refused(admission)
        assert trio.current_time() == pytest.approx(5)
    found = admission.statistics()
    assert (found.open, found.queued, found.refused_waited) == (0, 0, 1)


async def test_who_leaves_the_queue_leaves_no_trace(autojump_clock: MockClock):
    admission = Admission(LimitSettings(max_open=1, queue=1, queue_timeout_s=5, per_sender_open=2))
    async with admission.enter("a"):
        with trio.move_on_after(1):
            async with admission.enter("a"):
                pytest.fail("was let in")
        found = admission.statistics()
        assert (found.open, found.queued, found.refused_waited) == (1, 0, 0)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with admission.enter("a"):
            pytest.fail("was let in")
    async with admission.enter("a"):
        pass
    assert admission.statistics().open == 0


async def test_one_sender_cannot_take_all_places():
    admission = Admission(LimitSettings(per_sender_open=2))
    async with admission.enter("192.0.2.7"), admission.enter("192.0.2.7"), admission.enter(None):
        assert "192.0.2.7 has 2 connections open" in await refused(admission, "192.0.2.7")
        async with admission.enter("192.0.2.8"), admission.enter(None):
            pass
    async with admission.enter("192.0.2.7"):
        assert admission.statistics().refused_sender == 1


async def test_new_limits_count_at_once(autojump_clock: MockClock):
    admission = Admission(LimitSettings(max_open=1, queue=1))
    let_in = trio.Event()

    async def visit() -> None:
        async with admission.enter():
            let_in.set()

    async with trio.open_nursery() as nursery, admission.enter():
        nursery.start_soon(visit)
        await wait_all_tasks_blocked()
        assert not let_in.is_set()
        admission.limits = LimitSettings(max_open=2)
        await let_in.wait()
        assert trio.current_time() == 0
        assert admission.limits.max_open == 2
