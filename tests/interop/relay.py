"""The relay under test, in the test's own Trio loop, and how its peers find it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from interop.peers import Target

from relaycore.config import TlsConfig
from relaycore.testing import Relay, open_relay
from relaycore.wire.connection_string import parse_connection_string


@dataclass(frozen=True)
class RunningRelay:
    """A relay with the hybrid connections ``echo`` and ``open`` (anonymous senders)."""

    relay: Relay
    target: Target


@asynccontextmanager
async def run_relay(certificate: Path | None = None) -> AsyncIterator[RunningRelay]:
    """Run a relay, with TLS if there is a certificate; at the end its books must balance."""
    tls = TlsConfig(cert=str(certificate / "cert.pem"), key=str(certificate / "key.pem")) if certificate else None
    async with open_relay(tls=tls) as relay:
        await relay.create_entity("echo")
        await relay.create_entity("open", requires_client_authorization=False)
        settings = parse_connection_string(relay.connection_string())
        assert settings.key_name is not None
        assert settings.key is not None
        ca_file = str(certificate / "ca.pem") if certificate else None
        yield RunningRelay(relay, Target(settings.base_url, settings.key_name, settings.key, ca_file))
