"""TCP connections, dialled directly or through a proxy that was told where to go.

The proxy resolves the name: a host behind it need not be known here, and where a name leads may differ on both sides.

Source: RFC 9110 9.3.6 (CONNECT), RFC 7617 (Basic), RFC 1928 (SOCKS5), RFC 1929 (its user and password).
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import socket
from typing import Final, NoReturn

import trio

from ..errors import ConnectionLost, RemoteProtocolError
from ..wire.http1 import ResponseHead, ResponseReader, build_request
from .keepalive import keep_alive
from .proxy import Proxy
from .tasks import leaves

__all__ = ["PROXY_TIMEOUT", "ProxyFailed", "open_tcp"]

PROXY_TIMEOUT: Final = 15.0
"""Seconds for a proxy to connect and to answer. Less than the 20 of a rendezvous, so that the error names the proxy."""

_MAX_HEAD_BYTES: Final = 16_384
"""Of an answer to CONNECT. Its body is not read: it is a page for people in front of a browser."""

_MAX_REASON: Final = 200
"""Characters of a proxy's own words that are repeated."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_SOCKS5: Final = 5
_NO_AUTHENTICATION: Final = 0
_USER_AND_PASSWORD: Final = 2
_NONE_ACCEPTABLE: Final = 0xFF
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4

_SOCKS_REPLIES: Final = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable, or the proxy cannot resolve its name",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}


class ProxyFailed(ConnectionLost):
    """The way ended at the proxy: it cannot be reached, said no, or is none.

    Args:
      proxy: which one.
      message: for people; holds no user and no password.
      status: its HTTP status or SOCKS reply code, None if it gave none.
      is_authentication: it wants a user and a password, or others than it got.
    """

    def __init__(
        self, proxy: Proxy, message: str, *, status: int | None = None, is_authentication: bool = False
    ) -> None:
        super().__init__(message)
        self.proxy = proxy
        self.status = status
        self.is_authentication = is_authentication


async def open_tcp(host: str, port: int, proxy: Proxy | None = None) -> trio.SocketStream:
    """Connect to a TCP port. The caller owns the stream; on any error nothing stays open.

    Args:
      host: name or address, IPv6 without brackets; a proxy gets the name as it is.
      port: 1 to 65535.
      proxy: to go through; it has `PROXY_TIMEOUT` seconds. Without one, deadlines are the caller's.

    Raises:
      ConnectionLost: no address answered, or the name has none. ``__cause__`` is what Trio said.
      ProxyFailed: a `ConnectionLost` too; the proxy did it.
    """
    where = _authority(host, port)
    if proxy is None:
        try:
            return _kept(await trio.open_tcp_stream(host, port))
        except (OSError, UnicodeError) as error:  # the second: a name that DNS cannot spell
            raise ConnectionLost(f"cannot connect to {where}: {_cause_of(error)}") from error
    try:
        with trio.fail_after(PROXY_TIMEOUT):
            return await _open_through(proxy, host, port)
    except trio.TooSlowError as error:
        raise ProxyFailed(proxy, f"the proxy {proxy} did not connect to {where} within {PROXY_TIMEOUT:g} s") from error


def _kept(stream: trio.SocketStream) -> trio.SocketStream:
    keep_alive(stream.socket)
    return stream


async def _open_through(proxy: Proxy, host: str, port: int) -> trio.SocketStream:
    try:
        stream = _kept(await trio.open_tcp_stream(proxy.host, proxy.port))
    except (OSError, UnicodeError) as error:
        raise ProxyFailed(proxy, f"cannot connect to the proxy {proxy}: {_cause_of(error)}") from error
    try:
        if proxy.kind == "http":
            await _ask_http(stream, proxy, host, port)
        else:
            await _ask_socks5(stream, proxy, host, port)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


# HTTP ----------------------------------------------------------------------------------------------------------------


async def _ask_http(stream: trio.SocketStream, proxy: Proxy, host: str, port: int) -> None:
    where = _authority(_spelled(proxy, host).decode("ascii"), port)
    headers = [("Host", where)]
    if proxy.user is not None:
        pair = f"{proxy.user}:{proxy.password or ''}".encode()
        headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(pair).decode('ascii')}"))
    # A proxy may answer and close before it has read all; its answer counts.
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(build_request("CONNECT", where, headers))
    reader = ResponseReader(max_head_bytes=_MAX_HEAD_BYTES)
    head: ResponseHead | None = None
    last = b""
    try:
        while head is None:
            data = await _receive_of_head(stream, proxy, last)
            last = (last + data)[-3:]
            reader.receive_data(data)
            head = reader.next_event()
    except RemoteProtocolError as error:
        raise ProxyFailed(proxy, f"the proxy {proxy} does not answer as an HTTP proxy does: {error}") from error
    if head.status == 407:
        _want_authentication(proxy, head.status)
    if not 200 <= head.status < 300:
        words = "".join(filter(str.isprintable, head.reason))[:_MAX_REASON]
        raise ProxyFailed(
            proxy,
            f"the proxy {proxy} refused to connect to {where}: {head.status} {words}".rstrip(),
            status=head.status,
        )


# SOCKS5 --------------------------------------------------------------------------------------------------------------


async def _ask_socks5(stream: trio.SocketStream, proxy: Proxy, host: str, port: int) -> None:
    await _sign_in(stream, proxy)
    await _send(stream, bytes((_SOCKS5, _CONNECT, 0)) + _socks_address(proxy, host) + port.to_bytes(2, "big"))
    version, reply, _, kind = await _receive_exactly(stream, proxy, 4)
    if version != _SOCKS5:
        _is_no_socks5(proxy)
    if reply != 0:
        words = _SOCKS_REPLIES.get(reply, "an unknown reply")
        raise ProxyFailed(
            proxy,
            f"the proxy {proxy} refused to connect to {_authority(host, port)}: {words} (reply {reply})",
            status=reply,
        )
    if kind not in (_IPV4, _NAME, _IPV6):
        _is_no_socks5(proxy)
    length = {_IPV4: 4, _IPV6: 16}.get(kind) or (await _receive_exactly(stream, proxy, 1))[0]
    await _receive_exactly(stream, proxy, length + 2)  # its own address and port, which are of no use


async def _sign_in(stream: trio.SocketStream, proxy: Proxy) -> None:
    methods = [_NO_AUTHENTICATION] if proxy.user is None else [_NO_AUTHENTICATION, _USER_AND_PASSWORD]
    await _send(stream, bytes((_SOCKS5, len(methods), *methods)))
    version, method = await _receive_exactly(stream, proxy, 2)
    if version != _SOCKS5:
        _is_no_socks5(proxy)
    if method == _NONE_ACCEPTABLE:
        _want_authentication(proxy, method)
    if method not in methods:
        _is_no_socks5(proxy)
    if method == _USER_AND_PASSWORD:
        user, password = (proxy.user or "").encode(), (proxy.password or "").encode()
        if not (1 <= len(user) <= 255 and len(password) <= 255):
            raise ProxyFailed(
                proxy,
                f"the user or the password for the proxy {proxy} is empty or longer than 255 bytes",
                is_authentication=True,
            )
        await _send(stream, bytes((1, len(user))) + user + bytes((len(password),)) + password)
        _, status = await _receive_exactly(stream, proxy, 2)
        if status != 0:
            _want_authentication(proxy, status)


def _socks_address(proxy: Proxy, host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = _spelled(proxy, host)
        if not 1 <= len(name) <= 255:
            raise ProxyFailed(proxy, "the name to connect to is empty or longer than 255 bytes") from None
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed


def _is_no_socks5(proxy: Proxy) -> NoReturn:
    raise ProxyFailed(proxy, f"the proxy {proxy} does not answer as a SOCKS5 proxy does")


# Both ----------------------------------------------------------------------------------------------------------------


def _want_authentication(proxy: Proxy, status: int) -> NoReturn:
    found = "wants a user and a password" if proxy.user is None else "does not take the user and password"
    raise ProxyFailed(proxy, f"the proxy {proxy} {found} (answer {status})", status=status, is_authentication=True)


def _spelled(proxy: Proxy, host: str) -> bytes:
    """The name as DNS spells it; an address as it is."""
    try:
        return host.encode("ascii") if host.isascii() else host.encode("idna")
    except UnicodeError as error:
        raise ProxyFailed(proxy, "the name to connect to cannot be spelled in DNS") from error


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # what was answered before counts, or that nothing was
        await stream.send_all(data)


async def _receive(stream: trio.SocketStream, proxy: Proxy, max_bytes: int) -> bytes:
    try:
        data = bytes(await stream.receive_some(max_bytes))
    except trio.BrokenResourceError as error:
        raise ProxyFailed(proxy, f"the proxy {proxy} broke the connection off") from error
    if not data:
        raise ProxyFailed(proxy, f"the proxy {proxy} closed the connection without an answer")
    return data


async def _receive_of_head(stream: trio.SocketStream, proxy: Proxy, taken: bytes) -> bytes:
    """What has come of a head, and nothing from behind its end: that belongs to the connection, and is for others.

    Args:
      taken: the last three bytes before, as the end of the head may be cut in two.
    """
    try:
        waiting = bytes(await stream.socket.recv(_MAX_HEAD_BYTES, trio.socket.MSG_PEEK))
    except OSError as error:
        raise ProxyFailed(proxy, f"the proxy {proxy} broke the connection off") from error
    end = (taken + waiting).find(_END_OF_HEAD)
    count = len(waiting) if end < 0 else end + len(_END_OF_HEAD) - len(taken)
    return await _receive(stream, proxy, max(count, 1))


async def _receive_exactly(stream: trio.SocketStream, proxy: Proxy, count: int) -> bytes:
    """Not a byte more: what follows belongs to the connection."""
    data = b""
    while len(data) < count:
        data += await _receive(stream, proxy, count - len(data))
    return data


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cause_of(error: BaseException) -> str:
    """What the system said, without Trio's words around it; of several addresses the first one's."""
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        cause = next(leaves(cause), cause)
    if isinstance(cause, socket.gaierror):
        return f"the name cannot be resolved ({cause.strerror})"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno)
    return str(error)
