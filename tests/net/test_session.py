"""The Trio mover over memory streams and sockets: the rules of a joined session, seen from both ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from peers import Frame, WirePeer, close_frame, frame
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from relaycore._native import Buffer
from relaycore.net.pool import BufferPool
from relaycore.net.session import EndReason, Session, SessionLeg, SessionResult
from relaycore.vocab import CloseBy, LegKind


class Pair:
    """A running session and the two peers at its ends."""

    def __init__(self, session: Session, pool: BufferPool, sender: WirePeer, listener: WirePeer) -> None:
        self.session = session
        self.pool = pool
        self.sender = sender
        self.listener = listener
        self.result: SessionResult | None = None
        self._done = trio.Event()

    async def run(self) -> None:
        self.result = await self.session.run()
        self._done.set()

    async def ended(self) -> SessionResult:
        await self._done.wait()
        assert self.result is not None
        assert self.pool.statistics().in_use == 0
        return self.result


def joining(near_sender: trio.abc.Stream, near_listener: trio.abc.Stream, pool: BufferPool) -> Session:
    """A session between the relay's ends of two WebSocket legs, with the default limits."""
    return Session(
        SessionLeg(LegKind.WS_SERVER, near_sender),
        SessionLeg(LegKind.WS_SERVER, near_listener),
        pool,
        half_closed_timeout=600,
        close_timeout=10,
    )


async def tcp_pair(nursery: trio.Nursery) -> tuple[trio.SocketStream, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        accepted: list[trio.SocketStream] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as inner:
            inner.start_soon(accept)
            ours = await trio.open_tcp_stream(*listener.socket.getsockname())
    return ours, accepted[0]


@pytest.fixture(params=["memory", "tcp"])
async def join(request, nursery: trio.Nursery) -> AsyncIterator[object]:
    """Join two fresh legs; the peers hold the other ends."""

    async def start(
        *,
        buffers: int = 8,
        early: bytes = b"",
        half_closed: float = 600,
        close: float = 10,
        listener_kind=LegKind.WS_SERVER,
    ) -> Pair:
        pool = BufferPool(buffers=buffers)
        if request.param == "memory":
            near_sender, sender = memory_stream_pair()
            near_listener, listener = memory_stream_pair()
        else:
            near_sender, sender = await tcp_pair(nursery)
            near_listener, listener = await tcp_pair(nursery)
        session = Session(
            SessionLeg(LegKind.WS_SERVER, near_sender, early),
            SessionLeg(listener_kind, near_listener),
            pool,
            half_closed_timeout=half_closed,
            close_timeout=close,
        )
        pair = Pair(session, pool, WirePeer(sender), WirePeer(listener))
        pairs.append(pair)
        nursery.start_soon(pair.run)
        return pair

    pairs: list[Pair] = []
    with trio.fail_after(2000):  # some tests run on a clock that jumps
        yield start
    for pair in pairs:
        await trio.aclose_forcefully(pair.sender.stream)
        await trio.aclose_forcefully(pair.listener.stream)
        await pair.ended()


async def test_messages_keep_type_and_boundaries(join) -> None:
    """spec 8.1: text stays text, and each message stays one message, both ways."""
    pair = await join()
    await pair.sender.send(frame(1, b"eins") + frame(2, b"zwei") + frame(1, b"dr", fin=False) + frame(0, b"ei"))
    assert [await pair.listener.read_message() for _ in range(3)] == [(1, b"eins"), (2, b"zwei"), (1, b"drei")]
    await pair.listener.send(frame(2, b"zurueck"))
    assert await pair.sender.read_message() == (2, b"zurueck")


async def test_large_frames_are_split_and_small_ones_not(join) -> None:
    """spec 8.2: no frame over 65 536 bytes leaves, and none below is cut."""
    pair = await join()
    whole = bytes(range(256)) * 256
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.sender.send, frame(2, whole) + frame(2, whole * 3 + b"x"))
        first = await pair.listener.read_frame()
        assert (first.fin, first.opcode, len(first.payload)) == (True, 2, 65536)
        sizes = []
        received = b""
        while True:
            got = await pair.listener.read_frame()
            assert got.opcode == (0 if sizes else 2)
            sizes.append(len(got.payload))
            received += got.payload
            if got.fin:
                break
    assert received == whole * 3 + b"x"
    assert max(sizes) <= 65536
    assert min(sizes) > 0


async def test_an_empty_message_is_forwarded_and_none_is_made(join) -> None:
    """spec 8.3: an empty message that was really sent arrives; no other empty frame does."""
    pair = await join()
    await pair.sender.send(frame(1) + frame(2, b"a", fin=False) + frame(0, b"b"))
    assert await pair.listener.read_message() == (1, b"")
    frames = [await pair.listener.read_frame(), await pair.listener.read_frame()]
    assert [f.payload for f in frames] == [b"a", b"b"]


async def test_payload_is_forwarded_before_its_message_ends(join) -> None:
    """spec 8.4: nothing waits for the end of a message."""
    pair = await join()
    data = frame(2, b"x" * 1000)
    await pair.sender.send(data[:508])
    assert len(await pair.listener.read_exactly(4 + 500)) == 504
    await pair.sender.send(data[508:])
    assert len(await pair.listener.read_exactly(500)) == 500


async def test_ping_is_answered_here_and_pong_swallowed(join) -> None:
    """spec 8.6: a ping gets its payload back and the other side sees neither it nor any pong."""
    pair = await join()
    await pair.sender.send(frame(9, b"are you there") + frame(10, b"unasked") + frame(2, b"data"))
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == (10, b"are you there")
    assert await pair.listener.read_message() == (2, b"data")


async def test_pong_does_not_wait_behind_a_reader_that_is_slow(join) -> None:
    """failures: pong waits behind data, live peer declared dead."""
    pair = await join()
    data = frame(2, b"x" * 10)
    await pair.sender.send(data[:8])
    assert await pair.listener.read_exactly(4) == bytes([0x82, 10]) + b"xx"
    # A frame is open towards the listener, so its pong comes right behind that frame, and before what follows.
    await pair.listener.send(frame(9, b"alive?") + frame(1, b"back"))
    assert await pair.sender.read_message() == (1, b"back")
    await pair.sender.send(data[8:] + frame(2, b"next"))
    assert await pair.listener.read_exactly(8) == b"x" * 8
    assert [(f.opcode, f.payload) for f in [await pair.listener.read_frame(), await pair.listener.read_frame()]] == [
        (10, b"alive?"),
        (2, b"next"),
    ]


async def test_close_is_forwarded_and_the_other_direction_stays_open(join) -> None:
    """spec 8.7: half-close: the reply after a Close still arrives, then the Close comes back."""
    pair = await join()
    await pair.sender.send(frame(2, b"question") + close_frame(1000, "Shutdown"))
    assert await pair.listener.read_message() == (2, b"question")
    got = await pair.listener.read_frame()
    assert (got.opcode, got.payload) == (8, b"\x03\xe8Shutdown")
    await pair.listener.send(frame(2, b"answer"))
    assert await pair.sender.read_message() == (2, b"answer")
    await pair.listener.send(close_frame(1000, "done"))
    assert (await pair.sender.read_frame()).payload == b"\x03\xe8done"
    assert await pair.sender.read_eof() == b""
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    await pair.listener.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.CLOSED, CloseBy.SENDER)
    assert result.statistics.to_listener.payload_bytes == 8


@pytest.mark.parametrize("payload", [b"", b"\x0f\xa0", b"\x0f\xa0" + "ü".encode() * 61])
async def test_close_is_forwarded_verbatim(join, payload: bytes) -> None:
    """spec 8.7: code and reason as they came, an empty payload as an empty one."""
    pair = await join()
    await pair.listener.send(frame(8, payload))
    assert (await pair.sender.read_frame()).payload == payload


async def test_a_side_that_only_closes_leaves_the_session_open_for_long(join, autojump_clock) -> None:
    """spec 8.7: one side closed and the other silent: bounded by a long idle limit, counted from the last byte."""
    pair = await join(half_closed=600)
    start = trio.current_time()
    await pair.sender.send(close_frame())
    await pair.listener.read_frame()
    await trio.sleep(500)
    await pair.listener.send(frame(2, b"still here"))
    assert await pair.sender.read_message() == (2, b"still here")
    result = await pair.ended()
    assert 1100 <= trio.current_time() - start < 1110
    assert (result.reason, result.by) == (EndReason.HALF_CLOSED_TIMEOUT, CloseBy.SENDER)


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_a_side_that_closes_and_hangs_up_does_not_hold_the_other_one(join, autojump_clock, leaver: str) -> None:
    """spec 8.7: after Close and hang-up nobody is left to answer; the other side has the time that a Close has."""
    pair = await join(half_closed=600, close=10)
    gone, stays = (pair.sender, pair.listener) if leaver == "sender" else (pair.listener, pair.sender)
    start = trio.current_time()
    await gone.send(close_frame(1007))
    await gone.aclose()
    assert (await stays.read_frame()).close_code == 1007
    result = await pair.ended()
    assert 10 <= trio.current_time() - start < 20
    assert (result.reason, result.by.value) == (EndReason.HALF_CLOSED_TIMEOUT, leaver)


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_an_end_without_close_cuts_the_other_side_without_close(join, leaver: str) -> None:
    """spec 8.8: an abort stays an abort."""
    pair = await join()
    gone, stays = (pair.sender, pair.listener) if leaver == "sender" else (pair.listener, pair.sender)
    await gone.send(frame(2, b"last words"))
    assert await stays.read_message() == (2, b"last words")
    await gone.aclose()
    assert await stays.read_eof() == b""
    result = await pair.ended()
    assert (result.reason, result.by.value) == (EndReason.ABORTED, leaver)


@pytest.mark.parametrize("join", ["tcp"], indirect=True)
async def test_a_source_is_not_read_while_its_destination_does_not_take(join) -> None:
    """spec 8.9: one buffer per direction is all that a flood towards a deaf reader can fill."""
    pair = await join(buffers=4)
    message = frame(2, b"f" * 60_000)
    sent = 0
    with trio.move_on_after(1):
        while True:
            await pair.sender.send(message)
            sent += 1
    assert 0 < sent < 500  # what the kernel's buffers hold
    assert pair.pool.statistics().in_use == 1


async def test_idle_session_holds_no_buffer(join) -> None:
    """spec 8.11: an idle stream is left alone, and owns no buffer meanwhile."""
    pair = await join()
    await pair.sender.send(frame(1, b"x"))
    await pair.listener.read_message()
    await wait_all_tasks_blocked(0.01)
    if isinstance(pair.sender.stream, trio.SocketStream):
        assert pair.pool.statistics().in_use == 0


async def test_early_bytes_go_in_first(join) -> None:
    """failures: data arrives before the local connect is done and is lost."""
    pair = await join(early=frame(1, b"early") + frame(2, b"more")[:3])
    assert await pair.listener.read_message() == (1, b"early")


async def test_many_tiny_frames(join) -> None:
    """spec 8.10: one byte a frame is normal traffic."""
    pair = await join()
    count = 3000
    data = frame(2, b"a", fin=False) + b"".join(frame(0, b"b", fin=False) for _ in range(count)) + frame(0, b"c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.sender.send, data)
        assert await pair.listener.read_message() == (2, b"a" + b"b" * count + b"c")


@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        (frame(2, b"x", rsv=4), 1002),
        (frame(3, b"x"), 1002),
        (frame(2, b"x", masked=False), 1002),
        (frame(0, b"x"), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(8, b"\x03\xed"), 1002),
        (frame(8, b"\x03\xe8\xff\xff"), 1007),
    ],
    ids=["rsv", "opcode", "unmasked", "continuation", "long-ping", "code-1005", "utf-8"],
)
async def test_a_broken_rule_closes_its_side_and_cuts_the_other(join, bytes_: bytes, code: int) -> None:
    """spec 13: protocol error by a peer: 1002 to it, the other side aborted."""
    pair = await join()
    await pair.sender.send(bytes_)
    got = await pair.sender.read_frame()
    assert (got.opcode, got.close_code) == (8, code)
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.PROTOCOL_ERROR, CloseBy.SENDER)


async def test_relay_made_close_reaches_both_and_waits_for_both(join) -> None:
    """spec 13: 1001 to both sides, then the answers are waited for."""
    pair = await join()
    await wait_all_tasks_blocked()
    pair.session.close_nowait(1001, b"going")
    for peer in (pair.sender, pair.listener):
        got = await peer.read_frame()
        assert (got.opcode, got.payload) == (8, b"\x03\xe9going")
        await peer.send(frame(2, b"dropped") + close_frame(1001))
    assert await pair.sender.read_eof() == b""
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.RELAY_CLOSED


async def test_relay_made_close_is_bounded(join, autojump_clock) -> None:
    """spec 13: who does not answer our Close is cut after a grace period."""
    pair = await join(close=10)
    await wait_all_tasks_blocked()
    start = trio.current_time()
    pair.session.close_nowait(1001, b"going")
    result = await pair.ended()
    assert 10 <= trio.current_time() - start < 13
    assert result.reason is EndReason.RELAY_CLOSED


async def test_cancellation_cuts_both_and_returns_every_buffer(nursery: trio.Nursery) -> None:
    """spec 8.8: a session that is cancelled leaves nothing behind."""
    pool = BufferPool(buffers=2)
    near_sender, sender = await tcp_pair(nursery)
    near_listener, listener = await tcp_pair(nursery)
    session = joining(near_sender, near_listener, pool)
    with trio.move_on_after(0.2):
        async with trio.open_nursery() as inner:
            inner.start_soon(session.run)
            while True:
                await sender.send_all(frame(2, b"y" * 60_000))
    assert pool.statistics().in_use == 0
    peer = WirePeer(listener)
    with suppress(trio.BrokenResourceError):
        await peer.read_eof()
    await peer.aclose()
    await trio.aclose_forcefully(sender)


async def test_an_empty_pool_stops_reading_and_loses_nothing(nursery: trio.Nursery) -> None:
    """spec 8.9: sessions that share one buffer take turns."""
    pool = BufferPool(buffers=1)
    ends: list[tuple[WirePeer, WirePeer]] = []
    for _ in range(5):
        near_sender, sender = await tcp_pair(nursery)
        near_listener, listener = await tcp_pair(nursery)
        session = joining(near_sender, near_listener, pool)
        nursery.start_soon(session.run)
        ends.append((WirePeer(sender), WirePeer(listener)))
    with trio.fail_after(20):
        async with trio.open_nursery() as inner:
            for index, (sender, listener) in enumerate(ends):
                inner.start_soon(sender.send, b"".join(frame(2, bytes([index]) * 5000) for _ in range(50)))
                inner.start_soon(_expect, listener, index)
    assert pool.statistics().peak == 1
    for pair in ends:
        for peer in pair:
            await peer.aclose()


async def _empty(pool: BufferPool) -> list[Buffer]:
    """Take everything there is, as readers do that have stopped."""
    held: list[Buffer] = []
    with trio.move_on_after(0.05):
        while True:
            held.append(await pool.borrow())
    return held


async def test_relay_made_close_leaves_although_no_buffer_is_free(join) -> None:
    """spec 13: entity deleted: 1001 both sides, also while slow readers hold the whole pool."""
    pair = await join(buffers=1)
    held = await _empty(pair.pool)
    pair.session.close_nowait(1001, b"gone")
    assert (await pair.sender.read_frame()).close_code == 1001
    assert (await pair.listener.read_frame()).close_code == 1001
    for buffer in held:
        pair.pool.give_back(buffer)


async def test_a_pong_that_waits_for_a_frame_needs_no_second_buffer(nursery: trio.Nursery) -> None:
    """failures: pong waits behind data; with one buffer for all, the frame and then the Pong arrive."""
    pool = BufferPool(buffers=1)
    near_sender, sender = await tcp_pair(nursery)
    near_listener, listener = await tcp_pair(nursery)
    session = joining(near_sender, near_listener, pool)
    nursery.start_soon(session.run)
    from_sender, from_listener = WirePeer(sender), WirePeer(listener)
    held = await _empty(pool)
    pool.give_back(held.pop())
    data = frame(2, b"x" * 3000)
    with trio.fail_after(5):
        await from_sender.send(data[:1000])
        await from_listener.read_exactly(500)
        await from_listener.send(frame(9, b"ping"))
        while not session.statistics().to_sender.frames_in:
            await trio.sleep(0.01)
        await from_sender.send(data[1000:2000])
        await from_listener.read_exactly(1000)
        await from_sender.send(data[2000:])
        await from_listener.read_exactly(len(data) - 4 - 1500)
        assert await from_listener.read_frame() == Frame(True, 10, b"ping")
    for peer in (from_sender, from_listener):
        await peer.aclose()
    for buffer in held:
        pool.give_back(buffer)


async def _expect(listener: WirePeer, index: int) -> None:
    for _ in range(50):
        assert await listener.read_message() == (2, bytes([index]) * 5000)


class SlowStream(trio.abc.Stream):
    """A stream whose sending lets others run before and after the bytes leave, as TLS does."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        await self._stream.send_all(data)
        for _ in range(20):
            await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_an_answering_close_leaves_before_the_end(nursery: trio.Nursery) -> None:
    """spec 8.7: the answer to a Close arrives, also when it comes before the Close has left entirely (as over TLS)."""
    near_sender, sender = memory_stream_pair()
    near_listener, listener = memory_stream_pair()
    session = Session(
        SessionLeg(LegKind.WS_SERVER, SlowStream(near_sender)),
        SessionLeg(LegKind.WS_SERVER, SlowStream(near_listener)),
        BufferPool(buffers=8),
        half_closed_timeout=600,
        close_timeout=10,
    )
    nursery.start_soon(session.run)
    with trio.fail_after(10):
        await WirePeer(sender).send(close_frame(3001, "x"))
        assert (await WirePeer(listener).read_frame()).opcode == 8
        await WirePeer(listener).send(close_frame(3001, "x"))
        assert (await WirePeer(sender).read_frame()).opcode == 8


async def test_an_offender_that_is_being_sent_to_hears_why_it_is_closed(nursery: trio.Nursery) -> None:
    """spec 13: protocol error by a peer: 1002 to it, also when a frame towards it was still on its way."""
    near_sender, sender = lockstep_stream_pair()
    near_listener, listener = memory_stream_pair()
    session = joining(near_sender, near_listener, BufferPool(buffers=4))
    nursery.start_soon(session.run)
    offender, bystander = WirePeer(sender), WirePeer(listener)
    with trio.fail_after(10):
        await bystander.send(frame(2, b"on its way"))
        await wait_all_tasks_blocked()
        await offender.send(frame(3, b"no such opcode"))
        await wait_all_tasks_blocked()
        assert await offender.read_message() == (2, b"on its way")
        assert (await offender.read_frame()).close_code == 1002
        assert await bystander.read_eof() == b""
    await offender.aclose()
    await bystander.aclose()
