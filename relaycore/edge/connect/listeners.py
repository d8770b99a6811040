"""Local addresses where programs find a forward: TCP ports, Unix sockets, and sockets that a service manager opened.

Facts, and what they mean for us:

- A Unix socket's file outlives its process. A dead one is replaced; one that somebody listens on is not.
- Between ``bind`` and ``chmod`` a file has the mode that the umask leaves, so the umask takes all but the owner's bits
  away for that moment, and the mode is widened afterwards.
- A full table of descriptors makes ``accept`` fail at once and again; it is tried anew after a while, and those who
  wait stay in the kernel's queue. On Linux it also says what went wrong with a single connection, accept(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from ...errors import ConfigError
from ...net.accept import PASSING_ERRNOS
from ...net.keepalive import keep_alive
from ..config.settings import ListenAt
from ..owner import give_to

__all__ = [
    "Inherited",
    "ListenFailed",
    "LocalDatagrams",
    "LocalListener",
    "inherited_sockets",
    "open_datagrams",
    "open_local",
]

BACKLOG: Final = 1_024
"""Connections that the kernel holds until they are taken."""

_RETRY_S: Final = 0.1
"""Pause after an ``accept`` that failed for want of descriptors or memory."""

_FIRST_FD: Final = 3
"""Where a service manager's descriptors begin, sd_listen_fds(3)."""

_HIGH_PORT_OFFSET: Final = 10_000
"""From a privileged port to the one that is offered instead: 443 becomes 10443."""


class ListenFailed(ConfigError):
    """A local address cannot be opened. The message says why, and what the ways out are.

    Attributes:
      is_port: a port is taken, or needs a privilege.
    """

    def __init__(self, message: str, *, is_port: bool) -> None:
        super().__init__(message)
        self.is_port = is_port


@dataclass
class LocalListener:
    """An open address; its sockets are closed with it.

    Attributes:
      at: what was asked for.
      shown: where it is, for people: ``127.77.41.9:1433``, ``unix:/run/app.sock``.
    """

    at: ListenAt
    shown: str
    sockets: list[trio.SocketListener] = field(repr=False)
    file: Path | None = None
    _inode: int = 0

    async def serve(self, serve: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Give each connection to a task of `nursery`, which may outlive this listener, until cancelled.

        Closes the listener in the end. Connections that nobody has taken by then are reset by the system.
        """
        try:
            async with trio.open_nursery() as accepting:
                for listener in self.sockets:
                    accepting.start_soon(_accept, listener, serve, nursery)
        finally:
            self.close()

    def close(self) -> None:
        """Close it and take its file away. Not a checkpoint; may be called again."""
        for listener in self.sockets:
            listener.socket.close()
        if self.file is not None:
            with contextlib.suppress(OSError):
                # Another process may have put its own there meanwhile.
                if self.file.lstat().st_ino == self._inode:
                    self.file.unlink()
            self.file = None


async def _accept(
    listener: trio.SocketListener, serve: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery
) -> None:
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            await trio.sleep(0 if error.errno in PASSING_ERRNOS else _RETRY_S)
        else:
            nursery.start_soon(serve, stream)


@dataclass
class LocalDatagrams:
    """An open UDP port.

    Attributes:
      socket: bound; closed with this.
    """

    at: ListenAt
    shown: str
    socket: trio.socket.SocketType = field(repr=False)

    def close(self) -> None:
        """Close it. Not a checkpoint; may be called again."""
        self.socket.close()


# Opening -------------------------------------------------------------------------------------------------------------


async def open_local(at: ListenAt, *, address: str = "", port: int = 0) -> LocalListener:
    """Open a TCP port or a Unix socket.

    Args:
      at: what is asked for.
      address: stands for ``auto``.
      port: stands for 0.

    Raises:
      ListenFailed: says why, and the ways out.
    """
    if at.kind == "unix":
        await trio.lowlevel.checkpoint()
        return _open_unix(at)
    host = address if at.host == "auto" else at.host
    port = at.port or port
    try:
        sockets = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise _explain(at, host, port, error) from error
    for each in sockets:
        keep_alive(each.socket)
    shown = _show(host, sockets[0].socket.getsockname()[1])
    return LocalListener(at, shown, sockets)


async def open_datagrams(at: ListenAt, *, address: str = "", port: int = 0) -> LocalDatagrams:
    """Open a UDP port: that of the first address that a name has. Arguments and errors as `open_local`."""
    host = address if at.host == "auto" else at.host
    port = at.port or port
    try:
        [(family, kind, protocol, _, name), *_] = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        opened = trio.socket.socket(family, kind, protocol)
        try:
            await opened.bind(name)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise _explain(at, host, port, error) from error
    return LocalDatagrams(at, f"udp:{_show(host, opened.getsockname()[1])}", opened)


def _show(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _open_unix(at: ListenAt) -> LocalListener:
    path = Path(at.path)
    try:
        _take_stale_away(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor is left
        raise ListenFailed(f"cannot listen on unix:{path}: {error.strerror}", is_port=False) from error
    try:
        previous = os.umask(0o177)
        try:
            listening.bind(at.path)
        finally:
            os.umask(previous)
        inode = path.lstat().st_ino
        try:
            give_to(path, at.owner, at.group)
            os.chmod(path, at.mode)
            listening.listen(BACKLOG)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except ConfigError as error:
        listening.close()
        raise ListenFailed(f"cannot listen on unix:{path}: {error}", is_port=False) from error
    except OSError as error:
        listening.close()
        text = "the path is too long for a socket" if error.errno is None else error.strerror
        advice = ""
        if error.errno == errno.ENOENT:
            advice = f"; make the directory {path.parent} first"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = f"; this user ({os.getuid()}) may not write in {path.parent}"
        raise ListenFailed(f"cannot listen on unix:{path}: {text}{advice}", is_port=False) from error
    opened = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    return LocalListener(at, f"unix:{path}", [opened], path, inode)


def _take_stale_away(path: Path) -> None:
    """Remove a socket's file that nobody listens on.

    Raises:
      ListenFailed: somebody does, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing there, or bind will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise ListenFailed(
            f"cannot listen on unix:{path}: a file is there that is no socket; remove it, or choose another path",
            is_port=False,
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full: somebody is there
        except OSError:
            return
    raise ListenFailed(
        f"cannot listen on unix:{path}: another program listens there; stop it, or choose another path", is_port=False
    )


def _explain(at: ListenAt, host: str, port: int, error: OSError) -> ListenFailed:
    where = _show(host, port)
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EACCES | errno.EPERM:
            high = port + _HIGH_PORT_OFFSET
            return ListenFailed(
                f"cannot listen on {where}: {reason}; ports below 1024 need a privilege. Ways out: start the program"
                " with `relaycore run --mode isolated -- CMD`, which needs none; allow it to everybody with `sysctl"
                f" net.ipv4.ip_unprivileged_port_start={port}`; or to this Python with `setcap"
                f" cap_net_bind_service=+ep {os.path.realpath(sys.executable)}`. Or listen on a high port, listen ="
                f' ["{at.host}:{high}"], and let the program dial {_show(host, high)}',
                is_port=True,
            )
        case _ if _is_taken(error):
            return ListenFailed(
                f"cannot listen on {where}: {reason}; another program listens there, or on all addresses (0.0.0.0)"
                f" of that port: `ss -lntup 'sport = :{port}'` names it. Stop it, or choose another port",
                is_port=True,
            )
        case errno.EADDRNOTAVAIL:
            advice = "choose an address of this machine"
            if host.startswith("127.") and not sys.platform.startswith("linux"):
                advice = f"this system wants each loopback address by name: sudo ifconfig lo0 alias {host} up"
            return ListenFailed(f"cannot listen on {where}: {reason}; {advice}", is_port=True)
        case _:
            return ListenFailed(f"cannot listen on {where}: {reason}", is_port=False)


def _is_taken(error: OSError) -> bool:
    # Trio puts what several addresses said into a group behind an OSError of its own, without an errno for each.
    return error.errno == errno.EADDRINUSE or (
        isinstance(error.__cause__, BaseExceptionGroup)
        and any(isinstance(inner, OSError) and inner.errno == errno.EADDRINUSE for inner in error.__cause__.exceptions)
    )


# Sockets that were opened before us ----------------------------------------------------------------------------------


@dataclass
class Inherited:
    """Listening sockets that a service manager handed over, by the forward that they are named for.

    ``FileDescriptorName=`` of a systemd socket unit is the forward's name; a socket without one of ours is taken for
    the forward whose settings ask for its address.
    """

    sockets: list[tuple[str, socket.socket]] = field(default_factory=list)

    def take(self, name: str) -> Iterator[LocalListener]:
        """Yield what is named for a forward; each once."""
        for pair in [pair for pair in self.sockets if pair[0] == name]:
            self.sockets.remove(pair)
            yield _adopt(pair[1])

    def take_address(self, at: ListenAt, *, address: str = "", port: int = 0) -> LocalListener | None:
        """What stands at an address, or None."""
        host = address if at.host == "auto" else "127.0.0.1" if at.host == "localhost" else at.host
        wanted = at.path if at.kind == "unix" else (host, at.port or port)
        for pair in self.sockets:
            name = pair[1].getsockname()
            if wanted == (name if isinstance(name, str) else name[:2]):
                self.sockets.remove(pair)
                found = _adopt(pair[1])
                found.at = at
                return found
        return None

    def close(self) -> None:
        """Close what nobody took. Not a checkpoint."""
        for _, inherited in self.sockets:
            inherited.close()
        self.sockets.clear()


def _adopt(inherited: socket.socket) -> LocalListener:
    name = inherited.getsockname()
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):  # KeepAlive= of the unit has times of its own
        keep_alive(inherited)
    opened = trio.SocketListener(trio.socket.from_stdlib_socket(inherited))
    if inherited.family == socket.AF_UNIX:
        # The file is the service manager's: it listens on after us.
        return LocalListener(ListenAt("unix", path=name), f"unix:{name}", [opened])
    return LocalListener(ListenAt("tcp", name[0], name[1]), _show(name[0], name[1]), [opened])


def inherited_sockets(environ: Mapping[str, str]) -> Inherited:
    """What ``LISTEN_FDS`` says, for this process; sd_listen_fds(3). Descriptors that do not listen are left alone."""
    found = Inherited()
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return found
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for place in range(int(count)):
        fd = _FIRST_FD + place
        try:
            inherited = socket.socket(fileno=fd)
        except OSError:
            continue
        if inherited.type != socket.SOCK_STREAM or not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            inherited.detach()
            continue
        os.set_inheritable(fd, False)
        found.sockets.append((names[place] if place < len(names) else "", inherited))
    return found
