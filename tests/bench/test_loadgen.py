"""The load generator itself, and a suite so small that it only shows that everything holds together."""

import base64
import contextlib
import hashlib
import json
import socket
import threading

import pytest

from bench import __main__ as program
from bench.loadgen import Job, Load, Route, client_settings
from bench.processes import BenchError, ending
from bench.suite import Pace, placement, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.workload import Workload

BRIEF = Pace(rounds=1, warm_s=0.02, measured_s=0.05)


pytestmark = pytest.mark.usefixtures("sanitized_load")


@contextlib.contextmanager
def client(port, *settings):
    load = Load("client", [f"address 127.0.0.1 {port} /x", "limit 10", *settings])
    with ending(load.process):
        yield load


@pytest.mark.parametrize(
    "job",
    [
        Job("sink", 1),
        Job("sink", 125),
        Job("sink", 65_536),
        Job("sink", 1 << 20),
        Job("source", 126),
        Job("source", 100_000),
        Job("echo", 65_535),
        Job("echo", 1 << 20),
        Job("ping", 64, count=20),
        Job("ping", 64, count=20, rate=50),
        Job("join", 64, count=4),
        Job("idle", 64, count=3),
    ],
    ids=lambda job: f"{job.kind}-{job.size}x{job.count}" + (f"@{job.rate}" if job.rate else ""),
)
def test_jobs_are_confirmed_byte_for_byte(job):
    workload = Workload("one", "", (job,), headline="MiB/s", shows=())
    with Stage("test") as stage:
        figures, _ = run_once(TOPOLOGIES["direct"].open(stage), workload, BRIEF)
    assert figures["messages/s"] > 0
    if job.kind in ("ping", "join", "idle"):
        assert 0 < figures["p50 µs"] <= figures["p99 µs"]


def test_two_jobs_run_side_by_side():
    workload = Workload("two", "", (Job("ping", 64), Job("sink", 4_096)), headline="p50 µs", shows=())
    with Stage("test") as stage:
        figures, _ = run_once(TOPOLOGIES["direct"].open(stage), workload, BRIEF)
    assert figures["beside MiB/s"] > 0


def test_paced_pings_are_as_many_as_the_time_holds():
    jobs = (Job("ping", 64, count=10, rate=20), Job("sink", 65_536), Job("ping", 100, rate=50))
    with Stage("test") as stage:
        route = TOPOLOGIES["direct"].open(stage)
        client = Load("client", client_settings(route, jobs, warm_s=0.05, measured_s=0.2, limit_s=20))
        with ending(client.process):
            result = client.answer(20)
            client.wait_ended(5)
    many, _, one = result["jobs"]
    for job, expected in ((many, 40), (one, 10)):
        assert job["messages"] == expected
        assert sum(count for _, count in job["late"]) == expected
        assert sum(count for _, count in job["latency"]) == expected
    assert (many["least_bytes"], many["most_bytes"]) == (4 * 64, 4 * 64)


def echo_behind_the_last(pings, size):
    """A server that keeps all echoes of one stream back until this many pings have come."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server, server.accept()[0] as connection, connection.makefile("rb") as incoming:
            lines = dict(line.split(b": ", 1) for line in iter(incoming.readline, b"\r\n") if b": " in line)
            key = lines[b"Sec-WebSocket-Key"].strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key).digest())
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            assert len(incoming.read(2 + 4 + len("echo"))) == 10
            echoes = b""
            for _ in range(pings):
                frame = incoming.read(2 + 4 + size)
                payload = bytes(byte ^ frame[2 + at % 4] for at, byte in enumerate(frame[6:]))
                echoes += bytes((0x82, size)) + payload
            connection.sendall(echoes)
            incoming.read(1)  # its Close

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread


def test_latency_of_paced_pings_counts_from_their_moments_whatever_became_of_those_before():
    port, thread = echo_behind_the_last(20, 64)
    with client(port, "job 1 ping 64 200", "warm 0", "seconds 0.1") as load:
        (job,) = load.answer(10)["jobs"]
        load.wait_ended(5)
    thread.join(5)
    found = sorted(ns for ns, count in job["latency"] for _ in range(count))
    assert len(found) == 20
    for at, ns in enumerate(found):  # the last is sent at 95 ms, and no echo comes before
        assert ns >= at * 5e6 * (1 - 1 / 64)


def test_stalled_streams_wait_for_the_others_and_then_deliver_everything():
    jobs = (Job("sink", 65_536), Job("stall", 65_536, count=2), Job("unread", 1_000, count=3))
    with Stage("test") as stage:
        route = TOPOLOGIES["direct"].open(stage)
        client = Load("client", [*client_settings(route, jobs, warm_s=0.05, measured_s=0.1, limit_s=20), "lead 0.05"])
        with ending(client.process):
            result = client.answer(20)
            client.wait_ended(5)
    _, stalled, unread = result["jobs"]
    assert stalled["bytes"] > 0
    assert unread["bytes"] > 0
    assert stalled["least_bytes"] > 1 << 17, "a stalled stream was not filled"
    assert stalled["seconds"] > result["seconds"], "a stalled stream came to rest before the others"


def test_a_stalled_stream_needs_one_that_wakes_it():
    with Stage("test") as stage:
        route = TOPOLOGIES["direct"].open(stage)
        load = Load("client", client_settings(route, [Job("stall", 64)], warm_s=0, measured_s=0, limit_s=5))
        with ending(load.process), pytest.raises(BenchError, match="nobody could wake it"):
            load.answer(5)


def test_held_streams_answer_when_asked():
    with Stage("test") as stage:
        route = TOPOLOGIES["direct"].open(stage)
        settings = client_settings(route, [Job("idle", 64, count=5)], warm_s=0, measured_s=0, limit_s=10, hold=True)
        load = Load("client", settings)
        with ending(load.process):
            assert load.answer(5)["streams"] == 5
            load.tell("finish")
            assert load.answer(5)["jobs"][0]["messages"] == 5


def answer_with(reply):
    """A server that answers one request with these bytes and closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server, server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return server.getsockname()[1], thread


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b'HTTP/1.1 404 Not "here"\r\nContent-Length: 0\r\n\r\n', 'refused: HTTP/1.1 404 Not "here"'),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", "Sec-WebSocket-Accept"),
        (b"HTTP/1.1 101", "end of stream"),
        (b"x" * 9000, "head too long"),
    ],
    ids=["refused", "wrong accept", "cut", "endless head"],
)
def test_a_bad_handshake_ends_the_client_with_the_reason(reply, complaint):
    port, thread = answer_with(reply)
    with client(port, "job 1 ping 64") as load, pytest.raises(BenchError, match=complaint):
        load.answer(5)
    thread.join(5)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with client(port, "job 1 ping 64") as load, pytest.raises(BenchError, match="refused"):
        load.answer(5)


@pytest.mark.parametrize(
    "line",
    [
        "job 1 nonsense 64",
        "job 0 ping 64",
        "job 1 ping 99999999",
        "job 1 sink 64 5",
        "job 1000 ping 64 1001",
        "nonsense",
        "address x 1 /",
    ],
)
def test_settings_are_checked(line):
    with client(1, line) as load, pytest.raises(BenchError):
        load.answer(5)


def test_a_complaint_about_a_setting_does_not_repeat_a_token():
    line = "headder ServiceBusAuthorization: SharedAccessSignature sr=secret"
    with client(1, line) as load, pytest.raises(BenchError) as caught:
        load.answer(5)
    assert "secret" not in str(caught.value)


def test_headers_stay_out_of_reprs():
    assert "secret" not in repr(Route("127.0.0.1", 1, "/", (), (), ("ServiceBusAuthorization: secret",)))


def test_the_client_ends_at_its_limit():
    with Stage("test") as stage:
        route = TOPOLOGIES["direct"].open(stage)
        load = Load("client", [*client_settings(route, [Job("ping", 64)], warm_s=0, measured_s=60, limit_s=1)])
        with ending(load.process), pytest.raises(BenchError, match="time limit"):
            load.answer(10)


def test_placement():
    apart = Workload("apart", "", (), "", ())
    together = Workload("together", "", (), "", (), together=True)
    assert placement(apart, [0, 1, 2]) == ({0}, {2})
    assert placement(together, [0, 1]) == ({0}, {0})
    assert placement(apart, [5]) == ({5}, {5})


def test_the_suite_prints_tables_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "separate", lambda: None)  # a test does not move pytest to another network
    file = tmp_path / "report.json"
    options = [
        "--quick",
        "--seconds",
        "0.05",
        "--topologies",
        "direct,trio-splice,naive",
        "--workloads",
        "bulk-64k,ping-64",
    ]
    assert program.main([*options, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "### bulk-64k" in printed
    assert "| naive" in printed
    runs = json.loads(file.read_text())["runs"]
    assert not any(run["failure"] for run in runs)
    assert sum(run["figures"].get("seconds", 0) > 0 for run in runs) == 6
    counted = {(run["workload"], run["topology"]) for run in runs if "syscalls/message" in run["figures"]}
    assert all("MiB/s" not in run["figures"] for run in runs if "syscalls/message" in run["figures"])
    every = {(name, who) for name in ("bulk-64k", "ping-64") for who in ("trio-splice", "naive")}
    assert counted in (every, set())  # no tool may be allowed to count here


def test_unknown_names_are_told(capsys, monkeypatch):
    monkeypatch.setattr(program, "separate", lambda: None)
    assert program.main(["--topologies", "carrier-pigeon"]) == 2
    assert "carrier-pigeon" in capsys.readouterr().err
    assert program.main(["--workloads", "juggling"]) == 2


def test_the_list_names_everything(capsys):
    assert program.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*TOPOLOGIES, *program.WORKLOADS])
