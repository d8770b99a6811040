"""Two hundred sessions, and peers that die in every way at random moments.

Half of the sessions are bystanders: whatever happens around them, each of their bytes has to arrive. The others and
the control
channels are killed: TCP reset, silent end, half-open silence, garbage, a reader that never reads. Afterwards the
relay must have nothing left, which its own consistency check says.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress

import pytest
import trio
from peers import WirePeer, close_frame, frame

from relaycore.config import EngineConfig, LimitsConfig, TimeoutsConfig

SESSIONS = 200
ENTITIES = 8
TRIES = 200
FATES = ("reset", "end", "silence", "garbage", "deaf")
GARBAGE = (
    b"\xff" * 64,
    b"\x00" * 64,
    frame(2, b"x" * 50, masked=False),
    frame(0, b"y"),
    frame(1, b"z", rsv=7),
    frame(2, b"", length=2**63),
    b"GET / HTTP/1.1\r\n\r\n",
)

LOST = (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, AssertionError)


class Chaos:
    def __init__(self, relay, seed: int) -> None:
        self.relay = relay
        self.random = random.Random(seed)
        self.bystanders_done = 0
        self.victims_done = 0
        self.silent: list[WirePeer] = []
        self.controls: list[WirePeer] = []

    # Listeners ------------------------------------------------------------------------------------------------------

    async def listener(self, entity: str, echoes: trio.Nursery) -> None:
        """A listener that comes back whenever its control channel is killed."""
        while True:
            control = await self.relay.listen(entity)
            self.controls.append(control)
            try:
                while True:
                    got = await control.read_frame()
                    if got.opcode == 9:
                        await control.send(frame(10, got.payload))
                    elif got.opcode == 1:
                        echoes.start_soon(self.answer, got.payload)
                    else:
                        break
            except LOST:
                pass
            finally:
                with suppress(ValueError):
                    self.controls.remove(control)
                await trio.aclose_forcefully(control.stream)

    async def answer(self, message: bytes) -> None:
        import json

        accept = json.loads(message)["accept"]
        with suppress(*LOST):
            peer = await self.relay.come_to(accept["address"])
            fate = accept["connectHeaders"].get("X-Listener-Fate", "")
            await self.echo(peer, fate, int(accept["connectHeaders"]["X-Moment"]))

    async def echo(self, peer: WirePeer, fate: str, moment: int) -> None:
        count = 0
        while True:
            got = await peer.read_frame()
            if got.opcode == 8:
                await peer.send(close_frame())
                await peer.read_eof()
                await peer.aclose()
                return
            if got.opcode == 9:
                await peer.send(frame(10, got.payload))
                continue
            count += 1
            if fate and count > moment:
                await self.die(peer, fate)
                return
            await peer.send(frame(got.opcode, got.payload, fin=got.fin))

    async def die(self, peer: WirePeer, fate: str) -> None:
        match fate:
            case "reset":
                with suppress(*LOST):
                    peer.reset()
            case "end":
                await peer.aclose()
            case "garbage":
                await peer.send(self.random.choice(GARBAGE))
                with suppress(*LOST):
                    await peer.read_eof()
                await trio.aclose_forcefully(peer.stream)
            case "deaf":
                # Floods and never reads, until what the relay may hold for it is full.
                with trio.move_on_after(0.3), suppress(*LOST):
                    while True:
                        await peer.send(frame(2, b"f" * 30_000))
                self.silent.append(peer)
            case "silence":
                self.silent.append(peer)

    async def kill_controls(self) -> None:
        """Every now and then one control channel dies."""
        while True:
            await trio.sleep(0.05)
            # Most entities keep a listener, or the senders' retries are all that is tested.
            if len(self.controls) >= 2 * ENTITIES:
                control = self.random.choice(self.controls)
                match self.random.choice(("reset", "garbage", "close", "half-open")):
                    case "reset":
                        with suppress(*LOST):
                            control.reset()
                    case "garbage":
                        with suppress(*LOST):
                            await control.send(self.random.choice(GARBAGE))
                    case "close":
                        with suppress(*LOST):
                            await control.send(close_frame(1001))
                    case "half-open":
                        with suppress(*LOST):
                            assert isinstance(control.stream, trio.SocketStream)
                            control.stream.socket.shutdown(trio.socket.SHUT_WR)

    # Senders --------------------------------------------------------------------------------------------------------

    async def connect(self, entity: str, headers: dict[str, str]) -> WirePeer:
        for _ in range(TRIES):
            peer, answer = await self.relay.call(f"/$hc/{entity}", headers)
            if answer.status == 101:
                return peer
            # Every listener of the entity was dead in that moment, or too slow; anything else would be wrong.
            assert answer.status == 404, answer
            await trio.aclose_forcefully(peer.stream)
            await trio.sleep(0.1 + 0.2 * self.random.random())
        raise AssertionError(f"no listener at {entity} in {TRIES} tries")

    async def bystander(self, index: int) -> None:
        peer = await self.connect(f"e{index % ENTITIES}", {"X-Moment": "0"})
        source = random.Random(index)
        sent, received = hashlib.sha256(), hashlib.sha256()
        sizes = [source.choice((1, 125, 126, 4000, 65_535, 65_537, 150_000)) for _ in range(10)]

        async def send() -> None:
            for size in sizes:
                data = source.randbytes(size)
                sent.update(data)
                await peer.send(frame(2, data) + (frame(9, b"ping") if size == 126 else b""))
                await trio.sleep(source.random() * 0.1)
            await peer.send(close_frame(1000, "Shutdown"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while (got := await peer.read_frame()).opcode != 8:
                if got.opcode != 10:
                    received.update(got.payload)
        assert sent.digest() == received.digest()
        await peer.read_eof()
        await peer.aclose()
        self.bystanders_done += 1

    async def victim(self, index: int) -> None:
        fate = FATES[index % len(FATES)]
        moment = self.random.randrange(0, 8)
        at_sender = index % 2 == 0
        headers = {"X-Moment": str(moment), **({} if at_sender else {"X-Listener-Fate": fate})}
        peer = await self.connect(f"e{index % ENTITIES}", headers)
        with suppress(*LOST):
            for count in range(9):
                if at_sender and count == moment:
                    await self.die(peer, fate)
                    break
                await peer.send(frame(2, self.random.randbytes(20_000)))
                with trio.move_on_after(1):
                    await peer.read_frame()
            else:
                self.silent.append(peer)
        self.victims_done += 1


@pytest.mark.bound(150)
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("seed", "mover", "threads", "buffers"),
    [(1, "engine", 1, 64), (2, "engine", 1, 2048), (3, "engine", 2, 64), (1, "trio", 0, 64)],
)
async def test_chaos(start_relay, seed: int, mover: str, threads: int, buffers: int) -> None:
    """failures: half-open link: re-login blocks, goroutines pile up."""
    relay = await start_relay(
        limits=LimitsConfig(pool_buffers=buffers, refusals_per_second_per_source=1e6, refusals_burst=1_000_000),
        # A machine that stands still for seconds meets no deadline but these two, and 404 is the right answer then.
        timeouts=TimeoutsConfig(ping_interval=0.5, accept=3.0, head=60.0),
        engine=EngineConfig(mover=mover, threads=threads),
    )
    namespace = relay.server.namespace.name
    for index in range(ENTITIES):
        await relay.store.create_entity(namespace, f"e{index}", requires_client_authorization=False)
    chaos = Chaos(relay, seed)
    async with trio.open_nursery() as nursery:
        for index in range(ENTITIES * 3):
            nursery.start_soon(chaos.listener, f"e{index % ENTITIES}", nursery)
        nursery.start_soon(chaos.kill_controls)
        async with trio.open_nursery() as senders:
            for index in range(SESSIONS):
                run = chaos.bystander if index % 2 else chaos.victim
                senders.start_soon(run, index // 2)
        nursery.cancel_scope.cancel()
    assert chaos.bystanders_done == SESSIONS // 2
    assert chaos.victims_done == SESSIONS // 2
    await relay.hang_up()
    statistics = relay.server.statistics()
    assert (statistics.listeners, statistics.sessions, statistics.buffers_in_use) == (0, 0, 0)
    assert relay.server.check_consistency() == []
    ended = statistics.sessions_by_reason
    if statistics.engine is not None:
        assert mover == "engine"
        assert (statistics.engine.jobs, statistics.engine.starved) == (0, 0)
        assert statistics.engine.completed >= sum(ended.values()) - ended["relay_closed"] > 0
    assert ended["closed"] >= SESSIONS // 2
    assert ended["aborted"] > 0
    assert ended["protocol_error"] > 0
