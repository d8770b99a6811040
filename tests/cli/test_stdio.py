"""Standard streams: pipes, files, terminals; nobody else's flags are touched."""

from __future__ import annotations

import contextlib
import os
import pty

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relaycore.cli.stdio import StandardInput, StandardOutput


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with contextlib.suppress(OSError):  # closed by the test
            os.close(fd)


async def test_a_pipe_is_read_to_its_end(pipe):
    reading, writing = pipe
    source = StandardInput(reading)
    os.write(writing, b"hello")
    assert await source.receive_some() == b"hello"
    os.write(writing, b"abc")
    assert await source.receive_some(2) == b"ab"
    assert await source.receive_some() == b"c"
    os.close(writing)
    assert await source.receive_some() == b""


async def test_waiting_for_a_pipe_does_not_hold_the_loop(pipe, nursery):
    reading, writing = pipe
    source = StandardInput(reading)
    received = []

    async def receive():
        received.append(await source.receive_some())

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    assert received == []
    os.write(writing, b"x")
    await wait_all_tasks_blocked()
    assert received == [b"x"]


async def test_waiting_can_be_cancelled_without_loss(pipe):
    reading, writing = pipe
    source = StandardInput(reading)
    with trio.move_on_after(0):
        await source.receive_some()
    os.write(writing, b"x")
    assert await source.receive_some() == b"x"


async def test_no_flag_of_a_shared_descriptor_changes(pipe):
    """O_NONBLOCK belongs to the open file: on a terminal it would reach the shell and standard error."""
    controlling, terminal = pty.openpty()
    try:
        for fd in (terminal, *pipe):
            source, sink = StandardInput(fd), StandardOutput(fd)
            assert os.get_blocking(fd)
            await source.aclose()
            del sink
        os.write(controlling, b"typed\n")
        assert await StandardInput(terminal).receive_some() == b"typed\n"
        assert os.get_blocking(terminal)
    finally:
        os.close(controlling)
        os.close(terminal)


async def test_files_and_the_null_device_are_read_too(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    with path.open("rb") as file:
        source = StandardInput(file.fileno())
        total = 0
        async for data in source:
            total += len(data)
        assert total == 100_000
    null = os.open(os.devnull, os.O_RDONLY)
    assert await StandardInput(null).receive_some() == b""
    os.close(null)


async def test_everything_is_written(pipe, nursery):
    reading, writing = pipe
    data = os.urandom(300_000)  # more than a pipe holds
    sink = StandardOutput(writing)
    nursery.start_soon(sink.send_all, data)
    source = StandardInput(reading)
    received = b""
    while len(received) < len(data):
        received += await source.receive_some()
    assert received == data
    await sink.wait_send_all_might_not_block()


async def test_closing_shows_the_reader_the_end_and_keeps_the_number(pipe):
    reading, writing = pipe
    sink = StandardOutput(writing)
    await sink.aclose()
    await sink.aclose()
    assert await StandardInput(reading).receive_some() == b""
    os.write(writing, b"nobody sees this")  # the descriptor is still there
    with pytest.raises(trio.ClosedResourceError):
        await sink.send_all(b"x")


async def test_a_reader_that_has_gone_is_a_broken_pipe(pipe):
    reading, writing = pipe
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await StandardOutput(writing).send_all(b"x")


async def test_after_closing_nothing_is_read(pipe):
    source = StandardInput(pipe[0])
    await source.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await source.receive_some()
