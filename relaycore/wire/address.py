"""Addresses: ``wss://HOST/$hc/ENTITY/SUFFIX?USERQUERY&sb-hc-*``, read, stripped and built.

Two forms of a path travel together. The *raw* form is the text of the request target, escapes and all; it is what a
listener gets to see. The *decoded* form is what entities and tokens are compared with.

Source: wire contract 2, 3 and 7.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, quote_plus, unquote_plus, unquote_to_bytes

from ..errors import LocalProtocolError, RemoteProtocolError
from ..vocab import Action, RendezvousId
from .limits import MAX_ENTITY_NAME_CHARS

__all__ = [
    "Address",
    "HttpTarget",
    "build_connect_url",
    "build_listen_url",
    "build_reject_url",
    "build_rendezvous",
    "connect_address",
    "decode_path",
    "entity_candidates",
    "is_hybrid_target",
    "parse_http_target",
    "parse_target",
    "request_target",
    "split_target",
    "strip_query",
]

HYBRID_PREFIX: Final = "/$hc/"

PARAMETER_PREFIX: Final = "sb-hc-"
PARAMETER_ACTION: Final = "sb-hc-action"
PARAMETER_ID: Final = "sb-hc-id"
PARAMETER_TOKEN: Final = "sb-hc-token"
PARAMETER_RENDEZVOUS: Final = "sb-hc-rid"
# Folded, because names are compared so; the SDKs write them as sb-hc-statusCode and sb-hc-statusDescription.
PARAMETER_STATUS_CODE: Final = "sb-hc-statuscode"
PARAMETER_STATUS_DESCRIPTION: Final = "sb-hc-statusdescription"

_ACTIONS: Final = {action.value: action for action in Action}
_RENDEZVOUS_ACTIONS: Final = frozenset({Action.ACCEPT, Action.REQUEST})

_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_HYBRID = re.compile(r"/(?:\$|%24)hc(?:/|$)", re.IGNORECASE)
_DECIMAL = re.compile(r"[0-9]{1,9}")

# RFC 2396 and RFC 3986 agree on what a path and a query may hold unescaped, but for brackets, which we escape.
_UNSAFE_IN_PATH = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]+")
_UNSAFE_IN_QUERY = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]+")
_SAFE_IN_PATH: Final = "-._~!$&'()*+,;=:@/"
# Java decodes the address and then splits each parameter on "=": our own values hold nothing that could become one.
_OWN_VALUE = re.compile(r"[A-Za-z0-9._~-]+")

_BASE_URL = re.compile(r"(?P<scheme>https?|wss?)://(?P<authority>[^/?#]+)/?", re.IGNORECASE)
_WEBSOCKET_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


@dataclass(frozen=True, slots=True)
class Address:
    """What a ``/$hc/`` request asks for.

    Attributes:
      action: what the client wants to do; ``CONNECT`` when it does not say.
      path: entity and suffix, percent-decoded, without slashes at its ends.
      raw_path: the same as it was sent behind ``/$hc/``.
      user_query: the query without our parameters, byte for byte and without ``?``; ``""`` if nothing is left.
      id: value of ``sb-hc-id``.
      token: value of ``sb-hc-token``, form-decoded.
      rendezvous: value of ``sb-hc-rid``, there whenever the action is ``ACCEPT`` or ``REQUEST``.
      status_code: a rejecting listener's status, as sent.
      status_description: a rejecting listener's words, form-decoded.
    """

    action: Action
    path: str
    raw_path: str
    user_query: str
    id: str | None = None
    token: str | None = field(default=None, repr=False)
    rendezvous: RendezvousId | None = field(default=None, repr=False)
    status_code: int | None = None
    status_description: str | None = None


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """What a request that is relayed as HTTP asks for.

    Attributes:
      path: entity and suffix, percent-decoded, without slashes at its ends; ``""`` names nothing.
      raw_path: the same as it was sent, without the slashes in front.
      user_query: as in ``Address``.
      id: value of ``sb-hc-id``.
      token: value of ``sb-hc-token``, form-decoded.
    """

    path: str
    raw_path: str
    user_query: str
    id: str | None
    token: str | None = field(repr=False)


def _bad_request(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, section="wire contract 2.2", http_status=400)


def split_target(target: str) -> tuple[str, str]:
    """Split a request target, in origin form or absolute form, into raw path and raw query.

    The path begins with a slash; the query comes without its ``?``.
    """
    authority = _AUTHORITY.match(target)
    path, _, query = target[authority.end() if authority else 0 :].partition("?")
    return path if path.startswith("/") else "/" + path, query


def is_hybrid_target(target: str) -> bool:
    """Return whether a request target lies under ``/$hc``, also with the dollar sign escaped (wire contract 2.1)."""
    return _HYBRID.match(split_target(target)[0]) is not None


def decode_path(raw_path: str) -> str:
    """Percent-decode a path for comparing, and drop slashes at its ends.

    Bytes that are not UTF-8 come out as ``\\xNN``: they belong to no entity, and must not break a log line either.
    """
    if "%" not in raw_path and raw_path.isascii():
        return raw_path.strip("/")
    return unquote_to_bytes(raw_path.encode("utf-8", "replace")).decode("utf-8", "backslashreplace").strip("/")


def parse_target(target: str) -> Address:
    """Read the target of a ``/$hc/`` request.

    Parameter names are compared without regard to case, and of one that comes twice the first counts.
    ``sb-hc-sas-key-name`` and ``sb-hc-sas-key`` are never acted on, only stripped.

    Args:
      target: request target for which ``is_hybrid_target`` holds.

    Raises:
      RemoteProtocolError: 400: an unknown action, a rendezvous without ``sb-hc-rid``, a status code that is no number.

    Source: wire contract 2.2 and 2.3.
    """
    path, query = split_target(target)
    prefix = _HYBRID.match(path)
    if prefix is None:
        raise _bad_request("The request target is not a hybrid connection address")
    raw_path = path[prefix.end() :]
    own, user_query = _split_query(query)
    action = _ACTIONS.get(own.get(PARAMETER_ACTION, "connect").lower())
    if action is None:
        raise _bad_request("Unknown sb-hc-action")
    rendezvous = own.get(PARAMETER_RENDEZVOUS) or None
    if action in _RENDEZVOUS_ACTIONS and rendezvous is None:
        raise _bad_request("A rendezvous address needs sb-hc-rid")
    status_code = own.get(PARAMETER_STATUS_CODE)
    if status_code is not None and _DECIMAL.fullmatch(status_code) is None:
        raise _bad_request("sb-hc-statusCode is not a number")
    return Address(
        action=action,
        path=decode_path(raw_path),
        raw_path=raw_path,
        user_query=user_query,
        id=own.get(PARAMETER_ID) or None,
        token=own.get(PARAMETER_TOKEN) or None,
        rendezvous=None if rendezvous is None else RendezvousId(rendezvous),
        status_code=None if status_code is None else int(status_code),
        status_description=own.get(PARAMETER_STATUS_DESCRIPTION),
    )


def parse_http_target(target: str) -> HttpTarget:
    """Read the target of a request that is to be relayed as HTTP.

    Nothing in it can be wrong: parameters of ours other than ``sb-hc-id`` and ``sb-hc-token`` mean nothing here and are
    stripped. Of one that comes twice the first counts.

    Args:
      target: in origin or absolute form, for which ``is_hybrid_target`` does not hold; ``*`` names no entity.

    Source: wire contract 2.1, 2.2 and 9.3.
    """
    path, query = ("", "") if target == "*" else split_target(target)
    own, user_query = _split_query(query)
    return HttpTarget(
        path=decode_path(path),
        raw_path=path.lstrip("/"),
        user_query=user_query,
        id=own.get(PARAMETER_ID) or None,
        token=own.get(PARAMETER_TOKEN) or None,
    )


def request_target(raw_path: str, user_query: str, *, raw: bool) -> str:
    """Return the ``requestTarget`` of a ``request`` message.

    Args:
      raw_path: as in ``HttpTarget``.
      user_query: as in ``HttpTarget``.
      raw: hand over the path as it was sent; otherwise ``%20`` in it becomes a blank, as the SDKs expect.

    Source: wire contract 2.4, 9.3 and 9.4.
    """
    path = raw_path if raw else raw_path.replace("%20", " ")
    return f"/{path}?{user_query}" if user_query else f"/{path}"


def _split_query(query: str) -> tuple[dict[str, str], str]:
    """Return the parameters that are meant for the relay, by their folded names, and the query without them."""
    own: dict[str, str] = {}
    users: list[str] = []
    for piece in query.split("&"):
        name, equals, value = piece.partition("=")
        folded = _unescape(name).lower()
        if equals and folded.startswith(PARAMETER_PREFIX):
            own.setdefault(folded, _unescape(value))
        else:
            users.append(piece)
    return own, "&".join(users)


def _unescape(text: str) -> str:
    return unquote_plus(text) if "%" in text or "+" in text else text


def connect_address(target: str) -> Address:
    """Read the target of a WebSocket upgrade on a plain path as what a sender under ``/$hc/`` would ask for.

    A web page that was served through the relay knows its own origin only, and no path with ``$hc``.
    """
    asked = parse_http_target(target)
    return Address(
        action=Action.CONNECT,
        path=asked.path,
        raw_path=asked.raw_path,
        user_query=asked.user_query,
        id=asked.id,
        token=asked.token,
    )


def strip_query(raw_query: str) -> str:
    """Return a query without the pieces that are meant for the relay, the others byte for byte.

    Args:
      raw_query: the query without its ``?``.

    Returns: the query without ``?``, or ``""``: then the ``?`` goes too.

    Source: wire contract 2.4.
    """
    return _split_query(raw_query)[1]


def entity_candidates(path: str) -> Iterator[tuple[str, str]]:
    """Yield each ``(entity, suffix)`` that a decoded path may mean, the longest entity first.

    Cuts are made at slashes only, and prefixes longer than an entity's name can be are left out, so the work does not
    grow with the square of a hostile path.

    Source: wire contract 3.
    """
    if 0 < len(path) <= MAX_ENTITY_NAME_CHARS:
        yield path, ""
    cut = path.rfind("/", 0, MAX_ENTITY_NAME_CHARS + 1)
    while cut > 0:
        yield path[:cut], path[cut + 1 :]
        cut = path.rfind("/", 0, cut)


def _escape(match: re.Match[str]) -> str:
    return quote(match[0], safe="", errors="replace")


def _websocket_base(base_url: str) -> str:
    match = _BASE_URL.fullmatch(base_url)
    if match is None:
        raise LocalProtocolError("a base URL is SCHEME://HOST[:PORT] with http, https, ws or wss", section="7.1")
    return f"{_WEBSOCKET_SCHEMES[match['scheme'].lower()]}://{match['authority']}"


def _own_query(action: Action, values: dict[str, str | None]) -> str:
    pieces = [f"{PARAMETER_ACTION}={action.value}"]
    for name, value in values.items():
        if value is None:
            continue
        if _OWN_VALUE.fullmatch(value) is None:
            raise LocalProtocolError(f"{name} may hold letters, digits and . _ ~ - only", section="7.1")
        pieces.append(f"{name}={value}")
    return "&".join(pieces)


def build_rendezvous(base_url: str, raw_path: str, user_query: str, action: Action, id: str, rendezvous: str) -> str:
    """Return the ``address`` of an ``accept`` or ``request`` message.

    The result is strict RFC 2396 text, because Java's parser takes nothing else: what a sender sent raw is escaped
    here, what it sent escaped stays as it is.

    Args:
      base_url: ``ws://HOST[:PORT]`` or ``wss://``; ``http`` and ``https`` are taken for them.
      raw_path: as in ``Address``.
      user_query: as in ``Address``.
      action: ``ACCEPT`` or ``REQUEST``.
      id: the tracking id.
      rendezvous: the secret part.

    Raises:
      LocalProtocolError: another base URL, or an id with characters that need escaping.

    Source: wire contract 7.1.
    """
    path = _UNSAFE_IN_PATH.sub(_escape, raw_path)
    query = _UNSAFE_IN_QUERY.sub(_escape, user_query)
    own = _own_query(action, {PARAMETER_ID: id, PARAMETER_RENDEZVOUS: rendezvous})
    return f"{_websocket_base(base_url)}{HYBRID_PREFIX}{path}?{query}{'&' if query else ''}{own}"


def build_reject_url(address: str, status_code: int, description: str) -> str:
    """Return a rendezvous address with a listener's refusal appended (wire contract 7.3)."""
    words = quote_plus(description, errors="replace")
    return f"{address}&sb-hc-statusCode={status_code}&sb-hc-statusDescription={words}"


def build_listen_url(base_url: str, path: str, *, id: str | None = None) -> str:
    """Return the URL a listener opens its control channel with. The token travels in a header, never here.

    Args:
      base_url: as in ``build_rendezvous``.
      path: the entity's name as text; it is percent-encoded here.
      id: a GUID, the listener's identity.
    """
    own = _own_query(Action.LISTEN, {PARAMETER_ID: id})
    return f"{_websocket_base(base_url)}{HYBRID_PREFIX}{_quote_path(path)}?{own}"


def build_connect_url(base_url: str, path: str, *, query: str = "", id: str | None = None) -> str:
    """Return the URL a sender connects with. The token travels in a header, never here.

    Args:
      base_url: as in ``build_rendezvous``.
      path: entity and suffix as text; it is percent-encoded here.
      query: the application's own query, already encoded, without ``?``; pieces meant for the relay are dropped.
      id: a GUID, the beginning of the tracking id.
    """
    kept = _UNSAFE_IN_QUERY.sub(_escape, strip_query(query))
    own = _own_query(Action.CONNECT, {PARAMETER_ID: id})
    return f"{_websocket_base(base_url)}{HYBRID_PREFIX}{_quote_path(path)}?{kept}{'&' if kept else ''}{own}"


def _quote_path(path: str) -> str:
    return quote(path.strip("/"), safe=_SAFE_IN_PATH, errors="replace")
