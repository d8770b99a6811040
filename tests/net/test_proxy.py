"""Which proxy leads where."""

from __future__ import annotations

import pytest

from relaycore.errors import ConfigError
from relaycore.net.proxy import Proxy, choose_proxy, parse_proxy_url


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.example", Proxy("http", "proxy.example", 3128)),
        ("HTTP://proxy.example:8080/", Proxy("http", "proxy.example", 8080)),
        ("socks5://10.0.0.1", Proxy("socks5", "10.0.0.1", 1080)),
        ("socks5h://[2001:db8::1]:9", Proxy("socks5", "2001:db8::1", 9)),
        ("http://ann:p%40ss%3A@h:1", Proxy("http", "h", 1, "ann", "p@ss:")),
        ("http://ann@h:1", Proxy("http", "h", 1, "ann", None)),
        ("http://:@h:1", Proxy("http", "h", 1, "", "")),
    ],
)
def test_urls(text: str, proxy: Proxy):
    assert parse_proxy_url(text) == proxy


@pytest.mark.parametrize(
    "text",
    ["", "proxy:3128", "https://p:1", "socks4://p:1", "http://p:0", "http://p:65536", "http://p/x", "http://a b"],
)
def test_what_is_no_url(text: str):
    with pytest.raises(ConfigError, match="proxy: expected"):
        parse_proxy_url(text)


def test_no_text_shows_user_or_password():
    """connection manager 8.11: secrets are masked."""
    proxy = parse_proxy_url("http://ann:hush@h:1")
    assert str(proxy) == "http://h:1"
    assert "hush" not in repr(proxy)
    with pytest.raises(ConfigError) as caught:
        parse_proxy_url("https://ann:hush@h:1")
    assert "hush" not in str(caught.value)


def test_settings_that_name_one():
    """connection manager 8.4: env, none, or a URL."""
    environ = {"HTTPS_PROXY": "http://p:1"}
    assert choose_proxy("none", "relay.example", environ) is None
    assert choose_proxy("socks5://q:2", "localhost", environ) == Proxy("socks5", "q", 2)
    assert choose_proxy("env", "relay.example", environ) == Proxy("http", "p", 1)
    assert choose_proxy("env", "relay.example", {}) is None


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, "b"),
        ({"ALL_PROXY": "socks5://a:1", "HTTPS_PROXY": "http://b:1"}, "b"),
        ({"ALL_PROXY": "socks5://a:1", "https_proxy": ""}, "a"),
        ({"all_proxy": "a:1"}, "a"),
        ({"http_proxy": "http://a:1"}, None),
    ],
)
def test_the_variables_in_their_order(environ: dict[str, str], host: str | None):
    found = choose_proxy("env", "relay.example", environ)
    assert (found and found.host) == host


def test_a_wrong_variable_is_named():
    with pytest.raises(ConfigError, match="ALL_PROXY: proxy: expected") as caught:
        choose_proxy("env", "relay.example", {"ALL_PROXY": "ftp://ann:hush@h"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("relay.example", "", False),
        ("relay.example", "relay.example", True),
        ("Relay.Example.", "relay.EXAMPLE", True),
        ("a.relay.example", "relay.example", True),
        ("a.relay.example", ".relay.example", True),
        ("relay.example", ".relay.example", True),
        ("myrelay.example", "relay.example", False),
        ("relay.example", "other, relay.example ,x", True),
        ("relay.example", "other relay.example", True),
        ("relay.example", "*", True),
        ("relay.example", ",,", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("110.1.2.3", "10.1.2.3", False),
        ("10.1.2.3", "2.3", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("2001:db8::1", "10.0.0.0/8", False),
        ("localhost", "", True),
        ("127.9.9.9", "", True),
        ("::1", "", True),
        ("127.example", "", False),
        ("relay.example", "10.0.0.0/99", False),
    ],
)
def test_hosts_that_no_proxy_excepts(host: str, no_proxy: str, is_direct: bool):
    """connection manager 8.4: the environment's proxy, less the hosts that it excepts."""
    for name in ("NO_PROXY", "no_proxy"):
        found = choose_proxy("env", host, {"ALL_PROXY": "http://p:1", name: no_proxy})
        assert (found is None) is is_direct
