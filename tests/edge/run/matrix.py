"""Which programs reach a name in which mode of ``relaycore run``: tried, and kept as a table in docs/run.md.

    python tests/edge/run/matrix.py            try them and print the table
    python tests/edge/run/matrix.py --write    and put it into docs/run.md

Each program asks for a page at a name that no DNS server knows. Rows of the page whose program is not on this machine
stay as they are.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from run_world import ANSWER, NAME, open_run_world  # noqa: E402 - the path is set above

from relaycore.edge.run.modes import RunMode  # noqa: E402

PAGE = HERE.parents[2] / "docs" / "run.md"
BEGIN = "<!-- Below: made by tests/edge/run/matrix.py. -->"
END = "<!-- Above: made by tests/edge/run/matrix.py. -->"
HEAD = ["| Program | " + " | ".join(RunMode) + " |", "| --- |" + " --- |" * len(RunMode)]

SOURCES = HERE / "programs"
PORT = 8080


@dataclass(frozen=True)
class Program:
    """One row.

    Attributes:
      row: how the page calls it.
      needs: the compilers and interpreters, all of them.
      command: what is run; ``{sources}`` and ``{built}`` are directories, HOST and PORT follow ``{where}``.
      build: what makes it.
      version: prints a version whose first number belongs to the row, as behaviour changes with it.
    """

    row: str
    needs: tuple[str, ...]
    command: str
    build: str = ""
    version: str = ""

    @property
    def missing(self) -> list[str]:
        """What is not on this machine."""
        return [name for name in self.needs if shutil.which(name) is None]

    @property
    def title(self) -> str:
        """The row with its version, where that matters."""
        if not self.version or self.missing:
            return self.row
        said = subprocess.run(shlex.split(self.version), capture_output=True, text=True, check=True).stdout
        return self.row.replace("VERSION", said.strip().lstrip("v").partition(".")[0])


_C = "cc -O1 {flags} -o {{built}}/{name} {{sources}}/look.c"
_GO = "env CGO_ENABLED=0 go build -o {built}/look_go {sources}/look_go/look.go"
_JAVA = "javac -d {built} {sources}/Look.java"

PROGRAMS = (
    Program("Python, socket", ("python3",), "python3 {sources}/look.py {where}"),
    Program("Python, urllib", ("python3",), "python3 {sources}/look_urllib.py {where}"),
    Program("curl", ("curl",), f"curl -sS -m 10 http://{NAME}:{PORT}/"),
    Program("Node VERSION, http", ("node",), "node {sources}/look.js {where} http", version="node --version"),
    Program("Node VERSION, c-ares", ("node",), "node {sources}/look.js {where} cares", version="node --version"),
    Program("Java, Socket", ("java", "javac"), "java -cp {built} Look {where} socket", _JAVA),
    Program("Java, URL", ("java", "javac"), "java -cp {built} Look {where} url", _JAVA),
    Program("Go, net (static)", ("go",), "{built}/look_go {where} dial", _GO),
    Program("Go, net/http (static)", ("go",), "{built}/look_go {where} http", _GO),
    Program("C, glibc, dynamic", ("cc",), "{built}/look_dynamic {where}", _C.format(flags="", name="look_dynamic")),
    Program("C, glibc, static", ("cc",), "{built}/look_static {where}", _C.format(flags="-static", name="look_static")),
    Program(
        "C, musl, static",
        ("musl-gcc",),
        "{built}/look_musl {where}",
        "musl-gcc -O1 -static -o {built}/look_musl {sources}/look.c",
    ),
)


def build(programs: list[Program], directory: Path) -> None:
    """Compile what has to be compiled."""
    for command in dict.fromkeys(program.build for program in programs if program.build):
        words = shlex.split(command.format(built=directory, sources=SOURCES))
        # A static program of glibc is linked with a warning that names need the same glibc again.
        subprocess.run(words, check=True, cwd=directory, stderr=subprocess.PIPE)


async def measure(modes: list[RunMode]) -> dict[RunMode, dict[str, bool]]:
    """Try all programs that are there, as a user without privileges; by mode, then by title of the row."""
    programs = [program for program in PROGRAMS if not program.missing]
    found: dict[RunMode, dict[str, bool]] = {}
    async with open_run_world() as world:
        await trio.to_thread.run_sync(build, programs, world.directory)
        shutil.copytree(SOURCES, world.directory / "sources")
        for mode in modes:
            lines = []
            for number, program in enumerate(programs):
                command = program.command.format(
                    sources=world.directory / "sources", built=world.directory, where=f"{NAME} {PORT}"
                )
                lines.append(f"timeout 20 {command} >{world.directory}/{mode}.{number} 2>&1 </dev/null")
            said = await world.run("--mode", str(mode), "sh", "-c", "\n".join([*lines, "true"]), port=PORT)
            if said.returncode != 0:
                raise RuntimeError(said.stderr.decode())
            found[mode] = {
                program.title: ANSWER in (world.directory / f"{mode}.{number}").read_text()
                for number, program in enumerate(programs)
            }
    return found


def read_table(page: str) -> dict[str, list[str]]:
    """The cells of each row of the page's table."""
    _, begin, rest = page.partition(BEGIN)
    table, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the table")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return {row[0]: row[1:] for row in rows[len(HEAD) :]}


def write_table(page: str, found: dict[RunMode, dict[str, bool]]) -> str:
    """The page with what was found; other rows stay, those of other versions go."""
    rows = read_table(page)
    for program in PROGRAMS:
        if program.missing:
            continue
        pattern = program.row.partition("VERSION")
        for row in [row for row in rows if pattern[1] and row.startswith(pattern[0]) and row.endswith(pattern[2])]:
            del rows[row]
        rows[program.title] = ["yes" if found[mode][program.title] else "no" for mode in RunMode]
    order = {program.title: place for place, program in enumerate(PROGRAMS)}
    lines = [
        f"| {row} | " + " | ".join(rows[row]) + " |" for row in sorted(rows, key=lambda row: order.get(row, len(order)))
    ]
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + "\n".join([BEGIN, "", *HEAD, *lines, "", END]) + after


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/run.md")
    wanted = parser.parse_args()
    page = write_table(PAGE.read_text(), trio.run(measure, list(RunMode)))
    if wanted.write:
        PAGE.write_text(page)
    else:
        print(page.partition(BEGIN)[2].partition(END)[0].strip())


if __name__ == "__main__":
    _main()
