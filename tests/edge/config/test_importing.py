"""Other tools' settings, taken over."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.config.importing import (
    FORMS,
    guess_form,
    read_any,
    read_arm_json,
    read_connection_proxy_list,
    read_hcm_classic_config,
    read_hcm_json,
    read_website_relays,
)
from relaycore.edge.config.load import load, write_connection
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import METADATA, Forward, HcmConnection, ListenAt, RelaySettings
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = RelaySettings("", "sb://corp.servicebus.windows.net/")
STRING = f"Endpoint=sb://corp.servicebus.windows.net/;SharedAccessKeyName=r;SharedAccessKey={KEY};EntityPath=orders"
IN_URL = f"Endpoint=sb://corp.servicebus.windows.net/files;SharedAccessKeyName=r;SharedAccessKey={KEY}"

HCM = json.dumps(
    [
        {
            "Namespace": "corp",
            "Name": "orders",
            "Uri": "sb://corp.servicebus.windows.net/orders",
            "KeyName": "defaultListener",
            "KeyValue": KEY,
            "EndpointHost": "sqldb.corp.example",
            "EndpointPort": 1433,
            "ResourceGroup": None,
            "SubscriptionId": None,
            "Status": "Connected",
            "CreatedOn": "1/1/2025",
            "LastUpdated": "1/1/2025",
            "NumberOfListeners": 2,
        },
        {"Namespace": "other", "Name": "orders", "Uri": "sb://other.example:99/orders", "KeyName": "r"},
        {"Namespace": "x", "Name": "orders", "Uri": "http://x/orders"},
        {"Namespace": "x"},
    ]
)

CLASSIC = f"""<?xml version="1.0" encoding="utf-16"?>
<configuration>
  <configSections><section name="hybridConnections" type="x"/></configSections>
  <hybridConnections>
    <connectionStrings>
      <add connectionString="{IN_URL}" armUri="/subscriptions/s"/>
      <add connectionString="{STRING}"/>
      <add connectionString="nonsense"/>
      <add connectionString="Endpoint=sb://corp.servicebus.windows.net/"/>
    </connectionStrings>
  </hybridConnections>
</configuration>
"""

ARM = json.dumps(
    {
        "value": [
            {
                "id": "/subscriptions/s",
                "properties": {
                    "serviceBusNamespace": "corp",
                    "relayName": "orders",
                    "relayArmUri": "/subscriptions/s",
                    "hostName": "SqlDB.corp.example",
                    "port": 1433,
                    "sendKeyName": "defaultSender",
                    "sendKeyValue": KEY,
                },
            },
            {
                "properties": {
                    "serviceBusNamespace": "relay",
                    "serviceBusSuffix": ".corp.example",
                    "relayName": "web",
                    "hostName": "web.corp.example",
                    "port": 443,
                    "sendKeyName": None,
                    "sendKeyValue": None,
                }
            },
            {"properties": {"serviceBusNamespace": "corp", "relayName": "x", "hostName": "h", "port": 0}},
            {"properties": {"serviceBusNamespace": "corp", "hostName": "h", "port": 1}},
            {"properties": 1},
        ]
    }
)

BINDINGS = f"""<Bindings>
  <Binding><Port>4001</Port><ConnectionString>{STRING}</ConnectionString><IsV2>true</IsV2></Binding>
  <Binding><Port>4002</Port><ConnectionString>{IN_URL}</ConnectionString></Binding>
  <Binding><Port>4003</Port><ConnectionString>x</ConnectionString><IsV2>false</IsV2></Binding>
</Bindings>"""
WEBSITE = base64.b64encode(BINDINGS.encode("utf-16-le")).decode()

PROXIES = json.dumps(
    {
        "AppSettings": {
            "Proxies": [
                {"HybridConnectionString": STRING, "ListenIPAddress": "127.0.0.1", "ListenPort": 12345},
                {"name": "my files", "hybridConnectionString": IN_URL, "listenIpAddress": "x", "listenPort": 12346},
                {"HybridConnectionString": IN_URL, "ListenPort": 0},
                {"ListenPort": 1},
            ]
        }
    }
)

SAMPLES = {"hcm": HCM, "hcm-classic": CLASSIC, "arm": ARM, "website-relays": WEBSITE, "connection-proxy": PROXIES}


def test_hcm_s_connections_come_with_their_keys():
    entries, remarks = read_hcm_json(HCM)
    first, second = entries
    assert first == HcmConnection(
        "orders", RELAY, "orders", key_name="defaultListener", key=Secret("inline", KEY), targets=METADATA
    )
    assert isinstance(second, HcmConnection)
    assert (second.name, second.path, second.key, second.key_name) == ("orders-other", "orders", None, "")
    assert second.relay.endpoint == "sb://other.example:99/"
    assert [remark.partition(":")[0] for remark in remarks] == ["[1]", "[1]", "[2]", "[3]"]
    assert "is called orders-other here" in remarks[1]


def test_the_classic_hcm_s_strings_may_have_the_path_in_the_url():
    entries, remarks = read_hcm_classic_config(CLASSIC)
    assert [entry.path for entry in entries] == ["files", "orders"]
    assert entries[0] == HcmConnection("files", RELAY, "files", key_name="r", key=Secret("inline", KEY))
    assert len(remarks) == 2
    assert "only a namespace" in remarks[1]


@pytest.mark.parametrize(
    ("element", "proxy", "said"),
    [
        ('<defaultProxy><proxy proxyaddress="http://proxy.corp:8080/" /></defaultProxy>', "http://proxy.corp:8080", ""),
        ('<defaultProxy enabled="false"><proxy proxyAddress="http://p:1"/></defaultProxy>', "none", ""),
        (
            '<defaultProxy useDefaultCredentials="true"><proxy proxyaddress="http://p:1"/></defaultProxy>',
            "http://p:1",
            "useDefaultCredentials",
        ),
        (
            '<defaultProxy><bypasslist><add address="x"/></bypasslist><proxy proxyaddress="http://p:1"/></defaultProxy>',
            "http://p:1",
            "bypasslist",
        ),
        ('<defaultProxy><proxy proxyaddress="https://p:1/pac"/></defaultProxy>', "env", "proxyaddress is left out"),
        ('<defaultProxy><proxy usesystemdefault="true"/></defaultProxy>', "env", "the system's own proxy"),
        ("<defaultProxy/>", "env", ""),
    ],
)
def test_the_classic_hcm_s_proxy_comes_along(element, proxy, said):
    entries, remarks = read_hcm_classic_config(
        CLASSIC.replace("</configuration>", f"<system.net>{element}</system.net></configuration>")
    )
    assert [entry.relay.proxy for entry in entries] == [proxy, proxy]
    about = [remark for remark in remarks if remark.startswith("defaultProxy")]
    assert len(about) == bool(said)
    assert said in "".join(about)


def test_an_app_s_hybrid_connections_become_forwards():
    entries, remarks = read_arm_json(ARM)
    orders, web = entries
    assert orders == Forward(
        "orders",
        RELAY,
        "orders",
        key_name="defaultSender",
        key=Secret("inline", KEY),
        hosts=("sqldb.corp.example",),
        port=1433,
    )
    assert isinstance(web, Forward)
    assert web.relay.endpoint == "sb://relay.corp.example/"
    assert (web.key, web.key_name) == (None, "")
    assert len(remarks) == 4
    assert "has no sendKeyValue" in remarks[0]


def test_one_hybrid_connection_of_an_app_is_enough():
    one = json.loads(ARM)["value"][0]
    assert read_arm_json(json.dumps(one)).entries == read_arm_json(json.dumps(one["properties"])).entries
    assert len(read_arm_json(json.dumps(one)).entries) == 1


@pytest.mark.parametrize(
    "text",
    [
        WEBSITE,
        f"WEBSITE_RELAYS={WEBSITE}\n",
        BINDINGS,
        base64.b64encode(("\ufeff" + BINDINGS).encode("utf-16-le")).decode(),
    ],
)
def test_a_sandbox_s_variable_becomes_forwards(text):
    entries, remarks = read_website_relays(text)
    assert entries == [
        Forward("orders", RELAY, "orders", key_name="r", key=Secret("inline", KEY)),
        Forward("files", RELAY, "files", key_name="r", key=Secret("inline", KEY)),
    ]
    (remark,) = remarks
    assert "discontinued" in remark


def test_a_proxy_s_list_becomes_forwards_at_its_addresses():
    entries, remarks = read_connection_proxy_list(PROXIES)
    first, second = entries
    assert isinstance(first, Forward)
    assert first.listen == (ListenAt("tcp", "127.0.0.1", 12345),)
    assert isinstance(second, Forward)
    assert (second.name, second.path, second.listen[0].port) == ("my-files", "files", 12346)
    assert len(remarks) == 3
    assert read_connection_proxy_list(json.dumps(json.loads(PROXIES)["AppSettings"]["Proxies"])).entries == entries


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_told_apart(tmp_path, form):
    text = SAMPLES[form]
    assert guess_form(text) == form
    path = tmp_path / "file"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert read_any(path).entries == FORMS[form](text).entries
    assert read_any(path, form).entries == FORMS[form](text).entries


def test_what_nobody_knows_is_azbridge_s(tmp_path):
    assert guess_form("LocalForward:\n  - RelayName: x\n") == "azbridge"
    assert guess_form('{"LocalForward": [{"RelayName": "x"}]}') == "azbridge"
    assert guess_form("") == "azbridge"
    path = tmp_path / "azbridge.yml"
    path.touch(mode=0o600)
    path.write_text(
        f'RemoteForward:\n  - RelayName: orders\n    Host: h\n    HostPort: 1\n    ConnectionString: "{STRING}"\n'
    )
    (entry,), _ = read_any(path)
    assert isinstance(entry, HcmConnection)
    assert entry.path == "orders"


def test_names_are_unique_however_many_there_are():
    items = json.loads(HCM)[:1] * 3
    assert [entry.name for entry in read_hcm_json(json.dumps(items)).entries] == ["orders", "orders-corp", "orders-2"]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_imported_can_be_written_and_read(tmp_path, form):
    path = tmp_path / "x.toml"
    entries = FORMS[form](SAMPLES[form]).entries
    for entry in entries:
        write_connection(path, entry)
    settings = load([path], {}).settings
    assert [*settings.hcm.connections, *settings.connect.forwards] == entries


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text", ["", "{", "1", "[1]", "<", "<x/>", '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "x" * 9, "[" * 100_000]
)
def test_what_is_something_else_is_an_error_that_names_the_file(form, text):
    with pytest.raises(ConfigError) as caught:
        FORMS[form](text, source="file.x")
    assert caught.value.source == "file.x"


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_any(tmp_path / "absent")
    path = tmp_path / "file"
    path.write_bytes(b"\x80")
    with pytest.raises(ConfigError, match="neither UTF-8 nor UTF-16"):
        read_any(path)
    path.write_bytes(b" " * ((8 << 20) + 1))
    with pytest.raises(ConfigError, match="longer than"):
        read_any(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="there is no form x"):
        read_any(path, "x")


@given(
    st.sampled_from(sorted(FORMS)),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "properties",
                        "relayName",
                        "hostName",
                        "port",
                        "Uri",
                        "Name",
                        "KeyValue",
                        "HybridConnectionString",
                        "value",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(json.dumps)
    | st.text(max_size=30),
)
def test_nothing_but_a_config_error_comes_of_any_text(form, text):
    with contextlib.suppress(ConfigError):
        FORMS[form](text)


@pytest.mark.parametrize("form", FORMS)
def test_remarks_show_no_key(form):
    """Not even of an entry that is left out for another reason."""
    for text in (SAMPLES[form], SAMPLES[form].replace("SharedAccessKey=", "SharedAccessKay=")):
        assert not any(KEY in remark for remark in FORMS[form](text).remarks)
