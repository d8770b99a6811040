"""A relayed HTTP request as others see it: they say what has become of it, and its own task is woken by that.

The task waits in reading from its sender, so that a sender who leaves is noticed, and an outcome ends that reading by
its cancel scope. A request that goes over the control channel therefore needs no second task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from ..broker.exchange import Answer
from ..broker.quota import ByteLease
from ..errors import GatewayTimeout, Refused, ServerBusy
from ..vocab import RefusalReason, TrackingId
from .waiter import HandOver, Lost, Refusal, Waiter

if TYPE_CHECKING:
    from .state import Gateway

__all__ = ["SENDER_GONE", "Exchange", "body_too_slow", "http_disabled", "listener_lost", "no_response"]

SENDER_GONE: Final = "the sender has gone"

_NO_RESPONSE_TEXT: Final = (
    "The request was routed to the listener but the listener did not respond in the required time"
)
"""Wire contract 9.8."""


def no_response() -> Refused:
    """The refusal for a sender whose listener stayed silent."""
    return GatewayTimeout(_NO_RESPONSE_TEXT, http_status=504, reason=RefusalReason.RESPONSE_TIMEOUT)


def listener_lost() -> Refused:
    """The refusal for a sender whose listener went away with the request."""
    return Refused(
        "The listener was lost before it answered the request", http_status=502, reason=RefusalReason.LISTENER_LOST
    )


def body_too_slow() -> Refused:
    """The refusal for a sender who stops in the middle of its body."""
    return Refused("The request body did not arrive in time", http_status=408, reason=RefusalReason.BODY_TIMEOUT)


def http_disabled(path: str) -> Refused:
    """The answer where an entity's ``http`` switch is off."""
    return Refused(
        f"HTTP requests are switched off for the endpoint: {path}",
        http_status=403,
        reason=RefusalReason.HTTP_DISABLED,
    )


class Exchange(Waiter[Answer["Exchange"]]):
    """A request under way.

    Attributes:
      namespace, entity_path: where it goes.
      tracking_id: its ``id`` on the wire.
      refused: why the relay gave it up, at whatever stage it was; None while it did not.
    """

    def __init__(self, gateway: Gateway, namespace: str, entity_path: str, tracking_id: TrackingId) -> None:
        super().__init__()
        self.namespace = namespace
        self.entity_path = entity_path
        self.tracking_id = tracking_id
        self.refused: Refused | None = None
        self._buffers = gateway.http_buffers
        self._answer_lease: ByteLease | None = None
        self._scope: trio.CancelScope | None = None

    def answer(self, answer: Answer[Exchange]) -> None:
        """The whole response is there."""
        if self._outcome is not None:
            return
        if answer.body:
            self._answer_lease = self._buffers.take(len(answer.body))
            if self._answer_lease is None:
                self.refuse(ServerBusy("The relay has no room left for the bodies of HTTP responses"))
                return
        self._set(answer)

    def refuse(self, refused: Refused) -> None:
        """The relay will not go on with it, even if the listener has come already."""
        if self.refused is None:
            self.refused = refused
            super().refuse(refused)
            self._wake()

    def _wake(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def until_outcome(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A scope that ends with the first outcome, or when the relay gives the request up."""
        with self.until_refused(deadline) as scope:
            if self._outcome is not None:
                scope.cancel()
            yield scope

    @contextmanager
    def until_refused(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A scope that ends when the relay gives the request up; for before and after its waiting."""
        with trio.CancelScope(deadline=deadline) as scope:
            self._scope = scope
            if self.refused is not None:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scope = None

    def take(self) -> HandOver | Refusal | Refused | Lost | Answer[Exchange] | None:
        """The outcome, if there is one; a rendezvous connection belongs to the caller then."""
        return self._take()

    def release(self) -> None:
        """The answer's body is needed no more."""
        if self._answer_lease is not None:
            self._answer_lease.release()
