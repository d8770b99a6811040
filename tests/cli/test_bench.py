"""``relaycore bench``: everything runs once, and the table says what was the limit."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path

import pytest
from programs import finish, run_program

from relaycore.cli.bench import report
from relaycore.cli.exits import ExitCode
from relaycore.selfcheck.measure import FIGURES, Limit, Outcome, Pace

FACTS = {
    "relaycore": "1",
    "python": "3",
    "trio": "0",
    "cffi": "2",
    "mask": "portable",
    "mover": "Trio",
    "system": "Linux",
    "cores": 2,
    "congestion_control": "cubic",
    "load_average": 0.1,
}


async def test_a_quick_run_measures_everything_and_leaves_no_process(tmp_path):
    mark = f"BENCH_MARK={tmp_path}"
    environ = {"BENCH_MARK": str(tmp_path), "RELAYCORE_SERVER_PORT": "not a port"}  # the user's settings stay out
    code, out, err = await finish("bench", "--quick", "--json", environ=environ)
    assert (code, err) == (0, "round 1 of 1\n")
    document = json.loads(out)
    assert document["rounds"] == 1
    assert document["mover"] in ("engine", "Trio")
    assert document["mask"]
    assert [each["name"] for each in document["figures"]] == [figure.name for figure in FIGURES]
    for each in document["figures"]:
        assert each["direct"][0] > 0
        assert each["relay"][0] > 0
        assert each["ratio"] == pytest.approx(each["relay"][0] / each["direct"][0])
        assert each["limit"] in [limit.value for limit in Limit]
    assert processes(mark) == []


def processes(mark: str) -> list[Path]:
    """Every process that was started with `mark` in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(entry)
    return found


async def test_no_secret_stands_in_a_command_line_and_ctrl_c_ends_everything(tmp_path):
    async with run_program("bench", "--seconds", "20", environ={"BENCH_MARK": str(tmp_path)}) as program:
        await program.wait_err("round 1 of 3")
        mine = processes(f"BENCH_MARK={tmp_path}")
        assert len(mine) == 4
        lines = [(entry / "cmdline").read_bytes() for entry in mine]
        assert not [line for line in lines if b"Shared" in line or b"sig=" in line]
        program.signal(signal.SIGINT)
        assert await program.exit_code() == ExitCode.INTERRUPTED
        assert b"Traceback" not in program.err
    assert processes(f"BENCH_MARK={tmp_path}") == []


@pytest.mark.parametrize("given", ["0", "-1", "soon", "61", "nan", "inf"])
def test_seconds_have_bounds(invoke, given):
    assert invoke("bench", "--seconds", given).exit_code == ExitCode.USAGE


def outcomes(**shares):
    made = [Outcome(figure, [100.0], [50.0], [0.5], [0.5]) for figure in FIGURES]
    for name, value in shares.items():
        setattr(made[0], name, value)
    return made


@pytest.mark.parametrize(
    ("relay", "load", "limit"),
    [([0.99], [0.99], Limit.RELAY), ([0.5], [0.95], Limit.LOAD), ([0.5, 0.9, 0.9], [0.1] * 3, Limit.RELAY)],
)
def test_who_was_the_limit(relay, load, limit):
    outcome = Outcome(FIGURES[0], [1.0], [1.0], relay, load)
    assert outcome.limit is limit


def test_nobody_was_busy_and_shares_of_one_core_say_nothing():
    assert Outcome(FIGURES[0], [1.0], [1.0], [0.3], [0.3]).limit is Limit.NEITHER
    assert Outcome(FIGURES[0], [1.0], [1.0], [0.9], [0.3], shares_count=False).limit is Limit.UNKNOWN


def test_ratios_are_made_of_the_same_round():
    assert Outcome(FIGURES[0], [100.0, 200.0, 50.0], [50.0, 100.0, 40.0], [], []).ratio == 0.5


def test_the_report_says_when_the_load_was_the_limit():
    text = report(FACTS, Pace(3, 1.0), outcomes(relay_busy=[0.4], load_busy=[0.99]))
    assert "load*" in text
    assert "the relay can do more" in text
    assert "Nobody was busy" in text
    assert "other work before" not in text
    assert "sessions moved by Trio" in text


def test_the_report_of_a_crowded_machine_says_so():
    made = [Outcome(figure, [100.0], [50.0], [1.0], [0.5]) for figure in FIGURES]
    text = report({**FACTS, "load_average": 3.0, "mover": "engine"}, Pace(3, 1.0), made)
    assert "run it again when it is quiet" in text
    assert "*" not in text
    assert "moved by the engine" in text


def test_lines_of_the_table_stand_below_each_other():
    lines = report(FACTS, Pace(3, 1.0), outcomes()).splitlines()
    table = [line for line in lines if line.startswith(("one stream", "ping-pong", "sessions"))]
    assert len(table) == len(FIGURES)
    assert len({line.rindex(" 0.50") for line in table}) == 1


@pytest.mark.parametrize("role", ["", "nobody"])
async def test_the_roles_are_not_for_people(role):
    code, _, err = await finish(command=[sys.executable, "-m", "relaycore.selfcheck", *([role] if role else [])])
    assert code == 1
    assert "relaycore bench" in err
