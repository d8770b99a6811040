"""The commands below ``relaycore hcm``."""

from __future__ import annotations

from typing import Final

from ..lazy import LazyCommands

__all__ = ["SUBCOMMANDS", "command"]

_HERE: Final = "relaycore.cli.hcm"

SUBCOMMANDS: Final = {
    "run": (f"{_HERE}.daemon:run_command", "Listen on all connections of the settings, until a signal ends it."),
    "add": (f"{_HERE}.changing:add_command", "Add a connection, and see it come up step by step."),
    "list": (f"{_HERE}.looking:list_command", "List the connections."),
    "show": (f"{_HERE}.looking:show_command", "Show all that is known of one connection."),
    "remove": (f"{_HERE}.changing:remove_command", "Take a connection out of the settings; what is open may end."),
    "restart": (f"{_HERE}.steering:restart_command", "Register anew, and ask relay and endpoint again."),
    "pause": (f"{_HERE}.steering:pause_command", "Take no new connections; what is open goes on."),
    "resume": (f"{_HERE}.steering:resume_command", "Take connections again."),
    "drain": (f"{_HERE}.steering:drain_command", "Take no new connections, and wait until the open ones have ended."),
    "test": (f"{_HERE}.examining:test_command", "Dial an endpoint, or ask a relay."),
    "doctor": (f"{_HERE}.examining:doctor_command", "Find out what is wrong, with cause and remedy."),
    "status": (f"{_HERE}.looking:status_command", "Show the live table of connections."),
    "events": (f"{_HERE}.following:events_command", "Show what happens, as it happens."),
    "logs": (f"{_HERE}.following:logs_command", "Show the daemon's last log lines."),
    "reload": (f"{_HERE}.steering:reload_command", "Read the settings anew and apply what has changed."),
    "config": (f"{_HERE}.looking:config_command", "Check or show the settings."),
    "service": (f"{_HERE}.service:service_command", "Install the daemon as a systemd service."),
    "import": (f"{_HERE}.changing:import_command", "Take over connections from HCM, azbridge or App Service."),
    "version": ("relaycore.cli.version:command", "Show versions."),
}

command = LazyCommands(
    name="hcm",
    commands_by_name=SUBCOMMANDS,
    no_args_is_help=True,
    help="""Listen on hybrid connections and lead their senders to endpoints near this machine.

    `relaycore hcm run` is the daemon; the other commands talk to it over its control socket, which only its own user
    and root may use. See docs/hcm.md.
    """,
)
