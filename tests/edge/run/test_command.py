"""``relaycore run`` as a user meets it: a process of its own, without privileges."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys

import pytest
import trio
from run_world import ANSWER, NAME, RunWorld, open_run_world
from unprivileged import NOBODY, uid, unprivileged

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


SILENT = """\
[relay.main]
endpoint = "sb://127.0.0.1:{port}/"
emulator = true
[[connect.forward]]
name = "orders"
relay = "main"
key_name = "r"
key = {{ env = "HOME" }}
"""
"""A forward whose port only the relay knows, at a relay that says nothing."""


@needs_namespaces
@pytest.mark.parametrize("mode", ["hosts", "isolated", "auto"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_before_the_program_has_begun_leaves_nothing_behind(mode, number):
    async with open_run_world() as world, await silent_relay() as relay:
        file = world.directory / "silent.toml"
        file.write_text(SILENT.format(port=relay.socket.getsockname()[1]))
        command = [sys.executable, "-m", "relaycore", "run", "--config", file, "--mode", mode, "touch", "begun"]
        process = await trio.lowlevel.open_process(
            unprivileged(*command), stderr=subprocess.PIPE, cwd=world.directory, env=world.environ
        )
        if mode == "auto":
            (await relay.accept()).socket.close()  # which mode it is to be hangs on the port
        while not list(world.directory.glob("relaycore-run-*/hosts")):
            await trio.sleep(0.01)
        process.send_signal(number)
        assert await process.wait() == 128 + number
        assert await process.stderr.receive_some() == b""
        assert sorted(path.name for path in world.directory.iterdir()) == ["silent.toml"]
        await process.stderr.aclose()


async def silent_relay() -> trio.SocketListener:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listener


@needs_namespaces
async def test_what_is_ignored_from_the_start_the_program_ignores():
    """As nohup has it."""
    async with open_run_world() as world:
        ours = shlex.join(map(str, world.ours("-q", "grep", "SigIgn", "/proc/self/status")))
        ran = await trio.run_process(
            unprivileged("sh", "-c", f"trap '' HUP; exec {ours}"),
            capture_stdout=True,
            cwd=world.directory,
            env=world.environ,
        )
        assert int(ran.stdout.split()[1], 16) & 0x7FFFFFFF == 1 << (signal.SIGHUP - 1)  # the rest is for real-time use


CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8080)) as stream:
    stream.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(stream.makefile("rb").read().decode())
"""


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
async def test_other_users_do_not_reach_the_addresses_of_a_program():
    script = f"getent ahostsv4 {NAME}; until test -e over; do sleep 0.05; done"
    async with open_run_world() as world, started(world, "--mode", "hosts", "-q", "sh", "-c", script) as process:
        address = (await said(process)).split()[0].decode()
        dial = unprivileged(sys.executable, "-c", CONNECT, address)
        other = [str(NOBODY - 1) if word == str(NOBODY) else word for word in dial]
        outcomes = [
            await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
            for words in (dial, other, [sys.executable, "-c", CONNECT, address])
        ]
        assert [ANSWER.encode() in one.stdout for one in outcomes] == [True, False, True]
        assert b"ConnectionResetError" in outcomes[1].stderr
        (world.directory / "over").touch()
        assert await process.wait() == 0


@pytest.mark.parametrize("mode", ["hosts", "env"])
async def test_a_large_environment_arrives(mode, request):
    """The kernel takes 2 MiB on most systems, and 128 KiB for one variable; execve(2)."""
    if mode != "env":
        request.getfixturevalue("namespaces")
    environ = {f"LARGE_{number}": "x" * 104_857 for number in range(10)} | {"JAVA_TOOL_OPTIONS": "y" * 100_000}
    count = "import json, os; print(json.dumps({name: len(value) for name, value in os.environ.items()}))"
    async with open_run_world() as world:
        ran = await trio.run_process(
            world.command("--mode", mode, "-q", sys.executable, "-c", count),
            capture_stdout=True,
            cwd=world.directory,
            env={**world.environ, **environ},
        )
        lengths = json.loads(ran.stdout)
        assert sum(lengths.values()) > 1 << 20
        assert [lengths[name] for name in environ if "LARGE" in name] == [104_857] * 10
        assert (lengths["JAVA_TOOL_OPTIONS"] > 100_000) is (mode == "env")


async def test_a_variable_that_becomes_too_long_is_said():
    async with open_run_world() as world:
        ran = await trio.run_process(
            world.command("--mode", "env", "-q", "true"),
            capture_stderr=True,
            check=False,
            cwd=world.directory,
            env={**world.environ, "JAVA_TOOL_OPTIONS": "y" * 131_040},
        )
        assert ran.returncode == 126
        assert b"true cannot be started: Argument list too long: the kernel's limit" in ran.stderr


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


@needs_namespaces
@pytest.mark.parametrize(("mode", "port"), [("hosts", 10_443), ("isolated", 443)])
async def test_the_name_is_shown_with_a_port_that_answers(mode: str, port: int):
    """Without a privilege a low port can be opened in a network of one's own only."""
    async with open_run_world() as world:
        words = world.command("--mode", mode, "curl", "-sS", "-m", "10", f"http://{NAME}:{port}/", port=443)
        with world.config(port=443).open("a") as file:
            file.write('listen = ["auto:10443"]\n')
        ran = await trio.run_process(
            words, capture_stdout=True, capture_stderr=True, check=False, cwd=world.directory, env=world.environ
        )
    assert (ran.returncode, ran.stdout.decode()) == (0, ANSWER)
    assert f"{NAME}:{port}" in ran.stderr.decode()
    assert ("Permission denied" in ran.stderr.decode()) is (mode == "hosts")
