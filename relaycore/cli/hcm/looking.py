"""``relaycore hcm list``, ``show``, ``status`` and ``config``: what there is, and how it is."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ...edge.control.protocol import NotRunning
from ...edge.hcm.plan import UnknownConnection
from ...edge.hcm.status import ConnectionStatus, ManagerStatus, TargetCheck
from ..edge_options import config_group
from ..options import run
from .asking import Meant, call_as, fetch_status, meant_options
from .table import detail_lines, headline, table_lines
from .where import Where, where_options
from .words import clean, columns

if TYPE_CHECKING:
    from ...edge.config.settings import HcmConnection

__all__ = ["config_command", "endpoint_text", "hcm_fields", "list_command", "show_command", "status_command"]

config_command = config_group()


def hcm_fields(one: ConnectionStatus) -> dict[str, object]:
    """Return a connection as the vendor's manager prints it (connection manager 1.2)."""
    return {
        "Namespace": one.relay.partition(":")[0].partition(".")[0],
        "Name": one.path,
        "Endpoint": one.endpoint,
        "Status": one.hcm_status,
        "NumberOfListeners": one.listeners_here if one.listeners_total is None else one.listeners_total,
        "ServiceBusEndpoint": f"sb://{one.relay}/",
        "CreatedOn": _iso(one.created_unix),
        "LastUpdated": _iso(one.updated_unix),
    }


def _iso(unix: float | None) -> str | None:
    return None if unix is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


@click.command("list")
@where_options
@click.option("--json", "as_json", is_flag=True, help="An array of objects with the field names of HCM.")
def list_command(where: Where, as_json: bool) -> None:
    """List the connections: those of the daemon, or of the settings where none runs."""
    try:
        status = run(fetch_status, where.client())
    except NotRunning:
        _list_settings(where, as_json)
        return
    if as_json:
        _print_json([hcm_fields(one) for one in status.connections])
    else:
        click.echo("\n".join(table_lines(status, time.time())))


def _list_settings(where: Where, as_json: bool) -> None:
    connections = where.book().load().settings.hcm.connections
    if as_json:
        _print_json([_fields_of_settings(one) for one in connections])
        return
    click.echo("relaycore: no daemon runs here; these are the settings. Start it with: relaycore hcm run", err=True)
    rows = [("NAME", "HYBRID CONNECTION", "RELAY", "PROFILE", "ENDPOINT")]
    rows += [(clean(one.name), one.path, _host(one), one.profile.value, endpoint_text(one)) for one in connections]
    click.echo("\n".join(columns(rows)))


def _host(one: HcmConnection) -> str:
    return one.relay.endpoint.partition("://")[2].strip("/")


def endpoint_text(one: HcmConnection) -> str:
    """Return where the settings say that it leads."""
    if one.http_url:
        return one.http_url
    if one.ports:
        return ", ".join(f"{port.name}={'|'.join(map(str, port.targets))}" for port in one.ports)
    return one.targets if isinstance(one.targets, str) else ", ".join(map(str, one.targets))


def _fields_of_settings(one: HcmConnection) -> dict[str, object]:
    return {
        "Namespace": _host(one).partition(":")[0].partition(".")[0],
        "Name": one.path,
        "Endpoint": endpoint_text(one),
        "Status": "Disconnected",
        "NumberOfListeners": None,
        "ServiceBusEndpoint": f"sb://{_host(one)}/",
        "CreatedOn": None,
        "LastUpdated": None,
    }


@click.command("show")
@where_options
@meant_options()
@click.option("--json", "as_json", is_flag=True, help="One object: the field names of HCM, then all others.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["hcm", "azbridge", "arm"]),
    help="Write its settings in the form of HCM's connections.json, of azbridge, or of the App Service API.",
)
@click.option("--with-key", is_flag=True, help="With --as: the key, too, instead of asterisks.")
def show_command(meant: Meant, where: Where, as_json: bool, form: str | None, with_key: bool) -> None:
    """Show all that is known of the connection NAME, or write it in another program's form."""
    if form is not None:
        click.echo(_exported(meant, where, form, with_key=with_key), nl=False)
        return
    status, sessions = run(_fetch_one, meant, where)
    if as_json:
        _print_json({**hcm_fields(status), **msgspec.to_builtins(status), "sessions": sessions})
        return
    click.echo("\n".join(detail_lines(status)))
    if sessions:
        rows = [("SENDER", "ENDPOINT", "IN", "OUT", "TRACKING ID")]
        rows += [
            (
                clean(one["sender"]) or "-",
                clean(one["endpoint"]) or "-",
                str(one["bytes_in"]),
                str(one["bytes_out"]),
                one["tracking_id"],
            )
            for one in sessions
        ]
        click.echo("\n" + "\n".join(columns(rows, right=(2, 3))))


async def _fetch_one(meant: Meant, where: Where) -> tuple[ConnectionStatus, list[dict[str, Any]]]:
    client = where.client()
    status = meant.find(await fetch_status(client))
    return status, await call_as(list[dict[str, Any]], client, "sessions", name=status.name)


def _exported(meant: Meant, where: Where, form: str, *, with_key: bool) -> str:
    from ...edge.config.exporting import export, remarks

    connections = where.book().load().settings.hcm.connections
    found = [one for one in connections if meant.matches_settings(one)]
    if len(found) != 1:
        raise UnknownConnection(meant.name or meant.path or "", [one.name for one in connections])
    text = export(found[0], form, with_key=with_key)
    for remark in remarks(found[0], form):
        click.echo(f"relaycore: note: {remark}", err=True)
    return text


@click.command("status")
@where_options
@click.option("--once", is_flag=True, help="Print the table once. So it is, too, where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print everything once, as one JSON object.")
def status_command(where: Where, once: bool, as_json: bool) -> None:
    """Show the table of connections, and keep it up to date.

    Keys: q quit, arrows choose, d details, t test, p pause or resume, r restart, s sort.
    """
    is_live = not (once or as_json) and sys.stdin.isatty() and sys.stdout.isatty()
    if is_live:
        _show_live(where)
        return
    status = run(fetch_status, where.client())
    if as_json:
        _print_json(status)
        return
    now = time.time()
    click.echo(headline(status, now))
    click.echo("\n".join(table_lines(status, now)))
    for one in status.connections:
        error, _ = one.error_behind
        if error and not one.is_serving:
            click.echo(f"last: {clean(one.name)}: {clean(error)}")


def _show_live(where: Where) -> None:
    from .live import run_live

    client = where.client()

    async def fetch() -> ManagerStatus:
        return await fetch_status(client)

    async def act(key: str, one: ConnectionStatus) -> str:
        if key == "t":
            checks = await call_as(list[TargetCheck], client, "test", name=one.name)
            return f"{one.name}: " + "; ".join(f"{check.target} {check.text}".strip() for check in checks)
        verb = "restart" if key == "r" else "resume" if one.status in ("Paused", "Draining") else "pause"
        await client.call(verb, name=one.name)
        return f"{one.name}: {verb}"

    run(run_live, fetch, act)
