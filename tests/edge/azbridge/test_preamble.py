"""The preamble, byte for byte: both roles, every split, every answer (connection manager 3.6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.azbridge.preamble import (
    Mode,
    NotUnderstood,
    PortRequest,
    PortRequestReader,
    RefusedWhy,
    Reply,
    ReplyReader,
    encode_request,
)
from relaycore.errors import LocalProtocolError

GOLDEN = [
    (PortRequest("test", Mode.STREAM), "01 00 00 04 74 65 73 74", "01 00 00"),  # azbridge -L 29876/test
    (PortRequest("3434U", Mode.DATAGRAM), "01 00 01 05 33 34 33 34 55", "01 00 01"),  # azbridge -L 3434U
    (PortRequest("", Mode.STREAM), "01 00 00 00", "01 00 00"),
    (PortRequest("é", Mode.STREAM), "01 00 00 02 c3 a9", "01 00 00"),
    (PortRequest("x" * 255, Mode.STREAM), "01 00 00 ff" + " 78" * 255, "01 00 00"),
]

ports = st.text(st.characters(codec="utf-8"), max_size=255).filter(lambda name: len(name.encode()) <= 255)


def feed(reader: PortRequestReader | ReplyReader, data: bytes, cuts: list[int]) -> bytes:
    """Offer bytes in pieces, as a stream with a bound on each read would, until nothing is wanted. Returns the rest."""
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    while pieces and (wanted := reader.bytes_wanted):
        assert reader.next_event() is None
        taken, rest = pieces[0][:wanted], pieces[0][wanted:]
        reader.receive_data(taken)
        pieces[0:1] = [rest] if rest else []
    return b"".join(pieces)


def splits(data: bytes):
    return st.lists(st.integers(0, len(data)), max_size=6).map(sorted)


@pytest.mark.parametrize(("request_", "sent", "answered"), GOLDEN, ids=range(len(GOLDEN)))
def test_golden_bytes(request_, sent, answered):
    data = bytes.fromhex(sent)
    assert encode_request(request_.port_name, request_.mode) == data
    assert Reply.accepting(request_.mode).value == bytes.fromhex(answered)
    for cut in range(len(data) + 1):
        reader = PortRequestReader()
        assert feed(reader, data + b"payload", [cut]) == b"payload"
        assert reader.next_event() == request_


@given(ports, st.sampled_from(Mode), st.binary(max_size=20), st.data())
def test_every_request_is_read_from_every_split_and_no_byte_more(name, mode, behind, data):
    whole = encode_request(name, mode) + behind
    reader = PortRequestReader()
    assert feed(reader, whole, data.draw(splits(whole))) == behind
    assert reader.next_event() == PortRequest(name, mode)
    assert reader.bytes_wanted == 0


def test_a_name_of_256_bytes_is_not_sent():
    with pytest.raises(LocalProtocolError, match="256 bytes, 255 at most"):
        encode_request("é" * 128, Mode.STREAM)


def test_a_name_that_is_no_utf8_matches_nothing_but_is_read():
    reader = PortRequestReader()
    assert feed(reader, b"\x01\x00\x00\x02\xff\xfebytes", []) == b"bytes"
    assert reader.next_event() == PortRequest("��", Mode.STREAM)


@pytest.mark.parametrize("head", ["00 00 00", "02 00 00", "01 01 00", "01 00 02", "01 00 ff", "47 45 54"])
def test_three_strange_bytes_are_enough_for_a_no(head):
    data = bytes.fromhex(head)
    for cuts in ([], [1], [2], [1, 2], [3]):
        reader = PortRequestReader()
        feed(reader, data, cuts)
        assert reader.next_event() == NotUnderstood(data)
        assert reader.bytes_wanted == 0
    reader = PortRequestReader()  # four bytes in one read are fine as well
    reader.receive_data(data + b"\x00")
    assert reader.next_event() == NotUnderstood(data)


@given(st.binary(max_size=300), st.data())
def test_any_bytes_are_a_request_not_understood_or_not_enough(junk, data):
    reader = PortRequestReader()
    feed(reader, junk, data.draw(splits(junk)))
    match reader.next_event():
        case NotUnderstood(head):
            assert head == junk[:3]
        case PortRequest(_, mode):
            assert junk[:3] == bytes((1, 0, mode))
            assert len(junk) >= 4 + junk[3]
        case None:
            assert len(junk) < 4 or len(junk) < 4 + junk[3]
            assert reader.has_begun is bool(junk)


def test_bytes_that_nobody_wanted_are_a_bug():
    reader = PortRequestReader()
    with pytest.raises(LocalProtocolError, match="5 bytes, 4 wanted"):
        reader.receive_data(b"\x01\x00\x00\x01x")
    with pytest.raises(LocalProtocolError, match="4 bytes, 3 wanted"):
        ReplyReader().receive_data(b"\x01\x00\x00\x00")


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ("01 00 00", Reply.STREAM_ACCEPTED),
        ("01 00 01", Reply.DATAGRAM_ACCEPTED),
        ("00 00 00", Reply.NOT_UNDERSTOOD),
        ("00 00 01", Reply.IS_DATAGRAM),
        ("00 00 ff", Reply.IS_STREAM),
        ("01 00 02", b"\x01\x00\x02"),
        ("48 54 54", b"HTT"),
    ],
)
def test_every_reply_is_read_from_every_split_and_no_byte_more(sent, found):
    data = bytes.fromhex(sent)
    for cuts in ([], [1], [2], [1, 2], [3], [0, 0, 2]):
        reader = ReplyReader()
        assert feed(reader, data + b"payload", cuts) == b"payload"
        assert reader.next_event() == found


def test_every_word_has_a_status():
    assert {why: why.http_status for why in RefusedWhy}[RefusedWhy.UNKNOWN_PORT] == 404
