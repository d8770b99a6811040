"""Joins two streams: what one receives, the other sends, both ways, until both directions have ended."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ..net.engine import Engine, shared_engine
from ..net.errors import StreamClosed, StreamGarbled, StreamLost
from ..net.linger import cut, reset_when_dropped
from ..net.mover import Mover
from ..net.pool import BufferPool
from ..net.session import EndReason, Session, SessionLeg
from ..vocab import CloseBy, LegKind
from ..wire.limits import CLOSE_TIMEOUT
from .connection import NORMAL_ENDS, Connection

__all__ = ["Spliced", "splice"]


@dataclass(frozen=True, slots=True)
class Spliced:
    """What two joined streams have carried: payload bytes from the first to the second, and back."""

    to_second: int
    to_first: int


_BUFFERS: Final = 64
"""Of 64 KiB, for all streams of a run that Trio carries; touched only when as many directions are stalled at once."""

_buffers: trio.lowlevel.RunVar[BufferPool | None] = trio.lowlevel.RunVar("relaycore splice buffers", None)


def _pool() -> BufferPool:
    pool = _buffers.get()
    if pool is None:
        pool = BufferPool(buffers=_BUFFERS)
        _buffers.set(pool)
    return pool


def _take_over(stream: trio.SocketStream) -> trio.SocketStream:
    """Take the connection out of a stream, which is a closed one from here on.

    Whoever still holds that one cannot close a descriptor that C works on: its number might be given out again, and a
    stranger get the bytes.
    """
    own = stream.socket
    if own.fileno() < 0:
        raise trio.ClosedResourceError("this stream was already closed")
    trio.lowlevel.notify_closing(own)
    taken = socket.socket(own.family, own.type, own.proto, fileno=own.detach())
    return trio.SocketStream(trio.socket.from_stdlib_socket(taken))


def _leg(stream: trio.abc.HalfCloseableStream) -> SessionLeg:
    if isinstance(stream, trio.SocketStream):
        own = _take_over(stream)
        reset_when_dropped(own)
        return SessionLeg(LegKind.RAW, own)
    # A connection between two messages gives up its WebSocket, whose frames the mover can read itself.
    if isinstance(stream, Connection) and stream.is_detachable:
        below, early = stream.detach()
        return SessionLeg(LegKind.WS_CLIENT, below, early)
    reset_when_dropped(stream)
    return SessionLeg(LegKind.RAW, stream)


async def splice(
    first: trio.abc.HalfCloseableStream,
    second: trio.abc.HalfCloseableStream,
    *,
    half_closed_timeout: float = 0,
    idle_timeout: float = 0,
    engine: Engine | None = None,
    on_session: Callable[[Session], object] | None = None,
) -> Spliced:
    """Join two streams and wait until both directions have ended.

    Each may be a `trio.SocketStream`, a `Connection` through the relay, or any other stream that can be half-closed.
    The end of one direction is passed on as such, while the other goes on: a TCP half-close becomes a Close frame, and
    the other way round. Where both are sockets in the end, threads of C carry the bytes, and no Python runs until the
    end; other streams are carried by Trio tasks. A `Connection` without TLS is a socket if nothing has been read from
    it, or only what follows `Connection.expect_preamble`.

    Both streams belong to the call: a socket looks closed to others from its beginning, and when it returns or raises
    both are. A checkpoint. Cancelling it cuts both; as when one of them is lost, or the process is killed, a TCP peer
    then sees a reset, never an end of data.

    Args:
      half_closed_timeout: seconds that the second direction may stay silent once the first has ended; 0 is no limit.
      idle_timeout: seconds that both may stay silent; 0 is no limit.
      engine: the threads to use; this Trio run's own are started when first needed.
      on_session: gets what is about to run, whose ``statistics()`` counts meanwhile: ``to_listener`` is from the first
        stream to the second.

    Returns: the bytes carried.

    Raises:
      StreamLost: one of them was lost, or stayed silent for too long; the other was cut.
      StreamClosed: a connection was closed with another code than 1000. The other stream was cut, since data are
        missing; another connection was given that code, behind what came before.
      StreamGarbled: the other side of a connection broke a rule of WebSocket.
      ValueError: both are the same stream.
      trio.ClosedResourceError: one was closed before.
      MemoryError: memory, descriptors or threads were refused.
    """
    legs: list[SessionLeg] = []
    try:
        if first is second:
            raise ValueError("a stream cannot be joined with itself")
        for stream in (first, second):
            legs.append(_leg(stream))
        session = Session(
            *legs, half_closed_timeout=half_closed_timeout, close_timeout=CLOSE_TIMEOUT, idle_timeout=idle_timeout
        )
        mover = Mover(_pool(), engine or shared_engine())
        if on_session is not None:
            on_session(session)
    except BaseException:
        # A connection that was taken apart does not close what is below it any more.
        await cut(first, second, *(leg.stream for leg in legs))  # noqa: ASYNC102 - shields itself
        raise
    result = await mover.run(session)
    to_second, to_first = result.statistics.to_listener, result.statistics.to_sender
    name = "the first stream" if result.by is CloseBy.SENDER else "the second stream"
    for leg, direction in zip(legs, (to_second, to_first), strict=True):
        if leg.kind is not LegKind.RAW and direction.close_code not in (0, *NORMAL_ENDS):
            raise StreamClosed(direction.close_code or 0, "")
    match result.reason:
        case EndReason.CLOSED:
            pass
        case EndReason.PROTOCOL_ERROR:
            raise StreamGarbled(f"{name} broke a rule of WebSocket: {session.brain.failure}")
        case EndReason.HALF_CLOSED_TIMEOUT:
            raise StreamLost(f"{name} had ended, and the other was silent for {half_closed_timeout:g} s")
        case EndReason.IDLE_TIMEOUT:
            raise StreamLost(f"both streams were silent for {idle_timeout:g} s")
        case EndReason.ABORTED:
            raise StreamLost(f"{name} was lost, or cannot be sent to")
        case EndReason.RELAY_CLOSED:
            raise StreamLost("the engine was stopped")
    return Spliced(to_second.payload_bytes, to_first.payload_bytes)
