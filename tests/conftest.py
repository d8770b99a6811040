"""Every asynchronous test has a bound in real time: ``bounds.BOUND_S``, or that of its mark ``bound(seconds)``."""

from __future__ import annotations

import inspect
import os
from functools import partial

import bounds
import pytest


def pytest_configure() -> None:
    bounds.watch.start(os.dup(2))  # nothing is captured yet: this is where pytest itself writes


@pytest.hookimpl(trylast=True)  # after pytest-trio has marked what is asynchronous
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("bound")
        seconds = mark.args[0] if mark else bounds.BOUND_S
        if item.get_closest_marker("trio"):
            item.add_marker(pytest.mark.trio(run=partial(bounds.run, seconds=seconds)), append=False)
        # Under Hypothesis pytest-trio does not ask the mark, and each example is a run.
        given = getattr(getattr(item, "obj", None), "hypothesis", None)
        if given and inspect.iscoroutinefunction(given.inner_test):
            given.inner_test = bounds.bounded(given.inner_test, seconds)
