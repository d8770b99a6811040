"""Where a process spends its CPU time: stacks of Python frames, taken by a signal as the time is used.

The signal comes once per ``INTERVAL_S`` of CPU time, user and system, so waiting is not seen. Python runs its handler
between two bytecodes: what C and the kernel did is counted for the function that called them. Against a clock in every
call (cProfile) this makes nothing slower.
"""

from __future__ import annotations

import collections
import json
import signal
from pathlib import Path
from types import CodeType, FrameType

INTERVAL_S = 0.001
"""The kernel rounds it up to its own tick, often 4 ms."""


class Sampler:
    """Runs from construction until :meth:`write`. Main thread only."""

    def __init__(self) -> None:
        self._stacks: collections.Counter[tuple[tuple[CodeType, int], ...]] = collections.Counter()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _take(self, number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1

    def write(self, path: Path) -> None:
        """Stop, and write every stack, innermost frame first as file, function and line, with how often it was met."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        stacks = [
            [[[code.co_filename, code.co_qualname, line] for code, line in stack], count]
            for stack, count in self._stacks.items()
        ]
        path.write_text(json.dumps(stacks))
