"""System calls on a socket below a Trio stream, where the way through the stream costs more than the call itself.

Trio tries each operation before it waits, checks for cancellation around it and lets other tasks run. For a small
answer that fits into the socket's buffer anyway, that is three times the price of the call. Whoever sends here lets
others run elsewhere: sending is no checkpoint.
"""

from __future__ import annotations

import os

import trio

from ..vocab import BytesLike

__all__ = ["DirectSocket", "ReadingScope", "direct_socket"]


class ReadingScope:
    """What ends the waiting in `DirectSocket.receive` from outside; a cancel scope for this alone, and much cheaper.

    The waiting ends with `trio.ClosedResourceError`, though nothing is closed. Whoever is about to wait looks at
    ``cancel_called`` first: what was cancelled earlier does not end a wait that comes after.
    """

    __slots__ = ("_socket", "cancel_called")

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket
        self.cancel_called = False

    def cancel(self) -> None:
        """End the waiting, if there is any. Not a checkpoint."""
        if not self.cancel_called:
            self.cancel_called = True
            trio.lowlevel.notify_closing(self._socket)


class DirectSocket:
    """The socket of a stream that belongs to the caller, who alone reads and writes."""

    __slots__ = ("_socket",)

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket

    def reading_scope(self) -> ReadingScope:
        """A scope for the next calls of `receive`."""
        return ReadingScope(self._socket)

    def send_nowait(self, data: BytesLike) -> int:
        """Hand over as much as the socket takes now. Returns: how many bytes that was.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Read once. Returns: ``b""`` at the end of the stream, None when nothing is there yet.

        Raises:
          trio.BrokenResourceError: the connection is lost.
        """
        try:
            return os.read(self._socket.fileno(), max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def receive(self, max_bytes: int) -> bytes:
        """Wait until there is something to read, and read it once.

        It waits before it tries: for peers that have just been answered and have sent nothing yet. A checkpoint;
        cancelled, it loses nothing.

        Raises:
          trio.BrokenResourceError: the connection is lost.
          trio.ClosedResourceError: the socket's `ReadingScope` was cancelled meanwhile.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if (data := self.receive_nowait(max_bytes)) is not None:
                return data


def direct_socket(stream: trio.abc.Stream) -> DirectSocket | None:
    """The socket of a plain TCP stream; None for any other stream, such as TLS."""
    return DirectSocket(stream.socket) if isinstance(stream, trio.SocketStream) else None
