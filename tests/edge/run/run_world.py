"""A relay, an HTTP server behind a connection manager, and ``relaycore run`` as a user without privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from unprivileged import uid, unprivileged

from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    ConnectSettings,
    Forward,
    HcmConnection,
    HcmSettings,
    RelaySettings,
    Target,
)
from relaycore.edge.hcm.manager import open_hcm
from relaycore.testing import Relay, open_relay

NAME = "orders.corp.example"
ANSWER = "hello from behind the relay"


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory of the unprivileged user, below no directory that is closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="relaycore-test-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        os.chown(directory, uid(), -1)
        yield directory
    finally:
        shutil.rmtree(directory)


@dataclass
class RunWorld:
    """The hybrid connection is ``orders``, for anybody to send to; its name for programs is `NAME`."""

    relay: Relay
    directory: Path

    serve: Callable[[trio.SocketStream], Awaitable[None]]

    @property
    def key(self) -> Secret:
        """Of the rule that may do everything."""
        rule = self.relay.server.namespace.find_rule("RootManageSharedAccessKey")
        assert rule is not None
        return Secret("inline", rule.primary_key, "here")

    @property
    def relay_settings(self) -> RelaySettings:
        """The relay, as both programs name it."""
        return RelaySettings("main", f"sb://127.0.0.1:{self.relay.port}/", is_emulator=True)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """A connection manager for ``orders``, and the server behind it."""
        (server,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.serve, [server])
            target = Target("127.0.0.1", server.socket.getsockname()[1])
            async with self.managing(targets=(target,)):
                yield
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def managing(self, path: str = "orders", **settings) -> AsyncIterator[None]:
        """A connection manager that is connected."""
        connection = HcmConnection(
            path, self.relay_settings, path, key_name="RootManageSharedAccessKey", key=self.key, **settings
        )
        async with open_hcm(HcmSettings(connections=(connection,))) as manager:
            await manager.wait_settled(path)
            yield

    def settings(self, *, port: int = 8080, **changes) -> ConnectSettings:
        """Settings with the one forward."""
        changes = {"hosts": (NAME,), "port": port, **changes}
        return ConnectSettings((Forward("orders", self.relay_settings, "orders", **changes),))

    def config(self, *, port: int = 8080) -> Path:
        """A file with the same."""
        file = self.directory / f"relaycore-{port}.toml"
        file.write_text(
            f"""\
[relay.main]
endpoint = "sb://127.0.0.1:{self.relay.port}/"
emulator = true
[[connect.forward]]
name = "orders"
relay = "main"
path = "orders"
hosts = ["{NAME}", "*.wild.example"]
port = {port}
"""
        )
        return file

    def ours(self, *words: str | Path, port: int = 8080) -> list[str | Path]:
        """``relaycore run`` with options and a program, for whoever calls it."""
        return [sys.executable, "-m", "relaycore", "run", "--config", self.config(port=port), *words]

    def command(self, *words: str | Path, port: int = 8080) -> list[str]:
        """The same for a user without privileges."""
        return unprivileged(*self.ours(*words, port=port))

    @property
    def environ(self) -> dict[str, str]:
        """Variables for it."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        return {**kept, "HOME": str(self.directory), "TMPDIR": str(self.directory)}

    async def run(self, *words: str | Path, port: int = 8080) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end and keep what it writes."""
        return await trio.run_process(
            self.command(*words, port=port),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=self.directory,
            env=self.environ,
        )


async def _answer(stream: trio.SocketStream) -> None:
    """Answer one request as an HTTP server does, and close."""
    async with stream:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            if not data:
                return
            head += data
        body = ANSWER.encode()
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await stream.send_eof()


@asynccontextmanager
async def open_run_world(serve=_answer) -> AsyncIterator[RunWorld]:
    with open_directory() as directory:
        async with open_relay() as relay:
            await relay.create_entity("orders", requires_client_authorization=False)
            world = RunWorld(relay, directory, serve)
            async with world.listening():
                yield world
