"""A Unix socket that only its user can open, and only one program listens on.

The winner of a lock on the file beside it is that program. The lock goes with its process, however that ended, so a
socket file without one is left over and is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ...errors import ConfigError
from ..owner import give_to
from .protocol import peer_of

__all__ = ["listening_unix"]

BACKLOG: Final = 64

_MAX_PATH_BYTES: Final = 107
"""unix(7): sun_path has 108, the last for the zero."""


@contextmanager
def listening_unix(path: Path, mode: int = 0o600, *, owner: str = "", group: str = "") -> Iterator[socket.socket]:
    """The lock and the listening socket, for as long as the block lasts; then the socket file is removed.

    Args:
      path: its directory is made with mode 0700 where it is missing.
      mode: of the socket file.
      owner, group: whose it is to be, see `give_to`.

    Raises:
      ConfigError: it cannot be made, or another program has it; says which.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ConfigError(f"a socket's path has at most {_MAX_PATH_BYTES} bytes", source=str(path))
    try:
        _prepare_directory(path.parent)
        with _lock(path):
            _remove_stale(path)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                os.fchmod(listening.fileno(), mode)  # before it has a name, so that nobody gets in between
                listening.bind(os.fspath(path))
                made = path.lstat()
                try:
                    give_to(path, owner, group)
                    path.chmod(mode)  # the umask may have taken from it, and a change of the owner
                    listening.listen(BACKLOG)
                    listening.setblocking(False)
                    yield listening
                finally:
                    with suppress(OSError):
                        if os.path.samestat(path.lstat(), made):
                            path.unlink()
    except OSError as error:
        raise ConfigError(f"the socket cannot be made: {error.strerror or error}", source=str(path)) from error


def _prepare_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        what = "a symbolic link that leads to no directory" if directory.is_symlink() else "no directory"
        raise ConfigError(f"is {what}; remove it, or choose another place", source=str(directory)) from None
    mode = directory.stat().st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"others may write to this directory (mode {mode & 0o7777:04o}) and put a socket of theirs in the place of"
            " ours; chmod 700 it, or choose another place",
            source=str(directory),
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock beside the socket. The file stays: removing it would let two programs lock two files."""
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        text = "is a symbolic link, and somebody else's file may be behind it; remove it"
        raise ConfigError(text, source=str(lock)) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise _taken(path, holder) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Take away the socket of a program that has ended. Something else, or a living socket, is an error."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("is there, and is no socket; remove it, or choose another place", source=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a backlog that is full says EAGAIN at once, and is alive
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise _taken(path, "unknown") from None
            if error.errno != errno.ECONNREFUSED:
                raise
        else:
            raise _taken(path, str(peer_of(probe).pid))
    path.unlink()


def _taken(path: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"process {holder} already answers on this socket; stop it first, or give this program a socket of its own",
        source=str(path),
    )
