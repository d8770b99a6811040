"""Starts a program as a user without any privilege, also where the tests themselves are run by root.

As a script: ``python unprivileged.py UID DIRECTORY,... PROGRAM [ARGUMENT ...]``. It becomes PROGRAM as user and group
UID, who can read what is below each DIRECTORY even if one above it is closed to others, as root's home is. That is done
by a view of the file system of its own, and not by a capability: the program has none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NOBODY = 65_534

_CLONE_NEWNS = 0x00020000
_MS_BIND = 0x1000
_MS_PRIVATE_REC = 0x4000 | 0x40000


def uid() -> int:
    """Whose rights the program gets: this user's, or nobody's where this is root."""
    return os.geteuid() or NOBODY


def unprivileged(*argv: str | Path) -> list[str]:
    """The command line that starts `argv` so. What this Python is made of can be read there."""
    command = [str(word) for word in argv]
    if os.geteuid() != 0:
        return command
    package = Path(__import__("relaycore").__file__).parent.parent
    needed = ",".join({sys.base_prefix, sys.prefix, str(package), str(Path(__file__).parents[2])})
    return [sys.executable, "-I", "-S", __file__, str(NOBODY), needed, *command]


def _open_the_way(directories: list[Path]) -> None:
    """Put an open directory, with nothing in it but the way to them, over each one that is closed to others."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: Path, kind: str | None, flags: int, data: str | None = None) -> None:
        words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
        if libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()) != 0:
            raise OSError(ctypes.get_errno(), f"mount {target}")

    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), None, _MS_PRIVATE_REC)
    by_door: dict[Path, list[tuple[int, Path]]] = {}
    for directory in directories:
        doors = [door for door in reversed(directory.parents) if not door.stat().st_mode & 0o001]
        if doors:
            by_door.setdefault(doors[0], []).append((os.open(directory, os.O_PATH), directory))
    for door, hidden in by_door.items():
        mount("none", door, "tmpfs", 0, "mode=755")
        for fd, directory in hidden:
            directory.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{fd}", directory, None, _MS_BIND)


def _main(user: int, directories: list[Path], command: list[str]) -> None:
    _open_the_way(directories)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _main(int(sys.argv[1]), [Path(name) for name in sys.argv[2].split(",")], sys.argv[3:])
