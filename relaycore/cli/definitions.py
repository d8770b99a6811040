"""Hybrid connections and keys as commands see them, whether they are in a local store or behind a relay.

The local side opens the store file that ``serve`` would use with the same settings; a running relay notices what
another process wrote. The remote side speaks the Atom surface with a Manage key, which knows less: no rules of the
namespace, no switches for single kinds of sender.
"""

from __future__ import annotations

import dataclasses
import functools
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

import click
import trio

from ..broker.model import AuthorizationRule, HybridConnection, Namespace, endpoint_not_found, rights_in_order
from ..client.management import Entity, ManagementClient, Rule, new_key
from ..config import Config, default_store_path
from ..errors import ConfigError, EndpointNotFound, Refused, ServerBusy
from ..store.base import Keep, Store
from ..store.sqlite import SqliteStore, open_sqlite
from ..vocab import Right
from ..wire.connection_string import ConnectionString, format_connection_string
from .exits import ExitCode, StartupError
from .options import connection_options, find_connection_string, load_settings, store_options, trust

__all__ = [
    "Address",
    "Definitions",
    "EntityView",
    "KeysView",
    "Where",
    "Which",
    "address_of",
    "open_definitions",
    "where_options",
]

Which: TypeAlias = Literal["primary", "secondary"]

NAMESPACE_IS_LOCAL: Final = (
    "The rules of a namespace cannot be reached over the network: run this on the relay's machine with --local, or name"
    " a hybrid connection with --entity."
)


@dataclass(frozen=True, slots=True)
class Switches:
    """What a hybrid connection lets through and how; None leaves a switch as it is, or at its default.

    Attributes:
      websocket, http: whether it takes senders of this kind.
      raw_target: whether listeners get the path of an HTTP request as it was sent, its blanks escaped.
    """

    websocket: bool | None = None
    http: bool | None = None
    raw_target: bool | None = None

    @property
    def is_any_given(self) -> bool:
        """Whether one of them is to be set."""
        return any(value is not None for value in dataclasses.astuple(self))


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients reach a relay, as it stands in connection strings. ``is_emulator``: without TLS."""

    host: str
    port: int | None
    is_emulator: bool


@dataclass(frozen=True, slots=True)
class EntityView:
    """A hybrid connection to show. None: not known from here."""

    path: str
    requires_client_authorization: bool
    user_metadata: str | None
    websocket: bool | None
    http: bool | None
    raw_target: bool | None
    listener_count: int | None
    created_at: datetime | None
    updated_at: datetime | None
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def as_json(self) -> dict[str, object]:
        """What there is to know, under the names of the store."""
        known: dict[str, object] = {
            "path": self.path,
            "requires_client_authorization": self.requires_client_authorization,
            "user_metadata": self.user_metadata,
            "websocket": self.websocket,
            "http": self.http,
            "raw_target": self.raw_target,
            "listener_count": self.listener_count,
            "created_at": _iso(self.created_at),
            "updated_at": _iso(self.updated_at),
            "rules": [{"name": name, "rights": list(rights)} for name, rights in self.rules],
        }
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class KeysView:
    """A rule with its keys; ``entity_path`` is None for a rule of the namespace."""

    rule: str
    rights: tuple[str, ...]
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    entity_path: str | None

    def connection_string(self, address: Address, which: Which) -> str:
        """In the order of management contract 3.5."""
        return format_connection_string(
            address.host,
            self.rule,
            self.primary_key if which == "primary" else self.secondary_key,
            port=address.port,
            entity_path=self.entity_path,
            is_emulator=address.is_emulator,
        )

    def as_json(self, address: Address) -> dict[str, object]:
        """The answer of ``listKeys`` (management contract 3.5), and the rights."""
        return {
            "primaryConnectionString": self.connection_string(address, "primary"),
            "secondaryConnectionString": self.connection_string(address, "secondary"),
            "primaryKey": self.primary_key,
            "secondaryKey": self.secondary_key,
            "keyName": self.rule,
            "rights": list(self.rights),
        }


class Definitions(ABC):
    """What commands do to definitions. All raise the errors of the store, or of the management client.

    Attributes:
      address: where clients reach the relay, for connection strings.
    """

    address: Address

    @abstractmethod
    async def list_entities(self) -> list[EntityView]:
        """All hybrid connections by name."""

    @abstractmethod
    async def get_entity(self, path: str) -> EntityView:
        """One hybrid connection; ``EndpointNotFound`` where there is none."""

    @abstractmethod
    async def create_entity(
        self, path: str, *, anonymous: bool, user_metadata: str | None, switches: Switches
    ) -> EntityView:
        """Make one; ``EndpointAlreadyExists`` where the name is taken."""

    @abstractmethod
    async def update_entity(self, path: str, *, user_metadata: str | Keep | None, switches: Switches) -> EntityView:
        """Change what is given."""

    @abstractmethod
    async def delete_entity(self, path: str) -> None:
        """Take one away; ``EndpointNotFound`` where there is none."""

    @abstractmethod
    async def list_keys(self, entity_path: str | None) -> list[KeysView]:
        """The rules of a hybrid connection, or of the namespace (None)."""

    @abstractmethod
    async def create_rule(self, entity_path: str | None, name: str, rights: Iterable[Right]) -> KeysView:
        """Make a rule, or give an existing one these rights; its keys stay."""

    @abstractmethod
    async def regenerate_key(self, entity_path: str | None, name: str, which: Which) -> KeysView:
        """Make one of a rule's keys anew."""

    @abstractmethod
    async def delete_rule(self, entity_path: str | None, name: str) -> None:
        """Take a rule away; ``EndpointNotFound`` where there is none."""


def _rule_not_found(name: str, entity_path: str | None) -> EndpointNotFound:
    return EndpointNotFound(f"There is no rule {name!r} on {entity_path or 'the namespace'}")


# Local ---------------------------------------------------------------------------------------------------------------


class LocalDefinitions(Definitions):
    """On an open store."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self._name = config.namespace.name
        self.address = address_of(config, config.server.port)

    @property
    def _namespace(self) -> Namespace:
        namespace = self._store.snapshot.get_namespace(self._name)
        assert namespace is not None  # open_definitions made sure
        return namespace

    def _entity(self, path: str) -> HybridConnection:
        entity = self._namespace.get_entity(path)
        if entity is None:
            raise endpoint_not_found(path)
        return entity

    def _known(self, entity_path: str | None) -> str | None:
        """The path as it was created, which is how connection strings show it."""
        return None if entity_path is None else self._entity(entity_path).path

    async def list_entities(self) -> list[EntityView]:
        entities = self._namespace.entities
        return [_local_view(entities[key]) for key in sorted(entities)]

    async def get_entity(self, path: str) -> EntityView:
        return _local_view(self._entity(path))

    async def create_entity(
        self, path: str, *, anonymous: bool, user_metadata: str | None, switches: Switches
    ) -> EntityView:
        created = await self._store.create_entity(
            self._name,
            path,
            requires_client_authorization=not anonymous,
            user_metadata=user_metadata,
            websocket=switches.websocket is not False,
            http=switches.http is not False,
            raw_target=bool(switches.raw_target),
        )
        return _local_view(created)

    async def update_entity(self, path: str, *, user_metadata: str | Keep | None, switches: Switches) -> EntityView:
        updated = await self._store.update_entity(
            self._name, path, user_metadata=user_metadata, **dataclasses.asdict(switches)
        )
        return _local_view(updated)

    async def delete_entity(self, path: str) -> None:
        if not await self._store.delete_entity(self._name, path):
            raise endpoint_not_found(path)

    async def list_keys(self, entity_path: str | None) -> list[KeysView]:
        if entity_path is None:
            return [_local_keys(rule, None) for rule in self._namespace.rules]
        entity = self._entity(entity_path)
        return [_local_keys(rule, entity.path) for rule in entity.rules]

    async def create_rule(self, entity_path: str | None, name: str, rights: Iterable[Right]) -> KeysView:
        path = self._known(entity_path)
        return _local_keys(await self._store.put_rule(self._name, path, name, rights), path)

    async def regenerate_key(self, entity_path: str | None, name: str, which: Which) -> KeysView:
        path = self._known(entity_path)
        return _local_keys(await self._store.regenerate_key(self._name, path, name, which), path)

    async def delete_rule(self, entity_path: str | None, name: str) -> None:
        if not await self._store.delete_rule(self._name, entity_path, name):
            raise _rule_not_found(name, entity_path)


def _local_view(entity: HybridConnection) -> EntityView:
    return EntityView(
        path=entity.path,
        requires_client_authorization=entity.requires_client_authorization,
        user_metadata=entity.user_metadata,
        websocket=entity.websocket,
        http=entity.http,
        raw_target=entity.raw_target,
        listener_count=None,  # presence is known to the running relay only
        created_at=entity.created_at,
        updated_at=entity.updated_at,
        rules=tuple((rule.name, _names(rule.rights)) for rule in entity.rules),
    )


def _local_keys(rule: AuthorizationRule, entity_path: str | None) -> KeysView:
    return KeysView(rule.name, _names(rule.rights), rule.primary_key, rule.secondary_key, entity_path)


# Remote --------------------------------------------------------------------------------------------------------------


class RemoteDefinitions(Definitions):
    """Behind a relay, over its Atom surface."""

    def __init__(self, client: ManagementClient, connection: ConnectionString) -> None:
        self._client = client
        self.address = Address(connection.host, connection.port, connection.is_emulator)

    async def list_entities(self) -> list[EntityView]:
        return [_remote_view(entity) for entity in await self._client.list_entities()]

    async def get_entity(self, path: str) -> EntityView:
        return _remote_view(await self._client.get_entity(path))

    async def create_entity(
        self, path: str, *, anonymous: bool, user_metadata: str | None, switches: Switches
    ) -> EntityView:
        _refuse_switches(switches)
        created = await self._client.create_entity(
            path, requires_client_authorization=not anonymous, user_metadata=user_metadata
        )
        return _remote_view(created)

    async def update_entity(self, path: str, *, user_metadata: str | Keep | None, switches: Switches) -> EntityView:
        _refuse_switches(switches)
        entity = await self._client.get_entity(path)
        text = entity.user_metadata if isinstance(user_metadata, Keep) else user_metadata
        return _remote_view(await self._client.update_entity(entity, user_metadata=text))

    async def delete_entity(self, path: str) -> None:
        await self._client.delete_entity(path)

    async def list_keys(self, entity_path: str | None) -> list[KeysView]:
        entity = await self._entity(entity_path)
        return [_remote_keys(rule, entity.path) for rule in entity.rules]

    async def create_rule(self, entity_path: str | None, name: str, rights: Iterable[Right]) -> KeysView:
        entity = await self._entity(entity_path)
        rule = Rule(name, rights_in_order(rights))
        return await self._replace(entity, name, [*_without(entity, name), rule])

    async def regenerate_key(self, entity_path: str | None, name: str, which: Which) -> KeysView:
        entity = await self._entity(entity_path)
        rule = entity.find_rule(name)
        if rule is None:
            raise _rule_not_found(name, entity.path)
        key = new_key()
        primary, secondary = (key, rule.secondary_key) if which == "primary" else (rule.primary_key, key)
        return await self._replace(
            entity, name, [*_without(entity, name), Rule(rule.name, rule.rights, primary, secondary)]
        )

    async def delete_rule(self, entity_path: str | None, name: str) -> None:
        entity = await self._entity(entity_path)
        rest = _without(entity, name)
        if len(rest) == len(entity.rules):
            raise _rule_not_found(name, entity.path)
        if not rest:
            raise Refused(
                f"{name!r} is the last rule of {entity.path}, and the network surface cannot take away the last one:"
                " run this on the relay's machine with --local"
            )
        await self._client.update_entity(entity, user_metadata=entity.user_metadata, rules=rest)

    async def _entity(self, entity_path: str | None) -> Entity:
        if entity_path is None:
            raise click.UsageError(NAMESPACE_IS_LOCAL)
        return await self._client.get_entity(entity_path)

    async def _replace(self, entity: Entity, name: str, rules: list[Rule]) -> KeysView:
        changed = await self._client.update_entity(entity, user_metadata=entity.user_metadata, rules=rules)
        rule = changed.find_rule(name)
        if rule is None:
            raise _rule_not_found(name, entity.path)
        return _remote_keys(rule, changed.path)


def _without(entity: Entity, name: str) -> list[Rule]:
    return [rule for rule in entity.rules if rule.name.lower() != name.lower()]


def _refuse_switches(switches: Switches) -> None:
    if switches.is_any_given:
        raise click.UsageError(
            "--[no-]websocket, --[no-]http and --[no-]raw-target cannot be set over the network: run this on the"
            " relay's machine with --local."
        )


def _remote_view(entity: Entity) -> EntityView:
    return EntityView(
        path=entity.path,
        requires_client_authorization=entity.requires_client_authorization,
        user_metadata=entity.user_metadata,
        websocket=None,
        http=None,
        raw_target=None,
        listener_count=entity.listener_count,
        created_at=entity.created_at,
        updated_at=entity.updated_at,
        rules=tuple((rule.name, _names(rule.rights)) for rule in entity.rules),
    )


def _remote_keys(rule: Rule, entity_path: str) -> KeysView:
    return KeysView(rule.name, _names(rule.rights), rule.primary_key or "", rule.secondary_key or "", entity_path)


# Which of the two ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """What the options of a command say about the place of the definitions."""

    store: str | None
    config_file: Path | None
    local: bool
    connection_string_file: str | None
    connection_string_dash: str | None
    cafile: Path | None


def where_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the definitions are; the command gets them as ``where``."""

    @functools.wraps(function)
    def with_where(
        *args: object,
        store: str | None,
        config_file: Path | None,
        local: bool,
        connection_string_file: str | None,
        connection_string_dash: str | None,
        cafile: Path | None,
        **others: object,
    ) -> None:
        where = Where(store, config_file, local, connection_string_file, connection_string_dash, cafile)
        function(*args, where=where, **others)

    return store_options(connection_options(with_where))


@asynccontextmanager
async def open_definitions(where: Where, *, may_create_store: bool = False) -> AsyncIterator[Definitions]:
    """The definitions that the options and the environment choose.

    A named source of a connection string goes before everything; then ``--local``, ``--store`` or ``--config``; then
    the environment's connection string; then the local store.

    Raises:
      ConfigError: a setting or the connection string is wrong, the store cannot be opened, or there is none yet and
        the command only reads.
    """
    is_named = where.connection_string_file is not None or where.connection_string_dash is not None
    is_local = where.local or where.store is not None or where.config_file is not None
    if is_named and is_local:
        raise click.UsageError("--local, --store and --config exclude a connection string: which one is meant?")
    connection = None
    if not is_local:
        connection = find_connection_string(where.connection_string_file, where.connection_string_dash)
    if connection is not None:
        yield RemoteDefinitions(ManagementClient(connection, ssl_context=trust(where.cafile)), connection)
        return
    config = load_settings(where.config_file, {"store.path": where.store})
    path = store_path(config)
    if not may_create_store and not await trio.Path(path).exists():
        raise StartupError(f"there is no store at {path} yet; relaycore serve makes one", ExitCode.NOT_FOUND)
    async with await open_store(config) as store:
        yield LocalDefinitions(store, config)


def store_path(config: Config) -> str:
    """The store file of these settings."""
    return config.store.path or str(default_store_path())


async def open_store(config: Config) -> SqliteStore:
    """Open the store of these settings, or make it, with the namespace in it.

    Raises:
      StartupError: it is held by another process, or cannot be used.
    """
    path = store_path(config)
    try:
        store = await open_sqlite(
            path,
            entities_per_namespace=config.limits.entities_per_namespace,
            rules_per_level=config.limits.rules_per_level,
        )
    except ServerBusy as error:
        raise _cannot_use(path, error) from error
    except ConfigError as error:
        raise StartupError(str(error), ExitCode.STORE_UNUSABLE) from error
    async with AsyncExitStack() as until_it_is_usable:
        until_it_is_usable.push_async_callback(store.aclose)
        try:
            await store.ensure_namespace(config.namespace.name, config.namespace.hosts or None)
        except ServerBusy as error:
            raise _cannot_use(path, error) from error
        until_it_is_usable.pop_all()
    return store


def _cannot_use(path: str, error: ServerBusy) -> StartupError:
    """For whoever starts a relay: another process has the store, or waiting will not help, as with a full disk."""
    code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_BUSY) & 0xFF  # the rest is its variety
    is_held = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return StartupError(f"{path}: {error.message}", ExitCode.STORE_LOCKED if is_held else ExitCode.STORE_UNUSABLE)


_WILDCARDS: Final = ("0.0.0.0", "::", "")


def address_of(config: Config, port: int) -> Address:
    """Where clients reach a relay with these settings, as far as the settings tell.

    Args:
      port: the port in use, which differs from the setting when that is 0.
    """
    public = config.server.public_url
    if public is not None:
        parts = urlsplit(public)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        return Address(host, parts.port, is_emulator=parts.scheme == "ws")
    is_tls = config.tls.cert is not None
    if config.namespace.hosts:
        host = config.namespace.hosts[0]
    elif config.server.host in _WILDCARDS:
        host = "localhost" if is_tls else "127.0.0.1"
    else:
        # Certificates name hosts: over TLS, the name of the loopback address is more likely to be in one.
        host = "localhost" if is_tls and config.server.host in ("127.0.0.1", "::1") else config.server.host
    return Address(f"[{host}]" if ":" in host and not host.startswith("[") else host, port, is_emulator=not is_tls)


def _names(rights: Iterable[Right]) -> tuple[str, ...]:
    return tuple(right.value for right in rights_in_order(rights))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
