"""WebSocket connections of a forwarder: each sender is joined with a connection of its own to the origin.

::

    accept{...} ─▶ dial the origin, shake hands ─▶ 101: Accept(its sub-protocol) ─▶ rendezvous ─▶ net.session
                                                └▶ else: Reject(its status and reason)

The origin decides before the sender hears anything, so that a refusal is its own. Its connection then waits for the
sender's, which the listener hands over; should that never come, it is hung up on after the time that a rendezvous has.
Once joined, messages, their types, Closes and half-closes pass as they are. What an origin sends as headers with its
101 does not reach the sender: the protocol has no place for it (wire contract 7.2).
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Final

import trio

from ..client.connection import Connection
from ..client.invitation import Accept, IncomingConnection, Reject
from ..client.listener import Listener
from ..errors import Refused, RemoteProtocolError
from ..net.engine import shared_engine
from ..net.linger import cut
from ..net.mover import Mover
from ..net.pool import BufferPool
from ..net.session import Session, SessionLeg
from ..vocab import LegKind
from ..wire.handshake import check_101, new_key
from ..wire.http1 import ResponseReader, build_request
from ..wire.limits import CLOSE_TIMEOUT, HALF_CLOSED_TIMEOUT, LISTENER_RENDEZVOUS_TIMEOUT
from ..wire.status import CloseCode, one_line
from .origin import OriginError, OriginPool

__all__ = ["WebSocketForwarder"]

_HANDSHAKE_TIMEOUT: Final = 8.0
"""Seconds for the origin's answer to a handshake. Together with connecting and the rendezvous that is less than the
30 seconds that an accept has."""

_FAREWELL_TIMEOUT: Final = 2.0
"""Seconds for the goodbyes of connections that the end of the forwarder ends."""

_BUFFERS: Final = 64
"""Of 64 KiB each, for all connections together: what slow readers can make us hold."""

_MAX_CONNECTIONS: Final = 1_000
"""Connections carried at one time; further ones wait in the listener's backlog, and past that are refused with 503."""


_log = logging.getLogger("relaycore.edge")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A handshake that the origin has answered with 101, while the rendezvous is being opened."""

    incoming: IncomingConnection
    leg: SessionLeg
    deadline: float


class WebSocketForwarder:
    """Carries WebSocket connections to one origin.

    Args:
      pool: opens connections to the origin; a WebSocket never becomes an idle one.
    """

    def __init__(self, pool: OriginPool) -> None:
        self._pool = pool
        self._buffers = BufferPool(buffers=_BUFFERS)
        # By the identity of the handshake's headers, which a connection shares with its invitation; a tracking id is
        # the sender's to choose, and may come twice.
        self._waiting: dict[int, _Waiting] = {}
        self._sessions: set[Session] = set()

    async def accept(self, incoming: IncomingConnection, target: str, fields: list[tuple[str, str]]) -> Accept | Reject:
        """Ask the origin for a WebSocket.

        Args:
          incoming: the sender.
          target: what to ask for.
          fields: ``Host`` and the sender's own fields, without those of the handshake.
        """
        try:
            leg, protocol = await self._shake_hands(target, fields, incoming.subprotocols)
        except Refused as refusal:
            if 400 <= refusal.http_status <= 599:
                return Reject(refusal.http_status, refusal.message)
            # A redirect, say: a refusal by the relay has a status of 400 to 599.
            return Reject(502, f"{self._pool.origin} answered {refusal.http_status} {refusal.message}".strip())
        except OriginError as error:
            return Reject(error.http_status, one_line(str(error)))
        except RemoteProtocolError as error:
            return Reject(502, one_line(f"{self._pool.origin} gave no valid answer: {error}"))
        deadline = trio.current_time() + LISTENER_RENDEZVOUS_TIMEOUT + CLOSE_TIMEOUT
        self._waiting[id(incoming.headers)] = _Waiting(incoming, leg, deadline)
        return Accept(protocol)

    async def _shake_hands(
        self, target: str, fields: list[tuple[str, str]], protocols: tuple[str, ...]
    ) -> tuple[SessionLeg, str | None]:
        connection = await self._pool.open()
        stream = connection.detach()
        try:
            with trio.fail_after(_HANDSHAKE_TIMEOUT):
                key = new_key(os.urandom(16))
                handshake = [
                    ("Connection", "Upgrade"),
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Key", key),
                    ("Sec-WebSocket-Version", "13"),
                ]
                if protocols:
                    handshake.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
                reader = ResponseReader()
                with contextlib.suppress(trio.BrokenResourceError):  # a refusal may have come first
                    await stream.send_all(build_request("GET", target, [*fields, *handshake]))
                while (head := reader.next_event()) is None:
                    data = await stream.receive_some(65_536)
                    if not data:
                        raise OriginError(f"{self._pool.origin} gave no answer: it closed the connection")
                    reader.receive_data(data)
                protocol = check_101(head, key, protocols)
        except trio.TooSlowError as error:
            await cut(stream)  # noqa: ASYNC120 - shields itself
            said = f"{self._pool.origin} gave no answer within {_HANDSHAKE_TIMEOUT:g} s"
            raise OriginError(said, http_status=504) from error
        except trio.BrokenResourceError as error:
            await cut(stream)  # noqa: ASYNC120 - shields itself
            raise OriginError(f"{self._pool.origin} gave no answer: it closed the connection") from error
        except BaseException:
            await cut(stream)  # noqa: ASYNC102 - shields itself
            raise
        return SessionLeg(LegKind.WS_CLIENT, stream, reader.trailing), protocol

    async def run(self, listener: Listener) -> None:
        """Take the listener's connections and carry each to its end, until the listener is closed.

        Then both sides of each are closed with 1001, and cut two seconds later. Cancelled, it cuts them at once.
        """
        free = trio.Semaphore(_MAX_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            with contextlib.suppress(trio.ClosedResourceError):
                while True:
                    await free.acquire()
                    nursery.start_soon(self._carry, await listener.accept(), free)
            for session in self._sessions:
                session.close_nowait(CloseCode.GOING_AWAY, b"The forwarder stops")
            nursery.cancel_scope.deadline = trio.current_time() + _FAREWELL_TIMEOUT

    async def _carry(self, connection: Connection, free: trio.Semaphore) -> None:
        try:
            waiting = self._waiting.pop(id(connection.headers), None)
            if waiting is None:
                await connection.turn_away(1011, 1.0)  # its origin was hung up on
                return
            stream, early = connection.detach()
            session = Session(
                SessionLeg(LegKind.WS_CLIENT, stream, bytes(early)),
                waiting.leg,
                half_closed_timeout=HALF_CLOSED_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
            )
            self._sessions.add(session)
            mover = Mover(self._buffers, shared_engine())
            try:
                await mover.run(session)
            finally:
                self._sessions.discard(session)
        except Exception as error:  # our bug: it costs this connection, not the others
            _log.error("! a WebSocket failed", exc_info=error)
        finally:
            free.release()

    async def sweep(self) -> None:
        """Hang up on origins whose sender never came. A checkpoint."""
        now = trio.current_time()
        late = [key for key, waiting in self._waiting.items() if waiting.deadline <= now]
        for key in late:
            await cut(self._waiting.pop(key).leg.stream)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Hang up on all that still wait. A checkpoint."""
        waiting, self._waiting = self._waiting, {}
        await cut(*(found.leg.stream for found in waiting.values()))
