"""From what one run counted to the figures of a table: rates, percentiles, medians, spreads and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

Figures = dict[str, float]
"""One run's figures by name; the name ends in the unit."""

MIB = 1 << 20
GIB = 1 << 30

HIGHEST_LATENCY_NS = 600 * 10**9

LOWER_IS_BETTER = ("µs", "CPU s/GiB", "CPU µs/message", "CPU µs/request", "KiB")
"""Ends of names of figures that should be small."""


def is_lower_better(name: str) -> bool:
    return name.endswith(LOWER_IS_BETTER)


def percentiles_us(counts: Iterable[tuple[int, int]], wanted: Sequence[float]) -> list[float]:
    """Percentiles in microseconds of latencies given as (nanoseconds, how many)."""
    histogram = HdrHistogram(1, HIGHEST_LATENCY_NS, 3)
    for value, count in counts:
        histogram.record_value(max(1, min(value, HIGHEST_LATENCY_NS)), count)
    return [histogram.get_value_at_percentile(percent) / 1_000 for percent in wanted]


def figures_of(result: Mapping[str, Any], *, under_test: int) -> Figures:
    """Figures of one run of the load generator.

    Args:
      result: its answer.
      under_test: how many of the watched processes, the first ones, are under test; the others are the far end.

    A job of requests says request where the others say message; its CPU per request counts both ways together.

    Of several jobs the first one gives the figures; each other one adds its rate under ``beside MiB/s``. CPU figures
    belong to the processes under test and count every message that crossed them, so an echo counts twice.
    """
    job = result["jobs"][0]
    crossings = 2 if job["kind"] in ("echo", "ping", "idle") else 1
    item = "request" if job["kind"] == "http" else "message"
    everything = result["jobs"]
    there_and_back = ("echo", "ping", "idle", "http")
    total_bytes = sum(each["bytes"] * (2 if each["kind"] in there_and_back else 1) for each in everything)
    seconds = job["seconds"]
    cpu = sum(result["watched_cpu_seconds"][:under_test])
    far_cpu = sum(result["watched_cpu_seconds"][under_test:])
    figures: Figures = {
        "seconds": seconds,
        "MiB/s": job["bytes"] / seconds / MIB,
        f"{item}s/s": job["messages"] / seconds,
        "busy": cpu / result["seconds"],
        "client busy": result["own_cpu_seconds"] / result["seconds"],
        "far busy": far_cpu / result["seconds"],
        "load busy": (result["own_cpu_seconds"] + far_cpu) / result["seconds"],
        "starved": sum(result["watched_waited_seconds"][:under_test]) / result["seconds"],
    }
    if under_test:
        if job["messages"]:
            figures[f"CPU µs/{item}"] = cpu * 1e6 / (job["messages"] * crossings)
        if total_bytes:
            figures["CPU s/GiB"] = cpu / (total_bytes / GIB)
    if job["latency"]:
        names = ("p50 µs", "p99 µs", "p99.9 µs")
        figures.update(zip(names, percentiles_us(job["latency"], (50.0, 99.0, 99.9)), strict=True))
    if len(everything) > 1:
        figures["beside MiB/s"] = sum(each["bytes"] / each["seconds"] for each in everything[1:]) / MIB
    return figures


@dataclass(frozen=True)
class Spread:
    """Median of several runs with the lowest and the highest; one run is all three."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def paired_ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Value over base, round by round, for the rounds that both have. Pairs meet the same state of the machine."""
    return [values[number] / base[number] for number in sorted(values) if base.get(number)]


def paired_differences(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Value less base, round by round, for the rounds that both have."""
    return [values[number] - base[number] for number in sorted(values) if number in base]
