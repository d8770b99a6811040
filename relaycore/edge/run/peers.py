"""Whose connection it is that comes in on a loopback address.

Any user of a machine can connect to its loopback addresses. What is opened for one program must not serve the others:
the system's list of TCP sockets says whose each one is, and both ends of a loopback connection stand in it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from ...net.linger import reset
from ..connect.listeners import LocalListener

__all__ = ["OwnUserOnly", "uid_of_peer"]

_SOCKETS: Final = {Path("/proc/net/tcp"): "", Path("/proc/net/tcp6"): "0000000000000000FFFF0000"}
"""The lists, and what stands before an IPv4 address there: Java's sockets are IPv6 ones that reach IPv4."""

_ROOT: Final = 0


def uid_of_peer(stream: trio.SocketStream) -> int | None:
    """Which user holds the other end of an IPv4 connection within this machine. Reads ``/proc``; does not wait.

    Returns: the user's number; None if nobody holds that end any more. The list may say 0 for what was closed already,
      and that is not root.
    """
    try:
        local, remote = _end(stream.socket.getpeername()), _end(stream.socket.getsockname())
    except OSError:  # it was reset
        return None
    for file, prefix in _SOCKETS.items():
        uid = _find(file, f" {prefix}{local} {prefix}{remote} ")
        if uid is not None:
            return uid
    return None


def _find(file: Path, ends: str) -> int | None:
    try:
        with file.open(encoding="ascii") as lines:
            for line in lines:
                if ends in line:
                    # NUMBER: LOCAL REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE ..., proc(5)
                    words = line.split()
                    return int(words[7]) if words[9] != "0" else None
    except OSError:
        pass
    return None


def _end(name: tuple[str, int]) -> str:
    """An address as the list has it: the machine's byte order, in capitals."""
    (number,) = struct.unpack("=I", socket.inet_aton(name[0]))
    return f"{number:08X}:{name[1]:04X}"


class OwnUserOnly(LocalListener):
    """A listener on an IPv4 loopback address that resets the connections of other users; root's are taken."""

    async def serve(self, serve: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """As any listener."""

        async def serve_own(stream: trio.SocketStream) -> None:
            if uid_of_peer(stream) in (os.geteuid(), _ROOT):
                await serve(stream)
            else:
                await reset(stream)

        await super().serve(serve_own, nursery)
