"""Settings of the edge programs: files, the environment and ``-o`` become one frozen `EdgeSettings`.

Precedence, strongest first: ``-o``, environment, later files, earlier files, defaults. Everything is checked as a
whole: an unknown key, a wrong type or a value out of bounds is a `ConfigError` that names file, line and key, and for
an unknown key the nearest known one. A setting that is misspelt must never be silently without effect.

========================  =======================================================
setting                   where it may stand
========================  =======================================================
``hcm.connection.0.name``  ``[[hcm.connection]]`` / ``name = "orders"`` in a file
\\                         ``RELAYCORE__HCM__CONNECTION__0__NAME=orders``
\\                         ``-o hcm.connection.0.name=orders``
========================  =======================================================

The other modules of this room are reached through this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from .build import build
from .places import (
    CONFIG_VARIABLE,
    connect_socket,
    connection_file,
    default_files,
    expand_files,
    hcm_socket,
    main_file,
    runtime_directory,
    state_directory,
)
from .settings import EdgeSettings
from .showing import show_document
from .sources import Problems, read_sources
from .strings import forward_from_string, hcm_connection_from_string
from .texts import (
    format_bytes,
    format_listen,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_listen,
    parse_rate,
    parse_seconds,
    parse_target,
)
from .toml_text import dotted
from .writing import remove_connection, write_connection

__all__ = [
    "CONFIG_VARIABLE",
    "Loaded",
    "check",
    "connect_socket",
    "connection_file",
    "default_files",
    "expand_files",
    "format_bytes",
    "format_listen",
    "format_rate",
    "format_seconds",
    "forward_from_string",
    "hcm_connection_from_string",
    "hcm_socket",
    "load",
    "main_file",
    "parse_bytes",
    "parse_listen",
    "parse_rate",
    "parse_seconds",
    "parse_target",
    "remove_connection",
    "runtime_directory",
    "show",
    "state_directory",
    "write_connection",
]


@dataclass(frozen=True)
class Loaded:
    """Settings, and where they are from.

    Attributes:
      files: that were read, weakest first.
      origins: for each key that was set, by its dotted path: ``FILE:LINE``, a variable's name, or ``-o``.
      warnings: what is allowed and hardly meant.
    """

    settings: EdgeSettings
    files: tuple[Path, ...]
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def load(files: Sequence[Path] | None, environ: Mapping[str, str], overrides: Sequence[str] = ()) -> Loaded:
    """Read, merge and check settings. Reads files.

    Args:
      files: weakest first; a directory counts for the ``*.toml`` in it. None: `default_files`.
      environ: every ``RELAYCORE__*`` variable in it must be known.
      overrides: ``PATH=VALUE`` texts; an entry of a list is named by its number or its name.

    Raises:
      ConfigError: the first thing that is wrong, with its place in ``source`` and its dotted path in ``key``.
    """
    loaded, errors = check(files, environ, overrides)
    if loaded is None:
        raise errors[0]
    return loaded


def check(
    files: Sequence[Path] | None, environ: Mapping[str, str], overrides: Sequence[str] = ()
) -> tuple[Loaded | None, list[ConfigError]]:
    """As `load`, for a look at all that is wrong.

    Returns: the settings, or None; and what is wrong, in the order in which it was met.
    """
    problems = Problems()
    try:
        if files is None:
            paths = default_files(environ)
        else:
            paths = [path for given in files for path in (expand_files([given]) if given.is_dir() else [given])]
    except ConfigError as error:
        return None, [error]
    root = read_sources(paths, environ, overrides, problems)
    settings = build(root, problems)
    if problems.errors:
        return None, problems.errors
    origins = {dotted(path): source.text for path, source in root.places() if source.text}
    return Loaded(settings, tuple(paths), origins, tuple(problems.warnings)), []


def show(loaded: Loaded, *, effective: bool = False, origin: bool = False) -> str:
    """The settings as a TOML document that could be read again, but for the secrets, which are hidden.

    Args:
      effective: with every default; else what was set, and what differs from its default.
      origin: with the place of each in a comment.
    """
    return show_document(loaded.settings, set(loaded.origins), loaded.origins if origin else {}, effective=effective)
