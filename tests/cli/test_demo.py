"""``relaycore demo``: the whole thing in one command, and nothing left behind."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import pytest
from programs import finish, run_program

from relaycore.cli.demo import parse_size
from relaycore.cli.exits import ExitCode


def processes(mark: str) -> set[int]:
    """Every process that was started with `mark` in its environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # gone meanwhile
                if mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
    return found


async def test_a_file_goes_through_and_its_checksum_comes_back(tmp_path):
    environ = {"TMPDIR": str(tmp_path), "RELAYCORE_SERVER_PORT": "not a port"}  # settings of the user do not reach in
    code, out, err = await finish("demo", "--size", "3M", environ=environ)
    assert (code, err) == (0, "")
    sums = re.findall(rb"SHA-256 ([0-9a-f]{64})\n", out)
    assert len(sums) == 2
    assert sums[0] == sums[1]
    assert re.search(rb"rate +\d+ MiB/s", out)
    assert not list(tmp_path.glob("relaycore-demo-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_ended_early_it_leaves_nothing_behind(tmp_path, number):
    mark = f"TMPDIR={tmp_path}"
    async with run_program("demo", "--size", "200M", environ={"TMPDIR": str(tmp_path)}) as program:
        await program.wait_out("listener  online")
        assert len(processes(mark)) >= 3
        program.signal(number)
        assert await program.exit_code() in (ExitCode.FAILED, ExitCode.INTERRUPTED)
    assert not processes(mark)
    assert not list(tmp_path.glob("relaycore-demo-*"))


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("64K", 65_536), ("1m", 1_048_576), ("256MiB", 268_435_456), ("1 GB", 1 << 30)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1T", "1.5M", "M"])
def test_a_size_that_is_none(invoke, text):
    result = invoke("demo", f"--size={text}")
    assert result.exit_code == ExitCode.USAGE
    assert "64K" in result.stderr
