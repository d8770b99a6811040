"""System calls on a socket below a Trio stream, where the way through the stream costs more than the call itself.

Trio tries each operation before it waits, checks for cancellation around it and lets other tasks run. For a small
answer that fits into the socket's buffer anyway, that is three times the price of the call. Whoever sends here lets
others run elsewhere: sending is no checkpoint.
"""

from __future__ import annotations

import os

import trio

from ..vocab import BytesLike

__all__ = ["DirectSocket", "direct_socket"]


class DirectSocket:
    """The socket of a stream that belongs to the caller, who alone reads and writes."""

    __slots__ = ("_socket",)

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self._socket = socket

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
        """Wait until there is something to read, and read it once. Raises as `receive_nowait`.

        It waits before it tries: for peers that have just been answered and have sent nothing yet. A checkpoint;
        cancelled, it loses nothing.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            if (data := self.receive_nowait(max_bytes)) is not None:
                return data


def direct_socket(stream: trio.abc.Stream) -> DirectSocket | None:
    """The socket of a plain TCP stream; None for any other stream, such as TLS."""
    return DirectSocket(stream.socket) if isinstance(stream, trio.SocketStream) else None
