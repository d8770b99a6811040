"""What every topology is made of: a stage that ends what was started on it, and the table of topologies."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..loadgen import Load, Route
from ..processes import BenchError, ending, start
from ..workload import WEBSOCKET

START_TIMEOUT = 20.0
"""Seconds that a process under test has to listen, or to say where it does."""

LOAD_LIMIT_S = 3600
"""A far end ends itself after this, whatever happens."""


class Stage:
    """Processes of one open topology, and a directory for their files. A context manager."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"bench-{self._name}-")))
        self._log: IO[bytes] = self._stack.enter_context(open(self.directory / "stderr.log", "wb"))
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def load(self, role: str, settings: Sequence[str] = ()) -> tuple[Load, dict[str, Any]]:
        """A far end (``server``, ``origin`` or ``listener``) that is ready, and the answer in which it said so."""
        load = Load(role, [*settings, f"limit {LOAD_LIMIT_S}"], log=self._log)
        self._stack.enter_context(ending(load.process))
        return load, load.answer(30.0)

    def run(
        self, argv: Sequence[str], *, pass_fds: Sequence[int] = (), environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process under test. What is added to its environment may be seen by others; what it prints is not read."""
        added = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
        child = start([*added, *argv], log=self._log, pass_fds=pass_fds)
        self._stack.enter_context(ending(child))
        return child

    def run_python(
        self, module: str, *arguments: str, libraries: Path | None = None
    ) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        """A module of ours under test, and what it announced: at least its ``port``.

        It writes the announcement to a file that only we may read, because a key may stand in it. ``libraries`` is a
        directory of packages that come before our own.
        """
        announcement = self.directory / f"{module}.json"
        environment = {"PYTHONPATH": str(libraries)} if libraries else None
        argv = [sys.executable, "-m", module, "--announce", str(announcement), *arguments]
        child = self.run(argv, environment=environment)
        self._wait(announcement.exists, child, module)
        return child, json.loads(announcement.read_text())

    def wait_listening(self, port: int, child: subprocess.Popen[bytes], name: str) -> None:
        """Return when somebody listens there: a server, or the pair of a tunnel once both halves have met.

        Through a tunnel the trial is a connection to the far end, which sees it end.
        """

        def is_listening() -> bool:
            with socket.socket() as trial:
                return trial.connect_ex(("127.0.0.1", port)) == 0

        self._wait(is_listening, child, name)

    def _wait(self, done: Callable[[], bool], child: subprocess.Popen[bytes], name: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not done():
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{name} did not start:\n{self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self, lines: int = 15) -> str:
        """The end of what the processes wrote to standard error."""
        return "\n".join((self.directory / "stderr.log").read_text(errors="replace").splitlines()[-lines:])


@dataclass(frozen=True)
class Topology:
    """A way to stand between; ``missing`` says in a sentence why it cannot be had here, or nothing.

    ``carries`` names what it can be asked for: WebSocket streams, HTTP requests or both.
    """

    name: str
    about: str
    open: Callable[[Stage], Route]
    missing: Callable[[], str | None]
    version: Callable[[], str]
    by_default: bool
    carries: tuple[str, ...] = (WEBSOCKET,)


TOPOLOGIES: dict[str, Topology] = {}


def topology(
    name: str,
    about: str,
    *,
    missing: Callable[[], str | None] = lambda: None,
    version: Callable[[], str] = lambda: "",
    by_default: bool = True,
    carries: tuple[str, ...] = (WEBSOCKET,),
) -> Callable[[Callable[[Stage], Route]], Callable[[Stage], Route]]:
    """Enter a function into :data:`TOPOLOGIES`."""

    def enter(function: Callable[[Stage], Route]) -> Callable[[Stage], Route]:
        TOPOLOGIES[name] = Topology(name, about, function, missing, version, by_default, carries)
        return function

    return enter


def free_port() -> int:
    """A port that nobody has now, for programs that cannot be handed a socket or say which port they got."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
