"""Exact counts: what one thread of the engine does for bytes that lie ready, and what Python does for a session.

Times depend on the machine, these do not: system calls and bytes come from the engine's own counters, crossings from a
count around every function of the C library. Everything happens in this process. Whatever could fall out differently is
taken away: a whole batch is in the socket before the engine sees it, and a message is sent only when the last one has
arrived.

Copies cannot be counted from outside. What stands for them: each wire byte is received once and sent once (``receives``
and ``sends`` for a number of bytes, ``bytes in`` as sent), and the mask is taken off where the bytes lie
(``rc_session.h``). That C allocates nothing on the way is for ``make -C native symbols`` to show.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import trio
import trio.testing

from relaycore._native import Engine, EngineStatistics, Job, Session, encode_frame, engine_is_available
from relaycore._native import engine as native_engine
from relaycore._native import frames as native_frames
from relaycore._native import pool as native_pool
from relaycore._native import session as native_session
from relaycore.net.engine import open_engine
from relaycore.net.session import Session as Joined
from relaycore.net.session import SessionLeg
from relaycore.vocab import LegKind

from .processes import BenchError

Counts = dict[str, int]

KEY = b"\x35\x6a\x17\x4c"
BINARY, CLOSE = 2, 8

ROUND_TRIPS = 64
LOAD_MIB = 16

SETTLE_S = 0.005
"""Two looks that far apart see the same: nothing is under way any more."""

SETTLE_TIMEOUT = 10.0
"""Seconds after which an engine that does not come to rest is broken."""


def _frame(size: int) -> bytes:
    return encode_frame(BINARY, bytes(size), mask=KEY)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    for link in (dialled, accepted):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled, accepted


@contextlib.contextmanager
def _joined(
    preloaded: bytes = b"", *, pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
) -> Iterator[tuple[Engine, socket.socket, socket.socket]]:
    """An engine with one thread and one session between two sockets of ours: engine, sender's end, listener's end.

    Args:
      preloaded: lies in the sender's socket when the engine first sees it.
      pair: makes two connected sockets.
    """
    (sender, sender_leg), (listener, listener_leg) = pair(), pair()
    engine = Engine(threads=1, buffers=8)
    with sender, sender_leg, listener, listener_leg:
        for link in (sender, listener):
            link.settimeout(SETTLE_TIMEOUT)
        for leg in (sender_leg, listener_leg):
            leg.setblocking(False)
        if preloaded:
            sender.sendall(preloaded)
        job = Job(Session(LegKind.WS_SERVER, LegKind.WS_SERVER), 1, sender_leg.fileno(), listener_leg.fileno())
        engine.submit(job)
        try:
            yield engine, sender, listener
        finally:
            engine.shut()


def _settled(engine: Engine, bytes_in: int) -> EngineStatistics:
    """Counters once that much has been received and nothing more happens."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    found = engine.statistics()
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        before, found = found, engine.statistics()
        if found == before and found.bytes_in >= bytes_in:
            return found
    raise BenchError(f"the engine does not come to rest: {found}")


def _receive(link: socket.socket, size: int) -> None:
    area = memoryview(bytearray(65_536))
    while size > 0:
        size -= link.recv_into(area[: min(size, 65_536)])


def _differences(name: str, before: EngineStatistics, after: EngineStatistics, *fields: str) -> Counts:
    return {f"{name}, {field}": getattr(after, field) - getattr(before, field) for field in fields}


def lockstep() -> Counts:
    """64-byte messages over loopback, there and back in turn, the next one when the last has arrived."""
    frame = _frame(64)
    arrived = len(frame) - len(KEY)
    with _joined(pair=_tcp_pair) as (engine, sender, listener):

        def trips(count: int) -> None:
            for _ in range(count):
                for source, destination in ((sender, listener), (listener, sender)):
                    source.sendall(frame)
                    _receive(destination, arrived)

        trips(1)
        before = _settled(engine, 2 * len(frame))
        trips(ROUND_TRIPS)
        after = _settled(engine, before.bytes_in + ROUND_TRIPS * 2 * len(frame))
    return _differences(f"{ROUND_TRIPS} round trips of 64 B", before, after, "turns", "receives", "sends", "waits")


def preloaded(name: str, size: int, messages: int) -> Counts:
    """A batch that lies ready when the session begins."""
    batch = _frame(size) * messages
    arrived = len(batch) - messages * len(KEY)
    with _joined(batch) as (engine, _, listener):
        _receive(listener, arrived)
        found = _settled(engine, len(batch))
        return {
            f"{name}, {field}": value
            for field, value in (
                ("turns", found.turns),
                ("receives", found.receives),
                ("sends", found.sends),
                ("bytes in", found.bytes_in),
                ("bytes out", found.bytes_out),
            )
        }


def python_blocks() -> Counts:
    """Memory blocks that Python still holds for bytes that the engine moved."""
    frame = _frame(65_536)
    arrived = len(frame) - len(KEY)
    area = memoryview(bytearray(arrived))
    with _joined() as (_, sender, listener):

        def move(mebibytes: int) -> None:
            for _ in range(mebibytes * 16):
                sender.sendall(frame)
                left = arrived
                while left:
                    left -= listener.recv_into(area[:left])

        def kept(mebibytes: int) -> int:
            before = sys.getallocatedblocks()
            move(mebibytes)
            return sys.getallocatedblocks() - before

        gc.collect()
        kept(1)
        nothing = kept(0)  # what counting itself keeps
        return {f"Python blocks kept for {LOAD_MIB} MiB": kept(LOAD_MIB) - nothing}


class _Counting:
    """The C library, with every call of a function counted."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def counted(*given: object) -> object:
            self.calls += 1
            return found(*given)

        setattr(self, name, counted)
        return counted


@contextlib.contextmanager
def _counted_crossings() -> Iterator[_Counting]:
    rooms: tuple[Any, ...] = (native_engine, native_frames, native_pool, native_session)
    library = rooms[0].lib
    counting = _Counting(library)
    for room in rooms:
        room.lib = counting
    try:
        yield counting
    finally:
        for room in rooms:
            room.lib = library


async def _crossings(messages: int) -> int:
    """Calls into C for one session in the engine, from its start to its answered Close."""
    frame, close = _frame(64), encode_frame(CLOSE, b"\x03\xe8", mask=KEY)
    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(2)]
        (sender, sender_leg), (listener, listener_leg) = pairs
        for link in (sender, listener):
            link.settimeout(SETTLE_TIMEOUT)

        def play() -> None:
            for _ in range(messages):
                sender.sendall(frame)
                _receive(listener, len(frame) - len(KEY))
            sender.sendall(close)
            _receive(listener, len(close) - len(KEY))
            listener.sendall(close)
            _receive(sender, len(close) - len(KEY))
            for link in (sender, listener):
                link.close()

        async with open_engine(threads=1, buffers=8) as engine:
            await trio.testing.wait_all_tasks_blocked()  # the engine's own task has asked for its descriptor
            with _counted_crossings() as counting:
                legs = [
                    SessionLeg(LegKind.WS_SERVER, trio.SocketStream(trio.socket.from_stdlib_socket(leg.dup())))
                    for leg in (sender_leg, listener_leg)
                ]
                for leg in (sender_leg, listener_leg):
                    leg.close()
                session = Joined(*legs, half_closed_timeout=0, close_timeout=10)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(engine.run, session)
                    await trio.to_thread.run_sync(play)
                return counting.calls


def crossings() -> Counts:
    """Calls into C: for a session, and for each message of it."""
    # The fewest of some: a thread may ring for what the waking task has just taken, and then it looks once more.
    few, many = (min(trio.run(_crossings, count) for _ in range(5)) for count in (10, 200))
    return {"crossings per session": few, "crossings for 190 more messages": many - few}


PARTS: tuple[Callable[[], Counts], ...] = (
    lockstep,
    functools.partial(preloaded, "2 messages of 64 KiB", 65_536, 2),
    functools.partial(preloaded, "1000 messages of 128 B", 128, 1_000),
    python_blocks,
    crossings,
)


def count_everything() -> Counts:
    """All counts, by name. On a system without the engine there are none.

    Raises:
      BenchError: the engine does not come to rest.
    """
    counts: Counts = {}
    if engine_is_available():
        for part in PARTS:
            counts.update(part())
    return counts


if __name__ == "__main__":
    for name, value in count_everything().items():
        print(f"{value:10}  {name}")
