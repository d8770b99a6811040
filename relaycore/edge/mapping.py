"""What a forwarder rewrites in a request: its path, its ``Host``, and the fields that belong to one connection.

Everything else passes byte for byte.

Source: RFC 9110 7.6.1; wire contract 9.3, 9.4 and 10.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from ..errors import ConfigError
from ..wire.address import split_target
from ..wire.http1 import Headers, is_token, is_value
from ..wire.messages import RemoteEndpoint
from .origin import Origin

__all__ = ["ForwardSettings", "Mapped", "Mapper", "end_to_end", "is_host", "split_path"]

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}
)
"""Fields of one connection (RFC 9110 7.6.1), and the length, which is written anew."""

_SEPARATOR = re.compile(r"/|%2[fF]")
_LEADING_SEPARATORS = re.compile(r"(?:/|%2[fF])*")
_UNSENDABLE = re.compile(r"[^\x21\x22\x24-\x7e]")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+)(?::[0-9]{1,5})?")


def is_host(text: str) -> bool:
    """Return whether a text can stand in ``Host``."""
    return _HOST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How requests are passed on.

    Attributes:
      origin: where to.
      sender_scheme: ``https`` or ``http``, how senders reach the relay; for ``X-Forwarded-Proto``.
      keeps_path: leave the hybrid connection's path in front of the paths that the origin sees.
      host: what the origin gets as ``Host``; None passes the sender's.
      adds_forwarded: add ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Prefix``.
      connect_timeout: seconds until the origin has taken a connection.
      answer_timeout: seconds from a request to the head of its answer. The relay gives up long before, and does not
        tell us: this only bounds how long a silent origin keeps connections busy.
    """

    origin: Origin
    sender_scheme: str = "https"
    keeps_path: bool = False
    host: str | None = None
    adds_forwarded: bool = False
    connect_timeout: float = 10.0
    answer_timeout: float = 300.0

    def __post_init__(self) -> None:
        if self.host is not None and not is_host(self.host):
            raise ConfigError("expected HOST[:PORT]", key="host")
        for name in ("connect_timeout", "answer_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError("expected a number of seconds above 0", key=name)


def split_path(target: str, entity: str) -> tuple[str, str, str]:
    """Take the hybrid connection's path off a request target.

    The relay found the entity at the front, so its segments only have to be counted; their slashes may be escaped.

    Returns: the entity's part as it stands there, with a slash in front; the rest, which begins with one or is empty;
    and the query without ``?``.
    """
    path, query = split_target(target)
    begin = _LEADING_SEPARATORS.match(path)
    assert begin is not None
    start = position = begin.end()
    end = position
    for _ in range(entity.count("/") + 1):
        separator = _SEPARATOR.search(path, position)
        if separator is None:
            return "/" + path[start:], "", query
        end, position = separator.span()
    return "/" + path[start:end], "/" + path[position:], query


@dataclass(frozen=True, slots=True)
class Mapped:
    """A request in the words of the origin: its target and what stands in its head, ``Host`` first."""

    target: str
    fields: list[tuple[str, str]]


class Mapper:
    """Rewrites what has to be rewritten, and nothing else."""

    def __init__(self, settings: ForwardSettings, entity: str) -> None:
        self._settings = settings
        self._entity = entity

    def map(self, target: str, headers: Headers, remote: RemoteEndpoint | None, *, dropped: Iterable[str]) -> Mapped:
        """Map a request.

        Args:
          target: path with the hybrid connection in front, and query.
          headers: as the relay gave them.
          remote: where the sender is.
          dropped: lower-case names of further fields that do not pass.
        """
        settings = self._settings
        headers = Headers(end_to_end(headers))
        prefix, rest, query = split_path(target, self._entity)
        path = settings.origin.base_path + (prefix + rest if settings.keeps_path else rest) or "/"
        # What a relay has unescaped in the path (9.4: blanks) cannot stand in a request line.
        mapped = _UNSENDABLE.sub(_escape, f"{path}?{query}" if query else path)
        sender_host = headers.get("Host")
        fields = [("Host", settings.host or sender_host or settings.origin.authority)]
        replaced = {"host", *dropped}
        added: list[tuple[str, str]] = []
        if settings.adds_forwarded:
            added = [("X-Forwarded-Proto", settings.sender_scheme)]
            if sender_host is not None:
                added.append(("X-Forwarded-Host", sender_host))
            if not settings.keeps_path:
                added.append(("X-Forwarded-Prefix", _UNSENDABLE.sub(_escape, prefix)))
            if remote is not None:
                before = headers.joined("X-Forwarded-For")
                added.append(("X-Forwarded-For", f"{before}, {remote.address}" if before else remote.address))
            replaced |= {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-prefix"}
        fields += (pair for pair in headers if pair[0].lower() not in replaced)
        return Mapped(mapped, fields + added)


def end_to_end(headers: Headers) -> Iterator[tuple[str, str]]:
    """Yield the fields that are not of one connection only, and can stand on the wire."""
    nominated = {name.lower() for name in headers.members("Connection")} - {"host", "via"}
    for name, value in headers:
        folded = name.lower()
        if folded in _HOP_BY_HOP or folded in nominated or not is_token(name) or not is_value(value):
            continue
        yield name, value


def _escape(match: re.Match[str]) -> str:
    return quote(match[0], safe="", errors="replace")
