"""The endpoint leg of one entry: where its connections lead at the moment, and whether that answers.

A change of targets or probes begins a new `Route`; connections that are open keep the one they were led by. Targets
come from the settings, or from the hybrid connection's own text, and then change with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import trio

from ..config.settings import METADATA, HcmConnection, Profile, Target
from ..origin import parse_origin_url
from ..target.dial import DialFailed, TargetOrder
from ..target.health import EndpointHealth, EndpointState
from ..target.policy import Policy

__all__ = ["EndpointLeg", "Route", "fixed_targets"]

_RESTART_S: Final = 10.0
"""Seconds until probes that ended through a bug of ours are begun again."""

_log = logging.getLogger("relaycore.edge")

_PASSIVE: Final = frozenset({"refused", "timeout", "unknown-name", "unreachable"})
"""Kinds of failure that are the endpoint's, and not the operator's or this machine's."""


def fixed_targets(settings: HcmConnection) -> tuple[Target, ...] | Literal["metadata"]:
    """What the settings say about where connections lead, whichever profile they have.

    Raises:
      ConfigError: the profile is ``http``, and ``http_url`` is none.
    """
    if settings.profile is Profile.HTTP:
        origin = parse_origin_url(settings.http_url)
        return (Target(origin.host, origin.port),)
    if settings.profile is Profile.AZBRIDGE and settings.ports:
        found = [target for port in settings.ports if not port.is_udp for target in port.targets]
        return tuple(dict.fromkeys(found))
    return settings.targets


@dataclass(frozen=True)
class Route:
    """Where connections lead. ``health`` is None where there is nothing to ask."""

    targets: tuple[Target, ...]
    order: TargetOrder
    health: EndpointHealth | None


class EndpointLeg:
    """Keeps a route and its health.

    Args:
      settings: of the entry.
      policy: what it forbids is not probed either.
      emit: gets ``endpoint-up``, ``endpoint-degraded``, ``endpoint-down`` and ``endpoint-changed``.
      on_change: called when the route or its state has changed.
    """

    def __init__(
        self,
        settings: HcmConnection,
        policy: Callable[[], Policy | None],
        emit: Callable[[str, str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._emit = emit
        self._on_change = on_change
        self._from_metadata: tuple[Target, ...] = ()
        self._shown_state = EndpointState.UNKNOWN
        self._has_changed = trio.Event()
        self.route = self._new_route(None)

    @property
    def is_from_metadata(self) -> bool:
        """Whether the hybrid connection's own text decides."""
        return fixed_targets(self._settings) == METADATA

    @property
    def is_missing(self) -> bool:
        """Whether the hybrid connection's own text decides, and has named no endpoint yet."""
        return not self.route.targets and self.is_from_metadata

    @property
    def state(self) -> EndpointState:
        """Unknown where nothing is asked."""
        health = self.route.health
        return EndpointState.UNKNOWN if health is None else health.state

    @property
    def shown(self) -> str:
        """The targets, for people."""
        return ", ".join(map(str, self.route.targets))

    def apply(self, settings: HcmConnection) -> None:
        """Go on with other settings. Not a checkpoint."""
        old, self._settings = self._settings, settings
        self._renew(is_other=(old.health, old.dial) != (settings.health, settings.dial))

    def note_metadata(self, target: Target | None) -> None:
        """Take what the hybrid connection's text names; None changes nothing. Not a checkpoint."""
        if target is not None:
            self._from_metadata = (target,)
            self._renew(is_other=False)

    def forget_metadata(self) -> None:
        """What was read is of no account any more. Not a checkpoint."""
        self._from_metadata = ()
        self._renew(is_other=False)

    def restart(self) -> None:
        """Ask the endpoint anew, as if nothing were known. Not a checkpoint."""
        self._renew(is_other=True)

    def note_dial(self, found: Target | DialFailed) -> None:
        """Tell how a sender's dial to the targets went: which one answered, or why none did. Not a checkpoint."""
        health = self.route.health
        if health is None:
            return
        if isinstance(found, Target):
            health.note_dial(True, target=found)
        elif found.kind in _PASSIVE:
            health.note_dial(False, found.text)

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self._has_changed = trio.Event()
            health = self.route.health
            async with trio.open_nursery() as nursery:
                if health is not None:
                    nursery.start_soon(self._probe, health)
                    nursery.start_soon(self._heed, health)
                await self._has_changed.wait()
                nursery.cancel_scope.cancel()

    async def _probe(self, health: EndpointHealth) -> None:
        while True:
            try:
                await health.run()
            except Exception as error:  # our bug; only a probe can bring an endpoint back that is down
                _log.error("! probing for %s failed, it is begun again", self._settings.name, exc_info=error)
            await trio.sleep(_RESTART_S)

    async def _heed(self, health: EndpointHealth) -> None:
        state = health.state
        while True:
            self._note_state(health)
            state = await health.wait_changed(state)

    def _note_state(self, health: EndpointHealth) -> None:
        if health.state is not self._shown_state:
            self._shown_state = health.state
            if health.state is EndpointState.UP:
                self._emit("endpoint-up", f"{self.shown} answers")
            elif health.state is not EndpointState.UNKNOWN:
                self._emit(f"endpoint-{health.state.value.lower()}", health.last_error)
        self._on_change()

    def _renew(self, *, is_other: bool) -> None:
        old = self.route
        route = self._new_route(old)
        if route.targets == old.targets and not is_other:
            return
        self.route = route
        self._shown_state = EndpointState.UNKNOWN
        self._has_changed.set()
        if route.targets != old.targets:
            where = "the relay's metadata" if self.is_from_metadata else "the settings"
            self._emit("endpoint-changed", f"new connections lead to {self.shown or 'nowhere'}, as {where} says")
        self._on_change()

    def _new_route(self, old: Route | None) -> Route:
        fixed = fixed_targets(self._settings)
        targets = self._from_metadata if isinstance(fixed, str) else fixed
        order = self._settings.dial.order
        kept = old.order if old is not None and old.order.order is order else TargetOrder(order)
        if not targets:
            return Route(targets, kept, None)
        health = EndpointHealth(
            targets,
            self._settings.health,
            dial_settings=self._settings.dial,
            policy=self._policy(),
            order_state=kept,
        )
        return Route(targets, kept, health)
