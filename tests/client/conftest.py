"""A limit for every test: a lost wake-up must fail it, not hang the suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

REAL_LIMIT_S = 60.0
VIRTUAL_LIMIT_S = 30 * 86_400.0
"""With a clock that jumps, a test that waits for nothing reaches this at once."""


@pytest.fixture(autouse=True)
async def time_limit(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    is_virtual = "autojump_clock" in request.fixturenames
    with trio.fail_after(VIRTUAL_LIMIT_S if is_virtual else REAL_LIMIT_S):
        yield
