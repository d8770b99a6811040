"""Standard input and output as Trio streams.

Facts about descriptors 0 and 1, and what they mean for us:

- ``O_NONBLOCK`` belongs to the open file, not to the descriptor, and a terminal is one open file behind standard input,
  output, error and the shell that waits for us. Setting it would make everybody else's writes fail. So nothing is set:
  reading waits for the descriptor to be readable, and then one ``read`` does not block.
- Regular files and ``/dev/null`` are always ready and epoll does not take them; their ``read`` goes to a thread, since
  a disk may take its time.
- A pipe that is writable has room for 4 KiB, and a longer ``write`` blocks. Writing goes to a thread: 64 KiB per
  hand-over cost some 50 µs, which leaves more than a gigabyte per second.
"""

from __future__ import annotations

import os
import stat

import trio

__all__ = ["StandardInput", "StandardOutput"]

CHUNK_BYTES = 65_536


class StandardInput(trio.abc.ReceiveStream):
    """Reads a descriptor that is not ours to close or to change.

    Args:
      fd: the descriptor; 0 is standard input.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        mode = os.fstat(fd).st_mode
        self._can_wait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
        self._is_closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; ``b""`` at the end. A checkpoint.

        Raises:
          trio.ClosedResourceError: after ``aclose``.
          OSError: the descriptor cannot be read.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("standard input was closed here")
        size = max_bytes or CHUNK_BYTES
        if not self._can_wait:
            return await trio.to_thread.run_sync(os.read, self._fd, size, abandon_on_cancel=True)
        await trio.lowlevel.wait_readable(self._fd)
        return os.read(self._fd, size)

    async def aclose(self) -> None:
        """Stop reading; the descriptor stays open."""
        self._is_closed = True
        await trio.lowlevel.checkpoint()


class StandardOutput(trio.abc.SendStream):
    """Writes a descriptor; whoever reads it sees its end when this is closed, which may be before the process ends.

    Args:
      fd: the descriptor; 1 is standard output.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._is_closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. A checkpoint; cancelled, any part of it may have been written, or be written yet.

        Raises:
          trio.ClosedResourceError: after ``aclose``.
          OSError: the descriptor cannot be written; ``BrokenPipeError`` when its reader has gone.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("standard output was closed here")
        await trio.to_thread.run_sync(_write_all, self._fd, bytes(data), abandon_on_cancel=True)

    async def wait_send_all_might_not_block(self) -> None:
        """A checkpoint: whether a write blocks is the thread's business."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Let the reader see the end. The descriptor stays valid and leads to ``/dev/null``, so that no other file gets
        its number."""
        if not self._is_closed:
            self._is_closed = True
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self._fd)
            os.close(nowhere)
        await trio.lowlevel.checkpoint()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
