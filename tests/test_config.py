"""Settings: where each may come from, which source wins, and what a wrong one is answered with."""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path

import msgspec
import pytest

import relaycore.config
from relaycore._native import HEADROOM_BYTES
from relaycore.config import Config, Setting, default_store_path, load_config, settings
from relaycore.errors import ConfigError
from relaycore.wire import limits

SETTINGS = list(settings())
ROOT = Path(relaycore.config.__file__).parent.parent


def other_value(setting: Setting) -> tuple[str, str, object]:
    """A legal value that is not the default: as TOML, as environment text, as it arrives."""
    special: dict[str, tuple[str, str, object]] = {
        "server.public_url": ('"wss://relay.example"', "wss://relay.example", "wss://relay.example"),
        "namespace.hosts": ('["a.example", "b.example"]', "a.example,b.example", ("a.example", "b.example")),
        "log.level": ('"debug"', "debug", "debug"),
        "engine.mover": ('"trio"', "trio", "trio"),
        "log.format": ('"json"', "json", "json"),
        "tls.cert": ('"/etc/relay.pem"', "/etc/relay.pem", "/etc/relay.pem"),
        "tls.key": ('"/etc/relay.key"', "/etc/relay.key", "/etc/relay.key"),
        "store.path": ('"/var/relay.db"', "/var/relay.db", "/var/relay.db"),
    }
    if setting.key in special:
        return special[setting.key]
    if isinstance(setting.default, bool):
        return ("true", "true", True)
    if isinstance(setting.default, int):
        return (str(setting.default + 1), str(setting.default + 1), setting.default + 1)
    if isinstance(setting.default, float):
        return (str(setting.default + 0.5), str(setting.default + 0.5), setting.default + 0.5)
    return ('"other"', "other", "other")


def companions(setting: Setting) -> dict[str, object]:
    """What must stand beside a setting for the whole to be legal, as flags."""
    return {"tls.cert": {"tls.key": "k"}, "tls.key": {"tls.cert": "c"}}.get(setting.key, {})


def value_of(config: Config, setting: Setting) -> object:
    return getattr(getattr(config, setting.section), setting.field)


def write(folder: Path, text: str) -> Path:
    path = folder / "relay.toml"
    path.write_text(text)
    return path


def test_there_is_something_to_test():
    assert len(SETTINGS) > 30
    assert {"server.port", "tls.cert", "limits.pool_buffers", "timeouts.accept", "log.level"} <= {
        s.key for s in SETTINGS
    }


def test_defaults_need_no_source_at_all():
    assert load_config(None, {}, {}) == Config()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_arrives_from_the_file(tmp_path, setting):
    """failures: a documented setting that is never read."""
    toml, _, expected = other_value(setting)
    path = write(tmp_path, f"[{setting.section}]\n{setting.field} = {toml}\n")
    config = load_config(path, {}, companions(setting))
    assert value_of(config, setting) == expected != setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_arrives_from_the_environment(setting):
    """failures: a documented setting that is never read."""
    _, text, expected = other_value(setting)
    config = load_config(None, {setting.variable: text}, companions(setting))
    assert value_of(config, setting) == expected != setting.default


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_arrives_from_a_flag(setting):
    """failures: a documented setting that is never read."""
    _, _, expected = other_value(setting)
    config = load_config(None, {}, {**companions(setting), setting.key: expected})
    assert value_of(config, setting) == expected != setting.default


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path):
    path = write(tmp_path, "[server]\nport = 1111\nhost = 'file'\n[timeouts]\naccept = 11\n")
    environ = {"RELAYCORE_SERVER_PORT": "2222", "RELAYCORE_SERVER_HOST": "environment"}
    config = load_config(path, environ, {"server.port": 3333, "server.host": None})
    assert config.server.port == 3333
    assert config.server.host == "environment"  # None: the flag was not given
    assert config.timeouts.accept == 11.0
    assert config.server.backlog == Config().server.backlog


def test_the_protocol_s_numbers_are_the_defaults():
    """spec 14: the clocks, and 15: the quotas, as the limits of the wire contract have them."""
    config = Config()
    assert config.timeouts.accept == limits.ACCEPT_TIMEOUT
    assert config.timeouts.token_allowance == limits.TOKEN_ALLOWANCE
    assert config.timeouts.ping_interval == limits.PING_INTERVAL
    assert config.timeouts.half_closed == limits.HALF_CLOSED_TIMEOUT
    assert config.timeouts.close == limits.CLOSE_TIMEOUT
    assert config.limits.listeners_per_entity == limits.MAX_LISTENERS_PER_ENTITY
    assert config.limits.connections_per_namespace == limits.MAX_CONNECTIONS_PER_NAMESPACE
    assert config.limits.entities_per_namespace == limits.MAX_ENTITIES_PER_NAMESPACE
    assert config.limits.rules_per_level == limits.MAX_RULES_PER_LEVEL
    assert config.limits.pool_buffer_bytes > limits.MAX_FRAME_TO_CLIENT_BYTES
    assert config.limits.pool_buffers * (config.limits.pool_buffer_bytes + HEADROOM_BYTES) <= 256 << 20
    assert config.limits.head_bytes == 2 * limits.MAX_REQUEST_HEADERS_BYTES


# What a wrong setting is answered with -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[server]\nprot = 1\n", "server.prot", "nearest is port"),
        ("[servr]\nport = 1\n", "servr", "nearest is server"),
        ("port = 1\n", "port", "nearest is server.port"),
        ("[limits]\npool_bufers = 1\n", "limits.pool_bufers", "nearest is pool_buffers"),
        ("[server]\nport = '80'\n", "server.port", "expected int"),
        ("[server]\nport = 65536\n", "server.port", "<= 65535"),
        ("[server]\nport = -1\n", "server.port", ">= 0"),
        ("[server]\nhost = ''\n", "server.host", "length >= 1"),
        ("[server]\nauto_create = 1\n", "server.auto_create", "expected bool"),
        ("[timeouts]\naccept = 0\n", "timeouts.accept", "> 0"),
        ("[timeouts]\naccept = nan\n", "timeouts.accept", "expected"),
        ("[timeouts]\naccept = inf\n", "timeouts.accept", "expected"),
        ("[log]\nlevel = 'loud'\n", "log.level", "debug or info or warning or error"),
        ("[namespace]\nhosts = 'a'\n", "namespace.hosts", "expected array"),
        ("[namespace]\nhosts = ['a:1']\n", "namespace.hosts", "without scheme, port or path"),
        ("[tls]\ncert = 'a.pem'\n", "tls.cert", "needs tls.key"),
        ("[tls]\nkey = 'a.key'\n", "tls.key", "needs tls.cert"),
        ("[server]\npublic_url = 'https://a'\n", "server.public_url", "expected ws://HOST"),
        ("[server]\npublic_url = 'wss://a/b'\n", "server.public_url", "expected ws://HOST"),
        ("[server]\npublic_url = 'wss://a:b'\n", "server.public_url", "expected ws://HOST"),
        ("[server]\npublic_url = 'wss://u@a'\n", "server.public_url", "expected ws://HOST"),
        ("server = 1\n", "server", "expected a table"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, key, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {}, {})
    assert caught.value.source == str(path)
    assert caught.value.key == key
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: {key}: ")


def test_a_syntax_error_names_file_and_line(tmp_path):
    path = write(tmp_path, "[server]\nport = 80\nhost = relay\n")
    with pytest.raises(ConfigError, match=re.escape(str(path)) + r".*line 3"):
        load_config(path, {}, {})


def test_an_unreadable_file_says_why(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.toml", {}, {})
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path, {}, {})
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml", {}, {})


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("RELAYCORE_SERVER_PROT", "1", "nearest is RELAYCORE_SERVER_PORT"),
        ("RELAYCORE_SEVER_PORT", "1", "nearest is RELAYCORE_SERVER_PORT"),
        ("RELAYCORE_HOST", "a", "there is no such variable"),
        ("RELAYCORE_SERVER_PORT", "eighty", "expected int"),
        ("RELAYCORE_SERVER_PORT", "", "expected int"),
        ("RELAYCORE_SERVER_AUTO_CREATE", "yes", "expected bool"),
        ("RELAYCORE_TIMEOUTS_ACCEPT", "nan", "expected"),
        ("RELAYCORE_TIMEOUTS_ACCEPT", "1e999", "out of range"),
        ("RELAYCORE_TIMEOUTS_DRAIN", "nan", "expected"),
    ],
)
def test_a_wrong_variable_is_named(variable, text, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config(None, {variable: text}, {})
    assert variable in str(caught.value)


@pytest.mark.parametrize(
    "variable",
    [
        "RELAYCORE_CONNECTION_STRING",
        "RELAYCORE_TOKEN",
        "RELAYCORE_CONFIG",
        "RELAYCORE_SERVICE_HOST",  # what Kubernetes tells every pod about a service called relaycore
        "RELAYCORE_PORT",
        "RELAYCORE_PORT_8080_TCP_ADDR",
        "_RELAYCORE_COMPLETE",
        "PATH",
    ],
)
def test_variables_that_are_no_settings_are_left_alone(variable):
    assert load_config(None, {variable: "tcp://10.0.0.1:8080"}, {}) == Config()


def test_flags_are_checked_like_the_rest():
    with pytest.raises(ConfigError, match=r"flags: server.port: expected int <= 65535"):
        load_config(None, {}, {"server.port": 65_536})
    with pytest.raises(ConfigError, match=r"nearest is server\.port"):
        load_config(None, {}, {"server.prt": 1})


def test_the_source_that_lost_is_checked_all_the_same(tmp_path):
    path = write(tmp_path, "[server]\nport = 'x'\n")
    with pytest.raises(ConfigError, match=r"relay.toml: server.port"):
        load_config(path, {"RELAYCORE_SERVER_PORT": "1"}, {"server.port": 1})


# Files and folders ---------------------------------------------------------------------------------------------------


def test_relative_names_in_a_file_count_from_its_folder(tmp_path):
    path = write(tmp_path, "[tls]\ncert = 'c.pem'\nkey = '/etc/k.pem'\n[store]\npath = 'data/relay.db'\n")
    config = load_config(path, {}, {})
    assert config.tls.cert == str(tmp_path / "c.pem")
    assert config.tls.key == "/etc/k.pem"
    assert config.store.path == str(tmp_path / "data/relay.db")


def test_a_store_in_memory_is_not_a_file_name(tmp_path):
    assert load_config(write(tmp_path, "[store]\npath = ':memory:'\n"), {}, {}).store.path == ":memory:"


def test_the_store_lives_in_the_user_s_data_directory():
    assert default_store_path({"XDG_DATA_HOME": "/data", "HOME": "/home/u"}) == Path("/data/relaycore/relaycore.db")
    assert default_store_path({"HOME": "/home/u"}) == Path("/home/u/.local/share/relaycore/relaycore.db")
    # A relative XDG_DATA_HOME is to be ignored, says the XDG base directory specification.
    assert default_store_path({"XDG_DATA_HOME": "data", "HOME": "/h"}) == Path("/h/.local/share/relaycore/relaycore.db")


def test_without_any_home_the_store_must_be_named(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"store\.path"):
        default_store_path({})


# The settings describe themselves ------------------------------------------------------------------------------------


def documented_fields() -> dict[str, str]:
    """Docstring below each field of the sections, by dotted name."""
    tree = ast.parse(Path(relaycore.config.__file__).read_text())
    sections = {struct.__name__: name for name, struct in typing.get_type_hints(Config).items()}
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name not in sections:
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[f"{sections[node.name]}.{field.target.id}"] = ast.literal_eval(text.value)
    return found


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_is_documented_in_place(setting):
    assert len(documented_fields()[setting.key]) > 40


def test_the_values_are_frozen():
    config = Config()
    with pytest.raises(AttributeError):
        config.server.port = 1
    assert msgspec.structs.replace(config.server, port=1).port == 1


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_load(path):
    assert load_config(path, {}, {}) != Config()


def documented_settings() -> dict[str, str]:
    """Default of each setting as docs/configuration.md shows it, by dotted name."""
    found, section = {}, ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if heading := re.fullmatch(r"## \[(\w+)\]", line):
            section = heading[1]
        elif section and (row := re.fullmatch(r"\| `(\w+)` \| ([^|]+) \| .{20,} \|", line)):
            found[f"{section}.{row[1]}"] = row[2].strip().strip("`").strip('"')
    return found


def test_the_reference_lists_every_setting_with_its_default():
    shown = {setting.key: setting.default for setting in SETTINGS}
    words = {None: "unset", True: "true", False: "false", (): "[]"}
    expected = {
        key: words[value] if value is None or isinstance(value, bool | tuple) else str(value)
        for key, value in shown.items()
    }
    assert documented_settings() == expected


def test_every_setting_is_read_somewhere():
    """failures: a documented credential setting that is never read."""
    read = set()
    for path in (ROOT / "relaycore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and path.name != "config.py":
                holder = getattr(node.value, "attr", None) or getattr(node.value, "id", None)
                read.add((holder, node.attr))
    # `config.limits.head_bytes`, `limits.head_bytes`, and where a section comes alone, `config.level`.
    unread = [s.key for s in SETTINGS if not read & {(s.section, s.field), ("config", s.field)}]
    assert unread == []
