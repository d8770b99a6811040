"""Connections to an origin, and its URL."""

from __future__ import annotations

import pytest
import trio
from origins import open_origin
from trio.testing import MockClock

from relaycore.edge.origin import Origin, OriginError, OriginPool, parse_origin_url
from relaycore.edge.target.failure import DialFailed
from relaycore.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:3000", Origin(False, "127.0.0.1", 3000, "127.0.0.1:3000", "")),
        ("HTTP://localhost/", Origin(False, "localhost", 80, "localhost", "")),
        ("https://[::1]:8443/a/b/", Origin(True, "::1", 8443, "[::1]:8443", "/a/b")),
        ("https://my_app.test/%20", Origin(True, "my_app.test", 443, "my_app.test", "/%20")),
    ],
)
def test_urls(url: str, origin: Origin):
    assert parse_origin_url(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:3000",
        "127.0.0.1:3000",
        "ws://h",
        "http://",
        "http://h:0",
        "http://h:70000",
        "http://h:x",
        "http://u:p@h/",
        "http://h/?q",
        "http://h/#f",
        "http://h/a b",
        "http://::1/",
    ],
)
def test_what_is_no_url_of_an_origin(url: str):
    with pytest.raises(ConfigError, match=r"such as http://127\.0\.0\.1:3000"):
        parse_origin_url(url)


async def test_the_pool_is_bounded_in_number_and_time(autojump_clock: MockClock):
    async with open_origin() as origin:
        pool = OriginPool(parse_origin_url(origin.url), None, idle_timeout=4, max_idle=2)
        used = []
        for _ in range(3):
            connection = await pool.open()
            connection.begin("GET")
            await connection.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", is_last=True)
            assert (await connection.receive_head()).status == 200
            assert await connection.receive_body() == b"ok"
            assert await connection.receive_body() == b""
            used.append(connection)
        for connection in used:
            await pool.give_back(connection)
        assert pool.idle == 2
        assert await pool.take_idle() is used[1]
        await trio.sleep(2)
        await pool.give_back(used[1])
        await trio.sleep(2.5)
        await pool.sweep()
        assert pool.idle == 1
        await trio.sleep(2)
        assert await pool.take_idle() is None
        await pool.aclose()


async def test_how_the_origin_is_reached_may_be_another_s_business():
    """Its failures keep their status; what it dials is what carries the request."""
    async with open_origin() as origin:

        async def dial() -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", origin.port)

        pool = OriginPool(parse_origin_url("http://elsewhere.invalid"), None, dial=dial)
        connection = await pool.open()
        await connection.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", is_last=True)
        assert (await connection.receive_head()).status == 200
        await connection.aclose()

    async def refuse() -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise DialFailed(403, "elsewhere.invalid may not be published", "policy")

    pool = OriginPool(parse_origin_url("http://elsewhere.invalid"), None, dial=refuse)
    with pytest.raises(OriginError, match="may not be published") as caught:
        await pool.open()
    assert caught.value.http_status == 403


async def test_a_connection_in_mid_answer_is_not_kept():
    async with open_origin() as origin:
        pool = OriginPool(parse_origin_url(origin.url), None)
        connection = await pool.open()
        await connection.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", is_last=True)
        await connection.receive_head()
        await pool.give_back(connection)
        assert pool.idle == 0
