"""What a manager's answers mean as findings."""

from __future__ import annotations

import pytest
from statuses import connection

from relaycore.cli.hcm.findings import finding_of_limits
from relaycore.edge.config.settings import LimitSettings

ALL = LimitSettings(max_open=200, queue=50, per_sender_open=1, rate_in=50_000_000, rate_out=1_000)
SET = "limits: at most 200 connections (50 more wait up to 5 s), 1 of one sender, 50 MB/s in, 1.0 kB/s out"


@pytest.mark.parametrize(
    ("limits", "counted", "level", "text"),
    [
        (LimitSettings(), {}, "ok", "limits: none are set"),
        (LimitSettings(max_open=1), {}, "ok", "limits: at most 1 connection; since the start nobody has met one"),
        (ALL, {}, "ok", f"{SET}; since the start nobody has met one"),
        (
            ALL,
            {"limited": {"max_open": 3, "per_sender_open": 0}},
            "warn",
            f"{SET}; since the start 3 senders refused because of max_open",
        ),
        (
            ALL,
            {"throttled_in_s": 2.5, "throttled_out_s": 0.01},
            "ok",
            f"{SET}; since the start connections waited 2.5 s for rate_in",
        ),
        (  # a limit that was taken out of the settings meanwhile
            LimitSettings(),
            {"limited": {"max_open": 1, "per_sender_open": 1}},
            "warn",
            "limits: none are set; since the start 1 sender refused because of max_open, 1 sender refused because of "
            "per_sender_open",
        ),
    ],
)
def test_limits_and_whether_senders_have_met_them(limits, counted, level, text):
    """8.2 doctor: rate limits; each finding has a line of cause and one of remedy."""
    found = finding_of_limits(limits, connection("a", **counted))
    assert (found.level, found.text) == (level, text)
    assert ("hcm.connection.limits" in found.remedy) is (level == "warn")
    assert found.exit_code == 0


def test_without_a_daemon_nobody_knows_who_met_them():
    text = "limits: at most 1 connection; only a running daemon knows whether senders meet them"
    assert finding_of_limits(LimitSettings(max_open=1), None).text == text
