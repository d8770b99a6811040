"""``relaycore connect dns``: lead names to their addresses by DNS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from ...errors import ConfigError, ConnectionLost
from ..edge_options import edge_options, load_edge
from ..exits import ExitCode
from ..hcm.words import clean
from ..options import run
from .dns_setup import SYSTEMS, domains_of, setup_text
from .names import find_names

__all__ = ["command"]

_TIMEOUT_S: Final = 5.0

_SERVER = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[0-9.]+))(?::(?P<port>\d{1,5}))?")


@click.group("dns", no_args_is_help=True)
def command() -> None:
    """Lead names to their addresses by DNS: the stub that `relaycore connect run` has where [connect.dns] says so."""


@command.command("setup")
@click.argument("system", type=click.Choice(SYSTEMS))
@edge_options
def setup_command(config_files: tuple[Path, ...], overrides: tuple[str, ...], system: str) -> None:
    """Print the text that leads SYSTEM's resolver to the stub, for the configured names alone. Changes nothing."""
    loaded = load_edge(config_files, overrides, is_quiet=True)
    host, port = _stub_of(loaded.settings.connect.dns.listen)
    domains = domains_of(one.host for one in run(find_names, loaded))
    if not domains:
        raise ConfigError("there are no names yet; set hosts for a forward, or start relaycore connect run")
    click.echo(setup_text(system, host, port, domains), nl=False)


@command.command("query")
@click.argument("name")
@click.argument("kind", metavar="[TYPE]", default="A")
@click.option("--server", metavar="ADDRESS[:PORT]", help="Whom to ask.  [default: the stub of the settings]")
@click.option("--tcp", is_flag=True, help="Ask over TCP.")
@edge_options
def query_command(
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
    name: str,
    kind: str,
    server: str | None,
    tcp: bool,
) -> ExitCode:
    """Ask the stub for NAME. Exit code 8 where it gives no address or other record."""
    if server is not None:
        address = _parse_server(server)
    else:
        address = _stub_of(load_edge(config_files, overrides, is_quiet=True).settings.connect.dns.listen)
    return run(_query, name, kind, address, tcp)


async def _query(name: str, kind: str, address: tuple[str, int], is_tcp: bool) -> ExitCode:
    import trio

    from ...edge.connect.dns import ask_tcp, ask_udp, build_question, read_answer

    question = build_question(name, kind)
    where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    began = trio.current_time()
    try:
        with trio.fail_after(_TIMEOUT_S):
            data = await (ask_tcp if is_tcp else ask_udp)(address, question)
    except trio.TooSlowError as error:
        raise ConnectionLost(f"no answer from {where} within {_TIMEOUT_S:g} s; does relaycore connect run?") from error
    except (OSError, trio.BrokenResourceError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConnectionLost(f"cannot ask {where}: {said}; does relaycore connect run?") from error
    if data is None:
        raise ConnectionLost(f"{where} gave no answer to this question")
    took_ms = (trio.current_time() - began) * 1_000
    answer = read_answer(data)
    for record in answer.records:
        click.echo(clean(record))
    nothing = "" if answer.records else ", nothing of that kind"
    cut = ", cut short: ask with --tcp" if answer.is_cut else ""
    click.echo(f"{answer.word}{nothing}{cut}, from {where} in {took_ms:.1f} ms", err=True)
    return ExitCode.OK if answer.records else ExitCode.NOT_REDIRECTED


def _stub_of(listen: tuple[object, ...]) -> tuple[str, int]:
    from ...edge.config.settings import ListenAt

    for at in listen:
        if isinstance(at, ListenAt) and at.port:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(at.host, at.host)
            return host, at.port
    raise ConfigError(
        'there is no name server; set listen = ["127.0.0.153:5353"] below [connect.dns]', key="connect.dns.listen"
    )


def _parse_server(text: str) -> tuple[str, int]:
    match = _SERVER.fullmatch(text)
    port = int(match["port"] or 53) if match is not None else 0
    if match is None or not 0 < port < 65_536:
        raise click.BadParameter(f"{text!r} is no ADDRESS[:PORT]; IPv6 goes into brackets.", param_hint="--server")
    return match["ipv6"] or match["host"], port
