"""Datagrams over a hybrid connection: two bytes of length, big endian, then the payload (connection manager 3.7).

azbridge reads each from one message and starts anew after part of one, so that we send each as one message. What we
receive is put together from any pieces.
"""

from __future__ import annotations

from typing import Final

from ...errors import LocalProtocolError, RemoteProtocolError
from ...vocab import BytesLike

__all__ = ["DATAGRAM_IDLE_TIMEOUT", "MAX_DATAGRAM_BYTES", "DatagramReader", "encode_datagram"]

MAX_DATAGRAM_BYTES: Final = 65_507
"""Payload of the longest datagram over IPv4: 65535 without 20 bytes of IP and 8 of UDP header."""

DATAGRAM_IDLE_TIMEOUT: Final = 240.0
"""Seconds without a datagram either way after which azbridge takes a UDP peer for gone."""

_SECTION: Final = "connection manager 3.7"


def encode_datagram(payload: BytesLike) -> bytes:
    """One datagram as the content of one message.

    Raises:
      LocalProtocolError: more than 65507 bytes.
    """
    if len(payload) > MAX_DATAGRAM_BYTES:
        raise LocalProtocolError(
            f"a datagram of {len(payload)} bytes, {MAX_DATAGRAM_BYTES} at most", section=_SECTION, close_code=1009
        )
    return len(payload).to_bytes(2, "big") + payload


class DatagramReader:
    """Takes bytes as they come and yields datagrams; holds at most one that is not whole, and what came with it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def receive_data(self, data: BytesLike) -> None:
        """Take bytes."""
        self._data += data

    def next_event(self) -> bytes | None:
        """The next datagram, which may be empty; None: more bytes are wanted.

        Raises:
          RemoteProtocolError: a length over 65507; nothing behind it makes sense.
        """
        if len(self._data) < 2:
            return None
        length = int.from_bytes(self._data[:2], "big")
        if length > MAX_DATAGRAM_BYTES:
            raise RemoteProtocolError(
                f"a datagram of {length} bytes, {MAX_DATAGRAM_BYTES} at most", section=_SECTION, close_code=1009
            )
        if len(self._data) < 2 + length:
            return None
        payload = bytes(self._data[2 : 2 + length])
        del self._data[: 2 + length]
        return payload

    def receive_eof(self) -> None:
        """Take note of the end.

        Raises:
          RemoteProtocolError: inside a datagram.
        """
        if self._data:
            raise RemoteProtocolError("the end of data stands inside a datagram", section=_SECTION)
