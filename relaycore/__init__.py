"""A self-hosted relay that speaks the Azure Relay Hybrid Connections protocol, and its Trio listener and sender.

The names in ``__all__`` are the public library::

    open_listener(connection_string)         a `trio.abc.Listener` whose connections come through the relay
    open_stream(connection_string)           one connection to whoever listens
    serve_http(connection_string, handler)   answers HTTP requests that come through the relay
    serve_asgi(app, connection_string)       serves an ASGI application, HTTP and WebSockets
    auth(connection_string)                  signs the requests of a common HTTP client
    splice(a, b)                             joins two streams, in threads of C where both are sockets

They are imported when they are first used, so that ``import relaycore`` and the commands that need no event loop stay
quick. `relaycore.testing` has a relay for the tests of programs that use them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .client.asgi import LifespanFailed, serve_asgi
    from .client.auth import SenderAuth, auth
    from .client.connection import Connection, ConnectionInfo, MessageChannel
    from .client.credentials import TokenProvider
    from .client.http import (
        HttpHandler,
        HttpRequest,
        HttpResponder,
        HttpResponse,
        RequestHandler,
        serve_http,
    )
    from .client.invitation import FIRST_OFFERED, Accept, AcceptHandler, IncomingConnection, Reject
    from .client.listener import Listener, open_listener
    from .client.reconnect import ReconnectPolicy
    from .client.sender import open_stream
    from .client.splice import Spliced, splice
    from .client.status import (
        EventStream,
        ListenerEvent,
        ListenerState,
        ListenerStatus,
        Offline,
        Online,
        Reconnecting,
    )
    from .client.waiting import SenderHandler, WaitingSender
    from .errors import (
        AuthorizationFailed,
        ConfigError,
        ConnectionLost,
        EndpointNotFound,
        GatewayTimeout,
        LocalProtocolError,
        NoListener,
        ProtocolError,
        QuotaExceeded,
        Refused,
        Rejected,
        RelayError,
        RemoteProtocolError,
        ServerBusy,
    )
    from .net.errors import StreamClosed, StreamGarbled, StreamLost

__all__ = [
    "FIRST_OFFERED",
    "Accept",
    "AcceptHandler",
    "AuthorizationFailed",
    "ConfigError",
    "Connection",
    "ConnectionInfo",
    "ConnectionLost",
    "EndpointNotFound",
    "EventStream",
    "GatewayTimeout",
    "HttpHandler",
    "HttpRequest",
    "HttpResponder",
    "HttpResponse",
    "IncomingConnection",
    "LifespanFailed",
    "Listener",
    "ListenerEvent",
    "ListenerState",
    "ListenerStatus",
    "LocalProtocolError",
    "MessageChannel",
    "NoListener",
    "Offline",
    "Online",
    "ProtocolError",
    "QuotaExceeded",
    "ReconnectPolicy",
    "Reconnecting",
    "Refused",
    "Reject",
    "Rejected",
    "RelayError",
    "RemoteProtocolError",
    "RequestHandler",
    "SenderAuth",
    "SenderHandler",
    "ServerBusy",
    "Spliced",
    "StreamClosed",
    "StreamGarbled",
    "StreamLost",
    "TokenProvider",
    "WaitingSender",
    "__version__",
    "auth",
    "open_listener",
    "open_stream",
    "serve_asgi",
    "serve_http",
    "splice",
]

__version__: Final = "0.1.0"

_ROOMS: Final = {
    "client.asgi": ("LifespanFailed", "serve_asgi"),
    "client.auth": ("SenderAuth", "auth"),
    "client.connection": ("Connection", "ConnectionInfo", "MessageChannel"),
    "client.credentials": ("TokenProvider",),
    "client.http": ("HttpHandler", "HttpRequest", "HttpResponder", "HttpResponse", "RequestHandler", "serve_http"),
    "client.invitation": ("FIRST_OFFERED", "Accept", "AcceptHandler", "IncomingConnection", "Reject"),
    "client.listener": ("Listener", "open_listener"),
    "client.reconnect": ("ReconnectPolicy",),
    "client.sender": ("open_stream",),
    "client.splice": ("Spliced", "splice"),
    "client.status": (
        "EventStream",
        "ListenerEvent",
        "ListenerState",
        "ListenerStatus",
        "Offline",
        "Online",
        "Reconnecting",
    ),
    "client.waiting": ("SenderHandler", "WaitingSender"),
    "net.errors": ("StreamClosed", "StreamGarbled", "StreamLost"),
}
"""Where public names live; those that are in none of these are errors."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "errors")
    value: object = getattr(importlib.import_module(f".{room}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
