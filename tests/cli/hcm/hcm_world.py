"""A relay in this process, an endpoint beside it, and the daemon as a program of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from endpoints import Endpoint
from programs import Program, finish, run_program

import relaycore
from relaycore.net.tasks import alone
from relaycore.testing import Relay, open_relay

LIMIT_S = 60.0


@dataclass
class World:
    """What commands of a test are about."""

    relay: Relay
    endpoint: Endpoint
    directory: Path
    environ: dict[str, str]

    def string(self, path: str | None, *rights: str) -> str:
        """A connection string of the relay; Listen without any right."""
        return self.relay.connection_string(path, rights=list(rights or ["Listen"]))

    def write(self, *entries: str, name: str = "relaycore.toml") -> Path:
        """Put settings into the file that the commands read."""
        path = self.directory / name
        made = path.with_suffix(".new")
        made.write_text("\n".join(entries))
        made.chmod(0o600)
        made.replace(path)
        return path

    def entry(self, name: str, endpoint: str | None = None, more: str = "", *, path: str | None = None) -> str:
        """A connection of the settings."""
        return (
            f'[[hcm.connection]]\nname = "{name}"\nconnection_string = "{self.string(path or name)}"\n'
            f'endpoint = "{endpoint or self.endpoint.address}"\n{more}\n'
        )

    async def hcm(self, *args: str, data: bytes = b"") -> tuple[int, str, str]:
        """A command to its end. Returns: exit code, standard output, standard error."""
        with trio.fail_after(LIMIT_S):
            code, out, err = await finish("hcm", *args, data=data, environ=self.environ)
        return code, out.decode(), err

    async def ok(self, *args: str, data: bytes = b"") -> str:
        """The output of a command that has to succeed."""
        code, out, err = await self.hcm(*args, data=data)
        assert code == 0, (code, out, err)
        return out

    async def json(self, *args: str):
        return json.loads(await self.ok(*args, "--json"))

    async def status(self, name: str) -> dict:
        """A connection as the daemon's status has it."""
        found = await self.json("status")
        return next(one for one in found["connections"] if one["name"] == name)

    async def settled(self, name: str, **wanted: object) -> dict:
        """Wait until fields of a connection's status are as wanted."""
        from relaycore.edge.control.client import ControlClient

        client = ControlClient(self.directory / "run" / "relaycore" / "hcm.sock", "")
        with trio.fail_after(LIMIT_S):
            while True:
                found = await client.call("status")
                one = next((one for one in found["connections"] if one["name"] == name), {})
                if all(one.get(key) == value for key, value in wanted.items()):
                    return one
                await trio.sleep(0.02)

    @asynccontextmanager
    async def daemon(self, *args: str) -> AsyncIterator[Program]:
        """``relaycore hcm run``, from when it is ready."""
        async with run_program("hcm", "run", "--json", *args, environ=self.environ) as program:
            with trio.fail_after(LIMIT_S):
                await program.wait_out('"event": "ready"')
            yield program

    def sender(self, path: str):
        """A sender's connection."""
        return relaycore.open_stream(self.string(path, "Send"))

    async def is_served(self, path: str) -> bool:
        """Whether anybody listens."""
        try:
            async with self.sender(path):
                return True
        except relaycore.NoListener:
            return False

    async def echoes(self, path: str) -> bool:
        """Whether a sender reaches the endpoint."""
        async with self.sender(path) as stream:
            await stream.send_all(b"hello")
            return await stream.receive_some() == b"hello"


@asynccontextmanager
async def open_world(directory: Path, *paths: str) -> AsyncIterator[World]:
    with alone():
        async with open_relay() as relay, trio.open_nursery() as nursery:
            endpoint = Endpoint()
            await nursery.start(endpoint.serve)
            metadata = json.dumps([{"key": "endpoint", "value": endpoint.address}])
            for path in paths:
                await relay.create_entity(path, user_metadata=metadata)
            (directory / "run").mkdir(mode=0o700)
            environ = {
                "XDG_RUNTIME_DIR": str(directory / "run"),
                "RELAYCORE_CONFIG": str(directory / "relaycore.toml"),
                "XDG_STATE_HOME": str(directory / "state"),
            }
            world = World(relay, endpoint, directory, environ)
            world.write("")
            yield world
            nursery.cancel_scope.cancel()
