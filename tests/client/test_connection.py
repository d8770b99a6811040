"""One connection: the contract of a Trio stream, the two ends of a stream over the relay, messages, cancellation."""

from __future__ import annotations

import pytest
import trio
from trio.testing import (
    MockClock,
    check_half_closeable_stream,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from relaycore._native import encode_frame
from relaycore.client.connection import Connection, ConnectionInfo
from relaycore.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from relaycore.net.errors import StreamClosed, StreamGarbled, StreamLost
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Binary, Close, Pong, Text
from relaycore.wire.http1 import Headers

INFO = ConnectionInfo(
    path="orders", suffix="", query="", headers=Headers(), remote_endpoint=None, subprotocol=None, tracking_id="t"
)


def connection_over(stream: trio.abc.Stream, *, max_message_bytes: int = 1 << 20) -> Connection:
    return Connection(WebSocketLeg(stream, role="client", max_message_bytes=max_message_bytes), INFO)


def connection_and_peer(**options) -> tuple[Connection, WebSocketLeg]:
    near, far = memory_stream_pair()
    return connection_over(near, **options), WebSocketLeg(far, role="server")


def pair_over(make_pair) -> tuple[Connection, Connection]:
    """Two connections back to back; the roles on the wire are opposite, all else is the same."""
    near, far = make_pair()
    return connection_over(near), Connection(WebSocketLeg(far, role="server"), INFO)


async def expect_loss(connection: Connection) -> None:
    """Read on until the loss; whatever came before it may have been partial."""
    with pytest.raises(StreamLost):
        await read_to_end(connection)


async def read_to_end(connection: Connection) -> None:
    while await connection.receive_some():
        pass


async def test_it_is_a_half_closeable_stream(autojump_clock: MockClock):
    """spec 8.7: Close 1000 ends one direction; and everything else that Trio asks of such a stream."""

    async def make() -> tuple[Connection, Connection]:
        await trio.lowlevel.checkpoint()
        return pair_over(memory_stream_pair)

    async def make_clogged() -> tuple[Connection, Connection]:
        await trio.lowlevel.checkpoint()
        return pair_over(lockstep_stream_pair)

    await check_half_closeable_stream(make, make_clogged)


async def test_one_send_is_one_binary_message():
    """spec 8.1, 8.3: one message per call, and an empty call sends nothing."""
    connection, peer = connection_and_peer()
    await connection.send_all(b"")
    await connection.send_all(memoryview(b"one"))
    await connection.send_all(bytearray(b"x" * 70_000))
    assert await peer.receive() == Binary(b"one")
    assert await peer.receive() == Binary(b"x" * 70_000)


async def test_bytes_come_whatever_the_messages_were():
    """spec 8.1: text or binary, whole or in pieces, empty or not."""
    connection, peer = connection_and_peer()
    await peer.send_text("grüß")
    await peer.send_binary(b"")
    assert await connection.receive_some() == "grüß".encode()
    await peer.send_binary(b"12345")
    assert await connection.receive_some(2) == b"12"
    assert await connection.receive_some(2) == b"34"
    assert await connection.receive_some(2) == b"5"


async def test_reply_after_half_close():
    """failures: half-close loses the reply. Ours arrives, and the order of the Closes is the one of spec 8.7."""
    connection, peer = connection_and_peer()
    await connection.send_all(b"question")
    await connection.send_eof()
    await connection.send_eof()
    assert await peer.receive() == Binary(b"question")
    assert await peer.receive() == Close(1000, "Shutdown")
    await peer.send_binary(b"answer")
    await peer.send_close(1000, "CloseAsync")
    assert await connection.receive_some() == b"answer"
    assert await connection.receive_some() == b""
    assert await connection.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await connection.send_all(b"more")
    await peer.stream.aclose()
    await connection.aclose()


async def test_writing_goes_on_after_the_other_sides_end():
    """spec 8.7: the opposite direction stays open until that side sends its own Close."""
    connection, peer = connection_and_peer()
    await peer.send_close(1000, "Shutdown")
    assert await connection.receive_some() == b""
    await connection.send_all(b"still here")
    assert await peer.receive() == Binary(b"still here")


@pytest.mark.parametrize("code", [1000, None])
async def test_closes_that_are_an_end_of_data(code: int | None):
    """spec 13: 1000 and an empty Close end the data in order."""
    connection, peer = connection_and_peer()
    await peer.send_close(code)
    assert await connection.receive_some() == b""


@pytest.mark.parametrize("code", [1001, 1002, 1008, 1011, 4000])
async def test_closes_that_are_a_failure(code: int):
    """spec 13: any other code is no end of data; a relay that stops in the middle of it sends 1001."""
    connection, peer = connection_and_peer()
    await peer.send_close(code, "why")
    for _ in range(2):
        with pytest.raises(StreamClosed) as caught:
            await connection.receive_some()
        assert (caught.value.code, caught.value.reason) == (code, "why")
        assert isinstance(caught.value, trio.BrokenResourceError)


async def test_an_end_without_close_is_not_an_end_of_data():
    """spec 8.8: an aborted connection makes a read throw; taking it for an end of data would hide a loss."""
    connection, peer = connection_and_peer()
    await peer.send_binary(b"all but the end")
    await peer.stream.aclose()
    assert await connection.receive_some() == b"all but the end"
    with pytest.raises(StreamLost) as caught:
        await connection.receive_some()
    assert isinstance(caught.value, ConnectionLost)
    assert isinstance(caught.value, trio.BrokenResourceError)


async def test_a_peer_that_breaks_a_rule_is_told_and_cut():
    """RFC 6455 7.1.7: fail the connection; the error is the peer's fault and a broken stream at once."""
    near, far = memory_stream_pair()
    connection = connection_over(near)
    await far.send_all(encode_frame(2, b"masked, which a server must not", mask=b"1234"))
    with pytest.raises(StreamGarbled) as caught:
        await connection.receive_some()
    assert isinstance(caught.value, RemoteProtocolError)
    assert isinstance(caught.value, trio.BrokenResourceError)
    peer = WebSocketLeg(far, role="server")
    assert await peer.receive() == Close(1002)
    await connection.aclose()


async def test_pings_are_answered_while_reading():
    """spec 8.6: ping answered, pong swallowed."""
    connection, peer = connection_and_peer()
    await peer.send_ping(b"?")
    await peer.send_pong(b"unasked")
    await peer.send_binary(b"data")
    assert await connection.receive_some() == b"data"
    await connection.send_all(b"x")
    assert await peer.receive() == Pong(b"?")


async def test_close_says_close_async_and_waits():
    """spec 8.7: CloseAsync is Close 1000, then waiting for the peer's Close while data is thrown away."""
    connection, peer = connection_and_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await peer.receive() == Close(1000, "CloseAsync")
        await peer.send_binary(b"too late")
        await wait_all_tasks_blocked()
        await peer.send_close()
        await peer.stream.aclose()


async def test_close_after_the_end_of_data_sends_no_second_close():
    """spec 8.7: CloseAsync is left out if already shut down."""
    connection, peer = connection_and_peer()
    await connection.send_eof()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        assert await peer.receive() == Close(1000, "Shutdown")
        await peer.close()


async def test_close_of_a_silent_peer_is_bounded(autojump_clock: MockClock):
    """failures: half-open link. Nobody answers; ten seconds later the connection is gone all the same."""
    connection, peer = connection_and_peer()
    started = trio.current_time()
    await connection.aclose()
    assert trio.current_time() == started + 10
    assert await peer.receive() == Close(1000, "CloseAsync")


async def test_close_wakes_the_receiver_and_still_says_goodbye(autojump_clock: MockClock):
    connection, peer = connection_and_peer()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        nursery.start_soon(connection.aclose)
        assert await peer.receive() == Close(1000, "CloseAsync")
        await peer.send_close()
        await peer.stream.aclose()


async def test_close_while_a_message_is_half_sent_is_a_loss(autojump_clock: MockClock):
    """spec 8.8: what was cut off must not look like an end."""
    connection, other = pair_over(lockstep_stream_pair)

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await connection.send_all(b"x" * 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await connection.aclose()
    await expect_loss(other)


async def test_a_cancelled_close_is_forceful(autojump_clock: MockClock):
    """spec 8.8: a forced close is an abort; the peer sees a loss."""
    connection, peer = connection_and_peer()
    await trio.aclose_forcefully(connection)
    with pytest.raises(StreamLost):
        await peer.receive()
    for use in (connection.receive_some(), connection.send_all(b"x"), connection.send_eof()):
        with pytest.raises(trio.ClosedResourceError):
            await use


async def test_a_close_that_runs_out_of_time_is_forceful(autojump_clock: MockClock):
    connection, peer = connection_and_peer()
    with trio.move_on_after(3) as scope:
        await connection.aclose()
    assert scope.cancelled_caught
    assert await peer.receive() == Close(1000, "CloseAsync")
    with pytest.raises(trio.EndOfChannel):
        await peer.receive()
    assert await peer.stream.receive_some() == b""


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock):
    near, far = memory_stream_pair()
    connection = connection_over(near)
    data = encode_frame(1, b"abc", fin=False) + encode_frame(0, b"def")
    received = b""
    for value in data:
        with trio.move_on_after(0.5):
            received += await connection.receive_some()
        await far.send_all(bytes([value]))
    while len(received) < 6:
        received += await connection.receive_some()
    assert received == b"abcdef"


async def test_a_cancelled_send_ends_sending_only(autojump_clock: MockClock):
    near, far = lockstep_stream_pair()
    connection = connection_over(near)
    with trio.move_on_after(1):
        await connection.send_all(b"nobody reads")
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_eof()
    peer = WebSocketLeg(far, role="server")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_binary, b"for you")
        assert await connection.receive_some() == b"for you"


# Messages ------------------------------------------------------------------------------------------------------------


async def test_messages_keep_type_and_boundaries():
    """spec 8.1: text stays text, boundaries stay; spec 8.3: an empty message really sent is kept."""
    connection, peer = connection_and_peer()
    messages = connection.messages()
    await messages.send("grüß")
    await messages.send(b"")
    await messages.send("")
    assert [await peer.receive() for _ in range(3)] == [Text("grüß"), Binary(b""), Text("")]
    await peer.send_text("")
    await peer.send_ping()
    await peer.send_binary(b"\x00")
    await peer.send_text("ü" * 50_000)
    await peer.send_close(1000)
    assert [message async for message in messages] == ["", b"\x00", "ü" * 50_000]
    with pytest.raises(trio.EndOfChannel):
        await messages.receive()
    await messages.send("still open this way")


async def test_a_message_over_the_bound_is_refused():
    """RFC 6455 7.4.1: 1009, and the connection ends."""
    connection, peer = connection_and_peer()
    messages = connection.messages(max_message_bytes=100)
    await peer.send_binary(b"x" * 100)
    await peer.send_binary(b"x" * 101)
    assert await messages.receive() == b"x" * 100
    with pytest.raises(StreamGarbled) as caught:
        await messages.receive()
    assert caught.value.close_code == 1009
    assert await peer.receive() == Close(1009)


async def test_text_that_is_not_utf_8_is_refused():
    """RFC 6455 8.1: 1007."""
    near, far = memory_stream_pair()
    messages = connection_over(near).messages()
    await far.send_all(encode_frame(1, b"\xff\xfe"))
    with pytest.raises(StreamGarbled) as caught:
        await messages.receive()
    assert caught.value.close_code == 1007
    assert await WebSocketLeg(far, role="server").receive() == Close(1007)


async def test_messages_of_several_tasks_stay_whole():
    """RFC 6455 5.4: frames of different messages are not interleaved."""
    connection, peer = connection_and_peer()
    messages = connection.messages()
    async with trio.open_nursery() as nursery:
        for letter in "abc":
            nursery.start_soon(messages.send, letter * 70_000)
    texts = set()
    for _ in range(3):
        event = await peer.receive()
        assert isinstance(event, Text)
        texts.add(event.data)
    assert texts == {letter * 70_000 for letter in "abc"}


async def test_the_ends_of_a_message_channel(autojump_clock: MockClock):
    connection, peer = connection_and_peer()
    messages = connection.messages()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(messages.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await messages.receive()
        nursery.cancel_scope.cancel()
    await messages.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await messages.send("x")
    await peer.send_close(1011, "broken")
    with pytest.raises(StreamClosed):
        await messages.receive()
    with pytest.raises(StreamClosed):
        await messages.receive()
    await messages.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await messages.receive()
    with pytest.raises(trio.ClosedResourceError):
        await connection.receive_some()


async def test_close_wakes_a_receiver_of_messages():
    connection, peer = connection_and_peer()
    messages = connection.messages()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await messages.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        nursery.start_soon(messages.aclose)
        assert await peer.receive() == Close(1000, "CloseAsync")
        await peer.send_close()
        await peer.stream.aclose()


async def test_turning_away_uses_its_own_code(autojump_clock: MockClock):
    """spec 13: a connection that nobody will take is closed with 1001."""
    connection, peer = connection_and_peer()
    started = trio.current_time()
    await connection.turn_away(1001, 2.0)
    assert trio.current_time() == started + 2
    assert await peer.receive() == Close(1001)


async def test_turning_away_with_words(autojump_clock: MockClock):
    connection, peer = connection_and_peer()
    await peer.send_close(4001, "yes")
    assert connection.close_received is None
    await connection.turn_away(4000, reason="no")
    assert await peer.receive() == Close(4000, "no")
    assert connection.close_received == Close(4001, "yes")


async def test_the_websocket_below_can_be_taken_over():
    ours, theirs = memory_stream_pair()
    early = encode_frame(2, b"early")
    connection = Connection(WebSocketLeg(ours, role="client", early=early), INFO)
    stream, found = connection.detach()
    assert (stream, found) == (ours, early)
    for use in (connection.send_all(b"x"), connection.receive_some()):
        with pytest.raises(trio.ClosedResourceError):
            await use
    await connection.aclose()
    await stream.send_all(b"open")
    assert await theirs.receive_some() == b"open"


async def test_the_websocket_can_be_taken_over_behind_whole_messages():
    connection, peer = connection_and_peer()
    await connection.send_all(b"a request")
    assert connection.is_detachable
    stream, found = connection.detach()
    assert found == b""
    assert await peer.receive() == Binary(b"a request")
    await stream.aclose()


async def test_the_websocket_can_be_taken_over_behind_a_preamble():
    """The frame that held the preamble goes on where reading stopped; a ping on the way is still answered."""
    ours, theirs = memory_stream_pair()
    connection = connection_over(ours)
    connection.expect_preamble()
    wire = encode_frame(2, b"ab") + encode_frame(9, b"1") + encode_frame(2, b"c and the r", fin=False)
    await theirs.send_all(wire + encode_frame(0, b"est")[:3])
    assert await connection.receive_some(3) == b"ab"
    assert await connection.receive_some(1) == b"c"
    stream, found = connection.detach()
    assert found == encode_frame(9, b"1") + encode_frame(2, b" and the r", fin=False) + encode_frame(0, b"est")[:3]
    with pytest.raises(trio.ClosedResourceError):
        await connection.receive_some()
    await stream.aclose()


async def test_a_ping_that_was_answered_is_not_left():
    connection, peer = connection_and_peer()
    connection.expect_preamble()
    await peer.send_ping(b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_binary, b"abc")
        assert await connection.receive_some(2) == b"ab"
    assert await connection.receive_some(1) == b"c"
    await connection.send_all(b"answer")  # the pong goes first, if it has not gone before
    assert [await peer.receive(), await peer.receive()] == [Pong(b"1"), Binary(b"answer")]
    assert connection.detach()[1] == b""


async def test_a_preamble_has_to_be_expected_before_it_is_read():
    connection, peer = connection_and_peer()
    await peer.send_binary(b"abc")
    await connection.receive_some(1)
    with pytest.raises(LocalProtocolError):
        connection.expect_preamble()


async def test_what_is_kept_has_a_bound():
    connection, peer = connection_and_peer()
    connection.expect_preamble()
    async with trio.open_nursery() as nursery:
        for expected in (True, True, False):
            nursery.start_soon(peer.send_binary, bytes(50_000))
            for _ in range(50):
                await connection.receive_some(1_000)
            assert connection.is_detachable is expected


async def test_reading_on_ends_a_preamble():
    connection, peer = connection_and_peer()
    connection.expect_preamble()
    await peer.send_binary(b"abc")
    await connection.receive_some(1)
    connection.read_on()
    assert not connection.is_detachable
    assert await connection.receive_some() == b"bc"


async def test_a_connection_in_use_keeps_its_websocket(autojump_clock: MockClock):
    async def read(connection: Connection, peer: WebSocketLeg) -> None:
        await peer.send_binary(b"x")
        await connection.receive_some()

    async def read_messages(connection: Connection, peer: WebSocketLeg) -> None:
        connection.expect_preamble()
        await peer.send_binary(b"x")
        await connection.messages().receive()

    async def end(connection: Connection, _: WebSocketLeg) -> None:
        await connection.send_eof()

    async def close(connection: Connection, _: WebSocketLeg) -> None:
        await connection.aclose()

    for use in (read, read_messages, end, close):
        connection, peer = connection_and_peer()
        await use(connection, peer)
        assert not connection.is_detachable
        with pytest.raises(LocalProtocolError):
            connection.detach()


async def test_a_connection_that_somebody_reads_keeps_its_websocket():
    connection, _ = connection_and_peer()
    connection.expect_preamble()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive_some)
        await wait_all_tasks_blocked()
        assert not connection.is_detachable
        nursery.cancel_scope.cancel()
    assert connection.is_detachable


async def test_counters_and_name():
    connection, peer = connection_and_peer()
    await connection.send_all(b"123")
    await peer.receive()
    await peer.send_ping(b"")
    await peer.send_binary(b"x")
    await connection.receive_some()
    statistics = connection.statistics()
    assert (statistics.frames_sent, statistics.frames_received) == (1, 2)
    assert "orders" in repr(connection)
