"""The first bytes of every connection: what is asked, and who serves it.

A connection that asks for a WebSocket goes to its room and never comes back. Management requests are answered here
and may follow each other on one connection. Whatever is refused is refused here, in one place: with the reason text
of section 12, logged with its tracking id, and ever more slowly to a client that does not stop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from ipaddress import ip_address

import trio

from ..broker.auth import Grant
from ..broker.model import HybridConnection, Namespace, endpoint_not_found
from ..errors import Refused, Rejected, RemoteProtocolError
from ..net.direct import ReadingScope
from ..net.linger import close_gently
from ..trace import CONNECTION_REFUSED, INTERNAL_ERROR
from ..vocab import Action, RefusalReason, Right
from ..wire.address import connect_address, decode_path, is_hybrid_target, parse_target, split_target
from ..wire.http1 import Headers, RequestHead, build_response
from ..wire.messages import RemoteEndpoint
from . import atom
from .control_channel import serve_listener
from .http_peer import HttpPeer
from .relay_http import serve_request
from .relay_stream import serve_rendezvous, serve_sender
from .state import Gateway, Peer, shutting_down

__all__ = ["FrontDoor", "remote_endpoint"]

_SENDERS_FAULT = frozenset({RefusalReason.HEAD_TOO_LARGE, RefusalReason.BODY_TIMEOUT})
"""Refusals of requests that were let in which their senders have to answer for."""


def remote_endpoint(host: str, port: int) -> RemoteEndpoint:
    """A peer's address and port as a listener is told of it: an IP literal without a zone (7.1)."""
    if ":" not in host:
        return RemoteEndpoint(address=host, port=port)
    address = ip_address(host.split("%", 1)[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return RemoteEndpoint(address=str(mapped or address), port=port)


class _ManagementContext:
    """What the Atom room sees of the server."""

    def __init__(self, gateway: Gateway, namespace: str, head: RequestHead, peer: Peer) -> None:
        self._gateway = gateway
        self._namespace = namespace
        self.store = gateway.store
        self.tracking_id = gateway.tracking_id()
        self.base_url = gateway.public_url(head, peer)

    @property
    def namespace(self) -> Namespace:
        namespace = self.store.snapshot.get_namespace(self._namespace)
        if namespace is None:
            raise endpoint_not_found("")
        return namespace

    def listener_count(self, path: str) -> int:
        return self._gateway.registry.count(self._namespace, path)

    def authorize(
        self, right: Right | None, entity: HybridConnection | None, path: str, headers: Headers, query_token: str | None
    ) -> Grant:
        grant, _ = self._gateway.authorize(self.namespace, entity, path, right, headers, query_token)
        return grant

    def now_unix(self) -> float:
        return self._gateway.now_unix()


class FrontDoor:
    """Serves one connection.

    Args:
      gateway: the server's shared state.
      peer: the connection; its TLS handshake is done.
    """

    def __init__(self, gateway: Gateway, peer: Peer) -> None:
        limits = gateway.config.limits
        self._gateway = gateway
        self._peer = peer
        self._http = HttpPeer(peer, max_head_bytes=limits.head_bytes, max_headers=limits.headers_count)
        self._path: str | None = None
        self._client_id: str | None = None
        self._is_plain = False
        self._is_overdue = False
        self._session: Awaitable[None] | None = None

    async def serve(self) -> Awaitable[None] | None:
        """Serve requests until the connection ends or belongs to somebody else.

        Returns: the session that the connection has become, for the caller to await at once. Everything that was needed
        on the way there can go meanwhile: sessions last long, and there are many.
        """
        timeouts = self._gateway.config.timeouts
        patience = timeouts.head
        try:
            # Most have sent their request by the time they are accepted.
            if not self._http.fill_nowait():
                return None
            while await self._serve_one(patience):
                patience = timeouts.keep_alive
            if self._is_overdue and self._http.reader.has_begun and not self._gateway.is_stopping:
                await self._refuse(
                    Refused(
                        "The request head did not arrive in time", http_status=408, reason=RefusalReason.HEAD_TIMEOUT
                    )
                )
        except trio.BrokenResourceError:
            pass  # the peer left; nobody is there to be told
        return self._session

    async def _serve_one(self, patience: float) -> bool:
        """Serve one request; False when the connection is done with."""
        self._path = self._client_id = None
        self._is_plain = False
        self._http.forget()
        try:
            head = await self._read_head(patience)
            return head is not None and await self._dispatch(head)
        except (Refused, RemoteProtocolError) as refusal:
            return await self._refuse(refusal)
        except trio.BrokenResourceError:
            raise
        except Exception as error:
            await self._fail(error)
        return False

    async def _read_head(self, patience: float) -> RequestHead | None:
        """Wait for a request; None at the end of the stream, and when it takes too long."""
        if (head := self._http.next_head()) is not None:
            return head
        if (waiting := self._http.reading_scope()) is not None:
            try:
                return await self._wait_head(waiting, patience)
            except trio.ClosedResourceError:
                if not waiting.cancel_called:
                    raise
                return None
        with trio.CancelScope() as scope:
            return await self._wait_head(scope, patience)
        return None

    async def _wait_head(self, waiting: trio.CancelScope | ReadingScope, patience: float) -> RequestHead | None:
        reader = self._http.reader
        began = reader.has_begun
        deadline = trio.current_time() + (min(patience, self._gateway.config.timeouts.head) if began else patience)
        self._gateway.begin_idle(waiting, deadline)
        try:
            while not waiting.cancel_called and await self._http.fill():
                if (head := self._http.next_head()) is not None:
                    # One that comes in the very moment in which the waiting ended finds the connection closed.
                    return None if waiting.cancel_called else head
                if not began and reader.has_begun:
                    # Between requests the peer may be idle for long; a head once begun has to come quickly.
                    began = True
                    head_deadline = trio.current_time() + self._gateway.config.timeouts.head
                    self._gateway.begin_idle(waiting, min(deadline, head_deadline))
            return None
        finally:
            self._gateway.end_idle(waiting)
            self._is_overdue = waiting.cancel_called

    async def _dispatch(self, head: RequestHead) -> bool:
        if self._gateway.is_stopping:
            raise shutting_down()
        if not is_hybrid_target(head.target) and not head.is_upgrade:
            self._is_plain = True
            return await self._serve_plain(head)
        # A web page that came through the relay opens WebSockets on its own origin, where no path begins with $hc.
        address = parse_target(head.target) if is_hybrid_target(head.target) else connect_address(head.target)
        self._path, self._client_id = address.path, address.id
        trailing = self._http.reader.trailing
        match address.action:
            case Action.LISTEN:
                await serve_listener(self._gateway, self._peer, head, address, trailing)
            case Action.CONNECT:
                self._session = await serve_sender(self._gateway, self._peer, head, address, trailing)
            case Action.ACCEPT | Action.REQUEST:
                await serve_rendezvous(self._gateway, self._peer, head, address, trailing)
        return False

    # --------------------------------------------------------------------------------------------------- plain requests

    async def _serve_plain(self, head: RequestHead) -> bool:
        namespace = self._gateway.namespace_for(head)
        if not atom.is_management_request(head, namespace):
            self._path = decode_path(split_target(head.target)[0])
            return await serve_request(self._gateway, self._http, head)
        with trio.move_on_after(self._gateway.config.timeouts.keep_alive) as waiting:
            body = await self._read_body(head)
        if waiting.cancelled_caught:
            raise Refused("The request body did not arrive in time", http_status=408, reason=RefusalReason.HEAD_TIMEOUT)
        context = _ManagementContext(self._gateway, namespace.name, head, self._peer)
        response = await atom.handle(
            atom.AtomRequest(
                method=head.method,
                target=head.target,
                headers=head.headers,
                body=body,
                host=head.host or "",
                is_tls=self._peer.is_tls,
            ),
            context,
        )
        if response.refused is not None:
            delay = self._note_refusal(response.refused, context.tracking_id)
            if delay is None:
                await self._gateway.hold_back(self._peer.remote.address)
                return False
            await trio.sleep(delay)
        keep_alive = head.keep_alive and not self._gateway.is_stopping
        headers = [*response.headers, ("Content-Length", str(len(response.body)))]
        if not keep_alive:
            headers.append(("Connection", "close"))
        body = b"" if head.method == "HEAD" else response.body
        # Head and body in one send: two cost a client some 40 ms (delayed acknowledgement).
        answer = build_response(response.status, response.reason, headers, body)
        return await self._http.send(answer, self._gateway.config.timeouts.http_body) and keep_alive

    async def _read_body(self, head: RequestHead) -> bytes:
        limit = self._gateway.config.limits.management_body_bytes
        too_large = Refused(
            f"The request body is larger than {limit} bytes", http_status=413, reason=RefusalReason.BAD_REQUEST
        )
        if (head.content_length or 0) > limit:
            raise too_large
        if not await self._http.send_continue(self._gateway.config.timeouts.http_body):
            raise trio.BrokenResourceError("the peer takes nothing")
        body = bytearray()
        while piece := await self._http.receive():
            body += piece
            if len(body) > limit:
                raise too_large
        return bytes(body)

    # ------------------------------------------------------------------------------------------------------- refusals

    async def _fail(self, error: Exception) -> None:
        """Our own fault: all of it into the log, and the peer gets 500 and the id to ask about."""
        tracking_id = self._gateway.tracking_id(self._client_id)
        self._gateway.trace.emit(
            INTERNAL_ERROR, tracking_id=tracking_id, message=f"{type(error).__name__}: {error}", exc_info=error
        )
        if not self._peer.is_answered and not self._peer.is_detached:
            await self._refuse(
                Refused(
                    "An internal error occurred",
                    http_status=500,
                    reason=RefusalReason.INTERNAL,
                    tracking_id=tracking_id,
                )
            )

    def _note_refusal(self, refused: Refused | RemoteProtocolError, tracking_id: str) -> float | None:
        """Count and log a refusal. Returns: seconds to let the answer wait, None for no answer at all."""
        gateway = self._gateway
        # A rejection is the listener's doing, and so is what becomes of a request that was let in.
        is_blameless = isinstance(refused, Rejected) or (
            self._http.is_let_in and isinstance(refused, Refused) and refused.reason not in _SENDERS_FAULT
        )
        if isinstance(refused, RemoteProtocolError):
            too_large = refused.http_status in (413, 414, 431)
            reason = RefusalReason.HEAD_TOO_LARGE if too_large else RefusalReason.BAD_REQUEST
            refused = Refused(str(refused), http_status=refused.http_status, reason=reason)
        gateway.refusals_by_reason[refused.reason] += 1
        delay = 0.0 if is_blameless else gateway.limiter.note_refusal(self._peer.remote.address, trio.current_time())
        gateway.trace.emit(
            CONNECTION_REFUSED,
            # A client that storms is cut without an answer, and must not fill the log either. What has become of a
            # request that was on its way has a line of its own.
            logging.DEBUG if delay is None or (is_blameless and self._is_plain) else None,
            tracking_id=tracking_id,
            status=refused.http_status,
            reason=refused.reason.value,
            message=refused.message,
            remote=f"{self._peer.remote.address}:{self._peer.remote.port}",
            entity=self._path or "",
            delay=delay,
        )
        return delay

    async def _refuse(self, refused: Refused | RemoteProtocolError) -> bool:
        """Answer with a status and a reason phrase. Returns: whether another request may follow; else it is closed."""
        gateway = self._gateway
        known = refused.tracking_id if isinstance(refused, Refused) else ""
        tracking_id = known or gateway.tracking_id(self._client_id)
        delay = self._note_refusal(refused, tracking_id)
        if delay is None:
            await gateway.hold_back(self._peer.remote.address)
            return False
        await trio.sleep(delay)
        # 7.3: a rejection comes out in the listener's words alone.
        is_own = not isinstance(refused, Rejected)
        head = self._http.head
        tracker = gateway.system_tracker(head, self._path)
        reason = gateway.reason_phrase(str(refused), tracking_id, tracker) if is_own else str(refused)
        # People call plain paths with browsers, which do not show reason phrases.
        body = f"{reason}\n".encode() if self._is_plain else b""
        headers = [("Content-Length", str(len(body)))]
        if body:
            headers.append(("Content-Type", "text/plain; charset=utf-8"))
        if refused.http_status == 426:
            headers += [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
        stays = (
            self._is_plain
            and isinstance(refused, Refused)
            and head is not None
            and head.keep_alive
            and not gateway.is_stopping
            and self._http.drop_nowait()
        )
        if not stays:
            headers.append(("Connection", "close"))
        if head is not None and head.method == "HEAD":
            body = b""
        with trio.move_on_after(gateway.config.timeouts.close):
            await self._peer.stream.send_all(build_response(refused.http_status, reason, headers, body))
            if stays:
                return True
            await close_gently(self._peer.stream)
        return False
