"""Two streams that are joined: sockets in the engine, others in Trio, with the same ends."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair

import relaycore
from relaycore.client.connection import Connection
from relaycore.net.engine import Engine, open_engine, shared_engine
from relaycore.net.errors import StreamClosed, StreamLost
from relaycore.net.session import Session
from relaycore.testing import Relay, open_relay

BLOB = os.urandom(1_500_001)


@contextlib.asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname())
        theirs = await listener.accept()
    async with ours, theirs:
        yield ours, theirs


@contextlib.asynccontextmanager
async def memory_pair() -> AsyncIterator[tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]]:
    one, other = memory_stream_pair()
    async with one, other:
        yield one, other


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    digest = hashlib.sha256()
    async for data in stream:
        digest.update(data)
    return digest.digest()


@pytest.mark.parametrize("make", [tcp_pair, memory_pair])
async def test_bytes_and_ends_of_both_directions_are_passed_on(
    make: Callable[[], contextlib.AbstractAsyncContextManager],
):
    """failures: reply after half-close lost by TCP programs."""
    result = []
    async with make() as (near_first, first), make() as (near_second, second), trio.open_nursery() as nursery:

        async def run() -> None:
            result.append(await relaycore.splice(near_first, near_second))

        nursery.start_soon(run)
        assert await exchange_after_end(first, second) == b"a reply to the end"
    assert result == [relaycore.Spliced(to_second=len(BLOB), to_first=18)]


async def exchange_after_end(first: trio.abc.HalfCloseableStream, second: trio.abc.HalfCloseableStream) -> bytes:
    async def question() -> None:
        await first.send_all(BLOB)
        await first.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(question)
        assert await receive_all(second) == hashlib.sha256(BLOB).digest()
        await second.send_all(b"a reply to the end")
        await second.send_eof()
    answer = b""
    async for data in first:
        answer += data
    return answer


async def test_sockets_run_in_the_engine_and_other_streams_do_not():
    async with open_engine(threads=1) as engine:
        async with (
            tcp_pair() as (near_first, first),
            tcp_pair() as (near_second, second),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(splice_with, near_first, near_second, engine)
            await exchange_after_end(first, second)
        assert engine.statistics().bytes_in == len(BLOB) + 18
        async with (
            memory_pair() as (near_first, first),
            tcp_pair() as (near_second, second),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(splice_with, near_first, near_second, engine)
            await exchange_after_end(first, second)
        assert engine.statistics().completed == 1
        assert engine.check_consistency() == []


async def splice_with(
    first: trio.abc.HalfCloseableStream, second: trio.abc.HalfCloseableStream, engine: Engine
) -> None:
    await relaycore.splice(first, second, engine=engine)


@pytest.mark.parametrize("make", [tcp_pair, memory_pair])
async def test_a_cancelled_splice_closes_both_and_lets_no_peer_see_an_end(make):
    async with make() as (near_first, first), make() as (near_second, second):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relaycore.splice, near_first, near_second)
            await first.send_all(b"x")
            assert await second.receive_some() == b"x"
            nursery.cancel_scope.cancel()
        for near, peer in ((near_first, first), (near_second, second)):
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()
            if make is tcp_pair:
                with pytest.raises(trio.BrokenResourceError):
                    await peer.receive_some()


async def test_a_lost_stream_resets_the_other_one():
    """spec 8.8: what was cut does not look finished, on the TCP side neither."""
    async with tcp_pair() as (near_first, first), tcp_pair() as (near_second, second), trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(StreamLost, match="the first stream was lost"):
                await relaycore.splice(near_first, near_second)

        nursery.start_soon(run)
        await first.send_all(b"half of some")
        assert await second.receive_some() == b"half of some"
        first.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await first.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await second.receive_some()


@pytest.mark.parametrize("make", [tcp_pair, memory_pair])
async def test_silence_has_a_limit_when_asked_for(make):
    async with make() as (near_first, _first), make() as (near_second, _second):
        with pytest.raises(StreamLost, match=r"both streams were silent for 0\.05 s"):
            await relaycore.splice(near_first, near_second, idle_timeout=0.05)
    async with make() as (near_first, first), make() as (near_second, _second):
        await first.send_eof()
        with pytest.raises(StreamLost, match=r"the first stream had ended, and the other was silent for 0\.05 s"):
            await relaycore.splice(near_first, near_second, half_closed_timeout=0.05)


async def test_without_a_limit_a_half_closed_splice_stays():
    async with tcp_pair() as (near_first, first), tcp_pair() as (near_second, second), trio.open_nursery() as nursery:
        nursery.start_soon(relaycore.splice, near_first, near_second)
        await first.send_eof()
        assert await second.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked(0.05)
        await second.send_all(b"still here")
        assert await first.receive_some() == b"still here"
        await second.send_eof()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("tcp")
        yield relay


@contextlib.asynccontextmanager
async def relayed(relay: Relay) -> AsyncIterator[tuple[Connection, Connection]]:
    text = relay.connection_string("tcp")
    async with (
        relaycore.open_listener(text) as listener,
        relaycore.open_stream(text) as sender,
        await listener.accept() as accepted,
    ):
        yield sender, accepted


async def test_a_tcp_stream_and_a_connection_through_the_relay(relay: Relay):
    """spec 8: raw bytes into messages and back, with half-close, all in C."""
    async with relayed(relay) as (sender, accepted), tcp_pair() as (near, client), tcp_pair() as (far, server):
        engine = shared_engine()
        assert engine is not None
        before = engine.statistics().completed
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relaycore.splice, near, sender)
            nursery.start_soon(relaycore.splice, accepted, far)
            assert await exchange_after_end(client, server) == b"a reply to the end"
        assert engine.statistics().completed == before + 2


async def test_a_connection_that_was_used_is_joined_as_a_stream(relay: Relay):
    async with relayed(relay) as (sender, accepted), tcp_pair() as (near, client):
        await accepted.send_all(b"a greeting")
        assert await sender.receive_some() == b"a greeting"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relaycore.splice, near, sender)
            assert await exchange_after_end(client, accepted) == b"a reply to the end"


@pytest.mark.parametrize("taken", [1, 5, 11])
async def test_a_connection_goes_into_the_engine_behind_its_preamble(relay: Relay, taken: int):
    """Whether the preamble ends with its message, inside it or before it: no byte is lost, and C carries the rest."""
    async with relayed(relay) as (sender, accepted), tcp_pair() as (near, client), tcp_pair() as (far, server):
        engine = shared_engine()
        assert engine is not None
        before = engine.statistics().completed
        accepted.expect_preamble()
        sender.expect_preamble()
        await sender.send_all(b"hello")
        await sender.send_all(b"again" + BLOB[:200_000])
        await accepted.send_all(b"yes")
        head = b""
        while len(head) < taken:
            head += await accepted.receive_some(taken - len(head))
        assert head == (b"helloagain" + BLOB[:1])[:taken]
        assert await sender.receive_some(3) == b"yes"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relaycore.splice, accepted, far)
            rest = (b"helloagain" + BLOB[:200_000])[taken:]
            received = b""
            while len(received) < len(rest):
                received += await server.receive_some(len(rest) - len(received))
            assert received == rest
            nursery.start_soon(relaycore.splice, near, sender)
            assert await exchange_after_end(client, server) == b"a reply to the end"
        assert engine.statistics().completed == before + 2


async def test_an_abnormal_close_is_a_reset_to_bytes(relay: Relay):
    """8.5: what a connection that broke off has brought is not shown as all there was; an orderly end still is one."""
    for code in (1000, 1001, 1011, 4000):
        async with relayed(relay) as (sender, accepted), tcp_pair() as (near, client), trio.open_nursery() as nursery:

            async def run(near: trio.SocketStream = near, sender: Connection = sender, code: int = code) -> None:
                with pytest.raises(StreamClosed) if code != 1000 else contextlib.nullcontext():
                    await relaycore.splice(near, sender)

            nursery.start_soon(run)
            await accepted.send_all(b"half of someth")
            assert await client.receive_some(14) == b"half of someth"
            nursery.start_soon(accepted.turn_away, code, 1.0)
            if code == 1000:
                assert await client.receive_some() == b""
                await client.send_eof()
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()


@pytest.mark.parametrize("make", [tcp_pair, memory_pair])
async def test_a_stream_is_not_joined_with_itself(make):
    async with make() as (near, far):
        with pytest.raises(ValueError, match="itself"):
            await relaycore.splice(near, near)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await far.receive_some(1) == b""


async def test_a_closed_socket_is_refused_and_the_other_one_closed():
    async with tcp_pair() as (closed, _), tcp_pair() as (near, far):
        await closed.aclose()
        for pair in ((near, closed), (closed, near)):
            with pytest.raises(trio.ClosedResourceError):
                await relaycore.splice(*pair)
            assert near.socket.fileno() == -1
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some(1)


async def test_who_still_holds_a_stream_cannot_close_its_descriptor_below_c():
    """failures: bytes that reach a stranger, whose descriptor has the number of a closed one."""
    async with (
        tcp_pair() as (near_first, first),
        tcp_pair() as (near_second, second),
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near_second.receive_some()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(relaycore.splice, near_first, near_second)
        await trio.testing.wait_all_tasks_blocked()
        await near_second.aclose()
        with contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(stranger) for stranger in socket.socketpair()]
            assert await exchange_after_end(first, second) == b"a reply to the end"
            for stranger in strangers:
                stranger.setblocking(False)
                with pytest.raises(BlockingIOError):
                    stranger.recv(1)


async def test_a_splice_that_gets_no_threads_closes_what_a_connection_stood_on(relay: Relay, monkeypatch):
    def refuse() -> None:
        raise MemoryError

    monkeypatch.setattr("relaycore.client.splice.shared_engine", refuse)
    async with relayed(relay) as (near, accepted), tcp_pair() as (other, far):
        with pytest.raises(MemoryError):
            await relaycore.splice(near, other)
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some(1)
        with pytest.raises(StreamLost):
            await accepted.receive_some()


async def test_infinity_is_a_limit_as_elsewhere_in_trio():
    async with tcp_pair() as (near_first, first), tcp_pair() as (near_second, second):
        await first.send_all(b"ping")
        await first.send_eof()
        await second.send_eof()
        endless = {"half_closed_timeout": math.inf, "idle_timeout": math.inf}
        spliced = await relaycore.splice(near_first, near_second, **endless)
    assert spliced.to_second == 4


async def test_the_shared_engine_ends_with_its_run():
    def threads() -> int:
        names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        return names.count("rc_engine\n")

    async def main() -> None:
        async with (
            tcp_pair() as (near_first, first),
            tcp_pair() as (near_second, second),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(relaycore.splice, near_first, near_second)
            await exchange_after_end(first, second)
        assert shared_engine() is shared_engine()
        assert threads() == before + len(os.sched_getaffinity(0))

    def run() -> None:
        nonlocal before
        before = threads()
        trio.run(main)
        assert threads() == before

    before = 0
    await trio.to_thread.run_sync(run)


async def test_what_is_under_way_can_be_counted(relay: Relay):
    sessions: list[Session] = []
    async with relayed(relay) as (sender, accepted), tcp_pair() as (near, client), trio.open_nursery() as nursery:
        nursery.start_soon(partial(relaycore.splice, near, sender, on_session=sessions.append))
        await client.send_all(b"there")
        assert await accepted.receive_some() == b"there"
        await accepted.send_all(b"and back")
        assert await client.receive_some() == b"and back"
        counts = sessions[0].statistics()
        assert (counts.to_listener.payload_bytes, counts.to_sender.payload_bytes) == (5, 8)
        await client.send_eof()
        await accepted.send_eof()
