"""``relaycore connect hosts``: lead names to their addresses by the hosts file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from ..edge_options import edge_options, load_edge
from ..exits import ExitCode
from ..hcm.words import clean
from ..options import run
from .names import find_names, only

if TYPE_CHECKING:
    from ...edge.connect.hosts import HostsPlan
    from ...edge.connect.status import Redirection

__all__ = ["command"]

_MAX_INPUT: Final = 1 << 20

_file_option = click.option(
    "--file",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("/etc/hosts"),
    show_default=True,
    help="The hosts file.",
)


@click.group("hosts", no_args_is_help=True)
def command() -> None:
    """Lead names to their addresses by the hosts file: one marked block, everything else stays.

    A hosts file knows no wildcards; for those see `relaycore connect dns`.
    """


@command.command("print")
@edge_options
def print_command(config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Print the block, for other means: relaycore connect hosts print | sudo relaycore connect hosts apply --from -"""
    import ipaddress

    from ...edge.connect.hosts import block_lines

    names = _names(config_files, overrides)
    own = [one for one in names if ipaddress.ip_address(one.address).is_loopback]
    for one in names:
        if one not in own:
            text = f"{clean(one.host)} is left out: `--from` takes loopback addresses only, and it has {one.address}"
            click.echo(f"relaycore: warning: {text}", err=True)
    for line in block_lines(own):
        click.echo(line)


@command.command("apply")
@_file_option
@click.option(
    "--from",
    "source",
    metavar="FILE",
    type=click.File("r", encoding="utf-8"),
    help="What `hosts print` printed, instead of the settings; - is standard input.",
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@edge_options
def apply_command(
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
    path: Path,
    source: IO[str] | None,
    dry_run: bool,
) -> None:
    """Write the block. The text before is kept beside the file; doing it again changes nothing.

    Refuses where the file gives one of the names another address already.
    """
    from ...edge.connect.hosts import HostsFile, parse_block

    names = parse_block(source.read(_MAX_INPUT)) if source is not None else _names(config_files, overrides)
    file = HostsFile(path)
    _report(file.plan(names) if dry_run else file.apply(names), path, dry_run)
    for one in names:
        if one.host.startswith("*."):
            click.echo(f"skipped {clean(one.host)}: a hosts file knows no wildcards; see relaycore connect dns setup")


@command.command("remove")
@_file_option
def remove_command(path: Path) -> None:
    """Take the block away."""
    from ...edge.connect.hosts import HostsFile

    _report(HostsFile(path).remove(), path, False)


@command.command("check")
@_file_option
@click.argument("wanted", metavar="[NAME]...", nargs=-1)
@edge_options
def check_command(
    config_files: tuple[Path, ...], overrides: tuple[str, ...], path: Path, wanted: tuple[str, ...]
) -> ExitCode:
    """Look every name up as programs do, and say which of them would get a wrong address (exit code 8).

    NAME is a forward or one of its hosts; without it all are checked.
    """
    from ...edge.connect.hosts import HostsFile, check_names

    names = only(_names(config_files, overrides), wanted)
    if not names:
        click.echo(
            "no such names" if wanted else "no names yet; set hosts for a forward, or start relaycore connect run"
        )
        return ExitCode.CONFIG if wanted else ExitCode.OK
    checks = run(check_names, names, HostsFile(path))
    for check in checks:
        click.echo(f"{' ok ' if check.verdict == 'ok' else 'FAIL'} {clean(check.text)}")
    return ExitCode.OK if all(check.verdict == "ok" for check in checks) else ExitCode.NOT_REDIRECTED


def _names(config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> list[Redirection]:
    return run(find_names, load_edge(config_files, overrides, is_quiet=True))


def _report(plan: HostsPlan, path: Path, is_dry: bool) -> None:
    for text in plan.removed:
        click.echo(f"- {clean(text)}")
    for text in plan.added:
        click.echo(f"+ {clean(text)}")
    for text in plan.elsewhere:
        click.echo(f"= {clean(text)}: another line of the file says so already")
    if not plan.is_changed:
        click.echo(f"{path}: nothing to change")
    elif not is_dry:
        click.echo(f"{path}: written")
    sys.stdout.flush()
