"""Durations that are counted by how long they were."""

from __future__ import annotations

import functools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.spent import BOUNDS_S, Spent


@given(st.lists(st.floats(0, 1e6)), st.lists(st.floats(0, 1e6)))
def test_every_duration_is_in_one_bucket(first: list[float], second: list[float]):
    found = functools.reduce(Spent.plus, first, Spent()) + functools.reduce(Spent.plus, second, Spent())
    both = first + second
    assert found.count == len(both) == sum(found.buckets)
    expected = [sum(seconds <= bound for seconds in both) for bound in BOUNDS_S]
    assert found.cumulative() == [*expected, len(both)]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Spent) == found


def test_what_an_older_program_says_can_be_read():
    """A command may be of a later version than the program that it asks."""
    assert msgspec.json.decode(b'{"count": 2, "seconds": 0.5}', type=Spent).count == 2
