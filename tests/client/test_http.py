"""HTTP requests at a listener, against a relay that plays a script: which way they come, which way their responses go.

Each test has one relay on loopback. Where a deadline is concerned the clock jumps; nothing here sleeps for order.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import ssl
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

import relaycore
from relaycore import HttpRequest, HttpResponse, Listener, StreamLost
from relaycore.client.http import HttpHandler
from relaycore.client.http_exchange import RequestFailed, RequestHandler
from relaycore.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from relaycore.net.websocket import WebSocketLeg
from relaycore.testing.fake_relay import (
    FakeChannel,
    FakeRelay,
    FakeRequest,
    FakeResponse,
    open_fake_relay,
    receive_response,
)
from relaycore.wire.frames import Close
from relaycore.wire.messages import Request, Response, encode_request, encode_response

SIZES = [0, 1, 65_535, 65_536, 65_537, 10 * 1_048_576]
CONTROL_SIZES = [size for size in SIZES if size <= 65_536]


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    async with open_fake_relay() as relay:
        yield relay


@dataclass
class Side:
    """A listener that serves requests, and the relay's end of its control channel, which somebody reads."""

    relay: FakeRelay
    listener: Listener
    channel: FakeChannel

    async def ask(self, method: str = "GET", target: str = "/orders", body: bytes | None = None, **options) -> Request:
        request = self.relay.request(method, target, has_body=body is not None, **options)
        await self.channel.ask(request, body)
        return request

    async def answer(
        self, method: str = "GET", target: str = "/orders", body: bytes | None = None, **options
    ) -> FakeResponse:
        """Send a request on the control channel, and take the response from there."""
        return await self.channel.response(await self.ask(method, target, body, **options))

    async def hand_over(self, method: str = "POST", **options) -> tuple[Request, WebSocketLeg]:
        """Send a request by rendezvous, all but its body."""
        request = self.relay.request(method, has_body=True, **options)
        await self.channel.ask(self.relay.address_only(request))
        return request, await self.relay.hand_over(request)

    async def take_up(self) -> WebSocketLeg:
        """Accept the rendezvous of a response."""
        return await (await self.relay.next_request("request")).accept()

    async def is_well(self) -> None:
        """The listener still serves."""
        status = self.listener.status
        assert status.is_online
        assert status.registrations == 1
        request = await self.ask("HEAD", "/orders/well")
        assert (await self.channel.response(request)).head.requestId == request.id
        await self.all_done()

    async def all_done(self) -> None:
        """Wait until no request is under way."""
        while self.listener.status.requests_under_way:
            await trio.sleep(0.001)


@asynccontextmanager
async def serving(
    relay: FakeRelay, handler: HttpHandler | None = None, *, on_request: RequestHandler | None = None, **options
) -> AsyncIterator[Side]:
    async with trio.open_nursery() as nursery:
        channels: list[FakeChannel] = []
        registered = trio.Event()

        async def serve_channels() -> None:
            while True:
                request = await relay.next_request("listen")
                channels.append(FakeChannel(await request.accept()))
                nursery.start_soon(channels[-1].run)
                registered.set()
                if len(channels) == 1:
                    return

        nursery.start_soon(serve_channels)
        if handler is not None:
            listener = await nursery.start(partial(relaycore.serve_http, relay.connection_string(), handler, **options))
            await registered.wait()
            yield Side(relay, listener, channels[0])
            await listener.aclose()
        else:
            async with relaycore.open_listener(relay.connection_string(), on_request=on_request, **options) as listener:
                await registered.wait()
                yield Side(relay, listener, channels[0])
        nursery.cancel_scope.cancel()


async def finish(leg: WebSocketLeg) -> Close | None:
    """Be a relay that has all it wants: answer the listener's Close and hang up."""
    try:
        while leg.close_received is None:
            await leg.receive_piece()
        await leg.close()
    except trio.BrokenResourceError:
        await leg.aclose()
    return leg.close_received


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, {"X-Method": request.method}, request)


async def never(_: HttpRequest) -> None:
    await trio.sleep_forever()


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# What a handler sees -------------------------------------------------------------------------------------------------


async def test_everything_about_a_request_arrives(relay: FakeRelay):
    """spec 9.3: method, target, headers and sender, as the relay gives them."""
    seen: list[HttpRequest] = []

    async def note(request: HttpRequest) -> None:
        seen.append(request)

    async with serving(relay, note) as side:
        asked = await side.ask("PATCH", "/orders/a b/c%2Fd/?x=%20&&y", headers={"X-Name": "v1, v2"})
        answer = await side.channel.response(asked)
    assert (answer.head.statusCode, answer.head.statusDescription, answer.body) == (204, "No Content", None)
    (request,) = seen
    assert (request.method, request.target) == ("PATCH", "/orders/a b/c%2Fd/?x=%20&&y")
    assert (request.path, request.raw_suffix, request.suffix) == ("orders", "a b/c%2Fd/", "a b/c/d/")
    assert request.query == "x=%20&&y"
    assert request.headers.get("x-name") == "v1, v2"
    assert request.headers.get("host") == "127.0.0.1"
    assert request.remote_endpoint is not None
    assert request.remote_endpoint.address == "203.0.113.7"
    assert request.tracking_id == asked.id
    assert not request.has_body
    assert "PATCH" in repr(request)


@pytest.mark.parametrize(
    ("entity", "target", "raw", "text"),
    [
        ("orders", "/orders", "", ""),
        ("orders", "/orders/", "", ""),
        ("orders", "//orders/x", "x", "x"),
        ("a/b", "/a/b/c", "c", "c"),
        ("a/b", "/a%2Fb/c%20d", "c%20d", "c d"),
        ("orders", "/orders/%ff", "%ff", "\ufffd"),
        ("orders", "/orders//x", "/x", "/x"),
    ],
)
async def test_the_suffix_is_what_stands_behind_the_entity(entity: str, target: str, raw: str, text: str):
    """spec 3, 9.3: the target has the entity in front, with its slashes escaped or not."""
    seen: list[tuple[str, str]] = []

    async def note(request: HttpRequest) -> None:
        seen.append((request.raw_suffix, request.suffix))

    async with open_fake_relay() as relay, serving(relay, note, path=entity) as side:
        await side.answer("GET", target)
    assert seen == [(raw, text)]


@pytest.mark.parametrize("size", CONTROL_SIZES)
async def test_bodies_on_the_control_channel(relay: FakeRelay, size: int):
    """spec 9.2, 9.5, 9.7: up to 65 536 bytes in one binary message behind the text, in both directions."""
    data = os.urandom(size)
    async with serving(relay, echo) as side:
        answer = await side.answer("POST", body=data)
        assert answer.head.body is bool(data)
        assert (answer.body or b"") == data
        assert answer.head.responseHeaders == {"X-Method": "POST"}
        assert relay.connections == 1
        await side.all_done()
        assert side.listener.status.requests_served == 1


@pytest.mark.parametrize("size", SIZES)
async def test_bodies_by_rendezvous(relay: FakeRelay, size: int):
    """spec 9.2, 9.5, 9.6: address only, the request on the new connection, the response there too."""
    data = os.urandom(size)
    async with serving(relay, echo) as side, trio.open_nursery() as nursery:
        asked, leg = await side.hand_over()
        nursery.start_soon(leg.send_binary, data)
        answer = await receive_response(leg)
        assert answer.head.requestId == asked.id
        assert answer.head.statusCode == 200
        assert hashlib.sha256(answer.body or b"").digest() == hashlib.sha256(data).digest()
        close = await finish(leg)
        assert close is not None
        assert (close.code, close.reason) == (1000, "NormalClosure")
        await side.all_done()
        assert side.channel.responses_waiting == 0


@pytest.mark.parametrize("size", [65_537, 10 * 1_048_576])
async def test_long_responses_get_a_connection_of_their_own(relay: FakeRelay, size: int):
    """spec 9.6, 9.7: more than 65 536 bytes go by rendezvous, in fragments that end with FIN; then Close 1000."""
    data = os.urandom(size)

    async def answer_at_length(_: HttpRequest) -> bytes:
        return data

    async with serving(relay, answer_at_length) as side:
        asked = await side.ask()
        request = await relay.next_request("request")
        assert request.target == "/" + asked.address.partition("://")[2].partition("/")[2]
        assert "ServiceBusAuthorization" not in request.head.headers
        leg = await request.accept()
        answer = await receive_response(leg)
        assert answer.head.requestId == asked.id
        assert answer.body == data
        close = await finish(leg)
        assert close is not None
        assert close.code == 1000
        await side.all_done()
        assert side.channel.responses_waiting == 0


@pytest.mark.parametrize("way", ["control", "rendezvous"])
async def test_the_longest_head(relay: FakeRelay, way: str, caplog: pytest.LogCaptureFixture):
    """spec 6.2, 9.7: a text message of 65 536 bytes is the longest; one byte more is the handler's mistake."""

    async def answer(request: HttpRequest) -> HttpResponse:
        empty = Response(request.tracking_id, 200, "OK", {"X": ""}, False)
        return HttpResponse(200, {"X": "x" * (int(request.suffix) - len(encode_response(empty)))})

    async with serving(relay, answer) as side:
        for size, status in ((65_536, 200), (65_537, 500)):
            if way == "control":
                answered = await side.answer("GET", f"/orders/{size}")
            else:
                _, leg = await side.hand_over(target=f"/orders/{size}")
                answered = await receive_response(leg)
                await finish(leg)
            assert answered.head.statusCode == status
        await side.all_done()
        assert (side.listener.status.requests_served, side.listener.status.requests_failed) == (1, 1)
    assert len(problems(caplog)) == 1
    assert "at most 65536 bytes" in caplog.text


@pytest.mark.parametrize("method", ["text", "nothing"])
async def test_a_body_that_does_not_come(relay: FakeRelay, method: str, caplog: pytest.LogCaptureFixture):
    """spec 6.2: a body follows its request at once; a text message there costs that request and nothing else."""
    async with serving(relay, echo) as side:
        lost = relay.request("POST", has_body=True)
        await side.channel.leg.send_text(encode_request(lost))
        await side.channel.leg.send_ping(b"control frames may come between")
        if method == "nothing":
            await side.channel.leg.send_binary(b"late but there")
            assert (await side.channel.response(lost)).body == b"late but there"
        else:
            await side.is_well()
            assert side.listener.status.requests_failed == 1
            assert side.channel.responses_waiting == 0
    assert not problems(caplog)


async def test_a_body_without_a_request_is_ignored(relay: FakeRelay):
    async with serving(relay, echo) as side:
        await side.channel.leg.send_binary(b"whose?")
        await side.is_well()
        assert side.listener.status.messages_ignored == 1


async def test_who_reads_the_channel_waits_for_no_handler(relay: FakeRelay):
    """spec 9.2: one slow handler delays nobody else."""
    gate = trio.Event()

    async def wait_for_one(request: HttpRequest) -> str:
        if request.suffix == "slow":
            await gate.wait()
        return request.suffix

    async with serving(relay, wait_for_one) as side:
        slow = await side.ask("GET", "/orders/slow")
        for n in range(20):
            assert (await side.answer("GET", f"/orders/{n}")).body == str(n).encode()
        gate.set()
        assert (await side.channel.response(slow)).body == b"slow"


async def test_256_at_once_with_bodies_both_ways(relay: FakeRelay):
    """spec 9.7: responses come in any order, and each has its own body behind it."""
    everybody = trio.Event()
    bodies = {n: random.Random(n).randbytes(n * 64) for n in range(256)}
    inside = 0

    async def wait_for_all(request: HttpRequest) -> bytes:
        nonlocal inside
        inside += 1
        if inside == 256:
            everybody.set()
        await everybody.wait()
        return await request.read()

    async with serving(relay, wait_for_all) as side:
        asked = {n: await side.ask("POST", body=body) for n, body in bodies.items()}
        for n, request in asked.items():
            answer = await side.channel.response(request)
            assert (answer.body or b"") == bodies[n]
        await side.all_done()
        assert side.listener.status.requests_served == 256


# What a handler may return --------------------------------------------------------------------------------------------


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await trio.lowlevel.checkpoint()
        yield chunk


@pytest.mark.parametrize(
    ("found", "status", "headers", "body"),
    [
        (None, 204, {}, None),
        (b"bytes", 200, {}, b"bytes"),
        ("grün", 200, {"Content-Type": "text/plain; charset=utf-8"}, "grün".encode()),
        (HttpResponse(), 200, {}, None),
        (HttpResponse(299, body=bytearray(b"x")), 299, {}, b"x"),
        (HttpResponse(body="<p>", headers={"content-type": "text/html"}), 200, {"content-type": "text/html"}, b"<p>"),
        (HttpResponse(body="<p>", headers=[("Content-Type", "a/b")]), 200, {"Content-Type": "a/b"}, b"<p>"),
        (lambda: HttpResponse(body=pieces(b"a", b"", b"b")), 200, {}, b"ab"),
        (HttpResponse(headers={"Set-Cookie": ["a=1", "b=2"]}), 200, {"Set-Cookie": ["a=1", "b=2"]}, None),
        (HttpResponse(headers={"Set-Cookie": "a=1"}), 200, {"Set-Cookie": "a=1"}, None),
        (HttpResponse(headers=[("X-A", "1"), ("B", "a"), ("x-a", "2")]), 200, {"X-A": "1, 2", "B": "a"}, None),
        (HttpResponse(headers={"X-None": []}), 200, {}, None),
    ],
)  # fmt: skip
async def test_what_a_handler_may_return(
    relay: FakeRelay, found: object, status: int, headers: dict[str, object], body: bytes | None
):
    """spec 9.7, 10: values are strings, and only Set-Cookie is an array."""

    async def answer(_: HttpRequest) -> object:
        return found() if callable(found) else found

    async with serving(relay, answer) as side:
        answer_ = await side.answer()
        assert (answer_.head.statusCode, answer_.head.responseHeaders, answer_.body) == (status, headers, body)


@pytest.mark.parametrize("status", [200, 204, 205, 304, 306, 407, 418, 426, 450, 502, 504, 599, 999])
async def test_statuses_pass_with_their_reason(relay: FakeRelay, status: int):
    """spec 9.7: every status of the tests passes; the reason phrase verbatim, also an empty one."""

    async def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status, reason="" if request.suffix else "Very own")

    async with serving(relay, answer) as side:
        head = (await side.answer()).head
        assert (head.statusCode, head.statusDescription) == (status, "Very own")
        assert (await side.answer("GET", "/orders/x")).head.statusDescription == ""


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
@pytest.mark.parametrize("is_streaming", [False, True])
async def test_bodies_that_may_not_be_are_dropped(relay: FakeRelay, method: str, status: int, is_streaming: bool):
    """spec 9.7: for 204, 304 and HEAD there is no body, however long the handler's is."""
    data = b"x" * 100_000

    async def answer(_: HttpRequest) -> HttpResponse:
        return HttpResponse(status, {"X-A": "b"}, pieces(data, data) if is_streaming else data)

    async with serving(relay, answer) as side:
        found = await side.answer(method)
        assert (found.head.statusCode, found.head.body, found.body) == (status, False, None)
        assert found.head.responseHeaders == {"X-A": "b"}
        assert relay.connections == 1


async def test_flushing_an_answer_to_head_completes_it(relay: FakeRelay):
    async def answer(request: HttpRequest) -> None:
        async with request.respond(200) as response:
            await response.flush()
            await response.send_all(b"dropped")
            await response.flush()

    async with serving(relay, answer) as side:
        assert (await side.answer("HEAD")).body is None
        await side.all_done()
        assert side.listener.status.requests_served == 1


@pytest.mark.parametrize(
    "found",
    [
        42,
        HttpResponse(199),
        HttpResponse(1000),
        HttpResponse("200"),
        HttpResponse(200, {"X A": "b"}),
        HttpResponse(200, {"X-A": "b\r\nX-B: c"}),
        HttpResponse(200, {"X-A": "\u20ac"}),
        HttpResponse(200, {"X-A": 5}.items()),
        HttpResponse(200, [(b"X-A", b"b")]),
        HttpResponse(200, reason="a\nb"),
        HttpResponse(200, body=["no", "bytes"]),
        HttpResponse(200, body=5),
        lambda: HttpResponse(200, body=pieces("text")),
    ],
    ids=repr,
)
async def test_what_a_handler_may_not_return(relay: FakeRelay, found: object, caplog: pytest.LogCaptureFixture):
    """spec 12: an internal error is 500, and the log has the traceback. A header cannot smuggle another one (10)."""

    async def answer(_: HttpRequest) -> object:
        return found() if callable(found) else found

    async with serving(relay, answer) as side:
        asked = await side.ask()
        answered = await side.channel.response(asked)
        assert answered.head.statusCode == 500
        assert answered.body is not None
        assert asked.id.encode() in answered.body
        await side.is_well()
        assert side.listener.status.requests_failed == 2  # the other one is is_well()
    assert len(problems(caplog)) == 2


async def test_a_handler_that_raises(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """spec 12: 500 to the sender, without what went wrong; that is for the log."""

    async def fail(request: HttpRequest) -> None:
        if request.suffix != "well":
            raise ValueError("secret detail")

    async with serving(relay, fail) as side:
        answer = await side.answer()
        assert (answer.head.statusCode, answer.head.statusDescription) == (500, "Internal Server Error")
        assert answer.body is not None
        assert b"secret" not in answer.body
        await side.is_well()
        assert (side.listener.status.requests_failed, side.listener.status.requests_served) == (1, 1)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


async def test_an_adapter_that_is_not_to_blame(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """spec 12: its own status and words, and one line in the log."""

    async def fail(request: HttpRequest) -> None:
        async with request.respond(200) as response:
            await response.send_all(b"never seen")
            raise RequestFailed("nobody is at home", http_status=504)

    async with serving(relay, on_request=fail) as side:
        answer = await side.answer()
        assert answer.head.statusCode == 504
        assert (answer.body or b"").startswith(b"nobody is at home. TrackingId:")
    assert problems(caplog) == []


async def test_a_handler_that_raises_in_its_response(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """spec 9.5, 13: what has left cannot be taken back: the body stays unfinished, closed with 1011."""
    sent = trio.Event()

    async def fail(request: HttpRequest) -> None:
        if request.suffix == "well":
            return
        async with request.respond(200) as response:
            await response.send_all(b"x" * 70_000)
            sent.set()
            raise ValueError("half way")

    async with serving(relay, fail) as side:
        await side.ask()
        leg = await side.take_up()
        await sent.wait()
        with pytest.raises(EOFError, match="1011"):
            await receive_response(leg)
        await leg.close()
        await side.is_well()
        assert side.channel.responses_waiting == 0
    assert len(problems(caplog)) == 1


async def test_a_handler_that_raises_with_all_in_its_buffer(relay: FakeRelay):
    """Nothing has left, so the sender gets a proper 500."""

    async def fail(request: HttpRequest) -> None:
        async with request.respond(200) as response:
            await response.send_all(b"never seen")
            raise ValueError

    async with serving(relay, fail) as side:
        assert (await side.answer()).head.statusCode == 500


async def test_a_handler_that_raises_behind_its_response(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    async def fail(request: HttpRequest) -> None:
        async with request.respond(200) as response:
            await response.send_all(b"all of it")
        raise ValueError("too late")

    async with serving(relay, fail) as side:
        assert (await side.answer()).body == b"all of it"
        await side.all_done()
        assert side.listener.status.requests_served == 1
    assert len(problems(caplog)) == 1


async def respond_not_at_all(_: HttpRequest) -> None:
    await trio.lowlevel.checkpoint()


async def respond_in_part(request: HttpRequest) -> None:
    await request.respond(200).send_all(b"part")


@pytest.mark.parametrize("on_request", [respond_not_at_all, respond_in_part])
async def test_a_request_handler_that_forgets_to_answer(
    relay: FakeRelay, on_request: RequestHandler, caplog: pytest.LogCaptureFixture
):
    async with serving(relay, on_request=on_request) as side:
        assert (await side.answer()).head.statusCode == 500
    assert "without a complete response" in caplog.text


async def test_a_second_response_is_a_bug(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    async def answer(request: HttpRequest) -> str:
        async with request.respond(200) as response:
            await response.send_all(b"first")
        with pytest.raises(LocalProtocolError):
            request.respond(200)
        return "second"

    async with serving(relay, answer) as side:
        assert (await side.answer()).body == b"first"
    assert len(problems(caplog)) == 1


# The body ------------------------------------------------------------------------------------------------------------


async def test_the_body_is_a_stream(relay: FakeRelay):
    async def read(request: HttpRequest) -> bytes:
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                await request.receive_some(bad)
        with pytest.raises(TypeError):
            await request.receive_some("1")
        first = await request.receive_some(3)
        rest = b"".join([chunk async for chunk in request])
        assert await request.receive_some() == b""
        await request.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await request.receive_some()
        return first + b"|" + rest

    async with serving(relay, read) as side:
        assert (await side.answer("PUT", body=b"abcdef")).body == b"abc|def"
        _, leg = await side.hand_over("PUT")
        for piece, fin in ((b"ab", False), (b"cdef", False), (b"", True)):
            await leg.send_fragment(piece, fin=fin)
            await wait_all_tasks_blocked()
        assert (await receive_response(leg)).body == b"ab|cdef"
        await finish(leg)


async def test_two_tasks_may_not_read_one_body(relay: FakeRelay):
    async def read(request: HttpRequest) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.receive_some)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await request.receive_some()
            nursery.cancel_scope.cancel()
        assert await request.read() == b"nothing is lost"
        return "fine"

    async with serving(relay, read) as side:
        _, leg = await side.hand_over()
        await wait_all_tasks_blocked()
        await leg.send_binary(b"nothing is lost")
        assert (await receive_response(leg)).body == b"fine"
        await finish(leg)


@pytest.mark.parametrize("way", ["control", "rendezvous"])
async def test_a_body_that_is_too_long_to_read(relay: FakeRelay, way: str, caplog: pytest.LogCaptureFixture):
    """RFC 9110 15.5.14: 413, without a traceback, if the handler leaves it at that."""

    async def read(request: HttpRequest) -> None:
        with pytest.raises(RemoteProtocolError) as caught:
            await request.read(10)
        assert caught.value.http_status == 413
        raise caught.value

    async with serving(relay, read) as side:
        if way == "control":
            assert (await side.answer("POST", body=b"x" * 11)).head.statusCode == 413
        else:
            _, leg = await side.hand_over()
            await leg.send_binary(b"x" * 11)
            assert (await receive_response(leg)).head.statusCode == 413
            await finish(leg)
    assert not problems(caplog)


async def test_a_body_that_is_too_long_to_read_in_a_nursery(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """RFC 9110 15.5.14: 413 as well: the group around it is none of the handler's doing."""

    async def read(request: HttpRequest) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(trio.sleep_forever)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await request.read(10)

    async with serving(relay, read) as side:
        assert (await side.answer("POST", body=b"x" * 11)).head.statusCode == 413
    assert not problems(caplog)


async def test_two_failures_at_once_are_the_handler_s(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    async def fail(_: HttpRequest) -> None:
        raise ExceptionGroup("both", [RequestFailed("one"), RequestFailed("two")])

    async with serving(relay, on_request=fail) as side:
        assert (await side.answer()).head.statusCode == 500
    assert len(problems(caplog)) == 1


@pytest.mark.parametrize("code", [1000, None])
async def test_a_close_ends_a_body_that_has_begun(relay: FakeRelay, code: int | None):
    """spec 9.5: Close 1000, or without a code, behind a started body is its end."""
    got: list[bytes] = []

    async def read(request: HttpRequest) -> None:
        got.append(await request.read())
        got.append(await request.receive_some())

    async with serving(relay, read) as side:
        _, leg = await side.hand_over()
        await leg.send_fragment(b"all there is", fin=False)
        await leg.send_close(code)
        assert (await receive_response(leg)).head.statusCode == 204
        await finish(leg)
        await side.all_done()
        assert side.listener.status.requests_served == 1
    assert got == [b"all there is", b""]


async def cut_off(leg: WebSocketLeg) -> None:
    await trio.aclose_forcefully(leg.stream)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (True, lambda leg: leg.send_close(1001, "the sender is gone")),
        (True, lambda leg: leg.send_close(1011)),
        (True, cut_off),
        (True, lambda leg: leg.stream.send_all(b"\xff\xff\xff\xff")),
        (True, lambda leg: leg.send_fragment(b"", fin=False)),
        (False, lambda leg: leg.send_close(1000)),
        (False, lambda leg: leg.send_close(None)),
        (False, cut_off),
        (False, lambda leg: leg.send_text("a body is binary")),
    ],
    ids=[
        "1001",
        "1011",
        "cut",
        "garbage",
        "stall then cut",
        "1000 too early",
        "no code too early",
        "cut early",
        "text",
    ],
)
async def test_a_body_that_is_cut(relay: FakeRelay, begin: bool, end: Callable, caplog: pytest.LogCaptureFixture):
    """spec 9.5, 13: anything but 1000 inside a body, or its loss, is no end of it."""
    seen: list[object] = []

    async def read(request: HttpRequest) -> None:
        try:
            while data := await request.receive_some():
                seen.append(data)
            seen.append("end")
        except StreamLost:
            seen.append(request.is_disconnected)
            raise
        finally:
            done.set()

    done = trio.Event()
    async with serving(relay, on_request=read) as side:
        _, leg = await side.hand_over()
        if begin:
            await leg.send_fragment(b"begun", fin=False)
        await end(leg)
        if not done.is_set():
            with trio.move_on_after(0.05):
                await done.wait()
            await cut_off(leg)
        await done.wait()
        await side.all_done()
        assert seen == [b"begun", True] if begin else [True]
        assert side.listener.status.requests_failed == 1
    assert not problems(caplog)


async def test_an_answer_before_the_body(relay: FakeRelay):
    """spec 9.6: a listener may answer without reading; what still comes is thrown away, and the goodbye is in order."""

    async def refuse(_: HttpRequest) -> HttpResponse:
        return HttpResponse(413, body=b"too much")

    async with serving(relay, refuse) as side, trio.open_nursery() as nursery:
        _, leg = await side.hand_over()
        stop = trio.Event()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while not stop.is_set() or sent < 8_000_000:  # much more than the buffers between us hold
                await leg.send_fragment(bytes(65_536), fin=False)
                sent += 65_536

        nursery.start_soon(send)
        answer = await receive_response(leg)
        assert (answer.head.statusCode, answer.body) == (413, b"too much")
        close = await leg.receive_piece()
        assert isinstance(close, Close)
        assert close.code == 1000
        stop.set()
        while leg.is_sending:
            await trio.lowlevel.checkpoint()
        await leg.send_close(1000)
        await finish(leg)
        await side.all_done()
        assert side.listener.status.requests_served == 1


async def test_a_body_left_alone_is_not_taken_in(relay: FakeRelay):
    """failures: a slow reader must slow its sender. One piece is held, the rest stays with the relay."""
    gate = trio.Event()
    total = 64 * 1_048_576

    async def read(request: HttpRequest) -> str:
        await gate.wait()
        length = 0
        async for chunk in request:
            length += len(chunk)
        return str(length)

    async with serving(relay, read) as side, trio.open_nursery() as nursery:
        _, leg = await side.hand_over()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await leg.send_fragment(bytes(65_536), fin=False)
                sent += 65_536
            await leg.send_fragment(b"", fin=True)

        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        assert sent < total / 2  # what the kernel holds, which is a few megabytes
        gate.set()
        assert (await receive_response(leg)).body == str(total).encode()
        await finish(leg)


async def test_a_slow_sender_slows_the_response(relay: FakeRelay):
    """failures: unbounded buffering of a response. The relay does not read, so the handler waits."""
    total = 64 * 1_048_576
    sent = 0

    async def write(request: HttpRequest) -> None:
        nonlocal sent
        async with request.respond() as response:
            while sent < total:
                await response.wait_send_all_might_not_block()
                await response.send_all(bytes(65_536))
                sent += 65_536

    async with serving(relay, write) as side:
        await side.ask()
        leg = await side.take_up()
        await wait_all_tasks_blocked(0.05)
        assert 0 < sent < total / 2
        answer = await receive_response(leg)
        assert len(answer.body or b"") == total
        await finish(leg)


@pytest.mark.parametrize("way", ["control", "rendezvous"])
async def test_66_000_single_bytes(relay: FakeRelay, way: str):
    """spec 9.5, 20: as many writes of one byte; the first 65 536 may be held back, and none is lost."""

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            for n in range(66_000):
                await response.send_all(b"%d" % (n % 10))

    async with serving(relay, write, flush_after=30) as side:
        if way == "control":
            await side.ask()
            leg = await side.take_up()
        else:
            _, leg = await side.hand_over()
            await leg.send_binary(b"")
        assert (await receive_response(leg)).body == b"0123456789" * 6_600
        await finish(leg)


# When a response leaves -----------------------------------------------------------------------------------------------


async def test_a_response_that_takes_its_time_leaves_by_rendezvous(autojump_clock: MockClock):
    """spec 9.6, 14: slow responses switch to a rendezvous; ours after 0.1 s, status and headers included."""

    async def write(request: HttpRequest) -> None:
        async with request.respond(201, {"X-A": "b"}) as response:
            for n in range(3):
                await response.send_all(b"event %d;" % n)
                await trio.sleep(5)

    async with open_fake_relay() as relay, serving(relay, write) as side:
        asked_at = trio.current_time()
        await side.ask()
        request = await relay.next_request("request")
        assert 0.1 <= trio.current_time() - asked_at < 0.5
        leg = await request.accept()
        answer = await receive_response(leg)
        assert (answer.head.statusCode, answer.body) == (201, b"event 0;event 1;event 2;")
        await finish(leg)


async def test_events_leave_as_they_happen(relay: FakeRelay):
    """A response that streams is not held back any more; its head leaves without a body, too."""
    step = [trio.Event() for _ in range(3)]

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            await response.flush()
            for event in step:
                await event.wait()
                await response.send_all(b"tick")

    async with serving(relay, write, flush_after=1000) as side:
        await side.ask()
        leg = await side.take_up()
        await leg.receive()
        for event in step[:-1]:
            event.set()
            piece = await leg.receive_piece()
            assert not isinstance(piece, Close)
            assert (piece.data, piece.fin) == (b"tick", False)
        step[-1].set()
        rest = b""
        while not isinstance(piece, Close) and not piece.fin:
            piece = await leg.receive_piece()
            assert not isinstance(piece, Close)
            rest += piece.data
        assert rest == b"tick"
        await finish(leg)


async def test_short_writes_in_a_row_keep_company(relay: FakeRelay):
    """Byte by byte costs no frame for each; in order, and none waits for long."""

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            await response.flush()
            for n in range(5_000):
                await response.send_all(b"%d" % (n % 10))
            await response.send_all(bytes(20_000))
            await response.send_all(b"end")

    async with serving(relay, write) as side:
        await side.ask()
        leg = await side.take_up()
        assert (await receive_response(leg)).body == b"0123456789" * 500 + bytes(20_000) + b"end"
        assert leg.statistics().frames_received < 1_000
        await finish(leg)


async def test_a_rendezvous_is_dialled_once_whoever_waits_for_it(relay: FakeRelay):
    """spec 9.6: an address is good for one handshake. A cancelled wait for it neither breaks it off nor repeats it."""
    cancelled = trio.Event()

    async def write(request: HttpRequest) -> None:
        response = request.respond()
        await response.send_all(b"short")
        for _ in range(2):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(response.flush)
                    await wait_all_tasks_blocked()
                    scope.cancel()
        cancelled.set()
        await response.aclose()

    async with serving(relay, write, flush_after=1000) as side:
        await side.ask()
        request = await relay.next_request("request")
        await cancelled.wait()
        leg = await request.accept()
        assert (await receive_response(leg)).body == b"short"
        await finish(leg)
        await side.all_done()
        assert side.channel.responses_waiting == 0
        assert relay.connections == 2


async def test_who_fails_while_the_rendezvous_is_dialled_is_answered_there(relay: FakeRelay):
    failed = trio.Event()

    async def fail(request: HttpRequest) -> None:
        async with request.respond() as response, trio.open_nursery() as nursery:
            await response.send_all(b"never seen")
            nursery.start_soon(response.flush)
            await wait_all_tasks_blocked()
            failed.set()
            raise ValueError

    async with serving(relay, fail) as side:
        await side.ask()
        request = await relay.next_request("request")
        await failed.wait()
        leg = await request.accept()
        answer = await receive_response(leg)
        assert answer.head.statusCode == 500
        assert not (answer.body or b"").startswith(b"never")
        await finish(leg)
        assert side.channel.responses_waiting == 0


async def test_an_answer_that_is_on_its_way_is_not_given_twice(relay: FakeRelay):
    """A cancelled flush of an answer without a body has posted it; closing waits for that one."""

    async def answer(request: HttpRequest) -> None:
        response = request.respond(204)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(response.flush)
                while not request._exchange.has_begun:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await response.aclose()

    async with serving(relay, answer) as side:
        for _ in range(20):
            assert (await side.answer()).head.statusCode == 204
        await side.all_done()
        assert side.channel.responses_waiting == 0
        assert side.listener.status.requests_served == 20


async def test_a_quick_response_keeps_to_the_control_channel(autojump_clock: MockClock):
    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            await response.wait_send_all_might_not_block()
            for _ in range(10):
                await response.send_all(b"tick")
                await trio.sleep(0.009)

    async with open_fake_relay() as relay, serving(relay, write) as side:
        assert (await side.answer()).body == b"tick" * 10
        assert relay.connections == 1


async def test_a_response_under_way_by_rendezvous_is_as_it_was_written(relay: FakeRelay):
    """The timer and the handler write at the same time, and nothing gets out of order."""

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            for n in range(2_000):
                await response.send_all(b"%04d" % n)

    async with serving(relay, write, flush_after=0.001) as side:
        _, leg = await side.hand_over()
        await leg.send_binary(b"")
        assert (await receive_response(leg)).body == b"".join(b"%04d" % n for n in range(2_000))
        await finish(leg)


async def test_the_responder_keeps_to_the_contract_of_a_stream(relay: FakeRelay):
    async def write(request: HttpRequest) -> None:
        response = request.respond()
        with pytest.raises(TypeError):
            await response.send_all("text")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(response.flush)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await response.send_all(b"x")
            go_on.set()
        await response.send_all(memoryview(b"late"))
        await response.wait_send_all_might_not_block()
        await response.aclose()
        await response.aclose()
        for call in (response.flush, response.wait_send_all_might_not_block, partial(response.send_all, b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await call()

    go_on = trio.Event()
    async with serving(relay, on_request=write) as side:
        await side.ask()
        request = await relay.next_request("request")
        await go_on.wait()
        leg = await request.accept()
        assert (await receive_response(leg)).body == b"late"
        await finish(leg)
        await side.all_done()
        assert side.listener.status.requests_served == 1


# Too many, and none at all -------------------------------------------------------------------------------------------


async def test_beyond_the_bound_senders_get_503(relay: FakeRelay):
    """spec 12: the bound is on requests under way; who is beyond it hears so at once, whichever way it came."""
    gate = trio.Event()

    async def wait(_: HttpRequest) -> None:
        await gate.wait()

    async with serving(relay, wait, max_concurrent=2) as side:
        kept = [await side.ask() for _ in range(2)]
        for body in (None, b"body"):
            refused = await side.answer("POST", body=body)
            assert (refused.head.statusCode, refused.body) == (503, b"The listener is busy")
        assert (await side.answer("HEAD")).body is None
        _, leg = await side.hand_over()
        await leg.send_fragment(b"begun", fin=False)
        refused = await receive_response(leg)
        assert (refused.head.statusCode, refused.body) == (503, b"The listener is busy")
        await finish(leg)
        gate.set()
        for request in kept:
            assert (await side.channel.response(request)).head.statusCode == 204
        await side.all_done()
        await side.is_well()
        status = side.listener.status
        assert (status.requests_served, status.requests_refused, status.requests_failed) == (3, 4, 0)


async def test_a_refusal_that_finds_nobody(relay: FakeRelay):
    """A sender that has left by then is no problem of anybody's."""
    async with serving(relay) as side:
        for answer in ("refuse", "cut"):
            await side.channel.ask(relay.address_only(relay.request("POST", has_body=True)))
            request = await relay.next_request("request")
            if answer == "refuse":
                await request.refuse(403, "gone")
            else:
                await request.reset()
        assert (await side.answer()).head.statusCode == 501
        assert side.listener.status.requests_refused == 3


async def test_who_takes_no_requests_says_so(relay: FakeRelay):
    """spec 9.8: without an answer the sender would wait 60 seconds."""
    async with serving(relay) as side:
        answer = await side.answer("POST", body=b"anybody?")
        assert (answer.head.statusCode, answer.body) == (501, b"This listener takes no HTTP requests")
        _, leg = await side.hand_over()
        assert (await receive_response(leg)).head.statusCode == 501
        await finish(leg)


async def test_who_takes_requests_only_refuses_websockets(relay: FakeRelay):
    """spec 7.3: a listener that serves HTTP rejects who opens a WebSocket."""
    async with serving(relay, echo) as side:
        await side.channel.leg.send_text(relay.invite())
        request = await relay.next_request("accept")
        assert request.parameter("sb-hc-statusCode") == "501"
        await request.refuse(410, "Gone")


@pytest.mark.parametrize("options", [{"max_concurrent": 0}, {"flush_after": -1}, {"flush_after": float("nan")}])
async def test_arguments_that_cannot_be_right(relay: FakeRelay, options: dict[str, float]):
    with pytest.raises(ConfigError):
        async with relaycore.open_listener(relay.connection_string(), **options):
            pass


# Losses --------------------------------------------------------------------------------------------------------------


async def lost_meanwhile(relay: FakeRelay, side: Side, inside: trio.Event, gate: trio.Event) -> FakeRequest:
    """Cut the channel while the handler is inside, then let it go on. Returns: its call to the rendezvous address."""
    await inside.wait()
    events = side.listener.events()
    await cut_off(side.channel.leg)
    assert isinstance(await anext(events), relaycore.Offline)
    gate.set()
    while (request := await relay.next_request()).action != "request":
        await request.refuse(503, "wait")
    return request


@pytest.mark.parametrize("is_known", [True, False])
async def test_the_channel_is_lost_under_a_handler(relay: FakeRelay, is_known: bool, caplog: pytest.LogCaptureFixture):
    """spec 6.5, 9.6: the response tries its rendezvous; a relay that has given the request up answers 403."""
    inside, gate = trio.Event(), trio.Event()

    async def wait(_: HttpRequest) -> bytes:
        inside.set()
        await gate.wait()
        return b"after all"

    async with serving(relay, wait) as side:
        await side.ask()
        request = await lost_meanwhile(relay, side, inside, gate)
        if is_known:
            leg = await request.accept()
            assert (await receive_response(leg)).body == b"after all"
            await finish(leg)
        else:
            await request.refuse(403, "gone")
        await side.all_done()
        assert side.listener.status.requests_served == is_known
        assert side.listener.status.requests_failed == (not is_known)
    assert not problems(caplog)


async def test_an_answer_with_no_way_left_is_one_line_in_the_log(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """The channel is lost, and the relay knows nothing of the address for the moment: nobody is left to be refused."""
    inside, gate = trio.Event(), trio.Event()

    async def wait(_: HttpRequest) -> bytes:
        inside.set()
        await gate.wait()
        return b"too late"

    async with serving(relay, wait) as side:
        await side.ask()
        request = await lost_meanwhile(relay, side, inside, gate)
        await request.refuse(503, "no")
        await side.all_done()
        assert side.listener.status.requests_failed == 1
    assert caplog.text.count("was not answered") == 1
    assert not problems(caplog)


async def test_a_failure_that_cannot_be_told(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """The channel is lost, and so is the rendezvous: that is a line in the log, and nothing more."""
    inside, gate = trio.Event(), trio.Event()

    async def fail(_: HttpRequest) -> None:
        inside.set()
        await gate.wait()
        raise ValueError

    async with serving(relay, fail) as side:
        await side.ask()
        request = await lost_meanwhile(relay, side, inside, gate)
        await request.refuse(503, "no")
        await side.all_done()
        assert side.listener.status.requests_failed == 1
    assert "was not answered" in caplog.text


async def test_a_channel_that_stalls_delays_no_cancellation(relay: FakeRelay):
    """Who waits for a stalled relay may be cancelled; the channel is not torn by that, and the responses still come."""
    many = 600  # with 64 KiB each, more than the buffers between us hold
    waiting: set[trio.CancelScope] = set()
    begun = 0
    all_begun = trio.Event()

    async def answer(request: HttpRequest) -> None:
        nonlocal begun
        with trio.CancelScope() as scope:
            waiting.add(scope)
            begun += 1
            if begun == many:
                all_begun.set()
            async with request.respond() as response:
                await response.send_all(bytes(65_536))
        waiting.discard(scope)

    async with trio.open_nursery() as nursery:
        ready = trio.Event()

        async def listen() -> None:
            # A pause of the whole process, longer than a response may stay incomplete, must not send one by rendezvous.
            async with relaycore.open_listener(
                relay.connection_string(), on_request=answer, max_concurrent=many, flush_after=3600
            ) as listener:
                ready.set()
                await listener.wait_closed()

        nursery.start_soon(listen)
        channel = FakeChannel(await (await relay.next_request("listen")).accept())
        await ready.wait()
        asked = [relay.request() for _ in range(many)]
        for request in asked:
            await channel.ask(request)
        await all_begun.wait()  # a slow machine delivers requests for long
        await wait_all_tasks_blocked(0.05)
        assert waiting  # nobody reads the channel
        for scope in waiting:
            scope.cancel()
        await wait_all_tasks_blocked(0.05)
        assert not waiting
        nursery.start_soon(channel.run)
        for request in asked:
            found = await channel.response(request)
            assert (found.head.statusCode, len(found.body or b"")) == (200, 65_536)
        nursery.cancel_scope.cancel()


async def test_a_body_is_given_up_once_the_response_is_complete(relay: FakeRelay):
    async def answer(request: HttpRequest) -> None:
        assert await request.receive_some() == b"begun"
        await request.respond(413).aclose()
        with pytest.raises(StreamLost, match="given up"):
            await request.receive_some()
        told.set()

    told = trio.Event()
    async with serving(relay, on_request=answer) as side:
        _, leg = await side.hand_over()
        await leg.send_fragment(b"begun", fin=False)
        assert (await receive_response(leg)).head.statusCode == 413
        await told.wait()
        await finish(leg)


async def test_a_rendezvous_outlives_its_channel(relay: FakeRelay):
    """spec 6.5: established rendezvous streams stay up."""
    async with serving(relay, echo) as side:
        _, leg = await side.hand_over()
        await leg.send_fragment(b"begin ", fin=False)
        events = side.listener.events()
        await cut_off(side.channel.leg)
        assert isinstance(await anext(events), relaycore.Offline)
        await leg.send_fragment(b"end", fin=True)
        assert (await receive_response(leg)).body == b"begin end"
        await finish(leg)


@pytest.mark.parametrize("kind", ["403", "503", "reset", "end", "silence"])
async def test_a_response_that_finds_no_rendezvous(autojump_clock: MockClock, kind: str):
    """spec 9.6, 14: 20 s to reach it. Where the control channel stands, the sender hears of it at once with 502."""

    async def answer(_: HttpRequest) -> bytes:
        return b"x" * 70_000

    async with open_fake_relay() as relay, serving(relay, answer) as side:
        asked = await side.ask()
        asked_at = trio.current_time()
        request = await relay.next_request("request")
        match kind:
            case "403" | "503":
                await request.refuse(int(kind), "no")
            case "reset":
                await request.reset()
            case "end":
                await request.aclose()
        if kind != "403":  # there the request has ended
            answered = await side.channel.response(asked)
            assert answered.head.statusCode == 502
        await side.all_done()
        assert side.listener.status.requests_failed == 1
        if kind == "silence":
            assert 20 <= trio.current_time() - asked_at < 21


async def test_a_short_response_is_patient_with_a_rendezvous_that_fails(autojump_clock: MockClock):
    """A relay whose addresses cannot be reached still gets short responses, however slow."""

    async def answer(request: HttpRequest) -> None:
        async with request.respond() as response:
            await response.send_all(b"slow ")
            await trio.sleep(1)
            await response.send_all(b"and short")

    async with open_fake_relay() as relay, serving(relay, answer) as side:
        asked = await side.ask()
        await (await relay.next_request("request")).refuse(503, "no")
        assert (await side.channel.response(asked)).body == b"slow and short"
        await side.all_done()
        assert side.listener.status.requests_served == 1


async def test_tls_may_not_be_dropped(tmp_path: Path):
    """spec 7.1: an address that leaves TLS is not dialled; short responses need none."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def answer(request: HttpRequest) -> bytes:
        return b"x" * int(request.suffix)

    async with (
        open_fake_relay(ssl_context=context) as relay,
        serving(relay, answer, cafile=tmp_path / "ca.pem") as side,
    ):
        plain = f"ws://localhost:{relay.port}"
        assert (await side.answer("GET", "/orders/5", base_url=plain)).body == b"xxxxx"
        assert (await side.answer("GET", "/orders/70000", base_url=plain)).head.statusCode == 502
        await side.channel.ask(relay.address_only(relay.request(base_url=plain)))
        assert (await side.answer("GET", "/orders/1")).body == b"x"
        await side.all_done()
        assert side.listener.status.requests_failed == 2
        assert relay.connections == 1
        await side.ask("GET", "/orders/70000")  # and over TLS all is well
        leg = await side.take_up()
        assert len((await receive_response(leg)).body or b"") == 70_000
        await finish(leg)


@pytest.mark.parametrize("address", ["no url", "ws://127.0.0.1:1/no-query", "http://127.0.0.1:1/?a=b", "wss://[::/?"])
async def test_addresses_that_are_none(relay: FakeRelay, address: str):
    """spec 9.3: an address is checked when it is needed, and not shown to the log."""

    async def answer(request: HttpRequest) -> bytes:
        return b"x" * int(request.suffix)

    async with serving(relay, answer) as side:
        for length, status in ((1, 200), (70_000, 502)):
            asked = relay.request("GET", f"/orders/{length}")
            asked = Request(**{name: getattr(asked, name) for name in asked.__struct_fields__} | {"address": address})
            await side.channel.ask(asked)
            assert (await side.channel.response(asked)).head.statusCode == status


@pytest.mark.parametrize("kind", ["403", "reset", "garbage", "close", "address only", "silence"])
async def test_a_request_that_cannot_be_fetched(autojump_clock: MockClock, kind: str, caplog: pytest.LogCaptureFixture):
    """spec 9.6: what waits behind an address may be gone by then; that costs one request."""
    async with open_fake_relay() as relay, serving(relay, echo) as side:
        asked = relay.request("POST", has_body=True)
        await side.channel.ask(relay.address_only(asked))
        request = await relay.next_request("request")
        leg = None
        if kind == "403":
            await request.refuse(403, "gone")
        elif kind == "reset":
            await request.reset()
        else:
            leg = await request.accept()
            match kind:
                case "garbage":
                    await leg.send_text('{"what":"ever"}')
                case "close":
                    await leg.send_close(1001, "gone")
                case "address only":
                    await leg.send_text(encode_request(relay.address_only(asked)))
        await side.all_done()
        assert side.listener.status.requests_failed == 1
        await side.is_well()
        if leg is not None:
            await leg.aclose()
    assert not problems(caplog)


async def test_a_sender_that_is_gone_cancels_its_handler(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """spec 9.6, 13: 1001 on the rendezvous says that the sender's connection is gone."""
    cancelled = trio.Event()
    begun = trio.Event()

    async def wait(request: HttpRequest) -> None:
        try:
            async with request.respond() as response:
                await response.flush()
                begun.set()
                await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(relay, wait) as side:
        await side.ask()
        leg = await side.take_up()
        await begun.wait()
        await leg.send_close(1001, "the sender is gone")
        await cancelled.wait()
        await finish(leg)
        await side.all_done()
        assert side.listener.status.requests_failed == 1
    assert not problems(caplog)


async def test_a_handler_that_reads_is_cancelled_too(relay: FakeRelay):
    """The end stands behind a body that the handler has read, or never asks for."""
    cancelled = trio.Event()

    async def wait(_: HttpRequest) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(relay, wait) as side:
        for body in (b"", b"short"):
            _, leg = await side.hand_over()
            if not body:
                await leg.send_binary(body)
            await leg.send_close(1001)
            await cancelled.wait()
            await finish(leg)


async def test_for_request_handlers_disconnection_is_a_message(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """Nothing is cancelled: `wait_disconnected` returns, and sending raises."""
    told = trio.Event()

    async def wait(request: HttpRequest) -> None:
        assert not request.is_disconnected
        response = request.respond()
        await response.send_all(b"x")
        await response.flush()
        await request.wait_disconnected()
        assert request.is_disconnected
        told.set()
        for call in (partial(response.send_all, b"x"), response.flush, response.wait_send_all_might_not_block):
            with pytest.raises(StreamLost):
                await call()
        await response.aclose()

    async with serving(relay, on_request=wait) as side:
        await side.ask()
        leg = await side.take_up()
        assert not isinstance(await leg.receive_piece(), Close)
        await leg.send_close(1001)
        await told.wait()
        await finish(leg)
        await side.all_done()
    assert not problems(caplog)


async def test_a_rendezvous_that_is_cut_in_the_response(relay: FakeRelay, caplog: pytest.LogCaptureFixture):
    """spec 9.5: a loss raises `StreamLost` in whoever sends, and ends with that."""

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            while True:
                await response.send_all(bytes(65_536))

    async with serving(relay, on_request=write) as side:
        await side.ask()
        leg = await side.take_up()
        await leg.receive_piece()
        await cut_off(leg)
        await side.all_done()
        assert side.listener.status.requests_failed == 1
    assert not problems(caplog)


async def test_a_relay_that_never_says_goodbye(autojump_clock: MockClock):
    """The end of a rendezvous is bounded: 10 seconds for the relay's Close."""

    async def answer(_: HttpRequest) -> bytes:
        return b"x" * 70_000

    async with open_fake_relay() as relay, serving(relay, answer) as side:
        await side.ask()
        leg = await side.take_up()
        await receive_response(leg)
        started = trio.current_time()
        await side.all_done()
        assert 9.9 < trio.current_time() - started < 12
        assert side.listener.status.requests_served == 1


async def test_a_message_too_many_ends_the_rendezvous(relay: FakeRelay):
    """spec 9.5: one binary message for each body."""
    gone = trio.Event()

    async def wait(request: HttpRequest) -> None:
        await request.read()
        await request.wait_disconnected()
        gone.set()
        await request.respond().aclose()

    async with serving(relay, on_request=wait) as side:
        _, leg = await side.hand_over()
        await leg.send_messages([b"one", b"two"])
        await gone.wait()
        await leg.aclose()
        await side.all_done()


# Closing -------------------------------------------------------------------------------------------------------------


async def test_requests_under_way_may_end_while_the_listener_closes(relay: FakeRelay):
    """Those that are there have 5 seconds; further ones get 503, senders of WebSockets too."""
    inside, gate = trio.Event(), trio.Event()

    async def wait(_: HttpRequest) -> str:
        inside.set()
        await gate.wait()
        return "in time"

    async with serving(relay, wait) as side, trio.open_nursery() as nursery:
        asked = await side.ask()
        await inside.wait()
        nursery.start_soon(side.listener.aclose)
        await wait_all_tasks_blocked()
        refused = await side.answer()
        assert (refused.head.statusCode, refused.body) == (503, b"The listener is closing")
        await side.channel.leg.send_text(relay.invite())
        rejected = await relay.next_request("accept")
        assert rejected.parameter("sb-hc-statusCode") == "503"
        await rejected.refuse(410, "Gone")
        gate.set()
        assert (await side.channel.response(asked)).body == b"in time"


async def test_requests_that_do_not_end_get_503(autojump_clock: MockClock):
    """Who has heard nothing when the handlers are cancelled hears that; who has, sees a cut."""
    stopped: list[str] = []

    async def wait(request: HttpRequest) -> None:
        try:
            if request.suffix == "begun":
                async with request.respond() as response:
                    await response.flush()
                    await trio.sleep_forever()
            await trio.sleep_forever()
        finally:
            stopped.append(request.suffix)

    async with open_fake_relay() as relay, serving(relay, wait) as side, trio.open_nursery() as nursery:
        silent = await side.ask()
        await side.ask("GET", "/orders/begun")
        leg = await side.take_up()
        started = trio.current_time()
        nursery.start_soon(side.listener.aclose)
        refused = await side.channel.response(silent)
        assert (refused.head.statusCode, refused.body) == (503, b"The listener is closing")
        assert trio.current_time() - started == pytest.approx(5, abs=0.5)
        with pytest.raises(EOFError, match="1011"):
            await receive_response(leg)
        await leg.close()
        await side.listener.wait_closed()
        assert sorted(stopped) == ["", "begun"]


async def test_a_handler_that_fails_while_it_is_stopped(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture):
    """The cancellation and the failure come in one group: the sender gets 503 all the same, the log the traceback."""

    inside = trio.Event()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in its cleanup")

    async def wait(_: HttpRequest) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
            inside.set()

    async with open_fake_relay() as relay, serving(relay, wait) as side, trio.open_nursery() as nursery:
        asked = await side.ask()
        await inside.wait()
        nursery.start_soon(side.listener.aclose)
        refused = await side.channel.response(asked)
        assert (refused.head.statusCode, refused.body) == (503, b"The listener is closing")
        await side.listener.wait_closed()
        assert side.listener.status.requests_failed == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the request handler failed" in record.getMessage()
    assert record.exc_info is not None
    assert "in its cleanup" in "".join(traceback.format_exception(record.exc_info[1]))


@pytest.mark.parametrize("way", ["control", "dialling", "reading"])
async def test_a_handler_that_talks_in_a_shield_does_not_hold_up_a_cancellation(relay: FakeRelay, way: str):
    """What it waits for is gone, and it is told so."""
    inside = trio.Event()
    outcomes: list[object] = []

    async def answer(request: HttpRequest) -> None:
        response = None if way == "reading" else request.respond(200)
        try:
            inside.set()
            if way == "dialling":
                assert response is not None
                await response.flush()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(20, shield=True) as scope:
                try:
                    if response is None:
                        await request.read()
                    else:
                        await response.send_all(b"at last")
                        await response.aclose()
                except StreamLost as error:
                    outcomes.append(error)
            assert not scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as listening:
                listening.start_soon(partial(relaycore.serve_http, relay.connection_string(), answer, flush_after=3600))
                channel = FakeChannel(await (await relay.next_request("listen")).accept())
                nursery.start_soon(channel.run)
                if way == "reading":
                    asked = relay.request("POST", has_body=True)
                    await channel.ask(relay.address_only(asked))
                    await relay.hand_over(asked)
                else:
                    await channel.ask(relay.request())
                if way == "dialling":
                    await relay.next_request("request")
                await inside.wait()
                await wait_all_tasks_blocked()
                scope.cancel()
        nursery.cancel_scope.cancel()
    assert len(outcomes) == 1


async def test_cancelling_serve_http_cuts_what_is_under_way(relay: FakeRelay):
    inside, outside = trio.Event(), trio.Event()

    async def wait(_: HttpRequest) -> None:
        inside.set()
        try:
            await trio.sleep_forever()
        finally:
            outside.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(partial(relaycore.serve_http, relay.connection_string(), wait))
            channel = FakeChannel(await (await relay.next_request("listen")).accept())
            nursery.start_soon(channel.run)
            asked = relay.request()
            await channel.ask(asked)
            await inside.wait()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
        assert not scope.cancelled_caught
    assert outside.is_set()


# Cancellation --------------------------------------------------------------------------------------------------------


class Impatient(trio.abc.Instrument):
    """Cancels a scope when the task that made it has been rescheduled so many times."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.task = trio.lowlevel.current_task()
        self.scope = scope
        self.steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps -= 1
            if self.steps == 0:
                self.scope.cancel()


async def converse_shortly(request: HttpRequest) -> None:
    data = await request.read()
    async with request.respond(200) as response:
        await response.send_all(data)


async def converse_at_length(request: HttpRequest) -> None:
    async with request.respond(200) as response:
        async for chunk in request:
            await response.send_all(chunk)
        await response.flush()
        await response.send_all(bytes(70_000))


@pytest.mark.parametrize("talk", [converse_shortly, converse_at_length])
@pytest.mark.parametrize("way", ["control", "rendezvous"])
async def test_a_handler_may_be_cancelled_anywhere(
    relay: FakeRelay, talk: RequestHandler, way: str, caplog: pytest.LogCaptureFixture
):
    """Wherever it happens: one answer or a cut, and the control channel lives on."""
    steps = 0
    is_over = False

    async def handle(request: HttpRequest) -> None:
        nonlocal is_over
        if request.suffix == "well":
            async with request.respond(204):
                return
        with trio.CancelScope() as scope:
            instrument = Impatient(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await talk(request)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        is_over = not scope.cancel_called

    outcomes = set()
    async with serving(relay, on_request=handle) as side, trio.open_nursery() as nursery:

        async def answer_rendezvous(leg: WebSocketLeg) -> None:
            try:
                outcomes.add((await receive_response(leg)).head.statusCode)
            except EOFError:
                outcomes.add("cut")
            await finish(leg)

        async def serve_rendezvous() -> None:
            while True:
                request = await relay.next_request("request")
                try:
                    nursery.start_soon(answer_rendezvous, await request.accept())
                except trio.BrokenResourceError:
                    await request.aclose()

        if way == "control":
            nursery.start_soon(serve_rendezvous)
        for steps in itertools.count(1):
            if way == "control":
                asked = await side.ask("POST", body=b"hello")
                await settled(side)
                with trio.move_on_after(0):
                    outcomes.add((await side.channel.response(asked)).head.statusCode)
            else:
                _, leg = await side.hand_over()
                with suppress(trio.BrokenResourceError):
                    await leg.send_binary(b"hello")
                await answer_rendezvous(leg)
                await settled(side)
            await side.is_well()
            assert side.channel.responses_waiting == 0
            if is_over:
                break
            assert steps < 200
        nursery.cancel_scope.cancel()
    assert steps > 3
    assert {200, 500} <= outcomes


async def settled(side: Side) -> None:
    """All requests have been taken, and have ended; what was sent has arrived."""
    await side.is_well()
    await side.all_done()
    await side.is_well()
