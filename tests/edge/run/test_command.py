"""``relaycore run`` as a user meets it: a process of its own, without privileges."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys

import pytest
import trio
from run_world import ANSWER, NAME, RunWorld, open_run_world
from unprivileged import uid, unprivileged

needs_namespaces = pytest.mark.usefixtures("namespaces")

COUNTS = """
import signal, sys, time
count = 0
def note(number, frame):
    global count
    count += 1
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
print("ready", flush=True)
while not count:
    time.sleep(0.01)
time.sleep(0.3)
print("got", count, flush=True)
sys.exit(9)
"""
"""Says how often it was told to end, within 0.3 s of the first time."""


@needs_namespaces
@pytest.mark.parametrize("mode", ["auto", "hosts", "isolated"])
async def test_a_program_runs_as_it_would_without_us(mode):
    async with open_run_world() as world:
        script = f"cat; curl -sS http://{NAME}:8080/; id -u; grep CapEff /proc/self/status; pwd; exit 5"
        ran = await trio.run_process(
            world.command("--mode", mode, "sh", "-c", script),
            stdin=b"from standard input\n",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=world.directory,
            env=world.environ,
        )
    assert ran.stdout.decode().split("\n") == [
        "from standard input",
        f"{ANSWER}{uid()}",
        "CapEff:\t0000000000000000",
        str(world.directory),
        "",
    ]
    assert ran.returncode == 5


@needs_namespaces
async def test_one_line_says_mode_names_and_what_is_not_covered():
    """spec 8.8 of the connection manager: one line, and no surprise for programs that ask DNS servers themselves."""
    async with open_run_world() as world:
        ran = await world.run("true")
        (line,) = ran.stderr.decode().splitlines()
        assert line.startswith(
            f"relaycore: mode hosts: {NAME}:8080, *.wild.example:8080; not covered: names below wild"
        )
        assert "c-ares" in line
        assert "--mode isolated" in line
        ran = await world.run("--quiet", "true")
        assert (ran.stdout, ran.stderr) == (b"", b"")


@needs_namespaces
async def test_auto_takes_a_network_of_its_own_for_a_low_port():
    async with open_run_world() as world:
        ran = await world.run("curl", "-sS", f"http://{NAME}/", port=80)
        if b"mode hosts" in ran.stderr:
            pytest.skip("low ports are free for all here")
        assert b"mode isolated" in ran.stderr
        assert ran.stdout.decode() == ANSWER


@needs_namespaces
async def test_only_the_relay_can_be_reached_if_so_wished():
    async with open_run_world() as world:
        other = f"http://127.0.0.1:{world.relay.port}/"
        ran = await world.run("--only-relay", "sh", "-c", f"curl -sS http://{NAME}:8080/; curl -sS -m 5 {other}")
        assert ran.stdout.decode() == ANSWER
        assert b"Failed to connect" in ran.stderr
        ran = await world.run("sh", "-c", f"curl -sS -m 5 {other} >/dev/null")
        assert ran.returncode == 0


async def test_proxy_variables_lead_to_names_and_leave_the_rest_alone():
    async with open_run_world() as world:
        other = f"http://127.0.0.1:{world.relay.port}/"
        script = f"curl -sS http://{NAME}:8080/; curl -sS -m 5 {other} >/dev/null; echo $?; echo $RELAYCORE_RUN"
        ran = await world.run("--mode", "env", "sh", "-c", script)
        assert ran.stdout.decode().split("\n") == [f"{ANSWER}0", "env", ""]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-program"], 127, "no-such-program cannot be started: No such file or directory"),
        (["/etc"], 126, "/etc cannot be started: Permission denied"),
        (["--mode", "notify", "true"], 2, "'notify' is not one of"),
        (["--mode", "env", "--only-relay", "true"], 3, "--only-relay needs the mode isolated"),
        ([], 2, "Missing argument"),
    ],
)
async def test_what_cannot_be_done_is_said(words, code, said):
    async with open_run_world() as world:
        ran = await world.run(*(["--mode", "env"] if "--mode" not in words else []), *words)
        assert said in ran.stderr.decode()
        assert ran.returncode == code


@needs_namespaces
async def test_where_namespaces_are_missing_it_says_what_to_do():
    """The system bounds the number of user namespaces below each one, so the bound of an outer one can be used up."""
    async with open_run_world() as world:
        inner = 'exec unshare -U --map-user=1000 --map-group=1000 "$@"'
        script = f"echo 1 >/proc/sys/user/max_user_namespaces && {inner}"
        ours = world.ours("--mode", "hosts", "true")
        start = unprivileged("unshare", "-Ur", "sh", "-c", script, "sh", *ours)
        ran = await trio.run_process(
            start, capture_stdout=True, capture_stderr=True, check=False, cwd=world.directory, env=world.environ
        )
        assert ran.returncode == 1, ran.stderr
        assert b"--mode env needs none" in ran.stderr


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_a_signal_to_us_alone_is_passed_on(number):
    async with open_run_world() as world, started(world, "--quiet", sys.executable, "-c", COUNTS) as process:
        assert await said(process) == b"ready\n"
        process.send_signal(number)
        assert await said(process) == b"got 1\n"
        assert await process.wait() == 9


@needs_namespaces
async def test_ctrl_c_reaches_the_program_once():
    async with open_run_world() as world:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(world.directory)
            command = world.command("--quiet", sys.executable, "-c", COUNTS)
            os.execvpe(command[0], command, world.environ)
        try:
            assert b"ready" in await read_until(terminal, b"ready")
            os.write(terminal, b"\x03")
            assert b"got 1" in await read_until(terminal, b"got")
            _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        finally:
            os.close(terminal)  # whatever still runs there is hung up
        assert os.waitstatus_to_exitcode(status) == 9


@contextlib.asynccontextmanager
async def started(world: RunWorld, *words: str):
    process = await trio.lowlevel.open_process(
        world.command(*words), stdout=subprocess.PIPE, cwd=world.directory, env=world.environ
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        await process.stdout.aclose()


async def said(process) -> bytes:
    """The next line."""
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some(1)
        assert data, "the program has ended"
        line += data
    return line


async def read_until(terminal: int, what: bytes) -> bytes:
    shown = b""
    while what not in shown or not shown.endswith(b"\n"):
        await trio.lowlevel.wait_readable(terminal)
        shown += os.read(terminal, 4096)
    return shown
