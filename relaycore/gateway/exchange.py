"""A relayed HTTP request as others see it: they say what has become of it, and its own task is woken by that.

Its task waits in two steps. At first it only sleeps. A request that waits for longer is woken by the gateway's
:class:`relaycore.gateway.waiter.Patience`; from then on it waits in reading from its sender, so that a sender who
leaves is noticed, and the outcome ends that reading by its cancel scope. No request that goes over the control channel
needs a second task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..broker.exchange import Answer
from ..broker.quota import ByteLease
from ..errors import GatewayTimeout, Refused, ServerBusy
from ..vocab import RefusalReason, TrackingId
from .waiter import HandOver, Waiter

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
      answer_meanwhile: a response that came over the control channel while the rendezvous was open.
      is_answered: its answer has begun; set by its own task.
      is_owed: a listener has the request, and its response has not come.
    """

    def __init__(self, gateway: Gateway, namespace: str, entity_path: str, tracking_id: TrackingId) -> None:
        super().__init__()
        self.namespace = namespace
        self.entity_path = entity_path
        self.tracking_id = tracking_id
        self.refused: Refused | None = None
        self.answer_meanwhile: Answer[Exchange] | None = None
        self.is_answered = False
        self.is_owed = False
        self._buffers = gateway.http_buffers
        self._answer_lease: ByteLease | None = None
        # What an outcome ends when the task does not sleep.
        self._scope: trio.CancelScope | None = None

    def answer(self, answer: Answer[Exchange]) -> None:
        """The whole response is there, over the control channel."""
        self.is_owed = False
        is_meanwhile = isinstance(self._outcome, HandOver) and self.answer_meanwhile is None and not self.is_answered
        if self._outcome is not None and not is_meanwhile:
            return
        if answer.body:
            self._answer_lease = self._buffers.take(len(answer.body))
            if self._answer_lease is None:
                self.refuse(ServerBusy("The relay has no room left for the bodies of HTTP responses"))
                return
        if is_meanwhile:
            self.answer_meanwhile = answer
            self._wake()
        else:
            self._set(answer)

    def refuse(self, refused: Refused) -> None:
        """The relay will not go on with it, even if the listener has come already."""
        if self.refused is None:
            self.refused = refused
            super().refuse(refused)
            self._wake()

    def _wake(self) -> None:
        super()._wake()
        if self._scope is not None:
            self._scope.cancel()

    def cancel_on_outcome(self, scope: trio.CancelScope) -> None:
        """From now on the first outcome cancels ``scope``, and so does the relay when it gives the request up."""
        self.cancel_on_refusal(scope)
        if self._outcome is not None:
            scope.cancel()

    def cancel_on_refusal(self, scope: trio.CancelScope) -> None:
        """From now on ``scope`` is cancelled when the relay gives the request up, or an answer comes meanwhile."""
        self._scope = scope
        if self.refused is not None or self.answer_meanwhile is not None:
            scope.cancel()

    def let_go(self, scope: trio.CancelScope) -> None:
        """``scope`` is over."""
        if self._scope is scope:
            self._scope = None

    def release(self) -> None:
        """The answer's body is needed no more."""
        if self._answer_lease is not None:
            self._answer_lease.release()
