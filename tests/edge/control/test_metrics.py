"""Numbers for Prometheus, read back by its own parser."""

from __future__ import annotations

import functools
import math
import sys

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relaycore.edge.connect.status import ForwarderStatus, ForwardState, ForwardStatus
from relaycore.edge.control.metrics import Tallies, forwarder_families, manager_families, render
from relaycore.edge.hcm.status import ConnectionStatus, ManagerStatus
from relaycore.edge.spent import BOUNDS_S, Spent
from relaycore.errors import ConfigError


def connection(name="orders", **others) -> ConnectionStatus:
    values = {
        "status": "Connected", "detail": "", "relay_leg": "Connected", "endpoint_leg": "Up",
        "relay": "relay.example:9443", "path": name, "profile": "raw", "listeners_here": 1, "listeners_wanted": 1,
        "listeners_total": 2, "listeners_unix": 0.0, "endpoint": "db:1433", "endpoint_from": "settings",
        "health": "up 1.9 ms", "latency_ms": 1.9, "open": 2, "queued": 1, "bytes_in": 10, "bytes_out": 20,
        "accepted": 7, "lost": 1, "rejected": {"refused": 3}, "since_unix": 0.0, "attempts": 0, "next_try_unix": None,
        "last_error": "", "last_error_unix": None, "created_unix": None, "updated_unix": None,
    } | others  # fmt: skip
    return ConnectionStatus(name=name, **values)


def read(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(found, metric, /, **labels):
    return found.get((f"relaycore_edge_{metric}", tuple(sorted(labels.items()))))


def spent(*seconds: float) -> Spent:
    return functools.reduce(Spent.plus, seconds, Spent())


def test_the_numbers_of_a_manager():
    tallies = Tallies()
    tallies.reloads["failed"] += 1
    status = ManagerStatus(
        host="edge-a",
        since_unix=100.0,
        relay="relay.example",
        connections=(
            connection(
                reconnects={"closed": 3, "lost": 1}, dials=spent(0.001, 0.499), rendezvous=spent(0.0, 0.05, 0.2),
                throttled_in_s=1.5, throttled_out_s=2.5, tokens_renewed=8, tokens_failed=1, token_expires_unix=1160.0,
                certificate_expires_unix=100.0,
            ),
            connection(
                'odd "name"\n',
                relay_leg="Reconnecting", endpoint_leg="Unknown", latency_ms=None, listeners_here=0,
                listeners_total=None, rejected={},
            ),
        ),
    )  # fmt: skip
    found = read(render(manager_families(status, tallies, now_unix=lambda: 160.0)))
    assert sample(found, "relay_up", name="orders") == 1
    assert sample(found, "relay_up", name='odd "name"\n') == 0
    assert sample(found, "listeners", name="orders") == 1
    assert sample(found, "listeners_registered", name="orders") == 2
    assert sample(found, "listeners_registered", name='odd "name"\n') is None
    assert sample(found, "endpoint_up", name="orders", target="db:1433") == 1
    assert sample(found, "endpoint_up", name='odd "name"\n', target="db:1433") is None
    assert sample(found, "endpoint_probe_seconds", name="orders") == pytest.approx(0.0019)
    assert sample(found, "connections_open", name="orders") == 2
    assert sample(found, "queue_length", name="orders") == 1
    assert sample(found, "connections_total", name="orders", result="closed") == 4
    assert sample(found, "connections_total", name="orders", result="lost") == 1
    assert sample(found, "connections_total", name="orders", result="rejected") == 3
    assert sample(found, "rejected_total", name="orders", reason="refused") == 3
    assert sample(found, "bytes_total", name="orders", dir="in") == 10
    assert sample(found, "bytes_total", name="orders", dir="out") == 20
    assert sample(found, "reconnects_total", name="orders", reason="closed") == 3
    assert sample(found, "reconnects_total", name="orders", reason="lost") == 1
    assert sample(found, "dial_seconds_count", name="orders") == 2
    assert sample(found, "dial_seconds_sum", name="orders") == 0.5
    assert sample(found, "rendezvous_seconds_count", name="orders") == 3
    assert sample(found, "rendezvous_seconds_sum", name="orders") == 0.25
    assert sample(found, "throttled_seconds_total", name="orders", dir="in") == 1.5
    assert sample(found, "throttled_seconds_total", name="orders", dir="out") == 2.5
    assert sample(found, "token_renew_total", name="orders", result="ok") == 8
    assert sample(found, "token_renew_total", name="orders", result="failed") == 1
    assert sample(found, "token_expires_seconds", name="orders") == 1000
    assert sample(found, "token_expires_seconds", name='odd "name"\n') is None
    assert sample(found, "cert_expires_seconds", name="orders") == -60
    assert sample(found, "cert_expires_seconds", name='odd "name"\n') is None
    assert sample(found, "config_reload_total", result="failed") == 1
    assert sample(found, "uptime_seconds") == 60


def test_a_name_in_use_again_is_one_name():
    """Prometheus takes no number twice; the removed one still drains."""
    old = connection(relay_leg="Stopped", open=5, bytes_in=100, rejected={"refused": 1, "policy": 2})
    old = msgspec.structs.replace(old, reconnects={"lost": 2}, dials=spent(1.0))
    new = connection(dials=spent(0.5), reconnects={"lost": 1})
    status = ManagerStatus(host="edge-a", since_unix=0.0, relay="relay.example", connections=(new, old))
    text = render(manager_families(status, Tallies()))
    names = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(names) == len(set(names))
    found = read(text)
    assert sample(found, "relay_up", name="orders") == 1
    assert sample(found, "connections_open", name="orders") == 7
    assert sample(found, "bytes_total", name="orders", dir="in") == 110
    assert "bytes_total Bytes to the endpoint (in) and from it (out)." in text
    assert sample(found, "rejected_total", name="orders", reason="refused") == 4
    assert sample(found, "rejected_total", name="orders", reason="policy") == 2
    assert sample(found, "reconnects_total", name="orders", reason="lost") == 3
    assert sample(found, "dial_seconds_sum", name="orders") == 1.5
    assert sample(found, "dial_seconds_bucket", name="orders", le="0.5") == 1
    assert sample(found, "dial_seconds_bucket", name="orders", le="1.0") == 2


@pytest.mark.parametrize("metric", ["dial_seconds", "rendezvous_seconds"])
def test_durations_are_histograms(metric):
    """8.10: percentiles can be read off them."""
    found = spent(0.0, 0.001, 0.0011, 0.03, 29.9, 30.0, 31.0, 900.0)
    status = ManagerStatus(
        host="edge-a", since_unix=0.0, relay="r", connections=(connection(dials=found, rendezvous=found),)
    )
    text = render(manager_families(status, Tallies()))
    assert f"# TYPE relaycore_edge_{metric} histogram\n" in text
    lines = [line for line in text.splitlines() if line.startswith(f"relaycore_edge_{metric}")]
    bounds = [float(line.partition('le="')[2].partition('"')[0]) for line in lines if "_bucket{" in line]
    counts = [float(line.rpartition(" ")[2]) for line in lines if "_bucket{" in line]
    assert bounds == [*BOUNDS_S, math.inf]
    assert counts == [2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 6, 8]
    samples = read(text)
    assert sample(samples, f"{metric}_count", name="orders") == 8
    assert sample(samples, f"{metric}_sum", name="orders") == pytest.approx(990.9321)


def test_the_numbers_of_a_forwarder():
    forward = ForwardStatus(
        name="orders", state=ForwardState.LISTENING, listen=("127.77.0.1:1433",), address="127.77.0.1", hosts=("db",),
        port=1433, relay="relay.example", path="orders", profile="raw", open=1, dialling=1, accepted=9, refused=2,
        lost=1, left=1, retries=3, bytes_in=5, bytes_out=6, handshake_s=0.03, last_error="", last_error_unix=None,
        since_unix=0.0, rendezvous=spent(0.1, 0.1, 0.1, 0.2),
    )  # fmt: skip
    tallies = Tallies()
    tallies.dns, tallies.proxy = {"answered": 3}, {("socks5", "ok"): 2}
    status = ForwarderStatus(host="laptop", since_unix=0.0, forwards=(forward,))
    text = render(forwarder_families(status, tallies, now_unix=lambda: 1.0))
    found = read(text)
    assert sample(found, "forward_up", name="orders") == 1
    assert sample(found, "connections_open", name="orders") == 1
    assert sample(found, "connections_dialling", name="orders") == 1
    assert sample(found, "connections_total", name="orders", result="joined") == 4
    assert sample(found, "connections_total", name="orders", result="refused") == 2
    assert sample(found, "retries_total", name="orders") == 3
    assert sample(found, "rendezvous_seconds_count", name="orders") == 4
    assert sample(found, "rendezvous_seconds_sum", name="orders") == 0.5
    assert sample(found, "rendezvous_seconds_bucket", name="orders", le="0.1") == 3
    assert sample(found, "dns_queries_total", result="answered") == 3
    assert sample(found, "proxy_requests_total", kind="socks5", result="ok") == 2
    assert sample(found, "bytes_total", name="orders", dir="out") == 6
    assert "bytes_total Bytes from the relay (in) and to it (out)." in text


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"install relaycore\[edge\]"):
        render([])
