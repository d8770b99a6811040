"""Two managers on one hybrid connection: they share its senders, and one that dies takes nobody else with it."""

from __future__ import annotations

import dataclasses
import signal

import trio


def beside(world, name):
    """The same world for another daemon, with a socket of its own."""
    directory = world.directory / name
    (directory / "run").mkdir(parents=True, mode=0o700)
    environ = {
        "XDG_RUNTIME_DIR": str(directory / "run"),
        "RELAYCORE_CONFIG": str(directory / "relaycore.toml"),
        "XDG_STATE_HOME": str(directory / "state"),
    }
    return dataclasses.replace(world, directory=directory, environ=environ)


async def shares(world) -> bool:
    """Whether this manager has had a sender."""
    return (await world.settled("orders"))["accepted"] > 0


async def test_one_is_killed_under_load(world_of):
    async with world_of("orders") as world:
        first, second = beside(world, "a"), beside(world, "b")
        first.write(world.entry("orders"))
        second.write(world.entry("orders"))
        async with first.daemon() as doomed, second.daemon():
            await first.settled("orders", status="Connected")
            await second.settled("orders", status="Connected")
            for _ in range(100):  # the relay chooses
                assert await world.echoes("orders")
                if await shares(first) and await shares(second):
                    break
            assert await shares(first)
            assert await shares(second)
            async with world.sender("orders") as held:
                await held.send_all(b"held")
                assert await held.receive_some() == b"held"
                through_first = (await first.settled("orders"))["open"] == 1
                doomed.signal(signal.SIGKILL)
                killed_at = trio.current_time()
                while True:
                    try:
                        assert await world.echoes("orders")
                    except Exception:  # what was on its way through the one that died
                        assert trio.current_time() - killed_at < 1
                    else:
                        break
                assert trio.current_time() - killed_at < 1
                for _ in range(20):
                    assert await world.echoes("orders")
                if not through_first:
                    await held.send_all(b"still")
                    assert await held.receive_some() == b"still"
            assert (await second.settled("orders"))["listeners_here"] == 1
