"""Keeps a relay under every kind of load at once for minutes, and looks whether it ends as it began.

Several clients run side by side, each for a few seconds, then others take their place: bulk, pairs, joins, requests,
and streams that nobody reads. All of them check what arrives, as in the suite, so a soak also fails on lost or changed
bytes.

Memory under load goes up and down with what is under way. So the verdict is by readings at rest: after the first minute
and at the end the load stops, every stream is closed, and the relay is given a moment.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures import MIB
from .loadgen import HTTP, Job, Load, Route, client_settings
from .processes import BenchError, cores, ending, open_files, place, resident_bytes, threads
from .topologies import Stage, Topology

WORK: dict[str, tuple[Job, ...]] = {
    "bulk": (Job("sink", 65_536, count=2), Job("source", 65_536, count=2), Job("echo", 4_096, count=2)),
    "small bulk": (Job("sink", 125), Job("source", 125)),
    "pairs": (Job("ping", 64, count=100),),
    "joins": (Job("join", 64, count=16),),
    "slow readers": (Job("ping", 64), Job("stall", 65_536, count=4), Job("unread", 65_536, count=4)),
    "large messages": (Job("echo", 1 << 20, count=2),),
    "requests": (Job(HTTP, 1_024, count=8),),
    "large requests": (Job(HTTP, 1 << 20, count=2),),
}
"""What runs all the time, each line a client."""

EARLY_S = 60.0
"""When the first reading at rest is taken; earlier in a soak that is shorter than four times this."""

SHIFT_S = (2.0, 8.0)
"""Shortest and longest life of a client."""

SAMPLE_S = 2.0
POLL_S = 0.05

REST_LIMIT_S = 30.0
"""For the relay to close what its clients have closed."""

REST_S = 11.0
"""Trio keeps an idle worker thread for ten seconds."""

NOISE_BYTES = 2 * MIB
NOISE_SHARE = 0.03
"""Growth at rest that allocators and caches explain: this much, and this part of what was there."""

LOADED_SHARE = 0.10
"""The same for the median of the last quarter under load over the first: load is never quite the same."""

CLIENT_LIMIT_S = 120


@dataclass(frozen=True)
class Reading:
    """What the relay held at some time."""

    at_s: float
    memory_bytes: int
    open_files: int
    threads: int

    @classmethod
    def of(cls, pids: Sequence[int], at_s: float) -> Reading:
        return cls(at_s, sum(map(resident_bytes, pids)), sum(map(open_files, pids)), sum(map(threads, pids)))


@dataclass
class Done:
    """What the clients of one kind of work confirmed."""

    runs: int = 0
    messages: int = 0
    bytes: int = 0


@dataclass
class Soak:
    """The whole of it. ``complaints`` is empty when the relay ended as it began."""

    samples: list[Reading] = field(default_factory=list)
    early: Reading | None = None
    late: Reading | None = None
    work: dict[str, Done] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def judge(soak: Soak) -> list[str]:
    """What is wrong with a soak, in sentences."""
    complaints = []
    assert soak.early is not None
    assert soak.late is not None
    grown = soak.late.memory_bytes - soak.early.memory_bytes
    allowed = NOISE_BYTES + soak.early.memory_bytes * NOISE_SHARE
    if grown > allowed:
        complaints.append(
            f"at rest the relay holds {grown / MIB:.1f} MiB more than early on; {allowed / MIB:.1f} MiB would be noise"
        )
    for name, early, late in (
        ("open files", soak.early.open_files, soak.late.open_files),
        ("threads", soak.early.threads, soak.late.threads),
    ):
        if late > early:
            complaints.append(f"at rest the relay holds {late} {name}, and {early} early on")
    window = (soak.late.at_s - soak.early.at_s) / 4
    first = [each.memory_bytes for each in soak.samples if 0 < each.at_s - soak.early.at_s < window]
    last = [each.memory_bytes for each in soak.samples if 0 < soak.late.at_s - each.at_s < window]
    if first and last:
        before, after = statistics.median(first), statistics.median(last)
        allowed = NOISE_BYTES + before * LOADED_SHARE
        if after - before > allowed:
            complaints.append(
                f"under load the relay holds {(after - before) / MIB:.1f} MiB more in the last quarter than in the "
                f"first; {allowed / MIB:.1f} MiB would be noise"
            )
    complaints += [f"{name}: no client finished" for name, done in soak.work.items() if done.runs == 0]
    return complaints


@dataclass
class _Client:
    load: Load
    stack: contextlib.ExitStack
    result: dict[str, Any] | None = None


class _Crowd:
    """The clients at work now, one of each kind."""

    def __init__(self, route: Route, soak: Soak, chance: random.Random) -> None:
        self._route = route
        self._soak = soak
        self._chance = chance
        self._cores = {cores()[0]}
        self._at_work: dict[str, _Client] = {}
        self._jobs = {
            name: jobs for name, jobs in WORK.items() if route.http is not None or all(job.kind != HTTP for job in jobs)
        }
        soak.work = {name: Done() for name in self._jobs}

    def fill(self) -> None:
        """Start what is missing."""
        for name in self._jobs.keys() - self._at_work.keys():
            seconds = self._chance.uniform(*SHIFT_S)
            settings = client_settings(
                self._route, self._jobs[name], warm_s=0.5, measured_s=seconds, limit_s=CLIENT_LIMIT_S
            )
            load, stack = Load("client", settings), contextlib.ExitStack()
            stack.enter_context(ending(load.process))
            self._at_work[name] = _Client(load, stack)
            place(load.pid, self._cores)

    def gather(self) -> None:
        """Take the results of those that have one, and let those go that have closed their streams."""
        for name, client in list(self._at_work.items()):
            if client.result is None:
                if not client.load.has_answer():
                    continue
                client.result = client.load.answer(5.0)
            if client.load.process.poll() is None:
                continue
            client.stack.close()
            del self._at_work[name]
            done = self._soak.work[name]
            done.runs += 1
            done.messages += sum(job["messages"] for job in client.result["jobs"])
            done.bytes += sum(job["bytes"] for job in client.result["jobs"])

    def drain(self) -> None:
        """Wait for all of them."""
        while self._at_work:  # each ends by its own limit
            self.gather()
            time.sleep(POLL_S)

    def close(self) -> None:
        for client in self._at_work.values():
            client.stack.close()


@contextlib.contextmanager
def _crowd(route: Route, soak: Soak, seed: int) -> Iterator[_Crowd]:
    crowd = _Crowd(route, soak, random.Random(seed))
    try:
        yield crowd
    finally:
        crowd.close()


def _at_rest(pids: Sequence[int], start: float, files_before: int) -> Reading:
    """The relay once it holds no more files than before any load, or has had its time to get there."""
    deadline = time.monotonic() + REST_LIMIT_S
    while sum(map(open_files, pids)) > files_before and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(REST_S)
    return Reading.of(pids, time.monotonic() - start)


def soak(topology: Topology, minutes: float, say: Callable[[str], None], seed: int = 1) -> Soak:
    """Load a topology for so long.

    Raises:
      BenchError: a stream was lost or data arrived changed.
    """
    whole_s = minutes * 60
    early_s = min(EARLY_S, whole_s / 4)
    found = Soak()
    with Stage("soak") as stage:
        route = topology.open(stage)
        pids = route.under_test
        if not pids:
            raise BenchError(f"{topology.name} has nothing that could be soaked")
        for pid in route.load:
            place(pid, {cores()[0]})
        for pid in pids:
            place(pid, {cores()[-1]})
        files_before = sum(map(open_files, pids))
        start = time.monotonic()
        with _crowd(route, found, seed) as crowd:
            for until in (early_s, whole_s):
                next_sample = time.monotonic()
                while time.monotonic() - start < until:
                    crowd.fill()
                    crowd.gather()
                    if time.monotonic() >= next_sample:
                        next_sample += SAMPLE_S
                        found.samples.append(Reading.of(pids, time.monotonic() - start))
                    time.sleep(POLL_S)
                crowd.drain()
                reading = _at_rest(pids, start, files_before)
                found.early, found.late = found.early or reading, reading
                say(f"at rest after {reading.at_s:.0f} s: {_reading_text(reading)}")
    found.complaints = judge(found)
    return found


def _reading_text(reading: Reading) -> str:
    return f"{reading.memory_bytes / MIB:.1f} MiB, {reading.open_files} open files, {reading.threads} threads"


def soak_text(found: Soak) -> str:
    """Lines for the report."""
    assert found.early is not None
    assert found.late is not None
    lines = [
        f"- at rest after {each.at_s / 60:.1f} minutes: {_reading_text(each)}" for each in (found.early, found.late)
    ]
    if found.samples:
        highest = max(each.memory_bytes for each in found.samples)
        lines.append(f"- highest under load: {highest / MIB:.1f} MiB, {len(found.samples)} readings")
    lines += [
        f"- {name}: {done.runs} clients, {done.messages:,} messages or requests, {done.bytes / MIB / 1024:,.1f} GiB"
        for name, done in found.work.items()
    ]
    lines += [f"- **{complaint}**" for complaint in found.complaints] or ["- no growth beyond noise"]
    return "\n".join(lines)
