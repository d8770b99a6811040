"""docs/hcm.md says what there is."""

from __future__ import annotations

import re
from pathlib import Path

import relaycore
from relaycore.cli.hcm.calls import make_calls
from relaycore.cli.hcm.group import SUBCOMMANDS
from relaycore.edge.hcm.manager import Manager
from relaycore.edge.hcm.status import Shown

PAGE = (Path(relaycore.__file__).parent.parent / "docs" / "hcm.md").read_text()


def test_every_command_is_described():
    table = PAGE.partition("## Commands")[2].partition("###")[0]
    for name in SUBCOMMANDS:
        assert re.search(rf"`{name}[ `]", table), name


def test_every_state_is_described():
    table = PAGE.partition("## States")[2].partition("###")[0]
    assert re.findall(r"^\| `(\w+)` ", table, re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+)` ", table, re.MULTILINE)) == {word.value for word in Shown}


def test_every_kind_of_event_is_described():
    text = PAGE.partition("**Events**")[2].partition("###")[0]
    kinds = re.findall(r"``([a-z-]+)``", (Manager.events.__doc__ or "").partition("Kinds:")[2])
    assert kinds
    assert set(re.findall(r"`([a-z-]+)`", text)) == set(kinds)


def test_every_call_is_described():
    text = PAGE.partition("Calls: ")[2].partition(". Those")[0]
    assert set(re.findall(r"`(\w+)`", text)) == set(make_calls(None))
