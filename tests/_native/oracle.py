"""A WebSocket frame codec in plain Python, written from RFC 6455 alone: what the C codec is compared with.

It is slow and reads like the text. It shares no table and no idea of parsing with ``native/``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CONTROL = (8, 9, 10)


class Broken(Exception):
    """The stream is not WebSocket frames; ``close_code`` is what the peer is told."""

    def __init__(self, close_code: int, why: str) -> None:
        super().__init__(why)
        self.close_code = close_code


@dataclass(frozen=True)
class Frame:
    """One frame, its payload unmasked."""

    opcode: int
    payload: bytes = field(repr=False)
    fin: bool = True

    def __repr__(self) -> str:
        return f"Frame({self.opcode}, {len(self.payload)} bytes {self.payload[:16]!r}, fin={self.fin})"


def xor(data: bytes, key: bytes) -> bytes:
    """RFC 6455 5.3, octet by octet in effect; one big integer does it at a bearable speed."""
    if not data:
        return b""
    stream = key * (len(data) // 4 + 1)
    number = int.from_bytes(data, "big") ^ int.from_bytes(stream[: len(data)], "big")
    return number.to_bytes(len(data), "big")


def encode(frame: Frame, key: bytes | None = None) -> bytes:
    """The bytes of a frame (5.2); nothing is checked, so that wrong ones can be made too."""
    head = bytes([frame.fin << 7 | frame.opcode])
    mask_bit = 0 if key is None else 0x80
    length = len(frame.payload)
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 1 << 16:
        head += bytes([mask_bit | 126]) + length.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + length.to_bytes(8, "big")
    return head + frame.payload if key is None else head + key + xor(frame.payload, key)


def is_close_code(code: int) -> bool:
    """7.4: the codes that may stand in a frame, with those that IANA gave out since."""
    return code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or 3000 <= code <= 4999


class Oracle:
    """Reads frames from one peer.

    ``frames`` are the complete ones, ``partial`` what has arrived of the last one's payload: (opcode, fin, bytes).
    """

    def __init__(self, *, masked: bool) -> None:
        self.masked = masked
        self.buffer = b""
        self.frames: list[Frame] = []
        self.partial: tuple[int, bool, bytes] | None = None
        self.in_message = False
        self.is_closed = False

    def receive(self, data: bytes) -> None:
        self.buffer += data
        while not self.is_closed and self._take_frame():
            pass

    def _take_frame(self) -> bool:
        self.partial = None
        buffer = self.buffer
        if len(buffer) < 1:
            return False
        fin, reserved, opcode = bool(buffer[0] & 0x80), buffer[0] & 0x70, buffer[0] & 0x0F
        if reserved:
            raise Broken(1002, "5.2 RSV")
        if opcode not in (0, 1, 2, *CONTROL):
            raise Broken(1002, "5.2 opcode")
        if opcode in CONTROL and not fin:
            raise Broken(1002, "5.5 fragmented control frame")
        if len(buffer) < 2:
            return False
        is_masked, length = bool(buffer[1] & 0x80), buffer[1] & 0x7F
        if is_masked != self.masked:
            raise Broken(1002, "5.1 mask")
        if opcode in CONTROL and length > 125:
            raise Broken(1002, "5.5 control frame too long")
        at = 2
        for marker, width, least in ((126, 2, 126), (127, 8, 1 << 16)):
            if length == marker and at == 2:
                if width == 8 and len(buffer) > 2 and buffer[2] & 0x80:
                    raise Broken(1002, "5.2 length has its top bit set")
                if len(buffer) < 2 + width:
                    return False
                length = int.from_bytes(buffer[2 : 2 + width], "big")
                if length < least:
                    raise Broken(1002, "5.2 length is not in its shortest form")
                at = 2 + width
        key = b"\0\0\0\0"
        if self.masked:
            if len(buffer) < at + 4:
                return False
            key = buffer[at : at + 4]
            at += 4
        if opcode not in CONTROL:
            if opcode == 0 and not self.in_message:
                raise Broken(1002, "5.4 continuation of nothing")
            if opcode != 0 and self.in_message:
                raise Broken(1002, "5.4 message inside a message")
        payload = xor(buffer[at : at + length], key)
        if len(buffer) < at + length:
            if payload and opcode not in CONTROL:
                self.partial = (opcode, fin, payload)
            return False
        if opcode == 8:
            if len(payload) == 1:
                raise Broken(1002, "5.5.1 close payload of one byte")
            if payload and not is_close_code(int.from_bytes(payload[:2], "big")):
                raise Broken(1002, "7.4 close code")
            try:
                payload[2:].decode("utf-8")
            except UnicodeDecodeError as error:
                raise Broken(1007, "5.5.1 close reason") from error
            self.is_closed = True
        if opcode not in CONTROL:
            self.in_message = not fin
        self.frames.append(Frame(opcode, payload, fin))
        self.buffer = buffer[at + length :]
        return True


def read(data: bytes, *, masked: bool) -> list[Frame]:
    """All frames of a stream that has to be whole: no rest, no error."""
    oracle = Oracle(masked=masked)
    oracle.receive(data)
    assert oracle.is_closed or not oracle.buffer, f"{len(oracle.buffer)} bytes of an unfinished frame"
    return oracle.frames


@dataclass
class Message:
    """A data message as it was put together from its frames."""

    opcode: int
    payload: bytes = field(repr=False)
    is_complete: bool


def messages(frames: list[Frame]) -> list[Message]:
    """Data messages of a list of frames; control frames are left out."""
    found: list[Message] = []
    for frame in frames:
        if frame.opcode in CONTROL:
            continue
        if frame.opcode:
            found.append(Message(frame.opcode, b"", False))
        found[-1].payload += frame.payload
        found[-1].is_complete = frame.fin
    return found
