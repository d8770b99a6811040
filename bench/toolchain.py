"""Other people's programs, fetched and built at pinned versions: ``python -m bench fetch [NAME ...]``.

Nothing of them is in the tree. Each goes to a directory of its own below ``build/bench/programs``, named after its
version, which appears only when the program is whole; removing ``build/bench`` removes everything, caches included.
Go and Rust programs are compiled here, with the ordinary clients and the registries they are set up for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .processes import ROOT, BenchError

BUILD = ROOT / "build" / "bench"
PROGRAMS = BUILD / "programs"
FETCH_LIMIT_S = 1_800

SEARCH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/go/bin", str(Path.home() / ".cargo" / "bin"), "/usr/sbin"]
)
"""Where commands are looked for: PATH, and where the installers of Go and Rust and Debian put theirs."""


def find_command(name: str) -> str | None:
    """Path of an installed command."""
    return shutil.which(name, path=SEARCH)


@dataclass(frozen=True)
class Program:
    """A program at one version.

    Args:
      kind: ``go``, ``cargo`` or ``pip``.
      source: Go module, crate or distribution.
      parts: what must be there in the end: executables, or Python packages.
      packages: of the Go module, if it is not the one at its root.
      replaced: Go modules of the program's own ``replace`` lines, which do not hold when it is a dependency.
      beside: further distributions, pinned.
      is_locked: whether the crate is built with the dependencies that it was published with.
    """

    name: str
    version: str
    kind: str
    source: str
    parts: tuple[str, ...]
    packages: tuple[str, ...] = ("",)
    replaced: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    is_locked: bool = True

    @property
    def directory(self) -> Path:
        return PROGRAMS / f"{self.name}-{self.version}"

    def path(self, part: str) -> Path:
        """Where an executable stands, or a Python package."""
        return self.directory / (part if self.kind == "pip" else f"bin/{part}")

    def missing(self) -> str | None:
        """A sentence that says why it cannot be run, or nothing."""
        if all(self.path(part).exists() for part in self.parts):
            return None
        hint = f"{self.name} {self.version} is not built (python -m bench fetch {self.name}"
        tool = COMMANDS[self.kind]
        return f"{hint})" if find_command(tool) or self.kind == "pip" else f"{hint}, which needs {tool})"


COMMANDS = {"go": "go", "cargo": "cargo", "pip": sys.executable}

PINNED = (
    Program("picows", "2.3.1", "pip", "picows", ("picows", "uvloop"), beside=("uvloop==0.22.1",)),
    Program("websockify", "0.13.0", "pip", "websockify", ("websockify", "numpy"), beside=("numpy==2.4.6",)),
    Program("chisel", "1.10.1", "go", "github.com/jpillora/chisel", ("chisel",)),
    Program(
        "frp",
        "0.61.1",
        "go",
        "github.com/fatedier/frp",
        ("frps", "frpc"),
        packages=("/cmd/frps", "/cmd/frpc"),
        replaced=("github.com/hashicorp/yamux=github.com/fatedier/yamux@v0.0.0-20230628132301-7aca4898904d",),
    ),
    Program("bore", "0.6.0", "cargo", "bore-cli", ("bore",)),
    # Its published lock holds a `time` that compilers since Rust 1.80 refuse.
    Program("rathole", "0.5.0", "cargo", "rathole", ("rathole",), is_locked=False),
)
"""The one table of versions."""

PROGRAM: dict[str, Program] = {each.name: each for each in PINNED}


def _run(argv: Sequence[str], *, cwd: Path | None = None, **environment: str) -> None:
    """A step of a build, at the lowest priority.

    Raises:
      BenchError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        ["nice", "-n", "19", *argv],
        cwd=cwd,
        env={**os.environ, "PATH": SEARCH, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FETCH_LIMIT_S,
    )
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} {argv[1]} failed:\n" + "\n".join(done.stdout.splitlines()[-15:]))


def go_module(program: Program) -> list[list[str]]:
    """Arguments of ``go`` that build a program from within an empty directory.

    The program is a dependency of a module that is made for it: so its own ``replace`` lines can be given, which
    ``go install module@version`` refuses.
    """
    return [
        ["mod", "init", "programs"],
        *(["mod", "edit", f"-replace={line}"] for line in program.replaced),
        ["mod", "edit", f"-require={program.source}@v{program.version}"],
        ["install", *(program.source + package for package in program.packages)],
    ]


def _build_with_go(program: Program, to: Path) -> None:
    settings = {
        "GOPATH": str(BUILD / "go"),
        "GOBIN": str(to / "bin"),
        "GOFLAGS": "-mod=mod -modcacherw -trimpath",
        "GOTOOLCHAIN": "local",
    }
    with tempfile.TemporaryDirectory(prefix=f"bench-{program.name}-") as module:
        for arguments in go_module(program):
            _run([str(find_command("go")), *arguments], cwd=Path(module), **settings)


def _build_with_cargo(program: Program, to: Path) -> None:
    locked = ["--locked"] if program.is_locked else []
    crate = f"{program.source}@{program.version}"
    _run(
        [str(find_command("cargo")), "install", *locked, "--no-track", "--root", str(to), crate],
        CARGO_TARGET_DIR=str(BUILD / "cargo"),
    )


def _install_with_pip(program: Program, to: Path) -> None:
    wanted = [f"{program.source}=={program.version}", *program.beside]
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(to), *wanted])


_WAYS: dict[str, Callable[[Program, Path], None]] = {
    "go": _build_with_go,
    "cargo": _build_with_cargo,
    "pip": _install_with_pip,
}


def fetch(program: Program) -> None:
    """Have a program that is missing.

    Raises:
      BenchError: there is no tool for it here, or its build failed.
    """
    if find_command(COMMANDS[program.kind]) is None:
        raise BenchError(f"{program.name} needs {COMMANDS[program.kind]}")
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAMS, prefix=".new-") as made:
        whole = Path(made) / "whole"
        _WAYS[program.kind](program, whole)
        shutil.rmtree(program.directory, ignore_errors=True)
        whole.rename(program.directory)
    missing = program.missing()
    if missing:
        raise BenchError(missing)


def fetch_all(names: Sequence[str], say: Callable[[str], None]) -> bool:
    """Have the named programs, or all; the ones that are there stay. Returns whether all of them are there now.

    Raises:
      BenchError: a name is not in the table.
    """
    unknown = [name for name in names if name not in PROGRAM]
    if unknown:
        raise BenchError(f"no program is called {unknown[0]}; there are {', '.join(PROGRAM)}")
    complete = True
    for program in [PROGRAM[name] for name in names] or PINNED:
        if program.missing() is None:
            say(f"{program.name} {program.version}: there")
            continue
        try:
            fetch(program)
            say(f"{program.name} {program.version}: built")
        except (BenchError, subprocess.TimeoutExpired) as error:
            complete = False
            say(f"{program.name} {program.version}: {error}")
    return complete
