"""Events that are posted: a real HTTP server that takes them, refuses them, is slow, or speaks no HTTP."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from origins import OK, OriginServer, Seen, Visitor, hang_up_rudely, open_origin

from relaycore.edge import webhook as webhook_module
from relaycore.edge.config.load import load, show
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import WebhookHeader, WebhookSettings
from relaycore.edge.events import CONNECT_KINDS, HCM_KINDS, EventLog
from relaycore.edge.webhook import QUEUE, Webhook, Webhooks
from relaycore.errors import ConfigError

SECRET = "Bearer never-to-be-seen"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_module, "_PAUSES_S", (0.01, 0.01, 0.01, 0.01))


def settings(server: OriginServer, **options) -> WebhookSettings:
    options.setdefault("timeout_s", 5.0)
    return WebhookSettings(f"{server.url}/hook/path-secret?sig=query-secret", **options)


@asynccontextmanager
async def posting(found: WebhookSettings) -> AsyncIterator[tuple[EventLog, Counter[str]]]:
    log, counts = EventLog(now_unix=lambda: 12.5), Counter[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Webhook(found, "hcm", counts).run, log.subscribe())
        yield log, counts
        nursery.cancel_scope.cancel()


async def until(counts: Counter[str], **wanted: int) -> None:
    while {name: counts[name] for name in wanted} != wanted:
        await trio.sleep(0.005)


def kinds(server: OriginServer) -> list[str]:
    return [json.loads(bytes(seen.body))["kind"] for seen in server.seen]


async def test_each_event_is_one_post():
    header = WebhookHeader("Authorization", Secret("inline", SECRET))
    async with open_origin() as server, posting(settings(server, header=header)) as (log, counts):
        log.emit("orders", "refused", "the sender was refused with 502: db:1433 refused", "0d5c4a9e_G0")
        log.emit("", "stopping", "2 open connections may end")
        await until(counts, sent=2)
        first = server.seen[0]
        assert first.line == "POST /hook/path-secret?sig=query-secret HTTP/1.1"
        assert first.values("Authorization") == [SECRET]
        assert first.values("Host") == [f"127.0.0.1:{server.port}"]
        assert first.values("Content-Type") == ["application/json"]
        assert json.loads(bytes(first.body)) == {
            "program": "hcm", "host": socket.gethostname(), "time_unix": 12.5, "name": "orders", "kind": "refused",
            "text": "the sender was refused with 502: db:1433 refused", "tracking_id": "0d5c4a9e_G0",
        }  # fmt: skip
        assert kinds(server) == ["refused", "stopping"]
        assert server.connections == 2


async def test_only_those_that_are_wanted():
    async with open_origin() as server, posting(settings(server, events=("lost",))) as (log, counts):
        for kind in ("refused", "lost", "left", "lost"):
            log.emit("orders", kind, "x")
        await until(counts, sent=2)
        assert kinds(server) == ["lost", "lost"]


@pytest.mark.parametrize("bad", ["503", "429", "hang up", "reset", "garbage", "silence", "endless head"])
async def test_what_may_pass_is_tried_again(bad: str, caplog: pytest.LogCaptureFixture):
    """And in order: the second event waits for the first."""

    async def answer(visitor: Visitor, seen: Seen) -> bytes | None:
        await visitor.read_body(seen)
        if len(server.seen) > 2:
            return OK
        match bad:
            case "hang up":
                return None
            case "reset":
                await hang_up_rudely(visitor)
                return None
            case "garbage":
                return b"\x00\xff this is not HTTP\r\n\r\n"
            case "silence":
                await visitor.wait_gone()
                return None
            case "endless head":
                for _ in range(1000):
                    await visitor.send(b"X-More: " + bytes(1000).replace(b"\0", b"x") + b"\r\n")
                return None
        return f"HTTP/1.1 {bad} No\r\nContent-Length: 0\r\n\r\n".encode()

    caplog.set_level(logging.INFO, "relaycore.edge")
    header = WebhookHeader("X-Token", Secret("inline", SECRET))
    async with open_origin(answer) as server:
        timeout_s = 0.5 if bad == "silence" else 5.0
        async with posting(settings(server, header=header, timeout_s=timeout_s)) as (log, counts):
            log.emit("orders", "refused", "x")
            log.emit("orders", "lost", "x")
            await until(counts, sent=2)
            assert kinds(server) == ["refused", "refused", "refused", "lost"]
            assert (counts["failed"], counts["dropped"]) == (0, 0)
    said = [record.getMessage() for record in caplog.records if "webhook" in record.getMessage()]
    assert len(said) == 2, said  # once that it fails, once that it is over
    assert f"http://127.0.0.1:{server.port} does not take events" in said[0]
    assert "takes events again" in said[1]
    assert "secret" not in caplog.text
    assert SECRET not in caplog.text


async def test_a_server_that_refuses_is_not_asked_again():
    async def answer(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.read_body(seen)
        return b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"

    async with open_origin(answer) as server, posting(settings(server)) as (log, counts):
        log.emit("orders", "refused", "x")
        await until(counts, failed=1)
        assert len(server.seen) == 1


async def test_nobody_there_is_given_up():
    async with open_origin() as server:
        found = settings(server)
        server.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        async with posting(found) as (log, counts):
            log.emit("orders", "refused", "x")
            await until(counts, failed=1)


async def test_a_slow_server_delays_nobody_and_the_oldest_is_dropped():
    async def answer(visitor: Visitor, seen: Seen) -> bytes | None:
        await visitor.read_body(seen)
        await visitor.wait_gone()
        return None

    async with open_origin(answer) as server, posting(settings(server)) as (log, counts):
        log.emit("orders", "refused", "x")
        while not server.seen:
            await trio.sleep(0.005)
        for _ in range(10):
            for _ in range(QUEUE // 8):  # a stream's own queue is bounded, too
                log.emit("orders", "lost", "x")
            await trio.testing.wait_all_tasks_blocked(0.001)
        await until(counts, dropped=10 * (QUEUE // 8) - QUEUE)


async def test_a_secret_that_cannot_be_read_fails_and_says_so(tmp_path, caplog: pytest.LogCaptureFixture):
    header = WebhookHeader("Authorization", Secret("file", str(tmp_path / "none")))
    async with open_origin() as server, posting(settings(server, header=header)) as (log, counts):
        log.emit("orders", "refused", "x")
        await until(counts, failed=1)
        assert not server.seen
    assert "none cannot be read" in caplog.text


async def test_a_header_that_cannot_be_sent_is_not_shown(caplog: pytest.LogCaptureFixture):
    header = WebhookHeader("Authorization", Secret("inline", SECRET + "\r\nX: y"))
    async with open_origin() as server, posting(settings(server, header=header)) as (log, counts):
        log.emit("orders", "refused", "x")
        await until(counts, failed=1)
        assert not server.seen
    assert "never-to-be-seen" not in caplog.text


# The end -------------------------------------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


async def silent(visitor: Visitor, seen: Seen) -> None:
    """Takes a request and never answers."""
    await visitor.read_body(seen)
    await visitor.wait_gone()


async def test_what_waits_at_the_end_is_posted(caplog: pytest.LogCaptureFixture):
    log, counts = EventLog(), Counter[str]()
    async with open_origin() as server:
        stream = log.subscribe()
        for kind in ("stopping", "drained", "stopped"):
            log.emit("", kind, "x")
        log.close()
        await Webhook(settings(server), "hcm", counts).run(stream)
        assert kinds(server) == ["stopping", "drained", "stopped"]
    assert counts == {"sent": 3}
    assert not said(caplog, "lost")


async def test_a_webhook_that_had_nothing_to_do_ends_at_once(autojump_clock: trio.testing.MockClock):
    log, counts = EventLog(), Counter[str]()
    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(Webhook(WebhookSettings("http://127.0.0.1:9/"), "hcm", counts).run, log.subscribe())
        await trio.testing.wait_all_tasks_blocked()
        log.close()
    assert trio.current_time() == started_at
    assert not counts


async def test_the_end_does_not_wait_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """The event that is under way is among those that are lost."""
    monkeypatch.setattr(webhook_module, "FLUSH_S", 0.2)
    log, counts = EventLog(), Counter[str]()
    async with open_origin(silent) as server, trio.open_nursery() as nursery:
        nursery.start_soon(Webhook(settings(server, timeout_s=60.0), "hcm", counts).run, log.subscribe())
        log.emit("", "stopping", "x")
        while not server.seen:
            await trio.sleep(0.005)
        log.emit("", "drained", "x")
        log.emit("", "stopped", "x")
        log.close()
    assert counts == {"dropped": 3}
    [text] = said(caplog, "lost")
    assert "the last 3 events are lost" in text
    assert "path-secret" not in text


async def test_at_the_end_nobody_is_waited_for_who_has_refused(monkeypatch: pytest.MonkeyPatch):
    """An event in a pause between two attempts gets its last one at once; those behind it have one each."""
    monkeypatch.setattr(webhook_module, "_PAUSES_S", (3600.0,))

    async def answer(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.read_body(seen)
        return b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"

    log, counts = EventLog(), Counter[str]()
    async with open_origin(answer) as server, trio.open_nursery() as nursery:
        nursery.start_soon(Webhook(settings(server), "hcm", counts).run, log.subscribe())
        log.emit("", "lost", "x")
        while not server.seen:
            await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked(0.05)
        log.emit("", "stopped", "x")
        log.close()
    assert counts == {"failed": 2}
    assert kinds(server) == ["lost", "lost", "stopped"]


async def test_another_webhook_takes_over_and_what_waits_goes_to_the_one_before():
    may_answer = trio.Event()

    async def answer(visitor: Visitor, seen: Seen) -> bytes:
        await visitor.read_body(seen)
        await may_answer.wait()
        return OK

    log, counts = EventLog(), Counter[str]()
    async with open_origin(answer) as first, open_origin() as second, trio.open_nursery() as nursery:
        webhooks = Webhooks("hcm", log.subscribe, counts)
        await nursery.start(webhooks.run, WebhookSettings())
        assert webhooks.shown == ""
        log.emit("", "added", "nobody is told")
        assert webhooks.change(settings(first))
        assert not webhooks.change(settings(first))
        assert webhooks.shown == first.url
        log.emit("", "paused", "x")
        log.emit("", "resumed", "x")
        while not first.seen:
            await trio.sleep(0.005)
        assert webhooks.change(settings(second))
        log.emit("", "lost", "x")
        await until(counts, sent=1)
        assert kinds(second) == ["lost"]
        may_answer.set()
        await until(counts, sent=3)
        log.emit("", "stopped", "x")
        log.close()
        await webhooks.wait_ended()
        assert not webhooks.change(WebhookSettings())
    assert kinds(first) == ["paused", "resumed"]
    assert kinds(second) == ["lost", "stopped"]


# Settings ------------------------------------------------------------------------------------------------------------


def read(tmp_path, text: str):
    path = tmp_path / "x.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load([path], {})


@pytest.mark.parametrize("program", ["hcm", "connect"])
def test_the_settings(tmp_path, program: str):
    loaded = read(
        tmp_path,
        f"[{program}]\nwebhook = {{ url = 'https://h.example/a?sig=s', events = ['refused', 'lost'], timeout = '2s',"
        f" header = {{ name = 'X-T', value = '{SECRET}' }} }}",
    )
    found = getattr(loaded.settings, program).webhook
    assert found == WebhookSettings(
        "https://h.example/a?sig=s", ("refused", "lost"), 2.0, WebhookHeader("X-T", Secret("inline", SECRET))
    )
    for text in (show(loaded, effective=True), repr(loaded.settings)):
        assert SECRET not in text
        assert "sig=s" not in text
    shown = show(loaded, effective=True)
    assert "https://h.example/" in shown
    assert replace(found, url="") != found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("url = 'ftp://h.example/secret'", "https://HOST"),
        ("url = 'https://u:secret@h.example/'", "https://HOST"),
        ("url = 'https://h.example/'\nevents = ['refuse']", "refused"),
        ("events = ['refused']", "needs its url"),
        ("url = 'https://h.example/'\nheader = { name = 'X-T' }", "a header needs its value"),
        ("url = 'https://h.example/'\nheader = { name = 'Host', value = { env = 'E' } }", "the name of a header"),
    ],
)
def test_wrong_settings(tmp_path, text: str, words: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[hcm.webhook]\n{text}")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_certificate_that_is_not_trusted_is_an_answer_never_sent(caplog: pytest.LogCaptureFixture):
    """The header goes to nobody who has not shown who he is."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    got = bytearray()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            async for piece in trio.SSLStream(stream, context, server_side=True):
                got.extend(piece)
        except trio.BrokenResourceError:
            pass

    header = WebhookHeader("Authorization", Secret("inline", SECRET))
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        url = f"https://localhost:{listener.socket.getsockname()[1]}/secret"
        async with posting(WebhookSettings(url, header=header)) as (log, counts):
            log.emit("orders", "refused", "x")
            await until(counts, failed=1)
        nursery.cancel_scope.cancel()
    assert not got
    assert "certificate" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("kinds_known", "files"),
    [
        (HCM_KINDS, ["hcm/agent.py", "hcm/manager.py", "hcm/relay_leg.py", "hcm/endpoint_leg.py"]),
        (CONNECT_KINDS, ["connect/forwarder.py", "connect/proxy_port.py"]),
    ],
    ids=["hcm", "connect"],
)
def test_every_kind_that_is_emitted_can_be_asked_for(kinds_known, files):
    folder = Path(webhook_module.__file__).parent
    call = re.compile(r'(?:\bemit|_emit|on_event|_fail)\((?:[a-z_.]+(?:\(\))?, |"", )?"([a-z-]+)"')
    found = {kind for file in files for kind in call.findall((folder / file).read_text())}
    assert len(found) > 5
    assert found <= set(kinds_known)
