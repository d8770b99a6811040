"""How many system calls processes make, counted from outside by ``perf stat`` or, where that may not, ``strace``.

A counted run is never a timed one: perf costs a few per cent, strace most of the speed. A slower process finds more
waiting when it comes back, so it may make fewer calls per message than it does alone; with perf that is no matter.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import which

from .processes import BenchError

ANSWER_TIMEOUT = 10.0
EVENT = "raw_syscalls:sys_enter"


class Count:
    """``calls`` is set once the count is over."""

    calls: int


Counting = Callable[[Sequence[int]], contextlib.AbstractContextManager[Count]]


def _answered(descriptor: int, what: bytes) -> bytes:
    """What has come up to and with ``what``."""
    text, deadline = b"", time.monotonic() + ANSWER_TIMEOUT
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while what not in text:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            raise BenchError("the counter of system calls does not answer")
        chunk = os.read(descriptor, 4_096)
        if not chunk:
            raise BenchError(f"the counter of system calls ended: {text.decode(errors='replace').strip()}")
        text += chunk
    return text


@contextlib.contextmanager
def _interrupted(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a counter as Ctrl-C would: that is when it writes its count."""
    try:
        yield
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def counting_by_perf(pids: Sequence[int]) -> Iterator[Count]:
    """Counts of every thread of the processes, from entry to exit."""
    count = Count()
    with tempfile.TemporaryDirectory(prefix="bench-perf-") as directory, contextlib.ExitStack() as stack:
        report = Path(directory) / "count"
        theirs_in, orders = os.pipe()
        answers, theirs_out = os.pipe()
        for descriptor in (orders, answers):
            stack.callback(os.close, descriptor)
        argv = ["perf", "stat", "-x,", "-e", EVENT, "-D", "-1", "--control", f"fd:{theirs_in},{theirs_out}"]
        child = subprocess.Popen(
            [*argv, "-o", str(report), "-p", ",".join(map(str, pids))],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        with _interrupted(child):
            _tell(orders, b"enable\n", answers)
            yield count
            _tell(orders, b"disable\n", answers)
        count.calls = perf_count(report.read_text())


def _tell(orders: int, order: bytes, answers: int) -> None:
    try:
        os.write(orders, order)
    except BrokenPipeError:
        raise BenchError("perf ended") from None
    _answered(answers, b"ack")


def perf_count(text: str) -> int:
    """The number in what ``perf stat -x,`` wrote; a process that made no call is ``<not counted>``."""
    for line in text.splitlines():
        fields = line.split(",")
        if EVENT in fields:
            return int(fields[0]) if fields[0].isdigit() else 0
    raise BenchError("perf wrote no count")


@contextlib.contextmanager
def counting_by_strace(pids: Sequence[int]) -> Iterator[Count]:
    """The same by tracing each call."""
    count = Count()
    with tempfile.TemporaryDirectory(prefix="bench-strace-") as directory:
        report = Path(directory) / "count"
        argv = ["strace", "-c", "-f", "-o", str(report), *(option for pid in pids for option in ("-p", str(pid)))]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with _interrupted(child):
            assert child.stderr is not None
            for _ in pids:
                _answered(child.stderr.fileno(), b"attached")
            yield count
        count.calls = strace_count(report.read_text())


def strace_count(text: str) -> int:
    """The sum in what ``strace -c`` wrote. The column of errors is often empty."""
    for line in text.splitlines():
        if found := re.fullmatch(r"\s*100[.,]00\s+\S+\s+(?:\d+\s+)?(\d+)(?:\s+\d+)?\s+total", line):
            return int(found[1])
    return 0


@functools.cache
def counter() -> tuple[str, Counting] | None:
    """The first tool that can count a process of ours here, with its name."""
    for name, counting in (("perf", counting_by_perf), ("strace", counting_by_strace)):
        if which(name) is None:
            continue
        with contextlib.suppress(BenchError, OSError), subprocess.Popen(["sleep", "60"]) as probe:
            try:
                with counting([probe.pid]):
                    pass
                return name, counting
            finally:
                probe.kill()
    return None
