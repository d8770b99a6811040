"""Rules of the wire contract about relayed HTTP, end to end over loopback: lost peers, clocks, cut bodies, the end."""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from contextlib import suppress
from functools import partial

import pytest
import trio
import trustme
from peers import (
    LAST_CHUNK,
    Asked,
    HttpAnswer,
    WirePeer,
    close_frame,
    frame,
    http_chunk,
    http_head,
    http_request,
    response_text,
    split_address,
)

from relaycore.config import LimitsConfig, TimeoutsConfig, TlsConfig

GUID = "12345678-1234-1234-1234-1234567890ab"
NOT_ANSWERED = "The request was routed to the listener but the listener did not respond in the required time"
NO_LISTENER = "There are no listeners connected for the endpoint"


async def asked_here(relay, control: WirePeer, **options) -> tuple[WirePeer, Asked]:
    sender = await relay.ask("GET", "/open", **options)
    return sender, await relay.asked(control, sender)


async def begun(relay, control: WirePeer, **options) -> tuple[WirePeer, WirePeer]:
    """A sender that has the head and the first chunk of an answer, and the rendezvous it comes by."""
    sender, asked = await asked_here(relay, control, **options)
    listener = await relay.meet(asked)
    await listener.send(response_text(asked.id, body=True) + frame(2, b"first", fin=False))
    head = await sender.read_http_head()
    assert head.status == 200
    if options.get("version") == "1.0":
        assert await sender.read_exactly(5) == b"first"
    else:
        assert await sender.read_chunk() == b"first"
    return sender, listener


async def still_works(relay, control: WirePeer, sender: WirePeer | None = None) -> None:
    """Another request on the same channel, and on the same sender's connection where one is given."""
    if sender is None:
        sender = await relay.connect()
    await sender.send(http_request("GET", "/open/again"))
    asked = await control.read_request()
    assert asked.message["requestTarget"] == "/open/again"
    await control.respond(asked, 200, b"again")
    assert (await sender.read_http()).body == b"again"


def is_own_answer(answer: HttpAnswer, status: int, words: str = "") -> None:
    """An answer that the relay made: its form, a short text, and no ``Via``."""
    assert answer.status == status, answer
    assert words in answer.reason
    form = (
        r".*TrackingId:[0-9a-f-]{36}_G\d+, SystemTracker:sb://relay\.test/[^,]*, "
        r"Timestamp:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    )
    assert re.fullmatch(form, answer.reason), answer.reason
    assert "via" not in answer.headers
    assert answer.value("Content-Type") == "text/plain; charset=utf-8"
    assert words in answer.body.decode()
    assert len(answer.body) < 2_000


# Refusals ------------------------------------------------------------------------------------------------------------


async def test_nobody_listens(relay) -> None:
    """spec 12/no-listener-http, spec 19/no-listener, spec 9.8/via: 502 for HTTP, where WebSocket senders get 404."""
    sender = await relay.connect()
    for data in (
        http_request("GET", f"/open?sb-hc-id={GUID}"),
        http_request("POST", "/open", (), b"small"),
        http_request("POST", "/open", chunks=[b"small"]),
    ):
        await sender.send(data)
        answer = await sender.read_http()
        is_own_answer(answer, 502, NO_LISTENER)
    await sender.send(http_request("HEAD", "/open"))
    answer = await sender.read_http("HEAD")
    assert (answer.status, answer.framing) == (502, "none")
    await sender.send(http_request("GET", f"/open?sb-hc-id={GUID}"))
    assert f"TrackingId:{GUID}_G0" in (await sender.read_http()).reason


async def test_refusals_have_one_form(relay) -> None:
    """spec 12/http, spec 12/form: reason phrase, short text body, and never a Via."""
    is_own_answer(await relay.fetch("GET", "/nothing"), 404, "Endpoint does not exist")
    is_own_answer(await relay.fetch("GET", "/orders"), 401, "MissingToken")
    await relay.store.create_entity("default", "ws-only", requires_client_authorization=False, http=False)
    is_own_answer(await relay.fetch("GET", "/ws-only"), 403)
    await relay.listen("open", query=f"&sb-hc-id={GUID}")
    fields = {"Microsoft-Relay-DisallowedListeners": GUID}
    is_own_answer(await relay.fetch("GET", "/open", fields), 404, "None of the connected listeners meet the")


async def test_a_refusal_before_the_body_ends_the_connection(relay) -> None:
    """spec 12/http: what may still come of a body that was not read is no request."""
    sender = await relay.connect()
    smuggled = http_request("GET", "/nothing/smuggled")
    await sender.send(http_head("POST", "/nothing", {"Content-Length": str(len(smuggled) + 1_000_000)}) + smuggled)
    answer = await sender.read_http()
    assert answer.status == 404
    assert answer.value("Connection") == "close"
    assert await sender.is_cut()


async def test_an_absent_listener_is_no_attack(relay) -> None:
    """spec 18/refusal-rate: a good sender's 502 does not count against its address, however many there are."""
    sender = await relay.connect()
    with trio.fail_after(20):
        for _ in range(150):  # the rate allows 40 at once and 20 a second, then delays for two seconds each
            await sender.send(http_request("GET", "/open"))
            assert (await sender.read_http()).status == 502
    before = time.monotonic()
    assert (await relay.fetch("GET", "/orders")).status == 401
    assert time.monotonic() - before < 1


# Listeners that are lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "fin", "close", "garbage"])
async def test_a_listener_lost_before_its_answer(relay, how) -> None:
    """spec 9.8/listener-lost, spec 6.5/request-lost, spec 11/never-repeated: 502, and nobody else is asked."""
    control = await relay.listen("open", query=f"&sb-hc-id={GUID}")
    other = await relay.listen("open")
    sender = await relay.ask("POST", "/open", {"Microsoft-Relay-AllowedListeners": GUID}, b"once")
    await control.read_request()
    match how:
        case "reset":
            control.reset()
        case "fin":
            await control.aclose()
        case "close":
            await control.send(close_frame(1000))
            assert await control.read_close() == 1000
        case "garbage":
            await control.send(b"\xff" * 100)
    is_own_answer(await sender.read_http(), 502)
    await still_works(relay, other, sender)


async def test_a_listener_lost_inside_its_answer_on_the_channel(relay) -> None:
    """spec 9.8/listener-lost: the text came, its body did not; nothing of it was sent on, so 502."""
    for rest in (b"", frame(2, b"half", fin=False), frame(2, bytes(1000))[:500]):
        control = await relay.listen("open")
        sender, asked = await asked_here(relay, control)
        await control.send(response_text(asked.id, body=True) + rest)
        control.reset() if rest else await control.aclose()
        is_own_answer(await sender.read_http(), 502)


async def test_a_rendezvous_outlives_its_control_channel(relay) -> None:
    """spec 6.5/streams-stay, spec 6.5/request-lost: once it is there, the answer comes by it."""
    for is_large in (False, True):
        control = await relay.listen("open")
        sender = await relay.ask("POST", "/open", (), bytes(70_000) if is_large else b"x")
        asked = await control.read_request()
        listener = await relay.meet(asked)
        if is_large:
            await listener.read_request()
        await control.send(close_frame())
        assert await control.read_close() == 1000
        await listener.respond(asked, 200, b"still here")
        assert (await sender.read_http()).body == b"still here"


@pytest.mark.parametrize("how", ["reset", "fin", "close", "close-empty", "garbage"])
async def test_a_rendezvous_lost_before_the_answer(relay, how) -> None:
    """spec 13/request-lost, spec 9.8/listener-lost: 502; the control channel is not touched."""
    control = await relay.listen("open")
    sender = await relay.ask("POST", "/open", (), bytes(70_000))
    asked = await control.read_request()
    listener = await relay.meet(asked)
    await listener.read_request()
    match how:
        case "reset":
            listener.reset()
        case "fin":
            await listener.aclose()
        case "close":
            await listener.send(close_frame(1000))
        case "close-empty":
            await listener.send(close_frame(None))
        case "garbage":
            await listener.send(frame(3, b"x"))
            assert await listener.read_close() == 1002
    is_own_answer(await sender.read_http(), 502)
    await still_works(relay, control, sender)


async def test_a_listener_that_never_comes_to_an_address(start_relay) -> None:
    """spec 9.8/504, spec 9.6/ended: 504 in the service's words, and the address is spent."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_response=0.2))
    control = await relay.listen("open")
    sender = await relay.ask("POST", "/open", (), bytes(70_000))
    asked = await control.read_request()
    assert asked.is_address_only
    is_own_answer(await sender.read_http(), 504, NOT_ANSWERED)
    _, refused = await relay.call(split_address(asked.address)[1])
    assert refused.status == 403


@pytest.mark.parametrize(
    "end",
    [
        close_frame(1001, "Shutdown"),
        close_frame(1011),
        close_frame(3000),
        None,
        b"reset",
        frame(2, b"a second message begins inside the first"),
        frame(0, b"half of a frame")[:-5],
    ],
    ids=["1001", "1011", "3000", "fin", "reset", "protocol", "frame"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_body_that_is_cut(relay, end, version) -> None:
    """spec 9.5/truncated, spec 9.8/truncated: the sender's connection is aborted, with no last chunk."""
    control = await relay.listen("open")
    sender, listener = await begun(relay, control, version=version)
    if end == b"reset":
        listener.reset()
    elif end is not None:
        await listener.send(end)
        if end[0] & 15 == 0:
            await listener.aclose()
    else:
        await listener.aclose()
    try:
        rest = await sender.read_eof()
    except trio.BrokenResourceError:
        rest = b""
    else:
        # An old sender takes an orderly end for the end of the body.
        assert version == "1.1"
    assert LAST_CHUNK not in rest
    await still_works(relay, control)


async def test_a_body_that_never_begins(relay) -> None:
    """spec 9.5/truncated: promised, then lost; the sender gets a refusal or a cut, never an empty 200."""
    control = await relay.listen("open")
    for end in (None, close_frame(1001)):
        sender, asked = await asked_here(relay, control)
        listener = await relay.meet(asked)
        await listener.send(response_text(asked.id, body=True) + (end or b""))
        if end is None:
            listener.reset()
        try:
            answer = await sender.read_http()
            assert answer.status == 502
        except (EOFError, trio.BrokenResourceError):
            pass


# Clocks --------------------------------------------------------------------------------------------------------------


async def test_a_listener_that_does_not_answer(start_relay) -> None:
    """spec 9.8/504, spec 14/http-response, spec 12/not-answered, spec 9.7/request-id: late words reach nobody."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_response=0.2))
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    before = time.monotonic()
    answer = await sender.read_http()
    is_own_answer(answer, 504, NOT_ANSWERED)
    assert 0.05 < time.monotonic() - before < 5
    await control.respond(asked, 200, b"too late")
    await still_works(relay, control, sender)


async def test_a_rendezvous_without_an_answer(start_relay) -> None:
    """spec 9.8/504, spec 14/http-response: the clock runs on after the listener came, and while the body flows."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_response=0.3))
    control = await relay.listen("open")
    sender = await relay.ask("POST", "/open", (), bytes(70_000))
    listener = await relay.meet(await control.read_request())
    await listener.read_request()
    is_own_answer(await sender.read_http(), 504, NOT_ANSWERED)
    assert await listener.read_close() is not None
    await still_works(relay, control, sender)


async def test_a_request_that_was_given_up_is_not_delivered(start_relay) -> None:
    """spec 9.8/504, failures/slow-reader: what waits for a deaf listener is withdrawn with its sender."""
    relay = await start_relay(limits=LimitsConfig(control_queue=4), timeouts=TimeoutsConfig(http_response=0.5))
    control = await relay.listen("open")
    # Nobody reads: the first ones fill the sockets, the next the queue, the others wait for room in it.
    senders = [await relay.ask("POST", f"/open/{number}", (), bytes(60_000)) for number in range(200)]
    for sender in senders:
        is_own_answer(await sender.read_http(), 504, NOT_ANSWERED)
    assert relay.server.statistics().exchanges == 0
    sender = await relay.ask("GET", "/open/last")
    stale = 0
    while (asked := await control.read_request()).message["requestTarget"] != "/open/last":
        stale += 1
        await control.respond(asked, 200, b"stale")
    assert stale < 150
    await control.respond(asked, 200, b"fresh")
    assert (await sender.read_http()).body == b"fresh"
    assert relay.server.statistics().http_buffered_bytes == 0


async def test_a_slow_upload_is_not_an_answer_that_is_late(start_relay) -> None:
    """spec 14/http-response: what takes time is the sender's own body; the listener's time begins behind it."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_response=0.4, request_gather=0.01))
    control = await relay.listen("open")
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Content-Length": "9"}))
    for index in range(9):
        await trio.sleep(0.1)  # the sender's own pace: longer in all than the listener has
        await sender.send(b"%d" % index)
    asked = await control.read_request()
    assert asked.body == b"012345678"
    await control.respond(asked, 200, b"ok")
    assert (await sender.read_http()).status == 200


async def test_silence_in_an_answer_cuts_the_sender(start_relay) -> None:
    """spec 9.8/silence, spec 14/http-body: a body that stops is cut, one that trickles is not."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_body=0.4))
    control = await relay.listen("open")
    sender, listener = await begun(relay, control)
    for _ in range(6):
        await trio.sleep(0.1)  # longer in all than the clock, each less
        await listener.send(frame(0, b"x", fin=False))
        assert await sender.read_chunk() == b"x"
    with trio.fail_after(5):
        assert await sender.is_cut()
    with trio.fail_after(5):
        with suppress(EOFError, trio.BrokenResourceError):
            assert await listener.read_close() is not None


async def test_a_sender_that_takes_nothing_of_its_answer(start_relay) -> None:
    """spec 14/http-body, failures/slow-reader: it is cut, and its listener told; nobody waits for it for ever."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_body=0.5))
    control = await relay.listen("open")
    _, listener = await begun(relay, control)
    code = None

    async def write() -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await listener.send(frame(0, bytes(65_536), fin=False))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            with suppress(EOFError, trio.BrokenResourceError):
                code = await listener.read_close()
            nursery.cancel_scope.cancel()
    assert code in (None, 1001)
    assert relay.server.statistics().exchanges == 0
    await still_works(relay, control)


async def test_silence_before_a_promised_body(start_relay) -> None:
    """spec 9.8/silence: the head came, the body never; on either way the sender is not left waiting."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_body=0.3, http_response=0.6))
    control = await relay.listen("open")
    for is_rendezvous in (True, False):
        sender, asked = await asked_here(relay, control)
        listener = await relay.meet(asked) if is_rendezvous else control
        await listener.send(response_text(asked.id, body=True))
        with trio.fail_after(5):
            with suppress(EOFError, trio.BrokenResourceError):
                assert (await sender.read_http()).status in (502, 504)


async def test_silence_in_a_request_body(start_relay) -> None:
    """spec 14/http-body: a sender that stops inside its body is told 408 or cut, and its listener left alone."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_body=0.3, request_gather=0.01))
    control = await relay.listen("open")
    small, large = await relay.connect(), await relay.connect()
    await small.send(http_head("POST", "/open", {"Content-Length": "9"}) + b"x")
    with trio.fail_after(5):
        answer = await small.read_http()
    assert answer.status == 408
    await large.send(http_head("POST", "/open", {"Transfer-Encoding": "chunked"}) + http_chunk(b"x"))
    listener = await relay.meet(await control.read_request())
    assert (await listener.read_frame()).opcode == 1
    await gone(listener)
    with trio.fail_after(5):
        with suppress(EOFError, trio.BrokenResourceError):
            assert (await large.read_http()).status >= 400
    await still_works(relay, control)


# Senders that are lost -----------------------------------------------------------------------------------------------


async def gone(listener: WirePeer, code: int = 1001) -> None:
    """The Close that says so comes within a second; an unfinished body was not ended before it."""
    with trio.fail_after(1):
        while (got := await listener.read_frame()).opcode != 8:
            assert not got.fin or got.opcode == 1, "the body looks complete"
    assert got.close_code == code
    assert len(got.payload) <= 125
    await listener.send(close_frame(code))


async def leave(sender: WirePeer, how: str) -> None:
    if how == "reset":
        sender.reset()
    elif how == "fin":
        assert isinstance(sender.stream, trio.SocketStream)
        await sender.stream.send_eof()
    else:
        await sender.aclose()


@pytest.mark.parametrize("how", ["reset", "close", "fin"])
async def test_a_sender_gone_while_it_waits(relay, how) -> None:
    """spec 13/request-sender-gone, spec 19/sender-gone, failures/sender-gone: 1001 within a second."""
    control = await relay.listen("open")
    sender = await relay.ask("POST", "/open", (), bytes(70_000))
    listener = await relay.meet(await control.read_request())
    assert len((await listener.read_request()).body) == 70_000
    await leave(sender, how)
    await gone(listener)
    await still_works(relay, control)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_sender_gone_inside_its_body(relay, how) -> None:
    """spec 9.6/sender-gone, failures/sender-gone: 1001, and the body is not ended as if it were whole."""
    control = await relay.listen("open")
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Content-Length": "200000"}) + bytes(100_000))
    listener = await relay.meet(await control.read_request())
    assert (await listener.read_frame()).opcode == 1
    got = 0
    while got < 100_000:
        part = await listener.read_frame()
        assert not part.fin
        got += len(part.payload)
    await leave(sender, how)
    await gone(listener)
    await still_works(relay, control)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_sender_gone_inside_the_answer(relay, how) -> None:
    """spec 9.6/sender-gone, failures/sender-gone: 1001 to the listener that still sends, also one that pauses."""
    control = await relay.listen("open")
    sender, listener = await begun(relay, control)
    await leave(sender, how)
    await gone(listener)
    await still_works(relay, control)


async def test_a_sender_gone_before_the_listener_was_told(relay) -> None:
    """spec 9.2/whole-body-first: nothing of a body that never became whole reaches the listener."""
    control = await relay.listen("open")
    for rest in (b"12345", b""):
        sender = await relay.connect()
        await sender.send(http_head("POST", "/open/lost", {"Content-Length": "10"}) + rest)
        await leave(sender, "reset" if rest else "close")
    await still_works(relay, control)


async def test_an_answer_for_a_sender_that_is_gone(relay) -> None:
    """spec 9.7/request-id: it is swallowed with its body, its address is spent, the channel goes on."""
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    sender.reset()
    with trio.fail_after(5):
        while relay.server.statistics().exchanges:
            await trio.sleep(0.005)
    _, refused = await relay.call(split_address(asked.address)[1])
    assert refused.status == 403
    await control.respond(asked, 200, b"nobody there")
    await still_works(relay, control)


async def test_a_sender_that_does_not_read_is_left_at_once(relay) -> None:
    """failures/sender-gone, failures/slow-reader: a reset is noticed behind a full socket."""
    control = await relay.listen("open")
    sender, listener = await begun(relay, control)
    with trio.move_on_after(0.5):
        while True:
            await listener.send(frame(0, bytes(65_536), fin=False))
    sender.reset()
    with trio.fail_after(5):
        try:
            while (await listener.read_frame()).opcode != 8:
                pass
        except (EOFError, trio.BrokenResourceError):
            pass


@pytest.mark.parametrize("bad", [b"xyz\r\n", b"5\r\nabcdefg", b"-1\r\n", b"ffffffffffffffffff\r\n", b"\r\n"])
async def test_a_body_that_breaks_off_in_nonsense(relay, bad) -> None:
    """spec 9.5/truncated, spec 9.1/strict, failures/lengths: bad chunks are 400, and no end for the listener."""
    control = await relay.listen("open")
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Transfer-Encoding": "chunked"}) + http_chunk(bytes(70_000)))
    listener = await relay.meet(await control.read_request())
    assert (await listener.read_frame()).opcode == 1
    await sender.send(bad + LAST_CHUNK)
    with trio.fail_after(5):
        while (got := await listener.read_frame()).opcode != 8:
            assert not got.fin
    assert (await sender.read_http()).status == 400
    await still_works(relay, control)


# Protocol errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        frame(2, b"x", rsv=4),
        frame(2, b"x", masked=False),
        frame(3, b"x"),
        frame(0, b"x"),
        frame(9, b"x" * 126),
        frame(8, b"x"),
        frame(2, b"", length=2**63),
        frame(2, b"a body without a response"),
    ],
    ids=["rsv", "unmasked", "opcode", "continuation", "long-ping", "short-close", "length", "binary-first"],
)
async def test_a_rendezvous_that_breaks_the_protocol(relay, data) -> None:
    """spec 13/request-protocol-error, failures/lengths: 1002 to it, 502 to the sender, nothing to others."""
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await listener.send(data)
    assert await listener.read_close() == 1002
    is_own_answer(await sender.read_http(), 502)
    await still_works(relay, control, sender)


async def test_a_response_text_over_the_limit(relay) -> None:
    """spec 13/request-too-big: 1009 on the rendezvous, 502 to the sender."""
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)
    await listener.respond(asked, 200, responseHeaders={"X": "x" * 70_000})
    assert await listener.read_close() == 1009
    assert (await sender.read_http()).status == 502


# The relay's own end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["deleted", "disabled"])
async def test_an_entity_that_goes(relay, change) -> None:
    """spec 13/request-deleted: rendezvous 1001, waiting senders an answer, begun answers cut."""
    control = await relay.listen("open")
    waiting, _ = await asked_here(relay, control)
    large = await relay.ask("POST", "/open", (), bytes(70_000))
    unanswered = await relay.meet(await control.read_request())
    await unanswered.read_request()
    sender, answering = await begun(relay, control)
    if change == "deleted":
        await relay.store.delete_entity("default", "open")
    else:
        await relay.store.update_entity("default", "open", http=False)
    for listener in (unanswered, answering):
        assert await listener.read_close() == 1001
    for peer in (waiting, large):
        answer = await peer.read_http()
        assert answer.status in (403, 404, 502)
        is_own_answer(answer, answer.status)
    with suppress(trio.BrokenResourceError):
        assert LAST_CHUNK not in await sender.read_eof()
    after = await relay.fetch("GET", "/open")
    is_own_answer(after, 404 if change == "deleted" else 403)


async def test_the_relay_stops(relay) -> None:
    """spec 13/request-shutdown: rendezvous 1001, senders that wait get 503 or 502, begun answers are cut."""
    control = await relay.listen("open")
    waiting, _ = await asked_here(relay, control)
    large = await relay.ask("POST", "/open", (), bytes(70_000))
    unanswered = await relay.meet(await control.read_request())
    await unanswered.read_request()
    sender, answering = await begun(relay, control)
    idle = await relay.connect()
    await idle.send(http_request("GET", "/nothing"))
    assert (await idle.read_http()).status == 404
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(relay.server.stop, 2))
        for listener in (control, unanswered, answering):
            assert await listener.read_close() == 1001
            await listener.send(close_frame(1001))
        for peer in (waiting, large):
            assert (await peer.read_http()).status in (502, 503)
        with suppress(trio.BrokenResourceError):
            assert LAST_CHUNK not in await sender.read_eof()
        assert await idle.is_cut()


async def test_a_fault_of_ours_ends_one_request(relay, monkeypatch) -> None:
    """spec 13/request-internal, spec 12/internal, failures/bad-peer: 500 and a tracking id, nothing about the cause."""
    import relaycore.gateway.relay_http as room

    control = await relay.listen("open")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patched:
        patched.setattr(room, "request_headers", fail)
        answer = await relay.fetch("GET", "/open")
    is_own_answer(answer, 500)
    assert "secret" not in answer.reason
    assert b"secret" not in answer.body
    await still_works(relay, control)
    assert len(relay.named("internal.error")) == 1
    relay.events[:] = [event for event in relay.events if event.name != "internal.error"]


async def test_a_fault_of_ours_beside_a_rendezvous(relay, monkeypatch) -> None:
    """spec 13/request-internal: its listener is told 1011, its sender 500."""
    from relaycore.gateway.http_answer import AnswerWriter

    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    listener = await relay.meet(asked)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patched:
        patched.setattr(AnswerWriter, "may_have_body", fail)
        await listener.respond(asked, 200, b"x")
        is_own_answer(await sender.read_http(), 500)
        assert await listener.read_close() == 1011
    await still_works(relay, control)
    assert len(relay.named("internal.error")) == 1
    relay.events[:] = [event for event in relay.events if event.name != "internal.error"]


# TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    """A CA, and the settings of a relay that it vouches for."""
    authority = trustme.CA()
    leaf = authority.issue_cert("relay.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return authority, TlsConfig(cert=str(cert), key=str(key))


async def open_tls(port: int, authority: trustme.CA) -> WirePeer:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="relay.test")
    await stream.do_handshake()
    return WirePeer(stream)


async def test_requests_over_tls(start_relay, certificate) -> None:
    """spec 9.3/address, spec 9.8/truncated: addresses are ``wss``; a cut is one that TLS tells from an end."""
    authority, tls = certificate
    relay = await start_relay(tls=tls)
    peers = [await open_tls(relay.port, authority) for _ in range(5)]
    control, sender, first, second, old = peers
    answer = await control.upgrade("/$hc/open?sb-hc-action=listen", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 101
    body = bytes(100_000)
    await sender.send(http_request("POST", "/open", (), body))
    asked = await control.read_request()
    assert asked.address.startswith("wss://relay.test/$hc/open")
    assert (await first.upgrade(split_address(asked.address)[1])).status == 101
    assert (await first.read_request()).body == body
    await first.respond(asked, 200, body)
    assert (await sender.read_http()).body == body
    for peer, version in ((sender, "1.1"), (old, "1.0")):
        await peer.send(http_request("GET", "/open", version=version))
        asked = await control.read_request()
        listener = second if peer is sender else await open_tls(relay.port, authority)
        peers.append(listener)
        assert (await listener.upgrade(split_address(asked.address)[1])).status == 101
        await listener.send(response_text(asked.id, body=True) + frame(2, b"first", fin=False))
        await peer.read_http_head()
        await listener.send(close_frame(1011))
        with pytest.raises(trio.BrokenResourceError):
            await peer.read_eof()
    for peer in peers:
        await trio.aclose_forcefully(peer.stream)


# Books ---------------------------------------------------------------------------------------------------------------


async def test_the_books_of_requests(relay) -> None:
    """failures/half-open: what is under way is counted, and nothing is left afterwards."""
    control = await relay.listen("open")
    senders = [await asked_here(relay, control) for _ in range(5)]
    assert relay.server.statistics().exchanges == 5
    assert relay.server.check_consistency() == []
    for sender, asked in senders[:3]:
        await control.respond(asked, 200, b"x")
        assert (await sender.read_http()).status == 200
    for sender, _ in senders[3:]:
        sender.reset()
    with trio.fail_after(5):
        while relay.server.statistics().exchanges:
            await trio.sleep(0.005)
    answered, failed = relay.named("request.answered"), relay.named("request.failed")
    assert {event.fields["status"] for event in answered} == {200}
    assert {event.fields["to_sender_bytes"] for event in answered} == {1}
    assert {event.fields["way"] for event in answered} == {"control"}
    assert {event.fields["tracking_id"] for event in answered} == {asked.id for _, asked in senders[:3]}
    assert {event.fields["tracking_id"] for event in failed} == {asked.id for _, asked in senders[3:]}
    statistics = relay.server.statistics()
    assert statistics.requests_answered == 3
    assert statistics.requests_failed == 2
    assert statistics.http_buffered_bytes == 0
    assert relay.server.check_consistency() == []


async def test_a_busy_relay_drops_an_answer_that_finds_no_room(start_relay) -> None:
    """spec 9.2/room: its sender gets 503, and the channel goes on."""
    relay = await start_relay(limits=LimitsConfig(http_buffer_bytes=100_000))
    control = await relay.listen("open")
    slow = await relay.connect()
    await slow.send(http_head("POST", "/open/slow", {"Content-Length": "40000"}) + bytes(39_999))
    with trio.fail_after(5):
        while relay.server.statistics().http_buffered_bytes < 39_999:
            await trio.sleep(0.005)
    sender, asked = await asked_here(relay, control)
    await control.respond(asked, 200, bytes(65_000))
    is_own_answer(await sender.read_http(), 503)
    await still_works(relay, control, sender)
    await slow.send(b"x")
    asked = await control.read_request()
    assert len(asked.body) == 40_000
    await control.respond(asked, 200, bytes(50_000))
    assert len((await slow.read_http()).body) == 50_000
    statistics = relay.server.statistics()
    assert statistics.http_buffered_bytes == 0
    assert statistics.http_buffered_peak <= 100_000


async def test_no_bytes_of_a_listener_break_the_relay(relay) -> None:
    """failures/bad-peer, failures/lengths: whatever a rendezvous says, its sender gets an answer or a cut."""
    control = await relay.listen("open")
    texts = [
        b"",
        b"null",
        b"{" * 30_000,
        json.dumps({"response": {"requestId": "ID", "statusCode": {}, "body": True}}).encode(),
        json.dumps({"response": {"requestId": "ID", "statusCode": 200, "responseHeaders": {"a": {"b": 1}}}}).encode(),
        json.dumps({"response": {"requestId": "ID", "statusCode": 200, "responseHeaders": []}}).encode(),
        b'{"response":{"requestId":"ID","statusCode":1e400}}',
        b'{"response":{"requestId":"ID","statusCode":99999999999999999999999}}',
        b'{"response":{"requestId":"ID","statusCode":200,"statusDescription":"\\ud800"}}',
        b"\xff\xfe",
    ]
    for text in texts:
        sender, asked = await asked_here(relay, control)
        listener = await relay.meet(asked)
        await listener.send(frame(1, text.replace(b"ID", asked.id.encode())) + close_frame(1000))
        answer = await sender.read_http()
        assert answer.status in (200, 502), text
        with suppress(trio.BrokenResourceError):
            await listener.read_eof()
    await still_works(relay, control)


# Moments -------------------------------------------------------------------------------------------------------------


async def test_answers_on_both_ways_at_once_are_one_answer(relay) -> None:
    """spec 9.7/either-way: two answers to one request would be read as the answer to the next one."""
    control = await relay.listen("open")
    for body in (False, True):
        for _ in range(10):
            sender, asked = await asked_here(relay, control)
            listener = await relay.meet(asked)
            # Nothing of ours runs between the two, so the relay finds both in one turn.
            os.write(control.stream.socket.fileno(), response_text(asked.id, 201, body=False))
            os.write(listener.stream.socket.fileno(), response_text(asked.id, 200, body=body))
            if body:
                await listener.send(frame(2, b"x"))
            answer = await sender.read_http()
            assert answer.status in (200, 201)
            await sender.send(http_request("GET", "/open/next"))
            following = await control.read_request()
            await control.respond(following, 204)
            assert (await sender.read_http()).status == 204


async def test_an_invitation_stands_before_an_early_answer(relay) -> None:
    """spec 9.1/expect, spec 9.6/pumps-both: a 100 in the middle of an answer would break it."""
    control = await relay.listen("open")
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Content-Length": "100000", "Expect": "100-continue"}))
    asked = await control.read_request()
    listener = await relay.connect()
    early = response_text(asked.id, body=True) + frame(2, b"first", fin=False)
    assert (await listener.upgrade(split_address(asked.address)[1], trailing=early)).status == 101
    assert (await sender.read_http_head()).status == 100
    await listener.send(frame(0, b" last"))
    assert (await sender.read_http()).body == b"first last"


async def test_each_sender_of_a_deleted_endpoint_is_told_its_own_id(relay) -> None:
    """spec 12/tracking-id: one refusal for all would tell each of them the first one's."""
    control = await relay.listen("open")
    ids = [f"{number:08}-1111-4111-8111-111111111111" for number in range(3)]
    senders = [await relay.ask("GET", f"/open?sb-hc-id={id}") for id in ids]
    for _ in ids:
        await control.read_request()
    await relay.store.delete_entity("default", "open")
    for id, sender in zip(ids, senders, strict=True):
        assert f"TrackingId:{id}_G0" in (await sender.read_http()).reason


async def test_who_stops_in_its_body_is_at_fault(start_relay) -> None:
    """spec 14/http-body: both clocks run for as long, and the listener is not the silent one."""
    relay = await start_relay(timeouts=TimeoutsConfig(http_response=0.3, http_body=0.3))
    control = await relay.listen("open")
    for _ in range(3):
        sender = await relay.connect()
        await sender.send(http_head("POST", "/open", {"Content-Length": "100000"}) + b"x")
        listener = await relay.meet(await control.read_request())
        assert (await sender.read_http()).status == 408
        while (last := await listener.read_frame()).opcode != 8:
            pass
        assert last.close_code == 1001


async def test_a_head_that_begins_behind_a_request_has_to_come_quickly(start_relay) -> None:
    """failures/header-count: a slow head gains nothing by its beginning having come early."""
    relay = await start_relay(timeouts=TimeoutsConfig(head=0.3, keep_alive=30))
    control = await relay.listen("open")
    sender, asked = await asked_here(relay, control)
    await sender.send(b"GET /op")
    await control.respond(asked, 200, b"x")
    assert (await sender.read_http()).status == 200
    with trio.fail_after(10):
        assert (await sender.read_http()).status == 408
