"""Whatever stands in files, the environment and options: settings, or a `ConfigError`, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relaycore.edge.config.keys import ROOT, Section
from relaycore.edge.config.load import check, load, show
from relaycore.edge.config.toml_text import KeyPath, write_document
from relaycore.errors import ConfigError

scalars = st.one_of(
    st.booleans(),
    st.integers(-2, 1 << 70),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["a", "main", "a:1", "1s", "1KiB", "auto", "azbridge", "http", "http://h", "Endpoint=sb://h/p", "10.0.0.0/8:*"]
    ),
)
names = st.sampled_from(["file", "env", "x", "send", "expect", "command", "unix", "mode"]) | st.text(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2), max_leaves=4
)


def tables_of(section: Section) -> st.SearchStrategy[dict[str, object]]:
    """Documents that look as if they meant it."""
    optional: dict[str, st.SearchStrategy[object]] = {key.name: values for key in section.keys}
    for name, below in section.below.items():
        inner = tables_of(below)
        if below.many == "list":
            optional[name] = st.lists(inner, max_size=3) | values
        elif below.many == "names":
            optional[name] = st.dictionaries(st.sampled_from(["main", "b c"]), inner, max_size=2) | values
        else:
            optional[name] = inner | values
    known = st.fixed_dictionaries({}, optional=optional)
    return known | st.builds(lambda table, name, value: {**table, name: value}, known, st.text(max_size=4), values)


def inline(path: KeyPath) -> bool:
    return False


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=200)
@given(tables_of(ROOT))
def test_any_document(tmp_path, document):
    path = tmp_path / "x.toml"
    path.touch(mode=0o600)
    path.write_text(write_document(document, inline), encoding="utf-8", errors="surrogatepass")
    loaded, errors = check([path], {"HOME": "/home/a", "RUNTIME_DIRECTORY": "/run/x"})
    assert (loaded is None) == bool(errors)
    if loaded is not None:
        text = show(loaded, effective=True, origin=True)
        path.write_text(text)
        hidden = "(hidden)" in text
        assert hidden or load([path], {"HOME": "/home/a", "RUNTIME_DIRECTORY": "/run/x"}).settings == loaded.settings


parts = st.sampled_from(
    [
        "HCM",
        "CONNECT",
        "RELAY",
        "CONNECTION",
        "FORWARD",
        "0",
        "1",
        "NAME",
        "KEY",
        "FILE",
        "HEALTH",
        "PROBE",
        "SEND",
        "MAIN",
        "",
    ]
)
variables = st.lists(parts | st.text("AZ09_", max_size=3), max_size=6).map(
    lambda found: "RELAYCORE__" + "__".join(found)
)
texts = st.one_of(
    st.sampled_from(["x", "1", "[1]", '{a = "b"}', "{", "[::1]:1", '"x"', "''", "a,b"]), st.text(max_size=5)
)


@given(st.dictionaries(variables, texts, max_size=4))
def test_any_environment(environ):
    with contextlib.suppress(ConfigError):
        load([], environ)


@given(
    st.lists(
        st.text(max_size=20) | st.builds("{}={}".format, st.text("hcm.conetin0\"'", max_size=20), texts), max_size=3
    )
)
def test_any_option(overrides):
    with contextlib.suppress(ConfigError):
        load([], {}, overrides)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_file(tmp_path, data):
    path: Path = tmp_path / "x.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode(errors="surrogatepass"))
    with contextlib.suppress(ConfigError):
        load([path], {})
