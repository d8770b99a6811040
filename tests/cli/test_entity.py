"""``relaycore entity`` on the local store, and which store or relay it chooses."""

from __future__ import annotations

import json

import pytest

from relaycore.cli.exits import ExitCode

STORE = ".local/share/relaycore/relaycore.db"


def test_life_of_a_hybrid_connection(invoke, home):
    made = invoke("entity", "create", "Dept/site.42", "--user-metadata", "text", "--anonymous")
    assert (made.exit_code, made.stdout) == (0, "created Dept/site.42\n")
    assert (home / STORE).stat().st_mode & 0o777 == 0o600
    shown = json.loads(invoke("entity", "show", "dept/SITE.42", "--json").stdout)
    assert shown["path"] == "Dept/site.42"
    assert shown["requires_client_authorization"] is False
    assert shown["user_metadata"] == "text"
    assert shown["created_at"].endswith("Z")
    assert invoke("entity", "list").stdout == "Dept/site.42  anonymous\n"
    changed = invoke("entity", "update", "Dept/site.42", "--clear-user-metadata", "--no-http", "--json")
    assert json.loads(changed.stdout)["http"] is False
    assert "user_metadata" not in json.loads(changed.stdout)
    assert "no http" in invoke("entity", "list").stdout
    words = invoke("entity", "show", "Dept/site.42").stdout
    assert "requires client authorization  no\n" in words
    assert "rules                          none\n" in words
    assert invoke("entity", "delete", "Dept/site.42").stdout == "deleted Dept/site.42\n"
    assert json.loads(invoke("entity", "list", "--json").stdout) == []


def test_what_is_made_needs_a_token_and_takes_both_kinds_of_sender(invoke):
    """spec 3: requiresClientAuthorization is true by default."""
    made = json.loads(invoke("entity", "create", "demo", "--json").stdout)
    assert made["requires_client_authorization"] is made["websocket"] is made["http"] is True


def test_switches_for_kinds_of_senders(invoke):
    """spec 18: a published Node listener dies of the kind of sender that it does not know."""
    assert json.loads(invoke("entity", "create", "a", "--no-websocket", "--json").stdout)["websocket"] is False
    assert json.loads(invoke("entity", "create", "b", "--no-http", "--json").stdout)["http"] is False
    assert json.loads(invoke("entity", "create", "c", "--raw-target", "--json").stdout)["raw_target"] is True
    assert json.loads(invoke("entity", "update", "c", "--no-raw-target", "--json").stdout)["raw_target"] is False
    assert json.loads(invoke("entity", "update", "a", "--websocket", "--json").stdout)["websocket"] is True


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("create", "DEMO"), ExitCode.EXISTS, "exists already"),
        (("create", "demo/below"), ExitCode.EXISTS, "hide"),
        (("create", "a b"), ExitCode.REFUSED, "letters, digits"),
        (("create", "x", "--user-metadata", "m" * 1025), ExitCode.REFUSED, "1024"),
        (("show", "nope"), ExitCode.NOT_FOUND, "Endpoint does not exist: nope"),
        (("update", "nope", "--no-http"), ExitCode.NOT_FOUND, "Endpoint does not exist: nope"),
        (("delete", "nope"), ExitCode.NOT_FOUND, "Endpoint does not exist: nope"),
        (("update", "demo"), ExitCode.USAGE, "Nothing to change"),
        (("update", "demo", "--user-metadata", "a", "--clear-user-metadata"), ExitCode.USAGE, "exclude each other"),
        (("create",), ExitCode.USAGE, "PATH"),
    ],
)
def test_what_goes_wrong_has_a_code_and_a_line(invoke, args, code, said):
    invoke("entity", "create", "demo")
    result = invoke("entity", *args)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


# Which store ---------------------------------------------------------------------------------------------------------


def test_reading_makes_no_store(invoke, home):
    for args in (("entity", "list"), ("entity", "show", "a"), ("keys", "list")):
        result = invoke(*args)
        assert result.exit_code == ExitCode.NOT_FOUND
        assert "there is no store" in result.stderr
    assert not (home / STORE).exists()


def test_the_store_can_be_named_in_every_way(invoke, tmp_path, monkeypatch):
    invoke("entity", "create", "by-flag", "--store", "flag.db")
    monkeypatch.setenv("RELAYCORE_STORE_PATH", str(tmp_path / "environment.db"))
    invoke("entity", "create", "by-environment")
    monkeypatch.delenv("RELAYCORE_STORE_PATH")
    (tmp_path / "relay.toml").write_text("[store]\npath = 'file.db'\n")
    invoke("entity", "create", "by-file", "--config", "relay.toml")
    for name in ("flag", "environment", "file"):
        assert invoke("entity", "list", "--store", f"{name}.db").stdout == f"by-{name}\n"


def test_a_store_that_cannot_be_used_has_a_code_of_its_own(invoke, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, whatever its name says")
    result = invoke("entity", "list", "--store", "text.db")
    assert result.exit_code == ExitCode.STORE_UNUSABLE
    assert "text.db" in result.stderr
    result = invoke("entity", "create", "a", "--store", "/proc/nowhere/relay.db")
    assert result.exit_code == ExitCode.STORE_UNUSABLE


def test_a_local_store_and_a_connection_string_exclude_each_other(invoke, tmp_path):
    (tmp_path / "cs").write_text("Endpoint=sb://localhost/;SharedAccessKeyName=a;SharedAccessKey=b")
    for option in (("--local",), ("--store", "x.db"), ("--config", "x.toml")):
        result = invoke("entity", "list", "--connection-string-file", "cs", *option)
        assert result.exit_code == ExitCode.USAGE


def test_local_wins_over_the_environment(invoke, monkeypatch):
    monkeypatch.setenv("RELAYCORE_CONNECTION_STRING", "Endpoint=sb://127.0.0.1:1/;UseDevelopmentEmulator=true")
    invoke("entity", "create", "here", "--local")
    assert invoke("entity", "list", "--local").stdout == "here\n"
    assert invoke("entity", "list", "--store", "other.db").exit_code == ExitCode.NOT_FOUND
