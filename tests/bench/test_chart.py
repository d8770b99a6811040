"""Charts are well-formed, to scale, and show no text that could be markup."""

from xml.etree import ElementTree

import pytest

from bench.chart import WIDTH, Bar, Line, Scale, bars, lines, nice_step, ticks
from bench.figures import Spread


def widths(figure):
    return [
        float(each.get("width")) for each in ElementTree.fromstring(figure).iter("rect") if "bar" in each.get("class")
    ]


def test_bars_are_to_scale_from_zero():
    rows = [Bar("a", "50", Spread.of([50.0])), Bar("b", "100", Spread(100.0, 80.0, 200.0), "ours")]
    assert widths(bars(rows, "rates")) == [WIDTH / 4, WIDTH / 2]


def test_values_far_apart_grow_with_the_logarithm_and_it_is_said():
    rows = [Bar(str(value), "", Spread.of([value])) for value in (20.0, 200.0, 2_000.0)]
    figure = bars(rows, "times")
    assert "logarithmic" in figure
    first, second, third = widths(figure)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert third == WIDTH


def test_only_runs_that_differ_have_a_whisker():
    assert "whisker" not in bars([Bar("a", "1", Spread.of([1.0]))], "t")
    assert "whisker" in bars([Bar("a", "1", Spread(1.0, 0.5, 2.0))], "t")


def test_a_failed_one_keeps_its_row():
    figure = bars([Bar("a", "failed", None)], "t")
    assert "failed" in figure
    assert widths(figure) == []


@pytest.mark.parametrize("spreads", [[], [Spread.of([0.0])], [Spread.of([-1.0]), Spread.of([1.0])]])
def test_a_scale_takes_what_there_is(spreads):
    scale = Scale.of(spreads)
    assert all(0 <= scale.place(spread.median) <= 1 for spread in spreads)


@pytest.mark.parametrize(("span", "step"), [(1.0, 0.2), (5.0, 1.0), (10.0, 2.0), (11.0, 5.0), (230.0, 50.0)])
def test_steps_are_round(span, step):
    assert nice_step(span) == pytest.approx(step)


def test_ticks_reach_the_highest_value():
    assert ticks(7.0) == pytest.approx([0, 2, 4, 6, 8])
    assert ticks(0.0)[0] == 0


def test_text_is_escaped():
    evil = '<script>"&'
    for svg in (
        bars([Bar(evil, evil, Spread.of([1.0]))], evil),
        lines([Line(evil, [(0, 1), (1, 2)])], evil, evil, evil),
    ):
        assert "<script>" not in svg
        ElementTree.fromstring(svg)
