"""Managers and forwarders as processes that can be killed, stopped and begun again, and a measured load through them.

::

    visits, streams ─▶ connect run ─▶ relay ─▶ hcm run (several) ─▶ a server for each, which says its name first

Each server says its name, so that a client knows by which manager it was led.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import trio
from endpoints import Endpoint, echo
from interop.edge_chain import program, run

from relaycore.edge.control.client import ControlClient

PATIENCE: Final = 30.0
"""Seconds for what has no bound of its own here, so that a test which waits in vain ends."""

QUESTION_BYTES: Final = 64
_PIECE_BYTES: Final = 8_192
_NAME_BYTES: Final = 1


# Servers --------------------------------------------------------------------------------------------------------------


class Place(Endpoint):
    """A server that says its name of one letter and then sends back what comes.

    Attributes:
      reset: connections that broke.
    """

    def __init__(self, name: str) -> None:
        assert len(name) == _NAME_BYTES
        super().__init__(self._echo)
        self.name = name
        self.reset = 0

    async def _echo(self, stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(self.name.encode())
            await echo(stream)
        except trio.BrokenResourceError:
            self.reset += 1


# Clients --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """One short connection.

    Attributes:
      by: the name of the place that answered, ``""`` if none did.
      error: ``""`` if the answer was right and both directions ended in order.
      began, ended: on Trio's clock.
    """

    by: str
    error: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


async def visit(address: tuple[str, int]) -> Visit:
    """Connect, ask, compare, and end as clients do."""
    began = trio.current_time()
    by = error = ""
    question = os.urandom(QUESTION_BYTES)
    try:
        with trio.socket.socket() as sock:
            await sock.connect(address)
            by = (await sock.recv(_NAME_BYTES)).decode()
            await sock.send(question)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while data := await sock.recv(4_096):
                answer += data
        if not by or answer != question:
            error = f"ended after {len(answer)} bytes"
    except OSError as failure:
        error = type(failure).__name__
    return Visit(by, error, began, trio.current_time())


async def visits(address: tuple[str, int], count: int, at_once: int = 8) -> list[Visit]:
    """Many of them."""
    found: list[Visit] = []

    async def go_on() -> None:
        nonlocal count
        while count > 0:
            count -= 1
            found.append(await visit(address))

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(go_on)
    return found


def shares(found: list[Visit]) -> Counter[str]:
    """How many each place had."""
    return Counter(one.by for one in found)


class Load:
    """New connections, steadily, until the block ends.

    Attributes:
      visits: that have ended, in the order of their ends.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.visits: list[Visit] = []
        self._address = address
        self._is_on = True
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def failures(self) -> list[Visit]:
        return [one for one in self.visits if one.error]

    def since(self, moment: float) -> list[Visit]:
        """Those that began then or later."""
        return [one for one in self.visits if one.began >= moment]

    def longest_gap(self) -> float:
        """Seconds between two successes."""
        ends = [one.ended for one in self.visits if not one.error]
        return max((later - sooner for sooner, later in pairwise(ends)), default=float("inf"))

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for something that visits bring about."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._lot.park()

    async def more(self, count: int) -> None:
        """Wait for so many further visits that have begun after this call."""
        now = trio.current_time()
        await self.wait(lambda: len(self.since(now)) >= count)

    async def _go_on(self) -> None:
        while self._is_on:
            self.visits.append(await visit(self._address))
            self._lot.unpark_all()
            await trio.sleep(0.01)

    @classmethod
    @asynccontextmanager
    async def running(cls, address: tuple[str, int], workers: int = 3) -> AsyncIterator[Load]:
        """From the block's begin to its end, at which visits are seen through."""
        load = cls(address)
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(load._go_on)
            try:
                yield load
            finally:
                load._is_on = False


class Stream:
    """A long connection that carries random data to and fro until it is told to end.

    Attributes:
      by: the name of the place.
      result: ``""`` while it lives; ``whole`` if all came back and both directions ended in order, else what happened.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.by = ""
        self.result = ""
        self.carried = 0
        self._address = address
        self._is_on = True
        self._failure = ""
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._is_joined = trio.Event()
        self._has_ended = trio.Event()
        self._has_more = trio.lowlevel.ParkingLot()
        self._random = random.Random(1)

    async def run(self) -> None:
        """Carry, to the end."""
        try:
            with trio.socket.socket() as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await sock.connect(self._address)
                self.by = (await sock.recv(_NAME_BYTES)).decode()
                self._is_joined.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, sock)
                    try:
                        self.result = await self._read(sock)
                    finally:
                        nursery.cancel_scope.cancel()
        except* OSError as failures:
            self.result = type(failures.exceptions[0]).__name__
        finally:
            self.result = self.result or "cancelled"
            self._is_joined.set()
            self._has_ended.set()
            self._has_more.unpark_all()

    async def wait_joined(self) -> None:
        """Wait until the place has said its name, or that has failed."""
        with trio.fail_after(PATIENCE):
            await self._is_joined.wait()

    async def more(self, byte_count: int = 3 * _PIECE_BYTES) -> None:
        """Wait until so many further bytes have come back."""
        wanted = self.carried + byte_count
        with trio.fail_after(PATIENCE):
            while self.carried < wanted:
                assert not self.result, f"the stream by {self.by} has ended: {self.result}"
                await self._has_more.park()

    async def end(self) -> str:
        """End the direction to the server, and tell the result."""
        self._is_on = False
        return await self.wait()

    async def wait(self) -> str:
        """Wait until it has ended by itself."""
        with trio.fail_after(PATIENCE):
            await self._has_ended.wait()
        return self.result

    async def _write(self, sock: trio.socket.SocketType) -> None:
        while self._is_on:
            data = memoryview(self._random.randbytes(_PIECE_BYTES))
            self._sent.update(data)
            try:
                while data:
                    data = data[await sock.send(data) :]
            except OSError as failure:
                self._failure = type(failure).__name__
                return
            await trio.sleep(0.02)
        with contextlib.suppress(OSError):  # the reader says how it ended
            sock.shutdown(socket.SHUT_WR)

    async def _read(self, sock: trio.socket.SocketType) -> str:
        while data := await sock.recv(65_536):
            self._came.update(data)
            self.carried += len(data)
            self._has_more.unpark_all()
        # The system tells of a reset once. If it was the writer that was told, it may just be on its way out of send(),
        # which Trio leaves by way of a checkpoint; of two tasks that are due in the same turn any may be first.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        if self._failure:
            return self._failure
        if self._is_on:
            return "an end that nobody asked for"
        return "whole" if self._came.digest() == self._sent.digest() else "other bytes"


# Programs -------------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A ``relaycore hcm run`` or ``relaycore connect run``.

    Attributes:
      what: ``hcm`` or ``connect``.
      folder: settings, sockets and state.
    """

    what: str
    folder: Path
    environ: dict[str, str]
    process: trio.Process
    control: ControlClient

    async def status(self, name: str) -> dict[str, Any]:
        """One entry as its status has it, ``{}`` if there is none."""
        found: Any = await self.control.call("status")
        entries = found["connections" if self.what == "hcm" else "forwards"]
        return next((one for one in entries if one["name"] == name), {})

    async def wait(self, entry: str, seconds: float = PATIENCE, **wanted: object) -> dict[str, Any]:
        """Wait until fields of an entry's status are as wanted; functions of one argument are asked."""
        one: dict[str, Any] = {}
        with trio.move_on_after(seconds):
            while True:
                one = await self.status(entry)
                if all(
                    value(one.get(key)) if callable(value) else one.get(key) == value for key, value in wanted.items()
                ):
                    return one
                await trio.sleep(0.02)
        raise AssertionError(f"{entry} did not get to {wanted} in {seconds} s: {one}")

    async def event(self, kind: str, *, name: str | None = None, has: str = "", seconds: float = PATIENCE) -> str:
        """Wait for an event, or find it among those remembered. Returns: its text."""
        follows: dict[str, object] = {"follow": True}
        with trio.fail_after(seconds):
            async with self.control.stream("events", **follows) as events:
                async for one in events:
                    assert isinstance(one, dict)
                    if one["kind"] == kind and name in (None, one["name"]) and has in one["text"]:
                        return str(one["text"])
        raise AssertionError(f"the program ended without {kind}")

    async def command(self, *words: str) -> bytes:
        """Run a command beside it."""
        return (await run(*self._argv(*words), environ=self.environ)).stdout

    def _argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "relaycore", self.what, *words]

    def settings(self, text: str) -> None:
        """Put other settings into its file, at one stroke; it is not told."""
        write_settings(self.folder, text)

    async def reload(self) -> None:
        """Have it read them."""
        await self.control.call("reload")

    async def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


def without_ours() -> dict[str, str]:
    """The environment without any of our variables."""
    return {key: text for key, text in os.environ.items() if not key.startswith("RELAYCORE")}


def write_settings(folder: Path, text: str) -> None:
    """Write the file that a program reads."""
    made = folder / "new"
    made.write_text(text)
    made.chmod(0o600)
    made.replace(folder / "relaycore.toml")


@dataclass
class World:
    """Where programs are begun.

    Attributes:
      port: of the relay, on 127.0.0.1.
      key_name: the rule that all use; the key is in ``folder / "key"``.
    """

    folder: Path
    nursery: trio.Nursery
    port: int
    key_name: str
    _count: int = field(default=0)

    @property
    def key_file(self) -> Path:
        return self.folder / "key"

    def relay_settings(self) -> str:
        return f'[relay.here]\nendpoint = "sb://127.0.0.1:{self.port}/"\nemulator = true\nproxy = "none"\n'

    def entry(self, table: str, name: str, more: str) -> str:
        """An entry ``[[TABLE]]``."""
        key = f'key_name = "{self.key_name}"\nkey = {{ file = "{self.key_file}" }}\n'
        return f'[[{table}]]\nname = "{name}"\n{key}{more}\n'

    def manages(self, name: str, endpoint: str | int | Place, more: str = "") -> str:
        """An entry of a manager."""
        if isinstance(endpoint, Place):
            endpoint = endpoint.port
        where = f"127.0.0.1:{endpoint}" if isinstance(endpoint, int) else endpoint
        return self.entry("hcm.connection", name, f'endpoint = "{where}"\n{more}')

    def forwards(self, name: str, port: int, more: str = "") -> str:
        """An entry of a forwarder."""
        listen = f'hosts = ["{name}.corp.example"]\nlisten = ["auto:{port}"]\n'
        return self.entry("connect.forward", name, listen + more)

    @asynccontextmanager
    async def run(
        self, what: str, name: str, *entries: str, words: tuple[str, ...] = (), dies: bool = False
    ) -> AsyncIterator[Running]:
        """Run a program with settings of its own; the same name again has the same folder.

        Args:
          dies: SIGKILL may end it.
        """
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if entries:
            write_settings(folder, self.relay_settings() + "\n".join(entries))
        environ = {
            **without_ours(),
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "RELAYCORE_CONFIG": str(folder / "relaycore.toml"),
        }
        control = ControlClient(folder / "relaycore" / f"{what}.sock", f"relaycore {what} run")
        self._count += 1
        async with program(
            self.nursery,
            environ,
            folder,
            what,
            "run",
            *words,
            name=f"{what}-{self._count}",
            ends_with=(0, -signal.SIGKILL) if dies else (0,),
        ) as process:
            yield Running(what, folder, environ, process, control)

    @asynccontextmanager
    async def manager(self, name: str, *entries: str, dies: bool = False) -> AsyncIterator[Running]:
        async with self.run("hcm", name, *entries, dies=dies) as running:
            yield running

    @asynccontextmanager
    async def forwarder(self, *entries: str, drain: float = 5.0, dies: bool = False) -> AsyncIterator[Running]:
        async with self.run("connect", "connect", *entries, words=("--drain", f"{drain:g}"), dies=dies) as running:
            yield running

    async def place(self, name: str) -> Place:
        """A server that is up."""
        found = Place(name)
        await self.nursery.start(found.serve)
        return found

    async def stream(self, address: tuple[str, int]) -> Stream:
        """A long connection that is joined."""
        found = Stream(address)
        self.nursery.start_soon(found.run)
        await found.wait_joined()
        assert found.by, found.result
        return found

    async def streams(self, address: tuple[str, int], each: int, *names: str) -> dict[str, list[Stream]]:
        """Streams until there are so many through each of the places."""
        found: dict[str, list[Stream]] = {name: [] for name in names}
        while min(map(len, found.values())) < each:
            stream = await self.stream(address)
            found[stream.by].append(stream)
        for stream in chain.from_iterable(found.values()):
            await stream.more()
        return found


def address_of(status: dict[str, Any]) -> tuple[str, int]:
    """Where programs find a forward."""
    return status["address"], status["port"]


async def end_all(found: list[Stream]) -> list[str]:
    """End streams; what became of each."""
    return [await stream.end() for stream in found]


@asynccontextmanager
async def open_world(folder: Path, port: int, key_name: str, key: str) -> AsyncIterator[World]:
    """For programs at a relay."""
    async with trio.open_nursery() as nursery:
        world = World(folder, nursery, port, key_name)
        world.key_file.touch(mode=0o600)
        world.key_file.write_text(key)
        await trio.lowlevel.checkpoint()
        yield world
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def relay_process(folder: Path, port: int) -> AsyncIterator[tuple[trio.Process, dict[str, Any]]]:
    """Run ``relaycore serve`` with the store ``folder / "relay.db"``, which outlives it. Killed at the end.

    Returns: the process, and what it says when it is ready.
    """
    words = ("serve", "--port", str(port), "--store", str(folder / "relay.db"), "--json", "--show-connection-string")
    with (folder / "relay.log").open("ab") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "relaycore", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**without_ours(), "HOME": str(folder)},
        )
        assert process.stdout is not None
        try:
            said = b""
            with trio.fail_after(PATIENCE):
                while b"\n" not in said:
                    more = await process.stdout.receive_some()
                    assert more, (folder / "relay.log").read_text()
                    said += more
            yield process, json.loads(said.splitlines()[0])
        finally:
            process.kill()
            with trio.CancelScope(shield=True):  # a killed process ends at once
                await process.wait()
                await process.stdout.aclose()
