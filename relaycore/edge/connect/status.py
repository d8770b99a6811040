"""What a forwarder tells about itself, plain enough to be sent as JSON.

A sender cannot see who listens at the relay, so a forward's state says only what this side knows: whether local
programs find it, and how the last attempt to connect went.

Kinds of its events: ``listening``, ``not-listening``, ``resolved``, ``unresolved``, ``retry``, ``refused``, ``lost``,
``left``, ``added``, ``changed``, ``removed``, ``reload-failed``, ``state``, ``stopping`` and ``stopped``.
"""

from __future__ import annotations

import enum

import msgspec

from ..spent import Spent

__all__ = ["ForwardState", "ForwardStatus", "ForwarderStatus", "Plan", "Redirection"]


class ForwardState(enum.StrEnum):
    """Where a forward stands; the word in tables."""

    STARTING = "Starting"  # its listeners are being opened, or its text at the relay is being read
    LISTENING = "Listening"  # every address is open
    DEGRADED = "Degraded"  # some addresses are open; the last error tells about the others
    FAILED = "Failed"  # no address is open
    DRAINING = "Draining"  # taken out of the settings, or stopping; its connections go on


class ForwardStatus(msgspec.Struct, frozen=True):
    """One forward.

    Attributes:
      listen: addresses that are open.
      address: the forward's own address in the pool; ``""`` where it has none.
      hosts: names that lead here; from the hybrid connection's own text where the settings have none.
      names: the addresses that they lead to; without those that no address of this forward could serve.
      port: the endpoint's port as programs dial it; 0 while it is not known.
      open: connections that are joined now; ``dialling`` ones are waiting for the relay.
      accepted: connections of local programs so far; ``refused`` could not be carried to a listener, ``lost`` broke
        afterwards, ``left`` went away while they waited.
      retries: attempts after the first.
      bytes_in: from the relay to programs; ``bytes_out`` the other way; open connections included.
      handshake_s: how long the last attempt that succeeded took; None before.
      rendezvous: attempts that succeeded, and how long they took together.
      last_error: the last failure; ``""`` if nothing has gone wrong yet.
    """

    name: str
    state: ForwardState
    listen: tuple[str, ...]
    address: str
    hosts: tuple[str, ...]
    port: int
    relay: str
    path: str
    profile: str
    open: int
    dialling: int
    accepted: int
    refused: int
    lost: int
    left: int
    retries: int
    bytes_in: int
    bytes_out: int
    handshake_s: float | None
    last_error: str
    last_error_unix: float | None
    since_unix: float
    rendezvous: Spent = Spent()
    names: dict[str, str] = {}


class ForwarderStatus(msgspec.Struct, frozen=True):
    """All of them."""

    host: str
    since_unix: float
    forwards: tuple[ForwardStatus, ...]


class Redirection(msgspec.Struct, frozen=True):
    """A name and the address at which local programs reach what it means.

    Attributes:
      forward: the forward's name.
      host: the name, in small letters; ``*.suffix`` stands for all names below.
      address: IPv4; in the pool, if the forward listens there.
      port: as programs dial it; 0 while it is not known.
    """

    forward: str
    host: str
    address: str
    port: int


class Plan(msgspec.Struct, frozen=True):
    """What a reload changes.

    Attributes:
      changed: by name, the settings that differ.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: dict[str, tuple[str, ...]] = {}
    unchanged: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The plan for people, one line each; empty where nothing changes."""
        return [
            *(f"+ {name}" for name in self.added),
            *(f"- {name}: no new connections, those that are open go on" for name in self.removed),
            *(f"~ {name}: {', '.join(what)}" for name, what in self.changed.items()),
        ]
