"""What a connection manager tells about itself: snapshots, plain enough to be sent as JSON.

A connection has two legs, and they are told apart: whether *this* process is registered at the relay, and whether the
endpoint answers. Others who listen on the same hybrid connection are counted, and change neither.

Source: connection manager 8.3.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from ..spent import Spent

__all__ = ["ConnectionStatus", "ManagerStatus", "RelayLeg", "SessionStatus", "Shown", "TargetCheck"]


class RelayLeg(enum.StrEnum):
    """How a connection stands with the relay."""

    PAUSED = "Paused"  # told to keep away
    CONNECTING = "Connecting"  # has not been registered yet
    CONNECTED = "Connected"  # a control channel of this process is up
    RECONNECTING = "Reconnecting"  # was registered; the relay is tried again
    UNAUTHORIZED = "Unauthorized"  # the relay does not take the token, or there is no key to make one
    NOT_FOUND = "NotFound"  # the relay says that there is no such hybrid connection
    WITHDRAWN = "Withdrawn"  # keeps away because the endpoint is down
    STOPPED = "Stopped"  # removed


class Shown(enum.StrEnum):
    """The one word in tables: the relay leg's, or what outweighs it."""

    PAUSED = "Paused"
    CONNECTING = "Connecting"
    CONNECTED = "Connected"
    RECONNECTING = "Reconnecting"
    UNAUTHORIZED = "Unauthorized"
    NOT_FOUND = "NotFound"
    WITHDRAWN = "Withdrawn"
    STOPPED = "Stopped"
    DEGRADED = "Degraded"  # registered, and the endpoint fails its probes, or nobody knows where it is
    DRAINING = "Draining"  # no new connections, and some that have not ended


_OF_RELAY_LEG: Final = frozenset({Shown.CONNECTING, Shown.RECONNECTING, Shown.UNAUTHORIZED, Shown.NOT_FOUND})
_OF_ENDPOINT_LEG: Final = frozenset({Shown.DEGRADED, Shown.WITHDRAWN})


class ConnectionStatus(msgspec.Struct, frozen=True):
    """One hybrid connection.

    Attributes:
      status: the word to show, a value of `Shown`.
      detail: what the word does not say, such as ``try 4 in 6 s``; often ``""``.
      relay_leg, endpoint_leg: both legs by themselves; the second is ``Unknown``, ``Up``, ``Degraded`` or ``Down``.
      relay, path: which hybrid connection; ``relay`` is ``HOST[:PORT]``.
      listeners_here: control channels of this process that are up, of ``listeners_wanted``.
      listeners_total: all listeners of the hybrid connection as of ``listeners_unix``; None if the relay never said.
      endpoint: where connections lead, ``""`` while that is not known; ``endpoint_from`` is ``settings`` or
        ``metadata``.
      health: the endpoint leg in words; ``latency_ms`` of the last probe that succeeded, None without one.
      open, queued: connections that are joined, and that wait for a place.
      bytes_in, bytes_out: to the endpoint and from it, open connections included.
      accepted: connections that were joined so far; ``lost`` of them broke, the others ended in order.
      rejected: refused connections by reason.
      limited: those of them that met a limit of the settings, by its name: ``max_open`` or ``per_sender_open``.
      since_unix: when ``status`` became what it is.
      attempts: failed attempts since the relay leg was last stable; ``next_try_unix`` is when the next one is due.
      last_error: the last thing that went wrong on either leg, ``""`` if nothing has.
      relay_error, endpoint_error: the last thing that went wrong on each; metadata that names no endpoint is of the
        second.
      created_unix, updated_unix: of the hybrid connection, as the relay says.
      dials, rendezvous: how long those took that succeeded: to the endpoint, and back to the sender.
      throttled_in_s, throttled_out_s: seconds that connections waited because of the limits' rates.
      reconnects: how often a control channel was lost, by reason: ``closed``, ``unauthorized``, ``not-found`` or
        ``lost``.
      tokens_renewed: on running channels; ``tokens_failed`` counts when there was no token to be had.
      token_expires_unix, certificate_expires_unix: of what is in use now, the earliest of several channels; the second
        is the relay's; None where that is not known.
    """

    name: str
    status: str
    detail: str
    relay_leg: str
    endpoint_leg: str
    relay: str
    path: str
    profile: str
    listeners_here: int
    listeners_wanted: int
    listeners_total: int | None
    listeners_unix: float | None
    endpoint: str
    endpoint_from: str
    health: str
    latency_ms: float | None
    open: int
    queued: int
    bytes_in: int
    bytes_out: int
    accepted: int
    lost: int
    rejected: dict[str, int]
    since_unix: float
    attempts: int
    next_try_unix: float | None
    last_error: str
    last_error_unix: float | None
    created_unix: float | None
    updated_unix: float | None
    dials: Spent = Spent()
    rendezvous: Spent = Spent()
    throttled_in_s: float = 0.0
    throttled_out_s: float = 0.0
    reconnects: dict[str, int] = {}
    tokens_renewed: int = 0
    tokens_failed: int = 0
    token_expires_unix: float | None = None
    certificate_expires_unix: float | None = None
    relay_error: str = ""
    relay_error_unix: float | None = None
    endpoint_error: str = ""
    endpoint_error_unix: float | None = None
    limited: dict[str, int] = {}

    @property
    def error_behind(self) -> tuple[str, float | None]:
        """The last error of the leg that ``status`` is about, and when it was; ``""`` and None if there was none.

        An endpoint that is down as well is not why a token is refused.
        """
        if self.status in _OF_RELAY_LEG:
            return self.relay_error, self.relay_error_unix
        if self.status in _OF_ENDPOINT_LEG:
            return self.endpoint_error, self.endpoint_error_unix
        return self.last_error, self.last_error_unix

    @property
    def hcm_status(self) -> str:
        """The vendor's word: ``Connected`` if this process listens, ``NotFound``, else ``Disconnected``."""
        if self.relay_leg in (RelayLeg.CONNECTED, RelayLeg.NOT_FOUND):
            return self.relay_leg
        return "Disconnected"

    @property
    def is_serving(self) -> bool:
        """Whether senders who come now would be led to the endpoint, as far as is known here."""
        return self.status == Shown.CONNECTED


class SessionStatus(msgspec.Struct, frozen=True):
    """One open connection.

    Attributes:
      sender: where it dialled from, as the relay says; ``""`` if it does not.
      endpoint: the target that was dialled, ``""`` while an azbridge sender has not named its port.
    """

    name: str
    tracking_id: str
    sender: str
    endpoint: str
    since_unix: float
    bytes_in: int
    bytes_out: int


class ManagerStatus(msgspec.Struct, frozen=True):
    """All connections of one process.

    Attributes:
      host: this machine's name.
      relay: the relay's host if there is only one, else how many there are.
    """

    host: str
    since_unix: float
    relay: str
    connections: tuple[ConnectionStatus, ...]


class TargetCheck(msgspec.Struct, frozen=True):
    """What dialling one target came to.

    Attributes:
      text: the address that answered, or what went wrong, in one line.
      kind: ``""``, or the kind of failure: ``refused``, ``timeout``, ``unknown-name``, ``unreachable``, ``policy``,
        ``no-endpoint``, ``overloaded`` or ``other``.
    """

    target: str
    is_up: bool
    text: str
    kind: str
    seconds: float
