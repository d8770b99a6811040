"""Dialling: a TCP connection, TLS over it, a WebSocket handshake on top.

What goes wrong on the way comes out as `ConnectionLost` (network, TLS), `Refused` (the far side's HTTP answer) or
`RemoteProtocolError` (an answer that is none); no message repeats a URL, whose query may hold a rendezvous secret.
Deadlines are the caller's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ..errors import ConfigError, ConnectionLost, RemoteProtocolError
from ..wire.handshake import check_101, new_key
from ..wire.http1 import Headers, ResponseHead, ResponseReader, build_request
from .proxy import Proxy
from .proxy_dial import open_tcp
from .websocket import DEFAULT_MAX_MESSAGE_BYTES, RECEIVE_BYTES, WebSocketLeg

__all__ = [
    "OpenedWebSocket",
    "WebSocketUrl",
    "client_ssl_context",
    "open_transport",
    "open_websocket",
    "parse_ws_url",
    "secure",
]

_URL = re.compile(
    r"(?P<scheme>wss?)://(?P<authority>(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._~\-]+))(?::(?P<port>\d{1,5}))?)"
    r"(?P<resource>/[\x21\x22\x24-\x7e]*)?",
    re.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class WebSocketUrl:
    """Where to dial and what to ask for there.

    Attributes:
      is_tls: True for ``wss``.
      host: to dial and to verify; an IPv6 address without its brackets.
      port: the URL's or its scheme's own.
      host_header: as it goes into ``Host``: the URL's authority.
      resource: path and query, as they go into the request line.
    """

    is_tls: bool
    host: str
    port: int
    host_header: str
    resource: str = field(repr=False)


def parse_ws_url(url: str) -> WebSocketUrl:
    """Split a ``ws`` or ``wss`` URL.

    Raises:
      RemoteProtocolError: it is none, or holds blanks, control characters or a fragment.
    """
    match = _URL.fullmatch(url)
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        raise RemoteProtocolError("not a WebSocket URL", section="RFC 6455 3")
    scheme = match["scheme"].lower()
    return WebSocketUrl(
        is_tls=scheme == "wss",
        host=match["ipv6"] or match["host"],
        port=int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme],
        host_header=match["authority"],
        resource=match["resource"] or "/",
    )


def client_ssl_context(cafile: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Return a context that verifies certificate and host name, takes TLS 1.2 and later, and asks for HTTP/1.1.

    Args:
      cafile: PEM file of the only authorities to trust; without it the system's store, which is read once.

    Raises:
      ConfigError: the file is not there or holds no certificate.

    Source: wire contract 4: nothing here works over HTTP/2.
    """
    if cafile is None:
        return _system_context()
    return _new_context(cafile)


@functools.cache
def _system_context() -> ssl.SSLContext:
    # Reading the system's store takes tens of milliseconds, too much for each connection. Nobody outside gets hold of
    # the context, so that nobody can change it for the others.
    return _new_context(None)


def _new_context(cafile: str | os.PathLike[str] | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read certificates from {os.fspath(cafile or '')}: {error}", key="cafile") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def open_transport(
    url: WebSocketUrl, ssl_context: ssl.SSLContext | None, proxy: Proxy | None = None
) -> trio.abc.Stream:
    """Connect to the URL's host, with TLS if its scheme asks for it.

    Args:
      url: where; only host, port and scheme count.
      ssl_context: for ``wss``; None is `client_ssl_context()`.
      proxy: to dial through; TLS goes on to the URL's host.

    Raises:
      ConnectionLost: no address answered, or TLS failed; a refused certificate is an `ssl.SSLCertVerificationError` in
        ``__cause__``.
      ProxyFailed: a `ConnectionLost` too; the proxy did it.
    """
    return await secure(await open_tcp(url.host, url.port, proxy), url, ssl_context)


async def secure(
    tcp: trio.SocketStream, url: WebSocketUrl, ssl_context: ssl.SSLContext | None = None
) -> trio.abc.Stream:
    """Put TLS over a connection if the URL's scheme asks for it. The connection is closed on any error.

    Args:
      url: whose host the certificate has to name.
      ssl_context: None is `client_ssl_context()`.

    Raises:
      ConnectionLost: as `open_transport`.
    """
    if not url.is_tls:
        return tcp
    # https_compatible: the WebSocket Close says where the data ends; TLS need not say it again.
    stream = trio.SSLStream(tcp, ssl_context or client_ssl_context(), server_hostname=url.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(tcp)
        cause = error.__cause__ or error
        raise ConnectionLost(f"TLS with {url.host_header} failed: {cause}") from cause
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return stream


@dataclass(frozen=True, slots=True)
class OpenedWebSocket:
    """What a handshake left behind: the leg, the sub-protocol that was chosen, the answer's headers."""

    leg: WebSocketLeg
    protocol: str | None
    headers: Headers


async def open_websocket(
    url: WebSocketUrl,
    *,
    ssl_context: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    headers: Iterable[tuple[str, str]] = (),
    protocols: Sequence[str] = (),
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> OpenedWebSocket:
    """Connect and shake hands. Whoever calls owns the leg; on any error nothing stays open.

    Args:
      url: where.
      ssl_context: for ``wss``; None is `client_ssl_context()`.
      proxy: see `open_transport`.
      headers: added to those of the handshake.
      protocols: sub-protocols to offer, the preferred one first.
      max_message_bytes: see `WebSocketLeg`.

    Raises:
      ConnectionLost: see `open_transport`; or the connection ended before an answer.
      Refused: the answer was another status than 101; the subclass is the status's.
      RemoteProtocolError: the answer is not HTTP, or its 101 does not fit what was asked.
    """
    stream = await open_transport(url, ssl_context, proxy)
    try:
        key = new_key(os.urandom(16))
        request = [
            ("Host", url.host_header),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", key),
            ("Sec-WebSocket-Version", "13"),
        ]
        if protocols:
            request.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
        reader = ResponseReader()
        # An early refusal may stand in the receive buffer although sending failed.
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(build_request("GET", url.resource, [*request, *headers]))
        head = await _receive_head(stream, reader)
        protocol = check_101(head, key, tuple(protocols))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    leg = WebSocketLeg(stream, role="client", early=reader.trailing, max_message_bytes=max_message_bytes)
    return OpenedWebSocket(leg, protocol, head.headers)


async def _receive_head(stream: trio.abc.Stream, reader: ResponseReader[ResponseHead]) -> ResponseHead:
    while True:
        event = reader.next_event()
        if isinstance(event, ResponseHead):
            return event
        try:
            data = await stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError as error:
            raise ConnectionLost("connection lost during the handshake") from error
        if not data:
            raise ConnectionLost("connection ended during the handshake")
        reader.receive_data(data)
