"""The relay leg against a relay that plays a script: what its answers mean, and coming back from each."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from managed import NO_PROBE, until
from trio.testing import MockClock

from relaycore import ConnectionLost
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import HcmConnection, HcmSettings, RelaySettings, Target
from relaycore.edge.hcm.manager import Manager
from relaycore.edge.hcm.relay_leg import explain
from relaycore.edge.hcm.status import ConnectionStatus, RelayLeg
from relaycore.errors import AuthorizationFailed, ConfigError, EndpointNotFound, NoListener, ServerBusy
from relaycore.net.errors import StreamClosed, StreamLost
from relaycore.net.proxy import Proxy
from relaycore.net.proxy_dial import ProxyFailed
from relaycore.net.websocket import WebSocketLeg
from relaycore.testing.fake_relay import KEY, FakeRelay, open_fake_relay
from relaycore.wire.frames import Close

RELAY = RelaySettings("main", "sb://relay.example/")
ENTRY = HcmConnection("sql", RELAY, "orders", key_name="listen", key=Secret("inline", "k"))


def untrusted() -> ConnectionLost:
    error = ConnectionLost("TLS with relay.example failed")
    error.__cause__ = ssl.SSLCertVerificationError()
    return error


@pytest.mark.parametrize(
    ("cause", "leg", "words"),
    [
        (AuthorizationFailed("ExpiredToken: too old"), RelayLeg.UNAUTHORIZED, ["rule 'listen'", "clock"]),
        (AuthorizationFailed("no", http_status=403), RelayLeg.UNAUTHORIZED, ["rule 'listen'", "right Listen"]),
        (AuthorizationFailed("ListenersPerEntity: 25", http_status=403), None, ["has to leave first"]),
        (EndpointNotFound("Endpoint does not exist"), RelayLeg.NOT_FOUND, ["'orders'", "created"]),
        (NoListener("gone"), RelayLeg.NOT_FOUND, ["'orders'"]),
        (ConfigError("the file is not there"), RelayLeg.UNAUTHORIZED, ["cannot sign in at sb://", "not there"]),
        (ServerBusy("restarting"), None, ["sb://relay.example/", "restarting"]),
        (StreamClosed(1011, "restart"), None, ["closed the control channel (1011 restart)"]),
        (StreamClosed(1001, ""), None, ["(1001)"]),
        (StreamLost("no sign of life"), None, ["control channel at sb://relay.example/ broke: no sign of life"]),
        (
            ProxyFailed(Proxy("http", "proxy.test", 3128), "the proxy http://proxy.test:3128 said 403", status=403),
            None,
            ["listening on 'orders'", "said 403", "have the proxy allow connections to relay.example"],
        ),
        (untrusted(), None, ["the certificate of relay.example is not trusted here", "ca_file"]),
        (ConnectionLost("cannot connect"), None, ["cannot connect"]),
        (OSError(), None, ["OSError"]),
        (ZeroDivisionError("secret internals"), None, ["signing in failed (ZeroDivisionError)"]),
    ],
)
def test_what_a_cause_means(cause: Exception, leg: RelayLeg | None, words: list[str]):
    """8.3, 8.11: what was tried, what came back, what to do."""
    found, text = explain(cause, ENTRY)
    assert found is leg
    for word in words:
        assert word in text
    assert "secret internals" not in text


@asynccontextmanager
async def managing(relay: FakeRelay, key: Secret | None = None) -> AsyncIterator[Manager]:
    entry = HcmConnection(
        "orders",
        RelaySettings("main", f"sb://127.0.0.1:{relay.port}/", is_emulator=True, proxy="none"),
        "orders",
        key_name="RootManageSharedAccessKey",
        key=key or Secret("inline", KEY),
        targets=(Target("127.0.0.1", 9),),
        health=NO_PROBE,
    )
    async with trio.open_nursery() as nursery:
        manager = Manager()
        await nursery.start(manager.run, HcmSettings((entry,)))
        yield manager
        nursery.cancel_scope.cancel()


def status(manager: Manager) -> ConnectionStatus:
    return manager.connection_status("orders")


async def keep(channel: WebSocketLeg) -> None:
    """Be a relay that reads, and answers a Close."""
    try:
        while not isinstance(await channel.receive(), Close):
            pass
        await channel.close()
    except trio.BrokenResourceError:
        await channel.aclose()


async def test_losses_and_renewals_are_counted(autojump_clock: MockClock):
    """8.10: reconnects by reason, tokens renewed; they outlive the registration."""
    with trio.fail_after(36_000):
        async with open_fake_relay() as relay, managing(relay) as manager, trio.open_nursery() as nursery:
            channel = await (await relay.next_request("listen")).accept()
            with trio.move_on_after(7000):
                await keep(channel)
            renewed = status(manager).tokens_renewed
            assert renewed >= 2
            assert status(manager).token_expires_unix is not None
            await channel.close(1008, "ExpiredToken")
            channel = await (await relay.next_request("listen")).accept()
            await until(lambda: status(manager).reconnects == {"unauthorized": 1}, 60)
            await channel.close(1011, "restart")
            channel = await (await relay.next_request("listen")).accept()
            await channel.aclose()
            channel = await (await relay.next_request("listen")).accept()
            counted = {"unauthorized": 1, "closed": 1, "lost": 1}
            await until(lambda: status(manager).reconnects == counted, 60)
            await until(lambda: status(manager).status == "Connected", 60)
            nursery.start_soon(keep, channel)
            manager.pause("orders")
            await until(lambda: status(manager).listeners_here == 0, 60)
            found = status(manager)
            assert (found.reconnects, found.tokens_renewed) == (counted, renewed)
            assert found.token_expires_unix is None
            nursery.cancel_scope.cancel()


async def test_each_answer_has_its_word_and_none_is_final(autojump_clock: MockClock):
    """8.3: 404, 401, 403, 503, silence: the word, and then Connected."""
    answers = [
        (404, "Endpoint does not exist: orders", "NotFound"),
        (401, "InvalidSignature: no", "Unauthorized"),
        (403, "The token does not carry the right Listen", "Unauthorized"),
        (503, "busy", "Reconnecting"),
    ]
    with trio.fail_after(3600):
        async with open_fake_relay() as relay, managing(relay) as manager, trio.open_nursery() as nursery:
            for number, (code, reason, word) in enumerate(answers):
                await (await relay.next_request("listen")).refuse(code, reason)
                await until(lambda number=number: status(manager).attempts == number + 1, 60)
                assert status(manager).status == word
                assert reason in status(manager).last_error
                assert status(manager).next_try_unix is not None
            nursery.start_soon(keep, await (await relay.next_request("listen")).accept())
            await until(lambda: status(manager).status == "Connected", 60)
            found = status(manager)
            assert (found.attempts, found.next_try_unix, found.detail) == (0, None, "")
            nursery.cancel_scope.cancel()


async def test_a_channel_that_is_lost_is_opened_anew(autojump_clock: MockClock):
    """8.3 Reconnecting: with the reason, the try and the wait; then Connected, and both are events."""
    with trio.fail_after(3600):
        async with open_fake_relay() as relay, managing(relay) as manager, trio.open_nursery() as nursery:
            channel = await (await relay.next_request("listen")).accept()
            await until(lambda: status(manager).status == "Connected", 60)
            since = status(manager).since_unix
            await channel.send_close(1011, "restart")
            await until(lambda: status(manager).status == "Reconnecting", 60)
            assert "1011 restart" in status(manager).last_error
            assert status(manager).listeners_here == 0
            nursery.start_soon(keep, await (await relay.next_request("listen")).accept())
            await until(lambda: status(manager).status == "Connected", 60)
            assert status(manager).since_unix >= since
            kinds = [event.kind for event in manager.recent_events() if event.kind != "metadata-failed"]
            assert kinds == ["added", "connected", "disconnected", "retrying", "connected"]
            await channel.aclose()
            nursery.cancel_scope.cancel()


async def test_what_the_relay_says_decides_when_it_is_asked_again(autojump_clock: MockClock):
    """8.3: 401, 403 and 404 about each minute; a loss, or a busy relay, soon; the try and the wait are shown."""
    with trio.fail_after(36_000):
        async with open_fake_relay() as relay, managing(relay) as manager, trio.open_nursery() as nursery:
            asked_at = trio.current_time()
            request = await relay.next_request("listen")
            noes = [(404, "no such"), (401, "no key"), (403, "no right"), (401, "no key")]
            for number, (code, reason) in enumerate(noes):
                await request.refuse(code, reason)
                await until(lambda number=number: status(manager).attempts == number + 1, 60)
                assert re.fullmatch(rf"try {number + 2} in (5[4-9]|60) s", status(manager).detail)
                request = await relay.next_request("listen")
                assert 54 <= trio.current_time() - asked_at < 61
                asked_at = trio.current_time()
            for longest_s in (0.2, 0.4, 0.8):
                await request.refuse(503, "busy")
                request = await relay.next_request("listen")
                assert trio.current_time() - asked_at <= longest_s + 0.1
                asked_at = trio.current_time()
            # A full house is no matter of keys: a place may be free at any moment.
            await request.refuse(403, "ListenersPerEntity: 25")
            request = await relay.next_request("listen")
            assert trio.current_time() - asked_at <= 1.7
            nursery.start_soon(keep, await request.accept())
            await until(lambda: status(manager).status == "Connected", 60)
            nursery.cancel_scope.cancel()


async def test_a_restart_does_not_wait(autojump_clock: MockClock):
    """8.3: ``hcm restart`` tries at once, whatever was waited for, and begins the waits anew."""
    with trio.fail_after(3600):
        async with open_fake_relay() as relay, managing(relay) as manager:
            for _ in range(3):
                await (await relay.next_request("listen")).refuse(401, "InvalidSignature: no")
                await until(lambda: status(manager).status == "Unauthorized", 60)
                began = trio.current_time()
                manager.restart("orders")
                request = await relay.next_request("listen")
                assert trio.current_time() - began < 1
                await request.refuse(503, "busy")


async def test_another_key_is_tried_at_once(autojump_clock: MockClock, tmp_path: Path):
    """8.3 Unauthorized: the key file is read anew each minute, and a changed one within two seconds."""
    file = tmp_path / "key"

    def write(text: str) -> None:
        file.touch(mode=0o600)
        file.write_text(text)

    write("old")
    with trio.fail_after(3600):
        async with (
            open_fake_relay() as relay,
            managing(relay, Secret("file", str(file))) as manager,
            trio.open_nursery() as nursery,
        ):
            await (await relay.next_request("listen")).refuse(401, "InvalidSignature: no")
            began = trio.current_time()
            request = await relay.next_request("listen")
            assert trio.current_time() - began >= 54
            await request.refuse(401, "InvalidSignature: no")
            await until(lambda: status(manager).attempts == 2, 60)

            # Gone, and back: neither is a try of the relay's that the old key would have.
            began = trio.current_time()
            file.unlink()
            await until(lambda: "cannot sign in" in status(manager).last_error, 60)
            write(KEY)
            request = await relay.next_request("listen")
            assert trio.current_time() - began < 5
            nursery.start_soon(keep, await request.accept())
            await until(lambda: status(manager).status == "Connected", 60)
            nursery.cancel_scope.cancel()


async def test_a_key_that_changes_while_the_old_one_is_refused_is_tried_at_once(
    autojump_clock: MockClock, tmp_path: Path
):
    """8.3 Unauthorized: put right while the refusal is on its way, also a slow one."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text("old")
    with trio.fail_after(3600):
        async with open_fake_relay() as relay, managing(relay, Secret("file", str(file))) as manager:
            request = await relay.next_request("listen")
            file.write_text("newer")
            await request.refuse(401, "InvalidSignature: no")
            began = trio.current_time()
            request = await relay.next_request("listen")
            assert trio.current_time() - began < 2
            file.write_text(KEY)
            await trio.sleep(5)
            await request.refuse(401, "InvalidSignature: no")
            began = trio.current_time()
            request = await relay.next_request("listen")
            assert trio.current_time() - began < 2
            assert status(manager).status == "Unauthorized"
            # And one that was refused itself is not.
            await request.refuse(401, "InvalidSignature: no")
            began = trio.current_time()
            await relay.next_request("listen")
            assert trio.current_time() - began >= 54


async def test_leaving_a_silent_relay_is_bounded(autojump_clock: MockClock):
    """failures: half-open link. Paused is shown at once, and the control channel is gone soon."""
    with trio.fail_after(3600):
        async with open_fake_relay() as relay, managing(relay) as manager:
            channel = await (await relay.next_request("listen")).accept()
            await until(lambda: status(manager).status == "Connected", 60)
            began = trio.current_time()
            manager.pause("orders")
            assert status(manager).status == "Paused"
            await manager.remove("orders")
            assert trio.current_time() - began <= 20
            await channel.aclose()
