"""Requests: the client's judgement of answers, the origin, and the listener under a relay that follows a script."""

import contextlib
import json
import socket
import threading

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.server import serve

from bench.loadgen import HTTP, Job, Load, Route, client_settings
from bench.processes import BenchError, ending
from bench.report import digest, summarise
from bench.requests import WORKLOADS
from bench.suite import Pace, Run, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.workload import Workload

pytestmark = pytest.mark.usefixtures("sanitized_load")

ID = "12345678-1234-1234-1234-1234567890ab_G0"


def pattern(length):
    """What the load generator puts into every body."""
    x, out = 0x9E3779B97F4A7C15, bytearray()
    for _ in range(length):
        x ^= x << 13 & (1 << 64) - 1
        x ^= x >> 7
        x ^= x << 17 & (1 << 64) - 1
        out.append(x & 0xFF)
    return bytes(out)


@pytest.mark.parametrize("size", [0, 1, 1_024, 65_536, 1 << 20])
@pytest.mark.parametrize("topology", ["direct", "haproxy-http", "relay-trio"])
def test_requests_are_answered_byte_for_byte(topology, size):
    if TOPOLOGIES[topology].missing():
        pytest.skip("not installed")
    workload = Workload("one", "", (Job(HTTP, size, count=3),), headline="requests/s", shows=())
    with Stage("test") as stage:
        figures, _ = run_once(TOPOLOGIES[topology].open(stage), workload, Pace(1, warm_s=0.02, measured_s=0.05))
    assert figures["requests/s"] > 0
    assert 0 < figures["p50 µs"] <= figures["p99 µs"]
    assert figures["far busy"] > 0


def test_a_route_without_requests_is_told():
    with pytest.raises(BenchError, match="carries no requests"):
        client_settings(Route("127.0.0.1", 1, "/", (), ()), [Job(HTTP, 1)], warm_s=0, measured_s=0, limit_s=1)


# ---- the client ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(*parts):
    """A server for one connection: an answer made of these parts for each request; ``ID`` in them is the request's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run():
            with server.accept()[0] as connection:
                while (request := connection.recv(65_536)) and b"\r\n\r\n" in request:
                    number = request.partition(b"Bench-Id: ")[2][:16]
                    for part in parts:
                        connection.sendall(part.replace(b"ID", number))

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def ask(port, size):
    load = Load("client", [f"address 127.0.0.1 {port} /x", f"job 1 http {size}", "seconds 0.05", "limit 10"])
    with ending(load.process):
        return load.answer(5)["jobs"][0]


OK = b"HTTP/1.1 200 OK\r\nBench-Id: ID\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (OK + b"Content-Length: 3\r\n\r\n", pattern(3)),
        (OK + b"Content-Length: 3\r\n\r\n" + pattern(1), pattern(3)[1:]),
        (OK.lower().replace(b"id\r", b"ID\r").replace(b"http", b"HTTP") + b"content-length: 3\r\n\r\n" + pattern(3),),
        (
            OK
            + b"Transfer-Encoding: chunked\r\n\r\n1\r\n"
            + pattern(1)
            + b"\r\n2\r\n"
            + pattern(3)[1:]
            + b"\r\n0\r\n\r\n",
        ),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r", b"\n" + pattern(3) + b"\r", b"\n0\r\n\r", b"\n"),
    ],
    ids=["sized", "in pieces", "lower case", "chunked", "chunked in pieces"],
)
def test_good_answers_are_counted(parts):
    with answering(*parts) as port:
        job = ask(port, 3)
    assert job["messages"] > 0
    assert job["bytes"] == 3 * job["messages"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"HTTP/1.1 502 Nobody there\r\nContent-Length: 0\r\n\r\n", "502 Nobody there"),
        (OK + b"Content-Length: 2\r\n\r\n" + pattern(2), "3 bytes arrived with 2"),
        (OK + b"Content-Length: 4\r\n\r\n" + pattern(4), "changed"),
        (OK + b"Content-Length: 3\r\n\r\nabc", "changed"),
        (OK.replace(b"ID", b"0" * 16) + b"Content-Length: 3\r\n\r\n" + pattern(3), "another's answer"),
        (OK + b"Connection: close\r\nContent-Length: 3\r\n\r\n" + pattern(3), "closes"),
        (OK + b"\r\n" + pattern(3), "broken framing"),
        (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "broken framing"),
        (OK + b"Content-Length: x\r\n\r\n", "broken framing"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3;x\r\n", "broken framing"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n\r\n", "broken framing"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\n" + pattern(3) + b"xx", "broken framing"),
        (b"x" * 9_000, "broken framing"),
    ],
)
def test_a_bad_answer_ends_the_client_with_the_reason(answer, complaint):
    with answering(answer) as port, pytest.raises(BenchError, match=complaint):
        ask(port, 3)


# ---- the origin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET /x HTTP/1.1\r\nBench-Id: 7\r\n\r\n", b"HTTP/1.1 200 OK\r\nBench-Id: 7\r\nContent-Length: 0\r\n\r\n"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n" + pattern(2), pattern(2)),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n" + pattern(1) + b"\r\n0\r\n\r\n", pattern(1)),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx", b"422"),
    ],
)
def test_the_origin_answers_with_what_it_got(request_bytes, answer):
    with Stage("test") as stage:
        _, ready = stage.load("origin")
        with socket.create_connection(("127.0.0.1", ready["port"]), timeout=5) as connection:
            connection.sendall(request_bytes)
            got = b""
            while answer not in got:
                more = connection.recv(4_096)
                assert more, got
                got += more


# ---- the listener --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scripted(control, rendezvous=None):
    """A listener under a relay that runs ``control`` on its channel and ``rendezvous`` on whatever else it dials."""
    outcome, done = [], threading.Event()

    def handler(connection):
        listens = "action=listen" in connection.request.path
        try:
            (control if listens else rendezvous)(connection)
        except Exception as error:  # told in the test's own thread
            outcome.append(error)
        if listens == (rendezvous is None):
            done.set()
        if listens:
            done.wait(5)

    with serve(handler, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Stage("test") as stage:
            port = server.socket.getsockname()[1]
            control.port = port
            listener, _ = stage.load("listener", [f"address 127.0.0.1 {port} /$hc/e?sb-hc-action=listen"])
            assert done.wait(5)
            listener.tell("count")
            yield listener.answer(5)
        server.shutdown()
        thread.join(5)
    assert not outcome, outcome


def request(**members):
    headers = {"Host": 'a "quoted" {name}', "bench-id": "00ff", "X": '"id":"wrong",\\"'}
    whole = {"address": "ws://x", "remoteEndpoint": {"address": "127.0.0.1", "port": 1}, "requestHeaders": headers}
    return json.dumps({"request": {**whole, "id": ID, "method": "POST", "requestTarget": "/e?\u00e4", **members}})


def expect_response(connection, body):
    response = json.loads(connection.recv(timeout=5))["response"]
    assert response["requestId"] == ID
    assert response["statusCode"] == 200
    assert response["responseHeaders"]["Bench-Id"] == "00ff"
    assert response["body"] == bool(body)
    if body:
        assert connection.recv(timeout=5) == body


def test_requests_on_the_control_channel():
    def control(connection):
        for length in (0, 1, 1_024, 60_000):
            body = pattern(length)
            connection.send(request(body=length > 0))
            if body:
                connection.ping()
                connection.send([body[: length // 2], body[length // 2 :]])
            expect_response(connection, body)
        connection.send(request(body=True))
        connection.send(b"")
        expect_response(connection, b"")
        connection.send(request(body=True))
        connection.send(b"not the pattern")
        assert json.loads(connection.recv(timeout=5))["response"]["statusCode"] == 422

    with scripted(control) as counted:
        assert (counted["requests"], counted["failures"]) == (6, 0)


@pytest.mark.parametrize("length", [0, 1, 65_536, 70_000])
def test_a_request_at_its_rendezvous(length):
    body = pattern(length)

    def control(connection):
        address = f"ws://127.0.0.1:{control.port}/$hc/e?sb-hc-action=request&sb-hc-id={ID}"
        connection.send(json.dumps({"request": {"address": address, "id": ID}}))

    def rendezvous(connection):
        connection.send(request(body=True))
        connection.send([body[:65_536], body[65_536:]])
        expect_response(connection, body)
        with pytest.raises(ConnectionClosedOK):
            connection.recv(timeout=5)

    with scripted(control, rendezvous) as counted:
        assert (counted["requests"], counted["failures"]) == (1, 0)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"request":{"address":"ws://x"}}', '{"accept":{}}', '{"other":{"id":"']
)
def test_a_message_that_makes_no_sense_ends_the_listener(text):
    with serve(lambda connection: (connection.send(text), connection.recv()), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        listener = Load("listener", [f"address 127.0.0.1 {port} /$hc/e?sb-hc-action=listen", "limit 10"])
        with ending(listener.process), pytest.raises(BenchError, match="neither accept nor request"):
            [listener.answer(5) for _ in ("ready", "complaint")]  # the 101 may bring the message along
        server.shutdown()
        thread.join(5)


# ---- the report ----------------------------------------------------------------------------------------------------


def test_added_time_is_of_the_same_round():
    workload = next(each for each in WORKLOADS if each.name == "http-1k-16")
    runs = [
        Run(workload.name, name, number, figures={"requests/s": 1.0, "p50 µs": p50, "busy": 1.0, "starved": 0.0})
        for number, direct in enumerate((10.0, 30.0))
        for name, p50 in (("direct", direct), ("ours", direct + 5.0))
    ]
    summary = summarise(runs, [workload], ["direct", "ours", "never asked"])
    assert [entry["topology"] for entry in summary] == ["direct", "ours"]
    assert summary[1]["figures"]["added p50 µs"].median == 5.0
    assert "p50 more than direct" in digest([workload], summary)
