"""The least that joins two connections: how much of a figure is the load's own."""

from __future__ import annotations

from ..loadgen import Route
from .base import Stage, topology


@topology(
    "floor",
    "a relay in C without tokens or checks: joins, unmasks, passes on",
    version=lambda: "of this tree",
    by_default=False,
)
def floor(stage: Stage) -> Route:
    relay, ready = stage.load("floor")
    port = ready["port"]
    listener, _ = stage.load("listener", [f"address 127.0.0.1 {port} /$hc/bench?sb-hc-action=listen"])
    return Route("127.0.0.1", port, "/$hc/bench?sb-hc-action=connect", (relay.pid,), (listener.pid,))
