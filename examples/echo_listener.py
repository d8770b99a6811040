"""Listen on a hybrid connection and send back whatever comes.

    RELAYCORE_CONNECTION_STRING='Endpoint=sb://...;EntityPath=orders' python examples/echo_listener.py

It stays registered until it is interrupted, through restarts of the relay and lost networks.
"""

from __future__ import annotations

import os

import trio

import relaycore


async def echo(connection: relaycore.Connection) -> None:
    async with connection:  # says goodbye at the end; a connection left open is cut, which the sender sees as a loss
        try:
            async for data in connection:
                await connection.send_all(data)
            await connection.send_eof()
        except trio.BrokenResourceError:
            print(f"{connection.tracking_id}: the sender is gone")


async def main(connection_string: str) -> None:
    async with relaycore.open_listener(connection_string) as listener:
        print("listening")
        await trio.serve_listeners(echo, [listener])


if __name__ == "__main__":
    trio.run(main, os.environ["RELAYCORE_CONNECTION_STRING"])
