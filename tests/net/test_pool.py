"""The buffer pool of a server: what happens when it is empty."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaycore.net.pool import BufferPool


async def test_behind_the_last_buffer_comes_a_reserve_of_small_ones() -> None:
    """failures: slow reader grows memory without bound."""
    pool = BufferPool(buffers=2, buffer_bytes=65_536)
    held = [await pool.borrow() for _ in range(10)]
    assert [len(buffer.window) for buffer in held] == [65_536] * 2 + [4_096] * 8
    assert pool.statistics().in_use == 10
    with trio.move_on_after(0) as scope:
        await pool.borrow()
    assert scope.cancelled_caught
    for buffer in held:
        pool.give_back(buffer)
    assert pool.statistics().in_use == 0
    assert len((await pool.borrow()).window) == 65_536


@pytest.mark.parametrize("returned", [0, -1], ids=["large", "small"])
async def test_who_waits_gets_the_next_buffer_in_turn(nursery: trio.Nursery, returned: int) -> None:
    pool = BufferPool(buffers=1)
    held = [await pool.borrow() for _ in range(5)]
    got: list[str] = []

    async def wait(name: str) -> None:
        await pool.borrow()
        got.append(name)

    for name in ("first", "second"):
        nursery.start_soon(wait, name)
        await wait_all_tasks_blocked()
    pool.give_back(held[returned])
    await wait_all_tasks_blocked()
    assert got == ["first"]
    pool.give_back(held[1])
    await wait_all_tasks_blocked()
    assert got == ["first", "second"]


async def test_the_scratch_buffer_is_none_of_the_pool() -> None:
    pool = BufferPool(buffers=1)
    assert len(pool.scratch.window) >= 4_096
    assert pool.statistics().in_use == 0
