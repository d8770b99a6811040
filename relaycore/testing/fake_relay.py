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
from ..wire.handshake import UpgradeRequest, build_101, check_upgrade
from ..wire.http1 import RequestHead, RequestReader, build_response
from ..wire.messages import Accept, RemoteEndpoint, encode_accept

__all__ = ["FakeRelay", "FakeRequest", "open_fake_relay"]

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
