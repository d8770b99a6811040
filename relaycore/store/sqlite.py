"""The embedded gateway store: one SQLite file, any number of processes.

Theory of operation::

    Trio thread                        worker thread (one at a time)
    ───────────                        ─────────────────────────────
    store.snapshot  ◀── publish ──┐    BEGIN IMMEDIATE
    write ── run_sync ────────────┼──▶ the change, with revision = version + 1
                                  │    load: rows with a revision above the head's ──▶ new head
                                  └─── COMMIT

The new snapshot is never computed from the change but read back from the tables, inside the transaction that made it.
So it is what was committed, along with what other processes committed before; the same ``_load`` starts from nothing
when the store is opened and from the present head when another process has written. It makes objects for changed rows
only and shares the rest, which is also what lets :func:`~relaycore.store.base.compare_snapshots` find the changes.

A worker thread that has begun is not abandoned by cancellation (``abandon_on_cancel=False``): the write ends, its
result is queued by the thread and published by whoever comes next on the Trio side, in the order of the commits.
"""

from __future__ import annotations

import base64
import dataclasses
import secrets
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import trio

from ..broker.model import (
    EMPTY_SNAPSHOT,
    KEY_BYTES,
    ROOT_RULE_NAME,
    AuthorizationRule,
    HybridConnection,
    Namespace,
    RuleDefinition,
    Snapshot,
    ancestors,
    endpoint_not_found,
    fold,
    host_name,
    rights_in_order,
    shown_path,
    validate_entity_path,
    validate_key,
    validate_namespace_name,
    validate_rights,
    validate_rule_name,
    validate_user_metadata,
)
from ..errors import (
    ConfigError,
    EndpointAlreadyExists,
    EndpointNotFound,
    LocalProtocolError,
    QuotaExceeded,
    Refused,
)
from ..vocab import RefusalReason, Right
from ..wire import limits
from .base import KEEP, Change, Keep, Store, Which, compare_snapshots
from .schema import BUSY_TIMEOUT_S, check_schema, explained, open_database, transaction

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MAX_HOST_CHARS: Final = 253


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


def make_key() -> str:
    """A fresh key: the Base64 text of 32 random bytes (management contract 3.5)."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


async def open_sqlite(
    path: Path | str,
    *,
    now: Callable[[], datetime] = utc_now,
    new_key: Callable[[], str] = make_key,
    entities_per_namespace: int = limits.MAX_ENTITIES_PER_NAMESPACE,
    rules_per_level: int = limits.MAX_RULES_PER_LEVEL,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> SqliteStore:
    """Open a store, or create it, and read everything that is defined.

    Args:
      path: the file, or ``":memory:"`` for a store that ends with the process.
      now: the wall clock, in UTC; called in the worker thread.
      new_key: makes keys; called in the worker thread.
      entities_per_namespace: hybrid connections that a namespace has at most.
      rules_per_level: rules that a namespace, and each hybrid connection, has at most.
      busy_timeout_s: how long a write waits for another process, in seconds.

    Raises:
      ConfigError: the file cannot be used; the message names it and says what to do.
      ServerBusy: another process held it for too long.
    """

    def open_and_load() -> tuple[sqlite3.Connection, Snapshot, int]:
        connection = open_database(path, busy_timeout_s=busy_timeout_s)
        try:
            with explained(str(path)):
                return (connection, *_read(connection, str(path), EMPTY_SNAPSHOT))
        except BaseException:
            connection.close()
            raise

    connection, snapshot, data_version = await trio.to_thread.run_sync(open_and_load)
    return SqliteStore(
        connection,
        str(path),
        snapshot,
        data_version,
        now=now,
        new_key=new_key,
        entities_per_namespace=entities_per_namespace,
        rules_per_level=rules_per_level,
    )


class SqliteStore(Store):
    """Definitions in one SQLite file. Made by :func:`open_sqlite`; close it with ``aclose`` or ``async with``."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        snapshot: Snapshot,
        data_version: int,
        *,
        now: Callable[[], datetime],
        new_key: Callable[[], str],
        entities_per_namespace: int,
        rules_per_level: int,
    ) -> None:
        super().__init__(snapshot)
        # Static after construction.
        self._name = name
        self._now = now
        self._new_key = new_key
        self._entities_per_namespace = entities_per_namespace
        self._rules_per_level = rules_per_level
        self._slot = trio.CapacityLimiter(1)
        # Owned by whoever runs in the slot.
        self._connection = connection
        self._head = snapshot
        self._data_version = data_version
        # From the slot to the Trio thread; a deque may be used from both.
        self._committed: deque[tuple[Snapshot, tuple[Change, ...]]] = deque()
        # Owned by the Trio thread.
        self._is_closed = False

    # The two doors to the worker thread ------------------------------------------------------------------------------

    async def _write(self, work: Callable[[_Write], T]) -> tuple[Snapshot, T]:
        """Run ``work`` in a transaction. Returns: the snapshot that it led to, and its result. A checkpoint."""
        return await self._in_slot(lambda: self._commit(work))

    async def poll_external(self) -> bool:
        return await self._in_slot(self._catch_up)

    async def aclose(self) -> None:
        """Finish the writes that have been asked for, and close the file. Bounded by their busy timeouts, so it is
        not cancelled; the snapshot stays readable."""
        self._is_closed = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._slot)
            self._publish_committed()

    async def _in_slot(self, job: Callable[[], T]) -> T:
        if self._is_closed:
            raise LocalProtocolError("the store is closed")
        try:
            return await trio.to_thread.run_sync(job, limiter=self._slot)
        finally:
            self._publish_committed()

    def _publish_committed(self) -> None:
        while self._committed:
            self._publish(*self._committed.popleft())

    # In the slot -----------------------------------------------------------------------------------------------------

    def _commit(self, work: Callable[[_Write], T]) -> tuple[Snapshot, T]:
        connection = self._connection
        with explained(self._name):
            with transaction(connection):
                # Under the write lock nobody else commits, so what is loaded here is what will be committed.
                (version,) = connection.execute("SELECT version FROM store").fetchone()
                before = connection.total_changes
                write = _Write(
                    connection,
                    revision=version + 1,
                    moment=(self._now() - _EPOCH) // _MICROSECOND,
                    new_key=self._new_key,
                    entities_per_namespace=self._entities_per_namespace,
                    rules_per_level=self._rules_per_level,
                )
                result = work(write)
                if connection.total_changes != before:
                    connection.execute("UPDATE store SET version = ?", (version + 1,))
                snapshot, data_version = _load(connection, self._name, self._head)
            self._take_over(snapshot, data_version)
        return snapshot, result

    def _catch_up(self) -> bool:
        connection = self._connection
        with explained(self._name):
            # Changes whenever another connection has committed to the file, and costs no lock.
            (data_version,) = connection.execute("PRAGMA data_version").fetchone()
            if data_version == self._data_version:
                return False
            return self._take_over(*_read(connection, self._name, self._head))

    def _take_over(self, snapshot: Snapshot, data_version: int) -> bool:
        self._data_version = data_version
        if snapshot is self._head:
            return False
        changes = compare_snapshots(self._head, snapshot)
        self._head = snapshot
        self._committed.append((snapshot, changes))
        return True

    # Namespaces ------------------------------------------------------------------------------------------------------

    async def ensure_namespace(self, name: str, hosts: Iterable[str] | None = None) -> Namespace:
        validate_namespace_name(name)
        wanted = None if hosts is None else tuple(dict.fromkeys(_checked_host(host) for host in hosts))
        snapshot, _ = await self._write(lambda write: write.ensure_namespace(name, wanted))
        return _namespace_in(snapshot, name)

    # Hybrid connections ----------------------------------------------------------------------------------------------

    async def create_entity(
        self,
        namespace: str,
        path: str,
        *,
        requires_client_authorization: bool = True,
        user_metadata: str | None = None,
        websocket: bool = True,
        http: bool = True,
        raw_target: bool = False,
        rules: Iterable[RuleDefinition] = (),
    ) -> HybridConnection:
        validate_entity_path(path)
        columns: dict[str, object] = {
            "requires_client_authorization": requires_client_authorization,
            "user_metadata": validate_user_metadata(user_metadata),
            "websocket": websocket,
            "http": http,
            "raw_target": raw_target,
        }
        definitions = _checked_rules(rules)
        snapshot, _ = await self._write(lambda write: write.create_entity(namespace, path, columns, definitions))
        return _entity_in(snapshot, namespace, path)

    async def update_entity(
        self,
        namespace: str,
        path: str,
        *,
        requires_client_authorization: bool | None = None,
        user_metadata: str | Keep | None = KEEP,
        websocket: bool | None = None,
        http: bool | None = None,
        raw_target: bool | None = None,
        rules: Iterable[RuleDefinition] | None = None,
        if_updated_at: datetime | None = None,
    ) -> HybridConnection:
        flags = {"websocket": websocket, "http": http, "raw_target": raw_target}
        columns: dict[str, object] = {name: value for name, value in flags.items() if value is not None}
        if not isinstance(user_metadata, Keep):
            columns["user_metadata"] = validate_user_metadata(user_metadata)
        definitions = None if rules is None else _checked_rules(rules)

        def work(write: _Write) -> None:
            level = write.level(namespace, path)
            if if_updated_at is not None and level.updated_at != (if_updated_at - _EPOCH) // _MICROSECOND:
                raise Refused(
                    "The hybrid connection has been changed since",
                    http_status=412,
                    reason=RefusalReason.PRECONDITION,
                )
            write.update_entity(level, requires_client_authorization, columns, definitions)

        snapshot, _ = await self._write(work)
        return _entity_in(snapshot, namespace, path)

    async def delete_entity(self, namespace: str, path: str) -> bool:
        _, was_there = await self._write(lambda write: write.delete_entity(namespace, path))
        return was_there

    # Rules -----------------------------------------------------------------------------------------------------------

    async def put_rule(
        self,
        namespace: str,
        entity_path: str | None,
        name: str,
        rights: Iterable[Right | str],
        primary_key: str | None = None,
        secondary_key: str | None = None,
    ) -> AuthorizationRule:
        definition = _checked_rule(RuleDefinition(name, validate_rights(rights), primary_key, secondary_key))

        def work(write: _Write) -> None:
            level = write.level(namespace, entity_path)
            if write.put_rule(level, definition):
                write.touch(level)

        snapshot, _ = await self._write(work)
        return _rule_in(snapshot, namespace, entity_path, name)

    async def delete_rule(self, namespace: str, entity_path: str | None, name: str) -> bool:
        _, was_there = await self._write(lambda write: write.delete_rule(write.level(namespace, entity_path), name))
        return was_there

    async def regenerate_key(
        self, namespace: str, entity_path: str | None, rule: str, which: Which, key: str | None = None
    ) -> AuthorizationRule:
        if which not in ("primary", "secondary"):
            raise Refused("The key to regenerate is the primary or the secondary one")
        if key is not None:
            validate_key(key)

        def work(write: _Write) -> None:
            write.regenerate_key(write.level(namespace, entity_path), rule, which, key)

        snapshot, _ = await self._write(work)
        return _rule_in(snapshot, namespace, entity_path, rule)


# Arguments and results -----------------------------------------------------------------------------------------------


def _checked_host(host: str) -> str:
    name = host_name(host)
    if not 1 <= len(name) <= _MAX_HOST_CHARS or not name.isascii() or any(c.isspace() or c in "/@?#," for c in host):
        raise ConfigError(f"{host!r} is not a host name")
    return name


def _checked_rule(definition: RuleDefinition) -> RuleDefinition:
    validate_rule_name(definition.name)
    validate_rights(definition.rights)
    for key in (definition.primary_key, definition.secondary_key):
        if key is not None:
            validate_key(key)
    return definition


def _checked_rules(definitions: Iterable[RuleDefinition]) -> tuple[RuleDefinition, ...]:
    checked = tuple(_checked_rule(definition) for definition in definitions)
    if len({fold(definition.name) for definition in checked}) != len(checked):
        raise Refused("Two authorization rules have the same name")
    return checked


def _namespace_in(snapshot: Snapshot, name: str) -> Namespace:
    namespace = snapshot.get_namespace(name)
    assert namespace is not None
    return namespace


def _entity_in(snapshot: Snapshot, namespace: str, path: str) -> HybridConnection:
    entity = _namespace_in(snapshot, namespace).get_entity(path)
    assert entity is not None
    return entity


def _rule_in(snapshot: Snapshot, namespace: str, entity_path: str | None, name: str) -> AuthorizationRule:
    holder = _namespace_in(snapshot, namespace) if entity_path is None else _entity_in(snapshot, namespace, entity_path)
    rule = holder.find_rule(name)
    assert rule is not None
    return rule


def _no_such_namespace(name: str) -> EndpointNotFound:
    return EndpointNotFound(f"Namespace does not exist: {shown_path(name)}")


# Writing -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Level:
    """Where rules sit: a hybrid connection, or the namespace itself (``entity_id`` is ``None``)."""

    namespace_id: int
    entity_id: int | None
    updated_at: int

    @property
    def where(self) -> tuple[str, tuple[int, ...]]:
        """The condition, and its values, that finds the rules of this level."""
        if self.entity_id is None:
            return "namespace_id = ? AND hybrid_connection_id IS NULL", (self.namespace_id,)
        return "hybrid_connection_id = ?", (self.entity_id,)


@dataclasses.dataclass(frozen=True, slots=True)
class _Write:
    """What one transaction does to the tables. Whatever it raises rolls all of it back."""

    connection: sqlite3.Connection
    revision: int
    moment: int  # microseconds since 1970
    new_key: Callable[[], str]
    entities_per_namespace: int
    rules_per_level: int

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        row = self.connection.execute(sql, values).fetchone()
        return cast("tuple[Any, ...] | None", row)

    def _count(self, sql: str, *values: object) -> int:
        return int(self.connection.execute(sql, values).fetchone()[0])

    def _after(self, former: int) -> int:
        # Times of update never repeat, even when the clock is set back: entity tags are made of them.
        return max(self.moment, former + 1)

    def level(self, namespace: str, entity_path: str | None) -> _Level:
        row = self._one("SELECT id, updated_at FROM namespaces WHERE name_key = ?", fold(namespace))
        if row is None:
            raise _no_such_namespace(namespace)
        if entity_path is None:
            return _Level(row[0], None, row[1])
        entity = self._one(
            "SELECT id, updated_at FROM hybrid_connections WHERE namespace_id = ? AND path_key = ?",
            row[0],
            fold(entity_path.strip("/")),
        )
        if entity is None:
            raise endpoint_not_found(entity_path)
        return _Level(row[0], entity[0], entity[1])

    def touch(self, level: _Level) -> None:
        """Mark a level as changed, so that readers fetch it."""
        if level.entity_id is None:
            self.connection.execute(
                "UPDATE namespaces SET revision = ? WHERE id = ?", (self.revision, level.namespace_id)
            )
        else:
            self.connection.execute(
                "UPDATE hybrid_connections SET revision = ? WHERE id = ?", (self.revision, level.entity_id)
            )

    # Namespaces

    def ensure_namespace(self, name: str, hosts: tuple[str, ...] | None) -> None:
        row = self._one("SELECT id, updated_at FROM namespaces WHERE name_key = ?", fold(name))
        if row is None:
            cursor = self.connection.execute(
                "INSERT INTO namespaces (name, name_key, created_at, updated_at, revision) VALUES (?, ?, ?, ?, ?)",
                (name, fold(name), self.moment, self.moment, self.revision),
            )
            level = _Level(cast("int", cursor.lastrowid), None, self.moment)
            self.put_rule(level, RuleDefinition(ROOT_RULE_NAME, frozenset(Right)))
            self._set_hosts(level.namespace_id, hosts or ())
            return
        namespace_id, updated_at = row
        if hosts is None:
            return
        former = self.connection.execute(
            "SELECT host_key FROM namespace_hosts WHERE namespace_id = ? ORDER BY position", (namespace_id,)
        )
        if tuple(host for (host,) in former) == hosts:
            return
        self._set_hosts(namespace_id, hosts)
        self.connection.execute(
            "UPDATE namespaces SET updated_at = ?, revision = ? WHERE id = ?",
            (self._after(updated_at), self.revision, namespace_id),
        )

    def _set_hosts(self, namespace_id: int, hosts: tuple[str, ...]) -> None:
        self.connection.execute("DELETE FROM namespace_hosts WHERE namespace_id = ?", (namespace_id,))
        for position, host in enumerate(hosts):
            taken = self._one(
                "SELECT name FROM namespace_hosts JOIN namespaces ON id = namespace_id WHERE host_key = ?", host
            )
            if taken is not None:
                raise ConfigError(f"the host name {host} leads to the namespace {taken[0]} already")
            self.connection.execute(
                "INSERT INTO namespace_hosts (host_key, namespace_id, position) VALUES (?, ?, ?)",
                (host, namespace_id, position),
            )
        other = self._one(
            "SELECT name FROM namespaces WHERE id <> ? AND id NOT IN (SELECT namespace_id FROM namespace_hosts)",
            namespace_id,
        )
        if not hosts and other is not None:
            raise ConfigError(
                f"any host name leads to the namespace {other[0]} already; give one of the two namespaces host names"
            )

    # Hybrid connections

    def create_entity(
        self, namespace: str, path: str, columns: dict[str, object], rules: tuple[RuleDefinition, ...]
    ) -> None:
        namespace_id, key = self.level(namespace, None).namespace_id, fold(path)
        self._check_room(namespace_id, path, key)
        row = {
            "namespace_id": namespace_id,
            "path": path,
            "path_key": key,
            "created_at": self.moment,
            "updated_at": self.moment,
            "revision": self.revision,
            **columns,
        }
        cursor = self.connection.execute(
            f"INSERT INTO hybrid_connections ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            tuple(row.values()),
        )
        level = _Level(namespace_id, cast("int", cursor.lastrowid), self.moment)
        for definition in rules:
            self.put_rule(level, definition)

    def _check_room(self, namespace_id: int, path: str, key: str) -> None:
        same_or_above = (key, *ancestors(key))
        # Two searches, because one with OR would walk the whole namespace. "0" is the character after "/", so the range
        # holds exactly what begins with the path and a slash.
        clash = self._one(
            f"""SELECT path FROM hybrid_connections
                WHERE namespace_id = ? AND path_key IN ({", ".join("?" * len(same_or_above))})
                UNION ALL
                SELECT path FROM hybrid_connections WHERE namespace_id = ? AND path_key > ? AND path_key < ?""",
            namespace_id,
            *same_or_above,
            namespace_id,
            key + "/",
            key + "0",
        )
        if clash is not None:
            taken = cast("str", clash[0])
            if fold(taken) == key:
                raise EndpointAlreadyExists(f"Endpoint exists already: {taken}")
            raise EndpointAlreadyExists(f"Endpoint {path} and endpoint {taken} would hide each other's paths")
        count = self._count("SELECT count(*) FROM hybrid_connections WHERE namespace_id = ?", namespace_id)
        if count >= self.entities_per_namespace:
            raise QuotaExceeded(
                f"EntitiesPerNamespace: the namespace has its {self.entities_per_namespace} hybrid connections, "
                "no more fit",
                http_status=409,
                reason=RefusalReason.ENTITY_QUOTA,
            )

    def update_entity(
        self,
        level: _Level,
        requires_client_authorization: bool | None,
        columns: dict[str, object],
        rules: tuple[RuleDefinition, ...] | None,
    ) -> None:
        names = ("requires_client_authorization", "user_metadata", "websocket", "http", "raw_target")
        row = self._one(f"SELECT {', '.join(names)} FROM hybrid_connections WHERE id = ?", level.entity_id)
        assert row is not None
        former = dict(zip(names, row, strict=True))
        if requires_client_authorization not in (None, bool(former["requires_client_authorization"])):
            raise Refused("requiresClientAuthorization cannot be changed after creation")
        changed = {name: value for name, value in columns.items() if value != former[name]}
        if not self._replace_rules(level, rules) and not changed:
            return
        changed |= {"updated_at": self._after(level.updated_at), "revision": self.revision}
        self.connection.execute(
            f"UPDATE hybrid_connections SET {', '.join(f'{name} = ?' for name in changed)} WHERE id = ?",
            (*changed.values(), level.entity_id),
        )

    def delete_entity(self, namespace: str, path: str) -> bool:
        cursor = self.connection.execute(
            "DELETE FROM hybrid_connections WHERE namespace_id = ? AND path_key = ?",
            (self.level(namespace, None).namespace_id, fold(path.strip("/"))),
        )
        return cursor.rowcount > 0

    # Rules

    def put_rule(self, level: _Level, definition: RuleDefinition) -> bool:
        """Create or change a rule. Returns: whether anything is different now."""
        where, values = level.where
        rights = _rights_text(definition.rights)
        row = self._one(
            f"SELECT id, rights, primary_key, secondary_key, updated_at FROM rules WHERE name_key = ? AND {where}",
            fold(definition.name),
            *values,
        )
        if row is not None:
            # 3.4: an existing rule keeps its keys: clients put rules again as a matter of course.
            id, *former, updated_at = row
            wanted = [rights, definition.primary_key or former[1], definition.secondary_key or former[2]]
            if wanted == former:
                return False
            self.connection.execute(
                "UPDATE rules SET rights = ?, primary_key = ?, secondary_key = ?, updated_at = ? WHERE id = ?",
                (*wanted, self._after(updated_at), id),
            )
            return True
        if self._count(f"SELECT count(*) FROM rules WHERE {where}", *values) >= self.rules_per_level:
            raise QuotaExceeded(
                f"RulesPerLevel: there are {self.rules_per_level} authorization rules here, no more fit",
                http_status=409,
                reason=RefusalReason.RULE_QUOTA,
            )
        self.connection.execute(
            """INSERT INTO rules (namespace_id, hybrid_connection_id, name, name_key, rights,
                                  primary_key, secondary_key, created_at, updated_at)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                level.namespace_id,
                level.entity_id,
                definition.name,
                fold(definition.name),
                rights,
                definition.primary_key or self.new_key(),
                definition.secondary_key or self.new_key(),
                self.moment,
                self.moment,
            ),
        )
        return True

    def _replace_rules(self, level: _Level, rules: tuple[RuleDefinition, ...] | None) -> bool:
        """Make ``rules`` the only ones. Returns: whether anything is different now."""
        if rules is None:
            return False
        where, values = level.where
        kept = [fold(definition.name) for definition in rules]
        # Deleted first, so that a full set can be exchanged for another.
        cursor = self.connection.execute(
            f"DELETE FROM rules WHERE {where} AND name_key NOT IN ({', '.join('?' * len(kept))})", (*values, *kept)
        )
        is_changed = [self.put_rule(level, definition) for definition in rules]
        return cursor.rowcount > 0 or any(is_changed)

    def delete_rule(self, level: _Level, name: str) -> bool:
        where, values = level.where
        if level.entity_id is None and fold(name) == fold(ROOT_RULE_NAME):
            managing = self._count(
                f"SELECT count(*) FROM rules WHERE {where} AND name_key <> ? AND rights LIKE '%Manage%'",
                *values,
                fold(name),
            )
            if managing == 0:
                raise Refused(f"{ROOT_RULE_NAME} stays until another rule of the namespace has Manage")
        cursor = self.connection.execute(f"DELETE FROM rules WHERE name_key = ? AND {where}", (fold(name), *values))
        if cursor.rowcount == 0:
            return False
        self.touch(level)
        return True

    def regenerate_key(self, level: _Level, name: str, which: Which, key: str | None) -> None:
        where, values = level.where
        row = self._one(f"SELECT id, updated_at FROM rules WHERE name_key = ? AND {where}", fold(name), *values)
        if row is None:
            raise EndpointNotFound(f"Authorization rule does not exist: {shown_path(name)}")
        id, updated_at = row
        self.connection.execute(
            f"UPDATE rules SET {which}_key = ?, updated_at = ? WHERE id = ?",
            (key or self.new_key(), self._after(updated_at), id),
        )
        self.touch(level)


# Reading -------------------------------------------------------------------------------------------------------------


def _read(connection: sqlite3.Connection, name: str, base: Snapshot) -> tuple[Snapshot, int]:
    """Load in a transaction of its own, so that all of it is of one moment."""
    connection.execute("BEGIN")
    try:
        return _load(connection, name, base)
    finally:
        connection.execute("ROLLBACK")


def _load(connection: sqlite3.Connection, name: str, base: Snapshot) -> tuple[Snapshot, int]:
    """Read what is newer than ``base``, inside a transaction.

    Returns: the snapshot, which is ``base`` itself when nothing is newer, and the ``data_version`` that it is of.
    """
    (version,) = connection.execute("SELECT version FROM store").fetchone()
    (data_version,) = connection.execute("PRAGMA data_version").fetchone()
    check_schema(connection, name)
    if version == base.version:
        return base, data_version
    if version < base.version:
        base = EMPTY_SNAPSHOT  # somebody put an older copy of the file in its place
    hosts = _grouped(connection.execute("SELECT namespace_id, host_key FROM namespace_hosts ORDER BY position"))
    counts = dict(connection.execute("SELECT namespace_id, count(*) FROM hybrid_connections GROUP BY namespace_id"))
    changed = _changed_entities(connection, base.version)
    namespaces = []
    for id, given_name, created_at, updated_at, revision in connection.execute(
        "SELECT id, name, created_at, updated_at, revision FROM namespaces ORDER BY id"
    ).fetchall():
        former = base.get_namespace(given_name)
        count = counts.get(id, 0)
        entities = _merged(connection, id, former, changed.get(id, {}), count)
        if former is not None and entities is former.entities and revision <= base.version:
            namespaces.append(former)
            continue
        rules = connection.execute(
            f"SELECT {_RULE_COLUMNS} FROM rules WHERE namespace_id = ? AND hybrid_connection_id IS NULL ORDER BY id",
            (id,),
        )
        namespaces.append(
            Namespace(
                name=given_name,
                hosts=tuple(host for (host,) in hosts.get(id, ())),
                rules=tuple(_rule(row) for row in rules),
                entities=entities,
                created_at=_time(created_at),
                updated_at=_time(updated_at),
            )
        )
    return Snapshot(version, tuple(namespaces)), data_version


def _changed_entities(connection: sqlite3.Connection, since: int) -> dict[int, dict[str, HybridConnection]]:
    """Hybrid connections written after version ``since``, by the id of their namespace and their folded path."""
    rules = _grouped(
        connection.execute(
            f"""SELECT hybrid_connection_id, {_RULE_COLUMNS} FROM rules WHERE hybrid_connection_id IN
                (SELECT id FROM hybrid_connections WHERE revision > ?) ORDER BY id""",
            (since,),
        )
    )
    changed: dict[int, dict[str, HybridConnection]] = {}
    for (
        namespace_id,
        key,
        id,
        path,
        required,
        metadata,
        websocket,
        http,
        raw,
        created_at,
        updated_at,
    ) in connection.execute(
        """SELECT namespace_id, path_key, id, path, requires_client_authorization, user_metadata, websocket, http,
                  raw_target, created_at, updated_at
           FROM hybrid_connections WHERE revision > ?""",
        (since,),
    ):
        changed.setdefault(namespace_id, {})[key] = HybridConnection(
            path=path,
            requires_client_authorization=bool(required),
            user_metadata=metadata,
            websocket=bool(websocket),
            http=bool(http),
            raw_target=bool(raw),
            rules=tuple(_rule(row) for row in rules.get(id, ())),
            created_at=_time(created_at),
            updated_at=_time(updated_at),
        )
    return changed


_Entities = MappingProxyType[str, HybridConnection]


def _merged(
    connection: sqlite3.Connection,
    namespace_id: int,
    former: Namespace | None,
    changed: dict[str, HybridConnection],
    count: int,
) -> _Entities:
    """The hybrid connections of a namespace, of which there are ``count``: the former ones with the changed ones."""
    # The mappings of our snapshots are all made here.
    before = cast("_Entities", former.entities) if former is not None else _Entities({})
    if not changed and len(before) == count:
        return before
    after = before | changed
    if len(after) != count:
        # Some are deleted; a deletion leaves no row to find it by.
        rows = connection.execute("SELECT path_key FROM hybrid_connections WHERE namespace_id = ?", (namespace_id,))
        after = {key: after[key] for (key,) in rows}
    return _Entities(after)


_RULE_COLUMNS: Final = "name, rights, primary_key, secondary_key, created_at, updated_at"


def _rule(row: tuple[Any, ...]) -> AuthorizationRule:
    name, rights, primary_key, secondary_key, created_at, updated_at = row
    return AuthorizationRule(
        name=name,
        rights=frozenset(Right(word) for word in rights.split(" ")),
        primary_key=primary_key,
        secondary_key=secondary_key,
        created_at=_time(created_at),
        updated_at=_time(updated_at),
    )


def _rights_text(rights: Iterable[Right]) -> str:
    return " ".join(right.value for right in rights_in_order(rights))


def _time(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    """Rows by their first column, without it."""
    groups: dict[int, list[tuple[Any, ...]]] = {}
    for first, *rest in rows:
        groups.setdefault(first, []).append(tuple(rest))
    return groups
