"""A connection and the other end of its WebSocket, played by the test."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import memory_stream_pair

from relaycore.client.connection import Connection, ConnectionInfo
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.http1 import Headers

INFO = ConnectionInfo(
    path="sql", suffix="", query="", headers=Headers(), remote_endpoint=None, subprotocol=None, tracking_id="t"
)


def connection_and_peer(
    pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair,
) -> tuple[Connection, WebSocketLeg]:
    near, far = pair()
    return Connection(WebSocketLeg(near, role="client"), INFO), WebSocketLeg(far, role="server")
