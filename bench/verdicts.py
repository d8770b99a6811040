"""What the gate decides, from ratios and counts and a baseline. Pure.

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
"""What stood near or beyond its limit for so many rounds is decided by their median."""

NEAR = 0.08
"""Share of the limit within which a median counts as near it."""

SMALLEST_TOLERANCE = 0.15
"""The least that a ratio may lose, as a natural logarithm: what a fresh build or another day changes by itself."""

LOOSE_TOLERANCE = 0.35
"""A ratio that may lose more was recorded on a machine too busy to record."""

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

    @classmethod
    def of(cls, medians: Sequence[float], *, lower_is_better: bool) -> Bound:
        """The bound that recorded medians ask for: beyond the worst of them, by :data:`SPREAD_FACTOR`."""
        middle = statistics.median(medians)
        worst = max(medians) if lower_is_better else min(medians)
        tolerance = max(SMALLEST_TOLERANCE, SPREAD_FACTOR * abs(math.log(worst / middle)))
        return cls(middle, middle * math.exp(tolerance if lower_is_better else -tolerance))


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
    return Verdict.PASS if headroom >= 0 else Verdict.FAIL


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


def ratio_lines(ratios: Mapping[str, Sequence[float]], bounds: Mapping[str, Bound]) -> list[Line]:
    """A line for every ratio that was measured or recorded."""
    lines = []
    for name in [*ratios, *(name for name in bounds if name not in ratios)]:
        found, bound = ratios.get(name), bounds.get(name)
        now = f"{statistics.median(found):.3g} ({min(found):.3g} .. {max(found):.3g}; {len(found)})" if found else "-"
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
