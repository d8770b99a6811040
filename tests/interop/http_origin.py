"""The origin of the HTTP tests: each request says in a header what it wants for an answer; what was seen of it is kept.

It is served in three ways: by hand over h11 on a port of its own (`serve_direct`), by our library (`our_http_listener`)
and by hyco-https (``node/https_listener.js``, which knows the same orders).
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path

import h11
import trio
from interop.ours import connection_string
from interop.payloads import payload
from interop.peers import Peer, Target, node_command, run_peer

import relaycore

ORDER = "X-Answer"
"""Header that holds the order, as JSON."""

_PIECE_BYTES = 1 << 18


@lru_cache(maxsize=8)
def pattern(size: int) -> bytes:
    """The content of ``size`` bytes that every origin and every sender makes alike."""
    content = payload("binary", size)
    assert isinstance(content, bytes)
    return content


@dataclass(frozen=True)
class Answer:
    """What the origin is to answer.

    Attributes:
      reason: None for the standard one.
      content: a number of bytes of `pattern`; or these bytes; or ``"echo"`` for the request's body, ``"stream"``
        for the same sent back while it comes.
      writes: how it is written: ``(bytes, times)``; what is left then goes with the end of the answer.
      framing: how it ends when it is served directly: ``"sized"``, ``"chunked"`` or ``"close"``.
    """

    status: int = 200
    reason: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    content: int | bytes | str = 0
    writes: tuple[tuple[int, int], ...] = ()
    framing: str = "sized"

    def as_header(self) -> tuple[str, str]:
        """The header that orders this answer; what is as usual is left out."""
        content = {"hex": self.content.hex()} if isinstance(self.content, bytes) else self.content
        order = {**vars(self), "content": content}
        usual = vars(Answer())
        return ORDER, json.dumps({name: value for name, value in order.items() if value != usual[name]})

    @classmethod
    def from_header(cls, value: str | None) -> Answer:
        order = json.loads(value or "{}")
        if isinstance(order.get("content"), dict):
            order["content"] = bytes.fromhex(order["content"]["hex"])
        order["headers"] = tuple((name, value) for name, value in order.get("headers", ()))
        order["writes"] = tuple((size, times) for size, times in order.get("writes", ()))
        return cls(**order)

    def body(self, received: bytes) -> bytes:
        """The whole body, given the request's."""
        if isinstance(self.content, int):
            return pattern(self.content)
        return self.content if isinstance(self.content, bytes) else received

    def pieces(self, body: bytes) -> Iterator[memoryview]:
        """The body in the pieces in which it is written."""
        view = memoryview(body)
        for size, times in self.writes:
            for _ in range(times):
                yield view[:size]
                view = view[size:]
        for start in range(0, len(view), _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]


@dataclass(frozen=True)
class Seen:
    """What an origin saw of a request.

    Attributes:
      headers: lines in order; hyco-https knows names in lower case only.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    bytes: int
    sha256: str


@dataclass
class Origin:
    """Answers as ordered and keeps what it saw, in order of the requests' ends."""

    seen: list[Seen] = field(default_factory=list)

    def note(self, method: str, target: str, headers: object, size: int, digest: str) -> None:
        self.seen.append(Seen(method, target, tuple((name, value) for name, value in headers), size, digest))

    async def wait_seen(self, count: int) -> list[Seen]:
        """What was seen, as `NodeOrigin.wait_seen`; here everything answered is there. Not a checkpoint."""
        assert len(self.seen) >= count
        return self.seen

    # ----------------------------------------------------------------------------------------------------- direct

    async def serve_direct(self, stream: trio.abc.Stream) -> None:
        """Serve one connection by h11, which owes nothing to this project."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
        async with stream:
            try:
                while await self._serve_one(connection, stream):
                    connection.start_next_cycle()
            except trio.BrokenResourceError:
                return

    async def _serve_one(self, connection: h11.Connection, stream: trio.abc.Stream) -> bool:
        async def next_event() -> object:
            while (event := connection.next_event()) is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    await send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                connection.receive_data(await stream.receive_some(_PIECE_BYTES))
            return event

        async def send(*events: object) -> None:
            await stream.send_all(b"".join(connection.send(event) or b"" for event in events))

        head = await next_event()
        if not isinstance(head, h11.Request):
            return False
        headers = [(name.decode(), value.decode("latin-1")) for name, value in head.headers.raw_items()]
        answer = Answer.from_header(dict((name.lower(), value) for name, value in headers).get(ORDER.lower()))
        response = _direct_head(answer, dict((name.lower(), value) for name, value in headers))
        is_stream = answer.content == "stream"
        if is_stream:
            await send(response(0))
        digest, size, received = hashlib.sha256(), 0, []
        while isinstance(event := await next_event(), h11.Data):
            digest.update(event.data)
            size += len(event.data)
            if is_stream:
                await send(event)
            elif answer.content == "echo":
                received.append(bytes(event.data))
        assert isinstance(event, h11.EndOfMessage), event
        self.note(head.method.decode(), head.target.decode(), headers, size, digest.hexdigest())
        if is_stream:
            await send(h11.EndOfMessage())
        else:
            body = answer.body(b"".join(received))
            has_body = head.method != b"HEAD" and answer.status not in (204, 304)
            pieces = [h11.Data(data=bytes(piece)) for piece in answer.pieces(body)] if has_body else []
            await send(response(len(body)), *pieces, h11.EndOfMessage())
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    # ---------------------------------------------------------------------------------------------------- relayed

    async def serve_relayed(self, request: relaycore.HttpRequest) -> relaycore.HttpResponse | None:
        """Handler for `relaycore.serve_http`."""
        answer = Answer.from_header(request.headers.get(ORDER))
        digest, size, received = hashlib.sha256(), 0, []
        is_stream = answer.content == "stream"
        responder = request.respond(answer.status, answer.headers, reason=answer.reason) if is_stream else None
        async for chunk in request:
            digest.update(chunk)
            size += len(chunk)
            if responder is not None:
                await responder.send_all(chunk)
            else:
                received.append(bytes(chunk))
        self.note(request.method, request.target, request.headers, size, digest.hexdigest())
        if responder is not None:
            await responder.aclose()
            return None
        body = answer.body(b"".join(received))
        if not answer.writes and answer.framing == "sized":
            return relaycore.HttpResponse(answer.status, answer.headers, body, answer.reason)
        async with request.respond(answer.status, answer.headers, reason=answer.reason) as responder:
            for piece in answer.pieces(body):
                await responder.send_all(piece)
        return None


def _direct_head(answer: Answer, request: dict[str, str]):
    """Make the function that gives the response head for a body of that many bytes."""

    def response(size: int) -> h11.Response:
        headers = list(answer.headers)
        if answer.framing == "chunked" or (answer.content == "stream" and "content-length" not in request):
            headers.append(("Transfer-Encoding", "chunked"))
        elif answer.framing == "close":
            headers.append(("Connection", "close"))
        elif answer.content == "stream":
            headers.append(("Content-Length", request["content-length"]))
        elif answer.status not in (204, 304):
            headers.append(("Content-Length", str(size)))
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        reason = answer.reason if answer.reason is not None else standard_reason(answer.status)
        return h11.Response(status_code=answer.status, headers=lines, reason=reason.encode("latin-1"))

    return response


def standard_reason(status: int) -> str:
    """The standard reason phrase, empty for a status that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


@asynccontextmanager
async def direct_origin(certificate: Path | None = None) -> AsyncIterator[tuple[Origin, str]]:
    """Run an origin on a port of its own, with TLS if there is a certificate.

    Yields: it and its ``http://127.0.0.1:PORT`` or ``https://localhost:PORT``.
    """
    origin = Origin()
    async with trio.open_nursery() as nursery:
        if certificate is None:
            listeners = await nursery.start(partial(trio.serve_tcp, origin.serve_direct, 0, host="127.0.0.1"))
            address = "http://127.0.0.1"
        else:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
            serve = partial(trio.serve_ssl_over_tcp, origin.serve_direct, 0, context, host="127.0.0.1")
            [listener] = await nursery.start(partial(serve, https_compatible=True))
            listeners = [listener.transport_listener]
            address = "https://localhost"
        yield origin, f"{address}:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel("the test needs the origin no more")


@asynccontextmanager
async def our_http_listener(target: Target, path: str) -> AsyncIterator[Origin]:
    """The origin behind a relay, by our library; it is registered when the block begins."""
    origin = Origin()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(relaycore.serve_http, connection_string(target, path), origin.serve_relayed, cafile=target.ca_file)
        )
        yield origin
        nursery.cancel_scope.cancel("the test needs the listener no more")


@dataclass
class NodeOrigin:
    """The origin on hyco-https, seen through what its driver reports."""

    peer: Peer

    @property
    def seen(self) -> list[Seen]:
        return [
            Seen(
                report["method"],
                report["target"],
                tuple((name, value) for name, value in report["headers"]),
                report["bytes"],
                report["sha256"],
            )
            for report in self.peer.all("request")
        ]

    async def wait_seen(self, count: int) -> list[Seen]:
        """Wait until so many requests were reported, which may be after their answers, and return all of them."""
        await self.peer.wait("request", count)
        return self.seen

    @property
    def chunks(self) -> list[int]:
        """How many chunks each body came in; a body of no bytes comes in none."""
        return [report["chunks"] for report in self.peer.all("request")]


@asynccontextmanager
async def hyco_https_listener(target: Target, path: str) -> AsyncIterator[NodeOrigin]:
    """The origin behind a relay, by hyco-https; it is registered when the block begins."""
    environment = {**target.environment(), "RELAY_URL": target.listen_url(path)}
    async with run_peer("hyco-https listener", node_command("https_listener.js"), environment) as peer:
        await peer.wait("listening")
        yield NodeOrigin(peer)
