"""Puts the helpers of these tests on the path; a relay, and a port that refuses."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for examined.py

from examined import Place, open_place


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with open_place() as found:
        yield found


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses, and stays so."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]
