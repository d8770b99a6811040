"""Which names lead where: from the running program, which knows best, or from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from .common import PATIENCE_S, ask_names, port_of, state_file

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.config.settings import ConnectSettings
    from ...edge.connect.layout import Laid
    from ...edge.connect.status import Redirection

__all__ = ["find_names", "lay_out_settings", "names_of_settings", "only"]


async def find_names(loaded: Loaded) -> list[Redirection]:
    """Ask the running forwarder of these settings, or read the settings where none runs.

    Only the running one knows names that stand in a hybrid connection's own text; that some are missing is said on
    standard error, and so is where the running one has other settings.
    """
    import trio

    from ...edge.control.protocol import NotRunning

    try:
        running = await ask_names(loaded)
        _warn_of_differences(loaded, running)
        return running
    except NotRunning:
        why = "`relaycore connect run` is not running"
    except trio.TooSlowError:
        why = f"the running `relaycore connect` did not answer within {PATIENCE_S:g} s"
    found, unknown = names_of_settings(loaded)
    if unknown:
        click.echo(
            f"relaycore: warning: {why}, and only the relay knows the names of {', '.join(unknown)};"
            " start it, or set hosts for these forwards",
            err=True,
        )
    return found


def _warn_of_differences(loaded: Loaded, running: Iterable[Redirection]) -> None:
    """Say where the running forwarder's names are not those of the settings."""
    forwards = loaded.settings.connect.forwards
    own_ways = {urlsplit(one.relay.endpoint).hostname for one in forwards}  # these never lead to a forward
    silent = {one.name for one in forwards if not one.hosts}
    wanted = {(one.forward, one.host, one.port) for one in names_of_settings(loaded)[0] if one.host not in own_ways}
    there = {(one.forward, one.host, one.port) for one in running if one.forward not in silent}
    wanted_ports = {pair[:2] for pair in wanted if not pair[2]}  # the port stands in the relay's text
    others = sorted({name for name, host, _ in wanted ^ there if (name, host) not in wanted_ports})
    if others:
        click.echo(
            f"relaycore: warning: the running `relaycore connect` has other settings than these about"
            f" {', '.join(others)}, and its names are shown; `relaycore connect reload` reads its files again",
            err=True,
        )


def names_of_settings(loaded: Loaded) -> tuple[list[Redirection], list[str]]:
    """What the settings say, and the forwards of which they say nothing."""
    from ...edge.connect.status import Redirection

    forwards = loaded.settings.connect.forwards
    laid = lay_out_settings(loaded.settings.connect)
    found = [
        Redirection(one.name, host, address, port_of(one))
        for one in forwards
        for host, address in laid[one.name][1].names.items()
    ]
    return found, [one.name for one in forwards if not one.hosts and one.asks_relay]


def lay_out_settings(settings: ConnectSettings) -> dict[str, tuple[str, Laid]]:
    """Each forward's own address, and where its names lead, as far as the settings say it. Reads a small local file."""
    from ...edge.connect.layout import Place, lay_out
    from ...edge.connect.loopback import LoopbackAddresses

    given = LoopbackAddresses(settings.pool, state_file()).assign(one.name for one in settings.forwards)
    ranks = {name: rank for rank, name in enumerate(given)}
    laid = lay_out(
        Place(one, [host.lower().rstrip(".") for host in one.hosts], one.port, given[one.name], ranks[one.name])
        for one in settings.forwards
    )
    return {name: (given[name], found) for name, found in laid.items()}


def only(names: Iterable[Redirection], wanted: Iterable[str]) -> list[Redirection]:
    """Those of the forwards or hosts that are named; all, where nothing is."""
    picked = {word.lower().rstrip(".") for word in wanted}
    return [one for one in names if not picked or one.forward.lower() in picked or one.host in picked]
