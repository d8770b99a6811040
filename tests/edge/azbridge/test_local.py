"""The sender's role, with a listener played by the test, and both roles together through a relay."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from legs import connection_and_peer
from trio.testing import MockClock, wait_all_tasks_blocked

import relaycore
from relaycore.client.connection import Connection
from relaycore.client.sender import dial_stream
from relaycore.edge.azbridge.local import DatagramForward, PortRefused, request_port
from relaycore.edge.azbridge.preamble import RefusedWhy
from relaycore.edge.azbridge.remote import PortTable, serve
from relaycore.edge.config.settings import DialSettings, PortBinding, Target
from relaycore.edge.target.dial import Dialled, dial
from relaycore.errors import LocalProtocolError, RelayError
from relaycore.net.engine import shared_engine
from relaycore.net.errors import StreamLost
from relaycore.net.linger import cut, reset
from relaycore.net.websocket import WebSocketLeg
from relaycore.testing import Relay, open_relay
from relaycore.wire.frames import Binary, Close

# The preamble --------------------------------------------------------------------------------------------------------


async def answer(peer: WebSocketLeg, *answers: bytes | Close) -> list[bytes]:
    """Take a request, then say what is given."""
    request = b""
    while len(request) < 4 or len(request) < 4 + request[3]:
        request += await peer.receive_bytes()
    for item in answers:
        if isinstance(item, Close):
            await peer.send_close(item.code, item.reason)
        else:
            await peer.send_binary(item)
    return [request]


@pytest.mark.parametrize(
    ("name", "udp", "sent", "answered"),
    [
        ("test", False, "01 00 00 04 74 65 73 74", ["01 00 00"]),
        ("3434U", True, "01 00 01 05 33 34 33 34 55", ["01 00 01"]),
        ("test", False, "01 00 00 04 74 65 73 74", ["01", "00", "00"]),
        ("test", False, "01 00 00 04 74 65 73 74", ["", "01 00", "00"]),
    ],
)
async def test_the_golden_exchange(autojump_clock: MockClock, name, udp, sent, answered):
    connection, peer = connection_and_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: request_port(connection, name, udp=udp))
        assert await answer(peer, *map(bytes.fromhex, answered)) == [bytes.fromhex(sent)]


async def test_what_comes_in_one_message_with_the_yes_is_not_lost(autojump_clock: MockClock):
    connection, peer = connection_and_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, peer, b"\x01\x00\x00220 ready")
        await request_port(connection, "smtp")
    assert connection.is_detachable
    assert await connection.receive_some() == b"220 ready"


CLOSED = "port 'x': the listener closed without an answer; it most likely has no port of this name"


@pytest.mark.parametrize(
    ("udp", "answers", "why", "text"),
    [
        (False, [b"\0\0\0"], RefusedWhy.NOT_UNDERSTOOD, "port 'x' was refused with 00 00 00: the listener has no such"),
        (False, [b"\0\0\1"], RefusedWhy.IS_DATAGRAM, "port 'x' is for datagrams, and a stream was asked for"),
        (True, [b"\0\0\xff"], RefusedWhy.IS_STREAM, "port 'x' is a stream, and datagrams were asked for"),
        (False, [b"\1\0\1"], RefusedWhy.GARBLED, "port 'x' was answered with 01 00 01, which is none"),
        (True, [b"\1\0\0"], RefusedWhy.GARBLED, "port 'x' was answered with 01 00 00, which is none"),
        (False, [b"HTTP"], RefusedWhy.GARBLED, "port 'x' was answered with 48 54 54, which is none"),
        (False, [Close(1000)], RefusedWhy.CLOSED, CLOSED),
        (False, [Close(None)], RefusedWhy.CLOSED, CLOSED),
        (False, [Close(1000, "Shutdown")], RefusedWhy.CLOSED, CLOSED),
        (False, [b"\1", Close(1000, "bye")], RefusedWhy.CLOSED, CLOSED.replace("answer;", "answer (bye);")),
        (
            False,
            [Close(1000, "unknown port name 'x'; offered: a, b")],
            RefusedWhy.UNKNOWN_PORT,
            "port 'x': unknown port name 'x'; offered: a, b",
        ),
        (
            False,
            [Close(1011, "db refused")],
            RefusedWhy.ENDPOINT,
            "port 'x': the listener closed with 1011: db refused",
        ),
        (False, [Close(1001)], RefusedWhy.CLOSED, "port 'x': the listener closed with 1001: no reason"),
    ],
)
async def test_every_no_is_understood(autojump_clock: MockClock, udp, answers, why, text):
    connection, peer = connection_and_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, peer, *answers)
        with pytest.raises(PortRefused) as caught:
            await request_port(connection, "x", udp=udp)
    assert caught.value.why is why
    assert caught.value.text.startswith(text)
    assert caught.value.http_status == why.http_status


async def test_a_loss_is_no_refusal_and_a_long_name_is_not_sent(autojump_clock: MockClock):
    connection, peer = connection_and_peer()
    with pytest.raises(LocalProtocolError):
        await request_port(connection, "x" * 256)
    await peer.aclose()
    with pytest.raises(StreamLost):
        await request_port(connection, "x")


# A UDP socket whose listeners are played ------------------------------------------------------------------------------


@dataclass
class Local:
    """A forward, and clients that send to it."""

    forward: DatagramForward
    address: tuple[str, int]
    failures: list[str]


@contextlib.asynccontextmanager
async def forwarding(open_one: Callable[[], Awaitable[Connection]], **options) -> AsyncIterator[Local]:
    failures: list[str] = []
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))
        forward = DatagramForward(socket, open_one, on_failure=lambda _, error: failures.append(str(error)), **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward.run)
            yield Local(forward, socket.getsockname(), failures)
            nursery.cancel_scope.cancel()


async def client_of(local: Local) -> trio.socket.SocketType:
    socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await socket.connect(local.address)
    return socket


class Listeners:
    """Gives out connections, and keeps their other ends."""

    def __init__(self) -> None:
        self.peers: list[WebSocketLeg] = []
        self.refusals: list[RelayError] = []

    async def open_one(self) -> Connection:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop()
        connection, peer = connection_and_peer()
        self.peers.append(peer)
        return connection

    async def peer(self, index: int) -> WebSocketLeg:
        while len(self.peers) <= index:
            await trio.sleep(0.001)
        return self.peers[index]


async def test_each_datagram_is_one_message_and_split_ones_are_put_together():
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as client:
            for size in (0, 1, 512, 65_507):
                await client.send(b"q" * size)
                peer = await listeners.peer(0)
                assert await peer.receive() == Binary(size.to_bytes(2, "big") + b"q" * size)
                reply = size.to_bytes(2, "big") + b"r" * size
                await peer.send_binary(reply[:1])
                await peer.send_binary(reply[1:])
                assert await client.recv(65_536) == b"r" * size
            await wait_all_tasks_blocked()
            statistics = local.forward.statistics()
            assert (statistics.to_relay_bytes, statistics.from_relay_bytes) == (66_020, 66_020)
            assert (statistics.peers, statistics.dropped, statistics.failures) == (1, 0, 0)


async def test_each_peer_has_its_own_connection_and_its_own_answers():
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(await client_of(local)) for _ in range(5)]
            for index, client in enumerate(clients):
                await client.send(b"%d" % index)
                assert await (await listeners.peer(index)).receive() == Binary(b"\0\x01%d" % index)
            for index in reversed(range(5)):
                await listeners.peers[index].send_binary(b"\0\x02r%d" % index)
                assert await clients[index].recv(100) == b"r%d" % index
            assert len(local.forward.peers) == 5


async def test_a_slow_dial_delays_nobody_else_and_keeps_what_came_meanwhile():
    listeners = Listeners()
    slow = trio.Event()

    async def open_one() -> Connection:
        if not listeners.peers:
            listeners.peers.append(None)
            await slow.wait()
            connection, listeners.peers[0] = connection_and_peer()
            return connection
        return await listeners.open_one()

    async with forwarding(open_one) as local:
        with await client_of(local) as first, await client_of(local) as second:
            await first.send(b"1")
            await first.send(b"2")
            while not listeners.peers:
                await trio.sleep(0.001)
            await second.send(b"3")
            assert await (await listeners.peer(1)).receive() == Binary(b"\0\x013")
            slow.set()
            while listeners.peers[0] is None:
                await trio.sleep(0.001)
            assert [await listeners.peers[0].receive() for _ in range(2)] == [Binary(b"\0\x011"), Binary(b"\0\x012")]


async def test_a_refused_preamble_ends_only_its_peer_which_may_come_again(autojump_clock: MockClock):
    listeners = Listeners()
    listeners.refusals.append(PortRefused(RefusedWhy.UNKNOWN_PORT, "port 'x': unknown"))
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as refused, await client_of(local) as served:
            await refused.send(b"1")
            while not local.failures:
                await trio.sleep(0.001)
            await served.send(b"2")
            assert await (await listeners.peer(0)).receive() == Binary(b"\0\x012")
            await refused.send(b"dropped, so soon after a failure")
            await trio.sleep(2)
            assert local.forward.statistics().dropped == 2
            await refused.send(b"3")
            assert await (await listeners.peer(1)).receive() == Binary(b"\0\x013")
            assert local.failures == ["port 'x': unknown"]
            assert local.forward.statistics().failures == 1


async def test_a_lost_connection_ends_only_its_peer(autojump_clock: MockClock):
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as first, await client_of(local) as second:
            for index, client in enumerate((first, second)):
                await client.send(b"x")
                await (await listeners.peer(index)).receive()
            await listeners.peers[0].aclose()
            while not local.failures:
                await trio.sleep(0.001)
            await second.send(b"y")
            assert await listeners.peers[1].receive() == Binary(b"\0\x01y")


async def test_a_listener_that_closes_ends_its_peer_without_a_failure(autojump_clock: MockClock):
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as client:
            await client.send(b"x")
            await (await listeners.peer(0)).receive()
            await listeners.peers[0].send_close(1000)
            assert isinstance(await listeners.peers[0].receive(), Close)
            await listeners.peers[0].aclose()
            while local.forward.peers:
                await trio.sleep(0.001)
            await client.send(b"y")
            assert await (await listeners.peer(1)).receive() == Binary(b"\0\x01y")
            assert local.failures == []


async def test_both_directions_that_fail_at_once_end_only_their_peer(autojump_clock: MockClock):
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as first, await client_of(local) as second:
            for index, client in enumerate((first, second)):
                await client.send(b"x")
                await (await listeners.peer(index)).receive()
            await listeners.peers[0].stream.send_all(b"\xff\xff\xff\xff")  # no frame of WebSocket
            await first.send(b"y")
            await listeners.peers[0].aclose()
            while not local.failures:
                await trio.sleep(0.001)
            await second.send(b"y")
            assert await listeners.peers[1].receive() == Binary(b"\0\x01y")
            assert len(local.failures) == 1


async def test_a_datagram_during_the_goodbyes_is_for_a_new_connection(autojump_clock: MockClock):
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as client:
            await client.send(b"x")
            await (await listeners.peer(0)).receive()
            await listeners.peers[0].send_close(1000)
            while local.forward.peers:
                await trio.sleep(0.001)
            await client.send(b"y")  # the first listener has not hung up yet
            assert await (await listeners.peer(1)).receive() == Binary(b"\0\x01y")


async def test_silence_ends_a_peer(autojump_clock: MockClock):
    listeners = Listeners()
    async with forwarding(listeners.open_one) as local:
        with await client_of(local) as client:
            await client.send(b"x")
            peer = await listeners.peer(0)
            await peer.receive()
            began = trio.current_time()
            await trio.sleep(200)
            await peer.send_binary(b"\0\x01y")
            assert await client.recv(100) == b"y"
            close = await peer.receive()
            assert isinstance(close, Close)
            assert trio.current_time() - began == pytest.approx(440, abs=1)


async def test_a_peer_whose_connection_takes_nothing_loses_what_finds_no_room(autojump_clock: MockClock):
    never = trio.Event()

    async def open_one() -> Connection:
        await never.wait()
        raise AssertionError

    async with forwarding(open_one) as local:
        with await client_of(local) as client:
            for _ in range(70):
                await client.send(b"x")
                await wait_all_tasks_blocked()
            assert local.forward.statistics().dropped == 6


# Both roles through a relay -------------------------------------------------------------------------------------------


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("bridge")
        yield relay


@contextlib.asynccontextmanager
async def remote_forwarder(relay: Relay, *bindings: PortBinding) -> AsyncIterator[list[BaseException]]:
    """Serves every sender with the ports given, as a manager would."""
    ended: list[BaseException] = []

    async def dial_one(binding: PortBinding) -> Dialled:
        return await dial(binding.targets, DialSettings(timeout_s=5))

    async def serve_one(connection: Connection) -> None:
        try:
            await serve(connection, PortTable(bindings), dial_one)
        except Exception as error:
            ended.append(error)

    async with relaycore.open_listener(relay.connection_string("bridge")) as listener, trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                nursery.start_soon(serve_one, await listener.accept())

        nursery.start_soon(accept)
        yield ended
        nursery.cancel_scope.cancel()


async def open_one(relay: Relay, port_name: str) -> Connection:
    """A connection for datagrams, as a forwarder opens it."""
    connection = await dial_stream(relay.connection_string("bridge"))
    try:
        await request_port(connection, port_name, udp=True)
    except PortRefused:
        await cut(connection)  # noqa: ASYNC120 - shields itself
        raise
    return connection


@contextlib.asynccontextmanager
async def dns_like_server() -> AsyncIterator[Target]:
    """Answers each query with its bytes in reverse."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))

        async def serve_queries() -> None:
            while True:
                query, address = await socket.recvfrom(65_536)
                await socket.sendto(query[::-1], address)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_queries)
            yield Target("127.0.0.1", socket.getsockname()[1])
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def through_the_relay(relay: Relay, port_name: str, *bindings: PortBinding) -> AsyncIterator[Local]:
    async with (
        remote_forwarder(relay, *bindings),
        forwarding(functools.partial(open_one, relay, port_name)) as local,
    ):
        yield local


@contextlib.asynccontextmanager
async def dns_through_the_relay(relay: Relay) -> AsyncIterator[Local]:
    async with (
        dns_like_server() as target,
        through_the_relay(relay, "53U", PortBinding("53U", (target,), is_udp=True)) as local,
    ):
        yield local


async def test_queries_of_all_sizes_through_both_roles(relay: Relay):
    async with dns_through_the_relay(relay) as local:
        with await client_of(local) as client:
            for size in (0, 1, 12, 512, 1_232, 4_096, 8_192, 65_000, 65_506, 65_507):
                query = os.urandom(size)
                await client.send(query)
                assert await client.recv(65_536) == query[::-1]


async def test_several_peers_at_once_through_both_roles(relay: Relay):
    async with dns_through_the_relay(relay) as local:

        async def ask() -> None:
            with await client_of(local) as client:
                for size in (20, 40, 60):
                    query = os.urandom(size)
                    await client.send(query)
                    assert await client.recv(65_536) == query[::-1]

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)
        assert local.forward.statistics().peers == 8


async def test_a_no_of_the_listener_reaches_the_sender_in_its_words(relay: Relay):
    target = Target("127.0.0.1", 9)
    async with through_the_relay(relay, "nope", PortBinding("a", (target,)), PortBinding("b", (target,))) as local:
        with await client_of(local) as client:
            await client.send(b"x")
            while not local.failures:
                await trio.sleep(0.001)
    assert local.failures == ["port 'nope': unknown port name 'nope'; offered: a, b"]


async def test_an_endpoint_that_refuses_is_named_to_the_sender(relay: Relay):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with (
        remote_forwarder(relay, PortBinding("tds", (Target("127.0.0.1", port),))),
        relaycore.open_stream(relay.connection_string("bridge")) as connection,
    ):
        with pytest.raises(PortRefused) as caught:
            await request_port(connection, "tds")
    assert caught.value.why is RefusedWhy.ENDPOINT
    assert f"127.0.0.1 port {port} refused the connection (ECONNREFUSED)" in caught.value.text


@contextlib.asynccontextmanager
async def tcp_through_the_relay(relay: Relay) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """A program's socket, and the endpoint's socket that its bytes arrive at."""
    [endpoint] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    [local] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    target = Target("127.0.0.1", endpoint.socket.getsockname()[1])
    async with endpoint, local, remote_forwarder(relay, PortBinding("tds", (target,))), trio.open_nursery() as nursery:
        client = await trio.open_tcp_stream(*local.socket.getsockname())
        near = await local.accept()
        connection = await dial_stream(relay.connection_string("bridge"))
        await request_port(connection, "tds")

        async def join() -> None:
            with contextlib.suppress(StreamLost):
                await relaycore.splice(near, connection)

        nursery.start_soon(join)
        async with client, await endpoint.accept() as server:
            yield client, server


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("client_first", [True, False])
@pytest.mark.parametrize("replies", [True, False])
async def test_each_end_of_data_passes_by_itself(relay: Relay, client_first: bool, replies: bool):
    async with tcp_through_the_relay(relay) as (client, server):
        first, second = (client, server) if client_first else (server, client)
        await first.send_all(b"question")
        await first.send_eof()
        assert await read_all(second) == b"question"
        if replies:
            for index in range(3):
                await second.send_all(b"%d" % index * 70_000)
        await second.send_eof()
        assert await read_all(first) == (b"0" * 70_000 + b"1" * 70_000 + b"2" * 70_000 if replies else b"")


async def test_both_ends_at_once(relay: Relay):
    async with tcp_through_the_relay(relay) as (client, server):
        for stream in (client, server):
            await stream.send_all(b"last words")
            await stream.send_eof()
        assert [await read_all(client), await read_all(server)] == [b"last words", b"last words"]


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reset_is_a_reset_at_the_other_end(relay: Relay, by_client: bool):
    async with tcp_through_the_relay(relay) as (client, server):
        gone, left = (client, server) if by_client else (server, client)
        await gone.send_all(b"x")
        assert await left.receive_some(1) == b"x"
        await reset(gone)
        with pytest.raises(trio.BrokenResourceError):
            await left.receive_some()


async def test_a_stream_through_both_roles_is_carried_by_c(relay: Relay):
    data = os.urandom(3_000_000)
    engine = shared_engine()
    assert engine is not None
    before = engine.statistics().completed
    async with tcp_through_the_relay(relay) as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        nursery.start_soon(send)
        assert await read_all(server) == data
        await server.send_eof()
        assert await read_all(client) == b""
        while engine.statistics().completed < before + 2:
            await trio.sleep(0.001)
    assert engine.statistics().completed == before + 2
