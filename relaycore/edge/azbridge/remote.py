"""The listener's role: reads which port a sender wants, dials it, and joins the two (connection manager 3.6, 8.5).

The endpoint is dialled *before* the yes, so that a sender learns that it is down; ``early_reply`` keeps azbridge's
order, which answers first and closes when the dial fails. A no is what azbridge says, followed by Close 1000 with the
reason in words; an unknown port is that Close alone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio

from ...client.connection import Connection
from ...client.splice import Spliced, splice
from ...errors import RemoteProtocolError
from ...net.errors import StreamGarbled
from ...net.linger import cut
from ...wire.limits import MAX_CLOSE_REASON_BYTES
from ...wire.status import CloseCode
from ..config.settings import DialSettings, HcmConnection, PortBinding
from ..target.dial import DialFailed, resolve
from ..target.failure import from_os_error
from ..target.policy import Policy
from .datagrams import DATAGRAM_IDLE_TIMEOUT
from .exchange import RECEIVE_BYTES, DatagramCounts, exchange_datagrams
from .preamble import Mode, NotUnderstood, PortRefused, PortRequest, PortRequestReader, RefusedWhy, Reply

__all__ = ["REQUEST_TIMEOUT", "Dialled", "PortTable", "Served", "open_datagrams", "serve"]

REQUEST_TIMEOUT: Final = 10.0
"""Seconds that a sender has to name its port; azbridge waits without end."""

_GOODBYE_TIMEOUT: Final = 2.0
"""Seconds for the goodbyes with a sender that was refused."""

_DIAL_SETTINGS: Final = DialSettings()

_T = TypeVar("_T")

_PLAIN_NUMBER: Final = re.compile("[0-9]+", re.ASCII)


class PortTable:
    """The ports that one hybrid connection offers, by name."""

    def __init__(self, bindings: Iterable[PortBinding]) -> None:
        self._bindings: dict[str, PortBinding] = {}
        for binding in bindings:
            self._bindings.setdefault(binding.name, binding)

    @classmethod
    def of(cls, settings: HcmConnection) -> PortTable:
        """The ports of a connection's settings; without any, one for its targets, named by the first one's port."""
        if settings.ports or isinstance(settings.targets, str) or not settings.targets:
            return cls(settings.ports)
        return cls([PortBinding(str(settings.targets[0].port or settings.targets[0].path), settings.targets)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the settings."""
        return tuple(self._bindings)

    def find(self, name: str) -> PortBinding | None:
        """The port of this name; a lone port also goes by any plain number, whatever it is called (3.2)."""
        if len(self._bindings) == 1 and _PLAIN_NUMBER.fullmatch(name):
            return next(iter(self._bindings.values()))
        return self._bindings.get(name)


class Dialled(Protocol):
    """An endpoint that answers."""

    @property
    def stream(self) -> trio.abc.HalfCloseableStream:
        """Belongs to whoever dialled."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one sender had: payload bytes, and for a UDP port datagrams too."""

    binding: PortBinding
    to_endpoint: int
    to_sender: int
    datagrams: DatagramCounts | None = None


async def open_datagrams(
    binding: PortBinding, settings: DialSettings = _DIAL_SETTINGS, policy: Policy | None = None
) -> trio.socket.SocketType:
    """Make a UDP socket connected to the first target of a port. A checkpoint.

    Raises:
      DialFailed: its name is unknown, the policy forbids it, or no address of it can be sent to.
    """
    target = binding.targets[0]
    failure: OSError | None = None
    with trio.move_on_after(settings.timeout_s) as scope:
        for address in await resolve(target, settings, policy, kind=trio.socket.SOCK_DGRAM):
            socket = trio.socket.socket(address.family, trio.socket.SOCK_DGRAM)
            try:
                if settings.source is not None:
                    await socket.bind((settings.source, 0))
                await socket.connect(address.sockaddr)
            except OSError as error:
                socket.close()
                failure = error
            except BaseException:
                socket.close()
                raise
            else:
                return socket
    if scope.cancelled_caught:
        raise DialFailed(504, f"the name {target.host} was not found within {settings.timeout_s:g} s", "timeout")
    raise from_os_error(f"udp {target}", failure or OSError("it has no address")) from failure


async def serve(
    connection: Connection,
    ports: PortTable,
    dial: Callable[[PortBinding], Awaitable[Dialled]],
    *,
    dial_datagrams: Callable[[PortBinding], Awaitable[trio.socket.SocketType]] = open_datagrams,
    join: Callable[[Connection, trio.abc.HalfCloseableStream], Awaitable[Spliced]] = splice,
    early_reply: bool = False,
    request_timeout: float = REQUEST_TIMEOUT,
    datagram_idle_timeout: float = DATAGRAM_IDLE_TIMEOUT,
) -> Served:
    """Serve one sender to its end. The connection belongs to the call, and is closed when it returns or raises.

    Args:
      connection: just accepted.
      ports: what is offered.
      dial: for a stream port.
      dial_datagrams: for a UDP port; a socket connected to the endpoint.
      join: carries the bytes of a stream port; `splice` with bounds of the caller's choice.
      early_reply: answer before dialling.
      request_timeout: seconds for the request.
      datagram_idle_timeout: seconds of silence after which a UDP sender is gone.

    Raises:
      PortRefused: the sender got a no, or asked for nothing.
      DialFailed: the endpoint does not answer; the sender was told with Close 1011.
      whatever else ``dial`` raises; the sender was told 1011 without words.
      StreamLost, StreamClosed, StreamGarbled, RemoteProtocolError: as `splice`.
    """
    try:
        connection.expect_preamble()
        request = await _read_request(connection, request_timeout)
        binding = await _choose(connection, ports, request)
        if early_reply:
            await connection.send_all(Reply.accepting(request.mode).value)
        if binding.is_udp:
            with await _or_tell(connection, dial_datagrams(binding)) as socket:
                connection.read_on()
                if not early_reply:
                    await connection.send_all(Reply.DATAGRAM_ACCEPTED.value)
                return await _serve_datagrams(connection, binding, socket, datagram_idle_timeout)
        dialled = await _or_tell(connection, dial(binding))
        try:
            if not early_reply:
                await connection.send_all(Reply.STREAM_ACCEPTED.value)
        except BaseException:
            await cut(dialled.stream)  # noqa: ASYNC102 - shields itself
            raise
        carried = await join(connection, dialled.stream)
        return Served(binding, to_endpoint=carried.to_second, to_sender=carried.to_first)
    finally:
        await cut(connection)  # noqa: ASYNC102 - shields itself; a connection that is closed stays so


async def _read_request(connection: Connection, patience: float) -> PortRequest:
    reader = PortRequestReader()
    has_ended = False
    with trio.move_on_after(patience):
        while (wanted := reader.bytes_wanted) and not has_ended:
            data = await connection.receive_some(wanted)
            reader.receive_data(data)
            has_ended = not data
    match reader.next_event():
        case PortRequest() as request:
            return request
        case NotUnderstood(head):
            await connection.send_all(Reply.NOT_UNDERSTOOD.value)
            why, text = RefusedWhy.NOT_UNDERSTOOD, f"no azbridge request begins with {head.hex(' ')}"
        case None:
            when = "and closed" if has_ended else f"within {patience:g} s"
            why = RefusedWhy.NO_REQUEST
            text = f"the sender sent {'only part of its' if reader.has_begun else 'no'} azbridge request {when}"
    raise await _refused(connection, why, text)


async def _choose(connection: Connection, ports: PortTable, request: PortRequest) -> PortBinding:
    binding = ports.find(request.port_name)
    if binding is None:
        offered = f"offered: {', '.join(ports.names)}" if ports.names else "none is offered"
        text = f"unknown port name {request.port_name!r}; {offered}"
        raise await _refused(connection, RefusedWhy.UNKNOWN_PORT, text)
    if binding.is_udp is (request.mode is Mode.DATAGRAM):
        return binding
    if binding.is_udp:
        reply, why, text = Reply.IS_DATAGRAM, RefusedWhy.IS_DATAGRAM, "is for datagrams, not a stream"
    else:
        reply, why, text = Reply.IS_STREAM, RefusedWhy.IS_STREAM, "is a stream, not for datagrams"
    await connection.send_all(reply.value)
    raise await _refused(connection, why, f"port {request.port_name!r} {text}")


async def _refused(connection: Connection, why: RefusedWhy, text: str) -> PortRefused:
    """Say goodbye to the sender and return what the caller raises."""
    await connection.turn_away(CloseCode.NORMAL_CLOSURE, _GOODBYE_TIMEOUT, reason=_clipped(text))
    return PortRefused(why, text)


async def _or_tell(connection: Connection, dialling: Awaitable[_T]) -> _T:
    """Wait for a dial, and tell the sender if it fails."""
    try:
        return await dialling
    except Exception as error:
        text = error.text if isinstance(error, DialFailed) else ""
        await connection.turn_away(  # noqa: ASYNC120 - a cancellation is the better reason then
            CloseCode.INTERNAL_ERROR, _GOODBYE_TIMEOUT, reason=_clipped(text)
        )
        raise


def _clipped(text: str) -> str:
    """As much of a text as a Close frame holds."""
    return text.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")


async def _serve_datagrams(
    connection: Connection, binding: PortBinding, socket: trio.socket.SocketType, idle_timeout: float
) -> Served:
    counts = DatagramCounts()

    async def receive() -> bytes:
        return await socket.recv(RECEIVE_BYTES)

    try:
        await exchange_datagrams(connection, receive, socket.send, counts, idle_timeout=idle_timeout)
    except StreamGarbled:
        raise  # the sender was told
    except RemoteProtocolError as error:
        await connection.turn_away(  # noqa: ASYNC120 - a cancellation is the better reason then
            error.close_code, _GOODBYE_TIMEOUT, reason=_clipped(str(error))
        )
        raise
    await connection.aclose()
    return Served(binding, to_endpoint=counts.from_relay_bytes, to_sender=counts.to_relay_bytes, datagrams=counts)
