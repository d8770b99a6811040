"""A child's side of the pipes to the process that measures: a line of JSON in is an order, a line out its answer.

Standard input is also what a child lives by: when it ends, whoever measured has gone, and so does the child.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import RelayError

__all__ = ["Orders", "say"]

Answer = dict[str, Any]

_CHUNK: Final = 65_536


def say(answer: Answer) -> None:
    """Write one line to the process that measures."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Orders:
    """Takes orders one after the other. ``cpu`` is known to every child: its CPU seconds so far.

    Args:
      known: what to do for each other order; gets the order, returns the answer.
    """

    def __init__(self, known: dict[str, Callable[[Answer], Answer]]) -> None:
        self._known = known
        self._text = b""

    def read(self) -> bool:
        """Take what has come on standard input, waiting for it, and answer. Returns: False when it has ended."""
        chunk = os.read(0, _CHUNK)
        if not chunk:
            return False
        self._text += chunk
        while b"\n" in self._text:
            line, _, self._text = self._text.partition(b"\n")
            say(self.answer(json.loads(line)))
        return True

    def answer(self, order: Answer) -> Answer:
        """What is said to one order. A failed one is an answer too: ``error`` says why."""
        name = order["do"]
        try:
            if name == "cpu":
                return {"cpu": time.process_time()}
            return self._known[name](order)
        except (RelayError, OSError) as error:
            return {"error": str(error) or type(error).__name__}
