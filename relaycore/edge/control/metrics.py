"""The numbers of a manager or a forwarder as text for Prometheus.

Names and labels are those of the connection manager's description (8.10). A number that nobody here can know is left
out instead of being zero. What is counted in a status starts anew with the program, as counters may.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from ...errors import ConfigError
from ..hcm.status import ConnectionStatus, ManagerStatus, RelayLeg
from ..spent import BOUNDS_S, Spent

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

    from ..connect.status import ForwarderStatus

__all__ = ["CONTENT_TYPE", "Tallies", "forwarder_families", "manager_families", "render"]

PREFIX: Final = "relaycore_edge_"

_SUMMED: Final = (
    "open", "queued", "bytes_in", "bytes_out", "accepted", "lost", "dials", "rendezvous", "throttled_in_s",
    "throttled_out_s", "tokens_renewed", "tokens_failed",
)  # fmt: skip

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The text form of Prometheus, which every scraper takes."""


class Tallies:
    """What no status counts, because it belongs to the program around it."""

    def __init__(self) -> None:
        self.reloads = {"ok": 0, "failed": 0}
        self.dns: Mapping[str, int] = {}
        """Questions to the name server, by result."""
        self.proxy: Mapping[tuple[str, str], int] = {}
        """Requests to the proxy port, by kind and result."""
        self.webhook: Counter[str] = Counter()
        """Events for the webhook: ``sent``, ``dropped``, ``failed``."""


def render(families: Iterable[Metric]) -> str:
    """Return the text of all `families`.

    Raises:
      ConfigError: the library for it is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise ConfigError(
            "metrics need the package prometheus-client; install relaycore[edge]", key="metrics.listen"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families)))
    return generate_latest(registry).decode()


class _Once:
    """A collector of what has been collected."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def manager_families(
    status: ManagerStatus, tallies: Tallies, *, now_unix: Callable[[], float] = time.time
) -> Iterator[Metric]:
    """Yield the numbers of a manager."""
    all_of_them = _by_name(status.connections)
    yield _gauge(
        "relay_up",
        "Whether a control channel of this process is up.",
        all_of_them,
        lambda one: float(one.relay_leg == RelayLeg.CONNECTED),
    )
    yield _gauge(
        "listeners", "Control channels of this process that are up.", all_of_them, lambda one: one.listeners_here
    )
    yield _gauge(
        "listeners_registered",
        "Listeners of the hybrid connection, those of others included.",
        all_of_them,
        lambda one: one.listeners_total,
    )
    yield _by_target(all_of_them)
    yield _gauge(
        "endpoint_probe_seconds",
        "How long the last probe that succeeded took.",
        all_of_them,
        lambda one: None if one.latency_ms is None else one.latency_ms / 1000,
    )
    yield _gauge("connections_open", "Connections that are joined.", all_of_them, lambda one: one.open)
    yield _gauge("queue_length", "Senders that wait for a place.", all_of_them, lambda one: one.queued)
    yield _totals(all_of_them)
    text = "Bytes to the endpoint (in) and from it (out)."
    yield _bytes(text, ((one.name, one.bytes_in, one.bytes_out) for one in all_of_them))
    rejected = _counter("rejected", "Senders that were refused.", ["name", "reason"])
    for one in all_of_them:
        for reason, count in sorted(one.rejected.items()):
            rejected.add_metric([one.name, reason], count)
    yield rejected
    reconnects = _counter("reconnects", "Control channels that were lost.", ["name", "reason"])
    for one in all_of_them:
        for reason, count in sorted(one.reconnects.items()):
            reconnects.add_metric([one.name, reason], count)
    yield reconnects
    dials = [(one.name, one.dials) for one in all_of_them]
    yield _spent("dial_seconds", "Dials to the endpoint that succeeded.", dials)
    rendezvous = [(one.name, one.rendezvous) for one in all_of_them]
    yield _spent("rendezvous_seconds", "From the endpoint's yes to the sender's connection.", rendezvous)
    throttled = _counter("throttled_seconds", "Waited because of the limits' rates.", ["name", "dir"])
    tokens = _counter("token_renew", "Tokens sent on running channels, and tokens that failed.", ["name", "result"])
    for one in all_of_them:
        throttled.add_metric([one.name, "in"], one.throttled_in_s)
        throttled.add_metric([one.name, "out"], one.throttled_out_s)
        tokens.add_metric([one.name, "ok"], one.tokens_renewed)
        tokens.add_metric([one.name, "failed"], one.tokens_failed)
    yield from (throttled, tokens)
    now = now_unix()
    yield _gauge(
        "token_expires_seconds",
        "Until the token in use runs out.",
        all_of_them,
        lambda one: None if one.token_expires_unix is None else one.token_expires_unix - now,
    )
    yield _gauge(
        "cert_expires_seconds",
        "Until the relay's certificate runs out.",
        all_of_them,
        lambda one: None if one.certificate_expires_unix is None else one.certificate_expires_unix - now,
    )
    yield from _of_the_program(tallies, now - status.since_unix)


def _by_name(connections: Iterable[ConnectionStatus]) -> list[ConnectionStatus]:
    """One of each name: what was removed still carries connections when its name is in use again, and Prometheus takes
    no number twice. The first one's state counts, and the sum of what they carry."""
    found: dict[str, ConnectionStatus] = {}
    for one in connections:
        first = found.get(one.name)
        if first is None:
            found[one.name] = one
            continue
        sums = {name: getattr(first, name) + getattr(one, name) for name in _SUMMED}
        for name in ("rejected", "reconnects"):
            sums[name] = dict(Counter(getattr(first, name)) + Counter(getattr(one, name)))
        found[one.name] = msgspec.structs.replace(first, **sums)
    return list(found.values())


def forwarder_families(
    status: ForwarderStatus, tallies: Tallies, *, now_unix: Callable[[], float] = time.time
) -> Iterator[Metric]:
    """Yield the numbers of a forwarder."""
    opened = _gauge_family("connections_open", "Connections that are joined.", ["name"])
    waiting = _gauge_family("connections_dialling", "Connections that wait for the relay.", ["name"])
    total = _counter("connections", "Connections of local programs.", ["name", "result"])
    retries = _counter("retries", "Attempts after the first.", ["name"])
    listening = _gauge_family("forward_up", "Whether local programs find every address of it.", ["name"])
    for one in status.forwards:
        opened.add_metric([one.name], one.open)
        waiting.add_metric([one.name], one.dialling)
        joined = one.accepted - one.refused - one.lost - one.left - one.dialling
        for result, count in (("joined", joined), ("refused", one.refused), ("lost", one.lost), ("left", one.left)):
            total.add_metric([one.name, result], max(0, count))
        retries.add_metric([one.name], one.retries)
        listening.add_metric([one.name], float(one.state == "Listening"))
    yield from (listening, opened, waiting, total, retries)
    rendezvous = [(one.name, one.rendezvous) for one in status.forwards]
    yield _spent("rendezvous_seconds", "Attempts to reach a listener that succeeded.", rendezvous)
    text = "Bytes from the relay (in) and to it (out)."
    yield _bytes(text, ((one.name, one.bytes_in, one.bytes_out) for one in status.forwards))
    questions = _counter("dns_queries", "Questions to the name server.", ["result"])
    for result, count in sorted(tallies.dns.items()):
        questions.add_metric([result], count)
    requests = _counter("proxy_requests", "Requests to the proxy port.", ["kind", "result"])
    for (kind, result), count in sorted(tallies.proxy.items()):
        requests.add_metric([kind, result], count)
    yield from (questions, requests)
    yield from _of_the_program(tallies, now_unix() - status.since_unix)


def _of_the_program(tallies: Tallies, uptime_s: float) -> Iterator[Metric]:
    reloads = _counter("config_reload", "Reloads of the settings.", ["result"])
    for result, count in tallies.reloads.items():
        reloads.add_metric([result], count)
    yield reloads
    posts = _counter("webhook_events", "Events for the webhook.", ["result"])
    for result, count in sorted(tallies.webhook.items()):
        posts.add_metric([result], count)
    yield posts
    uptime = _gauge_family("uptime_seconds", "Age of the program.", [])
    uptime.add_metric([], max(0.0, uptime_s))
    yield uptime


def _gauge(
    name: str, text: str, connections: Iterable[ConnectionStatus], value: Callable[[ConnectionStatus], float | None]
) -> GaugeMetricFamily:
    family = _gauge_family(name, text, ["name"])
    for one in connections:
        found = value(one)
        if found is not None:
            family.add_metric([one.name], found)
    return family


def _by_target(connections: Iterable[ConnectionStatus]) -> GaugeMetricFamily:
    family = _gauge_family("endpoint_up", "Whether the endpoint answers its probes.", ["name", "target"])
    for one in connections:
        if one.endpoint_leg != "Unknown":
            family.add_metric([one.name, one.endpoint], float(one.endpoint_leg != "Down"))
    return family


def _totals(connections: Iterable[ConnectionStatus]) -> CounterMetricFamily:
    family = _counter("connections", "Senders that came.", ["name", "result"])
    for one in connections:
        results = (
            ("closed", max(0, one.accepted - one.open - one.lost)),
            ("lost", one.lost),
            ("rejected", sum(one.rejected.values())),
        )
        for result, count in results:
            family.add_metric([one.name, result], count)
    return family


def _bytes(text: str, rows: Iterable[tuple[str, int, int]]) -> CounterMetricFamily:
    family = _counter("bytes", text, ["name", "dir"])
    for name, inwards, outwards in rows:
        family.add_metric([name, "in"], inwards)
        family.add_metric([name, "out"], outwards)
    return family


def _spent(name: str, text: str, rows: Iterable[tuple[str, Spent]]) -> HistogramMetricFamily:
    """A family of buckets, sums and counts."""
    from prometheus_client.core import HistogramMetricFamily

    bounds = [*map(str, BOUNDS_S), "+Inf"]
    family = HistogramMetricFamily(PREFIX + name, text, labels=["name"])
    for label, spent in rows:
        family.add_metric([label], list(zip(bounds, spent.cumulative(), strict=True)), spent.seconds)
    return family


def _gauge_family(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _counter(name: str, text: str, labels: list[str]) -> CounterMetricFamily:
    """A family whose lines end in ``_total``."""
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(PREFIX + name, text, labels=labels)
