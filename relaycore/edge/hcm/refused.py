"""Which senders were refused with 503 a moment ago.

A relay offers such a sender to the other listeners, and several of them may be control channels of this very process.
Asking ourselves again would let the sender wait as long again, and count it again.
"""

from __future__ import annotations

from typing import Final

import trio

from ...client.invitation import IncomingConnection
from ...wire.limits import ACCEPT_TIMEOUT
from ..target.failure import DialFailed

__all__ = ["RefusedLately"]

_MOST: Final = 4_096
"""Refusals to remember; those beyond are decided anew."""


class RefusedLately:
    """Remembers refusals for as long as a relay may go on offering the sender."""

    def __init__(self) -> None:
        self._refusals: dict[tuple[str, str, int], tuple[float, DialFailed]] = {}  # the oldest first

    def note(self, incoming: IncomingConnection, refusal: DialFailed) -> None:
        """Remember a refusal."""
        key = _key(incoming)
        self._forget_old()
        if key is not None and len(self._refusals) < _MOST:
            self._refusals.pop(key, None)
            self._refusals[key] = (trio.current_time() + ACCEPT_TIMEOUT, refusal)

    def find(self, incoming: IncomingConnection) -> DialFailed | None:
        """What the same connection of the same sender was told lately."""
        self._forget_old()
        found = self._refusals.get(_key(incoming) or ("", "", 0))
        return None if found is None else found[1]

    def _forget_old(self) -> None:
        now = trio.current_time()
        while self._refusals and (oldest := next(iter(self._refusals.items())))[1][0] <= now:
            del self._refusals[oldest[0]]


def _key(incoming: IncomingConnection) -> tuple[str, str, int] | None:
    """Senders choose their tracking ids, but not their ports: together they name one attempt."""
    peer = incoming.remote_endpoint
    return None if peer is None else (incoming.tracking_id, peer.address, peer.port)
