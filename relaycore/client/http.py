"""Serving HTTP through a relay: a handler gets requests and returns responses.

`serve_http` is the whole of it for programs; what it builds on, ``open_listener(on_request=...)``, is for adapters that
bring a way of answering of their own.
"""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from ..errors import LocalProtocolError
from ..net.proxy import Proxy
from ..trace import Trace
from ..wire.connection_string import ConnectionString
from ..wire.limits import PING_INTERVAL
from .credentials import TokenProvider
from .http_exchange import DEFAULT_FLUSH_AFTER_S
from .http_request import HttpRequest, RequestHandler
from .http_response import PLAIN_TEXT, HeadersLike, HttpResponder
from .invitation import IncomingConnection, Reject
from .listener import DEFAULT_MAX_CONCURRENT, Listener, open_listener

__all__ = ["HeadersLike", "HttpHandler", "HttpRequest", "HttpResponder", "HttpResponse", "RequestHandler", "serve_http"]

_HTTP_ONLY: Final = Reject(501, "This listener takes HTTP requests only")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What a handler answers.

    Attributes:
      status: 200 to 999.
      headers: see `HttpRequest.respond`.
      body: bytes; or text, sent as UTF-8 with ``Content-Type: text/plain; charset=utf-8`` unless the headers name
        another; or an async iterable of bytes, which is sent as it comes.
      reason: reason phrase; the usual one without it.
    """

    status: int = 200
    headers: HeadersLike = ()
    body: bytes | str | AsyncIterable[bytes] = field(default=b"", repr=False)
    reason: str | None = None


HttpHandler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse | bytes | str | None]]
"""Answers one request: with a response, with the body of a 200, or with None for 204. It may also answer through
`HttpRequest.respond`, and then returns None. If it raises, the sender gets 500, or a cut if a part of the response has
left already, and the log the traceback. It is cancelled when the sender is known to be gone."""


async def serve_http(
    connection_string: str | ConnectionString,
    handler: HttpHandler,
    *,
    path: str | None = None,
    token: str | TokenProvider | None = None,
    cafile: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls: bool = True,
    proxy: str | Proxy | None = None,
    max_concurrent: int = DEFAULT_MAX_CONCURRENT,
    flush_after: float = DEFAULT_FLUSH_AFTER_S,
    keep_alive_s: float = PING_INTERVAL,
    listener_id: str | None = None,
    trace: Trace | None = None,
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Listener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a hybrid connection's HTTP requests, until cancelled or until the listener is closed.

    ::

        async def hello(request: relaycore.HttpRequest) -> str:
            return f"hello {request.suffix or 'world'}"

        await relaycore.serve_http(connection_string, hello)

    Each request has a task of its own. Nothing that a handler does ends the listener. Senders that open a WebSocket are
    refused with 501.

    Cancelling cuts the requests under way. To let them end, close the listener instead: ``listener = await
    nursery.start(relaycore.serve_http, ...)``, then ``await listener.aclose()``, see there.

    Args:
      handler: see `HttpHandler`.
      max_concurrent: requests under way; further ones are answered with 503.
      flush_after: seconds until the beginning of a response that is not complete leaves by itself.
      task_status: gets the listener once it is registered.
      connection_string, path, token, cafile, ssl_context, tls, proxy, keep_alive_s, listener_id, trace, rng, clock: as
        for `open_listener`.

    Raises: as `open_listener` with ``wait_online``.
    """
    async with open_listener(
        connection_string,
        path=path,
        accept=_refuse_websocket,
        on_request=_adapted(handler),
        token=token,
        cafile=cafile,
        ssl_context=ssl_context,
        tls=tls,
        proxy=proxy,
        max_concurrent=max_concurrent,
        flush_after=flush_after,
        keep_alive_s=keep_alive_s,
        listener_id=listener_id,
        trace=trace,
        rng=rng,
        clock=clock,
    ) as listener:
        task_status.started(listener)
        await listener.wait_closed()


def _refuse_websocket(_: IncomingConnection) -> Reject:
    return _HTTP_ONLY


def _adapted(handler: HttpHandler) -> RequestHandler:
    """Make a `RequestHandler` of a function that returns its response."""

    async def serve(request: HttpRequest) -> None:
        with request._exchange.cancelled_when_gone():
            await _send(request, await handler(request))

    return serve


async def _send(request: HttpRequest, answer: HttpResponse | bytes | str | None) -> None:
    if answer is None:
        if not request._exchange.has_response:
            await _send(request, HttpResponse(204))
        return
    response = answer if isinstance(answer, HttpResponse) else HttpResponse(body=answer)
    body, headers = response.body, response.headers
    if isinstance(body, str):
        headers = _with_text_type(headers)
        body = body.encode()
    is_whole = isinstance(body, bytes | bytearray | memoryview)
    if not is_whole and not isinstance(body, AsyncIterable):
        raise LocalProtocolError(f"a response body is bytes, text or an async iterable, not {type(body).__name__}")
    responder = request._exchange.respond(response.status, headers, response.reason, is_streaming=not is_whole)
    async with responder:
        if isinstance(body, AsyncIterable):
            async with aclosing(body) if isinstance(body, AsyncGenerator) else nullcontext():
                async for chunk in body:
                    await responder.send_all(chunk)
        else:
            await responder.send_all(body)


def _with_text_type(headers: HeadersLike) -> list[tuple[str, str | Sequence[str]]]:
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    if not any(name.lower() == "content-type" for name, _ in given):
        given.append(("Content-Type", PLAIN_TEXT))
    return given
