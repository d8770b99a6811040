"""Workloads that ask how much: bulk one way, bulk echoed, many small conversations."""

from __future__ import annotations

from .loadgen import Job
from .workload import Workload

_BULK = ("CPU s/GiB", "CPU µs/message", "busy")

SIZES = {"125": 125, "128": 128, "4k": 4_096, "64k": 65_536, "1m": 1 << 20}
"""125 bytes is the most that a frame's shortest header takes, 128 what programs send that like round numbers."""

SMALL_BYTES = 1_024
"""Below this a stream is told in messages, above in bytes."""

COUNTED = ("64k", "128")

PAIRS = {"pairs-64-x64": 64, "pairs-64": 100, "pairs-64-x512": 512, "pairs-64-x4096": 4_096}


def _bulk(name: str, label: str, way: str, kind: str) -> Workload:
    size = SIZES[label]
    small = size < SMALL_BYTES
    return Workload(
        name,
        f"one stream, messages of {size} bytes, {way}",
        (Job(kind, size),),
        headline="messages/s" if small else "MiB/s",
        shows=(*(("MiB/s",) if small else ()), *_BULK),
        counted=kind == "sink" and label in COUNTED,
    )


WORKLOADS = (
    *(_bulk(f"bulk-{label}", label, "sender to listener", "sink") for label in SIZES),
    *(_bulk(f"bulk-{label}-to-sender", label, "listener to sender", "source") for label in SIZES if label != "128"),
    *(
        _bulk(f"echo-{label}", label, "both ways at once; each byte counted once", "echo")
        for label in SIZES
        if label != "128"
    ),
    *(
        Workload(
            name,
            f"{count} streams, each a closed loop of 64-byte echoes; round trips",
            (Job("ping", 64, count=count),),
            headline="messages/s",
            shows=("p50 µs", "p99 µs", "CPU µs/message", "busy"),
            counted=name == "pairs-64",
        )
        for name, count in PAIRS.items()
    ),
)
