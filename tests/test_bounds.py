"""What hangs fails, tells where, and takes no other test with it; see `bounds`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HANGS = """
import pytest
import trio
from hypothesis import given, strategies

pytestmark = pytest.mark.bound(0.1)


async def never():
    await trio.sleep_forever()


@pytest.fixture
async def never_begins():
    await never()


@pytest.fixture
async def never_ends():
    yield
    await never()


async def test_the_test():
    await never()


async def test_on_a_clock_that_jumps(autojump_clock):
    await never()


async def test_on_a_clock_that_jumps_on_and_on(autojump_clock):
    while True:
        await trio.sleep(3600)


async def test_a_task_of_it(nursery):
    nursery.start_soon(never)
    async with trio.open_nursery() as ours:
        ours.start_soon(never)


async def test_a_fixture_that_never_begins(never_begins):
    pass


async def test_a_fixture_that_never_ends(never_ends):
    pass


@given(strategies.just(1))
async def test_a_property(one):
    await never()


async def test_what_fails_on_its_way_out():
    try:
        await never()
    finally:
        raise ValueError("and this")


async def test_what_takes_it_well():
    with trio.CancelScope() as scope:
        try:
            await never()
        except trio.Cancelled:
            pass


@pytest.mark.bound(30)
async def test_no_more():
    await trio.sleep(0.6)


@pytest.mark.bound(30)
async def test_neither():
    await trio.lowlevel.checkpoint()
"""

DEAF = """
import pytest
import time
import trio


@pytest.mark.bound(0.1)
async def test_deaf():
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""

BLOCKED = DEAF.replace("await trio.sleep_forever()", "time.sleep(600)")


def run(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest over these tests, as it is set up for ours."""
    (folder / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text() + "bounds._GRACE_S, bounds._TICK_S = 0.1, 0.02\n"
    )
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", f"-c{ROOT / 'pyproject.toml'}", f"--confcutdir={folder}", str(folder)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")} | {"COLUMNS": "200"}
    return subprocess.run(
        [*command, "-rA", "-pno:cacheprovider", *options],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_hangs_fails_and_the_others_go_on(tmp_path):
    ended = run(tmp_path, HANGS)
    found = dict(re.findall(r"^(?:FAILED|PASSED|ERROR) .*::test_(\w+)(.*)$", ended.stdout, re.MULTILINE))
    hung = {name for name, said in found.items() if "took more than 0.1 s" in said}
    good = {name for name, said in found.items() if not said}
    assert good == {"no_more", "neither"}, ended.stdout
    assert hung == set(re.findall(r"def test_(\w+)", HANGS)) - good, ended.stdout
    # Where the tasks stood, the one in a nursery of pytest-trio too; and what came besides.
    assert f"{tmp_path / 'test_it.py'}:10 never: await trio.sleep_forever()\n" in ended.stdout
    assert "<test 'test_a_task_of_it'>" in ended.stdout
    assert "ValueError('and this')" in ended.stdout


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (DEAF, "test_deaf: await trio.sleep_forever()"),
        (BLOCKED, "its event loop does not turn"),
    ],
    ids=["deaf", "blocked"],
)
def test_the_session_ends_for_certain(tmp_path, tests, told):
    ended = run(tmp_path, tests, "-ofaulthandler_timeout=2")
    assert ended.returncode == 1, ended.stdout
    assert told in ended.stdout
    assert "Timeout (0:00:02)!" in ended.stdout
