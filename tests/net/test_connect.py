"""Dialling: URLs, TLS verification, and peers that go wrong at each stage of the handshake."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock

from relaycore._native import encode_frame
from relaycore.errors import (
    AuthorizationFailed,
    ConfigError,
    ConnectionLost,
    EndpointNotFound,
    LocalProtocolError,
    NoListener,
    RemoteProtocolError,
)
from relaycore.net.connect import client_ssl_context, open_transport, open_websocket, parse_ws_url
from relaycore.testing.fake_relay import FakeRelay, open_fake_relay
from relaycore.wire.frames import Binary


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def cafile(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def url_of(relay: FakeRelay, resource: str = "/$hc/orders?sb-hc-action=connect"):
    return parse_ws_url(relay.base_url + resource)


@pytest.mark.parametrize(
    ("text", "is_tls", "host", "port", "host_header", "resource"),
    [
        ("ws://h", False, "h", 80, "h", "/"),
        ("wss://h/$hc/a?x=1", True, "h", 443, "h", "/$hc/a?x=1"),
        ("WSS://H.example:8443/a", True, "H.example", 8443, "H.example:8443", "/a"),
        ("ws://[::1]:80/a%20b", False, "::1", 80, "[::1]:80", "/a%20b"),
    ],
)
def test_urls(text: str, is_tls: bool, host: str, port: int, host_header: str, resource: str):
    """spec 2.3: any host and port, ws and wss."""
    url = parse_ws_url(text)
    assert (url.is_tls, url.host, url.port, url.host_header, url.resource) == (
        is_tls,
        host,
        port,
        host_header,
        resource,
    )


@pytest.mark.parametrize(
    "text",
    [
        "http://h/",
        "ws://",
        "ws://h:0/",
        "ws://h:65536/",
        "ws://user@h/",
        "ws://h/a b",
        "ws://h/a#b",
        "ws://h/\r\nX: y",
        "ws://h/é",
        "ws://hé/",
        "ws://h\x00/",
        "",
        "ws://h?x",
    ],
)
def test_what_is_no_url(text: str):
    """RFC 6455 3: no fragment, no user, nothing that could split a request."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_ws_url(text)
    assert text == "" or text not in str(caught.value)


def test_contexts_verify():
    """spec 4: TLS 1.2 or later, certificate and host name verified, HTTP/1.1 only."""
    context = client_ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_ssl_context() is context


def test_a_cafile_that_is_none(tmp_path: Path):
    with pytest.raises(ConfigError, match="missing"):
        client_ssl_context(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="empty"):
        client_ssl_context(tmp_path / "empty.pem")


async def test_tls_with_a_private_authority(server_context: ssl.SSLContext, cafile: Path):
    async with open_fake_relay(ssl_context=server_context) as relay, trio.open_nursery() as nursery:

        async def answer() -> None:
            request = await relay.next_request()
            assert request.stream.selected_alpn_protocol() is None
            await (await request.accept()).send_binary(b"over TLS")

        nursery.start_soon(answer)
        opened = await open_websocket(url_of(relay), ssl_context=client_ssl_context(cafile))
        assert await opened.leg.receive() == Binary(b"over TLS")
        await opened.leg.aclose()


async def test_an_untrusted_certificate_is_refused(server_context: ssl.SSLContext):
    """failures: certificate check off by default. Ours is on, and nothing of the request leaves."""
    async with open_fake_relay(ssl_context=server_context) as relay:
        with pytest.raises(ConnectionLost) as caught:
            await open_websocket(url_of(relay))
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA, cafile: Path):
    """spec 4: the certificate must cover the host that is dialled."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(context)
    async with open_fake_relay(ssl_context=context) as relay:
        with pytest.raises(ConnectionLost) as caught:
            await open_websocket(url_of(relay), ssl_context=client_ssl_context(cafile))
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_plain_server_where_tls_was_expected(cafile: Path):
    async with open_fake_relay() as relay:
        url = parse_ws_url(f"wss://localhost:{relay.port}/")
        with pytest.raises(ConnectionLost):
            await open_transport(url, client_ssl_context(cafile))


async def test_a_name_that_cannot_be_looked_up():
    with pytest.raises(ConnectionLost):
        await open_websocket(parse_ws_url(f"ws://{'a' * 64}.invalid/"))


async def test_nobody_there():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(ConnectionLost) as caught:
        await open_websocket(parse_ws_url(f"ws://127.0.0.1:{port}/secret-path"))
    assert isinstance(caught.value.__cause__, OSError)
    assert "secret-path" not in str(caught.value)


async def test_the_request_and_the_answer(nursery: trio.Nursery):
    """spec 4: an ordinary handshake; and data right behind the 101 is not lost (failures: early data)."""
    async with open_fake_relay() as relay:

        async def answer() -> None:
            request = await relay.next_request("connect")
            headers = request.head.headers
            assert headers.get("Host") == f"127.0.0.1:{relay.port}"
            assert headers.get("Sec-WebSocket-Version") == "13"
            assert headers.get("X-Own") == "yes"
            assert request.upgrade.protocols == ("p1", "p2")
            await request.accept(protocol="p2", behind=encode_frame(2, b"at once"))

        nursery.start_soon(answer)
        opened = await open_websocket(url_of(relay), headers=[("X-Own", "yes")], protocols=["p1", "p2"])
        assert opened.protocol == "p2"
        assert opened.headers.get("Upgrade") == "websocket"
        assert await opened.leg.receive() == Binary(b"at once")
        await opened.leg.aclose()


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (401, "InvalidSignature: The token has an invalid signature. TrackingId:abc_G0, x", AuthorizationFailed),
        (404, "Endpoint does not exist: orders. TrackingId:abc_G0", EndpointNotFound),
        (404, "There are no listeners connected for the endpoint. TrackingId:abc_G0", NoListener),
    ],
)
async def test_refusals_keep_their_words(nursery: trio.Nursery, status: int, reason: str, expected: type):
    """spec 12: message and tracking id come from the reason phrase."""
    async with open_fake_relay() as relay:

        async def answer() -> None:
            await (await relay.next_request()).refuse(status, reason)

        nursery.start_soon(answer)
        with pytest.raises(expected) as caught:
            await open_websocket(url_of(relay))
        assert caught.value.http_status == status
        assert caught.value.tracking_id == "abc_G0"
        assert "TrackingId" not in caught.value.message


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"\x00" * 100_000,
    ],
)
async def test_answers_that_are_none(nursery: trio.Nursery, answer: bytes):
    """RFC 6455 4.1: an answer that does not fit fails the connection."""
    async with open_fake_relay() as relay:

        async def serve() -> None:
            await (await relay.next_request()).answer_raw(answer)

        nursery.start_soon(serve)
        with pytest.raises(RemoteProtocolError):
            await open_websocket(url_of(relay))


async def test_lost_before_the_answer(nursery: trio.Nursery):
    """failures: the peer is reset, or goes, between the request and the 101."""
    async with open_fake_relay() as relay:

        async def serve() -> None:
            await (await relay.next_request()).reset()
            await (await relay.next_request()).aclose()
            request = await relay.next_request()
            await request.answer_raw(b"HTTP/1.1 101 Swit")
            await request.aclose()

        nursery.start_soon(serve)
        for _ in range(3):
            with pytest.raises(ConnectionLost):
                await open_websocket(url_of(relay))


async def test_cancelling_the_handshake_leaves_nothing_open(autojump_clock: MockClock):
    """failures: a peer that never answers; the caller's deadline frees the connection."""
    async with open_fake_relay() as relay:
        with trio.move_on_after(5) as scope:
            await open_websocket(url_of(relay))
        assert scope.cancelled_caught
        request = await relay.next_request()
        assert await request.stream.receive_some() == b""


async def test_headers_cannot_split_the_request():
    """spec 10: CR and LF in a header are refused before anything is sent."""
    async with open_fake_relay() as relay:
        with pytest.raises(LocalProtocolError):
            await open_websocket(url_of(relay), headers=[("X", "a\r\nHost: evil")])
