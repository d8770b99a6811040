"""A relay, TCP servers behind listeners of their own, and settings of forwards that lead there."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

import relaycore
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import ConnectSettings, Forward, ListenAt, RelaySettings, RetrySettings
from relaycore.edge.connect.forwarder import Forwarder
from relaycore.edge.events import Event
from relaycore.errors import ConnectionLost
from relaycore.testing import Relay, open_relay
from relaycore.wire.connection_string import parse_connection_string

Server = Callable[[trio.SocketStream], Awaitable[None]]

PORT = 27_071
"""Of the endpoints, as programs dial it: on addresses of the pool, so that it is free."""


async def echo(stream: trio.SocketStream) -> None:
    """Sends back what comes, and ends when the other side has ended."""
    async with stream:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


@contextlib.asynccontextmanager
async def open_server(serve: Server) -> AsyncIterator[tuple[str, int]]:
    """A TCP server on a free port of 127.0.0.1."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await serve(stream)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()
        nursery.cancel_scope.cancel()


@dataclass
class Link:
    """The relay, and forwards to hybrid connections of it."""

    relay: Relay
    nursery: trio.Nursery
    ended: list[Exception | relaycore.Spliced] = field(default_factory=list)

    def settings(self, *, rights: tuple[str, ...] = ("Send",)) -> RelaySettings:
        found = parse_connection_string(self.relay.connection_string("any", rights=rights))
        return RelaySettings("main", f"sb://127.0.0.1:{found.port}/", proxy="none", is_emulator=True)

    def forward(self, path: str, *, rights: tuple[str, ...] = ("Send",), **others) -> Forward:
        """A forward to `path`; retries at once and only within two seconds."""
        found = parse_connection_string(self.relay.connection_string(path, rights=rights))
        assert found.key is not None
        defaults = {
            "name": path,
            "relay": self.settings(),
            "path": path,
            "key_name": found.key_name,
            "key": Secret("inline", found.key),
            "hosts": (f"{path}.test",),
            "port": PORT,
            "listen": (LOCAL_ANY,),
            "retry": RetrySettings(timeout_s=20.0, attempts=2),
        }
        return Forward(**{**defaults, **others})

    async def publish(self, path: str, address: tuple[str, int]) -> trio.CancelScope:
        """A hybrid connection, and a listener whose connections lead to a TCP address. Cancelling it takes it away."""
        with contextlib.suppress(relaycore.RelayError):
            await self.relay.create_entity(path)
        scope = trio.CancelScope()
        has_begun = trio.Event()
        self.nursery.start_soon(self._listen, path, address, scope, has_begun)
        await has_begun.wait()
        return scope

    async def _listen(
        self, path: str, address: tuple[str, int], scope: trio.CancelScope, has_begun: trio.Event
    ) -> None:
        text = self.relay.connection_string(path, rights=["Listen"])
        with scope:
            async with relaycore.open_listener(text) as listener, trio.open_nursery() as nursery:
                has_begun.set()
                while True:
                    connection = await listener.accept()
                    nursery.start_soon(self._carry, connection, address)

    async def _carry(self, connection: relaycore.Connection, address: tuple[str, int]) -> None:
        try:
            stream = await trio.open_tcp_stream(*address)
            self.ended.append(await relaycore.splice(connection, stream))
        except (OSError, ConnectionLost) as error:
            self.ended.append(error)
            await connection.aclose()


LOCAL_ANY = ListenAt("tcp", "auto", 0)


@contextlib.asynccontextmanager
async def open_link() -> AsyncIterator[Link]:
    async with open_relay() as relay, trio.open_nursery() as nursery:
        yield Link(relay, nursery)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def running(*forwards: Forward, **others) -> AsyncIterator[Forwarder]:
    """A forwarder with these forwards; cut at the end."""
    forwarder = Forwarder(environ={}, **others)
    async with trio.open_nursery() as nursery:
        await nursery.start(forwarder.run, ConnectSettings(forwards=forwards))
        yield forwarder
        nursery.cancel_scope.cancel()


def address_of(forwarder: Forwarder, name: str) -> tuple[str, int]:
    """Where a forward listens."""
    [status] = [status for status in forwarder.status().forwards if status.name == name]
    host, _, port = status.listen[0].rpartition(":")
    return host, int(port)


async def next_event(events: AsyncIterator[Event], kind: str) -> Event:
    async for event in events:
        if event.kind == kind:
            return event
    raise AssertionError(f"no event {kind!r}")


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


async def reset(stream: trio.SocketStream) -> None:
    """Close with RST."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


def changed(forward: Forward, **others) -> Forward:
    return dataclasses.replace(forward, **others)
