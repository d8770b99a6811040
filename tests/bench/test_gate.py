import json
import math

import pytest

from bench import gate
from bench.gate import (
    BASELINE,
    COMPARISONS,
    OURS,
    PROMISES,
    TWINS,
    check,
    main,
    measure,
    measure_promised,
    measure_round,
    read_baseline,
    record,
    text_of,
)
from bench.loadgen import Route
from bench.processes import BenchError
from bench.topologies import TOPOLOGIES
from bench.verdicts import ENOUGH_ROUNDS, FEWEST_ROUNDS, Verdict

NAMES = ("direct", OURS, "relay-trio", "naive")
COUNTS = {"receives": 3}
KEPT = {
    "least share": 0.99,
    "most share": 1.01,
    "p99 µs": 200.0,
    "KiB/stalled": 80.0,
    "kept": 1.0,
    "kept by CPU": 1.0,
    "starved": 0.0,
}
PROMISED = {each.workload for each in PROMISES}


class Machine:
    """Plays the benchmark: every run of `ours` is `speed` times as fast as the others, and there is no noise.

    `kept` are the figures of promises; those of `direct` are in `direct`.
    """

    def __init__(self, speed=1.0):
        self.speed = speed
        self.runs = []
        self.broken = ()
        self.foreign = 0.0
        self.kept = dict(KEPT)
        self.direct = {"p99 µs": 150.0}

    def run_once(self, route, workload, pace):
        name = route.target
        self.runs.append((workload.name, name))
        if (workload.name, name) in self.broken:
            raise BenchError("a stream was lost")
        if workload in PROMISED:
            return dict(self.kept if name == OURS else self.direct), self.foreign
        figures = {each.figure for each in COMPARISONS if each.workload.name == workload.name}
        speed = self.speed if name == OURS else 1.0
        lower = {each.figure for each in COMPARISONS if each.lower_is_better}
        return {figure: 1 / speed if figure in lower else speed for figure in figures}, self.foreign


@pytest.fixture
def machine(monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def opened(topologies, say):
        yield {each.name: Route("127.0.0.1", 1, each.name, (), ()) for each in topologies}

    found = Machine()
    monkeypatch.setattr(gate, "run_once", found.run_once)
    monkeypatch.setattr(gate, "isolated_run", lambda topology: found.run_once)
    monkeypatch.setattr(gate, "opened", opened)
    monkeypatch.setattr(gate, "count_everything", lambda: dict(COUNTS))
    monkeypatch.setattr(gate, "separate", lambda: None)
    monkeypatch.setattr(gate, "build", lambda: None)
    return found


@pytest.fixture
def baseline(machine, tmp_path):
    path = tmp_path / "baseline.json"
    record(path, 3)
    machine.runs.clear()
    return path


def test_what_is_compared_exists():
    for each in COMPARISONS:
        assert each.base in TOPOLOGIES
    assert OURS in TOPOLOGIES
    assert len({each.name for each in COMPARISONS}) == len(COMPARISONS)


def test_the_baseline_of_the_tree_fits_what_is_compared():
    standing = read_baseline(BASELINE)
    assert set(standing.bounds) | standing.left_out == {each.name for each in COMPARISONS}
    for each in COMPARISONS:
        if each.name not in standing.left_out:
            assert standing.bounds[each.name].lower_is_better is each.lower_is_better
    assert standing.counts


def test_no_ratio_in_the_baseline_of_the_tree_may_become_more_than_1_6_times_as_bad():
    assert max(bound.tolerance for bound in read_baseline(BASELINE).bounds.values()) <= math.log(1.601)


def test_the_baseline_of_the_tree_names_no_path():
    assert "/" not in json.dumps(json.loads(BASELINE.read_text())["machine"])


def test_as_fast_as_recorded_passes_in_the_fewest_rounds(machine, baseline, capsys):
    assert main(["--baseline", str(baseline)]) == 0
    assert machine.runs.count(("bulk-64k", OURS)) == FEWEST_ROUNDS
    assert "WORSE" not in capsys.readouterr().out


def test_slower_fails_after_enough_rounds_and_says_what_to_do(machine, baseline, capsys):
    machine.speed = 0.5
    assert main(["--baseline", str(baseline)]) == 1
    assert machine.runs.count(("bulk-64k", OURS)) == ENOUGH_ROUNDS
    text = capsys.readouterr().out
    assert text.count("WORSE") == len(COMPARISONS)
    assert "-50%" in text
    assert "+100%" in text
    assert "--record" in text


def test_only_what_stands_near_its_limit_is_measured_again(machine, baseline):
    bounds = read_baseline(baseline).bounds
    name = COMPARISONS[0].name
    bounds[name] = type(bounds[name])(1.1, 0.99)
    measure(bounds, 60.0)
    assert machine.runs.count(("bulk-64k", OURS)) == ENOUGH_ROUNDS
    assert machine.runs.count(("bulk-64k", "naive")) == FEWEST_ROUNDS
    assert machine.runs.count(("pairs-64", OURS)) == FEWEST_ROUNDS


def test_without_time_for_enough_rounds_nothing_fails_and_it_is_said(machine, baseline, capsys):
    machine.speed = 0.5
    assert main(["--baseline", str(baseline), "--budget", "0"]) == 0
    assert "does not fail" in capsys.readouterr().out


@pytest.mark.parametrize(("speed", "fails"), [(0.5, True), (0.7, True), (0.999, False)])
def test_what_stands_beyond_its_limit_is_measured_in_overtime(machine, baseline, monkeypatch, speed, fails):
    """A slow build makes slow rounds: five took the time that is meant for all of them."""
    seconds = 0.0

    def run_once(route, workload, pace):
        nonlocal seconds
        seconds += 0.5
        return machine.run_once(route, workload, pace)

    monkeypatch.setattr(gate, "run_once", run_once)
    monkeypatch.setattr(gate.time, "monotonic", lambda: seconds)
    machine.speed = speed
    budget_s = 40.0
    lines = check(baseline, budget_s)
    assert any(line.verdict is Verdict.FAIL for line in lines) == fails
    assert (seconds > budget_s) == fails
    assert seconds < 3 * budget_s


def test_overtime_ends(machine, baseline, monkeypatch):
    """Where nothing but disturbed rounds come, more of them settle nothing."""
    seconds = 0.0

    def run_once(route, workload, pace):
        nonlocal seconds
        seconds += 2.0
        machine.foreign = 1.0 if seconds > 100 else 0.0
        return machine.run_once(route, workload, pace)

    monkeypatch.setattr(gate, "run_once", run_once)
    monkeypatch.setattr(gate.time, "monotonic", lambda: seconds)
    machine.speed = 0.5
    check(baseline, 50.0)
    assert 150 <= seconds < 250


def test_on_a_busy_machine_only_cpu_time_fails(machine, baseline, capsys):
    machine.speed, machine.foreign = 0.5, 1.0
    lines = check(baseline, 60.0)
    costs = {each.name for each in COMPARISONS if not each.needs_calm}
    unsettled = {each.name for each in (*COMPARISONS, *PROMISES) if each.needs_calm}
    assert {line.name for line in lines if line.verdict is Verdict.FAIL} == costs
    assert {line.name for line in lines if line.verdict is Verdict.MORE} == unsettled


def test_a_busy_machine_says_that_what_it_records_is_loose(machine, tmp_path, monkeypatch, capsys):
    speeds = iter([1.0, 0.5, 2.0])

    def run_once(route, workload, pace):
        if (
            route.target == "direct"
            and workload.name == "bulk-64k"
            and machine.runs.count(("bulk-64k", "direct")) % 3 == 0
        ):
            machine.speed = next(speeds)
        return machine.run_once(route, workload, pace)

    monkeypatch.setattr(gate, "run_once", run_once)
    record(tmp_path / "baseline.json", 3)
    assert capsys.readouterr().err.count("loose: ") == len(COMPARISONS)
    recorded = read_baseline(tmp_path / "baseline.json")
    assert not recorded.left_out
    assert max(bound.tolerance for bound in recorded.bounds.values()) <= math.log(1.601)


def test_a_loose_ratio_is_left_out_for_its_twin_and_neither_measured_nor_missed(machine, baseline):
    name, twin = next(iter(TWINS.items()))
    document = json.loads(baseline.read_text())
    document["left out"] = {name: document["ratios"].pop(name)}
    baseline.write_text(json.dumps(document))
    lines = {line.name: line.verdict for line in check(baseline, 60.0)}
    assert name not in lines
    assert lines[twin] is Verdict.PASS


def test_nothing_is_left_out_that_no_twin_stands_in_for(machine, baseline):
    document = json.loads(baseline.read_text())
    document["left out"] = {"ping-64, p50 µs: engine / direct": {"median": 1.0, "limit": 3.0}}
    baseline.write_text(json.dumps(document))
    with pytest.raises(BenchError, match="stands in"):
        read_baseline(baseline)


@pytest.mark.parametrize(
    ("figure", "value", "broken"),
    [
        ("least share", 0.89, 1),
        ("most share", 1.11, 1),
        ("p99 µs", 460.0, 1),
        ("p99 µs", 1_160.0, 2),
        ("KiB/stalled", 257.0, 1),
        ("kept", 0.94, 1),
        ("kept by CPU", 0.94, 1),
    ],
)
def test_a_broken_promise_fails_after_enough_rounds_whatever_the_baseline_says(
    machine, tmp_path, figure, value, broken
):
    machine.kept[figure] = value
    record(tmp_path / "baseline.json", 3)
    machine.runs.clear()
    failed = [line for line in check(tmp_path / "baseline.json", 60.0) if line.verdict.is_failure]
    assert {line.verdict for line in failed} == {Verdict.FAIL}
    assert len(failed) == broken
    assert all(figure in line.name for line in failed)
    workload = failed[0].name.split(",")[0]
    assert machine.runs.count((workload, OURS)) == ENOUGH_ROUNDS


def test_promises_that_are_kept_pass_in_the_fewest_rounds(machine, baseline):
    lines = {line.name: line.verdict for line in check(baseline, 60.0)}
    assert {lines[each.name] for each in PROMISES} == {Verdict.PASS}
    assert machine.runs.count(("bulk-64k-x8", OURS)) == FEWEST_ROUNDS


def test_while_the_relay_waited_for_its_core_no_promise_of_speed_is_judged(machine, baseline):
    machine.kept.update(KEPT, **{"starved": 0.2, "p99 µs": 90_000.0, "KiB/stalled": 300.0})
    lines = {line.name: line.verdict for line in check(baseline, 60.0)}
    for each in PROMISES:
        assert lines[each.name] is (Verdict.MORE if each.needs_calm else Verdict.FAIL)


def test_a_promise_that_cannot_be_measured_fails(machine, baseline):
    machine.broken = (("paced-100-beside-bulk", "direct"), ("bulk-64k-x8", OURS))
    lines = [line for line in check(baseline, 60.0) if line.verdict is Verdict.MISSING]
    assert [line.name.split(",")[0] for line in lines] == ["bulk-64k-x8"] * 2 + ["paced-100-beside-bulk"]


def test_only_delays_are_set_beside_a_direct_run_and_rounds_go_there_and_back(machine):
    routes = {name: Route("127.0.0.1", 1, name, (), ()) for name in NAMES}
    measure_promised(routes, PROMISES, backwards=True)
    paced = [run for run in machine.runs if run[0] == "paced-100-beside-bulk"]
    assert paced == [("paced-100-beside-bulk", OURS), ("paced-100-beside-bulk", "direct")]
    assert {name for workload, name in machine.runs if workload.startswith("bulk")} == {OURS}


def test_a_ratio_that_cannot_be_measured_fails(machine, baseline):
    machine.broken = (("bulk-64k", "direct"),)
    lines = {line.name: line.verdict for line in check(baseline, 60.0)}
    assert lines["bulk-64k, MiB/s: engine / direct"] is Verdict.MISSING
    assert lines["bulk-64k, MiB/s: engine / trio"] is Verdict.PASS


def test_a_ratio_without_a_baseline_fails(machine, baseline):
    document = json.loads(baseline.read_text())
    del document["ratios"][COMPARISONS[0].name]
    baseline.write_text(json.dumps(document))
    assert {line.name for line in check(baseline, 60.0) if line.verdict is Verdict.NEW} == {COMPARISONS[0].name}


def test_one_system_call_more_fails(machine, baseline, monkeypatch, capsys):
    monkeypatch.setattr(gate, "count_everything", lambda: {"receives": 4})
    assert main(["--baseline", str(baseline)]) == 1
    assert "+1" in capsys.readouterr().out


def test_a_gain_is_told_and_does_not_fail(machine, baseline, capsys):
    machine.speed = 2.0
    assert main(["--baseline", str(baseline)]) == 0
    assert "record a new baseline" in capsys.readouterr().out


def test_rounds_go_there_and_back(machine):
    routes = {name: Route("127.0.0.1", 1, name, (), ()) for name in NAMES}
    wanted = [each for each in COMPARISONS if each.workload.name == "ping-64"]
    measure_round(routes, wanted, backwards=False)
    measure_round(routes, wanted, backwards=True)
    names = [name for _, name in machine.runs]
    assert names == [*NAMES, *reversed(NAMES)]


def test_the_gate_can_run_again_and_again(machine, baseline):
    assert main(["--baseline", str(baseline), "--repeat", "20"]) == 0
    assert machine.runs.count(("bulk-64k", OURS)) == 20 * FEWEST_ROUNDS


@pytest.mark.parametrize("text", [None, "", "{}", '{"ratios": {"a": {}}, "counts": {}}'])
def test_a_baseline_that_is_none_is_no_pass(machine, tmp_path, text, capsys):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    assert main(["--baseline", str(path)]) == 2
    assert "--record" in capsys.readouterr().err


def test_what_is_wrong_stands_first(machine, baseline):
    machine.broken = (("ping-64", "naive"),)
    first = text_of(check(baseline, 60.0)).splitlines()[2]
    assert "ping-64" in first
    assert "MISSING" in first
