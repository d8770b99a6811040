"""Sessions on each of the stages that there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio
from stages import STAGES, Joined, Stage, legs
from trio.testing import MockClock


@pytest.fixture(params=STAGES)
def stage_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clock(stage_name: str) -> MockClock | None:
    """A clock that jumps, but for the engine, whose threads live by the real one."""
    return None if stage_name == "engine" else MockClock(autojump_threshold=0)


@pytest.fixture
async def stage(stage_name: str, nursery: trio.Nursery) -> AsyncIterator[Stage]:
    stage = Stage(stage_name, nursery)
    yield stage
    await stage.aclose()


@pytest.fixture
async def join(stage: Stage, nursery: trio.Nursery) -> AsyncIterator[Callable[..., object]]:
    """Join two fresh legs; the peers hold the other ends. At the end nothing may be left."""
    all_joined: list[Joined] = []

    async def start(
        *,
        small: bool = False,
        buffers: int = 8,
        buffer_bytes: int = 65_536,
        prepare: Callable[[Joined], None] = lambda _: None,
        **options,
    ) -> Joined:
        await stage.open(buffers=buffers, buffer_bytes=buffer_bytes)
        near_sender, sender = await stage.pair(small=small)
        near_listener, listener = await stage.pair(small=small)
        near = near_sender, near_listener
        joined = Joined(stage, legs(near, **options), near, sender, listener)
        all_joined.append(joined)
        prepare(joined)
        nursery.start_soon(joined.run)
        return joined

    yield start
    for joined in all_joined:
        await trio.aclose_forcefully(joined.sender.stream)
        await trio.aclose_forcefully(joined.listener.stream)
    with trio.fail_after(30 if stage.is_native else 300):  # as above
        for joined in all_joined:
            await joined.wait()
            joined.check_closed()
    stage.check()
