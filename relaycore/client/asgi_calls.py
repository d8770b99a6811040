"""One call of an ASGI application: a request or a WebSocket, what the application hears of it, what it answers.

Errors, by whose they are::

    the application's event is wrong       LocalProtocolError or TypeError out of its ``send``
    the sender is gone                     ClientDisconnected out of its ``send``; a disconnect event from ``receive``
    the application raises, or says        HTTP: 500, or a cut where something has left already
      nothing                              WebSocket: 500 before it was accepted, close code 1011 after
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from ..errors import LocalProtocolError, RelayError
from ..net.errors import StreamClosed, StreamGarbled
from ..net.tasks import leaves
from ..wire.limits import ACCEPT_TIMEOUT, CLOSE_TIMEOUT
from ..wire.status import CloseCode, standard_phrase
from .asgi_events import (
    Accepting,
    AsgiApp,
    Closing,
    Event,
    Receive,
    Refusing,
    ResponseEvents,
    ResponseStart,
    Scope,
    Send,
    Sending,
    WebSocketEvents,
)
from .connection import Connection, MessageChannel
from .invitation import Accept, IncomingConnection, Reject

if TYPE_CHECKING:
    from .http_exchange import HttpRequest, HttpResponder

__all__ = ["ClientDisconnected", "HttpCall", "WebSocketCall", "call_app", "refuse"]

_INBOX_BYTES: Final = 65_536
"""Messages of one WebSocket that wait for the application; beyond it, nothing more is read from the sender. Something
is always read ahead, so that the end of a sender is noticed by an application that only sends."""

_MESSAGE_OVERHEAD_BYTES: Final = 64
"""What a waiting message costs beside its content, so that empty ones are bounded too."""

_SENDING_TIMEOUT: Final = 5.0
"""Seconds for messages that are on their way when a WebSocket ends."""

_NO_CLOSE_CODE: Final = 1005  # RFC 6455 7.1.5: the Close named no code
_ABNORMAL_CLOSURE: Final = 1006  # RFC 6455 7.1.5: there was no Close

_GONE: Final = (RelayError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""How the loss of a sender shows. A `LocalProtocolError` is a `RelayError` too, and is told apart first."""

_TEXT: Final = (("Content-Type", "text/plain; charset=utf-8"),)

_log = logging.getLogger("relaycore.client")


class ClientDisconnected(OSError):
    """Raised from the application's ``send`` once its sender is gone. Not an error of the application."""


# Calling the application ---------------------------------------------------------------------------------------------


async def call_app(app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> Exception | None:
    """Call the application.

    Returns: what it raised, or None. Cancellation goes through; what else came with it is logged.
    """
    try:
        await app(scope, receive, send)
    except Exception as error:
        return error
    except BaseExceptionGroup as group:
        failed, others = group.split(Exception)
        if failed is not None:
            _log.error("! the application failed while it was stopped", exc_info=failed)
        assert others is not None
        raise others from None
    return None


def _is_about_the_sender(error: BaseException) -> bool:
    """Whether an exception is our `ClientDisconnected`, or was raised in place of one."""
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        found = todo.pop()
        if isinstance(found, ClientDisconnected):
            return True
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, BaseExceptionGroup):
            todo += leaves(found)
        todo += [other for other in (found.__cause__, found.__context__) if other is not None]
    return False


def _name(scope: Scope) -> str:
    """How a call shows in the log; without the query, in which secrets are common."""
    client = scope["client"]
    where = "somewhere" if client is None else f"{client[0]}:{client[1]}"
    return f"{where} {scope.get('method', 'WebSocket')} {scope['path']!r}"


def _report_after_loss(error: Exception, scope: Scope, *, was_told: bool) -> None:
    """Log what the application raised when its sender had left, which is no error unless it did not know."""
    if _is_about_the_sender(error):
        _log.debug("- %s: the application ended with its sender", _name(scope))
    elif was_told:
        _log.info("- %s: the application was told that the sender has left, and raised %r", _name(scope), error)
    else:
        _log.error("! %s: the application failed", _name(scope), exc_info=error)


async def refuse(request: HttpRequest, text: str) -> None:
    """Answer 503."""
    async with request.respond(503, _TEXT, reason=text) as responder:
        await responder.send_all(text.encode())


class _Disconnect:
    """Gives out the event that says that the sender is gone.

    The first time without a checkpoint: frameworks ask with a ``receive`` that is cancelled beforehand, and would never
    learn of it otherwise. From then on with one, so that an application that asks for ever stops nobody else.
    """

    def __init__(self) -> None:
        self.was_given = False

    async def give(self, event: Event) -> Event:
        if self.was_given:
            await trio.lowlevel.checkpoint()
        self.was_given = True
        return event


# HTTP ----------------------------------------------------------------------------------------------------------------


class HttpCall:
    """One request.

    Args:
      request: to be answered here.
      scope: what the application is told about it.
    """

    def __init__(self, request: HttpRequest, scope: Scope) -> None:
        self._request = request
        self._scope = scope
        self.reach = trio.CancelScope()
        # Receiving.
        self._has_more_body = True
        self._body_lock = trio.Lock()
        self._disconnect = _Disconnect()
        # Sending.
        self._events = ResponseEvents(request.method)
        self._responder: HttpResponder | None = None
        self._is_answered = False
        self._loss: Exception | None = None
        self._has_ended = trio.Event()
        """Set when the response is complete or the sender is known to be gone."""

    async def run(self, app: AsgiApp) -> None:
        """Call the application.

        Raises: what it raised, or what is wrong with its answer. The listener logs it, and answers 500 or cuts what has
          left already.
        """
        error = None
        with self.reach:
            error = await call_app(app, self._scope, self._receive, self._send)
        if self._is_answered:
            self._log_end("%d", 0 if self._events.start is None else self._events.start.status)
        elif self._is_gone:
            self._log_end("the sender has left")
            if error is not None:
                _report_after_loss(error, self._scope, was_told=self._disconnect.was_given)
            if self._loss is not None and not self._request.is_disconnected:
                raise self._loss  # the way to the sender failed, not the sender: there may be another one for a refusal
            return
        elif self.reach.cancelled_caught and self._responder is None:
            self._log_end("503, the listener is closing")
            await refuse(self._request, "The listener is closing")
            return
        else:
            self._log_end("the application failed")
            if error is None:
                raise LocalProtocolError("the application returned without a complete response", section="ASGI")
        if error is not None:
            raise error

    def _log_end(self, outcome: str, *values: object) -> None:
        if _log.isEnabledFor(logging.INFO):
            _log.info(f"< %s: {outcome}", _name(self._scope), *values)

    @property
    def _is_gone(self) -> bool:
        return self._loss is not None or self._request.is_disconnected

    async def _receive(self) -> Event:
        if not self._is_over:
            async with self._body_lock:
                if self._has_more_body:
                    event = await self._receive_body()
                    if event is not None:
                        return event
            await self._wait_over()
        return await self._disconnect.give({"type": "http.disconnect"})

    @property
    def _is_over(self) -> bool:
        return self._has_ended.is_set() or self._request.is_disconnected

    async def _receive_body(self) -> Event | None:
        """The next part of the body; None if the sender was lost in it."""
        data = b""
        if self._request.has_body:
            try:
                data = await self._request.receive_some()
            except _GONE as error:
                self._note_loss(error)
                return None
        self._has_more_body = bool(data)
        return {"type": "http.request", "body": data, "more_body": self._has_more_body}

    async def _wait_over(self) -> None:
        async with trio.open_nursery() as nursery:

            async def wait_ended() -> None:
                await self._has_ended.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_ended)
            await self._request.wait_disconnected()
            nursery.cancel_scope.cancel()

    def _note_loss(self, error: Exception) -> None:
        if not self._is_answered:
            self._loss = error
        self._has_ended.set()

    async def _send(self, event: Event) -> None:
        if self._is_gone:
            raise ClientDisconnected("the sender has left")
        match self._events.take(event):
            case None | ResponseStart():
                await trio.lowlevel.checkpoint()
            case part:
                try:
                    await self._send_part(part.data, is_last=part.is_last)
                except LocalProtocolError:
                    raise
                except _GONE as error:
                    self._note_loss(error)
                    raise ClientDisconnected("the sender has left") from error

    async def _send_part(self, data: bytes, *, is_last: bool) -> None:
        if self._responder is None:
            start = self._events.start
            assert start is not None
            self._responder = self._request.respond(start.status, start.headers)
        if data:
            await self._responder.send_all(data)
        if is_last:
            await self._responder.aclose()
            self._is_answered = True
            self._has_ended.set()
        elif not data:
            await trio.lowlevel.checkpoint()  # the response is under way from here on, though there is nothing to send


# WebSocket -----------------------------------------------------------------------------------------------------------


class WebSocketCall:
    """One WebSocket, from the relay's invitation to its end.

    Three tasks meet here: the listener's, which waits for the decision; the application's; and the reader, which holds
    the connection once there is one. The first of them to know of the end notes it in ``_end``.

    Args:
      incoming: who waits.
      scope: what the application is told about it.
    """

    def __init__(self, incoming: IncomingConnection, scope: Scope) -> None:
        self.incoming = incoming
        self._scope = scope
        self.reach = trio.CancelScope()
        self._events = WebSocketEvents(incoming.subprotocols)
        self._nursery: trio.Nursery | None = None
        # The handshake.
        self._decision: Accept | Reject | None = None
        self._is_decided = trio.Event()
        self._connection: Connection | None = None
        self._messages: MessageChannel | None = None
        # Receiving.
        self._is_connect_given = False
        self._inbox: deque[str | bytes] = deque()
        self._inbox_bytes = 0
        self._disconnect = _Disconnect()
        self._end: tuple[int, str] | None = None
        # Sending.
        self._sends_under_way = 0
        self._news = trio.lowlevel.ParkingLot()
        """Woken by whatever changes of all this."""

    # The listener's side ---------------------------------------------------------------------------------------------

    async def decide(self) -> Accept | Reject:
        """Wait for the application's yes or no. If this is cancelled the application hears that the sender is gone."""
        try:
            await self._is_decided.wait()
        finally:
            if self._decision is None:
                self._note_end(_ABNORMAL_CLOSURE, "")
        assert self._decision is not None
        return self._decision

    def attach(self, connection: Connection) -> bool:
        """Hand over the connection that our yes has led to. Returns: whether it is wanted still."""
        if self._nursery is None or self._end is not None:
            return False
        self._connection = connection
        self._messages = connection.messages()
        self._nursery.start_soon(self._read, connection, self._messages)
        self._news.unpark_all()
        return True

    async def go_away(self) -> None:
        """End it because we stop: refused if it waits still, otherwise closed with 1001."""
        if self._decision is None:
            self._decide(Reject(503, "The listener is closing"))
            self._note_end(_ABNORMAL_CLOSURE, "")
        elif self._end is None:
            await self._close(CloseCode.GOING_AWAY, "The listener is closing")

    async def run(self, app: AsgiApp) -> None:
        """Call the application and end the connection behind it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            error = None
            with self.reach:
                error = await call_app(app, self._scope, self._receive, self._send)
            if error is not None:
                self._report(error)
            self._nursery = None
            if self._decision is None:
                self._decide_instead(error)
            elif self._end is None:
                if error is not None:
                    await self._close(CloseCode.INTERNAL_ERROR, "")
                elif self.reach.cancelled_caught:
                    await self._close(CloseCode.GOING_AWAY, "The listener is closing")
                else:
                    await self._close(CloseCode.NORMAL_CLOSURE, "")
            # The reader leaves by itself once there is an end; it may be saying goodbye, in bounded time.
        _log.info("< %s: %s", _name(self._scope), "no connection" if self._end is None else f"closed, {self._end[0]}")

    def _report(self, error: Exception) -> None:
        if self._end is None:
            _log.error("! %s: the application failed", _name(self._scope), exc_info=error)
        else:
            _report_after_loss(error, self._scope, was_told=self._disconnect.was_given)

    def _decide_instead(self, error: Exception | None) -> None:
        if self.reach.cancelled_caught:
            self._decide(Reject(503, "The listener is closing"))
            return
        if error is None and self._end is None:
            _log.error("! %s: the application returned without an answer", _name(self._scope))
        self._decide(Reject(500, "Internal Server Error"))

    def _decide(self, decision: Accept | Reject) -> None:
        self._decision = decision
        self._is_decided.set()

    def _note_end(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = code, reason
        self._news.unpark_all()

    # Reading ---------------------------------------------------------------------------------------------------------

    async def _read(self, connection: Connection, messages: MessageChannel) -> None:
        """Fill the inbox until the connection ends, and answer the sender's Close: ASGI knows no half-closed ones."""
        try:
            await self._fill_inbox(messages)
        except trio.EndOfChannel:
            close = connection.close_received
            assert close is not None
            code = _NO_CLOSE_CODE if close.code is None else close.code
            self._note_end(code, close.reason)
            await self._say_goodbye(CloseCode.NORMAL_CLOSURE, "")
        except StreamClosed as error:
            self._note_end(error.code, error.reason)
            await self._say_goodbye(error.code, "")
        except StreamGarbled as error:  # the sender was told
            self._note_end(error.close_code, "")
        except trio.BrokenResourceError:
            self._note_end(_ABNORMAL_CLOSURE, "")
            await trio.aclose_forcefully(connection)
        except trio.ClosedResourceError:
            self._note_end(_ABNORMAL_CLOSURE, "")  # only if our own closing has not noted it better

    async def _fill_inbox(self, messages: MessageChannel) -> None:
        while True:
            data = await messages.receive()
            self._inbox.append(data)
            self._inbox_bytes += len(data) + _MESSAGE_OVERHEAD_BYTES
            self._news.unpark_all()
            while self._inbox_bytes >= _INBOX_BYTES and self._end is None:
                await self._news.park()

    # The application's side ------------------------------------------------------------------------------------------

    async def _receive(self) -> Event:
        if not self._is_connect_given:
            self._is_connect_given = True
            return {"type": "websocket.connect"}
        while not self._inbox:
            if self._end is not None:
                code, reason = self._end
                return await self._disconnect.give(
                    {"type": "websocket.disconnect", "code": int(code), "reason": reason}
                )
            await self._news.park()
        data = self._inbox.popleft()
        self._inbox_bytes -= len(data) + _MESSAGE_OVERHEAD_BYTES
        self._news.unpark_all()
        if isinstance(data, str):
            return {"type": "websocket.receive", "bytes": None, "text": data}
        return {"type": "websocket.receive", "bytes": data, "text": None}

    async def _send(self, event: Event) -> None:
        if self._end is not None:
            raise ClientDisconnected("the WebSocket is closed")
        match self._events.take(event):
            case None:
                await trio.lowlevel.checkpoint()
            case Accepting(subprotocol, dropped_headers):
                if dropped_headers:
                    _log.info("! %s: the relay carries no headers of websocket.accept", _name(self._scope))
                self._decide(Accept(subprotocol))
                await self._wait_attached()
            case Refusing(status, dropped_bytes):
                if dropped_bytes:
                    _log.info("! %s: the relay carries no body with a refusal", _name(self._scope))
                self._decide(Reject(status, standard_phrase(status) or "Refused"))
                self._note_end(_ABNORMAL_CLOSURE, "")
                await trio.lowlevel.checkpoint()
            case Closing(code, reason):
                await self._close(code, reason)
            case Sending(data):
                await self._send_message(data)

    async def _wait_attached(self) -> None:
        """Wait for the connection: it is opened by the listener, which does not tell if that fails."""
        with trio.move_on_after(ACCEPT_TIMEOUT):
            while self._connection is None and self._end is None:
                await self._news.park()
        if self._connection is None:
            self._note_end(_ABNORMAL_CLOSURE, "")
            raise ClientDisconnected("the sender has left before it was accepted")

    async def _send_message(self, data: str | bytes) -> None:
        assert self._messages is not None
        self._sends_under_way += 1
        try:
            await self._messages.send(data)
        except LocalProtocolError:
            raise
        except _GONE as error:
            self._note_end(_ABNORMAL_CLOSURE, "")
            raise ClientDisconnected("the WebSocket is closed") from error
        finally:
            self._sends_under_way -= 1
            self._news.unpark_all()

    async def _close(self, code: int, reason: str) -> None:
        self._note_end(code, reason)
        await self._say_goodbye(code, reason)

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Close the connection behind messages that are on their way: closing would cut it inside of them."""
        if self._connection is None:
            return
        with trio.move_on_after(_SENDING_TIMEOUT):
            while self._sends_under_way:
                await self._news.park()
        await self._connection.turn_away(code, CLOSE_TIMEOUT, reason=reason)
