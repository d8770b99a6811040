"""Puts the helpers of these tests on the path, and gives each test its time."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))  # for managed.py


@pytest.fixture(autouse=True)
async def time_limit() -> AsyncIterator[None]:
    """A lost wake-up must fail the test, not hang the suite."""
    with trio.fail_after(60):
        yield
