"""TCP's own keep-alive: connections with nothing to say keep their places in NATs and firewalls, and end with the peer.

A joined session may be silent for hours: a database's pool, a terminal. Then nobody sends anything that a dead machine,
a pulled cable or a NAT that has forgotten the connection would leave unanswered. The system asks in such a silence;
neither C nor Python wakes for it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio

__all__ = ["ASK_AGAIN_S", "ASK_TIMES", "SILENCE_S", "keep_alive"]

SILENCE_S: Final = 45
"""Before the system asks the peer whether it is there. NATs forget a connection after minutes."""

ASK_AGAIN_S: Final = 15
"""Between two questions that stay unanswered."""

ASK_TIMES: Final = 3
"""Unanswered questions after which the connection has failed, 90 seconds after the peer's last sign of life."""

_OPTIONS: Final = (
    ("TCP_KEEPIDLE", SILENCE_S),
    ("TCP_KEEPALIVE", SILENCE_S),  # what macOS calls it
    ("TCP_KEEPINTVL", ASK_AGAIN_S),
    ("TCP_KEEPCNT", ASK_TIMES),
)


def keep_alive(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the system ask in a silence. Not a checkpoint.

    Args:
      sock: TCP, connected or not; one that listens hands it on to what it accepts. On any other nothing happens, and
        what a system does not know, it does without.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return
    with contextlib.suppress(OSError):  # the peer has gone already, and reading will tell
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
