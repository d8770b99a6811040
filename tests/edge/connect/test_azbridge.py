"""Forwards that speak azbridge's way, to a listener that does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from links import Link, address_of, echo, next_event, open_link, open_server, receive_all, running

import relaycore
from relaycore.edge.azbridge.remote import PortTable, serve
from relaycore.edge.config.settings import ListenAt, PortBinding, Profile, RetrySettings, Target
from relaycore.edge.connect.status import ForwardState
from relaycore.edge.target.dial import Dialled


async def dial(binding: PortBinding) -> Dialled:
    target = binding.targets[0]
    stream = await trio.open_tcp_stream(target.host, target.port)
    return Dialled(stream=stream, target=target, address=target.host, seconds=0.0)


@asynccontextmanager
async def bridge(link: Link, path: str, *ports: PortBinding) -> AsyncIterator[None]:
    """A listener with these ports."""
    async with (
        relaycore.open_listener(link.relay.connection_string(path)) as listener,
        trio.open_nursery() as nursery,
    ):

        async def accept() -> None:
            while True:
                nursery.start_soon(carry, await listener.accept())

        async def carry(connection: relaycore.Connection) -> None:
            with suppress(relaycore.RelayError):
                await serve(connection, PortTable(ports), dial)

        nursery.start_soon(accept)
        yield
        nursery.cancel_scope.cancel()


async def test_a_port_is_asked_for_by_name_or_by_its_number():
    async with open_link() as link, open_server(echo) as endpoint:
        await link.relay.create_entity("b")
        target = (Target(*endpoint),)
        named = link.forward("b", name="named", profile=Profile.AZBRIDGE, port_name="tds")
        numbered = link.forward("b", name="numbered", profile=Profile.AZBRIDGE)
        async with (
            bridge(link, "b", PortBinding("tds", target), PortBinding(str(numbered.port), target)),
            running(named, numbered) as forwarder,
        ):
            for name in ("named", "numbered"):
                async with await trio.open_tcp_stream(*address_of(forwarder, name)) as program:
                    await program.send_all(b"hello")
                    await program.send_eof()
                    assert await receive_all(program) == b"hello"


async def test_a_port_that_another_listener_has_is_found_by_trying_again():
    """manager 3.9: listeners of one hybrid connection may offer different ports; the wrong one closes."""
    async with open_link() as link, open_server(echo) as endpoint:
        await link.relay.create_entity("b")
        target = (Target(*endpoint),)
        forward = link.forward(
            "b", profile=Profile.AZBRIDGE, port_name="right", retry=RetrySettings(timeout_s=40.0, attempts=40)
        )
        async with (
            bridge(link, "b", PortBinding("right", target)),
            bridge(link, "b", PortBinding("other", target), PortBinding("more", target)),
            running(forward) as forwarder,
        ):
            for _ in range(6):
                async with await trio.open_tcp_stream(*address_of(forwarder, "b")) as program:
                    await program.send_all(b"hello")
                    await program.send_eof()
                    assert await receive_all(program) == b"hello"
            assert forwarder.status().forwards[0].refused == 0


async def test_an_unknown_port_is_named_with_what_there_is():
    """manager 6, row 12: a mismatch has words on the sender's side."""
    async with open_link() as link, open_server(echo) as endpoint:
        await link.relay.create_entity("b")
        target = (Target(*endpoint),)
        forward = link.forward("b", profile=Profile.AZBRIDGE, port_name="wrong", retry=RetrySettings(5.0, 1))
        async with (
            bridge(link, "b", PortBinding("one", target), PortBinding("two", target)),
            running(forward) as forwarder,
        ):
            events = forwarder.events()
            async with await trio.open_tcp_stream(*address_of(forwarder, "b")) as program:
                with pytest.raises(trio.BrokenResourceError):
                    await program.receive_some()
            text = (await next_event(events, "refused")).text
            assert all(word in text for word in ("'wrong'", "one", "two", "port_name")), text


async def test_datagrams_have_a_connection_for_each_local_peer():
    """manager 3.7: UDP, in both directions."""
    async with open_link() as link:
        await link.relay.create_entity("b")
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as server:
            await server.bind(("127.0.0.1", 0))
            forward = link.forward(
                "b", profile=Profile.AZBRIDGE, port_name="dns", listen=(ListenAt("udp", "127.0.0.1", 0),), port=27_072
            )
            async with (
                bridge(link, "b", PortBinding("dns", (Target(*server.getsockname()),), is_udp=True)),
                running(forward) as forwarder,
            ):
                assert forwarder.status().forwards[0].listen == ("udp:127.0.0.1:27072",)
                for number in range(3):
                    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as program:
                        await program.sendto(b"question %d" % number, ("127.0.0.1", 27_072))
                        question, peer = await server.recvfrom(100)
                        assert question == b"question %d" % number
                        await server.sendto(b"answer to " + question, peer)
                        assert await program.recv(100) == b"answer to " + question
                status = forwarder.status().forwards[0]
                assert (status.accepted, status.open, status.refused) == (3, 3, 0)
                assert status.bytes_out == 30


async def test_datagrams_are_not_for_raw_forwards():
    async with open_link() as link:
        forward = link.forward("raw", listen=(ListenAt("udp", "127.0.0.1", 27_073),))
        async with running(forward) as forwarder:
            [status] = forwarder.status().forwards
            assert status.state is ForwardState.FAILED
            assert 'profile = "azbridge"' in status.last_error


async def test_datagrams_that_cannot_be_carried_are_told_once_each():
    async with open_link() as link:
        forward = link.forward(
            "b",
            profile=Profile.AZBRIDGE,
            listen=(ListenAt("udp", "127.0.0.1", 27_074),),
            retry=RetrySettings(timeout_s=5.0, attempts=1),
        )
        async with running(forward) as forwarder:
            events = forwarder.events()
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as program:
                await program.sendto(b"x", ("127.0.0.1", 27_074))
                assert "404" in (await next_event(events, "refused")).text
            status = forwarder.status().forwards[0]
            assert (status.accepted, status.refused, status.lost) == (1, 1, 0)
