"""A program of `test_engine`: what its arguments name happens right behind a call of C while a session runs there."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

sys.path.insert(0, str(Path(__file__).parent.parent))

from stages import legs, unix_pair

import relaycore._native.engine as native_engine
from relaycore.net.engine import open_engine


class Disturbed:
    """The engine of C, but behind the calls of one name something happens."""

    def __init__(self, native: native_engine.Engine, happens: str, at: str) -> None:
        self._native = native
        self._happens = happens
        self._at = at

    def __getattr__(self, name: str) -> object:
        found = getattr(self._native, name)
        if name != self._at:
            return found

        def call(*arguments: object) -> object:
            result = found(*arguments)
            if result or name == "submit":
                if self._happens == "error":
                    raise RuntimeError
                signal.raise_signal(signal.SIGINT)
            return result

        return call


async def main(happens: str, at: str) -> None:
    near, (far, other) = zip(unix_pair(), unix_pair(), strict=True)
    async with open_engine(threads=1, buffers=4) as engine:
        engine._native = Disturbed(engine._native, happens, at)  # type: ignore[assignment]
        with far, other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.run, legs(near))
                await wait_all_tasks_blocked()
                far.close()
                await trio.sleep_forever()


if __name__ == "__main__":
    # A shell has what it starts in the background ignore SIGINT, and so would everything below it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trio.run(main, *sys.argv[1:])
    except* KeyboardInterrupt:
        print("ended: KeyboardInterrupt")
    except* trio.TrioInternalError:
        print("ended: TrioInternalError")
