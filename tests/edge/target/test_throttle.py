"""Rates, on a clock that jumps: so the times are exact."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, memory_stream_pair

from relaycore.edge.target.throttle import SharedRates, TokenBucket, Waited, throttled
from relaycore.net.linger import is_reset, reset

MIB = 1 << 20


async def read_all(stream: trio.abc.ReceiveStream) -> int:
    count = 0
    async for data in stream:
        count += len(data)
    return count


@pytest.mark.parametrize(("rate", "burst"), [(MIB, 65_536), (10 * MIB, MIB), (1000, 1)])
async def test_the_rate_is_kept(autojump_clock: MockClock, rate: int, burst: int):
    near, far = memory_stream_pair()
    stream = throttled(near, TokenBucket(rate, burst), None)
    size = 20 * rate
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, far)
        for start in range(0, size, 50_000):
            await stream.send_all(bytes(min(50_000, size - start)))
        await stream.aclose()
    # The burst goes at once, and the last piece is not waited for.
    assert trio.current_time() == pytest.approx((size - burst) / rate, abs=(65_536 + burst) / rate)


async def test_both_directions_have_their_own(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    inbound, outbound = TokenBucket(100_000, 1), TokenBucket(200_000, 1)
    stream = throttled(near, inbound, outbound)

    async def receive() -> None:
        assert await read_all(stream) == 1_000_000
        assert trio.current_time() == pytest.approx(5, abs=0.4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(read_all, far)
        await far.send_all(bytes(1_000_000))
        await far.send_eof()
        await stream.send_all(bytes(1_000_000))
        await stream.send_eof()
    assert trio.current_time() == pytest.approx(10, abs=0.7)
    assert inbound.waited_s == pytest.approx(10, abs=0.7)
    assert outbound.waited_s == pytest.approx(5, abs=0.4)


async def test_connections_share_a_bucket_evenly(autojump_clock: MockClock):
    bucket = TokenBucket(MIB, 65_536)
    counts = [0, 0, 0]

    async def count(index: int, stream: trio.abc.ReceiveStream) -> None:
        async for data in stream:
            counts[index] += len(data)

    async def fill(stream: trio.abc.SendStream) -> None:
        while True:
            await stream.send_all(bytes(65_536))

    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            for index in range(3):
                near, far = memory_stream_pair()
                nursery.start_soon(count, index, far)
                nursery.start_soon(fill, throttled(near, bucket, None))
    assert sum(counts) == pytest.approx(30 * MIB, rel=0.02)
    assert min(counts) > 5 * MIB


async def test_a_cancelled_read_loses_nothing(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    stream = throttled(near, None, TokenBucket(1000, 1))
    await far.send_all(bytes(range(200)))
    assert await stream.receive_some(100) == bytes(range(100))
    with trio.move_on_after(0.01) as scope:
        await stream.receive_some(100)
    assert scope.cancelled_caught
    assert await stream.receive_some() == bytes(range(100, 200))


async def test_other_numbers_count_from_now_on(autojump_clock: MockClock):
    bucket = TokenBucket(10, 1000)
    bucket.change(1000, 1)
    bucket.charge(1001)
    await bucket.wait_solvent()
    assert trio.current_time() == pytest.approx(1, abs=0.01)
    bucket.change(1, 1000)
    await trio.sleep(2000)
    bucket.charge(999)
    await bucket.wait_solvent()
    assert trio.current_time() == pytest.approx(2001, abs=0.01)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0)])
async def test_what_is_no_rate(rate: int, burst: int):
    with pytest.raises(ValueError, match="at least 1 byte"):
        TokenBucket(rate, burst)
    with pytest.raises(ValueError, match="at least 1 byte"):
        TokenBucket(1, 1).change(rate, burst)


async def test_without_rates_the_stream_is_its_own():
    near, _ = memory_stream_pair()
    assert throttled(near, None, None) is near


async def test_it_is_a_stream(autojump_clock: MockClock):
    async def make():
        near, far = memory_stream_pair()
        return throttled(near, TokenBucket(1 << 30, 1 << 30), TokenBucket(1 << 30, 1 << 30)), throttled(
            far, None, TokenBucket(1 << 30, 1 << 30)
        )

    await check_half_closeable_stream(make, None)


async def test_a_lost_one_is_reset_all_the_same():
    """An endpoint must not take the end of a cut connection for a proper one."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        far = await listener.accept()
    stream = throttled(near, TokenBucket(1, 1), None)
    assert not is_reset(stream)
    await reset(stream)
    async with far:
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()


@pytest.mark.parametrize(("own", "seconds"), [(None, 10), (200_000, 10), (50_000, 20)])
async def test_a_bucket_of_its_own_and_a_shared_one(autojump_clock: MockClock, own: int | None, seconds: int):
    """manager 8.5.5: token buckets per connection entry and per process; the slower one counts."""
    near, far = memory_stream_pair()
    waited, own_waited = Waited(), Waited()
    shared = TokenBucket(100_000, 1)
    bucket = None if own is None else TokenBucket(own, 1, own_waited)
    stream = throttled(near, SharedRates(bucket, shared, waited), None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, far)
        for _ in range(100):
            await stream.send_all(bytes(10_000))
        await stream.aclose()
    assert trio.current_time() == pytest.approx(seconds, rel=0.05)
    assert waited.seconds == shared.waited_s
    assert waited.seconds + own_waited.seconds == pytest.approx(trio.current_time())


async def test_two_entries_share_a_bucket(autojump_clock: MockClock):
    shared = TokenBucket(100_000, 1)
    waited = [Waited(), Waited()]

    async def send(number: int) -> None:
        near, far = memory_stream_pair()
        stream = throttled(near, SharedRates(None, shared, waited[number]), None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, far)
            for _ in range(50):
                await stream.send_all(bytes(10_000))
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(send, number)
    assert trio.current_time() == pytest.approx(10, rel=0.05)
    assert shared.waited_s == pytest.approx(sum(one.seconds for one in waited))
    assert all(one.seconds > 0 for one in waited)
