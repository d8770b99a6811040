"""What a listener tells about itself: a snapshot, and events as they happen."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..net.subscription import Subscription
from ..vocab import ListenerId

__all__ = [
    "EventStream",
    "ListenerEvent",
    "ListenerState",
    "ListenerStatus",
    "Offline",
    "Online",
    "Reconnecting",
]

EVENTS_KEPT: Final = 64
"""Events that one subscriber may be behind; then the oldest is dropped and counted."""


class ListenerState(enum.Enum):
    """Where a listener stands."""

    CONNECTING = "connecting"  # the first attempts; it has never been online
    ONLINE = "online"  # registered with the relay
    RECONNECTING = "reconnecting"  # was online; the relay is tried again
    CLOSED = "closed"  # for good


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """A snapshot of a listener.

    Attributes:
      state: as it was when the snapshot was taken.
      since_unix: when this state began, wall clock.
      listener_id: the GUID by which the relay knows this listener; the same for its whole life.
      attempts: attempts that failed, or channels that were lost, since the channel was last stable.
      last_error: why the last attempt failed or the last channel ended; None if nothing has gone wrong yet.
      registrations: how often the listener went online.
      tokens_renewed: renewals sent on a running channel.
      connections_accepted: connections handed over, or waiting to be.
      connections_rejected: by the accept handler, or because the backlog was full or the handler failed.
      accepts_failed: invitations of the relay that came to nothing: rendezvous not reached, or gone.
      connections_waiting: accepted, and not taken by ``accept()`` yet.
      messages_ignored: control messages that this library does not know, or could not read.
      requests_under_way: HTTP requests that a handler serves, or whose connection is being closed.
      requests_served: answered in full by their handler.
      requests_failed: not so: the handler failed, the sender or the way to it was lost, or the listener was closed.
      requests_refused: answered with 503 because there were too many or the listener was closing, or with 501 because
        the listener takes none.
      tokens_failed: times that there was no token to be had, to sign in with or to renew.
      token_expires_unix: when the token in use runs out; None while there is none, or it does not say.
      certificate_expires_unix: when the relay's certificate does; None without TLS, or while nothing is known.
    """

    state: ListenerState
    since_unix: float
    listener_id: ListenerId
    attempts: int
    last_error: BaseException | None
    registrations: int
    tokens_renewed: int
    connections_accepted: int
    connections_rejected: int
    accepts_failed: int
    connections_waiting: int
    messages_ignored: int
    requests_under_way: int
    requests_served: int
    requests_failed: int
    requests_refused: int
    tokens_failed: int = 0
    token_expires_unix: float | None = None
    certificate_expires_unix: float | None = None

    @property
    def is_online(self) -> bool:
        """True while senders can reach this listener."""
        return self.state is ListenerState.ONLINE


@dataclass(frozen=True, slots=True)
class Online:
    """The relay has registered the listener."""

    attempts: int
    """Failed attempts before this one."""


@dataclass(frozen=True, slots=True)
class Offline:
    """The control channel has ended, or the listener was closed (``cause`` is None). Connections live on."""

    cause: BaseException | None


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The relay will be tried again after ``delay_s`` seconds."""

    cause: BaseException
    delay_s: float


ListenerEvent: TypeAlias = Online | Offline | Reconnecting


class EventStream(Subscription[ListenerEvent]):
    """One subscriber's view of the events, from the call of ``Listener.events()`` on. Ends when the listener is closed.

    Attributes:
      dropped: events this subscriber was too slow for. At most 64 wait; then the oldest goes.
    """

    def __init__(self) -> None:
        super().__init__(EVENTS_KEPT)
