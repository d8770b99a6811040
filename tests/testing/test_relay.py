"""The whole relay for tests: it is up, its connection strings have the rights they say, and its books are checked."""

from __future__ import annotations

import pytest
import trio

import relaycore
from relaycore.errors import AuthorizationFailed, EndpointNotFound, RelayError
from relaycore.testing import open_relay
from relaycore.wire.connection_string import parse_connection_string


async def test_a_listener_and_a_sender_meet():
    async with open_relay() as relay:
        await relay.create_entity("orders")
        text = relay.connection_string("orders")
        async with relaycore.open_listener(text) as listener, relaycore.open_stream(text) as stream:
            connection = await listener.accept()
            await stream.send_all(b"hello")
            assert await connection.receive_some() == b"hello"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.aclose)
                nursery.start_soon(connection.aclose)


async def test_rights_are_exactly_those_asked_for():
    """spec 5.4: listening takes Listen, sending takes Send, each is 403 without it."""
    async with open_relay() as relay:
        await relay.create_entity("orders")
        with pytest.raises(AuthorizationFailed) as caught:
            async with relaycore.open_listener(relay.connection_string("orders", rights=["Send"])):
                pytest.fail("listening without the right")
        assert caught.value.http_status == 403
        with pytest.raises(AuthorizationFailed):
            async with relaycore.open_stream(relay.connection_string("orders", rights=["Listen"])):
                pytest.fail("sending without the right")
        with pytest.raises(AuthorizationFailed) as caught:
            async with relaycore.open_stream(relay.connection_string("orders", rights=())):
                pytest.fail("sending without a token")
        assert caught.value.http_status == 401
        with pytest.raises(ValueError, match="implies"):
            relay.connection_string("orders", rights=["Manage"])


async def test_connection_strings_may_leave_the_entity_out():
    async with open_relay() as relay:
        assert parse_connection_string(relay.connection_string()).entity_path is None
        assert parse_connection_string(relay.connection_string("a/b", rights=())).entity_path == "a/b"


async def test_entities_come_and_go():
    """spec 3: an unknown hybrid connection is 404, also a deleted one."""
    async with open_relay() as relay:
        await relay.create_entity("orders")
        assert await relay.delete_entity("orders")
        assert not await relay.delete_entity("orders")
        with pytest.raises(EndpointNotFound):
            async with relaycore.open_stream(relay.connection_string("orders")):
                pytest.fail("connected to nothing")


async def test_errors_of_the_block_come_out_as_they_are():
    with pytest.raises(KeyError, match="mine"):
        async with open_relay():
            raise KeyError("mine")


async def test_books_that_do_not_balance_fail_the_test(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RelayError, match="one too many"):
        async with open_relay() as relay:
            monkeypatch.setattr(relay.server, "check_consistency", lambda: ["one too many"])
