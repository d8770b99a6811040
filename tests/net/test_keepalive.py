"""Silent connections: what TCP asks for us."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
import trio

from relaycore.edge.config.settings import ListenAt
from relaycore.edge.connect.listeners import Inherited, open_local
from relaycore.net.accept import open_listeners
from relaycore.net.keepalive import ASK_AGAIN_S, ASK_TIMES, SILENCE_S, keep_alive
from relaycore.net.proxy_dial import open_tcp


def asked(sock: socket.socket | trio.socket.SocketType) -> tuple[int, int, int, int]:
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    )


KEPT = (1, SILENCE_S, ASK_AGAIN_S, ASK_TIMES)


async def test_both_ends_of_a_connection_to_the_relay_notice_that_the_other_is_gone() -> None:
    """connection manager 8.5: idle data channels keep their NATs open, and end with a peer that does not answer."""
    [listener] = await open_listeners("127.0.0.1", 0, backlog=8)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(listener.aclose)
        near = await stack.enter_async_context(await open_tcp(*listener.address))
        await listener.wait()
        accepted = listener.accept_nowait()
        assert accepted is not None
        far = await stack.enter_async_context(accepted[0])
        assert asked(near.socket) == asked(far.socket) == KEPT


async def test_so_do_the_local_listeners_of_connect() -> None:
    local = await open_local(ListenAt("tcp", "127.0.0.1"))
    async with (
        local.sockets[0] as listener,
        await trio.open_tcp_stream(*listener.socket.getsockname()),
        await listener.accept() as accepted,
    ):
        assert asked(accepted.socket) == KEPT


@pytest.mark.parametrize("seconds", [0, 300])
async def test_so_do_those_that_a_service_manager_opened_unless_it_has_seen_to_that(seconds: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed_over:
        if seconds:
            handed_over.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            handed_over.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        [local] = Inherited([("orders", handed_over.dup())]).take("orders")
        async with (
            local.sockets[0] as listener,
            await trio.open_tcp_stream(*listener.socket.getsockname()),
            await listener.accept() as accepted,
        ):
            assert asked(accepted.socket)[:2] == (1, seconds or SILENCE_S)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_is_no_tcp_is_left_alone(kind: int) -> None:
    for sock in socket.socketpair(socket.AF_UNIX, kind):
        with sock:
            keep_alive(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_a_connection_that_is_over_is_no_error() -> None:
    sock = socket.socket()
    sock.close()
    keep_alive(sock)
