"""The table of topologies, the configurations that are written, and streams through what is installed here."""

import socket

import pytest

from bench.loadgen import Job
from bench.processes import BenchError
from bench.suite import Pace, run_once
from bench.topologies import TOPOLOGIES, Stage
from bench.topologies.base import free_port
from bench.topologies.proxies import haproxy_config, stream_module
from bench.topologies.tunnels import _toml
from bench.workload import Workload

BRIEF = Pace(rounds=1, warm_s=0.02, measured_s=0.05)

MIXED = Workload("mixed", "", (Job("ping", 64, count=3), Job("sink", 65_536), Job("echo", 5_000)), "p50 µs", shows=())

NAMES = [name for name in TOPOLOGIES if not name.startswith("relay")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("sanitized_load")
def test_streams_pass_through_unchanged(name):
    topology = TOPOLOGIES[name]
    missing = topology.missing()
    if missing:
        pytest.skip(missing)
    if "websocket" not in topology.carries:
        pytest.skip("carries requests only")
    with Stage("test") as stage:
        figures, _ = run_once(topology.open(stage), MIXED, BRIEF)
    assert figures["messages/s"] > 0
    assert topology.version() or name in ("direct", "trio-splice")


def test_those_who_take_part_unasked():
    unasked = {name for name, topology in TOPOLOGIES.items() if topology.by_default}
    assert unasked == {
        *("direct", "haproxy", "haproxy-tuned", "haproxy-http", "nginx", "naive"),
        *("relay-trio", "relay-engine"),
    }


def test_haproxy_is_told_everything_in_its_section():
    text = haproxy_config(7, 99, tuning=["tune.bufsize 5"], options=["option splice-auto"])
    head, rest = text.split("defaults\n")
    assert "  tune.bufsize 5\n" in head
    assert "  option splice-auto\n" in rest
    assert rest.endswith("listen bench\n  bind fd@7\n  server far 127.0.0.1:99\n")


def test_where_nginx_has_its_stream_module():
    assert str(stream_module("x --modules-path=/m --with-stream=dynamic")) == "/m/ngx_stream_module.so"
    assert stream_module("--prefix=/p --with-stream") is None
    with pytest.raises(LookupError, match="without its stream module"):
        stream_module("--prefix=/p --with-stream_ssl_module")


def test_toml_of_tables():
    text = _toml({"": {"auth.token": "x", "port": 5}, "[proxies]": {"on": False}})
    assert text == '\nauth.token = "x"\nport = 5\n[[proxies]]\non = false\n'


def test_a_program_that_ends_did_not_start():
    with Stage("test") as stage:
        child = stage.run(["sh", "-c", "echo because >&2"])
        with pytest.raises(BenchError, match=r"it did not start:\nbecause"):
            stage.wait_listening(free_port(), child, "it")


def test_a_program_may_have_a_changed_environment():
    with Stage("test") as stage, socket.create_server(("127.0.0.1", 0)) as server:
        child = stage.run(["sh", "-c", 'echo "$WORD" >&2; cat'], environment={"WORD": "changed"})
        stage.wait_listening(server.getsockname()[1], child, "it")
        child.stdin.close()
        child.wait(5)
        assert stage.log_tail() == "changed"
