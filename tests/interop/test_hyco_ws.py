"""What only the Node SDK does, and what the relay makes of it (wire contract 18)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import websockets.trio.client
from interop.payloads import described
from interop.peers import DEFAULT_PLAN, Peer, Target, hyco_ws_listener, hyco_ws_sender, node_command, run_peer
from interop.relay import RunningRelay

from relaycore.config import LimitsConfig

pytestmark = pytest.mark.interop

STORM_SECONDS = 3.0
ROUND_TRIPS = 100


@asynccontextmanager
async def refused_listener(target: Target) -> AsyncIterator[Peer]:
    """A hyco-ws listener whose key the relay does not know, trying again and again for `STORM_SECONDS`."""
    impostor = target.with_key("bm90IHRoZSBrZXk=")
    environment = {
        **impostor.environment(),
        "RELAY_URL": impostor.listen_url("echo"),
        "RELAY_STORM_SECONDS": str(STORM_SECONDS),
    }
    async with run_peer("refused hyco-ws listener", node_command("storm.js"), environment) as peer:
        await peer.wait("storming")
        yield peer


async def test_a_retry_storm_stays_cheap_and_harms_nobody(running: RunningRelay) -> None:
    """spec 18: hyco-ws answers a failed listen with two new ones at once; few are answered, a good pair goes on."""
    plan = DEFAULT_PLAN | {
        "messages": [{"kind": "binary", "bytes": 64}] * ROUND_TRIPS,
        "close": {"code": 1000, "reason": ""},
    }
    limits = LimitsConfig()
    with trio.fail_after(60):
        async with hyco_ws_listener(running.target, "echo"), refused_listener(running.target) as storm:
            started = time.process_time()
            async with hyco_ws_sender(running.target, "echo", "", plan) as sender:
                await sender.wait("close")
                assert sender.all("message") == described(plan["messages"])
            counts = await storm.wait("ended")
            cpu_seconds = time.process_time() - started
        assert counts["refused"] <= limits.refusals_burst + limits.refusals_per_second_per_source * (STORM_SECONDS + 1)
        assert counts["refused"] + counts["cut"] > limits.refusals_burst
        # How many attempts come depends on the machine; what one costs us, beside what it costs Node, much less. In a
        # process that has run thousands of tests it costs more.
        assert cpu_seconds < 3 * counts["cpu_seconds"]
        while running.relay.server.statistics().open_connections:
            await trio.sleep(0.01)
        assert running.relay.server.check_consistency() == []


async def test_the_header_named_0_is_tolerated(plain_target: Target) -> None:
    """spec 18: offered compression, hyco-ws answers in a rendezvous header called ``0``; none is negotiated."""
    with trio.fail_after(30):
        async with hyco_ws_listener(plain_target, "echo") as listener:
            async with websockets.trio.client.connect(
                plain_target.connect_url("echo"),
                additional_headers=plain_target.connect_headers("echo"),
                compression="deflate",
            ) as connection:
                assert connection.protocol.extensions == []
                assert connection.response is not None
                assert "Sec-WebSocket-Extensions" not in connection.response.headers
                await connection.send("hello")
                assert await connection.recv() == "hello"
            await listener.wait("close")


async def test_a_listener_that_closed_gets_no_more_senders(plain_target: Target) -> None:
    """spec 6.1: when the listener has its Close answered, it is not registered any more."""
    with trio.fail_after(30):
        async with hyco_ws_listener(plain_target, "echo") as listener:
            await listener.end_input()
            await listener.wait("ended")
            async with hyco_ws_sender(plain_target, "echo", "", DEFAULT_PLAN) as sender:
                assert (await sender.wait("refused"))["status"] == 404


async def test_a_listener_comes_back_after_the_relay_closed_its_channel(running: RunningRelay) -> None:
    """spec 6.5: hyco-ws reconnects by itself when its control channel ends, and then gets senders again."""
    with trio.fail_after(30):
        async with hyco_ws_listener(running.target, "echo") as listener:
            await running.relay.delete_entity("echo")
            await listener.wait("error")  # its next attempt finds no such endpoint
            await running.relay.create_entity("echo")
            await listener.wait("listening", 2)
            plan = DEFAULT_PLAN | {"messages": [{"kind": "text", "bytes": 5}], "close": {"code": 1000, "reason": ""}}
            async with hyco_ws_sender(running.target, "echo", "", plan) as sender:
                await sender.wait("close")
                assert sender.all("message") == described(plan["messages"])
