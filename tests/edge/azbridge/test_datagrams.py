"""Datagrams with a length in front, byte for byte (connection manager 3.7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.azbridge.datagrams import MAX_DATAGRAM_BYTES, DatagramReader, encode_datagram
from relaycore.errors import LocalProtocolError, RemoteProtocolError


def read_all(reader: DatagramReader) -> list[bytes]:
    found = []
    while (payload := reader.next_event()) is not None:
        found.append(payload)
    return found


@pytest.mark.parametrize(
    ("payload", "sent"),
    [
        (b"", "00 00"),
        (b"a", "00 01 61"),
        (b"x" * 256, "01 00" + " 78" * 256),
        (bytes(65_507), "ff e3" + " 00" * 65_507),
    ],
    ids=["0", "1", "256", "65507"],
)
def test_golden_bytes(payload, sent):
    assert encode_datagram(payload) == bytes.fromhex(sent)
    reader = DatagramReader()
    reader.receive_data(bytes.fromhex(sent))
    assert read_all(reader) == [payload]
    reader.receive_eof()


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_datagrams_are_put_together_from_any_pieces(payloads, data):
    whole = b"".join(map(encode_datagram, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    reader = DatagramReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        reader.receive_data(whole[start:end])
        found += read_all(reader)
    assert found == payloads
    reader.receive_eof()


def test_what_no_datagram_can_be_is_an_error():
    with pytest.raises(LocalProtocolError, match="65508 bytes, 65507 at most"):
        encode_datagram(bytes(MAX_DATAGRAM_BYTES + 1))
    reader = DatagramReader()
    reader.receive_data(b"\xff\xe4")
    with pytest.raises(RemoteProtocolError, match="65508 bytes, 65507 at most"):
        reader.next_event()


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x02", b"\x00\x02a"])
def test_an_end_inside_a_datagram_is_an_error(data):
    reader = DatagramReader()
    reader.receive_data(data)
    assert reader.next_event() is None
    with pytest.raises(RemoteProtocolError, match="inside a datagram"):
        reader.receive_eof()
