"""The sampler in the relay, and what is made of its stacks."""

from bench.loadgen import Job
from bench.profile import own_shares, profile, read_stacks, whole_shares
from bench.suite import Pace
from bench.workload import Workload


def test_shares_count_a_function_once_per_stack():
    stacks = [(("a", "b", "a", "main"), 3), (("b", "main"), 1)]
    assert own_shares(stacks) == {"a": 0.75, "b": 0.25}
    assert whole_shares(stacks) == {"b": 1.0, "main": 1.0, "a": 0.75}


def test_names_are_short():
    frames = [["/x/site-packages/trio/_core/_run.py", "run"], ["/usr/lib/enum.py", "Enum.__hash__"]]
    assert read_stacks([[frames, 2]]) == [(("trio/_core/_run.py:run", "enum.py:Enum.__hash__"), 2)]


def test_a_profile_names_the_relay_s_functions():
    workload = Workload("pairs", "", (Job("ping", 64, count=20),), headline="messages/s", shows=())
    told = []
    text = profile(workload, Pace(1, warm_s=0.0, measured_s=0.5), told.append)
    assert "samples" in told[0]
    assert "net/session.py:" in text
    assert text.count("100.0%") >= 1
