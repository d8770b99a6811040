"""``python -m bench``: run the suite; ``connections``: hold idle ones; ``profile``: look inside; ``fetch``: build other
people's programs. See README.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import connections, fairness, latency, requests, throughput
from .connections import held_text, hold
from .loadgen import build
from .machine import describe
from .network import separate
from .processes import BenchError, raise_open_files_limit
from .profile import profile
from .report import digest, document, facts_table, noise_line, summarise, workload_table
from .suite import FULL, QUICK, Run, run_suite
from .toolchain import fetch_all
from .topologies import TOPOLOGIES, Topology
from .workload import Workload

WORKLOADS: dict[str, Workload] = {
    each.name: each
    for each in (
        *throughput.WORKLOADS,
        *latency.WORKLOADS,
        *fairness.WORKLOADS,
        *connections.WORKLOADS,
        *requests.WORKLOADS,
    )
}

OPEN_FILES = 65_536
"""Both ends of ten thousand sessions and more are in the relay; where fewer are allowed, larger counts say so."""


def say(text: str) -> None:
    """Progress and complaints go to standard error; standard output is the report."""
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    what = ("suite", "connections", "profile", "list", "fetch")
    parser.add_argument("what", nargs="?", choices=what, default="suite")
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to fetch (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that everything runs, not how fast"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds of the suite (default {FULL.rounds})")
    parser.add_argument("--seconds", type=float, help=f"measured time of each run (default {FULL.measured_s})")
    parser.add_argument("--topologies", help="names with commas between, or all (default: those marked so)")
    parser.add_argument("--workloads", help="names with commas between (default: all)")
    parser.add_argument("--count", type=int, default=2_000, help="connections to hold of each kind (default 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
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
    wanted = names.split(",") if names else list(WORKLOADS)
    unknown = [name for name in wanted if name not in WORKLOADS]
    if unknown:
        raise BenchError(f"no workload is called {unknown[0]}; there are {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in wanted]


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
    print(facts_table(facts))
    print(noise_line(runs))
    print(
        f"- rounds: {pace.rounds}, each run {pace.measured_s:g} s after {pace.warm_s:g} s; median (lowest .. highest)"
    )
    for line in skipped:
        print(line)
    print("\n" + digest(workloads, summary))
    for workload in workloads:
        print("\n" + workload_table(workload, summary, pace))
    if options.json:
        options.json.write_text(json.dumps(document(facts, pace, runs, summary, skipped=skipped), indent=1) + "\n")
    return not any(run.failure for run in runs)


def _connections(options: argparse.Namespace) -> bool:
    missing = TOPOLOGIES["relay-trio"].missing()
    if missing:
        raise BenchError(missing)
    facts = describe([("relay-trio", TOPOLOGIES["relay-trio"].version())])
    held = hold(100 if options.quick else options.count, say)
    print(facts_table(facts))
    print(held_text(held))
    if options.json:
        text = json.dumps({"machine": facts, "held": dataclasses.asdict(held)}, indent=1)
        options.json.write_text(text + "\n")
    return True


def _profile(options: argparse.Namespace) -> bool:
    pace = dataclasses.replace(FULL, measured_s=options.seconds or (QUICK.measured_s if options.quick else 5.0))
    for workload in _chosen_workloads(options.workloads):
        print(profile(workload, pace, say), end="\n\n", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when a run failed, 2 when nothing could be measured."""
    options = _parse(arguments)
    if options.what == "list":
        _list()
        return 0
    try:
        if options.what == "fetch":
            return 0 if fetch_all(options.names, say) else 1
        if options.names:
            raise BenchError(f"{options.what} takes no names: {', '.join(options.names)}")
        separate()
        raise_open_files_limit(OPEN_FILES)
        build()
        what = {"suite": _suite, "connections": _connections, "profile": _profile}[options.what]
        return 0 if what(options) else 1
    except BenchError as error:
        say(f"bench: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
