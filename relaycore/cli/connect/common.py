"""What the commands share: which forward is meant, how a running forwarder is asked, and how failures leave."""

from __future__ import annotations

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
    from ...edge.control.client import ControlClient

__all__ = ["START", "NotCarried", "client_of", "find_forward", "port_of", "state_file"]

START: Final = "relaycore connect run"

_SERVICE_SOCKET: Final = Path("/run/relaycore-connect/connect.sock")
"""Where the system's service has its socket, whoever asks."""


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
      ConfigError: there is none, or a host without a port leads to several.
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
    raise ConfigError(f"no forward is called {name!r}, or leads there{where}; {known}")


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
