"""Rules of the wire contract about relayed HTTP, end to end over loopback: from the listener's answer to the sender."""

from __future__ import annotations

import json
import os
import struct

import pytest
import trio
from peers import (
    Asked,
    HttpAnswer,
    WirePeer,
    body_frames,
    close_frame,
    frame,
    http_head,
    http_request,
    response_text,
    split_address,
)

from relaycore.config import TimeoutsConfig

GUID = "12345678-1234-1234-1234-1234567890ab"


@pytest.fixture
async def control(relay) -> WirePeer:
    """A listener of the anonymous entity."""
    return await relay.listen("open")


@pytest.fixture
def exchange(relay, control):
    """One request, answered on the control channel."""

    async def run(status=200, body=None, *, method="GET", version="1.1", **members) -> HttpAnswer:
        sender = await relay.ask(method, "/open", version=version)
        await control.respond(await control.read_request(), status, body, **members)
        return await sender.read_http(method)

    return run


async def asked_here(relay, control, **options) -> tuple[WirePeer, Asked]:
    sender = await relay.ask("GET", "/open", **options)
    return sender, await relay.asked(control, sender)


def header_lines(answer: HttpAnswer) -> list[tuple[str, str]]:
    """What the listener made of the head: without what frames the body."""
    return [(name, value) for name, value in answer.lines if name not in ("Content-Length", "Transfer-Encoding")]


# The status line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", [200, 201, 204, 205, 206, 226, 299, 301, 304, 306, 400, 401, 404, 407, 418, 426, 450, 451]
)
@pytest.mark.parametrize("body", [None, b"a body"])
async def test_statuses_pass(exchange, status, body) -> None:
    """spec 9.7/codes, spec 9.8/status-line: everything that the tests of the SDKs use, with and without a body."""
    answer = await exchange(status, body, statusDescription="As Given")
    assert (answer.status, answer.reason) == (status, "As Given")
    assert answer.body == (b"" if status in (204, 304) or body is None else body)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599, 600, 777, 999])
async def test_statuses_of_servers_pass(exchange, status) -> None:
    """spec 9.7/codes, spec 19/502-504: 502 and 504 of a listener are its own, and up to 999 all are."""
    answer = await exchange(status, b"mine", statusDescription="Mine")
    assert (answer.status, answer.reason, answer.body) == (status, "Mine", b"mine")
    assert answer.value("Via") == "1.1 relay.test"


@pytest.mark.parametrize("status", ["200", "404", "999"])
async def test_a_status_may_be_a_string_of_digits(exchange, status) -> None:
    """spec 9.7/status-code, spec 19/502-504: the guide shows a string."""
    assert (await exchange(status, b"x")).status == int(status)


@pytest.mark.parametrize("status", [100, 101, 103, 199, 0, -200, 1000, 99_999, "abc", "", "2e2", "٢٠٠", None, 1e300])
@pytest.mark.parametrize("body", [None, b"swallowed"])
async def test_unusable_statuses_are_502(exchange, status, body) -> None:
    """spec 9.7/bad-status: 1xx would leave the sender waiting; the next answer is not disturbed."""
    assert (await exchange(status, body)).status == 502
    assert (await exchange(200, b"next")).body == b"next"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"statusDescription": "Fine \xe9\xff"}, "Fine \xe9\xff"),
        ({"statusDescription": "\"'(){}[]<>=/,:;@\\"}, "\"'(){}[]<>=/,:;@\\"),
        ({"statusDescription": ""}, ""),
        ({}, "OK"),
        ({"statusDescription": None}, "OK"),
        ({"statusDescription": "a\r\nX-Injected: 1"}, None),
        ({"statusDescription": "a\nb\x00c"}, None),
        ({"statusDescription": "snow \u2603 man"}, None),
    ],
)
async def test_reason_phrases(exchange, members, reason) -> None:
    """spec 9.7/description: Latin-1 verbatim, empty stays empty, the standard one where it is missing, no line ends."""
    answer = await exchange(200, b"x", **members)
    assert answer.status == 200
    assert "x-injected" not in answer.headers
    if reason is not None:
        assert answer.reason == reason
    else:
        assert answer.reason
        assert not set("\r\n\0") & set(answer.reason)


async def test_standard_reason_phrases(exchange) -> None:
    """spec 9.7/description: of the status, where the listener gave none; of an unknown one there is none."""
    assert (await exchange(404)).reason == "Not Found"
    assert (await exchange(503)).reason == "Service Unavailable"
    assert (await exchange(799)).status == 799


# Headers -------------------------------------------------------------------------------------------------------------


async def test_headers_reach_the_sender(exchange) -> None:
    """spec 10/response-passed, spec 10/response-authorization, spec 9.7/headers: spelling, value and order kept."""
    given = {
        "Content-Type": "text/html",
        "X-One": "1",
        "content-encoding": "gzip",
        "ETag": '"x"',
        "Server": "mine",
        "Date": "Sun, 06 Nov 1994 08:49:37 GMT",
        "Cache-Control": "no-store",
        "Location": "https://elsewhere.test/?a=b&sb-hc-token=mine",
        "Authorization": "passed",
        "Access-Control-Allow-Origin": "*",
        "WWW-Authenticate": 'Basic realm="x"',
        "X-Joined": "responseValue1,responseValue2",
        "X-Empty": "",
    }
    answer = await exchange(200, b"x", responseHeaders=given)
    assert header_lines(answer) == [*given.items(), ("Via", "1.1 relay.test")]


async def test_headers_that_do_not_reach_the_sender(exchange) -> None:
    """spec 10/response-removed, spec 9.8/content-length: each row; azbridge does send its back end's lengths."""
    removed = {
        "ServiceBusAuthorization": "secret",
        "Host": "inner.test",
        "Connection": "close, X-Nominated",
        "Upgrade": "h2c",
        "content-length": "999",
        "Transfer-Encoding": "chunked",
        "TE": "x",
        "Trailer": "y",
        "Close": "z",
        "Keep-Alive": "timeout=1",
        "Proxy-Connection": "close",
        "X-Nominated": "hop by hop",
    }
    for body in (b"12345", None):
        answer = await exchange(200, body, responseHeaders={**removed, "X-Mine": "1"})
        assert {name for name in answer.headers} - {"content-length", "content-type"} == {"x-mine", "via"}
        assert answer.value("Content-Length") == ("0" if body is None else "5")


async def test_via_of_an_answer(exchange) -> None:
    """spec 10/response-via, spec 9.8/via: the listener's own, then ``1.1`` and the host that the sender called."""
    assert (await exchange(200)).value("Via") == "1.1 relay.test"
    assert (await exchange(200, responseHeaders={"via": "1.0 inner"})).value("Via") == "1.0 inner, 1.1 relay.test"


async def test_spelling_and_bytes_of_an_answer(exchange) -> None:
    """spec 10/response-spelling: the name and value of a Java test, also as reason phrase."""
    name = "!#$%&*+-.^_`~|ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    value = "\"'(){}[]<>=/,:;@\\ \xe9\xff"
    answer = await exchange(200, statusDescription=value, responseHeaders={name: value})
    assert (name, value) in answer.lines
    assert answer.reason == value


async def test_values_of_other_types(exchange) -> None:
    """spec 10/response-values, spec 6.2/liberal: numbers and booleans as text; of arrays only cookies are lines."""
    given = {
        "X-Number": 5,
        "X-True": True,
        "X-List": ["a", "b", 3],
        "Set-Cookie": ["a=1; Path=/", "b=2, 3"],
        "X-Null": None,
    }
    answer = await exchange(200, responseHeaders=given)
    assert answer.value("X-Number") == "5"
    assert answer.value("X-True") == "true"
    assert answer.value("X-List") == "a, b, 3"
    assert answer.headers["set-cookie"] == ["a=1; Path=/", "b=2, 3"]


async def test_one_cookie_is_one_line(exchange) -> None:
    """spec 10/set-cookie: a string is passed as it is, commas and all."""
    answer = await exchange(200, responseHeaders={"set-cookie": "a=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT"})
    assert answer.headers["set-cookie"] == ["a=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Bad", "a\r\nX-Injected: 1"),
        ("X-Bad", "a\nX-Injected: 1"),
        ("X-Bad", "a\rb"),
        ("X-Bad", "a\x00b"),
        ("X-Bad\r\nX-Injected", "1"),
        ("X Bad", "1"),
        ("X-Bad:", "1"),
        ("", "1"),
        ("X-Bad", "snow \u2603"),
        ("Set-Cookie", ["a=1\r\nX-Injected: 1"]),
    ],
)
async def test_headers_that_would_break_the_head_are_dropped(exchange, name, value) -> None:
    """spec 10/response-clean: alone, and the answer is delivered."""
    answer = await exchange(200, b"body", responseHeaders={name: value, "X-Good": "1"})
    assert (answer.status, answer.body, answer.value("X-Good")) == (200, b"body", "1")
    assert answer.headers.keys() <= {"x-good", "via", "content-length", "content-type"}


@pytest.mark.parametrize(
    ("given", "body", "seen"),
    [
        ({}, b"x", "application/octet-stream"),
        (None, b"x", "application/octet-stream"),
        ({"content-TYPE": "text/plain"}, b"x", "text/plain"),
        ({}, None, None),
    ],
)
async def test_a_body_has_a_content_type(exchange, given, body, seen) -> None:
    """spec 9.8/content-type: a Java test reads the body by an API that fails without one."""
    answer = await exchange(200, body, responseHeaders=given)
    assert answer.value("Content-Type") == seen


# Bodies on the control channel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
async def test_bodies_on_the_control_channel(exchange, size) -> None:
    """spec 9.7/limits, spec 15/response-on-control, spec 9.8/content-length: 65 536 bytes of body, known length."""
    body = os.urandom(size)
    answer = await exchange(200, body)
    assert answer.framing == "length"
    assert answer.body == body


async def test_json_of_64_kib_before_a_body_of_64_kib(exchange) -> None:
    """spec 9.7/limits, spec 19/64k-limit: the limit counts the body alone."""
    body = os.urandom(65_536)
    answer = await exchange(200, body, responseHeaders={"X-Long": "x" * 65_000})
    assert answer.value("X-Long") == "x" * 65_000
    assert answer.body == body


async def test_a_body_message_over_the_limit_closes_the_channel(relay, control) -> None:
    """spec 9.7/limits, spec 6.2/oversize: 65 537 bytes on the control channel are 1009, and 502 for the sender."""
    sender, asked = await asked_here(relay, control)
    await control.respond(asked, 200, bytes(65_537))
    assert await control.read_close() == 1009
    assert (await sender.read_http()).status == 502


async def test_a_response_message_over_the_limit_closes_the_channel(relay, control) -> None:
    """spec 13/request-too-big, spec 6.2/oversize: 1009; who waits for that listener gets 502."""
    sender, asked = await asked_here(relay, control)
    await control.respond(asked, 200, responseHeaders={"X-Long": "x" * 70_000})
    assert await control.read_close() == 1009
    assert (await sender.read_http()).status == 502


@pytest.mark.parametrize(
    "data",
    [
        frame(2, b"hello"),
        body_frames(b"h", b"ell", b"o"),
        body_frames(b"hello", end="empty"),
        frame(2, b"he", fin=False) + frame(9, b"ping") + frame(0, b"", fin=False) + frame(0, b"llo"),
        frame(2, b"", fin=False) + frame(0, b"hello"),
        b"".join(frame(0 if i else 2, b"hello"[i : i + 1], fin=i == 4) for i in range(5)),
    ],
    ids=["one", "three", "empty-fin", "ping-between", "empty-first", "bytes"],
)
async def test_a_body_message_in_any_frames(relay, control, data) -> None:
    """spec 9.5/any-frames, spec 21/samples, failures/fragmentation: one message, however it was cut."""
    sender, asked = await asked_here(relay, control)
    text = response_text(asked.id, body=True)
    await control.send(text + data)
    answer = await sender.read_http()
    assert answer.body == b"hello"
    assert answer.value("Content-Length") in (None, "5")


async def test_a_response_text_in_fragments(relay, control) -> None:
    """spec 6.2/fragmented: Node cuts long texts."""
    sender, asked = await asked_here(relay, control)
    text = json.dumps({"response": {"requestId": asked.id, "statusCode": 200, "body": True}}).encode()
    await control.send(frame(1, text[:5], fin=False) + frame(0, text[5:], fin=True) + frame(2, b"x"))
    assert (await sender.read_http()).body == b"x"


@pytest.mark.parametrize("status", [200, 204, 304, 404])
async def test_answers_to_head_have_no_body(relay, control, status) -> None:
    """spec 9.7/no-body-statuses, RFC 9110 9.3.2: the listener's body is dropped, by either way."""
    sender = await relay.connect()
    for is_rendezvous in (False, True):
        await sender.send(http_request("HEAD", "/open"))
        asked = await control.read_request()
        listener = await relay.meet(asked) if is_rendezvous else control
        await listener.respond(asked, status, b"dropped", responseHeaders={"X-Mine": "1"})
        answer = await sender.read_http("HEAD")
        assert (answer.status, answer.value("X-Mine")) == (status, "1")
    await sender.send(http_request("GET", "/open"))
    await control.respond(await control.read_request(), 200, b"next")
    assert (await sender.read_http()).body == b"next"


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_that_have_no_body(relay, control, status) -> None:
    """spec 9.7/no-body-statuses: dropped from 204 and 304, by either way, with no length in a 204."""
    sender = await relay.connect()
    for is_rendezvous in (False, True):
        await sender.send(http_request("GET", "/open"))
        asked = await control.read_request()
        listener = await relay.meet(asked) if is_rendezvous else control
        await listener.respond(asked, status, b"dropped")
        answer = await sender.read_http()
        assert answer.status == status
        assert "transfer-encoding" not in answer.headers
        if status == 204:
            assert "content-length" not in answer.headers
    await sender.send(http_request("GET", "/open"))
    await control.respond(await control.read_request(), 200, b"next")
    assert (await sender.read_http()).body == b"next"


# Which answer belongs to whom ----------------------------------------------------------------------------------------


async def test_what_may_be_missing(relay, control) -> None:
    """spec 9.7/body-missing, spec 6.2/liberal: ``body`` and headers missing, members in any order, unknown ones."""
    for text in (
        '{{"response":{{"requestId":"{}","statusCode":200}}}}',
        '{{"response":{{"responseHeaders":{{}},"statusCode":"200","extra":[1],"body":false,"requestId":"{}"}}}}',
        '{{ "response" : {{"statusCode":200.0,"requestId":"{}","body":null,"responseHeaders":null}} }}',
    ):
        sender, asked = await asked_here(relay, control)
        await control.send(frame(1, text.format(asked.id).encode()))
        answer = await sender.read_http()
        assert (answer.status, answer.value("Content-Length"), answer.body) == (200, "0", b"")


async def test_answers_come_in_any_order(relay, control) -> None:
    """spec 9.7/any-order: each to its own sender, bodies behind their texts."""
    senders = {}
    for number in range(20):
        sender = await relay.ask("GET", f"/open/{number}")
        asked = await control.read_request()
        senders[asked.id] = sender
    for request_id in sorted(senders):
        await control.respond(request_id, 200, request_id.encode())
    for request_id, sender in senders.items():
        assert (await sender.read_http()).body == request_id.encode()


async def test_repeated_late_and_unknown_answers_are_swallowed(relay, control) -> None:
    """spec 9.7/request-id: with their bodies; the first one counts, and the channel goes on."""
    sender, asked = await asked_here(relay, control)
    await control.respond("nobody", 200, b"unknown")
    await control.respond(GUID + "_G0", 200, bytes(65_536))
    await control.respond("", 200, b"")
    await control.respond(asked, 200, b"first")
    await control.respond(asked, 500, b"second")
    await control.respond(asked, 500)
    assert (await sender.read_http()).body == b"first"
    await control.respond(asked, 500, b"third")
    await sender.send(http_request("GET", "/open"))
    again = await control.read_request()
    await control.respond(asked, 500, b"late")
    await control.respond(again, 200, b"again")
    assert (await sender.read_http()).body == b"again"


async def test_only_the_listener_that_was_asked_answers(relay) -> None:
    """spec 9.7/foreign: whoever guesses another listener's id, of this entity or another, is ignored."""
    mine = await relay.listen("open", query=f"&sb-hc-id={GUID}")
    twin, stranger = await relay.listen("open"), await relay.listen("orders")
    sender = await relay.ask("GET", "/open", {"Microsoft-Relay-AllowedListeners": GUID})
    asked = await mine.read_request()
    for peer in (twin, stranger):
        await peer.respond(asked, 200, b"forged")
        # A Ping that is answered: by then what came before it was read.
        await peer.send(frame(9, b"?"))
        assert (await peer.read_frame()).opcode == 10
    await mine.respond(asked, 200, b"true")
    assert (await sender.read_http()).body == b"true"


async def test_a_body_that_nobody_announced(relay, control) -> None:
    """spec 6.2/oversize: a binary message without a ``response`` before it closes with 1002, and 502 for the sender."""
    sender, asked = await asked_here(relay, control)
    await control.send(frame(2, b"nobody's"))
    assert await control.read_close() == 1002
    assert (await sender.read_http()).status == 502
    # After an answer that promised none, too.
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    await control.send(response_text(asked.id, body=False) + frame(2, b"not promised"))
    assert (await sender.read_http()).body == b""
    assert await control.read_close() == 1002


async def test_nonsense_on_the_channel_is_ignored(relay, control) -> None:
    """spec 6.2/ignored: malformed JSON, unknown members and answers without an id disturb no request."""
    sender, asked = await asked_here(relay, control)
    for text in (b"", b"{", b"[]", b'"x"', b'{"response":5}', b'{"hello":{}}', b'{"response":{"statusCode":200}}'):
        await control.send(frame(1, text))
    await control.respond(asked, 200, b"x")
    assert (await sender.read_http()).body == b"x"


# Rendezvous ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["node", "dotnet", "java", "java-bare", "fin-and-close"])
@pytest.mark.parametrize("is_large_request", [False, True])
async def test_how_the_sdks_end_a_body(start_relay, end, is_large_request) -> None:
    """spec 9.5/close-ends, spec 9.6/handshake, spec 9.6/closes, spec 19/close-ends-body, spec 21/samples: each."""
    relay = await start_relay(timeouts=TimeoutsConfig(close=0.2))
    control = await relay.listen("open")
    body = bytes(70_000) if is_large_request else None
    sender = await relay.ask("POST", "/open", (), body)
    asked = await control.read_request()
    assert asked.is_address_only is is_large_request
    listener = await relay.meet(asked)
    if is_large_request:
        asked = await listener.read_request()
        assert asked.body == body
    text = response_text(asked.id, body=True, statusDescription="OK")
    first, second = os.urandom(256), os.urandom(65_537)
    match end:
        case "node":
            await listener.send(text + body_frames(first, second, end="empty"))
            # Node never closes and never reads: the relay does both.
            assert await listener.read_close() == 1000
            assert await listener.read_eof() == b""
        case "dotnet":
            await listener.send(text + body_frames(first, second, end="empty") + close_frame(1000, "NormalClosure"))
            assert await listener.read_close() == 1000
        case "java":
            await listener.send(text + body_frames(first, second, end="open") + close_frame(1000, "NormalClosure"))
            assert await listener.read_close() == 1000
        case "java-bare":
            await listener.send(text + body_frames(first, second, end="open") + close_frame(None))
            assert await listener.read_close() in (None, 1000)
        case "fin-and-close":
            await listener.send(text + body_frames(first, second) + close_frame(1000))
            assert await listener.read_close() == 1000
    answer = await sender.read_http()
    assert answer.body == first + second
    assert answer.framing in ("chunked", "length")
    assert answer.value("Via") == "1.1 relay.test"
    assert answer.value("Content-Type") == "application/octet-stream"
    # Both ways go on.
    await sender.send(http_request("GET", "/open"))
    await control.respond(await control.read_request(), 200, b"next")
    assert (await sender.read_http()).body == b"next"


async def test_nothing_is_sent_to_a_response_rendezvous(relay, control) -> None:
    """spec 9.6/response-upgrade: the request is known, so the relay's first frame there is its Close."""
    sender = await relay.ask("POST", "/open", (), b"body")
    asked = await control.read_request()
    listener = await relay.meet(asked)
    await listener.respond(asked, 200, b"large")
    assert await listener.read_close() == 1000
    assert (await sender.read_http()).body == b"large"


async def test_an_answer_streams(relay, control) -> None:
    """spec 9.8/chunked: each piece is at the sender before the next one was written."""
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await listener.send(response_text(asked.id, body=True, responseHeaders={"Content-Type": "text/event-stream"}))
    await listener.send(frame(2, b"first", fin=False))
    answer = await sender.read_http_head()
    assert answer.value("Transfer-Encoding") == "chunked"
    assert answer.value("Content-Length") is None
    assert await sender.read_chunk() == b"first"
    for piece in (b"x", bytes(1000), b"last"):
        await listener.send(frame(0, piece, fin=False))
        got = b""
        while len(got) < len(piece):
            got += await sender.read_chunk()
        assert got == piece
    await listener.send(frame(0, b"beginning of a frame")[:-5])
    assert await sender.read_chunk()
    await listener.send(close_frame()[:0])


async def test_an_empty_frame_is_no_chunk(relay, control) -> None:
    """spec 9.8/chunked: a chunk of size 0 would end the body."""
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    empty = frame(0, b"", fin=False)
    await listener.send(response_text(asked.id, body=True) + frame(2, b"", fin=False) + empty)
    await listener.send(frame(0, b"a", fin=False) + empty * 3 + frame(9, b"p") + frame(0, b"b", fin=False) + empty)
    await listener.send(frame(0))
    assert (await sender.read_http()).body == b"ab"


async def test_an_answer_by_rendezvous_may_have_no_body(relay, control) -> None:
    """spec 9.6/response-upgrade, spec 9.7/either-way: text alone, and an empty message."""
    for body in (None, b""):
        sender, asked = await asked_here(relay, control)
        listener = await relay.meet(asked)
        await listener.respond(asked, 202, body)
        assert await listener.read_close() == 1000
        answer = await sender.read_http()
        assert (answer.status, answer.body) == (202, b"")


async def test_sixty_six_thousand_frames_of_one_byte(relay, control) -> None:
    """spec 9.5/any-frames, spec 20.1/pipe: one Node test writes character by character."""
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    count = 66_000
    data = frame(2, b"x" * 560, fin=False) + frame(0, b"y", fin=False) * count + frame(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.send, response_text(asked.id, body=True) + data)
        answer = await sender.read_http()
    assert answer.body == b"x" * 560 + b"y" * count


async def test_large_answers(relay, control) -> None:
    """spec 9.7/limits, spec 9.5/any-frames: 10 MiB in one frame, and in frames of an odd size."""
    for size in (65_537, 10 << 20):
        for cut in (size, 99_991):
            body = os.urandom(size)
            sender, asked = await asked_here(relay, control)
            listener = await relay.meet(asked)
            pieces = [body[start : start + cut] for start in range(0, size, cut)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.send, response_text(asked.id, body=True) + body_frames(*pieces))
                assert (await sender.read_http()).body == body


async def test_both_bodies_flow_at_once(relay, control) -> None:
    """spec 9.6/pumps-both: an echo that answers as it reads."""
    sender = await relay.connect()
    size = 4 << 20
    body = os.urandom(size)

    async def echo(listener: WirePeer) -> None:
        first = await listener.read_frame()
        request_id = json.loads(first.payload)["request"]["id"]
        await listener.send(response_text(request_id, body=True))
        opcode = 2
        while True:
            got = await listener.read_frame()
            await listener.send(frame(opcode, got.payload, fin=got.fin))
            opcode = 0
            if got.fin:
                break

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, http_request("POST", "/open", (), body))
        asked = await control.read_request()
        nursery.start_soon(echo, await relay.meet(asked))
        answer = await sender.read_http()
    assert answer.body == body
    await sender.send(http_request("GET", "/open"))
    await control.respond(await control.read_request(), 200, b"next")
    assert (await sender.read_http()).body == b"next"


async def test_an_early_answer_need_not_wait_for_the_body(relay, control) -> None:
    """spec 9.6/pumps-both, spec 9.6/stops-sending, spec 18/early-answer: .NET answers without reading."""
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Content-Length": str(1 << 30)}) + bytes(100_000))
    asked = await control.read_request()
    listener = await relay.meet(asked)
    await listener.respond(asked, 413, b"too much", statusDescription="Too Much")
    head = await sender.read_http_head()
    assert (head.status, head.reason) == (413, "Too Much")
    if head.value("Transfer-Encoding"):
        got = await sender.read_chunk()
        assert await sender.read_chunk() == b""
    else:
        got = await sender.read_exactly(int(head.value("Content-Length")))
    assert got == b"too much"
    # What was on its way to the listener may still come; then the relay closes.
    code = None
    while code is None:
        part = await listener.read_frame()
        code = part.close_code if part.opcode == 8 else None
        assert part.opcode != 0 or not part.fin
    assert code == 1000
    # The rest of the body is not wanted: nothing else can come on this connection.
    with trio.fail_after(10):
        try:
            while True:
                await sender.send(bytes(65_536))
        except trio.BrokenResourceError:
            pass


async def test_an_early_answer_by_the_control_channel(relay, control) -> None:
    """spec 9.7/either-way: also for a request that waits behind its address; the address is spent then."""
    sender = await relay.ask("POST", "/open", (), bytes(70_000))
    asked = await control.read_request()
    assert asked.is_address_only
    await control.respond(asked, 403, b"no")
    answer = await sender.read_http()
    assert (answer.status, answer.body) == (403, b"no")
    _, refused = await relay.call(split_address(asked.address)[1])
    assert refused.status == 403


async def test_an_open_rendezvous_does_not_stop_the_control_channel(relay, control) -> None:
    """spec 9.7/either-way: a listener that opened a socket may still answer on its channel."""
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await control.respond(asked, 200, b"by the channel")
    assert (await sender.read_http()).body == b"by the channel"
    assert await listener.read_close() in (1000, 1001)


async def test_one_rendezvous_serves_one_request(relay, control) -> None:
    """spec 9.6/one-request, spec 9.6/keeps-connection, spec 19/rendezvous-dropped: the next one is asked anew."""
    sender = await relay.connect()
    addresses = set()
    for number in range(3):
        body = os.urandom(70_000)
        await sender.send(http_request("POST", f"/open/{number}", (), body))
        asked = await control.read_request()
        addresses.add(asked.address)
        listener = await relay.meet(asked)
        asked = await listener.read_request()
        assert asked.body == body
        await listener.respond(asked, 200, b"%d" % number)
        assert (await sender.read_http()).body == b"%d" % number
        if number == 0:
            await listener.send(close_frame())
        elif number == 1:
            listener.reset()
    assert len(addresses) == 3


async def test_an_answer_behind_the_answer_is_ignored(relay, control) -> None:
    """spec 9.6/one-request: what a rendezvous still says after its response reaches nobody."""
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await listener.send(
        response_text(asked.id, body=True) + frame(2, b"one") + response_text(asked.id) + frame(2, b"2")
    )
    assert (await sender.read_http()).body == b"one"
    await sender.send(http_request("GET", "/open"))
    await control.respond(await control.read_request(), 200, b"two")
    assert (await sender.read_http()).body == b"two"


async def test_a_foreign_answer_on_a_rendezvous_is_ignored(relay, control) -> None:
    """spec 9.7/foreign: an address is good for its own request only."""
    first, asked_first = await asked_here(relay, control)
    second, asked_second = await asked_here(relay, control)
    listener = await relay.meet(asked_first)
    await listener.respond(asked_second, 200, b"forged")
    await listener.respond("nobody", 200)
    await listener.respond(asked_first, 200, b"first")
    assert (await first.read_http()).body == b"first"
    await control.respond(asked_second, 200, b"second")
    assert (await second.read_http()).body == b"second"


# Addresses -----------------------------------------------------------------------------------------------------------


async def test_an_address_is_good_once(relay, control) -> None:
    """spec 9.6/single-use, spec 12/bad-request: 403 the second time, 400 for another action or a malformed one."""
    sender, asked = await asked_here(relay, control)
    target = split_address(asked.address)[1]
    for wrong in (
        target.replace("sb-hc-action=request", "sb-hc-action=accept"),
        target.replace("sb-hc-action=request", "sb-hc-action=other"),
        target.partition("&sb-hc-rid")[0],
    ):
        _, refused = await relay.call(wrong)
        assert refused.status == 400, wrong
    _, refused = await relay.call(target.replace("sb-hc-rid=", "sb-hc-rid=x"))
    assert refused.status == 403
    listener = await relay.meet(asked)
    _, refused = await relay.call(target)
    assert refused.status == 403
    await listener.respond(asked, 200, b"x")
    assert (await sender.read_http()).body == b"x"


async def test_an_accept_address_takes_no_request(relay, control) -> None:
    """spec 7.2/wrong-action: nor the other way round."""
    sender = await relay.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.upgrade, "/$hc/open")
        message = (await control.read_json())["accept"]
        target = split_address(message["address"])[1]
        _, refused = await relay.call(target.replace("sb-hc-action=accept", "sb-hc-action=request"))
        assert refused.status == 400
        await relay.come_to(message["address"])


async def test_an_address_ends_with_its_request(relay, control) -> None:
    """spec 9.6/ended: 403 once the answer came over the control channel."""
    sender, asked = await asked_here(relay, control)
    await control.respond(asked, 200)
    assert (await sender.read_http()).status == 200
    _, refused = await relay.call(split_address(asked.address)[1])
    assert refused.status == 403


async def test_a_request_cannot_be_rejected(relay, control) -> None:
    """spec 9.6/handshake: a request is answered; rejecting is for connections, and 400 here."""
    sender, asked = await asked_here(relay, control)
    _, refused = await relay.call(split_address(asked.address)[1] + "&sb-hc-statusCode=418&sb-hc-statusDescription=no")
    assert refused.status == 400
    await control.respond(asked, 200, b"x")
    assert (await sender.read_http()).body == b"x"


# HTTP/1.0 ------------------------------------------------------------------------------------------------------------


async def test_an_old_sender_reads_until_the_end(relay, control) -> None:
    """spec 9.8/old-sender: without chunks, and the end of the connection is the end of the body."""
    for end in ("empty", "open"):
        sender, asked = await asked_here(relay, control, version="1.0")
        listener = await relay.meet(asked)
        await listener.send(response_text(asked.id, body=True) + body_frames(b"a" * 1000, b"b" * 70_000, end=end))
        if end == "open":
            await listener.send(close_frame(1000))
        answer = await sender.read_http()
        assert answer.framing == "close"
        assert answer.body == b"a" * 1000 + b"b" * 70_000


async def test_an_old_sender_gets_a_length_where_there_is_one(relay, control) -> None:
    """spec 9.8/old-sender, spec 9.8/content-length: a body that is in hand."""
    sender, asked = await asked_here(relay, control, version="1.0")
    await control.respond(asked, 200, b"x" * 65_536)
    answer = await sender.read_http()
    assert answer.framing == "length"
    assert len(answer.body) == 65_536


# Many at once --------------------------------------------------------------------------------------------------------


async def test_ten_chunked_posts_at_once(relay, control) -> None:
    """spec 20.1/chunked-posts: three writes each, 65 537 bytes as the large one, answers of each size."""
    sizes = [0, 10, 65_537]

    async def send(number: int) -> None:
        size = sizes[number % 3]
        sender = await relay.connect()
        await sender.send(http_head("POST", f"/open/{number}", {"Transfer-Encoding": "chunked"}))
        body = os.urandom(size)
        for part in (body[: size // 2], body[size // 2 :]):
            if part:
                await sender.send(b"%x\r\n%b\r\n" % (len(part), part))
        await sender.send(b"0\r\n\r\n")
        assert (await sender.read_http()).body == body[::-1] + bytes(sizes[number // 3 % 3])

    async def answer(asked: Asked) -> None:
        listener = control
        if asked.is_address_only:
            listener = await relay.meet(asked)
            asked = await listener.read_request()
        number = int(asked.message["requestTarget"].rpartition("/")[2])
        body = asked.body[::-1] + bytes(sizes[number // 3 % 3])
        if len(body) > 65_536 and listener is control:
            listener = await relay.meet(asked)
        await listener.respond(asked, 200, body)

    async with trio.open_nursery() as senders, trio.open_nursery() as answers:
        for number in range(10):
            senders.start_soon(send, number)
        for _ in range(10):
            answers.start_soon(answer, await control.read_request())


async def test_a_slow_reader_holds_back_its_own_answer_only(relay, control) -> None:
    """failures/slow-reader, spec 9.8/chunked: the listener's socket fills, the relay's memory does not."""
    _, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    sent = 0

    async def send_forever() -> None:
        nonlocal sent
        await listener.send(response_text(asked.id, body=True) + frame(2, b"x", fin=False))
        while True:
            await listener.send(frame(0, bytes(65_536), fin=False))
            sent += 65_536

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_forever)
        for _ in range(50):
            quick, other = await asked_here(relay, control)
            await control.respond(other, 200, b"y")
            assert (await quick.read_http()).body == b"y"
        nursery.cancel_scope.cancel()
    assert sent < 64 << 20
    assert relay.server.statistics().http_buffered_bytes == 0


async def test_codes_on_a_rendezvous_are_echoed(relay, control) -> None:
    """spec 9.6/close-answered, spec 13/request-close: whatever code a listener closes with after its response."""
    for code in (1000, 1001, 3000):
        sender, asked = await asked_here(relay, control)
        listener = await relay.meet(asked)
        await listener.send(response_text(asked.id, body=True) + frame(2, b"x") + close_frame(code))
        assert await listener.read_close() in (code, 1000)
        assert (await sender.read_http()).body == b"x"
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await listener.send(frame(8, struct.pack("!H", 3001) + b"changed my mind"))
    assert await listener.read_close() == 3001
    assert (await sender.read_http()).status == 502
