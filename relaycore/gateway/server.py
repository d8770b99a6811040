"""The server: a tree of tasks, its start and its end.

::

    serve
    ├── store watcher          another process changed the definitions
    ├── session watcher        a sender went while its listener does not read, or the other way round
    ├── patience               looks after HTTP requests that are not answered at once
    ├── certificate watcher
    ├── accept loop            one per listening socket
    ├── engine                 threads of C that move joined sessions, and the task that hears of their ends
    └── connections            one task each: TLS, front door, and whatever that leads to
        └── sessions           none but the sender's connection; two tasks where Trio moves the bytes

Order of the end: stop accepting; close control channels and sessions with 1001 (wire contract 13); wait until the
connections have gone, at most the drain time; cut the rest; close the store.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sized
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import trio

from ..broker.model import Namespace, endpoint_not_found, fold
from ..config import Config, default_store_path
from ..errors import ConfigError, Refused
from ..net.accept import Listener, TlsContext, open_listeners
from ..net.engine import Engine, EngineStatistics, engine_is_available, open_engine
from ..net.linger import cut
from ..store.base import Change, ChangeKind, Store
from ..store.sqlite import open_sqlite
from ..trace import (
    CONNECTION_FAILED,
    ENTITY_CREATED,
    ENTITY_DELETED,
    ENTITY_UPDATED,
    INTERNAL_ERROR,
    SERVER_STARTED,
    SERVER_STOPPED,
    SERVER_STOPPING,
    TLS_RELOAD_FAILED,
    TLS_RELOADED,
    Trace,
)
from ..wire.messages import RemoteEndpoint
from .control_channel import ControlChannel
from .exchange import http_disabled
from .front_door import FrontDoor, remote_endpoint
from .relay_stream import websocket_disabled
from .state import SHUTDOWN_TEXT, Gateway, Peer, deleted_text, shutting_down
from .waiter import Waiter

__all__ = ["Server", "ServerStatistics", "serve", "tune_collector"]

_STORE_POLL_INTERVAL = 0.25
"""Seconds between two looks for changes by another process; one costs a ``PRAGMA`` in the store's thread."""

_STALL_CHECK_INTERVAL = 2.0
"""Seconds between two looks at sessions whose reader has stopped; one costs a system call for each of those."""

_ACCEPTS_PER_TURN = 32
"""Connections that are taken before the others have a turn; taking one costs some 50 microseconds."""

_GOING_AWAY = 1001


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What a server holds now and has done since its start.

    Attributes:
      open_connections: accepted TCP connections, whatever they are used for.
      listeners, sessions, waiting_senders: control channels, joined pairs, senders without a listener yet.
      buffers_in_use, buffers_peak, buffers_exhausted: receive buffers out now, at most, and how often none was left;
        those of the engine's threads together with Trio's.
      exchanges: relayed HTTP requests under way.
      requests_answered, requests_failed: ended ones that got a listener's whole answer, and those that did not.
      http_buffered_bytes, http_buffered_peak: bodies of such requests held in memory now, and at most so far.
      sessions_by_reason: ended sessions, by :class:`relaycore.net.session.EndReason`.
      refusals_by_reason: refusals, by :class:`relaycore.vocab.RefusalReason`.
      bytes_to_listener, bytes_to_sender: payload of ended sessions.
      engine: what the engine's threads have counted; None without an engine.
    """

    open_connections: int
    listeners: int
    sessions: int
    waiting_senders: int
    buffers_in_use: int
    buffers_peak: int
    buffers_exhausted: int
    exchanges: int
    requests_answered: int
    requests_failed: int
    http_buffered_bytes: int
    http_buffered_peak: int
    sessions_by_reason: dict[str, int]
    refusals_by_reason: dict[str, int]
    bytes_to_listener: int
    bytes_to_sender: int
    engine: EngineStatistics | None


def tune_collector() -> None:
    """Let the garbage collector leave alone what was loaded so far, and look for cycles less often.

    For processes whose only work is the relay. Its own objects form hardly any cycles; at the interpreter's thresholds
    the search for them takes a twentieth of the time of small HTTP requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


class Server:
    """A running relay, as :func:`serve` hands it out.

    Attributes:
      store: its definitions.
      addresses: ``(host, port)`` of each listening socket.
    """

    def __init__(self, gateway: Gateway, addresses: list[tuple[str, int]], tls: TlsContext | None) -> None:
        self._gateway = gateway
        self._tls = tls
        self.store = gateway.store
        self.addresses = addresses
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._drain_timeout = gateway.config.timeouts.drain

    @property
    def base_url(self) -> str:
        """``ws://HOST:PORT`` or ``wss://HOST:PORT`` of the first listening socket."""
        host, port = self.addresses[0]
        return f"{'ws' if self._tls is None else 'wss'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def namespace(self) -> Namespace:
        """The namespace that this relay serves, as it is defined at this moment."""
        namespace = self.store.snapshot.get_namespace(self._gateway.config.namespace.name)
        assert namespace is not None
        return namespace

    @property
    def is_tls(self) -> bool:
        """Whether the runtime port speaks TLS."""
        return self._tls is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the server has ended."""
        return self._stopped.is_set()

    def statistics(self) -> ServerStatistics:
        """Snapshot of the counters; not a checkpoint."""
        gateway = self._gateway
        pool = gateway.pool.statistics()
        engine = gateway.engine.statistics() if gateway.engine is not None else None
        return ServerStatistics(
            open_connections=gateway.open_connections,
            listeners=len(gateway.channels),
            sessions=len(gateway.sessions),
            waiting_senders=len(gateway.waiters),
            buffers_in_use=pool.in_use + (engine.buffers_in_use if engine else 0),
            buffers_peak=pool.peak + (engine.buffers_peak if engine else 0),
            buffers_exhausted=pool.exhausted + (engine.exhausted if engine else 0),
            exchanges=len(gateway.exchanges),
            requests_answered=gateway.requests_answered,
            requests_failed=gateway.requests_failed,
            http_buffered_bytes=gateway.http_buffers.held,
            http_buffered_peak=gateway.http_buffers.peak,
            sessions_by_reason={reason.value: count for reason, count in gateway.sessions_by_reason.items()},
            refusals_by_reason={reason.value: count for reason, count in gateway.refusals_by_reason.items()},
            bytes_to_listener=gateway.bytes_to_listener,
            bytes_to_sender=gateway.bytes_to_sender,
            engine=engine,
        )

    def check_consistency(self) -> list[str]:
        """Recount the books against each other.

        Returns: one sentence for each thing that does not fit; empty when all does. With nobody connected, this
        says that nothing was left behind.
        """
        gateway = self._gateway
        problems = [
            *gateway.registry.check_consistency(),
            *gateway.rendezvous.check_consistency(),
            *gateway.connections.check_consistency(),
            *gateway.http_buffers.check_consistency(),
            *(gateway.engine.check_consistency() if gateway.engine is not None else []),
        ]
        registered = {entry.handle for entry in gateway.registry.all_listeners()}
        live = {channel for channel in gateway.channels if channel.is_open}
        problems += [f"registered, but no such channel: {entry}" for entry in registered - live]
        problems += [f"channel {channel.tracking_id} is open, but not registered" for channel in live - registered]
        held = gateway.connections.count(gateway.config.namespace.name)
        served = len(gateway.sessions) + len(gateway.exchanges)
        if held < served:
            problems.append(f"{served} sessions and requests, but only {held} connections counted")
        addresses = gateway.rendezvous.statistics().waiting
        waiting = len(gateway.waiters) + len(gateway.exchanges)
        if addresses > waiting:
            problems.append(f"{addresses} open addresses for {waiting} waiting senders")
        in_use = self.statistics().buffers_in_use
        if in_use > 4 * len(gateway.sessions):
            problems.append(f"{in_use} buffers in use by {len(gateway.sessions)} sessions")
        if not gateway.open_connections:
            left: dict[str, Sized] = {
                "channels": gateway.channels,
                "sessions": gateway.sessions,
                "waiting senders": gateway.waiters,
                "requests": gateway.exchanges,
            }
            problems += [f"without a connection, {len(book)} {name} are left" for name, book in left.items() if book]
            if held or in_use:
                problems.append(f"without a connection, {held} are counted and {in_use} buffers are out")
            if len(gateway.request_ids):
                problems.append(f"without a connection, {len(gateway.request_ids)} request ids are in use")
            if gateway.http_buffers.held:
                problems.append(f"without a connection, {gateway.http_buffers.held} bytes of bodies are held")
        return problems

    async def reload_tls(self) -> None:
        """Load certificate and key anew for the handshakes to come; does nothing without TLS.

        Raises:
          ConfigError: they cannot be used; the old ones stay.
        """
        await trio.lowlevel.checkpoint()
        if self._tls is None:
            return
        try:
            self._tls.reload()
        except ConfigError as error:
            self._gateway.trace.emit(TLS_RELOAD_FAILED, message=str(error))
            raise
        self._gateway.trace.emit(TLS_RELOADED)

    async def stop(self, drain_timeout: float | None = None) -> None:
        """Stop in order, and wait until that is done.

        Args:
          drain_timeout: seconds that the peers have to go; ``timeouts.drain`` if not given. 0 cuts at once.
        """
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        self._stop.set()
        await self._stopped.wait()


async def serve(  # noqa: ASYNC128 - the task tree below tells
    config: Config,
    *,
    store: Store | None = None,
    trace: Trace | None = None,
    now_unix: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a relay until :meth:`Server.stop` or cancellation.

    Args:
      config: all settings; see :class:`relaycore.config.Config`.
      store: where the definitions are; the caller closes it. Without one, the SQLite file of the settings is opened.
      trace: where events go; a fresh one that logs, if not given.
      now_unix: the wall clock, which only tokens are measured by.
      task_status: gets the :class:`Server` when its sockets listen.

    Raises:
      ConfigError: an address cannot be bound, a certificate not be used, the store not be opened.
    """
    async with AsyncExitStack() as stack:
        if store is None:
            store = await open_sqlite(
                config.store.path or default_store_path(),
                entities_per_namespace=config.limits.entities_per_namespace,
                rules_per_level=config.limits.rules_per_level,
            )
            stack.push_async_callback(store.aclose)
        await store.ensure_namespace(config.namespace.name, config.namespace.hosts)
        tls = None
        if config.tls.cert is not None and config.tls.key is not None:
            tls = TlsContext(config.tls.cert, config.tls.key)
        listeners = await open_listeners(config.server.host, config.server.port, backlog=config.server.backlog)
        for listener in listeners:
            stack.push_async_callback(listener.aclose)
        engine = await stack.enter_async_context(_open_engine(config)) if _wants_engine(config) else None
        gateway = Gateway(config, store, trace or Trace(), engine=engine, now_unix=now_unix)
        addresses = [listener.address for listener in listeners]
        server = Server(gateway, addresses, tls)
        unsubscribe = store.subscribe(_ChangeWatcher(gateway).on_change)
        stack.callback(unsubscribe)
        await _Running(gateway, server, listeners, tls).run(task_status)


def _wants_engine(config: Config) -> bool:
    if config.engine.mover == "engine" and not engine_is_available():
        raise ConfigError("engine.mover is engine, but this system has no epoll; auto uses the engine where it can")
    return config.engine.mover != "trio" and engine_is_available()


def _open_engine(config: Config) -> AbstractAsyncContextManager[Engine]:
    return open_engine(
        threads=config.engine.threads,
        buffers=config.limits.pool_buffers,
        buffer_bytes=config.limits.pool_buffer_bytes,
    )


class _ChangeWatcher:
    """Brings changed definitions to those who live by them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def on_change(self, change: Change) -> None:
        """Called by the store on the Trio thread, behind each committed change."""
        event = {
            ChangeKind.CREATED: ENTITY_CREATED,
            ChangeKind.UPDATED: ENTITY_UPDATED,
            ChangeKind.DELETED: ENTITY_DELETED,
        }[change.kind]
        self._gateway.trace.emit(event, namespace=change.namespace, entity=change.entity_path or "")
        if change.kind is ChangeKind.DELETED and change.entity_path is not None:
            self._close_entity(change.namespace, change.entity_path)
        elif change.kind is ChangeKind.UPDATED and change.entity_path is not None:
            namespace = self._gateway.store.snapshot.get_namespace(change.namespace)
            entity = namespace.get_entity(change.entity_path) if namespace is not None else None
            if entity is not None and not entity.websocket:
                self._close_sessions(change.namespace, entity.path, websocket_disabled(entity.path).message)
            if entity is not None and not entity.http:
                self._refuse_requests(change.namespace, entity.path, http_disabled)

    def _close_entity(self, namespace: str, path: str) -> None:
        text = deleted_text(path)
        self._refuse_requests(namespace, path, endpoint_not_found)
        # The senders first: one that loses its channel would look for another listener, and be told that there is none.
        for pending in self._gateway.rendezvous.waiting(namespace, path):
            assert isinstance(pending.sender, Waiter)
            pending.sender.refuse(endpoint_not_found(path))
        for entry in self._gateway.registry.listeners(namespace, path):
            assert isinstance(entry.handle, ControlChannel)
            entry.handle.close_nowait(_GOING_AWAY, text)
        self._close_sessions(namespace, path, text)

    def _refuse_requests(self, namespace: str, path: str, refusal: Callable[[str], Refused]) -> None:
        for exchange in list(self._gateway.exchanges):
            if exchange.namespace == namespace and fold(exchange.entity_path) == fold(path):
                exchange.refuse(refusal(path))  # one for each: it will carry that sender's tracking id

    def _close_sessions(self, namespace: str, path: str, text: str) -> None:
        for live in list(self._gateway.sessions):
            if live.namespace == namespace and fold(live.entity_path) == fold(path):
                reason = self._gateway.close_reason(text, live.tracking_id)
                live.session.close_nowait(_GOING_AWAY, reason.encode())


class _Running:
    """The task tree of one server."""

    def __init__(self, gateway: Gateway, server: Server, listeners: list[Listener], tls: TlsContext | None) -> None:
        self._gateway = gateway
        self._server = server
        self._listeners = listeners
        self._tls = tls

    async def run(self, task_status: trio.TaskStatus[Server]) -> None:
        gateway, server = self._gateway, self._server
        started = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                gateway.use_background(nursery)
                accepting = await nursery.start(self._accept, nursery)
                nursery.start_soon(self._watch_store)
                nursery.start_soon(self._watch_sessions)
                nursery.start_soon(gateway.patience.run)
                nursery.start_soon(gateway.watch_idle)
                if self._tls is not None and gateway.config.tls.reload_interval:
                    nursery.start_soon(self._tls.watch, gateway.config.tls.reload_interval, self._on_tls_reload)
                gateway.trace.emit(
                    SERVER_STARTED,
                    addresses=",".join(f"{host}:{port}" for host, port in server.addresses),
                    tls=self._tls is not None,
                    namespace=gateway.config.namespace.name,
                )
                task_status.started(server)
                await server._stop.wait()
                accepting.cancel()
                await self._drain(server._drain_timeout)
                nursery.cancel_scope.cancel()
        finally:
            gateway.trace.emit(SERVER_STOPPED, seconds=round(trio.current_time() - started, 3))
            server._stopped.set()

    async def _drain(self, drain_timeout: float) -> None:
        gateway = self._gateway
        gateway.is_stopping = True
        gateway.trace.emit(
            SERVER_STOPPING, listeners=len(gateway.channels), sessions=len(gateway.sessions), drain=drain_timeout
        )
        for listener in self._listeners:
            await listener.aclose()
        if not drain_timeout:
            return
        for waiter in list(gateway.waiters):
            waiter.refuse(shutting_down())
        for exchange in list(gateway.exchanges):
            exchange.refuse(shutting_down())
        for channel in list(gateway.channels):
            channel.close_nowait(_GOING_AWAY, SHUTDOWN_TEXT)
        for live in list(gateway.sessions):
            live.session.close_nowait(_GOING_AWAY, gateway.close_reason(SHUTDOWN_TEXT, live.tracking_id).encode())
        gateway.end_idle_connections()
        with trio.move_on_after(drain_timeout):
            while gateway.open_connections:
                await self._gateway.connection_ended.park()

    # ------------------------------------------------------------------------------------------------------ connections

    async def _accept(self, connections: trio.Nursery, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(self._accept_from, listener, connections)
                task_status.started(scope)

    async def _accept_from(self, listener: Listener, connections: trio.Nursery) -> None:
        room = self._gateway.config.server.max_connections
        while True:
            while self._gateway.open_connections >= room:
                # At the bound nobody is accepted; the kernel's backlog holds those who come.
                await self._gateway.connection_ended.park()
            await listener.wait()
            try:
                # All that have come, in one turn; but those who are here have theirs, too.
                for _ in range(min(_ACCEPTS_PER_TURN, room - self._gateway.open_connections)):
                    if (accepted := listener.accept_nowait()) is None:
                        break
                    self._gateway.open_connections += 1
                    connections.start_soon(self._serve_connection, *accepted)
            except OSError as error:
                # Out of descriptors or memory: wait for some to come back instead of spinning.
                self._gateway.trace.emit(INTERNAL_ERROR, message=f"cannot accept: {error}")
                await trio.sleep(0.1)

    async def _serve_connection(self, stream: trio.SocketStream, name: tuple[str, int]) -> None:
        """Serve one connection; nothing that goes wrong in it reaches the others."""
        peer = None
        try:
            peer = await self._greet(stream, remote_endpoint(*name))
            if peer is not None:
                session = await FrontDoor(self._gateway, peer).serve()
                if session is not None:
                    await session
        except Exception as error:
            self._report(error, peer.session_id if peer is not None else "")
        finally:
            try:
                if peer is None or not peer.is_detached:
                    await cut(stream)  # noqa: ASYNC102 - shields itself
            finally:
                if peer is not None and peer.lease is not None:
                    peer.lease.release()
                self._gateway.open_connections -= 1
                self._gateway.connection_ended.unpark_all()

    async def _greet(self, stream: trio.SocketStream, remote: RemoteEndpoint) -> Peer | None:
        """Do the TLS handshake, if there is one; None when the peer does not manage it."""
        if self._tls is None:
            return Peer(stream, remote, is_tls=False)
        secured = trio.SSLStream(stream, self._tls.current, server_side=True, https_compatible=True)
        with self._gateway.idle_until(trio.current_time() + self._gateway.config.timeouts.tls_handshake) as handshake:
            try:
                await secured.do_handshake()
            except trio.BrokenResourceError as error:
                self._gateway.trace.emit(
                    CONNECTION_FAILED,
                    remote=f"{remote.address}:{remote.port}",
                    cause=f"TLS handshake: {error.__cause__ or error}",
                )
                return None
        if handshake.cancelled_caught:
            self._gateway.trace.emit(
                CONNECTION_FAILED, remote=f"{remote.address}:{remote.port}", cause="TLS handshake took too long"
            )
            return None
        return Peer(secured, remote, is_tls=True)

    def _report(self, error: Exception, tracking_id: str = "") -> None:
        message = f"{type(error).__name__}: {error}"
        if tracking_id:
            self._gateway.trace.emit(INTERNAL_ERROR, exc_info=error, tracking_id=tracking_id, message=message)
        else:
            self._gateway.trace.emit(INTERNAL_ERROR, exc_info=error, message=message)

    # ------------------------------------------------------------------------------------------------------- watchers

    async def _watch_store(self) -> None:
        while True:
            await trio.sleep(_STORE_POLL_INTERVAL)
            try:
                await self._gateway.store.poll_external()
            except Exception as error:
                # A store that cannot be read for a moment costs news, not service.
                self._report(error)
                await trio.sleep(5)

    async def _watch_sessions(self) -> None:
        while True:
            await trio.sleep(_STALL_CHECK_INTERVAL)
            for live in list(self._gateway.sessions):
                try:
                    live.session.check_sources_nowait()
                except Exception as error:
                    # What is wrong with one session must not end all of them.
                    self._report(error)

    def _on_tls_reload(self, error: ConfigError | None) -> None:
        if error is None:
            self._gateway.trace.emit(TLS_RELOADED)
        else:
            self._gateway.trace.emit(TLS_RELOAD_FAILED, message=str(error))
