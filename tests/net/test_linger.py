"""The end of a connection whose peer is still sending."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from relaycore.net.linger import allow_end, close_gently, cut, is_reset, reset, reset_when_dropped


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_the_last_words_arrive_although_the_peer_still_sends(secure: bool) -> None:
    """failures: bad peer: unread bytes must not turn our answer into a reset."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near: trio.abc.Stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        far: trio.abc.Stream = await listener.accept()
    if secure:
        ca = trustme.CA()
        client, server = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.configure_trust(client)
        ca.issue_cert("relay.test").configure_cert(server)
        near = trio.SSLStream(near, client, server_hostname="relay.test", https_compatible=True)
        far = trio.SSLStream(far, server, server_side=True, https_compatible=True)
    got = bytearray()

    async def call() -> None:
        await near.send_all(b"x" * 200_000)
        while data := await near.receive_some(65_536):
            got.extend(data)
        await near.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            assert await far.receive_some(1) == b"x"
            await far.send_all(b"refused")
            await close_gently(far)
    assert got == b"refused"


async def test_only_the_peer_resets_a_connection() -> None:
    """failures: client gone, listener never told."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near, far = [], []
        for _ in range(2):
            near.append(await trio.open_tcp_stream(*listener.socket.getsockname()))
            far.append(await listener.accept())
    assert not is_reset(far[0])
    await reset(near[0])
    assert is_reset(far[0])
    # One that we have closed ourselves is no more to be asked, and has no reset to tell of.
    await trio.aclose_forcefully(far[1])
    assert not is_reset(far[1])
    for stream in (*near, *far):
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("is_allowed", [False, True], ids=["dropped", "ended"])
async def test_a_dropped_connection_is_reset_until_its_end_is_allowed(is_allowed: bool) -> None:
    """failures: half an answer taken for a whole one."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await trio.open_tcp_stream(*listener.socket.getsockname()) as near:
        far = await listener.accept()
        reset_when_dropped(far)
        await far.send_all(b"x" * 100)
        if is_allowed:
            allow_end(far)
        await cut(far)
        if is_allowed:
            assert [data async for data in near] == [b"x" * 100]
        else:
            with pytest.raises(trio.BrokenResourceError):
                _ = [data async for data in near]
