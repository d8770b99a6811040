"""Files that commands write: one connection or forward each, readable by its owner only, since it may hold a key."""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from .settings import Forward, HcmConnection
from .showing import entry_document, has_header
from .toml_text import write_document

__all__ = ["remove_connection", "write_connection"]

_MARK: Final = "# Written by relaycore; the commands add and remove write it anew, and keep no comments.\n"

_LISTS: Final = {HcmConnection: ("hcm", "connection"), Forward: ("connect", "forward")}


def write_connection(path: Path, entry: HcmConnection | Forward) -> None:
    """Put an entry into a file, in place of the one with its name, if any. What else is in the file stays.

    The file is of mode 0600 and replaced as a whole; a directory that is missing is made with mode 0700. Blocks.

    Raises:
      ConfigError: it cannot be written, or somebody else has written the file.
    """
    document = _read(path) if path.exists() else {}
    section, name = _LISTS[type(entry)]
    entries = _entries(document, section, name)
    table = entry_document(entry)
    places = [index for index, known in enumerate(entries) if known.get("name") == entry.name]
    if places:
        entries[places[0]] = table
    else:
        entries.append(table)
    _write(path, document)


def remove_connection(path: Path, entry: HcmConnection | Forward) -> bool:
    """Take an entry out of a file that `write_connection` has written; the file goes with its last one. Blocks.

    Returns: whether it was in there.

    Raises:
      ConfigError: the file cannot be written, or a person has written it.
    """
    if not path.exists():
        return False
    document = _read(path)
    section, name = _LISTS[type(entry)]
    entries = _entries(document, section, name)
    rest = [known for known in entries if known.get("name") != entry.name]
    if len(rest) == len(entries):
        return False
    document[section][name] = rest
    if rest or any(_entries(document, *place) for place in _LISTS.values()):
        _write(path, document)
        return True
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot be removed: {error.strerror}", source=str(path)) from error
    return True


def _entries(document: dict[str, Any], section: str, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = document.setdefault(section, {}).setdefault(name, [])
    return entries


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        if not text.startswith(_MARK):
            raise ConfigError("is not one of relaycore's own files; change it by hand", source=str(path))
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except ValueError as error:
        raise ConfigError(f"is not TOML: {error}", source=str(path)) from error


def _write(path: Path, document: dict[str, Any]) -> None:
    kept = {
        section: {name: entries for name, entries in tables.items() if entries}
        for section, tables in document.items()
        if any(tables.values())
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(_MARK + "\n" + write_document(kept, has_header))
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(path)) from error
