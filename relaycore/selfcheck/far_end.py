"""The far end: what the client talks to, directly as a WebSocket server, or behind the relay as its listener.

One thread. What may wait for others waits in a selector; a bulk stream and a lone ping-pong, which must be fast and
have the machine to themselves, are served in loops of their own.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from .._native import encode_frame
from ..errors import RelayError
from ..wire.frames import OPCODE_PONG, Close, MessageReader, Ping, Text
from ..wire.messages import Accept, parse_from_relay
from .link import SOCKET_TIMEOUT, Route, answer_upgrade, connect, dial, head_end, is_101, receive_exactly, request_head
from .roles import Orders, say
from .script import BLOB_BYTES, KEY, ORDER_BYTES, PRELUDE_MESSAGES, Order, Side, read_order

__all__ = ["main"]

_CLIENT: Final = Side(masked=True)
_SERVER: Final = Side(masked=False)


class _Session:
    """One session, from its handshake on.

    Args:
      link: its socket.
      dialled: whether we dialled it (a rendezvous) or the client did.
    """

    def __init__(self, link: socket.socket, *, dialled: bool) -> None:
        self.link = link
        self._dialled = dialled
        # Through the relay, we are a WebSocket client like the one at the other end: we mask, and get unmasked.
        self._ours, self._theirs = (_CLIENT, _SERVER) if dialled else (_SERVER, _CLIENT)
        self._buffer = b""
        self._step: Callable[[], bool] = self._handshake

    def on_readable(self) -> bool:
        """Go on with what has come. Returns: False when the session is over."""
        chunk = self.link.recv(65_536)
        if not chunk:
            return False
        self._buffer += chunk
        return self._step()

    def _handshake(self) -> bool:
        end = head_end(self._buffer)
        if end:
            head, self._buffer = self._buffer[:end], self._buffer[end:]
            if self._dialled:
                is_101(head)
            else:
                self.link.sendall(answer_upgrade(head))
            self._step = self._begin
            return self._begin()
        return True

    def _begin(self) -> bool:
        if self._buffer == self._theirs.close:
            return self._goodbye()
        length = ORDER_BYTES[self._theirs.masked]
        if len(self._buffer) < length:
            return True
        order = read_order(self._buffer[:length], masked=self._theirs.masked)
        self._buffer = self._buffer[length:]
        match order:
            case Order("sink", size):
                return self._sink(size)
            case Order("ping", size):
                return self._ping(size)
        raise RelayError("the first message of a session is no order")

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken + receive_exactly(self.link, size - len(taken))

    def _sink(self, size: int) -> bool:
        one, done = self._theirs.message(size), self._theirs.done
        prelude = one * PRELUDE_MESSAGES
        if self._take(len(prelude)) != prelude:
            raise RelayError("a message arrived changed")
        self.link.sendall(self._ours.ready)
        area = bytearray(BLOB_BYTES)
        receive, counted, tail = self.link.recv_into, 0, b""
        while tail != done:
            received = receive(area)
            if not received:
                raise RelayError("a stream ended before its end")
            counted += received
            tail = (tail + area[max(0, received - len(done)) : received])[-len(done) :]
        if counted % len(one) != len(done) % len(one):
            raise RelayError("a stream's bytes are not whole messages")
        self.link.sendall(self._ours.count(counted // len(one)))
        return self._finish()

    def _ping(self, size: int) -> bool:
        message, echo, close = self._theirs.message(size), self._ours.message(size), self._theirs.close
        receive, send, length = self.link.recv, self.link.send, len(message)
        got = self._take(length)
        while True:
            if got == message:
                send(echo)
            elif got == close:
                return self._goodbye()
            elif not got or got + receive_exactly(self.link, length - len(got)) != message:
                raise RelayError("a message arrived changed")
            else:
                send(echo)
            got = receive(length)

    def _finish(self) -> bool:
        if self._take(len(self._theirs.close)) != self._theirs.close:
            raise RelayError("a session ended without a Close")
        return self._goodbye()

    def _goodbye(self) -> bool:
        self.link.sendall(self._ours.close)
        return False


class FarEnd:
    """Serves sessions on a port of its own and, once told to listen, those that a relay offers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self._orders = Orders({"listen": self._listen})
        self._reader = MessageReader(masked=False, max_message_bytes=65_536)
        self._is_over = False

    def run(self) -> None:
        """Serve until standard input ends.

        Raises:
          RelayError: the relay or the client broke off, or sent something else than was agreed.
        """
        self._watch(self._server, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._read_orders)
        say({"event": "ready", "port": self._server.getsockname()[1]})
        while not self._is_over:
            for key, _ in self._selector.select():
                key.data()

    def _watch(self, link: socket.socket, on_readable: Callable[[], object]) -> None:
        self._selector.register(link, selectors.EVENT_READ, on_readable)

    def _read_orders(self) -> None:
        self._is_over = not self._orders.read()

    def _accept(self) -> None:
        link, _ = self._server.accept()
        link.settimeout(SOCKET_TIMEOUT)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._serve(link, dialled=False)

    def _serve(self, link: socket.socket, *, dialled: bool) -> None:
        session = _Session(link, dialled=dialled)

        def go_on() -> None:
            if not session.on_readable():
                self._selector.unregister(link)
                link.close()

        self._watch(link, go_on)

    def _listen(self, order: dict[str, Any]) -> dict[str, Any]:
        channel = dial(Route.of(order["route"]))
        self._watch(channel, lambda: self._heed(channel))
        return {"event": "listening"}

    def _heed(self, channel: socket.socket) -> None:
        """Take what the relay says on the control channel."""
        data = channel.recv(65_536)
        if not data:
            raise RelayError("the relay ended the control channel")
        self._reader.receive_data(data)
        while (event := self._reader.next_event()) is not None:
            match event:
                case Text(text):
                    invitation = parse_from_relay(text)
                    if not isinstance(invitation, Accept):
                        raise RelayError("the relay sent something else than an accept message")
                    self._meet(invitation.address)
                case Ping(payload):
                    channel.sendall(encode_frame(OPCODE_PONG, payload, mask=KEY))
                case Close():
                    raise RelayError("the relay closed the control channel")

    def _meet(self, address: str) -> None:
        """Dial a rendezvous. The answer comes when it comes: other sessions are being opened at the same time."""
        url = urlsplit(address)
        assert url.hostname is not None
        assert url.port is not None
        route = Route(url.hostname, url.port, f"{url.path}?{url.query}")
        link = connect(route)
        link.sendall(request_head(route))
        self._serve(link, dialled=True)


def main() -> None:
    """Serve until standard input ends."""
    FarEnd().run()
