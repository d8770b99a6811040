"""``relaycore hcm test`` and ``doctor``: what works, and what is to blame where something does not."""

from __future__ import annotations

import time
from contextlib import aclosing
from pathlib import Path
from typing import Literal

import click
import msgspec

from ...edge.access import RelayAccess
from ...edge.config.load import Loaded, parse_target, show
from ...edge.config.settings import HcmConnection, HcmSettings, RelaySettings
from ...edge.control.client import ControlClient
from ...edge.control.protocol import NotRunning
from ...edge.diagnose.doctor import bundle, examine_hcm_connection, examine_hcm_way
from ...edge.diagnose.steps import Finding, examine_endpoint, examine_relay
from ...edge.hcm.plan import UnknownConnection
from ...edge.hcm.status import ManagerStatus, TargetCheck
from ...edge.target.policy import Policy
from ...errors import ConfigError, RelayError
from ..exits import ExitCode
from ..options import raise_file_limit, run
from ..report import Printer, known_secrets, write_private
from ..version import versions
from .asking import Meant, call_as, fetch_status, meant_options
from .findings import finding_of_limits, findings_of_checks
from .where import START_COMMAND, Where, where_options
from .words import clean, span, times

__all__ = ["doctor_command", "test_command"]


# test ----------------------------------------------------------------------------------------------------------------


@click.command("test")
@where_options
@meant_options()
def test_command(meant: Meant, where: Where) -> int:
    """Dial the endpoint of the connection NAME, from where the daemon runs.

    NAME may also be HOST:PORT, which is dialled from here, or the host name of a relay, which is asked whether it is
    one. Exit code 7: the endpoint does not answer; 5: the relay does not.
    """
    printer = Printer()

    async def act() -> None:
        name = meant.name
        if name is not None and ":" in name:
            await printer.emit_all(examine_endpoint([parse_target(name)]))
            return
        try:
            await _test_connection(meant, where, printer)
        except UnknownConnection:
            if name is None or "." not in name:
                raise
            await _test_relay(name, printer)

    run(act)
    return printer.exit_code


async def _test_connection(meant: Meant, where: Where, printer: Printer) -> None:
    client = where.client()
    try:
        name = meant.find(await fetch_status(client)).name
    except NotRunning:
        loaded = where.book().load()
        connection = _find(meant, loaded.settings.hcm)
        await examine_hcm_way(connection, printer.emit, policy=_policy(loaded.settings.hcm))
        return
    for finding in findings_of_checks(await call_as(list[TargetCheck], client, "test", name=name), name, level="fail"):
        printer.note(finding)


async def _test_relay(host: str, printer: Printer) -> None:
    """As far as one gets without a hybrid connection and a key."""
    connection = HcmConnection(name=host, relay=RelaySettings("", f"sb://{host}/"), path="-")
    async with aclosing(examine_relay(RelayAccess.of(connection), role="listen")) as findings:
        async for finding in findings:
            if finding.step in ("token", "entity", "settings"):
                break
            printer.note(finding)


def _find(meant: Meant, settings: HcmSettings) -> HcmConnection:
    found = [one for one in settings.connections if meant.matches_settings(one)]
    if len(found) != 1:
        raise UnknownConnection(meant.name or meant.path or "", [one.name for one in settings.connections])
    return found[0]


def _policy(settings: HcmSettings) -> Policy:
    return Policy(settings.policy)


# doctor --------------------------------------------------------------------------------------------------------------


@click.command("doctor")
@where_options
@meant_options(is_required=False)
@click.option(
    "--bundle",
    "bundle_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all of it, with status, settings, events and log, without secrets, to be sent to somebody.",
)
def doctor_command(meant: Meant, where: Where, bundle_file: Path | None) -> int:
    """Look at everything from the settings to the endpoints: of all connections, or of NAME.

    Each finding has a line of cause and a line of remedy. The exit code is that of the first failure.
    """
    raise_file_limit()  # as the daemon does, so that the limit that is judged is the daemon's
    doctor = _Doctor(meant, where)
    run(doctor.run)
    if bundle_file is not None:
        write_private(bundle_file, run(doctor.bundle))
        click.echo(f"written: {bundle_file}")
    return doctor.printer.exit_code


class _Doctor:
    """One examination."""

    def __init__(self, meant: Meant, where: Where) -> None:
        self.printer = Printer()
        self._meant = meant
        self._where = where
        self._client: ControlClient = where.client()
        self._loaded: Loaded | None = None
        self._status: ManagerStatus | None = None

    async def run(self) -> None:
        self._look_at_settings()
        await self._look_at_daemon()
        for name in self._names():
            click.echo(f"{clean(name)}:")
            await self._look_at(name)

    def _note(
        self, level: Literal["ok", "warn", "fail"], step: str, text: str, remedy: str = "", exit_code: int = 0
    ) -> None:
        self.printer.note(Finding(level, step, text, remedy, exit_code=exit_code))

    def _look_at_settings(self) -> None:
        try:
            self._loaded = loaded = self._where.book().load()
        except ConfigError as error:
            self._note("fail", "settings", str(error), "Correct it; then: relaycore hcm config check", ExitCode.CONFIG)
            return
        count = len(loaded.settings.hcm.connections)
        files = ", ".join(map(str, loaded.files)) or "no file"
        self._note("ok", "settings", f"settings are good: {times(count, 'connection')}, from {files}")
        for warning in loaded.warnings:
            self._note("warn", "settings", warning)

    async def _look_at_daemon(self) -> None:
        try:
            self._status = await fetch_status(self._client)
        except NotRunning as error:
            self._note("warn", "daemon", str(error), f"Start it: {START_COMMAND}")
        except RelayError as error:
            self._note("warn", "daemon", str(error))
        else:
            age = span(time.time() - self._status.since_unix)
            self._note("ok", "daemon", f"a daemon answers at {self._client.path}, up {age}")

    def _names(self) -> list[str]:
        if self._status is not None:
            there = [self._meant.find(self._status)] if self._meant.is_given else self._status.connections
            return [one.name for one in there]
        if self._loaded is None:
            return []
        settings = self._loaded.settings.hcm
        found = [_find(self._meant, settings)] if self._meant.is_given else settings.connections
        return [one.name for one in found]

    async def _look_at(self, name: str) -> None:
        if self._status is None:
            assert self._loaded is not None
            settings = self._loaded.settings.hcm
            connection = _find(Meant(name), settings)
            await examine_hcm_connection(connection, self.printer.emit, policy=_policy(settings))
            self.printer.note(finding_of_limits(connection.limits, None))
            return
        async with self._client.stream("examine", name=name) as events:
            async for found in events:
                self.printer.note(msgspec.convert(found, Finding))
        one = next(one for one in self._status.connections if one.name == name)
        error, unix = one.error_behind
        if error:
            when = "" if unix is None else f" ({span(time.time() - unix)} ago)"
            self._note("warn" if not one.is_serving else "ok", "last error", f"last error{when}: {error}")

    async def bundle(self) -> str:
        """All that is known, without secrets."""
        sections = {"versions": "\n".join(f"{name} {value}" for name, value in versions().items())}
        secrets: list[str] = []
        if self._loaded is not None:
            sections["settings"] = show(self._loaded, effective=False, origin=True)
            secrets = known_secrets(self._loaded.settings.hcm.connections)
        if self._status is not None:
            sections["status"] = msgspec.json.format(msgspec.json.encode(self._status)).decode()
            for name in ("events", "logs"):
                lines: list[str] = []
                async with self._client.stream(name) as found:
                    async for line in found:
                        lines.append(line if isinstance(line, str) else msgspec.json.encode(line).decode())
                sections[name] = "\n".join(lines)
        return bundle(self.printer.findings, sections, secrets)
