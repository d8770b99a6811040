"""The settings of a manager as the commands see them: read, watched for changes, and added to.

What a command adds is a file of its own, so that a file which a person has written is never rewritten. It lies in the
directory beside the settings, or in the one that ``run --saved`` names: a service that may not write to /etc has it
among its state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...edge.config.load import (
    CONFIG_VARIABLE,
    Loaded,
    connection_file,
    default_files,
    expand_files,
    load,
    remove_connection,
    write_connection,
)
from ...edge.config.settings import HcmConnection
from ...edge.hcm.plan import UnknownConnection
from ...errors import ConfigError
from ..edge_options import edge_environ
from ..exits import ExitCode, StartupError

__all__ = ["SettingsBook"]


@dataclass(frozen=True, slots=True)
class SettingsBook:
    """Where settings are read from and written to.

    Attributes:
      config_files: that were named; none: the default ones.
      saved: directory of what commands add; None: beside the last settings file. Its files count, too.
    """

    config_files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    saved: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def files(self) -> list[Path]:
        """The files that count now, weakest first.

        Raises:
          ConfigError: a directory cannot be read.
        """
        found = expand_files(self.config_files) if self.config_files else default_files(self.environ)
        if self.saved is not None and self.saved.is_dir():
            found += [path for path in expand_files([self.saved]) if path not in found]
        return found

    def load(self) -> Loaded:
        """Read them. Blocks.

        Raises:
          ConfigError: names file, line and key of the first thing that is wrong.
        """
        return load(self.files(), self.environ, self.overrides)

    def signature(self) -> object:
        """A value that changes when a file does, or comes, or goes. Blocks for as long as a few stat calls take."""
        with suppress(ConfigError):
            return tuple(_stamp(path) for path in self.files())
        return None

    def save(self, connection: HcmConnection, *, replaces: bool = False) -> Path:
        """Add a connection, and check that the settings are still good; if not, nothing has changed. Blocks.

        Returns: its file.

        Raises:
          StartupError: the name is taken, with the exit code for it.
          ConfigError: the settings would be wrong, or cannot be written.
        """
        loaded = self.load()
        before = {one.name: one for one in loaded.settings.hcm.connections}.get(connection.name)
        path = self._file(connection.name)
        if before is not None:
            if not replaces:
                text = f"there is a connection {connection.name!r} already; --replace it, or choose another name"
                raise StartupError(text, ExitCode.EXISTS)
            path = self._origin(loaded, connection.name)[0]
        old = path.read_bytes() if path.exists() else None
        write_connection(path, connection)
        try:
            found = {one.name for one in self.load().settings.hcm.connections}
            if connection.name not in found:
                raise ConfigError(f"is not among the settings that are read; {connection.name!r} would be lost there")
        except ConfigError:
            if old is None:
                path.unlink()
            else:
                path.write_bytes(old)
            raise
        return path

    def remove(self, name: str) -> Path:
        """Take out a connection that a command has added. Blocks.

        Returns: the file it was in.

        Raises:
          ConfigError: there is none of this name, or a person has written it down.
        """
        loaded = self.load()
        by_name = {one.name: one for one in loaded.settings.hcm.connections}
        if name not in by_name:
            raise UnknownConnection(name, by_name)
        path, place = self._origin(loaded, name)
        try:
            was_there = remove_connection(path, by_name[name])
        except ConfigError as error:
            raise ConfigError(f"{name!r} stands at {place}, which {error}".replace(f"{path}: ", "")) from error
        if not was_there:
            raise ConfigError(f"{name!r} comes from {place}; take it out there, then: relaycore hcm reload")
        return path

    def _file(self, name: str) -> Path:
        if self.saved is None:
            return connection_file(name, edge_environ(self.config_files, self.environ))
        self.saved.mkdir(mode=0o700, parents=True, exist_ok=True)
        return connection_file(name, {**self.environ, CONFIG_VARIABLE: str(self.saved)})

    def _origin(self, loaded: Loaded, name: str) -> tuple[Path, str]:
        """The file that names a connection, and its line as people read it."""
        index = [one.name for one in loaded.settings.hcm.connections].index(name)
        place = loaded.origins.get(f"hcm.connection.{index}.name", "")
        file = place.rpartition(":")[0]
        if file and Path(file).exists():
            return Path(file), place
        return self._file(name), place or "the environment or an option"


def _stamp(path: Path) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return (path, found.st_mtime_ns, found.st_size, found.st_ino)
