"""Programs for what is no relay client: they stand between the library and servers that know nothing of relays. The
room knows `client`, `net` and `wire`. It must not know the gateway, its store, or the command line.

Two of them can be run inside another program, imported when they are first used::

    async with relaycore.edge.open_hcm(settings) as manager:         listens, and leads senders to endpoints
    async with relaycore.edge.open_connect(settings) as forwarder:   leads local programs to hybrid connections
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .connect.forwarder import open_connect
    from .hcm.manager import open_hcm

__all__ = ["open_connect", "open_hcm"]

_ROOMS: Final = {"open_connect": "connect.forwarder", "open_hcm": "hcm.manager"}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value
