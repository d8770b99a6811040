"""Runs become tables for people (Markdown, aligned) and one JSON document for programs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .figures import Spread, is_lower_better, paired_differences, paired_ratios
from .loadgen import HTTP
from .suite import Pace, Run
from .workload import WEBSOCKET, Workload

BASES = ("direct", "haproxy", "haproxy-tuned", "haproxy-http", "relay-trio")
"""Topologies that the headline is put in relation to, where they took part."""

ADDED = {"added p50 µs": "p50 µs", "added p99 µs": "p99 µs"}
"""Figures that are another figure less that of ``direct`` in the same round."""

IDLE_SHARE = 0.9
"""Below this share of its core, the process under test was waiting: the load side, or latency, set the figure."""

STARVED_SHARE = 0.05
"""Above this share of the time, the process under test was ready and something else had its core."""


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    size = abs(value)
    if size >= 1_000:
        return f"{value:,.0f}".replace(",", " ")
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def spread_text(spread: Spread, *, single: bool) -> str:
    text = number(spread.median)
    return text if single else f"{text} ({number(spread.low)} .. {number(spread.high)})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is its head; columns are padded so that it reads in a terminal too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 2) if at == 0 else "-" * (width + 1) + ":" for at, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


def by_round(runs: Sequence[Run], workload: str, topology: str, figure: str) -> dict[int, float]:
    return {
        run.round: run.figures[figure]
        for run in runs
        if run.workload == workload and run.topology == topology and figure in run.figures
    }


def summarise(runs: Sequence[Run], workloads: Sequence[Workload], topologies: Sequence[str]) -> list[dict[str, Any]]:
    """Per workload and topology: a spread for each figure, and the headline's ratios to the bases.

    A topology that never met a workload, because it does not carry such, has no entry for it.
    """
    summary = []
    met = {(run.workload, run.topology) for run in runs}
    for workload in workloads:
        for topology in (each for each in topologies if (workload.name, each) in met):
            names = sorted(
                {
                    name
                    for run in runs
                    if run.topology == topology and run.workload == workload.name
                    for name in run.figures
                }
            )
            values = {name: by_round(runs, workload.name, topology, name) for name in names}
            ratios = {}
            for base in BASES:
                found = paired_ratios(
                    values.get(workload.headline, {}), by_round(runs, workload.name, base, workload.headline)
                )
                if found and base != topology:
                    ratios[base] = Spread.of(found)
            figures = {name: Spread.of(list(each.values())) for name, each in values.items()}
            for name, origin in ADDED.items():
                found = paired_differences(values.get(origin, {}), by_round(runs, workload.name, "direct", origin))
                if found and topology != "direct":
                    figures[name] = Spread.of(found)
            summary.append(
                {
                    "workload": workload.name,
                    "topology": topology,
                    "figures": figures,
                    "ratios": ratios,
                    "failed_runs": sum(
                        1 for run in runs if run.workload == workload.name and run.topology == topology and run.failure
                    ),
                }
            )
    return summary


def remark(figures: Mapping[str, Spread]) -> str:
    """Why a headline is not what the process under test can do: ``†`` it was starved, ``*`` it had nothing to do."""
    if figures["starved"].median > STARVED_SHARE:
        return "†"
    return "*" if figures["busy"].median < IDLE_SHARE else ""


def digest(workloads: Sequence[Workload], summary: Sequence[Mapping[str, Any]]) -> str:
    """Tables of medians, one line per workload and one column per topology: headlines, and what they cost.

    Streams and requests have tables of their own, because other topologies carry them; workloads that show the time
    that each topology adds to the answer also have tables of it.
    """
    kinds = [[each for each in workloads if each.carried == kind] for kind in (WEBSOCKET, HTTP)]
    return "\n\n".join(_digest_of(kind, summary) for kind in kinds if kind)


def _digest_of(workloads: Sequence[Workload], summary: Sequence[Mapping[str, Any]]) -> str:
    chosen = {workload.name for workload in workloads}
    summary = [entry for entry in summary if entry["workload"] in chosen]
    names = list(dict.fromkeys(entry["topology"] for entry in summary))
    found = {(entry["workload"], entry["topology"]): entry["figures"] for entry in summary}

    def rows(
        corner: str, figure: Callable[[Workload], str], columns: Sequence[str], of: Sequence[Workload] = workloads
    ) -> list[list[str]]:
        lines = [[corner, "figure", *columns]]
        for workload in of:
            line = [workload.name, figure(workload)]
            for name in columns:
                figures = found.get((workload.name, name), {})
                value = figures.get(figure(workload))
                mark = remark(figures) if value and name != "direct" and "busy" in workload.shows else ""
                line.append(number(value.median) + mark if value else "")
            lines.append(line)
        return lines

    tables = [rows("workload", lambda workload: workload.headline, names)]
    priced = [name for name in names if name != "direct"]
    if priced:
        tables.append(rows("CPU of the process under test", price, priced))
        for name in ("syscalls", "switches"):
            counted = [each for each in workloads if each.counted]
            if any(per_item(name, each) in figures for each in counted for figures in found.values()):
                head = {"syscalls": "system calls", "switches": "voluntary context switches"}[name]
                tables.append(rows(head, functools.partial(per_item, name), priced, of=counted))
        for name, origin in ADDED.items():
            if shown := [workload for workload in workloads if name in workload.shows]:
                tables.append(rows(f"{origin.split()[0]} more than direct", _always(name), priced, of=shown))
    unmarked = [[[cell.rstrip("*†") for cell in row] for row in each] for each in tables[1:]]
    return "\n\n".join(table(each) for each in (tables[0], *unmarked))


def per_item(name: str, workload: Workload) -> str:
    """The name of a count per request or message, whichever the workload makes."""
    return f"{name}/{'request' if workload.carried == HTTP else 'message'}"


def _always(name: str) -> Callable[[Workload], str]:
    return lambda _: name


def price(workload: Workload) -> str:
    """The CPU figure that suits a workload: large messages cost by the byte, small ones and requests by the piece."""
    if workload.carried == HTTP:
        return "CPU µs/request"
    return "CPU s/GiB" if max(job.size for job in workload.jobs) >= 4_096 else "CPU µs/message"


def workload_table(workload: Workload, summary: Sequence[Mapping[str, Any]], pace: Pace) -> str:
    """Head line, table and remarks of one workload."""
    entries = [entry for entry in summary if entry["workload"] == workload.name]
    bases = [base for base in BASES if any(entry["topology"] == base for entry in entries)]
    single = pace.rounds == 1
    rows = [["topology", workload.headline, *(f"× {base}" for base in bases), *workload.shows]]
    marks: set[str] = set()
    for entry in entries:
        figures: Mapping[str, Spread] = entry["figures"]
        if not figures:
            rows.append([entry["topology"], "failed", *("" for _ in (*bases, *workload.shows))])
            continue
        mark = remark(figures) if "busy" in workload.shows and entry["topology"] != "direct" else ""
        marks.add(mark)
        cells = [entry["topology"], spread_text(figures[workload.headline], single=single) + mark]
        for base in bases:
            ratio = entry["ratios"].get(base)
            cells.append(spread_text(ratio, single=single) if ratio else "")
        for name in workload.shows:
            if name == "busy" and entry["topology"] == "direct":
                cells.append("")
            elif name.endswith("busy"):
                cells.append(f"{figures[name].median:.0%}")
            else:
                cells.append(number(figures[name].median) if name in figures else "")
        rows.append(cells)
    better = "lower" if is_lower_better(workload.headline) else "higher"
    lines = [f"### {workload.name}", "", f"{workload.about}; {workload.headline}, {better} is better.", "", table(rows)]
    if "*" in marks:
        lines += ["", "\\* the process under test had time to spare: the load side, or latency, was the limit."]
    if "†" in marks:
        lines += ["", "† other work had the core while the process under test was ready to run: too low."]
    return "\n".join(lines)


def facts_table(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in facts.items())


def noise_line(runs: Sequence[Run]) -> str:
    foreign = [run.foreign_busy for run in runs if not run.failure]
    if not foreign:
        return "no run succeeded"
    spread = Spread.of(foreign)
    return f"- other work on the machine during runs: median {spread.median:.2f}, at most {spread.high:.2f} cores" + (
        " — **not a quiet machine**" if spread.median > 0.1 else ""
    )


def document(
    facts: Mapping[str, str],
    pace: Pace,
    runs: Sequence[Run],
    summary: Sequence[Mapping[str, Any]],
    workloads: Sequence[Workload],
    **more: Any,
) -> dict[str, Any]:
    """Everything, for ``json.dumps``."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return value

    told = [{**plain(each), "price": price(each)} for each in workloads]
    result: dict[str, Any] = plain(
        {"machine": facts, "pace": pace, "workloads": told, "summary": summary, "runs": runs, **more}
    )
    return result
