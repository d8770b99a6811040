"""The listener's role, with a sender played by the test: azbridge's bytes in, azbridge's bytes out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from legs import connection_and_peer
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from relaycore.edge.azbridge.preamble import PortRefused, RefusedWhy
from relaycore.edge.azbridge.remote import PortTable, Served, open_datagrams, serve
from relaycore.edge.config.settings import (
    DialSettings,
    HcmConnection,
    PolicySettings,
    PortBinding,
    RelaySettings,
    Target,
)
from relaycore.edge.target.dial import DialFailed
from relaycore.edge.target.policy import Policy
from relaycore.net.errors import StreamLost
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Binary, Close

TDS = PortBinding("tds", (Target("db.example", 1433),))
WEB = PortBinding("web", (Target("web.example", 80),))
DNS = PortBinding("53U", (Target("127.0.0.1", 53),), is_udp=True)


@dataclass
class Dialled:
    stream: trio.abc.HalfCloseableStream


@dataclass
class Run:
    """One call of `serve` and what came of it."""

    peer: WebSocketLeg
    endpoint: trio.abc.HalfCloseableStream
    dialled: list[PortBinding]
    result: Served | None = None
    error: BaseException | None = None
    is_over: bool = False

    async def wait_over(self) -> None:
        while not self.is_over:
            await trio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    *bindings: PortBinding,
    on_dial: Callable[[PortBinding], Awaitable[None]] | None = None,
    **options,
) -> AsyncIterator[Run]:
    connection, peer = connection_and_peer()
    near, far = memory_stream_pair()
    run = Run(peer, far, [])

    async def dial(binding: PortBinding) -> Dialled:
        await trio.lowlevel.checkpoint()
        run.dialled.append(binding)
        if on_dial is not None:
            await on_dial(binding)
        return Dialled(near)

    async def act() -> None:
        try:
            run.result = await serve(connection, PortTable(bindings), dial, **options)
        except Exception as error:
            run.error = error
        finally:
            run.is_over = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(act)
        yield run
        nursery.cancel_scope.cancel()


# Which port ----------------------------------------------------------------------------------------------------------


def test_ports_are_found_by_name_and_a_lone_one_by_any_number():
    several = PortTable([TDS, WEB])
    assert several.find("tds") is TDS
    assert several.find("1433") is None
    assert several.find("TDS") is None
    assert several.names == ("tds", "web")
    lone = PortTable([TDS])
    assert lone.find("4711") is TDS
    assert [lone.find(name) for name in ("", "x", "-1", "3434U", "٣")] == [None] * 5


def test_a_connection_without_ports_has_one_for_its_targets():
    relay = RelaySettings("", "sb://relay.example/")
    settings = HcmConnection("sql", relay, "sql", targets=(Target("db.example", 1433), Target("other.example", 1434)))
    assert PortTable.of(settings).find("1433") == PortBinding("1433", settings.targets)
    assert PortTable.of(HcmConnection("sql", relay, "sql")).names == ()
    assert PortTable.of(HcmConnection("sql", relay, "sql", ports=(TDS, WEB))).names == ("tds", "web")


# A stream ------------------------------------------------------------------------------------------------------------


async def test_the_golden_exchange_in_two_messages_and_bytes_both_ways(autojump_clock: MockClock):
    async with serving(TDS, PortBinding("test", TDS.targets)) as run:
        await run.peer.send_binary(bytes.fromhex("01 00 00 04"))
        await run.peer.send_binary(bytes.fromhex("74 65 73 74"))
        assert await run.peer.receive() == Binary(bytes.fromhex("01 00 00"))
        assert [binding.name for binding in run.dialled] == ["test"]
        await run.peer.send_binary(b"question")
        await run.peer.send_close(1000, "Shutdown")
        assert await run.endpoint.receive_some() == b"question"
        assert await run.endpoint.receive_some() == b""
        await run.endpoint.send_all(b"reply after the end")
        await run.endpoint.send_eof()
        assert await run.peer.receive() == Binary(b"reply after the end")
        assert isinstance(await run.peer.receive(), Close)
        await run.peer.aclose()
        await run.wait_over()
    assert run.result == Served(PortBinding("test", TDS.targets), to_endpoint=8, to_sender=19)


async def test_what_comes_in_one_message_with_the_request_is_not_lost(autojump_clock: MockClock):
    async with serving(TDS) as run:
        await run.peer.send_binary(bytes.fromhex("01 00 00 03 74 64 73") + b"already the question")
        assert await run.endpoint.receive_some() == b"already the question"


@pytest.mark.parametrize("early_reply", [False, True])
async def test_the_endpoint_is_dialled_before_the_yes_unless_it_is_to_be_early(
    autojump_clock: MockClock, early_reply: bool
):
    go_on = trio.Event()

    async def wait(_: PortBinding) -> None:
        await go_on.wait()

    async with serving(TDS, on_dial=wait, early_reply=early_reply) as run:
        await run.peer.send_binary(b"\x01\x00\x00\x03tds")
        with trio.move_on_after(1) as scope:
            assert await run.peer.receive() == Binary(b"\x01\x00\x00")
            assert early_reply
        assert scope.cancelled_caught is not early_reply
        await wait_all_tasks_blocked()
        assert run.dialled == [TDS]
        go_on.set()
        if not early_reply:
            assert await run.peer.receive() == Binary(b"\x01\x00\x00")
        await run.endpoint.send_all(b"220 ready")
        assert await run.peer.receive() == Binary(b"220 ready")


@pytest.mark.parametrize("early_reply", [False, True])
async def test_a_dial_that_fails_is_told_with_1011_and_the_words(autojump_clock: MockClock, early_reply: bool):
    async def fail(_: PortBinding) -> None:
        await trio.lowlevel.checkpoint()
        raise DialFailed(502, "db.example port 1433 refused the connection (ECONNREFUSED); " + "é" * 100, "refused")

    async with serving(TDS, on_dial=fail, early_reply=early_reply) as run:
        await run.peer.send_binary(b"\x01\x00\x00\x03tds")
        if early_reply:
            assert await run.peer.receive() == Binary(b"\x01\x00\x00")
        close = await run.peer.receive()
        assert isinstance(close, Close)
        assert close.code == 1011
        assert close.reason.startswith("db.example port 1433 refused the connection (ECONNREFUSED); ééé")
        assert len(close.reason.encode()) <= 123
        await run.wait_over()
    assert isinstance(run.error, DialFailed)


async def test_a_bug_while_dialling_is_told_without_words(autojump_clock: MockClock):
    async def fail(_: PortBinding) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("inner secrets")

    async with serving(TDS, on_dial=fail) as run:
        await run.peer.send_binary(b"\x01\x00\x00\x03tds")
        assert await run.peer.receive() == Close(1011, "")
        await run.wait_over()
    assert isinstance(run.error, RuntimeError)


# The ways to say no --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "answers", "why", "reason"),
    [
        ("00 00 00", ["00 00 00"], RefusedWhy.NOT_UNDERSTOOD, "no azbridge request begins with 00 00 00"),
        ("01 00 02", ["00 00 00"], RefusedWhy.NOT_UNDERSTOOD, "no azbridge request begins with 01 00 02"),
        ("47 45 54 20", ["00 00 00"], RefusedWhy.NOT_UNDERSTOOD, "no azbridge request begins with 47 45 54"),
        ("01 00 00 03 35 33 55", ["00 00 01"], RefusedWhy.IS_DATAGRAM, "port '53U' is for datagrams, not a stream"),
        ("01 00 01 03 74 64 73", ["00 00 ff"], RefusedWhy.IS_STREAM, "port 'tds' is a stream, not for datagrams"),
        ("01 00 00 01 78", [], RefusedWhy.UNKNOWN_PORT, "unknown port name 'x'; offered: tds, 53U"),
        ("01 00 00 00", [], RefusedWhy.UNKNOWN_PORT, "unknown port name ''; offered: tds, 53U"),
        ("01 00 00 01 ff", [], RefusedWhy.UNKNOWN_PORT, "unknown port name '�'; offered: tds, 53U"),
    ],
)
async def test_every_no(autojump_clock: MockClock, sent, answers, why, reason):
    async with serving(TDS, DNS) as run:
        await run.peer.send_binary(bytes.fromhex(sent))
        for answer in answers:
            assert await run.peer.receive() == Binary(bytes.fromhex(answer))
        assert await run.peer.receive() == Close(1000, reason)
        await run.wait_over()
    assert isinstance(run.error, PortRefused)
    assert (run.error.why, run.error.text, run.dialled) == (why, reason, [])


async def test_nothing_offered_is_said_so(autojump_clock: MockClock):
    async with serving() as run:
        await run.peer.send_binary(b"\x01\x00\x00\x01x")
        assert await run.peer.receive() == Close(1000, "unknown port name 'x'; none is offered")


@pytest.mark.parametrize(("sent", "part"), [(b"", "no"), (b"\x01\x00\x00\x04tes", "only part of its")])
async def test_a_sender_that_says_too_little_is_let_go(autojump_clock: MockClock, sent, part):
    async with serving(TDS, request_timeout=10.0) as run:
        began = trio.current_time()
        await run.peer.send_binary(sent)
        assert await run.peer.receive() == Close(1000, f"the sender sent {part} azbridge request within 10 s")
        assert trio.current_time() - began == pytest.approx(10)
        await run.wait_over()
    assert isinstance(run.error, PortRefused)
    assert run.error.why is RefusedWhy.NO_REQUEST
    async with serving(TDS) as run:
        await run.peer.send_binary(sent)
        await run.peer.send_close()
        await run.wait_over()
        assert str(run.error) == f"the sender sent {part} azbridge request and closed"


async def test_a_sender_that_is_lost_is_no_refusal(autojump_clock: MockClock):
    async with serving(TDS) as run:
        await run.peer.send_binary(b"\x01")
        await run.peer.aclose()
        await run.wait_over()
    assert isinstance(run.error, StreamLost)


async def test_a_sender_that_leaves_during_the_dial_leaves_no_endpoint_open(autojump_clock: MockClock):
    gone = trio.Event()

    async def wait(_: PortBinding) -> None:
        await gone.wait()

    async with serving(TDS, on_dial=wait) as run:
        await run.peer.send_binary(b"\x01\x00\x00\x03tds")
        await run.peer.aclose()
        gone.set()
        await run.wait_over()
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await run.endpoint.send_all(b"x")
    assert isinstance(run.error, StreamLost)


# Datagrams -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def udp_endpoint() -> AsyncIterator[tuple[trio.socket.SocketType, PortBinding]]:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))
        yield socket, PortBinding("53U", (Target("127.0.0.1", socket.getsockname()[1]),), is_udp=True)


async def test_datagrams_both_ways_each_in_one_message():
    async with udp_endpoint() as (socket, binding), serving(binding) as run:
        await run.peer.send_binary(b"\x01\x00\x01\x0353U")
        assert await run.peer.receive() == Binary(bytes.fromhex("01 00 01"))
        for size in (0, 1, 512, 65_507):
            await run.peer.send_binary(size.to_bytes(2, "big") + b"q" * size)
            query, address = await socket.recvfrom(65_536)
            assert query == b"q" * size
            await socket.sendto(b"r" * size, address)
            assert await run.peer.receive() == Binary(size.to_bytes(2, "big") + b"r" * size)
        await run.peer.send_close()
        assert isinstance(await run.peer.receive(), Close)
        await run.peer.aclose()
        await run.wait_over()
    assert run.result is not None
    assert run.result.datagrams is not None
    assert (run.result.datagrams.from_relay, run.result.datagrams.to_relay) == (4, 4)
    assert (run.result.to_endpoint, run.result.to_sender) == (66_020, 66_020)


async def test_datagrams_that_come_in_pieces_and_several_at_once_are_put_together():
    async with udp_endpoint() as (socket, binding), serving(binding) as run:
        for piece in (b"\x01\x00", b"\x01\x03", b"53", b"U\x00", b"\x03ab", b"c\x00\x00\x00\x01d\x00", b"\x01e"):
            await run.peer.send_binary(piece)
        assert [await socket.recv(100) for _ in range(4)] == [b"abc", b"", b"d", b"e"]


async def test_a_datagram_to_a_closed_port_is_lost_and_nothing_else():
    async with udp_endpoint() as (socket, binding), serving(binding) as run:
        port = socket.getsockname()[1]
        socket.close()
        await run.peer.send_binary(b"\x01\x00\x01\x0353U")
        assert await run.peer.receive() == Binary(bytes.fromhex("01 00 01"))
        for _ in range(3):
            await run.peer.send_binary(b"\x00\x01x")
            await trio.sleep(0.01)  # the system's word about the closed port
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as again:
            await again.bind(("127.0.0.1", port))
            await run.peer.send_binary(b"\x00\x05later")
            with trio.fail_after(5):
                while await again.recv(100) != b"later":
                    await run.peer.send_binary(b"\x00\x05later")
        assert not run.is_over


async def test_silence_ends_a_datagram_sender(autojump_clock: MockClock):
    async with udp_endpoint() as (_, binding), serving(binding) as run:
        await run.peer.send_binary(b"\x01\x00\x01\x0353U")
        assert await run.peer.receive() == Binary(bytes.fromhex("01 00 01"))
        began = trio.current_time()
        await trio.sleep(200)
        await run.peer.send_binary(b"\x00\x01x")
        await trio.sleep(200)
        assert not run.is_over
        assert isinstance(await run.peer.receive(), Close)
        assert trio.current_time() - began == pytest.approx(440)


async def test_a_datagram_longer_than_the_format_allows_is_dropped():
    with trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM) as socket:
        try:
            await socket.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        binding = PortBinding("53U", (Target("::1", socket.getsockname()[1]),), is_udp=True)
        async with serving(binding) as run:
            await run.peer.send_binary(b"\x01\x00\x01\x0353U\x00\x01q")
            _, address = await socket.recvfrom(100)
            await socket.sendto(bytes(65_508), address)
            await socket.sendto(b"short", address)
            assert await run.peer.receive() == Binary(bytes.fromhex("01 00 01"))
            assert await run.peer.receive() == Binary(b"\0\x05short")


async def test_a_length_that_no_datagram_has_ends_it(autojump_clock: MockClock):
    async with udp_endpoint() as (_, binding), serving(binding) as run:
        await run.peer.send_binary(b"\x01\x00\x01\x0353U\xff\xff")
        assert await run.peer.receive() == Binary(bytes.fromhex("01 00 01"))
        assert await run.peer.receive() == Close(1009, "a datagram of 65535 bytes, 65507 at most")
        await run.wait_over()
    assert "65535 bytes" in str(run.error)


async def test_a_udp_target_may_be_unknown_or_forbidden():
    with pytest.raises(DialFailed) as caught:
        await open_datagrams(PortBinding("x", (Target("no-such-name.invalid", 53),), is_udp=True))
    assert caught.value.kind == "unknown-name"
    policy = Policy(PolicySettings(deny=("127.0.0.0/8:*",)))
    with pytest.raises(DialFailed) as caught:
        await open_datagrams(DNS, DialSettings(), policy)
    assert caught.value.status == 403
    with await open_datagrams(DNS, DialSettings(source="127.0.0.9")) as socket:
        assert socket.getsockname()[0] == "127.0.0.9"
        assert socket.getpeername() == ("127.0.0.1", 53)
