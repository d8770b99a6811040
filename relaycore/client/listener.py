"""The listener: registers at a hybrid connection, stays registered, and hands over what senders open.

Tasks of one listener, each with its reach::

    _main ─ nursery "tasks" ─┬─ _take_invitation   one per accept message: decide, dial the rendezvous, queue;
                             │                     or call the handler that does all of it
                             ├─ _serve_request     one per HTTP request: call the handler, see its response away
                             └─ _stay_registered   one channel after the other, for ever
                                  └─ nursery of one channel ─┬─ trio-websocket's reader
                                                             ├─ keep-alive, token renewal, what is posted
                                                             └─ _read_messages

An invitation outlives the channel it came over: the rendezvous is another connection. So does a `Connection`, which
belongs to whoever took it from ``accept()``, and so does a request. Who reads messages waits for none of them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import random
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from ..errors import AuthorizationFailed, ConfigError, RelayError
from ..net.connect import WebSocketUrl, parse_ws_url
from ..net.errors import StreamLost
from ..net.proxy import Proxy
from ..net.tasks import alone, bounded, leaves
from ..net.websocket import DEFAULT_MAX_MESSAGE_BYTES
from ..trace import CLIENT_OFFLINE, CLIENT_ONLINE, CLIENT_RECONNECTING, INTERNAL_ERROR, Trace
from ..vocab import ListenerId
from ..wire.address import build_listen_url
from ..wire.connection_string import ConnectionString
from ..wire.limits import ACCEPT_TIMEOUT, LISTENER_RENDEZVOUS_TIMEOUT, PING_INTERVAL
from ..wire.messages import Accept as AcceptMessage
from ..wire.messages import Request as RequestMessage
from ..wire.messages import parse_from_relay
from ..wire.status import CloseCode, is_guid
from .connection import Connection
from .control import ControlChannel, open_control_channel
from .credentials import Credential, TokenProvider, TokenSource, token_source
from .endpoint import RelayEndpoint, resolve_endpoint
from .http_exchange import (
    DEFAULT_FLUSH_AFTER_S,
    Exchange,
    ExchangeSettings,
    RequestHandler,
    is_elsewhere,
    open_exchange,
)
from .http_response import encode_refusal
from .invitation import AcceptHandler, Invitation, Reject
from .reconnect import Backoff, ReconnectPolicy, renewal_delay
from .status import EventStream, ListenerEvent, ListenerState, ListenerStatus, Offline, Online, Reconnecting
from .waiting import SenderHandler, WaitingSender

__all__ = ["Listener", "open_listener"]

DEFAULT_BACKLOG: Final = 64
"""Connections on their way in or waiting for ``accept()``. A program that keeps up has a few; one that does not should
refuse early, because a sender's patience is 30 seconds."""

DEFAULT_MAX_CONCURRENT: Final = 256
"""HTTP requests under way. Each may hold 64 KiB of a request and 64 KiB of a response: 32 MiB in all."""

_REQUEST_GRACE: Final = 5.0
"""Seconds that requests under way have to end while a listener closes."""

_MAX_REQUEST_REFUSALS: Final = 1_024
"""Refusals of requests that wait to be sent, or connections dialled for them. Beyond that the relay's clock answers."""

_RENEWAL_RETRY_S: Final = 30.0
"""Seconds until a token provider that failed is asked again; the token in use has minutes left then."""

_FAREWELL_TIMEOUT: Final = 2.0
"""Seconds for refusing senders, and for closing connections that nobody took, while a listener closes."""

_BUSY: Final = Reject(503, "The listener is busy")
_CLOSING: Final = Reject(503, "The listener is closing")

_REQUESTS_BUSY: Final = (503, "The listener is busy")
_REQUESTS_CLOSING: Final = (503, "The listener is closing")
_NO_REQUESTS: Final = (501, "This listener takes no HTTP requests")

_log = logging.getLogger("relaycore.client")


@dataclass(frozen=True)
class _Settings:
    endpoint: RelayEndpoint
    url: WebSocketUrl
    listener_id: ListenerId
    source: TokenSource
    handler: AcceptHandler | None
    sender_handler: SenderHandler | None
    request_handler: RequestHandler | None
    max_concurrent: int
    exchanges: ExchangeSettings
    backlog: int
    keep_alive_s: float
    max_message_bytes: int
    trace: Trace
    reconnect: ReconnectPolicy
    rng: random.Random
    clock: Callable[[], float]


@dataclass
class _Counters:
    registrations: int = 0
    tokens_renewed: int = 0
    tokens_failed: int = 0
    connections_accepted: int = 0
    connections_rejected: int = 0
    accepts_failed: int = 0
    messages_ignored: int = 0
    requests_served: int = 0
    requests_failed: int = 0
    requests_refused: int = 0


class Listener(trio.abc.Listener[Connection]):
    """A registration at a hybrid connection; made by `open_listener`.

    It is a `trio.abc.Listener`: ``await listener.accept()``, or ``trio.serve_listeners(handler, [listener])``. Mind
    that the latter cuts a connection that its handler has left open, which the other side sees as a loss: begin
    handlers with ``async with connection:``. And it ends with the first exception that leaves a handler: catch
    `trio.BrokenResourceError` there, which every sender that is lost raises.
    """

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._path = settings.endpoint.path
        self._counters = _Counters()
        self._reconnect = settings.reconnect
        # Owned by the registering task.
        self._channel: ControlChannel | None = None
        self._token_expires_unix: float | None = None
        self._state = ListenerState.CONNECTING
        self._since_unix = settings.clock()
        self._last_error: BaseException | None = None
        self._start_failure: BaseException | None = None
        self._state_changed = trio.lowlevel.ParkingLot()
        self._must_hurry = trio.Event()
        self._subscribers: list[EventStream] = []
        # Shared by the tasks that take invitations. A slot is reserved when an invitation comes and given back when its
        # connection is taken, so that the queue, which has as many places, never blocks.
        self._slots_taken = 0
        self._refusals = 0
        self._queue_in, self._queue_out = trio.open_memory_channel[Connection](settings.backlog)
        # Shared by the tasks that serve requests.
        self._requests_under_way = 0
        self._request_refusals = 0
        self._handler_scopes: set[trio.CancelScope] = set()
        self._request_has_ended = trio.lowlevel.ParkingLot()
        # The end.
        self._is_closed = False
        self._is_leaving = False
        self._scope = trio.CancelScope()
        self._has_ended = trio.Event()

    def __repr__(self) -> str:
        return f"<Listener {self._path!r} {self._state.value}>"

    # What users call -------------------------------------------------------------------------------------------------

    async def accept(self) -> Connection:
        """Wait for the next connection that the accept handler has taken.

        Returns: a connection whose handshake is done; the caller owns it. Its other side may have left again.

        Raises:
          trio.ClosedResourceError: the listener was closed, before or meanwhile.

        A checkpoint. Does not raise because the relay is away: see `status` and `events`.
        """
        connection = await self._queue_out.receive()
        self._slots_taken -= 1
        return connection

    async def wait_online(self) -> None:
        """Wait until the listener is registered; at once if it is. A checkpoint.

        Raises:
          trio.ClosedResourceError: the listener was closed.
        """
        await trio.lowlevel.checkpoint()
        while self._state is not ListenerState.ONLINE:
            if self._is_closed:
                raise trio.ClosedResourceError("this listener was closed")
            await self._state_changed.park()

    async def wait_closed(self) -> None:
        """Wait until the listener was closed and everything of it has ended. A checkpoint."""
        await self._has_ended.wait()

    @property
    def status(self) -> ListenerStatus:
        """How the listener stands: a snapshot."""
        counters = self._counters
        return ListenerStatus(
            state=self._state,
            since_unix=self._since_unix,
            listener_id=self._settings.listener_id,
            attempts=self._reconnect.attempts,
            last_error=self._last_error,
            registrations=counters.registrations,
            tokens_renewed=counters.tokens_renewed,
            connections_accepted=counters.connections_accepted,
            connections_rejected=counters.connections_rejected,
            accepts_failed=counters.accepts_failed,
            connections_waiting=self._queue_in.statistics().current_buffer_used,
            messages_ignored=counters.messages_ignored,
            requests_under_way=self._requests_under_way,
            requests_served=counters.requests_served,
            requests_failed=counters.requests_failed,
            requests_refused=counters.requests_refused,
            tokens_failed=counters.tokens_failed,
            token_expires_unix=None if self._channel is None else self._token_expires_unix,
            certificate_expires_unix=None if self._channel is None else self._channel.certificate_expires_unix,
        )

    def events(self) -> EventStream:
        """Subscribe to `Online`, `Offline` and `Reconnecting` from now on, for ``async for``.

        A slow subscriber loses the oldest events beyond 64 and finds their number in ``dropped``. The iteration ends
        when the listener is closed.
        """
        stream = EventStream()
        if self._is_closed:
            stream._end()
        else:
            self._subscribers.append(stream)
        return stream

    def hurry(self) -> None:
        """Make the next attempt to register at once, if one is waited for. Not a checkpoint.

        For a program that knows more than the listener: that there is a network again, or another key.
        """
        self._must_hurry.set()

    async def aclose(self) -> None:
        """Deregister and stop: Close 1000 on the control channel, then wait, at most 10 seconds, for the answer.

        HTTP requests under way have 5 seconds to end before that, while further ones are answered with 503; then their
        handlers are cancelled, and those senders who have heard nothing yet get 503 too.

        Senders that were still being accepted are refused with 503; connections that nobody has taken from `accept` are
        closed with 1001. Those that were taken stay with their owners. May be called again; a checkpoint. Cancelled, it
        cuts everything short.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        try:
            await self._end_requests()
            if self._channel is not None:
                await self._channel.close()
            self._is_leaving = True
        finally:
            self._scope.cancel()
            self._set_state(ListenerState.CLOSED)
            self._publish(Offline(None))
            for stream in self._subscribers:
                stream._end()
            self._settings.trace.emit(CLIENT_OFFLINE, path=self._path, cause=None)
        await self._has_ended.wait()

    # Staying registered ----------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        """Run the listener until `aclose`. The whole of it is in here."""
        try:
            with self._scope:
                async with trio.open_nursery() as tasks:
                    await self._stay_registered(tasks)
        finally:
            # Out of reach of any cancellation, and bounded: connections in the queue have no other owner. A listener
            # that leaves in order says goodbye to them, a cancelled one cuts them.
            with trio.move_on_after(_FAREWELL_TIMEOUT if self._is_leaving else 0, shield=True):
                await self._turn_away_queued()
            self._queue_out.close()
            self._has_ended.set()

    async def _wait_started(self) -> None:
        """Wait for the first registration.

        Raises: what the very first attempt met, if trying again cannot cure it.
        """
        while self._state is ListenerState.CONNECTING:
            if self._start_failure is not None:
                raise self._start_failure
            await self._state_changed.park()

    async def _stay_registered(self, tasks: trio.Nursery) -> None:
        """Open one channel after the other, until cancelled."""
        while True:
            registrations = self._counters.registrations
            started_at = trio.current_time()
            cause = await self._serve_channel(tasks)
            self._channel = None
            self._last_error = cause
            if self._counters.registrations > registrations:
                self._reconnect.note_online(trio.current_time() - started_at)
                self._publish(Offline(cause))
                self._settings.trace.emit(CLIENT_OFFLINE, path=self._path, cause=_text_of(cause))
            delay_s = self._reconnect.next_delay(cause)
            if self._counters.registrations:
                self._set_state(ListenerState.RECONNECTING)
            elif self._reconnect.attempts == 1 and _is_incurable(cause):
                self._start_failure = cause
                self._state_changed.unpark_all()
            self._must_hurry = trio.Event()
            self._publish(Reconnecting(cause, delay_s))
            self._settings.trace.emit(
                CLIENT_RECONNECTING,
                path=self._path,
                attempts=self._reconnect.attempts,
                delay_s=delay_s,
                cause=_text_of(cause),
            )
            with trio.move_on_after(delay_s):
                await self._must_hurry.wait()

    async def _serve_channel(self, tasks: trio.Nursery) -> Exception:
        """One life of the control channel: sign in, register, serve until it ends.

        Returns: why it ended.
        """
        settings = self._settings
        try:
            with alone():
                credential = await self._fetch_token()
                async with trio.open_nursery() as nursery:
                    with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
                        channel = await open_control_channel(
                            nursery, settings.url, credential, settings.endpoint.ssl_context, settings.endpoint.proxy
                        )
                    async with channel:
                        self._token_expires_unix = credential.expires_unix
                        self._note_online(channel)
                        nursery.start_soon(channel.write_posted)
                        nursery.start_soon(channel.keep_alive, settings.keep_alive_s)
                        nursery.start_soon(self._renew_tokens, channel, credential)
                        await self._read_messages(channel, tasks)
        except (RelayError, OSError) as error:
            return error
        except ExceptionGroup as group:
            first: Exception = next(leaves(group))  # several tasks met the same end
            return first
        except Exception as error:  # a token provider's, or our bug: neither may end the registration
            settings.trace.emit(INTERNAL_ERROR, exc_info=error, path=self._path)
            return error
        raise AssertionError("a channel ends by raising")

    def _note_online(self, channel: ControlChannel) -> None:
        attempts = self._reconnect.attempts
        self._channel = channel
        self._counters.registrations += 1
        self._set_state(ListenerState.ONLINE)
        self._publish(Online(attempts))
        self._settings.trace.emit(
            CLIENT_ONLINE, path=self._path, listener_id=self._settings.listener_id, attempts=attempts
        )

    async def _renew_tokens(self, channel: ControlChannel, credential: Credential) -> None:
        settings = self._settings
        if not settings.source.is_renewable:
            return
        while credential.expires_unix is not None:
            await trio.sleep(renewal_delay(credential.expires_unix - settings.clock(), settings.rng))
            while True:
                try:
                    fresh = await self._fetch_token()
                    break
                except Exception as error:  # a provider may raise anything; the channel lives on the old token
                    self._last_error = error
                    _log.warning("! the token provider failed: %s", type(error).__name__)
                    await trio.sleep(_RENEWAL_RETRY_S)
            await channel.renew(fresh)
            credential = fresh
            self._token_expires_unix = fresh.expires_unix
            self._counters.tokens_renewed += 1

    async def _fetch_token(self) -> Credential:
        try:
            return await self._settings.source.fetch()
        except Exception:
            self._counters.tokens_failed += 1
            raise

    async def _read_messages(self, channel: ControlChannel, tasks: trio.Nursery) -> None:
        waiting_for_body: RequestMessage | None = None
        try:
            while True:
                received = await channel.receive()
                if isinstance(received, bytes):
                    if waiting_for_body is not None:
                        self._take_request(waiting_for_body, received, channel, tasks)
                        waiting_for_body = None
                    else:
                        self._counters.messages_ignored += 1
                    continue
                if waiting_for_body is not None:
                    # 6.2: nothing may come between a request and its body, so this one has none and cannot be served.
                    self._counters.requests_failed += 1
                    _log.warning("! the body of %s did not come", waiting_for_body.id[:64])
                    waiting_for_body = None
                message = parse_from_relay(received)
                if isinstance(message, AcceptMessage):
                    tasks.start_soon(self._take_invitation, message)
                elif message is None:
                    self._counters.messages_ignored += 1
                elif message.body and not is_elsewhere(message):
                    waiting_for_body = message
                else:
                    self._take_request(message, b"", channel, tasks)
        except trio.BrokenResourceError:
            if not self._is_closed:
                raise
        # aclose() waits for the relay's answer to our Close, which the channel's reader has to read: stay until then.
        await trio.sleep_forever()

    def _set_state(self, state: ListenerState) -> None:
        if state is not self._state and self._state is not ListenerState.CLOSED:
            self._state = state
            self._since_unix = self._settings.clock()
            self._state_changed.unpark_all()

    def _publish(self, event: ListenerEvent) -> None:
        for stream in self._subscribers:
            stream._put(event)

    # Taking connections ----------------------------------------------------------------------------------------------

    async def _take_invitation(self, message: AcceptMessage) -> None:
        """See one accept message through: to a connection in the queue, to a refusal, or to nothing."""
        settings = self._settings
        try:
            invitation = Invitation(
                message,
                path=self._path,
                is_tls=settings.url.is_tls,
                ssl_context=settings.endpoint.ssl_context,
                proxy=settings.endpoint.proxy,
                max_message_bytes=settings.max_message_bytes,
            )
            if self._is_closed:
                await self._refuse(invitation, _CLOSING)
            elif self._slots_taken >= settings.backlog:
                await self._refuse(invitation, _BUSY)
            elif settings.sender_handler is not None:
                await self._hand_over(invitation, settings.sender_handler)
            else:
                await self._take_in_slot(invitation)
        except RelayError as error:
            self._counters.accepts_failed += 1
            _log.warning("! an invitation is of no use: %s", error)
        except Exception as error:  # our bug: it costs this sender, not the listener
            self._counters.accepts_failed += 1
            settings.trace.emit(INTERNAL_ERROR, exc_info=error, path=self._path)

    async def _take_in_slot(self, invitation: Invitation) -> None:
        self._slots_taken += 1
        connection = None
        is_over = False
        try:
            with trio.move_on_after(ACCEPT_TIMEOUT) as scope:
                connection = await self._accept_or_refuse(invitation)
            is_over = True
        finally:
            if connection is None:
                self._slots_taken -= 1
            if self._is_leaving and not is_over:
                # Out of reach of the cancellation that ends this listener, and bounded, so that the sender hears it now
                # and not in half a minute.
                with trio.move_on_after(_FAREWELL_TIMEOUT, shield=True):
                    await self._refuse(invitation, _CLOSING)
        if connection is not None:
            self._counters.connections_accepted += 1
            self._queue_in.send_nowait(connection)
        elif scope.cancelled_caught:
            self._counters.accepts_failed += 1
            _log.warning("- %s was not accepted within %g s", _shown(invitation), ACCEPT_TIMEOUT)

    async def _accept_or_refuse(self, invitation: Invitation) -> Connection | None:
        try:
            decision = await invitation.decide(self._settings.handler)
        except Exception as error:
            # The handler's bug is for our log; the sender learns that there was one.
            _log.error("! the accept handler failed on %s", _shown(invitation), exc_info=error)
            decision = Reject(502, f"The listener's accept handler failed. TrackingId:{_shown(invitation)}")
        if isinstance(decision, Reject):
            await self._refuse(invitation, decision)
            return None
        with contextlib.suppress(RelayError):  # counted and logged
            return await self._rendezvous(invitation, decision.subprotocol)
        return None

    async def _rendezvous(self, invitation: Invitation, subprotocol: str | None) -> Connection:
        try:
            with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
                return await invitation.accept(subprotocol)
        except RelayError as error:
            self._counters.accepts_failed += 1
            _log.warning("! the rendezvous for %s failed: %s", _shown(invitation), error)
            raise

    async def _hand_over(self, invitation: Invitation, handler: SenderHandler) -> None:
        """Let a handler take care of one sender. The answer gives its slot back: what comes then is no backlog."""
        scope = trio.CancelScope(deadline=trio.current_time() + ACCEPT_TIMEOUT)
        holds_slot = True
        self._slots_taken += 1

        def give_back() -> None:
            nonlocal holds_slot
            self._slots_taken -= holds_slot
            holds_slot = False
            scope.deadline = math.inf

        async def accept(subprotocol: str | None) -> Connection:
            connection = await self._rendezvous(invitation, subprotocol)
            self._counters.connections_accepted += 1
            return connection

        waiting = WaitingSender(invitation, accept, functools.partial(self._refuse, invitation), give_back)
        try:
            with scope:
                try:
                    await handler(waiting)
                    said = "The listener's handler gave no answer"
                except Exception as error:
                    _log.error("! the sender handler failed on %s", _shown(invitation), exc_info=error)
                    said = "The listener's handler failed"
                if waiting.is_waiting:
                    await waiting.reject(502, f"{said}. TrackingId:{_shown(invitation)}")
        finally:
            give_back()
            if self._is_leaving and not waiting.is_answered and not scope.cancelled_caught:
                # As in _take_in_slot.
                with trio.move_on_after(_FAREWELL_TIMEOUT, shield=True):
                    await self._refuse(invitation, _CLOSING)
        if scope.cancelled_caught and not waiting.is_answered:
            self._counters.accepts_failed += 1
            _log.warning("- %s was not answered within %g s", _shown(invitation), ACCEPT_TIMEOUT)

    async def _refuse(self, invitation: Invitation, rejection: Reject) -> None:
        """Tell the relay no. Even that costs a connection, so there is a bound on how many go on at once."""
        if self._refusals >= self._settings.backlog:
            # The relay's own deadline answers this sender.
            self._counters.accepts_failed += 1
            return
        self._refusals += 1
        try:
            with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
                await invitation.reject(rejection)
            self._counters.connections_rejected += 1
        except RelayError as error:
            self._counters.accepts_failed += 1
            _log.warning("! the rejection of %s failed: %s", _shown(invitation), error)
        finally:
            self._refusals -= 1

    # Serving requests ------------------------------------------------------------------------------------------------

    def _take_request(self, message: RequestMessage, body: bytes, channel: ControlChannel, tasks: trio.Nursery) -> None:
        """Begin to serve a request, or refuse it. Never waits: the channel has other messages to bring."""
        settings = self._settings
        if settings.request_handler is None:
            refusal = _NO_REQUESTS
        elif self._is_closed:
            refusal = _REQUESTS_CLOSING
        elif max(self._requests_under_way, channel.messages_posted) >= settings.max_concurrent:
            # The second: responses whose handlers were cancelled while a relay takes nothing; they fill memory too.
            refusal = _REQUESTS_BUSY
        else:
            self._requests_under_way += 1
            tasks.start_soon(self._serve_request, settings.request_handler, message, body, channel)
            return
        self._counters.requests_refused += 1
        if is_elsewhere(message):
            if self._request_refusals < settings.backlog:
                self._request_refusals += 1
                tasks.start_soon(self._refuse_request, message, channel, *refusal)
        elif channel.messages_posted < _MAX_REQUEST_REFUSALS:
            with contextlib.suppress(StreamLost):
                channel.post(*encode_refusal(message, *refusal))

    async def _refuse_request(self, message: RequestMessage, channel: ControlChannel, status: int, text: str) -> None:
        """Refuse a request that has to be fetched for that."""
        try:
            async with open_exchange(message, b"", channel, self._settings.exchanges) as exchange:
                await exchange.refuse(status, text)
        except RelayError as error:
            _log.debug("! the refusal of %s failed: %s", message.id[:64], error)
        except Exception as error:  # our bug: it costs this sender, not the listener
            self._settings.trace.emit(INTERNAL_ERROR, exc_info=error, path=self._path)
        finally:
            self._request_refusals -= 1

    async def _serve_request(
        self, handler: RequestHandler, message: RequestMessage, body: bytes, channel: ControlChannel
    ) -> None:
        """See one request through, its connection's end included."""
        is_served = False
        try:
            async with open_exchange(message, body, channel, self._settings.exchanges) as exchange:
                is_served = await self._answer(exchange, handler)
        except RelayError as error:
            _log.warning("! request %s could not be served: %s", message.id[:64], error)
        except Exception as error:  # our bug: it costs this sender, not the listener
            self._settings.trace.emit(INTERNAL_ERROR, exc_info=error, path=self._path)
        finally:
            if is_served:
                self._counters.requests_served += 1
            else:
                self._counters.requests_failed += 1
            self._requests_under_way -= 1
            self._request_has_ended.unpark_all()

    async def _answer(self, exchange: Exchange, handler: RequestHandler) -> bool:
        is_served = False
        with trio.CancelScope() as scope:
            self._handler_scopes.add(scope)
            try:
                is_served = await exchange.answer(handler)
            finally:
                self._handler_scopes.discard(scope)
        if scope.cancelled_caught:
            with trio.move_on_after(_FAREWELL_TIMEOUT):
                await exchange.refuse(*_REQUESTS_CLOSING)
        return is_served

    async def _end_requests(self) -> None:
        """Let requests under way end, for some seconds; then cancel their handlers."""
        for seconds in (_REQUEST_GRACE, _FAREWELL_TIMEOUT):
            with trio.move_on_after(seconds):
                while self._requests_under_way:
                    await self._request_has_ended.park()
            for scope in self._handler_scopes:
                scope.cancel()

    async def _turn_away_queued(self) -> None:
        left: list[Connection] = []
        while self._queue_in.statistics().current_buffer_used:
            left.append(self._queue_out.receive_nowait())
        async with trio.open_nursery() as nursery:
            for connection in left:
                nursery.start_soon(connection.turn_away, CloseCode.GOING_AWAY, _FAREWELL_TIMEOUT)


@asynccontextmanager
async def open_listener(
    connection_string: str | ConnectionString,
    *,
    path: str | None = None,
    accept: AcceptHandler | None = None,
    on_sender: SenderHandler | None = None,
    on_request: RequestHandler | None = None,
    token: str | TokenProvider | None = None,
    cafile: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls: bool = True,
    proxy: str | Proxy | None = None,
    wait_online: bool = True,
    listener_id: str | None = None,
    backlog: int = DEFAULT_BACKLOG,
    max_concurrent: int = DEFAULT_MAX_CONCURRENT,
    flush_after: float = DEFAULT_FLUSH_AFTER_S,
    keep_alive_s: float = PING_INTERVAL,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    reconnect: ReconnectPolicy | None = None,
    trace: Trace | None = None,
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Listener]:
    """Listen on a hybrid connection, and stay registered there until the ``async with`` block ends.

    ::

        async with relaycore.open_listener(connection_string) as listener:
            await trio.serve_listeners(handle, [listener])

    Once registered it never gives up: whatever ends the control channel, it comes back after 0 to 30 seconds, with a
    fresh token, also from 404 and 401, since entities and keys come back as well. `Listener.status` and
    `Listener.events` tell the truth meanwhile. Connections live on while the listener is away.

    Args:
      connection_string: ``Endpoint=sb://...``; needs a right to listen.
      path: the hybrid connection, if the connection string has no ``EntityPath``, or instead of it.
      accept: decides about each sender, see `AcceptHandler`; without it everyone is accepted. It has 30 seconds. If it
        raises, the sender gets 502 and the log the traceback.
      on_sender: instead of ``accept`` and of `Listener.accept`: takes care of each sender in a task of its own, see
        `WaitingSender`; it may find out first whether the sender can be served. Closing the listener cancels it, which
        refuses a sender that is not answered yet with 503; a connection that has to outlive that is for another task.
        An exception out of it is logged, and is a 502 to a sender that still waits.
      on_request: serves HTTP requests, see `RequestHandler`; each runs in a task of its own. Without it they are
        answered with 501. `serve_http` is the comfortable way.
      token: instead of the connection string's key: a token that is sent as it is and never renewed, or a function that
        makes them, see `TokenProvider`.
      cafile: PEM file of the only authorities to trust, for private ones; the system's store without it.
      ssl_context: instead of ``cafile``; it has to verify. There is no way to go without.
      tls: False dials plain ``ws``, for a relay behind something else that encrypts.
      proxy: URL of an HTTP or SOCKS5 proxy to dial through, also to each rendezvous; ``env`` for the one that the
        environment names; none without it.
      wait_online: wait for the registration before the block begins. False begins at once.
      listener_id: a GUID by which senders may choose this listener; a fresh one without it.
      backlog: connections on their way in or waiting for ``accept()``, with ``on_sender`` those without an answer;
        further senders are refused with 503.
      max_concurrent: HTTP requests under way; further ones are answered with 503.
      flush_after: seconds until the beginning of a response that is not complete leaves by itself; until then it may
        still travel on the control channel, which is quicker.
      keep_alive_s: seconds of silence on the control channel before the relay is pinged; it then has 20 seconds.
      max_message_bytes: bound on one message, see `Connection.messages`.
      reconnect: when to try again, told the cause of each failure; 0 to 30 seconds without it, whatever the cause.
      trace: gets ``client.online``, ``client.offline`` and ``client.reconnecting``; one of its own without it.
      rng: where jitter comes from.
      clock: wall clock in seconds, for tokens.

    Raises:
      ConfigError: the arguments do not fit together; a listener needs a key or a token.
      AuthorizationFailed: with ``wait_online``, if the relay does not take the token the very first time.
      ConnectionLost: with ``wait_online``, if the relay's certificate is not trusted the very first time; the cause is
        an `ssl.SSLCertVerificationError`.

    Other failures, such as no network, 404 or 5xx, are waited out with ``wait_online`` too; put `trio.fail_after`
    around where that may take too long.
    """
    endpoint = resolve_endpoint(connection_string, path, cafile=cafile, ssl_context=ssl_context, tls=tls, proxy=proxy)
    source = token_source(endpoint.settings, token, clock=clock)
    if source is None:
        raise ConfigError("a listener needs a key or a token", key="SharedAccessKey")
    if accept is not None and on_sender is not None:
        raise ConfigError("give accept or on_sender, not both", key="on_sender")
    if listener_id is not None and not is_guid(listener_id):
        raise ConfigError("must be a GUID", key="listener_id")
    if backlog < 1:
        raise ConfigError("must be at least 1", key="backlog")
    if max_concurrent < 1:
        raise ConfigError("must be at least 1", key="max_concurrent")
    if max_message_bytes < 1:
        raise ConfigError("must be at least 1", key="max_message_bytes")
    if not flush_after >= 0:
        raise ConfigError("must be a number of seconds", key="flush_after")
    rng = rng or random.Random()
    identity = ListenerId((listener_id or str(uuid.uuid4())).lower())
    url = parse_ws_url(build_listen_url(endpoint.base_url, endpoint.path, id=identity))
    listener = Listener(
        _Settings(
            endpoint=endpoint,
            url=url,
            listener_id=identity,
            source=source,
            handler=accept,
            sender_handler=on_sender,
            request_handler=on_request,
            max_concurrent=max_concurrent,
            exchanges=ExchangeSettings(endpoint.path, url.is_tls, endpoint.ssl_context, flush_after, endpoint.proxy),
            backlog=backlog,
            keep_alive_s=keep_alive_s,
            max_message_bytes=max_message_bytes,
            trace=trace or Trace(),
            reconnect=reconnect or Backoff(rng),
            rng=rng,
            clock=clock,
        )
    )
    with alone():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener._main)
            async with listener:
                if wait_online:
                    await listener._wait_started()
                yield listener


def _is_incurable(cause: BaseException) -> bool:
    return isinstance(cause, AuthorizationFailed | ConfigError) or isinstance(
        cause.__cause__, ssl.SSLCertVerificationError
    )


def _text_of(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"


def _shown(invitation: Invitation) -> str:
    return invitation.incoming.tracking_id[:64]
