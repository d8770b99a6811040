"""Where the files of the edge programs are: settings, sockets of running programs, what is remembered.

Root has the system's places, everybody else those of the XDG base directory specification; systemd's own variables
(``RuntimeDirectory=``, ``StateDirectory=`` in systemd.exec(5)) come first.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ...errors import ConfigError

__all__ = [
    "CONFIG_VARIABLE",
    "connect_socket",
    "connection_file",
    "default_files",
    "expand_files",
    "hcm_socket",
    "main_file",
    "runtime_directory",
    "state_directory",
]

CONFIG_VARIABLE: Final = "RELAYCORE_CONFIG"
"""Environment variable that names the settings: a file, or a directory of ``*.toml`` files."""

_NAME: Final = "relaycore.toml"


def _is_root() -> bool:
    return os.geteuid() == 0


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise ConfigError("there is no home directory; set HOME, or name the files with --config")
    return Path(home)


def _xdg(environ: Mapping[str, str], variable: str, *fallback: str) -> Path:
    base = environ.get(variable, "")
    # XDG base directory specification: relative values are to be ignored
    return Path(base) if os.path.isabs(base) else _home(environ).joinpath(*fallback)


def main_file(environ: Mapping[str, str]) -> Path:
    """The settings file, or directory of files, that counts where none is named. It need not exist."""
    named = environ.get(CONFIG_VARIABLE, "")
    if named:
        return Path(named)
    if _is_root():
        return Path("/etc/relaycore", _NAME)
    return _xdg(environ, "XDG_CONFIG_HOME", ".config") / "relaycore" / _NAME


def _directory_beside(path: Path) -> Path:
    """``/etc/relaycore/relaycore.toml`` has ``/etc/relaycore/relaycore.d``; a directory is its own."""
    return path if path.is_dir() else path.with_name(f"{path.stem}.d")


def _files_in(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.glob("*.toml") if not path.name.startswith(".") and path.is_file())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(directory)) from error


def expand_files(paths: Iterable[Path]) -> list[Path]:
    """Each file, followed by the files of the directory beside it; a directory becomes its files, in their order.

    Raises:
      ConfigError: a directory cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
        found.update(dict.fromkeys(_files_in(_directory_beside(path))))
    return list(found)


def default_files(environ: Mapping[str, str]) -> list[Path]:
    """The settings files that count where none is named, weakest first. A file that the variable names is in the list
    whether it is there or not; a place that nobody named is looked at only.

    Raises:
      ConfigError: a directory cannot be read, or there is no home directory.
    """
    main = main_file(environ)
    is_named = bool(environ.get(CONFIG_VARIABLE))
    return [path for path in expand_files([main]) if path != main or is_named or path.exists()]


def connection_file(name: str, environ: Mapping[str, str]) -> Path:
    """The file that holds a connection or forward which a command has added. It need not exist."""
    if not name:
        raise ConfigError("a connection needs a name")
    shown = quote(name, safe="")
    if shown.startswith("."):
        shown = f"%2E{shown[1:]}"
    return _directory_beside(main_file(environ)) / f"{shown}.toml"


def _first(text: str) -> str:
    """systemd joins several directories with colons; ours is the first."""
    return text.partition(":")[0]


def runtime_directory(environ: Mapping[str, str]) -> Path:
    """The directory of the sockets of running programs; made here, readable by its owner only, where it is ours alone.

    Raises:
      ConfigError: it cannot be made, or belongs to somebody else.
    """
    if given := _first(environ.get("RUNTIME_DIRECTORY", "")):
        return Path(given)
    if os.path.isabs(base := environ.get("XDG_RUNTIME_DIR", "")):
        directory = Path(base, "relaycore")
    elif _is_root():
        directory = Path("/run/relaycore")
    else:
        directory = Path(tempfile.gettempdir(), f"relaycore-{os.geteuid()}")
    return _make_private(directory, "RUNTIME_DIRECTORY")


def state_directory(environ: Mapping[str, str]) -> Path:
    """The directory of what is remembered from one run to the next; made here, readable by its owner only.

    Raises:
      ConfigError: it cannot be made, or belongs to somebody else.
    """
    if given := _first(environ.get("STATE_DIRECTORY", "")):
        return Path(given)
    if os.path.isabs(environ.get("XDG_STATE_HOME", "")) or not _is_root():
        directory = _xdg(environ, "XDG_STATE_HOME", ".local", "state") / "relaycore"
    else:
        directory = Path("/var/lib/relaycore")
    return _make_private(directory, "STATE_DIRECTORY")


def _make_private(directory: Path, variable: str) -> Path:
    """Make a directory of this user, or take the one that is there. ``variable`` names another one, which is not
    looked at."""
    try:
        with suppress(FileExistsError):  # also a link that leads nowhere
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(directory)
    except OSError as error:
        raise ConfigError(f"cannot be made: {error.strerror}", source=str(directory)) from error
    # /tmp is everybody's: somebody may have been there before us.
    if problem := _why_not_ours(directory, found):
        text = f"{problem}; remove it, or set {variable} to a directory of this user"
        raise ConfigError(text, source=str(directory))
    if found.st_mode & 0o077:
        os.chmod(directory, 0o700)
    return directory


def _why_not_ours(directory: Path, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        leads_to = os.readlink(directory)
        return f"is a symbolic link (to {leads_to}), which is not followed: another user could have laid it"
    if not stat.S_ISDIR(found.st_mode):
        return "is a file where a directory is wanted"
    if found.st_uid != os.geteuid():
        return f"is a directory of user {found.st_uid}, and this program runs as user {os.geteuid()}"
    return ""


def hcm_socket(environ: Mapping[str, str]) -> Path:
    """Where a running ``relaycore hcm`` is spoken to by default."""
    return runtime_directory(environ) / "hcm.sock"


def connect_socket(environ: Mapping[str, str]) -> Path:
    """Where a running ``relaycore connect`` is spoken to by default."""
    return runtime_directory(environ) / "connect.sock"
