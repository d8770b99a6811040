"""The endpoint in a hybrid connection's text, and keeping up with it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from managed import ask, open_world, status, until

from relaycore import ServerBusy
from relaycore.client.management import Entity, ManagementClient
from relaycore.edge.config.settings import HcmSettings, Target
from relaycore.edge.hcm.metadata import parse_endpoint_metadata
from relaycore.errors import ConfigError


def text(value: object, key: str = "endpoint") -> str:
    return json.dumps([{"key": key, "value": value}])


@pytest.mark.parametrize(
    ("metadata", "target"),
    [
        (text("sqldb.corp.example:1433"), Target("sqldb.corp.example", 1433)),
        (text("SQLDB.Corp.Example:1433"), Target("sqldb.corp.example", 1433)),
        (text("10.2.0.8:5432"), Target("10.2.0.8", 5432)),
        (text("[FD00::8]:5432"), Target("fd00::8", 5432)),
        (text(" db:1 "), Target("db", 1)),
        (text("db:1", "EndPoint"), Target("db", 1)),
        ('[{"Key":"endpoint","Value":"db:1"}]', Target("db", 1)),
        ('[{"key":"owner","value":"me"},{"key":"endpoint","value":"db:1","more":[]}]', Target("db", 1)),
        ('[{"key":"endpoint","value":"db:1"},{"key":"endpoint","value":"DB:1"}]', Target("db", 1)),
        ('[1,null,{"key":"endpoint","value":"db:1"}]', Target("db", 1)),
    ],
)
def test_what_the_vendors_manager_takes_and_a_little_more(metadata: str, target: Target):
    """1.4.2: a JSON array of key and value objects; letters' case does not matter. IPv6 is ours."""
    assert parse_endpoint_metadata(metadata) == target


@pytest.mark.parametrize(
    ("metadata", "found", "advice"),
    [
        (None, "it is empty", "HOST:PORT"),
        ("  ", "it is empty", "HOST:PORT"),
        ("db:1433", "not JSON: 'db:1433'", "db:1433"),
        ("a nice database", "not JSON", "HOST:PORT"),
        ('{"key":"endpoint","value":"db:1433"}', "not in a list", "db:1433"),
        ('{"endpoint":"db:1433"}', "not in a list", "db:1433"),
        ("12", "it is a number", "HOST:PORT"),
        ('"db:1433"', "the text 'db:1433'", "db:1433"),
        ("[]", "no key and value at all", "HOST:PORT"),
        ('["endpoint"]', "no key and value at all", "HOST:PORT"),
        ('[{"key":"owner","value":"me"}]', "only the keys 'owner'", "HOST:PORT"),
        (text("db"), "'db', which is not HOST:PORT", "HOST:PORT"),
        (text("db:1:2"), "which is not HOST:PORT", "HOST:PORT"),
        (text("db:99999"), "which is not HOST:PORT", "HOST:PORT"),
        (text("db:0"), "which is not HOST:PORT", "HOST:PORT"),
        (text("http://db:80/x"), "a URL", "db:80"),
        (text("unix:/run/docker.sock"), "a Unix socket", "HOST:PORT"),
        (text(1433), "the endpoint is a number", "HOST:PORT"),
        (text(None), "the endpoint is null", "HOST:PORT"),
        ('[{"key":"endpoint","value":"a:1"},{"key":"endpoint","value":"b:1"}]', "several endpoints", "HOST:PORT"),
    ],
)
def test_an_error_names_what_it_found_and_what_belongs_there(metadata: str | None, found: str, advice: str):
    """Complaint 9: guessing the format."""
    with pytest.raises(ConfigError) as caught:
        parse_endpoint_metadata(metadata)
    assert found in str(caught.value)
    assert json.dumps([{"key": "endpoint", "value": advice}]) in str(caught.value)


@given(st.text(max_size=50) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_no_text_raises_anything_else(metadata: str):
    with contextlib.suppress(ConfigError):
        parse_endpoint_metadata(metadata)


async def test_a_changed_endpoint_counts_for_new_connections():
    """Complaint 8: no remove and add again; open connections keep where they are."""
    async with open_world() as world:
        first, second = await world.endpoint(), await world.endpoint()
        await world.describe(text(str(first.target)))
        async with world.serving(world.connection(), metadata_interval_s=0.05) as manager:
            async with world.dial() as old:
                assert await ask(old) == b"ping"
                assert (status(manager).endpoint, status(manager).endpoint_from) == (str(first.target), "metadata")
                await world.describe(text(str(second.target)))
                await until(lambda: status(manager).endpoint == str(second.target))
                async with world.dial() as new:
                    assert await ask(new) == b"ping"
                    assert (first.connections, second.connections) == (1, 1)
                assert await ask(old) == b"ping"
            assert "endpoint-changed" in [event.kind for event in manager.recent_events()]


async def test_another_path_is_not_led_to_the_old_endpoint():
    """What one hybrid connection's text names is nobody else's endpoint."""
    async with open_world() as world:
        endpoint = await world.endpoint()
        await world.describe(text(str(endpoint.target)))
        await world.relay.create_entity("other")
        connection = world.connection()
        async with world.serving(connection) as manager:
            await until(lambda: status(manager).endpoint)
            manager.reload(HcmSettings((replace(connection, path="other"),)))
            assert status(manager).endpoint == ""
            await until(lambda: status(manager).path == "other" and status(manager).relay_leg == "Connected")
            with pytest.raises(ServerBusy, match="metadata names no endpoint"):
                async with world.dial("other"):
                    pass
            assert endpoint.connections == 0


async def test_an_answer_about_old_settings_is_dropped(monkeypatch: pytest.MonkeyPatch):
    """A reload while the relay is being asked, whose answer can be held up no more: it counts for nothing, and ends
    nothing."""
    original = ManagementClient.get_entity
    asked, may_answer = trio.Event(), trio.Event()

    async def get_entity(self: ManagementClient, path: str) -> Entity:
        found = await original(self, path)
        if path == "orders":
            asked.set()
            with trio.CancelScope(shield=True):
                await may_answer.wait()
        return found

    monkeypatch.setattr(ManagementClient, "get_entity", get_entity)
    async with open_world() as world:
        await world.describe(text("old.test:1"))
        await world.relay.create_entity("other", user_metadata=text("new.test:2"))
        connection = world.connection()
        async with world.serving(connection) as manager:
            await asked.wait()
            manager.reload(HcmSettings((replace(connection, path="other"),)))
            may_answer.set()
            await until(lambda: status(manager).endpoint)
            assert status(manager).endpoint == "new.test:2"
            kinds = [event.kind for event in manager.recent_events()]
            assert kinds.count("endpoint-changed") == 1
            assert "failed" not in kinds


async def test_the_last_endpoint_known_is_kept():
    async with open_world() as world:
        endpoint = await world.endpoint()
        await world.describe(text(str(endpoint.target)))
        async with world.serving(world.connection(), metadata_interval_s=0.05) as manager:
            await until(lambda: status(manager).endpoint)
            await world.describe("oops")
            await until(lambda: "metadata names no endpoint" in status(manager).last_error)
            assert status(manager).endpoint == str(endpoint.target)
            async with world.dial() as sender:
                assert await ask(sender) == b"ping"
