"""Where clients reach a relay, as far as its settings tell: what stands in printed connection strings."""

from __future__ import annotations

import pytest

from relaycore.cli.definitions import Address, address_of, open_definitions
from relaycore.cli.definitions import Where as Place
from relaycore.cli.exits import ExitCode, StartupError
from relaycore.config import load_config
from relaycore.errors import ServerBusy
from relaycore.store.sqlite import SqliteStore

TLS = {"tls.cert": "c.pem", "tls.key": "k.pem"}


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, Address("127.0.0.1", 9000, is_emulator=True)),
        ({"server.host": "0.0.0.0"}, Address("127.0.0.1", 9000, is_emulator=True)),
        ({"server.host": "::"}, Address("127.0.0.1", 9000, is_emulator=True)),
        ({"server.host": "::1"}, Address("[::1]", 9000, is_emulator=True)),
        ({"server.host": "192.0.2.7"}, Address("192.0.2.7", 9000, is_emulator=True)),
        (TLS, Address("localhost", 9000, is_emulator=False)),
        ({**TLS, "server.host": "0.0.0.0"}, Address("localhost", 9000, is_emulator=False)),
        ({**TLS, "server.host": "192.0.2.7"}, Address("192.0.2.7", 9000, is_emulator=False)),
        ({**TLS, "namespace.hosts": ["relay.example", "b"]}, Address("relay.example", 9000, is_emulator=False)),
        ({"server.public_url": "wss://relay.example"}, Address("relay.example", None, is_emulator=False)),
        ({"server.public_url": "wss://relay.example:9443/"}, Address("relay.example", 9443, is_emulator=False)),
        ({"server.public_url": "ws://[::1]:81"}, Address("[::1]", 81, is_emulator=True)),
    ],
)
def test_the_address_of_a_relay(settings, address):
    assert address_of(load_config(None, {}, settings), 9000) == address


async def test_a_store_that_is_busy_when_it_gets_its_namespace(monkeypatch, tmp_path):
    async def refuse(self, name, hosts=None):
        raise ServerBusy("The store is busy: another process is writing to it")

    monkeypatch.setattr(SqliteStore, "ensure_namespace", refuse)
    place = Place(str(tmp_path / "relay.db"), None, True, None, None, None)
    with pytest.raises(StartupError, match="busy") as caught:
        async with open_definitions(place, may_create_store=True):
            pass
    assert caught.value.exit_code is ExitCode.STORE_LOCKED
