"""Arguments of listeners and senders: what goes together and what does not."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from relaycore.client.endpoint import resolve_endpoint
from relaycore.errors import ConfigError
from relaycore.net.proxy import Proxy

PLAIN = "Endpoint=sb://relay.example:9443/"
OPTIONS = {"cafile": None, "ssl_context": None, "tls": True}


def test_the_path_comes_from_the_string_or_the_argument():
    """spec 5.8: EntityPath names the hybrid connection."""
    found = resolve_endpoint(PLAIN + ";EntityPath=/a/b/", None, **OPTIONS)
    assert (found.path, found.base_url) == ("a/b", "wss://relay.example:9443")
    found = resolve_endpoint(PLAIN + ";EntityPath=orders", "other", **OPTIONS)
    assert (found.path, found.settings.entity_path) == ("other", "other")
    with pytest.raises(ConfigError, match="EntityPath"):
        resolve_endpoint(PLAIN, None, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "path"), [(None, "x"), (None, None), (print, None), (b"Endpoint=", None), (PLAIN, 5)]
)
def test_arguments_of_another_kind(given: object, path: object):
    """An unset variable of the environment, two arguments in the wrong order: no `AttributeError` from inside."""
    with pytest.raises(ConfigError, match=r"expected (a connection string|text), not (NoneType|builtin_f|bytes|int)"):
        resolve_endpoint(given, path, **OPTIONS)


def test_tls_is_the_default_and_has_to_be_declined_by_name():
    """failures: certificate check off by default. Plain ws takes an argument, or an emulator on a loopback host."""
    assert resolve_endpoint(PLAIN, "x", **OPTIONS).base_url.startswith("wss://")
    assert resolve_endpoint(PLAIN, "x", **{**OPTIONS, "tls": False}).base_url == "ws://relay.example:9443"
    emulator = "Endpoint=sb://127.0.0.1/;UseDevelopmentEmulator=true"
    assert resolve_endpoint(emulator, "x", **OPTIONS).base_url == "ws://127.0.0.1"


def test_a_context_that_does_not_verify_is_refused():
    """failures: no flag turns safety off silently."""
    lax = ssl.create_default_context()
    lax.check_hostname = False
    for mode in (ssl.CERT_REQUIRED, ssl.CERT_NONE):
        lax.verify_mode = mode
        with pytest.raises(ConfigError, match="ssl_context"):
            resolve_endpoint(PLAIN, "x", **{**OPTIONS, "ssl_context": lax})


def test_one_way_to_choose_authorities(tmp_path: Path):
    cafile = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(cafile)
    assert resolve_endpoint(PLAIN, "x", **{**OPTIONS, "cafile": cafile}).ssl_context is not None
    context = ssl.create_default_context()
    assert resolve_endpoint(PLAIN, "x", **{**OPTIONS, "ssl_context": context}).ssl_context is context
    with pytest.raises(ConfigError, match="not both"):
        resolve_endpoint(PLAIN, "x", **{**OPTIONS, "cafile": cafile, "ssl_context": context})


def test_a_proxy_may_be_named_in_three_ways(monkeypatch: pytest.MonkeyPatch):
    """connection manager 6 #14: environment variables, and an override per connection."""
    proxy = Proxy("http", "p", 1)
    assert resolve_endpoint(PLAIN, "x", **OPTIONS).proxy is None
    assert resolve_endpoint(PLAIN, "x", **OPTIONS, proxy=proxy).proxy is proxy
    assert resolve_endpoint(PLAIN, "x", **OPTIONS, proxy="socks5://p:1").proxy == Proxy("socks5", "p", 1)
    for name in ("https_proxy", "all_proxy", "no_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    assert resolve_endpoint(PLAIN, "x", **OPTIONS, proxy="env").proxy == proxy
    monkeypatch.setenv("NO_PROXY", "relay.example")
    assert resolve_endpoint(PLAIN, "x", **OPTIONS, proxy="env").proxy is None
    with pytest.raises(ConfigError, match="proxy"):
        resolve_endpoint(PLAIN, "x", **OPTIONS, proxy="ftp://p")
