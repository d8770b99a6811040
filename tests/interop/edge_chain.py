"""Connect, relay and manager as they stand in front of people: a relay here, the two programs as processes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio
from interop.endpoint_servers import find_program

from relaycore.testing import Relay
from relaycore.wire.connection_string import parse_connection_string

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 20.0

_AS_IN_HOSTS: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
"""A shell line for a mount namespace of its own: the names of one file, and nothing that others see."""


@dataclass(frozen=True)
class Endpoint:
    """One hybrid connection from end to end.

    Attributes:
      name: of the hybrid connection, and here.
      host: what clients call it.
      port: of the server on 127.0.0.1, and what clients dial.
      manager, connect: further lines of their entries.
      listen: further addresses of the forward.
      in_metadata: the manager learns the endpoint from the relay.
      fixed_endpoint: the manager's entry names the endpoint; else `manager` says where it leads.
      tcp: the forward listens at ``auto:PORT``.
    """

    name: str
    host: str
    port: int
    manager: str = ""
    connect: str = ""
    listen: tuple[str, ...] = ()
    in_metadata: bool = False
    fixed_endpoint: bool = True
    tcp: bool = True


@dataclass
class Chain:
    """Programs at work between clients and servers."""

    relay: Relay
    folder: Path
    endpoints: Sequence[Endpoint]
    environ: Mapping[str, str]
    hosts: Path = field(default_factory=Path)

    async def command(self, *words: str, check: bool = True, input_: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``relaycore WORDS`` beside the programs."""
        return await run(sys.executable, "-m", "relaycore", *words, environ=self.environ, check=check, input_=input_)

    async def by_name(
        self, *argv: str, input_: bytes = b"", environ: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run an unchanged client that finds the names as it always does."""
        return await run(*self.named(*argv), input_=input_, environ={**self.environ, **(environ or {})}, check=check)

    def address(self, endpoint: Endpoint) -> str:
        """Where a name leads."""
        for line in self.hosts.read_text().splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if endpoint.host in names:
                return address
        raise AssertionError(f"{endpoint.host} is not in the hosts file")

    async def proxy_port(self) -> str:
        """Address and port of the forwarder's proxy port, as it has announced it."""
        with trio.fail_after(START_TIMEOUT):
            while True:
                said = await trio.Path(self.folder, "connect.log").read_text()
                if (found := re.search(r"proxy port: on (\S+)\n", said)) is not None:
                    return found[1]
                await trio.sleep(0.02)

    def named(self, *argv: str) -> list[str]:
        """A command line that runs `argv` with the names in its hosts file."""
        as_root = [] if os.getuid() == 0 else ["--map-root-user"]
        return [find_program("unshare"), *as_root, "--mount", "sh", "-c", _AS_IN_HOSTS, str(self.hosts), *argv]


async def run(
    *argv: str, input_: bytes = b"", environ: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; what it said is in the error if it fails."""
    done = await trio.run_process(
        argv, stdin=input_, capture_stdout=True, capture_stderr=True, check=False, env=environ or os.environ
    )
    if check and done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{shlex.join(argv)} left with {done.returncode} and said: {said}")
    return done


def _settings(relay: Relay, endpoints: Sequence[Endpoint], folder: Path) -> str:
    parsed = parse_connection_string(relay.connection_string())
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text(parsed.key or "")
    lines = ["[relay.here]", f'endpoint = "sb://127.0.0.1:{relay.port}/"', "emulator = true", ""]
    for each in endpoints:
        common = [f'name = "{each.name}"', f'key_name = "{parsed.key_name}"', f'key = {{ file = "{key}" }}']
        lines += ["[[hcm.connection]]", *common]
        if each.fixed_endpoint:
            lines.append('endpoint = "metadata"' if each.in_metadata else f'endpoint = "127.0.0.1:{each.port}"')
        lines += [each.manager, "[[connect.forward]]", *common, f'hosts = ["{each.host}"]']
        own = (f"auto:{each.port}",) if each.tcp else ()
        listen = ", ".join(f'"{at}"' for at in (*own, *each.listen))
        lines += [f"listen = [{listen}]", each.connect, ""]
    return "\n".join(lines)


@asynccontextmanager
async def run_chain(
    relay: Relay, endpoints: Sequence[Endpoint], folder: Path, *, general: str = ""
) -> AsyncIterator[Chain]:
    """Run a manager and a forwarder for all endpoints, ready for clients; both end in order.

    Args:
      folder: for settings, sockets and state; private.
      general: further settings.
    """
    for each in endpoints:
        text = f'[{{"key":"endpoint","value":"localhost:{each.port}"}}]' if each.in_metadata else None
        await relay.create_entity(each.name, user_metadata=text)
    file = folder / "relaycore.toml"
    await trio.to_thread.run_sync(lambda: file.write_text(_settings(relay, endpoints, folder) + general))
    environ = {
        **{name: text for name, text in os.environ.items() if not name.startswith("RELAYCORE")},
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_STATE_HOME": str(folder / "state"),
        "RELAYCORE_CONFIG": str(file),
    }
    chain = Chain(relay, folder, endpoints, environ)
    async with (
        trio.open_nursery() as nursery,
        program(nursery, environ, folder, "hcm", "run"),
        program(nursery, environ, folder, "connect", "run"),
    ):
        chain.hosts = folder / "hosts"
        printed = (await chain.command("connect", "hosts", "print")).stdout
        await trio.to_thread.run_sync(lambda: chain.hosts.write_bytes(b"127.0.0.1 localhost\n" + printed))
        with trio.fail_after(START_TIMEOUT):
            while relay.server.statistics().listeners < len(endpoints):
                await trio.sleep(0.02)
        yield chain


@asynccontextmanager
async def program(
    nursery: trio.Nursery,
    environ: Mapping[str, str],
    folder: Path,
    *words: str,
    name: str = "",
    ends_with: Container[int] = (0,),
) -> AsyncIterator[trio.Process]:
    """Run ``relaycore WORDS`` from the moment on that it tells its service manager that it is ready.

    SIGTERM ends it with the block, also while it is stopped; it has to leave with one of `ends_with`.
    """
    own = name or words[0]
    notices = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await notices.bind(str(folder / f"{own}.notify"))
    log = folder / f"{own}.log"
    argv = [sys.executable, "-m", "relaycore", *words]
    with notices, log.open("wb") as output:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environ, "NOTIFY_SOCKET": str(folder / f"{own}.notify")},
                check=False,
            )
        )
        try:
            with trio.move_on_after(START_TIMEOUT) as scope:
                while b"READY=1" not in await notices.recv(4_096):
                    pass
            assert not scope.cancelled_caught, f"{argv} did not get ready; it said: {log.read_text()}"
            yield process
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(STOP_TIMEOUT):
                if process.returncode is None:
                    process.terminate()
                    process.send_signal(signal.SIGCONT)
                await process.wait()
            if process.returncode is None:
                process.kill()
    assert process.returncode in ends_with, f"{argv} left with {process.returncode} and said: {log.read_text()}"
