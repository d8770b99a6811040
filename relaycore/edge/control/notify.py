"""Tells the service manager how a program is: a datagram of ``NAME=VALUE`` lines (sd_notify(3)).

Where nobody wants to know, since ``NOTIFY_SOCKET`` is not set, everything here does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import trio

__all__ = ["Notifier"]

_NANOSECONDS_TO_MICRO: Final = 1_000


class Notifier:
    """One program's words to its service manager. Nothing here waits or raises: the program's work comes first.

    Args:
      environ: with ``NOTIFY_SOCKET``, and ``WATCHDOG_USEC`` where the manager wants signs of life.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_ours = not pid or pid == str(os.getpid())
        self.watchdog_s: float | None = int(usec) / 1e6 if is_ours and usec.isdecimal() and int(usec) else None
        """Seconds of silence after which the manager thinks that we hang; None: it does not watch."""

    @property
    def is_heard(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The program does its work."""
        self._send("READY=1", status=status)

    def reloading(self) -> None:
        """It reads its settings anew; `ready` says that it has."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // _NANOSECONDS_TO_MICRO  # not Trio's clock, which may be any
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """It ends, and may take a while."""
        self._send("STOPPING=1", status=status)

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(status=status)

    async def watch(self) -> None:
        """Give signs of life for as long as the event loop turns. Returns at once where nobody watches."""
        if self.watchdog_s is None:
            await trio.lowlevel.checkpoint()
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self.watchdog_s / 2)  # as sd_watchdog_enabled(3) recommends

    def _send(self, *lines: str, status: str = "") -> None:
        if not self._address:
            return
        words = [*lines, f"STATUS={' '.join(status.split())}"] if status else lines
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(words).encode(), address)
