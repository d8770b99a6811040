"""``relaycore connect add, remove, import, reload``: change the settings, and tell a running forwarder.

What is added is a file of its own in the directory beside the settings; a file that a person has written is not
rewritten.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import ConfigError
from ..edge_options import edge_environ, edge_options, load_edge
from ..exits import ExitCode, StartupError
from ..options import read_secret, run
from .common import START, client_of

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.config.settings import Forward

__all__ = ["add_command", "import_command", "reload_command", "remove_command"]


@click.command("add")
@click.argument("connection_string", required=False)
@click.option(
    "--connection-string-file", metavar="FILE", help="Take the connection string from FILE; '-' is standard input."
)
@click.option("--name", metavar="NAME", help="What to call it.  [default: the hybrid connection's]")
@click.option("--path", metavar="PATH", help="The hybrid connection, where the connection string names none.")
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help="A name that leads there; repeatable. *.SUFFIX for DNS."
)
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="The endpoint's port as programs dial it.")
@click.option(
    "--listen", multiple=True, metavar="ADDRESS", help="auto:PORT, HOST:PORT, unix:/PATH or udp:HOST:PORT; repeatable."
)
@click.option(
    "--profile",
    type=click.Choice(["raw", "azbridge"]),
    default="raw",
    show_default=True,
    help="What the listener on the other side speaks.",
)
@click.option("--port-name", default="", metavar="NAME", help="Of the azbridge profile.  [default: the port's number]")
@click.option("--key-file", metavar="FILE", type=click.Path(path_type=Path), help="The rule's key is in FILE.")
@click.option("--key-env", metavar="VARIABLE", help="The rule's key is in the environment of `connect run`.")
@click.option("--cafile", metavar="FILE", type=click.Path(path_type=Path), help="Authorities to trust, PEM.")
@click.option("--replace", "replaces", is_flag=True, help="Put it in the place of one with the same name.")
@edge_options
def add_command(
    connection_string: str | None,
    connection_string_file: str | None,
    name: str | None,
    path: str | None,
    hosts: tuple[str, ...],
    port: int,
    listen: tuple[str, ...],
    profile: str,
    port_name: str,
    key_file: Path | None,
    key_env: str | None,
    cafile: Path | None,
    replaces: bool,
    config_files: tuple[Path, ...],
    overrides: tuple[str, ...],
) -> None:
    """Add a forward to the hybrid connection of CONNECTION_STRING, and open it if `relaycore connect run` runs.

    Without CONNECTION_STRING it comes from RELAYCORE_CONNECTION_STRING. A key in an argument can be read by everybody
    with ps: name a file or a variable with --key-file or --key-env, or use --connection-string-file.
    """
    from ...config import CONNECTION_STRING_VARIABLE
    from ...edge.config.load import forward_from_string, parse_listen
    from ...edge.config.secret import Secret

    if connection_string is not None and connection_string_file is not None:
        raise click.UsageError("A connection string or its file, not both.")
    if key_file is not None and key_env is not None:
        raise click.UsageError("--key-file and --key-env exclude each other.")
    if connection_string_file is not None or connection_string == "-":
        text = read_secret(connection_string_file or "-", "connection string")
    else:
        text = connection_string or os.environ.get(CONNECTION_STRING_VARIABLE, "")
    if not text.strip():
        raise ConfigError(
            f"which hybrid connection? Give its connection string, or put it into {CONNECTION_STRING_VARIABLE}"
        )
    key = None
    if key_file is not None:
        key = Secret("file", str(key_file.absolute()), "--key-file")
    elif key_env is not None:
        key = Secret("env", key_env, "--key-env")
    forward = forward_from_string(
        text,
        name=name,
        hosts=hosts,
        port=port,
        profile=profile,
        port_name=port_name,
        key=key,
        path=path,
        cafile=cafile.absolute() if cafile is not None else None,
    )
    forward = replace(forward, listen=tuple(parse_listen(one) for one in listen))
    file = save([forward], config_files, overrides, replaces=replaces)
    click.echo(f"saved {forward.name} in {file}")
    tell_running(config_files, overrides)


def save(
    forwards: Sequence[Forward], config_files: Sequence[Path], overrides: Sequence[str], *, replaces: bool
) -> Path:
    """Write forwards into files of their own, all or none, and check that the settings are still good.

    Returns: the last one's file.

    Raises:
      StartupError: a name is taken.
      ConfigError: the settings would be wrong, or cannot be written.
    """
    from ...edge.config.load import connection_file, write_connection

    known = {one.name for one in load_edge(config_files, overrides).settings.connect.forwards}
    taken = [one.name for one in forwards if one.name in known]
    if taken and not replaces:
        text = f"there is a forward {taken[0]!r} already; --replace it, or choose another name"
        raise StartupError(text, ExitCode.EXISTS)
    environ = edge_environ(config_files)
    before: dict[Path, bytes | None] = {}
    try:
        for forward in forwards:
            file = connection_file(forward.name, environ)
            before.setdefault(file, file.read_bytes() if file.exists() else None)
            write_connection(file, forward)
        found = {one.name for one in load_edge(config_files, overrides, is_quiet=True).settings.connect.forwards}
        missing = [one.name for one in forwards if one.name not in found]
        if missing:
            raise ConfigError(f"{missing[0]!r} would be lost in {file}: it is not among the settings that are read")
    except ConfigError:
        for path, content in before.items():
            with suppress(OSError):
                if content is None:
                    path.unlink()
                else:
                    path.write_bytes(content)
        raise
    return file


def tell_running(config_files: Sequence[Path], overrides: Sequence[str]) -> None:
    """Have a running forwarder read its settings, and say what came of it; one that does not run is no error."""
    from ...edge.control.protocol import NotRunning

    try:
        for line in _reload(load_edge(config_files, overrides, is_quiet=True)):
            click.echo(line)
    except NotRunning:
        click.echo(f"no forwarder is running; start it with: {START}")


def _reload(loaded: Loaded) -> list[str]:
    import msgspec

    from ...edge.connect.status import Plan

    client = client_of(loaded)

    async def act() -> object:
        return await client.ask("reload", within_s=30)

    plan = msgspec.convert(run(act), Plan)
    return plan.lines() or ["nothing has changed"]


@click.command("reload")
@edge_options
def reload_command(config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Have the running `relaycore connect` read its settings again, and print what changes.

    Settings that are wrong leave the old ones in force (exit code 3).
    """
    for line in _reload(load_edge(config_files, overrides, is_quiet=True)):
        click.echo(line)


@click.command("remove")
@click.argument("name")
@edge_options
def remove_command(name: str, config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Remove the forward NAME that `add` or `import` has written. Its open connections go on."""
    from ...edge.config.load import connection_file, remove_connection

    loaded = load_edge(config_files, overrides)
    names = [one.name for one in loaded.settings.connect.forwards]
    if name not in names:
        raise ConfigError(f"no forward is called {name!r}; there are: {', '.join(names) or 'none'}")
    forward = loaded.settings.connect.forwards[names.index(name)]
    place = loaded.origins.get(f"connect.forward.{names.index(name)}.name", "the environment or an option")
    file = Path(place.rpartition(":")[0])
    if not file.is_file():
        file = connection_file(name, edge_environ(config_files))
    try:
        was_there = remove_connection(file, forward)
    except ConfigError as error:
        raise ConfigError(f"{name!r} stands at {place}: {error}") from error
    if not was_there:
        raise ConfigError(f"{name!r} comes from {place}; take it out there, then: relaycore connect reload")
    click.echo(f"removed {name} from {file}")
    tell_running(config_files, overrides)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--from",
    "form",
    type=click.Choice(["auto", "arm", "website-relays", "connection-proxy", "azbridge"]),
    default="auto",
    show_default=True,
    help="What FILE is: JSON of the App Service API, the value of WEBSITE_RELAYS, HybridConnectionClientProxy's"
    " settings, azbridge's YAML.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@click.option("--replace", "replaces", is_flag=True, help="Put them in the place of those with the same names.")
@edge_options
def import_command(
    file: Path, form: str, dry_run: bool, replaces: bool, config_files: tuple[Path, ...], overrides: tuple[str, ...]
) -> None:
    """Take over the forwards that another tool has in FILE. What cannot be carried over is said."""
    from ...edge.config.importing import read_any
    from ...edge.config.settings import Forward

    found = read_any(file, None if form == "auto" else form)
    forwards = [entry for entry in found.entries if isinstance(entry, Forward)]
    if others := len(found.entries) - len(forwards):
        click.echo(f"note: {others} to listen on; take them over with: relaycore hcm import", err=True)
    for remark in found.remarks:
        click.echo(f"note: {remark}", err=True)
    if not forwards:
        raise ConfigError("there is no forward in it", source=str(file))
    for forward in forwards:
        where = ", ".join(forward.hosts) or ("the host in its metadata" if forward.asks_relay else "no name,")
        port = f" port {forward.port}" if forward.port else ""
        click.echo(f"{forward.name}: {where}{port} -> {forward.path}")
    if not dry_run:
        save(forwards, config_files, overrides, replaces=replaces)
        tell_running(config_files, overrides)
