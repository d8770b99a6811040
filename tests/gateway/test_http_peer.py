"""One client's HTTP connection, over streams that take nothing before they are read."""

from __future__ import annotations

import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair

from relaycore.gateway.http_peer import HttpPeer
from relaycore.gateway.state import Peer
from relaycore.wire.messages import RemoteEndpoint

HEAD = b"POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def http_peer(stream: trio.abc.Stream) -> HttpPeer:
    peer = Peer(stream, RemoteEndpoint("127.0.0.1", 1), is_tls=False)
    return HttpPeer(peer, max_head_bytes=65_536, max_headers=100)


async def test_an_invitation_that_nobody_takes_ends(autojump_clock):
    """failures: slow-reader: who asks for invitations and reads none holds a request for a while only."""
    near, far = lockstep_stream_pair()
    http = http_peer(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send_all, HEAD)
        await http.fill()
    assert http.next_head() is not None
    assert not await http.send_continue(60)
    assert trio.current_time() == pytest.approx(60)


async def test_one_invitation_and_none_into_an_answer():
    """RFC 9110 10.1.1: not twice, not when the body is coming, not when an answer has begun."""
    for lead, behind, expected in (
        (b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"he", b""),
        (b"answer", b"", b"answer"),
    ):
        near, far = memory_stream_pair()
        http = http_peer(near)
        await far.send_all(HEAD + behind)
        await http.fill()
        assert http.next_head() is not None
        if lead:
            await http.send(lead, 1)
        assert await http.send_continue(1)
        assert await http.send_continue(1)
        await near.aclose()
        assert await far.receive_some() == expected


async def test_what_is_in_hand_lets_others_run():
    """failures: one bulk stream: tiny chunks that came with one read do not hold the loop."""
    near, far = memory_stream_pair()
    http = http_peer(near)
    chunks = b"1\r\na\r\n" * 5_000
    await far.send_all(b"POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    while http.next_head() is None:
        await http.fill()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    pieces = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        while piece := await http.receive():
            pieces.append(piece)
        nursery.cancel_scope.cancel()
    assert b"".join(pieces) == b"a" * 5_000
    assert max(map(len, pieces)) <= 512
    assert turns >= 4


async def test_what_nobody_wants_is_dropped_up_to_a_bound():
    """spec 9.8: a connection goes on behind a refusal when that costs little."""
    for body, goes_on in (
        (b"5\r\nhello\r\n0\r\n\r\n", True),
        (b"1\r\na\r\n" * 6_000 + b"0\r\n\r\n", False),
        (b"zz", False),
    ):
        near, far = memory_stream_pair()
        http = http_peer(near)
        await far.send_all(b"POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        while http.next_head() is None:
            await http.fill()
        assert http.drop_nowait() is goes_on
