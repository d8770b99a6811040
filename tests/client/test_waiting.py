"""Senders in the hands of a handler: ``open_listener(on_sender=...)`` against a relay that plays a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote_plus

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import relaycore
from relaycore import Connection, ConnectionLost, Refused, WaitingSender
from relaycore.client.listener import Listener
from relaycore.errors import ConfigError, LocalProtocolError
from relaycore.net.websocket import WebSocketLeg
from relaycore.testing.fake_relay import FakeRelay, FakeRequest, open_fake_relay
from relaycore.wire.frames import Binary, Close

Handler = Callable[[WaitingSender], Awaitable[None]]


@pytest.fixture
async def relay() -> AsyncIterator[FakeRelay]:
    async with open_fake_relay() as relay:
        yield relay


@asynccontextmanager
async def listening(relay: FakeRelay, handler: Handler, **options) -> AsyncIterator[tuple[Listener, WebSocketLeg]]:
    """A listener that is online, and the relay's end of its control channel, which somebody reads."""

    async def serve(*, task_status: trio.TaskStatus[trio.MemoryReceiveChannel[WebSocketLeg]]) -> None:
        send, receive = trio.open_memory_channel[WebSocketLeg](1)
        task_status.started(receive)
        channel = await (await relay.next_request("listen")).accept()
        send.send_nowait(channel)
        try:
            while not isinstance(await channel.receive(), Close):
                pass
            await channel.close()
        except trio.BrokenResourceError:
            await channel.aclose()

    async with trio.open_nursery() as nursery:
        channels = await nursery.start(serve)
        async with relaycore.open_listener(relay.connection_string(), on_sender=handler, **options) as listener:
            yield listener, await channels.receive()
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.01)


def rejection_of(request: FakeRequest) -> tuple[int, str]:
    return int(request.parameter("sb-hc-statusCode")), unquote_plus(request.parameter("sb-hc-statusDescription"))


async def refused(relay: FakeRelay) -> tuple[int, str]:
    """The next refusal, answered as a relay does."""
    request = await relay.next_request("accept")
    said = rejection_of(request)
    await request.refuse(410, "Gone")
    return said


async def test_a_handler_finds_out_and_accepts(relay: FakeRelay):
    """spec 7.1: the rendezvous is opened only when the handler says so, and the connection is the handler's."""
    found_out = trio.Event()
    taken: list[Connection] = []

    async def handle(waiting: WaitingSender) -> None:
        assert waiting.is_waiting
        assert waiting.incoming.suffix == "here"
        assert waiting.incoming.remote_endpoint is not None
        await found_out.wait()
        taken.append(await waiting.accept())
        assert not waiting.is_waiting
        assert waiting.is_answered

    async with listening(relay, handle) as (listener, channel):
        await channel.send_text(relay.invite("orders/here"))
        await until(lambda: listener._slots_taken)
        assert relay.connections == 1
        found_out.set()
        leg = await (await relay.next_request("accept")).accept()
        await until(lambda: taken)
        assert listener._slots_taken == 0
        assert listener.status.connections_accepted == 1
    # The listener is closed; what it had accepted lives on.
    await leg.send_binary(b"still here")
    assert await taken[0].receive_some() == b"still here"
    await trio.aclose_forcefully(taken[0])


async def test_a_handler_that_goes_on_is_ended_with_the_listener(relay: FakeRelay):
    ended = []

    async def echo(waiting: WaitingSender) -> None:
        async with await waiting.accept() as connection:
            try:
                async for data in connection:
                    await connection.send_all(data)
            except trio.Cancelled:
                ended.append(True)
                raise

    async with listening(relay, echo) as (_, channel):
        await channel.send_text(relay.invite())
        leg = await (await relay.next_request("accept")).accept()
        await leg.send_binary(b"hello")
        assert await leg.receive() == Binary(b"hello")
        assert not ended
    assert ended


async def test_a_handler_rejects(relay: FakeRelay):
    """spec 7.3: status and description as the handler gives them."""

    async def handle(waiting: WaitingSender) -> None:
        await waiting.reject(504, "db:5432 did not answer within 10 s")

    async with listening(relay, handle) as (listener, channel):
        await channel.send_text(relay.invite())
        assert await refused(relay) == (504, "db:5432 did not answer within 10 s")
        await until(lambda: listener.status.connections_rejected == 1)
        assert listener._slots_taken == 0


async def test_a_refusal_that_the_relay_does_not_take_is_no_error(relay: FakeRelay):
    """It is counted and logged; the handler has done its part."""
    returned = trio.Event()

    async def handle(waiting: WaitingSender) -> None:
        await waiting.reject(503, "down")
        returned.set()

    async with listening(relay, handle) as (listener, channel):
        await channel.send_text(relay.invite())
        await (await relay.next_request("accept")).refuse(500, "no")
        await returned.wait()
        assert listener.status.accepts_failed == 1
        assert listener.status.connections_rejected == 0


async def say_nothing(waiting: WaitingSender) -> None:
    await trio.lowlevel.checkpoint()


async def crash(waiting: WaitingSender) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("internals of ours")


async def crash_in_a_nursery(waiting: WaitingSender) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_nothing, waiting)
        nursery.start_soon(crash, waiting)


async def ask_for_what_was_not_offered(waiting: WaitingSender) -> None:
    await waiting.accept("p9")


async def reject_with_a_success(waiting: WaitingSender) -> None:
    await waiting.reject(200, "fine")


@pytest.mark.parametrize(
    "handler", [say_nothing, crash, crash_in_a_nursery, ask_for_what_was_not_offered, reject_with_a_success]
)
async def test_a_handler_without_an_answer_is_a_502(relay: FakeRelay, handler: Handler):
    """spec 7.3: 502 with a tracking id; what went wrong is for our log and not for the sender."""
    async with listening(relay, handler) as (listener, channel):
        for _ in range(2):
            await channel.send_text(relay.invite())
            status, text = await refused(relay)
            assert status == 502
            assert "TrackingId:" in text
            assert "internals" not in text
        await until(lambda: listener.status.connections_rejected == 2)
        assert listener._slots_taken == 0
        assert listener.status.is_online


async def test_a_handler_that_fails_behind_its_answer_costs_nobody_else(
    relay: FakeRelay, caplog: pytest.LogCaptureFixture
):
    async def handle(waiting: WaitingSender) -> None:
        async with await waiting.accept():
            raise ZeroDivisionError

    async with listening(relay, handle) as (listener, channel):
        for _ in range(2):
            await channel.send_text(relay.invite())
            leg = await (await relay.next_request("accept")).accept()
            assert await leg.receive() == Close(1000, "CloseAsync")
            await leg.close()
        await until(lambda: caplog.text.count("sender handler failed") == 2)
        assert listener.status.connections_rejected == 0


@pytest.mark.parametrize("first", ["accept", "reject"])
async def test_a_sender_is_answered_once(relay: FakeRelay, first: str):
    seen = trio.Event()

    async def handle(waiting: WaitingSender) -> None:
        if first == "accept":
            await trio.aclose_forcefully(await waiting.accept())
        else:
            await waiting.reject(503, "no")
        with pytest.raises(LocalProtocolError):
            await waiting.accept()
        with pytest.raises(LocalProtocolError):
            await waiting.reject(503, "no")
        seen.set()

    async with listening(relay, handle) as (_, channel):
        await channel.send_text(relay.invite())
        request = await relay.next_request("accept")
        if first == "accept":
            await request.accept()
        else:
            await request.refuse(410, "Gone")
        await seen.wait()


async def test_the_sub_protocol_is_the_handlers_choice(relay: FakeRelay):
    """spec 7.2: the first one by default, another, or none."""
    choices = iter([{}, {"subprotocol": "p2"}, {"subprotocol": None}])

    async def handle(waiting: WaitingSender) -> None:
        await trio.aclose_forcefully(await waiting.accept(**next(choices)))

    async with listening(relay, handle) as (_, channel):
        for expected in (("p1",), ("p2",), ()):
            await channel.send_text(relay.invite(headers={"Sec-WebSocket-Protocol": "p1, p2"}))
            request = await relay.next_request("accept")
            assert request.upgrade.protocols == expected
            await request.accept(protocol=expected[0] if expected else None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: request.reset(), ConnectionLost),
        (lambda request: request.refuse(403, "Gone. TrackingId:1_G0"), Refused),
    ],
)
async def test_a_rendezvous_that_fails_is_told_to_the_handler(
    relay: FakeRelay, answer: Callable[[FakeRequest], Awaitable[None]], error: type[Exception]
):
    """failures: the sender has left; whoever dialled for it lets go."""
    caught = []

    async def handle(waiting: WaitingSender) -> None:
        with pytest.raises(error):
            await waiting.accept()
        caught.append(waiting.is_answered)

    async with listening(relay, handle) as (listener, channel):
        await channel.send_text(relay.invite())
        await answer(await relay.next_request("accept"))
        await until(lambda: caught)
        assert caught == [True]
        assert listener.status.accepts_failed == 1
        assert listener._slots_taken == 0


async def test_the_backlog_counts_those_without_an_answer(relay: FakeRelay):
    answer = trio.Event()
    taken: list[Connection] = []

    async def handle(waiting: WaitingSender) -> None:
        await answer.wait()
        taken.append(await waiting.accept())
        await trio.sleep_forever()

    async with listening(relay, handle, backlog=2) as (listener, channel):
        for _ in range(2):
            await channel.send_text(relay.invite())
        await until(lambda: listener._slots_taken == 2)
        await channel.send_text(relay.invite())
        assert await refused(relay) == (503, "The listener is busy")
        answer.set()
        for _ in range(2):
            await (await relay.next_request("accept")).accept()
        # Both handlers go on, and take no place of those who come now.
        await until(lambda: len(taken) == 2)
        assert listener._slots_taken == 0
        for _ in range(2):
            await channel.send_text(relay.invite())
            await (await relay.next_request("accept")).accept()
        await until(lambda: len(taken) == 4)
    for connection in taken:
        await trio.aclose_forcefully(connection)


async def test_a_handler_has_thirty_seconds_for_its_answer(autojump_clock: MockClock):
    """spec 14: later the address is dead anyway."""
    cancelled = []

    async def ponder(waiting: WaitingSender) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time())

    async with open_fake_relay() as relay, listening(relay, ponder, backlog=1) as (listener, channel):
        started = trio.current_time()
        await channel.send_text(relay.invite())
        await until(lambda: listener.status.accepts_failed)
        assert cancelled == [pytest.approx(started + 30, abs=1)]
        assert relay.connections == 1
        assert listener._slots_taken == 0


async def test_a_handler_has_all_the_time_behind_its_answer(autojump_clock: MockClock):
    async def handle(waiting: WaitingSender) -> None:
        async with await waiting.accept() as connection:
            await trio.sleep(3600)
            await connection.send_all(b"late")

    async with open_fake_relay() as relay, listening(relay, handle) as (_, channel):
        await channel.send_text(relay.invite())
        leg = await (await relay.next_request("accept")).accept()
        assert await leg.receive() == Binary(b"late")
        await leg.aclose()


async def test_senders_without_an_answer_are_refused_when_the_listener_closes(relay: FakeRelay):
    """A sender whose handler is still finding out hears 503 now, and not 404 in half a minute."""

    async def ponder(waiting: WaitingSender) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery, listening(relay, ponder) as (listener, channel):
        said = []

        async def take() -> None:
            said.append(await refused(relay))

        nursery.start_soon(take)
        await channel.send_text(relay.invite())
        await until(lambda: listener._slots_taken)
        await listener.aclose()
        assert said == [(503, "The listener is closing")]
        assert listener._slots_taken == 0


async def test_it_excludes_an_accept_handler(relay: FakeRelay):
    with pytest.raises(ConfigError, match="on_sender"):
        async with relaycore.open_listener(relay.connection_string(), accept=lambda _: None, on_sender=say_nothing):
            pass
