"""Answer HTTP requests from behind a firewall: a greeting, an upload that is measured, a clock that streams.

    RELAYCORE_CONNECTION_STRING='Endpoint=sb://...;EntityPath=orders' python examples/hello_http.py

Anything that speaks HTTP can ask, at ``https://HOST/orders/...``; see `relaycore.auth` for the token.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator

import trio

import relaycore


async def answer(request: relaycore.HttpRequest) -> relaycore.HttpResponse | str:
    match request.method, request.suffix:
        case "GET", "clock":
            return relaycore.HttpResponse(headers={"Content-Type": "text/event-stream"}, body=ticks())
        case "GET", name:
            return f"hello {name or 'world'}\n"
        case "POST" | "PUT", _:
            digest = hashlib.sha256()
            async for chunk in request:
                digest.update(chunk)
            return f"{digest.hexdigest()}\n"
        case _:
            return relaycore.HttpResponse(405, {"Allow": "GET, POST, PUT"})


async def ticks() -> AsyncIterator[bytes]:
    for n in range(3):
        yield f"data: {n}\n\n".encode()
        await trio.sleep(0.2)


async def main(connection_string: str) -> None:
    await relaycore.serve_http(connection_string, answer)


if __name__ == "__main__":
    trio.run(main, os.environ["RELAYCORE_CONNECTION_STRING"])
