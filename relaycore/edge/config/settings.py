"""Every setting of the edge programs as a checked value. Times are in seconds, sizes in bytes, rates in bytes a second.

Values compare by content: a reload finds by ``==`` what has changed, and leaves the rest alone. Where they are read
from, and how texts such as ``"30s"`` become numbers, is the business of `load`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .secret import Secret

__all__ = [
    "METADATA",
    "ConnectSettings",
    "ControlSettings",
    "DialSettings",
    "DnsSettings",
    "EdgeSettings",
    "EndpointOrder",
    "Forward",
    "HcmConnection",
    "HcmSettings",
    "HealthSettings",
    "LimitSettings",
    "ListenAt",
    "MetricsSettings",
    "OnDown",
    "PolicySettings",
    "PortBinding",
    "Probe",
    "Profile",
    "ProxyPortSettings",
    "RelaySettings",
    "RetrySettings",
    "Target",
]

METADATA: Final = "metadata"
"""In place of targets: what the hybrid connection's own text names, as the vendor's connection manager does it."""


class Profile(enum.StrEnum):
    """What the bytes of a connection through the relay look like (connection manager 4.1, 3.6)."""

    RAW = "raw"  # nothing but the endpoint's own bytes; as the vendor's connection manager and App Service
    AZBRIDGE = "azbridge"  # a preamble that names a port, an answer, then the bytes; or datagrams
    HTTP = "http"  # relayed HTTP requests to an HTTP server


class EndpointOrder(enum.StrEnum):
    """Which of several targets is dialled first."""

    FAILOVER = "failover"  # always the first that answers
    ROUND_ROBIN = "round-robin"
    LEAST_OPEN = "least-open"


class OnDown(enum.StrEnum):
    """What senders see while the endpoint is down."""

    REJECT = "reject"  # 503 with the reason
    WITHDRAW = "withdraw"  # the listener leaves the relay, so that other managers get the senders
    IGNORE = "ignore"  # each sender's own dial decides


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint: a TCP host and port, or the path of a Unix socket.

    Attributes:
      host: name or address, IPv6 without brackets; ``""`` for a Unix socket.
      port: 1 to 65535; 0 for a Unix socket.
      path: of a Unix socket, else ``""``.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ListenAt:
    """Where a local program finds a forward.

    Attributes:
      kind: ``tcp``, ``udp`` or ``unix``.
      host: an address, ``localhost``, or ``auto`` for the forward's own address in the pool.
      port: 0 where the endpoint's own port is meant (with ``auto``).
      path: of a Unix socket, else ``""``; with the permission bits of ``mode``.
      owner, group: whose that socket's file is to be, by name or number; ``""``: ours.
    """

    kind: Literal["tcp", "udp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""
    mode: int = 0o600
    owner: str = ""
    group: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'udp:' if self.kind == 'udp' else ''}{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """One relay.

    Attributes:
      name: what connections call it; ``""`` for one that a connection string names.
      endpoint: ``sb://HOST[:PORT]/``.
      cafile: PEM file of the authorities to trust besides the system's.
      proxy: ``env``, ``none``, or the URL of an HTTP or SOCKS5 proxy; the URL may hold a password.
      keep_alive_s: silence on a control channel before the relay is pinged.
      is_emulator: plain ``ws`` on a loopback address (``UseDevelopmentEmulator=true``).
    """

    name: str
    endpoint: str
    cafile: Path | None = None
    proxy: str = field(default="env", repr=False)
    keep_alive_s: float = 30.0
    is_emulator: bool = False


@dataclass(frozen=True, slots=True)
class DialSettings:
    """How targets are dialled.

    Attributes:
      timeout_s: for all addresses of all targets together; below the 30 s that an accept has.
      source: local address to dial from.
      proxy_protocol: version of the PROXY header to send first, 0 for none.
    """

    timeout_s: float = 10.0
    order: EndpointOrder = EndpointOrder.FAILOVER
    family: Literal["any", "ipv4", "ipv6"] = "any"
    source: str | None = None
    nodelay: bool = True
    proxy_protocol: Literal[0, 1, 2] = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """One way to ask an endpoint how it is.

    Attributes:
      kind: ``none``; ``tcp`` connects; ``tls`` shakes hands too; ``http`` wants a status below 400; ``exchange`` sends
        and expects bytes; ``command`` wants exit code 0.
      path: of ``http``, begins with a slash.
      send, expect: of ``exchange``; ``expect`` has to occur in the first 4 KiB of the answer.
      command: of ``command``: program and arguments; it finds ``RELAYCORE_HOST`` and ``RELAYCORE_PORT`` in its
        environment.
    """

    kind: Literal["none", "tcp", "tls", "http", "exchange", "command"] = "tcp"
    path: str = "/"
    send: bytes = b""
    expect: bytes = b""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When an endpoint counts as up or down.

    Attributes:
      rise, fall: probes in a row that turn it up, and down.
      keep_last: do not withdraw as the only listener, and come back when all others have left; refuse with 503 instead,
        so that senders see the true reason.
    """

    probe: Probe = Probe()
    interval_s: float = 10.0
    timeout_s: float = 2.0
    rise: int = 2
    fall: int = 3
    on_down: OnDown = OnDown.REJECT
    keep_last: bool = True


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Bounds of one connection entry; 0 is no bound.

    Attributes:
      max_open: connections at one time; ``queue`` more wait up to ``queue_timeout_s``, further ones are refused.
      per_sender_open: connections at one time from one address.
      rate_in, rate_out: bytes a second to and from the endpoint, of all connections together, after ``burst`` bytes.
      idle_timeout_s: silence after which a connection is cut.
      half_close_linger_s: silence that the second direction may keep once the first has ended.
      drain_timeout_s: for connections to end when the entry is removed, drained, or the program stops.
    """

    max_open: int = 0
    queue: int = 0
    queue_timeout_s: float = 5.0
    per_sender_open: int = 0
    rate_in: int = 0
    rate_out: int = 0
    burst: int = 1 << 20
    idle_timeout_s: float = 0.0
    half_close_linger_s: float = 60.0
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class PortBinding:
    """One port name of an azbridge connection and where it leads."""

    name: str
    targets: tuple[Target, ...]
    is_udp: bool = False


@dataclass(frozen=True, slots=True)
class HcmConnection:
    """One hybrid connection that a manager listens on.

    Attributes:
      name: what people call it here; unique among the manager's.
      relay, path: which hybrid connection; ``path`` without slashes at its ends.
      key_name, key: the rule to sign with; or ``token``, a ready one.
      targets: ``METADATA``, or where connections lead. For the azbridge profile ``ports`` counts instead.
      http_url: with the profile ``http``: the server, such as ``http://localhost:8080/base``.
      listeners: control channels that this process holds.
      early_reply: azbridge: answer before the endpoint is dialled, as the original does.
      is_paused: listen again only when told so.
    """

    name: str
    relay: RelaySettings
    path: str
    key_name: str = ""
    key: Secret | None = None
    token: Secret | None = None
    profile: Profile = Profile.RAW
    targets: tuple[Target, ...] | Literal["metadata"] = METADATA
    ports: tuple[PortBinding, ...] = ()
    http_url: str = ""
    listeners: int = 1
    early_reply: bool = False
    is_paused: bool = False
    dial: DialSettings = DialSettings()
    health: HealthSettings = HealthSettings()
    limits: LimitSettings = LimitSettings()


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What may be published from this machine. Patterns are ``HOST:PORT``: ``*`` and ``*.suffix`` for names, CIDR for
    addresses, ``*`` and ``A-B`` for ports.

    Attributes:
      allow: None allows all that ``deny`` does not name.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where ``/metrics``, ``/healthz`` and ``/readyz`` answer; None is nowhere.

    Attributes:
      ready_when: ``any`` or ``all`` connections are Connected.
    """

    listen: ListenAt | None = None
    ready_when: Literal["any", "all"] = "any"


@dataclass(frozen=True, slots=True)
class WebhookHeader:
    """A header that goes with each post; ``""`` is none."""

    name: str = ""
    value: Secret | None = None


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where events are posted to.

    Attributes:
      url: ``""`` is nowhere. What stands behind the host may be a secret.
      events: kinds; empty is all.
      timeout_s: for one attempt.
    """

    url: str = field(default="", repr=False)
    events: tuple[str, ...] = ()
    timeout_s: float = 10.0
    header: WebhookHeader = WebhookHeader()


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The socket by which the command line talks to a running program; None is the default place."""

    socket: Path | None = None


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Rates of all entries together, beside those that each has for itself; as in `LimitSettings`."""

    rate_in: int = 0
    rate_out: int = 0
    burst: int = 1 << 20


@dataclass(frozen=True, slots=True)
class HcmSettings:
    """Settings of the connection manager."""

    connections: tuple[HcmConnection, ...] = ()
    policy: PolicySettings = PolicySettings()
    limits: ProcessLimits = ProcessLimits()
    metrics: MetricsSettings = MetricsSettings()
    webhook: WebhookSettings = WebhookSettings()
    control: ControlSettings = ControlSettings()


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How long a local program's connection is worth trying for.

    Attributes:
      timeout_s: for all attempts together.
      attempts: at most.
    """

    timeout_s: float = 15.0
    attempts: int = 3


@dataclass(frozen=True, slots=True)
class Forward:
    """One hybrid connection that local programs reach.

    Attributes:
      hosts: names that lead to it; empty: the host of the endpoint in the hybrid connection's own text.
      port: the endpoint's port as programs dial it; 0 where that text says it.
      listen: local addresses; empty is ``auto`` with that port.
      port_name: of the azbridge profile; ``""`` sends the port's number.
      fail_fast: reset a program's connection as soon as the relay refuses, instead of when it sends.
    """

    name: str
    relay: RelaySettings
    path: str
    key_name: str = ""
    key: Secret | None = None
    token: Secret | None = None
    profile: Profile = Profile.RAW
    hosts: tuple[str, ...] = ()
    port: int = 0
    listen: tuple[ListenAt, ...] = ()
    port_name: str = ""
    fail_fast: bool = True
    retry: RetrySettings = RetrySettings()
    idle_timeout_s: float = 0.0
    half_close_linger_s: float = 60.0

    @property
    def asks_relay(self) -> bool:
        """Whether hosts or port have to be read at the relay, in the hybrid connection's own text.

        azbridge knows no such text: without a host name, its forwards are local addresses and nothing else.
        """
        if self.hosts:
            return not self.port
        is_local = self.listen and all(at.kind == "unix" or (at.host != "auto" and at.port) for at in self.listen)
        return self.profile is not Profile.AZBRIDGE or not is_local


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """The stub resolver for configured names.

    Attributes:
      upstream: ``none`` refuses other names, ``system`` asks the system's resolvers.
    """

    listen: tuple[ListenAt, ...] = ()
    ttl_s: int = 5
    upstream: Literal["none", "system"] = "none"


@dataclass(frozen=True, slots=True)
class ProxyPortSettings:
    """The port that speaks SOCKS5, SOCKS4a and HTTP CONNECT.

    Attributes:
      users: a file with ``USER:PASSWORD`` lines; None asks for no password.
      bypass: patterns as in `PolicySettings` of targets that are dialled directly.
    """

    listen: ListenAt | None = None
    users: Secret | None = None
    bypass: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectSettings:
    """Settings of the forwarder.

    Attributes:
      pool: the network that ``auto`` addresses are from.
    """

    forwards: tuple[Forward, ...] = ()
    dns: DnsSettings = DnsSettings()
    proxy: ProxyPortSettings = ProxyPortSettings()
    pool: str = "127.77.0.0/16"
    metrics: MetricsSettings = MetricsSettings()
    webhook: WebhookSettings = WebhookSettings()
    control: ControlSettings = ControlSettings()


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """All of it."""

    relays: tuple[RelaySettings, ...] = ()
    hcm: HcmSettings = HcmSettings()
    connect: ConnectSettings = ConnectSettings()
