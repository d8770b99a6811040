"""Origin servers of a test: they read requests to the byte, record what they saw, and answer as a script says."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Seen:
    """A request as it arrived."""

    line: str
    fields: list[tuple[str, str]]
    connection: int
    body: bytearray = field(default_factory=bytearray, repr=False)
    chunks: list[int] = field(default_factory=list)

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.fields if found.lower() == name.lower()]


class Visitor:
    """One connection of an origin: what its script works with."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, number: int) -> None:
        self.stream = stream
        self.number = number
        self._buffer = bytearray()
        self.has_ended = False

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65_536)
        except trio.BrokenResourceError:
            data = b""
        self._buffer += data
        self.has_ended |= not data
        return bool(data)

    async def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not await self._more():
                raise EOFError
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def take_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if not await self._more():
                raise EOFError
        return await self.take(end + len(mark))

    async def head(self) -> Seen | None:
        """The next request's head; None when the client has hung up instead."""
        try:
            raw = await self.take_until(b"\r\n\r\n")
        except EOFError:
            return None
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        fields = [tuple(line.split(": ", 1)) for line in lines]
        return Seen(first, fields, self.number)

    async def chunk(self) -> bytes:
        """The next chunk; ``b""`` for the last."""
        size = int(await self.take_until(b"\r\n"), 16)
        data = await self.take(size)
        assert await self.take(2) == b"\r\n"
        return data

    async def read_body(self, seen: Seen) -> None:
        if seen.values("Transfer-Encoding"):
            while data := await self.chunk():
                seen.body += data
                seen.chunks.append(len(data))
        elif seen.values("Content-Length"):
            seen.body += await self.take(int(seen.values("Content-Length")[0]))

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_gone(self) -> None:
        """Wait until the client has hung up."""
        while not self.has_ended:
            await self._more()


Script = Callable[[Visitor, Seen], Awaitable[bytes | None]]
"""Gets each head, with the body still to be read, and returns the answer; None hangs up."""


class OriginServer:
    """Records requests, and answers each as the script says; without one, 200 ``ok`` once the body is read.

    Attributes:
      seen: all requests, in the order of their coming.
      connections: how many were accepted.
      open: how many of them are open.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self.scope = trio.CancelScope()
        self.listeners: list[trio.SocketListener] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = self.listeners[0].socket.getsockname()[1]
        task_status.started()
        self.scope = trio.CancelScope()
        with self.scope:
            await trio.serve_listeners(self._serve_connection, self.listeners)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        visitor = Visitor(stream, self.connections)
        try:
            async with stream:
                while (seen := await visitor.head()) is not None:
                    self.seen.append(seen)
                    if self.script is None:
                        await visitor.read_body(seen)
                        answer = OK
                    else:
                        answer = await self.script(visitor, seen)
                    if answer is None:
                        return
                    await visitor.send(answer)
        except (trio.BrokenResourceError, EOFError):
            pass
        finally:
            self.open -= 1


@asynccontextmanager
async def open_origin(script: Script | None = None) -> AsyncIterator[OriginServer]:
    server = OriginServer(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


def accept_101(seen: Seen, *more: str) -> bytes:
    """The answer that opens a WebSocket."""
    key = seen.values("Sec-WebSocket-Key")[0] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    return "\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", *more, "", ""]).encode()


async def hang_up_rudely(visitor: Visitor) -> None:
    """Reset the connection."""
    stream = visitor.stream
    assert isinstance(stream, trio.SocketStream)
    stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()
