"""The same requests by common HTTP clients, direct and through the relay: what the origin saw and what the client got.

Whatever may differ stands in `DIFFERENCES`, each with the section that allows it. All of them are applied to what was
seen and got without the relay; then the two must be equal.
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import trio
from interop.http_origin import ORDER, Answer, Seen, direct_origin, hyco_https_listener, our_http_listener, pattern
from interop.http_senders import SENDERS, Case, Got, RawSender
from interop.peers import Target
from interop.relay import run_relay

pytestmark = pytest.mark.interop

Lines = tuple[tuple[str, str], ...]

# What may differ ----------------------------------------------------------------------------------------------------

HOP_BY_HOP = {
    "connection", "upgrade", "content-length", "transfer-encoding", "te", "trailer", "close", "keep-alive",
    "proxy-connection",
}  # fmt: skip


MADE_ANEW = {"content-length", "transfer-encoding", "connection"}
"""What the relay says of its own connection to the client; whether it is true, the clients find out."""


@dataclass(frozen=True)
class Difference:
    """Something that the relay does to a request or to its answer.

    Attributes:
      section: of the wire contract, or the RFC, that allows it.
      seen: makes what the listener sees out of what the origin saw.
      got: makes what the client gets through the relay out of what it got without.
    """

    what: str
    section: str
    seen: Callable[[Seen], Seen] = lambda seen: seen
    got: Callable[[Got, Case], Got] = lambda got, case: got


def _nominated(lines: Lines) -> set[str]:
    values = ",".join(value for name, value in lines if name.lower() == "connection")
    return {member.strip(" \t").lower() for member in values.split(",")} - {"host", "via"}


def _without(lines: Lines, names: set[str]) -> Lines:
    return tuple((name, value) for name, value in lines if name.lower() not in names)


def _joined(lines: Lines, *, apart: frozenset[str] = frozenset()) -> Lines:
    """Lines of one name as one line, at the place and in the spelling of the first."""
    found: dict[str, tuple[str, str]] = {}
    result: list[tuple[str, str]] = []
    for name, value in lines:
        key = name.lower()
        if key in apart:
            result.append((name, value))
        elif key in found:
            place = result.index(found[key])
            between = "; " if key == "cookie" else ", "
            found[key] = result[place] = (found[key][0], f"{found[key][1]}{between}{value}")
        else:
            found[key] = (name, value)
            result.append(found[key])
    return tuple(result)


def _with_via(lines: Lines, name: str = "Via") -> Lines:
    via = [value for found, value in lines if found.lower() == "via"]
    return (*_without(lines, {"via"}), (name, ", ".join([*via, "1.1 ADDRESS"])))


def _stripped(target: str) -> str:
    path, mark, query = target.partition("?")
    kept = [piece for piece in query.split("&") if "=" not in piece or not _is_ours(piece)] if mark else []
    query = "&".join(kept)
    return f"{path}?{query}" if query else path


def _is_ours(piece: str) -> bool:
    return unquote(piece.partition("=")[0]).lower().startswith("sb-hc-")


def _blanks(target: str) -> str:
    path, mark, query = target.partition("?")
    return path.replace("%20", " ") + mark + query


def _credential_removed(lines: Lines) -> Lines:
    lines = _without(lines, {"servicebusauthorization"})
    return tuple(pair for pair in lines if not pair[1].startswith("SharedAccessSignature"))


def _media_type(got: Got, case: Case, *, by_node: bool = False) -> Got:
    has_type = any(name.lower() == "content-type" for name, _ in got.headers)
    content = case.answer.body(pattern(case.bytes or 0))
    if has_type or not (content or by_node) or case.method == "HEAD" or got.status in (204, 304):
        return got
    return replace(got, headers=(*got.headers, ("Content-Type", "application/octet-stream")))


DIFFERENCES = (
    Difference(
        "the target has lost the relay's own parameters",
        "2.4",
        seen=lambda seen: replace(seen, target=_stripped(seen.target)),
    ),
    Difference(
        "an absolute target arrives in origin form",
        "9.3",
        seen=lambda seen: replace(seen, target=seen.target.removeprefix("http://ADDRESS")),
    ),
    Difference(
        "%20 in the path is a blank",
        "9.4",
        seen=lambda seen: replace(seen, target=_blanks(seen.target)),
    ),
    Difference(
        "the credential is gone",
        "5.1",
        seen=lambda seen: replace(seen, headers=_credential_removed(seen.headers)),
    ),
    Difference(
        "what concerned one connection is gone: framing, Connection, what it names; all this is made anew",
        "10",
        seen=lambda seen: replace(seen, headers=_without(seen.headers, HOP_BY_HOP | _nominated(seen.headers))),
        got=lambda got, case: replace(got, headers=_without(got.headers, HOP_BY_HOP | _nominated(got.headers))),
    ),
    Difference(
        "Expect was answered by the relay",
        "10",
        seen=lambda seen: replace(seen, headers=_without(seen.headers, {"expect"})),
    ),
    Difference(
        "lines of one name are one line; Set-Cookie keeps its lines",
        "10",
        seen=lambda seen: replace(seen, headers=_joined(seen.headers)),
        got=lambda got, case: replace(got, headers=_joined(got.headers, apart=frozenset({"set-cookie"}))),
    ),
    Difference(
        "Via names the relay, behind what was there",
        "10 and 9.8",
        seen=lambda seen: replace(seen, headers=_with_via(seen.headers)),
        got=lambda got, case: got if got.failed else replace(got, headers=_with_via(got.headers)),
    ),
    Difference(
        "a body without Content-Type is application/octet-stream",
        "9.8",
        got=lambda got, case: got if got.failed else _media_type(got, case),
    ),
)


NODE_DIFFERENCES = (
    *DIFFERENCES,
    Difference(
        "hyco-https announces a body also where it is empty; that has a type then",
        "9.7 and 9.8",
        got=lambda got, case: _media_type(got, case, by_node=True),
    ),
)


def through_the_relay(seen: Seen) -> Seen:
    """What the listener must see, given what the origin saw."""
    for difference in DIFFERENCES:
        seen = difference.seen(seen)
    return replace(seen, headers=_in_order(seen.headers))


def from_the_relay(got: Got, case: Case, differences: Iterable[Difference] = DIFFERENCES) -> Got:
    """What the client must get through the relay, given what it got without."""
    for difference in differences:
        got = difference.got(got, case)
    return replace(got, headers=_in_order(got.headers))


def framed_anew(got: Got) -> Got:
    """What the client got through the relay, but for the relay's own framing."""
    return replace(got, headers=_without(got.headers, MADE_ANEW))


def _in_order(lines: Lines) -> Lines:
    """Lines by name; lines of one name keep their order (RFC 9110 5.3 makes nothing of the rest)."""
    return tuple(sorted(lines, key=lambda pair: pair[0].lower()))


def _anywhere(value: str, base_url: str) -> str:
    """The same text with ``ADDRESS`` for the host and port that a test happened to have."""
    return value.replace(base_url.partition("://")[2], "ADDRESS")


def neutral(seen: Seen, base_url: str) -> Seen:
    headers = tuple((name, _anywhere(value, base_url)) for name, value in seen.headers if name.lower() != ORDER.lower())
    return replace(seen, target=_anywhere(seen.target, base_url), headers=_in_order(headers))


def neutral_got(got: Got, base_url: str) -> Got:
    headers = tuple((name, _anywhere(value, base_url)) for name, value in got.headers)
    return replace(got, headers=_in_order(headers))


# The requests -------------------------------------------------------------------------------------------------------

ODD_NAME = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ODD_VALUE = "\"'(){}[]<>=/,:;@\\ |~ \xe4\xff"

QUERIES = (
    "?a=1&a=2&", "?&&&", "?&foo=bar", "?sb-hc-undefined", "?+", "?%2B", "?%20", "?%2f%3a%3d%26", "?", "?sb-hc-id=1",
    "?sb-hc-id=1&custom=value", "?custom=value&sb-hc-id=1", "?sb-hc-undefined=true", "?sb-hc-whatever=&foo=bar",
    "?api-version=abc", "?key='value'", "?SB-HC-Id=1&x", "?%73b-hc-x=1&y=2", "?a=b=c&d==",
)  # fmt: skip
"""The table of section 2.4 and some more."""

PATHS = (
    "/a/b",
    "/",
    "//a//",
    "/a%20b/%20%20c",
    "/%2F%2f%25%3F%23",
    "/%E4%f6",
    "/a;b=c,d",
    "/.../a/./b",
    "/~!$&'()*+,;=:@",
)

STATUSES = (
    200, 201, 202, 203, 204, 205, 206, 207, 226, 299, 300, 301, 302, 303, 304, 306, 307, 308, 400, 401, 402, 404, 405,
    406, 407, 409, 410, 411, 412, 413, 415, 416, 418, 422, 426, 429, 431, 450, 451, 500, 501, 502, 503, 504, 505, 599,
)  # fmt: skip

NO_CONTENT = (204, 205, 304)

NO_FETCH = {"fetch": "the Fetch standard forbids it"}
NO_DICT = {"requests": "its headers are a mapping", "fetch": "joins them by itself"}

METHODS = (
    *(
        Case(f"{method} without a body", method, answer=Answer(content=5))
        for method in ("GET", "HEAD", "OPTIONS", "DELETE")
    ),
    *(
        Case(f"{method} with a body", method, bytes=17, answer=Answer(content="echo"))
        for method in ("POST", "PUT", "PATCH", "DELETE", "FROB-1")
    ),
    Case("TRACE", "TRACE", answer=Answer(content=3), without=NO_FETCH),
    Case("an invented method without a body", "X_any", answer=Answer(content=3)),
    Case("HEAD of something long", "HEAD", answer=Answer(content=100_000)),
)

HEADERS = (
    Case("an odd name and value", headers=((ODD_NAME, ODD_VALUE),), answer=Answer(headers=((ODD_NAME, ODD_VALUE),))),
    Case("an odd reason", answer=Answer(reason="\"'(){}[]<>=/,:;@\\ |~ x", content=1)),
    Case("an empty reason", answer=Answer(reason="", content=1)),
    Case("an empty value", headers=(("X-Empty", ""),), answer=Answer(headers=(("X-Empty", ""),))),
    Case(
        "repeated headers",
        headers=(("X-Repeated", "requestValue1"), ("x-between", "1"), ("x-repeated", "requestValue2")),
        answer=Answer(headers=(("X-Repeated", "a"), ("X-Between", "1"), ("X-REPEATED", "b, c"))),
        without=NO_DICT,
    ),
    Case(
        "cookies",
        headers=(("Cookie", "a=1; b=2"),),
        answer=Answer(headers=(("Set-Cookie", "a=1, x"), ("Set-Cookie", "b=2"))),
    ),
    Case("repeated cookies", headers=(("Cookie", "a=1"), ("Cookie", "b=2")), without=NO_DICT),
    Case("Authorization of the application", headers=(("Authorization", "Bearer abc"),)),
    Case(
        "what Connection names",
        headers=(("Connection", "X-Gone, keep-alive"), ("X-Gone", "1"), ("X-Stays", "1"), ("Keep-Alive", "timeout=9")),
        answer=Answer(headers=(("Connection", "X-Gone, keep-alive"), ("X-Gone", "1"), ("X-Stays", "1"))),
        without=NO_FETCH,
    ),
    Case("TE and Trailer", headers=(("TE", "trailers"), ("Trailer", "X-Sum")), without=NO_FETCH),
    Case(
        "another proxy before us",
        headers=(("Via", "1.0 fred"),),
        answer=Answer(headers=(("Via", "1.1 behind"),)),
        without=NO_FETCH,
    ),
    Case(
        "headers of contents and caches",
        headers=(("If-None-Match", '"x"'), ("Range", "bytes=0-4"), ("Accept-Language", "de, en;q=0.5")),
        answer=Answer(
            206,
            headers=(
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Range", "bytes 0-4/9"),
                ("ETag", '"x"'),
                ("Cache-Control", "no-store"),
                ("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
                ("Date", "x"),
                ("Allow", "GET"),
                ("Expires", "0"),
                ("Vary", "*"),
                ("Content-Disposition", 'attachment; filename="a"'),
                ("Content-Language", "de"),
                ("Content-Location", "/x"),
                ("Strict-Transport-Security", "max-age=1"),
            ),
            content=5,
        ),
    ),
    Case(
        "many headers",
        headers=tuple((f"X-Number-{n}", "v" * 100) for n in range(60)),
        answer=Answer(headers=tuple((f"X-{n}", "v" * 200) for n in range(60))),
    ),
    Case(
        "gzip",
        headers=(("Accept-Encoding", "gzip"),),
        answer=Answer(
            headers=(("Content-Encoding", "gzip"), ("Content-Type", "text/plain")),
            content=gzip.compress(b"hello " * 1000, mtime=0),
        ),
    ),
    Case("the token in the query", target="?a=1&sb-hc-token=TOKEN&b=%20"),
    Case("the token in Authorization", headers=(("Authorization", "TOKEN"),)),
    Case("a redirection", answer=Answer(302, headers=(("Location", "/elsewhere?x=1"),))),
    Case("trailing blanks", headers=(("X-Blanks", "a  b"),), answer=Answer(headers=(("X-Blanks", "a \t b"),))),
)

TARGETS = tuple(Case(f"target {target}", target=target) for target in (*PATHS, *QUERIES, "/a%20b?c=%20d"))

CODES = tuple(
    Case(
        f"status {status}",
        answer=Answer(status, f"Reason {status}", (("X-Status", str(status)),), 0 if status in NO_CONTENT else 4),
    )
    for status in STATUSES
)

SIZES = (0, 1, 65_535, 65_536, 65_537, 1 << 20)
BODIES = (
    *(Case(f"{size} B up, sized", "POST", bytes=size) for size in SIZES),
    *(Case(f"{size} B up, chunked", "POST", bytes=size, chunked=True) for size in SIZES),
    *(Case(f"{size} B down, sized", answer=Answer(content=size)) for size in SIZES),
    *(Case(f"{size} B down, chunked", answer=Answer(content=size, framing="chunked")) for size in SIZES),
    *(Case(f"{size} B down, until the end", answer=Answer(content=size, framing="close")) for size in SIZES),
    *(Case(f"{size} B echoed", "POST", bytes=size, answer=Answer(content="echo")) for size in SIZES),
    Case("100 000 B streamed back and forth, sized", "POST", bytes=100_000, answer=Answer(content="stream")),
    Case(
        "100 000 B streamed back and forth, chunked",
        "POST",
        bytes=100_000,
        chunked=True,
        answer=Answer(content="stream"),
    ),
)

CORPUS = {"methods": METHODS, "headers": HEADERS, "targets": TARGETS, "statuses": CODES, "bodies": BODIES}

BIG = 64 << 20
BOTH_WAYS = Case("64 MiB both ways at once", "POST", bytes=BIG, chunked=True, answer=Answer(content="stream"))
UP_THEN_DOWN = Case(
    "64 MiB up, then down", "POST", bytes=BIG, chunked=True, answer=Answer(content=BIG, framing="chunked")
)


def http_url(target: Target) -> str:
    """Where senders of requests find the relay."""
    return target.base_url.replace("ws", "http", 1)


def for_sender(name: str, cases: Iterable[Case], token: str) -> list[Case]:
    """The cases that a client can do, with the token where each wants it."""
    signed = []
    for case in cases:
        if name in case.without:
            continue
        if "TOKEN" in case.target:
            signed.append(replace(case, target=case.target.replace("TOKEN", quote(token, safe=""))))
        elif any(value == "TOKEN" for _, value in case.headers):
            signed.append(replace(case, headers=tuple((n, token if v == "TOKEN" else v) for n, v in case.headers)))
        else:
            signed.append(case.signed(token))
    return signed


@dataclass(frozen=True)
class Run:
    """What one way of doing a list of requests came to: through the relay, or directly."""

    base_url: str
    seen: list[Seen]
    got: list[Got]


def compare(
    cases: list[Case],
    direct: Run,
    relayed: Run,
    *,
    fold: Callable[[Lines], Lines] = _in_order,
    differences: Iterable[Difference] = DIFFERENCES,
) -> list[str]:
    """Say what differs without leave.

    Args:
      differences: those that have leave.
      fold: makes header lines of both ways comparable.
    """
    problems = []
    for number, case in enumerate(cases):
        must_see = through_the_relay(neutral(direct.seen[number], direct.base_url))
        sees = neutral(relayed.seen[number], relayed.base_url)
        must_get = from_the_relay(neutral_got(direct.got[number], direct.base_url), case, differences)
        gets = framed_anew(neutral_got(relayed.got[number], relayed.base_url))
        for what, must, found in (("seen", must_see, sees), ("got", must_get, gets)):
            must, found = (replace(each, headers=fold(each.headers)) for each in (must, found))
            if must != found:
                problems.append(f"{case.name}: {what}\n  must be {must}\n  is      {found}")
    return problems


def _in_lower_case(lines: Lines) -> Lines:
    return _in_order(tuple((name.lower(), value) for name, value in lines))


NOT_NODE = {
    "repeated headers": "hyco-https sends the first of them",
    "cookies": "hyco-https sends the first of them",
    "an empty reason": "hyco-https fills in the standard one",
    "HEAD without a body": "hyco-https announces a body, whose type may be told or not",
    "HEAD of something long": "hyco-https announces a body, whose type may be told or not",
}


def show(problems: list[str]) -> None:
    """Fail with what differs, if anything does."""
    if problems:
        pytest.fail(f"{len(problems)} differences:\n" + "\n".join(problems[:5]))


async def do_both(
    name: str, cases: Iterable[Case], target: Target, folder: Path, certificate: Path | None = None
) -> tuple[list[Case], Run, Run]:
    """Do the requests directly and through the relay to a listener of ours; with a certificate, both over TLS."""
    cases = for_sender(name, cases, target.make_token("echo"))
    send, relay_url = SENDERS[name], http_url(target)
    async with direct_origin(certificate) as (origin, url), our_http_listener(target, "echo") as listener:
        direct = Run(url, origin.seen, await send(f"{url}/echo", cases, folder, target.ca_file))
        relayed = Run(relay_url, listener.seen, await send(f"{relay_url}/echo", cases, folder, target.ca_file))
    assert len(direct.seen) == len(relayed.seen) == len(cases)
    return cases, direct, relayed


@pytest.mark.parametrize("part", CORPUS)
@pytest.mark.parametrize("name", SENDERS)
async def test_nothing_else_differs(plain_target: Target, name: str, part: str, tmp_path: Path) -> None:
    """spec 10: what the origin sees and what the client gets is the same but for the listed differences."""
    with trio.fail_after(60):
        cases, direct, relayed = await do_both(name, CORPUS[part], plain_target, tmp_path)
    # fetch gives names in lower case.
    show(compare(cases, direct, relayed, fold=_in_lower_case if name == "fetch" else _in_order))


@pytest.mark.parametrize("name", SENDERS)
async def test_nothing_else_differs_over_tls(certificate: Path, name: str, tmp_path: Path) -> None:
    """spec 4: over TLS, where clients would rather speak HTTP/2, the same requests fare the same."""
    with trio.fail_after(60):
        async with run_relay(certificate) as running:
            cases, direct, relayed = await do_both(name, (*METHODS, *HEADERS), running.target, tmp_path, certificate)
    show(compare(cases, direct, relayed, fold=_in_lower_case if name == "fetch" else _in_order))


@pytest.mark.parametrize("name", SENDERS)
async def test_large_bodies_in_both_directions(plain_target: Target, name: str, tmp_path: Path) -> None:
    """spec 9.2: 64 MiB each way, at once with clients that read while they send."""
    case = BOTH_WAYS if name in ("curl", "fetch") else UP_THEN_DOWN
    with trio.fail_after(60):
        cases, direct, relayed = await do_both(name, [case], plain_target, tmp_path)
    show(compare(cases, direct, relayed, fold=_in_lower_case if name == "fetch" else _in_order))
    assert [(got.status, got.bytes) for got in relayed.got] == [(200, BIG)]


async def test_the_node_sdk_behind_the_relay(plain_target: Target, tmp_path: Path) -> None:
    """spec 10: the same for a listener on hyco-https, which gives names in lower case and one value for each."""
    corpus = [case for part in ("methods", "headers", "targets", "statuses", "bodies") for case in CORPUS[part]]
    cases = [
        case for case in for_sender("httpx2", corpus, plain_target.make_token("echo")) if case.name not in NOT_NODE
    ]
    relay_url = http_url(plain_target)
    with trio.fail_after(60):
        async with direct_origin() as (origin, url), hyco_https_listener(plain_target, "echo") as listener:
            direct = Run(url, origin.seen, await SENDERS["httpx2"](f"{url}/echo", cases, tmp_path, None))
            relayed = Run(relay_url, [], await SENDERS["httpx2"](f"{relay_url}/echo", cases, tmp_path, None))
            await listener.peer.wait("request", len(cases))
    relayed = replace(relayed, seen=listener.seen)
    show(compare(cases, direct, relayed, fold=_in_lower_case, differences=NODE_DIFFERENCES))


# Bytes as they are --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origins:
    """A connection to the origin, one to the relay, and what was seen at the ends of both."""

    direct: RawSender
    relayed: RawSender
    seen: tuple[list[Seen], list[Seen]]
    urls: tuple[str, str]


@pytest.fixture
async def both(plain_target: Target) -> AsyncIterator[Origins]:
    async with direct_origin() as (origin, url), our_http_listener(plain_target, "open") as listener:
        urls = url, http_url(plain_target)
        direct, relayed = [await RawSender.open(each) for each in urls]
        async with direct.stream, relayed.stream:
            yield Origins(direct, relayed, (origin.seen, listener.seen), urls)


AS_USUAL = Answer()


def request(
    line: str,
    answer: Answer = AS_USUAL,
    lines: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    host: str = "ADDRESS",
) -> bytes:
    """A request as bytes, with an order for the origin."""
    fields = [("Host", host), *lines, answer.as_header()]
    return "".join([line, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"]).encode("latin-1") + body


def sized(content: bytes) -> tuple[list[tuple[str, str]], bytes]:
    return [("Content-Length", str(len(content)))], content


def in_chunks(*chunks: bytes) -> tuple[list[tuple[str, str]], bytes]:
    return [("Transfer-Encoding", "chunked")], b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (*chunks, b""))


KEEP_ALIVE_MIX = (
    ("GET", request("GET /open/1 HTTP/1.1", Answer(content=3))),
    ("HEAD", request("HEAD /open/2 HTTP/1.1", Answer(content=3))),
    ("POST", request("POST /open/3 HTTP/1.1", Answer(content="echo"), *sized(b"hello"))),
    ("POST", request("POST /open/4 HTTP/1.1", Answer(content="echo"), *in_chunks(b"hello", b" ", b"there"))),
    ("GET", request("GET /open/5 HTTP/1.1", Answer(204))),
    ("GET", request("GET /open/6 HTTP/1.1", Answer(304, headers=(("ETag", '"x"'),)))),
    ("PUT", request("PUT /open/7 HTTP/1.1", Answer(201), *sized(b""))),
    ("POST", request("POST /open/8 HTTP/1.1", Answer(content=70_000, framing="chunked"), *sized(pattern(70_000)))),
    ("POST", request("POST /open/9 HTTP/1.1", Answer(), *in_chunks())),
    ("GET", request("GET /open/10 HTTP/1.1", Answer(404, content=70_000))),
    ("OPTIONS", request("OPTIONS /open/11 HTTP/1.1", Answer(headers=(("Allow", "GET"),)))),
    ("FROB", request("FROB /open/12 HTTP/1.1", Answer(content="echo"), *in_chunks(pattern(70_000)))),
    ("GET", request("GET /open/13?sb-hc-id=1&x HTTP/1.1", Answer(500, content=1), [("Connection", "close")])),
)
"""All on one connection; the last ends it."""


async def exchange(sender: RawSender, *, pipelined: bool) -> list[tuple[Got, str]]:
    """Do the whole mix, the requests one by one or all of them at once."""
    if pipelined:
        answers = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, b"".join(data for _, data in KEEP_ALIVE_MIX))
            for method, _ in KEEP_ALIVE_MIX:
                answers.append(await sender.receive(method))
        return answers
    answers = []
    for method, data in KEEP_ALIVE_MIX:
        await sender.send(data)
        answers.append(await sender.receive(method))
    return answers


@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "pipelined"])
async def test_many_kinds_of_requests_on_one_connection(both: Origins, pipelined: bool) -> None:
    """spec 9.1: HTTP/1.1 keep-alive and pipelining; each answer in its turn, and the end where it was asked for."""
    direct, relayed = [await exchange(sender, pipelined=pipelined) for sender in (both.direct, both.relayed)]
    assert await both.direct.receive_end() == await both.relayed.receive_end() == b""
    cases = [Case(f"request {number}", method) for number, (method, _) in enumerate(KEEP_ALIVE_MIX)]
    cases = [replace(case, answer=Answer(content=got.bytes)) for case, (got, _) in zip(cases, direct, strict=True)]
    ways = zip(both.urls, both.seen, (direct, relayed), strict=True)
    show(compare(cases, *(Run(url, seen, [got for got, _ in answers]) for url, seen, answers in ways)))
    # 9.8: what is in hand is sized, what came by rendezvous may be chunked.
    for (got, framing), (relay_got, relay_framing) in zip(direct, relayed, strict=True):
        assert relay_framing in ({framing} if relay_got.bytes <= 65_536 else {"sized", "chunked"}), (got, relay_got)


async def test_the_order_of_header_lines_is_kept(both: Origins) -> None:
    """RFC 9110 5.3: lines stay in their order and spelling; Via stands last."""
    lines = [("b", "1"), ("A", "2"), ("a", "3"), ("C", "4"), ("B", "5"), ("c-D", "6")]
    joined = [("b", "1, 5"), ("A", "2, 3"), ("C", "4"), ("c-D", "6")]
    await both.relayed.send(request("GET /open HTTP/1.1", Answer(headers=tuple(lines), content=1), lines))
    got, _ = await both.relayed.receive()
    [seen] = both.seen[1]
    assert [pair for pair in seen.headers if pair[0] not in ("Host", ORDER)] == [*joined, ("Via", "1.1 ADDRESS")]
    assert [pair for pair in got.headers if pair[0] not in ("Content-Type", "Content-Length")] == [
        *joined,
        ("Via", "1.1 ADDRESS"),
    ]


async def test_a_sender_that_asks_before_it_sends(both: Origins) -> None:
    """spec 9.1: Expect: 100-continue is answered by the relay, before anything of the body has come."""
    for sender in (both.direct, both.relayed):
        lines, body = sized(pattern(70_000))
        head = request("POST /open HTTP/1.1", Answer(content="echo"), [*lines, ("Expect", "100-continue")])
        await sender.send(head)
        interim, _ = await sender.receive("POST")
        assert (interim.status, interim.reason) == (100, "Continue")
        await sender.send(body)
        got, _ = await sender.receive("POST")
        assert (got.status, got.bytes) == (200, 70_000)
    assert "Expect" in dict(both.seen[0][0].headers)
    assert "Expect" not in dict(both.seen[1][0].headers)


async def test_a_sender_that_asks_but_does_not_wait(both: Origins) -> None:
    """RFC 9110 10.1.1: a client need not wait for the 100; the one that then comes is no answer."""
    for sender in (both.direct, both.relayed):
        lines, body = in_chunks(b"hello")
        await sender.send(
            request("POST /open HTTP/1.1", Answer(content="echo"), [*lines, ("Expect", "100-continue")], body)
        )
        got, _ = await sender.receive("POST")
        if got.status == 100:
            got, _ = await sender.receive("POST")
        assert (got.status, got.bytes) == (200, 5)


@pytest.mark.parametrize(
    ("answer", "framing"),
    [
        (Answer(content=5), "sized"),
        (Answer(content=100_000, framing="chunked"), "close"),
        (Answer(204), "none"),
        (Answer(), "sized"),
    ],
)
async def test_http_1_0(both: Origins, answer: Answer, framing: str) -> None:
    """spec 9.8: an HTTP/1.0 sender never gets chunks; what has no known length lasts until the end."""
    for sender in (both.direct, both.relayed):
        await sender.send(request("POST /open HTTP/1.0", answer, *sized(b"hello")))
        got, found = await sender.receive("POST")
        assert (got.status, got.bytes) == (answer.status, answer.content)
        assert found in ("none", "sized", "close")
        assert await sender.receive_end() == b""
    assert found == framing or answer.content == 100_000
    assert {(seen.method, seen.bytes) for seen in (*both.seen[0], *both.seen[1])} == {("POST", 5)}


async def test_an_absolute_target(both: Origins) -> None:
    """spec 9.3: the target of a proxy's request arrives in origin form."""
    for sender, url in zip((both.direct, both.relayed), both.urls, strict=True):
        address = url.removeprefix("http://")
        await sender.send(request(f"GET {url}/open/a%20b?x HTTP/1.1", host=address))
        assert (await sender.receive())[0].status == 200
    assert through_the_relay(neutral(both.seen[0][0], both.urls[0])) == neutral(both.seen[1][0], both.urls[1])


async def test_one_byte_at_a_time(both: Origins) -> None:
    """RFC 9112 2.2: how the network cuts a request changes nothing."""
    lines, body = in_chunks(b"hello", pattern(300))
    data = request("POST /open/x?y HTTP/1.1", Answer(content="echo"), lines, body)
    for sender in (both.direct, both.relayed):
        for place in range(len(data)):
            await sender.send(data[place : place + 1])
        assert (await sender.receive("POST"))[0].bytes == 305
    assert through_the_relay(neutral(both.seen[0][0], both.urls[0])) == neutral(both.seen[1][0], both.urls[1])
