"""The relay under the benchmarks' own listener and senders, in small."""

import dataclasses

import pytest

from bench import connections
from bench.connections import Growth, held_text, hold, stepwise
from bench.loadgen import Job
from bench.suite import Pace, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.workload import Workload


def test_growth_is_the_slope_of_the_readings():
    growth = Growth.of([(0, 1_000), (10, 1_500), (20, 2_000)])
    assert growth.each_bytes == pytest.approx(50)


@pytest.mark.parametrize("count", [1, 3, 4, 10, 10_001])
def test_steps_add_up(count):
    assert sum(stepwise(count)) == count


def test_no_more_is_held_than_there_may_be_open_files(monkeypatch):
    monkeypatch.setattr(connections, "raise_open_files_limit", lambda wanted: 1_100)
    assert connections.most(2_000, 2) == 500
    assert connections.most(200, 2) == 200


def test_the_relay_holds_listeners_and_sessions_that_stay_alive(monkeypatch):
    monkeypatch.setattr(connections, "SETTLE_S", 0.0)
    told = []
    held = hold(60, 80, told.append)
    assert held.answered_sessions == 80
    assert held.answered_entities == 3
    assert [count for count, _ in held.sessions.readings] == [0, 20, 40, 60, 80]
    assert len(told) == 8
    assert "KiB each" in held_text(held)
    assert "fewer than asked" not in held_text(held)
    assert "- 20 sessions fewer than asked" in held_text(dataclasses.replace(held, asked_sessions=100))


def test_the_relay_carries_every_kind_of_job():
    jobs = (Job("ping", 64), Job("sink", 100_000), Job("source", 125), Job("echo", 70_000), Job("join", 64, count=2))
    workload = Workload("all", "", jobs, headline="p50 µs", shows=())
    with Stage("test") as stage:
        figures, _ = run_once(TOPOLOGIES["relay-trio"].open(stage), workload, Pace(1, warm_s=0.05, measured_s=0.1))
    assert figures["p50 µs"] > 0
    assert figures["beside MiB/s"] > 0
    assert figures["CPU µs/message"] > 0
