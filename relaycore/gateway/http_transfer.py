"""A request and its response through a rendezvous, both ways at once, in constant memory.

::

    sender ── body ──▶ [one read] ── request, body in frames ──▶ listener      only when the request did not go before
    sender ◀─ answer ─ [one read] ◀─ response, body in frames ── listener

A listener may answer before it has read the request, or without reading it. Once the response is complete nothing more
of the request is sent, and the relay closes the rendezvous: one address, one request (9.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import trio

from ..broker.quota import ByteLease
from ..errors import Refused, RemoteProtocolError
from ..net.errors import StreamLost
from ..net.linger import cut
from ..net.websocket import WebSocketLeg
from ..wire import limits
from ..wire.frames import Binary, Close, Piece, Text
from ..wire.handshake import build_101
from ..wire.http1 import build_response
from ..wire.messages import Response, parse_from_listener
from ..wire.status import CloseCode
from .exchange import SENDER_GONE, Exchange, body_too_slow, listener_lost, no_response
from .http_answer import AnswerWriter
from .http_peer import HttpPeer
from .state import Gateway
from .waiter import CLOSE_HEADERS, HandOver

__all__ = ["Transfer"]

_FIRST_PIECE_WAIT: Final = 0.02
"""Seconds that an answer's head waits for the beginning of its body. A body that is whole by then gets its length; a
stream that begins later is announced at once."""

_FRAME_GRACE: Final = 0.5
"""Seconds that a frame of the request may take to leave once the response is complete: one cut in half would end the
rendezvous without a Close."""

_TRUNCATED: Final = "the listener's body ended too early"
_SILENT: Final = "silence inside the listener's body"


@dataclass(frozen=True, slots=True)
class _End:
    """How a transfer ended.

    Attributes:
      error: what the sender is told, if nothing of an answer has left; raised to the caller.
      cause: why the sender is cut, if something has; None and no error: all went well.
      close_code, close_text: what the listener is told.
    """

    error: Refused | RemoteProtocolError | trio.BrokenResourceError | None
    cause: str | None
    close_code: int
    close_text: str


class Transfer:
    """One rendezvous of one request.

    Args:
      listener: the connection; owned from here on.
      request: the whole ``request`` message, to be sent here with its body; None when it went over the control channel.
      early: the beginning of the body, emptied once it has left; ``lease`` is released then.
    """

    def __init__(
        self,
        gateway: Gateway,
        sender: HttpPeer,
        exchange: Exchange,
        answer: AnswerWriter,
        listener: HandOver,
        request: str | None,
        early: bytearray,
        lease: ByteLease | None,
    ) -> None:
        self._gateway = gateway
        self._timeouts = gateway.config.timeouts
        self._sender = sender
        self._exchange = exchange
        self._answer = answer
        self._listener = listener
        self._request = request
        self._early = early
        self._lease = lease
        self._leg = WebSocketLeg(
            listener.stream,
            role="server",
            early=listener.early,
            max_message_bytes=limits.MAX_CONTROL_MESSAGE_BYTES,
        )
        # Ended by whoever notices that there is nothing left to do, and by the relay when it gives the request up.
        self._scope = trio.CancelScope()
        self._end: _End | None = None
        self._response_scope = trio.CancelScope()
        self._is_upgraded = False
        self._is_answered = False
        self._frame_left: trio.Event | None = None
        self.to_listener_bytes = 0

    async def run(self, response_deadline: float) -> str | None:
        """Carry both ways until the answer is whole or cannot be.

        Args:
          response_deadline: when the ``response`` has to be there; it moves on as the listener takes the request.

        Returns: None when the sender has its whole answer, or the exchange has one that came meanwhile; else why the
        sender's connection has to be cut.

        Raises:
          Refused, RemoteProtocolError: nothing of an answer has left.
          trio.BrokenResourceError: the sender has gone.
        """
        self._response_scope.deadline = response_deadline
        is_parting = False
        try:
            self._exchange.cancel_on_refusal(self._scope)
            with self._gateway.counted_connection():
                await self._carry()
            end = self._end
            if end is None and self._exchange.answer_meanwhile is not None:
                end = _End(None, None, CloseCode.NORMAL_CLOSURE, "The response came over the control channel")
            elif end is None:
                refused = self._exchange.refused
                assert refused is not None
                end = self._failure(refused, CloseCode.GOING_AWAY, refused.message)
            if self._is_upgraded:
                self._gateway.part_soon(self._leg, end.close_code, end.close_text, self._exchange.tracking_id)
            else:
                self._gateway.close_soon(self._leg.stream, build_response(403, "Forbidden", CLOSE_HEADERS))
            is_parting = True
        except Exception:
            # Our own fault: the caller logs it and tells the sender.
            self._gateway.part_soon(self._leg, CloseCode.INTERNAL_ERROR, "Internal error", self._exchange.tracking_id)
            is_parting = True
            raise
        finally:
            self._exchange.let_go(self._scope)
            if not is_parting:
                await cut(self._leg.stream)  # noqa: ASYNC102 - shields itself
        if end.error is not None:
            raise end.error
        return end.cause

    async def _carry(self) -> None:
        with self._scope:
            try:
                with trio.fail_after(self._timeouts.close):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    self._is_upgraded = True
                    await self._leg.stream.send_all(build_101(self._listener.upgrade.key, protocol=None))
            except (trio.BrokenResourceError, trio.TooSlowError):
                self._stop(self._failure(listener_lost(), CloseCode.GOING_AWAY, "The handshake was not taken"))
                return
            # Before anything of an answer can leave.
            if self._request is not None and not await self._invite_body():
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._to_listener)
                await self._to_sender()
                if self._frame_left is not None:
                    with trio.move_on_after(_FRAME_GRACE):
                        await self._frame_left.wait()
                nursery.cancel_scope.cancel()

    def _note(self, end: _End) -> None:
        """The first end counts."""
        if self._end is None:
            self._end = end

    def _stop(self, end: _End) -> None:
        """End both ways at once."""
        if self._end is None:
            self._end = end
            self._scope.cancel()

    def _failure(self, error: Refused | RemoteProtocolError, close_code: int, close_text: str) -> _End:
        if self._answer.status:
            return _End(None, str(error), close_code, close_text)
        return _End(error, None, close_code, close_text)

    def _gone(self) -> _End:
        return _End(trio.BrokenResourceError(SENDER_GONE), None, CloseCode.GOING_AWAY, "The sender has gone")

    # ----------------------------------------------------------------------------------------------- to the listener

    async def _to_listener(self) -> None:
        """Send the request, if it is to go this way; then watch the sender."""
        try:
            if self._request is not None:
                await self._send_request(self._request)
        except StreamLost:
            # Whoever reads from the listener learns the same, and says what it means for the answer.
            pass
        except trio.BrokenResourceError:
            self._stop(self._gone())
            return
        except (RemoteProtocolError, Refused) as error:
            self._stop(self._failure(error, CloseCode.GOING_AWAY, "The sender's body cannot be read"))
            return
        await self._sender.watch()
        self._stop(self._gone())

    async def _invite_body(self) -> bool:
        try:
            if await self._sender.send_continue(self._timeouts.http_body):
                return True
        except trio.BrokenResourceError:
            pass
        self._stop(self._gone())  # one that takes nothing may have got half of it, and can be told nothing more
        return False

    async def _send_request(self, request: str) -> None:
        await self._leg.send_text(request)
        if self._early:
            piece = bytes(self._early)
            self._early.clear()
            await self._send_piece(piece, is_last=False)
        if self._lease is not None:
            self._lease.release()
        while not self._is_answered:
            # Its listener cannot answer what it has not got; how long the sender may take is measured by itself.
            self._response_scope.deadline = math.inf
            with trio.move_on_after(self._timeouts.http_body) as silence:
                piece = await self._sender.receive()
            if silence.cancelled_caught:
                raise body_too_slow()
            await self._send_piece(piece, is_last=not piece)
            if not piece:
                return

    async def _send_piece(self, piece: bytes, *, is_last: bool) -> None:
        self._response_scope.deadline = trio.current_time() + self._timeouts.http_response
        self._frame_left = left = trio.Event()
        try:
            await self._leg.send_fragment(piece, fin=is_last)
        finally:
            left.set()
            self._frame_left = None
        self.to_listener_bytes += len(piece)
        self._response_scope.deadline = trio.current_time() + self._timeouts.http_response

    # ------------------------------------------------------------------------------------------------- to the sender

    async def _to_sender(self) -> None:
        """Take the response, and write it as the answer."""
        try:
            with self._response_scope:
                response = await self._receive_response()
            if self._response_scope.cancelled_caught:
                error = no_response()
                self._stop(self._failure(error, CloseCode.GOING_AWAY, error.message))
                return
            if response is None:
                close = self._leg.close_received
                code = close.code if close is not None and close.code is not None else CloseCode.NORMAL_CLOSURE
                self._note(self._failure(listener_lost(), code, ""))
                return
            if self._exchange.answer_meanwhile is not None or self._exchange.refused is not None:
                return  # it came in the same moment and was first; nothing in between lets another task run
            self._exchange.is_answered = True
            self._exchange.is_owed = False
            cause = await self._write(response)
        except StreamLost:
            error = listener_lost()
            self._note(self._failure(error, CloseCode.GOING_AWAY, error.message))
        except RemoteProtocolError as broken:
            refused = Refused(f"The listener broke a rule: {broken}", http_status=502)
            self._note(self._failure(refused, broken.close_code, str(broken)))
        except trio.BrokenResourceError:
            self._note(self._gone())
        else:
            self._is_answered = True
            if cause is None:
                self._note(_End(None, None, CloseCode.NORMAL_CLOSURE, "The response is complete"))
            else:
                self._note(_End(None, cause, CloseCode.GOING_AWAY, cause))

    async def _receive_response(self) -> Response | None:
        """Wait for the response's JSON. None: the listener closed without any."""
        bodies_to_drop = 0
        while True:
            match await self._leg.receive():
                case Text(data):
                    message = parse_from_listener(data)
                    if isinstance(message, Response):
                        if message.requestId == self._exchange.tracking_id:
                            return message
                        bodies_to_drop += message.body
                case Binary() if bodies_to_drop:
                    bodies_to_drop -= 1
                case Binary():
                    raise RemoteProtocolError("binary message without a response before it", section="9.7")
                case Close():
                    return None
                case _:
                    pass

    async def _write(self, response: Response) -> str | None:
        """Write the answer. Returns: None, or why the sender has to be cut."""
        answer = self._answer
        if not answer.may_have_body(response):
            return await answer.send_whole(response, None)
        piece: Piece | None = None
        with trio.move_on_after(_FIRST_PIECE_WAIT) as waiting:
            piece = await self._receive_piece()
        if piece is None and not waiting.cancelled_caught:
            raise StreamLost(_TRUNCATED)  # in time to be said
        if piece is not None and piece.fin:
            return await answer.send_whole(response, piece.data)
        cause = await answer.begin(response)
        if cause is None and piece is not None:
            cause = await answer.send_piece(piece.data, is_last=False)
        while cause is None:
            with trio.move_on_after(self._timeouts.http_body) as silence:
                piece = await self._receive_piece()
            if silence.cancelled_caught:
                return _SILENT
            if piece is None:
                return _TRUNCATED
            cause = await answer.send_piece(piece.data, is_last=piece.fin)
            if piece.fin:
                break
        return cause

    async def _receive_piece(self) -> Piece | None:
        """More of the response's body. None: it has ended too early, by a Close that says so (9.5)."""
        found = await self._leg.receive_piece()
        if isinstance(found, Close):
            is_end = found.code in (None, CloseCode.NORMAL_CLOSURE)
            return Piece(is_text=False, data=b"", fin=True) if is_end else None
        if found.is_text:
            raise RemoteProtocolError("text where a response's body belongs", section="9.7")
        return found
