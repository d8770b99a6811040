"""Workloads that ask how much: bulk one way, bulk echoed, many small conversations."""

from __future__ import annotations

from .loadgen import Job
from .workload import Workload

_BULK = ("CPU s/GiB", "CPU µs/message", "busy")

SIZES = {"125": 125, "4k": 4_096, "64k": 65_536, "1m": 1 << 20}

WORKLOADS = (
    *(
        Workload(
            f"bulk-{label}",
            f"one stream, messages of {size} bytes, sender to listener",
            (Job("sink", size),),
            headline="messages/s" if size < 1_024 else "MiB/s",
            shows=(*(("MiB/s",) if size < 1_024 else ()), *_BULK),
        )
        for label, size in SIZES.items()
    ),
    *(
        Workload(
            f"bulk-{label}-to-sender",
            f"one stream, messages of {SIZES[label]} bytes, listener to sender",
            (Job("source", SIZES[label]),),
            headline="messages/s" if label == "125" else "MiB/s",
            shows=(*(("MiB/s",) if label == "125" else ()), *_BULK),
        )
        for label in ("125", "64k")
    ),
    Workload(
        "echo-64k",
        "one stream, messages of 65536 bytes, both ways at once; each byte counted once",
        (Job("echo", 65_536),),
        headline="MiB/s",
        shows=_BULK,
    ),
    Workload(
        "bulk-64k-x8",
        "eight streams, messages of 65536 bytes, sender to listener",
        (Job("sink", 65_536, count=8),),
        headline="MiB/s",
        shows=_BULK,
    ),
    Workload(
        "pairs-64",
        "100 streams, each a closed loop of 64-byte echoes; round trips",
        (Job("ping", 64, count=100),),
        headline="messages/s",
        shows=("p50 µs", "p99 µs", "CPU µs/message", "busy"),
    ),
)
