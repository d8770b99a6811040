"""Options that several commands share, and the one way in which secrets come in.

A key on a command line is readable by every user of the machine (``ps``) and stays in the shell's history. Connection
strings and tokens therefore come from the environment, a file or standard input, and an option that would take one
refuses it without repeating it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import os
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import click

from ..config import CONNECTION_STRING_VARIABLE, Config, LogConfig, load_config
from ..errors import ConfigError
from ..trace import configure_logging
from ..wire.connection_string import ConnectionString, parse_connection_string

__all__ = [
    "TOKEN_VARIABLE",
    "Form",
    "Seconds",
    "check_stdin_is_free",
    "config_file_option",
    "connection_options",
    "find_connection_string",
    "form_options",
    "listener_options",
    "load_settings",
    "need_connection_string",
    "raise_file_limit",
    "read_secret",
    "run",
    "store_options",
    "trust",
    "verbose_option",
]

TOKEN_VARIABLE: Final = "RELAYCORE_TOKEN"
"""Environment variable that holds a ready token."""

_MAX_SECRET_BYTES: Final = 65_536
"""A file that is longer is not a connection string or token, but a mistake."""

P = ParamSpec("P")
R = TypeVar("R")


class Seconds(click.FloatRange):
    """A span within bounds. ``nan`` is outside of all of them, though it compares with none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As every type of click."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


class Form(enum.Enum):
    """What of a connection is copied."""

    BYTES = "bytes"  # a stream; messages have no meaning
    LINES = "lines"  # one line, without its end, is one binary message
    TEXT = "text"  # one line is one text message


def connection_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--connection-string-file``, its short form ``--connection-string -``, and ``--cafile``."""
    function = click.option(
        "--cafile",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Trust these certificates too (PEM), such as the ca.pem of `relaycore ca create`.",
    )(function)
    function = click.option(
        "--connection-string",
        "connection_string_dash",
        metavar="-",
        callback=_only_dash,
        help="Read the connection string from standard input. Takes nothing but '-': ps shows command lines.",
    )(function)
    return click.option(
        "--connection-string-file",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help=f"Take the connection string from FILE ('-': standard input) instead of {CONNECTION_STRING_VARIABLE}.",
    )(function)


def _only_dash(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "-"):
        raise click.BadParameter(
            f"takes only '-' (standard input); put the connection string into {CONNECTION_STRING_VARIABLE} or a file,"
            " since everybody can read a command line with ps.",
            ctx,
            parameter,
        )
    return value


def find_connection_string(file: str | None, dash: str | None) -> ConnectionString | None:
    """The connection string that the options or the environment name, or None where there is none.

    Raises:
      ConfigError: it cannot be read, or is none.
    """
    source = dash or file
    if source is not None:
        return parse_connection_string(read_secret(source, "connection string"))
    text = os.environ.get(CONNECTION_STRING_VARIABLE, "")
    return parse_connection_string(text.strip()) if text.strip() else None


def need_connection_string(file: str | None, dash: str | None) -> ConnectionString:
    """As :func:`find_connection_string`, for a command that is nothing without one."""
    found = find_connection_string(file, dash)
    if found is None:
        raise ConfigError(
            f"which relay? Put its connection string into {CONNECTION_STRING_VARIABLE}, or give"
            " --connection-string-file FILE"
        )
    return found


def trust(cafile: Path | None) -> ssl.SSLContext | None:
    """TLS trust for a client: the system's, and what `cafile` holds; None is the system's alone.

    Raises:
      ConfigError: the file cannot be read or holds no certificate.
    """
    if cafile is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile)
    except OSError as error:  # also what ssl raises for a file without a certificate
        reason = "no PEM certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"cannot be used as trusted certificates: {reason}", source=str(cafile)) from error
    return context


def read_secret(source: str, what: str) -> str:
    """The text in file `source` (``-``: standard input) without blanks around it. Blocks.

    A terminal is asked for it and does not show what is typed or pasted.

    Raises:
      ConfigError: it cannot be read, is empty or too long; the message never repeats what was read.
    """
    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            if sys.stdin.isatty():
                data = _ask_unseen(f"{what} (not shown), then Enter: ")
            else:
                data = sys.stdin.buffer.read(_MAX_SECRET_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=name) from error
    if len(data) > _MAX_SECRET_BYTES:
        raise ConfigError(f"is too long to be a {what}", source=name)
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigError(f"holds no {what}", source=name)
    return text


def _ask_unseen(prompt: str) -> bytes:
    """One line of the terminal, which does not show it; nothing where it ended instead."""
    import getpass

    try:
        return getpass.getpass(prompt).encode(errors="surrogateescape")
    except EOFError:
        return b""


def config_file_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``--config FILE``."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        envvar="RELAYCORE_CONFIG",
        show_envvar=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="Settings in TOML.",
    )(function)


def store_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add what chooses a local store: ``--store``, ``--config`` and ``--local``."""
    function = click.option(
        "--local",
        is_flag=True,
        help=f"Use the store on this machine even where {CONNECTION_STRING_VARIABLE} is set.",
    )(function)
    function = config_file_option(function)
    return click.option("--store", metavar="PATH", help="Use this store file; as serve --store. Implies --local.")(
        function
    )


def load_settings(config_file: Path | None, overrides: dict[str, object] | None = None) -> Config:
    """Settings from flags, environment, file and defaults."""
    return load_config(config_file, os.environ, overrides or {})


def check_stdin_is_free(*sources: str | None) -> None:
    """Refuse a secret from standard input where that is the data."""
    if "-" in sources:
        raise click.UsageError("Standard input is the data here: take connection string and token from a file.")


def form_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add ``--text`` and ``--lines``; the command gets a ``form``."""

    @functools.wraps(function)
    def with_form(*args: object, text: bool, lines: bool, **others: object) -> R:
        if text and lines:
            raise click.UsageError("--text and --lines exclude each other.")
        form = Form.TEXT if text else Form.LINES if lines else Form.BYTES
        return function(*args, form=form, **others)

    with_lines = click.option("--lines", is_flag=True, help="One line is one binary message, not a piece of a stream.")
    with_text = click.option("--text", is_flag=True, help="One line is one text message, not a piece of a stream.")
    return with_text(with_lines(with_form))


def verbose_option(function: Callable[..., R]) -> Callable[..., R]:
    """Add ``--verbose``: the library's log on standard error while the command runs; without it, errors only."""

    @functools.wraps(function)
    def with_log(*args: object, verbose: int, **others: object) -> R:
        # What comes and goes is said by the commands themselves; what goes wrong in an application only by the log.
        level: Final = "error" if not verbose else "info" if verbose == 1 else "debug"
        writer = configure_logging(LogConfig(level=level))
        try:
            return function(*args, **others)
        finally:
            writer.close()

    return click.option("--verbose", "-v", count=True, help="Log to standard error; twice: everything.")(with_log)


def listener_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add what every command with a listener takes: patience, silence, a token, the connection, and the log."""
    function = connection_options(verbose_option(function))
    function = click.option("--token-file", metavar="FILE", help="Use the token in FILE; it is never renewed.")(
        function
    )
    function = click.option("--quiet", "-q", is_flag=True, help="No status lines on standard error.")(function)
    return click.option(
        "--keep-trying",
        is_flag=True,
        help="Wait for a relay that is not there, or does not know PATH, at the start too.",
    )(function)


def raise_file_limit() -> None:
    """Use as many descriptors as we are allowed: the soft limit of 1024 is there for programs that call select()."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the kernel's own bound may be lower; the soft limit has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(main: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `main` under Trio. Ctrl-C ends it with ``KeyboardInterrupt``."""
    import trio

    return trio.run(lambda: main(*args, **kwargs))
