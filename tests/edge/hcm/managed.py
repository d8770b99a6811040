"""A relay, endpoints on loopback, and connection managers between them."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from endpoints import Endpoint, Handler, echo

import relaycore
from relaycore import Connection
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import HcmConnection, HcmSettings, HealthSettings, Probe, RelaySettings, Target
from relaycore.edge.hcm.manager import Manager
from relaycore.edge.hcm.status import ConnectionStatus
from relaycore.net.tasks import alone
from relaycore.testing import Relay, open_relay

NO_PROBE = HealthSettings(probe=Probe("none"))
QUICK_PROBE = HealthSettings(interval_s=0.05, timeout_s=1.0, rise=2, fall=2)


class World:
    """Everything of one test; the hybrid connection is ``orders``."""

    def __init__(self, relay: Relay, nursery: trio.Nursery) -> None:
        self.relay = relay
        self.nursery = nursery

    async def endpoint(self, handler: Handler = echo) -> Endpoint:
        """A server that is up until the end of the test."""
        found = Endpoint(handler)
        await self.nursery.start(found.serve)
        return found

    async def up(self, endpoint: Endpoint) -> None:
        """Bring a server back that was taken down."""
        await self.nursery.start(endpoint.serve)

    async def describe(self, user_metadata: str, path: str = "orders") -> None:
        """Change a hybrid connection's own text."""
        namespace = self.relay.server.namespace.name
        await self.relay.store.update_entity(namespace, path, user_metadata=user_metadata)

    def key(self, name: str = "RootManageSharedAccessKey") -> str:
        rule = self.relay.server.namespace.find_rule(name)
        assert rule is not None
        return rule.primary_key

    def connection(self, *targets: Target, name: str = "orders", path: str = "orders", **options) -> HcmConnection:
        """Settings of an entry; without targets, what the relay's text names. Unless said, no probes are made."""
        options.setdefault("health", NO_PROBE)
        options.setdefault("key", Secret("inline", self.key("TestListen")))
        relay = RelaySettings("main", f"sb://127.0.0.1:{self.relay.port}/", is_emulator=True, proxy="none")
        options.setdefault("relay", relay)
        if targets:
            options["targets"] = targets
        return HcmConnection(name=name, path=path, key_name="TestListen", **options)

    @asynccontextmanager
    async def manager(self, *connections: HcmConnection, **options) -> AsyncIterator[Manager]:
        """A manager that is told to stop at the end, and cut if that takes long."""
        settings = HcmSettings(connections, **{key: options.pop(key) for key in ("policy", "limits") if key in options})
        manager = Manager(**options)
        with alone():
            async with trio.open_nursery() as nursery:
                await nursery.start(manager.run, settings)
                yield manager
                manager.stop()
                with trio.move_on_after(5):
                    await manager.wait_stopped()
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def serving(self, *connections: HcmConnection, **options) -> AsyncIterator[Manager]:
        """A manager whose entries are all Connected."""
        async with self.manager(*connections, **options) as manager:
            for connection in connections:
                await until(lambda name=connection.name: status(manager, name).relay_leg == "Connected")
            yield manager

    def dial(self, path: str = "orders"):
        """A sender."""
        return relaycore.open_stream(self.relay.connection_string(path))


@asynccontextmanager
async def open_world(*, user_metadata: str | None = None, **options) -> AsyncIterator[World]:
    with alone():
        async with open_relay(**options) as relay, trio.open_nursery() as nursery:
            await relay.create_entity("orders", user_metadata=user_metadata)
            yield World(relay, nursery)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something that has no event of its own."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


def status(manager: Manager, name: str = "orders") -> ConnectionStatus:
    return manager.connection_status(name)


async def ask(sender: Connection, data: bytes = b"ping") -> bytes:
    """Send, and read as much back."""
    await sender.send_all(data)
    got = b""
    while len(got) < len(data):
        more = await sender.receive_some()
        assert more, f"{got!r} and then the end"
        got += more
    return got


def reset(stream: trio.SocketStream) -> None:
    """Cut a TCP connection so that its peer sees a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def with_target(connection: HcmConnection, *targets: Target) -> HcmConnection:
    return replace(connection, targets=targets)
