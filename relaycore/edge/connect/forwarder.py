"""The sender's side as one task tree: listeners for every forward, and their connections through the relay.

::

    run
    ├── one task per forward          opens its addresses, reads its text at the relay, heeds reloads
    │   └── one task per address      takes connections
    └── one task per connection       dials the relay, then joins the two

A connection belongs to the whole and not to the address that took it: it outlives a reload that takes its forward away.

Between a program and the relay both ends are sockets, and `splice` lets C carry the bytes. A program's connection that
cannot be carried is reset, so that no end of data is seen where there was none.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from ...client.connection import Connection
from ...client.splice import splice
from ...errors import ConfigError, ConnectionLost, RelayError
from ...net.linger import cut, is_reset, reset, reset_when_dropped
from ...net.session import Session
from ...net.tasks import alone
from ..access import RelayAccess
from ..azbridge.datagrams import DATAGRAM_IDLE_TIMEOUT
from ..azbridge.local import Address, DatagramForward
from ..config.differences import changed_keys
from ..config.settings import ConnectSettings, Forward, ListenAt, Profile, Target
from ..events import Event, EventLog, EventStream, log_detail
from ..spent import Spent
from .attempt import Opened, explain, open_connection
from .endpoint_text import find_target
from .layout import DEFAULT_LISTEN, Laid, Place, lay_out, matches
from .listeners import (
    Inherited,
    ListenFailed,
    LocalDatagrams,
    LocalListener,
    inherited_sockets,
    open_datagrams,
    open_local,
)
from .loopback import LoopbackAddresses
from .status import ForwarderStatus, ForwardState, ForwardStatus, Plan, Redirection

__all__ = ["AddressOpener", "Forwarder", "open_connect"]

_logger = logging.getLogger("relaycore.edge")

_FIRST_LOOK_S: Final = 5.0
"""How long a start waits for forwards whose port only the relay knows."""

_LISTEN_AGAIN_S: Final = (2.0, 5.0, 15.0, 60.0)
"""Pauses between attempts to open an address that another program has."""

_READ_AGAIN_S: Final = 60.0
"""Between two looks at a hybrid connection's own text (connection manager 6, row 8)."""

_LOOK_AT_PROGRAM_S: Final = 0.5
"""Between two looks at a program that waits for its connection: whether it has gone meanwhile."""


@dataclass
class _Entry:
    """A forward at work. Owned by the forwarder's tasks; nothing in it waits."""

    forward: Forward
    access: RelayAccess
    since_unix: float
    address: str = ""
    hosts: tuple[str, ...] = ()
    port: int = 0
    rank: int = 0
    laid: Laid = field(default_factory=Laid)
    state: ForwardState = ForwardState.STARTING
    listeners: dict[_Key, _Listening] = field(default_factory=dict)
    failed: dict[_Key, str] = field(default_factory=dict)
    has_changed: trio.Event = field(default_factory=trio.Event)
    has_settled: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    open: int = 0
    dialling: int = 0
    accepted: int = 0
    refused: int = 0
    lost: int = 0
    left: int = 0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    handshake_s: float | None = None
    rendezvous: Spent = field(default_factory=Spent)
    last_error: str = ""
    last_error_unix: float | None = None
    sessions: set[Session] = field(default_factory=set)

    def resolve(self, host: str = "", port: int = 0) -> None:
        """Take hosts and port from the settings, and what they leave open from the relay's text."""
        own = tuple(name.lower().rstrip(".") for name in self.forward.hosts)
        self.hosts = own or ((host.lower().rstrip("."),) if host else self.hosts)
        self.port = self.forward.port or port or self.port

    @property
    def needs_text(self) -> bool:
        """Whether the relay has to be asked where this leads."""
        return self.forward.asks_relay

    def wanted(self) -> dict[_Key, ListenAt]:
        """Addresses to open that are known by now."""
        found: dict[_Key, ListenAt] = {}
        for at in self.forward.listen or DEFAULT_LISTEN:
            host = self.address if at.host == "auto" else at.host
            port = at.port or self.port
            if at.kind == "unix":
                found[at.kind, f"{at.path},{at.owner},{at.group}", at.mode] = at
            elif port:
                found[at.kind, host, port] = at
        for at, address in self.laid.shared:
            found[at.kind, address, at.port or self.port] = at
        return found

    @property
    def dialled_port(self) -> int:
        """The port that programs mean: the endpoint's, or that of the only address."""
        ports = {port for kind, _, port in self.wanted() if kind != "unix"}
        return self.port or (ports.pop() if len(ports) == 1 else 0)


_Key = tuple[str, str, int]
"""Kind, host or path with its owner, and port or mode: what makes an address another one."""


_Opened = TypeVar("_Opened", covariant=True)


@dataclass
class _Attempt:
    """What was tried last for a program's connection."""

    tracking_id: str = ""

    def begin(self, tracking_id: str) -> None:
        self.tracking_id = tracking_id


@dataclass
class _Listening:
    listener: LocalListener | LocalDatagrams
    scope: trio.CancelScope
    datagrams: DatagramForward | None = None


class AddressOpener(Protocol[_Opened]):
    """How addresses are opened; `open_local` and `open_datagrams` are the usual ways."""

    def __call__(self, at: ListenAt, *, address: str, port: int) -> Awaitable[_Opened]:
        """Open one; arguments and errors as `open_local`."""


class Forwarder:
    """Carries local programs' connections to hybrid connections; see `open_connect` for use inside a program.

    Args:
      state_file: remembers the forwards' addresses; None: they last as long as this object.
      environ: for sockets that a service manager hands over.
      listens: False opens nothing; `dial` and `join` work all the same.
      open_at, open_datagrams_at: open a local address; others may open it elsewhere, as in a network namespace.

    Attributes:
      addresses: of all forwards that ever were here.
    """

    def __init__(
        self,
        *,
        state_file: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        listens: bool = True,
        open_at: AddressOpener[LocalListener] = open_local,
        open_datagrams_at: AddressOpener[LocalDatagrams] = open_datagrams,
        now_unix: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._state_file = state_file
        self._environ = environ
        self._listens = listens
        self._open_at = open_at
        self._open_datagrams_at = open_datagrams_at
        self._now_unix = now_unix
        self._rng = rng or random.Random()
        self._since_unix = now_unix()
        self._log = EventLog(now_unix=now_unix)
        self._settings = ConnectSettings()
        self._entries: dict[str, _Entry] = {}
        self._ending: list[_Entry] = []
        self._inherited = Inherited()
        self._tending: trio.Nursery | None = None
        self._sessions: trio.Nursery | None = None
        self._is_stopping = False
        self._has_stopped = trio.Event()
        self._has_drained = trio.Event()

    # Life ------------------------------------------------------------------------------------------------------------

    async def run(
        self, settings: ConnectSettings, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Forward until `stop` or cancelled. Started once every address was tried that needs no word of the relay.

        Failures of single forwards and connections end neither: they are events, and `status` tells.

        Raises:
          ConfigError: the settings cannot work: pool, certificates, proxy.
        """
        self._inherited = inherited_sockets(self._environ) if self._listens else Inherited()
        try:
            with alone():
                async with trio.open_nursery() as self._sessions, trio.open_nursery() as self._tending:
                    self._apply(settings)
                    with trio.move_on_after(_FIRST_LOOK_S):
                        for entry in list(self._entries.values()):
                            await entry.has_settled.wait()
                    self._inherited.close()
                    task_status.started()
                    await self._stay()
            self._log.emit("", "stopped", "no connection is open any more")
        finally:
            self._tending = self._sessions = None
            self._inherited.close()
            self._log.close()
            self._has_stopped.set()

    async def _stay(self) -> None:
        """Keep the nurseries open while there are no forwards."""
        await trio.sleep_forever()

    async def stop(self, drain_timeout: float) -> None:
        """Take no more connections, give those that are open some time to end, then cut them. `run` returns.

        Args:
          drain_timeout: seconds.
        """
        if self._tending is None or self._sessions is None:
            return
        if not self._is_stopping:
            self._is_stopping = True
            open_now = sum(entry.open + entry.dialling for entry in self._all())
            self._log.emit("", "stopping", f"taking no more connections; {open_now} are open")
            for entry in self._entries.values():
                self._retire(entry)
        with trio.move_on_after(drain_timeout):
            if any(entry.open or entry.dialling for entry in self._all()):
                await self._has_drained.wait()
        self._tending.cancel_scope.cancel()
        self._sessions.cancel_scope.cancel()
        await self._has_stopped.wait()

    def reload(self, settings: ConnectSettings) -> Plan:
        """Put other settings in force; forwards that are the same are not touched. Not a checkpoint.

        New connections use the new settings, open ones go on as they are, those of removed forwards too.

        Raises:
          ConfigError: the new settings cannot work; the old ones stay in force.
          RuntimeError: `run` is not running.
        """
        try:
            plan = self._apply(settings)
        except ConfigError as error:
            self.note_reload_failed(error)
            raise
        for name in plan.added:
            self._log.emit(name, "added", f"forwards to {self._entries[name].forward.path}")
        for name in plan.removed:
            self._log.emit(name, "removed", "takes no more connections; those that are open go on")
        for name, what in plan.changed.items():
            self._log.emit(name, "changed", f"{', '.join(what)}; counts for new connections")
        return plan

    def _apply(self, settings: ConnectSettings) -> Plan:
        if self._tending is None or self._is_stopping:
            raise RuntimeError("the forwarder is not running")
        # Whatever can go wrong does so before anything is changed.
        names = [forward.name for forward in settings.forwards]
        addresses = LoopbackAddresses(settings.pool, self._state_file)
        given = addresses.assign(names)
        access = {
            forward.name: RelayAccess.of(forward, now_unix=self._now_unix)
            for forward in settings.forwards
            if (entry := self._entries.get(forward.name)) is None or entry.forward != forward
        }
        if addresses.trouble:
            self._log.emit("", "state", f"{addresses.trouble}; addresses may differ after the next start")
        added: list[str] = []
        changed: dict[str, tuple[str, ...]] = {}
        unchanged: list[str] = []
        for forward in settings.forwards:
            entry = self._entries.get(forward.name)
            if entry is None:
                entry = _Entry(forward, access[forward.name], self._now_unix(), given[forward.name])
                entry.resolve()
                self._entries[forward.name] = entry
                self._tending.start_soon(self._tend, entry)
                added.append(forward.name)
                continue
            what = changed_keys(entry.forward, forward)
            if entry.address != given[forward.name]:
                what = (*what, "address")
            if not what:
                unchanged.append(forward.name)
                continue
            is_elsewhere = (entry.forward.relay, entry.forward.path) != (forward.relay, forward.path)
            entry.forward, entry.address = forward, given[forward.name]
            entry.access = access.get(forward.name, entry.access)
            if is_elsewhere:
                entry.hosts, entry.port = (), 0
            entry.resolve()
            entry.has_changed.set()
            changed[forward.name] = what
        removed = [name for name in self._entries if name not in given]
        for name in removed:
            self._retire(self._entries.pop(name))
        # In the order of the settings, which decides who has a name and port that several have.
        self._entries = {name: self._entries[name] for name in names}
        for rank, name in enumerate(given):
            self._entries[name].rank = rank
        self._lay_out()
        self._settings = settings
        return Plan(tuple(added), tuple(removed), changed, tuple(unchanged))

    def _lay_out(self, resolved: _Entry | None = None) -> None:
        """Let names lead where they should by now, and listeners follow them; those of `resolved` do so anyway."""
        places = [Place(one.forward, one.hosts, one.port, one.address, one.rank) for one in self._entries.values()]
        for name, laid in lay_out(places).items():
            entry = self._entries[name]
            if laid.shared != entry.laid.shared and entry is not resolved:
                entry.has_changed.set()
            entry.laid = laid

    def _retire(self, entry: _Entry) -> None:
        entry.scope.cancel()
        entry.state = ForwardState.DRAINING
        if entry not in self._ending and (entry.open or entry.dialling):
            self._ending.append(entry)

    # What others ask -------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether `run` has begun, and not ended."""
        return self._tending is not None

    @property
    def settings(self) -> ConnectSettings:
        """The settings in force."""
        return self._settings

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The forwards in force."""
        return tuple(entry.forward for entry in self._entries.values())

    def lookup(self, host: str, port: int) -> Forward | None:
        """Which forward a program means that dials ``host`` at ``port``; None: none of ours.

        A name has to be one of the forward's, in any case, with or without a dot at its end; exact names go before
        ``*.suffix``. The forward's addresses in the pool count too.
        """
        host = host.lower().rstrip(".").strip("[]")
        found: Forward | None = None
        for entry in self._entries.values():
            if entry.dialled_port != port and not any(key[2] == port for key in entry.listeners if key[0] == "tcp"):
                continue
            if host == entry.address or host in entry.hosts or ("tcp", host, port) in entry.listeners:
                return entry.forward
            if found is None and any(matches(pattern, host) for pattern in entry.hosts):
                found = entry.forward
        return found

    def find(self, name: str) -> Forward | None:
        """The forward of that name."""
        entry = self._entries.get(name)
        return entry.forward if entry is not None else None

    def redirections(self) -> tuple[Redirection, ...]:
        """Every name that should lead to a forward on this machine, and the address it should lead to.

        Forwards that share a name share its address. None is of `dialled_hosts`, or of a forward that has nothing but
        Unix sockets.
        """
        own_ways = self.dialled_hosts()
        return tuple(
            Redirection(entry.forward.name, host, address, entry.dialled_port)
            for entry in self._entries.values()
            for host, address in entry.laid.names.items()
            if host not in own_ways
        )

    def targets(self) -> tuple[Target, ...]:
        """What `lookup` finds, for people: each name and port. With names that lead to no address here, but for
        `dialled_hosts`.
        """
        own_ways = self.dialled_hosts()
        return tuple(
            Target(host, entry.dialled_port)
            for entry in self._entries.values()
            for host in entry.hosts
            if host not in own_ways
        )

    def dialled_hosts(self) -> frozenset[str]:
        """Hosts of our relays and proxies, in small letters: names that must stay what they are.

        If one led to a forward, we would reach ourselves, each connection making the next.
        """
        found = set()
        for entry in self._entries.values():
            found.add(entry.access.connection_string.host.strip("[]").lower().rstrip("."))
            if entry.access.proxy is not None:
                found.add(entry.access.proxy.host.lower().rstrip("."))
        return frozenset(found)

    def status(self) -> ForwarderStatus:
        """A snapshot. Not a checkpoint."""
        return ForwarderStatus(socket.gethostname(), self._since_unix, tuple(map(_status, self._all())))

    def events(self) -> EventStream:
        """What happens from now on."""
        return self._log.subscribe()

    @property
    def recent_events(self) -> tuple[Event, ...]:
        """What happened lately, the oldest first."""
        return self._log.recent

    def _all(self) -> list[_Entry]:
        self._ending = [entry for entry in self._ending if entry.open or entry.dialling]
        return [*self._entries.values(), *(entry for entry in self._ending if entry not in self._entries.values())]

    def note(self, kind: str, text: str) -> None:
        """Let something that happens beside the forwards be an event."""
        self._log.emit("", kind, text)

    def note_reload_failed(self, error: ConfigError) -> None:
        """Settings could not even be read."""
        self._log.emit("", "reload-failed", f"{error}; the old settings stay in force")

    # Listening -------------------------------------------------------------------------------------------------------

    async def _tend(self, entry: _Entry) -> None:
        """One forward: its addresses, and what the relay's text says about it, until it is retired."""
        failures = 0
        next_look = 0.0
        with entry.scope:
            async with trio.open_nursery() as nursery:
                while True:
                    entry.has_changed = trio.Event()
                    if self._listens:
                        await self._open_listeners(entry, nursery)
                    failures = failures + 1 if entry.failed else 0
                    if entry.needs_text and trio.current_time() >= next_look:
                        has_news = await self._read_text(entry)
                        if entry.has_changed.is_set():
                            next_look = 0.0
                            continue
                        next_look = trio.current_time() + _READ_AGAIN_S * self._rng.uniform(0.9, 1.1)
                        if has_news is None and not entry.dialled_port:
                            # Nothing can be opened yet, so look again soon.
                            next_look = trio.current_time() + 5.0 * self._rng.uniform(0.8, 1.2)
                        if has_news:
                            continue
                    self._settle(entry)
                    wait = max(next_look - trio.current_time(), 0) if entry.needs_text else float("inf")
                    if failures:
                        wait = min(wait, _LISTEN_AGAIN_S[min(failures, len(_LISTEN_AGAIN_S)) - 1])
                    with trio.move_on_after(wait):
                        await entry.has_changed.wait()
                        next_look = 0.0

    async def _open_listeners(self, entry: _Entry, nursery: trio.Nursery) -> None:
        wanted = entry.wanted()
        for key in [key for key in entry.listeners if key not in wanted and not key[0].startswith("inherited")]:
            listening = entry.listeners.pop(key)
            listening.scope.cancel()
            listening.listener.close()
        entry.failed = {key: text for key, text in entry.failed.items() if key in wanted}
        for listener in self._inherited.take(entry.forward.name):
            self._serve(entry, ("inherited", listener.shown, 0), listener, nursery)
        for key, at in wanted.items():
            if key in entry.listeners:
                continue
            try:
                if at.kind == "udp":
                    self._serve_datagrams(entry, key, await self._open_datagrams(entry, at, key[1]), nursery)
                    entry.failed.pop(key, None)
                    continue
                listener = self._inherited.take_address(at, address=key[1], port=entry.port) or (
                    await self._open_at(at, address=key[1], port=entry.port)
                )
            except ListenFailed as error:
                if entry.failed.get(key) != str(error):
                    self._fail(entry, "not-listening", str(error))
                entry.failed[key] = str(error)
            else:
                entry.failed.pop(key, None)
                self._serve(entry, key, listener, nursery)

    async def _open_datagrams(self, entry: _Entry, at: ListenAt, address: str) -> LocalDatagrams:
        if entry.forward.profile is not Profile.AZBRIDGE:
            raise ListenFailed(
                f'cannot listen on {at}: only the azbridge profile carries datagrams; set profile = "azbridge"',
                is_port=False,
            )
        return await self._open_datagrams_at(at, address=address, port=entry.port)

    def _serve(self, entry: _Entry, key: _Key, listener: LocalListener, nursery: trio.Nursery) -> None:
        listening = _Listening(listener, trio.CancelScope())
        entry.listeners[key] = listening
        assert self._sessions is not None
        sessions = self._sessions

        async def serve() -> None:
            with listening.scope:
                await listener.serve(partial(self._take, entry), sessions)

        nursery.start_soon(serve)
        self._log.emit(entry.forward.name, "listening", f"on {listener.shown}")

    def _serve_datagrams(self, entry: _Entry, key: _Key, local: LocalDatagrams, nursery: trio.Nursery) -> None:
        refusals: list[RelayError] = []

        async def dial() -> Connection:
            entry.accepted += 1
            attempt = _Attempt()
            with self._dialling(entry):
                try:
                    opened = await self._dial(entry, attempt, is_udp=True, port=local.socket.getsockname()[1])
                except (RelayError, OSError) as error:
                    self._note_refused(entry, error, attempt)
                    refusals.append(error if isinstance(error, RelayError) else ConnectionLost(str(error)))
                    raise refusals[-1] from error
            log_detail("connect", "joined", entry.forward.name, attempt.tracking_id, is_udp=True)
            return opened.connection

        def note_failure(_: Address, error: RelayError) -> None:
            if error in refusals:
                refusals.remove(error)
            else:
                entry.lost += 1
                self._fail(entry, "lost", f"an open connection broke: {error}")

        forward = DatagramForward(
            local.socket,
            dial,
            idle_timeout=entry.forward.idle_timeout_s or DATAGRAM_IDLE_TIMEOUT,
            on_failure=note_failure,
        )
        listening = _Listening(local, trio.CancelScope(), forward)
        entry.listeners[key] = listening

        async def serve() -> None:
            try:
                with listening.scope:
                    await forward.run()
            finally:
                local.close()

        nursery.start_soon(serve)
        self._log.emit(entry.forward.name, "listening", f"on {local.shown}")

    async def _take(self, entry: _Entry, stream: trio.SocketStream) -> None:
        reset_when_dropped(stream)  # until both directions have ended
        try:
            await self._join(entry, stream)
        except Exception:  # a bug of ours must not end the other connections
            _logger.exception("a connection of %s", entry.forward.name)
            self._fail(entry, "lost", "internal error; the log has it")
            await reset(stream)

    def _settle(self, entry: _Entry) -> None:
        if not entry.failed and (entry.listeners or not self._listens):
            entry.state = ForwardState.LISTENING
        elif entry.listeners:
            entry.state = ForwardState.DEGRADED
        elif entry.failed:
            entry.state = ForwardState.FAILED
        else:
            entry.state = ForwardState.STARTING
        entry.has_settled.set()

    async def _read_text(self, entry: _Entry) -> bool | None:
        """Ask the relay where a forward leads. Returns whether that is news; None: there was no good answer, or the
        settings have changed meanwhile, which ends the asking: the answer would be about another hybrid connection.
        """
        has_changed = entry.has_changed
        before = entry.hosts, entry.port
        found: Target | Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, has_changed, nursery.cancel_scope)
            found = await find_target(entry.access, entry.forward.path)
            nursery.cancel_scope.cancel()
        if found is None or has_changed.is_set():
            return None
        if isinstance(found, Exception):
            if not entry.dialled_port or not entry.hosts:
                why = explain(found, entry.access, entry.forward) if not isinstance(found, ConfigError) else str(found)
                text = f"where it leads is not known: {why}; or name hosts and port in its settings"
                if not entry.dialled_port:
                    self._fail(entry, "unresolved", text)
                else:
                    self._log.emit(entry.forward.name, "unresolved", text)
            return None
        entry.resolve(found.host, found.port)
        if (entry.hosts, entry.port) == before:
            return False
        self._lay_out(entry)
        self._log.emit(entry.forward.name, "resolved", f"{', '.join(entry.hosts) or found} port {entry.port}")
        return True

    def _fail(self, entry: _Entry, kind: str, text: str, tracking_id: str = "") -> None:
        entry.last_error = " ".join(text.split())
        entry.last_error_unix = self._now_unix()
        self._log.emit(entry.forward.name, kind, text, tracking_id)

    # Connections -----------------------------------------------------------------------------------------------------

    async def join(
        self,
        stream: trio.abc.HalfCloseableStream,
        forward: Forward,
        *,
        early: bytes = b"",
        on_open: Callable[[], Awaitable[None]] | None = None,
        on_refused: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> None:
        """Carry a program's connection, until both directions have ended.

        Whatever goes wrong is an event and counted, and nothing but a cancellation is raised. Owns the stream; closes
        it. A checkpoint.

        Args:
          early: what was read from the program already; goes first.
          on_open: called once a listener has accepted, before any byte passes; what it raises counts as a lost program.
          on_refused: called instead, with the failure; the stream is closed afterwards, and not reset, so that an
            answer arrives.
        """
        entry = self._entries.get(forward.name)
        if entry is None:
            self._log.emit(forward.name, "refused", "there is no such forward any more")
            await reset(stream)
            return
        await self._join(entry, stream, early, on_open, on_refused)

    async def dial(self, name: str) -> Connection:
        """Connect to a forward by name, with its retries. The connection is the caller's to close.

        Raises:
          ConfigError: there is no such forward.
          Refused, ConnectionLost: as `open_stream`.
        """
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self._entries) or "none"
            raise ConfigError(f"no forward is called {name!r}; there are: {known}")
        attempt = _Attempt()
        with self._dialling(entry):
            try:
                return (await self._dial(entry, attempt)).connection
            except (RelayError, OSError) as error:
                self._note_refused(entry, error, attempt)
                raise

    async def _dial(self, entry: _Entry, attempt: _Attempt, *, is_udp: bool = False, port: int = 0) -> Opened:
        forward, access = entry.forward, entry.access

        def note_retry(error: BaseException, pause: float) -> None:
            entry.retries += 1
            when = f"in {pause:.1f} s" if pause else "at once"
            text = f"{explain(error, access, forward)}; trying again {when}"
            self._log.emit(forward.name, "retry", text, attempt.tracking_id)

        opened = await open_connection(
            access,
            forward,
            port=port or entry.dialled_port,
            is_udp=is_udp,
            on_attempt=attempt.begin,
            on_retry=note_retry,
            rng=self._rng,
        )
        entry.handshake_s = opened.seconds
        entry.rendezvous = entry.rendezvous.plus(opened.seconds)
        return opened

    async def _join(
        self,
        entry: _Entry,
        stream: trio.abc.HalfCloseableStream,
        early: bytes = b"",
        on_open: Callable[[], Awaitable[None]] | None = None,
        on_refused: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> None:
        forward = entry.forward
        entry.accepted += 1
        opened: Opened | None = None
        attempt = _Attempt()
        with self._dialling(entry):
            try:
                opened = await self._dial_for(entry, attempt, stream)
            except (RelayError, OSError) as error:
                self._note_refused(entry, error, attempt)
                await self._refuse(forward, stream, error, on_refused)
                return
            except BaseException:
                await reset(stream)  # noqa: ASYNC102 - never blocks
                raise
            if opened is not None:
                entry.open += 1
        if opened is None:
            entry.left += 1
            text = "the program went away before a listener had accepted"
            self._log.emit(forward.name, "left", text, attempt.tracking_id)
            await reset(stream)
            return
        log_detail("connect", "joined", forward.name, attempt.tracking_id)
        joined_at = trio.current_time()
        running: list[Session] = []
        early_bytes = 0

        def note_session(session: Session) -> None:
            running.append(session)
            entry.sessions.add(session)

        try:
            if on_open is not None:
                await on_open()
            if early:
                await opened.connection.send_all(early)
                early_bytes = len(early)
                entry.bytes_out += early_bytes
            await splice(
                stream,
                opened.connection,
                half_closed_timeout=forward.half_close_linger_s,
                idle_timeout=forward.idle_timeout_s,
                on_session=note_session,
            )
        except (RelayError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            entry.lost += 1
            self._fail(entry, "lost", f"an open connection broke: {error or type(error).__name__}", attempt.tracking_id)
            await reset(stream)
        finally:
            entry.open -= 1
            self._note_end()
            carried = _carried(running)
            entry.sessions.difference_update(running)
            entry.bytes_in, entry.bytes_out = entry.bytes_in + carried[0], entry.bytes_out + carried[1]
            log_detail(
                "connect",
                "ended",
                forward.name,
                attempt.tracking_id,
                bytes_in=carried[0],
                bytes_out=carried[1] + early_bytes,
                seconds=round(trio.current_time() - joined_at, 3),
            )
            await cut(opened.connection)  # noqa: ASYNC102 - shields itself

    async def _dial_for(self, entry: _Entry, attempt: _Attempt, stream: trio.abc.HalfCloseableStream) -> Opened | None:
        """As `_dial`, and gives up (None) when the program resets its connection meanwhile."""
        found: Opened | None = None
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, stream, nursery.cancel_scope)
                try:
                    found = await self._dial(entry, attempt)
                except (RelayError, OSError) as error:
                    failure = error
                nursery.cancel_scope.cancel()
        except BaseException:
            if found is not None:
                await cut(found.connection)  # noqa: ASYNC102 - shields itself
            raise
        if failure is not None:
            raise failure
        return found

    @contextmanager
    def _dialling(self, entry: _Entry) -> Iterator[None]:
        entry.dialling += 1
        try:
            yield
        finally:
            entry.dialling -= 1
            self._note_end()

    def _note_end(self) -> None:
        if self._is_stopping and not any(entry.open or entry.dialling for entry in self._all()):
            self._has_drained.set()

    def _note_refused(self, entry: _Entry, error: Exception, attempt: _Attempt) -> None:
        entry.refused += 1
        self._fail(entry, "refused", explain(error, entry.access, entry.forward), attempt.tracking_id)

    async def _refuse(
        self,
        forward: Forward,
        stream: trio.abc.HalfCloseableStream,
        error: Exception,
        on_refused: Callable[[Exception], Awaitable[None]] | None,
    ) -> None:
        if on_refused is not None:
            try:
                await on_refused(error)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                await stream.aclose()
            return
        try:
            if not forward.fail_fast and isinstance(stream, trio.SocketStream):
                await trio.lowlevel.wait_readable(stream.socket)
        finally:
            await reset(stream)  # noqa: ASYNC102 - never blocks


async def _watch(stream: trio.abc.Stream, dialling: trio.CancelScope) -> None:
    """Cancel once the program has reset its connection. A Unix socket's state cannot be asked for without reading."""
    if isinstance(stream, trio.SocketStream) and stream.socket.family == trio.socket.AF_UNIX:
        return
    while True:
        await trio.sleep(_LOOK_AT_PROGRAM_S)
        if is_reset(stream):
            dialling.cancel()
            return


def _carried(sessions: Iterable[Session]) -> tuple[int, int]:
    """Bytes to the program and from it."""
    counts = [session.statistics() for session in sessions]
    return sum(count.to_sender.payload_bytes for count in counts), sum(
        count.to_listener.payload_bytes for count in counts
    )


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _status(entry: _Entry) -> ForwardStatus:
    carried_in, carried_out = _carried(entry.sessions)
    bytes_in, bytes_out = entry.bytes_in + carried_in, entry.bytes_out + carried_out
    peers = 0
    for listening in entry.listeners.values():
        if listening.datagrams is not None:
            counts = listening.datagrams.statistics()
            peers += counts.peers
            bytes_in += counts.from_relay_bytes
            bytes_out += counts.to_relay_bytes
    return ForwardStatus(
        name=entry.forward.name,
        state=entry.state,
        listen=tuple(listening.listener.shown for listening in entry.listeners.values()),
        address=entry.address,
        hosts=entry.hosts,
        names=dict(entry.laid.names),
        port=entry.dialled_port,
        relay=entry.access.connection_string.base_url.partition("://")[2],
        path=entry.forward.path,
        profile=entry.forward.profile,
        open=entry.open + peers,
        dialling=entry.dialling,
        accepted=entry.accepted,
        refused=entry.refused,
        lost=entry.lost,
        left=entry.left,
        retries=entry.retries,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        handshake_s=entry.handshake_s,
        last_error=entry.last_error,
        last_error_unix=entry.last_error_unix,
        since_unix=entry.since_unix,
        rendezvous=entry.rendezvous,
    )


@asynccontextmanager
async def open_connect(
    settings: ConnectSettings, *, listens: bool = False, state_file: Path | None = None
) -> AsyncIterator[Forwarder]:
    """Use forwards inside a program, by name::

        async with open_connect(settings) as connect:
            stream = await connect.dial("orders-sql")

    Args:
      listens: open the local addresses too.
      state_file: see `Forwarder`.

    Raises:
      ConfigError: the settings cannot work.
    """
    forwarder = Forwarder(listens=listens, state_file=state_file)
    with alone():
        async with trio.open_nursery() as nursery:
            await nursery.start(forwarder.run, settings)
            yield forwarder
            nursery.cancel_scope.cancel()
