"""``relaycore bridge``: azbridge's command line, files and wire format over a manager and a forwarder.

::

    SIGTERM, SIGINT    take no more connections, let those that are open end, leave; once more: leave at once
    SIGHUP             read the files again; connections that are open go on
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import click
import trio

from ..config import LogConfig
from ..edge.azbridge.expressions import (
    HttpBinding,
    LocalBinding,
    RemoteBinding,
    parse_http_forward,
    parse_local_forward,
    parse_old_remote_forward,
    parse_remote_forward,
)
from ..edge.azbridge.files import default_files, parse_file
from ..edge.azbridge.layers import (
    BridgeSettings,
    Layer,
    LocalForward,
    RemoteForward,
    combine,
    environment_layer,
    option_layer,
)
from ..edge.azbridge.translate import edge_settings
from ..edge.config.settings import EdgeSettings, LimitSettings
from ..edge.config.showing import show_document
from ..edge.connect.forwarder import Forwarder
from ..edge.connect.status import ForwardState, ForwardStatus
from ..edge.events import Event
from ..edge.hcm.manager import Manager
from ..edge.hcm.status import ConnectionStatus, RelayLeg
from ..errors import AuthorizationFailed, ConfigError, ConnectionLost, EndpointNotFound
from ..net.tasks import alone
from ..trace import LogWriter, configure_logging, redact
from .edge_options import drain_option
from .exits import ExitCode, StartupError
from .online import STATUS_LINES
from .options import raise_file_limit, run

__all__ = ["command"]

_SAME_SIGNAL_S: Final = 0.5
"""A terminal and a shell may both pass on one Ctrl-C; a second wish comes later than that."""

_QUIET_EVENTS: Final = ("resolved", "unresolved")
"""A bridge's forwards say themselves where they listen; what the relay's text says is of no interest."""


def _refuse_service(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        raise click.BadParameter(
            "services of Windows are not made here; on Linux run this command from a systemd unit with --svc.",
            ctx,
            parameter,
        )


@click.command("bridge", context_settings={"help_option_names": ["-?", "-h", "--help"]})
@click.option(
    "-L",
    "--local-forward",
    "local",
    multiple=True,
    metavar="[BIND:]PORT[/NAME][;...]:RELAY",
    help="Local programs that connect to PORT, or a socket, reach the port NAME behind RELAY. U: UDP.",
)
@click.option(
    "-T",
    "--remote-forward",
    "remote",
    multiple=True,
    metavar="RELAY:[NAME/][HOST:]PORT[;...]",
    help="Senders to RELAY that ask for NAME reach HOST:PORT, or a socket.",
)
@click.option("-R", "old_remote", multiple=True, hidden=True, help="The old form of -T.")
@click.option(
    "-H",
    "--remote-http-forward",
    "http",
    multiple=True,
    metavar="RELAY:SCHEME/HOST[/PATH][:PORT]",
    help="HTTP requests and WebSockets to RELAY reach this server.",
)
@click.option("-e", "--endpoint-uri", "endpoint", metavar="sb://HOST/", help="The relay.")
@click.option(
    "-x", "--connection-string", metavar="STRING", help="Relay and key in one; it replaces -e, -K, -k and -s."
)
@click.option("-K", "--shared-access-key-name", "key_name", metavar="RULE", help="The rule to sign with.")
@click.option(
    "-k",
    "--shared-access-key",
    "key",
    metavar="KEY",
    help="Its key. Better keep it in a file: others can read a command line as it starts.",
)
@click.option("-s", "--signature", metavar="TOKEN", help="A ready token instead of rule and key.")
@click.option(
    "-f",
    "--config-file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings in azbridge's YAML or JSON, instead of the user's file.",
)
@click.option("-o", "--option", "options", multiple=True, metavar="KEY:VALUE", help="Set one key of such a file.")
@click.option("-g", "--gateway-ports", is_flag=True, help="Listen on all addresses where -L names none.")
@click.option("-b", "--bind-address", metavar="ADDRESS", help="Local address to dial targets from.")
@click.option(
    "-a",
    "keep_alive",
    metavar="SECONDS",
    type=click.IntRange(min=1),
    help="Silence on a control channel before the relay is pinged.  [default: 30]",
)
@click.option("-l", "--log-file", metavar="FILE", help="Write what happens to FILE instead of standard error.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Say everything.")
@click.option(
    "-I",
    "--svcinstall",
    is_flag=True,
    expose_value=False,
    hidden=True,
    callback=_refuse_service,
    help="Of Windows; refused.",
)
@click.option(
    "-U",
    "--svcuninstall",
    is_flag=True,
    expose_value=False,
    hidden=True,
    callback=_refuse_service,
    help="Of Windows; refused.",
)
@click.option("-svc", "--svc", "is_service", is_flag=True, help="Read the service's file instead of the user's.")
@click.option(
    "--cafile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="PEM file of authorities to trust besides the system's.",
)
@drain_option
@click.option("--explain", is_flag=True, help="Say what all of it means, print it as relaycore.toml, and leave.")
def command(
    is_service: bool,
    file: Path | None,
    options: tuple[str, ...],
    cafile: Path | None,
    drain: float,
    explain: bool,
    quiet: bool,
    verbose: bool,
    log_file: str | None,
    **flags: Any,  # noqa: ANN401 - the rest, each as its option says
) -> int:
    """Do what azbridge does with the same flags and files, over relaycore hcm and relaycore connect in one process.

    -L, -T and -H may be given many times. Without any, and with none in a file, there is nothing to do: exit code 2.
    Where a forward cannot be set up at the start the command ends, unless ExitOnForwardFailure is false.
    """  # fmt: skip
    for secret in (flags["connection_string"], flags["key"], flags["signature"]):
        hide_argument(secret or "")
    flags_layer = _flags_layer(quiet=quiet, verbose=verbose, log_file=log_file, **flags)

    def load() -> BridgeSettings:
        files = default_files(os.environ, is_service=is_service, chosen=file)
        layers = [environment_layer(os.environ), *map(parse_file, files), option_layer(options), flags_layer]
        return combine(layers)

    settings = load()
    if not settings.local and not settings.remote:
        raise click.UsageError("nothing to forward: give -L, -T or -H, or a file that has forwards.")
    if explain:
        click.echo(_explain(settings, edge_settings(settings, cafile=cafile)), nl=False)
        return ExitCode.OK
    raise_file_limit()
    with _Output(settings) as output:
        for warning in settings.warnings:
            output.say(f"warning: {warning}")
        bridge = _Bridge(load, settings, cafile, drain, output.say)
        run(bridge.run)
    return ExitCode.INTERRUPTED if bridge.is_hasty else ExitCode.OK


def _flags_layer(
    *,
    local: Sequence[str],
    remote: Sequence[str],
    old_remote: Sequence[str],
    http: Sequence[str],
    endpoint: str | None,
    connection_string: str | None,
    key_name: str | None,
    key: str | None,
    signature: str | None,
    gateway_ports: bool,
    bind_address: str | None,
    keep_alive: int | None,
    log_file: str | None,
    quiet: bool,
    verbose: bool,
) -> Layer:
    layer = Layer()
    given = {
        "-e": ("AzureRelayEndpoint", endpoint),
        "-x": ("AzureRelayConnectionString", connection_string),
        "-K": ("AzureRelaySharedAccessKeyName", key_name),
        "-k": ("AzureRelaySharedAccessKey", key),
        "-s": ("AzureRelaySharedAccessSignature", signature),
        "-g": ("GatewayPorts", "true" if gateway_ports else None),
        "-b": ("BindAddress", bind_address),
        "-a": ("KeepAliveInterval", None if keep_alive is None else str(keep_alive)),
        "-l": ("LogFileName", log_file),
        "-v": ("LogLevel", "debug" if verbose else None),
        "-q": ("LogLevel", "none" if quiet else None),
    }
    for flag, (name, text) in given.items():
        if text is not None:
            layer.set(name, text, flag)
    for text in local:
        relay, bindings = _parsed("-L", parse_local_forward, text)
        layer.local.append(LocalForward(relay, bindings, source=f"-L {text}"))
    for flag, texts, parse in (("-T", remote, parse_remote_forward), ("-R", old_remote, parse_old_remote_forward)):
        for text in texts:
            relay, ports = _parsed(flag, parse, text)
            layer.remote.append(RemoteForward(relay, ports, source=f"{flag} {text}"))
    for text in http:
        relay, servers = _parsed("-H", parse_http_forward, text)
        layer.remote.append(RemoteForward(relay, (), servers, source=f"-H {text}"))
    return layer


def hide_argument(secret: str) -> None:
    """Take a secret out of this process's command line, as ``ps`` shows it. Others have had a moment to read it."""
    needle = os.fsencode(secret)
    if not needle:
        return
    try:
        # proc(5): arg_start and arg_end are fields 48 and 49, and the name in field 2 may hold anything.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        command_line = Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return  # not Linux, or not to be read
    if end - start != len(command_line) or command_line != ctypes.string_at(start, end - start):
        return
    place = command_line.find(needle)
    while place >= 0:
        ctypes.memset(start + place, ord("*"), len(needle))
        place = command_line.find(needle, place + len(needle))


def _parsed(flag: str, parse: Callable[[str], tuple[str, Any]], text: str) -> tuple[str, Any]:
    try:
        return parse(text)
    except ConfigError as error:
        raise click.UsageError(f"{flag} {error}.") from None


class _Output:
    """Where lines go: standard error or a file, from a thread of its own."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._is_quiet = settings.log_level == "none"
        self._file = None
        write: Callable[[str], object] = lambda text: click.echo(text, nl=False, err=True)  # noqa: E731
        if settings.log_file:
            try:
                self._file = Path(settings.log_file).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise ConfigError(
                    f"{settings.log_file} cannot be written: {error.strerror}", source="-l", key="LogFileName"
                ) from error
            write = self._file.write
        levels: dict[str, Literal["debug", "info", "error"]] = {"debug": "debug", "info": "info"}
        self._log = configure_logging(LogConfig(level=levels.get(settings.log_level, "error")), write=write)
        self._lines = LogWriter(write, queue_lines=STATUS_LINES)

    def say(self, text: str) -> None:
        """Take a line for people."""
        if not self._is_quiet:
            self._lines.put_nowait(redact(f"relaycore: {' '.join(text.split())}"))

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._log.close()
        if self._file is not None:
            self._file.close()


class _Bridge:
    """The manager and the forwarder, and what stands around them.

    Args:
      load: reads flags and files again.
      drain_s: for connections to end.
      say: takes a line for people.
    """

    def __init__(
        self,
        load: Callable[[], BridgeSettings],
        settings: BridgeSettings,
        cafile: Path | None,
        drain_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._load = load
        self._settings = settings
        self._cafile = cafile
        self._drain_s = drain_s
        self._say = say
        self._edge = self._translate(settings)
        self._manager = Manager()
        self._forwarder = Forwarder()
        self._scope = trio.CancelScope()
        self._has_begun = False  # only then there is something to reload
        self._stopping_since: float | None = None
        self.is_hasty = False

    def _translate(self, settings: BridgeSettings) -> EdgeSettings:
        edge = edge_settings(settings, cafile=self._cafile)
        limits = LimitSettings(drain_timeout_s=self._drain_s)
        connections = tuple(replace(item, limits=limits) for item in edge.hcm.connections)
        return replace(edge, hcm=replace(edge.hcm, connections=connections))

    async def run(self) -> None:
        """Run to the end.

        Raises:
          ConfigError: it cannot begin.
          StartupError, AuthorizationFailed, EndpointNotFound, ConnectionLost: a forward cannot be set up, and that is
            to end it.
        """
        with alone(), self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._heed_signals, nursery)
                for events in (self._manager.events(), self._forwarder.events()):
                    nursery.start_soon(self._report, events)
                await nursery.start(self._manager.run, self._edge.hcm)
                await nursery.start(self._forwarder.run, self._edge.connect)
                self._has_begun = True
                for forward in self._forwarder.status().forwards:
                    self._check_forward(forward)
                for name in self._manager.names:
                    self._check_connection(await self._manager.wait_settled(name))
                self._say(self._summary())

    def _summary(self) -> str:
        forwards = self._forwarder.status().forwards
        connections = self._manager.status().connections
        listening = sum(one.state is ForwardState.LISTENING for one in forwards)
        online = sum(one.listeners_here > 0 for one in connections)
        return f"{listening} of {len(forwards)} local forwards listen, {online} of {len(connections)} remote ones do"

    def _check_forward(self, forward: ForwardStatus) -> None:
        if self._settings.exits_on_failure and forward.state is not ForwardState.LISTENING:
            raise StartupError(forward.last_error or f"{forward.name} does not listen", ExitCode.PORT)

    def _check_connection(self, connection: ConnectionStatus) -> None:
        if not self._settings.exits_on_failure or connection.relay_leg == RelayLeg.CONNECTED:
            return
        text = f"{connection.name}: {connection.last_error or connection.status}"
        match connection.relay_leg:
            case RelayLeg.UNAUTHORIZED:
                raise AuthorizationFailed(text)
            case RelayLeg.NOT_FOUND:
                raise EndpointNotFound(text)
            case _:
                raise ConnectionLost(text)

    async def _report(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if event.kind not in _QUIET_EVENTS:
                self._say(f"{event.name}: {event.text}" if event.name else event.text)

    async def _heed_signals(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    if self._has_begun and self._stopping_since is None:
                        self._reload()
                elif self._stopping_since is None:
                    self._stopping_since = trio.current_time()
                    nursery.start_soon(self._stop)
                elif trio.current_time() - self._stopping_since >= _SAME_SIGNAL_S:
                    self.is_hasty = True
                    self._scope.cancel()

    async def _stop(self) -> None:
        self._manager.stop()
        await self._forwarder.stop(self._drain_s)
        await self._manager.wait_stopped()
        self._scope.cancel()

    def _reload(self) -> None:
        try:
            settings = self._load()
            edge = self._translate(settings)
            self._manager.plan(edge.hcm)  # what is wrong is said before anything has changed
            lines = self._forwarder.reload(edge.connect).lines()
            lines = self._manager.reload(edge.hcm).lines() + lines
        except ConfigError as error:
            self._say(f"{error}; the old settings stay in force")
            return
        self._settings, self._edge = settings, edge
        for warning in settings.warnings:
            self._say(f"warning: {warning}")
        if not lines:
            self._say("settings read again; nothing has changed")


# --explain -----------------------------------------------------------------------------------------------------------


def _explain(settings: BridgeSettings, edge: EdgeSettings) -> str:
    lines: list[str] = [f"warning: {warning}" for warning in settings.warnings]
    for local in settings.local:
        lines += [
            local.source or local.relay,
            *(f"    {text}" for text in map(partial(_of_local, local.relay, settings), local.bindings)),
        ]
    for remote in settings.remote:
        lines += [remote.source or remote.relay]
        lines += [f"    {text}" for text in map(partial(_of_remote, remote.relay), remote.bindings)]
        lines += [f"    {text}" for text in map(partial(_of_http, remote.relay), remote.http)]
    lines += ["", "# The same for relaycore hcm and relaycore connect; put the keys where secrets may stand.", ""]
    return redact("\n".join(lines)) + "\n" + show_document(edge, (), {}, effective=False)


def _of_local(relay: str, settings: BridgeSettings, binding: LocalBinding) -> str:
    if binding.socket:
        where = f"the Unix socket {binding.socket}"
    else:
        host = binding.host or ("all addresses" if settings.is_gateway else "localhost")
        where = f"{'UDP ' if binding.is_udp else ''}{_shown(host)}:{binding.port}"
    return f"programs here use {where}; the listener of {relay} is asked for the port {binding.port_name}"


def _of_remote(relay: str, binding: RemoteBinding) -> str:
    where = f"the Unix socket {binding.socket}" if binding.socket else f"{_shown(binding.host)}:{binding.port}"
    return (
        f"senders to {relay} that ask for the port {binding.port_name} reach {'UDP ' if binding.is_udp else ''}{where}"
    )


def _of_http(relay: str, binding: HttpBinding) -> str:
    return f"HTTP requests and WebSockets to {relay} reach {binding.url}"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
