"""Relays in Python that are not relaycore: what its users would otherwise write in an afternoon."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from ..loadgen import Route
from ..toolchain import PROGRAM
from .base import Stage, free_port, topology

PICOWS = PROGRAM["picows"]
WEBSOCKIFY = PROGRAM["websockify"]


def _open_python_proxy(stage: Stage, module: str, *, libraries: Path | None = None) -> Route:
    server, ready = stage.load("server")
    proxy, announced = stage.run_python(module, "--to-port", str(ready["port"]), libraries=libraries)
    return Route("127.0.0.1", announced["port"], "/bench", under_test=(proxy.pid,), load=(server.pid,))


@topology(
    "naive",
    "a relay of two trio-websocket connections, whole messages",
    version=lambda: f"trio-websocket {version('trio-websocket')}",
)
def naive(stage: Stage) -> Route:
    return _open_python_proxy(stage, "bench.relays.naive")


@topology("trio-splice", "plain bytes between two Trio streams, 64 KiB reads", by_default=False)
def trio_splice(stage: Stage) -> Route:
    return _open_python_proxy(stage, "bench.relays.splice")


@topology(
    "picows",
    "a relay of two picows connections, frame by frame",
    missing=PICOWS.missing,
    version=lambda: PICOWS.version,
    by_default=False,
)
def picows(stage: Stage) -> Route:
    return _open_python_proxy(stage, "bench.relays.picows", libraries=PICOWS.directory)


@topology(
    "websockify",
    "websockify, a gateway from WebSocket to TCP, a thread for each stream; a WebSocket inside its WebSocket",
    missing=WEBSOCKIFY.missing,
    version=lambda: WEBSOCKIFY.version,
    by_default=False,
)
def websockify(stage: Stage) -> Route:
    server, ready = stage.load("server")
    port = free_port()
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{ready['port']}"]
    argv = [sys.executable, "-m", "bench.relays.websockify", "--libserver", *addresses]
    gateway = stage.run(argv, environment={"PYTHONPATH": str(WEBSOCKIFY.directory)})
    stage.wait_listening(port, gateway, "websockify")
    return Route("127.0.0.1", port, "/", under_test=(gateway.pid,), load=(server.pid,), wraps=True)
