"""``relaycore hcm events`` and ``logs``: what the daemon tells, line by line."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import msgspec

from ...edge.events import Event
from ..options import run
from .asking import Meant, meant_options
from .where import Where, where_options
from .words import clean

__all__ = ["events_command", "logs_command"]


@click.command("events")
@where_options
@meant_options(is_required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line: time_unix, name, kind, text.")
@click.option("--recent", "only_recent", is_flag=True, help="Only those that are remembered; do not wait for more.")
@click.option("--new", "only_new", is_flag=True, help="Only those from now on.")
def events_command(meant: Meant, where: Where, as_json: bool, only_recent: bool, only_new: bool) -> None:
    """Show what has happened lately, and what happens from now on: of all connections, or of NAME.

    Kinds are listed in docs/hcm.md.
    """
    if only_recent and only_new:
        raise click.UsageError("--recent and --new exclude each other.")

    async def act() -> None:
        client = where.client()
        arguments: dict[str, Any] = {"follow": not only_recent, "recent": not only_new}
        if meant.is_given:
            arguments["name"] = await meant.find_name(client)
        async with client.stream("events", **arguments) as events:
            async for found in events:
                click.echo(_line(found, as_json=as_json))

    run(act)


def _line(found: object, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(found, ensure_ascii=False)
    event = msgspec.convert(found, Event)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_unix))
    name = f"{clean(event.name)}: " if event.name else ""
    return f"{at}  {name}{event.kind}: {clean(event.text)}"


@click.command("logs")
@where_options
@click.option("--follow", "-f", is_flag=True, help="Go on with further lines until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=200, show_default=True, help="How many old ones.")
def logs_command(where: Where, follow: bool, lines: int) -> None:
    """Show the last log lines of the daemon that runs. Older ones are in the journal: journalctl -u relaycore-hcm."""

    async def act() -> None:
        async with where.client().stream("logs", lines=lines, follow=follow) as found:
            async for line in found:
                click.echo(line)

    run(act)
