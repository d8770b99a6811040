"""Puts the helpers of these tests on the path."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for hcm_world.py, statuses.py


@pytest.fixture(autouse=True)
def heeds_ctrl_c():
    """A shell has what it starts in the background ignore SIGINT, and the programs of the tests would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def world_of(tmp_path):
    """``async with world_of("orders") as world``: with these hybrid connections."""
    from hcm_world import open_world

    return partial(open_world, tmp_path)
