"""Counts and rates against their limits: connections of a namespace, bytes held in memory, refusals of a source."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import OrderedDict
from types import TracebackType
from typing import Final

from ..errors import QuotaExceeded
from ..vocab import RefusalReason
from ..wire import limits
from .model import fold

MAX_DELAY_S: Final = 5.0
"""Longest hold on a refusal: .NET and Java give an attempt 70 s and HTTP clients often 10, so it still arrives."""


class ConnectionLease:
    """The right to one connection of a namespace, until it is released. Also a context manager."""

    __slots__ = ("_held", "namespace")

    def __init__(self, namespace: str, held: set[ConnectionLease]) -> None:
        self.namespace = namespace
        self._held = held

    def release(self) -> bool:
        """Give the connection back. Returns: whether it was held; a second release frees nothing."""
        if self not in self._held:
            return False
        self._held.remove(self)
        return True

    def __enter__(self) -> ConnectionLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class ConnectionQuota:
    """Counts the connections of each namespace. A count is the number of leases that exist, so it cannot drift.

    Args:
      limit: connections that one namespace has at most.
    """

    def __init__(self, limit: int = limits.MAX_CONNECTIONS_PER_NAMESPACE) -> None:
        self.limit = limit
        self._held: dict[str, set[ConnectionLease]] = {}

    def acquire(self, namespace: str, *, http_status: int = 503) -> ConnectionLease:
        """Take one connection.

        Args:
          http_status: what the refusal is answered with: 503 to a sender, 403 to a listener.

        Raises:
          QuotaExceeded: the namespace has as many connections as it may have.

        Source: wire contract 12, 15.
        """
        held = self._held.setdefault(fold(namespace), set())
        if len(held) >= self.limit:
            raise QuotaExceeded(
                f"ConnectionsPerNamespace: the namespace has its {self.limit} connections, no more fit",
                http_status=http_status,
                reason=RefusalReason.CONNECTION_QUOTA,
            )
        lease = ConnectionLease(namespace, held)
        held.add(lease)
        return lease

    def count(self, namespace: str) -> int:
        """How many connections a namespace has now."""
        return len(self._held.get(fold(namespace), ()))

    def check_consistency(self) -> list[str]:
        """Recount the books. Returns: what is wrong, one sentence each; nothing when all is well."""
        return [
            f"{namespace} has {len(held)} connections and may have {self.limit}"
            for namespace, held in self._held.items()
            if len(held) > self.limit
        ]


@dataclasses.dataclass(slots=True)
class _Bucket:
    level: float  # refusals that would be answered at once; below zero are those on hold
    filled_at: float


class ByteLease:
    """Some bytes of a :class:`ByteBudget`, until they are released."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self.size = size

    def grow(self, size: int, *, keep_free: int = 0) -> bool:
        """Hold ``size`` bytes more. Returns: False, and nothing changes, without room or when it was released."""
        return self._budget._grow(self, size, keep_free)

    def release(self) -> None:
        """Give the bytes back; a second time does nothing."""
        self._budget._give(self)


class ByteBudget:
    """A bound on bytes that are held in memory at one time. What was asked for is given whole or not at all.

    Args:
      limit: bytes that may be out at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.peak = 0
        self._leases: set[ByteLease] = set()

    def take(self, size: int, *, keep_free: int = 0) -> ByteLease | None:
        """Take ``size`` bytes, and leave as many as ``keep_free`` to others. Returns: the lease; None without room."""
        if self.held + size + keep_free > self.limit:
            return None
        self.held += size
        self.peak = max(self.peak, self.held)
        lease = ByteLease(self, size)
        self._leases.add(lease)
        return lease

    def check_consistency(self) -> list[str]:
        """Recount the books. Returns: what is wrong, one sentence each; nothing when all is well."""
        held = sum(lease.size for lease in self._leases)
        wrong = [] if held == self.held else [f"{self.held} bytes are booked, but the leases hold {held}"]
        if self.held > self.limit:
            wrong.append(f"{self.held} bytes are held, and {self.limit} is the limit")
        return wrong

    def _grow(self, lease: ByteLease, size: int, keep_free: int) -> bool:
        if lease not in self._leases or self.held + size + keep_free > self.limit:
            return False
        self.held += size
        self.peak = max(self.peak, self.held)
        lease.size += size
        return True

    def _give(self, lease: ByteLease) -> None:
        if lease in self._leases:
            self._leases.remove(lease)
            self.held -= lease.size


class SourceLimiter:
    """How fast each source address is refused, so that a client which retries without pause costs little.

    One Node client answers a refused listen with two new attempts, 1 500 in a second (wire contract 18). Refusals up to
    ``burst`` are answered at once, then ``rate_per_s`` of them: the rest wait for their turn up to ``max_delay_s``, and
    what would wait longer is cut without an answer. So one source has at most ``rate_per_s * max_delay_s`` of them
    waiting at once.

    An IPv6 source is its /64, which one subscriber has whole; IPv4 written as IPv6 is IPv4. At ``max_sources`` the
    source that was not refused for the longest time is forgotten, which is what happens to a well-behaved one anyway.

    Args:
      rate_per_s: refusals per second in the long run; above zero.
      burst: refusals answered at once.
      max_sources: bound of the memory.
      max_delay_s: longest delay in seconds.
    """

    def __init__(
        self, rate_per_s: float, burst: float, max_sources: int = 10_000, *, max_delay_s: float = MAX_DELAY_S
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._max_sources = max_sources
        self._max_delay_s = max_delay_s
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def note_refusal(self, source: str, now: float) -> float | None:
        """Account for one refusal.

        Args:
          source: IP address of the peer; any other text is a source of its own.
          now: seconds on a monotonic clock.

        Returns: seconds to wait before the answer goes out, or ``None``: cut the connection without one.
        """
        key = source_key(source)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
            if len(self._buckets) > self._max_sources:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            elapsed = max(0.0, now - bucket.filled_at)
            bucket.level = min(self._burst, bucket.level + elapsed * self._rate_per_s)
            bucket.filled_at = max(now, bucket.filled_at)
        delay_s = max(0.0, (1.0 - bucket.level) / self._rate_per_s)
        if delay_s > self._max_delay_s:
            return None
        bucket.level -= 1.0
        return delay_s

    def __len__(self) -> int:
        """How many sources are remembered."""
        return len(self._buckets)


def source_key(source: str) -> str:
    """The source that an address belongs to: IPv4 by address, IPv6 by /64, anything else by its text."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)
