"""Where a key or token is kept, and the only way to its text.

A file is read again each time, so that a key which was renewed counts from the next token on.

A key file of the user that the program runs as has to be closed to everybody else: he can see to that, and forgets it.
That is ssh(1)'s rule for its keys. Whoever gives the program a file that it does not own, or on a file system that it
cannot write to, as container engines give secrets (0444 of root), has decided himself who reads it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ...errors import ConfigError

__all__ = ["Secret"]

_MAX_BYTES: Final = 65_536
"""A longer file is no key, token or list of users, but a mistake."""

_OTHERS: Final = 0o077
"""Any permission of the group or of everybody."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret's place.

    Attributes:
      kind: ``file``, ``env``, ``credential`` (a file below ``$CREDENTIALS_DIRECTORY``, systemd.exec(5)) or ``inline``.
      value: the path, the variable's name, the credential's name, or the secret itself.
      source: the file and line that name it, for messages.
    """

    kind: Literal["file", "env", "credential", "inline"]
    value: str = field(repr=False)
    source: str = field(default="", compare=False)

    def __str__(self) -> str:
        return "(inline)" if self.kind == "inline" else f"{self.kind}:{self.value}"

    def read(self, environ: Mapping[str, str] = os.environ) -> str:
        """Return the secret without blanks at its ends. Reads a small local file, and does not wait.

        Raises:
          ConfigError: there is none, it is empty, or it is a file of ours that others may open.
        """
        match self.kind:
            case "inline":
                text = self.value
            case "env":
                text = environ.get(self.value, "")
            case "credential":
                directory = environ.get("CREDENTIALS_DIRECTORY", "")
                if not directory:
                    raise self._error(f"the credential {self.value} is not there: CREDENTIALS_DIRECTORY is not set")
                text = self._read_file(Path(directory, self.value), is_ours=False)  # systemd sees to that
            case "file":
                text = self._read_file(Path(self.value), is_ours=True)
        if not text.strip():
            raise self._error(f"{self} holds nothing")
        return text.strip()

    @property
    def is_public(self) -> bool:
        """Whether it is a file that every user of this machine may open. Not for one that cannot be looked at."""
        if self.kind != "file":
            return False
        try:
            return bool(os.stat(self.value).st_mode & 0o007)
        except OSError:
            return False

    def _read_file(self, path: Path, *, is_ours: bool) -> str:
        try:
            # A pipe that nobody writes to must not stop the whole program.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                found = os.fstat(file.fileno())
                is_fixed = bool(os.fstatvfs(file.fileno()).f_flag & os.ST_RDONLY)
                data = file.read(_MAX_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
        except OSError as error:
            raise self._error(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise self._error(f"{path} is no regular file")
        if is_ours and found.st_uid == os.geteuid() and not is_fixed and found.st_mode & _OTHERS:
            raise self._error(f"{path} can be read by others (mode {found.st_mode & 0o777:03o}); chmod 600 it")
        if len(data) > _MAX_BYTES:
            raise self._error(f"{path} is longer than {_MAX_BYTES} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"{path} is not UTF-8") from error

    def _error(self, message: str) -> ConfigError:
        return ConfigError(message, source=self.source)
