"""The end of a connection whose peer is still sending."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme

from relaycore.net.linger import close_gently


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
