"""Proxies for tests, at ports of their own on 127.0.0.1: honest ones that keep a record, one that plays a script."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from relaycore.net.proxy import Proxy


@dataclass
class TestProxy:
    """A running proxy.

    Attributes:
      targets: what it was asked for, as ``HOST:PORT``.
      received: the first bytes of each connection.
    """

    __test__ = False

    kind: str
    port: int
    targets: list[str] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    def proxy(self, user: str | None = None, password: str | None = None) -> Proxy:
        return Proxy(kind=self.kind, host="127.0.0.1", port=self.port, user=user, password=password)

    @property
    def url(self) -> str:
        return f"{self.kind}://127.0.0.1:{self.port}"


@asynccontextmanager
async def open_http_proxy(user: str | None = None, password: str = "") -> AsyncIterator[TestProxy]:
    """A proxy that takes CONNECT; with ``user`` it wants Basic."""
    wanted = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user is not None else None

    async def serve(made: TestProxy, stream: trio.SocketStream) -> None:
        head = await _read_until(stream, b"\r\n\r\n")
        made.received.append(head)
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        assert method == "CONNECT"
        made.targets.append(target)
        if wanted is not None and f"Proxy-Authorization: {wanted}" not in lines:
            await stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")
            return
        host, _, port = target.rpartition(":")
        async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as far:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _join(stream, far)

    async with _open("http", serve) as made:
        yield made


@asynccontextmanager
async def open_socks_proxy(user: str | None = None, password: str = "") -> AsyncIterator[TestProxy]:
    """A SOCKS5 proxy; with ``user`` it wants RFC 1929."""

    async def serve(made: TestProxy, stream: trio.SocketStream) -> None:
        version, count = await _read(stream, 2)
        assert version == 5
        methods = await _read(stream, count)
        wanted = 0 if user is None else 2
        made.received.append(methods)
        if wanted not in methods:
            await stream.send_all(b"\x05\xff")
            return
        await stream.send_all(bytes((5, wanted)))
        if wanted:
            _, length = await _read(stream, 2)
            given_user = await _read(stream, length)
            given_password = await _read(stream, (await _read(stream, 1))[0])
            is_right = (given_user, given_password) == (user.encode(), password.encode())
            await stream.send_all(b"\x01\x00" if is_right else b"\x01\x01")
            if not is_right:
                return
        _, command, _, kind = await _read(stream, 4)
        assert command == 1
        if kind == 3:
            host = (await _read(stream, (await _read(stream, 1))[0])).decode()
        elif kind == 1:
            host = ".".join(map(str, await _read(stream, 4)))
        else:
            assert kind == 4
            packed = await _read(stream, 16)
            host = ":".join(packed[at : at + 2].hex() for at in range(0, 16, 2))
        port = int.from_bytes(await _read(stream, 2), "big")
        made.targets.append(f"{host}:{port}")
        async with await trio.open_tcp_stream(host, port) as far:
            await stream.send_all(b"\x05\x00\x00\x03\x04here\x00\x01")
            await _join(stream, far)

    async with _open("socks5", serve) as made:
        yield made


@asynccontextmanager
async def open_scripted_proxy(
    kind: str, script: Callable[[trio.SocketStream], Awaitable[None]]
) -> AsyncIterator[TestProxy]:
    """A proxy that does what ``script`` does with each connection, and then closes it."""

    async def serve(_: TestProxy, stream: trio.SocketStream) -> None:
        await script(stream)

    async with _open(kind, serve) as made:
        yield made


@asynccontextmanager
async def _open(
    kind: str, serve: Callable[[TestProxy, trio.SocketStream], Awaitable[None]]
) -> AsyncIterator[TestProxy]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made = TestProxy(kind, listener.socket.getsockname()[1])

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await serve(made, stream)
            except (trio.BrokenResourceError, EOFError):
                return

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, [listener])
        yield made
        nursery.cancel_scope.cancel()


async def _read(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


async def _read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += await _read(stream, 1)
    return data


async def _join(left: trio.SocketStream, right: trio.SocketStream) -> None:
    async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except trio.BrokenResourceError:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, left, right)
        nursery.start_soon(copy, right, left)
