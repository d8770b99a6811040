"""``relaycore bench``: a short self-check of this machine: the same work direct and through a relay.

No second program, compiler or source tree is needed. Who wants to compare relays, or to see the percentiles of hundreds
of streams, runs ``python -m bench`` in the source tree, whose load generator is in C.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .options import Seconds

if TYPE_CHECKING:
    from ..selfcheck.measure import Outcome, Pace

__all__ = ["command"]

_ROUNDS: Final = 3
_SECONDS: Final = 0.8
_QUICK_SECONDS: Final = 0.1

_CROWDED: Final = 0.5
"""Load average per core from which on somebody else is measured too."""


@click.command("bench")
@click.option("--quick", is_flag=True, help="One short round: shows that everything works, not how fast.")
@click.option(
    "--seconds",
    type=Seconds(0.05, 60),
    metavar="S",
    help=f"Seconds of each measurement, of which there are {_ROUNDS * 8}.  [default: {_SECONDS:g}]",
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(quick: bool, seconds: float | None, as_json: bool) -> None:
    """Measure a relay on this machine beside a direct connection, in half a minute."""
    from ..selfcheck.measure import Pace, open_selfcheck, usable_cores

    pace = Pace(1 if quick else _ROUNDS, seconds or (_QUICK_SECONDS if quick else _SECONDS))
    crowd = os.getloadavg()[0]
    with open_selfcheck() as check:
        facts = _facts(check.mover, usable_cores(), crowd)
        outcomes = check.run(pace, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(_document(facts, pace, outcomes)))
    else:
        click.echo(report(facts, pace, outcomes))


def _facts(mover: str, cores: Sequence[int], crowd: float) -> dict[str, Any]:
    from .version import versions

    return {
        **versions(),
        "mover": mover,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(cores) or os.cpu_count() or 1,
        "congestion_control": _congestion_control(),
        "load_average": round(crowd, 2),
    }


def _document(facts: dict[str, Any], pace: Pace, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        **facts,
        "rounds": pace.rounds,
        "seconds": pace.seconds,
        "figures": [
            {
                "name": each.figure.name,
                "unit": each.figure.unit,
                "lower_is_better": each.figure.lower_is_better,
                "direct": each.direct,
                "relay": each.relay,
                "ratio": each.ratio,
                "relay_busy": statistics.median(each.relay_busy),
                "load_busy": statistics.median(each.load_busy),
                "limit": each.limit.value,
            }
            for each in outcomes
        ],
    }


_LIMITS: Final = {
    "relay": "relay",
    "load": "load*",
    "neither": "waiting†",
    "unknown": "",
}

_NOTES: Final = {
    "load": "* Client and far end, not the relay, were the limit: the relay can do more.",
    "neither": "† Nobody was busy: relay, client and far end waited for each other, or for other work on this machine.",
}


def report(facts: dict[str, Any], pace: Pace, outcomes: Sequence[Outcome]) -> str:
    """The table with what has to be said about it."""
    sessions = "the engine" if facts["mover"] == "engine" else "Trio"
    lines = [
        f"relaycore {facts['relaycore']}, Python {facts['python']}, Trio {facts['trio']}, cffi {facts['cffi']};"
        f" mask {facts['mask']}, sessions moved by {sessions}",
        f"{facts['system']}, {_cores(facts['cores'])}; loopback with {facts['congestion_control']}, without TLS",
        f"medians of {pace.rounds} rounds of {pace.seconds:g} s, direct and through the relay in turn",
        "",
    ]
    rows = [("", "", "direct", "relay", "relay/direct", "relay busy", "limit")]
    for each in outcomes:
        limit = each.limit.value
        rows.append(
            (
                each.figure.name,
                each.figure.unit,
                _number(statistics.median(each.direct)),
                _number(statistics.median(each.relay)),
                f"{each.ratio:.2f}",
                "" if limit == "unknown" else f"{statistics.median(each.relay_busy):.0%}",
                _LIMITS[limit],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False))
        right = "  ".join(cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True))
        lines.append(f"{left}  {right}  {row[-1]}".rstrip())
    met: set[str] = {each.limit.value for each in outcomes}
    notes = [note for limit, note in _NOTES.items() if limit in met]
    if facts["congestion_control"] == "bbr":
        notes.append("BBR paces itself on loopback too: with another congestion control bulk figures are higher.")
    if facts["load_average"] > _CROWDED * facts["cores"]:
        notes.append(
            f"Other work kept the machine busy before (load {facts['load_average']:g}): run it again when it is quiet."
        )
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _cores(count: int) -> str:
    return f"{count} cores, the relay on one, client and far end on another" if count > 1 else "1 core for everything"


def _congestion_control() -> str:
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "the system's TCP"


def _number(value: float) -> str:
    """Three digits at least, thousands apart."""
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"
