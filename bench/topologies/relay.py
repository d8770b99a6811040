"""relaycore itself, with a listener behind it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..loadgen import HTTP, Route
from ..processes import ROOT
from ..workload import WEBSOCKET
from .base import LOAD_LIMIT_S, Stage, topology

ENTITY = "bench"


def _relay_missing() -> str | None:
    if not (ROOT / "relaycore" / "gateway" / "server.py").exists():
        return "this tree has no relaycore.gateway.server"
    return None


def _relay_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("relaycore")
    except PackageNotFoundError:
        return "from the tree"


def relay_headers(announced: dict[str, Any]) -> tuple[str, ...]:
    """The head lines with which both ends show their token to a relay that announced itself."""
    from relaycore.wire.sas import make_token

    token = make_token("http://127.0.0.1/", announced["key_name"], announced["key"], int(time.time()) + LOAD_LIMIT_S)
    return (f"ServiceBusAuthorization: {token}",)


def open_relay(stage: Stage, *, profile: Path | None = None, **settings: object) -> Route:
    """A relay and its listener; settings by name, two underscores for the dot, beside the defaults.

    With ``profile`` the relay samples itself and writes that file when it ends.
    """
    changed = [f"--set={name.replace('__', '.')}={json.dumps(value)}" for name, value in settings.items()]
    if profile is not None:
        changed.append(f"--profile={profile}")
    relay, announced = stage.run_python("bench.relays.relay", "--entity", ENTITY, *changed)
    headers = relay_headers(announced)
    listener, _ = stage.load(
        "listener",
        [
            f"address 127.0.0.1 {announced['port']} /$hc/{ENTITY}?sb-hc-action=listen",
            *(f"header {header}" for header in headers),
        ],
    )
    target = f"/$hc/{ENTITY}?sb-hc-action=connect"
    port = announced["port"]
    return Route("127.0.0.1", port, target, (relay.pid,), (listener.pid,), headers, http=(port, f"/{ENTITY}"))


@topology(
    "relay-trio",
    "relaycore, sessions moved by Trio, requests over the control channel or by rendezvous",
    missing=_relay_missing,
    version=_relay_version,
    carries=(WEBSOCKET, HTTP),
)
def relay_trio(stage: Stage) -> Route:
    return open_relay(stage, engine__mover="trio")


@topology(
    "relay-engine",
    "relaycore, sessions moved by one thread of the engine, which shares the core with the rest of the relay",
    missing=_relay_missing,
    version=_relay_version,
    carries=(WEBSOCKET, HTTP),
)
def relay_engine(stage: Stage) -> Route:
    return open_relay(stage, engine__mover="engine", engine__threads=1)
