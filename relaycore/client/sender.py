"""The sender: one connection to whoever listens on a hybrid connection."""

from __future__ import annotations

import os
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..errors import ConfigError, ConnectionLost
from ..net.connect import open_websocket, parse_ws_url
from ..net.proxy import Proxy
from ..net.websocket import DEFAULT_MAX_MESSAGE_BYTES
from ..wire.address import build_connect_url, strip_query
from ..wire.connection_string import ConnectionString
from ..wire.http1 import is_token
from ..wire.limits import DEFAULT_OPERATION_TIMEOUT, SENDER_CONNECT_TIMEOUT
from ..wire.status import is_guid
from .connection import Connection, ConnectionInfo
from .credentials import AUTHORIZATION_HEADER, TokenProvider, token_source
from .endpoint import resolve_endpoint

__all__ = ["dial_stream", "open_stream"]

_OWN_HEADERS: Final = frozenset({"host", "connection", "upgrade", "content-length", "transfer-encoding"})
"""The handshake writes these, and all that begin with ``Sec-WebSocket-``."""


@asynccontextmanager
async def open_stream(
    connection_string: str | ConnectionString,
    *,
    path: str | None = None,
    suffix: str = "",
    query: str = "",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    token: str | TokenProvider | None = None,
    tracking_id: str | None = None,
    cafile: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls: bool = True,
    proxy: str | Proxy | None = None,
    connect_timeout: float | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Connection]:
    """Connect to whoever listens on a hybrid connection; the ``async with`` block closes the connection.

    ::

        async with relaycore.open_stream(connection_string) as stream:
            await stream.send_all(b"hello")

    Args:
      connection_string: ``Endpoint=sb://...``; without key and signature the sender is anonymous.
      path: the hybrid connection, if the connection string has no ``EntityPath``, or instead of it.
      suffix: what the listener sees behind the path, as text; it is percent-encoded here.
      query: what the listener sees as query, already encoded, without ``?``; names that begin with ``sb-hc-`` are
        dropped.
      headers: what the listener sees beside those of the handshake.
      subprotocols: to offer, the preferred one first. Which one the listener took is ``stream.subprotocol``.
      token: instead of the connection string's key: a token, or a function that makes one, see `TokenProvider`.
      tracking_id: a GUID that will name this connection in the relay's logs; a fresh one without it.
      cafile: PEM file of the only authorities to trust, for private ones; the system's store without it.
      ssl_context: instead of ``cafile``; it has to verify. There is no way to go without.
      tls: False dials plain ``ws``, for a relay behind something else that encrypts.
      proxy: URL of an HTTP or SOCKS5 proxy to dial through, ``env`` for the one that the environment names; none
        without it.
      connect_timeout: seconds until the listener has accepted; without it the connection string's ``OperationTimeout``,
        and 70 if it has none.
      max_message_bytes: bound on one message, see `Connection.messages`.
      clock: wall clock in seconds, for tokens.

    Raises:
      ConfigError: the arguments do not fit together.
      AuthorizationFailed: the relay does not take the token, or wants one.
      EndpointNotFound: no such hybrid connection.
      NoListener: nobody listens there, or nobody accepted in time.
      Rejected: the listener said no; ``message`` and ``http_status`` are its own. If it chose 401, 403, 404, 408, 503
        or 504 it cannot be told from the relay, and comes out as what those mean.
      Refused: another answer, see its subclasses.
      ConnectionLost: network or TLS; no answer in time. An untrusted certificate is an `ssl.SSLCertVerificationError`
        in ``__cause__``.
    """
    async with await dial_stream(
        connection_string,
        path=path,
        suffix=suffix,
        query=query,
        headers=headers,
        subprotocols=subprotocols,
        token=token,
        tracking_id=tracking_id,
        cafile=cafile,
        ssl_context=ssl_context,
        tls=tls,
        proxy=proxy,
        connect_timeout=connect_timeout,
        max_message_bytes=max_message_bytes,
        clock=clock,
    ) as connection:
        yield connection


async def dial_stream(
    connection_string: str | ConnectionString,
    *,
    path: str | None = None,
    suffix: str = "",
    query: str = "",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    token: str | TokenProvider | None = None,
    tracking_id: str | None = None,
    cafile: str | os.PathLike[str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    tls: bool = True,
    proxy: str | Proxy | None = None,
    connect_timeout: float | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    clock: Callable[[], float] = time.time,
) -> Connection:
    """As `open_stream`, for a connection that outlives the block it was made in: closing it is the caller's business.

    A checkpoint; cancelled, or when it raises, nothing stays open.
    """
    endpoint = resolve_endpoint(connection_string, path, cafile=cafile, ssl_context=ssl_context, tls=tls, proxy=proxy)
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    _check(pairs, subprotocols)
    identity = tracking_id if tracking_id is not None else str(uuid.uuid4())
    if not is_guid(identity):
        raise ConfigError("must be a GUID", key="tracking_id")
    suffix = suffix.strip("/")
    full_path = f"{endpoint.path}/{suffix}" if suffix else endpoint.path
    url = parse_ws_url(build_connect_url(endpoint.base_url, full_path, query=query, id=identity))
    source = token_source(endpoint.settings, token, clock=clock)
    if connect_timeout is None:
        given = endpoint.settings.operation_timeout
        connect_timeout = SENDER_CONNECT_TIMEOUT if given == DEFAULT_OPERATION_TIMEOUT else given
    try:
        with trio.fail_after(connect_timeout):
            if source is not None:
                pairs.append((AUTHORIZATION_HEADER, (await source.fetch()).text))
            opened = await open_websocket(
                url,
                ssl_context=endpoint.ssl_context,
                proxy=endpoint.proxy,
                headers=pairs,
                protocols=subprotocols,
                max_message_bytes=max_message_bytes,
            )
    except trio.TooSlowError as error:
        raise ConnectionLost(f"no answer from {url.host_header} within {connect_timeout:g} s") from error
    info = ConnectionInfo(
        path=endpoint.path,
        suffix=suffix,
        query=strip_query(query),
        headers=opened.headers,
        remote_endpoint=None,
        subprotocol=opened.protocol,
        tracking_id=identity,
    )
    return Connection(opened.leg, info)


def _check(headers: Iterable[tuple[str, str]], subprotocols: Sequence[str]) -> None:
    for name, _ in headers:
        folded = name.lower()
        if folded in _OWN_HEADERS or folded.startswith("sec-websocket-"):
            raise ConfigError("belongs to the handshake", key=name)
        if folded == AUTHORIZATION_HEADER.lower():
            raise ConfigError("is written from token= or the connection string", key=name)
    if isinstance(subprotocols, str) or not all(map(is_token, subprotocols)):
        raise ConfigError("must be a sequence of tokens, such as ['mqtt']", key="subprotocols")
