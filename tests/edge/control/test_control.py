"""The control socket, over real Unix sockets: who may come, what is said, and what ends what."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from relaycore.edge.control import server as server_module
from relaycore.edge.control.client import ControlClient
from relaycore.edge.control.protocol import Arguments, ControlError, LineReader, NotRunning, Peer, encode_line
from relaycore.edge.control.server import serve_control
from relaycore.errors import ConfigError, ConnectionLost
from relaycore.net.tasks import alone

START = "relaycore hcm run"


class Program:
    """Calls that note what happens to them."""

    def __init__(self) -> None:
        self.seen: list[Arguments] = []
        self.begun = trio.Event()
        self.ended = trio.Event()

    async def echo(self, arguments, emit):
        self.seen.append(arguments)
        await trio.lowlevel.checkpoint()
        return dict(arguments.values)

    async def count(self, arguments, emit):
        for number in range(int(arguments.number("to"))):
            await emit(number)
        return "counted"

    async def wait(self, arguments, emit):
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()

    async def flood(self, arguments, emit):
        try:
            while True:
                await emit("x" * 65_536)
        finally:
            self.ended.set()

    async def refuse(self, arguments, emit):
        raise ConfigError("no such connection")

    async def garble(self, arguments, emit):
        if arguments.flag("emit"):
            await emit("\ud800")
        if arguments.flag("refuse"):
            raise ConfigError("\ud800")
        return "\ud800"

    async def group(self, arguments, emit):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(self.refuse, arguments, emit)

    async def bug(self, arguments, emit):
        raise KeyError("SECRET")

    async def need(self, arguments, emit):
        return arguments.text("name")

    @property
    def calls(self):
        names = ("echo", "count", "wait", "flood", "refuse", "garble", "group", "bug", "need")
        return {name: getattr(self, name) for name in names}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "hcm.sock"


@asynccontextmanager
async def running(path, program=None):
    program = program or Program()
    with alone():
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_control, path, program.calls, exit_code_for=lambda _: 6))
            yield program
            nursery.cancel_scope.cancel()


async def talk(path, data, *, finishes=True):
    """Send bytes, and read to the end."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(data)
        if finishes:
            await stream.send_eof()
        kept = b""
        async for piece in stream:
            kept += piece
        return kept


# What is said ---------------------------------------------------------------------------------------------------------


async def test_a_call_gets_its_arguments_and_returns_its_result(path):
    async with running(path):
        client = ControlClient(path, START)
        assert await client.call("echo", name="ä\n", many=[1, {"a": None}]) == {"name": "ä\n", "many": [1, {"a": None}]}


async def test_events_come_before_the_result(path):
    async with running(path), ControlClient(path, START).stream("count", to=3) as events:
        assert [event async for event in events] == [0, 1, 2]
        assert events.result == "counted"
        assert [event async for event in events] == []


async def test_one_connection_carries_one_request_after_the_other(path):
    async with running(path):
        answers = await talk(path, encode_line({"do": "echo", "n": 1}) + b"\n" + encode_line({"do": "count", "to": 1}))
        assert answers == b'{"ok":true,"result":{"n":1}}\n{"event":0}\n{"ok":true,"result":"counted"}\n'


@pytest.mark.parametrize("call", ["refuse", "group"])
async def test_an_error_of_a_call_is_the_answer_and_carries_the_exit_code(path, call):
    async with running(path):
        client = ControlClient(path, START)
        with pytest.raises(ControlError, match="no such connection") as caught:
            await client.call(call)
        assert caught.value.exit_code == 6
        assert await client.call("count", to=0) == "counted"


async def test_a_bug_in_a_call_is_logged_and_not_told(path, caplog):
    async with running(path):
        with pytest.raises(ControlError, match="internal error: KeyError") as caught:
            await ControlClient(path, START).call("bug")
    assert "SECRET" not in str(caught.value)
    assert "a call failed" in caplog.text


async def test_an_unknown_call_is_answered_with_the_nearest_one(path):
    async with running(path):
        with pytest.raises(ControlError, match=r"no call 'coumt'\. Did you mean 'count'\?"):
            await ControlClient(path, START).call("coumt")


async def test_a_missing_argument_is_named(path):
    async with running(path):
        with pytest.raises(ControlError, match="name: needs a string"):
            await ControlClient(path, START).call("need")


# What is no request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x00\n",
        b"[1]\n",
        b'"text"\n',
        b"null\n",
        b'{"do": 1}\n',
        b"{}\n",
        b'{"do": "echo", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'{"do": "echo", "key": "SharedAccessKey=abc"\n',
        b"x" * ((1 << 20) + 2),
    ],
    ids=["http", "tls", "array", "string", "null", "number", "empty", "deep", "cut", "long"],
)
async def test_garbage_is_refused_and_ends_only_its_connection(path, data):
    async with running(path):
        answer = await talk(path, data)
        assert answer.startswith(b'{"ok":false,"error":"')
        assert answer.count(b"\n") == 1
        assert b'"exit":2' in answer
        assert b"abc" not in answer
        assert await ControlClient(path, START).call("count", to=0) == "counted"


async def test_half_a_request_and_an_end_is_a_client_that_changed_its_mind(path):
    async with running(path):
        assert await talk(path, b'{"do": "echo"') == b""


def test_lines_are_cut_wherever_the_bytes_are():
    data = b'\n{"a":1}\n  \n{"b":"\\n"}\n{"c"'
    for cut in range(len(data)):
        reader = LineReader()
        found = []
        for piece in (data[:cut], data[cut:]):
            reader.receive_data(piece)
            while (line := reader.next_object()) is not None:
                found.append(line)
        assert found == [{"a": 1}, {"b": "\n"}]


def test_a_line_may_have_as_many_bytes_as_it_may_have():
    line = b'{"a":"' + b"x" * 12 + b'"}'
    reader = LineReader(len(line))
    reader.receive_data(line + b"\n")
    assert reader.next_object() == {"a": "x" * 12}
    reader = LineReader(len(line) - 1)
    reader.receive_data(line)
    with pytest.raises(ConfigError, match="longer than 19 bytes"):
        reader.next_object()


def test_arguments_check_their_types():
    arguments = Arguments(
        {"text": "a", "flag": True, "number": 2, "names": ["a", "b"], "mixed": ["a", 1], "none": None}
    )
    assert (arguments.text("text"), arguments.flag("flag"), arguments.number("number")) == ("a", True, 2)
    assert (arguments.names("names"), arguments.names("none"), arguments.maybe_text("none")) == (("a", "b"), (), None)
    assert (arguments.text("other", "b"), arguments.flag("other"), arguments.number("other", 1)) == ("b", False, 1)
    for wrong in (
        lambda: arguments.text("flag"),
        lambda: arguments.flag("number"),
        lambda: arguments.number("flag"),
        lambda: arguments.names("mixed"),
        lambda: arguments.names("text"),
        lambda: arguments.maybe_text("number"),
    ):
        with pytest.raises(ConfigError, match="needs "):
            wrong()
    assert "a" not in repr(arguments).removeprefix("Arguments")


# Clients that go ------------------------------------------------------------------------------------------------------


async def test_a_client_that_goes_ends_its_call(path):
    async with running(path) as program:
        async with ControlClient(path, START).stream("wait"):
            await program.begun.wait()
        with trio.fail_after(5):
            await program.ended.wait()


async def test_a_client_that_has_finished_sending_still_gets_its_answer_and_is_missed_when_it_goes(
    path, autojump_clock
):
    async with running(path) as program:
        assert await talk(path, encode_line({"do": "echo"})) == b'{"ok":true,"result":{}}\n'
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(encode_line({"do": "wait"}))
            await stream.send_eof()
            await program.begun.wait()
            await trio.sleep(30)
            assert not program.ended.is_set()
        await program.ended.wait()


async def test_a_client_that_does_not_read_is_cut(path, autojump_clock):
    async with running(path) as program:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(encode_line({"do": "flood"}))
            await program.ended.wait()
            assert trio.current_time() >= 10
        assert await ControlClient(path, START).call("count", to=0) == "counted"


async def test_a_client_that_says_nothing_is_cut(path, autojump_clock):
    async with running(path), await trio.open_unix_socket(path) as stream:
        assert await stream.receive_some() == b""
        assert trio.current_time() >= 60


async def test_a_client_that_floods_while_its_call_runs_is_not_read_on(path):
    async with running(path) as program:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(encode_line({"do": "wait"}))
            with trio.move_on_after(0.2) as scope:
                await stream.send_all(bytes(64 << 20))
            assert scope.cancelled_caught
            assert not program.ended.is_set()
        with trio.fail_after(5):
            await program.ended.wait()


async def test_clients_have_a_bound(path, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
    async with running(path):
        client = ControlClient(path, START)
        async with client.stream("wait"), client.stream("wait"):
            with pytest.raises(ControlError, match="try again"):
                await client.call("echo")


async def test_a_program_that_hangs_is_named(path):
    """failures: a stopped daemon, and a command that never returns."""
    async with running(path) as program:
        with pytest.raises(ConnectionLost, match=rf"process {os.getpid()} at .* within 0.05 s.* {START}"):
            await ControlClient(path, START).ask("wait", within_s=0.05)
        await program.ended.wait()
        assert await ControlClient(path, START).ask("echo", word="hello") == {"word": "hello"}


async def test_a_program_that_ends_is_no_answer(path):
    caught = []

    async def ask():
        try:
            await ControlClient(path, START).call("wait")
        except ConnectionLost as error:
            caught.append(str(error))

    async with trio.open_nursery() as nursery, running(path) as program:
        nursery.start_soon(ask)
        await program.begun.wait()
    assert caught == ["the program ended before it had answered"]
    assert program.ended.is_set()


# The socket -----------------------------------------------------------------------------------------------------------


async def test_only_its_user_can_open_it(path):
    async with running(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


async def test_no_program_says_how_to_start_one(path):
    with pytest.raises(NotRunning, match="start it with: relaycore hcm run") as caught:
        await ControlClient(path, START).call("echo")
    assert caught.value.exit_code == 1
    path.parent.mkdir()
    leave_stale(path)
    with pytest.raises(NotRunning):
        await ControlClient(path, START).call("echo")


def leave_stale(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_the_socket_of_a_dead_program_is_replaced(path):
    path.parent.mkdir()
    leave_stale(path)
    async with running(path):
        assert await ControlClient(path, START).call("count", to=0) == "counted"


async def test_the_socket_of_a_living_program_is_not(path):
    async with running(path):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} already answers"):
            await serve_control(path, {})
        assert await ControlClient(path, START).call("count", to=0) == "counted"


async def test_neither_is_one_without_our_lock(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} already answers"):
            await serve_control(path, {})
    assert path.exists()


async def test_a_program_whose_socket_was_removed_still_has_its_lock(path):
    async with running(path):
        path.unlink()
        with pytest.raises(ConfigError, match="already answers"):
            await serve_control(path, {})


async def test_a_link_in_the_way_is_named(path):
    path.parent.symlink_to(path.parent.with_name("nowhere"))
    with pytest.raises(ConfigError, match="run: is a symbolic link that leads to no directory; remove it"):
        await serve_control(path, {})
    path.parent.unlink()
    path.parent.mkdir(mode=0o700)
    path.with_name("hcm.sock.lock").symlink_to("/dev/null")
    with pytest.raises(ConfigError, match=r"hcm\.sock\.lock: is a symbolic link.*; remove it"):
        await serve_control(path, {})


async def test_what_is_no_socket_is_left_alone(path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        await serve_control(path, {})
    assert path.read_text() == "mine"


async def test_what_no_json_can_carry_ends_nothing_but_its_call(path):
    async with running(path):
        client = ControlClient(path, START)
        for arguments in ({}, {"emit": True}):
            with pytest.raises(ControlError, match="internal error: UnicodeEncodeError"):
                await client.call("garble", **arguments)
        with pytest.raises(ControlError, match=r"^\?$"):
            await client.call("garble", refuse=True)
        assert await client.call("echo", a="b") == {"a": "b"}


async def test_a_directory_that_others_may_write_to_is_refused(path):
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        await serve_control(path, {})


async def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        await serve_control(tmp_path / ("x" * 100), {})
    with pytest.raises(ConfigError, match="cannot be used as a control socket"):
        await ControlClient(tmp_path / ("x" * 100), START).call("echo")


async def test_a_user_that_is_not_ours_is_turned_away(path, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "peer_of", lambda _: Peer(4711, 12_345))
    async with running(path):
        with pytest.raises(ControlError, match="user 12345 may not") as caught:
            await ControlClient(path, START).call("echo")
    assert caught.value.exit_code == 4
    assert "process 4711" in caplog.text


async def test_a_program_that_is_not_ours_is_not_told_anything(path, monkeypatch):
    async with running(path) as program:
        monkeypatch.setattr("relaycore.edge.control.client.peer_of", lambda _: Peer(4711, 12_345))
        monkeypatch.setattr(os, "geteuid", lambda: 54_321)
        with pytest.raises(ConfigError, match="belongs to a program of user 12345"):
            await ControlClient(path, START).call("echo", key="secret")
        assert program.seen == []


OTHER_USER = """
import os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    try:
        s.sendall(b'{"do": "echo"}\\n')
    except BrokenPipeError:
        pass  # turned away before a word was said
    print(s.recv(65536).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_the_kernel_says_who_it_is_whatever_the_modes_are():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory, "hcm.sock")
        async with running(path) as program:
            os.chmod(path, 0o666)
            done = await trio.run_process(
                [sys.executable, "-I", "-S", "-c", OTHER_USER, str(path)],
                capture_stdout=True,
            )
            assert b"user 65534 may not control this program" in done.stdout
            assert program.seen == []
