"""One listener's control channel, from its registration to its end.

The reading task is also the watchdog: it waits for the next event until the nearest of two instants, the next ping
or the end of the token, and acts when one passes. Sending gets a task of its own with the first message, because
thousands of listeners that nobody has called yet are the normal state of a relay.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from ..broker.auth import Credential, Grant
from ..broker.exchange import Answer, Replies
from ..broker.model import Namespace, endpoint_not_found
from ..broker.quota import ByteLease
from ..broker.registry import ListenerEntry, listener_id
from ..errors import ConnectionLost, EndpointAlreadyExists, Refused, RemoteProtocolError
from ..net.linger import close_gently
from ..net.websocket import WebSocketLeg
from ..trace import CONTROL_IGNORED, LISTENER_LOST, LISTENER_REGISTERED, LISTENER_RENEWED, TOKEN_REFUSED
from ..vocab import CloseBy, ListenerId, Right
from ..wire import limits
from ..wire.address import Address
from ..wire.frames import Binary, Close, Event, Pong, Text
from ..wire.handshake import build_101, check_upgrade
from ..wire.http1 import RequestHead
from ..wire.messages import RenewToken, Response, parse_from_listener
from ..wire.status import is_guid
from .state import Gateway, Peer, shutting_down

if TYPE_CHECKING:
    from .exchange import Exchange
    from .waiter import Waiter

__all__ = ["ControlChannel", "Outgoing", "serve_listener"]

_MESSAGES_PER_TURN: Final = 16
"""Messages of responses taken from one read before the other connections have a turn: less than a millisecond. Of
others one is enough."""

_LIFE_PIECES: Final = 10
"""Of the wait for a sign of life; see `ControlChannel._await_life`."""

_BATCH_BYTES: Final = 65_536
"""How much of the queue goes into one send."""


@dataclass(eq=False, slots=True)
class Outgoing:
    """A control message on its way: the JSON, and behind it the body that it announces, if any.

    ``lease`` is for the memory of the body; it is released when the message has left, or is taken back. ``is_taken``
    when it has left the queue.
    """

    text: str
    body: bytes | None = None
    lease: ByteLease | None = None
    is_taken: bool = False

    @property
    def size(self) -> int:
        """Bytes of both, about."""
        return len(self.text) + len(self.body or b"")

    def release(self) -> None:
        """The message is needed no more."""
        if self.lease is not None:
            self.lease.release()


class ControlChannel:
    """A registered listener.

    Owned by the task that runs :meth:`run`; other tasks only call the ``*_nowait`` methods.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        listener_id: ListenerId,
        namespace: str,
        entity_path: str,
        grant: Grant,
        public_url: str,
        tracking_id: str,
    ) -> None:
        # Static after construction.
        self._gateway = gateway
        self.entry = ListenerEntry(
            listener_id, namespace, entity_path, handle=self, grant_expiry_unix=grant.expiry_unix
        )
        self.public_url = public_url
        self.tracking_id = tracking_id
        # Owned by the reading task.
        self._grant = grant
        self._pings_unanswered = 0
        self._leg: WebSocketLeg | None = None
        self._nursery: trio.Nursery | None = None
        # Shared: what is to be sent, in order, and who has an accept under way here.
        self._queue: deque[Outgoing | Ping] = deque()
        self._room = trio.lowlevel.ParkingLot()
        self._is_sending = False
        self._sending = trio.lowlevel.ParkingLot()
        self._closing: tuple[int, str] | None = None
        self._is_doubted = False
        self._is_awaited = False
        self._verdict: tuple[CloseBy, str] | None = None
        self.waiters: set[Waiter[Any]] = set()
        self.replies: Replies[Exchange] = Replies()
        self._messages_this_turn = 0
        self.messages_sent = 0
        self.messages_ignored = 0

    @property
    def is_open(self) -> bool:
        """Whether messages can still be sent over it."""
        return self._closing is None

    def doubt_nowait(self) -> None:
        """Ask for a sign of life: another channel has come with the same id, so this one may have died unnoticed."""
        self._is_doubted = True
        self._ping_soon()

    @property
    def bytes_heard(self) -> int:
        """Bytes that have come over it so far; any of them is a sign of life."""
        return 0 if self._leg is None else self._leg.bytes_received

    def demand_life_nowait(self) -> None:
        """Ask for a sign of life, and close the channel if there is none for `SIGN_OF_LIFE_TIMEOUT`.

        For an accept that nobody answers: a process that was stopped, or a machine that has gone, still looks like a
        listener, and who is sent there waits in vain.
        """
        if not self._is_awaited and self._closing is None and self._nursery is not None:
            self._is_awaited = True
            self._nursery.start_soon(self._await_life)

    @property
    def has_room(self) -> bool:
        """Whether a message offered now is taken."""
        return self._closing is None and not self._is_full

    def offer_nowait(self, message: Outgoing) -> bool:
        """Queue a control message.

        Returns: False when the channel is closing, or so many messages wait that the listener cannot be reading;
        another listener is the better choice then.
        """
        if not self.has_room:
            return False
        self._send_soon(message)
        return True

    def withdraw_nowait(self, message: Outgoing) -> bool:
        """Take back a message, since nobody waits for what it would bring. Returns: False when it has left."""
        if message.is_taken or message not in self._queue:
            return False
        self._queue.remove(message)
        message.release()
        self._room.unpark()
        return True

    async def wait_room(self) -> None:
        """Wait until a message may fit in, or the channel is closing; served in the order of coming."""
        while self._closing is None and self._is_full:
            await self._room.park()

    @property
    def _is_full(self) -> bool:
        return len(self._queue) >= self._gateway.config.limits.control_queue

    def close_nowait(self, code: int, text: str) -> None:
        """Stop offering, send Close, and end the channel when that is answered or ``timeouts.close`` has passed."""
        if self._closing is not None:
            return
        self._closing = (code, self._gateway.close_reason(text, self.tracking_id))
        self._deregister()
        if self._nursery is not None:
            self._nursery.start_soon(self._close_by_relay)

    async def run(self, leg: WebSocketLeg) -> tuple[CloseBy, str]:
        """Serve the channel until it ends.

        Returns: who ended it and why, for the log. The stream is left to the caller.
        """
        self._leg = leg
        outcome = (CloseBy.RELAY, "our Close was not answered")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._closing is not None:
                    nursery.start_soon(self._close_by_relay)
                elif self._queue:
                    self._is_sending = True
                    nursery.start_soon(self._send_queued)
                try:
                    outcome = await self._read(leg)
                finally:
                    # At once: a nursery that winds up takes no task any more, and so this channel no message.
                    self._retire()
                nursery.cancel_scope.cancel()
            outcome = self._verdict or outcome
        except Exception:
            # The caller logs it; the listener learns that it was not at fault and may come again.
            self._closing = (1011, self._gateway.close_reason("Internal error", self.tracking_id))
            await self._send_close(*self._closing)  # noqa: ASYNC120 - a cancelled channel need not be told
            raise
        finally:
            self._retire()
        return outcome

    # ---------------------------------------------------------------------------------------------------------- reading

    async def _read(self, leg: WebSocketLeg) -> tuple[CloseBy, str]:
        ping_interval = self._gateway.config.timeouts.ping_interval
        next_ping = trio.current_time() + ping_interval
        heard = leg.bytes_received
        while True:
            try:
                # One scope for all that a read brought.
                if (event := leg.receive_nowait()) is None:
                    with trio.move_on_at(min(next_ping, self._token_deadline())):
                        event = await leg.receive()
            except ConnectionLost as lost:
                return CloseBy.LISTENER, f"lost: {lost}"
            except RemoteProtocolError as error:
                await self._end_with(error.close_code, str(error))
                return CloseBy.RELAY, f"protocol error: {error}"
            if leg.bytes_received != heard:
                # Any byte is a sign of life, also inside a message that is slow to come.
                heard = leg.bytes_received
                self._pings_unanswered = 0
                if self._is_doubted:
                    self._is_doubted = not self._gateway.registry.confirm(self.entry)
                next_ping = trio.current_time() + ping_interval
            elif event is None:
                verdict = await self._on_silence(next_ping)
                if verdict is not None:
                    return verdict
                if trio.current_time() >= next_ping:
                    next_ping = trio.current_time() + ping_interval
            if event is None:
                continue
            try:
                verdict = await self._on_event(event)
            except RemoteProtocolError as error:
                await self._end_with(error.close_code, str(error))
                return CloseBy.RELAY, f"protocol error: {error}"
            if verdict is not None:
                return verdict
            # Thousands of messages fit into one read, and the other connections have a turn as well.
            self._messages_this_turn += 1
            if self._messages_this_turn >= _MESSAGES_PER_TURN:
                self._messages_this_turn = 0
                await trio.lowlevel.checkpoint()

    async def _on_event(self, event: Event) -> tuple[CloseBy, str] | None:
        """Act on a message or control frame. Returns: who ended the channel and why, if it is over."""
        match event:
            case Text(data):
                message = parse_from_listener(data)
                if isinstance(message, Response):
                    self._deliver(self.replies.receive_response(message, len(data)))
                elif isinstance(message, RenewToken):
                    self._messages_this_turn = _MESSAGES_PER_TURN
                    if not await self._renew(message):
                        return CloseBy.RELAY, "renewToken refused"
                else:
                    self._messages_this_turn = _MESSAGES_PER_TURN
                    self.messages_ignored += 1
                    self._gateway.trace.emit(
                        CONTROL_IGNORED, tracking_id=self.tracking_id, entity=self.entry.entity_path
                    )
            case Binary(body):
                self._deliver(self.replies.receive_body(body))
            case Close(code, reason):
                return await self._on_close(code, reason)
            case Pong() | _:
                pass
        return None

    async def _on_close(self, code: int | None, reason: str) -> tuple[CloseBy, str]:
        by = CloseBy.LISTENER if self._closing is None else CloseBy.RELAY
        # 6.1: whoever sees the answer may open the next listener at once, and must not share with a ghost.
        self._deregister()
        if self._closing is None:
            self._closing = (code or 1000, "")
            await self._send_close(code, reason)
        return by, f"closed with {code if code is not None else 'no code'}"

    async def _on_silence(self, next_ping: float) -> tuple[CloseBy, str] | None:
        if self._token_left() <= 0:
            await self._end_with(1008, "ExpiredToken: the token of this listener has expired")
            return CloseBy.RELAY, "token expired"
        if trio.current_time() < next_ping:
            return None  # the two clocks differ by a moment; the token has it left
        if self._pings_unanswered >= limits.PINGS_UNANSWERED:
            return CloseBy.LISTENER, f"{self._pings_unanswered} pings unanswered"
        self._pings_unanswered += 1
        self._send_soon(Ping(b""))
        return None

    async def _await_life(self) -> None:
        heard = self.bytes_heard
        seconds = limits.SIGN_OF_LIFE_TIMEOUT
        self._ping_soon()
        # In pieces: a relay that was stopped itself, or moved to another host, counts that as one of them. What came
        # meanwhile has yet to be sent again where the network dropped it, and to be read.
        for _ in range(_LIFE_PIECES):
            await trio.sleep(seconds / _LIFE_PIECES)
        await trio.lowlevel.checkpoint()
        self._is_awaited = False
        if self.bytes_heard == heard and self._closing is None:
            self._verdict = CloseBy.LISTENER, f"no sign of life for {seconds:g} s, and an accept was unanswered"
            self.close_nowait(1001, f"No sign of life for {seconds:g} s")

    async def _renew(self, message: RenewToken) -> bool:
        """Take a fresh token; False when it is refused, and the channel is over."""
        try:
            self._grant = authorize_listener(
                self._gateway, self.entry.namespace, self.entry.entity_path, Credential(message.token, "query")
            )
        except Refused as refused:
            self._gateway.trace.emit(
                TOKEN_REFUSED,
                tracking_id=self.tracking_id,
                entity=self.entry.entity_path,
                reason=refused.reason.value,
                message=refused.message,
            )
            await self._end_with(1008, refused.message)
            return False
        self._gateway.trace.emit(
            LISTENER_RENEWED,
            tracking_id=self.tracking_id,
            entity=self.entry.entity_path,
            rule=self._grant.rule_name,
            expiry_unix=self._grant.expiry_unix,
        )
        return True

    def _deliver(self, answer: Answer[Exchange] | None) -> None:
        if answer is not None:
            answer.exchange.answer(answer)

    def _token_deadline(self) -> float:
        """The Trio instant at which the token and its allowance (5.6) have run out."""
        return trio.current_time() + max(0.0, self._token_left())

    def _token_left(self) -> float:
        """Seconds until then, by the wall clock. A closing channel does not care any more."""
        if self._closing is not None:
            return math.inf
        return self._grant.expiry_unix + self._gateway.config.timeouts.token_allowance - self._gateway.now_unix()

    # ---------------------------------------------------------------------------------------------------------- sending

    def _ping_soon(self) -> None:
        if not (self._queue and isinstance(self._queue[0], Ping)):
            self._send_soon(Ping(b""))

    def _send_soon(self, item: Outgoing | Ping) -> None:
        if isinstance(item, Ping):
            # A control frame overtakes what is queued: a live listener behind a full queue must not count as dead.
            self._queue.appendleft(item)
        else:
            self._queue.append(item)
        if self._sending:
            self._sending.unpark()
        elif not self._is_sending and self._nursery is not None:
            self._is_sending = True
            self._nursery.start_soon(self._send_queued)

    async def _send_queued(self) -> None:
        """Send what is queued, as long as the channel is open; sleep while nothing is."""
        assert self._leg is not None
        try:
            while self._closing is None:
                if not self._queue:
                    await self._sending.park()
                elif isinstance(first := self._queue[0], Ping):
                    self._queue.popleft()
                    await self._leg.send_ping(first.payload)
                else:
                    await self._send_batch(self._leg)
        except ConnectionLost:
            # The reading task learns the same and ends the channel.
            return
        finally:
            self._is_sending = False

    async def _send_batch(self, leg: WebSocketLeg) -> None:
        """Send what stands at the front of the queue, many small messages in one go."""
        batch: list[Outgoing] = []
        size = 0
        while self._queue and isinstance(item := self._queue[0], Outgoing) and (not batch or size < _BATCH_BYTES):
            self._queue.popleft()
            item.is_taken = True
            batch.append(item)
            size += item.size
            self._room.unpark()
        if not self._queue:
            self._room.unpark_all()  # one that was woken may have left without using its room
        messages: list[str | bytes] = []
        for item in batch:
            messages.append(item.text)
            if item.body is not None:
                messages.append(item.body)
        try:
            await leg.send_messages(messages)
        finally:
            for item in batch:
                item.release()
        self.messages_sent += len(batch)

    async def _send_close(self, code: int | None, reason: str) -> None:
        assert self._leg is not None
        with trio.move_on_after(self._gateway.config.timeouts.close):
            try:
                await self._leg.send_close(code, reason)
            except ConnectionLost:
                return

    async def _end_with(self, code: int, text: str) -> None:
        """Close from the reading task, then wait for the answer, throwing away what comes before it."""
        assert self._leg is not None
        self._deregister()
        if self._closing is None:
            self._closing = (code, self._gateway.close_reason(text, self.tracking_id))
        with trio.move_on_after(self._gateway.config.timeouts.close):
            await self._send_close(*self._closing)
            try:
                while not isinstance(await self._leg.receive(), Close):
                    pass
            except ConnectionLost:
                return
            except RemoteProtocolError:
                # It does not speak our language any more, so no answer will be understood.
                await close_gently(self._leg.stream)

    async def _close_by_relay(self) -> None:
        assert self._closing is not None
        assert self._nursery is not None
        scope = self._nursery.cancel_scope
        await self._send_close(*self._closing)
        # The reading task takes the answer and ends the channel; this bounds its patience.
        await trio.sleep(self._gateway.config.timeouts.close)
        scope.cancel()

    # ------------------------------------------------------------------------------------------------------------ books

    def _retire(self) -> None:
        self._nursery = None
        if self._closing is None:
            self._closing = (1006, "")
        self._deregister()

    def _deregister(self) -> None:
        self._gateway.registry.deregister(self.entry)
        self._room.unpark_all()
        waiters, self.waiters = self.waiters, set()
        for waiter in waiters:
            waiter.channel_lost()
        for item in self._queue:
            if isinstance(item, Outgoing):
                item.release()


class Ping:
    """A ping in the queue of a channel."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


def authorize_listener(gateway: Gateway, namespace_name: str, path: str, credential: Credential | None) -> Grant:
    """Check a listener's token against the definitions of this moment, at listen and at each renewal (6.4).

    Raises:
      EndpointNotFound: the entity is gone.
      AuthorizationFailed: see :mod:`relaycore.broker.auth`.
    """
    namespace = gateway.store.snapshot.get_namespace(namespace_name)
    entity = namespace.get_entity(path) if namespace is not None else None
    if namespace is None or entity is None:
        raise endpoint_not_found(path)
    return gateway.authorizer.check(
        namespace,
        entity,
        path,
        Right.LISTEN,
        credential,
        gateway.now_unix(),
        allowance_s=gateway.config.timeouts.token_allowance,
    )


async def _find_or_create_entity(gateway: Gateway, namespace: Namespace, head: RequestHead, address: Address) -> str:
    """The entity's own path, made first where the relay is told to make entities for its listeners."""
    entity = namespace.get_entity(address.path)
    if entity is None and gateway.config.server.auto_create:
        # Only a rule of the namespace can speak for a path that has no rules yet.
        gateway.authorize(namespace, None, address.path, Right.LISTEN, head.headers, address.token)
        try:
            entity = await gateway.store.create_entity(namespace.name, address.path)
        except EndpointAlreadyExists:
            # Another listener of the same path was quicker; a path that hides another one stays refused.
            entity = gateway.namespace_for(head).get_entity(address.path)
            if entity is None:
                raise
    if entity is None:
        raise endpoint_not_found(address.path)
    return entity.path


async def serve_listener(gateway: Gateway, peer: Peer, head: RequestHead, address: Address, trailing: bytes) -> None:
    """Take a listener: check it, register it, answer 101, and serve its channel to the end.

    Raises:
      Refused, RemoteProtocolError: before the 101 only; the caller answers.
    """
    upgrade = check_upgrade(head)
    namespace = gateway.namespace_for(head)
    path = await _find_or_create_entity(gateway, namespace, head, address)
    if gateway.is_stopping:
        raise shutting_down()
    namespace = gateway.namespace_for(head)
    entity = namespace.get_entity(path)
    if entity is None:
        raise endpoint_not_found(address.path)
    grant, _ = gateway.authorize(namespace, entity, address.path, Right.LISTEN, head.headers, address.token)

    tracking_id = gateway.tracking_id(address.id)
    guid = (
        listener_id(address.id) if address.id and is_guid(listener_id(address.id)) else ListenerId(gateway.new_guid())
    )
    channel = ControlChannel(
        gateway,
        listener_id=guid,
        namespace=namespace.name,
        entity_path=entity.path,
        grant=grant,
        public_url=gateway.public_url(head, peer),
        tracking_id=tracking_id,
    )
    entry = channel.entry
    while (ghost := gateway.registry.find_overdue(namespace.name, entity.path, entry)) is not None:
        assert isinstance(ghost.handle, ControlChannel)
        ghost.handle.close_nowait(1001, "Another channel with the same id has come")
    for older in gateway.registry.register(namespace.name, entity.path, entry):
        assert isinstance(older.handle, ControlChannel)
        older.handle.doubt_nowait()
    gateway.channels.add(channel)
    by, cause = CloseBy.LISTENER, "lost before it was answered"
    registered = False
    try:
        # 6.1: registered before the 101 leaves, since the very next act may be a sender's connect.
        protocol = upgrade.protocols[0] if upgrade.protocols else None
        peer.is_answered = True
        try:
            await peer.stream.send_all(build_101(upgrade.key, protocol=protocol))
        except trio.BrokenResourceError:
            return
        registered = True
        by, cause = CloseBy.RELAY, "cut"
        gateway.trace.emit(
            LISTENER_REGISTERED,
            tracking_id=tracking_id,
            namespace=entry.namespace,
            entity=entry.entity_path,
            listener_id=guid,
            remote=f"{peer.remote.address}:{peer.remote.port}",
            rule=grant.rule_name,
        )
        leg = WebSocketLeg(
            peer.stream, role="server", early=trailing, max_message_bytes=limits.MAX_CONTROL_MESSAGE_BYTES
        )
        by, cause = await channel.run(leg)
    finally:
        gateway.registry.deregister(entry)
        gateway.channels.discard(channel)
        if registered:
            gateway.trace.emit(
                LISTENER_LOST,
                tracking_id=tracking_id,
                namespace=entry.namespace,
                entity=entry.entity_path,
                listener_id=guid,
                by=by.value,
                cause=cause,
                messages_sent=channel.messages_sent,
            )
