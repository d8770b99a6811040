"""What a reload would change: the settings in force beside new ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

import msgspec

from ...errors import ConfigError
from ..config.differences import changed_keys
from ..config.settings import HcmConnection, HcmSettings

__all__ = ["Plan", "UnknownConnection", "make_plan", "needs_registration"]

_OF_THE_REGISTRATION = ("relay", "path", "key_name", "key", "token", "profile", "http_url", "listeners")
"""What a listener is made of. All else counts from the next connection on, and leaves the control channels alone."""


_GENERAL: Final = ("policy", "limits", "metrics", "webhook", "control")
"""Settings that belong to no connection."""


class UnknownConnection(ConfigError):
    """No connection has this name; the message says which there are."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, 1)
        if near:
            hint = f"did you mean {near[0]!r}?"
        else:
            hint = f"there are: {', '.join(names)}" if names else "there are none yet"
        super().__init__(f"no connection is called {name!r}; {hint}")


class Plan(msgspec.Struct, frozen=True):
    """What a reload changes.

    Attributes:
      changed: by name, the keys that differ, such as ``limits.max_open``.
      general: settings that belong to no connection, such as ``policy``.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: dict[str, tuple[str, ...]] = {}
    unchanged: tuple[str, ...] = ()
    general: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether everything stays as it is."""
        return not (self.added or self.removed or self.changed or self.general)

    def lines(self) -> list[str]:
        """The plan for people, one line each; empty where nothing changes."""
        return [
            *(f"+ {name}" for name in self.added),
            *(f"- {name}: no new connections, those that are open may end" for name in self.removed),
            *(f"~ {name}: {', '.join(what)}" for name, what in self.changed.items()),
            *(f"~ {what}" for what in self.general),
        ]


def make_plan(old: HcmSettings, new: HcmSettings) -> Plan:
    """Compare.

    Raises:
      ConfigError: two new connections have the same name.
    """
    before = {connection.name: connection for connection in old.connections}
    after: dict[str, HcmConnection] = {}
    for connection in new.connections:
        if connection.name in after:
            raise ConfigError(f"two connections are called {connection.name!r}", key="hcm.connection.name")
        after[connection.name] = connection
    both = [name for name in after if name in before]
    changed = {name: changed_keys(before[name], after[name]) for name in both}
    return Plan(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed={name: what for name, what in changed.items() if what},
        unchanged=tuple(name for name, what in changed.items() if not what),
        general=tuple(what for what in _GENERAL if getattr(old, what) != getattr(new, what)),
    )


def needs_registration(old: HcmConnection, new: HcmConnection) -> bool:
    """Whether a change means to leave the relay and to register anew."""
    return any(getattr(old, name) != getattr(new, name) for name in _OF_THE_REGISTRATION)
