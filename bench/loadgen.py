"""Builds and drives ``rcload``, the load generator in C (``bench/load``)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .processes import ROOT, BenchError, start

SOURCES = ROOT / "bench" / "load"
PROGRAM = ROOT / "build" / "bench" / "rcload"
HTTP = "http"
"""The kind of job that sends requests; all others are WebSocket streams."""
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")


def build(program: Path = PROGRAM, flags: Sequence[str] = FLAGS) -> Path:
    """Compile the load generator unless it is newer than its sources. Returns its path."""
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime > newest:
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: the load generator needs cc or gcc, or CC naming one")
    program.parent.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    made = subprocess.run([compiler, *flags, "-o", str(fresh), *map(str, sources)], capture_output=True, text=True)
    if made.returncode != 0:
        raise BenchError(f"the load generator does not compile:\n{made.stderr}")
    fresh.replace(program)  # another run may be using the old one
    return program


@dataclass(frozen=True)
class Route:
    """Where the client dials and what stands in between.

    ``under_test`` and ``load`` are process ids. ``headers`` may hold tokens: they go over a pipe, never into arguments.
    ``http`` is the port and target for requests, where the topology carries them. With ``wraps`` a gateway from
    WebSocket to TCP is dialled, and each stream stands inside one more WebSocket that the gateway takes off.
    """

    host: str
    port: int
    target: str
    under_test: tuple[int, ...]
    load: tuple[int, ...]
    headers: tuple[str, ...] = field(default=(), repr=False)
    http: tuple[int, str] | None = None
    wraps: bool = False


@dataclass(frozen=True)
class Job:
    """``count`` streams doing ``kind`` (sink, source, echo, ping, idle, join) with messages of ``size`` bytes.

    Of kind ``stall`` and ``unread``: streams filled to the brim whose receiving end, the far one or the client, does
    not read while the other jobs run.
    Of kind ``http``: connections, each a closed loop of requests with bodies of ``size`` both ways.
    ``rate``, of ``ping`` only: each stream sends so many in a second, at moments of their own, and latency counts from
    those moments. With 0 the next is sent when the last is back.
    """

    kind: str
    size: int
    count: int = 1
    rate: int = 0


class Load:
    """One running ``rcload``.

    Args:
      role: ``client``, ``server``, ``origin`` or ``listener``.
      settings: its lines, without the final ``go``.
      log: where its standard error goes.
    """

    def __init__(self, role: str, settings: Iterable[str], *, log: IO[bytes] | None = None) -> None:
        self.process = start([str(build()), role], log=log)
        self._text = b""
        self._poll = select.poll()  # select() knows no descriptor above 1023
        assert self.process.stdout is not None
        self._poll.register(self.process.stdout, select.POLLIN)
        self.tell("\n".join([*settings, "go"]))

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode("ascii") + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and its last line on standard output says why

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next line of JSON.

        Raises:
          BenchError: the program said so, ended, or did not answer within ``timeout`` seconds.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._text:
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1_000):
                raise BenchError(f"the load generator gave no answer in {timeout:g} s")
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise BenchError("the load generator ended without an answer")
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"load generator: {answer['error']}")
        return answer

    def has_answer(self) -> bool:
        """Whether :meth:`answer` would return, or raise, without waiting."""
        return b"\n" in self._text or bool(self._poll.poll(0))

    def wait_ended(self, timeout: float) -> None:
        """Let a client that has given its last answer close its streams in peace, or ``timeout`` seconds pass."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)


def client_settings(
    route: Route, jobs: Iterable[Job], *, warm_s: float, measured_s: float, limit_s: int, hold: bool = False
) -> list[str]:
    """Lines for a client on this route. It watches the CPU time of the route's processes, those under test first."""
    jobs = tuple(jobs)
    port, target = route.port, route.target
    if any(job.kind == HTTP for job in jobs):
        if route.http is None:
            raise BenchError("this route carries no requests")
        port, target = route.http
    return [
        f"address {route.host} {port} {target}",
        *(f"header {header}" for header in route.headers),
        *(f"job {job.count} {job.kind} {job.size} {job.rate}" for job in jobs),
        *(f"watch {pid}" for pid in (*route.under_test, *route.load)),
        f"warm {warm_s:.3f}",
        f"seconds {measured_s:.3f}",
        f"limit {limit_s}",
        *(["hold"] if hold else []),
        *(["wrap"] if route.wraps else []),
    ]
