"""Messages over the frame codec: assembling, bounds, text checks, the byte way, and the end by Close."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycore._native import encode_frame
from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.wire.frames import (
    OPCODE_BINARY,
    OPCODE_CLOSE,
    OPCODE_CONTINUATION,
    OPCODE_PING,
    OPCODE_PONG,
    OPCODE_TEXT,
    Binary,
    Close,
    Event,
    MessageReader,
    Piece,
    Ping,
    Pong,
    Text,
    close_payload,
    frames_behind,
    parse_close,
)

KEY = b"\x01\x02\x03\x04"


def reader(*, masked: bool = False, max_message_bytes: int = 1000, validate_text: bool = True) -> MessageReader:
    return MessageReader(masked=masked, max_message_bytes=max_message_bytes, validate_text=validate_text)


def events_of(source: MessageReader) -> list[Event]:
    found = []
    while (event := source.next_event()) is not None:
        found.append(event)
    return found


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = None) -> bytes:
    return encode_frame(opcode, payload, fin=fin, mask=mask)


WIRE = b"".join(
    [
        frame(OPCODE_TEXT, "grüß".encode()),
        frame(OPCODE_BINARY, b"ab", fin=False),
        frame(OPCODE_PING, b"now"),
        frame(OPCODE_CONTINUATION, b"", fin=False),
        frame(OPCODE_CONTINUATION, b"cd"),
        frame(OPCODE_PONG),
        frame(OPCODE_BINARY),
        frame(OPCODE_TEXT, "ü".encode()[:1], fin=False),
        frame(OPCODE_CONTINUATION, "ü".encode()[1:]),
        frame(OPCODE_CLOSE, close_payload(1000, "done")),
    ]
)
STORY = [
    Text("grüß"),
    Ping(b"now"),
    Binary(b"abcd"),
    Pong(b""),
    Binary(b""),
    Text("ü"),
    Close(1000, "done"),
]


def test_messages_keep_type_and_boundaries():
    """spec 8.1: message type and boundaries are preserved, whatever the frames were."""
    source = reader()
    source.receive_data(WIRE)
    assert events_of(source) == STORY
    assert source.frames_received == 10


def test_one_byte_at_a_time_gives_the_same_events():
    """RFC 6455 5.2: where the network cuts says nothing."""
    source = reader()
    found = []
    for value in WIRE:
        source.receive_data(bytes([value]))
        found += events_of(source)
    assert found == STORY


@settings(deadline=None)  # a busy machine is no bug of ours
@given(cuts=st.lists(st.integers(0, len(WIRE)), max_size=8))
def test_any_split_gives_the_same_events(cuts: list[int]):
    """RFC 6455 5.2: any split of the input gives the same events."""
    source = reader()
    found = []
    edges = [0, *sorted(cuts), len(WIRE)]
    for start, end in itertools.pairwise(edges):
        source.receive_data(WIRE[start:end])
        found += events_of(source)
    assert found == STORY


def test_masked_frames_are_those_of_a_client():
    """RFC 6455 5.1: a client masks, a server does not."""
    source = reader(masked=True)
    source.receive_data(frame(OPCODE_BINARY, b"hello", mask=KEY))
    assert events_of(source) == [Binary(b"hello")]
    other = reader(masked=True)
    other.receive_data(frame(OPCODE_BINARY, b"hello"))
    with pytest.raises(RemoteProtocolError) as caught:
        other.next_event()
    assert caught.value.close_code == 1002


def pieces_of(source: MessageReader) -> list[Piece | Ping | Pong | Close]:
    found = []
    while (piece := source.next_piece()) is not None:
        found.append(piece)
    return found


def test_pieces_keep_type_and_ends():
    """spec 9.5: any number of frames of any size make one body; what is in hand of one message comes joined."""
    source = reader(max_message_bytes=1)
    source.receive_data(WIRE)
    assert pieces_of(source) == [
        Piece(True, "grüß".encode(), True),
        Piece(False, b"ab", False),
        Ping(b"now"),
        Piece(False, b"cd", True),
        Pong(b""),
        Piece(False, b"", True),
        Piece(True, "ü".encode(), True),
        Close(1000, "done"),
    ]


def joined(pieces: list[Piece | Ping | Pong | Close]) -> list[Event]:
    """The events that pieces make; control frames stand before the message that they interrupt."""
    found: list[Event] = []
    under_way = b""
    for piece in pieces:
        if not isinstance(piece, Piece):
            found.append(piece)
            continue
        under_way += piece.data
        if piece.fin:
            found.append(Text(under_way.decode()) if piece.is_text else Binary(under_way))
            under_way = b""
    return found


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, len(WIRE)), max_size=8))
def test_pieces_at_any_split_make_the_same_messages(cuts: list[int]):
    """RFC 6455 5.4: pieces tell the same story as whole messages; none is empty but a last one."""
    source = reader()
    found = []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(WIRE)]):
        source.receive_data(WIRE[start:end])
        found += pieces_of(source)
    assert joined(found) == STORY
    assert all(piece.data or piece.fin for piece in found if isinstance(piece, Piece))


def test_a_body_of_single_bytes_comes_in_one_piece():
    """spec 20.1: one-byte frames at speed; those of one read are joined."""
    source = reader()
    frames = 66_000
    source.receive_data(
        frame(OPCODE_BINARY, b"x", fin=False)
        + frame(OPCODE_CONTINUATION, b"x", fin=False) * (frames - 1)
        + frame(OPCODE_CONTINUATION)
        + frame(OPCODE_BINARY, b"y")
    )
    assert pieces_of(source) == [Piece(False, b"x" * frames, True), Piece(False, b"y", True)]


def test_an_unfinished_body_comes_as_far_as_it_is_there():
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"", fin=False))
    assert source.next_piece() is None
    assert not source.is_between_messages
    source.receive_data(frame(OPCODE_CONTINUATION, b"abc")[:-1])
    assert source.next_piece() == Piece(False, b"ab", False)
    assert not source.is_between_messages
    source.receive_data(b"c")
    assert source.next_piece() == Piece(False, b"c", True)
    assert source.is_between_messages


def test_messages_and_pieces_take_turns():
    """spec 9.7: behind a text message comes a body, and behind the body the next text."""
    source = reader()
    source.receive_data(
        frame(OPCODE_TEXT, b"one")
        + frame(OPCODE_BINARY, b"ab", fin=False)
        + frame(OPCODE_CONTINUATION, b"c")
        + frame(OPCODE_TEXT, b"two")
    )
    assert source.next_event() == Text("one")
    assert source.next_piece() == Piece(False, b"abc", True)
    assert source.next_event() == Text("two")
    assert source.next_piece() is None


def test_a_message_begun_in_pieces_cannot_be_assembled():
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, b"ab", fin=False))
    assert source.next_piece() == Piece(True, b"ab", False)
    source.receive_data(frame(OPCODE_CONTINUATION, b"cd", fin=False))
    with pytest.raises(LocalProtocolError):
        source.next_event()
    assert source.next_piece() == Piece(True, b"cd", False)
    source.receive_data(frame(OPCODE_CONTINUATION, b"ef", fin=False))
    assert source.take_bytes() == b"ef"
    source.receive_data(frame(OPCODE_CONTINUATION, b"g"))
    assert source.next_piece() == Piece(True, b"g", True)


def test_what_was_collected_or_taken_as_bytes_goes_on_in_pieces():
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, b"ab", fin=False))
    assert source.next_event() is None
    assert source.next_piece() == Piece(True, b"ab", False)
    source.receive_data(frame(OPCODE_CONTINUATION, b"c") + frame(OPCODE_BINARY, b"d", fin=False))
    assert source.next_piece() == Piece(True, b"c", True)
    assert source.take_bytes() == b"d"
    source.receive_data(frame(OPCODE_CONTINUATION, b"e"))
    assert source.next_piece() == Piece(False, b"e", True)


def test_pieces_before_a_broken_rule_are_still_handed_over():
    """failures: what a peer sent before its mistake counts."""
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"good", fin=False) + frame(OPCODE_PING) + b"\xff\xff")
    assert source.next_piece() == Piece(False, b"good", False)
    assert source.next_piece() == Ping(b"")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            source.next_piece()


def test_a_bad_close_between_pieces():
    """RFC 6455 7.4.1: a code that may not be sent is the peer's fault, at every call."""
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"x", fin=False) + frame(OPCODE_CLOSE, b"\x03\xed"))
    assert source.next_piece() == Piece(False, b"x", False)
    for take in (source.next_piece, source.next_piece, source.next_event):
        with pytest.raises(RemoteProtocolError):
            take()


def test_bytes_lose_boundaries_and_keep_order():
    """spec 8.1: a byte stream may ignore boundaries; control frames stay in their place."""
    source = reader()
    source.receive_data(WIRE)
    assert source.take_bytes() == "grüß".encode() + b"ab"
    assert not source.is_between_messages
    assert source.take_bytes() == b""
    assert source.next_event() == Ping(b"now")
    assert source.take_bytes() == b"cd"
    assert source.is_between_messages
    assert source.next_event() == Pong(b"")
    assert source.take_bytes() == "ü".encode()
    assert source.next_event() == Close(1000, "done")


def test_a_message_begun_as_bytes_cannot_be_assembled():
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"ab", fin=False))
    assert source.take_bytes() == b"ab"
    source.receive_data(frame(OPCODE_CONTINUATION, b"cd", fin=False) + frame(OPCODE_CONTINUATION, b"e"))
    with pytest.raises(LocalProtocolError):
        source.next_event()
    assert source.take_bytes() == b"cde"
    source.receive_data(frame(OPCODE_TEXT, b"next"))
    assert source.next_event() == Text("next")


def test_what_was_collected_of_a_message_can_be_had_as_bytes():
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, b"ab", fin=False))
    assert source.next_event() is None
    assert not source.is_between_messages
    assert source.take_bytes() == b"ab"
    source.receive_data(frame(OPCODE_CONTINUATION, b"cd"))
    assert source.take_bytes() == b"cd"
    assert source.is_between_messages


@pytest.mark.parametrize("parts", [[b"x" * 1001], [b"x" * 1000, b"y"], [b"x" * 600, b"y" * 600]])
def test_a_message_over_the_bound_is_the_peers_fault(parts: list[bytes]):
    """RFC 6455 7.4.1: 1009, message too big."""
    source = reader()
    for number, part in enumerate(parts):
        source.receive_data(frame(OPCODE_CONTINUATION if number else OPCODE_BINARY, part, fin=False))
    with pytest.raises(RemoteProtocolError) as caught:
        source.next_event()
    assert caught.value.close_code == 1009
    with pytest.raises(RemoteProtocolError):
        source.next_event()


def test_the_bound_itself_fits_and_bytes_know_none():
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"x" * 1000))
    assert source.next_event() == Binary(b"x" * 1000)
    source.receive_data(frame(OPCODE_BINARY, b"x" * 5000))
    assert source.take_bytes() == b"x" * 5000


def test_empty_frames_without_end_hold_no_memory():
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, fin=False) + frame(OPCODE_CONTINUATION, fin=False) * 1000)
    assert source.next_event() is None
    source.receive_data(frame(OPCODE_CONTINUATION))
    assert source.next_event() == Binary(b"")


def test_bad_text_fails_at_its_first_bad_piece():
    """RFC 6455 8.1: text that is not UTF-8 fails the connection, 1007."""
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, b"good\xff", fin=False))
    with pytest.raises(RemoteProtocolError) as caught:
        source.next_event()
    assert caught.value.close_code == 1007


@pytest.mark.parametrize("payload", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_bad_text_in_one_frame_fails(payload: bytes):
    """RFC 6455 8.1: also a character cut short, a surrogate, or one past the end of Unicode."""
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, payload))
    with pytest.raises(RemoteProtocolError) as caught:
        source.next_event()
    assert caught.value.close_code == 1007


def test_a_character_cut_short_by_the_last_frame_fails():
    """RFC 6455 8.1: a message, not a frame, has to be UTF-8; here the message ends inside a character."""
    source = reader()
    source.receive_data(frame(OPCODE_TEXT, b"a", fin=False) + frame(OPCODE_CONTINUATION, b"\xc3"))
    with pytest.raises(RemoteProtocolError):
        source.next_event()


def test_text_checks_can_be_left_out():
    source = reader(validate_text=False)
    source.receive_data(frame(OPCODE_TEXT, b"a\xff", fin=False) + frame(OPCODE_CONTINUATION, b"b"))
    assert source.next_event() == Text("a\ufffdb")


def test_what_came_before_a_broken_rule_is_still_handed_over():
    source = reader()
    source.receive_data(frame(OPCODE_BINARY, b"ok") + b"\x83\x00" + frame(OPCODE_BINARY, b"never"))
    assert source.next_event() == Binary(b"ok")
    with pytest.raises(RemoteProtocolError) as caught:
        source.next_event()
    assert caught.value.close_code == 1002


def test_nothing_counts_behind_a_close():
    """RFC 6455 5.5.1: data behind a Close is not read."""
    source = reader()
    source.receive_data(frame(OPCODE_CLOSE) + frame(OPCODE_BINARY, b"late") + b"\xff\xff")
    assert source.next_event() == Close(None)
    assert source.close == Close(None)
    source.receive_data(b"more")
    assert source.next_event() is None
    assert source.take_bytes() == b""


def test_close_payloads():
    """RFC 6455 5.5.1: empty, or a code and a UTF-8 reason."""
    assert parse_close(b"") == Close(None)
    assert parse_close(close_payload(None)) == Close(None)
    assert parse_close(close_payload(4999, "ü" * 61)) == Close(4999, "ü" * 61)


@pytest.mark.parametrize(
    ("payload", "close_code"),
    [(b"\x03", 1002), (b"\x03\xed", 1002), (b"\x03\xee", 1002), (b"\x00\x00", 1002), (b"\x03\xe8\xff", 1007)],
)
def test_bad_close_payloads_from_a_peer(payload: bytes, close_code: int):
    """RFC 6455 7.4.1: codes such as 1005 and 1006 never travel."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_close(payload)
    assert caught.value.close_code == close_code


def test_bad_closes_of_our_own():
    """RFC 6455 7.4.1, 5.5: what may not be sent is refused before it leaves."""
    with pytest.raises(LocalProtocolError):
        close_payload(1005)
    with pytest.raises(LocalProtocolError):
        close_payload(None, "reason without a code")
    with pytest.raises(LocalProtocolError):
        close_payload(1000, "ü" * 62)


def test_a_bad_close_from_the_wire():
    source = reader()
    source.receive_data(frame(OPCODE_CLOSE, b"\x03\xed"))
    with pytest.raises(RemoteProtocolError):
        source.next_event()
    assert source.close is None


@settings(deadline=None)  # a busy machine is no bug of ours
@given(st.binary(max_size=200))
def test_no_input_raises_anything_undocumented(data: bytes):
    """RFC 6455 7.1.7: any input gives events, silence or `RemoteProtocolError`."""
    source = reader(masked=True, max_message_bytes=64)
    try:
        source.receive_data(data)
        events_of(source)
        source.take_bytes()
        source.receive_data(b"")
        events_of(source)
    except RemoteProtocolError:
        pass


# What is left behind a preamble --------------------------------------------------------------------------------------

data_messages = st.lists(
    st.tuples(
        st.sampled_from([OPCODE_TEXT, OPCODE_BINARY]),
        st.lists(st.one_of(st.binary(max_size=9), st.binary(min_size=124, max_size=128)), min_size=1, max_size=3),
        st.booleans(),
    ),
    max_size=4,
)


@given(data_messages, st.booleans(), st.data())
def test_frames_go_on_behind_any_byte_that_was_taken(messages, is_masked, data):
    wire, payload = b"", b""
    for opcode, parts, has_ping in messages:
        for index, part in enumerate(parts):
            mask = data.draw(st.binary(min_size=4, max_size=4)) if is_masked else None
            last = index == len(parts) - 1
            wire += frame(OPCODE_CONTINUATION if index else opcode, part, fin=last, mask=mask)
            payload += part
            if has_ping:
                wire += frame(OPCODE_PING, b"p", mask=mask)
    read = wire[: data.draw(st.integers(0, len(wire)))]
    in_hand = payload_of(read, is_masked)
    taken = data.draw(st.integers(0, len(in_hand)))
    rest = frames_behind(read, taken) + wire[len(read) :]
    assert payload_of(rest, is_masked) == payload[taken:]


def payload_of(wire: bytes, is_masked: bool) -> bytes:
    """All payload, by a reader who begins anew and minds the rules."""
    source = reader(masked=is_masked)
    source.receive_data(wire)
    found = b""
    while True:
        found += source.take_bytes()
        match source.next_event():
            case Ping(b"p"):
                pass
            case None:
                return found
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("length", [126, 65_535, 65_536])
def test_long_frames_go_on_too(length):
    payload = bytes(range(256)) * (length // 256 + 1)
    wire = frame(OPCODE_BINARY, payload[:length])
    for taken in (1, length - 65_535, length - 125, length):
        if taken > 0:
            rest = frames_behind(wire[:-3], min(taken, length - 3)) + wire[-3:]
            assert payload_of(rest, False) == payload[min(taken, length - 3) : length]
