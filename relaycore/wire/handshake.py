"""The WebSocket handshake, and what happens to header fields that cross the relay.

Source: RFC 6455 4; wire contract 4, 10 and 12.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import LocalProtocolError, RemoteProtocolError
from .http1 import Headers, RequestHead, ResponseHead, is_token, is_value, split_list
from .status import refused_from_status

__all__ = [
    "UpgradeRequest",
    "accept_key",
    "build_101",
    "check_101",
    "check_upgrade",
    "connect_headers",
    "new_key",
    "refusal_headers",
    "request_headers",
    "response_headers",
]

_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_VERSION: Final = "13"


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What a client's handshake asks for.

    Attributes:
      key: ``Sec-WebSocket-Key``, checked.
      version: always ``"13"``.
      protocols: the subprotocols offered, in the client's order.
    """

    key: str
    version: str
    protocols: tuple[str, ...]


def accept_key(key: str) -> str:
    """Return the ``Sec-WebSocket-Accept`` that answers a ``Sec-WebSocket-Key`` (RFC 6455 4.2.2)."""
    digest = hashlib.sha1(key.encode("latin-1") + _MAGIC, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def new_key(random16: bytes) -> str:
    """Return a ``Sec-WebSocket-Key`` made of 16 random bytes.

    Raises:
      LocalProtocolError: another number of bytes.
    """
    if len(random16) != _KEY_BYTES:
        raise LocalProtocolError("a Sec-WebSocket-Key is made of 16 bytes", section="RFC 6455 4.1")
    return base64.b64encode(random16).decode("ascii")


def _refuse(message: str, section: str, http_status: int = 400) -> RemoteProtocolError:
    return RemoteProtocolError(message, section=section, http_status=http_status)


def refusal_headers(http_status: int) -> list[tuple[str, str]]:
    """Return the headers of a refusal before the upgrade: no body, no further request (wire contract 4)."""
    headers = [("Content-Length", "0"), ("Connection", "close")]
    if http_status == 426:
        # RFC 6455 4.4 wants the version named, RFC 9110 15.5.22 the protocol.
        headers += [("Upgrade", "websocket"), ("Sec-WebSocket-Version", _VERSION)]
    return headers


def check_upgrade(head: RequestHead) -> UpgradeRequest:
    """Read a client's handshake. Extension offers, and header fields nobody asked for, are of no interest.

    Raises:
      RemoteProtocolError: 426 when it is no upgrade to WebSocket or of another version than 13; 400 when the handshake
        is malformed. ``refusal_headers`` has what belongs into the answer.

    Source: RFC 6455 4.2.1; wire contract 4.
    """
    if not head.is_upgrade:
        raise _refuse("A WebSocket upgrade is needed here", "RFC 6455 4.2.1", 426)
    if head.has_body:
        raise _refuse("A handshake has no body", "RFC 6455 4.2.1")
    versions = head.headers.get_all("Sec-WebSocket-Version")
    if versions != [_VERSION]:
        raise _refuse("Sec-WebSocket-Version must be 13", "RFC 6455 4.4", 426)
    keys = head.headers.get_all("Sec-WebSocket-Key")
    if len(keys) != 1 or not _is_key(keys[0]):
        raise _refuse("Sec-WebSocket-Key must be one Base64 text of 16 bytes", "RFC 6455 4.2.1")
    protocols = tuple(head.headers.members("Sec-WebSocket-Protocol"))
    if len(set(protocols)) != len(protocols) or not all(map(is_token, protocols)):
        raise _refuse("Sec-WebSocket-Protocol must list different tokens", "RFC 6455 4.1")
    return UpgradeRequest(keys[0], _VERSION, protocols)


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return False


def build_101(key: str, *, protocol: str | None) -> bytes:
    """Return the answer that opens a WebSocket.

    It holds these fields once each and nothing else: one .NET code path throws on content fields, and no client may be
    told of an extension.

    Args:
      key: the client's ``Sec-WebSocket-Key``.
      protocol: one of the client's own offers, or None.

    Source: wire contract 4.
    """
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n"
    )
    if protocol is not None:
        if not is_token(protocol):
            raise LocalProtocolError("a subprotocol is a token", section="RFC 6455 4.2.2")
        answer += f"Sec-WebSocket-Protocol: {protocol}\r\n"
    return (answer + "\r\n").encode("ascii")


def check_101(head: ResponseHead, key: str, offered: Sequence[str]) -> str | None:
    """Read a relay's answer to a handshake of ours.

    Args:
      head: the answer.
      key: the ``Sec-WebSocket-Key`` that was sent.
      offered: the subprotocols that were offered. Extensions never are.

    Returns: the subprotocol that was chosen, or None.

    Raises:
      Refused: any other status than 101; the subclass follows ``refused_from_status``, with the words verbatim.
      RemoteProtocolError: a 101 that does not answer this handshake.

    Source: RFC 6455 4.1; wire contract 12.
    """
    if head.status != 101:
        raise refused_from_status(head.status, head.reason)
    headers = head.headers
    if [value.lower() for value in headers.members("Upgrade")] != ["websocket"]:
        raise _refuse("The answer upgrades to something else", "RFC 6455 4.1")
    if "upgrade" not in (value.lower() for value in headers.members("Connection")):
        raise _refuse("The answer does not upgrade the connection", "RFC 6455 4.1")
    if headers.get_all("Sec-WebSocket-Accept") != [accept_key(key)]:
        raise _refuse("The answer belongs to another handshake", "RFC 6455 4.1")
    if headers.members("Sec-WebSocket-Extensions"):
        raise _refuse("The answer uses an extension that was not offered", "RFC 6455 4.1")
    protocols = headers.get_all("Sec-WebSocket-Protocol")
    if not protocols:
        return None
    if len(protocols) != 1 or protocols[0] not in offered:
        raise _refuse("The answer uses a subprotocol that was not offered", "RFC 6455 4.1")
    return protocols[0]


# Header fields that cross the relay ----------------------------------------------------------------------------------


class _Fate(enum.Enum):
    """What becomes of a field: a cell of the table in wire contract 10."""

    PASS = "pass"
    DROP = "drop"
    DROP_IF_CREDENTIAL = "drop if credential"
    ANNOTATE = "annotate"


class _Column(enum.IntEnum):
    CONNECT = 0  # sender -> listener, connectHeaders
    REQUEST = 1  # sender -> listener, requestHeaders
    RESPONSE = 2  # listener -> sender, responseHeaders


def _rows(names: str, connect: _Fate, request: _Fate, response: _Fate) -> dict[str, tuple[_Fate, _Fate, _Fate]]:
    return {name.lower(): (connect, request, response) for name in names.split()}


_P, _D, _C, _A = _Fate.PASS, _Fate.DROP, _Fate.DROP_IF_CREDENTIAL, _Fate.ANNOTATE

# A name that is not here passes. WebSocket fields mean nothing in a relayed request or a listener's answer, so those
# dashes of the contract's table pass as well. What frames a body is recomputed on each side of the relay.
_FATES: Final = {
    **_rows("ServiceBusAuthorization", _D, _D, _D),
    **_rows("Authorization", _C, _C, _P),
    **_rows("Host", _P, _P, _D),
    **_rows("Connection Upgrade", _P, _D, _D),
    **_rows("Content-Length Transfer-Encoding TE Trailer Close Keep-Alive Proxy-Connection", _P, _D, _D),
    **_rows("Via", _A, _A, _A),
    **_rows("Expect", _P, _D, _P),
    **_rows("Microsoft-Relay-AllowedListeners Microsoft-Relay-DisallowedListeners", _D, _D, _P),
}


def _nominated(connection: Iterable[str]) -> frozenset[str]:
    """Return the folded names that ``Connection`` makes hop-by-hop (RFC 9110 7.6.1).

    ``Host`` and ``Via`` are not its to take away: a listener counts on the one, and loops are seen by the other.
    """
    named = (member.lower() for value in connection for member in split_list(value))
    return frozenset(named) - {"host", "via"}


def _annotated(via: Iterable[str], via_host: str | None) -> str:
    """Return one ``Via`` with us at its end, in a form that .NET can parse: ``1.1 host[:port]``."""
    own = [] if via_host is None else [f"1.1 {via_host}"]
    return ", ".join([*filter(None, via), *own])


def _to_listener(
    headers: Headers, column: _Column, credential_header: str | None, via_host: str | None
) -> dict[str, str]:
    is_credential = (credential_header or "").lower() == "authorization"
    # A handshake keeps its Connection, and so what that names.
    nominated = _nominated(headers.get_all("Connection")) if column is _Column.REQUEST else frozenset()
    passed: dict[str, str] = {}
    seen: set[str] = set()
    for name, _ in headers:
        folded = name.lower()
        if folded in seen:
            continue
        seen.add(folded)
        fates = _FATES.get(folded)
        fate = _Fate.PASS if fates is None else fates[column]
        if fate is _Fate.DROP or folded in nominated or (fate is _Fate.DROP_IF_CREDENTIAL and is_credential):
            continue
        is_via = fate is _Fate.ANNOTATE
        passed[name] = _annotated(headers.get_all(name), via_host) if is_via else headers.joined(name) or ""
    if via_host is not None and "via" not in seen:
        passed["Via"] = _annotated([], via_host)
    return passed


def connect_headers(headers: Headers, *, credential_header: str | None, via_host: str | None) -> dict[str, str]:
    """Return what a listener sees of a sender's handshake, as ``connectHeaders``.

    Names keep the spelling of their first line, because Java looks them up by exact case; repeated fields are joined.

    Args:
      headers: of the sender's upgrade request.
      credential_header: where the credential was; ``Authorization`` is taken out only when it was there.
      via_host: ``host[:port]`` to annotate ``Via`` with, or None to leave it alone.

    Source: wire contract 10, first column.
    """
    return _to_listener(headers, _Column.CONNECT, credential_header, via_host)


def request_headers(headers: Headers, *, credential_header: str | None, via_host: str | None) -> dict[str, str]:
    """Return what a listener sees of an HTTP request, as ``requestHeaders``; arguments as in ``connect_headers``.

    Fields that ``Connection`` names are for the relay alone and go too.

    Source: wire contract 10, second column; RFC 9110 7.6.1.
    """
    return _to_listener(headers, _Column.REQUEST, credential_header, via_host)


def response_headers(headers: Mapping[str, str | Iterable[str]], *, via_host: str | None) -> list[tuple[str, str]]:
    """Return the header lines that a sender sees of a listener's ``responseHeaders``.

    A field that could not stand on the wire (line ends, NUL, characters outside Latin-1, a name that is no token) is
    dropped alone, and fields that ``Connection`` names go with it. Of a value given as several strings only
    ``Set-Cookie`` becomes several lines.

    Args:
      headers: as they came in the message.
      via_host: as in ``connect_headers``.

    Source: wire contract 10, third column; RFC 9110 7.6.1.
    """
    fields = [
        (name, name.lower(), [given] if isinstance(given, str) else list(given)) for name, given in headers.items()
    ]
    nominated = _nominated(value for _, folded, values in fields if folded == "connection" for value in values)
    lines: list[tuple[str, str]] = []
    via: list[str] = []
    for name, folded, values in fields:
        fates = _FATES.get(folded)
        fate = _Fate.PASS if fates is None else fates[_Column.RESPONSE]
        if fate is _Fate.DROP or folded in nominated or not is_token(name) or not all(map(is_value, values)):
            continue
        if fate is _Fate.ANNOTATE:
            via += values
        elif folded == "set-cookie":
            lines += [(name, value) for value in values]
        else:
            lines.append((name, ", ".join(values)))
    annotated = _annotated(via, via_host)
    if annotated:
        lines.append(("Via", annotated))
    return lines
