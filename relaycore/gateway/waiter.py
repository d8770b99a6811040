"""Whoever waits for a listener, and what may become of the wait.

A sender waits behind a rendezvous address; listeners, their control channels and the server's end decide. They only set
the outcome, without a checkpoint, and the sender's own task acts on it.

That task waits in two steps. At first it only sleeps: most listeners come at once, and neither a deadline nor a watch
over the sender's connection is worth its cost then. One that waits for longer is woken by :class:`Patience`, and sees
to both.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

from ..broker.rendezvous import Pending
from ..errors import Refused
from ..wire.handshake import UpgradeRequest
from ..wire.http1 import build_response

if TYPE_CHECKING:
    from .state import Gateway

__all__ = ["CLOSE_HEADERS", "HandOver", "Lost", "Patience", "Refusal", "StreamWaiter", "Waiter", "let_go"]

CLOSE_HEADERS: Final = (("Content-Length", "0"), ("Connection", "close"))
"""Header lines of an answer that ends an upgrade's connection."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """A listener's rendezvous connection on its way to the sender's task, which owns the stream from here on."""

    stream: trio.abc.Stream
    early: bytes
    upgrade: UpgradeRequest


@dataclass(frozen=True, slots=True)
class Refusal:
    """The listener's own no."""

    status: int
    description: str


class Lost(enum.Enum):
    """Why a control channel could not be used."""

    CHANNEL = enum.auto()  # it closes, or has gone
    BUSY = enum.auto()  # its queue is full


_Answer = TypeVar("_Answer")


class Waiter(Generic[_Answer]):
    """A sender that waits for a listener. The first outcome counts; each is set without a checkpoint.

    ``_Answer`` is what a kind of sender may get beside a rendezvous connection, ``None`` where there is nothing else.
    """

    def __init__(self) -> None:
        self._outcome: HandOver | Refusal | Refused | Lost | _Answer | None = None
        self._is_taken = False
        self._sleeper: trio.lowlevel.Task | None = None

    def _wake(self) -> None:
        """Called when the outcome is there."""
        self.end_sleep()

    async def sleep(self, patience: Patience | None = None) -> bool:
        """Sleep until the outcome is there, with ``patience`` not for long. Returns: whether it is. A checkpoint."""
        if self._outcome is not None:
            await trio.lowlevel.checkpoint()
            return True
        self._sleeper = trio.lowlevel.current_task()
        if patience is not None:
            patience.add(self)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return self._outcome is not None

    def end_sleep(self) -> None:
        """It has slept long enough; does nothing when it does not sleep."""
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)
            self._sleeper = None

    def hand_over(self, connection: HandOver) -> bool:
        """The rendezvous connection is there.

        Returns: False when the sender has been told something else already; then the stream stays with the caller.
        """
        return self._set(connection)

    def reject(self, refusal: Refusal) -> None:
        """The listener refused."""
        self._set(refusal)

    def refuse(self, refused: Refused) -> None:
        """The relay will not go on with it."""
        self._set(refused)

    def channel_lost(self) -> None:
        """The control channel that carried the message is gone."""
        self._set(Lost.CHANNEL)

    @property
    def is_unanswered(self) -> bool:
        """Whether no outcome has come."""
        return self._outcome is None

    def take_unclaimed(self) -> HandOver | None:
        """The rendezvous connection that came when nobody waited any more."""
        return self._outcome if isinstance(self._outcome, HandOver) and not self._is_taken else None

    def _set(self, outcome: HandOver | Refusal | Refused | Lost | _Answer) -> bool:
        if self._outcome is not None:
            return False
        self._outcome = outcome
        self._wake()
        return True

    def take(self) -> HandOver | Refusal | Refused | Lost | _Answer | None:
        """The outcome, if there is one; a rendezvous connection belongs to the caller then."""
        self._is_taken = self._outcome is not None
        return self._outcome


class StreamWaiter(Waiter[None]):
    """A WebSocket sender that waits."""


class Patience:
    """Ends the sleep of senders that have slept for a while. One task for all; it rests while there are none.

    Args:
      seconds: how long one may sleep at least; it wakes within twice that.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sleepers: deque[tuple[float, Waiter[Any]]] = deque()
        self._lot = trio.lowlevel.ParkingLot()

    def add(self, waiter: Waiter[Any]) -> None:
        """Look after one that begins to sleep."""
        if not self._sleepers:
            self._lot.unpark()
        self._sleepers.append((trio.current_time() + self._seconds, waiter))

    async def run(self) -> None:
        """Wake sleepers in their turn, until cancelled."""
        sleepers = self._sleepers
        while True:
            while sleepers and sleepers[0][0] <= trio.current_time():
                sleepers.popleft()[1].end_sleep()
            if sleepers:
                await trio.sleep(self._seconds)
            else:
                await self._lot.park()


def let_go(gateway: Gateway, pending: Pending, waiter: Waiter[_Answer]) -> None:
    """Close the address of a wait that is over, and turn away a listener that came in this very moment."""
    gateway.rendezvous.expire(trio.current_time())
    gateway.rendezvous.cancel(pending)
    unclaimed = waiter.take_unclaimed()
    if unclaimed is not None:
        gateway.close_soon(unclaimed.stream, build_response(403, "Forbidden", CLOSE_HEADERS))
