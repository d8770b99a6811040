from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from relaycore.edge.run.namespaces import _ENTER, CannotExecute, NoNamespaces, open_entrance

pytestmark = pytest.mark.usefixtures("namespaces")

HOSTS = Path("/etc/hosts")
PLAIN = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


@asynccontextmanager
async def entrance_of(*command: str):
    async with open_entrance(command, PLAIN) as entrance:
        yield entrance


async def output_of(script: str, tmp_path: Path, *, with_network: bool = False, over=None, environ=None):
    """What a shell script writes, its exit code, and whether it began at all."""
    result = tmp_path / "result"
    async with entrance_of("sh", "-c", f"exec >{result}; {script}") as entrance:
        await entrance.enter(with_network=with_network, over=over or {})
        await entrance.execute(environ or {})
        code = await entrance.process.wait()
    return result.read_text(), code


async def test_a_program_sees_another_file_and_nobody_else_does(tmp_path):
    mine = tmp_path / "hosts"
    mine.write_text("127.77.0.1\torders\n")
    said, code = await output_of(f"cat {HOSTS}", tmp_path, over={HOSTS: mine})
    assert (said, code) == ("127.77.0.1\torders\n", 0)
    assert "orders" not in HOSTS.read_text()  # noqa: ASYNC240 - a small file


def write_after(mine: Path, go: Path) -> None:
    with go.open("w") as pipe:
        mine.write_text("after\n")
        pipe.write("\n")


async def test_a_file_written_in_place_is_seen_at_once(tmp_path):
    """spec 7 of the connection manager: a bound file follows rewriting in place."""
    mine, go = tmp_path / "hosts", tmp_path / "go"
    mine.write_text("before\n")
    os.mkfifo(go)
    result = tmp_path / "result"
    script = f"exec >{result}; cat {HOSTS}; read line <{go}; cat {HOSTS}"
    async with entrance_of("sh", "-c", script) as entrance:
        await entrance.enter(with_network=False, over={HOSTS: mine})
        await entrance.execute({})
        # The shell opens the pipe to read it only after its first look.
        await trio.to_thread.run_sync(write_after, mine, go)
        assert await entrance.process.wait() == 0
    assert result.read_text() == "before\nafter\n"


async def test_the_program_keeps_its_user_its_directory_and_its_variables(tmp_path):
    said, _ = await output_of("id -u; id -g; pwd; echo $GIVEN $KEPT", tmp_path, environ={"GIVEN": "one"})
    assert said.splitlines() == [str(os.geteuid()), str(os.getegid()), str(Path.cwd()), "one"]


async def test_a_low_port_inside_is_ours_to_serve(tmp_path):
    """spec 8.8 of the connection manager: listeners are made inside and handed out."""
    result = tmp_path / "result"
    script = ["python3", "-c", "import socket; print(socket.create_connection(('127.77.0.1', 80)).recv(9).decode())"]
    async with entrance_of("sh", "-c", f'exec "$@" >{result}', "sh", *script) as entrance:
        await entrance.enter(with_network=True, over={})
        listening = await entrance.listen("tcp", "127.77.0.1", 80)
        datagrams = await entrance.listen("udp", "127.0.0.53", 53)
        assert listening.getsockname() == ("127.77.0.1", 80)
        assert datagrams.getsockname() == ("127.0.0.53", 53)
        await entrance.execute({})
        taken, _ = await listening.accept()
        await taken.send(b"hello")
        taken.close()
        assert await entrance.process.wait() == 0
        listening.close()
        datagrams.close()
    assert result.read_text() == "hello\n"


async def test_a_network_of_its_own_leads_nowhere_else(tmp_path):
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        port = outside.getsockname()[1]
        ask = f"python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}))\" 2>&1 | tail -1"
        said, _ = await output_of(ask, tmp_path, with_network=True)
        assert "refused" in said
        said, _ = await output_of(ask, tmp_path)
        assert said == ""


async def test_a_port_that_cannot_be_had_is_an_error(tmp_path):
    async with entrance_of("true") as entrance:
        await entrance.enter(with_network=True, over={})
        first = await entrance.listen("tcp", "127.0.0.1", 80)
        with pytest.raises(OSError, match=r"listen on 127\.0\.0\.1 port 80"):
            await entrance.listen("tcp", "127.0.0.1", 80)
        first.close()


@pytest.mark.parametrize(
    ("name", "number", "code"), [("no-such-program", errno.ENOENT, 127), (__file__, errno.EACCES, 126)]
)
async def test_a_program_that_is_none_is_said(name, number, code):
    async with entrance_of(name) as entrance:
        await entrance.enter(with_network=False, over={})
        with pytest.raises(CannotExecute) as caught:
            await entrance.execute({})
        assert caught.value.errno == number
        assert await entrance.process.wait() == code


async def test_several_may_ask_at_one_time():
    """Each forward opens its own addresses."""
    opened = []
    async with entrance_of("true") as entrance:
        await entrance.enter(with_network=True, over={})

        async def listen(port: int) -> None:
            found = await entrance.listen("tcp", "127.77.0.1", port)
            assert found.getsockname()[1] == port
            opened.append(found)

        async with trio.open_nursery() as nursery:
            for port in range(80, 100):
                nursery.start_soon(listen, port)
    assert len(opened) == 20
    for one in opened:
        one.close()


async def test_who_asks_after_the_program_has_begun_is_told_so_at_once():
    """A forward whose port the relay says late must not wait for the program's end."""
    async with entrance_of("sleep", "600") as entrance:
        await entrance.enter(with_network=True, over={})
        await entrance.execute({})
        with pytest.raises(OSError, match="the program has begun"):
            await entrance.listen("tcp", "127.77.0.1", 80)


async def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_another_one():
    """Or a forward would serve the address of one that was given up."""
    async with entrance_of("true") as entrance:
        await entrance.enter(with_network=True, over={})
        entrance.process.send_signal(signal.SIGSTOP)
        with trio.move_on_after(0.1):
            await entrance.listen("tcp", "127.77.0.1", 81)
        entrance.process.send_signal(signal.SIGCONT)
        with pytest.raises(NoNamespaces):
            await entrance.listen("tcp", "127.77.0.1", 82)


async def test_a_socket_that_finds_no_descriptor_here_is_an_error_that_names_the_limit():
    async with entrance_of("true") as entrance:
        await entrance.enter(with_network=True, over={})
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(OSError, match=f"port 80: Too many open files: a process may have {free} ") as caught:
                await entrance.listen("tcp", "127.0.0.1", 80)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE


async def test_a_request_may_be_long(tmp_path):
    said, _ = await output_of("printf %s $LONG | wc -c", tmp_path, environ={"LONG": "x" * 100_000})
    assert said.strip() == "100000"


async def test_more_variables_than_the_kernel_takes_are_said():
    too_long = {"LONG": "x" * 200_000}  # one alone may have 128 KiB, execve(2)
    async with entrance_of("true") as entrance:
        await entrance.enter(with_network=False, over={})
        with pytest.raises(CannotExecute, match="the kernel's limit") as caught:
            await entrance.execute(too_long)
        assert caught.value.errno == errno.E2BIG
        assert await entrance.process.wait() == 126
    with pytest.raises(CannotExecute, match="the kernel's limit"):
        async with open_entrance(["true"], {**PLAIN, **too_long}):
            pass


async def test_a_file_that_is_not_there_cannot_be_covered(tmp_path):
    async with entrance_of("true") as entrance:
        with pytest.raises(NoNamespaces, match="mount over /no/such/file"):
            await entrance.enter(with_network=False, over={Path("/no/such/file"): HOSTS})


async def test_a_process_that_ends_early_is_an_error():
    async with entrance_of("true") as entrance:
        entrance.process.send_signal(signal.SIGKILL)
        await entrance.process.wait()
        with pytest.raises(NoNamespaces, match="ended with -9"):
            await entrance.enter(with_network=False, over={})


def test_who_asks_and_goes_ends_the_process_without_a_word():
    """A signal may end us before the program has begun."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.send(b'{"do": "listen", "kind": "tcp", "host": "127.0.0.1", "port": 0}\n')
        ours.shutdown(socket.SHUT_RD)
        start = [sys.executable, "-I", "-S", _ENTER, str(theirs.fileno()), "true"]
        done = subprocess.run(start, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")


async def test_a_program_does_not_inherit_what_the_interpreter_ignores(tmp_path):
    said, _ = await output_of("grep SigIgn /proc/self/status", tmp_path)
    assert int(said.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


async def test_leaving_early_ends_the_program(tmp_path):
    with trio.move_on_after(0.5) as scope:
        async with entrance_of("sleep", "60") as entrance:
            await entrance.enter(with_network=False, over={})
            await entrance.execute({})
            scope.cancel()
            await entrance.process.wait()
    assert entrance.process.returncode == -signal.SIGTERM


async def test_descriptors_that_we_were_started_with_are_the_programs(tmp_path):
    """A shell's <(...) and the job server of make are such; our own sockets are not."""
    given, end = os.pipe()
    os.write(end, b"from outside")
    os.close(end)
    os.set_inheritable(given, True)
    own = os.dup(given)
    script = f"cat /dev/fd/{given}; test -e /dev/fd/{own} || echo ' and nothing else'"
    text, code = await output_of(script, tmp_path)
    os.close(given)
    os.close(own)
    assert (text, code) == ("from outside and nothing else\n", 0)
