"""``relaycore hcm pause``, ``resume``, ``restart``, ``drain`` and ``reload``."""

from __future__ import annotations

from typing import Any, Final

import click

from ...edge.control.client import ControlClient
from ..options import run
from .asking import Meant, call_as, meant_options, patience
from .where import Where, where_options

__all__ = ["drain_command", "pause_command", "reload_command", "restart_command", "resume_command"]

_DONE: Final = {
    "pause": "takes no new connections; those that are open go on",
    "resume": "takes connections again",
    "restart": "registers anew; connections that are open go on",
    "drain": "takes no new connections, and no old one is open",
}


_WAITING: Final = {
    "drain": "waiting for open connections to end, until the drain timeout cuts them; Ctrl-C ends the waiting, not the"
    " draining",
}


def _steering(verb: str, text: str) -> click.Command:
    @click.command(verb, help=text)
    @where_options
    @meant_options(has_all=True)
    def command(meant: Meant, where: Where, all_of_them: bool) -> None:
        async def act() -> list[str]:
            client = where.client()
            which: dict[str, object] = {"all": True} if all_of_them else {"name": await meant.find_name(client)}
            async with patience(_WAITING.get(verb, "waiting for the daemon to answer")):
                return await call_as(list[str], client, verb, **which)

        for name in run(act):
            click.echo(f"{name}: {_DONE[verb]}")

    return command


pause_command = _steering("pause", "Take no new connections for NAME; what is open goes on. Ends with the daemon.")
resume_command = _steering("resume", "Take connections for NAME again, after pause or drain.")
restart_command = _steering(
    "restart",
    "Leave the relay and register anew; read key and metadata, and ask the endpoint again. What is open goes on.",
)
drain_command = _steering(
    "drain",
    "Take no new connections for NAME and wait until the open ones have ended. Those that have not within its drain"
    " timeout are cut. Ctrl-C ends the waiting, not the draining.",
)


@click.command("reload")
@where_options
def reload_command(where: Where) -> None:
    """Read the settings anew and apply what has changed. Prints the changes; unchanged connections are not touched."""

    async def act() -> dict[str, Any]:
        client: ControlClient = where.client()
        return await call_as(dict[str, Any], client, "reload")

    found = run(act)
    for warning in found["warnings"]:
        click.echo(f"relaycore: warning: {warning}", err=True)
    for line in found["lines"] or ["nothing has changed"]:
        click.echo(line)
