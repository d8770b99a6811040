"""Every exception of relaycore. The class says whose fault it was, so that nobody has to read the message.

::

    RelayError
    ├── ConfigError                 the operator: a setting, a connection string, a file
    ├── ProtocolError               a rule of a protocol was broken
    │   ├── LocalProtocolError      by us: a bug, or a call in the wrong state
    │   └── RemoteProtocolError     by the peer; carries what the peer is answered with
    ├── Refused                     well-formed, and the answer is no
    │   ├── AuthorizationFailed     401, 403
    │   ├── EndpointNotFound        404: no such hybrid connection
    │   ├── NoListener              404: nobody listens there, or nobody accepted in time
    │   ├── GatewayTimeout          408, 504
    │   ├── EndpointAlreadyExists   409
    │   ├── QuotaExceeded           403 to a listener, 503 to a sender
    │   ├── ServerBusy              503, 429
    │   ├── RendezvousGone          403
    │   └── Rejected                the listener said no, in its own words
    ├── ConnectionLost              the network did it; ``__cause__`` holds the Trio error
    └── NativeError                 the C part returned a code that it never should: our bug
"""

from __future__ import annotations

from .vocab import RefusalReason

__all__ = [
    "AuthorizationFailed",
    "ConfigError",
    "ConnectionLost",
    "EndpointAlreadyExists",
    "EndpointNotFound",
    "GatewayTimeout",
    "LocalProtocolError",
    "NativeError",
    "NoListener",
    "ProtocolError",
    "QuotaExceeded",
    "Refused",
    "Rejected",
    "RelayError",
    "RemoteProtocolError",
    "RendezvousGone",
    "ServerBusy",
]


class RelayError(Exception):
    """Base of everything relaycore raises on purpose."""


class ConfigError(RelayError):
    """A setting is wrong. The message names where it stands, what was found and what was expected.

    Args:
      message: what is wrong and what to do, in one sentence or two.
      source: the file, environment variable or option it came from, or ``""``.
      key: the dotted name of the setting, or ``""``.
    """

    def __init__(self, message: str, *, source: str = "", key: str = "") -> None:
        self.source = source
        self.key = key
        where = ": ".join(part for part in (source, key) if part)
        super().__init__(f"{where}: {message}" if where else message)


class ProtocolError(RelayError):
    """A protocol rule was broken. ``section`` names the rule, such as ``RFC 6455 5.5``.

    Args:
      message: what was seen.
      section: where the rule is written.
      close_code: what a WebSocket peer is closed with.
      http_status: what an HTTP peer is answered with.
    """

    def __init__(self, message: str, *, section: str = "", close_code: int = 1002, http_status: int = 400) -> None:
        super().__init__(message)
        self.section = section
        self.close_code = close_code
        self.http_status = http_status


class LocalProtocolError(ProtocolError):
    """We asked for something illegal: a bug in the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule. The connection is of no further use."""


class Refused(RelayError):
    """Well-formed, and the answer is no.

    Raised inside the relay by a decision, and in the library when the far side answered so.

    Args:
      message: the text without tracking information, e.g. ``Endpoint does not exist: hyco``.
      http_status: status of the answer; the class has a default.
      reason: code word for logs and metrics; the class has a default.
      tracking_id: the relay's id for this refusal, as far as it is known.
      close_code: WebSocket close code, where the refusal ends an open channel.
    """

    default_status = 400
    default_reason = RefusalReason.BAD_REQUEST

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        reason: RefusalReason | None = None,
        tracking_id: str = "",
        close_code: int = 1008,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = self.default_status if http_status is None else http_status
        self.reason = self.default_reason if reason is None else reason
        self.tracking_id = tracking_id
        self.close_code = close_code


class AuthorizationFailed(Refused):
    """The token is missing, bad or expired (401), or does not carry the right that is needed (403)."""

    default_status = 401
    default_reason = RefusalReason.MISSING_TOKEN


class EndpointNotFound(Refused):
    """No hybrid connection has this path."""

    default_status = 404
    default_reason = RefusalReason.ENDPOINT_NOT_FOUND


class NoListener(Refused):
    """The hybrid connection exists, and nobody listens there or nobody took the connection in time."""

    default_status = 404
    default_reason = RefusalReason.NO_LISTENER


class GatewayTimeout(Refused):
    """An answer did not come in the time that it has (408, 504)."""

    default_status = 504
    default_reason = RefusalReason.ACCEPT_TIMEOUT


class EndpointAlreadyExists(Refused):
    """A hybrid connection of this name, or one that it would hide, is already there."""

    default_status = 409
    default_reason = RefusalReason.ENTITY_EXISTS


class QuotaExceeded(Refused):
    """A count or a rate is at its limit; the message names it."""

    default_status = 403
    default_reason = RefusalReason.LISTENER_QUOTA


class ServerBusy(Refused):
    """The relay does not take more work right now; later it may."""

    default_status = 503
    default_reason = RefusalReason.SERVER_BUSY


class RendezvousGone(Refused):
    """A rendezvous address that is unknown, used or past its deadline. The peer is not told which."""

    default_status = 403
    default_reason = RefusalReason.RENDEZVOUS_GONE


class Rejected(Refused):
    """The listener refused the connection: status and text are the listener's own."""

    default_status = 400
    default_reason = RefusalReason.REJECTED


class ConnectionLost(RelayError):
    """The network ended a connection; ``__cause__`` holds what Trio said."""


class NativeError(RelayError):
    """The C part returned a code that it never should. Ends the session that it was for."""
