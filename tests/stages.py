"""The movers of joined sessions, each on the ground where it works: what tests of their common contract stand on."""

from __future__ import annotations

import socket as stdlib_socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import pytest
import trio
from peers import WirePeer, frame
from trio.testing import lockstep_stream_pair, memory_stream_pair

from relaycore.net.engine import Engine, engine_is_available, open_engine
from relaycore.net.pool import BufferPool
from relaycore.net.session import Session, SessionLeg, SessionResult
from relaycore.net.trio_mover import TrioMover
from relaycore.vocab import LegKind

STAGES: Final = (
    "trio-memory",
    "trio-tcp",
    pytest.param("engine", marks=pytest.mark.skipif(not engine_is_available(), reason="no epoll")),
)

on_sockets: Final = pytest.mark.parametrize("stage_name", STAGES[1:])
"""For what memory streams do not do: they cannot be reset, and are read before a buffer is borrowed."""

LOST: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, EOFError)

_SMALL_BYTES: Final = 4_096


async def tcp_pair(*, small: bool = False) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a connection through loopback; a small one holds little on its way."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        if small:
            listener.socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, _SMALL_BYTES)
            listener.socket.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, _SMALL_BYTES)
        ours = trio.socket.socket()
        if small:
            ours.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, _SMALL_BYTES)
            ours.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, _SMALL_BYTES)
        await ours.connect(listener.socket.getsockname())
        return trio.SocketStream(ours), await listener.accept()


def unix_pair() -> tuple[trio.SocketStream, stdlib_socket.socket]:
    """A stream and the blocking socket at its other end, which waits for ten seconds at most."""
    near, far = stdlib_socket.socketpair()
    far.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVTIMEO, struct.pack("@ll", 10, 0))
    return trio.SocketStream(trio.socket.from_stdlib_socket(near)), far


async def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for what another thread will make true."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)


class Stage:
    """One mover, opened when the test knows with which buffers.

    Attributes:
      name: of :data:`STAGES`.
    """

    def __init__(self, name: str, nursery: trio.Nursery) -> None:
        self.name = name
        self.pool: BufferPool | None = None
        self.engine: Engine | None = None
        self._nursery = nursery
        self._mover: TrioMover | Engine | None = None
        self._opened = trio.Event()
        self._leave = trio.Event()
        self._left = trio.Event()

    @property
    def is_native(self) -> bool:
        return self.name == "engine"

    @property
    def has_sockets(self) -> bool:
        return self.name != "trio-memory"

    def seconds(self, seconds: float) -> float:
        """A span for this stage's clock: where no clock can jump, it is 500 times shorter."""
        return seconds / 500 if self.is_native else seconds

    async def open(self, *, buffers: int = 8, buffer_bytes: int = 65_536, threads: int = 1) -> None:
        if self._mover is not None:
            return
        if self.is_native:
            self._nursery.start_soon(self._keep, threads, buffers, buffer_bytes)
            await self._opened.wait()
        else:
            self.pool = BufferPool(buffers=buffers, buffer_bytes=buffer_bytes)
            self._mover = TrioMover(self.pool)

    async def _keep(self, threads: int, buffers: int, buffer_bytes: int) -> None:
        async with open_engine(threads=threads, buffers=buffers, buffer_bytes=buffer_bytes) as engine:
            self.engine = self._mover = engine
            self._opened.set()
            await self._leave.wait()
        self._left.set()

    async def aclose(self) -> None:
        if self.engine is not None:
            self._leave.set()
            await self._left.wait()

    async def pair(self, *, small: bool = False) -> tuple[trio.abc.Stream, trio.abc.Stream]:
        """Our end of a leg and its peer's; a small one blocks soon."""
        if self.has_sockets:
            return await tcp_pair(small=small)
        return lockstep_stream_pair() if small else memory_stream_pair()

    async def run(self, session: Session) -> SessionResult:
        assert self._mover is not None
        return await self._mover.run(session)

    @property
    def buffers_in_use(self) -> int:
        if self.engine is not None:
            return self.engine.statistics().buffers_in_use
        return self.pool.statistics().in_use if self.pool is not None else 0

    @property
    def buffers_peak(self) -> int:
        if self.engine is not None:
            return self.engine.statistics().buffers_peak
        return self.pool.statistics().peak if self.pool is not None else 0

    def check(self) -> None:
        """With no session running: nothing may be out."""
        assert self.buffers_in_use == 0
        assert self.engine is None or self.engine.check_consistency() == []
        assert self.engine is None or self.engine.statistics().jobs == 0


class Joined:
    """A session that runs on a stage, and the two peers at its ends.

    Attributes:
      near: our ends, of the sender and of the listener.
      scope: cancel it to cancel the run.
      result: how it ended; None before that, and when it was cancelled.
      error: what the run raised, but for a cancellation.
    """

    def __init__(
        self, stage: Stage, session: Session, near: tuple[trio.abc.Stream, trio.abc.Stream], *far: trio.abc.Stream
    ) -> None:
        self.stage = stage
        self.session = session
        self.near = near
        self.sender, self.listener = map(WirePeer, far)
        self.scope = trio.CancelScope()
        self.result: SessionResult | None = None
        self._done = trio.Event()

    @property
    def is_over(self) -> bool:
        return self._done.is_set()

    async def run(self) -> None:
        with self.scope:
            self.result = await self.stage.run(self.session)
        self._done.set()

    async def wait(self) -> None:
        """Until the run has returned or was cancelled."""
        await self._done.wait()

    async def ended(self) -> SessionResult:
        """How it ended, with nothing left behind."""
        await self._done.wait()
        assert self.result is not None
        self.check_closed()
        return self.result

    def check_closed(self) -> None:
        """Both of our ends are closed; whether a memory stream is, only its peer can tell."""
        for stream in self.near:
            assert not isinstance(stream, trio.SocketStream) or stream.socket.fileno() == -1

    async def stalled(self, *, to_sender: bool = False) -> None:
        """Until a direction has carried something, and has stopped."""
        before = -1
        while True:
            counts = self.session.statistics()
            moved = (counts.to_sender if to_sender else counts.to_listener).bytes_in
            if moved and moved == before:
                return
            before = moved
            await trio.sleep(0.03)


async def flood(peer: WirePeer, count: int = 400) -> None:
    """Send messages of 20 000 bytes until they are all gone, or the peer is cut."""
    message = frame(2, b"f" * 20_000)
    with suppress(*LOST):
        for _ in range(count):
            await peer.send(message)


def legs(
    near: tuple[trio.abc.Stream, trio.abc.Stream],
    *,
    kinds: tuple[LegKind, LegKind] = (LegKind.WS_SERVER, LegKind.WS_SERVER),
    early: tuple[bytes, bytes] = (b"", b""),
    half_closed: float = 600,
    close: float = 10,
    idle: float = 0,
) -> Session:
    """A session between our ends of two legs."""
    sender, listener = (SessionLeg(*leg) for leg in zip(kinds, near, early, strict=True))
    return Session(sender, listener, half_closed_timeout=half_closed, close_timeout=close, idle_timeout=idle)
