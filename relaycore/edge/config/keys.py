"""Every key of the settings, in one table: the loader reads by it, `show` writes by it, the manual is checked by it.

Source: connection manager 8.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from ..events import CONNECT_KINDS, HCM_KINDS
from . import kinds, place_kinds
from .kinds import Kind, choice, count, enumeration, several, span
from .settings import (
    ConnectSettings,
    ControlSettings,
    DialSettings,
    DnsSettings,
    EndpointOrder,
    Forward,
    HcmConnection,
    HcmSettings,
    HealthSettings,
    LimitSettings,
    MetricsSettings,
    OnDown,
    PolicySettings,
    PortBinding,
    ProcessLimits,
    Profile,
    ProxyPortSettings,
    RelaySettings,
    RetrySettings,
    WebhookHeader,
    WebhookSettings,
)
from .toml_text import KeyPath

__all__ = ["RELAY_KEYS", "ROOT", "Key", "Section", "section_at"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
      text: what it means, for the manual.
      field: of the section's value; `name` where it is ``""``; None for a key that has no field of its own.
      default: what counts without it, for the manual, where that is not the field's own default.
    """

    name: str
    kind: Kind
    text: str
    field: str | None = ""
    default: str = ""

    @property
    def attribute(self) -> str | None:
        return self.name if self.field == "" else self.field


@dataclass(frozen=True, slots=True)
class Section:
    """One table.

    Attributes:
      many: one table, a ``list`` of them (``[[...]]``), or a table of tables with ``names``.
      value: the type of `settings` that it becomes.
      field: of the value of the section above; its name there where it is ``""``.
    """

    text: str = ""
    keys: tuple[Key, ...] = ()
    below: Mapping[str, Section] = field(default_factory=dict)
    many: Literal["", "list", "names"] = ""
    value: type[Any] | None = None
    field: str = ""

    def key(self, name: str) -> Key | None:
        """The key of that name, or None."""
        return next((key for key in self.keys if key.name == name), None)

    def names(self) -> list[str]:
        """What may stand in it."""
        return [*(key.name for key in self.keys), *self.below]

    def default_of(self, key: Key) -> Any:  # noqa: ANN401 - of the key's own kind
        """The field's value without the key; None where it must be given or has none."""
        if self.value is None:
            return None
        return next((item.default for item in fields(self.value) if item.name == key.attribute), None)


RELAY_KEYS: Final = (
    Key("ca_file", place_kinds.FILE, "PEM file of the authorities to trust besides the system's.", "cafile", "unset"),
    Key(
        "proxy",
        place_kinds.PROXY,
        "How the relay is dialled: `env` heeds `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; `none` dials directly; or"
        " `http://USER@HOST:PORT`, `socks5://HOST:PORT`. A URL with a password makes the file a secret: mode 0600.",
    ),
    Key("keepalive", span(low=1.0), "Silence on a control channel before the relay is pinged.", "keep_alive_s"),
)
"""What an entry may say for itself, instead of its relay."""

_RELAY = Section(
    text="A relay that connections and forwards name. With only one in the settings, they need not name it.",
    many="names",
    value=RelaySettings,
    keys=(
        Key("endpoint", kinds.TEXT, "`sb://HOST[:PORT]/`.", default="needed"),
        *RELAY_KEYS,
        Key("emulator", kinds.BOOL, "Plain `ws` instead of TLS; only on a loopback address.", "is_emulator"),
    ),
)


def _sign_in(what: str, right: str) -> tuple[Key, ...]:
    return (
        Key("name", kinds.NAME, f"What the {what} is called here.", default="its path"),
        Key(
            "relay",
            kinds.TEXT,
            "Name of a `[relay.NAME]`; or a connection string, as `connection_string`.",
            None,
            "the only one",
        ),
        Key(
            "connection_string",
            place_kinds.CONNECTION_STRING,
            "Instead of `relay`, `path` and `key_name`: `Endpoint=sb://HOST[:PORT]/;SharedAccessKeyName=RULE;"
            "EntityPath=PATH`, in any order, the path in the URL if need be. With `SharedAccessKey` in it, the file has"
            " to be of mode 0600.",
            None,
            "unset",
        ),
        Key("path", kinds.ENTITY, "Path of the hybrid connection.", default="its name"),
        Key("key_name", kinds.TEXT, f"The authorization rule; it needs the right {right}.", default="unset"),
        Key(
            "key",
            place_kinds.SECRET,
            "The rule's key: `{ file = FILE }`, `{ env = VARIABLE }`, `{ credential = NAME }` (systemd), or the key"
            " itself in a file of mode 0600. Files are read again for each token.",
            default="unset",
        ),
        Key("token", place_kinds.SECRET, "A ready token instead of rule and key, as `key`.", default="unset"),
        *(Key(key.name, key.kind, "Instead of the relay's own.", None, default="as the relay") for key in RELAY_KEYS),
    )


_PORT = Section(
    text="With the profile `azbridge`: one name that senders may ask for. With only one, any number leads to it.",
    many="list",
    field="ports",
    value=PortBinding,
    keys=(
        Key("name", kinds.NAME, "What senders ask for, at most 255 bytes.", default="needed"),
        Key("endpoint", several(place_kinds.TARGET, low=1), "Where it leads; several as above.", "targets", "needed"),
        Key("udp", kinds.BOOL, "Datagrams instead of a stream.", "is_udp"),
    ),
)

_DIAL = Section(
    text="How endpoints are dialled: before the sender is accepted, so that a failure reaches it with its reason.",
    value=DialSettings,
    keys=(
        Key("timeout", span(low=0.001, high=29), "For all addresses together.", "timeout_s"),
        Key("order", enumeration(EndpointOrder), "Of several endpoints: `failover`, `round-robin`, `least-open`."),
        Key("family", choice("any", "ipv4", "ipv6"), "`any`, `ipv4`, `ipv6`."),
        Key("source", place_kinds.ADDRESS, "Address of this machine to dial from.", default="unset"),
        Key("nodelay", kinds.BOOL, "Send small pieces at once."),
        Key("proxy_protocol", count(0, 2), "Version of the PROXY header with the sender's address; 0 sends none."),
    ),
)

_HEALTH = Section(
    text="Whether the endpoint is up, and what senders see while it is not.",
    value=HealthSettings,
    keys=(
        Key(
            "probe",
            place_kinds.PROBE,
            "`none`; `tcp` connects; `tls` shakes hands; `http GET /PATH` wants a status below 400;"
            " `{ send = TEXT, expect = TEXT }`; `{ command = [PROGRAM, ...] }` wants exit code 0, and finds"
            " `RELAYCORE_HOST` and `RELAYCORE_PORT` set.",
        ),
        Key("interval", span(low=0.1), "Between two probes.", "interval_s"),
        Key("timeout", span(low=0.01), "Of one probe.", "timeout_s"),
        Key("rise", count(1, 1000), "Probes in a row that turn it up."),
        Key("fall", count(1, 1000), "Probes in a row that turn it down."),
        Key(
            "on_down",
            enumeration(OnDown),
            "`reject` answers senders 503 with the reason, `withdraw` leaves them to other listeners, `ignore` dials.",
        ),
        Key("keep_last", kinds.BOOL, "Reject instead of withdraw as the only listener, and when all others have left."),
    ),
)

_LINGER = Key(
    "half_close_linger",
    span(low=0.001),
    "Silence that one direction may keep once the other has ended.",
    "half_close_linger_s",
)
_IDLE = Key("idle_timeout", span(), "Silence after which a connection is cut; 0 leaves it alone.", "idle_timeout_s")

_LIMITS = Section(
    text="Bounds of one connection entry; 0 is no bound. With the profile `http` the counts are of requests, and rates"
    " and timeouts have no effect.",
    value=LimitSettings,
    keys=(
        Key("max_open", count(0, 1_000_000), "Connections at one time; more wait, and are refused with 503."),
        Key("queue", count(0, 1_000_000), "How many may wait."),
        Key("queue_timeout", span(high=29), "How long they may wait.", "queue_timeout_s"),
        Key("per_sender_open", count(0, 1_000_000), "Connections at one time from one address."),
        Key("rate_in", kinds.RATE, "To the endpoint, all connections together, such as `50MiB/s`."),
        Key("rate_out", kinds.RATE, "From the endpoint."),
        Key("burst", kinds.SIZE, "What may pass before the rates count."),
        Key("weight", count(1, 1000), "Accepted, and without effect: entries share the uplink alike.", None, "1"),
        _IDLE,
        _LINGER,
        Key(
            "drain_timeout",
            span(),
            "For connections to end when the entry is removed or drained, or the program stops.",
            "drain_timeout_s",
        ),
    ),
)

_CONNECTION = Section(
    text="One hybrid connection to listen on.",
    many="list",
    field="connections",
    value=HcmConnection,
    keys=(
        *_sign_in("connection", "Listen"),
        Key(
            "profile",
            enumeration(Profile),
            "`raw`: the endpoint's bytes and nothing else, as Hybrid Connection Manager and App Service; `azbridge`:"
            " with its preamble; `http`: relayed HTTP requests.",
        ),
        Key(
            "endpoint",
            place_kinds.ENDPOINT,
            "`metadata`: what the hybrid connection's own text names; `HOST:PORT`, `unix:/PATH`, or a list of these;"
            " with the profile `http` the URL of the server.",
            None,
            '`"metadata"`',
        ),
        Key("listeners", count(1, 25), "Control channels of this process; the relay allows 25 in all."),
        Key("early_reply", kinds.BOOL, "Profile `azbridge`: answer before the endpoint is dialled, as azbridge does."),
        Key("paused", kinds.BOOL, "Listen only when told so by `relaycore hcm resume`.", "is_paused"),
    ),
    below={"port": _PORT, "dial": _DIAL, "health": _HEALTH, "limits": _LIMITS},
)

_CONTROL = Section(
    text="The socket by which the command line talks to the running program.",
    value=ControlSettings,
    keys=(
        Key(
            "socket",
            place_kinds.FILE,
            "Its path; made with mode 0600. `$RUNTIME_DIR` is `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR/relaycore`,"
            " `/run/relaycore` for root, or `/tmp/relaycore-UID`.",
            default="`hcm.sock` or `connect.sock` in `$RUNTIME_DIR`",
        ),
    ),
)

_METRICS = Section(
    text="Where `/metrics` (Prometheus), `/healthz` and `/readyz` answer.",
    value=MetricsSettings,
    keys=(
        Key("listen", place_kinds.LISTEN, "`ADDRESS:PORT` or `unix:/PATH`.", default="nowhere"),
        Key("ready_when", choice("any", "all"), "How many connections have to be Connected for `/readyz`."),
    ),
)


def _webhook(event_kinds: tuple[str, ...]) -> Section:
    return Section(
        text="Where events are posted to, each as one JSON object: `program`, `host`, `time_unix`, `name`, `kind`,"
        " `text`.",
        value=WebhookSettings,
        keys=(
            Key("url", place_kinds.WEBHOOK, "`https://...`, or `http://...`; proxies as by `env`.", default="nowhere"),
            Key(
                "events",
                several(choice(*event_kinds)),
                f"Of {', '.join(f'`{kind}`' for kind in event_kinds)}.",
                default="all",
            ),
            Key("timeout", span(low=0.1, high=300.0), "For one attempt; there are five.", "timeout_s"),
        ),
        below={
            "header": Section(
                text="A header of each post, such as a token.",
                value=WebhookHeader,
                keys=(
                    Key("name", place_kinds.HEADER_NAME, "Such as `Authorization`.", default="none"),
                    Key("value", place_kinds.SECRET, "All of it, as `key`.", default="none"),
                ),
            )
        },
    )


_HCM = Section(
    value=HcmSettings,
    below={
        "connection": _CONNECTION,
        "policy": Section(
            text="What may be published from this machine. Patterns are `HOST:PORT`: a name, `*`, `*.SUFFIX`, an"
            " address or a network; and a port, `*` or `A-B`; or `unix:/PATH`, which may end in `*`. They count for"
            " names and for what these resolve to. Other spellings of an address, such as `127.1`, are refused.",
            value=PolicySettings,
            keys=(
                Key("allow", place_kinds.PATTERNS, "Nothing else may be dialled.", default="all"),
                Key("deny", place_kinds.PATTERNS, "May not be dialled, allowed or not."),
            ),
        ),
        "limits": Section(
            text="Rates of all connection entries together, beside their own; 0 is no bound. With the profile `http`"
            " they have no effect.",
            value=ProcessLimits,
            keys=(
                Key("rate_in", kinds.RATE, "To the endpoints, such as `50MiB/s`."),
                Key("rate_out", kinds.RATE, "From the endpoints."),
                Key("burst", kinds.SIZE, "What may pass before the rates count."),
            ),
        ),
        "metrics": _METRICS,
        "webhook": _webhook(HCM_KINDS),
        "control": _CONTROL,
    },
)

_FORWARD = Section(
    text="One hybrid connection that local programs reach.",
    many="list",
    field="forwards",
    value=Forward,
    keys=(
        *_sign_in("forward", "Send"),
        Key("profile", choice("raw", "azbridge"), "`raw`, or `azbridge` with its preamble."),
        Key(
            "hosts",
            place_kinds.HOSTS,
            "Names that lead to it; `*.SUFFIX` for the stub resolver and the proxy port.",
            default="the host of the endpoint in the hybrid connection's own text",
        ),
        Key("port", count(0, 65_535), "The endpoint's port, as programs dial it; 0: as that text says."),
        Key(
            "listen",
            place_kinds.LISTENS,
            "Local addresses: `auto:PORT` on the forward's own address in the pool, `ADDRESS:PORT`, `udp:...`,"
            " `unix:/PATH`, with `,mode=660`, `,owner=USER`, `,group=GROUP` behind it"
            " (mode 600 and our own user otherwise).",
            default='`["auto"]` with the endpoint\'s port',
        ),
        Key("port_name", kinds.NAME, "Profile `azbridge`: the name to ask for.", default="the port's number"),
        Key("fail_fast", kinds.BOOL, "Open the relay leg at once, and reset the program's connection when it fails."),
        _IDLE,
        _LINGER,
    ),
    below={
        "connect": Section(
            text="How long a program's connection is worth trying for.",
            field="retry",
            value=RetrySettings,
            keys=(
                Key("timeout", span(low=0.001), "For all attempts together.", "timeout_s"),
                Key("attempts", count(1, 100), "At most."),
            ),
        )
    },
)

_CONNECT = Section(
    value=ConnectSettings,
    below={
        "forward": _FORWARD,
        "dns": Section(
            text="The stub resolver for configured names.",
            value=DnsSettings,
            keys=(
                Key("listen", place_kinds.LISTENS, "`ADDRESS:PORT`, UDP and TCP; empty: none.", default="`[]`"),
                Key("ttl", kinds.WHOLE_SECONDS, "How long answers may be kept.", "ttl_s"),
                Key("upstream", choice("none", "system"), "Other names: `none` refuses them, `system` passes them on."),
            ),
        ),
        "proxy": Section(
            text="The port that speaks SOCKS5, SOCKS4a and HTTP CONNECT.",
            value=ProxyPortSettings,
            keys=(
                Key("listen", place_kinds.LISTEN, "`ADDRESS:PORT` or `unix:/PATH`.", default="nowhere"),
                Key("users", place_kinds.SECRET, "File with `USER:PASSWORD` lines, as `key`.", default="no password"),
                Key("bypass", place_kinds.PATTERNS, "Targets that are dialled directly; as in `[hcm.policy]`."),
                Key("allow_unconfigured", kinds.BOOL, "As `bypass` with `*:*`.", None, "false"),
            ),
        ),
        "pool": Section(
            text="Where `auto` addresses are from.",
            keys=(Key("loopback", place_kinds.POOL, "A network within 127.0.0.0/8.", None, '`"127.77.0.0/16"`'),),
        ),
        "metrics": _METRICS,
        "webhook": _webhook(CONNECT_KINDS),
        "control": _CONTROL,
    },
)

ROOT: Final = Section(below={"relay": _RELAY, "hcm": _HCM, "connect": _CONNECT})
"""The whole document."""


def section_at(path: KeyPath) -> Section | None:
    """The section of a table, or of an array or a table of tables: ``("hcm", "connection")`` and
    ``("hcm", "connection", 0)`` are the same one. None where there is none."""
    section, is_open = ROOT, False
    for part in path:
        if is_open and section.many and (isinstance(part, int) or section.many == "names"):
            is_open = False
            continue
        below = section.below.get(part) if isinstance(part, str) else None
        if below is None:
            return None
        section, is_open = below, bool(below.many)
    return section
