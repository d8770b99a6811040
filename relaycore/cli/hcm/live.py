"""The live table: a screen of its own, redrawn each second and with each key, given back as it was at the end.

The terminal is put into its cbreak mode, which keeps Ctrl-C as it is; standard input is read only when it is readable,
since ``O_NONBLOCK`` on it would hit the shell as well.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from ...edge.hcm.status import ConnectionStatus, ManagerStatus
from ...errors import RelayError
from .table import Rates, Sort, detail_lines, headline, sorted_connections, table_lines
from .words import clean, clip

__all__ = ["Screen", "View", "run_live"]

INTERVAL: Final = 1.0
"""Seconds between two looks at the program."""

_KEYS: Final = "q quit  d details  t test  p pause  r restart  s sort  ↑↓ choose"

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Another screen, no cursor, no wrapping of long lines."""
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K\r\n"
_REST: Final = "\x1b[J"
_REVERSE: Final = "\x1b[7m"
_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
_COLOURS: Final = {"Connected": "\x1b[32m", "Paused": "\x1b[2m", "Draining": "\x1b[2m"}
_ALARM: Final = "\x1b[33m"

_ESCAPES: Final = {"\x1b[A": "k", "\x1b[B": "j", "\x1bOA": "k", "\x1bOB": "j"}
"""What cursor keys send, and the letters that mean the same."""


@dataclass
class View:
    """What is looked at; the keys change it. It draws itself and does no I/O."""

    sort: Sort = Sort.NAME
    chosen: str = ""
    shows_details: bool = False
    message: str = ""
    trouble: str = ""
    rates: Rates = field(default_factory=Rates)
    status: ManagerStatus | None = None

    @property
    def connections(self) -> list[ConnectionStatus]:
        """In the order of the table."""
        return [] if self.status is None else sorted_connections(self.status.connections, self.sort)

    @property
    def current(self) -> ConnectionStatus | None:
        """The connection that keys are about."""
        found = self.connections
        return next((one for one in found if one.name == self.chosen), found[0] if found else None)

    def note(self, status: ManagerStatus, now: float) -> None:
        """Take a new status."""
        self.rates.note(status, now)
        self.status = status

    def move(self, step: int) -> None:
        """Choose another connection."""
        names = [one.name for one in self.connections]
        if names:
            at = names.index(self.chosen) if self.chosen in names else 0
            self.chosen = names[max(0, min(len(names) - 1, at + step))]

    def next_sort(self) -> None:
        """Sort by something else."""
        orders = list(Sort)
        self.sort = orders[(orders.index(self.sort) + 1) % len(orders)]
        self.message = f"sorted by {self.sort}"

    def lines(self, width: int, height: int, now_unix: float) -> list[str]:
        """Return at most `height` lines of at most `width` characters, with colours."""
        if self.status is None:
            return [clip(clean(self.message) or "asking...", width)]
        lines = [_BOLD + clip(headline(self.status, now_unix), width) + _PLAIN]
        rows = table_lines(self.status, now_unix, rates=self.rates, sort=self.sort)
        current = self.current
        if self.shows_details and current is not None:
            lines += [clip(line, width) for line in detail_lines(current)]
        elif current is None:
            lines += [clip(line, width) for line in rows]
        else:
            lines += self._table(rows, current, width, max(1, height - 4))
        foot = [clip(self._last_line(), width), clip(_KEYS, width)]
        return [*lines[: max(0, height - len(foot))], *foot][:height]

    def _table(self, rows: list[str], current: ConnectionStatus, width: int, room: int) -> list[str]:
        found = self.connections
        at = found.index(current)
        first = max(0, min(at - room // 2, len(found) - room))  # a long table scrolls under its header
        lines = [_BOLD + clip(rows[0], width) + _PLAIN]
        for one, row in list(zip(found, rows[1:], strict=True))[first : first + room]:
            colour = _COLOURS.get(one.status, _ALARM) + (_REVERSE if one is current else "")
            lines.append(colour + clip(row, width) + _PLAIN)
        return lines

    def _last_line(self) -> str:
        if self.trouble or self.message:
            return clean(self.trouble or self.message)
        errors = [(one.name, *one.error_behind) for one in self.connections]
        name, text, unix = max(errors, key=lambda found: found[2] or 0.0, default=("", "", None))
        if not text:
            return ""
        at = time.strftime("%H:%M:%S", time.localtime(unix or 0.0))
        return f"last: {at} {clean(name)}: {clean(text)}"


class Screen:
    """The terminal, between the beginning and the end of `opened`."""

    def __init__(self, fd_in: int = 0, fd_out: int = 1) -> None:
        self._in = fd_in
        self._out = fd_out

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the terminal, and give it back as it was."""
        before = termios.tcgetattr(self._in)
        try:
            tty.setcbreak(self._in, termios.TCSANOW)
            self._write(_ENTER)
            yield
        finally:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSANOW, before)

    def draw(self, view: View) -> None:
        """Draw it over what was there. Blocks while the terminal does not take it."""
        width, height = shutil.get_terminal_size() if self._out == 1 else os.get_terminal_size(self._out)
        lines = view.lines(width, height, time.time())
        self._write(_HOME + _END_OF_LINE.join(lines) + "\x1b[K" + _REST)

    async def keys(self) -> list[str]:
        """Wait for keys. None are the end of the terminal."""
        await trio.lowlevel.wait_readable(self._in)
        text = os.read(self._in, 256).decode("utf-8", "replace")
        for escape, letter in _ESCAPES.items():
            text = text.replace(escape, letter)
        return list(text)

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._out, data) :]


async def run_live(
    fetch: Callable[[], Awaitable[ManagerStatus]], act: Callable[[str, ConnectionStatus], Awaitable[str]]
) -> None:
    """Show the table until ``q``, the end of the terminal, or a signal.

    Args:
      fetch: asks for the status.
      act: does what a key means (``t``, ``p``, ``r``) to a connection. Returns: what came of it.
    """
    screen, view = Screen(), View()
    view.note(await fetch(), trio.current_time())  # an error here is said on a screen of ordinary kind
    with screen.opened():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refresh, screen, view, fetch)
            nursery.start_soon(_redraw_when_resized, screen, view)
            await _heed_keys(screen, view, act, nursery)
            nursery.cancel_scope.cancel()
    sys.stdout.flush()


async def _refresh(screen: Screen, view: View, fetch: Callable[[], Awaitable[ManagerStatus]]) -> None:
    while True:
        screen.draw(view)
        await trio.sleep(INTERVAL)
        try:
            view.note(await fetch(), trio.current_time())
        except (RelayError, OSError) as error:
            view.trouble = str(error)
        else:
            view.trouble = ""


async def _redraw_when_resized(screen: Screen, view: View) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            screen.draw(view)


async def _heed_keys(
    screen: Screen, view: View, act: Callable[[str, ConnectionStatus], Awaitable[str]], nursery: trio.Nursery
) -> None:
    while keys := await screen.keys():
        for key in keys:
            view.message = ""
            match key:
                case "q" | "Q" | "\x04":
                    return
                case "j" | "k":
                    view.move(1 if key == "j" else -1)
                case "d" | "\r" | "\n":
                    view.shows_details = not view.shows_details
                case "s":
                    view.next_sort()
                case "t" | "p" | "r":
                    if (current := view.current) is not None:
                        view.message = f"{clean(current.name)}: ..."
                        nursery.start_soon(_act, screen, view, act, key, current)
            screen.draw(view)


async def _act(
    screen: Screen,
    view: View,
    act: Callable[[str, ConnectionStatus], Awaitable[str]],
    key: str,
    current: ConnectionStatus,
) -> None:
    try:
        view.message = await act(key, current)
    except (RelayError, OSError) as error:
        view.message = str(error)
    screen.draw(view)
