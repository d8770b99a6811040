"""Whose connection it is that comes in on a loopback address.

Any user of a machine can connect to its loopback addresses. What is opened for one program must not serve the others:
the kernel says whose each TCP socket is, and both ends of a loopback connection are sockets of this machine.

Facts, and what they mean for us:

- The kernel finds one connection by its four numbers when asked through ``sock_diag``(7), however many there are. The
  list in ``/proc`` tells the same to whoever reads all of it; where the kernel cannot be asked, or knows nothing, that
  is done, as a kernel without the module for TCP says "no such connection" to everything.
- A socket that its program has closed is nobody's, though it may still send: the kernel then says user 0, and an inode
  of 0. Who opened it cannot be found out any more.
- Java's sockets are IPv6 ones that reach IPv4. The kernel finds them by their IPv4 addresses, and tells the IPv6 ones
  (::ffff:a.b.c.d); the list has them apart.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ...net.linger import reset
from ..config.settings import ListenAt
from ..connect.listeners import LocalListener, open_local

__all__ = ["OwnUserOnly", "open_for_own_user", "uid_of_peer"]

_LISTS: Final = {Path("/proc/net/tcp"): "", Path("/proc/net/tcp6"): "0000000000000000FFFF0000"}
"""The lists, and what stands before an IPv4 address there."""

_ROOT: Final = 0

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_ANY: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, sender."""

_QUESTION: Final = struct.Struct("=BBBxI4s4s12x4s12xIII")
"""``struct inet_diag_req_v2``: family, protocol, extensions, states, both ports, both addresses, interface, cookie."""

_ANSWER: Final = struct.Struct("=BBBB4s16s16sIIIIIIII")
"""``struct inet_diag_msg``: family, state, timer, retries, ports, addresses, interface, cookie, expiry, queues, user,
inode."""

_MAX_ANSWER_BYTES: Final = 4096


def uid_of_peer(stream: trio.SocketStream) -> int | None:
    """Which user holds the other end of an IPv4 connection within this machine. Asks the kernel; does not wait.

    Returns: the user's number; None if nobody holds that end any more.

    Raises:
      OSError: that cannot be found out.
    """
    try:
        theirs, ours = stream.socket.getpeername(), stream.socket.getsockname()
    except OSError:  # it was reset
        return None
    try:
        found = _ask(theirs, ours)
    except (OSError, struct.error):  # a container may forbid it
        found = None
    if found is None:
        found = _look_up(theirs, ours)
    if found is None:
        return None
    uid, inode = found
    return uid if inode else None


def _ask(local: tuple[str, int], remote: tuple[str, int]) -> tuple[int, int] | None:
    """User and inode of the socket between two ends, from the kernel; None if it knows of none.

    Raises:
      OSError: it does not answer such questions.
    """
    ports = struct.pack("!HH", local[1], remote[1])
    ends = socket.inet_aton(local[0]), socket.inet_aton(remote[0])
    question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY, ports, *ends, 0, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + question)
        answer = kernel.recv(_MAX_ANSWER_BYTES, socket.MSG_DONTWAIT)  # it has answered before send returned
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    family, _, _, _, found_ports, *found_ends, _, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    place = slice(12, 16) if family == socket.AF_INET6 else slice(4)
    # Where there is no connection, it may find a socket that listens at the one end.
    is_it = (found_ports, *(end[place] for end in found_ends)) == (ports, *ends)
    return (uid, inode) if is_it else None


def _look_up(local: tuple[str, int], remote: tuple[str, int]) -> tuple[int, int] | None:
    """As `_ask`, from the lists.

    Raises:
      OSError: there is none.
    """
    for file, prefix in _LISTS.items():
        ends = f" {prefix}{_end(local)} {prefix}{_end(remote)} "
        try:
            with file.open(encoding="ascii") as lines:
                for line in lines:
                    if ends in line:
                        # NUMBER: LOCAL REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE ..., proc(5)
                        words = line.split()
                        return int(words[7]), int(words[9])
        except FileNotFoundError:
            if not prefix:  # a machine without IPv6 has only the first
                raise
    return None


def _end(name: tuple[str, int]) -> str:
    """An address as the list has it: the machine's byte order, in capitals."""
    (number,) = struct.unpack("=I", socket.inet_aton(name[0]))
    return f"{number:08X}:{name[1]:04X}"


@dataclass
class OwnUserOnly(LocalListener):
    """A listener on an IPv4 loopback address that resets the connections of other users; root's are taken.

    Attributes:
      takes_closed: take a connection that its program has closed already, whoever that was: a program may end right
        after it wrote. Others can use that to say something, but never hear an answer. Where a connection begins with
        an answer, as on a proxy port, there is nothing to be had from it.
    """

    takes_closed: bool = False

    async def serve(self, serve: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """As any listener."""

        async def serve_own(stream: trio.SocketStream) -> None:
            if self._may_enter(stream):
                await serve(stream)
            else:
                await reset(stream)

        await super().serve(serve_own, nursery)

    def _may_enter(self, stream: trio.SocketStream) -> bool:
        try:
            uid = uid_of_peer(stream)
        except OSError:
            return False
        return self.takes_closed if uid is None else uid in (os.geteuid(), _ROOT)


async def open_for_own_user(
    at: ListenAt, *, address: str = "", port: int = 0, takes_closed: bool = False
) -> LocalListener:
    """Open a TCP port on an IPv4 loopback address for this user and root. Arguments and errors as `open_local`."""
    opened = await open_local(at, address=address, port=port)
    return OwnUserOnly(opened.at, opened.shown, opened.sockets, takes_closed=takes_closed)
