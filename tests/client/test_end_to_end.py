"""Listener and sender over a real relay, on real sockets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

import pytest
import trio

import relaycore
from relaycore import Accept, Reject
from relaycore.errors import NoListener, Rejected
from relaycore.net.errors import StreamClosed, StreamLost
from relaycore.testing import Relay, open_relay


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("orders")
        await relay.create_entity("open", requires_client_authorization=False)
        yield relay


async def test_everything_about_a_sender_arrives(relay: Relay):
    """spec 7.1, 2.4, 10: suffix, query, headers and sub-protocol; what was meant for the relay does not."""
    seen = []

    def decide(incoming: relaycore.IncomingConnection) -> Accept:
        seen.append(incoming)
        return Accept(subprotocol="p2")

    async with (
        relaycore.open_listener(relay.connection_string("orders", rights=["Listen"]), accept=decide) as listener,
        relaycore.open_stream(
            relay.connection_string("orders", rights=["Send"]),
            suffix="site/x y",
            query="a=1&&b=%2f",
            headers={"X-Mixed-Case": "Value"},
            subprotocols=["p1", "p2"],
        ) as stream,
    ):
        async with await listener.accept() as connection:
            await stream.send_eof()
            assert await connection.receive_some() == b""
        assert (connection.path, connection.suffix, connection.query) == ("orders", "site/x y", "a=1&&b=%2f")
        assert connection.headers.get("x-mixed-case") == "Value"
        assert "ServiceBusAuthorization" not in connection.headers
        assert connection.tracking_id == f"{stream.tracking_id}_G0"
        assert (connection.subprotocol, stream.subprotocol) == ("p2", "p2")
        assert connection.remote_endpoint is not None
        assert connection.remote_endpoint.address == "127.0.0.1"
        assert seen[0].subprotocols == ("p1", "p2")


async def test_bulk_both_ways_byte_for_byte(relay: Relay):
    """spec 8: hashes agree both ways, sent at once after the connect (failures: early data)."""
    blob = os.urandom(3_000_001)
    digest = hashlib.sha256(blob).digest()
    text = relay.connection_string("orders")

    async def pump(stream: relaycore.Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, stream)
            received = hashlib.sha256()
            async for data in stream:
                received.update(data)
        assert received.digest() == digest

    async def send(stream: relaycore.Connection) -> None:
        for start in range(0, len(blob), 99_991):
            await stream.send_all(blob[start : start + 99_991])
        await stream.send_eof()

    async def serve(listener: relaycore.Listener) -> None:
        async with await listener.accept() as connection:
            await pump(connection)

    async with relaycore.open_listener(text) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve, listener)
        async with relaycore.open_stream(text) as stream:
            await pump(stream)


async def test_the_reply_after_the_end(relay: Relay):
    """spec 8.7: the half-close goes through, and the reply after it comes back."""
    text = relay.connection_string("orders")

    async def count(connection: relaycore.Connection) -> None:
        async with connection:
            total = 0
            async for data in connection:
                total += len(data)
            await connection.send_all(str(total).encode())

    async with relaycore.open_listener(text) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, count, [listener])
        async with relaycore.open_stream(text) as stream:
            await stream.send_all(b"x" * 100_000)
            await stream.send_eof()
            assert await stream.receive_some() == b"100000"
            assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_messages_keep_their_type(relay: Relay):
    """spec 8.1: text stays text and boundaries stay, through the relay and back."""
    text = relay.connection_string("orders")

    async def echo(connection: relaycore.Connection) -> None:
        async with connection.messages() as messages:
            async for message in messages:
                await messages.send(message)

    async with relaycore.open_listener(text) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        async with relaycore.open_stream(text) as stream:
            messages = stream.messages()
            for message in ("grüß", b"", "", b"\x00\xff", "x" * 200_000, b"y" * 65_537):
                await messages.send(message)
                assert await messages.receive() == message
            await messages.send_eof()
        nursery.cancel_scope.cancel()


async def rejected(listener: relaycore.Listener) -> None:
    """Wait until the relay has told the listener as well; the sender may hear first."""
    while True:
        if listener.status.connections_rejected:
            return
        await trio.sleep(0.01)


async def test_a_rejection_reaches_the_sender_word_for_word(relay: Relay):
    """spec 7.3: exactly that status and exactly that description."""
    text = relay.connection_string("orders")
    async with relaycore.open_listener(text, accept=lambda _: Reject(451, "not today: 100 %")) as listener:
        with pytest.raises(Rejected) as caught:
            async with relaycore.open_stream(text):
                pytest.fail("accepted")
        assert (caught.value.http_status, caught.value.message) == (451, "not today: 100 %")
        await rejected(listener)
        assert listener.status.accepts_failed == 0


async def test_an_anonymous_sender(relay: Relay):
    """spec 5.7: no token where none is asked for."""
    async with (
        relaycore.open_listener(relay.connection_string("open")) as listener,
        relaycore.open_stream(relay.connection_string("open", rights=())) as stream,
    ):
        connection = await listener.accept()
        await connection.send_all(b"welcome")
        assert await stream.receive_some() == b"welcome"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            nursery.start_soon(stream.aclose)


async def test_a_sender_that_is_gone_is_a_loss_for_the_listener(relay: Relay):
    """failures: client gone, listener never told. Well under a second, and not as an end of data (spec 8.8)."""
    text = relay.connection_string("orders")
    async with (
        relaycore.open_listener(text) as listener,
        relaycore.open_stream(text) as stream,
        await listener.accept() as connection,
    ):
        await trio.aclose_forcefully(stream)
        with pytest.raises(StreamLost), trio.fail_after(1):
            await connection.receive_some()


async def test_nobody_listens_any_more(relay: Relay):
    """spec 6.1: deregistered before the Close is answered, so the next sender finds nobody."""
    text = relay.connection_string("orders")
    async with relaycore.open_listener(text):
        pass
    with pytest.raises(NoListener):
        async with relaycore.open_stream(text):
            pytest.fail("somebody listens")


async def test_a_deleted_hybrid_connection_comes_back(relay: Relay):
    """spec 13: 1001 to everyone on deletion; the listener stays with it through the 404s until it is there again."""
    text = relay.connection_string("orders")
    async with relaycore.open_listener(text) as listener:
        events = listener.events()
        async with relaycore.open_stream(text) as stream, await listener.accept() as connection:
            await relay.delete_entity("orders")
            for end in (stream, connection):
                with pytest.raises(StreamClosed) as caught:  # no end of data: more of it may have been meant
                    await end.receive_some()
                assert caught.value.code == 1001
        assert isinstance(await anext(events), relaycore.Offline)
        assert isinstance(listener.status.last_error, StreamClosed | relaycore.EndpointNotFound)
        await relay.create_entity("orders")
        await listener.wait_online()
        async with relaycore.open_stream(text) as stream, await listener.accept() as connection:
            await stream.send_all(b"again")
            assert await connection.receive_some() == b"again"
            await stream.send_eof()
