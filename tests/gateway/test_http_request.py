"""Rules of the wire contract about relayed HTTP, end to end over loopback: the sender's side, and the way to a
listener."""

from __future__ import annotations

import os
import re

import peers
import pytest
import trio
from peers import LAST_CHUNK, WirePeer, body_frames, frame, http_chunk, http_head, http_request, split_address
from stripping import STRIPPING

from relaycore.config import LimitsConfig, TimeoutsConfig
from relaycore.vocab import Right

GUID = "12345678-1234-1234-1234-1234567890ab"
OTHER = "22222222-2222-4222-8222-222222222222"
GUID_FORM = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

FULL = {"address", "id", "requestTarget", "method", "remoteEndpoint", "requestHeaders", "body"}

LONG = 30.0
"""Longer than any test: a clock that must not be what a test waits for."""


@pytest.fixture
async def patient(start_relay):
    """A relay that waits for the end of a chunked body as long as it takes."""
    return await start_relay(timeouts=TimeoutsConfig(request_gather=LONG))


@pytest.fixture
async def hasty(start_relay):
    """A relay that decides about a chunked body at once."""
    return await start_relay(timeouts=TimeoutsConfig(request_gather=0.001))


async def asked_for(relay, *arguments, path: str = "open", **options):
    """A request on its way: control channel, sender, and what the listener read."""
    control = await relay.listen(path)
    sender = await relay.ask(*arguments, **options)
    return control, sender, await relay.asked(control, sender)


# The message ---------------------------------------------------------------------------------------------------------


async def test_every_member_of_a_request(relay) -> None:
    """spec 9.3/members, spec 9.2/no-body, spec 9.3/remote-endpoint, spec 2.1/http-request: a full request, no other."""
    control, sender, asked = await asked_for(relay, "GET", "/open/a/b?x=1", {"X-Mine": "1"})
    host, port = sender.stream.socket.getsockname()[:2]
    assert asked.message.keys() == FULL
    assert asked.message["method"] == "GET"
    assert asked.message["requestTarget"] == "/open/a/b?x=1"
    assert asked.message["remoteEndpoint"] == {"address": host, "port": port}
    assert asked.headers == {"Host": "relay.test", "X-Mine": "1", "Via": "1.1 relay.test"}
    assert asked.message["body"] is False
    await control.respond(asked)
    assert (await sender.read_http()).status == 200


async def test_the_address_of_a_request(relay) -> None:
    """spec 9.3/address: what the listener dialled, ``/$hc/`` and the entity, and a GUID under ``sb-hc-id``."""
    _, _, asked = await asked_for(relay, "GET", "/open/suffix?x=1")
    found = re.fullmatch(
        r"ws://relay\.test/\$hc/open(/suffix)?\?(x=1&)?sb-hc-action=request&sb-hc-id=([^&=]+)&sb-hc-rid=([^&=]+)",
        asked.address,
    )
    assert found, asked.address
    assert re.match(GUID_FORM, found[3])
    assert len(found[4]) >= 22  # 128 bits
    assert "%3D" not in asked.address.upper()


async def test_the_address_names_the_host_that_the_listener_dialled(relay) -> None:
    """spec 9.3/address: not the one that the sender dialled."""
    control = await relay.connect()
    target = "/$hc/open?sb-hc-action=listen"
    await control.upgrade(target, {"ServiceBusAuthorization": relay.token()}, host="relay.test:8443")
    await relay.ask("GET", "/open", host="elsewhere.test")
    asked = await control.read_request()
    assert asked.address.startswith("ws://relay.test:8443/$hc/open")
    assert asked.headers["Via"] == "1.1 elsewhere.test"
    assert asked.headers["Host"] == "elsewhere.test"


async def test_ids_begin_with_a_guid_and_are_never_shared(relay) -> None:
    """spec 9.3/id, spec 12/tracking-id: the sender's own GUID, yet two requests in flight have two ids."""
    control = await relay.listen("open")
    target = f"/open/x?sb-hc-id={GUID}&a=1"
    first, second = [await relay.ask("GET", target) for _ in range(2)]
    asked = [await control.read_request() for _ in range(2)]
    assert asked[0].id != asked[1].id
    assert asked[0].id == f"{GUID}_G0"
    for one in asked:
        assert re.match(GUID_FORM, one.id)
        assert one.message["requestTarget"] == "/open/x?a=1"
    for one in reversed(asked):
        await control.respond(one, body=one.id.encode())
    bodies = {(await peer.read_http()).body.decode() for peer in (first, second)}
    assert bodies == {asked[0].id, asked[1].id}


async def test_an_id_is_not_used_again_while_its_answer_may_come(relay) -> None:
    """spec 9.3/id, spec 9.7/request-id: who retries with its own id does not get the answer of its first attempt."""
    control = await relay.listen("open")
    target = f"/open?sb-hc-id={GUID}"
    first = await relay.ask("GET", target)
    asked_first = await control.read_request()
    first.reset()
    with trio.fail_after(5):
        while relay.server.statistics().exchanges:
            await trio.sleep(0.005)
    second = await relay.ask("POST", target, (), b"another")
    asked_second = await control.read_request()
    assert asked_second.id != asked_first.id
    await control.respond(asked_first, 200, b"late")
    await control.respond(asked_second, 200, b"in time")
    assert (await second.read_http()).body == b"in time"
    # Once it was answered, its own id is free again.
    await second.send(http_request("GET", f"/open?sb-hc-id={OTHER}"))
    await control.respond(await control.read_request(), 200)
    assert (await second.read_http()).status == 200
    await second.send(http_request("GET", f"/open?sb-hc-id={OTHER}"))
    asked = await control.read_request()
    assert asked.id.startswith(OTHER)
    await control.respond(asked, 200)
    assert (await second.read_http()).status == 200


async def test_two_listeners_are_not_asked_by_one_id(relay) -> None:
    """spec 9.3/id: unique among all requests in flight, not only those of one channel."""
    controls = {guid: await relay.listen("open", query=f"&sb-hc-id={guid}") for guid in (GUID, OTHER)}
    ids = set()
    for guid, control in controls.items():
        fields = {"Microsoft-Relay-AllowedListeners": guid}
        await relay.ask("GET", "/open?sb-hc-id=44444444-4444-4444-8444-444444444444", fields)
        ids.add((await control.read_request()).id)
    assert len(ids) == 2


async def test_an_id_that_is_no_guid_is_replaced(relay) -> None:
    """spec 9.3/id: Java drops a request whose first 36 characters are none."""
    for given in ("mine", "", GUID[:-1], "_G0"):
        control, sender, asked = await asked_for(relay, "GET", f"/open?sb-hc-id={given}")
        assert re.match(GUID_FORM + "_G", asked.id)
        await control.respond(asked)
        await sender.read_http()
        await control.aclose()


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "PATCH", "POST", "PROPFIND", "get"]
)
async def test_methods(relay, method) -> None:
    """spec 9.1/methods, spec 9.3/method: relayed and as sent."""
    control, sender, asked = await asked_for(relay, method, "/open/x")
    assert asked.message["method"] == method
    await control.respond(asked, 200, b"body")
    answer = await sender.read_http(method)
    assert answer.status == 200
    assert answer.body == (b"" if method == "HEAD" else b"body")


@pytest.mark.parametrize("target", ["relay.test:80", "/open/x", "example.org:443"])
async def test_connect_is_refused(relay, target) -> None:
    """spec 9.1/methods: CONNECT is not relayed, whatever its target."""
    control = await relay.listen("open")
    answer = await relay.fetch("CONNECT", target)
    assert 400 <= answer.status < 600
    await relay.ask("GET", "/open/after")
    assert (await control.read_request()).message["requestTarget"] == "/open/after"


async def test_the_relay_adds_no_cross_origin_headers(relay) -> None:
    """spec 9.1/preflight: a preflight is relayed where senders are anonymous, and 401 elsewhere."""
    fields = {"Origin": "https://page.test", "Access-Control-Request-Method": "PUT"}
    refused = await relay.fetch("OPTIONS", "/orders", fields)
    assert refused.status == 401
    control, sender, asked = await asked_for(relay, "OPTIONS", "/open", fields)
    assert asked.headers["Origin"] == "https://page.test"
    await control.respond(asked, 204)
    for answer in (refused, await sender.read_http()):
        assert not any(name.startswith("access-control") for name in answer.headers)


# The target ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        *STRIPPING,
        ("?SB-HC-Id=1&%73b-hc-x=1&b", "?b"),
        ("?a=sb-hc-id=1&x?y=/z", "?a=sb-hc-id=1&x?y=/z"),
    ],
)
@pytest.mark.parametrize("path", ["/open", "/open/", "/open/suffix"])
async def test_the_query_is_stripped_and_else_kept(relay, path, sent, seen) -> None:
    """spec 2.4/drop, spec 2.4/keep, spec 2.4/nothing-left, spec 9.3/target: the required results."""
    _, _, asked = await asked_for(relay, "GET", path + sent)
    assert asked.message["requestTarget"] == path + seen


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("/open/extra%20Path/extra%20%20Path2", "/open/extra Path/extra  Path2"),
        ("/open/a%2Fb%2fc%25%C3%a9?q=%20+%2B", "/open/a%2Fb%2fc%25%C3%a9?q=%20+%2B"),
        ("/open/%2520%20", "/open/%2520 "),
        ("/%6Fpen/x", "/%6Fpen/x"),
        ("/OPEN/Suffix", "/OPEN/Suffix"),
        ("//open/x", "/open/x"),
        ("/open//x//", "/open//x//"),
        ("/open/../x/./y", "/open/../x/./y"),
        ("/open/;a=1,b:@!$&'()*", "/open/;a=1,b:@!$&'()*"),
        ("http://relay.test/open/x?y", "/open/x?y"),
        ("HTTPS://relay.test/open?y", "/open?y"),
    ],
)
async def test_escapes_in_the_target(relay, sent, seen) -> None:
    """spec 9.4/blanks, spec 9.4/other-escapes, spec 9.3/target, spec 19/blanks: only a path's %20 is decoded."""
    _, _, asked = await asked_for(relay, "GET", sent)
    assert asked.message["requestTarget"] == seen


async def test_raw_targets(relay) -> None:
    """spec 9.4/raw-target: the switch of an entity leaves blanks escaped too."""
    await relay.store.create_entity("default", "raw", requires_client_authorization=False, raw_target=True)
    _, _, asked = await asked_for(relay, "GET", "/raw/a%20b%2f?c=%20&sb-hc-id=1", path="raw")
    assert asked.message["requestTarget"] == "/raw/a%20b%2f?c=%20"


@pytest.mark.parametrize("target", ["/", "/nothing", "/nothing/else?x", "*", "/ope", "/openx", "/open%2fx"])
async def test_unknown_entities(relay, target) -> None:
    """spec 3/unknown, spec 12/unknown-entity: 404 with the path, for HTTP too."""
    answer = await relay.fetch("OPTIONS" if target == "*" else "GET", target)
    if target == "/open%2fx":  # a decoded slash is a border of segments
        assert answer.status == 502
        return
    assert answer.status == 404
    assert "Endpoint does not exist" in answer.reason
    assert target.strip("/*").partition("?")[0] in answer.reason


async def test_the_longest_entity_gets_the_request(relay) -> None:
    """spec 3/longest-prefix: on borders of segments."""
    await relay.store.create_entity("default", "dept.x/site/42", requires_client_authorization=False)
    control, sender, asked = await asked_for(relay, "GET", "/dept.x/Site/42/room/7", path="dept.x/site/42")
    assert asked.message["requestTarget"] == "/dept.x/Site/42/room/7"
    await control.respond(asked)
    assert (await sender.read_http()).status == 200
    assert (await relay.fetch("GET", "/dept.x/site/421")).status == 404


# Who may ask ---------------------------------------------------------------------------------------------------------


async def test_tokens_of_senders(relay) -> None:
    """spec 5.1/query-first, spec 5.1/removed, spec 10/request-removed: in each place, and never shown."""
    control = await relay.listen("orders")
    token = relay.token()
    encoded = token.replace("%", "%25").replace(" ", "+").replace("&", "%26").replace("=", "%3D")
    for target, fields in [
        ("/orders/x", {"ServiceBusAuthorization": token}),
        ("/orders/x", {"servicebusauthorization": token}),
        ("/orders/x", {"Authorization": token}),
        (f"/orders/x?sb-hc-token={encoded}", {}),
        (f"/orders/x?sb-hc-token={encoded.replace('+', '%20')}", {"ServiceBusAuthorization": "nothing good"}),
    ]:
        sender = await relay.ask("GET", target, fields)
        asked = await control.read_request()
        assert asked.message["requestTarget"] == "/orders/x"
        assert asked.headers == {"Host": "relay.test", "Via": "1.1 relay.test"}
        await control.respond(asked)
        assert (await sender.read_http()).status == 200


async def test_authorization_is_data_unless_it_was_the_credential(relay) -> None:
    """spec 5.1/authorization-as-data, spec 5.7/not-evaluated, spec 10/request-authorization: azbridge sends both."""
    orders, public = await relay.listen("orders"), await relay.listen("open")
    for control, target, fields, seen in [
        (orders, "/orders", {"ServiceBusAuthorization": relay.token(), "Authorization": "Bearer mine"}, "Bearer mine"),
        (public, "/open", {"Authorization": "Basic eDp5"}, "Basic eDp5"),
        (public, "/open", {"Authorization": relay.token(), "ServiceBusAuthorization": "garbage"}, None),
    ]:
        await relay.ask("GET", target, fields)
        asked = await control.read_request()
        assert asked.headers["Authorization"] == (seen or fields["Authorization"])
        assert "ServiceBusAuthorization" not in asked.headers


async def test_refused_credentials(relay) -> None:
    """spec 12/http: each refusal of a credential with its status, code word and path; nothing reaches a listener."""
    control = await relay.listen("orders")
    await relay.store.put_rule("default", "orders", "hear", {Right.LISTEN})
    good = relay.token()
    for token, status, words in [
        (None, 401, "MissingToken"),
        ("no token", 401, "MalformedToken"),
        (
            peers.token("RootManageSharedAccessKey", "wrong"),
            401,
            "InvalidSignature: The token has an invalid signature",
        ),
        (peers.token("nobody", "wrong"), 401, "InvalidSignature: The token has an invalid signature"),
        (relay.token(ttl=-3600), 401, "ExpiredToken"),
        (relay.token(resource="http://relay.test/other"), 401, "InvalidAudience"),
        (relay.token("hear", "orders", resource="http://relay.test/orders"), 403, ""),
    ]:
        fields = {} if token is None else {"ServiceBusAuthorization": token}
        answer = await relay.fetch("GET", "/orders/x", fields)
        assert answer.status == status, (words, answer)
        assert words in answer.reason
    sender = await relay.ask("GET", "/orders/good", {"ServiceBusAuthorization": good})
    asked = await control.read_request()
    assert asked.message["requestTarget"] == "/orders/good"
    await control.respond(asked)
    assert (await sender.read_http()).status == 200


@pytest.mark.parametrize(
    "resource",
    [
        "http://relay.test/orders/",
        "https://relay.test:9443/orders/extraPath/extraPath2?query",
        "sb://relay.test:9443/orders",
        "http://relay.test:443/orders",
        "http://relay.test/",
    ],
)
async def test_resources_that_sdks_sign_for_http(relay, resource) -> None:
    """spec 5.3/dotnet, spec 5.3/java, spec 5.3/node-and-python: what each client writes into ``sr`` for HTTP."""
    fields = {"ServiceBusAuthorization": relay.token(resource=resource)}
    _, _, asked = await asked_for(relay, "GET", "/orders/extraPath/extraPath2?query", fields, path="orders")
    assert asked.message["requestTarget"] == "/orders/extraPath/extraPath2?query"


# Headers -------------------------------------------------------------------------------------------------------------


async def test_headers_that_do_not_pass(relay) -> None:
    """spec 10/request-removed, spec 10/request-expect, spec 10/request-filters: each row, in any spelling."""
    fields = {
        "Connection": "keep-alive, X-Nominated",
        "Upgrade": "h2c",
        "TE": "trailers",
        "Trailer": "X-T",
        "Close": "yes",
        "keep-ALIVE": "timeout=5",
        "Proxy-Connection": "keep-alive",
        "Expect": "100-continue",
        "Content-Length": "2",
        "Microsoft-Relay-DisallowedListeners": OTHER,
        "X-Nominated": "hop by hop",
        "X-Mine": "end to end",
    }
    control = await relay.listen("open")
    await relay.ask("POST", "/open", fields, host="relay.test", chunks=None)
    sender = relay._peers[-1]
    if not sender.buffer:
        assert (await sender.read_http_head()).status == 100
    await sender.send(b"ab")
    asked = await control.read_request()
    assert asked.headers == {"Host": "relay.test", "X-Mine": "end to end", "Via": "1.1 relay.test"}
    assert asked.body == b"ab"


async def test_headers_that_pass(relay) -> None:
    """spec 10/request-passed, spec 10/request-host, spec 19/host: the application's own, and ``Host``."""
    fields = {
        "User-Agent": "x/1",
        "Relay-User-Agent": "y/2",
        "Cookie": "a=1; b=2",
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Encoding": "gzip",
        "Content-Language": "de",
        "Accept-Encoding": "gzip, br",
        "Range": "bytes=0-1",
        "If-None-Match": '"x"',
        "X-Forwarded-For": "1.2.3.4",
        "Sec-Fetch-Mode": "cors",
        "0": "odd",
        "X-Empty": "",
    }
    _, _, asked = await asked_for(relay, "POST", "/open", fields, b"x", host="relay.test:8443")
    assert asked.headers == {**fields, "Host": "relay.test:8443", "Via": "1.1 relay.test:8443"}


async def test_names_keep_their_spelling_and_values_their_bytes(relay) -> None:
    """spec 10/request-spelling, spec 9.3/strings: the name and value of a Java test, and Latin-1."""
    name = "!#$%&*+-.^_`~|ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    value = "\"'(){}[]<>=/,:;@\\ \t\xe9\xff"
    _, _, asked = await asked_for(relay, "GET", "/open", {name: value, "x-LOWER": "true", "X-Number": "5"})
    assert asked.headers[name] == value
    assert asked.headers["x-LOWER"] == "true"
    assert asked.headers["X-Number"] == "5"


async def test_repeated_request_headers(relay) -> None:
    """spec 10/request-repeats: joined with comma and blank, cookies with a semicolon."""
    fields = [
        ("X-Custom", "requestValue1"),
        ("Cookie", "a=1"),
        ("x-custom", "requestValue2"),
        ("cookie", "b=2; c=3"),
        ("X-CUSTOM", ""),
    ]
    _, _, asked = await asked_for(relay, "GET", "/open", fields)
    assert asked.headers["X-Custom"] in ("requestValue1, requestValue2", "requestValue1, requestValue2, ")
    assert asked.headers["Cookie"] == "a=1; b=2; c=3"
    assert {name.lower() for name in asked.headers} == {"host", "via", "x-custom", "cookie"}


async def test_via_of_a_request(relay) -> None:
    """spec 10/request-via: what is there, all its lines, then ours."""
    fields = [("Via", "1.0 first"), ("via", "1.1 second (x)")]
    _, _, asked = await asked_for(relay, "GET", "/open", fields, host="relay.test:81")
    assert asked.headers["Via"] == "1.0 first, 1.1 second (x), 1.1 relay.test:81"


# Bodies: the way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"x", os.urandom(1000), os.urandom(40_000)])
async def test_a_small_body_goes_over_the_control_channel(relay, body) -> None:
    """spec 9.2/known-body, spec 6.2/body-follows, spec 9.5/one-message: text, then one binary message."""
    control, sender, asked = await asked_for(relay, "POST", "/open", (), body)
    assert asked.message.keys() == FULL
    assert asked.message["body"] is True
    assert asked.body == body
    assert not any(name.lower() in ("content-length", "transfer-encoding") for name in asked.headers)
    await control.respond(asked, 201, body[::-1])
    assert (await sender.read_http()).body == body[::-1]


async def test_json_and_body_of_64_kib_are_the_most_on_a_control_channel(relay) -> None:
    """spec 9.2/boundary, spec 15/request-on-control: 65 536 bytes go there, 65 537 by rendezvous, address alone."""
    control = await relay.listen("open")
    sender = await relay.connect()

    async def ask(size: int):
        await sender.send(http_request("POST", "/open", {"X": "y"}, bytes(size)))
        return await control.read_request()

    first = await ask(1)
    room = 65_536 - first.text_bytes
    await control.respond(first)
    await sender.read_http()
    exact = await ask(room)
    assert not exact.is_address_only
    assert exact.text_bytes + len(exact.body) == 65_536
    await control.respond(exact)
    await sender.read_http()
    beyond = await ask(room + 1)
    assert beyond.is_address_only
    listener = await relay.meet(beyond)
    whole = await listener.read_request()
    assert len(whole.body) == room + 1
    await listener.respond(whole)
    assert (await sender.read_http()).status == 200


async def test_the_address_only_form(relay) -> None:
    """spec 9.3/address-only, spec 9.2/larger: address and id, no ``method``, no ``body``, not even null."""
    body = os.urandom(70_000)
    control, sender, asked = await asked_for(relay, "POST", "/open/x%20y?z&sb-hc-id=1", {"X-Mine": "1"}, body)
    assert asked.message.keys() == {"address", "id"}
    listener = await relay.meet(asked)
    whole = await listener.read_request()
    assert whole.message.keys() == FULL
    assert whole.id == asked.id
    assert whole.address
    assert whole.message["method"] == "POST"
    assert whole.message["requestTarget"] == "/open/x y?z"
    assert whole.headers == {"Host": "relay.test", "X-Mine": "1", "Via": "1.1 relay.test"}
    assert whole.body == body
    await listener.respond(whole, body=b"done")
    assert (await sender.read_http()).body == b"done"
    assert await listener.read_close() == 1000
    # The channel carried nothing else, and goes on.
    await relay.ask("GET", "/open/next")
    assert (await control.read_request()).message["requestTarget"] == "/open/next"


@pytest.mark.parametrize("size", [65_536, 65_537, 200_000, 3_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_large_bodies_come_in_one_message_of_small_frames(relay, size, is_chunked) -> None:
    """spec 9.5/frames-65536, spec 9.5/one-message, spec 6.2/65536: frames of at most 64 KiB, and one FIN."""
    body = os.urandom(size)
    control = await relay.listen("open")
    sender = await relay.connect()
    chunks = [body[start : start + 50_000] for start in range(0, size, 50_000)]
    data = http_request("POST", "/open", (), **({"chunks": chunks} if is_chunked else {"body": body}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, data)
        asked = await control.read_request()
        assert asked.is_address_only
        listener = await relay.meet(asked)
        whole = await listener.read_request()
    assert whole.body == body
    assert max(whole.frames) <= 65_536
    assert 0 not in whole.frames[:-1]
    await listener.respond(whole)
    assert (await sender.read_http()).status == 200


async def test_a_chunked_body_that_is_there_goes_over_the_control_channel(patient) -> None:
    """spec 9.2/gather: complete within the time, so it goes like a sized one; extensions and trailers are dropped."""
    control = await patient.listen("open")
    sender = await patient.connect()
    head = http_head("POST", "/open", {"Transfer-Encoding": "chunked", "Trailer": "X-T"})
    await sender.send(head + b"3;ext=1\r\nabc\r\n")
    await sender.send(b"00A\r\n0123456789\r\n" + b"0\r\nX-T: 1\r\n\r\n")
    asked = await control.read_request()
    assert not asked.is_address_only
    assert asked.body == b"abc0123456789"
    assert asked.headers.keys() == {"Host", "Via"}
    await control.respond(asked)
    assert (await sender.read_http()).status == 200


async def test_an_unfinished_chunked_body_goes_by_rendezvous(hasty) -> None:
    """spec 9.2/gather: what is not complete in time is streamed, piece by piece, as it comes."""
    control = await hasty.listen("open")
    sender = await hasty.connect()
    await sender.send(http_head("POST", "/open", {"Transfer-Encoding": "chunked"}) + http_chunk(b"first"))
    asked = await control.read_request()
    assert asked.is_address_only
    listener = await hasty.meet(asked)
    first = await listener.read_frame()
    assert (first.opcode, first.fin) == (1, True)
    got = b""
    for piece in (b"second", b"third"):
        while not got.endswith(b"first" if piece == b"second" else b"second"):
            part = await listener.read_frame()
            assert (part.opcode, part.fin) == (0 if got else 2, False)
            assert part.payload
            got += part.payload
        await sender.send(http_chunk(piece))
    await sender.send(LAST_CHUNK)
    while True:
        part = await listener.read_frame()
        got += part.payload
        if part.fin:
            break
    assert got == b"firstsecondthird"
    await listener.respond(asked, body=b"ok")
    assert (await sender.read_http()).body == b"ok"


async def test_a_chunked_body_that_grows_over_64_kib_does_not_wait(patient) -> None:
    """spec 9.2/gather: 64 KiB decide too, before the time is over."""
    control = await patient.listen("open")
    sender = await patient.connect()
    await sender.send(http_head("POST", "/open", {"Transfer-Encoding": "chunked"}) + http_chunk(bytes(65_536)))
    assert (await control.read_request()).is_address_only


@pytest.mark.parametrize(("is_chunked", "promised"), [(False, False), (True, True)])
async def test_empty_bodies(relay, is_chunked, promised) -> None:
    """spec 9.5/empty-body, spec 20.1/empty-posts: a sized empty one is none, a chunked empty one is one empty frame."""
    options = {"chunks": []} if is_chunked else {"body": b""}
    control, sender, asked = await asked_for(relay, "POST", "/open", **options)
    assert asked.message["body"] is promised
    if promised:
        assert asked.body == b""
        assert asked.frames == [0]
    await control.respond(asked, 200, b"" if promised else None)
    answer = await sender.read_http()
    assert answer.body == b""


async def test_the_whole_body_is_taken_before_the_listener_is_told(patient) -> None:
    """spec 9.2/whole-body-first: while a listener waits for a body its control channel handles nothing else."""
    control = await patient.listen("open")
    slow, chunked = await patient.connect(), await patient.connect()
    await slow.send(http_head("POST", "/open/slow", {"Content-Length": "10"}) + b"12345")
    await chunked.send(http_head("POST", "/open/chunked", {"Transfer-Encoding": "chunked"}) + http_chunk(b"12345"))
    for number in range(3):
        quick = await patient.ask("POST", f"/open/{number}", (), b"quick")
        asked = await control.read_request()
        assert asked.message["requestTarget"] == f"/open/{number}"
        await control.respond(asked)
        assert (await quick.read_http()).status == 200
    await slow.send(b"67890")
    asked = await control.read_request()
    assert (asked.message["requestTarget"], asked.body) == ("/open/slow", b"1234567890")
    await chunked.send(LAST_CHUNK)
    asked = await control.read_request()
    assert (asked.message["requestTarget"], asked.body) == ("/open/chunked", b"12345")


async def test_a_request_without_a_body_never_goes_by_rendezvous(relay) -> None:
    """spec 9.2/no-rendezvous-without-body: Java never answers one; with a long head neither."""
    control, sender, asked = await asked_for(relay, "DELETE", "/open", {"X-Long": "x" * 30_000})
    assert asked.message["body"] is False
    assert len(asked.headers["X-Long"]) == 30_000
    await control.respond(asked)
    assert (await sender.read_http()).status == 200


async def test_request_headers_that_are_too_long(relay) -> None:
    """spec 9.2/headers-431, spec 15/header-size: 32 kB, counted as the listener's side is never told."""
    control = await relay.listen("open")
    answer = await relay.fetch("GET", "/open", {"X-Long": "x" * 32_768})
    assert answer.status == 431
    # Quotes double in JSON: within 32 kB on the wire, beyond 64 KiB for the listener.
    target = "/open/" + "p" * 10_000
    answer = await relay.fetch("GET", target, {"X-Long": '"' * 30_000})
    assert answer.status == 431
    answer = await relay.fetch("POST", target, {"X-Long": '"' * 30_000}, os.urandom(70_000))
    assert answer.status == 431
    sender = await relay.ask("GET", "/open/short")
    asked = await control.read_request()
    assert asked.message["requestTarget"] == "/open/short"
    await control.respond(asked)
    assert (await sender.read_http()).status == 200


# Expect --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_expect_is_answered_by_the_relay(relay, size, is_chunked) -> None:
    """spec 9.1/expect: 100 before the body, sized or chunked, small or large, and one answer after it."""
    control = await relay.listen("open")
    sender = await relay.connect()
    coding = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(size)}
    await sender.send(http_head("POST", "/open", {"Expect": "100-Continue", **coding}))
    async with trio.open_nursery() as nursery:

        async def send_body() -> None:
            interim = await sender.read_http_head()
            assert (interim.status, interim.lines) == (100, [])
            body = bytes(size)
            await sender.send(http_chunk(body) + LAST_CHUNK if is_chunked else body)

        nursery.start_soon(send_body)
        asked = await control.read_request()
        listener = control
        if asked.is_address_only:
            listener = await relay.meet(asked)
            asked = await listener.read_request()
        assert asked.body == bytes(size)
    assert "Expect" not in asked.headers
    await listener.respond(asked, 200, b"ok")
    assert (await sender.read_http()).body == b"ok"


async def test_a_refused_body_is_not_asked_for(relay) -> None:
    """spec 9.1/expect, RFC 9110 10.1.1: who is refused anyway gets the refusal instead of the 100."""
    fields = {"Expect": "100-continue", "Content-Length": "1000"}
    for target, status in (("/open", 502), ("/nothing", 404), ("/orders", 401)):
        sender = await relay.ask("POST", target, fields)
        assert (await sender.read_http()).status == status
        # The body may or may not follow now, so nothing else can be read from this connection.
        assert await sender.is_cut()


async def test_http_1_0_gets_no_100(relay) -> None:
    """spec 9.1/expect, RFC 9110 10.1.1: an old client's Expect means nothing."""
    control = await relay.listen("open")
    sender = await relay.connect()
    await sender.send(http_head("POST", "/open", {"Expect": "100-continue", "Content-Length": "2"}, version="1.0"))
    await sender.send(b"ab")
    asked = await control.read_request()
    assert asked.body == b"ab"
    await control.respond(asked, 200, b"ok")
    assert (await sender.read_http()).status == 200


# Connections ---------------------------------------------------------------------------------------------------------


async def test_connections_are_kept_alive(relay) -> None:
    """spec 9.1/keep-alive: after each kind of answer, the relay's own included where the whole request was read."""
    sender = await relay.connect()

    async def exchange(data: bytes, method: str = "GET"):
        await sender.send(data)
        return await sender.read_http(method)

    assert (await exchange(http_request("GET", "/open"))).status == 502
    assert (await exchange(http_request("POST", "/open", (), b"small"))).status == 502
    control = await relay.listen("open")

    async def answered(data: bytes, *response, method: str = "GET", **members):
        await sender.send(data)
        asked = await control.read_request()
        peer = control
        if asked.is_address_only:
            peer = await relay.meet(asked)
            asked = await peer.read_request()
        await peer.respond(asked, *response, **members)
        answer = await sender.read_http(method)
        assert (answer.value("Connection") or "").lower() != "close"
        return answer

    large = os.urandom(100_000)
    for _ in range(2):
        assert (await answered(http_request("GET", "/open"), 200, b"sized")).body == b"sized"
        assert (await answered(http_request("HEAD", "/open"), 200, b"sized", method="HEAD")).status == 200
        assert (await answered(http_request("GET", "/open"), 204, b"dropped")).status == 204
        assert (await answered(http_request("GET", "/open"), 304, b"dropped")).status == 304
        assert (await answered(http_request("GET", "/open"), 200)).status == 200
        assert (await answered(http_request("POST", "/open", (), b"x"), 500, b"bad")).status == 500
        assert (await answered(http_request("POST", "/open", chunks=[b"x"]), 200, b"y")).body == b"y"
        assert (await answered(http_request("PUT", "/open", (), large), 200, large)).body == large
        assert (await answered(http_request("GET", "/open"), "101")).status == 502
    # A streamed answer ends with its last chunk, and the connection with neither.
    await sender.send(http_request("GET", "/open"))
    asked = await control.read_request()
    listener = await relay.meet(asked)
    await listener.send(peers.response_text(asked.id, body=True) + body_frames(b"a", b"b", end="empty"))
    assert (await sender.read_http()).body == b"ab"
    assert (await answered(http_request("GET", "/open"), 200, b"last")).body == b"last"


@pytest.mark.parametrize(
    ("version", "fields", "is_kept"),
    [
        ("1.1", {}, True),
        ("1.1", {"Connection": "close"}, False),
        ("1.1", {"Connection": "X, Close"}, False),
        ("1.0", {}, False),
        ("1.0", {"Connection": "close"}, False),
    ],
)
async def test_who_does_not_want_to_go_on_is_let_go(relay, version, fields, is_kept) -> None:
    """spec 9.1/keep-alive: HTTP/1.0 and ``Connection: close`` end the connection behind the answer."""
    control, sender, asked = await asked_for(relay, "GET", "/open", fields, version=version)
    await control.respond(asked, 200, b"body")
    answer = await sender.read_http()
    assert answer.body == b"body"
    if is_kept:
        await sender.send(http_request("GET", "/open/2"))
        assert (await control.read_request()).message["requestTarget"] == "/open/2"
    else:
        assert await sender.read_eof() == b""
        if version == "1.1":
            assert (answer.value("Connection") or "").lower() == "close"


async def test_http_1_0_needs_no_host(relay) -> None:
    """spec 9.1/keep-alive, spec 10/request-via: a request without ``Host`` is relayed, and ``Via`` stays readable."""
    control, sender, asked = await asked_for(relay, "GET", "/open/old", host=None, version="1.0")
    assert "Host" not in asked.headers
    assert re.fullmatch(r"1\.1 [\w.-]+(:\d+)?", asked.headers["Via"])
    await control.respond(asked, 200, b"x")
    assert (await sender.read_http()).body == b"x"


async def test_http_1_0_may_be_kept_alive(relay) -> None:
    """spec 9.1/keep-alive: with ``Connection: keep-alive`` and a length, if the relay says so."""
    control, sender, asked = await asked_for(relay, "GET", "/open", {"Connection": "keep-alive"}, version="1.0")
    await control.respond(asked, 200, b"body")
    answer = await sender.read_http()
    assert answer.body == b"body"
    if (answer.value("Connection") or "").lower() == "keep-alive":
        await sender.send(http_request("GET", "/open/2", {"Connection": "keep-alive"}, version="1.0"))
        assert (await control.read_request()).message["requestTarget"] == "/open/2"
    else:
        assert await sender.read_eof() == b""


async def test_pipelined_requests_are_answered_in_order(relay) -> None:
    """spec 9.1/pipelining: many in one write, bodies of each kind between them, answers in their order."""
    control = await relay.listen("open")
    sender = await relay.connect()
    large = os.urandom(80_000)
    requests = [
        http_request("GET", "/open/0"),
        http_request("POST", "/open/1", (), b"one"),
        http_request("POST", "/open/2", chunks=[b"t", b"wo"]),
        http_request("HEAD", "/open/3"),
        http_request("PUT", "/open/4", (), large),
        http_request("GET", "/nothing/5"),
        http_request("GET", "/open/6"),
    ]
    bodies = [None, b"one", b"two", None, large, None, None]

    async def listen() -> None:
        for number, body in enumerate(bodies):
            if number == 5:
                continue
            asked, peer = await control.read_request(), control
            if asked.is_address_only:
                peer = await relay.meet(asked)
                asked = await peer.read_request()
            assert asked.message["requestTarget"] == f"/open/{number}"
            assert asked.body == body
            await peer.respond(asked, 200, b"answer %d" % number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        nursery.start_soon(sender.send, b"".join(requests))
        for number in range(7):
            answer = await sender.read_http("HEAD" if number == 3 else "GET")
            if number == 5:
                assert answer.status == 404
            else:
                assert answer.status == 200
                assert answer.body == (b"" if number == 3 else b"answer %d" % number)


async def test_no_head_is_read_in_two_ways(relay) -> None:
    """spec 9.1/strict, RFC 9112: what could smuggle a second request is 400, the end, and never relayed."""
    control = await relay.listen("open")
    plain = b"POST /open HTTP/1.1\r\nHost: relay.test\r\n"
    smuggled = b"GET /open/smuggled HTTP/1.1\r\nHost: relay.test\r\n\r\n"
    for rest in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"Content-Length: +5\r\n\r\nabcde",
        b"Content-Length: 5, 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
        b"X: a\r\n b\r\n\r\n",
        b"X: a\nY: b\r\n\r\n",
        b"X: a\x00b\r\n\r\n",
        b"Host: other.test\r\n\r\n",
        b"\x00: a\r\n\r\n",
    ):
        sender = await relay.connect()
        await sender.send(plain + rest + smuggled)
        answer = await sender.read_http()
        assert answer.status in (400, 501), rest
        assert answer.value("Connection") == "close"
        assert await sender.is_cut()
    await relay.ask("GET", "/open/after")
    while (asked := await control.read_request()).message["requestTarget"] != "/open/after":
        raise AssertionError(asked.message)


async def test_an_upgrade_on_a_plain_path_is_a_connect(relay) -> None:
    """spec 9.1/upgrade: a page that is published through the relay opens a WebSocket on its own origin."""
    control = await relay.listen("open")
    sender = await relay.connect()
    async with trio.open_nursery() as nursery:
        answers = []

        async def upgrade() -> None:
            answers.append(await sender.upgrade("/open/socket?x=1"))

        nursery.start_soon(upgrade)
        message = (await control.read_json())["accept"]
        assert split_address(message["address"])[1].startswith("/$hc/open/socket?x=1&sb-hc-action=accept&")
        listener = await relay.come_to(message["address"])
    assert answers[0].status == 101
    await sender.send(frame(1, b"hello"))
    assert (await listener.read_message())[1] == b"hello"


async def test_switches_of_an_entity(relay) -> None:
    """spec 18/http-off: where HTTP is off, senders get 403 and a listener that knows no requests sees none."""
    await relay.store.create_entity("default", "ws-only", requires_client_authorization=False, http=False)
    control = await relay.listen("ws-only")
    answer = await relay.fetch("GET", "/ws-only/x")
    assert answer.status == 403
    await relay.store.update_entity("default", "ws-only", http=True)
    await relay.ask("GET", "/ws-only/x")
    assert (await control.read_request()).message["method"] == "GET"


async def test_api_version_alone_is_no_management(relay) -> None:
    """spec 16/told-apart: a relayed request may have that parameter."""
    for query in ("?api-version=abc", "?api-version=2016-07"):
        control, _, asked = await asked_for(relay, "GET", f"/open{query}")
        assert asked.message["requestTarget"] == f"/open{query}"
        await control.aclose()


# Choosing a listener -------------------------------------------------------------------------------------------------


async def answer_all(control: WirePeer, name: bytes, counts: dict[bytes, int]) -> None:
    while True:
        asked = await control.read_request()
        counts[name] = counts.get(name, 0) + 1
        await control.respond(asked, 200, name)


async def test_two_listeners_share_a_hundred_requests(relay) -> None:
    """spec 11/random: both get some, and every request is answered by the one that got it."""
    counts: dict[bytes, int] = {}
    async with trio.open_nursery() as nursery:
        for name in (b"one", b"two"):
            nursery.start_soon(answer_all, await relay.listen("open"), name, counts)
        sender = await relay.connect()
        got = []
        for _ in range(100):
            await sender.send(http_request("GET", "/open"))
            got.append((await sender.read_http()).body)
        nursery.cancel_scope.cancel()
    assert counts == {name: got.count(name) for name in (b"one", b"two")}
    assert min(counts.values()) > 5


async def test_filters_restrict_the_choice(relay) -> None:
    """spec 11/filters, spec 10/request-filters: allowed and disallowed, without case and suffix."""
    counts: dict[bytes, int] = {}
    async with trio.open_nursery() as nursery:
        for name, guid in ((b"one", GUID), (b"two", OTHER)):
            control = await relay.listen("open", query=f"&sb-hc-id={guid}")
            nursery.start_soon(answer_all, control, name, counts)
        for fields, name in [
            ({"Microsoft-Relay-AllowedListeners": GUID.upper()}, b"one"),
            ({"microsoft-relay-allowedlisteners": f"{OTHER}_G3, 33333333-3333-4333-8333-333333333333"}, b"two"),
            ({"Microsoft-Relay-DisallowedListeners": GUID}, b"two"),
            ({"Microsoft-Relay-DisallowedListeners": f"x,{OTHER}"}, b"one"),
        ] * 5:
            assert (await relay.fetch("GET", "/open", fields)).body == name
        for fields in (
            {"Microsoft-Relay-AllowedListeners": "33333333-3333-4333-8333-333333333333"},
            {"Microsoft-Relay-DisallowedListeners": f"{GUID},{OTHER}"},
        ):
            answer = await relay.fetch("GET", "/open", fields)
            assert answer.status == 404
            words = "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
            assert words in answer.reason
        nursery.cancel_scope.cancel()


# Bounds --------------------------------------------------------------------------------------------------------------


async def test_requests_count_as_connections(start_relay) -> None:
    """spec 15/connections, spec 12/quotas: one more than the quota is 503 with its name; room comes back."""
    relay = await start_relay(limits=LimitsConfig(connections_per_namespace=2))
    control = await relay.listen("open")
    senders = [await relay.ask("GET", "/open") for _ in range(2)]
    asked = [await control.read_request() for _ in range(2)]
    answer = await relay.fetch("GET", "/open")
    assert answer.status == 503
    assert "quota" in answer.reason.lower() or "connections" in answer.reason.lower()
    await control.respond(asked[0])
    await control.respond(asked[1])
    for sender in senders:
        assert (await sender.read_http()).status == 200
    sender = await relay.ask("GET", "/open")
    await control.respond(await control.read_request())
    assert (await sender.read_http()).status == 200


async def test_bodies_without_room_go_by_rendezvous(start_relay) -> None:
    """spec 9.2/room, failures/slow-reader: what is held for control channels is bounded by a setting."""
    relay = await start_relay(limits=LimitsConfig(http_buffer_bytes=200_000))
    control = await relay.listen("open")
    body = os.urandom(30_000)
    slow = []
    for _ in range(3):
        slow.append(await relay.connect())
        # All but the last byte: the relay holds what it has until it knows the whole.
        await slow[-1].send(http_request("POST", "/open/slow", (), body)[:-1])
    with trio.fail_after(5):
        while relay.server.statistics().http_buffered_bytes < 3 * 29_999:
            await trio.sleep(0.005)
    sender = await relay.ask("POST", "/open/late", (), body)
    asked = await control.read_request()
    assert asked.is_address_only
    listener = await relay.meet(asked)
    whole = await listener.read_request()
    assert whole.body == body
    await listener.respond(whole, 200, b"late")
    assert (await sender.read_http()).body == b"late"
    for peer in slow:
        await peer.send(body[-1:])
        asked = await control.read_request()
        assert asked.body == body
        await control.respond(asked)
        assert (await peer.read_http()).status == 200
    statistics = relay.server.statistics()
    assert statistics.http_buffered_bytes == 0
    assert 89_000 <= statistics.http_buffered_peak <= 200_000


async def test_a_listener_that_does_not_read_stops_nobody_else(start_relay) -> None:
    """failures/slow-reader, spec 9.2/room: its own requests wait in bounded memory, others are served."""
    relay = await start_relay(limits=LimitsConfig(http_buffer_bytes=1 << 20))
    await relay.store.create_entity("default", "other", requires_client_authorization=False)
    await relay.listen("open")  # never read
    control = await relay.listen("other")
    for _ in range(100):
        await relay.ask("POST", "/open", (), bytes(60_000))
    for number in range(10):
        sender = await relay.ask("POST", "/other", (), b"%d" % number)
        asked = await control.read_request()
        peer = control
        if asked.is_address_only:
            peer = await relay.meet(asked)
            asked = await peer.read_request()
        await peer.respond(asked, 200, asked.body)
        assert (await sender.read_http()).body == b"%d" % number
    assert relay.server.statistics().http_buffered_peak <= 1 << 20


async def test_one_huge_body_delays_nobody(relay) -> None:
    """failures/fairness, spec 9.2/whole-body-first: its listener reads slowly, the channel serves on."""
    control = await relay.listen("open")
    sender = await relay.connect()
    sent = 0

    async def send_forever() -> None:
        nonlocal sent
        await sender.send(http_head("POST", "/open", {"Content-Length": str(1 << 40)}))
        while True:
            await sender.send(bytes(65_536))
            sent += 65_536

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_forever)
        asked = await control.read_request()
        assert asked.is_address_only
        await relay.meet(asked)  # and never read
        for number in range(50):
            quick = await relay.ask("GET", f"/open/{number}")
            asked = await control.read_request()
            await control.respond(asked, 200, b"x")
            assert (await quick.read_http()).status == 200
        nursery.cancel_scope.cancel()
    assert sent < 64 << 20
    assert relay.server.statistics().http_buffered_bytes <= 1 << 20
