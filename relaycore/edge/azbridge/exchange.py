"""Datagrams both ways between a hybrid connection and something that speaks UDP, until silence or the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from ...client.connection import Connection
from ...net.errors import StreamLost
from ...net.tasks import alone
from .datagrams import DATAGRAM_IDLE_TIMEOUT, MAX_DATAGRAM_BYTES, DatagramReader, encode_datagram

__all__ = ["RECEIVE_BYTES", "DatagramCounts", "exchange_datagrams"]

RECEIVE_BYTES: Final = 65_536
"""Room for any datagram; `recv` would cut a longer one without a word."""


_READER_TELLS_S: Final = 2.0
"""Seconds that reading has to find out by itself why sending failed."""


@dataclass(slots=True)
class DatagramCounts:
    """What was carried; payload bytes. ``dropped`` are those that a socket or a full queue did not take."""

    to_relay: int = 0
    to_relay_bytes: int = 0
    from_relay: int = 0
    from_relay_bytes: int = 0
    dropped: int = 0


async def exchange_datagrams(
    connection: Connection,
    receive: Callable[[], Awaitable[bytes]],
    send: Callable[[bytes], Awaitable[object]],
    counts: DatagramCounts,
    *,
    idle_timeout: float = DATAGRAM_IDLE_TIMEOUT,
) -> None:
    """Carry datagrams until the other side's Close, or until ``idle_timeout`` seconds went by without one.

    Args:
      connection: behind the preamble. It is not closed here.
      receive: waits for a datagram from the local side.
      send: hands one to it. An `OSError`, such as nobody at the port, loses that datagram and nothing else.
      counts: kept up to date.

    Raises:
      StreamLost, StreamClosed, StreamGarbled: as `Connection.receive_some`.
      RemoteProtocolError: a length that no datagram has, or an end inside one.
    """

    failures: list[trio.BrokenResourceError | trio.ClosedResourceError] = []

    async def to_relay() -> None:
        try:
            while True:
                try:
                    payload = await receive()
                except OSError:  # what an earlier datagram met, told by the next call
                    counts.dropped += 1
                    continue
                if len(payload) > MAX_DATAGRAM_BYTES:  # IPv6 has slightly longer ones
                    counts.dropped += 1
                    continue
                awake()
                await connection.send_all(encode_datagram(payload))
                counts.to_relay += 1
                counts.to_relay_bytes += len(payload)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # The reader mostly meets the same, and tells it better; and two errors would come as a group.
            failures.append(error)
            nursery.cancel_scope.deadline = trio.current_time() + _READER_TELLS_S

    async def from_relay() -> None:
        reader = DatagramReader()
        while data := await connection.receive_some():
            reader.receive_data(data)
            while (payload := reader.next_event()) is not None:
                awake()
                try:
                    await send(payload)
                except OSError:
                    counts.dropped += 1
                else:
                    counts.from_relay += 1
                    counts.from_relay_bytes += len(payload)
        reader.receive_eof()
        failures.clear()  # who cannot be sent to because it has closed is not lost
        nursery.cancel_scope.cancel()

    def awake() -> None:
        if not failures:
            nursery.cancel_scope.deadline = trio.current_time() + idle_timeout

    with alone():
        async with trio.open_nursery() as nursery:
            awake()
            nursery.start_soon(to_relay)
            await from_relay()
    if failures:
        raise StreamLost("the connection cannot be sent to") from failures[0]
