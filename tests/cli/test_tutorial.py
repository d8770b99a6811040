"""docs/tutorial-database.md, from its first line to its last: what it says to type, and what it says that one sees.

Other ports, another folder, and a server and client of a few lines in place of PostgreSQL's.
"""

from __future__ import annotations

import re
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from programs import Program, finish, run_program

PAGE: Final = Path(__file__).parents[2] / "docs" / "tutorial-database.md"

_CLIENT: Final = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as s:
    s.sendall(b'select 42')
    s.shutdown(socket.SHUT_WR)
    print(s.makefile().read())
"""


@dataclass(frozen=True)
class Step:
    """One command of the page and what it shows below."""

    command: str
    shown: tuple[str, ...]


def steps() -> Iterator[Step]:
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield Step(command, tuple(line for line in shown if line.strip() not in ("", "...")))


def alike(line: str, home: Path) -> str:
    """Return a line without what differs from machine to machine and from time to time."""
    for pattern, instead in (
        (r"SharedAccessKey=[^;]*", "KEY"),
        (r"\d+(\.\d+)? ms", "TIME"),
        (r"by \d+\.\d+ s$", "by TIME"),
        (r"\b127\.77\.\d+\.\d+", "ADDRESS"),
        (r"hcm on \S+", "hcm on HOST"),
        (r"up \d+ s$", "up TIME"),
        (r"\d+ s$", "TIME"),
        (r"/run/user/\d+|" + re.escape(f"{home}/run"), "RUN"),
        (r"/home/me|" + re.escape(str(home)), "HOME"),
        (r"\s+", " "),
    ):
        line = re.sub(pattern, instead, line)
    return line.strip()


class Reader:
    """Somebody who types what stands there, with other ports."""

    def __init__(self, home: Path, relay_port: int, database_port: int) -> None:
        self._home = home
        self.steps = steps()
        self._relay_port = relay_port
        self._database_port = database_port

    def next(self, begins: str) -> Step:
        """Return the next step, which has to be this one, with our ports."""
        step = next(self.steps)
        assert step.command.startswith(begins), f"the page goes on with {step.command!r}"
        return Step(self._here(step.command), tuple(map(self._here, step.shown)))

    def _here(self, text: str) -> str:
        return text.replace(":8080", f":{self._relay_port}").replace("5432", str(self._database_port))

    def sees(self, step: Step, *outputs: str) -> None:
        """Check that each line of the page has come."""
        there = {alike(line, self._home) for output in outputs for line in output.splitlines()}
        missing = [line for line in step.shown if alike(line, self._home) not in there]
        assert missing == [], "\n".join(outputs)

    @property
    def environ(self) -> dict[str, str]:
        """Of the programs at both ends; root's settings would be those of the machine."""
        return {
            "XDG_RUNTIME_DIR": str(self._home / "run"),
            "RELAYCORE_CONFIG": str(self._home / ".config" / "relaycore" / "relaycore.toml"),
        }

    @property
    def relay_environ(self) -> dict[str, str]:
        return {"RELAYCORE_SERVER_PORT": str(self._relay_port)}

    async def types(self, step: Step, data: str = "", code: int = 0) -> tuple[str, str]:
        """Run a command to its end. Returns: standard output and error."""
        words = shlex.split(step.command)
        assert words[0] == "relaycore"
        of_an_end = words[1] in ("hcm", "connect", "run")
        environ = self.environ if of_an_end else self.relay_environ
        got, out, err = await finish(*words[1:], data=data.encode(), environ=environ)
        assert got == code, (step.command, out, err)
        return out.decode(), err

    async def starts(self, step: Step, stack: AsyncExitStack) -> Program:
        words = shlex.split(step.command)
        environ = self.environ if words[1] in ("hcm", "connect") else self.relay_environ
        return await stack.enter_async_context(run_program(*words[1:], environ=environ))


def free_port() -> int:
    """A port that nobody had a moment ago: the page's relay has one that both sides know."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def answer(stream: trio.SocketStream) -> None:
    """Play a database: the answer comes when the question has ended."""
    async with stream:
        asked = b""
        async for data in stream:
            asked += data
        await stream.send_all(b"42" if asked == b"select 42" else b"")


def primary_of(output: str) -> str:
    return next(line.split(None, 1)[1] for line in output.splitlines() if line.startswith("  primary"))


async def _serve(database: trio.SocketListener, running: trio.CancelScope) -> None:
    with running:
        await trio.serve_listeners(answer, [database])  # closes it, too


@pytest.mark.bound(180)
async def test_the_tutorial(home):
    (home / "run").mkdir(mode=0o700, parents=True)
    settings = home / ".config" / "relaycore" / "relaycore.toml"
    settings.parent.mkdir(parents=True)
    settings.touch()
    [database] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    reader = Reader(home, free_port(), database.socket.getsockname()[1])
    async with trio.open_nursery() as nursery, AsyncExitStack() as programs:
        running = trio.CancelScope()
        nursery.start_soon(_serve, database, running)
        await _follow(reader, programs, home, database, running)
        await programs.aclose()
        nursery.cancel_scope.cancel()


async def _follow(
    reader: Reader, stack: AsyncExitStack, home: Path, database: trio.SocketListener, running: trio.CancelScope
) -> None:
    # 1, 2
    step = reader.next("relaycore serve")
    relay = await reader.starts(step, stack)
    reader.sees(step, await relay.wait_out("Paste into another terminal"))
    step = reader.next("relaycore entity create")
    reader.sees(step, *await reader.types(step))
    strings = {}
    for side in ("listener", "sender"):
        step = reader.next("relaycore keys create")
        out, _ = await reader.types(step)
        reader.sees(step, out)
        strings[side] = primary_of(out)
    # 3
    step = reader.next("relaycore hcm run")
    manager = await reader.starts(step, stack)
    reader.sees(step, await manager.wait_out("control socket"))
    step = reader.next("relaycore hcm add -")
    out, _ = await reader.types(step, strings["listener"])
    reader.sees(Step(step.command, step.shown[1:]), out)  # without a terminal nothing is asked for
    step = reader.next("relaycore hcm status --once")
    reader.sees(step, *await reader.types(step))
    # 4
    step = reader.next("relaycore connect add -")
    reader.sees(Step(step.command, step.shown[1:]), *await reader.types(step, strings["sender"]))
    step = reader.next("relaycore connect run")
    forwarder = await reader.starts(step, stack)
    reader.sees(step, await forwarder.wait_err("1 of 1 forward is listening"))
    step = reader.next("relaycore connect test")
    reader.sees(step, *await reader.types(step, code=8))
    # 5
    step = reader.next("relaycore run -- psql -h db.corp.example")
    port = database.socket.getsockname()[1]
    client = f"relaycore run -- {sys.executable} -c {shlex.quote(_CLIENT)} db.corp.example {port}"
    code, out, err = await finish(*shlex.split(client)[1:], environ=reader.environ)
    if "mode hosts" in err:
        assert (code, out) == (0, b"42\n"), err
        reader.sees(Step(step.command, step.shown[:1]), err)
    step = reader.next("relaycore connect hosts print | sudo relaycore connect hosts apply")
    hosts = home / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    printed, _ = await reader.types(Step("relaycore connect hosts print", ()))
    out, err = await reader.types(Step(f"relaycore connect hosts apply --from - --file {hosts}", ()), printed)
    reader.sees(Step("", tuple(line.replace("/etc/hosts", str(hosts)) for line in step.shown)), out, err)
    reader.next("psql")
    address = re.search(r"^(127\.77\.\S+)\tdb\.corp\.example", hosts.read_text(), re.MULTILINE)
    assert address is not None
    async with await trio.open_tcp_stream(address[1], port) as stream:
        await stream.send_all(b"select 42")
        await stream.send_eof()
        assert b"".join([data async for data in stream]) == b"42"
    # When something is wrong
    running.cancel()
    await trio.testing.wait_all_tasks_blocked(0.01)
    step = reader.next("relaycore connect test")
    reader.sees(step, *await reader.types(step, code=7))
    # On three machines
    for begins in ("relaycore ca create", "relaycore ca issue relay.example"):
        pytest.importorskip("cryptography")
        await reader.types(reader.next(begins))
    [settings] = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    Path("relay.toml").write_text(settings)  # noqa: ASYNC240 - a few bytes
    reader.next("relaycore serve --config relay.toml")
    relay.process.terminate()  # its settings are those of the store from here on
    await relay.exit_code()
    code, out, _ = await finish(*shlex.split(reader.next("relaycore keys list").command)[1:])
    assert code == 0
    assert b"Endpoint=sb://relay.example:9443/;SharedAccessKeyName=listener;" in out
    assert b"Emulator" not in out
    for begins in ("relaycore hcm add - --cafile", "relaycore connect add - --cafile"):
        reader.next(begins)
    assert list(reader.steps) == []
