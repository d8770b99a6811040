"""HTTP/1.1 heads and bodies: what is read, what is refused, and that cuts in the byte stream change neither."""

from __future__ import annotations

import time

import h11
import httptools
import pytest
import strategies
from hypothesis import assume, example, given
from hypothesis import strategies as st

from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.wire import http1
from relaycore.wire.http1 import (
    LAST_CHUNK,
    Body,
    EndOfRequest,
    EndOfResponse,
    Headers,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    build_request,
    build_response,
    encode_chunk,
)

GET = b"GET /hyco HTTP/1.1\r\n"
HOST = b"Host: relay.example\r\n"
POST = b"POST /hyco HTTP/1.1\r\n" + HOST

# The listen handshake of hyco-ws 1.0.5, as it was seen on the wire.
NODE_LISTEN = (
    b"GET /$hc/a2?sb-hc-action=listen HTTP/1.1\r\n"
    b"Connection: Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Host: localhost\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MTMtMTc5NTMwMTA5OTMwOQ==\r\n"
    b"ServiceBusAuthorization: SharedAccessSignature sr=http%3A%2F%2Flocalhost%2F&sig=x&se=1795304699&skn=Root\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"\r\n"
)


def events_of(data, *, cuts=None, reader=None, **limits):
    """All events of ``data``, with the pieces of a body put together; a refusal is the last of them."""
    reader = RequestReader(**limits) if reader is None else reader
    found = []
    for piece in [data] if cuts is None else cuts:
        reader.receive_data(piece)
        while True:
            try:
                event = reader.next_event()
            except RemoteProtocolError as error:
                return [*found, error.http_status]
            if event is None:
                break
            if isinstance(event, Body) and found and isinstance(found[-1], Body):
                event = Body(found.pop().data + event.data)
            found.append(event)
    return found


def head_of(data, **limits):
    head = events_of(data, **limits)[0]
    assert isinstance(head, RequestHead), head
    return head


def byte_by_byte(data):
    return [data[place : place + 1] for place in range(len(data))]


# Headers ------------------------------------------------------------------------------------------------------------


def test_headers_are_looked_up_without_regard_to_case():
    """spec 4: header names in any case and order."""
    headers = Headers([("X-One", "1"), ("Cookie", "a"), ("x-one", "2"), ("cookie", "b")])
    assert headers.get("X-ONE") == "1"
    assert headers.get("absent") is None
    assert headers.get("absent", "default") == "default"
    assert headers.get_all("x-ONE") == ["1", "2"]
    assert headers.get_all("absent") == []
    assert "x-One" in headers
    assert "absent" not in headers
    assert 1 not in headers
    assert len(headers) == 4


def test_headers_keep_order_and_spelling():
    """spec 10: names keep their spelling."""
    fields = [("X-One", "1"), ("a", "2"), ("x-ONE", "3")]
    assert list(Headers(fields)) == fields
    assert list(Headers(fields).without("x-one", "B")) == [("a", "2")]


def test_repeated_headers_are_joined():
    """spec 10: repeats are joined with a comma and a blank, cookies with a semicolon."""
    headers = Headers([("X", "requestValue1"), ("Cookie", "a=1"), ("x", "requestValue2"), ("COOKIE", "b=2")])
    assert headers.joined("x") == "requestValue1, requestValue2"
    assert headers.joined("cookie") == "a=1; b=2"
    assert headers.joined("absent") is None


def test_list_members():
    """RFC 9110 5.6.1: members over all lines, empty ones left out."""
    assert Headers([("C", "a, b ,,"), ("c", "\tc")]).members("c") == ["a", "b", "c"]
    assert Headers().members("c") == []


def test_headers_compare_and_hide_values():
    """spec 5: values may be credentials and stay out of the repr."""
    headers = Headers([("Authorization", "s3cret")])
    assert repr(headers) == "<Headers: Authorization>"
    assert headers == Headers([("Authorization", "s3cret")])
    assert hash(headers) == hash(Headers([("Authorization", "s3cret")]))
    assert headers != Headers([("authorization", "s3cret")])
    assert headers != "x"


def test_wire_size():
    """spec 15: header fields are counted with their separators and line ends."""
    assert Headers([("Host", "h"), ("A", "")]).wire_size == len(b"Host: h\r\nA: \r\n")


# Requests that are read ---------------------------------------------------------------------------------------------


def test_the_listen_handshake_of_node():
    """spec 21: the listen of hyco-ws; what stands behind the head is left alone."""
    reader = RequestReader()
    assert not reader.has_begun
    reader.receive_data(NODE_LISTEN[:10])
    assert reader.has_begun
    reader.receive_data(NODE_LISTEN[10:] + b"\x82\x80abcd")
    head = reader.next_event()
    assert (head.method, head.target, head.http_version) == ("GET", "/$hc/a2?sb-hc-action=listen", "1.1")
    assert head.headers.get("sec-websocket-key") == "MTMtMTc5NTMwMTA5OTMwOQ=="
    assert (head.host, head.is_upgrade, head.has_body) == ("localhost", True, False)
    assert reader.next_event() is None
    assert reader.trailing == b"\x82\x80abcd"
    reader.receive_data(b"ef")
    assert reader.next_event() is None
    assert reader.trailing == b"\x82\x80abcdef"


def test_header_named_0():
    """spec 18: Node listeners send a header whose name is 0; it is tolerated."""
    data = GET + HOST + b"0: Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    assert head_of(data).headers.get("0") == "Sec-WebSocket-Extensions: permessage-deflate"


def test_odd_names_and_values_keep_every_byte():
    """spec 10: a Java test uses every token character in a name, and every bracket in a value."""
    name = "!#$%&'*+-.^_`|~" + "AZaz09"
    value = "\"'(){}[]<>=/,:;@\\ \xe4\xff\t."
    data = GET + HOST + f"{name}: {value} \t\r\n\r\n".encode("latin-1")
    assert list(head_of(data).headers) == [("Host", "relay.example"), (name, value)]


@pytest.mark.parametrize("host", ["localhost", "localhost:443", "localhost:9443", "[::1]:8080", "10.0.0.1", "a_b.c-d"])
def test_host_with_or_without_a_port(host):
    """spec 4: Host with or without a port."""
    assert head_of(GET + f"Host: {host}\r\n\r\n".encode()).host == host


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "PATCH", "QUERY", "FOO", "M-SEARCH", "PRI"]
)
def test_any_method(method):
    """spec 9.1: any method is relayed, also one that llhttp does not know."""
    found = events_of(f"{method} /hyco HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert found[0].method == method
    assert found[1:] == [EndOfRequest()]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("/a?b", "h:1"),
        ("http://h:1/$hc/a", "h:1"),
        ("wss://H:1", "H:1"),
        ("https://h:1?x", "h:1"),
        ('/a"<>|{}^`\\[]', "h:1"),
    ],
)
def test_targets(target, host):
    """RFC 9112 3.2: origin form and absolute form; raw quotes and brackets are escaped later (spec 7.1)."""
    head = head_of(f"GET {target} HTTP/1.1\r\nHost: h:1\r\n\r\n".encode())
    assert (head.target, head.host) == (target, host)


def test_asterisk_form():
    """RFC 9112 3.2.4: only OPTIONS asks about the whole server."""
    assert head_of(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").target == "*"
    assert events_of(b"GET * HTTP/1.1\r\nHost: h\r\n\r\n") == [400]


@pytest.mark.parametrize(
    ("connection", "version", "keep_alive"),
    [("", "1.1", True), ("close", "1.1", False), ("x, Close", "1.1", False), ("keep-alive", "1.0", False)],
)
def test_keep_alive(connection, version, keep_alive):
    """spec 9.1: HTTP/1.1 keep-alive; HTTP/1.0 is answered and closed."""
    head = head_of(f"GET / HTTP/{version}\r\nHost: h\r\nConnection: {connection}\r\n\r\n".encode())
    assert head.keep_alive is keep_alive


def test_http_1_0_needs_no_host():
    """RFC 9112 3.2: Host is required of HTTP/1.1 only."""
    assert head_of(b"GET / HTTP/1.0\r\n\r\n").host is None
    assert head_of(b"GET http://h/ HTTP/1.0\r\n\r\n").host == "h"


@pytest.mark.parametrize(
    ("line", "is_upgrade"),
    [
        (b"Connection: upgrade\r\nUpgrade: WebSocket\r\n", True),
        (b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n", True),
        (b"Connection: keep-alive\r\nUpgrade: websocket\r\n", False),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", False),
        (b"Connection: Upgrade\r\n", False),
    ],
)
def test_upgrade_is_recognised(line, is_upgrade):
    """spec 4: an ordinary RFC 6455 handshake; an offer of h2c is none."""
    assert head_of(GET + HOST + line + b"\r\n").is_upgrade is is_upgrade
    assert not head_of(POST + line + b"\r\n").is_upgrade
    assert not head_of(b"GET / HTTP/1.0\r\n" + HOST + line + b"\r\n").is_upgrade


@pytest.mark.parametrize(
    ("fields", "version", "expects"),
    [
        (b"Expect: 100-continue\r\n", b"1.1", True),
        (b"eXPECT: 100-Continue\r\n", b"1.1", True),
        (b"Expect: x, 100-continue\r\n", b"1.1", True),
        (b"Expect: x\r\nExpect: 100-continue\r\n", b"1.1", True),
        (b"Expect: 100-continue\r\n", b"1.0", False),
        (b"Expect: 100-continued\r\n", b"1.1", False),
        (b"Expect:\r\n", b"1.1", False),
        (b"", b"1.1", False),
    ],
)
def test_expectations(fields, version, expects):
    """spec 9.1: Expect: 100-continue is the relay's to answer; HTTP/1.0 knows none (RFC 9110 10.1.1)."""
    head = head_of(b"PUT /hyco HTTP/" + version + b"\r\n" + HOST + fields + b"Content-Length: 3\r\n\r\n")
    assert head.expects_continue is expects


def test_body_beside_another_upgrade_is_read():
    """RFC 9110 7.8: an Upgrade that is not taken changes nothing; Java's client offers h2c with every request."""
    data = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
    assert events_of(data + GET + HOST + b"\r\n")[1:3] == [Body(b"abc"), EndOfRequest()]


def test_body_of_a_handshake_is_no_trailing_data():
    """RFC 6455 4.1: a handshake with a body does not switch protocols; whoever checks it will refuse it."""
    data = NODE_LISTEN.replace(b"Host:", b"Content-Length: 3\r\nHost:") + b"abc"
    head, *rest = events_of(data)
    assert head.is_upgrade
    assert head.has_body
    assert rest == [Body(b"abc"), EndOfRequest()]


# Bodies -------------------------------------------------------------------------------------------------------------


def test_sized_bodies_and_pipelined_requests():
    """spec 9.1: sized bodies; the next request begins right behind."""
    data = POST + b"Content-Length: 5\r\n\r\nhello" + POST + b"Content-Length: 0\r\n\r\n" + GET + HOST + b"\r\n"
    for cuts in ([data], byte_by_byte(data)):
        found = events_of(data, cuts=cuts)
        assert [type(event) for event in found] == [
            RequestHead, Body, EndOfRequest, RequestHead, EndOfRequest, RequestHead, EndOfRequest,
        ]  # fmt: skip
        assert found[0].content_length == 5
        assert found[1] == Body(b"hello")
        assert found[5].content_length is None


def test_an_empty_body_that_is_announced():
    """spec 9.1: an empty POST is a whole request."""
    for cuts in ([POST + b"Content-Length: 0\r\n\r\n"], byte_by_byte(POST + b"Content-Length: 0\r\n\r\n")):
        reader = RequestReader()
        head, end = events_of(b"", cuts=cuts, reader=reader)
        assert (head.content_length, head.has_body, end) == (0, False, EndOfRequest())
        assert not reader.has_begun


def test_http_1_0_with_a_body():
    """spec 9.1: HTTP/1.0 senders are served, one request for each connection."""
    head, body, end = events_of(b"POST /hyco HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi")
    assert (body, end) == (Body(b"hi"), EndOfRequest())
    assert not head.keep_alive


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("framed", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"0005\r\nhello\r\nA\r\n0123456789\r\n000\r\n\r\n", b"hello0123456789"),
        (b"1\r\na\r\n1\r\nb\r\na\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"ab" + b"\r\n" * 5),
        (b'2;a;b=c;d="e f"\r\nhi\r\n0;x\r\nTrailer: 1\r\nOther:\r\n\r\n', b"hi"),
    ],
)
def test_chunked_bodies(framed, body):
    """spec 9.1: chunked bodies; extensions and trailers are read and dropped."""
    for cuts in ([CHUNKED + framed + GET], byte_by_byte(CHUNKED + framed + GET)):
        reader = RequestReader()
        found = events_of(b"", cuts=cuts, reader=reader)
        assert found[0].is_chunked
        assert b"".join(event.data for event in found[1:-1]) == body
        assert found[-1] == EndOfRequest()
        assert reader.trailing == GET


@pytest.mark.parametrize(
    "framed",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1\n",
        b"1\r1",
        b"1;\r\n",
        b"1;a=\r\n",
        b'1;a="\r\n',
        b"1; a\r\n",
        b"1;a=b\x00\r\n",
        b"1,2\r\n",
        b"ffffffffffffffff\r\n",
        b"10000000000000001\r\n",
        b"1;" + b"a" * 2_000,
        b"2\r\nabc",
        b"2\r\nab\n",
        b"2\r\nab\rc",
        b"0\r\nno colon\r\n",
        b"0\r\n: x\r\n",
        b"0\r\na : x\r\n",
        b"0\r\na: x\n",
        b"0\r\na: \x00\r\n",
        b"0\r\na: x\r\n b\r\n\r\n",
        b"0\r\n" + b"a: x\r\n" * 2_000,
        b"0\r\n" + b"a" * 10_000,
    ],
)
def test_bad_chunking(framed):
    """RFC 9112 7.1: chunk framing that two parsers could read differently ends the connection."""
    for cuts in ([CHUNKED + framed], byte_by_byte(CHUNKED + framed)):
        assert events_of(b"", cuts=cuts)[-1] == 400


def test_bytes_in_front_of_bad_chunking_come_first():
    """RFC 9112 2.2: the place of a fault in the stream decides, not the cuts of the network."""
    reader = RequestReader()
    reader.receive_data(CHUNKED + b"2\r\nab\r\n1\r\nc\r\nx\r\n")
    assert isinstance(reader.next_event(), RequestHead)
    assert reader.next_event() == Body(b"abc")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            reader.next_event()


def test_chunks_of_single_bytes_come_joined():
    """spec 20.1: 66 000 single-byte writes that came together are few pieces; each of them costs little time."""
    reader = RequestReader()
    reader.receive_data(CHUNKED + b"1\r\nx\r\n" * 66_000 + LAST_CHUNK)
    start = time.process_time()
    assert isinstance(reader.next_event(), RequestHead)
    pieces = []
    while not isinstance(event := reader.next_event(), EndOfRequest):
        assert isinstance(event, Body)
        pieces.append(event.data)
    assert b"".join(pieces) == b"x" * 66_000
    assert all(len(piece) == 512 for piece in pieces[:-1])
    assert time.process_time() - start < 3


def test_huge_chunk_sizes_are_counted_not_stored():
    """failures: attacker-set lengths overflow nothing."""
    found = events_of(CHUNKED + b"fffffffffffffff\r\nabc")
    assert found[1:] == [Body(b"abc")]
    assert events_of(POST + b"Content-Length: 999999999999999999\r\n\r\nabc")[1:] == [Body(b"abc")]


# Requests that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n" + GET + HOST + b"\r\n", 400),
        (b"GET /hyco\r\n\r\n", 400),
        (b"GET  /hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hyco  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hyco HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
        (b" GET /hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET\t/hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET //relay.example:x@y HTTP/1.1\r\n" + HOST.replace(b":", b" :") + b"\r\n", 400),
        (b"GET ftp://relay.example/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http:///a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://u@relay.example/a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://other.example/a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://relay.example:80/a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"G@T /hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"get/hyco HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hyco http/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hyco HTTP/11\r\n" + HOST + b"\r\n", 400),
        (b"GET /hyco HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET /hyco HTTP/0.9\r\n" + HOST + b"\r\n", 505),
        (b"GET /hyco HTTP/1.2\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"CONNECT relay.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET /hyco HTTP/1.1\n", 400),
        (GET + b"Host: h\n", 400),
        (GET + b"Host: h\rX", 400),
        (GET + b"Host: h\r\r\n", 400),
        (GET + b"Host: h\r\n x\r\n\r\n", 400),
        (GET + b"Host: h\r\n\tx\r\n\r\n", 400),
        (GET + b" Host: h\r\n\r\n", 400),
        (GET + b"Host: h\r\nX: a\0b", 400),
        (GET + b"Host: h\r\nX: a\x0bb", 400),
        (GET + b"Host: h\r\nX: a\x7fb", 400),
        (GET + b"Host: h\r\nX : a\r\n\r\n", 400),
        (GET + b"Host: h\r\nX\t: a\r\n\r\n", 400),
        (GET + b"Host: h\r\n: a\r\n\r\n", 400),
        (GET + b"Host: h\r\nX\r\n\r\n", 400),
        (GET + b"Host: h\r\nX(): a\r\n\r\n", 400),
        (GET + b"Host: h\r\nX\xe4: a\r\n\r\n", 400),
        (GET + b"\r\n", 400),
        (GET + b"Host: h\r\nHost: h\r\n\r\n", 400),
        (GET + b"Host: h\r\nhost: other\r\n\r\n", 400),
        (GET + b"Host:\r\n\r\n", 400),
        (GET + b"Host: a b\r\n\r\n", 400),
        (GET + b"Host: a/b\r\n\r\n", 400),
        (GET + b"Host: u@h\r\n\r\n", 400),
        (GET + b"Host: h:\r\n\r\n", 400),
        (GET + b"Host: h:port\r\n\r\n", 400),
        (GET + b"Host: h, i\r\n\r\n", 400),
        (GET + b"Host: h\xe4\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", 400),
        (POST + b"Content-Length: 1, 1\r\n\r\na", 400),
        (POST + b"Content-Length: +1\r\n\r\na", 400),
        (POST + b"Content-Length: -1\r\n\r\na", 400),
        (POST + b"Content-Length: 0x1\r\n\r\na", 400),
        (POST + b"Content-Length: 1.0\r\n\r\na", 400),
        (POST + b"Content-Length: 1 1\r\n\r\na", 400),
        (POST + b"Content-Length:\r\n\r\na", 400),
        (POST + b"Content-Length: " + b"9" * 19 + b"\r\n\r\na", 400),
        (POST + b"Content-Length: \xb2\r\n\r\na", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (POST + b'Transfer-Encoding: "chunked"\r\n\r\n', 501),
        (POST + b"Transfer-Encoding:\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
def test_what_is_refused(data, status):
    """failures: request-head corpus; what two parsers may read differently is refused, whole and byte by byte."""
    found = events_of(data)
    assert len(found) == 1
    assert found[0] in (status, 400)  # llhttp knows some transfer codings as wrong by itself
    assert events_of(data, cuts=byte_by_byte(data)) == found


@pytest.mark.parametrize(
    "data", [b"GET /hyco HTTP/1.1\n", b"\x16\x03\x01", GET + b"Host: h\r\nX: \0", b"GET / HTTP/1.1\r\n A"]
)
def test_hopeless_heads_are_refused_before_they_end(data):
    """failures: a peer that speaks something else is told at once, not when the head times out."""
    assert events_of(data) == [400]


def test_after_a_refusal_nothing_more_is_read():
    """RFC 9112 2.2: the connection is of no further use."""
    reader = RequestReader()
    assert events_of(b"\0", reader=reader) == [400]
    reader.receive_data(NODE_LISTEN)
    with pytest.raises(RemoteProtocolError):
        reader.next_event()


def test_errors_do_not_repeat_credentials():
    """spec 5: neither values nor targets stand in a message."""
    reader = RequestReader()
    reader.receive_data(GET + HOST + b"ServiceBusAuthorization: s3cret\x01\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_event()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(head_of(b"GET /?sb-hc-token=s3cret HTTP/1.1\r\nHost: h\r\nX: s3cret\r\n\r\n"))


# Limits -------------------------------------------------------------------------------------------------------------

LIMITS = {"max_head_bytes": 200, "max_headers": 5, "max_line_bytes": 60}


def request_of(line_bytes=20, fields=1, head_bytes=None):
    """A good request with a request line, a number of fields and a head of these very sizes."""
    line = b"GET /" + b"a" * (line_bytes - 14) + b" HTTP/1.1"
    lines = [b"Host: h", *(b"X%d: " % number for number in range(1, fields))]
    data = b"\r\n".join([line, *lines, b"", b""])
    if head_bytes is not None:
        data = data[:-4] + b"y" * (head_bytes - len(data)) + data[-4:]
        assert len(data) == head_bytes
    assert len(line) == line_bytes
    return data


@pytest.mark.parametrize(
    ("exact", "beyond", "status"),
    [
        (request_of(line_bytes=60), request_of(line_bytes=61), 414),
        (request_of(fields=5), request_of(fields=6), 431),
        (request_of(fields=2, head_bytes=200), request_of(fields=2, head_bytes=201), 431),
    ],
)
def test_limits_are_exact(exact, beyond, status):
    """failures: head limits for line, count and total, to the byte, however the head arrives."""
    assert isinstance(events_of(exact, **LIMITS)[0], RequestHead)
    assert isinstance(events_of(b"", cuts=byte_by_byte(exact), **LIMITS)[0], RequestHead)
    assert events_of(beyond, **LIMITS) == [status]
    assert events_of(b"", cuts=byte_by_byte(beyond), **LIMITS) == [status]


@pytest.mark.parametrize(
    ("endless", "status", "within"),
    [
        (b"GET /" + b"a" * 1_000, 414, 63),
        (GET + b"A:\r\n" * 1_000, 431, 200),
        (GET + b"A: " + b"a" * 1_000, 431, 200),
        (b"\r\n" * 1_000, 400, 4),
    ],
)
def test_endless_heads_are_refused_while_they_arrive(endless, status, within):
    """failures: too many header lines, an endless line or an endless head are not waited out."""
    assert events_of(b"", cuts=byte_by_byte(endless[:within]), **LIMITS) == [status]


def test_the_earliest_fault_wins():
    """RFC 9112 2.2: with several faults the answer does not depend on how the bytes were cut."""
    for data, status in [
        (b"GET /" + b"a" * 100 + b"\0", 414),
        (b"GET /\0" + b"a" * 100, 400),
        (GET + b"A:\r\n" * 6 + b"\0", 431),
        (GET + b"A:\r\n" * 5 + b"\0" + b"A:\r\n", 400),
        (GET + b"A: " + b"a" * 500 + b"\n", 431),
    ]:
        assert events_of(data, **LIMITS) == [status]
        assert events_of(b"", cuts=byte_by_byte(data), **LIMITS) == [status]


def test_header_fields_in_all():
    """spec 15: request headers have 32 kB in total, to the byte, whatever the length of the target."""
    fields = HOST + b"X: " + b"a" * (32_768 - len(HOST) - 5) + b"\r\n"
    line = b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n"
    assert head_of(line + fields + b"\r\n").headers.wire_size == 32_768
    assert events_of(line + b"Y" + fields + b"\r\n") == [431]


def test_default_limits():
    """spec 15: 32 kB of request headers must fit; 16 kB of request line and 200 fields do too."""
    big = (
        b"GET /"
        + b"a" * 16_000
        + b" HTTP/1.1\r\n"
        + HOST
        + b"".join(b"X%d: %s\r\n" % (n, b"v" * 150) for n in range(199))
    )
    assert len(head_of(big + b"\r\n").headers) == 200
    assert events_of(big + b"One: more\r\n\r\n") == [431]
    assert events_of(GET + b"X: " + b"a" * 70_000) == [431]


def test_a_head_byte_by_byte_costs_no_time():
    """failures: slow heads; each byte is looked at once."""
    data = GET + HOST + b"X: y\r\n" * 100 + b"Z: " + b"z" * 60_000
    reader = RequestReader()
    start = time.process_time()
    for place in range(len(data)):
        reader.receive_data(data[place : place + 1])
        assert reader.next_event() is None
    assert time.process_time() - start < 5


# Properties ---------------------------------------------------------------------------------------------------------

FRAGMENTS = [
    b"GET ", b"POST ", b"/hyco", b"/$hc/a", b"*", b"http://h/", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n",
    b": ", b":", b" ", b"\t", b"\r", b"\n", b"\0", b"\xe4", b"a", b"#", b'"', b"Host: h", b"Host: i",
]  # fmt: skip
FIELDS = [
    b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: ", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip", b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"X: y", b"0: x",
]  # fmt: skip
BODIES = [b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"1;a=b\r\nx\r\n"]
FRAGMENTS += FIELDS + BODIES


def disturbed(draw, pieces: list[bytes]) -> bytes:
    """The pieces in one, with a few fragments put in, put in place of one, or doubled."""
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(pieces) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                pieces.insert(place, draw(st.sampled_from(FRAGMENTS) | st.binary(min_size=1, max_size=2)))
            case 1:
                pieces[place] = draw(st.sampled_from(FRAGMENTS))
            case 2:
                pieces.insert(place, pieces[draw(st.integers(0, len(pieces) - 1))])
    return b"".join(pieces)


@st.composite
def nearly_requests(draw):
    """A request, most of it right, with a few fragments put in, taken out or doubled."""
    version = draw(st.sampled_from([b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0"]))
    pieces = [
        draw(st.sampled_from([b"GET ", b"POST ", b"FOO "])),
        draw(st.sampled_from([b"/hyco", b"/a?b", b"http://h/"])),
    ]
    pieces += [version, b"\r\n", b"Host: h", b"\r\n"]
    for line in draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)):
        pieces += [line, b"\r\n"]
    pieces += [
        b"\r\n",
        *draw(st.lists(st.sampled_from(BODIES), max_size=3)),
    ]
    return disturbed(draw, pieces)


any_bytes = nearly_requests() | st.lists(st.sampled_from(FRAGMENTS), max_size=20).map(b"".join) | st.binary(max_size=80)


@given(data=any_bytes, draw=st.data())
def test_cuts_change_nothing(data, draw):
    """RFC 9112 2.2: any bytes at any cuts give the same events, and nothing but RemoteProtocolError is raised."""
    expected = events_of(data, **LIMITS)
    assert events_of(b"", cuts=draw.draw(strategies.cuts(data)), **LIMITS) == expected
    assert events_of(b"", cuts=byte_by_byte(data), **LIMITS) == expected


def first_request(found):
    """Method, target, fields and body of a complete first request; None if it is refused or not complete."""
    if EndOfRequest() not in found:
        return None
    head, *rest = found[: found.index(EndOfRequest())]
    fields = [(name.encode().lower(), value.encode("latin-1")) for name, value in head.headers]
    return head.method.encode(), head.target.encode(), fields, b"".join(event.data for event in rest)


def first_request_of_h11(data):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(data)
    head, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return "refused"
        match event:
            case h11.Request():
                head = event
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                return bytes(head.method), bytes(head.target), [(bytes(n), bytes(v)) for n, v in head.headers], body
            case _:
                return None


@given(nearly_requests())
@example(POST + b"Content-Length: 3\r\n\r\nabc")
@example(CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n")
def test_whatever_we_accept_h11_understands_alike(data):
    """failures: request smuggling; an independent parser must not read another request from the same bytes."""
    found = events_of(data)
    assume(found)
    theirs = first_request_of_h11(data)
    ours = first_request(found)
    if ours is not None:
        assert ours == theirs
    elif isinstance(found[0], RequestHead):
        # The head was good; its body is not complete, was refused, or it is an upgrade.
        assert theirs in (None, "refused") or found[-1] in (400, 501) or found[0].is_upgrade


class LlhttpRequest:
    def __init__(self, data):
        self.target, self.fields, self.body, self.is_complete = b"", [], b"", False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
            self.is_refused = False
        except httptools.HttpParserUpgrade:
            self.is_refused = False
        except httptools.HttpParserError:
            self.is_refused = not self.is_complete

    def on_url(self, url):
        self.target += b"" if self.is_complete else url

    def on_header(self, name, value):
        if not self.is_complete:
            self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body):
        self.body += b"" if self.is_complete else body

    def on_message_complete(self):
        self.is_complete = True


@given(nearly_requests())
def test_whatever_we_accept_llhttp_understands_alike(data):
    """failures: request smuggling; llhttp left to itself agrees on every request of a method that it knows."""
    ours = first_request(events_of(data))
    assume(ours is not None)
    method, target, fields, body = ours
    assume(method in (b"GET", b"POST") and b"upgrade" not in dict(fields))
    theirs = LlhttpRequest(data)
    assert theirs.is_complete
    trailers = theirs.fields[len(fields) :]
    assert (theirs.target, theirs.fields[: len(fields)], theirs.body) == (target, fields, body)
    assert not trailers or b"transfer-encoding" in dict(fields)


@st.composite
def chunked(draw, body):
    """``body`` in chunks of any sizes, with extensions and trailer fields here and there."""
    extension = st.sampled_from([b"", b"", b";a", b';a=b;c="d e"'])
    framed = b"".join(
        (b"%x" if draw(st.booleans()) else b"00%X") % len(piece) + draw(extension) + b"\r\n" + piece + b"\r\n"
        for piece in draw(strategies.cuts(body))
    )
    return framed + b"0" + draw(extension) + b"\r\n" + draw(st.sampled_from([b"", b"X-Sum: 1\r\nOther:\r\n"])) + b"\r\n"


@st.composite
def framed_bodies(draw):
    """A body, and the field and the bytes that carry it."""
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        return body, b"Transfer-Encoding: chunked\r\n", draw(chunked(body))
    if not body and draw(st.booleans()):
        return body, b"", b""
    return body, b"Content-Length: %d\r\n" % len(body), body


@given(
    requests=st.lists(st.tuples(st.sampled_from([b"GET", b"POST", b"HEAD", b"X"]), framed_bodies()), max_size=4),
    draw=st.data(),
)
def test_pipelined_requests_are_read_one_by_one(requests, draw):
    """spec 9.1: keep-alive; each request is read to its end, and the next begins right there, whatever the cuts."""
    data = b"".join(
        b"%s /%d HTTP/1.1\r\n%s%s\r\n%s" % (method, number, HOST, field, framed)
        for number, (method, (_, field, framed)) in enumerate(requests)
    )
    reader = RequestReader()
    found = events_of(b"", cuts=draw.draw(strategies.cuts(data)), reader=reader)
    read = []
    for event in found:
        match event:
            case RequestHead():
                read.append((event.method.encode(), event.target, b""))
            case Body():
                method, target, body = read.pop()
                read.append((method, target, body + event.data))
    assert read == [(method, f"/{number}", body) for number, (method, (body, _, _)) in enumerate(requests)]
    assert found.count(EndOfRequest()) == len(requests)
    assert not reader.has_begun


@given(method=st.sampled_from(["GET", "POST", "X-ANY"]), target=strategies.targets, fields=strategies.header_lists)
def test_build_request_then_read(method, target, fields):
    """RFC 9112 3: what we build we read back, in order and spelling."""
    special = {"host", "content-length", "transfer-encoding", "connection", "upgrade"}
    fields = [("Host", "h"), *((name, value) for name, value in fields if name.lower() not in special)]
    head, end = events_of(build_request(method, target, fields))
    assert (head.method, head.target, list(head.headers)) == (method, target, fields)
    assert end == EndOfRequest()


# Responses ----------------------------------------------------------------------------------------------------------


def response_of(data, *, cuts=None, **limits):
    reader = ResponseReader(**limits)
    for piece in [data] if cuts is None else cuts:
        reader.receive_data(piece)
        head = reader.next_event()
        if head is not None:
            break
    return head, reader


def test_response_with_trailing_frames():
    """spec 4: bytes behind a 101 belong to the WebSocket."""
    head, reader = response_of(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi"
    )
    assert (head.status, head.reason, head.http_version) == (101, "Switching Protocols", "1.1")
    assert head.headers.get("upgrade") == "websocket"
    assert reader.trailing == b"\x81\x02hi"
    assert reader.next_event() is None


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (
            b"HTTP/1.1 404 Endpoint does not exist: a. TrackingId:b_G0",
            404,
            "Endpoint does not exist: a. TrackingId:b_G0",
        ),
        (b"HTTP/1.0 500", 500, ""),
        (b"HTTP/1.1 500 ", 500, ""),
        (b"HTTP/1.1 418  two  blanks ", 418, " two  blanks "),
        (b"HTTP/1.1 999 \"'(){}[]<>=/,:;@\\\t\xe4", 999, "\"'(){}[]<>=/,:;@\\\t\xe4"),
    ],
)
def test_reason_phrases_are_verbatim(line, status, reason):
    """spec 7.3: exactly the description, nothing added or trimmed."""
    head, _ = response_of(line + b"\r\nContent-Length: 0\r\n\r\n")
    assert (head.status, head.reason) == (status, reason)


def test_interim_answers_are_passed_over():
    """RFC 9110 15.2: a client takes any number of interim answers; a server that sends nothing else is cut off."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    head, _ = response_of(interim + b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 200 OK\r\n\r\n")
    assert head.status == 200
    with pytest.raises(RemoteProtocolError):
        response_of(interim * 9)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 1000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 \0\r\n\r\n",
        b"HTTP/1.1 200 OK\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 201,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
        b"SSH-2.0-OpenSSH\r\n",
        b"\r\n\r\n",
    ],
)
def test_bad_responses(data):
    """RFC 9112 4: an answer that is no HTTP, or is without end, is the server's fault."""
    if data.startswith(b"SSH"):
        data += b"\r\n"
    for cuts in ([data], byte_by_byte(data)):
        with pytest.raises(RemoteProtocolError):
            response_of(b"", cuts=cuts)


def test_after_a_bad_response_nothing_more_is_read():
    """RFC 9112 2.2: the connection is of no further use."""
    reader = ResponseReader()
    reader.receive_data(b"\0")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            reader.next_event()


@given(status=st.integers(200, 999), reason=strategies.header_values, fields=strategies.header_lists, draw=st.data())
def test_build_response_then_read(status, reason, fields, draw):
    """RFC 9112 4: what we build we read back, whatever the cuts."""
    fields = [(name, value) for name, value in fields if name.lower() not in ("content-length", "transfer-encoding")]
    data = build_response(status, reason, fields, b"body")
    for cuts in ([data], draw.draw(strategies.cuts(data))):
        head, _ = response_of(b"", cuts=cuts)
        assert head == ResponseHead(status, reason, "1.1", Headers(fields))


@given(data=st.lists(st.sampled_from([*FRAGMENTS, b"HTTP/1.1 200 OK", b"HTTP/1.1 101 x"]), max_size=12).map(b"".join))
def test_any_bytes_are_a_response_or_refused(data):
    """RFC 9112 4: any bytes at any cuts raise only RemoteProtocolError, and mean the same."""
    outcomes = []
    for cuts in ([data], byte_by_byte(data)):
        try:
            outcomes.append(response_of(b"", cuts=cuts)[0] if data else None)
        except RemoteProtocolError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]


# Whole answers ------------------------------------------------------------------------------------------------------


def answer_of(data, method="GET", *, cuts=None, reader=None, ends=True):
    """All events of an answer, the pieces of its body put together, and whether it was refused in the end."""
    reader = ResponseReader(request_method=method) if reader is None else reader
    found = []
    for piece in [*([data] if cuts is None else cuts), None]:
        if piece is not None:
            reader.receive_data(piece)
        elif ends:
            reader.receive_eof()
        while True:
            try:
                event = reader.next_event()
            except RemoteProtocolError:
                return [*found, "refused"]
            if event is None:
                break
            if isinstance(event, Body) and found and isinstance(found[-1], Body):
                event = Body(found.pop().data + event.data)
            found.append(event)
    return found


OK = b"HTTP/1.1 200 OK\r\n"
SIZED = b"Content-Length: 3\r\n"
IN_CHUNKS = b"Transfer-Encoding: chunked\r\n"
NEXT = b"HTTP/1.1 500 next\r\n"


@pytest.mark.parametrize(
    ("method", "head", "behind", "body", "left"),
    [
        # 1: no body, whatever the fields say
        ("HEAD", OK + SIZED, b"", None, b""),
        ("HEAD", OK + IN_CHUNKS, b"", None, b""),
        ("HEAD", OK, NEXT, None, NEXT),
        ("GET", b"HTTP/1.1 204 x\r\n", NEXT, None, NEXT),
        ("GET", b"HTTP/1.1 204 x\r\n" + SIZED, b"", None, b""),
        ("POST", b"HTTP/1.1 304 x\r\n" + SIZED, NEXT, None, NEXT),
        ("GET", b"HTTP/1.1 304 x\r\n" + IN_CHUNKS, b"", None, b""),
        # 4: chunked
        ("GET", OK + IN_CHUNKS, b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n" + NEXT, b"abc", NEXT),
        ("GET", OK + b"Transfer-Encoding: Chunked\r\n", LAST_CHUNK, None, b""),
        ("POST", b"HTTP/1.1 502 x\r\n" + IN_CHUNKS, b"1\r\na\r\n1\r\nb\r\n" + LAST_CHUNK, b"ab", b""),
        # 6: sized
        ("GET", OK + SIZED, b"abc" + NEXT, b"abc", NEXT),
        ("GET", OK + b"Content-Length: 0\r\n", NEXT, None, NEXT),
        ("PUT", b"HTTP/1.0 205 x\r\n" + SIZED, b"abc", b"abc", b""),
        # 8: until the connection ends
        ("GET", OK, b"abc" + NEXT, b"abc" + NEXT, b""),
        ("GET", OK, b"", None, b""),
        ("GET", b"HTTP/1.0 404 x\r\nConnection: keep-alive\r\n", b"abc", b"abc", b""),
    ],
)
def test_where_an_answer_ends(method, head, behind, body, left):
    """RFC 9112 6.3: the length of an answer's body, rule by rule."""
    data = head + b"\r\n" + behind
    for cuts in ([data], byte_by_byte(data)):
        reader = ResponseReader(request_method=method)
        found = answer_of(b"", cuts=cuts, reader=reader)
        assert isinstance(found[0], ResponseHead)
        assert found[1:] == ([] if body is None else [Body(body)]) + [EndOfResponse()]
        assert reader.trailing == left
        assert reader.next_event() is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK + SIZED + b"\r\n",
        OK + SIZED + b"\r\nab",
        OK + IN_CHUNKS + b"\r\n",
        OK + IN_CHUNKS + b"\r\n2\r\na",
        OK + IN_CHUNKS + b"\r\n2\r\nab\r\n",
        OK + IN_CHUNKS + b"\r\n0\r\n",
        OK + IN_CHUNKS + b"\r\n0\r\nX: y\r\n",
    ],
)
def test_an_answer_cut_short_is_no_answer(data):
    """RFC 9112 8: an answer whose announced end has not come is incomplete."""
    reader = ResponseReader(request_method="GET")
    found = answer_of(data, reader=reader)
    assert found[-1] == "refused"
    assert EndOfResponse() not in found
    assert not reader.is_reusable


@pytest.mark.parametrize(
    "fields",
    [
        SIZED + SIZED,
        SIZED + b"Content-Length: 4\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content-Length: -3\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 0x3\r\n",
        b"Content-Length: 3 3\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: " + b"9" * 30 + b"\r\n",
        SIZED + IN_CHUNKS,
        IN_CHUNKS + SIZED,
        IN_CHUNKS + IN_CHUNKS,
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: 3\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_answers_whose_end_is_disputed(fields, method):
    """failures: response smuggling; what two readers may read differently is refused, as in requests."""
    data = OK + fields + b"\r\n3\r\nabc\r\n0\r\n\r\n"
    for cuts in ([data], byte_by_byte(data)):
        assert answer_of(b"", method, cuts=cuts)[0] == "refused"


def test_http_1_0_has_no_chunks():
    """RFC 9112 6.1: a Transfer-Encoding in HTTP/1.0 is a sign of a broken message."""
    assert answer_of(b"HTTP/1.0 200 OK\r\n" + IN_CHUNKS + b"\r\n0\r\n\r\n") == ["refused"]


@pytest.mark.parametrize("framed", [b"g\r\n", b"1\r\nab", b"1 \r\na\r\n", b"0\r\nx\r\n"])
def test_bad_chunking_of_an_answer(framed):
    """RFC 9112 7.1: chunk framing is read as in requests."""
    found = answer_of(OK + IN_CHUNKS + b"\r\n2\r\nhi\r\n" + framed)
    assert found[1].data.startswith(b"hi")
    assert found[-1] == "refused"


@pytest.mark.parametrize(
    ("method", "data", "is_reusable"),
    [
        ("GET", OK + SIZED + b"\r\nabc", True),
        ("GET", OK + IN_CHUNKS + b"\r\n0\r\n\r\n", True),
        ("HEAD", OK + b"\r\n", True),
        ("GET", b"HTTP/1.1 204 x\r\n\r\n", True),
        ("GET", b"HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", True),
        ("GET", b"HTTP/1.1 304 x\r\n" + SIZED + b"\r\n", True),
        ("GET", OK + SIZED + b"Connection: keep-alive\r\n\r\nabc", True),
        ("GET", OK + SIZED + b"Connection: keep-alive, Close\r\n\r\nabc", False),
        ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + SIZED + b"\r\nabc", False),
        ("GET", OK + SIZED + b"\r\nabc" + NEXT, False),
        ("GET", b"HTTP/1.1 204 x\r\n" + SIZED + b"\r\n", False),
        ("GET", b"HTTP/1.1 204 x\r\n" + IN_CHUNKS + b"\r\n", False),
        ("GET", OK + b"\r\nabc", False),
        ("GET", OK + SIZED + b"\r\nab", False),
        ("GET", b"HTTP/1.1 101 x\r\n\r\n", False),
    ],
)
def test_when_a_connection_may_carry_another_request(method, data, is_reusable):
    """RFC 9112 9.3: only behind an answer that told where it ends, and to a server that keeps the connection."""
    reader = ResponseReader(request_method=method)
    answer_of(data, reader=reader, ends=False)
    assert reader.is_reusable is is_reusable
    reader.receive_eof()
    assert not reader.is_reusable


def test_an_answer_is_not_over_before_its_end_was_told():
    reader = ResponseReader(request_method="GET")
    reader.receive_data(OK + SIZED + b"\r\nabc")
    for event in (ResponseHead(200, "OK", "1.1", Headers([("Content-Length", "3")])), Body(b"abc")):
        assert reader.next_event() == event
        assert not reader.is_reusable
    assert reader.next_event() == EndOfResponse()
    assert reader.is_reusable
    assert ResponseReader().is_reusable is False


def test_a_switch_of_protocols_has_no_end():
    """RFC 9110 15.2.2: behind a 101 it is another protocol."""
    reader = ResponseReader(request_method="GET")
    data = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    head, *rest = answer_of(data + b"\x81\x02hi", reader=reader, ends=False)
    assert (head.status, rest, reader.trailing) == (101, [], b"\x81\x02hi")
    reader.receive_eof()
    assert reader.next_event() is None


def test_interim_answers_before_a_whole_one():
    """RFC 9110 15.2: interim answers have no body and are not the answer."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    for cuts in ([interim + OK + SIZED + b"\r\nabc"], byte_by_byte(interim + OK + SIZED + b"\r\nabc")):
        head, *rest = answer_of(b"", "POST", cuts=cuts)
        assert (head.status, rest) == (200, [Body(b"abc"), EndOfResponse()])
    assert answer_of(interim * 5) == ["refused"]


def test_a_body_without_an_end_is_not_kept():
    """failures: memory; a stream of any length passes, and only what was not fetched is held."""
    reader = ResponseReader(request_method="GET")
    reader.receive_data(OK + b"\r\n")
    assert isinstance(reader.next_event(), ResponseHead)
    for _ in range(100):
        reader.receive_data(bytes(65_536))
        assert reader.next_event() == Body(bytes(65_536))
        assert reader.trailing == b""
        assert reader.next_event() is None


@st.composite
def nearly_answers(draw):
    """An answer, most of it right, with a few fragments put in, taken out or doubled."""
    status = draw(
        st.sampled_from([b"200 OK", b"204 No Content", b"304 ", b"500", b"100 Continue\r\n\r\nHTTP/1.1 201 x"])
    )
    pieces = [draw(st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.1 ", b"HTTP/1.0 "])), status, b"\r\n"]
    for line in draw(st.lists(st.sampled_from([*FIELDS, b"Connection: close"]), max_size=2, unique=True)):
        pieces += [line, b"\r\n"]
    pieces += [b"\r\n", *draw(st.lists(st.sampled_from(BODIES), max_size=3))]
    return disturbed(draw, pieces)


methods = st.sampled_from(["GET", "HEAD", "POST"])


@given(data=nearly_answers() | st.binary(max_size=40), method=methods, ends=st.booleans(), draw=st.data())
def test_cuts_change_no_answer(data, method, ends, draw):
    """RFC 9112 2.2: any bytes at any cuts give the same events, and nothing but RemoteProtocolError is raised."""
    expected = answer_of(data, method, ends=ends)
    assert answer_of(b"", method, cuts=draw.draw(strategies.cuts(data)), ends=ends) == expected
    assert answer_of(b"", method, cuts=byte_by_byte(data), ends=ends) == expected


def answer_of_h11(data, method, *, ends):
    """Status, reason, fields and body of a complete answer as h11 reads it, and whether the connection is of use."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=100_000)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    head, body = None, b""
    while True:
        try:
            event = connection.next_event()
            if event is h11.NEED_DATA and ends:
                ends = False
                connection.receive_data(b"")
                event = connection.next_event()
        except h11.RemoteProtocolError:
            return "refused", False
        match event:
            case h11.Response():
                head = event
            case h11.InformationalResponse():
                pass
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                fields = [(bytes(n), bytes(v)) for n, v in head.headers]
                is_reusable = connection.their_state is h11.DONE and connection.trailing_data == (b"", False)
                return (head.status_code, bytes(head.reason), fields, body), is_reusable
            case _:
                return None, False


@given(data=nearly_answers(), method=methods, ends=st.booleans())
@example(OK + SIZED + b"\r\nabc", "GET", False)
@example(OK + IN_CHUNKS + b"\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n", "GET", False)
@example(OK + b"\r\nabc", "GET", True)
@example(OK + SIZED + b"\r\n", "HEAD", False)
def test_whatever_answer_we_accept_h11_understands_alike(data, method, ends):
    """failures: response smuggling; an independent parser must not read another answer from the same bytes."""
    reader = ResponseReader(request_method=method)
    found = answer_of(data, method, reader=reader, ends=ends)
    assume(found and isinstance(found[0], ResponseHead))
    theirs, is_reusable = answer_of_h11(data, method, ends=ends)
    if found[-1] != EndOfResponse():
        assert theirs in (None, "refused") or found[-1] == "refused"
        return
    head = found[0]
    fields = [(name.encode().lower(), value.encode("latin-1")) for name, value in head.headers]
    body = b"".join(event.data for event in found if isinstance(event, Body))
    assert (head.status, head.reason.encode("latin-1"), fields, body) == theirs
    assert is_reusable or not reader.is_reusable


@given(body_of=framed_bodies(), reason=strategies.header_values, fields=strategies.header_lists, draw=st.data())
def test_build_response_then_read_it_whole(body_of, reason, fields, draw):
    """RFC 9112 6.3: what we answer we read back, body and end, whatever the cuts."""
    body, field, framed = body_of
    special = {"content-length", "transfer-encoding", "connection"}
    fields = [(name, value) for name, value in fields if name.lower() not in special]
    if field:
        name, _, value = field.decode().strip().partition(": ")
        fields.append((name, value))
    data = build_response(200, reason, fields, framed)
    reader = ResponseReader(request_method="GET")
    found = answer_of(b"", cuts=draw.draw(strategies.cuts(data)), reader=reader, ends=not field)
    assert found == [
        ResponseHead(200, reason, "1.1", Headers(fields)),
        *([Body(body)] if body else []),
        EndOfResponse(),
    ]
    assert reader.is_reusable is bool(field)


# Builders -----------------------------------------------------------------------------------------------------------


def test_chunks_then_read():
    """RFC 9112 7.1: the size in hexadecimal, no leading zeros, no extensions; only the last chunk is empty."""
    body = encode_chunk(b"a" * 26) + encode_chunk(memoryview(b"b")) + LAST_CHUNK
    assert body == b"1a\r\n" + b"a" * 26 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    assert events_of(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)[1:] == [
        Body(b"a" * 26 + b"b"),
        EndOfRequest(),
    ]
    with pytest.raises(LocalProtocolError):
        encode_chunk(b"")


def test_build_response_is_one_object():
    """spec 4: errors before the upgrade are ordinary answers, head and body in one piece."""
    data = build_response(404, "Not\r\n Here", [("Content-Length", "2")], b"no")
    assert data == b"HTTP/1.1 404 Not Here\r\nContent-Length: 2\r\n\r\nno"
    assert build_response(410, "", []) == b"HTTP/1.1 410 \r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        [("", "v")],
        [("a b", "v")],
        [("a:", "v")],
        [("a", "v\r\nb: c")],
        [("a", "\0")],
        [("a", "\u20ac")],
        [("a\n", "v")],
    ],
)
def test_nothing_is_built_that_could_not_be_read(fields):
    """spec 10: no CR, LF or NUL in names or values."""
    with pytest.raises(LocalProtocolError):
        build_response(200, "OK", fields)
    with pytest.raises(LocalProtocolError):
        build_request("GET", "/", fields)


@pytest.mark.parametrize("status", [0, 99, 1_000])
def test_status_out_of_range(status):
    """RFC 9112 4: a status has three digits."""
    with pytest.raises(LocalProtocolError):
        build_response(status, "", [])


@pytest.mark.parametrize(
    ("method", "target"), [("", "/"), ("G T", "/"), ("GET", ""), ("GET", "/ "), ("GET", "/\n"), ("GET", "/#")]
)
def test_request_line_out_of_shape(method, target):
    """RFC 9112 3: method and target are visible ASCII."""
    with pytest.raises(LocalProtocolError):
        build_request(method, target, [])


@given(st.text(max_size=8))
def test_tokens_and_values(text):
    """RFC 9110 5.6.2: names are tokens, values are Latin-1 without controls."""
    assert http1.is_token(text) is (text != "" and set(text) <= set(strategies.TOKEN_CHARS))
    assert http1.is_value(text) is all(c == "\t" or (" " <= c <= "\xff" and c != "\x7f") for c in text)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("Content-Length", "1"), ("Content-Length", "1")], 400),
        ([("Content-Length", "1, 1")], 400),
        ([("Content-Length", "1"), ("Transfer-Encoding", "chunked")], 400),
        ([("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], 501),
        ([("Transfer-Encoding", "chunked, gzip")], 501),
    ],
)
def test_framing_is_judged_without_llhttp_too(fields, status):
    """failures: request smuggling; what llhttp refuses today it may let through in its next release."""
    with pytest.raises(RemoteProtocolError) as caught:
        http1._check_framing(RequestHead("POST", "/", "1.1", Headers([("Host", "h"), *fields])))
    assert caught.value.http_status == status


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "HOST"])
def test_trailers_frame_and_route_nothing(name) -> None:
    """spec 9.1: readers who join trailers to the head would believe them."""
    reader = RequestReader()
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(reader.next_event(), RequestHead)
    reader.receive_data(b"0\r\nX: y\r\n" + name.encode() + b": 5\r\n\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_event()
    assert caught.value.http_status == 400


# A proxy's requests ---------------------------------------------------------------------------------------------------


CONNECT_LINE = b"CONNECT relay.example:443 HTTP/1.1\r\n"


@pytest.mark.parametrize("cut", [None, byte_by_byte])
def test_a_proxy_takes_connect(cut):
    """RFC 9110 9.3.6: what stands behind the head belongs to the tunnel."""
    reader = RequestReader(takes_connect=True)
    data = CONNECT_LINE + HOST + b"\r\n" + b"GET / HTTP/1.1\r\n\r\n"
    (head,) = events_of(data, reader=reader, cuts=cut and cut(data))
    assert (head.method, head.target, head.host) == ("CONNECT", "relay.example:443", "relay.example")
    assert reader.trailing == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("target", [b"[2001:db8::1]:443", b"relay_1.example:1", b"10.0.0.1:65535"])
def test_targets_of_connect(target):
    (head,) = events_of(CONNECT_LINE.replace(b"relay.example:443", target) + HOST + b"\r\n", takes_connect=True)
    assert head.target == target.decode()


@pytest.mark.parametrize(
    "data",
    [
        CONNECT_LINE + b"\r\n",
        CONNECT_LINE + HOST + b"Content-Length: 0\r\n\r\n",
        CONNECT_LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        CONNECT_LINE.replace(b":443", b"") + HOST + b"\r\n",
        CONNECT_LINE.replace(b":443", b":") + HOST + b"\r\n",
        CONNECT_LINE.replace(b"relay", b"http://relay") + HOST + b"\r\n",
        CONNECT_LINE.replace(b"relay", b"u@relay") + HOST + b"\r\n",
        CONNECT_LINE.replace(b"relay.example:443", b"/") + HOST + b"\r\n",
        CONNECT_LINE.replace(b"relay.example:443", b"::1:443") + HOST + b"\r\n",
    ],
)
def test_what_connect_is_refused(data):
    """RFC 9112 3.2.3: HOST:PORT and nothing else; RFC 9110 9.3.6: no content."""
    assert events_of(data, takes_connect=True) == [400]
