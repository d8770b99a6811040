"""Where Trio's words for a broken connection become ours.

Each of these is a `trio.BrokenResourceError` as well, so that code written for any Trio stream handles it as it stands.
"""

from __future__ import annotations

import trio

from ..errors import ConnectionLost, RemoteProtocolError

__all__ = ["StreamClosed", "StreamGarbled", "StreamLost"]


class StreamLost(ConnectionLost, trio.BrokenResourceError):
    """A connection ended without the goodbye that its protocol asks for, or can no longer be used."""


class StreamClosed(StreamLost):
    """The other side closed with a code that is not the normal end of a stream.

    Args:
      code: the close code, such as 1011.
      reason: the other side's words; may be empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code}{': ' + reason if reason else ''}")
        self.code = code
        self.reason = reason


class StreamGarbled(RemoteProtocolError, trio.BrokenResourceError):
    """The other side broke a rule of WebSocket, or sent more than we take."""
