"""What a soak complains about, and a short one."""

import pytest

from bench import soak as soaking
from bench.figures import MIB
from bench.processes import BenchError
from bench.soak import Done, Reading, Soak, judge, soak, soak_text
from bench.topologies import TOPOLOGIES

EARLY = Reading(60.0, 100 * MIB, 30, 4)


def found(late, samples=(), **work):
    return Soak(samples=list(samples), early=EARLY, late=late, work={"bulk": Done(runs=1), **work})


def test_a_relay_that_ends_as_it_began_is_fine():
    whole = found(Reading(600.0, 104 * MIB, 30, 3))
    assert judge(whole) == []
    assert "no growth" in soak_text(whole)


@pytest.mark.parametrize(
    ("late", "complaint"),
    [
        (Reading(600.0, 106 * MIB, 30, 4), "6.0 MiB more"),
        (Reading(600.0, 100 * MIB, 31, 4), "31 open files"),
        (Reading(600.0, 100 * MIB, 30, 5), "5 threads"),
    ],
)
def test_growth_at_rest_is_told(late, complaint):
    assert complaint in " ".join(judge(found(late)))


def test_growth_under_load_is_told():
    late = Reading(660.0, 100 * MIB, 30, 4)
    samples = [Reading(at, (200 + at / 10) * MIB, 90, 4) for at in range(70, 650, 10)]
    assert "last quarter" in " ".join(judge(found(late, samples)))
    level = [Reading(at, 200 * MIB, 90, 4) for at in range(70, 650, 10)]
    assert judge(found(late, level)) == []


def test_work_that_never_got_done_is_told():
    assert "joins" in " ".join(judge(found(EARLY, joins=Done())))


def test_a_short_soak_does_all_kinds_of_work(monkeypatch):
    monkeypatch.setattr(soaking, "REST_S", 0.1)
    monkeypatch.setattr(soaking, "SHIFT_S", (0.2, 0.3))
    told = []
    whole = soak(TOPOLOGIES["relay-trio"], 0.05, told.append)
    assert len(told) == 2
    assert whole.samples
    assert set(whole.work) == set(soaking.WORK)
    assert all(done.messages > 0 for done in whole.work.values())
    assert whole.late.open_files == whole.early.open_files


def test_nothing_in_between_cannot_be_soaked():
    with pytest.raises(BenchError, match="nothing that could be soaked"):
        soak(TOPOLOGIES["direct"], 0.01, print)
