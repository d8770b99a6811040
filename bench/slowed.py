"""A copy of the tree whose C is slow on purpose: by it the gate is shown to see what it is there for.

Two honest ways to lose speed without a wrong byte: no optimiser, and the portable mask instead of the vector twins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .processes import ROOT, BenchError

COPIED = ("bench", "native", "relaycore")
LOOSE = ("setup.py", "pyproject.toml", "README.md", "LICENSE")

OPTIMISED, SLOW = '"-O2"', '"-O0"'
TWINS, NO_TWINS = "#if defined(__x86_64__) || defined(__i386__)", "#if 0"
NEON, NO_NEON = "#elif defined(__aarch64__)", "#elif 0"


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise BenchError(f"{path.name} cannot be slowed: it has no {old}")
    path.write_text(text.replace(old, new), encoding="utf-8")


def copy_slowed(folder: Path) -> None:
    """Copy the tree, slow its C down and build it.

    Raises:
      BenchError: it is no longer what this knows how to slow, or does not compile.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "corpus")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in LOOSE:
        shutil.copy(ROOT / name, folder / name)
    _replace(folder / "native" / "build_native.py", OPTIMISED, SLOW)
    _replace(folder / "native" / "src" / "rc_mask.c", TWINS, NO_TWINS)
    _replace(folder / "native" / "src" / "rc_mask.c", NEON, NO_NEON)
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", "build/temp"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        raise BenchError(f"the slowed copy does not compile:\n{made.stderr}")


def fails_when_slowed(baseline: Path, budget_s: float, say: Callable[[str], None]) -> bool:
    """Run the gate in a slowed copy of the tree. Returns: whether it failed, as it must."""
    with tempfile.TemporaryDirectory(prefix="bench-slowed-") as name:
        folder = Path(name)
        say("building a slowed copy of the tree")
        copy_slowed(folder)
        # The first entry of the path is the working directory, so every process takes the copy.
        ended = subprocess.run(
            [sys.executable, "-m", "bench.gate", "--baseline", str(baseline.resolve()), "--budget", f"{budget_s:g}"],
            cwd=folder,
            env={name: text for name, text in os.environ.items() if name != "PYTHONSAFEPATH"},
        )
        if ended.returncode not in (0, 1):
            raise BenchError("the gate could not measure the slowed copy")
    say("the gate failed the slowed build, as it must" if ended.returncode else "THE GATE DID NOT SEE A SLOWED BUILD")
    return ended.returncode == 1
