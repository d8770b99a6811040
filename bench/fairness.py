"""Workloads that ask what streams do to each other: shares of equals, small beside large, quick beside stuck.

With several engine threads, streams on different threads do not meet; these figures are of a relay with one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .figures import Figures
from .loadgen import Job
from .workload import Workload

_PING = ("p50 µs", "p99.9 µs", "beside MiB/s", "busy")
_PACED = ("p50 µs", "p99.9 µs", "added p99 µs", "late p99 µs", "beside MiB/s", "load busy", "busy")

STALLED = 8
"""Stuck streams in each direction: enough that what one costs stands out from what memory does by itself."""

WORKLOADS = (
    Workload(
        "ping-beside-bulk",
        "64-byte echoes while another stream carries 64 KiB messages as fast as they go",
        (Job("ping", 64), Job("sink", 65_536)),
        headline="p99 µs",
        shows=_PING,
    ),
    Workload(
        "pings-100-beside-bulk",
        "100 streams of 64-byte echoes in closed loops, while another carries 64 KiB messages as fast as they go",
        (Job("ping", 64, count=100), Job("sink", 65_536)),
        headline="p99 µs",
        shows=("messages/s", *_PING),
    ),
    Workload(
        "paced-ping-beside-bulk",
        "one stream of 1000 echoes of 64 bytes a second, while another carries 64 KiB messages as fast as they go",
        (Job("ping", 64, rate=1_000), Job("sink", 65_536)),
        headline="p99 µs",
        shows=_PACED,
    ),
    Workload(
        "paced-100-beside-bulk",
        "100 streams that send 50 echoes of 64 bytes a second each, in turn, while another carries 64 KiB messages "
        "as fast as they go",
        (Job("ping", 64, count=100, rate=50), Job("sink", 65_536)),
        headline="p99 µs",
        shows=_PACED,
    ),
    Workload(
        "urgent-100-beside-bulk",
        "as paced-100-beside-bulk, but client and far end of the echoes need not wait for the core that the bulk "
        "sender keeps busy: what is late, was late in between",
        (Job("ping", 64, count=100, rate=50), Job("sink", 65_536)),
        headline="p99 µs",
        shows=_PACED,
        urgent=True,
    ),
    Workload(
        "bulk-64k-x8",
        "eight streams, messages of 65536 bytes, sender to listener; a share of 1 is an eighth of all",
        (Job("sink", 65_536, count=8),),
        headline="MiB/s",
        shows=("least share", "most share", "CPU s/GiB", "busy"),
    ),
    Workload(
        "bulk-64k-beside-stalled",
        f"one stream of 65536-byte messages beside {STALLED} that the listener does not read and {STALLED} that "
        "the sender does not; kept: its rate over that without them",
        (Job("sink", 65_536), Job("stall", 65_536, count=STALLED), Job("unread", 65_536, count=STALLED)),
        headline="kept",
        shows=("kept by CPU", "KiB/stalled", "MiB/s", "CPU s/GiB", "busy"),
        isolates=True,
    ),
)


def isolated(workload: Workload, measure: Callable[[Workload], Figures]) -> Figures:
    """Run all jobs of a workload and its first one alone in turn, and compare.

    The order alone, all, all, alone lets a machine that steadily grows slower fall on both alike. Memory is of the
    first run with all: what an allocator keeps from it hides the second's.

    Args:
      measure: runs a workload once.

    Returns: figures of the first run with all jobs, and ``kept``: the rate of the first job over its rate alone;
    ``kept by CPU``: the same by what a byte of all cost, which other work on the machine disturbs less.

    Raises:
      BenchError: as ``measure``.
    """
    alone = dataclasses.replace(workload, jobs=workload.jobs[:1])
    before, first, second, after = (measure(each) for each in (alone, workload, workload, alone))
    return {**first, **kept([before, after], [first, second])}


def kept(alone: Sequence[Figures], together: Sequence[Figures]) -> Figures:
    def total(runs: Sequence[Figures], name: str) -> float:
        return sum(run.get(name, 0.0) for run in runs)

    found = {"kept": total(together, "MiB/s") / total(alone, "MiB/s")}
    if total(together, "CPU s/GiB"):
        found["kept by CPU"] = total(alone, "CPU s/GiB") / total(together, "CPU s/GiB")
    return found
