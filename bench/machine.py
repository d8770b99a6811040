"""What a report must say about where its figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .network import congestion_control
from .processes import ROOT, cores

PACKAGES = ("trio", "trio-websocket", "cffi", "httptools", "msgspec")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def describe(topology_versions: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Facts in the order in which they are printed."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu_model()}, {len(cores())} of {os.cpu_count()} cores usable",
        "kernel": f"{platform.system()} {platform.release()}",
        "network": f"loopback, congestion control {congestion_control()}",
        "compiler": _first_line(os.environ.get("CC", "cc"), "--version"),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {_package_version(name)}" for name in PACKAGES),
        "TLS": "none",
        "tree": _first_line("git", "describe", "--always", "--dirty"),
        "load average": Path("/proc/loadavg").read_text().split()[0] + " before the first run",
    }
    facts.update({f"{name} version": text for name, text in topology_versions if text})
    return facts
