from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import urllib.request

import pytest
import trio
from run_world import ANSWER, NAME, open_run_world
from unprivileged import unprivileged

from relaycore.edge.config.settings import ConnectSettings, Forward, RelaySettings
from relaycore.edge.run.redirect import redirect
from relaycore.errors import ConfigError

LITERAL = "192.0.2.8"
URL = f"http://{NAME}:18080/"
HEAD = b"GET / HTTP/1.0\r\n\r\n"


def through_urllib() -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(URL, timeout=10) as answer:
        return answer.read().decode()


def through_socket(host: str = NAME) -> str:
    """``connect`` with a name, which C looks up, or with a literal address."""
    with socket.socket() as connection:
        connection.settimeout(10)
        connection.connect((host, 18_080))
        connection.sendall(HEAD)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return answer.decode().rpartition("\r\n\r\n")[2]


def through_asyncio() -> str:
    async def ask() -> str:
        reader, writer = await asyncio.open_connection(NAME, 18_080)
        writer.write(HEAD)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer.decode().rpartition("\r\n\r\n")[2]

    return asyncio.run(ask())


def through_trio() -> str:
    async def ask() -> str:
        async with await trio.open_tcp_stream(NAME, 18_080) as stream:
            await stream.send_all(HEAD)
            answer = b"".join([data async for data in stream])
        return answer.decode().rpartition("\r\n\r\n")[2]

    return trio.run(ask)


@pytest.mark.parametrize(
    "way",
    [through_urllib, through_socket, lambda: through_socket(LITERAL), through_asyncio, through_trio],
    ids=["urllib", "socket", "literal", "asyncio", "trio"],
)
async def test_whatever_uses_sockets_reaches_a_name(way):
    """spec 7 of the connection manager: a hook on getaddrinfo and connect serves all of these."""
    async with open_run_world() as world:
        settings = world.settings(port=18_080, hosts=(NAME, LITERAL))

        def use() -> str:
            with redirect(settings):
                return way()

        assert await trio.to_thread.run_sync(use) == ANSWER


DIAL = "import socket, sys; socket.create_connection((sys.argv[1], 18080)).recv(1)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
async def test_another_user_does_not_reach_its_addresses(monkeypatch):
    other = unprivileged(sys.executable, "-c", DIAL)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # root serves everybody, but is served by everybody, too
    async with open_run_world() as world:

        def use() -> tuple[str, bytes]:
            with redirect(world.settings(port=18_080)):
                address = socket.gethostbyname(NAME)
                done = subprocess.run([*other, address], stderr=subprocess.PIPE, check=False)
                return through_socket(), done.stderr

        answer, said = await trio.to_thread.run_sync(use)
        assert answer == ANSWER
        assert b"ConnectionResetError" in said


def test_a_suffix_that_covers_the_relay_leaves_it_alone(monkeypatch):
    """Our own thread looks the relay up in this process, too, and would reach its own listener."""
    asked: list[object] = []
    look_up = socket.getaddrinfo

    def know_no_relay(host, *args, **options):
        asked.append(host)
        if host in ("relay.corp.example", b"relay.corp.example"):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_no_relay)
    relay = RelaySettings("", "sb://Relay.corp.example:18080/")
    forward = Forward("sql", relay, "sql", hosts=("*.corp.example",), port=18_080)
    with redirect(ConnectSettings((forward,))), socket.create_connection(("db.corp.example", 18_080), 10) as program:
        with pytest.raises(ConnectionResetError):
            program.recv(1)
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("relay.corp.example", 18_080)
    assert {"relay.corp.example", b"relay.corp.example"} & set(asked)


async def test_older_calls_are_answered_too():
    async with open_run_world() as world:
        settings = world.settings(port=18_080, hosts=(NAME, "*.wild.example"))

        def use() -> None:
            with redirect(settings):
                address = socket.gethostbyname(NAME)
                assert address.startswith("127.77.")
                assert socket.gethostbyname_ex(NAME.upper() + ".") == (NAME.upper() + ".", [], [address])
                assert socket.gethostbyname("a.b.wild.example") == address
                assert socket.getaddrinfo(NAME.encode(), 1, type=socket.SOCK_STREAM)[0][4] == (address, 1)
                with pytest.raises(socket.gaierror):
                    socket.getaddrinfo(NAME, 1, family=socket.AF_INET6)
                assert socket.gethostbyname("127.0.0.1") == "127.0.0.1"
                assert socket.gethostbyname_ex("127.0.0.1")[2] == ["127.0.0.1"]

        await trio.to_thread.run_sync(use)


async def test_afterwards_all_is_as_it_was():
    before = socket.getaddrinfo, socket.gethostbyname, socket.gethostbyname_ex, dict(vars(socket.socket))
    async with open_run_world() as world:
        with redirect(world.settings(port=18_080)):
            assert socket.getaddrinfo is not before[0]
            assert ssl.SSLSocket.connect is not None
    assert (socket.getaddrinfo, socket.gethostbyname, socket.gethostbyname_ex, dict(vars(socket.socket))) == before


def test_settings_that_cannot_work_are_an_error():
    with pytest.raises(ConfigError, match="10"), redirect(ConnectSettings(pool="10.0.0.0/8")):
        raise AssertionError("not reached")
