"""Workloads that ask how soon: one ping-pong alone, and one beside a stream that fills the pipe."""

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
    ),
    Workload(
        "ping-64-apart",
        "the same with the process under test on a core of its own: two wake-ups of a sleeping core in each direction",
        (Job("ping", 64),),
        headline="p50 µs",
        shows=_LATENCY,
    ),
    Workload(
        "ping-beside-bulk",
        "64-byte echoes while another stream carries 64 KiB messages as fast as they go",
        (Job("ping", 64), Job("sink", 65_536)),
        headline="p99 µs",
        shows=("p50 µs", "p99.9 µs", "beside MiB/s", "busy"),
    ),
)
