"""What may stand between a sender and the far end.

A topology is one function here, and that is all it takes to add one. It gets a :class:`Stage`, starts what it needs,
and returns the :class:`Route` that a client dials. The stage ends everything again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .loadgen import HTTP, Load, Route
from .processes import ROOT, BenchError, ending, start
from .workload import WEBSOCKET

ANNOUNCE_TIMEOUT = 20.0
"""Seconds that a process under test has to say where it listens."""

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

    def run(self, argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """A process under test."""
        child = start(argv, log=self._log, pass_fds=pass_fds)
        self._stack.enter_context(ending(child))
        return child

    def run_python(self, module: str, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        """A module of ours under test, and what it announced: at least its ``port``.

        It writes the announcement to a file that only we may read, because a key may stand in it.
        """
        announcement = self.directory / f"{module}.json"
        child = self.run([sys.executable, "-m", module, "--announce", str(announcement), *arguments])
        deadline = time.monotonic() + ANNOUNCE_TIMEOUT
        while not announcement.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{module} did not start:\n{self.log_tail()}")
            time.sleep(0.02)
        return child, json.loads(announcement.read_text())

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


# ---- nothing in between --------------------------------------------------------------------------------------------


@topology("direct", "client and server, nothing in between", carries=(WEBSOCKET, HTTP))
def direct(stage: Stage) -> Route:
    server, ready = stage.load("server")
    origin, origin_ready = stage.load("origin")
    return Route(
        "127.0.0.1",
        ready["port"],
        "/bench",
        under_test=(),
        load=(server.pid, origin.pid),
        http=(origin_ready["port"], "/bench"),
    )


# ---- HAProxy -------------------------------------------------------------------------------------------------------

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def _haproxy_missing() -> str | None:
    return None if HAPROXY else "haproxy is not installed (apt-get install haproxy)"


def _haproxy_version() -> str:
    answer = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True)
    return answer.stdout.split(" - ")[0].removeprefix("HAProxy version ").split()[0]


def _open_haproxy(stage: Stage, *tuning: str, mode: str = "tcp") -> Route:
    """One frontend, one server; everything that is not said here is as HAProxy has it by default."""
    server, ready = stage.load("server" if mode == "tcp" else "origin")
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        config = stage.directory / "haproxy.cfg"
        settings = [
            "global",
            "  nbthread 1",
            "  maxconn 9000",
            *(f"  {line}" for line in tuning),
            "defaults",
            f"  mode {mode}",
            "  timeout connect 5s",
            "  timeout client 1h",
            "  timeout server 1h",
            "listen bench",
            f"  bind fd@{listening.fileno()}",
            f"  server far 127.0.0.1:{ready['port']}",
        ]
        config.write_text("\n".join(settings) + "\n")
        port = listening.getsockname()[1]
        proxy = stage.run([str(HAPROXY), "-db", "-q", "-f", str(config)], pass_fds=[listening.fileno()])
        time.sleep(
            0.3
        )  # connections queue on our socket until it serves them; only a refused configuration must be seen
        if proxy.poll() is not None:
            raise BenchError(f"haproxy did not start:\n{stage.log_tail()}")
    return Route("127.0.0.1", port, "/bench", under_test=(proxy.pid,), load=(server.pid,), http=(port, "/bench"))


@topology("haproxy", "HAProxy passing TCP, one thread", missing=_haproxy_missing, version=_haproxy_version)
def haproxy(stage: Stage) -> Route:
    return _open_haproxy(stage)


@topology(
    "haproxy-64k",
    "HAProxy passing TCP, one thread, 64 KiB buffers",
    missing=_haproxy_missing,
    version=_haproxy_version,
    by_default=False,
)
def haproxy_with_large_buffers(stage: Stage) -> Route:
    return _open_haproxy(stage, "tune.bufsize 65536")


@topology(
    "haproxy-http",
    "HAProxy in HTTP mode, one thread, connections kept alive on both sides",
    missing=_haproxy_missing,
    version=_haproxy_version,
    carries=(HTTP,),
)
def haproxy_http(stage: Stage) -> Route:
    return _open_haproxy(stage, mode="http")


# ---- programs on Trio ----------------------------------------------------------------------------------------------


def _open_python_proxy(stage: Stage, module: str) -> Route:
    server, ready = stage.load("server")
    proxy, announced = stage.run_python(module, "--to-port", str(ready["port"]))
    return Route("127.0.0.1", announced["port"], "/bench", under_test=(proxy.pid,), load=(server.pid,))


@topology("naive", "a relay of two trio-websocket connections, whole messages")
def naive(stage: Stage) -> Route:
    return _open_python_proxy(stage, "bench.relays.naive")


@topology("trio-splice", "plain bytes between two Trio streams, 64 KiB reads")
def trio_splice(stage: Stage) -> Route:
    return _open_python_proxy(stage, "bench.relays.splice")


# ---- relaycore -----------------------------------------------------------------------------------------------------

ENTITY = "bench"


def _relay_missing() -> str | None:
    if not (ROOT / "relaycore" / "gateway" / "server.py").exists():
        return "this tree has no relaycore.gateway.server"
    return None


def _relay_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("relaycore")
    except PackageNotFoundError:
        return "from the tree"


def relay_headers(announced: dict[str, Any]) -> tuple[str, ...]:
    """The head lines with which both ends show their token to a relay that announced itself."""
    from relaycore.wire.sas import make_token

    token = make_token("http://127.0.0.1/", announced["key_name"], announced["key"], int(time.time()) + LOAD_LIMIT_S)
    return (f"ServiceBusAuthorization: {token}",)


def open_relay(stage: Stage, *, profile: Path | None = None, **settings: object) -> Route:
    """A relay and its listener; settings by name, two underscores for the dot, beside the defaults.

    With ``profile`` the relay samples itself and writes that file when it ends.
    """
    changed = [f"--set={name.replace('__', '.')}={json.dumps(value)}" for name, value in settings.items()]
    if profile is not None:
        changed.append(f"--profile={profile}")
    relay, announced = stage.run_python("bench.relays.relay", "--entity", ENTITY, *changed)
    headers = relay_headers(announced)
    listener, _ = stage.load(
        "listener",
        [
            f"address 127.0.0.1 {announced['port']} /$hc/{ENTITY}?sb-hc-action=listen",
            *(f"header {header}" for header in headers),
        ],
    )
    target = f"/$hc/{ENTITY}?sb-hc-action=connect"
    port = announced["port"]
    return Route("127.0.0.1", port, target, (relay.pid,), (listener.pid,), headers, http=(port, f"/{ENTITY}"))


@topology(
    "relay-trio",
    "relaycore, sessions moved by Trio, requests over the control channel or by rendezvous",
    missing=_relay_missing,
    version=_relay_version,
    carries=(WEBSOCKET, HTTP),
)
def relay_trio(stage: Stage) -> Route:
    return open_relay(stage)
