"""One-use addresses: where a listener meets the sender that waits for it.

::

                     claim            listener came in time
                  ┌─────────▶ CLAIMED
                  │  reject           listener came to say no
     mint         ├─────────▶ REJECTED
    ──────▶ MINTED│  expire           nobody came in time
                  ├─────────▶ EXPIRED
                  │  cancel           sender went away, or the relay has no use for it any more
                  └─────────▶ CANCELLED

Each arrow is a row of :data:`TRANSITIONS`; there are no others, so an address leaves ``MINTED`` once. What has left it
is forgotten at once: a used address, an old one and one that never was look the same from outside, in their answer and
in our memory. The address is the only credential of a rendezvous (wire contract 5.4), hence the demands on its length.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
import re
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import LocalProtocolError, NoListener, RemoteProtocolError, RendezvousGone, ServerBusy
from ..vocab import Action, RefusalReason, RendezvousId
from .model import fold

GONE_TEXT: Final = "The rendezvous address is not valid or has been used"
"""The answer to an address that is unknown, used, expired or cancelled; one text, so that probing tells nothing."""

NOT_ACCEPTED_TEXT: Final = "None of the connected listeners accepted the connection within the allowed timeout"
"""Wire contract 7.2: 404 to the sender."""

MAX_WAITING: Final = 10_000
"""Addresses open at once by default: both kinds of sender of a full namespace (wire contract 15)."""

# 22 characters of base64url or 32 hex digits hold 128 bits. No '=' may stand in an address, not even escaped: Java
# decodes, splits on it and throws (wire contract 7.1).
_ID_FORM: Final = re.compile(r"[A-Za-z0-9_-]{22,128}")


class RendezvousState(enum.Enum):
    """Where an address stands."""

    __hash__ = object.__hash__  # members are there once each; that of Enum is a call into Python

    MINTED = "minted"
    CLAIMED = "claimed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class RendezvousEvent(enum.Enum):
    """What can happen to an address."""

    __hash__ = object.__hash__

    CLAIM = "claim"
    REJECT = "reject"
    EXPIRE = "expire"
    CANCEL = "cancel"


TRANSITIONS: Final[dict[tuple[RendezvousState, RendezvousEvent], RendezvousState]] = {
    (RendezvousState.MINTED, RendezvousEvent.CLAIM): RendezvousState.CLAIMED,
    (RendezvousState.MINTED, RendezvousEvent.REJECT): RendezvousState.REJECTED,
    (RendezvousState.MINTED, RendezvousEvent.EXPIRE): RendezvousState.EXPIRED,
    (RendezvousState.MINTED, RendezvousEvent.CANCEL): RendezvousState.CANCELLED,
}

RENDEZVOUS_ACTIONS: Final = frozenset({Action.ACCEPT, Action.REQUEST})


def not_accepted() -> NoListener:
    """The refusal for a sender whom no listener took in time (wire contract 7.2)."""
    return NoListener(NOT_ACCEPTED_TEXT, http_status=404, reason=RefusalReason.ACCEPT_TIMEOUT)


@dataclasses.dataclass(slots=True, eq=False)
class Pending:
    """A sender that waits behind an address.

    All of it is fixed at minting but ``state``, which only the table moves; read it, never write it.

    Attributes:
      id: the secret of the address (``sb-hc-rid``).
      sender: whatever the gateway reaches the sender by.
      action: what the listener has to come with, ``ACCEPT`` or ``REQUEST``.
      raw_path, user_query: path after ``/$hc/`` as the sender sent it, and its stripped query, for building an address.
      tracking_id: of the sender, also the ``sb-hc-id`` of the address.
      minted_at, deadline: seconds on the gateway's monotonic clock.
    """

    id: RendezvousId = dataclasses.field(repr=False)
    sender: object = dataclasses.field(repr=False)
    namespace: str
    entity_path: str
    action: Action
    raw_path: str
    user_query: str = dataclasses.field(repr=False)
    tracking_id: str
    minted_at: float
    deadline: float
    state: RendezvousState = RendezvousState.MINTED


@dataclasses.dataclass(frozen=True, slots=True)
class RendezvousStatistics:
    """Addresses open now, and how many were minted and came to each end since the start."""

    waiting: int
    minted: int
    claimed: int
    rejected: int
    expired: int
    cancelled: int


class RendezvousTable:
    """The open addresses of one gateway.

    Args:
      max_waiting: bound of the table; a sender beyond it is told that the server is busy.
    """

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._waiting: dict[RendezvousId, Pending] = {}
        # A heap of deadlines, by id so that it keeps no sender alive. What is gone is skipped when it comes up, and
        # swept out when it outnumbers the rest: the heap is never longer than twice the table and a little.
        self._deadlines: list[tuple[float, RendezvousId]] = []
        self._counts = dict.fromkeys(RendezvousState, 0)

    def mint(
        self,
        sender: object,
        *,
        namespace: str,
        entity_path: str,
        action: Action = Action.ACCEPT,
        raw_path: str = "",
        user_query: str = "",
        tracking_id: str = "",
        now: float,
        deadline: float,
        new_id: Callable[[], str],
    ) -> Pending:
        """Make an address for a sender that waits from now on.

        Args:
          now, deadline: seconds on the gateway's monotonic clock.
          new_id: makes the secret: at least 128 random bits as 22 to 128 characters of ``A-Z a-z 0-9 - _``.

        Raises:
          ServerBusy: 503; too many are waiting already.
          LocalProtocolError: the secret is too short or has been seen, or the action is none of a rendezvous.

        Source: wire contract 5.4 (secret), 7.1 (form), 14 (30 s).
        """
        if action not in RENDEZVOUS_ACTIONS:
            raise LocalProtocolError(f"no rendezvous is made for {action.value}", section="wire contract 7")
        if len(self._waiting) >= self._max_waiting:
            raise ServerBusy(f"{self._max_waiting} senders wait for a listener already, and that is the limit")
        id = RendezvousId(new_id())
        if _ID_FORM.fullmatch(id) is None or id in self._waiting:
            raise LocalProtocolError("a rendezvous id is short, odd or not fresh", section="wire contract 5.4")
        pending = Pending(
            id=id,
            sender=sender,
            namespace=namespace,
            entity_path=entity_path,
            action=action,
            raw_path=raw_path,
            user_query=user_query,
            tracking_id=tracking_id,
            minted_at=now,
            deadline=deadline,
        )
        self._waiting[id] = pending
        self._counts[RendezvousState.MINTED] += 1
        heapq.heappush(self._deadlines, (deadline, id))
        if len(self._deadlines) > 2 * len(self._waiting) + 16:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._waiting]
            heapq.heapify(self._deadlines)
        return pending

    def claim(self, id: str, action: Action, now: float) -> Pending:
        """Take the sender waiting behind an address; the address is spent from here on.

        Args:
          id: value of ``sb-hc-rid``.
          action: value of ``sb-hc-action``.
          now: seconds on the gateway's monotonic clock.

        Raises:
          RendezvousGone: 403; unknown, used, cancelled or past its deadline, and the peer is not told which.
          RemoteProtocolError: 400; the address is for the other action. It stays open.

        Source: wire contract 7.2, 9.6.
        """
        return self._take(id, action, now, RendezvousEvent.CLAIM)

    def reject(self, id: str, action: Action, now: float) -> Pending:
        """Take the sender waiting behind an address in order to refuse it. Otherwise as :meth:`claim`.

        Source: wire contract 7.3.
        """
        return self._take(id, action, now, RendezvousEvent.REJECT)

    def cancel(self, pending: Pending) -> bool:
        """Close an address whose sender has gone. Returns: whether it was open; ``False`` when somebody was faster."""
        return self._leave(pending, RendezvousEvent.CANCEL)

    def expire(self, now: float) -> list[Pending]:
        """Close every address whose deadline has come. Returns: their senders, which are to be told."""
        expired: list[Pending] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            pending = self._waiting.get(heapq.heappop(self._deadlines)[1])
            if pending is not None:
                self._leave(pending, RendezvousEvent.EXPIRE)
                expired.append(pending)
        return expired

    def next_deadline(self) -> float | None:
        """When :meth:`expire` has something to do next, in seconds on the gateway's clock; ``None``: nobody waits."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def waiting(self, namespace: str, entity_path: str) -> Sequence[Pending]:
        """The senders that wait at one hybrid connection; a walk over all of them, for when it is deleted."""
        wanted = fold(namespace), fold(entity_path)
        return [p for p in self._waiting.values() if (fold(p.namespace), fold(p.entity_path)) == wanted]

    def statistics(self) -> RendezvousStatistics:
        """Counts as of now."""
        counts = self._counts
        return RendezvousStatistics(
            waiting=len(self._waiting),
            minted=counts[RendezvousState.MINTED],
            claimed=counts[RendezvousState.CLAIMED],
            rejected=counts[RendezvousState.REJECTED],
            expired=counts[RendezvousState.EXPIRED],
            cancelled=counts[RendezvousState.CANCELLED],
        )

    def check_consistency(self) -> list[str]:
        """Recount the books. Returns: what is wrong, one sentence each; nothing when all is well."""
        wrong = [
            f"{pending} is kept as {pending.state.value}"
            for pending in self._waiting.values()
            if pending.state is not RendezvousState.MINTED
        ]
        ended = sum(count for state, count in self._counts.items() if state is not RendezvousState.MINTED)
        if self._counts[RendezvousState.MINTED] != ended + len(self._waiting):
            wrong.append("minted addresses are not the ended ones and the waiting ones")
        timed = [(deadline, id) for deadline, id in self._deadlines if id in self._waiting]
        if sorted(timed) != sorted((pending.deadline, pending.id) for pending in self._waiting.values()):
            wrong.append("the deadlines are not those of the waiting addresses")
        if len(self._waiting) > self._max_waiting:
            wrong.append("more addresses wait than may")
        return wrong

    def _take(self, id: str, action: Action, now: float, event: RendezvousEvent) -> Pending:
        pending = self._waiting.get(RendezvousId(id))
        if pending is None:
            raise RendezvousGone(GONE_TEXT)
        if now >= pending.deadline:
            self._leave(pending, RendezvousEvent.EXPIRE)
            raise RendezvousGone(GONE_TEXT)
        if action is not pending.action:
            raise RemoteProtocolError(f"The address is not for {action.value}", section="wire contract 7.2")
        self._leave(pending, event)
        return pending

    def _leave(self, pending: Pending, event: RendezvousEvent) -> bool:
        state = TRANSITIONS.get((pending.state, event))
        if state is None:
            return False
        del self._waiting[pending.id]
        pending.state = state
        self._counts[state] += 1
        return True
