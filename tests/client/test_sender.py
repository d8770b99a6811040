"""The sender against a relay that plays a script."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator

import pytest
import trio
import trustme
from trio.testing import MockClock

import relaycore
from relaycore._native import encode_frame
from relaycore.errors import (
    AuthorizationFailed,
    ConfigError,
    ConnectionLost,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Refused,
    Rejected,
    ServerBusy,
)
from relaycore.net.errors import StreamLost
from relaycore.testing.fake_relay import FakeRelay, open_fake_relay
from relaycore.wire.frames import Binary, Close
from relaycore.wire.sas import parse_token

GUID = "12345678-1234-1234-1234-1234567890ab"


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    async with open_fake_relay() as relay:
        yield relay


async def test_what_a_connect_looks_like(relay: FakeRelay, nursery: trio.Nursery):
    """spec 2.1, 2.3: suffix and query first, action and id last, the token in a header as .NET sends it."""

    async def serve() -> None:
        request = await relay.next_request("connect")
        assert request.target == f"/$hc/orders/site/x%20y?foo=bar&sb-hc-action=connect&sb-hc-id={GUID}"
        headers = request.head.headers
        assert parse_token(headers.get("ServiceBusAuthorization") or "").rule_name == "RootManageSharedAccessKey"
        assert headers.get("X-App") == "1"
        assert request.upgrade.protocols == ("p1", "p2")
        leg = await request.accept(protocol="p2")
        assert await leg.receive() == Binary(b"hello")
        await leg.send_binary(b"answer")
        assert await leg.receive() == Close(1000, "CloseAsync")
        await leg.close()

    nursery.start_soon(serve)
    async with relaycore.open_stream(
        relay.connection_string(),
        suffix="site/x y",
        query="foo=bar&sb-hc-token=dropped",
        headers={"X-App": "1"},
        subprotocols=["p1", "p2"],
        tracking_id=GUID,
    ) as stream:
        assert (stream.path, stream.suffix, stream.query) == ("orders", "site/x y", "foo=bar")
        assert (stream.subprotocol, stream.tracking_id) == ("p2", GUID)
        assert stream.remote_endpoint is None
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"answer"


async def test_an_anonymous_sender_has_no_token(relay: FakeRelay, nursery: trio.Nursery):
    """spec 5.7: no token at all; the id is a fresh GUID."""

    async def serve() -> None:
        request = await relay.next_request("connect")
        assert "ServiceBusAuthorization" not in request.head.headers
        assert re.fullmatch(r"[0-9a-f-]{36}", request.parameter("sb-hc-id"))
        await (await request.accept()).close()

    nursery.start_soon(serve)
    anonymous = f"Endpoint=sb://127.0.0.1:{relay.port}/;EntityPath=orders"
    async with relaycore.open_stream(anonymous, tls=False) as stream:
        assert await stream.receive_some() == b""


async def test_tokens_of_ones_own(relay: FakeRelay, nursery: trio.Nursery):
    """spec 5.1: the header carries whatever token the caller has, never the URL."""

    async def provide(audience: str) -> str:
        await trio.lowlevel.checkpoint()
        assert audience == "http://127.0.0.1/orders/"
        return "from-a-provider"

    async def serve() -> None:
        for expected in ("a-static-one", "from-a-provider"):
            request = await relay.next_request("connect")
            assert request.head.headers.get("ServiceBusAuthorization") == expected
            assert expected not in request.target
            await (await request.accept()).close()

    nursery.start_soon(serve)
    for token in ("a-static-one", provide):
        async with relaycore.open_stream(relay.connection_string(), token=token) as stream:
            await stream.receive_some()


async def test_data_right_behind_the_101_is_kept(relay: FakeRelay, nursery: trio.Nursery):
    """failures: data arrives before the local connect is done and is lost."""

    async def serve() -> None:
        leg = await (await relay.next_request()).accept(behind=encode_frame(2, b"at once"))
        await leg.close()

    nursery.start_soon(serve)
    async with relaycore.open_stream(relay.connection_string()) as stream:
        assert await stream.receive_some() == b"at once"
        assert await stream.receive_some() == b""


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (401, "MissingToken: a token is needed", AuthorizationFailed),
        (403, "The right Send is missing", AuthorizationFailed),
        (404, "Endpoint does not exist: orders", EndpointNotFound),
        (404, "There are no listeners connected for the endpoint", NoListener),
        (408, "too slow", GatewayTimeout),
        (504, "too slow", GatewayTimeout),
        (503, "The listener is busy", ServerBusy),
        (451, "not for you", Rejected),
        (500, "our fault", Refused),
    ],
)
async def test_refusals_are_classes(
    relay: FakeRelay, nursery: trio.Nursery, status: int, reason: str, expected: type[Refused]
):
    """spec 12, 7.3: each answer is an error of its own, and a listener's words come out verbatim."""

    async def serve() -> None:
        await (await relay.next_request()).refuse(status, reason)

    nursery.start_soon(serve)
    with pytest.raises(expected) as caught:
        async with relaycore.open_stream(relay.connection_string()):
            pytest.fail("not connected")
    assert (caught.value.http_status, caught.value.message) == (status, reason)


async def test_no_answer_in_time(autojump_clock: MockClock):
    """spec 14: 70 seconds, or the connection string's OperationTimeout, or the caller's own."""
    async with open_fake_relay() as relay:
        given = relay.connection_string()
        for text, options, expected in (
            (given, {}, 70),
            (given + ";OperationTimeout=00:00:15", {}, 15),
            (given, {"connect_timeout": 3.0}, 3),
        ):
            started = trio.current_time()
            with pytest.raises(ConnectionLost, match=f"within {expected} s"):
                async with relaycore.open_stream(text, **options):
                    pytest.fail("not connected")
            assert trio.current_time() - started == pytest.approx(expected)
            assert await (await relay.next_request()).stream.receive_some() == b""


async def test_an_untrusted_certificate():
    """failures: certificate check off by default. The request, and so the token, never leaves."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with open_fake_relay(ssl_context=context) as relay:
        with pytest.raises(ConnectionLost) as caught:
            async with relaycore.open_stream(relay.connection_string()):
                pytest.fail("not connected")
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_relay_that_dies_is_a_loss(relay: FakeRelay, nursery: trio.Nursery):
    """spec 8.8: a reset after the 101 raises; it is never an end of data."""

    async def serve() -> None:
        request = await relay.next_request()
        await request.accept()
        await request.reset()

    nursery.start_soon(serve)
    async with relaycore.open_stream(relay.connection_string()) as stream:
        with pytest.raises(StreamLost):
            await stream.receive_some()


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Host": "other"}},
        {"headers": {"sec-websocket-key": "x"}},
        {"headers": [("ServiceBusAuthorization", "token")]},
        {"subprotocols": "mqtt"},
        {"subprotocols": ["not a token"]},
        {"tracking_id": "not a guid"},
        {"path": ""},
    ],
)
async def test_arguments_that_cannot_be_right(relay: FakeRelay, options: dict[str, object]):
    with pytest.raises(ConfigError):
        async with relaycore.open_stream(relay.connection_string(), **options):
            pytest.fail("not connected")
    assert relay.connections == 0


async def test_cancelling_the_connect_leaves_nothing_open(autojump_clock: MockClock):
    async with open_fake_relay() as relay:
        with trio.move_on_after(5) as scope:
            async with relaycore.open_stream(relay.connection_string()):
                pytest.fail("not connected")
        assert scope.cancelled_caught
        assert await (await relay.next_request()).stream.receive_some() == b""
