from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore.broker.model import EMPTY_SNAPSHOT, AuthorizationRule, HybridConnection, Namespace, Snapshot, fold
from relaycore.store.base import Change, ChangeKind, compare_snapshots
from relaycore.store.sqlite import open_sqlite
from relaycore.vocab import Right

WHEN = datetime(2026, 1, 31, tzinfo=UTC)
RULE = AuthorizationRule("r", frozenset({Right.SEND}), "primary", "secondary", WHEN, WHEN)


def entity(path: str, **changes) -> HybridConnection:
    return dataclasses.replace(HybridConnection(path, True, None, WHEN, WHEN), **changes)


def namespace(*entities: HybridConnection, name: str = "ns", **changes) -> Namespace:
    mapping = MappingProxyType({fold(one.path): one for one in entities})
    return dataclasses.replace(Namespace(name, (), (), mapping, WHEN, WHEN), **changes)


def snapshot(*namespaces: Namespace) -> Snapshot:
    return Snapshot(1, namespaces)


NEW = [("created", "m", None), ("created", "m", "b")]
A, B = entity("A"), entity("b")


class TestCompare:
    @pytest.mark.parametrize(
        ("old", "new", "changes"),
        [
            (snapshot(), snapshot(namespace()), [("created", "ns", None)]),
            (snapshot(), snapshot(namespace(A)), [("created", "ns", None), ("created", "ns", "A")]),
            (snapshot(namespace(A)), snapshot(), [("deleted", "ns", "A"), ("deleted", "ns", None)]),
            (snapshot(namespace(A)), snapshot(namespace(A)), []),
            (snapshot(namespace(A)), snapshot(namespace(entity("A"))), []),
            (snapshot(namespace(A)), snapshot(namespace(A, B)), [("created", "ns", "b")]),
            (snapshot(namespace(A, B)), snapshot(namespace(B)), [("deleted", "ns", "A")]),
            (
                snapshot(namespace(A)),
                snapshot(namespace(entity("A", user_metadata="x"))),
                [("updated", "ns", "A")],
            ),
            (snapshot(namespace(A)), snapshot(namespace(entity("A", rules=(RULE,)))), [("updated", "ns", "A")]),
            (
                snapshot(namespace(A)),
                snapshot(namespace(entity("a", created_at=WHEN + timedelta(1)))),
                [("deleted", "ns", "A"), ("created", "ns", "a")],
            ),
            (snapshot(namespace()), snapshot(namespace(rules=(RULE,))), [("updated", "ns", None)]),
            (snapshot(namespace()), snapshot(namespace(hosts=("h",))), [("updated", "ns", None)]),
            (snapshot(namespace()), snapshot(namespace(name="NS")), [("updated", "NS", None)]),
            (snapshot(namespace(A)), snapshot(namespace(A), namespace(B, name="m")), NEW),
        ],
    )
    def test_what_differs(self, old, new, changes):
        expected = [Change(ChangeKind(kind), name, path) for kind, name, path in changes]
        assert list(compare_snapshots(old, new)) == expected

    @given(st.data())
    def test_the_changes_lead_from_the_old_to_the_new(self, data):
        pool = {
            path: [entity(path), entity(path, user_metadata="x"), entity(path, created_at=WHEN + timedelta(1))]
            for path in data.draw(st.lists(strategies.entity_paths, max_size=5, unique_by=fold))
        }

        def draw() -> Snapshot:
            chosen = {path: data.draw(st.sampled_from([None, *versions])) for path, versions in pool.items()}
            return snapshot(namespace(*(one for one in chosen.values() if one is not None)))

        old, new = draw(), draw()
        state = dict(old.namespaces[0].entities)
        for change in compare_snapshots(old, new):
            assert change.entity_path is not None
            key = fold(change.entity_path)
            if change.kind is ChangeKind.DELETED:
                del state[key]
            else:
                assert (key in state) is (change.kind is ChangeKind.UPDATED)
                state[key] = new.namespaces[0].entities[key]
        assert state == new.namespaces[0].entities


class TestSubscribing:
    async def test_subscribers_hear_of_changes_until_they_leave(self):
        async with await open_sqlite(":memory:") as store:
            heard: list[Change] = []
            hear = heard.append
            leave, leave_too = store.subscribe(hear), store.subscribe(hear)
            await store.ensure_namespace("ns")
            assert heard == [Change(ChangeKind.CREATED, "ns", None)] * 2
            leave_too()
            leave_too()
            heard.clear()
            await store.create_entity("ns", "Hyco")
            leave()
            await store.create_entity("ns", "other")
        assert heard == [Change(ChangeKind.CREATED, "ns", "Hyco")]

    async def test_the_snapshot_shows_the_change_before_anybody_hears_of_it(self):
        async with await open_sqlite(":memory:") as store:
            await store.ensure_namespace("ns")
            seen = []
            store.subscribe(lambda change: seen.append(store.snapshot.namespaces[0].get_entity(change.entity_path)))
            created = await store.create_entity("ns", "hyco")
            assert seen == [created]

    async def test_one_that_fails_does_not_keep_the_others_from_hearing(self):
        async with await open_sqlite(":memory:") as store:
            heard: list[Change] = []

            def fail(change: Change) -> None:
                raise ValueError("x")

            store.subscribe(fail)
            store.subscribe(heard.append)
            with pytest.RaisesGroup(ValueError, match="subscribers"):
                await store.ensure_namespace("ns")
            assert len(heard) == 1
            assert store.snapshot.get_namespace("ns") is not None

    async def test_a_fresh_store_is_empty(self):
        async with await open_sqlite(":memory:") as store:
            assert store.snapshot == EMPTY_SNAPSHOT
