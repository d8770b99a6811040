"""What a program sees in place of the system's files of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["hosts_text", "resolver_text"]

_BEGIN: Final = "# relaycore run: names that lead to the relay"


def hosts_text(system: str, addresses: Mapping[str, str]) -> str:
    """The system's hosts file, with our names first and nothing else about them.

    An entry of the system's for one of our names would be a second address for some programs, and the only one for
    others; the name is taken out of it, and of a line that names nothing else nothing stays.

    Args:
      addresses: name to address; names are in lower case, without a dot at the end.
    """
    ours = [f"{address}\t{name}" for name, address in addresses.items()]
    return "\n".join([_BEGIN, *ours, "", *_without(system, addresses)]) + "\n"


def _without(system: str, names: Iterable[str]) -> Iterable[str]:
    hidden = set(names)
    for line in system.splitlines():
        entry, mark, comment = line.partition("#")
        words = entry.split()
        kept = [word for word in words[1:] if word.lower().rstrip(".") not in hidden]
        if len(kept) == len(words[1:]):
            yield line
        elif kept:
            yield "\t".join([words[0], " ".join(kept)]) + (f" {mark}{comment}" if mark else "")


def resolver_text(address: str) -> str:
    """A resolv.conf that asks nobody but the stub at `address`."""
    return f"# relaycore run: knows the names that lead to the relay, and no others\nnameserver {address}\n"
