"""The Node SDK for HTTP as listener, in its documented uses (wire contract 20.1), and our own library in the same ones.

The published tests of the package also run as they are, over TLS.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from interop.http_origin import (
    ORDER,
    Answer,
    NodeOrigin,
    Origin,
    Seen,
    hyco_https_listener,
    our_http_listener,
    pattern,
)
from interop.http_senders import RawSender
from interop.peers import Target
from interop.relay import run_relay

pytestmark = pytest.mark.interop

SMALL, EXACT, OVER = 12, 65_536, 65_537
"""The three lengths of the published tests."""

LISTENERS: dict[str, Callable[[Target, str], AbstractAsyncContextManager[Origin | NodeOrigin]]] = {
    "hyco-https": hyco_https_listener,
    "ours": our_http_listener,
}


@dataclass
class Line:
    """A connection to the relay, with one of the listeners behind it.

    Attributes:
      folds_names: the listener knows header names in lower case only.
    """

    sender: RawSender
    listener: Origin | NodeOrigin
    folds_names: bool
    url: str
    _asked: int = 0

    async def ask(
        self,
        answer: Answer,
        *writes: int,
        method: str = "POST",
        chunked: bool = False,
        target: str = "/open",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Seen:
        """Do one request with a body written in pieces of these lengths, see that its answer is as ordered.

        Returns: what the listener saw.
        """
        body = pattern(sum(writes))
        lines = [("Host", "ADDRESS"), *headers, answer.as_header()]
        if chunked:
            lines.append(("Transfer-Encoding", "chunked"))
        elif writes:
            lines.append(("Content-Length", str(len(body))))
        text = "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines), "", ""])
        await self.sender.send(text.encode("latin-1"))
        start = 0
        for size in writes:
            piece = body[start : start + size]
            await self.sender.send(b"%x\r\n%b\r\n" % (size, piece) if chunked and size else piece)
            start += size
        if chunked:
            await self.sender.send(b"0\r\n\r\n")
        got, _ = await self.sender.receive(method)
        assert got.status == answer.status, got
        wanted = b"" if method == "HEAD" or answer.status in (204, 304) else answer.body(body)
        assert (got.bytes, got.sha256) == (len(wanted), hashlib.sha256(wanted).hexdigest())
        if answer.reason is not None:
            assert got.reason == answer.reason
        for name, value in answer.headers:
            assert (name.lower() if self.folds_names else name, value) in got.headers
        assert ("Via", "1.1 ADDRESS") in got.headers
        self._asked += 1
        seen = (await self.listener.wait_seen(self._asked))[-1]
        assert (seen.method, seen.target) == (method, target)
        assert (seen.bytes, seen.sha256) == (len(body), hashlib.sha256(body).hexdigest())
        if isinstance(self.listener, NodeOrigin):
            # 9.5: a body is one message, so this listener gets it as one chunk (20.1).
            assert self.listener.chunks[-1] == (1 if body else 0)
        return seen


@pytest.fixture(params=LISTENERS)
async def line(request: pytest.FixtureRequest, plain_target: Target) -> AsyncIterator[Line]:
    async with open_line(plain_target, request.param) as found:
        yield found


@asynccontextmanager
async def open_line(target: Target, listener: str) -> AsyncIterator[Line]:
    url = target.base_url.replace("ws", "http", 1)
    async with LISTENERS[listener](target, "open") as origin:
        sender = await RawSender.open(url)
        async with sender.stream:
            yield Line(sender, origin, listener == "hyco-https", url)


# What the published tests do (20.1) ---------------------------------------------------------------------------------


async def test_get(line: Line) -> None:
    """spec 20.1: HTTPS GET, ten times ``Hello``."""
    for _ in range(10):
        seen = await line.ask(Answer(content=b"Hello"), method="GET", headers=(("Custom", "Hello"),))
        assert "Hello" in dict(seen.headers).values()


async def test_chunked_posts(line: Line) -> None:
    """spec 20.1: HttpChunkedPost; three writes each way, empty, small and large."""
    for large in (OVER, 10 << 20):
        for up, down in ((0, 0), (5, 7), (5, large), (large, 5), (large, large)):
            quarter = down // 4
            answer = Answer(content=down, writes=((quarter, 2),) if quarter else ())
            await line.ask(answer, up // 4, up // 4, up - 2 * (up // 4), chunked=True)


async def test_an_empty_post(line: Line) -> None:
    """spec 20.1: HttpPostEmptyReqEmptyRes."""
    await line.ask(Answer(), 0)


WRITES = (
    *((SMALL,), (EXACT,), (OVER,), (65_535,), (10 << 20,)),  # EndOnly and WriteOnly
    *((SMALL, SMALL), (SMALL, EXACT), (OVER, SMALL)),  # WriteAndEnd and MultipleWrites
    *((1, 65_534, 1), (EXACT, 1, EXACT)),
)


async def test_sized_requests(line: Line) -> None:
    """spec 20.1: HttpPostRequest; whatever the writes, the listener sees the body as one chunk."""
    for writes in WRITES:
        await line.ask(Answer(content=b"ResponseMessage"), *writes)


async def test_responses(line: Line) -> None:
    """spec 20.1: HttpPostResponse; around 64 KiB a response changes from the control channel to a rendezvous."""
    for writes in WRITES:
        once = tuple((size, 1) for size in writes)
        for written in (once, once[:-1]):  # the last of them written, or handed over with the end
            await line.ask(Answer(content=sum(writes), writes=written), 14)


PIPED = (
    *((0, SMALL, 0), (SMALL, SMALL, 0), (66_560, SMALL, 0), (0, SMALL, SMALL), (0, SMALL, 66_560)),
    *((0, 66_000, 0), (SMALL, 66_000, SMALL)),
)
"""Bytes written before a stream, piped one by one, and written behind it."""


async def test_piped_responses(line: Line) -> None:
    """spec 20.1: the pipe tests; a response written byte by byte, up to some 66 000 frames of one byte."""
    for before, piped, after in PIPED:
        writes = ((before, 1), (1, piped), (after, 1))
        answer = Answer(content=before + piped + after, writes=tuple((size, times) for size, times in writes if size))
        await line.ask(answer, method="GET")


# Further uses -------------------------------------------------------------------------------------------------------


async def test_echoes(line: Line) -> None:
    """spec 9.2: bodies of all lengths both ways, sized and chunked."""
    for size in (0, 1, 65_535, 65_536, 65_537, 10 << 20):
        await line.ask(Answer(content="echo"), size)
        await line.ask(Answer(content="echo"), size, chunked=True)


async def test_methods(line: Line) -> None:
    """spec 9.1: every method, with a body and without; of an answer to HEAD only the head comes."""
    for method in ("HEAD", "OPTIONS", "DELETE", "PUT", "PATCH", "TRACE", "FROB"):
        answer = Answer(content=5, headers=(("X-Method", method),))
        await line.ask(answer, method=method, target="/open/a-b?x=1")
        await line.ask(Answer(content=70_000), method=method)
        await line.ask(Answer(), method=method)
        if method != "TRACE":
            await line.ask(Answer(content=5), 17, method=method)


ODD_NAME = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ODD_VALUE = "\"'(){}[]<>=/,:;@\\"


async def test_odd_headers(line: Line) -> None:
    """spec 10: a name of every token character and a value of every bracket pass both ways, the value as reason too."""
    pair = (ODD_NAME, ODD_VALUE)
    seen = await line.ask(Answer(headers=(pair,), reason=ODD_VALUE, content=1), method="GET", headers=(pair,))
    assert (ODD_NAME.lower() if line.folds_names else ODD_NAME, ODD_VALUE) in seen.headers


async def test_headers_of_a_request(line: Line) -> None:
    """spec 10: repeated headers are joined, Host passes, what concerns the connection does not."""
    headers = (
        ("X-Twice", "requestValue1"), ("x-twice", "requestValue2"), ("Cookie", "a=1"), ("Cookie", "b=2"),
        ("Keep-Alive", "x"), ("TE", "trailers"), ("Via", "1.0 fred"),
    )  # fmt: skip
    seen = await line.ask(Answer(), 5, headers=headers)
    assert {name.lower(): value for name, value in seen.headers if name.lower() != ORDER.lower()} == {
        "host": "ADDRESS",
        "x-twice": "requestValue1, requestValue2",
        "cookie": "a=1; b=2",
        "via": "1.0 fred, 1.1 ADDRESS",
    }


async def test_statuses(line: Line) -> None:
    """spec 9.7: every code of 200-599 with its reason; 204 and 304 have no body, 502 and 504 are a listener's right."""
    for status in range(200, 600):
        content = 0 if status in (204, 205, 304) else 3
        await line.ask(Answer(status, f"Reason {status}", content=content), method="GET")


async def test_a_body_that_must_not_be(line: Line) -> None:
    """spec 9.7: for 204, 304 and HEAD a body is dropped, however long, and the connection goes on."""
    for size in (5, 70_000):
        for status in (204, 304):
            # hyco-https sends nothing at all when a handler ends such a response with a body.
            await line.ask(Answer(status, content=0 if line.folds_names else size), method="GET")
        await line.ask(Answer(content=size), method="HEAD")
    await line.ask(Answer(content=b"Hello"), method="GET")


@pytest.mark.parametrize("senders", [10, 100])
async def test_concurrent_requests(plain_target: Target, senders: int) -> None:
    """spec 9.7: responses come in any order and by either way, and each goes to the sender that waits for it."""
    for listener in LISTENERS:
        async with open_line(plain_target, listener) as line:
            await _ask_all(line, senders)


async def _ask_all(line: Line, senders: int) -> None:
    async def ask(number: int) -> None:
        size = 70_000 + number if number % 5 == 0 else number
        sender = await RawSender.open(line.url)
        async with sender.stream:
            lines = [
                f"POST /open/{number} HTTP/1.1",
                "Host: h",
                f"Content-Length: {size}",
                f'{ORDER}: {{"content":"echo"}}',
            ]
            await sender.send("\r\n".join([*lines, "", ""]).encode() + pattern(size))
            got, _ = await sender.receive("POST")
        assert (got.status, got.bytes) == (200, size)

    async with trio.open_nursery() as nursery:
        for number in range(senders):
            nursery.start_soon(ask, number)
    seen = await line.listener.wait_seen(senders)
    assert sorted(each.target for each in seen) == sorted(f"/open/{number}" for number in range(senders))


async def test_a_listener_that_closed_gets_no_more_requests(plain_target: Target) -> None:
    """spec 12: without a listener an HTTP sender gets 502."""
    url = plain_target.base_url.replace("ws", "http", 1)
    with trio.fail_after(30):
        async with hyco_https_listener(plain_target, "open") as listener:
            await listener.peer.end_input()
            await listener.peer.wait("ended")
        sender = await RawSender.open(url)
        async with sender.stream:
            await sender.send(b"GET /open HTTP/1.1\r\nHost: h\r\n\r\n")
            got, _ = await sender.receive()
    assert got.status == 502
    assert "no listeners connected" in got.reason
    assert "via" not in {name.lower() for name, _ in got.headers}


# The published tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suite", "tests"), [("get", 1), ("post", 25), ("chunkedpost", 5), ("pipe", 8)])
async def test_the_published_suite(certificate: Path, published_suite: Path, suite: str, tests: int) -> None:
    """spec 20: the tests of hyco-https, unchanged; only what they dial at port 443 goes to the relay's port."""
    async with run_relay(certificate) as running:
        await running.relay.create_entity("a2")
        environment = os.environ | {
            "SB_HC_NAMESPACE": "localhost",
            "SB_HC_PATH": "a2",
            "SB_HC_KEYRULE": running.target.key_name,
            "SB_HC_KEY": running.target.key,
            "NODE_EXTRA_CA_CERTS": str(certificate / "ca.pem"),
            "NODE_OPTIONS": f"--require {Path(__file__).parent / 'suite' / 'port.js'}",
            "RELAY_PORT": str(running.relay.port),
        }
        jest = [shutil.which("node") or "node", str(published_suite / "node_modules" / "jest" / "bin" / "jest.js")]
        with trio.fail_after(60):
            done = await trio.run_process(
                [*jest, "--runInBand", "--forceExit", f"tests/{suite}.test.js"],
                cwd=published_suite / "hyco-https",
                env=environment,
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
            )
    output = done.stdout.decode(errors="replace")
    passed = re.search(r"Tests: +(\d+) passed, \1 total", output)
    if done.returncode or passed is None:
        pytest.fail(output[-8000:])
    assert int(passed[1]) == tests
