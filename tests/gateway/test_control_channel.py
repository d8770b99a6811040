"""Control channels, seen from the wire."""

from __future__ import annotations

import json
import time

import peers
import pytest
import trio
from peers import WirePeer, close_frame, frame

from relaycore.config import Config, LimitsConfig, ServerConfig, TimeoutsConfig
from relaycore.gateway.control_channel import Outgoing
from relaycore.vocab import Right

GUID = "12345678-1234-1234-1234-1234567890ab"


async def test_registered_before_the_101(relay) -> None:
    """spec 6.1: a sender that comes right behind the listener's 101 finds it."""
    control = await relay.listen()
    sender, answer = None, None

    async def send() -> None:
        nonlocal sender, answer
        sender, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await relay.accept(control)
    assert answer is not None
    assert answer.status == 101


async def test_deregistered_before_its_close_is_answered(relay) -> None:
    """spec 6.1: after the answering Close no sender can meet the ghost, and the code comes back."""
    control = await relay.listen()
    await control.send(close_frame(1000, "Normal Closure"))
    got = await control.read_frame()
    assert (got.opcode, got.close_code) == (8, 1000)
    _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 404
    assert "There are no listeners connected for the endpoint" in answer.reason
    assert await control.read_eof() == b""


async def test_ping_is_answered_and_pong_ignored(relay) -> None:
    """spec 6.3: the SDKs send unsolicited pings or pongs."""
    control = await relay.listen()
    await control.send(frame(10, b"keep-alive") + frame(9, b"hello"))
    got = await control.read_frame()
    assert (got.opcode, got.payload) == (10, b"hello")


async def test_silent_listener_is_pinged_and_dropped_after_two(start_relay) -> None:
    """failures: listener silently deaf while "connected"."""
    relay = await start_relay(timeouts=TimeoutsConfig(ping_interval=0.05))
    control = await relay.listen()
    with trio.fail_after(5):
        assert [(await control.read_frame()).opcode for _ in range(2)] == [9, 9]
        assert await control.read_eof() == b""
    assert relay.server.statistics().listeners == 0
    assert relay.named("listener.lost")[0].fields["cause"] == "2 pings unanswered"


async def test_listener_that_answers_stays(start_relay) -> None:
    """spec 6.3: any byte is a sign of life, also within a message that is slow to come."""
    relay = await start_relay(timeouts=TimeoutsConfig(ping_interval=0.05))
    control = await relay.listen()
    slow = frame(1, json.dumps({"unknown": "x" * 50}).encode())
    for byte in slow:
        await control.send(bytes([byte]))
        await trio.sleep(0.01)
    assert relay.server.statistics().listeners == 1
    assert not relay.named("listener.lost")


async def test_unknown_and_malformed_messages_are_ignored(relay) -> None:
    """spec 6.2: malformed JSON and unknown members are counted and otherwise without effect."""
    control = await relay.listen()
    for text in (b"{", b"[]", b'{"injected":{}}', b"{}", b'"x"', b'{"renewToken":7}'):
        await control.send(frame(1, text))
    await control.send(frame(9, b"alive"))
    assert (await control.read_frame()).payload == b"alive"
    assert len(relay.named("control.ignored")) == 6


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(2, b"body"), 1002), (frame(1, b"x" * 65_537), 1009), (frame(1, b"x", masked=False), 1002)],
    ids=["binary", "oversize", "unmasked"],
)
async def test_what_no_listener_may_send(relay, data: bytes, code: int) -> None:
    """spec 6.2: binary without a response, or a message over the limit, closes with 1002 or 1009."""
    control = await relay.listen()
    await control.send(data)
    assert (await control.read_frame()).close_code == code
    await control.send(close_frame(code))
    assert await control.read_eof() == b""


async def test_renewal_moves_the_expiry(start_relay) -> None:
    """spec 6.4: a good renewToken is not answered and keeps the channel beyond its first token."""
    now = [1_000_000.0]
    relay = await start_relay(now_unix=lambda: now[0], timeouts=TimeoutsConfig(token_allowance=0.2, ping_interval=0.1))
    control = await relay.listen(token=relay.token(ttl=10, now=now[0]))
    renewed = relay.token(ttl=3600, now=now[0])
    await control.send(frame(1, json.dumps({"renewToken": {"token": renewed}}).encode()))
    assert (await control.read_frame()).opcode == 9
    now[0] += 100
    await control.send(frame(10))
    assert (await control.read_frame()).opcode == 9
    assert relay.server.statistics().listeners == 1
    assert len(relay.named("listener.renewed")) == 1


async def test_expired_token_closes_with_1008_after_the_allowance(start_relay) -> None:
    """spec 5.6: an expired token counts for the allowance, then 1008."""
    relay = await start_relay(timeouts=TimeoutsConfig(token_allowance=1.0))
    control = await relay.listen(token=relay.token(ttl=0))
    started = time.monotonic()
    got = await control.read_frame()
    assert time.monotonic() - started < 2.5
    assert (got.opcode, got.close_code) == (8, 1008)
    assert b"TrackingId:" in got.payload
    assert len(got.payload) <= 125


async def test_refused_renewal_closes_with_1008(relay) -> None:
    """spec 6.4: a renewToken that is not good ends the channel."""
    control = await relay.listen()
    bad = peers.token("RootManageSharedAccessKey", "not the key")
    await control.send(frame(1, json.dumps({"renewToken": {"token": bad}}).encode()))
    got = await control.read_frame()
    assert got.close_code == 1008
    await control.send(close_frame(1008))
    assert await control.read_eof() == b""
    refused = relay.named("token.refused")[0]
    assert refused.fields["reason"] == "invalid_signature"
    assert bad.split("sig=")[1][:20] not in str(relay.events)


async def test_renewal_needs_the_listen_right(relay) -> None:
    """failures: permission checked only at login, not per channel."""
    await relay.store.put_rule("default", "orders", "only-send", {Right.SEND})
    control = await relay.listen()
    text = json.dumps({"renewToken": {"token": relay.token("only-send", "orders")}})
    await control.send(frame(1, text.encode()))
    assert (await control.read_frame()).close_code == 1008


async def test_deleted_entity_closes_its_listeners_with_1001(relay) -> None:
    """spec 13: entity deleted: 1001 on the control channel."""
    control = await relay.listen()
    other = await relay.listen("open")
    await relay.store.delete_entity("default", "orders")
    got = await control.read_frame()
    assert got.close_code == 1001
    await control.send(close_frame(1001))
    assert await control.read_eof() == b""
    assert relay.server.statistics().listeners == 1
    await other.send(frame(9, b"still"))
    assert (await other.read_frame()).payload == b"still"


async def test_quota_of_listeners(start_relay) -> None:
    """spec 15: one listener more than the quota gets 403 and the name of the quota."""
    relay = await start_relay(limits=LimitsConfig(listeners_per_entity=2))
    controls = [await relay.listen(), await relay.listen()]
    _, answer = await relay.call("/$hc/orders?sb-hc-action=listen", {"ServiceBusAuthorization": relay.token()})
    assert (answer.status, "ListenersPerEntity" in answer.reason) == (403, True)
    await controls[0].aclose()
    with trio.fail_after(5):
        while relay.server.statistics().listeners > 1:
            await trio.sleep(0.01)
    await relay.listen()


async def test_default_quota_of_listeners(relay) -> None:
    """spec 15: 25 listeners per entity."""
    assert Config().limits.listeners_per_entity == 25
    controls = [await relay.listen() for _ in range(25)]
    _, answer = await relay.call("/$hc/orders?sb-hc-action=listen", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 403
    assert len(controls) == 25


async def test_listener_that_comes_back_replaces_its_ghost(relay) -> None:
    """failures: half-open link: re-login blocks, goroutines pile up."""
    ghost = await relay.listen(query=f"&sb-hc-id={GUID}")
    control = await relay.listen(query=f"&sb-hc-id={GUID}")
    assert (await ghost.read_frame()).opcode == 9  # asked for a sign of life at once
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.call, "/$hc/orders", {"ServiceBusAuthorization": relay.token()})
            await relay.accept(control)
    assert not ghost.buffer


async def test_a_listener_behind_a_breaking_link_does_not_lock_itself_out(start_relay) -> None:
    """failures: half-open link: re-login blocks, goroutines pile up."""
    relay = await start_relay(limits=LimitsConfig(listeners_per_entity=3), timeouts=TimeoutsConfig(close=0.1))
    other = await relay.listen()
    for _ in range(20):
        control = await relay.listen(query=f"&sb-hc-id={GUID}")  # the ones before it never say a word
    with trio.fail_after(5):
        while relay.server.statistics().listeners > 5:
            await trio.sleep(0.01)
    assert relay.server._gateway.registry.count("default", "orders") == 2
    await control.send(frame(9, b"here"))
    assert (await control.read_frame()).payload == b"here"
    assert other is not control


async def test_a_flood_on_one_channel_leaves_the_others_their_turns(relay) -> None:
    """failures: one bulk stream starves the rest."""
    control = await relay.listen()
    [channel] = relay.server._gateway.channels
    most = before = 0
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.send, frame(1, b"{") * 5000 + frame(9, b"end"))
            while channel.messages_ignored < 5000:
                await trio.lowlevel.checkpoint()
                most, before = max(most, channel.messages_ignored - before), channel.messages_ignored
    assert most <= 2
    assert (await control.read_frame()).payload == b"end"


async def test_a_close_that_is_not_answered_is_the_cause_in_the_log(start_relay) -> None:
    """spec 13: entity deleted: 1001 on the control channel, and the log does not blame the relay."""
    relay = await start_relay(timeouts=TimeoutsConfig(close=0.1))
    await relay.listen()
    await relay.store.delete_entity("default", "orders")
    with trio.fail_after(5):
        while relay.server.statistics().listeners:
            await trio.sleep(0.01)
    [lost] = relay.named("listener.lost")
    assert (lost.fields["by"], lost.fields["cause"]) == ("relay", "our Close was not answered")


async def test_copied_id_that_lives_gets_its_share_again(relay) -> None:
    """spec 11: two living listeners with one id both get senders."""
    first = await relay.listen(query=f"&sb-hc-id={GUID}")
    second = await relay.listen(query=f"&sb-hc-id={GUID}")
    ping = await first.read_frame()
    await first.send(frame(10, ping.payload))
    with trio.fail_after(5):
        while relay.server._gateway.registry.count("default", "orders") < 2:
            await trio.sleep(0.01)
    assert second is not first


async def test_auto_create(start_relay) -> None:
    """spec 3: with auto_create the first listener makes its entity; a sender does not."""
    relay = await start_relay(server=ServerConfig(port=0, auto_create=True))
    _, answer = await relay.call("/$hc/new/one", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 404
    await relay.listen("new/one")
    assert relay.server.namespace.get_entity("new/one") is not None
    _, answer = await relay.call("/$hc/other?sb-hc-action=listen", {"ServiceBusAuthorization": peers.token("x", "y")})
    assert answer.status == 401
    assert relay.server.namespace.get_entity("other") is None


async def test_auto_create_needs_listen_on_the_namespace(start_relay) -> None:
    """failures: permission checked only at login, not per channel."""
    relay = await start_relay(server=ServerConfig(port=0, auto_create=True))
    await relay.store.put_rule("default", None, "senders", {Right.SEND})
    _, answer = await relay.call("/$hc/new?sb-hc-action=listen", {"ServiceBusAuthorization": relay.token("senders")})
    assert answer.status == 403
    assert relay.server.namespace.get_entity("new") is None


async def test_offered_protocol_is_answered(relay) -> None:
    """spec 4: a protocol that was offered must come back, or the ws client fails."""
    headers = {"ServiceBusAuthorization": relay.token(), "Sec-WebSocket-Protocol": "a, b"}
    _, answer = await relay.call("/$hc/orders?sb-hc-action=listen", headers)
    assert answer.headers["sec-websocket-protocol"] == "a"


async def test_token_in_each_place(relay) -> None:
    """spec 5.1: query, ServiceBusAuthorization, then Authorization."""
    from urllib.parse import quote

    good = relay.token()
    _, answer = await relay.call(f"/$hc/orders?sb-hc-action=listen&sb-hc-token={quote(good, safe='')}")
    assert answer.status == 101
    _, answer = await relay.call("/$hc/orders?sb-hc-action=listen", {"Authorization": good})
    assert answer.status == 101
    _, answer = await relay.call("/$hc/orders?sb-hc-action=listen")
    assert (answer.status, answer.reason.startswith("MissingToken")) == (401, True)
    _, answer = await relay.call("/$hc/open?sb-hc-action=listen")
    assert answer.status == 401  # also where senders are anonymous


async def test_a_slow_reader_fills_a_bounded_queue_only(start_relay) -> None:
    """failures: slow reader grows memory without bound."""
    relay = await start_relay(
        limits=LimitsConfig(control_queue=4, refusals_burst=10_000), timeouts=TimeoutsConfig(accept=0.5)
    )
    control = await relay.listen("open")  # never read from here on
    padding = {f"X-Padding-{i}": "p" * 3000 for i in range(8)}

    async def send() -> None:
        peer = await WirePeer.open(relay.port)
        answer = await peer.upgrade("/$hc/open", padding)
        assert answer.status == 404
        await peer.aclose()

    [channel] = relay.server._gateway.channels
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(send)
            await trio.sleep(0.3)
            assert len(channel._queue) <= 4
    # Who has left takes its message back; what may be left is the ping that asks whether anybody is there at all.
    assert not [item for item in channel._queue if isinstance(item, Outgoing)]
    assert control is not None
