"""What differs between two entries, in the words of the settings."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from relaycore.edge.config.differences import changed_keys
from relaycore.edge.config.keys import ROOT
from relaycore.edge.config.settings import (
    DialSettings,
    Forward,
    HcmConnection,
    LimitSettings,
    ListenAt,
    PortBinding,
    RelaySettings,
    RetrySettings,
    Target,
)

RELAY = RelaySettings("main", "sb://relay.test/")
CONNECTION = HcmConnection("a", RELAY, "orders")
FORWARD = Forward("a", RELAY, "orders")


@pytest.mark.parametrize(
    ("old", "change", "keys"),
    [
        (CONNECTION, {}, ()),
        (CONNECTION, {"targets": (Target("h", 1),)}, ("endpoint",)),
        (CONNECTION, {"targets": (), "http_url": "http://h"}, ("endpoint",)),
        (CONNECTION, {"ports": (PortBinding("x", (Target("h", 1),)),)}, ("port",)),
        (CONNECTION, {"is_paused": True}, ("paused",)),
        (
            CONNECTION,
            {"limits": LimitSettings(drain_timeout_s=1, max_open=2)},
            ("limits.max_open", "limits.drain_timeout"),
        ),
        (CONNECTION, {"dial": DialSettings(timeout_s=1)}, ("dial.timeout",)),
        (
            CONNECTION,
            {"relay": replace(RELAY, keep_alive_s=9, is_emulator=True)},
            ("relay.keepalive", "relay.emulator"),
        ),
        (FORWARD, {"retry": RetrySettings(attempts=1)}, ("connect.attempts",)),
        (FORWARD, {"listen": (ListenAt("tcp", "auto", 1),), "port": 1}, ("listen", "port")),
    ],
)
def test_keys_are_named_as_in_the_file(old, change, keys):
    """manager 8.4: a reload's plan says what changes in the words that stand in the settings."""
    assert set(changed_keys(old, replace(old, **change))) == set(keys)


@pytest.mark.parametrize(("entry", "place"), [(CONNECTION, ("hcm", "connection")), (FORWARD, ("connect", "forward"))])
def test_each_field_has_a_key(entry, place):
    section = ROOT.below[place[0]].below[place[1]]
    named = {name for item in fields(entry) for name in changed_keys(entry, replace(entry, **{item.name: object()}))}
    assert named <= set(section.names())
