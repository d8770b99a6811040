"""Each cause of a failure is made for real, against a whole relay, and has to be named: by step, in words, with a
remedy, and by the exit code of connection manager 8.11."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from examined import collect, open_place, open_tls_place
from proxies import open_http_proxy, open_socks_proxy

import relaycore
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    DialSettings,
    HcmConnection,
    HcmSettings,
    HealthSettings,
    PolicySettings,
    PortBinding,
    Probe,
    Profile,
    Target,
)
from relaycore.edge.diagnose.steps import Finding, examine_end_to_end, examine_endpoint, examine_relay
from relaycore.edge.hcm.manager import open_hcm
from relaycore.edge.target.policy import Policy
from relaycore.wire.sas import make_token

AUTHORIZATION, CONNECTION, NOT_FOUND, ENDPOINT_DOWN = 4, 5, 6, 7


def the_failure(findings: list[Finding]) -> Finding:
    """The one that is named: the last finding, and the only failure."""
    failed = [finding for finding in findings if finding.level == "fail"]
    assert failed == findings[-1:]
    found = failed[0]
    assert found.remedy
    assert "\n" not in found.text + found.remedy
    return found


def shown(findings: list[Finding]) -> dict[str, str]:
    return {finding.step: finding.text for finding in findings}


def no_secrets(findings: list[Finding], *secrets: str) -> None:
    for finding in findings:
        for secret in secrets:
            assert secret not in repr(finding)
        assert "sig=" not in repr(finding)


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def silent(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def open_port(handler) -> AsyncIterator[int]:
    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await handler(stream)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def managed(place, *targets: Target, **more) -> AsyncIterator[None]:
    """A connection manager that leads ``orders`` there."""
    forward = place.forward()
    connection = HcmConnection(
        "orders",
        forward.relay,
        "orders",
        key_name=forward.key_name,
        key=forward.key,
        targets=targets,
        health=HealthSettings(probe=Probe("none")),
        **more,
    )
    async with open_hcm(HcmSettings((connection,))) as manager:
        await manager.wait_settled("orders")
        yield


# When all is well ----------------------------------------------------------------------------------------------------


async def test_a_listeners_way(place):
    findings = await collect(examine_relay(place.access(), role="listen", needs_endpoint=True))
    assert [finding.level for finding in findings] == ["ok"] * 7
    words = shown(findings)
    assert words["tcp"] == f"TCP 127.0.0.1:{place.relay.port}"
    assert words["clock"].startswith("clock differs by ")
    assert words["token"] == "token accepted (rule TestListenSend: Listen)"
    assert words["metadata"] == "endpoint from metadata: sqldb.corp.example:1433"
    assert words["listeners"].endswith("at most 25 fit")
    assert all(finding.seconds is not None for finding in findings if finding.step in ("name", "tcp", "token"))
    no_secrets(findings, place.key("TestListenSend"))


async def test_the_relays_version(place, monkeypatch: pytest.MonkeyPatch):
    """8.2: server version."""
    examine = partial(examine_relay, place.access(), role="listen", tells_version=True)
    assert shown(await collect(examine()))["version"] == f"the relay's version: relaycore {relaycore.__version__}"
    for server, words in (("", "not told (the hosted service does not)"), ("x" * 300, "x" * 100)):
        monkeypatch.setattr("relaycore.gateway.atom.SERVER", server)
        assert shown(await collect(examine()))["version"] == f"the relay's version: {words}"


async def test_a_senders_way(place):
    async with relaycore.open_listener(place.relay.connection_string("orders")) as listener:
        findings = await collect(examine_relay(place.access(), role="send"))
        assert [finding.level for finding in findings] == ["ok"] * 8
        words = shown(findings)
        assert words["token"] == "token accepted (rule TestListenSend: Send)"
        assert words["listener"] == "a listener took a connection"
        assert words["listeners"].startswith("1 listener now")
        async with await listener.accept() as accepted:
            assert await accepted.receive_some() == b""


async def test_a_sender_without_a_token():
    async with open_place(requires_client_authorization=False) as place:
        findings = await collect(examine_relay(place.access(""), role="send"))
        assert shown(findings)["token"] == "no token is needed to send here"
        assert the_failure(findings).step == "listener"


async def test_a_sender_that_is_given_to_the_examination_goes_to_another_listener(place):
    """Nothing is left behind: a real listener serves each sender, however often somebody looks."""
    string = place.relay.connection_string("orders")
    async with relaycore.open_listener(string) as listener, trio.open_nursery() as nursery:

        async def serve() -> None:
            while True:
                nursery.start_soon((await listener.accept()).aclose)

        nursery.start_soon(serve)
        done = trio.Event()

        async def send() -> None:
            while not done.is_set():
                async with relaycore.open_stream(string):
                    pass

        async with trio.open_nursery() as senders:
            senders.start_soon(send)
            for _ in range(5):
                findings = await collect(examine_relay(place.access(), role="listen"))
                assert all(finding.level == "ok" for finding in findings)
            done.set()
        nursery.cancel_scope.cancel()


# Wrong key, wrong right, expired clock -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["listen", "send"])
async def test_wrong_key(place, role):
    findings = await collect(examine_relay(place.access(key="d3Jvbmc="), role=role))
    found = the_failure(findings)
    assert (found.step, found.exit_code) == ("token", AUTHORIZATION)
    assert found.text.startswith("wrong key: the relay does not take the signature of rule TestListenSend: 401 Invalid")
    assert "primary or secondary key" in found.remedy
    no_secrets(findings, "d3Jvbmc=")


@pytest.mark.parametrize(("role", "rule", "right"), [("listen", "TestSend", "Listen"), ("send", "TestListen", "Send")])
async def test_wrong_right(place, role, rule, right):
    found = the_failure(await collect(examine_relay(place.access(rule), role=role)))
    assert (found.step, found.exit_code) == ("token", AUTHORIZATION)
    assert found.text.startswith(f"wrong right: rule {rule} has no right to {role} on orders: 403 ")
    assert found.remedy == f"Use a rule with {right}, or give this one that right."


async def test_a_clock_that_is_behind():
    async with open_place(now_unix=lambda: time.time() + 3 * 3600) as place:
        findings = await collect(examine_relay(place.access(), role="listen"))
    assert [finding.level for finding in findings[-2:]] == ["warn", "fail"]
    assert (
        findings[-2].text
        == "this machine's clock is 3 h behind the relay's: tokens made here have expired when they arrive"
    )
    found = the_failure(findings)
    assert (found.step, found.exit_code) == ("clock", AUTHORIZATION)
    assert "clock is 3 h behind the relay's, so its tokens have expired: 401 ExpiredToken" in found.text
    assert "timedatectl" in found.remedy


async def test_a_clock_that_is_ahead():
    """Such tokens are taken, and live longer than they should."""
    async with open_place(now_unix=lambda: time.time() - 600) as place:
        findings = await collect(examine_relay(place.access(), role="listen"))
    assert [finding.step for finding in findings if finding.level != "ok"] == ["clock"]
    assert shown(findings)["clock"] == "this machine's clock is 10 min ahead of the relay's"


async def test_a_token_that_has_expired_by_itself(place):
    audience = place.access().connection_string.audience
    token = make_token(audience, "TestListen", place.key("TestListen"), int(time.time()) - 4000)
    findings = await collect(examine_relay(place.access(token=token), role="listen"))
    found = the_failure(findings)
    assert (found.step, found.exit_code) == ("token", AUTHORIZATION)
    assert found.text.startswith("the token has expired on 20")
    assert "Get a new one" in found.remedy
    no_secrets(findings, token)


async def test_a_token_for_something_else(place):
    token = make_token("http://127.0.0.1/files/", "TestListen", place.key("TestListen"), int(time.time()) + 4000)
    found = the_failure(await collect(examine_relay(place.access(token=token), role="listen")))
    assert found.text.startswith("the token is for another relay or hybrid connection: 401 InvalidAudience")


async def test_no_token(place):
    found = the_failure(await collect(examine_relay(place.access(""), role="listen")))
    assert (found.text.partition(":")[0], found.exit_code) == ("the relay wants a token", AUTHORIZATION)
    rubbish = the_failure(await collect(examine_relay(place.access(token="rubbish"), role="listen")))
    assert rubbish.text.startswith("the relay does not take the token of the token: 401 MalformedToken")


async def test_a_key_that_cannot_be_read(place, tmp_path: Path):
    forward = place.forward()
    missing = HcmConnection(
        "orders", forward.relay, "orders", key_name="x", key=Secret("file", str(tmp_path / "none"), "relaycore.toml:7")
    )
    found = the_failure(await collect(examine_relay(type(place.access()).of(missing), role="listen")))
    assert (found.step, found.exit_code) == ("token", 3)
    assert found.text.startswith("relaycore.toml:7: ")


# Unknown entity, no listener -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["listen", "send"])
async def test_unknown_entity(place, role):
    found = the_failure(await collect(examine_relay(place.access(path="nosuch"), role=role)))
    assert (found.step, found.exit_code) == ("entity", NOT_FOUND)
    assert found.text.startswith("the relay knows no hybrid connection nosuch: ")
    assert "relaycore entity create nosuch" in found.remedy


async def test_no_listener(place):
    findings = await collect(examine_relay(place.access(), role="send"))
    found = the_failure(findings)
    assert (found.step, found.exit_code) == ("listener", NOT_FOUND)
    assert found.text.startswith("nobody listens on orders: 404 There are no listeners")
    assert "relaycore hcm" in found.remedy
    assert shown(findings)["token"].startswith("token accepted")


async def test_no_room_for_a_listener(place):
    string = place.relay.connection_string("orders")
    async with trio.open_nursery() as nursery:
        opened = []

        async def listen() -> None:
            async with relaycore.open_listener(string) as listener:
                opened.append(listener)
                await trio.sleep_forever()

        for _ in range(25):
            nursery.start_soon(listen)
        while len(opened) < 25:
            await trio.sleep(0.01)
        found = the_failure(await collect(examine_relay(place.access(), role="listen")))
        assert found.step == "listeners"
        assert found.text.startswith("the relay takes no more listeners: 403 ListenersPerEntity")
        nursery.cancel_scope.cancel()


async def test_metadata_that_names_no_endpoint():
    async with open_place(user_metadata="sqldb:1433") as place:
        findings = await collect(examine_relay(place.access(), role="listen", needs_endpoint=True))
        [found] = [finding for finding in findings if finding.level == "fail"]
        assert (found.step, found.exit_code) == ("metadata", 3)
        assert '"value": "sqldb:1433"' in found.text
        findings = await collect(examine_relay(place.access(), role="listen"))
        assert shown(findings)["metadata"] == "the hybrid connection's text names no endpoint"


# Endpoint refused, endpoint unknown ----------------------------------------------------------------------------------


async def test_endpoint_refused(place, closed_port: int):
    """Told where it is, and through the relay to the sender."""
    target = Target("127.0.0.1", closed_port)
    findings = await collect(examine_endpoint([target]))
    here = the_failure(findings)
    assert (here.step, here.exit_code) == ("endpoint", ENDPOINT_DOWN)
    assert here.text == f"127.0.0.1 port {closed_port} refused the connection (ECONNREFUSED)"
    assert here.remedy == "Start the service, or open its firewall."
    async with managed(place, target):
        for examination in (
            examine_relay(place.access(), role="send"),
            examine_end_to_end(place.access(), place.forward()),
        ):
            findings = await collect(examination)
            there = the_failure(findings)
            assert (there.step, there.exit_code) == ("endpoint", ENDPOINT_DOWN)
            assert f"502 127.0.0.1 port {closed_port} refused the connection (ECONNREFUSED)" in there.text
            assert shown(findings)["token"].startswith("token accepted")


async def test_endpoint_name_unknown(place):
    target = Target("nosuch.invalid", 1433)
    here = the_failure(await collect(examine_endpoint([target])))
    assert (here.step, here.exit_code) == ("name", ENDPOINT_DOWN)
    assert here.text.startswith("nosuch.invalid is unknown here: ")
    async with managed(place, target):
        there = the_failure(await collect(examine_end_to_end(place.access(), place.forward())))
        assert (there.step, there.exit_code) == ("endpoint", ENDPOINT_DOWN)
        assert "nosuch.invalid is unknown here: " in there.text


async def test_an_endpoint_that_the_policy_forbids():
    policy = Policy(PolicySettings(deny=("127.0.0.0/8:*",)))
    found = the_failure(await collect(examine_endpoint([Target("127.0.0.1", 22)], policy=policy)))
    assert found.step == "policy"
    assert "hcm.policy" in found.remedy


async def test_endpoints_that_answer(tmp_path: Path):
    path = str(tmp_path / "sock")
    async with open_port(echo) as port:
        unix = trio.socket.socket(trio.socket.AF_UNIX)
        with unix:
            await unix.bind(path)
            unix.listen()
            findings = await collect(examine_endpoint([Target("127.0.0.1", port), Target(path=path)], DialSettings()))
    assert [finding.level for finding in findings] == ["ok"] * 3
    assert [finding.step for finding in findings] == ["name", "endpoint", "endpoint"]


# Relay unreachable ---------------------------------------------------------------------------------------------------


async def test_relay_unreachable(place, closed_port: int):
    found = the_failure(await collect(examine_relay(place.access(port=closed_port), role="listen")))
    assert (found.step, found.exit_code) == ("tcp", CONNECTION)
    assert found.text == f"the relay 127.0.0.1 port {closed_port} refused the connection (ECONNREFUSED)"
    assert found.remedy == "Start the relay, or correct its endpoint; or a firewall refuses it."
    same = the_failure(await collect(examine_end_to_end(place.access(port=closed_port), place.forward())))
    assert same.text == found.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (b"", "it closes the connection"),
    ],
)
async def test_what_is_no_relay(place, answer: bytes, words: str):
    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with open_port(handler) as port:
        found = the_failure(await collect(examine_relay(place.access(port=port), role="listen")))
    assert (found.step, found.exit_code) == ("relay", CONNECTION)
    assert found.text.startswith(f"what answers at 127.0.0.1:{port} is no relay: ")
    assert words in found.text


async def test_a_web_server_is_no_relay(place):
    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(
                b"HTTP/1.1 404 Not Found\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n"
            )

    async with open_port(handler) as port:
        findings = await collect(examine_relay(place.access(port=port), role="listen"))
    words = shown(findings)
    assert words["relay"] == f"what answers at 127.0.0.1:{port} may be no relay: 404 Not Found"
    assert "ahead of the relay's" in words["clock"]
    assert findings[-1].level == "fail"


async def test_a_relay_that_says_nothing(place):
    async with open_port(silent) as port:
        found = the_failure(await collect(examine_relay(place.access(port=port), role="listen", timeout_s=0.05)))
    assert "no HTTP answer within 0.05 s" in found.text


# Untrusted certificate -----------------------------------------------------------------------------------------------


async def test_untrusted_certificate(tmp_path: Path):
    async with open_tls_place(tmp_path) as place:
        findings = await collect(examine_relay(place.access(), role="listen"))
        found = the_failure(findings)
        assert (found.step, found.exit_code) == ("tls", CONNECTION)
        assert found.text.startswith(f"the certificate of localhost:{place.relay.port} is not trusted here: ")
        assert found.remedy == "Name its authority's PEM file: ca_file of the relay, or `add --cafile`."
        same = the_failure(await collect(examine_end_to_end(place.access(), place.forward())))
        assert same.text == found.text
        good = await collect(examine_relay(place.access(cafile=tmp_path / "ca.pem"), role="listen"))
        assert [finding.level for finding in good] == ["ok"] * 7
        assert shown(good)["tls"].startswith("TLS 1.3, certificate localhost, ")


async def test_a_certificate_for_another_name(tmp_path: Path):
    async with open_tls_place(tmp_path, name="relay.example") as place:
        found = the_failure(await collect(examine_relay(place.access(cafile=tmp_path / "ca.pem"), role="listen")))
    assert "is for other names: " in found.text
    assert "as endpoint" in found.remedy


@pytest.mark.parametrize(("days", "level"), [(-1, "fail"), (3, "warn")])
async def test_a_certificate_whose_time_is_over_or_nearly(tmp_path: Path, days: int, level: str):
    until = datetime.now(UTC) + timedelta(days=days, hours=1)
    async with open_tls_place(tmp_path, not_after=until) as place:
        findings = await collect(examine_relay(place.access(cafile=tmp_path / "ca.pem"), role="listen"))
    [found] = [finding for finding in findings if finding.step == "tls"]
    assert found.level == level
    assert ("is not valid now" if days < 0 else "3 days left") in found.text
    assert "Renew" in found.remedy


async def test_a_relay_of_unknown_name(tmp_path: Path):
    async with open_tls_place(tmp_path) as place:
        found = the_failure(await collect(examine_relay(place.access(host="nosuch.invalid"), role="listen")))
    assert (found.step, found.exit_code) == ("name", CONNECTION)
    assert found.text.startswith("the relay nosuch.invalid is unknown here: ")
    assert "the relay's name" in found.remedy


async def test_a_port_without_tls(place, tmp_path: Path):
    async with open_tls_place(tmp_path) as secure:
        found = the_failure(await collect(examine_relay(secure.access(port=place.relay.port), role="listen")))
        assert (found.step, found.exit_code) == ("tls", CONNECTION)
        assert found.text.startswith(f"TLS with localhost:{place.relay.port} failed: ")
        async with open_port(silent) as port:
            found = the_failure(await collect(examine_relay(secure.access(port=port), role="listen", timeout_s=0.05)))
        assert found.text.endswith("failed: no answer within 0.05 s")


# Proxy refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("open_proxy", [open_http_proxy, open_socks_proxy])
async def test_a_proxy_that_leads_on(place, open_proxy):
    async with open_proxy("ann", "hush") as proxy:
        url = proxy.url.replace("//", "//ann:hush@")
        findings = await collect(examine_relay(place.access(proxy=url), role="listen"))
    assert [finding.level for finding in findings] == ["ok"] * 6
    assert shown(findings)["proxy"] == f"{proxy.url} connects to 127.0.0.1:{place.relay.port}"
    assert "name" not in shown(findings)
    no_secrets(findings, "hush")


@pytest.mark.parametrize("open_proxy", [open_http_proxy, open_socks_proxy])
async def test_a_proxy_that_wants_a_password(place, open_proxy):
    async with open_proxy("ann", "hush") as proxy:
        url = proxy.url.replace("//", "//ann:wrong@")
        for given, words in ((proxy.url, "wants a user and a password"), (url, "does not take the user and password")):
            findings = await collect(examine_relay(place.access(proxy=given), role="listen"))
            found = the_failure(findings)
            assert (found.step, found.exit_code) == ("proxy", CONNECTION)
            assert words in found.text
            assert "user and password" in found.remedy
            no_secrets(findings, "wrong")


async def test_proxy_refused(place):
    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 403 Not for you\r\nContent-Length: 0\r\n\r\n")

    async with open_port(handler) as port:
        access = place.access(proxy=f"http://127.0.0.1:{port}")
        for examination in (
            examine_relay(access, role="listen"),
            examine_end_to_end(access, place.forward()),
        ):
            found = the_failure(await collect(examination))
            assert (found.step, found.exit_code) == ("proxy", CONNECTION)
            assert found.text == (
                f"the proxy http://127.0.0.1:{port} refused to connect to 127.0.0.1:{place.relay.port}: 403 Not for you"
            )
            assert found.remedy.startswith(f"Have the proxy allow connections to 127.0.0.1:{place.relay.port}; ")


async def test_a_proxy_that_is_not_there_or_says_nothing(place, closed_port: int):
    found = the_failure(
        await collect(examine_relay(place.access(proxy=f"socks5://127.0.0.1:{closed_port}"), role="send"))
    )
    assert (found.step, found.exit_code) == ("proxy", CONNECTION)
    assert "cannot connect to the proxy" in found.text
    async with open_port(silent) as port:
        access = place.access(proxy=f"http://127.0.0.1:{port}")
        found = the_failure(await collect(examine_relay(access, role="send", timeout_s=0.05)))
    assert "within 0.05 s" in found.text


# End to end ----------------------------------------------------------------------------------------------------------


async def test_end_to_end(place):
    async with open_port(echo) as port, managed(place, Target("127.0.0.1", port)):
        findings = await collect(examine_end_to_end(place.access(), place.forward()))
        assert [finding.level for finding in findings] == ["ok"] * 4
        words = shown(findings)
        assert words["relay"].startswith("handshake (TCP ")
        assert words["relay"].endswith("token ok), a listener took it")
        assert words["remote"].startswith("what it dialled is not reported")
        assert words["bytes"].startswith("no data from the endpoint within 500 ms")
        assert words["result"] == "the path works end to end"
        sent = await collect(examine_end_to_end(place.access(), place.forward(), send_bytes=200_000))
        assert shown(sent)["bytes"] == "200000 bytes sent, 200000 came back"


async def test_an_endpoint_that_speaks_first(place):
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"SSH-2.0-x\r\n")
            await stream.receive_some()

    async with open_port(greet) as port, managed(place, Target("127.0.0.1", port)):
        findings = await collect(examine_end_to_end(place.access(), place.forward()))
    assert shown(findings)["bytes"] == "the endpoint speaks first: 11 bytes"


async def test_an_endpoint_that_hangs_up(place):
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with open_port(hang_up) as port, managed(place, Target("127.0.0.1", port)):
        findings = await collect(examine_end_to_end(place.access(), place.forward()))
    assert findings[-1].level == "warn"
    assert findings[-1].text == "the endpoint closed the connection at once"


async def test_a_port_name_that_nobody_knows(place):
    forward = place.forward(profile=Profile.AZBRIDGE, port_name="nosuch")
    async with open_port(echo) as port:
        ports = (PortBinding("sql", (Target("127.0.0.1", port),)),)
        async with managed(place, profile=Profile.AZBRIDGE, ports=ports):
            known = place.forward(profile=Profile.AZBRIDGE, port_name="sql")
            good = await collect(examine_end_to_end(place.access(), known))
            assert shown(good)["result"] == "the path works end to end"
            found = the_failure(await collect(examine_end_to_end(place.access(), forward)))
    assert (found.step, found.exit_code) == ("listener", NOT_FOUND)
    assert "port" in found.text
