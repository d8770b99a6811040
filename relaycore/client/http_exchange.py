"""One relayed HTTP request at a listener, from its message to its end, and the way that its response takes.

::

    request on the control channel ──▶ response short, and complete in time ──▶ control channel: text, then one binary
                                   └─▶ long, slow or flushed ────────────────▶ its own rendezvous: text, then one
                                                                               binary message, fragment by fragment
    address only ──▶ rendezvous: text, then the body ──────────────────────────▶ the same rendezvous

Tasks of one exchange::

    whoever serves it, in `open_exchange` ─ nursery ─┬─ RequestRendezvous.read        the connection's only reader
                                                     ├─ HttpResponder._flush_in_time  its timer
                                                     ├─ _dial_response                out of reach of who waits for it
                                                     └─ RequestRendezvous.say_goodbye once the response is complete

Source: wire contract 9, 13 and 14.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ..errors import ConnectionLost, LocalProtocolError, Refused, RelayError, RemoteProtocolError
from ..net.errors import StreamLost
from ..net.linger import cut
from ..net.proxy import Proxy
from ..net.tasks import alone, bounded, leaves
from ..net.websocket import WebSocketLeg
from ..vocab import BytesLike
from ..wire.frames import Close, Text
from ..wire.http1 import is_value
from ..wire.limits import CLOSE_TIMEOUT, LISTENER_RENDEZVOUS_TIMEOUT
from ..wire.messages import Request, parse_from_relay
from ..wire.status import CloseCode, standard_phrase
from .http_rendezvous import RequestRendezvous, dial_rendezvous
from .http_request import BodyTooLarge, HttpRequest, RequestHandler
from .http_response import PLAIN_TEXT, HeadersLike, HttpResponder, fold_headers

if TYPE_CHECKING:
    from .control import ControlChannel, Posted

__all__ = [
    "DEFAULT_FLUSH_AFTER_S",
    "Exchange",
    "ExchangeSettings",
    "HttpRequest",
    "HttpResponder",
    "RequestHandler",
    "is_elsewhere",
    "open_exchange",
]

DEFAULT_FLUSH_AFTER_S: Final = 0.1
"""Seconds that a response may stay incomplete before it gets a connection of its own. The vendor's libraries take 2,
which is long for whoever waits for the first of many events; a rendezvous costs one handshake."""

_GOING_WRONG_TIMEOUT: Final = 2.0
"""Seconds for telling a relay that a response stays unfinished, before its connection is cut."""

_log = logging.getLogger("relaycore.client")


@dataclass(frozen=True)
class ExchangeSettings:
    """What all exchanges of a listener share.

    Attributes:
      path: the hybrid connection we listen on.
      is_tls: whether its requests come over TLS. A rendezvous then has to use TLS too: whoever can forge an address
        could otherwise strip it off.
      ssl_context: for the rendezvous; None is the system's store.
      flush_after_s: see `DEFAULT_FLUSH_AFTER_S`.
      proxy: to dial the rendezvous through.
    """

    path: str
    is_tls: bool
    ssl_context: ssl.SSLContext | None
    flush_after_s: float = DEFAULT_FLUSH_AFTER_S
    proxy: Proxy | None = None


class RequestFailed(RelayError):
    """What an adapter's handler raises where it is not to blame: the log gets a line and no traceback.

    Args:
      message: for the log and, as far as nothing of a response has left, the sender.
      http_status: of the answer then.
    """

    def __init__(self, message: str, *, http_status: int = 502) -> None:
        super().__init__(message)
        self.http_status = http_status


def is_elsewhere(message: Request) -> bool:
    """Return whether a request has to be fetched from its address. Its missing body says so as well (9.3)."""
    return message.is_address_only or message.body is None


def _only_one(failure: Exception | None) -> Exception | None:
    """Return what a handler has raised, out of the groups that its nurseries may have put around it."""
    if isinstance(failure, ExceptionGroup):
        first, *others = leaves(failure)
        return failure if others else first
    return failure


class Exchange:
    """One request and its response, whichever way they go; made by `open_exchange`.

    Attributes:
      message: the request in full.
      is_disconnected: as `HttpRequest.is_disconnected`.
      has_begun: something of a response may have left.
      is_complete: the response has left in full.
    """

    def __init__(self, message: Request, body: bytes, channel: ControlChannel, settings: ExchangeSettings) -> None:
        self.message = message
        self.settings = settings
        self.is_disconnected = False
        self.has_begun = False
        self.is_complete = False
        self._cancelled_when_gone: trio.CancelScope | None = None
        # The way back by the control channel; None if the request did not come that way.
        self._channel: ControlChannel | None = channel
        self._body = memoryview(body)
        self._posted: Posted | None = None
        self._rendezvous: RequestRendezvous | None = None
        self._dial_has_ended: trio.Event | None = None
        self._has_no_rendezvous: RelayError | None = None
        self._brings_body = False
        self._responder: HttpResponder | None = None
        self._gone = trio.Event()
        self._nursery: trio.Nursery

    # What a handler does through its request

    async def receive_body(self, max_bytes: int | None) -> bytes:
        if self._brings_body:
            assert self._rendezvous is not None
            return await self._rendezvous.receive(max_bytes)
        data = bytes(self._body[:max_bytes])
        self._body = self._body[len(data) :]
        return data

    def respond(
        self, status: int, headers: HeadersLike, reason: str | None, *, is_streaming: bool = True
    ) -> HttpResponder:
        """See `HttpRequest.respond`. ``is_streaming`` is False for those who close what they open without waiting."""
        if self._responder is not None:
            raise LocalProtocolError("this request has its response already")
        if not isinstance(status, int) or not 200 <= status <= 999:
            raise LocalProtocolError(f"a response has a status of 200 to 999, not {status!r}", section="9.7")
        if reason is not None and not is_value(reason):
            raise LocalProtocolError("the reason phrase may not stand in a status line", section="RFC 9112 4")
        phrase = standard_phrase(status) if reason is None else reason
        responder = HttpResponder(self, int(status), fold_headers(headers), phrase)
        responder.check_head()
        self._responder = responder
        if is_streaming:
            responder.start_timer(self.settings.flush_after_s)
        return responder

    async def wait_disconnected(self) -> None:
        await self._gone.wait()

    @property
    def has_response(self) -> bool:
        """Whether the handler has begun a response, sent or not."""
        return self._responder is not None

    def cancelled_when_gone(self) -> trio.CancelScope:
        """Return a scope for a ``with`` block that ends once the sender is known to be gone."""
        scope = self._cancelled_when_gone = trio.CancelScope()
        if self.is_disconnected:
            scope.cancel()
        return scope

    # What a responder needs

    def start_task(self, function: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task that ends with the exchange at the latest."""
        self._nursery.start_soon(function, *arguments)

    async def send_head(self, text: str) -> None:
        """Send a ``response`` whose body follows in fragments, by rendezvous, which has to be open."""
        assert self._rendezvous is not None
        self.has_begun = True
        with self._noticing():
            await self._rendezvous.leg.send_text(text)

    async def send_fragment(self, data: BytesLike, *, fin: bool) -> None:
        assert self._rendezvous is not None
        with self._noticing():
            await self._rendezvous.leg.send_fragment(data, fin=fin)

    async def wait_room(self) -> None:
        assert self._rendezvous is not None
        with self._noticing():
            await self._rendezvous.leg.wait_send_might_not_block()

    async def deliver(self, text: str, body: bytes | None) -> None:
        """Send a whole response on the control channel if it can be and else by rendezvous; its body is at most 64 KiB.

        Cancelled once the control channel has taken it, it goes all the same.

        Raises:
          StreamLost: neither way works.
        """
        messages: list[str | bytes] = [text] if body is None else [text, body]
        if self._dial_has_ended is not None:
            # A relay that has got a handshake by now expects the response there, and nowhere else.
            await self._dial_has_ended.wait()
        channel = self._channel
        if channel is not None and self._rendezvous is None:
            try:
                if self._posted is None:
                    self._posted = channel.post(*messages)
                    self.has_begun = True
                await self._posted.wait()
                return
            except StreamLost:
                # The channel is lost. A relay that has not given the request up yet still knows its address.
                self._channel = None
        rendezvous = await self.open_rendezvous()
        self.has_begun = True
        with self._noticing():
            await rendezvous.leg.send_messages(messages)

    def note_complete(self) -> None:
        """The response has left."""
        self.is_complete = True
        if self._rendezvous is not None:
            self._nursery.start_soon(
                self._rendezvous.say_goodbye, CloseCode.NORMAL_CLOSURE, "NormalClosure", CLOSE_TIMEOUT
            )

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except StreamLost:
            self._note_gone()
            raise
        except LocalProtocolError as error:  # our Close is out: the exchange is being left
            raise StreamLost(str(error)) from error

    def _note_gone(self) -> None:
        if self.is_complete or self.is_disconnected:
            return
        self.is_disconnected = True
        self._gone.set()
        if self._cancelled_when_gone is not None:
            self._cancelled_when_gone.cancel()

    # Ways

    async def open_rendezvous(self) -> RequestRendezvous:
        """Return the exchange's own connection; dial it if there is none.

        Raises:
          StreamLost: it cannot be had, now or ever.
        """
        if self._rendezvous is None:
            if self._dial_has_ended is None:
                self._dial_has_ended = trio.Event()
                self._nursery.start_soon(self._dial_response, self._dial_has_ended)
            await self._dial_has_ended.wait()
        if self._rendezvous is None:
            failure = self._has_no_rendezvous
            raise StreamLost(f"the response's rendezvous failed: {failure}") from failure
        return self._rendezvous

    async def _dial_response(self, has_ended: trio.Event) -> None:
        """Dial the address, once: an address is good for one handshake, so nobody may break it off half way."""
        try:
            leg = await self._dial()
        except RelayError as error:
            self._has_no_rendezvous = error
            if isinstance(error, Refused) and error.http_status < 500:
                self._note_gone()  # 7.2, 9.6: the request has ended
        else:
            self._rendezvous = RequestRendezvous(leg, brings_body=False, on_end=self._note_gone)
            self._nursery.start_soon(self._rendezvous.read)
        finally:
            # A cancelled exchange dials no more, but its handler may wait for this in a shield.
            if self._rendezvous is None and self._has_no_rendezvous is None:
                self._has_no_rendezvous = ConnectionLost("the listener is stopping")
            has_ended.set()

    async def _dial(self) -> WebSocketLeg:
        settings = self.settings
        return await dial_rendezvous(
            self.message.address, is_tls=settings.is_tls, ssl_context=settings.ssl_context, proxy=settings.proxy
        )

    async def _fetch(self) -> None:
        """Get the request itself, which waits behind its address.

        Raises: as `open_websocket`; `RemoteProtocolError` for something else than a request.
        """
        leg = await self._dial()
        self._channel = None
        self._rendezvous = rendezvous = RequestRendezvous(leg, brings_body=True, on_end=self._note_gone)
        with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
            event = await leg.receive()
            while not isinstance(event, Text | Close):
                event = await leg.receive()
        message = parse_from_relay(event.data) if isinstance(event, Text) else None
        if not isinstance(message, Request) or is_elsewhere(message):
            raise RemoteProtocolError("the rendezvous brought no request", section="9.6")
        self.message = message
        self._brings_body = bool(message.body)
        rendezvous._is_body_over = not self._brings_body
        self._nursery.start_soon(rendezvous.read)

    # The whole

    async def answer(self, handler: RequestHandler) -> bool:
        """Let a handler answer, and answer in its place where it does not.

        Returns: whether the handler's own response has left in full. Cancellation goes through; what else came with it
          is logged.
        """
        failure: Exception | None = None
        try:
            await handler(HttpRequest(self, self.message))
        except Exception as error:
            failure = error
        except BaseExceptionGroup as group:
            failed, others = group.split(Exception)
            if failed is not None:
                _log.error(
                    "! the request handler failed on %s while it was stopped", self.message.id[:64], exc_info=failed
                )
            assert others is not None
            raise others from None
        return await self._settle(failure)

    async def _settle(self, failure: Exception | None) -> bool:
        shown = self.message.id[:64]
        if self._responder is not None:
            self._responder.give_up()
        if self.is_complete:
            if failure is not None:
                _log.error("! the request handler failed behind its response to %s", shown, exc_info=failure)
            return True
        if self.is_disconnected:
            _log.debug("x the sender of %s is gone", shown)
            return False
        cause = _only_one(failure)
        if isinstance(cause, BodyTooLarge | RequestFailed):
            _log.info("! %s: %s", shown, cause)
            await self._refuse_if_possible(cause.http_status, f"{cause}. TrackingId:{shown}")
        elif isinstance(cause, StreamLost) and self._has_no_rendezvous is not None:
            _log.warning("! %s was not answered: %s", shown, cause)
            if self._channel is not None:  # an address is good for one handshake, so no other way is left
                await self._refuse_if_possible(502, f"The listener could not reach the rendezvous. TrackingId:{shown}")
        else:
            if failure is None:
                failure = LocalProtocolError("the request handler returned without a complete response")
            _log.error("! the request handler failed on %s", shown, exc_info=failure)
            await self._refuse_if_possible(500, f"The listener's request handler failed. TrackingId:{shown}")
        return False

    async def _refuse_if_possible(self, status: int, text: str) -> None:
        if self.has_begun:
            return  # too late for another status: the body stays unfinished
        try:
            await self.refuse(status, text)
        except (ConnectionLost, trio.BrokenResourceError) as error:
            _log.warning("! %s was not answered: %s", self.message.id[:64], error)

    async def refuse(self, status: int, text: str) -> None:
        """Answer with a plain text, instead of a handler that has ended; does nothing once a response has begun.

        Raises:
          StreamLost: there is no way to the sender.
        """
        if self.has_begun:
            await trio.lowlevel.checkpoint()
            return
        if self._responder is not None:
            self._responder.give_up()
            self._responder = None
        responder = self.respond(status, {"Content-Type": PLAIN_TEXT}, None, is_streaming=False)
        await responder.send_all(text.encode())
        await responder.aclose()

    async def _leave(self) -> None:
        """Close what is not closed yet. A complete response has its own task for that."""
        if self.is_complete:
            return
        self.is_complete = True  # so that nobody is told about the end that comes now
        if self._rendezvous is not None:
            # 9.5: anything but 1000 says that the body is no whole one.
            await self._rendezvous.say_goodbye(
                CloseCode.INTERNAL_ERROR, "The response is not complete", _GOING_WRONG_TIMEOUT
            )
        self._nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_exchange(
    message: Request, body: bytes, channel: ControlChannel, settings: ExchangeSettings
) -> AsyncIterator[Exchange]:
    """Take a request up; at the end of the block, see its connection closed, in bounded time.

    Args:
      message: as it came on the control channel; in the address-only form, the request is fetched first.
      body: what came behind it on the control channel.
      channel: where it came.
      settings: see there.

    Raises:
      ConnectionLost, Refused, RemoteProtocolError: the request cannot be fetched.
    """
    exchange = Exchange(message, body, channel, settings)
    try:
        with alone():
            async with trio.open_nursery() as nursery:
                exchange._nursery = nursery
                if is_elsewhere(message):
                    await exchange._fetch()
                yield exchange
                await exchange._leave()
    finally:
        if exchange._rendezvous is not None:
            await cut(exchange._rendezvous.leg.stream)  # noqa: ASYNC102 - shields itself
