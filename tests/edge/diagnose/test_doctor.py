"""Whole examinations, what this machine brings to them, and reports without secrets."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from examined import collect, emitted

import relaycore
from relaycore.edge.access import RelayAccess
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import METADATA, HcmConnection, PolicySettings, PortBinding, Profile, Target
from relaycore.edge.diagnose.doctor import (
    ExpectedName,
    bundle,
    examine_descriptors,
    examine_forward,
    examine_hcm_connection,
    examine_names,
    examine_secret,
    firewall_list,
    redact,
)
from relaycore.edge.diagnose.steps import Finding
from relaycore.edge.target.policy import Policy


def entry(place, *targets: Target, **more) -> HcmConnection:
    forward = place.forward()
    found = HcmConnection("orders", forward.relay, "orders", key_name=forward.key_name, key=forward.key)
    return replace(found, targets=targets or METADATA, **more)


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.step: finding.level for finding in findings}


async def test_a_managers_entry(place, closed_port: int):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        target = Target("127.0.0.1", listener.socket.getsockname()[1])
        findings = await emitted(examine_hcm_connection, entry(place, target))
        assert all(finding.level != "fail" for finding in findings)
        assert [finding.step for finding in findings][:2] == ["secret", "descriptors"]
        assert findings[-1].text.endswith(f"TCP 127.0.0.1:{place.relay.port}, TCP {target}")
    down = await emitted(examine_hcm_connection, entry(place, Target("127.0.0.1", closed_port)))
    assert levels(down)["endpoint"] == "fail"
    assert levels(down)["token"] == "ok"


async def test_an_entry_whose_endpoint_is_in_the_metadata(place):
    policy = Policy(PolicySettings(deny=("sqldb.corp.example:*",)))
    findings = await emitted(examine_hcm_connection, entry(place), policy=policy)
    failed = [finding for finding in findings if finding.level == "fail"]
    # The name leads nowhere on this machine, and whether it may be published is asked first where it does.
    assert [finding.exit_code for finding in failed] == [7]
    assert "sqldb.corp.example" in failed[0].text
    lost = await emitted(examine_hcm_connection, replace(entry(place), path="nosuch"))
    assert [finding.step for finding in lost if finding.level == "fail"] == ["entity"]
    assert lost[-1].step == "firewall"


async def test_an_entry_with_ports(place, closed_port: int):
    ports = (
        PortBinding("sql", (Target("127.0.0.1", closed_port),)),
        PortBinding("53U", (Target("127.0.0.1", 53),), is_udp=True),
    )
    findings = await emitted(examine_hcm_connection, entry(place, profile=Profile.AZBRIDGE, ports=ports))
    assert [finding.text for finding in findings if "UDP" in finding.text] == [
        "UDP 127.0.0.1:53 is not asked: nothing has to answer there"
    ]
    assert [finding.step for finding in findings if finding.level == "fail"] == ["endpoint"]


async def test_a_forward(place):
    async with (
        relaycore.open_listener(place.relay.connection_string("orders")) as listener,
        trio.open_nursery() as nursery,
    ):

        async def serve() -> None:
            while True:
                connection = await listener.accept()
                await connection.aclose()

        nursery.start_soon(serve)
        findings = await emitted(examine_forward, place.forward(), names=[ExpectedName("127.0.0.1", "127.0.0.1")])
        assert all(finding.level != "fail" for finding in findings)
        assert levels(findings).keys() >= {"secret", "redirect", "token", "listener", "relay", "bytes", "firewall"}
        nursery.cancel_scope.cancel()
    alone = await emitted(examine_forward, place.forward())
    assert [finding.step for finding in alone if finding.level == "fail"] == ["listener"]
    assert alone[-1].step == "firewall"


async def test_settings_that_lead_nowhere(place):
    forward = place.forward(proxy="gopher://x")
    [*_, found] = await emitted(examine_forward, forward)
    assert (found.step, found.level, found.exit_code) == ("settings", "fail", 3)
    [*_, found] = await emitted(examine_hcm_connection, replace(entry(place), relay=forward.relay))
    assert (found.step, found.level) == ("settings", "fail")


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "key"
    secret = Secret("file", str(file))
    missing = examine_secret(secret)
    assert (missing.level, missing.exit_code) == ("fail", 3)
    file.write_text("c2VjcmV0")
    file.chmod(0o644)
    assert "can be read by others" in examine_secret(secret).text
    file.chmod(0o600)
    assert examine_secret(secret) == Finding("ok", "secret", f"file:{file} can be read")
    file.chmod(0o644)
    owner = os.geteuid()
    with monkeypatch.context() as as_another:
        as_another.setattr(os, "geteuid", lambda: owner + 1)
        found = examine_secret(secret)
    assert (found.level, found.exit_code) == ("warn", 0)
    assert "every other user of this machine can read it" in found.text
    assert examine_secret(Secret("env", "NOT_THERE"), {}).level == "fail"
    settings = tmp_path / "relaycore.toml"
    settings.touch(0o644)
    settings.chmod(0o644)
    inline = Secret("inline", "c2VjcmV0", f"{settings}:7")
    assert examine_secret(inline).remedy == f"chmod 600 {settings}"
    settings.chmod(0o600)
    assert examine_secret(inline).level == "ok"
    assert examine_secret(Secret("inline", "c2VjcmV0")).level == "ok"


@pytest.mark.parametrize(
    ("limits", "connections", "level"),
    [
        ((1024, 4096), 0, "warn"),
        ((65_536, 65_536), 0, "ok"),
        ((65_536, resource.RLIM_INFINITY), 20_000, "warn"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 20_000, "ok"),
    ],
)
def test_descriptors(monkeypatch: pytest.MonkeyPatch, limits, connections: int, level: str):
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    found = examine_descriptors(connections)
    assert found.level == level
    assert ("LimitNOFILE" in found.remedy) is (level == "warn")


class Names(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        await trio.lowlevel.checkpoint()
        name = host.decode()
        if name == "slow.test":
            await trio.sleep_forever()
        table = {"good.test": ["127.77.1.1"], "other.test": ["10.0.0.1"], "both.test": ["127.77.1.1", "10.0.0.1"]}
        if name not in table:
            raise OSError("unknown")
        return [(2, 1, 6, "", (address, 0)) for address in table[name]]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_names(autojump_clock):
    """manager 8.11: a name that does not lead here is exit code 8."""
    trio.socket.set_custom_hostname_resolver(Names())
    hosts = ["good.test", "other.test", "both.test", "none.test", "slow.test", "*.test"]
    findings = await collect(examine_names(ExpectedName(host, "127.77.1.1") for host in hosts))
    assert [finding.text for finding in findings] == [
        "good.test -> 127.77.1.1",
        "other.test -> NOT redirected (it leads to 10.0.0.1)",
        "both.test -> 127.77.1.1, and 10.0.0.1 as well: programs may take either",
        "none.test -> NOT redirected (no entry)",
        "slow.test -> NOT redirected (the name server does not answer)",
    ]
    assert [finding.exit_code for finding in findings] == [0, 8, 8, 8, 8]


async def test_a_name_that_programs_do_without_is_a_warning():
    trio.socket.set_custom_hostname_resolver(Names())
    way = "programs reach it by the proxy port"
    hosts = ["good.test", "other.test", "none.test"]
    findings = await collect(examine_names(ExpectedName(host, "127.77.1.1", other_way=way) for host in hosts))
    assert [(finding.level, finding.text) for finding in findings] == [
        ("ok", "good.test -> 127.77.1.1"),
        ("warn", f"other.test -> NOT redirected (it leads to 10.0.0.1); {way}"),
        ("warn", f"none.test -> NOT redirected (no entry); {way}"),
    ]
    assert not any(finding.exit_code for finding in findings)


async def test_a_name_that_leads_where_its_forward_does_not_listen_is_a_failure():
    """manager 8.11: exit code 8, also where programs could do without the name: it is us who led it astray."""
    trio.socket.set_custom_hostname_resolver(Names())
    dead = ("127.77.1.1",)
    stale = ExpectedName("good.test", "127.0.9.7", other_way="programs reach it at 127.0.9.7:1433", dead=dead)
    closed = ExpectedName("good.test", "127.77.1.1", ("127.77.2.2",), dead=dead)
    fine = ExpectedName("other.test", "10.0.0.1", dead=dead)
    findings = await collect(examine_names([stale, closed, fine]))
    assert [(finding.level, finding.exit_code) for finding in findings] == [("fail", 8), ("fail", 8), ("ok", 0)]
    assert findings[0].text == "good.test -> 127.77.1.1, where this forward does not listen"
    assert ["hosts apply" in finding.remedy for finding in findings] == [True, False, False]


async def test_a_name_may_lead_to_any_address_of_its_forward():
    trio.socket.set_custom_hostname_resolver(Names())
    expected = [ExpectedName(host, "127.77.1.1", ("10.0.0.1",)) for host in ("other.test", "both.test")]
    assert [finding.text for finding in await collect(examine_names(expected))] == [
        "other.test -> 10.0.0.1",
        "both.test -> 127.77.1.1, 10.0.0.1",
    ]


async def test_the_firewall_list(place):
    forward = place.forward()
    access = RelayAccess.of(
        replace(forward, relay=replace(forward.relay, endpoint="sb://relay.example/", is_emulator=False))
    )
    found = firewall_list(access, [Target("db", 1433), Target(path="/run/x"), Target("db", 1433)])
    assert found.text == "a firewall has to let out: TCP relay.example:443, TCP db:1433"
    through = RelayAccess.of(place.forward(proxy="http://ann:hush@proxy:3128"))
    text = firewall_list(through, ()).text
    assert text.endswith(f"TCP proxy:3128 (the proxy to 127.0.0.1:{place.relay.port})")
    assert "hush" not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=abc=;EntityPath=p",
            "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=***;EntityPath=p",
        ),
        (
            "SharedAccessSignature=SharedAccessSignature sr=x&sig=y;EntityPath=p",
            "SharedAccessSignature=***;EntityPath=p",
        ),
        ("token SharedAccessSignature sr=a&sig=b%3d&se=1&skn=n", "token SharedAccessSignature sr=a&sig=***&se=1&skn=n"),
        ("wss://h/$hc/x?sb-hc-token=abc&sb-hc-id=1", "wss://h/$hc/x?sb-hc-token=***&sb-hc-id=1"),
        ("proxy http://ann:hush@p:3128 failed", "proxy http://ann:***@p:3128 failed"),
        ("Proxy-Authorization: Basic YW5uOmh1c2g=", "Proxy-Authorization: Basic ***"),
        ('key_name = "n"\nkey = "abc="\nkey = { file = "/k" }', 'key_name = "n"\nkey = ***\nkey = { file = "/k" }'),
        ('key = { inline = "abc=" }', "key = { inline = *** }"),
        (
            "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----***-----END PRIVATE KEY-----",
        ),
        ("orders: 10.2.0.8:1433 refused", "orders: 10.2.0.8:1433 refused"),
    ],
)
def test_what_is_taken_out(text: str, left: str):
    assert redact(text) == left


def test_a_report():
    findings = [
        Finding("ok", "tcp", "TCP 10.0.0.1:443", seconds=0.011),
        Finding("fail", "token", "wrong key: hunter2", "Give the key."),
    ]
    assert bundle(findings, {"settings": "key_name = 'x'\nhunter2\n"}, ["hunter2", ""]) == (
        "findings\n--------\nok   tcp: TCP 10.0.0.1:443  [11 ms]\nfail token: wrong key: ***\n     Give the key.\n"
        "\nsettings\n--------\nkey_name = 'x'\n***\n"
    )
