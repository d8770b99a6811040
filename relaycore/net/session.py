"""A joined pair, whoever moves its bytes: two legs, their limits, and how it ended.

The rules of a joined session stand in C, without I/O (``native/src/rc_session.c``). Two movers drive them, by one
contract: the native engine (``net/engine.py``), for sockets, on threads of its own; and the Trio mover
(``net/trio_mover.py``), for all other streams, on other systems, and as the reference. ``net/mover.py`` chooses.

The contract of ``await mover.run(session)``: it moves bytes until both sides are done; both streams are closed when it
returns or raises; cancelling it cuts both legs. **An end without a Close frame must not look like an end** (wire
contract 8.8), so both legs are cut without any.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import trio

from .._native import Session as Brain
from .._native import SessionStatistics
from ..vocab import CloseBy, LegKind
from .linger import allow_end, close_gently, cut, reset

__all__ = ["Driver", "EndReason", "Session", "SessionLeg", "SessionResult"]


class EndReason(enum.Enum):
    """How a session ended; the label in logs and counters."""

    CLOSED = "closed"  # both sides sent Close, or ended as a raw leg does
    ABORTED = "aborted"  # a leg ended without Close
    PROTOCOL_ERROR = "protocol_error"  # a leg broke RFC 6455
    HALF_CLOSED_TIMEOUT = "half_closed_timeout"  # one side sent Close, the other stayed silent
    IDLE_TIMEOUT = "idle_timeout"  # both stayed silent for as long as somebody has allowed
    RELAY_CLOSED = "relay_closed"  # we closed it: entity gone, shutdown


@dataclass(frozen=True, slots=True)
class SessionLeg:
    """One side of a session.

    Attributes:
      kind: what we are on this side.
      stream: owned by the session from its start on.
      early: bytes that were read behind the handshake; they go in first.
    """

    kind: LegKind
    stream: trio.abc.Stream
    early: bytes = b""


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What a session was: how it ended, who ended it first, and what went through."""

    reason: EndReason
    by: CloseBy
    statistics: SessionStatistics


class Driver(Protocol):
    """What a mover leaves with a session while it runs it."""

    def close_nowait(self, code: int, reason: bytes) -> None:
        """See `Session.close_nowait`."""

    def check_sources_nowait(self) -> None:
        """See `Session.check_sources_nowait`."""


class Session:
    """Two legs that are being joined.

    Args:
      sender, listener: the legs; their streams belong to the session once a mover runs it.
      half_closed_timeout: seconds without a byte, after the first Close, until both legs are cut; 0 is no limit.
      close_timeout: seconds that the peers have to answer a Close of ours.
      idle_timeout: seconds without a byte until both legs are cut; 0 is no limit.

    Attributes:
      brain: the rules; the mover's while it runs.
      driver: the mover's handle, while it runs.
    """

    __slots__ = (
        "__weakref__",
        "_is_over",
        "brain",
        "close_timeout",
        "driver",
        "half_closed_timeout",
        "idle_timeout",
        "is_closing",
        "listener",
        "sender",
    )

    def __init__(
        self,
        sender: SessionLeg,
        listener: SessionLeg,
        *,
        half_closed_timeout: float,
        close_timeout: float,
        idle_timeout: float = 0,
    ) -> None:
        self.brain = Brain(sender.kind, listener.kind)
        self.sender = sender
        self.listener = listener
        self.half_closed_timeout = half_closed_timeout
        self.close_timeout = close_timeout
        self.idle_timeout = idle_timeout
        self.driver: Driver | None = None
        self.is_closing = False
        self._is_over = False

    def statistics(self) -> SessionStatistics:
        """Counters of both directions up to now; not a checkpoint."""
        return self.brain.statistics()

    def close_nowait(self, code: int, reason: bytes) -> None:
        """Send Close to both legs at their next frame boundary, then cut them ``close_timeout`` later at the latest.

        May be called before a mover runs the session. Does nothing when it is already ending. Not a checkpoint.
        """
        if self._is_over or self.is_closing:
            return
        if self.driver is not None:
            self.driver.close_nowait(code, reason)
        else:
            self.brain.close(code, reason)
        self.is_closing = True

    def check_sources_nowait(self) -> None:
        """Cut the session if a source was reset while its destination does not take what it sent before.

        A leg that is not read cannot be seen to go, and while a send blocks nobody reads. So this is called from
        outside every few seconds. The engine sees it by itself. Not a checkpoint.
        """
        if self.driver is not None:
            self.driver.check_sources_nowait()

    async def part(self, reason: EndReason | None, *, offender: CloseBy | None = None) -> None:
        """For movers, as the last thing: let go of both legs as the end asks for. Shielded and bounded; a checkpoint.

        Args:
          reason: how it ended; None for a cut.
          offender: after a broken rule, whose it was: it may read the Close that it was sent, the other is cut.
        """
        self.driver = None
        self._is_over = True
        if reason is EndReason.PROTOCOL_ERROR:
            bad, good = (self.sender, self.listener) if offender is CloseBy.SENDER else (self.listener, self.sender)
            await self.cut(good)
            await close_gently(bad.stream)
        if reason is EndReason.CLOSED:
            for leg in (self.sender, self.listener):
                if leg.kind is LegKind.RAW:
                    allow_end(leg.stream)
            await cut(self.sender.stream, self.listener.stream)
        else:
            await self.cut(self.sender, self.listener)

    async def cut(self, *legs: SessionLeg) -> None:
        """For movers: close legs at once, without a goodbye. Never blocks; a checkpoint.

        A raw leg has no Close that could be missing: only a reset tells its peer that this is not the end of data.
        """
        for leg in legs:
            await (reset if leg.kind is LegKind.RAW else cut)(leg.stream)
