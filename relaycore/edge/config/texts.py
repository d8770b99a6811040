"""Short texts that stand for numbers, places and patterns, and back: ``30s``, ``50MiB/s``, ``auto:1433``.

Each parser takes what a person wrote and raises `ConfigError` with what was found and what was expected; none of these
texts is a secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Final

from ...errors import ConfigError
from .settings import ListenAt, Probe, Target

__all__ = [
    "check_pattern",
    "check_pattern_name",
    "format_bytes",
    "format_listen",
    "format_probe",
    "format_rate",
    "format_seconds",
    "parse_bytes",
    "parse_listen",
    "parse_probe",
    "parse_rate",
    "parse_seconds",
    "parse_target",
    "unix_place",
]

_SPAN = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(?P<unit>ms|s|m|min|h|d)?")
_SPAN_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZE = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,6})?)\s*(?P<unit>[KMGT]?i?B)?", re.IGNORECASE)
_SIZE_UNITS: Final = {
    f"{letter}{'i' if base == 1024 else ''}b": base**power
    for base in (1000, 1024)
    for power, letter in enumerate("kmgt", start=1)
} | {"b": 1}
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?")
_NUMBERS = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")
_SCOPE = re.compile(r"[A-Za-z0-9._:@~-]{1,15}")  # an interface's number or name, IFNAMSIZ
_OPTION = re.compile(r",\s*(?P<key>[A-Za-z][A-Za-z_-]*)\s*=")
_SOCKET_KEYS: Final = ("mode", "owner", "group")
_MODE = re.compile(r"(?:0o?)?(?P<mode>[0-7]{3})")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\+-]{0,255}\$?")
_PORTS = re.compile(r"\*|(?P<low>[0-9]{1,5})(?:-(?P<high>[0-9]{1,5}))?")
_MAX_SOCKET_PATH: Final = 107  # unix(7): sun_path has 108 bytes, one of them ends it


def parse_seconds(text: str) -> float:
    """``30s``, ``500ms``, ``2m``, ``1h``, ``1d``; a bare number is seconds. Returns seconds, 0 or more.

    Raises:
      ConfigError: it is none of these.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"expected a span such as 30s, 500ms or 2m (found {text!r:.60})")
    if match["unit"] == "ms":
        return float(match["number"]) / 1000  # rounds once, as writing 1.001 does; times 0.001 would round twice
    return float(match["number"]) * _SPAN_UNITS[match["unit"] or "s"]


def format_seconds(seconds: float) -> str:
    """The shortest text that `parse_seconds` reads as the same span."""
    if seconds == 0:
        return "0"
    if seconds == 60:
        return "60s"  # as people write it
    for unit in ("d", "h", "m", "s"):
        count = seconds / _SPAN_UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    in_ms = seconds * 1000
    return f"{round(in_ms)}ms" if abs(in_ms - round(in_ms)) < 1e-9 else f"{seconds:f}".rstrip("0") + "s"


def parse_bytes(text: str) -> int:
    """``1MiB``, ``64KiB``, ``10MB``; a bare number is bytes.

    Raises:
      ConfigError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"expected a size such as 1MiB, 64KiB or 10MB (found {text!r:.60})")
    return int(float(match["number"]) * _SIZE_UNITS[(match["unit"] or "b").lower()])


def format_bytes(size: int) -> str:
    """The text that `parse_bytes` reads as the same size, with the largest unit that divides it."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def parse_rate(text: str) -> int:
    """``50MiB/s``: bytes a second; without ``/s`` the same.

    Raises:
      ConfigError: it is none.
    """
    try:
        return parse_bytes(text.strip().removesuffix("/s"))
    except ConfigError:
        raise ConfigError(f"expected a rate such as 50MiB/s, or 0 for none (found {text!r:.60})") from None


def format_rate(rate: int) -> str:
    """The text that `parse_rate` reads as the same rate."""
    return f"{format_bytes(rate)}/s" if rate else "0"


def parse_target(text: str) -> Target:
    """``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:/PATH``.

    Raises:
      ConfigError: it is none of these.
    """
    text = text.strip()
    expected = f"expected HOST:PORT, [IPV6]:PORT or unix:/PATH (found {text!r:.100})"
    if text.startswith("unix:"):
        return Target(path=_socket_path(text.removeprefix("unix:"), expected))
    host, port = _split_host_port(text, expected)
    if not (_is_address(host) or _HOST.fullmatch(host)) or not port:
        raise ConfigError(expected)
    return Target(host, _port(port, expected))


def parse_listen(text: str) -> ListenAt:
    """``ADDRESS:PORT``, ``auto``, ``auto:PORT``, either with ``udp:`` in front, or
    ``unix:/PATH[,mode=660][,owner=NAME][,group=NAME]``.

    Raises:
      ConfigError: it is none of these.
    """
    text = text.strip()
    expected = f"expected ADDRESS:PORT, auto:PORT, udp:ADDRESS:PORT or unix:/PATH (found {text!r:.100})"
    if text.startswith("unix:"):
        path, *rest = _OPTION.split(text.removeprefix("unix:"))
        options: dict[str, str] = {}
        for key, value in zip(rest[::2], rest[1::2], strict=True):
            if key in options:
                raise ConfigError(f"{key} stands twice behind unix:{path}")
            options[key] = value.strip()
        return unix_place(path, options, expected)
    bare = text.removeprefix("udp:")
    kind = "tcp" if bare == text else "udp"
    if bare == "auto":
        return ListenAt("udp" if kind == "udp" else "tcp", "auto", 0)
    host, port = _split_host_port(bare, expected)
    host = host.lower()
    if host not in ("auto", "localhost") and not _is_address(host):
        raise ConfigError(f"{expected}: {host!r} is no address; names are bound by the address they stand for")
    number = 0 if port == "0" else _port(port, expected)
    return ListenAt("udp" if kind == "udp" else "tcp", host, number)


def unix_place(path: str, options: Mapping[str, str], expected: str = "expected { unix = PATH }") -> ListenAt:
    """A Unix socket with ``mode``, ``owner`` and ``group``.

    Raises:
      ConfigError: another option, or a value that is none for it.
    """
    for key in options:
        if key not in _SOCKET_KEYS:
            near = difflib.get_close_matches(key.lower(), _SOCKET_KEYS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown option {key!r:.60} of a Unix socket; the nearest is {near}")
    if _OPTION.search(path):  # it could not be written as a text
        raise ConfigError(f"a socket's path holds no option (found {path!r:.100})")
    found = _socket_path(path, expected)
    mode = _MODE.fullmatch(options.get("mode", "600"))
    if mode is None:
        raise ConfigError(f"expected mode as three digits from 0 to 7, such as 660 (found {options['mode']!r:.60})")
    for key in ("owner", "group"):
        if key in options and not _ACCOUNT.fullmatch(options[key]):
            raise ConfigError(
                f"expected {key} as the name or number of a {_ACCOUNTS[key]} (found {options[key]!r:.60})"
            )
    return ListenAt(
        "unix",
        path=found,
        mode=int(mode["mode"], 8),
        owner=options.get("owner", ""),
        group=options.get("group", ""),
    )


_ACCOUNTS: Final = {"owner": "user", "group": "group"}


def format_listen(listen: ListenAt) -> str:
    """The text that `parse_listen` reads as the same place."""
    if listen.kind != "unix":
        return str(listen)
    mode = f",mode={listen.mode:03o}" if listen.mode != 0o600 else ""
    owner = f",owner={listen.owner}" if listen.owner else ""
    group = f",group={listen.group}" if listen.group else ""
    return f"{listen}{mode}{owner}{group}"


def _split_host_port(text: str, expected: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if not _is_address(inner) or ":" not in inner:
            raise ConfigError(expected)
        return inner, port
    if not colon or not host:
        raise ConfigError(expected)
    if ":" in host:
        raise ConfigError(f"{expected}: an IPv6 address stands in brackets")
    return host, port


def _port(text: str, expected: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) < 65_536 and len(text) <= 5):
        raise ConfigError(f"{expected}: the port is not between 1 and 65535")
    return int(text)


def _socket_path(path: str, expected: str) -> str:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > _MAX_SOCKET_PATH:
        raise ConfigError(f"{expected}: an absolute path of at most {_MAX_SOCKET_PATH} bytes follows unix:")
    return path


def _is_address(host: str) -> bool:
    address, percent, scope = host.partition("%")
    if percent and not _SCOPE.fullmatch(scope):  # Python takes anything there
        return False
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def parse_probe(text: str) -> Probe:
    """``none``, ``tcp``, ``tls``, or ``http GET /PATH`` (``http /PATH``, ``http``).

    Raises:
      ConfigError: it is none of these.
    """
    words = text.split()
    match words:
        case ["none"]:
            return Probe("none")
        case ["tcp"]:
            return Probe("tcp")
        case ["tls"]:
            return Probe("tls")
        case ["http"]:
            return Probe("http")
        case ["http", path] | ["http", "GET", path] if path.startswith("/"):
            return Probe("http", path=path)
    raise ConfigError(
        "expected none, tcp, tls, 'http GET /PATH', { send = TEXT, expect = TEXT } or { command = [PROGRAM, ...] }"
        f" (found {text!r:.60})"
    )


def format_probe(probe: Probe) -> str | dict[str, object]:
    """A text or table that reads as the same probe. Bytes that are no UTF-8 come out as numbers."""
    match probe.kind:
        case "http":
            return f"http GET {probe.path}"
        case "exchange":
            return {name: _bytes_value(data) for name in ("send", "expect") if (data := getattr(probe, name))}
        case "command":
            return {"command": list(probe.command)}
        case kind:
            return kind


def _bytes_value(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def check_pattern(text: str) -> str:
    """A pattern of a policy in one form: a name, ``*``, ``*.SUFFIX``, an address or a network, and its ports; or
    ``unix:/PATH``, which may end in ``*``.

    Raises:
      ConfigError: it is none.
    """
    text = text.strip()
    expected = (
        f"expected HOST:PORT, where HOST may be *, *.SUFFIX or a network, and PORT * or A-B (found {text!r:.100})"
    )
    if text.startswith("unix:/"):
        return text
    host, colon, ports = text.lower().rpartition(":")
    match = _PORTS.fullmatch(ports)
    if not colon or match is None:
        raise ConfigError(expected)
    low, high = int(match["low"] or 1), int(match["high"] or match["low"] or 65_535)
    if not 0 < low <= high < 65_536:
        raise ConfigError(f"{expected}: ports are between 1 and 65535, the lower one first")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    if is_bracketed is not (":" in host):
        raise ConfigError(f"{expected}: IPv6 stands in brackets, and nothing else does")
    if host == "*" or _HOST.fullmatch(host.removeprefix("*.")):
        check_pattern_name(host)
        return f"{host}:{ports}"
    try:
        ipaddress.ip_network(host)
    except ValueError as error:
        raise ConfigError(f"{expected}: {error}") from None
    return f"[{host}]:{ports}" if is_bracketed else f"{host}:{ports}"


def check_pattern_name(host: str) -> None:
    """Refuse a pattern's name that consists of numbers, and is no address as people write it.

    Whoever dials takes ``127.1``, ``2130706433`` and ``0x7f.1`` as 127.0.0.1 (inet_aton(3)). As a name it would match
    nothing but these very letters, and a list that forbids it would let the machine be reached by another spelling.

    Args:
      host: in small letters, without port; ``*`` and addresses pass.

    Raises:
      ConfigError: with the address that is probably meant.
    """
    numbers = host.removeprefix("*.").rstrip(".")
    if not _NUMBERS.fullmatch(numbers) or _is_address(host):
        return
    if host.startswith("*."):
        raise ConfigError(
            f"{host!r} stands for names, and no name ends in numbers alone; write a network, such as 10.0.0.0/8"
        )
    meant = []
    try:
        meant.append(socket.inet_ntoa(socket.inet_aton(numbers)))
    except OSError:
        said = f"{host!r} is no address, and no name consists of numbers"
    else:
        said = f"{host!r} is no name: programs that dial it take it as {meant[0]}"
    parts = numbers.split(".")
    if len(parts) == 4 and all(part.isdigit() and len(part) < 9 and int(part) < 256 for part in parts):
        meant.append(".".join(str(int(part)) for part in parts))  # 0 in front means octal, which few people know
    advice = f"write {' or '.join(dict.fromkeys(meant))}" if meant else "write an address such as 10.2.0.8"
    raise ConfigError(f"{said}; {advice}")
