"""Entries that speak azbridge's preamble, and those that publish an HTTP server; against a real relay."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from managed import QUICK_PROBE, World, ask, closed_port, open_world, status, until
from origins import OK, Seen, Visitor, open_origin
from peers import HttpAnswer, WirePeer, http_request

from relaycore import ServerBusy, StreamClosed
from relaycore.edge.azbridge.local import request_port
from relaycore.edge.azbridge.preamble import PortRefused
from relaycore.edge.config.settings import (
    HcmConnection,
    HcmSettings,
    LimitSettings,
    OnDown,
    PolicySettings,
    PortBinding,
    Profile,
    Target,
)
from relaycore.edge.hcm.manager import Manager
from relaycore.net.engine import shared_engine


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as world:
        yield world


def azbridge(world: World, *ports: PortBinding, **options) -> HcmConnection:
    return world.connection(profile=Profile.AZBRIDGE, ports=ports, **options)


def events(manager: Manager, kind: str) -> list[str]:
    return [event.text for event in manager.recent_events() if event.kind == kind]


# azbridge ------------------------------------------------------------------------------------------------------------


async def test_each_port_leads_to_its_own_endpoint(world: World):
    """3.6, 8.5.2: the preamble, and then the bytes in C, half-close included."""

    async def greet(stream: trio.SocketStream) -> None:
        got = b""
        async for data in stream:
            got += data
        await stream.send_all(b"hello " + got)

    first, second = await world.endpoint(), await world.endpoint(greet)
    ports = PortBinding("one", (first.target,)), PortBinding("two", (second.target,))
    async with world.serving(azbridge(world, *ports)) as manager:
        engine = shared_engine()
        assert engine is not None
        before = engine.statistics().completed
        async with world.dial() as sender:
            await request_port(sender, "one")
            assert await ask(sender) == b"ping"
            [session] = manager.sessions()
            assert session.endpoint == str(first.target)
            assert (session.bytes_in, session.bytes_out) == (4, 4)
        async with world.dial() as sender:
            await request_port(sender, "two")
            await sender.send_all(b"you")
            await sender.send_eof()
            got = b""
            while data := await sender.receive_some():
                got += data
            assert got == b"hello you"
        await until(lambda: not status(manager).open)
        assert (status(manager).bytes_in, status(manager).bytes_out) == (7, 13)
        assert engine.statistics().completed >= before + 2


async def test_an_unknown_port_is_named_to_both_sides(world: World):
    """Complaint 12."""
    endpoint = await world.endpoint()
    ports = PortBinding("one", (endpoint.target,)), PortBinding("two", (endpoint.target,))
    async with world.serving(azbridge(world, *ports)) as manager:
        async with world.dial() as sender:
            with pytest.raises(PortRefused, match="unknown port name 'three'; offered: one, two"):
                await request_port(sender, "three")
        await until(lambda: status(manager).rejected == {"unknown-port": 1})
        assert "unknown port name 'three'" in events(manager, "refused")[0]


async def test_a_dead_endpoint_of_a_port_is_told_with_1011(world: World):
    """8.5.2: dial failure is a Close 1011 with text."""
    port = closed_port()
    async with world.serving(azbridge(world, PortBinding("one", (Target("127.0.0.1", port),)))) as manager:
        async with world.dial() as sender:
            with pytest.raises(PortRefused, match=f"1011: 127.0.0.1 port {port} refused"):
                await request_port(sender, "one")
        await until(lambda: status(manager).rejected == {"refused": 1})


async def test_a_port_that_leads_nowhere_is_refused_at_the_rendezvous(world: World):
    """8.3 Degraded, 8.5.1: with every endpoint Down a sender learns it in its handshake, as with raw."""
    first, second = await world.endpoint(), await world.endpoint()
    ports = PortBinding("one", (first.target,)), PortBinding("two", (second.target,))
    async with world.serving(azbridge(world, *ports, health=QUICK_PROBE, listeners=2)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up" and status(manager).listeners_here == 2)
        first.down()
        await until(lambda: status(manager).endpoint_leg == "Degraded")
        async with world.dial() as sender:  # it may have come for the other port
            await request_port(sender, "two")
            assert await ask(sender) == b"ping"
        second.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        with pytest.raises(ServerBusy, match=r"the endpoint is down: .*refused") as caught:
            async with world.dial():
                pass
        assert caught.value.http_status == 503
        assert status(manager).rejected == {"endpoint-down": 1}
        await world.up(first)
        await until(lambda: status(manager).endpoint_leg == "Degraded")
        async with world.dial() as sender:
            await request_port(sender, "one")
            assert await ask(sender) == b"ping"


async def test_a_lone_endpoint_that_is_down_is_refused_at_the_rendezvous(world: World):
    """8.5.1: the same for an azbridge entry that has an endpoint and no names for ports; ``ignore`` lets senders in."""
    endpoint = await world.endpoint()
    lone = replace(world.connection(endpoint.target, health=QUICK_PROBE), profile=Profile.AZBRIDGE)
    async with world.serving(lone) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        with pytest.raises(ServerBusy, match="the endpoint is down"):
            async with world.dial():
                pass
        manager.reload(HcmSettings((replace(lone, health=replace(QUICK_PROBE, on_down=OnDown.IGNORE)),)))
        async with world.dial() as sender:
            with pytest.raises(PortRefused, match="1011"):
                await request_port(sender, "1433")


async def test_ports_for_datagrams_are_never_down(world: World):
    """8.3: they are not probed, so a sender that may want one is let in, and learns about the other port by 1011."""
    endpoint = await world.endpoint()
    ports = PortBinding("one", (endpoint.target,)), PortBinding("53U", (Target("127.0.0.1", 53),), is_udp=True)
    async with world.serving(azbridge(world, *ports, health=QUICK_PROBE)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        async with world.dial() as sender:
            await request_port(sender, "53U", udp=True)
        async with world.dial() as sender:
            with pytest.raises(PortRefused, match="1011"):
                await request_port(sender, "one")


async def test_the_original_order_answers_first(world: World):
    """8.5.2: early_reply."""
    dead = PortBinding("one", (Target("127.0.0.1", closed_port()),))
    async with world.serving(azbridge(world, dead, early_reply=True)), world.dial() as sender:
        await request_port(sender, "one")
        with pytest.raises(StreamClosed) as caught:
            await sender.receive_some()
        assert caught.value.code == 1011


async def test_a_port_for_the_only_endpoint(world: World):
    """3.2: a lone port goes by any plain number."""
    endpoint = await world.endpoint()
    lone = replace(world.connection(endpoint.target), profile=Profile.AZBRIDGE)
    async with world.serving(lone), world.dial() as sender:
        await request_port(sender, "1433")
        assert await ask(sender) == b"ping"


async def test_datagrams(world: World):
    """3.7: one connection through the relay per peer, a length before each datagram."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))

        async def shout() -> None:
            while True:
                data, peer = await server.recvfrom(65_536)
                await server.sendto(data.upper(), peer)

        world.nursery.start_soon(shout)
        binding = PortBinding("53U", (Target(*server.getsockname()),), is_udp=True)
        async with world.serving(azbridge(world, binding)) as manager:
            async with world.dial() as sender:
                await request_port(sender, "53U", udp=True)
                await sender.send_all(b"\x00\x05hello")
                assert await sender.receive_some() == b"\x00\x05HELLO"
                assert manager.sessions()[0].endpoint == f"udp:{binding.targets[0]}"
            await until(lambda: not status(manager).open)
            assert (status(manager).bytes_in, status(manager).bytes_out) == (5, 5)
            async with world.dial() as sender:
                with pytest.raises(PortRefused):
                    await request_port(sender, "53U")


async def test_the_policy_holds_for_datagrams_too(world: World):
    binding = PortBinding("53U", (Target("127.0.0.1", 53),), is_udp=True)
    async with world.serving(azbridge(world, binding), policy=PolicySettings(allow=("*.corp.example:*",))) as manager:
        async with world.dial() as sender:
            with pytest.raises(PortRefused, match=r"127\.0\.0\.1:53"):
                await request_port(sender, "53U", udp=True)
        await until(lambda: status(manager).rejected == {"policy": 1})


async def test_limits_refuse_before_the_preamble(world: World):
    endpoint = await world.endpoint()
    entry = azbridge(world, PortBinding("one", (endpoint.target,)), limits=LimitSettings(max_open=1))
    async with world.serving(entry) as manager, world.dial() as sender:
        await request_port(sender, "one")
        with pytest.raises(Exception, match="1 connection is open"):
            async with world.dial():
                pass
        assert status(manager).rejected == {"overloaded": 1}


# http ----------------------------------------------------------------------------------------------------------------


async def fetch(world: World, target: str) -> HttpAnswer:
    peer = await WirePeer.open(world.relay.port)
    await peer.send(http_request("GET", target, ()))
    answer = await peer.read_http("GET")
    await peer.aclose()
    return answer


async def test_requests_reach_the_server(world: World):
    await world.relay.create_entity("web", requires_client_authorization=False)
    async with open_origin() as origin:
        entry = world.connection(path="web", profile=Profile.HTTP, http_url=origin.url)
        async with world.serving(entry) as manager:
            answer = await fetch(world, "/web/page?x=1")
            assert (answer.status, answer.body) == (200, b"ok")
            await until(lambda: status(manager).accepted == 1)
            assert origin.seen[0].target == "/page?x=1"
            assert status(manager).endpoint in origin.url
            manager.pause("orders")
            await until(lambda: not status(manager).listeners_here)
            manager.resume("orders")
            await until(lambda: status(manager).status == "Connected")
            assert (await fetch(world, "/web/")).status == 200
            await until(lambda: status(manager).accepted == 2)


async def test_a_server_that_the_policy_forbids(world: World):
    await world.relay.create_entity("web", requires_client_authorization=False)
    async with open_origin() as origin:
        entry = world.connection(path="web", profile=Profile.HTTP, http_url=origin.url)
        async with world.serving(entry) as manager:
            manager.reload(HcmSettings((entry,), policy=PolicySettings(deny=("127.0.0.0/8:*",))))
            answer = await fetch(world, "/web/")
            assert answer.status == 403
            assert b"127.0.0.0/8:*" in answer.body
            assert status(manager).rejected == {"policy": 1}
            assert not origin.seen


class TwoAddresses(trio.abc.HostnameResolver):
    """Every name leads to 127.0.0.2 and 127.0.0.1, the first one first."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        await trio.lowlevel.checkpoint()
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (address, int(port))) for address in ("127.0.0.2", "127.0.0.1")]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def two_addresses() -> AsyncIterator[None]:
    before = trio.socket.set_custom_hostname_resolver(TwoAddresses())
    yield
    trio.socket.set_custom_hostname_resolver(before)


async def test_of_a_servers_addresses_only_those_are_dialled_that_the_policy_allows(world: World, two_addresses: None):
    """8.4 [hcm.policy]: what is judged is what is dialled."""
    await world.relay.create_entity("web", requires_client_authorization=False)
    async with open_origin() as origin:
        [forbidden] = await trio.open_tcp_listeners(origin.port, host="127.0.0.2")
        came: list[trio.SocketStream] = []

        async def note(stream: trio.SocketStream) -> None:
            came.append(stream)
            await stream.aclose()

        world.nursery.start_soon(trio.serve_listeners, note, [forbidden])
        url = f"http://web.test:{origin.port}"
        entry = world.connection(path="web", profile=Profile.HTTP, http_url=url)
        async with world.serving(entry, policy=PolicySettings(deny=("127.0.0.2:*",))):
            answer = await fetch(world, "/web/")
            assert answer.status == 200, answer.body
        assert not came
        assert origin.seen


async def test_limits_bound_requests_too(world: World):
    """8.4 limits: what is one connection to a tunnel is one request to a server."""
    await world.relay.create_entity("web", requires_client_authorization=False)
    may_answer = trio.Event()

    async def wait(visitor: Visitor, seen: Seen) -> bytes:
        await may_answer.wait()
        return OK

    async with open_origin(wait) as origin:
        entry = world.connection(
            path="web", profile=Profile.HTTP, http_url=origin.url, limits=LimitSettings(max_open=1)
        )
        async with world.serving(entry) as manager, trio.open_nursery() as nursery:
            answers: list[int] = []

            async def ask_first() -> None:
                answers.append((await fetch(world, "/web/slow")).status)

            nursery.start_soon(ask_first)
            await until(lambda: bool(origin.seen))
            refused = await fetch(world, "/web/more")
            assert refused.status == 503
            assert b"1 connection is open" in refused.body
            assert status(manager).rejected == {"overloaded": 1}
            may_answer.set()
            await until(lambda: answers == [200])
            assert (await fetch(world, "/web/again")).status == 200
