"""How secrets and settings come in."""

from __future__ import annotations

import ssl

import click
import pytest

from relaycore.cli.options import Seconds, find_connection_string, load_settings, read_secret, trust
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
TEXT = f"Endpoint=sb://relay.example/;SharedAccessKeyName=root;SharedAccessKey={KEY}"


def test_a_file_goes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RELAYCORE_CONNECTION_STRING", TEXT)
    (tmp_path / "cs").write_text(f"\n {TEXT.replace('relay.example', 'other.example')} \n")
    assert find_connection_string(None, None).host == "relay.example"
    assert find_connection_string("cs", None).host == "other.example"


@pytest.mark.parametrize("value", ["", "  \n"])
def test_an_empty_variable_is_none(monkeypatch, value):
    monkeypatch.setenv("RELAYCORE_CONNECTION_STRING", value)
    assert find_connection_string(None, None) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "holds no"), (b"\xff\xfe\x00", "holds no"), (b"x" * 65_537, "too long"), (None, "No such file")],
)
def test_a_bad_file_is_named(tmp_path, content, said):
    if content is not None:
        (tmp_path / "cs").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_secret("cs", "connection string")
    assert caught.value.source == "cs"


def test_a_bad_connection_string_is_never_repeated(tmp_path):
    (tmp_path / "cs").write_text(TEXT.replace("SharedAccessKey=", "SharedAccessKay="))
    with pytest.raises(ConfigError) as caught:
        find_connection_string("cs", None)
    assert KEY not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("RELAYCORE_SERVER_PORT", "9000")
    assert load_settings(None).server.port == 9000
    assert load_settings(None, {"server.port": 9001}).server.port == 9001


def test_trust_is_the_system_s_and_more(tmp_path):
    assert trust(None) is None
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="no PEM certificate"):
        trust(tmp_path / "empty.pem")
    with pytest.raises(ConfigError, match="No such file"):
        trust(tmp_path / "missing.pem")


def test_trust_never_turns_checks_off(invoke, tmp_path):
    """failures: certificate check off by default; no flag turns safety off silently."""
    assert invoke("ca", "create").exit_code == 0
    context = trust(tmp_path / "ca" / "ca.pem")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_seconds_within_bounds_are_a_number():
    kind = Seconds(min=0, min_open=True, max=20)
    assert kind.convert("2.5", None, None) == 2.5
    for text in ("nan", "-nan", "inf", "0", "21", "soon"):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)
