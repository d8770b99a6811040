"""``relaycore connect test`` and ``doctor``: the way to an endpoint, leg by leg."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

import relaycore

from ...errors import ConfigError, RelayError
from ..edge_options import edge_options, load_edge
from ..exits import ExitCode
from ..hcm.words import times as plural
from ..options import run
from ..report import Printer, known_secrets, write_private
from .common import NotCarried, client_of, look_up, port_of
from .view import status_lines

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.config.settings import ConnectSettings, Forward
    from ...edge.connect.status import ForwarderStatus, ForwardStatus
    from ...edge.diagnose.doctor import ExpectedName

__all__ = ["doctor_command", "test_command"]


async def _ask_status(loaded: Loaded) -> ForwarderStatus | None:
    """What the running forwarder says; None where none runs, or it does not answer."""
    import msgspec

    from ...edge.connect.status import ForwarderStatus

    with trio.move_on_after(5):
        try:
            return msgspec.convert(await client_of(loaded).call("status"), ForwarderStatus)
        except RelayError:
            return None
    return None


async def _examine_local(
    printer: Printer, status: ForwarderStatus | None, settings: ConnectSettings, forward: Forward
) -> ForwardStatus | None:
    """Print whether local programs find a forward. Returns: how it stands in the running forwarder."""
    from ...edge.diagnose.steps import Finding

    here = None if status is None else next((one for one in status.forwards if one.name == forward.name), None)
    if here is None:
        text = "no `relaycore connect run` serves it here, so that its names lead nowhere yet"
        await printer.emit(Finding("warn", "local", text, "Start it, or the program with: relaycore run -- PROGRAM"))
    elif here.listen:
        await printer.emit(Finding("ok", "local", f"{', '.join(here.listen)} listening"))
    else:
        text = f"not listening: {here.last_error or here.state}"
        if settings.proxy.listen is not None:
            await printer.emit(Finding("warn", "local", f"{text}; {_by_proxy(settings)}"))
        else:
            await printer.emit(Finding("fail", "local", text, exit_code=ExitCode.PORT))
    return here


def _by_proxy(settings: ConnectSettings) -> str:
    return f"programs reach it by the proxy port {settings.proxy.listen}"


def _names(settings: ConnectSettings, forward: Forward, here: ForwardStatus | None) -> list[ExpectedName]:
    """What programs should find that look names up, and how they do without."""
    from ...edge.diagnose.doctor import ExpectedName

    if here is None:
        return []
    at_any_port, at_its_port = _listening_hosts(here)
    dead: set[str] = set()
    if os.environ.get("RELAYCORE_RUN"):
        way = "`relaycore run`, which has started this, leads names for what it starts"
    elif settings.proxy.listen is not None:
        way = _by_proxy(settings)
    else:
        way = (
            f"programs reach it at {', '.join(here.listen)}" if here.listen and here.address not in at_any_port else ""
        )
        if here.listen:  # else it is said already, and may be so for a moment only
            dead = {here.address, *here.names.values()} - at_any_port
    own_way = f"so it stands in the hybrid connection's own text; programs reach it at {', '.join(here.listen)}"
    return [
        ExpectedName(
            host,
            address,
            tuple(sorted(at_its_port - {address})),
            way or (own_way if not forward.hosts and _is_nowhere(host) else ""),
            tuple(sorted(dead)),
        )
        for host, address in here.names.items()
    ]


def _listening_hosts(here: ForwardStatus) -> tuple[set[str], set[str]]:
    """Addresses at which a forward listens: at any port, and at the endpoint's."""
    wider = {"0.0.0.0": {here.address, "127.0.0.1", *here.names.values()}, "localhost": {"127.0.0.1", "::1"}}
    at_any_port: set[str] = set()
    at_its_port: set[str] = set()
    for shown in here.listen:
        host, _, port = shown.removeprefix("udp:").rpartition(":")
        found = wider.get(host, {host.strip("[]")})
        if not shown.startswith("unix:"):
            at_any_port |= found
            at_its_port |= found if port == str(here.port) else set()
    return at_any_port, at_its_port


def _is_nowhere(host: str) -> bool:
    """Whether nothing could make a name of it that leads here: an address, or the machine itself."""
    return host == "localhost" or ":" in host or host.rpartition(".")[2].isdigit()


def _endpoint_port(forward: Forward, here: ForwardStatus | None) -> int:
    return port_of(forward) or (here.port if here is not None else 0)


# test ----------------------------------------------------------------------------------------------------------------


@click.command("test")
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Connections to make.")
@click.option(
    "--bytes",
    "send_bytes",
    type=click.IntRange(0, 1 << 30),
    default=0,
    metavar="N",
    help="Send N zeros, to an endpoint that sends them back.",
)
@click.option("--json", "as_json", is_flag=True, help="Each step as a JSON object on a line of its own, for programs.")
@edge_options
def test_command(
    name: str,
    count: int,
    send_bytes: int,
    as_json: bool,
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
) -> int:
    """Try the way to the endpoint of NAME: local address, names, relay, listener, and what the endpoint says.

    Nothing is sent to the endpoint without --bytes. Exit codes: 4 authorization, 5 relay unreachable, 6 no such hybrid
    connection or no listener, 7 endpoint down, 8 a name does not lead to the forward's address on this machine, 9 no
    local address. The last two are warnings where programs reach the forward otherwise: by the proxy port, or at
    addresses that the settings name; a name that leads to an old address, where nobody listens, is 8 then as well.
    """
    loaded = load_edge(config_files, overrides, is_quiet=True)
    forward = run(look_up, loaded, name)
    printer = Printer(as_json=as_json)
    run(_test, printer, loaded, forward, count, send_bytes)
    return printer.exit_code


async def _test(printer: Printer, loaded: Loaded, forward: Forward, count: int, send_bytes: int) -> None:
    from ...edge.access import RelayAccess
    from ...edge.diagnose.doctor import examine_names
    from ...edge.diagnose.steps import Finding, examine_end_to_end

    settings = loaded.settings.connect
    here = await _examine_local(printer, await _ask_status(loaded), settings, forward)
    await printer.emit_all(examine_names(_names(settings, forward, here)))
    port = _endpoint_port(forward, here)
    before = len(printer.findings)
    await printer.emit_all(examine_end_to_end(RelayAccess.of(forward), forward, port=port, send_bytes=send_bytes))
    if count > 1 and not any(finding.level == "fail" for finding in printer.findings[before:]):
        times = await _handshakes(forward, port, count - 1)
        low, middle, high = (f"{seconds * 1000:.0f}" for seconds in (min(times), statistics.median(times), max(times)))
        text = f"{low} to {high} ms, half of them within {middle} ms" if len(times) > 1 else f"{middle} ms"
        text = f"{plural(len(times), 'more handshake')}: {text}"
        await printer.emit(Finding("ok", "count", text))


async def _handshakes(forward: Forward, port: int, count: int) -> Sequence[float]:
    from ...edge.access import RelayAccess
    from ...edge.connect.attempt import open_connection
    from ...net.linger import cut

    access = RelayAccess.of(forward)
    times: list[float] = []
    for _ in range(count):
        try:
            opened = await open_connection(access, forward, port=port)
        except (RelayError, OSError) as error:
            raise NotCarried(error, access, forward) from error
        await cut(opened.connection)
        times.append(opened.seconds)
    return times


# doctor --------------------------------------------------------------------------------------------------------------


@click.command("doctor")
@click.argument("name", required=False)
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a report to FILE, without secrets, to be shown to others.",
)
@edge_options
def doctor_command(
    name: str | None, bundle: Path | None, config_files: tuple[Path, ...], overrides: tuple[str, ...]
) -> int:
    """Look for what is wrong, with NAME or every forward: each finding with a cause and a remedy.

    Key files, descriptors, names, proxy, relay, TLS, clock, token, hybrid connection, and one connection all the way;
    and what a firewall has to let out. The exit code is that of the first failure; see `relaycore connect test`.
    """
    loaded = load_edge(config_files, overrides)
    forwards = [run(look_up, loaded, name)] if name else list(loaded.settings.connect.forwards)
    if not forwards:
        raise ConfigError("there are no forwards; add one with: relaycore connect add")
    printer = Printer()
    status = run(_ask_status, loaded)
    for forward in forwards:
        click.echo(f"{forward.name}: {forward.path} at {forward.relay.endpoint}")
        run(_examine, printer, status, loaded.settings.connect, forward)
    if bundle is not None:
        _write_bundle(bundle, printer, loaded, status)
        click.echo(f"wrote {bundle}")
    return printer.exit_code


async def _examine(
    printer: Printer, status: ForwarderStatus | None, settings: ConnectSettings, forward: Forward
) -> None:
    from ...edge.diagnose.doctor import examine_forward

    here = await _examine_local(printer, status, settings, forward)
    names = _names(settings, forward, here)
    await examine_forward(forward, printer.emit, names=names, port=_endpoint_port(forward, here))


def _write_bundle(file: Path, printer: Printer, loaded: Loaded, status: ForwarderStatus | None) -> None:
    import time

    from ...edge.config.load import show
    from ...edge.diagnose.doctor import bundle

    sections = {
        "versions": f"relaycore {relaycore.__version__}, Python {platform.python_version()}, {platform.platform()}",
        "settings": show(loaded, effective=False, origin=True),
        "status": "not running" if status is None else "\n".join(status_lines(status, time.time())),
    }
    write_private(file, bundle(printer.findings, sections, known_secrets(loaded.settings.connect.forwards)))
