"""The WebSocket handshake, and header fields on their way across the relay."""

from __future__ import annotations

import base64

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore import errors
from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.wire import handshake
from relaycore.wire.http1 import (
    Headers,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    build_request,
    build_response,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

FIELDS = [
    ("Host", "relay.example:9443"),
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
]


def request(*extra, without=(), method="GET", version="1.1"):
    headers = Headers([*Headers(FIELDS).without(*without), *extra])
    return RequestHead(method, "/$hc/hyco", version, headers)


def response(status=101, reason="Switching Protocols", fields=None, extra=(), without=()):
    if fields is None:
        fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
    return ResponseHead(status, reason, "1.1", Headers([*Headers(fields).without(*without), *extra]))


def test_accept_key():
    """RFC 6455 1.3: the sample of the standard."""
    assert handshake.accept_key(KEY) == ACCEPT


def test_new_key():
    """RFC 6455 4.1: the key is 16 random bytes in Base64."""
    assert handshake.new_key(b"the sample nonce") == KEY
    with pytest.raises(LocalProtocolError):
        handshake.new_key(b"short")


# The request --------------------------------------------------------------------------------------------------------


def test_handshake_is_read():
    """spec 4: key, version and the offered subprotocols in their order, over all lines."""
    head = request(("sec-websocket-protocol", "p1,p2"), ("Sec-WebSocket-Protocol", "p3"))
    assert handshake.check_upgrade(head) == handshake.UpgradeRequest(KEY, "13", ("p1", "p2", "p3"))
    assert handshake.check_upgrade(request()).protocols == ()


@pytest.mark.parametrize(
    "extra",
    [
        ("0", "Sec-WebSocket-Extensions: permessage-deflate"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("Pragma", "no-cache"),
        ("Content-Length", "0"),
        ("Origin", "null"),
    ],
)
def test_what_handshakes_of_sdks_hold_besides(extra):
    """spec 4: a header named 0, Jetty's fields and extension offers are tolerated."""
    assert handshake.check_upgrade(request(extra)).key == KEY


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(without=["Upgrade"]), 426),
        (request(without=["Connection"]), 426),
        (request(("Upgrade", "h2c"), without=["Upgrade"]), 426),
        (request(method="POST"), 426),
        (request(version="1.0"), 426),
        (request(("Content-Length", "3")), 400),
        (request(("Transfer-Encoding", "chunked")), 400),
        (request(without=["Sec-WebSocket-Version"]), 426),
        (request(("Sec-WebSocket-Version", "8"), without=["Sec-WebSocket-Version"]), 426),
        (request(("Sec-WebSocket-Version", "13")), 426),
        (request(without=["Sec-WebSocket-Key"]), 400),
        (request(("Sec-WebSocket-Key", KEY)), 400),
        (request(("Sec-WebSocket-Protocol", "p,p")), 400),
        (request(("Sec-WebSocket-Protocol", "a b")), 400),
    ],
)
def test_bad_handshakes(head, status):
    """RFC 6455 4.2.1: a handshake that is none is answered 426, a malformed one 400."""
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.check_upgrade(head)
    assert caught.value.http_status == status


@pytest.mark.parametrize("key", ["", "abc", "YWJj", "dGhlIHNhbXBsZSBub25jZQ", "dGhl IHNhbXBsZSBub25jZQ==", "\xe4" * 24])
def test_bad_keys(key):
    """RFC 6455 4.2.1: the key decodes to 16 bytes."""
    with pytest.raises(RemoteProtocolError, match="Key"):
        handshake.check_upgrade(request(("Sec-WebSocket-Key", key), without=["Sec-WebSocket-Key"]))


def test_key_of_node():
    """spec 21: the key of hyco-ws is the Base64 of 13- and the time, 16 bytes."""
    key = "MTMtMTc5NTMwMTA5OTMwOQ=="
    head = request(("Sec-WebSocket-Key", key), without=["Sec-WebSocket-Key"])
    assert handshake.check_upgrade(head).key == key


def test_refusal_headers():
    """spec 4: errors before the upgrade have Content-Length 0 and Connection close."""
    assert handshake.refusal_headers(404) == [("Content-Length", "0"), ("Connection", "close")]
    assert dict(handshake.refusal_headers(426))["Sec-WebSocket-Version"] == "13"


# The answer ---------------------------------------------------------------------------------------------------------


def test_101_is_exactly_this():
    """spec 4: HTTP/1.1 101, three fields once each, no extension, no content field."""
    assert handshake.build_101(KEY, protocol=None) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"\r\n"
    )


def test_101_with_a_subprotocol():
    """spec 4: Sec-WebSocket-Protocol with one value, only when one was chosen."""
    assert handshake.build_101(KEY, protocol="p1").endswith(b"Sec-WebSocket-Protocol: p1\r\n\r\n")
    for protocol in ("", "a, b", "a\r\nb: c"):
        with pytest.raises(LocalProtocolError):
            handshake.build_101(KEY, protocol=protocol)


@given(st.binary(min_size=16, max_size=16), st.none() | strategies.header_names)
def test_both_ends_agree(random16, protocol):
    """RFC 6455 4: our client takes our server's answer, and what it asked for came through."""
    key = handshake.new_key(random16)
    offered = () if protocol is None else ("other-than-" + protocol, protocol)
    fields = [field for field in FIELDS if field[0] != "Sec-WebSocket-Key"] + [("Sec-WebSocket-Key", key)]
    if offered:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(offered)))
    server = RequestReader()
    server.receive_data(build_request("GET", "/$hc/hyco", fields))
    head = server.next_event()
    upgrade = handshake.check_upgrade(head)
    assert upgrade == handshake.UpgradeRequest(key, "13", offered)
    client = ResponseReader()
    client.receive_data(handshake.build_101(upgrade.key, protocol=protocol) + b"\x81\x00")
    assert handshake.check_101(client.next_event(), key, offered) == protocol
    assert client.trailing == b"\x81\x00"


@pytest.mark.parametrize(
    "head",
    [
        response(without=["Upgrade"]),
        response(extra=[("Upgrade", "h2c")]),
        response(without=["Connection"]),
        response(without=["Sec-WebSocket-Accept"]),
        response(extra=[("Sec-WebSocket-Accept", ACCEPT)]),
        response(without=["Sec-WebSocket-Accept"], extra=[("Sec-WebSocket-Accept", ACCEPT.lower())]),
        response(extra=[("Sec-WebSocket-Extensions", "permessage-deflate")]),
        response(extra=[("Sec-WebSocket-Protocol", "p2")]),
        response(extra=[("Sec-WebSocket-Protocol", "p1"), ("Sec-WebSocket-Protocol", "p1")]),
    ],
)
def test_bad_101(head):
    """RFC 6455 4.1: a 101 that does not answer this very handshake fails the connection."""
    with pytest.raises(RemoteProtocolError):
        handshake.check_101(head, KEY, ["p1"])


def test_good_101():
    """spec 4: also an answer of another server, with more tokens in Connection."""
    head = response(
        without=["Connection"], extra=[("Connection", "keep-alive, Upgrade"), ("Sec-WebSocket-Protocol", "p1")]
    )
    assert handshake.check_101(head, KEY, ["p1"]) == "p1"
    assert handshake.check_101(response(), KEY, ["p1"]) is None


@pytest.mark.parametrize(
    ("status", "reason", "error", "message", "tracking_id"),
    [
        (401, "ExpiredToken: x. TrackingId:t_G0, Timestamp:y", errors.AuthorizationFailed, "ExpiredToken: x", "t_G0"),
        (
            404,
            "Endpoint does not exist: a. TrackingId:t_G0",
            errors.EndpointNotFound,
            "Endpoint does not exist: a",
            "t_G0",
        ),
        (404, "There are no listeners", errors.NoListener, "There are no listeners", ""),
        (504, "late", errors.GatewayTimeout, "late", ""),
        (418, "I'm a  teapot. ", errors.Rejected, "I'm a  teapot. ", ""),
        (200, "OK", errors.Rejected, "OK", ""),
    ],
)
def test_other_statuses(status, reason, error, message, tracking_id):
    """spec 12: any other status is a refusal, by its class, with message and tracking id parsed out."""
    with pytest.raises(error) as caught:
        handshake.check_101(response(status, reason, []), KEY, [])
    assert type(caught.value) is error
    assert (caught.value.http_status, caught.value.message) == (status, message)
    assert caught.value.tracking_id == tracking_id


# Fields that cross the relay ----------------------------------------------------------------------------------------

HOP_BY_HOP = ["Content-Length", "Transfer-Encoding", "TE", "Trailer", "Close", "Keep-Alive", "Proxy-Connection"]
FILTERS = ["Microsoft-Relay-AllowedListeners", "Microsoft-Relay-DisallowedListeners"]
PASSED = ["Relay-User-Agent", "User-Agent", "Cookie", "X-Any", "Content-Type", "Content-Language", "0"]

# header: connectHeaders, requestHeaders, responseHeaders
TABLE = {
    "ServiceBusAuthorization": (False, False, False),
    "Authorization": (True, True, True),
    "Host": (True, True, False),
    "Connection": (True, False, False),
    "Upgrade": (True, False, False),
    "Sec-WebSocket-Key": (True, True, True),
    "Expect": (True, False, True),
    **dict.fromkeys(HOP_BY_HOP, (True, False, False)),
    **dict.fromkeys(PASSED, (True, True, True)),
    **dict.fromkeys(FILTERS, (False, False, True)),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
def test_table_of_header_fields(name, spelling):
    """spec 10: the table, column by column, names in any case."""
    sent = spelling(name)
    headers = Headers([(sent, "v")])
    columns = (
        sent in handshake.connect_headers(headers, credential_header=None, via_host=None),
        sent in handshake.request_headers(headers, credential_header=None, via_host=None),
        sent in dict(handshake.response_headers({sent: "v"}, via_host=None)),
    )
    assert columns == TABLE[name]


NOMINATED = [("X-Own", "1"), ("Via", "1.1 a"), ("Host", "h"), ("X-Other", "2"), ("Cookie", "c")]


@pytest.mark.parametrize("connection", [["x-own, HOST", "keep-alive,Via,, cOOkie"], ["X-OWN,host ,via", "Cookie"]])
def test_what_connection_names_goes_with_it(connection):
    """RFC 9110 7.6.1: fields named by Connection are for the next hop alone; Host and Via cannot be taken away."""
    lines = [("Connection", connection[0]), *NOMINATED, ("connection", connection[1])]
    passed = handshake.request_headers(Headers(lines), credential_header=None, via_host="r")
    assert passed == {"Via": "1.1 a, 1.1 r", "Host": "h", "X-Other": "2"}
    answer = {"CONNECTION": iter(connection), **dict(NOMINATED)}
    assert handshake.response_headers(answer, via_host="r") == [("X-Other", "2"), ("Via", "1.1 a, 1.1 r")]


def test_a_handshake_keeps_what_its_connection_names():
    """spec 10: connectHeaders hold Connection and Upgrade, as the sender sent them."""
    lines = [("Connection", "Upgrade, X-Own"), ("Upgrade", "websocket"), ("X-Own", "1")]
    assert handshake.connect_headers(Headers(lines), credential_header=None, via_host=None) == dict(lines)


@pytest.mark.parametrize("function", [handshake.connect_headers, handshake.request_headers])
@pytest.mark.parametrize(
    ("credential_header", "is_passed"),
    [
        (None, True),
        ("query", True),
        ("ServiceBusAuthorization", True),
        ("Authorization", False),
        ("AUTHORIZATION", False),
    ],
)
def test_authorization_is_removed_only_as_the_credential(function, credential_header, is_passed):
    """spec 5.1: Authorization is application data unless it was the credential."""
    headers = Headers([("authorization", "Bearer x"), ("ServiceBusAuthorization", "SharedAccessSignature y")])
    passed = function(headers, credential_header=credential_header, via_host=None)
    assert passed == ({"authorization": "Bearer x"} if is_passed else {})


@pytest.mark.parametrize("function", [handshake.connect_headers, handshake.request_headers])
def test_spelling_and_repeats(function):
    """spec 7.1: the original spelling of names; repeats joined with a comma and a blank, cookies with a semicolon."""
    name = "!#$%&*+-.^_`~*|A"
    headers = Headers(
        [(name, "requestValue1"), ("cOOkie", "a"), (name.lower(), "requestValue2"), ("Cookie", "b"), ("E", "")]
    )
    assert function(headers, credential_header=None, via_host=None) == {
        name: "requestValue1, requestValue2",
        "cOOkie": "a; b",
        "E": "",
    }


def test_connect_headers_hold_what_node_needs():
    """spec 7.1: Sec-WebSocket-Key, Sec-WebSocket-Version and Host must be there."""
    passed = handshake.connect_headers(Headers(FIELDS), credential_header=None, via_host="relay.example")
    assert passed == {**dict(FIELDS), "Via": "1.1 relay.example"}


@pytest.mark.parametrize("host", ["relay.example", "relay.example:9443"])
def test_via_is_annotated(host):
    """spec 10: Via stays parseable: 1.1 host or 1.1 host:port behind what was there."""
    sent = Headers([("via", "1.0 a"), ("Via", "1.1 b")])
    for function in (handshake.connect_headers, handshake.request_headers):
        assert function(sent, credential_header=None, via_host=host) == {"via": f"1.0 a, 1.1 b, 1.1 {host}"}
        assert function(sent, credential_header=None, via_host=None) == {"via": "1.0 a, 1.1 b"}
        assert function(Headers([("Via", "")]), credential_header=None, via_host=host) == {"Via": f"1.1 {host}"}
        assert function(Headers(), credential_header=None, via_host=host) == {"Via": f"1.1 {host}"}
    assert handshake.response_headers({"Via": "1.1 x"}, via_host=host) == [("Via", f"1.1 x, 1.1 {host}")]
    assert handshake.response_headers({"Via": ""}, via_host=host) == [("Via", f"1.1 {host}")]
    assert handshake.response_headers({}, via_host=host) == [("Via", f"1.1 {host}")]
    assert handshake.response_headers({}, via_host=None) == []


def test_response_values():
    """spec 10: one line each, but a line for each Set-Cookie."""
    given_headers = {"A": "1,2", "Set-Cookie": ["a=1", "b=2"], "B": ["x", "y"]}
    assert handshake.response_headers(given_headers, via_host=None) == [
        ("A", "1,2"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("B", "x, y"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a\r\nb", "v"),
        ("a b", "v"),
        ("", "v"),
        ("a", "v\r\nb: c"),
        ("a", "\0"),
        ("a", "\u20ac"),
        ("Via", "x\ny"),
        ("a", ["", "\n"]),
    ],
)
def test_what_cannot_stand_in_a_header_is_dropped(name, value):
    """spec 10: CR, LF and NUL from a listener drop that header, not the answer."""
    assert handshake.response_headers({name: value, "X": "y"}, via_host=None) == [("X", "y")]


@given(strategies.header_lists)
def test_nothing_is_invented(fields):
    """spec 10: every passed name and value came from the sender, credentials never do."""
    headers = Headers(fields)
    for function in (handshake.connect_headers, handshake.request_headers):
        passed = function(headers, credential_header="Authorization", via_host=None)
        assert all(headers.joined(name) == value for name, value in passed.items())
        assert len({name.lower() for name in passed}) == len(passed)
        assert not {"authorization", "servicebusauthorization"} & {name.lower() for name in passed}


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=12) | st.lists(st.text(max_size=8), max_size=3), max_size=5)
)
def test_response_headers_can_always_be_sent(given_headers):
    """spec 10: whatever a listener sends, what is left stands on the wire."""
    build_response(200, "OK", handshake.response_headers(given_headers, via_host="h:1"))


@given(st.text(max_size=30))
def test_no_key_raises_anything_undocumented(key):
    """RFC 6455 4.2.1: any key is good or a RemoteProtocolError."""
    head = request(("Sec-WebSocket-Key", key), without=["Sec-WebSocket-Key"])
    try:
        upgrade = handshake.check_upgrade(head)
    except RemoteProtocolError:
        return
    assert len(base64.b64decode(upgrade.key)) == 16
