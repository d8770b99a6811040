"""``relaycore connect service``: the forwarder as a service of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from ...errors import ConfigError
from ..exits import ExitCode, StartupError

__all__ = ["command", "unit_text"]

_NAME: Final = "relaycore-connect.service"

_UNIT: Final = """\
# Written by `relaycore connect service install`.
[Unit]
Description=relaycore connect: local addresses of hybrid connections
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# Wrong command line or settings: trying again would not help.
RestartPreventExitStatus=2 3
WatchdogSec=60
TimeoutStopSec=30
LimitNOFILE=65536
# Of its own: the manager's belongs to another user.
RuntimeDirectory=relaycore-connect
RuntimeDirectoryMode=0700
StateDirectory=relaycore-connect
StateDirectoryMode=0700
{hardening}
[Install]
WantedBy={target}
"""

_HARDENING: Final = """\
# Ports below 1024 on the addresses of the pool, and nothing else.
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077
"""


def unit_text(command: Sequence[str], *, is_user: bool) -> str:
    """The unit: of the system, hardened, or of a user, where systemd grants less."""
    shown = " ".join(_quote(word) for word in command)
    if is_user:
        return _UNIT.format(command=shown, hardening="NoNewPrivileges=yes\nUMask=0077\n", target="default.target")
    return _UNIT.format(command=shown, hardening=_HARDENING, target="multi-user.target")


def _quote(word: str) -> str:
    """A word of ExecStart=, systemd.service(5)."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if " " in word or not word else word


@click.group("service")
def command() -> None:
    """Run `relaycore connect run` as a service of systemd."""


_user_option = click.option("--user", "is_user", is_flag=True, help="Of this user, not of the system.")
_config_option = click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="Its settings.")


def _command_line(config: Path | None) -> list[str]:
    words = [os.path.abspath(sys.executable), "-m", "relaycore", "connect", "run"]
    return words if config is None else [*words, "--config", str(config.absolute())]


def _place(is_user: bool) -> Path:
    if is_user:
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return Path(base, "systemd", "user", _NAME)
    return Path("/etc/systemd/system", _NAME)


@command.command("print")
@_user_option
@_config_option
def _print(is_user: bool, config: Path | None) -> None:
    """Print the unit."""
    click.echo(unit_text(_command_line(config), is_user=is_user), nl=False)


@command.command("install")
@_user_option
@_config_option
def _install(is_user: bool, config: Path | None) -> None:
    """Write the unit, enable it and start it."""
    file = _place(is_user)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(unit_text(_command_line(config), is_user=is_user))
    except OSError as error:
        advice = "; as another user than root: --user" if not is_user else ""
        raise StartupError(f"{file} cannot be written: {error.strerror}{advice}", ExitCode.PORT) from error
    click.echo(f"wrote {file}")
    _systemctl(is_user, "daemon-reload")
    _systemctl(is_user, "enable", "--now", _NAME)


@command.command("uninstall")
@_user_option
def _uninstall(is_user: bool) -> None:
    """Stop the service and remove its unit."""
    file = _place(is_user)
    if not file.exists():
        raise ConfigError(f"there is no {file}")
    _systemctl(is_user, "disable", "--now", _NAME)
    file.unlink()
    click.echo(f"removed {file}")
    _systemctl(is_user, "daemon-reload")


@command.command("status")
@_user_option
def _status(is_user: bool) -> int:
    """Show what systemd says about it."""
    return _systemctl(is_user, "status", "--no-pager", _NAME)


def _systemctl(is_user: bool, *words: str) -> int:
    program = shutil.which("systemctl")
    if program is None:
        click.echo("there is no systemctl here; the rest is up to you", err=True)
        return ExitCode.FAILED
    return subprocess.run([program, *(["--user"] if is_user else []), *words], check=False).returncode
