"""A relay of two picows connections: every frame goes on as it comes, straight from the buffer it was read into.

It dials the far end for each sender, and reads nothing from the sender until the far end has answered.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop  # type: ignore[import-not-found]
from picows import (  # type: ignore[import-not-found]
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
    ws_create_server,
)

from .stage import announce, parser

FRAME_BYTES = 8 << 20


class Side(WSListener):  # type: ignore[misc]
    """One of two joined connections. ``other`` is there before the first frame is."""

    other: WSTransport
    own: WSTransport

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.own = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind is WSMsgType.CLOSE:
            self.other.send_close(frame.get_close_code(), frame.get_close_message())
        elif kind is not WSMsgType.PING and kind is not WSMsgType.PONG:
            self.other.send(kind, frame.get_payload_as_memoryview(), frame.fin)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.other.disconnect()

    def pause_writing(self) -> None:
        self.other.underlying_transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.underlying_transport.resume_reading()


class Sender(Side):
    """The side that came to us."""

    def __init__(self, to_port: int) -> None:
        super().__init__()
        self._to_port = to_port

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        transport.underlying_transport.pause_reading()
        self._joining = asyncio.create_task(self._join())

    async def _join(self) -> None:
        def far_side() -> Side:
            far = Side()
            far.other = self.own
            return far

        try:
            self.other, _ = await ws_connect(
                far_side, f"ws://127.0.0.1:{self._to_port}/bench", max_frame_size=FRAME_BYTES
            )
        except OSError:
            self.own.send_close(WSCloseCode.BAD_GATEWAY)
            self.own.disconnect()
        else:
            self.own.underlying_transport.resume_reading()


async def main(to_port: int, announcement: Path) -> None:
    def sender(_request: object) -> Side:
        return Sender(to_port)

    server = await ws_create_server(sender, "127.0.0.1", 0, max_frame_size=FRAME_BYTES, backlog=4096)
    announce(announcement, {"port": server.sockets[0].getsockname()[1]})
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, ended.set)  # nobody writes there: it is the end
    await ended.wait()


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--to-port", type=int, required=True)
    chosen = options.parse_args()
    uvloop.run(main(chosen.to_port, chosen.announce))
