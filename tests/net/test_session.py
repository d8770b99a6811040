"""The contract of both movers, over memory streams and sockets: the rules of a joined session, seen from both ends."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from peers import Frame, WirePeer, close_frame, frame
from stages import LOST, Joined, Stage, flood, legs, on_sockets, until
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from relaycore._native import Buffer
from relaycore.errors import LocalProtocolError
from relaycore.net.pool import BufferPool
from relaycore.net.session import EndReason, Session, SessionLeg
from relaycore.net.trio_mover import TrioMover
from relaycore.vocab import CloseBy, LegKind

RELAY_CLOSE = (8, b"\x03\xe9going")


def by_name(joined: Joined, name: str) -> tuple[WirePeer, WirePeer]:
    """The peer called so, and the other one."""
    both = joined.sender, joined.listener
    return both if name == "sender" else both[::-1]


async def say_goodbye(joined: Joined) -> None:
    """Both sides close in order; the session ends so."""
    await joined.sender.send(close_frame())
    while (await joined.listener.read_frame()).opcode != 8:
        pass
    await joined.listener.send(close_frame())
    while (await joined.sender.read_frame()).opcode != 8:
        pass
    await joined.sender.aclose()
    await joined.listener.aclose()
    assert (await joined.ended()).reason is EndReason.CLOSED


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


async def test_a_side_that_only_closes_leaves_the_session_open_for_long(join, stage: Stage, clock) -> None:
    """spec 8.7: one side closed and the other silent: bounded by a long idle limit, counted from the last byte."""
    pair = await join(half_closed=stage.seconds(600))
    start = trio.current_time()
    await pair.sender.send(close_frame())
    await pair.listener.read_frame()
    await trio.sleep(stage.seconds(300))
    await pair.listener.send(frame(2, b"still here"))
    assert await pair.sender.read_message() == (2, b"still here")
    result = await pair.ended()
    assert stage.seconds(890) <= trio.current_time() - start < 910
    assert (result.reason, result.by) == (EndReason.HALF_CLOSED_TIMEOUT, CloseBy.SENDER)


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_a_side_that_closes_and_hangs_up_does_not_hold_the_other_one(
    join, stage: Stage, clock, leaver: str
) -> None:
    """spec 8.7: after Close and hang-up nobody is left to answer; the other side has the time that a Close has."""
    pair = await join(half_closed=600, close=stage.seconds(200))
    gone, stays = by_name(pair, leaver)
    start = trio.current_time()
    await gone.send(close_frame(1007))
    await gone.aclose()
    assert (await stays.read_frame()).close_code == 1007
    result = await pair.ended()
    assert stage.seconds(195) <= trio.current_time() - start < 210
    assert (result.reason, result.by.value) == (EndReason.HALF_CLOSED_TIMEOUT, leaver)


async def test_a_reply_to_one_that_has_closed_and_ended_its_stream_may_take_long(join, stage: Stage, clock) -> None:
    """spec 8.7: behind Close and the end of its stream a side still reads, for as long as something comes."""
    pair = await join(half_closed=600, close=stage.seconds(300))
    await pair.sender.send(frame(2, b"question") + close_frame())
    await pair.sender.stream.send_eof()
    assert await pair.listener.read_message() == (2, b"question")
    assert (await pair.listener.read_frame()).opcode == 8
    for index in range(8):
        await trio.sleep(stage.seconds(75))
        await pair.listener.send(frame(2, bytes([index])))
        assert await pair.sender.read_message() == (2, bytes([index]))
    await pair.listener.send(close_frame())
    assert (await pair.sender.read_frame()).opcode == 8
    await pair.sender.aclose()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.CLOSED


async def test_a_silent_session_ends_where_a_limit_is_set(join, stage: Stage, clock) -> None:
    """spec 8.11: an idle stream is left alone unless somebody has set a limit, which counts from the last byte."""
    pair = await join(idle=stage.seconds(600))
    start = trio.current_time()
    for peer, other in ((pair.sender, pair.listener), (pair.listener, pair.sender)):
        await trio.sleep(stage.seconds(300))
        await peer.send(frame(2, b"still here"))
        assert await other.read_message() == (2, b"still here")
    assert await pair.sender.is_cut()
    assert await pair.listener.is_cut()
    result = await pair.ended()
    assert stage.seconds(1190) <= trio.current_time() - start < 1210
    assert (result.reason, result.by) == (EndReason.IDLE_TIMEOUT, CloseBy.RELAY)


async def test_behind_a_close_the_limit_is_that_of_the_half_close(join, stage: Stage, clock) -> None:
    """spec 8.7: the long limit of a half-closed session holds, whatever the one of silence is."""
    pair = await join(idle=stage.seconds(150), half_closed=stage.seconds(600))
    start = trio.current_time()
    await pair.listener.send(close_frame())
    assert (await pair.sender.read_frame()).opcode == 8
    result = await pair.ended()
    assert stage.seconds(590) <= trio.current_time() - start < 610
    assert (result.reason, result.by) == (EndReason.HALF_CLOSED_TIMEOUT, CloseBy.LISTENER)


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_an_end_without_close_cuts_the_other_side_without_close(join, leaver: str) -> None:
    """spec 8.8: an abort stays an abort."""
    pair = await join()
    gone, stays = by_name(pair, leaver)
    await gone.send(frame(2, b"last words"))
    assert await stays.read_message() == (2, b"last words")
    await gone.aclose()
    assert await stays.read_eof() == b""
    result = await pair.ended()
    assert (result.reason, result.by.value) == (EndReason.ABORTED, leaver)


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_an_end_within_a_frame_cuts_the_other_side_within_it(join, leaver: str) -> None:
    """spec 8.8: nothing is put behind half a frame, so that nobody takes it for a whole one."""
    pair = await join()
    gone, stays = by_name(pair, leaver)
    await gone.send(frame(2, b"x" * 1000)[:508])
    assert len(await stays.read_exactly(504)) == 504
    await gone.aclose()
    assert await stays.read_eof() == b""
    assert (await pair.ended()).reason is EndReason.ABORTED


async def test_a_source_is_not_read_while_its_destination_does_not_take(join, stage: Stage, nursery) -> None:
    """spec 8.9: one buffer per direction is all that a flood towards a deaf reader can fill."""
    pair = await join(buffers=4, small=True)
    nursery.start_soon(flood, pair.sender)
    await pair.stalled()
    assert stage.buffers_in_use == 1
    counts = pair.session.statistics().to_listener
    assert counts.bytes_in < 400 * 20_000
    # The way back is free meanwhile.
    await pair.listener.send(frame(1, b"wait"))
    assert await pair.sender.read_message() == (1, b"wait")


@on_sockets
@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_a_source_that_is_reset_does_not_wait_for_a_blocked_destination(
    join, stage: Stage, nursery, leaver: str
) -> None:
    """failures: client gone, listener never told."""
    pair = await join(small=True)
    gone, _ = by_name(pair, leaver)
    nursery.start_soon(flood, gone)
    await pair.stalled(to_sender=leaver == "listener")
    gone.reset()
    with trio.fail_after(5):
        while not pair.is_over:
            pair.session.check_sources_nowait()
            await trio.sleep(0.01)
    result = await pair.ended()
    assert (result.reason, result.by.value) == (EndReason.ABORTED, leaver)


@on_sockets
async def test_a_destination_that_is_reset_ends_the_session(join, stage: Stage, nursery) -> None:
    """spec 8.8: a leg that is lost while it is sent to takes the other one with it."""
    pair = await join(small=True)
    nursery.start_soon(flood, pair.sender)
    await pair.stalled()
    pair.listener.reset()
    assert (await pair.ended()).reason is EndReason.ABORTED


async def test_a_source_that_ends_in_order_waits_for_a_slow_destination(join, stage: Stage) -> None:
    """spec 8.9: what was sent before the Close arrives, however slowly it is read."""
    pair = await join(small=True)
    messages = 40

    async def send() -> None:
        for index in range(messages):
            await pair.sender.send(frame(2, bytes([index]) * 10_000))
        await pair.sender.send(close_frame())

    async with trio.open_nursery() as sending:
        sending.start_soon(send)
        await pair.stalled()
        for index in range(messages):
            assert await pair.listener.read_message() == (2, bytes([index]) * 10_000)
        assert (await pair.listener.read_frame()).opcode == 8
    await pair.listener.send(close_frame())
    assert (await pair.sender.read_frame()).opcode == 8


async def test_idle_session_holds_no_buffer(join, stage: Stage) -> None:
    """spec 8.11: an idle stream is left alone, and owns no buffer meanwhile."""
    pair = await join()
    await pair.sender.send(frame(1, b"x"))
    await pair.listener.read_message()
    await wait_all_tasks_blocked(0.01)
    if stage.has_sockets:
        await until(lambda: stage.buffers_in_use == 0)


async def test_early_bytes_go_in_first(join) -> None:
    """failures: data arrives before the local connect is done and is lost."""
    pair = await join(early=(frame(1, b"early") + frame(2, b"more")[:3], frame(1, b"me too")))
    assert await pair.listener.read_message() == (1, b"early")
    assert await pair.sender.read_message() == (1, b"me too")


async def test_early_bytes_and_what_follows_are_one_stream(join) -> None:
    """failures: data arrives before the local connect is done and is lost; the cut may be within a frame."""
    first, second = frame(2, bytes(range(256)) * 10), frame(1, b"behind")
    pair = await join(early=((first + second)[:1000], first[:7]))
    await pair.sender.send((first + second)[1000:])
    await pair.listener.send(first[7:] + second)
    for peer in (pair.listener, pair.sender):
        assert await peer.read_message() == (2, bytes(range(256)) * 10)
        assert await peer.read_message() == (1, b"behind")


async def test_early_bytes_may_be_more_than_a_buffer(join) -> None:
    """failures: data arrives before the local connect is done and is lost; 100 KiB through buffers of 4 KiB."""
    early = b"".join(frame(2, bytes([index]) * 997) for index in range(100))
    tiny = frame(2, b"a", fin=False) + b"".join(frame(0, b"b", fin=False) for _ in range(5000)) + frame(0, b"c")
    pair = await join(early=(early, tiny), buffers=2, buffer_bytes=4096)
    for index in range(100):
        assert await pair.listener.read_message() == (2, bytes([index]) * 997)
    assert await pair.sender.read_message() == (2, b"a" + b"b" * 5000 + b"c")
    await pair.sender.send(frame(1, b"and on"))
    assert await pair.listener.read_message() == (1, b"and on")


async def test_early_bytes_can_break_a_rule(join) -> None:
    """spec 13: protocol error by a peer in what came behind its handshake: 1002 to it, the other side aborted."""
    pair = await join(early=(frame(1, b"fine") + frame(3, b"no such opcode"), b""))
    assert await pair.listener.read_message() == (1, b"fine")
    assert await pair.listener.read_eof() == b""
    assert (await pair.sender.read_frame()).close_code == 1002
    await pair.sender.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.PROTOCOL_ERROR, CloseBy.SENDER)


async def test_early_bytes_can_hold_all_there_is(join) -> None:
    """spec 8.7: both Closes came behind the handshakes."""
    pair = await join(early=(frame(1, b"all") + close_frame(3000, "x") + b"leftover", close_frame(3001)))
    assert await pair.listener.read_message() == (1, b"all")
    assert (await pair.listener.read_frame()).close_code == 3000
    assert (await pair.sender.read_frame()).close_code == 3001
    await pair.sender.aclose()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.CLOSED


async def test_many_tiny_frames(join) -> None:
    """spec 8.10: one byte a frame is normal traffic."""
    pair = await join()
    count = 3000
    data = frame(2, b"a", fin=False) + b"".join(frame(0, b"b", fin=False) for _ in range(count)) + frame(0, b"c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.sender.send, data)
        assert await pair.listener.read_message() == (2, b"a" + b"b" * count + b"c")


@pytest.mark.parametrize("size", [1_000, 100_000, 1 << 21], ids=["small", "middle", "more-than-is-read"])
async def test_what_comes_behind_a_close_reaches_nobody(join, nursery, size: int) -> None:
    """RFC 6455 5.5.1: behind a Close nothing is data; it is thrown away, and the other direction goes on."""
    pair = await join()
    await pair.sender.send(close_frame(1000, "bye"))

    async def babble() -> None:
        with suppress(*LOST):
            await pair.sender.send(frame(2, b"x" * size))

    nursery.start_soon(babble)
    assert (await pair.listener.read_frame()).opcode == 8
    await pair.listener.send(frame(2, b"answer") + close_frame())
    assert await pair.sender.read_message() == (2, b"answer")
    assert (await pair.sender.read_frame()).opcode == 8
    await pair.sender.aclose()
    assert await pair.listener.read_eof() == b""
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.CLOSED


async def test_counters_can_be_read_while_bytes_move(join) -> None:
    """spec 8.4: what has been passed on is counted at once, not at the end."""
    pair = await join()
    before = pair.session.statistics()
    assert (before.to_listener.payload_bytes, before.to_sender.payload_bytes) == (0, 0)
    for index in range(1, 6):
        await pair.sender.send(frame(2, b"x" * 1000))
        await pair.listener.read_message()
        counts = pair.session.statistics()
        assert counts.to_listener.payload_bytes == 1000 * index
        assert (counts.to_listener.frames_in, counts.to_listener.frames_out) == (index, index)
        assert counts.to_listener.bytes_in == 1008 * index
        assert counts.to_listener.bytes_out == 1004 * index
        assert counts.to_sender.bytes_in == 0
    await say_goodbye(pair)
    assert pair.result.statistics == pair.session.statistics()


# Raw legs -----------------------------------------------------------------------------------------------------------


async def test_a_raw_leg_ends_as_a_close_does_and_the_other_way_goes_on(join) -> None:
    """spec 8.7: half-close between a WebSocket and a byte stream, the byte stream first."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.RAW), early=(frame(2, b"early"), b"raw early "))
    assert await pair.listener.read_exactly(5) == b"early"
    await pair.listener.send(b"bytes")
    await pair.listener.stream.send_eof()
    received = b""
    while (got := await pair.sender.read_frame()).opcode != 8:
        received += got.payload
    assert (received, got.close_code) == (b"raw early bytes", 1000)
    await pair.sender.send(frame(1, b"one ", fin=False) + frame(9, b"ping") + frame(0, b"more") + close_frame())
    assert await pair.listener.read_eof() == b"one more"
    assert await pair.sender.read_eof() == b""
    await pair.sender.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.CLOSED, CloseBy.LISTENER)


async def test_a_close_ends_a_raw_leg_which_may_go_on(join) -> None:
    """spec 8.7: half-close between a WebSocket and a byte stream, the WebSocket first."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.RAW))
    await pair.sender.send(frame(2, b"question") + close_frame())
    assert await pair.listener.read_eof() == b"question"
    await pair.listener.send(b"answer")
    assert await pair.sender.read_message() == (2, b"answer")
    await pair.listener.stream.send_eof()
    assert (await pair.sender.read_frame()).close_code == 1000
    await pair.sender.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.CLOSED, CloseBy.SENDER)


@pytest.mark.parametrize("first", ["sender", "listener"])
async def test_two_raw_legs_are_half_closed_one_by_one(join, first: str) -> None:
    """spec 8.7: a TCP half-close is passed on, and the reply behind it arrives."""
    pair = await join(kinds=(LegKind.RAW, LegKind.RAW))
    asks, answers = by_name(pair, first)
    await asks.send(b"question" * 10_000)
    await asks.stream.send_eof()
    assert await answers.read_eof() == b"question" * 10_000
    await answers.send(b"answer" * 10_000)
    await answers.stream.send_eof()
    assert await asks.read_eof() == b"answer" * 10_000
    result = await pair.ended()
    assert (result.reason, result.by.value) == (EndReason.CLOSED, first)


async def test_a_raw_leg_can_tell_an_abort_from_an_end(join, stage: Stage) -> None:
    """spec 8.8: an abort stays an abort, also where no Close could be missing."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.RAW))
    await pair.sender.send(frame(2, b"half")[:-2])
    assert await pair.listener.read_exactly(2) == b"ha"
    await pair.sender.aclose()
    if stage.has_sockets:
        with pytest.raises(trio.BrokenResourceError):
            await pair.listener.read_eof()
    assert (await pair.ended()).reason is EndReason.ABORTED


async def test_a_raw_leg_is_reset_by_a_close_that_is_no_end(join, stage: Stage) -> None:
    """spec 8.8: bytes have no other word for what was broken off; whoever asks finds the code."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.RAW))
    await pair.sender.send(frame(2, b"half of"))
    assert await pair.listener.read_exactly(7) == b"half of"
    await pair.sender.send(close_frame(1001))
    if stage.has_sockets:
        with pytest.raises(trio.BrokenResourceError):
            await pair.listener.read_eof()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.ABORTED, CloseBy.SENDER)
    assert result.statistics.to_listener.close_code == 1001


async def test_a_client_leg_is_sent_masked_frames(join) -> None:
    """RFC 6455 5.1: where we are the client of a leg, frames leave masked and come unmasked."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.WS_CLIENT))
    await pair.sender.send(frame(1, b"to a server"))
    first, second = await pair.listener.read_exactly(2)
    assert (first, second) == (0x81, 0x80 | 11)
    key = await pair.listener.read_exactly(4)
    payload = await pair.listener.read_exactly(11)
    assert bytes(byte ^ key[index % 4] for index, byte in enumerate(payload)) == b"to a server"
    await pair.listener.send(frame(1, b"to a client", masked=False))
    assert await pair.sender.read_message() == (1, b"to a client")


# Broken rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offender", ["sender", "listener"])
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
async def test_a_broken_rule_closes_its_side_and_cuts_the_other(join, bytes_: bytes, code: int, offender: str) -> None:
    """spec 13: protocol error by a peer: 1002 to it, the other side aborted."""
    pair = await join()
    bad, good = by_name(pair, offender)
    await bad.send(bytes_)
    got = await bad.read_frame()
    assert (got.opcode, got.close_code) == (8, code)
    assert await good.read_eof() == b""
    await bad.aclose()
    result = await pair.ended()
    assert (result.reason, result.by.value) == (EndReason.PROTOCOL_ERROR, offender)


async def test_an_offender_that_does_not_read_is_cut_all_the_same(join, stage: Stage, clock, nursery) -> None:
    """spec 13: protocol error by a peer that takes no Close: it has two seconds for it, twice at the most."""
    pair = await join(small=True)
    nursery.start_soon(flood, pair.listener)
    await pair.stalled(to_sender=True)
    start = trio.current_time()
    await pair.sender.send(frame(3, b"no such opcode"))
    result = await pair.ended()
    assert trio.current_time() - start < 8
    assert (result.reason, result.by) == (EndReason.PROTOCOL_ERROR, CloseBy.SENDER)


async def test_a_broken_rule_behind_a_close_is_not_seen(join) -> None:
    """RFC 6455 5.5.1: behind a Close nothing is a frame any more."""
    pair = await join()
    await pair.sender.send(close_frame() + frame(3, b"no such opcode", rsv=7))
    assert (await pair.listener.read_frame()).opcode == 8
    await pair.listener.send(close_frame())
    assert (await pair.sender.read_frame()).close_code == 1000
    await pair.sender.aclose()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.CLOSED


async def test_a_broken_rule_after_the_other_side_has_closed(join) -> None:
    """spec 13: protocol error by a peer whose other side has taken leave: 1002 to it; who began to leave is named."""
    pair = await join()
    await pair.sender.send(close_frame(1000))
    assert (await pair.listener.read_frame()).close_code == 1000
    await pair.listener.send(frame(2, b"last") + frame(3, b"no such opcode"))
    assert await pair.sender.read_message() == (2, b"last")
    assert await pair.sender.read_eof() == b""
    # It has been sent a Close already, and may not get another one (RFC 6455 5.5.1).
    assert await pair.listener.read_eof() == b""
    await pair.listener.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.PROTOCOL_ERROR, CloseBy.SENDER)


# Closes of our own --------------------------------------------------------------------------------------------------


async def answer_close(pair: Joined) -> None:
    for peer in (pair.sender, pair.listener):
        got = await peer.read_frame()
        assert (got.opcode, got.payload) == RELAY_CLOSE
        await peer.send(frame(2, b"dropped") + close_frame(1001))
    assert await pair.sender.read_eof() == b""
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    await pair.listener.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.RELAY_CLOSED, CloseBy.RELAY)
    assert result.statistics.to_listener.payload_bytes == 0


async def test_relay_made_close_reaches_both_and_waits_for_both(join) -> None:
    """spec 13: 1001 to both sides, then the answers are waited for."""
    pair = await join()
    await wait_all_tasks_blocked()
    pair.session.close_nowait(1001, b"going")
    pair.session.close_nowait(1011, b"only the first one counts")
    await answer_close(pair)
    pair.session.close_nowait(1011, b"it is over")


async def test_relay_made_close_may_come_before_the_start(join) -> None:
    """spec 13: entity deleted between the handshake and the start: 1001 to both sides, and nothing else."""
    await answer_close(
        await join(
            early=(frame(2, b"early"), b""), prepare=lambda pair: pair.session.close_nowait(1001, b"going"), close=10
        )
    )


async def test_relay_made_close_may_come_at_the_start(join) -> None:
    """spec 13: entity deleted at the moment of the start: 1001 to both sides."""
    pair = await join()
    pair.session.close_nowait(1001, b"going")
    await answer_close(pair)


@pytest.mark.parametrize("before", [False, True], ids=["running", "before-the-start"])
async def test_a_close_of_ours_that_no_frame_may_hold_is_an_error_and_nothing_else(join, before: bool) -> None:
    """RFC 6455 7.4.1: codes that may not be sent; the session goes on, and the next Close counts."""

    def misuse(pair: Joined) -> None:
        for code, reason in ((1005, b""), (99, b""), (70_000, b""), (1001, b"x" * 124), (1001, b"\xff")):
            with pytest.raises(LocalProtocolError):
                pair.session.close_nowait(code, reason)

    pair = await join(prepare=misuse if before else lambda _: None)
    if not before:
        await wait_all_tasks_blocked()
        misuse(pair)
    await pair.sender.send(frame(1, b"still"))
    assert await pair.listener.read_message() == (1, b"still")
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE


@pytest.mark.parametrize("before", [False, True], ids=["running", "before-the-start"])
async def test_relay_made_close_is_bounded(join, stage: Stage, clock, before: bool) -> None:
    """spec 13: who does not answer our Close is cut after a grace period."""

    def close(pair: Joined) -> None:
        pair.session.close_nowait(1001, b"going")

    start = trio.current_time()
    pair = await join(close=stage.seconds(200), prepare=close if before else lambda _: None)
    if not before:
        await wait_all_tasks_blocked()
        close(pair)
    result = await pair.ended()
    assert stage.seconds(195) <= trio.current_time() - start < 203
    assert result.reason is EndReason.RELAY_CLOSED
    for peer in (pair.sender, pair.listener):
        got = await peer.read_frame()
        assert (got.opcode, got.payload) == RELAY_CLOSE
        assert await peer.is_cut()


async def test_relay_made_close_of_a_half_closed_session(join) -> None:
    """spec 13: 1001 goes to the side that was told of no Close yet, and the other one hears of none twice."""
    pair = await join()
    await pair.sender.send(close_frame(3000, "mine"))
    assert (await pair.listener.read_frame()).close_code == 3000
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    await pair.listener.send(frame(2, b"dropped") + close_frame())
    assert await pair.sender.read_eof() == b""
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    await pair.listener.aclose()
    result = await pair.ended()
    assert (result.reason, result.by) == (EndReason.RELAY_CLOSED, CloseBy.SENDER)


async def test_relay_made_close_waits_for_the_frame_that_is_open(join) -> None:
    """spec 8.4: a Close of ours stands between two frames, however long the open one takes."""
    pair = await join()
    data = frame(2, b"x" * 1000)
    await pair.sender.send(data[:508])
    assert len(await pair.listener.read_exactly(504)) == 504
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    await pair.sender.send(data[508:] + frame(2, b"dropped") + close_frame(1001))
    assert await pair.listener.read_exactly(500) == b"x" * 500
    got = await pair.listener.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    await pair.listener.send(close_frame(1001))
    assert await pair.listener.read_eof() == b""
    await pair.sender.aclose()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.RELAY_CLOSED


async def test_relay_made_close_reaches_a_blocked_leg_behind_what_it_was_sent(join, nursery) -> None:
    """spec 13: 1001 to both sides: at once to the one that reads, to the other when it has read what came before."""
    pair = await join(small=True)
    nursery.start_soon(flood, pair.sender)
    await pair.stalled()
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    while (got := await pair.listener.read_frame()).opcode != 8:
        assert got.payload.strip(b"f") == b""
    assert got.payload == RELAY_CLOSE[1]
    # The flood is dropped now; its sender goes without an answer, which is as good as one.
    await trio.aclose_forcefully(pair.sender.stream)
    await pair.listener.send(close_frame(1001))
    assert await pair.listener.is_cut()
    await pair.listener.aclose()
    assert (await pair.ended()).reason is EndReason.RELAY_CLOSED


async def test_relay_made_close_of_a_blocked_leg_is_bounded(join, stage: Stage, clock, nursery) -> None:
    """spec 13: a side that takes nothing more cannot hold the session beyond the grace period."""
    pair = await join(small=True, close=stage.seconds(200))
    nursery.start_soon(flood, pair.sender)
    await pair.stalled()
    start = trio.current_time()
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    assert (await pair.ended()).reason is EndReason.RELAY_CLOSED
    assert stage.seconds(195) <= trio.current_time() - start < 203


async def test_relay_made_close_ends_raw_legs(join) -> None:
    """spec 13: a raw leg is told by the end of its stream."""
    pair = await join(kinds=(LegKind.WS_SERVER, LegKind.RAW))
    await wait_all_tasks_blocked()
    pair.session.close_nowait(1001, b"going")
    got = await pair.sender.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE
    assert await pair.listener.stream.receive_some(1) == b""
    await pair.listener.aclose()
    await pair.sender.send(close_frame(1001))
    await pair.sender.aclose()
    assert (await pair.ended()).reason is EndReason.RELAY_CLOSED


# Cancellation -------------------------------------------------------------------------------------------------------


async def _get_to(moment: str, pair: Joined, nursery: trio.Nursery) -> None:
    """Bring a session to a moment of its life."""
    match moment:
        case "idle":
            await wait_all_tasks_blocked()
        case "moving":
            nursery.start_soon(flood, pair.sender)
            for _ in range(3):
                await pair.listener.read_frame()
        case "blocked":
            nursery.start_soon(flood, pair.sender)
            nursery.start_soon(flood, pair.listener)
            await pair.stalled()
            await pair.stalled(to_sender=True)
        case "half-closed":
            await pair.sender.send(close_frame())
            await pair.listener.read_frame()
        case "lingering":
            await pair.sender.send(close_frame())
            await pair.listener.read_frame()
            await pair.listener.send(close_frame())
            await pair.sender.read_frame()
        case "closing":
            await wait_all_tasks_blocked()
            pair.session.close_nowait(1001, b"going")
            await pair.sender.read_frame()
        case "failing":
            nursery.start_soon(flood, pair.listener)
            await pair.stalled(to_sender=True)
            await pair.sender.send(frame(3, b"no such opcode"))


@pytest.mark.parametrize(
    "moment", ["submitted", "idle", "moving", "blocked", "half-closed", "lingering", "closing", "failing"]
)
async def test_cancellation_cuts_both_and_returns_every_buffer(join, stage: Stage, nursery, moment: str) -> None:
    """spec 8.8: a session that is cancelled leaves nothing behind, whatever it is doing."""
    pair = await join(small=True)
    if moment != "submitted":
        await _get_to(moment, pair, nursery)
    pair.scope.cancel()
    with trio.fail_after(1):
        await pair.wait()
    assert pair.result is None
    pair.check_closed()
    stage.check()
    for peer in (pair.sender, pair.listener):
        with suppress(trio.BrokenResourceError):
            await peer.read_eof()


async def test_a_session_whose_task_is_cancelled_already_never_begins(join, stage: Stage) -> None:
    """spec 8.8: cancelled before the start: both sides are cut, and nothing of the early bytes was passed on."""
    pair = await join(early=(frame(1, b"early"), b""), prepare=lambda pair: pair.scope.cancel())
    await pair.wait()
    assert pair.result is None
    assert await pair.sender.is_cut()
    with suppress(trio.BrokenResourceError):
        await pair.listener.read_eof()
    stage.check()


# Buffers ------------------------------------------------------------------------------------------------------------


async def _expect(listener: WirePeer, index: int) -> None:
    for _ in range(50):
        assert await listener.read_message() == (2, bytes([index]) * 5000)


async def test_an_empty_pool_stops_reading_and_loses_nothing(join, stage: Stage) -> None:
    """spec 8.9: sessions that share one buffer take turns."""
    pairs = [await join(buffers=1) for _ in range(5)]
    with trio.fail_after(20):
        async with trio.open_nursery() as inner:
            for index, pair in enumerate(pairs):
                inner.start_soon(pair.sender.send, b"".join(frame(2, bytes([index]) * 5000) for _ in range(50)))
                inner.start_soon(_expect, pair.listener, index)
    if stage.has_sockets:
        await until(lambda: stage.buffers_in_use == 0)
    assert stage.buffers_peak <= 5  # those of the reserve too


async def test_sessions_whose_readers_have_stopped_leave_the_others_what_they_need(join, stage: Stage, nursery) -> None:
    """failures: one slow client stalls all others; ten that flood towards deaf readers, and one that is well."""
    stalled = [await join(buffers=2, small=True) for _ in range(9)]
    for pair in stalled:
        nursery.start_soon(flood, pair.sender)
        await pair.stalled()
    assert stage.buffers_in_use == 9
    well = await join()
    for size in (1, 5_000, 200_000):
        async with trio.open_nursery() as sending:
            sending.start_soon(well.sender.send, frame(2, b"x" * size) + frame(9, b"ping"))
            assert await well.listener.read_message() == (2, b"x" * size)
        assert await well.sender.read_frame() == Frame(True, 10, b"ping")
    await say_goodbye(well)


@on_sockets
async def test_more_stalled_sessions_than_buffers_lose_nothing(join, stage: Stage) -> None:
    """spec 8.9: those that find no buffer go on when the others have read what they were sent."""
    pairs = [await join(buffers=1, small=True) for _ in range(8)]
    received = [0] * 8

    async def read(index: int, pair: Joined) -> None:
        while received[index] < 30:
            assert await pair.listener.read_message() == (2, b"f" * 20_000)
            received[index] += 1

    async with trio.open_nursery() as flows:
        for pair in pairs:
            flows.start_soon(flood, pair.sender, 30)
        await until(lambda: stage.buffers_in_use == 5)
        for index, pair in enumerate(pairs):
            flows.start_soon(read, index, pair)
    assert received == [30] * 8
    for pair in pairs:
        await say_goodbye(pair)


@on_sockets
async def test_relay_made_close_leaves_although_slow_readers_hold_the_pool(join, stage: Stage, nursery) -> None:
    """spec 13: entity deleted: 1001 both sides, also while slow readers hold the whole pool; so do Pongs."""
    # Their answers wait for a buffer, and are not waited for beyond the grace period.
    fresh = await join(buffers=2, close=1)
    open_ = await join(close=1)
    await open_.sender.send(frame(2, b"half")[:8])
    await open_.listener.read_exactly(4)
    for pair in [await join(small=True) for _ in range(8)]:
        nursery.start_soon(flood, pair.sender)
        nursery.start_soon(flood, pair.listener)
    await until(lambda: stage.buffers_in_use == 10)
    for pair in (fresh, open_):
        pair.session.close_nowait(1001, b"going")
        got = await pair.sender.read_frame()
        assert (got.opcode, got.payload) == RELAY_CLOSE
    got = await fresh.listener.read_frame()
    assert (got.opcode, got.payload) == RELAY_CLOSE


# What only Trio has -------------------------------------------------------------------------------------------------


async def _empty(pool: BufferPool) -> list[Buffer]:
    """Take everything there is, as readers do that have stopped."""
    held: list[Buffer] = []
    with trio.move_on_after(0.05):
        while True:
            held.append(await pool.borrow())
    return held


@pytest.mark.parametrize("stage_name", ["trio-memory", "trio-tcp"])
async def test_relay_made_close_leaves_although_no_buffer_is_free(join, stage: Stage) -> None:
    """spec 13: entity deleted: 1001 both sides, also while slow readers hold the whole pool."""
    pair = await join(buffers=1)
    assert stage.pool is not None
    held = await _empty(stage.pool)
    pair.session.close_nowait(1001, b"gone")
    assert (await pair.sender.read_frame()).close_code == 1001
    assert (await pair.listener.read_frame()).close_code == 1001
    for buffer in held:
        stage.pool.give_back(buffer)


@pytest.mark.parametrize("stage_name", ["trio-tcp"])
async def test_a_pong_that_waits_for_a_frame_needs_no_second_buffer(join, stage: Stage) -> None:
    """failures: pong waits behind data; with one buffer for all, the frame and then the Pong arrive."""
    pair = await join(buffers=1)
    assert stage.pool is not None
    held = await _empty(stage.pool)
    stage.pool.give_back(held.pop())
    data = frame(2, b"x" * 3000)
    with trio.fail_after(5):
        await pair.sender.send(data[:1000])
        await pair.listener.read_exactly(500)
        await pair.listener.send(frame(9, b"ping"))
        while not pair.session.statistics().to_sender.frames_in:
            await trio.sleep(0.01)
        await pair.sender.send(data[1000:2000])
        await pair.listener.read_exactly(1000)
        await pair.sender.send(data[2000:])
        await pair.listener.read_exactly(len(data) - 4 - 1500)
        assert await pair.listener.read_frame() == Frame(True, 10, b"ping")
    for buffer in held:
        stage.pool.give_back(buffer)


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
        half_closed_timeout=600,
        close_timeout=10,
    )
    nursery.start_soon(TrioMover(BufferPool(buffers=8)).run, session)
    with trio.fail_after(10):
        await WirePeer(sender).send(close_frame(3001, "x"))
        assert (await WirePeer(listener).read_frame()).opcode == 8
        await WirePeer(listener).send(close_frame(3001, "x"))
        assert (await WirePeer(sender).read_frame()).opcode == 8


async def test_an_offender_that_is_being_sent_to_hears_why_it_is_closed(nursery: trio.Nursery) -> None:
    """spec 13: protocol error by a peer: 1002 to it, also when a frame towards it was still on its way."""
    near_sender, sender = lockstep_stream_pair()
    near_listener, listener = memory_stream_pair()
    session = legs((near_sender, near_listener))
    nursery.start_soon(TrioMover(BufferPool(buffers=4)).run, session)
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
