"""From files, the environment and ``-o`` to one tree of values as they were found, each with the place it stood in.

Precedence, strongest first: ``-o``, environment, later files, earlier files. Arrays of tables of several files are put
one behind the other; everything else is replaced key by key.

Nothing here knows what a value means. What is wrong is collected, so that one look shows all of it.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...errors import ConfigError
from .keys import ROOT, Section
from .kinds import Raw, Source, value_of_text
from .toml_text import KeyPath, dotted, key_lines

__all__ = ["SERVER_SECTIONS", "Table", "read_sources"]

VARIABLE_PREFIX: Final = "RELAYCORE__"

SERVER_SECTIONS: Final = frozenset({"server", "tls", "namespace", "store", "limits", "timeouts", "engine", "log"})
"""Settings of ``relaycore serve``, which may stand in the same file; they are checked where they count."""

_MISSPELT: Final = re.compile(r"RELAYCORE_(RELAY|HCM|CONNECT)_[A-Z0-9].*")
_OPTION = re.compile(r"\s*(?P<path>(?:[^=\"']|\"[^\"]*\"|'[^']*')+?)\s*=(?P<value>.*)", re.DOTALL)
_PART = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^.\"']+)")
_MAX_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Table:
    """One table as found.

    Attributes:
      leaves: values by key.
      below: single tables; `lists`: arrays of tables; `named`: tables by a name of the user's.
    """

    section: Section
    source: Source
    leaves: dict[str, Raw] = field(default_factory=dict)
    below: dict[str, Table] = field(default_factory=dict)
    lists: dict[str, list[Table]] = field(default_factory=dict)
    named: dict[str, dict[str, Table]] = field(default_factory=dict)

    def merge(self, other: Table) -> None:
        """Take over what a stronger table says."""
        self.leaves.update(other.leaves)
        for name, table in other.below.items():
            if name in self.below:
                self.below[name].merge(table)
            else:
                self.below[name] = table
        for name, tables in other.lists.items():
            self.lists.setdefault(name, []).extend(tables)
        for name, by_name in other.named.items():
            mine = self.named.setdefault(name, {})
            for inner, table in by_name.items():
                if inner in mine:
                    mine[inner].merge(table)
                else:
                    mine[inner] = table

    def places(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Source]]:
        """Where each table and value of it stood."""
        if path:
            yield path, self.source
        for name, raw in self.leaves.items():
            yield (*path, name), raw.source
        for name, table in self.below.items():
            yield from table.places((*path, name))
        for name, tables in self.lists.items():
            for index, table in enumerate(tables):
                yield from table.places((*path, name, index))
        for name, by_name in self.named.items():
            for inner, table in by_name.items():
                yield from table.places((*path, name, inner))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`` the nearest is X``, or nothing where there is nothing."""
    folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.0)
    return f"; the nearest is {folded[near[0]]}" if near else ""


@dataclass(slots=True)
class Problems:
    """What is wrong, and what is only worth a word."""

    errors: list[ConfigError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, message: str, source: Source | str, path: KeyPath) -> None:
        """Note an error."""
        text = source if isinstance(source, str) else source.text
        self.errors.append(ConfigError(message, source=text, key=dotted(path)))

    def warn(self, message: str, source: Source, path: KeyPath) -> None:
        """Note a warning."""
        self.warnings.append(": ".join(part for part in (source.text, dotted(path), message) if part))


def read_sources(
    files: Sequence[Path], environ: Mapping[str, str], overrides: Sequence[str], problems: Problems
) -> Table:
    """Everything that was found, in one tree. Reads files; what is wrong goes to `problems`."""
    root = Table(ROOT, Source(""))
    for path in files:
        table = _read_file(path, environ, problems)
        if table is not None:
            root.merge(table)
    _Assigner(root, problems).from_environment(environ)
    _Assigner(root, problems).from_options(overrides, environ)
    return root


def _read_file(path: Path, environ: Mapping[str, str], problems: Problems) -> Table | None:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_BYTES + 1)
        text = data.decode()
        if len(data) > _MAX_BYTES:
            problems.add(f"is longer than {_MAX_BYTES} bytes", str(path), ())
            return None
        document = tomllib.loads(text)
    except OSError as error:
        problems.add(f"cannot be read: {error.strerror}", str(path), ())
    except UnicodeDecodeError as error:
        problems.add(f"is not UTF-8 (byte {error.start})", str(path), ())
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.add(f"is not TOML: {error}", _with_line(path, str(error), text), ())
    else:
        is_private = not (stat.S_ISREG(mode) and mode & 0o077)
        return _FileReader(path, is_private, key_lines(text), environ, problems).table(document, ROOT, ())
    return None


def _with_line(path: Path, message: str, text: str) -> str:
    match = re.search(r"at line ([0-9]+)", message)
    line = match[1] if match else len(text.splitlines()) if "at end of document" in message else ""
    return f"{path}:{line}" if line else str(path)


@dataclass(slots=True)
class _FileReader:
    """Sorts the values of one document by what the sections know."""

    path: Path
    is_private: bool
    lines: Mapping[KeyPath, int]
    environ: Mapping[str, str]
    problems: Problems

    def source(self, path: KeyPath) -> Source:
        line = self.lines.get(path)
        text = str(self.path) if line is None else f"{self.path}:{line}"
        return Source(text, file=self.path, is_private=self.is_private, environ=self.environ)

    def table(self, document: Mapping[str, object], section: Section, path: KeyPath) -> Table:
        table = Table(section, self.source(path))
        for name, value in document.items():
            here = (*path, name)
            if section is ROOT and name in SERVER_SECTIONS:
                continue
            if section.key(name) is not None:
                table.leaves[name] = Raw(value, self.source(here))
            elif name in section.below:
                self._below(table, name, value, here)
            else:
                kind = "section" if section is ROOT else "setting"
                self.problems.add(f"there is no such {kind}{nearest(name, section.names())}", self.source(here), here)
        return table

    def _below(self, table: Table, name: str, value: object, here: KeyPath) -> None:
        section = table.section.below[name]
        title = dotted(tuple(part for part in here if isinstance(part, str)))
        if section.many == "list":
            items = value if isinstance(value, list) else [value] if not isinstance(value, dict) else None
            if items is None or not all(isinstance(item, dict) for item in items):
                self.problems.add(f"expected tables, each written as [[{title}]]", self.source(here), here)
                return
            table.lists[name] = [self.table(item, section, (*here, index)) for index, item in enumerate(items)]
        elif not isinstance(value, dict):
            shown = f"[{title}.NAME]" if section.many else f"[{title}]"
            self.problems.add(f"expected a table, written as {shown}", self.source(here), here)
        elif section.many == "names":
            table.named[name] = {}
            for inner, item in value.items():
                if isinstance(item, dict):
                    table.named[name][inner] = self.table(item, section, (*here, inner))
                else:
                    self.problems.add(
                        f"expected a table, written as [{title}.NAME]", self.source((*here, inner)), (*here, inner)
                    )
        else:
            table.below[name] = self.table(value, section, here)


@dataclass(slots=True)
class _Assigner:
    """Puts single values into the tree: ``HCM__CONNECTION__0__NAME``, ``hcm.connection.orders.name``."""

    root: Table
    problems: Problems

    def from_environment(self, environ: Mapping[str, str]) -> None:
        # By their names' parts, numbers as numbers: element 0 is made before element 1.
        found = sorted(
            (_segments(name), name) for name in environ if name.startswith(VARIABLE_PREFIX) and environ[name].strip()
        )
        for keyed, name in found:
            parts = [text for _, _, text in keyed]
            self._assign(parts, environ[name], Source(name, variable=name, environ=environ))
        for name in environ:
            if _MISSPELT.fullmatch(name):
                self.problems.warnings.append(f"{name}: has no effect; settings of edge programs have two underscores")

    def from_options(self, overrides: Sequence[str], environ: Mapping[str, str]) -> None:
        for text in overrides:
            match = _OPTION.fullmatch(text)
            parts = [a or b or c.strip() for a, b, c in _PART.findall(match["path"])] if match else []
            if match is None or not parts:
                self.problems.add("expected PATH=VALUE, such as hcm.connection.0.listeners=2", "-o", ())
                continue
            self._assign(parts, match["value"].strip(), Source("-o", environ=environ))

    def _assign(self, parts: Sequence[str], text: str, source: Source) -> None:
        table, rest = self.root, list(parts)
        path: KeyPath = ()
        while rest:
            name, here = rest.pop(0), (*path, parts[len(parts) - len(rest) - 1])
            if table.section.key(name) is not None:
                self._leaf(table, name, rest, text, source, here)
                return
            section = table.section.below.get(name)
            if section is None:
                message = f"there is no such setting{nearest(name, table.section.names())}"
                self.problems.add(message, source, here)
                return
            if not section.many:
                table = table.below.setdefault(name, Table(section, source))
                path = here
                continue
            if not rest:
                what = "a number or a name" if section.many == "list" else "a name"
                self.problems.add(f"{what} and a setting have to follow", source, here)
                return
            which = rest.pop(0)
            found = self._element(table, name, section, which, source, here)
            if found is None:
                return
            table, path = found
        self.problems.add(f"is a section; name one of its settings: {', '.join(table.section.names())}", source, path)

    def _element(
        self, table: Table, name: str, section: Section, which: str, source: Source, here: KeyPath
    ) -> tuple[Table, KeyPath] | None:
        if section.many == "names":
            by_name = table.named.setdefault(name, {})
            # Variables are in capitals, and names in files mostly are not.
            spelt = next((known for known in by_name if known.lower() == which.lower()), which)
            return by_name.setdefault(spelt, Table(section, source)), (*here, spelt)
        tables = table.lists.setdefault(name, [])
        if which.isascii() and which.isdigit() and len(which) < 6:
            index = int(which)
            if index > len(tables):
                self.problems.add(
                    f"there are only {len(tables)}, and the next has the number {len(tables)}", source, here
                )
                return None
            if index == len(tables):
                tables.append(Table(section, source))
            return tables[index], (*here, index)
        names = [_name_of(entry) for entry in tables]
        if which not in names:
            self.problems.add(f"there is none with the name {which}{nearest(which, names)}", source, here)
            return None
        return tables[names.index(which)], (*here, names.index(which))

    def _leaf(self, table: Table, name: str, rest: Sequence[str], text: str, source: Source, here: KeyPath) -> None:
        key = table.section.key(name)
        assert key is not None
        if not rest:
            value, is_text = value_of_text(text)
            table.leaves[name] = Raw(value, source, is_text)
        elif len(rest) == 1 and key.kind.has_parts:
            before = table.leaves.get(name)
            is_mine = before is not None and isinstance(before.value, dict) and before.source.file is None
            parts = dict(before.value) if before is not None and is_mine else {}
            part = Source(source.text, environ=source.environ, variable=source.variable)
            table.leaves[name] = Raw({**parts, rest[0]: value_of_text(text)[0]}, part, is_text=True)
        else:
            self.problems.add("has nothing below it", source, (*here, *rest))


def _segments(variable: str) -> list[tuple[int, int, str]]:
    parts = variable.removeprefix(VARIABLE_PREFIX).lower().split("__")
    return [(0, int(part[:9]), part) if part.isascii() and part.isdigit() else (1, 0, part) for part in parts]


def _name_of(table: Table) -> str:
    for key in ("name", "path"):
        if key in table.leaves and isinstance(table.leaves[key].value, str):
            return str(table.leaves[key].value)
    return ""
