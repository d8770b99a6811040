"""Dialling endpoints: on loopback, with names of the test's own, and a clock that jumps where time matters."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relaycore.edge.config.settings import DialSettings, EndpointOrder, PolicySettings, Target
from relaycore.edge.target.dial import DialFailed, TargetOrder, dial, proxy_header, resolve
from relaycore.edge.target.failure import from_os_error
from relaycore.edge.target.policy import Policy
from relaycore.wire.messages import RemoteEndpoint

ANY = DialSettings()


async def hello(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"hello")


async def fails(*targets: Target, settings: DialSettings = ANY, **options) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await dial(targets, settings, **options)
    assert "\n" not in caught.value.text
    return caught.value


async def test_an_endpoint_answers(names, serve):
    port = await serve(hello)
    names.table["db.test"] = ["127.0.0.1"]
    dialled = await dial([Target("db.test", port)], ANY)
    async with dialled.stream:
        assert await dialled.stream.receive_some() == b"hello"
        assert dialled.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert (dialled.target, dialled.address) == (Target("db.test", port), "127.0.0.1")
    assert dialled.seconds >= 0
    assert names.asked == ["db.test"]


async def test_small_writes_may_be_gathered(serve):
    dialled = await dial([Target("127.0.0.1", await serve(hello))], DialSettings(nodelay=False))
    async with dialled.stream:
        assert not dialled.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_no_targets():
    with pytest.raises(ValueError, match="no target"):
        await dial([], ANY)


async def test_refused(names, free_port: int):
    names.table["db.test"] = ["127.0.0.1"]
    failed = await fails(Target("db.test", free_port))
    assert (failed.status, failed.kind) == (502, "refused")
    assert failed.text == (
        f"db.test (127.0.0.1) port {free_port} refused the connection (ECONNREFUSED); "
        "start the service, or open its firewall"
    )
    literal = await fails(Target("127.0.0.1", free_port))
    assert literal.text.startswith(f"127.0.0.1 port {free_port} refused")


async def test_several_addresses_that_say_the_same_are_named_once(names, free_port: int):
    names.table["db.test"] = ["127.0.0.1", "127.0.0.2"]
    failed = await fails(Target("db.test", free_port))
    assert failed.text.startswith(f"db.test (127.0.0.1, 127.0.0.2) port {free_port} refused")


async def test_an_unknown_name(names):
    failed = await fails(Target("nosuch.test", 1433))
    assert (failed.status, failed.kind) == (502, "unknown-name")
    assert failed.text == (
        "nosuch.test is unknown here: no such name (EAI_NONAME); "
        "correct the endpoint's name, or add it to DNS or the hosts file"
    )
    spelt = await fails(Target("a..test", 1433))
    assert spelt.kind == "unknown-name"


async def test_a_silent_name_server(names, autojump_clock: MockClock):
    names.is_silent = True
    failed = await fails(Target("db.test", 1433), settings=DialSettings(timeout_s=3))
    assert (failed.status, failed.kind) == (504, "timeout")
    assert failed.text.startswith("the name server does not answer for db.test within 3 s")
    assert trio.current_time() == pytest.approx(3)


async def test_no_answer(names, black_hole, autojump_clock: MockClock):
    names.table["db.test"] = ["127.0.0.1"]
    port = black_hole()
    failed = await fails(Target("db.test", port), settings=DialSettings(timeout_s=10))
    assert (failed.status, failed.kind) == (504, "timeout")
    assert failed.text == (
        f"db.test (127.0.0.1) port {port} does not answer within 10 s; "
        "a firewall drops the packets, or the machine is off"
    )


async def test_the_next_address_is_tried_soon(names, black_hole, serve, autojump_clock: MockClock):
    """A silent address costs one delay (RFC 8305 5)."""
    port = black_hole("127.0.0.2")
    await serve(hello, "127.0.0.1", port)
    names.table["db.test"] = ["127.0.0.2", "127.0.0.1"]
    dialled = await dial([Target("db.test", port)], ANY)
    async with dialled.stream:
        assert dialled.address == "127.0.0.1"
    assert dialled.seconds == pytest.approx(0.25)


async def test_a_refusal_costs_no_delay(names, serve, autojump_clock: MockClock):
    port = await serve(hello)
    names.table["db.test"] = ["127.0.0.3", "127.0.0.2", "127.0.0.1"]
    dialled = await dial([Target("db.test", port)], ANY)
    await dialled.stream.aclose()
    assert dialled.address == "127.0.0.1"
    assert dialled.seconds == 0


async def test_the_other_family_comes_second(names, ipv6, serve, black_hole, autojump_clock: MockClock):
    """With one family broken, the second attempt is of the other (RFC 8305 4)."""
    port = black_hole("127.0.0.2")
    black_hole("127.0.0.3", port)
    await serve(hello, "::1", port)
    names.table["db.test"] = ["127.0.0.2", "127.0.0.3", "::1"]
    dialled = await dial([Target("db.test", port)], ANY)
    await dialled.stream.aclose()
    assert dialled.address == "::1"
    assert dialled.seconds == pytest.approx(0.25)


async def test_families(names, ipv6, serve):
    port = await serve(hello, "::1")
    names.table["db.test"] = ["127.0.0.1", "::1"]
    target = Target("db.test", port)
    assert [address.host for address in await resolve(target, DialSettings(family="ipv6"))] == ["::1"]
    dialled = await dial([target], DialSettings(family="ipv6"))
    await dialled.stream.aclose()
    assert dialled.address == "::1"
    assert (await fails(target, settings=DialSettings(family="ipv4"))).kind == "refused"


async def test_a_source_address(names, ipv6, serve):
    peers = []

    async def note(stream: trio.SocketStream) -> None:
        peers.append(stream.socket.getpeername()[0])
        await hello(stream)

    port = await serve(note)
    names.table["db.test"] = ["::1", "127.0.0.1"]
    target = Target("db.test", port)
    dialled = await dial([target], DialSettings(source="127.0.0.9"))
    async with dialled.stream:
        assert await dialled.stream.receive_some() == b"hello"
    assert peers == ["127.0.0.9"]
    wrong = await fails(target, settings=DialSettings(source="192.0.2.1"))
    assert "EADDRNOTAVAIL" in wrong.text
    assert "source address is none of this machine's" in wrong.text
    other = await fails(target, settings=DialSettings(source="127.0.0.9", family="ipv6"))
    assert "the source 127.0.0.9 is not ipv6" in other.text


async def test_failover_shares_the_time(black_hole, free_port: int, serve, autojump_clock: MockClock):
    """A target whose packets vanish leaves time for those behind it."""
    hole, good = Target("127.0.0.1", black_hole()), Target("127.0.0.1", await serve(hello))
    dialled = await dial([hole, good], DialSettings(timeout_s=10))
    await dialled.stream.aclose()
    assert dialled.target == good
    assert dialled.seconds == pytest.approx(5)
    failed = await fails(hole, Target("127.0.0.1", free_port))
    assert (failed.status, failed.kind) == (502, "other")
    assert "does not answer" in failed.text
    assert "refused" in failed.text
    assert (await fails(hole, hole)).status == 504


async def test_round_robin(serve):
    targets = [Target("127.0.0.1", await serve(hello)) for _ in range(3)]
    order = TargetOrder(EndpointOrder.ROUND_ROBIN)
    found = []
    for _ in range(4):
        dialled = await dial(targets, ANY, order_state=order)
        await dialled.stream.aclose()
        found.append(dialled.target)
    assert found == [*targets, targets[0]]


def test_orders():
    first, second, third = (Target("h", port) for port in (1, 2, 3))
    failover = TargetOrder(EndpointOrder.FAILOVER)
    assert failover.arrange([first, second]) == [first, second]
    failover.down = frozenset({first})
    assert failover.arrange([first, second]) == [second, first]
    least = TargetOrder(EndpointOrder.LEAST_OPEN)
    least.note_open(first)
    least.note_open(first)
    least.note_open(second)
    assert least.arrange([first, second, third]) == [third, second, first]
    least.note_closed(first)
    least.note_closed(first)
    least.note_closed(first)
    assert least.open(first) == 0
    assert least.arrange([first, second, third]) == [first, third, second]


async def test_the_policy_is_asked_for_name_and_addresses(names, serve):
    port = await serve(hello)
    names.table["db.test"] = ["127.0.0.2", "127.0.0.1"]
    target = Target("db.test", port)
    # Only what is allowed is dialled: nobody listens on the other one, but it is not even tried.
    policy = Policy(PolicySettings(allow=("127.0.0.1/32:*",)))
    assert [address.host for address in await resolve(target, ANY, policy)] == ["127.0.0.1"]
    dialled = await dial([target], ANY, policy=policy)
    await dialled.stream.aclose()
    failed = await fails(target, policy=Policy(PolicySettings(deny=("127.0.0.0/8:*",))))
    assert (failed.status, failed.kind) == (403, "policy")
    assert "127.0.0.1 denied by 127.0.0.0/8:*" in failed.text or "127.0.0.2 denied by 127.0.0.0/8:*" in failed.text


async def test_unix_sockets(tmp_path: Path):
    path = str(tmp_path / "sql.sock")
    failed = await fails(Target(path=path))
    assert (failed.status, failed.kind) == (502, "unreachable")
    assert failed.text == f"unix:{path} is not there (ENOENT); start the service that makes the socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert (await fails(Target(path=path))).kind == "refused"
        listener.listen()
        dialled = await dial(
            [Target(path=path)], DialSettings(proxy_protocol=1), peer=RemoteEndpoint("192.0.2.7", 40_000)
        )
        await dialled.stream.aclose()
        assert dialled.address == path
        with listener.accept()[0] as far:
            assert far.recv(100) == b"PROXY TCP4 192.0.2.7 0.0.0.0 40000 0\r\n"
    assert (await fails(Target(path=path), policy=Policy(PolicySettings(allow=())))).status == 403


async def test_a_proxy_header_goes_first(serve):
    got = bytearray()
    done = trio.Event()

    async def read(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                got.extend(data)
        done.set()

    port = await serve(read)
    dialled = await dial(
        [Target("127.0.0.1", port)], DialSettings(proxy_protocol=1), peer=RemoteEndpoint("192.0.2.7", 40_000)
    )
    await dialled.stream.send_all(b"data")
    await dialled.stream.aclose()
    await done.wait()
    assert bytes(got) == f"PROXY TCP4 192.0.2.7 127.0.0.1 40000 {port}\r\ndata".encode()


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (RemoteEndpoint("192.0.2.7", 1), RemoteEndpoint("10.0.0.1", 2), b"TCP4 192.0.2.7 10.0.0.1 1 2"),
        (RemoteEndpoint("2001:db8::7", 1), RemoteEndpoint("fd00::1", 2), b"TCP6 2001:db8::7 fd00::1 1 2"),
        (RemoteEndpoint("[2001:db8::7]", 1), RemoteEndpoint("10.0.0.1", 2), b"TCP6 2001:db8::7 ::ffff:a00:1 1 2"),
        (RemoteEndpoint("::ffff:192.0.2.7", 1), RemoteEndpoint("10.0.0.1", 2), b"TCP4 192.0.2.7 10.0.0.1 1 2"),
        (RemoteEndpoint("192.0.2.7", 1), None, b"TCP4 192.0.2.7 0.0.0.0 1 0"),
        (RemoteEndpoint("unknown", 1), RemoteEndpoint("10.0.0.1", 2), b"UNKNOWN"),
        (RemoteEndpoint("192.0.2.7", 70_000), None, b"UNKNOWN"),
        (None, RemoteEndpoint("10.0.0.1", 2), b"UNKNOWN"),
    ],
)
def test_proxy_headers_of_version_1(source, destination, line: bytes):
    assert proxy_header(1, source, destination) == b"PROXY " + line + b"\r\n"


def test_proxy_headers_of_version_2():
    start = b"\r\n\r\n\0\r\nQUIT\n"
    here = RemoteEndpoint("10.0.0.1", 443)
    assert proxy_header(2, RemoteEndpoint("192.0.2.7", 40_000), here) == (
        start + bytes.fromhex("2111000cc00002070a0000019c4001bb")
    )
    assert proxy_header(2, RemoteEndpoint("2001:db8::7", 1), here) == (
        start + bytes.fromhex("2121002420010db800000000000000000000000700000000000000000000ffff0a000001000101bb")
    )
    assert proxy_header(2, None, here) == start + bytes.fromhex("20000000")


async def test_an_endpoint_that_resets_at_once(monkeypatch: pytest.MonkeyPatch, serve):
    async def broken(self: trio.SocketStream, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError from ConnectionResetError(errno.ECONNRESET, "reset")

    port = await serve(trio.aclose_forcefully)
    monkeypatch.setattr(trio.SocketStream, "send_all", broken)
    failed = await fails(Target("127.0.0.1", port), settings=DialSettings(proxy_protocol=1))
    monkeypatch.undo()
    assert (failed.status, failed.kind) == (502, "refused")
    assert "sent a PROXY header, reset the connection (ECONNRESET)" in failed.text


async def test_an_endpoint_that_resets_before_its_proxy_header(serve, monkeypatch: pytest.MonkeyPatch):
    """The system then knows no peer address any more; getpeername(2)."""

    def gone(_: trio.SocketStream) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    port = await serve(trio.aclose_forcefully)
    monkeypatch.setattr("relaycore.edge.target.dial._place", gone)
    failed = await fails(Target("127.0.0.1", port), settings=DialSettings(proxy_protocol=1))
    assert (failed.status, failed.kind) == (502, "refused")
    assert failed.text.startswith(f"127.0.0.1:{port} reset the connection")


async def test_cancelling_leaves_nothing_open(names, black_hole, autojump_clock: MockClock):
    """A socket left open would warn, and warnings are errors."""
    port = black_hole("127.0.0.2")
    names.table["db.test"] = ["127.0.0.2", "127.0.0.1"]
    with trio.move_on_after(0.1) as scope:
        await dial([Target("db.test", port)], ANY)
    assert scope.cancelled_caught


async def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", full)
    failed = await fails(Target("127.0.0.1", 1))
    assert failed.status == 503
    assert "EMFILE" in failed.text
    assert "LimitNOFILE" in failed.text


async def test_no_descriptor_left_to_look_a_name_up(names, monkeypatch):
    async def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")  # as for EAI_SYSTEM

    monkeypatch.setattr(names, "getaddrinfo", full)
    failed = await fails(Target("db.test", 1))
    assert (failed.status, failed.kind) == (503, "overloaded")
    assert failed.text.startswith("db.test was not dialled (EMFILE)")


@pytest.mark.parametrize(
    ("error", "status", "kind", "words"),
    [
        (OSError(errno.ETIMEDOUT, "x"), 504, "timeout", "does not answer (ETIMEDOUT)"),
        (OSError(errno.EHOSTUNREACH, "x"), 502, "unreachable", "(EHOSTUNREACH)"),
        (OSError(errno.ENETUNREACH, "x"), 502, "unreachable", "no route"),
        (OSError(errno.EPERM, "x"), 502, "unreachable", "firewall"),
        (OSError(errno.EINVAL, "x"), 502, "other", "invalid argument (EINVAL)"),
        (OSError("odd"), 502, "other", "odd (OSError)"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), 502, "unknown-name", "name server does not answer (EAI_AGAIN)"),
        (socket.gaierror(-99, "x"), 502, "unknown-name", "EAI -99"),
    ],
)
def test_the_systems_errors_in_words(error: OSError, status: int, kind: str, words: str):
    failed = from_os_error("db.test port 1", error)
    assert (failed.status, failed.kind) == (status, kind)
    assert failed.text.startswith("db.test port 1 ")
    assert words in failed.text
