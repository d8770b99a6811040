"""From settings to the relay: what a listener and a sender are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme

from relaycore.edge.access import RelayAccess
from relaycore.edge.config.load import forward_from_string, hcm_connection_from_string
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import Forward, HcmConnection, RelaySettings
from relaycore.errors import AuthorizationFailed, ConfigError
from relaycore.net.proxy import Proxy
from relaycore.testing import open_relay
from relaycore.wire.sas import parse_token

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = RelaySettings("main", "sb://relay.example:9443/", proxy="none", keep_alive_s=7.0)


def forward(**others) -> Forward:
    return replace(Forward("a", RELAY, "orders/sql", key_name="r", key=Secret("inline", KEY)), **others)


def test_endpoint_and_path_come_over_and_the_key_does_not():
    access = RelayAccess.of(forward())
    assert access.connection_string.base_url == "wss://relay.example:9443"
    assert access.connection_string.entity_path == "orders/sql"
    assert access.connection_string.key is None
    assert access.ssl_context is None
    assert access.proxy is None
    assert access.keep_alive_s == 7
    assert KEY not in repr(access)


async def test_a_token_is_made_anew_with_the_key_as_it_is_then(tmp_path):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text("first")
    access = RelayAccess.of(forward(key=Secret("file", str(path))), now_unix=lambda: 1_000_000.0)
    assert access.token is not None
    first = access.token("http://relay.example/orders/sql/")
    path.write_text("second")
    second = access.token("http://relay.example/orders/sql/")
    assert isinstance(first, str)
    assert first != second
    assert parse_token(first).rule_name == "r"
    assert parse_token(first).expiry_unix > 1_000_000


def test_a_ready_token_is_read_anew_too():
    environ_name = "RELAYCORE_TEST_TOKEN_OF_ACCESS"
    access = RelayAccess.of(forward(key=None, key_name="", token=Secret("env", environ_name)))
    assert access.token is not None
    with pytest.raises(ConfigError, match="holds nothing"):
        access.token("http://relay.example/")


def test_nobody_signs_without_a_key():
    assert RelayAccess.of(forward(key=None, key_name="")).token is None


def test_a_key_without_its_rule_is_an_error():
    with pytest.raises(ConfigError, match="needs the name of its rule"):
        RelayAccess.of(forward(key_name=""))


def test_certificates_are_read_at_once(tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    relay = replace(RELAY, cafile=tmp_path / "ca.pem")
    assert RelayAccess.of(forward(relay=relay)).ssl_context is not None
    with pytest.raises(ConfigError, match="No such file"):
        RelayAccess.of(forward(relay=replace(RELAY, cafile=Path("/absent/ca.pem"))))


def test_the_proxy_is_the_one_for_the_relay_s_host(monkeypatch):
    relay = replace(RELAY, proxy="socks5://user:secret@proxy:99")
    access = RelayAccess.of(forward(relay=relay))
    assert access.proxy == Proxy("socks5", "proxy", 99, "user", "secret")
    assert "secret" not in repr(access)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert RelayAccess.of(forward(relay=replace(RELAY, proxy="env"))).proxy == Proxy("http", "proxy", 3128)
    monkeypatch.setenv("NO_PROXY", "relay.example")
    assert RelayAccess.of(forward(relay=replace(RELAY, proxy="env"))).proxy is None


async def test_both_ends_meet_at_a_relay():
    async with open_relay() as relay:
        await relay.create_entity("orders")
        to_listen: HcmConnection = hcm_connection_from_string(relay.connection_string("orders", rights=["Listen"]))
        to_send = forward_from_string(relay.connection_string("orders", rights=["Send"]))
        async with RelayAccess.of(to_listen).listen() as listener, trio.open_nursery() as nursery:

            async def send() -> None:
                async with RelayAccess.of(to_send).connect() as stream:
                    await stream.send_all(b"one")
                other = await RelayAccess.of(to_send).dial()
                async with other:
                    await other.send_all(b"two")

            nursery.start_soon(send)
            for data in (b"one", b"two"):
                connection = await listener.accept()
                async with connection:
                    assert await connection.receive_some() == data
        entity = await RelayAccess.of(to_send).management().get_entity("orders")
        assert entity.path == "orders"


async def test_a_wrong_key_is_refused_by_the_relay():
    async with open_relay() as relay:
        await relay.create_entity("orders")
        settings = forward_from_string(relay.connection_string("orders", rights=["Send"]), key=Secret("inline", KEY))
        with pytest.raises(AuthorizationFailed):
            async with RelayAccess.of(settings).connect():
                pass
