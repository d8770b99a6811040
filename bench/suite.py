"""Runs every workload on every topology, in rounds, and keeps what each run counted.

Order: all topologies of one workload, then the next workload, then the next round. Two figures that are compared were
therefore taken within seconds of each other, and a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .fairness import isolated
from .figures import MIB, Figures, crossed, figures_of, item_of
from .loadgen import Job, Load, Route, client_settings
from .processes import BenchError, at_once, cores, ending, machine_busy_s, place, resident_bytes
from .syscalls import Counting, counter
from .topologies import Stage, Topology
from .workload import Workload

RUN_LIMIT_S = 60
"""One run ends after this, whatever happens; a slow relay has full socket buffers to empty when the time is over."""


@dataclass(frozen=True)
class Pace:
    """How long and how often; ``most_streams`` is what a job is cut down to."""

    rounds: int
    warm_s: float
    measured_s: float
    lead_s: float = 0.5
    most_streams: int = 1 << 20

    def jobs(self, workload: Workload) -> tuple[Job, ...]:
        """The jobs of a workload at this pace."""
        return tuple(dataclasses.replace(job, count=min(job.count, self.most_streams)) for job in workload.jobs)


QUICK = Pace(rounds=1, warm_s=0.05, measured_s=0.1, lead_s=0.1, most_streams=32)
FULL = Pace(rounds=5, warm_s=0.2, measured_s=1.0)


@dataclass
class Run:
    """One workload on one topology in one round. ``failure`` says why there are no figures."""

    workload: str
    topology: str
    round: int
    figures: Figures = field(default_factory=dict)
    failure: str = ""
    foreign_busy: float = 0.0


def placement(workload: Workload, available: Sequence[int]) -> tuple[set[int], set[int]]:
    """Cores for the load and for the process under test: the first and the last, or all on the first."""
    load = {available[0]}
    return load, load if workload.together or len(available) == 1 else {available[-1]}


def run_once(route: Route, workload: Workload, pace: Pace) -> tuple[Figures, float]:
    """One run over an open topology.

    Returns: the figures, and how many cores' worth of CPU went to processes that are none of ours, meanwhile.

    Raises:
      BenchError: a stream was lost, data arrived changed, or time ran out.
    """
    started, busy = time.monotonic(), machine_busy_s()
    if workload.urgent:
        figures, ours = _run_urgent(route, workload, pace)
        foreign = (machine_busy_s() - busy - ours) / (time.monotonic() - started)
        return figures, max(0.0, foreign)
    with _client(route, workload, pace, warm_s=pace.warm_s if workload.warm else 0.0) as client:
        result = client.answer(RUN_LIMIT_S + 5.0)
        ours = result["own_cpu_seconds"] + sum(result["watched_cpu_seconds"])
        share = ours / max(result["seconds"], 1e-3)
        foreign = (machine_busy_s() - busy) / (time.monotonic() - started) - share
        figures = figures_of(result, under_test=len(route.under_test))
        if route.under_test:
            figures["resident MiB"] = sum(map(resident_bytes, route.under_test)) / MIB
        client.wait_ended(RUN_LIMIT_S)
    return figures, max(0.0, foreign)


_CLIENT_PRIORITY, _FAR_PRIORITY, _TESTED_PRIORITY = 20, 10, 5


def _run_urgent(route: Route, workload: Workload, pace: Pace) -> tuple[Figures, float]:
    """As :func:`run_once`, the first job with a client of its own. The others begin before it and end behind it.

    What is under test has priority too, on its own core: it keeps other work of the machine away from there.

    Returns: the figures, and the CPU seconds of everybody's.
    """
    around = dataclasses.replace(pace, measured_s=pace.measured_s + 2 * pace.warm_s + 2 * pace.lead_s + 0.5)
    first, rest = workload.jobs[:1], workload.jobs[1:]
    with _client(route, dataclasses.replace(workload, jobs=rest), around, warm_s=0.0) as beside:
        time.sleep(pace.lead_s)  # lets the others begin
        urgent = dataclasses.replace(workload, jobs=first)
        with (
            at_once(route.under_test, _TESTED_PRIORITY),
            at_once(route.load, _FAR_PRIORITY),
            _client(route, urgent, pace, warm_s=pace.warm_s) as client,
        ):
            with at_once((client.pid,), _CLIENT_PRIORITY):
                result = client.answer(RUN_LIMIT_S + 5.0)
            if beside.has_answer():
                raise BenchError("the other streams ended too early")
            client.wait_ended(RUN_LIMIT_S)
        other = beside.answer(RUN_LIMIT_S + 5.0)
        beside.wait_ended(RUN_LIMIT_S)
    figures = figures_of({**result, "jobs": [*result["jobs"], *other["jobs"]]}, under_test=len(route.under_test))
    # The far end's and the relay's seconds of the longer client hold those of the shorter.
    return figures, other["own_cpu_seconds"] + result["own_cpu_seconds"] + sum(other["watched_cpu_seconds"])


@contextlib.contextmanager
def _client(route: Route, workload: Workload, pace: Pace, *, warm_s: float, hold: bool = False) -> Iterator[Load]:
    """A client that dials at once, with everybody on the cores of the workload."""
    load_cores, test_cores = placement(workload, cores())
    for pid in route.load:
        place(pid, load_cores)
    for pid in route.under_test:
        place(pid, test_cores)
    settings = client_settings(
        route, pace.jobs(workload), warm_s=warm_s, measured_s=pace.measured_s, limit_s=RUN_LIMIT_S, hold=hold
    )
    client = Load("client", [*settings, f"lead {pace.lead_s:.3f}"])
    with ending(client.process):
        place(client.pid, load_cores)
        yield client


def count_once(route: Route, workload: Workload, pace: Pace, counting: Counting) -> Figures:
    """System calls of the processes under test while the jobs run, per message or request of the first job.

    The only figure: a counted process is not as fast as one that is left alone.

    Raises:
      BenchError: as :func:`run_once`, or the counter failed.
    """
    with _client(route, workload, pace, warm_s=0.0, hold=True) as client:
        client.answer(RUN_LIMIT_S)
        with counting(route.under_test) as count:
            client.tell("finish")
            job = client.answer(RUN_LIMIT_S + 5.0)["jobs"][0]
        client.wait_ended(RUN_LIMIT_S)
    messages = crossed(job)
    if not messages:
        raise BenchError("no message crossed while system calls were counted")
    return {f"syscalls/{item_of(job)}": count.calls / messages}


@contextlib.contextmanager
def opened(topologies: Sequence[Topology], say: Callable[[str], None]) -> Iterator[dict[str, Route]]:
    """All topologies at once; those not in use only sleep. One that does not start is told, and left out."""
    with contextlib.ExitStack() as stack:
        routes = {}
        for each in topologies:
            try:
                routes[each.name] = each.open(stack.enter_context(Stage(each.name)))
            except BenchError as error:
                say(f"{each.name} did not start: {error}")
        yield routes


def run_suite(
    topologies: Sequence[Topology], workloads: Sequence[Workload], pace: Pace, say: Callable[[str], None]
) -> list[Run]:
    """Every round of all that each topology carries, and behind them the counted runs.

    A run that fails is kept with its reason, and the others go on.
    """
    runs: list[Run] = []
    with opened(topologies, say) as routes:

        def attempt(workload: Workload, each: Topology, number: int, measure: Measure) -> None:
            run = Run(workload.name, each.name, number)
            runs.append(run)
            if each.name not in routes:
                run.failure = "did not start"
                return
            try:
                run.figures, run.foreign_busy = measure(routes[each.name], workload, pace)
            except BenchError as error:
                run.failure = str(error)
                say(f"round {number + 1}: {workload.name} on {each.name} failed: {error}")

        for number in range(pace.rounds):
            for workload in workloads:
                for each in (each for each in topologies if workload.carried in each.carries):
                    attempt(workload, each, number, isolated_run(each) if workload.isolates else run_once)
            say(f"round {number + 1} of {pace.rounds} done")
        if found := counter():
            tool, counting = found
            for workload in (each for each in workloads if each.counted):
                for each in topologies:
                    if workload.carried in each.carries and each.name in routes and routes[each.name].under_test:
                        attempt(workload, each, pace.rounds, _counted_run(counting))
            say(f"system calls counted by {tool}")
        else:
            say("system calls are not counted: neither perf nor strace can do it here")
    return runs


Measure = Callable[[Route, Workload, Pace], tuple[Figures, float]]


def isolated_run(topology: Topology) -> Measure:
    """A run on processes that have not seen another workload, whose memory it could hide in."""

    def measure(_: Route, workload: Workload, pace: Pace) -> tuple[Figures, float]:
        foreign: list[float] = []

        def once(one: Workload) -> Figures:
            figures, busy = run_once(route, one, pace)
            foreign.append(busy)
            return figures

        with Stage(topology.name) as stage:
            route = topology.open(stage)
            return isolated(workload, once), max(foreign)

    return measure


def _counted_run(counting: Counting) -> Measure:
    def measure(route: Route, workload: Workload, pace: Pace) -> tuple[Figures, float]:
        return count_once(route, workload, pace, counting), 0.0

    return measure
