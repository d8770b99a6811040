"""``relaycore demo``: a relay, a listener and a sender, each a process of its own, and a file through them.

::

    file ─▶ relaycore send ─▶ relaycore serve ─▶ relaycore listen --stdio ─▶ SHA-256
                   ▲                                        ▲                   │
                   └── reply, after the sender's half-close ┴──── checksum ◀────┘

The checksum that comes back to the sender was computed behind the listener, after the end of the data: it proves both
directions and the half-close between them. Everything lives in a temporary directory and ends with the command.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import trio

from ..config import CONNECTION_STRING_VARIABLE
from ..errors import RelayError
from .options import run

__all__ = ["command"]

_READY_TIMEOUT: Final = 30.0
"""Seconds for a process to start on a busy machine."""

_STALL_TIMEOUT: Final = 60.0
"""Seconds without a byte after which something is broken."""

_BLOCK_BYTES: Final = 1_048_576
_MIB: Final = 1_048_576
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"(?P<count>[0-9]{1,12})\s*(?P<unit>[KMG]?)(i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``1000``, ``64K``, ``256MiB`` or ``1G``; the units are binary.

    Raises:
      ValueError: it is none, or is nothing.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(match["count"]) * _UNITS[match["unit"].upper()] if match else 0
    if size <= 0:
        raise ValueError(text)
    return size


def _size(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError:
        raise click.BadParameter("expected a size such as 64K, 256M or 1G.", ctx, parameter) from None


@click.command("demo")
@click.option(
    "--size", metavar="SIZE", default="256M", show_default=True, callback=_size, help="Bytes to send: 64K, 1G."
)
def command(size: int) -> None:
    """Send a file through a relay, a listener and a sender on this machine, compare checksums and show the rate."""
    with tempfile.TemporaryDirectory(prefix="relaycore-demo-") as folder:
        run(_Demo(Path(folder), size).run)


@dataclass(frozen=True, slots=True)
class _Relay:
    base_url: str
    connection_string: str


class _Demo:
    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        # Settings of the user must not reach into the demonstration.
        self._environment = {name: text for name, text in os.environ.items() if not name.startswith("RELAYCORE_")}

    async def run(self) -> None:
        """Everything, in order.

        Raises:
          RelayError: a process did not start or ended early, or the checksums differ.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(_heed_signals, nursery.cancel_scope)
            relay = await self._start_relay(nursery)
            click.echo(f"relay     {relay.base_url}")
            self._environment[CONNECTION_STRING_VARIABLE] = relay.connection_string
            await self._finish(["entity", "create", "demo"])
            click.echo("entity    demo")
            listener = await self._start_listener(nursery)
            click.echo("listener  online")
            file, sent = await trio.to_thread.run_sync(self._make_file)
            click.echo(f"file      {self._size / _MIB:.4g} MiB, SHA-256 {sent}")
            started = trio.current_time()
            received, reply = await self._transfer(nursery, listener, file)
            seconds = trio.current_time() - started
            if not sent == received == reply:
                raise RelayError(f"the checksums differ: sent {sent}, received {received}, returned {reply}")
            click.echo(f"listener  received SHA-256 {received}")
            click.echo("sender    got that checksum back, after the end of its own data")
            click.echo(f"rate      {self._size / _MIB / seconds:.0f} MiB/s ({seconds:.2f} s with the sender's start)")
            nursery.cancel_scope.cancel()  # SIGTERM to relay and listener

    # Processes -------------------------------------------------------------------------------------------------------

    async def _spawn(self, nursery: trio.Nursery, args: Sequence[str], **streams: int) -> trio.Process:
        start = functools.partial(
            trio.run_process,
            [sys.executable, "-m", "relaycore", *args],
            stdin=streams.get("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            env=self._environment,
        )
        process: trio.Process = await nursery.start(start)
        return process

    async def _start_relay(self, nursery: trio.Nursery) -> _Relay:
        store = str(self._folder / "relay.db")
        process = await self._spawn(
            nursery, ["serve", "--port", "0", "--store", store, "--log-level", "error", "--json"]
        )
        ready = json.loads(await self._first_line(nursery, process, process.stdout, process.stderr))
        return _Relay(ready["base_url"], ready["connection_string"])

    async def _start_listener(self, nursery: trio.Nursery) -> trio.Process:
        process = await self._spawn(nursery, ["listen", "demo", "--stdio"], stdin=subprocess.PIPE)
        line = await self._first_line(nursery, process, process.stderr, None)
        if not line.startswith("relaycore: online"):
            raise RelayError(f"the listener said: {line}")
        return process

    async def _first_line(
        self,
        nursery: trio.Nursery,
        process: trio.Process,
        source: trio.abc.ReceiveStream | None,
        complaints: trio.abc.ReceiveStream | None,
    ) -> str:
        """The first line of `source`; all that follows there, and all of `complaints`, is read and dropped."""
        assert source is not None
        buffer = b""
        with trio.move_on_after(_READY_TIMEOUT):
            while b"\n" not in buffer:
                data = await source.receive_some()
                if not data:
                    said = b"" if complaints is None else await complaints.receive_some()
                    raise RelayError(f"a process ended early: {(buffer + said).decode(errors='replace').strip()}")
                buffer += data
            for stream in (source, complaints):
                if stream is not None:
                    nursery.start_soon(_drop, stream)
            return buffer.partition(b"\n")[0].decode()
        raise RelayError(f"process {process.pid} did not start within {_READY_TIMEOUT:g} s")

    async def _finish(self, args: Sequence[str]) -> None:
        done = await trio.run_process(
            [sys.executable, "-m", "relaycore", *args],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=self._environment,
        )
        if done.returncode != 0:
            raise RelayError(f"{' '.join(args)} failed: {done.stderr.decode(errors='replace').strip()}")

    # The file --------------------------------------------------------------------------------------------------------

    def _make_file(self) -> tuple[Path, str]:
        """Random bytes, so that nothing on the way can shrink them, and their checksum. Blocks; runs in a thread."""
        path, digest, rest = self._folder / "file", hashlib.sha256(), self._size
        with path.open("wb") as file:
            while rest:
                block = os.urandom(min(rest, _BLOCK_BYTES))
                digest.update(block)
                file.write(block)
                rest -= len(block)
        return path, digest.hexdigest()

    async def _transfer(self, nursery: trio.Nursery, listener: trio.Process, file: Path) -> tuple[str, str]:
        """Send the file; returns the checksum behind the listener, and the one that came back to the sender."""
        assert listener.stdout is not None
        assert listener.stdin is not None
        handle = await trio.to_thread.run_sync(file.open, "rb")
        with handle:
            sender = await self._spawn(nursery, ["send", "demo"], stdin=handle.fileno())
        assert sender.stdout is not None
        digest = hashlib.sha256()
        while data := await self._receive(listener.stdout):
            digest.update(data)
        await listener.stdin.send_all(digest.hexdigest().encode())
        await listener.stdin.aclose()
        reply = b""
        while data := await self._receive(sender.stdout):
            reply += data
        if await sender.wait() != 0:
            said = b"" if sender.stderr is None else await sender.stderr.receive_some()
            raise RelayError(f"the sender failed: {said.decode(errors='replace').strip()}")
        return digest.hexdigest(), reply.decode(errors="replace")

    async def _receive(self, stream: trio.abc.ReceiveStream) -> bytes:
        with trio.move_on_after(_STALL_TIMEOUT):
            return bytes(await stream.receive_some())
        raise RelayError(f"no byte came for {_STALL_TIMEOUT:g} s")


async def _heed_signals(
    everything: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """End in order when somebody else ends us, so that no process and no directory stays behind."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            everything.cancel()
            raise RelayError("ended by a signal")


async def _drop(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
