"""Status lines, reason phrases, tracking ids and close codes that the service speaks.

A refusal's reason phrase has this form, and .NET shows it to its user as it is::

    <message>. TrackingId:<guid>_G<n>, SystemTracker:sb://<namespace>/<entity path>, Timestamp:<UTC>

Source: wire contract 1 (tracking id), 12 and 13.
"""

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from ..errors import (
    AuthorizationFailed,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Refused,
    Rejected,
    ServerBusy,
)
from ..vocab import RefusalReason, TrackingId
from .limits import MAX_CLOSE_REASON_BYTES, MAX_REASON_PHRASE_CHARS

__all__ = [
    "CloseCode",
    "close_reason",
    "is_guid",
    "is_valid_close_code",
    "make_tracking_id",
    "one_line",
    "parse_reason",
    "refusal_reason_phrase",
    "refused_from_status",
    "standard_phrase",
]


class CloseCode(enum.IntEnum):
    """Close codes that may stand on the wire (RFC 6455 7.4.1 and the registry behind it)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


_REGISTERED_CODES: Final = frozenset(int(code) for code in CloseCode)


def is_valid_close_code(code: int) -> bool:
    """Return whether a peer may send this code in a Close frame (RFC 6455 7.4.2)."""
    return code in _REGISTERED_CODES or 3000 <= code <= 4999


_GUID_PATTERN: Final = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_GUID = re.compile(_GUID_PATTERN)
_CLIENT_ID = re.compile(rf"({_GUID_PATTERN})(?:_G[0-9]{{1,9}})?")


def is_guid(text: str) -> bool:
    """Return whether ``text`` is a bare GUID of 36 characters, in any hex case."""
    return _GUID.fullmatch(text) is not None


def make_tracking_id(client_id: str | None, fresh_guid: str, node: int = 0) -> TrackingId:
    """Return ``<guid>_G<n>``, with the client's GUID when it sent one.

    Args:
      client_id: value of ``sb-hc-id``; a suffix of an earlier node is replaced, anything but a GUID is passed over.
      fresh_guid: what to use instead.
      node: number of this gateway.

    Source: wire contract 7.1: Java drops an accept whose id does not begin with a GUID.
    """
    match = None if client_id is None else _CLIENT_ID.fullmatch(client_id)
    return TrackingId(f"{fresh_guid if match is None else match[1]}_G{node}")


_NOT_IN_A_REASON = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+|[^\x00-\xff]+")


def one_line(text: str) -> str:
    """Return ``text`` as a reason phrase may hold it: line ends, controls and what is not Latin-1 are left out.

    Everything else stays as it is, because a rejecting listener's words reach the sender verbatim.

    Source: wire contract 7.3.
    """
    return _NOT_IN_A_REASON.sub("", text)


def standard_phrase(status: int) -> str:
    """Return the usual reason phrase of a status, or ``""`` for one that nobody registered."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


# What follows the message is cut too when it alone would pass the limit: an entity path may be as long as a target.
_MAX_TRACKER_CHARS: Final = 400


def refusal_reason_phrase(message: str, tracking_id: str, system_tracker: str, now_unix: float) -> str:
    """Return the reason phrase of a refusal: one line, Latin-1, at most 1 000 characters.

    The message is what gives way when it is too long: .NET looks for ``TrackingId`` and appends its own if absent.

    Args:
      message: what was refused, without a full stop.
      tracking_id: shown to the peer and found in our logs.
      system_tracker: ``sb://<namespace>/<entity path>``.
      now_unix: wall clock, in seconds.
    """
    timestamp = datetime.fromtimestamp(now_unix, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    tracker = one_line(system_tracker)[:_MAX_TRACKER_CHARS]
    tail = f". TrackingId:{one_line(tracking_id)[:_MAX_TRACKER_CHARS]}, SystemTracker:{tracker}, Timestamp:{timestamp}"
    return one_line(message).strip().rstrip(".")[: MAX_REASON_PHRASE_CHARS - len(tail)] + tail


_TRACKING = re.compile(r"TrackingId:\s*([^\s,;]+)")


def parse_reason(reason: str) -> tuple[str, str]:
    """Split a reason phrase or close reason into message and tracking id.

    Without a tracking id the message is the whole text, untouched, and the id ``""``.
    """
    match = _TRACKING.search(reason)
    if match is None:
        return reason, ""
    message = reason[: match.start()].rstrip().removesuffix(".")
    return message, match[1].removesuffix(".")


_CODE_WORDS: Final = {
    "InvalidSignature": RefusalReason.INVALID_SIGNATURE,
    "ExpiredToken": RefusalReason.EXPIRED_TOKEN,
    "InvalidAudience": RefusalReason.INVALID_AUDIENCE,
    "MalformedToken": RefusalReason.MALFORMED_TOKEN,
    "MissingToken": RefusalReason.MISSING_TOKEN,
}


def refused_from_status(status: int, reason: str) -> Refused:
    """Return (not raise) what a relay's answer means to a client that wanted an upgrade.

    Args:
      status: of the answer; anything but 101.
      reason: the reason phrase. A listener's own words come out verbatim in ``message``; the tracking information of a
        refusal made by the relay is split off.

    Source: wire contract 12.
    """
    message, tracking_id = parse_reason(reason)
    match status:
        case 401:
            code = _CODE_WORDS.get(message.partition(":")[0], RefusalReason.MISSING_TOKEN)
            return AuthorizationFailed(message, http_status=status, reason=code, tracking_id=tracking_id)
        case 403:
            code = RefusalReason.RIGHT_MISSING
            return AuthorizationFailed(message, http_status=status, reason=code, tracking_id=tracking_id)
        case 404 if "endpoint does not exist" in message.lower():
            return EndpointNotFound(message, http_status=status, tracking_id=tracking_id)
        case 404:
            return NoListener(message, http_status=status, tracking_id=tracking_id)
        case 408 | 504:
            return GatewayTimeout(message, http_status=status, tracking_id=tracking_id)
        case 503:
            return ServerBusy(message, http_status=status, tracking_id=tracking_id)
        case _:
            return Rejected(reason, http_status=status, tracking_id=tracking_id)


def close_reason(text: str, tracking_id: str) -> bytes:
    """Return ``<text>. TrackingId:<id>`` as the reason of a Close, at most 123 bytes of whole UTF-8 characters.

    The text gives way when both do not fit. Without a tracking id it is the text alone.

    Source: wire contract 13; RFC 6455 5.5.
    """
    tail = f". TrackingId:{tracking_id}" if tracking_id else ""
    tail_bytes = tail.encode("utf-8", "replace")[:MAX_CLOSE_REASON_BYTES]
    room = MAX_CLOSE_REASON_BYTES - len(tail_bytes)
    head = (text.rstrip(".") if tail else text).encode("utf-8", "replace")[:room]
    return head.decode("utf-8", "ignore").encode() + tail_bytes.decode("utf-8", "ignore").encode()
