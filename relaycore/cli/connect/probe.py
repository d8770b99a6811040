"""``relaycore connect test`` and ``doctor``: the way to an endpoint, leg by leg."""

from __future__ import annotations

import ipaddress
import socket
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import ConfigError, RelayError
from ..edge_options import edge_options, load_edge
from ..exits import ExitCode
from ..hcm.findings import finding_lines
from ..options import run
from .common import NotCarried, client_of, find_forward, port_of

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.config.settings import Forward
    from ...edge.connect.status import ForwardStatus
    from ...edge.diagnose.steps import Finding

__all__ = ["doctor_command", "test_command"]


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
    connection or no listener, 7 endpoint down, 8 a name does not lead to the forward's address on this machine.
    """
    loaded = load_edge(config_files, overrides, is_quiet=True)
    forward = find_forward(loaded.settings.connect, name)
    is_redirected = run(_show_local, loaded, forward)
    code = run(_try_once, forward, send_bytes)
    if code:
        return code
    if count > 1:
        run(_try_more, forward, count - 1)
    if not is_redirected:
        click.echo(
            " warn not every name leads here; see: relaycore connect hosts, relaycore connect dns, relaycore run"
        )
        return ExitCode.NOT_REDIRECTED
    return ExitCode.OK


def _show(finding: Finding) -> int:
    """Print a finding. Returns: its exit code, 0 unless it is why it does not work."""
    for line in finding_lines(finding):
        click.echo(line)
    return (finding.exit_code or ExitCode.FAILED) if finding.level == "fail" else 0


async def _try_once(forward: Forward, send_bytes: int) -> int:
    from contextlib import aclosing

    from ...edge.access import RelayAccess
    from ...edge.diagnose.steps import examine_end_to_end

    code = 0
    found = examine_end_to_end(RelayAccess.of(forward), forward, port=port_of(forward), send_bytes=send_bytes)
    async with aclosing(found) as findings:
        async for finding in findings:
            code = _show(finding) or code
    return code


async def _try_more(forward: Forward, count: int) -> None:
    from ...edge.access import RelayAccess
    from ...edge.connect.attempt import open_connection
    from ...net.linger import cut

    access = RelayAccess.of(forward)
    taken: list[float] = []
    for _ in range(count):
        try:
            opened = await open_connection(access, forward, port=port_of(forward))
        except (RelayError, OSError) as error:
            raise NotCarried(error, access, forward) from error
        await cut(opened.connection)
        taken.append(opened.seconds)
    low, middle, high = (f"{seconds * 1000:.0f}" for seconds in (min(taken), statistics.median(taken), max(taken)))
    click.echo(f" ok   {count} more handshakes: {low} to {high} ms, half of them within {middle} ms")


async def _running(loaded: Loaded, name: str) -> ForwardStatus | None:
    import msgspec
    import trio

    from ...edge.connect.status import ForwarderStatus

    try:
        with trio.fail_after(5):
            found = msgspec.convert(await client_of(loaded).call("status"), ForwarderStatus)
    except (RelayError, trio.TooSlowError):
        return None
    return next((one for one in found.forwards if one.name == name), None)


async def _show_local(loaded: Loaded, forward: Forward) -> bool:
    """Print what this machine does with the forward's names. Returns: whether all that can be asked for lead there."""
    status = await _running(loaded, forward.name)
    if status is None:
        click.echo(" warn no `relaycore connect run` serves it here, so its names lead nowhere yet")
        return True
    words = []
    is_good = True
    for host in status.hosts:
        if host.startswith("*."):
            words.append(f"{host} by DNS only")
            continue
        address = await _resolve(host, status.port)
        if status.address in address:
            words.append(f"{host} -> {status.address}")
        else:
            is_good = False
            words.append(f"{host} -> {', '.join(address) or 'NOT redirected (no entry)'}")
    listening = f"{', '.join(status.listen)} listening" if status.listen else f"NOT listening: {status.last_error}"
    level = "ok" if is_good and status.listen else "warn"
    click.echo(f" {level:<4} {listening}, hosts: {', '.join(words) or 'none'}")
    return is_good


async def _resolve(host: str, port: int) -> list[str]:
    import trio

    try:
        found = await trio.socket.getaddrinfo(host, port or None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(ipaddress.ip_address(str(entry[4][0]).partition("%")[0])) for entry in found))


@click.command("doctor")
@click.argument("name", required=False)
@edge_options
def doctor_command(name: str | None, config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> int:
    """Look for what is wrong, with NAME or every forward: each finding with a cause and a remedy.

    The exit code is that of the first thing that fails; see `relaycore connect test`.
    """
    loaded = load_edge(config_files, overrides)
    forwards = [find_forward(loaded.settings.connect, name)] if name else list(loaded.settings.connect.forwards)
    if not forwards:
        raise ConfigError("there are no forwards; add one with: relaycore connect add")
    first = 0
    for forward in forwards:
        click.echo(f"{forward.name}: {forward.path} at {forward.relay.endpoint}")
        is_redirected = run(_show_local, loaded, forward)
        first = first or run(_examine, forward) or (0 if is_redirected else ExitCode.NOT_REDIRECTED)
    return first


async def _examine(forward: Forward) -> int:
    from contextlib import aclosing

    from ...edge.access import RelayAccess
    from ...edge.diagnose.steps import examine_relay

    code = 0
    needs_endpoint = not forward.port and not port_of(forward)
    found = examine_relay(RelayAccess.of(forward), role="send", needs_endpoint=needs_endpoint)
    async with aclosing(found) as findings:
        async for finding in findings:
            code = code or _show(finding)
    return code
