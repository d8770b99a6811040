"""Charts as inline SVG: bars with whiskers, and lines over time. Pure text; colours are classes that a page defines.

Drawn for a narrow screen, 400 units wide with text of 12: a page stretches them a little on a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .figures import Spread

WIDTH = 400
ROW = 34
BAR = 12
LOG_FROM = 50
"""Largest over smallest value from which bars grow with the logarithm: otherwise the small ones cannot be seen."""


@dataclass(frozen=True)
class Bar:
    """One row: ``kind`` is a class of the page; without a ``spread`` only the text is shown."""

    label: str
    text: str
    spread: Spread | None
    kind: str = "other"


@dataclass(frozen=True)
class Scale:
    """Where a value lies on the way from 0 to 1."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, spreads: Sequence[Spread]) -> Scale:
        """From zero to the highest value; logarithmic from a power of ten when the values lie far apart."""
        medians = [spread.median for spread in spreads]
        high = max((spread.high for spread in spreads), default=1.0)
        if high <= 0:
            return cls(0.0, 1.0, is_log=False)
        if medians and min(medians) > 0 and max(medians) / min(medians) > LOG_FROM:
            return cls(10.0 ** (math.ceil(math.log10(min(medians))) - 1), high, is_log=True)
        return cls(0.0, high, is_log=False)

    def place(self, value: float) -> float:
        if self.is_log:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return max(0.0, value) / self.high


def bars(rows: Sequence[Bar], title: str) -> str:
    """A figure of horizontal bars: name and value over each, a whisker from the lowest to the highest run."""
    scale = Scale.of([row.spread for row in rows if row.spread])
    if scale.is_log:
        title = f"{title}; the scale is logarithmic"
    return f"<figure><figcaption>{escape(title)}</figcaption>{_drawn(rows, scale, title)}</figure>"


def _drawn(rows: Sequence[Bar], scale: Scale, title: str) -> str:
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {len(rows) * ROW}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for at, row in enumerate(rows):
        top = at * ROW
        parts.append(f'<text x="0" y="{top + 13}" class="label">{escape(row.label)}</text>')
        parts.append(f'<text x="{WIDTH}" y="{top + 13}" class="value">{escape(row.text)}</text>')
        if row.spread is None:
            continue
        middle = top + 18 + BAR / 2
        width = max(1.0, scale.place(row.spread.median) * WIDTH)
        parts.append(f'<rect x="0" y="{top + 18}" width="{WIDTH}" height="{BAR}" class="track"/>')
        parts.append(
            f'<rect x="0" y="{top + 18}" width="{width:.1f}" height="{BAR}" rx="2" class="bar {escape(row.kind)}"/>'
        )
        if row.spread.high > row.spread.low:
            low, high = (scale.place(value) * WIDTH for value in (row.spread.low, row.spread.high))
            parts.append(
                f'<path d="M{low:.1f} {middle - 3}v6M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 3}v6" '
                'class="whisker"/>'
            )
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Line:
    """Points in the order of x. ``kind`` is a class of the page."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: str = "ours"


def nice_step(span: float, most: int = 5) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides ``span`` into at most ``most`` steps."""
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next((power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999_999), power * 10)


def ticks(high: float) -> list[float]:
    """From zero to the first step at or above ``high``."""
    step = nice_step(high or 1.0)
    return [step * number for number in range(math.ceil((high or 1.0) / step - 1e-9) + 1)]


def lines(series: Sequence[Line], title: str, x_unit: str, y_unit: str) -> str:
    """Values over time or count, both axes from zero."""
    left, right, top, bottom = 44, 12, 22, 26
    height = 210
    across = ticks(max((x for line in series for x, _ in line.points), default=1.0))
    up = ticks(max((y for line in series for _, y in line.points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / across[-1] * (WIDTH - left - right),
            height - bottom - y / up[-1] * (height - top - bottom),
        )

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f'<text x="0" y="12" class="label">{escape(y_unit)}</text>',
        f'<text x="{WIDTH}" y="{height - 2}" class="value">{escape(x_unit)}</text>',
    ]
    for y in up:
        _, at = place(0, y)
        parts.append(f'<path d="M{left} {at:.1f}H{WIDTH - right}" class="grid"/>')
        parts.append(f'<text x="{left - 5}" y="{at + 4:.1f}" class="tick-y">{y:,g}</text>')
    for x in across:
        at, _ = place(x, 0)
        parts.append(f'<text x="{at:.1f}" y="{height - bottom + 14}" class="tick-x">{x:,g}</text>')
    for line in series:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        parts.append(f'<polyline points="{points}" class="line {escape(line.kind)}"/>')
    keys = "".join(
        f'<text x="{90 + at * 150}" y="12" class="key {escape(line.kind)}">— {escape(line.label)}</text>'
        for at, line in enumerate(series)
        if line.label
    )
    return "".join([*parts, keys, "</svg>"])
