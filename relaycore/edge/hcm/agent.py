"""One entry of the connection manager: a hybrid connection that is listened on, and the endpoint behind it.

::

    accept{...} ─▶ admission ─▶ endpoint up? ─▶ dial ─▶ rendezvous ─▶ splice (C, where both are sockets)
                      │ 503         │ 503        │ 502 503 504 403
                      └─────────────┴────────────┴──▶ Reject: the sender's handshake ends with that status and text

Tasks of one agent, each with its reach::

    run ─ nursery of sessions ─┬─ _accept           one per sender; the listener's task waits only for its answer
                               └─ nursery of the house ─┬─ metadata, probes, when to keep away
                                                        └─ _hold: Registration after Registration

Sessions outlive listeners: a pause, a restart, a withdrawal or a change of keys touches none of them.

Source: connection manager 8.3, 8.5.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final, Literal, TypeAlias

import trio

from ...client.connection import Connection
from ...client.http import HttpRequest
from ...client.invitation import Accept, IncomingConnection, Reject
from ...client.listener import Listener
from ...client.reconnect import ReconnectPolicy
from ...client.splice import Spliced, splice
from ...client.waiting import WaitingSender
from ...errors import RelayError
from ...net.linger import cut
from ...wire.status import one_line
from ..access import RelayAccess
from ..azbridge.preamble import PortRefused
from ..azbridge.remote import PortTable, open_datagrams, serve
from ..config.settings import HcmConnection, OnDown, PortBinding, Profile, Target
from ..events import EventLog, log_detail
from ..http_forward import HttpForwarder
from ..mapping import ForwardSettings
from ..origin import parse_origin_url
from ..spent import Spent
from ..target.admission import Admission
from ..target.dial import DialFailed, Dialled, dial, resolve
from ..target.health import EndpointState
from ..target.policy import Policy
from ..target.throttle import Rates, SharedRates, TokenBucket, Waited, throttled
from .endpoint_leg import EndpointLeg, Route
from .metadata import METADATA_INTERVAL, MetadataWatch
from .plan import needs_registration
from .refused import RefusedLately
from .relay_leg import OpenListener, Registration
from .sessions import OpenSession, SessionBook, sender_of
from .status import ConnectionStatus, RelayLeg, SessionStatus, Shown, TargetCheck

__all__ = ["Agent", "SharedBuckets"]

_BACKLOG: Final = 1024
"""Senders under way at one time beside those in the queue; further ones are refused with 503."""

_ANSWER_S: Final = 26.0
"""Seconds from the relay's message to our answer, of the 30 that a sender has; the rest is for the rendezvous. Time in
the queue is taken off the dial's."""

_LEAST_DIAL_S: Final = 1.0
"""Seconds that a dial has in any case, after a long time in the queue."""

_FIRST_METADATA_S: Final = 5.0
"""Seconds that a sender waits at the very beginning for the relay to say where the endpoint is."""

_SPREAD: Final = 0.3
"""Part of the probes' interval within which a withdrawal, and the return from it, happens at random: managers that
watch the same endpoint should not leave at one stroke."""

_LOOK_S: Final = 10.0
"""Seconds between two looks whether others listen, while an entry keeps away that is not to leave senders alone."""

_FRESH_S: Final = 5.0
"""Age of what the relay said at which it is asked again for somebody who watches."""

_FAREWELL_S: Final = 20.0
"""Seconds until a leave is cut; the listener bounds its own goodbyes, which together take less."""

_SETTLED: Final = frozenset({RelayLeg.CONNECTED, RelayLeg.UNAUTHORIZED, RelayLeg.NOT_FOUND, RelayLeg.PAUSED})

_NO_MATTER_OF_ENDPOINTS: Final = frozenset({"overloaded", "unknown-port", "internal"})
"""Reasons for which senders are refused that say nothing about the endpoint."""

_Whose: TypeAlias = Literal["relay", "endpoint", "neither"]

_Noted: TypeAlias = tuple[float | None, str]
"""When something went wrong, and what; None and ``""`` if nothing has."""

SharedBuckets: TypeAlias = tuple[TokenBucket | None, TokenBucket | None]
"""To the endpoints, and from them."""

_log = logging.getLogger("relaycore.edge")


class Agent:
    """Serves one entry from `run` to `stop`.

    Args:
      settings: the entry.
      policy: what may be dialled, None for everything; asked for each connection, and may change.
      events: gets what happens here, see `Manager.events`.
      shared_rates: to and from the endpoints, of all entries together; asked for each connection.
    """

    def __init__(
        self,
        settings: HcmConnection,
        policy: Callable[[], Policy | None],
        events: EventLog,
        *,
        shared_rates: Callable[[], SharedBuckets] = lambda: (None, None),
        metadata_interval_s: float = METADATA_INTERVAL,
        rng: random.Random | None = None,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._policy = policy
        self._events = events
        self._shared_rates = shared_rates
        self._metadata_interval_s = metadata_interval_s
        self._rng = rng or random.Random()
        self._now_unix = now_unix
        # What it was told.
        self._is_paused = settings.is_paused
        self._is_draining = False
        self._is_stopping = False
        self._is_withdrawn = False
        self._must_restart = False
        # What it does.
        self._registration: Registration | None = None
        self._metadata: MetadataWatch | None = None
        self._metadata_scope = trio.CancelScope()
        self._endpoint = EndpointLeg(settings, policy, self._emit_endpoint, self._note_change)
        self._admission = Admission(settings.limits)
        self._refused = RefusedLately()
        self._waited_in, self._waited_out = Waited(), Waited()
        self._inbound, self._outbound = self._buckets()
        self._book = SessionBook(now_unix=now_unix)
        self._rejected: Counter[str] = Counter()
        self._dials, self._rendezvous = Spent(), Spent()
        self._reconnects: Counter[str] = Counter()  # of registrations that are over, as the next three
        self._requests_served = 0
        self._tokens_renewed = 0
        self._tokens_failed = 0
        self._online_before = 0
        self._sessions: trio.Nursery | None = None  # of run(), for senders that listeners bring
        self._has_ended = trio.Event()
        self._errors: dict[_Whose, tuple[float, str]] = {}  # the last of each leg
        # Who waits for changes.
        self._changed = trio.Event()
        self._shown = Shown.PAUSED if settings.is_paused else Shown.CONNECTING
        self._since_unix = now_unix()

    @property
    def name(self) -> str:
        """As in the settings."""
        return self.settings.name

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._is_stopping

    # Commands; none is a checkpoint ----------------------------------------------------------------------------------

    def apply(self, settings: HcmConnection) -> None:
        """Go on with other settings of the same name: at once for new connections, unchanged for those that are open.

        The relay is left and registered at anew only if the change is about that.
        """
        old, self.settings = self.settings, settings
        self._admission.limits = settings.limits
        if old.limits != settings.limits:
            self._inbound, self._outbound = self._buckets()
        self._endpoint.apply(settings)
        if old.is_paused != settings.is_paused:
            self._is_paused = settings.is_paused
        if (old.relay, old.path) != (settings.relay, settings.path):
            # Another hybrid connection, whose text says something else.
            self._metadata = None
            self._endpoint.forget_metadata()
        if needs_registration(old, settings):
            self.restart(is_asked=False)
        self._emit("changed", "the settings have changed")
        self._note_change()

    def note_policy(self) -> None:
        """Ask the endpoint anew by another policy; senders' dials are asked about it anyway."""
        self._endpoint.restart()

    def pause(self) -> None:
        """Leave the relay. Connections that are open go on."""
        if not self._is_paused:
            self._is_paused = True
            self._emit("paused", "no new connections until it is resumed; those that are open go on")
        self._is_draining = False
        self._note_change()

    def resume(self) -> None:
        """Listen again after `pause` or `drain`."""
        if self._is_paused or self._is_draining:
            self._is_paused = self._is_draining = False
            self._emit("resumed", "listening again")
        self._note_change()

    def restart(self, *, is_asked: bool = True) -> None:
        """Leave the relay and register anew; read metadata and ask the endpoint again. Open connections go on."""
        self._must_restart = True
        self._metadata_scope.cancel()
        if is_asked:
            self._emit("restarted", "registering anew; connections that are open go on")
            self._endpoint.restart()
        self._note_change()

    def begin_drain(self) -> None:
        """Leave the relay, let open connections end for the drain timeout, cut the rest; then it is paused."""
        if not self._is_draining:
            self._is_draining = True
            seconds = self.settings.limits.drain_timeout_s
            self._emit("draining", f"no new connections; {len(self._book)} open ones have {seconds:g} s to end")
        self._note_change()

    def stop(self) -> None:
        """Leave the relay, drain, and end `run`."""
        self._is_stopping = True
        self._note_change()

    # Waiting ---------------------------------------------------------------------------------------------------------

    async def wait_drained(self) -> None:
        """Wait until a drain has ended, or was called off. A checkpoint."""
        await self._wait_until(lambda: not self._is_draining)

    async def wait_left(self) -> None:
        """Wait until this process holds no control channel for it. A checkpoint."""
        await self._wait_until(lambda: self._registration is None)

    async def wait_stopping(self) -> None:
        """Wait until it is told to stop. A checkpoint."""
        await self._wait_until(lambda: self._is_stopping)

    async def wait_settled(self) -> None:
        """Wait until the first attempt to register has had its outcome. A checkpoint."""
        await self._wait_until(lambda: self.relay_leg in _SETTLED or self._has_failed or self._is_stopping)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not condition() and not self._has_ended.is_set():
            await self._changed.wait()

    @property
    def _has_failed(self) -> bool:
        return self._registration is not None and self._registration.has_failed and not self._must_restart

    # The house -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `stop`, and until the open connections have ended or their time is up."""
        try:
            async with trio.open_nursery() as sessions:
                self._sessions = sessions
                async with trio.open_nursery() as house:
                    house.start_soon(self._endpoint.run)
                    house.start_soon(self._watch_metadata)
                    house.start_soon(self._keep_away)
                    await self._hold()
                    house.cancel_scope.cancel()
                await self._drain()
        except Exception:  # the manager begins it again
            self._sessions = None
            raise
        except BaseException:
            self._note_ended()
            raise
        self._note_ended()

    def _note_ended(self) -> None:
        self._sessions = None
        self._has_ended.set()
        self._note_change()

    async def _hold(self) -> None:
        """Be registered whenever it should be, until it is told to stop."""
        while not self._is_stopping:
            changed = self._changed
            self._must_restart = False
            if self._may_listen:
                await self._register()
            elif self._is_draining:
                await self._drain_or_resume()
            else:
                await changed.wait()

    @property
    def _may_listen(self) -> bool:
        return not (self._is_paused or self._is_draining or self._is_stopping or self._is_withdrawn)

    async def _register(self) -> None:
        registration = Registration(
            self.settings,
            self._open_listener(),
            self._emit,
            self._note_change,
            rng=self._rng,
            now_unix=self._now_unix,
        )
        self._registration = registration
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave_in_time, registration, nursery.cancel_scope)
                await registration.hold()
                nursery.cancel_scope.cancel()
        finally:
            if registration.last_error_unix is not None:
                self._note_error("relay", registration.last_error, registration.last_error_unix)
            self._requests_served += registration.requests_served
            self._tokens_renewed += registration.tokens_renewed
            self._tokens_failed += registration.tokens_failed
            self._reconnects.update(registration.reconnects)
            self._registration = None
            self._note_change()

    async def _leave_in_time(self, registration: Registration, scope: trio.CancelScope) -> None:
        while self._may_listen and not self._must_restart:
            await self._changed.wait()
        registration.leave()
        await trio.sleep(_FAREWELL_S)
        _log.warning("! %s: leaving the relay takes too long, it is cut", self.name)
        scope.cancel()

    async def _drain_or_resume(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._call_off, nursery.cancel_scope)
            await self._drain()
            if self._is_draining and not self._is_stopping:
                self._is_draining, self._is_paused = False, True
            nursery.cancel_scope.cancel()
        self._note_change()

    async def _call_off(self, scope: trio.CancelScope) -> None:
        while self._is_draining and not self._is_stopping:
            await self._changed.wait()
        scope.cancel()

    async def _drain(self) -> None:
        cut_off = await self._book.drain(self.settings.limits.drain_timeout_s)
        said = f"{cut_off} connections were cut when their time was up" if cut_off else "all connections have ended"
        self._emit("drained", said)

    async def _watch_metadata(self) -> None:
        """Read what the relay says about the hybrid connection; anew when the way there changes."""
        while True:
            with trio.CancelScope() as self._metadata_scope:
                try:
                    access = RelayAccess.of(self.settings)
                except RelayError as error:
                    self._note_error("relay", str(error))
                    await trio.sleep(self._metadata_interval_s)
                    continue
                watch = MetadataWatch(
                    access, self._note_metadata, interval_s=self._metadata_interval_s, now_unix=self._now_unix
                )
                if self._metadata is not None:
                    watch.adopt(self._metadata)
                self._metadata = watch
                await watch.run()

    def _note_metadata(self) -> None:
        watch = self._metadata
        if watch is None:  # the settings changed while the last answer about the old ones was on its way
            return
        self._endpoint.note_metadata(watch.target)
        if watch.error and self._endpoint.is_from_metadata and watch.is_new_error:
            kept = f"; {self._endpoint.shown} is kept" if self._endpoint.shown else ""
            self._note_error("endpoint", watch.error)
            self._emit("metadata-failed", watch.error + kept)
        self._note_change()

    # Keeping away from the relay while the endpoint is down ----------------------------------------------------------

    async def _keep_away(self) -> None:
        look_at = math.inf  # when to see whether anybody else is left
        while True:
            changed = self._changed
            health = self.settings.health
            wanted = self._endpoint.state is EndpointState.DOWN and health.on_down is OnDown.WITHDRAW
            if wanted == self._is_withdrawn:
                with trio.move_on_at(look_at if wanted and health.keep_last else math.inf):
                    await changed.wait()
                    continue
                # Whoever was here has gone since, or withdrew at the same moment as we did.
                look_at = self._next_look()
                if self._registration is None and await self._count_others() == 0:
                    self._is_withdrawn = False
                    self._emit("returned", "nobody else listens any more; senders are told that the endpoint is down")
                    self._note_change()
                continue
            with trio.move_on_after(self._rng.uniform(0, _SPREAD * health.interval_s)) as scope:
                await changed.wait()
            if not scope.cancelled_caught:
                continue
            if wanted and health.keep_last and not await self._count_others():
                # Who else would tell senders the reason? Until somebody else listens, or the endpoint is up.
                await changed.wait()
                continue
            self._is_withdrawn = wanted
            if wanted:
                look_at = self._next_look()
                self._emit("withdrawn", "leaving the relay while the endpoint is down, so that others get the senders")
            else:
                self._emit("returned", f"listening again, the endpoint is {self._endpoint.state.value.lower()}")
            self._note_change()

    def _next_look(self) -> float:
        """When to see who is left; at random within limits, lest several managers come back at one stroke."""
        return trio.current_time() + _LOOK_S * self._rng.uniform(1 - _SPREAD, 1)

    async def _count_others(self) -> int | None:
        """How many others the relay knows to listen. Asked now, since what was read a minute ago may be over.

        Returns: None if the relay does not say. A channel of ours that is being opened counts as ours.
        """
        watch = self._metadata
        if watch is None:
            return None
        await watch.read()
        if not watch.is_current or watch.entity is None:
            return None
        ours = 0 if self._registration is None else self.settings.listeners
        return max(0, watch.entity.listener_count - ours)

    # Taking senders --------------------------------------------------------------------------------------------------

    def _open_listener(self) -> OpenListener:
        settings = self.settings
        backlog = _BACKLOG + settings.limits.queue

        @contextlib.asynccontextmanager
        async def open_tunnel(reconnect: ReconnectPolicy) -> AsyncIterator[Listener]:
            access = RelayAccess.of(settings)
            async with access.listen(
                on_sender=self._take,
                on_request=self._refuse_request,
                wait_online=False,
                reconnect=reconnect,
                backlog=backlog,
            ) as listener:
                yield listener

        @contextlib.asynccontextmanager
        async def open_http(reconnect: ReconnectPolicy) -> AsyncIterator[Listener]:
            access = RelayAccess.of(settings)
            origin = parse_origin_url(settings.http_url)

            async def dial_origin() -> trio.SocketStream:
                # A connection serves one sender after the other, so there is nobody to introduce.
                dialling = replace(self.settings.dial, proxy_protocol=0)
                return (await dial([Target(origin.host, origin.port)], dialling, policy=self._policy())).stream

            scheme = "http" if access.connection_string.is_emulator else "https"
            forward = ForwardSettings(
                origin,
                sender_scheme=scheme,
                connect_timeout=min(settings.dial.timeout_s, 20.0),
            )
            forwarder = HttpForwarder(forward, settings.path, access.ssl_context, dial=dial_origin)

            async def forward_websockets() -> None:
                await forwarder.run(listener)

            async with (
                access.listen(
                    accept=partial(self._decide_http, forwarder),
                    on_request=partial(self._serve_http, forwarder),
                    wait_online=False,
                    reconnect=reconnect,
                ) as listener,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(forward_websockets)
                yield listener
                await listener.aclose()  # which ends the forwarder

        return open_http if settings.profile is Profile.HTTP else open_tunnel

    async def _take(self, waiting: WaitingSender) -> None:
        """Give a sender a task of its own, and wait until it is answered."""
        assert self._sessions is not None
        await self._sessions.start(self._accept, waiting)

    async def _accept(self, waiting: WaitingSender, *, task_status: trio.TaskStatus[None]) -> None:
        """See one sender through. Until its answer this is the listener's task, afterwards one of `run`."""
        is_answered = False

        def note_answer() -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                task_status.started()

        peer = waiting.incoming.remote_endpoint
        deadline = trio.current_time() + _ANSWER_S
        earlier = self._refused.find(waiting.incoming)
        if earlier is not None:
            # The relay offers who was refused with 503 to the next listener, and that one is ours, too.
            if waiting.is_waiting:
                await waiting.reject(earlier.status, one_line(earlier.text))
            note_answer()
            return
        try:
            async with self._admission.enter(None if peer is None else peer.address):
                if self.settings.profile is Profile.AZBRIDGE:
                    await self._serve_azbridge(waiting, note_answer)
                else:
                    await self._serve_raw(waiting, note_answer, deadline)
        except DialFailed as failure:
            if failure.status == 503 and self.settings.listeners > 1:
                self._refused.note(waiting.incoming, failure)
            await self._reject(waiting, failure, failure.kind)
        except RelayError as error:
            # The rendezvous, or the session, which has said so itself.
            if not is_answered:
                tracking_id = waiting.incoming.tracking_id
                self._emit("left", f"a sender left while it was being connected: {error}", tracking_id)
        except Exception as error:  # our bug: it costs this sender, not the others
            _log.error("! %s: a sender could not be served", self.name, exc_info=error)
            await self._reject(waiting, DialFailed(502, "the connection manager failed"), "internal")
        note_answer()

    async def _refuse_if_down(self, waiting: WaitingSender, route: Route) -> bool:
        """Tell a sender that nothing that it could be led to answers. Returns: whether that was so."""
        if route.health is None or not self._is_refusing:
            return False
        refusal = route.health.refusal()
        if self.settings.listeners > 1:
            self._refused.note(waiting.incoming, refusal)
        await self._reject(waiting, refusal, "endpoint-down")
        return True

    async def _serve_raw(self, waiting: WaitingSender, note_answer: Callable[[], None], deadline: float) -> None:
        route = await self._find_route()
        if await self._refuse_if_down(waiting, route):
            return
        dialled = await self._dial(route, route.targets, waiting, deadline)
        try:
            connection = await self._rendezvous_with(waiting)
        except BaseException:
            await cut(dialled.stream)  # noqa: ASYNC102 - shields itself
            raise
        note_answer()
        route.order.note_open(dialled.target)
        try:
            with self._entered(waiting, str(dialled.target)) as session:
                self._note_joined(session)
                await self._join(session, connection, dialled.stream)
        finally:
            route.order.note_closed(dialled.target)

    async def _serve_azbridge(self, waiting: WaitingSender, note_answer: Callable[[], None]) -> None:
        settings = self.settings
        route = await self._find_route() if not settings.ports else self._endpoint.route
        # The port's name comes only behind the 101. While any port may lead somewhere, a sender is let in to name it.
        if await self._refuse_if_down(waiting, route):
            return
        connection = await self._rendezvous_with(waiting)
        note_answer()
        chosen: list[Target] = []

        async def dial_port(binding: PortBinding) -> Dialled:
            dialled = await self._dial(route, binding.targets, waiting)
            session.endpoint = str(dialled.target)
            route.order.note_open(dialled.target)
            chosen.append(dialled.target)
            return dialled

        async def dial_datagrams(binding: PortBinding) -> trio.socket.SocketType:
            session.endpoint = f"udp:{binding.targets[0]}"
            opened = await open_datagrams(binding, settings.dial, self._policy())
            self._note_joined(session)
            return opened

        async def join(connection: Connection, stream: trio.abc.HalfCloseableStream) -> Spliced:
            self._note_joined(session)
            found = await self._join(session, connection, stream)
            return Spliced(to_second=found.to_first, to_first=found.to_second)

        with self._entered(waiting) as session:
            try:
                served = await serve(
                    connection,
                    PortTable.of(replace(settings, targets=route.targets)),
                    dial_port,
                    dial_datagrams=dial_datagrams,
                    join=join,
                    early_reply=settings.early_reply,
                )
                if served.datagrams is not None:
                    session.note_carried(served.to_endpoint, served.to_sender)
            except PortRefused as refusal:
                self._note_refusal(session.sender, refusal.text, "unknown-port", session.tracking_id)
            except DialFailed as failure:
                self._note_refusal(session.sender, failure.text, failure.kind, session.tracking_id)
            finally:
                for target in chosen:
                    route.order.note_closed(target)

    @contextlib.contextmanager
    def _entered(self, waiting: WaitingSender, endpoint: str = "") -> Iterator[OpenSession]:
        """As `SessionBook.entered`; the log has the end of what was joined."""
        with self._book.entered(waiting.incoming, endpoint) as session:
            try:
                yield session
            finally:
                if session.is_joined:
                    bytes_in, bytes_out = session.carried()
                    seconds = round(self._now_unix() - session.since_unix, 3)
                    self._log_session("ended", session, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds)

    def _note_joined(self, session: OpenSession) -> None:
        session.is_joined = True
        self._log_session("joined", session)

    def _log_session(self, kind: Literal["joined", "ended"], session: OpenSession, **counts: float) -> None:
        about = {"sender": session.sender, "endpoint": session.endpoint}
        log_detail("hcm", kind, self.name, session.tracking_id, **about, **counts)

    async def _rendezvous_with(self, waiting: WaitingSender) -> Connection:
        began = trio.current_time()
        connection = await waiting.accept()
        self._rendezvous = self._rendezvous.plus(trio.current_time() - began)
        return connection

    async def _find_route(self) -> Route:
        """Where connections lead.

        Raises:
          DialFailed: that is not known.
        """
        with trio.move_on_after(_FIRST_METADATA_S):
            await self._wait_until(self._knows_where)
        route = self._endpoint.route
        if not route.targets:
            why = "" if self._metadata is None else self._metadata.error
            raise DialFailed(503, f"the endpoint is not known: {why or 'the relay has not said yet'}", "no-endpoint")
        return route

    def _knows_where(self) -> bool:
        """Whether there are targets, or a reason why there are none."""
        return bool(self._endpoint.route.targets or (self._metadata is not None and self._metadata.error))

    @property
    def _is_refusing(self) -> bool:
        """Whether senders are told that the endpoint is down without a dial. Only where a probe will say otherwise."""
        health = self.settings.health
        return (
            self._endpoint.state is EndpointState.DOWN
            and health.on_down is not OnDown.IGNORE
            and health.probe.kind != "none"
            and not any(port.is_udp for port in self.settings.ports)  # nobody knows how those are
        )

    async def _dial(
        self, route: Route, targets: tuple[Target, ...], waiting: WaitingSender, deadline: float = math.inf
    ) -> Dialled:
        settings = self.settings.dial
        left = max(deadline - trio.current_time(), _LEAST_DIAL_S)
        try:
            dialled = await dial(
                targets,
                settings if settings.timeout_s <= left else replace(settings, timeout_s=left),
                order_state=route.order,
                policy=self._policy(),
                peer=waiting.incoming.remote_endpoint,
            )
        except DialFailed as failure:
            if targets == route.targets:
                self._endpoint.note_dial(failure)
            raise
        self._dials = self._dials.plus(dialled.seconds)
        if targets == route.targets:
            self._endpoint.note_dial(dialled.target)
        return dialled

    async def _join(
        self, session: OpenSession, connection: Connection, stream: trio.abc.HalfCloseableStream
    ) -> Spliced:
        """Carry the bytes to the end; the endpoint comes first. A loss is noted, and raised."""
        limits = self.settings.limits
        try:
            return await splice(
                throttled(stream, *self._rates()),
                connection,
                half_closed_timeout=limits.half_close_linger_s,
                idle_timeout=limits.idle_timeout_s,
                on_session=session.follow,
            )
        except RelayError as error:
            self._book.lost += 1
            said = str(error).replace("the first stream", f"the endpoint {session.endpoint}")
            said = said.replace("the second stream", f"the sender {session.sender}".rstrip())
            self._emit("lost", f"a connection broke: {said}", session.tracking_id)
            raise

    async def _reject(self, waiting: WaitingSender, failure: DialFailed, reason: str) -> None:
        incoming = waiting.incoming
        self._note_refusal(sender_of(incoming), failure.text, reason, incoming.tracking_id, failure.status)
        if waiting.is_waiting:
            await waiting.reject(failure.status, one_line(failure.text))

    def _note_refusal(self, sender: str, text: str, reason: str, tracking_id: str, status: int | None = None) -> None:
        self._rejected[reason] += 1
        self._note_error("neither" if reason in _NO_MATTER_OF_ENDPOINTS else "endpoint", text)
        said = f"with {status}" if status is not None else "by closing its connection"
        who = f"the sender {sender}" if sender else "a sender"
        self._emit("refused", f"{who} was refused {said}: {text}", tracking_id)

    # HTTP ------------------------------------------------------------------------------------------------------------

    async def _refuse_request(self, request: HttpRequest) -> None:
        """HTTP to a tunnel."""
        text = f"The hybrid connection {self.settings.path} is a TCP tunnel here and takes no HTTP requests\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))]
        async with request.respond(501, headers) as responder:
            await responder.send_all(text)

    async def _decide_http(self, forwarder: HttpForwarder, incoming: IncomingConnection) -> Accept | Reject:
        try:
            await self._check_origin()
        except DialFailed as failure:
            self._note_refusal(sender_of(incoming), failure.text, failure.kind, incoming.tracking_id, failure.status)
            return Reject(failure.status, one_line(failure.text))
        return await forwarder.accept(incoming)

    async def _serve_http(self, forwarder: HttpForwarder, request: HttpRequest) -> None:
        peer = request.remote_endpoint
        try:
            async with self._admission.enter(None if peer is None else peer.address):
                await self._check_origin()
                await forwarder.serve(request)
        except DialFailed as failure:
            sender = "" if peer is None else peer.address
            self._note_refusal(sender, failure.text, failure.kind, request.tracking_id, failure.status)
            async with request.respond(failure.status, [("Content-Type", "text/plain")]) as responder:
                await responder.send_all(f"{failure.text}\n".encode())

    async def _check_origin(self) -> None:
        """Ask the policy about the server, whose connections the forwarder opens by itself."""
        policy = self._policy()
        if policy is None:
            return
        for target in self._endpoint.route.targets:
            await resolve(target, self.settings.dial, policy)

    # What it tells ---------------------------------------------------------------------------------------------------

    @property
    def relay_leg(self) -> RelayLeg:
        """How it stands with the relay."""
        if self._has_ended.is_set():
            return RelayLeg.STOPPED
        if self._registration is not None and self._may_listen and not self._must_restart:
            return self._registration.leg
        if self._is_paused or self._is_draining:
            return RelayLeg.PAUSED
        if self._is_withdrawn:
            return RelayLeg.WITHDRAWN
        return RelayLeg.STOPPED if self._is_stopping else RelayLeg.CONNECTING

    @property
    def _online(self) -> int:
        return 0 if self._registration is None else self._registration.online

    @property
    def shown(self) -> Shown:
        """The word for tables."""
        leg = self.relay_leg
        if (self._is_draining or self._is_stopping) and not self._has_ended.is_set():
            return Shown.DRAINING
        if leg is RelayLeg.CONNECTED and (
            self._endpoint.is_missing or self._endpoint.state in (EndpointState.DEGRADED, EndpointState.DOWN)
        ):
            return Shown.DEGRADED
        return Shown(leg.value)

    def look_again(self) -> None:
        """Somebody watches: have the relay asked again how many listen, unless that was a moment ago."""
        if self._metadata is not None:
            self._metadata.refresh(older_than_s=_FRESH_S)

    def sessions(self) -> list[SessionStatus]:
        """The open connections."""
        return self._book.snapshot(self.name)

    def status(self) -> ConnectionStatus:
        """A snapshot."""
        registration, watch = self._registration, self._metadata
        entity = None if watch is None else watch.entity
        admission = self._admission.statistics()
        bytes_in, bytes_out = self._book.carried()
        health = self._endpoint.route.health
        latency_s = None if health is None else health.latency
        relay_error, endpoint_error, last_error = self._find_errors()
        next_try_unix = None if registration is None else registration.next_try_unix
        attempts = 0 if registration is None else registration.attempts
        served = [] if registration is None else [found.status for found in registration.listeners]
        reconnects = self._reconnects if registration is None else self._reconnects + registration.reconnects
        access_host = self.settings.relay.endpoint.partition("://")[2].rstrip("/")
        return ConnectionStatus(
            name=self.name,
            status=self.shown.value,
            detail=self._detail(attempts, next_try_unix),
            relay_leg=self.relay_leg.value,
            endpoint_leg=self._endpoint.state.value,
            relay=access_host or self.settings.relay.endpoint,
            path=self.settings.path,
            profile=self.settings.profile.value,
            listeners_here=self._online,
            listeners_wanted=self.settings.listeners,
            listeners_total=None if entity is None else entity.listener_count,
            listeners_unix=None if watch is None else watch.entity_unix,
            endpoint=self._endpoint.shown,
            endpoint_from="metadata" if self._endpoint.is_from_metadata else "settings",
            health=self._health_text(),
            latency_ms=None if latency_s is None else latency_s * 1000,
            open=len(self._book) + sum(found.requests_under_way for found in served),
            queued=admission.queued,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            accepted=self._book.accepted + self._requests_served + sum(found.requests_served for found in served),
            lost=self._book.lost,
            rejected=dict(self._rejected),
            since_unix=self._since_unix,
            attempts=attempts,
            next_try_unix=next_try_unix,
            last_error=last_error[1],
            last_error_unix=last_error[0],
            created_unix=None if entity is None or entity.created_at is None else entity.created_at.timestamp(),
            updated_unix=None if entity is None or entity.updated_at is None else entity.updated_at.timestamp(),
            dials=self._dials,
            rendezvous=self._rendezvous,
            throttled_in_s=self._waited_in.seconds,
            throttled_out_s=self._waited_out.seconds,
            reconnects=dict(reconnects),
            tokens_renewed=self._tokens_renewed
            + (0 if registration is None else registration.tokens_renewed)
            + sum(found.tokens_renewed for found in served),
            tokens_failed=self._tokens_failed
            + (0 if registration is None else registration.tokens_failed)
            + sum(found.tokens_failed for found in served),
            token_expires_unix=_earliest(found.token_expires_unix for found in served),
            certificate_expires_unix=_earliest(found.certificate_expires_unix for found in served),
            relay_error=relay_error[1],
            relay_error_unix=relay_error[0],
            endpoint_error=endpoint_error[1],
            endpoint_error_unix=endpoint_error[0],
            limited={
                "max_open": admission.refused_full + admission.refused_waited,
                "per_sender_open": admission.refused_sender,
            },
        )

    async def check_targets(self) -> list[TargetCheck]:
        """Dial each target once, as a sender's connection would, and close it again. A checkpoint."""
        found: list[TargetCheck] = []
        route = await self._find_route()
        for target in route.targets:
            began = trio.current_time()
            try:
                dialled = await dial([target], self.settings.dial, policy=self._policy())
            except DialFailed as failure:
                seconds = trio.current_time() - began
                found.append(TargetCheck(str(target), False, failure.text, failure.kind, seconds))
            else:
                await cut(dialled.stream)
                text = f"{dialled.address} answered in {dialled.seconds * 1000:.1f} ms"
                found.append(TargetCheck(str(target), True, text, "", dialled.seconds))
        return found

    def _detail(self, attempts: int, next_try_unix: float | None) -> str:
        if self._is_draining or self._is_stopping:
            return f"{len(self._book)} open"
        if next_try_unix is None or self.relay_leg is RelayLeg.CONNECTED:
            return ""
        return f"try {attempts + 1} in {max(0.0, next_try_unix - self._now_unix()):.0f} s"

    def _health_text(self) -> str:
        health = self._endpoint.route.health
        if health is None:
            return "no endpoint"
        return health.summary

    def _find_errors(self) -> tuple[_Noted, _Noted, _Noted]:
        """The last error of the relay leg, that of the endpoint leg, and the last of all."""
        registration = self._registration
        if registration is not None and registration.last_error_unix is not None:
            self._note_error("relay", registration.last_error, registration.last_error_unix)
        none: _Noted = (None, "")
        last = max(self._errors.values(), key=lambda noted: noted[0], default=none)
        return self._errors.get("relay", none), self._errors.get("endpoint", none), last

    def _note_error(self, whose: _Whose, text: str, at_unix: float | None = None) -> None:
        at_unix = self._now_unix() if at_unix is None else at_unix
        if whose not in self._errors or self._errors[whose][0] <= at_unix:
            self._errors[whose] = at_unix, text

    def _emit(self, kind: str, text: str, tracking_id: str = "") -> None:
        self._events.emit(self.settings.name, kind, text, tracking_id)

    def _emit_endpoint(self, kind: str, text: str) -> None:
        if kind in ("endpoint-down", "endpoint-degraded"):
            self._note_error("endpoint", text)
        self._emit(kind, text)

    def _note_change(self) -> None:
        """Wake whoever waits for anything; called after every change."""
        if self._online != self._online_before:
            self._online_before = self._online
            if self._metadata is not None:
                self._metadata.refresh()  # how many listen has changed
        if self.shown is not self._shown:
            self._shown = self.shown
            self._since_unix = self._now_unix()
        self._changed.set()
        self._changed = trio.Event()

    def _rates(self) -> tuple[Rates | None, Rates | None]:
        shared_in, shared_out = self._shared_rates()
        return (
            SharedRates(self._inbound, shared_in, self._waited_in) if shared_in is not None else self._inbound,
            SharedRates(self._outbound, shared_out, self._waited_out) if shared_out is not None else self._outbound,
        )

    def _buckets(self) -> tuple[TokenBucket | None, TokenBucket | None]:
        limits = self.settings.limits
        burst = max(limits.burst, 1)
        return (
            TokenBucket(limits.rate_in, burst, self._waited_in) if limits.rate_in else None,
            TokenBucket(limits.rate_out, burst, self._waited_out) if limits.rate_out else None,
        )


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((found for found in times if found is not None), default=None)
