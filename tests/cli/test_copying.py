"""Copying between a connection and this machine, in one process: pipes stand in for standard streams."""

from __future__ import annotations

import functools
import os
import sys

import pytest
import trio
import trio.testing

import relaycore
from relaycore.cli import copying
from relaycore.cli.copying import copy_standard_streams, echo, run_command
from relaycore.cli.options import Form
from relaycore.cli.stdio import StandardInput, StandardOutput
from relaycore.errors import ConnectionLost, RelayError
from relaycore.testing import open_relay


class Pipe:
    """One end for the code under test, the other for the test."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.closed: set[int] = set()

    def write(self, data: bytes) -> None:
        os.write(self.writing, data)

    def close(self, fd: int) -> None:
        if fd not in self.closed:
            self.closed.add(fd)
            os.close(fd)

    async def read_all(self) -> bytes:
        received = b""
        async for data in StandardInput(self.reading):
            received += data
        return received


@pytest.fixture
def pipes():
    """The input and the output of the code under test."""
    made = (Pipe(), Pipe())
    yield made
    for pipe in made:
        pipe.close(pipe.reading)
        pipe.close(pipe.writing)


@pytest.fixture
async def pair():
    """Both ends of one connection: the sender's, the listener's."""
    async with open_relay() as relay:
        await relay.create_entity("demo")
        string = relay.connection_string("demo")
        async with relaycore.open_listener(string) as listener, relaycore.open_stream(string) as sender:
            accepted = await listener.accept()
            yield sender, accepted
            await trio.aclose_forcefully(accepted)  # no goodbyes: what they wait for is not under test
            await trio.aclose_forcefully(sender)


async def copy(connection, form, pipes, *, ends_together=False) -> None:
    source, sink = StandardInput(pipes[0].reading), StandardOutput(pipes[1].writing)
    await copy_standard_streams(connection, form, source, sink, ends_together=ends_together)
    pipes[1].close(pipes[1].writing)


async def read_all(connection) -> bytes:
    received = b""
    async for data in connection:
        received += data
    return received


async def test_both_directions_run_to_their_own_end(pair, pipes, nursery):
    sender, accepted = pair
    nursery.start_soon(copy, sender, Form.BYTES, pipes)
    pipes[0].write(b"request")
    pipes[0].close(pipes[0].writing)
    assert await read_all(accepted) == b"request"
    await accepted.send_all(b"reply")
    await accepted.send_eof()
    assert await pipes[1].read_all() == b"reply"


async def test_the_end_of_the_other_side_closes_the_output_at_once(pair, pipes, nursery):
    sender, accepted = pair
    nursery.start_soon(copy, sender, Form.BYTES, pipes)
    await accepted.send_eof()
    assert await pipes[1].read_all() == b""  # while our own direction is open
    pipes[0].write(b"late")
    pipes[0].close(pipes[0].writing)
    assert await read_all(accepted) == b"late"


async def test_ending_together_stops_reading_the_input(pair, pipes):
    sender, accepted = pair
    await accepted.send_eof()
    await copy(sender, Form.BYTES, pipes, ends_together=True)


async def test_lines_come_whole_whatever_the_cuts(pair, pipes, nursery):
    sender, accepted = pair
    nursery.start_soon(copy, sender, Form.TEXT, pipes)
    channel = accepted.messages()
    for piece in (b"on", b"e\ntwo\r", b"\n\nz\xc3", b"\xb6"):
        pipes[0].write(piece)
        await trio.testing.wait_all_tasks_blocked()
    pipes[0].close(pipes[0].writing)
    assert [message async for message in channel] == ["one", "two", "", "z\u00f6"]
    await channel.send("a")
    await channel.send(b"b")
    await accepted.send_eof()
    assert await pipes[1].read_all() == b"a\nb\n"


@pytest.mark.parametrize(("data", "said"), [(b"\xff\n", "not UTF-8"), (b"x" * 2_000, "longer than")])
async def test_a_line_that_cannot_be_a_message(pair, pipes, monkeypatch, data, said):
    monkeypatch.setattr(copying, "MAX_LINE_BYTES", 1_000)
    sender, _ = pair
    pipes[0].write(data)
    with pytest.RaisesGroup(pytest.RaisesExc(RelayError, match=said)):
        await copy(sender, Form.TEXT, pipes)


async def test_a_lost_connection_is_an_error(pair, pipes):
    sender, accepted = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await accepted.aclose()  # cancelled: forceful, so that the other side sees a loss
    with pytest.RaisesGroup(ConnectionLost):
        await copy(sender, Form.BYTES, pipes)


@pytest.mark.parametrize("form", [Form.BYTES, Form.TEXT])
async def test_an_echo_ends_when_the_other_side_does(pair, nursery, form):
    sender, accepted = pair
    nursery.start_soon(echo, accepted, form)
    channel = sender.messages()
    await channel.send("x")
    await sender.send_eof()
    assert [message async for message in channel] == (["x"] if form is Form.TEXT else [b"x"])


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_a_command_is_fed_and_heard(pair, nursery):
    sender, accepted = pair
    code = "import sys; data = sys.stdin.buffer.read(); print(len(data)); sys.exit(7)"
    codes = []
    has_ended = trio.Event()

    async def run():
        codes.append(await run_command(accepted, Form.BYTES, python(code)))
        has_ended.set()

    nursery.start_soon(run)
    await sender.send_all(bytes(100_000))
    await sender.send_eof()
    assert await read_all(sender) == b"100000\n"
    await has_ended.wait()
    assert codes == [7]


async def test_a_command_that_does_not_read_is_no_failure(pair):
    sender, accepted = pair
    await sender.send_all(bytes(150_000))  # more than a pipe holds, less than the sockets do
    assert await run_command(accepted, Form.BYTES, python("print('done')")) == 0
    assert await read_all(sender) == b"done\n"


async def test_a_child_that_holds_the_output_open_does_not_hold_the_connection(pair, monkeypatch):
    monkeypatch.setattr(copying, "_DRAIN_AFTER_EXIT", 0.1)
    _, accepted = pair
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])"
    with trio.fail_after(15):
        assert await run_command(accepted, Form.BYTES, python(code)) == 0


async def test_a_cancelled_command_ends(pair, nursery):
    sender, accepted = pair
    scope = trio.CancelScope()
    has_ended = trio.Event()

    async def run():
        with scope:
            await run_command(accepted, Form.BYTES, python("import time; print('up', flush=True); time.sleep(60)"))
        has_ended.set()

    nursery.start_soon(run)
    assert (await sender.receive_some()).startswith(b"up")
    scope.cancel()
    with trio.fail_after(10):
        await has_ended.wait()


async def test_the_environment_of_a_command_has_no_secret(pair, monkeypatch, nursery):
    monkeypatch.setenv("RELAYCORE_CONNECTION_STRING", "secret")
    monkeypatch.setenv("RELAYCORE_TOKEN", "secret")
    monkeypatch.setenv("OTHER", "kept")
    sender, accepted = pair
    code = "import os; print(sorted(name for name, value in os.environ.items() if value in ('secret', 'kept')))"
    nursery.start_soon(functools.partial(run_command, accepted, Form.BYTES, python(code)))
    await sender.send_eof()
    assert await read_all(sender) == b"['OTHER']\n"


async def test_a_command_that_is_none(pair):
    _, accepted = pair
    with pytest.RaisesGroup(FileNotFoundError, flatten_subgroups=True, allow_unwrapped=True):
        await run_command(accepted, Form.BYTES, ["/nowhere/nothing"])
