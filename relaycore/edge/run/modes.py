"""The ways in which a program can be led to the relay, which of them to try, and what each leaves out."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

__all__ = ["RunMode", "is_privileged", "modes_to_try", "not_covered"]


class RunMode(enum.StrEnum):
    """How a program finds the names. The table in docs/run.md says which programs each one serves."""

    HOSTS = "hosts"  # a hosts file of its own; all else is the system's
    ISOLATED = "isolated"  # a network of its own in which there is nothing but the names
    ENV = "env"  # variables that name a proxy; the program has to heed them


_FIRST_UNPRIVILEGED_PORT: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

_CAP_NET_BIND_SERVICE: Final = 10


def is_privileged(port: int) -> bool:
    """Whether this process may not listen on a port because it is a low one. Reads ``/proc``; does not wait."""
    try:
        first = int(_FIRST_UNPRIVILEGED_PORT.read_text())
    except (OSError, ValueError):
        first = 1024
    return port < first and not _capabilities() >> _CAP_NET_BIND_SERVICE & 1


def _capabilities() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return 0


def modes_to_try(*, ports: Iterable[int], only_relay: bool) -> Sequence[RunMode]:
    """What ``auto`` means here, the best first.

    The last resort needs no namespaces and no low port. There is none where the program is to reach nothing but the
    relay: a program need not heed a variable.
    """
    if only_relay:
        return (RunMode.ISOLATED,)
    if any(port and is_privileged(port) for port in ports):  # 0 is one that nobody could tell
        return (RunMode.ISOLATED, RunMode.ENV)
    return (RunMode.HOSTS, RunMode.ENV)


def not_covered(mode: RunMode, *, wildcards: Sequence[str] = ()) -> str:
    """What a program cannot count on in a mode, for people.

    Args:
      wildcards: names such as ``*.corp.example``, which no hosts file can say.
    """
    match mode:
        case RunMode.HOSTS:
            named = f"names below {', '.join(name[2:] for name in wildcards)}, " if wildcards else ""
            asking = "programs that ask DNS servers themselves, as c-ares does (use --mode isolated)"
            return f"{named}literal addresses, and {asking}"
        case RunMode.ISOLATED:
            return "literal addresses; nothing but these names can be reached over a network"
        case RunMode.ENV:
            return "programs that do not heed proxy variables"
