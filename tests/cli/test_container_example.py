"""examples/container as far as a machine without a container engine can tell: the services' commands, environment and
health checks are run as they stand, with other addresses."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from programs import finish, run_program

from relaycore.testing import open_relay
from relaycore.wire.connection_string import parse_connection_string

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "examples" / "container"


@pytest.fixture(scope="module")
def services() -> Mapping[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: Mapping[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def health(service: Mapping[str, Any], port: int) -> int:
    """Run the health check of a service. Returns: its exit code."""
    kind, program, *words = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    command = [sys.executable, *(word.replace(":9464", f":{port}") for word in words)]
    code, _, _ = await finish(command=command)
    return code


async def test_the_services_carry_a_connection(services, home):
    """The environment of the compose file is all that both programs get."""
    ports = {name: free_port() for name in ("hcm", "connect", "local")}
    async with open_relay() as relay, trio.open_nursery() as nursery:
        await relay.create_entity("orders-sql")
        parsed = parse_connection_string(relay.connection_string())
        [listener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        instead = {
            "${RELAY:?}": f"sb://127.0.0.1:{relay.port}/",
            "${LISTENER_KEY-}": parsed.key,
            "${SENDER_KEY-}": parsed.key,
            "listener": parsed.key_name,
            "sender": parsed.key_name,
            "db:5432": f"127.0.0.1:{listener.socket.getsockname()[1]}",
            "0.0.0.0:5432": f"127.0.0.1:{ports['local']}",
        }

        def program(name: str):
            service = services[name]
            environ = {key: instead.get(text, text) for key, text in service["environment"].items()}
            for key, text in environ.items():
                environ[key] = text.replace("0.0.0.0:9464", f"127.0.0.1:{ports[name]}")
            folder = home.parent / name
            folder.mkdir(mode=0o700)
            environ |= {"RUNTIME_DIRECTORY": str(folder), "STATE_DIRECTORY": str(folder)}
            environ["RELAYCORE__RELAY__MAIN__EMULATOR"] = "true"  # the relay of this test has no certificate
            assert service["command"][0] == "relaycore"
            return run_program(*service["command"][1:], environ=environ)

        async with program("hcm") as manager, program("connect") as forwarder:
            await manager.wait_err("hcm.connected")
            await forwarder.wait_err("1 of 1 forward is listening")
            async with await trio.open_tcp_stream("127.0.0.1", ports["local"]) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert b"".join([data async for data in stream]) == b"hello"
            for name in ("hcm", "connect"):
                assert await health(services[name], ports[name]) == 0
            assert not (home / ".config").exists()
            manager.signal(15)
            assert await manager.exit_code() == 0
            assert await health(services["hcm"], ports["hcm"]) != 0
        nursery.cancel_scope.cancel()


def test_both_services_are_closed_in_alike(services):
    """They run as the image's user, without a privilege, and write only where the image says."""
    dockerfile = (FOLDER / "Dockerfile").read_text()
    [user] = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    [place] = re.findall(r"RUNTIME_DIRECTORY=(\S+)", dockerfile)
    for service in services.values():
        assert service["tmpfs"] == [f"{place}:uid={user[0]},gid={user[1]},mode=0700"]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_the_image_gets_what_the_build_needs():
    """What is not ignored is there, and all that the package is built from is not ignored."""
    kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [name for name in kept if not (ROOT / name).exists()] == []
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "native", "relaycore"} <= kept
