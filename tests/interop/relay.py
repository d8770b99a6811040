"""The relay under test, in the test's own Trio loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from interop.peers import Target

from relaycore.config import Config, ServerConfig, TlsConfig
from relaycore.gateway.server import Server, serve
from relaycore.store.sqlite import open_sqlite


@dataclass(frozen=True)
class RunningRelay:
    """A relay in the test's own loop, with the hybrid connections ``echo`` and ``open`` (anonymous senders)."""

    server: Server
    config: Config
    target: Target


@asynccontextmanager
async def run_relay(certificate: Path | None = None) -> AsyncIterator[RunningRelay]:
    """Run a relay, with TLS if there is a certificate; at the end its books must balance."""
    tls = (
        TlsConfig(cert=str(certificate / "cert.pem"), key=str(certificate / "key.pem")) if certificate else TlsConfig()
    )
    config = Config(server=ServerConfig(port=0), tls=tls)
    store = await open_sqlite(":memory:")
    try:
        name = config.namespace.name
        await store.ensure_namespace(name, ())
        await store.create_entity(name, "echo")
        await store.create_entity(name, "open", requires_client_authorization=False)
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, config, store=store))
            [rule] = server.namespace.rules
            ca_file = str(certificate / "ca.pem") if certificate else None
            yield RunningRelay(server, config, Target(server.base_url, rule.name, rule.primary_key, ca_file))
            await server.stop(5)
            assert server.check_consistency() == []
    finally:
        await store.aclose()
