"""Publishes an existing HTTP server, the *origin*, through a relay: requests and WebSocket connections.

::

    sender ── relay ──▶ HttpRequest ──▶ head, body chunk by chunk ──▶ origin
           ◀── relay ── HttpResponder ◀── head, body piece by piece ──

Both directions of a request move at once and hold one piece each, so the slower side sets the pace, and an origin may
answer before it has read. What the origin says goes to the sender as it is: redirects are not followed, cookies not
kept, nothing is unpacked. What belongs to one connection only (hop-by-hop fields, chunk framing, trailers, interim
answers) ends here.

A request's body is looked at for a moment: one that is complete by then goes with its length, any other one in chunks,
which some simple servers do not take.

A sender that leaves ends its request: the connection to the origin is cut, because that is the only word for it in
HTTP/1.1. An origin that dies before its answer is 502; inside its answer, the sender's connection is cut too.

WebSockets are in `websocket_forward`, connections to the origin in `origin`.

Source: RFC 9110 7.6, RFC 9112 9; wire contract 9, 10.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from ..client.http import HttpRequest
from ..client.invitation import Accept, IncomingConnection, Reject
from ..client.listener import Listener
from ..errors import LocalProtocolError
from ..net.errors import StreamLost
from ..net.tasks import alone
from ..wire.http1 import LAST_CHUNK, ResponseHead, build_request, encode_chunk
from .mapping import ForwardSettings, Mapped, Mapper, end_to_end
from .origin import OriginConnection, OriginError, OriginLost, OriginPool
from .websocket_forward import WebSocketForwarder

__all__ = ["HttpForwarder"]

_GATHER_BYTES: Final = 65_536
_GATHER_S: Final = 0.05
"""How much of a body, and for how long, is waited for to learn its length. What came over the control channel is there
already."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose empty body is announced (RFC 9110 8.6); some servers answer 411 otherwise."""

_log = logging.getLogger("relaycore.edge")


class HttpForwarder:
    """Serves the requests and connections of one listener from one origin.

    ::

        forwarder = HttpForwarder(settings, entity, ssl_context)
        async with open_listener(..., accept=forwarder.accept, on_request=forwarder.serve) as listener:
            await forwarder.run(listener)

    Args:
      settings: how.
      entity: the hybrid connection, as named in our connection string.
      ssl_context: for an ``https`` origin; None is the system's store.
      dial: how the origin is reached, as `OriginPool` has it.
    """

    def __init__(
        self,
        settings: ForwardSettings,
        entity: str,
        ssl_context: ssl.SSLContext | None = None,
        *,
        dial: Callable[[], Awaitable[trio.SocketStream]] | None = None,
    ) -> None:
        self._settings = settings
        self._mapper = Mapper(settings, entity.strip("/"))
        self.pool = OriginPool(settings.origin, ssl_context, dial=dial, connect_timeout=settings.connect_timeout)
        self._websockets = WebSocketForwarder(self.pool)

    async def run(self, listener: Listener) -> None:
        """Carry the listener's connections, and keep house, until the listener is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                await self._websockets.run(listener)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # closes at once
                await self.pool.aclose()
                await self._websockets.aclose()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self.pool.idle_timeout / 2)
            await self.pool.sweep()
            await self._websockets.sweep()

    # WebSockets ------------------------------------------------------------------------------------------------------

    async def accept(self, incoming: IncomingConnection) -> Accept | Reject:
        """Decide about a WebSocket sender as the origin does: an `AcceptHandler`."""
        mapped = self._mapper.map(incoming.target, incoming.headers, incoming.remote_endpoint, dropped=())
        fields = [(name, value) for name, value in mapped.fields if not name.lower().startswith("sec-websocket-")]
        decision = await self._websockets.accept(incoming, mapped.target, fields)
        shown = f"{decision.status} {decision.description}" if isinstance(decision, Reject) else "accepted"
        _log.debug("- WebSocket %s: %s", _path(mapped.target), shown)
        return decision

    # Requests --------------------------------------------------------------------------------------------------------

    async def serve(self, request: HttpRequest) -> None:
        """Serve one request: a `RequestHandler`."""
        started_at = trio.current_time()
        mapped = self._mapper.map(request.target, request.headers, request.remote_endpoint, dropped=("expect",))
        outcome = "the sender left"
        try:
            with alone():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_leave_with_sender, request, nursery.cancel_scope)
                    outcome = str(await self._forward(request, mapped, nursery.cancel_scope))
                    nursery.cancel_scope.cancel()
        except OriginError as error:
            outcome = str(error)
            raise
        finally:
            seconds = trio.current_time() - started_at
            _log.debug("- %s %s: %s (%.3f s)", request.method, _path(mapped.target), outcome, seconds)

    async def _forward(self, request: HttpRequest, mapped: Mapped, everything: trio.CancelScope) -> int:
        """Ask the origin and pass its answer on.

        Returns: the status.

        Raises:
          OriginError: it gave no answer, or the beginning of one only.
          StreamLost: the sender is gone.
        """
        body, is_whole = await _gather(request)
        fields = mapped.fields
        if not is_whole:
            fields = [*fields, ("Transfer-Encoding", "chunked")]
        elif body or request.has_body or request.method in _WITH_CONTENT:
            fields = [*fields, ("Content-Length", str(len(body)))]
        data = build_request(request.method, mapped.target, fields)
        if body:
            data += body if is_whole else encode_chunk(body)
        is_repeatable = request.method in _SAFE_METHODS and is_whole and not body
        connection = await self._ask(request.method, data, is_last=is_whole, is_repeatable=is_repeatable)
        try:
            with alone():
                async with trio.open_nursery() as nursery:
                    if not is_whole:
                        nursery.start_soon(_upload, request, connection, everything)
                    status = await self._pass_on(request, connection)
                    nursery.cancel_scope.cancel()
            return status
        finally:
            with trio.CancelScope(shield=True):  # never blocks
                await self.pool.give_back(connection)

    async def _ask(self, method: str, data: bytes, *, is_last: bool, is_repeatable: bool) -> OriginConnection:
        """Send the head of a request, on an idle connection if there is one.

        If that turns out to be dead, a fresh one gets the request too: when nothing of it can have left, or when it is
        repeatable and nothing of an answer has come.

        Raises:
          OriginError: there is no connection to be had, or the only one died.
        """
        connection = await self.pool.take_idle()
        while True:
            if connection is None:
                connection = await self.pool.open()
            is_reused = connection.is_reused
            try:
                connection.begin(method)
                try:
                    with self._in_time():
                        await connection.send(data, is_last=is_last)
                except OriginLost as lost:
                    if lost.is_unused and is_reused:
                        raise
                    # An early refusal may stand in the receive buffer although sending failed.
                    await self._receive_head(connection)
                if is_reused and is_repeatable:
                    await self._receive_head(connection)
            except OriginLost as lost:
                await connection.aclose()
                if not is_reused or not (lost.is_unused or (is_repeatable and lost.is_unanswered)):
                    raise
                connection = None
            except BaseException:
                await _close(connection)  # noqa: ASYNC102 - shields itself
                raise
            else:
                return connection

    async def _receive_head(self, connection: OriginConnection) -> ResponseHead:
        with self._in_time():
            return await connection.receive_head()

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            with trio.fail_after(self._settings.answer_timeout):
                yield
        except trio.TooSlowError as error:
            said = f"{self._settings.origin} gave no answer within {self._settings.answer_timeout:g} s"
            raise OriginError(said, http_status=504) from error

    async def _pass_on(self, request: HttpRequest, connection: OriginConnection) -> int:
        head = await self._receive_head(connection)
        try:
            responder = request.respond(head.status, list(end_to_end(head.headers)), reason=head.reason)
        except LocalProtocolError as error:  # the origin's doing, not ours
            raise OriginError(f"The answer of {self._settings.origin} cannot be relayed: {error}") from error
        async with responder:
            while data := await connection.receive_body():
                await responder.send_all(data)
        return head.status


async def _close(connection: OriginConnection) -> None:
    with trio.CancelScope(shield=True):  # never blocks
        await connection.aclose()


async def _leave_with_sender(request: HttpRequest, everything: trio.CancelScope) -> None:
    await request.wait_disconnected()
    everything.cancel()


async def _gather(request: HttpRequest) -> tuple[bytes, bool]:
    """Take the beginning of a body.

    Returns: it, and whether that is all.

    Raises:
      StreamLost: the sender is gone.
    """
    if not request.has_body:
        return b"", True
    gathered = bytearray()
    with trio.move_on_after(_GATHER_S):
        while len(gathered) <= _GATHER_BYTES:
            data = await request.receive_some()
            if not data:
                return bytes(gathered), True
            gathered += data
    return bytes(gathered), False


async def _upload(request: HttpRequest, connection: OriginConnection, everything: trio.CancelScope) -> None:
    """Send the rest of a body, in chunks."""
    try:
        while data := await request.receive_some():
            await connection.send(encode_chunk(data), is_last=False)
        await connection.send(LAST_CHUNK, is_last=True)
    except OriginLost:
        return  # the reading side meets the same loss, or an answer that came early
    except StreamLost:
        everything.cancel()  # the sender is gone, and the body must not look complete


def _path(target: str) -> str:
    """A target for the log: queries hold secrets."""
    return target.partition("?")[0]
