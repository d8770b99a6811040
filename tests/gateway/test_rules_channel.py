"""Rules of the wire contract about control channels, end to end over loopback."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio
from peers import close_frame, frame

from relaycore.config import TimeoutsConfig

GUID = "12345678-1234-1234-1234-1234567890ab"
OTHER = "22222222-2222-4222-8222-222222222222"


async def wait_for(condition) -> None:
    """Until something that another connection causes has happened; each test has its own time limit around it."""
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def send(relay, target: str = "/$hc/orders", headers=None):
    fields = {"ServiceBusAuthorization": relay.token(), **(headers or {})}
    return await relay.call(target, fields)


async def test_the_guid_of_a_listener_is_its_identity(relay) -> None:
    """spec 6.1/identity: by it senders choose; in any case and with a suffix, and a fresh one where none was sent."""
    named = await relay.listen(query=f"&sb-hc-id={GUID.upper()}_G5")
    plain = await relay.listen()
    await wait_for(lambda: len(relay.named("listener.registered")) == 2)
    ids = [event.fields["listener_id"] for event in relay.named("listener.registered")]
    assert ids[0] == GUID
    assert len(ids[1]) == 36
    assert ids[1] != GUID
    for wanted, control in ((GUID, named), (ids[1].upper(), plain)) * 3:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(send, relay, headers={"Microsoft-Relay-AllowedListeners": wanted}))
            await relay.accept(control)


async def test_a_filter_that_leaves_nobody_is_404(relay) -> None:
    """spec 11/none-left: in the words that the .NET tests look for."""
    await relay.listen(query=f"&sb-hc-id={GUID}")
    for name, value in (("Allowed", OTHER), ("Disallowed", f"{OTHER},{GUID}")):
        _, answer = await send(relay, headers={f"Microsoft-Relay-{name}Listeners": value})
        assert answer.status == 404
        words = "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
        assert words in answer.reason


async def test_the_filters_do_not_reach_the_listener(relay) -> None:
    """spec 10/filters-removed: they are evaluated and removed, whatever their spelling."""
    control = await relay.listen(query=f"&sb-hc-id={GUID}")
    headers = {"microsoft-relay-ALLOWEDlisteners": GUID, "Microsoft-Relay-DisallowedListeners": OTHER, "X-Mine": "1"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(send, relay, headers=headers))
        message = (await control.read_json())["accept"]
        assert message["connectHeaders"]["X-Mine"] == "1"
        assert not any("listeners" in name.lower() for name in message["connectHeaders"])
        await relay.come_to(message["address"])


async def test_a_listener_is_sent_accepts_and_nothing_else(relay) -> None:
    """spec 6.2/only-two, spec 6.2/names, spec 6.2/values-are-strings: members as written, header values as strings."""
    control = await relay.listen("open")
    for number in range(3):
        async with trio.open_nursery() as nursery:
            headers = {"X-Number": str(number), "X-True": "true", "X-Null": "null", "Content-Length": "0"}
            nursery.start_soon(partial(send, relay, "/$hc/open", headers))
            opcode, payload = await control.read_message()
            assert opcode == 1
            message = json.loads(payload)
            assert set(message) == {"accept"}
            assert set(message["accept"]) == {"address", "id", "connectHeaders", "remoteEndpoint"}
            assert set(message["accept"]["remoteEndpoint"]) == {"address", "port"}
            values = message["accept"]["connectHeaders"]
            assert all(isinstance(value, str) for value in values.values())
            assert (values["X-Number"], values["X-True"], values["X-Null"]) == (str(number), "true", "null")
            await relay.come_to(message["accept"]["address"])
    await control.send(frame(9, b"end"))
    last = await control.read_frame()
    assert (last.opcode, last.payload) == (10, b"end")


async def test_an_accept_that_outgrows_its_message_is_refused(relay) -> None:
    """spec 6.2/65536: .NET and Java receive into 64 KiB; a sender whose headers do not fit is told so."""
    control = await relay.listen()
    quotes = {f"X-{n}": '"' * 900 for n in range(32)}
    peer = await relay.connect()
    answer = await peer.upgrade(f"/$hc/orders?{'x' * 8000}", {"ServiceBusAuthorization": relay.token(), **quotes})
    assert answer.status == 431
    await control.send(frame(9, b"end"))
    assert (await control.read_frame()).opcode == 10


async def test_messages_of_a_listener_may_come_in_fragments(relay) -> None:
    """spec 6.2/fragmented, spec 6.2/liberal: with a ping in the middle, unknown members and another order."""
    control = await relay.listen()
    text = json.dumps({"extra": [1, {"x": None}], "renewToken": {"new": 1, "token": relay.token(ttl=7200)}}).encode()
    await control.send(frame(1, text[:5], fin=False) + frame(0, b"", fin=False) + frame(9, b"hi"))
    assert (await control.read_frame()).payload == b"hi"
    await control.send(frame(0, text[5:40], fin=False) + frame(0, text[40:]))
    await wait_for(lambda: relay.named("listener.renewed") or relay.named("control.ignored"))
    assert relay.named("listener.renewed")


async def test_a_channel_that_is_lost_takes_its_listener_along(relay) -> None:
    """spec 13/control-lost: without a Close as well; the next sender finds nobody."""
    for end in ("reset", "eof"):
        control = await relay.listen()
        if end == "reset":
            control.reset()
        else:
            await control.aclose()
        await wait_for(lambda: not relay.server.statistics().listeners)
        _, answer = await send(relay)
        assert answer.status == 404
        assert "There are no listeners connected for the endpoint" in answer.reason


async def test_a_close_without_a_code_is_answered_with_none(relay) -> None:
    """spec 13/control-close: Node closes with an empty payload; what came is what goes back."""
    for data in (close_frame(None), close_frame(4321, "bye")):
        control = await relay.listen()
        await control.send(data)
        answer = await control.read_frame()
        assert answer.opcode == 8
        assert answer.close_code == (None if data == close_frame(None) or len(data) == 6 else 4321)
        assert await control.read_eof() == b""


async def test_joined_streams_are_never_pinged(start_relay) -> None:
    """spec 6.3/spliced-not-judged, spec 8.11: .NET answers a ping only while the application reads."""
    relay = await start_relay(timeouts=TimeoutsConfig(ping_interval=0.05))
    control = await relay.listen()
    sender = await relay.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.upgrade, "/$hc/orders", {"ServiceBusAuthorization": relay.token()})
        while (got := await control.read_frame()).opcode == 9:
            await control.send(frame(10, got.payload))
        listener = await relay.come_to(json.loads(got.payload)["accept"]["address"])
    # From here on nobody answers there: the channel is dropped, and its fate is not the stream's.
    await wait_for(lambda: relay.named("listener.lost"))
    await sender.send(frame(2, b"still here"))
    got = await listener.read_frame()
    assert (got.opcode, got.payload) == (2, b"still here")
    await listener.send(frame(1, b"me too"))
    got = await sender.read_frame()
    assert (got.opcode, got.payload) == (1, b"me too")


async def test_a_relay_that_stops_says_goodbye(relay) -> None:
    """spec 13/shutdown: 1001 on the channel and to both sides of a stream, with the tracking id; then the end."""
    control, sender, listener = await relay.join()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.server.stop, 5)
        for peer in (control, sender, listener):
            goodbye = await peer.read_frame()
            assert (goodbye.opcode, goodbye.close_code) == (8, 1001)
            assert b"TrackingId:" in goodbye.payload
            assert len(goodbye.payload) <= 125
            await peer.send(close_frame(1001))
        for peer in (control, sender, listener):
            assert await peer.read_eof() == b""
    assert relay.server.is_stopped


async def test_a_relay_that_stops_does_not_wait_for_ever(relay) -> None:
    """spec 13/shutdown: peers that do not answer are cut after the grace period."""
    control, sender, listener = await relay.join()
    with trio.fail_after(5):
        await relay.server.stop(0.2)
    for peer in (control, sender, listener):
        assert (await peer.read_frame()).close_code == 1001


async def test_a_fault_of_ours_closes_the_channel_with_1011(relay, monkeypatch) -> None:
    """spec 13/internal: and nothing about its cause is told."""

    def broken(_: object) -> None:
        raise RuntimeError("secret detail")

    control = await relay.listen()
    monkeypatch.setattr("relaycore.gateway.control_channel.parse_from_listener", broken)
    await control.send(frame(1, b"{}"))
    goodbye = await control.read_frame()
    assert (goodbye.opcode, goodbye.close_code) == (8, 1011)
    assert b"secret" not in goodbye.payload
    await wait_for(lambda: relay.named("internal.error"))
    (event,) = relay.named("internal.error")
    relay.events.remove(event)


@pytest.mark.parametrize("length", [126, 127, 65_535, 65_536, 65_537, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
async def test_hostile_lengths_end_that_channel_only(relay, length: int) -> None:
    """failures/lengths: each length field that a peer sets; a control frame that is too long, or a message."""
    other = await relay.listen()
    for opcode in (1, 8, 9):
        control = await relay.listen()
        # A text of that length is legal so far; what is over the limit of a message is not stored but refused.
        payload = b"x" * min(length, 65_537) if opcode == 1 and length < 2**63 else b""
        await control.send(frame(opcode, payload, length=length))
        if opcode != 1 or length > 65_536:
            goodbye = await control.read_frame()
            assert (goodbye.opcode, goodbye.close_code) == (8, 1009 if opcode == 1 and length < 2**63 else 1002)
        await control.aclose()
    await other.send(frame(9, b"alive"))
    assert (await other.read_frame()).payload == b"alive"
