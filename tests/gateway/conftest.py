"""A relay on a free loopback port, and the raw peers that call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import peers
import pytest
import trio
from peers import Answer, Asked, HttpAnswer, WirePeer

from relaycore.config import Config, ServerConfig, StoreConfig
from relaycore.gateway.server import Server, serve
from relaycore.net.linger import cut
from relaycore.store.base import Store
from relaycore.store.sqlite import open_sqlite
from relaycore.trace import Event, Trace


class Relay:
    """A running server with its store, its events, and ways to call it."""

    def __init__(self, server: Server, store: Store, events: list[Event]) -> None:
        self.server = server
        self.store = store
        self.events = events
        self.port = server.addresses[0][1]
        self._peers: list[WirePeer] = []

    def token(self, rule: str = "RootManageSharedAccessKey", entity: str | None = None, **options) -> str:
        namespace = self.server.namespace
        holder = namespace if entity is None else namespace.get_entity(entity)
        assert holder is not None
        found = holder.find_rule(rule)
        assert found is not None
        return peers.token(found.name, found.primary_key, **options)

    async def connect(self) -> WirePeer:
        peer = await WirePeer.open(self.port)
        self._peers.append(peer)
        return peer

    async def call(self, target: str, headers: dict[str, str] | None = None, **options) -> tuple[WirePeer, Answer]:
        peer = await self.connect()
        return peer, await peer.upgrade(target, headers, **options)

    async def listen(self, path: str = "orders", *, token: str | None = None, query: str = "") -> WirePeer:
        headers = {"ServiceBusAuthorization": token or self.token()}
        peer, answer = await self.call(f"/$hc/{path}?sb-hc-action=listen{query}", headers)
        assert answer.status == 101, answer
        return peer

    async def accept(self, control: WirePeer, headers: dict[str, str] | None = None) -> WirePeer:
        """Take the next ``accept`` of a control channel; the rendezvous is answered when the sender is."""
        message = (await control.read_json())["accept"]
        return await self.come_to(message["address"], headers)

    async def come_to(self, address: str, headers: dict[str, str] | None = None) -> WirePeer:
        peer = await self.connect()
        answer = await peer.upgrade(peers.split_address(address)[1], headers)
        assert answer.status == 101, answer
        return peer

    async def join(self, path: str = "orders", query: str = "") -> tuple[WirePeer, WirePeer, WirePeer]:
        """A control channel, a sender and a listener's rendezvous, joined."""
        control = await self.listen(path)
        joined: list[WirePeer] = []

        async def send() -> None:
            headers = {"ServiceBusAuthorization": self.token()}
            peer, answer = await self.call(f"/$hc/{path}?sb-hc-action=connect{query}", headers)
            assert answer.status == 101, answer
            joined.append(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            listener = await self.accept(control)
        return control, joined[0], listener

    # Relayed HTTP --------------------------------------------------------------------------------------------------

    async def ask(self, method: str = "GET", target: str = "/open", *arguments, **options) -> WirePeer:
        """Send an HTTP request on a connection of its own; arguments as of :func:`peers.http_request`."""
        peer = await self.connect()
        await peer.send(peers.http_request(method, target, *arguments, **options))
        return peer

    async def fetch(self, method: str = "GET", target: str = "/open", *arguments, **options) -> HttpAnswer:
        """Send a request and read its answer, which some listener gives meanwhile."""
        return await (await self.ask(method, target, *arguments, **options)).read_http(method)

    async def asked(self, control: WirePeer, sender: WirePeer) -> Asked:
        """The request that a listener gets of a sender; what the sender got instead is the error."""
        with trio.move_on_after(5):
            return await control.read_request()
        with trio.fail_after(1):
            raise AssertionError(f"no request; the sender was told {await sender.read_http()}")

    async def meet(self, asked: Asked) -> WirePeer:
        """Come to the address of a ``request``."""
        return await self.come_to(asked.address)

    async def settle(self) -> None:
        """Wait until every connection has ended, then check the books."""
        with trio.fail_after(20):
            while self.server.statistics().open_connections:
                await trio.sleep(0.01)
        assert self.server.check_consistency() == []

    async def cut_peers(self) -> None:
        """Close every peer, also in a test that is being cancelled."""
        await cut(*(peer.stream for peer in self._peers))

    async def hang_up(self) -> None:
        """Close every peer, then see that the relay has nothing left of them."""
        await self.cut_peers()
        if not self.server.is_stopped:
            await self.settle()

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    async def happened(self, name: str) -> Event:
        """The first event of that name, waited for."""
        with trio.fail_after(10):
            while not (found := self.named(name)):
                await trio.sleep(0.005)
        return found[0]


@pytest.fixture
async def start_relay(nursery: trio.Nursery) -> AsyncIterator[Callable[..., object]]:
    """Start a relay with other settings: sections of the configuration as keywords."""
    stores: list[Store] = []
    relays: list[Relay] = []

    async def start(*, path: str | Path = ":memory:", now_unix: Callable[[], float] | None = None, **sections) -> Relay:
        sections.setdefault("server", ServerConfig(port=0))
        config = Config(store=StoreConfig(path=str(path)), **sections)
        store = await open_sqlite(path)
        stores.append(store)
        trace = Trace()
        events: list[Event] = []
        trace.subscribe(events.append)
        options = {"now_unix": now_unix} if now_unix is not None else {}
        server = await nursery.start(partial(serve, config, store=store, trace=trace, **options))
        await store.create_entity(config.namespace.name, "orders")
        await store.create_entity(config.namespace.name, "open", requires_client_authorization=False)
        relays.append(Relay(server, store, events))
        return relays[-1]

    try:
        yield start
        for relay in relays:
            await relay.hang_up()
            await relay.server.stop(0)
            assert not relay.named("internal.error"), relay.named("internal.error")
    finally:
        # A server that dies, and time that runs out, cancel the test and this: what they left open would be blamed on
        # the next test.
        with trio.CancelScope(shield=True):
            for relay in relays:
                await relay.cut_peers()
            for store in stores:
                await store.aclose()


@pytest.fixture
async def relay(start_relay) -> Relay:
    """A relay with default settings, the entity ``orders``, and the anonymous entity ``open``."""
    return await start_relay()
