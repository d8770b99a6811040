"""The pages for users: each command line in them parses, each link leads somewhere, and each is of this version."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import pytest
from _pytest.mark.structures import ParameterSet

from relaycore.cli.app import COMMANDS, cli

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?:^|[\s;|&(`'])(?:\.venv/bin/|/\S*/bin/)?relaycore ((?:[a-z]|-).*)$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_REDIRECTS = re.compile(r"^(?:\d?[<>]|&)")
_AT_END = {"|", "||", "&&", ";", "&", "#"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(text: str) -> list[list[str]]:
    """Return the words of each call of relaycore in blocks of shell, without ``relaycore``."""
    found = []
    for language, block in _FENCE.findall(text):
        if language not in ("sh", "console", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            match = _CALL.search(line.removeprefix("$ "))
            if match is not None and not line.startswith("#"):
                before = line.removeprefix("$ ")[match.start()]
                found.append(words_of(match[1].partition({"(": ")", "'": "'", "`": "`"}.get(before, "\n"))[0]))
    return found


def mentions(text: str) -> list[list[str]]:
    """Return the words of each call that stands in a sentence, where a name may be enough: `relaycore hcm add`."""
    spans = re.findall(r"`relaycore ([^`]+)`", _FENCE.sub("", text).replace("\n", " "))
    return [words_of(re.sub(r"\|\S+", "", span)) for span in spans if "COMMAND" not in span and span != "--help"]


def words_of(line: str) -> list[str]:
    """Return the words of one call: up to a pipe, a redirection or a comment."""
    words = []
    for word in shlex.split(line, comments=True):
        if word in _AT_END or _REDIRECTS.match(word):
            break
        words.append(word.rstrip(";"))
    return words


def parse(words: list[str]) -> None:
    """Have click take `words` as it would, and run nothing."""
    group: click.Command = cli
    context = click.Context(cli, info_name="relaycore")
    rest = list(words)
    while isinstance(group, click.Group):
        group.parse_args(context, rest)
        rest = [*context._protected_args, *context.args]
        if not rest:
            return  # the group by itself, or its help
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
        group = command
    try:
        group.make_context(context.info_name, rest, parent=context.parent)
    except click.exceptions.Exit:
        pass  # --help
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # files of the reader
            raise


def of_all_pages(find: Callable[[str], list[list[str]]]) -> list[ParameterSet]:
    found = {(path.name, *words): words for path in PAGES for words in find(path.read_text())}
    return [pytest.param(words, id=f"{page}: {shlex.join(words)}") for (page, *_), words in found.items()]


CALLS: Final = of_all_pages(calls)
MENTIONS: Final = of_all_pages(mentions)


def test_there_are_calls():
    assert len(CALLS) > 60
    assert len(MENTIONS) > 60


@pytest.mark.parametrize("words", CALLS)
def test_a_call_parses(words, monkeypatch):
    """The command is there, and so are its options."""
    monkeypatch.delenv("RELAYCORE_CONFIG", raising=False)
    parse([word for word in words if word != "..."])


@pytest.mark.parametrize("words", MENTIONS)
def test_a_mention_parses(words, monkeypatch):
    """The same, but that arguments may be missing."""
    monkeypatch.delenv("RELAYCORE_CONFIG", raising=False)
    with contextlib.suppress(click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        parse([word for word in words if word != "..."])


@pytest.mark.parametrize(
    "words", [["hcm", "begin"], ["hcm", "add", "--endpont", "x"], ["conect"], ["entity", "create"]]
)
def test_a_wrong_call_does_not_parse(words):
    with pytest.raises(click.UsageError):
        parse(words)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as the usual viewers make them."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in _LINK.findall(_FENCE.sub("", text)):
        if ":" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{named(page)} leads to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{named(page)} leads to {link}"


def test_every_page_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [named(page) for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text] == []


def test_every_command_is_in_the_manual_of_commands():
    text = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"\b{re.escape(name)}\b", text)] == []
    assert all(importlib.util.find_spec(f"relaycore.cli.{name.replace('-', '_')}") for name in COMMANDS)
