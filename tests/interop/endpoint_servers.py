"""Servers from Debian's packages, each with data of its own on loopback: what people reach through a relay."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import trio

START_TIMEOUT: Final = 30.0
"""Seconds that a server has to say that it is ready; making a database takes some of them."""

NOBODY: Final = 65_534
"""PostgreSQL does not run as root."""

_SBIN: Final = "/usr/sbin:/sbin"


def find_program(name: str) -> str:
    """Where a server's program is; Debian keeps some out of the path of users.

    The test is skipped where there is none; CI has no excuse.
    """
    places = [os.environ.get("PATH", ""), _SBIN, *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        message = f"{name} is not installed; `.ci/ensure test` installs it as root"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """A port of loopback that nobody had a moment ago: these servers cannot be told to choose one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(argv: Sequence[str], ready: bytes) -> AsyncIterator[trio.Process]:
    """Run a server that stays in the foreground, from the line of its output that holds `ready` on.

    What it says from then on is thrown away. SIGINT ends it at the end of the block, and SIGKILL what does not heed.
    """
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output = process.stdout
        assert output is not None
        said = bytearray()
        is_ready = trio.Event()

        async def listen() -> None:
            async for data in output:
                if not is_ready.is_set():
                    said.extend(data)
                    if ready in said:
                        is_ready.set()

        try:
            nursery.start_soon(listen)
            with trio.move_on_after(START_TIMEOUT):
                await is_ready.wait()
            if not is_ready.is_set():
                raise RuntimeError(f"{argv[0]} did not get ready; it said: {said.decode(errors='replace')}")
            yield process
        finally:
            with trio.CancelScope(shield=True):
                process.send_signal(signal.SIGINT)
                with trio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            nursery.cancel_scope.cancel()


@dataclass(frozen=True)
class Server:
    """A server on 127.0.0.1, and the secret or file that its clients need."""

    port: int
    secret: str = ""
    folder: Path = Path()


def _prepare_data(folder: Path) -> tuple[Path, Path, list[str]]:
    """A folder and a password file of whoever the database runs as, and what to put before its commands."""
    as_user = []
    data, password_file = folder / "data", folder / "password"
    data.mkdir(mode=0o700)
    password_file.write_text("correct horse\n")
    if os.getuid() == 0:
        folder.chmod(0o755)
        as_user = [find_program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
        for made in (data, password_file):
            os.chown(made, NOBODY, NOBODY)
    return data, password_file, as_user


@asynccontextmanager
async def run_postgresql(folder: Path) -> AsyncIterator[Server]:
    """A database of the user ``app`` with a password."""
    initdb, postgres = find_program("initdb"), find_program("postgres")
    data, password_file, as_user = _prepare_data(folder)
    await trio.run_process(
        [
            *as_user,
            initdb,
            "-D",
            str(data),
            "-U",
            "app",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(password_file),
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ],
        capture_stdout=True,
    )
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    async with running([*as_user, postgres, "-D", str(data), *options], b"ready to accept connections"):
        yield Server(port, "correct horse")


@asynccontextmanager
async def run_redis(folder: Path) -> AsyncIterator[Server]:
    """An empty Redis that writes nothing."""
    port = free_port()
    argv = [
        find_program("redis-server"),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    async with running(argv, b"Ready to accept connections"):
        yield Server(port)


@asynccontextmanager
async def run_nginx(folder: Path) -> AsyncIterator[Server]:
    """A web site with one page and one file of a megabyte."""
    port = free_port()
    site = folder / "site"
    site.mkdir()
    (site / "index.html").write_text("<h1>behind the firewall</h1>\n")
    (site / "megabyte").write_bytes(os.urandom(1 << 20))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} pid {folder}/pid; worker_processes 1; error_log stderr notice; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {site}; }} }}\n"
    )
    argv = [find_program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    async with running(argv, b"start worker process "):
        yield Server(port, folder=site)


@asynccontextmanager
async def run_sshd(folder: Path) -> AsyncIterator[Server]:
    """An SSH server that lets the own user in with the key ``id`` of its folder."""
    port = free_port()
    keygen = find_program("ssh-keygen")
    for name in ("host", "id"):
        await trio.run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)])
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where sshd goes before it knows the user; empty
    async with running([find_program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")], b"Server listening on"):
        yield Server(port, folder=folder)


@asynccontextmanager
async def run_dns(_: Path) -> AsyncIterator[Server]:
    """A name server that answers every query with the address 192.0.2.7; over UDP."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))

        async def answer() -> None:
            while True:
                query, peer = await sock.recvfrom(4_096)
                # The query with the bits of an answer, one record, and that record: a pointer to the name, A, IN.
                head = query[:2] + b"\x81\x80" + query[4:6] + b"\x00\x01" + b"\x00" * 4
                end = query.index(b"\x00", 12) + 5
                record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x07"
                await sock.sendto(head + query[12:end] + record, peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            yield Server(sock.getsockname()[1])
            nursery.cancel_scope.cancel()


def python() -> str:
    """The interpreter of the tests, with the drivers that they brought along."""
    return sys.executable
