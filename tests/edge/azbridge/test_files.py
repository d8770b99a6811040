"""azbridge's files and layers, and what they become (connection manager 3.3, 3.4, 3.10)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relaycore.edge.azbridge.expressions import HttpBinding, LocalBinding, RemoteBinding
from relaycore.edge.azbridge.files import default_files, parse_file, read
from relaycore.edge.azbridge.layers import Layer, LocalForward, RemoteForward, combine, environment_layer, option_layer
from relaycore.edge.azbridge.translate import edge_settings
from relaycore.edge.config.settings import EdgeSettings, Forward, HcmConnection, ListenAt, PortBinding, Profile, Target
from relaycore.errors import ConfigError

KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
STRING = f"Endpoint=sb://relay.example:9443/;SharedAccessKeyName=send;SharedAccessKey={KEY}"


def write(directory: Path, text: str, name: str = "bridge.yml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def settings_of(directory: Path, text: str, **options) -> EdgeSettings:
    return edge_settings(combine([parse_file(write(directory, text))]), directory=directory, **options)


FULL = f"""
# everything that azbridge knows
AddressFamily: inet
AzureRelayConnectionString: "{STRING}"
BindAddress: 127.0.0.3
ConnectionAttempts: 2
ConnectTimeout: 20
ExitOnForwardFailure: false
GatewayPorts: true
KeepAliveInterval: 45
LogLevel: VERBOSE
LogFileName: '/var/log/bridge.log'
LocalForward:
  - RelayName: sql
    BindAddress: 127.0.9.1
    HostName: db.corp.example
    BindPort: 1433
    PortName: tds
  - RelayName: dns
    ConnectionString: Endpoint=sb://other.example/;SharedAccessKeyName=o;SharedAccessKey={KEY}
    Bindings:
      - BindPort: -53
      - BindLocalSocket: /run/dns.sock
        PortName: stream
  - RelayName: open
    NoAuthentication: true
    BindPort: 80
RemoteForward:
  - RelayName: sql
    Host: db.corp.example
    HostPort: 1433
    PortName: tds
  - RelayName: dns
    Bindings:
      - HostPort: -53
        Host: 10.0.0.4
      - LocalSocket: /run/app.sock
        PortName: app
  - RelayName: web
    Bindings:
      - Http: true
        PortName: https
        Host: shop.example
        HostPort: 8443
        Path: base
        Insecure: false
"""


def test_every_key_is_read(tmp_path):
    layer = parse_file(write(tmp_path, FULL))
    assert layer.warnings == []
    found = combine([layer])
    assert (found.family, found.bind_address, found.connection_attempts) == ("ipv4", "127.0.0.3", 2)
    assert (found.connect_timeout_s, found.keep_alive_s, found.exits_on_failure) == (20, 45, False)
    assert (found.is_gateway, found.log_level, found.log_file) == (True, "debug", "/var/log/bridge.log")
    sql, dns, anonymous = found.local
    assert sql == LocalForward("sql", (LocalBinding("tds", "127.0.9.1", 1433),), hosts=("db.corp.example",))
    assert sql.source.endswith("bridge.yml:14")
    assert dns.bindings == (LocalBinding("53U", port=53, is_udp=True), LocalBinding("stream", socket="/run/dns.sock"))
    assert anonymous.is_anonymous
    assert found.remote == (
        RemoteForward("sql", (RemoteBinding("tds", "db.corp.example", 1433),)),
        RemoteForward(
            "dns", (RemoteBinding("53U", "10.0.0.4", 53, True), RemoteBinding("app", socket="/run/app.sock"))
        ),
        RemoteForward("web", (), (HttpBinding("https", "shop.example", 8443, "/base/"),)),
    )


def test_what_a_full_file_becomes(tmp_path):
    found = settings_of(tmp_path, FULL, cafile=Path("/ca.pem"))
    sql, dns, web = found.hcm.connections
    assert (sql.name, sql.path, sql.profile, sql.key_name) == ("sql", "sql", Profile.AZBRIDGE, "send")
    assert sql.key is not None
    assert sql.key.read() == KEY
    assert sql.ports == (PortBinding("tds", (Target("db.corp.example", 1433),)),)
    assert (sql.relay.endpoint, sql.relay.keep_alive_s) == ("sb://relay.example:9443/", 45)
    assert sql.relay.cafile == Path("/ca.pem")
    assert (sql.dial.family, sql.dial.source, sql.dial.timeout_s) == ("ipv4", "127.0.0.3", 20)
    assert dns.ports == (
        PortBinding("53U", (Target("10.0.0.4", 53),), is_udp=True),
        PortBinding("app", (Target(path="/run/app.sock"),)),
    )
    assert (web.profile, web.http_url) == (Profile.HTTP, "https://shop.example:8443/base/")
    tds, udp, stream, anonymous = found.connect.forwards
    assert (tds.name, tds.port_name, tds.hosts, tds.port) == ("sql:tds", "tds", ("db.corp.example",), 1433)
    assert tds.listen == (ListenAt("tcp", "127.0.9.1", 1433),)
    assert (tds.profile, tds.retry.timeout_s, tds.retry.attempts) == (Profile.AZBRIDGE, 20, 2)
    assert udp.relay.endpoint == "sb://other.example/"
    assert udp.listen == (ListenAt("udp", "0.0.0.0", 53),)  # gateway, and IPv4 only
    assert stream.listen == (ListenAt("unix", path="/run/dns.sock"),)
    assert (anonymous.key, anonymous.key_name) == (None, "")
    assert KEY not in repr(found)


def test_json_is_a_file_too(tmp_path):
    text = json.dumps(
        {"AzureRelayConnectionString": STRING, "LocalForward": [{"RelayName": "a", "BindPort": 1}]}, indent="\t"
    )
    [forward] = settings_of(tmp_path, text).connect.forwards
    assert forward.listen == (ListenAt("tcp", "localhost", 1),)


def test_quotes_inside_a_value_are_trimmed(tmp_path):
    text = "LocalForward:\n  - RelayName: \"'sql'\"\n    BindPort: '\"1433\"'\n"
    assert parse_file(write(tmp_path, text)).local == [LocalForward("sql", (LocalBinding("1433", port=1433),))]


def test_unknown_keys_are_warnings_with_the_nearest(tmp_path):
    text = "GatewayPort: true\nLocalForward:\n  - RelayName: a\n    BindPort: 1\n    RemoteHostName: x\nZzz:\n  - 1\n"
    path = write(tmp_path, text)
    assert parse_file(path).warnings == [
        f"{path}:1: GatewayPort: unknown key, it has no effect; the nearest known one is GatewayPorts",
        f"{path}:5: RemoteHostName: unknown key, it has no effect; the nearest known one is HostName",
        f"{path}:6: Zzz: unknown key, it has no effect",
    ]


def test_a_certificate_is_always_verified_and_a_readable_key_is_told(tmp_path):
    text = "RemoteForward:\n  - RelayName: a\n    Bindings:\n    - Http: true\n      Insecure: true\n"
    path = write(tmp_path, f"AzureRelaySharedAccessKey: {KEY}\n{text}")
    path.chmod(0o644)
    warnings = parse_file(path).warnings
    assert "Insecure: has no effect" in warnings[0]
    assert warnings[1] == f"{path}: holds a key and can be read by others; chmod 600 it"


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("- a", ":1", "expected KEY: VALUE lines"),
        ("LogLevel: loud", ":1", "LogLevel: expected none, quiet, fatal"),
        ("LogLevel: [error]", ":1", "LogLevel: expected one value"),
        ("ConnectTimeout: 121", ":1", "ConnectTimeout: expected a whole number from 0 to 120"),
        ("GatewayPorts: maybe", ":1", "GatewayPorts: expected true or false"),
        ("AzureRelayEndpoint: 'x y'", ":1", "AzureRelayEndpoint: expected sb://"),
        ("AzureRelayConnectionString: nonsense", ":1", "AzureRelayConnectionString"),
        ("LocalForward: x", ":1", "LocalForward: expected a list"),
        ("LocalForward:\n- BindPort: 1", ":2", "RelayName: is missing"),
        ("LocalForward:\n- RelayName: a b\n  BindPort: 1", ":2", "RelayName: 'a b' is no name"),
        ("LocalForward:\n- RelayName: a", ":2", "has no binding"),
        (
            "LocalForward:\n- RelayName: a\n  BindPort: 1\n  BindLocalSocket: x",
            ":2",
            "either BindPort or BindLocalSocket",
        ),
        (
            "LocalForward:\n- RelayName: a\n  Bindings:\n  - BindAddress: ::1",
            ":4",
            "either BindPort or BindLocalSocket",
        ),
        ("LocalForward:\n- RelayName: a\n  BindPort: 70000", ":3", "BindPort: expected a whole number"),
        ("LocalForward:\n- RelayName: a\n  BindPort: 1\n  PortName: a b", ":2", "PortName: 'a b' is no port name"),
        ("RemoteForward:\n- RelayName: a", ":2", "has no binding"),
        ("RemoteForward:\n- RelayName: a\n  Host: x", ":2", "either HostPort or LocalSocket"),
        ("RemoteForward:\n- RelayName: a\n  Bindings:\n  - Http: true\n    PortName: ftp", ":4", "http or https"),
        ("RemoteForward:\n- x", ":2", "expected KEY: VALUE lines"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, where, why):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        parse_file(path)
    assert str(caught.value).startswith(f"{path}{where}: ")
    assert why in str(caught.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        parse_file(tmp_path / "none.yml")
    path = tmp_path / "latin.yml"
    path.write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        parse_file(path)
    path.write_bytes(b" " * (1 << 20) + b"a")
    with pytest.raises(ConfigError, match="is longer than"):
        parse_file(path)
    assert parse_file(write(tmp_path, "~")) == Layer()


# Which files, and in which order --------------------------------------------------------------------------------------


def test_ours_goes_before_azbridges_and_the_chosen_file_takes_the_users_place(tmp_path):
    environ = {"HOME": str(tmp_path)}
    assert default_files(environ) == []
    theirs = write(tmp_path, "", ".azbridge/azbridge_config.yml")
    assert default_files(environ) == [theirs]
    ours = write(tmp_path, "", ".config/relaycore/bridge.yml")
    assert default_files(environ) == [ours]
    assert default_files(environ, is_service=True) == []
    chosen = tmp_path / "chosen.yml"
    assert default_files(environ, chosen=chosen) == [chosen]
    elsewhere = write(tmp_path, "", "xdg/relaycore/bridge.yml")
    assert default_files({**environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}) == [elsewhere]


def layer(*options: str, local: str = "", clears: bool = False) -> Layer:
    found = option_layer(options)
    if local:
        found.local.append(LocalForward(local, (LocalBinding("1", port=1),)))
    found.clears = found.clears or clears
    return found


def test_later_layers_win_and_forwards_add_up():
    found = combine([layer("ConnectTimeout:5", "LogLevel:info", local="a"), layer("ConnectTimeout:6", local="b")])
    assert (found.connect_timeout_s, found.log_level) == (6, "info")
    assert [forward.relay for forward in found.local] == ["a", "b"]


def test_clearing_forgets_what_came_before_and_not_what_stands_beside():
    found = combine([layer(local="a"), layer("ClearAllForwardings:true", local="b"), layer(local="c")])
    assert [forward.relay for forward in found.local] == ["b", "c"]


def test_a_connection_string_replaces_endpoint_and_key_of_its_layer_and_earlier_ones():
    own = [
        "AzureRelayEndpoint:sb://own.example/",
        "AzureRelaySharedAccessKeyName:own",
        f"AzureRelaySharedAccessKey:{KEY}",
    ]
    found = combine([layer(*own, f"AzureRelayConnectionString:{STRING}")]).sign_in
    assert found is not None
    assert (found.endpoint, found.key_name) == ("sb://relay.example:9443/", "send")
    found = combine([layer(f"AzureRelayConnectionString:{STRING}"), layer(*own)]).sign_in
    assert found is not None
    assert (found.endpoint, found.key_name) == ("sb://own.example/", "own")
    found = combine([layer(*own), layer("AzureRelaySharedAccessSignature:SharedAccessSignature sr=x")]).sign_in
    assert found is not None
    assert (found.key, found.token is not None) == (None, True)
    found = combine([layer("AzureRelaySharedAccessSignature:x"), layer(*own)]).sign_in
    assert found is not None
    assert (found.key is not None, found.token) == (True, None)


def test_the_variable_is_the_weakest():
    environ = environment_layer({"AZURE_BRIDGE_CONNECTIONSTRING": STRING})
    found = combine([environ]).sign_in
    assert found is not None
    assert found.endpoint == "sb://relay.example:9443/"
    found = combine([environ, layer("AzureRelayEndpoint:sb://x.example/")]).sign_in
    assert found is not None
    assert (found.endpoint, found.key_name) == ("sb://x.example/", "send")
    assert environment_layer({}) == Layer()


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("LogLevel", "expected KEY:VALUE"),
        ("Loglevel:info", "-o: Loglevel: unknown key; the nearest known one is LogLevel"),
        ("ConnectTimeout:x", "-o: ConnectTimeout: expected a whole number"),
    ],
)
def test_options_that_are_wrong(option, why):
    with pytest.raises(ConfigError) as caught:
        option_layer([option])
    assert why in str(caught.value)


def test_text_behind_the_second_colon_counts():
    assert option_layer(["BindAddress:::1"]).values["BindAddress"][0] == "::1"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["AzureRelaySharedAccessKey:x"], "a key needs the name of its rule"),
        (["AzureRelaySharedAccessKeyName:x"], "the rule x needs its key"),
    ],
)
def test_half_of_a_key_is_told(options, why):
    with pytest.raises(ConfigError) as caught:
        combine([layer("AzureRelayEndpoint:sb://x.example/", *options)])
    assert why in str(caught.value)


# What it becomes ------------------------------------------------------------------------------------------------------


def remote(text: str) -> RemoteForward:
    from relaycore.edge.azbridge.expressions import parse_remote_forward

    relay, bindings = parse_remote_forward(text)
    return RemoteForward(relay, bindings, source="-T")


def made(
    *remotes: RemoteForward, locals_: tuple[LocalForward, ...] = (), options: tuple[str, ...] = ()
) -> EdgeSettings:
    found = option_layer([f"AzureRelayConnectionString:{STRING}", *options])
    found.remote += remotes
    found.local += locals_
    return edge_settings(combine([found]), directory=Path("/here"))


def test_expressions_for_one_hybrid_connection_are_one_listener():
    [connection] = made(remote("x:a/1"), remote("x:b/2;s")).hcm.connections
    assert [(port.name, str(port.targets[0])) for port in connection.ports] == [
        ("a", "localhost:1"),
        ("b", "localhost:2"),
        ("s", "unix:/here/s"),
    ]


def test_what_excludes_itself_is_told():
    http = RemoteForward("x", (), (HttpBinding("http", "a", 80),), source="-H")
    other = RemoteForward("x", (), (HttpBinding("http", "b", 80),), source="-H")
    for forwards, why in (
        ((remote("x:a/1"), remote("x:a/2")), "has the port name a twice"),
        ((remote("x:a/1"), http), "for HTTP and for ports at once"),
        ((http, other), "leads to http://a/ already"),
    ):
        with pytest.raises(ConfigError) as caught:
            made(*forwards)
        assert why in str(caught.value)
        assert str(caught.value).startswith(("-T: ", "-H: "))
    assert made(http, http).hcm.connections[0].http_url == "http://a/"


def test_listening_needs_a_key_and_everything_needs_a_relay():
    with pytest.raises(ConfigError, match="listening needs a key"):
        edge_settings(combine([layer("AzureRelayEndpoint:sb://x.example/"), Layer(remote=[remote("a:1")])]))
    for found in (Layer(remote=[remote("a:1")]), layer(local="a")):
        with pytest.raises(ConfigError, match="nothing says where the relay is"):
            edge_settings(combine([found]))
    [forward] = edge_settings(combine([layer("AzureRelayEndpoint:sb://x.example/", local="a")])).connect.forwards
    assert forward.key is None


@pytest.mark.parametrize(
    ("binding", "options", "listen"),
    [
        (LocalBinding("x", port=1), (), ["localhost:1"]),
        (LocalBinding("x", port=1), ("GatewayPorts:true",), ["0.0.0.0:1", "[::]:1"]),
        (LocalBinding("x", port=1), ("GatewayPorts:true", "AddressFamily:inet6"), ["[::]:1"]),
        (LocalBinding("x", port=1), ("AddressFamily:inet",), ["127.0.0.1:1"]),
        (LocalBinding("x", port=1), ("AddressFamily:inet6",), ["[::1]:1"]),
        (LocalBinding("x", "db.local", 1), ("GatewayPorts:true",), ["db.local:1"]),
        (LocalBinding("x", "*", 1), (), ["0.0.0.0:1", "[::]:1"]),
        (LocalBinding("x", port=1, is_udp=True), (), ["udp:127.0.0.1:1"]),
        (LocalBinding("x", socket="s"), (), ["unix:/here/s"]),
    ],
)
def test_where_a_local_forward_listens(binding, options, listen):
    [forward] = made(locals_=(LocalForward("a", (binding,)),), options=options).connect.forwards
    assert [str(at) for at in forward.listen] == listen


def test_a_local_address_is_no_name_of_the_endpoint():
    """A forward without HostName is an address and nothing else: no name leads there, and the relay knows none."""
    bindings = (LocalBinding("x", "127.0.9.1", 1), LocalBinding("y", socket="s"))
    found = made(locals_=(LocalForward("a", bindings),)).connect.forwards
    assert [(forward.hosts, forward.asks_relay) for forward in found] == [((), False)] * 2
    [named] = made(locals_=(LocalForward("a", bindings[:1], hosts=("db.corp.example",)),)).connect.forwards
    assert named.hosts == ("db.corp.example",)


def test_one_port_name_at_several_addresses_is_one_forward_and_names_stay_unique():
    found = made(
        locals_=(
            LocalForward("a", (LocalBinding("x", "127.0.0.1", 1), LocalBinding("x", "127.0.0.2", 1))),
            LocalForward("a", (LocalBinding("x", "127.0.0.3", 1),), is_anonymous=True),
        )
    ).connect.forwards
    assert [forward.name for forward in found] == ["a:x", "a:x-2"]
    assert [len(forward.listen) for forward in found] == [2, 1]


def test_import(tmp_path):
    entries, remarks = read(write(tmp_path, FULL + "Unknown: 1\n"))
    assert [type(entry) for entry in entries] == [HcmConnection] * 3 + [Forward] * 4
    assert "Unknown: unknown key" in remarks[0]
    assert "LogLevel and LogFileName are not carried over" in remarks[1]
