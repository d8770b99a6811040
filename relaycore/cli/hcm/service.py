"""``relaycore hcm service``: the daemon as a systemd service.

The system's unit runs as a user that exists only while it runs, may write nothing but its own state, and has no
capability. Hence its three places:

- ``/etc/relaycore/relaycore.toml`` holds settings and no secret; everybody may read it
- ``/etc/relaycore/keys/NAME`` holds a key; root reads it, and hands it over as the credential ``keys_NAME``
- ``/var/lib/relaycore/hcm.d`` is the service's own: ``relaycore hcm add`` has it write there, key included
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from ...errors import ConfigError
from ..exits import ExitCode, StartupError

__all__ = ["UNIT_NAME", "service_command", "system_unit", "user_unit"]

UNIT_NAME: Final = "relaycore-hcm.service"

_SYSTEM_DIRECTORY: Final = Path("/etc/systemd/system")
_CONFIG: Final = Path("/etc/relaycore/relaycore.toml")
_KEYS: Final = Path("/etc/relaycore/keys")

_CONFIG_TEXT: Final = """\
# Settings of relaycore hcm and relaycore connect; see docs/edge-configuration.md. Everybody may read this file: keys
# belong into /etc/relaycore/keys, one file each, and are named here by  key = { credential = "keys_FILE" }

# [relay.main]
# endpoint = "sb://relay.example:9443/"

# [[hcm.connection]]
# name = "orders-sql"
# relay = "main"
# key_name = "defaultListener"
# key = { credential = "keys_orders-sql" }
"""

_COMMON: Final = """\
[Unit]
Description=relaycore connection manager for hybrid connections
{after}
[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# Wrong command line or settings, and a port that is taken: trying again would not help.
RestartPreventExitStatus=2 3 9
WatchdogSec=30
# Above the drain timeouts of the connections, which are 30 s unless they are set.
TimeoutStopSec=90
LimitNOFILE=65536
UMask=0077
NoNewPrivileges=yes
"""

_AFTER_NETWORK: Final = "Wants=network-online.target\nAfter=network-online.target nss-lookup.target\n"
"""Of the system's manager only; a user's one does not know these."""

_SANDBOX: Final = """\
DynamicUser=yes
RuntimeDirectory=relaycore
RuntimeDirectoryMode=0700
StateDirectory=relaycore
StateDirectoryMode=0700
LoadCredential=keys:{keys}
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""

_USER: Final = """\
RestrictRealtime=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=default.target
"""

_HOMES: Final = ("/home/", "/root/", "/run/user/")


def system_unit(program: str, config: Path = _CONFIG, keys: Path = _KEYS) -> str:
    """Return the unit for the whole machine.

    Args:
      program: words that start relaycore, the first an absolute path.
    """
    command = f"{program} hcm run --config {_quoted(str(config))} --saved %S/relaycore/hcm.d"
    protect_home = "read-only" if program.startswith(_HOMES) else "yes"
    return _COMMON.format(command=command, after=_AFTER_NETWORK) + _SANDBOX.format(keys=keys, protect_home=protect_home)


def user_unit(program: str, config: Path | None = None) -> str:
    """Return the unit for one user's own manager; `config` as of ``run``."""
    option = f" --config {_quoted(str(config))}" if config is not None else ""
    return _COMMON.format(command=f"{program} hcm run{option}", after="") + _USER


def _quoted(word: str) -> str:
    """A word of a command line as systemd.service(5) reads it."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(char in word for char in " \t'\"\\;") else word


def _program() -> str:
    """What starts this program, without a shell and from any directory."""
    if sys.argv[0].endswith("__main__.py"):
        return f"{_quoted(os.path.abspath(sys.executable))} -m relaycore"
    return _quoted(os.path.abspath(sys.argv[0]))


@click.group("service", no_args_is_help=True)
def service_command() -> None:
    """Install the daemon as a systemd service, remove it, or see how it is."""


_user_option = click.option("--user", "for_user", is_flag=True, help="This user's own service, not the machine's.")


@service_command.command("install")
@_user_option
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and do nothing.")
@click.option("--no-start", is_flag=True, help="Write the unit; do not enable or start it.")
@click.option(
    "--config",
    "config",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Its settings.  [default: {_CONFIG}; with --user that user's own]",
)
def install_command(for_user: bool, only_print: bool, no_start: bool, config: Path | None) -> None:
    """Write the unit, enable and start it. What is there already is written anew; settings are not touched."""
    config = config.absolute() if config is not None else None
    text = user_unit(_program(), config) if for_user else system_unit(_program(), config or _CONFIG)
    if only_print:
        click.echo(text, nl=False)
        return
    path = _unit_path(for_user=for_user)
    try:
        if not for_user:
            _prepare(config or _CONFIG)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except PermissionError as error:
        raise StartupError(
            f"{error.filename or path}: root alone may write there; use sudo, or install --user", ExitCode.PORT
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(path)) from error
    click.echo(f"written: {path}")
    if not for_user and _program().startswith(_HOMES):
        click.echo(
            "relaycore: warning: this program lies in a home directory, which the service's own user may not be able to"
            " read; install relaycore below /opt or /usr/local for a service",
            err=True,
        )
    for file in [] if for_user else _unreadable(config or _CONFIG):
        click.echo(
            f"relaycore: warning: the service cannot read {file}, which root alone may; move it to"
            " /var/lib/relaycore/hcm.d, which systemd gives to the service",
            err=True,
        )
    systemctl = _systemctl(for_user=for_user)
    if no_start or not _runs_here(systemctl):
        words = " ".join(systemctl)
        click.echo(f"then: {words} daemon-reload && {words} enable --now {UNIT_NAME}")
        return
    _call([*systemctl, "daemon-reload"])
    _call([*systemctl, "enable", UNIT_NAME])
    _call([*systemctl, "restart", UNIT_NAME])  # one that runs already has to take the new unit
    click.echo(f"{UNIT_NAME} is enabled and running; see: relaycore hcm status")


@service_command.command("uninstall")
@_user_option
def uninstall_command(for_user: bool) -> None:
    """Stop the service and remove its unit. Settings, keys and what was added stay where they are."""
    path = _unit_path(for_user=for_user)
    systemctl = _systemctl(for_user=for_user)
    if not path.exists():
        raise ConfigError("there is no such unit; nothing is installed", source=str(path))
    runs = _runs_here(systemctl)
    if runs:
        _call([*systemctl, "disable", "--now", UNIT_NAME])
    try:
        path.unlink()
    except OSError as error:
        raise StartupError(f"{path} cannot be removed: {error.strerror}", ExitCode.PORT) from error
    if runs:
        _call([*systemctl, "daemon-reload"])
    click.echo(f"removed: {path}")


@service_command.command("status")
@_user_option
def status_command(for_user: bool) -> int:
    """Say what systemd knows of the service. The exit code is systemctl's: 0 running, 3 stopped, 4 not installed."""
    systemctl = _systemctl(for_user=for_user)
    if not _runs_here(systemctl):
        where = _unit_path(for_user=for_user)
        state = f"the unit is {where}" if where.exists() else "no unit is installed"
        raise ConfigError(f"systemd does not run here; {state}")
    return subprocess.run([*systemctl, "status", "--no-pager", UNIT_NAME], check=False).returncode


def _unit_path(*, for_user: bool, environ: Mapping[str, str] = os.environ) -> Path:
    if not for_user:
        return _SYSTEM_DIRECTORY / UNIT_NAME
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return home / "systemd" / "user" / UNIT_NAME


def _prepare(config: Path) -> None:
    """Settings and keys where the unit looks for them, if they are not there yet."""
    config.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _KEYS.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        fd = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(_CONFIG_TEXT)


def _unreadable(config: Path) -> list[Path]:
    """Settings that the service would stumble over: it is no user that owns anything before it runs."""
    files = [config, *sorted(config.with_name(f"{config.stem}.d").glob("*.toml"))]
    return [file for file in files if not file.stat().st_mode & 0o004]


def _systemctl(*, for_user: bool) -> list[str]:
    return ["systemctl", "--user"] if for_user else ["systemctl"]


def _runs_here(systemctl: list[str]) -> bool:
    """Whether this machine was started by systemd (sd_booted(3))."""
    return shutil.which(systemctl[0]) is not None and Path("/run/systemd/system").is_dir()


def _call(words: list[str]) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ConfigError(f"{' '.join(words)} failed with code {done.returncode}: {said}")
