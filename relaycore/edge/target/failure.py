"""Why an endpoint could not be reached, in the words that the sender, the log and ``status`` all get."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final, Literal, TypeAlias

__all__ = ["DialFailed", "FailureKind", "from_os_error"]

FailureKind: TypeAlias = Literal[
    "refused", "timeout", "unknown-name", "unreachable", "policy", "no-endpoint", "overloaded", "other"
]


class DialFailed(Exception):
    """A connection to an endpoint did not come about.

    Attributes:
      status: what the sender's handshake is answered with: 502 refused, reset or unreachable; 503 down or overloaded;
        504 no answer in time; 403 forbidden here; 404 no such port name.
      text: one line: what was tried, what came back, what to do (connection manager 8.11).
      kind: for programs. ``no-endpoint``: nobody has said yet where it is; ``overloaded``: a limit of ours was met.
    """

    def __init__(self, status: int, text: str, kind: FailureKind = "other") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.kind = kind


_REFUSED: Final = (502, "refused")
_UNREACHABLE: Final = (502, "unreachable")
_OVERLOADED: Final = (503, "overloaded")

_BY_ERRNO: Final[dict[int, tuple[tuple[int, FailureKind], str, str]]] = {
    errno.ECONNREFUSED: (_REFUSED, "refused the connection", "start the service, or open its firewall"),
    errno.ECONNRESET: (_REFUSED, "reset the connection", "the service, or a firewall before it, does not want it"),
    errno.ENOTCONN: (_REFUSED, "reset the connection at once", "the service, or a firewall, does not want it"),
    errno.EPIPE: (_REFUSED, "closed the connection at once", "the service does not want it"),
    errno.ETIMEDOUT: ((504, "timeout"), "does not answer", "a firewall drops the packets, or the machine is off"),
    errno.EHOSTUNREACH: (_UNREACHABLE, "cannot be reached", "the machine is off, or a router has no way to it"),
    errno.EHOSTDOWN: (_UNREACHABLE, "cannot be reached", "the machine is off"),
    errno.ENETUNREACH: (_UNREACHABLE, "cannot be reached", "this machine has no route there"),
    errno.EACCES: (_UNREACHABLE, "may not be dialled", "a local firewall or the socket's permissions forbid it"),
    errno.EPERM: (_UNREACHABLE, "may not be dialled", "a local firewall forbids it"),
    errno.ENOENT: (_UNREACHABLE, "is not there", "start the service that makes the socket"),
    errno.EMFILE: (
        _OVERLOADED,
        "was not dialled",
        "this process has no descriptor left; raise its limit (LimitNOFILE)",
    ),
    errno.ENFILE: (_OVERLOADED, "was not dialled", "this machine has no descriptor left"),
    errno.ENOBUFS: (_OVERLOADED, "was not dialled", "this machine has no memory left for sockets"),
    errno.ENOMEM: (_OVERLOADED, "was not dialled", "this machine has no memory left for sockets"),
    errno.EADDRNOTAVAIL: ((502, "other"), "was not dialled", "the source address is none of this machine's"),
}


def from_os_error(where: str, error: OSError) -> DialFailed:
    """Put a system's error into words.

    Args:
      where: what was dialled, such as ``db.corp.example (10.2.0.8) port 1433``.
      error: what came back; a `socket.gaierror` for a name that was not found.
    """
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            said, advice = "its name server does not answer", "see /etc/resolv.conf and the way to the name server"
        else:
            said, advice = "no such name", "correct the endpoint's name, or add it to DNS or the hosts file"
        return DialFailed(502, f"{where} is unknown here: {said} ({_gai_word(error)}); {advice}", "unknown-name")
    number = error.errno or 0
    word = errno.errorcode.get(number, type(error).__name__)
    if number not in _BY_ERRNO:
        meaning = os.strerror(number).lower() if number else str(error)
        return DialFailed(502, f"{where} was not reached: {meaning} ({word})", "other")
    (status, kind), said, advice = _BY_ERRNO[number]
    return DialFailed(status, f"{where} {said} ({word}); {advice}", kind)


def _gai_word(error: socket.gaierror) -> str:
    for word in ("EAI_NONAME", "EAI_AGAIN", "EAI_NODATA", "EAI_FAIL", "EAI_FAMILY", "EAI_ADDRFAMILY"):
        if error.errno == getattr(socket, word, None):
            return word
    return f"EAI {error.errno}"
