"""The proxy port with real sockets: every way to ask, every refusal, and real programs through a real relay."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from links import PORT, echo, open_link, open_server, receive_all, reset, running
from trio.testing import MockClock

from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import Forward, ListenAt, ProxyPortSettings, RelaySettings
from relaycore.edge.connect.proxy_port import (
    REQUEST_TIMEOUT,
    ProxyPort,
    proxy_environment,
    serve_proxy_port,
)
from relaycore.errors import ConfigError, ConnectionLost, GatewayTimeout, NoListener, Refused, ServerBusy
from relaycore.net.proxy import Proxy
from relaycore.net.proxy_dial import ProxyFailed, open_tcp

ANY = ListenAt("tcp", "127.0.0.1", 0)
FORWARD = Forward("sql", RelaySettings("", "sb://relay.example/"), "sql", hosts=("db.test",), port=1433)
GREETING = b"\x05\x01\x00"
TO_DB = b"\x05\x01\x00\x03\x07db.test\x05\x99"
GRANTED = b"\x05\x00\x00\x01" + bytes(6)


def lookup(host: str, port: int) -> Forward | None:
    return FORWARD if (host, port) == ("db.test", 1433) else None


async def join_echo(stream, forward, *, early=b"", on_open=None, on_refused=None) -> None:
    """Stands for a forwarder: greets as the endpoint, then sends back what comes."""
    assert forward is FORWARD
    await on_open()
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"<" + early)
            async for data in stream:
                await stream.send_all(data)
            await stream.send_all(b">")


def refusing(error: Exception):
    async def join(stream, forward, *, early=b"", on_open=None, on_refused=None) -> None:
        await on_refused(error)
        await stream.aclose()

    return join


class Port:
    def __init__(self, address: tuple[str, int], counts: Counter[tuple[str, str]], events: list[str]) -> None:
        self.address = address
        self.counts = counts
        self.events = events

    async def ask(self, *data: bytes) -> trio.SocketStream:
        stream = await trio.open_tcp_stream(*self.address)
        for piece in data:
            await stream.send_all(piece)
        return stream

    def proxy(self, kind: str, user: str | None = None, password: str | None = None) -> Proxy:
        return Proxy(kind, *self.address, user, password)

    @property
    def shown(self) -> str:
        return "{}:{}".format(*self.address)


@contextlib.asynccontextmanager
async def open_port(join=join_echo, lookup=lookup, users=None, bypass=(), offered=tuple) -> AsyncIterator[Port]:
    counts: Counter[tuple[str, str]] = Counter()
    events: list[str] = []
    settings = ProxyPortSettings(ANY, None if users is None else Secret("inline", users), bypass)
    async with trio.open_nursery() as nursery:
        listener = await nursery.start(
            partial(
                serve_proxy_port,
                settings,
                lookup,
                join,
                offered=offered,
                on_event=lambda kind, text: events.append(f"{kind}: {text}"),
                counts=counts,
            )
        )
        yield Port(listener.sockets[0].socket.getsockname(), counts, events)
        nursery.cancel_scope.cancel()


async def receive_exactly(stream: trio.SocketStream, data: bytes) -> None:
    got = b""
    while len(got) < len(data):
        piece = await stream.receive_some(len(data) - len(got))
        assert piece, got
        got += piece
    assert got == data


# Ways to ask ---------------------------------------------------------------------------------------------------------


async def test_socks5():
    """RFC 1928: and the bytes sent too early go to the target."""
    async with open_port() as port, await port.ask(GREETING + TO_DB + b"hello") as stream:
        await receive_exactly(stream, b"\x05\x00" + GRANTED + b"<hello")
        await stream.send_eof()
        assert await receive_all(stream) == b">"
        assert port.counts == {("socks5", "ok"): 1}


async def test_socks4a():
    async with open_port() as port, await port.ask(b"\x04\x01\x05\x99\0\0\0\x01me\0db.test\0hello") as stream:
        await receive_exactly(stream, b"\x00\x5a" + bytes(6) + b"<hello")


async def test_connect():
    """RFC 9110 9.3.6."""
    async with open_port() as port:
        async with await port.ask(b"CONNECT db.test:1433 HTTP/1.1\r\nHost: db.test\r\n\r\nhello") as stream:
            await receive_exactly(stream, b"HTTP/1.1 200 Connection established\r\n\r\n<hello")
        assert port.counts == {("connect", "ok"): 1}


async def test_a_whole_url():
    """RFC 9112 3.2.2."""

    def lookup_web(host: str, port: int) -> Forward | None:
        return FORWARD if (host, port) == ("db.test", 80) else None

    request = b"POST http://db.test/x HTTP/1.1\r\nHost: db.test\r\nContent-Length: 5\r\n\r\nhello"
    async with open_port(lookup=lookup_web) as port, await port.ask(request) as stream:
        rewritten = b"POST /x HTTP/1.1\r\nHost: db.test\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        await receive_exactly(stream, b"<" + rewritten)
        assert port.counts == {("url", "ok"): 1}


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_our_own_client_understands_it(kind: str):
    async with open_port(users="ann:hush") as port:
        async with await open_tcp("db.test", 1433, port.proxy(kind, "ann", "hush")) as stream:
            await receive_exactly(stream, b"<")
        with pytest.raises(ProxyFailed) as caught:
            await open_tcp("db.test", 1433, port.proxy(kind, "ann", "hash"))
        assert caught.value.is_authentication
        with pytest.raises(ProxyFailed) as caught:
            await open_tcp("db.test", 1434, port.proxy(kind, "ann", "hush"))
        assert caught.value.status == {"http": 403, "socks5": 2}[kind]
        name = {"http": "connect", "socks5": "socks5"}[kind]
        assert port.counts == {(name, "ok"): 1, (name, "authentication"): 1, (name, "not-allowed"): 1}
        assert "hash" not in " ".join(port.events)


# Refusals ------------------------------------------------------------------------------------------------------------


async def test_only_what_is_configured():
    """connection manager 8.6: a configured host:port, else SOCKS "not allowed", or 403 with the list."""
    async with open_port(offered=lambda: ["db.test:1433"]) as port:
        async with await port.ask(GREETING + TO_DB.replace(b"db", b"dc")) as stream:
            assert await receive_all(stream) == b"\x05\x00\x05\x02\x00\x01" + bytes(6)
        async with await port.ask(b"CONNECT other.test:22 HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
            answer = await receive_all(stream)
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        text = "other.test:22 is none of the configured endpoints; there are: db.test:1433"
        assert answer.endswith(f"relaycore: {text}\n".encode())
        assert port.events[1] == f"proxy-refused: {text}"


async def test_a_long_list_is_cut():
    async with (
        open_port(offered=lambda: [f"h{number}.test:1" for number in range(99)]) as port,
        await port.ask(b"CONNECT other.test:22 HTTP/1.1\r\nHost: x\r\n\r\n") as stream,
    ):
        assert (await receive_all(stream)).endswith(b"h19.test:1 and more\n")


async def test_what_makes_no_sense():
    async with open_port() as port:
        async with await port.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
            assert b"this is a proxy" in await receive_all(stream)
        async with await port.ask(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6)) as stream:
            assert await receive_all(stream) == b"\x05\x00\x05\x07\x00\x01" + bytes(6)
        assert port.counts == {("none", "malformed"): 1, ("socks5", "malformed"): 1}


@pytest.mark.parametrize(
    ("error", "reply", "status", "result"),
    [
        (NoListener("nobody"), 4, 503, "unreachable"),
        (ServerBusy("endpoint down"), 4, 503, "unreachable"),
        (ConnectionLost("no route"), 4, 503, "unreachable"),
        (Refused("refused the connection", http_status=502), 5, 502, "refused"),
        (GatewayTimeout("too slow"), 6, 504, "timed-out"),
        (Refused("no such right", http_status=403), 1, 502, "failed"),
        (OSError(24, "Too many open files"), 1, 502, "failed"),
    ],
)
async def test_a_forward_that_cannot_be_reached(error: Exception, reply: int, status: int, result: str):
    """connection manager 8.11: the program learns what came back, as far as its protocol has words for it."""
    async with open_port(refusing(error)) as port:
        async with await port.ask(GREETING + TO_DB) as stream:
            assert await receive_all(stream) == b"\x05\x00" + bytes((5, reply, 0, 1)) + bytes(6)
        async with await port.ask(b"CONNECT db.test:1433 HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
            answer = await receive_all(stream)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"relaycore: sql cannot be reached: " in answer
        assert port.counts == {("socks5", result): 1, ("connect", result): 1}


async def test_programs_that_leave_do_no_harm():
    async with open_port() as port:
        for data in (b"", b"\x05", GREETING, GREETING + TO_DB[:6], b"CONNECT db"):
            await (await port.ask(data)).aclose()
            await reset(await port.ask(data))
        await reset(await port.ask(GREETING + TO_DB))
        async with await port.ask(GREETING + TO_DB) as stream:
            await receive_exactly(stream, b"\x05\x00" + GRANTED + b"<")


async def test_a_program_that_says_nothing(autojump_clock: MockClock):
    """failures: half-open programs hold nothing for ever."""
    left, right = trio.socket.socketpair()
    port = ProxyPort(ProxyPortSettings(ANY), lookup, join_echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.serve, trio.SocketStream(left))
        began = trio.current_time()
        async with trio.SocketStream(right) as program:
            await program.send_all(b"\x05\x01")
            assert await program.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(REQUEST_TIMEOUT)
    assert port.counts == {("none", "timed-out"): 1}


async def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match=r"connect\.proxy\.listen"):
        await serve_proxy_port(ProxyPortSettings(), lookup, join_echo)
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        await serve_proxy_port(ProxyPortSettings(ANY, Secret("inline", "hush")), lookup, join_echo)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        await serve_proxy_port(ProxyPortSettings(ANY, bypass=("nonsense",)), lookup, join_echo)
    async with open_port() as port:
        with pytest.raises(ConfigError, match="another program listens there"):
            await serve_proxy_port(ProxyPortSettings(ListenAt("tcp", *port.address)), lookup, join_echo)


# Around the relay ----------------------------------------------------------------------------------------------------


async def test_bypass_is_dialled_directly():
    """connection manager 8.6: one proxy setting serves a program that talks to other hosts too."""
    async with open_server(echo) as (host, number), open_port(bypass=("127.0.0.0/8:*", "*.test:1")) as port:
        async with await open_tcp(host, number, port.proxy("socks5")) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await receive_all(stream) == b"hello"
        async with await open_tcp("localhost", number, port.proxy("http")) as stream:
            await stream.send_all(b"hello")
            await receive_exactly(stream, b"hello")
        assert port.counts == {("socks5", "direct"): 1, ("connect", "direct"): 1}


async def test_configured_names_go_before_bypass():
    async with open_port(bypass=("*:*",)) as port, await open_tcp("db.test", 1433, port.proxy("http")) as stream:
        await receive_exactly(stream, b"<")


async def test_bypass_failures_are_told():
    async with open_port(bypass=("127.0.0.1:1", "*.invalid:*")) as port:
        for host, number, status, words in (
            ("127.0.0.1", 1, 502, b"refused the connection"),
            ("x.invalid", 80, 503, b"no such name"),
            ("127.0.0.2", 1, 403, b"none of the configured endpoints"),
        ):
            async with await port.ask(f"CONNECT {host}:{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as stream:
                answer = await receive_all(stream)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert words in answer
    assert port.counts == {("connect", "refused"): 1, ("connect", "unreachable"): 1, ("connect", "not-allowed"): 1}


# Real programs, a real relay -----------------------------------------------------------------------------------------


async def serve_pages(stream: trio.SocketStream) -> None:
    """An HTTP server of one page per connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = await stream.receive_some()
        if not piece:
            return
        head += piece
    body = b"you asked: " + head.partition(b"\r\n")[0]
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await stream.aclose()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "options",
    [
        ["--socks5-hostname", "{}"],
        ["--socks4a", "{}"],
        ["--proxy", "http://{}"],
        ["--proxy", "http://{}", "--proxytunnel"],
        ["--proxy", "socks5h://{}"],
    ],
)
async def test_curl_reaches_a_page_through_the_relay(options: list[str]):
    """connection manager 7: curl honours all of these."""
    async with open_link() as link, open_server(serve_pages) as endpoint:
        await link.publish("web", endpoint)
        async with (
            running(link.forward("web"), listens=False) as forwarder,
            open_port(forwarder.join, forwarder.lookup) as port,
        ):
            words = [word.format(port.shown) for word in options]
            done = await trio.run_process(
                ["curl", "-sS", "--noproxy", "", "--max-time", "30", *words, f"http://web.test:{PORT}/page"],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            assert (done.stdout, done.stderr) == (b"you asked: GET /page HTTP/1.1", b"")
            assert list(port.counts.values()) == [1]
            assert [result for _, result in port.counts] == ["ok"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_learns_that_nobody_listens():
    async with open_link() as link:
        await link.relay.create_entity("web")
        async with (
            running(link.forward("web"), listens=False) as forwarder,
            open_port(forwarder.join, forwarder.lookup) as port,
        ):
            done = await trio.run_process(
                ["curl", "-sS", "--noproxy", "", "--proxy", f"http://{port.shown}", f"http://web.test:{PORT}/"],
                capture_stdout=True,
                check=False,
            )
            assert done.stdout.startswith(b"relaycore: web cannot be reached: 404 ")


async def test_a_large_transfer_and_the_reply_after_a_half_close():
    """connection manager 8.6: SOCKS5 through the relay; the end of data is passed on alone."""
    blob = bytes(range(256)) * 4_000

    async def count(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"%d bytes" % len(await receive_all(stream)))

    async with open_link() as link, open_server(count) as endpoint:
        await link.publish("sql", endpoint)
        async with (
            running(link.forward("sql"), listens=False) as forwarder,
            open_port(forwarder.join, forwarder.lookup) as port,
            await open_tcp("sql.test", PORT, port.proxy("socks5")) as program,
        ):
            await program.send_all(blob)
            await program.send_eof()
            assert await receive_all(program) == b"1024000 bytes"


async def test_variables():
    """connection manager 8.6: `env` prints proxy variables; names are left to the proxy."""
    found = proxy_environment("127.0.0.1:1080")
    assert found["ALL_PROXY"] == found["all_proxy"] == "socks5h://127.0.0.1:1080"
    assert found["HTTPS_PROXY"] == found["http_proxy"] == "http://127.0.0.1:1080"


async def test_what_goes_wrong_inside_costs_one_program(caplog):
    """failures: memory, descriptors or threads may be refused to a single connection."""
    failures: list[Exception] = [MemoryError()]

    async def join_later(*args, **options) -> None:
        if failures:
            raise failures.pop()
        await join_echo(*args, **options)

    async with open_port(join_later) as port:
        async with await port.ask(GREETING, TO_DB) as stream:
            await receive_exactly(stream, b"\x05\x00")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        async with await port.ask(GREETING, TO_DB) as stream:
            await receive_exactly(stream, b"\x05\x00" + GRANTED + b"<")
        assert port.events == ["lost: a connection at the proxy port ended with an internal error; the log has it"]
    assert "a program at the proxy port" in caplog.text
