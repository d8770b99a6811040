"""Exit codes: each failure of a start has its own, and all of them are documented."""

from __future__ import annotations

import errno
import re
import ssl
from pathlib import Path

import pytest

import relaycore.cli
from relaycore.cli.exits import ExitCode, StartupError, exit_code_for, leaves
from relaycore.errors import ConfigError

ROOT = Path(relaycore.cli.__file__).parents[2]


def caused(error: ConfigError, cause: BaseException) -> ConfigError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("key", "cause", "code"),
    [
        ("server.port", OSError(errno.EADDRINUSE, "Address already in use"), ExitCode.PORT_IN_USE),
        ("server.port", PermissionError(errno.EACCES, "Permission denied"), ExitCode.PORT_PRIVILEGED),
        ("server.port", OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), ExitCode.CONFIG),
        ("tls.cert", FileNotFoundError(errno.ENOENT, "No such file"), ExitCode.CERTIFICATE_UNREADABLE),
        ("tls.key", PermissionError(errno.EACCES, "Permission denied"), ExitCode.CERTIFICATE_UNREADABLE),
        ("tls.cert", ssl.SSLError(1, "no start line"), ExitCode.CERTIFICATE_UNREADABLE),
        ("tls.cert", ssl.SSLError(1, "[X509: KEY_VALUES_MISMATCH] key values mismatch"), ExitCode.CERTIFICATE_MISMATCH),
        ("store.path", OSError(errno.EACCES, "Permission denied"), ExitCode.CONFIG),
    ],
)
def test_a_start_that_fails_says_how(key, cause, code):
    assert exit_code_for(caused(ConfigError("no", key=key), cause)) is code


def test_a_setting_that_is_merely_wrong_is_a_config_error():
    assert exit_code_for(ConfigError("expected int", key="server.port")) is ExitCode.CONFIG
    assert exit_code_for(ConfigError("needs tls.key", key="tls.cert")) is ExitCode.CONFIG
    assert exit_code_for(StartupError("busy", ExitCode.STORE_LOCKED)) is ExitCode.STORE_LOCKED


def test_groups_are_taken_apart():
    inner = [ValueError("a"), KeyError("b")]
    assert list(leaves(BaseExceptionGroup("", [ExceptionGroup("", inner), KeyboardInterrupt()])))[:2] == inner
    assert list(leaves(inner[0])) == [inner[0]]


def test_every_code_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    documented = {int(found) for found in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}
