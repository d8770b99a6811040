"""The relay under the benchmarks' own listener and senders, in small."""

import pytest

from bench import connections
from bench.connections import Growth, held_text, hold
from bench.loadgen import Job
from bench.suite import Pace, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.workload import Workload


def test_growth_is_the_slope_of_the_readings():
    growth = Growth.of([(0, 1_000), (10, 1_500), (20, 2_000)])
    assert growth.each_bytes == pytest.approx(50)


def test_the_relay_holds_listeners_and_sessions_that_stay_alive(monkeypatch):
    monkeypatch.setattr(connections, "SETTLE_S", 0.0)
    told = []
    held = hold(60, told.append)
    assert held.answered_sessions == 60
    assert held.answered_entities == 3
    assert [count for count, _ in held.sessions.readings] == [0, 15, 30, 45, 60]
    assert len(told) == 8
    assert "KiB each" in held_text(held)


def test_the_relay_carries_every_kind_of_job():
    jobs = (Job("ping", 64), Job("sink", 100_000), Job("source", 125), Job("echo", 70_000), Job("join", 64, count=2))
    workload = Workload("all", "", jobs, headline="p50 µs", shows=())
    with Stage("test") as stage:
        figures, _ = run_once(TOPOLOGIES["relay-trio"].open(stage), workload, Pace(1, warm_s=0.05, measured_s=0.1))
    assert figures["p50 µs"] > 0
    assert figures["beside MiB/s"] > 0
    assert figures["CPU µs/message"] > 0
