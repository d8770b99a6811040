"""Entries in the forms of other tools: what they say, and that they read back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from relaycore.edge.azbridge.files import read
from relaycore.edge.config.exporting import FORMS, export, remarks
from relaycore.edge.config.importing import read_arm_json, read_hcm_json
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import Forward, HcmConnection, ListenAt, PortBinding, Profile, RelaySettings, Target
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = RelaySettings("", "sb://corp.servicebus.windows.net/")
CONNECTION = HcmConnection("a", RELAY, "orders", key_name="r", key=Secret("inline", KEY))
FORWARD = Forward(
    "a", RELAY, "orders", key_name="r", key=Secret("inline", KEY), hosts=("sqldb.corp.example",), port=1433
)
TO_SQL = replace(CONNECTION, targets=(Target("sqldb.corp.example", 1433),))
PORTS = (
    PortBinding("tds", (Target("sqldb.corp.example", 1433),)),
    PortBinding("dns", (Target("10.0.0.1", 53),), is_udp=True),
    PortBinding("sock", (Target(path="/run/x"),)),
)


def test_hcm_reads_what_is_written_for_it():
    (item,) = json.loads(export(TO_SQL, "hcm", with_key=True))
    assert item["Namespace"] == "corp"
    assert item["Uri"] == "sb://corp.servicebus.windows.net/orders"
    assert (item["EndpointHost"], item["EndpointPort"]) == ("sqldb.corp.example", 1433)
    assert read_hcm_json(export(CONNECTION, "hcm", with_key=True)).entries == [replace(CONNECTION, name="orders")]


def test_the_app_service_api_reads_what_is_written_for_it():
    properties = json.loads(export(FORWARD, "arm", with_key=True))["properties"]
    assert properties["serviceBusNamespace"] == "corp"
    assert "serviceBusSuffix" not in properties
    assert read_arm_json(export(FORWARD, "arm", with_key=True)).entries == [replace(FORWARD, name="orders")]
    elsewhere = replace(FORWARD, name="orders", relay=RelaySettings("", "sb://relay.corp.example/"))
    assert read_arm_json(export(elsewhere, "arm", with_key=True)).entries == [elsewhere]


def test_a_listener_s_key_is_not_given_to_senders():
    properties = json.loads(export(TO_SQL, "arm", with_key=True))["properties"]
    assert (properties["sendKeyName"], properties["sendKeyValue"]) == ("defaultSender", "")
    assert (properties["hostName"], properties["port"]) == ("sqldb.corp.example", 1433)


@pytest.mark.parametrize(
    ("endpoint", "namespace", "suffix", "said"),
    [
        ("sb://corp.servicebus.windows.net/", "corp", None, []),
        ("sb://127.0.0.1:8443/", "127.0.0.1", None, ["no NAMESPACE.SUFFIX", "port 8443"]),
        ("sb://[::1]/", "::1", None, ["no NAMESPACE.SUFFIX"]),
        ("sb://localhost/", "localhost", None, ["no NAMESPACE.SUFFIX"]),
        ("sb://relay.corp.example:443/", "relay", ".corp.example", []),
    ],
)
def test_what_arm_cannot_say_about_a_relay_is_a_remark(endpoint, namespace, suffix, said):
    entry = replace(TO_SQL, relay=RelaySettings("", endpoint))
    properties = json.loads(export(entry, "arm"))["properties"]
    assert (properties["serviceBusNamespace"], properties.get("serviceBusSuffix")) == (namespace, suffix)
    found = remarks(entry, "arm")
    assert len(found) == len(said)
    assert all(text in remark for text, remark in zip(said, found, strict=True))
    assert json.loads(export(entry, "hcm"))[0]["Namespace"] == namespace


def azbridge(tmp_path, entry):
    path = tmp_path / "azbridge.yml"
    path.touch(mode=0o600)
    path.write_text(export(entry, "azbridge", with_key=True))
    (found,), _ = read(path)
    return found


def test_azbridge_reads_what_is_written_for_it(tmp_path):
    found = azbridge(tmp_path, replace(CONNECTION, profile=Profile.AZBRIDGE, ports=PORTS))
    assert isinstance(found, HcmConnection)
    assert found.ports == PORTS
    assert (found.path, found.key_name, found.relay.endpoint) == ("orders", "r", RELAY.endpoint)
    listen = (ListenAt("tcp", "127.0.0.9", 1433), ListenAt("unix", path="/run/x"))
    forward = azbridge(tmp_path, replace(FORWARD, profile=Profile.AZBRIDGE, listen=listen, port_name="tds"))
    assert isinstance(forward, Forward)
    assert forward.path == "orders"
    assert forward.port_name == "tds"


def test_an_address_of_the_pool_is_one_that_azbridge_has():
    forward = replace(FORWARD, profile=Profile.AZBRIDGE, listen=(ListenAt("udp", "auto", 53),))
    assert '- BindAddress: "127.0.0.1"\n        BindPort: -53\n' in export(forward, "azbridge")
    assert "BindPort: 1433" in export(replace(FORWARD, profile=Profile.AZBRIDGE), "azbridge")


def test_an_http_server_is_one_for_azbridge_too():
    text = export(replace(CONNECTION, profile=Profile.HTTP, http_url="https://h/base"), "azbridge")
    for line in ('Host: "h"', "HostPort: 443", 'PortName: "https"', "Http: true", 'Path: "/base"'):
        assert line in text


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_written_only_when_asked_for(form):
    entry = replace(TO_SQL, profile=Profile.AZBRIDGE, ports=PORTS) if form == "azbridge" else TO_SQL
    assert KEY not in export(entry, form)
    assert export(replace(entry, key=Secret("file", "/absent")), form) == export(entry, form)
    assert export(replace(entry, key=None, key_name=""), form)
    if form != "arm":
        with pytest.raises(ConfigError, match="cannot be read"):
            export(replace(entry, key=Secret("file", "/absent")), form, with_key=True)


@pytest.mark.parametrize(
    ("entry", "form", "said"),
    [
        (FORWARD, "hcm", "the sender's side"),
        (replace(CONNECTION, profile=Profile.AZBRIDGE), "hcm", "the profile raw only"),
        (CONNECTION, "arm", "needs the endpoint's name and port"),
        (replace(FORWARD, port=0), "arm", "needs the endpoint's name and port"),
        (CONNECTION, "azbridge", "this connection's profile is raw"),
        (FORWARD, "azbridge", "this forward's profile is raw"),
        (
            replace(
                CONNECTION,
                profile=Profile.AZBRIDGE,
                ports=(PortBinding("x", (Target("a", 1), Target("b", 1))),),
            ),
            "azbridge",
            "x has several",
        ),
        (replace(FORWARD, profile=Profile.AZBRIDGE, port=0), "azbridge", "needs the port"),
        (
            replace(FORWARD, profile=Profile.AZBRIDGE, listen=(ListenAt("unix", path="/x"),)),
            "azbridge",
            "needs a port_name",
        ),
        (CONNECTION, "x", "there is no form x; there are hcm, arm, azbridge"),
    ],
)
def test_what_a_form_cannot_say_is_an_error(entry, form, said):
    with pytest.raises(ConfigError, match=said):
        export(entry, form)
