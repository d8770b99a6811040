"""The origin: a local HTTP server as a forwarder sees it. Its URL, connections to it, and one exchange after the other.

A connection that has carried a whole exchange is kept for the next one. Such a connection may be dead by then: servers
hang up on idle clients whenever they like. So one is looked at before it is used, and of one that still dies under a
request `OriginLost` says what the origin may have seen.

Source: RFC 9112 9.
"""

from __future__ import annotations

import errno
import os
import re
import select
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from ..client.http_exchange import RequestFailed
from ..errors import ConfigError, ConnectionLost, RemoteProtocolError
from ..net.connect import WebSocketUrl, open_transport, secure
from ..net.linger import cut
from ..vocab import BytesLike
from ..wire.http1 import Body, ResponseEvent, ResponseHead, ResponseReader
from .target.failure import DialFailed

__all__ = [
    "Origin",
    "OriginConnection",
    "OriginError",
    "OriginLost",
    "OriginPool",
    "parse_origin_url",
]

_RECEIVE_BYTES: Final = 65_536

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._~\-]+))(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<path>/[\x21\x22\x24-\x3e\x40-\x7e]*)?",
    re.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class OriginError(RequestFailed):
    """The origin gave no answer that could be passed on. The message names the origin."""


class OriginLost(OriginError):
    """The connection ended where an answer, or more of it, should have come.

    Args:
      message: what happened.
      is_unused: the origin cannot have seen a byte of the request, and nothing of an answer came.
      is_unanswered: nothing of an answer came.
    """

    def __init__(self, message: str, *, is_unused: bool = False, is_unanswered: bool = False) -> None:
        super().__init__(message)
        self.is_unused = is_unused
        self.is_unanswered = is_unanswered


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the server is.

    Attributes:
      is_tls: True for ``https``.
      host: to dial and to verify; an IPv6 address without its brackets.
      port: the URL's or its scheme's own.
      authority: ``host[:port]`` as the URL has it, for ``Host``.
      base_path: what goes in front of each path; ``""`` or ``/app``, without a slash at its end.
    """

    is_tls: bool
    host: str
    port: int
    authority: str
    base_path: str

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.base_path}"


def parse_origin_url(text: str) -> Origin:
    """Read ``http://HOST[:PORT][/PATH]`` or ``https://...``.

    Raises:
      ConfigError: something else, or with a user name, a query or a fragment.
    """
    match = _URL.fullmatch(text)
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        raise ConfigError("expected http://HOST[:PORT][/PATH] or https://..., such as http://127.0.0.1:3000", key="URL")
    scheme = match["scheme"].lower()
    return Origin(
        is_tls=scheme == "https",
        host=match["ipv6"] or match["host"],
        port=int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme],
        authority=match["authority"],
        base_path=(match["path"] or "").rstrip("/"),
    )


class OriginConnection:
    """One connection to the origin. One exchange at a time: `begin`, `send`, `receive_head`, `receive_body`.

    One task may send while another one receives.

    Attributes:
      is_reused: it has carried an exchange before this one.
      idle_since: when it was put back, on the Trio clock.
    """

    def __init__(self, origin: Origin, stream: trio.abc.Stream) -> None:
        self.is_reused = False
        self.idle_since = 0.0
        self._origin = origin
        self._stream = stream
        self.begin("GET")

    def begin(self, method: str) -> None:
        """Begin an exchange."""
        self._reader: ResponseReader[ResponseEvent] = ResponseReader(request_method=method)
        self._head: ResponseHead | None = None
        self._has_sent = False
        self._is_request_sent = False
        self._has_received = False
        self._has_ended = False
        self._is_over = False

    async def send(self, data: BytesLike, *, is_last: bool) -> None:
        """Send a part of the request.

        Args:
          data: the first call has the head.
          is_last: the request is complete with this.

        Raises:
          OriginLost: the origin takes no more. An early answer may still be there to be received.
        """
        try:
            done = self._send_nowait(data)
        except OSError as error:
            raise self._lost(error, is_unused=not self._has_sent) from error
        self._has_sent = True
        try:
            if done < len(data):
                await self._stream.send_all(memoryview(data)[done:])
            else:
                await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError as error:
            raise self._lost(error) from error
        self._is_request_sent = is_last

    def _send_nowait(self, data: BytesLike) -> int:
        """Send what the socket takes at once: if even that fails, nothing has left."""
        if not isinstance(self._stream, trio.SocketStream):
            return 0  # TLS cannot tell
        try:
            return os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def receive_head(self) -> ResponseHead:
        """Wait for the head of the answer; again the same one. Interim answers are passed over.

        Raises:
          OriginLost: the connection ended before it.
          OriginError: what came is not HTTP, or another protocol that nobody asked for.
        """
        if self._head is None:
            found = await self._next_event()
            assert isinstance(found, ResponseHead)
            if found.status == 101:
                raise OriginError(f"{self._origin} switched to another protocol unasked")
            self._head = found
        return self._head

    async def receive_body(self) -> bytes:
        """Wait for the next part of the body; ``b""`` at its end. Raises as `receive_head`."""
        if self._is_over:
            return b""
        found = await self._next_event()
        if isinstance(found, Body):
            return found.data
        self._is_over = True
        return b""

    async def _next_event(self) -> ResponseEvent:
        while True:
            try:
                event = self._reader.next_event()
            except RemoteProtocolError as error:
                if self._has_ended:
                    raise self._lost(error) from error
                raise OriginError(f"{self._origin} does not speak HTTP as it should: {error}") from error
            if event is not None:
                return event
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError as error:
                raise self._lost(error) from error
            if data:
                self._has_received = True
                self._reader.receive_data(data)
            elif not self._has_received:
                raise self._lost(None)
            else:
                self._has_ended = True
                self._reader.receive_eof()

    def _lost(self, cause: BaseException | None, *, is_unused: bool = False) -> OriginLost:
        found = cause if cause is None or isinstance(cause, OSError) else cause.__cause__
        words = found.strerror if isinstance(found, OSError) and found.strerror else "it closed the connection"
        what = "broke its answer off" if self._has_received else "gave no answer"
        return OriginLost(
            f"{self._origin} {what}: {words.lower()}",
            is_unused=is_unused,
            is_unanswered=not self._has_received,
        )

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow on this connection."""
        return self._is_over and self._is_request_sent and self._reader.is_reusable

    @property
    def is_quiet(self) -> bool:
        """Whether an idle connection is as it was left. If it has something to read, that is its end, or rubbish."""
        stream = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        if not isinstance(stream, trio.SocketStream):
            return True
        watched = select.poll()
        watched.register(stream.socket.fileno(), select.POLLIN)
        return not watched.poll(0)

    def detach(self) -> trio.abc.Stream:
        """Give up the stream, for another protocol on it."""
        return self._stream

    async def aclose(self) -> None:
        """Hang up at once. Never blocks; a checkpoint."""
        await cut(self._stream)


class OriginPool:
    """Connections to one origin. Idle ones are kept, a bounded number of them for a bounded time.

    Args:
      origin: where.
      ssl_context: for ``https``; None is the system's store.
      dial: makes the connection below TLS, and raises `DialFailed`; None dials whatever the origin's name leads to.
      connect_timeout: seconds for TCP and TLS together.
      idle_timeout: seconds after which an idle connection is closed. Short, because nothing is won by being the one
        who waits for the server's own limit; 5 seconds is what Node has.
      max_idle: how many are kept.
    """

    def __init__(
        self,
        origin: Origin,
        ssl_context: ssl.SSLContext | None,
        *,
        dial: Callable[[], Awaitable[trio.SocketStream]] | None = None,
        connect_timeout: float = 10.0,
        idle_timeout: float = 4.0,
        max_idle: int = 32,
    ) -> None:
        self.origin = origin
        self.idle_timeout = idle_timeout
        self._ssl_context = ssl_context
        self._dial = dial
        self._connect_timeout = connect_timeout
        self._max_idle = max_idle
        self._idle: list[OriginConnection] = []
        self._is_closed = False

    @property
    def idle(self) -> int:
        """How many connections wait for their next exchange."""
        return len(self._idle)

    async def take_idle(self) -> OriginConnection | None:
        """Take the connection that was used last, if there is one that still looks alive. A checkpoint."""
        while self._idle:
            connection = self._idle.pop()
            if self._is_good(connection):
                return connection
            await connection.aclose()
        return None

    def _is_good(self, connection: OriginConnection) -> bool:
        return trio.current_time() - connection.idle_since < self.idle_timeout and connection.is_quiet

    async def open(self) -> OriginConnection:
        """Open a connection.

        Raises:
          OriginError: 502 with what the address said, 504 if it said nothing in time; what `dial` failed with.
        """
        origin = self.origin
        where = WebSocketUrl(origin.is_tls, origin.host, origin.port, origin.authority, "/")
        try:
            with trio.fail_after(self._connect_timeout):
                if self._dial is None:
                    return OriginConnection(origin, await open_transport(where, self._ssl_context))
                return OriginConnection(origin, await secure(await self._dial(), where, self._ssl_context))
        except DialFailed as error:
            raise OriginError(error.text, http_status=error.status) from error
        except trio.TooSlowError as error:
            said = f"{origin} did not take the connection within {self._connect_timeout:g} s"
            raise OriginError(said, http_status=504) from error
        except ConnectionLost as error:
            raise OriginError(f"Cannot reach {origin}: {_why(error)}") from error

    async def give_back(self, connection: OriginConnection) -> None:
        """Keep a connection for its next exchange if it is good for one, else close it. A checkpoint."""
        if self._is_closed or not connection.is_reusable or len(self._idle) >= self._max_idle:
            await connection.aclose()
            return
        connection.is_reused = True
        connection.idle_since = trio.current_time()
        self._idle.append(connection)
        await trio.lowlevel.checkpoint()

    async def sweep(self) -> None:
        """Close idle connections whose time is over, or that the origin has closed. A checkpoint."""
        good = [connection for connection in self._idle if self._is_good(connection)]
        gone = [connection for connection in self._idle if connection not in good]
        self._idle = good
        for connection in gone:
            await connection.aclose()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close all idle connections, and keep none from now on. A checkpoint."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.aclose()
        await trio.lowlevel.checkpoint()


def _why(error: ConnectionLost) -> str:
    """The system's words where it has some: of a name with several addresses, each different answer once."""
    reasons: dict[str, None] = {}
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            reasons[os.strerror(cause.errno).lower()] = None
    return ", ".join(reasons) or str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    if cause is None:
        return
    found = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause]
    for inner in found:
        yield inner
        yield from _causes(inner)
