"""What may be published: patterns, and the lists they make."""

from __future__ import annotations

import pytest

from relaycore.edge.config.settings import DialSettings, PolicySettings, Target
from relaycore.edge.target.dial import dial, resolve
from relaycore.edge.target.failure import DialFailed
from relaycore.edge.target.policy import Policy, parse_pattern
from relaycore.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "host", "port", "expected"),
    [
        ("sqldb.corp.example:1433", "sqldb.corp.example", 1433, True),
        ("sqldb.corp.example:1433", "SQLDB.Corp.Example.", 1433, True),
        ("sqldb.corp.example:1433", "sqldb.corp.example", 1434, False),
        ("sqldb.corp.example:1433", "other.corp.example", 1433, False),
        ("*.corp.example:443", "a.b.corp.example", 443, True),
        ("*.corp.example:443", "corp.example", 443, False),
        ("*.corp.example:443", ".corp.example", 443, False),
        ("*.corp.example:443", "evilcorp.example", 443, False),
        ("*:5000-5010", "h", 5000, True),
        ("*:5000-5010", "h", 5010, True),
        ("*:5000-5010", "h", 5011, False),
        ("*:*", "h", 1, True),
        ("10.2.0.0/16:*", "10.2.0.1", 1, False),  # an address is looked at as one
        ("unix:/run/*", "h", 1, False),
    ],
)
def test_names(pattern: str, host: str, port: int, expected: bool):
    assert parse_pattern(pattern).matches_name(host, port) is expected


@pytest.mark.parametrize(
    ("pattern", "address", "port", "expected"),
    [
        ("10.2.0.0/16:5432", "10.2.3.4", 5432, True),
        ("10.2.0.0/16:5432", "10.3.3.4", 5432, False),
        ("10.2.0.0/16:5432", "10.2.3.4", 5433, False),
        ("10.2.0.0/16:5432", "::ffff:10.2.3.4", 5432, True),
        ("[::ffff:10.2.0.0/112]:5432", "10.2.3.4", 5432, True),
        ("[::ffff:10.2.0.0/112]:5432", "10.3.3.4", 5432, False),
        ("10.2.0.8:*", "10.2.0.8", 1, True),
        ("127.0.0.0/8:22", "0.0.0.0", 22, True),  # connects to this machine
        ("127.0.0.0/8:22", "::ffff:0.0.0.0", 22, True),
        ("0.0.0.0:22", "0.0.0.0", 22, True),
        ("[::1]:22", "::", 22, True),
        ("10.0.0.0/8:22", "0.0.0.0", 22, False),
        ("[fd00::/8]:*", "fd12::1", 1, True),
        ("[fd00::/8]:*", "10.0.0.1", 1, False),
        ("[fe80::/10]:*", "fe80::1%eth0", 1, True),
        ("localhost:22", "127.0.0.1", 22, True),
        ("localhost:22", "127.9.9.9", 22, True),
        ("localhost:22", "::1", 22, True),
        ("localhost:22", "0.0.0.0", 22, True),
        ("localhost:22", "10.0.0.1", 22, False),
        ("*:22", "10.0.0.1", 22, True),
        ("*.corp.example:22", "10.0.0.1", 22, False),
        ("*:22", "no address", 22, False),
    ],
)
def test_addresses(pattern: str, address: str, port: int, expected: bool):
    assert parse_pattern(pattern).matches_address(address, port) is expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("unix:/run/app.sock", "/run/app.sock", True),
        ("unix:/run/app.sock", "/run/app.sock2", False),
        ("unix:/run/*", "/run/app.sock", True),
        ("unix:/run/*", "/srv/app.sock", False),
        ("*:*", "/run/app.sock", True),
        ("*.corp.example:*", "/run/app.sock", False),
    ],
)
def test_paths(pattern: str, path: str, expected: bool):
    assert parse_pattern(pattern).matches_path(path) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:x",
        "host:1-",
        "host:9-1",
        "host:70000",
        "10.2.0.1/16:1",
        "a*b:1",
        "a/b:1",
        "::1:1",
        "*.*.x:1",
        "h:²",
        "127.1:22",
        "0x7f.1:22",
        "2130706433:22",
        "010.0.0.1:22",
        "10.0.0.256:22",
        "*.0.0.1:22",
    ],
)
def test_what_is_no_pattern(text: str):
    with pytest.raises(ConfigError, match=r"conf\.d/a:3: hcm\.policy\.allow: "):
        parse_pattern(text, source="conf.d/a:3", key="hcm.policy.allow")


def refused(policy: Policy, host: str, port: int, *addresses: str) -> str:
    with pytest.raises(DialFailed) as caught:
        policy.check(host, port, addresses)
    assert (caught.value.status, caught.value.kind) == (403, "policy")
    return caught.value.text


def test_without_lists_all_is_allowed():
    policy = Policy(PolicySettings())
    assert policy.check("h", 1, ["10.0.0.1"]) == ["10.0.0.1"]
    policy.check_path("/run/a")


def test_an_empty_list_allows_nothing():
    policy = Policy(PolicySettings(allow=()))
    assert refused(policy, "h", 1, "10.0.0.1") == (
        "h:1 may not be published from this machine: not in its allow list (hcm.policy)"
    )
    assert "[::1]:1 may not" in refused(policy, "::1", 1, "::1")
    with pytest.raises(DialFailed, match="unix:/run/a may not"):
        policy.check_path("/run/a")


def test_deny_wins():
    policy = Policy(PolicySettings(allow=("*:*",), deny=("169.254.0.0/16:*", "db.test:22", "unix:/etc/*")))
    assert policy.check("h", 22, ["10.0.0.1"]) == ["10.0.0.1"]
    assert "denied by db.test:22" in refused(policy, "DB.test", 22, "10.0.0.1")
    # Whatever name leads there.
    assert "169.254.169.254 denied by 169.254.0.0/16:*" in refused(policy, "harmless.test", 80, "169.254.169.254")
    assert refused(policy, "harmless.test", 80, "::ffff:169.254.169.254")
    with pytest.raises(DialFailed, match=r"denied by unix:/etc/\*"):
        policy.check_path("/etc/secret")


@pytest.mark.parametrize("spelling", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1"])
async def test_an_endpoint_is_judged_by_the_address_that_is_dialled(spelling: str):
    """However it is written: the system takes these as 127.0.0.1."""
    target = Target(spelling, 22)
    policy = Policy(PolicySettings(deny=("127.0.0.0/8:*",)))
    with pytest.raises(DialFailed, match=r"127\.0\.0\.1 denied by 127\.0\.0\.0/8:\*"):
        await dial([target], DialSettings(), policy=policy)
    with pytest.raises(DialFailed, match="not in its allow list"):
        await resolve(target, DialSettings(), Policy(PolicySettings(allow=("10.0.0.0/8:*",))))
    [address] = await resolve(target, DialSettings(), Policy(PolicySettings(allow=("127.0.0.1:22",))))
    assert address.host == "127.0.0.1"


def test_of_several_addresses_those_that_pass_are_left():
    policy = Policy(PolicySettings(allow=("10.2.0.0/16:5432", "named.test:*"), deny=("10.2.9.0/24:*",)))
    assert policy.check("db.test", 5432, ["10.2.9.1", "10.2.0.1", "10.3.0.1"]) == ["10.2.0.1"]
    assert policy.check("named.test", 5432, ["10.2.9.1", "10.3.0.1"]) == ["10.3.0.1"]
    assert refused(policy, "db.test", 5432, "10.3.0.1")
