"""The forwarder between a real relay and an origin that records what it sees, to the byte."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import ssl
from contextlib import suppress

import pytest
import trio
import trustme
from origins import OK, OriginServer, Seen, Visitor, hang_up_rudely, open_origin
from peers import LAST_CHUNK, WirePeer, http_chunk, http_head
from world import CancelAtStep, World, open_world

import relaycore
from relaycore.edge import origin as origin_module
from relaycore.edge.http_forward import HttpForwarder
from relaycore.edge.mapping import ForwardSettings
from relaycore.edge.origin import OriginConnection, parse_origin_url
from relaycore.net.errors import StreamLost
from relaycore.wire.http1 import Headers

CHUNKED = {"Transfer-Encoding": "chunked"}


# Requests ------------------------------------------------------------------------------------------------------------


async def test_what_the_origin_sees():
    """spec 9.3, 10: method, target, fields and body as sent; no framing but the body's own."""
    async with open_world() as world:
        fields = {"X-Odd": "a  b", "Accept": "*/*", "Authorization": "Bearer app"}
        answer = await world.ask("GET", "/web/a%20b/%2525/?x=1&sb-hc-token=t&y=%20", fields)
        assert (answer.status, answer.reason, answer.body) == (200, "OK", b"ok")
        (seen,) = world.origin.seen
        assert seen.line == "GET /a%20b/%2525/?x=1&y=%20 HTTP/1.1"
        via = ("Via", "1.1 relay.test")
        assert seen.fields == [("Host", "relay.test"), *fields.items(), via]


@pytest.mark.parametrize(
    ("method", "body", "framing"),
    [
        ("GET", None, []),
        ("DELETE", None, []),
        ("POST", None, [("Content-Length", "0")]),
        ("POST", b"", [("Content-Length", "0")]),
        ("PUT", b"x", [("Content-Length", "1")]),
        ("POST", b"x" * 60_000, [("Content-Length", "60000")]),
        ("POST", b"x" * 300_000, [("Transfer-Encoding", "chunked")]),
    ],
)
async def test_how_bodies_arrive(method: str, body: bytes | None, framing: list[tuple[str, str]]):
    """RFC 9112 6: with its length where the whole body is in hand, else in chunks."""
    async with open_world() as world:
        assert (await world.ask(method, body=body)).body == b"ok"
        (seen,) = world.origin.seen
        assert [pair for pair in seen.fields if pair[0] in ("Content-Length", "Transfer-Encoding")] == framing
        assert bytes(seen.body) == (body or b"")


async def test_a_chunked_body_that_is_empty():
    async with open_world() as world:
        await world.ask("POST", chunks=[])
        (seen,) = world.origin.seen
        assert (seen.values("Content-Length"), seen.values("Transfer-Encoding")) == (["0"], [])


async def test_a_slow_body_is_passed_on_as_it_comes():
    async with open_world() as world:
        arrived = trio.Event()

        async def script(visitor: Visitor, seen: Seen) -> bytes:
            seen.body += await visitor.chunk()
            arrived.set()
            await visitor.read_body(seen)
            return OK

        world.origin.script = script
        peer = await world.peer()
        await peer.send(http_head("POST", "/web", CHUNKED) + http_chunk(b"first"))
        await arrived.wait()
        await peer.send(http_chunk(b"second") + LAST_CHUNK)
        assert (await peer.read_http()).body == b"ok"
        assert world.origin.seen[0].body == b"firstsecond"


async def test_expect_is_answered_on_this_side():
    """spec 9.1: the relay answers Expect, and the origin sees none."""
    async with open_world() as world:
        peer = await world.peer()
        await peer.send(http_head("POST", "/web", {"Content-Length": "1", "Expect": "100-continue"}))
        assert (await peer.read_http_head()).status == 100
        await peer.send(b"x")
        assert (await peer.read_http()).body == b"ok"
        assert world.origin.seen[0].values("Expect") == []


# Answers -------------------------------------------------------------------------------------------------------------


def saying(answer: bytes):
    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        await visitor.read_body(seen)
        await visitor.send(answer)
        return None

    return script


@pytest.mark.parametrize(
    ("answer", "status", "reason", "body"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", 302, "Found", b""),
        (b"HTTP/1.1 404 No such \xe9\r\nContent-Length: 1\r\n\r\nx", 404, "No such \xe9", b"x"),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 200, "", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "No Content", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, "Not Modified", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", 200, "OK", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "OK", b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, "OK", b"old"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, "OK", b"ok"),
        (b"HTTP/1.1 502 Mine\r\nContent-Length: 0\r\n\r\n", 502, "Mine", b""),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", 999, "Odd", b""),
    ],
)
async def test_answers_pass_as_they_are(answer: bytes, status: int, reason: str, body: bytes):
    """spec 9.7, 9.8: status, reason and body pass; interim answers, trailers and the origin's framing end here."""
    async with open_world(saying(answer)) as world:
        found = await world.ask()
        assert (found.status, found.reason, found.body) == (status, reason, body)
        assert "x-t" not in found.headers
        assert len(world.origin.seen) == 1
        if status == 302:
            assert found.value("Location") == "http://elsewhere/"


async def test_fields_of_an_answer():
    """spec 10: cookies stay apart, hop-by-hop fields end here, everything else passes, compressed bodies too."""
    lines = [
        "HTTP/1.1 200 OK",
        "Set-Cookie: a=1; Path=/",
        "X-Two: 1",
        "Set-Cookie: b=2",
        "X-Two: 2",
        "Connection: close, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "Content-Encoding: gzip",
        "Content-Type: text/odd",
        "Content-Length: 3",
        "",
        "zip",
    ]
    async with open_world(saying("\r\n".join(lines).encode())) as world:
        found = await world.ask()
        assert found.headers["set-cookie"] == ["a=1; Path=/", "b=2"]
        assert found.headers["x-two"] == ["1, 2"]
        assert not {"x-hop", "keep-alive"} & found.headers.keys()
        assert (found.value("Content-Encoding"), found.value("Content-Type"), found.body) == (
            "gzip",
            "text/odd",
            b"zip",
        )
        await world.ask()
        assert world.origin.seen[1].values("Cookie") == []


async def test_head():
    """RFC 9110 9.3.2: the length is of a body that does not come."""
    async with open_world() as world:

        async def script(_: Visitor, seen: Seen) -> bytes:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-A: 1\r\n\r\n" if "HEAD" in seen.line else OK

        world.origin.script = script
        found = await world.ask("HEAD")
        assert (found.status, found.value("X-A"), found.body) == (200, "1", b"")
        assert (await world.ask()).body == b"ok"
        assert world.origin.connections == 1


async def test_a_streamed_answer_arrives_piece_by_piece():
    go_on = trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + http_chunk(b"data: 1\n\n"))
        await go_on.wait()
        return http_chunk(b"data: 2\n\n") + LAST_CHUNK

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("GET", "/web"))
        assert (await peer.read_http_head()).status == 200
        assert await peer.read_chunk() == b"data: 1\n\n"
        go_on.set()
        assert await peer.read_chunk() == b"data: 2\n\n"
        assert await peer.read_chunk() == b""


async def test_an_answer_may_come_before_the_body():
    """spec 9.6: once the response is complete the rest of the body is not wanted any more."""

    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        await visitor.chunk()
        await visitor.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await visitor.wait_gone()
        return None

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("POST", "/web", CHUNKED) + http_chunk(b"x" * 100_000))
        found = await peer.read_http()
        assert (found.status, found.body) == (413, b"no")
        await peer.aclose()
        await world.origin_is_left()
        assert world.forwarder.pool.idle == 0


async def test_ten_mebibytes_both_ways_at_once():
    async def echo(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while data := await visitor.chunk():
            await visitor.send(http_chunk(data))
        return LAST_CHUNK

    data = os.urandom(10 * 1_048_576)
    async with open_world(echo) as world:
        peer = await world.peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, http_head("POST", "/web", {"Content-Length": str(len(data))}) + data)
            found = await peer.read_http()
        assert hashlib.sha256(found.body).digest() == hashlib.sha256(data).digest()
        await world.settled()
        assert world.forwarder.pool.idle == 1


# An origin that fails ------------------------------------------------------------------------------------------------


async def test_nobody_is_there():
    with socket.socket() as holder:  # bound and not listening: the port is nobody else's
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}"
        async with open_world(url=url) as world:
            for body in (None, b"x", b"x" * 200_000):
                found = await world.ask("POST" if body else "GET", body=body)
                assert found.status == 502
                assert found.value("Content-Type") == "text/plain; charset=utf-8"
                assert f"Cannot reach {url}: connection refused" in found.body.decode()


async def test_a_connection_that_is_not_taken_in_time(monkeypatch: pytest.MonkeyPatch):
    async def never(*_: object) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(origin_module, "open_transport", never)
    async with open_world(connect_timeout=0.05) as world:
        found = await world.ask()
        assert found.status == 504
        assert b"did not take the connection within 0.05 s" in found.body


async def test_an_origin_that_does_not_answer():
    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.wait_gone()

    async with open_world(script, answer_timeout=0.05) as world:
        found = await world.ask()
        assert found.status == 504
        assert b"gave no answer within 0.05 s" in found.body
        await world.origin_is_left()


@pytest.mark.parametrize("is_rude", [False, True])
@pytest.mark.parametrize(
    ("answer", "body", "said"),
    [
        (b"", None, "gave no answer"),
        (b"", b"x" * 1_000_000, "gave no answer"),
        (b"HTTP/1.1 200 O", None, "broke its answer off"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n", b"x", "broke its answer off"),
    ],
)
async def test_an_origin_that_dies_before_its_answer(answer: bytes, body: bytes | None, said: str, is_rude: bool):
    async def script(visitor: Visitor, seen: Seen) -> None:
        if answer:
            await visitor.send(answer)
        if is_rude:
            await hang_up_rudely(visitor)

    async with open_world(script) as world:
        found = await world.ask("POST" if body else "GET", body=body)
        assert found.status == 502
        assert said.encode() in found.body or (is_rude and b"gave no answer" in found.body)
        assert len(world.origin.seen) == 1


async def test_an_answer_whose_head_no_relay_takes():
    """spec 9.7: JSON has quotation marks escaped, so that a head of 40 000 bytes becomes one of more than 65 536."""

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: " + b'"' * 40_000 + b"\r\n\r\n")

    async with open_world(script) as world:
        found = await world.ask()
        assert found.status == 502
        assert b"cannot be relayed: the head of a response" in found.body


@pytest.mark.parametrize("is_rude", [False, True])
@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
)
async def test_an_origin_that_dies_inside_its_answer(head: bytes, is_rude: bool):
    """spec 9.8: a body that is cut after the head was sent ends in a cut connection, not in a last chunk."""
    go_on = trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> None:
        data = b"x" * 100_000
        await visitor.send(head + (http_chunk(data) if b"chunked" in head else data))
        await go_on.wait()
        if is_rude:
            await hang_up_rudely(visitor)

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("GET", "/web"))
        assert (await peer.read_http_head()).status == 200
        assert await peer.read_chunk()
        go_on.set()
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await read_chunks(peer)
        await peer.aclose()
        await world.settled()


async def read_chunks(peer: WirePeer) -> None:
    while await peer.read_chunk():
        pass


async def test_an_origin_that_dies_inside_a_short_answer():
    """Nothing of it has left yet, so the sender is told."""
    async with open_world(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshor")) as world:
        found = await world.ask()
        assert found.status == 502
        assert b"broke its answer off" in found.body


WHOLE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n"


async def test_an_origin_that_dies_at_any_byte():
    """spec 9.8: what is not whole never looks whole."""

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(WHOLE[: int(seen.target[1:])])

    async with open_world(script) as world:
        for length in range(len(WHOLE) + 1):
            found = await world.ask("GET", f"/web/{length}")
            assert found.status == (200 if length == len(WHOLE) else 502)
        assert found.body == b"ok!"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_an_origin_that_does_not_speak_http(answer: bytes):
    async with open_world(saying(answer)) as world:
        found = await world.ask()
        assert found.status == 502
        assert world.origin.url.encode() in found.body
        await world.origin_is_left()
        assert world.forwarder.pool.idle == 0


async def test_an_early_refusal_is_heard_although_sending_failed():
    """The origin answers and hangs up without reading."""

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await visitor.stream.send_eof()
        await visitor.wait_gone()

    async with open_world(script) as world:
        peer = await world.peer()

        async def upload() -> None:
            with suppress(trio.BrokenResourceError):  # the relay does not want all of it either
                await peer.send(http_head("POST", "/web", CHUNKED) + http_chunk(b"x" * 3_000_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            found = await peer.read_http()
            nursery.cancel_scope.cancel()
        assert (found.status, found.body) == (401, b"no")


# Connections that are kept -------------------------------------------------------------------------------------------


async def test_connections_are_kept():
    async with open_world() as world:
        for method, body in [("GET", None), ("POST", b"x"), ("POST", b"x" * 200_000), ("GET", None)]:
            assert (await world.ask(method, body=body)).body == b"ok"
            await world.settled()
        assert world.origin.connections == 1
        assert world.forwarder.pool.idle == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        OK + b"rubbish",
    ],
)
async def test_connections_that_are_not_kept(answer: bytes):
    async with open_world(saying(answer)) as world:
        assert (await world.ask()).body == b"ok"
        await world.settled()
        assert world.forwarder.pool.idle == 0
        assert (await world.ask()).body == b"ok"


async def test_a_connection_that_was_closed_meanwhile_is_noticed():
    """Also for a request that could not be repeated."""

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.read_body(seen)
        await visitor.send(OK)

    async with open_world(script) as world:
        for _ in range(3):
            assert (await world.ask("POST", body=b"x")).body == b"ok"
            await world.settled()
            while world.origin.open:
                await trio.sleep(0.001)
        assert world.origin.connections == 3
        assert len(world.origin.seen) == 3


@pytest.mark.parametrize("is_rude", [False, True])
@pytest.mark.parametrize(
    ("method", "body", "is_repeated"),
    [
        ("GET", None, True),
        ("HEAD", None, True),
        ("OPTIONS", None, True),
        ("GET", b"x", False),
        ("POST", None, False),
        ("DELETE", None, False),
        ("PUT", b"x" * 100_000, False),
    ],
)
async def test_a_connection_that_dies_under_a_request(
    method: str, body: bytes | None, is_repeated: bool, is_rude: bool
):
    """RFC 9110 9.2.2: only what changes nothing is sent again, and only if nothing of an answer came."""

    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        if len(world.origin.seen) == 2:
            if is_rude:
                await hang_up_rudely(visitor)
            return None
        await visitor.read_body(seen)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async with open_world(script) as world:
        assert (await world.ask()).status == 200
        await world.settled()
        found = await world.ask(method, body=body)
        assert found.status == (200 if is_repeated else 502)
        assert len(world.origin.seen) == (3 if is_repeated else 2)
        assert world.origin.connections == (2 if is_repeated else 1)


async def test_a_request_of_which_nothing_has_left_is_sent_again(monkeypatch: pytest.MonkeyPatch):
    """Whatever it would change: the origin cannot have seen it."""
    send_nowait = OriginConnection._send_nowait
    refused = []

    def refuse_once(connection: OriginConnection, data: bytes) -> int:
        if connection.is_reused and not refused:
            refused.append(data)
            raise BrokenPipeError(32, "Broken pipe")
        return send_nowait(connection, data)

    async with open_world() as world:
        await world.ask()
        await world.settled()
        monkeypatch.setattr(OriginConnection, "_send_nowait", refuse_once)
        assert (await world.ask("POST", body=b"x")).body == b"ok"
        assert len(refused) == 1
        assert [seen.body for seen in world.origin.seen] == [b"", b"x"]
        assert world.origin.connections == 2


async def test_idle_connections_are_closed_in_time(mock_clock: trio.testing.MockClock):
    class Nobody:
        async def accept(self) -> None:
            await trio.sleep_forever()

    async with open_origin() as origin, trio.open_nursery() as nursery:
        forwarder = HttpForwarder(ForwardSettings(parse_origin_url(origin.url)), "web")
        nursery.start_soon(forwarder.run, Nobody())
        await forwarder.serve(FakeRequest())
        assert forwarder.pool.idle == 1
        mock_clock.jump(3)
        await trio.testing.wait_all_tasks_blocked()
        assert forwarder.pool.idle == 1
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert forwarder.pool.idle == 0
        nursery.cancel_scope.cancel()


async def test_a_fresh_connection_that_dies_is_not_tried_again():
    async def script(visitor: Visitor, seen: Seen) -> None:
        return None

    async with open_world(script) as world:
        assert (await world.ask()).status == 502
        assert len(world.origin.seen) == 1


async def test_half_an_answer_is_not_asked_for_again():
    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        if len(world.origin.seen) == 1:
            return OK
        await visitor.send(b"HTTP/1.1 ")
        return None

    async with open_world(script) as world:
        await world.ask()
        await world.settled()
        assert (await world.ask()).status == 502
        assert len(world.origin.seen) == 2


# A sender that leaves, and slow ones ---------------------------------------------------------------------------------


async def test_a_sender_that_leaves_inside_its_body():
    """The origin sees a cut connection, not a last chunk."""
    ended = trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.chunk()
        got_first.set()
        with pytest.raises(EOFError):
            await visitor.read_body(seen)
        ended.set()

    got_first = trio.Event()
    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("POST", "/web", CHUNKED) + http_chunk(b"x" * 100_000))
        await got_first.wait()
        await peer.aclose()
        await ended.wait()
        await world.origin_is_left()
        await world.settled()


async def test_a_sender_that_leaves_inside_the_answer():
    ended = trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + http_chunk(b"x"))
        await visitor.wait_gone()
        ended.set()

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("GET", "/web"))
        await peer.read_http_head()
        await peer.aclose()
        await ended.wait()
        await world.settled()


async def test_a_sender_that_leaves_while_the_origin_thinks():
    """spec 9.6, 13: where the request came by rendezvous, the relay tells."""
    thinking, ended = trio.Event(), trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> None:
        await visitor.read_body(seen)
        thinking.set()
        await visitor.wait_gone()
        ended.set()

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("POST", "/web", {"Content-Length": "100000"}) + b"x" * 100_000)
        await thinking.wait()
        await peer.aclose()
        await ended.wait()
        await world.settled()


async def test_a_slow_sender_holds_the_origin_back():
    """What nobody reads is not collected anywhere: the origin's sending stops."""
    sent = 0

    async def script(visitor: Visitor, seen: Seen) -> bytes:
        nonlocal sent
        await visitor.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 28))
        while sent < 1 << 28:
            await visitor.send(bytes(1 << 16))
            sent += 1 << 16
        return b""

    async with open_world(script) as world:
        peer = await world.peer()
        await peer.send(http_head("GET", "/web"))
        assert (await peer.read_http_head()).status == 200
        assert await standing_still(lambda: sent) < 1 << 26
        await peer.aclose()
        await world.settled()
        await world.origin_is_left()


async def test_a_slow_origin_holds_the_sender_back():
    async def script(visitor: Visitor, seen: Seen) -> bytes:
        await go_on.wait()
        await visitor.read_body(seen)
        return OK

    go_on = trio.Event()
    sent = 0
    total = 1 << 26

    async with open_world(script) as world:
        peer = await world.peer()

        async def upload() -> None:
            nonlocal sent
            await peer.send(http_head("POST", "/web", {"Content-Length": str(total)}))
            while sent < total:
                await peer.send(bytes(1 << 16))
                sent += 1 << 16

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            assert await standing_still(lambda: sent) < total
            go_on.set()
            assert (await peer.read_http()).body == b"ok"
        assert len(world.origin.seen[0].body) == total


async def standing_still(value) -> int:
    """Wait until a number has not changed for a while. Returns: the number."""
    last, since = value(), trio.current_time()
    while trio.current_time() < since + 0.3:
        await trio.sleep(0.01)
        if value() != last:
            last, since = value(), trio.current_time()
    return last


# Cancellation at every step ------------------------------------------------------------------------------------------


class FakeResponder:
    def __init__(self, request: FakeRequest) -> None:
        self.request = request

    async def __aenter__(self) -> FakeResponder:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await trio.lowlevel.checkpoint()  # noqa: ASYNC102 - may be cancelled, as the real one
        if kind is None:
            self.request.is_complete = True

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.request.answer += data


class FakeRequest:
    """What the forwarder uses of a request."""

    def __init__(self, method: str = "GET", pieces: tuple[bytes, ...] = (), *, fails: bool = False) -> None:
        self.method = method
        self.target = "/web/a"
        self.headers = Headers([("Host", "relay.test")])
        self.remote_endpoint = None
        self.has_body = bool(pieces)
        self.pieces = list(pieces)
        self.fails = fails
        self.answer = b""
        self.is_complete = False

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.pieces:
            return self.pieces.pop(0)
        if self.fails:
            raise StreamLost("gone")
        return b""

    async def wait_disconnected(self) -> None:
        await trio.sleep_forever()

    def respond(self, status: int, headers: object, *, reason: str) -> FakeResponder:
        return FakeResponder(self)


@pytest.mark.parametrize("pieces", [(), (b"x",), (b"x" * 40_000, b"y" * 40_000, b"z")])
@pytest.mark.parametrize("is_reused", [False, True])
async def test_cancelled_at_each_step_nothing_stays_open(pieces: tuple[bytes, ...], is_reused: bool):
    async with open_origin() as origin:
        for step in itertools.count(1):
            forwarder = HttpForwarder(ForwardSettings(parse_origin_url(origin.url)), "web")
            if is_reused:
                await forwarder.serve(FakeRequest())
                assert forwarder.pool.idle == 1
            request = FakeRequest("POST" if pieces else "GET", pieces)
            with trio.CancelScope() as scope:
                instrument = CancelAtStep(step, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await forwarder.serve(request)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert request.is_complete or scope.cancelled_caught
            await forwarder.pool.aclose()
            while origin.open:
                await trio.sleep(0.001)
            if not scope.cancelled_caught:
                break
        assert step > 5
        assert request.answer == b"ok"


async def test_a_sender_that_is_lost_in_a_short_body():
    """It is not sent to the origin as if it were whole."""
    async with open_origin() as origin:
        forwarder = HttpForwarder(ForwardSettings(parse_origin_url(origin.url)), "web")
        with pytest.raises(StreamLost):
            await forwarder.serve(FakeRequest("POST", (b"x",), fails=True))
        assert origin.seen == []


# Others --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusts", [True, False])
async def test_an_https_origin(trusts: bool):
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    (authority if trusts else trustme.CA()).configure_trust(client)

    async def serve(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, server, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            visitor = Visitor(stream, 1)
            while (seen := await visitor.head()) is not None:
                await visitor.read_body(seen)
                await stream.send_all(OK)
                connections.append(plain)

    connections: list[trio.SocketStream] = []
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        async with open_world(url=f"https://localhost:{port}", ssl_context=client) as world:
            for body in (None, b"x" * 300_000, None):
                found = await world.ask("POST", body=body)
                assert found.status == (200 if trusts else 502)
                if not trusts:
                    assert b"its certificate is not trusted" in found.body
                await world.settled()
            assert len(set(connections)) == (1 if trusts else 0)
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_an_ipv6_origin():
    server = OriginServer()
    async with trio.open_nursery() as nursery:
        try:
            (listener,) = await trio.open_tcp_listeners(0, host="::1")
        except OSError:
            pytest.skip("no IPv6 loopback")
        nursery.start_soon(trio.serve_listeners, server._serve_connection, [listener])
        url = f"http://[::1]:{listener.socket.getsockname()[1]}"
        async with open_world(url=url, host=url.removeprefix("http://")) as world:
            assert (await world.ask()).body == b"ok"
            assert server.seen[0].values("Host") == [url.removeprefix("http://")]
        nursery.cancel_scope.cancel()


async def test_several_share_the_load():
    """spec 11: with two listeners and 100 requests both get some."""
    async with open_world() as world, open_origin() as second:
        other = HttpForwarder(ForwardSettings(parse_origin_url(second.url)), "web")
        async with (
            relaycore.open_listener(
                world.relay.connection_string("web"), accept=other.accept, on_request=other.serve
            ) as listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(other.run, listener)
            for _ in range(100):
                await world.ask()
            nursery.cancel_scope.cancel()
        assert len(world.origin.seen) + len(second.seen) == 100
        assert world.origin.seen
        assert second.seen


async def test_queries_stay_out_of_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG", "relaycore.edge")
    async with open_world() as world:
        await world.ask("GET", "/web/a?password=secret")
        await world.settled()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "relaycore.edge"]
    assert line.startswith("- GET /a: 200 (")


async def test_many_at_once():
    async def script(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.read_body(seen)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(seen.target), seen.target.encode())

    async with open_world(script) as world:

        async def one(world: World, number: int) -> None:
            assert (await world.ask("POST", f"/web/{number}", body=b"x" * number * 2_000)).body == b"/%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, world, number)
        await world.settled()
        assert world.forwarder.pool.idle <= 32
