"""On which line a key stands, and writing documents that read back as the same."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.config.toml_text import KeyPath, dotted, format_key, format_value, key_lines, write_document

TRICKY = '''# a comment with [brackets] and key = "value"
top = 1   # [not.a.table]

[hcm] # [[neither]]
"quoted key" = """
[inside.a.string]
name = 'no key'
"""
'literal' = \'\'\'
[[also.inside]]
\'\'\'
list = [
  "a", # comment, with ] bracket
  { x = 1, y.z = [2, 3] },
  """
multi""",
]
five = """"two quotes stay at the end"""""
escaped = "a \\" # b"
when = 1979-05-27 07:32:00Z  # a date with a blank

[[hcm.connection]]
name = "first"
[hcm.connection.dial]
timeout = "1s"
[[hcm.connection.port]]
name = "a"
[[hcm.connection.port]]
name = "b"

[[hcm.connection]]
dial . timeout = "2s"
[[hcm.connection.port]]
name = "c"
'''


def paths_of(value: object, path: KeyPath = ()) -> set[KeyPath]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for name, item in value.items():
            found |= paths_of(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found |= paths_of(item, (*path, index))
    return found


def line_of(text: str) -> int:
    return TRICKY.splitlines().index(text) + 1


def test_lines_survive_comments_strings_of_many_lines_and_arrays_of_tables():
    lines = key_lines(TRICKY)
    assert set(lines) == paths_of(tomllib.loads(TRICKY)) | {("hcm", "connection")}
    assert lines["top",] == 2
    assert lines["hcm",] == 4
    assert lines["hcm", "quoted key"] == 5
    assert lines["hcm", "list", 1, "y", "z"] == line_of("  { x = 1, y.z = [2, 3] },")
    assert lines["hcm", "five"] == line_of('five = """"two quotes stay at the end"""""')
    assert lines["hcm", "when"] == line_of("when = 1979-05-27 07:32:00Z  # a date with a blank")
    assert lines["hcm", "connection", 0, "name"] == line_of('name = "first"')
    assert lines["hcm", "connection", 0, "dial", "timeout"] == line_of('timeout = "1s"')
    assert lines["hcm", "connection", 0, "port", 1, "name"] == line_of('name = "b"')
    assert lines["hcm", "connection", 1, "dial", "timeout"] == line_of('dial . timeout = "2s"')
    assert lines["hcm", "connection", 1, "port", 0, "name"] == line_of('name = "c"')
    assert lines["hcm", "connection", 1] == line_of('dial . timeout = "2s"') - 1


def test_carriage_returns_count_no_line():
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def test_an_empty_document_has_no_lines():
    assert key_lines("") == {}
    assert key_lines(" # nothing but a comment") == {}


@pytest.mark.parametrize("value", ["inf", "-nan", "0xff", "1_000", "07:32:00", "1979-05-27", "[[], [[]]]", "{}"])
def test_values_of_every_kind_end_where_they_end(value):
    text = f"a = {value}\nb = 1"
    tomllib.loads(text)
    assert key_lines(text)["b",] == 2


names = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", min_codepoint=0x20), max_size=6)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.one_of(
    texts, st.integers(-(2**60), 2**60), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
tables = st.dictionaries(names, values, max_size=4)
documents = st.fixed_dictionaries(
    {"top": scalars},
    optional={"hcm": st.fixed_dictionaries({}, optional={"x": values, "connection": st.lists(tables, min_size=1)})},
)


def is_header(path: KeyPath) -> bool:
    return path in (("hcm",), ("hcm", "connection"))


@given(documents)
def test_a_written_document_reads_back_and_has_its_lines(document):
    text = write_document(document, is_header)
    assert tomllib.loads(text) == document
    assert set(key_lines(text)) == paths_of(document)


@given(values)
def test_a_value_stands_on_one_line(value):
    text = format_value(value)
    assert len(text.split("\n")) == 1
    assert tomllib.loads(f"x = {text}")["x"] == value


def test_notes_stand_behind_the_line_of_their_key():
    text = write_document({"hcm": {"connection": [{"name": "a"}]}}, is_header, {"hcm.connection.0.name": "f:3"})
    assert text == '[[hcm.connection]]\nname = "a"  # f:3\n'


def test_keys_are_quoted_where_they_must_be():
    assert format_key("a-b_c1") == "a-b_c1"
    assert format_key("a.b") == '"a.b"'
    assert format_key("") == '""'
    assert dotted(("relay", "a.b", 0)) == 'relay."a.b".0'


def test_what_toml_cannot_say_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError):
        format_value(None)
