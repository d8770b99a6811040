"""``python -m bench.gate``: fail a change that makes the relay slower than ``baseline.json`` says, beyond noise.

It compares ratios of runs seconds apart, the engine beside a direct connection, the Trio mover and a naive relay, and
counts that are exact; and it holds the engine to promises, whose limits no baseline moves. What stands near its limit
is measured again; nothing fails on few rounds. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import fairness, latency, throughput
from .arguments import count, output_file
from .counts import Counts, count_everything
from .figures import Figures, is_lower_better
from .loadgen import Route, build
from .machine import describe
from .network import separate
from .processes import BenchError
from .report import table
from .suite import Pace, isolated_run, opened, run_once
from .topologies import TOPOLOGIES
from .verdicts import (
    ENOUGH_ROUNDS,
    FEWEST_ROUNDS,
    LOOSEST_TOLERANCE,
    Bound,
    Line,
    Promise,
    Verdict,
    count_lines,
    judge_promise,
    judge_ratio,
    own_delay,
    promise_lines,
    ratio_lines,
    split_loose,
)
from .workload import Workload

BASELINE = Path(__file__).parent / "baseline.json"

PACE = Pace(rounds=FEWEST_ROUNDS, warm_s=0.05, measured_s=0.25, lead_s=0.05)

PROMISE_PACE = Pace(rounds=FEWEST_ROUNDS, warm_s=0.05, measured_s=0.5, lead_s=0.05)
"""A p99 of 1000 pings a second needs more than a quarter of one."""

STALLED_PACE = dataclasses.replace(PROMISE_PACE, lead_s=0.5)
"""Stuck streams need the lead to be full before anything is measured."""

BUDGET_S = 75.0
"""After this no further round begins, but for what stands beyond its limit."""

OVERTIME = 3.0
"""Times the budget after which not even that is measured again: what is slow takes long to measure, and must fail."""

CALM = 0.3
"""Cores that other work may take during a run. Beyond it only CPU time still says something of a process."""

STARVED = 0.05
"""Share of the time that the process under test may be ready and wait for its core, where promises are judged."""

OURS = "relay-engine"

REMARKS = ("date", "CPU", "kernel", "network", "compiler", "Python", "tree", "load average")
"""What the baseline says about where it was recorded. Nothing is decided by it."""

_WORKLOADS = {each.name: each for each in (*throughput.WORKLOADS, *latency.WORKLOADS, *fairness.WORKLOADS)}


@dataclass(frozen=True)
class Comparison:
    """A figure of one workload: :data:`OURS` over ``base``."""

    workload: Workload
    figure: str
    base: str

    @property
    def name(self) -> str:
        return f"{self.workload.name}, {self.figure}: engine / {self.base.removeprefix('relay-')}"

    @property
    def lower_is_better(self) -> bool:
        return is_lower_better(self.figure)

    @property
    def needs_calm(self) -> bool:
        return not self.figure.startswith("CPU")


_HEADLINES = ("bulk-64k", "bulk-128", "pairs-64", "ping-64")
_COSTS = {"bulk-64k": "CPU s/GiB", "bulk-128": "CPU µs/message", "pairs-64": "CPU µs/message"}
"""CPU time of the process under test: what other work on the machine changes least."""

COMPARISONS = (
    *(
        Comparison(_WORKLOADS[name], _WORKLOADS[name].headline, base)
        for name in _HEADLINES
        for base in ("direct", "relay-trio", "naive")
    ),
    *(
        Comparison(_WORKLOADS[name], figure, base)
        for name, figure in _COSTS.items()
        for base in ("relay-trio", "naive")
    ),
)

TWINS = {
    Comparison(_WORKLOADS[name], figure, base).name: Comparison(_WORKLOADS[name], cost, "relay-trio").name
    for name, cost in _COSTS.items()
    for figure, base in (
        (_WORKLOADS[name].headline, "relay-trio"),
        (_WORKLOADS[name].headline, "naive"),
        (cost, "naive"),
    )
}
"""By name of a ratio, that of CPU time over the Trio mover, which sees the same loss; see :func:`verdicts.split_loose`.

How many messages the engine finds at each turn depends on how the machine schedules the load, and so does what one
costs. The Trio mover gains from that, too; a relay of two connections, with a task for each, does not.
"""


@dataclass(frozen=True)
class Promised:
    """A figure of :data:`OURS` that is held to a fixed limit.

    Args:
      beside_direct: what counts is :func:`verdicts.own_delay`, by a direct run in the same round.
      needs_calm: rounds in which other work took the machine do not count.
    """

    workload: Workload
    figure: str
    promise: Promise
    beside_direct: bool = False
    needs_calm: bool = True

    @property
    def name(self) -> str:
        return f"{self.workload.name}, {self.figure}{', own' if self.beside_direct else ''}"


_SHARES, _STALLED = _WORKLOADS["bulk-64k-x8"], _WORKLOADS["bulk-64k-beside-stalled"]

PROMISES = (
    Promised(_SHARES, "least share", Promise(0.9, at_most=False, near=0.03)),
    Promised(_SHARES, "most share", Promise(1.1, at_most=True, near=0.03)),
    Promised(_WORKLOADS["ping-beside-bulk"], "p99 µs", Promise(300, at_most=True), beside_direct=True),
    Promised(_WORKLOADS["paced-100-beside-bulk"], "p99 µs", Promise(1_000, at_most=True), beside_direct=True),
    Promised(_STALLED, "KiB/stalled", Promise(256, at_most=True), needs_calm=False),
    Promised(_STALLED, "kept", Promise(0.95, at_most=False, near=0.02)),
    Promised(_STALLED, "kept by CPU", Promise(0.95, at_most=False, near=0.02)),
)

Ratios = dict[str, list[float]]
"""By name, one value for each round that counts: of ratios, and of promised figures."""


def say(text: str) -> None:
    """Progress goes to standard error; standard output is the table."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Found:
    """A ratio or figure of one round, and whether the machine was calm enough for it to count."""

    value: float
    calm: bool


def measure_round(routes: Mapping[str, Route], wanted: Collection[Comparison], *, backwards: bool) -> dict[str, Found]:
    """One round of what `wanted` compares: the runs of a workload one right after the other.

    Args:
      backwards: the other order, so that a machine that steadily slows down is no advantage to anybody.
    """
    found: dict[str, Found] = {}
    for workload in dict.fromkeys(each.workload for each in wanted):
        here = [each for each in wanted if each.workload == workload]
        figures, foreign = {}, dict.fromkeys(routes, 0.0)
        names = [name for name in routes if name == OURS or any(name == each.base for each in here)]
        for name in reversed(names) if backwards else names:
            try:
                figures[name], foreign[name] = run_once(routes[name], workload, PACE)
            except BenchError as error:
                say(f"{workload.name} on {name} failed: {error}")
        for each in here:
            ours, base = (figures.get(name, {}).get(each.figure) for name in (OURS, each.base))
            if ours and base:
                calm = not each.needs_calm or max(foreign[OURS], foreign[each.base]) <= CALM
                found[each.name] = Found(ours / base, calm)
    return found


def measure_promised(routes: Mapping[str, Route], wanted: Collection[Promised], *, backwards: bool) -> dict[str, Found]:
    """One round of the figures that are promised; the other order as in :func:`measure_round`."""
    found: dict[str, Found] = {}
    for workload in dict.fromkeys(each.workload for each in wanted):
        here = [each for each in wanted if each.workload == workload]
        names = [name for name in routes if name == OURS or (name == "direct" and any(p.beside_direct for p in here))]
        figures: dict[str, Figures] = {}
        foreign = 0.0
        for name in reversed(names) if backwards else names:
            measured = isolated_run(TOPOLOGIES[name]) if workload.isolates else run_once
            pace = STALLED_PACE if workload.isolates else PROMISE_PACE
            try:
                figures[name], other = measured(routes[name], workload, pace)
                foreign = max(foreign, other)
            except BenchError as error:
                say(f"{workload.name} on {name} failed: {error}")
        ours = figures.get(OURS, {})
        for each in here:
            value, direct = ours.get(each.figure), figures.get("direct", {}).get(each.figure)
            if value is None or (each.beside_direct and direct is None):
                continue
            calm = foreign <= CALM and ours.get("starved", 0.0) <= STARVED
            counted = own_delay(value, direct) if each.beside_direct and direct is not None else value
            found[each.name] = Found(counted, calm or not each.needs_calm)
    return found


def measure(
    bounds: Mapping[str, Bound],
    budget_s: float,
    *,
    compared: Sequence[Comparison] = COMPARISONS,
    promised: Sequence[Promised] = PROMISES,
    calm_only: bool = True,
) -> Ratios:
    """Rounds until everything is settled or the time is over: all of it first, then what stands near its limit. What
    is beyond it has more time, or a slow build would be let go for being slow.

    Args:
      calm_only: leave out rounds in which other work took the machine.

    Returns: values by name, without those that could not be measured; with an empty list for those that were measured,
    but never in a calm round.
    """
    deadline = time.monotonic() + budget_s
    ratios: Ratios = {}
    wanted, owed = compared, promised
    topologies = [TOPOLOGIES[name] for name in ("direct", OURS, "relay-trio", "naive")]
    with opened(topologies, say) as routes:
        for number in range(2 * ENOUGH_ROUNDS):
            started = time.monotonic()
            backwards = number % 2 == 1
            round_found = measure_round(routes, wanted, backwards=backwards)
            round_found.update(measure_promised(routes, owed, backwards=backwards))
            for name, found in round_found.items():
                ratios.setdefault(name, []).extend([found.value] if found.calm or not calm_only else [])
            if number + 1 < FEWEST_ROUNDS:
                continue
            wanted = [
                each for each in wanted if judge_ratio(ratios.get(each.name), bounds.get(each.name)) is Verdict.MORE
            ]
            owed = [each for each in owed if judge_promise(ratios.get(each.name), each.promise) is Verdict.MORE]
            now = time.monotonic()
            if 2 * now - started > deadline:
                in_overtime = now < deadline + (OVERTIME - 1) * budget_s
                wanted = [each for each in wanted if in_overtime and _is_beyond(ratios, each.name, bounds[each.name])]
                owed = [each for each in owed if in_overtime and _is_beyond(ratios, each.name, each.promise)]
            if not (wanted or owed):
                break
            say(f"round {number + 1}: {len(wanted)} ratios, {len(owed)} promises are not settled and measured again")
    return ratios


def _is_beyond(found: Ratios, name: str, limit: Bound | Promise) -> bool:
    values = found.get(name, [])
    return bool(values) and limit.headroom(statistics.median(values)) < 0


@dataclass(frozen=True)
class Baseline:
    """What was recorded: bounds of ratios, names of ratios that strayed too far to be gated, and counts."""

    bounds: dict[str, Bound]
    left_out: frozenset[str]
    counts: Counts


def read_baseline(path: Path) -> Baseline:
    """What :func:`record` wrote.

    Raises:
      BenchError: there is none, or it is no baseline.
    """
    try:
        document = json.loads(path.read_text())
        bounds = {name: Bound(float(each["median"]), float(each["limit"])) for name, each in document["ratios"].items()}
        if not all(0 < each < math.inf for bound in bounds.values() for each in (bound.median, bound.limit)):
            raise ValueError("a ratio or its limit is no number above 0")
        left_out = frozenset(document.get("left out", {}))
        if not left_out <= TWINS.keys() or not all(TWINS[name] in bounds for name in left_out):
            raise ValueError("a ratio is left out that nothing stands in for")
        counts = {name: int(value) for name, value in document["counts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{path.name} cannot be used ({type(error).__name__}: {error}); --record writes one"
        ) from error
    return Baseline(bounds, left_out, counts)


def record(path: Path, times: int) -> None:
    """Measure that many times and write a baseline."""
    medians: Ratios = {}
    remarks = {name: text for name, text in describe(()).items() if name in REMARKS}
    for number in range(times):
        say(f"recording {number + 1} of {times}")
        for name, ratios in measure({}, 0.0, promised=(), calm_only=False).items():
            medians.setdefault(name, []).append(statistics.median(ratios))
    lower = {each.name: each.lower_is_better for each in COMPARISONS}
    needed = {name: Bound.of(found, lower_is_better=lower[name]) for name, found in medians.items()}
    bounds, left_out = split_loose(needed, TWINS)
    document: dict[str, Any] = {
        "remark": f"Written by `python -m bench.gate --record {times}`: medians of {times} recordings, and how bad"
        " each may become. Ratios are engine over the other.",
        "machine": remarks,
        "ratios": {name: _entry(bound) for name, bound in bounds.items()},
        "left out": {name: _entry(bound) for name, bound in left_out.items()},
        "counts": count_everything(),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for name, bound in needed.items():
        if bound.is_loose:
            done = f"left out for {TWINS[name]}" if name in left_out else f"drawn in to {math.exp(LOOSEST_TOLERANCE):g}"
            say(f"loose: {name} asks for {math.exp(bound.tolerance):.1f} times as bad, {done}")
    say(f"{path.name} is written: read the difference before it is committed")


def _entry(bound: Bound) -> dict[str, float]:
    return {"median": float(f"{bound.median:.4g}"), "limit": float(f"{bound.limit:.4g}")}


ADVICE = """\
What to do about a ratio: `python -m bench.gate` once more on a quiet machine. `python -m bench profile --workloads W`
shows where the time goes; `git bisect run` takes this program. About a count: bench/counts.py says what is counted.
A promise has no baseline: what breaks it is mended, or the promise is taken back, in README.md too.
Where the loss is meant: `python -m bench.gate --record 10`, commit baseline.json, say in the commit what it buys."""


def text_of(lines: Sequence[Line]) -> str:
    """The table, what is wrong first, and what to do about it."""
    order = sorted(lines, key=lambda line: not line.verdict.is_failure)
    head = ["what", "now (lowest .. highest; rounds)", "baseline", "limit", "change", "verdict"]
    rows = [[line.name, line.now, line.baseline, line.limit, line.change, line.verdict.value] for line in order]
    text = table([head, *rows])
    found = {line.verdict for line in lines}
    if Verdict.MORE in found:
        text += "\nunsettled: too few calm rounds before the time was over to say anything; this does not fail."
    if Verdict.BETTER in found:
        text += "\nbetter: record a new baseline, or the gain can be lost again unseen."
    if any(verdict.is_failure for verdict in found):
        text += f"\n\n{ADVICE}"
    return text


def check(path: Path, budget_s: float) -> list[Line]:
    """Measure, and judge by the baseline.

    Raises:
      BenchError: no baseline, or nothing can be measured.
    """
    baseline = read_baseline(path)
    counts = count_everything()
    compared = [each for each in COMPARISONS if each.name not in baseline.left_out]
    found = measure(baseline.bounds, budget_s, compared=compared)
    promises = {each.name: each.promise for each in PROMISES}
    ratios = {name: values for name, values in found.items() if name not in promises}
    return [
        *promise_lines(found, promises),
        *count_lines(counts, baseline.counts),
        *ratio_lines(ratios, baseline.bounds),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when nothing is worse, 1 when something is, 2 when it cannot be measured, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("--record", type=count, metavar="N", help="measure N times and write the baseline")
    parser.add_argument("--repeat", type=count, default=1, metavar="N", help="run N times, stop at the first failure")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help=f"seconds (default {BUDGET_S:g})")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE", help="another baseline")
    parser.add_argument("--slowed", action="store_true", help="show that the gate fails on a slowed build of the tree")
    options = parser.parse_args(arguments)
    if options.record:
        try:
            output_file(str(options.baseline))
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    try:
        separate()
        build()
        if options.record:
            record(options.baseline, options.record)
            return 0
        if options.slowed:
            from .slowed import fails_when_slowed

            return 0 if fails_when_slowed(options.baseline, options.budget, say) else 1
        for number in range(options.repeat):
            started = time.monotonic()
            lines = check(options.baseline, options.budget)
            failed = [line for line in lines if line.verdict.is_failure]
            if number == 0 or failed:
                print(text_of(lines), flush=True)
            unsettled = sum(line.verdict is Verdict.MORE for line in lines)
            said = f"{len(failed)} of {len(lines)} fail" if failed else f"none of {len(lines)} fails"
            said += f", {unsettled} unsettled" if unsettled else ""
            say(f"gate {number + 1} of {options.repeat}: {said}, {time.monotonic() - started:.0f} s")
            if failed:
                return 1
    except BenchError as error:
        say(f"bench.gate: {error}")
        return 2
    except KeyboardInterrupt:
        say("bench.gate: interrupted, nothing is decided")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
