"""Clients written out by hand, so that a test can keep every rule or break any one of them.

WebSocket clients, HTTP senders, and listeners that answer relayed requests in the ways of the several SDKs.
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from relaycore.wire import sas


@dataclass
class Answer:
    """A response head: status, reason phrase, and headers by lower-case name."""

    status: int
    reason: str
    headers: dict[str, str]
    raw: bytes = field(repr=False, default=b"")

    @property
    def tracking_id(self) -> str:
        found = re.search(r"TrackingId:([^,]+),", self.reason)
        return found[1] if found else ""


@dataclass
class Frame:
    fin: bool
    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int | None:
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None


@dataclass
class HttpAnswer:
    """A whole answer to an HTTP request.

    Attributes:
      headers: values by lower-case name, one for each line.
      framing: what told where the body ends: ``"none"``, ``"length"``, ``"chunked"`` or ``"close"``.
      chunks: sizes of the chunks, without the last.
    """

    status: int
    reason: str
    lines: list[tuple[str, str]]
    framing: str
    body: bytes = field(repr=False, default=b"")
    chunks: list[int] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in self.lines:
            found.setdefault(name.lower(), []).append(value)
        return found

    def value(self, name: str) -> str | None:
        """The only line of a header; None without one."""
        values = self.headers.get(name.lower(), [])
        assert len(values) <= 1, (name, values)
        return values[0] if values else None


@dataclass
class Asked:
    """A ``request`` as a listener received it.

    Attributes:
      message: the members of ``request``.
      body: what the message behind it held; None when none was promised.
      frames: sizes of that message's frames.
      text_bytes: length of the JSON.
    """

    message: dict
    body: bytes | None = field(repr=False, default=None)
    frames: list[int] = field(default_factory=list)
    text_bytes: int = 0

    @property
    def id(self) -> str:
        return self.message["id"]

    @property
    def address(self) -> str:
        return self.message["address"]

    @property
    def headers(self) -> dict[str, str]:
        return self.message["requestHeaders"]

    @property
    def is_address_only(self) -> bool:
        return self.message.keys() == {"address", "id"}


Fields = Mapping[str, str] | Iterable[tuple[str, str]]


def http_head(
    method: str, target: str, fields: Fields = (), *, host: str | None = "relay.test", version: str = "1.1"
) -> bytes:
    """A request head, line by line as given."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    first = [f"{method} {target} HTTP/{version}", *([] if host is None else [f"Host: {host}"])]
    return "\r\n".join([*first, *(f"{name}: {value}" for name, value in pairs), "", ""]).encode("latin-1")


def http_request(
    method: str,
    target: str,
    fields: Fields = (),
    body: bytes | None = None,
    *,
    chunks: Iterable[bytes] | None = None,
    **options,
) -> bytes:
    """A whole request; with ``body`` a sized one, with ``chunks`` a chunked one."""
    pairs = list(fields.items() if isinstance(fields, Mapping) else fields)
    if chunks is not None:
        pairs.append(("Transfer-Encoding", "chunked"))
        return http_head(method, target, pairs, **options) + b"".join(map(http_chunk, chunks)) + LAST_CHUNK
    if body is not None:
        pairs.append(("Content-Length", str(len(body))))
    return http_head(method, target, pairs, **options) + (body or b"")


LAST_CHUNK = b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def response_text(request_id: str, status: object = 200, body: bool | None = False, **members: object) -> bytes:
    """A ``response`` message as one frame; further members as they are, None leaves one out."""
    response = {"requestId": request_id, "statusCode": status, "body": body, **members}
    kept = {name: value for name, value in response.items() if value is not None}
    return frame(1, json.dumps({"response": kept}).encode())


def body_frames(*pieces: bytes, end: str = "fin") -> bytes:
    """A body message in frames.

    Args:
      end: ``"fin"`` with the last piece, ``"empty"`` with an empty frame behind it (.NET), ``"open"`` not at all
        (Java).
    """
    last = len(pieces) - 1
    frames = [
        frame(2 if index == 0 else 0, piece, fin=index == last and end == "fin") for index, piece in enumerate(pieces)
    ]
    return b"".join(frames) + (frame(0) if end == "empty" else b"")


def mask(payload: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[i & 3] for i, byte in enumerate(payload)) if len(payload) < 64 else _mask_long(payload, key)


def _mask_long(payload: bytes, key: bytes) -> bytes:
    pad = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, length: int | None = None
) -> bytes:
    """One frame as a client sends it; ``length`` may lie."""
    size = len(payload) if length is None else length
    head = bytearray([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    if size < 126:
        head.append(bit | size)
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if masked:
        key = os.urandom(4)
        return bytes(head) + key + mask(payload, key)
    return bytes(head) + payload


def close_frame(code: int | None = 1000, reason: str = "") -> bytes:
    return frame(8, b"" if code is None else struct.pack("!H", code) + reason.encode())


class WirePeer:
    """A client over any Trio stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = bytearray()
        self._turn = trio.Lock()

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> WirePeer:
        return cls(await trio.open_tcp_stream(host, port))

    async def upgrade(
        self, target: str, headers: dict[str, str] | None = None, *, host: str = "relay.test", trailing: bytes = b""
    ) -> Answer:
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + trailing)
        return await self.read_answer()

    async def request(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[Answer, bytes]:
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        answer = await self.read_answer()
        return answer, await self.read_exactly(int(answer.headers.get("content-length", "0")))

    async def read_answer(self) -> Answer:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self._fill()
        raw = bytes(self.buffer[: end + 4])
        del self.buffer[: end + 4]
        first, *rest = raw[:-4].decode("latin-1").split("\r\n")
        version, status, *reason = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for line in rest:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} stands twice"
            headers[name.lower()] = value.strip()
        return Answer(int(status), reason[0] if reason else "", headers, raw)

    # HTTP senders --------------------------------------------------------------------------------------------------

    async def read_http_head(self) -> HttpAnswer:
        """The head of an answer, which may repeat headers; its body is for the caller to read."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self._fill()
        raw = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        first, *rest = raw.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) (.*)", first)
        assert found, first
        lines = []
        for line in rest:
            name, colon, value = line.partition(":")
            assert colon, line
            assert name == name.strip(), line
            lines.append((name, value.strip(" \t")))
        return HttpAnswer(int(found[1]), found[2], lines, "none")

    async def read_http(self, method: str = "GET") -> HttpAnswer:
        """The next whole answer, read by RFC 9112 6.3; a body that is cut raises EOFError."""
        return await self.read_http_body(await self.read_http_head(), method)

    async def read_http_body(self, answer: HttpAnswer, method: str = "GET") -> HttpAnswer:
        """The answer of this head with its body."""
        length, coding = answer.value("Content-Length"), answer.value("Transfer-Encoding")
        assert length is None or coding is None, "two lengths"
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            return answer
        if coding is not None:
            assert coding == "chunked"
            answer.framing = "chunked"
            body = bytearray()
            while chunk := await self.read_chunk():
                answer.chunks.append(len(chunk))
                body += chunk
            answer.body = bytes(body)
        elif length is not None:
            answer.framing = "length"
            answer.body = await self.read_exactly(int(length))
        else:
            answer.framing = "close"
            answer.body = await self.read_eof()
        return answer

    async def read_chunk(self) -> bytes:
        """The next chunk of a chunked body, empty at its end."""
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self._fill()
        size = int(bytes(self.buffer[:end]), 16)
        del self.buffer[: end + 2]
        data = await self.read_exactly(size)
        assert await self.read_exactly(2) == b"\r\n"
        return data

    async def is_cut(self) -> bool:
        """Whether the connection ends here, orderly or not, with nothing before it."""
        try:
            return await self.read_eof() == b""
        except trio.BrokenResourceError:
            return True

    # Listeners of relayed requests ---------------------------------------------------------------------------------

    async def read_request(self) -> Asked:
        """The next ``request``, and its body if it promises one; nothing may come between the two."""
        first = await self.read_data_frame()
        assert (first.opcode, first.fin) == (1, True), first
        message = json.loads(first.payload)
        assert message.keys() == {"request"}
        asked = Asked(message["request"], text_bytes=len(first.payload))
        if asked.message.get("body"):
            body = bytearray()
            while True:
                got = await self.read_data_frame()
                assert got.opcode == (0 if asked.frames else 2), got
                asked.frames.append(len(got.payload))
                body += got.payload
                if got.fin:
                    break
            asked.body = bytes(body)
        return asked

    async def read_data_frame(self) -> Frame:
        """The next data frame; pings are answered."""
        while (got := await self.read_frame()).opcode == 9:
            await self.send(frame(10, got.payload))
        assert got.opcode in (0, 1, 2), (got, got.close_code if got.opcode == 8 else None)
        return got

    async def respond(
        self, asked: Asked | str, status: object = 200, body: bytes | None = None, **members: object
    ) -> None:
        """Answer a request here, with the body in one frame."""
        request_id = asked if isinstance(asked, str) else asked.id
        text = response_text(request_id, status, body is not None, **members)
        await self.send(text + (b"" if body is None else frame(2, body)))

    async def read_close(self) -> int | None:
        """The code of the Close that comes next, which may be None; pings and pongs may come before it."""
        while (got := await self.read_frame()).opcode in (9, 10):
            continue
        assert got.opcode == 8, got
        return got.close_code

    async def send(self, data: bytes) -> None:
        """Send all of it; several tasks take turns."""
        async with self._turn:
            await self.stream.send_all(data)

    async def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._fill()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    async def read_frame(self) -> Frame:
        first, second = await self.read_exactly(2)
        assert not second & 0x80, "a server must not mask"
        assert not first & 0x70, "reserved bits"
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", await self.read_exactly(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", await self.read_exactly(8))[0]
        return Frame(bool(first & 0x80), first & 15, await self.read_exactly(size))

    async def read_message(self) -> tuple[int, bytes]:
        """The next data message: opcode and payload, put together."""
        opcode, payload = 0, bytearray()
        while True:
            got = await self.read_frame()
            assert got.opcode in (0, 1, 2), got
            opcode = opcode or got.opcode
            payload += got.payload
            if got.fin:
                return opcode, bytes(payload)

    async def read_json(self) -> dict[str, dict]:
        opcode, payload = await self.read_message()
        assert opcode == 1
        return json.loads(payload)

    async def read_eof(self) -> bytes:
        """What still comes until the end of the stream."""
        rest = bytes(self.buffer)
        self.buffer.clear()
        while data := await self.stream.receive_some(65536):
            rest += data
        return rest

    async def _fill(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError(f"the stream ended; {bytes(self.buffer[:100])!r} was left")
        self.buffer += data

    async def aclose(self) -> None:
        await self.stream.aclose()

    def reset(self) -> None:
        """Cut the TCP connection with a reset."""
        assert isinstance(self.stream, trio.SocketStream)
        socket = self.stream.socket
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close()


def split_address(address: str) -> tuple[int, str]:
    """Port and request target of a rendezvous address."""
    found = re.fullmatch(r"wss?://[^/:]+(?::(\d+))?(/.*)", address)
    assert found, address
    return int(found[1] or 0), found[2]


def token(
    rule: str, key: str, resource: str = "http://relay.test/", *, ttl: float = 3600, now: float | None = None
) -> str:
    """A SAS token that ends ``ttl`` seconds from ``now``."""
    return sas.make_token(resource, rule, key, int((time.time() if now is None else now) + ttl))
