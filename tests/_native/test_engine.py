"""The thin face of the engine: what goes in and comes out of C whole, and what is refused before it gets there."""

from __future__ import annotations

import errno
import gc
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from relaycore._native import Engine, EngineEnd, Job, Session, engine_is_available
from relaycore.errors import LocalProtocolError
from relaycore.vocab import CloseBy, LegKind

pytestmark = pytest.mark.skipif(not engine_is_available(), reason="no epoll")

MASK = b"\x00\x00\x00\x00"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(threads=1, buffers=2, buffer_bytes=4096)
    yield engine
    engine.shut()


class Legs:
    """A brain, both sockets of a job, and their far ends."""

    def __init__(self, sender: LegKind = LegKind.WS_SERVER, listener: LegKind = LegKind.WS_SERVER) -> None:
        self.brain = Session(sender, listener)
        pairs = [socket.socketpair() for _ in range(2)]
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        for near in self.near:
            near.setblocking(False)
        for far in self.far:
            # Not settimeout(), with which MSG_WAITALL does not wait.
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 5, 0))

    def job(self, token: int = 7, **options) -> Job:
        return Job(self.brain, token, self.near[0].fileno(), self.near[1].fileno(), **options)

    def close(self) -> None:
        for end in (*self.near, *self.far):
            end.close()


@pytest.fixture
def legs() -> Iterator[Legs]:
    legs = Legs()
    yield legs
    legs.close()


def wait(engine: Engine, count: int = 1) -> list[int]:
    """The next tokens."""
    tokens: list[int] = []
    while len(tokens) < count:
        assert select.select([engine], [], [], 5)[0], "no completion"
        tokens += engine.completions()
    return tokens


def close_frame(code: int) -> bytes:
    return b"\x88\x82" + MASK + code.to_bytes(2, "big")


def test_a_job_comes_back_with_its_token_and_its_end(engine: Engine, legs: Legs) -> None:
    job = legs.job(2**64 - 1)
    engine.submit(job)
    assert engine.statistics().jobs == 1
    legs.far[0].sendall(b"\x82\x85" + MASK + b"hello" + close_frame(1000))
    legs.far[1].sendall(close_frame(3000))
    assert legs.far[1].recv(11, socket.MSG_WAITALL) == b"\x82\x05hello\x88\x02\x03\xe8"
    assert legs.far[0].recv(4, socket.MSG_WAITALL) == b"\x88\x02\x0b\xb8"
    for far in legs.far:
        far.shutdown(socket.SHUT_WR)
    assert wait(engine) == [2**64 - 1]
    assert not select.select([engine], [], [], 0)[0]
    assert engine.completions() == []
    assert job.end is EngineEnd.CLOSED
    assert job.by in (CloseBy.SENDER, CloseBy.LISTENER)
    counts = engine.statistics()
    assert (counts.jobs, counts.completed, counts.buffers_in_use, counts.commands) == (0, 1, 0, 1)
    assert (counts.bytes_in, counts.bytes_out) == (11 + 8 + 8, 7 + 4 + 4)
    assert legs.brain.statistics().to_listener.payload_bytes == 5


@pytest.mark.parametrize("leg", [0, 1])
def test_who_ended_it_and_who_broke_a_rule_are_told_apart(engine: Engine, leg: int) -> None:
    for far_end, end in ((None, EngineEnd.ABORTED), (b"\xff\xff", EngineEnd.PROTOCOL_ERROR)):
        legs = Legs()
        job = legs.job()
        engine.submit(job)
        if far_end is None:
            legs.far[leg].close()
        else:
            legs.far[leg].sendall(far_end)
        wait(engine)
        names = CloseBy.SENDER, CloseBy.LISTENER
        assert (job.end, job.by) == (end, names[leg])
        if end is EngineEnd.PROTOCOL_ERROR:
            assert job.offender is names[leg]
        legs.close()


def test_early_bytes_of_both_legs_go_in_first_and_are_kept_alive(engine: Engine, legs: Legs) -> None:
    early = b"".join(b"\x82\xfe\x03\xe8" + MASK + bytes([index]) * 1000 for index in range(50))
    job = legs.job(early=(early, b"\x81\x82" + MASK + b"hi"))
    del early
    gc.collect()
    engine.submit(job)
    for index in range(50):
        assert legs.far[1].recv(1004, socket.MSG_WAITALL) == b"\x82\x7e\x03\xe8" + bytes([index]) * 1000
    assert legs.far[0].recv(4, socket.MSG_WAITALL) == b"\x81\x02hi"
    engine.cancel(job)
    wait(engine)
    assert (job.end, job.by) == (EngineEnd.CANCELLED, CloseBy.RELAY)


def test_the_first_close_that_may_be_sent_counts_and_its_reason_is_kept(engine: Engine, legs: Legs) -> None:
    job = legs.job()
    engine.submit(job)
    for code, reason in ((1005, b""), (-1, b""), (1 << 16, b""), (1001, b"x" * 124), (1001, b"\xff")):
        with pytest.raises(LocalProtocolError, match="close code"):
            engine.close(job, code, reason)
    # Half a frame is on its way, so that the engine needs the reason later.
    legs.far[0].sendall(b"\x82\x84" + MASK + b"ab")
    assert legs.far[1].recv(4, socket.MSG_WAITALL) == b"\x82\x04ab"
    engine.close(job, 1001, b"".join([b"go", b"ing"]))
    engine.close(job, 1011, b"too late")
    gc.collect()
    assert legs.far[0].recv(9, socket.MSG_WAITALL) == b"\x88\x07\x03\xe9going"
    legs.far[0].sendall(b"cd" + close_frame(1001))
    assert legs.far[1].recv(11, socket.MSG_WAITALL) == b"cd\x88\x07\x03\xe9going"
    legs.far[1].sendall(close_frame(1001))
    for far in legs.far:
        far.shutdown(socket.SHUT_WR)
    wait(engine)
    assert (job.end, job.by) == (EngineEnd.RELAY_CLOSED, CloseBy.RELAY)
    engine.close(job, 1001, b"it is over")
    engine.cancel(job)
    assert engine.completions() == []
    assert job.end is EngineEnd.RELAY_CLOSED


def test_limits_are_seconds_and_a_tiny_one_is_one(engine: Engine) -> None:
    for options, end in (
        ({"idle": 0.03}, EngineEnd.IDLE_TIMEOUT),
        ({"idle": 0.0001}, EngineEnd.IDLE_TIMEOUT),
        ({"half_closed": 0.03}, EngineEnd.HALF_CLOSED_TIMEOUT),
        ({"half_closed": 0.0001, "idle": 1e12}, EngineEnd.HALF_CLOSED_TIMEOUT),
        ({"close": 0.0}, EngineEnd.RELAY_CLOSED),
    ):
        legs = Legs()
        job = legs.job(**options)
        engine.submit(job)
        if "half_closed" in options:
            legs.far[1].sendall(close_frame(1000))
        if "close" in options:
            engine.close(job, 1001, b"")
        wait(engine)
        assert job.end is end, options
        assert job.by is (CloseBy.LISTENER if "half_closed" in options else CloseBy.RELAY), options
        legs.close()


def test_what_the_system_refuses_says_why(engine: Engine, legs: Legs) -> None:
    twice = Job(legs.brain, 1, legs.near[0].fileno(), legs.near[0].fileno())
    gone = Job(legs.brain, 2, legs.near[0].fileno(), 1_000_000)
    for job, why in ((twice, errno.EEXIST), (gone, errno.EBADF)):
        engine.submit(job)
        wait(engine)
        assert (job.end, job.error) == (EngineEnd.REFUSED, why)
    job = legs.job()  # neither of the two is watched any more
    engine.submit(job)
    legs.far[0].close()
    wait(engine)
    assert job.end is EngineEnd.ABORTED


def test_tokens_come_sixty_four_at_a_time(engine: Engine) -> None:
    several = [Legs() for _ in range(150)]
    jobs = [legs.job(token) for token, legs in enumerate(several)]
    for job in jobs:
        engine.submit(job)
        engine.cancel(job)
    engine.shut()
    batches = []
    while batch := engine.completions():
        batches.append(batch)
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert sorted(token for batch in batches for token in batch) == list(range(150))
    assert {job.end for job in jobs} == {EngineEnd.CANCELLED}
    for legs in several:
        legs.close()


def test_an_engine_that_was_shut_takes_nothing_more(engine: Engine, legs: Legs) -> None:
    job = legs.job(1)
    engine.submit(job)
    engine.shut()
    engine.shut()
    assert engine.completions() == [1]
    assert job.end is EngineEnd.CANCELLED
    with pytest.raises(LocalProtocolError, match="shut"):
        engine.submit(legs.job(2))
    engine.cancel(job)
    engine.close(job, 1001, b"")
    assert engine.completions() == []
    assert engine.statistics().jobs == 0


def test_an_engine_that_is_forgotten_ends_its_threads(legs: Legs) -> None:
    engine = Engine(threads=2, buffers=2)
    job = legs.job()
    engine.submit(job)
    del engine
    gc.collect()
    assert job.end is EngineEnd.CANCELLED


@pytest.mark.parametrize(
    ("threads", "buffers", "buffer_bytes"),
    [
        (0, 1, 4096),
        (-1, 1, 4096),
        (65, 1, 4096),
        (1, 0, 4096),
        (1, -1, 4096),
        (1, 1, 4095),
        (1, 1, -1),
        (1, 1, 1 << 40),
    ],
)
def test_numbers_have_limits(threads: int, buffers: int, buffer_bytes: int) -> None:
    with pytest.raises(LocalProtocolError, match="no engine of"):
        Engine(threads=threads, buffers=buffers, buffer_bytes=buffer_bytes)
