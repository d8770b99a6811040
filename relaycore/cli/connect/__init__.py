"""``relaycore connect``: local programs reach hybrid connections.

The commands' modules are loaded when they are called: `open` stands in the way of every ssh and git that goes through
it, and has no use for what the others need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..lazy import LazyCommands

__all__ = ["command"]

_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "run": ("run:command", "Forward until stopped."),
    "list": ("view:list_command", "Show the configured forwards and their addresses."),
    "status": ("view:status_command", "Show what a running `relaycore connect run` does."),
    "events": ("view:events_command", "Show what has happened, and with -f what happens."),
    "test": ("probe:test_command", "Try the way to an endpoint, leg by leg."),
    "doctor": ("probe:doctor_command", "Find out why it does not work."),
    "open": ("open:command", "Join standard input and output to an endpoint, as ssh's ProxyCommand."),
    "env": ("view:env_command", "Print variables that lead programs to the proxy port."),
    "hosts": ("hosts:command", "Lead names to their addresses by the hosts file."),
    "dns": ("dns:command", "Lead names to their addresses by DNS."),
    "add": ("change:add_command", "Add a forward."),
    "remove": ("change:remove_command", "Remove a forward that was added."),
    "import": ("change:import_command", "Take over forwards of other tools."),
    "reload": ("change:reload_command", "Have a running `relaycore connect run` read its settings again."),
    "config": ("config:command", "Check and show the settings."),
    "service": ("service:command", "Print or install the unit for systemd."),
}

command = LazyCommands(
    name="connect",
    commands_by_name={name: (f"{__name__}.{where}", text) for name, (where, text) in _COMMANDS.items()},
    help="Let local programs reach endpoints behind hybrid connections: by name, at addresses of their own, unchanged.",
    no_args_is_help=True,
)
