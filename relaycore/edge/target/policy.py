"""What may be published from this machine: an operator's list of targets, by name and by address.

A name is checked as it is written, and each address that it leads to as well: only addresses that pass are dialled. So
``deny = ["169.254.0.0/16:*"]`` holds whatever name leads there, and ``allow = ["10.2.0.0/16:5432"]`` needs no names.

Source: connection manager 8.4, ``[hcm.policy]``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ...errors import ConfigError
from ..config.settings import PolicySettings
from ..config.texts import check_pattern_name
from .failure import DialFailed

__all__ = ["Pattern", "Policy", "parse_pattern"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ALL_PORTS: Final = (0, 65_535)
_UNIX: Final = "unix:"

_LOOPBACK: Final[dict[int, _Address]] = {4: ipaddress.IPv4Address("127.0.0.1"), 6: ipaddress.IPv6Address("::1")}
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a list.

    Attributes:
      text: as it was written.
      host: a name in small letters, ``*``, ``*.suffix``, or ``unix:PATH`` where the path may end in ``*``; ``""`` where
        a network counts.
      network: addresses, or None.
      ports: first and last.
    """

    text: str
    host: str
    network: _Network | None
    ports: tuple[int, int]

    def matches_name(self, host: str, port: int) -> bool:
        """Whether a name, as somebody wrote it, is meant. ``localhost`` is the machine's own names only."""
        if not self._has_port(port) or self.network is not None:
            return False
        name = _plain(host)
        if self.host == "*":
            return True
        if self.host.startswith("*."):
            return name.endswith(self.host[1:]) and len(name) > len(self.host) - 1
        return name == self.host

    def matches_address(self, address: str, port: int) -> bool:
        """Whether an address is meant. ``localhost`` means the loopback addresses, however they are spelt."""
        if not self._has_port(port):
            return False
        found = _address(address)
        if found is None:
            return False
        # A connection to the unspecified address ends at this machine, as one to its loopback address does.
        meant = (found, _LOOPBACK[found.version]) if found.is_unspecified else (found,)
        if self.network is not None:
            return any(one.version == self.network.version and one in self.network for one in meant)
        return self.host == "*" or (self.host == "localhost" and meant[-1].is_loopback)

    def matches_path(self, path: str) -> bool:
        """Whether the path of a Unix socket is meant."""
        if self.host.endswith("*"):
            return (_UNIX + path).startswith(self.host[:-1]) if self.host.startswith(_UNIX) else self.host == "*"
        return self.host == _UNIX + path

    def _has_port(self, port: int) -> bool:
        return not self.host.startswith(_UNIX) and self.ports[0] <= port <= self.ports[1]


def parse_pattern(text: str, *, source: str = "", key: str = "") -> Pattern:
    """Read ``HOST:PORT``: ``*``, ``*.suffix``, a name, an address or a network, and ``*``, ``N`` or ``N-M``; IPv6 in
    brackets. Or ``unix:PATH``, whose path may end in ``*``.

    Raises:
      ConfigError: it is none of these, or another spelling of an address, such as ``127.1``.
    """
    if text.startswith(_UNIX):
        return Pattern(text, text, None, _ALL_PORTS)
    host, colon, port = text.rpartition(":")
    ports = _ports(port)
    is_bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    host = _plain(host)
    if is_bare or not colon or not host or ports is None:
        raise ConfigError(
            f"expected HOST:PORT, such as *.corp.example:443, 10.2.0.0/16:* or [fd00::/8]:5000-5010, not {text!r}",
            source=source,
            key=key,
        )
    try:
        network = ipaddress.ip_network(host)
    except ValueError as error:
        if "/" in host or ":" in host or ("*" in host.removeprefix("*.") and host != "*"):
            raise ConfigError(f"{text!r}: {error}", source=source, key=key) from error
        try:
            check_pattern_name(host)
        except ConfigError as spelling:
            raise ConfigError(f"{text!r}: {spelling}", source=source, key=key) from None
        return Pattern(text, host, None, ports)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):  # see _address
        network = ipaddress.IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
    return Pattern(text, "", network, ports)


class Policy:
    """The lists, ready to be asked.

    Raises:
      ConfigError: an entry is no pattern.
    """

    def __init__(self, settings: PolicySettings) -> None:
        allow = settings.allow
        self._allow = None if allow is None else [parse_pattern(text, key="hcm.policy.allow") for text in allow]
        self._deny = [parse_pattern(text, key="hcm.policy.deny") for text in settings.deny]

    def check(self, host: str, port: int, addresses: Sequence[str]) -> list[str]:
        """Return those of a target's addresses that may be dialled, in their order.

        Args:
          host: the name, or the address, as the target has it.
          addresses: what it leads to, as text; without a name, the address itself.

        Raises:
          DialFailed: 403: the name, or every address, is denied, or nothing allows them.
        """
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for pattern in self._deny:
            if pattern.matches_name(host, port):
                raise _forbidden(where, f"denied by {pattern.text}")
        denied = ""
        left: list[str] = []
        for address in addresses:
            by = next((pattern.text for pattern in self._deny if pattern.matches_address(address, port)), "")
            if by:
                denied = f"{address} denied by {by}"
            else:
                left.append(address)
        if denied and not left:
            raise _forbidden(where, denied)
        if self._allow is None or any(pattern.matches_name(host, port) for pattern in self._allow):
            return left
        allowed = [
            address for address in left if any(pattern.matches_address(address, port) for pattern in self._allow)
        ]
        if not allowed:
            raise _forbidden(where, "not in its allow list")
        return allowed

    def check_path(self, path: str) -> None:
        """Raise `DialFailed` with 403 for a Unix socket that may not be dialled."""
        for pattern in self._deny:
            if pattern.matches_path(path):
                raise _forbidden(_UNIX + path, f"denied by {pattern.text}")
        if self._allow is not None and not any(pattern.matches_path(path) for pattern in self._allow):
            raise _forbidden(_UNIX + path, "not in its allow list")


def _forbidden(where: str, why: str) -> DialFailed:
    return DialFailed(403, f"{where} may not be published from this machine: {why} (hcm.policy)", "policy")


def _plain(host: str) -> str:
    return host.strip("[]").lower().rstrip(".")


def _ports(text: str) -> tuple[int, int] | None:
    if text == "*":
        return _ALL_PORTS
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else True)) or not text.isascii():
        return None
    found = int(first), int(last) if dash else int(first)
    return found if 0 <= found[0] <= found[1] <= 65_535 else None


def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket of the newer family reaches the older addresses by these; a rule for 10.0.0.0/8 has to hold for them.
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
