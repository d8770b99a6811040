"""Listening sockets and certificates that change under a running server."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from relaycore.errors import ConfigError
from relaycore.net.accept import TlsContext, open_listeners


class Authority:
    """A CA, and certificates of it in two files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"

    def issue(self, *, key: bool = True) -> None:
        leaf = self._ca.issue_cert("relay.test")
        if key:
            leaf.private_key_pem.write_to_path(self.key)
        leaf.cert_chain_pems[0].write_to_path(self.cert)

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.issue()
    return authority


async def handshake(tls: TlsContext, client: ssl.SSLContext) -> tuple[trio.SSLStream, trio.SSLStream]:
    near, far = trio.testing.memory_stream_pair()
    server = trio.SSLStream(near, tls.current, server_side=True, https_compatible=True)
    peer = trio.SSLStream(far, client, server_hostname="relay.test", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await peer.do_handshake()
    return server, peer


def serial(peer: trio.SSLStream) -> object:
    return peer.getpeercert()["serialNumber"]


async def test_a_changed_certificate_serves_new_handshakes_and_old_connections_go_on(
    authority: Authority, autojump_clock
) -> None:
    """spec 4: a renewed certificate is taken up without dropping connections."""
    tls = TlsContext(authority.cert, authority.key)
    server, peer = await handshake(tls, authority.client())
    reloads: list[ConfigError | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.watch, 1.0, reloads.append)
        await trio.sleep(3)
        assert reloads == []
        authority.issue()
        await trio.sleep(1.5)
        assert reloads == [None]
        nursery.cancel_scope.cancel()
    _, fresh = await handshake(tls, authority.client())
    assert serial(fresh) != serial(peer)
    await server.send_all(b"still here")
    assert await peer.receive_some() == b"still here"


async def test_a_bad_pair_leaves_the_old_one_in_place(authority: Authority, autojump_clock) -> None:
    """spec 4: a half-written renewal costs nothing; the next good one counts."""
    tls = TlsContext(authority.cert, authority.key)
    reloads: list[ConfigError | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.watch, 1.0, reloads.append)
        authority.issue(key=False)
        await trio.sleep(2.5)
        assert len(reloads) == 1
        assert "belong together" in str(reloads[0])
        await handshake(tls, authority.client())
        authority.cert.unlink()
        await trio.sleep(2)
        authority.issue()
        await trio.sleep(2)
        assert reloads[-1] is None
        nursery.cancel_scope.cancel()
    await handshake(tls, authority.client())


async def test_only_modern_tls_and_http11(authority: Authority) -> None:
    """spec 4: TLS 1.2 or later, and http/1.1 in ALPN whatever else is offered."""
    tls = TlsContext(authority.cert, authority.key)
    assert tls.current.minimum_version is ssl.TLSVersion.TLSv1_2
    client = authority.client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    _, peer = await handshake(tls, client)
    assert peer.selected_alpn_protocol() == "http/1.1"


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """failures: documented credential setting never read."""
    with pytest.raises(ConfigError, match=r"tls.key: cannot read .*nothing.pem: No such file"):
        TlsContext(authority.cert, tmp_path / "nothing.pem")
    authority.key.write_text("not a key")
    with pytest.raises(ConfigError, match=r"tls.cert: cannot use the certificate .*cert.pem"):
        TlsContext(authority.cert, authority.key)


async def test_an_address_that_is_taken_is_named() -> None:
    """failures: bad input gets a clear error."""
    [first] = await open_listeners("127.0.0.1", 0, backlog=8)
    async with first:
        port = first.address[1]
        with pytest.raises(ConfigError, match=rf"server.port: cannot listen on 127.0.0.1:{port}: .*another program"):
            await open_listeners("127.0.0.1", port, backlog=8)
    with pytest.raises(ConfigError, match=r"cannot listen on 203.0.113.1:0: .*address of this machine"):
        await open_listeners("203.0.113.1", 0, backlog=8)


async def test_all_connections_that_have_come_are_taken_in_one_turn() -> None:
    [listener] = await open_listeners("127.0.0.1", 0, backlog=8)
    async with listener:
        assert listener.accept_nowait() is None
        near = [await trio.open_tcp_stream(*listener.address) for _ in range(3)]
        await listener.wait()
        for stream in near:
            accepted = listener.accept_nowait()
            assert accepted is not None
            far, name = accepted
            assert name == stream.socket.getsockname()
            await far.send_all(b"x")
            assert await stream.receive_some() == b"x"
            await far.aclose()
            await stream.aclose()
        assert listener.accept_nowait() is None


async def test_a_closed_listener_ends_the_waiting() -> None:
    [listener] = await open_listeners("127.0.0.1", 0, backlog=8)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await wait()
    await listener.aclose()
    assert listener.accept_nowait() is None
    with pytest.raises(OSError, match=r".*"):
        await trio.open_tcp_stream(*listener.address)
