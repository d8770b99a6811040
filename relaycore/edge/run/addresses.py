"""Addresses that one run has for itself, so that several programs, and a forwarder beside them, do not meet."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import socket
from collections.abc import Sequence
from typing import Final

from ..config.settings import ConnectSettings, Forward, ListenAt
from ..connect.layout import Place, lay_out
from ..connect.loopback import LoopbackAddresses, parse_pool
from .modes import RunMode

__all__ = ["for_run"]

_SUBNET_TRIES: Final = 16


def for_run(settings: ConnectSettings, mode: RunMode) -> ConnectSettings:
    """The same forwards, at addresses that only this run has."""
    forwards = tuple(_at_own_address(forward, mode) for forward in settings.forwards)
    pool = settings.pool if mode is not RunMode.HOSTS else _free_subnet(settings.pool, forwards)
    return dataclasses.replace(settings, forwards=forwards, pool=pool)


def _at_own_address(forward: Forward, mode: RunMode) -> Forward:
    chosen = tuple(at for at in forward.listen if at.host == "auto")
    # The names are announced with the endpoint's port, so that is opened besides any other.
    at_its_port = [ListenAt(at.kind, "auto") for at in chosen] or [ListenAt("tcp", "auto")]
    own = tuple(dict.fromkeys((*at_its_port, *chosen)))
    fixed: tuple[ListenAt, ...] = ()
    if mode is RunMode.ISOLATED:
        fixed = tuple(at for at in forward.listen if at.host != "auto" and at.kind != "unix")
    return dataclasses.replace(forward, listen=own + fixed)


def _free_subnet(pool: str, forwards: Sequence[Forward], rng: random.Random | None = None) -> str:
    """A part of the pool in which nobody has the addresses that these forwards would get.

    Others are found by chance only: two runs that look at the same moment may choose the same part. Then the later one
    is told that its addresses are taken.
    """
    network = parse_pool(pool)
    prefix = max(network.prefixlen, 30 - max(len(forwards), 4).bit_length())
    count = 1 << (prefix - network.prefixlen)
    rng = rng or random.Random()
    chosen = network
    for _ in range(_SUBNET_TRIES):
        base = int(network.network_address) + (rng.randrange(count) << (32 - prefix))
        chosen = ipaddress.IPv4Network((base, prefix))
        given = LoopbackAddresses(str(chosen), None).assign(forward.name for forward in forwards)
        places = [Place(one, one.hosts, one.port, given[one.name]) for one in forwards]
        laid = lay_out(places)
        wanted = [
            (address, at.port or place.port)
            for place in places
            for at, address in [*((at, place.address) for at, _ in place.ports()), *laid[place.forward.name].shared]
            if at.kind == "tcp"
        ]
        if all(_is_free(address, port) for address, port in wanted if port):
            break
    return str(chosen)


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return isinstance(error, PermissionError)  # no other address would be better
        return True
