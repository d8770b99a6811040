"""A thousand slow requests at once, while listeners die at random and senders vanish.

Every request names its body by a checksum, and every answer that a listener gives repeats it: so an answer that was
mixed up, cut or put together from two is seen by its sender. What a sender may get instead is written down in
:data:`REFUSALS`; anything else, and waiting in vain, is a failure. The bound on bodies is so small that requests run
into it all the time.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter
from contextlib import suppress

import pytest
import trio
from peers import (
    LAST_CHUNK,
    Asked,
    HttpAnswer,
    WirePeer,
    body_frames,
    close_frame,
    frame,
    http_chunk,
    http_head,
    http_request,
    response_text,
)

from relaycore.config import LimitsConfig, TimeoutsConfig

REQUESTS = 1_000
ENTITIES = 4
LISTENERS = 3 * ENTITIES
BUFFER_BYTES = 1 << 20
MEMORY_BYTES = 192 << 20
"""How much the process may grow in all, this side's thousand senders and their bodies included."""

REFUSALS = {
    502: "a listener was lost, or none was there",
    503: "no room for the answer",
    504: "a listener stayed silent",
}

RESPONSE_TIMEOUT = 6.0
"""Seconds that the relay waits for a listener. Its other deadlines are so long that a machine which stands still for a
while, and with it every peer, meets none of them; this one it may meet, and 504 is the right answer then."""

SIZES = (None, None, 0, 1, 700, 20_000, 60_000, 65_536, 150_000)
WAYS = ("whole", "whole", "slow", "chunked")
LOST = (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)

CONTROL_DEATHS = ("reset", "close", "silent end", "garbage")


class Chaos:
    """The peers of one run.

    Attributes:
      outcomes: how often a sender that stayed got what.
    """

    def __init__(self, relay, seed: int) -> None:
        self.relay = relay
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.vanished = 0
        self.controls: list[WirePeer] = []
        self.deaths: Counter[str] = Counter()

    # Listeners ------------------------------------------------------------------------------------------------------

    async def listener(self, entity: str, answers: trio.Nursery) -> None:
        """A listener that comes back whenever its control channel is killed."""
        while True:
            control = await self.relay.listen(entity)
            self.controls.append(control)
            try:
                while True:
                    answers.start_soon(self.answer, control, await control.read_request())
            except (*LOST, AssertionError):
                # AssertionError: the Close that the relay answers one of ours with, or what garbage has earned.
                pass
            finally:
                with suppress(ValueError):
                    self.controls.remove(control)
                await trio.aclose_forcefully(control.stream)

    async def answer(self, control: WirePeer, asked: Asked) -> None:
        """Answer one request after a while, in some way, or never."""
        fate = self.random.random()
        pause = 2 + 3 * self.random.random()
        with suppress(*LOST):
            if asked.is_address_only or self.random.random() < 0.3:
                if fate < 0.05:
                    return
                listener = await self.relay.connect()
                try:
                    upgraded = await listener.upgrade("/" + asked.address.split("/", 3)[3])
                    if upgraded.status != 101:
                        # The sender has gone, or the request ended otherwise: what else would be wrong.
                        assert upgraded.status == 403, upgraded
                        return
                    if asked.is_address_only:
                        asked = await listener.read_request()
                    await trio.sleep(pause)
                    await self.answer_at_length(listener, asked, fate)
                except AssertionError:
                    # read_request met a Close: the sender vanished, or the relay gave up.
                    pass
                finally:
                    await trio.aclose_forcefully(listener.stream)
                return
            await trio.sleep(pause)
            if fate < 0.05:
                return
            await control.respond(asked, 200, self.answer_body(asked, 60_000))

    def answer_body(self, asked: Asked, most: int) -> bytes:
        """A body that its reader can check: how long it is, whose answer, and filling that follows from both."""
        digest = hashlib.sha256(asked.body or b"").hexdigest()
        size = self.random.choice((0, 500, 5_000, most))
        head = f"{size} {asked.headers['X-Name']} {digest}\n".encode()
        return head + filling(head, size)

    async def answer_at_length(self, listener: WirePeer, asked: Asked, fate: float) -> None:
        body = self.answer_body(asked, 200_000)
        middle = self.random.randrange(len(body))
        text = response_text(asked.id, body=True)
        if fate < 0.1:
            return
        if fate < 0.15:
            listener.reset()
        elif fate < 0.2:
            await listener.send(text + frame(2, body[:middle], fin=False))
            await trio.sleep(0.05)
            listener.reset()
        elif fate < 0.25:
            await listener.send(text + frame(2, body[:middle], fin=False) + close_frame(1011))
        elif fate < 0.3:
            await listener.send(text + frame(2, body[:middle], fin=False) + b"\xff" * 40)
            await listener.read_eof()
        else:
            end = self.random.choice(("fin", "empty", "open"))
            await listener.send(text + frame(2, body[:middle], fin=False))
            await trio.sleep(0.1 * self.random.random())
            rest = body_frames(body[middle:], end=end)
            # The first frame of the rest goes on with the message that is open.
            await listener.send(bytes([rest[0] & 0xF0]) + rest[1:])
            if end == "open":
                await listener.send(close_frame(1000))
            await listener.read_eof()

    async def kill_controls(self) -> None:
        """Every now and then one control channel dies."""
        for death in itertools.cycle(CONTROL_DEATHS):
            await trio.sleep(0.6)
            while len(self.controls) < LISTENERS * 2 // 3:
                await trio.sleep(0.1)
            control = self.random.choice(self.controls)
            self.deaths[death] += 1
            with suppress(*LOST):
                match death:
                    case "reset":
                        control.reset()
                    case "garbage":
                        await control.send(b"\xff" * 64)
                    case "close":
                        await control.send(close_frame(1001))
                    case "silent end":
                        assert isinstance(control.stream, trio.SocketStream)
                        control.stream.socket.shutdown(trio.socket.SHUT_WR)

    # Senders --------------------------------------------------------------------------------------------------------

    async def sender(self, number: int) -> None:
        source = random.Random(number)
        await trio.sleep(source.random())
        size = source.choice(SIZES)
        body = None if size is None else source.randbytes(size)
        vanishes = source.random() < 0.2
        sender = await self.relay.connect()
        target, fields = f"/e{number % ENTITIES}/{number}", {"X-Name": str(number)}
        try:
            with trio.move_on_after(1 + 4 * source.random() if vanishes else float("inf")) as patience:
                outcome = await self.exchange(sender, source, target, fields, body)
            if patience.cancelled_caught:
                self.vanished += 1
                if source.random() < 0.5:
                    sender.reset()
            else:
                self.outcomes[outcome] += 1
        finally:
            await trio.aclose_forcefully(sender.stream)

    async def exchange(
        self, sender: WirePeer, source: random.Random, target: str, fields: dict[str, str], body: bytes | None
    ) -> str:
        """Returns: what became of the request, in a word."""
        head = answer = None
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, sender, source, target, fields, body)
            with suppress(*LOST):
                head = await sender.read_http_head()
                answer = await sender.read_http_body(head)
            nursery.cancel_scope.cancel()
        if answer is None:
            # A cut is for what comes too late to be said; before that, everybody gets an answer.
            assert head is not None
            assert head.status == 200
            return "cut"
        if answer.status == 200 and answer.value("Via"):
            check_answer(answer, fields["X-Name"], body or b"")
            return "answered"
        assert answer.status in REFUSALS, answer
        if answer.status == 504:
            assert trio.current_time() - began >= RESPONSE_TIMEOUT
        assert answer.value("Via") is None
        assert "TrackingId:" in answer.reason
        return str(answer.status)

    async def send(
        self, sender: WirePeer, source: random.Random, target: str, fields: dict[str, str], body: bytes | None
    ) -> None:
        way = source.choice(WAYS)
        with suppress(*LOST):
            if body is None:
                await sender.send(http_request("GET", target, fields))
            elif way == "whole":
                await sender.send(http_request("POST", target, fields, body))
            else:
                is_chunked = way == "chunked"
                coding = ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(len(body)))
                await sender.send(http_head("POST", target, [*fields.items(), coding]))
                step = len(body) // 3 + 1
                for start in range(0, len(body), step):
                    piece = body[start : start + step]
                    await sender.send(http_chunk(piece) if is_chunked else piece)
                    await trio.sleep(0.2 * source.random())
                if is_chunked:
                    await sender.send(LAST_CHUNK)


def resident_bytes() -> int:
    """What this process has in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filling(seed: bytes, size: int) -> bytes:
    """Bytes that follow from a seed."""
    return random.Random(seed).randbytes(size)


def check_answer(answer: HttpAnswer, name: str, body: bytes) -> None:
    """See that an answer is whole, and the answer to this very request."""
    head, newline, rest = answer.body.partition(b"\n")
    assert newline, answer
    size, whose, digest = head.decode().split()
    assert whose == name
    assert digest == hashlib.sha256(body).hexdigest()
    assert len(rest) == int(size)
    assert rest == filling(head + newline, len(rest))


@pytest.mark.bound(150)
@pytest.mark.chaos
@pytest.mark.parametrize("seed", [1, 2])
async def test_http_chaos(start_relay, seed: int) -> None:
    """failures/http-chaos: an answer or a cut for everybody, bodies within their bound, and nothing left over."""
    relay = await start_relay(
        limits=LimitsConfig(
            http_buffer_bytes=BUFFER_BYTES, refusals_per_second_per_source=1e6, refusals_burst=1_000_000
        ),
        timeouts=TimeoutsConfig(
            ping_interval=0.5, head=60.0, http_response=RESPONSE_TIMEOUT, http_body=60.0, request_gather=0.05
        ),
    )
    namespace = relay.server.namespace.name
    for index in range(ENTITIES):
        await relay.store.create_entity(namespace, f"e{index}", requires_client_authorization=False)
    chaos = Chaos(relay, seed)
    most_exchanges = grown = 0
    before = resident_bytes()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal most_exchanges, grown
            while True:
                statistics = relay.server.statistics()
                most_exchanges = max(most_exchanges, statistics.exchanges)
                grown = max(grown, resident_bytes() - before)
                assert statistics.http_buffered_bytes <= BUFFER_BYTES
                assert relay.server.check_consistency() == []
                await trio.sleep(0.1)

        for index in range(LISTENERS):
            nursery.start_soon(chaos.listener, f"e{index % ENTITIES}", nursery)
        nursery.start_soon(chaos.kill_controls)
        nursery.start_soon(watch)
        async with trio.open_nursery() as senders:
            for number in range(REQUESTS):
                senders.start_soon(chaos.sender, number)
        nursery.cancel_scope.cancel()
    assert chaos.vanished + chaos.outcomes.total() == REQUESTS
    # Each kind of end was there, or nothing was tested. How many of each is for the speed of the machine to say: on an
    # idle one half are answered, on one that stands still for seconds a fifth.
    assert chaos.outcomes["answered"] > REQUESTS // 20
    assert chaos.outcomes.keys() >= {"answered", "cut", "502", "504"}
    assert chaos.vanished > 50
    assert len(chaos.deaths) == len(CONTROL_DEATHS)
    assert most_exchanges > REQUESTS // 10
    assert grown < MEMORY_BYTES
    await relay.hang_up()
    statistics = relay.server.statistics()
    assert BUFFER_BYTES // 4 < statistics.http_buffered_peak <= BUFFER_BYTES
    assert (statistics.http_buffered_bytes, statistics.exchanges, statistics.listeners) == (0, 0, 0)
    assert (statistics.waiting_senders, statistics.buffers_in_use, statistics.open_connections) == (0, 0, 0)
    # Who vanished before the relay had its request is in no book.
    assert REQUESTS - chaos.vanished <= statistics.requests_answered + statistics.requests_failed <= REQUESTS
    assert statistics.requests_answered >= chaos.outcomes["answered"]
