"""What every gateway store offers, whatever it keeps its definitions in.

Reads never wait: :attr:`Store.snapshot` is a plain attribute holding frozen values. Writes are asynchronous, are
durable when they return, and by then the snapshot shows them and subscribers have been told.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, Literal, TypeAlias

import trio

from ..broker.model import AuthorizationRule, HybridConnection, Namespace, RuleDefinition, Snapshot, fold
from ..vocab import Right


class ChangeKind(enum.Enum):
    """What happened to a definition."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One definition that differs between two snapshots.

    ``entity_path`` (in the case of its creation) is ``None`` where the namespace itself changed. A change of a rule
    counts as an update of what the rule sits on. A hybrid connection that was deleted and created again between two
    looks is reported as deleted, then created: whoever was connected to the old one has lost it.
    """

    kind: ChangeKind
    namespace: str
    entity_path: str | None


class Keep(enum.Enum):
    """The value of an argument that stands for "leave it as it is", where ``None`` already means something."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP

Which: TypeAlias = Literal["primary", "secondary"]
"""One of the two keys of a rule."""


class Store(trio.abc.AsyncResource):
    """Definitions of namespaces, hybrid connections and rules; durable and versioned.

    Paths, rule names and namespace names compare without case and keep the case of their creation. All arguments
    are validated here (``Refused``, 400), so that no surface can let a bad definition in. Besides what each method
    lists, all writes raise:

      EndpointNotFound: the namespace or hybrid connection does not exist.
      ServerBusy: another process held the store for too long, or it cannot be written right now; nothing happened.
      ConfigError: the store is damaged, or a newer relaycore has taken it over.
      LocalProtocolError: the store is closed.

    Cancelling a write either prevents it or lets it finish; never anything between. Writes are done in the order
    of their calls.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._subscribers: dict[object, Callable[[Change], None]] = {}

    @property
    def snapshot(self) -> Snapshot:
        """Everything that is defined, as of the last write or poll. Never waits, never fails."""
        return self._snapshot

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Have ``callback`` told of each change, in the Trio thread, after :attr:`snapshot` shows it.

        The callback must not block. What it raises comes out of the write or poll that made the change (which stands
        nevertheless), after every other subscriber has been told.

        Returns: a function that ends the subscription; calling it again does nothing.
        """
        subscription = object()  # two subscriptions of one function are two
        self._subscribers[subscription] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(subscription, None)

        return unsubscribe

    def _publish(self, snapshot: Snapshot, changes: Iterable[Change]) -> None:
        self._snapshot = snapshot
        errors: list[Exception] = []
        for change in changes:
            for callback in tuple(self._subscribers.values()):
                try:
                    callback(change)
                except Exception as error:
                    errors.append(error)
        if errors:
            raise ExceptionGroup("subscribers of the store failed", errors)

    @abc.abstractmethod
    async def ensure_namespace(self, name: str, hosts: Iterable[str] | None = None) -> Namespace:
        """Create a namespace unless it is there, with ``RootManageSharedAccessKey`` and fresh keys.

        Args:
          name: its name.
          hosts: host names that lead to it; none of them (``()``) means any host name, which one namespace can
            have. ``None`` leaves the hosts of an existing namespace alone and gives a new one any host name.

        Raises:
          ConfigError: a host name, or "any host name", already leads to another namespace.
        """

    @abc.abstractmethod
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
        """Create a hybrid connection, without rules unless some are given.

        Raises:
          EndpointAlreadyExists: 409; this path, one that it would hide, or one that would hide it, is taken.
          QuotaExceeded: 409; too many hybrid connections in the namespace, or too many rules.

        Source: management contract 3.2, 9.
        """

    @abc.abstractmethod
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
        """Change what is given of a hybrid connection; an update that changes nothing leaves no trace.

        Args:
          requires_client_authorization: immutable, so anything but the present value is refused (400).
          user_metadata: the new text, ``None`` to clear it, or ``KEEP``.
          websocket, http, raw_target: ``None`` leaves them alone.
          rules: the whole new set; rules that stay keep every key that the definition does not name.
          if_updated_at: refuse (412) unless the hybrid connection was last updated then.

        Source: management contract 3.2, 7 (M04).
        """

    @abc.abstractmethod
    async def delete_entity(self, namespace: str, path: str) -> bool:
        """Delete a hybrid connection with its rules. Returns: whether it was there."""

    @abc.abstractmethod
    async def put_rule(
        self,
        namespace: str,
        entity_path: str | None,
        name: str,
        rights: Iterable[Right | str],
        primary_key: str | None = None,
        secondary_key: str | None = None,
    ) -> AuthorizationRule:
        """Create a rule, or give an existing one these rights. Keys that are not given are made, or kept.

        Args:
          entity_path: where the rule sits; ``None`` is the namespace.

        Raises:
          QuotaExceeded: 409; too many rules on this level.

        Source: management contract 3.4.
        """

    @abc.abstractmethod
    async def delete_rule(self, namespace: str, entity_path: str | None, name: str) -> bool:
        """Delete a rule. Returns: whether it was there.

        Raises:
          Refused: 400; it is the namespace's ``RootManageSharedAccessKey`` and no other rule there has ``Manage``.
        """

    @abc.abstractmethod
    async def regenerate_key(
        self, namespace: str, entity_path: str | None, rule: str, which: Which, key: str | None = None
    ) -> AuthorizationRule:
        """Give a rule a new key in one of its two places, ``key`` or a fresh one. The other place stays.

        Raises:
          EndpointNotFound: 404; also where the rule does not exist.
        """

    @abc.abstractmethod
    async def poll_external(self) -> bool:
        """Take in what another process has written since the last look. Returns: whether there was anything."""


def compare_snapshots(old: Snapshot, new: Snapshot) -> tuple[Change, ...]:
    """What differs from ``old`` to ``new``, deletions before creations and updates.

    Relies on what is unchanged being the same object in both, as stores promise of their snapshots; an equal copy
    counts as unchanged too. Rebuilt hybrid connections (other ``created_at``) count as deleted and created.
    """
    gone: list[Change] = []
    come: list[Change] = []
    before = {fold(namespace.name): namespace for namespace in old.namespaces}
    for namespace in new.namespaces:
        former = before.pop(fold(namespace.name), None)
        if former is namespace:
            continue
        if former is None:
            come.append(Change(ChangeKind.CREATED, namespace.name, None))
        elif (former.name, former.hosts, former.rules) != (namespace.name, namespace.hosts, namespace.rules):
            come.append(Change(ChangeKind.UPDATED, namespace.name, None))
        _compare_entities(former, namespace, gone, come)
    for former in before.values():
        gone.extend(Change(ChangeKind.DELETED, former.name, entity.path) for entity in former.entities.values())
        gone.append(Change(ChangeKind.DELETED, former.name, None))
    return (*gone, *come)


def _compare_entities(former: Namespace | None, namespace: Namespace, gone: list[Change], come: list[Change]) -> None:
    old = former.entities if former is not None else {}
    new = namespace.entities
    if old is new:
        return
    # Ten thousand of them are walked for each change, so the walk itself is left to map and zip.
    for entity, other in zip(new.values(), map(old.get, new), strict=True):
        if other is entity:
            continue
        if other is None:
            come.append(Change(ChangeKind.CREATED, namespace.name, entity.path))
        elif other.created_at != entity.created_at:
            gone.append(Change(ChangeKind.DELETED, namespace.name, other.path))
            come.append(Change(ChangeKind.CREATED, namespace.name, entity.path))
        elif other != entity:
            come.append(Change(ChangeKind.UPDATED, namespace.name, entity.path))
    gone.extend(Change(ChangeKind.DELETED, namespace.name, old[key].path) for key in sorted(old.keys() - new.keys()))
