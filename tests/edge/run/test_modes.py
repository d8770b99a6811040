from __future__ import annotations

import pytest

from relaycore.edge.run import modes
from relaycore.edge.run.modes import RunMode, is_privileged, modes_to_try, not_covered


@pytest.fixture
def unprivileged(monkeypatch):
    monkeypatch.setattr(modes, "_capabilities", lambda: 0)
    monkeypatch.setattr(modes, "_FIRST_UNPRIVILEGED_PORT", modes.Path("/no/such/file"))


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize(
    ("ports", "only_relay", "expected"),
    [
        ([1433, 8080], False, (RunMode.HOSTS, RunMode.ENV)),
        ([1433, 443], False, (RunMode.ISOLATED, RunMode.ENV)),
        ([1023], False, (RunMode.ISOLATED, RunMode.ENV)),
        ([1024], False, (RunMode.HOSTS, RunMode.ENV)),
        ([1433], True, (RunMode.ISOLATED,)),
        ([], False, (RunMode.HOSTS, RunMode.ENV)),
        ([0], False, (RunMode.HOSTS, RunMode.ENV)),
    ],
)
def test_what_auto_means(ports, only_relay, expected):
    """A port below 1024 needs a network of the program's own; a program that must reach nothing else too."""
    assert modes_to_try(ports=ports, only_relay=only_relay) == expected


@pytest.mark.usefixtures("unprivileged")
def test_a_system_may_give_low_ports_to_all(monkeypatch, tmp_path):
    switch = tmp_path / "ip_unprivileged_port_start"
    switch.write_text("80\n")
    monkeypatch.setattr(modes, "_FIRST_UNPRIVILEGED_PORT", switch)
    assert not is_privileged(80)
    assert is_privileged(79)


def test_a_capability_is_enough(monkeypatch, tmp_path):
    switch = tmp_path / "ip_unprivileged_port_start"
    switch.write_text("1024\n")
    monkeypatch.setattr(modes, "_FIRST_UNPRIVILEGED_PORT", switch)
    monkeypatch.setattr(modes, "_capabilities", lambda: 1 << 10)
    assert not is_privileged(80)


def test_every_mode_says_what_it_leaves_out():
    assert all(not_covered(mode) for mode in RunMode)
    assert "below wild.example" in not_covered(RunMode.HOSTS, wildcards=["*.wild.example"])
    assert "wild.example" not in not_covered(RunMode.ISOLATED, wildcards=["*.wild.example"])
