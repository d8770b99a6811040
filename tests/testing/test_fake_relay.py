"""The relay that plays a script: what it hands out, and that it keeps nothing open."""

from __future__ import annotations

import os

import pytest
import trio

from relaycore.net.connect import open_websocket, parse_ws_url
from relaycore.testing import open_fake_relay
from relaycore.wire.connection_string import parse_connection_string
from relaycore.wire.messages import Accept, parse_from_relay


async def test_invitations_are_those_of_a_relay():
    """spec 7.1: address with secret, id, connectHeaders and remoteEndpoint."""
    async with open_fake_relay() as relay:
        message = parse_from_relay(relay.invite("orders/x?a=1", rendezvous="r", headers={"X-A": "b"}))
        assert isinstance(message, Accept)
        assert message.address.startswith(f"{relay.base_url}/$hc/orders/x?a=1&sb-hc-action=accept&sb-hc-id=")
        assert message.address.endswith("&sb-hc-rid=r")
        assert message.connectHeaders["X-A"] == "b"
        assert message.remoteEndpoint is not None


async def test_connection_strings_lead_to_it():
    async with open_fake_relay() as relay:
        assert parse_connection_string(relay.connection_string("a")).base_url == relay.base_url
        assert parse_connection_string(relay.connection_string(None)).entity_path is None


async def test_what_nobody_answers_is_closed_at_the_end():
    before = len(os.listdir("/proc/self/fd"))
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        nursery.start_soon(open_websocket, parse_ws_url(relay.base_url + "/$hc/orders?sb-hc-action=listen"))
        await relay.next_request("listen")
        nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_another_request_than_expected_fails_the_test():
    with pytest.raises(AssertionError, match="connect expected"):
        await expect_the_wrong_one()


async def expect_the_wrong_one() -> None:
    async with open_fake_relay() as relay:
        url = parse_ws_url(relay.base_url + "/$hc/orders?sb-hc-action=listen")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_websocket, url)
            try:
                await relay.next_request("connect")
            finally:
                nursery.cancel_scope.cancel()
