"""A relay that does what its test says: it hands out each request that comes in, and the test answers by hand.

It knows no entities and checks no tokens. What it is for are the things a real relay never does on demand: answering
404 ten times, falling silent, resetting the connection between head and 101, sending garbage.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from ..errors import RemoteProtocolError
from ..net.tasks import alone
from ..net.websocket import WebSocketLeg
from ..vocab import Action
from ..wire.address import build_rendezvous, strip_query
from ..wire.connection_string import format_connection_string
from ..wire.frames import Binary, Close, Text
from ..wire.handshake import UpgradeRequest, build_101, check_upgrade
from ..wire.http1 import RequestHead, RequestReader, build_response
from ..wire.messages import (
    Accept,
    RemoteEndpoint,
    Request,
    Response,
    encode_accept,
    encode_request,
    parse_from_listener,
)

__all__ = ["FakeChannel", "FakeRelay", "FakeRequest", "FakeResponse", "open_fake_relay", "receive_response"]

KEY: Final = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
"""Any key will do; nothing is checked with it."""

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: closing sends RST


@dataclass
class FakeRequest:
    """One upgrade request that waits for its answer. Whoever took it owns the connection.

    Attributes:
      head: as it came.
      target: its request target.
      upgrade: key and offered sub-protocols.
    """

    stream: trio.abc.Stream
    head: RequestHead
    upgrade: UpgradeRequest
    early: bytes = field(repr=False)

    @property
    def target(self) -> str:
        """The request target."""
        return self.head.target

    @property
    def action(self) -> str:
        """Value of ``sb-hc-action``, or ``""``."""
        return self.parameter("sb-hc-action")

    def parameter(self, name: str) -> str:
        """Return the raw value of a query parameter, or ``""``."""
        query = self.target.partition("?")[2]
        return next((piece.partition("=")[2] for piece in query.split("&") if piece.startswith(name + "=")), "")

    async def accept(self, *, protocol: str | None = None, behind: bytes = b"") -> WebSocketLeg:
        """Answer 101.

        Args:
          protocol: the sub-protocol to choose.
          behind: bytes sent in the same piece as the 101.
        """
        await self.stream.send_all(build_101(self.upgrade.key, protocol=protocol) + behind)
        return WebSocketLeg(self.stream, role="server", early=self.early)

    async def refuse(self, status: int, reason: str = "") -> None:
        """Answer with another status and close."""
        await self.answer_raw(build_response(status, reason, [("Content-Length", "0"), ("Connection", "close")]))
        await self.stream.aclose()

    async def answer_raw(self, data: bytes) -> None:
        """Send bytes that need not be an answer. A client that hangs up meanwhile is no error."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def reset(self) -> None:
        """Cut the connection with a TCP reset."""
        stream = self.stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        await stream.aclose()

    async def aclose(self) -> None:
        """Close the connection without an answer."""
        await trio.aclose_forcefully(self.stream)


@dataclass(frozen=True)
class FakeResponse:
    """What a listener answered.

    Attributes:
      head: the ``response`` message, as our relay reads it.
      body: of the binary message behind it; None if the head promises none.
    """

    head: Response
    body: bytes | None


async def receive_response(leg: WebSocketLeg) -> FakeResponse:
    """Read a ``response`` and its body from a rendezvous, whose body may be of any length.

    Raises:
      EOFError: the listener closed, or the connection was lost, before the response was complete.
    """
    try:
        event = await leg.receive()
        if isinstance(event, Close):
            raise EOFError(f"closed with {event.code} instead of a response")
        assert isinstance(event, Text), event
        head = parse_from_listener(event.data)
        assert isinstance(head, Response), event.data
        body = bytearray()
        is_over = not head.body
        while not is_over:
            piece = await leg.receive_piece()
            if isinstance(piece, Close):
                raise EOFError(f"closed with {piece.code} inside a body")
            assert not piece.is_text
            body += piece.data
            is_over = piece.fin
    except trio.BrokenResourceError as error:
        raise EOFError(str(error)) from error
    return FakeResponse(head, bytes(body) if head.body else None)


class FakeChannel:
    """The relay's end of a control channel, for tests that play requests. `run` has to be running.

    Attributes:
      leg: to send on, and to cut.
    """

    def __init__(self, leg: WebSocketLeg) -> None:
        self.leg = leg
        self._responses: dict[str, FakeResponse] = {}
        self._awaited: dict[str, trio.Event] = {}
        self._is_over = False

    async def run(self) -> None:
        """Read until the listener's Close, which is answered, or the loss of the channel."""
        try:
            while not isinstance(event := await self.leg.receive(), Close):
                head = parse_from_listener(event.data) if isinstance(event, Text) else None
                if isinstance(head, Response):
                    await self._receive_body(head)
                else:
                    assert not isinstance(event, Binary), "a binary message that no response announced"
            await self.leg.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.leg.aclose()
        finally:
            self._is_over = True
            for awaited in self._awaited.values():
                awaited.set()

    async def _receive_body(self, head: Response) -> None:
        body = None
        if head.body:
            event = await self.leg.receive()
            assert isinstance(event, Binary), f"{type(event).__name__} between a response and its body"
            body = event.data
        assert head.requestId not in self._responses, "a second response to one request"
        self._responses[head.requestId] = FakeResponse(head, body)
        if head.requestId in self._awaited:
            self._awaited[head.requestId].set()

    async def ask(self, request: Request, body: bytes | None = None) -> None:
        """Send a request, and its body behind it."""
        messages: list[str | bytes] = [encode_request(request)]
        if body is not None:
            messages.append(body)
        await self.leg.send_messages(messages)

    async def response(self, request: Request) -> FakeResponse:
        """Wait for the response to a request on this channel.

        Raises:
          EOFError: the channel ended before.
        """
        if request.id not in self._responses and not self._is_over:
            event = self._awaited[request.id] = trio.Event()
            try:
                await event.wait()
            finally:
                del self._awaited[request.id]
        if request.id not in self._responses:
            raise EOFError("the control channel has ended")
        return self._responses.pop(request.id)

    @property
    def responses_waiting(self) -> int:
        """Responses that came and that nobody has asked for."""
        return len(self._responses)


class FakeRelay:
    """The relay of one test; see `open_fake_relay`.

    Attributes:
      port: on 127.0.0.1.
      base_url: ``ws://127.0.0.1:PORT``, or ``wss://localhost:PORT`` with TLS.
      handshakes_failed: TLS handshakes that clients broke off, and requests that were none.
      connections: TCP connections accepted so far.
    """

    def __init__(self, port: int, *, is_tls: bool) -> None:
        self.port = port
        self.is_tls = is_tls
        self.base_url = f"wss://localhost:{port}" if is_tls else f"ws://127.0.0.1:{port}"
        self.handshakes_failed = 0
        self.connections = 0
        self._sockets: list[trio.SocketStream] = []
        self._requests_in, self._requests_out = trio.open_memory_channel[FakeRequest](1000)

    def connection_string(self, path: str | None = "orders") -> str:
        """Return one that leads here."""
        host = "localhost" if self.is_tls else "127.0.0.1"
        return format_connection_string(
            host, "RootManageSharedAccessKey", KEY, port=self.port, entity_path=path, is_emulator=not self.is_tls
        )

    async def next_request(self, action: str | None = None) -> FakeRequest:
        """Wait for the next request.

        Args:
          action: what its ``sb-hc-action`` has to be.
        """
        request = await self._requests_out.receive()
        assert action is None or request.action == action, f"{action} expected, {request.target} came"
        return request

    def invite(
        self,
        target: str = "orders",
        *,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        base_url: str | None = None,
        rendezvous: str | None = None,
    ) -> str:
        """Return an ``accept`` message whose address leads here.

        Args:
          target: entity, suffix and query as a sender has them behind ``/$hc/``.
          headers: the sender's, beside those of every handshake.
          id: tracking id; a fresh one without it.
          base_url: instead of this relay's own.
          rendezvous: the secret; a fresh one without it.
        """
        path, _, query = target.partition("?")
        tracking_id = id or f"{uuid.uuid4()}_G0"
        connect_headers = {
            "Host": "127.0.0.1",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            **(headers or {}),
        }
        address = build_rendezvous(
            base_url or self.base_url,
            path,
            strip_query(query),
            Action.ACCEPT,
            tracking_id,
            rendezvous or uuid.uuid4().hex,
        )
        return encode_accept(Accept(address, tracking_id, connect_headers, RemoteEndpoint("203.0.113.7", 51234)))

    def request(
        self,
        method: str = "GET",
        target: str = "/orders",
        *,
        headers: Mapping[str, str] | None = None,
        has_body: bool = False,
        id: str | None = None,
        base_url: str | None = None,
    ) -> Request:
        """Return a full ``request`` message whose address leads here; `FakeChannel.ask` sends it.

        Args:
          method: as a sender wrote it.
          target: origin form, as a listener sees it.
          headers: the sender's, beside ``Host`` and ``Via``.
          has_body: a body comes behind it.
          id: tracking id; a fresh one without it.
          base_url: instead of this relay's own, for the address.
        """
        tracking_id = id or f"{uuid.uuid4()}_G0"
        address = build_rendezvous(
            base_url or self.base_url, "orders", "", Action.REQUEST, tracking_id, uuid.uuid4().hex
        )
        return Request(
            address=address,
            id=tracking_id,
            requestTarget=target,
            method=method,
            remoteEndpoint=RemoteEndpoint("203.0.113.7", 51234),
            requestHeaders={"Host": "127.0.0.1", "Via": "1.1 127.0.0.1", **(headers or {})},
            body=has_body,
        )

    def address_only(self, request: Request) -> Request:
        """Return the form of a request that says no more than where to get it."""
        return Request(address=request.address, id=request.id)

    async def hand_over(self, request: Request) -> WebSocketLeg:
        """Wait for a listener that comes for a request, and send it; the body is for the caller to send."""
        leg = await (await self.next_request("request")).accept()
        await leg.send_text(encode_request(request))
        return leg

    async def _accept_all(
        self, listener: trio.SocketListener, ssl_context: ssl.SSLContext | None, nursery: trio.Nursery
    ) -> None:
        while True:
            stream = await listener.accept()
            self._sockets.append(stream)
            nursery.start_soon(self._serve, stream, ssl_context)

    def _cut_all(self) -> None:
        for stream in self._sockets:
            stream.socket.close()

    async def _serve(self, stream: trio.SocketStream, ssl_context: ssl.SSLContext | None) -> None:
        self.connections += 1
        transport: trio.abc.Stream = stream
        try:
            if ssl_context is not None:
                transport = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
            request = await self._read_request(transport)
        except (trio.BrokenResourceError, RemoteProtocolError):
            self.handshakes_failed += 1
            request = None
        except BaseException:
            await trio.aclose_forcefully(transport)
            raise
        if request is None:
            await trio.aclose_forcefully(transport)
        else:
            self._requests_in.send_nowait(request)

    async def _read_request(self, stream: trio.abc.Stream) -> FakeRequest | None:
        reader = RequestReader()
        while not isinstance(head := reader.next_event(), RequestHead):
            data = await stream.receive_some()
            if not data:
                return None
            reader.receive_data(data)
        return FakeRequest(stream, head, check_upgrade(head), reader.trailing)


@asynccontextmanager
async def open_fake_relay(*, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[FakeRelay]:
    """Open a scripted relay on 127.0.0.1, at a port of its own.

    Args:
      ssl_context: a server's, to speak TLS; its certificate has to be good for ``localhost``.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    relay = FakeRelay(listeners[0].socket.getsockname()[1], is_tls=ssl_context is not None)
    with alone():
        async with listeners[0] as listener, trio.open_nursery() as nursery:
            nursery.start_soon(relay._accept_all, listener, ssl_context, nursery)
            try:
                yield relay
            finally:
                nursery.cancel_scope.cancel()
                relay._cut_all()
