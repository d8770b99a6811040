"""The sampler in the relay, and what is made of its stacks."""

from bench.loadgen import Job
from bench.processes import ROOT
from bench.profile import itself, own_line, profile, read_stacks, shares, with_callees
from bench.suite import Pace
from bench.workload import Workload

TRIO = ["/x/site-packages/trio/_core/_run.py", "run", 7]
OURS = [str(ROOT / "relaycore" / "net" / "a.py"), "A.move", 3]


def test_shares_count_a_name_once_per_sample():
    stacks = read_stacks([([TRIO, OURS, TRIO], 3), ([OURS], 1)])
    assert shares(stacks, itself) == {"trio/_core/_run.py:run": 0.75, "net/a.py:A.move": 0.25}
    assert shares(stacks, with_callees) == {"net/a.py:A.move": 1.0, "trio/_core/_run.py:run": 0.75}


def test_what_is_not_ours_counts_for_the_line_that_called_it():
    stacks = read_stacks([([TRIO, OURS, TRIO], 1), ([TRIO], 1)])
    assert shares(stacks, own_line) == {"net/a.py:A.move:3": 0.5, "(none of ours)": 0.5}


def test_a_profile_names_the_relay_s_functions():
    workload = Workload("joins", "", (Job("join", 64, count=20),), headline="messages/s", shows=())
    told = []
    text = profile(workload, Pace(1, warm_s=0.0, measured_s=0.5), told.append)
    assert "samples" in told[0]
    assert "gateway/relay_stream.py:" in text
