"""Sockets below Trio streams."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair, open_stream_to_socket_listener, wait_all_tasks_blocked

from relaycore.net.direct import direct_socket
from relaycore.net.linger import reset


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


async def test_reading_waits_for_data_and_for_the_end(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    with trio.move_on_after(0) as waiting:
        await direct.receive(10)
    assert waiting.cancelled_caught
    assert direct.receive_nowait(10) is None
    await far.send_all(b"hello")
    with trio.fail_after(10):
        assert await direct.receive(2) == b"he"
        assert direct.receive_nowait(10) == b"llo"
        await far.aclose()
        assert await direct.receive(10) == b""


async def test_reading_from_a_reset_connection(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    await reset(far)
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
        await direct.receive(10)


async def test_other_streams_have_none():
    assert direct_socket(memory_stream_pair()[0]) is None


async def test_a_reading_scope_ends_the_waiting_and_loses_nothing(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    scope = direct.reading_scope()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await direct.receive(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        scope.cancel()
        scope.cancel()
    assert scope.cancel_called
    await far.send_all(b"later")
    assert await direct.receive(10) == b"later"
    await near.send_all(b"back")
    assert await far.receive_some() == b"back"


async def test_a_reading_scope_ends_no_wait_that_comes_after(pair):
    near, far = pair
    direct = direct_socket(near)
    assert direct is not None
    direct.reading_scope().cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send_all, b"x")
        assert await direct.receive(10) == b"x"
