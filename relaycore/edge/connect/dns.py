"""A stub resolver for the configured names, over UDP and TCP.

Hosts files know no wildcards, and some programs do not read them (connection manager 7); those ask here. What is known
is answered with the forward's address, for a short time to live. Other names are refused, or passed on to the system's
name servers as they came.

Facts, and what follows:

- A name has an IPv4 address only, as Linux gives out whole 127.0.0.0/8 but only one ::1. Questions for AAAA or HTTPS
  are answered with nothing, so that a program goes on with A at once; a refusal would have it try the next name server.
- Those who ask may be resolvers that ask again on behalf of others, and one of the system's name servers may be just
  the resolver that asks us. Nothing that is an answer itself is ever answered, and the same question is passed on once
  at a time, so that a question that goes in a circle waits for itself until it times out, and grows no more.

Source: RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 7766 (TCP); connection manager 8.6.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from ...errors import ConfigError, RemoteProtocolError
from ..config.settings import ConnectSettings, DnsSettings, ListenAt
from .listeners import ListenFailed, LocalListener, open_local
from .loopback import parse_pool
from .status import Redirection

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.opcode
    import dns.rcode
    import dns.rdataclass
    import dns.rdatatype
    import dns.reversename
    import dns.rrset
except ImportError as error:
    raise ConfigError("the DNS stub needs the package dnspython: pip install 'relaycore[edge]'") from error

__all__ = [
    "Answered",
    "DnsStub",
    "OpenedDns",
    "Zone",
    "ask_tcp",
    "ask_udp",
    "build_question",
    "open_dns",
    "read_answer",
    "serve_dns",
    "system_name_servers",
]

DEFAULT_POOL: Final = ConnectSettings().pool

_OUR_PAYLOAD: Final = 1_232
"""Bytes of UDP that we announce: fits into every path's packets (DNS flag day 2020)."""

_MAX_MESSAGE: Final = 65_535
_HEADER: Final = 12

_MAX_PASSED_ON: Final = 256
"""Questions that wait for the system's name servers; further ones fail, also if they are the same."""

_MAX_TCP: Final = 64
"""Connections at one time; further ones are closed."""

_TCP_IDLE_S: Final = 10.0
"""Silence after which a TCP connection is closed (RFC 7766 6.2.3 asks for seconds)."""

_UPSTREAM_TIMEOUT: Final = 2.0
"""Seconds for one name server to answer; each is asked twice over UDP, as glibc does, within less time than its 5."""


# What is known -------------------------------------------------------------------------------------------------------


class Zone:
    """Names and addresses, ready to be looked up.

    Args:
      redirections: names and addresses; a name of two forwards leads to the first one's.
      pool: network of the forwards' addresses; for those, the question for a name (PTR) is answered.
      excepted: names that are none of ours, also where a ``*.suffix`` covers them.
    """

    def __init__(self, redirections: Iterable[Redirection], pool: str, excepted: Iterable[str] = ()) -> None:
        self._pool = parse_pool(pool)
        self._excepted: set[dns.name.Name] = set()
        for host in excepted:
            with contextlib.suppress(dns.exception.DNSException):
                self._excepted.add(dns.name.from_text(host.rstrip(".").lower()))
        self._exact: dict[dns.name.Name, str] = {}
        self._below: dict[dns.name.Name, str] = {}
        self._names: dict[str, list[dns.name.Name]] = {}
        for found in redirections:
            try:
                name = dns.name.from_text(found.host.removeprefix("*.").rstrip(".").lower())
            except dns.exception.DNSException:
                continue  # no name that DNS could ask for
            if found.host.startswith("*."):
                self._below.setdefault(name, found.address)
            else:
                self._exact.setdefault(name, found.address)
                names = self._names.setdefault(found.address, [])
                if name not in names:  # as it is for each port that is another forward's
                    names.append(name)

    def find(self, name: dns.name.Name) -> tuple[dns.name.Name, str] | None:
        """The address of a name, and the name that answers for it: exact, or the longest ``*.suffix`` above."""
        if name in self._excepted:
            return None
        address = self._exact.get(name)
        if address is not None:
            return name, address
        suffix = name
        while self._below and len(suffix) > 1:
            suffix = suffix.parent()
            address = self._below.get(suffix)
            if address is not None:
                return suffix, address
        return None

    def find_names(self, name: dns.name.Name) -> list[dns.name.Name] | None:
        """The names of an address, asked for as ``d.c.b.a.in-addr.arpa``; None: it is none of the pool's."""
        try:
            address = dns.reversename.to_address(name)
            if ipaddress.ip_address(address) not in self._pool:
                return None
        except (dns.exception.DNSException, ValueError):
            return None
        return self._names.get(address, [])


@dataclass(frozen=True, slots=True)
class _Reply:
    data: bytes
    result: str


# Answers -------------------------------------------------------------------------------------------------------------


@dataclass
class _Flight:
    """A question under way to the system's name servers, and whoever waits for its answer."""

    has_landed: trio.Event = field(default_factory=trio.Event)
    answer: bytes | None = None


class DnsStub:
    """Answers questions; see `serve_dns`.

    Args:
      settings: time to live, and what becomes of other names.
      redirections: names and addresses as they are now; asked for each question.
      pool, excepted: see `Zone`; the latter asked for each question.
      name_servers: the system's; for ``upstream``.
      counts: of results, the label of ``dns_queries_total`` (8.10): ``answered``, ``empty``, ``unknown``, ``refused``,
        ``passed-on``, ``failed``, ``malformed``.

    Attributes:
      own_addresses: addresses of this stub, which are never asked. For whoever opens sockets.

    Raises:
      ConfigError: the pool is none.
    """

    def __init__(
        self,
        settings: DnsSettings,
        redirections: Callable[[], Iterable[Redirection]],
        *,
        pool: str,
        excepted: Callable[[], Iterable[str]] = tuple,
        name_servers: Callable[[], Sequence[tuple[str, int]]] | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self.own_addresses: set[tuple[str, int]] = set()
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._settings = settings
        self._redirections = redirections
        self._pool = pool
        self._name_servers = name_servers or system_name_servers
        self._excepted = excepted
        self._seen: tuple[tuple[Redirection, ...], tuple[str, ...]] = (), ()
        self._zone = Zone((), pool)
        self._flights: dict[tuple[bool, bytes], _Flight] = {}
        self._waiting = 0

    async def answer(self, query: bytes, *, is_tcp: bool) -> bytes | None:
        """Answer one message; None: it deserves no answer. A checkpoint only where the question is passed on."""
        reply = self._answer_nowait(query, is_tcp)
        if reply is None:
            passed = await self._pass_on(query, is_tcp)
            reply = (
                _Reply(passed, "passed-on") if passed else _Reply(_short_answer(query, dns.rcode.SERVFAIL), "failed")
            )
        self.counts[reply.result] += 1
        return reply.data or None

    def _answer_nowait(self, wire: bytes, is_tcp: bool) -> _Reply | None:
        """The answer, or None where the system's name servers know more."""
        if len(wire) < _HEADER or wire[2] & 0x80:  # no header, or an answer
            return _Reply(b"", "malformed")
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return _Reply(_short_answer(wire, dns.rcode.FORMERR), "malformed")
        if query.opcode() != dns.opcode.QUERY:
            return _Reply(_short_answer(wire, dns.rcode.NOTIMP), "malformed")
        if len(query.question) != 1:
            return _Reply(_short_answer(wire, dns.rcode.FORMERR), "malformed")
        response = dns.message.make_response(query, recursion_available=True, our_payload=_OUR_PAYLOAD)
        result = self._fill(query, response)
        if result is None:
            return None
        max_bytes = _MAX_MESSAGE if is_tcp else max(query.payload, 512) if query.edns >= 0 else 512
        try:
            data = response.to_wire(max_size=max_bytes)
        except dns.exception.TooBig:
            response.answer.clear()
            response.authority.clear()
            response.flags |= dns.flags.TC
            data = response.to_wire(max_size=max_bytes)
        return _Reply(data, result)

    def _fill(self, query: dns.message.Message, response: dns.message.Message) -> str | None:
        """Write the answer; returns its name for the counter, or None where it is not ours to give."""
        if query.edns > 0:
            response.set_rcode(dns.rcode.BADVERS)
            return "malformed"
        question = query.question[0]
        if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            response.set_rcode(dns.rcode.REFUSED)
            return "refused"
        zone = self._current_zone()
        found = zone.find(question.name)
        names = zone.find_names(question.name) if found is None else None
        if found is None and names is None:
            if self._settings.upstream == "system":
                return None
            response.set_rcode(dns.rcode.REFUSED)
            return "refused"
        response.flags |= dns.flags.AA
        if found is not None and question.rdtype in (dns.rdatatype.A, dns.rdatatype.ANY):
            response.answer.append(self._record(question.name, "A", found[1]))
            return "answered"
        if names and question.rdtype in (dns.rdatatype.PTR, dns.rdatatype.ANY):
            response.answer.append(self._record(question.name, "PTR", *(name.to_text() for name in names)))
            return "answered"
        # RFC 2308: how long the absence holds, told by the authority for it, which is this very name.
        values = f"relaycore.invalid. hostmaster.relaycore.invalid. 1 3600 600 86400 {self._settings.ttl_s}"
        response.authority.append(self._record(found[0] if found is not None else question.name, "SOA", values))
        if names == []:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return "unknown"
        return "empty"

    def _record(self, owner: dns.name.Name, kind: str, *values: str) -> dns.rrset.RRset:
        return dns.rrset.from_text(owner, self._settings.ttl_s, "IN", kind, *values)

    def _current_zone(self) -> Zone:
        seen = tuple(self._redirections()), tuple(self._excepted())
        if seen != self._seen:
            self._zone = Zone(seen[0], self._pool, seen[1])
            self._seen = seen
        return self._zone

    # Passing on ------------------------------------------------------------------------------------------------------

    async def _pass_on(self, query: bytes, is_tcp: bool) -> bytes | None:
        if self._waiting >= _MAX_PASSED_ON:
            return None
        self._waiting += 1
        try:
            return await self._wait_for_answer(query, is_tcp)
        finally:
            self._waiting -= 1

    async def _wait_for_answer(self, query: bytes, is_tcp: bool) -> bytes | None:
        key = is_tcp, query[2:]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            try:
                flight.answer = await self._ask_each(query, is_tcp)
            finally:
                del self._flights[key]
                flight.has_landed.set()
        else:
            await flight.has_landed.wait()
        return query[:2] + flight.answer[2:] if flight.answer else None

    async def _ask_each(self, query: bytes, is_tcp: bool) -> bytes | None:
        servers = [server for server in self._name_servers() if server not in self.own_addresses]
        ask = ask_tcp if is_tcp else ask_udp
        for server in servers * (1 if is_tcp else 2):
            with trio.move_on_after(_UPSTREAM_TIMEOUT), contextlib.suppress(OSError, trio.BrokenResourceError):
                answer = await ask(server, query)
                if answer is not None:
                    return answer
        return None

    # Sockets ---------------------------------------------------------------------------------------------------------

    async def serve_udp(self, sock: trio.socket.SocketType) -> None:
        """Answer datagrams until cancelled. The socket is bound, and stays the caller's."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    query, peer = await sock.recvfrom(_MAX_MESSAGE)
                except ConnectionError:  # an answer that nobody wanted came back as such
                    continue
                # Tasks are few: whatever is not passed on is done before it ever waits, and that is bounded.
                nursery.start_soon(self._answer_datagram, sock, query, peer)

    async def _answer_datagram(self, sock: trio.socket.SocketType, query: bytes, peer: tuple[object, ...]) -> None:
        answer = await self.answer(query, is_tcp=False)
        if answer is not None:
            with contextlib.suppress(OSError):  # whoever asked has gone, or a firewall is in between
                await sock.sendto(answer, peer)

    async def serve_tcp(self, listener: LocalListener) -> None:
        """Answer connections until cancelled. Owns the listener."""
        open_now: set[trio.SocketStream] = set()

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                if len(open_now) >= _MAX_TCP:
                    return
                open_now.add(stream)
                try:
                    await self._serve_stream(stream)
                except trio.BrokenResourceError:
                    return
                finally:
                    open_now.discard(stream)

        async with trio.open_nursery() as nursery:
            await listener.serve(serve, nursery)

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        while True:
            with trio.move_on_after(_TCP_IDLE_S) as scope:
                query = await _receive_framed(stream)
            if scope.cancelled_caught or query is None:
                return
            answer = await self.answer(query, is_tcp=True)
            if answer is None:
                return
            with trio.move_on_after(_TCP_IDLE_S) as scope:
                await stream.send_all(len(answer).to_bytes(2, "big") + answer)
            if scope.cancelled_caught:
                return


def _short_answer(query: bytes, rcode: int) -> bytes:
    """An answer to what cannot be read any further: the header alone."""
    return query[:2] + bytes((0x80 | (query[2] & 0x79), 0x80 | rcode)) + bytes(8)


# The system's name servers -------------------------------------------------------------------------------------------


def system_name_servers(path: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """Addresses and ports of the name servers that resolv.conf(5) names; none if it cannot be read."""
    found: list[tuple[str, int]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(words[1])
                found.append((words[1], 53))
    return found[:3]


async def ask_udp(server: tuple[str, int], query: bytes) -> bytes | None:
    """Ask a name server; its answer, under another number than the question's. Deadlines are the caller's.

    Raises:
      OSError: it cannot be asked, or refuses.
    """
    family = trio.socket.AF_INET6 if ":" in server[0] else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(server)
        sent = secrets.token_bytes(2) + query[2:]
        await sock.send(sent)
        while True:
            answer = await sock.recv(_MAX_MESSAGE)
            if _fits(sent, answer):
                return bytes(answer)


async def ask_tcp(server: tuple[str, int], query: bytes) -> bytes | None:
    """As `ask_udp`, over TCP; None: it hung up, or answered something else.

    Raises:
      OSError, trio.BrokenResourceError: the connection failed, or broke.
    """
    async with await trio.open_tcp_stream(*server) as stream:
        sent = secrets.token_bytes(2) + query[2:]
        await stream.send_all(len(sent).to_bytes(2, "big") + sent)
        answer = await _receive_framed(stream)
        return answer if answer is not None and _fits(sent, answer) else None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a name server says, for people.

    Attributes:
      records: in the form of a zone file.
      word: ``NOERROR``, ``NXDOMAIN``, ``REFUSED``, ...
      is_cut: the rest comes over TCP only.
    """

    records: tuple[str, ...]
    word: str
    is_cut: bool


def build_question(name: str, kind: str) -> bytes:
    """A question for a name server.

    Raises:
      ConfigError: the name or the type is none.
    """
    try:
        return dns.message.make_query(name, kind.upper(), use_edns=0).to_wire()
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ConfigError(f"{name!r} {kind!r} is no question for DNS: {error}") from error


def read_answer(data: bytes) -> Answered:
    """Read what came back.

    Raises:
      RemoteProtocolError: it is no message.
    """
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError) as error:
        raise RemoteProtocolError(f"the answer is no DNS message: {error}", section="RFC 1035 4") from error
    records = [line for rrset in message.answer for line in rrset.to_text().splitlines()]
    return Answered(tuple(records), dns.rcode.to_text(message.rcode()), bool(message.flags & dns.flags.TC))


def _fits(query: bytes, answer: bytes) -> bool:
    """Whether an answer is to this question: a stranger who guesses has to guess the identifier too."""
    if len(answer) < _HEADER or answer[:2] != query[:2] or not answer[2] & 0x80:
        return False
    end = _HEADER
    while end < len(query) and query[end]:
        end += 1 + query[end]
    question = query[_HEADER : end + 5]
    return answer[_HEADER : end + 5].lower() == question.lower() or answer[4:6] == b"\0\0"


async def _receive_framed(stream: trio.abc.ReceiveStream) -> bytes | None:
    """One message behind its length; None: the end."""
    head = await _receive_exactly(stream, 2)
    return None if head is None else await _receive_exactly(stream, int.from_bytes(head, "big"))


async def _receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            return None
        data += piece
    return data


# Serving -------------------------------------------------------------------------------------------------------------


@dataclass
class OpenedDns:
    """The open sockets of one address.

    Attributes:
      shown: for people.
      address: host and port, the same for both.
    """

    shown: str
    address: tuple[str, int]
    udp: trio.socket.SocketType = field(repr=False)
    tcp: LocalListener | None = field(repr=False)

    def close(self) -> None:
        """Close both. Not a checkpoint; may be called again."""
        self.udp.close()
        if self.tcp is not None:
            self.tcp.close()


async def open_dns(at: ListenAt) -> OpenedDns:
    """Open UDP and TCP of an address, or UDP alone where that is asked for.

    Args:
      at: with port 0, a free one for both.

    Raises:
      ListenFailed: says why.
    """
    if at.kind == "unix" or at.host == "auto":
        raise ListenFailed(
            f"cannot answer DNS on {at}: give an address and a port, such as 127.0.0.153:5353", is_port=False
        )
    tcp: LocalListener | None = None
    host, port = at.host, at.port
    if at.kind == "tcp":
        tcp = await open_local(at)
        host, port = tcp.sockets[0].socket.getsockname()[:2]
    try:
        family, _, _, _, name = (await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM))[0]
        udp = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind(name)
        except BaseException:
            udp.close()
            raise
    except OSError as error:
        if tcp is not None:
            tcp.close()
        advice = "ports below 1024 need a privilege" if isinstance(error, PermissionError) else "choose another address"
        raise ListenFailed(
            f"cannot answer DNS on udp:{host}:{port}: {error.strerror or error}; {advice}", is_port=True
        ) from error
    address = udp.getsockname()[:2]
    shown = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    return OpenedDns(shown, address, udp, tcp)


async def serve_dns(
    settings: DnsSettings,
    redirections: Callable[[], Iterable[Redirection]],
    *,
    pool: str = DEFAULT_POOL,
    excepted: Callable[[], Iterable[str]] = tuple,
    name_servers: Callable[[], Sequence[tuple[str, int]]] | None = None,
    counts: Counter[str] | None = None,
    open_at: Callable[[ListenAt], Awaitable[OpenedDns]] = open_dns,
    task_status: trio.TaskStatus[tuple[OpenedDns, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on every address of the settings until cancelled.

    Args:
      settings, redirections, pool, excepted, name_servers, counts: see `DnsStub`.
      open_at: opens an address; another one may open it elsewhere, as in a network namespace.
      task_status: gets what was opened.

    Raises:
      ConfigError: the pool is none, or an address cannot be opened (`ListenFailed`); none stays open then.
    """
    stub = DnsStub(settings, redirections, pool=pool, excepted=excepted, name_servers=name_servers, counts=counts)
    with contextlib.ExitStack() as stack:
        opened: list[OpenedDns] = []
        for at in settings.listen:
            found = await open_at(at)
            stack.callback(found.close)
            opened.append(found)
        stub.own_addresses.update(found.address for found in opened)
        async with trio.open_nursery() as nursery:
            for found in opened:
                nursery.start_soon(stub.serve_udp, found.udp)
                if found.tcp is not None:
                    nursery.start_soon(stub.serve_tcp, found.tcp)
            task_status.started(tuple(opened))
