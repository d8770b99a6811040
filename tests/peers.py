"""WebSocket clients written out by hand, so that a test can keep every rule or break any one of them."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import time
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

    async def send(self, data: bytes) -> None:
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
