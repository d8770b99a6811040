"""A real relay, and accesses to it as the settings would make them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from pathlib import Path

import trio
import trustme

from relaycore.config import TlsConfig
from relaycore.edge.access import RelayAccess
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import Forward, RelaySettings
from relaycore.edge.diagnose.steps import Finding
from relaycore.testing import Relay, open_relay

ENDPOINT = '[{"key": "endpoint", "value": "sqldb.corp.example:1433"}]'


class Place:
    """A relay with the hybrid connection ``orders``, and what a program with certain settings would see."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def key(self, rule: str) -> str:
        found = self.relay.server.namespace.find_rule(rule)
        assert found is not None
        return found.primary_key

    def forward(
        self,
        rule: str = "TestListenSend",
        path: str = "orders",
        *,
        key: str | None = None,
        token: str | None = None,
        port: int | None = None,
        proxy: str = "none",
        host: str = "",
        cafile: Path | None = None,
        **more,
    ) -> Forward:
        is_tls = self.relay.server.is_tls
        host = host or ("localhost" if is_tls else "127.0.0.1")
        relay = RelaySettings(
            "main", f"sb://{host}:{port or self.relay.port}/", cafile=cafile, proxy=proxy, is_emulator=not is_tls
        )
        if token is not None:
            return Forward("orders", relay, path, token=Secret("inline", token), **more)
        if not rule:
            return Forward("orders", relay, path, **more)
        secret = Secret("inline", self.key(rule) if key is None else key)
        return Forward("orders", relay, path, key_name=rule, key=secret, **more)

    def access(self, *arguments, now_unix: Callable[[], float] = time.time, **more) -> RelayAccess:
        return RelayAccess.of(self.forward(*arguments, **more), now_unix=now_unix)


@asynccontextmanager
async def open_place(
    *, now_unix: Callable[[], float] = time.time, tls: TlsConfig | None = None, **entity
) -> AsyncIterator[Place]:
    async with open_relay(now_unix=now_unix, tls=tls) as relay:
        await relay.create_entity("orders", **{"user_metadata": ENDPOINT, **entity})
        yield Place(relay)


async def emitted(examine, *arguments, **options) -> list[Finding]:
    """What an examination tells that has somewhere to tell it."""
    found: list[Finding] = []

    async def emit(finding: Finding) -> None:
        await trio.lowlevel.checkpoint()
        found.append(finding)

    await examine(*arguments, emit, **options)
    return found


async def collect(findings) -> list[Finding]:
    async with aclosing(findings) as found:
        return [finding async for finding in found]


@asynccontextmanager
async def open_tls_place(
    directory: Path, *, name: str = "localhost", not_after: datetime | None = None
) -> AsyncIterator[Place]:
    """One with a certificate of an authority of its own, whose certificate lies in ``ca.pem``."""
    ca = trustme.CA()
    issued = ca.issue_cert(name, not_after=not_after)
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    async with open_place(tls=TlsConfig(cert=str(cert), key=str(key))) as place:
        yield place
