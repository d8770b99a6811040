"""The engine as a Trio citizen: who owns a descriptor when, what cancellation and errors leave, and what work costs."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trustme
from peers import WirePeer, close_frame, frame
from stages import flood, legs, tcp_pair, unix_pair, until
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

import relaycore._native.engine as native_engine
import relaycore._native.session as native_session
from relaycore._native import Job
from relaycore.errors import LocalProtocolError
from relaycore.net.engine import Engine, engine_is_available, open_engine
from relaycore.net.mover import Mover
from relaycore.net.pool import BufferPool
from relaycore.net.session import EndReason, Session, SessionResult
from relaycore.vocab import CloseBy, LegKind

pytestmark = pytest.mark.skipif(not engine_is_available(), reason="no epoll")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One thread. At the end it must have nothing left."""
    async with open_engine(threads=1, buffers=16) as engine:
        yield engine
        assert engine.check_consistency() == []
        assert engine.statistics().jobs == 0
        assert engine.statistics().buffers_in_use == 0


class Runner:
    """A session over two sockets, whose other ends are blocking ones."""

    def __init__(self, pair=unix_pair, **options) -> None:
        near, self.far = zip(pair(), pair(), strict=True)
        self.near = near
        self.session = legs(near, **options)
        self.scope = trio.CancelScope()
        self.result: SessionResult | None = None
        self.done = trio.Event()

    async def run(self, mover: Engine | Mover) -> None:
        with self.scope:
            self.result = await mover.run(self.session)
        assert [stream.socket.fileno() for stream in self.near] == [-1, -1]
        self.done.set()

    def hang_up(self) -> None:
        for far in self.far:
            far.close()


def tcp_socket_pair() -> tuple[trio.SocketStream, socket.socket]:
    """As `unix_pair`, through loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near, _ = server.accept()
    return trio.SocketStream(trio.socket.from_stdlib_socket(near)), far


@pytest.fixture
def runners() -> Iterator[list[Runner]]:
    """Those that are put in have their far ends closed in the end."""
    made: list[Runner] = []
    yield made
    for runner in made:
        runner.hang_up()
        for stream in runner.near:
            stream.socket.close()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def threads() -> set[str]:
    """Those of engines, by the name that they are given; Trio's own come and go."""
    return {task.name for task in Path("/proc/self/task").iterdir() if _comm(task) == "rc_engine\n"}


def _comm(task: Path) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (task / "comm").read_text()
    return ""  # it has just ended


# Start and end ------------------------------------------------------------------------------------------------------


async def test_an_engine_that_has_ended_leaves_no_thread_and_no_descriptor() -> None:
    """failures: each restart leaks; fifty starts and ends leave the process as it was."""
    async with open_engine(threads=2):
        pass
    gc.collect()
    before = len(descriptors()), threads()
    for count in range(50):
        async with open_engine(threads=1 + count % 3, buffers=4) as engine:
            assert len(threads()) == len(before[1]) + 1 + count % 3
            near, far = zip(unix_pair(), unix_pair(), strict=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.run, legs(near))
                for end in far:
                    end.close()
        del engine
        gc.collect()
    assert (len(descriptors()), threads()) == before


@pytest.mark.parametrize("count", [0, 1, 4])
async def test_sessions_are_shared_out_among_the_threads(count: int, runners: list[Runner]) -> None:
    """spec 8: as many threads as were asked for, or one for each core; the bytes of each session stay in order."""
    before = threads()
    async with open_engine(threads=count, buffers=8) as engine, trio.open_nursery() as nursery:
        assert len(threads() - before) == (count or len(os.sched_getaffinity(0)))
        for _ in range(9):
            runners.append(runner := Runner())
            nursery.start_soon(runner.run, engine)
        await wait_all_tasks_blocked()
        for index, runner in enumerate(runners):
            runner.far[0].sendall(frame(2, bytes([index]) * 1000) + close_frame())
        for index, runner in enumerate(runners):
            expected = b"\x82\x7e\x03\xe8" + bytes([index]) * 1000 + b"\x88\x02\x03\xe8"
            assert runner.far[1].recv(len(expected), socket.MSG_WAITALL) == expected
            runner.hang_up()


@pytest.mark.parametrize(
    "numbers",
    [
        {"threads": -1},
        {"threads": 65},
        {"buffers": 0},
        {"buffers": -1},
        {"buffers": 1 << 21},
        {"buffer_bytes": 0},
        {"buffer_bytes": -1},
        {"buffer_bytes": 4095},
        {"buffer_bytes": (1 << 24) + 1},
        {"buffer_bytes": 1 << 40},
    ],
    ids=lambda numbers: "-".join(map(str, *numbers.items())),
)
async def test_numbers_that_make_no_engine_are_refused(numbers: dict[str, int]) -> None:
    """failures: a wrong number in a setting is found out by a crash."""
    before = len(descriptors()), threads()
    with pytest.raises(LocalProtocolError, match="no engine of"):
        async with open_engine(**{"threads": 1, **numbers}):
            raise AssertionError("it started")
    assert (len(descriptors()), threads()) == before


async def test_a_machine_with_more_cores_than_threads_are_allowed_gets_those(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(threads())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(96))
    async with open_engine():
        assert len(threads()) == before + native_engine.THREADS_MAX


async def test_descriptors_that_run_out_are_said_to_be_missing() -> None:
    """failures: a process without descriptors left dies; here the start is refused, and nothing stays behind."""
    before = len(descriptors()), threads()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] + 20, hard))
    try:
        with pytest.raises(MemoryError, match="64 threads"):
            async with open_engine(threads=64, buffers=64):
                raise AssertionError("it started")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (len(descriptors()), threads()) == before


# Cancellation -------------------------------------------------------------------------------------------------------


async def test_many_sessions_are_cancelled_at_once(engine: Engine, runners: list[Runner]) -> None:
    """spec 13: a server that is cancelled closes everything it has, two hundred sessions in one go."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                runners.append(runner := Runner())
                nursery.start_soon(runner.run, engine)
            await until(lambda: engine.statistics().jobs == 200)
            scope.cancel()
    assert scope.cancelled_caught
    assert engine.statistics().jobs == 0
    for runner in runners:
        assert runner.result is None
        assert [far.recv(1) for far in runner.far] == [b"", b""]


async def test_cancelling_everything_with_the_engine_inside_leaves_nothing(runners: list[Runner]) -> None:
    """spec 13: the engine itself stands in what is cancelled, and is the last to go."""
    gc.collect()
    before = threads()
    with trio.fail_after(20), trio.CancelScope() as scope:
        async with open_engine(threads=2, buffers=8) as engine, trio.open_nursery() as nursery:
            for _ in range(50):
                runners.append(runner := Runner())
                nursery.start_soon(runner.run, engine)
                if len(runners) % 2:
                    runner.far[0].setblocking(False)
                    runner.far[0].send(frame(2, b"x" * 100_000))
            await until(lambda: engine.statistics().jobs == 50)
            scope.cancel()
    assert scope.cancelled_caught
    assert threads() == before
    assert engine.check_consistency() == []
    for runner in runners:
        assert [stream.socket.fileno() for stream in runner.near] == [-1, -1]


async def test_cancellation_that_meets_the_end_has_one_outcome(engine: Engine, runners: list[Runner]) -> None:
    """failures: a cancelled request and its answer race, and the second one crashes; a thousand sessions try it."""
    source = random.Random(5)
    outcomes: Counter[str] = Counter()
    async with trio.open_nursery() as nursery:
        for _ in range(250):
            batch = [Runner() for _ in range(4)]
            runners += batch
            for runner in batch:
                nursery.start_soon(runner.run, engine)
            for _ in range(source.randrange(3)):
                await trio.lowlevel.checkpoint()
            for runner in batch:
                ends = source.sample([runner.scope.cancel, runner.far[0].close, runner.far[1].close], 3)
                if source.random() < 0.3:
                    runner.far[0].sendall(frame(2, b"x" * 50) + close_frame())
                    runner.far[1].sendall(close_frame())
                for end in ends[: source.randrange(2, 4)]:
                    end()
                    if source.random() < 0.2:
                        await trio.lowlevel.checkpoint()
                runner.hang_up()
            for runner in batch:
                await runner.done.wait()
                outcomes[runner.result.reason.value if runner.result else "cancelled"] += 1
    assert outcomes.keys() <= {"cancelled", "aborted", "closed"}
    assert outcomes["cancelled"] > 0
    assert outcomes["aborted"] > 0


async def test_a_cancelled_session_hears_of_its_end_although_its_task_cannot_run(engine: Engine) -> None:
    """spec 13: completions are taken by a task that nobody cancels, also when all around it is cancelled."""
    near, far = zip(unix_pair(), unix_pair(), strict=True)
    with trio.fail_after(5), trio.CancelScope() as scope:
        scope.cancel()
        await engine.run(legs(near))
    assert scope.cancelled_caught
    for end in far:
        assert end.recv(1) == b""
        end.close()


async def test_an_error_in_one_session_is_its_own(engine: Engine, runners: list[Runner]) -> None:
    """failures: one bad frame kills the process; the sessions of the same thread do not notice."""
    async with trio.open_nursery() as nursery:
        runners += [Runner() for _ in range(8)]
        for runner in runners:
            nursery.start_soon(runner.run, engine)
        well = runners[0]
        runners[1].far[0].sendall(b"\xff" * 64)
        runners[2].far[0].close()
        runners[3].scope.cancel()
        runners[4].session.close_nowait(1001, b"going")
        runners[5].far[1].sendall(frame(2, b"half")[:-1])
        runners[5].far[1].close()
        runners[6].far[1].sendall(b"\x00" * 64)
        runners[7].far[0].sendall(close_frame())
        for runner in runners[1:]:
            await trio.sleep(0.001)
            runner.hang_up()
            await runner.done.wait()
            well.far[0].sendall(frame(1, b"well?"))
            assert well.far[1].recv(100) == b"\x81\x05well?"
        reasons = [runner.result.reason.value if runner.result else None for runner in runners[1:]]
        assert reasons[0] == reasons[5] == "protocol_error"
        assert reasons[1] == reasons[4] == "aborted"
        assert reasons[2] is None
        well.hang_up()


async def test_a_task_that_fails_cancels_the_sessions_beside_it(engine: Engine, runners: list[Runner]) -> None:
    """spec 13: a fault of ours ends what depends on it, and is told once."""
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="ours")):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                runners.append(runner := Runner())
                nursery.start_soon(runner.run, engine)
            await until(lambda: engine.statistics().jobs == 5)
            raise RuntimeError("ours")
    assert engine.statistics().jobs == 0


# The engine ends before its sessions --------------------------------------------------------------------------------


async def test_sessions_that_outlive_their_engine_are_closed_by_the_relay(
    nursery: trio.Nursery, runners: list[Runner]
) -> None:
    """spec 13: whose engine is shut below it, is cut and told so."""
    async with open_engine(threads=2, buffers=4) as engine:
        for _ in range(10):
            runners.append(runner := Runner())
            nursery.start_soon(runner.run, engine)
        await until(lambda: engine.statistics().jobs == 10)
    with trio.fail_after(5):
        for runner in runners:
            await runner.done.wait()
            assert runner.result is not None
            assert (runner.result.reason, runner.result.by) == (EndReason.RELAY_CLOSED, CloseBy.RELAY)
            assert [far.recv(1) for far in runner.far] == [b"", b""]
    assert engine.check_consistency() == []


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize(
    ("last", "reason"), [(close_frame(), EndReason.HALF_CLOSED_TIMEOUT), (b"\xf1\x80", EndReason.PROTOCOL_ERROR)]
)
async def test_who_does_not_read_does_not_put_off_the_end_of_the_other_side(
    engine: Engine, last: bytes, reason: EndReason, is_native: bool
) -> None:
    """spec 8.7: the limit begins with the Close, also when it cannot be passed on."""
    near, (far, deaf) = zip(unix_pair(), unix_pair(), strict=True)
    near[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    session = legs(near, early=(frame(2, bytes(60_000)) + last, b""), half_closed=0.1)
    with far, deaf:
        result = await Mover(BufferPool(buffers=2), engine if is_native else None).run(session)
    assert (result.reason, result.by) == (reason, CloseBy.SENDER)


@pytest.mark.parametrize(
    ("happens", "at", "said"),
    [
        ("interrupt", "submit", "KeyboardInterrupt"),
        ("interrupt", "completions", "KeyboardInterrupt"),
        ("error", "completions", "TrioInternalError"),
    ],
)
def test_what_comes_between_c_and_its_task_leaves_no_session_that_nobody_can_end(
    happens: str, at: str, said: str
) -> None:
    """failures: Ctrl-C, or an error of ours, at a bad moment. A process of its own, so that one that hangs is ended."""
    script = Path(__file__).with_name("interrupted.py")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(script), happens, at],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"ended: {said}\n", "")


async def test_an_engine_that_has_ended_runs_nothing(runners: list[Runner]) -> None:
    """failures: a handle that is used after its end crashes the process; here it is an error, and both legs are cut."""
    async with open_engine(threads=1, buffers=4) as engine:
        pass
    runners.append(runner := Runner())
    assert not engine.can_run(runner.session)
    with pytest.raises(trio.ClosedResourceError):
        await engine.run(runner.session)
    assert [stream.socket.fileno() for stream in runner.near] == [-1, -1]
    # A mover goes on without it.
    runners.append(runner := Runner(early=(frame(1, b"on"), b"")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, Mover(BufferPool(buffers=2), engine))
        await wait_all_tasks_blocked()
        assert runner.far[1].recv(100) == b"\x81\x02on"
        runner.hang_up()


# Descriptors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cancelled", "aborted", "closed"])
async def test_a_number_that_is_used_again_is_left_alone(engine: Engine, runners: list[Runner], end: str) -> None:
    """failures: connection closed twice, the second close hits somebody else's descriptor."""
    other_near, other_far = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    for _ in range(30):
        runner = Runner()
        numbers = {stream.socket.fileno() for stream in runner.near}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run, engine)
            await until(lambda: engine.statistics().jobs == 1)
            runner.far[0].sendall(frame(2, b"x" * 3000)[:1500])
            if end == "cancelled":
                runner.scope.cancel()
            elif end == "closed":
                runner.far[0].sendall(b"".join([frame(2, b"x" * 3000)[1500:], close_frame()]))
                runner.far[1].sendall(close_frame())
                runner.far[0].shutdown(socket.SHUT_WR)
                runner.far[1].shutdown(socket.SHUT_WR)
                await runner.done.wait()
            else:
                runner.far[0].close()
        # The next ones have its numbers; nothing is read from them, or sent into them.
        again: list[int] = []
        while len(again) < 2 or not numbers <= set(again):
            again.append(os.dup(other_near[len(again) % 2].fileno()))
        for far in other_far:
            far.sendall(b"not yours")
        await wait_all_tasks_blocked(0.002)
        for number, far in zip(again[:2], other_far, strict=True):
            assert os.read(number, 100) == b"not yours"
            far.setblocking(False)
            with pytest.raises(BlockingIOError):
                far.recv(1)
            far.setblocking(True)
        for number in again:
            os.close(number)
        runner.hang_up()
    for one in (*other_near, *other_far):
        one.close()


# Who moves what -----------------------------------------------------------------------------------------------------


async def test_plain_sockets_go_to_the_engine(engine: Engine, runners: list[Runner]) -> None:
    """spec 8: what is moved by C, and what by Trio, obeys the same rules; only plain sockets are for C."""
    runners.append(runner := Runner())
    assert engine.can_run(runner.session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, Mover(BufferPool(buffers=2), engine))
        await until(lambda: engine.statistics().jobs == 1)
        runner.hang_up()
    assert runner.result.reason is EndReason.ABORTED
    assert engine.statistics().completed == 1


@pytest.mark.parametrize("leg", [0, 1])
async def test_other_streams_go_to_trio(engine: Engine, leg: int) -> None:
    """spec 8: one leg that is no socket is enough to have the session moved in Trio tasks."""
    near, far = zip(await tcp_pair(), memory_stream_pair(), strict=True)
    if leg:
        near, far = near[::-1], far[::-1]
    await _check_moved(Mover(BufferPool(buffers=2), engine), near, far)
    assert engine.statistics().commands == 0


async def test_tls_goes_to_trio(engine: Engine) -> None:
    """spec 8: a leg under TLS is moved in Trio tasks."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("relay.test").configure_cert(server)
    authority.configure_trust(client)
    tcp_near, tcp_far = await tcp_pair()
    near = trio.SSLStream(tcp_near, server, server_side=True, https_compatible=True)
    far = trio.SSLStream(tcp_far, client, server_hostname="relay.test", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.do_handshake)
        nursery.start_soon(far.do_handshake)
    plain_near, plain_far = await tcp_pair()
    await _check_moved(Mover(BufferPool(buffers=2), engine), (near, plain_near), (far, plain_far))
    assert engine.statistics().commands == 0


async def test_without_an_engine_everything_goes_to_trio(runners: list[Runner]) -> None:
    """spec 8: where there is no engine, sockets are moved in Trio tasks."""
    near, far = zip(await tcp_pair(), await tcp_pair(), strict=True)
    await _check_moved(Mover(BufferPool(buffers=2), None), near, far)


async def _check_moved(mover: Mover, near: tuple[trio.abc.Stream, ...], far: tuple[trio.abc.Stream, ...]) -> None:
    sender, listener = map(WirePeer, far)
    results: list[SessionResult] = []

    async def run() -> None:
        results.append(await mover.run(legs(near)))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await sender.send(frame(1, b"there") + close_frame())
            assert await listener.read_message() == (1, b"there")
            assert (await listener.read_frame()).opcode == 8
            await listener.send(frame(1, b"and back") + close_frame())
            assert await sender.read_message() == (1, b"and back")
            assert (await sender.read_frame()).opcode == 8
            await sender.aclose()
            await listener.aclose()
    assert results[0].reason is EndReason.CLOSED


@pytest.fixture
def refused(monkeypatch) -> None:
    """The system refuses to watch the second socket, really: it is the first one again, and epoll takes none twice."""

    def job(brain, token, sender, _listener, **options) -> Job:
        return Job(brain, token, sender, sender, **options)

    monkeypatch.setattr("relaycore.net.engine.Job", job)


async def test_a_session_that_the_engine_is_refused_goes_to_trio(
    engine: Engine, runners: list[Runner], refused, caplog
) -> None:
    """failures: a limit of the system (here of epoll) ends live connections; here Trio carries them."""
    runners.append(runner := Runner(early=(frame(1, b"early"), frame(1, b"too"))))
    with caplog.at_level(logging.WARNING, "relaycore.session"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run, Mover(BufferPool(buffers=2), engine))
            await until(lambda: engine.statistics().completed == 1)
            await wait_all_tasks_blocked()
            assert runner.far[1].recv(100) == b"\x81\x05early"
            assert runner.far[0].recv(100) == b"\x81\x03too"
            runner.far[0].sendall(frame(1, b"more"))
            await wait_all_tasks_blocked()
            assert runner.far[1].recv(100) == b"\x81\x04more"
            runner.hang_up()
    assert runner.result.reason is EndReason.ABORTED
    assert os.strerror(errno.EEXIST) in caplog.text


async def test_a_close_that_meets_the_refusal_is_said_by_trio(
    engine: Engine, runners: list[Runner], refused, monkeypatch
) -> None:
    """spec 13: 1001 to both sides, also when the session is just changing hands."""
    runners.append(runner := Runner(close=0.2))
    submit = native_engine.Engine.submit

    def submit_and_close(native: native_engine.Engine, job: Job) -> None:
        submit(native, job)
        runner.session.close_nowait(1001, b"going")

    monkeypatch.setattr("relaycore._native.engine.Engine.submit", submit_and_close)
    await runner.run(Mover(BufferPool(buffers=2), engine))
    assert runner.result.reason is EndReason.RELAY_CLOSED
    for far in runner.far:
        assert far.recv(100) == b"\x88\x07\x03\xe9going"


async def test_without_a_mover_behind_it_a_refusal_is_an_error(engine: Engine, runners: list[Runner], refused) -> None:
    """failures: a limit of the system (here of epoll) goes unnoticed; both legs are closed and the reason is told."""
    runners.append(runner := Runner())
    with pytest.raises(OSError, match=os.strerror(errno.EEXIST)):
        await engine.run(runner.session)
    assert [stream.socket.fileno() for stream in runner.near] == [-1, -1]
    assert [far.recv(1) for far in runner.far] == [b"", b""]


# What it costs ------------------------------------------------------------------------------------------------------


class Counting:
    """The C library with a count of each function's calls."""

    def __init__(self, lib: object, calls: Counter[str]) -> None:
        self._lib = lib
        self._calls = calls

    def __getattr__(self, name: str):
        found = getattr(self._lib, name)
        if callable(found):
            self._calls[name] += 1
        return found


@pytest.fixture
def crossings(monkeypatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    monkeypatch.setattr(native_engine, "lib", Counting(native_engine.lib, calls))
    monkeypatch.setattr(native_session, "lib", Counting(native_session.lib, calls))
    return calls


def talk(runner: Runner, count: int, payload: bytes = b"x" * 64) -> None:
    """Messages there and back, each waited for; Trio stands still meanwhile."""
    sender, listener = runner.far
    masked, plain = frame(2, payload), bytes([0x82, len(payload)]) + payload
    buffer = bytearray(200)
    for _ in range(count):
        sender.send(masked)
        assert listener.recv_into(buffer) == len(plain)
        listener.send(masked)
        assert sender.recv_into(buffer) == len(plain)


@pytest.mark.parametrize("count", [1, 1000])
async def test_a_session_costs_python_the_same_however_much_it_carries(
    engine: Engine, runners: list[Runner], crossings: Counter[str], count: int
) -> None:
    """spec 8.4: no byte of a joined session comes by Python: the calls into C are those of its start and its end."""
    await wait_all_tasks_blocked()
    crossings.clear()
    runners.append(runner := Runner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, engine)
        await wait_all_tasks_blocked()
        talk(runner, count)
        runner.far[0].sendall(close_frame())
        runner.far[1].sendall(close_frame())
        runner.hang_up()
    assert runner.result.statistics.to_listener.payload_bytes == 64 * count
    # A thread may ring for what the waking task has just taken: then it looks once more, and finds nothing.
    assert crossings.pop("rc_engine_completions") in (1, 2)
    assert crossings == {"rc_session_init": 1, "rc_engine_submit": 1, "rc_session_counters": 2}


async def test_each_message_is_received_once_and_sent_once(engine: Engine, runners: list[Runner]) -> None:
    """spec 8.4: one wait, one receive and one send for a message that comes alone."""
    runners.append(runner := Runner(tcp_socket_pair))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, engine)
        await wait_all_tasks_blocked()
        talk(runner, 10)
        before = engine.statistics()
        talk(runner, 500)
        after = engine.statistics()
        runner.hang_up()
    # The thread counts behind its send, so the last message of either count may be in the next one.
    assert after.receives - before.receives in (999, 1000, 1001)
    assert after.sends - before.sends in (999, 1000, 1001)
    assert after.waits - before.waits in (999, 1000, 1001)
    assert (after.blocked, after.exhausted) == (0, 0)
    assert after.bytes_in - before.bytes_in == 1000 * 70
    assert 999 * 66 <= after.bytes_out - before.bytes_out <= 1001 * 66


async def test_many_messages_in_one_receive_are_one_send(engine: Engine, runners: list[Runner]) -> None:
    """spec 8.10: a thousand tiny frames that come together leave together."""
    runners.append(runner := Runner())
    message = frame(2, b"tiny")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, engine)
        await wait_all_tasks_blocked()
        before = engine.statistics()
        runner.far[0].sendall(message * 1000)
        received = 0
        while received < 6000:
            received += len(runner.far[1].recv(10_000))
        await until(lambda: engine.statistics().bytes_out == 6000)
        after = engine.statistics()
        runner.hang_up()
    assert after.receives - before.receives == 1
    assert after.sends - before.sends == 1


async def test_bytes_that_flow_make_no_python_objects(engine: Engine, runners: list[Runner]) -> None:
    """spec 8.4: a thousand messages later Python holds not one block of memory more."""
    runners.append(runner := Runner())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, engine)
        await wait_all_tasks_blocked()
        talk(runner, 10)
        gc.collect()
        gc.disable()
        try:
            before = sys.getallocatedblocks()
            talk(runner, 1000)
            assert sys.getallocatedblocks() - before < 20
        finally:
            gc.enable()
        runner.hang_up()


async def test_an_idle_engine_sleeps(engine: Engine, runners: list[Runner]) -> None:
    """spec 8.11: idle sessions wake nobody."""
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            runners.append(runner := Runner())
            nursery.start_soon(runner.run, engine)
        await until(lambda: engine.statistics().jobs == 50)
        await trio.sleep(0.05)
        before = engine.statistics()
        await trio.sleep(0.2)
        assert engine.statistics() == before
        for runner in runners:
            runner.hang_up()


async def test_blocked_sessions_wake_nobody(engine: Engine) -> None:
    """spec 8.9: a thread does not turn round for a reader that has stopped."""
    near, far = zip(await tcp_pair(small=True), await tcp_pair(small=True), strict=True)
    session = legs(near, kinds=(LegKind.WS_SERVER, LegKind.WS_SERVER))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ignore_result, engine, session)
        nursery.start_soon(flood, WirePeer(far[0]))
        await until(lambda: engine.statistics().blocked > 0)
        await trio.sleep(0.3)
        before = engine.statistics()
        await trio.sleep(0.3)
        after = engine.statistics()
        assert after.waits - before.waits < 5
        assert after.buffers_in_use == 1
        nursery.cancel_scope.cancel()
    for stream in far:
        await trio.aclose_forcefully(stream)


async def _ignore_result(engine: Engine, session: Session) -> None:
    await engine.run(session)


async def test_what_the_block_raises_comes_out_as_it_is():
    """An engine is no nursery: its block's errors are not wrapped."""
    with pytest.raises(ZeroDivisionError):
        async with open_engine(threads=1):
            raise ZeroDivisionError
