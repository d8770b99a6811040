"""What all connections of one server share, and the few helpers that need all of it."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ..broker.auth import Authorizer, Credential, Grant, find_credential
from ..broker.exchange import RequestIds
from ..broker.model import HybridConnection, Namespace, endpoint_not_found, host_name
from ..broker.quota import ByteBudget, ConnectionLease, ConnectionQuota, SourceLimiter, source_key
from ..broker.registry import Registry
from ..broker.rendezvous import RendezvousTable
from ..config import Config
from ..errors import EndpointNotFound, ServerBusy
from ..net.direct import ReadingScope
from ..net.linger import cut
from ..net.mover import Mover
from ..net.pool import BufferPool
from ..net.session import EndReason, SessionResult
from ..net.websocket import WebSocketLeg
from ..store.base import Store
from ..trace import INTERNAL_ERROR, Trace
from ..vocab import RefusalReason, Right, TrackingId
from ..wire.http1 import Headers, RequestHead
from ..wire.messages import RemoteEndpoint
from ..wire.status import close_reason, make_tracking_id, refusal_reason_phrase
from .exchange import Exchange
from .waiter import Patience

if TYPE_CHECKING:
    from ..net.engine import Engine
    from .control_channel import ControlChannel
    from .relay_stream import LiveSession
    from .waiter import StreamWaiter

__all__ = ["SHUTDOWN_TEXT", "Gateway", "Peer", "deleted_text", "shutting_down"]

_GUID_RANDOM = ~(0xF << 76 | 0x3 << 62)
_GUID_VERSION = 0x4 << 76 | 0x2 << 62
"""The bits of a random GUID that are not random, and their values."""

_HELD_BACK_PER_SOURCE = 64
_HELD_BACK = 1_024
"""Connections that wait to be cut; a task and a descriptor each."""

_IDLE_CHECK_INTERVAL = 0.2
"""Seconds between two looks at the connections that wait for a request, and so how late one may end."""

_SLEEP = 0.05
"""Seconds that a relayed request waits before its sender is watched; its leaving is noticed within twice that."""

_TRIO_BUFFER_BYTES: Final = 65_536
"""Most that a session moved by Trio takes at a time: between two receives of one, all others have their turn."""

SHUTDOWN_TEXT: Final = "The relay is shutting down"


def deleted_text(path: str) -> str:
    """What the Close says to those who were at a hybrid connection that is no more."""
    return f"The endpoint was deleted: {path}"


def shutting_down() -> ServerBusy:
    """The refusal for whoever comes, or still waits, when the server has begun to stop."""
    return ServerBusy(SHUTDOWN_TEXT, reason=RefusalReason.SHUTTING_DOWN)


@dataclass(slots=True)
class Peer:
    """One accepted connection.

    Attributes:
      stream: plain TCP or TLS; belongs to the connection's task until ``is_detached``.
      remote: where the peer calls from, as the listener is told.
      is_tls: whether the stream is encrypted, which decides the scheme of rendezvous addresses.
      is_answered: a 101 is on its way, so no other answer may follow.
      is_detached: the stream has gone to another owner, who closes it.
      lease: what it counts for in its namespace once it is a session; released with the connection.
      session_id: tracking id of that session.
    """

    stream: trio.abc.Stream
    remote: RemoteEndpoint
    is_tls: bool
    is_answered: bool = False
    is_detached: bool = False
    lease: ConnectionLease | None = None
    session_id: str = ""


class Gateway:
    """State of one running relay. Used from its Trio thread only; no method blocks or is a checkpoint."""

    def __init__(
        self,
        config: Config,
        store: Store,
        trace: Trace,
        *,
        engine: Engine | None = None,
        now_unix: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        limits = config.limits
        # Static after construction.
        self.config = config
        self.store = store
        self.trace = trace
        self.now_unix = now_unix
        self.rng = rng or random.Random()
        self.pool = BufferPool(
            buffers=limits.pool_buffers, buffer_bytes=min(limits.pool_buffer_bytes, _TRIO_BUFFER_BYTES)
        )
        self.engine = engine
        self.mover = Mover(self.pool, engine)
        # The books.
        self.authorizer = Authorizer()
        self.registry = Registry(max_per_entity=limits.listeners_per_entity)
        self.rendezvous = RendezvousTable()
        self.connections = ConnectionQuota(limit=limits.connections_per_namespace)
        self.http_buffers = ByteBudget(limits.http_buffer_bytes)
        self.limiter = SourceLimiter(
            limits.refusals_per_second_per_source,
            limits.refusals_burst,
            max_delay_s=config.timeouts.refusal_delay,
        )
        # Who is here now; each task enters and leaves by itself.
        self.channels: set[ControlChannel] = set()
        self.sessions: set[LiveSession] = set()
        self.waiters: set[StreamWaiter] = set()
        self.exchanges: set[Exchange] = set()
        self.request_ids = RequestIds()
        self.patience = Patience(_SLEEP)
        self.open_connections = 0
        self.connection_ended = trio.lowlevel.ParkingLot()
        self.is_stopping = False
        self._background: trio.Nursery | None = None
        self._idle: dict[trio.CancelScope | ReadingScope, float] = {}
        self._held_back: Counter[str] = Counter()
        # Counters since the start.
        self.sessions_by_reason = dict.fromkeys(EndReason, 0)
        self.bytes_to_listener = 0
        self.bytes_to_sender = 0
        self.requests_answered = 0
        self.requests_failed = 0
        self.refusals_by_reason: Counter[RefusalReason] = Counter()

    def new_guid(self) -> str:
        """A fresh random GUID, lower case (RFC 9562 5.4)."""
        # A third of what uuid.uuid4 takes, and every request wants one.
        text = f"{int.from_bytes(os.urandom(16), 'big') & _GUID_RANDOM | _GUID_VERSION:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def new_secret(self) -> str:
        """192 random bits in characters that stand unescaped in a URL: what a rendezvous address rests on (5.4)."""
        return secrets.token_urlsafe(24)

    def tracking_id(self, client_id: str | None = None) -> TrackingId:
        """The id of one client's attempt: its own GUID where it sent one (12)."""
        return make_tracking_id(client_id, self.new_guid())

    def request_id(self, client_id: str | None) -> TrackingId:
        """The id of a relayed request: as `tracking_id`, unless another request has the sender's id, or had it."""
        id = self.tracking_id(client_id)
        if not self.request_ids.is_free(id):
            id = self.tracking_id()
        self.request_ids.take(id)
        return id

    def namespace_for(self, head: RequestHead) -> Namespace:
        """The namespace that the client called by its ``Host``.

        Raises:
          EndpointNotFound: no namespace of this relay has that name.
        """
        host = head.host or ""
        namespace = self.store.snapshot.find_namespace(host)
        if namespace is None:
            raise EndpointNotFound(f"Endpoint does not exist: this relay has no namespace called {host_name(host)}")
        return namespace

    def is_current(self, namespace: str, entity: HybridConnection) -> bool:
        """Whether a hybrid connection is still there, and not another one of its name."""
        found = self.store.snapshot.get_namespace(namespace)
        now = found.get_entity(entity.path) if found is not None else None
        return now is not None and now.created_at == entity.created_at

    def authorize(
        self,
        namespace: Namespace,
        entity: HybridConnection | None,
        path: str,
        right: Right | None,
        headers: Headers,
        query_token: str | None,
        *,
        may_use_authorization: bool = True,
    ) -> tuple[Grant, Credential | None]:
        """Look for a credential and check it; see :meth:`relaycore.broker.auth.Authorizer.check` for what is raised."""
        credential = find_credential(query_token, headers.get, may_use_authorization=may_use_authorization)
        grant = self.authorizer.check(
            namespace,
            entity,
            path,
            right,
            credential,
            self.now_unix(),
            allowance_s=self.config.timeouts.token_allowance,
        )
        return grant, credential

    def admit_sender(
        self,
        head: RequestHead,
        path: str,
        token: str | None,
        *,
        refuse_switched_off: Callable[[HybridConnection], None],
    ) -> tuple[Namespace, HybridConnection, Grant, str | None]:
        """Find the hybrid connection that a sender means, and check that it may send there.

        Args:
          path, token: decoded path, and token of the query, if any.
          refuse_switched_off: raises where the hybrid connection takes no sender of this kind.

        Returns: where it goes, by which rule, and the header that held its credential, if one did.

        Raises:
          EndpointNotFound: no such namespace or hybrid connection.
          AuthorizationFailed: as `authorize`.
        """
        namespace = self.namespace_for(head)
        found = namespace.find_entity(path)
        if found is None:
            raise endpoint_not_found(path)
        entity, _ = found
        refuse_switched_off(entity)
        grant, credential = self.authorize(
            namespace,
            entity,
            path,
            Right.SEND,
            head.headers,
            token,
            may_use_authorization=entity.requires_client_authorization,
        )
        return namespace, entity, grant, credential.source if credential is not None else None

    def public_url(self, head: RequestHead, peer: Peer) -> str:
        """Scheme, host and port by which this client reached us: the base of rendezvous addresses for it (7.1)."""
        if self.config.server.public_url is not None:
            return self.config.server.public_url.rstrip("/")
        return f"{'wss' if peer.is_tls else 'ws'}://{head.host}"

    @contextmanager
    def counted_connection(self) -> Iterator[None]:
        """Count a connection as open for as long as the block lasts."""
        self.open_connections += 1
        try:
            yield
        finally:
            self.open_connections -= 1
            self.connection_ended.unpark_all()

    def use_background(self, nursery: trio.Nursery) -> None:
        """Name the nursery in which farewells run; it is the server's own."""
        self._background = nursery

    def close_soon(self, stream: trio.abc.Stream, farewell: bytes) -> None:
        """Send ``farewell`` and close a stream that nobody waits for any more, within ``timeouts.close``."""
        assert self._background is not None
        self._background.start_soon(self._contain, self._say_goodbye, stream, farewell)

    def part_soon(self, leg: WebSocketLeg, code: int, text: str, tracking_id: str) -> None:
        """Close a leg with a code of ours, within ``timeouts.close``, while nobody waits for it."""
        assert self._background is not None
        self._background.start_soon(self._contain, self._part, leg, code, self.close_reason(text, tracking_id))

    async def _contain(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """What goes wrong with one connection must not end the server's nursery."""
        try:
            await task(*arguments)
        except Exception as error:
            self.trace.emit(INTERNAL_ERROR, message=f"{type(error).__name__}: {error}", exc_info=error)

    async def _part(self, leg: WebSocketLeg, code: int, reason: str) -> None:
        with self.counted_connection():
            await leg.close(code, reason, close_timeout=self.config.timeouts.close)

    async def _say_goodbye(self, stream: trio.abc.Stream, farewell: bytes) -> None:
        try:
            with trio.move_on_after(self.config.timeouts.close):
                await stream.send_all(farewell)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await cut(stream)  # noqa: ASYNC102 - shields itself

    def begin_idle(self, scope: trio.CancelScope | ReadingScope, deadline: float) -> None:
        """From now on ``scope`` waits for a request: it ends soon after ``deadline``, or when the server stops.

        Called again, it gets another deadline.
        """
        self._idle[scope] = deadline
        if self.is_stopping:
            scope.cancel()

    def end_idle(self, scope: trio.CancelScope | ReadingScope) -> None:
        """Its request has come; it may take its time."""
        self._idle.pop(scope, None)

    async def watch_idle(self) -> None:
        """End those that have waited for too long, until cancelled.

        A look at all of them every now and then; to have Trio know each deadline would cost every request two changes
        of it.
        """
        while True:
            await trio.sleep(_IDLE_CHECK_INTERVAL)
            now = trio.current_time()
            for scope in [scope for scope, deadline in self._idle.items() if deadline <= now]:
                scope.cancel()

    @contextmanager
    def idle_until(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A scope for waiting for a handshake: ends at ``deadline``, or when the server stops."""
        with trio.CancelScope(deadline=deadline) as scope:
            self.begin_idle(scope, deadline)
            try:
                yield scope
            finally:
                self.end_idle(scope)

    async def hold_back(self, source: str) -> None:
        """Let a connection that gets no answer wait, if not too many of its source do.

        A client that tries again as soon as it is cut would make thousands of attempts a second; one that is held has
        to wait. Beyond the bound it is cut at once all the same, so that the held ones stay few.
        """
        key = source_key(source)
        if self._held_back[key] >= _HELD_BACK_PER_SOURCE or self._held_back.total() >= _HELD_BACK:
            await trio.lowlevel.checkpoint()
            return
        self._held_back[key] += 1
        try:
            await trio.sleep(self.config.timeouts.refusal_delay)
        finally:
            self._held_back[key] -= 1
            if not self._held_back[key]:
                del self._held_back[key]

    def end_idle_connections(self) -> None:
        """Wake every connection that waits for a request; each then ends."""
        for scope in list(self._idle):
            scope.cancel()

    def count_session(self, result: SessionResult) -> None:
        """Add a session that has ended to the counters."""
        self.sessions_by_reason[result.reason] += 1
        self.bytes_to_listener += result.statistics.to_listener.payload_bytes
        self.bytes_to_sender += result.statistics.to_sender.payload_bytes

    def system_tracker(self, head: RequestHead | None, path: str | None) -> str:
        """``sb://NAMESPACE/ENTITY`` of a refusal (12)."""
        host = (head.host if head is not None else None) or self.config.namespace.name
        return f"sb://{host}/{path or ''}"

    def reason_phrase(self, message: str, tracking_id: str, tracker: str) -> str:
        """A refusal's reason phrase in the form of section 12."""
        return refusal_reason_phrase(message, tracking_id, tracker, self.now_unix())

    def close_reason(self, text: str, tracking_id: str) -> str:
        """Reason of a Close that the relay makes (13)."""
        return close_reason(text, tracking_id).decode()
