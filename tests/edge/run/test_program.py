from __future__ import annotations

import dataclasses
import signal
from contextlib import AsyncExitStack

import pytest
import trio
from run_world import ANSWER, NAME, open_run_world

from relaycore.edge.config.settings import (
    ConnectSettings,
    Forward,
    ListenAt,
    PortBinding,
    Profile,
    Target,
)
from relaycore.edge.connect import forwarder
from relaycore.edge.connect.listeners import ListenFailed
from relaycore.edge.run import program
from relaycore.edge.run.modes import RunMode
from relaycore.edge.run.namespaces import CannotExecute, NoNamespaces
from relaycore.edge.run.program import run_program
from relaycore.errors import ConfigError

needs_namespaces = pytest.mark.usefixtures("namespaces")


def look(world, *, host: str = NAME, port: int = 8080) -> list[str]:
    """A shell that writes what a server answers into the file ``result``."""
    ask = f"curl -sS -m 10 http://{host}:{port}/ >{world.directory}/result 2>&1"
    return ["sh", "-c", f"{ask}; exit 7"]


def result(world) -> str:
    return (world.directory / "result").read_text()


@needs_namespaces
@pytest.mark.parametrize("mode", [RunMode.HOSTS, RunMode.ISOLATED])
async def test_a_program_reaches_a_name_and_its_exit_code_is_ours(mode):
    beginnings = []
    async with open_run_world() as world:
        code = await run_program(world.settings(), look(world), mode=mode, tell=beginnings.append)
        assert (code, result(world)) == (7, ANSWER)
    (beginning,) = beginnings
    assert (beginning.mode, beginning.troubles, beginning.passed_over) == (mode, (), ())
    assert [(name.host, name.port) for name in beginning.names] == [(NAME, 8080)]


@needs_namespaces
async def test_a_low_port_works_in_a_network_of_its_own():
    """spec 8.8 of the connection manager."""
    async with open_run_world() as world:
        code = await run_program(world.settings(port=80), look(world, port=80), mode=RunMode.ISOLATED)
        assert (code, result(world)) == (7, ANSWER)


@needs_namespaces
async def test_fixed_addresses_are_opened_only_in_a_network_of_its_own():
    async with open_run_world() as world:
        settings = world.settings(listen=(ListenAt("tcp", "127.0.0.1", 443),))
        await run_program(settings, look(world, host="localhost", port=443), mode=RunMode.ISOLATED)
        assert result(world) == ANSWER
        await run_program(settings, look(world), mode=RunMode.ISOLATED)
        assert result(world) == ANSWER
        await run_program(settings, look(world), mode=RunMode.HOSTS)
        assert result(world) == ANSWER


@needs_namespaces
@pytest.mark.parametrize("mode", [RunMode.HOSTS, RunMode.ISOLATED])
async def test_a_program_reaches_several_names(mode):
    async with open_run_world() as world:
        (forward,) = world.settings().forwards
        hosts = ["a.corp.example", "b.corp.example", "c.corp.example"]
        forwards = tuple(dataclasses.replace(forward, name=host, hosts=(host,)) for host in hosts)
        ask = "; ".join(f"curl -sS -m 10 http://{host}:8080/" for host in hosts)
        words = ["sh", "-c", f"({ask}) >{world.directory}/result 2>&1"]
        assert await run_program(ConnectSettings(forwards), words, mode=mode) == 0
        assert result(world) == ANSWER * 3


@pytest.fixture
def signals_put_back():
    """Trio puts handlers back in the order of a stack; two programs in one process end in their own order."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@needs_namespaces
@pytest.mark.parametrize("mode", [RunMode.HOSTS, RunMode.ISOLATED])
async def test_a_program_reaches_several_ports_of_one_name(mode):
    beginnings = []
    async with open_run_world() as world:
        (first,) = world.settings().forwards
        second = dataclasses.replace(first, name="second", port=8081)
        ask = "; ".join(f"curl -sS -m 10 http://{NAME}:{port}/" for port in (8080, 8081))
        words = ["sh", "-c", f"({ask}) >{world.directory}/result 2>&1"]
        assert await run_program(ConnectSettings((first, second)), words, mode=mode, tell=beginnings.append) == 0
        assert result(world) == ANSWER * 2
    assert [name.port for name in beginnings[0].names] == [8080, 8081]


@needs_namespaces
@pytest.mark.parametrize("mode", [RunMode.HOSTS, RunMode.ISOLATED])
async def test_a_program_reaches_the_port_that_is_announced(mode):
    """With another port in `listen` as well."""
    beginnings = []
    async with open_run_world() as world:
        settings = world.settings(listen=(ListenAt("tcp", "auto", 10_443),))
        await run_program(settings, look(world), mode=mode, tell=beginnings.append)
        assert result(world) == ANSWER
        await run_program(settings, look(world, port=10_443), mode=mode)
        assert result(world) == ANSWER
        assert [name.port for name in beginnings[0].names] == [8080]
        assert not beginnings[0].troubles


@needs_namespaces
async def test_a_port_that_cannot_be_opened_is_not_announced(monkeypatch):
    opened = program.open_local, program.open_for_own_user

    def refuse(number: int):
        async def open_at(at, *, address, port, **others):
            if not at.port:
                raise ListenFailed(f"cannot listen on {address}:{port}: Permission denied", is_port=True)
            return await opened[number](at, address=address, port=port, **others)

        return open_at

    monkeypatch.setattr(program, "open_local", refuse(0))
    monkeypatch.setattr(program, "open_for_own_user", refuse(1))
    beginnings = []
    async with open_run_world() as world:
        settings = world.settings(listen=(ListenAt("tcp", "auto", 10_443),))
        await run_program(settings, look(world, port=10_443), mode=RunMode.HOSTS, tell=beginnings.append)
        assert result(world) == ANSWER
    assert [name.port for name in beginnings[0].names] == [10_443]
    assert "Permission denied" in beginnings[0].troubles[0]


@needs_namespaces
async def test_two_programs_at_one_time_have_addresses_of_their_own(signals_put_back):
    async with open_run_world() as world:
        other = dataclasses.replace(world, directory=world.directory / "other")
        other.directory.mkdir()
        async with trio.open_nursery() as nursery:
            for one in (world, other):
                nursery.start_soon(run_program, one.settings(), look(one))
        assert result(world) == result(other) == ANSWER


@needs_namespaces
async def test_names_and_port_may_be_the_relay_s_to_say():
    async with open_run_world() as world:
        text = '[{"key":"endpoint","value":"sqldb.corp.example:1433"}]'
        await world.relay.delete_entity("orders")
        await world.relay.create_entity("orders", user_metadata=text)
        settings = world.settings(hosts=(), port=0, key_name="RootManageSharedAccessKey", key=world.key)
        async with world.listening():
            await run_program(settings, look(world, host="sqldb.corp.example", port=1433))
        assert result(world) == ANSWER


@needs_namespaces
async def test_a_name_that_changes_at_the_relay_changes_for_the_program(monkeypatch):
    """spec 8.8 of the connection manager: in-place hot reload."""
    monkeypatch.setattr(forwarder, "_READ_AGAIN_S", 0.05)
    async with open_run_world() as world:
        began = world.directory / "began"
        wait = "until getent hosts new.corp.example; do sleep 0.02; done"

        async def name(host: str) -> None:
            text = f'[{{"key":"endpoint","value":"{host}:18081"}}]'
            await world.relay.delete_entity("orders")
            await world.relay.create_entity("orders", user_metadata=text)

        async def rename() -> None:
            while not began.exists():
                await trio.sleep(0.01)
            await name("new.corp.example")

        await name("old.corp.example")
        settings = world.settings(hosts=(), port=0, key_name="RootManageSharedAccessKey", key=world.key)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rename)
                script = f"getent hosts old.corp.example && touch {began} && {wait}"
                code = await run_program(settings, ["sh", "-c", f"({script}) >{world.directory}/result"])
        assert code == 0
        assert result(world).split()[1::2] == ["old.corp.example", "new.corp.example"]


@needs_namespaces
@pytest.mark.parametrize("host", ["a.b.wild.example", "ORDERS.Corp.Example", f"{NAME}."])
async def test_an_isolated_program_asks_a_dns_server_of_ours(host):
    """spec 8.6 of the connection manager: names below a suffix, any case, a dot at the end."""
    async with open_run_world() as world:
        settings = world.settings(hosts=(NAME, "*.wild.example"))
        await run_program(settings, look(world, host=host), mode=RunMode.ISOLATED)
        assert result(world) == ANSWER


@needs_namespaces
async def test_an_isolated_program_learns_no_other_name():
    async with open_run_world() as world:
        words = ["sh", "-c", f"getent hosts relay.example >{world.directory}/result; test $? = 2"]
        assert await run_program(world.settings(), words, mode=RunMode.ISOLATED) == 0
        assert result(world) == ""


@needs_namespaces
async def test_datagrams_pass_in_a_network_of_its_own():
    """spec 3.7 of the connection manager, from inside the namespace."""
    ask = (
        "import socket; s = socket.socket(2, 2); s.connect(('dns.corp.example', 53)); s.send(b'ask'); print(s.recv(9))"
    )

    async def reply(server):
        data, peer = await server.recvfrom(99)
        await server.sendto(data[::-1], peer)

    async with open_run_world() as world, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        server = stack.enter_context(trio.socket.socket(type=trio.socket.SOCK_DGRAM))
        await server.bind(("127.0.0.1", 0))
        nursery.start_soon(reply, server)
        await world.relay.create_entity("dns", requires_client_authorization=False)
        binding = PortBinding("dns", (Target(*server.getsockname()),), is_udp=True)
        forward = Forward(
            "dns",
            world.relay_settings,
            "dns",
            profile=Profile.AZBRIDGE,
            hosts=("dns.corp.example",),
            port=53,
            port_name="dns",
            listen=(ListenAt("udp", "auto"),),
        )
        async with world.managing("dns", profile=Profile.AZBRIDGE, ports=(binding,)):
            words = ["sh", "-c", f'exec "$@" >{world.directory}/result', "sh", "python3", "-c", ask]
            code = await run_program(ConnectSettings((forward,)), words, mode=RunMode.ISOLATED)
        assert (code, result(world)) == (0, "b'ksa'\n")


@needs_namespaces
async def test_the_end_by_a_signal_is_the_shell_s_number():
    async with open_run_world() as world:
        assert await run_program(world.settings(), ["sh", "-c", "kill -9 $$"]) == 128 + signal.SIGKILL


@needs_namespaces
async def test_what_the_program_wrote_last_arrives():
    """Its connection may still wait in the kernel, or for the relay, when it has ended."""
    heard = []

    async def hear(stream):
        async with stream:
            async for data in stream:
                heard.append(data)

    async with open_run_world(hear) as world:
        words = ["bash", "-c", f"printf last >/dev/tcp/{NAME}/8080"]
        assert await run_program(world.settings(), words, mode=RunMode.HOSTS) == 0
    assert b"".join(heard) == b"last"


@needs_namespaces
async def test_there_is_no_such_program():
    async with open_run_world() as world:
        with pytest.raises(CannotExecute, match="No such file"):
            await run_program(world.settings(), ["no-such-program"])


async def test_without_a_forward_there_is_nothing_to_run():
    with pytest.raises(ConfigError, match="no forward"):
        await run_program(ConnectSettings(), ["true"])


async def test_only_the_relay_excludes_the_other_modes():
    async with open_run_world() as world:
        with pytest.raises(ConfigError, match="needs the mode isolated"):
            await run_program(world.settings(), ["true"], mode=RunMode.HOSTS, only_relay=True)


async def test_without_namespaces_auto_takes_the_next_and_says_why(monkeypatch):
    async def refuse(self, **_):
        raise NoNamespaces("unshare", 1)

    monkeypatch.setattr(program.Entrance, "enter", refuse)
    beginnings = []
    async with open_run_world() as world:
        assert await run_program(world.settings(), ["true"], tell=beginnings.append) == 0
        assert beginnings[0].mode is RunMode.ENV
        assert beginnings[0].passed_over == ("hosts: unshare: EPERM (Operation not permitted)",)
        with pytest.raises(NoNamespaces):
            await run_program(world.settings(), ["true"], mode=RunMode.HOSTS)
        with pytest.raises(NoNamespaces):
            await run_program(world.settings(), ["true"], only_relay=True)


@needs_namespaces
async def test_a_forward_that_cannot_be_reached_is_named():
    beginnings = []
    async with open_run_world() as world:
        settings = world.settings(hosts=(), port=0)  # and its text says nothing
        await run_program(settings, ["true"], mode=RunMode.ISOLATED, tell=beginnings.append)
    (trouble,) = beginnings[0].troubles
    assert trouble.startswith("orders: where it leads is not known")
