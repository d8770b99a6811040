"""An address of its own for each forward: 127.x.y.z, the same at each start.

Each has one, so that several forwards can have the endpoint's own port, and a name's address does not change below
programs that remember it (connection manager 3.5, 8.6). Linux takes any address of 127.0.0.0/8 without preparation;
other systems want an alias for each.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from ...errors import ConfigError

__all__ = ["LoopbackAddresses", "parse_pool"]

_MAX_BYTES: Final = 1 << 20
"""A longer file is none of ours."""


def parse_pool(text: str) -> ipaddress.IPv4Network:
    """Read a network such as ``127.77.0.0/16``.

    Raises:
      ConfigError: it is none, not below 127.0.0.0/8, or has no room.
    """
    try:
        network = ipaddress.IPv4Network(text.strip())
    except ValueError as error:
        raise ConfigError(f"{text!r} is no network: {error}", key="connect.pool.loopback") from error
    if not network.subnet_of(ipaddress.IPv4Network("127.0.0.0/8")) or network.prefixlen > 30:
        raise ConfigError(f"{text!r} has to be a part of 127.0.0.0/8, at most /30", key="connect.pool.loopback")
    return network


class LoopbackAddresses:
    """Which forward has which address.

    A forward's address is drawn from its name; where two names meet, the later one takes the next free address. What
    was given is remembered in a file, which other processes of this user may write too.

    Args:
      pool: the network to choose from; its first and last address are not given.
      file: where to remember; None remembers nothing beyond this object.

    Attributes:
      trouble: why nothing could be remembered, or ``""``. Addresses then depend on the order of names that meet.
    """

    def __init__(self, pool: str, file: Path | None) -> None:
        self._pool = parse_pool(pool)
        self._file = file
        self._given: dict[str, str] = {}
        self.trouble = ""

    def assign(self, names: Iterable[str]) -> dict[str, str]:
        """Return an address for each name, the one that has had it longest first. Reads and writes a small local file;
        not a checkpoint.

        Raises:
          ConfigError: there are more names than addresses.
        """
        wanted = dict.fromkeys(names)
        with self._locked():
            known = {**self._read(), **self._given}
            added = False
            for name in wanted:
                if name not in known:
                    known[name] = self._choose(name, known, wanted)
                    added = True
            if added:
                self._write(known)
        found = {name: known[name] for name in known if name in wanted}
        self._given |= found
        return found

    def _choose(self, name: str, known: dict[str, str], wanted: Collection[str]) -> str:
        count = self._pool.num_addresses - 2
        taken = set(known.values())
        if len(taken) >= count:
            # Only what nobody asks for any more gives way.
            for old in [old for old in known if old not in wanted and old not in self._given]:
                taken.discard(known.pop(old))
        if len(taken) >= count:
            raise ConfigError(
                f"{self._pool} has {count} addresses, and there are more forwards", key="connect.pool.loopback"
            )
        start = int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:8]) % count
        for step in range(count):
            address = str(self._pool[1 + (start + step) % count])
            if address not in taken:
                return address
        raise AssertionError("counted above")

    def _read(self) -> dict[str, str]:
        """What was remembered and still lies in the pool. A damaged file counts as none."""
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))["addresses"]
            return {
                str(name): str(address)
                for name, address in found.items()
                if ipaddress.IPv4Address(address) in self._pool
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.trouble = f"{self._file} cannot be read: {error}"
            return {}

    def _write(self, known: dict[str, str]) -> None:
        if self._file is None:
            return
        text = json.dumps({"pool": str(self._pool), "addresses": known}, indent=1)
        try:
            handle, temporary = tempfile.mkstemp(prefix=self._file.name, dir=self._file.parent)
            with open(handle, "w") as file:
                file.write(text + "\n")
            os.replace(temporary, self._file)
            self.trouble = ""
        except OSError as error:
            self.trouble = f"{self._file} cannot be written: {error.strerror}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out for the moment of reading and writing; go on without where no lock can be had."""
        with contextlib.ExitStack() as stack:
            if self._file is not None:
                try:
                    self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    lock = stack.enter_context(self._file.with_suffix(".lock").open("ab"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError as error:
                    self.trouble = f"{self._file} cannot be written: {error.strerror}"
            yield
