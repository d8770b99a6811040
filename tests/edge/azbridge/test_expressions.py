"""The grammar of azbridge's expressions, and what we take beyond it (connection manager 3.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.azbridge.expressions import (
    HttpBinding,
    LocalBinding,
    RemoteBinding,
    parse_http_forward,
    parse_local_forward,
    parse_old_remote_forward,
    parse_remote_forward,
)
from relaycore.errors import ConfigError

L, R, H = LocalBinding, RemoteBinding, HttpBinding


@pytest.mark.parametrize(
    ("text", "relay", "bindings"),
    [
        ("1433:sql", "sql", [L("1433", port=1433)]),
        ("29876/test:sql", "sql", [L("test", port=29876)]),
        ("127.0.9.1:1433/tds:sql", "sql", [L("tds", "127.0.9.1", 1433)]),
        ("localhost:1433:a/b_c.d-e", "a/b_c.d-e", [L("1433", "localhost", 1433)]),
        ("3434U:dns", "dns", [L("3434U", port=3434, is_udp=True)]),
        ("127.0.0.1:53U/names:dns", "dns", [L("names", "127.0.0.1", 53, is_udp=True)]),
        ("80/web;127.0.0.2:443/tls;53U:x", "x", [
            L("web", port=80), L("tls", "127.0.0.2", 443), L("53U", port=53, is_udp=True)
        ]),
        ("db:sql", "sql", [L("db", socket="db")]),
        ("db.sock/tds:sql", "sql", [L("tds", socket="db.sock")]),
        # beyond azbridge
        ("[::1]:1433/tds:sql", "sql", [L("tds", "::1", 1433)]),
        ("[fe80::1%eth0]:1433:sql", "sql", [L("1433", "fe80::1%eth0", 1433)]),
        ("/run/app/sql.sock:sql", "sql", [L("/run/app/sql.sock", socket="/run/app/sql.sock")]),
        ("[/run/app/sql.sock]/tds:sql", "sql", [L("tds", socket="/run/app/sql.sock")]),
        ("[/run/sql.sock]:sql", "sql", [L("/run/sql.sock", socket="/run/sql.sock")]),
        ("*:1433:sql", "sql", [L("1433", "*", 1433)]),
        ("1433/a/b:sql", "sql", [L("a/b", port=1433)]),
    ],
)  # fmt: skip
def test_local_forwards(text, relay, bindings):
    assert parse_local_forward(text) == (relay, tuple(bindings))


@pytest.mark.parametrize(
    ("text", "relay", "bindings"),
    [
        ("sql:1433", "sql", [R("1433", "localhost", 1433)]),
        ("sql:db.example:1433", "sql", [R("1433", "db.example", 1433)]),
        ("sql:tds/1433", "sql", [R("tds", "localhost", 1433)]),
        ("sql:tds/10.0.0.4:1433", "sql", [R("tds", "10.0.0.4", 1433)]),
        ("dns:names/10.0.0.4:53U", "dns", [R("names", "10.0.0.4", 53, is_udp=True)]),
        ("dns:53U", "dns", [R("53U", "localhost", 53, is_udp=True)]),
        ("x:web/80;tls/web.example:443", "x", [R("web", "localhost", 80), R("tls", "web.example", 443)]),
        ("sql:db", "sql", [R("db", socket="db")]),
        ("sql:tds/db", "sql", [R("tds", socket="db")]),
        # beyond azbridge
        ("sql:tds/[::1]:1433", "sql", [R("tds", "::1", 1433)]),
        ("sql:[2001:db8::1]:1433", "sql", [R("1433", "2001:db8::1", 1433)]),
        ("sql:/run/sql.sock", "sql", [R("/run/sql.sock", socket="/run/sql.sock")]),
        ("sql:tds//run/sql.sock", "sql", [R("tds", socket="/run/sql.sock")]),
        ("sql:tds/[/run/sql.sock]", "sql", [R("tds", socket="/run/sql.sock")]),
        ("sql:[/run/sql.sock]", "sql", [R("/run/sql.sock", socket="/run/sql.sock")]),
    ],
)
def test_remote_forwards(text, relay, bindings):
    assert parse_remote_forward(text) == (relay, tuple(bindings))


@pytest.mark.parametrize(
    ("text", "bindings"),
    [
        ("sql:1433", [R("1433", "localhost", 1433)]),
        ("sql:db.example:1433", [R("1433", "db.example", 1433)]),
        ("sql:db.example:tds/1433", [R("tds", "db.example", 1433)]),
        ("sql:tds/1433", [R("tds", "localhost", 1433)]),
        ("sql:[::1]:tds/1433", [R("tds", "::1", 1433)]),
        ("sql:db:tds/1433;53U", [R("tds", "db", 1433), R("53U", "localhost", 53, is_udp=True)]),
    ],
)
def test_old_remote_forwards(text, bindings):
    assert parse_old_remote_forward(text) == ("sql", tuple(bindings))


@pytest.mark.parametrize(
    ("text", "binding", "url"),
    [
        ("web:http/localhost:8080", H("http", "localhost", 8080), "http://localhost:8080/"),
        ("web:http/localhost", H("http", "localhost", 80), "http://localhost/"),
        ("web:https/shop.example", H("https", "shop.example", 443), "https://shop.example/"),
        (
            "web:https/shop.example/a/b:8443",
            H("https", "shop.example", 8443, "/a/b/"),
            "https://shop.example:8443/a/b/",
        ),
        ("web:https/shop.example/a/", H("https", "shop.example", 443, "/a/"), "https://shop.example/a/"),
        ("web:https/443", H("https", "localhost", 443), "https://localhost/"),
        ("web:http/8080/api", H("http", "localhost", 8080, "/api/"), "http://localhost:8080/api/"),
        ("web:http/[::1]", H("http", "::1", 80), "http://[::1]/"),
        ("web:http/[::1]/x:81", H("http", "::1", 81, "/x/"), "http://[::1]:81/x/"),
    ],
)
def test_http_forwards(text, binding, url):
    assert parse_http_forward(text) == ("web", (binding,))
    assert binding.url == url


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (parse_local_forward, "1433", "behind the last colon"),
        (parse_local_forward, "1433:", "'' is no name of a hybrid connection"),
        (parse_local_forward, "1433:s ql", "'s ql' is no name of a hybrid connection"),
        (parse_local_forward, "70000:sql", "70000 is no port"),
        (parse_local_forward, "0:sql", "0 is no port"),
        (parse_local_forward, "::1:1433:sql", "an IPv6 address stands in brackets, as in [::1]:1433"),
        (parse_local_forward, "a b:1433:sql", "'a b' is no host name"),
        (parse_local_forward, ":1433:sql", "'' is no host name"),
        (parse_local_forward, "host:x:sql", "'host:x' is neither [BIND:]PORT nor the name of a socket"),
        (parse_local_forward, "1433/t ds:sql", "'t ds' is no port name"),
        (parse_local_forward, "1433/:sql", "'' is no port name"),
        (parse_local_forward, f"1433/{'x' * 256}:sql", "at most 255"),
        (parse_local_forward, "1433;:sql", "'' is neither"),
        (parse_local_forward, "[/run/x:sql", "is not [/PATH] or [/PATH]/NAME"),
        (parse_local_forward, "[/run/x]y:sql", "is not [/PATH] or [/PATH]/NAME"),
        (parse_remote_forward, "sql", "in front of the first colon"),
        (parse_remote_forward, ":1433", "'' is no name of a hybrid connection"),
        (parse_remote_forward, "sql:", "'' is neither"),
        (parse_remote_forward, "sql:tds/host:x", "'host:x' is neither"),
        (parse_remote_forward, "sql:::1:1433", "an IPv6 address stands in brackets"),
        (parse_old_remote_forward, "sql", "in front of the first colon"),
        (parse_old_remote_forward, "sql:tds", "does not end with a port"),
        (parse_http_forward, "web", "in front of the first colon"),
        (parse_http_forward, "web:ftp/host", "does not begin with http/ or https/"),
        (parse_http_forward, "web:http", "does not begin with http/ or https/"),
        (parse_http_forward, "web:http/host:x", "'x' is no port"),
        (parse_http_forward, "web:http/host:53U", "'53U' is no port"),
        (parse_http_forward, "web:http/", "'' is no host name"),
    ],
)
def test_what_is_wrong_is_named(parse, text, why):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert why in str(caught.value)
    assert len(text) > 200 or repr(text) in str(caught.value)


@given(
    st.sampled_from([parse_local_forward, parse_remote_forward, parse_old_remote_forward, parse_http_forward]),
    st.text(st.sampled_from("aU1/:;[].* "), max_size=25),
)
def test_any_text_is_read_or_refused(parse, text):
    try:
        relay, bindings = parse(text)
    except ConfigError:
        return
    assert relay
    assert bindings
