"""Calls of an ASGI application, driven without a relay: what it hears, what it may do, and how it ends."""

from __future__ import annotations

import contextlib
import functools
import logging
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from relaycore.client.asgi_calls import ClientDisconnected, HttpCall, WebSocketCall, call_app
from relaycore.client.asgi_events import Mount, http_scope, websocket_scope
from relaycore.client.connection import Connection, ConnectionInfo
from relaycore.client.invitation import Accept, IncomingConnection, Reject
from relaycore.errors import LocalProtocolError
from relaycore.net.errors import StreamLost
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Binary, Close, Text
from relaycore.wire.http1 import Headers

MOUNT = Mount.at("web", None, is_tls=True, server=("relay.example", 443))

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-one", b"1")]}


def part(data: bytes = b"", *, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# HTTP: the stage -----------------------------------------------------------------------------------------------------


@dataclass
class FakeResponder(trio.abc.SendStream):
    """Keeps what is sent; behaves as the real one does towards its caller."""

    request: FakeRequest
    status: int
    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    is_aborted: bool = False
    room: trio.Event | None = None

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        if self.room is not None:
            await self.room.wait()
        if self.request.is_disconnected:
            raise StreamLost("the sender is gone")
        self.body += data

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        await trio.lowlevel.checkpoint()
        if self.request.is_disconnected:
            raise StreamLost("the sender is gone")
        self.is_complete = True

    async def __aexit__(self, exc_type, exc_value, traceback):
        if exc_type is None:
            await self.aclose()
        else:
            self.is_aborted = True


class FakeRequest:
    """A request whose body and whose end the test decides."""

    def __init__(self, *body: bytes, method: str = "GET", has_body: bool | None = None) -> None:
        self.method = method
        self.has_body = bool(body) if has_body is None else has_body
        self.to_receive, self.received = trio.open_memory_channel[bytes](100)
        for piece in (*body, b""):
            self.to_receive.send_nowait(piece)
        self.is_body_lost = False
        self.is_disconnected = False
        self.gone = trio.Event()
        self.responder: FakeResponder | None = None
        self.room: trio.Event | None = None

    async def receive_some(self, max_bytes=None) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.is_body_lost:
            raise StreamLost("cut")
        return await self.received.receive()

    def respond(self, status=200, headers=(), *, reason=None) -> FakeResponder:
        if self.responder is not None:
            raise LocalProtocolError("this request has its response already")
        self.responder = FakeResponder(self, status, list(headers), room=self.room)
        return self.responder

    async def wait_disconnected(self) -> None:
        await self.gone.wait()

    def disconnect(self) -> None:
        self.is_disconnected = True
        self.gone.set()


def call_of(request: FakeRequest) -> HttpCall:
    scope = http_scope(
        MOUNT, method=request.method, target="/web/a", suffix="a", headers=(), remote=None, state={"x": 1}
    )
    return HttpCall(request, scope)


async def answer(app, request: FakeRequest | None = None) -> FakeResponder:
    """Run an application to its end. Returns: its answer."""
    request = request or FakeRequest()
    await call_of(request).run(app)
    assert request.responder is not None
    return request.responder


# HTTP: answers -------------------------------------------------------------------------------------------------------


async def test_one_piece():
    async def app(scope, receive, send):
        assert (scope["type"], scope["path"], scope["state"]) == ("http", "/web/a", {"x": 1})
        await send(START)
        await send(part(b"hello"))

    found = await answer(app)
    assert (found.status, found.headers, found.body, found.is_complete) == (200, [("x-one", "1")], b"hello", True)


async def test_many_pieces_leave_as_they_come():
    request = FakeRequest()

    async def app(scope, receive, send):
        await send(START)
        assert request.responder is None  # ASGI: not before the first part of the body
        await send(part(b"", more=True))
        assert request.responder.status == 200
        for piece in (b"1", b"2"):
            await send(part(piece, more=True))
            assert request.responder.body.endswith(piece)
        await send({"type": "http.response.body"})

    found = await answer(app, request)
    assert (found.body, found.is_complete) == (b"12", True)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_no_body_where_none_belongs(method, status):
    """spec 9.7: for 204, 304 and HEAD any body is dropped."""

    async def app(scope, receive, send):
        await send({**START, "status": status})
        await send(part(b"1", more=True))
        await send(part(b"2"))

    found = await answer(app, FakeRequest(method=method))
    assert (found.status, found.body, found.is_complete) == (status, b"", True)


async def test_back_pressure_reaches_the_application():
    request = FakeRequest()
    request.room = trio.Event()
    sent = []

    async def app(scope, receive, send):
        await send(START)
        await send(part(b"1", more=True))
        sent.append(1)
        await send(part())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_of(request).run, app)
        await wait_all_tasks_blocked()
        assert not sent
        request.room.set()


async def test_the_rest_of_a_call_runs_behind_its_answer():
    """Background work of frameworks; parts behind the last one are ignored."""
    did = []

    async def app(scope, receive, send):
        await send(START)
        await send(part(b"x"))
        await send(part(b"y"))
        did.append(await receive())

    assert (await answer(app)).body == b"x"
    assert did == [{"type": "http.disconnect"}]


# HTTP: what goes wrong -----------------------------------------------------------------------------------------------


async def raised_by(app, request: FakeRequest | None = None) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        await call_of(request or FakeRequest()).run(app)
    return caught.value


async def test_an_exception_before_the_answer_is_handed_on():
    """The listener logs it and answers 500: nothing was begun."""
    request = FakeRequest()

    async def app(scope, receive, send):
        await send(START)
        raise ZeroDivisionError

    assert isinstance(await raised_by(app, request), ZeroDivisionError)
    assert request.responder is None


async def test_an_exception_inside_the_answer_leaves_it_unfinished():
    request = FakeRequest()

    async def app(scope, receive, send):
        await send(START)
        await send(part(b"1", more=True))
        raise ZeroDivisionError

    assert isinstance(await raised_by(app, request), ZeroDivisionError)
    assert not request.responder.is_complete


async def test_an_exception_behind_the_answer_changes_nothing():
    """Frameworks answer 500 by themselves and raise all the same, so that it is logged."""
    request = FakeRequest()

    async def app(scope, receive, send):
        await send({**START, "status": 500})
        await send(part(b"oops"))
        raise ZeroDivisionError

    assert isinstance(await raised_by(app, request), ZeroDivisionError)
    assert (request.responder.status, request.responder.is_complete) == (500, True)


@pytest.mark.parametrize("events", [(), (START,), (START, part(b"1", more=True))])
async def test_returning_without_a_complete_answer(events):
    async def app(scope, receive, send):
        for event in events:
            await send(event)

    assert "without a complete response" in str(await raised_by(app))


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ((part(b"x"),), LocalProtocolError),
        ((START, START), LocalProtocolError),
        (({"type": "http.response.start"},), LocalProtocolError),
        ((START, part("text")), TypeError),
        (({**START, "headers": [("a", "b")]},), TypeError),
        ((START, part(b"1", more=True), START), LocalProtocolError),
        ((START, part(b"1"), START), LocalProtocolError),
        (({"type": "http.response.push"},), LocalProtocolError),
        (({"type": "websocket.accept"},), LocalProtocolError),
        ((None,), TypeError),
    ],
)
async def test_a_wrong_event_raises_where_it_is_sent(events, error):
    caught = []

    async def app(scope, receive, send):
        *good, bad = events
        for event in good:
            await send(event)
        with pytest.raises(error) as found:
            await send(bad)
        caught.append(found.value)
        raise found.value

    assert [await raised_by(app)] == caught


async def test_an_application_may_mend_its_event():
    async def app(scope, receive, send):
        with pytest.raises(LocalProtocolError):
            await send(part(b"too early"))
        await send(START)
        with pytest.raises(TypeError):
            await send(part("text"))
        await send(part(b"text"))

    assert (await answer(app)).body == b"text"


# HTTP: the request's body --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [(), (b"one",), (b"one", b"two", b"three")])
async def test_a_body_comes_in_pieces_and_ends(body):
    found = []

    async def app(scope, receive, send):
        while True:
            event = await receive()
            found.append(event["body"])
            if not event["more_body"]:
                break
        await send(START)
        await send(part())

    await answer(app, FakeRequest(*body))
    assert found == [*body, b""]


async def test_a_request_without_a_body_has_one_event():
    async def app(scope, receive, send):
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send(START)
        await send(part())

    await answer(app, FakeRequest(has_body=False))


async def test_no_disconnect_while_the_sender_waits():
    """ASGI: http.disconnect comes when the response is complete or the sender is gone, and not with the body's end."""
    heard = []

    async def app(scope, receive, send):
        async def listen():
            heard.append(await receive())

        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            assert not heard
            await send(START)
            await send(part(b"1", more=True))
            await wait_all_tasks_blocked()
            assert not heard
            await send(part())

    await answer(app)
    assert heard == [{"type": "http.disconnect"}] * 2


async def test_cancelling_receive_loses_nothing():
    """How frameworks ask whether the sender is there."""
    found = []

    async def app(scope, receive, send):
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await receive()
            assert scope.cancelled_caught
            found.append((await receive())["body"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive()
        assert scope.cancelled_caught
        await send(START)
        await send(part())

    await answer(app, FakeRequest(b"one", b"two"))
    assert found == [b"one", b"two", b""]


# HTTP: senders that leave --------------------------------------------------------------------------------------------


async def test_a_sender_lost_in_its_body():
    heard = []
    request = FakeRequest(b"1", b"2")

    async def app(scope, receive, send):
        await receive()
        request.is_body_lost = True
        request.disconnect()
        heard.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send(START)

    await call_of(request).run(app)
    assert heard == [{"type": "http.disconnect"}]
    assert request.responder is None


async def test_a_way_that_is_lost_is_told_to_the_listener():
    """A response that has not begun may have another way: the listener knows, and tries a refusal."""
    request = FakeRequest(b"1")
    request.is_body_lost = True

    async def app(scope, receive, send):
        assert await receive() == {"type": "http.disconnect"}

    assert isinstance(await raised_by(app, request), StreamLost)


async def test_a_sender_that_leaves_while_the_application_listens():
    request = FakeRequest()
    heard = []

    async def app(scope, receive, send):
        await receive()
        heard.append(await receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_of(request).run, app)
        await wait_all_tasks_blocked()
        assert not heard
        request.disconnect()
    assert heard == [{"type": "http.disconnect"}]


async def test_a_known_loss_is_heard_without_a_checkpoint():
    """Frameworks ask with a receive that is cancelled beforehand. Whoever asks for ever stops nobody else."""
    request = FakeRequest()
    request.disconnect()
    heard = []

    async def app(scope, receive, send):
        with trio.CancelScope() as asking:
            asking.cancel()
            heard.append(await receive())
        with trio.CancelScope() as asking:
            asking.cancel()
            while True:
                await receive()
        assert asking.cancelled_caught

    await call_of(request).run(app)
    assert heard == [{"type": "http.disconnect"}]


@pytest.mark.parametrize("events_before", [0, 1, 2])
async def test_sending_to_a_sender_that_has_left_raises_an_oserror(events_before):
    """ASGI 2.4: "a server-specific subclass of OSError"."""
    request = FakeRequest()
    events = [START, part(b"1", more=True), part(b"2")]

    async def app(scope, receive, send):
        for event in events[:events_before]:
            await send(event)
        request.disconnect()
        for _ in range(2):
            with pytest.raises(OSError, match="the sender has left") as caught:
                await send(events[events_before])
        raise caught.value

    await call_of(request).run(app)


async def test_a_sender_that_leaves_while_its_answer_waits_for_room(caplog):
    request = FakeRequest()
    request.room = trio.Event()

    async def app(scope, receive, send):
        await send(START)
        await send(part(b"1", more=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_of(request).run, app)
        await wait_all_tasks_blocked()
        request.disconnect()
        request.room.set()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


class FrameworkError(Exception):
    """What a framework makes of an OSError or of a disconnect."""


@pytest.mark.parametrize("asks", [True, False])
async def test_what_a_framework_raises_about_a_loss_is_no_error(caplog, asks):
    """ASGI: "should not log it as an error in their server logs"."""
    request = FakeRequest()

    async def app(scope, receive, send):
        request.disconnect()
        if asks:
            await receive()
            raise FrameworkError
        try:
            await send(START)
        except OSError:
            raise ExceptionGroup("tasks", [FrameworkError()])  # noqa: B904 - as they do

    await call_of(request).run(app)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_failure_that_has_nothing_to_do_with_a_loss_is_logged(caplog):
    request = FakeRequest()

    async def app(scope, receive, send):
        request.disconnect()
        raise ZeroDivisionError

    await call_of(request).run(app)
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["ERROR"]


# HTTP: being stopped -------------------------------------------------------------------------------------------------


async def echoing(scope, receive, send):
    data = b""
    while True:
        event = await receive()
        data += event["body"]
        if not event["more_body"]:
            break
    await send(START)
    await send(part(data[:1], more=True))
    await send(part(data[1:]))
    assert await receive() == {"type": "http.disconnect"}


@pytest.mark.parametrize("steps", range(20))
async def test_cancelled_at_each_checkpoint(steps):
    """Nothing hangs, nothing is half done and called whole."""
    request = FakeRequest(b"12", b"34")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_of(request).run, echoing)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    responder = request.responder
    if responder is not None and responder.is_complete:
        assert responder.body == b"1234"
    elif responder is not None:
        assert b"1234".startswith(responder.body)


async def test_a_stop_before_anything_was_sent_is_503():
    request = FakeRequest()
    call = call_of(request)

    async def app(scope, receive, send):
        await send(START)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, app)
        await wait_all_tasks_blocked()
        call.reach.cancel()
    assert (request.responder.status, request.responder.is_complete) == (503, True)
    assert request.responder.body == b"The listener is closing"


async def test_a_stop_inside_the_answer_leaves_it_unfinished():
    request = FakeRequest()
    call = call_of(request)

    async def app(scope, receive, send):
        await send(START)
        await send(part(b"1", more=True))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def run():
            with pytest.raises(LocalProtocolError, match="without a complete response"):
                await call.run(app)

        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        call.reach.cancel()
    assert not request.responder.is_complete


async def test_a_failure_while_being_stopped_is_logged_and_stops_all_the_same(caplog):
    async def failing():
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    async def app(scope, receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing)
            await trio.sleep_forever()

    async def nothing(event=None):
        raise AssertionError

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_app, app, {}, nothing, nothing)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# WebSocket: the stage ------------------------------------------------------------------------------------------------

ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}


class Stage:
    """A WebSocket call, and the sender behind its connection."""

    def __init__(self, nursery: trio.Nursery, app, *subprotocols: str) -> None:
        headers = Headers([("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else [])
        self.incoming = IncomingConnection("web", "chat", "", headers, None, subprotocols, "id", "/web/chat")
        scope = websocket_scope(
            MOUNT, target="/web/chat", suffix="chat", headers=headers, remote=None, subprotocols=subprotocols, state={}
        )
        self.call = WebSocketCall(self.incoming, scope)
        self.nursery = nursery
        self.sender: WebSocketLeg
        self.has_ended = trio.Event()
        nursery.start_soon(self._run, app)

    async def _run(self, app) -> None:
        await self.call.run(app)
        self.has_ended.set()

    async def decide(self) -> Accept | Reject:
        return await self.call.decide()

    def connect(self, subprotocol: str | None = None) -> bool:
        """What the listener does after a yes."""
        ours, theirs = memory_stream_pair()
        self.sender = WebSocketLeg(theirs, role="server")
        info = ConnectionInfo("web", "chat", "", self.incoming.headers, None, subprotocol, "id")
        return self.call.attach(Connection(WebSocketLeg(ours, role="client"), info))

    async def open(self) -> WebSocketLeg:
        decision = await self.decide()
        assert isinstance(decision, Accept)
        assert self.connect(decision.subprotocol)
        return self.sender


@pytest.fixture
def stage(nursery):
    return functools.partial(Stage, nursery)


async def accepting(receive, send) -> None:
    assert await receive() == {"type": "websocket.connect"}
    await send(ACCEPT)


async def hang_up(sender: WebSocketLeg) -> None:
    """What the relay does once both Closes are through."""
    await sender.aclose()


# WebSocket: the handshake --------------------------------------------------------------------------------------------


async def test_accepting_with_a_subprotocol(stage):
    async def app(scope, receive, send):
        await receive()
        await send({**ACCEPT, "subprotocol": "b", "headers": [(b"x", b"dropped")]})
        await send({"type": "websocket.send", "text": "hello"})

    chat = stage(app, "a", "b")
    assert await chat.decide() == Accept("b")
    assert chat.connect("b")
    assert await chat.sender.receive() == Text("hello")
    assert await chat.sender.receive() == Close(1000, "")
    await chat.sender.send_close()
    await hang_up(chat.sender)
    await chat.has_ended.wait()


async def test_accepting_waits_for_the_connection(stage):
    did = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        did.append(1)

    chat = stage(app)
    assert await chat.decide() == Accept(None)
    await wait_all_tasks_blocked()
    assert not did
    assert chat.connect()
    await wait_all_tasks_blocked()
    assert did


async def test_a_connection_that_never_comes(stage, autojump_clock: MockClock):
    """spec 14: the relay gives an accept 30 seconds."""
    heard = []

    async def app(scope, receive, send):
        with pytest.raises(OSError, match="before it was accepted"):
            await accepting(receive, send)
        heard.append(await receive())

    chat = stage(app)
    await chat.decide()
    with trio.fail_after(31):
        await chat.has_ended.wait()
    assert heard == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert not chat.connect()


@pytest.mark.parametrize(
    ("events", "decision"),
    [
        ((CLOSE,), Reject(403, "Forbidden")),
        (({**CLOSE, "code": 4001, "reason": "no"},), Reject(403, "Forbidden")),
        (
            (
                {"type": "websocket.http.response.start", "status": 401},
                {"type": "websocket.http.response.body", "body": b"a", "more_body": True},
                {"type": "websocket.http.response.body", "body": b"b"},
            ),
            Reject(401, "Unauthorized"),
        ),
        (
            (
                {"type": "websocket.http.response.start", "status": 499},
                {"type": "websocket.http.response.body"},
            ),
            Reject(499, "Refused"),
        ),
        ((), Reject(500, "Internal Server Error")),
        (({"type": "websocket.http.response.start", "status": 401},), Reject(500, "Internal Server Error")),
    ],
)
async def test_refusing(stage, events, decision):
    """spec 7.3: a status and a phrase."""
    heard = []

    async def app(scope, receive, send):
        await receive()
        for event in events:
            await send(event)
        if decision.status in (401, 403):
            if events[0]["type"] == "websocket.http.response.start" and len(events) == 1:
                return
            heard.append((await receive())["type"])
            with pytest.raises(ClientDisconnected):
                await send(ACCEPT)

    assert await stage(app).decide() == decision
    await wait_all_tasks_blocked()
    assert heard in ([], ["websocket.disconnect"])


async def test_an_exception_before_the_decision_is_500(stage, caplog):
    async def app(scope, receive, send):
        raise ZeroDivisionError

    assert await stage(app).decide() == Reject(500, "Internal Server Error")
    await wait_all_tasks_blocked()
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["ERROR"]


async def test_a_sender_that_does_not_wait_for_the_decision(stage):
    heard = []

    async def app(scope, receive, send):
        await receive()
        heard.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)

    chat = stage(app)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.decide)
            await wait_all_tasks_blocked()
            scope.cancel()
    await chat.has_ended.wait()
    assert heard == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_an_unoffered_subprotocol_can_be_mended(stage):
    async def app(scope, receive, send):
        await receive()
        with pytest.raises(LocalProtocolError, match="did not offer"):
            await send({**ACCEPT, "subprotocol": "z"})
        await send(CLOSE)

    assert await stage(app, "a").decide() == Reject(403, "Forbidden")


# WebSocket: messages -------------------------------------------------------------------------------------------------


async def echo(scope, receive, send):
    await accepting(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


async def test_text_and_bytes_both_ways(stage):
    sender = await stage(echo).open()
    for data in ("text", "", "é" * 40_000):
        await sender.send_text(data)
        assert await sender.receive() == Text(data)
    for data in (b"bytes", b"", b"\xff" * 100_000):
        await sender.send_binary(data)
        assert await sender.receive() == Binary(data)


@pytest.mark.parametrize(
    ("sent", "answered", "heard"),
    [
        ((1000, "bye"), 1000, (1000, "bye")),
        ((None, ""), 1000, (1005, "")),
        ((1001, "gone"), 1001, (1001, "gone")),
        ((4000, ""), 4000, (4000, "")),
    ],
)
async def test_the_sender_closes(stage, sent, answered, heard):
    """ASGI: code and reason; 1005 where the sender named no code."""
    events = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        events.append(await receive())
        events.append(await receive())
        for event in ({"type": "websocket.send", "text": "x"}, CLOSE):
            with pytest.raises(ClientDisconnected):
                await send(event)

    chat = stage(app)
    sender = await chat.open()
    await sender.send_text("last")
    await sender.send_close(*sent)
    closed = await sender.receive()
    assert closed.code == answered
    await hang_up(sender)
    await chat.has_ended.wait()
    assert [event["type"] for event in events] == ["websocket.receive", "websocket.disconnect"]
    assert (events[1]["code"], events[1]["reason"]) == heard


async def test_a_sender_that_is_lost(stage):
    events = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        events.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "x"})

    chat = stage(app)
    sender = await chat.open()
    await sender.aclose()
    await chat.has_ended.wait()
    assert events == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_a_sender_that_breaks_the_rules(stage):
    events = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        events.append(await receive())

    chat = stage(app)
    sender = await chat.open()
    await sender.stream.send_all(b"\xff\xff")
    await chat.has_ended.wait()
    assert events[0]["code"] == 1002
    assert (await sender.receive()).code == 1002


async def test_an_application_that_only_sends_learns_of_the_end(stage):
    async def app(scope, receive, send):
        await accepting(receive, send)
        with contextlib.suppress(ClientDisconnected):
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await trio.lowlevel.checkpoint()

    chat = stage(app)
    sender = await chat.open()
    assert await sender.receive() == Text("tick")
    await sender.send_close()
    while not isinstance(await sender.receive(), Close):
        pass
    await hang_up(sender)
    await chat.has_ended.wait()


async def test_an_application_that_does_not_receive_stops_its_sender(stage):
    """What waits is bounded, by count too: empty messages cost something."""
    let_go = trio.Event()
    received = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        await let_go.wait()
        while (event := await receive())["type"] == "websocket.receive":
            received.append(event["text"] or event["bytes"])

    chat = stage(app)
    sender = await chat.open()
    for _ in range(40):
        await sender.send_binary(b"x" * 10_000)
    await wait_all_tasks_blocked()
    assert chat.call._inbox_bytes < 65_536 + 11_000
    let_go.set()
    await wait_all_tasks_blocked()
    assert received == [b"x" * 10_000] * 40
    assert chat.call._inbox_bytes == 0


async def test_many_tasks_may_send(stage):
    async def app(scope, receive, send):
        await accepting(receive, send)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, {"type": "websocket.send", "text": str(number) * 1000})

    sender = await stage(app).open()
    found = [await sender.receive() for _ in range(20)]
    assert set(found) == {Text(str(number) * 1000) for number in range(20)}


# WebSocket: its end --------------------------------------------------------------------------------------------------


async def closing_code(chat: Stage) -> tuple[int, str]:
    close = await chat.sender.receive()
    assert isinstance(close, Close)
    await chat.sender.send_close(close.code)
    await hang_up(chat.sender)
    await chat.has_ended.wait()
    return close.code, close.reason


async def test_the_application_closes(stage):
    """ASGI: with its code and reason; afterwards receive tells of the end, and nothing can be sent."""
    heard = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        await send({**CLOSE, "code": 4001, "reason": "enough"})
        heard.append(await receive())
        for event in (CLOSE, {"type": "websocket.send", "text": "x"}, ACCEPT):
            with pytest.raises(OSError, match="closed"):
                await send(event)

    chat = stage(app)
    await chat.open()
    assert await closing_code(chat) == (4001, "enough")
    assert heard == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}]


async def test_an_application_that_returns_closes_with_1000(stage):
    async def app(scope, receive, send):
        await accepting(receive, send)

    chat = stage(app)
    await chat.open()
    assert await closing_code(chat) == (1000, "")


async def test_an_application_that_fails_closes_with_1011(stage, caplog):
    async def app(scope, receive, send):
        await accepting(receive, send)
        raise ZeroDivisionError

    chat = stage(app)
    await chat.open()
    assert await closing_code(chat) == (1011, "")
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["ERROR"]


async def test_a_wrong_event_is_the_application_s_failure(stage):
    async def app(scope, receive, send):
        await accepting(receive, send)
        await send(ACCEPT)

    chat = stage(app)
    await chat.open()
    assert await closing_code(chat) == (1011, "")


async def test_a_framework_s_word_for_a_disconnect_is_no_error(stage, caplog):
    async def app(scope, receive, send):
        await accepting(receive, send)
        await receive()
        raise FrameworkError

    chat = stage(app)
    sender = await chat.open()
    await sender.aclose()
    await chat.has_ended.wait()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_going_away(stage):
    """spec 13: 1001 for those that are open, 503 for those that wait."""
    heard = []

    async def app(scope, receive, send):
        await accepting(receive, send)
        heard.append(await receive())

    chat = stage(app)
    await chat.open()
    chat.nursery.start_soon(chat.call.go_away)
    assert await closing_code(chat) == (1001, "The listener is closing")
    assert heard == [{"type": "websocket.disconnect", "code": 1001, "reason": "The listener is closing"}]

    async def undecided(scope, receive, send):
        await receive()
        heard.append(await receive())

    chat = stage(undecided)
    await wait_all_tasks_blocked()
    await chat.call.go_away()
    assert await chat.decide() == Reject(503, "The listener is closing")
    await chat.has_ended.wait()
    assert heard[1]["code"] == 1006


async def test_stopped_in_the_middle(stage):
    async def app(scope, receive, send):
        await accepting(receive, send)
        await trio.sleep_forever()

    chat = stage(app)
    await chat.open()
    chat.call.reach.cancel()
    assert await closing_code(chat) == (1001, "The listener is closing")

    async def undecided(scope, receive, send):
        await trio.sleep_forever()

    chat = stage(undecided)
    await wait_all_tasks_blocked()
    chat.call.reach.cancel()
    assert await chat.decide() == Reject(503, "The listener is closing")


@pytest.mark.parametrize("steps", range(0, 40, 2))
async def test_a_websocket_cancelled_at_each_checkpoint(steps):
    """Nothing hangs: the whole of it ends with its nursery."""
    with trio.CancelScope() as everything:
        async with trio.open_nursery() as nursery:
            chat = Stage(nursery, echo)

            async def talk():
                sender = await chat.open()
                await sender.send_text("x" * 1000)
                await sender.receive()
                await sender.send_close()
                await sender.receive()
                await hang_up(sender)

            nursery.start_soon(talk)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            everything.cancel()
