"""One connection through the relay for a local program: tried, tried again on another listener, or given up.

The relay picks a listener for each connection at random, so that a second attempt may well meet another one. Nothing of
the program's bytes has been sent before an attempt succeeds, so trying again repeats nothing (connection manager 8.6).

What is tried again: no listener at the moment (404), a listener that is busy or whose endpoint is down (502, 503, 504),
a relay that could not be reached, and with azbridge a listener that refuses the port or closes before its answer:
listeners of one hybrid connection may offer different ports (3.9). The first time that is done at once, then after
pauses. A wrong key, a missing right, an unknown hybrid connection and an untrusted certificate are final.
"""

from __future__ import annotations

import random
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ...client.connection import Connection
from ...errors import (
    AuthorizationFailed,
    ConnectionLost,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Refused,
    Rejected,
    RelayError,
    ServerBusy,
)
from ...net.linger import cut
from ...net.tasks import bounded
from ...vocab import RefusalReason
from ..access import RelayAccess
from ..azbridge.local import request_port
from ..azbridge.preamble import PortRefused
from ..config.settings import Forward, Profile
from ..relay_way import way_failed

__all__ = ["Opened", "explain", "is_passing", "open_connection"]

_PAUSES_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Before the second, third, ... attempt; the last one for all that follow. Each is drawn between half and all of it."""

_SHARE: Final = 2 / 3
"""Of the time that is left, for an attempt that is not the last: a listener whose machine has gone answers never, and
the relay notices late. 10 of the default 15 s are what a connection manager has for dialling its endpoint."""


@dataclass(frozen=True)
class Opened:
    """A connection that is ready for the program's bytes; closing it is the caller's business.

    Attributes:
      attempts: how many it took.
      seconds: what the one that succeeded took.
    """

    connection: Connection
    attempts: int
    seconds: float


async def open_connection(
    access: RelayAccess,
    forward: Forward,
    *,
    port: int = 0,
    is_udp: bool = False,
    on_attempt: Callable[[str], None] | None = None,
    on_retry: Callable[[BaseException, float], None] | None = None,
    rng: random.Random | None = None,
) -> Opened:
    """Connect, within the forward's time and number of attempts.

    Args:
      access: the relay and the token.
      port: the endpoint's, which azbridge sends where the settings name no port.
      is_udp: azbridge: ask for a forwarder of datagrams.
      on_attempt: told the tracking id of each attempt before it begins.
      on_retry: told the failure and the pause, in seconds, before each further attempt.

    Raises:
      Refused, ConnectionLost: as the last attempt; see `open_stream`.
      ConfigError: a key or token cannot be read.
    """
    retry = forward.retry
    rng = rng or random.Random()
    deadline = trio.current_time() + retry.timeout_s
    number = 0
    while True:
        number += 1
        remaining = max(deadline - trio.current_time(), 0.001)
        is_last = number >= retry.attempts
        started = trio.current_time()
        seconds = remaining if is_last else remaining * _SHARE
        tracking_id = str(uuid.uuid4())
        if on_attempt is not None:
            on_attempt(tracking_id)
        try:
            connection = await _try_once(access, forward, seconds, tracking_id, port, is_udp)
        except (RelayError, OSError) as error:
            pause = _PAUSES_S[min(number - 1, len(_PAUSES_S) - 1)] * rng.uniform(0.5, 1.0)
            if is_last or not is_passing(error) or trio.current_time() + pause >= deadline:
                raise
            if on_retry is not None:
                on_retry(error, pause)
        else:
            return Opened(connection, number, trio.current_time() - started)
        await trio.sleep(pause)


async def _try_once(
    access: RelayAccess, forward: Forward, seconds: float, tracking_id: str, port: int, is_udp: bool
) -> Connection:
    stop = trio.current_time() + seconds
    connection = await access.dial(connect_timeout=seconds, tracking_id=tracking_id)
    if forward.profile is not Profile.AZBRIDGE:
        return connection
    name = forward.port_name or f"{port}{'U' if is_udp else ''}"
    try:
        with bounded(max(stop - trio.current_time(), 0.001)):
            await request_port(connection, name, udp=is_udp)
    except BaseException:
        await cut(connection)  # noqa: ASYNC102 - shields itself; no goodbyes that delay the next attempt
        raise
    return connection


def is_passing(error: BaseException) -> bool:
    """Whether another attempt, or another listener, may do better."""
    match error:
        case AuthorizationFailed() | EndpointNotFound():
            return False
        case NoListener() | GatewayTimeout() | ServerBusy():
            return True
        case PortRefused():
            return not error.is_final
        case Rejected():
            return error.http_status >= 500
        case ConnectionLost():
            return not isinstance(error.__cause__, ssl.SSLCertVerificationError)
        case _:
            return False


# Words ---------------------------------------------------------------------------------------------------------------


def explain(error: BaseException, access: RelayAccess, forward: Forward) -> str:
    """What a failure means, in a line: what was tried, what came back, what to do (connection manager 8.11)."""
    relay = access.connection_string.base_url.partition("://")[2]
    tried = f"connecting to {forward.path} at {relay}"
    if access.proxy is not None:
        tried += f" through {access.proxy}"
    rule = f"rule {forward.key_name}" if forward.key_name else "the token"
    said = _said(error)
    match error:
        case AuthorizationFailed(reason=RefusalReason.EXPIRED_TOKEN):
            advice = "the token has expired for the relay; compare this machine's clock with the relay's"
        case AuthorizationFailed(http_status=401):
            advice = f"the relay does not take {rule}; check key_name and key of this forward"
        case AuthorizationFailed():
            advice = f"{rule} has no right to send here; use one with Send"
        case EndpointNotFound():
            advice = f"the relay knows no {forward.path}; check the path, or create it with `relaycore entity create`"
        case NoListener():
            advice = "nobody listens there, or offers what was asked for; on the other side: `relaycore hcm status`"
        case GatewayTimeout():
            advice = "no listener, or not its endpoint, answered in time; on the other side: `relaycore hcm status`"
        case ServerBusy():
            advice = (
                "the listener's endpoint is down or full, or the relay is; on the other side: `relaycore hcm status`"
            )
        case Rejected(http_status=502):
            advice = "the listener could not reach its endpoint; start that service, or check its firewall"
        case PortRefused():
            advice = "port_name of this forward and the listener's port names have to be the same"
        case Refused():
            advice = "the listener's own answer"
        case ConnectionLost() if (way := way_failed(error, relay.rstrip("/"))) is not None:
            said = way.text
            advice = f"{way.advice}; `relaycore connect doctor {forward.name}` tells more"
        case _:
            return f"{tried}: {said}"
    return f"{tried}: {said}; {advice}"


def _said(error: BaseException) -> str:
    if isinstance(error, Refused):
        return f"{error.http_status} {error.message}".strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
