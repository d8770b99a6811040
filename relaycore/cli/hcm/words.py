"""Numbers and tables for people: sizes, spans of time, columns. Pure functions.

Texts in tables come from relays and settings, hence from others: what would move a terminal's cursor is taken out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

__all__ = ["clean", "clip", "columns", "size", "span", "times"]

_UNITS: Final = ("", " k", " M", " G", " T", " P")


def clean(text: str) -> str:
    """Return `text` as one line without control characters."""
    kept = "".join(char if unicodedata.category(char)[0] != "C" else " " for char in text)
    return " ".join(kept.split())


def clip(text: str, width: int) -> str:
    """Return at most `width` characters; a cut shows."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…" if width > 0 else ""


def size(count: float) -> str:
    """Return bytes in three digits or so, in powers of 1000; ``-`` for none."""
    if count < 1:
        return "-"
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            return f"{count:.1f}{unit}" if unit and count < 9.95 else f"{count:.0f}{unit}"
        count /= 1000
    raise AssertionError


def span(seconds: float) -> str:
    """Return how long something has been so, such as ``4 s``, ``12 min``, ``3h04`` or ``3d04h``."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}"
    return f"{minutes} min" if minutes else f"{whole} s"


def times(count: int, noun: str) -> str:
    """Return ``1 connection``, ``2 connections``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return lines in which the cells of a column stand below each other.

    Args:
      right: columns whose cells end below each other, instead.
    """
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
