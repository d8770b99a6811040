import json

from bench.loadgen import Job
from bench.report import digest, document, noise_line, number, summarise, table, workload_table
from bench.suite import Pace, Run
from bench.workload import Workload

BULK = Workload("bulk", "one stream", (Job("sink", 1),), headline="MiB/s", shows=("CPU s/GiB", "busy"))
PACE = Pace(rounds=2, warm_s=0, measured_s=1)


def run(topology, number, rate, **more):
    return Run("bulk", topology, number, figures={"MiB/s": rate, "CPU s/GiB": 0.5, "busy": 1.0, "starved": 0.0, **more})


def test_numbers_have_three_digits():
    texts = [number(value) for value in (1234567.0, 999.6, 123.4, 12.34, 1.234, 0.1234)]
    assert texts == ["1 234 567", "1000", "123", "12.3", "1.23", "0.123"]


def test_table_lines_are_of_one_width():
    lines = table([["a", "long head"], ["a longer cell", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|")


def test_ratios_are_of_the_same_round():
    runs = [run("direct", 0, 100.0), run("ours", 0, 50.0), run("direct", 1, 200.0), run("ours", 1, 50.0)]
    summary = summarise(runs, [BULK], ["direct", "ours"])
    ours = next(entry for entry in summary if entry["topology"] == "ours")
    assert (ours["ratios"]["direct"].low, ours["ratios"]["direct"].high) == (0.25, 0.5)
    text = workload_table(BULK, summary, PACE)
    assert "0.375 (0.250 .. 0.500)" in text
    assert "150 (100 .. 200)" in text


def test_a_process_with_time_to_spare_is_marked():
    runs = [run("direct", 0, 100.0, busy=0.0), run("ours", 0, 50.0, busy=0.4)]
    text = workload_table(BULK, summarise(runs, [BULK], ["direct", "ours"]), PACE)
    assert "50.0 (50.0 .. 50.0)*" in text
    assert "100 (100 .. 100)*" not in text
    assert "time to spare" in text


def test_the_digest_has_a_line_per_workload_and_leaves_out_the_price_of_nothing():
    runs = [run("direct", 0, 100.0, busy=0.0), run("ours", 0, 50.0, busy=0.4, **{"CPU µs/message": 7.0})]
    text = digest([BULK], summarise(runs, [BULK], ["direct", "ours"]))
    headlines, costs = text.split("\n\n")
    assert headlines.splitlines()[2].split() == ["|", "bulk", "|", "MiB/s", "|", "100", "|", "50.0*", "|"]
    assert costs.splitlines()[2].split() == ["|", "bulk", "|", "CPU", "µs/message", "|", "7.00", "|"]


def test_added_time_is_told_of_those_workloads_that_show_it():
    paced = Workload("paced", "", (Job("ping", 64, rate=5),), headline="p99 µs", shows=("added p99 µs",))
    runs = [run("direct", 0, 100.0, **{"p99 µs": 30.0}), run("ours", 0, 50.0, **{"p99 µs": 70.0})]
    runs += [Run("paced", each.topology, 0, figures=each.figures) for each in runs]
    text = digest([BULK, paced], summarise(runs, [BULK, paced], ["direct", "ours"]))
    added = text.split("\n\n")[-1].splitlines()
    assert "p99 more than direct" in added[0]
    assert [line.split()[1] for line in added[2:]] == ["paced"]
    assert added[2].split()[-2] == "40.0"


def test_a_starved_process_is_marked_so():
    runs = [run("direct", 0, 100.0, busy=0.0), run("ours", 0, 50.0, busy=0.4, starved=0.5)]
    text = workload_table(BULK, summarise(runs, [BULK], ["direct", "ours"]), PACE)
    assert "50.0 (50.0 .. 50.0)†" in text
    assert "other work had the core" in text
    assert "time to spare" not in text


def test_a_failed_topology_keeps_its_line():
    runs = [run("direct", 0, 100.0), Run("bulk", "ours", 0, failure="lost")]
    summary = summarise(runs, [BULK], ["direct", "ours"])
    assert summary[1]["failed_runs"] == 1
    assert "failed" in workload_table(BULK, summary, PACE)


def test_a_busy_machine_is_told():
    quiet, busy = run("direct", 0, 1.0), run("direct", 0, 1.0)
    busy.foreign_busy = 0.7
    assert "not a quiet machine" not in noise_line([quiet])
    assert "not a quiet machine" in noise_line([busy])
    assert noise_line([Run("bulk", "ours", 0, failure="lost")]) == "no run succeeded"


def test_document_is_json():
    runs = [run("direct", 0, 100.0)]
    made = document({"CPU": "one"}, PACE, runs, summarise(runs, [BULK], ["direct"]), [BULK], notes=[])
    assert json.loads(json.dumps(made))["summary"][0]["figures"]["MiB/s"]["median"] == 100.0
