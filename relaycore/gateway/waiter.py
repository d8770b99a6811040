"""Whoever waits for a listener, and what may become of the wait.

A sender waits behind a rendezvous address; listeners, their control channels and the server's end decide. They only set
the outcome, without a checkpoint, and the sender's own task acts on it.
"""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from ..broker.rendezvous import Pending
from ..errors import Refused
from ..wire.handshake import UpgradeRequest
from ..wire.http1 import build_response

if TYPE_CHECKING:
    from .state import Gateway

__all__ = ["CLOSE_HEADERS", "HandOver", "Lost", "Refusal", "StreamWaiter", "Waiter", "let_go"]

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


class Waiter(abc.ABC, Generic[_Answer]):
    """A sender that waits for a listener. The first outcome counts; each is set without a checkpoint.

    ``_Answer`` is what a kind of sender may get beside a rendezvous connection, ``None`` where there is nothing else.
    """

    def __init__(self) -> None:
        self._outcome: HandOver | Refusal | Refused | Lost | _Answer | None = None
        self._is_taken = False

    @abc.abstractmethod
    def _wake(self) -> None:
        """Called once, when the outcome is there."""

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

    def __init__(self) -> None:
        super().__init__()
        self._changed = trio.Event()

    def _wake(self) -> None:
        self._changed.set()

    async def wait(self) -> HandOver | Refusal | Refused | Lost:
        """Wait for the outcome and take it."""
        await self._changed.wait()
        outcome = self.take()
        assert outcome is not None
        return outcome


def let_go(gateway: Gateway, pending: Pending, waiter: Waiter[_Answer]) -> None:
    """Close the address of a wait that is over, and turn away a listener that came in this very moment."""
    gateway.rendezvous.expire(trio.current_time())
    gateway.rendezvous.cancel(pending)
    unclaimed = waiter.take_unclaimed()
    if unclaimed is not None:
        gateway.close_soon(unclaimed.stream, build_response(403, "Forbidden", CLOSE_HEADERS))
