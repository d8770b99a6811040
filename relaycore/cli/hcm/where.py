"""Which manager a command is about: the one that runs, and the settings that it would run with."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

import click

from ...errors import ConfigError
from ..edge_options import edge_options

if TYPE_CHECKING:
    from ...edge.control.client import ControlClient
    from .book import SettingsBook

__all__ = ["SERVICE_SOCKET", "START_COMMAND", "Where", "where_options"]

P = ParamSpec("P")
R = TypeVar("R")

START_COMMAND: Final = "relaycore hcm run"

SERVICE_SOCKET: Final = Path("/run/relaycore/hcm.sock")
"""Where the system's service has its socket, whoever asks."""


@dataclass(frozen=True, slots=True)
class Where:
    """What the options of a command say.

    Attributes:
      socket: the control socket that was named; None: to be found.
    """

    socket: Path | None
    config_files: tuple[Path, ...]
    overrides: tuple[str, ...]

    def book(self) -> SettingsBook:
        """The settings."""
        from .book import SettingsBook

        return SettingsBook(self.config_files, self.overrides)

    def client(self, environ: Mapping[str, str] = os.environ) -> ControlClient:
        """How to reach the manager that runs; whether one does shows when it is asked."""
        from ...edge.control.client import ControlClient

        return ControlClient(self.find_socket(environ), START_COMMAND)

    def find_socket(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The socket that was named, or that the settings name; else the user's own, or the system service's, whichever
        is there."""
        from ...edge.config.load import hcm_socket

        if self.socket is not None:
            return self.socket
        try:
            named = self.book().load().settings.hcm.control.socket
        except ConfigError:
            named = None  # broken settings must not keep anybody from looking at what runs
        if named is not None:
            return named
        try:
            own = hcm_socket(environ)
        except ConfigError:  # the directory is the service's, which may have a user of its own
            return SERVICE_SOCKET
        return SERVICE_SOCKET if not own.exists() and _is_there(SERVICE_SOCKET) else own


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def where_options(function: Callable[Concatenate[Where, P], R]) -> Callable[P, R]:
    """Add ``--socket``, ``--config`` and ``-o``; the command gets a `Where` before all else."""

    @functools.wraps(function)
    def with_where(*args: P.args, **kwargs: P.kwargs) -> R:
        socket = kwargs.pop("control_socket")
        files, overrides = kwargs.pop("config_files"), kwargs.pop("overrides")
        return function(Where(socket, files, overrides), *args, **kwargs)  # type: ignore[arg-type]

    return click.option(
        "--socket",
        "control_socket",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="Control socket of the daemon.  [default: the settings', else that of this user or of the service]",
    )(edge_options(with_where))
