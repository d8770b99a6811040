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

import logging
import math
import re
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import trio

from ..client.http import HttpRequest
from ..client.invitation import Accept, IncomingConnection, Reject
from ..client.listener import Listener
from ..errors import ConfigError
from ..net.errors import StreamLost
from ..net.tasks import alone
from ..wire.address import split_target
from ..wire.http1 import LAST_CHUNK, Headers, ResponseHead, build_request, encode_chunk, is_token, is_value
from ..wire.messages import RemoteEndpoint
from .origin import Origin, OriginConnection, OriginError, OriginLost, OriginPool
from .websocket_forward import WebSocketForwarder

__all__ = ["ForwardSettings", "HttpForwarder", "is_host", "split_path"]

_GATHER_BYTES: Final = 65_536
_GATHER_S: Final = 0.05
"""How much of a body, and for how long, is waited for to learn its length. What came over the control channel is there
already."""

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}
)
"""Fields of one connection (RFC 9110 7.6.1), and the length, which is written anew."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose empty body is announced (RFC 9110 8.6); some servers answer 411 otherwise."""

_SEPARATOR = re.compile(r"/|%2[fF]")
_LEADING_SEPARATORS = re.compile(r"(?:/|%2[fF])*")
_UNSENDABLE = re.compile(r"[^\x21\x22\x24-\x7e]")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+)(?::[0-9]{1,5})?")

_log = logging.getLogger("relaycore.edge")


def is_host(text: str) -> bool:
    """Return whether a text can stand in ``Host``."""
    return _HOST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How requests are passed on.

    Attributes:
      origin: where to.
      sender_scheme: ``https`` or ``http``, how senders reach the relay; for ``X-Forwarded-Proto``.
      keeps_path: leave the hybrid connection's path in front of the paths that the origin sees.
      host: what the origin gets as ``Host``; None passes the sender's.
      adds_forwarded: add ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Prefix``.
      connect_timeout: seconds until the origin has taken a connection.
      answer_timeout: seconds from a request to the head of its answer. The relay gives up long before, and does not
        tell us: this only bounds how long a silent origin keeps connections busy.
    """

    origin: Origin
    sender_scheme: str = "https"
    keeps_path: bool = False
    host: str | None = None
    adds_forwarded: bool = False
    connect_timeout: float = 10.0
    answer_timeout: float = 300.0

    def __post_init__(self) -> None:
        if self.host is not None and not is_host(self.host):
            raise ConfigError("expected HOST[:PORT]", key="host")
        for name in ("connect_timeout", "answer_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError("expected a number of seconds above 0", key=name)


def split_path(target: str, entity: str) -> tuple[str, str, str]:
    """Take the hybrid connection's path off a request target.

    The relay found the entity at the front, so its segments only have to be counted; their slashes may be escaped.

    Returns: the entity's part as it stands there, with a slash in front; the rest, which begins with one or is empty;
    and the query without ``?``.
    """
    path, query = split_target(target)
    begin = _LEADING_SEPARATORS.match(path)
    assert begin is not None
    start = position = begin.end()
    end = position
    for _ in range(entity.count("/") + 1):
        separator = _SEPARATOR.search(path, position)
        if separator is None:
            return "/" + path[start:], "", query
        end, position = separator.span()
    return "/" + path[start:end], "/" + path[position:], query


@dataclass(frozen=True, slots=True)
class Mapped:
    """A request in the words of the origin: its target and what stands in its head, ``Host`` first."""

    target: str
    fields: list[tuple[str, str]]


class Mapper:
    """Rewrites what has to be rewritten, and nothing else."""

    def __init__(self, settings: ForwardSettings, entity: str) -> None:
        self._settings = settings
        self._entity = entity

    def map(self, target: str, headers: Headers, remote: RemoteEndpoint | None, *, dropped: Iterable[str]) -> Mapped:
        """Map a request.

        Args:
          target: path with the hybrid connection in front, and query.
          headers: as the relay gave them.
          remote: where the sender is.
          dropped: lower-case names of further fields that do not pass.
        """
        settings = self._settings
        prefix, rest, query = split_path(target, self._entity)
        path = settings.origin.base_path + (prefix + rest if settings.keeps_path else rest) or "/"
        # What a relay has unescaped in the path (9.4: blanks) cannot stand in a request line.
        mapped = _UNSENDABLE.sub(_escape, f"{path}?{query}" if query else path)
        sender_host = headers.get("Host")
        fields = [("Host", settings.host or sender_host or settings.origin.authority)]
        replaced = {"host", *dropped}
        added: list[tuple[str, str]] = []
        if settings.adds_forwarded:
            added = [("X-Forwarded-Proto", settings.sender_scheme)]
            if sender_host is not None:
                added.append(("X-Forwarded-Host", sender_host))
            if not settings.keeps_path:
                added.append(("X-Forwarded-Prefix", _UNSENDABLE.sub(_escape, prefix)))
            if remote is not None:
                before = headers.joined("X-Forwarded-For")
                added.append(("X-Forwarded-For", f"{before}, {remote.address}" if before else remote.address))
            replaced |= {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"}
        fields += (pair for pair in end_to_end(headers) if pair[0].lower() not in replaced)
        return Mapped(mapped, fields + added)


def end_to_end(headers: Headers) -> Iterator[tuple[str, str]]:
    """Yield the fields that are not of one connection only, and can stand on the wire."""
    nominated = {name.lower() for name in headers.members("Connection")}
    for name, value in headers:
        folded = name.lower()
        if folded in _HOP_BY_HOP or folded in nominated or not is_token(name) or not is_value(value):
            continue
        yield name, value


def _escape(match: re.Match[str]) -> str:
    return quote(match[0], safe="", errors="replace")


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
    """

    def __init__(self, settings: ForwardSettings, entity: str, ssl_context: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._mapper = Mapper(settings, entity.strip("/"))
        self.pool = OriginPool(settings.origin, ssl_context, connect_timeout=settings.connect_timeout)
        self._websockets = WebSocketForwarder(self.pool)

    async def run(self, listener: Listener) -> None:
        """Carry the listener's connections, and keep house; runs until it is cancelled or the listener is closed."""
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
        except StreamLost:
            pass
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
                await _close(connection)
                raise
            else:
                return connection

    async def _receive_head(self, connection: OriginConnection) -> ResponseHead:
        try:
            with trio.fail_after(self._settings.answer_timeout):
                return await connection.receive_head()
        except trio.TooSlowError as error:
            said = f"{self._settings.origin} gave no answer within {self._settings.answer_timeout:g} s"
            raise OriginError(said, http_status=504) from error

    async def _pass_on(self, request: HttpRequest, connection: OriginConnection) -> int:
        head = await self._receive_head(connection)
        async with request.respond(head.status, list(end_to_end(head.headers)), reason=head.reason) as responder:
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
