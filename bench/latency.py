"""Workloads that ask how soon: one ping-pong alone. Beside others: ``fairness``."""

from __future__ import annotations

from .loadgen import Job
from .workload import Workload

_LATENCY = ("p99 µs", "p99.9 µs", "CPU µs/message")

WORKLOADS = (
    Workload(
        "ping-64",
        "one stream, one 64-byte echo at a time; every process on one core",
        (Job("ping", 64),),
        headline="p50 µs",
        shows=_LATENCY,
        together=True,
        counted=True,
    ),
    Workload(
        "ping-64-apart",
        "the same with the process under test on a core of its own: two wake-ups of a sleeping core in each direction",
        (Job("ping", 64),),
        headline="p50 µs",
        shows=_LATENCY,
    ),
)
