"""How commands ask the daemon, and find the connection that was meant."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar, cast

import click
import msgspec
import trio

from ...edge.control.client import ControlClient
from ...edge.hcm.plan import UnknownConnection
from ...edge.hcm.status import ConnectionStatus, ManagerStatus
from ...errors import ConfigError
from ...net.tasks import alone

if TYPE_CHECKING:
    from ...edge.config.settings import HcmConnection

__all__ = ["Meant", "call_as", "fetch_status", "meant_options", "patience"]

_PATIENCE_S: Final = 1.0
"""Seconds that nobody wonders about."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


async def call_as(type_: type[T], client: ControlClient, name: str, /, **arguments: object) -> T:
    """Ask, and take the answer as a value of a type.

    Raises:
      ConfigError: the daemon speaks another version's words.
      RelayError: as `ControlClient.call`.
    """
    return _typed(type_, await client.call(name, **arguments), client)


def _typed(type_: type[T], found: object, client: ControlClient) -> T:
    try:
        return msgspec.convert(found, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the daemon is of another version than this command ({error}); restart it", source=str(client.path)
        ) from error


async def fetch_status(client: ControlClient) -> ManagerStatus:
    """Ask for the status; errors as `call_as`, and `ConnectionLost` where no answer comes."""
    return _typed(ManagerStatus, await client.ask("status"), client)


@asynccontextmanager
async def patience(text: str) -> AsyncIterator[None]:
    """Say on standard error what is waited for, where the block takes longer than a moment."""

    async def say() -> None:
        await trio.sleep(_PATIENCE_S)
        click.echo(f"relaycore: {text}", err=True)

    with alone():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            yield
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class Meant:
    """What the words and options of a command say about which connection it is for.

    Attributes:
      name: as it is called here.
      namespace: of the vendor's spelling ``-ns NAMESPACE -n PATH``: a relay's host name, or the first part of it.
      path: the hybrid connection's path in that spelling.
    """

    name: str | None = None
    namespace: str | None = None
    path: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether they say anything."""
        return any((self.name, self.namespace, self.path))

    def find(self, status: ManagerStatus) -> ConnectionStatus:
        """The one that is meant.

        Raises:
          UnknownConnection: there is none.
          ConfigError: there are several.
        """
        found = [one for one in status.connections if self._matches(one)]
        if not found:
            raise UnknownConnection(self.name or self.path or "", [one.name for one in status.connections])
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise ConfigError(f"{self.path!r} may be any of {names}; give the NAME, or the namespace with -ns")
        return found[0]

    async def find_name(self, client: ControlClient) -> str:
        """The name here; asks the daemon only where the vendor's spelling was used."""
        if self.name is not None and not (self.namespace or self.path):
            return self.name
        return self.find(await fetch_status(client)).name

    def matches_settings(self, one: HcmConnection) -> bool:
        """Whether an entry of the settings is meant."""
        return self._is(one.name, one.path, one.relay.endpoint.partition("://")[2].strip("/"))

    def _matches(self, one: ConnectionStatus) -> bool:
        return self._is(one.name, one.path, one.relay)

    def _is(self, name: str, path: str, relay: str) -> bool:
        host = relay.partition(":")[0].lower()
        wanted = (self.namespace or "").removeprefix("sb://").strip("/").partition(":")[0].lower()
        return (
            (self.name is None or name == self.name)
            and (self.path is None or path.lower() == self.path.strip("/").lower())
            and (not wanted or wanted in (host, host.partition(".")[0]))
        )


def meant_options(
    *, is_required: bool = True, has_all: bool = False
) -> Callable[[Callable[Concatenate[Meant, P], R]], Callable[P, R]]:
    """Add ``NAME`` and the vendor's ``-ns`` and ``-n``; the command gets a `Meant` before all else.

    Args:
      has_all: with ``--all`` instead, as ``all_of_them``.
    """

    def decorate(function: Callable[Concatenate[Meant, P], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def with_meant(*args: P.args, **kwargs: P.kwargs) -> R:
            name, namespace, path = (kwargs.pop(key) for key in ("name", "namespace", "entity"))
            meant = Meant(*(cast("str | None", value) for value in (name, namespace, path)))
            if has_all and bool(kwargs["all_of_them"]) == meant.is_given:
                raise click.UsageError("Give the NAME of a connection, or --all.")
            if is_required and not has_all and not meant.is_given:
                raise click.UsageError("Give the NAME of a connection.")
            return function(meant, *args, **kwargs)

        found: Callable[P, R] = with_meant
        if has_all:
            found = click.option("--all", "all_of_them", is_flag=True, help="All connections.")(found)
        found = click.option(
            "-n", "--name", "entity", metavar="PATH", help="The hybrid connection's path, as HCM is told it."
        )(found)
        found = click.option(
            "-ns", "--namespace", metavar="NAMESPACE", help="With -n: the relay's host name, or its first part."
        )(found)
        return click.argument("name", required=False)(found)

    return decorate
