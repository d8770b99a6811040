from __future__ import annotations

import os
import sys

import pytest
import trio
import trio.testing
from unprivileged import unprivileged

from relaycore.edge.config.settings import ListenAt
from relaycore.edge.run import peers
from relaycore.edge.run.peers import OwnUserOnly, open_for_own_user, uid_of_peer
from relaycore.net.linger import reset

CONNECT = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(s.recv(5).decode())"


async def open_own(**options) -> OwnUserOnly:
    opened = await open_for_own_user(ListenAt("tcp", "127.0.0.1"), **options)
    assert isinstance(opened, OwnUserOnly)
    return opened


def forbid(*_):
    raise PermissionError


@pytest.fixture(params=["kernel", "list"])
def _source(request, monkeypatch):
    """Whom a test asks: the kernel, or the list where the kernel cannot be asked."""
    monkeypatch.setattr(peers, *{"kernel": ("_look_up", lambda *_: None), "list": ("_ask", forbid)}[request.param])


both_sources = pytest.mark.usefixtures("_source")


async def greet(stream):
    await stream.send_all(b"hello")
    await stream.aclose()


@both_sources
async def test_both_ends_of_a_connection_are_told():
    (listener,) = (await open_own()).sockets
    ours = await trio.open_tcp_stream(*listener.socket.getsockname())
    theirs = await listener.accept()
    assert uid_of_peer(theirs) == uid_of_peer(ours) == os.geteuid()
    await theirs.aclose()
    await ours.aclose()
    await listener.aclose()


@both_sources
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


@both_sources
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


async def test_one_who_listens_is_no_peer():
    """The kernel looks for a listening socket where it finds no connection."""
    (listener,) = (await open_own()).sockets
    assert peers._ask(listener.socket.getsockname(), ("127.0.0.1", 1)) is None
    await listener.aclose()


async def test_who_cannot_be_found_out_is_not_served(monkeypatch):
    monkeypatch.setattr(peers, "_ask", forbid)
    monkeypatch.setattr(peers, "_look_up", forbid)
    listener = await open_own(takes_closed=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet, nursery)
        stream = await trio.open_tcp_stream(*listener.sockets[0].socket.getsockname())
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("takes_closed", [True, False])
async def test_last_words_are_taken_where_so_wished(takes_closed):
    listener = await open_own(takes_closed=takes_closed)
    heard: list[bytes] = []

    async def hear(stream):
        heard.append(await stream.receive_some())
        await stream.aclose()

    address = listener.sockets[0].socket.getsockname()
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(b"last")
    await stream.aclose()  # before anybody has taken it
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, hear, nursery)
        await trio.testing.wait_all_tasks_blocked(0.05)
        stream = await trio.open_tcp_stream(*address)
        await stream.send_all(b"one more")
        while b"one more" not in heard:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert heard == ([b"last", b"one more"] if takes_closed else [b"one more"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("takes_closed", [True, False])
@both_sources
async def test_another_user_is_not(takes_closed):
    listener = await open_own(takes_closed=takes_closed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet, nursery)
        port = str(listener.sockets[0].socket.getsockname()[1])
        said = await trio.run_process(
            unprivileged(sys.executable, "-c", CONNECT, port), capture_stderr=True, check=False
        )
        assert b"ConnectionResetError" in said.stderr
        nursery.cancel_scope.cancel()
