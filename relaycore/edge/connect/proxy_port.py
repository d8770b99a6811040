"""The proxy port: SOCKS5, SOCKS4a and HTTP on one address, for programs that can be told a proxy and nothing else.

A program reaches the configured names and ports, and no others: where connections may lead stays the business of those
who configure (connection manager 8.6). Targets that ``bypass`` names are dialled directly, so that one proxy setting
serves a program that talks to other hosts too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio

from ...client.splice import splice
from ...errors import (
    ConfigError,
    ConnectionLost,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Refused,
    RelayError,
    ServerBusy,
)
from ...net.linger import close_gently, cut, reset
from ..config.settings import DialSettings, Forward, ListenAt, PolicySettings, ProxyPortSettings, Target
from ..target.dial import DialFailed, dial
from ..target.policy import Policy
from .listeners import LocalListener, open_local
from .socks import Farewell, ProxyReader, RequestKind, Say, Wanted, Why, parse_users

__all__ = ["Join", "ProxyPort", "proxy_environment", "serve_proxy_port"]

_logger = logging.getLogger("relaycore.edge")

REQUEST_TIMEOUT: Final = 15.0
"""Seconds for a program to say what it wants."""

_RECEIVE_BYTES: Final = 16_384

_MAX_OFFERED: Final = 20
"""Targets that a refusal lists."""


class Join(Protocol):
    """Carries a connection through a forward; `Forwarder.join`."""

    def __call__(
        self,
        stream: trio.abc.HalfCloseableStream,
        forward: Forward,
        *,
        early: bytes = b"",
        on_open: Callable[[], Awaitable[None]] | None = None,
        on_refused: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> Awaitable[None]:
        """Owns the stream; arguments as there."""


@dataclass
class ProxyPort:
    """What stands behind the port.

    Args:
      settings: users and bypass; the users are read from their place at once.
      lookup: the forward that a host and port mean; `Forwarder.lookup`.
      join: see `Join`.
      offered: what can be reached, such as ``db.corp.example:1433``, for the text of a refusal.
      on_event: told what was refused: a word and a text, as an event has them.

    Attributes:
      counts: requests by kind and result, the labels of ``proxy_requests_total`` (8.10). A result is ``ok``,
        ``direct``, ``authentication``, ``malformed`` or a `Why`.

    Raises:
      ConfigError: users or patterns are wrong.
    """

    settings: ProxyPortSettings
    lookup: Callable[[str, int], Forward | None]
    join: Join
    offered: Callable[[], Iterable[str]] = tuple
    on_event: Callable[[str, str], None] = lambda _kind, _text: None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        users = self.settings.users
        self._users = None if users is None else parse_users(users.read(), source=str(users))
        self._bypass = Policy(PolicySettings(allow=self.settings.bypass)) if self.settings.bypass else None

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one program, to the end of its connection. Owns the stream; raises nothing but a cancellation."""
        try:
            wanted = await self._listen_to(stream)
            if wanted is None:
                await close_gently(stream)
                return
            forward = self.lookup(wanted.host, wanted.port)
            if forward is not None:
                await self._join(stream, wanted, forward)
            elif self._bypass is not None:
                await self._go_directly(stream, wanted, self._bypass)
            else:
                await self._refuse(stream, wanted, Why.NOT_ALLOWED, self._not_allowed(wanted))
                await close_gently(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await reset(stream)
        except Exception:  # no memory, or a bug of ours: it costs this program, not the others
            _logger.exception("a program at the proxy port")
            self.on_event("lost", "a connection at the proxy port ended with an internal error; the log has it")
            await reset(stream)
        except BaseException:
            await reset(stream)  # noqa: ASYNC102 - never blocks
            raise

    async def _listen_to(self, stream: trio.SocketStream) -> Wanted | None:
        """Find out what the program wants; None: nothing that it can get, which it was told."""
        reader = ProxyReader(self._users)
        with trio.move_on_after(REQUEST_TIMEOUT):
            while True:
                match reader.next_event():
                    case Wanted() as wanted:
                        return wanted
                    case Say(data):
                        await stream.send_all(data)
                    case Farewell() as farewell:
                        self._note(farewell.kind, "authentication" if farewell.is_authentication else "malformed")
                        self.on_event("proxy-refused", f"a program at the proxy port was refused: {farewell.text}")
                        await stream.send_all(farewell.data)
                        return None
                    case None:
                        data = await stream.receive_some(_RECEIVE_BYTES)
                        if not data:
                            return None
                        reader.receive_data(data)
        self._note(RequestKind.NONE, Why.TIMED_OUT)
        return None

    async def _join(self, stream: trio.SocketStream, wanted: Wanted, forward: Forward) -> None:
        async def accept() -> None:
            self._note(wanted.kind, "ok")
            await stream.send_all(wanted.accepted())

        async def refuse(error: Exception) -> None:
            await self._refuse(stream, wanted, _why(error), f"{forward.name} cannot be reached: {_said(error)}")
            await close_gently(stream)

        await self.join(stream, forward, early=wanted.early, on_open=accept, on_refused=refuse)

    async def _go_directly(self, stream: trio.SocketStream, wanted: Wanted, bypass: Policy) -> None:
        try:
            dialled = await dial([Target(wanted.host, wanted.port)], DialSettings(), policy=bypass)
        except DialFailed as error:
            is_foreign = error.kind == "policy"
            text = self._not_allowed(wanted) if is_foreign else error.text
            await self._refuse(stream, wanted, Why.NOT_ALLOWED if is_foreign else _why(error), text)
            await close_gently(stream)
            return
        self._note(wanted.kind, "direct")
        try:
            await stream.send_all(wanted.accepted())
            await dialled.stream.send_all(wanted.early)
            await splice(stream, dialled.stream)
        except RelayError:  # one of them was lost, and both were cut
            return
        finally:
            await cut(dialled.stream)  # noqa: ASYNC102 - shields itself

    async def _refuse(self, stream: trio.SocketStream, wanted: Wanted, why: Why, text: str) -> None:
        self._note(wanted.kind, why)
        if why is Why.NOT_ALLOWED:
            self.on_event("proxy-refused", text)
        await stream.send_all(wanted.refused(why, text))

    def _not_allowed(self, wanted: Wanted) -> str:
        offered = list(self.offered())
        shown = ", ".join(offered[:_MAX_OFFERED]) + (" and more" if len(offered) > _MAX_OFFERED else "")
        target = Target(wanted.host, wanted.port)
        return f"{target} is none of the configured endpoints; there are: {shown or 'none'}"

    def _note(self, kind: RequestKind, result: str) -> None:
        self.counts[str(kind), str(result)] += 1


def _why(error: Exception) -> Why:
    match error:
        case GatewayTimeout() | DialFailed(kind="timeout"):
            return Why.TIMED_OUT
        case DialFailed(kind="refused") | Refused(http_status=502):
            return Why.REFUSED
        case NoListener() | EndpointNotFound() | ServerBusy() | ConnectionLost():
            return Why.UNREACHABLE
        case DialFailed(kind="unknown-name") | DialFailed(kind="unreachable"):
            return Why.UNREACHABLE
        case _:
            return Why.FAILED


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{error.http_status} {text}" if isinstance(error, Refused) else text


async def serve_proxy_port(
    settings: ProxyPortSettings,
    lookup: Callable[[str, int], Forward | None],
    join: Join,
    *,
    offered: Callable[[], Iterable[str]] = tuple,
    on_event: Callable[[str, str], None] = lambda _kind, _text: None,
    counts: Counter[tuple[str, str]] | None = None,
    open_at: Callable[[ListenAt], Awaitable[LocalListener]] = open_local,
    task_status: trio.TaskStatus[LocalListener] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the proxy port until cancelled, which cuts the connections through it too.

    Args:
      settings, lookup, join, offered, on_event, counts: see `ProxyPort`.
      open_at: opens the address; another one may open it elsewhere, as in a network namespace.
      task_status: gets the open address.

    Raises:
      ConfigError: users, patterns or the address are wrong, or no address is set; `ListenFailed` is one too.
    """
    if settings.listen is None:
        raise ConfigError("no address is set for the proxy port", key="connect.proxy.listen")
    port = ProxyPort(settings, lookup, join, offered, on_event, Counter() if counts is None else counts)
    listener = await open_at(settings.listen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(listener.serve, port.serve, nursery))
        task_status.started(listener)


def proxy_environment(address: str) -> dict[str, str]:
    """The variables that lead programs to the proxy port.

    ``ALL_PROXY`` names SOCKS5 with names resolved by the proxy; programs that know HTTP proxies only heed the others.

    Args:
      address: ``HOST:PORT`` of the port, IPv6 in brackets.
    """
    http, socks = f"http://{address}", f"socks5h://{address}"
    values = {"HTTP_PROXY": http, "HTTPS_PROXY": http, "ALL_PROXY": socks}
    return values | {name.lower(): value for name, value in values.items()}
