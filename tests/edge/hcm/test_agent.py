"""One entry, from the relay's invitation to the endpoint's last byte: a real relay, real TCP endpoints."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from endpoints import echo, silent_port
from managed import QUICK_PROBE, World, ask, closed_port, open_world, reset, status, until
from peers import WirePeer, http_request

from relaycore import Rejected, ServerBusy, StreamLost
from relaycore.edge.config.settings import DialSettings, EndpointOrder, LimitSettings, PolicySettings, Target
from relaycore.edge.hcm import endpoint_leg
from relaycore.edge.spent import Spent
from relaycore.edge.target.health import EndpointHealth
from relaycore.errors import AuthorizationFailed, GatewayTimeout, Refused
from relaycore.net.engine import shared_engine


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as world:
        yield world


async def refusal_of(world: World, path: str = "orders") -> Refused:
    """What a sender is told."""
    with pytest.raises(Refused) as caught:
        async with world.dial(path):
            pass
    return caught.value


# Bytes ---------------------------------------------------------------------------------------------------------------


async def test_bytes_reach_the_endpoint_and_come_back(world: World):
    """8.5: raw bytes both ways, in C; counted while they go."""
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        engine = shared_engine()
        assert engine is not None
        before = engine.statistics().completed
        async with world.dial() as sender:
            assert await ask(sender, b"hello") == b"hello"
            found = status(manager)
            assert (found.status, found.open, found.accepted) == ("Connected", 1, 1)
            assert (found.bytes_in, found.bytes_out) == (5, 5)
            [session] = manager.sessions()
            assert session.endpoint == str(endpoint.target)
            assert session.sender.startswith("127.0.0.1:")
            assert (session.bytes_in, session.bytes_out) == (5, 5)
        await until(lambda: not status(manager).open)
        assert (status(manager).bytes_in, status(manager).bytes_out, status(manager).lost) == (5, 5, 0)
        await until(lambda: endpoint.open == 0)
        assert engine.statistics().completed >= before + 1


async def test_what_takes_time_is_added_up(world: World):
    """8.10: dials, rendezvous, and what rates cost; of what really happened."""
    endpoint = await world.endpoint()
    limits = LimitSettings(rate_in=20_000, rate_out=20_000, burst=1000)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager:
        assert status(manager).dials == status(manager).rendezvous == Spent()
        began = trio.current_time()
        for _ in range(2):
            async with world.dial() as sender:
                for _ in range(2):
                    assert await ask(sender, bytes(5000)) == bytes(5000)
        await until(lambda: not status(manager).open)
        took = trio.current_time() - began
        found = status(manager)
        assert found.dials.count == found.rendezvous.count == 2
        assert 0 < found.dials.seconds < took
        assert 0 < found.rendezvous.seconds < took
        assert 0 < found.throttled_in_s < took
        assert 0 < found.throttled_out_s < took
        assert 0 < found.token_expires_unix - time.time() <= 3600
        assert found.certificate_expires_unix is None  # without TLS
        assert (found.tokens_renewed, found.tokens_failed, found.reconnects) == (0, 0, {})


async def test_a_lot_of_bytes(world: World):
    blob = os.urandom(3_000_001)
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)), world.dial() as sender:
        got = bytearray()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await sender.send_all(blob)
                await sender.send_eof()

            nursery.start_soon(send)
            while data := await sender.receive_some():
                got += data
        assert bytes(got) == blob


# Half-close and reset ------------------------------------------------------------------------------------------------


async def test_the_reply_to_a_half_close_arrives(world: World):
    """8.5.3: the sender ends its direction, the endpoint reads the end and answers then."""

    async def answer_at_the_end(stream: trio.SocketStream) -> None:
        got = b""
        async for data in stream:
            got += data
        await stream.send_all(b"you said " + got)

    endpoint = await world.endpoint(answer_at_the_end)
    async with world.serving(world.connection(endpoint.target)), world.dial() as sender:
        await sender.send_all(b"a question")
        await sender.send_eof()
        got = b""
        while data := await sender.receive_some():
            got += data
        assert got == b"you said a question"


async def test_the_endpoint_ends_first_and_still_hears(world: World):
    """8.5.3: the endpoint's half-close is the sender's end of data; the other direction goes on."""
    heard = trio.Event()

    async def speak_first(stream: trio.SocketStream) -> None:
        await stream.send_all(b"I am done")
        await stream.send_eof()
        got = b""
        async for data in stream:
            got += data
        assert got == b"I am not"
        heard.set()

    endpoint = await world.endpoint(speak_first)
    async with world.serving(world.connection(endpoint.target)) as manager, world.dial() as sender:
        got = b""
        while data := await sender.receive_some():
            got += data
        assert got == b"I am done"
        assert status(manager).open == 1
        await sender.send_all(b"I am not")
        await sender.send_eof()
        await heard.wait()
        await until(lambda: not status(manager).open)
        assert status(manager).lost == 0


async def test_an_endpoint_that_resets_is_no_end_of_data(world: World):
    """8.5.3, spec 8.8: the sender sees a loss."""

    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        reset(stream)

    endpoint = await world.endpoint(break_off)
    async with world.serving(world.connection(endpoint.target)) as manager, world.dial() as sender:
        await sender.send_all(b"x")
        with pytest.raises(StreamLost):
            await sender.receive_some()
        await until(lambda: status(manager).lost == 1)
        assert [event.kind for event in manager.recent_events()].count("lost") == 1
        assert str(endpoint.target) in manager.recent_events()[-1].text


async def test_a_sender_that_is_cut_is_a_reset_at_the_endpoint(world: World):
    """8.5.3: and back: never an end of data."""
    seen: list[Exception] = []

    async def listen(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                pass
            seen.append(EOFError())
        except trio.BrokenResourceError as error:
            seen.append(error)

    endpoint = await world.endpoint(listen)
    async with world.serving(world.connection(endpoint.target)), world.dial() as sender:
        await sender.send_all(b"x")
        await until(lambda: endpoint.connections)
        await trio.aclose_forcefully(sender)
        await until(lambda: seen)
        assert isinstance(seen[0], trio.BrokenResourceError)


async def test_a_cut_is_a_reset_with_rates_too(world: World):
    seen: list[Exception] = []

    async def listen(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                pass
            seen.append(EOFError())
        except trio.BrokenResourceError as error:
            seen.append(error)

    endpoint = await world.endpoint(listen)
    limits = LimitSettings(rate_in=1_000_000, rate_out=1_000_000)
    async with world.serving(world.connection(endpoint.target, limits=limits)), world.dial() as sender:
        await sender.send_all(b"x")
        await until(lambda: endpoint.connections)
        await trio.aclose_forcefully(sender)
        await until(lambda: seen)
        assert isinstance(seen[0], trio.BrokenResourceError)


async def test_a_half_closed_connection_has_a_linger_limit(world: World):
    """8.5.3: silence that the second direction may keep once the first has ended."""

    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    endpoint = await world.endpoint(say_nothing)
    limits = LimitSettings(half_close_linger_s=0.1)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager, world.dial() as sender:
        await sender.send_eof()
        with pytest.raises(StreamLost):
            await sender.receive_some()
        await until(lambda: status(manager).lost == 1)


async def test_an_idle_connection_has_a_limit(world: World):
    endpoint = await world.endpoint()
    limits = LimitSettings(idle_timeout_s=0.1)
    async with world.serving(world.connection(endpoint.target, limits=limits)), world.dial() as sender:
        assert await ask(sender) == b"ping"
        with pytest.raises(StreamLost):
            await sender.receive_some()


# Refusals ------------------------------------------------------------------------------------------------------------


async def test_a_refused_dial_is_a_502_with_its_reason(world: World):
    """8.5.1: dialled before accepted: the sender learns the reason in its handshake."""
    port = closed_port()
    async with world.serving(world.connection(Target("127.0.0.1", port))) as manager:
        error = await refusal_of(world)
        assert isinstance(error, Rejected)
        assert error.http_status == 502
        assert f"127.0.0.1 port {port} refused the connection (ECONNREFUSED)" in error.message
        found = status(manager)
        assert found.rejected == {"refused": 1}
        assert found.accepted == 0
        assert "ECONNREFUSED" in found.last_error
        [event] = [event for event in manager.recent_events() if event.kind == "refused"]
        assert "ECONNREFUSED" in event.text


async def test_a_dial_without_an_answer_is_a_504(world: World):
    """8.5.1. A listener whose backlog is full drops what comes, as a firewall does."""
    with silent_port() as port:
        dial = DialSettings(timeout_s=0.3)
        async with world.serving(world.connection(Target("127.0.0.1", port), dial=dial)) as manager:
            error = await refusal_of(world)
            assert isinstance(error, GatewayTimeout)
            assert error.http_status == 504
            assert "does not answer within 0.3 s" in error.message
            assert status(manager).rejected == {"timeout": 1}


async def test_a_dial_ends_before_the_sender_has_waited_for_too_long(world: World, monkeypatch: pytest.MonkeyPatch):
    """8.5.1: total within the relay's 30 s, however long a dial may take by the settings."""
    monkeypatch.setattr("relaycore.edge.hcm.agent._ANSWER_S", 0.2)
    monkeypatch.setattr("relaycore.edge.hcm.agent._LEAST_DIAL_S", 0.1)
    with silent_port() as port:
        dial = DialSettings(timeout_s=29)
        async with world.serving(world.connection(Target("127.0.0.1", port), dial=dial)):
            error = await refusal_of(world)
            assert error.http_status == 504
            assert re.search(r"does not answer within 0\.[12]\d* s", error.message)


async def test_an_unknown_name_is_a_502(world: World):
    async with world.serving(world.connection(Target("no-such-host.invalid", 1433))):
        error = await refusal_of(world)
        assert error.http_status == 502
        assert "no-such-host.invalid" in error.message


async def test_what_the_policy_forbids_is_a_403(world: World):
    """8.4 [hcm.policy], 8.5.1."""
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    async with world.serving(connection, policy=PolicySettings(deny=("127.0.0.0/8:*",))) as manager:
        error = await refusal_of(world)
        assert isinstance(error, AuthorizationFailed)
        assert error.http_status == 403
        assert "127.0.0.0/8:*" in error.message
        assert endpoint.connections == 0
        assert status(manager).rejected == {"policy": 1}


async def test_too_many_are_a_503(world: World):
    """8.4 limits, 8.5.5."""
    endpoint = await world.endpoint()
    limits = LimitSettings(max_open=1)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            error = await refusal_of(world)
            assert isinstance(error, ServerBusy)
            assert "1 connection is open" in error.message
            assert status(manager).rejected == {"overloaded": 1}
            assert status(manager).limited == {"max_open": 1, "per_sender_open": 0}
        await until(lambda: not status(manager).open)
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


async def test_a_queue_waits_for_a_place(world: World):
    endpoint = await world.endpoint()
    limits = LimitSettings(max_open=1, queue=1, queue_timeout_s=10)
    async with (
        world.serving(world.connection(endpoint.target, limits=limits)) as manager,
        trio.open_nursery() as nursery,
    ):

        async def second() -> None:
            async with world.dial() as sender:
                assert await ask(sender, b"second") == b"second"

        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            nursery.start_soon(second)
            await until(lambda: status(manager).queued == 1)
            assert status(manager).open == 1


async def test_http_to_a_tunnel_is_a_501_that_says_so(world: World):
    """Complaint 16: HTTP to a hybrid connection behind a connection manager."""
    await world.relay.create_entity("open", requires_client_authorization=False)
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target, path="open")):
        peer = await WirePeer.open(world.relay.port)
        await peer.send(http_request("GET", "/open", ()))
        answer = await peer.read_http("GET")
        assert answer.status == 501
        assert b"TCP tunnel" in answer.body
        await peer.aclose()


# Several targets -----------------------------------------------------------------------------------------------------


async def test_the_next_target_takes_over(world: World):
    """8.4 order: failover."""
    first, second = await world.endpoint(), await world.endpoint()
    async with world.serving(world.connection(first.target, second.target)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        assert (first.connections, second.connections) == (1, 0)
        first.down()
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            assert manager.sessions()[0].endpoint == str(second.target)
        assert second.connections == 1


async def test_rates_are_kept(world: World):
    """8.5.5: half a mebibyte at 1 MiB/s, after a burst, takes its time; and the bytes are all there."""
    blob = os.urandom(400_000)

    async def give(stream: trio.SocketStream) -> None:
        await stream.send_all(blob)
        await stream.send_eof()

    endpoint = await world.endpoint(give)
    limits = LimitSettings(rate_out=1_000_000, burst=65_536)
    async with world.serving(world.connection(endpoint.target, limits=limits)), world.dial() as sender:
        began = trio.current_time()
        got = bytearray()
        while data := await sender.receive_some():
            got += data
        assert bytes(got) == blob
        assert trio.current_time() - began > 0.2


# What goes wrong -----------------------------------------------------------------------------------------------------


async def test_a_sender_that_leaves_before_it_is_accepted(world: World):
    """failures: the rendezvous is gone; what was dialled for it is closed again, and its place is free."""
    endpoint = await world.endpoint()
    limits = LimitSettings(max_open=1, queue=1, queue_timeout_s=10)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            with trio.move_on_after(0.3) as scope:
                async with world.dial():
                    pass
            assert scope.cancelled_caught
        await until(lambda: "left" in [event.kind for event in manager.recent_events()])
        await until(lambda: endpoint.connections == 2 and not endpoint.open)
        assert status(manager).rejected == {}
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


async def test_a_bug_of_ours_costs_one_sender(world: World, monkeypatch: pytest.MonkeyPatch):
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        with monkeypatch.context() as patched:

            async def fail(*_: object, **__: object) -> None:
                await trio.lowlevel.checkpoint()
                raise ZeroDivisionError("internals of ours")

            patched.setattr("relaycore.edge.hcm.agent.dial", fail)
            error = await refusal_of(world)
            assert error.http_status == 502
            assert "internals" not in error.message
            assert status(manager).rejected == {"internal": 1}
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


async def test_a_bug_of_ours_costs_no_other_entry(world: World, monkeypatch: pytest.MonkeyPatch):
    """An entry that fails is begun again, and the others do not notice."""
    await world.relay.create_entity("other")
    endpoint = await world.endpoint()
    other = world.connection(endpoint.target, name="other", path="other")
    async with world.serving(world.connection(endpoint.target), other) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"

        async def fail(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr("relaycore.edge.hcm.agent.Agent._register", fail)
            manager.restart("other")
            await until(lambda: "failed" in [event.kind for event in manager.recent_events()])
        assert await ask(sender) == b"ping"
        await until(lambda: status(manager, "other").status == "Connected")
        async with world.dial("other") as second:
            assert await ask(second) == b"ping"


async def test_senders_get_the_other_manager_when_one_refuses(world: World):
    """4.3.7, complaint 10: a 503 of one listener makes the relay ask another, before the sender hears anything."""
    endpoint = await world.endpoint()
    dead = world.connection(Target("127.0.0.1", closed_port()), health=QUICK_PROBE)
    async with world.serving(dead) as first, world.serving(world.connection(endpoint.target)):
        await until(lambda: status(first).endpoint_leg == "Down")
        for _ in range(10):
            async with world.dial() as sender:
                assert await ask(sender) == b"ping"
        assert status(first).relay_leg == "Connected"
        assert status(first).rejected["endpoint-down"] > 0


# Other endpoints -----------------------------------------------------------------------------------------------------


async def test_a_unix_socket(world: World, tmp_path: Path):
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(tmp_path / "s"))
    sock.listen(8)
    listener = trio.SocketListener(sock)
    world.nursery.start_soon(trio.serve_listeners, echo, [listener])
    async with world.serving(world.connection(Target(path=str(tmp_path / "s")))) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        assert status(manager).endpoint == f"unix:{tmp_path / 's'}"


async def test_the_endpoint_learns_who_calls(world: World):
    """8.4 proxy_protocol: the sender's address, as the relay saw it, comes first."""
    heads: list[bytes] = []

    async def read(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some()))
        await echo(stream)

    endpoint = await world.endpoint(read)
    entry = world.connection(endpoint.target, dial=DialSettings(proxy_protocol=1))
    async with world.serving(entry) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        [session] = manager.sessions()
        host, _, port = session.sender.rpartition(":")
        assert heads == [f"PROXY TCP4 {host} 127.0.0.1 {port} {endpoint.port}\r\n".encode()]


@pytest.mark.parametrize("order", [EndpointOrder.ROUND_ROBIN, EndpointOrder.LEAST_OPEN])
async def test_targets_share(world: World, order: EndpointOrder):
    endpoints = [await world.endpoint() for _ in range(2)]
    entry = world.connection(*(found.target for found in endpoints), dial=DialSettings(order=order))
    async with world.serving(entry), world.dial() as one, world.dial() as two:
        assert await ask(one) == await ask(two) == b"ping"
        assert [found.open for found in endpoints] == [1, 1]


async def test_probes_that_end_through_a_bug_are_begun_again(world: World, monkeypatch, caplog):
    """8.3: only a probe brings an endpoint back from Down."""
    monkeypatch.setattr(endpoint_leg, "_RESTART_S", 0.05)
    endpoint = await world.endpoint()
    endpoint.down()
    async with world.serving(world.connection(endpoint.target, health=QUICK_PROBE)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Down")
        with monkeypatch.context() as broken:
            broken.setattr(EndpointHealth, "check_now", None)
            await until(lambda: "begun again" in caplog.text)
        await world.up(endpoint)
        await until(lambda: status(manager).endpoint_leg == "Up")


async def test_a_sender_is_refused_once_however_many_channels_we_hold(world: World):
    """4.3.7: the relay offers it to each of them; the answer is the first one's, at once, and counts once."""
    endpoint = await world.endpoint()
    limits = LimitSettings(max_open=1)
    connection = world.connection(endpoint.target, limits=limits, listeners=4)
    async with world.serving(connection) as manager:
        await until(lambda: status(manager).listeners_here == 4)
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            error = await refusal_of(world)
            assert isinstance(error, ServerBusy)
            assert "1 connection is open" in error.message
            assert status(manager).rejected == {"overloaded": 1}
            await refusal_of(world)
            assert status(manager).rejected == {"overloaded": 2}
