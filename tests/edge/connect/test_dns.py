"""The stub resolver: what is known, what is not, over UDP and TCP, and whatever bytes come."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from relaycore.edge.config.settings import DnsSettings, ListenAt
from relaycore.edge.connect.dns import DnsStub, Zone, serve_dns, system_name_servers
from relaycore.edge.connect.status import Redirection
from relaycore.errors import ConfigError

POOL = "127.77.0.0/16"
NAMES = (
    Redirection("sql", "sqldb.corp.example", "127.77.1.1", 1433),
    Redirection("sql", "sqldb", "127.77.1.1", 1433),
    Redirection("web", "*.web.example", "127.77.2.2", 443),
    Redirection("web", "*.deep.web.example", "127.77.3.3", 443),
    Redirection("web", "own.web.example", "127.77.4.4", 443),
    Redirection("late", "sqldb", "127.77.9.9", 1433),
    Redirection("idn", "bücher.example", "127.77.5.5", 80),
    Redirection("bad", "a..b", "127.77.6.6", 80),
)
ANY = ListenAt("tcp", "127.0.0.1", 0)


def stub_of(upstream="none", names: Iterable[Redirection] = NAMES, **others) -> DnsStub:
    return DnsStub(DnsSettings(ttl_s=7, upstream=upstream), lambda: names, pool=POOL, **others)


def ask_nowait(
    stub: DnsStub, query: dns.message.Message | bytes, *, is_tcp: bool = False
) -> dns.message.Message | None:
    """The answer to a question that is not passed on."""
    data = query if isinstance(query, bytes) else query.to_wire()
    coroutine = stub.answer(data, is_tcp=is_tcp)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return None if stop.value is None else dns.message.from_wire(stop.value)
    finally:
        coroutine.close()
    raise AssertionError("it waits")


def lookup(name: str, kind: str = "A", **options) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **options)
    answer = ask_nowait(stub_of(), query)
    assert answer is not None
    assert answer.id == query.id
    assert answer.question == query.question
    assert answer.flags & dns.flags.QR
    return answer


def addresses(answer: dns.message.Message) -> list[str]:
    return [item.address for rrset in answer.answer for item in rrset]


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("sqldb.corp.example", "127.77.1.1"),
        ("sqldb.corp.example.", "127.77.1.1"),
        ("SQLdb.Corp.EXAMPLE", "127.77.1.1"),
        ("sqldb", "127.77.1.1"),
        ("a.web.example", "127.77.2.2"),
        ("b.a.WEB.example", "127.77.2.2"),
        ("a.deep.web.example", "127.77.3.3"),
        ("deep.web.example", "127.77.2.2"),
        ("own.web.example", "127.77.4.4"),
        ("x.own.web.example", "127.77.2.2"),
        ("xn--bcher-kva.example", "127.77.5.5"),
    ],
)
def test_names_that_are_known(name: str, address: str):
    """connection manager 8.6: exact names and *.suffix, any case, with or without a dot at the end."""
    answer = lookup(name)
    assert addresses(answer) == [address]
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.AA
    assert answer.answer[0].ttl == 7


def test_the_name_comes_back_in_its_own_case():
    """Resolvers that mix the case compare it (draft-vixie-dnsext-dns0x20)."""
    query = dns.message.make_query("SqLdB.cOrP.exAmple", "A")
    answer = ask_nowait(stub_of(), query)
    assert answer.answer[0].name.to_text() == "SqLdB.cOrP.exAmple."
    assert answer.question[0].name.to_text() == "SqLdB.cOrP.exAmple."


@pytest.mark.parametrize(
    "name", ["web.example", "corp.example", "x.sqldb.corp.example", "other.example", "notsqldb", "."]
)
def test_other_names_are_refused(name: str):
    """connection manager 8.4: upstream = none gives REFUSED."""
    answer = lookup(name)
    assert answer.rcode() == dns.rcode.REFUSED
    assert not answer.answer
    assert not answer.authority


@pytest.mark.parametrize("kind", ["AAAA", "HTTPS", "SVCB", "MX", "TXT", "CNAME", "NS", "SOA", "PTR"])
def test_what_a_name_does_not_have_is_an_empty_answer(kind: str):
    """connection manager 8.6, RFC 2308 2.2: no error, no record, and how long that holds."""
    answer = lookup("sqldb.corp.example", kind)
    assert answer.rcode() == dns.rcode.NOERROR
    assert not answer.answer
    (soa,) = answer.authority
    assert (soa.rdtype, soa.ttl, soa[0].minimum) == (dns.rdatatype.SOA, 7, 7)
    assert dns.name.from_text("sqldb.corp.example").is_subdomain(soa.name)


def test_any_gives_the_address():
    assert addresses(lookup("sqldb", "ANY")) == ["127.77.1.1"]


def test_addresses_of_the_pool_have_names():
    """connection manager 8.6: PTR for pool addresses."""
    answer = lookup(dns.reversename.from_address("127.77.1.1").to_text(), "PTR")
    assert {item.target.to_text() for item in answer.answer[0]} == {"sqldb.corp.example.", "sqldb."}
    assert lookup(dns.reversename.from_address("127.77.1.1").to_text(), "A").rcode() == dns.rcode.NOERROR
    for address in ("127.77.2.2", "127.77.200.1"):  # a wildcard has no name, and a free address none either
        answer = lookup(dns.reversename.from_address(address).to_text(), "PTR")
        assert (answer.rcode(), len(answer.authority)) == (dns.rcode.NXDOMAIN, 1)
    for name in ("1.0.0.127.in-addr.arpa", "77.127.in-addr.arpa", "x.1.77.127.in-addr.arpa", "1.ip6.arpa"):
        assert lookup(name, "PTR").rcode() == dns.rcode.REFUSED


def test_names_follow_the_settings():
    names = list(NAMES[:1])
    stub = stub_of(names=names)
    query = dns.message.make_query("new.example", "A")
    assert ask_nowait(stub, query).rcode() == dns.rcode.REFUSED
    names.append(Redirection("new", "new.example", "127.77.8.8", 1))
    assert addresses(ask_nowait(stub, query)) == ["127.77.8.8"]
    names.clear()
    assert ask_nowait(stub, query).rcode() == dns.rcode.REFUSED


def test_edns():
    """An OPT for an OPT, our size in it, and BADVERS for what is to come (RFC 6891 6.1.1, 6.1.3)."""
    assert lookup("sqldb").edns == -1
    answer = lookup("sqldb", use_edns=0, payload=4096, want_dnssec=True)
    assert (answer.edns, answer.payload) == (0, 1232)
    assert addresses(answer) == ["127.77.1.1"]
    query = dns.message.make_query("sqldb", "A", use_edns=0)
    query.use_edns(1)
    answer = ask_nowait(stub_of(), query)
    assert answer.rcode() == dns.rcode.BADVERS
    assert not answer.answer


def test_another_class_is_refused():
    assert lookup("sqldb", rdclass="CH").rcode() == dns.rcode.REFUSED


def test_an_answer_that_is_too_long_says_so():
    """Truncated over UDP, whole over TCP (RFC 1035 4.2.1, RFC 2181 9)."""
    many = [Redirection("m", f"name-number-{number}.example", "127.77.7.7", 1) for number in range(100)]
    stub = stub_of(names=many)
    name = dns.reversename.from_address("127.77.7.7")
    for payload, limit in ((None, 512), (1_232, 1_232)):
        query = dns.message.make_query(name, "PTR", use_edns=payload is not None, payload=payload or 0)
        answer = ask_nowait(stub, query)
        assert answer.flags & dns.flags.TC
        assert not answer.answer
        assert len(answer.to_wire()) <= limit
    answer = ask_nowait(stub, dns.message.make_query(name, "PTR"), is_tcp=True)
    assert len(answer.answer[0]) == 100
    assert not answer.flags & dns.flags.TC


# What makes no sense -------------------------------------------------------------------------------------------------


def test_answers_are_never_answered():
    """Two stubs that ask each other would never stop."""
    query = dns.message.make_query("sqldb", "A")
    query.flags |= dns.flags.QR
    assert ask_nowait(stub_of(), query) is None
    assert ask_nowait(stub_of(), b"") is None
    assert ask_nowait(stub_of(), bytes(11)) is None


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6), dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x00" + bytes(6), dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x02" + bytes(6) + b"\x01a\0\0\1\0\1" * 2, dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x01a\0\0\1\0\1trailing", dns.rcode.FORMERR),
        (b"\x12\x34\x11\x00\x00\x01" + bytes(6) + b"\x01a\0\0\1\0\1", dns.rcode.NOTIMP),
        (b"\x12\x34\x29\x00\x00\x01" + bytes(6) + b"\x01a\0\0\6\0\1", dns.rcode.NOTIMP),
    ],
)
def test_malformed_questions(data: bytes, rcode: int):
    """FORMERR, NOTIMP; with the asker's number, or nobody could match it (RFC 1035 4.1.1)."""
    stub = stub_of()
    answer = ask_nowait(stub, data)
    assert (answer.id, answer.rcode()) == (0x1234, rcode)
    assert stub.counts == {"malformed": 1}


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes):
    answer = ask_nowait(stub_of(), data)
    assert answer is None or answer.flags & dns.flags.QR


@given(
    flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4),
    kind=st.sampled_from(["A", "AAAA", "PTR", "OPT"]),
)
def test_damaged_questions(flips: list[tuple[int, int]], kind: str):
    """An answer, or none; never an error, and never an answer to an answer."""
    query = bytearray(dns.message.make_query("sqldb.corp.example", kind, use_edns=0).to_wire())
    for place, value in flips:
        query[place % len(query)] = value
    answer = ask_nowait(stub_of(), bytes(query))
    if answer is not None:
        assert not query[2] & 0x80
        assert answer.id == int.from_bytes(query[:2], "big")


@given(seed=st.integers())
def test_a_zone_is_looked_up_as_by_hand(seed: int):
    """Exact before wildcard, the longest wildcard first, against a plain search."""
    rng = random.Random(seed)
    labels = ["a", "b", "c"]

    def name() -> str:
        return ".".join(rng.choice(labels) for _ in range(rng.randint(1, 4)))

    names = [
        Redirection("x", rng.choice(["", "*."]) + name(), f"127.77.0.{number + 1}", 1)
        for number in range(rng.randint(0, 8))
    ]
    zone = Zone(names, POOL)
    wanted = name()
    exact = [found.address for found in names if found.host == wanted]
    below = sorted(
        (-len(found.host), place, found.address)
        for place, found in enumerate(names)
        if found.host.startswith("*.") and wanted.endswith(found.host[1:])
    )
    expected = exact[0] if exact else below[0][2] if below else None
    found = zone.find(dns.name.from_text(wanted))
    assert (found and found[1]) == expected


def test_a_pool_that_is_none():
    with pytest.raises(ConfigError, match="pool"):
        DnsStub(DnsSettings(), tuple, pool="10.0.0.0/8")


# Sockets -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_stub(
    upstream="none", name_servers=None, listen: tuple[ListenAt, ...] = (ANY,)
) -> AsyncIterator[tuple[tuple[str, int], Counter[str]]]:
    counts: Counter[str] = Counter()
    settings = DnsSettings(listen, 7, upstream)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_dns, settings, lambda: NAMES, pool=POOL, name_servers=name_servers, counts=counts)
        opened = await nursery.start(serve)
        yield opened[0].address, counts
        nursery.cancel_scope.cancel()


async def ask_udp(address: tuple[str, int], query: bytes) -> bytes:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(address)
        await sock.send(query)
        return await sock.recv(65_535)


async def ask_tcp(stream: trio.SocketStream, query: bytes) -> bytes:
    await stream.send_all(len(query).to_bytes(2, "big") + query)
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        piece = await stream.receive_some()
        assert piece
        data += piece
    return data[2:]


async def test_udp_and_tcp_on_one_port():
    """Every stub answers both, and several questions on one connection (RFC 7766 5)."""
    query = dns.message.make_query("sqldb", "A").to_wire()
    async with open_stub() as (address, counts):
        assert addresses(dns.message.from_wire(await ask_udp(address, query))) == ["127.77.1.1"]
        async with await trio.open_tcp_stream(*address) as stream:
            for _ in range(3):
                assert addresses(dns.message.from_wire(await ask_tcp(stream, query))) == ["127.77.1.1"]
        assert counts == {"answered": 4}


async def test_udp_alone():
    query = dns.message.make_query("sqldb", "A").to_wire()
    async with open_stub(listen=(ListenAt("udp", "127.0.0.1", 0),)) as (address, _):
        assert addresses(dns.message.from_wire(await ask_udp(address, query))) == ["127.77.1.1"]
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream(*address)


async def test_tcp_in_pieces_and_cut_off():
    query = dns.message.make_query("sqldb", "A").to_wire()
    framed = len(query).to_bytes(2, "big") + query
    async with open_stub() as (address, _):
        async with await trio.open_tcp_stream(*address) as stream:
            for at in range(len(framed) - 1):
                await stream.send_all(framed[at : at + 1])
            await stream.send_all(framed[-1:])
            assert await stream.receive_some()
        for cut in (0, 1, 2, 5):
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(framed[:cut])
                await stream.send_eof()
                assert await stream.receive_some() == b""
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"\x00\x00")
            assert await stream.receive_some() == b""


async def test_addresses_that_cannot_be_opened():
    for at, text in (
        (ListenAt("unix", path="/x"), "give an address and a port"),
        (ListenAt("tcp", "auto", 53), "give an address and a port"),
        (ListenAt("udp", "192.0.2.1", 5353), "cannot answer DNS on udp:192.0.2.1:5353"),
        (ListenAt("tcp", "192.0.2.1", 5353), "cannot listen on 192.0.2.1:5353"),
    ):
        with pytest.raises(ConfigError, match=text):
            await serve_dns(DnsSettings((ANY, at)), tuple)


# Passing on ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_name_server(
    reply: Callable[[bytes], Awaitable[list[bytes]]],
) -> AsyncIterator[tuple[tuple[str, int], list[bytes]]]:
    """A name server over UDP and TCP; what it was asked is in the list."""
    asked: list[bytes] = []
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()

    async def serve_stream(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                data = bytes(await stream.receive_some())
                asked.append(data[2:])
                for answer in await reply(data[2:]):
                    await stream.send_all(len(answer).to_bytes(2, "big") + answer)

    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(address)

        async def serve_datagrams() -> None:
            while True:
                data, peer = await sock.recvfrom(65_535)
                asked.append(data)
                for answer in await reply(data):
                    await sock.sendto(answer, peer)

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve_stream, [listener])
            nursery.start_soon(serve_datagrams)
            yield address, asked
            nursery.cancel_scope.cancel()


async def say_203(query: bytes) -> list[bytes]:
    message = dns.message.from_wire(query)
    response = dns.message.make_response(message)
    response.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", "203.0.113.7"))
    return [response.to_wire()]


OTHER = dns.message.make_query("Other.example", "A", use_edns=0)


async def test_other_names_are_passed_on():
    """connection manager 8.4: upstream = system."""
    async with (
        open_name_server(say_203) as (server, asked),
        open_stub("system", lambda: [server]) as (address, counts),
    ):
        answer = dns.message.from_wire(await ask_udp(address, OTHER.to_wire()))
        assert (answer.id, addresses(answer)) == (OTHER.id, ["203.0.113.7"])
        async with await trio.open_tcp_stream(*address) as stream:
            answer = dns.message.from_wire(await ask_tcp(stream, OTHER.to_wire()))
        assert (answer.id, addresses(answer)) == (OTHER.id, ["203.0.113.7"])
        assert [data[2:] for data in asked] == [OTHER.to_wire()[2:]] * 2
        sqldb = dns.message.make_query("sqldb", "A").to_wire()
        assert addresses(dns.message.from_wire(await ask_udp(address, sqldb))) == ["127.77.1.1"]
        assert len(asked) == 2
        assert counts == {"passed-on": 2, "answered": 1}


async def test_strangers_answers_are_not_believed():
    """The number and the question have to be those that were sent (RFC 5452 9.1)."""

    async def lie_first(query: bytes) -> list[bytes]:
        (truth,) = await say_203(query)
        wrong_number = bytes((query[0] ^ 1,)) + truth[1:]
        other = (await say_203(query[:2] + dns.message.make_query("x.example", "A").to_wire()[2:]))[0]
        return [b"", b"\0", wrong_number, query, other, truth]

    async with (
        open_name_server(lie_first) as (server, _),
        open_stub("system", lambda: [server]) as (address, _),
    ):
        answer = dns.message.from_wire(await ask_udp(address, OTHER.to_wire()))
        assert addresses(answer) == ["203.0.113.7"]
        assert answer.question == OTHER.question


async def test_the_next_name_server_is_asked():
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as nobody:
        await nobody.bind(("127.0.0.1", 0))
        dead = nobody.getsockname()
    async with (
        open_name_server(say_203) as (server, _),
        open_stub("system", lambda: [dead, server]) as (address, _),
    ):
        assert addresses(dns.message.from_wire(await ask_udp(address, OTHER.to_wire()))) == ["203.0.113.7"]
        async with await trio.open_tcp_stream(*address) as stream:
            answer = dns.message.from_wire(await ask_tcp(stream, OTHER.to_wire()))
        assert addresses(answer) == ["203.0.113.7"]


async def test_name_servers_that_are_silent_or_none(autojump_clock: MockClock):
    """failures: bounded, and told: SERVFAIL."""
    for servers in ([], [("192.0.2.1", 53)]):
        stub = stub_of("system", name_servers=lambda servers=servers: servers)

        async def wait_forever(*_args) -> None:
            await trio.sleep_forever()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("relaycore.edge.connect.dns.ask_udp", wait_forever)
            began = trio.current_time()
            answer = dns.message.from_wire(await stub.answer(OTHER.to_wire(), is_tcp=False))
            assert trio.current_time() - began == pytest.approx(4.0 * len(servers))
        assert (answer.id, answer.rcode()) == (OTHER.id, dns.rcode.SERVFAIL)
        assert stub.counts == {"failed": 1}


async def test_questions_that_wait_are_few(autojump_clock: MockClock):
    """failures: a flood of questions, and be it the same one, takes no memory beyond a bound."""
    stub = stub_of("system", name_servers=lambda: [("192.0.2.1", 53)])

    async def wait_forever(*_args) -> None:
        await trio.sleep_forever()

    async def ask() -> None:
        await stub.answer(OTHER.to_wire(), is_tcp=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relaycore.edge.connect.dns.ask_udp", wait_forever)
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 256
            assert stub.counts == {"failed": 744}
    assert stub.counts == {"failed": 1000}
    assert addresses(ask_nowait(stub, dns.message.make_query("sqldb", "A"))) == ["127.77.1.1"]


async def test_a_question_in_a_circle_ends(autojump_clock: MockClock):
    """connection manager 8.6: loop-safe, where one of the system's name servers asks us again."""
    asked = 0
    stub: DnsStub

    async def ask_us(_server: tuple[str, int], query: bytes) -> bytes | None:
        nonlocal asked
        asked += 1
        return await stub.answer(b"zz" + query[2:], is_tcp=False)

    stub = stub_of("system", name_servers=lambda: [("192.0.2.1", 53)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relaycore.edge.connect.dns.ask_udp", ask_us)
        answer = dns.message.from_wire(await stub.answer(OTHER.to_wire(), is_tcp=False))
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert asked == 2
    assert not stub._flights


async def test_it_does_not_ask_itself():
    """connection manager 8.6: our own address in resolv.conf is no name server for us."""
    own: list[tuple[str, int]] = []
    async with open_stub("system", lambda: own) as (address, counts):
        own.append(address)
        answer = dns.message.from_wire(await ask_udp(address, OTHER.to_wire()))
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert counts == {"failed": 1}


async def test_the_same_question_is_asked_once_at_a_time():
    release = trio.Event()

    async def later(query: bytes) -> list[bytes]:
        await release.wait()
        return await say_203(query)

    async with (
        open_name_server(later) as (server, asked),
        open_stub("system", lambda: [server]) as (address, _),
        trio.open_nursery() as nursery,
    ):
        answers: list[dns.message.Message] = []

        async def ask(number: int) -> None:
            query = number.to_bytes(2, "big") + OTHER.to_wire()[2:]
            answers.append(dns.message.from_wire(await ask_udp(address, query)))

        for number in range(20):
            nursery.start_soon(ask, number)
        while not asked:
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.05)
        release.set()
        while len(answers) < 20:
            await trio.sleep(0.001)
        assert {answer.id for answer in answers} == set(range(20))
        assert all(addresses(answer) == ["203.0.113.7"] for answer in answers)
        assert len(asked) == 1


async def test_too_many_questions_fail_at_once():
    stub = stub_of("system", name_servers=lambda: [("192.0.2.1", 53)])

    async def wait_forever(*_args) -> None:
        await trio.sleep_forever()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relaycore.edge.connect.dns.ask_udp", wait_forever)
        async with trio.open_nursery() as nursery:
            for number in range(256):
                query = dns.message.make_query(f"n{number}.example", "A").to_wire()
                nursery.start_soon(partial(stub.answer, query, is_tcp=False))
            await trio.testing.wait_all_tasks_blocked()
            answer = dns.message.from_wire(await stub.answer(OTHER.to_wire(), is_tcp=False))
            assert answer.rcode() == dns.rcode.SERVFAIL
            nursery.cancel_scope.cancel()
    assert not stub._flights


def test_the_systems_name_servers(tmp_path: Path):
    """resolv.conf(5): the first three nameserver lines."""
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# c\nnameserver 10.0.0.1\nsearch x\nnameserver fe80::1%eth0\n nameserver 2001:db8::1 # x\nnameserver\n"
        "nameserver nonsense\nnameserver 10.0.0.4\n"
    )
    assert system_name_servers(path) == [("10.0.0.1", 53), ("fe80::1%eth0", 53), ("2001:db8::1", 53)]
    assert system_name_servers(tmp_path / "missing") == []


def test_opcodes_have_the_askers_bits():
    query = dns.message.make_query("a", "A")
    query.set_opcode(dns.opcode.STATUS)
    answer = ask_nowait(stub_of(), query)
    assert (answer.opcode(), answer.rcode()) == (dns.opcode.STATUS, dns.rcode.NOTIMP)
    assert answer.flags & dns.flags.RD


def test_a_name_that_is_excepted_is_none_of_ours():
    names = [Redirection("sql", "*.corp.example", "127.77.0.1", 1433)]
    zone = Zone(names, POOL, ["Relay.corp.example."])
    assert zone.find(dns.name.from_text("relay.corp.example.")) is None
    found = zone.find(dns.name.from_text("sql.corp.example."))
    assert found is not None
    assert found[1] == "127.77.0.1"
