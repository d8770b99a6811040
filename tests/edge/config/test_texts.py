"""Texts that stand for numbers, places and patterns."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.config.settings import ListenAt, Probe, Target
from relaycore.edge.config.texts import (
    check_pattern,
    format_bytes,
    format_listen,
    format_probe,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_listen,
    parse_probe,
    parse_rate,
    parse_seconds,
    parse_target,
)
from relaycore.edge.target.policy import parse_pattern
from relaycore.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("2m", 120),
        ("2min", 120),
        ("1h", 3600),
        ("1d", 86400),
        ("0", 0),
        ("1.5s", 1.5),
        (" 7 ", 7),
    ],
)
def test_spans(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 year", "1s2", "infs", "nan", "1_0s", "٣s", "9" * 30])
def test_what_is_no_span(text):
    with pytest.raises(ConfigError, match="30s, 500ms or 2m"):
        parse_seconds(text)


@given(st.one_of(st.integers(0, 10_000_000).map(lambda n: n / 1000), st.integers(0, 10**7).map(float)))
def test_spans_go_both_ways(seconds):
    assert parse_seconds(format_seconds(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (60, "60s"), (120, "2m"), (90, "90s"), (0.5, "500ms"), (86400, "1d"), (0.0005, "0.0005s")],
)
def test_spans_are_short(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50MiB", 50 << 20),
        ("64KiB", 65536),
        ("10MB", 10_000_000),
        ("1kB", 1000),
        ("12", 12),
        ("12B", 12),
        ("1.5GiB", 3 << 29),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size
    assert parse_rate(f"{text}/s") == parse_rate(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1PiB", "1 MiBB", "1Mbit"])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="expected a size"):
        parse_bytes(text)
    with pytest.raises(ConfigError, match="expected a rate"):
        parse_rate(text)


@given(st.integers(0, 1 << 50))
def test_sizes_go_both_ways(size):
    assert parse_bytes(format_bytes(size)) == size
    assert parse_rate(format_rate(size)) == size


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("sqldb.corp.example:1433", Target("sqldb.corp.example", 1433)),
        ("10.2.0.8:1", Target("10.2.0.8", 1)),
        ("[::1]:65535", Target("::1", 65535)),
        ("[fe80::1%eth0.7]:80", Target("fe80::1%eth0.7", 80)),
        ("under_score:80", Target("under_score", 80)),
        ("dotted.example.:80", Target("dotted.example.", 80)),
        (" UPPER:80 ", Target("UPPER", 80)),
        ("unix:/run/x.sock", Target(path="/run/x.sock")),
    ],
)
def test_targets(text, target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":80", "host:", "host:0", "host:65536", "host:+1", "host:1x", "::1:80", "[::1]", "[::1]80"),
        *("[host]:80", "[1.2.3.4]:80", "a b:80", "-a:80", "a..b:80", "unix:x", "unix:", f"unix:/{'x' * 200}"),
        *("http://a:80", "host:٣", "a/b:80", "[fe80::1%]:80", "[fe80::1%\x1b[2J]:80", "[fe80::1%\ud800]:80"),
    ],
)
def test_what_is_no_target(text):
    with pytest.raises(ConfigError, match=r"expected HOST:PORT, \[IPV6\]:PORT or unix:/PATH"):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("auto:1433", ListenAt("tcp", "auto", 1433)),
        ("auto", ListenAt("tcp", "auto", 0)),
        ("udp:auto", ListenAt("udp", "auto", 0)),
        ("127.0.0.1:80", ListenAt("tcp", "127.0.0.1", 80)),
        ("127.0.0.1:0", ListenAt("tcp", "127.0.0.1", 0)),
        ("LOCALHOST:80", ListenAt("tcp", "localhost", 80)),
        ("[::1]:80", ListenAt("tcp", "::1", 80)),
        ("udp:127.0.0.1:53", ListenAt("udp", "127.0.0.1", 53)),
        ("udp:[::1]:53", ListenAt("udp", "::1", 53)),
        ("unix:/run/x", ListenAt("unix", path="/run/x")),
        ("unix:/run/x,mode=660", ListenAt("unix", path="/run/x", mode=0o660)),
        ("unix:/run/x,mode=0o660", ListenAt("unix", path="/run/x", mode=0o660)),
        ("unix:/run/x,y", ListenAt("unix", path="/run/x,y")),
        ("unix:/x,owner=app", ListenAt("unix", path="/x", owner="app")),
        ("unix:/x,group=1000,mode=660, owner=app", ListenAt("unix", path="/x", mode=0o660, owner="app", group="1000")),
    ],
)
def test_listeners(text, listen):
    assert parse_listen(text) == listen
    assert parse_listen(format_listen(listen)) == listen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unix:/x,mod=660", "unknown option 'mod' of a Unix socket; the nearest is mode"),
        ("unix:/x,mode=660,user=u", "unknown option 'user'"),
        ("unix:/x,grp=u", "the nearest is group"),
        ("unix:/x,mode=999", "three digits from 0 to 7, such as 660"),
        ("unix:/x,mode=", "three digits"),
        ("unix:/x,owner=", "name or number of a user"),
        ("unix:/x,group=a b", "name or number of a group"),
        ("unix:/x,mode=660,mode=600", "mode stands twice"),
    ],
)
def test_options_of_a_unix_socket_are_no_part_of_its_name(text, said):
    """manager 8.6: mode/owner keys; 8.4: the nearest key is named."""
    with pytest.raises(ConfigError) as caught:
        parse_listen(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "1433", "name.example:80", "udp:unix:/x", "auto:", "127.0.0.1:99999", "unix:x"])
def test_what_is_no_listener(text):
    with pytest.raises(ConfigError, match="expected ADDRESS:PORT, auto:PORT"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("none", Probe("none")),
        ("tcp", Probe("tcp")),
        ("tls", Probe("tls")),
        ("http", Probe("http")),
        ("http GET /up", Probe("http", path="/up")),
        ("http /up", Probe("http", path="/up")),
    ],
)
def test_probes(text, probe):
    assert parse_probe(text) == probe
    assert parse_probe(format_probe(probe)) == probe


@pytest.mark.parametrize("text", ["", "udp", "http POST /", "http up", "tcp 80"])
def test_what_is_no_probe(text):
    with pytest.raises(ConfigError, match="expected none, tcp, tls"):
        parse_probe(text)


def test_probes_of_bytes_and_programs_are_tables():
    assert format_probe(Probe("exchange", send=b"PING", expect=b"\xff")) == {"send": "PING", "expect": [255]}
    assert format_probe(Probe("command", command=("a", "b"))) == {"command": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("*:*", "*:*"),
        ("SqlDB.corp.example:1433", "sqldb.corp.example:1433"),
        ("*.corp.example:443", "*.corp.example:443"),
        ("10.2.0.0/16:5432", "10.2.0.0/16:5432"),
        ("[fd00::/8]:5000-6000", "[fd00::/8]:5000-6000"),
        ("[::1]:*", "[::1]:*"),
        ("unix:/run/App/*", "unix:/run/App/*"),
    ],
)
def test_patterns(text, pattern):
    assert check_pattern(text) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "a*:80",
        "*.:80",
        "10.2.0.1/16:80",
        "host:0",
        "host:9-1",
        "host:1-70000",
        "host:a",
        "::1:80",
        "[host]:80",
    ],
)
def test_what_is_no_pattern(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT, where"):
        check_pattern(text)


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("127.1", "take it as 127.0.0.1; write 127.0.0.1"),
        ("127.1.", "take it as 127.0.0.1; write 127.0.0.1"),
        ("2130706433", "take it as 127.0.0.1; write 127.0.0.1"),
        ("0x7f.1", "take it as 127.0.0.1; write 127.0.0.1"),
        ("0X7F000001", "take it as 127.0.0.1; write 127.0.0.1"),
        ("010.0.0.1", "take it as 8.0.0.1; write 8.0.0.1 or 10.0.0.1"),
        ("10.0.0.08", "is no address, and no name consists of numbers; write 10.0.0.8"),
        ("10.0.0.256", "is no address, and no name consists of numbers; write an address such as"),
        ("1.2.3.4.5", "is no address"),
        ("4294967296", "is no address"),
        ("0" * 250, "write 0.0.0.0"),
        ("*.0.0.1", "write a network, such as 10.0.0.0/8"),
        ("*.10", "write a network, such as 10.0.0.0/8"),
    ],
)
def test_an_address_in_another_spelling_is_no_name(host, meant):
    """getaddrinfo(3) takes it as an address: a list that takes it as a name would forbid nothing."""
    with pytest.raises(ConfigError) as caught:
        check_pattern(f"{host}:22")
    assert meant in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "7f.cafe", "0xyz", "db.1", "web-1", "1.db", "*.1.db"])
def test_names_may_have_numbers_in_them(host):
    assert check_pattern(f"{host}:22") == f"{host}:22"


hosts = st.one_of(st.ip_addresses().map(str), st.text("ab*./0:[]-", max_size=8))


@given(st.builds("{}:{}".format, hosts | hosts.map("[{}]".format), st.sampled_from(["1", "*", "1-9", "", "x"])))
def test_whatever_passes_is_understood_by_those_who_ask_the_policy(text):
    try:
        pattern = check_pattern(text)
    except ConfigError:
        return
    assert parse_pattern(pattern).text == pattern


@given(st.text(max_size=40))
def test_nothing_but_a_config_error_comes_of_any_text(text):
    for parse in (parse_seconds, parse_bytes, parse_rate, parse_target, parse_listen, parse_probe, check_pattern):
        with contextlib.suppress(ConfigError):
            parse(text)
