"""Sockets below Trio streams."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair, open_stream_to_socket_listener

from relaycore.net.direct import direct_socket


@pytest.fixture
async def pair():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await open_stream_to_socket_listener(listener)
        far = await listener.accept()
    async with near, far:
        yield near, far


async def test_what_fits_is_sent_at_once(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    assert direct.send_nowait(b"hello") == 5
    assert await far.receive_some() == b"hello"


async def test_a_full_socket_takes_a_part_and_then_nothing(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    data = bytes(1 << 20)
    sent = 0
    while taken := direct.send_nowait(data):
        sent += taken
    assert sent % len(data) != 0
    received = 0
    with trio.fail_after(10):
        while received < sent:
            received += len(await far.receive_some(1 << 20))
    assert received == sent


async def test_a_lost_connection_is_said_in_the_words_of_streams(pair):
    near, _ = pair
    direct = direct_socket(near)
    assert direct is not None
    await near.send_eof()
    with pytest.raises(trio.BrokenResourceError):
        direct.send_nowait(b"x")
    await near.aclose()
    with pytest.raises(trio.BrokenResourceError):
        direct.send_nowait(b"x")


async def test_waiting_ends_with_data_and_with_the_end(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    with trio.move_on_after(0) as waiting:
        await direct.wait_readable()
    assert waiting.cancelled_caught
    await far.send_all(b"x")
    with trio.fail_after(10):
        await direct.wait_readable()
        assert await near.receive_some() == b"x"
        await far.aclose()
        await direct.wait_readable()
        assert await near.receive_some() == b""


async def test_other_streams_have_none():
    assert direct_socket(memory_stream_pair()[0]) is None
