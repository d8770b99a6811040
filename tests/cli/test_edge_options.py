"""Options of the edge commands, and what `config check` and `config show` say."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from relaycore.cli.edge_options import config_group, edge_environ, edge_options, load_edge
from relaycore.cli.exits import ExitCode
from relaycore.edge.config.load import connection_file
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = '[relay.main]\nendpoint = "sb://relay.example/"\n'


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Writes the settings that count."""
    path = tmp_path / "relaycore.toml"
    monkeypatch.setenv("RELAYCORE_CONFIG", str(path))

    def write(text: str, mode: int = 0o644):
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def call(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(config_group(), list(args), standalone_mode=False)
    assert result.exception is None
    return int(result.return_value or 0), result.output


def test_check_counts_what_is_right(settings):
    path = settings(f'{RELAY}[[hcm.connection]]\nname = "orders"\n')
    code, said = call("check")
    assert code == ExitCode.OK
    assert said == f"ok: 1 relay, 1 connection to listen on, 0 forwards, from {path}\n"


def test_check_names_file_line_key_and_the_nearest_key_of_all_that_is_wrong(settings):
    path = settings(f'{RELAY}[[hcm.connection]]\nname = "orders"\nlistners = 2\nprofile = "rwa"\n')
    code, said = call("check")
    assert code == ExitCode.CONFIG
    first, second = said.splitlines()
    assert first.startswith(f"error: {path}:5: hcm.connection.0.listners: there is no such setting; the nearest is lis")
    assert second == f"error: {path}:6: hcm.connection.0.profile: expected raw or azbridge or http (found 'rwa')"


def test_check_looks_at_keys_and_certificates(settings, tmp_path):
    settings(
        '[relay.main]\nendpoint = "sb://relay.example/"\nca_file = "ca.pem"\n[[hcm.connection]]\nname = "a"\n'
        'key_name = "r"\nkey = { file = "key" }\n[[connect.forward]]\nname = "b"\nkey_name = "r"\n'
        'key = { env = "NOT_SET_HERE" }\nprofile = "azbridge"\nport_name = "x"\n'
    )
    code, said = call("check")
    assert code == ExitCode.CONFIG
    assert f"error: {tmp_path}/relaycore.toml:7: {tmp_path}/key cannot be read: No such file" in said
    assert "ca.pem: cannot be used as trusted certificates" in said
    assert "warning:" in said
    assert "env:NOT_SET_HERE holds nothing" in said


def test_check_of_a_directory_that_cannot_be_read_is_an_error(tmp_path):
    code, said = call("check", "--config", str(tmp_path / "absent.toml"))
    assert code == ExitCode.CONFIG
    assert said == f"error: {tmp_path}/absent.toml: cannot be read: No such file or directory\n"


def test_show_hides_secrets_and_tells_origins(settings):
    path = settings(f'{RELAY}[[hcm.connection]]\nname = "a"\nkey_name = "r"\nkey = "{KEY}"\n', 0o600)
    code, said = call("show", "--origin", "-o", "hcm.connection.a.listeners=2")
    assert code == 0
    assert KEY not in said
    assert f'key = "(hidden)"  # {path}:6' in said
    assert "listeners = 2  # -o" in said


def test_show_effective_has_the_defaults(settings):
    settings(f'{RELAY}[[hcm.connection]]\nname = "a"\n')
    assert "listeners" not in call("show")[1]
    assert "listeners = 1\n" in call("show", "--effective")[1]


def test_options_name_files_and_settings(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(RELAY)
    second.write_text('[relay.main]\nkeepalive = "5s"\n')
    beside = tmp_path / "second.d" / "x.toml"
    beside.parent.mkdir()
    beside.write_text('[[hcm.connection]]\nname = "a"\n')

    @click.command()
    @edge_options
    def command(config_files, overrides):
        loaded = load_edge(config_files, overrides)
        assert loaded.files == (first, second, beside)
        assert loaded.settings.hcm.connections[0].relay.keep_alive_s == 5
        assert loaded.settings.hcm.connections[0].listeners == 3
        assert connection_file("n", edge_environ(config_files)) == beside.parent / "n.toml"

    args = ["--config", str(first), "--config", str(second), "-o", "hcm.connection.a.listeners=3"]
    assert CliRunner().invoke(command, args, standalone_mode=False, catch_exceptions=False).exit_code == 0


def test_warnings_go_to_standard_error(settings, capsys):
    settings(f'{RELAY}[[connect.forward]]\nname = "a"\nport_name = "x"\n')
    load_edge(is_quiet=True)
    assert capsys.readouterr() == ("", "")
    load_edge()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("relaycore: warning: ")
    assert "port_name: has no effect" in err


def test_without_files_there_is_nothing_and_no_error(monkeypatch):
    monkeypatch.setattr("relaycore.edge.config.places._is_root", lambda: False)
    assert load_edge(environ={"HOME": "/nonexistent"}).files == ()
    assert edge_environ((), {"A": "b"}) == {"A": "b"}


def test_a_wrong_file_is_a_config_error(settings):
    settings("[hcm]\nconection = []\n")
    with pytest.raises(ConfigError, match="nearest is connection"):
        load_edge()
