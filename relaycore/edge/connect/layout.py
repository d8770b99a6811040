"""Where names lead: the addresses that programs find, and what has to listen there.

A name has one address and any number of ports, and each port of it may be another hybrid connection. Forwards that
share a name therefore listen at one address too: that of the one which has had its address longest, so that the name
keeps its own when others come; or of the next whose address does not mean another name's forward at one of these ports.
A forward of ``*.corp.example`` listens with every name below that suffix. Where one of them has that very port already,
it goes first.

Each forward keeps an address of its own besides, drawn from its name, so that what is shared may change without it.

Source: connection manager 3.5, 8.6; App Service tells hybrid connections apart by host and port together.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..config.settings import Forward, ListenAt

__all__ = ["DEFAULT_LISTEN", "Laid", "Place", "lay_out", "matches"]

_Holders: TypeAlias = dict[tuple[str, str, int], str]
"""Kind, address and port, and the forward that listens there."""

DEFAULT_LISTEN: Final = (ListenAt("tcp", "auto", 0),)
"""Where a forward listens whose settings do not say it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A forward, as far as it is known where it leads.

    Attributes:
      hosts: in small letters, without a dot at the end.
      port: the endpoint's; 0 while it is not known.
      address: its own in the pool.
      rank: how long it has had that, beside others: the lower, the longer.
    """

    forward: Forward
    hosts: Sequence[str]
    port: int
    address: str
    rank: int = 0

    def ports(self) -> Iterator[tuple[ListenAt, int]]:
        """TCP and UDP that it asks for, and the ports; 0 while it is not known."""
        for at in self.forward.listen or DEFAULT_LISTEN:
            if at.kind != "unix":
                yield at, at.port or self.port


@dataclass(slots=True)
class Laid:
    """What a place is to do.

    Attributes:
      names: the address that each of its hosts leads to; none where nothing of it listens on IPv4.
      shared: other forwards' addresses at which it listens as well, and with which of its own ``auto``.
    """

    names: dict[str, str] = field(default_factory=dict)
    shared: list[tuple[ListenAt, str]] = field(default_factory=list)


def lay_out(places: Iterable[Place]) -> dict[str, Laid]:
    """Decide it for all forwards together, by name. The same places in the same order give the same."""
    places = list(places)
    found = {place.forward.name: Laid() for place in places}
    holders: _Holders = {}
    namers: dict[str, list[Place]] = {}
    for place in places:
        for at, port in place.ports():
            if at.host == "auto":
                holders[at.kind, place.address, port] = place.forward.name
        for host in dict.fromkeys(place.hosts):
            namers.setdefault(host, []).append(place)
    shared = {host: _share(having, holders) for host, having in namers.items()}
    for is_exact in (True, False):
        for place in places:
            name, laid = place.forward.name, found[place.forward.name]
            others = {shared[host] for host in (place.hosts if is_exact else _covered(place, shared))} - {place.address}
            for address in sorted(others):
                for at, port in place.ports():
                    if at.host == "auto" and port and holders.setdefault((at.kind, address, port), name) == name:
                        laid.shared += [(at, address)] if (at, address) not in laid.shared else []
    for place in places:
        for host in place.hosts:
            if (led := _address(place, shared[host], holders)) is not None:
                found[place.forward.name].names[host] = led
    return found


def _share(places: Sequence[Place], holders: _Holders) -> str:
    """Choose the address of a name that these have, and note who listens there."""
    wanted: dict[tuple[str, int], str] = {}
    for place in places:
        for at, port in place.ports():
            if at.host == "auto" and port:
                wanted.setdefault((at.kind, port), place.forward.name)
    listening = [place for place in places if any(at.host == "auto" for at, _ in place.ports())] or list(places)
    listening.sort(key=lambda place: place.rank)
    address = next(
        (
            place.address
            for place in listening
            if all(holders.get((kind, place.address, port), name) == name for (kind, port), name in wanted.items())
        ),
        listening[0].address,
    )
    for (kind, port), name in wanted.items():
        holders.setdefault((kind, address, port), name)
    return address


def matches(pattern: str, host: str) -> bool:
    """Whether ``*.suffix`` covers a name, or a narrower pattern."""
    return pattern.startswith("*.") and host.endswith(pattern[1:])


def _covered(place: Place, names: Iterable[str]) -> list[str]:
    patterns = [host for host in place.hosts if host.startswith("*.")]
    return [name for name in names if any(matches(pattern, name) for pattern in patterns)] if patterns else []


def _address(place: Place, shared: str, holders: _Holders) -> str | None:
    """Where programs reach a name of a place: at the endpoint's port if it has that anywhere, by TCP, in the pool."""
    found: list[tuple[tuple[bool, bool, bool, bool], str]] = []
    for at, port in place.ports():
        if at.host == "auto":
            is_ours = holders.get((at.kind, shared, port), place.forward.name) == place.forward.name
            address = shared if is_ours else place.address
        elif at.host == "0.0.0.0":
            address = shared
        elif at.host == "localhost":
            address = "127.0.0.1"
        else:
            address = at.host
        try:
            is_loopback = ipaddress.IPv4Address(address).is_loopback
        except ValueError:
            continue  # IPv6, which no answer of ours can hold, or a name of which only the resolver knows
        is_elsewhere = bool(place.port) and port != place.port
        found.append(((is_elsewhere, at.kind == "udp", at.host != "auto", not is_loopback), address))
    return min(found, key=lambda pair: pair[0])[1] if found else None
