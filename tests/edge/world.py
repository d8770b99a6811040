"""A relay, an origin and the forwarder between them, with raw senders."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from origins import OriginServer, Script, open_origin
from peers import HttpAnswer, WirePeer, http_request

import relaycore
from relaycore.client.listener import Listener
from relaycore.edge.http_forward import HttpForwarder
from relaycore.edge.mapping import ForwardSettings
from relaycore.edge.origin import parse_origin_url
from relaycore.net.linger import cut
from relaycore.testing import Relay, open_relay


@dataclass
class World:
    """Everything on loopback; the hybrid connection is ``web``, for anybody to send to."""

    relay: Relay
    origin: OriginServer
    forwarder: HttpForwarder
    listener: Listener
    peers: list[WirePeer] = field(default_factory=list)

    async def peer(self) -> WirePeer:
        """A sender's connection; closed at the end of the test."""
        self.peers.append(await WirePeer.open(self.relay.port))
        return self.peers[-1]

    async def ask(
        self, method: str = "GET", target: str = "/web", fields=(), body: bytes | None = None, **options
    ) -> HttpAnswer:
        """One request on a connection of its own."""
        peer = await self.peer()
        await peer.send(http_request(method, target, fields, body, **options))
        answer = await peer.read_http(method)
        await peer.aclose()
        return answer

    async def settled(self) -> None:
        """Wait until the relay has no request under way, and neither has the listener."""
        while self.relay.server.statistics().exchanges or self.listener.status.requests_under_way:
            await trio.sleep(0.001)

    async def origin_is_left(self) -> None:
        """Wait until nobody is connected to the origin but idle connections."""
        while self.origin.open > self.forwarder.pool.idle:
            await trio.sleep(0.001)


@asynccontextmanager
async def open_world(
    script: Script | None = None,
    *,
    path: str = "web",
    base: str = "",
    url: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    **settings,
) -> AsyncIterator[World]:
    async with open_relay() as relay, open_origin(script) as origin:
        await relay.create_entity(path, requires_client_authorization=False)
        where = parse_origin_url((url or origin.url) + base)
        forwarder = HttpForwarder(ForwardSettings(where, sender_scheme="http", **settings), path, ssl_context)
        async with (
            relaycore.open_listener(
                relay.connection_string(path), accept=forwarder.accept, on_request=forwarder.serve
            ) as listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(forwarder.run, listener)
            world = World(relay, origin, forwarder, listener)
            try:
                yield world
            finally:
                await cut(*(peer.stream for peer in world.peers))  # noqa: ASYNC102 - shields itself
            nursery.cancel_scope.cancel()


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the given step of the task that made it."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._left = step
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()
