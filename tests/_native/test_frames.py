"""The C codec says what the plain-Python one says, for any bytes cut anywhere."""

import threading

import pytest
from _native import oracle
from _native.counting import CountingLib
from _native.oracle import Broken, Frame, Oracle
from hypothesis import example, given
from hypothesis import strategies as st

from relaycore._native import Decoder, FramingError, apply_mask, encode_frame, frames, mask_implementation
from relaycore.errors import LocalProtocolError, RemoteProtocolError

# Strategies ----------------------------------------------------------------------------------------------------------

payloads = st.one_of(st.binary(max_size=40), st.integers(120, 300).map(lambda n: bytes(range(256)) * 2 + b"x" * n))
keys = st.binary(min_size=4, max_size=4)
close_payloads = st.one_of(
    st.just(b""),
    st.builds(
        lambda code, reason: code.to_bytes(2, "big") + reason.encode()[:120].decode(errors="ignore").encode(),
        st.one_of(st.integers(0, 6000), st.integers(1000, 1015)),
        st.text(max_size=30),
    ),
    st.binary(max_size=6),
)


@st.composite
def streams(draw, valid_only=False):
    """Bytes that are mostly frames, mostly in an order that is allowed; (is masked, bytes)."""
    masked = draw(st.booleans())
    out = b""
    in_message = False
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["data"] * 6 + ["ping", "pong", "close"] + ["noise", "any"] * (not valid_only)))
        fin = draw(st.booleans())
        if kind == "noise":
            out += draw(st.binary(max_size=12))
            continue
        if kind == "data":
            frame = Frame(0 if in_message else draw(st.sampled_from([1, 2])), draw(payloads), fin)
            in_message = not fin
        elif kind == "any":
            frame = Frame(draw(st.integers(0, 15)), draw(st.binary(max_size=10)), fin)
        elif kind == "close":
            frame = Frame(8, b"\x03\xe8ok" if valid_only else draw(close_payloads))
        else:
            frame = Frame(9 if kind == "ping" else 10, draw(st.binary(max_size=125)))
        out += oracle.encode(frame, draw(keys) if masked else None)
    return masked, out


@st.composite
def cut_streams(draw, **options):
    masked, data = draw(streams(**options))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return masked, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def joined(pieces):
    """Pieces in a form without cuts: each data frame's pieces in one, up to the next frame's beginning or end."""
    found = []
    for opcode, fin, payload in pieces:
        if opcode == 0 and found and found[-1][0] in (0, 1, 2) and not found[-1][1]:
            found[-1] = (found[-1][0], fin, found[-1][2] + payload)
        else:
            found.append((opcode, fin, payload))
    return found


def expected(reader):
    """The same form, from the oracle's frames and what it has of the last one."""
    pieces = [(frame.opcode, frame.fin, frame.payload) for frame in reader.frames]
    if reader.partial is not None:
        opcode, _fin, payload = reader.partial
        pieces.append((opcode, False, payload))
    return joined(pieces)


# Decoding ------------------------------------------------------------------------------------------------------------


@given(cut_streams())
@example((False, [b"\x82\x7f\x80", b"\0"]))
@example((True, [b"\x81\x80\0\0", b"\0\0\x88\x82\0\0\0\0\x03", b"\xe8zz"]))
def test_decoder_is_the_oracle(stream):
    """RFC 6455 5.2: pieces, errors and close codes are those of the plain-Python codec, wherever the stream is cut.

    RFC 6455 7.1.7: nothing but the documented error comes out of any bytes.
    """
    masked, parts = stream
    reader, decoder = Oracle(masked=masked), Decoder(masked=masked)
    pieces = []
    for part in parts:
        wanted = found = None
        try:
            reader.receive(part)
        except Broken as error:
            wanted = error.close_code
        try:
            pieces += decoder.receive(part)
        except FramingError as error:
            found = error.close_code
            pieces += error.pieces
        assert found == wanted
        assert joined(pieces) == expected(reader)
        if found is not None:
            with pytest.raises(LocalProtocolError):
                decoder.receive(b"")
            return
    assert decoder.frames_received >= len(reader.frames)


@given(streams(valid_only=True))
def test_cuts_do_not_matter(stream):
    """RFC 6455 5.4: whole, byte by byte and cut in two, a stream gives the same messages."""
    masked, data = stream

    def decode(parts):
        decoder = Decoder(masked=masked)
        return joined([piece for part in parts for piece in decoder.receive(part)]), decoder.frames_received

    whole = decode([data])
    assert decode([data[i : i + 1] for i in range(len(data))]) == whole
    for cut in range(0, len(data), max(1, len(data) // 16)):
        assert decode([data[:cut], data[cut:]]) == whole


def test_pieces_carry_the_opcode_once_and_fin_at_the_end():
    decoder = Decoder(masked=False)
    assert decoder.receive(b"\x01\x05He") == [(1, False, b"He")]
    assert decoder.receive(b"llo\x89\x01p\x00\x00") == [(0, False, b"llo"), (9, True, b"p"), (0, False, b"")]
    assert decoder.receive(b"\x80\x00\x82\x00") == [(0, True, b""), (2, True, b"")]
    assert decoder.receive(b"\x81\x01") == []
    assert decoder.receive(b"x") == [(1, True, b"x")]


@pytest.mark.parametrize(
    ("data", "masked", "section", "close_code"),
    [
        (b"\xc1\x00", False, "RFC 6455 5.2", 1002),
        (b"\x83\x00", False, "RFC 6455 5.2", 1002),
        (b"\x09\x00", False, "RFC 6455 5.5", 1002),
        (b"\x89\x7e\x00\x7e", False, "RFC 6455 5.5", 1002),
        (b"\x81\x00", True, "RFC 6455 5.1", 1002),
        (b"\x81\x80\0\0\0\0", False, "RFC 6455 5.1", 1002),
        (b"\x82\x7e\x00\x7d", False, "RFC 6455 5.2", 1002),
        (b"\x82\x7f\x80\0\0\0\0\0\0\0", False, "RFC 6455 5.2", 1002),
        (b"\x80\x00", False, "RFC 6455 5.4", 1002),
        (b"\x01\x00\x01\x00", False, "RFC 6455 5.4", 1002),
        (b"\x88\x01\x03", False, "RFC 6455 5.5.1", 1002),
        (b"\x88\x02\x03\xed", False, "RFC 6455 7.4", 1002),
        (b"\x88\x03\x03\xe8\xff", False, "RFC 6455 8.1", 1007),
    ],
)
def test_each_broken_rule_names_its_section(data, masked, section, close_code):
    """RFC 6455 5.1, RFC 6455 5.2, RFC 6455 5.5: strict, and the error says what the peer is to be told."""
    with pytest.raises(RemoteProtocolError) as caught:
        Decoder(masked=masked).receive(data)
    assert (caught.value.section, caught.value.close_code) == (section, close_code)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_no_length_is_too_large_to_be_understood_or_refused(length):
    """failures/lengths: a length that the peer chose overflows nothing."""
    head = b"\x82" + (
        bytes([length])
        if length < 126
        else b"\x7e" + length.to_bytes(2, "big")
        if length < 1 << 16
        else b"\x7f" + length.to_bytes(8, "big")
    )
    decoder = Decoder(masked=False)
    if length >= 2**63:
        with pytest.raises(FramingError):
            decoder.receive(head + b"abc")
        return
    pieces = decoder.receive(head + b"abc"[:length])
    assert b"".join(payload for _, _, payload in pieces) == b"abc"[:length]


def test_what_follows_a_close_is_dropped_and_counted():
    """RFC 6455 5.5.1: nothing counts behind a Close."""
    decoder = Decoder(masked=False)
    assert decoder.receive(b"\x88\x00\xff\xff") == [(8, True, b"")]
    assert decoder.receive(b"\xff") == []
    assert decoder.bytes_discarded == 3


def test_a_receive_may_be_larger_than_the_work_area():
    frame = Frame(2, bytes(200_000))
    decoder = Decoder(masked=True)
    pieces = decoder.receive(oracle.encode(frame, b"abcd") * 2 + oracle.encode(Frame(9, b"p"), b"abcd"))
    assert joined(pieces) == [(2, True, frame.payload), (2, True, frame.payload), (9, True, b"p")]


def test_any_bytes_like_is_taken():
    for data in (b"\x81\x01x", bytearray(b"\x81\x01x"), memoryview(b"_\x81\x01x")[1:]):
        assert Decoder(masked=False).receive(data) == [(1, True, b"x")]


def test_one_receive_is_one_crossing(monkeypatch):
    decoder = Decoder(masked=False)
    lib = CountingLib(frames.lib)
    monkeypatch.setattr(frames, "lib", lib)
    data = b"\x81\x00" * 32_768
    assert len(data) == 65_536
    assert len(decoder.receive(data)) == 32_768
    assert lib.calls == ["rc_decode"]


def test_threads_do_not_share_a_work_area():
    """C runs without the GIL, so two decoders in two threads are really at work at the same time."""
    results = []

    def decode(byte):
        decoder = Decoder(masked=True)
        data = oracle.encode(Frame(2, bytes([byte]) * 60_000), b"abcd")
        results.append(all(decoder.receive(data)[0][2] == bytes([byte]) * 60_000 for _ in range(200)))

    threads = [threading.Thread(target=decode, args=[byte]) for byte in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True, True]


# Encoding and masks --------------------------------------------------------------------------------------------------


@given(st.sampled_from([0, 1, 2, 8, 9, 10]), payloads, st.booleans(), st.none() | keys)
def test_encoding_is_the_oracle(opcode, payload, fin, key):
    """RFC 6455 5.2: the shortest length, reserved bits 0; masked for a server (RFC 6455 5.3)."""
    if opcode >= 8 and (len(payload) > 125 or not fin):
        with pytest.raises(LocalProtocolError):
            encode_frame(opcode, payload, fin=fin, mask=key)
        return
    assert encode_frame(opcode, payload, fin=fin, mask=key) == oracle.encode(Frame(opcode, payload, fin), key)


@pytest.mark.parametrize("length", [125, 126, 65_535, 65_536])
def test_lengths_around_each_form(length):
    """RFC 6455 5.2: 7, 16 and 64 bits, each where it is the shortest."""
    payload = bytes(length)
    for data in (payload, bytearray(payload), memoryview(payload)):
        assert encode_frame(2, data) == oracle.encode(Frame(2, payload))


@pytest.mark.parametrize("opcode", [-1, 3, 7, 11, 15, 16, 255, 65_536])
def test_unknown_opcodes_are_not_sent(opcode):
    """RFC 6455 5.2: opcodes that nobody has defined."""
    with pytest.raises(LocalProtocolError):
        encode_frame(opcode, b"")


def test_a_mask_key_has_four_bytes():
    """RFC 6455 5.3: the key."""
    with pytest.raises(LocalProtocolError):
        encode_frame(1, b"", mask=b"abc")
    with pytest.raises(LocalProtocolError):
        apply_mask(b"", b"abcde")
    with pytest.raises(LocalProtocolError):
        apply_mask(b"", b"abcd", phase=-1)


@given(st.binary(max_size=700), keys, st.integers(0, 9))
def test_masks(data, key, phase):
    """RFC 6455 5.3: octet i XOR key octet i modulo 4, and back."""
    masked = apply_mask(data, key, phase)
    assert masked == bytes(byte ^ key[(i + phase) % 4] for i, byte in enumerate(data))
    assert apply_mask(bytearray(masked), key, phase) == data
    assert apply_mask(memoryview(data)[3:], key, phase + 3) == masked[3:]


def test_a_mask_implementation_was_chosen():
    assert mask_implementation() in {"portable", "sse2", "avx2", "neon"}
