"""The live table on a terminal of its own."""

from __future__ import annotations

import os
import signal
import sys
import termios
from contextlib import asynccontextmanager

import trio

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """The other side of a terminal on which a command runs."""

    def __init__(self, fd: int, process: trio.Process) -> None:
        self.fd = fd
        self.process = process
        self.text = ""

    async def until(self, wanted: str) -> str:
        """Read until `wanted` comes. Returns: what came since the last time."""
        with trio.fail_after(30):
            while wanted not in self.text:
                await trio.lowlevel.wait_readable(self.fd)
                self.text += os.read(self.fd, 65_536).decode()
        before, _, self.text = self.text.partition(wanted)
        return before + wanted

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    async def exit_code(self) -> int:
        with trio.fail_after(30):
            return await self.process.wait()


@asynccontextmanager
async def terminal(*words: str, environ: dict[str, str]):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (12, 120))
    before = termios.tcgetattr(theirs)
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "relaycore", "hcm", *words],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm", **environ}, start_new_session=True,
        )  # fmt: skip
        try:
            yield Terminal(ours, process)
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):  # a killed process ends at once
                    await process.wait()
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(theirs)
        os.close(ours)


async def test_keys(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon():
            await world.settled("orders", status="Connected", endpoint_leg="Up")
            async with terminal("status", environ=world.environ) as screen:
                await screen.until(ENTER)
                assert "1 connection" in await screen.until("q quit")
                screen.press("t")
                await screen.until("answered in")
                screen.press("p")
                await screen.until("orders: pause")
                await screen.until("Paused")
                screen.press("p")
                await screen.until("orders: resume")
                await world.settled("orders", status="Connected")
                screen.press("r")
                await screen.until("orders: restart")
                screen.press("s\x1b[B")
                screen.press("d")
                await screen.until("hybrid connection  orders at")
                screen.press("q")
                await screen.until(LEAVE)
                assert await screen.exit_code() == 0


async def test_the_terminal_is_given_back_after_ctrl_c(world_of):
    async with world_of() as world, world.daemon(), terminal("status", environ=world.environ) as screen:
        await screen.until("no connections yet")
        screen.process.send_signal(signal.SIGINT)
        await screen.until(LEAVE)
        assert await screen.exit_code() == 130


async def test_it_waits_for_a_daemon_that_has_gone(world_of):
    async with world_of() as world, world.daemon() as daemon, terminal("status", environ=world.environ) as screen:
        await screen.until("q quit")
        daemon.signal(signal.SIGTERM)
        await screen.until("there is no running program")
        async with world.daemon():
            await screen.until("up 0 s")
        screen.press("q")
        assert await screen.exit_code() == 0
