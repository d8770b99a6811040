"""Puts the helpers of these tests on the path."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for hcm_world.py, statuses.py


@pytest.fixture
def world_of(tmp_path):
    """``async with world_of("orders") as world``: with these hybrid connections."""
    from hcm_world import open_world

    return partial(open_world, tmp_path)
