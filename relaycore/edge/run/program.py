"""Runs a program that reaches the names of the forwards, and waits for its end.

::

    the process of the program    enters its namespaces, hands listening sockets out, waits       `namespaces`
    the forwarder                 listens on them, or beside the program, and on the proxy port   `edge.connect`
    the name files                written before the program begins, and again when names change  `files`
    the program                   begins once all of that stands; its exit code is ours

Signals: until the program begins they end all of this, and nothing of it stays behind. Then the program has our process
group, so what a terminal sends (Ctrl-C, Ctrl-Z, a change of size) reaches it without us. What is sent to us alone is
passed on. What we ignore from the start, as under nohup, the program inherits as ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio

from ...errors import ConfigError
from ...net.tasks import alone
from ..config.settings import ConnectSettings, ListenAt, ProxyPortSettings
from ..connect.forwarder import Forwarder, open_connect
from ..connect.listeners import ListenFailed, LocalDatagrams, LocalListener, open_datagrams, open_local
from ..connect.proxy_port import serve_proxy_port
from ..connect.status import ForwardState, ForwardStatus, Redirection
from ..events import Event
from .addresses import for_run
from .environment import proxy_variables
from .files import hosts_text, resolver_text
from .modes import RunMode, modes_to_try
from .namespaces import Entrance, NoNamespaces, open_entrance
from .peers import open_for_own_user

__all__ = ["Beginning", "run_program"]

_HOSTS: Final = Path("/etc/hosts")
_RESOLVER: Final = Path("/etc/resolv.conf")

_STUB: Final = "127.0.0.53"
"""Where an isolated program finds its resolver, as systemd-resolved's is: an address that nobody takes for a server."""

_PASSED_ON: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_OF_THE_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
"""Which a terminal sends to the whole process group in front."""

_DRAIN_TIMEOUT: Final = 5.0
"""Seconds that connections may go on after the program: what it wrote last may still be on its way."""

_TAKE_TIMEOUT: Final = 1.0
"""Seconds for the connections that the kernel still holds then to be taken."""


@dataclass(frozen=True)
class Beginning:
    """How a program begins.

    Attributes:
      passed_over: modes that would have been better, and why they cannot be had.
      names: every name that leads to the relay.
      troubles: forwards that cannot be reached, and why.
    """

    mode: RunMode
    names: tuple[Redirection, ...]
    passed_over: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()

    @property
    def wildcards(self) -> tuple[str, ...]:
        """Names that stand for all below them."""
        return tuple(name.host for name in self.names if name.host.startswith("*."))


async def run_program(
    settings: ConnectSettings,
    command: Sequence[str],
    *,
    mode: RunMode | None = None,
    only_relay: bool = False,
    environ: Mapping[str, str] = os.environ,
    tell: Callable[[Beginning], None] = lambda beginning: None,
) -> int:
    """Run a program to its end, and everything that it needs around it.

    Addresses are the run's own, so that several programs, and a forwarder beside them, do not meet. Where the settings
    name fixed addresses, these are opened only inside a network of the program's own.

    Args:
      command: program and arguments; found by the ``PATH`` of `environ`.
      mode: None chooses.
      only_relay: the program must reach nothing else; excludes all modes but `RunMode.ISOLATED`.
      environ: the program's variables, before ours are added.
      tell: called once, right before the program begins.

    Returns: the program's exit code, or 128 and the number of the signal that ended it, as shells count; so, too, where
      a signal to us came before the program began, which then never does.

    Raises:
      NoNamespaces: the mode that was asked for cannot be had here.
      CannotExecute: there is no such program.
      ConfigError: no forward, or settings that cannot work.
      ListenFailed: the proxy port cannot be opened.
    """
    if not settings.forwards:
        raise ConfigError("there is no forward that a program could reach; add one with `relaycore connect add`")
    if only_relay and mode not in (None, RunMode.ISOLATED):
        raise ConfigError(f"in the mode {mode} a program reaches everything; --only-relay needs the mode isolated")
    setup = _SetUp()

    async def run_in_best_mode() -> int:
        modes = [mode] if mode else modes_to_try(ports=await _dialled_ports(settings), only_relay=only_relay)
        passed_over: list[str] = []
        for one in modes:
            try:
                return await _Run(settings, command, one, environ, tell, tuple(passed_over), setup).run()
            except NoNamespaces as error:
                if one is modes[-1]:
                    raise
                passed_over.append(f"{one}: {error.strerror}")
        raise AssertionError("the last mode returns or raises")

    return await setup.run(run_in_best_mode)


class _SetUp:
    """All that is done before the program begins: a signal ends it.

    Attributes:
      is_over: the program has begun; from here on signals are its own.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._scope = trio.CancelScope()
        self._ended_by = 0

    async def run(self, main: Callable[[], Awaitable[int]]) -> int:
        """Run `main`, which begins with the set-up. Returns: what it does, or 128 and the number of a signal."""
        heeded = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        if not heeded:
            return await main()
        code = 0
        with alone(), trio.open_signal_receiver(*heeded) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals)
                with self._scope:
                    try:
                        code = await main()
                    except OSError:
                        if not self._ended_by:  # a terminal's signal ends the process that makes namespaces, too
                            raise
                nursery.cancel_scope.cancel()
        return 128 + self._ended_by if self._ended_by else code

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if not self.is_over:
                self._ended_by = self._ended_by or number
                self._scope.cancel()


async def _dialled_ports(settings: ConnectSettings) -> list[int]:
    """The ports that programs will dial. Asks the relay for those that the settings leave to it; 0 if it is silent."""
    if all(forward.port for forward in settings.forwards):
        await trio.lowlevel.checkpoint()
        return [forward.port for forward in settings.forwards]
    async with open_connect(settings) as asked:
        return [forward.port for forward in asked.status().forwards]


@dataclass
class _Run:
    """One attempt in one mode."""

    settings: ConnectSettings
    command: Sequence[str]
    mode: RunMode
    environ: Mapping[str, str]
    tell: Callable[[Beginning], None]
    passed_over: tuple[str, ...]
    setup: _SetUp
    _is_alone: bool = False  # the program can be no other user than this one
    _sockets: list[trio.SocketListener] = field(default_factory=list)
    _troubles: list[str] = field(default_factory=list)

    async def run(self) -> int:
        async with open_entrance(self.command, self.environ) as entrance:
            with self._name_files() as files:
                if self.mode is not RunMode.ENV:
                    self._is_alone = await entrance.enter(with_network=self.mode is RunMode.ISOLATED, over=files)
                async with self._serving(entrance, files) as (forwarder, variables):
                    return await self._attend(entrance, forwarder, variables)
        raise AssertionError("nothing above is suppressed")

    @contextlib.contextmanager
    def _name_files(self) -> Iterator[dict[Path, Path]]:
        """The files that the program sees in place of the system's; with the system's content until names are known."""
        if self.mode is RunMode.ENV:
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="relaycore-run-") as directory:
            files = {_HOSTS: Path(directory, "hosts")}
            if self.mode is RunMode.ISOLATED:
                files[_RESOLVER] = Path(directory, "resolv.conf")
                files[_RESOLVER].write_text(resolver_text(_STUB))
            files[_HOSTS].write_text(_system_hosts())
            for file in files.values():
                file.chmod(0o644)  # for programs that give up their user
            yield files

    # The forwarder and what stands around it ------------------------------------------------------------------------

    @asynccontextmanager
    async def _serving(
        self, entrance: Entrance, files: Mapping[Path, Path]
    ) -> AsyncIterator[tuple[Forwarder, dict[str, str]]]:
        settings = for_run(self.settings, self.mode)
        variables = {"RELAYCORE_RUN": str(self.mode)}
        forwarder = self._forwarder(entrance)
        with alone():
            async with trio.open_nursery() as nursery:
                await nursery.start(forwarder.run, settings)
                if self.mode is RunMode.ENV:
                    variables |= await self._open_proxy_port(forwarder, nursery)
                else:
                    nursery.start_soon(_keep_hosts, forwarder, forwarder.events(), files[_HOSTS])
                    _write_hosts(forwarder, files[_HOSTS])
                if self.mode is RunMode.ISOLATED:
                    await self._open_resolver(forwarder, entrance, nursery)
                yield forwarder, variables
                nursery.cancel_scope.cancel()

    def _forwarder(self, entrance: Entrance) -> Forwarder:
        async def open_at(at: ListenAt, *, address: str, port: int) -> LocalListener:
            if self.mode is RunMode.ISOLATED and at.kind != "unix":
                listener = await _open_inside(entrance, at, address, port)
            elif self._is_alone:
                listener = await open_for_own_user(at, address=address, port=port, takes_closed=True)
            else:  # root's program may become any user
                listener = await open_local(at, address=address, port=port)
            self._sockets += listener.sockets
            return listener

        async def open_datagrams_at(at: ListenAt, *, address: str, port: int) -> LocalDatagrams:
            if self.mode is RunMode.ISOLATED:
                return await _open_datagrams_inside(entrance, at, address, port)
            return await open_datagrams(at, address=address, port=port)

        return Forwarder(
            environ={}, listens=self.mode is not RunMode.ENV, open_at=open_at, open_datagrams_at=open_datagrams_at
        )

    async def _open_resolver(self, forwarder: Forwarder, entrance: Entrance, nursery: trio.Nursery) -> None:
        """Answer the questions of programs that do not read the hosts file, and for names that it cannot say."""
        try:
            from ..connect import dns
        except ConfigError as error:  # an optional package is not installed
            self._troubles.append(f"{error}; without it there is the hosts file only")
            return

        async def open_at(at: ListenAt) -> dns.OpenedDns:
            tcp = await _open_inside(entrance, at, at.host, at.port)
            udp = await _open_datagrams_inside(entrance, at, at.host, at.port)
            return dns.OpenedDns(tcp.shown, (at.host, at.port), udp.socket, tcp)

        settings = dataclasses.replace(self.settings.dns, listen=(ListenAt("tcp", _STUB, 53),), upstream="none")
        await nursery.start(
            partial(dns.serve_dns, settings, forwarder.redirections, pool=self.settings.pool, open_at=open_at)
        )

    async def _open_proxy_port(self, forwarder: Forwarder, nursery: trio.Nursery) -> dict[str, str]:
        """Returns the variables that name it. Targets that are none of ours are dialled directly, as without us."""
        settings = ProxyPortSettings(listen=ListenAt("tcp", "127.0.0.1"), bypass=self.settings.proxy.bypass or ("*:*",))
        serve = partial(
            serve_proxy_port,
            settings,
            forwarder.lookup,
            forwarder.join,
            offered=lambda: [str(target) for target in forwarder.targets()],
            open_at=open_for_own_user,
        )
        listener = await nursery.start(serve)
        self._sockets += listener.sockets
        host, port = listener.sockets[0].socket.getsockname()
        return proxy_variables(host, port, self.environ)

    # The program ------------------------------------------------------------------------------------------------------

    async def _attend(self, entrance: Entrance, forwarder: Forwarder, variables: Mapping[str, str]) -> int:
        with trio.open_signal_receiver(*_PASSED_ON) as signals:
            troubles = (*self._troubles, *_troubles(forwarder))
            names = forwarder.redirections()
            if self.mode is not RunMode.ENV:
                names = tuple(_as_opened(names, forwarder.status().forwards))
            self.tell(Beginning(self.mode, names, self.passed_over, troubles))
            await entrance.execute(variables)
            self.setup.is_over = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, signals, entrance.process)
                code = await entrance.process.wait()
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_early, signals, nursery.cancel_scope)
                await _until_taken(self._sockets)
                await forwarder.stop(_DRAIN_TIMEOUT)
                nursery.cancel_scope.cancel()
        return code if code >= 0 else 128 - code


async def _pass_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    async for number in signals:
        if number not in _OF_THE_TERMINAL or not _is_in_front():
            process.send_signal(signal.Signals(number))


async def _end_early(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _is_in_front() -> bool:
    """Whether our process group is the one that the terminal sends its signals to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


async def _until_taken(listeners: Sequence[trio.SocketListener]) -> None:
    """Wait until no connection is left in the kernel's queues: the program may have ended right after it wrote."""
    poll = select.poll()
    for listener in listeners:
        if listener.socket.fileno() >= 0:
            poll.register(listener.socket.fileno(), select.POLLIN)
    with trio.move_on_after(_TAKE_TIMEOUT):
        while True:
            await trio.lowlevel.checkpoint()
            if not poll.poll(0):
                return
            await trio.sleep(0.001)


# Opening addresses ---------------------------------------------------------------------------------------------------


async def _open_inside(entrance: Entrance, at: ListenAt, address: str, port: int) -> LocalListener:
    host, opened = await _listen_inside(entrance, "tcp", at, address, port)
    return LocalListener(at, host, [trio.SocketListener(opened)])


async def _open_datagrams_inside(entrance: Entrance, at: ListenAt, address: str, port: int) -> LocalDatagrams:
    host, opened = await _listen_inside(entrance, "udp", at, address, port)
    return LocalDatagrams(at, f"udp:{host}", opened)


async def _listen_inside(
    entrance: Entrance, kind: Literal["tcp", "udp"], at: ListenAt, address: str, port: int
) -> tuple[str, trio.socket.SocketType]:
    host = {"auto": address, "localhost": "127.0.0.1"}.get(at.host, at.host)
    port = at.port or port
    try:
        return f"{host}:{port}", await entrance.listen(kind, host, port)
    except OSError as error:
        raise ListenFailed(f"cannot listen inside the program's network: {error.strerror}", is_port=True) from error


# Names ---------------------------------------------------------------------------------------------------------------


async def _keep_hosts(forwarder: Forwarder, events: AsyncIterator[Event], file: Path) -> None:
    """Write the names again whenever the relay says others."""
    async for event in events:
        if event.kind == "resolved":
            _write_hosts(forwarder, file)


def _write_hosts(forwarder: Forwarder, file: Path) -> None:
    _write_in_place(file, hosts_text(_system_hosts(), _addresses(forwarder)))


def _addresses(forwarder: Forwarder) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in forwarder.redirections():
        if not one.host.startswith("*."):
            found.setdefault(one.host, one.address)
    return found


def _as_opened(names: Iterable[Redirection], forwards: Iterable[ForwardStatus]) -> Iterator[Redirection]:
    """Each name with the endpoint's port; where that could not be opened, with those that were."""
    opened = {forward.name: forward.listen for forward in forwards}
    for name in names:
        shown = [at.removeprefix("udp:").rpartition(":") for at in opened[name.forward]]
        ports = [int(port) for host, _, port in shown if host == name.address]
        for port in ports if ports and name.port not in ports else (name.port,):
            yield msgspec.structs.replace(name, port=port)


def _write_in_place(file: Path, text: str) -> None:
    """The program has this very file, and would not see another one in its place.

    Never shorter than both contents: whoever reads meanwhile finds old lines behind new ones, and no empty file.
    """
    data = text.encode(errors="surrogateescape")
    with file.open("r+b") as opened:
        opened.write(data)
        opened.flush()
        opened.truncate(len(data))


def _system_hosts() -> str:
    try:
        return _HOSTS.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _troubles(forwarder: Forwarder) -> Iterator[str]:
    for forward in forwarder.status().forwards:
        if forward.state is not ForwardState.LISTENING:
            yield f"{forward.name}: {forward.last_error or 'where it leads is not known yet'}"
