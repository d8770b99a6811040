"""Child processes of a measurement: started, placed on cores, read from ``/proc``, ended.

Only our own children are touched.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from shutil import which
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
END_TIMEOUT = 5.0
"""Seconds that a child has to end by itself once its standard input is closed."""


class BenchError(Exception):
    """A measurement could not be made. The message says which and why; never holds a token."""


def raise_open_files_limit(wanted: int) -> int:
    """Lift the soft limit of open files for us and our children; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def start(
    argv: Sequence[str], *, log: IO[bytes] | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child with pipes on standard input and output, in the root of the tree.

    Where ``setpriv`` exists the kernel ends the child when we die, whatever we die of.
    """
    setpriv = which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return subprocess.Popen(
        [*guard, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, pass_fds=tuple(pass_fds)
    )


@contextlib.contextmanager
def ending(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Close the child's standard input on the way out, wait a little, then end it."""
    try:
        yield
    finally:
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                child.send_signal(number)
            try:
                child.wait(END_TIMEOUT if number is not None else 1.0)
                break
            except subprocess.TimeoutExpired:
                continue
        if child.stdout is not None:
            child.stdout.close()


def place(pid: int, cores: set[int]) -> None:
    """Keep every thread of a process on these cores from now on.

    A thread starts with the cores of the one that started it, so this goes over them until it meets no new one.
    """
    placed: set[int] = set()
    while fresh := {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - placed:
        for thread in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)
        placed |= fresh


@contextlib.contextmanager
def at_once(pids: Iterable[int], priority: int) -> Iterator[None]:
    """Run all threads of processes as soon as they have something to do: before all of lower priority or none.

    Only for processes that sleep most of the time: the others on their core get what they leave.

    Args:
      priority: 1 to 99, of ``SCHED_FIFO`` (sched(7)).

    Raises:
      BenchError: we may not; it takes root or CAP_SYS_NICE.
    """
    changed = [int(task.name) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    try:
        for pid in changed:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError as error:
        raise BenchError("real-time priority is for root or CAP_SYS_NICE") from error
    try:
        yield
    finally:
        for pid in changed:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def open_files(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def cores() -> list[int]:
    """Cores that we may use, in order."""
    return sorted(os.sched_getaffinity(0))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process that belongs to it alone (private pages), in bytes.

    Shared pages of the interpreter and its libraries do not grow with connections and are left out.
    """
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            total += int(rest.split()[0]) * 1024
    return total


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has spent on anything, since boot."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
