"""The least of relays joins, carries every kind of job, and lets go."""

import pytest

from bench.loadgen import Job
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
