"""Whose the file of a Unix socket is."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from pathlib import Path

from ..errors import ConfigError

__all__ = ["give_to"]


def give_to(path: Path, owner: str, group: str) -> None:
    """Make a file somebody else's. Its permission bits may be lost over it.

    Args:
      path: a link is not followed.
      owner, group: by name or number; ``""`` leaves it as it is.

    Raises:
      ConfigError: there is no such user or group, or this process may not.
    """
    if not owner and not group:
        return
    uid, gid = _number("user", owner), _number("group", group)
    try:
        os.chown(path, uid, gid, follow_symlinks=False)
    except OSError as error:
        whom = " and ".join(part for part in (owner and f"user {owner}", group and f"group {group}") if part)
        why = error.strerror
        if error.errno == errno.EPERM:
            why = f"user {os.geteuid()} may not; only root gives files away, others only to groups that they are in"
        raise ConfigError(f"the socket cannot be given to {whom}: {why}") from error


def _number(what: str, name: str) -> int:
    if not name:
        return -1  # chown(2): unchanged
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if what == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no {what} {name!r} on this machine") from None
