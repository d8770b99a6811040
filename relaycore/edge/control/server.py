"""The control socket of a running program.

Who may use it: the user the program runs as, and root. The file's mode says so (0600), the directory too, and the
kernel is asked about each connection, because modes are changed by people who then forget it.

A client that vanishes ends the call it has made. To tell it from one that has only finished sending, as ``echo | nc``
does, a read that ends is not enough; the kernel's POLLHUP is what is meant, and Trio does not wait for it, so it is
looked for once a second.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ...errors import ConfigError, RelayError
from ...net.tasks import alone
from .protocol import Arguments, Call, Emit, LineReader, encode_line, near, peer_of
from .unix import listening_unix

__all__ = ["serve_control"]

_log = logging.getLogger("relaycore.edge.control")

MAX_CLIENTS: Final = 64
"""Connections at one time; further ones are told that it is busy."""

_SEND_TIMEOUT: Final = 10.0
"""Seconds that a client may leave our words unread before it is cut."""

_REQUEST_TIMEOUT: Final = 60.0
"""Seconds of silence between requests."""

_HANG_UP_POLL: Final = 1.0
"""Seconds between two looks for a client that has gone after it finished sending."""

_READ_BYTES: Final = 65_536
_MAX_REQUEST_BYTES: Final = 1 << 20


async def serve_control(
    path: Path,
    calls: Mapping[str, Call],
    *,
    exit_code_for: Callable[[BaseException], int] = lambda _: 1,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on the socket `path` until cancelled. Started once it listens; the file is removed at the end.

    Args:
      path: its directory is made with mode 0700 where it is missing.
      calls: by name. An error of a call is the answer to whoever asked and ends nothing else.
      exit_code_for: what the client's command should leave with after an error.

    Raises:
      ConfigError: the socket cannot be made, or another program has it; says which.
    """
    with listening_unix(path) as listening:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        server = _Server(calls, exit_code_for)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, server.serve, [listener], handler_nursery=nursery))
            task_status.started()


class _Server:
    """Everything but the socket."""

    def __init__(self, calls: Mapping[str, Call], exit_code_for: Callable[[BaseException], int]) -> None:
        self._calls = calls
        self._exit_code_for = exit_code_for
        self._clients = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """One client, to its end. Raises nothing but cancellation."""
        self._clients += 1
        try:
            async with stream:
                await self._serve(_Client(stream))
        finally:
            self._clients -= 1

    async def _serve(self, client: _Client) -> None:
        peer = peer_of(client.stream.socket)
        if peer.uid not in (0, os.geteuid()):
            _log.warning("control socket: user %d (process %d) was turned away", peer.uid, peer.pid)
            await client.send(_refusal(f"user {peer.uid} may not control this program", 4))
            return
        if self._clients > MAX_CLIENTS:
            await client.send(_refusal(f"{MAX_CLIENTS} others are asking already; try again", 1))
            return
        try:
            while (request := await client.next_request()) is not None:
                await self._answer(client, request)
        except ConfigError as error:  # it does not speak our language
            await client.send(_refusal(str(error), 2))

    async def _answer(self, client: _Client, request: dict[str, object]) -> None:
        name = request.pop("do", None)
        call = self._calls.get(name) if isinstance(name, str) else None
        if call is None:
            text = 'a request needs a call\'s name as "do".'
            if isinstance(name, str):
                text = f"this program has no call {name[:40]!r}.{near(name[:40], self._calls)}"
            await client.send(_refusal(f"{text} It knows {', '.join(self._calls)}.", 2))
            return
        answer = await client.run_while_there(partial(self._call, call, Arguments(request), client.emit))
        if answer is not None:
            await client.send(answer)

    async def _call(self, call: Call, arguments: Arguments, emit: Emit) -> bytes:
        """Returns: the line to answer with. What cannot be written as JSON is the call's error, like any other."""
        try:
            with alone():
                return encode_line({"ok": True, "result": await call(arguments, emit)})
        except (RelayError, OSError) as error:
            return _refusal(str(error), self._exit_code_for(error))
        except Exception as error:
            _log.exception("! control socket: a call failed")
            return _refusal(f"internal error: {type(error).__name__}; the program's log shows where", 1)


class _Client:
    """One connection. Nothing here raises because the client does not read, or has gone; `is_gone` says so."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.is_gone = False
        self._reader = LineReader(_MAX_REQUEST_BYTES)
        self._has_finished = False  # sending; it may still read
        self._call: trio.CancelScope | None = None

    async def next_request(self) -> dict[str, object] | None:
        """Return the next request; None when there will be none.

        Raises:
          ConfigError: what came is no request.
        """
        while not self.is_gone:
            found = self._reader.next_object()
            if found is not None or self._has_finished:
                return found
            with trio.move_on_after(_REQUEST_TIMEOUT) as patience:
                await self._read()
            if patience.cancelled_caught:
                break
        return None

    async def run_while_there(self, call: Callable[[], Awaitable[bytes]]) -> bytes | None:
        """Run a call to its end, or until the client has gone. Returns: its result, or None."""
        result: bytes | None = None
        async with trio.open_nursery() as nursery:
            self._call = nursery.cancel_scope
            nursery.start_soon(self._watch)
            result = await call()
            nursery.cancel_scope.cancel()
        self._call = None
        return None if self.is_gone else result

    async def emit(self, event: object) -> None:
        """Send an event of the call that runs. Ends that call where the client does not take it."""
        await self.send(encode_line({"event": event}))
        if self.is_gone:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def send(self, line: bytes) -> None:
        """Send a line, or note that the client does not take it."""
        if not self.is_gone:
            try:
                with trio.fail_after(_SEND_TIMEOUT):
                    await self.stream.send_all(line)
            except (trio.BrokenResourceError, trio.TooSlowError):
                self._give_up()

    async def _watch(self) -> None:
        """Read ahead while a call runs, only to notice that the client goes away."""
        while not (self.is_gone or self._has_finished or self._reader.is_full):
            await self._read()
        while not self.is_gone:
            if _has_hung_up(self.stream.socket.fileno()):
                self._give_up()
            await trio.sleep(_HANG_UP_POLL)

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some(_READ_BYTES)
        except trio.BrokenResourceError:
            self._give_up()
        else:
            self._reader.receive_data(data)
            self._has_finished = not data

    def _give_up(self) -> None:
        self.is_gone = True
        if self._call is not None:
            self._call.cancel()


def _has_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # what is never asked for, and always told
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _refusal(text: str, exit_code: int) -> bytes:
    # A file's name may hold bytes that are no UTF-8.
    return encode_line({"ok": False, "error": text.encode(errors="replace").decode(), "exit": exit_code})
