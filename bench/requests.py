"""Workloads that send HTTP requests: how many in a second, and how much later an answer is than a direct one."""

from __future__ import annotations

from .loadgen import HTTP, Job
from .workload import Workload

SIZES = {"0": 0, "1k": 1_024, "64k": 65_536, "1m": 1 << 20}

CONNECTIONS = (1, 16, 256)

_SHOWS = ("p50 µs", "p99 µs", "added p50 µs", "added p99 µs", "CPU µs/request")
_SHARES = ("busy", "far busy", "client busy")


def _about(size: int, count: int) -> str:
    what = f"POST of {size} bytes, answered with as many" if size else "GET, answered without a body"
    return f"{what}; {count} connections" if count > 1 else f"{what}; one connection, every process on one core"


WORKLOADS = tuple(
    Workload(
        f"http-{label}-{count}",
        _about(size, count),
        (Job(HTTP, size, count=count),),
        headline="requests/s",
        shows=_SHOWS if count == 1 else (*_SHOWS, *_SHARES),
        together=count == 1,
        counted=(label, count) == ("1k", 16),
    )
    for label, size in SIZES.items()
    for count in CONNECTIONS
)
