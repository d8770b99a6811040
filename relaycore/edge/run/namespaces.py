"""The program's process before it is the program: in namespaces of its own, opening sockets there for us.

`_enter` says what happens in that process and why; this is our end of its socket.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import trio

__all__ = ["CannotExecute", "Entrance", "NoNamespaces", "open_entrance"]

_ENTER: Final = Path(__file__).with_name("_enter.py")

_RECEIVE_BYTES: Final = 4096

_SILENCED: Final = (
    "/run/systemd/resolve/io.systemd.Resolve",  # nss-resolve; some systems ask it before any file
    "/run/nscd/socket",  # the cache of glibc
)
"""Sockets of daemons that would answer for names from the system's own files."""

_FD: Final = struct.Struct("i")

_END_TIMEOUT: Final = 5.0
"""Seconds that a process has which was asked to end before it became the program."""


class NoNamespaces(OSError):
    """This machine does not let us have namespaces, or not all that we asked for."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(number, f"{step}: {errno.errorcode.get(number, number)} ({os.strerror(number)})")


class CannotExecute(OSError):
    """There is no such program, or it cannot be executed."""

    def __init__(self, number: int) -> None:
        text = os.strerror(number)
        if number == errno.E2BIG:
            text += (
                ": the kernel's limit (execve(2)) for a program's arguments and variables, for all of them together or"
                " for one of them; a few variables are ours"
            )
        super().__init__(number, text)


class Entrance:
    """A process that will be the program; see `open_entrance`."""

    def __init__(self, process: trio.Process, control: trio.socket.SocketType) -> None:
        self.process = process
        self._control = control
        self._requests = trio.SocketStream(control)
        self._turn = trio.Lock()  # each forward asks for its own addresses
        self._is_program = False

    async def enter(self, *, with_network: bool, over: Mapping[Path, Path]) -> bool:
        """Make its namespaces: a view of the file system of its own, and with `with_network` a network of its own.

        Args:
          over: which file (value) the program sees in place of which (key). The value's content may still change, if
            it is written in place: a file renamed over it would not be seen.

        Returns: whether the program, and all that it starts, can be no other user than this one.

        Raises:
          NoNamespaces: the system refuses. The process is of no use any more.
        """
        request = {
            "do": "enter",
            "network": with_network,
            "over": [[str(source), str(target)] for target, source in over.items()],
            "silence": _SILENCED,
        }
        answer, _ = await self._ask(request)
        if not answer["ok"]:
            raise NoNamespaces(answer["step"], answer["errno"])
        return bool(answer["alone"])

    async def listen(self, kind: Literal["tcp", "udp"], host: str, port: int) -> trio.socket.SocketType:
        """Open a socket inside; with a network of its own, any port is free there and none needs a privilege.

        Returns: the socket, listening if it is TCP; the caller owns it.

        Raises:
          OSError: it cannot be bound, no descriptor is left for it, or the process is the program already.
        """
        answer, fds = await self._ask({"do": "listen", "kind": kind, "host": host, "port": port})
        if answer["ok"] and not fds:  # the kernel drops what finds no place here
            answer = {"ok": False, "step": f"listen on {host} port {port}", "errno": errno.EMFILE}
        if not answer["ok"]:
            raise OSError(answer["errno"], f"{answer['step']}: {_why(answer['errno'])}")
        return trio.socket.from_stdlib_socket(socket.socket(fileno=fds[0]))

    async def execute(self, environ: Mapping[str, str]) -> None:
        """Let it become the program, with these variables besides those that it has, and its input and output ours.

        Raises:
          CannotExecute: there is no such program, or the system refuses; the process then ends with 127 or 126, as
            a shell would.
        """
        answer, _ = await self._ask({"do": "execute", "environ": dict(environ)})
        if not answer["ok"]:
            raise CannotExecute(answer["errno"])

    async def _ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """One request and its answer. An end without an answer is how a program begins, and a process may end early."""
        async with self._turn:
            answer, fds = await self._exchange(json.dumps(request).encode() + b"\n")
        if answer:
            return json.loads(answer), fds
        if request["do"] == "execute":
            self._is_program = True
            return {"ok": True}, fds
        if self._is_program:
            raise OSError(errno.EPIPE, "the program has begun, and from then on nothing can be opened in its network")
        code = await self.process.wait()
        raise NoNamespaces(f"the process that makes them ended with {code}", errno.ECHILD)

    async def _exchange(self, line: bytes) -> tuple[bytes, list[int]]:
        answer = b""
        fds: list[int] = []
        try:
            await self._requests.send_all(line)
            while not answer.endswith(b"\n"):
                data, ancillary, _, _ = await self._control.recvmsg(
                    _RECEIVE_BYTES, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC
                )
                if not data:
                    return b"", fds
                answer += data
                fds += [fd for _, _, carried in ancillary for (fd,) in _FD.iter_unpack(carried)]
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return b"", fds
        except trio.Cancelled:
            self._control.close()  # the answer that is still to come would be taken for that of the next request
            raise
        return answer, fds


@asynccontextmanager
async def open_entrance(command: Sequence[str], environ: Mapping[str, str]) -> AsyncIterator[Entrance]:
    """Start the process that will be the program, with our input, output, working directory and process group, and
    the descriptors that we were started with.

    If it is left before its end, by an error or a cancellation, the process is asked to end, and killed after 5 s.

    Raises:
      CannotExecute: the arguments and variables are too long for any program.
      OSError: no process can be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with trio.socket.from_stdlib_socket(ours) as control:
        with theirs:
            theirs.set_inheritable(True)
            start = [sys.executable, "-I", "-S", str(_ENTER), str(theirs.fileno()), *command]
            # Descriptors that we were started with are the program's: a shell's <(...), the job server of make. Ours
            # are not inherited.
            try:
                process = await trio.lowlevel.open_process(start, close_fds=False, env=dict(environ))
            except OSError as error:
                if error.errno == errno.E2BIG:
                    raise CannotExecute(errno.E2BIG) from error
                raise
        try:
            yield Entrance(process, control)
        finally:
            control.close()  # before it is a program, this ends it
            if process.returncode is None:
                await _end(process)  # noqa: ASYNC102 - shields itself


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        with trio.move_on_after(_END_TIMEOUT):
            process.terminate()
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


def _why(number: int) -> str:
    """The system's words for an error, and how many descriptors there are where that is what stands in the way."""
    text = os.strerror(number)
    if number == errno.EMFILE:
        text += f": a process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} here (ulimit -n)"
    return text
