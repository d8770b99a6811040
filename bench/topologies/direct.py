"""Nothing in between."""

from __future__ import annotations

from ..loadgen import HTTP, Route
from ..workload import WEBSOCKET
from .base import Stage, topology


@topology("direct", "client and server, nothing in between", carries=(WEBSOCKET, HTTP))
def direct(stage: Stage) -> Route:
    server, ready = stage.load("server")
    origin, origin_ready = stage.load("origin")
    return Route(
        "127.0.0.1",
        ready["port"],
        "/bench",
        under_test=(),
        load=(server.pid, origin.pid),
        http=(origin_ready["port"], "/bench"),
    )
