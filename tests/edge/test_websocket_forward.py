"""WebSockets through the forwarder: handshakes as the origin decides, then messages, Closes and losses as they are."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from origins import Script, Seen, Visitor, accept_101, hang_up_rudely, open_origin
from peers import WirePeer, close_frame, frame
from world import CancelAtStep, World, open_world

import relaycore
from relaycore.client.invitation import Accept, IncomingConnection, Reject
from relaycore.edge.http_forward import HttpForwarder
from relaycore.edge.mapping import ForwardSettings
from relaycore.edge.origin import parse_origin_url
from relaycore.edge.websocket_forward import WebSocketForwarder
from relaycore.errors import EndpointNotFound, NoListener, Refused
from relaycore.net.errors import StreamLost
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Binary, Close, Ping, Text
from relaycore.wire.http1 import Headers

PLAIN_TARGET = "/web/chat"


def speaking(talk: Callable[[WebSocketLeg], Awaitable[None]], *fields: str, early: bytes = b"") -> Script:
    """An origin that accepts a WebSocket and then does as `talk` says."""

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(accept_101(seen, *fields) + early)
        await talk(WebSocketLeg(visitor.stream, role="server", early=bytes(visitor._buffer)))

    return script


async def echo(leg: WebSocketLeg) -> None:
    """Send each message back as it came, and the Close too."""
    while True:
        match await leg.receive():
            case Text(text):
                await leg.send_text(text)
            case Binary(data):
                await leg.send_binary(data)
            case Close(code, reason):
                await leg.send_close(code, reason)
                await leg.aclose()
                return


def stream_to(world: World, **options):
    return relaycore.open_stream(world.relay.connection_string("web"), **options)


async def settled(world: World) -> None:
    """Wait until neither the relay nor the origin has anything left of a session."""
    while world.relay.server.statistics().sessions or world.origin.open:
        await trio.sleep(0.001)


async def test_what_the_origin_sees_of_a_handshake():
    """spec 10: the sender's fields but those of the handshake, the mapped path, the query, the sub-protocols."""
    async with open_world(speaking(echo), adds_forwarded=True, base="/base") as world:
        fields = {"Cookie": "a=b", "Origin": "https://page.test"}
        async with stream_to(world, suffix="a b/c", query="x=%20", headers=fields, subprotocols=["p1", "p2"]) as stream:
            assert stream.subprotocol is None
            channel = stream.messages()
            for message in ("text ü", b"binary", "", b""):
                await channel.send(message)
                assert await channel.receive() == message
        (seen,) = world.origin.seen
        assert seen.line == "GET /base/a%20b/c?x=%20 HTTP/1.1"
        found = {name: value for name, value in seen.fields if not name.startswith("Sec-WebSocket-Key")}
        host = f"127.0.0.1:{world.relay.port}"
        assert found == {
            "Host": host,
            **fields,
            "Via": f"1.1 {host}",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": host,
            "X-Forwarded-Prefix": "/web",
            "X-Forwarded-For": "127.0.0.1",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "p1, p2",
        }
        await settled(world)


async def test_the_origin_chooses_the_sub_protocol():
    """spec 7.2: the one that the origin names is what the sender gets."""
    async with (
        open_world(speaking(echo, "Sec-WebSocket-Protocol: p2", "Set-Cookie: x=y")) as world,
        stream_to(world, subprotocols=["p1", "p2"]) as stream,
    ):
        assert stream.subprotocol == "p2"


async def test_a_web_page_s_own_address():
    """A plain path with an upgrade is served as a connect, so that pages find their WebSocket beside them."""
    async with open_world(speaking(echo)) as world:
        peer = await world.peer()
        assert (await peer.upgrade(PLAIN_TARGET + "?q=1", trailing=frame(1, b"early"))).status == 101
        assert await peer.read_message() == (1, b"early")
        assert world.origin.seen[0].target == "/chat?q=1"
        await peer.send(close_frame(4001, "bye"))
        got = await peer.read_frame()
        assert (got.opcode, got.payload) == (8, b"\x0f\xa1bye")


async def test_fragments_and_large_messages_keep_their_boundaries():
    """spec 8.1: message types and boundaries are preserved."""
    async with open_world(speaking(echo)) as world:
        peer = await world.peer()
        await peer.upgrade(PLAIN_TARGET)
        large = os.urandom(700_000)
        await peer.send(frame(2, b"a", fin=False) + frame(0, b"b", fin=False) + frame(0, b"c"))
        assert await peer.read_message() == (2, b"abc")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, frame(2, large) + frame(1, "ü".encode()))
            assert await peer.read_message() == (2, large)
            assert await peer.read_message() == (1, "ü".encode())


async def test_what_the_origin_says_with_its_101_is_not_lost():
    early = frame(1, b"hello", masked=False)
    async with open_world(speaking(echo, early=early)) as world, stream_to(world) as stream:
        assert await stream.messages().receive() == "hello"


async def test_half_close():
    """spec 8.7: one direction ends, the other stays open until its own Close."""

    async def collect(leg: WebSocketLeg) -> None:
        total = b""
        while data := await leg.receive_bytes():
            total += data
        assert leg.close_received == Close(1000, "Shutdown")
        await leg.send_binary(b"%d bytes" % len(total))
        await leg.send_close(1000, "done")
        with suppress(trio.BrokenResourceError):
            await leg.stream.receive_some()

    async with open_world(speaking(collect)) as world:
        async with stream_to(world) as stream:
            await stream.send_all(bytes(300_000))
            await stream.send_eof()
            assert b"".join([data async for data in stream]) == b"300000 bytes"
        await settled(world)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999, None])
async def test_close_codes_pass(code: int | None):
    """spec 8.7: code and reason verbatim, both ways; an empty Close stays empty."""
    reason = "" if code is None else "wörd"

    async def close(leg: WebSocketLeg) -> None:
        await leg.send_close(code, reason)
        assert await leg.receive() == Close(code, reason)
        await leg.stream.aclose()

    async with open_world(speaking(close)) as world:
        peer = await world.peer()
        await peer.upgrade(PLAIN_TARGET)
        got = await peer.read_frame()
        assert got.close_code == code
        await peer.send(close_frame(code, reason))
        await peer.aclose()
        await settled(world)


@pytest.mark.parametrize("is_rude", [False, True])
async def test_an_origin_that_dies_is_no_end_of_data(is_rude: bool):
    """spec 8.8: a connection that ends without a Close is aborted on the other side too."""

    async def die(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(accept_101(seen) + frame(2, b"half", masked=False, fin=False))
        if is_rude:
            await visitor.take(1)
            await hang_up_rudely(visitor)

    async with open_world(die) as world, stream_to(world) as stream:
        assert await stream.receive_some() == b"half"
        if is_rude:
            await stream.send_all(b"now")
        with pytest.raises(StreamLost, match=r"without a Close|lost"):
            await stream.receive_some()


async def test_a_sender_that_dies_is_no_end_of_data():
    died = trio.Event()

    async def watch(leg: WebSocketLeg) -> None:
        assert await leg.receive_bytes() == b"x"
        with pytest.raises(StreamLost):
            await leg.receive_bytes()
        died.set()

    async with open_world(speaking(watch)) as world:
        peer = await world.peer()
        await peer.upgrade(PLAIN_TARGET)
        await peer.send(frame(2, b"x"))
        peer.reset()
        await died.wait()
        await settled(world)


async def test_pings_are_answered_on_each_side():
    """spec 8.6: a Ping is answered where it comes in."""

    async def ping(leg: WebSocketLeg) -> None:
        await leg.stream.send_all(frame(9, b"there?", masked=False))
        while not isinstance(event := await leg.receive(), Ping) and getattr(event, "payload", None) != b"there?":
            pass
        await leg.send_text("answered")
        await echo(leg)

    async with open_world(speaking(ping)) as world, stream_to(world) as stream:
        assert await stream.messages().receive() == "answered"


async def test_slow_readers_hold_each_other_back():
    """spec 8.9: what nobody reads is not collected anywhere."""
    sent = 0

    async def flood(leg: WebSocketLeg) -> None:
        nonlocal sent
        while True:
            await leg.send_binary(bytes(65_536))
            sent += 65_536

    async with open_world(speaking(flood)) as world:
        peer = await world.peer()
        await peer.upgrade(PLAIN_TARGET)
        last = -1
        while last != sent:
            last = sent
            await trio.sleep(0.3)
        assert 0 < sent < 1 << 26
        peer.reset()
        await settled(world)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("HTTP/1.1 403 Not for you\r\nContent-Length: 4\r\n\r\nbody", 403, "Not for you"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", 404, "Not Found"),
        ("HTTP/1.1 503 Later\r\n\r\n", 503, "Later"),
        ("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", 502, "answered 302 Found"),
        ("HTTP/1.1 200 OK\r\n\r\n", 502, "answered 200 OK"),
        ("HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 502, "gave no valid answer"),
        ("rubbish\r\n\r\n", 502, "gave no valid answer"),
        ("HTTP/1.1 4", 502, "it closed the connection"),
        ("", 502, "it closed the connection"),
    ],
)
async def test_the_origin_s_refusal_is_the_sender_s(answer: str, status: int, words: str):
    """spec 7.3: exactly its status and its words; what a rejection cannot say is 502."""

    async def refuse(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(answer.encode())

    async with open_world(refuse) as world:
        peer = await world.peer()
        found = await peer.upgrade(PLAIN_TARGET)
        assert found.status == status
        assert words in found.reason
        await settled(world)


async def test_an_origin_that_is_not_there():
    async with open_world(url="http://127.0.0.1:1") as world:
        found = await (await world.peer()).upgrade(PLAIN_TARGET)
        assert (found.status, found.reason) == (502, "Cannot reach http://127.0.0.1:1: connection refused")


async def test_an_origin_that_does_not_answer(autojump_clock: trio.testing.MockClock):
    async def wait(visitor: Visitor, seen: Seen) -> None:
        await visitor.wait_gone()

    async with open_origin(wait) as origin:
        forwarder = forwarder_to(origin.url)
        decision = await forwarder.accept(incoming())
        assert isinstance(decision, Reject)
        assert (decision.status, decision.description) == (504, f"{origin.url} gave no answer within 8 s")
        while origin.open:
            await trio.sleep(0.1)


# Senders that never come, and twins ----------------------------------------------------------------------------------


def forwarder_to(url: str) -> HttpForwarder:
    return HttpForwarder(ForwardSettings(parse_origin_url(url)), "web")


def incoming(tracking_id: str = "t", target: str = "/web/a") -> IncomingConnection:
    return IncomingConnection(
        path="web",
        suffix="a",
        query="",
        headers=Headers([("Host", "relay.test")]),
        remote_endpoint=None,
        subprotocols=(),
        tracking_id=tracking_id,
        target=target,
    )


async def test_an_origin_whose_sender_never_comes_is_hung_up_on(autojump_clock: trio.testing.MockClock):
    async with open_origin(speaking(echo)) as origin:
        forwarder = forwarder_to(origin.url)
        assert await forwarder.accept(incoming()) == Accept(None)
        await trio.sleep(25)
        await forwarder._websockets.sweep()
        assert origin.open == 1
        await trio.sleep(10)
        await forwarder._websockets.sweep()
        while origin.open:
            await trio.sleep(0.01)


async def test_a_sender_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch):
    accept = WebSocketForwarder.accept

    async def accept_and_forget(self: WebSocketForwarder, *args: object) -> Accept | Reject:
        found = await accept(self, *args)
        await self.aclose()
        return found

    monkeypatch.setattr(WebSocketForwarder, "accept", accept_and_forget)
    async with open_world(speaking(echo)) as world:
        peer = await world.peer()
        assert (await peer.upgrade(PLAIN_TARGET)).status == 101
        assert (await peer.read_frame()).close_code == 1011


async def test_cancelled_at_each_step_a_handshake_leaves_nothing_open():
    async with open_origin(speaking(echo)) as origin:
        for step in itertools.count(1):
            forwarder = forwarder_to(origin.url)
            with trio.CancelScope() as scope:
                instrument = CancelAtStep(step, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await forwarder.accept(incoming())
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            await forwarder._websockets.aclose()
            while origin.open:
                await trio.sleep(0.001)
            if not scope.cancelled_caught:
                break
        assert step > 3


async def test_the_end_of_the_forwarder_hangs_up_on_all(autojump_clock: trio.testing.MockClock):
    async with open_origin(speaking(echo)) as origin:
        forwarder = forwarder_to(origin.url)
        await forwarder.accept(incoming())
        await forwarder._websockets.aclose()
        while origin.open:
            await trio.sleep(0.01)


async def test_senders_with_one_tracking_id_are_not_mixed_up():
    """The id is the sender's to choose, and may come twice at a time."""

    async def say_who(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(accept_101(seen))
        leg = WebSocketLeg(visitor.stream, role="server")
        await leg.send_text(seen.target)
        await echo(leg)

    identity = str(uuid.uuid4())
    async with open_world(say_who) as world:

        async def one(number: int) -> None:
            async with stream_to(world, suffix=str(number), tracking_id=identity) as stream:
                assert await stream.messages().receive() == f"/{number}"

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
        await settled(world)


async def test_requests_and_websockets_side_by_side():
    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        if not seen.values("Upgrade"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        await visitor.send(accept_101(seen))
        await echo(WebSocketLeg(visitor.stream, role="server"))
        return None

    async with open_world(script) as world:
        for _ in range(3):
            async with stream_to(world) as stream:
                assert (await world.ask()).body == b"ok"
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                assert (await world.ask()).body == b"ok"


async def test_the_end_of_the_forwarder_ends_its_connections():
    ended = trio.Event()

    async def watch(leg: WebSocketLeg) -> None:
        with suppress(StreamLost):
            await leg.receive()
        ended.set()

    async with open_world(speaking(watch)) as world:
        peer: WirePeer = await world.peer()
        await peer.upgrade(PLAIN_TARGET)
    await ended.wait()


async def test_without_a_forwarder_nobody_is_there():
    async with open_world() as world:
        await world.listener.aclose()
        with pytest.raises((NoListener, EndpointNotFound, Refused)):
            async with stream_to(world):
                pass
