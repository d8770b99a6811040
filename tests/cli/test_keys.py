"""``relaycore keys`` on the local store."""

from __future__ import annotations

import json

import pytest

from relaycore.cli.exits import ExitCode
from relaycore.wire.connection_string import parse_connection_string


@pytest.fixture
def demo(invoke):
    invoke("entity", "create", "Demo")


def listed(invoke, *args: str) -> list[dict]:
    return json.loads(invoke("keys", "list", "--json", *args).stdout)


def test_a_namespace_is_born_with_a_root_rule(invoke, demo):
    """mgmt 3.1: RootManageSharedAccessKey with Listen, Manage and Send."""
    (root,) = listed(invoke)
    assert root["keyName"] == "RootManageSharedAccessKey"
    assert root["rights"] == ["Listen", "Manage", "Send"]
    assert root["primaryKey"] != root["secondaryKey"]


def test_connection_strings_of_the_namespace(invoke, demo):
    """mgmt 3.5: order Endpoint, name, key; a port other than 443; no EntityPath."""
    (root,) = listed(invoke)
    assert root["primaryConnectionString"] == (
        "Endpoint=sb://127.0.0.1:8080/;SharedAccessKeyName=RootManageSharedAccessKey;"
        f"SharedAccessKey={root['primaryKey']};UseDevelopmentEmulator=true"
    )
    assert root["secondaryKey"] in root["secondaryConnectionString"]


def test_connection_strings_of_a_hybrid_connection_end_in_its_path(invoke, demo, monkeypatch):
    """mgmt 3.5: EntityPath is last, in the case of its creation."""
    monkeypatch.setenv("RELAYCORE_SERVER_PUBLIC_URL", "wss://relay.example")
    made = json.loads(invoke("keys", "create", "l", "--rights", "listen", "--entity", "demo", "--json").stdout)[0]
    assert made["primaryConnectionString"] == (
        f"Endpoint=sb://relay.example/;SharedAccessKeyName=l;SharedAccessKey={made['primaryKey']};EntityPath=Demo"
    )
    assert parse_connection_string(made["secondaryConnectionString"]).entity_path == "Demo"


def test_keys_in_words(invoke, demo):
    (root,) = listed(invoke)
    lines = invoke("keys", "list").stdout.splitlines()
    assert lines[0] == "RootManageSharedAccessKey (Listen, Manage, Send)"
    assert lines[1] == f"  primary    {root['primaryConnectionString']}"
    assert lines[2] == f"  secondary  {root['secondaryConnectionString']}"


def test_creating_a_rule_again_keeps_its_keys(invoke, demo):
    """mgmt 3.4: PUT on an existing rule changes rights only and must keep both keys."""
    first = json.loads(invoke("keys", "create", "r", "--rights", "listen", "--json").stdout)[0]
    again = json.loads(invoke("keys", "create", "R", "--rights", "Send,LISTEN", "--json").stdout)[0]
    assert again["rights"] == ["Listen", "Send"]
    assert (again["primaryKey"], again["secondaryKey"]) == (first["primaryKey"], first["secondaryKey"])


@pytest.mark.parametrize(
    ("option", "changed"), [((), "primaryKey"), (("--primary",), "primaryKey"), (("--secondary",), "secondaryKey")]
)
def test_regenerating_changes_the_named_key_only(invoke, demo, option, changed):
    """mgmt 3.5: only the named key changes."""
    (before,) = listed(invoke)
    (after,) = json.loads(invoke("keys", "regenerate", "rootmanagesharedaccesskey", "--json", *option).stdout)
    kept = {"primaryKey", "secondaryKey"} - {changed}
    assert after[changed] != before[changed]
    assert all(after[name] == before[name] for name in kept)
    assert listed(invoke) == [after]


def test_rules_of_the_two_levels_are_apart(invoke, demo):
    invoke("keys", "create", "r", "--rights", "send", "--entity", "Demo")
    assert [rule["keyName"] for rule in listed(invoke, "--entity", "DEMO")] == ["r"]
    assert [rule["keyName"] for rule in listed(invoke)] == ["RootManageSharedAccessKey"]
    assert listed(invoke, "R", "--entity", "Demo")[0]["keyName"] == "r"
    assert invoke("keys", "delete", "r", "--entity", "Demo").exit_code == 0
    assert listed(invoke, "--entity", "Demo") == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("list", "nope"), ExitCode.NOT_FOUND, "no rule 'nope' on the namespace"),
        (("list", "--entity", "nope"), ExitCode.NOT_FOUND, "Endpoint does not exist: nope"),
        (("delete", "nope"), ExitCode.NOT_FOUND, "no rule 'nope'"),
        (("delete", "nope", "--entity", "Demo"), ExitCode.NOT_FOUND, "no rule 'nope' on Demo"),
        (("regenerate", "nope"), ExitCode.NOT_FOUND, "nope"),
        (("delete", "RootManageSharedAccessKey"), ExitCode.REFUSED, "Manage"),
        (("create", "r"), ExitCode.USAGE, "--rights"),
        (("create", "r", "--rights", "read"), ExitCode.USAGE, "Listen, Manage and Send"),
        (("create", "r", "--rights", "manage"), ExitCode.USAGE, "Listen and Send too"),
        (("create", "-", "--rights", "send"), ExitCode.REFUSED, "letter or a digit"),
        (("create", "r", "--rights", "send", "--entity", "nope"), ExitCode.NOT_FOUND, "nope"),
    ],
)
def test_what_goes_wrong_has_a_code_and_a_line(invoke, demo, args, code, said):
    result = invoke("keys", *args)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_no_error_shows_a_key(invoke, demo):
    (root,) = listed(invoke)
    for args in (("delete", "RootManageSharedAccessKey"), ("create", root["primaryKey"], "--rights", "send")):
        result = invoke("keys", *args)
        assert result.exit_code != 0
        assert root["primaryKey"] not in result.output
