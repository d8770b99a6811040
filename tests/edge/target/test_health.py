"""How an endpoint is: the hysteresis on a clock that jumps, and each kind of probe against a server that plays it."""

from __future__ import annotations

import ssl
import sys
import tracemalloc
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from relaycore.edge.config.settings import (
    DialSettings,
    EndpointOrder,
    HealthSettings,
    PolicySettings,
    Probe,
    Target,
)
from relaycore.edge.target.dial import TargetOrder
from relaycore.edge.target.health import EndpointHealth, EndpointState, probe
from relaycore.edge.target.policy import Policy

UNKNOWN, UP, DEGRADED, DOWN = EndpointState
NONE = HealthSettings(probe=Probe("none"))


class Switch:
    """An endpoint that can be turned off and on, at an address of its own."""

    def __init__(self) -> None:
        self.listeners: list[trio.SocketListener] = []
        self.port = 0
        self.visits = 0
        self.headers: list[bytes] = []
        self._scope = trio.CancelScope()
        self._is_off = trio.Event()

    @property
    def target(self) -> Target:
        return Target("127.0.0.1", self.port)

    async def _visit(self, stream: trio.SocketStream) -> None:
        self.visits += 1
        async with stream:
            if data := await stream.receive_some():
                self.headers.append(bytes(data))

    async def on(self, nursery: trio.Nursery) -> None:
        self.listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = self.listeners[0].socket.getsockname()[1]
        self._scope = trio.CancelScope()
        self._is_off = trio.Event()

        async def serve() -> None:
            with self._scope:
                await trio.serve_listeners(self._visit, self.listeners)
            self._is_off.set()

        nursery.start_soon(serve)

    async def off(self) -> None:
        self._scope.cancel()
        await self._is_off.wait()


@pytest.fixture
async def switch(nursery: trio.Nursery) -> Switch:
    found = Switch()
    await found.on(nursery)
    return found


async def test_up_down_and_up_again(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch):
    """manager 8.4: rise and fall count probes in a row."""
    health = EndpointHealth([switch.target], HealthSettings(interval_s=10, rise=2, fall=3), rng=lambda: 0.5)
    assert (health.state, health.summary, health.latency) == (UNKNOWN, "unknown", None)
    nursery.start_soon(health.run)
    assert await health.wait_changed(UNKNOWN) is UP
    assert trio.current_time() == 0
    assert health.summary == "up 0.0 ms"
    assert (health.latency, health.last_error) == (0, "")

    await switch.off()
    assert await health.wait_changed() is DEGRADED
    assert trio.current_time() == pytest.approx(10)
    assert health.summary == "1 of 2 failed"
    assert "refused the connection (ECONNREFUSED)" in health.last_error
    assert not health.is_down
    assert await health.wait_changed() is DOWN
    assert trio.current_time() == pytest.approx(30)
    assert (health.summary, health.is_down) == ("down", True)
    refusal = health.refusal()
    assert refusal.status == 503
    assert refusal.text.startswith(f"the endpoint is down: 127.0.0.1 port {switch.port} refused")

    await switch.on(nursery)
    assert await health.wait_changed() is UP
    assert trio.current_time() == pytest.approx(50)
    assert health.last_error == ""
    assert "refused" in health.targets[0].last_error
    assert health.targets[0].recent == (False, False, False, True, True)


async def test_one_failure_does_not_flap(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch):
    health = EndpointHealth([switch.target], HealthSettings(interval_s=10, fall=3), rng=lambda: 0.5)
    nursery.start_soon(health.run)
    await health.wait_changed(UNKNOWN)
    for _ in range(3):
        await switch.off()
        assert await health.wait_changed(UP) is DEGRADED
        await switch.on(nursery)
        assert await health.wait_changed(DEGRADED) is UP


async def test_the_first_result_counts(autojump_clock: MockClock, nursery: trio.Nursery, free_port: int):
    health = EndpointHealth([Target("127.0.0.1", free_port)], HealthSettings())
    nursery.start_soon(health.run)
    assert await health.wait_changed(UNKNOWN) is DOWN
    assert trio.current_time() == 0


async def test_probes_keep_no_step(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch):
    health = EndpointHealth([switch.target], HealthSettings(interval_s=10), rng=lambda: 1.0)
    nursery.start_soon(health.run)
    await trio.sleep(10.9)
    assert switch.visits == 1
    await trio.sleep(0.2)
    assert switch.visits == 2


async def test_several_targets(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch, free_port: int):
    dead = Target("127.0.0.1", free_port)
    order = TargetOrder(EndpointOrder.FAILOVER)
    health = EndpointHealth([dead, switch.target], HealthSettings(), order_state=order)
    nursery.start_soon(health.run)
    assert await health.wait_changed(UNKNOWN) is DEGRADED
    assert health.summary == "1 of 2 down"
    assert order.arrange([dead, switch.target]) == [switch.target, dead]
    assert health.latency == 0
    assert [each.is_up for each in health.targets] == [False, True]


async def test_senders_dials_count(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch):
    """manager 8.5: passive signs, and a failed dial brings the next probe near."""
    health = EndpointHealth([switch.target], HealthSettings(interval_s=100, fall=3, rise=1))
    nursery.start_soon(health.run)
    await health.wait_changed(UNKNOWN)
    health.note_dial(False, "db refused")
    assert (health.state, health.last_error) == (DEGRADED, "db refused")
    health.note_dial(True)
    assert health.state is UP
    for _ in range(3):
        health.note_dial(False, "db refused")
    assert health.state is DOWN
    assert await health.wait_changed(DOWN) is UP
    assert trio.current_time() == pytest.approx(1)
    health.note_dial(False, "of another", target=Target("h", 1))
    assert health.state is UP


async def test_a_dial_is_less_than_a_probe_that_asks(switch: Switch):
    health = EndpointHealth([switch.target], HealthSettings(probe=Probe("http"), fall=1, rise=1))
    health.note_dial(False, "x")
    assert health.state is DOWN
    health.note_dial(True)
    assert health.state is DOWN
    simple = EndpointHealth([switch.target], HealthSettings(fall=1, rise=1))
    simple.note_dial(False, "x")
    simple.note_dial(True)
    assert simple.state is UP


async def test_without_probes_nothing_goes_down(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch):
    """Nobody would bring it back."""
    health = EndpointHealth([switch.target], NONE)
    nursery.start_soon(health.run)
    await trio.sleep(1000)
    assert (health.state, health.summary, switch.visits) == (UNKNOWN, "not probed", 0)
    for _ in range(10):
        health.note_dial(False, "x")
    assert (health.state, health.summary) == (DEGRADED, "5 of 5 failed")
    await trio.sleep(1000)
    assert switch.visits == 0
    health.note_dial(True)
    assert (health.state, health.summary) == (UP, "up")


async def test_somebody_asks(switch: Switch):
    health = EndpointHealth([switch.target], NONE)
    [(target, result)] = await health.check_now()
    assert (target, result.error, result.address) == (switch.target, "", "127.0.0.1")
    await switch.off()
    [(_, result)] = await health.check_now()
    assert "refused" in result.error
    assert health.state is DEGRADED


async def test_other_targets(autojump_clock: MockClock, nursery: trio.Nursery, switch: Switch, free_port: int):
    """manager 6: an endpoint that changes counts for new connections, without a restart."""
    health = EndpointHealth([], HealthSettings(interval_s=1000))
    nursery.start_soon(health.run)
    await trio.sleep(1)
    assert health.state is UNKNOWN
    health.change([switch.target])
    assert await health.wait_changed() is UP
    assert trio.current_time() == pytest.approx(1)
    dead = Target("127.0.0.1", free_port)
    health.change([dead, switch.target])
    assert await health.wait_changed() is DEGRADED
    health.change([dead], HealthSettings(probe=Probe("none")))
    assert health.state is DOWN
    health.change([])
    assert health.state is UNKNOWN


async def test_what_the_policy_forbids_is_not_probed(switch: Switch):
    health = EndpointHealth([switch.target], HealthSettings(), policy=Policy(PolicySettings(allow=())))
    await health.check_now()
    assert health.state is DOWN
    assert "not in its allow list" in health.last_error
    assert switch.visits == 0


async def test_a_probe_says_that_it_has_no_sender(switch: Switch, autojump_clock: MockClock):
    health = EndpointHealth([switch.target], HealthSettings(), dial_settings=DialSettings(proxy_protocol=1))
    await health.check_now()
    await wait_all_tasks_blocked()
    assert switch.headers == [b"PROXY UNKNOWN\r\n"]


async def ask(kind: Probe, target: Target, timeout_s: float = 2) -> str:
    result = await probe(target, kind, DialSettings(), timeout_s=timeout_s)
    assert "\n" not in result.error
    return result.error


def answering(*answers: bytes):
    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            for answer in answers:
                await stream.receive_some(65_536)
                await stream.send_all(answer)
            await stream.send_eof()
            await stream.receive_some()

    return handler


async def silent(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.sleep_forever()


async def rude(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


async def test_http(serve):
    seen = []

    async def well(stream: trio.SocketStream) -> None:
        seen.append(bytes(await stream.receive_some(65_536)))
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        await stream.aclose()

    port = await serve(well)
    assert await ask(Probe("http", path="/health?deep=1"), Target("127.0.0.1", port)) == ""
    assert seen[0].startswith(f"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())

    async def wrong(*answers: bytes) -> str:
        target = Target("127.0.0.1", await serve(answering(*answers)))
        said = await ask(Probe("http", path="/h"), target)
        assert said.startswith(str(target))
        return said

    assert "answered GET /h with 503 Service Unavailable" in await wrong(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    assert "does not speak HTTP" in await wrong(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    assert "without an answer" in await wrong()
    rude_port = await serve(rude)
    assert "broke the connection off" in await ask(Probe("http"), Target("127.0.0.1", rude_port))


async def test_tls(serve):
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("db.test").configure_cert(server)

    async def secure(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, server, server_side=True)
        await tls.do_handshake()
        await trio.aclose_forcefully(tls)

    # The certificate is nobody's that this machine trusts: the sender's question, not ours.
    assert await ask(Probe("tls"), Target("127.0.0.1", await serve(secure))) == ""
    plain = await ask(Probe("tls"), Target("127.0.0.1", await serve(answering(b"220 mail.test ESMTP\r\n"))))
    assert "does not speak TLS" in plain


async def test_exchange(serve):
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"+OK ")
        assert await stream.receive_some() == b"PING\r\n"
        await stream.send_all(b"+PO")
        await stream.send_all(b"NG\r\n")
        await stream.aclose()

    kind = Probe("exchange", send=b"PING\r\n", expect=b"+PONG")
    assert await ask(kind, Target("127.0.0.1", await serve(greet))) == ""
    said = await ask(kind, Target("127.0.0.1", await serve(answering(b"-NOAUTH"))))
    assert said.endswith("sent b'-NOAUTH' and not the b'+PONG' that is expected")
    said = await ask(kind, Target("127.0.0.1", await serve(answering(bytes(9000)))))
    assert "is expected" in said
    first = Probe("exchange", expect=b"+OK")
    assert await ask(first, Target("127.0.0.1", await serve(greet_first))) == ""


async def greet_first(stream: trio.SocketStream) -> None:
    await stream.send_all(b"+OK ready\r\n")
    await stream.receive_some()
    await stream.aclose()


async def test_an_endpoint_that_hangs(serve, autojump_clock: MockClock):
    target = Target("127.0.0.1", await serve(silent))
    assert await ask(Probe("http"), target) == f"{target} (127.0.0.1) gave no http answer: more than 2 s"
    assert trio.current_time() == pytest.approx(2)
    assert await ask(Probe("tcp"), target) == ""


async def test_an_endpoint_that_takes_no_connections(black_hole, autojump_clock: MockClock):
    assert "does not answer within 2 s" in await ask(Probe("tcp"), Target("127.0.0.1", black_hole()))


async def test_commands(tmp_path: Path):
    target = Target("db.test", 1433)
    script = "import os, sys; sys.exit(os.environ['RELAYCORE_HOST'] + os.environ['RELAYCORE_PORT'] != 'db.test1433')"
    assert await ask(Probe("command", command=(sys.executable, "-c", script)), target, 60) == ""
    said = await ask(
        Probe("command", command=("/bin/sh", "-c", "echo no; echo a >&2; echo no rows >&2; exit 3")), target, 60
    )
    assert said == "db.test:1433 is not well: /bin/sh ended with 3: no rows"
    quiet = await ask(Probe("command", command=("/bin/false",)), target, 60)
    assert quiet == "db.test:1433 is not well: /bin/false ended with 1"
    missing = await ask(Probe("command", command=(str(tmp_path / "none"),)), target, 60)
    assert "cannot be started: No such file or directory" in missing


@pytest.mark.parametrize("ending", ["exit 0", "sleep 1000"])
async def test_a_command_leaves_nothing_behind(tmp_path: Path, ending: str):
    """What it has started ends with it, and does not keep it from ending, whoever holds its stderr."""
    started = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {started}; {ending}"
    said = await ask(
        Probe("command", command=("/bin/sh", "-c", script)), Target("db.test", 1), 1 if "sleep" in ending else 60
    )
    assert said == ("" if ending == "exit 0" else "/bin/sh took more than 1 s")
    with trio.fail_after(10):
        while is_running(int(started.read_text())):
            await trio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there, and is no zombie that nobody has waited for yet."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_of_a_commands_complaint_only_the_end_is_kept():
    script = "yes x | head -c 3000000 >&2; echo the end >&2; exit 1"
    tracemalloc.start()
    try:
        said = await ask(Probe("command", command=("/bin/sh", "-c", script)), Target("db.test", 1), 60)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert said == "db.test:1 is not well: /bin/sh ended with 1: the end"


async def test_a_command_that_hangs_is_ended(autojump_clock: MockClock):
    said = await ask(Probe("command", command=("/bin/sleep", "1000")), Target("db.test", 1))
    assert said == "/bin/sleep took more than 2 s"
