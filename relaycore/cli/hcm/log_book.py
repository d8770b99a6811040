"""The last log lines of a daemon, for whoever asks over its control socket."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Final

__all__ = ["LogBook"]

LINES_KEPT: Final = 2_000
"""Some hundred kilobytes. The service manager's journal has all of them."""


class LogBook:
    """Passes lines on to standard error and keeps the last ones. The log's thread writes, any thread reads.

    Attributes:
      count: lines so far, those that are not kept any more included.
    """

    def __init__(self, *, fd: int | None = 2) -> None:
        self.count = 0
        self._fd = fd
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Take a line with its end. Blocks while standard error does not take it."""
        with self._lock:
            self._lines.append(line.rstrip("\n"))
            self.count += 1
        if self._fd is not None:
            data = line.encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self._fd, data) :]

    def since(self, count: int) -> tuple[list[str], int]:
        """Return the lines after the first `count` ones, as far as they are kept, and how many there are now."""
        with self._lock:
            wanted = min(max(0, self.count - count), len(self._lines))
            lines = list(self._lines)
            return lines[len(lines) - wanted :], self.count
