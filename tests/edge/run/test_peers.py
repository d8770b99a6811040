from __future__ import annotations

import os
import sys

import pytest
import trio
from unprivileged import unprivileged

from relaycore.edge.config.settings import ListenAt
from relaycore.edge.connect.listeners import open_local
from relaycore.edge.run.peers import OwnUserOnly, uid_of_peer
from relaycore.net.linger import reset

CONNECT = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(s.recv(5).decode())"


async def open_own() -> OwnUserOnly:
    opened = await open_local(ListenAt("tcp", "127.0.0.1"))
    return OwnUserOnly(opened.at, opened.shown, opened.sockets)


async def greet(stream):
    await stream.send_all(b"hello")
    await stream.aclose()


async def test_both_ends_of_a_connection_are_told():
    (listener,) = (await open_own()).sockets
    ours = await trio.open_tcp_stream(*listener.socket.getsockname())
    theirs = await listener.accept()
    assert uid_of_peer(theirs) == uid_of_peer(ours) == os.geteuid()
    await theirs.aclose()
    await ours.aclose()
    await listener.aclose()


async def test_what_was_closed_is_nobodys():
    """The list says 0 for it, which would be root: another user's last words must not pass for those of root."""
    (listener,) = (await open_own()).sockets
    ours = await trio.open_tcp_stream(*listener.socket.getsockname())
    await ours.send_all(b"CONNECT")
    await ours.aclose()
    theirs = await listener.accept()
    assert await theirs.receive_some() == b"CONNECT"
    assert await theirs.receive_some() == b""  # the end was seen, and acknowledged
    assert uid_of_peer(theirs) is None
    await theirs.aclose()
    await listener.aclose()


async def test_a_connection_that_was_reset_before_it_was_taken_ends_nothing():
    listener = await open_own()
    address = listener.sockets[0].socket.getsockname()
    await reset(await trio.open_tcp_stream(*address))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet, nursery)
        stream = await trio.open_tcp_stream(*address)
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_an_ipv6_socket_that_reaches_ipv4_is_told():
    (listener,) = (await open_own()).sockets
    with trio.socket.socket(trio.socket.AF_INET6) as ours:
        await ours.connect(("::ffff:127.0.0.1", listener.socket.getsockname()[1]))
        theirs = await listener.accept()
        assert uid_of_peer(theirs) == os.geteuid()
        await theirs.aclose()
    await listener.aclose()


async def test_this_user_is_served():
    listener = await open_own()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet, nursery)
        stream = await trio.open_tcp_stream(*listener.sockets[0].socket.getsockname())
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
async def test_another_user_is_not():
    listener = await open_own()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet, nursery)
        port = str(listener.sockets[0].socket.getsockname()[1])
        said = await trio.run_process(
            unprivileged(sys.executable, "-c", CONNECT, port), capture_stderr=True, check=False
        )
        assert b"ConnectionResetError" in said.stderr
        nursery.cancel_scope.cancel()
