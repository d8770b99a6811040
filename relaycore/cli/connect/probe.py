"""``relaycore connect test`` and ``doctor``: the way to an endpoint, leg by leg."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

import relaycore

from ...errors import ConfigError, RelayError
from ..edge_options import edge_options, load_edge
from ..exits import ExitCode
from ..hcm.findings import finding_lines
from ..options import run
from .common import NotCarried, client_of, find_forward, port_of
from .view import status_lines

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.config.settings import Forward
    from ...edge.connect.status import ForwarderStatus, ForwardStatus
    from ...edge.diagnose.steps import Finding

__all__ = ["doctor_command", "test_command"]


class _Printer:
    """Prints findings as they come, and keeps them.

    Attributes:
      exit_code: of the first failure; 0 without one. A name that does not lead here counts least: programs may be
        led otherwise, as by ``relaycore run``, and a way that is broken is broken for all of them.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.exit_code = 0

    async def emit(self, finding: Finding) -> None:
        """Print one. A checkpoint."""
        for line in finding_lines(finding):
            click.echo(line)
        self.findings.append(finding)
        if finding.level == "fail" and self.exit_code in (0, ExitCode.NOT_REDIRECTED):
            self.exit_code = finding.exit_code or ExitCode.FAILED
        await trio.lowlevel.checkpoint()

    async def emit_all(self, findings: AsyncIterator[Finding]) -> None:
        """Print all of them."""
        async for finding in findings:
            await self.emit(finding)


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


async def _examine_local(printer: _Printer, status: ForwarderStatus | None, forward: Forward) -> ForwardStatus | None:
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
        await printer.emit(Finding("fail", "local", text, exit_code=ExitCode.PORT))
    return here


def _names(here: ForwardStatus | None) -> list[tuple[str, str]]:
    return [] if here is None else [(host, here.address) for host in here.hosts]


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
@edge_options
def test_command(
    name: str, count: int, send_bytes: int, config_files: tuple[Path, ...], overrides: tuple[str, ...]
) -> int:
    """Try the way to the endpoint of NAME: local address, names, relay, listener, and what the endpoint says.

    Nothing is sent to the endpoint without --bytes. Exit codes: 4 authorization, 5 relay unreachable, 6 no such hybrid
    connection or no listener, 7 endpoint down, 8 a name does not lead to the forward's address on this machine, 9 no
    local address.
    """
    loaded = load_edge(config_files, overrides, is_quiet=True)
    forward = find_forward(loaded.settings.connect, name)
    printer = _Printer()
    run(_test, printer, loaded, forward, count, send_bytes)
    return printer.exit_code


async def _test(printer: _Printer, loaded: Loaded, forward: Forward, count: int, send_bytes: int) -> None:
    from ...edge.access import RelayAccess
    from ...edge.diagnose.doctor import examine_names
    from ...edge.diagnose.steps import Finding, examine_end_to_end

    here = await _examine_local(printer, await _ask_status(loaded), forward)
    async with aclosing(examine_names(_names(here))) as findings:
        await printer.emit_all(findings)
    port = _endpoint_port(forward, here)
    before = len(printer.findings)
    found = examine_end_to_end(RelayAccess.of(forward), forward, port=port, send_bytes=send_bytes)
    async with aclosing(found) as findings:
        await printer.emit_all(findings)
    if count > 1 and not any(finding.level == "fail" for finding in printer.findings[before:]):
        times = await _handshakes(forward, port, count - 1)
        low, middle, high = (f"{seconds * 1000:.0f}" for seconds in (min(times), statistics.median(times), max(times)))
        text = f"{len(times)} more handshakes: {low} to {high} ms, half of them within {middle} ms"
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
    forwards = [find_forward(loaded.settings.connect, name)] if name else list(loaded.settings.connect.forwards)
    if not forwards:
        raise ConfigError("there are no forwards; add one with: relaycore connect add")
    printer = _Printer()
    status = run(_ask_status, loaded)
    for forward in forwards:
        click.echo(f"{forward.name}: {forward.path} at {forward.relay.endpoint}")
        run(_examine, printer, status, forward)
    if bundle is not None:
        _write_bundle(bundle, printer, loaded, status)
        click.echo(f"wrote {bundle}")
    return printer.exit_code


async def _examine(printer: _Printer, status: ForwarderStatus | None, forward: Forward) -> None:
    from ...edge.diagnose.doctor import examine_forward

    here = await _examine_local(printer, status, forward)
    await examine_forward(forward, printer.emit, redirections=_names(here), port=_endpoint_port(forward, here))


def _write_bundle(file: Path, printer: _Printer, loaded: Loaded, status: ForwarderStatus | None) -> None:
    import time

    from ...edge.config.load import show
    from ...edge.diagnose.doctor import bundle

    sections = {
        "versions": f"relaycore {relaycore.__version__}, Python {platform.python_version()}, {platform.platform()}",
        "settings": show(loaded, effective=False, origin=True),
        "status": "not running" if status is None else "\n".join(status_lines(status, time.time())),
    }
    text = bundle(printer.findings, sections, _known_secrets(loaded))
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as opened:
            opened.write(text)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(file)) from error


def _known_secrets(loaded: Loaded) -> list[str]:
    found = []
    for forward in loaded.settings.connect.forwards:
        for secret in (forward.key, forward.token):
            if secret is not None:
                try:
                    found.append(secret.read())
                except ConfigError:
                    continue
    return found
