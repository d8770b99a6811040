"""``python -m bench profile``: which functions of the relay a workload's CPU time goes to."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .processes import ROOT
from .report import table
from .suite import Pace, run_once
from .topologies import Stage, open_relay
from .workload import Workload

Stack = tuple[tuple[str, ...], int]
"""Names of functions, innermost first, and how often they were met so."""

LINES = 30


def _name(file: str, function: str) -> str:
    """``gateway/relay_http.py:serve`` for ours, ``trio/_core/_run.py:...`` for what is installed."""
    path = Path(file)
    if "site-packages" in path.parts:
        return f"{file.rpartition('/site-packages/')[2]}:{function}"
    for base in (ROOT / "relaycore", ROOT):
        if path.is_relative_to(base):
            return f"{path.relative_to(base)}:{function}"
    return f"{path.name}:{function}"


def read_stacks(written: list[Any]) -> list[Stack]:
    """What a sampler wrote, with readable names."""
    return [(tuple(_name(*frame) for frame in frames), count) for frames, count in written]


def own_shares(stacks: Sequence[Stack]) -> dict[str, float]:
    """Share of the samples in which a function was the innermost, dearest first."""
    counts: collections.Counter[str] = collections.Counter()
    for names, count in stacks:
        counts[names[0]] += count
    return {name: count / counts.total() for name, count in counts.most_common()}


def whole_shares(stacks: Sequence[Stack]) -> dict[str, float]:
    """Share of the samples in which a function was anywhere on the stack, dearest first."""
    counts: collections.Counter[str] = collections.Counter()
    for names, count in stacks:
        counts.update(dict.fromkeys(names, count))
    total = sum(count for _, count in stacks)
    return {name: count / total for name, count in counts.most_common()}


def profile_text(stacks: Sequence[Stack]) -> str:
    """Two tables: what a function did itself, and what was done in it and below."""

    def lines(head: str, shares: dict[str, float]) -> str:
        chosen = list(shares.items())[:LINES]
        return table([["function", head], *([name, f"{share:.1%}"] for name, share in chosen)])

    return lines("itself", own_shares(stacks)) + "\n\n" + lines("with all it calls", whole_shares(stacks))


def profile(workload: Workload, pace: Pace, say: Callable[[str], None]) -> str:
    """Run one workload on the relay with a sampler in it. Returns the report.

    Raises:
      BenchError: as :func:`run_once`.
    """
    with Stage("profile") as stage:
        file = stage.directory / "stacks.json"
        with Stage("profiled") as inner:
            route = open_relay(inner, profile=file)
            figures, _ = run_once(route, workload, pace)
        stacks = read_stacks(json.loads(file.read_text()))
    samples = sum(count for _, count in stacks)
    say(f"{workload.name}: {samples} samples")
    return f"### {workload.name}: {figures[workload.headline]:,.0f} {workload.headline}\n\n{profile_text(stacks)}"
