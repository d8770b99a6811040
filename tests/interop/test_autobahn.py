"""RFC 6455 conformance of the relay: the public Autobahn suite is the sender, our library the listener that echoes.

The suite looks at the relay from outside: a frame it sends is judged by the relay first and by the listener after it,
and what comes back must be what the RFC asks of one server. Its groups 12 and 13 test compression, which the relay
declines (wire contract 4).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from interop.ours import our_listener
from interop.peers import Target

pytestmark = pytest.mark.interop

# Group, what it tests, number of cases in version 25.10.1: a case that did not run must not pass for one that did.
GROUPS = (
    ("1", "framing", 16),
    ("2", "pings and pongs", 11),
    ("3", "reserved bits", 7),
    ("4", "opcodes", 10),
    ("5", "fragmentation", 20),
    ("6", "UTF-8", 145),
    ("7", "closing", 37),
    ("9", "limits", 54),
    ("10", "automatic fragmentation", 1),
)

# Cases in which a good message is followed at once by an illegal frame. The strictest reading wants the echo of the
# message before the Close. The echo is the listener's, the Close the relay's: it tells the offender 1002 and cuts the
# other leg as soon as it meets the frame (wire contract 13), so the echo has rarely come back by then. The suite calls
# that allowed, but not strict.
FAILS_BEFORE_THE_ECHO = frozenset({"3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15"})

GROUP_SECONDS = 120.0


async def run_suite(suite: Path, url: str, group: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Run one group of the suite against a URL; returns the suite's verdicts by case id."""
    (folder / "spec.json").write_text(
        json.dumps(
            {
                "outdir": str(folder / "reports"),
                "servers": [{"agent": "relay", "url": url, "options": {"version": 18}}],
                "cases": [f"{group}.*"],
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    python = (suite / "python").read_text().strip()
    result = await trio.run_process(
        [python, "-m", "autobahntestsuite.wstest", "--mode=fuzzingclient", "--spec=spec.json"],
        cwd=folder,
        env={**os.environ, "PYTHONUSERBASE": str(suite)},
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode(errors="replace")[-4000:]
    return json.loads((folder / "reports" / "index.json").read_text())["relay"]


def is_acceptable(case: str, verdict: str) -> bool:
    return verdict in ("OK", "INFORMATIONAL") or (verdict == "NON-STRICT" and case in FAILS_BEFORE_THE_ECHO)


@pytest.mark.parametrize(("group", "count"), [pytest.param(g, n, id=f"{g} {title}") for g, title, n in GROUPS])
async def test_suite_finds_no_failure(
    autobahn: Path, plain_target: Target, tmp_path: Path, group: str, count: int
) -> None:
    """RFC 6455: what a sender sees of the relay and a listener behind it conforms."""
    with trio.fail_after(GROUP_SECONDS):
        async with our_listener(plain_target, "open"):
            verdicts = await run_suite(autobahn, plain_target.connect_url("open"), group, tmp_path)
    bad = {
        case: {**verdict, "report": json.loads((tmp_path / "reports" / verdict["reportfile"]).read_text())["result"]}
        for case, verdict in verdicts.items()
        if not is_acceptable(case, verdict["behavior"]) or not is_acceptable(case, verdict["behaviorClose"])
    }
    assert bad == {}
    assert len(verdicts) == count
