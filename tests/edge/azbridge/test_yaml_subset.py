"""The part of YAML that azbridge's files use: what is read, and what is refused and where."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.azbridge.yaml_subset import Node, YamlList, YamlMap, YamlScalar, parse_yaml
from relaycore.errors import ConfigError


def plain(node: Node) -> object:
    match node:
        case YamlMap(items):
            return {key.text: plain(value) for key, value in items}
        case YamlList(items):
            return [plain(item) for item in items]
        case YamlScalar():
            return None if node.is_null else node.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# nothing\n\n---\n", {}),
        ("a: 1", {"a": "1"}),
        ("a: 1\nb: no\r\nc:\n", {"a": "1", "b": "no", "c": None}),
        ("a: ~\nb: null\nc: 'null'\nd: \"\"", {"a": None, "b": None, "c": "null", "d": ""}),
        ("---\na: x # comment\nb: x#y\nc: '# no comment' # comment\n...\n# behind\n",
         {"a": "x", "b": "x#y", "c": "# no comment"}),
        ("s: Endpoint=sb://h:9443/;Key=a=b==", {"s": "Endpoint=sb://h:9443/;Key=a=b=="}),
        ("a: two words  ", {"a": "two words"}),
        ("'quoted key': 1\n\"b\" : 2", {"quoted key": "1", "b": "2"}),
        ("a: 'it''s'\nb: \"tab\\tand \\u00e9 \\x41 \\\" \\\\ \\/\"", {"a": "it's", "b": 'tab\tand é A " \\ /'}),
        ("a: \"\\ud83d\\ude00\"", {"a": "😀"}),
        ("a:\n  b:\n    c: 1\n  d: 2\ne: 3", {"a": {"b": {"c": "1"}, "d": "2"}, "e": "3"}),
        ("a:\n  - 1\n  - two\nb: 3", {"a": ["1", "two"], "b": "3"}),
        ("a:\n- 1\n- 2\nb: 3", {"a": ["1", "2"], "b": "3"}),
        ("- a: 1\n  b: 2\n- a: 3\n-   a: 4\n    b: 5", [{"a": "1", "b": "2"}, {"a": "3"}, {"a": "4", "b": "5"}]),
        ("a:\n  -\n    b: 1\n  -\n  - c", {"a": [{"b": "1"}, None, "c"]}),
        ("- - 1\n  - 2\n- - 3", [["1", "2"], ["3"]]),
        ("a: [1, 'x, y', [2], {b: c}, ]\nd: {}", {"a": ["1", "x, y", ["2"], {"b": "c"}], "d": {}}),
        ("a: [\n  1, # one\n  2\n  ]\nb: 3", {"a": ["1", "2"], "b": "3"}),
        ("a: [http://x:80/, b:c, d#e]", {"a": ["http://x:80/", "b:c", "d#e"]}),
        ('{\n\t"a": "1",\n\t"b": [true, null, -5],\n\t"c": {"d": "x"}\n}\n',
         {"a": "1", "b": ["true", None, "-5"], "c": {"d": "x"}}),
        ("- [a]\n- {b: 1}\n- c", [["a"], {"b": "1"}, "c"]),
        ("a: -1\nb: -x\nc: ?x", {"a": "-1", "b": "-x", "c": "?x"}),
        ("\ufeffa: 1", {"a": "1"}),
        ("  a: 1\n  b: 2", {"a": "1", "b": "2"}),
        ("just words", "just words"),
    ],
)  # fmt: skip
def test_what_is_read(text, found):
    assert plain(parse_yaml(text)) == found


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("a: &x 1", "1:4", "anchors"),
        ("a: *x", "1:4", "aliases"),
        ("a: !!str 1", "1:4", "tags"),
        ("a: |\n  text", "1:4", "scalars over several lines"),
        ("a: >-\n  text", "1:4", "scalars over several lines"),
        ("a: one\n  two", "2:3", "over several lines"),
        ("? a\n: b", "1:1", "keys of this form"),
        ("%YAML 1.2\n---\na: 1", "1:1", "directives"),
        ("a: @x", "1:4", "begin with this character"),
        ("a: 1\n---\nb: 2", "2:1", "only one document"),
        ("a: 1\n...\nb: 2", "2:1", "only one document"),
        ("a: 1\n\tb: 2", "2:1", "a tab stands in the indentation"),
        ("a:\n  b: 1\n c: 2", "3:2", "indentation fits none above"),
        ("  a: 1\nb: 2", "2:1", "indented less than the first"),
        ("a: 1\na: 2", "2:1", "the key 'a' stands here for the second time"),
        ("a: {b: 1, b: 2}", "1:12", "the key 'b' stands here for the second time"),
        ("a: 'x", "1:4", "the closing quote is missing"),
        ("a: 'x' y", "1:7", "behind the closing quote"),
        ("a: \"\\q\"", "1:5", "this escape is unknown"),
        ("a: \"\\ud800\"", "1:5", "this escape is unknown"),
        ("a: b: c", "1:5", "a colon and a blank inside a value"),
        ("a: 1\nwords", "2:1", "expected KEY: VALUE"),
        ("- a\nb: 1", "2:1", "indented less"),
        ("a: [1, 2", "1:9", "the closing bracket is missing"),
        ("a: [1 2} ", "1:8", "expected a comma or ]"),
        ("a: {b 1}", "1:8", "expected a colon"),
        ("a: [,]", "1:5", "expected a value"),
        ("a: {[x]: 1}", "1:5", "expected a value"),
        ("a: [1] x", "1:7", "behind the closing bracket"),
        ("a: [*x]", "1:5", "aliases"),
        ("[" * 40, "1:22", "nested too deeply"),
        ("- " * 40 + "x", "1:43", "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_refused(text, where, why):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="bridge.yml")
    assert why in str(caught.value)
    assert caught.value.source == f"bridge.yml:{where}"


def test_places_are_known():
    found = parse_yaml("# first\na:\n  - b: 'x'\n    c: [y]\n")
    [(key, items)] = found.items
    assert (key.line, items.line) == (2, 3)
    [entry] = items.items
    assert [(k.text, k.line, v.line, v.column) for k, v in entry.items] == [("b", 3, 3, 7), ("c", 4, 4, 7)]


def test_a_secret_does_not_stand_in_an_error():
    for text in ("key: 'secret' more", "key: secret: value", "key: [secret", 'key: "secret\\q"', "key: s\n  secret"):
        with pytest.raises(ConfigError) as caught:
            parse_yaml(text)
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(parse_yaml("key: secret"))


json_values = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_json_is_read_too(value, indent, is_ascii):
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    if not any(character in text for character in "\x85\u2028\u2029"):
        assert plain(parse_yaml(text)) == value


@given(st.text(st.sampled_from("ab:-#'\"[]{},\n \t&*!|>?%@\\u"), max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        parse_yaml(text)
