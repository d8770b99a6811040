"""``relaycore run``: starts a program that reaches the configured names, and ends with its exit code."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .edge_options import edge_options, load_edge
from .exits import ExitCode
from .options import run, verbose_option

if TYPE_CHECKING:
    from ..edge.run.program import Beginning

__all__ = ["command"]

_MODES = ("auto", "hosts", "isolated", "env")

_CANNOT_EXECUTE = 126
_NOT_FOUND = 127


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.argument("command_line", metavar="PROGRAM [ARGUMENT]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    default="auto",
    show_default=True,
    help="How the program finds the names: a hosts file of its own, a network of its own, or proxy variables.",
)
@click.option("--only-relay", is_flag=True, help="The program reaches these names and nothing else: --mode isolated.")
@click.option("--quiet", "-q", is_flag=True, help="No word about the mode and the names on standard error.")
@edge_options
@verbose_option
def command(
    command_line: Sequence[str],
    mode: str,
    only_relay: bool,
    quiet: bool,
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
) -> int:
    """Start PROGRAM so that the names of all forwards lead it to the relay. Needs no privilege.

    PROGRAM keeps its terminal, user, files and exit code; ours is 127 where there is no such program.
    """
    from ..edge.run.modes import RunMode
    from ..edge.run.namespaces import CannotExecute, NoNamespaces
    from ..edge.run.program import run_program

    settings = load_edge(config_files, overrides, is_quiet=quiet).settings.connect

    async def act() -> int:
        return await run_program(
            settings,
            command_line,
            mode=None if mode == "auto" else RunMode(mode),
            only_relay=only_relay,
            tell=_say_nothing if quiet else _say_how,
        )

    try:
        return run(act)
    except CannotExecute as error:
        _say(f"{command_line[0]} cannot be started: {error.strerror}")
        return _NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else _CANNOT_EXECUTE
    except NoNamespaces as error:
        _say(f"{error.strerror}; {_advice(only_relay)}")
        return ExitCode.FAILED


def _advice(only_relay: bool) -> str:
    switch = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    why = "this system gives unprivileged users no namespaces, or none with rights"
    if switch.exists():
        why += f" ({switch} may be the reason)"
    return why if only_relay else f"{why}; --mode env needs none"


def _say_nothing(beginning: Beginning) -> None:
    for trouble in beginning.troubles:
        _say(trouble)


def _say_how(beginning: Beginning) -> None:
    """One line, whatever happened; and one for each forward that cannot be reached."""
    from ..edge.run.modes import not_covered

    names = ", ".join(dict.fromkeys(f"{name.host}:{name.port}" for name in beginning.names)) or "no name"
    passed_over = "".join(f" ({passed})" for passed in beginning.passed_over)
    rest = not_covered(beginning.mode, wildcards=beginning.wildcards)
    _say(f"mode {beginning.mode}{passed_over}: {names}; not covered: {rest}")
    _say_nothing(beginning)


def _say(text: str) -> None:
    from ..trace import redact

    click.echo(redact(f"relaycore: {' '.join(text.split())}"), err=True)
