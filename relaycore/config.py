"""Settings: one TOML file, the environment and flags become one frozen :class:`Config`.

Precedence, strongest first: flags, environment, file, defaults. Everything is read once, at the start, and checked as a
whole: an unknown name, a wrong type or a value out of bounds is a :class:`~relaycore.errors.ConfigError` that names
where it stands, and for an unknown name the nearest known one. A setting that is misspelt must never be silently
without effect.

========================  =======================================
setting                   where it may stand
========================  =======================================
``server.port``           ``[server]`` / ``port = 8080`` in the file
\\                         ``RELAYCORE_SERVER_PORT=8080``
\\                         ``--port 8080`` (the common ones)
========================  =======================================

Spans are seconds (float), sizes bytes (int). No setting holds a secret: keys live in the store, and connection strings
come in through ``RELAYCORE_CONNECTION_STRING``, a file or standard input, never through a flag.

The protocol's own numbers are in ``wire/limits.py``; this room stands below it and repeats their values as defaults. A
test compares the two.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from .errors import ConfigError

__all__ = [
    "CONNECTION_STRING_VARIABLE",
    "Config",
    "LimitsConfig",
    "LogConfig",
    "NamespaceConfig",
    "ServerConfig",
    "Setting",
    "StoreConfig",
    "TimeoutsConfig",
    "TlsConfig",
    "default_store_path",
    "load_config",
    "settings",
]

CONNECTION_STRING_VARIABLE: Final = "RELAYCORE_CONNECTION_STRING"
"""Environment variable from which commands take the connection string of a relay; so `ps` never shows a key."""

_PREFIX: Final = "RELAYCORE_"

_OTHER_VARIABLES: Final = frozenset({CONNECTION_STRING_VARIABLE, "RELAYCORE_CONFIG", "RELAYCORE_TOKEN"})
"""Variables with our prefix that are not settings of the server."""

_FOREIGN_VARIABLES: Final = re.compile(r"RELAYCORE_(SERVICE_.*|PORT(_.*)?|TEST_.*|BENCH_.*|_.*)")
"""Names with our prefix that somebody else sets: Kubernetes describes a service called ``relaycore`` to every pod by
``RELAYCORE_SERVICE_HOST``, ``RELAYCORE_PORT_8080_TCP`` and so on, our own tests and benchmarks take theirs, and two
underscores begin a setting of the edge programs."""

_EDGE_SECTIONS: Final = frozenset({"relay", "hcm", "connect"})
"""Settings of the edge programs, which may stand in the same file; they are checked where they count."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Size = Annotated[int, Meta(ge=1_024, le=1 << 30)]
Span = Annotated[float, Meta(gt=0, le=86_400)]
SpanOrOff = Annotated[float, Meta(ge=0, le=86_400)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000)]
Text = Annotated[str, Meta(min_length=1, max_length=4_096)]


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The runtime port: where listeners and senders reach the relay."""

    host: Text = "127.0.0.1"
    """Address or name to bind. Loopback, so that a first start is not open to the network; ``0.0.0.0`` or ``::`` is for
    every interface."""

    port: Port = 8_080
    """TCP port; 0 takes a free one, which the ready line names. 8080 needs no privilege; the Node helpers insist on
    443."""

    backlog: Count = 1_024
    """Connections that the kernel keeps while they wait to be accepted. Linux cuts it to ``net.core.somaxconn`` (4096);
    1024 outlasts a reconnecting crowd without hiding an overload."""

    public_url: Text | None = None
    """``ws://HOST[:PORT]`` or ``wss://HOST[:PORT]`` written into rendezvous addresses. Unset: the scheme and ``Host``
    that the listener itself used (wire contract 7.1). Needed behind a proxy that changes either."""

    auto_create: bool = False
    """Whether the first listener with a Listen right on the namespace creates its hybrid connection. Off, because the
    hosted service answers 404 to an unknown path (wire contract 3)."""

    max_connections: Count = 16_384
    """Open TCP connections of the process; at the bound it stops accepting until one ends. 5 000 connections of a full
    namespace need two legs each, the rest is for control channels and requests."""


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """TLS on the runtime port. Off while ``cert`` and ``key`` are unset; TLS 1.2 is the oldest version spoken."""

    cert: Text | None = None
    """PEM file with the server's certificate and its chain. A relative name in the file counts from the file's
    folder."""

    key: Text | None = None
    """PEM file with the unencrypted private key of ``cert``. Given together with it or not at all."""

    reload_interval: SpanOrOff = 1.0
    """Seconds between looks at both files; a changed pair is taken for new handshakes. 0: only on SIGHUP. One second
    makes a renewal visible at once and costs two ``stat`` calls."""


class NamespaceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The namespace that this relay serves."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] = "default"
    """Name in the store, in logs and in management answers. The hosted service wants 6 to 50 characters; not enforced
    (wire contract 15)."""

    hosts: tuple[Annotated[str, Meta(min_length=1, max_length=253)], ...] = ()
    """Host names by which clients may call, without a port, compared without regard to case. Empty: any name, which
    suits one namespace behind many names and addresses. In the environment: separated by commas."""


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where hybrid connections, rules and keys are kept."""

    path: Text | None = None
    """SQLite file, made when missing, readable by its owner only. Unset: ``relaycore/relaycore.db`` in the user's data
    directory (XDG base directories: ``$XDG_DATA_HOME``, else ``~/.local/share``). ``:memory:`` forgets everything at
    the end."""


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds on what peers may make the relay hold. What happens at each bound stands with it."""

    head_bytes: Size = 65_536
    """Bytes of a request head; more is 431. 32 768 of header fields (wire contract 15) and as much for a request line
    with a token in its query."""

    headers_count: Count = 200
    """Header lines of a request; more is 431. Browsers and proxies send some 30; nginx and Apache allow 100."""

    listeners_per_entity: Count = 25
    """Control channels on one hybrid connection; the next listener gets 403 (wire contract 15)."""

    connections_per_namespace: Count = 5_000
    """Senders that wait or are joined at one time; the next one gets 503 (wire contract 15)."""

    entities_per_namespace: Count = 10_000
    """Hybrid connections of a namespace; the next creation is refused (wire contract 15)."""

    rules_per_level: Count = 12
    """Authorization rules on the namespace, and on each hybrid connection; the next is refused (wire contract 15)."""

    pool_buffers: Count = 1_024
    """Receive buffers shared by all sessions. A direction borrows one from receive to complete send, so each reader
    that does not read keeps one; while none is free, sessions go on with a reserve of 4 KiB ones, four for each, and
    then stop reading. 1024 are 256 MiB, and 16 more for the reserve, touched only when that many directions are stalled
    at once; a small machine may take fewer."""

    pool_buffer_bytes: Annotated[int, Meta(ge=4_096, le=1 << 20)] = 258_048
    """Bytes of a buffer, and the most that one receive brings. With its head-room, 258 048 are 64 pages: 256 KiB. A
    session takes that much only while it is alone on its thread, and 64 KiB at a time beside others, which would have
    to wait; sessions that Trio moves always take 64 KiB."""

    control_queue: Count = 256
    """Messages waiting for one control channel. At the bound, senders wait for the listener to read; the accept
    deadline runs on."""

    http_buffer_bytes: Size = 67_108_864
    """Bodies of relayed HTTP requests and responses on control channels, held in memory at one time. Requests may have
    half of it; one that finds no room goes by rendezvous, where nothing is held. A response that finds none is dropped,
    and its sender gets 503. 64 MiB are 1024 bodies of the largest size, 64 KiB."""

    refusals_per_second_per_source: Rate = 20.0
    """Refusals per second and client address answered at once; beyond it answers are delayed, then connections cut.
    One Node client retries a refused listen 1 500 times a second (wire contract 18)."""

    refusals_burst: Count = 40
    """Refusals a client address may collect before the rate counts: two seconds' worth."""

    management_body_bytes: Size = 1_048_576
    """Body of a management request; more is 413 (management contract 9)."""


class TimeoutsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deadlines and intervals, in seconds."""

    head: Span = 10.0
    """From the accepted connection (or the previous answer's next byte) to a complete request head. A slow client gets
    408; ten seconds is generous to a bad network and short for a slow-loris."""

    tls_handshake: Span = 10.0
    """From the accepted connection to the finished TLS handshake; then the connection is cut. As ``head``."""

    accept: Span = 30.0
    """From the ``accept`` message to the listener's rendezvous; then the sender gets 404 (wire contract 14)."""

    token_allowance: SpanOrOff = 300.0
    """How long an expired token still counts: .NET and Java renew at the very instant of expiry (wire contract 5.6)."""

    ping_interval: Span = 60.0
    """Silence on a control channel before the relay pings; after two unanswered pings the listener is dropped (6.3).
    One that leaves an ``accept`` unanswered is pinged after 2 s, and closed after 10 s without a sign of life."""

    http_response: Span = 60.0
    """From a relayed HTTP request to the listener's ``response``; then the sender gets 504. It runs anew with each
    piece of the request's body that the listener takes. The hosted service waits as long (wire contract 14)."""

    http_body: Span = 60.0
    """Silence inside the body of a relayed request or response, or a peer that takes none of it; then the sender gets
    408, or is cut when its answer has begun (wire contract 14)."""

    request_gather: Span = 0.1
    """How long a chunked request is read on before it goes by rendezvous; one that is complete by then, and small, goes
    over the control channel (wire contract 9.2)."""

    half_closed: Span = 600.0
    """Silence on a session of which one side has sent its Close; then the session is cut (wire contract 8.7)."""

    idle: SpanOrOff = 0.0
    """Silence on a session, both ways, until it is cut; 0 leaves idle ones alone (wire contract 8.11)."""

    close: Span = 10.0
    """How long the relay waits for the answer to its own Close before it cuts. The .NET library waits as long."""

    drain: SpanOrOff = 10.0
    """How long after SIGTERM peers may take to answer the 1001 they are sent, before they are cut. Orchestrators allow
    30 s before SIGKILL."""

    keep_alive: Span = 60.0
    """Idle time of an HTTP connection between two requests; then it is closed. nginx waits 75 s, most clients less."""

    refusal_delay: SpanOrOff = 2.0
    """Longest delay of a refusal to a client address beyond its rate. Two seconds slow a retry loop a thousandfold and
    still answer before any client gives up."""


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who moves the bytes of joined sessions."""

    mover: Literal["auto", "engine", "trio"] = "auto"
    """``engine``: threads of C, without Python on the way, for plain sockets on Linux; sessions over TLS are moved by
    Trio all the same. ``trio``: Trio tasks for all. ``auto``: the engine where the system has what it needs."""

    threads: Annotated[int, Meta(ge=0, le=64)] = 0
    """Threads of the engine; 0 is one for each core that the process may use. A session stays with one thread."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important level that is written. ``info`` has the server, listeners and sessions come and go."""

    format: Literal["human", "json"] = "human"
    """``human`` for eyes, ``json`` for one JSON object per line."""

    queue_lines: Count = 10_000
    """Lines waiting for a slow standard error. At the bound new lines are dropped and counted; the relay never waits
    for its log. 10 000 lines are about 2 MB."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set, section by section."""

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    namespace: NamespaceConfig = NamespaceConfig()
    store: StoreConfig = StoreConfig()
    limits: LimitsConfig = LimitsConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    engine: EngineConfig = EngineConfig()
    log: LogConfig = LogConfig()


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted name, its environment variable, its type and its default."""

    section: str
    field: str
    type: Any  # a typing construct, as msgspec takes it
    default: object

    @property
    def key(self) -> str:
        return f"{self.section}.{self.field}"

    @property
    def variable(self) -> str:
        return f"{_PREFIX}{self.section}_{self.field}".upper()


def settings() -> Iterator[Setting]:
    """Every setting there is, in the order of the file."""
    for section, struct in get_type_hints(Config).items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            yield Setting(section, field.name, hints[field.name], field.default)


def default_store_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The store file used when ``store.path`` is unset: below the user's data directory.

    Args:
      environ: the environment, the process's own by default.

    Raises:
      ConfigError: neither ``XDG_DATA_HOME`` nor a home directory is known.
    """
    base = environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):  # XDG base directory specification: relative values are to be ignored
        home = environ.get("HOME", "") or os.path.expanduser("~")
        if not os.path.isabs(home):
            raise ConfigError("there is no home directory to keep it in; set it", key="store.path")
        base = os.path.join(home, ".local", "share")
    return Path(base, "relaycore", "relaycore.db")


def load_config(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Put the settings together and check them.

    Args:
      path: the TOML file, or None for none.
      environ: the environment; every ``RELAYCORE_*`` name in it must be known.
      overrides: values of flags by dotted name, such as ``{"server.port": 9000}``; None means that the flag was not
        given.

    Raises:
      ConfigError: names the file, variable or flag, the setting, and what was expected.
    """
    known = {setting.key: setting for setting in settings()}
    values: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, found in (
        (str(path), _from_file(path, known) if path is not None else {}),
        ("", _from_environment(environ, known)),
        ("", _from_flags(overrides, known)),
    ):
        for key, (value, where) in found.items():
            values[key] = value
            origin[key] = where or source
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = value
    config = msgspec.convert(sections, Config)
    _check_together(config, origin)
    return config


_Found = dict[str, tuple[object, str]]  # dotted name -> checked value, where it stood

_PATH_SETTINGS: Final = ("tls.cert", "tls.key", "store.path")


def _from_file(path: Path, known: Mapping[str, Setting]) -> _Found:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", source=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", source=str(path)) from error  # the text ends in line and column
    sections = list(dict.fromkeys(setting.section for setting in known.values()))
    found: _Found = {}
    for section, table in document.items():
        if section in _EDGE_SECTIONS:
            continue
        if section not in sections:
            if not isinstance(table, dict) and (homes := [key for key in known if key.endswith(f".{section}")]):
                raise ConfigError(f"stands in no section; the nearest is {homes[0]}", source=str(path), key=section)
            raise _unknown(section, sections, source=str(path), key=section, kind="section")
        if not isinstance(table, dict):
            raise ConfigError(f"expected a table, written as [{section}]", source=str(path), key=section)
        for field, value in table.items():
            key = f"{section}.{field}"
            if key not in known:
                fields = [setting.field for setting in known.values() if setting.section == section]
                raise _unknown(field, fields, source=str(path), key=key, kind="setting")
            checked = _check(known[key], value, source=str(path), strict=True)
            if key in _PATH_SETTINGS and checked != ":memory:":
                checked = str(path.parent / str(checked))
            found[key] = (checked, str(path))
    return found


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Setting]) -> _Found:
    by_variable = {setting.variable: setting for setting in known.values()}
    found: _Found = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES or _FOREIGN_VARIABLES.fullmatch(variable):
            continue
        setting = by_variable.get(variable)
        if setting is None:
            raise _unknown(variable, by_variable, source="environment", key=variable, kind="variable")
        value: object = text
        if setting.key == "namespace.hosts":
            value = [host.strip() for host in text.split(",") if host.strip()]
        found[setting.key] = (_check(setting, value, source=variable, strict=False), variable)
    return found


def _from_flags(overrides: Mapping[str, object], known: Mapping[str, Setting]) -> _Found:
    found: _Found = {}
    for key, value in overrides.items():
        if key not in known:
            raise _unknown(key, known, source="flags", key=key, kind="setting")
        if value is not None:
            found[key] = (_check(known[key], value, source="flags", strict=True), "flags")
    return found


def _check(setting: Setting, value: object, *, source: str, strict: bool) -> object:
    """`value` as the setting's own type. `strict` off reads numbers and booleans from text, as the environment
    needs."""
    try:
        converted: object = msgspec.convert(value, setting.type, strict=strict)  # the bounds keep out inf and nan too
    except msgspec.ValidationError as error:
        choices = get_args(setting.type) if get_origin(setting.type) is Literal else ()
        message = f"expected {' or '.join(choices)} (found {value!r:.100})" if choices else _plain(str(error), value)
        raise ConfigError(message, source=source, key=setting.key) from None
    return converted


def _plain(message: str, value: object) -> str:
    """A msgspec complaint in the words of whoever wrote the file: no backticks, no path (the key says it), the value
    shown.

    No setting is a secret, so showing the value gives nothing away.
    """
    text = re.sub(r" - at `[^`]*`$", "", message).replace("`", "")
    return f"{text[:1].lower()}{text[1:]} (found {value!r:.100})"


def _unknown(name: str, candidates: Iterable[str], *, source: str, key: str, kind: str) -> ConfigError:
    folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.0)
    return ConfigError(f"there is no such {kind}; the nearest is {folded[near[0]]}", source=source, key=key)


def _check_together(config: Config, origin: Mapping[str, str]) -> None:
    """Rules between settings, and forms that a type cannot say."""
    tls = config.tls
    if (tls.cert is None) != (tls.key is None):
        there, missing = ("tls.cert", "tls.key") if tls.key is None else ("tls.key", "tls.cert")
        raise ConfigError(f"needs {missing} beside it", source=origin.get(there, ""), key=there)
    if config.server.public_url is not None:
        _check_public_url(config.server.public_url, origin.get("server.public_url", ""))
    for host in config.namespace.hosts:
        if any(character in host for character in "/:@ \t") and not host.startswith("["):
            raise ConfigError(
                f"expected host names without scheme, port or path (found {host!r})",
                source=origin.get("namespace.hosts", ""),
                key="namespace.hosts",
            )


def _check_public_url(text: str, source: str) -> None:
    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        parts, has_port = urlsplit(""), False
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or not has_port or not is_bare:
        raise ConfigError(
            f"expected ws://HOST[:PORT] or wss://HOST[:PORT] (found {text!r})", source=source, key="server.public_url"
        )
