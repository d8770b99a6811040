"""What programs say to a proxy, and the answers: byte for byte, however the network cuts it."""

from __future__ import annotations

import base64
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.connect.socks import Farewell, ProxyReader, RequestKind, Say, Wanted, Why, parse_users
from relaycore.errors import ConfigError
from relaycore.wire.http1 import RequestHead, RequestReader, ResponseHead, ResponseReader

USERS = {"ann": "hush", "bért": "pä:ss"}
TAIL = b"and what the program says first"


def events_of(pieces, users=None):
    reader = ProxyReader(users)
    found = []
    for piece in pieces:
        reader.receive_data(piece)
        while (event := reader.next_event()) is not None:
            found.append(event)
    return found


def cut_at(data: bytes, places) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in places})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def rfc1929(user: bytes, password: bytes) -> bytes:
    return bytes((1, len(user))) + user + bytes((len(password),)) + password


GOOD = [
    (b"\x05\x01\x00\x05\x01\x00\x03\x02db\x05\x99", None, [b"\x05\x00"], "socks5", "db", 1433),
    (b"\x05\x02\x02\x00" + b"\x05\x01\x00\x01\x0a\x01\x02\x03\x00\x50", None, [b"\x05\x00"], "socks5", "10.1.2.3", 80),
    (
        b"\x05\x01\x00\x05\x01\x00\x04" + ipaddress.ip_address("2001:db8::1").packed + b"\x01\xbb",
        None,
        [b"\x05\x00"],
        "socks5",
        "2001:db8::1",
        443,
    ),
    (
        b"\x05\x01\x00\x05\x01\x00\x04" + ipaddress.ip_address("::ffff:10.1.2.3").packed + b"\x01\xbb",
        None,
        [b"\x05\x00"],
        "socks5",
        "10.1.2.3",
        443,
    ),
    (b"\x05\x01\x00\x05\x01\x00\x03\x0810.1.2.3\x00\x50", None, [b"\x05\x00"], "socks5", "10.1.2.3", 80),
    (
        b"\x05\x01\x00\x05\x01\x00\x03\x0fb\xc3\xbccher.example\x00\x50",
        None,
        [b"\x05\x00"],
        "socks5",
        "xn--bcher-kva.example",
        80,
    ),
    (
        b"\x05\x01\x02" + rfc1929(b"any", b"") + b"\x05\x01\x00\x03\x01a\x00\x01",
        None,
        [b"\x05\x02", b"\x01\x00"],
        "socks5",
        "a",
        1,
    ),
    (
        b"\x05\x02\x00\x02" + rfc1929(b"ann", b"hush") + b"\x05\x01\x00\x03\x01a\x00\x01",
        USERS,
        [b"\x05\x02", b"\x01\x00"],
        "socks5",
        "a",
        1,
    ),
    (
        b"\x05\x01\x02" + rfc1929("bért".encode(), "pä:ss".encode()) + b"\x05\x01\x00\x03\x01a\x00\x01",
        USERS,
        [b"\x05\x02", b"\x01\x00"],
        "socks5",
        "a",
        1,
    ),
    (b"\x04\x01\x05\x99\x0a\x01\x02\x03\x00", None, [], "socks4", "10.1.2.3", 1433),
    (b"\x04\x01\x05\x99\x0a\x01\x02\x03somebody\x00", None, [], "socks4", "10.1.2.3", 1433),
    (b"\x04\x01\x05\x99\x00\x00\x00\x07me\x00db.corp.example\x00", None, [], "socks4", "db.corp.example", 1433),
    (
        b"CONNECT db.corp.example:1433 HTTP/1.1\r\nHost: db.corp.example:1433\r\n\r\n",
        None,
        [],
        "connect",
        "db.corp.example",
        1433,
    ),
    (b"CONNECT db:1433 HTTP/1.1\r\nHost: db\r\n\r\n", None, [], "connect", "db", 1433),
    (b"CONNECT db:1433 HTTP/1.0\r\n\r\n", None, [], "connect", "db", 1433),
    (b"CONNECT [2001:DB8::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n", None, [], "connect", "2001:db8::1", 443),
    (
        b"CONNECT db:1433 HTTP/1.1\r\nHost: db\r\nproxy-authorization: " + basic("ann", "hush") + b"\r\n\r\n",
        USERS,
        [],
        "connect",
        "db",
        1433,
    ),
    (
        b"CONNECT db:1433 HTTP/1.1\r\nHost: db\r\nProxy-Authorization: " + basic("bért", "pä:ss") + b"\r\n\r\n",
        USERS,
        [],
        "connect",
        "db",
        1433,
    ),
]


@pytest.mark.parametrize(("data", "users", "said", "kind", "host", "port"), GOOD)
@given(places=st.lists(st.integers(0, 200), max_size=8))
def test_every_way_to_ask(data, users, said, kind, host, port, places):
    """SOCKS5, SOCKS4, SOCKS4a, CONNECT: in any pieces, and nothing behind it is lost."""
    *says, wanted = events_of([*cut_at(data, places), TAIL], users)
    assert says == [Say(piece) for piece in said]
    assert isinstance(wanted, Wanted)
    assert (wanted.kind, wanted.host, wanted.port) == (kind, host, port)
    whole = events_of([data + TAIL], users)[-1]
    assert whole.early == TAIL
    assert wanted.early in (b"", TAIL)


@pytest.mark.parametrize(
    ("data", "users", "answer", "is_authentication"),
    [
        (b"\x05\x01\x01", None, b"\x05\xff", True),
        (b"\x05\x00", None, b"\x05\xff", True),
        (b"\x05\x01\x00", USERS, b"\x05\xff", True),
        (b"\x05\x01\x02" + rfc1929(b"ann", b"wrong"), USERS, b"\x01\x01", True),
        (b"\x05\x01\x02" + rfc1929(b"nobody", b""), USERS, b"\x01\x01", True),
        (b"\x05\x01\x02" + rfc1929(b"\xff", b"x"), USERS, b"\x01\x01", True),
        (b"\x05\x01\x02\x05\x01a\x01b", USERS, b"\x01\x01", False),
        (b"\x05\x01\x00\x04\x01\x00\x01", None, b"\x05\x01\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x02\x00\x01" + bytes(6), None, b"\x05\x07\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6), None, b"\x05\x07\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x01\x00\x02" + bytes(6), None, b"\x05\x08\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", None, b"\x05\x01\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x01\x00\x03\x03a\nb\x00\x50", None, b"\x05\x01\x00\x01" + bytes(6), False),
        (b"\x05\x01\x00\x05\x01\x00\x03\x02\xff\xff\x00\x50", None, b"\x05\x01\x00\x01" + bytes(6), False),
        (b"\x04\x02\x00\x50\x01\x02\x03\x04\x00", None, b"\x00\x5b" + bytes(6), False),
        (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a b\x00", None, b"\x00\x5b" + bytes(6), False),
        (b"\x04\x01\x00\x50\x01\x02\x03\x04" + b"x" * 256, None, b"\x00\x5b" + bytes(6), False),
        (b"\x04\x01\x00\x50\x01\x02\x03\x04ann\x00", USERS, b"\x00\x5d" + bytes(6), True),
    ],
)
def test_what_socks_is_refused(data, users, answer, is_authentication):
    """One answer, then the end; nothing behind it is looked at (RFC 1928 3, 6; RFC 1929 2)."""
    for pieces in ([data + TAIL], [data[at : at + 1] for at in range(len(data))]):
        *_, last = events_of(pieces, users)
        assert isinstance(last, Farewell)
        assert last.data == answer
        assert last.is_authentication is is_authentication
        assert "hush" not in last.text


@pytest.mark.parametrize(
    ("data", "users", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"GET http://h:99999/ HTTP/1.1\r\nHost: h:99999\r\n\r\n", None, 400),
        (b"GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT h:0 HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT h:70000 HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT -h:1 HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT /:1 HTTP/1.1\r\nHost: h\r\n\r\n", None, 400),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", None, 400),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", None, 400),
        (b"\x16\x03\x01\x02\x00\x01", None, 400),
        (b"\x00", None, 400),
        (b"SSH-2.0-OpenSSH\r\n\r\n", None, 400),
        (b"GET http://h/ HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000, None, 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None, 505),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", USERS, 407),
        (b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", USERS, 407),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic !!\r\n\r\n", USERS, 407),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic YW5u\r\n\r\n", USERS, 407),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Bearer x\r\n\r\n", USERS, 407),
        (
            b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nProxy-Authorization: " + basic("ann", "hush2") + b"\r\n\r\n",
            USERS,
            407,
        ),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\nAuthorization: " + basic("ann", "hush") + b"\r\n\r\n", USERS, 407),
    ],
)
def test_what_http_is_refused(data, users, status):
    """RFC 9112 3.2.3, RFC 9110 11.7.1: with a status, a text, and a challenge where that is what is missing."""
    *_, last = events_of([data], users)
    assert isinstance(last, Farewell)
    reader = ResponseReader()
    reader.receive_data(last.data)
    head = reader.next_event()
    assert isinstance(head, ResponseHead)
    assert head.status == status
    assert head.headers.get("Connection") == "close"
    assert head.headers.get("Content-Length") == str(len(reader.trailing))
    assert reader.trailing.startswith(b"relaycore: ")
    assert ("Proxy-Authenticate" in head.headers) is (status == 407) is last.is_authentication
    assert b"hush" not in last.data


def test_a_url_is_rewritten_for_its_server():
    """RFC 9112 3.2.2, RFC 9110 7.6.1: origin form, without what was meant for the proxy; the body is not touched."""
    request = (
        b"POST http://Web.corp.example:8080/a%20b?c=d HTTP/1.1\r\nHost: web.corp.example:8080\r\nX-One: 1\r\n"
        b"Connection: keep-alive, X-Two, Content-Length\r\nX-Two: 2\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n"
        b"Proxy-Authorization: " + basic("ann", "hush") + b"\r\nx-one: 3\r\nContent-Length: 4\r\n\r\nbody"
    )
    (wanted,) = events_of([request], USERS)
    assert (wanted.kind, wanted.host, wanted.port) == (RequestKind.URL, "Web.corp.example", 8080)
    assert wanted.early == (
        b"POST /a%20b?c=d HTTP/1.1\r\nHost: Web.corp.example:8080\r\nX-One: 1\r\nx-one: 3\r\nContent-Length: 4\r\n"
        b"Connection: close\r\n\r\nbody"
    )
    assert wanted.accepted() == b""


@pytest.mark.parametrize(
    ("line", "rewritten"),
    [
        (b"GET http://h HTTP/1.1", b"GET / HTTP/1.1"),
        (b"GET http://h?x=y HTTP/1.1", b"GET /?x=y HTTP/1.1"),
        (b"OPTIONS http://h HTTP/1.1", b"OPTIONS * HTTP/1.1"),
        (b"GET HTTP://h/ HTTP/1.0", b"GET / HTTP/1.0"),
    ],
)
def test_targets(line, rewritten):
    """RFC 9112 3.2: an empty path, and the version, which says what the program can read."""
    (wanted,) = events_of([line + b"\r\nHost: h\r\n\r\n"])
    assert wanted.early == rewritten + b"\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert wanted.port == 80


def test_an_upgrade_stays_one():
    """RFC 9110 7.8: a WebSocket to a plain server, through the proxy."""
    (wanted,) = events_of(
        [b"GET http://h/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, X\r\nX: 1\r\nUpgrade: websocket\r\n\r\nearly"]
    )
    assert wanted.early == (b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly")


@given(
    target=st.from_regex(r"/[!-\"$-~]{0,40}", fullmatch=True),
    fields=st.lists(
        st.tuples(st.from_regex(r"X-[A-Za-z0-9]{1,10}", fullmatch=True), st.from_regex(r"[!-~]{0,20}", fullmatch=True)),
        max_size=6,
    ),
    body=st.binary(max_size=40),
)
def test_a_rewritten_request_says_the_same(target, fields, body):
    """Nothing is added, dropped or reordered but what the proxy is concerned with."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    request = f"PUT http://h:81{target} HTTP/1.1\r\nHost: h:81\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode()
    (wanted,) = events_of([request + body])
    reader = RequestReader()
    reader.receive_data(wanted.early)
    head = reader.next_event()
    assert isinstance(head, RequestHead)
    assert (head.method, head.target, head.host) == ("PUT", target, "h:81")
    assert list(head.headers) == [
        ("Host", "h:81"),
        ("Content-Length", str(len(body))),
        *fields,
        ("Connection", "close"),
    ]
    assert reader.trailing == body


@pytest.mark.parametrize(
    ("why", "socks5", "status"),
    [
        (Why.NOT_ALLOWED, 2, 403),
        (Why.REFUSED, 5, 502),
        (Why.UNREACHABLE, 4, 503),
        (Why.TIMED_OUT, 6, 504),
        (Why.FAILED, 1, 502),
    ],
)
def test_each_no_in_each_language(why, socks5, status):
    """connection manager 8.6: SOCKS "not allowed", or 403 with the list."""
    assert Wanted(RequestKind.SOCKS5, "h", 1).refused(why, "text") == bytes((5, socks5, 0, 1, 0, 0, 0, 0, 0, 0))
    assert Wanted(RequestKind.SOCKS4, "h", 1).refused(why, "text") == b"\x00\x5b" + bytes(6)
    for kind in (RequestKind.CONNECT, RequestKind.URL):
        answer = Wanted(kind, "h", 1).refused(why, "só it is")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.endswith("relaycore: só it is\n".encode())


def test_each_yes_in_each_language():
    """SOCKS5's 0, SOCKS4's 90, HTTP's 2xx without content (RFC 1928 6, RFC 9110 9.3.6)."""
    assert Wanted(RequestKind.SOCKS5, "h", 1).accepted() == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert Wanted(RequestKind.SOCKS4, "h", 1).accepted() == b"\x00\x5a\x00\x00\x00\x00\x00\x00"
    assert Wanted(RequestKind.CONNECT, "h", 1).accepted() == b"HTTP/1.1 200 Connection established\r\n\r\n"


@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.builds(bytes.__add__, st.sampled_from([b"\x05\x01\x00", b"\x04\x01", b"CONNECT "]), st.binary(max_size=300)),
    ),
    places=st.lists(st.integers(0, 400), max_size=5),
)
def test_any_bytes_in_any_pieces_give_the_same(data, places):
    """Whatever comes, there is an event or patience, never another error; and the network's pieces play no part."""
    whole, cut = events_of([data]), events_of(cut_at(data, places))
    assert [type(event) for event in whole] == [type(event) for event in cut]
    for one, other in zip(whole, cut, strict=True):
        if isinstance(one, Wanted):
            assert (one.host, one.port) == (other.host, other.port)
        else:
            assert one == other


def test_repr_shows_no_bytes_of_the_program():
    (wanted,) = events_of([b"GET http://h/?secret HTTP/1.1\r\nHost: h\r\nAuthorization: x\r\n\r\n"])
    assert "secret" not in repr(wanted)


def test_users():
    """connection manager 8.4: users = USER:PASSWORD lines; errors do not repeat them."""
    assert parse_users("# who\n\nann:hush\nb:c:d\n") == {"ann": "hush", "b": "c:d"}
    for text in ("", "#x", "hush", ":hush", "hush:", "a:hush\na:b", "a:" + "hush" * 100):
        with pytest.raises(ConfigError, match=r"file:/x: connect\.proxy\.users") as caught:
            parse_users(text, source="file:/x")
        assert "hush" not in str(caught.value)
