"""Plain bytes between two Trio streams: what Trio itself costs, with no protocol at all."""

from __future__ import annotations

import functools

import trio

from .stage import announce, parser, wait_input_closed

READ_BYTES = 65_536


async def pump(source: trio.SocketStream, destination: trio.SocketStream) -> None:
    """Carry bytes one way to their end."""
    try:
        while data := await source.receive_some(READ_BYTES):
            await destination.send_all(data)
        await destination.send_eof()
    except trio.BrokenResourceError:
        pass  # the other direction sees the same end


async def splice(to_port: int, near: trio.SocketStream) -> None:
    """Join one connection to a new one to the far end."""
    async with near, await trio.open_tcp_stream("127.0.0.1", to_port) as far, trio.open_nursery() as nursery:
        nursery.start_soon(pump, near, far)
        nursery.start_soon(pump, far, near)


async def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--to-port", type=int, required=True)
    chosen = options.parse_args()
    async with trio.open_nursery() as nursery:
        serve = functools.partial(
            trio.serve_tcp, functools.partial(splice, chosen.to_port), 0, host="127.0.0.1", backlog=4096
        )
        listeners = await nursery.start(serve)
        announce(chosen.announce, {"port": listeners[0].socket.getsockname()[1]})
        await wait_input_closed()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
