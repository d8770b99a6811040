"""Puts the helpers of these tests on the path, and says where namespaces are missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from relaycore.edge.run.namespaces import NoNamespaces, open_entrance

sys.path.insert(0, str(Path(__file__).parent))  # for unprivileged.py


@pytest.fixture(scope="session")
def namespaces():
    """Skips where the system does not let this user have namespaces, and says what it answered."""

    async def attempt():
        async with open_entrance(["true"], os.environ) as entrance:
            await entrance.enter(with_network=True, over={})

    try:
        trio.run(attempt)
    except NoNamespaces as error:
        pytest.skip(f"no namespaces here: {error.strerror}")
