"""``relaycore connect run``: the forwarder as a program of its own.

::

    SIGTERM, SIGINT    take no more connections, let those that are open end, leave; once more: leave at once
    SIGHUP             read the settings again; so does `reload`, and a change of their files
    control socket     status, events, reload, names, stop
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import click
import trio

from ...config import LogConfig
from ...edge.config.load import Loaded, connect_socket, default_files, expand_files
from ...edge.config.settings import ConnectSettings
from ...edge.connect.forwarder import Forwarder
from ...edge.connect.status import ForwardState, Plan
from ...edge.control.notify import Notifier
from ...edge.control.protocol import Arguments, Call, ControlError, Emit
from ...edge.control.server import serve_control
from ...edge.events import Event, EventStream, log_kind
from ...errors import ConfigError
from ...net.tasks import alone
from ...trace import LogWriter, configure_logging, redact
from ..edge_options import drain_option, edge_options, load_edge
from ..exits import ExitCode, StartupError, exit_code_for
from ..online import STATUS_LINES
from ..options import raise_file_limit, run
from .beside import Beside, Counts, summary
from .common import state_file

__all__ = ["command"]

_log = logging.getLogger("relaycore.edge.connect")

_WATCH_S: Final = 2.0
"""Between two looks at the files of the settings."""

_SAME_SIGNAL_S: Final = 0.5
"""A terminal and a shell may both pass on one Ctrl-C; a second wish comes later than that."""


@click.command("run")
@edge_options
@drain_option
@click.option("--no-watch", is_flag=True, help="Read the settings again only when told to, not when files change.")
@click.option("--quiet", "-q", is_flag=True, help="No status lines on standard error.")
@click.option("--verbose", "-v", count=True, help="The library's log, too, beside the status lines; twice: everything.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Log lines instead of status lines, from this level on.  [default: info, with --log-format]",
)
@click.option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    help="Log lines instead of status lines, for people or as JSON objects.  [default: human, with --log-level]",
)
def command(
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
    drain: float,
    no_watch: bool,
    quiet: bool,
    verbose: int,
    log_level: Literal["debug", "info", "warning", "error"] | None,
    log_format: Literal["human", "json"] | None,
) -> int:
    """Open the local addresses of all forwards and carry their connections, until SIGTERM or Ctrl-C.

    Exit code 9 if not a single address can be opened, and there is no proxy port. The settings are read again at
    SIGHUP, with `relaycore connect reload`, and when their files change; connections that are open go on.
    """
    is_logging = log_level is not None or log_format is not None
    if is_logging and (quiet or verbose):
        raise click.UsageError("--quiet and --verbose are about status lines; with a log, give --log-level")
    raise_file_limit()
    loaded = load_edge(config_files, overrides)
    if is_logging:
        log = configure_logging(LogConfig(level=log_level or "info", format=log_format or "human"))
        lines = log
    else:
        log = configure_logging(LogConfig(level=("error", "info", "debug")[min(verbose, 2)]))
        lines = LogWriter(lambda line: click.echo(line, nl=False, err=True), queue_lines=STATUS_LINES)

    def say(text: str) -> None:
        text = " ".join(text.split())
        if is_logging:
            _log.info("%s", text)
        elif not quiet:
            lines.put_nowait(redact(f"relaycore: {text}"))

    def report(event: Event) -> None:
        if is_logging:
            log_kind("connect", event)
        else:
            say(f"{event.name}: {event.text}" if event.name else event.text)

    def find_files() -> Sequence[Path]:
        return expand_files(config_files) if config_files else default_files(os.environ)

    load = partial(load_edge, config_files, overrides, is_quiet=True)
    program = Program(loaded, find_files, load, drain, say, report)
    try:
        run(partial(program.run, watches=not no_watch))
    finally:
        lines.close()
        log.close()
    return ExitCode.INTERRUPTED if program.is_hasty else ExitCode.OK


class Program:
    """The forwarder, and what stands around it in a program.

    Args:
      find_files: those that the settings are in now.
      load: reads the settings again.
      drain_s: for connections to end.
      say: takes a line for people.
      report: takes what happens.
    """

    def __init__(
        self,
        loaded: Loaded,
        find_files: Callable[[], Sequence[Path]],
        load: Callable[[], Loaded],
        drain_s: float,
        say: Callable[[str], None],
        report: Callable[[Event], None],
    ) -> None:
        self._loaded = loaded
        self._find_files = find_files
        self._load = load
        self._drain_s = drain_s
        self._say = say
        self._report_event = report
        self._notifier = Notifier()
        self._forwarder = Forwarder(state_file=state_file())
        self._stopping_since: float | None = None
        self._scope = trio.CancelScope()
        self._has_reported_all = trio.Event()
        self._counts = Counts()
        self._beside = Beside(self._forwarder, lambda: self._settings, self._counts, say)
        self.is_hasty = False

    @property
    def _settings(self) -> ConnectSettings:
        return self._loaded.settings.connect

    async def run(self, *, watches: bool = True) -> None:
        """Run to the end.

        Raises:
          ConfigError: it cannot begin.
        """
        events = self._forwarder.events()
        with alone(), self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._heed_signals, nursery)
                path = self._settings.control.socket or connect_socket(os.environ)
                await nursery.start(partial(serve_control, path, self._calls(nursery), exit_code_for=exit_code_for))
                nursery.start_soon(self._report, events)
                await nursery.start(self._beside.post_events)
                await nursery.start(self._forwarder.run, self._settings)
                self._check_start()
                for kept in self._beside.kept:
                    await nursery.start(kept.run)
                self._say(self._summary())
                self._notifier.ready(self._summary())
                nursery.start_soon(self._notifier.watch)
                if watches:
                    nursery.start_soon(self._watch_files)

    def _check_start(self) -> None:
        forwards = self._forwarder.status().forwards
        is_reached_otherwise = self._settings.proxy.listen is not None  # any port, without a privilege for it
        if forwards and not is_reached_otherwise and all(one.state is ForwardState.FAILED for one in forwards):
            raise StartupError(f"no address could be opened: {forwards[0].last_error}", ExitCode.PORT)

    def _summary(self) -> str:
        return summary(self._forwarder.status())

    async def _report(self, events: EventStream) -> None:
        async for event in events:
            self._report_event(event)
        self._has_reported_all.set()

    # Ending and reloading --------------------------------------------------------------------------------------------

    async def _heed_signals(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload_if_possible()
                else:
                    self._begin_stop(nursery)

    def _begin_stop(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        if self._stopping_since is None:
            self._stopping_since = now
            self._notifier.stopping("waiting for connections to end")
            nursery.start_soon(self._stop)
        elif now - self._stopping_since >= _SAME_SIGNAL_S:
            self.is_hasty = True
            self._scope.cancel()

    async def _stop(self) -> None:
        if self._forwarder.is_running:
            await self._forwarder.stop(self._drain_s)
            await self._has_reported_all.wait()
            await self._beside.wait_posted()
        self._scope.cancel()

    def _reload(self) -> Plan:
        """Read the settings and put them in force.

        Raises:
          ConfigError: they cannot work; the old ones stay in force.
          ControlError: too late, it is stopping.
        """
        if self._stopping_since is not None:
            raise ControlError("the program is stopping; it reads no settings any more")
        self._notifier.reloading()
        try:
            try:
                loaded = self._load()
            except ConfigError as error:
                self._forwarder.note_reload_failed(error)
                raise
            plan = self._forwarder.reload(loaded.settings.connect)
        except ConfigError:
            self._counts.reloads["failed"] += 1
            raise
        finally:
            self._notifier.ready(self._summary())
        self._loaded = loaded
        self._counts.reloads["ok"] += 1
        self._beside.look_again()
        return plan

    def _reload_if_possible(self) -> None:
        try:
            plan = self._reload()
        except (ConfigError, ControlError):
            return  # it is an event, or of no use any more
        for line in plan.lines() or ["settings read again; nothing has changed"]:
            self._say(line)

    async def _watch_files(self) -> None:
        before = self._stamps()
        while True:
            await trio.sleep(_WATCH_S)
            now = self._stamps()
            if now != before:
                before = now
                self._reload_if_possible()

    def _stamps(self) -> dict[Path, tuple[int, int, int]] | None:
        """When the files that count now were written; None: they cannot be found out."""
        found: dict[Path, tuple[int, int, int]] = {}
        try:
            files = self._find_files()
        except ConfigError:
            return None
        for path in files:
            try:
                stat = path.stat()
            except OSError:
                continue
            found[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return found

    # What others ask -------------------------------------------------------------------------------------------------

    def _calls(self, nursery: trio.Nursery) -> dict[str, Call]:
        async def status(_: Arguments, __: Emit) -> object:
            await trio.lowlevel.checkpoint()
            return self._forwarder.status()

        async def events(arguments: Arguments, emit: Emit) -> object:
            stream = self._forwarder.events()
            for event in self._forwarder.recent_events:
                await emit(event)
            if arguments.flag("follow"):
                async for event in stream:
                    await emit(event)
            return None

        async def reload(_: Arguments, __: Emit) -> object:
            await trio.lowlevel.checkpoint()
            return self._reload()

        async def names(_: Arguments, __: Emit) -> object:
            await trio.lowlevel.checkpoint()
            return self._forwarder.redirections()

        async def stop(_: Arguments, __: Emit) -> object:
            await trio.lowlevel.checkpoint()
            self._begin_stop(nursery)
            return None

        return {"status": status, "events": events, "reload": reload, "names": names, "stop": stop}
