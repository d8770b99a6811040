"""The server as a whole: its start, its end, and what it survives."""

from __future__ import annotations

import contextlib
import logging
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from peers import WirePeer, close_frame, frame

from relaycore.config import Config, EngineConfig, LimitsConfig, ServerConfig, StoreConfig, TimeoutsConfig, TlsConfig
from relaycore.errors import ConfigError
from relaycore.gateway import control_channel
from relaycore.gateway.server import serve
from relaycore.store.sqlite import open_sqlite

GUID = "12345678-1234-1234-1234-1234567890ab"


async def test_stop_tells_everybody_and_ends(relay) -> None:
    """spec 13: relay shutting down: 1001 on control channels and to both sides of streams, then it is over."""
    control, sender, listener = await relay.join()
    idle = await relay.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.server.stop, 5)
        for peer in (control, sender, listener):
            got = await peer.read_frame()
            assert (got.opcode, got.close_code) == (8, 1001)
            await peer.send(close_frame(1001))
        assert await idle.read_eof() == b""
    with pytest.raises(OSError, match=r"refused|failed"):
        await relay.connect()
    assert [event.name for event in relay.events if event.name.startswith("server.")] == [
        "server.started",
        "server.stopping",
        "server.stopped",
    ]


async def test_stop_waits_for_the_drain_time_and_no_longer(start_relay) -> None:
    """spec 13: who does not answer is cut after the grace period."""
    relay = await start_relay(timeouts=TimeoutsConfig(close=30.0))
    _, sender, _ = await relay.join()
    started = trio.current_time()
    await relay.server.stop(0.3)
    assert 0.3 <= trio.current_time() - started < 2
    assert (await sender.read_frame()).close_code == 1001
    assert await sender.read_eof() == b""


async def test_stop_answers_waiting_senders(relay) -> None:
    """spec 13: a sender that still waits is told, instead of being left to its timeout."""
    control = await relay.listen("open")
    answers: list = []

    async def send() -> None:
        answers.append((await relay.call("/$hc/open"))[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await control.read_json()
        nursery.start_soon(relay.server.stop, 5)
        assert (await control.read_frame()).close_code == 1001
        await control.send(close_frame(1001))
    assert answers[0].status == 503
    assert "shutting down" in answers[0].reason


async def test_refusals_have_the_form_of_the_service(relay) -> None:
    """spec 12: message, tracking id of the client, system tracker and time in the reason phrase; no body; closed."""
    peer, answer = await relay.call(f"/$hc/nowhere/at/all?sb-hc-id={GUID}")
    assert answer.status == 404
    assert answer.reason.startswith("Endpoint does not exist: nowhere/at/all. TrackingId:" + GUID + "_G0, ")
    assert "SystemTracker:sb://relay.test/nowhere/at/all, Timestamp:20" in answer.reason
    assert answer.headers == {"content-length": "0", "connection": "close"}
    assert await peer.read_eof() == b""
    refused = relay.named("connection.refused")[0].fields
    assert (refused["tracking_id"], refused["status"]) == (answer.tracking_id, 404)


async def test_refusals_become_slow_and_then_stop(start_relay) -> None:
    """spec 18: a client that retries without pause gets its answers ever later, others do not."""
    relay = await start_relay(
        limits=LimitsConfig(refusals_per_second_per_source=10, refusals_burst=5),
        timeouts=TimeoutsConfig(refusal_delay=0.5),
    )
    answered: list[float] = []
    cut = 0

    async def retry() -> None:
        nonlocal cut
        peer = await relay.connect()
        try:
            answer = await peer.upgrade("/$hc/orders?sb-hc-action=listen")
            assert answer.status == 401
            answered.append(trio.current_time())
        except (EOFError, trio.BrokenResourceError):
            cut += 1

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(retry)
    assert len(answered) + cut == 60
    assert 5 <= len(answered) <= 15
    assert answered[-1] - started >= 0.3
    assert trio.current_time() - started < 2
    # A good client from the same address is not slowed.
    await relay.listen()


async def test_a_storm_has_to_wait_between_its_attempts(start_relay) -> None:
    """spec 18: one client that tries again as soon as it is cut makes few attempts, and few log lines."""
    relay = await start_relay(
        limits=LimitsConfig(refusals_per_second_per_source=1, refusals_burst=2),
        timeouts=TimeoutsConfig(refusal_delay=0.2),
    )
    attempts = 0

    async def storm() -> None:
        nonlocal attempts
        while True:
            peer = await relay.connect()
            attempts += 1
            with suppress(EOFError, trio.BrokenResourceError):
                await peer.upgrade("/$hc/orders?sb-hc-action=listen")
            await trio.aclose_forcefully(peer.stream)

    with trio.move_on_after(1.1):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(storm)
    assert 10 < attempts < 30
    levels = [event.level for event in relay.named("connection.refused")]
    assert levels.count(logging.WARNING) < 10
    assert levels.count(logging.DEBUG) > 5


async def test_slow_and_oversize_heads(start_relay) -> None:
    """failures: too many header lines crash the server."""
    relay = await start_relay(limits=LimitsConfig(head_bytes=4096, headers_count=20), timeouts=TimeoutsConfig(head=0.3))
    for head, status in (
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 408),
        (b"GET /" + b"a" * 5000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 30 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"b" * 5000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ):
        peer = await relay.connect()
        await peer.send(head)
        assert (await peer.read_answer()).status in (status, 400 if status == 414 else status, 431), head
    silent = await relay.connect()
    assert await silent.read_eof() == b""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/$hc/orders?sb-hc-action=dance", 400),
        ("/$hc/orders?sb-hc-action=accept", 400),
        ("/$hc/orders?sb-hc-action=accept&sb-hc-rid=x", 403),
        ("/$hc/?sb-hc-action=listen", 404),
        ("/$hc/orders/suffix?sb-hc-action=listen", 404),
        ("/$hc/orders?sb-hc-action=connect", 401),
        ("/$hc/orders?sb-hc-action=connect&sb-hc-token=abc", 401),
        ("/%24hc/nowhere", 404),
    ],
)
async def test_malformed_and_unknown_targets(relay, target: str, status: int) -> None:
    """spec 12: unknown action or malformed rendezvous 400, unknown address 403, unknown path 404."""
    _, answer = await relay.call(target)
    assert answer.status == status


async def test_without_upgrade(relay) -> None:
    """spec 4: a request for a WebSocket path that does not ask for one is told what is needed."""
    peer = await relay.connect()
    answer, _ = await peer.request("GET", "/$hc/orders", {"Host": "relay.test"})
    assert answer.status in (400, 426)
    peer = await relay.connect()
    await peer.send(
        b"GET /$hc/orders HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    answer = await peer.read_answer()
    assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")


async def test_switched_off_websocket(relay) -> None:
    """spec 18: a per-entity switch keeps WebSocket senders from listeners that would not survive them."""
    await relay.store.update_entity("default", "orders", websocket=False)
    await relay.listen()
    _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 403


async def test_management_requests_share_a_connection(relay) -> None:
    """spec 16: the management GET on the runtime port, with keep-alive."""
    await relay.listen()
    peer = await relay.connect()
    headers = {"Host": "relay.test", "X-PROCESS-AT": "ServiceBus", "Authorization": relay.token()}
    for _ in range(2):
        answer, body = await peer.request("GET", "/orders?api-version=2016-07", headers)
        assert answer.status == 200
        assert b"<ListenerCount>1</ListenerCount>" in body
    del headers["Authorization"]
    answer, body = await peer.request("GET", "/orders?api-version=2016-07", headers)
    assert (answer.status, b"<Code>401</Code>" in body) == (401, True)
    assert relay.named("connection.refused")[0].fields["reason"] == "missing_token"


async def test_remote_creation_then_use(relay) -> None:
    """mgmt 7: an entity made over Atom can be listened on at once; deleting it closes the listener."""
    peer = await relay.connect()
    headers = {"Host": "relay.test", "X-PROCESS-AT": "ServiceBus", "Authorization": relay.token()}
    body = (
        b'<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><HybridConnectionDescription '
        b'xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"/></content></entry>'
    )
    answer, _ = await peer.request("PUT", "/fresh/one?api-version=2016-07", headers, body)
    assert answer.status == 201
    control = await relay.listen("fresh/one")
    answer, _ = await peer.request("DELETE", "/fresh/one?api-version=2016-07", headers)
    assert answer.status == 200
    assert (await control.read_frame()).close_code == 1001


async def test_definitions_written_by_another_process_arrive(start_relay, tmp_path: Path) -> None:
    """spec 3: what the command line writes into the store, a running relay knows within a second."""
    relay = await start_relay(path=tmp_path / "relay.db")
    other = await open_sqlite(tmp_path / "relay.db")
    try:
        await other.create_entity("default", "elsewhere")
        with trio.fail_after(2):
            while relay.server.namespace.get_entity("elsewhere") is None:
                await trio.sleep(0.02)
        control = await relay.listen("elsewhere")
        await other.delete_entity("default", "elsewhere")
        assert (await control.read_frame()).close_code == 1001
    finally:
        await other.aclose()


async def test_stop_does_not_wait_for_handshakes(start_relay, tmp_path: Path) -> None:
    """spec 13: relay shutting down; a connection that has asked for nothing does not hold it up."""
    leaf = trustme.CA().issue_cert("relay.test")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    relay = await start_relay(tls=TlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem")))
    silent = await relay.connect()
    while not relay.server.statistics().open_connections:
        await trio.sleep(0.01)
    with trio.fail_after(5):
        await relay.server.stop()
    assert await silent.read_eof() == b""


async def test_tls_from_end_to_end(start_relay, tmp_path: Path) -> None:
    """spec 7.1: over TLS the rendezvous address is wss with the listener's host, and bytes arrive."""
    ca = trustme.CA()
    leaf = ca.issue_cert("relay.test")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    relay = await start_relay(tls=TlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem")))
    client = ssl.create_default_context()
    ca.configure_trust(client)

    async def connect() -> WirePeer:
        tcp = await trio.open_tcp_stream("127.0.0.1", relay.port)
        peer = WirePeer(trio.SSLStream(tcp, client, server_hostname="relay.test", https_compatible=True))
        relay._peers.append(peer)
        return peer

    relay.connect = connect
    control = await relay.listen("open")
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call("/$hc/open", trailing=frame(2, b"early")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        message = (await control.read_json())["accept"]
        assert message["address"].startswith("wss://relay.test/$hc/open?")
        listener = await relay.come_to(message["address"])
    sender = outcome[0]
    assert await listener.read_message() == (2, b"early")
    data = bytes(range(256)) * 2000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.send, frame(2, data))
        assert await sender.read_message() == (2, data)
    # A plain client and one that cannot finish the handshake cost nothing but themselves.
    plain = await WirePeer.open(relay.port)
    await plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(trio.BrokenResourceError):
        await plain.read_eof()
    await plain.aclose()
    # The engine knows sockets only; a session over TLS is moved in Trio tasks.
    statistics = relay.server.statistics()
    assert statistics.sessions == 1
    assert statistics.engine is None or statistics.engine.commands == 0
    assert "TLS handshake" in str(relay.named("connection.failed")[0].fields["cause"])
    await sender.send(frame(1, b"still"))
    assert await listener.read_message() == (1, b"still")


async def test_a_connection_bound_stops_accepting_and_goes_on(start_relay) -> None:
    """failures: bounds have a sentence on what happens there."""
    relay = await start_relay(server=ServerConfig(port=0, max_connections=3))
    peers_ = [await relay.connect() for _ in range(3)]
    with trio.fail_after(5):
        while relay.server.statistics().open_connections < 3:
            await trio.sleep(0.01)
    late = await relay.connect()
    await late.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    with trio.move_on_after(0.2) as waiting:
        await late.read_answer()
    assert waiting.cancelled_caught
    await peers_[0].aclose()
    assert (await late.read_answer()).status == 404


async def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    """failures: documented credential setting never read."""
    config = Config(
        server=ServerConfig(port=0),
        store=StoreConfig(path=":memory:"),
        tls=TlsConfig(cert=str(tmp_path / "none.pem"), key=str(tmp_path / "none.key")),
    )
    with pytest.raises(ConfigError, match=r"tls.cert: cannot read .*none.pem"):
        await serve(config)


async def test_an_engine_that_is_asked_for_and_cannot_be_had_is_said_to_be_missing(start_relay, monkeypatch) -> None:
    """failures: a setting that is silently ignored; who leaves the choice to the relay gets Trio."""
    monkeypatch.setattr("relaycore.gateway.server.engine_is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"engine.mover is engine, but this system has no epoll"):
        await serve(
            Config(server=ServerConfig(port=0), store=StoreConfig(path=":memory:"), engine=EngineConfig(mover="engine"))
        )
    relay = await start_relay(engine=EngineConfig(mover="auto"))
    _, sender, listener = await relay.join()
    await sender.send(frame(2, b"by Trio"))
    assert await listener.read_message() == (2, b"by Trio")
    assert relay.server.statistics().engine is None


async def test_an_error_of_ours_ends_its_connection_only(relay, monkeypatch) -> None:
    """failures: attacker-set length overflows, process dies."""
    control, sender, listener = await relay.join()

    def broken(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError("seeded")

    monkeypatch.setattr(relay.server._gateway.rendezvous, "claim", broken)
    peer = await relay.connect()
    await peer.send(
        b"GET /$hc/orders?sb-hc-action=accept&sb-hc-rid=x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    answer = await peer.read_answer()
    assert answer.status == 500
    assert "seeded" not in answer.reason
    assert "TrackingId:" in answer.reason
    [event] = relay.named("internal.error")
    assert "ZeroDivisionError" in str(event.fields["message"])
    assert event.fields["tracking_id"] == answer.tracking_id
    relay.events.clear()
    await sender.send(frame(2, b"still"))
    assert await listener.read_message() == (2, b"still")
    monkeypatch.setattr(control_channel, "parse_from_listener", broken)
    await control.send(frame(1, b"{}"))
    got = await control.read_frame()
    assert (got.opcode, got.close_code) == (8, 1011)
    assert b"seeded" not in got.payload
    with trio.fail_after(5):
        while not relay.named("internal.error"):
            await trio.sleep(0.01)
    relay.events.clear()


async def test_an_error_in_the_look_at_one_session_ends_nothing(start_relay, monkeypatch) -> None:
    """failures: attacker-set length overflows, process dies."""
    monkeypatch.setattr("relaycore.gateway.server._STALL_CHECK_INTERVAL", 0.01)
    relay = await start_relay()
    _, sender, listener = await relay.join()

    def broken(_session: object) -> None:
        raise OSError("seeded")

    with monkeypatch.context() as patched:
        patched.setattr("relaycore.net.session.Session.check_sources_nowait", broken)
        with trio.fail_after(5):
            while not relay.named("internal.error"):
                await trio.sleep(0.01)
    assert "seeded" in str(relay.named("internal.error")[0].fields["message"])
    relay.events.clear()
    await sender.send(frame(2, b"still"))
    assert await listener.read_message() == (2, b"still")


async def test_an_error_in_a_farewell_ends_nothing(start_relay) -> None:
    """failures: attacker-set length overflows, process dies."""
    relay = await start_relay()
    _, sender, listener = await relay.join()

    class Broken(trio.abc.SendStream):
        async def send_all(self, _data: object) -> None:
            raise ZeroDivisionError("seeded")

        async def wait_send_all_might_not_block(self) -> None: ...

        async def aclose(self) -> None: ...

    relay.server._gateway.close_soon(Broken(), b"HTTP/1.1 404\r\n\r\n")
    with trio.fail_after(5):
        while not relay.named("internal.error"):
            await trio.sleep(0.01)
    relay.events.clear()
    await sender.send(frame(2, b"still"))
    assert await listener.read_message() == (2, b"still")


async def test_cancelling_serve_leaves_nothing(nursery: trio.Nursery) -> None:
    """spec 13: a server that is cancelled closes everything it has."""
    config = Config(server=ServerConfig(port=0), store=StoreConfig(path=":memory:"))
    async with trio.open_nursery() as inner:
        server = await inner.start(partial(serve, config))
        peer = await WirePeer.open(server.addresses[0][1])
        inner.cancel_scope.cancel()
    assert server.is_stopped
    with contextlib.suppress(trio.BrokenResourceError):
        assert await peer.read_eof() == b""
    await peer.aclose()
