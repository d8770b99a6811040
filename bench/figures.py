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

THERE_AND_BACK = ("echo", "ping", "idle", "http")
"""Kinds of jobs whose payload crosses what stands between twice."""

STALLED = ("stall", "unread")
"""Kinds of jobs that only stand beside the others: nothing of theirs is in the rates."""

HIGHEST_LATENCY_NS = 600 * 10**9

LOWER_IS_BETTER = (
    "µs",
    "CPU s/GiB",
    "CPU µs/message",
    "CPU µs/request",
    "syscalls/message",
    "syscalls/request",
    "switches/message",
    "switches/request",
    "KiB",
    "KiB/stalled",
    "resident MiB",
)
"""Ends of names of figures that should be small."""


def is_lower_better(name: str) -> bool:
    return name.endswith(LOWER_IS_BETTER)


def percentiles_us(counts: Iterable[tuple[int, int]], wanted: Sequence[float]) -> list[float]:
    """Percentiles in microseconds of latencies given as (nanoseconds, how many)."""
    histogram = HdrHistogram(1, HIGHEST_LATENCY_NS, 3)
    for value, count in counts:
        histogram.record_value(max(1, min(value, HIGHEST_LATENCY_NS)), count)
    return [histogram.get_value_at_percentile(percent) / 1_000 for percent in wanted]


def item_of(job: Mapping[str, Any]) -> str:
    """What a job counts: requests or messages."""
    return "request" if job["kind"] == "http" else "message"


def crossed(job: Mapping[str, Any]) -> int:
    """How many messages of a job crossed what stands between; a request and its answer are one."""
    twice = job["kind"] in THERE_AND_BACK and job["kind"] != "http"
    return int(job["messages"]) * (2 if twice else 1)


def figures_of(result: Mapping[str, Any], *, under_test: int) -> Figures:
    """Figures of one run of the load generator.

    Args:
      result: its answer.
      under_test: how many of the watched processes, the first ones, are under test; the others are the far end.

    A job of requests says request where the others say message; its CPU per request counts both ways together.

    Of several jobs the first one gives the figures; each other one that moves adds its rate under ``beside MiB/s``.
    CPU figures belong to the processes under test and count every message that crossed them, so an echo counts twice.
    """
    job, item = result["jobs"][0], item_of(result["jobs"][0])
    beside = [each for each in result["jobs"][1:] if each["kind"] not in STALLED]
    stalled = sum(each["count"] for each in result["jobs"] if each["kind"] in STALLED)
    seconds, whole_seconds = job["seconds"], result["seconds"]
    cpu = sum(result["watched_cpu_seconds"][:under_test])
    far_cpu = sum(result["watched_cpu_seconds"][under_test:])
    figures: Figures = {
        "seconds": seconds,
        "MiB/s": job["bytes"] / seconds / MIB,
        f"{item}s/s": job["messages"] / seconds,
        "busy": cpu / whole_seconds,
        "client busy": result["own_cpu_seconds"] / whole_seconds,
        "far busy": far_cpu / whole_seconds,
        "load busy": (result["own_cpu_seconds"] + far_cpu) / whole_seconds,
        "starved": sum(result["watched_waited_seconds"][:under_test]) / whole_seconds,
    }
    if under_test:
        figures.update(_costs([job, *beside], cpu, sum(result["watched_switches"][:under_test])))
        if stalled:
            grown = sum(result["watched_stalled_bytes"][:under_test]) - sum(result["watched_open_bytes"][:under_test])
            figures["KiB/stalled"] = grown / 1024 / stalled
    if job["latency"]:
        names = ("p50 µs", "p99 µs", "p99.9 µs")
        figures.update(zip(names, percentiles_us(job["latency"], (50.0, 99.0, 99.9)), strict=True))
    if job.get("late"):
        (figures["late p99 µs"],) = percentiles_us(job["late"], (99.0,))
    if beside:
        figures["beside MiB/s"] = sum(each["bytes"] / each["seconds"] for each in beside) / MIB
    if job["count"] > 1 and job["bytes"] and "least_bytes" in job:
        fair = job["bytes"] / job["count"]
        figures["least share"] = job["least_bytes"] / fair
        figures["most share"] = job["most_bytes"] / fair
    return figures


def _costs(jobs: Sequence[Mapping[str, Any]], cpu_s: float, switches: int) -> Figures:
    """What the process under test paid: per message of the first job, per byte of all."""
    costs: Figures = {}
    total_bytes = sum(each["bytes"] * (2 if each["kind"] in THERE_AND_BACK else 1) for each in jobs)
    if messages := crossed(jobs[0]):
        costs[f"CPU µs/{item_of(jobs[0])}"] = cpu_s * 1e6 / messages
        costs[f"switches/{item_of(jobs[0])}"] = switches / messages
    if total_bytes:
        costs["CPU s/GiB"] = cpu_s / (total_bytes / GIB)
    return costs


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
