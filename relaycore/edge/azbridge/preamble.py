"""What azbridge says on a hybrid connection before the bytes: which port, and yes or no (connection manager 3.6).

::

    sender -> listener   01 00 | mode | N | port name, N bytes of UTF-8     mode: 00 stream, 01 datagrams
    listener -> sender   01 00 | mode                                       the port is there
                         00 00 | 00 or 01 or FF, then Close 1000            it is not, or not like that
                         Close                                              no such port

All of it travels in binary messages whose boundaries mean nothing: azbridge sends the head and the name in two, its
Rust port in one. The readers say how many bytes they want, so that nobody takes a byte that belongs to what follows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from ...errors import LocalProtocolError, Refused
from ...vocab import BytesLike

__all__ = [
    "MAX_PORT_NAME_BYTES",
    "Mode",
    "NotUnderstood",
    "PortRefused",
    "PortRequest",
    "PortRequestReader",
    "RefusedWhy",
    "Reply",
    "ReplyReader",
    "encode_request",
]

MAX_PORT_NAME_BYTES: Final = 255
"""The length is one byte. azbridge does not check, and sends 0 for a name of 256 bytes."""

_VERSION: Final = b"\x01\x00"


class Mode(enum.IntEnum):
    """What follows the preamble."""

    STREAM = 0
    DATAGRAM = 1


class Reply(enum.Enum):
    """The listener's answer, by its bytes."""

    STREAM_ACCEPTED = b"\x01\x00\x00"
    DATAGRAM_ACCEPTED = b"\x01\x00\x01"
    NOT_UNDERSTOOD = b"\x00\x00\x00"  # azbridge: version or mode; its Rust port: no such port
    IS_DATAGRAM = b"\x00\x00\x01"  # the port takes datagrams, and a stream was asked for
    IS_STREAM = b"\x00\x00\xff"  # the port takes streams, and datagrams were asked for

    @classmethod
    def accepting(cls, mode: Mode) -> Reply:
        """The yes to a request."""
        return cls.STREAM_ACCEPTED if mode is Mode.STREAM else cls.DATAGRAM_ACCEPTED


class RefusedWhy(enum.StrEnum):
    """Why a port was not given, on either side; a label of metrics and events."""

    UNKNOWN_PORT = "unknown-port"
    NOT_UNDERSTOOD = "not-understood"
    IS_DATAGRAM = "is-datagram"
    IS_STREAM = "is-stream"
    ENDPOINT = "endpoint"  # the port is there, and its endpoint does not answer
    NO_REQUEST = "no-request"  # the sender said nothing, or not all of it
    CLOSED = "closed"  # the listener closed without an answer; with azbridge that is an unknown port
    GARBLED = "garbled"  # the answer is none that azbridge has

    @property
    def http_status(self) -> int:
        """The status that says the same in HTTP's words."""
        return _STATUS[self]


_STATUS: Final = {
    RefusedWhy.UNKNOWN_PORT: 404,
    RefusedWhy.NOT_UNDERSTOOD: 400,
    RefusedWhy.IS_DATAGRAM: 404,
    RefusedWhy.IS_STREAM: 404,
    RefusedWhy.ENDPOINT: 502,
    RefusedWhy.NO_REQUEST: 400,
    RefusedWhy.CLOSED: 404,
    RefusedWhy.GARBLED: 502,
}


class PortRefused(Refused):
    """There is no way to the port.

    Args:
      why: the reason as a word.
      text: one line for people: which port, what came back, what to do.
      is_final: another listener of the same hybrid connection could not do better either.
    """

    def __init__(self, why: RefusedWhy, text: str, *, is_final: bool = False) -> None:
        super().__init__(text, http_status=why.http_status)
        self.why = why
        self.text = text
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class PortRequest:
    """What a sender asks for. Bytes of ``port_name`` that are no UTF-8 stand as U+FFFD, so that no port matches."""

    port_name: str
    mode: Mode


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """The first three bytes are not a request of version 1.0. The answer is `Reply.NOT_UNDERSTOOD`."""

    head: bytes


def encode_request(port_name: str, mode: Mode) -> bytes:
    """The request as one message.

    Raises:
      LocalProtocolError: the name has more than 255 bytes.
    """
    name = port_name.encode()
    if len(name) > MAX_PORT_NAME_BYTES:
        raise LocalProtocolError(
            f"a port name of {len(name)} bytes, {MAX_PORT_NAME_BYTES} at most", section="connection manager 3.6"
        )
    return _VERSION + bytes((mode, len(name))) + name


class _ExactReader:
    """Collects bytes, never more than are wanted."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def bytes_wanted(self) -> int:
        """How many bytes at most may be received next; 0 when all is there."""
        raise NotImplementedError

    @property
    def has_begun(self) -> bool:
        """Whether a byte has come."""
        return bool(self._data)

    def receive_data(self, data: BytesLike) -> None:
        """Take bytes.

        Raises:
          LocalProtocolError: more than `bytes_wanted`: they would be lost to what follows.
        """
        if len(data) > self.bytes_wanted:
            raise LocalProtocolError(f"{len(data)} bytes, {self.bytes_wanted} wanted", section="connection manager 3.6")
        self._data += data


class PortRequestReader(_ExactReader):
    """The listener's side: puts a request together from whatever pieces it comes in."""

    @property
    def bytes_wanted(self) -> int:
        """How many bytes at most may be received next; 0 when `next_event` has an answer."""
        data = self._data
        if len(data) < 4:
            return 0 if self._is_strange() else 4 - len(data)
        return 0 if self._is_strange() else 4 + data[3] - len(data)

    def next_event(self) -> PortRequest | NotUnderstood | None:
        """What was asked for; None as long as more bytes are wanted. Three bytes are enough for a no."""
        if self._is_strange():
            return NotUnderstood(bytes(self._data[:3]))
        if self.bytes_wanted:
            return None
        return PortRequest(self._data[4:].decode(errors="replace"), Mode(self._data[2]))

    def _is_strange(self) -> bool:
        return len(self._data) >= 3 and (self._data[:2] != _VERSION or self._data[2] not in tuple(Mode))


class ReplyReader(_ExactReader):
    """The sender's side: puts a reply together."""

    @property
    def bytes_wanted(self) -> int:
        """How many bytes at most may be received next; 0 when `next_event` has an answer."""
        return 3 - len(self._data)

    def next_event(self) -> Reply | bytes | None:
        """The reply; the three bytes themselves where azbridge has no such reply; None as long as bytes are wanted."""
        if self.bytes_wanted:
            return None
        data = bytes(self._data)
        return Reply(data) if data in _REPLIES else data


_REPLIES: Final = frozenset(reply.value for reply in Reply)
