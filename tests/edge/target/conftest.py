"""Names, and endpoints that behave badly, for tests of dialling."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress

import pytest
import trio


class Names(trio.abc.HostnameResolver):
    """Knows exactly these names."""

    def __init__(self) -> None:
        self.table: dict[str, Sequence[str]] = {}
        self.asked: list[str] = []
        self.is_silent = False

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if self.is_silent:
            await trio.sleep_forever()
        found = [
            entry
            for address in self.table.get(name, ())
            for entry in socket.getaddrinfo(address, port, type=type, flags=socket.AI_NUMERICHOST)
            if family in (0, entry[0])
        ]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await trio.lowlevel.checkpoint()
        return found

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def names() -> AsyncIterator[Names]:
    found = Names()
    before = trio.socket.set_custom_hostname_resolver(found)
    yield found
    trio.socket.set_custom_hostname_resolver(before)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A TCP port that is free on all addresses of 127.0.0.0/8 that these tests use, and stays so."""
    # Bound but not listening: connections to it are refused.
    with ExitStack() as stack:
        port = 0
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            port = sock.getsockname()[1]
        yield port


@pytest.fixture
def black_hole() -> Iterator[Callable[[str, int], int]]:
    """Makes ports whose connections are never answered: their backlog is full, and Linux drops what comes."""
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1", port: int = 0) -> int:
            listener = stack.enter_context(socket.socket())
            listener.bind((host, port))
            listener.listen(0)
            port = listener.getsockname()[1]
            stack.enter_context(socket.create_connection((host, port)))
            return port

        yield make


HAS_IPV6 = socket.has_ipv6
try:
    with socket.create_server(("::1", 0), family=socket.AF_INET6):
        pass
except OSError:
    HAS_IPV6 = False


@pytest.fixture
def ipv6() -> None:
    if not HAS_IPV6:
        pytest.skip("this machine has no ::1")


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., object]]:
    """Starts servers: ``port = await serve(handler, host=..., port=...)``."""
    async with trio.open_nursery() as nursery:

        async def start(handler, host: str = "127.0.0.1", port: int = 0) -> int:
            async def handle(stream: trio.SocketStream) -> None:
                with suppress(trio.BrokenResourceError):
                    await handler(stream)

            listeners = await trio.open_tcp_listeners(port, host=host)
            nursery.start_soon(trio.serve_listeners, handle, listeners)
            found: int = listeners[0].socket.getsockname()[1]
            return found

        yield start
        nursery.cancel_scope.cancel()
