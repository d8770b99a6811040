"""One WebSocket leg over memory streams: messages, control frames in between, cancellation, the end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from relaycore._native import encode_frame
from relaycore.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from relaycore.net.errors import StreamLost
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Binary, Close, Piece, Ping, Pong, Text


def legs(pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair, **options):
    near, far = pair()
    return WebSocketLeg(near, role="client", **options), WebSocketLeg(far, role="server", **options)


class SlowStream(trio.abc.Stream):
    """A stream whose sending side can be shut as a full socket buffer shuts it."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.room = trio.Event()
        self.room.set()
        self.sent: list[bytes] = []

    async def send_all(self, data: bytes) -> None:
        await self.room.wait()
        self.sent.append(bytes(data))
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.room.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_messages_go_both_ways():
    """spec 8.1: type, boundaries and empty messages survive, masked one way and unmasked the other."""
    client, server = legs()
    for sender, receiver in ((client, server), (server, client)):
        await sender.send_text("grüß")
        await sender.send_binary(b"")
        await sender.send_binary(bytearray(b"bytes"))
        assert await receiver.receive() == Text("grüß")
        assert await receiver.receive() == Binary(b"")
        assert await receiver.receive() == Binary(b"bytes")


async def test_what_a_client_sends_is_masked_with_fresh_keys():
    """RFC 6455 5.3: every frame of a client has a new key; a server's frames have none."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    keys = set()
    for _ in range(600):
        await client.send_binary(b"same")
        frame = bytes(await far.receive_some(10))
        assert frame[:2] == b"\x82\x84"
        keys.add(frame[2:6])
    assert len(keys) > 590


async def test_large_messages_leave_in_frames_of_64_kib():
    """spec 8.2: no frame over 65 536 bytes; spec 8.3: no empty frame at the end."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    server = WebSocketLeg(slow, role="server")
    client = WebSocketLeg(far, role="client")
    payload = bytes(range(256)) * 512
    await server.send_binary(payload)
    assert [frame[0] for frame in slow.sent] == [0x02, 0x80]
    assert await client.receive() == Binary(payload)
    await server.send_binary(payload[:65_536])
    assert slow.sent[2][0] == 0x82
    await server.send_binary(payload + b"x")
    assert [(frame[0], len(frame)) for frame in slow.sent[3:]] == [
        (0x02, 65_546),
        (0x00, 65_546 + 3),  # the rest is short and leaves with it
    ]
    assert slow.sent[4][65_546:] == b"\x80\x01x"
    assert await client.receive() == Binary(payload[:65_536])
    assert await client.receive() == Binary(payload + b"x")


async def test_messages_leave_together():
    """spec 9.2: a request and its body are one send; nothing comes between."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    server = WebSocketLeg(slow, role="server")
    client = WebSocketLeg(far, role="client")
    body = bytes(1024)
    await server.send_messages(['{"request":{}}', body])
    assert len(slow.sent) == 1
    assert await client.receive() == Text('{"request":{}}')
    assert await client.receive() == Binary(body)
    # The largest that goes over a control channel: JSON and body of 64 KiB in all.
    await server.send_messages(["j" * 500, bytes(65_536 - 500)])
    assert len(slow.sent) == 2
    await server.send_messages([])
    await server.send_messages(["", b""])
    assert slow.sent[2:] == [b"\x81\x00\x82\x00"]
    assert server.statistics().frames_sent == 6


async def test_many_messages_leave_by_64_kib(autojump_clock: MockClock):
    """spec 8.2: a long batch is several sends, none much above 64 KiB, and every frame within it."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    messages = ["grüß", bytes(200_000), "", *[bytes(1000)] * 200, memoryview(b"end")]
    await client.send_messages(messages)
    assert len(slow.sent) < 10
    assert max(map(len, slow.sent)) <= 65_536 + 256
    for message in messages:
        expected = Text(message) if isinstance(message, str) else Binary(bytes(message))
        assert await server.receive() == expected


async def test_control_frames_go_between_the_sends_of_a_batch(autojump_clock: MockClock):
    """failures: pong waits behind data, live peer declared dead."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    server = WebSocketLeg(slow, role="server")
    client = WebSocketLeg(far, role="client")
    slow.room = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_messages, [bytes(60_000)] * 3)
        await wait_all_tasks_blocked()
        await client.send_ping(b"alive?")
        assert await server.receive() == Ping(b"alive?")
        slow.room.set()
    assert [(frames[0] & 15, len(frames)) for frames in slow.sent] == [(2, 60_004), (10, 8), (2, 60_004), (2, 60_004)]


async def test_a_batch_that_cannot_be_sent_sends_nothing():
    client, server = legs()
    with pytest.raises(UnicodeEncodeError):
        await client.send_messages(["good", "\ud800"])
    await client.send_messages(["next"])
    assert await server.receive() == Text("next")


async def test_a_batch_cut_between_two_sends_ends_sending(autojump_clock: MockClock):
    """failures: after a cancelled send the leg is closed, never reused; half a batch is half a request."""

    class CancellingStream(SlowStream):
        async def send_all(self, data: bytes) -> None:
            await super().send_all(data)
            scope.cancel()

    for send in ("send_messages", "send_binary", "send_fragment"):
        near, _ = memory_stream_pair()
        client = WebSocketLeg(CancellingStream(near), role="client")
        with trio.CancelScope() as scope:
            match send:
                case "send_messages":
                    await client.send_messages([bytes(60_000)] * 2)
                case "send_binary":
                    await client.send_binary(bytes(100_000))
                case _:
                    await client.send_fragment(bytes(100_000), fin=False)
        assert scope.cancelled_caught
        for again in (client.send_binary(b"x"), client.send_messages(["x"]), client.send_fragment(b"x", fin=True)):
            with pytest.raises(StreamLost):
                await again


async def test_fragments_make_one_message():
    """spec 9.5: one binary message for each body, first frame opcode 2, further frames opcode 0, the last one FIN."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    server = WebSocketLeg(slow, role="server")
    client = WebSocketLeg(far, role="client")
    await server.send_fragment(b"ab", fin=False)
    await server.send_fragment(b"", fin=False)
    await server.send_fragment(b"cd", fin=False)
    await server.send_fragment(b"", fin=True)
    assert slow.sent == [b"\x02\x02ab", b"\x00\x02cd", b"\x80\x00"]
    assert await client.receive_piece() == Piece(False, b"abcd", True)
    await server.send_fragment(b"", fin=True)
    assert slow.sent[3:] == [b"\x82\x00"]
    assert await client.receive() == Binary(b"")
    await server.send_close()
    assert await client.receive_piece() == Close(1000)


async def test_a_long_fragment_leaves_in_frames_of_64_kib():
    """spec 9.5: relay to listener, frames of at most 65 536 bytes."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    server = WebSocketLeg(slow, role="server")
    client = WebSocketLeg(far, role="client")
    payload = bytes(range(256)) * 1024
    await server.send_fragment(payload, fin=False)
    await server.send_fragment(memoryview(payload), fin=True)
    assert [(frame[0], len(frame)) for frame in slow.sent] == [
        (first, 65_546) for first in (0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80)
    ]
    assert await client.receive() == Binary(payload * 2)


async def test_control_frames_go_between_fragments_and_messages_do_not():
    """RFC 6455 5.4: control frames may be injected in a fragmented message, other messages may not."""
    client, server = legs()
    await client.send_fragment(b"ab", fin=False)
    for send in (client.send_text("x"), client.send_binary(b"x"), client.send_messages(["x"])):
        with pytest.raises(LocalProtocolError):
            await send
    await client.send_ping(b"p")
    await server.send_ping(b"q")
    assert await client.receive() == Ping(b"q")
    await client.send_fragment(b"cd", fin=True)
    await client.send_text("next")
    assert [await server.receive() for _ in range(4)] == [Ping(b"p"), Pong(b"q"), Binary(b"abcd"), Text("next")]


async def test_a_close_may_cut_a_fragmented_message_short():
    """spec 9.5: Java never ends its body and just closes; ours may have to."""
    client, server = legs()
    await client.send_fragment(b"ab", fin=False)
    await client.send_close(1001)
    with pytest.raises(LocalProtocolError):
        await client.send_fragment(b"cd", fin=True)
    assert await server.receive_piece() == Piece(False, b"ab", False)
    assert await server.receive_piece() == Close(1001)
    with pytest.raises(trio.EndOfChannel):
        await server.receive_piece()


async def test_a_fragment_cancelled_before_it_left_may_be_repeated():
    client, server = legs()
    await client.send_fragment(b"ab", fin=False)
    for data in (b"cd", b""):
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_fragment(data, fin=False)
        assert scope.cancelled_caught
    await client.send_fragment(b"cd", fin=True)
    await client.send_binary(b"next")
    assert await server.receive() == Binary(b"abcd")
    assert await server.receive() == Binary(b"next")


async def test_a_fragment_cancelled_behind_its_last_byte_is_sent(autojump_clock: MockClock):
    """failures: a fragment that is out must not be opened a second time, whatever its pong ran into."""
    near, far = memory_stream_pair()

    class CancellingStream(SlowStream):
        async def send_all(self, data: bytes) -> None:
            await super().send_all(data)
            if not scope.cancel_called:
                client._owed_pong = b"owed"
                scope.cancel()

    client = WebSocketLeg(CancellingStream(near), role="client")
    server = WebSocketLeg(far, role="server")
    with trio.CancelScope() as scope:
        await client.send_fragment(b"ab", fin=False)
    assert scope.cancelled_caught
    await client.send_fragment(b"cd", fin=True)
    assert await server.receive() == Binary(b"abcd")


async def test_bodies_of_single_bytes_come_in_few_pieces():
    """spec 20.1: 66 000 single-byte writes cost a piece for each read, not for each frame."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client", max_message_bytes=1)
    await far.send_all(encode_frame(2, b"x", fin=False) + encode_frame(0, b"x", fin=False) * 65_999 + b"\x80\x00")
    found = []
    while not found or not found[-1].fin:
        found.append(await client.receive_piece())
    assert b"".join(piece.data for piece in found) == b"x" * 66_000
    assert len(found) <= 66_001 * 3 // 65_536 + 1


async def test_pieces_come_while_pings_are_answered():
    """spec 6.3: pings inside a body are answered, pongs are swallowed."""
    client, server = legs()
    await client.send_text("head")
    await client.send_fragment(b"ab", fin=False)
    await client.send_ping(b"p")
    await client.send_pong(b"sign of life")
    assert await server.receive() == Text("head")
    assert await server.receive_piece() == Piece(False, b"ab", False)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read_the_rest() -> None:
            assert await server.receive_piece() == Piece(False, b"cd", True)

        assert await client.receive() == Pong(b"p")
        await client.send_fragment(b"cd", fin=True)


async def test_a_body_cut_off_is_a_loss():
    """spec 9.5: TCP loss is a truncated body, never its end; what had come is handed over first."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    await far.send_all(encode_frame(2, b"half", fin=False))
    await far.aclose()
    assert await client.receive_piece() == Piece(False, b"half", False)
    for _ in range(2):
        with pytest.raises(StreamLost):
            await client.receive_piece()


async def test_bytes_lose_boundaries():
    client, server = legs()
    await client.send_text("ab")
    await client.send_binary(b"")
    await client.send_pong(b"sign of life")
    await client.send_binary(b"cd")
    assert await server.receive_bytes() == b"ab"
    assert await server.receive_bytes() == b"cd"
    await client.send_close(1000, "Shutdown")
    assert await server.receive_bytes() == b""
    assert server.close_received == Close(1000, "Shutdown")
    assert await server.receive_bytes() == b""


async def test_one_read_is_one_crossing(monkeypatch: pytest.MonkeyPatch):
    """spec 8.10: a thousand small frames that came in one read cross into the codec once."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    crossings = []
    receive = client._reader._decoder.receive
    monkeypatch.setattr(
        client._reader,
        "_decoder",
        SimpleNamespace(receive=lambda data: (crossings.append(len(data)), receive(data))[1]),
    )
    await far.send_all(encode_frame(2, b"x") * 1000)
    assert await client.receive_bytes() == b"x" * 1000
    await far.send_all(encode_frame(2, b"y") * 1000)
    for _ in range(1000):
        assert await client.receive() == Binary(b"y")
    assert crossings == [3000, 3000]


async def test_early_bytes_come_first():
    """failures: data right behind the 101 is not lost."""
    near, far = memory_stream_pair()
    early = encode_frame(2, b"first") + encode_frame(2, b"second")[:3]
    client = WebSocketLeg(near, role="client", early=early)
    assert client.bytes_received == len(early)
    await far.send_all(encode_frame(2, b"second")[3:])
    assert await client.receive() == Binary(b"first")
    assert await client.receive() == Binary(b"second")


async def test_a_ping_is_answered_before_it_is_returned():
    """spec 6.3: every ping is answered with the same payload."""
    client, server = legs()
    await server.send_ping(b"are you there")
    assert await client.receive() == Ping(b"are you there")
    assert await server.receive() == Pong(b"are you there")
    assert client.statistics().pings_answered == 1


async def test_a_ping_is_answered_while_only_bytes_are_wanted():
    """spec 8.6: a ping inside a message is answered, the message goes on."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    server = WebSocketLeg(far, role="server")
    await far.send_all(encode_frame(2, b"ab", fin=False) + encode_frame(9, b"?") + encode_frame(0, b"cd"))
    assert await client.receive_bytes() == b"ab"
    assert await client.receive_bytes() == b"cd"
    await client.send_binary(b"done")
    assert await server.receive() == Pong(b"?")
    assert await server.receive() == Binary(b"done")


async def test_a_pong_leaves_while_the_reader_waits(autojump_clock: MockClock):
    """failures: a pong does not wait for data to come."""
    client, server = legs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_bytes)
        await server.send_ping(b"1")
        with trio.fail_after(1):
            assert await server.receive() == Pong(b"1")
        nursery.cancel_scope.cancel()


async def test_a_clogged_peer_does_not_stop_the_reader(autojump_clock: MockClock):
    """failures: pong waits behind data. A pong that cannot leave must not keep us from reading."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    slow.room = trio.Event()
    for number in range(3):
        await server.send_ping(b"%d" % number)
        await server.send_binary(b"data %d" % number)
        with trio.fail_after(1):
            assert await client.receive_bytes() == b"data %d" % number
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_bytes)
        await wait_all_tasks_blocked()
        assert slow.sent == []
        slow.room.set()
        assert await server.receive() == Pong(b"2")
        nursery.cancel_scope.cancel()


async def test_returning_a_ping_does_not_wait_for_a_clogged_peer(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    slow.room = trio.Event()
    await server.send_ping(b"x")
    await server.send_binary(b"data")
    with trio.fail_after(1):
        assert await client.receive() == Ping(b"x")
        assert await client.receive() == Binary(b"data")
    slow.room.set()
    await client.send_binary(b"answer")
    assert {type(await server.receive()), type(await server.receive())} == {Pong, Binary}


async def test_control_frames_overtake_a_message_that_is_being_sent(autojump_clock: MockClock):
    """failures: pong waits behind data, live peer declared dead."""
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server", max_message_bytes=1 << 20)
    slow.room = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_binary, b"x" * 200_000)
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await client.send_ping(b"replaced")
            await client.send_ping(b"latest")
            await server.send_ping(b"yours")
            assert await client.receive() == Ping(b"yours")
        slow.room.set()
    assert [frame[0] & 15 for frame in slow.sent] == [2, 10, 9, 0, 0, 0]
    assert await server.receive() == Pong(b"yours")
    assert await server.receive() == Ping(b"latest")
    assert await server.receive() == Binary(b"x" * 200_000)


async def test_messages_of_many_tasks_do_not_mix():
    """RFC 6455 5.4: frames of different messages are not interleaved."""
    client, server = legs(max_message_bytes=1 << 20)
    async with trio.open_nursery() as nursery:
        for letter in b"abcd":
            nursery.start_soon(client.send_binary, bytes([letter]) * 150_000)
    seen = set()
    for _ in range(4):
        message = await server.receive()
        assert isinstance(message, Binary)
        assert message.data == message.data[:1] * 150_000
        seen.add(message.data[:1])
    assert len(seen) == 4


async def test_a_close_is_handed_over_and_not_answered():
    """spec 8.7: a Close is not answered by itself; the other direction goes on."""
    client, server = legs()
    await client.send_close(1000, "Shutdown")
    assert await server.receive() == Close(1000, "Shutdown")
    await server.send_binary(b"the reply")
    assert await client.receive() == Binary(b"the reply")
    await server.send_close(1000)
    assert await client.receive() == Close(1000, "")
    with pytest.raises(trio.EndOfChannel):
        await client.receive()
    await client.send_close(1001)
    assert client.close_sent == Close(1000, "Shutdown")


async def test_an_empty_close_stays_empty():
    """spec 8.7: an empty close payload travels as one."""
    client, server = legs()
    await client.send_close(None)
    assert await server.receive() == Close(None)


async def test_nothing_is_sent_behind_our_close():
    """RFC 6455 5.5.1: after a Close no more data; an owed pong is dropped."""
    client, server = legs()
    await client.send_close()
    with pytest.raises(LocalProtocolError):
        await client.send_binary(b"x")
    with pytest.raises(LocalProtocolError):
        await client.send_ping()
    await server.send_ping(b"?")
    assert await client.receive() == Ping(b"?")
    assert await server.receive() == Close(1000)


@pytest.mark.parametrize("behind", [b"", encode_frame(2, b"half of it")[:6], encode_frame(2, b"part", fin=False)])
async def test_an_end_without_a_close_is_a_loss(behind: bytes):
    """spec 8.8: an end without Close is an abort, never an end of data."""
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    await far.send_all(behind or encode_frame(9, b""))
    await far.aclose()
    if not behind:
        assert await client.receive() == Ping(b"")
    with pytest.raises(StreamLost) as caught:
        await client.receive()
    assert isinstance(caught.value, ConnectionLost)
    assert isinstance(caught.value, trio.BrokenResourceError)


async def test_a_broken_stream_is_a_loss_both_ways():
    class Broken(SlowStream):
        async def send_all(self, data: bytes) -> None:
            raise trio.BrokenResourceError("reset by peer")

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError("reset by peer")

    client = WebSocketLeg(Broken(memory_stream_pair()[0]), role="client")
    with pytest.raises(StreamLost) as caught:
        await client.send_binary(b"x")
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    with pytest.raises(StreamLost) as caught:
        await client.receive()
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    with pytest.raises(StreamLost):
        await client.send_text("again")


async def test_a_peer_that_breaks_a_rule():
    """RFC 6455 5.1: an unmasked frame from a client; the error says what to close with."""
    near, far = memory_stream_pair()
    server = WebSocketLeg(near, role="server")
    await far.send_all(encode_frame(2, b"unmasked"))
    with pytest.raises(RemoteProtocolError) as caught:
        await server.receive()
    assert caught.value.close_code == 1002
    await server.send_close(caught.value.close_code)
    assert await WebSocketLeg(far, role="client").receive() == Close(1002)


async def test_reading_may_be_cancelled_at_any_time(autojump_clock: MockClock):
    client, server = legs()
    await client.send_binary(b"x" * 1000)
    raw = bytes(await server.stream.receive_some(10_000))
    near, far = memory_stream_pair()
    server = WebSocketLeg(near, role="server")
    for value in raw:
        with trio.move_on_after(1) as scope:
            await server.receive()
        assert scope.cancelled_caught
        await far.send_all(bytes([value]))
    assert await server.receive() == Binary(b"x" * 1000)


@pytest.mark.parametrize("read", ["messages", "pieces", "bytes"])
async def test_a_cancelled_read_leaves_what_has_come(read: str):
    receive = {
        "messages": WebSocketLeg.receive,
        "pieces": WebSocketLeg.receive_piece,
        "bytes": WebSocketLeg.receive_bytes,
    }[read]
    client, server = legs()
    for text in (b"1", b"2", b"3"):
        await client.send_binary(text)
    assert await server.receive() == Binary(b"1")  # the others came in the same read
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive(server)
    assert scope.cancelled_caught
    with trio.fail_after(1), trio.CancelScope() as scope:
        trio.lowlevel.spawn_system_task(_cancel, scope)  # strikes while others run, once the bytes are in hand
        assert await receive(server) in (Binary(b"2"), Piece(False, b"2", True), b"23")
    assert not scope.cancelled_caught
    assert read == "bytes" or await server.receive() == Binary(b"3")


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_cancellation_behind_a_read_with_a_pong_owed_loses_nothing():
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    slow.room = trio.Event()
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    await server.send_ping(b"x")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.receive_bytes)
            await wait_all_tasks_blocked()
            # It wakes with the data and with the cancellation in the same turn.
            await server.send_binary(b"data")
            scope.cancel()
    slow.room.set()
    with trio.fail_after(1):
        assert await client.receive() == Binary(b"data")


async def test_a_cancellation_while_a_pong_waits_loses_nothing(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    await server.send_ping(b"x")
    slow.room = trio.Event()
    with trio.move_on_after(1) as scope:
        await client.receive_bytes()
    assert scope.cancelled_caught
    slow.room.set()
    await client.send_binary(b"still able to send")
    assert await server.receive() == Pong(b"x")
    assert await server.receive() == Binary(b"still able to send")


async def test_a_send_cut_half_way_ends_sending_and_not_reading(autojump_clock: MockClock):
    """failures: after a cancelled send the leg is closed, never reused."""
    client, server = legs(lockstep_stream_pair)
    with trio.move_on_after(1) as scope:
        await client.send_binary(b"nobody reads")
    assert scope.cancelled_caught
    for send in (client.send_binary(b"x"), client.send_text("x"), client.send_ping(), client.send_close()):
        with pytest.raises(StreamLost):
            await send
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_binary, b"for you")
        assert await client.receive() == Binary(b"for you")


async def test_a_cancellation_before_anything_left_tears_nothing(autojump_clock: MockClock):
    client, server = legs()
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_binary(b"never")
    assert scope.cancelled_caught
    await client.send_binary(b"good")
    assert await server.receive() == Binary(b"good")


async def test_a_cancellation_while_waiting_for_the_turn_tears_nothing(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    slow = SlowStream(near)
    client = WebSocketLeg(slow, role="client")
    server = WebSocketLeg(far, role="server")
    slow.room = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_binary, b"first")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await client.send_binary(b"gave up")
        slow.room.set()
    await client.send_binary(b"third")
    assert [await server.receive(), await server.receive()] == [Binary(b"first"), Binary(b"third")]


async def test_one_reader_at_a_time():
    client, _ = legs()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_bytes)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.receive()
        nursery.cancel_scope.cancel()


async def test_close_waits_for_the_peers_close_and_throws_data_away():
    """spec 8.7: CloseAsync waits for the peer's Close while throwing away data."""
    client, server = legs()

    async def peer() -> None:
        assert await server.receive() == Close(1000, "CloseAsync")
        await server.send_binary(b"too late")
        await server.send_close(1000)
        await server.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        await client.close(1000, "CloseAsync")
    with pytest.raises(trio.ClosedResourceError):
        await client.receive()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_binary(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await client.send_ping()


async def test_a_client_lets_the_server_hang_up_first(autojump_clock: MockClock):
    """RFC 6455 7.1.1; spec 8.7: both Closes are there, the relay hangs up first, or is given a second for it."""
    client, server = legs()
    await server.send_close()
    started = trio.current_time()
    await client.close()
    assert trio.current_time() == started + 1
    client, server = legs()
    await client.send_close()
    await server.close()
    assert trio.current_time() == started + 1


async def test_close_gives_up_on_a_silent_peer(autojump_clock: MockClock):
    client, server = legs()
    started = trio.current_time()
    await client.close(1000, close_timeout=3)
    assert trio.current_time() == started + 3
    assert await server.receive() == Close(1000)


async def test_close_gives_up_on_a_peer_that_goes_on_sending(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    client = WebSocketLeg(near, role="client")
    server = WebSocketLeg(far, role="server")
    for _ in range(20):
        await server.send_binary(b"x" * 65_536)
    started = trio.current_time()
    await client.close(1000)
    assert trio.current_time() == started


async def test_close_of_a_dead_or_mad_peer():
    client, server = legs()
    await server.stream.aclose()
    await client.close()
    near, far = memory_stream_pair()
    await far.send_all(b"\xff" * 100)
    await WebSocketLeg(near, role="client").close()


async def test_a_cancelled_close_still_closes():
    client, server = legs()
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.close()
    with pytest.raises(StreamLost):
        await server.receive()


async def test_control_payloads_are_bounded():
    """RFC 6455 5.5: 125 bytes at most."""
    client, server = legs()
    with pytest.raises(LocalProtocolError):
        await client.send_ping(b"x" * 126)
    with pytest.raises(LocalProtocolError):
        await client.send_close(1000, "x" * 124)
    await client.send_ping(b"x" * 125)
    assert await server.receive() == Ping(b"x" * 125)


async def test_counters():
    client, server = legs()
    await client.send_binary(b"12345")
    await client.send_ping()
    await server.receive()
    await server.receive()
    assert await client.receive() == Pong(b"")
    sent, received = client.statistics(), server.statistics()
    assert (sent.frames_sent, sent.bytes_sent) == (2, 11 + 6)
    assert (received.frames_received, received.bytes_received) == (2, 17)
    assert (received.pings_answered, sent.frames_received) == (1, 1)
