"""``relaycore serve``: run a relay until a signal ends it.

Signals: SIGTERM and the first SIGINT stop in order, waiting for sessions as long as ``timeouts.drain`` says; a second
one ends at once. SIGHUP loads the certificate anew.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import trio

from ..broker.model import ROOT_RULE_NAME
from ..config import CONNECTION_STRING_VARIABLE, Config
from ..errors import ConfigError
from ..gateway.server import Server, serve, tune_collector
from ..trace import configure_logging
from ..wire.connection_string import format_connection_string
from .app import called_as
from .definitions import address_of, open_store, store_path
from .exits import ExitCode
from .options import config_file_option, load_settings, raise_file_limit, run

__all__ = ["command"]

_log = logging.getLogger("relaycore.gateway")

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_SAME_SIGNAL_S: Final = 0.5
"""Seconds in which a further signal says the same again: make and timeout pass on what the whole process group gets."""


@dataclass(frozen=True, slots=True)
class _Announcement:
    """What to print when the sockets listen."""

    as_json: bool
    shows_connection_string: bool


@click.command("serve")
@config_file_option
@click.option("--host", help="Address to bind.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="TCP port; 0 takes a free one.  [default: 8080]")
@click.option("--tls-cert", metavar="FILE", help="Certificate and chain (PEM); turns TLS on.")
@click.option("--tls-key", metavar="FILE", help="Private key of the certificate (PEM, unencrypted).")
@click.option("--store", metavar="PATH", help="SQLite file of hybrid connections and keys; ':memory:' forgets.")
@click.option("--auto-create/--no-auto-create", default=None, help="Let a first listener create its hybrid connection.")
@click.option("--public-url", metavar="URL", help="ws:// or wss:// address that clients know, behind a proxy.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--log-format", type=click.Choice(["human", "json"]), help="[default: human]")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready, nothing else.")
@click.option(
    "--show-connection-string", is_flag=True, help="Print the root key's connection string with --config, too."
)
def command(
    config_file: Path | None,
    host: str | None,
    port: int | None,
    tls_cert: str | None,
    tls_key: str | None,
    store: str | None,
    auto_create: bool | None,
    public_url: str | None,
    log_level: str | None,
    log_format: str | None,
    as_json: bool,
    show_connection_string: bool,
) -> None:
    """Run a relay.

    Without any option: port 8080 on loopback, definitions in the user's data directory, a fresh key, and on standard
    output what to paste into other terminals. Every setting is also a variable RELAYCORE_SECTION_NAME and a line in the
    file of --config; see docs/configuration.md.
    """
    overrides: dict[str, object] = {
        "server.host": host,
        "server.port": port,
        "server.auto_create": auto_create,
        "server.public_url": public_url,
        "tls.cert": tls_cert,
        "tls.key": tls_key,
        "store.path": store,
        "log.level": log_level,
        "log.format": log_format,
    }
    config = load_settings(config_file, overrides)
    announcement = _Announcement(as_json, show_connection_string or config_file is None)
    raise_file_limit()
    writer = configure_logging(config.log)
    try:
        code = run(_main, config, announcement)
    finally:
        writer.close()
    raise click.exceptions.Exit(code)


async def _main(config: Config, announcement: _Announcement) -> ExitCode:
    """Run the server in the scope of the signals. Returns: the exit code after a stop that somebody asked for."""
    code = ExitCode.OK
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with await open_store(config) as store, trio.open_nursery() as nursery:
            server: Server = await nursery.start(
                lambda task_status: serve(config, store=store, task_status=task_status)
            )
            tune_collector()
            _warn_of_plain_text(server, config)
            _announce(server, config, announcement)
            stopping_since: float | None = None
            async for number in signals:
                if number == signal.SIGHUP:
                    await _reload(server)
                elif stopping_since is None:
                    stopping_since = trio.current_time()
                    nursery.start_soon(_stop, server, nursery.cancel_scope)
                elif trio.current_time() - stopping_since >= _SAME_SIGNAL_S:
                    code = ExitCode.INTERRUPTED
                    nursery.cancel_scope.cancel()
                    break
    return code


async def _stop(server: Server, everything: trio.CancelScope) -> None:
    await server.stop()
    everything.cancel()  # the signal receiver, which would wait for ever


async def _reload(server: Server) -> None:
    with suppress(ConfigError):  # the server has logged it and goes on with the old pair
        await server.reload_tls()


def _warn_of_plain_text(server: Server, config: Config) -> None:
    """Tokens in the clear are no error, since something in front may encrypt, but nobody should learn it afterwards."""
    public_url = config.server.public_url or ""
    hosts = [str(host) for host, _ in server.addresses]
    if server.is_tls or public_url.startswith("wss:") or all(ipaddress.ip_address(host).is_loopback for host in hosts):
        return
    _log.warning(
        "! listening on %s without TLS: tokens and data can be read on the way; give --tls-cert and --tls-key, or put"
        " TLS in front and name it with --public-url wss://...",
        ", ".join(hosts),
    )


def _announce(server: Server, config: Config, announcement: _Announcement) -> None:
    """Say on standard output that the relay is ready. Whoever reads it may have gone; that is not our end."""
    text = _json_line(server, config, announcement) if announcement.as_json else _words(server, config, announcement)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _connection_string(server: Server, config: Config) -> str | None:
    """The connection string of the root rule; None where that rule was taken away."""
    rule = server.namespace.find_rule(ROOT_RULE_NAME)
    if rule is None:
        return None
    address = address_of(config, server.addresses[0][1])
    return format_connection_string(
        address.host, rule.name, rule.primary_key, port=address.port, is_emulator=address.is_emulator
    )


def _json_line(server: Server, config: Config, announcement: _Announcement) -> str:
    ready: dict[str, object] = {
        "event": "ready",
        "base_url": server.base_url,
        "addresses": [list(address) for address in server.addresses],
        "namespace": config.namespace.name,
        "store": store_path(config),
        "pid": os.getpid(),
    }
    if announcement.shows_connection_string:
        ready["connection_string"] = _connection_string(server, config)
    return json.dumps(ready) + "\n"


def _words(server: Server, config: Config, announcement: _Announcement) -> str:
    lines = [f"relaycore listens on {server.base_url}, store {store_path(config)}"]
    found = _connection_string(server, config) if announcement.shows_connection_string else None
    if found is not None:
        program = called_as(from_anywhere=True)
        lines += [
            "",
            "Connection string of this relay, with its root key (keep it to yourself):",
            "",
            f"  {found}",
            "",
            "Paste into another terminal, and the last line with the first into a third:",
            "",
            f"  export {CONNECTION_STRING_VARIABLE}={shlex.quote(found)}",
            f"  {program} entity create demo",
            f"  {program} listen demo",
            f"  {program} send demo",
            "",
        ]
    return "\n".join(lines) + "\n"
