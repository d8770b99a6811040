"""The table of connections, as lines of text. Pure: status and time come in, lines go out."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ...edge.hcm.status import ConnectionStatus, ManagerStatus
from .words import clean, clip, columns, size, span, times

__all__ = ["Rates", "Sort", "detail_lines", "headline", "sorted_connections", "table_lines"]

_HEADER: Final = ("NAME", "STATUS", "LISTENERS", "ENDPOINT", "HEALTH", "OPEN", "IN / OUT", "RATE", "SINCE")

_OPEN_COLUMN: Final = 5

_MAX_CELL: Final = 44
"""A longer name or endpoint is cut: one of them must not push the others off the screen."""


class Sort(enum.StrEnum):
    """What the table is sorted by."""

    NAME = "name"
    STATUS = "status"
    OPEN = "open"
    BYTES = "bytes"


@dataclass
class Rates:
    """Bytes a second of each connection, from one status to the next."""

    _last: dict[str, int] = field(default_factory=dict)
    _at: float = 0.0
    _found: dict[str, float] = field(default_factory=dict)

    def note(self, status: ManagerStatus, now: float) -> None:
        """Take a status of the time `now`, in seconds of any clock that does not jump."""
        totals = {one.name: one.bytes_in + one.bytes_out for one in status.connections}
        elapsed = now - self._at
        if self._last and elapsed > 0:
            self._found = {
                name: max(0.0, (total - self._last[name]) / elapsed)
                for name, total in totals.items()
                if name in self._last
            }
        self._last, self._at = totals, now

    def of(self, name: str) -> float:
        """Return the latest rate; 0 where it is not known."""
        return self._found.get(name, 0.0)


def headline(status: ManagerStatus, now_unix: float) -> str:
    """Return the line above the table."""
    parts = [
        f"relaycore hcm on {clean(status.host)}",
        times(len(status.connections), "connection"),
        clean(status.relay),
        f"up {span(now_unix - status.since_unix)}",
    ]
    return "   ".join(part for part in parts if part)


def table_lines(
    status: ManagerStatus, now_unix: float, *, rates: Rates | None = None, sort: Sort = Sort.NAME
) -> list[str]:
    """Return the header and one line for each connection, in the order of `sorted_connections`."""
    if not status.connections:
        return ["no connections yet; add one with: relaycore hcm add CONNECTION_STRING"]
    rows = [_HEADER, *(_row(one, now_unix, rates) for one in sorted_connections(status.connections, sort))]
    return columns(rows, right=(_OPEN_COLUMN,))


def sorted_connections(connections: Sequence[ConnectionStatus], sort: Sort) -> list[ConnectionStatus]:
    """Return them in the order of the table."""
    match sort:
        case Sort.NAME:
            return sorted(connections, key=lambda one: one.name)
        case Sort.STATUS:  # what needs attention first
            return sorted(connections, key=lambda one: (one.is_serving, one.status, one.name))
        case Sort.OPEN:
            return sorted(connections, key=lambda one: (-one.open, one.name))
        case Sort.BYTES:
            return sorted(connections, key=lambda one: (-one.bytes_in - one.bytes_out, one.name))


def _row(one: ConnectionStatus, now_unix: float, rates: Rates | None) -> tuple[str, ...]:
    total = one.listeners_here if one.listeners_total is None else one.listeners_total
    has_bytes = one.bytes_in or one.bytes_out
    rate = 0.0 if rates is None else rates.of(one.name)
    return (
        clip(clean(one.name), _MAX_CELL),
        clean(one.status),
        f"{max(total, one.listeners_here)} ({one.listeners_here} here)",
        clip(clean(one.endpoint) or "-", _MAX_CELL),
        clip(clean(one.health) or "-", _MAX_CELL),
        str(one.open),
        f"{size(one.bytes_in)} / {size(one.bytes_out)}" if has_bytes else "-",
        f"{size(rate)}/s" if rate >= 1 else "-",
        clean(one.detail) or span(now_unix - one.since_unix),
    )


def detail_lines(one: ConnectionStatus) -> list[str]:
    """Return all that is known of one connection, a line for each piece."""
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(one.rejected.items()))
    pairs = [
        ("name", one.name),
        ("status", f"{one.status} {one.detail}"),
        ("since", _date(one.since_unix)),
        ("hybrid connection", f"{one.path} at {one.relay}"),
        ("profile", one.profile),
        ("relay leg", f"{one.relay_leg}, {one.listeners_here} of {times(one.listeners_wanted, 'listener')} here"),
        ("all listeners", "" if one.listeners_total is None else f"{one.listeners_total} {_seen(one.listeners_unix)}"),
        ("endpoint", f"{one.endpoint} (from {one.endpoint_from})" if one.endpoint else "not known"),
        ("endpoint leg", _leg(one)),
        ("open", f"{one.open}, {one.queued} waiting"),
        ("accepted", f"{one.accepted}, {one.lost} of them lost"),
        ("refused", rejected),
        ("bytes", f"{one.bytes_in} in, {one.bytes_out} out"),
        ("next try", "" if one.next_try_unix is None else _date(one.next_try_unix)),
        ("created", "" if one.created_unix is None else _date(one.created_unix)),
        ("updated", "" if one.updated_unix is None else _date(one.updated_unix)),
        ("relay error", _error(one.relay_error, one.relay_error_unix)),
        ("endpoint error", _error(one.endpoint_error, one.endpoint_error_unix)),
    ]
    if one.last_error not in (one.relay_error, one.endpoint_error):
        pairs.append(("last error", _error(one.last_error, one.last_error_unix)))
    return [f"{name:<18} {clean(value)}" for name, value in pairs if value.strip()]


def _leg(one: ConnectionStatus) -> str:
    """The endpoint leg's state, and its health where that says more."""
    word = one.endpoint_leg.lower()
    more = one.health.removeprefix(word) if one.health.lower().startswith(word) else f" {one.health}"
    return f"{one.endpoint_leg}{more}"


def _error(text: str, unix: float | None) -> str:
    return f"{text} {_seen(unix)}" if text else ""


def _seen(unix: float | None) -> str:
    return "" if unix is None else f"({_date(unix)})"


def _date(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
