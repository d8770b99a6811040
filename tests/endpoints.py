"""TCP servers on loopback that can be taken away and brought back, and one that says nothing."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import trio

from relaycore.edge.config.settings import Target

Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def echo(stream: trio.SocketStream) -> None:
    """Sends back what comes, and ends when the other side does."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


class Endpoint:
    """A server that can be taken down and brought up at the same port.

    Attributes:
      connections: accepted so far.
      open: being served now.
    """

    def __init__(self, handler: Handler = echo) -> None:
        self.handler = handler
        self.connections = 0
        self.open = 0
        self.port = 0
        self._scope: trio.CancelScope | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def target(self) -> Target:
        return Target("127.0.0.1", self.port)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until `down`; connections are cut then."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        with trio.CancelScope() as self._scope:
            await trio.serve_listeners(self._serve, listeners)

    def down(self) -> None:
        """Refuse from now on."""
        assert self._scope is not None
        self._scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with stream:
                await self.handler(stream)
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1


@contextmanager
def silent_port() -> Iterator[int]:
    """The port of a listener whose queue is full: what dials it hears nothing."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]
