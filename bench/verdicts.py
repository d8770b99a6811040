"""What the gate decides, from ratios, counts and a baseline, and from promises, which need none. Pure.

A ratio is of two runs of the same round, seconds apart: machines switch between fast and slow phases, and take both
runs along. Single ratios still stray, so the median of several decides, and whoever stands near the limit is measured
more often before anything is said. Nothing fails on few rounds.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST_ROUNDS = 3
"""A median of fewer says nothing."""

ENOUGH_ROUNDS = 7
"""What stood near or beyond its limit for so many rounds is decided by how many of them are beyond."""

STRAY_ROUNDS = 1
"""So many of these may be within the limit, and a ratio fails all the same."""

NEAR = 0.08
"""Share of the limit within which a median counts as near it."""

SMALLEST_TOLERANCE = 0.25
"""The least that a ratio may lose, as a natural logarithm: what a fresh build or another day changes by itself."""

LOOSEST_TOLERANCE = math.log(1.6)
"""No ratio may lose more: one that strays further says nothing, or was recorded on a machine too busy to record."""

SPREAD_FACTOR = 1.5
"""How much further than the worst measured median the limit stands: a few recordings do not find the worst."""

GAIN = 1.5
"""Times the tolerance above its baseline, a ratio deserves a new one: else the gain can be lost again unseen."""


class Verdict(enum.Enum):
    """What is known about a ratio or a count so far."""

    PASS = "ok"
    FAIL = "WORSE"
    MORE = "unsettled"  # near or beyond its limit, and not measured often enough to say
    MISSING = "MISSING"  # in the baseline, and not to be measured: a gate that measures less is none
    NEW = "NEW"  # measured, and not in the baseline
    BETTER = "better"  # enough to record a new baseline

    @property
    def is_failure(self) -> bool:
        return self in (Verdict.FAIL, Verdict.MISSING, Verdict.NEW)


@dataclass(frozen=True)
class Bound:
    """What a ratio was when it was recorded, and how bad it may become. Of a ratio of times, lower is better."""

    median: float
    limit: float

    @property
    def lower_is_better(self) -> bool:
        return self.limit > self.median

    @property
    def tolerance(self) -> float:
        """Distance of the limit, as a natural logarithm."""
        return abs(math.log(self.limit / self.median))

    def headroom(self, ratio: float) -> float:
        """How far a ratio is from the limit, as a natural logarithm; negative beyond it."""
        distance = math.log(ratio / self.limit)
        return -distance if self.lower_is_better else distance

    @property
    def is_loose(self) -> bool:
        return self.tolerance > LOOSEST_TOLERANCE

    def clamped(self) -> Bound:
        """This bound, or the loosest that is still one."""
        tolerance = min(self.tolerance, LOOSEST_TOLERANCE)
        return Bound(self.median, self.median * math.exp(tolerance if self.lower_is_better else -tolerance))

    @classmethod
    def of(cls, medians: Sequence[float], *, lower_is_better: bool) -> Bound:
        """The bound that recorded medians ask for: beyond the worst of them, by :data:`SPREAD_FACTOR`."""
        middle = statistics.median(medians)
        worst = max(medians) if lower_is_better else min(medians)
        tolerance = max(SMALLEST_TOLERANCE, SPREAD_FACTOR * abs(math.log(worst / middle)))
        return cls(middle, middle * math.exp(tolerance if lower_is_better else -tolerance))


@dataclass(frozen=True)
class Promise:
    """A limit that no baseline moves. What is exactly at it keeps it.

    Args:
      at_most: the figure may not be above the limit; otherwise not below it.
      near: share of the limit within which a median is measured again.
    """

    limit: float
    at_most: bool
    near: float = NEAR

    def headroom(self, value: float) -> float:
        """How far a figure is from the limit, in shares of the limit; negative beyond it. Figures may be below 0."""
        distance = value / self.limit - 1
        return -distance if self.at_most else distance


def own_delay(relayed: float, direct: float) -> float:
    """What of a delay is the relay's: the smaller of the delay, and the delay less that with nothing in between.

    Load and far end share a core with the sender that saturates it, so a ping waits for them without any relay too.
    """
    return min(relayed, relayed - direct)


def split_loose(bounds: Mapping[str, Bound], twins: Mapping[str, str]) -> tuple[dict[str, Bound], dict[str, Bound]]:
    """What to gate, and what to leave out because its limit would be too wide to mean anything.

    Args:
      twins: by name of a ratio, that of the steadier one which sees the same loss.

    Returns: bounds that are gated, and those left out. A loose one is left out where its twin is gated and is not loose
    itself; otherwise its limit is drawn in, so that what only it sees stays gated.
    """
    left_out = {
        name: bound
        for name, bound in bounds.items()
        if bound.is_loose and (twin := bounds.get(twins.get(name, ""))) is not None and not twin.is_loose
    }
    return {name: bound.clamped() for name, bound in bounds.items() if name not in left_out}, left_out


def judge_ratio(ratios: Sequence[float] | None, bound: Bound | None) -> Verdict:
    """What rounds say about a ratio.

    Args:
      ratios: one for each round that counts, perhaps none so far; None when it cannot be measured.
      bound: of the baseline; None when it is not there.
    """
    if bound is None:
        return Verdict.NEW
    if ratios is None:
        return Verdict.MISSING
    if len(ratios) < FEWEST_ROUNDS:
        return Verdict.MORE
    headroom = bound.headroom(statistics.median(ratios))
    if headroom >= (1 + GAIN) * bound.tolerance:
        return Verdict.BETTER
    if headroom >= NEAR:
        return Verdict.PASS
    if len(ratios) < ENOUGH_ROUNDS:
        return Verdict.MORE
    # Single rounds stray by a fifth on a quiet machine, and then four of seven are beyond by chance too often.
    beyond = sum(bound.headroom(ratio) < 0 for ratio in ratios)
    return Verdict.FAIL if beyond >= len(ratios) - STRAY_ROUNDS else Verdict.PASS


def judge_promise(values: Sequence[float] | None, promise: Promise) -> Verdict:
    """What rounds say about a promise.

    Single rounds vary by more than a limit is away from what is measured, so a median beyond it may be chance. A
    promise is broken when every one of enough rounds is beyond: by chance that happens to one run in a hundred where
    the truth is at the limit, and to none where it is clear of it.

    Args:
      values: one for each round that counts, perhaps none so far; None when it cannot be measured.
    """
    if values is None:
        return Verdict.MISSING
    if len(values) < FEWEST_ROUNDS:
        return Verdict.MORE
    headroom = promise.headroom(statistics.median(values))
    if headroom >= promise.near:
        return Verdict.PASS
    if len(values) < ENOUGH_ROUNDS:
        return Verdict.MORE
    return Verdict.FAIL if all(promise.headroom(value) < 0 for value in values) else Verdict.PASS


def judge_count(count: int | None, recorded: int | None) -> Verdict:
    """What an exact count says: one more is worse, there is no noise in it."""
    if count is None:
        return Verdict.MISSING
    if recorded is None:
        return Verdict.NEW
    if count == recorded:
        return Verdict.PASS
    return Verdict.FAIL if count > recorded else Verdict.BETTER


@dataclass(frozen=True)
class Line:
    """One line of the gate's table."""

    name: str
    now: str
    baseline: str
    limit: str
    change: str
    verdict: Verdict


def _now(found: Sequence[float] | None) -> str:
    return f"{statistics.median(found):.3g} ({min(found):.3g} .. {max(found):.3g}; {len(found)})" if found else "-"


def promise_lines(values: Mapping[str, Sequence[float]], promises: Mapping[str, Promise]) -> list[Line]:
    """A line for every promise, measured or not."""
    lines = []
    for name, promise in promises.items():
        found = values.get(name)
        limit = f"{'at most' if promise.at_most else 'at least'} {promise.limit:g}"
        lines.append(Line(name, _now(found), "promise", limit, "", judge_promise(found, promise)))
    return lines


def ratio_lines(ratios: Mapping[str, Sequence[float]], bounds: Mapping[str, Bound]) -> list[Line]:
    """A line for every ratio that was measured or recorded."""
    lines = []
    for name in [*ratios, *(name for name in bounds if name not in ratios)]:
        found, bound = ratios.get(name), bounds.get(name)
        now = _now(found)
        change = f"{statistics.median(found) / bound.median - 1:+.0%}" if found and bound else ""
        baseline, limit = (f"{bound.median:.3g}", f"{bound.limit:.3g}") if bound else ("-", "-")
        lines.append(Line(name, now, baseline, limit, change, judge_ratio(found, bound)))
    return lines


def count_lines(counts: Mapping[str, int], recorded: Mapping[str, int]) -> list[Line]:
    """A line for every count that was made or recorded."""
    lines = []
    for name in [*counts, *(name for name in recorded if name not in counts)]:
        count, was = counts.get(name), recorded.get(name)
        change = f"{count - was:+d}" if count is not None and was is not None and count != was else ""
        shown = ["-" if value is None else str(value) for value in (count, was)]
        lines.append(Line(name, shown[0], shown[1], shown[1], change, judge_count(count, was)))
    return lines
