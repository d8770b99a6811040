"""Which test proves which rule: reads the tests' docstrings and docs/rules.toml, writes the table in docs/protocol.md.

    python docs/protocol_table.py            write docs/protocol.md
    python docs/protocol_table.py --check    say what is wrong and leave with 1; write nothing
    python docs/protocol_table.py --rule ID  name the tests of one rule, or of all that begin so

A test names its rules at the beginning of its docstring's first line, ``spec 7.1/id: ...`` or, for a whole section,
``spec 7.1: ...``; further rules may follow anywhere in the line. The part of protocol.md above the marker is written
by hand and stays.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "docs" / "rules.toml"
PAGE = ROOT / "docs" / "protocol.md"
TESTS = ROOT / "tests"
MARKER = "<!-- Below: made by docs/protocol_table.py from docs/rules.toml and the tests. -->"

_NAME = r"(?:spec|mgmt|RFC \d+) \d+(?:\.\d+)*(?:/[\w-]+)?|failures(?:/[\w-]+)?"
_FIRST = re.compile(rf"(?:{_NAME})(?=[,:;]| and )")
_ANY = re.compile(rf"\b(?:{_NAME})")
_KEYS = {"id", "says", "match", "also", "ours"}


@dataclass(frozen=True)
class Test:
    """A test function with the rules that its docstring names."""

    node: str
    line: str
    names: frozenset[str]

    @property
    def file(self) -> str:
        """Its file, below the folder of the tests."""
        return self.node.partition("::")[0].partition("/")[2]

    @property
    def text(self) -> str:
        """What ``match`` and ``also`` look at."""
        return f"{self.node.rpartition('::')[2]} {self.line}"


@dataclass(frozen=True)
class Rule:
    """One entry of rules.toml."""

    id: str
    says: str
    match: re.Pattern[str] | None
    also: re.Pattern[str] | None
    ours: bool

    @property
    def section(self) -> str:
        """Where it is written, without its own name."""
        return self.id.partition("/")[0]

    def is_proved_by(self, test: Test) -> bool:
        """Whether this test counts for this rule."""
        if self.id in test.names or (self.also is not None and self.also.search(test.text)):
            return True
        return self.match is not None and self.section in test.names and self.match.search(test.text) is not None


def read_rules(path: Path = RULES) -> list[Rule]:
    """The rules in their order.

    Raises:
      ValueError: an entry with an unknown key, or an id that is there twice.
    """
    rules: list[Rule] = []
    for entry in tomllib.loads(path.read_text())["rule"]:
        if unknown := entry.keys() - _KEYS:
            raise ValueError(f"{entry.get('id')}: unknown keys {sorted(unknown)}")
        match, also = (re.compile(entry[key], re.IGNORECASE) if key in entry else None for key in ("match", "also"))
        rule = Rule(entry["id"], entry["says"], match, also, entry.get("ours", False))
        if any(other.id == rule.id for other in rules):
            raise ValueError(f"{rule.id} is there twice")
        rules.append(rule)
    return rules


def names_in(line: str) -> frozenset[str]:
    """The rules that a docstring's first line names; none unless it begins with one."""
    return frozenset(_ANY.findall(line)) if _FIRST.match(line) else frozenset()


def read_tests(root: Path = TESTS) -> list[Test]:
    """Every test under a folder that names a rule, by file and line."""
    return [test for path in sorted(root.rglob("test_*.py")) for test in _tests_of(path, root)]


def _tests_of(path: Path, root: Path) -> Iterator[Test]:
    file = path.relative_to(root.parent).as_posix()
    for node, prefix in _functions(ast.parse(path.read_text()), ""):
        first, *_ = (ast.get_docstring(node) or "").splitlines() or [""]
        if names := names_in(first):
            yield Test(f"{file}::{prefix}{node.name}", first, names)


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name.startswith("test_"):
                yield node, prefix
            case ast.ClassDef():
                yield from _functions(node, f"{prefix}{node.name}::")


def problems(rules: Iterable[Rule], tests: Iterable[Test]) -> list[str]:
    """Rules without a test, and names in tests that no rule has."""
    rules, tests = list(rules), list(tests)
    ids = {rule.id for rule in rules}
    # A test may stand for a whole section or chapter: "spec 5.4" and "spec 5" are both known by "spec 5.4/host".
    parts = [rule.section.split(".") for rule in rules]
    ids |= {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
    # Of the standards only what we were tempted to do otherwise is a rule; a test may cite any section of them.
    standards = tuple({name[:9] for name in ids if name.startswith("RFC ")})
    found = [f"no test proves {rule.id}: {rule.says}" for rule in rules if not any(map(rule.is_proved_by, tests))]
    for test in tests:
        unknown = [name for name in sorted(test.names - ids) if not name.startswith(standards)]
        found += [f"{test.node} names {name}, which is no rule" for name in unknown]
    return found


_TITLES = {
    "spec 1": "Vocabulary",
    "spec 2": "URLs",
    "spec 3": "Entities and path matching",
    "spec 4": "Upgrade handshake",
    "spec 5": "Authentication",
    "spec 6": "Control channel",
    "spec 7": "WebSocket connections",
    "spec 8": "The joined stream",
    "spec 9": "HTTP requests",
    "spec 10": "Headers",
    "spec 11": "Choosing a listener",
    "spec 12": "Error answers",
    "spec 13": "Close codes",
    "spec 14": "Clocks",
    "spec 15": "Sizes and quotas",
    "spec 16": "Management GET",
    "spec 18": "What SDKs do",
    "spec 19": "Where the guide and the SDKs disagree",
    "spec 20": "Acceptance",
    "spec 21": "Wire samples",
    "mgmt": "Management",
    "RFC 9110": "HTTP fields",
    "RFC 9112": "HTTP/1.1 messages",
    "RFC 6455": "WebSocket frames",
    "failures": "Failures of other relays",
}


def _chapter(rule: Rule) -> str:
    return next(key for key in sorted(_TITLES, key=len, reverse=True) if re.match(rf"{key}(?!\d)", rule.id))


def render(rules: Iterable[Rule], tests: Iterable[Test]) -> str:
    """The generated part of the page."""
    rules, tests = list(rules), list(tests)
    lines = [
        "## Rules and their tests",
        "",
        f"{len(rules)} rules. *Ours* marks what the hosted service leaves open, or does in a way that does not suit a",
        "relay of one's own. `python docs/protocol_table.py --rule 'spec 7.1/id'` names the tests of that rule.",
    ]
    chapter = ""
    for rule in rules:
        if (now := _chapter(rule)) != chapter:
            chapter = now
            lines += ["", f"### {_TITLES[now]}", "", "| rule | what it says | tests |", "| --- | --- | --- |"]
        files = dict.fromkeys(test.file for test in tests if rule.is_proved_by(test))
        says = rule.says.replace("|", "\\|") + (" *Ours.*" if rule.ours else "")
        lines.append(f"| {rule.id} | {says} | {'<br>'.join(files)} |")
    return "\n".join(lines) + "\n"


def page(old: str, table: str) -> str:
    """The page with its generated part replaced.

    Raises:
      ValueError: the marker is missing.
    """
    prose, marker, _ = old.partition(MARKER)
    if not marker:
        raise ValueError(f"{PAGE} has lost its marker")
    return f"{prose}{MARKER}\n\n{table}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the top."""
    parser = argparse.ArgumentParser(description="Write the table of rules and tests into docs/protocol.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; leave with 1 if something is wrong")
    parser.add_argument("--rule", metavar="ID", help="only name the tests of the rules that begin with ID")
    options = parser.parse_args(arguments)
    rules, tests = read_rules(), read_tests()
    if options.rule:
        for rule in rules:
            if rule.id.startswith(options.rule):
                print(f"{rule.id}: {rule.says}", *(f"    {t.node}" for t in tests if rule.is_proved_by(t)), sep="\n")
        return 0
    wrong = problems(rules, tests)
    old = PAGE.read_text()
    new = page(old, render(rules, tests))
    if options.check and new != old:
        wrong.append("docs/protocol.md is out of date: run python docs/protocol_table.py")
    for line in wrong:
        print(line)
    if not options.check:
        PAGE.write_text(new)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
