"""Every connection of the library through a proxy, to a real relay."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

import pytest
import trio
from proxies import TestProxy, open_http_proxy, open_socks_proxy

import relaycore
from relaycore.client.management import ManagementClient
from relaycore.errors import AuthorizationFailed, ConfigError, ConnectionLost
from relaycore.net.proxy import Proxy
from relaycore.net.proxy_dial import ProxyFailed
from relaycore.testing import Relay, open_relay
from relaycore.wire.connection_string import parse_connection_string
from relaycore.wire.http1 import build_request
from relaycore.wire.sas import make_token


@pytest.fixture(params=[open_http_proxy, open_socks_proxy])
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[TestProxy]:
    async with request.param("ann", "hush") as made:
        yield made


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("orders", requires_client_authorization=False, user_metadata="text")
        yield relay


async def test_listener_rendezvous_and_sender(relay: Relay, proxy: TestProxy):
    """connection manager 6 #14: both legs go through the proxy, and the rendezvous too."""
    string = relay.connection_string("orders")
    way = proxy.proxy("ann", "hush")
    async with (
        relaycore.open_listener(string, proxy=way) as listener,
        relaycore.open_stream(string, proxy=way) as sender,
        await listener.accept() as accepted,
    ):
        await sender.send_all(b"hello")
        assert await accepted.receive_some() == b"hello"
        for one, other in ((sender, accepted), (accepted, sender)):
            await one.send_eof()
            assert await other.receive_some() == b""
        assert proxy.targets == [f"127.0.0.1:{relay.port}"] * 3


async def test_a_rejection_goes_through_it(relay: Relay, proxy: TestProxy):
    string = relay.connection_string("orders")
    way = proxy.proxy("ann", "hush")
    async with relaycore.open_listener(string, accept=lambda _: relaycore.Reject(502, "no"), proxy=way):
        with pytest.raises(relaycore.Refused, match="no"):
            async with relaycore.open_stream(string):
                pass
        assert len(proxy.targets) == 2


async def test_a_response_through_a_rendezvous_of_its_own(relay: Relay, proxy: TestProxy, nursery: trio.Nursery):
    async def handle(_: relaycore.HttpRequest) -> bytes:
        return bytes(200_000)

    serve = functools.partial(relaycore.serve_http, relay.connection_string("orders"), handle)
    listener = await nursery.start(functools.partial(serve, proxy=proxy.proxy("ann", "hush")))
    async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
        await stream.send_all(build_request("GET", "/orders", [("Host", "x"), ("Connection", "close")]))
        answer = b"".join([bytes(piece) async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(answer) > 200_000
    assert len(proxy.targets) == 2
    await listener.aclose()


async def test_management(relay: Relay, proxy: TestProxy):
    connection = parse_connection_string(relay.connection_string())
    client = ManagementClient(connection, proxy=proxy.proxy("ann", "hush"))
    assert (await client.get_entity("orders")).user_metadata == "text"
    assert len(proxy.targets) == 1


async def test_management_with_a_token_provider(relay: Relay):
    """connection manager 4.2: a right to listen is enough to read; the token is made for just this path."""
    connection = parse_connection_string(relay.connection_string("orders", rights=["Listen"]))
    plain = parse_connection_string(relay.connection_string("orders", rights=[]))
    audiences: list[str] = []

    async def provide(audience: str) -> str:
        audiences.append(audience)
        assert connection.key_name is not None
        assert connection.key is not None
        return make_token(audience, connection.key_name, connection.key, 4_000_000_000)

    client = ManagementClient(plain, token=provide)
    assert (await client.get_entity("orders")).user_metadata == "text"
    assert audiences == ["http://127.0.0.1/orders/"]
    with pytest.raises(AuthorizationFailed):
        await ManagementClient(plain, token=lambda _: "SharedAccessSignature sr=x&sig=eA%3d%3d&se=1&skn=x").get_entity(
            "orders"
        )
    with pytest.raises(ConfigError, match="neither a key"):
        await ManagementClient(plain).get_entity("orders")


async def test_a_proxy_that_refuses_names_itself(relay: Relay, proxy: TestProxy):
    """Done when doctor can tell: the error says that it was the proxy, and does not show who asked."""
    way = proxy.proxy("ann", "other-hush")
    with pytest.raises(ProxyFailed, match="does not take the user and password") as caught:
        async with relaycore.open_stream(relay.connection_string("orders"), proxy=way):
            pass
    assert isinstance(caught.value, ConnectionLost)
    assert "hush" not in str(caught.value)
    with pytest.raises(ProxyFailed, match="cannot connect to the proxy"):
        await ManagementClient(
            parse_connection_string(relay.connection_string()), proxy=Proxy("http", "127.0.0.1", 1)
        ).get_entity("orders")


async def test_a_listener_waits_for_its_proxy(relay: Relay):
    """A proxy that is away is waited for like a relay that is: never final."""
    async with relaycore.open_listener(
        relay.connection_string("orders"), proxy="http://127.0.0.1:1", wait_online=False
    ) as listener:
        async for event in listener.events():
            assert isinstance(event, relaycore.Reconnecting)
            assert "cannot connect to the proxy http://127.0.0.1:1" in str(event.cause)
            break
