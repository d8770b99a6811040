"""``relaycore serve``: what it prints, which settings reach it, how it ends, and how it fails to start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import ssl
import sys

import pytest
import trio
import trustme
from programs import finish, run_program

from relaycore.cli import serve as serve_module
from relaycore.cli.exits import ExitCode
from relaycore.errors import ServerBusy
from relaycore.wire.connection_string import parse_connection_string

PORT_0 = ("--port", "0")


async def ready(program) -> dict:
    return json.loads((await program.wait_out("\n")).splitlines()[0])


# What it prints ------------------------------------------------------------------------------------------------------


async def test_without_any_configuration_it_says_what_to_paste(home):
    async with run_program("serve", *PORT_0) as server:
        text = await server.wait_out("send demo\n")
        lines = [line.strip() for line in text.splitlines()]
        string = next(line for line in lines if line.startswith("Endpoint="))
        connection = parse_connection_string(string)
        assert (connection.host, connection.is_emulator) == ("127.0.0.1", True)
        assert connection.key_name == "RootManageSharedAccessKey"
        assert (home / ".local/share/relaycore/relaycore.db").stat().st_mode & 0o777 == 0o600
        export = next(line for line in lines if line.startswith("export "))
        create, listen, send = lines[lines.index(export) + 1 :][:3]
        assert connection.key not in create + listen + send + server.command_line

        # Pasting works, in a shell that has never heard of us.
        assert await finish(command=["sh", "-c", f"{export}\n{create}"]) == (0, b"created demo\n", "")
        async with run_program(command=["sh", "-c", f"{export}\nexec {listen}"]) as listener:
            await listener.wait_err("online")
            done = await finish(command=["sh", "-c", f"{export}\nexec {send}"], data=b"hello")
            assert done == (0, b"hello", "")
            assert connection.key not in listener.command_line
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert connection.key not in server.err.decode()


async def test_the_key_stays_the_same_from_start_to_start():
    strings = []
    for _ in range(2):
        async with run_program("serve", *PORT_0, "--json") as server:
            strings.append(parse_connection_string((await ready(server))["connection_string"]).key)
    assert strings[0] == strings[1]


async def test_the_ready_line_for_programs(tmp_path):
    async with run_program("serve", *PORT_0, "--json", "--store", "here.db", "--log-level", "error") as server:
        line = await ready(server)
        assert line["event"] == "ready"
        assert line["base_url"] == f"ws://127.0.0.1:{line['addresses'][0][1]}"
        assert (line["store"], line["namespace"]) == ("here.db", "default")
        assert line["pid"] == server.process.pid
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert bytes(server.out).count(b"\n") == 1
        assert bytes(server.err) == b""


@pytest.mark.parametrize(("option", "is_shown"), [((), False), (("--show-connection-string",), True)])
@pytest.mark.parametrize("form", [(), ("--json",)])
async def test_with_a_configuration_the_key_is_printed_on_demand_only(tmp_path, option, is_shown, form):
    (tmp_path / "relay.toml").write_text("[server]\nport = 0\n[store]\npath = 'relay.db'\n")
    async with run_program("serve", "--config", "relay.toml", *option, *form) as server:
        await server.wait_out("\n")
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert ("SharedAccessKey=" in server.out.decode()) is is_shown


async def test_an_output_that_nobody_reads_does_not_end_the_relay():
    reading, writing = os.pipe()
    os.close(reading)
    async with run_program("serve", *PORT_0, stdout=writing) as server:
        os.close(writing)
        await server.wait_err("server.started")
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0


async def test_closed_descriptors_do_not_become_the_store():
    command = f"exec {shlex.quote(sys.executable)} -m relaycore serve --port 0 0<&- 1>&-"
    async with run_program(command=["sh", "-c", command]) as server:
        await server.wait_err("server.started")
        for fd in ("0", "1"):
            assert os.readlink(f"/proc/{server.process.pid}/fd/{fd}") == os.devnull
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0


# Settings ------------------------------------------------------------------------------------------------------------


def test_each_flag_reaches_its_setting(invoke, monkeypatch):
    """failures: a documented setting that is never read."""
    seen = []
    monkeypatch.setattr(serve_module, "run", lambda main, config, announcement: seen.append(config) or ExitCode.OK)
    flags = {
        "--host": "::1",
        "--port": "9001",
        "--tls-cert": "c.pem",
        "--tls-key": "k.pem",
        "--store": "s.db",
        "--public-url": "wss://relay.example",
        "--log-level": "error",
        "--log-format": "json",
    }
    result = invoke("serve", "--auto-create", *[word for pair in flags.items() for word in pair])
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.server.host, config.server.port, config.server.auto_create) == ("::1", 9001, True)
    assert (config.tls.cert, config.tls.key, config.store.path) == ("c.pem", "k.pem", "s.db")
    assert config.server.public_url == "wss://relay.example"
    assert (config.log.level, config.log.format) == ("error", "json")


def test_flags_beat_the_environment_beats_the_file(invoke, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(serve_module, "run", lambda main, config, announcement: seen.append(config) or ExitCode.OK)
    (tmp_path / "relay.toml").write_text("[server]\nport = 1\nhost = 'file'\nbacklog = 7\n")
    monkeypatch.setenv("RELAYCORE_CONFIG", "relay.toml")
    monkeypatch.setenv("RELAYCORE_SERVER_PORT", "2")
    monkeypatch.setenv("RELAYCORE_SERVER_HOST", "environment")
    assert invoke("serve", "--port", "3").exit_code == 0
    assert (seen[0].server.port, seen[0].server.host, seen[0].server.backlog) == (3, "environment", 7)


def test_a_wrong_setting_is_one_line_that_names_it(invoke, tmp_path):
    (tmp_path / "relay.toml").write_text("[server]\nprot = 1\n")
    result = invoke("serve", "--config", "relay.toml")
    assert result.exit_code == ExitCode.CONFIG
    assert result.stderr == "relaycore: relay.toml: server.prot: there is no such setting; the nearest is port\n"
    assert invoke("serve", "--port", "70000").exit_code == ExitCode.CONFIG
    assert invoke("serve", "--port", "x").exit_code == ExitCode.USAGE


async def test_auto_create_and_the_log_format_work(tmp_path):
    async with run_program("serve", *PORT_0, "--json", "--auto-create", "--log-format", "json") as server:
        environ = {"RELAYCORE_CONNECTION_STRING": (await ready(server))["connection_string"]}
        async with run_program("listen", "made/by/listening", environ=environ) as listener:
            await listener.wait_err("online")
            await server.wait_err("listener.registered")
        for line in server.err.decode().splitlines():
            assert json.loads(line)["event"]


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [(("--host", "0.0.0.0"), True), (("--host", "0.0.0.0", "--public-url", "wss://relay.example"), False), ((), False)],
)
async def test_an_open_port_without_tls_is_warned_of(options, is_warned):
    """failures: no flag turns safety off silently."""
    async with run_program("serve", *PORT_0, "--json", *options) as server:
        await ready(server)
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert ("without TLS" in server.err.decode()) is is_warned


# Ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_in_order(number):
    async with run_program("serve", *PORT_0, "--json", "--auto-create") as server:
        environ = {"RELAYCORE_CONNECTION_STRING": (await ready(server))["connection_string"]}
        async with run_program("listen", "demo", environ=environ) as listener:
            await listener.wait_err("online")
            server.signal(number)
            assert await server.exit_code() == 0
            assert "server.stopped" in server.err.decode()
            await listener.wait_err("offline")


async def test_a_second_signal_does_not_wait():
    """A listener that is frozen never answers the relay's Close; the drain time is 10 s."""
    async with run_program("serve", *PORT_0, "--json", "--auto-create") as server:
        environ = {"RELAYCORE_CONNECTION_STRING": (await ready(server))["connection_string"]}
        async with run_program("listen", "demo", environ=environ) as listener:
            await listener.wait_err("online")
            listener.signal(signal.SIGSTOP)
            server.signal(signal.SIGINT)
            await server.wait_err("server.stopping")
            started = trio.current_time()
            await trio.sleep(0.6)
            server.signal(signal.SIGINT)
            assert await server.exit_code() == ExitCode.INTERRUPTED
            assert trio.current_time() - started < 8


async def test_a_signal_that_comes_twice_is_one():
    """make and timeout pass on what the whole process group has got already."""
    settings = {"RELAYCORE_TIMEOUTS_DRAIN": "1"}
    async with run_program("serve", *PORT_0, "--json", "--auto-create", environ=settings) as server:
        environ = {"RELAYCORE_CONNECTION_STRING": (await ready(server))["connection_string"]}
        async with run_program("listen", "demo", environ=environ) as listener:
            await listener.wait_err("online")
            listener.signal(signal.SIGSTOP)
            server.signal(signal.SIGTERM)
            await server.wait_err("server.stopping")
            server.signal(signal.SIGTERM)
            assert await server.exit_code() == 0


def write_pair(authority: trustme.CA, folder, name: str = "relay") -> tuple[str, str]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / f"{name}.key")
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(folder / f"{name}.pem", append=index > 0)
    return f"{name}.pem", f"{name}.key"


async def peer_certificate(port: int, context: ssl.SSLContext) -> bytes:
    stream = await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=context)
    async with stream:
        await stream.do_handshake()
        return stream.getpeercert(binary_form=True)


async def test_sighup_loads_the_certificate_anew(tmp_path):
    authority = trustme.CA()
    cert, key = write_pair(authority, tmp_path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    environ = {"RELAYCORE_TLS_RELOAD_INTERVAL": "0"}  # by the signal only
    async with run_program("serve", *PORT_0, "--json", "--tls-cert", cert, "--tls-key", key, environ=environ) as server:
        line = await ready(server)
        port = line["addresses"][0][1]
        assert line["base_url"].startswith("wss://")
        assert "UseDevelopmentEmulator" not in line["connection_string"]
        first = await peer_certificate(port, context)
        write_pair(authority, tmp_path)
        assert await peer_certificate(port, context) == first
        server.signal(signal.SIGHUP)
        await server.wait_err("tls.reloaded")
        assert await peer_certificate(port, context) != first
        (tmp_path / key).write_text("junk")
        server.signal(signal.SIGHUP)
        await server.wait_err("tls.reload_failed")
        assert await peer_certificate(port, context) != first


# Starts that fail ----------------------------------------------------------------------------------------------------


def one_line(result) -> str:
    assert result.stdout == ""
    assert result.stderr.startswith("relaycore: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use(invoke):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("serve", "--port", str(port))
    assert result.exit_code == ExitCode.PORT_IN_USE
    assert f"127.0.0.1:{port}" in one_line(result)


def test_a_privileged_port(invoke, monkeypatch):
    async def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)  # root may bind any port
    result = invoke("serve", "--port", "443")
    assert result.exit_code == ExitCode.PORT_PRIVILEGED
    assert "below 1024" in one_line(result)


def test_an_address_of_another_machine(invoke):
    result = invoke("serve", "--host", "192.0.2.1", "--port", "0")
    assert result.exit_code == ExitCode.CONFIG
    assert "192.0.2.1" in one_line(result)


def test_certificates_that_cannot_be_used(invoke, tmp_path):
    authority = trustme.CA()
    cert, key = write_pair(authority, tmp_path)
    other, _ = write_pair(trustme.CA(), tmp_path, "other")
    (tmp_path / "junk.pem").write_text("junk")

    def serve(cert: str, key: str):
        return invoke("serve", *PORT_0, "--tls-cert", cert, "--tls-key", key)

    for result in (
        serve("missing.pem", key),
        serve(cert, "missing.key"),
        serve("junk.pem", key),
        serve(cert, "junk.pem"),
    ):
        assert result.exit_code == ExitCode.CERTIFICATE_UNREADABLE
        one_line(result)
    mismatch = serve(other, key)
    assert mismatch.exit_code == ExitCode.CERTIFICATE_MISMATCH
    assert "belong together" in one_line(mismatch)
    alone = invoke("serve", *PORT_0, "--tls-cert", cert)
    assert alone.exit_code == ExitCode.CONFIG
    assert "needs tls.key" in one_line(alone)


def test_a_store_that_another_process_holds(invoke, monkeypatch):
    async def refuse(*args, **kwargs):
        raise ServerBusy("The store is busy: another process is writing to it")

    monkeypatch.setattr("relaycore.cli.definitions.open_sqlite", refuse)
    result = invoke("serve", *PORT_0, "--store", "relay.db")
    assert result.exit_code == ExitCode.STORE_LOCKED
    assert "relay.db" in one_line(result)


def test_a_store_that_cannot_be_written(invoke, tmp_path):
    for path in ("/proc/relay.db", str(tmp_path), "/dev/full"):
        result = invoke("serve", *PORT_0, "--store", path)
        assert result.exit_code == ExitCode.STORE_UNUSABLE
        assert path in one_line(result)
