"""What holds for every test: it leaves signals as they were, and an asynchronous one has a bound in real time.

The bound is ``bounds.BOUND_S``, or that of the mark ``bound(seconds)``.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Iterator
from functools import partial

import bounds
import pytest


@pytest.fixture(autouse=True)
def signals_are_left_alone() -> Iterator[None]:
    """A handler that stays behind is one of an event loop that has ended: interrupts would be lost in it ever after."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    changed = [number for number, handler in before.items() if signal.getsignal(number) is not handler]
    for number in changed:
        signal.signal(number, before[number])
    assert not changed


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
