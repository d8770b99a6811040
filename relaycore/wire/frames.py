"""Messages over the native frame codec, for legs that Python reads.

The decoder hands over *pieces*: a data message may come in several as its bytes arrive, a control frame is always
whole. Three ways lead on from there, and one leg may use them all, one after the other::

    receive_data(data) ─▶ pieces ─┬─▶ next_event()   whole messages, type and boundaries kept, bounded in size
                                  ├─▶ next_piece()   messages in parts, type and ends kept, nothing assembled
                                  └─▶ take_bytes()   payload bytes only, boundaries gone, nothing assembled

`take_bytes` is the fast way: it stops at the first control frame, which `next_event` then yields, so that the order of
data, pings and the Close is the order on the wire. Nothing here knows a stream or a clock.
"""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeAlias

from .._native import Decoder, FramingError
from ..errors import LocalProtocolError, RemoteProtocolError
from ..vocab import BytesLike
from .status import is_valid_close_code

__all__ = [
    "OPCODE_BINARY",
    "OPCODE_CLOSE",
    "OPCODE_CONTINUATION",
    "OPCODE_PING",
    "OPCODE_PONG",
    "OPCODE_TEXT",
    "Binary",
    "Close",
    "Event",
    "MessageReader",
    "Piece",
    "Ping",
    "Pong",
    "Text",
    "close_payload",
    "frames_behind",
    "parse_close",
]

# RFC 6455 5.2
OPCODE_CONTINUATION: Final = 0
OPCODE_TEXT: Final = 1
OPCODE_BINARY: Final = 2
OPCODE_CLOSE: Final = 8
OPCODE_PING: Final = 9
OPCODE_PONG: Final = 10


@dataclass(frozen=True, slots=True)
class Text:
    """One whole text message; may be empty."""

    data: str


@dataclass(frozen=True, slots=True)
class Binary:
    """One whole binary message; may be empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping; the peer is owed a `Pong` with the same payload (RFC 6455 5.5.3)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """An answer to a ping, or an unsolicited sign of life."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer will send nothing more. ``code`` is None when its Close frame was empty."""

    code: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a data message, as much of it as was in hand; empty only where the message ends with it.

    Attributes:
      is_text: the message is text; ``data`` is then its UTF-8, unchecked, maybe cut inside a character.
      data: payload bytes.
      fin: the message ends here.
    """

    is_text: bool
    data: bytes
    fin: bool


Event: TypeAlias = Text | Binary | Ping | Pong | Close


def parse_close(payload: bytes) -> Close:
    """Read the payload of a Close frame.

    Raises:
      RemoteProtocolError: one byte only, a code that may not be sent (1002), or a reason that is not UTF-8 (1007).

    Source: RFC 6455 5.5.1, 7.4.
    """
    if not payload:
        return Close(None)
    if len(payload) == 1:
        raise RemoteProtocolError("Close payload of one byte", section="RFC 6455 5.5.1")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise RemoteProtocolError(f"close code {code} may not be sent", section="RFC 6455 7.4")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise RemoteProtocolError("close reason is not UTF-8", section="RFC 6455 5.5.1", close_code=1007) from None


def close_payload(code: int | None, reason: str = "") -> bytes:
    """Build the payload of a Close frame.

    Args:
      code: a code that may be sent, or None for an empty Close.
      reason: at most 123 bytes of UTF-8; only with a code.

    Raises:
      LocalProtocolError: the code may not be sent, the reason is too long or has no code.

    Source: RFC 6455 5.5.1, 7.4.
    """
    if code is None:
        if reason:
            raise LocalProtocolError("a close reason needs a code", section="RFC 6455 5.5.1")
        return b""
    if not is_valid_close_code(code):
        raise LocalProtocolError(f"close code {code} may not be sent", section="RFC 6455 7.4")
    encoded = reason.encode()
    if len(encoded) > 123:
        raise LocalProtocolError(f"close reason of {len(encoded)} bytes, 123 at most", section="RFC 6455 5.5")
    return code.to_bytes(2, "big") + encoded


def frames_behind(data: BytesLike, payload_bytes: int) -> bytes:
    """What is left of a run of frames once the first bytes of their payload were taken out.

    ::

        [hdr 0102030405][ping][hdr 0607]...   5 bytes taken:   [ping][hdr 0607]...      3 taken:   [hdr 0405][ping]...

    Args:
      data: frames from the beginning of the connection on; the last one may be cut anywhere, in its header too.
      payload_bytes: payload of data messages that somebody has taken, not more than ``data`` has. Control frames that
        stand in front of its last byte go with it.

    Returns: bytes that a reader who begins anew understands, whatever follows ``data`` on the network. A message that
    was taken in part goes on as one of its own.

    Source: RFC 6455 5.2, 5.4.
    """
    view = memoryview(data)
    place = 0
    opcode = OPCODE_CONTINUATION
    is_open = is_masked = False
    while payload_bytes:
        first, second = view[place], view[place + 1]
        length, header_bytes = second & 0x7F, 2
        if length >= 126:
            header_bytes = 4 if length == 126 else 10
            length = int.from_bytes(view[place + 2 : place + header_bytes], "big")
        is_masked = bool(second & 0x80)
        key = bytes(view[place + header_bytes : place + header_bytes + 4]) if is_masked else b""
        payload = place + header_bytes + len(key)
        if first & 0x0F <= OPCODE_BINARY:
            is_final = bool(first & 0x80)
            if first & 0x0F != OPCODE_CONTINUATION:
                opcode = first & 0x0F
            if payload_bytes < length:
                turn = payload_bytes % 4  # the key goes on from where it is
                header = _header(opcode, length - payload_bytes, is_final, key[turn:] + key[:turn])
                return header + view[payload + payload_bytes :]
            payload_bytes -= length
            is_open = not is_final
        place = payload + length
    # What follows may be a continuation, which needs something to continue.
    begun = _header(opcode, 0, False, b"\0\0\0\0" if is_masked else b"") if is_open else b""
    return begun + view[place:]


def _header(opcode: int, length: int, is_final: bool, key: bytes) -> bytes:
    first = opcode | (0x80 if is_final else 0)
    masked = 0x80 if key else 0
    if length < 126:
        return bytes((first, masked | length)) + key
    if length < 65_536:
        return bytes((first, masked | 126)) + length.to_bytes(2, "big") + key
    return bytes((first, masked | 127)) + length.to_bytes(8, "big") + key


class MessageReader:
    """Turns the bytes of one incoming direction into messages and control frames.

    Args:
      masked: True if the peer is a client.
      max_message_bytes: bound on one assembled message; more is a `RemoteProtocolError` with close code 1009. Says
        nothing about `next_piece` and `take_bytes`, which assemble nothing.
      validate_text: check that text messages are UTF-8, failing at the first bad byte (1007). When off, bad bytes
        become U+FFFD.

    What arrives after a Close is thrown away (RFC 6455 5.5.1).
    """

    def __init__(self, *, masked: bool, max_message_bytes: int, validate_text: bool = True) -> None:
        self._decoder = Decoder(masked=masked)
        self.max_message_bytes = max_message_bytes
        self._errors = "strict" if validate_text else "replace"
        self._pieces: deque[tuple[int, bool, bytes]] = deque()
        self._failure: RemoteProtocolError | None = None
        self._close: Close | None = None
        # The message under way: what next_event() has collected of it, or _is_torn once one of the others took some.
        self._opcode = OPCODE_CONTINUATION
        self._partial = bytearray()
        self._is_collecting = False
        self._text_check: codecs.IncrementalDecoder | None = None
        self._is_torn = False

    @property
    def close(self) -> Close | None:
        """The peer's Close, once `next_event` has yielded it."""
        return self._close

    @property
    def is_between_messages(self) -> bool:
        """True if no message has been handed over, or collected, in part."""
        return not self._is_torn and not self._is_collecting

    @property
    def is_drained(self) -> bool:
        """True if neither data nor control frames are left to take."""
        return not self._pieces

    @property
    def frames_received(self) -> int:
        """Frames whose header has been read so far."""
        return self._decoder.frames_received

    def receive_data(self, data: BytesLike) -> None:
        """Take bytes from the network. One native crossing, whatever they hold.

        A broken rule is raised by the call that reaches it, `next_event` or `take_bytes`, after everything that came
        before it.
        """
        if self._close is not None or self._failure is not None:
            return
        try:
            self._pieces.extend(self._decoder.receive(data))
        except FramingError as error:
            self._pieces.extend(error.pieces)
            self._failure = error

    def take_bytes(self) -> bytes:
        """Take all payload that stands before the next control frame, as one `bytes`.

        Message types and boundaries are lost; text comes as the UTF-8 that was sent, unchecked. From here until the
        end of a message that was taken in part `next_event` cannot assemble it.

        Returns: ``b""`` if there is none: ask `next_event`, or bring more data.
        """
        pieces = self._pieces
        parts: list[bytes] = []
        if self._is_collecting:
            parts.append(self._give_up_collecting())
        while pieces and pieces[0][0] <= OPCODE_BINARY:
            opcode, fin, payload = pieces.popleft()
            if opcode != OPCODE_CONTINUATION:
                self._opcode = opcode
            self._is_torn = not fin
            parts.append(payload)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def next_piece(self) -> Piece | Ping | Pong | Close | None:
        """Take what is in hand of one data message, joined, or the next control frame; None: more data is needed.

        From here until a piece with ``fin`` `next_event` cannot assemble the message. Called inside a message that
        `next_event` has begun to collect, it hands over what was collected; behind `take_bytes`, the rest.

        Raises:
          RemoteProtocolError: as `next_event`, but neither for text that is not UTF-8 nor for long messages.
        """
        if self._close is not None:
            return None
        pieces = self._pieces
        parts: list[bytes] = []
        if self._is_collecting:
            parts.append(self._give_up_collecting())
        fin = False
        while not fin and pieces and pieces[0][0] <= OPCODE_BINARY:
            opcode, fin, payload = pieces.popleft()
            if opcode != OPCODE_CONTINUATION:
                self._opcode = opcode
            self._is_torn = not fin
            parts.append(payload)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if data or fin:
            return Piece(self._opcode == OPCODE_TEXT, data, fin)
        if not pieces:
            if self._failure is not None:
                raise self._failure
            return None
        try:
            return self._next_control()
        except RemoteProtocolError as error:
            self._fail(error)
            raise

    def next_event(self) -> Event | None:
        """Take the next whole message or control frame; None means that more data is needed.

        Raises:
          RemoteProtocolError: the peer broke RFC 6455 (1002), sent text that is not UTF-8 (1007) or a message over the
            bound (1009). Every later call raises it again.
          LocalProtocolError: the rest of a message that `take_bytes` or `next_piece` has begun stands here.
        """
        if self._close is not None:
            return None
        try:
            while self._pieces:
                if (event := self._next_of_pieces()) is not None:
                    return event
        except RemoteProtocolError as error:
            self._fail(error)
        if self._failure is not None:
            raise self._failure
        return None

    def _fail(self, error: RemoteProtocolError) -> None:
        self._pieces.clear()
        self._failure = error

    def _next_of_pieces(self) -> Event | None:
        opcode, fin, payload = self._pieces[0]
        if opcode <= OPCODE_BINARY:
            if self._is_torn:
                raise LocalProtocolError("the message under way was read in part; read on like that")
            self._pieces.popleft()
            return self._collect(opcode, fin, payload)
        return self._next_control()

    def _next_control(self) -> Ping | Pong | Close:
        opcode, _, payload = self._pieces.popleft()
        if opcode == OPCODE_PING:
            return Ping(payload)
        if opcode == OPCODE_PONG:
            return Pong(payload)
        self._close = parse_close(payload)
        self._pieces.clear()
        return self._close

    def _collect(self, opcode: int, fin: bool, payload: bytes) -> Text | Binary | None:
        is_whole = fin and opcode != OPCODE_CONTINUATION
        if opcode != OPCODE_CONTINUATION:
            self._opcode = opcode
        if len(self._partial) + len(payload) > self.max_message_bytes:
            raise RemoteProtocolError(
                f"message over {self.max_message_bytes} bytes", section="RFC 6455 7.4.1", close_code=1009
            )
        self._is_collecting = not fin
        if not is_whole:
            self._partial += payload
            payload = bytes(self._partial) if fin else payload
        if self._opcode == OPCODE_TEXT:
            return self._collect_text(payload, fin, is_whole)
        if not fin:
            return None
        self._forget_message()
        return Binary(payload)

    def _collect_text(self, payload: bytes, fin: bool, is_whole: bool) -> Text | None:
        # A message in one piece is decoded once. One in several is also checked as it comes, so that a peer cannot make
        # us hold a long message whose first byte is already wrong; what the check decodes is not kept.
        try:
            if fin:
                text = payload.decode("utf-8", self._errors)
                self._forget_message()
                return Text(text)
            if self._text_check is None:
                self._text_check = codecs.getincrementaldecoder("utf-8")(self._errors)
            self._text_check.decode(payload)
        except UnicodeDecodeError:
            raise RemoteProtocolError("text is not UTF-8", section="RFC 6455 8.1", close_code=1007) from None
        return None

    def _give_up_collecting(self) -> bytes:
        collected = bytes(self._partial)
        self._is_torn = True
        self._forget_message()
        return collected

    def _forget_message(self) -> None:
        # A new buffer, not a cleared one: an idle leg must not keep the capacity of its longest message.
        self._partial = bytearray()
        self._is_collecting = False
        self._text_check = None
