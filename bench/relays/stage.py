"""What the programs under test have in common: they tell where they listen, and end when nobody holds their input."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import trio


def parser(about: str) -> argparse.ArgumentParser:
    """Options that every program here has."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--announce", type=Path, required=True, help="file that gets the announcement; must not exist")
    return made


def announce(path: Path, facts: dict[str, object]) -> None:
    """Write the announcement whole or not at all, readable by this user only."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        json.dump(facts, file)
    fresh.rename(path)


async def wait_input_closed() -> None:
    """Return when standard input ends."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some():
            pass
