"""Settings: where each may stand, which place wins, and what a wrong one is answered with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import relaycore
from relaycore.config import load_config
from relaycore.edge.config.load import Loaded, check, load, show
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    METADATA,
    EdgeSettings,
    EndpointOrder,
    ListenAt,
    OnDown,
    PortBinding,
    Probe,
    Profile,
    Target,
)
from relaycore.errors import ConfigError

ROOT = Path(relaycore.__file__).parent.parent
EXAMPLE = ROOT / "examples" / "edge" / "relaycore.toml"
KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = '[relay.main]\nendpoint = "sb://relay.example/"\n'
HCM = f'{RELAY}[[hcm.connection]]\nname = "a"\n'
FORWARD = f'{RELAY}[[connect.forward]]\nname = "a"\n'


@pytest.fixture
def given(tmp_path):
    """Loads a text as a file of mode 0600."""

    def read(text: str, environ: dict[str, str] | None = None, overrides: tuple[str, ...] = ()) -> Loaded:
        path = tmp_path / "relaycore.toml"
        path.touch()
        path.chmod(0o600)
        path.write_text(text)
        return load([path], environ or {}, overrides)

    return read


def only(loaded: Loaded):
    (entry,) = loaded.settings.hcm.connections or loaded.settings.connect.forwards
    return entry


def test_nothing_at_all_is_the_defaults():
    assert load([], {}).settings == EdgeSettings()


def test_the_example_says_all_of_it():
    settings = load([EXAMPLE], {}).settings
    orders, office, wiki = settings.hcm.connections
    assert orders.relay is settings.relays[0]
    assert orders.relay.cafile == Path("/etc/relaycore/ca.pem")
    assert orders.key == Secret("file", "/etc/relaycore/keys/orders")
    assert orders.targets == (Target("sqldb.corp.example", 1433), Target("sqldb2.corp.example", 1433))
    assert orders.dial.order is EndpointOrder.FAILOVER
    assert orders.dial.source == "10.2.0.5"
    assert orders.limits.rate_in == 50 << 20
    assert orders.health.on_down is OnDown.REJECT
    assert office.path == "branch/office"
    assert office.relay.name == ""
    assert office.relay.endpoint == orders.relay.endpoint
    assert office.key == Secret("credential", "office")
    assert office.profile is Profile.AZBRIDGE
    assert office.ports == (
        PortBinding("ssh", (Target("localhost", 22),)),
        PortBinding("dns", (Target("10.2.0.53", 53),), is_udp=True),
    )
    assert wiki.http_url == "http://localhost:8080/"
    assert settings.hcm.policy.deny == ("169.254.0.0/16:*",)
    assert settings.hcm.metrics.listen == ListenAt("tcp", "127.0.0.1", 9464)
    sql, ssh = settings.connect.forwards
    assert sql.listen == (ListenAt("tcp", "auto", 1433), ListenAt("unix", path="/run/app/sql.sock", mode=0o660))
    assert sql.retry.attempts == 3
    assert ssh.port_name == "ssh"
    assert settings.connect.dns.ttl_s == 5
    assert settings.connect.proxy.users == Secret("file", "/etc/relaycore/proxy-users")


def test_several_files_append_entries_and_the_later_one_wins(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(f'{HCM}[hcm.policy]\nallow = ["*:1"]\ndeny = ["*:2"]\n')
    second.write_text('[[hcm.connection]]\nname = "b"\n[hcm.policy]\nallow = ["*:3"]\n[relay.main]\nproxy = "none"\n')
    loaded = load([first, second], {})
    assert [connection.name for connection in loaded.settings.hcm.connections] == ["a", "b"]
    assert loaded.settings.hcm.policy.allow == ("*:3",)
    assert loaded.settings.hcm.policy.deny == ("*:2",)
    assert loaded.settings.relays[0].proxy == "none"
    assert loaded.files == (first, second)
    assert loaded.origins["hcm.connection.1.name"] == f"{second}:2"
    assert loaded.origins["hcm.policy.deny"] == f"{first}:7"
    assert loaded.origins["relay.main.proxy"] == f"{second}:6"


def test_a_directory_counts_for_its_files(tmp_path):
    (tmp_path / "x.toml").write_text(HCM)
    assert load([tmp_path], {}).files == (tmp_path / "x.toml",)


def test_the_same_name_twice_names_both_places(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(HCM)
    second.write_text('[[hcm.connection]]\npath = "a"\nlisteners = 2\n')
    with pytest.raises(ConfigError, match=f"the name a stands at {first}:4 too") as caught:
        load([first, second], {})
    assert caught.value.source == f"{second}:1"
    assert caught.value.key == "hcm.connection.1.name"


def test_one_name_may_be_a_connection_and_a_forward(given):
    given(f'{HCM}[[connect.forward]]\nname = "a"\n')


# -- the environment and -o -----------------------------------------------------------------------------------------


def test_a_container_needs_no_file():
    environ = {
        "RELAYCORE__RELAY__MAIN__ENDPOINT": "sb://relay.example:9443/",
        "RELAYCORE__HCM__CONNECTION__0__NAME": "orders",
        "RELAYCORE__HCM__CONNECTION__0__KEY_NAME": "listen",
        "RELAYCORE__HCM__CONNECTION__0__KEY__FILE": "/run/secrets/orders",
        "RELAYCORE__HCM__CONNECTION__0__ENDPOINT": "a:1,b:2",
        "RELAYCORE__HCM__CONNECTION__0__LISTENERS": "2",
        "RELAYCORE__HCM__CONNECTION__0__DIAL__NODELAY": "false",
        "RELAYCORE__HCM__CONNECTION__0__HEALTH__PROBE": "http GET /up",
        "RELAYCORE__HCM__CONNECTION__0__LIMITS__RATE_IN": "1MiB/s",
        "RELAYCORE__HCM__CONNECTION__1__CONNECTION_STRING": "Endpoint=sb://other/;EntityPath=x",
        "RELAYCORE__HCM__CONNECTION__1__PROFILE": "azbridge",
        "RELAYCORE__HCM__CONNECTION__1__PORT__0__NAME": "ssh",
        "RELAYCORE__HCM__CONNECTION__1__PORT__0__ENDPOINT": "[::1]:22",
        "RELAYCORE__HCM__CONNECTION__10__PAUSED": "",
        "RELAYCORE__HCM__POLICY__ALLOW": '["a:1", "b:2"]',
        "RELAYCORE__CONNECT__FORWARD__0__NAME": "web",
        "RELAYCORE__CONNECT__FORWARD__0__LISTEN": "unix:/run/x,mode=660,auto:80,[::1]:80",
        "RELAYCORE__CONNECT__FORWARD__0__CONNECT__ATTEMPTS": "7",
        "RELAYCORE_SERVER_PORT": "1",
    }
    loaded = load([], environ)
    orders, other = loaded.settings.hcm.connections
    assert orders.key == Secret("file", "/run/secrets/orders")
    assert orders.targets == (Target("a", 1), Target("b", 2))
    assert orders.listeners == 2
    assert not orders.dial.nodelay
    assert orders.health.probe == Probe("http", path="/up")
    assert orders.limits.rate_in == 1 << 20
    assert other.ports == (PortBinding("ssh", (Target("::1", 22),)),)
    assert loaded.settings.hcm.policy.allow == ("a:1", "b:2")
    (web,) = loaded.settings.connect.forwards
    assert web.listen == (
        ListenAt("unix", path="/run/x", mode=0o660),
        ListenAt("tcp", "auto", 80),
        ListenAt("tcp", "::1", 80),
    )
    assert web.retry.attempts == 7
    assert loaded.origins["hcm.connection.0.listeners"] == "RELAYCORE__HCM__CONNECTION__0__LISTENERS"


def test_a_key_in_the_environment_stays_there():
    name = "RELAYCORE__HCM__CONNECTION__0__KEY"
    environ = {
        "RELAYCORE__HCM__CONNECTION__0__CONNECTION_STRING": "Endpoint=sb://h/;SharedAccessKeyName=r;EntityPath=x",
        name: KEY,
    }
    secret = only(load([], environ)).key
    assert secret == Secret("env", name)
    assert secret.read(environ) == KEY


def test_a_connection_string_in_the_environment_may_hold_its_key():
    text = f"Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY};EntityPath=x"
    entry = only(load([], {"RELAYCORE__CONNECT__FORWARD__0__CONNECTION_STRING": text}))
    assert entry.key == Secret("inline", KEY)
    assert (entry.name, entry.path, entry.key_name) == ("x", "x", "r")
    assert KEY not in repr(entry)


def test_options_beat_the_environment_beats_files(given):
    text, name = f"{HCM}listeners = 1\n", "RELAYCORE__HCM__CONNECTION__0__LISTENERS"
    assert only(given(text)).listeners == 1
    assert only(given(text, {name: "2"})).listeners == 2
    loaded = given(text, {name: "2"}, ("hcm.connection.0.listeners=3",))
    assert only(loaded).listeners == 3
    assert loaded.origins["hcm.connection.0.listeners"] == "-o"


def test_an_option_finds_an_entry_by_its_name(given):
    text = f'{HCM}[[hcm.connection]]\nname = "b.c"\n'
    loaded = given(text, overrides=('hcm.connection."b.c".endpoint=h:1', "hcm.connection.a.health.on_down = ignore"))
    first, second = loaded.settings.hcm.connections
    assert second.targets == (Target("h", 1),)
    assert first.health.on_down is OnDown.IGNORE


def test_names_of_relays_fold_their_case_in_the_environment(given):
    text = HCM.replace("relay.main", "relay.Main")
    assert only(given(text, {"RELAYCORE__RELAY__MAIN__PROXY": "none"})).relay.proxy == "none"


def test_parts_of_a_secret_come_one_by_one(given):
    text = f'{HCM}key_name = "r"\nkey = {{ env = "X" }}\n'
    assert only(given(text, overrides=("hcm.connection.a.key.file=/k",))).key == Secret("file", "/k")


def test_parts_of_a_probe_come_together():
    environ = {
        "RELAYCORE__HCM__CONNECTION__0__CONNECTION_STRING": "Endpoint=sb://h/;EntityPath=x",
        "RELAYCORE__HCM__CONNECTION__0__HEALTH__PROBE__SEND": "PING\r\n",
        "RELAYCORE__HCM__CONNECTION__0__HEALTH__PROBE__EXPECT": "PONG",
    }
    assert only(load([], environ)).health.probe == Probe("exchange", send=b"PING\r\n", expect=b"PONG")


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("RELAYCORE__HCM__CONNECTION__0__NAEM", "hcm.connection.0.naem", "the nearest is name"),
        ("RELAYCORE__HMC__CONTROL__SOCKET", "hmc", "the nearest is hcm"),
        ("RELAYCORE__HCM__CONNECTION", "hcm.connection", "a number or a name and a setting have to follow"),
        ("RELAYCORE__RELAY", "relay", "a name and a setting have to follow"),
        ("RELAYCORE__HCM__CONNECTION__3__NAME", "hcm.connection", "there are only 0, and the next has the number 0"),
        ("RELAYCORE__HCM__CONNECTION__X__NAME", "hcm.connection", "there is none with the name x"),
        ("RELAYCORE__HCM__POLICY", "hcm.policy", "is a section; name one of its settings: allow, deny"),
        ("RELAYCORE__HCM__POLICY__ALLOW__X", "hcm.policy.allow.x", "has nothing below it"),
        ("RELAYCORE__HCM__METRICS__READY_WHEN", "hcm.metrics.ready_when", "expected any or all"),
    ],
)
def test_a_wrong_variable_is_named(name, key, said):
    with pytest.raises(ConfigError) as caught:
        load([], {name: "value"})
    assert caught.value.source == name
    assert caught.value.key == key
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["hcm", "=1", "hcm.connection", "a.b=1", ""])
def test_a_wrong_option_is_named(text):
    with pytest.raises(ConfigError) as caught:
        load([], {}, (text,))
    assert caught.value.source == "-o"


def test_a_secret_is_refused_on_the_command_line(given):
    for option in (
        f"hcm.connection.a.key={KEY}",
        f"hcm.connection.a.connection_string=Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY}",
        f"relay.main.proxy=http://user:{KEY}@proxy",
    ):
        with pytest.raises(ConfigError, match="ps") as caught:
            given(HCM, overrides=(option,))
        assert KEY not in str(caught.value)


def test_one_underscore_too_few_gets_a_word():
    (warning,) = load([], {"RELAYCORE_HCM_CONNECTION_0_NAME": "x", "RELAYCORE_CONNECTION_STRING": "x"}).warnings
    assert warning.startswith("RELAYCORE_HCM_CONNECTION_0_NAME: has no effect")


def test_the_server_and_the_edge_leave_each_other_alone(tmp_path):
    """One environment, and one file, may hold the settings of both."""
    path = tmp_path / "relaycore.toml"
    path.write_text(f"{HCM}[server]\nport = 1\n[limits]\nhead_bytes = 2048\n")
    environ = {"RELAYCORE_SERVER_PORT": "2", "RELAYCORE__HCM__CONNECTION__0__LISTENERS": "3"}
    assert load_config(path, environ, {}).server.port == 2
    assert only(load([path], environ)).listeners == 3


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("x = 1", 1, "x", "no such section; the nearest is"),
        ("[hmc]", 1, "hmc", "no such section; the nearest is hcm"),
        ("[hcm.connections]\nx = 1", 1, "hcm.connections", "no such setting; the nearest is connection"),
        ("hcm = 1", 1, "hcm", "expected a table, written as [hcm]"),
        ("\n[hcm]\nconnection = 1", 3, "hcm.connection", "expected tables, each written as [[hcm.connection]]"),
        ("[hcm.connection]\nname = 'a'", 1, "hcm.connection", "each written as [[hcm.connection]]"),
        ("relay = 1", 1, "relay", "expected a table, written as [relay.NAME]"),
        ("[relay]\nmain = 1", 2, "relay.main", "expected a table, written as [relay.NAME]"),
        ("[relay.main]", 1, "relay.main.endpoint", "needs its endpoint"),
        ('[relay.main]\nendpoint = "http://x/"', 2, "relay.main.endpoint", "expected sb://HOST"),
        ('[relay.main]\nendpoint = "sb://x/y"', 2, "relay.main.endpoint", "expected sb://HOST"),
        (RELAY + "keepalive = '0.1s'", 3, "relay.main.keepalive", "expected between 1s and 1d"),
        (RELAY + "keepalive = true", 3, "relay.main.keepalive", "expected a span"),
        (RELAY + "proxy = 'ftp://x'", 3, "relay.main.proxy", "expected env, none, http://HOST:PORT"),
        (RELAY + "ca_file = ''", 3, "relay.main.ca_file", "found an empty one"),
        (RELAY + "emulator = 1", 3, "relay.main.emulator", "expected true or false"),
        (RELAY + "emulator = true", 3, "relay.main.emulator", "only localhost"),
        ('[[hcm.connection]]\nname = "a"', 1, "hcm.connection.0.relay", "or a connection_string"),
        (RELAY + "[[hcm.connection]]\nlisteners = 1", 3, "hcm.connection.0.name", "needs a name"),
        (HCM + 'relay = "mian"', 5, "hcm.connection.0.relay", "there is no [relay.mian]; the nearest is main"),
        (HCM + "name2 = 1", 5, "hcm.connection.0.name2", "the nearest is name"),
        (HCM + "path = '/'", 5, "hcm.connection.0.path", "expected the path of a hybrid connection"),
        (HCM.replace('"a"', '"a b"'), 4, "hcm.connection.0.name", "without blanks"),
        (HCM.replace('"a"', '"a\\u0007"'), 4, "hcm.connection.0.name", "without control characters"),
        (HCM.replace('"a"', "1"), 4, "hcm.connection.0.name", "expected a text in quotes"),
        (HCM + "listeners = 26", 5, "hcm.connection.0.listeners", "a whole number from 1 to 25 (found 26)"),
        (HCM + "listeners = true", 5, "hcm.connection.0.listeners", "a whole number"),
        (HCM + "listeners = '2'", 5, "hcm.connection.0.listeners", "a whole number"),
        (HCM + "key = {file='/k'}", 5, "hcm.connection.0.key", "needs the name of its rule beside it"),
        (HCM + "key_name = 'r'", 5, "hcm.connection.0.key", "needs the rule's key beside it"),
        (HCM + "key_name = 'r'\nkey = {}", 6, "hcm.connection.0.key", "expected one of { file"),
        (HCM + "key_name = 'r'\nkey = {fiel='x'}", 6, "hcm.connection.0.key", "expected one of { file"),
        (HCM + "key_name='r'\nkey = {file='x', env='y'}", 6, "hcm.connection.0.key", "expected one of { file"),
        (HCM + "key_name='r'\nkey = ' '", 6, "hcm.connection.0.key", "found an empty text"),
        (HCM + "key_name='r'\nkey={env='X'}\ntoken={env='Y'}", 7, "hcm.connection.0.token", "one of them signs"),
        (HCM + "connection_string = 1", 5, "hcm.connection.0.connection_string", "expected a connection string"),
        (HCM + "connection_string = 'x'", 5, "hcm.connection.0.connection_string", "has no '='"),
        (
            HCM + "relay = 'main'\nconnection_string = 'Endpoint=sb://h/'",
            5,
            "hcm.connection.0.relay",
            "one of them says it all",
        ),
        (HCM + "relay = 'Endpoint=x'", 5, "hcm.connection.0.relay", "expected sb://HOST"),
        (
            HCM + "path = 'x'\nconnection_string = 'Endpoint=sb://h/;EntityPath=y'",
            5,
            "hcm.connection.0.path",
            "names another hybrid connection: y",
        ),
        (HCM + "profile = 'relaycore'", 5, "hcm.connection.0.profile", "expected raw or azbridge or http"),
        (HCM + "profile = 'http'", 3, "hcm.connection.0.endpoint", "needs the URL of a server"),
        (HCM + "profile = 'azbridge'", 3, "hcm.connection.0.endpoint", "needs [[hcm.connection.port]]"),
        (HCM + "endpoint = 'http://x'", 5, "hcm.connection.0.endpoint", "a URL goes with the profile http"),
        (HCM + "endpoint = 'host'", 5, "hcm.connection.0.endpoint", "expected HOST:PORT"),
        (HCM + "endpoint = []", 5, "hcm.connection.0.endpoint", "expected at least 1"),
        (HCM + "[[hcm.connection.port]]\nname='x'\nendpoint='a:1'", 5, "hcm.connection.0.port", "ports go with"),
        (
            HCM + "profile='azbridge'\n[[hcm.connection.port]]\nname='x'",
            6,
            "hcm.connection.0.port.0.endpoint",
            "needs endpoint",
        ),
        (
            HCM + "profile='azbridge'\nendpoint='a:1'\n[[hcm.connection.port]]\nname='x'\nendpoint='a:1'",
            6,
            "hcm.connection.0.endpoint",
            "stands beside ports",
        ),
        (
            HCM + "profile='azbridge'\n" + "[[hcm.connection.port]]\nname='x'\nendpoint='a:1'\n" * 2,
            10,
            "hcm.connection.0.port.1.name",
            ":7 too",
        ),
        (
            HCM + "profile='azbridge'\n[[hcm.connection.port]]\nname=[1]\nendpoint='a:1'",
            7,
            "hcm.connection.0.port.0.name",
            "expected a text in quotes",
        ),
        (
            HCM + f"profile='azbridge'\n[[hcm.connection.port]]\nname='{'x' * 256}'\nendpoint='a:1'",
            7,
            "hcm.connection.0.port.0.name",
            "longer than 255 bytes",
        ),
        (HCM + "[hcm.connection.dial]\ntimeout = '30s'", 6, "hcm.connection.0.dial.timeout", "between"),
        (HCM + "[hcm.connection.dial]\nsource = 'host'", 6, "hcm.connection.0.dial.source", "expected an address"),
        (HCM + "[hcm.connection.health]\nprobe = 'x'", 6, "hcm.connection.0.health.probe", "expected none, tcp"),
        (HCM + "[hcm.connection.health]\nprobe = {x=1}", 6, "hcm.connection.0.health.probe", "expected none, tcp"),
        (HCM + "[hcm.connection.health]\nprobe={send=[256]}", 6, "hcm.connection.0.health.probe", "from 0 to 255"),
        (HCM + "[hcm.connection.limits]\nrate_in='x'", 6, "hcm.connection.0.limits.rate_in", "expected a rate"),
        (HCM + "[hcm.connection.limits]\nburst=0", 6, "hcm.connection.0.limits.burst", "1 or more"),
        ("[hcm.policy]\nallow = ['x']", 2, "hcm.policy.allow", "expected HOST:PORT, where"),
        ("[hcm.policy]\ndeny = [\n'a:1',\n'127.1:*']", 2, "hcm.policy.deny", "take it as 127.0.0.1; write 127.0.0.1"),
        ("[hcm.metrics]\nlisten = 'x'", 2, "hcm.metrics.listen", "expected ADDRESS:PORT"),
        ("[connect.pool]\nloopback = '10.0.0.0/8'", 2, "connect.pool.loopback", "within 127.0.0.0/8"),
        ("[connect.pool]\nloopback = '127.0.0.1/8'", 2, "connect.pool.loopback", "expected a network"),
        (FORWARD + "profile = 'http'", 5, "connect.forward.0.profile", "expected raw or azbridge"),
        (FORWARD + "listen = 'udp:127.0.0.1:53'", 5, "connect.forward.0.listen", "UDP goes with"),
        (FORWARD + "listen = [{unix='/x', mod='1'}]", 5, "connect.forward.0.listen", "the nearest is mode"),
        (FORWARD + "listen = [{unix=1}]", 5, "connect.forward.0.listen", "expected { unix"),
        (FORWARD + "hosts = ['a b']", 5, "connect.forward.0.hosts", "expected a name without a port"),
        (FORWARD + "hosts = ['a:80']", 5, "connect.forward.0.hosts", "expected a name without a port"),
        (FORWARD + "hosts = ['*']", 5, "connect.forward.0.hosts", "expected a name without a port"),
        (
            FORWARD + "listen='127.0.0.1:80'\n[[connect.forward]]\nname='b'\nlisten='127.0.0.1:80'",
            8,
            "connect.forward.1.listen",
            ":5",
        ),
    ],
)
def test_a_wrong_file_is_named_with_line_and_key(given, tmp_path, text, line, key, said):
    with pytest.raises(ConfigError) as caught:
        given(text)
    assert said in str(caught.value)
    assert caught.value.source == f"{tmp_path}/relaycore.toml:{line}"
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("data", "said"), [(b"\n[hcm", "relaycore.toml:2: is not TOML"), (b"\xff", "is not UTF-8"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, data, said):
    path = tmp_path / "relaycore.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        load([path], {})


def test_all_that_is_wrong_is_found_at_once(tmp_path):
    path = tmp_path / "relaycore.toml"
    path.write_text(f"{HCM}listeners = 0\nx = 1\n[hcm.policy]\nallow = 1\n")
    loaded, errors = check([path], {"RELAYCORE__X": "1"})
    assert loaded is None
    assert {error.key for error in errors} == {
        "hcm.connection.0.x",
        "hcm.connection.0.listeners",
        "hcm.policy.allow",
        "x",
    }


def test_a_mistake_is_told_once(tmp_path):
    path = tmp_path / "relaycore.toml"
    path.write_text('[relay.main]\nendpoint = "x y"\n[[hcm.connection]]\nname = "a"\nrelay = "main"\n')
    assert [error.key for error in check([path], {})[1]] == ["relay.main.endpoint"]
    path.write_text(f"{HCM}profile = 'rwa'\n[[hcm.connection.port]]\nname = 1\nendpoint = 'a:1'\n")
    assert [error.key for error in check([path], {})[1]] == ["hcm.connection.0.profile", "hcm.connection.0.port.0.name"]
    path.write_text(f"{HCM}profile = 'azbridge'\n[[hcm.connection.port]]\nname = 'x'\nendpoint = 'a'\n")
    assert [error.key for error in check([path], {})[1]] == ["hcm.connection.0.port.0.endpoint"]


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f'key_name = "r"\nkey = "{KEY}"',
        f'token = "{KEY}"',
        f'connection_string = "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY}"',
        f'relay = "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY}"',
        f'connection_string = "Endpoint=sb://h/;SharedAccessSignature={KEY}"',
        f'proxy = "http://user:{KEY}@proxy:3128"',
    ],
)
def test_secrets_in_a_file_are_for_its_owner_and_never_shown(given, tmp_path, line):
    loaded = given(f"{HCM}{line}\n")
    for text in (repr(loaded), show(loaded, effective=True, origin=True), show(loaded, effective=False, origin=False)):
        assert KEY not in text
    path = tmp_path / "relaycore.toml"
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600") as caught:
            load([path], {})
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        f'kye = "{KEY}"',
        f'key = ["{KEY}"]',
        f'key = {{ x = "{KEY}" }}',
        f'connection_string = "Endpoint=sb://h/;SharedAccessKay={KEY}"',
        f'connection_string = ["{KEY}"]',
        f'relay = "SharedAccessKey={KEY}"',
        f'proxy = "http//user:{KEY}@proxy:3128"',
    ],
)
def test_errors_show_no_secret(given, line):
    with pytest.raises(ConfigError) as caught:
        given(f"{HCM}{line}\n")
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)


def test_a_file_s_paths_count_from_its_folder(given, tmp_path):
    text = f'{HCM}key_name = "r"\nkey = {{ file = "keys/a" }}\nca_file = "~/ca.pem"\n[hcm.control]\nsocket = "s"\n'
    loaded = given(text, {"HOME": "/home/a"})
    assert only(loaded).key == Secret("file", str(tmp_path / "keys" / "a"))
    assert only(loaded).relay.cafile == Path("/home/a/ca.pem")
    assert loaded.settings.hcm.control.socket == tmp_path / "s"


def test_paths_may_begin_in_the_runtime_directory(given):
    text = f'{FORWARD}listen = ["unix:$RUNTIME_DIR/a"]\n[connect.control]\nsocket = "$RUNTIME_DIRECTORY/c"\n'
    loaded = given(text, {"RUNTIME_DIRECTORY": "/run/x"})
    assert only(loaded).listen == (ListenAt("unix", path="/run/x/a"),)
    assert loaded.settings.connect.control.socket == Path("/run/x/c")


# -- entries ----------------------------------------------------------------------------------------------------------


def test_an_only_relay_need_not_be_named(given):
    assert only(given(HCM)).relay.name == "main"
    with pytest.raises(ConfigError, match="which relay\\? Name one of main, other"):
        given(f'{HCM}[relay.other]\nendpoint = "sb://other/"\n')


def test_the_path_is_the_name_unless_it_is_said(given):
    assert only(given(HCM)).path == "a"
    assert only(given(f'{HCM}path = "/x/y/"\n')).path == "x/y"
    assert only(given(f'{HCM}connection_string = "Endpoint=sb://h/x/y"\n')).path == "x/y"


def test_a_relay_may_be_a_connection_string(given):
    entry = only(given(f'{HCM}relay = "Endpoint=sb://h:1/;EntityPath=x"\n'))
    assert (entry.name, entry.path, entry.relay.endpoint) == ("a", "x", "sb://h:1/")


def test_a_key_beside_a_connection_string_goes_before_its_own(given):
    text = f'{HCM}connection_string = "Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY}"\n'
    text += 'key = { env = "X" }\n'
    assert only(given(text)).key == Secret("env", "X")


def test_an_entry_may_go_another_way_to_its_relay(given):
    entry = only(given(f'{HCM}proxy = "none"\nkeepalive = "5s"\n'))
    assert entry.relay.proxy == "none"
    assert entry.relay.keep_alive_s == 5
    assert entry.relay.name == ""


def test_an_endpoint_alone_is_a_port_of_azbridge(given):
    assert only(given(f'{HCM}profile = "azbridge"\nendpoint = "h:22"\n')).ports == (
        PortBinding("22", (Target("h", 22),)),
    )


def test_endpoint_metadata_is_the_default(given):
    assert only(given(HCM)).targets == METADATA
    assert only(given(f'{HCM}endpoint = "metadata"\n')).targets == METADATA


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ('{ command = ["x", "y"] }', Probe("command", command=("x", "y"))),
        ('{ send = "a", expect = [255] }', Probe("exchange", send=b"a", expect=b"\xff")),
        ('"none"', Probe("none")),
    ],
)
def test_probes(given, text, probe):
    assert only(given(f"{HCM}[hcm.connection.health]\nprobe = {text}\n")).health.probe == probe


def test_a_unix_listener_may_be_a_table(given):
    assert only(given(f'{FORWARD}listen = [{{ unix = "/x", mode = "660" }}]\n')).listen == (
        ListenAt("unix", path="/x", mode=0o660),
    )


def test_a_unix_listener_has_an_owner(given):
    """manager 8.6: mode and owner keys, in each form; a wrong one is named with its place."""
    wanted = (ListenAt("unix", path="/x", mode=0o660, owner="app", group="web"),)
    table = '{ unix = "/x", mode = "660", owner = "app", group = "web" }'
    for listen in (table, '"unix:/x,mode=660,owner=app,group=web"'):
        assert only(given(f"{FORWARD}listen = [{listen}]\n")).listen == wanted
    variables = {"RELAYCORE__CONNECT__FORWARD__0__LISTEN": "unix:/x,mode=660,owner=app,group=web,auto:80"}
    assert only(given(FORWARD, environ=variables)).listen == (*wanted, ListenAt("tcp", "auto", 80))
    for listen in ('{ unix = "/x", ower = "app" }', '"unix:/x,ower=app"'):
        with pytest.raises(ConfigError, match="the nearest is owner") as caught:
            given(f"{FORWARD}listen = [{listen}]\n")
        assert caught.value.source.rpartition(":")[2].isdigit()
    with pytest.raises(ConfigError, match="holds no option"):
        given(f'{FORWARD}listen = [{{ unix = "/x,mode=660" }}]\n')


def test_names_lead_there_in_small_letters(given):
    assert only(given(f'{FORWARD}hosts = ["SqlDB.Corp.example.", "*.Corp.example", "10.2.0.8"]\n')).hosts == (
        "sqldb.corp.example",
        "*.corp.example",
        "10.2.0.8",
    )


def test_any_target_is_a_bypass_of_everything(given):
    assert given("[connect.proxy]\nallow_unconfigured = true\n").settings.connect.proxy.bypass == ("*:*",)
    assert given("[connect.proxy]\nallow_unconfigured = false\n").settings.connect.proxy.bypass == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{HCM}[hcm.connection.limits]\nweight = 5", "weight: has no effect"),
        (f"{HCM}[hcm.connection.limits]\nqueue = 5", "queue: has no effect without max_open"),
        (f"{HCM}[hcm.connection.health]\ninterval = '1s'\ntimeout = '2s'", "timeout: is longer than the interval"),
        (f"{FORWARD}port_name = 'x'", "port_name: has no effect"),
        (f"{FORWARD}hosts = ['10.2.0.8']", "10.2.0.8 is an address: programs that dial it look nothing up"),
        (
            f"{FORWARD}hosts = ['h']\nport = 1\n[[connect.forward]]\nname = 'b'\nhosts = ['h']\nport = 1",
            "h:1 leads elsewhere at",
        ),
    ],
)
def test_what_is_hardly_meant_gets_a_word(given, tmp_path, text, said):
    (warning,) = given(text).warnings
    assert said in warning
    assert warning.startswith(f"{tmp_path}/relaycore.toml:")


# -- show -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effective", [False, True])
def test_what_is_shown_reads_back_as_the_same(tmp_path, effective):
    loaded = load([EXAMPLE], {})
    path = tmp_path / "shown.toml"
    path.write_text(show(loaded, effective=effective, origin=True))
    assert load([path], {}).settings == loaded.settings


@pytest.mark.parametrize("effective", [False, True])
def test_a_list_that_allows_nothing_is_shown(given, effective):
    """Without it, everything would be allowed."""
    assert "allow = []\n" in show(given("[hcm.policy]\nallow = []\n"), effective=effective)
    assert "allow" not in show(given("[hcm.policy]\ndeny = []\n"), effective=effective)


def test_what_was_set_is_shown_with_its_place(given, tmp_path):
    loaded = given(f"{HCM}listeners = 1\n")
    assert show(loaded, effective=False, origin=True) == (
        f"[relay.main]  # {tmp_path}/relaycore.toml:1\n"
        f'endpoint = "sb://relay.example/"  # {tmp_path}/relaycore.toml:2\n\n'
        f"[[hcm.connection]]  # {tmp_path}/relaycore.toml:3\n"
        f'name = "a"  # {tmp_path}/relaycore.toml:4\n'
        'relay = "main"\n'
        f"listeners = 1  # {tmp_path}/relaycore.toml:5\n"
    )


def test_nothing_is_shown_of_nothing():
    assert show(load([], {})) == ""


def test_the_process_s_own_environment_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("RELAYCORE_CONFIG", str(tmp_path / "x.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(None, os.environ)


def test_without_any_home_the_files_must_be_named(monkeypatch):
    monkeypatch.setattr("relaycore.edge.config.places._is_root", lambda: False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="name the files with --config"):
        load(None, {})


def test_a_proxy_s_user_is_no_secret(given, tmp_path):
    loaded = given(f'{HCM}proxy = "http://me@proxy:3128"\n')
    (tmp_path / "relaycore.toml").chmod(0o644)  # which everybody may read
    assert load([tmp_path / "relaycore.toml"], {}).settings == loaded.settings
    assert 'proxy = "http://me@proxy:3128"' in show(loaded)
    hidden = show(given(f'{HCM}proxy = "http://me:{KEY}@proxy:3128"\n'))
    assert 'proxy = "http://me:(hidden)@proxy:3128"' in hidden
