"""The connection manager as a whole: its entries, what it is told, and what it tells.

::

    async with open_hcm(settings) as manager:
        await manager.wait_settled("orders-sql")
        print(manager.status().connections[0].status)

Source: connection manager 8.2 to 8.5.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ...errors import ConfigError
from ...net.tasks import alone
from ..config.settings import HcmConnection, HcmSettings, PolicySettings, ProcessLimits
from ..events import Event, EventLog, EventStream
from ..target.policy import Policy
from ..target.throttle import TokenBucket
from .agent import Agent, SharedBuckets
from .endpoint_leg import fixed_targets
from .metadata import METADATA_INTERVAL
from .plan import Plan, UnknownConnection, make_plan
from .status import ConnectionStatus, ManagerStatus, SessionStatus, Shown, TargetCheck

__all__ = ["Manager", "open_hcm"]

_RESTART_S: Final = (1.0, 5.0, 30.0)
"""Seconds until an entry that failed through a bug of ours is begun again; the last one from then on."""

_log = logging.getLogger("relaycore.edge")


class Manager:
    """Serves the entries of its settings; see `open_hcm`, or `run`.

    Methods that are not async take effect at once or begin what takes time. Where a ``name`` is asked for, one that is
    not there raises `UnknownConnection`, which is a `ConfigError` and says which names there are.

    Args:
      metadata_interval_s: seconds between two reads of what the relay says about each hybrid connection.
    """

    def __init__(
        self,
        *,
        metadata_interval_s: float = METADATA_INTERVAL,
        rng: random.Random | None = None,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self._metadata_interval_s = metadata_interval_s
        self._rng = rng or random.Random()
        self._now_unix = now_unix
        self._since_unix = now_unix()
        self._settings = HcmSettings()
        self._policy: Policy | None = None
        self._shared_rates: SharedBuckets = (None, None)
        self._log = EventLog(now_unix=now_unix)
        self._agents: dict[str, Agent] = {}
        self._leaving: set[Agent] = set()
        self._nursery: trio.Nursery | None = None
        self._is_stopping = False
        self._stay_scope = trio.CancelScope()
        self._has_ended = trio.Event()

    # Its life --------------------------------------------------------------------------------------------------------

    async def run(
        self, settings: HcmSettings, *, task_status: trio.TaskStatus[Manager] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`; then every entry leaves the relay, drains and ends. Once for each manager.

        Nothing that happens to an entry ends it. Cancelled, it cuts everything.

        Raises:
          ConfigError: the settings do not fit together; only at the beginning.
        """
        self._check(settings)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._stay)
                self.reload(settings)
                task_status.started(self)
            self._log.emit("", "stopped", "the relay is left, and no connection is open any more")
        finally:
            self._nursery = None
            self._log.close()
            self._has_ended.set()

    async def _stay(self) -> None:
        """Keep the nursery open while there are no entries."""
        with self._stay_scope:
            await trio.sleep_forever()

    def stop(self) -> None:
        """Have every entry leave the relay, let open connections end in their drain timeouts, and end `run`."""
        if self._is_stopping or self._nursery is None:
            return
        self._is_stopping = True
        self._log.emit("", "stopping", f"{self._open()} open connections may end")
        for name in list(self._agents):
            self._let_go(name)
        self._stay_scope.cancel()

    async def wait_stopped(self) -> None:
        """Wait until `run` has ended. A checkpoint."""
        await self._has_ended.wait()

    # Settings --------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> HcmSettings:
        """Those in force, without what was removed by `remove`."""
        return dataclasses.replace(self._settings, connections=tuple(agent.settings for agent in self._agents.values()))

    def plan(self, settings: HcmSettings) -> Plan:
        """What `reload` would do. Raises as it does."""
        self._check(settings)
        return make_plan(self.settings, settings)

    def reload(self, settings: HcmSettings) -> Plan:
        """Go on with other settings: entries that are the same are not touched, changed ones serve new connections by
        their new settings, removed ones leave the relay and drain.

        Raises:
          ConfigError: the settings do not fit together; nothing has changed then, and an event says so.
        """
        try:
            if self._is_stopping:
                raise ConfigError("the connection manager is stopping")
            plan = self.plan(settings)
        except ConfigError as error:
            self.note_reload_failed(str(error))
            raise
        self._policy = _make_policy(settings.policy)
        if settings.limits != self._settings.limits:
            self._shared_rates = _make_buckets(settings.limits)
        self._settings = settings
        by_name = {connection.name: connection for connection in settings.connections}
        for name in plan.removed:
            self._log.emit(name, "removed", "it is not in the settings any more; open connections may end")
            self._let_go(name)
        for name in plan.changed:
            self._agents[name].apply(by_name[name])
        if "policy" in plan.general:
            for agent in self._agents.values():
                agent.note_policy()
        for name in plan.added:
            self._begin(by_name[name])
        # In the order of the settings, as people wrote them.
        self._agents = {name: self._agents[name] for name in by_name}
        return plan

    def note_reload_failed(self, text: str) -> None:
        """Tell that new settings could not even be read: those in force stay."""
        self._log.emit("", "reload-failed", f"the settings in force stay: {text}")

    def _check(self, settings: HcmSettings) -> None:
        make_plan(HcmSettings(), settings)
        _make_policy(settings.policy)
        for connection in settings.connections:
            fixed_targets(connection)

    def _begin(self, settings: HcmConnection) -> None:
        assert self._nursery is not None, "the manager is not running"
        agent = Agent(
            settings,
            lambda: self._policy,
            self._log,
            shared_rates=lambda: self._shared_rates,
            metadata_interval_s=self._metadata_interval_s,
            rng=self._rng,
            now_unix=self._now_unix,
        )
        self._agents[settings.name] = agent
        self._log.emit(settings.name, "added", f"serves {settings.path!r} at {settings.relay.endpoint}")
        self._nursery.start_soon(self._keep, agent)

    async def _keep(self, agent: Agent) -> None:
        """Run an entry, whatever happens to it."""
        failures = 0
        has_ended = False
        while not has_ended:
            try:
                await agent.run()
                has_ended = True
            except Exception as error:  # our bug: it costs this entry's connections, and not the others'
                _log.error("! %s failed, it is begun again", agent.name, exc_info=error)
                self._log.emit(agent.name, "failed", f"begun again after an internal error ({type(error).__name__})")
                has_ended = agent.is_stopping
                with trio.move_on_after(_RESTART_S[min(failures, len(_RESTART_S) - 1)]):
                    await agent.wait_stopping()
                failures += 1
        self._leaving.discard(agent)

    def _let_go(self, name: str) -> Agent:
        agent = self._agents.pop(name)
        self._leaving.add(agent)
        agent.stop()
        return agent

    # Commands --------------------------------------------------------------------------------------------------------

    def pause(self, name: str) -> None:
        """Leave the relay; connections that are open go on. Survives a reload that does not change the entry."""
        self._find(name).pause()

    def resume(self, name: str) -> None:
        """Listen again."""
        self._find(name).resume()

    def restart(self, name: str) -> None:
        """Register anew, read metadata and key, and ask the endpoint again; connections that are open go on."""
        self._find(name).restart()

    async def drain(self, name: str) -> None:
        """Leave the relay, wait until the open connections have ended, cut those that have not within the entry's drain
        timeout; then it is paused. `resume` calls it off. Cancelled, the drain goes on. A checkpoint.
        """
        agent = self._find(name)
        agent.begin_drain()
        await agent.wait_drained()

    async def remove(self, name: str) -> None:
        """Leave the relay, and forget the entry; its open connections drain behind that. A checkpoint.

        The settings file is the caller's: a reload that still has the entry brings it back.
        """
        self._find(name)
        self._log.emit(name, "removed", "open connections may end")
        await self._let_go(name).wait_left()

    async def test(self, name: str) -> list[TargetCheck]:
        """Dial each of an entry's targets once, and close it again. A checkpoint.

        Raises:
          DialFailed: it is not known where it leads.
        """
        return await self._find(name).check_targets()

    async def wait_settled(self, name: str) -> ConnectionStatus:
        """Wait until the first attempt to register has had an outcome, good or bad, and return the status.

        A checkpoint. Put `trio.move_on_after` around it: a relay that says nothing has as long as a handshake has.
        """
        agent = self._find(name)
        await agent.wait_settled()
        return agent.status()

    # What it tells ---------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The entries, in the order of the settings."""
        return tuple(self._agents)

    def status(self) -> ManagerStatus:
        """A snapshot of everything; entries that were removed are in it until their connections have ended."""
        agents = [*self._agents.values(), *self._leaving]
        connections = tuple(agent.status() for agent in agents)
        relays = {connection.relay for connection in connections}
        return ManagerStatus(
            host=socket.gethostname(),
            since_unix=self._since_unix,
            relay=relays.pop() if len(relays) == 1 else f"{len(relays)} relays",
            connections=connections,
        )

    def look_again(self) -> None:
        """Say that somebody watches `status`: ask relays anew, at most every five seconds, how many listen.

        The answers are in the snapshots after that. Not a checkpoint.
        """
        for agent in self._agents.values():
            agent.look_again()

    def shown(self) -> list[tuple[str, Shown]]:
        """Each entry's name and the word that `status` has for it, without a look at all its connections."""
        return [(agent.name, agent.shown) for agent in (*self._agents.values(), *self._leaving)]

    def connection_status(self, name: str) -> ConnectionStatus:
        """A snapshot of one entry."""
        return self._find(name).status()

    def sessions(self, name: str | None = None) -> list[SessionStatus]:
        """The open connections, of one entry or of all."""
        if name is not None:
            return self._find(name).sessions()
        return [session for agent in (*self._agents.values(), *self._leaving) for session in agent.sessions()]

    def events(self) -> EventStream:
        """Subscribe to what happens from now on, for ``async for``; it ends with the manager.

        Kinds: of the relay leg ``connected``, ``disconnected``, ``retrying``, ``unauthorized``, ``not-found``,
        ``withdrawn``, ``returned``; of the endpoint leg ``endpoint-up``, ``endpoint-degraded``, ``endpoint-down``,
        ``endpoint-changed``, ``metadata-failed``; of senders ``refused``, ``left``, ``lost``; of commands ``added``,
        ``changed``, ``removed``, ``paused``, ``resumed``, ``restarted``, ``draining``, ``drained``; and ``stopping``,
        ``stopped``, ``reload-failed``, ``failed``.
        """
        return self._log.subscribe()

    def recent_events(self) -> tuple[Event, ...]:
        """The last events, the oldest first."""
        return self._log.recent

    def _open(self) -> int:
        return sum(agent.status().open for agent in self._agents.values())

    def _find(self, name: str) -> Agent:
        if name not in self._agents:
            raise UnknownConnection(name, self._agents)
        return self._agents[name]


@asynccontextmanager
async def open_hcm(settings: HcmSettings, *, metadata_interval_s: float = METADATA_INTERVAL) -> AsyncIterator[Manager]:
    """Run a connection manager inside a program for as long as the ``async with`` block lasts.

    When the block ends, the entries leave the relay and drain; if it ends with an exception, everything is cut.

    Args:
      settings: what to serve.
      metadata_interval_s: as of `Manager`.

    Raises:
      ConfigError: the settings do not fit together.
    """
    manager = Manager(metadata_interval_s=metadata_interval_s)
    with alone():
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run, settings)
            yield manager
            manager.stop()


def _make_policy(settings: PolicySettings) -> Policy | None:
    policy = Policy(settings)
    return None if settings == PolicySettings() else policy


def _make_buckets(limits: ProcessLimits) -> SharedBuckets:
    burst = max(limits.burst, 1)
    return (
        TokenBucket(limits.rate_in, burst) if limits.rate_in else None,
        TokenBucket(limits.rate_out, burst) if limits.rate_out else None,
    )
