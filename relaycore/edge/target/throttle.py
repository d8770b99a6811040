"""Rates: a bucket that many connections share, and a stream that keeps to it.

A read is paid for after it was made, and a debt keeps the next one waiting. So nothing that was received is ever held
back, and a cancelled wait loses neither bytes nor tokens; the price is a first step of one piece more than the burst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from ...vocab import BytesLike

__all__ = ["Rates", "SharedRates", "TokenBucket", "Waited", "throttled"]

_PIECE_BYTES: Final = 65_536
"""Moved at once at most, so that connections that share a bucket take turns."""


@dataclass
class Waited:
    """Seconds that were waited for tokens. One may count for several buckets, as when one follows the other."""

    seconds: float = 0.0


class TokenBucket:
    """So many bytes a second, after a burst, for all who share it.

    Args:
      rate: bytes a second.
      burst: bytes that may go at once after a pause.
      waited: counts what its users wait.

    Raises:
      ValueError: a rate or a burst below 1.
    """

    def __init__(self, rate: int, burst: int, waited: Waited | None = None) -> None:
        if rate < 1 or burst < 1:
            raise ValueError("a rate and a burst are at least 1 byte")
        self._waited = Waited() if waited is None else waited
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = trio.current_time()

    @property
    def waited_s(self) -> float:
        """Seconds that its users have waited, added up."""
        return self._waited.seconds

    def change(self, rate: int, burst: int) -> None:
        """Count by other numbers from now on; waits under way end by the old ones."""
        if rate < 1 or burst < 1:
            raise ValueError("a rate and a burst are at least 1 byte")
        self._refill()
        self._rate, self._burst = rate, burst
        self._tokens = min(self._tokens, float(burst))

    def charge(self, count: int) -> None:
        """Take tokens, also those that are not there yet."""
        self._refill()
        self._tokens -= count

    async def wait_solvent(self, waited: Waited | None = None) -> None:
        """Wait until there is no debt. A checkpoint; cancelled, it changes nothing.

        Args:
          waited: counts this wait, too.
        """
        await trio.lowlevel.checkpoint()
        self._refill()
        if self._tokens > 0:
            return
        began = trio.current_time()
        # Others may have taken their turn when this one wakes up.
        try:
            while self._tokens <= 0:
                # A token more than the debt, lest rounding makes a wait of no length.
                await trio.sleep((1 - self._tokens) / self._rate)
                self._refill()
        finally:
            seconds = trio.current_time() - began
            self._waited.seconds += seconds
            if waited is not None:
                waited.seconds += seconds

    def _refill(self) -> None:
        now = trio.current_time()
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now


class SharedRates:
    """A bucket of one's own, if any, and one that others use as well: both have to be without debt.

    While the second is waited for, others may bring the first into debt again; the next wait pays for that.

    Args:
      waited: counts the waits for the shared one here as well.
    """

    def __init__(self, own: TokenBucket | None, shared: TokenBucket, waited: Waited) -> None:
        self._own = own
        self._shared = shared
        self._waited = waited

    def charge(self, count: int) -> None:
        """As `TokenBucket.charge`, of both."""
        if self._own is not None:
            self._own.charge(count)
        self._shared.charge(count)

    async def wait_solvent(self) -> None:
        """As `TokenBucket.wait_solvent`, of both."""
        if self._own is not None:
            await self._own.wait_solvent()
        await self._shared.wait_solvent(self._waited)


Rates: TypeAlias = TokenBucket | SharedRates


class _Throttled(trio.abc.HalfCloseableStream):
    """See `throttled`.

    Attributes:
      transport_stream: what is below, under the name that `trio.SSLStream` has for it.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, inbound: Rates | None, outbound: Rates | None) -> None:
        self.transport_stream = stream
        self._inbound = inbound
        self._outbound = outbound

    async def send_all(self, data: BytesLike) -> None:
        if self._inbound is None:
            await self.transport_stream.send_all(data)
            return
        view = memoryview(data)
        if not view:
            await self.transport_stream.send_all(data)
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            await self._inbound.wait_solvent()
            self._inbound.charge(len(piece))
            await self.transport_stream.send_all(piece)

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport_stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._outbound is None:
            return await self.transport_stream.receive_some(max_bytes)
        await self._outbound.wait_solvent()
        most = _PIECE_BYTES if max_bytes is None else min(max_bytes, _PIECE_BYTES)
        data = await self.transport_stream.receive_some(most)
        self._outbound.charge(len(data))
        return data

    async def send_eof(self) -> None:
        await self.transport_stream.send_eof()

    async def aclose(self) -> None:
        await self.transport_stream.aclose()


def throttled(
    stream: trio.abc.HalfCloseableStream, inbound: Rates | None, outbound: Rates | None
) -> trio.abc.HalfCloseableStream:
    """Hold an endpoint's stream to rates. Without any, it is returned as it is: a plain socket moves faster.

    Args:
      stream: the endpoint's; belongs to the result.
      inbound: for what is sent to the endpoint.
      outbound: for what comes from it.
    """
    if inbound is None and outbound is None:
        return stream
    return _Throttled(stream, inbound, outbound)
