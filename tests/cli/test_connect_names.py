"""``relaycore connect hosts`` and ``dns``: names from the settings or the running program, texts, checks, questions."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

import dns.message
import pytest
import trio
from programs import finish, run_program

from relaycore.cli.connect.dns_setup import SYSTEMS, domains_of, setup_text
from relaycore.cli.connect.names import only
from relaycore.edge.config.settings import DnsSettings, ListenAt
from relaycore.edge.connect.dns import Answered, ask_udp, build_question, read_answer, serve_dns
from relaycore.edge.connect.hosts import HostsFile
from relaycore.edge.connect.status import Redirection
from relaycore.edge.control.server import serve_control
from relaycore.errors import ConfigError, RemoteProtocolError
from relaycore.testing import open_relay
from relaycore.wire.connection_string import parse_connection_string

SETTINGS = """
[relay.main]
endpoint = "sb://relay.example/"
[connect.control]
socket = "{directory}/connect.sock"
[connect.dns]
listen = ["127.0.0.153:5353"]
[[connect.forward]]
name = "orders"
relay = "main"
path = "sql"
key_name = "send"
key = {{ env = "KEY" }}
hosts = ["SQLdb.corp.invalid", "sqldb"]
port = 1433
[[connect.forward]]
name = "web"
relay = "main"
path = "web"
key_name = "send"
key = {{ env = "KEY" }}
hosts = ["*.web.invalid"]
port = 443
[[connect.forward]]
name = "unknown"
relay = "main"
path = "other"
key_name = "send"
key = {{ env = "KEY" }}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "relaycore.toml"
    path.write_text(SETTINGS.format(directory=tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return ["--config", str(path)]


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    return path


# hosts ---------------------------------------------------------------------------------------------------------------


def test_print_apply_check_remove(invoke, config: list[str], hosts: Path):
    """connection manager 8.6: hosts print, apply, remove; twice is once."""
    printed = invoke("connect", "hosts", "print", *config)
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == ["sqldb.corp.invalid", "sqldb"]
    assert "only the relay knows the names of unknown" in printed.stderr
    dry = invoke("connect", "hosts", "apply", "--dry-run", "--file", str(hosts), *config)
    assert hosts.read_text() == "127.0.0.1 localhost\n"
    done = invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    assert hosts.read_text() == "127.0.0.1 localhost\n" + printed.stdout
    assert done.exit_code == dry.exit_code == 0
    assert "+ sqldb.corp.invalid -> 127.77." in done.stdout
    assert dry.stdout.splitlines()[:2] == done.stdout.splitlines()[:2]
    assert "skipped *.web.invalid" in done.stdout
    again = invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    assert "nothing to change" in again.stdout
    gone = invoke("connect", "hosts", "remove", "--file", str(hosts))
    assert gone.exit_code == 0
    assert hosts.read_text() == "127.0.0.1 localhost\n"


def test_names_lead_where_the_forwards_listen(invoke, config: list[str], tmp_path: Path):
    """The address that `listen` names, one for all ports of a name, and none where there are Unix sockets only."""
    forward = (
        '[[connect.forward]]\nname = "{}"\nrelay = "main"\npath = "p"\nkey_name = "send"\nkey = {{ env = "KEY" }}\n'
    )
    lines = [
        'hosts = ["db.invalid"]\nport = 5432\nlisten = ["127.0.9.7:5432"]',
        'hosts = ["file.invalid"]\nport = 5432\nlisten = ["unix:/x"]',
        'hosts = ["box.invalid"]\nport = 22',
        'hosts = ["box.invalid"]\nport = 80',
        'hosts = ["gateway.invalid"]\nport = 80\nlisten = ["10.0.0.1:80"]',
    ]
    text = "\n".join(forward.format(f"f{number}") + line for number, line in enumerate(lines))
    (tmp_path / "relaycore.toml").write_text(SETTINGS.format(directory=tmp_path).partition("[[")[0] + text)
    done = invoke("connect", "hosts", "print", *config)
    assert "gateway.invalid is left out" in done.stderr  # root would not take its line from us
    printed = done.stdout.splitlines()[1:-1]
    assert [line.split("\t")[1:] for line in printed] == [["db.invalid", "# f0"], ["box.invalid", "# f2"]]
    assert printed[0].startswith("127.0.9.7\t")
    box = printed[1].partition("\t")[0]
    listed = json.loads(invoke("connect", "list", "--json", *config).stdout)
    assert listed[2]["listen"] == [f"{box}:22"]
    assert listed[3]["listen"][1:] == [f"{box}:80"]


def test_hosts_check_is_content_with_two_ports_of_one_name(invoke, config: list[str], tmp_path: Path, hosts: Path):
    text = SETTINGS.format(directory=tmp_path).replace("*.web.invalid", "sqldb")
    (tmp_path / "relaycore.toml").write_text(text)
    applied = invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    assert applied.exit_code == 0
    checked = invoke("connect", "hosts", "check", "sqldb", "--file", str(hosts), *config)
    address = {name: address for _, address, name, _ in HostsFile(hosts).entries()}["sqldb"]
    assert checked.stdout.count(f"expected {address}") == 2


def test_apply_from_what_was_printed(invoke, config: list[str], hosts: Path):
    """The way with sudo: root need not have these settings."""
    printed = invoke("connect", "hosts", "print", *config).stdout
    done = invoke("connect", "hosts", "apply", "--from", "-", "--file", str(hosts), input=printed)
    assert done.exit_code == 0
    assert hosts.read_text().endswith(printed)
    bad = invoke("connect", "hosts", "apply", "--from", "-", "--file", str(hosts), input="10.0.0.1 bank.example\n")
    assert bad.exit_code == 3
    assert "bank" not in hosts.read_text()


def test_somebody_elses_entry(invoke, config: list[str], hosts: Path):
    hosts.write_text("10.0.0.1 sqldb\n")
    done = invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    assert done.exit_code == 3
    assert f"{hosts}:1: sqldb is 10.0.0.1 there" in done.stderr
    assert hosts.read_text() == "10.0.0.1 sqldb\n"


def test_check_leaves_with_8(invoke, config: list[str], hosts: Path):
    """connection manager 8.11: exit code 8, name not redirected."""
    done = invoke("connect", "hosts", "check", "--file", str(hosts), *config)
    assert done.exit_code == 8
    assert "FAIL sqldb.corp.invalid -> NOT redirected (no such name), expected 127.77." in done.stdout
    assert "FAIL *.web.invalid -> NOT redirected" in done.stdout
    assert "dns setup" in done.stdout
    done = invoke("connect", "hosts", "check", "web", "--file", str(hosts), *config)
    assert done.stdout.count("\n") == 1
    done = invoke("connect", "hosts", "check", "nonsense", "--file", str(hosts), *config)
    assert done.exit_code == 3


def test_check_is_content(invoke, config: list[str], hosts: Path, monkeypatch: pytest.MonkeyPatch):
    invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    found = {name: address for _, address, name, _ in HostsFile(hosts).entries()}

    async def getaddrinfo(host: str, port: int | None, **_options):
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found[host], port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    done = invoke("connect", "hosts", "check", "orders", "--file", str(hosts), *config)
    assert done.exit_code == 0
    assert f" ok  sqldb -> {found['sqldb']} ({hosts}:4)" in done.stdout


async def test_the_running_program_knows_best(invoke, config: list[str], tmp_path: Path):
    """Names that only the relay's text has, and the addresses that are really in use."""

    async def names(_arguments, _emit) -> object:
        await trio.lowlevel.checkpoint()
        return [
            Redirection("orders", "sqldb.corp.invalid", "127.77.8.9", 1433),
            Redirection("orders", "sqldb", "127.77.8.9", 1433),
            Redirection("web", "*.web.invalid", "127.77.8.7", 443),
            Redirection("unknown", "from-the-relay.invalid", "127.77.8.8", 1),
        ]

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path / "connect.sock", {"names": names})
        done = await trio.to_thread.run_sync(partial(invoke, "connect", "hosts", "print", *config))
        nursery.cancel_scope.cancel()
    assert done.exit_code == 0
    assert done.stderr == ""
    assert "127.77.8.8\tfrom-the-relay.invalid\t# unknown\n" in done.stdout
    assert "127.77.8.9\t" in done.stdout


async def test_a_running_program_with_other_settings_is_told_of(invoke, config: list[str], tmp_path: Path):
    """manager 8.11: names of other settings than those that are given are shown, and said to be."""

    async def names(_arguments, _emit) -> object:
        await trio.lowlevel.checkpoint()
        return [
            Redirection("orders", "sqldb.corp.invalid", "127.77.8.9", 1434),
            Redirection("orders", "sqldb", "127.77.8.9", 1434),
            Redirection("web", "*.web.invalid", "127.77.8.7", 443),
            Redirection("files", "files.invalid", "127.77.8.6", 1),
        ]

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, tmp_path / "connect.sock", {"names": names})
        done = await trio.to_thread.run_sync(partial(invoke, "connect", "hosts", "print", *config))
        nursery.cancel_scope.cancel()
    assert done.exit_code == 0
    assert "has other settings than these about files, orders, and its names are shown" in done.stderr
    assert "127.77.8.6\tfiles.invalid" in done.stdout


def test_picking_names():
    names = [Redirection("a", "x.test", "127.0.0.2", 1), Redirection("b", "y.test", "127.0.0.3", 1)]
    assert only(names, []) == names
    assert only(names, ["A"]) == names[:1]
    assert only(names, ["Y.test."]) == names[1:]
    assert only(names, ["z"]) == []


# dns -----------------------------------------------------------------------------------------------------------------


def test_domains():
    """What one domain covers is not routed twice; what is no name gets into no text."""
    hosts = ["b.web.example", "*.web.example", "Web.example.", "sqldb", "10.0.0.1", "x\ny", 'a"b', "$(x)", "*.a"]
    assert domains_of(hosts) == ["a", "sqldb", "web.example"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_text_names_stub_and_domains(invoke, config: list[str], system: str):
    """connection manager 8.6: ready text for each resolver."""
    done = invoke("connect", "dns", "setup", system, *config)
    assert done.exit_code == 0
    for word in ("127.0.0.153", "5353", "sqldb.corp.invalid", "web.invalid"):
        assert word in done.stdout


def test_texts_letter_by_letter():
    domains = ["sqldb", "web.example"]
    assert setup_text("systemd-resolved", "127.0.0.153", 5353, domains).splitlines()[:5] == [
        "# /etc/systemd/resolved.conf.d/relaycore.conf",
        "[Resolve]",
        "DNS=127.0.0.153:5353",
        "Domains=~sqldb ~web.example",
        "ResolveUnicastSingleLabel=yes",
    ]
    assert "SingleLabel" not in setup_text("systemd-resolved", "::1", 53, ["web.example"])
    assert "server=/web.example/127.0.0.153#5353\n" in setup_text("dnsmasq", "127.0.0.153", 5353, domains)
    assert "forward . [::1]:5353\n" in setup_text("coredns", "::1", 5353, domains)
    assert "nameserver 127.0.0.153\nport 5353\n" in setup_text("macos", "127.0.0.153", 5353, domains)
    assert "lo0 alias 127.0.0.153" in setup_text("macos", "127.0.0.153", 5353, domains)
    assert "lo0" not in setup_text("macos", "127.0.0.1", 5353, domains)
    windows = setup_text("windows", "127.0.0.153", 5353, domains)
    assert '-Namespace ".web.example" -NameServers "127.0.0.153"' in windows
    assert "know no ports" in windows
    assert "know no ports" not in setup_text("windows", "127.0.0.153", 53, domains)
    with pytest.raises(ValueError, match="no text"):
        setup_text("other", "127.0.0.1", 53, domains)


def find_tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def dnsmasq(directory: Path, text: str, port: int) -> tuple[list[str], list[str]]:
    """The command that checks a text, and the one that serves by it."""
    path = directory / "dnsmasq.conf"
    path.write_text(text)
    program = [str(find_tool("dnsmasq")), f"--conf-file={path}"]
    options = f"-k --port={port} --listen-address=127.0.0.1 --bind-interfaces --no-resolv --no-hosts --stop-dns-rebind"
    return [*program, "--test"], [*program, *options.split(), f"--pid-file={directory}/pid", f"--user={user_name()}"]


def unbound(directory: Path, text: str, port: int) -> tuple[list[str], list[str]]:
    path = directory / "unbound.conf"
    own = f'''
server:
    directory: "{directory}"
    chroot: ""
    username: ""
    pidfile: ""
    interface: 127.0.0.1
    port: {port}
    use-syslog: no
    do-daemonize: no
'''
    path.write_text(own + text)
    return [str(find_tool("unbound-checkconf")), str(path)], [str(find_tool("unbound")), "-d", "-c", str(path)]


def user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.interop
@pytest.mark.parametrize(
    "resolver",
    [
        pytest.param(
            resolver, marks=pytest.mark.skipif(find_tool(resolver.__name__) is None, reason="it is not installed")
        )
        for resolver in (dnsmasq, unbound)
    ],
)
async def test_real_resolvers_lead_to_the_stub(resolver, tmp_path: Path):
    """connection manager 8.6: the text as it is printed, in a resolver that others have written."""
    names = [
        Redirection("orders", "sqldb", "127.77.1.1", 1433),
        Redirection("web", "*.web.invalid", "127.77.2.2", 443),
    ]
    port = free_port()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            settings = DnsSettings((ListenAt("tcp", "127.0.0.1", 0),), 7)
            opened = await nursery.start(partial(serve_dns, settings, lambda: names))
            text = setup_text(resolver.__name__, *opened[0].address, domains_of(one.host for one in names))
            check, serve = resolver(tmp_path, text, port)
            done = await trio.run_process(check, check=False, capture_stdout=True, capture_stderr=True)
            assert done.returncode == 0, done
            process = await nursery.start(partial(trio.run_process, serve, check=False, capture_stderr=True))
            try:
                assert (await ask_until_it_answers(port, "sqldb", "A")).records == ("sqldb. 7 IN A 127.77.1.1",)
                answer = await ask_until_it_answers(port, "B.a.web.invalid", "A")
                assert answer.records == ("B.a.web.invalid. 7 IN A 127.77.2.2",)
                for kind in ("AAAA", "HTTPS"):
                    answer = await ask_until_it_answers(port, "a.web.invalid", kind)
                    assert (answer.word, answer.records) == ("NOERROR", ())
            finally:
                process.kill()
            nursery.cancel_scope.cancel()


async def ask_until_it_answers(port: int, name: str, kind: str) -> Answered:
    """A resolver that has just started is not there yet."""
    while True:
        with trio.move_on_after(1), suppress(OSError):
            data = await ask_udp(("127.0.0.1", port), build_question(name, kind))
            assert data is not None
            return read_answer(data)
        await trio.sleep(0.02)


def test_setup_needs_a_stub_and_names(invoke, config: list[str], tmp_path: Path):
    done = invoke("connect", "dns", "setup", "dnsmasq", *config, "-o", "connect.dns.listen=[]")
    assert done.exit_code == 3
    assert "connect.dns.listen" in done.stderr
    path = tmp_path / "empty.toml"
    path.write_text('[connect.dns]\nlisten = ["127.0.0.153:5353"]\n')
    done = invoke("connect", "dns", "setup", "dnsmasq", "--config", str(path))
    assert done.exit_code == 3
    assert "no names yet" in done.stderr


async def test_query(invoke, config: list[str]):
    names = [Redirection("orders", "sqldb.corp.invalid", "127.77.1.1", 1433)]
    settings = DnsSettings((ListenAt("tcp", "127.0.0.1", 0),), 7)
    async with trio.open_nursery() as nursery:
        opened = await nursery.start(partial(serve_dns, settings, lambda: names))

        async def ask(*words: str):
            return await trio.to_thread.run_sync(
                partial(invoke, "connect", "dns", "query", *words, "--server", opened[0].shown)
            )

        for more in ([], ["--tcp"]):
            done = await ask("SQLdb.corp.invalid", *more)
            assert (done.exit_code, done.stdout) == (0, "SQLdb.corp.invalid. 7 IN A 127.77.1.1\n")
            assert done.stderr.startswith(f"NOERROR, from {opened[0].shown} in ")
        done = await ask("1.1.77.127.in-addr.arpa", "ptr")
        assert done.stdout == "1.1.77.127.in-addr.arpa. 7 IN PTR sqldb.corp.invalid.\n"
        done = await ask("sqldb.corp.invalid", "AAAA")
        assert (done.exit_code, done.stdout) == (8, "")
        assert "NOERROR, nothing of that kind" in done.stderr
        done = await ask("other.invalid")
        assert done.exit_code == 8
        assert "REFUSED" in done.stderr
        done = await ask("a..b")
        assert done.exit_code == 3
        nursery.cancel_scope.cancel()


def test_query_of_nobody(invoke, config: list[str]):
    for more in ([], ["--tcp"]):
        done = invoke("connect", "dns", "query", "x.invalid", "--server", "127.0.0.1:1", *more)
        assert done.exit_code == 5
        assert "cannot ask 127.0.0.1:1: " in done.stderr
        assert "does relaycore connect run?" in done.stderr
    for server in ("x", "127.0.0.1:0", "127.0.0.1:70000", "::1"):
        assert invoke("connect", "dns", "query", "x.invalid", "--server", server).exit_code == 2


def test_questions_and_answers():
    assert dns.message.from_wire(build_question("a.example", "a")).question[0].name.to_text() == "a.example."
    for name, kind in (("a..b", "A"), ("a", "nonsense")):
        with pytest.raises(ConfigError, match="no question"):
            build_question(name, kind)
    with pytest.raises(RemoteProtocolError):
        read_answer(b"x")


# The whole of it -----------------------------------------------------------------------------------------------------


async def test_the_running_program_answers_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """connection manager 8.6: `connect run` with a name server; `dns query`, `hosts print` and `hosts check` beside it.

    The forward's name and port stand in the hybrid connection's own text: only the running program can know them.
    """
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    port = free_port()
    async with open_relay() as relay:
        text = '[{"key":"endpoint","value":"sqldb.corp.invalid:28077"}]'
        await relay.create_entity("sql", user_metadata=text)
        found = parse_connection_string(relay.connection_string("sql", rights=["Send"]))
        monkeypatch.setenv("KEY", found.key or "")
        path = tmp_path / "relaycore.toml"
        path.write_text(
            f"""
[relay.main]
endpoint = "sb://127.0.0.1:{relay.port}/"
emulator = true
proxy = "none"
[connect.control]
socket = "{tmp_path}/connect.sock"
[connect.dns]
listen = ["127.0.0.1:{port}"]
[[connect.forward]]
name = "orders"
relay = "main"
path = "sql"
key_name = "{found.key_name}"
key = {{ env = "KEY" }}
"""
        )
        config = ["--config", str(path)]
        async with run_program("connect", "run", *config) as program:
            await program.wait_err("names: on 127.0.0.1:")
            await program.wait_err("forward is listening")
            code, out, err = await finish("connect", "dns", "query", "SQLDB.corp.invalid", *config)
            assert code == 0, err
            address = out.decode().split()[-1]
            assert address.startswith("127.77.")
            code, out, err = await finish("connect", "dns", "query", "other.invalid", *config)
            assert code == 8, err
            code, out, err = await finish("connect", "hosts", "print", *config)
            assert (code, err) == (0, "")
            assert f"{address}\tsqldb.corp.invalid\t# orders\n" in out.decode()
            code, out, err = await finish("connect", "hosts", "check", *config)
            assert code == 8
            assert "sqldb.corp.invalid -> NOT redirected" in out.decode()
            program.signal(signal.SIGTERM)
            assert await program.exit_code() == 0


# imported ------------------------------------------------------------------------------------------------------------


def test_azbridge_forwards_lead_their_names_to_their_own_addresses(invoke, tmp_path: Path, hosts: Path, monkeypatch):
    """BindAddress is where they listen, HostName what leads there, and without one nothing does."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    az, config = tmp_path / "az.yml", ["--config", str(tmp_path / "relaycore.toml")]
    (tmp_path / "relaycore.toml").touch()
    az.write_text(
        "AzureRelayEndpoint: sb://relay.example/\nAzureRelaySharedAccessKeyName: send\n"
        "AzureRelaySharedAccessKey: c2VjcmV0\nLocalForward:\n"
        "- RelayName: db\n  BindAddress: 127.0.9.1\n  BindPort: 5432\n  PortName: pg\n  HostName: db.invalid\n"
        "- RelayName: plain\n  BindAddress: 127.0.9.1\n  BindPort: 5433\n  PortName: pg\n"
    )
    done = invoke("connect", "import", str(az), *config)
    assert "db:pg: db.invalid port 5432 -> db\nplain:pg: no name, port 5433 -> plain" in done.stdout
    checked = invoke("connect", "config", "check", *config)
    assert (checked.exit_code, checked.stderr) == (0, "")
    applied = invoke("connect", "hosts", "apply", "--file", str(hosts), *config)
    assert applied.stdout.splitlines()[0] == "+ db.invalid -> 127.0.9.1"
    assert "only the relay knows" not in applied.stderr
    assert "plain" not in hosts.read_text()
    listed = invoke("connect", "list", *config).stdout.splitlines()[2]
    assert listed.split()[:3] == ["plain:pg", "127.0.9.1:5433", "-"]
