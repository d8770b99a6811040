"""An ASGI application behind a relay: each request and each WebSocket that comes becomes one call of it.

Tasks of one `serve_asgi`; what stands in brackets is out of reach of the caller's cancellation, and bounded::

    serve_asgi ─ nursery ─┬─ [Lifespan.run]         the application's own life, from before the first request on
                          └─ nursery ── [Server.run]
                                          ├─ _take_connections     joins accepted connections to their calls
                                          ├─ WebSocketCall.run    one per WebSocket; with a reader inside
                                          └─ open_listener ── HttpCall.run    one per request, in the listener's tasks

The end, wanted by a cancellation or by closing the listener: requests that come now are answered 503, WebSockets are
closed with 1001, calls have ``grace_s`` seconds to finish, then they are cancelled; the listener deregisters; the
lifespan is told. The listener stays registered through the grace, because answers go over its control channel.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from ..errors import ConfigError, LocalProtocolError, RelayError
from ..net.connect import parse_ws_url
from ..net.proxy import Proxy
from ..net.tasks import alone
from ..trace import Trace
from ..wire.connection_string import ConnectionString
from ..wire.status import CloseCode
from .asgi_calls import HttpCall, WebSocketCall, call_app, refuse
from .asgi_events import AsgiApp, Event, Mount, http_scope, lifespan_scope, websocket_scope
from .credentials import TokenProvider
from .endpoint import resolve_endpoint
from .invitation import Accept, IncomingConnection, Reject
from .listener import Listener, open_listener

if TYPE_CHECKING:
    from .http_exchange import HttpRequest

__all__ = ["LifespanFailed", "serve_asgi"]

DEFAULT_GRACE_S: Final = 10.0
"""Seconds that calls under way get to finish; the common 30 seconds of a service manager leave room for it."""

_LIFESPAN_SHUTDOWN_TIMEOUT: Final = 10.0
"""Seconds for the application's own shutdown."""

_FAREWELL_TIMEOUT: Final = 2.0
"""Seconds for cancelled calls to end, and for telling their senders."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 16_777_216
"""Bound on one WebSocket message: that of the common ASGI servers, which applications count on."""

_log = logging.getLogger("relaycore.client")


class LifespanFailed(RelayError):
    """The application said that it could not start, or its lifespan failed where ``lifespan="on"`` asks for it."""


# Lifespan ------------------------------------------------------------------------------------------------------------


class _Lifespan:
    """The application's ``lifespan`` call.

    Args:
      app: the application.
      is_required: whether an application that knows nothing of it may not be served.
    """

    def __init__(self, app: AsgiApp, *, is_required: bool) -> None:
        self._app = app
        self._is_required = is_required
        self.state: dict[str, Any] = {}
        self.reach = trio.CancelScope(shield=True)
        self._next_event = 0
        self._is_started = trio.Event()
        self._failure: str | None = None
        self._cause: Exception | None = None
        self._is_stop_wanted = trio.Event()
        self._is_stopped = trio.Event()
        self._has_returned = trio.Event()

    async def run(self) -> None:
        """Call the application, from before the first request until behind the last one.

        Raises: what the application raises while it is meant to live.
        """
        try:
            with self.reach:
                error = await call_app(self._app, lifespan_scope(self.state), self._receive, self._send)
                if error is not None:
                    self._note_error(error)
                elif not self._is_started.is_set():
                    self._note_unsupported("it returned", None)
        finally:
            self._is_started.set()
            self._is_stopped.set()
            self._has_returned.set()

    def _note_error(self, error: Exception) -> None:
        if not self._is_started.is_set():
            self._note_unsupported(f"{type(error).__name__}: {error}", error)
        elif self._is_stop_wanted.is_set():
            if not self._is_stopped.is_set():
                _log.error("! the application failed to shut down", exc_info=error)
        elif self._failure is None:  # otherwise it is what the application has told by an event
            raise error

    def _note_unsupported(self, why: str, cause: Exception | None) -> None:
        (why, *_) = why.splitlines()
        # ASGI, lifespan: an exception before the start is complete means that the application does not know of it.
        if self._is_required:
            self._failure, self._cause = f"its lifespan ended before it had started ({why})", cause
        else:
            _log.info("the application takes no part in its lifespan (%s)", why)

    async def wait_started(self) -> None:
        """Wait until requests may come.

        Raises:
          LifespanFailed: they may not.
        """
        await self._is_started.wait()
        if self._failure is not None:
            lines = self._failure.strip().splitlines() or ["it does not say why"]
            if len(lines) > 1:  # frameworks send a traceback
                _log.error("! the application did not start: %s", self._failure)
            raise LifespanFailed(f"the application did not start: {lines[-1]}") from self._cause

    async def stop(self) -> None:
        """Tell the application that the last request is through, and wait until it has returned."""
        self._is_stop_wanted.set()
        await self._is_stopped.wait()
        await self._has_returned.wait()

    async def _receive(self) -> Event:
        self._next_event += 1
        if self._next_event == 1:
            return {"type": "lifespan.startup"}
        if self._next_event == 2:
            try:
                await self._is_stop_wanted.wait()
            except trio.Cancelled:
                self._next_event -= 1
                raise
            return {"type": "lifespan.shutdown"}
        await trio.sleep_forever()
        raise AssertionError

    async def _send(self, event: Event) -> None:
        # No checkpoint: frameworks report a failure from inside a cancelled scope.
        kind = event["type"]
        if kind in ("lifespan.startup.complete", "lifespan.startup.failed") and not self._is_started.is_set():
            if kind.endswith("failed"):
                self._failure = str(event.get("message", ""))
            self._is_started.set()
        elif kind == "lifespan.shutdown.complete" and self._is_stop_wanted.is_set() and not self._is_stopped.is_set():
            self._is_stopped.set()
        elif kind == "lifespan.shutdown.failed" and self._is_started.is_set() and not self._is_stopped.is_set():
            if self._is_stop_wanted.is_set():
                _log.error("! the application failed to shut down: %s", event.get("message", ""))
                self._is_stopped.set()
        else:
            raise LocalProtocolError(f"unexpected event {kind!r}", section="ASGI")


@asynccontextmanager
async def _lifespan(app: AsgiApp, mode: str) -> AsyncIterator[dict[str, Any]]:
    """Run the application's life around the block.

    Yields: the state that it left for its requests.

    Raises:
      LifespanFailed: the application cannot be served.
    """
    if mode == "off":
        yield {}
        return
    lifespan = _Lifespan(app, is_required=mode == "on")
    with alone():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lifespan.run)
            try:
                await lifespan.wait_started()
                try:
                    yield lifespan.state
                finally:
                    # Out of reach of the cancellation that ends us, and bounded: a program gives back what it holds.
                    with trio.move_on_after(_LIFESPAN_SHUTDOWN_TIMEOUT, shield=True) as scope:
                        await lifespan.stop()
                    if scope.cancelled_caught:
                        _log.error("! the application did not shut down within %g s", _LIFESPAN_SHUTDOWN_TIMEOUT)
            finally:
                lifespan.reach.cancel()


# The server ----------------------------------------------------------------------------------------------------------


class _Server:
    """All calls of one application at one listener.

    Args:
      app: the application.
      mount: where it hangs.
      state: what its lifespan left.
      max_concurrent: WebSockets at one time; the listener bounds requests.
      grace_s: seconds for calls under way at the end.
    """

    def __init__(
        self, app: AsgiApp, mount: Mount, state: dict[str, Any], *, max_concurrent: int, grace_s: float
    ) -> None:
        self._app = app
        self._mount = mount
        self._state = state
        self._max_concurrent = max_concurrent
        self._grace_s = grace_s
        self._nursery: trio.Nursery | None = None
        self._requests: set[HttpCall] = set()
        self._websockets: dict[int, WebSocketCall] = {}
        """By the identity of their headers, which a connection has in common with its invitation. Tracking ids would
        not do: senders choose them, and two may choose the same."""
        self._call_ended = trio.lowlevel.ParkingLot()
        # The end.
        self._reach = trio.CancelScope(shield=True)
        self._is_listening = False
        self._is_stopping = trio.Event()

    def stop(self) -> None:
        """Begin the end; may be called again."""
        self._is_stopping.set()
        if not self._is_listening:
            self._reach.shield = False  # there is nobody to say goodbye to

    async def wait_stopping(self) -> None:
        """Wait until the end has begun."""
        await self._is_stopping.wait()

    async def run(
        self, listen: Callable[[], AbstractAsyncContextManager[Listener]], task_status: trio.TaskStatus[Listener]
    ) -> None:
        """Serve until `stop`, and a bounded time longer."""
        with self._reach, alone():
            async with trio.open_nursery() as calls:
                self._nursery = calls
                async with listen() as listener, trio.open_nursery() as nursery:
                    self._is_listening = True
                    nursery.start_soon(self._take_connections, listener)
                    task_status.started(listener)
                    await self._is_stopping.wait()
                    await self._wind_up(calls)
                    nursery.cancel_scope.cancel()
                calls.cancel_scope.cancel()

    async def _wind_up(self, nursery: trio.Nursery) -> None:
        for websocket in list(self._websockets.values()):
            nursery.start_soon(websocket.go_away)
        with trio.move_on_after(self._grace_s):
            await self._wait_idle()
        calls: list[HttpCall | WebSocketCall] = [*self._requests, *self._websockets.values()]
        if calls:
            _log.warning("! %d calls of the application have not ended within %g s", len(calls), self._grace_s)
        for call in calls:
            call.reach.cancel()
        with trio.move_on_after(_FAREWELL_TIMEOUT):
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._requests or self._websockets:
            await self._call_ended.park()

    async def _take_connections(self, listener: Listener) -> None:
        assert self._nursery is not None
        while True:
            try:
                connection = await listener.accept()
            except trio.ClosedResourceError:
                self.stop()
                return
            call = self._websockets.get(id(connection.headers))
            if call is None or not call.attach(connection):
                self._nursery.start_soon(connection.turn_away, CloseCode.GOING_AWAY, _FAREWELL_TIMEOUT)

    async def take_request(self, request: HttpRequest) -> None:
        """Serve one request: the listener's ``on_request``."""
        if self._is_stopping.is_set():
            await refuse(request, "The listener is closing")
            return
        scope = http_scope(
            self._mount,
            method=request.method,
            target=request.target,
            suffix=request.suffix,
            headers=request.headers,
            remote=request.remote_endpoint,
            state=self._state,
        )
        call = HttpCall(request, scope)
        self._requests.add(call)
        try:
            await call.run(self._app)
        finally:
            self._requests.discard(call)
            self._call_ended.unpark_all()

    async def decide(self, incoming: IncomingConnection) -> Accept | Reject:
        """Let the application decide about a WebSocket: the listener's ``accept``."""
        if self._is_stopping.is_set():
            return Reject(503, "The listener is closing")
        if len(self._websockets) >= self._max_concurrent:
            return Reject(503, "The listener is busy")
        scope = websocket_scope(
            self._mount,
            target=incoming.target,
            suffix=incoming.suffix,
            headers=incoming.headers,
            remote=incoming.remote_endpoint,
            subprotocols=incoming.subprotocols,
            state=self._state,
        )
        call = WebSocketCall(incoming, scope)
        self._websockets[id(incoming.headers)] = call
        assert self._nursery is not None
        self._nursery.start_soon(self._run_websocket, call)
        return await call.decide()

    async def _run_websocket(self, call: WebSocketCall) -> None:
        try:
            await call.run(self._app)
        except Exception as error:  # our bug: it costs this sender, not the others
            _log.error("! a WebSocket failed", exc_info=error)
        finally:
            del self._websockets[id(call.incoming.headers)]
            self._call_ended.unpark_all()


async def serve_asgi(  # noqa: ASYNC128 - the server tells the status
    app: AsgiApp,
    connection_string: str | ConnectionString,
    *,
    path: str | None = None,
    token: str | TokenProvider | None = None,
    cafile: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls: bool = True,
    proxy: str | Proxy | None = None,
    root_path: str | None = None,
    max_concurrent: int = 256,
    lifespan: Literal["auto", "on", "off"] = "auto",
    grace_s: float = DEFAULT_GRACE_S,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    wait_online: bool = True,
    listener_id: str | None = None,
    trace: Trace | None = None,
    clock: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI 3 application on a hybrid connection: its HTTP requests, its WebSockets, and its lifespan.

    ::

        await relaycore.serve_asgi(app, connection_string)          # until cancelled

    Senders reach it at ``https://RELAY/PATH/...``. The application runs under Trio: frameworks on anyio, such as
    Starlette, do so as they are; one that needs asyncio does not.

    When this is cancelled, what is under way gets ``grace_s`` seconds, and the application's shutdown 10; then it ends.
    Closing the listener that ``task_status`` gives has the same effect, and returns.

    What a relay cannot carry: headers of ``websocket.accept``, and the body of a refused WebSocket; its status does
    arrive. The loss of a sender is known only for requests with a connection of their own, which are those with a long
    body or a response that takes longer than 0.1 s; others find out when they answer.

    Args:
      app: the application.
      connection_string, path, token, cafile, ssl_context, tls, proxy, listener_id, clock: as for `open_listener`.
      root_path: the application's ``root_path``, which stands in front of its paths; without it ``/PATH``, as the
        senders see it. ``""`` hides the hybrid connection from the application.
      max_concurrent: requests, and likewise WebSockets, at one time; further ones are answered 503.
      lifespan: ``on``: the application has to take part in its lifespan; ``auto``: it may; ``off``: it is not asked.
      grace_s: seconds for calls under way at the end; then they are cancelled, and answered 503 if they can be.
      max_message_bytes: bound on one message of a WebSocket; a sender of a longer one is closed with 1009.
      wait_online: False begins without the registration: ``task_status`` is told at once, and no first failure raises.
      trace: as for `open_listener`.
      task_status: gets the `Listener`, once requests may come.

    Raises:
      ConfigError: the arguments do not fit together.
      LifespanFailed: the application did not start.
      AuthorizationFailed, ConnectionLost: as `open_listener`.
      whatever the application's lifespan raises between its start and its end.
    """
    endpoint = resolve_endpoint(connection_string, path, cafile=cafile, ssl_context=ssl_context, tls=tls, proxy=proxy)
    if lifespan not in ("auto", "on", "off"):
        raise ConfigError("is one of 'auto', 'on' and 'off'", key="lifespan")
    if max_concurrent < 1:  # before the application starts
        raise ConfigError("must be at least 1", key="max_concurrent")
    if max_message_bytes < 1:
        raise ConfigError("must be at least 1", key="max_message_bytes")
    if not grace_s >= 0:  # NaN is not, either
        raise ConfigError("must be 0 or more seconds", key="grace_s")
    # The connection string's own scheme: `tls=False` is for relays whose senders are encrypted by something in front.
    url = parse_ws_url(endpoint.settings.base_url)
    mount = Mount.at(endpoint.path, root_path, is_tls=url.is_tls, server=(url.host, url.port))
    async with _lifespan(app, lifespan) as state:
        server = _Server(app, mount, state, max_concurrent=max_concurrent, grace_s=grace_s)
        listen = partial(
            open_listener,
            connection_string,
            path=path,
            accept=server.decide,
            on_request=server.take_request,
            token=token,
            cafile=cafile,
            ssl_context=ssl_context,
            tls=tls,
            proxy=proxy,
            wait_online=wait_online,
            listener_id=listener_id,
            backlog=max_concurrent,
            max_concurrent=max_concurrent,
            max_message_bytes=max_message_bytes,
            trace=trace,
            clock=clock,
        )
        with alone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run, listen, task_status)
                try:
                    await server.wait_stopping()
                finally:
                    server.stop()
