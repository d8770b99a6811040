"""Dialling an endpoint: which target first, all its addresses, the operator's policy, and a PROXY header in front.

::

    targets ─order─▶ name ─resolve─▶ addresses ─policy─▶ race (RFC 8305) ─▶ socket ─▶ PROXY header
       ▲                                                   │ none answered
       └────────────────────── next target ────────────────┘

The time that all of it has is shared out: a target whose packets vanish leaves a fair part of it to those behind it.

Source: connection manager 8.5; RFC 8305 5; the PROXY protocol's own text, versions 1 and 2.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

import trio

from ...net.keepalive import keep_alive
from ...wire.messages import RemoteEndpoint
from ..config.settings import DialSettings, EndpointOrder, Target
from .failure import DialFailed, FailureKind, from_os_error
from .policy import Policy

__all__ = ["Address", "DialFailed", "Dialled", "FailureKind", "TargetOrder", "dial", "proxy_header", "resolve"]

_ATTEMPT_DELAY: Final = 0.25
"""Seconds that an address has for itself before the next is tried beside it (RFC 8305 5 recommends 250 ms)."""

_FAMILIES: Final = {"any": socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a target, as the socket calls want it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def host(self) -> str:
        return self.sockaddr[0]


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection to an endpoint.

    Attributes:
      stream: belongs to the caller.
      target: the one that answered.
      address: its address without port, or the path of its socket.
      seconds: from the call until it stood.
    """

    stream: trio.SocketStream = field(repr=False)
    target: Target
    address: str
    seconds: float


class TargetOrder:
    """Remembers between dials which target is to be tried first. One for each connection entry.

    Attributes:
      down: targets that a probe has found to be down; they are tried last.
    """

    def __init__(self, order: EndpointOrder) -> None:
        self.order = order
        self.down: frozenset[Target] = frozenset()
        self._turn = 0
        self._open: dict[Target, int] = {}

    def arrange(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets in the order to try them in."""
        found = list(targets)
        if self.order is EndpointOrder.ROUND_ROBIN and found:
            start = self._turn % len(found)
            self._turn += 1
            found = found[start:] + found[:start]
        elif self.order is EndpointOrder.LEAST_OPEN:
            found.sort(key=self.open)
        found.sort(key=self.down.__contains__)
        return found

    def open(self, target: Target) -> int:
        """How many connections to a target are open."""
        return self._open.get(target, 0)

    def note_open(self, target: Target) -> None:
        """A connection to it was opened."""
        self._open[target] = self.open(target) + 1

    def note_closed(self, target: Target) -> None:
        """One that was noted has ended."""
        left = self.open(target) - 1
        if left > 0:
            self._open[target] = left
        else:
            self._open.pop(target, None)


async def dial(
    targets: Sequence[Target],
    settings: DialSettings,
    *,
    order_state: TargetOrder | None = None,
    policy: Policy | None = None,
    peer: RemoteEndpoint | None = None,
) -> Dialled:
    """Connect to the first target that answers. A checkpoint; cancelled, nothing stays open.

    Args:
      order_state: without it, the targets are tried as they stand. Counting what is open is the caller's.
      policy: targets and addresses that it forbids are not dialled.
      peer: who wants the connection, for a PROXY header.

    Raises:
      DialFailed: none answered; the text names each, and what it said.
      ValueError: there is no target.
    """
    if not targets:
        raise ValueError("there is no target to dial")
    began = trio.current_time()
    failures: list[DialFailed] = []
    arranged = order_state.arrange(targets) if order_state is not None else list(targets)
    for position, target in enumerate(arranged):
        left = began + settings.timeout_s - trio.current_time()
        attempt = _Attempt(target, settings, policy, peer)
        try:
            stream, address = await attempt.run(max(left / (len(arranged) - position), 0))
        except DialFailed as error:
            failures.append(error)
        else:
            return Dialled(stream, target, address, trio.current_time() - began)
    raise _joined(failures)


async def resolve(
    target: Target, settings: DialSettings, policy: Policy | None = None, *, kind: int = socket.SOCK_STREAM
) -> list[Address]:
    """Look up a target and return the addresses that may be dialled: those of the family and source that are set, and
    that the policy allows. A checkpoint, without a deadline of its own.

    Args:
      kind: `socket.SOCK_STREAM` or `socket.SOCK_DGRAM`.

    Raises:
      DialFailed: the name is unknown, has no address of that family, or the policy forbids it.
    """
    family = _FAMILIES[settings.family]
    if settings.source is not None:
        of_source = socket.AF_INET6 if ":" in settings.source else socket.AF_INET
        if family not in (socket.AF_UNSPEC, of_source):
            raise DialFailed(502, f"{target} was not dialled: the source {settings.source} is not {settings.family}")
        family = of_source
    try:
        found = await trio.socket.getaddrinfo(target.host, target.port, family, kind)
    except OSError as error:  # gaierror; or no descriptor is left to ask with
        raise from_os_error(target.host, error) from error
    except UnicodeError as error:  # a name that DNS cannot spell
        raise DialFailed(502, f"{target.host} is no name that can be looked up: {error}", "unknown-name") from error
    addresses: dict[Address, None] = {}
    for family_found, _, _, _, sockaddr in found:
        addresses[Address(family_found, sockaddr)] = None  # type: ignore[arg-type]  # as the families asked for have it
    if policy is None:
        return list(addresses)
    allowed = set(policy.check(target.host, target.port, [address.host for address in addresses]))
    return [address for address in addresses if address.host in allowed]


class _Attempt:
    """One target's turn."""

    def __init__(
        self, target: Target, settings: DialSettings, policy: Policy | None, peer: RemoteEndpoint | None
    ) -> None:
        self._target = target
        self._settings = settings
        self._policy = policy
        self._peer = peer
        self._step = f"the name server does not answer for {target.host}"

    async def run(self, seconds: float) -> tuple[trio.SocketStream, str]:
        """Return the stream and its address, within so many seconds. Raises `DialFailed`."""
        try:
            with trio.fail_after(seconds):
                return await self._run()
        except trio.TooSlowError as error:
            advice = "see /etc/resolv.conf and the way to the name server"
            if not self._step.startswith("the name server"):
                advice = "a firewall drops the packets, or the machine is off"
            raise DialFailed(504, f"{self._step} within {seconds:.3g} s; {advice}", "timeout") from error

    async def _run(self) -> tuple[trio.SocketStream, str]:
        target = self._target
        if target.path:
            if self._policy is not None:
                self._policy.check_path(target.path)
            self._step = f"{target} does not answer"
            try:
                stream = await trio.open_unix_socket(target.path)
            except OSError as error:
                raise from_os_error(str(target), error) from error
            address = target.path
        else:
            addresses = _alternating(await resolve(target, self._settings, self._policy))
            self._step = f"{_where(target, [found.host for found in addresses])} does not answer"
            sock, chosen = await _Race(target, self._settings).run(addresses)
            stream = trio.SocketStream(sock)
            if not self._settings.nodelay:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            address = chosen.host
        if self._settings.proxy_protocol:
            await self._introduce(stream, self._settings.proxy_protocol)
        return stream, address

    async def _introduce(self, stream: trio.SocketStream, version: Literal[1, 2]) -> None:
        try:
            await stream.send_all(proxy_header(version, self._peer, _place(stream)))
        except trio.BrokenResourceError as error:
            stream.socket.close()
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else OSError()
            raise from_os_error(f"{self._target}, sent a PROXY header,", cause) from error
        except OSError as error:  # a connection that was reset has no addresses any more
            stream.socket.close()
            raise from_os_error(str(self._target), error) from error
        except BaseException:
            stream.socket.close()
            raise


def _alternating(addresses: Sequence[Address]) -> list[Address]:
    """Let the second address be of the other family, so that a broken one costs one delay (RFC 8305 4)."""
    found = list(addresses)
    for index, address in enumerate(found):
        if address.family != found[0].family:
            found.insert(1, found.pop(index))
            break
    return found


class _Race:
    """Connects to several addresses, each a little later than the one before, and keeps the first that answers."""

    def __init__(self, target: Target, settings: DialSettings) -> None:
        self._target = target
        self._settings = settings
        self._failed: list[tuple[Address, OSError]] = []
        self._won: tuple[trio.socket.SocketType, Address] | None = None

    async def run(self, addresses: Sequence[Address]) -> tuple[trio.socket.SocketType, Address]:
        """Return the socket and its address. Raises `DialFailed` when none answered."""
        try:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(self._attempt, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(_ATTEMPT_DELAY):
                        await failed.wait()
        except BaseException:
            # The deadline, or the caller's end, may come in the very turn in which somebody won.
            if self._won is not None:
                self._won[0].close()
            raise
        if self._won is not None:
            return self._won
        raise self._failure()

    async def _attempt(self, address: Address, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            sock = trio.socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:
            self._failed.append((address, error))
            failed.set()
            return
        try:
            await self._bind(sock)
            await sock.connect(address.sockaddr)
        except OSError as error:
            sock.close()
            self._failed.append((address, error))
            failed.set()
        except BaseException:
            sock.close()
            raise
        else:
            if self._won is None:
                keep_alive(sock)
                self._won = sock, address
                scope.cancel()
            else:
                sock.close()

    async def _bind(self, sock: trio.socket.SocketType) -> None:
        if self._settings.source is not None:
            # Without this, Linux takes a port for the socket that no other target may have meanwhile.
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            await sock.bind((self._settings.source, 0))

    def _failure(self) -> DialFailed:
        # Addresses that said the same are named together: "(10.2.0.8, 10.2.0.9) port 1433 refused ...".
        by_errno: dict[int | None, tuple[OSError, list[str]]] = {}
        for address, error in self._failed:
            by_errno.setdefault(error.errno, (error, []))[1].append(address.host)
        return _joined([from_os_error(_where(self._target, hosts), error) for error, hosts in by_errno.values()])


def _where(target: Target, hosts: Sequence[str]) -> str:
    shown = "" if list(hosts) == [target.host] else f" ({', '.join(hosts)})"
    return f"{target.host}{shown} port {target.port}"


def _joined(failures: Sequence[DialFailed]) -> DialFailed:
    """One failure of several. A status and kind that they do not share say no more than that nobody answered."""
    first = failures[0]
    if len(failures) == 1:
        return first
    kinds = {failure.kind for failure in failures}
    statuses = {failure.status for failure in failures}
    text = "; ".join(dict.fromkeys(failure.text for failure in failures))
    return DialFailed(statuses.pop() if len(statuses) == 1 else 502, text, kinds.pop() if len(kinds) == 1 else "other")


def _place(stream: trio.SocketStream) -> RemoteEndpoint | None:
    found = stream.socket.getpeername()
    return RemoteEndpoint(found[0].partition("%")[0], found[1]) if isinstance(found, tuple) else None


def proxy_header(version: Literal[1, 2], source: RemoteEndpoint | None, destination: RemoteEndpoint | None) -> bytes:
    """Build a PROXY header.

    Args:
      source: the sender, as the relay told; None, or one that is no address, makes a header that says that nothing is
        known, and receivers then take the connection's own address.
      destination: what the sender is given as its destination; None, as for a Unix socket, is the unspecified address.
    """
    from_ip = _ip(source)
    if source is None or from_ip is None:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _V2_SIGNATURE + b"\x20\x00\x00\x00"
    to_ip = _ip(destination) or type(from_ip)(0)
    to_port = destination.port if destination is not None else 0
    if from_ip.version != to_ip.version:  # a header has one family: the older address is written in the newer one
        from_ip, to_ip = _as_v6(from_ip), _as_v6(to_ip)
    if version == 1:
        family = "TCP4" if from_ip.version == 4 else "TCP6"
        return f"PROXY {family} {from_ip} {to_ip} {source.port} {to_port}\r\n".encode()
    addresses = from_ip.packed + to_ip.packed + struct.pack("!HH", source.port, to_port)
    kind = 0x11 if from_ip.version == 4 else 0x21
    return _V2_SIGNATURE + struct.pack("!BBH", 0x21, kind, len(addresses)) + addresses


def _ip(place: RemoteEndpoint | None) -> IPv4Address | IPv6Address | None:
    if place is None or not 0 <= place.port <= 65_535:
        return None
    try:
        found = ip_address(place.address.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _as_v6(address: IPv4Address | IPv6Address) -> IPv6Address:
    return address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")
