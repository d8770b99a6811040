"""The HTTP port for metrics and health, over real sockets."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from relaycore.edge.config.settings import ListenAt
from relaycore.edge.control import http_status as module
from relaycore.edge.control.http_status import Page, StatusPortError, serve_pages
from relaycore.errors import ConfigError
from relaycore.net.tasks import alone


def broken():
    raise KeyError("SECRET")


PAGES = {
    "/healthz": lambda: Page("ok\n"),
    "/readyz": lambda: Page("not yet\n", 503),
    "/metrics": lambda: Page("# ümlaut\n", content_type="text/plain; version=0.0.4"),
    "/broken": broken,
}


@asynccontextmanager
async def serving(listen=None):
    with alone():
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(partial(serve_pages, listen or ListenAt("tcp", "127.0.0.1", 0), PAGES))
            yield addresses
            nursery.cancel_scope.cancel()


async def connect(addresses):
    host, _, port = addresses[0].rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def ask(addresses, data):
    async with await connect(addresses) as stream:
        await stream.send_all(data)
        kept = b""
        async for piece in stream:
            kept += piece
        return kept


def get(path, method="GET"):
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("path", "line", "body"),
    [
        ("/healthz", b"200 OK", b"ok\n"),
        ("/healthz?verbose=1", b"200 OK", b"ok\n"),
        ("/readyz", b"503 Service Unavailable", b"not yet\n"),
        ("/metrics", b"200 OK", "# ümlaut\n".encode()),
        ("/", b"404 Not Found", b"There is nothing here. There is: /healthz /readyz /metrics /broken\n"),
        ("/broken", b"500 Internal Server Error", b"internal error: KeyError\n"),
    ],
)
async def test_pages(path, line, body, caplog):
    async with serving() as addresses:
        answer = await ask(addresses, get(path))
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + line + b"\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert found == body
    if path == "/metrics":
        assert b"Content-Type: text/plain; version=0.0.4\r\n" in head


async def test_head_has_the_length_and_no_body():
    async with serving() as addresses:
        answer = await ask(addresses, get("/healthz", "HEAD"))
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_other_methods_are_told_which_there_are():
    async with serving() as addresses:
        answer = await ask(addresses, get("/healthz", "POST"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in answer


async def test_a_connection_serves_many_requests():
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving() as addresses:
        answer = await ask(addresses, request * 3 + get("/readyz"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"Connection: close") == 1
    assert answer.endswith(b"not yet\n")


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x00\r\n\r\n", b"GET /healthz HTTP/1.1\r\n\r\n", b"GET " + b"x" * 20_000]
)
async def test_what_is_no_request_is_refused(data):
    async with serving() as addresses:
        assert (await ask(addresses, data)).startswith(b"HTTP/1.1 4")


async def test_a_body_is_not_read():
    async with serving() as addresses:
        answer = await ask(addresses, b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize(("data", "at"), [(b"", 75), (b"GET /", 10), (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 75)])
async def test_nobody_is_waited_for_longer_than_this(data, at, autojump_clock):
    async with serving() as addresses:
        await ask(addresses, data)
        assert at <= trio.current_time() < at + 11


async def test_clients_have_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIENTS", 1)
    async with serving() as addresses, await connect(addresses) as first:
        await first.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await first.receive_some()).startswith(b"HTTP/1.1 200")
        async with await connect(addresses) as second:
            assert await second.receive_some() == b""


async def test_its_unix_socket_has_an_owner(tmp_path):
    path = tmp_path / "pages"
    at = ListenAt("unix", path=str(path), mode=0o660, owner=str(os.getuid()), group=str(os.getgid()))
    async with serving(at):
        assert path.stat().st_mode & 0o777 == 0o660
    at = ListenAt("unix", path=str(path), owner="nobody-here")
    with pytest.raises(ConfigError, match="there is no user 'nobody-here'"):
        async with serving(at):
            pass
    assert not path.exists()


async def test_it_may_be_a_unix_socket(tmp_path):
    path = tmp_path / "metrics.sock"
    async with serving(ListenAt("unix", path=str(path), mode=0o660)) as addresses:
        assert addresses == [f"unix:{path}"]
        assert path.stat().st_mode & 0o777 == 0o660
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(get("/healthz"))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_port_that_is_taken_is_said_so():
    async with serving() as addresses:
        port = int(addresses[0].rpartition(":")[2])
        with pytest.raises(StatusPortError, match="another program listens there") as caught:
            await serve_pages(ListenAt("tcp", "127.0.0.1", port), {})
        assert caught.value.exit_code == 9


async def test_an_address_that_is_not_ours_is_said_so():
    with pytest.raises(ConfigError, match="an address of this machine"):
        await serve_pages(ListenAt("tcp", "203.0.113.1", 0), {})
