"""The brain of a joined session, rule by rule, and as a property: what leaves is what came, in frames as they must be.

Both ends are read by the plain-Python codec in oracle.py.
"""

import random
from itertools import product

import pytest
from _native import oracle
from _native.counting import CountingLib
from _native.oracle import Frame
from hypothesis import given
from hypothesis import strategies as st

from relaycore._native import HEADROOM_BYTES, Pool, Session, StepEvent, session
from relaycore.errors import LocalProtocolError
from relaycore.vocab import Direction, LegKind
from relaycore.wire.limits import MAX_FRAME_TO_CLIENT_BYTES

TO_LISTENER, TO_SENDER = Direction.TO_LISTENER, Direction.TO_SENDER
SERVER, CLIENT, RAW = LegKind.WS_SERVER, LegKind.WS_CLIENT, LegKind.RAW
BACK = {TO_LISTENER: TO_SENDER, TO_SENDER: TO_LISTENER}
LIMIT = MAX_FRAME_TO_CLIENT_BYTES
ALL_PAIRS = list(product(LegKind, LegKind))
WS_PAIRS = list(product([SERVER, CLIENT], [SERVER, CLIENT]))

pool = Pool(buffers=4, buffer_bytes=65_536)
small_pool = Pool(buffers=4, buffer_bytes=80)


class Pair:
    """A session with the bytes that went in and out of it, driven as a mover drives it."""

    def __init__(self, sender=SERVER, listener=SERVER, *, in_place=True, pool=pool):
        self.session = Session(sender, listener)
        self.kind = {TO_LISTENER: sender, TO_SENDER: listener}  # by direction: the source's
        self.in_place = in_place
        self.pool = pool
        self.output = {TO_LISTENER: b"", TO_SENDER: b""}
        self.events = {TO_LISTENER: StepEvent(0), TO_SENDER: StepEvent(0)}
        self.rng = random.Random(5)

    def _note(self, direction, step):
        self.output[direction] += bytes(step.output)
        self.events[direction] |= step.events
        return step

    def feed(self, direction, data):
        """What the direction's source sends; returns what left for its destination."""
        before = len(self.output[direction])
        buffer = self.pool.take()
        try:
            if self.in_place:
                room = len(buffer.window)
                for start in range(0, len(data), room):
                    part = data[start : start + room]
                    buffer.window[: len(part)] = part
                    step = self._note(direction, self.session.translate(direction, buffer, len(part)))
                    while step.more:
                        step = self._note(direction, self.session.resume(direction, buffer))
            else:
                offset, more = 0, True
                while more:
                    step = self._note(direction, self.session.translate_from(direction, data, offset, buffer))
                    offset, more = offset + step.consumed, step.more
                assert offset == len(data)
        finally:
            self.pool.give(buffer)
        return self.output[direction][before:]

    def frame(self, direction, frame):
        """The bytes of a frame as this direction's source would send it."""
        if self.kind[direction] is RAW:
            return frame.payload
        return oracle.encode(frame, self.rng.randbytes(4) if self.kind[direction] is SERVER else None)

    def send(self, direction, *frames):
        return self.feed(direction, b"".join(self.frame(direction, frame) for frame in frames))

    def _small(self, direction, call):
        before = len(self.output[direction])
        buffer = self.pool.take()
        try:
            while self._note(direction, call(direction, buffer)).more:
                call = self.session.control
        finally:
            self.pool.give(buffer)
        return self.output[direction][before:]

    def eof(self, direction):
        return self._small(direction, self.session.receive_eof)

    def control(self, direction):
        return self._small(direction, self.session.control)

    def read(self, direction, data=None):
        """What the direction's destination got, as frames."""
        data = self.output[direction] if data is None else data
        return oracle.read(data, masked=self.kind[BACK[direction]] is CLIENT)


def in_every_way(*pairs):
    """Every pair of legs, in place and out of place, with room and without."""
    return pytest.mark.parametrize(
        "options",
        [
            dict(sender=sender, listener=listener, in_place=in_place, pool=which)
            for sender, listener in (pairs or ALL_PAIRS)
            for in_place in (True, False)
            for which in (pool, small_pool)
        ],
        ids=lambda options: "-".join(
            [options["sender"].value, options["listener"].value]
            + ["apart"] * (not options["in_place"])
            + ["small"] * (options["pool"] is small_pool)
        ),
    )


# One rule after the other --------------------------------------------------------------------------------------------


@in_every_way(*WS_PAIRS)
def test_message_type_and_boundaries(options):
    """spec 8.1: text stays text, messages stay apart, fragments stay fragments of the same message."""
    pair = Pair(**options)
    frames = [
        Frame(1, "grün".encode()),
        Frame(2, b"\0\1\2"),
        Frame(1, b"He", fin=False),
        Frame(0, b"ll", fin=False),
        Frame(0, b"o"),
        Frame(2, b"x" * 126),
    ]
    pair.send(TO_LISTENER, *frames)
    assert pair.read(TO_LISTENER) == frames
    pair.send(TO_SENDER, *frames)
    assert pair.read(TO_SENDER) == frames


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 131_073, 200_000])
@pytest.mark.parametrize(("sender", "listener"), WS_PAIRS)
@pytest.mark.parametrize("in_place", [True, False])
def test_large_frames_are_split_and_others_are_not(size, sender, listener, in_place):
    """spec 8.2: no frame above 65 536 bytes, nothing smaller split; spec 8.3: no empty rest at an exact multiple."""
    for direction in Direction:
        pair = Pair(sender, listener, in_place=in_place)
        payload = random.Random(size).randbytes(size)
        pair.send(direction, Frame(2, payload, fin=False), Frame(0, payload))
        frames = pair.read(direction)
        lengths = [LIMIT] * ((size - 1) // LIMIT) + [(size - 1) % LIMIT + 1]
        assert [len(frame.payload) for frame in frames] == lengths * 2
        assert [frame.opcode for frame in frames] == [2] + [0] * (len(frames) - 1)
        assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
        assert oracle.messages(frames) == [oracle.Message(2, payload * 2, True)]


def test_a_large_frame_is_split_wherever_it_is_cut():
    """spec 8.2: also when it arrives in pieces that meet the limit from any side."""
    payload = random.Random(1).randbytes(LIMIT + 3)
    for cut in (1, 2, 9, 10, 13, 14, 15, 16, LIMIT + 12, LIMIT + 13, LIMIT + 14, LIMIT + 15, LIMIT + 16):
        pair = Pair()
        data = pair.frame(TO_LISTENER, Frame(1, payload))
        pair.feed(TO_LISTENER, data[:cut])
        pair.feed(TO_LISTENER, data[cut:])
        assert pair.read(TO_LISTENER) == [Frame(1, payload[:LIMIT], fin=False), Frame(0, payload[LIMIT:])]


@in_every_way(*WS_PAIRS)
def test_empty_frames_are_passed_on_and_never_made(options):
    """spec 8.3: an empty message or empty last fragment that the peer sent goes on; a cut makes none."""
    frames = [
        Frame(1, b""),
        Frame(2, b"a", fin=False),
        Frame(0, b""),
        Frame(2, b"", fin=False),
        Frame(0, b"b"),
        Frame(2, b""),
    ]
    pair = Pair(**options)
    pair.send(TO_LISTENER, *frames)
    assert pair.read(TO_LISTENER) == frames
    for part in (1, 2, 5, 6, 7):
        pair = Pair(**options)
        data = b"".join(pair.frame(TO_LISTENER, frame) for frame in frames)
        for start in range(0, len(data), part):
            pair.feed(TO_LISTENER, data[start : start + part])
        assert pair.read(TO_LISTENER) == frames


def test_payload_does_not_wait_for_its_message():
    """spec 8.4: what has arrived of a frame leaves at once; its header does not go ahead alone."""
    pair = Pair()
    data = pair.frame(TO_LISTENER, Frame(2, b"abcdef", fin=False))
    assert pair.feed(TO_LISTENER, data[:6]) == b""
    assert pair.feed(TO_LISTENER, data[6:8]) == b"\x02\x06ab"
    assert pair.feed(TO_LISTENER, data[8:]) == b"cdef"
    assert pair.send(TO_LISTENER, Frame(0, b"g", fin=False)) == b"\x00\x01g"


@pytest.mark.parametrize(("sender", "listener"), WS_PAIRS)
def test_masks_by_role_and_reserved_bits_zero(sender, listener):
    """spec 8.5: unmasked towards clients, masked towards servers, RSV 0; RFC 6455 5.3: a fresh key for every frame."""
    pair = Pair(sender, listener)
    frames = [Frame(1, b"payload%d" % i) for i in range(50)]
    pair.send(TO_LISTENER, *frames)
    out = pair.output[TO_LISTENER]
    assert out[0] == 0x81
    if listener is SERVER:
        assert out == b"".join(oracle.encode(frame) for frame in frames)
        return
    assert pair.read(TO_LISTENER) == frames
    keys, at = set(), 0
    for frame in frames:
        keys.add(out[at + 2 : at + 6])
        at += 6 + len(frame.payload)
    assert len(keys) == len(frames)
    other = Pair(sender, listener)
    other.send(TO_LISTENER, frames[0])
    assert other.output[TO_LISTENER][2:6] not in keys  # seeded from the system, not from a constant


@pytest.mark.parametrize("sender", [SERVER, CLIENT])
@pytest.mark.parametrize("listener", list(LegKind))
def test_a_ping_is_answered_and_a_pong_swallowed(sender, listener):
    """spec 8.6: the Pong carries the Ping's payload; the other side sees neither."""
    pair = Pair(sender, listener)
    assert pair.send(TO_LISTENER, Frame(10, b"nobody asked"), Frame(9, b"are you there?")) == b""
    assert pair.events[TO_LISTENER] == StepEvent.CONTROL_OWED_BACK
    assert pair.session.owes_control(TO_SENDER)
    assert not pair.session.owes_control(TO_LISTENER)
    pong = pair.control(TO_SENDER)
    assert pair.read(TO_SENDER, pong) == [Frame(10, b"are you there?")]
    assert not pair.session.owes_control(TO_SENDER)
    assert pair.control(TO_SENDER) == b""


def test_pings_that_come_together_are_all_answered():
    """spec 8.6: in order; the Autobahn suite (case 2.10) sends ten at once and wants ten Pongs."""
    pair = Pair()
    pair.send(TO_LISTENER, *[Frame(9, b"payload-%d" % i) for i in range(10)])
    assert pair.read(TO_SENDER, pair.control(TO_SENDER)) == [Frame(10, b"payload-%d" % i) for i in range(10)]


@pytest.mark.parametrize(("size", "kept"), [(0, 128), (3, 32), (9, 12), (62, 2), (63, 2), (64, 1), (125, 1)])
def test_a_flood_of_pings_keeps_its_last_ones(size, kept):
    """spec 8.6: the latest Pings are answered (RFC 6455 5.5.3 allows it), so that a flood of them costs 128 bytes."""
    pair = Pair()
    pings = [(b"%03d" % i).ljust(size, b"!")[:size] for i in range(1000)]
    pair.send(TO_LISTENER, *[Frame(9, ping) for ping in pings])
    assert pair.read(TO_SENDER, pair.control(TO_SENDER)) == [Frame(10, ping) for ping in pings[-kept:]]


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 6, 7, 130])
def test_a_ping_of_125_bytes_cut_anywhere(cut):
    """spec 8.6: control frames may arrive in pieces, inside a message too."""
    pair = Pair()
    ping = bytes(range(125))
    data = b"".join(pair.frame(TO_LISTENER, f) for f in (Frame(1, b"a", fin=False), Frame(9, ping), Frame(0, b"b")))
    pair.feed(TO_LISTENER, data[: 7 + cut])
    pair.feed(TO_LISTENER, data[7 + cut :])
    assert pair.read(TO_LISTENER) == [Frame(1, b"a", fin=False), Frame(0, b"b")]
    assert pair.read(TO_SENDER, pair.control(TO_SENDER)) == [Frame(10, ping)]


def test_a_pong_never_stands_inside_a_frame():
    """spec 8.6, failures/pong-behind-data: it waits for the end of the frame that is on its way, and for no more."""
    pair = Pair()
    data = pair.frame(TO_SENDER, Frame(2, b"0123456789"))
    pair.feed(TO_SENDER, data[:-4])
    pair.send(TO_LISTENER, Frame(9, b"ping"))
    assert pair.control(TO_SENDER) == b""
    assert pair.session.owes_control(TO_SENDER)
    pair.feed(TO_SENDER, data[-4:] + pair.frame(TO_SENDER, Frame(2, b"next")))
    assert pair.read(TO_SENDER) == [Frame(2, b"0123456789"), Frame(10, b"ping"), Frame(2, b"next")]


def test_a_pong_fits_between_the_pieces_of_a_split_frame():
    """failures/pong-behind-data: 64 KiB is all that a Pong can have in front of it."""
    pair = Pair()
    payload = bytes(3 * LIMIT)
    data = pair.frame(TO_SENDER, Frame(2, payload))
    pair.feed(TO_SENDER, data[: LIMIT + 20])
    pair.send(TO_LISTENER, Frame(9, b"!"))
    pair.feed(TO_SENDER, data[LIMIT + 20 :])
    assert [frame.opcode for frame in pair.read(TO_SENDER)] == [2, 0, 10, 0]


@in_every_way()
def test_close_is_forwarded_verbatim_and_not_answered(options):
    """spec 8.7: code and reason as they came; that direction is done, the other one stays open until its own Close."""
    for direction in Direction:
        pair = Pair(**options)
        back = BACK[direction]
        payload = (1000 if pair.kind[back] is RAW else 3000).to_bytes(2, "big") + "tschüss".encode()
        if pair.kind[direction] is RAW:
            pair.eof(direction)
        else:
            pair.send(direction, Frame(8, payload), Frame(1, b"too late"), Frame(9, b"too late"))
        assert pair.events[direction] == StepEvent.DIRECTION_FINISHED | StepEvent.SOURCE_FINISHED
        if pair.kind[back] is RAW:
            assert pair.output[direction] == b""
        else:
            assert pair.read(direction) == [Frame(8, b"\x03\xe8" if pair.kind[direction] is RAW else payload)]
        assert not pair.session.owes_control(back)
        assert not pair.session.is_finished

        pair.send(back, Frame(2, b"the reply after the half-close"), Frame(2, b"and more"))
        if pair.kind[back] is RAW:
            pair.eof(back)
        else:
            pair.send(back, Frame(8, b""))
        assert pair.session.is_finished
        assert b"the reply after the half-close" in (
            pair.output[back] if pair.kind[direction] is RAW else b"".join(frame.payload for frame in pair.read(back))
        )
        pair.eof(direction)  # what a peer does once it has both Closes
        pair.eof(back)
        assert not (pair.events[direction] | pair.events[back]) & StepEvent.ABORT
        assert pair.session.is_finished


@pytest.mark.parametrize(("sender", "listener"), WS_PAIRS)
def test_an_empty_close_stays_empty(sender, listener):
    """spec 8.7: an empty close payload is forwarded empty."""
    pair = Pair(sender, listener)
    pair.send(TO_LISTENER, Frame(8, b""))
    assert pair.read(TO_LISTENER) == [Frame(8, b"")]
    assert pair.session.statistics().to_listener.close_code is None


def test_what_comes_behind_a_close_is_ignored_and_counted():
    """spec 8.7, RFC 6455 5.5.1: also bytes that are no frames at all."""
    pair = Pair()
    close = pair.frame(TO_LISTENER, Frame(8, b"\x03\xe8"))
    pair.feed(TO_LISTENER, close + b"\xff" * 10)
    pair.feed(TO_LISTENER, b"\xff" * 7)
    statistics = pair.session.statistics().to_listener
    assert statistics.bytes_discarded == 17
    assert statistics.bytes_in == len(close) + 17
    assert statistics.close_code == 1000
    assert pair.session.failure is None


def test_no_pong_behind_a_close():
    """RFC 6455 5.5.1, spec 8.7: a leg that got the other side's Close gets nothing more, not even a Pong."""
    pair = Pair()
    pair.send(TO_SENDER, Frame(8, b"\x03\xe8"))
    pair.send(TO_LISTENER, Frame(9, b"?"), Frame(2, b"still going"))
    assert pair.events[TO_LISTENER] == StepEvent(0)
    assert pair.control(TO_SENDER) == b""
    assert pair.read(TO_LISTENER) == [Frame(2, b"still going")]


@in_every_way()
def test_an_end_without_close_is_an_abort(options):
    """spec 8.8: no Close is made up for a WebSocket leg that ends without one."""
    pair = Pair(**options)
    if pair.kind[TO_LISTENER] is RAW:
        return
    pair.send(TO_LISTENER, Frame(2, b"last words"))
    before = pair.output[TO_LISTENER]
    pair.eof(TO_LISTENER)
    assert pair.events[TO_LISTENER] == StepEvent.ABORT | StepEvent.SOURCE_FINISHED
    assert pair.output[TO_LISTENER] == before
    assert not pair.session.is_finished
    pair.session.close(1001, b"")
    assert pair.send(TO_SENDER, Frame(2, b"x"), Frame(9, b"x")) == b""
    assert pair.control(TO_SENDER) == pair.control(TO_LISTENER) == b""
    assert pair.eof(TO_SENDER) == b""


def test_an_end_inside_a_frame_is_an_abort():
    """spec 8.8: half a frame and then nothing."""
    pair = Pair()
    pair.feed(TO_LISTENER, pair.frame(TO_LISTENER, Frame(2, b"0123456789"))[:-3])
    pair.eof(TO_LISTENER)
    assert StepEvent.ABORT in pair.events[TO_LISTENER]


def test_room_is_never_more_than_one_buffer():
    """spec 8.9: what does not fit is left in the buffer until the output was sent, whatever the frames grow to."""
    pair = Pair(CLIENT, CLIENT)
    buffer = pool.take()
    data = b"\x82\x00" * 32_768
    buffer.window[:] = data
    step = pair.session.translate(TO_LISTENER, buffer, len(data))
    out, rounds = bytes(step.output), 1
    while step.more:
        assert step.consumed > 0
        step = pair.session.resume(TO_LISTENER, buffer)
        out += bytes(step.output)
        rounds += 1
    pool.give(buffer)
    assert rounds < 20
    assert len(out) == 6 * 32_768
    assert oracle.read(out[:600], masked=True) == [Frame(2, b"")] * 100


def test_very_small_frames():
    """spec 8.10: 66 000 continuation frames of one byte, in few receives."""
    pair = Pair()
    frames = [Frame(2, b"0", fin=False)] + [Frame(0, b"x", fin=False)] * 65_998 + [Frame(0, b"z")]
    data = b"".join(oracle.encode(frame, b"\1\2\3\4") for frame in frames)
    pair.feed(TO_LISTENER, data)
    assert pair.output[TO_LISTENER] == b"".join(oracle.encode(frame) for frame in frames)
    assert pair.session.statistics().to_listener.frames_out == 66_000


def test_an_idle_session_owes_nothing():
    """spec 8.11: nothing is sent, nothing is asked for."""
    pair = Pair()
    assert pair.control(TO_LISTENER) == pair.control(TO_SENDER) == b""
    assert pair.events[TO_LISTENER] == pair.events[TO_SENDER] == StepEvent(0)


# Broken rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        (b"\xc1\x80\0\0\0\0", 1002),
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\x81\x01x", 1002),
        (b"\x80\x80\0\0\0\0", 1002),
        (b"\x89\xfe\0\x7e\0\0\0\0", 1002),
        (b"\x82\xfe\0\x01\0\0\0\0x", 1002),
        (b"\x88\x81\0\0\0\0x", 1002),
        (b"\x88\x82\0\0\0\0\x03\xed", 1002),
        (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007),
    ],
)
@pytest.mark.parametrize("in_place", [True, False])
def test_protocol_error_closes_the_offender(data, close_code, in_place):
    """spec 13/protocol-error: 1002 (1007 for text) to the peer that breaks the protocol, ABORT for the other one."""
    for cut in range(len(data) + 1):
        pair = Pair(in_place=in_place)
        pair.send(TO_LISTENER, Frame(1, b"fine"))
        pair.feed(TO_LISTENER, data[:cut])
        pair.feed(TO_LISTENER, data[cut:] + b"more")
        assert pair.events[TO_LISTENER] == (
            StepEvent.PROTOCOL_ERROR | StepEvent.CONTROL_OWED_BACK | StepEvent.SOURCE_FINISHED
        )
        assert pair.read(TO_LISTENER) == [Frame(1, b"fine")]
        assert pair.session.failure.close_code == close_code
        assert pair.session.failure.section
        assert not pair.session.is_finished
        pair.send(TO_SENDER, Frame(1, b"to nobody"))
        pair.control(TO_SENDER)
        assert pair.read(TO_SENDER) == [Frame(8, close_code.to_bytes(2, "big"))]
        assert pair.control(TO_LISTENER) == b""


def test_the_close_of_an_offender_can_be_worded():
    """spec 13/reason: the relay's own Close, also for a broken rule, takes a reason with the tracking id."""
    pair = Pair()
    pair.feed(TO_LISTENER, b"\xc1\x80")
    pair.session.close(1002, b"RSV. TrackingId:1_G0")
    assert pair.read(TO_SENDER, pair.control(TO_SENDER)) == [Frame(8, b"\x03\xeaRSV. TrackingId:1_G0")]
    assert not pair.session.owes_control(TO_LISTENER)


def test_an_offender_in_the_middle_of_a_frame_is_only_cut():
    """spec 13/protocol-error: the 1002 has no place inside a frame that will never be finished."""
    pair = Pair()
    pair.feed(TO_SENDER, pair.frame(TO_SENDER, Frame(2, b"0123456789"))[:-3])
    pair.feed(TO_LISTENER, b"\xc1\x80")
    assert pair.events[TO_LISTENER] == StepEvent.PROTOCOL_ERROR | StepEvent.SOURCE_FINISHED
    assert pair.control(TO_SENDER) == b""


def test_an_offender_that_got_a_close_gets_no_second_one():
    """spec 13/protocol-error, RFC 6455 5.5.1: it breaks the protocol after the other side's Close."""
    pair = Pair()
    pair.send(TO_SENDER, Frame(8, b"\x03\xe8"))
    pair.feed(TO_LISTENER, b"\xc1\x80")
    assert StepEvent.PROTOCOL_ERROR in pair.events[TO_LISTENER]
    assert pair.control(TO_SENDER) == b""


# The relay closes ----------------------------------------------------------------------------------------------------


@in_every_way()
def test_bytes_have_no_word_for_a_close_that_is_none(options):
    """spec 8.7, 8.8: what was broken off must not look like an end of data, and the code stays to be read."""
    for direction in Direction:
        for payload, is_end in ((b"", True), (b"\x03\xe8", True), (b"\x03\xe9bye", False), (b"\x0f\xa0", False)):
            pair = Pair(**options)
            if pair.kind[direction] is RAW or pair.kind[BACK[direction]] is not RAW:
                continue
            pair.send(direction, Frame(2, b"half of someth"))
            for byte in pair.frame(direction, Frame(8, payload)):
                pair.feed(direction, bytes([byte]))
            statistics = pair.session.statistics()
            counters = statistics.to_listener if direction is TO_LISTENER else statistics.to_sender
            code = int.from_bytes(payload[:2], "big") or None
            assert pair.output[direction] == b"half of someth"
            assert bool(pair.events[direction] & StepEvent.ABORT) is not is_end
            assert bool(pair.events[direction] & StepEvent.DIRECTION_FINISHED) is is_end
            assert counters.close_code == code
            pair.eof(BACK[direction])
            pair.eof(direction)
            assert pair.session.is_finished is is_end


@in_every_way()
def test_relay_made_close(options):
    """spec 13/shutdown: 1001 to both, at a frame boundary; afterwards data is dropped until each peer's Close."""
    pair = Pair(**options)
    half = pair.frame(TO_LISTENER, Frame(2, b"0123456789"))
    is_cut = pair.kind[TO_LISTENER] is not RAW and pair.kind[TO_SENDER] is not RAW
    pair.feed(TO_LISTENER, half[:-3])
    pair.session.close(1001, b"bye. TrackingId:7_G0")
    close = Frame(8, b"\x03\xe9bye. TrackingId:7_G0")
    for direction in Direction:
        assert pair.session.owes_control(direction)
        pair.control(direction)
    assert pair.session.owes_control(TO_LISTENER) == is_cut
    pair.feed(TO_LISTENER, half[-3:])
    pair.send(TO_LISTENER, Frame(1, b"dropped"), Frame(9, b"dropped"), Frame(2, b"dropped", fin=False))
    pair.send(TO_SENDER, Frame(1, b""), Frame(1, b"dropped"))
    assert not pair.session.is_finished
    for direction in Direction:
        if pair.kind[BACK[direction]] is RAW:
            assert b"dropped" not in pair.output[direction]
        else:
            frames = pair.read(direction)
            assert frames[-1] == close
            assert all(frame.opcode == 8 or b"dropped" not in frame.payload for frame in frames)
        assert pair.events[direction] & StepEvent.DIRECTION_FINISHED
        assert not pair.events[direction] & StepEvent.SOURCE_FINISHED
        if pair.kind[direction] is RAW:
            pair.eof(direction)
        else:
            pair.send(direction, Frame(8, b"\x03\xe9") if direction is TO_LISTENER else Frame(8, b""))
        assert pair.events[direction] & StepEvent.SOURCE_FINISHED
        assert not pair.session.owes_control(direction)
    assert pair.session.is_finished
    assert pair.session.failure is None


def test_relay_made_close_after_one_side_has_closed():
    """spec 13/shutdown: a leg that has its Close gets no second one (RFC 6455 5.5.1)."""
    pair = Pair()
    pair.send(TO_LISTENER, Frame(8, b"\x03\xe8"))
    pair.session.close(1001, b"stop")
    pair.session.close(1011, b"ignored")
    assert pair.control(TO_LISTENER) == b""
    assert pair.read(TO_SENDER, pair.control(TO_SENDER)) == [Frame(8, b"\x03\xe9stop")]
    pair.send(TO_SENDER, Frame(8, b"\x03\xe9"))
    assert pair.session.is_finished
    statistics = pair.session.statistics()
    assert (statistics.to_listener.close_code, statistics.to_sender.close_code) == (1000, 1001)


def test_bad_frames_after_a_relay_made_close_change_nothing():
    """spec 13/shutdown: a peer that breaks the protocol now is only no longer read, the other leg ends well."""
    pair = Pair()
    pair.session.close(1001, b"")
    pair.control(TO_SENDER)
    pair.feed(TO_LISTENER, b"\xff\xff")
    assert pair.session.failure is None
    assert pair.events[TO_LISTENER] == StepEvent.SOURCE_FINISHED | StepEvent.DIRECTION_FINISHED
    assert pair.read(TO_LISTENER) == [Frame(8, b"\x03\xe9")]
    pair.eof(TO_SENDER)
    assert StepEvent.ABORT not in pair.events[TO_SENDER]
    assert pair.session.is_finished


def test_an_end_in_the_middle_of_a_frame_after_a_relay_made_close_is_an_abort():
    """spec 8.8, spec 13/shutdown: a Close cannot follow half a frame."""
    pair = Pair()
    pair.feed(TO_LISTENER, pair.frame(TO_LISTENER, Frame(2, b"0123456789"))[:-3])
    pair.session.close(1001, b"")
    pair.eof(TO_LISTENER)
    assert StepEvent.ABORT in pair.events[TO_LISTENER]


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, b""), (999, b""), (-1, b""), (70_000, b""), (1001, b"x" * 124), (1001, b"\xff")]
)
def test_a_close_that_may_not_be_sent(code, reason):
    """spec 13/reason: 123 bytes of UTF-8, and a code that may travel (RFC 6455 7.4.1)."""
    with pytest.raises(LocalProtocolError):
        Pair().session.close(code, reason)


# RAW legs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", list(LegKind))
@pytest.mark.parametrize("in_place", [True, False])
def test_raw_bytes_become_binary_messages(listener, in_place):
    """spec 8.1, spec 8.2: one receive is one binary message, or several of at most 65 536 bytes."""
    data = random.Random(3).randbytes(150_000)
    pair = Pair(RAW, listener, in_place=in_place)
    pair.feed(TO_LISTENER, b"hello")
    pair.feed(TO_LISTENER, data)
    pair.feed(TO_LISTENER, b"")
    if listener is RAW:
        assert pair.output[TO_LISTENER] == b"hello" + data
        return
    frames = pair.read(TO_LISTENER)
    assert frames[0] == Frame(2, b"hello")
    assert b"".join(frame.payload for frame in frames[1:]) == data
    assert all(frame.opcode == 2 and frame.fin and 0 < len(frame.payload) <= LIMIT for frame in frames)


@pytest.mark.parametrize("sender", [SERVER, CLIENT])
def test_messages_become_raw_bytes(sender):
    """spec 8.4: payloads only, of text and binary alike, as they arrive."""
    pair = Pair(sender, RAW)
    pair.send(
        TO_LISTENER,
        Frame(1, b"a", fin=False),
        Frame(9, b"p"),
        Frame(0, b"", fin=False),
        Frame(0, b"b"),
        Frame(2, b"c" * 70_000),
    )
    assert pair.output[TO_LISTENER] == b"ab" + b"c" * 70_000


# The property --------------------------------------------------------------------------------------------------------

sizes = st.one_of(
    st.integers(0, 20),
    st.sampled_from([124, 125, 126, 127, 128, 1000, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1]),
)


@st.composite
def talks(draw):
    """What one source says: data frames in order, control frames between them, perhaps a Close."""
    frames = []
    for _ in range(draw(st.integers(0, 4))):
        opcode = draw(st.sampled_from([1, 2]))
        fragments = draw(st.lists(sizes, min_size=1, max_size=3))
        for number, size in enumerate(fragments):
            payload = random.Random(size + number).randbytes(size)
            frames.append(Frame(opcode if number == 0 else 0, payload, fin=number == len(fragments) - 1))
            if draw(st.integers(0, 4)) == 0:
                frames.append(Frame(draw(st.sampled_from([9, 10])), draw(st.binary(max_size=125))))
    if draw(st.booleans()):
        frames.append(Frame(8, draw(st.sampled_from([b"", b"\x03\xe8", b"\x0b\xb8" + b"r" * 123]))))
    return frames


def split(frame):
    """A data frame as it must leave: whole up to the limit, else in pieces of it."""
    payload = frame.payload
    pieces = [payload[i : i + LIMIT] for i in range(0, len(payload), LIMIT)] or [b""]
    return [
        Frame(0 if number else frame.opcode, piece, frame.fin and number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]


def _breaks_off(frame, pair, direction):
    """Whether a Close would abort the session, which has a test of its own."""
    return frame.opcode == 8 and pair.kind[BACK[direction]] is RAW and frame.payload[:2] not in (b"", b"\x03\xe8")


@given(
    kinds=st.tuples(st.sampled_from(list(LegKind)), st.sampled_from(list(LegKind))),
    talk=st.fixed_dictionaries({direction: talks() for direction in Direction}),
    in_place=st.booleans(),
    which=st.sampled_from([pool, small_pool]),
    seed=st.integers(0, 1 << 30),
)
def test_whatever_is_said_arrives(kinds, talk, in_place, which, seed):
    """spec 8.1, spec 8.2, spec 8.3, spec 8.5, spec 8.6, spec 8.7: both directions, cut anywhere, every pair of legs."""
    pair = Pair(*kinds, in_place=in_place, pool=which)
    rng = random.Random(seed)
    left = {
        direction: b"".join(
            pair.frame(direction, frame)
            for frame in talk[direction]
            if (pair.kind[direction] is not RAW or frame.opcode < 3) and not _breaks_off(frame, pair, direction)
        )
        for direction in Direction
    }
    while any(left.values()):
        direction = rng.choice([d for d in Direction if left[d]])
        size = rng.choice([1, 2, 3, 7, 60, 1000, 66_000, 66_000, 200_000])
        pair.feed(direction, left[direction][:size])
        left[direction] = left[direction][size:]
        if pair.session.owes_control(BACK[direction]) and rng.random() < 0.7:
            pair.control(BACK[direction])
    for direction in Direction:
        pair.control(direction)

    for direction in Direction:
        said = talk[direction]
        data = [frame for frame in said if frame.opcode < 3]
        source, destination = pair.kind[direction], pair.kind[BACK[direction]]
        statistics = pair.session.statistics()
        counters = statistics.to_listener if direction is TO_LISTENER else statistics.to_sender
        assert counters.payload_bytes == sum(len(frame.payload) for frame in data)
        assert counters.bytes_out == len(pair.output[direction])
        if destination is RAW:
            assert pair.output[direction] == b"".join(frame.payload for frame in data)
            continue
        got = pair.read(direction)
        assert counters.frames_out == len(got)
        closes = [frame for frame in got if frame.opcode == 8]
        pings = [frame.payload for frame in talk[BACK[direction]] if frame.opcode == 9]
        pongs = iter(pings)
        assert all(frame.payload in pongs for frame in got if frame.opcode == 10)  # in order, some left out
        if source is RAW:
            assert b"".join(frame.payload for frame in got if frame.opcode < 3) == b"".join(f.payload for f in data)
            assert all(frame.payload for frame in got if frame.opcode < 3)
        else:
            assert [frame for frame in got if frame.opcode < 3] == [piece for frame in data for piece in split(frame)]
            assert closes == [frame for frame in said if frame.opcode == 8]
            assert counters.frames_in == len(said)
        if pings and not closes and not any(frame.opcode == 8 for frame in talk[BACK[direction]]):
            assert [frame for frame in got if frame.opcode == 10][-1].payload == pings[-1]


# The border ----------------------------------------------------------------------------------------------------------


def test_one_receive_is_one_crossing(monkeypatch):
    """A thousand frames, a ping and a close in one receive: still one call."""
    pair = Pair()
    data = b"".join(pair.frame(TO_LISTENER, Frame(1, b"x" * 20)) for _ in range(1000))
    data += pair.frame(TO_LISTENER, Frame(9, b"p")) + pair.frame(TO_LISTENER, Frame(8, b""))
    buffer = pool.take()
    buffer.window[: len(data)] = data
    lib = CountingLib(session.lib)
    monkeypatch.setattr(session, "lib", lib)
    step = pair.session.translate(TO_LISTENER, buffer, len(data))
    assert step.consumed == len(data)
    assert lib.calls == ["rc_session_translate"]
    step = pair.session.translate_from(TO_SENDER, pair.frame(TO_SENDER, Frame(1, b"x")), 0, buffer)
    assert lib.calls == ["rc_session_translate", "rc_session_translate_from"]
    pool.give(buffer)


def test_one_frame_per_receive_moves_no_payload():
    """The header is put right against its payload, which stays where it was received."""
    pair = Pair()
    buffer = pool.take()
    data = pair.frame(TO_LISTENER, Frame(2, b"x" * 1000))
    buffer.window[: len(data)] = data
    step = pair.session.translate(TO_LISTENER, buffer, len(data))
    assert bytes(buffer.window[len(data) - 1000 : len(data)]) == b"x" * 1000
    assert bytes(step.output) == b"\x82\x7e\x03\xe8" + b"x" * 1000
    pool.give(buffer)


def test_the_output_never_leaves_the_slab():
    """Input at the very end of a window, output that grows most: a header that began in the previous receive."""
    payload = bytes(80 - 1)
    for cut in range(1, 8):
        pair = Pair(CLIENT, CLIENT, pool=small_pool)
        data = pair.frame(TO_LISTENER, Frame(2, payload)) + pair.frame(TO_LISTENER, Frame(1, b"t"))
        pair.feed(TO_LISTENER, data[:cut])
        pair.feed(TO_LISTENER, data[cut:])
        assert pair.read(TO_LISTENER) == [Frame(2, payload), Frame(1, b"t")]
    assert HEADROOM_BYTES > 14 + 131


def test_misuse_is_told():
    pair = Pair()
    buffer = pool.take()
    with pytest.raises(LocalProtocolError):
        pair.session.translate(TO_LISTENER, buffer, 65_537)
    with pytest.raises(LocalProtocolError):
        pair.session.translate(TO_LISTENER, buffer, -1)
    with pytest.raises(LocalProtocolError):
        pair.session.translate_from(TO_LISTENER, b"abc", 4, buffer)
    with pytest.raises(LocalProtocolError):
        pair.session.translate_from(TO_LISTENER, b"abc", -1, buffer)
    pool.give(buffer)
    for call in (
        lambda: pair.session.translate(TO_LISTENER, buffer, 0),
        lambda: pair.session.resume(TO_LISTENER, buffer),
        lambda: pair.session.translate_from(TO_LISTENER, b"", 0, buffer),
        lambda: pair.session.receive_eof(TO_LISTENER, buffer),
        lambda: pair.session.control(TO_LISTENER, buffer),
    ):
        with pytest.raises(LocalProtocolError):
            call()


def test_counters():
    pair = Pair(SERVER, RAW)
    pair.send(TO_LISTENER, Frame(1, b"abc"), Frame(9, b"p"), Frame(8, b"\x03\xe8"))
    pair.feed(TO_SENDER, b"reply")
    pair.control(TO_SENDER)
    statistics = pair.session.statistics()
    assert statistics.to_listener.frames_in == 3
    assert statistics.to_listener.frames_out == 0
    assert statistics.to_listener.bytes_in == 9 + 7 + 8
    assert statistics.to_listener.bytes_out == statistics.to_listener.payload_bytes == 3
    assert statistics.to_sender.frames_in == 0
    assert statistics.to_sender.frames_out == 1
    assert statistics.to_sender.bytes_out == 7
