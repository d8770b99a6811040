"""azbridge's expressions for ``-L``, ``-T``, ``-R`` and ``-H`` (connection manager 3.1, 3.2).

::

    -L   [BIND:]PORT[/NAME][;...]:RELAY        SOCKET[/NAME]:RELAY
    -T   RELAY:[NAME/][HOST:]PORT[;...]        RELAY:[NAME/]SOCKET
    -R   RELAY:[HOST:][NAME/]PORT[;...]        the old form of -T
    -H   RELAY:SCHEME/HOST[/PATH][:PORT]       SCHEME is http or https; RELAY:SCHEME/PORT is localhost

A port with a ``U`` behind it is UDP. Beyond azbridge: an IPv6 address and a path may stand in brackets, and absolute
paths of sockets are taken: ``[::1]:1433/tds:sql``, ``[/run/app/sql.sock]/tds:sql``, ``sql:tds//run/app/sql.sock``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from ...errors import ConfigError

__all__ = [
    "HttpBinding",
    "LocalBinding",
    "RemoteBinding",
    "check_port_name",
    "check_relay_name",
    "parse_http_forward",
    "parse_local_forward",
    "parse_old_remote_forward",
    "parse_remote_forward",
]

_NAME: Final = re.compile(r"[0-9A-Za-z/_.-]+")
_PORT: Final = re.compile(r"(?P<number>[0-9]{1,5})(?P<udp>[Uu]?)")
_HOST: Final = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,252})?")
_IPV6: Final = re.compile(r"\[(?P<address>[0-9A-Fa-f:.]+(?:%[0-9A-Za-z_.-]+)?)\]")
_SOCKET: Final = re.compile(r"[0-9A-Za-z_.-]+")


@dataclass(frozen=True, slots=True)
class LocalBinding:
    """One local address and the port name it asks for.

    Attributes:
      host: to bind; ``""`` where none is said.
      port: 0 for a Unix socket.
      socket: its path, absolute or a bare name; ``""`` for a port.
    """

    port_name: str
    host: str = ""
    port: int = 0
    is_udp: bool = False
    socket: str = ""


@dataclass(frozen=True, slots=True)
class RemoteBinding:
    """One port name and where it leads; fields as in `LocalBinding`, ``host`` is never empty for a port."""

    port_name: str
    host: str = ""
    port: int = 0
    is_udp: bool = False
    socket: str = ""


@dataclass(frozen=True, slots=True)
class HttpBinding:
    """One HTTP server. ``path`` begins and ends with a slash."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str = "/"

    @property
    def url(self) -> str:
        """The server's URL; without the port that its scheme has anyway."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == _USUAL_PORTS[self.scheme]
        return f"{self.scheme}://{host}{'' if is_usual else f':{self.port}'}{self.path}"


_USUAL_PORTS: Final = {"http": 80, "https": 443}


def parse_local_forward(text: str) -> tuple[str, tuple[LocalBinding, ...]]:
    """Read the value of ``-L``. Returns: the hybrid connection, and what is bound for it.

    Raises:
      ConfigError: with the part that is wrong.
    """
    bindings, colon, relay = text.rpartition(":")
    if not colon:
        raise _wrong(text, "the name of the hybrid connection stands behind the last colon")
    return _relay(relay, text), tuple(_local(part, text) for part in bindings.split(";"))


def parse_remote_forward(text: str) -> tuple[str, tuple[RemoteBinding, ...]]:
    """Read the value of ``-T``. Returns: the hybrid connection, and its ports.

    Raises:
      ConfigError: with the part that is wrong.
    """
    relay, parts = _split_relay(text)
    return _relay(relay, text), tuple(_remote(part, text) for part in parts)


def parse_old_remote_forward(text: str) -> tuple[str, tuple[RemoteBinding, ...]]:
    """Read the value of ``-R``, whose port name stands before the port instead of the host.

    Raises:
      ConfigError: with the part that is wrong.
    """
    relay, parts = _split_relay(text)
    found = []
    for part in parts:
        host, colon, rest = part.rpartition(":")
        name, _, port = rest.rpartition("/")
        if _PORT.fullmatch(port) is None:
            raise _wrong(text, f"{part!r} does not end with a port")
        found.append(_remote(f"{name}{'/' if name else ''}{host}{colon}{port}", text))
    return _relay(relay, text), tuple(found)


def parse_http_forward(text: str) -> tuple[str, tuple[HttpBinding, ...]]:
    """Read the value of ``-H``. Returns: the hybrid connection, and its servers.

    Raises:
      ConfigError: with the part that is wrong.
    """
    relay, parts = _split_relay(text)
    return _relay(relay, text), tuple(_http(part, text) for part in parts)


def _split_relay(text: str) -> tuple[str, list[str]]:
    """Returns: what stands in front of the first colon, and the bindings behind it."""
    relay, colon, bindings = text.partition(":")
    if not colon:
        raise _wrong(text, "the name of the hybrid connection stands in front of the first colon")
    return relay, bindings.split(";")


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"{text!r:.200}: {why}")


def check_relay_name(name: str) -> str:
    """The name of a hybrid connection, without slashes at its ends.

    Raises:
      ConfigError: it is none.
    """
    if _NAME.fullmatch(name) is None or not name.strip("/"):
        raise ConfigError(f"{name!r:.80} is no name of a hybrid connection (letters, digits, / _ . -)")
    return name.strip("/")


def check_port_name(name: str) -> str:
    """The port name itself.

    Raises:
      ConfigError: it is none.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{name!r:.80} is no port name (letters, digits, / _ . -)")
    if len(name) > 255:
        raise ConfigError("a port name has at most 255 characters")
    return name


def _relay(name: str, text: str) -> str:
    try:
        return check_relay_name(name)
    except ConfigError as error:
        raise _wrong(text, str(error)) from None


def _port_name(name: str, text: str) -> str:
    try:
        return check_port_name(name)
    except ConfigError as error:
        raise _wrong(text, str(error)) from None


def _port(text_of_port: str, text: str) -> tuple[int, bool] | None:
    match = _PORT.fullmatch(text_of_port)
    if match is None:
        return None
    number = int(match["number"])
    if not 0 < number < 65_536:
        raise _wrong(text, f"{number} is no port (1 to 65535)")
    return number, bool(match["udp"])


def _host(host: str, text: str) -> str:
    if (match := _IPV6.fullmatch(host)) is not None:
        return match["address"]
    if ":" in host:
        raise _wrong(text, f"an IPv6 address stands in brackets, as in [{host}]:1433")
    if _HOST.fullmatch(host) is None and host != "*":
        raise _wrong(text, f"{host!r} is no host name or address")
    return host


def _plain_port(number: int, is_udp: bool) -> str:
    return f"{number}U" if is_udp else str(number)


def _local(part: str, text: str) -> LocalBinding:
    if part.startswith("[/"):
        path, bracket, rest = part[1:].partition("]")
        if not bracket or (rest and not rest.startswith("/")):
            raise _wrong(text, f"{part!r} is not [/PATH] or [/PATH]/NAME")
        return LocalBinding(_port_name(rest[1:] if rest else path, text), socket=path)
    if part.startswith("/"):
        return LocalBinding(_port_name(part, text), socket=part)
    # The first slash outside of brackets: a port name may have more of them.
    address, slash, name = part.partition("/")
    host, colon, port_text = address.rpartition(":")
    port = _port(port_text, text)
    if port is None:
        if colon or _SOCKET.fullmatch(address) is None:
            raise _wrong(text, f"{address!r} is neither [BIND:]PORT nor the name of a socket")
        return LocalBinding(_port_name(name if slash else address, text), socket=address)
    return LocalBinding(
        _port_name(name, text) if slash else _plain_port(*port),
        host=_host(host, text) if colon else "",
        port=port[0],
        is_udp=port[1],
    )


def _remote(part: str, text: str) -> RemoteBinding:
    if part.startswith("/"):
        return RemoteBinding(_port_name(part, text), socket=part)
    name, slashes, path = part.partition("//")
    if slashes:
        return RemoteBinding(_port_name(name, text), socket=f"/{path}")
    if part.endswith("]") and (start := part.find("[/")) >= 0:
        path = part[start + 1 : -1]
        name = part[:start].removesuffix("/")
        return RemoteBinding(_port_name(name or path, text), socket=path)
    name, slash, address = part.rpartition("/")
    host, colon, port_text = address.rpartition(":")
    port = _port(port_text, text)
    if port is None:
        if colon or _SOCKET.fullmatch(address) is None:
            raise _wrong(text, f"{address!r} is neither [HOST:]PORT nor the name of a socket")
        return RemoteBinding(_port_name(name if slash else address, text), socket=address)
    return RemoteBinding(
        _port_name(name, text) if slash else _plain_port(*port),
        host=_host(host, text) if colon else "localhost",
        port=port[0],
        is_udp=port[1],
    )


def _http(part: str, text: str) -> HttpBinding:
    scheme, slash, rest = part.partition("/")
    if scheme not in ("http", "https") or not slash:
        raise _wrong(text, f"{part!r} does not begin with http/ or https/")
    rest, colon, port_text = rest.rpartition(":")
    if not colon or port_text.endswith("]"):  # no port; the colon, if any, is one of an IPv6 address
        rest, port_text = rest + colon + port_text, ""
    host, _, path = rest.partition("/")
    number = _USUAL_PORTS[scheme]
    if not port_text and _PORT.fullmatch(host):  # as azbridge's own page has it; no host is called by a number
        host, port_text = "localhost", host
    if port_text:
        port = _port(port_text, text)
        if port is None or port[1]:
            raise _wrong(text, f"{port_text!r} is no port")
        number = port[0]
    path = path.strip("/")
    return HttpBinding("http" if scheme == "http" else "https", _host(host, text), number, f"/{path}/" if path else "/")
