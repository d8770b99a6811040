"""Asks a running program over its control socket.

Each call has a connection of its own, so that a command may follow events and ask for the status at the same time.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ...errors import ConfigError, ConnectionLost
from .protocol import ControlError, LineReader, NotRunning, encode_line, peer_of

__all__ = ["ControlClient", "EventStream"]

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a program has for what needs no waiting; a busy machine takes a fraction of one."""

_READ_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class ControlClient:
    """How to reach one running program.

    Attributes:
      path: its control socket.
      start_command: what starts it, such as ``relaycore hcm run``; for messages.
    """

    path: Path
    start_command: str

    async def call(self, name: str, /, **arguments: object) -> object:
        """Ask for something and wait for the answer. Events on the way are passed over. Patience is the caller's.

        Returns: what JSON makes of the result.

        Raises:
          NotRunning: nobody listens there.
          ControlError: the program refuses; with the exit code that it wants.
          ConnectionLost: it ended before it answered.
          ConfigError: the socket belongs to somebody else, or speaks something else.
        """
        async with self.stream(name, **arguments) as events:
            async for _ in events:
                pass
            return events.result

    async def ask(self, name: str, /, *, within_s: float = ANSWER_TIMEOUT, **arguments: object) -> object:
        """As `call`, for what a program that turns answers at once.

        Raises:
          ConnectionLost: also for one that does not answer in ``within_s`` seconds; names its process.
        """
        pid = 0
        with trio.move_on_after(within_s):
            async with self.stream(name, **arguments) as events:
                pid = events.pid
                async for _ in events:
                    pass
                return events.result
        who = f"process {pid} at {self.path}" if pid else f"the program at {self.path}"
        kill = f"`kill -KILL {pid}`" if pid else "a signal"
        raise ConnectionLost(
            f"{who} does not answer within {within_s:g} s: it is stopped or hangs; "
            f"wake it with SIGCONT, or end it with {kill} and start it again: {self.start_command}"
        )

    @asynccontextmanager
    async def stream(self, name: str, /, **arguments: object) -> AsyncIterator[EventStream]:
        """Ask for something that tells more than once. Leaving the block ends the call. Errors as `call`; those of the
        call itself come out of the loop over its events."""
        async with await self._connect() as connection:
            with suppress(trio.BrokenResourceError):  # it has turned us away; its words can still be read
                await connection.send_all(encode_line({"do": name, **arguments}))
            yield EventStream(connection)

    async def _connect(self) -> trio.SocketStream:
        try:
            connection = await trio.open_unix_socket(self.path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            text = f"there is no running program at {self.path}; start it with: {self.start_command}"
            raise NotRunning(text) from error
        except PermissionError as error:
            text = f"is not for this user; use the account that runs {self.start_command}, or root"
            raise ConfigError(text, source=str(self.path)) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be used as a control socket: {error}", source=str(self.path)) from error
        peer = peer_of(connection.socket)
        # We may be about to send it a key.
        if peer.uid not in (0, os.geteuid()) and os.geteuid() != 0:
            await trio.aclose_forcefully(connection)
            text = f"belongs to a program of user {peer.uid} (process {peer.pid}), which is not asked"
            raise ConfigError(text, source=str(self.path))
        return connection


class EventStream:
    """The events of one call, by ``async for``.

    Attributes:
      result: of the call, once its events have ended.
      pid: the process that was asked.
    """

    def __init__(self, connection: trio.SocketStream) -> None:
        self.result: object = None
        self.pid = peer_of(connection.socket).pid
        self._connection = connection
        self._reader = LineReader()
        self._has_ended = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> object:
        if not self._has_ended:
            line = await self._next_line()
            if "event" in line:
                return line["event"]
            self._end(line)
        raise StopAsyncIteration

    def _end(self, line: dict[str, object]) -> None:
        self._has_ended = True
        if line.get("ok") is not True:
            text, code = line.get("error"), line.get("exit")
            raise ControlError(str(text or "refused, without a reason"), code if isinstance(code, int) else 1)
        self.result = line.get("result")

    async def _next_line(self) -> dict[str, object]:
        while (line := self._reader.next_object()) is None:
            try:
                data = await self._connection.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise ConnectionLost("the program ended before it had answered")
            self._reader.receive_data(data)
        return line
