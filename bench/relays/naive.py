"""The relay that one writes first: a trio-websocket connection on each side, whole messages carried across.

Fairly written: both directions run at once, messages go on as they come, reads are 64 KiB instead of the library's
4 KiB, and messages may be as large as the benchmarks send them. It dials the far end for each sender.
"""

from __future__ import annotations

import functools

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, open_websocket, serve_websocket

from .stage import announce, parser, wait_input_closed

READ_BYTES = 65_536
MESSAGE_BYTES = 4 << 20


async def pump(source: WebSocketConnection, destination: WebSocketConnection) -> None:
    """Carry messages one way until either side closes; the close is carried too."""
    try:
        while True:
            await destination.send_message(await source.get_message())
    except ConnectionClosed as closed:
        reason = closed.reason
        await destination.aclose(reason.code if reason else 1011, reason.reason if reason else None)


async def relay(to_port: int, request: WebSocketRequest) -> None:
    """Join one sender to a new connection to the far end."""
    sender = await request.accept()
    async with (
        open_websocket(
            "127.0.0.1",
            to_port,
            request.path,
            use_ssl=False,
            receive_buffer_size=READ_BYTES,
            max_message_size=MESSAGE_BYTES,
        ) as far,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pump, sender, far)
        nursery.start_soon(pump, far, sender)


async def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--to-port", type=int, required=True)
    chosen = options.parse_args()
    async with trio.open_nursery() as nursery:
        serve = functools.partial(
            serve_websocket,
            functools.partial(relay, chosen.to_port),
            "127.0.0.1",
            0,
            None,
            receive_buffer_size=READ_BYTES,
            max_message_size=MESSAGE_BYTES,
        )
        server = await nursery.start(serve)
        announce(chosen.announce, {"port": server.port})
        await wait_input_closed()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
