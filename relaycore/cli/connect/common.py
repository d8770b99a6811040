"""What the commands share: which forward is meant, how a running forwarder is asked, and how failures leave."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import ConfigError, Refused, RelayError
from ..exits import ExitCode, exit_code_for

if TYPE_CHECKING:
    from ...edge.access import RelayAccess
    from ...edge.config.load import Loaded
    from ...edge.config.settings import ConnectSettings, Forward
    from ...edge.connect.status import Redirection
    from ...edge.control.client import ControlClient

__all__ = [
    "PATIENCE_S",
    "START",
    "NotCarried",
    "ask_names",
    "client_of",
    "find_forward",
    "look_up",
    "port_of",
    "state_file",
]

START: Final = "relaycore connect run"

PATIENCE_S: Final = 5.0
"""For the running forwarder's answer."""

_SERVICE_SOCKET: Final = Path("/run/relaycore-connect/connect.sock")
"""Where the system's service has its socket, whoever asks."""


class NotFound(ConfigError):
    """Nothing in the settings is called so, or says that it leads there."""


class NotCarried(RelayError):
    """A connection did not come about; the message is the whole story, and ``exit_code`` what to leave with."""

    def __init__(self, error: BaseException, access: RelayAccess, forward: Forward) -> None:
        from ...edge.connect.attempt import explain

        super().__init__(explain(error, access, forward))
        is_endpoint = isinstance(error, Refused) and error.http_status in (502, 503, 504)
        self.exit_code = ExitCode.ENDPOINT_DOWN if is_endpoint else exit_code_for(error)


def find_forward(settings: ConnectSettings, name: str, port: int | None = None) -> Forward:
    """The forward of that name, or else the one that the host ``name`` at ``port`` leads to.

    Raises:
      ConfigError: a host without a port leads to several.
      NotFound: there is none; the relay may know better.
    """
    for forward in settings.forwards:
        if forward.name == name:
            return forward
    host = name.lower().rstrip(".")
    found = [
        forward
        for forward in settings.forwards
        if any(_matches(pattern.lower().rstrip("."), host) for pattern in forward.hosts)
        and (port is None or port in (port_of(forward), 0))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name!r} is meant by several forwards: {_names(found)}; name one of them")
    known = (
        f"there are: {_names(settings.forwards)}" if settings.forwards else "there are none; `relaycore connect add`"
    )
    where = "" if port is None else f" at port {port}"
    raise NotFound(f"no forward is called {name!r}, or leads there{where}; {known}")


async def look_up(loaded: Loaded, name: str, port: int | None = None) -> Forward:
    """As `find_forward`; where the settings say nothing, the hybrid connections' own texts count: as the running
    forwarder knows them, or else as the relay has them. A checkpoint.

    Returns: the forward as in the settings, with the port of such a text if they have none.

    Raises:
      ConfigError: as `find_forward`. If a text could not be read, with the reason.
    """
    settings = loaded.settings.connect
    try:
        return find_forward(settings, name, port)
    except NotFound as error:
        unknown = error
    silent = [forward for forward in settings.forwards if not forward.hosts and forward.asks_relay]
    if not silent:
        raise unknown
    told = await _ask_running(loaded, silent)
    if (found := _pick(told, name, port)) is not None:
        return found
    read, failures = await _ask_relay(silent)
    if (found := _pick(read, name, port)) is not None:
        return found
    if failures:
        raise NotFound(f"{unknown}; where others lead is not known: {'; '.join(failures)}")
    raise unknown


def _pick(forwards: Sequence[Forward], name: str, port: int | None) -> Forward | None:
    from ...edge.config.settings import ConnectSettings

    try:
        found = find_forward(ConnectSettings(forwards=tuple(forwards)), name, port)
    except NotFound:
        return None
    return dataclasses.replace(found, hosts=())


async def ask_names(loaded: Loaded) -> list[Redirection]:
    """Ask the running forwarder of these settings for the names that it has. A checkpoint.

    Raises:
      trio.TooSlowError: it did not answer within `PATIENCE_S`.
      RelayError: as `ControlClient.call`, among them that none runs.
    """
    import msgspec
    import trio

    from ...edge.connect.status import Redirection

    with trio.fail_after(PATIENCE_S):
        return msgspec.convert(await client_of(loaded).call("names"), list[Redirection])


async def _ask_running(loaded: Loaded, silent: Sequence[Forward]) -> list[Forward]:
    """Forwards with the names that the running forwarder has for them; none where it does not answer."""
    import trio

    try:
        names = await ask_names(loaded)
    except (RelayError, trio.TooSlowError):
        return []
    by_name = {forward.name: forward for forward in silent}
    return [_leading(by_name[one.forward], one.host, one.port) for one in names if one.forward in by_name and one.port]


async def _ask_relay(silent: Sequence[Forward]) -> tuple[list[Forward], list[str]]:
    """Forwards with what the relay has about them, and why there is nothing about others."""
    import trio

    from ...edge.access import RelayAccess
    from ...edge.config.settings import Target
    from ...edge.connect.attempt import explain
    from ...edge.connect.endpoint_text import find_target

    found: list[Forward] = []
    failures: list[str] = []

    async def read(forward: Forward) -> None:
        try:
            access = RelayAccess.of(forward)
        except RelayError as error:
            failures.append(f"{forward.name}: {error}")
            return
        answer = await find_target(access, forward.path)
        if isinstance(answer, Target):
            found.append(_leading(forward, answer.host, answer.port))
        else:
            why = str(answer) if isinstance(answer, ConfigError) else explain(answer, access, forward)
            failures.append(f"{forward.name}: {why}")

    async with trio.open_nursery() as nursery:
        for forward in silent:
            nursery.start_soon(read, forward)
    return found, failures


def _leading(forward: Forward, host: str, port: int) -> Forward:
    return dataclasses.replace(forward, hosts=(host.lower().rstrip("."),), port=forward.port or port)


def _matches(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _names(forwards: Sequence[Forward]) -> str:
    return ", ".join(forward.name for forward in forwards)


def port_of(forward: Forward) -> int:
    """The endpoint's port as far as the settings say it, else 0."""
    ports = {at.port for at in forward.listen if at.kind != "unix" and at.port}
    return forward.port or (ports.pop() if len(ports) == 1 else 0)


def client_of(loaded: Loaded) -> ControlClient:
    """How the running forwarder of these settings is asked; whether one runs shows then."""
    from ...edge.config.load import connect_socket
    from ...edge.control.client import ControlClient

    path = loaded.settings.connect.control.socket or connect_socket(os.environ)
    if loaded.settings.connect.control.socket is None and not path.exists() and _is_there(_SERVICE_SOCKET):
        path = _SERVICE_SOCKET
    return ControlClient(path, START)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def state_file() -> Path:
    """Where addresses are remembered."""
    from ...edge.config.load import state_directory

    return state_directory(os.environ) / "loopback.json"
