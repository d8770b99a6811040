"""The hosts file: one marked block in it leads the configured names to their addresses.

What the rest of the file says stays as it is, byte for byte. A name that somebody else has given another address is not
shadowed: whoever asks would get two answers, or a wrong one, so that is an error which names the line.

The file is written in place, not replaced: it may be a mount point itself (containers, `relaycore run`), and whoever
has it open or mounted would keep the old one. All of it goes out in one write, padded to the old length, so that a
reader sees the old text or the new one with empty lines behind it; then it is cut.

Source: hosts(5); connection manager 3.5, 7, 8.6.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import trio

from ...errors import ConfigError
from .status import Redirection

__all__ = [
    "DEFAULT_FILE",
    "HostsFile",
    "HostsPlan",
    "NameCheck",
    "block_lines",
    "check_names",
    "parse_block",
    "plain_name",
]

DEFAULT_FILE: Final = Path("/etc/hosts")

BEGIN: Final = "# relaycore connect: begin. Written by `relaycore connect hosts apply`; do not edit."
END: Final = "# relaycore connect: end"
_BEGIN_MARK: Final = "# relaycore connect: begin"

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_\-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_\-]*[a-z0-9_])?)*")

_LINE = re.compile(r"[^\n]*\n|[^\n]+")

_MAX_BYTES: Final = 16 << 20
"""A longer file is no hosts file; lists against advertisements have a few megabytes."""

_LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for another program that writes the file; it needs milliseconds."""

_LOCK_PAUSE: Final = 0.05

_CHECK_TIMEOUT: Final = 10.0
"""Seconds for one name; a resolver whose servers are silent takes 5 for each."""

_MAX_CHECKS: Final = 16
"""Names that are looked up at one time; each has a thread."""


def plain_name(host: str) -> str | None:
    """A name as a hosts file can hold it; None: a wildcard, an address, or no name."""
    text = host.lower().rstrip(".")
    with contextlib.suppress(UnicodeError):
        text = text if text.isascii() else text.encode("idna").decode("ascii")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(text)
        return None
    return text if _NAME.fullmatch(text) is not None else None


def block_lines(redirections: Iterable[Redirection]) -> list[str]:
    """The lines of the block, markers included; none where no name is left.

    A name of two forwards leads to the first one's address. Wildcards have no place in a hosts file.
    """
    addresses: dict[str, str] = {}
    forwards: dict[str, str] = {}
    for found in redirections:
        name = plain_name(found.host)
        if name is not None and name not in addresses:
            addresses[name] = found.address
            forwards[name] = "".join(char for char in found.forward if char.isprintable())
    lines = [f"{address}\t{name}\t# {forwards[name]}".rstrip("# \t") for name, address in addresses.items()]
    return [BEGIN, *lines, END] if lines else []


def parse_block(text: str) -> list[Redirection]:
    """Read what `block_lines` has written, from wherever it comes. Ports are not in it.

    Raises:
      ConfigError: a line is neither empty, nor a comment, nor a loopback address with names.
    """
    found: list[Redirection] = []
    for number, line in enumerate(text.splitlines(), 1):
        entry, _, comment = line.partition("#")
        words = entry.split()
        if not words:
            continue
        names = [plain_name(word) for word in words[1:]]
        try:
            is_loopback = ipaddress.ip_address(words[0]).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback or not names or None in names:
            raise ConfigError(f"line {number} is no loopback address with names behind it")
        found += [Redirection(comment.strip(), name, words[0], 0) for name in names if name is not None]
    return found


@dataclass(frozen=True, slots=True)
class HostsPlan:
    """What is to be done to a file.

    Attributes:
      text: the whole file afterwards, in bytes as they are.
      added, removed: names and addresses, ``name -> address``; a changed address is in both.
      elsewhere: names that the rest of the file leads to the same address already; they are left out of the block.
    """

    text: bytes
    is_changed: bool
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One name in the file: its line, from 1."""

    line: int
    address: str
    name: str


class HostsFile:
    """One hosts file. Small and local: nothing here is a checkpoint.

    Args:
      path: the file; it has to exist.
    """

    def __init__(self, path: Path = DEFAULT_FILE) -> None:
        self.path = path

    @property
    def backup(self) -> Path:
        """Where the text before the last change is kept."""
        return self.path.with_name(f"{self.path.name}.relaycore-backup")

    def plan(self, redirections: Iterable[Redirection]) -> HostsPlan:
        """What `apply` would do.

        Raises:
          ConfigError: see there.
        """
        return self._plan(self._read(), block_lines(redirections))

    def apply(self, redirections: Iterable[Redirection]) -> HostsPlan:
        """Make the block say this, and nothing else. Doing it again changes nothing.

        Raises:
          ConfigError: the file cannot be read or written; a name is somebody else's; the block is damaged.
        """
        lines = block_lines(redirections)
        with self._locked() as handle:
            old = self._read()
            plan = self._plan(old, lines)
            if plan.is_changed:
                self._write(handle, old, plan.text)
        return plan

    def remove(self) -> HostsPlan:
        """Take the block away. Raises as `apply`."""
        return self.apply(())

    def entries(self) -> list[tuple[int, str, str, bool]]:
        """Every name in the file: line, address, name, and whether it is in our block.

        Raises:
          ConfigError: the file cannot be read, or the block is damaged.
        """
        lines = _split(self._read())
        begin, end = self._find_block(lines)
        return [
            (entry.line, entry.address, entry.name, begin < entry.line <= end)
            for entry in _entries(lines, range(len(lines)))
        ]

    # Reading ---------------------------------------------------------------------------------------------------------

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", source=str(self.path)) from error
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"has more than {_MAX_BYTES} bytes; is it a hosts file?", source=str(self.path))
        return data

    def _find_block(self, lines: Sequence[str]) -> tuple[int, int]:
        """Where the block is: its first line and the one behind its last, from 0; both -1 without one."""
        begins = [number for number, line in enumerate(lines) if line.startswith(_BEGIN_MARK)]
        ends = [number for number, line in enumerate(lines) if line.rstrip() == END]
        if not begins and not ends:
            return -1, -1
        if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
            where = ", ".join(str(number + 1) for number in sorted([*begins, *ends]))
            raise ConfigError(
                f"the markers of relaycore's block do not match (lines {where}); take them, and what is between them,"
                " out by hand, then try again",
                source=str(self.path),
            )
        return begins[0], ends[0] + 1

    def _plan(self, old: bytes, block: Sequence[str]) -> HostsPlan:
        lines = _split(old)
        begin, end = self._find_block(lines)
        inside = range(begin, end) if begin >= 0 else range(0)
        outside = [number for number in range(len(lines)) if number not in inside]
        foreign = _entries(lines, outside)
        wanted = {entry.name: entry.address for entry in _entries(block, range(len(block)))}
        self._refuse_conflicts(foreign, wanted)
        elsewhere = {entry.name for entry in foreign if wanted.get(entry.name) == entry.address}
        kept = [line for line in block if not (names := _entries([line], range(1))) or names[0].name not in elsewhere]
        if len(kept) <= 2:  # the markers alone
            kept = []
        before = {(entry.name, entry.address) for entry in _entries(lines, inside)}
        after = {(entry.name, entry.address) for entry in _entries(kept, range(len(kept)))}
        text = self._rebuilt(lines, begin, end, kept)
        return HostsPlan(
            text,
            text != old,
            tuple(f"{name} -> {address}" for name, address in sorted(after - before)),
            tuple(f"{name} -> {address}" for name, address in sorted(before - after)),
            tuple(sorted(elsewhere)),
        )

    def _refuse_conflicts(self, foreign: Iterable[_Entry], wanted: dict[str, str]) -> None:
        conflicts = [entry for entry in foreign if wanted.get(entry.name, entry.address) != entry.address]
        if conflicts:
            first = conflicts[0]
            others = f", and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
            raise ConfigError(
                f"{first.name} is {first.address} there, and should be {wanted[first.name]}{others}; nothing was"
                " changed. Take that entry out, or take the name out of the forward's hosts",
                source=f"{self.path}:{first.line}",
            )

    @staticmethod
    def _rebuilt(lines: Sequence[str], begin: int, end: int, block: Sequence[str]) -> bytes:
        newline = "\r\n" if lines and all(line.endswith("\r\n") for line in lines) else "\n"
        written = [line + newline for line in block]
        if begin >= 0:
            new = [*lines[:begin], *written, *lines[end:]]
        else:
            new = [*lines, *written]
            if written and lines and not lines[-1].endswith("\n"):
                new[len(lines) - 1] += newline
        return "".join(new).encode("utf-8", "surrogateescape")

    # Writing ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open it for writing, and keep out other processes that do the same."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._lock(handle)
            yield handle
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        # Whoever may read the file may lock it, for as long as he likes.
        stop = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= stop:
                    raise ConfigError(
                        f"another program has had it locked for {_LOCK_TIMEOUT:g} s; `fuser {self.path}` names it",
                        source=str(self.path),
                    ) from error
                time.sleep(_LOCK_PAUSE)
            else:
                return

    def _write(self, handle: int, old: bytes, new: bytes) -> None:
        try:
            _write_backup(self.backup, old, os.fstat(handle))
        except OSError as error:
            raise ConfigError(
                f"cannot be written, so nothing was changed: {error.strerror}", source=str(self.backup)
            ) from error
        try:
            _write_all(handle, new.ljust(len(old), b"\n"))
            os.ftruncate(handle, len(new))
            os.fsync(handle)
        except OSError as error:
            raise ConfigError(
                f"was not written to its end: {error.strerror}; the old text is in {self.backup}", source=str(self.path)
            ) from error

    def _not_writable(self, error: OSError) -> ConfigError:
        advice = ""
        if isinstance(error, PermissionError):
            advice = "; try: relaycore connect hosts print | sudo relaycore connect hosts apply --from -"
        return ConfigError(f"cannot be written: {error.strerror}{advice}", source=str(self.path))


def _split(data: bytes) -> list[str]:
    """Lines with their ends. Bytes that are no UTF-8 survive."""
    return _LINE.findall(data.decode("utf-8", "surrogateescape"))


def _entries(lines: Sequence[str], numbers: Iterable[int]) -> list[_Entry]:
    found: list[_Entry] = []
    for number in numbers:
        words = lines[number].partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = str(ipaddress.ip_address(words[0].partition("%")[0]))
        except ValueError:
            continue
        found += [_Entry(number + 1, address, word.lower().rstrip(".")) for word in words[1:]]
    return found


def _write_all(handle: int, data: bytes) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(handle, data[at:], at)


def _write_backup(path: Path, data: bytes, like: os.stat_result) -> None:
    """Beside the file, readable for the same people; replaced as a whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a process that died, or somebody's link to a file that is none of ours
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write_all(handle, data)
        os.fchmod(handle, like.st_mode & 0o666)
        os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(handle)


# Checking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameCheck:
    """What a program gets that looks a name up.

    Attributes:
      verdict: ``ok``; ``missing``: the name leads nowhere; ``elsewhere``: to other addresses; ``mixed``: to ours and to
        others, of which programs may take any.
      addresses: what it got.
      text: one line for people.
    """

    redirection: Redirection
    verdict: Literal["ok", "missing", "elsewhere", "mixed"]
    addresses: tuple[str, ...]
    text: str


async def check_names(redirections: Iterable[Redirection], file: HostsFile | None = None) -> list[NameCheck]:
    """Look every name up as programs do, by the system's own means. A wildcard is tried with a name below it.

    Args:
      file: to say where an entry stands; None says nothing about it.

    Returns: one check for each, in their order.
    """
    wanted = list(redirections)
    found: dict[int, NameCheck] = {}
    places = _places(file) if file is not None else {}
    limiter = trio.CapacityLimiter(_MAX_CHECKS)

    async def check(position: int, redirection: Redirection) -> None:
        async with limiter:
            found[position] = await _check(redirection, places)

    async with trio.open_nursery() as nursery:
        for position, redirection in enumerate(wanted):
            nursery.start_soon(check, position, redirection)
    return [found[position] for position in range(len(wanted))]


async def _check(redirection: Redirection, places: dict[str, str]) -> NameCheck:
    host = redirection.host.lower().rstrip(".")
    asked = f"relaycore-check{host[1:]}" if host.startswith("*.") else host
    addresses: tuple[str, ...] = ()
    why = "no such name"
    try:
        with trio.fail_after(_CHECK_TIMEOUT):
            answers = await trio.socket.getaddrinfo(asked, redirection.port or None, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
    except trio.TooSlowError:
        why = f"no answer within {_CHECK_TIMEOUT:g} s"
    except (OSError, UnicodeError) as error:
        if not (isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME):
            why = getattr(error, "strerror", None) or str(error)
    expected = redirection.address
    place = f" ({places[asked]})" if asked in places else ""
    shown = ", ".join(addresses)
    if addresses == (expected,):
        return NameCheck(redirection, "ok", addresses, f"{host} -> {expected}{place}")
    if not addresses:
        advice = (
            "a hosts file knows no wildcards; see `relaycore connect dns setup`"
            if host.startswith("*.")
            else "run `relaycore connect hosts apply`, or see `relaycore connect dns setup`"
        )
        return NameCheck(redirection, "missing", (), f"{host} -> NOT redirected ({why}), expected {expected}; {advice}")
    if expected in addresses:
        text = f"{host} -> {shown}{place}: programs may take any of these; only {expected} leads to the relay"
        return NameCheck(redirection, "mixed", addresses, text)
    return NameCheck(
        redirection, "elsewhere", addresses, f"{host} -> {shown}{place}: NOT redirected, expected {expected}"
    )


def _places(file: HostsFile) -> dict[str, str]:
    try:
        return {name: f"{file.path}:{line}" for line, _, name, _ in reversed(file.entries())}
    except ConfigError:
        return {}
