"""Chooses who moves a session's bytes."""

from __future__ import annotations

import logging

from .engine import Engine
from .pool import BufferPool
from .session import Session, SessionResult
from .trio_mover import TrioMover

__all__ = ["Mover"]

_log = logging.getLogger("relaycore.session")


class Mover:
    """Runs sessions: in the engine when there is one and both legs are sockets, else in Trio tasks.

    Args:
      pool: buffers for the sessions that Trio moves.
      engine: none where it is switched off, or the system has not what it needs.
    """

    def __init__(self, pool: BufferPool, engine: Engine | None) -> None:
        self._trio = TrioMover(pool)
        self._engine = engine

    async def run(self, session: Session) -> SessionResult:
        """Move bytes until both sides are done, then close both streams.

        Both streams are closed when this returns or raises; cancelling it cuts both legs.
        """
        if self._engine is not None and self._engine.can_run(session):
            try:
                return await self._engine.carry(session)
            except OSError as error:
                _log.warning("! the engine cannot watch a socket, Trio carries the session: %s", error)
        return await self._trio.run(session)
