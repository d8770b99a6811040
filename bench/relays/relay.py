"""relaycore itself as a process under test: its defaults, an in-memory store, quotas wide enough for the counts.

Logging stays on, at the default level, into the file that the stage keeps: a relay without its log would not be the
one that people run.
"""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path

import trio

from relaycore.config import load_config
from relaycore.gateway.server import serve, tune_collector
from relaycore.trace import configure_logging

from .sampler import Sampler
from .stage import announce, parser, wait_input_closed

SETTINGS: dict[str, object] = {
    "server.port": 0,
    "server.backlog": 4_096,
    "server.max_connections": 20_000,
    "limits.connections_per_namespace": 20_000,
    "store.path": ":memory:",
}


def read_setting(text: str) -> tuple[str, object]:
    """``limits.pool_buffers=64`` as a setting's name and value."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


async def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--entity", action="append", default=[], help="hybrid connection to create; repeats")
    options.add_argument("--profile", type=Path, help="file that gets the stacks of a sampler when the relay ends")
    options.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting; repeats")
    chosen = options.parse_args()
    sampler = Sampler() if chosen.profile else None
    config = load_config(None, {}, {**SETTINGS, **dict(map(read_setting, chosen.set))})
    with contextlib.closing(configure_logging(config.log)):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(serve, config))
            for path in chosen.entity:
                await server.store.create_entity(config.namespace.name, path)
            tune_collector()  # as `relaycore serve` does
            rule = server.namespace.rules[0]
            announce(chosen.announce, {"port": server.addresses[0][1], "key_name": rule.name, "key": rule.primary_key})
            await wait_input_closed()
            if sampler is not None:
                sampler.write(chosen.profile)
            await server.stop(1.0)


if __name__ == "__main__":
    trio.run(main)
