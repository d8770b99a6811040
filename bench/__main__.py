"""``python -m bench``: run the suite; ``connections``: hold idle ones; ``soak``: load for minutes; ``profile``: look
inside; ``page``: show what was measured; ``fetch``: build other people's programs. See README.md."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import connections, fairness, latency, requests, throughput
from .arguments import count, output_file, positive, setting
from .connections import held_text, hold
from .loadgen import build
from .machine import describe
from .network import separate
from .page import page
from .processes import BenchError, raise_open_files_limit
from .profile import profile
from .report import digest, document, facts_table, noise_line, summarise, workload_table
from .soak import soak, soak_text
from .suite import FULL, QUICK, Run, run_suite
from .toolchain import fetch_all
from .topologies import TOPOLOGIES, Topology
from .workload import Workload

GROUPS: dict[str, Sequence[Workload]] = {
    "Streams": throughput.WORKLOADS,
    "Round trips": latency.WORKLOADS,
    "Fairness and isolation": fairness.WORKLOADS,
    "New sessions": connections.WORKLOADS,
    "HTTP requests": requests.WORKLOADS,
}

WORKLOADS: dict[str, Workload] = {each.name: each for group in GROUPS.values() for each in group}

SOAKED = "relay-engine"

LISTENERS, SESSIONS = 5_000, 10_000

QUICK_HELD = 100
"""Of each kind."""

OPEN_FILES = 65_536
"""Both ends of ten thousand sessions and more are in the relay; where fewer are allowed, larger counts say so."""


def say(text: str) -> None:
    """Progress and complaints go to standard error; standard output is the report."""
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    what = ("suite", "connections", "soak", "profile", "page", "list", "fetch")
    parser.add_argument("what", nargs="?", choices=what, default="suite")
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to fetch, or JSON files to show")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that everything runs, not how fast"
    )
    parser.add_argument("--rounds", type=count, metavar="N", help=f"rounds of the suite (default {FULL.rounds})")
    parser.add_argument(
        "--seconds", type=positive, metavar="S", help=f"measured time of each run (default {FULL.measured_s})"
    )
    parser.add_argument("--topologies", help="names with commas between, or all (default: those marked so)")
    parser.add_argument("--workloads", help="names or patterns such as bulk-* with commas between (default: all)")
    parser.add_argument("--listeners", type=count, metavar="N", help=f"idle listeners to hold (default {LISTENERS})")
    parser.add_argument(
        "--sessions", type=count, metavar="N", help=f"idle joined sessions to hold (default {SESSIONS})"
    )
    parser.add_argument(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=JSON",
        help="a setting of the relay (connections); repeats",
    )
    parser.add_argument("--minutes", type=positive, metavar="M", default=10.0, help="length of the soak (default 10)")
    parser.add_argument("--html", type=output_file, metavar="FILE", help="also write a page with charts there")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write everything there")
    return parser.parse_args(arguments)


def _chosen_topologies(names: str | None) -> tuple[list[Topology], list[str]]:
    """Those that can be had, and a line for each that was left out."""
    if names == "all":
        wanted = list(TOPOLOGIES)
    elif names:
        wanted = names.split(",")
    else:
        wanted = [each.name for each in TOPOLOGIES.values() if each.by_default]
    found, skipped = [], []
    for name in wanted:
        if name not in TOPOLOGIES:
            raise BenchError(f"no topology is called {name}; there are {', '.join(TOPOLOGIES)}")
        missing = TOPOLOGIES[name].missing()
        if missing:
            skipped.append(f"- skipped {name}: {missing}")
        else:
            found.append(TOPOLOGIES[name])
    return found, skipped


def _chosen_workloads(names: str | None) -> list[Workload]:
    if not names:
        return list(WORKLOADS.values())
    chosen: dict[str, Workload] = {}
    for pattern in names.split(","):
        found = fnmatch.filter(WORKLOADS, pattern)
        if not found:
            raise BenchError(f"no workload is called {pattern}; there are {', '.join(WORKLOADS)}")
        chosen.update((name, WORKLOADS[name]) for name in found)
    return list(chosen.values())


def _keep(options: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Write the document and the page where they were asked for.

    Raises:
      BenchError: one cannot be written after all.
    """
    try:
        if options.json:
            options.json.write_text(json.dumps(kept, indent=1) + "\n")
        if options.html:
            options.html.write_text(page([kept]))
    except OSError as error:
        raise BenchError(f"what was measured cannot be kept: {error}") from error


def _list() -> None:
    print("topologies:")
    for topology in TOPOLOGIES.values():
        print(f"  {topology.name:24} {topology.about}{'' if topology.by_default else ' (only when named)'}")
    print("workloads:")
    for workload in WORKLOADS.values():
        print(f"  {workload.name:24} {workload.about}")


def _suite(options: argparse.Namespace) -> bool:
    pace = QUICK if options.quick else FULL
    pace = dataclasses.replace(
        pace, rounds=options.rounds or pace.rounds, measured_s=options.seconds or pace.measured_s
    )
    topologies, skipped = _chosen_topologies(options.topologies)
    workloads = _chosen_workloads(options.workloads)
    facts = describe((each.name, each.version()) for each in topologies)
    runs: list[Run] = run_suite(topologies, workloads, pace, say)
    summary = summarise(runs, workloads, [each.name for each in topologies])
    settings = {
        "rounds": f"{pace.rounds}, each run {pace.measured_s:g} s after {pace.warm_s:g} s",
        **({"streams": f"at most {pace.most_streams} of a kind"} if pace.most_streams < FULL.most_streams else {}),
    }
    notes = [noise_line(runs), *skipped]
    print(facts_table({**facts, **settings}))
    print("- a cell is the median (lowest .. highest) of the rounds")
    print("\n".join(notes))
    print("\n" + digest(workloads, summary))
    for workload in workloads:
        print("\n" + workload_table(workload, summary, pace))
    groups = {title: [each.name for each in group] for title, group in GROUPS.items()}
    _keep(
        options,
        document(facts, pace, runs, summary, workloads, settings=settings, notes=notes, groups=groups),
    )
    return not any(run.failure for run in runs)


def _connections(options: argparse.Namespace) -> bool:
    missing = TOPOLOGIES["relay-trio"].missing()
    if missing:
        raise BenchError(missing)
    facts = describe([("relaycore", TOPOLOGIES["relay-trio"].version())])
    held = hold(
        options.listeners or (QUICK_HELD if options.quick else LISTENERS),
        options.sessions or (QUICK_HELD if options.quick else SESSIONS),
        say,
        options.set,
    )
    print(facts_table(facts))
    print(held_text(held))
    _keep(options, {"machine": facts, "held": dataclasses.asdict(held)})
    return True


def _soak(options: argparse.Namespace) -> bool:
    chosen, skipped = _chosen_topologies(options.topologies or SOAKED)
    if len(chosen) != 1:
        raise BenchError("; ".join(skipped) or "one topology is soaked at a time")
    (topology,) = chosen
    facts = describe([(topology.name, topology.version())])
    found = soak(topology, 0.25 if options.quick else options.minutes, say)
    print(facts_table(facts))
    print(soak_text(found))
    _keep(options, {"machine": facts, "soak": dataclasses.asdict(found)})
    return not found.complaints


def _page(options: argparse.Namespace) -> bool:
    if not options.names or not options.html:
        raise BenchError("page takes JSON files that were written before, and --html")
    text = page([_read(name) for name in options.names])
    try:
        options.html.write_text(text)
    except OSError as error:
        raise BenchError(f"the page cannot be written: {error}") from error
    return True


def _read(name: str) -> Any:
    """A document that ``--json`` wrote.

    Raises:
      BenchError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{name} cannot be read: {error}") from error
    if not isinstance(document, dict) or not {"workloads", "held", "soak"} & document.keys():
        raise BenchError(f"{name} was not written by --json: it has nothing to show")
    return document


def _profile(options: argparse.Namespace) -> bool:
    pace = dataclasses.replace(FULL, measured_s=options.seconds or (QUICK.measured_s if options.quick else 5.0))
    for workload in _chosen_workloads(options.workloads):
        print(profile(workload, pace, say), end="\n\n", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when a run failed, 2 when nothing could be measured, 130 after Ctrl-C."""
    options = _parse(arguments)
    if options.what == "list":
        _list()
        return 0
    try:
        if options.what == "fetch":
            return 0 if fetch_all(options.names, say) else 1
        if options.what == "page":
            return 0 if _page(options) else 1
        if options.names:
            raise BenchError(f"{options.what} takes no names: {', '.join(options.names)}")
        if options.set and options.what != "connections":
            raise BenchError("--set is for connections; elsewhere a topology says how its relay is set")
        separate()
        raise_open_files_limit(OPEN_FILES)
        build()
        what = {"suite": _suite, "connections": _connections, "soak": _soak, "profile": _profile}[options.what]
        return 0 if what(options) else 1
    except BenchError as error:
        say(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        say("bench: interrupted, nothing is kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
