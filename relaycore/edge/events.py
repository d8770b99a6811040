"""What happened, for whoever wants to know: the last events are remembered, further ones are told as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from ..net.subscription import Subscription

__all__ = ["CONNECT_KINDS", "EVENTS_KEPT", "HCM_KINDS", "Event", "EventLog", "EventStream"]

HCM_KINDS: Final = (
    "connected", "disconnected", "retrying", "unauthorized", "not-found", "withdrawn", "returned", "endpoint-up",
    "endpoint-degraded", "endpoint-down", "endpoint-changed", "metadata-failed", "refused", "left", "lost", "added",
    "changed", "removed", "paused", "resumed", "restarted", "draining", "drained", "stopping", "stopped",
    "reload-failed", "failed",
)  # fmt: skip
"""Kinds of a connection manager's events."""

CONNECT_KINDS: Final = (
    "listening", "not-listening", "resolved", "unresolved", "retry", "refused", "proxy-refused", "lost", "left",
    "added", "changed", "removed", "reload-failed", "state", "stopping", "stopped",
)  # fmt: skip
"""Kinds of a forwarder's events."""

EVENTS_KEPT: Final = 256
"""Events that are remembered for late askers, and that one subscriber may be behind."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
      name: of the connection; ``""`` for the program as a whole.
      kind: one word for programs; which there are stands with whoever emits them.
      text: one line: what was tried, what came back, what it means.
    """

    time_unix: float
    name: str
    kind: str
    text: str


class EventStream(Subscription[Event]):
    """One subscriber's view, from `EventLog.subscribe` on. Ends when the log is closed.

    Attributes:
      dropped: events this subscriber was too slow for; the oldest go first.
    """

    def __init__(self, log: EventLog) -> None:
        super().__init__(EVENTS_KEPT)
        self._log = log

    def close(self) -> None:
        """Subscribe no longer; whoever waits is told the end. Not a checkpoint."""
        self._log._subscribers.discard(self)
        self._end()


class EventLog:
    """The last events of a program, and its subscribers."""

    def __init__(self, *, now_unix: Callable[[], float] = time.time) -> None:
        self._now_unix = now_unix
        self._kept: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._subscribers: set[EventStream] = set()
        self._is_closed = False

    @property
    def recent(self) -> tuple[Event, ...]:
        """The last events, the oldest first."""
        return tuple(self._kept)

    def emit(self, name: str, kind: str, text: str) -> None:
        """Note an event, and tell the subscribers. Not a checkpoint."""
        event = Event(self._now_unix(), name, kind, " ".join(text.split()))
        self._kept.append(event)
        for subscriber in self._subscribers:
            subscriber._put(event)

    def subscribe(self) -> EventStream:
        """A stream of the events from now on."""
        stream = EventStream(self)
        if self._is_closed:
            stream._end()
        else:
            self._subscribers.add(stream)
        return stream

    def close(self) -> None:
        """No more events will come. Not a checkpoint."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber._end()
        self._subscribers.clear()
