"""A listener's response becomes the answer on a sender's HTTP/1.1 connection."""

from __future__ import annotations

from typing import Final

from ..wire.handshake import response_headers
from ..wire.http1 import LAST_CHUNK, RequestHead, build_response, encode_chunk
from ..wire.messages import Response
from .http_peer import HttpPeer
from .state import Gateway

__all__ = ["AnswerWriter"]

_BODILESS: Final = frozenset({204, 304})
"""Answers that never have a body (RFC 9110 15.3.5, 15.4.5); a 205 may have one on the wire, an empty one."""

_SENDER_TOO_SLOW: Final = "the sender takes nothing of its answer"


class AnswerWriter:
    """Writes one answer: whole, or its head and then piece by piece.

    Attributes:
      status: of the answer, once it has begun.
      body_bytes: what has been sent of its body.
      keeps_alive: whether the answer says, or leaves open, that another request may follow.

    Each sending method returns None, or why the sender has to be cut: it took nothing for ``timeouts.http_body``.
    """

    def __init__(self, gateway: Gateway, sender: HttpPeer, head: RequestHead, via_host: str) -> None:
        self._gateway = gateway
        self._sender = sender
        self._head = head
        self._via_host = via_host
        self._is_chunked = False
        self.status = 0
        self.body_bytes = 0
        self.keeps_alive = False

    def may_have_body(self, response: Response) -> bool:
        """Whether a body of this response reaches the sender; else it is dropped (9.7)."""
        return response.body and self._head.method != "HEAD" and response.statusCode not in _BODILESS

    async def send_whole(self, response: Response, body: bytes | None) -> str | None:
        """Send an answer whose body is in hand, with its length."""
        lines = self._lines(response)
        may_have_body = self.may_have_body(response)
        # To HEAD, no body in hand says nothing about the length of what a GET would bring.
        if response.statusCode not in _BODILESS and (body or self._head.method != "HEAD"):
            lines.append(("Content-Length", str(len(body or b""))))
        # What of the request has not been read yet will not be, so the connection cannot go on.
        self.keeps_alive = self._head.keep_alive and self._sender.is_complete and not self._gateway.is_stopping
        if not self.keeps_alive:
            lines.append(("Connection", "close"))
        data = (body or b"") if may_have_body else b""
        return await self._send(build_response(response.statusCode, response.statusDescription, lines, data), len(data))

    async def begin(self, response: Response) -> str | None:
        """Send the head of an answer whose body comes later, in chunks or until the connection closes."""
        lines = self._lines(response)
        self._is_chunked = self._head.http_version == "1.1"
        # The request may still be coming; whether it was read to its end is seen when the answer is complete.
        self.keeps_alive = self._head.keep_alive and not self._gateway.is_stopping
        if self._is_chunked:
            lines.append(("Transfer-Encoding", "chunked"))
        if not self.keeps_alive:
            lines.append(("Connection", "close"))
        return await self._send(build_response(response.statusCode, response.statusDescription, lines), 0)

    async def send_piece(self, data: bytes, *, is_last: bool) -> str | None:
        """Send more of the body; empty data only at its end."""
        if not self._is_chunked:
            return await self._send(data, len(data)) if data else None
        encoded = encode_chunk(data) if data else b""
        return await self._send(encoded + LAST_CHUNK if is_last else encoded, len(data))

    def _lines(self, response: Response) -> list[tuple[str, str]]:
        self.status = response.statusCode
        lines = response_headers(response.responseHeaders, via_host=self._via_host)
        is_typed = any(name.lower() == "content-type" for name, _ in lines)
        if response.body and response.statusCode not in _BODILESS and not is_typed:
            # A Java client fails on a body without a type (9.8). What HEAD gets is what GET would get.
            lines.append(("Content-Type", "application/octet-stream"))
        return lines

    async def _send(self, data: bytes, body_bytes: int) -> str | None:
        self._sender.peer.is_answered = True
        if not await self._sender.send(data, self._gateway.config.timeouts.http_body):
            return _SENDER_TOO_SLOW
        self.body_bytes += body_bytes
        return None
