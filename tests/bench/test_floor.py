"""The least of relays joins, carries every kind of job, and lets go."""

import os

import pytest

from bench.loadgen import Job
from bench.processes import BenchError, at_once
from bench.suite import Pace, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.workload import Workload

pytestmark = pytest.mark.usefixtures("sanitized_load")


def test_the_floor_carries_every_kind_of_job():
    jobs = (
        Job("ping", 64, count=5),
        Job("sink", 100_000),
        Job("source", 125),
        Job("echo", 70_000),
        Job("join", 64, count=4),
        Job("stall", 65_536),
        Job("unread", 65_536),
    )
    workload = Workload("all", "", jobs, headline="p50 µs", shows=())
    pace = Pace(1, warm_s=0.05, measured_s=0.1, lead_s=0.05)
    with Stage("test") as stage:
        route = TOPOLOGIES["floor"].open(stage)
        for _ in range(2):
            figures, _ = run_once(route, workload, pace)
    assert figures["p50 µs"] > 0
    assert figures["beside MiB/s"] > 0
    assert figures["busy"] > 0


def test_urgent_pings_have_a_client_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """What runs beside them lasts longer than they do, and all priorities are given back."""
    given: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, param: given.append((pid, policy, param)))
    monkeypatch.setattr(os, "sched_param", int)
    workload = Workload(
        "urgent",
        "",
        (Job("ping", 64, count=5, rate=200), Job("sink", 65_536)),
        headline="p99 µs",
        shows=(),
        urgent=True,
    )
    with Stage("test") as stage:
        route = TOPOLOGIES["floor"].open(stage)
        figures, _ = run_once(route, workload, Pace(1, warm_s=0.05, measured_s=0.2, lead_s=0.1))
    assert figures["p99 µs"] > 0
    assert figures["beside MiB/s"] > 0
    assert figures["messages/s"] == pytest.approx(1_000, rel=0.2)
    raised = {pid: priority for pid, policy, priority in given if policy == os.SCHED_FIFO}
    lowered = {pid for pid, policy, _ in given if policy == os.SCHED_OTHER}
    assert lowered == set(raised)
    assert sorted(set(raised.values())) == [5, 10, 20]


def test_priority_that_we_may_not_give_is_said(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(BenchError, match="CAP_SYS_NICE"), at_once([os.getpid()], 1):
        pass
