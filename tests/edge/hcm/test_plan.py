"""Comparing settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relaycore.edge.config.differences import changed_keys
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    DialSettings,
    HcmConnection,
    HcmSettings,
    HealthSettings,
    LimitSettings,
    OnDown,
    PolicySettings,
    Profile,
    RelaySettings,
    Target,
)
from relaycore.edge.hcm.plan import Plan, UnknownConnection, make_plan, needs_registration
from relaycore.errors import ConfigError

RELAY = RelaySettings("main", "sb://relay.example/")


def entry(name: str = "sql", **options) -> HcmConnection:
    return HcmConnection(name=name, relay=RELAY, path=name, **options)


def settings(*connections: HcmConnection, **options) -> HcmSettings:
    return HcmSettings(connections, **options)


def test_what_is_new_gone_other_and_the_same():
    """8.4 hot reload: the plan."""
    old = settings(entry("same"), entry("gone"), entry("other"))
    new = settings(
        entry("other", targets=(Target("db", 1),), limits=LimitSettings(max_open=7)),
        entry("same"),
        entry("new"),
        policy=PolicySettings(allow=()),
    )
    plan = make_plan(old, new)
    assert plan == Plan(
        added=("new",),
        removed=("gone",),
        changed={"other": ("endpoint", "limits.max_open")},
        unchanged=("same",),
        general=("policy",),
    )
    assert plan.lines() == [
        "+ new",
        "- gone: no new connections, those that are open may end",
        "~ other: endpoint, limits.max_open",
        "~ policy",
    ]
    assert not plan.is_empty


def test_nothing_changes():
    """A key that stands in another line of the file is the same key."""
    old = entry(key=Secret("file", "/k", "relaycore.toml:3"))
    new = entry(key=Secret("file", "/k", "relaycore.toml:9"))
    plan = make_plan(settings(old), settings(new))
    assert plan.is_empty
    assert plan.lines() == []
    assert plan.unchanged == ("sql",)


def test_a_plan_holds_no_secret():
    old, new = entry(key=Secret("inline", "first")), entry(key=Secret("inline", "second"))
    plan = make_plan(settings(old), settings(new))
    assert plan.changed == {"sql": ("key",)}
    assert "second" not in repr(plan)


def test_two_of_one_name_are_an_error():
    with pytest.raises(ConfigError, match="two connections are called 'sql'"):
        make_plan(settings(), settings(entry(), entry()))


@pytest.mark.parametrize(
    "change",
    [
        {"relay": replace(RELAY, cafile=Path("/ca"))},
        {"path": "other"},
        {"key_name": "other"},
        {"key": Secret("env", "KEY")},
        {"token": Secret("env", "TOKEN")},
        {"profile": Profile.AZBRIDGE},
        {"listeners": 2},
    ],
)
def test_changes_of_the_registration(change: dict[str, object]):
    assert needs_registration(entry(), replace(entry(), **change))
    assert changed_keys(entry(), replace(entry(), **change))


@pytest.mark.parametrize(
    "change",
    [
        {"targets": (Target("db", 1),)},
        {"dial": DialSettings(timeout_s=1)},
        {"health": HealthSettings(on_down=OnDown.WITHDRAW)},
        {"limits": LimitSettings(max_open=1)},
        {"early_reply": True},
        {"is_paused": True},
    ],
)
def test_changes_that_leave_the_control_channels_alone(change: dict[str, object]):
    assert not needs_registration(entry(), replace(entry(), **change))
    assert changed_keys(entry(), replace(entry(), **change))


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["orders-sql", "files"], "no connection is called 'orders-sq'; did you mean 'orders-sql'?"),
        (["files", "erp"], "there are: erp, files"),
        ([], "there are none yet"),
    ],
)
def test_an_unknown_name_says_which_there_are(known: list[str], said: str):
    assert said in str(UnknownConnection("orders-sq", known))
