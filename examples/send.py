"""Connect to whoever listens, send what standard input has, print the answer.

echo hello | RELAYCORE_CONNECTION_STRING='Endpoint=sb://...;EntityPath=orders' python examples/send.py
"""

from __future__ import annotations

import os
import sys

import trio

import relaycore


async def main(connection_string: str, data: bytes) -> bytes:
    answer = b""
    async with relaycore.open_stream(connection_string) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, data)  # beside the reading: the answer may begin before we are done
        async for piece in stream:
            answer += piece
    return answer


async def send(stream: relaycore.Connection, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()  # ends our direction; the answer still comes


if __name__ == "__main__":
    answer = trio.run(main, os.environ["RELAYCORE_CONNECTION_STRING"], sys.stdin.buffer.read())
    sys.stdout.buffer.write(answer)
