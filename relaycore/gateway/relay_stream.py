"""WebSocket senders: one sender is brought together with one listener, and the pair is served to its end.

::

    sender task                                  listener's rendezvous task
    ───────────                                  ──────────────────────────
    check, choose, mint, offer accept ──────▶ (listener dials the address)
    wait: 30 s, watching the sender              claim the address
          ◀─────────── hand over stream ───────  its task ends, the stream goes on
    101 to the sender, 101 to the listener
    run the session
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import trio

from ..broker.auth import Grant
from ..broker.model import HybridConnection
from ..broker.quota import ConnectionLease
from ..broker.registry import ListenerEntry, parse_listener_filter
from ..broker.rendezvous import GONE_TEXT, not_accepted
from ..errors import NoListener, Refused, Rejected, RendezvousGone, ServerBusy
from ..net.direct import direct_socket
from ..net.linger import cut
from ..net.session import EndReason, Session, SessionLeg, SessionResult
from ..trace import (
    RENDEZVOUS_CLAIMED,
    RENDEZVOUS_EXPIRED,
    RENDEZVOUS_MINTED,
    RENDEZVOUS_REJECTED,
    SESSION_CLOSED,
    SESSION_JOINED,
)
from ..vocab import Action, CloseBy, LegKind, RefusalReason, TrackingId
from ..wire import limits
from ..wire.address import Address, build_rendezvous
from ..wire.handshake import UpgradeRequest, build_101, check_upgrade, connect_headers
from ..wire.http1 import RequestHead, build_response
from ..wire.messages import Accept, encode_accept
from .control_channel import ControlChannel, Outgoing
from .state import SHUTDOWN_TEXT, Gateway, Peer, deleted_text, shutting_down
from .waiter import CLOSE_HEADERS, HandOver, Lost, Refusal, StreamWaiter, Waiter, let_go

__all__ = ["LiveSession", "serve_rendezvous", "serve_sender", "websocket_disabled"]

_EARLY_BYTES = 65_536
"""What a sender may send before its 101; RFC 6455 4.1 lets it send nothing, so more is not read."""


_SHORT = 1.0
"""Seconds to a deadline that is kept to from the start."""


@dataclass(eq=False, slots=True)
class LiveSession:
    """A running session in the gateway's books."""

    session: Session
    namespace: str
    entity_path: str
    tracking_id: TrackingId


class _Sender:
    """One sender's way from its accepted token to the hand-over."""

    def __init__(
        self,
        gateway: Gateway,
        peer: Peer,
        head: RequestHead,
        address: Address,
        namespace: str,
        entity: HybridConnection,
        tracking_id: TrackingId,
        headers: dict[str, str],
        trailing: bytes,
    ) -> None:
        self._gateway = gateway
        self._peer = peer
        self._head = head
        self._address = address
        self._namespace = namespace
        self._entity = entity
        self._tracking_id = tracking_id
        self._headers = headers
        self.early = bytearray(trailing)
        self.is_gone = False
        self._deadline = trio.current_time() + gateway.config.timeouts.accept

    async def find_listener(self) -> HandOver | Refused | None:
        """Offer the sender to listeners until one comes, refuses, or time is up.

        Returns: the rendezvous connection, which belongs to the caller; why there is none; or None when the sender
        itself has gone.
        """
        found = await self._offer_in_turn()
        if isinstance(found, HandOver):
            return found
        if self.is_gone:
            return None
        return found or not_accepted()

    async def _wait_for(self, event: Callable[[], Awaitable[object]]) -> bool:
        """Wait for something while the sender is watched. Returns: False when it has gone, or its time is up."""
        with trio.move_on_at(self._deadline) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await event()
                nursery.cancel_scope.cancel()
        return not self.is_gone and not limit.cancelled_caught

    async def _wait_answer(self, waiter: StreamWaiter, channel: ControlChannel) -> None:
        """Wait for what becomes of an accept; a listener that nothing is heard of meanwhile has to prove that it lives.

        One that does not is closed, which is an outcome.
        """
        while True:
            heard = channel.bytes_heard
            with trio.move_on_after(limits.ACCEPT_DOUBT):
                await waiter.sleep()
                return
            if channel.bytes_heard == heard:
                channel.demand_life_nowait()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Notice a sender that goes away while it waits; keep what it sends too early."""
        try:
            while len(self.early) < _EARLY_BYTES:
                data = await self._peer.stream.receive_some(_EARLY_BYTES - len(self.early))
                if not data:
                    break
                self.early += data
            else:
                return
        except trio.BrokenResourceError:
            pass
        self.is_gone = True
        scope.cancel()

    async def _offer_in_turn(self) -> HandOver | Refused | None:
        gateway = self._gateway
        allowed, disallowed = parse_listener_filter(self._head.headers)
        asked: set[ListenerEntry] = set()
        busy: list[ListenerEntry] = []
        refused: Refused | None = None
        while True:
            try:
                entry = gateway.registry.choose(
                    self._namespace,
                    self._entity.path,
                    allowed=allowed,
                    disallowed=disallowed,
                    excluded=asked,
                    rng=gateway.rng,
                )
            except NoListener as none:
                if not busy:
                    return refused or none
                # Nobody better is there: a crowd that comes at once fills the queue of a listener that reads well.
                entry = busy.pop(gateway.rng.randrange(len(busy)))
                assert isinstance(entry.handle, ControlChannel)
                if not await self._wait_for(entry.handle.wait_room):
                    return refused
                asked.discard(entry)
                continue
            asked.add(entry)
            channel = entry.handle
            assert isinstance(channel, ControlChannel)
            outcome = await self._offer(channel)
            match outcome:
                case HandOver():
                    return outcome
                case Refusal(status, description):
                    refused = Rejected(description, http_status=status)
                    # connection manager 4.3.7: what one has no room or no endpoint for, another one may take.
                    if status != HTTPStatus.SERVICE_UNAVAILABLE:
                        return refused
                case Refused() | None:
                    return outcome or refused
                case Lost.BUSY:
                    busy.append(entry)
                case Lost.CHANNEL:
                    continue

    async def _offer(self, channel: ControlChannel) -> HandOver | Refusal | Refused | Lost | None:
        """Send one listener the ``accept`` and wait for what becomes of it; None: as `_wait_for` says."""
        gateway = self._gateway
        waiter = StreamWaiter()
        if gateway.is_stopping:
            return shutting_down()
        try:
            pending = gateway.rendezvous.mint(
                waiter,
                namespace=self._namespace,
                entity_path=self._entity.path,
                tracking_id=self._tracking_id,
                now=trio.current_time(),
                deadline=self._deadline,
                new_id=gateway.new_secret,
            )
        except ServerBusy as busy:
            return busy
        message = Outgoing("")
        try:
            message.text = encode_accept(
                Accept(
                    address=build_rendezvous(
                        channel.public_url,
                        self._address.raw_path,
                        self._address.user_query,
                        Action.ACCEPT,
                        self._tracking_id,
                        pending.id,
                    ),
                    id=self._tracking_id,
                    connectHeaders=self._headers,
                    remoteEndpoint=self._peer.remote,
                )
            )
            if len(message.text.encode()) > limits.MAX_CONTROL_MESSAGE_BYTES:
                return Refused(
                    "Request headers are too large for the control channel",
                    http_status=431,
                    reason=RefusalReason.HEAD_TOO_LARGE,
                )
            if not channel.offer_nowait(message):
                return Lost.BUSY if channel.is_open else Lost.CHANNEL
            heard = channel.bytes_heard
            channel.waiters.add(waiter)
            gateway.waiters.add(waiter)
            gateway.trace.emit(
                RENDEZVOUS_MINTED,
                tracking_id=self._tracking_id,
                entity=self._entity.path,
                listener_id=channel.entry.id,
            )
            # Without a deadline as long as it is far, see the waiter's module.
            if self._deadline - trio.current_time() < _SHORT or not await waiter.sleep(gateway.patience):
                await self._wait_for(partial(self._wait_answer, waiter, channel))
                if waiter.is_unanswered and channel.bytes_heard == heard:
                    channel.demand_life_nowait()  # the sender has left, and its successors shall fare better
            # Nothing waits from here to the session, so that the connection cannot be lost on the way.
            return waiter.take()
        finally:
            channel.withdraw_nowait(message)
            channel.waiters.discard(waiter)
            gateway.waiters.discard(waiter)
            let_go(gateway, pending, waiter)


def websocket_disabled(path: str) -> Refused:
    """The answer where an entity's ``websocket`` switch is off."""
    return Refused(
        f"WebSocket connections are switched off for the endpoint: {path}",
        http_status=403,
        reason=RefusalReason.WEBSOCKET_DISABLED,
    )


def _refuse_switched_off(entity: HybridConnection) -> None:
    if not entity.websocket:
        raise websocket_disabled(entity.path)


async def serve_sender(
    gateway: Gateway, peer: Peer, head: RequestHead, address: Address, trailing: bytes
) -> Awaitable[None] | None:
    """Take a WebSocket sender: check it, and find it a listener.

    Returns: the rest, for the caller to await at once: both 101s, and the session to its end. None when the sender has
    gone.

    Raises:
      Refused, RemoteProtocolError: the caller answers.
    """
    upgrade = check_upgrade(head)
    namespace, entity, grant, source = gateway.admit_sender(
        head, address.path, address.token, refuse_switched_off=_refuse_switched_off
    )
    lease: ConnectionLease | None = gateway.connections.acquire(namespace.name)
    try:
        tracking_id = gateway.tracking_id(address.id)
        headers = connect_headers(head.headers, credential_header=source, via_host=head.host)
        sender = _Sender(gateway, peer, head, address, namespace.name, entity, tracking_id, headers, trailing)
        result = await sender.find_listener()
        if isinstance(result, HandOver):
            peer.lease, lease = lease, None
            peer.session_id = tracking_id
            early = bytes(sender.early)
            return _join(gateway, peer, upgrade, early, result, namespace.name, entity, tracking_id, grant)
        if result is None:
            gateway.trace.emit(RENDEZVOUS_EXPIRED, tracking_id=tracking_id, entity=entity.path, cause="sender gone")
            return None
        result.tracking_id = tracking_id
        if result.reason is RefusalReason.ACCEPT_TIMEOUT:
            gateway.trace.emit(RENDEZVOUS_EXPIRED, tracking_id=tracking_id, entity=entity.path, cause="timeout")
        raise result
    finally:
        if lease is not None:
            lease.release()


async def _join(
    gateway: Gateway,
    peer: Peer,
    upgrade: UpgradeRequest,
    early: bytes,
    listener: HandOver,
    namespace: str,
    entity: HybridConnection,
    tracking_id: TrackingId,
    grant: Grant,
) -> None:
    """Answer both sides and run their session. Owns both streams, whatever happens."""
    peer.is_detached = True
    timeouts = gateway.config.timeouts
    try:
        # 7.2: exactly one protocol, and one that this sender offered; else neither side is told of any.
        protocols = listener.upgrade.protocols
        protocol = protocols[0] if len(protocols) == 1 and protocols[0] in upgrade.protocols else None
        session = Session(
            SessionLeg(LegKind.WS_SERVER, peer.stream, early),
            SessionLeg(LegKind.WS_SERVER, listener.stream, listener.early),
            half_closed_timeout=timeouts.half_closed,
            close_timeout=timeouts.close,
            idle_timeout=timeouts.idle,
        )
        live = LiveSession(session, namespace, entity.path, tracking_id)
        gateway.sessions.add(live)
        # Between the rendezvous and here nobody knew of it, so what closes sessions may have passed it by.
        if gateway.is_stopping or not gateway.is_current(namespace, entity):
            text = SHUTDOWN_TEXT if gateway.is_stopping else deleted_text(entity.path)
            session.close_nowait(1001, gateway.close_reason(text, tracking_id).encode())
        # The listener's connection has left its own task and is counted here.
        gateway.open_connections += 1
        started = trio.current_time()
        result = None
        try:
            await _answer(peer.stream, build_101(upgrade.key, protocol=protocol), timeouts.close)
            await _answer(listener.stream, build_101(listener.upgrade.key, protocol=protocol), timeouts.close)
            gateway.trace.emit(
                SESSION_JOINED,
                tracking_id=tracking_id,
                namespace=namespace,
                entity=entity.path,
                remote=f"{peer.remote.address}:{peer.remote.port}",
                rule=grant.rule_name,
                subprotocol=protocol or "",
            )
            result = await gateway.mover.run(session)
        except (trio.BrokenResourceError, trio.TooSlowError):
            # One of the two went away between its handshake and our 101: an abort like any other.
            result = SessionResult(EndReason.ABORTED, CloseBy.RELAY, session.statistics())
        finally:
            gateway.sessions.discard(live)
            gateway.open_connections -= 1
            # Without a result it was cut by the server's end, or by a fault of ours.
            result = result or SessionResult(EndReason.RELAY_CLOSED, CloseBy.RELAY, session.statistics())
            gateway.count_session(result)
            to_listener, to_sender = result.statistics.to_listener, result.statistics.to_sender
            gateway.trace.emit(
                SESSION_CLOSED,
                tracking_id=tracking_id,
                namespace=namespace,
                entity=entity.path,
                reason=result.reason.value,
                by=result.by.value,
                close_code=to_listener.close_code if to_listener.close_code is not None else to_sender.close_code,
                to_listener_bytes=to_listener.payload_bytes,
                to_sender_bytes=to_sender.payload_bytes,
                seconds=round(trio.current_time() - started, 3),
            )
    finally:
        await cut(peer.stream, listener.stream)  # noqa: ASYNC102 - shields itself


async def _answer(stream: trio.abc.Stream, answer: bytes, send_timeout: float) -> None:
    """Send a 101, into the socket itself where it takes it at once. A checkpoint only when it waits.

    Raises:
      trio.BrokenResourceError: the peer has gone.
      trio.TooSlowError: it does not take it.
    """
    direct = direct_socket(stream)
    sent = direct.send_nowait(answer) if direct is not None else 0
    if sent < len(answer):
        with trio.fail_after(send_timeout):
            await stream.send_all(memoryview(answer)[sent:])


async def serve_rendezvous(gateway: Gateway, peer: Peer, head: RequestHead, address: Address, trailing: bytes) -> None:
    """Take a listener that comes to an address of an ``accept``: hand it to the sender, or carry its rejection there.

    On return the stream belongs to the sender's task, or the connection was a rejection and has been answered.

    Raises:
      Refused, RemoteProtocolError: the caller answers.
    """
    upgrade = check_upgrade(head)
    if address.rendezvous is None:
        raise Refused("The rendezvous address is malformed", http_status=400)
    if address.status_code is not None and address.action is Action.REQUEST:
        # 7.3 is about connections; a request is answered, whatever the answer is.
        raise Refused("A request is answered, it cannot be rejected", http_status=400)
    take = gateway.rendezvous.claim if address.status_code is None else gateway.rendezvous.reject
    waiter = take(address.rendezvous, address.action, trio.current_time()).sender
    assert isinstance(waiter, Waiter)
    if address.status_code is not None:
        # 7.3: the sender gets the listener's words, the listener 410.
        status = address.status_code if 400 <= address.status_code <= 599 else 502
        waiter.reject(Refusal(status, address.status_description or ""))
        gateway.trace.emit(RENDEZVOUS_REJECTED, tracking_id=address.id or "", entity=address.path, status=status)
        await peer.stream.send_all(build_response(410, "Gone", CLOSE_HEADERS))
        return
    if not waiter.hand_over(HandOver(peer.stream, trailing, upgrade)):
        # Its control channel went in this very moment, and somebody else is being asked.
        raise RendezvousGone(GONE_TEXT)
    peer.is_detached = True
    gateway.trace.emit(RENDEZVOUS_CLAIMED, tracking_id=address.id or "", entity=address.path)
