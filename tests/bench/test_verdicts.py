import math

import pytest

from bench.verdicts import (
    ENOUGH_ROUNDS,
    FEWEST_ROUNDS,
    LOOSEST_TOLERANCE,
    NEAR,
    SMALLEST_TOLERANCE,
    Bound,
    Promise,
    Verdict,
    count_lines,
    judge_count,
    judge_promise,
    judge_ratio,
    own_delay,
    promise_lines,
    ratio_lines,
    split_loose,
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
    assert judge_ratio([0.7, 3.0, 0.7, 0.7, 0.7, 0.7, 3.0], HIGHER) is Verdict.PASS
    assert judge_ratio([0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 3.0], HIGHER) is Verdict.FAIL


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


AT_MOST, AT_LEAST = Promise(300.0, at_most=True), Promise(0.9, at_most=False, near=0.03)


@pytest.mark.parametrize(
    ("promise", "good", "near", "bad"), [(AT_MOST, 200.0, 299.0, 301.0), (AT_LEAST, 0.99, 0.91, 0.89)]
)
def test_a_promise_is_kept_broken_or_measured_again(promise, good, near, bad):
    assert judge_promise([good] * FEWEST_ROUNDS, promise) is Verdict.PASS
    assert judge_promise([near] * FEWEST_ROUNDS, promise) is Verdict.MORE
    assert judge_promise([near] * ENOUGH_ROUNDS, promise) is Verdict.PASS
    assert judge_promise([bad] * (ENOUGH_ROUNDS - 1), promise) is Verdict.MORE
    assert judge_promise([bad] * ENOUGH_ROUNDS, promise) is Verdict.FAIL
    assert judge_promise([bad, bad, bad, good, bad, bad, bad], promise) is Verdict.PASS
    assert judge_promise([], promise) is Verdict.MORE
    assert judge_promise(None, promise) is Verdict.MISSING


def test_what_is_exactly_at_its_limit_keeps_the_promise():
    assert judge_promise([300.0] * ENOUGH_ROUNDS, AT_MOST) is Verdict.PASS
    assert judge_promise([0.9] * ENOUGH_ROUNDS, AT_LEAST) is Verdict.PASS


def test_a_delay_is_the_relays_own_less_what_is_there_without_it():
    assert own_delay(900.0, 700.0) == 200.0
    assert own_delay(200.0, 700.0) == -500.0
    assert own_delay(200.0, 0.0) == 200.0
    assert judge_promise([own_delay(200.0, 700.0)] * FEWEST_ROUNDS, AT_MOST) is Verdict.PASS


def test_a_line_of_a_promise_names_its_limit():
    lines = {line.name: line for line in promise_lines({"a": [400.0] * 7}, {"a": AT_MOST, "gone": AT_LEAST})}
    assert (lines["a"].limit, lines["a"].verdict) == ("at most 300", Verdict.FAIL)
    assert (lines["gone"].limit, lines["gone"].verdict) == ("at least 0.9", Verdict.MISSING)


def test_a_loose_bound_is_left_out_for_a_twin_that_is_not_or_drawn_in():
    tight, loose, slow = Bound(1.0, 0.8), Bound(1.0, 0.5), Bound(2.0, 20.0)
    bounds = {"a": loose, "cost a": tight, "b": loose, "cost b": slow, "c": loose, "d": tight, "cost d": tight}
    kept, left_out = split_loose(bounds, {"a": "cost a", "b": "cost b", "d": "cost d"})
    assert left_out == {"a": loose}
    assert set(kept) == set(bounds) - {"a"}
    assert kept["d"].limit == pytest.approx(0.8)
    assert kept["b"].limit == kept["c"].limit == pytest.approx(1 / 1.6)
    assert kept["cost b"].limit == pytest.approx(2 * 1.6)
    assert all(bound.tolerance <= LOOSEST_TOLERANCE + 1e-9 for bound in kept.values())
