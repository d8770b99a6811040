"""The table of keys: it fits the values, and the manual says what it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import relaycore
from relaycore.edge.config.keys import ROOT, Key, Section, section_at
from relaycore.edge.config.kinds import Raw, Source
from relaycore.edge.config.load import load
from relaycore.edge.config.settings import ControlSettings, HcmConnection

FOLDER = Path(relaycore.__file__).parent.parent


def load_tool():
    spec = importlib.util.spec_from_file_location("edge_keys", FOLDER / "docs" / "edge_keys.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sections(section: Section = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Section]]:
    yield ".".join(path), section
    for name, below in section.below.items():
        yield from sections(below, (*path, name))


SECTIONS = dict(sections())
KEYS = [(name, section, key) for name, section in SECTIONS.items() for key in section.keys]


def test_the_manual_is_up_to_date():
    tool = load_tool()
    assert tool.page(tool.PAGE.read_text()) == tool.PAGE.read_text(), "run python docs/edge_keys.py"


def test_the_example_in_the_manual_loads(tmp_path):
    text = load_tool().PAGE.read_text().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "x.toml"
    path.write_text(text)
    settings = load([path], {}).settings
    assert [entry.name for entry in (*settings.hcm.connections, *settings.connect.forwards)] == ["orders-sql", "files"]


def test_the_variables_in_the_manual_load():
    lines = load_tool().PAGE.read_text().partition("```sh\n")[2].partition("```")[0].splitlines()
    (connection,) = load([], dict(line.split("=", 1) for line in lines)).settings.hcm.connections
    assert connection.name == "orders-sql"


@pytest.mark.parametrize(("name", "section", "key"), KEYS, ids=[f"{name}.{key.name}" for name, _, key in KEYS])
def test_each_key_has_a_field_or_says_why_not_and_a_default(name, section, key):
    assert key.text.endswith(".")
    fields = {item.name for item in dataclasses.fields(section.value)} if section.value else set()
    if key.attribute is not None:
        assert key.attribute in fields
    if not key.default:
        value = section.default_of(key)
        assert key.kind.read(Raw(key.kind.write(value), Source("x", file=Path("/x")))) == value


def test_each_field_of_a_value_has_a_key():
    """But for those that are made of several keys."""
    made = {
        ("relay", "name"),
        ("hcm.connection", "relay"),
        ("hcm.connection", "targets"),
        ("hcm.connection", "http_url"),
        ("connect.forward", "relay"),
        ("connect", "pool"),
    }
    for name, section in SECTIONS.items():
        if section.value is None:
            continue
        known = {key.attribute for key in section.keys} | {below.field or it for it, below in section.below.items()}
        missing = {item.name for item in dataclasses.fields(section.value)} - known
        assert {(name, field) for field in missing} <= made


def test_sections_are_found_by_their_path():
    assert section_at(()) is ROOT
    assert section_at(("hcm", "control")).value is ControlSettings
    assert section_at(("hcm", "connection")) is section_at(("hcm", "connection", 3)) is SECTIONS["hcm.connection"]
    assert section_at(("hcm", "connection", 3)).value is HcmConnection
    assert section_at(("relay", "dial")) is SECTIONS["relay"]
    for path in (
        ("x",),
        ("hcm", 0),
        ("hcm", "connection", "name"),
        ("relay", "main", "endpoint"),
        ("hcm", "policy", "allow"),
    ):
        assert section_at(path) is None


def test_names_are_told_apart():
    for section in SECTIONS.values():
        assert len(set(section.names())) == len(section.names())
    assert isinstance(SECTIONS["hcm.policy"].key("allow"), Key)
    assert SECTIONS["hcm.policy"].key("x") is None
