"""Runs every workload on every topology, in rounds, and keeps what each run counted.

Order: all topologies of one workload, then the next workload, then the next round. Two figures that are compared were
therefore taken within seconds of each other, and a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .figures import Figures, figures_of
from .loadgen import Load, Route, client_settings
from .processes import BenchError, cores, ending, machine_busy_s, place
from .topologies import Stage, Topology
from .workload import Workload

RUN_LIMIT_S = 60
"""One run ends after this, whatever happens; a slow relay has full socket buffers to empty when the time is over."""


@dataclass(frozen=True)
class Pace:
    """How long and how often."""

    rounds: int
    warm_s: float
    measured_s: float


QUICK = Pace(rounds=1, warm_s=0.05, measured_s=0.2)
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
    load_cores, test_cores = placement(workload, cores())
    for pid in route.load:
        place(pid, load_cores)
    for pid in route.under_test:
        place(pid, test_cores)
    started, busy = time.monotonic(), machine_busy_s()
    client = Load(
        "client",
        client_settings(
            route,
            workload.jobs,
            warm_s=pace.warm_s if workload.warm else 0.0,
            measured_s=pace.measured_s,
            limit_s=RUN_LIMIT_S,
        ),
    )
    with ending(client.process):
        place(client.pid, load_cores)
        result = client.answer(RUN_LIMIT_S + 5.0)
        ours = result["own_cpu_seconds"] + sum(result["watched_cpu_seconds"])
        share = ours / max(result["seconds"], 1e-3)
        foreign = (machine_busy_s() - busy) / (time.monotonic() - started) - share
    return figures_of(result, under_test=len(route.under_test)), max(0.0, foreign)


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
    """Every round of all that each topology carries. A run that fails is kept with its reason, and the others go on."""
    runs: list[Run] = []
    with opened(topologies, say) as routes:
        for number in range(pace.rounds):
            for workload in workloads:
                for name in (each.name for each in topologies if workload.carried in each.carries):
                    run = Run(workload.name, name, number)
                    runs.append(run)
                    route = routes.get(name)
                    if route is None:
                        run.failure = "did not start"
                        continue
                    try:
                        run.figures, run.foreign_busy = run_once(route, workload, pace)
                    except BenchError as error:
                        run.failure = str(error)
                        say(f"round {number + 1}: {workload.name} on {name} failed: {error}")
            say(f"round {number + 1} of {pace.rounds} done")
    return runs
