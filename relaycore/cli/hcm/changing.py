"""``relaycore hcm add``, ``remove`` and ``import``.

A daemon that runs is asked to do it: it may be another user's, with other settings, and it alone knows whether the
relay takes the connection. Where none runs, the settings are changed here, and the next start finds them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio

from ...config import CONNECTION_STRING_VARIABLE
from ...edge.config.importing import FORMS, read_any
from ...edge.config.load import hcm_connection_from_string
from ...edge.config.secret import Secret
from ...edge.config.settings import HcmConnection, Profile
from ...edge.control.protocol import NotRunning
from ...edge.diagnose.doctor import examine_hcm_way
from ...edge.diagnose.steps import Finding
from ...edge.hcm.status import ConnectionStatus
from ...errors import ConfigError
from ..options import read_secret, run
from .asking import Meant, call_as, meant_options, patience
from .findings import exit_code_of, finding_lines, needs_metadata
from .looking import endpoint_text, hcm_fields
from .service import UNIT_NAME
from .where import START_COMMAND, Where, where_options

__all__ = ["add_command", "import_command", "remove_command"]

_WAITING: Final = (
    "the daemon takes {} out of its settings and leaves the relay; where the relay does not answer, that takes about"
    " ten seconds. Ctrl-C ends the waiting, not the removal."
)


@click.command("add")
@click.argument("connection_string", required=False)
@where_options
@click.option("--name", metavar="NAME", help="What it is called here.  [default: the hybrid connection's path]")
@click.option("--path", metavar="PATH", help="The hybrid connection, where the string names none.  [default: NAME]")
@click.option(
    "--endpoint",
    metavar="HOST:PORT",
    help="Where connections lead; several with commas; unix:/PATH; a URL with --profile http."
    "  [default: what the hybrid connection's metadata says]",
)
@click.option(
    "--profile",
    type=click.Choice([str(one) for one in Profile]),
    default=str(Profile.RAW),
    show_default=True,
    help="What senders send: the endpoint's own bytes, azbridge's framing, or HTTP requests.",
)
@click.option(
    "--key-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key is in FILE and stays there, instead of in the string.",
)
@click.option("--key-env", metavar="VARIABLE", help="The key is in a variable of the daemon's environment.")
@click.option(
    "--key-credential", metavar="NAME", help="The key is one of the service's credentials, such as keys_NAME."
)
@click.option(
    "--cafile", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Trust these, too (PEM)."
)
@click.option("--replace", is_flag=True, help="In place of a connection of the same name.")
@click.option("--no-wait", is_flag=True, help="Do not look whether it works.")
@click.option("--json", "as_json", is_flag=True, help="Print the connection as HCM does, and the findings in it.")
def add_command(
    where: Where,
    connection_string: str | None,
    name: str | None,
    path: str | None,
    endpoint: str | None,
    profile: str,
    key_file: Path | None,
    key_env: str | None,
    key_credential: str | None,
    cafile: Path | None,
    replace: bool,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Save a connection and listen on it, and say step by step whether it works.

    CONNECTION_STRING is that of the hybrid connection, or of its namespace with --name or --path. Without it, or with
    '-', it comes from RELAYCORE_CONNECTION_STRING or standard input, where other users cannot read it. It is saved
    whatever the steps find; the exit code is that of the first one that fails.
    """
    key = _key(key_file, key_env, key_credential)
    connection = hcm_connection_from_string(
        _connection_string(connection_string),
        name=name,
        endpoint=endpoint,
        profile=profile,
        key=key,
        path=path,
        cafile=cafile.absolute() if cafile is not None else None,
    )
    if connection.key is not None and connection.key.kind == "inline" and connection_string not in (None, "-"):
        click.echo(
            "relaycore: warning: everybody on this machine can read a key on a command line (ps), and the shell may"
            " remember it; next time give '-' and paste it, or use --key-file",
            err=True,
        )
    adding = _Adding(where, connection, replaces=replace, waits=not no_wait, as_json=as_json)
    return run(adding.run)


def _key(file: Path | None, variable: str | None, credential: str | None) -> Secret | None:
    found = [
        Secret("file", str(file.absolute())) if file is not None else None,
        Secret("env", variable) if variable else None,
        Secret("credential", credential) if credential else None,
    ]
    given = [secret for secret in found if secret is not None]
    if len(given) > 1:
        raise click.UsageError("--key-file, --key-env and --key-credential exclude each other.")
    return given[0] if given else None


def _connection_string(argument: str | None) -> str:
    if argument not in (None, "-"):
        return argument or ""
    from_environment = os.environ.get(CONNECTION_STRING_VARIABLE, "").strip()
    if argument is None and from_environment:
        return from_environment
    if argument is None and sys.stdin.isatty():
        raise click.UsageError(f"Give a connection string, or '-', or set {CONNECTION_STRING_VARIABLE}.")
    return read_secret("-", "connection string")


class _Adding:
    """One run of ``add``."""

    def __init__(self, where: Where, connection: HcmConnection, *, replaces: bool, waits: bool, as_json: bool) -> None:
        self._where = where
        self._connection = connection
        self._replaces = replaces
        self._waits = waits
        self._as_json = as_json
        self._findings: list[Finding] = []

    async def run(self) -> int:
        """Returns: the exit code."""
        try:
            await self._ask_daemon()
        except NotRunning:
            await self._do_it_here()
        return exit_code_of(self._findings)

    async def _ask_daemon(self) -> None:
        client = self._where.client()
        async with client.stream(
            "add", connection=self._connection, replace=self._replaces, wait=self._waits
        ) as events:
            async for found in events:
                self._note(_finding(found))
            result: Any = events.result
        status = msgspec.convert(result["status"], ConnectionStatus)
        if self._as_json:
            findings = [msgspec.to_builtins(finding) for finding in self._findings]
            click.echo(msgspec.json.format(msgspec.json.encode({**hcm_fields(status), "findings": findings})).decode())
        else:
            click.echo(f"{status.name} is saved in {result['file']}, and {_what_now(status)}")

    async def _do_it_here(self) -> None:
        _refuse_beside_the_service()
        book = self._where.book()
        path = await trio.to_thread.run_sync(lambda: book.save(self._connection, replaces=self._replaces))
        if self._waits:
            await examine_hcm_way(self._connection, self._emit)
        text = f"{self._connection.name} is saved in {path}; no daemon runs here, start it with: {START_COMMAND}"
        click.echo(text, err=self._as_json)

    async def _emit(self, finding: Finding) -> None:
        self._note(finding)
        await trio.lowlevel.checkpoint()

    def _note(self, finding: Finding) -> None:
        self._findings.append(finding)
        if not self._as_json:
            click.echo("\n".join(finding_lines(finding)))


def _finding(found: object) -> Finding:
    return msgspec.convert(found, Finding)


def _what_now(status: ConnectionStatus) -> str:
    if status.relay_leg == "Connected":
        return "this daemon listens on it"
    return f"is {status.status}; see: relaycore hcm status"


def _refuse_beside_the_service() -> None:
    """A service that is stopped has settings of its own, which it could not read if root wrote them for it."""
    if os.geteuid() == 0 and Path("/etc/systemd/system", UNIT_NAME).exists() and not os.environ.get("RELAYCORE_CONFIG"):
        raise ConfigError(f"the service is installed, and does not run; first: systemctl start {UNIT_NAME}")


@click.command("remove")
@where_options
@meant_options()
def remove_command(meant: Meant, where: Where) -> None:
    """Take the connection NAME out of the settings and leave the relay. Connections that are open may end.

    Only what `add` or `import` has written is changed; what stands in a file of yours, you take out of it.
    """

    async def act() -> tuple[str, str]:
        client = where.client()
        try:
            name = await meant.find_name(client)
            async with patience(_WAITING.format(name)):
                found = await call_as(dict[str, str], client, "remove", name=name)
        except NotRunning:
            book = where.book()
            connections = book.load().settings.hcm.connections
            names = [one.name for one in connections if meant.matches_settings(one)]
            name = names[0] if len(names) == 1 else meant.name or meant.path or ""
            return name, str(await trio.to_thread.run_sync(book.remove, name))
        return found["name"], found["file"]

    name, file = run(act)
    click.echo(f"{name} is removed from {file}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@where_options
@click.option(
    "--from",
    "form",
    type=click.Choice(["auto", *FORMS, "azbridge"]),
    default="auto",
    show_default=True,
    help="Whose FILE it is: HCM's connections.json, the classic HCM's .exe.config, azbridge's YAML.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@click.option("--replace", is_flag=True, help="In place of connections of the same names.")
def import_command(where: Where, file: Path, form: str, dry_run: bool, replace: bool) -> None:
    """Take over the connections that another tool listens on. What cannot be carried over is said."""
    entries, remarks = read_any(file, None if form == "auto" else form)
    for remark in remarks:
        click.echo(f"note: {remark}", err=True)
    connections = [entry for entry in entries if isinstance(entry, HcmConnection)]
    if not connections:
        raise ConfigError("there is no connection to listen on in it; see: relaycore connect import", source=str(file))
    for connection in connections:
        target = "the endpoint in its metadata" if needs_metadata(connection) else endpoint_text(connection)
        click.echo(f"{connection.name}: {connection.path} -> {target}")
        if not dry_run:
            # One by one: those that are good are there even if a later one is not.
            code = run(_Adding(where, connection, replaces=replace, waits=False, as_json=False).run)
            assert code == 0, "nothing was looked at"
