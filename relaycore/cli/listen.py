"""``relaycore listen``: a listener that answers each connection with an echo, a command, or standard streams.

Tasks: one prints what the listener tells about itself, one takes connections, each connection has one. A connection
that fails ends alone. SIGINT and SIGTERM end the command in order: the listener deregisters, so that no sender is led
to it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from ..client.connection import Connection
from ..client.invitation import Accept, IncomingConnection, Reject
from ..client.listener import DEFAULT_BACKLOG, Listener, open_listener
from ..errors import ConfigError, RelayError
from ..trace import LogWriter, redact
from .copying import copy_standard_streams, echo, run_command
from .exits import leaves
from .online import STATUS_LINES, describe, report_events
from .options import (
    Form,
    check_stdin_is_free,
    form_options,
    listener_options,
    need_connection_string,
    run,
    trust,
)
from .send import find_token
from .stdio import StandardInput, StandardOutput

__all__ = ["command"]

_MAX_CONNECTIONS: Final = 1_000
"""Connections served at one time; further ones wait in the listener's backlog, and past that are refused with 503."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What to do with connections: a command's words, standard streams, or neither: an echo."""

    form: Form
    words: tuple[str, ...]
    uses_stdio: bool
    keeps_trying: bool


@click.command("listen")
@click.argument("path", required=False)
@click.option("--echo", "mode", flag_value="echo", default=True, help="Send everything back; the default.")
@click.option(
    "--stdio", "mode", flag_value="stdio", help="Join one connection to standard input and output, then leave."
)
@click.option(
    "--exec", "words", metavar="'COMMAND ARG...'", help="Run a command per connection, joined to its input and output."
)
@form_options
@listener_options
def command(
    path: str | None,
    mode: str,
    words: str | None,
    form: Form,
    keep_trying: bool,
    quiet: bool,
    token_file: str | None,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> None:
    """Listen on the hybrid connection PATH and answer what comes.

    Once registered, the listener stays: a lost relay is tried again after 0 to 30 seconds, for ever. PATH may be left
    out where the connection string names one. Keys and tokens come from RELAYCORE_CONNECTION_STRING or files.
    """
    uses_stdio = mode == "stdio"
    if uses_stdio and words is not None:
        raise click.UsageError("--stdio and --exec exclude each other.")
    if uses_stdio:
        check_stdin_is_free(token_file, connection_string_file, connection_string_dash)
    job = _Job(form, _split(words), uses_stdio, keep_trying)
    connection_string = need_connection_string(connection_string_file, connection_string_dash)
    token = find_token(token_file, connection_string)
    ssl_context = trust(cafile)
    # A thread writes: a terminal that nobody reads must not stop connections.
    writer = LogWriter(lambda line: click.echo(line, nl=False, err=True), queue_lines=STATUS_LINES)

    def say(text: str) -> None:
        if not quiet:
            writer.put_nowait(redact(f"relaycore: {' '.join(text.split())}"))

    door = _Door()

    async def act() -> None:
        async with open_listener(
            connection_string,
            path=path,
            accept=door.decide,
            token=token,
            ssl_context=ssl_context,
            wait_online=False,
            backlog=1 if uses_stdio else DEFAULT_BACKLOG,
        ) as listener:
            where = f"{path or connection_string.entity_path} at {connection_string.base_url}"
            await _Listening(listener, door, job, say, where).run()

    try:
        run(act)
    finally:
        writer.close()


def _split(words: str | None) -> tuple[str, ...]:
    """The words of ``--exec`` as a shell would split them; no shell runs."""
    if words is None:
        return ()
    try:
        found = tuple(shlex.split(words))
    except ValueError as error:
        raise click.UsageError(f"--exec: {error}.") from error
    if not found:
        raise click.UsageError("--exec needs a command.")
    if shutil.which(found[0]) is None:
        raise ConfigError(f"there is no command {found[0]!r}", key="--exec")
    return found


class _Door:
    """Lets senders in until it is shut.

    With ``--stdio`` the connection that was taken shuts it. The one that was let in first would not do: it may have
    left again before it got through. Until one is taken, a backlog of one connection keeps the others out.
    """

    def __init__(self) -> None:
        self.is_shut = False

    def decide(self, _: IncomingConnection) -> Accept | Reject:
        return Reject(503, "This listener takes one connection only") if self.is_shut else Accept()


class _Listening:
    """One run of the command, on an open listener."""

    def __init__(self, listener: Listener, door: _Door, job: _Job, say: Callable[[str], None], where: str) -> None:
        self._listener = listener
        self._door = door
        self._job = job
        self._say = say
        self._where = where
        self._count = 0

    async def run(self) -> None:
        """Take connections until a signal comes, or until the one connection of ``--stdio`` has ended.

        Raises:
          RelayError, OSError: the first attempt to register failed, or that one connection did.
        """
        events = self._listener.events()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_signal, signals, nursery.cancel_scope)
                nursery.start_soon(
                    partial(report_events, events, self._where, self._say, keeps_trying=self._job.keeps_trying)
                )
                if self._job.uses_stdio:
                    await self._take_one()
                    nursery.cancel_scope.cancel()
                else:
                    await self._take_all(nursery)

    async def _wait_for_signal(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        async for _ in signals:
            everything.cancel()

    async def _take_one(self) -> None:
        async with await self._listener.accept() as connection:
            self._door.is_shut = True
            self._say(f"connection from {_remote(connection)}")
            await copy_standard_streams(
                connection, self._job.form, StandardInput(), StandardOutput(), ends_together=os.isatty(0)
            )

    async def _take_all(self, nursery: trio.Nursery) -> None:
        free = trio.Semaphore(_MAX_CONNECTIONS)
        while True:
            await free.acquire()
            nursery.start_soon(self._serve, await self._listener.accept(), free)

    async def _serve(self, connection: Connection, free: trio.Semaphore) -> None:
        """One connection, to its end; what goes wrong with it ends nothing else."""
        self._count += 1
        name = f"connection {self._count}"
        self._say(f"{name} from {_remote(connection)}")
        outcome = "ended"
        try:
            async with connection:
                if self._job.words:
                    outcome = (
                        f"ended, command left with {await run_command(connection, self._job.form, self._job.words)}"
                    )
                else:
                    await echo(connection, self._job.form)
        except* (RelayError, OSError, trio.BrokenResourceError) as errors:
            outcome = f"failed: {describe(next(leaves(errors)))}"
        finally:
            free.release()
        self._say(f"{name} {outcome}")


def _remote(connection: Connection) -> str:
    remote = connection.remote_endpoint
    if remote is None:
        return "somewhere"
    return f"[{remote.address}]:{remote.port}" if ":" in remote.address else f"{remote.address}:{remote.port}"
