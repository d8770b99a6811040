"""Where Trio's words for a broken connection become ours."""

from __future__ import annotations

import trio

from ..errors import ConnectionLost

__all__ = ["StreamLost"]


class StreamLost(ConnectionLost, trio.BrokenResourceError):
    """A byte stream ended without the goodbye that its protocol asks for.

    It is a `trio.BrokenResourceError` as well, so that code written for any Trio stream handles it as it stands.
    """
