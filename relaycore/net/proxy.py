"""Proxies on the way out: which one to use for a host, and where it is.

Source: connection manager 8.4; the variables are those that curl reads.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import unquote

from ..errors import ConfigError

__all__ = ["Proxy", "choose_proxy", "parse_proxy_url"]

_URL = re.compile(
    r"(?P<scheme>http|socks5h?)://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._\-]+)(?::(?P<port>\d{1,5}))?/?",
    re.IGNORECASE,
)

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy to dial through.

    Attributes:
      kind: ``http`` takes CONNECT, ``socks5`` RFC 1928.
      host: an IPv6 address without brackets.
      user, password: None where it asks for none.
    """

    kind: Literal["http", "socks5"]
    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


def parse_proxy_url(text: str, *, source: str = "") -> Proxy:
    """Read ``http://[USER:PASSWORD@]HOST[:PORT]`` or ``socks5://...``; a missing port is 3128, or 1080.

    Raises:
      ConfigError: it is neither. The text is not repeated: it may hold a password.
    """
    match = _URL.fullmatch(text.strip())
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        raise ConfigError("expected http://HOST:PORT or socks5://HOST:PORT", source=source, key="proxy")
    kind: Literal["http", "socks5"] = "http" if match["scheme"].lower() == "http" else "socks5"
    return Proxy(
        kind=kind,
        host=match["host"].strip("[]"),
        port=int(match["port"] or (3128 if kind == "http" else 1080)),
        user=None if match["user"] is None else unquote(match["user"]),
        password=None if match["password"] is None else unquote(match["password"]),
    )


def choose_proxy(setting: str, host: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Which proxy leads to a host.

    Args:
      setting: ``none``, ``env``, or a URL.
      host: to be reached, IPv6 with or without brackets.
      environ: for ``env``: ``HTTPS_PROXY`` and ``ALL_PROXY``, in small letters first, but for hosts of ``NO_PROXY`` and
        this machine's own. A proxy without scheme there takes CONNECT. ``NO_PROXY`` holds names, which cover what is
        below them, addresses, networks such as ``10.0.0.0/8``, or ``*``.

    Raises:
      ConfigError: the URL is none.
    """
    if setting == "none":
        return None
    if setting != "env":
        return parse_proxy_url(setting)
    for name in ("https_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            url = environ.get(spelling, "")
            if url:
                if _is_excepted(host, environ):
                    return None
                return parse_proxy_url(url if "://" in url else f"http://{url}", source=spelling)
    return None


def _is_excepted(host: str, environ: Mapping[str, str]) -> bool:
    host = host.strip("[]").lower().rstrip(".")
    address = _read_address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    for entry in re.split(r"[,\s]+", (environ.get("no_proxy") or environ.get("NO_PROXY", "")).lower()):
        entry = entry.strip("[]").strip(".")
        if entry == "*" or (entry and (host == entry or (address is None and host.endswith(f".{entry}")))):
            return True
        if address is not None and _is_in(address, entry):
            return True
    return False


def _read_address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_in(address: _Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
