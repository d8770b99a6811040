"""A strict reader for the part of YAML that azbridge's files use, and for JSON.

Block mappings and lists, plain and quoted scalars on one line, comments, ``[...]`` and ``{...}``. Whatever else YAML
has (anchors, aliases, tags, scalars over several lines, several documents, tabs as indentation) is refused with line
and column, never guessed at. Scalars stay text: what a value means is up to whoever asked for it, so that no ``no``
becomes a boolean. A mapping with the same key twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

from ...errors import ConfigError

__all__ = ["Node", "YamlList", "YamlMap", "YamlScalar", "parse_yaml"]

_MAX_DEPTH: Final = 20
_MAX_BYTES: Final = 1 << 20
_SPECIAL: Final = {
    "&": "anchors",
    "*": "aliases",
    "!": "tags",
    "|": "scalars over several lines",
    ">": "scalars over several lines",
    "?": "keys of this form",
    "%": "directives",
    "@": "values that begin with this character",
    "`": "values that begin with this character",
}
_ESCAPES: Final = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    " ": " ",
}
_HEX_ESCAPES: Final = {"x": 2, "u": 4, "U": 8}
_COMMENT: Final = re.compile(r"(?:^|\s)#")
_KEY_END: Final = re.compile(r":(?=\s|$)")


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """One value as text; ``~``, ``null`` and nothing at all are ``is_null``."""

    text: str = field(repr=False)  # may be a key
    line: int
    column: int
    is_quoted: bool = False

    @property
    def is_null(self) -> bool:
        return not self.is_quoted and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class YamlList:
    """A list."""

    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class YamlMap:
    """A mapping; keys in their order, each with the place where it stands."""

    items: tuple[tuple[YamlScalar, Node], ...]
    line: int
    column: int


Node: TypeAlias = YamlScalar | YamlList | YamlMap


def parse_yaml(text: str, *, source: str = "") -> Node:
    """Read a document.

    Args:
      source: the file's name, for messages.

    Raises:
      ConfigError: it is not of this subset; ``source`` is then ``FILE:LINE:COLUMN``. No value is repeated.
    """
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"is longer than {_MAX_BYTES} characters", source=source)
    return _Parser(text.removeprefix("\ufeff"), source).parse()


@dataclass(slots=True)
class _Line:
    number: int
    indent: int  # where the content begins, from 0; moves right inside "- "
    text: str  # with its indentation, so that positions are columns


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._raw = re.split(r"\r\n|\n|\r", text)
        self._lines: list[_Line] = []
        self._place = 0

    def _fail(self, why: str, line: int, column: int) -> NoReturn:
        where = f"{line}:{column + 1}"
        raise ConfigError(why, source=f"{self._source}:{where}" if self._source else where)

    def parse(self) -> Node:
        has_begun = False
        for number, text in enumerate(self._raw, 1):
            content = text.lstrip(" ")
            if not content.strip() or content.lstrip().startswith("#"):
                continue
            if text.startswith("%") and not has_begun:
                self._refuse_special(text, number, 0)
            if text.rstrip() == "---" and not has_begun:
                has_begun = True
                continue
            if text.rstrip() == "...":
                if any(rest.strip() and not rest.lstrip().startswith("#") for rest in self._raw[number:]):
                    self._fail("only one document is read", number, 0)
                break
            if text.startswith("---"):
                self._fail("only one document is read", number, 0)
            has_begun = True
            self._lines.append(_Line(number, len(text) - len(content), text))
        if not self._lines:
            return YamlMap((), 1, 0)
        self._peek()
        node = self._block(self._lines[0].indent, 0)
        if (line := self._peek()) is not None:
            self._fail("this line is indented less than the first", line.number, line.indent)
        return node

    def _peek(self) -> _Line | None:
        if self._place == len(self._lines):
            return None
        line = self._lines[self._place]
        if line.text[line.indent] == "\t":
            self._fail("a tab stands in the indentation; use blanks", line.number, line.indent)
        return line

    # Blocks ----------------------------------------------------------------------------------------------------------

    def _block(self, indent: int, depth: int) -> Node:
        line = self._lines[self._place]
        if depth > _MAX_DEPTH:
            self._fail("nested too deeply", line.number, line.indent)
        if _is_item(line):
            return self._list(indent, depth)
        if line.text[indent] in "[{":
            return self._flow_value(line, indent, depth)
        if self._key_end(line, indent) is None:
            node = self._scalar(line, indent)
            self._place += 1
            self._no_continuation(indent)
            return node
        return self._map(indent, depth)

    def _list(self, indent: int, depth: int) -> YamlList:
        first = self._lines[self._place]
        items: list[Node] = []
        while (line := self._peek()) is not None and line.indent == indent and _is_item(line):
            rest = line.text[indent + 1 :]
            content = rest.lstrip(" ")
            if not content or content.startswith("#"):
                self._place += 1
                items.append(self._nested(line, indent, depth, may_be_list=False))
            else:
                # What stands behind the dash is a block of its own, as far to the right as it begins.
                line.indent = len(line.text) - len(content)
                items.append(self._block(line.indent, depth + 1))
        self._no_deeper(indent)
        return YamlList(tuple(items), first.number, indent)

    def _map(self, indent: int, depth: int) -> YamlMap:
        first = self._lines[self._place]
        items: list[tuple[YamlScalar, Node]] = []
        seen: set[str] = set()
        while (line := self._peek()) is not None and line.indent == indent and not _is_item(line):
            end = self._key_end(line, indent)
            if end is None:
                self._fail("expected KEY: VALUE", line.number, indent)
            key, value_at = end
            if key.text in seen:
                self._fail(f"the key {key.text!r:.60} stands here for the second time", line.number, indent)
            seen.add(key.text)
            rest = line.text[value_at:]
            content = rest.lstrip(" \t")
            column = len(line.text) - len(content)
            if not content or (content.startswith("#") and column > value_at):
                self._place += 1
                items.append((key, self._nested(line, indent, depth, may_be_list=True)))
            elif content[0] in "[{":
                items.append((key, self._flow_value(line, column, depth)))
            else:
                items.append((key, self._scalar(line, column)))
                self._place += 1
                self._no_continuation(indent)
        self._no_deeper(indent)
        return YamlMap(tuple(items), first.number, indent)

    def _nested(self, line: _Line, indent: int, depth: int, *, may_be_list: bool) -> Node:
        following = self._peek()
        if following is not None and (
            following.indent > indent or (may_be_list and following.indent == indent and _is_item(following))
        ):
            return self._block(following.indent, depth + 1)
        return YamlScalar("", line.number, len(line.text.rstrip()))

    def _no_deeper(self, indent: int) -> None:
        if (line := self._peek()) is not None and line.indent > indent:
            self._fail("this line's indentation fits none above", line.number, line.indent)

    def _no_continuation(self, indent: int) -> None:
        if (line := self._peek()) is not None and line.indent > indent:
            self._fail("a value over several lines is not read; put it on one line", line.number, line.indent)

    def _key_end(self, line: _Line, start: int) -> tuple[YamlScalar, int] | None:
        """The key at ``start`` and where its value may begin; None: there is none."""
        text = line.text
        if text[start] in "'\"":
            key, end = self._quoted(text, line.number, start)
            after = text[end:].lstrip(" ")
            colon = len(text) - len(after)
            if not after.startswith(":") or (len(after) > 1 and after[1] not in " \t"):
                return None
            return key, colon + 1
        comment = _COMMENT.search(text, start)
        match = _KEY_END.search(text, start, comment.start() if comment else len(text))
        if match is None:
            return None
        self._refuse_special(text, line.number, start)
        return YamlScalar(text[start : match.start()].rstrip(), line.number, start), match.end()

    # Scalars ---------------------------------------------------------------------------------------------------------

    def _refuse_special(self, text: str, number: int, start: int) -> None:
        character = text[start]
        if character in _SPECIAL and not (character == "?" and text[start + 1 : start + 2].strip()):
            self._fail(f"{_SPECIAL[character]} are not read ({character}); put quotes around it", number, start)

    def _scalar(self, line: _Line, start: int) -> YamlScalar:
        text = line.text
        if text[start] in "'\"":
            found, end = self._quoted(text, line.number, start)
            if (rest := text[end:].strip()) and not (rest.startswith("#") and text[end] in " \t"):
                self._fail("something stands behind the closing quote", line.number, end)
            return found
        self._refuse_special(text, line.number, start)
        comment = _COMMENT.search(text, start)
        end = comment.start() if comment else len(text)
        if (colon := _KEY_END.search(text, start, end)) is not None:
            self._fail("a colon and a blank inside a value; put quotes around it", line.number, colon.start())
        return YamlScalar(text[start:end].rstrip(), line.number, start)

    def _quoted(self, text: str, number: int, start: int) -> tuple[YamlScalar, int]:
        """Read a quoted scalar. Returns: it, and the place behind its closing quote."""
        quote = text[start]
        found: list[str] = []
        place = start + 1
        while place < len(text):
            character = text[place]
            if character == quote:
                if quote == "'" and text[place + 1 : place + 2] == "'":
                    found.append("'")
                    place += 2
                    continue
                return YamlScalar("".join(found), number, start, is_quoted=True), place + 1
            if character == "\\" and quote == '"':
                decoded, place = self._escape(text, number, place + 1)
                found.append(decoded)
                continue
            found.append(character)
            place += 1
        self._fail("the closing quote is missing on this line", number, start)

    def _escape(self, text: str, number: int, place: int) -> tuple[str, int]:
        letter = text[place : place + 1]
        if letter in _HEX_ESCAPES:
            digits = text[place + 1 : place + 1 + _HEX_ESCAPES[letter]]
            if len(digits) == _HEX_ESCAPES[letter] and re.fullmatch("[0-9A-Fa-f]+", digits):
                code = int(digits, 16)
                behind = place + 1 + len(digits)
                if 0xD800 <= code < 0xDC00 and (low := re.match(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})", text[behind:])):
                    return chr(0x10000 + ((code - 0xD800) << 10) + (int(low[1], 16) - 0xDC00)), behind + 6  # JSON
                if code < 0x110000 and not 0xD800 <= code < 0xE000:
                    return chr(code), behind
        elif letter and letter in _ESCAPES:
            return _ESCAPES[letter], place + 1
        self._fail("this escape is unknown", number, place - 1)

    # [...] and {...} -------------------------------------------------------------------------------------------------

    def _flow_value(self, line: _Line, column: int, depth: int) -> Node:
        """Read a value in brackets that begins here; afterwards the place is behind its last line."""
        flow = _Flow(self, self._raw, line.number, column)
        node = flow.value(depth)
        flow.expect_end_of_line()
        while self._place < len(self._lines) and self._lines[self._place].number <= flow.line:
            self._place += 1
        return node


class _Flow:
    """Reads values in brackets, over as many lines as they take."""

    def __init__(self, parser: _Parser, lines: list[str], line: int, column: int) -> None:
        self._parser = parser
        self._lines = lines
        self.line = line
        self._column = column

    def _fail(self, why: str) -> NoReturn:
        self._parser._fail(why, self.line, self._column)

    def _skip(self) -> str:
        """Go to the next character that means something, and return it."""
        while True:
            text = self._lines[self.line - 1]
            while self._column < len(text) and text[self._column] in " \t":
                self._column += 1
            if self._column < len(text) and not (
                text[self._column] == "#" and (self._column == 0 or text[self._column - 1] in " \t")
            ):
                return text[self._column]
            if self.line == len(self._lines):
                self._fail("the closing bracket is missing")
            self.line += 1
            self._column = 0

    def value(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            self._fail("nested too deeply")
        match self._skip():
            case "[":
                return self._list(depth)
            case "{":
                return self._map(depth)
            case _:
                return self._scalar()

    def _list(self, depth: int) -> YamlList:
        line, column = self.line, self._column
        self._column += 1
        items: list[Node] = []
        while self._skip() != "]":
            items.append(self.value(depth + 1))
            self._comma("]")
        self._column += 1
        return YamlList(tuple(items), line, column)

    def _map(self, depth: int) -> YamlMap:
        line, column = self.line, self._column
        self._column += 1
        items: list[tuple[YamlScalar, Node]] = []
        while self._skip() != "}":
            key = self._scalar()
            if any(key.text == other.text for other, _ in items):
                self._fail(f"the key {key.text!r:.60} stands here for the second time")
            if self._skip() != ":":
                self._fail("expected a colon")
            self._column += 1
            items.append((key, self.value(depth + 1)))
            self._comma("}")
        self._column += 1
        return YamlMap(tuple(items), line, column)

    def _comma(self, end: str) -> None:
        found = self._skip()
        if found == ",":
            self._column += 1
        elif found != end:
            self._fail(f"expected a comma or {end}")

    def _scalar(self) -> YamlScalar:
        text = self._lines[self.line - 1]
        start = self._column
        if text[start] in "'\"":
            found, self._column = self._parser._quoted(text, self.line, start)
            return found
        if text[start] in ",[]{}:":
            self._fail("expected a value")
        self._parser._refuse_special(text, self.line, start)
        match = re.compile(r"(?:[^,\[\]{}:#]|:(?=[^\s,\[\]{}])|(?<!\s)#)+").match(text, start)
        assert match is not None  # the characters that it does not take were refused above
        self._column = match.end()
        return YamlScalar(match[0].rstrip(), self.line, start)

    def expect_end_of_line(self) -> None:
        rest = self._lines[self.line - 1][self._column :]
        if rest.strip() and not _COMMENT.match(rest):
            self._fail("something stands behind the closing bracket")


def _is_item(line: _Line) -> bool:
    return line.text[line.indent] == "-" and line.text[line.indent + 1 : line.indent + 2] in ("", " ")
