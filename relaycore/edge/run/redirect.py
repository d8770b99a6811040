"""Leads this Python process to the relay: names and literal addresses of forwards, for whatever uses `socket`.

    with redirect(settings):
        urllib.request.urlopen("http://orders.corp.example:8080/")

Facts, and what follows:

- `socket.getaddrinfo` is what the standard library, asyncio and Trio ask, the loops in threads of theirs. They look it
  up in the module when they call it, so replacing it there reaches all of them.
- A name handed to ``connect`` of a socket, and `socket.gethostbyname`, are looked up in C without it. Both are replaced
  too; with ``connect`` come literal addresses, which nobody looks up.
- Drivers written in C look names up themselves and are not reached, nor are programs that are started. For those there
  is ``relaycore run``.
- The forwarder needs an event loop of its own, as the program may have none, or blocks in it. It runs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import trio

from ...net.tasks import alone
from ..config.settings import ConnectSettings
from ..connect.forwarder import AddressOpener, Forwarder
from ..connect.listeners import LocalListener, open_local
from .addresses import for_run
from .modes import RunMode
from .peers import open_for_own_user

__all__ = ["redirect"]

_DRAIN_TIMEOUT: Final = 2.0
"""Seconds that connections have to end once the block is left."""


class _Names:
    """Which name means which address; written by the forwarder's thread, read by all."""

    def __init__(self) -> None:
        self._relays: frozenset[str] = frozenset()
        self._exact: Mapping[str, str] = {}
        self._suffixes: Mapping[str, str] = {}

    def learn(self, forwarder: Forwarder) -> None:
        # Our own thread asks here too, and *.suffix may cover the relay: it would connect to itself, again and again.
        self._relays = forwarder.dialled_hosts()
        found = {one.host: one.address for one in reversed(forwarder.redirections())}  # the first counts
        # Each is replaced as a whole, so that a reader in another thread sees the old ones or the new ones.
        self._exact = {host: address for host, address in found.items() if not host.startswith("*.")}
        self._suffixes = {host[1:]: address for host, address in found.items() if host.startswith("*.")}

    def find(self, host: object) -> str | None:
        """The address for a host as callers of `socket` give it: text, bytes, or nothing of the kind."""
        if isinstance(host, bytes | bytearray):
            host = bytes(host).decode(errors="replace")
        if not isinstance(host, str):
            return None
        name = host.lower().rstrip(".")
        if name in self._relays:
            return None
        found = self._exact.get(name)
        if found is not None:
            return found
        longest = max((suffix for suffix in self._suffixes if name.endswith(suffix)), key=len, default=None)
        return self._suffixes[longest] if longest is not None else None


@contextmanager
def redirect(settings: ConnectSettings) -> Iterator[None]:
    """Lead names and literal addresses of all forwards to the relay, in this process, for as long as the block lasts.

    The relay's own name stays what it is, also where a ``*.suffix`` covers it.

    A name leads there at any port; at ports that are not the endpoint's the connection is refused. Addresses are the
    block's own, in the pool; they serve this user and root, or, where this is root, everybody. Starting and ending it
    block for as long as a thread takes, and where the settings leave names or ports to the relay for as long as that is
    asked, at most 5 s. Blocks of several threads may not overlap.

    Raises:
      ConfigError: the settings cannot work.
    """
    names = _Names()
    runner = _Runner(for_run(settings, RunMode.HOSTS), names)
    runner.start()
    try:
        with _replaced(names):
            yield
    finally:
        runner.stop()


class _Runner:
    """The forwarder in a thread of its own."""

    def __init__(self, settings: ConnectSettings, names: _Names) -> None:
        self._settings = settings
        self._names = names
        self._thread = threading.Thread(target=self._run, name="relaycore redirect", daemon=True)
        self._has_started = threading.Event()
        self._failure: Exception | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()

    def start(self) -> None:
        """Return once every address was tried.

        Raises:
          ConfigError: as the forwarder.
        """
        self._thread.start()
        self._has_started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Give open connections a moment, then cut them. Raises what ended the forwarder meanwhile, a bug of ours."""
        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with alone():
                trio.run(self._forward)
        except Exception as error:  # whoever started us is told, and nobody else would be
            self._failure = error
        finally:
            self._has_started.set()

    async def _forward(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        # A process of root's may become any user while the block lasts.
        open_at: AddressOpener[LocalListener] = (
            open_local if os.geteuid() == 0 else partial(open_for_own_user, takes_closed=True)
        )
        forwarder = Forwarder(environ={}, open_at=open_at)
        async with trio.open_nursery() as nursery:
            await nursery.start(forwarder.run, self._settings)
            nursery.start_soon(self._keep_learning, forwarder)
            self._names.learn(forwarder)
            self._has_started.set()
            await self._stop.wait()
            await forwarder.stop(_DRAIN_TIMEOUT)
            nursery.cancel_scope.cancel()

    async def _keep_learning(self, forwarder: Forwarder) -> None:
        async for event in forwarder.events():
            if event.kind == "resolved":
                self._names.learn(forwarder)


# What is replaced ----------------------------------------------------------------------------------------------------


@contextmanager
def _replaced(names: _Names) -> Iterator[None]:
    replacements: list[tuple[Any, str, Callable[..., Any]]] = [
        (socket, "getaddrinfo", _getaddrinfo(names, socket.getaddrinfo)),
        (socket, "gethostbyname", _gethostbyname(names, socket.gethostbyname)),
        (socket, "gethostbyname_ex", _gethostbyname_ex(names, socket.gethostbyname_ex)),
        (socket.socket, "connect", _connect(names, socket.socket.connect)),
        (socket.socket, "connect_ex", _connect(names, socket.socket.connect_ex)),
    ]
    # A method that is inherited has to be taken away again, and not to be put where it never was.
    before = [(place, name, vars(place).get(name)) for place, name, _ in replacements]
    try:
        for place, name, replacement in replacements:
            setattr(place, name, replacement)
        yield
    finally:
        for place, name, original in before:
            if original is None:
                delattr(place, name)
            else:
                setattr(place, name, original)


def _getaddrinfo(names: _Names, original: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(
        host: Any,  # noqa: ANN401 - the signature of the library
        port: Any,  # noqa: ANN401
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:  # noqa: ANN401
        address = names.find(host)
        return original(host if address is None else address, port, family, type, proto, flags)

    return getaddrinfo


def _gethostbyname(names: _Names, original: Callable[..., Any]) -> Callable[..., Any]:
    def gethostbyname(hostname: str) -> Any:  # noqa: ANN401 - as the library's
        return names.find(hostname) or original(hostname)

    return gethostbyname


def _gethostbyname_ex(names: _Names, original: Callable[..., Any]) -> Callable[..., Any]:
    def gethostbyname_ex(hostname: str) -> Any:  # noqa: ANN401 - as the library's
        address = names.find(hostname)
        return original(hostname) if address is None else (hostname, [], [address])

    return gethostbyname_ex


def _connect(names: _Names, original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any, /) -> Any:  # noqa: ANN401 - as the library's
        if self.family == socket.AF_INET and isinstance(address, tuple) and len(address) == 2:
            found = names.find(address[0])
            if found is not None:
                address = (found, address[1])
        return original(self, address)

    return connect
