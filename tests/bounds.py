"""A bound in real time for each asynchronous test: one that hangs fails and says where its tasks stood, the rest go on.

No deadline of Trio does this for all of them. pytest-trio runs only those asynchronous fixtures that a test or another
fixture takes as an argument, so an automatic one with a deadline never begins; a deadline goes by the test's clock, and
a clock that jumps is hours ahead in no time; and neither says what was waited for. So a thread looks at the time, and
cancels all that was given to ``trio.run``: the test and its fixtures.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import pytest_trio.plugin
import trio

BOUND_S: Final = 120.0
"""For a test without a mark of its own; three times what the slowest such test takes on a slow machine."""

_GRACE_S: Final = 30.0
"""For a cancelled test to end. Of one that has not, the terminal is told: only ``faulthandler_timeout`` is left, which
ends the session."""

_TICK_S: Final = 0.25

_NOT_SHOWN: Final = (__file__, pytest_trio.plugin.__file__, f"{Path(trio.__file__).parent}/_core/")


class Overran(BaseException):
    """A test that was stopped. No `Exception`, so that neither a test nor Hypothesis takes it for what was expected."""


def run(async_fn: Callable[[], Awaitable[None]], *, seconds: float, **options) -> None:
    """What pytest-trio calls in place of ``trio.run``: the same, within bounds."""
    __tracebackhide__ = True
    try:
        trio.run(bounded(async_fn, seconds), **options)
    except Overran as overran:
        pytest.fail(str(overran), pytrace=False)


def bounded(async_fn: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """An asynchronous function that does the same, or raises `Overran` after so many real seconds."""

    @functools.wraps(async_fn)
    async def within(*args, **kwargs) -> None:
        __tracebackhide__ = True
        turn = watch.turn = _Turn(seconds)
        try:
            with turn.scope:
                await async_fn(*args, **kwargs)
        except BaseException as error:
            if turn.tasks:
                raise Overran(f"{turn}\non its way out: {error!r}") from error  # noqa: ASYNC104 - our own cancellation
            raise
        finally:
            watch.turn = None
        if turn.tasks:
            raise Overran(str(turn))

    return within


class _Turn:
    """One run of a test.

    Attributes:
      tasks: where each stood when it was stopped; empty until then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.scope = trio.CancelScope()
        self.tasks = ""
        self._token = trio.lowlevel.current_trio_token()
        self._test = trio.lowlevel.current_task()

    def __str__(self) -> str:
        tasks = self.tasks or "its event loop does not turn: something in it blocks\n"
        return f"took more than {self.seconds:g} s\n{tasks}"

    def stop_soon(self) -> None:
        """From any thread."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop)

    def _stop(self) -> None:
        self.tasks = "".join(_tree(self._test))
        self.scope.cancel()


def _tree(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """A task and those below it, each with what it waits for."""
    indent = "  " * depth
    yield f"{indent}{task.name}\n"
    for frame in traceback.StackSummary.extract(task.iter_await_frames()):
        if not frame.filename.startswith(_NOT_SHOWN):
            yield f"{indent}    {_short(frame.filename)}:{frame.lineno} {frame.name}: {frame.line}\n"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tree(child, depth + 1)


def _short(filename: str) -> str:
    """A path without what all of its kind begin with."""
    _, _, installed = filename.rpartition("/site-packages/")
    return installed.removeprefix(f"{Path(__file__).parent.parent}/")


class Watch:
    """The thread that looks at the time, one for the session, and what it looks at: the run under way, if any."""

    def __init__(self) -> None:
        self.turn: _Turn | None = None
        self._terminal = -1

    def start(self, terminal: int) -> None:
        """Begin.

        Args:
          terminal: a descriptor, for what no report will come to tell; it becomes ours.
        """
        self._terminal = terminal
        threading.Thread(target=self._look, name="bounds of tests", daemon=True).start()

    def _look(self) -> None:
        # Signals are for the main thread: tests are about the calls that they interrupt there.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        stopped: _Turn | None = None
        told: _Turn | None = None
        while True:
            time.sleep(_TICK_S)
            turn, now = self.turn, time.monotonic()
            if turn is None or now < turn.deadline:
                continue
            if turn is not stopped:
                stopped = turn
                turn.stop_soon()
            elif turn is not told and now > turn.deadline + _GRACE_S:
                told = turn
                os.write(self._terminal, f"\nstill not ended, {_GRACE_S:g} s after this:\n{turn}".encode())


watch: Final = Watch()
