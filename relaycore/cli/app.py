"""The top of the command line: which commands there are, how errors leave, and nothing that is slow to import."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from click.shell_completion import CompletionItem

import relaycore

if TYPE_CHECKING:
    from .exits import ExitCode

__all__ = ["COMMANDS", "called_as", "cli", "main"]

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "Run a relay.",
    "entity": "Create, show and delete hybrid connections.",
    "keys": "Show, make and renew keys.",
    "listen": "Listen on a hybrid connection and answer what comes.",
    "http-forward": "Publish a local HTTP server on a hybrid connection.",
    "hcm": "Listen on hybrid connections for endpoints near this machine; a daemon and its commands.",
    "asgi": "Serve an ASGI application on a hybrid connection.",
    "run": "Start a program that reaches configured names through the relay.",
    "connect": "Let local programs reach endpoints behind hybrid connections, by name and unchanged.",
    "bridge": "Do what azbridge does, with its flags and files.",
    "send": "Connect to a hybrid connection: standard input to it, its answer to standard output.",
    "token": "Make a shared access signature, or explain one.",
    "ca": "Make a local certificate authority and certificates.",
    "demo": "Send a file through a relay, a listener and a sender on this machine.",
    "bench": "Measure a relay on this machine beside a direct connection.",
    "completion": "Print the completion script for a shell.",
    "version": "Show versions.",
}
"""Every command with its one line of help, in the order of the help page.

``http-forward`` lives in ``cli/http_forward.py``.
"""


class LazyGroup(click.Group):
    """Loads the module of a command when the command is called, and not to show its one line of help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,  # noqa: ANN401 - click's own signature
    ) -> NoReturn:
        """Run a command and leave with its exit code. Errors are one line on standard error, unless ``--debug``."""
        argv = sys.argv[1:] if args is None else list(args)
        stdout = sys.stdout
        try:
            # Not click's own mode: that turns every OSError and every end of a pipe into exit code 1.
            code: object = super().main(argv, prog_name, complete_var or "_RELAYCORE_COMPLETE", False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_quietly()
        except SystemExit:
            if sys.stdout is not stdout:
                _leave_quietly()  # a broken pipe: click muffles standard output and makes an exit code 1 of it
            raise
        except click.exceptions.Exit as exit_:
            sys.exit(exit_.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except (Exception, BaseExceptionGroup) as error:  # Ctrl-C under Trio comes in a group that is no Exception
            sys.exit(_report(error, with_traceback=argv[:1] == ["--debug"]))
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, *, with_traceback: bool) -> ExitCode:
    """Say what went wrong on standard error and choose the exit code."""
    import ssl

    from ..errors import Refused, RelayError
    from ..trace import redact
    from .exits import ExitCode, exit_code_for, leaves

    found = list(leaves(error))
    if any(isinstance(leaf, BrokenPipeError) for leaf in found):
        _leave_quietly()
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
        return ExitCode.INTERRUPTED
    if with_traceback:
        import traceback

        click.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)
    # Of several, the one that says most about what to do: ours before the system's before a bug.
    worst = sorted(
        found, key=lambda leaf: 0 if isinstance(leaf, RelayError) else 1 if isinstance(leaf, OSError) else 2
    )[0]
    is_expected = isinstance(worst, RelayError | OSError)
    text = str(worst) if is_expected and str(worst) else f"internal error: {type(worst).__name__}: {worst}"
    hint = "" if is_expected or with_traceback else " (relaycore --debug ... shows where)"
    if isinstance(worst, Refused) and worst.tracking_id:
        hint = f" (tracking id {worst.tracking_id})"
    elif isinstance(worst.__cause__, ssl.SSLCertVerificationError):
        hint = "; for a certificate of your own authority, name the authority's with --cafile"
    click.echo(redact(f"relaycore: {' '.join(text.split())}{hint}"), err=True)
    return exit_code_for(worst)


def _leave_quietly() -> NoReturn:
    """Whoever read our output has gone, as in ``relaycore entity list | head -1``: no word about it."""
    # The interpreter flushes standard output at exit and would complain again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(141)


def called_as(*, from_anywhere: bool = False) -> str:
    """How this program was called, ready to paste into a shell.

    Args:
      from_anywhere: for a shell whose working directory may be another than ours.
    """
    shown = os.path.abspath if from_anywhere else _short
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return f"{shlex.quote(shown(sys.executable))} -m relaycore"
    found = shutil.which(Path(program).name)
    if found is not None and Path(program).exists() and os.path.samefile(found, program):
        return Path(program).name
    return shlex.quote(shown(program))


def _short(path: str) -> str:
    """`path` relative to the working directory where it lies below it."""
    absolute, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(here.rstrip("/") + "/") else path


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"relaycore {relaycore.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Keys and tokens are never taken from the command line: set RELAYCORE_CONNECTION_STRING, or use a file or"
    " standard input. Exit codes and settings: docs/cli.md, docs/configuration.md.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Stands before the command.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli(debug: bool) -> None:
    """A self-hosted relay, wire-compatible with Azure Relay Hybrid Connections.

    A listener behind a firewall dials out and waits; a sender anywhere dials in; the relay joins the two.
    """


def _open_closed_streams() -> None:
    """Put ``/dev/null`` where the caller left descriptor 0, 1 or 2 closed.

    Otherwise the next file that is opened gets that number, and what is meant for standard error ends up in the store.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is fd: those below it are open
            setattr(sys, name, os.fdopen(nowhere, mode, closefd=False))


def main() -> NoReturn:
    """Entry point of the ``relaycore`` program."""
    _open_closed_streams()
    cli.main(prog_name=called_as())
