"""Rules of the wire contract about joining and about joined streams, end to end over loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct

import pytest
import trio
import trustme
from peers import WirePeer, close_frame, frame, split_address

from relaycore.config import ServerConfig, TlsConfig

GUID = "12345678-1234-1234-1234-1234567890ab"


async def offered(relay, target: str = "/$hc/orders", headers: dict[str, str] | None = None):
    """A listener, a sender that waits unanswered, and the accept between them."""
    control = await relay.listen(target.split("/")[2].partition("?")[0])
    sender = await relay.connect()
    fields = {"ServiceBusAuthorization": relay.token(), **(headers or {})}
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: relay.test",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    await sender.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return control, sender, (await control.read_json())["accept"]


# Joining -------------------------------------------------------------------------------------------------------------


async def test_the_sender_is_answered_first(relay) -> None:
    """spec 7.2/order: when the listener sees its 101, the sender's is already there."""
    for _ in range(10):
        control, sender, accept = await offered(relay)
        await relay.come_to(accept["address"])
        waiting = sender.stream.socket._sock.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        assert waiting.startswith(b"HTTP/1.1 101 ")
        await control.send(close_frame())
        assert (await control.read_frame()).opcode == 8


async def test_no_header_of_the_listener_reaches_the_sender(relay) -> None:
    """spec 7.2/no-listener-headers: what an accept handler sets is not transmitted."""
    _, sender, accept = await offered(relay)
    await relay.come_to(accept["address"], {"Set-Cookie": "a=1", "X-Mine": "2", "Server": "listener"})
    answer = await sender.read_answer()
    assert answer.headers.keys() == {"upgrade", "connection", "sec-websocket-accept"}


async def test_a_sender_that_offered_protocols_may_get_none(relay) -> None:
    """spec 7.2/subprotocol: Java listeners name none, so nobody is told of one."""
    _, sender, accept = await offered(relay, headers={"Sec-WebSocket-Protocol": "p1, p2"})
    await relay.come_to(accept["address"])
    assert "sec-websocket-protocol" not in (await sender.read_answer()).headers


async def test_via_is_annotated(relay) -> None:
    """spec 10/via: what is there, then ``1.1 HOST``."""
    _, _, accept = await offered(relay, headers={"Via": "1.0 before"})
    assert accept["connectHeaders"]["Via"] == "1.0 before, 1.1 relay.test"


@pytest.mark.parametrize(
    ("path", "own", "standard", "is_passed"),
    [
        ("orders", "token", "Bearer mine", True),
        ("orders", None, "token", False),
        ("open", "not a token", "Basic mine", True),
        ("open", None, "token", True),
    ],
)
async def test_authorization_is_passed_unless_it_was_the_credential(relay, path, own, standard, is_passed) -> None:
    """spec 10/authorization, spec 5.1/authorization-as-data, spec 5.1/removed: azbridge sends both headers."""
    fields = {
        name: relay.token() if value == "token" else value
        for name, value in (("ServiceBusAuthorization", own or ""), ("Authorization", standard))
    }
    _, _, accept = await offered(relay, f"/$hc/{path}", fields)
    given = accept["connectHeaders"]
    assert given.get("Authorization") == (fields["Authorization"] if is_passed else None)
    assert "ServiceBusAuthorization" not in given


async def test_headers_keep_spelling_and_bytes(relay) -> None:
    """spec 10/spelling, spec 10/repeats, spec 7.1/connect-headers: a Java test sends such a name and looks it up."""
    name, value = "!#$%&*+-.^_`|~Mixed0", "\"'(){}[]<>=/,:;@\\ \xe9"
    _, _, accept = await offered(relay, headers={name: value, "X-One": "1", "x-one": "2", "Cookie": "a=1; b=2"})
    given = accept["connectHeaders"]
    assert given[name] == value
    assert given["X-One"] == "1, 2"
    assert given["Cookie"] == "a=1; b=2"


# Frames --------------------------------------------------------------------------------------------------------------


async def test_bytes_do_not_wait_for_the_end_of_their_message(relay) -> None:
    """spec 8.4: a fragment arrives before the next one was sent, and so does the beginning of a frame."""
    _, sender, listener = await relay.join()
    await sender.send(frame(2, b"first", fin=False))
    got = await listener.read_frame()
    assert (got.opcode, got.fin, got.payload) == (2, False, b"first")
    payload = os.urandom(40_000)
    whole = frame(0, payload)
    await sender.send(whole[:20_008])
    assert await listener.read_exactly(4) == b"\x80\x7e" + struct.pack("!H", 40_000)
    assert await listener.read_exactly(20_000) == payload[:20_000]
    await sender.send(whole[20_008:])
    assert await listener.read_exactly(20_000) == payload[20_000:]


@pytest.mark.parametrize("by", ["sender", "listener"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(2, b"x", rsv=4), 1002),
        (frame(2, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(0, b"x"), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(8, b"x"), 1002),
        (frame(8, struct.pack("!H", 1005)), 1002),
        (frame(2, b"", length=2**63), 1002),
    ],
    ids=["rsv", "unmasked", "opcode", "continuation", "long-ping", "short-close", "close-1005", "length"],
)
async def test_who_breaks_the_protocol_is_told_and_the_other_cut(relay, by, data, code) -> None:
    """spec 13/protocol-error, spec 8.5, failures/lengths: 1002 to it, an abort without a Close for the other."""
    _, sender, listener = await relay.join()
    guilty, other = (sender, listener) if by == "sender" else (listener, sender)
    await guilty.send(data)
    goodbye = await guilty.read_frame()
    assert (goodbye.opcode, goodbye.close_code) == (8, code)
    try:
        rest = await other.read_eof()
    except trio.BrokenResourceError:
        rest = b""
    assert rest == b""


async def test_one_byte_frames_by_the_ten_thousand(relay) -> None:
    """spec 8.10: one Node test sends some 66 000 continuation frames of one byte."""
    _, sender, listener = await relay.join()
    count = 66_000
    data = frame(2, b"x", fin=False) + frame(0, b"y", fin=False) * (count - 2) + frame(0, b"z")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, data)
        opcode, payload = await listener.read_message()
    assert (opcode, payload) == (2, b"x" + b"y" * (count - 2) + b"z")


async def test_frames_towards_clients_are_cut_at_64_kib(relay) -> None:
    """spec 8.2: both ways; a short message comes in one piece."""
    _, sender, listener = await relay.join()
    payload = os.urandom(200_001)
    for source, target in ((sender, listener), (listener, sender)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send, frame(2, payload) + frame(1, b"short"))
            got = bytearray()
            while True:
                piece = await target.read_frame()
                assert 0 < len(piece.payload) <= 65_536
                got += piece.payload
                if piece.fin:
                    break
            assert got == payload
            piece = await target.read_frame()
            assert (piece.opcode, piece.fin, piece.payload) == (1, True, b"short")


@pytest.mark.parametrize("by", ["sender", "listener"])
async def test_a_slow_reader_stops_its_writer(relay, by) -> None:
    """failures/slow-reader, spec 8.9: what the relay holds for a reader that does not read is bounded, both ways."""
    _, sender, listener = await relay.join()
    source = sender if by == "sender" else listener
    sent = 0
    with trio.move_on_after(0.5):
        while True:
            await source.send(frame(2, bytes(65_536)))
            sent += 1
    # The sockets' buffers on either side of the relay; more would be memory of its own.
    assert sent * 65_536 < 32 << 20
    assert relay.server.statistics().buffers_in_use <= 2


async def test_an_idle_session_holds_no_buffer(relay) -> None:
    """failures/idle-memory: a buffer is borrowed for a turn and given back."""
    _, sender, listener = await relay.join()
    async with trio.open_nursery() as nursery:
        # More than the sockets on the way can hold, so writing it and reading it must go on side by side.
        nursery.start_soon(sender.send, frame(2, os.urandom(300_000)))
        assert len((await listener.read_message())[1]) == 300_000
    await listener.send(frame(1, b"done"))
    assert (await sender.read_message())[1] == b"done"
    with trio.fail_after(5):
        while relay.server.statistics().buffers_in_use:
            await trio.sleep(0.005)
    assert relay.server.statistics().sessions == 1


async def test_a_bulk_stream_leaves_room_for_small_ones(relay) -> None:
    """failures/fairness: round trips go on beside a stream that never stops."""
    _, bulk_sender, bulk_listener = await relay.join("orders")
    _, sender, listener = await relay.join("open")
    moved = 0

    async def write() -> None:
        chunk = frame(2, bytes(262_144))
        while True:
            await bulk_sender.send(chunk)

    async def read() -> None:
        nonlocal moved
        while data := await bulk_listener.stream.receive_some(262_144):
            moved += len(data)

    async def echo() -> None:
        while True:
            got = await listener.read_frame()
            await listener.send(frame(2, got.payload))

    async with trio.open_nursery() as nursery:
        for task in (write, read, echo):
            nursery.start_soon(task)
        with trio.fail_after(10):
            for number in range(50):
                await sender.send(frame(2, b"%d" % number))
                assert (await sender.read_frame()).payload == b"%d" % number
        nursery.cancel_scope.cancel()
    assert moved > 1 << 20


async def test_a_peer_that_vanishes_leaves_nothing_behind(relay) -> None:
    """failures/half-open: a reset at each stage of a connection's life, and the books are even afterwards."""
    for stage in ("head", "channel", "waiting", "sender", "listener"):
        if stage == "head":
            peer = await relay.connect()
            await peer.send(b"GET /$hc/or")
        elif stage == "channel":
            peer = await relay.listen()
        elif stage == "waiting":
            control, peer, _ = await offered(relay)
            control.reset()
        else:
            control, sender, listener = await relay.join()
            peer = sender if stage == "sender" else listener
            control.reset()
        peer.reset()
    await relay.hang_up()
    statistics = relay.server.statistics()
    assert (statistics.sessions, statistics.listeners, statistics.waiting_senders) == (0, 0, 0)
    assert statistics.buffers_in_use == 0


async def test_streams_outlive_the_tokens_that_opened_them(start_relay) -> None:
    """spec 5.6/streams-outlive, spec 13/expired: the channel is closed with 1008, the stream goes on."""
    now = [1_000_000.0]
    relay = await start_relay(now_unix=lambda: now[0])
    token = relay.token(ttl=60, now=now[0])
    relay.token = lambda: token
    control, sender, listener = await relay.join()
    now[0] += 60 + 300 + 1
    # Whatever comes has the relay look at its clock; without it that would be when the token ends by the real one.
    await control.send(frame(10))
    goodbye = await control.read_frame()
    assert (goodbye.opcode, goodbye.close_code) == (8, 1008)
    assert b"ExpiredToken" in goodbye.payload
    await sender.send(frame(2, b"after the end"))
    assert (await listener.read_message())[1] == b"after the end"
    await listener.send(frame(2, b"and back"))
    assert (await sender.read_message())[1] == b"and back"
    _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": token})
    assert answer.status == 401


# TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    """A CA that writes a fresh certificate into the same two files each time it is asked."""

    class Authority:
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

        def __init__(self) -> None:
            self.ca = trustme.CA()
            self.issue()

        def issue(self) -> None:
            leaf = self.ca.issue_cert("relay.test")
            self.key.write_bytes(leaf.private_key_pem.bytes())
            self.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

        async def open(self, port: int) -> WirePeer:
            context = ssl.create_default_context()
            self.ca.configure_trust(context)
            context.set_alpn_protocols(["h2", "http/1.1"])
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            secured = trio.SSLStream(stream, context, server_hostname="relay.test", https_compatible=True)
            await secured.do_handshake()
            return WirePeer(secured)

    return Authority()


async def test_streams_survive_reloads_of_the_certificate(start_relay, authority) -> None:
    """failures/reload, spec 4/alpn, spec 4/tls: new connections get the new one, open streams notice nothing."""
    relay = await start_relay(
        server=ServerConfig(port=0),
        tls=TlsConfig(cert=str(authority.cert), key=str(authority.key), reload_interval=0),
    )
    opened: list[WirePeer] = []

    async def open_peer() -> WirePeer:
        opened.append(await authority.open(relay.port))
        return opened[-1]

    token = {"ServiceBusAuthorization": relay.token()}
    control = await open_peer()
    assert (await control.upgrade("/$hc/orders?sb-hc-action=listen", token)).status == 101
    assert control.stream.selected_alpn_protocol() == "http/1.1"
    assert control.stream.version() in ("TLSv1.2", "TLSv1.3")
    streams = []
    for _ in range(6):
        sender, listener = await open_peer(), await open_peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.upgrade, "/$hc/orders", token)
            address = (await control.read_json())["accept"]["address"]
            assert address.startswith("wss://relay.test/")
            assert (await listener.upgrade(split_address(address)[1])).status == 101
        streams.append((sender, listener, hashlib.sha256(), hashlib.sha256()))
    serials = set()
    for _ in range(20):
        authority.issue()
        await relay.server.reload_tls()
        for sender, listener, sent, received in streams:
            payload = os.urandom(5000)
            sent.update(payload)
            await sender.send(frame(2, payload))
            received.update((await listener.read_message())[1])
        fresh = await open_peer()
        serials.add(fresh.stream.getpeercert()["serialNumber"])
    assert len(serials) == 20
    assert all(sent.digest() == received.digest() for _, _, sent, received in streams)
    for peer in opened:
        await trio.aclose_forcefully(peer.stream)
