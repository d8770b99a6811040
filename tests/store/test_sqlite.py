from __future__ import annotations

import base64
import itertools
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import trio

from relaycore.broker.model import EMPTY_SNAPSHOT, RuleDefinition, Snapshot, validate_key
from relaycore.errors import (
    ConfigError,
    EndpointAlreadyExists,
    EndpointNotFound,
    LocalProtocolError,
    QuotaExceeded,
    Refused,
    ServerBusy,
)
from relaycore.store.base import KEEP, Change, ChangeKind
from relaycore.store.sqlite import make_key, open_sqlite, utc_now
from relaycore.vocab import RefusalReason, Right

START = datetime(2026, 1, 31, 9, 15, 2, 943_000, tzinfo=UTC)
ALL = frozenset(Right)
NS = "default"


class Clock:
    """A wall clock that tests set; each look at it also lets a microsecond pass."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        self.time += timedelta(microseconds=1)
        return self.time


def key(n: int) -> str:
    return base64.b64encode(n.to_bytes(32, "big")).decode()


def keys():
    numbers = itertools.count(1)
    return lambda: key(next(numbers))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(clock):
    async with await open_sqlite(":memory:", now=clock, new_key=keys()) as store:
        await store.ensure_namespace(NS)
        yield store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


async def reopened(path) -> Snapshot:
    async with await open_sqlite(path) as store:
        return store.snapshot


def listen(store) -> list[tuple[str, str | None]]:
    heard: list[tuple[str, str | None]] = []
    store.subscribe(lambda change: heard.append((change.kind.value, change.entity_path)))
    return heard


class TestNamespaces:
    async def test_a_fresh_one_has_a_root_rule_with_keys_of_its_own(self, store):
        """Created with RootManageSharedAccessKey and nothing else (management contract 3.1)."""
        namespace = store.snapshot.get_namespace(NS)
        assert [(rule.name, rule.rights) for rule in namespace.rules] == [("RootManageSharedAccessKey", ALL)]
        assert namespace.rules[0].keys == (key(1), key(2))
        assert namespace.entities == {}
        assert namespace.hosts == ()
        assert store.snapshot.find_namespace("any.example") is namespace

    def test_keys_are_32_random_bytes(self):
        """mgmt 3.5: key of 32 random bytes, standard base64, 44 characters."""
        made = [make_key() for _ in range(10)]
        assert len(set(made)) == 10
        for one in made:
            assert len(validate_key(one)) == 44

    def test_the_clock_is_in_utc(self):
        assert utc_now().utcoffset() == timedelta(0)

    async def test_to_ensure_it_again_changes_nothing(self, store):
        """mgmt 11 A05: the keys of the root rule are unchanged."""
        before = store.snapshot
        heard = listen(store)
        assert await store.ensure_namespace("DEFAULT") is before.namespaces[0]
        assert await store.ensure_namespace(NS, []) is before.namespaces[0]
        assert store.snapshot is before
        assert heard == []

    async def test_hosts_can_be_set_and_kept(self, store):
        heard = listen(store)
        namespace = await store.ensure_namespace(NS, ["Relay.Example:443", "alias.example", "relay.example"])
        assert namespace.hosts == ("relay.example", "alias.example")
        assert namespace.updated_at > namespace.created_at
        assert (await store.ensure_namespace(NS)).hosts == ("relay.example", "alias.example")
        assert (await store.ensure_namespace(NS, ["b.example"])).hosts == ("b.example",)
        assert heard == [("updated", None)] * 2

    async def test_one_host_leads_to_one_namespace(self, store):
        await store.ensure_namespace(NS, ["a.example"])
        with pytest.raises(ConfigError, match=r"a\.example leads to the namespace default"):
            await store.ensure_namespace("other", ["b.example", "A.EXAMPLE"])
        assert store.snapshot.get_namespace("other") is None
        await store.ensure_namespace("other", ["b.example"])
        await store.ensure_namespace("rest")
        with pytest.raises(ConfigError, match="any host name leads to the namespace rest"):
            await store.ensure_namespace("more")
        with pytest.raises(ConfigError, match="any host name"):
            await store.ensure_namespace(NS, ())
        assert [namespace.name for namespace in store.snapshot.namespaces] == [NS, "other", "rest"]

    @pytest.mark.parametrize("host", ["", " ", "a b", "http://x/", "x" * 254, "é.example", "a@b", "a,b"])
    async def test_hosts_are_host_names(self, store, host):
        with pytest.raises(ConfigError, match="not a host name"):
            await store.ensure_namespace(NS, [host])

    async def test_names_are_checked(self, store):
        with pytest.raises(Refused):
            await store.ensure_namespace("a b")


class TestCreatingEntities:
    async def test_with_defaults(self, store, clock):
        """mgmt 3.2: requiresClientAuthorization is true by default; no rules are created."""
        entity = await store.create_entity(NS, "Dept/Hyco")
        assert entity.path == "Dept/Hyco"
        assert entity.requires_client_authorization is True
        assert entity.user_metadata is None
        assert (entity.websocket, entity.http, entity.raw_target) == (True, True, False)
        assert entity.rules == ()
        assert entity.created_at == entity.updated_at == clock.time
        assert store.snapshot.get_namespace(NS).get_entity("dept/hyco") is entity

    async def test_with_everything(self, path, clock):
        """mgmt 3.2: userMetadata is stored byte for byte; 7 (M03): rules may come with a key of the client's choice."""
        text = '[{"key":"endpoint","value":"db.corp.local:1433"}]\n\x00é😀'
        async with await open_sqlite(path, now=clock, new_key=keys()) as store:
            await store.ensure_namespace(NS, ["a.example"])
            made = await store.create_entity(
                NS,
                "hyco",
                requires_client_authorization=False,
                user_metadata=text,
                websocket=False,
                http=False,
                raw_target=True,
                rules=[RuleDefinition("send", frozenset({Right.SEND}), key(99)), RuleDefinition("boss", ALL)],
            )
            assert made.user_metadata == text
            switches = (made.requires_client_authorization, made.websocket, made.http, made.raw_target)
            assert switches == (False, False, False, True)
            assert [rule.name for rule in made.rules] == ["send", "boss"]
            assert made.rules[0].keys == (key(99), key(3))
            kept = store.snapshot
        assert await reopened(path) == kept

    @pytest.mark.parametrize(
        ("there", "new"),
        [
            ("hyco", "hyco"),
            ("hyco", "HYCO"),
            ("a", "a/b"),
            ("a/b", "A"),
            ("a/b/c", "a"),
            ("A", "a/b/c"),
        ],
    )
    async def test_a_taken_name(self, store, there, new):
        """mgmt 3.2: no name may be a path prefix of another entity's name: 409, both ways, without regard to case."""
        await store.create_entity(NS, there)
        with pytest.raises(EndpointAlreadyExists) as caught:
            await store.create_entity(NS, new)
        assert caught.value.http_status == 409
        assert there in str(caught.value)
        assert len(store.snapshot.namespaces[0].entities) == 1

    @pytest.mark.parametrize(
        ("there", "new"), [("a", "ab"), ("a/b", "a/bc"), ("a/b", "a.b"), ("a-b", "a/b"), ("a0", "a")]
    )
    async def test_a_name_that_only_looks_taken(self, store, there, new):
        """mgmt 3.2: prefixes count on segment borders."""
        await store.create_entity(NS, there)
        await store.create_entity(NS, new)

    async def test_the_same_name_in_another_namespace(self, store):
        await store.ensure_namespace("other", ["o.example"])
        await store.create_entity(NS, "hyco")
        await store.create_entity("other", "hyco/x")

    async def test_bad_arguments_are_refused_and_leave_no_trace(self, store):
        """mgmt 3.2, 3.4, 3.5: validation, 400."""
        before = store.snapshot
        send = frozenset({Right.SEND})
        for arguments in (
            {"path": "a//b"},
            {"path": "hyco", "user_metadata": "x" * 1025},
            {"path": "hyco", "rules": [RuleDefinition("a b", send)]},
            {"path": "hyco", "rules": [RuleDefinition("a", frozenset())]},
            {"path": "hyco", "rules": [RuleDefinition("a", send, "short")]},
            {"path": "hyco", "rules": [RuleDefinition("a", send), RuleDefinition("A", send)]},
        ):
            with pytest.raises(Refused) as caught:
                await store.create_entity(NS, **arguments)
            assert caught.value.http_status == 400
        assert store.snapshot is before

    async def test_an_unknown_namespace(self, store):
        with pytest.raises(EndpointNotFound, match="Namespace does not exist: nobody"):
            await store.create_entity("nobody", "hyco")

    async def test_so_many_and_no_more(self, clock):
        """mgmt 9: entities per namespace; 2.5: quota is 409."""
        async with await open_sqlite(":memory:", entities_per_namespace=2) as store:
            await store.ensure_namespace(NS)
            await store.create_entity(NS, "a")
            await store.create_entity(NS, "b")
            with pytest.raises(QuotaExceeded, match="EntitiesPerNamespace") as caught:
                await store.create_entity(NS, "c")
            assert caught.value.http_status == 409
            assert caught.value.reason is RefusalReason.ENTITY_QUOTA
            await store.delete_entity(NS, "a")
            await store.create_entity(NS, "c")

    async def test_too_many_rules_leave_no_entity(self, store):
        """mgmt 3.4: at most 12 rules per entity, 409."""
        definitions = [RuleDefinition(f"r{n}", frozenset({Right.SEND})) for n in range(13)]
        with pytest.raises(QuotaExceeded) as caught:
            await store.create_entity(NS, "hyco", rules=definitions)
        assert caught.value.reason is RefusalReason.RULE_QUOTA
        assert store.snapshot.namespaces[0].get_entity("hyco") is None
        await store.create_entity(NS, "hyco", rules=definitions[:12])


class TestUpdatingEntities:
    async def test_what_is_given_changes_and_the_rest_stays(self, store):
        """mgmt 3.2: PUT replaces userMetadata; updatedAt moves."""
        made = await store.create_entity(NS, "Hyco", user_metadata="x")
        changed = await store.update_entity(NS, "HYCO", user_metadata="y", http=False)
        assert (changed.path, changed.user_metadata, changed.http, changed.websocket) == ("Hyco", "y", False, True)
        assert changed.created_at == made.created_at
        assert changed.updated_at > made.updated_at
        kept = await store.update_entity(NS, "hyco", user_metadata=KEEP, websocket=False, raw_target=True)
        assert (kept.user_metadata, kept.websocket, kept.raw_target) == ("y", False, True)
        assert (await store.update_entity(NS, "hyco", user_metadata=None)).user_metadata is None

    async def test_an_update_that_changes_nothing_leaves_no_trace(self, store):
        """mgmt 3.2: a PUT that changes nothing leaves updatedAt alone."""
        rules = [RuleDefinition("r", frozenset({Right.SEND}))]
        made = await store.create_entity(NS, "hyco", user_metadata="x", rules=rules)
        heard = listen(store)
        again = await store.update_entity(
            NS,
            "hyco",
            requires_client_authorization=True,
            user_metadata="x",
            websocket=True,
            http=True,
            raw_target=False,
            rules=rules,
        )
        assert again is made
        assert heard == []

    @pytest.mark.parametrize("required", [True, False])
    async def test_authorization_is_immutable(self, store, required):
        """mgmt 3.2: requiresClientAuthorization is immutable: the other value is 400, the same one is fine."""
        made = await store.create_entity(NS, "hyco", requires_client_authorization=required)
        with pytest.raises(Refused, match="requiresClientAuthorization") as caught:
            await store.update_entity(NS, "hyco", requires_client_authorization=not required, user_metadata="x")
        assert caught.value.http_status == 400
        assert await store.update_entity(NS, "hyco", requires_client_authorization=required) is made

    async def test_it_does_not_create(self, store):
        """mgmt 7 (M04): absent is 404."""
        with pytest.raises(EndpointNotFound, match="Endpoint does not exist: hyco"):
            await store.update_entity(NS, "hyco", user_metadata="x")
        with pytest.raises(Refused):
            await store.update_entity(NS, "hyco", user_metadata="x" * 1025)

    async def test_only_the_version_that_was_read(self, store):
        """mgmt 7: If-Match other than * is compared; 412 on mismatch."""
        made = await store.create_entity(NS, "hyco")
        changed = await store.update_entity(NS, "hyco", user_metadata="x", if_updated_at=made.updated_at)
        with pytest.raises(Refused) as caught:
            await store.update_entity(NS, "hyco", user_metadata="y", if_updated_at=made.updated_at)
        assert (caught.value.http_status, caught.value.reason) == (412, RefusalReason.PRECONDITION)
        assert store.snapshot.namespaces[0].get_entity("hyco") is changed

    async def test_times_of_update_never_repeat(self, store, clock):
        """mgmt 7: the ETag is made of updatedAt."""
        seen = {(await store.create_entity(NS, "hyco")).updated_at}
        for n in range(3):
            clock.time = START - timedelta(days=1)
            seen.add((await store.update_entity(NS, "hyco", user_metadata=str(n))).updated_at)
        assert len(seen) == 4

    async def test_rules_are_replaced_and_keep_their_keys(self, store):
        """mgmt 3.4: an existing rule keeps both keys; 7 (M03): a key may be chosen by the client."""
        send = frozenset({Right.SEND})
        made = await store.create_entity(NS, "hyco", rules=[RuleDefinition("a", send), RuleDefinition("b", send)])
        changed = await store.update_entity(
            NS,
            "hyco",
            rules=[RuleDefinition("B", ALL), RuleDefinition("c", send, key(70), key(71))],
        )
        assert [(rule.name, rule.rights) for rule in changed.rules] == [("b", ALL), ("c", send)]
        assert changed.rules[0].keys == made.rules[1].keys
        assert changed.rules[1].keys == (key(70), key(71))
        assert changed.updated_at > made.updated_at
        assert (await store.update_entity(NS, "hyco", rules=[])).rules == ()

    async def test_a_full_set_of_rules_can_be_exchanged(self, store):
        send = frozenset({Right.SEND})
        await store.create_entity(NS, "hyco", rules=[RuleDefinition(f"a{n}", send) for n in range(12)])
        changed = await store.update_entity(NS, "hyco", rules=[RuleDefinition(f"b{n}", send) for n in range(12)])
        assert [rule.name for rule in changed.rules] == [f"b{n}" for n in range(12)]


class TestDeletingEntities:
    async def test_it_goes_with_its_rules(self, store):
        """The answer tells whether it existed (management contract 2.4)."""
        await store.create_entity(NS, "Hyco", rules=[RuleDefinition("r", frozenset({Right.SEND}))])
        await store.create_entity(NS, "other")
        heard = listen(store)
        assert await store.delete_entity(NS, "hYCO") is True
        assert await store.delete_entity(NS, "hyco") is False
        assert heard == [("deleted", "Hyco")]
        assert [entity.path for entity in store.snapshot.namespaces[0].entities.values()] == ["other"]
        fresh = await store.create_entity(NS, "Hyco")
        assert fresh.rules == ()

    async def test_the_last_one(self, store):
        await store.create_entity(NS, "hyco")
        await store.delete_entity(NS, "hyco")
        assert store.snapshot.namespaces[0].entities == {}

    async def test_an_unknown_namespace(self, store):
        with pytest.raises(EndpointNotFound):
            await store.delete_entity("nobody", "hyco")


@pytest.fixture(params=[None, "hyco"])
async def level(request, store):
    if request.param is not None:
        await store.create_entity(NS, request.param)
    return request.param


def rules_of(store, level):
    namespace = store.snapshot.get_namespace(NS)
    return (namespace if level is None else namespace.get_entity(level)).rules


class TestRules:
    async def test_a_new_one_has_two_fresh_keys(self, store, level):
        """mgmt 3.4, 3.5: rights in any case; two different keys."""
        heard = listen(store)
        rule = await store.put_rule(NS, level, "Sender", ["SEND"])
        assert (rule.name, rule.rights) == ("Sender", {Right.SEND})
        assert rule.primary_key != rule.secondary_key
        assert rules_of(store, level)[-1] is rule
        assert heard == [("updated", level)]

    async def test_putting_it_again_changes_rights_and_keeps_both_keys(self, store, level):
        """mgmt 3.4: PUT on an existing rule changes rights only and must keep both keys."""
        first = await store.put_rule(NS, level, "Sender", ["Send"])
        second = await store.put_rule(NS, level, "sENDER", ["Listen"])
        assert second.keys == first.keys
        assert (second.name, second.rights) == ("Sender", {Right.LISTEN})
        assert second.created_at == first.created_at
        assert second.updated_at > first.updated_at
        heard = listen(store)
        assert await store.put_rule(NS, level, "Sender", ["Listen"]) is second
        assert heard == []

    async def test_keys_can_be_chosen(self, store, level):
        """mgmt 3.5: a caller's key must be base64 of 32 bytes, else 400."""
        rule = await store.put_rule(NS, level, "r", ["Send"], key(50), key(51))
        assert rule.keys == (key(50), key(51))
        rule = await store.put_rule(NS, level, "r", ["Send"], None, key(52))
        assert rule.keys == (key(50), key(52))
        with pytest.raises(Refused):
            await store.put_rule(NS, level, "r", ["Send"], "short")

    async def test_bad_arguments(self, store, level):
        """mgmt 3.4: 400 each."""
        for name, rights in (("x" * 51, ["Send"]), ("r", []), ("r", ["Manage"]), ("r", ["Foo"])):
            with pytest.raises(Refused) as caught:
                await store.put_rule(NS, level, name, rights)
            assert caught.value.http_status == 400

    async def test_twelve_and_no_more(self, store, level):
        """mgmt 3.4: at most 12 rules per namespace and per entity, 409."""
        while len(rules_of(store, level)) < 12:
            await store.put_rule(NS, level, f"r{len(rules_of(store, level))}", ["Send"])
        with pytest.raises(QuotaExceeded, match="RulesPerLevel") as caught:
            await store.put_rule(NS, level, "late", ["Send"])
        assert caught.value.http_status == 409
        await store.put_rule(NS, level, rules_of(store, level)[-1].name, ["Listen"])

    async def test_deleting(self, store, level):
        """The answer tells whether it existed (management contract 2.4)."""
        await store.put_rule(NS, level, "r", ["Send"])
        heard = listen(store)
        assert await store.delete_rule(NS, level, "R") is True
        assert await store.delete_rule(NS, level, "r") is False
        assert heard == [("updated", level)]
        assert "r" not in [rule.name for rule in rules_of(store, level)]

    async def test_the_root_rule_stays_while_nobody_else_manages(self, store):
        """mgmt 3.4: deleting RootManageSharedAccessKey is refused with 400 unless another rule with Manage exists."""
        await store.put_rule(NS, None, "almost", ["Send", "Listen"])
        await store.create_entity(NS, "hyco", rules=[RuleDefinition("boss", ALL)])
        with pytest.raises(Refused) as caught:
            await store.delete_rule(NS, None, "rootmanagesharedaccesskey")
        assert caught.value.http_status == 400
        await store.put_rule(NS, None, "boss", ["Manage", "Send", "Listen"])
        assert await store.delete_rule(NS, None, "RootManageSharedAccessKey") is True
        assert await store.delete_rule(NS, None, "RootManageSharedAccessKey") is False

    async def test_a_rule_of_that_name_on_an_entity_is_like_any_other(self, store):
        await store.create_entity(NS, "hyco", rules=[RuleDefinition("RootManageSharedAccessKey", ALL)])
        assert await store.delete_rule(NS, "hyco", "RootManageSharedAccessKey") is True

    @pytest.mark.parametrize("which", ["primary", "secondary"])
    async def test_a_new_key_in_one_place(self, store, level, which):
        """mgmt 3.5: only the named key changes."""
        first = await store.put_rule(NS, level, "r", ["Send"])
        heard = listen(store)
        second = await store.regenerate_key(NS, level, "R", which)
        third = await store.regenerate_key(NS, level, "r", which, key(60))
        changes = which == "primary"
        assert (first.primary_key != second.primary_key) is changes
        assert (first.secondary_key != second.secondary_key) is not changes
        assert third.keys[0 if changes else 1] == key(60)
        assert second.updated_at > first.updated_at
        assert heard == [("updated", level)] * 2

    async def test_a_new_key_for_nobody(self, store, level):
        with pytest.raises(EndpointNotFound, match="Authorization rule does not exist: r"):
            await store.regenerate_key(NS, level, "r", "primary")
        with pytest.raises(Refused, match="Base64"):
            await store.regenerate_key(NS, level, "r", "primary", "short")
        with pytest.raises(Refused, match="primary or the secondary"):
            await store.regenerate_key(NS, level, "r", "primary_key = '', secondary")

    async def test_a_level_that_does_not_exist(self, store):
        for namespace, entity in (("nobody", None), (NS, "nothing")):
            for call in (
                lambda n, e: store.put_rule(n, e, "r", ["Send"]),
                lambda n, e: store.delete_rule(n, e, "r"),
                lambda n, e: store.regenerate_key(n, e, "r", "primary"),
            ):
                with pytest.raises(EndpointNotFound):
                    await call(namespace, entity)


class TestSnapshots:
    async def test_a_snapshot_stays_as_it_was(self, store):
        before = store.snapshot
        await store.create_entity(NS, "hyco")
        assert before.namespaces[0].entities == {}
        assert store.snapshot.version == before.version + 1

    async def test_a_change_makes_only_what_has_changed(self, path):
        """10 000 entities: creating one costs one."""
        await fill(path, 10_000)
        async with await open_sqlite(path, entities_per_namespace=20_000) as store:
            await store.ensure_namespace("other", ["o.example"])
            before = store.snapshot
            await store.create_entity(NS, "new")
            await store.put_rule(NS, "site/00007", "r", ["Send"])
            await store.delete_entity(NS, "site/00008")
            after = store.snapshot
            assert after.get_namespace("other") is before.get_namespace("other")
            old, new = before.namespaces[0].entities, after.namespaces[0].entities
            assert len(old) == 10_000
            assert len(new) == 10_000
            assert {name for name in old.keys() | new.keys() if old.get(name) is not new.get(name)} == {
                "new",
                "site/00007",
                "site/00008",
            }

    async def test_a_refused_write_changes_nothing(self, store):
        await store.create_entity(NS, "hyco")
        before = store.snapshot
        with pytest.raises(EndpointAlreadyExists):
            await store.create_entity(NS, "hyco")
        assert store.snapshot is before

    async def test_everything_is_there_after_a_restart(self, path, clock):
        """mgmt 11 A42: restart the server; everything is there, keys identical."""
        async with await open_sqlite(path, now=clock) as store:
            await store.ensure_namespace(NS, ["a.example", "b.example"])
            await store.ensure_namespace("Second")
            for n in range(20):
                await store.create_entity(NS, f"hyco/{n}", user_metadata="m" * n)
                await store.put_rule(NS, f"hyco/{n}", "r", ["Send"])
            await store.delete_entity(NS, "hyco/3")
            kept = store.snapshot
        assert await reopened(path) == kept

    async def test_many_at_once(self, store):
        """mgmt 11 A41: 20 concurrent PUTs of one, 20 of different ones."""
        refusals = []

        async def create(name: str) -> None:
            try:
                await store.create_entity(NS, name)
            except EndpointAlreadyExists as refusal:
                refusals.append(refusal)

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(create, f"hyco{n}")
                nursery.start_soon(create, "one")
        assert len(refusals) == 19
        assert len(store.snapshot.namespaces[0].entities) == 21


async def fill(path, count: int) -> None:
    async with await open_sqlite(path) as store:
        await store.ensure_namespace(NS)
    connection = sqlite3.connect(path)
    with connection:
        connection.executemany(
            """INSERT INTO hybrid_connections (namespace_id, path, path_key, requires_client_authorization, websocket,
               http, raw_target, created_at, updated_at, revision) VALUES (1, ?1, ?1, 1, 1, 1, 0, ?2, ?2, 2)""",
            [(f"site/{n:05}", n) for n in range(count)],
        )
        connection.execute("UPDATE store SET version = 2")
    connection.close()


class Gate:
    """A source of keys that holds the worker thread until it is let through."""

    def __init__(self) -> None:
        self.is_closed = False
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        if self.is_closed:
            self.reached.set()
            assert self.open.wait(30)
        return make_key()


class TestCancellation:
    async def test_a_write_that_has_begun_is_finished_and_shown(self, path):
        """failures: cancelling the waiting task neither loses nor halves a write; the snapshot is what is committed."""
        gate = Gate()
        async with await open_sqlite(path, new_key=gate) as store:
            await store.ensure_namespace(NS)
            heard = listen(store)
            gate.is_closed = True
            is_done = False

            async def create() -> None:
                nonlocal is_done
                await store.create_entity(NS, "hyco", rules=[RuleDefinition("r", frozenset({Right.SEND}))])
                is_done = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(create)
                assert await trio.to_thread.run_sync(gate.reached.wait, 30)
                nursery.cancel_scope.cancel()
                gate.open.set()
            assert is_done
            assert heard == [("created", "hyco")]
            assert store.snapshot.namespaces[0].get_entity("hyco") is not None
            kept = store.snapshot
        assert await reopened(path) == kept

    async def test_a_write_that_has_not_begun_never_begins(self, path):
        gate = Gate()
        async with await open_sqlite(path, new_key=gate) as store:
            await store.ensure_namespace(NS)
            gate.is_closed = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.put_rule, NS, None, "first", ["Send"])
                assert await trio.to_thread.run_sync(gate.reached.wait, 30)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(store.create_entity, NS, "second")
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                assert scope.cancelled_caught
                gate.open.set()
            assert [rule.name for rule in store.snapshot.namespaces[0].rules] == ["RootManageSharedAccessKey", "first"]
            assert store.snapshot.namespaces[0].entities == {}
            kept = store.snapshot
        assert await reopened(path) == kept

    async def test_a_cancelled_scope_writes_nothing(self, store):
        before = store.snapshot
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.create_entity(NS, "hyco")
        assert scope.cancelled_caught
        assert store.snapshot is before

    async def test_writes_are_checkpoints(self, store):
        with trio.testing.assert_checkpoints():
            await store.create_entity(NS, "hyco")
        with trio.testing.assert_checkpoints():
            await store.poll_external()
        with trio.testing.assert_checkpoints():
            await store.aclose()


class TestClosing:
    async def test_a_closed_store_can_be_read_but_not_written(self, path):
        store = await open_sqlite(path)
        await store.ensure_namespace(NS)
        await store.aclose()
        await store.aclose()
        assert store.snapshot.get_namespace(NS) is not None
        with pytest.raises(LocalProtocolError):
            await store.create_entity(NS, "hyco")
        with pytest.raises(LocalProtocolError):
            await store.poll_external()
        assert [one.name for one in path.parent.iterdir()] == [path.name]

    async def test_closing_waits_for_what_was_asked_for_even_when_cancelled(self, path):
        """failures: shutdown drains; a write that was asked for before the close is made."""
        gate = Gate()
        store = await open_sqlite(path, new_key=gate)
        await store.ensure_namespace(NS)
        gate.is_closed = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put_rule, NS, None, "r", ["Send"])
            assert await trio.to_thread.run_sync(gate.reached.wait, 30)
            nursery.start_soon(store.aclose)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            gate.open.set()
        assert len(store.snapshot.namespaces[0].rules) == 2
        assert await reopened(path) == store.snapshot


class TestOtherProcesses:
    """Two stores on one file are what two processes are: each has its own connection."""

    async def test_what_another_process_writes_is_taken_in_and_told(self, path):
        async with await open_sqlite(path) as mine, await open_sqlite(path) as theirs:
            await mine.ensure_namespace(NS, ["a.example"])
            await mine.create_entity(NS, "gone")
            await mine.create_entity(NS, "again")
            await mine.create_entity(NS, "same")
            same = mine.snapshot.namespaces[0].get_entity("same")
            changes: list[Change] = []
            mine.subscribe(changes.append)

            assert await theirs.poll_external() is True
            assert await theirs.poll_external() is False
            assert theirs.snapshot == mine.snapshot
            assert await mine.poll_external() is False

            await theirs.create_entity(NS, "new")
            await theirs.update_entity(NS, "again", user_metadata="x")
            await theirs.delete_entity(NS, "gone")
            await theirs.put_rule(NS, None, "r", ["Send"])
            await theirs.ensure_namespace("second")
            assert changes == []
            assert await mine.poll_external() is True
            assert mine.snapshot == theirs.snapshot
            assert mine.snapshot.namespaces[0].get_entity("same") is same
            assert set(changes) == {
                Change(ChangeKind.CREATED, NS, "new"),
                Change(ChangeKind.UPDATED, NS, "again"),
                Change(ChangeKind.DELETED, NS, "gone"),
                Change(ChangeKind.UPDATED, NS, None),
                Change(ChangeKind.CREATED, "second", None),
            }

    async def test_a_rule_of_an_entity_is_seen_too(self, path):
        async with await open_sqlite(path) as mine, await open_sqlite(path) as theirs:
            await mine.ensure_namespace(NS)
            await mine.create_entity(NS, "hyco")
            await theirs.put_rule(NS, "hyco", "r", ["Send"])
            heard = listen(mine)
            await mine.poll_external()
            assert heard == [("updated", "hyco")]

    async def test_deleted_and_created_again_between_two_looks(self, path):
        async with await open_sqlite(path) as mine, await open_sqlite(path) as theirs:
            await mine.ensure_namespace(NS)
            await mine.create_entity(NS, "hyco")
            heard = listen(mine)
            await theirs.delete_entity(NS, "hyco")
            await theirs.create_entity(NS, "hyco")
            await mine.poll_external()
            assert heard == [("deleted", "hyco"), ("created", "hyco")]

    async def test_a_namespace_that_went_away(self, path):
        async with await open_sqlite(path) as store:
            await store.ensure_namespace(NS)
            await store.create_entity(NS, "hyco", rules=[RuleDefinition("r", frozenset({Right.SEND}))])
            heard = listen(store)
            connection = sqlite3.connect(path)
            with connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("DELETE FROM namespaces")
                connection.execute("UPDATE store SET version = version + 1")
            assert connection.execute("SELECT count(*) FROM rules").fetchone() == (0,)
            connection.close()
            assert await store.poll_external() is True
            assert heard == [("deleted", "hyco"), ("deleted", None)]
            assert store.snapshot.namespaces == ()

    async def test_a_write_builds_on_what_others_have_written(self, path):
        async with await open_sqlite(path) as mine, await open_sqlite(path) as theirs:
            await mine.ensure_namespace(NS)
            await theirs.create_entity(NS, "a")
            heard = listen(mine)
            with pytest.raises(EndpointAlreadyExists):
                await mine.create_entity(NS, "a/b")
            await mine.create_entity(NS, "b")
            assert heard == [("created", "a"), ("created", "b")]
            assert await mine.poll_external() is False

    async def test_a_foreign_commit_without_a_change_of_ours(self, path):
        async with await open_sqlite(path) as store:
            connection = sqlite3.connect(path)
            with connection:
                connection.execute("CREATE TABLE notes (x)")
            connection.close()
            assert await store.poll_external() is False

    async def test_an_older_copy_put_in_its_place_is_read_anew(self, path):
        async with await open_sqlite(path) as store:
            await store.ensure_namespace(NS)
            await store.create_entity(NS, "hyco")
            copy = sqlite3.connect(path.with_suffix(".copy"))
            original = sqlite3.connect(path)
            original.backup(copy)
            await store.create_entity(NS, "late")
            await store.update_entity(NS, "hyco", user_metadata="x")
            copy.backup(original)
            copy.close()
            original.close()
            assert await store.poll_external() is True
            assert list(store.snapshot.namespaces[0].entities) == ["hyco"]
            assert store.snapshot.namespaces[0].entities["hyco"].user_metadata is None

    async def test_a_writer_that_waits_too_long_gets_a_clear_answer(self, path):
        async with await open_sqlite(path, busy_timeout_s=0.0) as store:
            await store.ensure_namespace(NS)
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ServerBusy, match="another process is writing"):
                await store.create_entity(NS, "hyco")
            assert await store.poll_external() is False
            other.execute("COMMIT")
            other.close()
            await store.create_entity(NS, "hyco")

    async def test_a_newer_relaycore_takes_over(self, path):
        async with await open_sqlite(path) as store:
            await store.ensure_namespace(NS)
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA user_version = 99")
            connection.close()
            with pytest.raises(ConfigError, match="newer relaycore"):
                await store.create_entity(NS, "hyco")
            with pytest.raises(ConfigError, match="newer relaycore"):
                await store.poll_external()
            assert store.snapshot.namespaces[0].entities == {}

    async def test_a_store_that_cannot_be_opened(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            await open_sqlite(tmp_path)
        assert caught.value.source == str(tmp_path)

    async def test_a_store_without_its_tables(self, path):
        """What opens but cannot be read is refused as well, and its file let go of."""
        async with await open_sqlite(path):
            pass
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE rules")
        connection.close()
        async with await open_sqlite(path) as empty:
            assert empty.snapshot == EMPTY_SNAPSHOT
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE store")
        connection.close()
        with pytest.raises(ServerBusy, match="no such table"):
            await open_sqlite(path)
        assert [one.name for one in path.parent.iterdir()] == [path.name]


WRITER = """
import sys, trio
from relaycore.errors import EndpointAlreadyExists
from relaycore.store.sqlite import open_sqlite

async def main():
    path, prefix, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    async with await open_sqlite(path) as store:
        await store.ensure_namespace("default")
        print("ready", flush=True)
        for n in range(count):
            rule = store.snapshot.namespaces[0].rules[0].primary_key
            entity = await store.create_entity("default", f"{prefix}-{n}", user_metadata="m" * (n % 1000))
            await store.put_rule("default", entity.path, "r", ["Send"])
            print(entity.path, flush=True)

trio.run(main)
"""


def start_writer(path, prefix: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), prefix, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestProcesses:
    def test_two_processes_write_at_once_from_the_first_moment(self, path):
        """failures: nothing of either is lost, and neither fails."""
        writers = [start_writer(path, name, 25) for name in ("a", "b")]
        outputs = [writer.communicate(timeout=60) for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0], outputs
        snapshot = trio.run(reopened, path)
        assert set(snapshot.namespaces[0].entities) == {f"{name}-{n}" for name in "ab" for n in range(25)}
        assert all(len(entity.rules) == 1 for entity in snapshot.namespaces[0].entities.values())

    def test_kill_9_loses_nothing_that_was_reported(self, path):
        """failures: definitions survive kill -9 at any moment."""
        rng = random.Random(9)
        reported: set[str] = set()
        for life in range(6):
            writer = start_writer(path, f"life{life}", 100_000)
            assert writer.stdout is not None
            assert writer.stderr is not None
            first = writer.stdout.readline()
            assert first == "ready\n", writer.stderr.read()
            # A moment after a number of commits, not a number of seconds: the machine's speed does not matter.
            for _ in range(rng.randrange(1, 25)):
                reported.add(writer.stdout.readline().strip())
            time.sleep(rng.random() * 0.004)  # somewhere within the next write or two
            writer.send_signal(signal.SIGKILL)
            reported.update(line.strip() for line in writer.stdout if line.endswith("\n"))
            writer.wait()
            writer.stdout.close()
            writer.stderr.close()

            check = sqlite3.connect(path)
            assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert check.execute("PRAGMA foreign_key_check").fetchall() == []
            check.close()
            snapshot = trio.run(reopened, path)
            entities = snapshot.namespaces[0].entities
            assert reported <= entities.keys()
            # The one that was under way may be there, whole, or not.
            assert len(entities) - len(reported) <= life + 1
            assert all(len(entities[name].rules) == 1 for name in reported)


class TestSecrets:
    async def test_no_error_repeats_a_key(self, path, capfd):
        secret = key(12345)
        async with await open_sqlite(path) as store:
            await store.ensure_namespace(NS)
            await store.put_rule(NS, None, "r", ["Send"], secret)
            errors = []
            for call in (
                lambda: store.put_rule(NS, "nothing", "r", ["Send"], secret),
                lambda: store.put_rule(NS, None, "r", ["Foo"], secret),
                lambda: store.regenerate_key(NS, None, "q", "primary", secret),
                lambda: store.put_rule(NS, None, "r", ["Send"], secret + "="),
            ):
                with pytest.raises(Refused) as caught:
                    await call()
                errors.append(repr(caught.value) + str(caught.value))
            assert secret not in json.dumps(errors) + repr(store.snapshot) + repr(store)
        assert not re.search(re.escape(secret), "".join(capfd.readouterr()))

    async def test_an_old_key_does_not_stay_in_the_file(self, path):
        async with await open_sqlite(path) as store:
            await store.ensure_namespace(NS)
            old = store.snapshot.namespaces[0].rules[0].primary_key
            await store.regenerate_key(NS, None, "RootManageSharedAccessKey", "primary")
        assert old.encode() not in path.read_bytes()
