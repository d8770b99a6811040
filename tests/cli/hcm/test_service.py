"""The unit for systemd: what systemd says of it, and what happens where systemd does not run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from relaycore.cli.hcm import service
from relaycore.cli.hcm.service import system_unit, user_unit

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def verify(tmp_path, text, *options):
    path = tmp_path / "relaycore-hcm.service"
    path.write_text(text)
    environ = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    return subprocess.run(
        ["systemd-analyze", "verify", *options, str(path)],
        check=False, capture_output=True, text=True, env=environ, timeout=60,
    )  # fmt: skip


@analyze
@pytest.mark.parametrize("for_user", [False, True])
def test_systemd_takes_the_unit(tmp_path, for_user):
    unit = user_unit if for_user else system_unit
    done = verify(tmp_path, unit(f"{sys.executable} -m relaycore"), *(["--user"] if for_user else []))
    assert done.returncode == 0, done.stderr
    assert "relaycore-hcm" not in done.stderr


@analyze
def test_systemd_counts_it_as_well_protected(tmp_path):
    path = tmp_path / "relaycore-hcm.service"
    path.write_text(system_unit("/usr/bin/relaycore"))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(path)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


def test_the_unit_says_what_the_daemon_does():
    text = system_unit("/opt/relaycore/bin/relaycore")
    for line in (
        "Type=notify",
        "ExecStart=/opt/relaycore/bin/relaycore hcm run --config /etc/relaycore/relaycore.toml"
        " --saved %S/relaycore/hcm.d",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "DynamicUser=yes",
        "LoadCredential=keys:/etc/relaycore/keys",
        "CapabilityBoundingSet=",
        "WatchdogSec=30",
    ):
        assert line in text.splitlines()
    assert "ProtectHome=read-only" in system_unit("/home/me/venv/bin/relaycore")


def test_words_are_quoted_as_systemd_reads_them():
    assert service._quoted('/a b/50%/$x"\\') == '"/a b/50%%/$$x\\"\\\\"'
    assert service._quoted("/plain") == "/plain"


def test_print_does_nothing(invoke, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_SYSTEM_DIRECTORY", tmp_path / "system")
    result = invoke("hcm", "service", "install", "--print")
    assert result.exit_code == 0
    assert result.output.startswith("[Unit]\n")
    assert not (tmp_path / "system").exists()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Directories of the test in place of the system's, and no systemd."""
    monkeypatch.setattr(service, "_SYSTEM_DIRECTORY", tmp_path / "system")
    monkeypatch.setattr(service, "_CONFIG", tmp_path / "etc" / "relaycore.toml")
    monkeypatch.setattr(service, "_KEYS", tmp_path / "etc" / "keys")
    monkeypatch.setattr(service, "_runs_here", lambda _: False)
    return tmp_path


def test_install_and_uninstall_where_systemd_does_not_run(invoke, elsewhere):
    result = invoke("hcm", "service", "install")
    assert result.exit_code == 0, result.output
    unit = elsewhere / "system" / "relaycore-hcm.service"
    assert f"written: {unit}" in result.output
    assert "then: systemctl daemon-reload && systemctl enable --now relaycore-hcm.service" in result.output
    assert (elsewhere / "etc" / "keys").stat().st_mode & 0o777 == 0o700
    assert invoke("hcm", "config", "check", "--config", str(elsewhere / "etc" / "relaycore.toml")).exit_code == 0
    (elsewhere / "etc" / "relaycore.toml").write_text("# mine\n")
    added = elsewhere / "etc" / "relaycore.d" / "orders.toml"
    added.parent.mkdir()
    added.touch(0o600)
    result = invoke("hcm", "service", "install")
    assert result.exit_code == 0
    assert f"the service cannot read {added}" in result.output
    assert (elsewhere / "etc" / "relaycore.toml").read_text() == "# mine\n"
    assert invoke("hcm", "service", "uninstall").output == f"removed: {unit}\n"
    assert not unit.exists()


def test_calls_of_systemctl(invoke, elsewhere, monkeypatch):
    calls = []
    monkeypatch.setattr(service, "_runs_here", lambda _: True)
    monkeypatch.setattr(service, "_call", calls.append)
    assert invoke("hcm", "service", "install", "--user").exit_code == 0
    assert invoke("hcm", "service", "uninstall", "--user").exit_code == 0
    assert calls == [
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "enable", "relaycore-hcm.service"],
        ["systemctl", "--user", "restart", "relaycore-hcm.service"],
        ["systemctl", "--user", "disable", "--now", "relaycore-hcm.service"],
        ["systemctl", "--user", "daemon-reload"],
    ]


def test_status_where_there_is_no_systemd(invoke, elsewhere):
    result = invoke("hcm", "service", "status")
    assert result.exit_code == 3
    assert "systemd does not run here; no unit is installed" in result.output
