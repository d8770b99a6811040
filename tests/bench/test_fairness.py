"""What isolation compares, and in which order."""

import pytest

from bench.fairness import WORKLOADS, isolated, kept
from bench.suite import Pace, run_suite
from bench.topologies import TOPOLOGIES
from bench.workload import Workload

ISOLATING = next(workload for workload in WORKLOADS if workload.isolates)


def test_kept_is_the_rate_together_over_the_rate_alone():
    alone = [{"MiB/s": 100.0, "CPU s/GiB": 0.4}, {"MiB/s": 60.0, "CPU s/GiB": 0.5}]
    together = [{"MiB/s": 90.0, "CPU s/GiB": 0.5}, {"MiB/s": 62.0, "CPU s/GiB": 0.5}]
    assert kept(alone, together) == {"kept": pytest.approx(0.95), "kept by CPU": pytest.approx(0.9)}
    assert kept([{"MiB/s": 2.0}], [{"MiB/s": 1.0}]) == {"kept": 0.5}


def test_a_machine_that_grows_slower_falls_on_both_alike():
    rates, asked = iter([100.0, 90.0, 80.0, 70.0]), []

    def measure(workload):
        asked.append(len(workload.jobs))
        return {"MiB/s": next(rates), "KiB/stalled": float(len(asked))}

    figures = isolated(ISOLATING, measure)
    assert asked == [1, 3, 3, 1]
    assert figures["kept"] == 1.0
    assert figures["KiB/stalled"] == 2.0
    assert figures["MiB/s"] == 90.0


def test_the_suite_opens_the_topology_again_for_it():
    told = []
    pace = Pace(rounds=1, warm_s=0.02, measured_s=0.05, lead_s=0.05)
    (run,) = run_suite([TOPOLOGIES["trio-splice"]], [ISOLATING], pace, told.append)
    assert run.failure == ""
    assert run.figures["kept"] > 0
    assert "KiB/stalled" in run.figures


def test_names_are_not_used_twice():
    from bench.__main__ import WORKLOADS as every

    assert all(isinstance(workload, Workload) and name == workload.name for name, workload in every.items())
    assert {workload.name for workload in WORKLOADS} <= set(every)
