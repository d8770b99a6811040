"""Buffers: a bound, leases that cannot be given back twice, memory that lives as long as somebody looks at it."""

import gc

import pytest

from relaycore._native import HEADROOM_BYTES, Buffer, Pool, PoolStatistics
from relaycore.errors import LocalProtocolError


def test_the_bound_is_said_and_counted():
    pool = Pool(buffers=2, buffer_bytes=1000)
    first, second = pool.take(), pool.take()
    assert isinstance(first, Buffer)
    assert isinstance(second, Buffer)
    assert pool.take() is None
    assert pool.take() is None
    assert pool.statistics() == PoolStatistics(buffers=2, buffer_bytes=1000, in_use=2, peak=2, exhausted=2)
    pool.give(first)
    assert pool.statistics().in_use == 1
    assert pool.take() is not None
    assert pool.statistics() == PoolStatistics(buffers=2, buffer_bytes=1000, in_use=2, peak=2, exhausted=2)


def test_windows_are_writable_and_apart():
    pool = Pool(buffers=4, buffer_bytes=700)
    buffers = [pool.take() for _ in range(4)]
    for number, buffer in enumerate(buffers):
        assert len(buffer.window) == 700
        buffer.window[:] = bytes([number]) * 700
    for number, buffer in enumerate(buffers):
        assert bytes(buffer.window) == bytes([number]) * 700


def test_a_buffer_is_given_back_once():
    pool = Pool(buffers=2, buffer_bytes=10)
    buffer = pool.take()
    assert "10 bytes" in repr(buffer)
    pool.give(buffer)
    assert "given back" in repr(buffer)
    with pytest.raises(LocalProtocolError):
        pool.give(buffer)
    again = pool.take()
    assert again.lease != buffer.lease
    with pytest.raises(LocalProtocolError):  # the earlier holder of the same slab
        pool.give(buffer)
    assert pool.statistics().in_use == 1


def test_a_buffer_goes_back_to_its_own_pool():
    pool, other = Pool(buffers=1, buffer_bytes=10), Pool(buffers=1, buffer_bytes=10)
    buffer = pool.take()
    other.take()
    with pytest.raises(LocalProtocolError):
        other.give(buffer)
    pool.give(buffer)


@pytest.mark.parametrize(("buffers", "buffer_bytes"), [(0, 1), (-1, 1), (1, 0), (1, -5), (1 << 21, 1), (1, 1 << 25)])
def test_sizes_have_limits(buffers, buffer_bytes):
    with pytest.raises(LocalProtocolError):
        Pool(buffers=buffers, buffer_bytes=buffer_bytes)


def test_a_view_keeps_the_memory():
    window = Pool(buffers=1, buffer_bytes=100_000).take().window
    gc.collect()
    window[:] = b"x" * 100_000
    assert bytes(window[-1:]) == b"x"


def test_headroom_takes_a_header_that_began_in_the_previous_receive():
    assert HEADROOM_BYTES >= 16
