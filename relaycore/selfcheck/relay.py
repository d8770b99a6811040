"""The relay under test: as ``relaycore serve`` runs it, with definitions in memory and one thread for its sessions."""

from __future__ import annotations

import functools
from contextlib import closing
from typing import Final

import trio

from ..config import LogConfig, load_config
from ..gateway.server import Server, serve, tune_collector
from ..trace import configure_logging
from .roles import Orders, say

__all__ = ["main"]

ENTITY: Final = "selfcheck"

_SETTINGS: Final[dict[str, object]] = {
    "server.host": "127.0.0.1",
    "server.port": 0,
    "store.path": ":memory:",
    "engine.threads": 1,
}


def _mover(server: Server) -> str:
    return "Trio" if server.statistics().engine is None else "engine"


async def _run() -> None:
    config = load_config(None, {}, _SETTINGS)
    with closing(configure_logging(LogConfig(level="warning"))):
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(functools.partial(serve, config))
            await server.store.create_entity(config.namespace.name, ENTITY)
            tune_collector()
            rule = server.namespace.rules[0]
            say(
                {
                    "event": "ready",
                    "port": server.addresses[0][1],
                    "key_name": rule.name,
                    "key": rule.primary_key,
                    "entity": ENTITY,
                    "mover": _mover(server),
                }
            )
            orders = Orders({})
            while True:
                await trio.lowlevel.wait_readable(0)
                if not orders.read():
                    break
            await server.stop(1.0)


def main() -> None:
    """Run until standard input ends."""
    trio.run(_run)
