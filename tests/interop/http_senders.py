"""HTTP clients as senders: one description of a request, done by each of them, and what they got for it."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import h11
import httpx2
import requests
import trio
from interop.http_origin import Answer, pattern
from interop.peers import node_command, run_peer

_PIECE_BYTES = 251 * 1024


@dataclass(frozen=True)
class Case:
    """A request and the answer that the origin is to give.

    Attributes:
      target: what follows the hybrid connection's path, as the client is given it.
      bytes: length of the body, of `pattern`; None for no body at all.
      chunked: whether the body's length is not told.
      without: clients that cannot do it, and why not.
    """

    name: str
    method: str = "GET"
    target: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    bytes: int | None = None
    chunked: bool = False
    answer: Answer = field(default_factory=Answer)
    without: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Headers with the order for the origin."""
        return [*self.headers, self.answer.as_header()]

    def signed(self, token: str) -> Case:
        """The same request with a token."""
        return replace(self, headers=(*self.headers, ("ServiceBusAuthorization", token)))


@dataclass(frozen=True)
class Got:
    """What a client got for a request: an answer, or its own complaint.

    Attributes:
      reason: as the client tells it.
      headers: lines as the client tells them; `fetch` knows names in lower case only.
      bytes: length of the body after what decoding the client does.
    """

    status: int = 0
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    bytes: int = 0
    sha256: str = ""
    failed: str = ""


Send = Callable[[str, Sequence[Case], Path, str | None], Awaitable[list[Got]]]
"""Does requests under a base URL, one after the other; given a folder for files, and what certificates to trust."""


def _lines(text: str) -> tuple[tuple[str, str], ...]:
    split = (line.partition(":") for line in text.split("\r\n") if line)
    return tuple((name, value.strip(" \t")) for name, _, value in split)


def _pieces(size: int) -> Iterator[bytes]:
    content = pattern(size)
    for start in range(0, size, _PIECE_BYTES):
        yield content[start : start + _PIECE_BYTES]


# curl ---------------------------------------------------------------------------------------------------------------


def _curl_command(base_url: str, case: Case, folder: Path, ca_file: str | None) -> list[bytes]:
    command = [shutil.which("curl") or "curl", "-q", "-sS", "--path-as-is", "--globoff", "-N"]
    command += ["-D", str(folder / "head"), "-A", "curl"]
    command += ["--cacert", ca_file] if ca_file is not None else []
    command += ["--head"] if case.method == "HEAD" else ["-X", case.method]
    if case.bytes is not None:
        (folder / "body").write_bytes(pattern(case.bytes))
        # Of an empty file, -T in chunks never sends the last chunk.
        command += ["-T", str(folder / "body")] if case.bytes else ["--data-binary", f"@{folder / 'body'}"]
    for name, value in case.lines:
        command += ["-H", f"{name}: {value}" if value else f"{name};"]
    if case.chunked:
        command += ["-H", "Transfer-Encoding: chunked"]
    return [part.encode("latin-1") for part in [*command, base_url + case.target]]


async def curl(base_url: str, cases: Sequence[Case], folder: Path, ca_file: str | None = None) -> list[Got]:
    """The curl program, once for each request."""
    return [await _curl(_curl_command(base_url, case, folder, ca_file), case, folder) for case in cases]


async def _curl(command: list[bytes], case: Case, folder: Path) -> Got:
    digest, size = hashlib.sha256(), 0
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        async for chunk in process.stdout:
            digest.update(chunk)
            size += len(chunk)
        status = await process.wait()
    finally:
        process.kill()
    if status:
        return Got(failed=f"curl ended with {status}")
    # What came before the last head are interim answers.
    head = (folder / "head").read_bytes().decode("latin-1").removesuffix("\r\n\r\n").split("\r\n\r\n")[-1]
    first, _, lines = head.partition("\r\n")
    _, code, reason = first.split(" ", 2)
    if case.method == "HEAD":  # curl then writes the head to its output too
        digest, size = hashlib.sha256(), 0
    return Got(int(code), reason, _lines(lines), size, digest.hexdigest())


# Node ---------------------------------------------------------------------------------------------------------------


async def fetch(base_url: str, cases: Sequence[Case], folder: Path, ca_file: str | None = None) -> list[Got]:
    """Node's fetch: all requests in one program."""
    plan = [
        {
            "method": case.method,
            "target": case.target,
            "headers": case.lines,
            "bytes": case.bytes,
            "chunked": case.chunked,
        }
        for case in cases
    ]
    environment = {"NODE_EXTRA_CA_CERTS": ca_file} if ca_file is not None else {}
    async with run_peer("fetch", node_command("fetch_sender.js"), environment) as peer:
        await peer.send_plan({"base": base_url, "requests": plan})
        await peer.wait_end()
        return [_from_report(report) for report in peer.reports]


def _from_report(report: dict) -> Got:
    if report["event"] == "failed":
        return Got(failed=report["message"])
    headers = tuple((name, value) for name, value in report["headers"])
    return Got(report["status"], report["reason"], headers, report["bytes"], report["sha256"])


# Python -------------------------------------------------------------------------------------------------------------


async def httpx(base_url: str, cases: Sequence[Case], folder: Path, ca_file: str | None = None) -> list[Got]:
    """httpx2 in this very loop, over kept-alive connections."""
    verify = ssl.create_default_context(cafile=ca_file)
    async with httpx2.AsyncClient(trust_env=False, timeout=30, verify=verify) as client:
        return [await _httpx(client, base_url + case.target, case) for case in cases]


async def _httpx(client: httpx2.AsyncClient, url: str, case: Case) -> Got:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in _pieces(case.bytes or 0):
            yield piece

    content = None if case.bytes is None else pieces() if case.chunked else pattern(case.bytes)
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in case.lines]
    digest, size = hashlib.sha256(), 0
    try:
        async with client.stream(case.method, url, headers=headers, content=content) as response:
            async for chunk in response.aiter_bytes():
                digest.update(chunk)
                size += len(chunk)
    except httpx2.HTTPError as error:
        return Got(failed=type(error).__name__)
    lines = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw)
    return Got(response.status_code, response.reason_phrase, lines, size, digest.hexdigest())


async def requests_(base_url: str, cases: Sequence[Case], folder: Path, ca_file: str | None = None) -> list[Got]:
    """Requests, which blocks and so has a thread."""

    def run() -> list[Got]:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = ca_file or True
            return [_requests(session, base_url + case.target, case) for case in cases]

    return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


def _requests(session: requests.Session, url: str, case: Case) -> Got:
    data = None if case.bytes is None else _pieces(case.bytes) if case.chunked else pattern(case.bytes)
    headers = {name: value.encode("latin-1") for name, value in case.lines}
    digest, size = hashlib.sha256(), 0
    try:
        with session.request(
            case.method, url, headers=headers, data=data, stream=True, allow_redirects=False, timeout=30
        ) as response:
            for chunk in response.iter_content(1 << 18):
                digest.update(chunk)
                size += len(chunk)
    except requests.RequestException as error:
        return Got(failed=type(error).__name__)
    lines = tuple((name, value) for name, value in response.raw.headers.items())
    return Got(response.status_code, response.reason or "", lines, size, digest.hexdigest())


# Bytes as they are --------------------------------------------------------------------------------------------------


class RawSender:
    """A connection on which a test writes what it likes; answers are read by h11.

    Args:
      stream: closed by the test.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._parser = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, base_url: str) -> RawSender:
        host, _, port = base_url.removeprefix("http://").partition(":")
        return cls(await trio.open_tcp_stream(host, int(port)))

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self, method: str = "GET") -> tuple[Got, str]:
        """Read one answer. Returns it and its framing: ``none``, ``sized``, ``chunked`` or ``close``.

        Args:
          method: of the request it answers; interim answers count.
        """
        # h11 wants to have sent the request whose answer it reads.
        surplus = self._parser.trailing_data[0]
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=100_000)
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        self._parser.send(h11.EndOfMessage())
        if surplus:
            self._parser.receive_data(surplus)
        head = await self._next_event()
        assert isinstance(head, h11.Response | h11.InformationalResponse), head
        lines = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers.raw_items())
        if isinstance(head, h11.InformationalResponse):
            return Got(head.status_code, head.reason.decode("latin-1"), lines), "none"
        digest, size = hashlib.sha256(), 0
        while isinstance(event := await self._next_event(), h11.Data):
            digest.update(event.data)
            size += len(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        names = {name.lower() for name, _ in lines}
        has_none = method == "HEAD" or head.status_code in (204, 304)
        framing = (
            "none"
            if has_none
            else "chunked"
            if "transfer-encoding" in names
            else "sized"
            if "content-length" in names
            else "close"
        )
        return Got(head.status_code, head.reason.decode("latin-1"), lines, size, digest.hexdigest()), framing

    async def receive_end(self) -> bytes:
        """What comes until the connection ends; empty when it ends at once."""
        rest = self._parser.trailing_data[0]
        async for chunk in self.stream:
            rest += chunk
        return rest

    async def _next_event(self) -> object:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self.stream.receive_some(1 << 18))
        return event


SENDERS: dict[str, Send] = {"curl": curl, "fetch": fetch, "httpx2": httpx, "requests": requests_}
