"""``python -m bench profile``: which functions of the relay a workload's CPU time goes to."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import ROOT
from .report import table
from .suite import Pace, run_once
from .topologies import Stage, open_relay
from .workload import Workload

LINES = 30

OURS = ROOT / "relaycore"


@dataclass(frozen=True)
class Frame:
    """A function on a stack, and the line that it had come to."""

    name: str
    line: int
    is_ours: bool

    @classmethod
    def of(cls, file: str, function: str, line: int) -> Frame:
        path = Path(file)
        is_ours = path.is_relative_to(OURS)
        if is_ours:
            shown = str(path.relative_to(OURS))
        elif "site-packages" in path.parts:
            shown = file.rpartition("/site-packages/")[2]
        else:
            shown = path.name
        return cls(f"{shown}:{function}", line, is_ours)


Stack = tuple[tuple[Frame, ...], int]
"""Frames, innermost first, and how often they were met so."""


def read_stacks(written: Iterable[Any]) -> list[Stack]:
    """What a sampler wrote."""
    return [(tuple(Frame.of(*frame) for frame in frames), count) for frames, count in written]


def shares(stacks: Sequence[Stack], names: Callable[[tuple[Frame, ...]], Iterable[str]]) -> dict[str, float]:
    """Share of the samples whose frames have a name, dearest first. A name counts once per sample."""
    counts: collections.Counter[str] = collections.Counter()
    for frames, count in stacks:
        counts.update(dict.fromkeys(names(frames), count))
    total = sum(count for _, count in stacks)
    return {name: count / total for name, count in counts.most_common()}


def itself(frames: tuple[Frame, ...]) -> list[str]:
    """The function that was running."""
    return [frames[0].name]


def with_callees(frames: tuple[Frame, ...]) -> list[str]:
    """Every function on the stack."""
    return [frame.name for frame in frames]


def own_line(frames: tuple[Frame, ...]) -> list[str]:
    """The line of ours on whose behalf something ran: it, or what it called in Trio, the standard library or C."""
    return next(([f"{frame.name}:{frame.line}"] for frame in frames if frame.is_ours), ["(none of ours)"])


def profile_text(stacks: Sequence[Stack]) -> str:
    """Three tables, the dearest of each."""

    def lines(head: str, names: Callable[[tuple[Frame, ...]], Iterable[str]]) -> str:
        chosen = list(shares(stacks, names).items())[:LINES]
        return table([["", head], *([name, f"{share:.1%}"] for name, share in chosen)])

    return "\n\n".join(
        (lines("itself", itself), lines("with all it calls", with_callees), lines("for this line of ours", own_line))
    )


def profile(workload: Workload, pace: Pace, say: Callable[[str], None]) -> str:
    """Run one workload on the relay with a sampler in it. Returns the report.

    Raises:
      BenchError: as :func:`run_once`.
    """
    with Stage("profile") as stage:
        file = stage.directory / "stacks.json"
        with Stage("profiled") as inner:
            figures, _ = run_once(open_relay(inner, profile=file), workload, pace)
        stacks = read_stacks(json.loads(file.read_text()))
    say(f"{workload.name}: {sum(count for _, count in stacks)} samples")
    return f"### {workload.name}: {figures[workload.headline]:,.0f} {workload.headline}\n\n{profile_text(stacks)}"
