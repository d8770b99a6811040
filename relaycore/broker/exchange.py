"""HTTP over a control channel: which way a request goes, and whose answer a listener's messages are.

A listener answers in any order, and a response with a body comes as two messages: the JSON, and the next binary message
behind it. Several responses may be under way, so the bodies that are still to come form a line::

    response A, body: true     ─▶  A waits for its body
    response B, body: false    ─▶  B is answered
    response X, body: true     ─▶  X is unknown or over: its body has a place in the line, and is thrown away
    binary                     ─▶  A is answered
    binary                     ─▶  thrown away

The vendor's Node listener sends an empty binary message behind a response without a body as well (to HEAD, 204, 304).
It is told by coming right behind one, and is passed over.

Source: wire contract 9.2, 9.5 and 9.7.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from typing import Final, Generic, TypeVar

from ..errors import LocalProtocolError, RemoteProtocolError
from ..wire import limits
from ..wire.messages import Response

__all__ = ["Answer", "Replies", "RequestIds", "Way", "control_body_room"]

_MAX_BODIES_DUE: Final = 1_024
_MAX_DUE_BYTES: Final = 1_048_576
"""Responses whose body has not come yet, on one channel, and their messages together. A listener that promises more is
not keeping its promises."""

_SPENT_IDS_KEPT: Final = 10_000
"""Ids whose answer may still come: a minute's worth of requests that were given up, at a rate that nobody wants."""

_Exchange = TypeVar("_Exchange")


class Way(enum.Enum):
    """How a request reaches its listener; also the word in logs."""

    CONTROL = "control"
    RENDEZVOUS = "rendezvous"


def control_body_room(message_bytes: int) -> int:
    """Return how many body bytes may follow a ``request`` of this many bytes over the control channel.

    Zero: none; a body has to go by rendezvous. The message alone has to fit as well, whatever its way.

    Source: wire contract 9.2, 15.
    """
    return max(0, limits.MAX_CONTROL_MESSAGE_BYTES - message_bytes)


class RequestIds:
    """Sees that an id stands for one request at a time, on all channels of a gateway.

    A sender may choose the id of its request, and choose it again. While the first request is under way, or given up
    without an answer, its listener may still answer it, and that must not be taken for an answer to the second one.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._spent: dict[str, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._used)

    def is_free(self, id: str) -> bool:
        """Whether a request may have this id."""
        return id not in self._used and id not in self._spent

    def take(self, id: str) -> None:
        """A request has this id from now on.

        Raises:
          LocalProtocolError: it is not free.
        """
        if not self.is_free(id):
            raise LocalProtocolError("a request id is in use", section="wire contract 9.3")
        self._used.add(id)

    def give_back(self, id: str, *, is_answered: bool) -> None:
        """The request is over. Without an answer its id stays spent for a while."""
        self._used.discard(id)
        if is_answered:
            return
        self._spent[id] = None
        if len(self._spent) > _SPENT_IDS_KEPT:
            del self._spent[next(iter(self._spent))]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer(Generic[_Exchange]):
    """A whole response that came over the control channel. ``body`` is None when it has none."""

    exchange: _Exchange
    response: Response
    body: bytes | None


class Replies(Generic[_Exchange]):
    """The requests that one control channel has carried and that are not over, and the bodies that are due on it.

    A response counts only on the channel that carried its request: an id is no secret, its sender may have chosen it.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Exchange] = {}
        # One place for each body that is due; None where nobody waits for it.
        self._due: deque[tuple[Response, int] | None] = deque()
        self._due_bytes = 0
        self._is_behind_bodiless = False

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, id: object) -> bool:
        return id in self._open

    def expect(self, id: str, exchange: _Exchange) -> None:
        """Take up a request.

        Raises:
          LocalProtocolError: one with this id is under way here.
        """
        if id in self._open:
            raise LocalProtocolError("a request id is in use", section="wire contract 9.3")
        self._open[id] = exchange

    def forget(self, id: str) -> None:
        """Let a request go; what still comes for it is thrown away. Does nothing if it is not there."""
        self._open.pop(id, None)

    def receive_response(self, response: Response, size: int) -> Answer[_Exchange] | None:
        """Take a ``response`` message of ``size`` bytes.

        Returns: the answer; None when its body is still to come, or nobody waits for it.

        Raises:
          RemoteProtocolError: too many bodies are due.
        """
        self._is_behind_bodiless = not response.body
        if not response.body:
            return self._answer(response, None)
        if len(self._due) >= _MAX_BODIES_DUE or self._due_bytes + size > _MAX_DUE_BYTES:
            raise RemoteProtocolError("responses without their bodies", section="wire contract 9.7")
        if response.requestId in self._open:
            self._due.append((response, size))
            self._due_bytes += size
        else:
            self._due.append(None)
        return None

    def receive_body(self, data: bytes) -> Answer[_Exchange] | None:
        """Take a binary message: the body of the oldest response that has none yet.

        Returns: the answer; None when nobody waits for it.

        Raises:
          RemoteProtocolError: 1002; no response has promised a body.
        """
        is_behind_bodiless, self._is_behind_bodiless = self._is_behind_bodiless, False
        if is_behind_bodiless and not data:
            return None
        if not self._due:
            raise RemoteProtocolError("binary message without a response before it", section="wire contract 9.7")
        place = self._due.popleft()
        if place is None:
            return None
        response, size = place
        self._due_bytes -= size
        return self._answer(response, data)

    def _answer(self, response: Response, body: bytes | None) -> Answer[_Exchange] | None:
        exchange = self._open.pop(response.requestId, None)
        return None if exchange is None else Answer(exchange, response, body)
