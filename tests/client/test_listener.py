"""The listener against a relay that plays a script: registering, staying registered, taking connections, leaving.

Each test has one relay on loopback. Where a deadline is concerned the clock jumps; nothing here sleeps for order.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
import trio
import trio.lowlevel
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

import relaycore
import relaycore.net.tasks
from relaycore import Accept, ListenerState, Offline, Online, Reconnecting, Reject, StreamClosed, StreamLost
from relaycore._native import encode_frame
from relaycore.client.listener import Listener
from relaycore.errors import AuthorizationFailed, ConfigError, ConnectionLost, EndpointNotFound
from relaycore.net.websocket import WebSocketLeg
from relaycore.testing.fake_relay import FakeRelay, FakeRequest, open_fake_relay
from relaycore.trace import Trace
from relaycore.wire.frames import Binary, Close, Ping, Text
from relaycore.wire.messages import RenewToken, parse_from_listener
from relaycore.wire.sas import make_token, parse_token

NOT_FOUND = "Endpoint does not exist: orders. TrackingId:0_G0"


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    async with open_fake_relay() as relay:
        yield relay


async def register(relay: FakeRelay) -> WebSocketLeg:
    """Take the next registration."""
    return await (await relay.next_request("listen")).accept()


async def keep(channel: WebSocketLeg) -> None:
    """Be a relay that reads, and so answers pings, and answers a Close."""
    try:
        while not isinstance(await channel.receive(), Close):
            pass
        await channel.close()
    except trio.BrokenResourceError:
        await channel.aclose()


@asynccontextmanager
async def listening(relay: FakeRelay, **options) -> AsyncIterator[tuple[Listener, WebSocketLeg]]:
    """A listener that is online, and the relay's end of its control channel, which somebody reads."""
    channels: list[WebSocketLeg] = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        channels.append(await register(relay))
        await keep(channels[0])

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with relaycore.open_listener(relay.connection_string(), **options) as listener:
            yield listener, channels[0]
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], *, every: float = 0.05) -> None:
    """Wait for something that has no event of its own. Each look costs real time, also on a clock that jumps."""
    while not condition():
        await trio.sleep(every)


async def ponder(_: object) -> None:
    """An accept handler that never decides."""
    await trio.sleep_forever()


async def say_nothing(_: FakeRequest) -> None:
    """A relay that leaves a request unanswered."""
    await trio.lowlevel.checkpoint()


def rejection_of(request: FakeRequest) -> tuple[int, str]:
    return int(request.parameter("sb-hc-statusCode")), unquote_plus(request.parameter("sb-hc-statusDescription"))


# Registering ---------------------------------------------------------------------------------------------------------


async def test_what_a_registration_looks_like(relay: FakeRelay):
    """spec 2.1, 5.1, 6.1: the listen URL with a GUID of ours; the token in a header and never in the URL."""
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            request = await relay.next_request("listen")
            assert re.fullmatch(r"/\$hc/orders\?sb-hc-action=listen&sb-hc-id=[0-9a-f-]{36}", request.target)
            assert request.head.host == f"127.0.0.1:{relay.port}"
            token = parse_token(request.head.headers.get("ServiceBusAuthorization") or "")
            assert token.resource == "http%3A%2F%2F127.0.0.1%2Forders%2F"
            assert "Sec-WebSocket-Extensions" not in request.head.headers
            await keep(await request.accept())

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await listener.wait_online()
            status = listener.status
            assert (status.state, status.is_online, status.registrations) == (ListenerState.ONLINE, True, 1)
            assert status.last_error is None
        assert listener.status.state is ListenerState.CLOSED


async def test_the_listener_keeps_its_id(relay: FakeRelay):
    """spec 6.1, 11: the GUID is the listener's identity, over all its channels."""
    mine = "0B9E4F10-0000-4000-8000-00000000000A"
    async with trio.open_nursery() as nursery:
        ids = []

        async def serve() -> None:
            for _ in range(3):
                request = await relay.next_request("listen")
                ids.append(request.parameter("sb-hc-id"))
                await (await request.accept()).close(1011, "NameRenewalFailed")
            await keep(await register(relay))
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        async with relaycore.open_listener(
            relay.connection_string(), listener_id=mine, rng=random.Random(1)
        ) as listener:
            await until(lambda: listener.status.registrations >= 4)
        assert ids == [mine.lower()] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"path": ""},
        {"listener_id": "no guid"},
        {"backlog": 0},
        {"cafile": "/does/not/exist"},
        {"max_message_bytes": 0},
    ],
)
async def test_arguments_that_cannot_be_right(relay: FakeRelay, options: dict[str, object]):
    with pytest.raises(ConfigError):
        async with relaycore.open_listener(relay.connection_string(), **options):
            pass
    assert relay.connections == 0


async def test_a_listener_needs_a_token(relay: FakeRelay):
    """spec 5.1: for listen a token is always required, so that asking without one is a mistake in the settings."""
    with pytest.raises(ConfigError, match="token"):
        async with relaycore.open_listener(f"Endpoint=sb://127.0.0.1:{relay.port}/;EntityPath=orders"):
            pass


async def test_a_refused_token_is_raised_at_the_start(relay: FakeRelay, nursery: trio.Nursery):
    """spec 12: 401 with message and tracking id. Waiting would not cure a wrong key."""

    async def serve() -> None:
        request = await relay.next_request("listen")
        await request.refuse(401, "InvalidSignature: The token has an invalid signature. TrackingId:77_G0")

    nursery.start_soon(serve)
    with pytest.raises(AuthorizationFailed, match="invalid signature") as caught:
        async with relaycore.open_listener(relay.connection_string()):
            pytest.fail("not registered")
    assert caught.value.tracking_id == "77_G0"


async def test_an_untrusted_certificate_is_raised_at_the_start():
    """failures: certificate check off by default. The token must not leave either."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with open_fake_relay(ssl_context=context) as relay:
        with pytest.raises(ConnectionLost) as caught:
            async with relaycore.open_listener(relay.connection_string()):
                pytest.fail("not registered")
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_over_tls(tmp_path: Path):
    """spec 4: control channel and rendezvous over TLS, with a private authority."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with (
        open_fake_relay(ssl_context=context) as relay,
        listening(relay, cafile=tmp_path / "ca.pem") as (listener, channel),
    ):
        # trustme's certificates are good until 2038 or so.
        assert (listener.status.certificate_expires_unix or 0) > time.time()
        await channel.send_text(relay.invite())
        leg = await (await relay.next_request("accept")).accept()
        connection = await listener.accept()
        await leg.send_binary(b"secret")
        assert await connection.receive_some() == b"secret"
        await trio.aclose_forcefully(connection)


async def test_without_waiting_the_block_begins_at_once(autojump_clock: MockClock):
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            await (await relay.next_request("listen")).refuse(401, "ExpiredToken")
            await keep(await register(relay))

        async with relaycore.open_listener(relay.connection_string(), wait_online=False) as listener:
            assert listener.status.state is ListenerState.CONNECTING
            nursery.start_soon(serve)
            await listener.wait_online()
            assert isinstance(listener.status.last_error, AuthorizationFailed)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: request.refuse(404, NOT_FOUND),
        lambda request: request.refuse(503, "busy"),
        lambda request: request.refuse(500),
        lambda request: request.reset(),
        lambda request: request.aclose(),
        lambda request: request.answer_raw(b"SSH-2.0-OpenSSH\r\n\r\n"),
        lambda request: request.answer_raw(b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\n\r\n"),
        say_nothing,
    ],
    ids=["404", "503", "500", "reset", "end", "garbage", "bad 101", "silence"],
)
async def test_a_start_that_fails_is_tried_again(
    autojump_clock: MockClock, answer: Callable[[FakeRequest], Awaitable[None]]
):
    """spec 13: whatever goes wrong before the 101, the listener comes back; no answer counts after 20 seconds."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            await answer(await relay.next_request("listen"))
            await keep(await register(relay))

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            assert listener.status.attempts == 1
            assert listener.status.last_error is not None
        nursery.cancel_scope.cancel()


async def test_404_is_tried_for_ever(autojump_clock: MockClock):
    """spec 13: .NET stops for good at a 404; ours does not, and its delays stay between 0 and 30 seconds."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        times = []

        async def serve() -> None:
            for _ in range(300):
                request = await relay.next_request("listen")
                times.append(trio.current_time())
                await request.refuse(404, NOT_FOUND)
            await keep(await register(relay))

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string(), rng=random.Random(7)) as listener:
            assert listener.status.attempts == 300
            assert isinstance(listener.status.last_error, EndpointNotFound)
        nursery.cancel_scope.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) <= 30
    assert 12 < sum(gaps[10:]) / len(gaps[10:]) < 18


async def test_once_registered_even_401_is_tried_again(autojump_clock: MockClock):
    """spec 5.6: keys are rotated, and rotated back; the listener says what is wrong and goes on trying."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            await (await register(relay)).close(1008, "ExpiredToken")
            for _ in range(20):
                await (await relay.next_request("listen")).refuse(401, "InvalidSignature")
            await keep(await register(relay))

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await until(lambda: listener.status.registrations >= 2)
            assert listener.status.attempts == 21
            assert isinstance(listener.status.last_error, AuthorizationFailed)
        nursery.cancel_scope.cancel()


# Staying registered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1002, None])
async def test_any_close_is_followed_by_a_fresh_token(autojump_clock: MockClock, code: int | None):
    """spec 6.5, 13: whatever the relay closes with, the listener returns, and with a new token."""
    tokens = []

    def provide(audience: str) -> str:
        tokens.append(audience)
        return f"token-{len(tokens)}"

    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        seen = []

        async def serve() -> None:
            for _ in range(2):
                request = await relay.next_request("listen")
                seen.append(request.head.headers.get("ServiceBusAuthorization"))
                channel = await request.accept()
                if len(seen) == 1:
                    await channel.send_close(code, "bye" if code else "")
                await keep(channel)

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string(), token=provide) as listener:
            with trio.fail_after(60):
                await until(lambda: listener.status.registrations >= 2)
            assert isinstance(listener.status.last_error, StreamLost)
            if code:
                assert isinstance(listener.status.last_error, StreamClosed)
                assert listener.status.last_error.code == code
        nursery.cancel_scope.cancel()
    assert seen == ["token-1", "token-2"]


async def test_connections_outlive_their_channel(autojump_clock: MockClock):
    """spec 6.5: established rendezvous streams stay up when the control channel is lost."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        legs = []

        async def serve() -> None:
            request = await relay.next_request("listen")
            channel = await request.accept()
            await channel.send_text(relay.invite())
            legs.append(await (await relay.next_request("accept")).accept())
            await request.reset()
            await keep(await register(relay))

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            connection = await listener.accept()
            await until(lambda: listener.status.registrations >= 2)
            await legs[0].send_binary(b"still here")
            assert await connection.receive_some() == b"still here"
            await trio.aclose_forcefully(connection)
        nursery.cancel_scope.cancel()


async def test_events_tell_the_story(autojump_clock: MockClock):
    trace = Trace()
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            await (await register(relay)).close(1001, "drain")
            await (await relay.next_request("listen")).refuse(404, NOT_FOUND)
            await keep(await register(relay))

        nursery.start_soon(serve)
        with trace.recorded() as traced:
            async with relaycore.open_listener(relay.connection_string(), wait_online=False, trace=trace) as listener:
                events = listener.events()
                found = []
                async for event in events:
                    found.append(event)
                    if event == Online(2):
                        break
            rest = [event async for event in events]
        nursery.cancel_scope.cancel()
    match found:
        case [Online(0), Offline(lost), Reconnecting(first), Reconnecting(second), Online(2)]:
            assert isinstance(lost, StreamClosed)
            assert first is lost
            assert isinstance(second, EndpointNotFound)
        case _:
            pytest.fail(f"another story: {found}")
    assert rest == [Offline(None)]
    assert [event async for event in listener.events()] == []
    assert [event.name for event in traced] == [
        "client.online",
        "client.offline",
        "client.reconnecting",
        "client.reconnecting",
        "client.online",
        "client.offline",
    ]


async def test_a_deaf_relay_is_noticed(autojump_clock: MockClock):
    """failures: half-open link, listener silently deaf. Nothing comes: ping after 60 s, given up 20 s later."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            frozen = await register(relay)
            online_at = trio.current_time()
            request = await relay.next_request("listen")
            assert 79 <= trio.current_time() - online_at <= 81
            assert isinstance(await frozen.receive(), Ping)
            await keep(await request.accept())

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await until(lambda: listener.status.registrations >= 2)
            assert "no sign of life" in str(listener.status.last_error)
        nursery.cancel_scope.cancel()


async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock):
    """failures: pong waits behind data, live peer declared dead. Part of a message will do."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            channel = await register(relay)
            message = encode_frame(1, b"x" * 120)
            for value in message[:100]:
                await trio.sleep(75)
                await channel.stream.send_all(bytes([value]))
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await until(lambda: not listener.status.is_online, every=5)
            pytest.fail("declared dead")


async def test_a_relay_that_pings_is_not_pinged(autojump_clock: MockClock):
    """spec 6.3: every ping is answered with the same payload; its bytes are a sign of life."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            channel = await register(relay)
            for number in range(10):
                await channel.send_ping(b"%d" % number)
                pong = await channel.receive()
                assert getattr(pong, "payload", None) == b"%d" % number
                await trio.sleep(50)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()):
            await trio.sleep_forever()


async def test_reconnecting_a_hundred_times_leaves_nothing_behind(autojump_clock: MockClock):
    """failures: half-open link: each channel falls silent, and no task or socket stays."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        counts = []

        async def serve() -> None:
            while True:
                channel = await register(relay)
                await wait_all_tasks_blocked()
                counts.append((trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))))
                nursery.start_soon(drop_at_end, channel)

        async def drop_at_end(channel: WebSocketLeg) -> None:
            with pytest.raises(StreamLost):
                await keep_silent(channel)
            await channel.aclose()

        async def keep_silent(channel: WebSocketLeg) -> None:
            # Reads beneath the WebSocket, so that no pong goes out.
            while await channel.stream.receive_some(65_536):
                pass
            raise StreamLost("ended")

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await until(lambda: listener.status.registrations >= 100, every=5)
            nursery.cancel_scope.cancel()
    tasks, files = zip(*counts, strict=True)
    assert max(tasks[10:]) <= max(tasks[:10])
    assert max(files[10:]) <= max(files[:10])


# Tokens --------------------------------------------------------------------------------------------------------------


async def test_tokens_are_renewed_before_they_run_out(autojump_clock: MockClock):
    """spec 5.6, 6.4: renewToken on the channel, well before the hour is over, time after time."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        start = 1_000_000.0
        renewals = []

        async def serve() -> None:
            channel = await register(relay)
            expires = start + 3600
            while len(renewals) < 10:
                event = await channel.receive()
                if isinstance(event, Text):
                    message = parse_from_listener(event.data)
                    assert isinstance(message, RenewToken)
                    now = clock()
                    left = expires - now
                    assert 0.1 * 3600 - 1 <= left <= 0.3 * 3600 + 1
                    expires = parse_token(message.token).expiry_unix
                    assert abs(expires - now - 3600) <= 1
                    renewals.append(left)
            nursery.cancel_scope.cancel()

        epoch = trio.current_time()

        def clock() -> float:
            return start + trio.current_time() - epoch

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string(), clock=clock):
            await trio.sleep_forever()
    assert len(set(renewals)) > 5


async def test_a_static_token_is_never_renewed(autojump_clock: MockClock):
    """spec 5.6: the relay closes when it has run out; the listener says so in its status."""
    token = make_token("http://127.0.0.1/orders/", "rule", "key", 2_000_000_000)
    async with open_fake_relay() as relay, listening(relay, token=token) as (listener, _):
        await trio.sleep(86_400)
        assert listener.status.tokens_renewed == 0
        assert listener.status.is_online


async def test_a_token_provider_that_fails_is_asked_again(autojump_clock: MockClock):
    epoch = trio.current_time()

    def clock() -> float:
        return 1_000_000.0 + trio.current_time() - epoch

    asked = []

    async def provide(audience: str) -> str:
        await trio.lowlevel.checkpoint()
        asked.append(clock())
        if len(asked) in (2, 3):
            raise OSError("the directory is away")
        return make_token(audience, "rule", "key", int(clock() + 3600))

    async with open_fake_relay() as relay, listening(relay, token=provide, clock=clock) as (listener, _):
        await until(lambda: listener.status.tokens_renewed >= 1, every=5)
        assert (listener.status.registrations, listener.status.tokens_failed) == (1, 2)
        assert listener.status.token_expires_unix == int(asked[-1] + 3600)
    assert [round(later - earlier) for earlier, later in itertools.pairwise(asked[1:])] == [30, 30]


async def test_a_token_provider_that_fails_at_the_start(autojump_clock: MockClock):
    """Somebody else's bug does not end the registration either; it is logged with its traceback."""
    asked = []

    def provide(audience: str) -> str:
        asked.append(audience)
        if len(asked) < 3:
            raise RuntimeError("no token yet")
        return "token"

    trace = Trace()
    async with open_fake_relay() as relay:
        with trace.recorded() as traced:
            async with listening(relay, token=provide, trace=trace) as (listener, _):
                assert listener.status.attempts == 2
                assert isinstance(listener.status.last_error, RuntimeError)
    assert [event.name for event in traced].count("internal.error") == 2


# Taking connections --------------------------------------------------------------------------------------------------


async def test_a_connection_comes_in(relay: FakeRelay):
    """spec 7.1, 7.2: everything about the sender is there, and data flows both ways."""
    async with listening(relay) as (listener, channel):
        await channel.send_text(
            relay.invite("orders/site/x%20y?foo=bar", headers={"X-App": "1", "Sec-WebSocket-Protocol": "p1,p2"})
        )
        request = await relay.next_request("accept")
        assert request.target.startswith("/$hc/orders/site/x%20y?foo=bar&sb-hc-action=accept&sb-hc-id=")
        assert request.upgrade.protocols == ("p1",)
        assert "ServiceBusAuthorization" not in request.head.headers
        leg = await request.accept(protocol="p1")
        connection = await listener.accept()
        assert (connection.path, connection.suffix, connection.query) == ("orders", "site/x y", "foo=bar")
        assert connection.subprotocol == "p1"
        assert connection.headers.get("x-app") == "1"
        assert connection.remote_endpoint is not None
        assert (connection.remote_endpoint.address, connection.remote_endpoint.port) == ("203.0.113.7", 51234)
        assert connection.tracking_id.endswith("_G0")
        await connection.send_all(b"hello")
        assert await leg.receive() == Binary(b"hello")
        await trio.aclose_forcefully(connection)


async def test_data_right_behind_the_101_is_kept(relay: FakeRelay):
    """failures: data arrives before the local connect is done and is lost. Byte for byte, while nobody accepts yet."""
    payload = os.urandom(200_000)
    async with listening(relay) as (listener, channel):
        await channel.send_text(relay.invite())
        request = await relay.next_request("accept")
        leg = await request.accept(behind=encode_frame(2, payload[:1000]))
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await leg.send_binary(payload[1000:])
                await leg.send_close(1000)

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            connection = await listener.accept()
            received = b""
            async for data in connection:
                received += data
        assert received == payload
        await trio.aclose_forcefully(connection)


async def test_it_serves_with_trio(relay: FakeRelay):
    """The contract of `trio.abc.Listener`: `trio.serve_listeners` is all that a server needs."""

    async def shout(connection: relaycore.Connection) -> None:
        async with connection:
            async for data in connection:
                await connection.send_all(data.upper())

    async with listening(relay) as (listener, channel), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [listener])
        legs = []
        for number in range(3):
            await channel.send_text(relay.invite())
            legs.append(await (await relay.next_request("accept")).accept())
            await legs[-1].send_text(f"hello {number}")
        for number, leg in enumerate(legs):
            assert await leg.receive() == Binary(f"HELLO {number}".encode())
            await leg.send_close(1000)
            assert await leg.receive() == Close(1000, "CloseAsync")
            await leg.aclose()
        nursery.cancel_scope.cancel()


async def test_a_handler_may_choose_the_sub_protocol(relay: FakeRelay):
    """spec 7.2: the rendezvous handshake names exactly one that the sender offered, or none."""
    choices = iter(["p2", None])
    async with listening(relay, accept=lambda _: Accept(next(choices))) as (listener, channel):
        for expected in (("p2",), ()):
            await channel.send_text(relay.invite(headers={"Sec-WebSocket-Protocol": "p1, p2"}))
            request = await relay.next_request("accept")
            assert request.upgrade.protocols == expected
            await request.accept(protocol=expected[0] if expected else None)
            connection = await listener.accept()
            assert connection.subprotocol == (expected[0] if expected else None)
            await trio.aclose_forcefully(connection)


async def test_a_handler_may_reject(relay: FakeRelay):
    """spec 7.3: the same address with status and description; 410 is the answer to it."""

    async def decide(incoming: relaycore.IncomingConnection) -> Reject:
        await trio.lowlevel.checkpoint()
        return Reject(451, f"not {incoming.suffix}: ü & 100 %")

    async with listening(relay, accept=decide) as (listener, channel):
        await channel.send_text(relay.invite("orders/here?a=b", rendezvous="the-secret"))
        request = await relay.next_request("accept")
        assert request.target.startswith("/$hc/orders/here?a=b&sb-hc-action=accept&")
        assert request.parameter("sb-hc-rid") == "the-secret"
        assert rejection_of(request) == (451, "not here: ü & 100 %")
        await request.refuse(410, "Gone")
        await until(lambda: listener.status.connections_rejected)
        assert listener.status.accepts_failed == 0


async def crash(_: object) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("internals of ours")


@pytest.mark.parametrize("handler", [crash, lambda _: Accept("never offered"), lambda _: True])
async def test_a_handler_that_fails_is_a_502(
    relay: FakeRelay, handler: relaycore.AcceptHandler, caplog: pytest.LogCaptureFixture
):
    """spec 7.3: 502 with a tracking id; what went wrong is for our log and not for the sender."""
    async with listening(relay, accept=handler) as (listener, channel):
        for _ in range(2):
            await channel.send_text(relay.invite())
            request = await relay.next_request("accept")
            status, text = rejection_of(request)
            assert status == 502
            assert "TrackingId:" in text
            assert "internals" not in text
            await request.refuse(410, "Gone")
        await until(lambda: listener.status.connections_rejected == 2)
        assert listener.status.is_online
    assert "accept handler failed" in caplog.text


async def test_a_full_backlog_is_a_503(relay: FakeRelay):
    """Every queue has a bound. At this one senders hear at once that the listener is busy."""
    async with listening(relay, backlog=2) as (listener, channel):
        for _ in range(2):
            await channel.send_text(relay.invite())
            await (await relay.next_request("accept")).accept()
        await until(lambda: listener.status.connections_waiting >= 2)
        await channel.send_text(relay.invite())
        request = await relay.next_request("accept")
        assert rejection_of(request) == (503, "The listener is busy")
        await request.refuse(410, "Gone")
        await trio.aclose_forcefully(await listener.accept())
        await channel.send_text(relay.invite())
        await (await relay.next_request("accept")).accept()
        for _ in range(2):
            await trio.aclose_forcefully(await listener.accept())
        assert listener.status.connections_accepted == 3


async def test_refusals_are_bounded_too(autojump_clock: MockClock):
    """failures: slow reader grows memory without bound. Past the bound the relay's own deadline answers."""
    async with open_fake_relay() as relay, listening(relay, backlog=1, accept=ponder) as (listener, channel):
        for _ in range(5):
            await channel.send_text(relay.invite())
        await until(lambda: listener.status.accepts_failed >= 3)
        assert relay.connections == 2


async def test_a_rendezvous_may_not_drop_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """spec 7.1: a ws address over a wss channel is not dialled."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with open_fake_relay(ssl_context=context) as relay, open_fake_relay() as plain:
        async with listening(relay, cafile=tmp_path / "ca.pem") as (listener, channel):
            await channel.send_text(relay.invite(base_url=plain.base_url, rendezvous="the-secret"))
            await until(lambda: listener.status.accepts_failed)
        assert plain.connections == 0
    assert "drops TLS" in caplog.text
    assert "the-secret" not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: request.reset(),
        lambda request: request.aclose(),
        lambda request: request.refuse(403, "Gone. TrackingId:1_G0"),
        lambda request: request.answer_raw(b"\xff" * 100),
        say_nothing,
    ],
    ids=["reset", "end", "403", "garbage", "silence"],
)
async def test_a_rendezvous_that_fails_costs_one_connection(
    autojump_clock: MockClock, answer: Callable[[FakeRequest], Awaitable[None]], caplog: pytest.LogCaptureFixture
):
    """failures: a peer lost at each stage of the rendezvous; the next sender is served, within 20 seconds (spec 14)."""
    async with open_fake_relay() as relay, listening(relay) as (listener, channel):
        started = trio.current_time()
        await channel.send_text(relay.invite(rendezvous="the-secret"))
        await answer(await relay.next_request("accept"))
        await until(lambda: listener.status.accepts_failed)
        assert trio.current_time() - started <= 20.5
        await channel.send_text(relay.invite())
        await (await relay.next_request("accept")).accept()
        await trio.aclose_forcefully(await listener.accept())
        assert listener.status.connections_accepted == 1
    assert "the-secret" not in caplog.text


async def test_nobody_at_the_rendezvous(relay: FakeRelay):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nowhere = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    await listeners[0].aclose()
    async with listening(relay) as (listener, channel):
        await channel.send_text(relay.invite(base_url=nowhere))
        await until(lambda: listener.status.accepts_failed)


async def test_a_handler_that_takes_too_long(autojump_clock: MockClock):
    """spec 14: 30 seconds from the accept message to the rendezvous; later the address is dead anyway."""
    async with open_fake_relay() as relay, listening(relay, backlog=1, accept=ponder) as (listener, channel):
        started = trio.current_time()
        await channel.send_text(relay.invite())
        await until(lambda: listener.status.accepts_failed)
        assert 29 <= trio.current_time() - started <= 31
        assert relay.connections == 1


async def test_messages_that_nobody_knows_are_counted(relay: FakeRelay):
    """spec 6.2: ignore and count, as the SDKs do."""
    async with listening(relay) as (listener, channel):
        await channel.send_text("{}")
        await channel.send_text('{"hello":{}}')
        await channel.send_text("not JSON")
        await channel.send_text('{"accept":{"id":"without an address"}}')
        await channel.send_binary(b"\x00")
        await until(lambda: listener.status.messages_ignored >= 5)
        assert listener.status.is_online


async def test_an_oversized_control_message_ends_the_channel(autojump_clock: MockClock):
    """spec 15: 65 536 bytes; the channel is closed with 1009 and opened anew."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:

        async def serve() -> None:
            channel = await register(relay)
            await channel.send_text("x" * 65_537)
            assert (await channel.receive()) == Close(1009, "Exceeded maximum message size: 65536 bytes")
            await channel.aclose()
            await keep(await register(relay))

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await until(lambda: listener.status.registrations >= 2)
        nursery.cancel_scope.cancel()


# Leaving -------------------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_the_answer(relay: FakeRelay):
    """spec 6.1: Close 1000 `Normal Closure`; the relay deregisters and answers, and only then has the listener left."""
    async with trio.open_nursery() as nursery:
        answered = []

        async def serve() -> None:
            channel = await register(relay)
            assert await channel.receive() == Close(1000, "Normal Closure")
            await wait_all_tasks_blocked()
            answered.append(True)
            await channel.close()

        nursery.start_soon(serve)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            await listener.aclose()
            assert answered == [True]
            await listener.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
            with pytest.raises(trio.ClosedResourceError):
                await listener.wait_online()
    assert relay.connections == 1


async def test_leaving_a_silent_relay_is_bounded(autojump_clock: MockClock):
    """failures: half-open link; ten seconds, then the listener has left all the same."""
    async with open_fake_relay() as relay, trio.open_nursery() as nursery:
        nursery.start_soon(register, relay)
        async with relaycore.open_listener(relay.connection_string()) as listener:
            started = trio.current_time()
            await listener.aclose()
            assert trio.current_time() - started == pytest.approx(10)


async def test_leaving_wakes_who_waits(relay: FakeRelay):
    async with listening(relay) as (listener, _), trio.open_nursery() as nursery:

        async def wait(function: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await function()

        nursery.start_soon(wait, listener.accept)
        await wait_all_tasks_blocked()
        await listener.aclose()


async def test_leaving_before_the_first_registration(autojump_clock: MockClock):
    async with (
        open_fake_relay() as relay,
        relaycore.open_listener(relay.connection_string(), wait_online=False) as listener,
        trio.open_nursery() as nursery,
    ):

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.wait_online()

        nursery.start_soon(wait)
        await relay.next_request("listen")
        await listener.aclose()
        assert listener.status.registrations == 0


async def test_connections_nobody_took_are_closed(autojump_clock: MockClock):
    """spec 13: 1001 to those who got in and were never served; those who were taken stay."""
    async with open_fake_relay() as relay:
        async with listening(relay) as (listener, channel):
            legs = []
            for _ in range(2):
                await channel.send_text(relay.invite())
                legs.append(await (await relay.next_request("accept")).accept())
            taken = await listener.accept()
            await until(lambda: listener.status.connections_waiting)
            await listener.aclose()
        left = legs[1]
        assert await left.receive() == Close(1001)
        await legs[0].send_binary(b"still served")
        assert await taken.receive_some() == b"still served"
        await trio.aclose_forcefully(taken)


async def test_senders_being_accepted_are_refused(relay: FakeRelay):
    """A sender whose handler is still thinking hears 503 now, and not 404 in half a minute."""
    async with trio.open_nursery() as nursery, listening(relay, accept=ponder) as (listener, channel):
        refused = []

        async def refuse() -> None:
            request = await relay.next_request("accept")
            refused.append(rejection_of(request))
            await request.refuse(410, "Gone")

        nursery.start_soon(refuse)
        await channel.send_text(relay.invite())
        await until(lambda: listener._slots_taken)
        await listener.aclose()
        assert refused == [(503, "The listener is closing")]


async def test_cancelling_everything_takes_no_time(autojump_clock: MockClock):
    """The goodbyes are for those who have time: a cancelled listener is gone at once."""
    async with open_fake_relay() as relay:
        with trio.move_on_after(100) as scope:
            async with listening(relay, accept=ponder) as (_, channel):
                await channel.send_text(relay.invite())
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(scope.deadline, abs=0.01)
        with pytest.raises(StreamLost):
            await channel.receive()


@pytest.mark.parametrize("after", ["connect", "accept message", "rendezvous"])
async def test_cancelling_at_each_stage_leaves_nothing_open(autojump_clock: MockClock, after: str):
    """failures: tasks and sockets that pile up."""
    async with open_fake_relay() as relay:
        before = len(os.listdir("/proc/self/fd"))
        requests = []
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    requests.append(await relay.next_request("listen"))
                    if after == "connect":
                        return
                    channel = await requests[0].accept()
                    await channel.send_text(relay.invite())
                    requests.append(await relay.next_request("accept"))
                    if after == "rendezvous":
                        await requests[1].accept()

                nursery.start_soon(serve)
                async with relaycore.open_listener(relay.connection_string()):
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        for request in requests:
            with trio.fail_after(1):
                while await request.stream.receive_some(65_536):
                    pass
            await request.aclose()
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_errors_of_the_block_come_out_as_they_are(relay: FakeRelay):
    with pytest.raises(KeyError, match="mine"):
        await raise_inside(relay)


async def raise_inside(relay: FakeRelay) -> None:
    with relaycore.net.tasks.alone():
        async with listening(relay):
            raise KeyError("mine")
