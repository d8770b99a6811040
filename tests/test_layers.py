"""The direction of dependency: arrows point down only, and a room never imports its neighbour on the same floor.

Reads every import of the package with ``ast``, those inside functions and those for type checkers included, and names
the offending line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "relaycore"

FLOORS: dict[str, int] = {
    "errors": 0,
    "vocab": 0,
    "config": 0,
    "trace": 0,
    "wire": 1,
    "_native": 1,
    "broker": 2,
    "net": 3,
    "store": 3,
    "gateway": 4,
    "client": 4,
    "edge": 5,
    "admin": 5,
    "testing": 5,
    "selfcheck": 5,
    "cli": 6,
    "__main__": 6,
}

GROUND: dict[str, frozenset[str]] = {
    "vocab": frozenset(),
    "errors": frozenset({"vocab"}),
    "config": frozenset({"errors", "vocab"}),
    "trace": frozenset({"config", "errors", "vocab"}),
}
"""The ground floor is words for everyone, and has an order of its own so that it cannot turn in a circle."""

NEIGHBOURS: frozenset[tuple[str, str]] = frozenset({("wire/frames.py", "_native"), ("__main__.py", "cli")})
"""The exceptions: messages are read over the native frame codec, and ``python -m relaycore`` is the command line."""

LOWEST_FLOOR_WITH_TRIO = 3

PURE_FLOORS = (0, 1, 2)

NEEDS_A_LOOP = frozenset({"trio", "trio_websocket", "asyncio", "anyio", "curio"})


@dataclass(frozen=True)
class Import:
    """One imported module, seen from one line of one file."""

    file: str
    line: int
    module: str  # absolute, such as relaycore.wire.sas or trio

    def __str__(self) -> str:
        return f"relaycore/{self.file}:{self.line} imports {self.module}"

    @property
    def importer(self) -> str:
        return room_of_file(self.file)

    @property
    def room(self) -> str | None:
        """The room of ours that is imported; None for others' modules and for the package itself."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "relaycore" and len(parts) > 1 else None


def room_of_file(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def source_files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports_of(file: str, source: str | None = None) -> Iterator[Import]:
    """Every import of a file, with relative ones made absolute."""
    text = (PACKAGE / file).read_text() if source is None else source
    package = ["relaycore", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(text, filename=file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if module == "relaycore" or (node.level and not node.module):
                # `from . import sas`, `from relaycore import wire`: each name may be a module.
                for alias in node.names:
                    yield Import(file, node.lineno, f"{module}.{alias.name}")
            else:
                yield Import(file, node.lineno, module)


def complaint(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    if found.file == "__init__.py":
        return None  # public names come from every floor; test_exports.py looks after it
    floor = FLOORS[found.importer]
    top = found.module.partition(".")[0]
    if top in NEEDS_A_LOOP and floor < LOWEST_FLOOR_WITH_TRIO:
        return f"{found}: an event loop begins on floor {LOWEST_FLOOR_WITH_TRIO}"
    room = found.room
    if room is None or room == found.importer:
        return None
    if room not in FLOORS:
        return f"{found}: {room} is on no floor"
    if floor == 0:
        allowed = room in GROUND[found.importer]
    elif FLOORS[room] == floor:
        allowed = (found.file, room) in NEIGHBOURS
    else:
        allowed = FLOORS[room] < floor
    return None if allowed else f"{found}: floor {floor} may not know floor {FLOORS[room]}"


@pytest.mark.parametrize("file", source_files())
def test_imports_point_down(file):
    complaints = [said for found in imports_of(file) if (said := complaint(found)) is not None]
    assert not complaints, "\n".join(complaints)


def test_every_room_has_a_floor():
    rooms = {room_of_file(file) for file in source_files()} - {"__init__"}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("file", [f for f in source_files() if FLOORS.get(room_of_file(f), 9) in PURE_FLOORS])
def test_decisions_take_no_clock_and_no_chance(file):
    """Floors 0 to 2 get time and randomness as arguments, which is what makes their whole life testable."""
    if room_of_file(file) == "trace":
        pytest.skip("stamps and writes log lines; its clock can be handed in")
    forbidden = {"time", "random", "secrets", "uuid", "socket", "select"}
    harmless = {"random.Random"}  # the class, to say what is handed in
    wrong = []
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "") in forbidden:
            wrong += [f"relaycore/{file}:{node.lineno} imports {node.module}"]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in forbidden:
            used = f"{node.value.id}.{node.attr}"
            wrong += [f"relaycore/{file}:{node.lineno} uses {used}"] if used not in harmless else []
    assert not wrong, "\n".join(wrong)


def test_only_the_standard_library_and_what_is_declared():
    """A dependency that nobody declared works on one machine only."""
    declared = {"trio", "trio_websocket", "cffi", "httptools", "msgspec", "click"}
    optional = {
        "cryptography": {"cli/ca.py"},
        "dns": {"edge/connect/dns.py"},
        "prometheus_client": {"edge/control/metrics.py"},
    }
    wrong = []
    for file in source_files():
        for found in imports_of(file):
            top = found.module.partition(".")[0]
            if top in sys.stdlib_module_names or top == "relaycore" or top in declared:
                continue
            if file not in optional.get(top, set()):
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


# The test tests itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("wire/sas.py", "import trio", "wire/sas.py:1 imports trio: an event loop begins on floor 3"),
        ("broker/auth.py", "\nfrom trio.abc import Stream", "broker/auth.py:2"),
        ("wire/sas.py", "from ..broker import model", "floor 1 may not know floor 2"),
        ("wire/sas.py", "from .._native import apply_mask", "floor 1 may not know floor 1"),
        ("net/websocket.py", "def f():\n    from ..store import base", "net/websocket.py:2"),
        ("gateway/server.py", "from relaycore.client import listener", "floor 4 may not know floor 4"),
        ("vocab.py", "from .errors import RelayError", "floor 0 may not know floor 0"),
        ("errors.py", "from . import config", "floor 0 may not know floor 0"),
        ("store/base.py", "from relaycore import cli", "floor 3 may not know floor 6"),
        ("wire/sas.py", "from ..attic import x", "attic is on no floor"),
    ],
)
def test_an_arrow_upwards_is_named(file, source, said):
    (found,) = (one for one in imports_of(file, source))
    assert said in (complaint(found) or "")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("wire/frames.py", "from .._native import Decoder"),
        ("wire/sas.py", "from . import limits\nfrom ..errors import AuthorizationFailed"),
        ("trace.py", "from .config import LogConfig"),
        ("cli/serve.py", "from ..gateway.server import serve\nimport trio, click"),
        ("testing/relay.py", "from ..client import listener\nfrom ..gateway import server"),
    ],
)
def test_an_arrow_downwards_is_fine(file, source):
    assert [complaint(found) for found in imports_of(file, source)] == [None] * len(list(imports_of(file, source)))
