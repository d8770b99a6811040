"""Unchanged clients reach unchanged servers by name: client, connect, relay, manager, server."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
from interop.edge_chain import Endpoint, run, run_chain
from interop.endpoint_servers import (
    find_program,
    run_dns,
    run_nginx,
    run_postgresql,
    run_redis,
    run_sshd,
)

from relaycore.testing import Relay, open_relay

SSH_OPTIONS: Final = ("-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q")

MIB: Final = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since sockets are in it, that other users may pass through, since PostgreSQL's data are."""
    with tempfile.TemporaryDirectory(prefix="rc-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as running:
        yield running


def inner(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(mode=0o711)
    return made


# Real servers and clients ---------------------------------------------------------------------------------------------


async def test_postgresql_with_psql_and_a_python_driver(relay: Relay, folder: Path):
    """A session of several queries, a large result, an error and a COPY, directly and through the relay."""
    script = (
        b"create temp table t as select i, repeat('x', i % 100) as text from generate_series(1, 20000) i;\n"
        b"select count(*), md5(string_agg(text, ',' order by i)) from t;\nselect 1/0;\ncopy t to stdout;\n"
    )
    async with run_postgresql(inner(folder, "pg")) as server:
        endpoint = Endpoint("orders-sql", "db.corp.example", server.port, in_metadata=True)
        secret = {"PGPASSWORD": server.secret, "PGSSLMODE": "disable", "PGCONNECT_TIMEOUT": "20"}
        psql = (find_program("psql"), "-X", "-A", "-t", "-U", "app", "-d", "postgres", "-p", str(server.port), "-h")
        async with run_chain(relay, [endpoint], inner(folder, "edge")) as chain:
            direct = await run(*psql, "127.0.0.1", input_=script, environ={**os.environ, **secret})
            relayed = await chain.by_name(*psql, endpoint.host, input_=script, environ=secret)
            assert relayed.stdout == direct.stdout
            assert len(direct.stdout) > 900_000
            assert b"division by zero" in relayed.stderr
            code = (
                "import psycopg, sys\n"
                "with psycopg.connect(host=sys.argv[1], port=sys.argv[2], user='app', dbname='postgres') as c:\n"
                "    with c.cursor() as cursor:\n"
                "        cursor.execute('select %s::int * 7', (6,))\n"
                "        print(cursor.fetchone()[0])\n"
                "        with cursor.copy('copy (select generate_series(1, 1000)) to stdout') as copy:\n"
                "            print(sum(int(row[0]) for row in copy.rows()))\n"
            )
            python = await chain.by_name(sys.executable, "-c", code, endpoint.host, str(server.port), environ=secret)
            assert python.stdout == b"42\n500500\n"


async def test_redis(relay: Relay, folder: Path):
    """Answers, a value of 5 MiB both ways, and a subscription that the server pushes to."""
    value = os.urandom(5 * MIB).hex().encode()
    async with run_redis(inner(folder, "redis")) as server:
        endpoint = Endpoint("cache", "cache.corp.example", server.port)
        async with run_chain(relay, [endpoint], inner(folder, "edge")) as chain:
            client = (find_program("redis-cli"), "-h", endpoint.host, "-p", str(server.port))
            assert (await chain.by_name(*client, "ping")).stdout == b"PONG\n"
            assert (await chain.by_name(*client, "-x", "set", "large", input_=value)).stdout == b"OK\n"
            assert (await chain.by_name(*client, "get", "large")).stdout == value + b"\n"
            mass = b"".join(b"SET key%d %d\r\n" % (i, i) for i in range(10_000))
            piped = await chain.by_name(*client, "--pipe", input_=mass)
            assert b"errors: 0, replies: 10000" in piped.stdout
            subscribed = await trio.lowlevel.open_process(
                chain.named(*client, "subscribe", "news"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
            async with subscribed.stdout or pytest.fail("no output"):
                try:
                    said = b""
                    while b"subscribe\nnews\n1\n" not in said:
                        said += await subscribed.stdout.receive_some()
                    assert (await chain.by_name(*client, "publish", "news", "hello")).stdout == b"1\n"
                    while b"message\nnews\nhello\n" not in said:
                        said += await subscribed.stdout.receive_some()
                finally:
                    subscribed.terminate()
                    with trio.CancelScope(shield=True):
                        await subscribed.wait()


async def test_openssh_copies_100_mib_and_has_a_shell(relay: Relay, folder: Path):
    """``scp`` both ways, a shell on a terminal, and ``relaycore connect open`` as ProxyCommand."""
    sent, back = folder / "sent", folder / "back"
    content = os.urandom(MIB) * 100
    sent.write_bytes(content)
    async with run_sshd(inner(folder, "ssh")) as server:
        endpoint = Endpoint("shell", "host.corp.example", server.port)
        options = (*SSH_OPTIONS, "-i", str(server.folder / "id"))
        async with run_chain(relay, [endpoint], inner(folder, "edge")) as chain:
            scp = (find_program("scp"), *options, "-P", str(server.port))
            await chain.by_name(*scp, str(sent), f"{endpoint.host}:{folder}/there")
            await chain.by_name(*scp, f"{endpoint.host}:{folder}/there", str(back))
            assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(content).digest()

            ssh = (find_program("ssh"), *options, "-p", str(server.port))
            typed = b"PS1=; stty -echo\ntty | sed s,[0-9]*$,N,\necho $((6*7)) answers\nexit 3\n"
            shell = await chain.by_name(*ssh, "-tt", endpoint.host, "/bin/sh", input_=typed, check=False)
            assert shell.returncode == 3
            assert b"/dev/pts/N\r\n" in shell.stdout
            assert b"42 answers\r\n" in shell.stdout

            proxy = f"ProxyCommand={sys.executable} -m relaycore connect open shell"
            by_proxy = await run(
                find_program("ssh"), *options, "-o", proxy, "anything", "sha256sum",
                input_=content[: 5 * MIB], environ=chain.environ,
            )  # fmt: skip
            assert by_proxy.stdout.split()[0].decode() == hashlib.sha256(content[: 5 * MIB]).hexdigest()


async def test_a_web_site_of_nginx(relay: Relay, folder: Path):
    """The page and a large file by name, and through the SOCKS5 and HTTP proxy port, without the name."""
    async with run_nginx(inner(folder, "web")) as server:
        endpoint = Endpoint("site", "www.corp.example", server.port)
        general = '[connect.proxy]\nlisten = "127.0.0.1:0"\n'
        async with run_chain(relay, [endpoint], inner(folder, "edge"), general=general) as chain:
            curl = (find_program("curl"), "-sS", "--fail", "--max-time", "30")
            url = f"http://{endpoint.host}:{server.port}"
            direct = await run(*curl, "-i", f"http://127.0.0.1:{server.port}/index.html")
            relayed = await chain.by_name(*curl, "-i", f"{url}/index.html")
            assert _without_date(relayed.stdout) == _without_date(direct.stdout)
            found = await chain.by_name(*curl, f"{url}/megabyte")
            assert found.stdout == await trio.to_thread.run_sync((server.folder / "megabyte").read_bytes)
            missing = await chain.by_name(*curl, f"{url}/nothing", check=False)
            assert missing.returncode == 22

            proxy = await chain.proxy_port()
            megabyte = found.stdout
            for way in (
                ("--socks5-hostname", proxy),
                ("--proxy", f"http://{proxy}"),
                ("--proxytunnel", "--proxy", proxy),
            ):
                answer = await run(*curl, "--noproxy", "", *way, "-i", f"{url}/index.html")  # the name is nowhere else
                assert answer.stdout.endswith(direct.stdout.partition(b"\r\n\r\n")[2]), way
                assert (await run(*curl, "--noproxy", "", *way, f"{url}/megabyte")).stdout == megabyte, way
            unknown = await run(*curl, "--socks5-hostname", proxy, "http://other.corp.example/", check=False)
            assert unknown.returncode == 97


def _without_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.splitlines() if not line.startswith(b"Date:")]


async def test_dns_queries_pass_as_datagrams(relay: Relay, folder: Path):
    """UDP in the azbridge framing: several programs ask a name server behind the relay at once."""
    async with run_dns(folder) as server:
        port = f'[[hcm.connection.port]]\nname = "dns"\nendpoint = "127.0.0.1:{server.port}"\nudp = true\n'
        manager = f'profile = "azbridge"\n{port}'
        endpoint = Endpoint(
            "resolver", "ns.corp.example", server.port, manager=manager, fixed_endpoint=False,
            connect='profile = "azbridge"\nport_name = "dns"\n', listen=(f"udp:auto:{server.port}",), tcp=False,
        )  # fmt: skip
        async with run_chain(relay, [endpoint], inner(folder, "edge")) as chain:
            address = chain.address(endpoint)
            answered = 0

            async def ask(number: int) -> None:
                nonlocal answered
                query = struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + b"\x03www\x04corp\0" + struct.pack(">2H", 1, 1)
                with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    await sock.connect((address, server.port))
                    for _ in range(20):
                        await sock.send(query)
                        answer = await sock.recv(4_096)
                        assert answer[:2] == query[:2]
                        assert answer.endswith(b"\xc0\x00\x02\x07")
                        answered += 1

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(ask, number)
            assert answered == 100


# What TCP looks like from both ends -----------------------------------------------------------------------------------


async def _read_to_end(sock: trio.socket.SocketType) -> str:
    """What came, and how it ended."""
    digest, size = hashlib.sha256(), 0
    try:
        while data := await sock.recv(65_536):
            digest.update(data)
            size += len(data)
    except ConnectionResetError:
        return "reset"  # how much of the rest arrives is luck, with TCP too
    return f"{size} bytes {digest.hexdigest()[:8]}, then the end"


async def _send(sock: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


async def _reset(sock: trio.socket.SocketType) -> str:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return "has reset"


MIBS: Final = os.urandom(MIB) * 3


class Talk:
    """Two sides of a conversation over TCP; each returns what it saw."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        raise NotImplementedError

    async def server(self, sock: trio.socket.SocketType) -> str:
        raise NotImplementedError


class ReplyBehindTheEnd(Talk):
    """The client ends its direction, and the answer comes afterwards: what many tunnels lose."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        await _send(sock, MIBS)
        sock.shutdown(socket.SHUT_WR)
        return await _read_to_end(sock)

    async def server(self, sock: trio.socket.SocketType) -> str:
        seen = await _read_to_end(sock)
        await _send(sock, MIBS[::-1])
        return seen


class ServerEndsFirst(Talk):
    """The server says all that it has and ends its direction; the client goes on sending."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        seen = await _read_to_end(sock)
        await _send(sock, MIBS)
        sock.shutdown(socket.SHUT_WR)
        return seen

    async def server(self, sock: trio.socket.SocketType) -> str:
        await _send(sock, MIBS[:MIB])
        sock.shutdown(socket.SHUT_WR)
        return await _read_to_end(sock)


class NothingAtAll(Talk):
    """Both end their directions without a byte."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        sock.shutdown(socket.SHUT_WR)
        return await _read_to_end(sock)

    async def server(self, sock: trio.socket.SocketType) -> str:
        sock.shutdown(socket.SHUT_WR)
        return await _read_to_end(sock)


class ClientResets(Talk):
    """The client breaks off; the server must not take that for an end of data."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        await _send(sock, b"half of someth")
        await sock.recv(1)
        return await _reset(sock)

    async def server(self, sock: trio.socket.SocketType) -> str:
        await sock.recv(14)
        await _send(sock, b"!")
        return await _read_to_end(sock)


class ServerResets(Talk):
    """The server breaks off; the client must not take that for an end of data."""

    async def client(self, sock: trio.socket.SocketType) -> str:
        await _send(sock, b"?")
        return await _read_to_end(sock)

    async def server(self, sock: trio.socket.SocketType) -> str:
        await sock.recv(1)
        return await _reset(sock)


@pytest.mark.parametrize("profile", ["raw", "azbridge"])
async def test_ends_and_resets_look_as_they_do_without_a_relay(relay: Relay, folder: Path, profile: str):
    """Every order of ends, by the same two sides directly and through the chain: both see the same."""
    listening = trio.socket.socket()
    await listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]

    async def hold(talk: Talk, address: str) -> list[str]:
        seen = ["", ""]

        async def client() -> None:
            with trio.socket.socket() as sock:
                await sock.connect((address, port))
                seen[0] = await talk.client(sock)

        async def server() -> None:
            sock, _ = await listening.accept()
            with sock:
                seen[1] = await talk.server(sock)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client)
                nursery.start_soon(server)
        return seen

    no_probe = '[hcm.connection.health]\nprobe = "none"\n'  # it would be a conversation too
    named = f'[[hcm.connection.port]]\nname = "app"\nendpoint = "127.0.0.1:{port}"\n'
    ports = f'profile = "azbridge"\n{no_probe}{named}'
    endpoint = (
        Endpoint("app", "app.corp.example", port, manager=no_probe)
        if profile == "raw"
        else Endpoint(
            "app",
            "app.corp.example",
            port,
            manager=ports,
            connect='profile = "azbridge"\nport_name = "app"\n',
            fixed_endpoint=False,
        )
    )
    with listening:
        async with run_chain(relay, [endpoint], inner(folder, "edge")) as chain:
            address = chain.address(endpoint)
            for talk in (ReplyBehindTheEnd(), ServerEndsFirst(), NothingAtAll(), ClientResets(), ServerResets()):
                direct = await hold(talk, "127.0.0.1")
                assert await hold(talk, address) == direct, type(talk).__doc__
