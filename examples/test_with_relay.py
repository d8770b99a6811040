"""Test a program that listens: a relay in the test's own process, no network, no account.

pytest examples/test_with_relay.py      (needs pytest-trio, with trio_mode = true)
"""

from __future__ import annotations

import trio

import relaycore
from relaycore.testing import open_relay


async def shout(connection: relaycore.Connection) -> None:
    async with connection:
        async for data in connection:
            await connection.send_all(data.upper())


async def test_it_shouts() -> None:
    async with open_relay() as relay:
        await relay.create_entity("orders")
        listening = relay.connection_string("orders", rights=["Listen"])
        sending = relay.connection_string("orders", rights=["Send"])
        async with relaycore.open_listener(listening) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, shout, [listener])
            async with relaycore.open_stream(sending) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"HELLO"
            nursery.cancel_scope.cancel()
