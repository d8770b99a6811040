"""Between a connection of the relay and something on this machine: standard streams, a command, or itself.

Half-close is kept wherever the other side of the copy has one: the end of standard input, or of a command's output,
ends our direction of the connection and leaves the other one open; the end of the connection's data closes a command's
input.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import trio

from ..client.connection import Connection, MessageChannel
from ..config import CONNECTION_STRING_VARIABLE
from ..errors import RelayError
from .options import TOKEN_VARIABLE, Form
from .stdio import StandardInput, StandardOutput

__all__ = ["copy_standard_streams", "echo", "run_command"]

MAX_LINE_BYTES: Final = 1_048_576
"""The longest line that becomes a message: what the library takes from the other side without being asked for more."""

_DRAIN_AFTER_EXIT: Final = 2.0
"""Seconds in which a command's output may still come after its exit, from children that hold it open."""


async def copy_standard_streams(
    connection: Connection, form: Form, source: StandardInput, sink: StandardOutput, *, ends_together: bool
) -> None:
    """Copy both ways until both directions have ended. `sink` is closed as soon as the other side's data has ended.

    Args:
      ends_together: whether the end of the other side's data also ends reading `source`. For a terminal, where nobody
        could know that typing on is in vain.

    Raises:
      StreamLost, StreamClosed, StreamGarbled: as the connection does.
      BrokenPipeError: whoever read standard output has gone.
      RelayError: a line is too long, or no UTF-8, for a message.
    """
    async with trio.open_nursery() as nursery:
        sending = trio.CancelScope()

        async def send() -> None:
            with sending:
                await _send(connection, form, source)

        nursery.start_soon(send)
        await _receive(connection, form, sink)
        await sink.aclose()
        if ends_together:
            sending.cancel()


async def echo(connection: Connection, form: Form) -> None:
    """Send everything back until the other side's end, then end too. With messages, each as it came."""
    if form is Form.BYTES:
        async for data in connection:
            await connection.send_all(data)
    else:
        channel = connection.messages()
        async for message in channel:
            await channel.send(message)
    await connection.send_eof()


async def run_command(connection: Connection, form: Form, command: Sequence[str]) -> int:
    """Run `command` with its input and output joined to the connection, until it exits.

    Its standard error is ours. It gets our environment without connection string and token, and does not outlive a
    cancellation: SIGTERM, and SIGKILL 5 seconds later.

    Returns: the exit code.

    Raises:
      OSError: the command cannot be started.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in (CONNECTION_STRING_VARIABLE, TOKEN_VARIABLE)
    }
    async with trio.open_nursery() as nursery:
        start = functools.partial(
            trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False, env=environment
        )
        process: trio.Process = await nursery.start(start)
        assert process.stdin is not None
        assert process.stdout is not None
        has_ended = trio.Event()
        nursery.start_soon(_feed, connection, form, process.stdin)
        nursery.start_soon(_drain, connection, form, process.stdout, has_ended)
        code = await process.wait()
        with trio.move_on_after(_DRAIN_AFTER_EXIT):
            await has_ended.wait()
        nursery.cancel_scope.cancel()
    return code


async def _feed(connection: Connection, form: Form, sink: trio.abc.SendStream) -> None:
    try:
        await _receive(connection, form, sink)
    except trio.BrokenResourceError as error:
        if isinstance(error, RelayError):
            raise  # the connection's end, not the command's
    finally:
        await sink.aclose()


async def _drain(connection: Connection, form: Form, source: trio.abc.ReceiveStream, has_ended: trio.Event) -> None:
    await _send(connection, form, source)
    has_ended.set()


async def _send(connection: Connection, form: Form, source: trio.abc.ReceiveStream) -> None:
    """`source` to the connection, and the end behind it."""
    if form is Form.BYTES:
        async for data in source:
            await connection.send_all(data)
    else:
        channel = connection.messages()
        async with aclosing(_lines(source)) as lines:
            async for line in lines:
                await channel.send(_decode(line) if form is Form.TEXT else line)
    await connection.send_eof()


async def _receive(connection: Connection, form: Form, sink: trio.abc.SendStream) -> None:
    """The connection to `sink`, until the other side's end; each message as a line in the forms that have lines."""
    if form is Form.BYTES:
        async for data in connection:
            await sink.send_all(data)
        return
    channel: MessageChannel = connection.messages()
    async for message in channel:
        await sink.send_all((message.encode() if isinstance(message, str) else message) + b"\n")


async def _lines(source: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """Lines without their ends; what stands behind the last one counts as a line too."""
    buffer = bytearray()
    searched = 0
    async for data in source:
        buffer += data
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end]).removesuffix(b"\r")
            del buffer[: end + 1]
            searched = 0
            yield line
        searched = len(buffer)
        if searched > MAX_LINE_BYTES:
            raise RelayError(
                f"a line is longer than {MAX_LINE_BYTES} bytes; without --text and --lines there is no limit"
            )
    if buffer:
        yield bytes(buffer)


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RelayError("a line is not UTF-8 and cannot be a text message; use --lines for binary messages") from error
