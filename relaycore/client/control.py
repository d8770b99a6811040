"""The listener's end of a control channel, over trio-websocket.

trio-websocket hides the reason phrase of a refused upgrade, which is where the relay's words and its tracking id stand,
and waits for ever for an answer that never comes. So the transport is wrapped: `AnsweredStream` reads the answer
itself, raises what it means, and hands on a 101 that is known to be good; from then on it only notes when bytes came.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections import deque
from typing import Final

import trio
import trio_websocket

from ..errors import ConnectionLost
from ..net.connect import WebSocketUrl, open_transport
from ..net.errors import StreamClosed, StreamLost
from ..net.proxy import Proxy
from ..net.websocket import RECEIVE_BYTES
from ..vocab import BytesLike
from ..wire.handshake import check_101
from ..wire.http1 import ResponseReader
from ..wire.limits import CLOSE_TIMEOUT, MAX_CONTROL_MESSAGE_BYTES
from ..wire.messages import encode_renew_token
from ..wire.status import CloseCode
from .credentials import AUTHORIZATION_HEADER, Credential

__all__ = ["ControlChannel", "Posted", "open_control_channel"]

PONG_TIMEOUT: Final = 20.0
"""Seconds that the relay has for a sign of life once it was pinged."""

_QUEUED_MESSAGES: Final = 64
"""Messages trio-websocket reads ahead; then it stops reading. Ours is a reader that never waits, so it stays short."""

_ABNORMAL_CLOSURE: Final = 1006  # trio-websocket's word for an end without Close (RFC 6455 7.1.5)

_KEY = re.compile(rb"\r\nSec-WebSocket-Key: *([^\r\n]+)", re.IGNORECASE)


class AnsweredStream(trio.abc.Stream):
    """A transport that checks the answer to the upgrade before anybody sees it.

    Attributes:
      last_received: Trio clock at the last byte.
    """

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self._key = ""
        self._is_answered = False
        self.last_received = trio.current_time()

    async def send_all(self, data: BytesLike) -> None:
        if self._is_answered:
            await self._inner.send_all(data)
            return
        if (match := _KEY.search(data)) is not None:
            self._key = match[1].decode("ascii")
        # An early refusal may stand in the receive buffer although sending failed; receive_some() looks.
        with contextlib.suppress(trio.BrokenResourceError):
            await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> BytesLike:  # type: ignore[override]
        if not self._is_answered:
            return await self._receive_answer()
        data = await self._inner.receive_some(max_bytes)
        if data:
            self.last_received = trio.current_time()
        return data

    async def _receive_answer(self) -> BytesLike:
        """Read up to the end of the answer's head.

        Returns: the head and whatever came behind it.

        Raises: as `open_websocket`. None of them is a broken stream in Trio's sense, so that they pass through
          trio-websocket, which would swallow those.
        """
        reader = ResponseReader()
        received = bytearray()
        while (head := reader.next_event()) is None:
            try:
                data = await self._inner.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise ConnectionLost("connection lost during the handshake") from error
            if not data:
                raise ConnectionLost("connection ended during the handshake")
            received += data
            reader.receive_data(data)
        check_101(head, self._key, ())
        self._is_answered = True
        self.last_received = trio.current_time()
        return received

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def certificate_expires_unix(self) -> float | None:
        """When the far side's certificate runs out; None without TLS, or if it was not verified."""
        if not isinstance(self._inner, trio.SSLStream):
            return None
        found = (self._inner.getpeercert() or {}).get("notAfter")
        return None if found is None else float(ssl.cert_time_to_seconds(found))


class Posted:
    """Messages that were handed over for sending, one behind the other."""

    def __init__(self, messages: tuple[str | bytes, ...]) -> None:
        self.messages = messages
        self.is_done = trio.Event()
        self.failure: StreamLost | None = None

    async def wait(self) -> None:
        """Wait until they are sent. Cancelling the wait does not take them back.

        Raises:
          StreamLost: the channel ended before.
        """
        await self.is_done.wait()
        if self.failure is not None:
            raise StreamLost(str(self.failure)) from self.failure


class ControlChannel(trio.abc.AsyncResource):
    """A registered listener's channel.

    One task writes, `write_posted`, so that messages that belong together stay together, and so that nobody who is
    cancelled leaves half a frame behind, which would cost everybody the channel.

    Attributes:
      certificate_expires_unix: when the relay's certificate runs out; None without TLS.
    """

    def __init__(self, websocket: trio_websocket.WebSocketConnection, stream: AnsweredStream) -> None:
        self._websocket = websocket
        self._stream = stream
        self._posted: deque[Posted] = deque()
        self._has_posted = trio.lowlevel.ParkingLot()
        self._failure: StreamLost | None = None
        self.certificate_expires_unix = stream.certificate_expires_unix

    async def receive(self) -> str | bytes:
        """Wait for the next message: a control message, or the binary one that is a request's body.

        Raises:
          StreamClosed: the relay closed the channel.
          StreamLost: the channel ended without a Close.
        """
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as error:
            raise _ended(error) from None
        return message if isinstance(message, str) else bytes(message)

    @property
    def messages_posted(self) -> int:
        """How many times somebody has posted what is not sent yet."""
        return len(self._posted)

    def post(self, *messages: str | bytes) -> Posted:
        """Hand messages over: they are sent one behind the other, with no other message in between.

        Nothing here bounds how many wait: that is for the caller, who waits for his, or counts.

        Raises:
          StreamLost: the channel has ended.
        """
        if self._failure is not None:
            raise StreamLost(str(self._failure)) from self._failure
        posted = Posted(messages)
        self._posted.append(posted)
        self._has_posted.unpark()
        return posted

    async def write_posted(self) -> None:
        """Send what is posted, until the channel ends or the task is cancelled, which may cut a frame in half."""
        posted = self._posted
        try:
            while True:
                while posted:
                    for message in posted[0].messages:
                        await self._websocket.send_message(message)
                    posted.popleft().is_done.set()
                await self._has_posted.park()
        except trio_websocket.ConnectionClosed as error:
            self._failure = _ended(error)  # raised by whoever reads the channel
        except Exception as error:  # such as wsproto's, when a rule was broken and the reader has yet to say so
            self._failure = StreamLost("the control channel cannot be written to")
            self._failure.__cause__ = error
            await trio.aclose_forcefully(self._stream)
        finally:
            failure = self._failure = self._failure or StreamLost("the control channel has ended")
            while posted:
                lost = posted.popleft()
                lost.failure = failure
                lost.is_done.set()

    async def renew(self, credential: Credential) -> None:
        """Send a fresh token. Nothing answers a good one; a bad one is answered with Close 1008 (6.4)."""
        await self.post(encode_renew_token(credential.text)).wait()

    async def keep_alive(self, interval_s: float) -> None:
        """Watch for signs of life while the channel stands: ping after ``interval_s`` seconds of silence.

        Any byte is a sign of life, not just the pong: that may stand behind a long message on a slow link.

        Raises:
          StreamLost: no byte came within 20 seconds of a ping.
        """
        while True:
            silent_s = trio.current_time() - self._stream.last_received
            if silent_s < interval_s:
                await trio.sleep(interval_s - silent_s)
                continue
            pinged_at = trio.current_time()
            try:
                with trio.move_on_after(PONG_TIMEOUT):
                    await self._websocket.ping()
            except trio_websocket.ConnectionClosed:
                return  # whoever reads the channel reports it
            if self._stream.last_received < pinged_at:
                raise StreamLost(f"no sign of life from the relay for {interval_s + PONG_TIMEOUT:g} s")

    async def close(self) -> None:
        """Close with 1000, behind what was posted, and wait for the relay's answer: then it has deregistered us (6.1).

        All of it takes at most 10 seconds.
        """
        with trio.move_on_after(CLOSE_TIMEOUT):
            with contextlib.suppress(StreamLost):
                await self.post().wait()
            await self._websocket.aclose(CloseCode.NORMAL_CLOSURE, "Normal Closure")

    async def aclose(self) -> None:
        """Cut the connection as it stands; nothing is said and nothing waited for."""
        await trio.aclose_forcefully(self._stream)


async def open_control_channel(
    nursery: trio.Nursery,
    url: WebSocketUrl,
    credential: Credential,
    ssl_context: ssl.SSLContext | None,
    proxy: Proxy | None = None,
) -> ControlChannel:
    """Dial, register, and return the channel.

    Args:
      nursery: gets trio-websocket's reading task, which is the channel's life: the caller's nursery ends with it. A
        refused upgrade is raised by that task, so it comes out of the nursery in an exception group.
      url: see `build_listen_url`.
      credential: goes into a header.
      ssl_context: for ``wss``; None is the system's store.
      proxy: to dial through.

    Raises: as `open_websocket`.
    """
    stream = AnsweredStream(await open_transport(url, ssl_context, proxy))
    try:
        websocket = await trio_websocket.wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # its annotation is narrower than what it needs
            url.host_header,
            url.resource,
            extra_headers=[(AUTHORIZATION_HEADER.encode(), credential.text.encode())],
            message_queue_size=_QUEUED_MESSAGES,
            max_message_size=MAX_CONTROL_MESSAGE_BYTES,
            receive_buffer_size=RECEIVE_BYTES,
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return ControlChannel(websocket, stream)


def _ended(error: trio_websocket.ConnectionClosed) -> StreamLost:
    reason = error.reason
    if reason is None or reason.code == _ABNORMAL_CLOSURE:
        return StreamLost("the control channel ended without a Close")
    return StreamClosed(reason.code, reason.reason or "")
