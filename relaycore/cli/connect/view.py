"""``relaycore connect list, status, events, env``: looks, and changes nothing."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from ...errors import ConfigError
from ..edge_options import edge_options, load_edge
from ..hcm.words import clean, clip, columns, size, span, times
from ..options import run
from .common import client_of, port_of
from .names import lay_out_settings

if TYPE_CHECKING:
    from ...edge.config.settings import Forward
    from ...edge.connect.layout import Laid
    from ...edge.connect.status import ForwarderStatus

__all__ = ["env_command", "events_command", "list_command", "status_command"]

_MAX_CELL = 44

_json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")


@click.command("list")
@_json_option
@edge_options
def list_command(config_files: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the forwards of the settings: name, addresses, names that lead there. Asks nobody."""
    settings = load_edge(config_files, overrides).settings.connect
    laid = lay_out_settings(settings)
    found = [_describe(one, *laid[one.name]) for one in settings.forwards]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no forwards yet; add one with: relaycore connect add")
        return
    rows: list[tuple[str, ...]] = [("NAME", "LISTEN", "HOSTS", "RELAY", "PATH", "PROFILE")]
    for one, entry in zip(settings.forwards, found, strict=True):
        texts = (
            entry["name"],
            ", ".join(entry["listen"]),
            ", ".join(entry["hosts"]) or ("(as the relay says)" if one.asks_relay else "-"),
            entry["relay"],
            entry["path"],
            entry["profile"],
        )
        rows.append(tuple(clip(clean(text), _MAX_CELL) for text in texts))
    for line in columns(rows):
        click.echo(line)


class _Described(TypedDict):
    name: str
    listen: list[str]
    hosts: list[str]
    port: int
    relay: str
    path: str
    profile: str


def _describe(forward: Forward, address: str, laid: Laid) -> _Described:
    from ...edge.connect.layout import DEFAULT_LISTEN

    port = port_of(forward)
    listen = []
    for at, own in [*((at, address) for at in forward.listen or DEFAULT_LISTEN), *laid.shared]:
        host = own if at.host == "auto" else f"[{at.host}]" if ":" in at.host else at.host
        shown = f"{host}:{at.port or port or '(as the relay says)'}"
        listen.append(str(at) if at.kind == "unix" else f"udp:{shown}" if at.kind == "udp" else shown)
    return {
        "name": forward.name,
        "listen": listen,
        "hosts": list(forward.hosts),
        "port": port,
        "relay": forward.relay.endpoint.removeprefix("sb://").rstrip("/"),
        "path": forward.path,
        "profile": str(forward.profile),
    }


@click.command("status")
@_json_option
@click.option("--watch", "-w", is_flag=True, help="Again each second, until Ctrl-C.")
@edge_options
def status_command(config_files: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """Show what the running `relaycore connect` does: addresses, connections, bytes, and the last error of each."""
    import msgspec
    import trio

    from ...edge.connect.status import ForwarderStatus

    client = client_of(load_edge(config_files, overrides, is_quiet=True))

    async def act() -> None:
        while True:
            found = await client.ask("status")
            if as_json:
                click.echo(json.dumps(found, indent=None if watch else 2))
            else:
                if watch and sys.stdout.isatty():
                    click.clear()
                for line in status_lines(msgspec.convert(found, ForwarderStatus), time.time()):
                    click.echo(line)
            if not watch:
                return
            await trio.sleep(1)

    run(act)


def status_lines(status: ForwarderStatus, now_unix: float) -> list[str]:
    """The table, and below it the last error of each forward that has one."""
    lines = [
        f"relaycore connect on {clean(status.host)}   {times(len(status.forwards), 'forward')}"
        f"   up {span(now_unix - status.since_unix)}"
    ]
    rows = [("NAME", "STATE", "LISTEN", "HOSTS", "RELAY", "OPEN", "IN / OUT", "LAST ERROR")]
    for one in status.forwards:
        has_bytes = one.bytes_in or one.bytes_out
        age = "-" if one.last_error_unix is None else f"{span(now_unix - one.last_error_unix)} ago"
        rows.append(
            (
                clip(clean(one.name), _MAX_CELL),
                str(one.state),
                clip(clean(", ".join(one.listen)) or "-", _MAX_CELL),
                clip(clean(", ".join(one.hosts)) or "-", _MAX_CELL),
                clip(clean(one.relay), _MAX_CELL),
                f"{one.open}+{one.dialling}" if one.dialling else str(one.open),
                f"{size(one.bytes_in)} / {size(one.bytes_out)}" if has_bytes else "-",
                age,
            )
        )
    if not status.forwards:
        return [*lines, "no forwards yet; add one with: relaycore connect add"]
    lines += columns(rows, right=(5,))
    lines += [f"{clean(one.name)}: {clean(one.last_error)}" for one in status.forwards if one.last_error]
    return lines


@click.command("events")
@_json_option
@click.option("--follow", "-f", is_flag=True, help="Stay, and show what happens.")
@click.option("--name", metavar="NAME", help="Of this forward only.")
@edge_options
def events_command(
    config_files: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool, follow: bool, name: str | None
) -> None:
    """Show the last events of the running `relaycore connect`, one line each."""
    import msgspec

    from ...edge.events import Event

    client = client_of(load_edge(config_files, overrides, is_quiet=True))

    async def act() -> None:
        async with client.stream("events", follow=follow) as events:
            async for found in events:
                event = msgspec.convert(found, Event)
                if name is not None and event.name != name:
                    continue
                if as_json:
                    click.echo(json.dumps(found))
                else:
                    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_unix))
                    click.echo(f"{when} {clean(event.name) or '-'} {event.kind}: {clean(event.text)}")

    run(act)


@click.command("env")
@edge_options
def env_command(config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Print variables that lead programs to the proxy port: eval "$(relaycore connect env)"."""
    from ...edge.connect.proxy_port import proxy_environment

    settings = load_edge(config_files, overrides, is_quiet=True).settings.connect
    listen = settings.proxy.listen
    if listen is None:
        raise ConfigError(
            'there is no proxy port; set listen = "127.0.0.1:1080" below [connect.proxy]', key="connect.proxy.listen"
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(listen.host, listen.host)
    host = f"[{host}]" if ":" in host else host
    for name, value in proxy_environment(f"{host}:{listen.port}").items():
        click.echo(f"export {name}={shlex.quote(value)}")
