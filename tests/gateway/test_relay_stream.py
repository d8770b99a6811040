"""Senders and listeners brought together, seen from the wire."""

from __future__ import annotations

import hashlib
import re

import peers
import pytest
import trio
from peers import WirePeer, close_frame, frame, split_address

from relaycore.config import EngineConfig, LimitsConfig, ServerConfig, TimeoutsConfig
from relaycore.store.base import Change, ChangeKind
from relaycore.trace import Event

GUID = "12345678-1234-1234-1234-1234567890ab"


async def offer(relay, control, target="/$hc/orders", headers=None):
    """Start a sender; returns its peer-to-be as a list, and the ``accept`` message."""
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call(target, {"ServiceBusAuthorization": relay.token(), **(headers or {})}))

    nursery_manager = trio.open_nursery()
    nursery = await nursery_manager.__aenter__()
    nursery.start_soon(send)
    message = (await control.read_json())["accept"]

    async def finish():
        await nursery_manager.__aexit__(None, None, None)
        return outcome

    return message, finish


async def test_bytes_go_both_ways_with_their_checksums(relay) -> None:
    """spec 8.1: what goes in comes out, type and boundaries kept."""
    _, sender, listener = await relay.join()
    payload = bytes(range(256)) * 4096
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, frame(2, payload))
        assert (await listener.read_message())[1] == payload
        nursery.start_soon(listener.send, frame(1, b"text back"))
        assert await sender.read_message() == (1, b"text back")
    await sender.send(close_frame(1000, "bye"))
    assert (await listener.read_frame()).payload == b"\x03\xe8bye"
    await listener.send(close_frame(1000, "bye"))
    assert (await sender.read_frame()).close_code == 1000
    assert await sender.read_eof() == b""
    assert await listener.read_eof() == b""
    with trio.fail_after(5):
        while not relay.named("session.closed"):
            await trio.sleep(0.01)
    closed = relay.named("session.closed")[0].fields
    assert closed["to_listener_bytes"] == len(payload)
    assert (closed["reason"], closed["by"], closed["close_code"]) == ("closed", "sender", 1000)


async def test_accept_message(relay) -> None:
    """spec 7.1: every member of accept, as the SDKs need it."""
    control = await relay.listen()
    headers = {"X-MiXeD": "a", "x-mixed": "b", "Cookie": "c=1", "Authorization": "Bearer mine"}
    target = f"/$hc/orders/suffix/x%20y?foo=bar&sb-hc-action=connect&sb-hc-id={GUID}"
    message, finish = await offer(relay, control, target, headers)
    assert set(message) == {"address", "id", "connectHeaders", "remoteEndpoint"}
    assert message["id"] == f"{GUID}_G0"
    address = message["address"]
    assert address.startswith("ws://relay.test/$hc/orders/suffix/x%20y?foo=bar&sb-hc-action=accept&sb-hc-id=" + GUID)
    assert all(piece.count("=") == 1 for piece in address.partition("?")[2].split("&"))
    given = message["connectHeaders"]
    assert given["Host"] == "relay.test"
    assert given["Sec-WebSocket-Version"] == "13"
    assert given["Sec-WebSocket-Key"]
    assert given["Authorization"] == "Bearer mine"
    assert given["X-MiXeD"] == "a, b"
    assert not any("servicebusauthorization" in name.lower() for name in given)
    assert all(isinstance(value, str) for value in given.values())
    assert message["remoteEndpoint"]["address"] == "127.0.0.1"
    assert 0 < message["remoteEndpoint"]["port"] < 65536
    await relay.come_to(address)
    assert (await finish())[1].status == 101


async def test_public_url_goes_into_addresses(start_relay) -> None:
    """spec 7.1: a configured public base URL replaces what the listener used."""
    relay = await start_relay(server=ServerConfig(port=0, public_url="wss://relay.example:9443"))
    control = await relay.listen()
    message, finish = await offer(relay, control)
    assert message["address"].startswith("wss://relay.example:9443/$hc/orders?")
    await relay.come_to(message["address"])
    await finish()


@pytest.mark.parametrize(
    ("offered", "taken", "answered"),
    [
        ("a, b", "a", "a"),
        ("a, b", "b", "b"),
        ("a, b", None, None),
        ("a, b", "c", None),
        ("a, b", "a, b", None),
        (None, "a", None),
        (None, None, None),
    ],
)
async def test_subprotocols(relay, offered, taken, answered) -> None:
    """spec 7.2: one protocol that the sender offered is answered to both sides, anything else to neither."""
    control = await relay.listen()
    message, finish = await offer(relay, control, headers={"Sec-WebSocket-Protocol": offered} if offered else None)
    peer = await relay.connect()
    head = {"Sec-WebSocket-Protocol": taken} if taken else None
    answer = await peer.upgrade(split_address(message["address"])[1], head)
    assert answer.status == 101
    assert answer.headers.get("sec-websocket-protocol") == answered
    assert (await finish())[1].headers.get("sec-websocket-protocol") == answered


async def test_the_101_holds_what_it_must_and_no_more(relay) -> None:
    """spec 4: exactly these headers, no extensions whatever was offered, no content headers."""
    control = await relay.listen()
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits", "Pragma": "no-cache"}
    message, finish = await offer(relay, control, headers=headers)
    peer = await relay.connect()
    # The Node listener's accept handshake carries a header named 0 (18).
    answer = await peer.upgrade(
        split_address(message["address"])[1], {"0": "Sec-WebSocket-Extensions: permessage-deflate"}
    )
    for got in (answer, (await finish())[1]):
        assert got.raw.startswith(b"HTTP/1.1 101 ")
        assert set(got.headers) == {"connection", "upgrade", "sec-websocket-accept"}
        assert got.headers["connection"] == "Upgrade"


async def test_rejection_reaches_the_sender_verbatim(relay) -> None:
    """spec 7.3: status and text exactly as the listener gave them; the listener gets 410."""
    control = await relay.listen()
    message, finish = await offer(relay, control)
    peer = await relay.connect()
    target = split_address(message["address"])[1]
    answer = await peer.upgrade(f"{target}&sb-hc-statusCode=434&sb-hc-statusDescription=Out+of+caf%C3%A9%21")
    assert (answer.status, answer.reason) == (410, "Gone")
    assert answer.headers["content-length"] == "0"
    assert answer.headers["connection"] == "close"
    refused = (await finish())[1]
    assert refused.status == 434
    assert refused.reason.encode("latin-1") in ("Out of café!".encode("latin-1"), "Out of café!".encode())
    assert "TrackingId" not in refused.reason


@pytest.mark.parametrize(("given", "answered"), [("200", 502), ("302", 502), ("600", 502), ("400", 400), ("599", 599)])
async def test_rejection_with_an_odd_status(relay, given: str, answered: int) -> None:
    """spec 7.3: a status outside 400-599 becomes 502."""
    control = await relay.listen()
    message, finish = await offer(relay, control)
    peer = await relay.connect()
    target = split_address(message["address"])[1]
    answer = await peer.upgrade(f"{target}&sb-hc-statusCode={given}&sb-hc-statusDescription=No%0D%0ASet-Cookie:x")
    assert answer.status == 410
    refused = (await finish())[1]
    assert refused.status == answered
    assert "set-cookie" not in refused.headers


async def test_nobody_accepts(start_relay) -> None:
    """spec 7.2: no listener took it in time: 404 with the text of the service."""
    relay = await start_relay(timeouts=TimeoutsConfig(accept=0.2))
    control = await relay.listen()
    message, finish = await offer(relay, control)
    refused = (await finish())[1]
    assert refused.status == 404
    assert "None of the connected listeners accepted the connection within the allowed timeout" in refused.reason
    peer = await relay.connect()
    assert (await peer.upgrade(split_address(message["address"])[1])).status == 403


async def test_an_address_works_once_and_for_its_action_only(relay) -> None:
    """spec 7.2: used or unknown address 403, wrong action 400."""
    control = await relay.listen()
    message, finish = await offer(relay, control)
    target = split_address(message["address"])[1]
    peer = await relay.connect()
    assert (await peer.upgrade(target.replace("action=accept", "action=request"))).status == 400
    await relay.come_to(message["address"])
    assert (await finish())[1].status == 101
    for again in (target, re.sub(r"rid=[^&]+", "rid=" + "A" * 32, target)):
        peer = await relay.connect()
        answer = await peer.upgrade(again)
        assert answer.status == 403
        assert "TrackingId:" in answer.reason


async def test_sender_that_leaves_spends_its_address(relay) -> None:
    """spec 7.2: if the sender went away meanwhile: 403."""
    control = await relay.listen()
    sender = await relay.connect()
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises((EOFError, trio.ClosedResourceError)):
                await sender.upgrade("/$hc/orders", {"ServiceBusAuthorization": relay.token()})

        nursery.start_soon(call)
        message = (await control.read_json())["accept"]
        await sender.aclose()
    with trio.fail_after(5):
        while relay.server.statistics().waiting_senders:
            await trio.sleep(0.01)
    peer = await relay.connect()
    assert (await peer.upgrade(split_address(message["address"])[1])).status == 403


async def test_another_listener_when_a_channel_dies(relay) -> None:
    """spec 6.5: an accept whose channel dies goes to another listener within the 30 s."""
    controls = [await relay.listen() for _ in range(2)]
    taken: list = []
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()}))

    async def read(control) -> None:
        taken.append((control, (await control.read_json())["accept"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async with trio.open_nursery() as first:
            for control in controls:
                first.start_soon(read, control)
            while not taken:
                await trio.sleep(0.01)
            first.cancel_scope.cancel()
        dead, message = taken.pop()
        dead.reset()
        [alive] = [control for control in controls if control is not dead]
        other = (await alive.read_json())["accept"]
        assert other["address"] != message["address"]
        await relay.come_to(other["address"])
    assert outcome[1].status == 101


async def met(controls: list[WirePeer]) -> tuple[WirePeer, dict]:
    """Which of these control channels gets the next accept."""
    got: list[tuple[WirePeer, dict]] = []

    async def read(control: WirePeer) -> None:
        got.append((control, (await control.read_json())["accept"]))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for control in controls:
            nursery.start_soon(read, control)
    return got[0]


async def test_a_listener_that_is_dead_on_its_feet_is_found_out(relay, autojump_clock) -> None:
    """spec 6.3/unanswered-accept, failures: listener silently deaf: pinged after 2 s, closed after 10 more; the sender
    goes on to another one.
    """
    controls = [await relay.listen() for _ in range(2)]
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        deaf, _ = await met(controls)
        began = trio.current_time()
        [alive] = [control for control in controls if control is not deaf]
        message = (await alive.read_json())["accept"]
        assert 12 <= trio.current_time() - began < 13
        # Before it is told, so that no other sender meets it.
        assert relay.server._gateway.registry.count("default", "orders") == 1
        await relay.come_to(message["address"])
    assert outcome[1].status == 101
    ping, close = await deaf.read_frame(), await deaf.read_frame()
    assert (ping.opcode, close.opcode, close.close_code) == (9, 8, 1001)
    assert b"No sign of life" in close.payload
    await deaf.send(close_frame(1001))
    lost = await relay.happened("listener.lost")
    assert lost.fields["by"] == "listener"
    assert lost.fields["cause"] == "no sign of life for 10 s, and an accept was unanswered"


async def test_a_listener_that_is_slow_and_alive_stays(relay, autojump_clock) -> None:
    """spec 6.3/unanswered-accept: any byte proves it, the sender has its 30 s, and pings are few."""
    control = await relay.listen()
    pings = 0

    async def answer_pings() -> None:
        nonlocal pings
        while True:
            got = await control.read_frame()
            if got.opcode == 9:
                pings += 1
                await trio.sleep(9)
                await control.send(frame(10, got.payload))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings)
        _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()})
        assert (answer.status, round(trio.current_time() - began)) == (404, 30)
        await trio.sleep(15)
        assert relay.server.statistics().listeners == 1
        assert not relay.named("listener.lost")
        assert pings == 3
        nursery.cancel_scope.cancel()


async def test_a_relay_that_was_stopped_itself_does_not_blame_its_listeners(relay, autojump_clock) -> None:
    """spec 6.3/unanswered-accept, failures: relay suspended: what it slept through is no silence of theirs."""
    control = await relay.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.call, "/$hc/orders", {"ServiceBusAuthorization": relay.token()})
        message = (await control.read_json())["accept"]
        ping = await control.read_frame()
        assert ping.opcode == 9
        autojump_clock.jump(20)
        await trio.sleep(6)  # as long as the listener's system may wait before it sends again what nobody confirmed
        await control.send(frame(10, ping.payload))
        await relay.come_to(message["address"])
    await trio.sleep(40)
    assert relay.server.statistics().listeners == 1
    assert not control.buffer


async def test_a_sender_that_leaves_in_vain_leaves_a_doubt(relay, autojump_clock) -> None:
    """spec 6.3/unanswered-accept: senders of little patience find a dead listener out as well, by one ping for all."""
    deaf = await relay.listen()
    for _ in range(3):
        sender = await relay.connect()
        with trio.move_on_after(0.5):
            await sender.upgrade("/$hc/orders", {"ServiceBusAuthorization": relay.token()})
        await sender.aclose()
    assert [(await deaf.read_frame()).opcode for _ in range(5)] == [1, 9, 1, 1, 8]
    assert relay.server._gateway.registry.count("default", "orders") == 0


async def test_an_accept_that_is_taken_leaves_no_doubt(relay, autojump_clock) -> None:
    """spec 6.3/unanswered-accept: who comes to the rendezvous need not say anything on its channel."""
    control = await relay.listen()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.call, "/$hc/orders", {"ServiceBusAuthorization": relay.token()})
            message = (await control.read_json())["accept"]
            await trio.sleep(1.5)
            await relay.come_to(message["address"])
    await trio.sleep(40)
    assert relay.server.statistics().listeners == 1
    assert not control.buffer


async def reject_next(relay, controls, status: int, text: str):
    """Let whichever listener is asked next say no. Returns: its control channel."""
    taken: list = []

    async def read(control) -> None:
        taken.append((control, (await control.read_json())["accept"]))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for control in controls:
            nursery.start_soon(read, control)
    [(control, message)] = taken
    peer = await relay.connect()
    target = split_address(message["address"])[1]
    answer = await peer.upgrade(f"{target}&sb-hc-statusCode={status}&sb-hc-statusDescription={text}")
    assert answer.status == 410
    return control


async def test_another_listener_when_one_is_unavailable(relay) -> None:
    """spec 7.3: a 503 is one listener's; the others are asked before the sender hears anything."""
    controls = [await relay.listen() for _ in range(3)]
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for number in range(2):
            controls.remove(await reject_next(relay, controls, 503, f"down+{number}"))
        await relay.accept(controls[0])
    assert outcome[1].status == 101


async def test_the_last_listeners_words_count_when_all_are_unavailable(relay) -> None:
    """spec 7.3: each is asked once; and any other no is final."""
    for statuses in ((503, 503), (503, 434), (434,)):
        controls = [await relay.listen() for _ in range(2)]
        outcome: list = []

        async def send(outcome: list = outcome) -> None:
            outcome.extend(await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()}))

        left = list(controls)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for number, status in enumerate(statuses):
                left.remove(await reject_next(relay, left, status, f"no+{number}"))
        assert (outcome[1].status, outcome[1].reason) == (statuses[-1], f"no {len(statuses) - 1}")
        for control in controls:
            await control.aclose()
        with trio.fail_after(5):
            while relay.server.statistics().listeners:
                await trio.sleep(0.01)


async def test_established_streams_outlive_their_control_channel(relay) -> None:
    """spec 6.5: a lost channel does not touch what was joined over it."""
    control, sender, listener = await relay.join()
    control.reset()
    with trio.fail_after(5):
        while relay.server.statistics().listeners:
            await trio.sleep(0.01)
    await sender.send(frame(2, b"still"))
    assert await listener.read_message() == (2, b"still")


async def test_choice_is_random_among_all(relay) -> None:
    """spec 11: with two listeners and 100 senders both get some."""
    controls = [await relay.listen("open") for _ in range(2)]
    counts = [0, 0]

    async def serve(index: int) -> None:
        while True:
            message = (await controls[index].read_json())["accept"]
            counts[index] += 1
            await relay.come_to(message["address"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, 0)
        nursery.start_soon(serve, 1)
        for _ in range(100):
            peer, answer = await relay.call("/$hc/open")
            assert answer.status == 101
            await peer.aclose()
        nursery.cancel_scope.cancel()
    assert sum(counts) == 100
    assert min(counts) > 10


async def test_listener_filters(relay) -> None:
    """spec 11: allowed and disallowed listeners by their GUID, also for WebSocket senders."""
    other = GUID.replace("1234", "9999")
    one = await relay.listen(query=f"&sb-hc-id={GUID}")
    await relay.listen(query=f"&sb-hc-id={other}_G3")
    for headers in (
        {"Microsoft-Relay-AllowedListeners": f"{GUID.upper()}_G1"},
        {"microsoft-relay-disallowedlisteners": other},
    ):
        for _ in range(3):
            message, finish = await offer(relay, one, headers=headers)
            assert not any("listeners" in name.lower() for name in message["connectHeaders"])
            await relay.come_to(message["address"])
            await finish()
    _, answer = await relay.call(
        "/$hc/orders",
        {"ServiceBusAuthorization": relay.token(), "Microsoft-Relay-DisallowedListeners": f"{GUID},{other}"},
    )
    assert answer.status == 404
    assert "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria" in answer.reason


async def test_early_data_behind_the_request_arrives(relay) -> None:
    """failures: data arrives before the local connect is done and is lost."""
    control = await relay.listen("open")
    early = frame(2, b"first") + frame(2, b"second")
    outcome: list = []

    async def send() -> None:
        outcome.extend(await relay.call("/$hc/open", trailing=early))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        message = (await control.read_json())["accept"]
        listener = await relay.connect()
        answer = await listener.upgrade(split_address(message["address"])[1], trailing=frame(1, b"and back"))
        assert answer.status == 101
    assert [await listener.read_message() for _ in range(2)] == [(2, b"first"), (2, b"second")]
    assert await outcome[0].read_message() == (1, b"and back")


async def test_sender_that_leaves_is_told_to_the_listener_at_once(relay) -> None:
    """failures: client gone, listener never told."""
    _, sender, listener = await relay.join()
    sender.reset()
    with trio.fail_after(1):
        assert await listener.read_eof() == b""


async def test_deleted_entity_closes_its_sessions(relay) -> None:
    """spec 13: entity deleted: 1001 to both sides of a session."""
    _, sender, listener = await relay.join()
    await relay.store.delete_entity("default", "orders")
    for peer in (sender, listener):
        got = await peer.read_frame()
        assert (got.opcode, got.close_code) == (8, 1001)
        assert b"TrackingId:" in got.payload
        await peer.send(close_frame(1001))
    assert await sender.read_eof() == b""


@pytest.mark.parametrize("mover", ["auto", "trio"])
@pytest.mark.parametrize("what", ["deleted", "stopping"])
async def test_a_close_of_ours_stands_between_two_frames(start_relay, what: str, mover: str) -> None:
    """spec 13: 1001 to both sides of a session: to the one that is in the middle of a frame, behind that frame."""
    relay = await start_relay(engine=EngineConfig(mover=mover))
    control, sender, listener = await relay.join()
    whole = frame(2, b"x" * 30_000)
    await sender.send(whole[:10_008])
    assert len(await listener.read_exactly(10_004)) == 10_004
    async with trio.open_nursery() as nursery:
        if what == "deleted":
            await relay.store.delete_entity("default", "orders")
        else:
            nursery.start_soon(relay.server.stop, 5)
        assert (await control.read_frame()).close_code == 1001
        await control.send(close_frame(1001))
        assert (await sender.read_frame()).close_code == 1001
        await sender.send(whole[10_008:] + close_frame(1001))
        assert await listener.read_exactly(20_000) == b"x" * 20_000
        assert (await listener.read_frame()).close_code == 1001
        await listener.send(close_frame(1001))
        for peer in (sender, listener):
            assert await peer.read_eof() == b""
            await peer.aclose()
    closed = (await relay.happened("session.closed")).fields
    assert (closed["reason"], closed["by"], closed["to_listener_bytes"]) == ("relay_closed", "relay", 30_000)


@pytest.mark.parametrize("mover", ["auto", "engine", "trio"])
async def test_plain_sessions_are_moved_by_whom_the_settings_name(start_relay, mover: str) -> None:
    """spec 8.4: bytes go on, by the engine's threads where there are any, and the books say so."""
    relay = await start_relay(engine=EngineConfig(mover=mover, threads=1))
    _, sender, listener = await relay.join()
    await sender.send(frame(2, b"there"))
    assert await listener.read_message() == (2, b"there")
    engine = relay.server.statistics().engine
    if mover == "trio":
        assert engine is None
    else:
        assert engine is not None
        assert (engine.jobs, engine.bytes_in) == (1, len(frame(2, b"there")))
    await sender.send(close_frame())
    assert (await listener.read_frame()).opcode == 8
    await listener.send(close_frame())
    assert (await sender.read_frame()).opcode == 8
    assert (await sender.read_eof(), await listener.read_eof()) == (b"", b"")
    for peer in (sender, listener):
        await peer.aclose()
    await relay.happened("session.closed")
    assert relay.server.statistics().sessions_by_reason["closed"] == 1
    assert relay.server.statistics().bytes_to_listener == 5


async def test_a_silent_session_is_left_alone_unless_a_limit_is_set(start_relay) -> None:
    """spec 8.11: idle streams are left alone, but for the limit that the settings may have."""
    relay = await start_relay(timeouts=TimeoutsConfig(idle=0.3))
    _, sender, listener = await relay.join()
    await sender.send(frame(2, b"x"))
    assert await listener.read_message() == (2, b"x")
    assert (await sender.read_eof(), await listener.read_eof()) == (b"", b"")
    assert (await relay.happened("session.closed")).fields["reason"] == "idle_timeout"


async def test_a_sender_that_waits_learns_that_its_entity_was_deleted(relay) -> None:
    """spec 12: unknown entity: 404 with `Endpoint does not exist`, also for who waited there when it went."""
    control = await relay.listen()
    _, finish = await offer(relay, control)
    await relay.store.delete_entity("default", "orders")
    _, answer = await finish()
    assert (answer.status, answer.reason.startswith("Endpoint does not exist: orders.")) == (404, True)


@pytest.mark.parametrize("what", ["deleted", "stopping"])
async def test_what_closes_sessions_reaches_one_that_is_just_being_made(relay, what: str) -> None:
    """spec 13: 1001 to both sides, also between the rendezvous and the session."""
    without = relay.store.snapshot
    await relay.store.create_entity("default", "late", requires_client_authorization=False)

    def strike(event: Event) -> None:
        if event.name == "rendezvous.claimed" and what == "stopping":
            relay.server._gateway.is_stopping = True
        elif event.name == "rendezvous.claimed":
            relay.store._publish(without, (Change(ChangeKind.DELETED, "default", "late"),))

    relay.server._gateway.trace.subscribe(strike)
    for peer in (await relay.join("late"))[1:]:
        got = await peer.read_frame()
        assert (got.opcode, got.close_code) == (8, 1001)
        await peer.send(close_frame(1001))


async def test_a_crowd_that_comes_at_once_is_served_in_turn(start_relay) -> None:
    """failures: thundering herd after a restart; who finds the listener's queue full waits for its room."""
    relay = await start_relay(limits=LimitsConfig(control_queue=2, refusals_burst=10_000))
    control = await relay.listen("open")
    crowd = [await relay.connect() for _ in range(60)]
    joined: list[int] = []

    async def send(peer: WirePeer) -> None:
        joined.append((await peer.upgrade("/$hc/open")).status)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for peer in crowd:
                nursery.start_soon(send, peer)
            for _ in crowd:
                await relay.accept(control)
    assert joined == [101] * 60


async def test_connection_quota_of_a_sender(start_relay) -> None:
    """spec 12: namespace quota: 503 to a sender, with the name of the quota."""
    relay = await start_relay(limits=LimitsConfig(connections_per_namespace=1))
    control, sender, _ = await relay.join()
    _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": relay.token()})
    assert answer.status == 503
    assert "ConnectionsPerNamespace" in answer.reason
    sender.reset()
    control.reset()
    with trio.fail_after(5):
        while relay.server.statistics().open_connections:
            await trio.sleep(0.01)
    await relay.join()


async def test_anonymous_entity(relay) -> None:
    """spec 5.7: no token needed, one that is present is stripped and not looked at."""
    control = await relay.listen("open")
    outcome: list = []

    async def send() -> None:
        headers = {"ServiceBusAuthorization": "rubbish", "Authorization": "Basic mine"}
        outcome.extend(await relay.call("/$hc/open?sb-hc-token=rubbish", headers))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        message = (await control.read_json())["accept"]
        assert "ServiceBusAuthorization" not in message["connectHeaders"]
        assert message["connectHeaders"]["Authorization"] == "Basic mine"
        assert "rubbish" not in str(message)
        await relay.come_to(message["address"])
    assert outcome[1].status == 101


async def test_bulk_under_tls_like_streams_and_many_at_once(relay) -> None:
    """spec 8.9: many sessions at once, each byte where it belongs."""
    control = await relay.listen("open")

    async def echo(address: str) -> None:
        peer = await relay.come_to(address)
        while True:
            got = await peer.read_frame()
            if got.opcode == 8:
                await peer.send(close_frame())
                return
            await peer.send(frame(got.opcode, got.payload, fin=got.fin))

    async def serve() -> None:
        async with trio.open_nursery() as echoes:
            while True:
                echoes.start_soon(echo, (await control.read_json())["accept"]["address"])

    async def one(index: int) -> None:
        peer, answer = await relay.call("/$hc/open")
        assert answer.status == 101
        data = hashlib.sha256(bytes([index])).digest() * 4000
        async with trio.open_nursery() as inner:
            inner.start_soon(peer.send, frame(2, data) + close_frame())
            assert await peer.read_message() == (2, data)
        assert (await peer.read_frame()).close_code == 1000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with trio.open_nursery() as senders:
            for index in range(30):
                senders.start_soon(one, index)
        nursery.cancel_scope.cancel()
    await control.aclose()
    await relay.settle()


async def test_tokens_of_another_path(relay) -> None:
    """failures: permission checked only at login, not per channel."""
    from relaycore.vocab import Right

    await relay.store.put_rule("default", "orders", "sender", {Right.SEND})
    await relay.store.put_rule("default", "orders", "listener", {Right.LISTEN})
    await relay.store.create_entity("default", "other")
    send, listen = relay.token("sender", "orders"), relay.token("listener", "orders")
    for target, token, status in (
        ("/$hc/orders?sb-hc-action=listen", send, 403),
        ("/$hc/orders?sb-hc-action=connect", listen, 403),
        ("/$hc/other?sb-hc-action=listen", listen, 401),
        ("/$hc/other", send, 401),
        ("/$hc/orders", send, 404),  # good, and nobody listens
    ):
        _, answer = await relay.call(target, {"ServiceBusAuthorization": token})
        assert answer.status == status, (target, answer)
    narrow = peers.token(
        "sender",
        relay.server.namespace.get_entity("orders").find_rule("sender").primary_key,
        "http://relay.test/orders/deep",
    )
    _, answer = await relay.call("/$hc/orders", {"ServiceBusAuthorization": narrow})
    assert answer.status == 401


async def test_a_flood_towards_a_deaf_listener_holds_one_buffer(relay) -> None:
    """spec 8.9: a sender that floods a listener that never reads makes the relay hold its share of the pool."""
    _, sender, listener = await relay.join()
    message = frame(2, b"f" * 60_000)
    sent = 0
    with trio.move_on_after(1):
        while True:
            await sender.send(message)
            sent += len(message)
    statistics = relay.server.statistics()
    assert statistics.buffers_in_use == 1
    assert statistics.buffers_peak <= 2
    # The other direction is not held up by it.
    await listener.send(frame(1, b"help"))
    assert await sender.read_message() == (1, b"help")


@pytest.mark.parametrize("leaver", ["sender", "listener"])
async def test_a_source_that_is_reset_does_not_wait_for_a_deaf_reader(relay, leaver: str) -> None:
    """failures: client gone, listener never told."""
    _, sender, listener = await relay.join()
    source = sender if leaver == "sender" else listener
    message = frame(2, b"f" * 60_000)
    with trio.move_on_after(0.5):
        while True:
            await source.send(message)
    assert relay.server.statistics().buffers_in_use == 1
    source.reset()
    with trio.fail_after(5):
        while relay.server.statistics().sessions:
            await trio.sleep(0.02)
    assert relay.server.statistics().buffers_in_use == 0
    assert relay.named("session.closed")[0].fields["by"] == leaver


@pytest.mark.parametrize("mover", ["auto", "trio"])
@pytest.mark.parametrize("offender", ["sender", "listener"])
async def test_the_look_at_stalled_sessions_meets_one_that_is_ending(
    start_relay, monkeypatch, offender: str, mover: str
) -> None:
    """failures: attacker-set length overflows, process dies."""
    # While the offender is given its time to hang up, the flooding side of the session is closed already.
    monkeypatch.setattr("relaycore.gateway.server._STALL_CHECK_INTERVAL", 0.01)
    relay = await start_relay(engine=EngineConfig(mover=mover))
    _, sender, listener = await relay.join()
    flooding, deaf = (listener, sender) if offender == "sender" else (sender, listener)
    with trio.move_on_after(0.5):
        while True:
            await flooding.send(frame(2, b"f" * 60_000))
    assert relay.server.statistics().buffers_in_use == 1
    await deaf.send(b"\xff" * 64)
    with trio.fail_after(10):
        while relay.server.statistics().sessions:
            await trio.sleep(0.01)
    assert relay.named("session.closed")[0].fields["by"] == offender
    await relay.join("open")


async def test_disabled_entity_closes_its_sessions_and_keeps_its_listeners(relay) -> None:
    """spec 13: entity disabled: 1001 to both sides of a session."""
    _, sender, listener = await relay.join()
    await relay.store.update_entity("default", "orders", websocket=False)
    for peer in (sender, listener):
        assert (await peer.read_frame()).close_code == 1001
        await peer.send(close_frame(1001))
    assert await sender.read_eof() == b""
    assert relay.server.statistics().listeners == 1
