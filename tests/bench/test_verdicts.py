import math

import pytest

from bench.verdicts import (
    ENOUGH_ROUNDS,
    FEWEST_ROUNDS,
    NEAR,
    SMALLEST_TOLERANCE,
    Bound,
    Verdict,
    count_lines,
    judge_count,
    judge_ratio,
    ratio_lines,
)

HIGHER = Bound(median=1.0, limit=0.8)
LOWER = Bound(median=2.0, limit=2.5)


@pytest.mark.parametrize(("bound", "good", "bad"), [(HIGHER, 1.0, 0.7), (LOWER, 2.0, 2.9)])
def test_both_directions_can_pass_and_fail(bound, good, bad):
    assert judge_ratio([good] * FEWEST_ROUNDS, bound) is Verdict.PASS
    assert judge_ratio([bad] * ENOUGH_ROUNDS, bound) is Verdict.FAIL


@pytest.mark.parametrize("ratios", [[], [0.1], [0.1] * (ENOUGH_ROUNDS - 1)])
def test_few_rounds_never_fail(ratios):
    assert judge_ratio(ratios, HIGHER) is Verdict.MORE


def test_few_rounds_pass_only_far_from_the_limit():
    near = 0.8 * math.exp(NEAR / 2)
    assert judge_ratio([1.0] * (FEWEST_ROUNDS - 1), HIGHER) is Verdict.MORE
    assert judge_ratio([near] * FEWEST_ROUNDS, HIGHER) is Verdict.MORE
    assert judge_ratio([near] * ENOUGH_ROUNDS, HIGHER) is Verdict.PASS
    assert judge_ratio([0.8 / math.exp(NEAR / 2)] * ENOUGH_ROUNDS, HIGHER) is Verdict.FAIL


def test_single_strays_do_not_decide():
    assert judge_ratio([0.1, 1.0, 0.1, 1.0, 1.0, 0.1, 1.0], HIGHER) is Verdict.PASS
    assert judge_ratio([0.7, 3.0, 0.7, 3.0, 0.7, 0.7, 3.0], HIGHER) is Verdict.FAIL


def test_what_is_missing_or_new_is_a_failure():
    assert judge_ratio(None, HIGHER) is Verdict.MISSING
    assert judge_ratio([1.0] * 9, None) is Verdict.NEW
    assert Verdict.MISSING.is_failure
    assert Verdict.NEW.is_failure
    assert Verdict.FAIL.is_failure
    assert not any(each.is_failure for each in (Verdict.PASS, Verdict.MORE, Verdict.BETTER))


def test_a_gain_asks_for_a_new_baseline():
    assert judge_ratio([1.5] * FEWEST_ROUNDS, HIGHER) is Verdict.BETTER
    assert judge_ratio([1.0] * FEWEST_ROUNDS, LOWER) is Verdict.BETTER


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_a_bound_lies_beyond_the_worst_of_what_was_measured(lower_is_better):
    measured = [1.0, 0.9, 1.1, 1.3, 0.7]
    bound = Bound.of(measured, lower_is_better=lower_is_better)
    assert bound.median == 1.0
    assert bound.lower_is_better is lower_is_better
    assert (bound.limit > 1.3) if lower_is_better else (bound.limit < 0.7)
    for each in measured:
        assert judge_ratio([each] * ENOUGH_ROUNDS, bound) in (Verdict.PASS, Verdict.BETTER)


def test_a_steady_machine_still_leaves_some_room():
    assert Bound.of([2.0] * 10, lower_is_better=False).tolerance == pytest.approx(SMALLEST_TOLERANCE)


@pytest.mark.parametrize(
    ("count", "recorded", "verdict"),
    [
        (128, 128, Verdict.PASS),
        (129, 128, Verdict.FAIL),
        (127, 128, Verdict.BETTER),
        (None, 128, Verdict.MISSING),
        (128, None, Verdict.NEW),
        (1, 0, Verdict.FAIL),
    ],
)
def test_counts_know_no_noise(count, recorded, verdict):
    assert judge_count(count, recorded) is verdict


def test_lines_name_what_is_worse_by_how_much():
    lines = {line.name: line for line in ratio_lines({"a": [0.5] * 7, "new": [1.0]}, {"a": HIGHER, "gone": HIGHER})}
    assert lines["a"].verdict is Verdict.FAIL
    assert lines["a"].change == "-50%"
    assert lines["new"].verdict is Verdict.NEW
    assert lines["gone"].verdict is Verdict.MISSING
    lines = {line.name: line for line in count_lines({"a": 3, "new": 1}, {"a": 2, "gone": 1})}
    assert (lines["a"].verdict, lines["a"].change) == (Verdict.FAIL, "+1")
    assert lines["new"].verdict is Verdict.NEW
    assert lines["gone"].verdict is Verdict.MISSING
