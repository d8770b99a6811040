"""What a forwarder rewrites, and what it leaves alone."""

from __future__ import annotations

import pytest

from relaycore.edge.mapping import ForwardSettings, Mapper, split_path
from relaycore.edge.origin import parse_origin_url
from relaycore.errors import ConfigError
from relaycore.wire.http1 import Headers
from relaycore.wire.messages import RemoteEndpoint


@pytest.mark.parametrize(
    ("target", "entity", "found"),
    [
        ("/web", "web", ("/web", "", "")),
        ("/web/", "web", ("/web", "/", "")),
        ("/web?x=1", "web", ("/web", "", "x=1")),
        ("/web/a/b?x=1?y", "web", ("/web", "/a/b", "x=1?y")),
        ("/web//a", "web", ("/web", "//a", "")),
        ("/Web/a%2Fb%20c d", "web", ("/Web", "/a%2Fb%20c d", "")),
        ("/a/b/c", "a/b", ("/a/b", "/c", "")),
        ("/a%2fb/c/", "a/b", ("/a%2fb", "/c/", "")),
        ("/a/b%2Fc", "a/b", ("/a/b", "/c", "")),
    ],
)
def test_the_path_of_the_hybrid_connection_is_counted_off(target: str, entity: str, found: tuple[str, str, str]):
    """spec 9.3: the target comes with the entity's path; what is behind it passes byte for byte."""
    assert split_path(target, entity) == found


@pytest.mark.parametrize(
    ("base", "keeps_path", "target", "mapped"),
    [
        ("", False, "/web", "/"),
        ("", False, "/web?a=b", "/?a=b"),
        ("", False, "/web/a?b", "/a?b"),
        ("/app/", False, "/web", "/app"),
        ("/app", False, "/web/", "/app/"),
        ("/app/", False, "/web/a/?b=%20&c", "/app/a/?b=%20&c"),
        ("", True, "/web/a", "/web/a"),
        ("/app", True, "/web", "/app/web"),
        ("", False, "/web/x  y%25%2f", "/x%20%20y%25%2f"),
        ("", False, "/web/ü#?q=ü", "/%C3%BC%23?q=%C3%BC"),
    ],
)
def test_targets(base: str, keeps_path: bool, target: str, mapped: str):
    """spec 9.4: a blank that the relay has unescaped becomes %20 again; nothing else changes."""
    settings = ForwardSettings(parse_origin_url("http://h:1" + base), keeps_path=keeps_path)
    assert Mapper(settings, "web").map(target, Headers(), None, dropped=()).target == mapped


def fields_of(headers: dict[str, str], *, remote: bool = True, target: str = "/web/a", **settings) -> list[str]:
    mapper = Mapper(ForwardSettings(parse_origin_url("http://origin:3000"), **settings), "web")
    where = RemoteEndpoint("203.0.113.7", 51234) if remote else None
    mapped = mapper.map(target, Headers(headers.items()), where, dropped=("expect",))
    return [f"{name}: {value}" for name, value in mapped.fields]


def test_fields_pass_as_they_come():
    """spec 10: names keep their spelling, values their bytes."""
    given = {"X-b": "1, 2", "host": "relay.test", "Cookie": "a=b; c", "Via": "1.1 relay.test", "a!": "\xe9"}
    assert fields_of(given) == ["Host: relay.test", "X-b: 1, 2", "Cookie: a=b; c", "Via: 1.1 relay.test", "a!: \xe9"]
    assert fields_of({}) == ["Host: origin:3000"]
    assert fields_of({"Host": "relay.test"}, host="shop.test:80") == ["Host: shop.test:80"]


def test_fields_of_one_connection_stay_there():
    """RFC 9110 7.6.1: hop-by-hop fields, those named by Connection too."""
    dropped = {
        "Connection": "close, X-Hop",
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Trailer": "X",
        "Transfer-Encoding": "gzip",
        "Upgrade": "h2c",
        "Proxy-Connection": "close",
        "Content-Length": "5",
        "Expect": "100-continue",
        "bad name": "x",
        "X-Split": "a\r\nb",
    }
    assert fields_of({**dropped, "X-End": "1"}) == ["Host: origin:3000", "X-End: 1"]


def test_what_cannot_be_sent_is_not_copied_into_other_fields():
    bad = {"Host": "a\r\nX: y", "X-Forwarded-For": "1\0"}
    assert fields_of(bad, adds_forwarded=True, keeps_path=True) == [
        "Host: origin:3000",
        "X-Forwarded-Proto: https",
        "X-Forwarded-For: 203.0.113.7",
    ]
    assert fields_of({"Connection": "Host, Via", "Host": "h", "Via": "1.1 h"}) == ["Host: h", "Via: 1.1 h"]


def test_forwarded_fields():
    """What a sender says about itself is kept in the list of addresses and nowhere else."""
    own = {"Host": "relay.test:443", "x-forwarded-for": "198.51.100.1", "X-Forwarded-Proto": "gopher"}
    added = [
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: relay.test:443",
        "X-Forwarded-Prefix: /we%20b",
        "X-Forwarded-For: 198.51.100.1, 203.0.113.7",
    ]
    found = fields_of(own, target="/we b/a", adds_forwarded=True, host="origin:3000")
    assert found == ["Host: origin:3000", *added]
    assert fields_of({}, remote=False, adds_forwarded=True, keeps_path=True, sender_scheme="http") == [
        "Host: origin:3000",
        "X-Forwarded-Proto: http",
    ]
    assert "x-forwarded-for: 198.51.100.1" in fields_of(own)


@pytest.mark.parametrize("wrong", [{"host": "a b"}, {"host": ""}, {"connect_timeout": 0}, {"answer_timeout": -1.0}])
def test_what_is_no_setting(wrong: dict):
    with pytest.raises(ConfigError):
        ForwardSettings(parse_origin_url("http://h"), **wrong)
