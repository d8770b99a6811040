"""What the commands may ask of a running manager; see `relaycore.edge.control.protocol` for the words around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from ...edge.access import RelayAccess
from ...edge.config.settings import HcmConnection
from ...edge.control.protocol import Arguments, Call, Emit
from ...edge.diagnose.doctor import examine_hcm_connection
from ...edge.diagnose.steps import Finding, examine_relay
from ...edge.hcm.plan import Plan
from ...edge.hcm.status import TargetCheck
from ...edge.target.dial import DialFailed
from ...edge.target.policy import Policy
from ...errors import ConfigError
from ..exits import ExitCode
from ..version import versions
from .findings import finding_of_limits, finding_of_listening, findings_of_checks, needs_metadata

if TYPE_CHECKING:
    from ...edge.config.load import Loaded
    from ...edge.hcm.manager import Manager
    from .book import SettingsBook
    from .log_book import LogBook

__all__ = ["Program", "make_calls"]

_LOG_POLL: Final = 0.25
"""Seconds between two looks for new log lines; a thread writes them, which cannot wake us."""

_SETTLE: Final = 30.0
"""Seconds that a new connection has to register before `add` says that it goes on trying."""


class Program(Protocol):
    """The daemon, as calls see it."""

    @property
    def manager(self) -> Manager: ...

    @property
    def book(self) -> SettingsBook: ...

    @property
    def logs(self) -> LogBook: ...

    @property
    def loaded(self) -> Loaded: ...

    async def reload(self) -> Plan: ...


def make_calls(program: Program) -> Mapping[str, Call]:
    """The calls, by name."""
    calls = _Calls(program)
    return {name.removeprefix("do_"): getattr(calls, name) for name in vars(_Calls) if name.startswith("do_")}


class _Calls:
    """Each ``do_NAME`` is a call."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @property
    def _manager(self) -> Manager:
        return self._program.manager

    # Looking ---------------------------------------------------------------------------------------------------------

    async def do_status(self, _: Arguments, __: Emit) -> object:
        self._manager.look_again()
        await trio.lowlevel.checkpoint()
        return self._manager.status()

    async def do_sessions(self, arguments: Arguments, _: Emit) -> object:
        await trio.lowlevel.checkpoint()
        return self._manager.sessions(arguments.maybe_text("name"))

    async def do_about(self, _: Arguments, __: Emit) -> object:
        """What runs, and with which files."""
        await trio.lowlevel.checkpoint()
        loaded = self._program.loaded
        return {"versions": versions(), "files": [str(file) for file in loaded.files], "warnings": loaded.warnings}

    async def do_events(self, arguments: Arguments, emit: Emit) -> object:
        """Those that are remembered, and with ``follow`` what happens until the manager ends."""
        name = arguments.maybe_text("name")
        events = self._manager.events()  # before the old ones are sent, so that none falls between
        try:
            for event in self._manager.recent_events() if arguments.flag("recent", True) else ():
                if name in (None, event.name):
                    await emit(event)
            if arguments.flag("follow"):
                async for event in events:
                    if name in (None, event.name):
                        await emit(event)
        finally:
            events.close()
        return None

    async def do_logs(self, arguments: Arguments, emit: Emit) -> object:
        """The last ``lines`` ones, and with ``follow`` further ones."""
        logs = self._program.logs
        lines, seen = logs.since(logs.count - int(arguments.number("lines", 200)))
        for line in lines:
            await emit(line)
        while arguments.flag("follow"):
            await trio.sleep(_LOG_POLL)
            lines, seen = logs.since(seen)
            for line in lines:
                await emit(line)
        return None

    # Steering --------------------------------------------------------------------------------------------------------

    async def do_pause(self, arguments: Arguments, _: Emit) -> object:
        return await self._each(arguments, self._manager.pause)

    async def do_resume(self, arguments: Arguments, _: Emit) -> object:
        return await self._each(arguments, self._manager.resume)

    async def do_restart(self, arguments: Arguments, _: Emit) -> object:
        return await self._each(arguments, self._manager.restart)

    async def do_drain(self, arguments: Arguments, _: Emit) -> object:
        """Returns when the open connections have ended. It goes on when whoever asked has gone."""
        names = self._names(arguments)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._manager.drain, name)
        return names

    async def do_reload(self, _: Arguments, __: Emit) -> object:
        plan = await self._program.reload()
        return {"plan": plan, "lines": plan.lines(), "warnings": self._program.loaded.warnings}

    async def _each(self, arguments: Arguments, act: Callable[[str], None]) -> list[str]:
        names = self._names(arguments)
        for name in names:
            act(name)
        await trio.lowlevel.checkpoint()
        return names

    def _names(self, arguments: Arguments) -> list[str]:
        if arguments.flag("all"):
            return list(self._manager.names)
        name = arguments.text("name")
        self._manager.connection_status(name)  # raises for one that is not there
        return [name]

    # Changing --------------------------------------------------------------------------------------------------------

    async def do_add(self, arguments: Arguments, emit: Emit) -> object:
        """Save a connection, begin to listen, and with ``wait`` emit a finding for each step on the way."""
        try:
            connection = msgspec.convert(
                arguments.values.get("connection"), HcmConnection, strict=False, dec_hook=_from_plain
            )
        except msgspec.ValidationError as error:
            raise ConfigError(f"is no connection: {error}", key="connection") from None
        replaces = arguments.flag("replace")
        path: Path = await trio.to_thread.run_sync(lambda: self._program.book.save(connection, replaces=replaces))
        await self._program.reload()
        if arguments.flag("wait", True):
            await self._examine_relay(connection, emit)
            with trio.move_on_after(_SETTLE):
                await self._manager.wait_settled(connection.name)
            await emit(finding_of_listening(self._manager.connection_status(connection.name)))
            for finding in findings_of_checks(await self._check(connection.name), connection.name):
                await emit(finding)
        return {"name": connection.name, "file": str(path), "status": self._manager.connection_status(connection.name)}

    async def do_remove(self, arguments: Arguments, _: Emit) -> object:
        """Take it out of its file, and leave the relay; open connections drain behind that."""
        name = arguments.text("name")
        path = await trio.to_thread.run_sync(self._program.book.remove, name)
        if name in self._manager.names:  # the change of the file may have been seen by now
            await self._manager.remove(name)
        return {"name": name, "file": str(path)}

    # Examining -------------------------------------------------------------------------------------------------------

    async def do_test(self, arguments: Arguments, _: Emit) -> object:
        """Dial each target of a connection once."""
        name = arguments.text("name")
        self._manager.connection_status(name)
        return await self._check(name)

    async def do_examine(self, arguments: Arguments, emit: Emit) -> object:
        """Look at all that a connection needs, from the key to the endpoint, and emit a finding for each step."""
        name = arguments.text("name")
        status = self._manager.connection_status(name)
        connection = next(one for one in self._manager.settings.connections if one.name == name)
        policy = Policy(self._manager.settings.policy)
        await examine_hcm_connection(connection, emit, policy=policy, open_connections=status.open)
        status = self._manager.connection_status(name)
        await emit(finding_of_listening(status))
        await emit(finding_of_limits(connection.limits, status))
        return status

    async def _examine_relay(self, connection: HcmConnection, emit: Emit) -> None:
        try:
            access = RelayAccess.of(connection)
        except ConfigError as error:
            await emit(Finding("fail", "settings", str(error), exit_code=ExitCode.CONFIG))
            return
        async with aclosing(
            examine_relay(access, role="listen", needs_endpoint=needs_metadata(connection))
        ) as findings:
            async for finding in findings:
                await emit(finding)

    async def _check(self, name: str) -> list[TargetCheck]:
        try:
            return await self._manager.test(name)
        except DialFailed as error:
            return [TargetCheck(target="", is_up=False, text=error.text, kind=error.kind, seconds=0.0)]


def _from_plain(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError
