"""The sender's role: asks the listener for a port, and carries local UDP (connection manager 3.6, 3.7).

Each local UDP peer has a hybrid connection of its own, dialled in its own task: a slow or refused one delays and ends
nobody else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

import trio

from ...client.connection import Connection
from ...errors import RelayError
from ...net.errors import StreamClosed
from ...wire.status import CloseCode
from .datagrams import DATAGRAM_IDLE_TIMEOUT
from .exchange import RECEIVE_BYTES, DatagramCounts, exchange_datagrams
from .preamble import Mode, PortRefused, RefusedWhy, Reply, ReplyReader, encode_request

__all__ = ["Address", "DatagramForward", "DatagramForwardStatistics", "PortRefused", "request_port"]

Address: TypeAlias = tuple[object, ...]
"""Of a UDP peer, as its socket gives it."""

_QUEUE: Final = 64
"""Datagrams of one peer that wait for its connection; further ones are dropped, as a full socket buffer would."""

_MAX_PEERS: Final = 1_024
"""Peers at one time; the datagrams of others are dropped."""

_PAUSE_AFTER_FAILURE: Final = 1.0
"""Seconds in which a peer's datagrams do not dial anew: a resolver that asks again at once would dial without end."""

_SILENT_REASONS: Final = ("", "Shutdown", "CloseAsync")
"""Words of a Close that only mean the end."""


async def request_port(connection: Connection, port_name: str, *, udp: bool = False) -> None:
    """Ask for a port, and wait for the yes. Only the caller has a deadline; azbridge's listener answers at once.

    Afterwards the connection is as fit for `splice` as a new one.

    Args:
      connection: just opened; nothing was sent or read. It stays the caller's, and is good for nothing after a no.
      port_name: at most 255 bytes of UTF-8.
      udp: ask for datagrams.

    Raises:
      PortRefused: no, with the reason as far as the listener told it.
      LocalProtocolError: the name is too long.
      StreamLost, StreamGarbled: as `Connection.receive_some`.
    """
    mode = Mode.DATAGRAM if udp else Mode.STREAM
    if not udp:
        connection.expect_preamble()
    await connection.send_all(encode_request(port_name, mode))
    reader = ReplyReader()
    while wanted := reader.bytes_wanted:
        try:
            data = await connection.receive_some(wanted)
        except StreamClosed as error:
            why = RefusedWhy.ENDPOINT if error.code == CloseCode.INTERNAL_ERROR else RefusedWhy.CLOSED
            said = error.reason or "no reason"
            raise PortRefused(why, f"port {port_name!r}: the listener closed with {error.code}: {said}") from error
        if not data:
            raise _closed(connection, port_name)
        reader.receive_data(data)
    found = reader.next_event()
    if found is Reply.accepting(mode):
        return
    wanted_words = "datagrams" if udp else "a stream"
    match found:
        case Reply.IS_DATAGRAM:
            why, text = RefusedWhy.IS_DATAGRAM, f"is for datagrams, and {wanted_words} was asked for"
        case Reply.IS_STREAM:
            why, text = RefusedWhy.IS_STREAM, f"is a stream, and {wanted_words} were asked for"
        case Reply.NOT_UNDERSTOOD:
            why = RefusedWhy.NOT_UNDERSTOOD
            text = "was refused with 00 00 00: the listener has no such port, or does not know version 1.0"
        case _:
            answer = found.value if isinstance(found, Reply) else found or b""
            why, text = RefusedWhy.GARBLED, f"was answered with {answer.hex(' ')}, which is none of azbridge's answers"
    raise PortRefused(why, f"port {port_name!r} {text}")


def _closed(connection: Connection, port_name: str) -> PortRefused:
    reason = connection.close_received.reason if connection.close_received is not None else ""
    if reason.startswith("unknown port name"):  # our own listener's words
        return PortRefused(RefusedWhy.UNKNOWN_PORT, f"port {port_name!r}: {reason}")
    said = "" if reason in _SILENT_REASONS else f" ({reason})"
    return PortRefused(
        RefusedWhy.CLOSED,
        f"port {port_name!r}: the listener closed without an answer{said}; it most likely has no port of this name",
    )


@dataclass(slots=True)
class _Peer:
    datagrams: trio.MemorySendChannel[bytes]
    waiting: trio.MemoryReceiveChannel[bytes]
    counts: DatagramCounts = field(default_factory=DatagramCounts)


@dataclass(frozen=True, slots=True)
class DatagramForwardStatistics:
    """One UDP socket's peers and what they had so far.

    Attributes:
      peers: local addresses that have a connection, or wait for one.
      dropped: datagrams that found no room, or no connection.
      failures: connections that did not come about, or were lost.
    """

    peers: int
    to_relay_bytes: int
    from_relay_bytes: int
    dropped: int
    failures: int


class DatagramForward:
    """One local UDP socket whose peers reach a port.

    Args:
      socket: bound; the caller closes it.
      dial: opens a connection on which `request_port` has got a yes for datagrams; it then belongs to this object.
      idle_timeout: seconds of silence after which a peer is gone.
      on_failure: told what ended a peer, with its address.
    """

    def __init__(
        self,
        socket: trio.socket.SocketType,
        dial: Callable[[], Awaitable[Connection]],
        *,
        idle_timeout: float = DATAGRAM_IDLE_TIMEOUT,
        on_failure: Callable[[Address, RelayError], None] = lambda _, __: None,
    ) -> None:
        self._socket = socket
        self._dial = dial
        self._idle_timeout = idle_timeout
        self._on_failure = on_failure
        self._peers: dict[Address, _Peer] = {}
        self._past = DatagramCounts()
        self._failures = 0

    @property
    def peers(self) -> Mapping[Address, object]:
        """Addresses of the peers that have a connection, or wait for one."""
        return MappingProxyType(self._peers)

    def statistics(self) -> DatagramForwardStatistics:
        """The counters as they stand."""
        every = [self._past, *(peer.counts for peer in self._peers.values())]
        return DatagramForwardStatistics(
            peers=len(self._peers),
            to_relay_bytes=sum(counts.to_relay_bytes for counts in every),
            from_relay_bytes=sum(counts.from_relay_bytes for counts in every),
            dropped=sum(counts.dropped for counts in every),
            failures=self._failures,
        )

    async def run(self) -> None:
        """Serve until cancelled, or until the socket is closed: then it raises `trio.ClosedResourceError`."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    payload, address = await self._socket.recvfrom(RECEIVE_BYTES)
                except OSError:  # an earlier answer met a closed port
                    continue
                peer = self._peers.get(address)
                if peer is None:
                    if len(self._peers) >= _MAX_PEERS:
                        self._past.dropped += 1
                        continue
                    peer = self._peers[address] = _Peer(*trio.open_memory_channel[bytes](_QUEUE))
                    nursery.start_soon(self._serve, address, peer)
                try:
                    peer.datagrams.send_nowait(payload)
                except trio.WouldBlock:
                    peer.counts.dropped += 1

    async def _serve(self, address: Address, peer: _Peer) -> None:
        async def send(payload: bytes) -> None:
            await self._socket.sendto(payload, address)

        try:
            connection = await self._dial()
            async with connection:
                await exchange_datagrams(
                    connection, peer.waiting.receive, send, peer.counts, idle_timeout=self._idle_timeout
                )
                self._forget(address, peer)  # before the goodbyes: what comes meanwhile is for a new connection
        except RelayError as error:
            self._failures += 1
            self._on_failure(address, error)
            await trio.sleep(_PAUSE_AFTER_FAILURE)
        finally:
            self._forget(address, peer)

    def _forget(self, address: Address, peer: _Peer) -> None:
        if self._peers.get(address) is peer:
            del self._peers[address]
            peer.counts.dropped += peer.waiting.statistics().current_buffer_used
            _add(self._past, peer.counts)


def _add(total: DatagramCounts, counts: DatagramCounts) -> None:
    total.to_relay += counts.to_relay
    total.to_relay_bytes += counts.to_relay_bytes
    total.from_relay += counts.from_relay
    total.from_relay_bytes += counts.from_relay_bytes
    total.dropped += counts.dropped
