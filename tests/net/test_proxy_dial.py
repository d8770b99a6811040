"""Dialling through proxies: honest ones, and those that refuse, stall, close or are something else."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from proxies import open_http_proxy, open_scripted_proxy, open_socks_proxy
from trio.testing import MockClock

from relaycore.errors import ConnectionLost
from relaycore.net.connect import open_transport, parse_ws_url
from relaycore.net.proxy import Proxy
from relaycore.net.proxy_dial import PROXY_TIMEOUT, ProxyFailed, open_tcp


@pytest.fixture(params=["127.0.0.1", "::1"])
async def echo(request: pytest.FixtureRequest, nursery: trio.Nursery) -> tuple[str, int]:
    """A server that sends back what it gets; host and port."""
    try:
        (listener,) = await trio.open_tcp_listeners(0, host=request.param)
    except OSError:
        pytest.skip("no IPv6 here")

    async def answer(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    nursery.start_soon(trio.serve_listeners, answer, [listener])
    return request.param, listener.socket.getsockname()[1]


async def check_echo(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def refusal(proxy: Proxy, host: str = "relay.example", port: int = 443) -> ProxyFailed:
    with pytest.raises(ProxyFailed) as caught:
        await open_tcp(host, port, proxy)
    assert "hush" not in str(caught.value)
    assert "aHVzaA" not in str(caught.value)
    return caught.value


async def test_without_a_proxy(echo: tuple[str, int]):
    await check_echo(await open_tcp(*echo))


async def test_nobody_there():
    """connection manager 8.11: what was tried, what came back."""
    with pytest.raises(ConnectionLost, match=r"^cannot connect to 127\.0\.0\.1:1: Connection refused$") as caught:
        await open_tcp("127.0.0.1", 1)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_name_that_is_none():
    with pytest.raises(ConnectionLost, match=r"cannot connect to x\.invalid:80: the name cannot be resolved"):
        await open_tcp("x.invalid", 80)
    with pytest.raises(ConnectionLost, match="cannot connect to"):
        await open_tcp("x" * 300, 80)


@pytest.mark.parametrize("open_proxy", [open_http_proxy, open_socks_proxy])
async def test_through_a_proxy(open_proxy, echo: tuple[str, int]):
    """connection manager 6 #14: HTTP CONNECT and SOCKS5."""
    async with open_proxy() as server:
        await check_echo(await open_tcp(*echo, server.proxy()))
        assert len(server.targets) == 1
        assert server.targets[0].endswith(f":{echo[1]}")


@pytest.mark.parametrize("open_proxy", [open_http_proxy, open_socks_proxy])
async def test_a_proxy_that_wants_to_know_who_asks(open_proxy, echo: tuple[str, int]):
    """connection manager 6 #14: with authentication; no error repeats the secret."""
    async with open_proxy("ann", "hush") as server:
        await check_echo(await open_tcp(*echo, server.proxy("ann", "hush")))
        error = await refusal(server.proxy(), *echo)
        assert error.is_authentication
        assert "wants a user and a password" in str(error)
        error = await refusal(server.proxy("ann", "hush2"), *echo)
        assert error.is_authentication
        assert "does not take the user and password" in str(error)


async def test_credentials_beyond_ascii(echo: tuple[str, int]):
    for open_proxy in (open_http_proxy, open_socks_proxy):
        async with open_proxy("ännchen", "päss:wörd") as server:
            await check_echo(await open_tcp(*echo, server.proxy("ännchen", "päss:wörd")))


async def test_an_open_socks_proxy_gets_no_password(echo: tuple[str, int]):
    async with open_socks_proxy() as server:
        await check_echo(await open_tcp(*echo, server.proxy("ann", "hush")))
        assert server.received == [b"\x00\x02"]


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("x" * 256, ""), ("x", "y" * 256)])
async def test_credentials_that_socks_cannot_carry(user: str, password: str):
    """1 to 255 bytes of user, up to 255 of password (RFC 1929 2)."""
    async with open_socks_proxy("other") as server:
        error = await refusal(server.proxy(user, password))
        assert error.is_authentication
        assert "longer than 255 bytes" in str(error)


async def test_the_name_is_left_to_the_proxy():
    """The proxy resolves: a name that is unknown here goes through as it is."""
    asked: list[bytes] = []

    async def http(stream: trio.SocketStream) -> None:
        asked.append(bytes(await stream.receive_some()))
        await stream.send_all(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n")
        await stream.receive_some()

    async def socks(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x05\x00")
        asked.append(bytes(await stream.receive_some()))
        await stream.send_all(b"\x05\x00\x00\x04" + bytes(18))
        await stream.receive_some()

    for kind, script in (("http", http), ("socks5", socks)):
        async with open_scripted_proxy(kind, script) as server:
            for host in ("only.behind.invalid", "bücher.invalid"):
                await trio.aclose_forcefully(await open_tcp(host, 443, server.proxy()))
    assert asked == [
        b"CONNECT only.behind.invalid:443 HTTP/1.1\r\nHost: only.behind.invalid:443\r\n\r\n",
        b"CONNECT xn--bcher-kva.invalid:443 HTTP/1.1\r\nHost: xn--bcher-kva.invalid:443\r\n\r\n",
        b"\x05\x01\x00\x03\x13only.behind.invalid\x01\xbb",
        b"\x05\x01\x00\x03\x15xn--bcher-kva.invalid\x01\xbb",
    ]


async def test_a_name_that_no_proxy_can_be_told():
    async with open_socks_proxy() as server:
        assert "longer than 255" in str(await refusal(server.proxy(), "x" * 256))
        assert "cannot be spelled" in str(await refusal(server.proxy(), "\ud800.example"))


async def test_an_address_goes_into_brackets(echo: tuple[str, int]):
    async with open_http_proxy() as server:
        await check_echo(await open_tcp(*echo, server.proxy()))
        host = f"[{echo[0]}]" if ":" in echo[0] else echo[0]
        assert server.targets == [f"{host}:{echo[1]}"]


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!",
            403,
            "refused to connect to relay.example:443: 403 For",
        ),
        (b"HTTP/1.1 502 Bad\x1b[31m\r\n\r\n", None, "does not answer as an HTTP proxy does"),
        (b"HTTP/1.0 502\r\n\r\n", 502, "refused to connect to relay.example:443: 502"),
        (b"HTTP/1.1 504 " + b"x" * 900 + b"\r\n\r\n", 504, "504 " + "x" * 200),
        (b"HTTP/1.1 101 Switching\r\n\r\n", 101, "refused to connect"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://x/?hush\r\n\r\n", 301, "301 Moved"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, None, "does not answer as an HTTP proxy does"),
        (b"SSH-2.0-x\r\n\r\n", None, "does not answer as an HTTP proxy does"),
        (b"\x05\xff", None, "does not answer as an HTTP proxy does"),
        (b"HTTP/1.1 200", None, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, None, "does not answer as an HTTP proxy does"),
        (b"", None, "closed the connection without an answer"),
    ],
)
async def test_answers_of_an_http_proxy(answer: bytes, status: int | None, text: str):
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.send_eof()
        async for _ in stream:
            pass

    async with open_scripted_proxy("http", script) as server:
        error = await refusal(server.proxy("ann", "hush"))
        assert text in str(error)
        assert f"the proxy http://127.0.0.1:{server.port} " in str(error)
        assert (error.status, error.is_authentication) == (status, False)
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("answers", "status", "text"),
    [
        ([b"\x05\x00", b"\x05\x02\x00\x01" + bytes(6)], 2, "not allowed by its rules (reply 2)"),
        ([b"\x05\x00", b"\x05\x04\x00\x01" + bytes(6)], 4, "host unreachable"),
        ([b"\x05\x00", b"\x05\x05\x00\x01" + bytes(6)], 5, "connection refused"),
        ([b"\x05\x00", b"\x05\x63\x00\x01" + bytes(6)], 99, "an unknown reply (reply 99)"),
        ([b"\x05\x00", b"\x05\x00\x00\x09" + bytes(6)], None, "does not answer as a SOCKS5 proxy does"),
        ([b"\x05\x00", b"\x04\x00\x00\x01" + bytes(6)], None, "does not answer as a SOCKS5 proxy does"),
        ([b"\x05\x00", b"\x05\x00\x00"], None, "closed the connection without an answer"),
        ([b"\x05\x00"], None, "closed the connection without an answer"),
        ([b"\x05\x01"], None, "does not answer as a SOCKS5 proxy does"),
        ([b"\x05\x02"], None, "does not answer as a SOCKS5 proxy does"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], None, "does not answer as a SOCKS5 proxy does"),
        ([b"\x05"], None, "closed the connection without an answer"),
        ([], None, "closed the connection without an answer"),
    ],
)
async def test_answers_of_a_socks_proxy(answers: list[bytes], status: int | None, text: str):
    """Reply codes, told in words (RFC 1928 6)."""

    async def script(stream: trio.SocketStream) -> None:
        for answer in answers:
            await stream.receive_some()
            await stream.send_all(answer)
        await stream.send_eof()
        async for _ in stream:
            pass

    async with open_scripted_proxy("socks5", script) as server:
        error = await refusal(server.proxy())
        assert text in str(error)
        assert (error.status, error.is_authentication) == (status, False)


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_an_answer_in_small_pieces(kind: str):
    whole = {"http": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", "socks5": b"\x05\x00\x05\x00\x00\x03\x02ab\x00\x00"}[kind]

    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for at in range(len(whole)):
            await stream.send_all(whole[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"behind it")

    async with open_scripted_proxy(kind, script) as server, await open_tcp("relay.example", 443, server.proxy()) as way:
        assert await way.receive_some() == b"behind it"


HEADS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(HEADS) - 6, len(HEADS) + 1))
@pytest.mark.parametrize("first", [b"", b"\r\n\r\n", b"\nHTTP/1.1 200 OK\r\n\r\n"])
async def test_an_endpoint_that_speaks_first_is_heard(cut: int, first: bytes):
    """RFC 9110 9.3.6: what stands behind the head is the endpoint's, however close it comes."""

    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(HEADS[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(HEADS[cut:] + first + b"220 ready")

    async with (
        open_scripted_proxy("http", script) as server,
        await open_tcp("relay.example", 443, server.proxy()) as way,
    ):
        assert b"".join([bytes(piece) async for piece in way]) == first + b"220 ready"


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_proxy_that_resets(kind: str):
    async def script(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await stream.receive_some(1)

    async with open_scripted_proxy(kind, script) as server:
        error = await refusal(server.proxy())
        assert "broke the connection off" in str(error) or "closed the connection" in str(error)


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_proxy_that_says_nothing(kind: str, autojump_clock: MockClock):
    """failures: a stalled proxy is named, in bounded time."""
    has_closed = trio.Event()

    async def script(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        has_closed.set()

    async with open_scripted_proxy(kind, script) as server:
        began = trio.current_time()
        error = await refusal(server.proxy())
        assert "did not connect to relay.example:443 within 15 s" in str(error)
        assert trio.current_time() - began == pytest.approx(PROXY_TIMEOUT)
        await has_closed.wait()


async def test_the_callers_deadline_stays_the_callers():
    async def script(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with open_scripted_proxy("http", script) as server:
        with trio.move_on_after(0.05) as scope:
            await open_tcp("relay.example", 443, server.proxy())
        assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_no_proxy_there(kind: str):
    error = await refusal(Proxy(kind, "127.0.0.1", 1, "ann", "hush"))
    assert str(error) == f"cannot connect to the proxy {kind}://127.0.0.1:1: Connection refused"
    error = await refusal(Proxy(kind, "p.invalid", 1))
    assert f"cannot connect to the proxy {kind}://p.invalid:1: the name cannot be resolved" in str(error)


@pytest.mark.parametrize("open_proxy", [open_http_proxy, open_socks_proxy])
async def test_tls_goes_on_to_the_host(open_proxy, nursery: trio.Nursery):
    """spec 4: the certificate must cover the host that is dialled, not the proxy."""
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        try:
            await tls.send_all(await tls.receive_some())
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(tls)

    nursery.start_soon(trio.serve_listeners, answer, [listener])
    url = parse_ws_url(f"wss://localhost:{listener.socket.getsockname()[1]}/")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with open_proxy() as server:
        await check_echo(await open_transport(url, context, server.proxy()))
        assert server.targets == [f"localhost:{url.port}"]
        with pytest.raises(ConnectionLost) as caught:
            await open_transport(url, None, server.proxy())
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
