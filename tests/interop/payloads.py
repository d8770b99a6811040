"""Message contents that every peer can make alike, and what is reported of them.

Imports nothing that a driver may lack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

# Lengths around each change of the frame header (RFC 6455 5.2) and around the 65 536 bytes at which the relay splits,
# then large ones.
SIZES = (1, 125, 126, 127, 65535, 65536, 65537, 1 << 20, 8 << 20)

_BINARY_UNIT = bytes(range(251))  # a prime length: a piece lost, doubled or moved changes every byte after it
_TEXT_UNIT = "aé€😀"  # 1 + 2 + 3 + 4 bytes of UTF-8, so that splits fall inside characters
_TEXT_UNIT_BYTES = 10


def payload(kind: str, size: int) -> str | bytes:
    """The message of ``size`` bytes (of UTF-8 for a text) that every driver makes alike."""
    if kind == "binary":
        return (_BINARY_UNIT * (size // len(_BINARY_UNIT) + 1))[:size]
    return _TEXT_UNIT * (size // _TEXT_UNIT_BYTES) + "z" * (size % _TEXT_UNIT_BYTES)


def describe(message: str | bytes) -> dict[str, object]:
    """What a driver reports of a message: its kind, length in bytes and digest."""
    content = message.encode() if isinstance(message, str) else bytes(message)
    kind = "text" if isinstance(message, str) else "binary"
    return {"kind": kind, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def all_messages(sizes: Iterable[int] = SIZES) -> list[dict[str, object]]:
    """A binary and a text of each size, as a driver's plan wants them."""
    return [{"kind": kind, "bytes": size} for size in sizes for kind in ("binary", "text")]


def described(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, object]]:
    """What an echo of planned messages must be reported as."""
    return [describe(payload(message["kind"], message["bytes"])) for message in messages]
