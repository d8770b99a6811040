"""The open connections of one entry: who they are, what they carry, and how to end them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from ...client.invitation import IncomingConnection
from ...net.session import Session
from .status import SessionStatus

__all__ = ["OpenSession", "SessionBook", "sender_of"]


def sender_of(incoming: IncomingConnection) -> str:
    """Where a sender dialled from, for people; ``""`` if the relay does not say."""
    peer = incoming.remote_endpoint
    if peer is None:
        return ""
    host = peer.address.strip("[]")
    return f"[{host}]:{peer.port}" if ":" in host else f"{host}:{peer.port}"


@dataclass(eq=False)
class OpenSession:
    """A sender that was accepted.

    Attributes:
      sender: its address and port as the relay tells them, or ``""``.
      endpoint: where it was led, as soon as that is known.
      scope: cancelling it cuts both sides.
      is_joined: whether the endpoint was reached.
    """

    tracking_id: str
    sender: str
    endpoint: str
    since_unix: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_joined: bool = False
    _running: Session | None = None
    _is_turned: bool = False
    _counted: tuple[int, int] = (0, 0)

    def follow(self, session: Session, *, is_turned: bool = False) -> None:
        """Count what a session carries, whose first stream is the endpoint's; the sender's if it ``is_turned``."""
        self._running = session
        self._is_turned = is_turned

    def note_carried(self, bytes_in: int, bytes_out: int) -> None:
        """Set the counts of what no session carries."""
        self._counted = bytes_in, bytes_out

    def carried(self) -> tuple[int, int]:
        """Payload bytes to the endpoint and from it, up to now."""
        if self._running is None:
            return self._counted
        counts = self._running.statistics()
        both = counts.to_sender.payload_bytes, counts.to_listener.payload_bytes
        return (both[1], both[0]) if self._is_turned else both


class SessionBook:
    """All of one entry."""

    def __init__(self, *, now_unix: Callable[[], float] = time.time) -> None:
        self.accepted = 0
        self.lost = 0
        self._now_unix = now_unix
        self._open: set[OpenSession] = set()
        self._ended_bytes = (0, 0)
        self._lot = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def entered(self, incoming: IncomingConnection, endpoint: str = "") -> Iterator[OpenSession]:
        """Count a connection as open for as long as the block lasts, which ends quietly when the connection is cut."""
        found = OpenSession(
            tracking_id=incoming.tracking_id,
            sender=sender_of(incoming),
            endpoint=endpoint,
            since_unix=self._now_unix(),
        )
        self.accepted += 1
        self._open.add(found)
        try:
            with found.scope:
                yield found
        finally:
            self._open.discard(found)
            bytes_in, bytes_out = found.carried()
            self._ended_bytes = self._ended_bytes[0] + bytes_in, self._ended_bytes[1] + bytes_out
            if not self._open:
                self._lot.unpark_all()

    def carried(self) -> tuple[int, int]:
        """Payload bytes to the endpoint and from it, of all connections there have been."""
        bytes_in, bytes_out = self._ended_bytes
        for found in self._open:
            more_in, more_out = found.carried()
            bytes_in, bytes_out = bytes_in + more_in, bytes_out + more_out
        return bytes_in, bytes_out

    def snapshot(self, name: str) -> list[SessionStatus]:
        """The open ones, the oldest first."""
        return [
            SessionStatus(name, found.tracking_id, found.sender, found.endpoint, found.since_unix, *found.carried())
            for found in sorted(self._open, key=lambda found: found.since_unix)
        ]

    async def wait_empty(self) -> None:
        """Wait until none is open; at once if none is. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._open:
            await self._lot.park()

    async def drain(self, seconds: float) -> int:
        """Let the open ones end for so many seconds, then cut the rest. A checkpoint.

        Returns: how many were cut.
        """
        with trio.move_on_after(seconds):
            await self.wait_empty()
        left = len(self._open)
        for found in self._open:
            found.scope.cancel()
        await self.wait_empty()
        return left
