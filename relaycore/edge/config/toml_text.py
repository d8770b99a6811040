"""TOML beyond the standard library's reader: on which line a key stands, and writing a document.

`tomllib` says what a document means, and nothing about where. `key_lines` walks over the same text once more and notes
lines. It takes only text that `tomllib` has taken, so that it has no errors of its own to report: it needs to know
where a value ends, not what it is.

Source: TOML 1.0.0.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

__all__ = ["KeyPath", "dotted", "format_key", "format_value", "key_lines", "write_document"]

KeyPath = tuple[str | int, ...]
"""From the top of a document to a value: names of keys, and places in arrays from 0 on."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SKIP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANKS = re.compile(r"[ \t]*")
# Four or five quotes at the end: one or two of them belong to the text.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^\s,\]}#]+(?: \d\d:[^\s,\]}#]+)?")  # a blank may stand between a date and its time
_ESCAPES: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1 on, of each key, table and element of an array of tables; the first one where there are several.

    Args:
      text: a document that `tomllib.loads` has taken.
    """
    return _Walk(text).run()


class _Walk:
    """One pass over a document."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[KeyPath, int] = {}
        self._last: dict[KeyPath, int] = {}  # arrays of tables: the element that headers and keys below them mean
        self._counted_to = 0
        self._line = 1

    def run(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip()
        while self._at < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(2)
            elif self._text.startswith("[", self._at):
                table = self._header(1)
            else:
                self._pair(table)
            self._skip()
        return self._lines

    def _skip(self) -> None:
        self._at = self._end(_SKIP)

    def _end(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        assert match is not None, "tomllib took what TOML does not allow"
        return match.end()

    def _note(self, path: KeyPath, at: int) -> None:
        self._line += self._text.count("\n", self._counted_to, at)
        self._counted_to = at
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], self._line)

    def _header(self, brackets: int) -> KeyPath:
        start = self._at
        self._at += brackets
        names = self._key()
        self._at += brackets
        path: KeyPath = ()
        for name in names[:-1]:
            path = self._element((*path, name))
        path = (*path, names[-1])
        if brackets == 2:
            self._last[path] = self._last.get(path, -1) + 1
            path = self._element(path)
        self._note(path, start)
        return path

    def _element(self, path: KeyPath) -> KeyPath:
        return (*path, self._last[path]) if path in self._last else path

    def _key(self) -> list[str]:
        """A dotted key; stands behind it and the blanks around it."""
        names: list[str] = []
        while True:
            self._at = self._end(_BLANKS)
            start = self._at
            if self._text[start] in "\"'":
                self._at = self._end(_STRING)
                names.append(_unquote(self._text[start : self._at]))
            else:
                self._at = self._end(_BARE_KEY)
                names.append(self._text[start : self._at])
            self._at = self._end(_BLANKS)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = (*table, *self._key())
        self._note(path, start)
        self._at += 1  # the equals sign
        self._at = self._end(_BLANKS)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        match self._text[self._at]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._at = self._end(_STRING)
            case _:
                self._at = self._end(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        for index in itertools.count():
            self._skip()
            if self._text[self._at] == "]":
                break
            self._note((*path, index), self._at)
            self._value((*path, index))
            self._skip()
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while True:
            self._skip()
            if self._text[self._at] == "}":
                break
            self._pair(path)
            self._skip()
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1


def _unquote(text: str) -> str:
    if text.startswith("'"):
        return text[1:-1]
    value: str = tomllib.loads(f"x = {text}")["x"]
    return value


def format_key(name: str) -> str:
    """A key as it stands in a document: bare where that is allowed."""
    return name if _BARE_KEY.fullmatch(name) else _quote(name)


def dotted(path: KeyPath) -> str:
    """A path for people, as ``-o`` takes it too: ``hcm.connection.0.name``."""
    return ".".join(format_key(part) if isinstance(part, str) else str(part) for part in path)


def _quote(text: str) -> str:
    def escape(character: str) -> str:
        if character in _ESCAPES:
            return _ESCAPES[character]
        is_control = ord(character) < 0x20 or character == "\x7f"
        return f"\\u{ord(character):04X}" if is_control else character

    return f'"{"".join(map(escape, text))}"'


def format_value(value: object) -> str:
    """A value on one line.

    Args:
      value: a text, number, boolean, or lists and tables of these.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _quote(value)
        case Mapping():
            pairs = ", ".join(f"{format_key(str(name))} = {format_value(item)}" for name, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case Sequence():
            return f"[{', '.join(format_value(item) for item in value)}]"
    raise TypeError(f"no TOML value: {type(value).__name__}")


def write_document(
    document: Mapping[str, object],
    has_header: Callable[[KeyPath], bool],
    notes: Mapping[str, str] | None = None,
) -> str:
    """A document of tables with headers, in the order of the mappings.

    Args:
      document: tables as mappings, arrays of tables as lists of mappings.
      has_header: whether the table, or array of tables, at a path has a header; one that has none stands on one line.
      notes: a comment for the line of a key, by its dotted path.
    """
    lines: list[str] = []
    _write_table(document, (), lines, has_header, notes or {})
    return "\n".join(lines).lstrip("\n") + "\n" if lines else ""


def _write_table(
    table: Mapping[str, object],
    path: KeyPath,
    lines: list[str],
    has_header: Callable[[KeyPath], bool],
    notes: Mapping[str, str],
) -> None:
    below = [name for name in table if has_header((*path, name))]
    for name, value in table.items():
        if name not in below:
            lines.append(_noted(f"{format_key(name)} = {format_value(value)}", (*path, name), notes))
    for name in below:
        here, value = (*path, name), table[name]
        title = ".".join(format_key(part) for part in here if isinstance(part, str))
        if isinstance(value, Mapping):
            # A table that only holds tables needs no header of its own.
            if not value or not all(has_header((*here, inner)) for inner in value):
                lines += ["", _noted(f"[{title}]", here, notes)]
            _write_table(value, here, lines, has_header, notes)
        elif isinstance(value, Sequence):
            for index, item in enumerate(value):
                lines += ["", _noted(f"[[{title}]]", (*here, index), notes)]
                _write_table(item, (*here, index), lines, has_header, notes)


def _noted(line: str, path: KeyPath, notes: Mapping[str, str]) -> str:
    note = notes.get(dotted(path))
    return line if note is None else f"{line}  # {note}"
