"""Options that the edge commands share: which settings count, and ``config check`` and ``config show``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import click

from ..errors import ConfigError
from .exits import ExitCode
from .options import Seconds

if TYPE_CHECKING:
    from ..edge.config.load import Loaded
    from ..edge.config.secret import Secret
    from ..edge.config.settings import EdgeSettings, Forward, HcmConnection

__all__ = ["config_group", "drain_option", "edge_environ", "edge_options", "load_edge"]

P = ParamSpec("P")
R = TypeVar("R")

_SECRETS: Final = ("key", "token")


def edge_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--config FILE`` as ``config_files`` and ``-o PATH=VALUE`` as ``overrides``; both are tuples for
    `load_edge`."""
    function = click.option(
        "-o",
        "--option",
        "overrides",
        metavar="PATH=VALUE",
        multiple=True,
        help="Set one setting, such as hcm.connection.orders.listeners=2. Repeatable; stronger than all else.",
    )(function)
    return click.option(
        "--config",
        "config_files",
        metavar="FILE",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Settings in TOML: a file, which the files of the directory NAME.d beside it follow, or a directory."
        " Repeatable.  [default: RELAYCORE_CONFIG, else relaycore.toml in /etc/relaycore or ~/.config/relaycore]",
    )(function)


def drain_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--drain SECONDS`` as ``drain``."""
    return click.option(
        "--drain",
        type=Seconds(min=0),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long connections may go on after SIGTERM or SIGINT.",
    )(function)


def edge_environ(config_files: Sequence[Path], environ: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """The environment in which the last of `config_files` is the place where ``add`` writes (`connection_file`)."""
    from ..edge.config.load import CONFIG_VARIABLE

    return {**environ, CONFIG_VARIABLE: str(config_files[-1])} if config_files else environ


def load_edge(
    config_files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    *,
    is_quiet: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """The settings that the options, the environment and the files say. Reads files.

    Args:
      is_quiet: keep warnings to yourself; else they go to standard error.

    Raises:
      ConfigError: names file, line and key of the first thing that is wrong (exit code 3).
    """
    from ..edge.config.load import expand_files, load

    loaded = load(expand_files(config_files) if config_files else None, environ, overrides)
    if not is_quiet:
        for warning in loaded.warnings:
            click.echo(f"relaycore: warning: {warning}", err=True)
    return loaded


def config_group() -> click.Group:
    """The commands ``config check`` and ``config show``, for `hcm` and `connect` alike."""
    group = click.Group("config", help="Look at the settings.", no_args_is_help=True)
    group.add_command(_check)
    group.add_command(_show)
    return group


@click.command("check")
@edge_options
def _check(config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> ExitCode:
    """Say what is wrong with the settings: file, line, key, and the nearest key that exists.

    Exit code 3 where something is. Files that hold keys and certificates are looked at too.
    """
    from ..edge.config.load import check, expand_files
    from .hcm.words import times

    try:
        files = expand_files(config_files) if config_files else None
    except ConfigError as error:
        errors, loaded = [error], None
    else:
        loaded, errors = check(files, os.environ, overrides)
    warnings = list(loaded.warnings) if loaded is not None else []
    if loaded is not None:
        more, doubts = _check_files(loaded.settings)
        errors += more
        warnings += doubts
    for warning in warnings:
        click.echo(f"warning: {warning}")
    for wrong in errors:
        click.echo(f"error: {wrong}")
    if errors or loaded is None:
        return ExitCode.CONFIG
    settings = loaded.settings
    counts = (
        f"{times(len(settings.relays), 'relay')}, {times(len(settings.hcm.connections), 'connection')} to listen on,"
        f" {times(len(settings.connect.forwards), 'forward')}"
    )
    click.echo(f"ok: {counts}, from {', '.join(map(str, loaded.files)) or 'no file'}")
    return ExitCode.OK


@click.command("show")
@click.option("--effective", is_flag=True, help="With all defaults.")
@click.option("--origin", is_flag=True, help="With the place of each setting: file and line, variable, or -o.")
@edge_options
def _show(config_files: tuple[Path, ...], overrides: tuple[str, ...], effective: bool, origin: bool) -> None:
    """Print the settings that count, as TOML and without secrets."""
    from ..edge.config.load import show

    loaded = load_edge(config_files, overrides)
    click.echo(show(loaded, effective=effective, origin=origin), nl=False)


def _check_files(settings: EdgeSettings) -> tuple[list[ConfigError], list[str]]:
    """What `load` leaves for later: whether the secrets and certificates are there.

    Returns: what is wrong, and what may be right where the program runs: another environment, another service.
    """
    errors: list[ConfigError] = []
    doubts: list[str] = []
    secrets: list[Secret] = [] if settings.connect.proxy.users is None else [settings.connect.proxy.users]
    cafiles = {relay.cafile for relay in settings.relays}
    entries: list[HcmConnection | Forward] = [*settings.hcm.connections, *settings.connect.forwards]
    for entry in entries:
        secrets += [secret for name in _SECRETS if (secret := getattr(entry, name)) is not None]
        cafiles.add(entry.relay.cafile)
    for secret in dict.fromkeys(secrets):
        try:
            secret.read()
        except ConfigError as error:
            if secret.kind == "file":
                errors.append(error)
            else:
                doubts.append(str(error))
    for cafile in sorted(path for path in cafiles if path is not None):
        if (wrong := _untrusted(cafile)) is not None:
            errors.append(wrong)
    return errors, doubts


def _untrusted(cafile: Path) -> ConfigError | None:
    from .options import trust

    try:
        trust(cafile)
    except ConfigError as error:
        return error
    return None
