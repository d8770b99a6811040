"""The HTTP port for those who watch: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for whoever restarts or
routes. It is small on purpose: GET and HEAD, a few clients, and nobody is waited for long.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import trio

from ...errors import ConfigError, RemoteProtocolError
from ...net.tasks import alone
from ...wire.http1 import RequestHead, RequestReader, build_response
from ..config.settings import ListenAt
from .unix import listening_unix

__all__ = ["Page", "PageSource", "StatusPortError", "serve_pages"]

_log = logging.getLogger("relaycore.edge.control")

MAX_CLIENTS: Final = 32
"""Connections at one time; further ones are closed."""

_REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a request to come in whole."""

_IDLE_TIMEOUT: Final = 75.0
"""Seconds that a connection may wait for another request; Prometheus asks every 15 to 60."""

_SEND_TIMEOUT: Final = 10.0
_READ_BYTES: Final = 65_536
_MAX_HEAD_BYTES: Final = 16_384

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class StatusPortError(ConfigError):
    """The address for metrics and health cannot be bound."""

    exit_code = 9


@dataclass(frozen=True, slots=True)
class Page:
    """What one address answers."""

    body: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


PageSource: TypeAlias = Callable[[], Page]
"""Makes a page when it is asked for. It does not wait."""


async def serve_pages(
    listen: ListenAt,
    pages: Mapping[str, PageSource],
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Started, with the addresses, once it listens.

    Args:
      listen: TCP or a Unix socket.
      pages: by path.

    Raises:
      ConfigError: it cannot listen there.
    """
    server = _Server(pages)
    with ExitStack() as files:
        listeners, addresses = await _open(listen, files)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, server.serve, listeners, handler_nursery=nursery))
            task_status.started(addresses)


async def _open(listen: ListenAt, files: ExitStack) -> tuple[list[trio.SocketListener], list[str]]:
    """The listening sockets and their addresses; what they leave on disk goes with `files`."""
    if listen.kind == "unix":
        listening = files.enter_context(
            listening_unix(Path(listen.path), listen.mode, owner=listen.owner, group=listen.group)
        )
        return [trio.SocketListener(trio.socket.from_stdlib_socket(listening))], [str(listen)]
    try:
        listeners = await trio.open_tcp_listeners(listen.port, host=listen.host)
    except OSError as error:
        raise StatusPortError(_explain(listen, error), key="metrics.listen") from error
    names = [listener.socket.getsockname() for listener in listeners]
    return listeners, [str(ListenAt("tcp", name[0], name[1])) for name in names]


def _explain(listen: ListenAt, error: OSError) -> str:
    if isinstance(error, PermissionError):
        advice = "ports below 1024 need a privilege; choose a higher one"
    elif error.errno == errno.EADDRINUSE:
        advice = "another program listens there; choose another port"
    else:
        advice = "choose an address of this machine"
    return f"metrics and health cannot listen on {listen}: {error.strerror or error}; {advice}"


class _Server:
    """Everything but the socket."""

    def __init__(self, pages: Mapping[str, PageSource]) -> None:
        self._pages = pages
        self._clients = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """One client, to its end. Raises nothing but cancellation."""
        self._clients += 1
        try:
            async with stream:
                if self._clients <= MAX_CLIENTS:
                    with suppress(trio.BrokenResourceError, trio.TooSlowError), alone():
                        await self._converse(stream)
        finally:
            self._clients -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        reader = RequestReader(max_head_bytes=_MAX_HEAD_BYTES)
        while True:
            try:
                head = await _next_request(stream, reader)
            except RemoteProtocolError as error:
                page = Page(f"{error}\n", error.http_status)
                await _send(stream, build_response(*_head_of(page, keeps=False), page.body.encode()))
                return
            if head is None:
                return
            keeps = head.keep_alive and not head.has_body and not head.is_upgrade  # bodies are not read
            page, extra = self._page(head)
            body = b"" if head.method == "HEAD" else page.body.encode()
            status, reason, headers = _head_of(page, keeps=keeps)
            await _send(stream, build_response(status, reason, [*headers, *extra], body))
            if not keeps:
                return

    def _page(self, head: RequestHead) -> tuple[Page, list[tuple[str, str]]]:
        path = head.target.partition("?")[0]
        source = self._pages.get(path)
        if source is None:
            return Page(f"There is nothing here. There is: {' '.join(self._pages)}\n", 404), []
        if head.method not in ("GET", "HEAD"):
            return Page("GET and HEAD are understood here.\n", 405), [("Allow", "GET, HEAD")]
        try:
            return source(), []
        except Exception as error:
            _log.exception("! %s failed", path)
            return Page(f"internal error: {type(error).__name__}\n", 500), []


async def _next_request(stream: trio.SocketStream, reader: RequestReader) -> RequestHead | None:
    """Return the next head; None when the client is done, or too slow.

    Raises:
      RemoteProtocolError: what came is no request.
    """
    deadline: float | None = None
    while True:
        event = reader.next_event()
        if isinstance(event, RequestHead):
            return event
        if event is not None:
            continue  # the end of the request before
        if deadline is None:
            deadline = trio.current_time() + (_REQUEST_TIMEOUT if reader.has_begun else _IDLE_TIMEOUT)
        with trio.move_on_at(deadline) as patience:
            data = await stream.receive_some(_READ_BYTES)
        if patience.cancelled_caught or not data:
            return None
        if not reader.has_begun:
            deadline = trio.current_time() + _REQUEST_TIMEOUT
        reader.receive_data(data)


def _head_of(page: Page, *, keeps: bool) -> tuple[int, str, list[tuple[str, str]]]:
    headers = [
        ("Content-Type", page.content_type),
        ("Content-Length", str(len(page.body.encode()))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if not keeps:
        headers.append(("Connection", "close"))
    return page.status, _REASONS.get(page.status, "Refused"), headers


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    with trio.fail_after(_SEND_TIMEOUT):
        await stream.send_all(data)
