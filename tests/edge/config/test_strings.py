"""Connection strings as people paste them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import METADATA, PortBinding, Profile, Target
from relaycore.edge.config.strings import (
    endpoint_fields,
    forward_from_string,
    hcm_connection_from_string,
    parse_endpoint_url,
    parse_entity_string,
)
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RULE = f"SharedAccessKeyName=listen;SharedAccessKey={KEY}"


@pytest.mark.parametrize(
    "text",
    [
        f"Endpoint=sb://relay.example:9443/;{RULE};EntityPath=orders/sql",
        f"EntityPath=orders/sql;{RULE};Endpoint=sb://relay.example:9443",
        f"Endpoint=sb://relay.example:9443/orders/sql;{RULE}",
        f" endpoint = sb://relay.example:9443/orders/sql/ ; {RULE} ;",
        f"Endpoint=sb://relay.example:9443/orders/sql;{RULE};EntityPath=orders/sql",
    ],
)
def test_any_order_and_both_places_of_the_path(text):
    found = hcm_connection_from_string(text)
    assert (found.name, found.path) == ("orders/sql", "orders/sql")
    assert found.relay.endpoint == "sb://relay.example:9443/"
    assert found.key_name == "listen"
    assert found.key == Secret("inline", KEY)
    assert found.targets == METADATA
    assert KEY not in repr(found)


def test_a_name_of_its_own():
    found = hcm_connection_from_string(f"Endpoint=sb://h/;{RULE};EntityPath=a", name="b", cafile=Path("/ca.pem"))
    assert (found.name, found.path, found.relay.cafile) == ("b", "a", Path("/ca.pem"))


def test_a_namespace_s_string_needs_a_name():
    text = f"Endpoint=sb://h/;{RULE}"
    assert hcm_connection_from_string(text, name="b").path == "b"
    assert hcm_connection_from_string(text, name="b", path="/c/").path == "c"
    with pytest.raises(ConfigError, match="names no hybrid connection"):
        hcm_connection_from_string(text)


def test_a_key_may_be_kept_elsewhere():
    place = Secret("file", "/k")
    assert hcm_connection_from_string("Endpoint=sb://h/a;SharedAccessKeyName=r", key=place).key == place
    assert forward_from_string(f"Endpoint=sb://h/a;{RULE}", key=place).key == place
    with pytest.raises(ConfigError, match="a key needs its rule"):
        forward_from_string("Endpoint=sb://h/a", key=place)
    with pytest.raises(ConfigError, match="has a rule and no key"):
        forward_from_string("Endpoint=sb://h/a;SharedAccessKeyName=r")


def test_a_ready_token_and_nobody_at_all_sign_too():
    found = forward_from_string("Endpoint=sb://h/a;SharedAccessSignature=SharedAccessSignature sr=x")
    assert found.token == Secret("inline", "SharedAccessSignature sr=x")
    assert "sr=x" not in repr(found)
    anonymous = forward_from_string("Endpoint=sb://h/a", hosts=("h",), port=1, profile="azbridge", port_name="x")
    assert (anonymous.key, anonymous.token, anonymous.hosts, anonymous.port) == (None, None, ("h",), 1)
    assert (anonymous.profile, anonymous.port_name) == (Profile.AZBRIDGE, "x")


def test_an_emulator_stays_one():
    assert forward_from_string("Endpoint=sb://localhost:1/a;UseDevelopmentEmulator=true").relay.is_emulator


@pytest.mark.parametrize(
    ("endpoint", "profile", "fields"),
    [
        (None, "raw", {"targets": METADATA}),
        ("metadata", "raw", {"targets": METADATA}),
        ("a:1,[::1]:2", "raw", {"targets": (Target("a", 1), Target("::1", 2))}),
        ("unix:/x", "raw", {"targets": (Target(path="/x"),)}),
        ("a:22", "azbridge", {"ports": (PortBinding("22", (Target("a", 22),)),)}),
        ("http://a:80/b", "http", {"http_url": "http://a:80/b"}),
    ],
)
def test_where_it_leads(endpoint, profile, fields):
    found = hcm_connection_from_string(f"Endpoint=sb://h/a;{RULE}", endpoint=endpoint, profile=profile)
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("endpoint", "profile", "said"),
    [
        ("a", "raw", "expected HOST:PORT"),
        ("http://a", "raw", "goes with the profile http"),
        ("a:1", "http", "needs the URL"),
        ("metadata", "http", "needs the URL"),
        ("a:1", "x", "expected raw or azbridge or http"),
    ],
)
def test_where_it_cannot_lead(endpoint, profile, said):
    with pytest.raises(ConfigError, match=said):
        hcm_connection_from_string(f"Endpoint=sb://h/a;{RULE}", endpoint=endpoint, profile=profile)


def test_a_forward_carries_no_requests():
    with pytest.raises(ConfigError, match="a forward carries bytes"):
        forward_from_string("Endpoint=sb://h/a", profile="http")


@pytest.mark.parametrize(
    "text",
    [
        f"Endpoint=sb://h/a;{RULE};EntityPath=b",
        f"Endpoint=http://h/a;{RULE}",
        f"Endpoint=sb://h/a;SharedAccessKey={KEY}",
        f"Endpoint=sb://h/a;Key={KEY}",
        f"Endpoint=sb://h/a;{KEY[:-1]}",
        f"sb://h/a;{RULE}",
        "",
    ],
)
def test_what_is_no_connection_string_never_shows_a_key(text):
    with pytest.raises(ConfigError) as caught:
        parse_entity_string(text)
    assert KEY[:-1] not in str(caught.value)


def test_endpoints_of_relays_have_one_form():
    for text in ("sb://Relay.example/", "sb://Relay.example", " Relay.example "):
        assert parse_endpoint_url(text) == "sb://Relay.example/"
    assert parse_endpoint_url("sb://[::1]:99") == "sb://[::1]:99/"
    with pytest.raises(ConfigError, match="expected sb://HOST"):
        parse_endpoint_url("https://relay.example/")


def test_metadata_is_no_server():
    with pytest.raises(ConfigError, match="needs the URL"):
        endpoint_fields(Profile.HTTP, None)
    assert endpoint_fields(Profile.AZBRIDGE, (Target(path="/x"),)) == {
        "ports": (PortBinding("/x", (Target(path="/x"),)),)
    }
