"""A response under way: what a handler writes, held back for a moment, then sent by the exchange that it belongs to.

A response is held back, at most 64 KiB of it for at most ``flush_after`` seconds, until it is known which way it goes;
then it streams::

    send_all ──▶ buffer ──┬─ aclose: complete, and short ───────▶ Exchange.deliver: text and body at once
                          └─ full, flushed, or out of time ─────▶ Exchange.send_head, then send_fragment ... with FIN

Once it streams, what is written leaves at once, unless something has left a few milliseconds ago and this is short:
then it waits for company, those few milliseconds. An event is not delayed by that, and a program that writes byte by
byte does not pay, and make the relay and the sender pay, for a frame each.

The sending task and the timer take turns on a lock. A timer is cancelled in its sleep only, never while it sends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from ..errors import LocalProtocolError
from ..net.errors import StreamLost
from ..vocab import BytesLike
from ..wire.http1 import is_token, is_value
from ..wire.limits import MAX_CONTROL_BODY_BYTES, MAX_CONTROL_MESSAGE_BYTES
from ..wire.messages import Request, Response, encode_response
from ..wire.status import standard_phrase

if TYPE_CHECKING:
    from types import TracebackType

    from .http_exchange import Exchange

__all__ = ["PLAIN_TEXT", "HeadersLike", "HttpResponder", "encode_refusal", "fold_headers"]

PLAIN_TEXT: Final = "text/plain; charset=utf-8"

_COMPANY_S: Final = 0.005
"""Seconds that short writes in a quick row wait for each other. Not noticed by people, and 200 frames a second at most
instead of tens of thousands."""

_COMPANY_BYTES: Final = 16_384
"""A write of this length needs no company."""

_BODILESS: Final = frozenset({204, 304})

HeadersLike: TypeAlias = Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]
"""Header fields to send: a mapping, whose values may be several, or pairs in their order."""


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
        self._last_left = 0.0
        self._failure: StreamLost | None = None
        self._timer = trio.CancelScope()
        self._is_given_up = False

    def check_head(self) -> None:
        """Measure what stands before the body.

        Raises:
          LocalProtocolError: no relay takes it.
        """
        if len(self._encode(has_body=False).encode()) > MAX_CONTROL_MESSAGE_BYTES:
            raise LocalProtocolError(
                f"the head of a response, written as JSON, has at most {MAX_CONTROL_MESSAGE_BYTES} bytes", section="9.7"
            )

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
                if len(self._buffer) + len(data) <= MAX_CONTROL_BODY_BYTES and self._waits_for_more(len(data)):
                    self._buffer += data
                    return
                await self._stream()
                await self._exchange.send_fragment(data, fin=False)
                self._last_left = trio.current_time()
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
            self._check_may_send()
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
            self.give_up()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def give_up(self) -> None:
        """Leave the response unfinished; what ``async with`` does when its block raises.

        How the sender hears of it is decided when the handler ends: a cut, or an error status if nothing has left.
        """
        self._is_closed = self._is_given_up = True
        self._timer.cancel()

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
        if self._is_given_up:
            raise trio.ClosedResourceError("this response was given up")
        if self._failure is not None:
            raise StreamLost(str(self._failure)) from self._failure
        if self._exchange.is_disconnected:
            raise StreamLost("the sender is gone")

    def _waits_for_more(self, length: int) -> bool:
        """Decide whether something short, that fits into the buffer, stays there for a moment."""
        if not self._is_head_out:
            return True
        if length >= _COMPANY_BYTES or trio.current_time() - self._last_left >= _COMPANY_S:
            return False
        if not self._buffer:
            self.start_timer(_COMPANY_S)
        return True

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
            await self._exchange.open_rendezvous()
            self._check_may_send()
            await self._exchange.send_head(self._encode(has_body=True))
            self._is_head_out = True
        if self._buffer:
            await self._exchange.send_fragment(bytes(self._buffer), fin=False)
            self._buffer.clear()
        self._last_left = trio.current_time()

    async def _finish(self) -> None:
        if self._is_head_out:
            await self._exchange.send_fragment(bytes(self._buffer), fin=True)
        else:
            body = bytes(self._buffer) or None
            await self._exchange.deliver(self._encode(has_body=body is not None), body)
        self._exchange.note_complete()

    def start_timer(self, seconds: float) -> None:
        """Flush after a time, unless the response is closed by then. An earlier timer that still sleeps is stopped."""
        self._timer.cancel()
        self._timer = trio.CancelScope()
        self._exchange.start_task(self._flush_in_time, seconds, self._timer)

    async def _flush_in_time(self, seconds: float, sleep: trio.CancelScope) -> None:
        with sleep:
            await trio.sleep(seconds)
        if sleep.cancelled_caught:
            return
        await self._take_turn()
        try:
            if not self._is_closed:
                await self._flush()
        except StreamLost as error:
            # As long as nothing has left, a short response can still take the control channel.
            if self._exchange.has_begun:
                self._failure = error
        except trio.ClosedResourceError:
            pass  # it was given up meanwhile
        finally:
            self._lock.release()

    def _encode(self, *, has_body: bool) -> str:
        return encode_response(Response(self._exchange.message.id, self.status, self._reason, self._headers, has_body))


def fold_headers(headers: HeadersLike) -> dict[str, str | list[str]]:
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
