"""What an ASGI application is told, and what it may say in which order; no relay, no event loop."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.client.asgi_events import (
    Accepting,
    BodyPart,
    Closing,
    Mount,
    Refusing,
    ResponseEvents,
    ResponseStart,
    Sending,
    WebSocketEvents,
    http_scope,
    lifespan_scope,
    websocket_scope,
)
from relaycore.errors import ConfigError, LocalProtocolError
from relaycore.wire.messages import RemoteEndpoint

SENDER = RemoteEndpoint("203.0.113.7", 51234)


def mount(entity: str = "web", root_path: str | None = None, *, is_tls: bool = True) -> Mount:
    return Mount.at(entity, root_path, is_tls=is_tls, server=("relay.example", 443))


def scope_of(target: str, at: Mount | None = None, *, suffix: str = "", method: str = "GET", headers=(), remote=SENDER):
    return http_scope(
        at or mount(),
        method=method,
        target=target,
        suffix=suffix,
        headers=headers,
        remote=remote,
        state={"pool": []},
    )


# Scopes --------------------------------------------------------------------------------------------------------------


def test_the_scope_of_a_request():
    """ASGI: "HTTP Connection Scope", every member."""
    headers = [("Host", "relay.example"), ("X-One", "1"), ("Via", "1.1 relay.example"), ("x-one", "\xe9")]
    assert scope_of("/web/a%20b/%C3%A9?x=1&y=%20", method="get", headers=headers) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/web/a b/é",
        "raw_path": b"/web/a%20b/%C3%A9",
        "query_string": b"x=1&y=%20",
        "root_path": "/web",
        "headers": [
            (b"host", b"relay.example"),
            (b"x-one", b"1"),
            (b"via", b"1.1 relay.example"),
            (b"x-one", b"\xe9"),
        ],
        "client": ("203.0.113.7", 51234),
        "server": ("relay.example", 443),
        "state": {"pool": []},
    }


def test_the_scope_of_a_websocket():
    """ASGI: "Websocket Connection Scope", every member."""
    scope = websocket_scope(
        mount(is_tls=False),
        target="/web/chat/?room=1",
        suffix="chat",
        headers=[("Sec-WebSocket-Protocol", "a, b")],
        remote=None,
        subprotocols=("a", "b"),
        state={},
    )
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/web/chat/",
        "raw_path": b"/web/chat/",
        "query_string": b"room=1",
        "root_path": "/web",
        "headers": [(b"sec-websocket-protocol", b"a, b")],
        "client": None,
        "server": ("relay.example", 443),
        "subprotocols": ["a", "b"],
        "extensions": {"websocket.http.response": {}},
        "state": {},
    }


def test_the_scope_of_a_lifespan_may_be_filled():
    """ASGI, lifespan: the state is the application's to fill."""
    state: dict[str, object] = {}
    scope = lifespan_scope(state)
    assert (scope["type"], scope["asgi"]) == ("lifespan", {"version": "3.0", "spec_version": "2.0"})
    scope["state"]["pool"] = 1
    assert state == {"pool": 1}


def test_each_request_has_a_shallow_copy_of_the_state():
    """ASGI, lifespan: "a shallow copy of the namespace is passed into each subsequent request"."""
    shared: list[int] = []
    state = {"pool": shared}
    first, second = (
        http_scope(mount(), method="GET", target="/", suffix="", headers=(), remote=None, state=state) for _ in "12"
    )
    first["state"]["own"] = 1
    assert second["state"] == {"pool": shared}
    assert first["state"]["pool"] is shared


@pytest.mark.parametrize(
    ("entity", "root_path", "target", "path"),
    [
        ("web", None, "/web", "/web"),
        ("web", None, "/web/", "/web/"),
        ("web", None, "/web/a/", "/web/a/"),
        ("web", None, "/web//a", "/web//a"),
        ("web", None, "//web/a", "/web/a"),
        ("web", None, "/WEB/A", "/web/A"),
        ("web", None, "/%77eb/a%2Fb", "/web/a/b"),
        ("web", None, "/web/a b", "/web/a b"),
        ("web", None, "/web/%2520", "/web/%20"),
        ("web", None, "/web/%ff", "/web/\ufffd"),
        ("web", None, "https://relay.example/web/a?x", "/web/a"),
        ("dept/web", None, "/dept/web/a", "/dept/web/a"),
        ("dept/web", None, "/dept%2Fweb/a", "/dept/web/a"),
        ("dept/web", None, "/dept%2Fweb%2Fa", "/dept/web/the suffix"),
        ("web", "", "/web/a", "/a"),
        ("web", "", "/web", "/"),
        ("web", "/", "/web/a", "/a"),
        ("web", "/api/v1/", "/web/a", "/api/v1/a"),
        ("web", "/api", "/web", "/api"),
    ],
)
def test_paths_begin_with_the_root_path(entity, root_path, target, path):
    """spec 3: entity names are compared without regard to case, so the application's own spelling counts."""
    scope = scope_of(target, mount(entity, root_path), suffix="the suffix")
    assert scope["path"] == path
    assert path.startswith(scope["root_path"])


def test_the_raw_path_is_what_the_sender_sent():
    """spec 9.4: a blank in the target was %20; a sender cannot send one."""
    assert scope_of("/web/a b?q=a%20b+c")["raw_path"] == b"/web/a%20b"


def test_a_root_path_needs_its_slash():
    with pytest.raises(ConfigError, match="'/api'"):
        mount(root_path="api")


@given(target=st.text(max_size=40), suffix=st.text(max_size=10), root_path=st.sampled_from(["", "/x", None]))
def test_any_target_makes_a_scope(target, suffix, root_path):
    scope = scope_of("/" + target, mount("web", root_path), suffix=suffix)
    assert scope["path"].startswith("/")
    assert isinstance(scope["raw_path"], bytes)
    assert isinstance(scope["query_string"], bytes)


# HTTP ----------------------------------------------------------------------------------------------------------------

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def started(method: str = "GET", **start) -> ResponseEvents:
    events = ResponseEvents(method)
    events.take({**START, **start})
    return events


def body(data: bytes = b"", **others) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, **others}


def test_an_answer_in_one_piece():
    events = ResponseEvents("GET")
    assert events.take(START) == ResponseStart(200, [("content-type", "text/plain")]) == events.start
    assert events.take(body(b"hello")) == BodyPart(b"hello", True)
    assert events.is_complete


def test_an_answer_in_many_pieces():
    events = started()
    assert events.take(body(b"1", more_body=True)) == BodyPart(b"1", False)
    assert events.take(body(bytearray(b"2"), more_body=True)) == BodyPart(b"2", False)
    assert events.take(body(memoryview(b"3"), more_body=True)) == BodyPart(b"3", False)
    assert not events.is_complete
    assert events.take({"type": "http.response.body"}) == BodyPart(b"", True)


def test_headers_are_optional_and_keep_order_and_case():
    assert ResponseEvents("GET").take({"type": "http.response.start", "status": 204}) == ResponseStart(204, [])
    pairs = [[b"Set-Cookie", b"a"], (b"x", b" padded\t"), (b"set-cookie", b"b\xff")]
    start = ResponseEvents("GET").take({**START, "headers": iter(pairs)})
    assert start.headers == [("Set-Cookie", "a"), ("x", "padded"), ("set-cookie", "b\xff")]


def test_transfer_encoding_is_not_the_application_s():
    """ASGI: "the server must ignore it"."""
    start = ResponseEvents("GET").take({**START, "headers": [(b"Transfer-Encoding", b"chunked"), (b"a", b"b")]})
    assert start.headers == [("a", "b")]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("head", 404), ("GET", 204), ("POST", 304)])
def test_answers_without_a_body(method, status):
    """spec 9.7: for 204, 304 and HEAD any body is dropped; a Content-Length may stand there."""
    events = started(method, status=status, headers=[(b"content-length", b"1000")])
    assert events.take(body(b"dropped", more_body=True)) == BodyPart(b"", False)
    assert events.take(body()) == BodyPart(b"", True)


def test_what_comes_behind_the_last_part_is_ignored():
    """ASGI: "any further messages on the channel will be ignored"."""
    events = started()
    events.take(body(b"x"))
    assert events.take(body(b"y")) is None
    assert events.take(body(b"z", more_body=True)) is None


@pytest.mark.parametrize("status", [200, 201, 299, 306, 407, 418, 450, 599, HTTPStatus.NOT_FOUND])
def test_statuses(status):
    found = ResponseEvents("GET").take({**START, "status": status}).status
    assert found == status
    assert type(found) is int


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "http.response.body"}, LocalProtocolError),
        ({"type": "http.response.trailers"}, LocalProtocolError),
        ({"type": "http.response.pathsend", "path": "/etc/passwd"}, LocalProtocolError),
        ({"type": "websocket.accept"}, LocalProtocolError),
        ({}, LocalProtocolError),
        ({"type": b"http.response.start"}, TypeError),
        (None, TypeError),
        ("http.response.start", TypeError),
        ({"type": "http.response.start"}, LocalProtocolError),
        ({**START, "status": None}, LocalProtocolError),
        ({**START, "status": "200"}, TypeError),
        ({**START, "status": True}, TypeError),
        ({**START, "status": 100}, LocalProtocolError),
        ({**START, "status": 600}, LocalProtocolError),
        ({**START, "headers": [("content-type", "text/plain")]}, TypeError),
        ({**START, "headers": [(b"content-type", None)]}, TypeError),
        ({**START, "headers": [(b"", b"x")]}, LocalProtocolError),
        ({**START, "headers": [(b":status", b"200")]}, LocalProtocolError),
        ({**START, "headers": [(b"x", b"a\r\nset-cookie: b")]}, LocalProtocolError),
        ({**START, "headers": [(b"content-length", b"-1")]}, LocalProtocolError),
        ({**START, "headers": [(b"content-length", b"1"), (b"Content-Length", b"2")]}, LocalProtocolError),
    ],
)
def test_wrong_first_events_change_nothing(event, error):
    events = ResponseEvents("GET")
    with pytest.raises(error):
        events.take(event)
    assert events.start is None
    assert events.take(START)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (START, LocalProtocolError),
        (body("text"), TypeError),
        (body(None), TypeError),
        (body(b"12345"), LocalProtocolError),
        (body(b"123"), LocalProtocolError),
        (body(b"12345", more_body=True), LocalProtocolError),
        ({"type": "http.response.end"}, LocalProtocolError),
    ],
)
def test_wrong_later_events_change_nothing(event, error):
    events = started(headers=[(b"content-length", b"4")])
    with pytest.raises(error):
        events.take(event)
    assert events.take(body(b"1234")) == BodyPart(b"1234", True)


def test_a_second_start_is_an_error_to_the_end():
    events = started()
    events.take(body())
    with pytest.raises(LocalProtocolError, match="not 'http\\.response\\.start'"):
        events.take(START)


# WebSocket -----------------------------------------------------------------------------------------------------------

ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}
DENY = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]}
DENIAL_BODY = {"type": "websocket.http.response.body"}


def send(**members) -> dict[str, object]:
    return {"type": "websocket.send", **members}


def opened(*offered: str) -> WebSocketEvents:
    events = WebSocketEvents(offered)
    events.take(ACCEPT)
    return events


def test_accept_send_close():
    events = WebSocketEvents(["a", "b"])
    assert events.take({**ACCEPT, "subprotocol": "b", "headers": [(b"x", b"y")]}) == Accepting("b", 1)
    assert events.take(send(text="hello")) == Sending("hello")
    assert events.take(send(bytes=b"", text=None)) == Sending(b"")
    assert events.take(send(bytes=bytearray(b"x"))) == Sending(b"x")
    assert not events.is_closed
    assert events.take({**CLOSE, "code": 4001, "reason": "done"}) == Closing(4001, "done")
    assert events.is_closed


@pytest.mark.parametrize("event", [ACCEPT, {**ACCEPT, "subprotocol": None}, {**ACCEPT, "headers": []}])
def test_accepting_without_more(event):
    assert WebSocketEvents(["a"]).take(event) == Accepting(None, 0)


def test_a_close_needs_nothing_more():
    assert opened().take(CLOSE) == Closing(1000, "")
    assert opened().take({**CLOSE, "reason": None}) == Closing(1000, "")


def test_closing_before_accepting_refuses():
    """ASGI: "with a HTTP 403 error code"."""
    events = WebSocketEvents([])
    assert events.take({**CLOSE, "code": 4000}) == Refusing(403, 0)
    assert events.is_closed


def test_a_denial_in_pieces():
    """spec 7.3: a rejection carries a status and a phrase, no body."""
    events = WebSocketEvents([])
    assert events.take(DENY) is None
    assert events.take({**DENIAL_BODY, "body": b"12", "more_body": True}) is None
    assert events.take({**DENIAL_BODY, "body": b"3"}) == Refusing(401, 3)
    assert events.is_closed


@pytest.mark.parametrize("status", [200, 204, 307])
def test_a_denial_that_no_rejection_can_carry(status):
    """spec 7.3: 400 to 599."""
    events = WebSocketEvents([])
    events.take({**DENY, "status": status})
    assert events.take(DENIAL_BODY) == Refusing(403, 0)


CONNECTING = {
    "send": send(text=""),
    "denial body": DENIAL_BODY,
    "http": START,
    "no type": {},
}
OPEN = {"accept": ACCEPT, "deny": DENY, "denial body": DENIAL_BODY, "receive": {"type": "websocket.receive"}}
DENYING = {"accept": ACCEPT, "close": CLOSE, "deny": DENY, "send": send(text="")}
CLOSED = {**OPEN, "close": CLOSE, "send": send(text="")}


def in_state(state: str) -> WebSocketEvents:
    events = WebSocketEvents(["a"])
    for event in {"connecting": (), "open": (ACCEPT,), "denying": (DENY,), "closed": (ACCEPT, CLOSE)}[state]:
        events.take(event)
    return events


@pytest.mark.parametrize(
    ("state", "event"),
    [
        pytest.param(state, event, id=f"{state}: {name}")
        for state, wrong in {"connecting": CONNECTING, "open": OPEN, "denying": DENYING, "closed": CLOSED}.items()
        for name, event in wrong.items()
    ],
)
def test_every_transition_that_is_none(state, event):
    events = in_state(state)
    before = events.is_closed
    with pytest.raises(LocalProtocolError):
        events.take(event)
    assert events.is_closed is before


@pytest.mark.parametrize(
    ("state", "event", "error"),
    [
        ("connecting", {**ACCEPT, "subprotocol": "z"}, LocalProtocolError),
        ("connecting", {**ACCEPT, "subprotocol": b"a"}, TypeError),
        ("connecting", {**ACCEPT, "headers": [("a", "b")]}, TypeError),
        ("connecting", {**DENY, "status": None}, LocalProtocolError),
        ("connecting", {**DENY, "headers": [(b"a", b"\n")]}, LocalProtocolError),
        ("connecting", None, TypeError),
        ("denying", {**DENIAL_BODY, "body": "text"}, TypeError),
        ("open", send(), LocalProtocolError),
        ("open", send(text=None, bytes=None), LocalProtocolError),
        ("open", send(text="", bytes=b""), LocalProtocolError),
        ("open", send(text=b"x"), TypeError),
        ("open", send(bytes="x"), TypeError),
        ("open", {**CLOSE, "code": 1005}, LocalProtocolError),
        ("open", {**CLOSE, "code": 999}, LocalProtocolError),
        ("open", {**CLOSE, "code": "1000"}, TypeError),
        ("open", {**CLOSE, "code": False}, TypeError),
        ("open", {**CLOSE, "reason": b"x"}, TypeError),
        ("open", {**CLOSE, "reason": "é" * 62}, LocalProtocolError),
    ],
)
def test_wrong_values_change_nothing(state, event, error):
    events = in_state(state)
    with pytest.raises(error):
        events.take(event)
    assert events.take({"connecting": ACCEPT, "denying": DENIAL_BODY, "open": CLOSE}[state]) is not None
