"""ASGI applications behind a real relay: their lifespan, their requests and WebSockets, and the end of all that."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import requests
import trio
import trio.testing
import websockets.sync.client
from peers import HttpAnswer, WirePeer, http_request
from websockets.exceptions import ConnectionClosedError, InvalidStatus

import relaycore
from relaycore.client.asgi import LifespanFailed, serve_asgi
from relaycore.client.listener import Listener
from relaycore.errors import AuthorizationFailed, ConfigError, Refused
from relaycore.net.errors import StreamClosed
from relaycore.testing import Relay, open_relay

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def part(data: bytes = b"", *, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def reply(send, data: bytes) -> None:
    await send(START)
    await send(part(data))


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("web", requires_client_authorization=False)
        await relay.create_entity("dept/web", requires_client_authorization=False)
        yield relay


@dataclass
class Served:
    """An application that is being served."""

    relay: Relay
    path: str
    http: httpx2.AsyncClient
    listener: Listener
    scope: trio.CancelScope
    has_ended: trio.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}/{self.path}"

    def sender(self, suffix: str = "", **options):
        return relaycore.open_stream(self.relay.connection_string(self.path), suffix=suffix, **options)


@asynccontextmanager
async def serving(app, relay: Relay, *, path: str = "web", **options) -> AsyncIterator[Served]:
    scope = trio.CancelScope()
    has_ended = trio.Event()

    async def serve(task_status):  # noqa: ASYNC128 - handed on
        try:
            with scope:
                await serve_asgi(app, relay.connection_string(path), task_status=task_status, **options)
        finally:
            has_ended.set()

    async with trio.open_nursery() as nursery, httpx2.AsyncClient(timeout=30) as http:
        listener = await nursery.start(serve)
        yield Served(relay, path, http, listener, scope, has_ended)
        scope.cancel()


@asynccontextmanager
async def leaving(served: Served, target: str) -> AsyncIterator[tuple[HttpAnswer, WirePeer]]:
    """A sender that asks, and hangs up at the end of the block, whatever is still to come."""
    peer = await WirePeer.open(served.relay.port)
    await peer.send(http_request("GET", target))
    yield await peer.read_http_head(), peer
    await peer.aclose()


# The scope, and what comes with it -----------------------------------------------------------------------------------


async def show(scope, receive, send):
    """Answers with its scope."""
    assert scope["type"] == "http"
    shown = {name: value for name, value in scope.items() if name not in ("headers", "state")}
    shown["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
    await reply(send, json.dumps(shown, default=bytes.decode).encode())


async def test_what_an_application_sees(relay: Relay):
    """spec 9.3, 9.4: target, headers and the sender's endpoint, through the relay."""
    async with serving(show, relay, path="dept/web") as served:
        found = (
            await served.http.request(
                "OPTIONS", f"{served.url}/a%20b/%C3%A9/?x=1&sb-hc-id=1&y=%2f", headers={"X-One": "1"}
            )
        ).json()
        assert (found["type"], found["method"], found["scheme"]) == ("http", "OPTIONS", "http")
        assert (found["root_path"], found["path"]) == ("/dept/web", "/dept/web/a b/é/")
        assert (found["raw_path"], found["query_string"]) == ("/dept/web/a%20b/%C3%A9/", "x=1&y=%2f")
        assert found["client"][0] == "127.0.0.1"
        assert found["server"] == ["127.0.0.1", relay.port]
        assert ["x-one", "1"] in found["headers"]
        assert ["host", f"127.0.0.1:{relay.port}"] in found["headers"]


async def test_a_root_path_of_one_s_own(relay: Relay):
    async with serving(show, relay, root_path="") as served:
        found = (await served.http.get(f"{served.url}/a")).json()
        assert (found["root_path"], found["path"]) == ("", "/a")


# Answers -------------------------------------------------------------------------------------------------------------


async def test_bodies_both_ways(relay: Relay):
    """spec 9.2, 9.6: on the control channel, by rendezvous, and from one to the other."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        pieces = []
        more = True
        while more:  # all of it first: this client listens to nothing before it has sent its body
            event = await receive()
            pieces.append(event["body"])
            more = event["more_body"]
        await send(START)
        for piece in pieces:
            await send(part(piece, more=True))
        await send(part())

    async with serving(app, relay) as served:
        for size in (0, 1, 65_535, 65_536, 65_537, 3_000_001):
            data = os.urandom(size)
            assert (await served.http.post(served.url, content=data)).content == data


async def test_an_application_that_fails(relay: Relay, caplog: pytest.LogCaptureFixture):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        if scope["path"].endswith("silent"):
            return
        if scope["path"].endswith("late"):
            await send(START)
            await send(part(b"x" * 100_000, more=True))
        raise ZeroDivisionError

    async with serving(app, relay) as served:
        assert (await served.http.get(f"{served.url}/early")).status_code == 500
        assert (await served.http.get(f"{served.url}/silent")).status_code == 500
        with pytest.raises(httpx2.TransportError):
            await served.http.get(f"{served.url}/late")
        assert (await served.http.get(f"{served.url}/early")).status_code == 500
    assert [record.levelname for record in caplog.records if "failed" in record.message].count("ERROR") == 4


async def test_a_sender_that_leaves_a_stream(relay: Relay):
    heard = []
    ended = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        assert (await receive())["more_body"] is False
        await send(START)
        await send(part(b"first", more=True))
        heard.append(await receive())
        with contextlib.suppress(OSError):
            await send(part(b"second", more=True))
            heard.append("sent")
        ended.set()

    async with serving(app, relay) as served:
        async with leaving(served, "/web") as (_, peer):
            assert await peer.read_chunk() == b"first"
        await ended.wait()
        assert heard == [{"type": "http.disconnect"}]


async def test_a_stream_that_nobody_reads_any_more(relay: Relay):
    """ASGI 2.4: an application that only sends learns of it from an OSError."""
    ended = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await send(START)
        try:
            while True:
                await send(part(b"x" * 10_000, more=True))
        except OSError:
            ended.set()
            raise

    async with serving(app, relay) as served:
        async with leaving(served, "/web") as (_, peer):
            await peer.read_chunk()
        await ended.wait()


async def test_more_requests_than_wanted(relay: Relay):
    let_go = trio.Event()
    waiting = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        waiting.set()
        await let_go.wait()
        await reply(send, b"done")

    async with serving(app, relay, max_concurrent=1) as served, trio.open_nursery() as nursery:

        async def first():
            assert (await served.http.get(served.url)).text == "done"

        nursery.start_soon(first)
        await waiting.wait()
        assert (await served.http.get(served.url)).status_code == 503
        let_go.set()


# WebSockets ----------------------------------------------------------------------------------------------------------


async def echo(scope, receive, send):
    """Echoes; refuses, closes and fails where it is asked to."""
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/web/no":
        await send({"type": "websocket.close"})
        return
    if scope["path"] == "/web/members":
        await send({"type": "websocket.http.response.start", "status": 401})
        await send({"type": "websocket.http.response.body", "body": b"dropped"})
        return
    if scope["path"] == "/web/fails":
        raise ZeroDivisionError
    if scope["path"] == "/web/silent":
        return
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[-1] if offered else None})
    await send({"type": "websocket.send", "text": scope["path"] + "?" + scope["query_string"].decode()})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "as you like"})
        elif event["text"] == "fail":
            raise ZeroDivisionError
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"], "text": event["text"]})


async def test_a_websocket_through_the_library(relay: Relay):
    async with serving(echo, relay) as served:
        async with served.sender("a b/", query="x=1", subprotocols=["one", "two"]) as stream:
            assert stream.subprotocol == "two"
            messages = stream.messages()
            assert await messages.receive() == "/web/a b?x=1"
            for data in ("text", b"bytes", "", b"", "é" * 100_000):
                await messages.send(data)
                assert await messages.receive() == data
            await messages.send("close")
            with pytest.raises(StreamClosed) as caught:
                await messages.receive()
            assert (caught.value.code, caught.value.reason) == (4001, "as you like")
        async with served.sender("x") as stream:
            messages = stream.messages()
            await messages.receive()
            await messages.send("fail")
            with pytest.raises(StreamClosed) as caught:
                await messages.receive()
            assert caught.value.code == 1011


@pytest.mark.parametrize(
    ("suffix", "status", "words"),
    [("no", 403, "Forbidden"), ("members", 401, "Unauthorized"), ("fails", 500, "Internal"), ("silent", 500, "Inter")],
)
async def test_a_refused_websocket(relay: Relay, suffix, status, words):
    """spec 7.3: the application's status reaches the sender."""
    async with serving(echo, relay) as served:
        with pytest.raises(Refused) as caught:
            async with served.sender(suffix):
                pytest.fail("accepted")
        assert caught.value.http_status == status
        assert words in str(caught.value)


@pytest.mark.parametrize("prefix", ["/$hc", ""])
async def test_a_websocket_of_another_client(relay: Relay, prefix):
    """spec 2.3: also on the plain path, where a web page looks for it on its own origin."""

    def talk(port: int) -> None:
        url = f"ws://127.0.0.1:{port}{prefix}/web"
        with websockets.sync.client.connect(f"{url}/chat/?a=1", subprotocols=["p"], proxy=None) as socket:
            assert socket.subprotocol == "p"
            assert socket.recv() == "/web/chat/?a=1"
            socket.send(b"\0" * 100_000)
            assert socket.recv() == b"\0" * 100_000
            socket.send("close")
            with pytest.raises(ConnectionClosedError) as caught:
                socket.recv()
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you like")
        with pytest.raises(InvalidStatus) as refused:
            websockets.sync.client.connect(f"{url}/members", proxy=None)
        assert refused.value.response.status_code == 401

    async with serving(echo, relay):
        await trio.to_thread.run_sync(talk, relay.port)


async def test_senders_may_choose_the_same_tracking_id(relay: Relay):
    """spec 7.1: the id begins with the sender's; what belongs together is told by more than that."""
    identity = "12345678-1234-1234-1234-1234567890ab"
    release = trio.Event()
    arrived = []

    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        await receive()
        arrived.append(scope["path"])
        await release.wait()
        if scope["path"].endswith("1"):
            await trio.testing.wait_all_tasks_blocked()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["path"]})

    async with serving(app, relay) as served, trio.open_nursery() as nursery:

        async def talk(suffix: str) -> None:
            async with served.sender(suffix, tracking_id=identity) as stream:
                assert await stream.messages().receive() == f"/web/{suffix}"

        for number in range(4):
            nursery.start_soon(talk, str(number))
        while len(arrived) < 4:
            await trio.sleep(0.01)
        release.set()


async def test_more_websockets_than_wanted(relay: Relay):
    async with serving(echo, relay, max_concurrent=1) as served, served.sender() as stream:
        await stream.messages().receive()
        with pytest.raises(Refused) as caught:
            async with served.sender():
                pytest.fail("accepted")
        assert caught.value.http_status == 503


async def test_a_message_that_is_too_long(relay: Relay):
    async with serving(echo, relay, max_message_bytes=1000) as served, served.sender() as stream:
        messages = stream.messages()
        await messages.receive()
        await messages.send(b"x" * 1001)
        with pytest.raises(StreamClosed) as caught:
            await messages.receive()
        assert caught.value.code == 1009


# Lifespan ------------------------------------------------------------------------------------------------------------


class Living:
    """An application with a lifespan; notes what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fail = ""
        self.under_way = trio.Event()
        self.let_go = trio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.live(scope, receive, send)
            return
        self.log.append("request")
        if scope["path"].endswith("slow"):
            self.under_way.set()
            try:
                await self.let_go.wait()
            finally:
                self.log.append("slow ended")
        await reply(send, scope["state"]["words"].encode())

    async def live(self, scope, receive, send):
        assert await receive() == {"type": "lifespan.startup"}
        self.log.append("startup")
        if self.fail == "startup":
            await send({"type": "lifespan.startup.failed", "message": "Traceback\n  ...\nno database"})
            raise ZeroDivisionError
        scope["state"]["words"] = "from the lifespan"
        await send({"type": "lifespan.startup.complete"})
        assert await receive() == {"type": "lifespan.shutdown"}
        self.log.append("shutdown")
        if self.fail == "hang":
            await trio.sleep_forever()
        if self.fail == "shutdown":
            await send({"type": "lifespan.shutdown.failed", "message": "no reason"})
            raise ZeroDivisionError
        await send({"type": "lifespan.shutdown.complete"})


async def test_start_requests_shutdown(relay: Relay):
    app = Living()
    async with serving(app, relay, lifespan="on") as served:
        assert app.log == ["startup"]
        assert (await served.http.get(served.url)).text == "from the lifespan"
    assert app.log == ["startup", "request", "shutdown"]


async def test_a_start_that_fails(relay: Relay, caplog: pytest.LogCaptureFixture):
    app = Living()
    app.fail = "startup"
    with pytest.raises(LifespanFailed, match="did not start: no database"):
        await serve_asgi(app, relay.connection_string("web"))
    assert relay.server.statistics().listeners == 0
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("fail", ["shutdown", "hang"])
async def test_a_shutdown_that_fails(relay: Relay, fail, monkeypatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("relaycore.client.asgi._LIFESPAN_SHUTDOWN_TIMEOUT", 0.05)
    app = Living()
    app.fail = fail
    async with serving(app, relay):
        pass
    assert app.log == ["startup", "shutdown"]
    assert any(record.levelno == logging.ERROR and "shut down" in record.message for record in caplog.records)


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_an_application_without_a_lifespan(relay: Relay, mode):
    """`show` asserts that it is asked about requests only."""
    async with serving(show, relay, lifespan=mode) as served:
        assert (await served.http.get(served.url)).status_code == 200


async def test_an_application_without_the_lifespan_that_is_asked_for(relay: Relay):
    with pytest.raises(LifespanFailed, match="AssertionError"):
        await serve_asgi(show, relay.connection_string("web"), lifespan="on")


async def test_an_application_that_returns_from_its_lifespan(relay: Relay):
    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            await reply(send, b"ok")
        elif scope["state"] == {}:
            await receive()
            await send({"type": "lifespan.startup.complete"})

    async with serving(app, relay, lifespan="on") as served:
        assert (await served.http.get(served.url)).text == "ok"


async def test_a_lifespan_that_dies_ends_the_serving(relay: Relay):
    """A program whose background task has failed is not what was started."""
    die = trio.Event()

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        await send({"type": "lifespan.startup.complete"})
        await die.wait()
        raise ZeroDivisionError

    async def serve(task_status):  # noqa: ASYNC128 - handed on
        with pytest.raises(ZeroDivisionError):
            await serve_asgi(app, relay.connection_string("web"), task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        die.set()
    assert relay.server.statistics().listeners == 0


@pytest.mark.parametrize(
    "event",
    [{"type": "lifespan.shutdown.complete"}, {"type": "http.response.start"}, {"type": "lifespan.startup"}],
)
async def test_wrong_lifespan_events(relay: Relay, event):
    async def app(scope, receive, send):
        await send(event)

    with pytest.raises(LifespanFailed, match="unexpected event"):
        await serve_asgi(app, relay.connection_string("web"), lifespan="on")


async def test_a_cancelled_start(relay: Relay):
    started = trio.Event()
    log = []

    async def app(scope, receive, send):
        started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            log.append("cancelled")
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_asgi, app, relay.connection_string("web"))
        await started.wait()
        nursery.cancel_scope.cancel()
    assert log == ["cancelled"]


# The end -------------------------------------------------------------------------------------------------------------


async def test_what_is_under_way_is_finished(relay: Relay):
    app = Living()
    async with serving(app, relay) as served, trio.open_nursery() as nursery:

        async def slow():
            assert (await served.http.get(f"{served.url}/slow")).text == "from the lifespan"

        nursery.start_soon(slow)
        await app.under_way.wait()
        served.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        late = await served.http.get(served.url)
        assert (late.status_code, late.text) == (503, "The listener is closing")
        assert not served.has_ended.is_set()
        app.let_go.set()
        await served.has_ended.wait()
    assert app.log == ["startup", "request", "slow ended", "shutdown"]


async def test_what_does_not_finish_is_cancelled_and_answered(relay: Relay):
    app = Living()
    async with serving(app, relay, grace_s=0.05) as served, trio.open_nursery() as nursery:

        async def slow():
            assert (await served.http.get(f"{served.url}/slow")).status_code == 503

        nursery.start_soon(slow)
        await app.under_way.wait()
        served.scope.cancel()
        await served.has_ended.wait()
    assert app.log == ["startup", "request", "slow ended", "shutdown"]


async def test_websockets_are_told_that_we_go(relay: Relay):
    """spec 13: 1001."""
    async with serving(echo, relay) as served, served.sender() as stream:
        messages = stream.messages()
        await messages.receive()
        served.scope.cancel()
        with pytest.raises(StreamClosed) as caught:
            await messages.receive()
        assert (caught.value.code, caught.value.reason) == (1001, "The listener is closing")


async def test_closing_the_listener_ends_it_too(relay: Relay):
    app = Living()
    async with serving(app, relay) as served:
        await served.listener.aclose()
        await served.has_ended.wait()
        assert app.log == ["startup", "shutdown"]


async def test_a_relay_that_is_not_there_does_not_hold_up_the_end():
    app = Living()
    nobody = (
        "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=b;EntityPath=web;UseDevelopmentEmulator=true"
    )
    with trio.fail_after(10), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(serve_asgi, app, nobody))
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
    assert app.log == ["startup", "shutdown"]


async def test_a_first_refusal_is_raised(relay: Relay):
    app = Living()
    with pytest.raises(AuthorizationFailed):
        await serve_asgi(app, relay.connection_string("web", rights=["Send"]))
    assert app.log == ["startup", "shutdown"]


@pytest.mark.parametrize(
    "options",
    [{"lifespan": "maybe"}, {"max_concurrent": 0}, {"max_message_bytes": 0}, {"root_path": "x"}, {"path": "/"}],
)
async def test_wrong_arguments_are_found_before_the_application_starts(relay: Relay, options):
    app = Living()
    with pytest.raises(ConfigError):
        await serve_asgi(app, relay.connection_string(), **{"path": "web", **options})
    assert app.log == []


# A framework, unchanged ----------------------------------------------------------------------------------------------


@pytest.fixture
async def shop(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "starlette_app", raising=False)
    import starlette_app

    async with serving(starlette_app.app, relay, lifespan="on") as served:
        yield served


async def test_starlette_rest(shop: Served):
    made = await shop.http.post(f"{shop.url}/notes/", json={"text": "milk"})
    assert (made.status_code, made.json()) == (201, {"id": 1})
    assert made.headers["Location"] == f"{shop.url}/notes/1"  # what the root path is for
    assert (await shop.http.get(made.headers["Location"])).text == "milk"
    assert (await shop.http.get(f"{shop.url}/notes/", params={"word": "mi"})).json() == {"1": "milk"}
    head = await shop.http.head(f"{shop.url}/notes/1")
    assert (head.status_code, head.content) == (200, b"")
    gone = await shop.http.delete(f"{shop.url}/notes/1")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await shop.http.get(f"{shop.url}/notes/1")).status_code == 404
    assert (await shop.http.put(f"{shop.url}/notes/1")).status_code == 405
    assert (await shop.http.get(f"{shop.url}/log")).json() == ["note 1"]
    page = await shop.http.get(shop.url, follow_redirects=True)
    assert (page.url.path, page.headers["Content-Type"]) == ("/web/", "text/html; charset=utf-8")


async def test_starlette_files(shop: Served):
    files = {"small": os.urandom(100), "big": os.urandom(5_000_000)}
    form = [("file", (name, data)) for name, data in files.items()]

    def upload() -> dict[str, int]:
        with requests.Session() as session:
            session.trust_env = False
            return session.post(f"{shop.url}/upload", files=form, timeout=30).json()

    assert await trio.to_thread.run_sync(upload) == {name: len(data) for name, data in files.items()}
    for name, data in files.items():
        assert (await shop.http.get(f"{shop.url}/files/{name}")).content == data

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, 5_000_000, 100_000):
            yield files["big"][start : start + 100_000]

    found = await shop.http.put(f"{shop.url}/digest", content=pieces())
    assert found.text == hashlib.sha256(files["big"]).hexdigest()


async def test_starlette_streams(shop: Served):
    found = await shop.http.get(f"{shop.url}/count/50000")
    assert found.text.splitlines() == [str(number) for number in range(50_000)]


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # the framework leaves it to the collector
async def test_starlette_events(shop: Served):
    """Events arrive as they happen, and the application learns when nobody listens any more."""
    async with leaving(shop, "/web/ticks?every=0.01") as (head, peer):
        assert head.value("Content-Type") == "text/event-stream; charset=utf-8"
        found = b""
        while found.count(b"\n\n") < 3:
            found += await peer.read_chunk()
        assert found.startswith(b"".join(b"id: %d\ndata: tick %d\n\n" % (number, number) for number in range(3)))
    while "nobody listens to ticks any more" not in (await shop.http.get(f"{shop.url}/log")).json():
        await trio.sleep(0.01)


@pytest.mark.parametrize("prefix", ["/$hc", ""])
async def test_starlette_websockets(shop: Served, prefix):
    url = f"ws://127.0.0.1:{shop.relay.port}{prefix}/web/chat"

    def talk() -> None:
        with websockets.sync.client.connect(f"{url}/hall", subprotocols=["chat"], proxy=None) as one:
            one.send("one")
            assert one.recv(timeout=10) == "one"  # and is in the room now
            with websockets.sync.client.connect(f"{url}/hall", proxy=None) as two:
                assert (one.subprotocol, two.subprotocol) == ("chat", None)
                two.send("two")
                assert (one.recv(timeout=10), two.recv(timeout=10)) == ("two", "two")
            one.send("still there")
            assert one.recv(timeout=10) == "still there"
            one.send("/leave")
            with pytest.raises(ConnectionClosedError) as caught:
                one.recv()
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "bye")
        with pytest.raises(InvalidStatus) as refused:
            websockets.sync.client.connect(f"{url}/cellar", proxy=None)
        assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            websockets.sync.client.connect(f"{url}x/nowhere", proxy=None)
        assert refused.value.response.status_code == 403  # what this framework says of an unknown path

    await trio.to_thread.run_sync(talk)
