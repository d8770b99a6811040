"""One self-contained HTML page of what was measured: charts, and under each the figures it was drawn from.

Made from the JSON documents that the commands write, so a page can be made of several runs, later and elsewhere.
Nothing is loaded from outside and there is no script; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .chart import Bar, Line, bars, lines
from .figures import MIB, Spread, is_lower_better
from .report import BASES, number, remark
from .style import STYLE

TITLE = "relaycore: measurements"

REMARKS = {
    "*": "* the process under test had time to spare: the load side, or latency, was the limit.",
    "†": "† other work had the core while the process under test was ready to run: too low.",
}


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page. A document is what ``--json`` wrote for the suite, for ``connections`` or for ``soak``."""
    body = [f"<h1>{TITLE}</h1>"]
    for document in documents:
        body.append(_facts(document))
        if "summary" in document:
            body += _suite(document)
        if "held" in document:
            body.append(_held(document["held"]))
        if "soak" in document:
            body.append(_soak(document["soak"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head, the first column names its row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[1:]
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _facts(document: Mapping[str, Any]) -> str:
    facts = {**document.get("machine", {}), **document.get("settings", {})}
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(text))}</dd>" for name, text in facts.items())
    notes = "".join(
        f"<li>{escape(str(note).lstrip('- ').replace('**', ''))}</li>" for note in document.get("notes", ())
    )
    return f'<dl class="facts">{pairs}</dl>' + (f"<ul>{notes}</ul>" if notes else "")


# ---- the suite -----------------------------------------------------------------------------------------------------


def kind_of(topology: str) -> str:
    """Whose bar it is: nothing in between, ours, or somebody else's."""
    if topology == "direct":
        return "direct"
    return "ours" if topology.startswith("relay-") else "other"


def _suite(document: Mapping[str, Any]) -> Iterable[str]:
    workloads = {each["name"]: each for each in document["workloads"]}
    groups: Mapping[str, Sequence[str]] = document["groups"]
    yield "<p>Each bar is a median, its whisker the lowest and the highest run. "
    yield "Ratios are of runs of the same round, seconds apart.</p>"
    yield _overview(workloads, document["summary"])
    for title, names in groups.items():
        cards = [_card(workloads[name], document["summary"]) for name in names if name in workloads]
        if cards:
            yield f'<h2>{escape(title)}</h2><div class="cards">' + "\n".join(cards) + "</div>"


def _overview(workloads: Mapping[str, Mapping[str, Any]], summary: Sequence[Mapping[str, Any]]) -> str:
    """Every headline in one table; each name leads to its card."""
    topologies = list(dict.fromkeys(entry["topology"] for entry in summary))
    found = {(entry["workload"], entry["topology"]): entry["figures"] for entry in summary}
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", "figure", *topologies))
    lines = []
    for name, workload in workloads.items():
        cells = [workload["headline"]]
        for topology in topologies:
            figure = found.get((name, topology), {}).get(workload["headline"])
            cells.append(number(figure["median"]) if figure else "")
        link = f'<th scope="row"><a href="#{escape(name)}">{escape(name)}</a></th>'
        lines.append(f"<tr>{link}" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _card(workload: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> str:
    entries = [entry for entry in summary if entry["workload"] == workload["name"]]
    spreads = [{name: Spread(**each) for name, each in entry["figures"].items()} for entry in entries]
    headline = workload["headline"]
    charts = [_bars(workload, entries, spreads, headline)]
    if any(workload["price"] in each for each in spreads) and workload["price"] != headline:
        charts.append(_bars(workload, entries, spreads, workload["price"]))
    marks = {_mark(workload, entry, each) for entry, each in zip(entries, spreads, strict=True)}
    remarks = "".join(f'<p class="remark">{escape(REMARKS[mark])}</p>' for mark in sorted(marks & set(REMARKS)))
    return (
        f'<section class="card" id="{escape(workload["name"])}"><h3>{escape(workload["name"])}</h3>'
        f"<p>{escape(workload['about'])}</p>{''.join(charts)}{remarks}"
        f"{html_table(_rows(workload, entries, spreads))}</section>"
    )


def _mark(workload: Mapping[str, Any], entry: Mapping[str, Any], figures: Mapping[str, Spread]) -> str:
    shown = "busy" in workload["shows"] and entry["topology"] != "direct" and "busy" in figures
    return remark(figures) if shown else ""


def _bars(
    workload: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    spreads: Sequence[Mapping[str, Spread]],
    figure: str,
) -> str:
    rows = []
    for entry, figures in zip(entries, spreads, strict=True):
        spread = figures.get(figure)
        if spread is None and figures:
            continue  # nothing in between has no price
        mark = _mark(workload, entry, figures) if figure == workload["headline"] else ""
        text = number(spread.median) + mark if spread else "failed"
        rows.append(Bar(entry["topology"], text, spread, kind_of(entry["topology"])))
    better = "lower" if is_lower_better(figure) else "higher"
    caption = f"{figure}, {better} is better"
    return bars(rows, caption)


def _rows(
    workload: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], spreads: Sequence[Mapping[str, Spread]]
) -> list[list[str]]:
    headline = workload["headline"]
    bases = [base for base in BASES if any(base in entry["ratios"] for entry in entries)]
    counted = [name for name in _COUNTS if any(name in figures for figures in spreads)]
    shows = [*workload["shows"], *(name for name in counted if workload["counted"])]
    rows = [["", headline, "low", "high", *(f"× {base}" for base in bases), *shows]]
    for entry, figures in zip(entries, spreads, strict=True):
        spread = figures.get(headline)
        cells = [number(value) for value in (spread.median, spread.low, spread.high)] if spread else ["failed", "", ""]
        for base in bases:
            ratio = entry["ratios"].get(base)
            cells.append(_ratio_text(Spread(**ratio)) if ratio else "")
        for name in shows:
            value = figures.get(name)
            if value is None or (name == "busy" and entry["topology"] == "direct"):
                cells.append("")
            else:
                cells.append(f"{value.median:.0%}" if name.endswith("busy") else number(value.median))
        rows.append([entry["topology"], *cells])
    return rows


_COUNTS = ("syscalls/message", "syscalls/request", "switches/message", "switches/request")


def _ratio_text(ratio: Spread) -> str:
    text = number(ratio.median)
    return text if ratio.low == ratio.high else f"{text} ({number(ratio.low)} .. {number(ratio.high)})"


# ---- connections and soak ------------------------------------------------------------------------------------------


def _held(held: Mapping[str, Any]) -> str:
    kinds = {"idle listeners": held["listeners"], "idle joined sessions": held["sessions"]}
    rows = [["", "count", "KiB each", "relay's MiB before", "relay's MiB after"]]
    charts = []
    for name, growth in kinds.items():
        readings = growth["readings"]
        rows.append(
            [
                name,
                number(readings[-1][0]),
                number(growth["each_bytes"] / 1024),
                *(number(reading[1] / MIB) for reading in (readings[0], readings[-1])),
            ]
        )
        points = [(float(count), (held_bytes - readings[0][1]) / MIB) for count, held_bytes in readings]
        chart = lines([Line("", points)], f"memory of {name}", name, "MiB")
        charts.append(f"<figure><figcaption>{name}: what the relay's memory grew by</figcaption>{chart}</figure>")
    return (
        f'<h2>Idle connections</h2><div class="cards"><section class="card">{charts[0]}</section>'
        f'<section class="card">{charts[1]}</section></div>{html_table(rows)}'
    )


def _soak(soak: Mapping[str, Any]) -> str:
    samples = soak["samples"]
    memory = [(each["at_s"] / 60, each["memory_bytes"] / MIB) for each in samples]
    files = [(each["at_s"] / 60, float(each["open_files"])) for each in samples]
    rows = [["at rest", "minute", "memory MiB", "open files", "threads"]]
    rows += [
        [
            name,
            f"{each['at_s'] / 60:.1f}",
            number(each["memory_bytes"] / MIB),
            str(each["open_files"]),
            str(each["threads"]),
        ]
        for name, each in (("early", soak["early"]), ("at the end", soak["late"]))
    ]
    done = [["work", "runs", "messages or requests", "GiB"]]
    done += [
        [name, str(each["runs"]), number(each["messages"]), number(each["bytes"] / 1024 / MIB)]
        for name, each in soak["work"].items()
    ]
    verdict = "; ".join(soak["complaints"]) or "no growth beyond noise"
    return (
        f"<h2>Soak</h2><p>{escape(verdict)}</p>"
        f'<div class="cards"><section class="card"><figure><figcaption>resident private memory under load</figcaption>'
        f"{lines([Line('', memory)], 'memory', 'minutes', 'MiB')}</figure>{html_table(rows)}</section>"
        f'<section class="card"><figure><figcaption>open files</figcaption>'
        f"{lines([Line('', files)], 'open files', 'minutes', 'files')}</figure>{html_table(done)}</section></div>"
    )
