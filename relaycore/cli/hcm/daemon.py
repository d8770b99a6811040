"""``relaycore hcm run``: the manager as a daemon.

Signals: SIGTERM and the first SIGINT stop in order, with the drain timeouts of the connections; a second one ends at
once. SIGHUP reads the settings anew, and so does a change of their files, which are looked at each second: inotify does
not tell of changes on network file systems, nor of a mounted file that Kubernetes exchanges.

::

    run ─┬─ control socket          its calls are in calls.py
         ├─ Manager                 when it has ended, everything has
         ├─ pages                   metrics and health, begun anew when their address changes
         ├─ _watch_files ─▶ reload
         └─ events ─▶ log, webhook, one line for the service manager
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from ...config import LogConfig
from ...edge.config.load import Loaded, hcm_socket
from ...edge.control.http_status import Page, PageSource, serve_pages
from ...edge.control.metrics import CONTENT_TYPE, Tallies, manager_families, render
from ...edge.control.notify import Notifier
from ...edge.control.protocol import ControlError
from ...edge.control.server import serve_control
from ...edge.events import EventStream, log_kind
from ...edge.hcm.manager import Manager
from ...edge.hcm.plan import Plan
from ...edge.hcm.status import Shown
from ...edge.webhook import Webhooks
from ...errors import ConfigError, RelayError
from ...net.tasks import alone
from ...trace import configure_logging
from ..edge_options import edge_options
from ..exits import ExitCode, exit_code_for
from ..options import raise_file_limit, run
from .book import SettingsBook
from .calls import make_calls
from .log_book import LogBook
from .words import times

if TYPE_CHECKING:
    from ...edge.config.settings import ListenAt

__all__ = ["Daemon", "run_command"]

_log = logging.getLogger("relaycore.edge.hcm")

_POLL: Final = 1.0
"""Seconds between two looks at the settings' files."""

_SAME_SIGNAL_S: Final = 0.5
"""Seconds in which a further signal says the same again: make and timeout pass on what the whole process group gets."""


@click.command("run")
@edge_options
@click.option(
    "--saved",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where connections are kept that are added while it runs; read at the start, too."
    "  [default: beside the settings]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important lines to log.",
)
@click.option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="Lines for people, or JSON objects.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready, nothing else.")
def run_command(
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
    saved: Path | None,
    log_level: str,
    log_format: str,
    as_json: bool,
) -> ExitCode:
    """Listen on all connections of the settings, until a signal ends it.

    SIGTERM and Ctrl-C let open connections end within their drain timeouts; a second one ends at once. SIGHUP, and a
    change of a settings file, apply what has changed and leave the rest alone.
    """
    book = SettingsBook(config_files, overrides, saved)
    loaded = book.load()
    raise_file_limit()
    logs = LogBook()
    writer = configure_logging(LogConfig(level=log_level, format=log_format), write=logs.write)  # type: ignore[arg-type]
    try:
        return run(Daemon(book, loaded, logs, as_json=as_json).run)
    finally:
        writer.close()


class Daemon:
    """One run of it.

    Args:
      book: where the settings are from.
      loaded: as they were just read.
      logs: what has been logged.
      as_json: announce itself as JSON.

    Attributes:
      manager: the connections.
    """

    def __init__(self, book: SettingsBook, loaded: Loaded, logs: LogBook, *, as_json: bool = False) -> None:
        self.manager = Manager()
        self.logs = logs
        self.book = book
        self._loaded = loaded
        self._as_json = as_json
        self._signature = book.signature()
        self._reload_lock = trio.Lock()
        self._notifier = Notifier()
        self._tallies = Tallies()
        self._is_stopping = False
        self._pages_scope = trio.CancelScope()
        self._webhooks = Webhooks("hcm", self.manager.events, self._tallies.webhook)
        self._has_noted_all = trio.Event()
        self._addresses: list[str] = []  # of the pages

    @property
    def loaded(self) -> Loaded:
        """The settings in force."""
        return self._loaded

    async def run(self) -> ExitCode:
        """Serve until a signal. Returns: the exit code.

        Raises:
          ConfigError: the settings do not fit together, or a socket cannot be made; at the beginning only.
        """
        hcm = self._loaded.settings.hcm
        path = hcm.control.socket or hcm_socket(os.environ)
        code = ExitCode.OK
        for warning in self._loaded.warnings:
            _log.warning("%s", warning)
        with alone(), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(serve_control, path, make_calls(self), exit_code_for=exit_code_for)
                )  # first: it says so when another manager runs already
                nursery.start_soon(self._note_events, self.manager.events())  # from the very first on
                await nursery.start(self._webhooks.run, hcm.webhook)
                await nursery.start(self.manager.run, hcm)
                await nursery.start(self._keep_pages)
                nursery.start_soon(self._watch_files)
                nursery.start_soon(self._notifier.watch)
                nursery.start_soon(self._end_with_manager, nursery.cancel_scope)
                self._announce(path)
                self._notifier.ready(self._summary())
                code = await self._heed(signals, nursery)
        return code

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> ExitCode:
        stopping_since: float | None = None
        async for number in signals:
            if number == signal.SIGHUP:
                nursery.start_soon(self._reload_and_say, "SIGHUP")
            elif stopping_since is None:
                self._is_stopping = True
                stopping_since = trio.current_time()
                self._notifier.stopping("waiting for open connections to end")
                self.manager.stop()
            elif trio.current_time() - stopping_since >= _SAME_SIGNAL_S:
                nursery.cancel_scope.cancel()
                return ExitCode.INTERRUPTED
        return ExitCode.OK

    async def _end_with_manager(self, everything: trio.CancelScope) -> None:
        await self.manager.wait_stopped()
        await self._has_noted_all.wait()
        await self._webhooks.wait_ended()
        everything.cancel()

    # Settings --------------------------------------------------------------------------------------------------------

    async def reload(self) -> Plan:
        """Read the settings and apply what has changed. One at a time. A checkpoint.

        Raises:
          ConfigError: they are wrong; those in force stay, and an event says so.
          ControlError: too late, it is stopping.
        """
        async with self._reload_lock:
            if self._is_stopping:  # connections that have been let go would be begun again
                raise ControlError("the daemon is stopping; it reads no settings any more")
            self._notifier.reloading()
            try:
                self._signature = await trio.to_thread.run_sync(self.book.signature)  # before, not to miss a change
                try:
                    loaded = await trio.to_thread.run_sync(self.book.load)
                except ConfigError as error:
                    self.manager.note_reload_failed(str(error))
                    raise
                plan = self.manager.reload(loaded.settings.hcm)
            except ConfigError:
                self._tallies.reloads["failed"] += 1
                raise
            finally:
                if not self._is_stopping:
                    self._notifier.ready(self._summary())
            self._tallies.reloads["ok"] += 1
            self._loaded = loaded
            if "metrics" in plan.general:
                self._pages_scope.cancel()
            self._webhooks.change(loaded.settings.hcm.webhook)
            if "control" in plan.general:
                _log.warning("the control socket stays where it is until the next start")
            for line in plan.lines():
                _log.info("reload: %s", line)
            for warning in loaded.warnings:
                _log.warning("%s", warning)
            return plan

    async def _reload_and_say(self, why: str) -> None:
        _log.info("reading the settings anew: %s", why)
        with suppress(ConfigError, ControlError):  # an event has said so
            await self.reload()

    async def _watch_files(self) -> None:
        while not self._is_stopping:
            await trio.sleep(_POLL)
            async with self._reload_lock:  # what a reload is reading is no news
                found = await trio.to_thread.run_sync(self.book.signature)
            if found != self._signature:
                await self._reload_and_say("a file has changed")

    # What it tells ---------------------------------------------------------------------------------------------------

    async def _note_events(self, events: EventStream) -> None:
        async for event in events:
            log_kind("hcm", event)
            if self._notifier.is_heard and not self._is_stopping:
                self._notifier.status(self._summary())
        self._has_noted_all.set()

    def _summary(self) -> str:
        words = [word for _, word in self.manager.shown()]
        return f"{words.count(Shown.CONNECTED)} of {times(len(words), 'connection')} Connected"

    def _announce(self, socket: Path) -> None:
        count = len(self._loaded.settings.hcm.connections)
        if self._as_json:
            ready = {
                "event": "ready",
                "connections": count,
                "control": str(socket),
                "metrics": self._addresses,
                "files": [str(file) for file in self._loaded.files],
                "pid": os.getpid(),
            }
            text = json.dumps(ready)
        else:
            where = f", metrics on {', '.join(self._addresses)}" if self._addresses else ""
            text = f"relaycore hcm serves {times(count, 'connection')}, control socket {socket}{where}"
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    # Pages -----------------------------------------------------------------------------------------------------------

    async def _keep_pages(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve them where the settings want them. An error is one at the beginning only; later, it is logged."""
        if self._wanted_pages is not None:
            render([])  # says so if the library is missing
        has_begun = False
        while True:
            with trio.CancelScope() as self._pages_scope:
                async with trio.open_nursery() as nursery:
                    listen = self._wanted_pages
                    self._addresses = []
                    try:
                        if listen is not None:
                            self._addresses = await nursery.start(partial(serve_pages, listen, self.pages))
                    except RelayError as error:
                        if not has_begun:
                            raise
                        _log.error("%s", error)
                    if not has_begun:
                        has_begun = True
                        task_status.started()
                    await trio.sleep_forever()

    @property
    def _wanted_pages(self) -> ListenAt | None:
        return self._loaded.settings.hcm.metrics.listen

    @property
    def pages(self) -> dict[str, PageSource]:
        """Metrics and health, by path."""
        return {"/metrics": self._metrics_page, "/healthz": self._health_page, "/readyz": self._ready_page}

    def _metrics_page(self) -> Page:
        return Page(render(manager_families(self.manager.status(), self._tallies)), content_type=CONTENT_TYPE)

    def _health_page(self) -> Page:
        return Page("ok\n")  # that it answers is all there is to say: a relay that is down is no reason to restart us

    def _ready_page(self) -> Page:
        shown = self.manager.shown()
        words = [word is Shown.CONNECTED for _, word in shown]
        is_ready = all(words) and bool(words) if self._ready_when == "all" else any(words)
        lines = [f"{self._summary()}", *(f"{name}: {word.value}" for name, word in shown)]
        return Page("\n".join(lines) + "\n", 200 if is_ready else 503)

    @property
    def _ready_when(self) -> str:
        return self._loaded.settings.hcm.metrics.ready_when
