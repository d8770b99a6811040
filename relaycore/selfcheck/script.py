"""The bytes of every conversation, made once: both ends know each byte that may come.

A load in Python is fast only while it builds and reads nothing. The client's mask key is therefore fixed, and all
frames of a conversation lie ready; what arrives is compared with what has to arrive, or only counted. Payload and
masked payload consist of bytes below 0x80, so that the text frame that ends a stream (first byte 0x81) stands nowhere
else.

::

    client                                far end
      order "sink", "ping" ...  ─────────▶
      prelude                   ─────────▶  compared byte by byte
                                ◀─────────  READY
      bulk: frames, then DONE   ─────────▶  counted
                                ◀─────────  how many bytes
      ping: one frame           ─────────▶  compared
                                ◀─────────  one frame, compared
      Close                     ─────────▶
                                ◀─────────  Close
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._native import encode_frame
from ..wire.frames import OPCODE_BINARY, OPCODE_CLOSE, OPCODE_TEXT, close_payload

__all__ = [
    "BLOB_BYTES",
    "KEY",
    "ORDER_BYTES",
    "PRELUDE_MESSAGES",
    "Order",
    "Side",
    "read_count",
    "read_order",
]

KEY: Final = bytes((0x35, 0x6A, 0x17, 0x4C))
"""Mask key of every frame from a client. Any key costs the relay the same."""

BLOB_BYTES: Final = 262_144
"""Frames that one system call is given at least; more does not make the load faster."""

PRELUDE_MESSAGES: Final = 16
"""Messages that are compared before anything is counted."""

_ORDER: Final = "{kind:>4} {size:>8}"
_ORDER_PAYLOAD_BYTES: Final = 13
_COUNT_DIGITS: Final = 20
_HEADER_BYTES: Final = 2
_KEY_BYTES: Final = 4

ORDER_BYTES: Final = {
    False: _HEADER_BYTES + _ORDER_PAYLOAD_BYTES,
    True: _HEADER_BYTES + _KEY_BYTES + _ORDER_PAYLOAD_BYTES,
}
"""Length of the frame that opens a conversation, by whether it is masked."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the client wants of a session: ``sink`` or ``ping``, with messages of ``size`` bytes."""

    kind: str
    size: int


class Side:
    """Frames as one side sends them.

    Args:
      masked: whether the side is a WebSocket client at this place of the wire.
    """

    def __init__(self, *, masked: bool) -> None:
        self.masked = masked
        self.ready = self._frame(OPCODE_TEXT, b"ready")
        self.done = self._frame(OPCODE_TEXT, b"done")
        self.close = self._frame(OPCODE_CLOSE, close_payload(1000))

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return encode_frame(opcode, payload, mask=KEY if self.masked else None)

    def order(self, kind: str, size: int) -> bytes:
        """The frame that opens a conversation."""
        return self._frame(OPCODE_TEXT, _ORDER.format(kind=kind, size=size).encode("ascii"))

    def message(self, size: int) -> bytes:
        """One message of `size` bytes."""
        return self._frame(OPCODE_BINARY, bytes(at % 113 for at in range(size)))

    def blob(self, size: int) -> bytes:
        """Whole messages of `size` bytes, :data:`BLOB_BYTES` of them or a little more."""
        one = self.message(size)
        return one * -(-BLOB_BYTES // len(one))

    def count(self, value: int) -> bytes:
        """The far end's answer to a stream."""
        return self._frame(OPCODE_TEXT, str(value).zfill(_COUNT_DIGITS).encode("ascii"))


def _unmasked(frame: bytes, masked: bool) -> bytes:
    payload = frame[_HEADER_BYTES + (_KEY_BYTES if masked else 0) :]
    return bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload)) if masked else payload


def read_order(frame: bytes, *, masked: bool) -> Order | None:
    """What :meth:`Side.order` made, as it arrived; None when it is anything else."""
    words = _unmasked(frame, masked).decode("ascii", "replace").split()
    if len(words) != 2 or not words[1].isdecimal():
        return None
    order = Order(words[0], int(words[1]))
    return order if Side(masked=masked).order(order.kind, order.size) == frame else None


def read_count(frame: bytes) -> int | None:
    """What :meth:`Side.count` made, as a client gets it: never masked."""
    text = frame[_HEADER_BYTES:]
    return int(text) if len(text) == _COUNT_DIGITS and text.isdigit() else None
