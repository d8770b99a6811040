"""``relaycore connect`` as a program: real processes, a real relay in this one, a listener and its endpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from programs import finish, run_program

import relaycore
from relaycore.cli.connect.common import find_forward
from relaycore.cli.connect.service import unit_text
from relaycore.edge.config.load import load
from relaycore.errors import ConfigError
from relaycore.testing import Relay, open_relay
from relaycore.wire.connection_string import parse_connection_string

BLOB = bytes(range(256)) * 4_000 + os.urandom(123_457)

PORT = 28_071


@dataclass
class Bench:
    """A relay with the hybrid connection ``sql``, and settings of a forward to it."""

    relay: Relay
    nursery: trio.Nursery
    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "relaycore.toml"

    def write(self, forwards: str | None = None, *, extra: str = "", rights: tuple[str, ...] = ("Send",)) -> None:
        """Settings; without `forwards` one that is called ``orders``."""
        found = parse_connection_string(self.relay.connection_string("sql", rights=rights))
        key = self.directory / "key"
        key.write_text(found.key)
        key.chmod(0o600)
        self.config.write_text(
            f"""
[relay.main]
endpoint = "sb://127.0.0.1:{found.port}/"
emulator = true
proxy = "none"
[connect.control]
socket = "{self.directory}/connect.sock"
{extra}
"""
            + (forwards if forwards is not None else self.forward("orders"))
        )

    def forward(self, name: str, more: str = "", *, port: int = PORT) -> str:
        return f"""
[[connect.forward]]
name = "{name}"
relay = "main"
path = "sql"
key_name = "TestSend"
key = {{ file = "{self.directory}/key" }}
hosts = ["{name}.corp.test"]
port = {port}
connect = {{ timeout = "5s", attempts = 1 }}
{more}
"""

    async def publish(self, serve: Callable[[relaycore.Connection], Awaitable[None]]) -> None:
        has_begun = trio.Event()
        self.nursery.start_soon(self._listen, serve, has_begun)
        await has_begun.wait()

    async def _listen(self, serve, has_begun: trio.Event) -> None:
        async with (
            relaycore.open_listener(self.relay.connection_string("sql")) as listener,
            trio.open_nursery() as nursery,
        ):
            has_begun.set()
            while True:
                connection = await listener.accept()
                nursery.start_soon(self._serve, serve, connection)

    async def _serve(self, serve, connection: relaycore.Connection) -> None:
        with suppress(relaycore.ConnectionLost):
            async with connection:
                await serve(connection)


async def echo(connection: relaycore.Connection) -> None:
    async for data in connection:
        await connection.send_all(data)
    await connection.send_eof()


@asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_relay() as relay, trio.open_nursery() as nursery:
        await relay.create_entity("sql")
        bench = Bench(relay, nursery, tmp_path)
        bench.write()
        yield bench
        nursery.cancel_scope.cancel()


async def connect(bench: Bench, *args: str, data: bytes = b"") -> tuple[int, bytes, str]:
    command, *rest = args
    return await finish("connect", command, "--config", str(bench.config), *rest, data=data)


# open ----------------------------------------------------------------------------------------------------------------


async def test_open_is_binary_clean_and_half_closes_both_ways(tmp_path):
    """manager 8.6: stdin and stdout, as ssh's ProxyCommand; the reply after the end of stdin arrives."""

    async def reply(connection: relaycore.Connection) -> None:
        got = b"".join([data async for data in connection])
        await connection.send_all(got[::-1])
        await connection.send_eof()

    async with open_bench(tmp_path) as bench:
        await bench.publish(reply)
        code, out, err = await connect(bench, "open", "orders", data=BLOB)
        assert (code, err) == (0, "")
        assert out == BLOB[::-1]
        code, out, err = await connect(bench, "open", "orders.corp.test", str(PORT), data=b"by host")
        assert (code, out, err) == (0, b"tsoh yb", "")


async def test_open_ends_its_output_with_the_other_sides_end(tmp_path):
    heard = trio.Event()

    async def end_first(connection: relaycore.Connection) -> None:
        await connection.send_all(b"bye")
        await connection.send_eof()
        assert b"".join([data async for data in connection]) == b"still here"
        heard.set()

    async with open_bench(tmp_path) as bench:
        await bench.publish(end_first)
        async with run_program("connect", "open", "orders", "--config", str(bench.config)) as program:
            async with program.progress:
                while program.process.stdout is not None:
                    await program.progress.wait()
            assert program.out == b"bye"
            assert program.process.poll() is None
            await program.write(b"still here")
            await program.close_input()
            await heard.wait()
            assert await program.exit_code() == 0


async def test_open_leaves_with_what_went_wrong(tmp_path):
    """manager 8.11: exit codes, and one line that says what was tried, what came back, and what to do."""
    async with open_bench(tmp_path) as bench:
        code, out, err = await connect(bench, "open", "orders")
        assert (code, out) == (6, b"")
        assert err.count("\n") == 1
        assert all(word in err for word in ("404", "nobody listens there", "sql at 127.0.0.1")), err
        code, _, err = await connect(bench, "open", "other")
        assert code == 3
        assert "there are: orders" in err

        (bench.directory / "key").write_text("d3Jvbmc=")
        code, _, err = await connect(bench, "open", "orders")
        assert code == 4
        assert "does not take rule TestSend" in err

        bench.write(bench.forward("orders").replace('path = "sql"', 'path = "nowhere"'))
        code, _, err = await connect(bench, "open", "orders")
        assert code == 6
        assert "knows no nowhere" in err

    code, _, err = await connect(bench, "open", "orders")
    assert code == 5
    assert "doctor orders" in err


async def test_open_tells_that_the_endpoint_is_down(tmp_path):
    async def refuse(_: relaycore.IncomingConnection) -> relaycore.Reject:
        return relaycore.Reject(502, "sqldb.corp.test (10.2.0.8) port 1433: ECONNREFUSED")

    async with (
        open_bench(tmp_path) as bench,
        relaycore.open_listener(bench.relay.connection_string("sql"), accept=refuse),
    ):
        code, _, err = await connect(bench, "open", "orders")
        assert code == 7
        assert "502 sqldb.corp.test (10.2.0.8) port 1433: ECONNREFUSED" in err


async def test_each_step_of_test_is_an_object_for_programs(tmp_path):
    async with open_bench(tmp_path) as bench:
        code, out, err = await connect(bench, "test", "orders", "--json")
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, err) == (6, "")
        assert all(set(one) == {"level", "step", "text", "remedy", "seconds", "exit_code"} for one in found)
        assert [one["exit_code"] for one in found if one["level"] == "fail"] == [6]
        await bench.publish(echo)
        code, out, _ = await connect(bench, "test", "orders", "--json")
        found = [json.loads(line) for line in out.splitlines()]
        assert code == 0
        assert not [one for one in found if one["level"] == "fail"]
        assert any(one["seconds"] for one in found)


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_host_that_only_the_relay_knows_is_found(tmp_path, is_running):
    """manager 8.6: hosts and port default to the hybrid connection's own text, for `open` and `test` as for `run`."""
    async with open_bench(tmp_path) as bench, AsyncExitStack() as stack:
        text = json.dumps([{"key": "endpoint", "value": f"sqldb.corp.test:{PORT}"}])
        await bench.relay.store.update_entity(bench.relay.server.namespace.name, "sql", user_metadata=text)
        await bench.publish(echo)
        silent = "\n".join(
            line for line in bench.forward("orders").splitlines() if not line.startswith(("hosts", "port"))
        )
        bench.write(silent)
        if is_running:
            program = await stack.enter_async_context(run_program("connect", "run", "--config", str(bench.config)))
            await program.wait_err("1 of 1 forward is listening")
        code, out, err = await connect(bench, "open", "SQLdb.corp.test", str(PORT), data=b"hello")
        assert (code, out, err) == (0, b"hello", "")
        code, _, err = await connect(bench, "open", "sqldb.corp.test", "1", data=b"hello")
        assert (code, "leads there at port 1; there are: orders" in err) == (3, True)
        code, out, err = await connect(bench, "test", "sqldb.corp.test")
        assert "listener" in out.decode(), (out, err)
        assert code in (0, 8)  # whether the name leads here is another matter

    code, _, err = await connect(bench, "open", "sqldb.corp.test", str(PORT))  # the relay has gone
    assert code == 3
    assert "where others lead is not known: orders: " in err


# run and its looks ---------------------------------------------------------------------------------------------------


async def test_run_carries_tells_and_stops(tmp_path):
    async with open_bench(tmp_path) as bench:
        await bench.publish(echo)
        bench.write(bench.forward("orders", f'listen = ["auto:{PORT}", "unix:{tmp_path}/orders.sock"]'))
        async with run_program("connect", "run", "--config", str(bench.config)) as program:
            err = await program.wait_err("1 of 1 forward is listening")
            address = err.partition("orders: on ")[2].partition(":")[0]
            assert address.startswith("127.77.")
            assert (await trio.Path(tmp_path, "orders.sock").stat()).st_mode & 0o777 == 0o600
            async with await trio.open_tcp_stream(address, PORT) as stream:
                await stream.send_all(BLOB[:100_000])
                await stream.send_eof()
                assert b"".join([data async for data in stream]) == BLOB[:100_000]

            code, out, _ = await connect(bench, "status")
            lines = out.decode().splitlines()
            assert code == 0
            assert lines[0].startswith("relaycore connect on ")
            assert lines[1].split()[:6] == ["NAME", "STATE", "LISTEN", "HOSTS", "RELAY", "OPEN"]
            assert f"{address}:{PORT}" in lines[2]
            assert "100 k / 100 k" in lines[2]
            code, out, _ = await connect(bench, "status", "--json")
            [status] = json.loads(out)["forwards"]
            assert (status["state"], status["accepted"], status["address"]) == ("Listening", 1, address)
            code, out, _ = await connect(bench, "list")
            assert f"{address}:{PORT}, unix:" in out.decode()
            code, out, _ = await connect(bench, "events", "--json")
            assert [json.loads(line)["kind"] for line in out.splitlines()] == ["listening", "listening"]

            program.signal(signal.SIGTERM)
            assert await program.exit_code() == 0
        assert not await trio.Path(tmp_path, "orders.sock").exists()
        assert not await trio.Path(tmp_path, "connect.sock").exists()
        code, _, err = await connect(bench, "status")
        assert code == 1
        assert "relaycore connect run" in err


async def test_run_logs_with_names_and_the_tracking_id(tmp_path):
    """manager 8.10: stable event names, and the id under which the relay logs a connection; joins at DEBUG."""
    ids: list[str] = []

    async def note(connection: relaycore.Connection) -> None:
        ids.append(connection.tracking_id)
        await echo(connection)

    async with open_bench(tmp_path) as bench:
        dead = bench.forward("dead").replace('path = "sql"', 'path = "nowhere"')
        bench.write(bench.forward("orders") + dead)
        await bench.publish(note)
        log = ("--log-format", "json", "--log-level", "debug")
        async with run_program("connect", "run", *log, "--config", str(bench.config)) as program:
            await program.wait_err("2 of 2 forwards are listening")
            _, out, _ = await connect(bench, "status", "--json")
            addresses = {one["name"]: one["address"] for one in json.loads(out)["forwards"]}
            async with await trio.open_tcp_stream(addresses["orders"], PORT) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert b"".join([data async for data in stream]) == b"hello"
            with suppress(trio.BrokenResourceError):
                async with await trio.open_tcp_stream(addresses["dead"], PORT) as stream:
                    await stream.receive_some()
            await program.wait_err("connect.ended")
            await program.wait_err("connect.refused")
            lines = [json.loads(line) for line in bytes(program.err).splitlines()]
            found = {line["event"]: line for line in lines if line.get("event", "").startswith("connect.")}
            joined, ended, refused = found["connect.joined"], found["connect.ended"], found["connect.refused"]
            assert ids[0].startswith(joined["tracking_id"])
            assert joined["tracking_id"] == ended["tracking_id"] != refused["tracking_id"]
            assert (ended["name"], ended["bytes_in"], ended["bytes_out"]) == ("orders", 5, 5)
            assert (refused["name"], refused["level"]) == ("dead", "warning")
            assert len(refused["tracking_id"]) == 36
            assert {line["logger"] for line in (joined, ended, refused)} == {"relaycore.edge.connect"}

    code, _, err = await connect(bench, "run", "--quiet", "--log-level", "info")
    assert (code, "--log-level" in err) == (2, True)


async def test_settings_are_read_again_when_told_and_when_their_file_changes(tmp_path):
    """manager 8.4: parse, diff, plan, apply; an invalid file leaves the old one in force."""
    async with open_bench(tmp_path) as bench:
        await bench.publish(echo)
        async with run_program("connect", "run", "--no-watch", "--config", str(bench.config)) as program:
            await program.wait_err("1 of 1 forward is listening")
            bench.write(bench.forward("orders") + bench.forward("more"))
            code, out, _ = await connect(bench, "reload")
            assert (code, out) == (0, b"+ more\n")
            await program.wait_err("more: on 127.77.")
            bench.config.write_text("[connect\n")
            code, _, _ = await connect(bench, "reload")
            assert code == 3
            program.signal(signal.SIGHUP)
            await program.wait_err("the old settings stay in force")
            bench.write(bench.forward("more"))
            program.signal(signal.SIGHUP)
            await program.wait_err("- orders: no new connections")
        async with run_program("connect", "run", "--config", str(bench.config)) as program:
            await program.wait_err("1 of 1 forward is listening")
            bench.write(bench.forward("more") + bench.forward("third"))
            await program.wait_err("third: on 127.77.")


async def test_at_the_end_settings_are_left_alone_and_the_last_events_are_posted(tmp_path):
    got: list[str] = []

    async def take(stream: trio.SocketStream) -> None:
        kept = b""
        while b"}" not in kept and (piece := await stream.receive_some()):
            kept += piece
        got.append(json.loads(kept.partition(b"\r\n\r\n")[2])["kind"])
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with open_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        await bench.publish(echo)
        (listener,) = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        kinds = ["stopping", "stopped"]
        bench.write(extra=f'[connect.webhook]\nurl = "{url}"\nevents = {kinds}\n')
        async with run_program("connect", "run", "--drain", "60", "--config", str(bench.config)) as program:
            listening = await program.wait_err("1 of 1 forward is listening")
            host, _, port = listening.partition("orders: on ")[2].split()[0].rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                program.signal(signal.SIGTERM)
                await program.wait_err("taking no more connections")
                program.signal(signal.SIGHUP)
                code, _, err = await connect(bench, "reload")
                assert code == 1
                assert "is stopping" in err
                await stream.send_all(b"y")
                assert await stream.receive_some() == b"y"
            assert await program.exit_code() == 0
        assert got == kinds
        nursery.cancel_scope.cancel()


async def test_add_and_remove_tell_the_running_forwarder(tmp_path):
    async with open_bench(tmp_path) as bench:
        await bench.publish(echo)
        text = bench.relay.connection_string("sql", rights=["Send"])
        secret = tmp_path / "string"
        secret.write_text(text)
        add = (
            "add",
            "--connection-string-file",
            str(secret),
            "--name",
            "added",
            "--host",
            "db.test",
            "--port",
            "28072",
        )
        async with run_program("connect", "run", "--no-watch", "--config", str(bench.config)) as program:
            await program.wait_err("1 of 1 forward is listening")
            code, out, err = await connect(bench, *add)
            assert (code, err) == (0, "")
            assert out.decode().splitlines()[1] == "+ added"
            await program.wait_err("added: on 127.77.")
            code, out, _ = await connect(bench, "open", "added", data=b"hello")
            assert (code, out) == (0, b"hello")
            code, _, err = await connect(bench, *add)
            assert code == 16
            assert "--replace" in err
            file = tmp_path / "relaycore.d" / "added.toml"
            assert file.stat().st_mode & 0o777 == 0o600
            code, out, _ = await connect(bench, "remove", "added")
            assert code == 0
            assert out.decode().splitlines()[1].startswith("- added")
            assert not file.exists()
            code, _, err = await connect(bench, "remove", "orders")
            assert code == 3
            assert "relaycore.toml" in err
        key = parse_connection_string(text).key
        assert key.encode() not in program.err + program.out
        code, out, _ = await connect(bench, *add)
        assert code == 0
        assert "start it with: relaycore connect run" in out.decode()


ARM = {
    "properties": {
        "serviceBusNamespace": "ns",
        "relayName": "sql",
        "hostName": "sqldb.corp.example",
        "port": 1433,
        "sendKeyName": "defaultSender",
        "sendKeyValue": "c2VjcmV0",
    }
}


def test_forwards_of_other_tools_are_taken_over(tmp_path, invoke):
    """manager 8.6: the App Service API's JSON becomes a forward, with its key in a private file."""
    file = tmp_path / "arm.json"
    file.write_text(json.dumps(ARM))
    config = tmp_path / "relaycore.toml"
    config.write_text("")
    result = invoke("connect", "import", "--config", str(config), "--dry-run", str(file))
    assert result.exit_code == 0, result.output
    assert result.stdout == "sql: sqldb.corp.example port 1433 -> sql\n"
    assert not (tmp_path / "relaycore.d").exists()
    result = invoke("connect", "import", "--config", str(config), str(file))
    assert result.exit_code == 0, result.output
    [forward] = load([config, tmp_path / "relaycore.d" / "sql.toml"], {}).settings.connect.forwards
    assert (forward.hosts, forward.port, forward.key_name) == (("sqldb.corp.example",), 1433, "defaultSender")
    assert (tmp_path / "relaycore.d" / "sql.toml").stat().st_mode & 0o777 == 0o600
    assert "c2VjcmV0" not in result.output
    assert invoke("connect", "import", "--config", str(config), str(file)).exit_code != 0


async def test_no_address_at_all_is_exit_code_9(tmp_path):
    async with open_bench(tmp_path) as bench:
        with trio.socket.socket() as taken:
            await taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            bench.write(bench.forward("orders", f'listen = ["127.0.0.1:{port}"]'))
            code, _, err = await connect(bench, "run")
            assert code == 9
            assert f"cannot listen on 127.0.0.1:{port}" in err
            assert "another program listens there" in err


async def test_with_a_proxy_port_no_address_is_needed(tmp_path):
    """manager 8.6: the proxy port serves a forward whose port cannot be had here."""
    async with open_bench(tmp_path) as bench:
        await bench.publish(echo)
        with trio.socket.socket() as taken:
            await taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            extra = '[connect.proxy]\nlisten = "127.0.0.1:28079"\n'
            bench.write(bench.forward("orders", f'listen = ["127.0.0.1:{port}"]'), extra=extra)
            async with run_program("connect", "run", "--config", str(bench.config)) as program:
                await program.wait_err("0 of 1 forward is listening")
                code, out, _ = await connect(bench, "test", "orders")
                assert code == 0, out
                assert " warn not listening: cannot listen on" in out.decode()
                async with await trio.open_tcp_stream("127.0.0.1", 28_079) as stream:
                    await stream.send_all(b"CONNECT orders.corp.test:%d HTTP/1.0\r\n\r\n" % PORT)
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_two_forwarders_on_one_control_socket_are_told_apart(tmp_path):
    async with (
        open_bench(tmp_path) as bench,
        run_program("connect", "run", "--config", str(bench.config)) as program,
    ):
        await program.wait_err("1 of 1 forward is listening")
        code, _, err = await connect(bench, "run")
        assert code != 0
        assert str(program.process.pid) in err


async def test_pages_and_the_proxy_port_stand_beside_the_forwards(tmp_path):
    async with open_bench(tmp_path) as bench:
        await bench.publish(echo)
        extra = '[connect.proxy]\nlisten = "127.0.0.1:28075"\n[connect.metrics]\nlisten = "127.0.0.1:28076"\n'
        # Nobody takes them: events that go nowhere stop nothing.
        extra += '[connect.webhook]\nurl = "http://127.0.0.1:9/hidden"\n'
        bench.write(extra=extra)
        async with run_program("connect", "run", "--config", str(bench.config)) as program:
            await program.wait_err("1 of 1 forward is listening")
            await program.wait_err("webhook: on http://127.0.0.1:9")
            async with await trio.open_tcp_stream("127.0.0.1", 28_075) as stream:
                await stream.send_all(
                    b"CONNECT orders.corp.test:%d HTTP/1.1\r\nHost: orders.corp.test:%d\r\n\r\n" % (PORT, PORT)
                )
                head = await stream.receive_some()
                assert head.startswith(b"HTTP/1.1 200 ")
                await stream.send_all(b"through")
                assert await stream.receive_some() == b"through"
            async with await trio.open_tcp_stream("127.0.0.1", 28_076) as stream:
                await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                answer = b"".join([data async for data in stream])
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert b"1 of 1 forward is" in answer
            async with await trio.open_tcp_stream("127.0.0.1", 28_076) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                answer = b"".join([data async for data in stream])
                assert b'relaycore_edge_proxy_requests_total{kind="connect",result="ok"} 1.0\n' in answer
                assert b'relaycore_edge_rendezvous_seconds_count{name="orders"} 1.0\n' in answer
            # Programs reach it, though nothing leads its name here.
            code, out, _ = await connect(bench, "test", "orders")
            assert code == 0, out
            assert "orders.corp.test -> NOT redirected" in out.decode()
            assert "programs reach it by the proxy port 127.0.0.1:28075" in out.decode()
            code, out, _ = await connect(bench, "env")
            assert code == 0
            assert "export ALL_PROXY=socks5h://127.0.0.1:28075" in out.decode().splitlines()
            bench.write()
            code, out, _ = await connect(bench, "reload")
            with trio.fail_after(30):
                while True:
                    try:
                        stream = await trio.open_tcp_stream("127.0.0.1", 28_075)
                    except OSError:
                        break
                    await stream.aclose()
                    await trio.sleep(0.05)
        code, _, err = await connect(bench, "env")
        assert code == 3
        assert "[connect.proxy]" in err


# test and the rest ---------------------------------------------------------------------------------------------------


async def test_test_goes_leg_by_leg(tmp_path):
    """manager 8.6: local address and names, relay, what the endpoint says; and which leg is at fault."""

    async def greet(connection: relaycore.Connection) -> None:
        await connection.send_all(b"220 ready")
        async for _ in connection:
            pass

    async with open_bench(tmp_path) as bench:
        code, out, _ = await connect(bench, "test", "orders")
        assert code == 6
        assert " fail " in out.decode()
        await bench.publish(greet)
        code, out, _ = await connect(bench, "test", "orders", "--count", "3")
        text = out.decode()
        assert code == 0, text
        for words in ("no `relaycore connect run`", "ok   handshake (TCP ", "9 bytes", "ok   2 more handshakes: "):
            assert words in text
        code, out, _ = await connect(bench, "test", "orders", "--count", "2")
        assert "ok   1 more handshake: " in out.decode()
        assert "ok   the path works end to end" in text
        async with run_program("connect", "run", "--config", str(bench.config)) as program:
            await program.wait_err("1 of 1 forward is listening")
            code, out, _ = await connect(bench, "test", "orders")
            text = out.decode()
            assert code == 8
            assert "orders.corp.test -> NOT redirected" in text
            assert "ok   the path works end to end" in text
            report = tmp_path / "report"
            code, out, _ = await connect(bench, "doctor", "--bundle", str(report))
            assert code == 8
            assert out.decode().count(" fail ") == 1
            assert "a firewall has to let out" in out.decode()
            assert await trio.Path(report).read_text()
            key = await trio.Path(bench.directory / "key").read_text()
            assert key not in await trio.Path(report).read_text()
            assert (await trio.Path(report).stat()).st_mode & 0o777 == 0o600
        (bench.directory / "key").write_text("d3Jvbmc=")
        code, out, _ = await connect(bench, "doctor", "orders")
        assert code == 4
        assert " fail " in out.decode()


def test_a_forward_is_found_by_name_or_by_where_it_leads(tmp_path):
    entry = '[[connect.forward]]\nname = "{}"\npath = "p"\nrelay = "r"\nhosts = ["{}"]\nport = {}\n'
    file = tmp_path / "c.toml"
    file.write_text(
        '[relay.r]\nendpoint = "sb://relay.test/"\n'
        + entry.format("a", "db.test", 1)
        + entry.format("b", "DB.test", 2)
        + entry.format("c", "*.web.test", 3)
    )
    settings = load([file], {}).settings.connect
    assert find_forward(settings, "a").name == "a"
    assert find_forward(settings, "db.TEST.", 2).name == "b"
    assert find_forward(settings, "x.web.test").name == "c"
    with pytest.raises(ConfigError, match="several forwards: a, b"):
        find_forward(settings, "db.test")
    with pytest.raises(ConfigError, match="at port 3; there are: a, b, c"):
        find_forward(settings, "db.test", 3)


@pytest.mark.parametrize("is_user", [False, True])
def test_the_unit_is_one_that_systemd_takes(tmp_path, is_user):
    text = unit_text(
        [sys.executable, "-m", "relaycore", "connect", "run", "--config", "/etc/a b%.toml"], is_user=is_user
    )
    assert '"/etc/a b%%.toml"' in text
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    file = tmp_path / "relaycore-connect.service"
    file.write_text(text)
    found = subprocess.run([analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)
    about_us = [line for line in found.stderr.splitlines() if "relaycore" in line]
    assert about_us == [], found.stderr


def test_open_imports_no_server(tmp_path):
    """What stands in the way of every ssh is quick to start."""
    script = (
        "import sys; import relaycore.cli.connect.open, relaycore.edge.connect.attempt;"
        "print([name for name in ('sqlite3', 'cryptography', 'relaycore.gateway.server',"
        " 'relaycore.edge.connect.forwarder', 'dns', 'prometheus_client') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
