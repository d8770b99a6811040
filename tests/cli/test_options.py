"""How secrets and settings come in."""

from __future__ import annotations

import os
import pty
import ssl
import sys

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


@pytest.mark.parametrize("command", [("connect", "add", "-"), ("hcm", "add", "-", "--no-wait")])
def test_a_terminal_does_not_show_a_secret(tmp_path, home, command):
    (tmp_path / "run").mkdir(mode=0o700)
    config = tmp_path / "relaycore.toml"
    config.touch()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "RELAYCORE_CONFIG": str(config)}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-m", "relaycore", *command], environ)
    with os.fdopen(terminal, "rb+", buffering=0) as opened:
        shown = b""
        while b"Enter:" not in shown:
            shown += opened.read(1024)
        opened.write(f"{TEXT};EntityPath=orders\n".encode())
        try:
            while data := opened.read(1024):
                shown += data
        except OSError:  # nobody has the other end any more
            pass
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert b"connection string (not shown), then Enter: \r\n" in shown
    assert b"saved" in shown
    assert KEY.encode() not in shown
    assert KEY in (tmp_path / "relaycore.d" / "orders.toml").read_text()


def test_a_terminal_that_ends_gives_nothing(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", end)
    with pytest.raises(ConfigError, match="holds no token"):
        read_secret("-", "token")


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
