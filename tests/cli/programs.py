"""Runs commands as programs of their own, for the tests that need signals, pipes and ``ps``."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

LIMIT_S = 60.0
"""Absolute limit of one wait; a program needs half a second to start on an idle machine."""


@dataclass
class Program:
    """A running program. Everything it has written so far is kept in ``out`` and ``err``."""

    process: trio.Process
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    progress: trio.Condition = field(default_factory=trio.Condition)

    async def wait_out(self, text: str) -> str:
        """Wait until `text` stands in standard output. Returns: all of it so far."""
        return await self._wait(self.out, text)

    async def wait_err(self, text: str, *, times: int = 1) -> str:
        """Wait until `text` stands in standard error, that many times. Returns: all of it so far."""
        return await self._wait(self.err, text, times)

    async def _wait(self, kept: bytearray, text: str, times: int = 1) -> str:
        with trio.move_on_after(LIMIT_S):
            async with self.progress:
                while kept.count(text.encode()) < times:
                    await self.progress.wait()
                return kept.decode()
        raise AssertionError(f"{text!r} never came; out: {self.out!r}, err: {self.err!r}")

    async def write(self, data: bytes) -> None:
        await self.process.stdin.send_all(data)

    async def close_input(self) -> None:
        await self.process.stdin.aclose()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait until it has ended and all its output has come."""
        with trio.move_on_after(LIMIT_S):
            code = await self.process.wait()
            async with self.progress:
                while self.process.stdout is not None or self.process.stderr is not None:
                    await self.progress.wait()
            return code
        raise AssertionError(f"still running; out: {self.out!r}, err: {self.err!r}")

    @property
    def command_line(self) -> str:
        """What ps shows to everybody."""
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


async def _collect(program: Program, name: str, kept: bytearray) -> None:
    stream = getattr(program.process, name)
    async for data in stream:
        kept += data
        async with program.progress:
            program.progress.notify_all()
    setattr(program.process, name, None)
    async with program.progress:
        program.progress.notify_all()


@asynccontextmanager
async def run_program(
    *args: str,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
    environ: dict[str, str] | None = None,
    command: Sequence[str] = (),
) -> AsyncIterator[Program]:
    """``relaycore ARGS`` with the environment of the test and `environ`; killed at the end of the block."""
    words = [*command] or [sys.executable, "-m", "relaycore", *args]
    process = await trio.lowlevel.open_process(
        words, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **(environ or {})}
    )
    program = Program(process)
    async with trio.open_nursery() as nursery:
        if process.stdout is not None:
            nursery.start_soon(functools.partial(_collect, program, "stdout", program.out))
        nursery.start_soon(functools.partial(_collect, program, "stderr", program.err))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):  # a killed process ends at once
                    await process.wait()
            nursery.cancel_scope.cancel()


async def finish(
    *args: str, data: bytes = b"", environ: dict[str, str] | None = None, command: Sequence[str] = ()
) -> tuple[int, bytes, str]:
    """Run a program to its end with `data` as its input. Returns: exit code, standard output, standard error."""
    async with run_program(*args, environ=environ, command=command) as program:
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                with contextlib.suppress(trio.BrokenResourceError):  # it need not read all of it
                    await program.write(data)
                await program.close_input()

            nursery.start_soon(feed)
            code = await program.exit_code()
        return code, bytes(program.out), program.err.decode()
