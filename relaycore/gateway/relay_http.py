"""HTTP senders: one request is taken to a listener, and its response back.

::

    sender's task                                            the listener
    ─────────────                                            ────────────
    check, choose
    body in hand and small?
      yes: request [+ body] over the control channel ─────▶  answers there .......... the channel's task: answer()
                                                             or dials the address ... the rendezvous' task: hand_over()
      no:  the address alone ─────────────────────────────▶  dials it ............... hand_over()
    wait: 60 s, watching the sender
    answered:     head and body in one send
    handed over:  see http_transfer

A sender gets exactly one of: an answer of the listener, a refusal of the relay, a cut connection. A cut is for what
comes too late to be said: the head of the answer has left already.

Source: wire contract 9 to 14.
"""

from __future__ import annotations

import trio

from ..broker.exchange import Answer, Replies, Way, control_body_room
from ..broker.model import HybridConnection
from ..broker.quota import ByteLease
from ..broker.registry import ListenerEntry, parse_listener_filter
from ..errors import NoListener, Refused, RemoteProtocolError
from ..net.linger import close_gently, reset
from ..trace import REQUEST_ANSWERED, REQUEST_FAILED, REQUEST_SENT
from ..vocab import Action, RefusalReason
from ..wire import limits
from ..wire.address import HttpTarget, build_rendezvous, parse_http_target, request_target
from ..wire.handshake import request_headers
from ..wire.http1 import RequestHead
from ..wire.messages import Request, encode_request
from .control_channel import ControlChannel, Outgoing
from .exchange import SENDER_GONE, Exchange, body_too_slow, http_disabled, listener_lost, no_response
from .http_answer import AnswerWriter
from .http_peer import HttpPeer
from .http_transfer import Transfer
from .state import Gateway, shutting_down
from .waiter import HandOver, Lost, Refusal, let_go

__all__ = ["serve_request"]


async def serve_request(gateway: Gateway, sender: HttpPeer, head: RequestHead) -> bool:
    """Take one request to a listener and answer it.

    Returns: whether another request may follow on the connection; else it has been ended as it has to be.

    Raises:
      Refused, RemoteProtocolError: nothing has been answered yet; the caller does it.
      trio.BrokenResourceError: the sender has gone.
    """
    target = parse_http_target(head.target)
    namespace, entity, _, source = gateway.admit_sender(
        head, target.path, target.token, refuse_switched_off=_refuse_switched_off
    )
    sender.is_let_in = True
    with gateway.connections.acquire(namespace.name):
        exchange = Exchange(gateway, namespace.name, entity.path, gateway.request_id(target.id))
        gateway.exchanges.add(exchange)
        try:
            return await _Request(gateway, sender, head, target, entity, exchange, source).serve()
        finally:
            gateway.exchanges.discard(exchange)
            gateway.request_ids.give_back(exchange.tracking_id, is_answered=not exchange.is_owed)
            exchange.release()


def _refuse_switched_off(entity: HybridConnection) -> None:
    if not entity.http:
        raise http_disabled(entity.path)


class _Request:
    """One request on its way. The sender's task owns it."""

    def __init__(
        self,
        gateway: Gateway,
        sender: HttpPeer,
        head: RequestHead,
        target: HttpTarget,
        entity: HybridConnection,
        exchange: Exchange,
        credential_header: str | None,
    ) -> None:
        self._gateway = gateway
        self._sender = sender
        self._head = head
        self._target = target
        self._entity = entity
        self._exchange = exchange
        via_host = head.host or gateway.config.namespace.name
        self._headers = request_headers(head.headers, credential_header=credential_header, via_host=via_host)
        self._answer = AnswerWriter(gateway, sender, head, via_host)
        self._started = trio.current_time()
        self._deadline = self._started + gateway.config.timeouts.http_response
        self._secret = gateway.new_secret()
        # The whole message, and the listener's URL that its address is made of.
        self._text = ""
        self._text_base = ""
        # What has been read of the body: all of it when it goes with the request, its beginning when it does not.
        self._body = bytearray()
        self._lease: ByteLease | None = None
        self._to_listener_bytes = 0
        self._way = Way.CONTROL
        self._replies: Replies[Exchange] | None = None

    async def serve(self) -> bool:
        """See :func:`serve_request`."""
        try:
            return await self._serve()
        except Refused as refused:
            refused.tracking_id = refused.tracking_id or self._exchange.tracking_id
            self._failed(refused.message, refused.http_status)
            raise
        except RemoteProtocolError as broken:
            self._failed(str(broken), broken.http_status)
            raise
        except trio.BrokenResourceError:
            self._failed(SENDER_GONE)
            raise

    async def _serve(self) -> bool:
        try:
            channel = self._choose()
            room = control_body_room(self._size(channel))
            if not await self._collect_body(room):
                self._way = Way.RENDEZVOUS
            outcome = await self._send_and_wait(channel)
            if self._lease is not None and self._way is Way.CONTROL:
                self._lease.release()
            match outcome:
                case HandOver():
                    cause = await self._transfer(outcome)
                    outcome = self._exchange.answer_meanwhile
                    if outcome is not None and not self._exchange.is_answered:
                        cause = await self._answer.send_whole(outcome.response, outcome.body)
                    return await self._finish(cause)
                case Answer(_, response, body):
                    return await self._finish(await self._answer.send_whole(response, body))
                case Lost() | Refusal():
                    raise listener_lost()
                case Refused():
                    raise outcome
                case None:
                    raise trio.BrokenResourceError(SENDER_GONE)
        finally:
            if self._replies is not None:
                self._replies.forget(self._exchange.tracking_id)
            if self._lease is not None:
                self._lease.release()

    # ----------------------------------------------------------------------------------------------- to the listener

    def _choose(self, excluded: set[ListenerEntry] | None = None) -> ControlChannel:
        allowed, disallowed = parse_listener_filter(self._head.headers)
        entry = self._gateway.registry.choose(
            self._exchange.namespace,
            self._entity.path,
            allowed=allowed,
            disallowed=disallowed,
            excluded=excluded if excluded is not None else (),
            rng=self._gateway.rng,
            no_listener_status=502,
        )
        assert isinstance(entry.handle, ControlChannel)
        return entry.handle

    def _address(self, channel: ControlChannel) -> str:
        return build_rendezvous(
            channel.public_url,
            self._target.raw_path,
            self._target.user_query,
            Action.REQUEST,
            self._exchange.tracking_id,
            self._secret,
        )

    def _full_text(self, channel: ControlChannel) -> str:
        """The whole ``request`` message; made once for all listeners who call us by the same URL."""
        if self._text_base != channel.public_url:
            self._text_base = channel.public_url
            self._text = encode_request(
                Request(
                    address=self._address(channel),
                    id=self._exchange.tracking_id,
                    requestTarget=request_target(
                        self._target.raw_path, self._target.user_query, raw=self._entity.raw_target
                    ),
                    method=self._head.method,
                    remoteEndpoint=self._sender.peer.remote,
                    requestHeaders=self._headers,
                    body=self._head.has_body,
                )
            )
        return self._text

    def _size(self, channel: ControlChannel) -> int:
        """Bytes of the whole message to this listener.

        Raises:
          Refused: 431; it is longer than listeners take, whatever its way.
        """
        text = self._full_text(channel)
        size = len(text) if text.isascii() else len(text.encode())
        if size > limits.MAX_CONTROL_MESSAGE_BYTES:
            raise Refused(
                "The request headers are too large for a message to the listener",
                http_status=431,
                reason=RefusalReason.HEAD_TOO_LARGE,
            )
        return size

    async def _collect_body(self, room: int) -> bool:
        """Read the body if it can go with the request: 9.2 wants it whole before the listener hears of it.

        Returns: whether it is all there; else ``_body`` is its beginning.
        """
        head = self._head
        if not head.has_body:
            return True
        length = head.content_length
        if room == 0 or (length is not None and length > room):
            return False
        self._lease = self._gateway.http_buffers.take(0, keep_free=self._kept_for_answers)
        if self._lease is None:
            return False
        timeouts = self._gateway.config.timeouts
        fits = True
        if (piece := self._sender.take_nowait()) is not None:
            # It mostly comes with the head.
            fits = self._keep(piece)
            if self._sender.is_complete:
                return fits
        scope = trio.CancelScope(
            deadline=trio.current_time() + (timeouts.request_gather if length is None else timeouts.http_body)
        )
        self._exchange.cancel_on_refusal(scope)
        is_invited = False
        with scope:
            is_invited = await self._sender.send_continue(timeouts.http_body)
            while fits and len(self._body) <= room and (piece := await self._sender.receive()):
                fits = self._keep(piece)
                if length is not None:
                    scope.deadline = trio.current_time() + timeouts.http_body
        self._exchange.let_go(scope)
        if not is_invited:
            # Half of the invitation may have left, so that no answer can follow it.
            raise trio.BrokenResourceError("the sender takes nothing")
        if self._exchange.refused is not None:
            raise self._exchange.refused
        if length is not None and scope.cancelled_caught:
            raise body_too_slow()
        return fits and self._sender.is_complete

    @property
    def _kept_for_answers(self) -> int:
        """Room that bodies of requests leave free: they have another way, and answers have none."""
        return self._gateway.http_buffers.limit // 2

    def _keep(self, piece: bytes) -> bool:
        """Put a piece to what was read of the body. Returns: whether there was room; it is kept all the same."""
        assert self._lease is not None
        self._body += piece
        return self._lease.grow(len(piece), keep_free=self._kept_for_answers)

    async def _send_and_wait(
        self, channel: ControlChannel
    ) -> HandOver | Refusal | Refused | Lost | Answer[Exchange] | None:
        """Send the request, to this listener if it takes it, and wait for the outcome. None: the sender has gone."""
        gateway, exchange = self._gateway, self._exchange
        if not channel.has_room or gateway.is_stopping or exchange.refused is not None:
            found = await self._find_room()
            if not isinstance(found, ControlChannel):
                return found
            channel = found
        now = trio.current_time()
        self._deadline = now + gateway.config.timeouts.http_response
        pending = gateway.rendezvous.mint(
            exchange,
            namespace=exchange.namespace,
            entity_path=self._entity.path,
            action=Action.REQUEST,
            tracking_id=exchange.tracking_id,
            now=now,
            deadline=self._deadline,
            new_id=lambda: self._secret,
        )
        outgoing = Outgoing(self._full_text(channel))
        if self._way is Way.RENDEZVOUS:
            outgoing.text = encode_request(Request(address=self._address(channel), id=exchange.tracking_id))
        elif self._head.has_body:
            outgoing.body, outgoing.lease = bytes(self._body), self._lease
            self._to_listener_bytes = len(outgoing.body)
            self._body.clear()
        try:
            channel.replies.expect(exchange.tracking_id, exchange)
            self._replies = channel.replies
            channel.waiters.add(exchange)
            channel.offer_nowait(outgoing)
            exchange.is_owed = True
            gateway.trace.emit(
                REQUEST_SENT,
                tracking_id=exchange.tracking_id,
                entity=self._entity.path,
                listener_id=channel.entry.id,
                way=self._way.value,
            )
            if not await exchange.sleep(gateway.patience) and not await self._watch():
                return None
            return exchange.take() or no_response()
        finally:
            if channel.withdraw_nowait(outgoing):
                exchange.is_owed = False
            channel.waiters.discard(exchange)
            let_go(gateway, pending, exchange)

    async def _watch(self) -> bool:
        """Wait on for the outcome, at most until the deadline, and watch the sender. False: it has gone."""
        scope = trio.CancelScope(deadline=self._deadline)
        self._exchange.cancel_on_outcome(scope)
        try:
            with scope:
                await self._sender.watch()
                return False
            return True
        finally:
            self._exchange.let_go(scope)

    async def _find_room(self) -> ControlChannel | Refused | None:
        """Choose a listener that takes a message now, or wait until one does. None: the sender has gone meanwhile."""
        full: set[ListenerEntry] = set()
        while True:
            if self._exchange.refused is not None:
                return self._exchange.refused
            if self._gateway.is_stopping:
                return shutting_down()
            try:
                channel = self._choose(full)
            except NoListener:
                if not full:
                    raise
                if not await self._wait_room(full):
                    return None
                if trio.current_time() >= self._deadline:
                    return no_response()
                full.clear()
                continue
            if channel.has_room:
                return channel
            full.add(channel.entry)

    async def _wait_room(self, full: set[ListenerEntry]) -> bool:
        """Wait for a place in one of these queues, at most until the deadline. False: the sender has gone."""
        entry = self._gateway.rng.choice(sorted(full, key=lambda entry: entry.id))
        channel = entry.handle
        assert isinstance(channel, ControlChannel)
        is_here = True

        async def wait_room(scope: trio.CancelScope) -> None:
            await channel.wait_room()
            scope.cancel()

        scope = trio.CancelScope(deadline=self._deadline)
        self._exchange.cancel_on_refusal(scope)
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_room, nursery.cancel_scope)
                    await self._sender.watch()
                    is_here = False
                    nursery.cancel_scope.cancel()
        finally:
            self._exchange.let_go(scope)
        return is_here

    # ------------------------------------------------------------------------------------------------- to the sender

    async def _transfer(self, listener: HandOver) -> str | None:
        """See `Transfer.run`. The channel that carried the request may still bring the response."""
        request = self._text if self._way is Way.RENDEZVOUS else None
        transfer = Transfer(
            self._gateway,
            self._sender,
            self._exchange,
            self._answer,
            listener,
            request,
            self._body,
            self._lease,
        )
        cause = await transfer.run(self._deadline)
        self._to_listener_bytes += transfer.to_listener_bytes
        return cause

    async def _finish(self, cause: str | None) -> bool:
        """Book the request, and leave its connection as it has to be. Returns: whether another one may follow."""
        if cause is not None:
            self._failed(cause)
            await reset(self._sender.stream)
            return False
        self._gateway.requests_answered += 1
        self._gateway.trace.emit(
            REQUEST_ANSWERED,
            tracking_id=self._exchange.tracking_id,
            entity=self._entity.path,
            status=self._answer.status,
            way=self._way.value,
            to_listener_bytes=self._to_listener_bytes,
            to_sender_bytes=self._answer.body_bytes,
            seconds=round(trio.current_time() - self._started, 6),
        )
        if self._answer.keeps_alive and self._sender.is_complete:
            return True
        await close_gently(self._sender.stream)
        return False

    def _failed(self, cause: str, status: int | None = None) -> None:
        """Book a request that got no whole answer of a listener."""
        self._gateway.requests_failed += 1
        self._gateway.trace.emit(
            REQUEST_FAILED,
            tracking_id=self._exchange.tracking_id,
            entity=self._entity.path,
            cause=cause,
            status=status,
            way=self._way.value,
            seconds=round(trio.current_time() - self._started, 6),
        )
