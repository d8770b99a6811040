"""What it means that a relay cannot be reached, and what to do: the same words for ``hcm``, ``connect`` and the steps
of both doctors.

Source: connection manager 8.11.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

from ..errors import ConnectionLost
from ..net.proxy_dial import ProxyFailed
from ..net.tasks import leaves
from .target.failure import DialFailed, from_os_error

__all__ = ["WayFailed", "certificate_refused", "dial_failed", "proxy_failed", "way_failed"]

_HOSTNAME_MISMATCH: Final = 62  # X509_V_ERR_HOSTNAME_MISMATCH, and the next two for other kinds of names
_EXPIRED: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED

_INSTEAD: Final = {
    "start the service, or open its firewall": "start the relay, or correct its endpoint; or a firewall refuses it",
    "correct the endpoint's name, or add it to DNS or the hosts file": (
        "correct the relay's endpoint, or add the relay's name to DNS or the hosts file"
    ),
    "the service, or a firewall before it, does not want it": "the relay is just ending, or a firewall breaks it off",
}
"""Where it is the relay that was dialled, other advice helps than with an endpoint."""

_ANYTHING: Final = "is its name, port or a firewall at fault?"
_TLS: Final = "is it the relay's port? Something on the way, such as a firewall that inspects, may break TLS off"


@dataclass(frozen=True, slots=True)
class WayFailed:
    """Where the way to a relay ended.

    Attributes:
      text: what was tried, and what came back.
      advice: what to do, without a capital and a full stop.
    """

    text: str
    advice: str


def way_failed(error: BaseException, relay: str) -> WayFailed | None:
    """Explain why no connection to a relay came about.

    Args:
      relay: its ``HOST[:PORT]``, as people wrote it.

    Returns: None for what is no failure of the way, such as a relay's own no.
    """
    if isinstance(error, ProxyFailed):
        return proxy_failed(error, relay)
    if not isinstance(error, ConnectionLost | OSError):
        return None
    cause = error.__cause__
    for found in (cause, cause.__cause__ if cause is not None else None, error):
        first = next(leaves(found), found) if isinstance(found, BaseExceptionGroup) else found
        if isinstance(first, ssl.SSLCertVerificationError):
            return certificate_refused(first, relay)
        if isinstance(first, OSError) and first.errno is not None and not isinstance(first, ssl.SSLError):
            return dial_failed(from_os_error(relay, first))
    said = " ".join(str(error).split()) or type(error).__name__
    return WayFailed(said, _TLS if isinstance(cause, ssl.SSLError) else _ANYTHING)


def dial_failed(failure: DialFailed) -> WayFailed:
    """Explain why a relay could not be dialled. The failure's text begins with what was dialled."""
    text, _, advice = failure.text.rpartition("; ")
    if not text:
        text, advice = failure.text, _ANYTHING
    if not text.startswith("the name server "):
        text = f"the relay {text}"
    return WayFailed(text, _INSTEAD.get(advice, advice))


def certificate_refused(error: ssl.SSLCertVerificationError, relay: str) -> WayFailed:
    """Explain why a relay's certificate was not taken."""
    code = getattr(error, "verify_code", None)  # errors that OpenSSL did not make have none
    if code is not None and _HOSTNAME_MISMATCH <= code <= _HOSTNAME_MISMATCH + 2:
        said, advice = "is for other names", "use a name of its certificate as endpoint, or give it one with this name"
    elif code in _EXPIRED:
        said, advice = "is not valid now", "renew it; or this machine's date is wrong: see timedatectl"
    else:
        said, advice = "is not trusted here", "name its authority's PEM file: ca_file of the relay, or `add --cafile`"
    message = getattr(error, "verify_message", "")
    return WayFailed(f"the certificate of {relay} {said}{': ' if message else ''}{message}", advice)


def proxy_failed(error: ProxyFailed, relay: str) -> WayFailed:
    """Explain why a proxy did not lead to a relay."""
    direct = "or set proxy to none, if there is a direct way"
    if error.is_authentication:
        advice = "give user and password in the relay's proxy setting, as http://USER:PASSWORD@HOST:PORT"
    elif error.status is not None:
        advice = f"have the proxy allow connections to {relay}; {direct}"
    else:
        advice = f"check the proxy's address and whether it runs; {direct}"
    return WayFailed(str(error), advice)
