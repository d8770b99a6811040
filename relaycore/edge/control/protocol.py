"""The words on a control socket: one JSON object on each line, both ways.

::

    {"do": "pause", "name": "orders-sql"}          a request: the call, and its arguments beside it
    {"event": {...}}                               any number of these while it runs, where the call makes some
    {"ok": true, "result": {...}}                  the end
    {"ok": false, "error": "text", "exit": 6}      or this, with the exit code for whoever asked

A connection carries one request after the other. Arguments may be secrets, so that neither lines nor values of
arguments are ever logged or repeated in an error.
"""

from __future__ import annotations

import difflib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final, TypeAlias

import msgspec
import trio

from ...errors import ConfigError, ConnectionLost, RelayError

__all__ = [
    "MAX_LINE_BYTES",
    "Arguments",
    "Call",
    "ControlError",
    "Emit",
    "LineReader",
    "NotRunning",
    "Peer",
    "encode_line",
    "near",
    "peer_of",
]

MAX_LINE_BYTES: Final = 4 << 20
"""A longer line is not meant for us. The status of ten thousand connections takes half of it."""

Emit: TypeAlias = Callable[[object], Awaitable[None]]
"""Sends one event to whoever asked. A checkpoint; waits while that client does not read."""


class ControlError(RelayError):
    """A running program refused what it was asked, in its own words.

    Args:
      exit_code: what a command that cannot go on because of this leaves with.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotRunning(ConnectionLost):
    """No program listens on the control socket. The message says how to start one."""

    exit_code = 1  # nothing was said about the relay


@dataclass(frozen=True, slots=True)
class Arguments:
    """What stood beside the call's name, with the checks that JSON does not make.

    Every method raises `ConfigError` for a value of another type, and without a default for one that is missing.
    """

    values: Mapping[str, object] = field(default_factory=dict, repr=False)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise _wrong(name, "a string")
        return value

    def maybe_text(self, name: str) -> str | None:
        """Return a string, or None where there is none."""
        return None if self.values.get(name) is None else self.text(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a yes or no."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise _wrong(name, "true or false")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number; JSON has no other than finite ones."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, "a number")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Return a list of strings; none where it is missing."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong(name, "a list of strings")
        return tuple(value)


Call: TypeAlias = Callable[[Arguments, Emit], Awaitable[object]]
"""What a program does when it is asked. What it returns, and emits, is made of what msgspec can write as JSON. It is
cancelled when whoever asked has gone."""


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"needs {what}", key=name)


class LineReader:
    """Cuts what has come in into lines. Bytes in, objects out."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._max_line_bytes = max_line_bytes

    @property
    def is_full(self) -> bool:
        """Whether there is more in hand than one line may have; read on when `next_object` has taken some."""
        return len(self._buffer) > self._max_line_bytes

    def receive_data(self, data: bytes) -> None:
        """Add what has been read."""
        self._buffer += data

    def next_object(self) -> dict[str, object] | None:
        """Return the object on the next line, or None when more bytes are needed. Empty lines are passed over.

        Raises:
          ConfigError: a line that is no JSON object, or too long. The connection is of no further use.
        """
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if len(line) > self._max_line_bytes:
                break
            if line.strip():
                return _parse(line)
        else:
            self._searched = len(self._buffer)
            if self._searched <= self._max_line_bytes:
                return None
        raise ConfigError(f"a line on the control socket is longer than {self._max_line_bytes} bytes")


def _parse(line: bytes) -> dict[str, object]:
    try:
        found: dict[str, object] = msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        # The error names a byte position or a type; it does not repeat the line, which may hold a key.
        raise ConfigError(f"a line on the control socket is no JSON object: {error}") from None
    return found


def encode_line(value: object) -> bytes:
    """Return one line. JSON keeps line ends inside strings escaped."""
    return msgspec.json.encode(value, enc_hook=_plain) + b"\n"


def _plain(value: object) -> str:
    """Paths travel as texts; msgspec knows all other types that are sent."""
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError


def near(name: str, names: Iterable[str]) -> str:
    """Return a sentence that offers the nearest of the names, or ``""``."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket, when it connected or listened."""

    pid: int
    uid: int


def peer_of(sock: socket.socket | trio.socket.SocketType) -> Peer:
    """Ask the kernel who is at the other end (unix(7), SO_PEERCRED)."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return Peer(pid, uid)
