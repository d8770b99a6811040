"""Who listens where, and which of them gets the next sender.

**Two channels with one id.** A listener's id is the GUID of its ``sb-hc-id``. The SDKs make one per listener object and
present it again when they reconnect, so a second channel with the same id nearly always is the same listener, come back
after a loss that the relay has not noticed yet; half of its senders would then wait 30 s for a dead channel. Rarely it
is a second program with a copied id, and that one must not go deaf. So the newcomer takes the place of the older
channel, and the older one goes to a *reserve*: still registered, chosen only when nobody else is left, not counted.
Whoever hears from it again calls :meth:`Registry.confirm`, and it stands beside the newcomer as an equal.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Final, Protocol

from ..errors import LocalProtocolError, NoListener, QuotaExceeded
from ..vocab import ListenerId, RefusalReason
from ..wire import limits
from .model import fold

NO_LISTENER_TEXT: Final = "There are no listeners connected for the endpoint"
"""Wire contract 12: 404 to a WebSocket sender, 502 to an HTTP sender."""

FILTERED_TEXT: Final = "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
"""Wire contract 11: 404."""

ALLOWED_LISTENERS_HEADER: Final = "Microsoft-Relay-AllowedListeners"
DISALLOWED_LISTENERS_HEADER: Final = "Microsoft-Relay-DisallowedListeners"


def listener_id(text: str) -> ListenerId:
    """The id in ``text``, which may be a tracking id: lower case, without the ``_G0`` behind the GUID."""
    return ListenerId(fold(text.strip().partition("_")[0]))


class HeaderValues(Protocol):
    """What is needed of a request's headers."""

    def get_all(self, name: str, /) -> Iterable[str]:
        """Every value of a header, without regard to the case of its name."""


def parse_listener_filter(
    headers: HeaderValues,
) -> tuple[frozenset[ListenerId] | None, frozenset[ListenerId]]:
    """Read the two filter headers of a sender.

    Returns: ``(allowed, disallowed)``; ``allowed`` is ``None`` without such a header. One that names nobody allows
    nobody: a program that computed an empty list did not mean everyone.

    Source: wire contract 11.
    """
    allowed = _listed(headers.get_all(ALLOWED_LISTENERS_HEADER))
    disallowed = _listed(headers.get_all(DISALLOWED_LISTENERS_HEADER))
    return allowed, disallowed if disallowed is not None else frozenset()


def _listed(values: Iterable[str]) -> frozenset[ListenerId] | None:
    lines = tuple(values)
    if not lines:
        return None
    return frozenset(listener_id(item) for line in lines for item in line.split(",") if item.strip())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ListenerEntry:
    """One control channel. Two entries are the same only if they are the same object.

    ``id`` is from :func:`listener_id`. ``handle`` is whatever the gateway reaches the channel by. ``grant_expiry_unix``
    is that of the token the channel was opened with; renewals are the channel's own business.
    """

    id: ListenerId
    namespace: str
    entity_path: str
    handle: object = dataclasses.field(repr=False)
    grant_expiry_unix: float = math.inf


@dataclasses.dataclass(slots=True)
class _Post:
    """The listeners of one hybrid connection; exists only while it has any."""

    current: list[ListenerEntry] = dataclasses.field(default_factory=list)
    reserve: list[ListenerEntry] = dataclasses.field(default_factory=list)  # oldest first


_Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """Hybrid connections with listeners, the listeners that count, and those in reserve."""

    posts: int
    listeners: int
    reserve: int


class Registry:
    """The listeners of one gateway, by namespace and hybrid connection (names compare without case).

    Args:
      max_per_entity: listeners that one hybrid connection has at most. The reserve has the same bound.
    """

    def __init__(self, *, max_per_entity: int = limits.MAX_LISTENERS_PER_ENTITY) -> None:
        self._max_per_entity = max_per_entity
        self._posts: dict[_Key, _Post] = {}
        self._where: dict[ListenerEntry, _Key] = {}

    def register(self, namespace: str, entity_path: str, listener: ListenerEntry) -> tuple[ListenerEntry, ...]:
        """Take up a listener; from here on it can be chosen.

        Returns: the older channels with the same id, now in reserve (see the top of this module). Whoever owns them
        does well to ping them at once, and to :meth:`confirm` those that answer.

        Raises:
          QuotaExceeded: 403; the hybrid connection has as many listeners as it may have.
          LocalProtocolError: the entry is registered already.

        Source: wire contract 6.1, 15.
        """
        if listener in self._where:
            raise LocalProtocolError("this listener is registered already")
        key = _key(namespace, entity_path)
        post = self._posts.get(key) or _Post()
        doubtful = [entry for entry in post.current if entry.id == listener.id]
        stays = len(post.current) - len(doubtful)
        if stays >= self._max_per_entity or len(post.reserve) + len(doubtful) > self._max_per_entity:
            raise QuotaExceeded(
                f"ListenersPerEntity: the hybrid connection has its {self._max_per_entity} listeners, no more fit",
                http_status=403,
                reason=RefusalReason.LISTENER_QUOTA,
            )
        if doubtful:
            post.current[:] = [entry for entry in post.current if entry.id != listener.id]
            post.reserve.extend(doubtful)
        post.current.append(listener)
        self._posts[key] = post
        self._where[listener] = key
        return tuple(entry for entry in post.reserve if entry.id == listener.id)

    def find_overdue(self, namespace: str, entity_path: str, listener: ListenerEntry) -> ListenerEntry | None:
        """The channel that has to be closed before ``listener`` fits in; ``None`` when there is room in the reserve.

        It is the oldest of a full reserve: asked for a sign of life long ago, and nothing was heard from it. A listener
        behind a link that keeps breaking leaves one channel there each time, and must not lock itself out with them.
        """
        post = self._posts.get(_key(namespace, entity_path))
        if post is None or not post.reserve:
            return None
        doubtful = sum(entry.id == listener.id for entry in post.current)
        return post.reserve[0] if doubtful and len(post.reserve) + doubtful > self._max_per_entity else None

    def deregister(self, listener: ListenerEntry) -> bool:
        """Let a listener go; it is not chosen any more. Returns: whether it was there; a second time does nothing.

        Its place goes to the newest of the reserve with the same id, if there is one.

        Source: wire contract 6.1: before its Close is answered.
        """
        key = self._where.pop(listener, None)
        if key is None:
            return False
        post = self._posts[key]
        if listener in post.reserve:
            post.reserve.remove(listener)
        else:
            post.current.remove(listener)
            self._promote(post, listener.id)
        if not post.current and not post.reserve:
            del self._posts[key]
        return True

    def confirm(self, listener: ListenerEntry) -> bool:
        """Say that a listener in reserve is alive after all, so that it is chosen like any other.

        Returns: whether it stands among the equals now. ``False``: it is not registered, or the hybrid connection has
        as many listeners as it may have; then it stays where it is.
        """
        key = self._where.get(listener)
        if key is None:
            return False
        post = self._posts[key]
        if listener not in post.reserve:
            return True
        if len(post.current) >= self._max_per_entity:
            return False
        post.reserve.remove(listener)
        post.current.append(listener)
        return True

    def choose(
        self,
        namespace: str,
        entity_path: str,
        *,
        allowed: Container[ListenerId] | None = None,
        disallowed: Container[ListenerId] = (),
        excluded: Container[ListenerEntry] = (),
        rng: random.Random,
        no_listener_status: int = 404,
    ) -> ListenerEntry:
        """Choose a listener at random, from the reserve only when no other is left.

        Args:
          allowed, disallowed: from :func:`parse_listener_filter`.
          excluded: listeners that have been tried for this sender already.
          no_listener_status: 404, or 502 for an HTTP sender.

        Raises:
          NoListener: nobody listens there or everybody has been tried; or nobody passes the filter (404 always).

        Source: wire contract 11, 12.
        """
        post = self._posts.get(_key(namespace, entity_path))
        is_any_left = False
        for group in (post.current, post.reserve) if post is not None else ():
            left = [entry for entry in group if entry not in excluded]
            fitting = [e for e in left if (allowed is None or e.id in allowed) and e.id not in disallowed]
            if fitting:
                return rng.choice(fitting)
            is_any_left = is_any_left or bool(left)
        if is_any_left:
            raise NoListener(FILTERED_TEXT, http_status=404, reason=RefusalReason.LISTENER_FILTER)
        raise NoListener(NO_LISTENER_TEXT, http_status=no_listener_status, reason=RefusalReason.NO_LISTENER)

    def count(self, namespace: str, entity_path: str) -> int:
        """How many listeners a hybrid connection has; the reserve does not count."""
        post = self._posts.get(_key(namespace, entity_path))
        return len(post.current) if post is not None else 0

    def listeners(self, namespace: str, entity_path: str) -> Sequence[ListenerEntry]:
        """Every channel of a hybrid connection, the reserve included: what has to be closed when it is deleted."""
        post = self._posts.get(_key(namespace, entity_path))
        return (*post.current, *post.reserve) if post is not None else ()

    def all_listeners(self) -> Collection[ListenerEntry]:
        """Every channel of this gateway, as of now."""
        return tuple(self._where)

    def statistics(self) -> RegistryStatistics:
        """Counts as of now."""
        return RegistryStatistics(
            posts=len(self._posts),
            listeners=sum(len(post.current) for post in self._posts.values()),
            reserve=sum(len(post.reserve) for post in self._posts.values()),
        )

    def check_consistency(self) -> list[str]:
        """Recount the books. Returns: what is wrong, one sentence each; nothing when all is well."""
        wrong: list[str] = []
        seen: list[ListenerEntry] = []
        for key, post in self._posts.items():
            entries = [*post.current, *post.reserve]
            seen.extend(entries)
            if not entries:
                wrong.append(f"{key} is kept without a listener")
            if len(post.current) > self._max_per_entity or len(post.reserve) > self._max_per_entity:
                wrong.append(f"{key} has more listeners than it may have")
            wrong.extend(f"{entry} stands under {key}" for entry in entries if self._where.get(entry) != key)
            here = {entry.id for entry in post.current}
            wrong.extend(f"{entry} is in reserve for nobody" for entry in post.reserve if entry.id not in here)
        if len(seen) != len(set(seen)):
            wrong.append("a listener is registered twice")
        if set(seen) != set(self._where):
            wrong.append("the index names other listeners than the hybrid connections do")
        return wrong

    @staticmethod
    def _promote(post: _Post, id: ListenerId) -> None:
        if any(entry.id == id for entry in post.current):
            return
        for at in range(len(post.reserve) - 1, -1, -1):
            if post.reserve[at].id == id:
                post.current.append(post.reserve.pop(at))
                return


def _key(namespace: str, entity_path: str) -> _Key:
    return fold(namespace), fold(entity_path.strip("/"))
