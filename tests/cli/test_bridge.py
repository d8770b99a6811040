"""``relaycore bridge`` as a program: azbridge's flags and files over a relay in this process, both roles."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import ssl
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import dns.asyncquery
import dns.message
import dns.rrset
import pytest
import trio
import trustme
from programs import Program, finish, run_program

import relaycore
from relaycore.cli.bridge import _Bridge
from relaycore.cli.exits import ExitCode
from relaycore.edge.azbridge.layers import Layer, combine
from relaycore.errors import ConfigError
from relaycore.testing import Relay, open_relay
from relaycore.vocab import Right

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
STRING = f"Endpoint=sb://relay.example:9443/;SharedAccessKeyName=send;SharedAccessKey={KEY}"


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        for path in ("sql", "web"):
            await relay.create_entity(path)
        yield relay


@pytest.fixture
def environ(relay: Relay) -> dict[str, str]:
    return {"AZURE_BRIDGE_CONNECTIONSTRING": relay.connection_string()}


@contextlib.asynccontextmanager
async def upper_server() -> AsyncIterator[int]:
    """Answers everything at its end, in capitals."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            data = b""
            async for piece in stream:
                data += piece
            await stream.send_all(data.upper())
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def ask(port: int, question: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await exchange(stream, question)


async def exchange(stream: trio.SocketStream, question: bytes) -> bytes:
    await stream.send_all(question)
    await stream.send_eof()
    answer = b""
    async for piece in stream:
        answer += piece
    return answer


async def stopped(it: Program) -> None:
    it.signal(signal.SIGTERM)
    assert await it.exit_code() == 0


async def test_both_roles_in_one_process(relay, environ, tmp_path):
    """TCP, a Unix socket and UDP; an answer after the end; order of its own for each."""
    local, udp = free_port(), free_port(socket.SOCK_DGRAM)
    async with upper_server() as target:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as names:
            await names.bind(("127.0.0.1", 0))
            args = [
                "-T", f"sql:tds/127.0.0.1:{target};names/127.0.0.1:{names.getsockname()[1]}U",
                "-L", f"127.0.0.1:{local}/tds;[{tmp_path}/sql.sock]/tds:sql",
                "-L", f"127.0.0.1:{udp}U/names:sql",
            ]  # fmt: skip
            async with run_program("bridge", *args, environ=environ) as it:
                await it.wait_err("2 of 2 local forwards listen, 1 of 1 remote ones do")
                assert await ask(local, b"question") == b"QUESTION"
                async with await trio.open_unix_socket(tmp_path / "sql.sock") as stream:
                    assert await exchange(stream, b"through a path") == b"THROUGH A PATH"
                with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
                    await client.connect(("127.0.0.1", udp))
                    for size in (0, 40, 65_507):
                        query = os.urandom(size)
                        await client.send(query)
                        received, address = await names.recvfrom(65_536)
                        assert received == query
                        await names.sendto(query[::-1], address)
                        assert await client.recv(65_536) == query[::-1]
                await stopped(it)
    assert relay.server.statistics().listeners == 0


async def test_dns_queries_reach_a_name_server(relay, environ):
    udp = free_port(socket.SOCK_DGRAM)

    async def answer(server: trio.socket.SocketType) -> None:
        while True:
            wire, address = await server.recvfrom(65_536)
            query = dns.message.from_wire(wire)
            response = dns.message.make_response(query)
            name = query.question[0].name
            response.answer.append(
                dns.rrset.from_text(name, 60, "IN", "TXT", *(f"{number}" * 250 for number in range(8)))
            )
            await server.sendto(response.to_wire(), address)

    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        args = ("-T", f"sql:53U/127.0.0.1:{port}U", "-L", f"127.0.0.1:{udp}U/53U:sql")
        async with run_program("bridge", *args, environ=environ) as it, trio.open_nursery() as nursery:
            nursery.start_soon(answer, server)
            await it.wait_err("1 of 1 local forwards listen, 1 of 1 remote ones do")
            for name in ("db.corp.example", "nas.corp.example"):
                query = dns.message.make_query(name, "TXT", use_edns=0, payload=4_096)
                found = await dns.asyncquery.udp(query, "127.0.0.1", port=udp, timeout=20)
                assert str(found.answer[0].name) == f"{name}."
                assert len(found.to_wire()) > 2_000
            nursery.cancel_scope.cancel()


async def test_the_golden_bytes_of_a_local_forward(relay, environ):
    """What azbridge's listener would read: a request, then bytes; and what it would say to that."""
    local = free_port()
    async with (
        relaycore.open_listener(relay.connection_string("sql")) as listener,
        run_program("bridge", "-L", f"127.0.0.1:{local}/test:sql", environ=environ) as it,
    ):
        await it.wait_err("1 of 1 local forwards listen")
        async with await trio.open_tcp_stream("127.0.0.1", local) as client, await listener.accept() as accepted:
            channel = accepted.messages()
            assert await channel.receive() == bytes.fromhex("01 00 00 04 74 65 73 74")
            await channel.send(bytes.fromhex("01 00 00"))
            await client.send_all(b"hello")
            assert await channel.receive() == b"hello"
            await channel.send(b"answer")
            assert await client.receive_some() == b"answer"
        await stopped(it)


async def test_the_golden_bytes_of_a_remote_forward(relay, environ):
    """What azbridge's sender would send, in its two messages."""
    async with (
        upper_server() as target,
        run_program("bridge", "-T", f"sql:test/127.0.0.1:{target}", environ=environ) as it,
    ):
        await it.wait_err("1 of 1 remote ones do")
        async with relaycore.open_stream(relay.connection_string("sql")) as sender:
            channel = sender.messages()
            await channel.send(bytes.fromhex("01 00 00 04"))
            await channel.send(bytes.fromhex("74 65 73 74"))
            assert await channel.receive() == bytes.fromhex("01 00 00")
            await channel.send(b"hello")
            await channel.send_eof()
            assert await channel.receive() == b"HELLO"
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()
        await stopped(it)


async def test_a_file_is_enough_and_is_read_again_at_a_signal(relay, tmp_path):
    first, second = free_port(), free_port()
    async with upper_server() as target:
        file = tmp_path / "bridge.yml"
        text = (
            f"AzureRelayConnectionString: {relay.connection_string()}\n"
            f"RemoteForward:\n- RelayName: sql\n  HostPort: {target}\n  Host: 127.0.0.1\n  PortName: tds\n"
            f"LocalForward:\n- RelayName: sql\n  BindAddress: 127.0.0.1\n  BindPort: {{}}\n  PortName: tds\n"
        )
        file.write_text(text.format(first))
        file.chmod(0o600)
        async with run_program("bridge", "-f", str(file)) as it:
            await it.wait_err("1 of 1 local forwards listen")
            assert await ask(first, b"a") == b"A"
            it.signal(signal.SIGHUP)
            await it.wait_err("settings read again; nothing has changed")
            file.write_text("nonsense")
            it.signal(signal.SIGHUP)
            await it.wait_err("the old settings stay in force")
            file.write_text(text.format(second))
            it.signal(signal.SIGHUP)
            await it.wait_err(f"on 127.0.0.1:{second}")
            assert await ask(second, b"b") == b"B"
            await stopped(it)


async def test_settings_that_half_of_it_cannot_use_change_nothing(monkeypatch):
    """What the forwarder cannot do is found out before the manager has changed."""
    said: list[str] = []
    bridge = _Bridge(lambda: combine([Layer()]), combine([Layer()]), None, 1.0, said.append)

    def refuse(_: object) -> object:
        raise ConfigError("no address is left")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run)
            while not bridge._has_begun:
                await trio.sleep(0.01)
            monkeypatch.setattr(bridge._forwarder, "reload", refuse)
            monkeypatch.setattr(bridge._manager, "reload", said.append)
            bridge._reload()
            nursery.cancel_scope.cancel()
    assert said[-1] == "no address is left; the old settings stay in force"
    assert all(isinstance(text, str) for text in said)


async def test_http_goes_to_a_server(relay, environ):
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        await relay.store.delete_entity(relay.server.namespace.name, "web")
        await relay.create_entity("web", requires_client_authorization=False)
        async with run_program("bridge", "-H", f"web:http/127.0.0.1:{port}", environ=environ) as it:
            await it.wait_err("1 of 1 remote ones do")
            async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
                await stream.send_all(b"GET /web/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b""
                async for piece in stream:
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"ok")
            await stopped(it)
        nursery.cancel_scope.cancel()


async def test_an_https_server_is_trusted_by_its_authority(relay, environ, tmp_path):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def serve(stream: trio.SSLStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await stream.aclose()

    await relay.create_entity("open", requires_client_authorization=False)
    async with trio.open_nursery() as nursery:
        start = functools.partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1")
        [listener] = await nursery.start(start)
        port = listener.transport_listener.socket.getsockname()[1]
        for trust, status in (((), b"502"), (("--cafile", str(tmp_path / "ca.pem")), b"200")):
            async with run_program("bridge", "-H", f"open:https/localhost:{port}", *trust, environ=environ) as it:
                await it.wait_err("1 of 1 remote ones do")
                async with await trio.open_tcp_stream("127.0.0.1", relay.port) as stream:
                    await stream.send_all(b"GET /open/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = await stream.receive_some()
                assert answer.startswith(b"HTTP/1.1 " + status)
                await stopped(it)
        nursery.cancel_scope.cancel()


# What cannot be set up -----------------------------------------------------------------------------------------------


async def test_a_port_that_is_taken_ends_it_unless_that_is_turned_off(relay, environ):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = await finish("bridge", "-L", f"127.0.0.1:{port}:sql", environ=environ)
        assert code == ExitCode.PORT
        assert str(port) in err
        option = ("-o", "ExitOnForwardFailure:false")
        async with run_program("bridge", "-L", f"127.0.0.1:{port}:sql", *option, environ=environ) as it:
            await it.wait_err("0 of 1 local forwards listen")
            await stopped(it)


@pytest.mark.parametrize(("relay_name", "code"), [("none", ExitCode.NOT_FOUND), ("sql", ExitCode.AUTHORIZATION)])
async def test_a_listener_that_the_relay_refuses_ends_it(relay, relay_name, code):
    text = relay.connection_string(rights=[Right.LISTEN if relay_name == "none" else Right.SEND])
    found, _, err = await finish("bridge", "-x", text, "-T", f"{relay_name}:80")
    assert found == code
    assert f"{relay_name}: " in err


async def test_a_relay_that_is_not_there_ends_it():
    text = f"Endpoint=sb://127.0.0.1:{free_port()}/;SharedAccessKeyName=a;SharedAccessKey={KEY}"
    code, _, err = await finish("bridge", "-x", f"{text};UseDevelopmentEmulator=true", "-T", "sql:80")
    assert code == ExitCode.CONNECTION
    assert "sql: " in err
    assert KEY not in err


async def test_a_key_does_not_stay_in_the_command_line(relay):
    text = relay.connection_string()
    args = ("-x", text, "-L", f"127.0.0.1:{free_port()}:sql", "-k", KEY, "-K", "rule")
    async with run_program("bridge", *args) as it:
        await it.wait_err("1 of 1 local forwards listen")
        shown = it.command_line
        assert f"-x {'*' * len(text)} -L" in shown
        assert f"-k {'*' * len(KEY)} -K rule" in shown
        await stopped(it)


async def test_quiet_and_a_log_file(relay, environ, tmp_path):
    local, log = free_port(), tmp_path / "bridge.log"
    args = ("-L", f"127.0.0.1:{local}:sql")
    async with run_program("bridge", *args, "-l", str(log), environ=environ) as it:
        with trio.fail_after(30):
            while not log.exists() or "1 of 1 local forwards listen" not in log.read_text():
                await trio.sleep(0.02)
        await stopped(it)
        assert it.err == b""
    async with run_program("bridge", *args, "-q", environ=environ) as it:
        with trio.fail_after(30):
            while True:
                with contextlib.suppress(OSError):
                    await (await trio.open_tcp_stream("127.0.0.1", local)).aclose()
                    break
                await trio.sleep(0.02)
        await stopped(it)
        assert it.err == b""


# Without running anything ---------------------------------------------------------------------------------------------


def test_explain(invoke):
    result = invoke(
        "bridge", "-x", STRING, "--explain",
        "-L", "127.0.9.1:1433/tds;[::1]:53U:sql", "-L", "[/run/x.sock]/y:sql",
        "-T", "sql:tds/db.corp.example:1433;a//run/y.sock", "-R", "old:host:n/53U", "-H", "web:https/shop.example/base",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        """\
-L 127.0.9.1:1433/tds;[::1]:53U:sql
    programs here use 127.0.9.1:1433; the listener of sql is asked for the port tds
    programs here use UDP [::1]:53; the listener of sql is asked for the port 53U
-L [/run/x.sock]/y:sql
    programs here use the Unix socket /run/x.sock; the listener of sql is asked for the port y
-T sql:tds/db.corp.example:1433;a//run/y.sock
    senders to sql that ask for the port tds reach db.corp.example:1433
    senders to sql that ask for the port a reach the Unix socket /run/y.sock
-R old:host:n/53U
    senders to old that ask for the port n reach UDP host:53
-H web:https/shop.example/base
    HTTP requests and WebSockets to web reach https://shop.example/base/
"""
    )
    assert KEY not in result.output
    document = tomllib.loads(result.output[result.output.index("# The same") :])
    assert [item["name"] for item in document["hcm"]["connection"]] == ["sql", "old", "web"]
    assert document["hcm"]["connection"][2]["endpoint"] == "https://shop.example/base/"
    assert [item["port_name"] for item in document["connect"]["forward"]] == ["tds", "53U", "y"]


@pytest.mark.parametrize(
    ("args", "code", "why"),
    [
        ((), ExitCode.USAGE, "nothing to forward"),
        (("-L", "x"), ExitCode.USAGE, "-L 'x': the name of the hybrid connection stands behind the last colon"),
        (("-T", "a:1"), ExitCode.CONFIG, "-T a:1: nothing says where the relay is"),
        (("-T", "a:1", "-e", "sb://r.example/"), ExitCode.CONFIG, "-T a:1: listening needs a key"),
        (("-T", "a:1", "-e", "sb://r.example/", "-K", "rule"), ExitCode.CONFIG, "the rule rule needs its key"),
        (("-T", "a:1", "-x", "nonsense"), ExitCode.CONFIG, "-x: AzureRelayConnectionString"),
        (("-o", "Nothing:1"), ExitCode.CONFIG, "-o: Nothing: unknown key"),
        (("-f", "none.yml"), ExitCode.CONFIG, "none.yml: cannot be read"),
        (("-I",), ExitCode.USAGE, "services of Windows are not made here"),
        (("-L", "1:a", "-x", STRING, "-l", "/nowhere/x.log"), ExitCode.CONFIG, "/nowhere/x.log cannot be written"),
    ],
)
def test_what_is_wrong_is_named(invoke, args, code, why):
    result = invoke("bridge", *args)
    assert (result.exit_code, why in result.output) == (code, True), result.output


def test_help_by_each_of_azbridges_flags(invoke):
    for flag in ("-?", "-h", "--help"):
        result = invoke("bridge", flag)
        assert result.exit_code == 0
        assert "--remote-http-forward" in result.output
        assert "-R" not in result.output.split()


def test_files_of_azbridge_are_found(invoke, home: Path):
    file = home / ".azbridge" / "azbridge_config.yml"
    file.parent.mkdir(parents=True)
    file.write_text(f"AzureRelayConnectionString: {STRING}\nLocalForward:\n- RelayName: a\n  BindPort: 1\nTypo: 1\n")
    file.chmod(0o600)
    result = invoke("bridge", "--explain")
    assert result.exit_code == 0, result.output
    assert f"warning: {file}:5: Typo: unknown key, it has no effect" in result.output
    assert f"{file}:3\n    programs here use localhost:1;" in result.output
    result = invoke("bridge", "--explain", "-o", "ClearAllForwardings:true", "-g", "-L", "2/x:b")
    assert "RelayName" not in result.output
    assert "programs here use all addresses:2; the listener of b" in result.output
