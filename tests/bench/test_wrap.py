"""Streams inside one more WebSocket, through a gateway to TCP made of other people's code."""

import contextlib
import socket
import threading

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from bench.loadgen import Job, Load, Route, client_settings
from bench.processes import BenchError, ending
from bench.suite import Pace, run_once
from bench.topologies import Stage
from bench.workload import Workload

BRIEF = Pace(rounds=1, warm_s=0.02, measured_s=0.05)

pytestmark = pytest.mark.usefixtures("sanitized_load")


@contextlib.contextmanager
def gateway(to_port, *, most_bytes=65_536):
    """Takes the WebSocket off, and puts what comes back into messages of at most ``most_bytes``."""

    def carry_back(far, near):
        with contextlib.suppress(ConnectionClosed, OSError):
            while data := far.recv(most_bytes):
                near.send(data)
            near.close()

    def join(near):
        with socket.create_connection(("127.0.0.1", to_port)) as far:
            back = threading.Thread(target=carry_back, args=(far, near))
            back.start()
            with contextlib.suppress(ConnectionClosed, OSError):
                for message in near:
                    assert isinstance(message, bytes)
                    far.sendall(message)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            back.join()

    with serve(join, "127.0.0.1", 0, compression=None, max_size=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("most_bytes", [7, 65_536])
@pytest.mark.parametrize(
    "job",
    [
        Job("sink", 1),
        Job("sink", 120),
        Job("sink", 65_536),
        Job("source", 126),
        Job("echo", 65_535),
        Job("ping", 64, count=5),
        Job("join", 64, count=3),
    ],
    ids=lambda job: f"{job.kind}-{job.size}x{job.count}",
)
def test_jobs_are_confirmed_byte_for_byte(job, most_bytes):
    if most_bytes < 100 and job.size > 1_000:
        pytest.skip("half a minute of tiny messages")
    workload = Workload("one", "", (job,), headline="MiB/s", shows=())
    with Stage("test") as stage:
        _, ready = stage.load("server")
        with gateway(ready["port"], most_bytes=most_bytes) as port:
            figures, _ = run_once(Route("127.0.0.1", port, "/", (), (), wraps=True), workload, BRIEF)
    assert figures["messages/s"] > 0


def test_a_gateway_without_a_far_end_is_told():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]

    def refuse(near):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed))

    with serve(refuse, "127.0.0.1", 0, compression=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        route = Route("127.0.0.1", server.socket.getsockname()[1], "/", (), (), wraps=True)
        settings = client_settings(route, [Job("ping", 64)], warm_s=0, measured_s=0.1, limit_s=10)
        load = Load("client", settings)
        with ending(load.process), pytest.raises(BenchError, match="the gateway's Close"):
            load.answer(5)
        server.shutdown()
        serving.join()
