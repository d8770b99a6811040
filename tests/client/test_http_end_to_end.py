"""HTTP over a real relay, on real sockets: a common HTTP client at one end, `serve_http` at the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import httpx2
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import relaycore
from relaycore import HttpRequest, HttpResponse, StreamLost
from relaycore.client.http import HttpHandler
from relaycore.testing import Relay, open_relay

SIZES = [0, 1, 65_000, 65_535, 65_536, 65_537, 10 * 1_048_576]


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("orders")
        await relay.create_entity("open", requires_client_authorization=False)
        yield relay


@asynccontextmanager
async def serving(
    relay: Relay, handler: HttpHandler, **options
) -> AsyncIterator[tuple[relaycore.Listener, httpx2.AsyncClient]]:
    """A listener on the anonymous entity, and a client that has its URL."""
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            partial(relaycore.serve_http, relay.connection_string("open"), handler, **options)
        )
        url = relay.base_url.replace("ws://", "http://") + "/open"
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            yield listener, client
        await listener.aclose()


class RawSender:
    """One connection of a sender, for tests that look at each step."""

    def __init__(self, relay: Relay, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._host = f"127.0.0.1:{relay.port}"
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, method: str = "GET", *, is_chunked: bool = False) -> None:
        headers = [("Host", self._host), *([("Transfer-Encoding", "chunked")] if is_chunked else [])]
        await self.send(h11.Request(method=method, target="/open/x", headers=headers))
        if not is_chunked:
            await self.send(h11.EndOfMessage())

    async def send(self, event: h11.Event) -> None:
        await self.stream.send_all(self._http.send(event) or b"")

    async def next(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some())
        assert isinstance(event, h11.Event)
        return event


@asynccontextmanager
async def sending(relay: Relay) -> AsyncIterator[RawSender]:
    async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
        yield RawSender(relay, stream)


async def ended(listener: relaycore.Listener) -> relaycore.ListenerStatus:
    """Wait until no request is under way."""
    while listener.status.requests_under_way:
        await trio.sleep(0.005)
    return listener.status


async def chunks(data: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, {"X-Method": request.method, "X-Has-Body": str(request.has_body)}, request)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
async def test_bodies_both_ways(relay: Relay, size: int, is_chunked: bool):
    """spec 9.2, 9.5, 9.8: any length, sized or chunked; the response streams while the request still comes."""
    data = os.urandom(size)

    async def give_back(request: HttpRequest) -> HttpResponse:
        if size > 1_048_576:  # this client reads nothing before it has sent everything
            return HttpResponse(200, {"X-Method": request.method}, await request.read(2 * size))
        return await echo(request)

    async with serving(relay, give_back) as (listener, client):
        answer = await client.post("/x", content=chunks(data) if is_chunked else data)
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).digest() == hashlib.sha256(data).digest()
        assert answer.headers["x-method"] == "POST"
        assert answer.headers["via"].startswith("1.1 ")
        assert (await ended(listener)).requests_served == 1


@pytest.mark.parametrize("size", SIZES)
async def test_whole_responses(relay: Relay, size: int):
    """spec 9.7, 9.8: on the control channel up to 65 536 bytes, and with a length; by rendezvous beyond."""
    data = os.urandom(size)

    async def answer_with(_: HttpRequest) -> bytes:
        return data

    async with serving(relay, answer_with) as (_, client):
        answer = await client.get("/")
        assert answer.content == data
        if size <= 65_536:
            assert answer.headers["content-length"] == str(size)
        if size:
            assert answer.headers["content-type"] == "application/octet-stream"


async def test_what_a_handler_learns(relay: Relay):
    """spec 2.4, 9.3, 9.4, 10: target, query and headers, without what was meant for the relay."""
    seen: list[HttpRequest] = []

    async def note(request: HttpRequest) -> None:
        seen.append(request)

    async with serving(relay, note) as (_, client):
        answer = await client.request(
            "REPORT",
            "/a%20b/c%2Fd/?x=1&sb-hc-id=mine&y=%20",
            headers=[("X-Repeated", "1"), ("X-Repeated", "2"), ("ServiceBusAuthorization", "secret")],
        )
        assert (answer.status_code, answer.reason_phrase) == (204, "No Content")
    (request,) = seen
    assert (request.method, request.path, request.suffix) == ("REPORT", "open", "a b/c/d/")
    assert request.raw_suffix == "a b/c%2Fd/"
    assert request.query == "x=1&y=%20"
    assert request.headers.get("X-Repeated") == "1, 2"
    assert request.headers.get("ServiceBusAuthorization") is None
    assert request.headers.get("Host") == f"127.0.0.1:{relay.port}"
    assert request.remote_endpoint is not None
    assert request.remote_endpoint.address == "127.0.0.1"


@pytest.mark.parametrize("status", [200, 201, 204, 205, 304, 306, 407, 418, 426, 450, 500, 502, 504, 599])
async def test_statuses_and_reasons(relay: Relay, status: int):
    """spec 9.7: the status of the listener is the sender's, and so are its words."""

    async def answer_with(_: HttpRequest) -> HttpResponse:
        return HttpResponse(status, {"X-A": "b"}, b"body", reason="In my own words")

    async with serving(relay, answer_with) as (_, client):
        answer = await client.get("/")
        assert (answer.status_code, answer.reason_phrase) == (status, "In my own words")
        assert answer.headers["x-a"] == "b"
        assert answer.content == (b"" if status in (204, 304) else b"body")
        assert (await client.head("/")).content == b""


async def test_cookies_stay_apart(relay: Relay):
    """spec 10: Set-Cookie as an array is one line for each; other names are joined."""

    async def bake(_: HttpRequest) -> HttpResponse:
        return HttpResponse(200, {"Set-Cookie": ["a=1; Path=/", "b=2"], "X-Many": ["1", "2"]})

    async with serving(relay, bake) as (_, client):
        answer = await client.get("/")
        assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
        assert answer.headers["x-many"] == "1, 2"


async def test_66_000_single_bytes(relay: Relay):
    """spec 20: a response that is written byte by byte arrives whole."""

    async def write(request: HttpRequest) -> None:
        async with request.respond() as response:
            for n in range(66_000):
                await response.send_all(b"%d" % (n % 10))

    async with serving(relay, write) as (_, client):
        assert (await client.get("/")).content == b"0123456789" * 6_600


async def test_events_arrive_as_they_happen(relay: Relay):
    """A response that streams leaves by itself, head first; each event arrives before the next is made."""
    step = [trio.Event() for _ in range(4)]

    async def write(request: HttpRequest) -> None:
        async with request.respond(200, {"Content-Type": "text/event-stream"}) as response:
            for n, event in enumerate(step):
                await event.wait()
                await response.send_all(b"data: %d\n\n" % n)

    async with serving(relay, write), sending(relay) as sender:
        await sender.ask()
        answer = await sender.next()
        assert isinstance(answer, h11.Response)
        assert (b"content-type", b"text/event-stream") in list(answer.headers)
        for n, event in enumerate(step):
            event.set()
            found = await sender.next()
            assert isinstance(found, h11.Data)
            assert found.data == b"data: %d\n\n" % n
        assert isinstance(await sender.next(), h11.EndOfMessage)


async def test_a_conversation_inside_one_request(relay: Relay):
    """spec 9.6: both bodies move at once; each piece comes back before the next one is sent."""
    async with serving(relay, echo), sending(relay) as sender:
        await sender.ask("POST", is_chunked=True)
        for n in range(10):
            await sender.send(h11.Data(data=b"%d" % n))
            while not isinstance(found := await sender.next(), h11.Data):
                assert isinstance(found, h11.Response)
            assert found.data == b"%d" % n
        await sender.send(h11.EndOfMessage())
        assert isinstance(await sender.next(), h11.EndOfMessage)


async def test_an_answer_before_the_body(relay: Relay):
    """spec 9.6: a listener that does not want the body answers at once."""

    async def refuse(_: HttpRequest) -> HttpResponse:
        return HttpResponse(413, body=b"no, thanks")

    async with serving(relay, refuse) as (listener, client):
        for _ in range(3):
            try:
                answer = await client.post("/", content=bytes(20_000_000))
            except httpx2.WriteError:  # the relay may hang up on what nobody wants
                continue
            assert (answer.status_code, answer.content) == (413, b"no, thanks")
        assert (await ended(listener)).requests_served == 3


async def test_a_sender_that_leaves_cancels_the_handler(relay: Relay):
    """spec 9.6, 13: the sender's connection gone, 1001 on the rendezvous, the handler cancelled."""
    cancelled = trio.Event()

    async def write(request: HttpRequest) -> None:
        try:
            async with request.respond() as response:
                await response.send_all(b"first")
                await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(relay, write) as (listener, _):
        async with sending(relay) as sender:
            await sender.ask()
            assert isinstance(await sender.next(), h11.Response)
        with trio.fail_after(5):
            await cancelled.wait()
        assert (await ended(listener)).requests_failed == 1


async def test_a_sender_that_leaves_inside_its_body(relay: Relay):
    """spec 9.5, 13: a body that was cut is never taken for a whole one."""
    seen: list[bool] = []
    begun = trio.Event()

    async def read(request: HttpRequest) -> None:
        try:
            async for _ in request:
                begun.set()
        except StreamLost:
            seen.append(request.is_disconnected)
            raise
        seen.append(False)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(50_000)

    async with serving(relay, lambda request: read(request)) as (listener, client):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(client.post, "/", content=endless()))
                await begun.wait()
                scope.cancel()
        status = await ended(listener)
        assert status.requests_failed == 1
        assert status.requests_served == 0
    assert False not in seen


async def test_a_handler_that_fails_inside_its_response(relay: Relay):
    """spec 9.8: a body that stays unfinished is cut, without a final chunk."""

    async def fail(request: HttpRequest) -> None:
        async with request.respond() as response:
            await response.send_all(bytes(100_000))
            raise ValueError("half way")

    async with serving(relay, fail) as (_, client):
        with pytest.raises(httpx2.TransportError):
            await client.get("/")
        with pytest.raises(httpx2.TransportError):  # and again: the listener is well
            await client.get("/")


async def test_a_handler_that_fails(relay: Relay):
    """spec 12: 500, from the listener."""

    async def fail(_: HttpRequest) -> None:
        raise ValueError

    async with serving(relay, fail) as (_, client):
        answer = await client.get("/")
        assert answer.status_code == 500
        assert "TrackingId:" in answer.text


async def test_256_at_once(relay: Relay):
    """Requests and responses of mixed lengths cross, and each sender gets its own."""

    async with serving(relay, echo) as (listener, client):
        limits = httpx2.Limits(max_connections=256)
        async with httpx2.AsyncClient(base_url=client.base_url, limits=limits, timeout=60, trust_env=False) as many:

            async def talk(n: int) -> None:
                data = bytes([n]) * (n * 331)
                answer = await many.post(f"/{n}", content=data)
                assert answer.status_code == 200
                assert answer.content == data

            async with trio.open_nursery() as nursery:
                for n in range(256):
                    nursery.start_soon(talk, n)
        status = await ended(listener)
        assert (status.requests_served, status.requests_failed, status.requests_refused) == (256, 0, 0)


async def test_too_many_at_once(relay: Relay):
    gate = trio.Event()
    inside = trio.Event()

    async def wait(_: HttpRequest) -> str:
        inside.set()
        await gate.wait()
        return "served"

    async with serving(relay, wait, max_concurrent=1) as (_, client), trio.open_nursery() as nursery:
        answers: list[str] = []

        async def get() -> None:
            answers.append((await client.get("/")).text)

        nursery.start_soon(get)
        await inside.wait()
        for content in (b"", b"small", bytes(100_000)):
            answer = await client.post("/", content=content)
            assert (answer.status_code, answer.text) == (503, "The listener is busy")
        gate.set()
    assert answers == ["served"]


async def test_closing_lets_requests_end(relay: Relay):
    """The listener closes while a request is served: it gets its answer, and the next one finds nobody (12: 502)."""
    gate = trio.Event()
    inside = trio.Event()

    async def wait(_: HttpRequest) -> str:
        inside.set()
        await gate.wait()
        return "in time"

    async with serving(relay, wait) as (listener, client), trio.open_nursery() as nursery:
        answers: list[str] = []

        async def get() -> None:
            answers.append((await client.get("/")).text)

        nursery.start_soon(get)
        await inside.wait()
        nursery.start_soon(listener.aclose)
        await wait_all_tasks_blocked()
        assert (await client.get("/")).status_code == 503
        gate.set()
        await listener.wait_closed()
        assert (await client.get("/")).status_code == 502
    assert answers == ["in time"]


async def test_a_signed_request(relay: Relay):
    """spec 5.1: with a token where one is asked for; 401 without."""

    async def hello(request: HttpRequest) -> str:
        assert "ServiceBusAuthorization" not in request.headers
        return "hello"

    text = relay.connection_string("orders")
    url = relay.base_url.replace("ws://", "http://") + "/orders"
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(partial(relaycore.serve_http, text, hello))
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(url)).status_code == 401
            assert (await client.get(url, auth=relaycore.auth(text))).text == "hello"
        await listener.aclose()
