"""Decide about each sender, talk in messages, and report how the listener stands.

    RELAYCORE_CONNECTION_STRING='Endpoint=sb://...;EntityPath=orders' python examples/choosy_listener.py

Senders come to ``orders/<room>``; whoever names no room is turned away.
"""

from __future__ import annotations

import os

import trio

import relaycore


def decide(incoming: relaycore.IncomingConnection) -> relaycore.Accept | relaycore.Reject:
    if not incoming.suffix:
        return relaycore.Reject(404, "Which room?")
    return relaycore.Accept()


async def greet(connection: relaycore.Connection) -> None:
    async with connection.messages() as messages:
        try:
            await messages.send(f"welcome to {connection.suffix}")
            async for message in messages:
                await messages.send(message)
        except trio.BrokenResourceError:
            print(f"{connection.tracking_id}: the sender is gone")


async def report(events: relaycore.EventStream) -> None:
    async for event in events:
        print(event)


async def main(connection_string: str) -> None:
    async with (
        relaycore.open_listener(connection_string, accept=decide, wait_online=False) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(report, listener.events())
        nursery.start_soon(trio.serve_listeners, greet, [listener])


if __name__ == "__main__":
    trio.run(main, os.environ["RELAYCORE_CONNECTION_STRING"])
