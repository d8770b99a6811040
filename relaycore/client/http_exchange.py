"""One relayed HTTP request at a listener: its parts, its body, and the way that its response takes.

::

    request on the control channel ──▶ response small, and complete in time ──▶ control channel: text, then one binary
                                   └─▶ long, slow or flushed ────────────────▶ its own rendezvous: text, then one
                                                                               binary message, fragment by fragment
    address only ──▶ rendezvous: text, then the body ──────────────────────────▶ the same rendezvous

A response is held back, at most 64 KiB of it for at most ``flush_after`` seconds, until it is known which way it goes;
then it streams. Tasks of one exchange::

    whoever serves it, in `open_exchange` ─ nursery ─┬─ _Rendezvous.read   the rendezvous' only reader
                                                     ├─ HttpResponder._flush_in_time
                                                     └─ _say_goodbye       once the response is complete

The reader holds one piece of the body at most: while nobody takes it, nothing more is read, and the relay, and the
sender behind it, wait. It goes on reading behind the body, which is how the end of a sender is noticed.

Source: wire contract 9, 13 and 14.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

import trio

from ..errors import ConnectionLost, LocalProtocolError, Refused, RelayError, RemoteProtocolError
from ..net.connect import open_websocket, parse_ws_url
from ..net.errors import StreamClosed, StreamLost
from ..net.linger import cut
from ..net.tasks import alone, bounded
from ..net.websocket import WebSocketLeg
from ..vocab import BytesLike
from ..wire.address import split_target
from ..wire.frames import Close, Text
from ..wire.http1 import Headers, is_token, is_value
from ..wire.limits import (
    CLOSE_TIMEOUT,
    LISTENER_RENDEZVOUS_TIMEOUT,
    MAX_CONTROL_BODY_BYTES,
    MAX_CONTROL_MESSAGE_BYTES,
)
from ..wire.messages import RemoteEndpoint, Request, Response, encode_response, parse_from_relay
from ..wire.status import CloseCode, standard_phrase

if TYPE_CHECKING:
    from types import TracebackType

    from .control import ControlChannel

__all__ = [
    "DEFAULT_FLUSH_AFTER_S",
    "PLAIN_TEXT",
    "Exchange",
    "ExchangeSettings",
    "HeadersLike",
    "HttpRequest",
    "HttpResponder",
    "RequestFailed",
    "RequestHandler",
    "encode_refusal",
    "open_exchange",
]

DEFAULT_FLUSH_AFTER_S: Final = 0.1
"""Seconds that a response may stay incomplete before it gets a connection of its own. The vendor's libraries take 2,
which is long for whoever waits for the first of many events; a rendezvous costs one handshake."""

DEFAULT_READ_BYTES: Final = 1_048_576
"""Bound of `HttpRequest.read` where the caller sets none, as for messages."""

PLAIN_TEXT: Final = "text/plain; charset=utf-8"

_BODILESS: Final = frozenset({204, 304})

_GOING_WRONG_TIMEOUT: Final = 2.0
"""Seconds for telling a relay that a response stays unfinished, before its connection is cut."""

_SEPARATOR = re.compile(r"/|%2[fF]")
_LEADING_SEPARATORS = re.compile(r"(?:/|%2[fF])*")

_log = logging.getLogger("relaycore.client")

HeadersLike: TypeAlias = Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]
"""Header fields to send: a mapping, whose values may be several, or pairs in their order."""


@dataclass(frozen=True)
class ExchangeSettings:
    """What all exchanges of a listener share.

    Attributes:
      path: the hybrid connection we listen on.
      is_tls: whether its requests come over TLS. A rendezvous then has to use TLS too: whoever can forge an address
        could otherwise strip it off.
      ssl_context: for the rendezvous; None is the system's store.
      flush_after_s: see `DEFAULT_FLUSH_AFTER_S`.
    """

    path: str
    is_tls: bool
    ssl_context: ssl.SSLContext | None
    flush_after_s: float = DEFAULT_FLUSH_AFTER_S


class RequestFailed(RelayError):
    """What an adapter's handler raises where it is not to blame: the log gets a line and no traceback.

    Args:
      message: for the log and, as far as nothing of a response has left, the sender.
      http_status: of the answer then.
    """

    def __init__(self, message: str, *, http_status: int = 502) -> None:
        super().__init__(message)
        self.http_status = http_status


class BodyTooLarge(RemoteProtocolError):
    """`HttpRequest.read` met a longer body than it was asked for; answered with 413 if no handler catches it."""


# The request ---------------------------------------------------------------------------------------------------------


class HttpRequest(trio.abc.ReceiveStream):
    """A relayed HTTP request, and its body as a Trio stream of bytes.

    Attributes:
      method: as the sender wrote it, such as ``GET``.
      target: as the relay gave it: path with the hybrid connection in front, and query. A relay may have decoded
        escapes in the path, blanks always.
      path: the hybrid connection, as named in our connection string.
      suffix: what the target has behind it, percent-decoded and without its first slash; usually ``""``.
      raw_suffix: the same as it stands in the target.
      query: without ``?``, as sent, and without what was meant for the relay.
      headers: the sender's, with repeated ones joined; what only concerns the sender's connection is not among them.
      remote_endpoint: where the sender dialled from, as the relay saw it; None if the relay does not say.
      tracking_id: names this request in the relay's logs.
      has_body: whether a body comes, which may be empty.
    """

    def __init__(self, exchange: Exchange, message: Request) -> None:
        self._exchange = exchange
        self._is_closed = False
        self._is_receiving = False
        self.method: str = message.method or ""
        self.target: str = message.requestTarget or "/"
        self.path: str = exchange.settings.path
        raw_path, self.query = split_target(self.target)
        self.raw_suffix: str = _raw_suffix(raw_path, self.path)
        self.suffix: str = unquote(self.raw_suffix, errors="replace")
        self.headers = Headers((message.requestHeaders or {}).items())
        self.remote_endpoint: RemoteEndpoint | None = message.remoteEndpoint
        self.tracking_id: str = message.id
        self.has_body: bool = bool(message.body)

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.path!r} {self.tracking_id}>"

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes of the body.

        Args:
          max_bytes: at most so many; without it, what came at a time, usually at most 64 KiB.

        Returns: ``b""`` at the end of the body, also if there is none.

        Raises:
          StreamLost: the sender or the relay was lost inside the body.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: after `aclose`.

        A checkpoint; cancelling it loses nothing. While it is not called the sender has to wait, but for what is on its
        way. After the response is complete the rest of the body is gone, and raises `StreamLost`.
        """
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving this body")
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint()
            if self._is_closed:
                raise trio.ClosedResourceError("this body was closed")
            return await self._exchange.receive_body(max_bytes)
        finally:
            self._is_receiving = False

    async def read(self, max_bytes: int = DEFAULT_READ_BYTES) -> bytes:
        """Wait for the whole body, or what is left of it.

        Args:
          max_bytes: how much to hold in memory at most.

        Raises:
          RemoteProtocolError: there is more. Its ``http_status`` is 413, and so is the answer if no handler catches it.
          StreamLost, trio.BusyResourceError, trio.ClosedResourceError: as `receive_some`.

        A checkpoint. Cancelled, it loses what was read.
        """
        data = await self.receive_some()
        if not data:
            return b""
        collected = bytearray(data)
        while len(collected) <= max_bytes and (data := await self.receive_some()):
            collected += data
        if len(collected) > max_bytes:
            raise BodyTooLarge(
                f"The body is longer than {max_bytes} bytes", section="RFC 9110 15.5.14", http_status=413
            )
        return bytes(collected)

    async def aclose(self) -> None:
        """Give the body up: `receive_some` raises from now on. The request can still be answered. A checkpoint."""
        self._is_closed = True
        await trio.lowlevel.checkpoint()

    def respond(self, status: int = 200, headers: HeadersLike = (), *, reason: str | None = None) -> HttpResponder:
        """Begin the response; once per request. Nothing has left when this returns.

        ::

            async with request.respond(200, {"Content-Type": "text/plain"}) as response:
                await response.send_all(b"hello")

        Args:
          status: 200 to 999.
          headers: a name that comes several times is joined with ``, ``, and ``Set-Cookie`` kept apart. What describes
            the connection or frames the body (``Content-Length``, ``Transfer-Encoding``) is the relay's to set; given
            here it does no harm, and is not compared with the body.
          reason: reason phrase in Latin-1; the usual one without it.

        Raises:
          LocalProtocolError: a status, header or reason that may not be sent, or a second response.
        """
        return self._exchange.respond(status, headers, reason)

    @property
    def is_disconnected(self) -> bool:
        """True once the sender, or the way to it, is known to be gone before the response was complete.

        Only a request with a connection of its own (a long body, a response that streams) hears of it.
        """
        return self._exchange.is_disconnected

    async def wait_disconnected(self) -> None:
        """Wait until `is_disconnected`; for ever if that never comes. A checkpoint."""
        await self._exchange.wait_disconnected()


def _raw_suffix(raw_path: str, entity: str) -> str:
    """Return what stands in a path behind the entity, without the slash between them.

    The relay found our entity at the front, so its segments only have to be counted. Their slashes may be escaped.
    """
    begin = _LEADING_SEPARATORS.match(raw_path)
    assert begin is not None
    position = begin.end()
    for _ in range(entity.count("/") + 1):
        separator = _SEPARATOR.search(raw_path, position)
        if separator is None:
            return ""
        position = separator.end()
    return raw_path[position:]


RequestHandler: TypeAlias = Callable[[HttpRequest], Awaitable[None]]
"""Serves one request: answers it through `HttpRequest.respond` before it returns. If it raises, or returns without a
complete response, the sender gets 500, or a cut if something of a response has left already; the log has the traceback.
It never ends the listener."""


# The response --------------------------------------------------------------------------------------------------------


class HttpResponder(trio.abc.SendStream):
    """A response under way: a Trio stream for its body; made by `HttpRequest.respond`.

    ``async with`` ends the body or, if the block raises, leaves it unfinished: the sender then sees a cut, or an error
    status if nothing had left yet. Bodies of answers to ``HEAD``, and of 204 and 304, are taken and dropped.

    At most 64 KiB are held back, for as long as `flush_after` of the listener says, so that a short response can travel
    on the control channel. From then on `send_all` waits for the relay, and the relay for the sender.

    Attributes:
      status: as given.
    """

    def __init__(
        self,
        exchange: Exchange,
        status: int,
        headers: dict[str, str | list[str]],
        reason: str,
    ) -> None:
        self.status = status
        self._exchange = exchange
        self._headers = headers
        self._reason = reason
        self._drops_body = exchange.message.method == "HEAD" or status in _BODILESS
        self._is_sending = False
        self._is_closed = False
        # Owned by whoever holds the lock: a sending task or the timer.
        self._lock = trio.Lock()
        self._buffer = bytearray()
        self._is_head_out = False
        self._failure: StreamLost | None = None
        self._timer = trio.CancelScope()

    async def send_all(self, data: BytesLike) -> None:
        """Send part of the body. Empty data sends nothing.

        Raises:
          StreamLost: the sender is gone, or there is no way to it.
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: after `aclose`.

        A checkpoint. ``data`` is not kept. Cancelled, some of it may have left.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a body is made of bytes, not {type(data).__name__}")
        with self._sending():
            await trio.lowlevel.checkpoint()
            await self._take_turn()
            try:
                self._check_may_send()
                if self._drops_body or not data:
                    return
                if not self._is_head_out and len(self._buffer) + len(data) <= MAX_CONTROL_BODY_BYTES:
                    self._buffer += data
                    return
                await self._stream()
                await self._exchange.send_fragment(data, fin=False)
            finally:
                self._lock.release()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` may find room. Raises as `send_all`; a checkpoint."""
        with self._sending():
            await trio.lowlevel.checkpoint()
            await self._take_turn()
            try:
                self._check_may_send()
                if self._is_head_out:
                    await self._exchange.wait_room()
            finally:
                self._lock.release()

    async def flush(self) -> None:
        """Let status, headers and what was sent so far leave now, on a connection of their own. Raises as `send_all`.

        A checkpoint. Needed by those only who cannot wait for `flush_after`.
        """
        with self._sending():
            await trio.lowlevel.checkpoint()
            await self._take_turn()
            try:
                self._check_may_send()
                await self._flush()
            finally:
                self._lock.release()

    async def aclose(self) -> None:
        """End the body; the response is complete once this returns. Waits its turn behind a sending task.

        Raises:
          StreamLost: the response could not be delivered.

        Cancelled, it leaves the response unfinished, unless it was on its way already. May be called again. A
        checkpoint.
        """
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        await self._take_turn()
        try:
            if self._failure is not None:
                raise StreamLost(str(self._failure)) from self._failure
            if not self._exchange.is_complete:
                await self._finish()
        finally:
            self._lock.release()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            await self.aclose()
        else:
            await self.abort()

    async def abort(self) -> None:
        """Give the response up; what `async with` does when its block raises. A checkpoint that cannot be cancelled.

        How the sender hears of it is decided when the handler ends: a cut, or an error status if nothing has left.
        """
        self._is_closed = True
        self._timer.cancel()
        with trio.CancelScope(shield=True):
            async with self._lock:  # the timer leaves at once; a sender that was cancelled has left
                pass

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending this response")
        if self._is_closed:
            raise trio.ClosedResourceError("this response was closed")
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False

    async def _take_turn(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    def _check_may_send(self) -> None:
        if self._failure is not None:
            raise StreamLost(str(self._failure)) from self._failure
        if self._exchange.is_disconnected:
            raise StreamLost("the sender is gone")

    async def _flush(self) -> None:
        if self._exchange.is_complete:
            return
        if self._drops_body:
            await self._finish()
        else:
            await self._stream()

    async def _stream(self) -> None:
        """Send head and buffer by rendezvous, as far as they are not out."""
        if not self._is_head_out:
            await self._exchange.send_head(self._encode(has_body=True))
            self._is_head_out = True
        if self._buffer:
            await self._exchange.send_fragment(bytes(self._buffer), fin=False)
            self._buffer.clear()

    async def _finish(self) -> None:
        if self._is_head_out:
            await self._exchange.send_fragment(bytes(self._buffer), fin=True)
        else:
            body = bytes(self._buffer) or None
            await self._exchange.deliver(self._encode(has_body=body is not None), body)
        self._exchange.note_complete()

    async def _flush_in_time(self, seconds: float) -> None:
        with self._timer:
            await trio.sleep(seconds)
            await self._take_turn()
            try:
                await self._flush()
            except StreamLost as error:
                # As long as nothing has left, a short response can still take the control channel.
                if self._exchange.has_begun:
                    self._failure = error
            finally:
                self._lock.release()

    def _encode(self, *, has_body: bool) -> str:
        return encode_response(Response(self._exchange.message.id, self.status, self._reason, self._headers, has_body))


def _fold(headers: HeadersLike) -> dict[str, str | list[str]]:
    """Return header fields as a ``response`` message has them: one string for each name, but for ``Set-Cookie``.

    Raises:
      LocalProtocolError: a name or a value that may not stand in a header.
    """
    folded: dict[str, tuple[str, list[str]]] = {}
    for name, given in headers.items() if isinstance(headers, Mapping) else headers:
        values = [given] if isinstance(given, str) else list(given)
        if not isinstance(name, str) or not is_token(name):
            raise LocalProtocolError("a header name is not a token", section="RFC 9110 5.1")
        if not all(isinstance(value, str) and is_value(value) for value in values):
            raise LocalProtocolError(f"the value of {name} may not stand in a header", section="RFC 9110 5.5")
        folded.setdefault(name.lower(), (name, []))[1].extend(values)
    return {
        name: values if key == "set-cookie" and len(values) > 1 else ", ".join(values)
        for key, (name, values) in folded.items()
        if values
    }


def encode_refusal(message: Request, status: int, text: str) -> tuple[str, bytes] | tuple[str]:
    """Return the messages that answer a request with a plain text, for the control channel."""
    body = b"" if message.method == "HEAD" else text.encode()
    response = encode_response(
        Response(message.id, status, standard_phrase(status), {"Content-Type": PLAIN_TEXT}, bool(body))
    )
    return (response, body) if body else (response,)


# The rendezvous ------------------------------------------------------------------------------------------------------


class _Rendezvous:
    """The connection of one exchange, and the one piece of a body that may wait in it.

    Args:
      leg: fresh from its handshake, or from reading the request; belongs to whoever opened it.
      brings_body: whether the relay sends a body on it.
      on_end: called when the relay closes, or the connection is lost, other than at the end of a body.
    """

    def __init__(self, leg: WebSocketLeg, *, brings_body: bool, on_end: Callable[[], None]) -> None:
        self.leg = leg
        self.has_ended = trio.Event()
        """The reader has left: nothing comes any more, or nobody wants it."""
        self._on_end = on_end
        self._is_body_over = not brings_body
        self._has_body_begun = False
        self._is_discarding = False
        self._piece = memoryview(b"")
        self._loss: StreamLost | None = None
        self._changed = trio.lowlevel.ParkingLot()

    async def read(self) -> None:
        """Read until the relay's Close, or the end of the connection; the task of the reader."""
        try:
            while True:
                found = await self.leg.receive_piece()
                if isinstance(found, Close):
                    self._note_close(found)
                    return
                if self._is_discarding:
                    continue
                if self._is_body_over or found.is_text:
                    raise RemoteProtocolError("a message that belongs to no request", section="9.5")
                self._has_body_begun = True
                self._is_body_over = found.fin
                self._piece = memoryview(found.data)
                self._changed.unpark_all()
                while self._piece and not self._is_discarding:
                    await self._changed.park()
        except (StreamLost, RemoteProtocolError, trio.ClosedResourceError) as error:
            self._end(StreamLost(f"the request's connection is gone: {error}"))
            self._loss.__cause__ = error  # type: ignore[union-attr]
        finally:
            self.has_ended.set()

    def _note_close(self, close: Close) -> None:
        if not self._is_body_over and self._has_body_begun and close.code in (None, CloseCode.NORMAL_CLOSURE):
            self._is_body_over = True  # 9.5: how Java ends a body
            self._changed.unpark_all()
        elif close.code is None:
            self._end(StreamLost("the relay closed the request's connection"))
        else:
            self._end(StreamClosed(close.code, close.reason))

    def _end(self, loss: StreamLost) -> None:
        self._loss = loss
        self._on_end()
        self._changed.unpark_all()

    async def receive(self, max_bytes: int | None) -> bytes:
        """Take from the piece in hand, or wait for the next one. Errors and end as `HttpRequest.receive_some`."""
        while not self._piece:
            if self._is_body_over:
                return b""
            if self._is_discarding:
                raise StreamLost("the response is complete: the rest of the body was given up")
            if self._loss is not None:
                raise StreamLost(str(self._loss)) from self._loss
            await self._changed.park()
        data = bytes(self._piece[:max_bytes])
        self._piece = self._piece[len(data) :]
        if not self._piece:
            self._changed.unpark_all()
        return data

    def discard(self) -> None:
        """Throw away what is still to come."""
        self._is_discarding = True
        self._piece = memoryview(b"")
        self._changed.unpark_all()

    async def say_goodbye(self, code: int, reason: str, close_timeout: float) -> None:
        """Close, wait for the relay's Close, throwing data away, and hang up; in bounded time."""
        self.discard()
        with trio.move_on_after(close_timeout), contextlib.suppress(trio.BrokenResourceError):
            await self.leg.send_close(code, reason)
            await self.has_ended.wait()
        if self.has_ended.is_set():
            await self.leg.close()  # both Closes are there: lets the relay hang up first
        await self.leg.aclose()


# The exchange --------------------------------------------------------------------------------------------------------


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
        self._rendezvous: _Rendezvous | None = None
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
        self._responder = responder = HttpResponder(self, status, _fold(headers), phrase)
        if is_streaming:
            self._nursery.start_soon(responder._flush_in_time, self.settings.flush_after_s)
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

    # What a responder sends

    async def send_head(self, text: str) -> None:
        """Send a ``response`` whose body follows in fragments; opens the rendezvous if there is none yet."""
        rendezvous = await self._open_rendezvous()
        self.has_begun = True
        with self._noticing():
            await rendezvous.leg.send_text(text)

    async def send_fragment(self, data: BytesLike, *, fin: bool) -> None:
        assert self._rendezvous is not None
        with self._noticing():
            await self._rendezvous.leg.send_fragment(data, fin=fin)

    async def wait_room(self) -> None:
        assert self._rendezvous is not None
        with self._noticing():
            await self._rendezvous.leg.wait_send_might_not_block()

    async def deliver(self, text: str, body: bytes | None) -> None:
        """Send a whole response, of at most 64 KiB, on the control channel if it can be and else by rendezvous.

        Cancelled once the control channel has taken it, it goes all the same.

        Raises:
          StreamLost: neither way works.
        """
        messages: list[str | bytes] = [text] if body is None else [text, body]
        channel = self._channel
        if channel is not None and self._rendezvous is None and len(text.encode()) <= MAX_CONTROL_MESSAGE_BYTES:
            try:
                posted = channel.post(*messages)
                self.has_begun = True
                await posted.wait()
                return
            except StreamLost:
                # The channel is lost. A relay that has not given the request up yet still knows its address.
                self._channel = None
        rendezvous = await self._open_rendezvous()
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

    async def _open_rendezvous(self) -> _Rendezvous:
        """Return the exchange's own connection; dial it if there is none.

        Raises:
          StreamLost: it cannot be had, now or ever.
        """
        if self._rendezvous is not None:
            return self._rendezvous
        try:
            if self._has_no_rendezvous is not None:
                raise self._has_no_rendezvous
            leg = await self._dial()
        except RelayError as error:
            self._has_no_rendezvous = error
            if isinstance(error, Refused) and error.http_status < 500:
                self._note_gone()  # 7.2, 9.6: the request has ended
            raise StreamLost(f"the response's rendezvous failed: {error}") from error
        self._rendezvous = _Rendezvous(leg, brings_body=False, on_end=self._note_gone)
        self._nursery.start_soon(self._rendezvous.read)
        return self._rendezvous

    async def _dial(self) -> WebSocketLeg:
        # No message may repeat the address: it is a secret.
        url = parse_ws_url(self.message.address)
        if self.settings.is_tls and not url.is_tls:
            raise RemoteProtocolError("the rendezvous address drops TLS", section="7.1")
        if "?" not in url.resource:
            raise RemoteProtocolError("the rendezvous address has no query", section="7.1")
        with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
            opened = await open_websocket(url, ssl_context=self.settings.ssl_context)
        return opened.leg

    async def _fetch(self) -> None:
        """Get the request itself, which waits behind its address.

        Raises: as `open_websocket`; `RemoteProtocolError` for something else than a request.
        """
        leg = await self._dial()
        self._channel = None
        self._rendezvous = rendezvous = _Rendezvous(leg, brings_body=True, on_end=self._note_gone)
        with bounded(LISTENER_RENDEZVOUS_TIMEOUT):
            event = await leg.receive()
            while not isinstance(event, Text | Close):
                event = await leg.receive()
        message = parse_from_relay(event.data) if isinstance(event, Text) else None
        if not isinstance(message, Request) or message.is_address_only:
            raise RemoteProtocolError("the rendezvous brought no request", section="9.6")
        self.message = message
        self._brings_body = bool(message.body)
        rendezvous._is_body_over = not self._brings_body
        self._nursery.start_soon(rendezvous.read)

    # The whole

    async def answer(self, handler: RequestHandler) -> bool:
        """Let a handler answer, and answer in its place where it does not.

        Returns: whether the handler's own response has left in full.
        """
        failure: Exception | None = None
        try:
            await handler(HttpRequest(self, self.message))
        except Exception as error:
            failure = error
        return await self._settle(failure)

    async def _settle(self, failure: Exception | None) -> bool:
        shown = self.message.id[:64]
        if self._responder is not None and not self.is_complete:
            await self._responder.abort()
        if self.is_complete:
            if failure is not None:
                _log.error("! the request handler failed behind its response to %s", shown, exc_info=failure)
            return True
        if self.is_disconnected:
            _log.debug("x the sender of %s is gone", shown)
            return False
        if isinstance(failure, BodyTooLarge | RequestFailed):
            _log.info("! %s: %s", shown, failure)
            await self._refuse_if_possible(failure.http_status, f"{failure}. TrackingId:{shown}")
        elif isinstance(failure, StreamLost) and self._has_no_rendezvous is not None:
            _log.warning("! %s was not answered: %s", shown, failure)
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
        """Answer with a plain text, instead of a handler; does nothing once a response has begun.

        Raises:
          StreamLost: there is no way to the sender.
        """
        if self.has_begun:
            await trio.lowlevel.checkpoint()
            return
        self._responder = None
        responder = self.respond(status, {"Content-Type": PLAIN_TEXT}, None, is_streaming=False)
        await responder.send_all(text.encode())
        await responder.aclose()

    async def _leave(self) -> None:
        """Close what is not closed yet. A complete response has its own task for that."""
        rendezvous = self._rendezvous
        if rendezvous is not None and not self.is_complete:
            # 9.5: anything but 1000 says that the body is no whole one.
            self.is_complete = True
            await rendezvous.say_goodbye(CloseCode.INTERNAL_ERROR, "The response is not complete", _GOING_WRONG_TIMEOUT)


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
                if message.body is None or message.is_address_only:
                    await exchange._fetch()
                yield exchange
                await exchange._leave()
    finally:
        if exchange._rendezvous is not None:
            await cut(exchange._rendezvous.leg.stream)  # noqa: ASYNC102 - shields itself
