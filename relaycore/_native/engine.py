"""The engine's threads as one object. Its contract is ``native/include/rc_engine.h``.

All calls are for one thread, none of them waits but ``Engine()`` and :meth:`Engine.shut`, and each crosses once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import LocalProtocolError
from ..vocab import CloseBy
from ._rc import ffi, lib
from .session import Session

if TYPE_CHECKING:
    from ._rc import CData

THREADS_MAX: Final = lib.RC_ENGINE_THREADS_MAX

BATCH: Final = 64
"""Tokens taken in one crossing."""

_LIMIT_MS: Final = (1 << 32) - 1


class EngineEnd(enum.IntEnum):
    """How a job ended; ``RC_END_*`` says more."""

    CLOSED = lib.RC_END_CLOSED
    ABORTED = lib.RC_END_ABORTED
    PROTOCOL_ERROR = lib.RC_END_PROTOCOL_ERROR
    HALF_CLOSED_TIMEOUT = lib.RC_END_HALF_CLOSED_TIMEOUT
    RELAY_CLOSED = lib.RC_END_RELAY_CLOSED
    IDLE_TIMEOUT = lib.RC_END_IDLE_TIMEOUT
    CANCELLED = lib.RC_END_CANCELLED
    REFUSED = lib.RC_END_REFUSED


_ENDS: Final = {int(end): end for end in EngineEnd}
_BY: Final = {lib.RC_BY_RELAY: CloseBy.RELAY, lib.RC_BY_SENDER: CloseBy.SENDER, lib.RC_BY_LISTENER: CloseBy.LISTENER}


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot over all threads; each number is right by itself, but they are not of one instant.

    Attributes:
      jobs, buffers_in_use, starved: now: sessions, buffers out (those of the reserve too), directions that wait.
      buffers_peak, exhausted: most buffers out at one time; how often no large one was left.
      completed: sessions that have ended.
      turns: of a direction, each with at most one receive.
      receives, sends, waits: system calls. ``sleeps`` are waits that were ready to wait, ``blocked`` sends that did not
        get rid of everything.
      commands: starts, closes and cancellations taken.
      bytes_in, bytes_out: on the sockets, headers included.
    """

    jobs: int
    buffers_in_use: int
    starved: int
    buffers_peak: int
    exhausted: int
    completed: int
    turns: int
    receives: int
    sends: int
    blocked: int
    waits: int
    sleeps: int
    commands: int
    bytes_in: int
    bytes_out: int


def engine_is_available() -> bool:
    """Whether this system has what the engine needs: Linux's epoll."""
    return lib.rc_engine_is_available()


def _milliseconds(seconds: float) -> int:
    """For C, where 0 means no limit; a limit that is shorter than a millisecond is still one, and so is infinity."""
    return 0 if seconds <= 0 else max(1, round(min(seconds * 1000, _LIMIT_MS)))


class Job:
    """One session and its two sockets, for the engine.

    From :meth:`Engine.submit` until the token comes out of :meth:`Engine.completions` the sockets belong to the engine,
    and of the session only ``statistics()`` may be called. Whoever submits keeps the job alive for as long.

    Args:
      session: the brain.
      token: comes back on completion.
      sender, listener: descriptors of connected, non-blocking sockets.
      early: what was read from the sender and from the listener before; goes in first.
      half_closed, close, idle: limits in seconds; 0 is no limit, but for ``close``.
    """

    __slots__ = ("_early", "_job", "_reason", "_session")

    def __init__(
        self,
        session: Session,
        token: int,
        sender: int,
        listener: int,
        *,
        early: tuple[bytes, bytes] = (b"", b""),
        half_closed: float = 0,
        close: float = 10,
        idle: float = 0,
    ) -> None:
        job = ffi.new("struct rc_job *")
        job.session = session._session
        job.token = token
        job.sockets[0] = sender
        job.sockets[1] = listener
        job.half_closed_ms = _milliseconds(half_closed)
        job.close_ms = max(1, _milliseconds(close))
        job.idle_ms = _milliseconds(idle)
        self._session = session
        self._job = job
        self._reason: CData | None = None
        self._early: list[CData] | None = None
        if early[0] or early[1]:
            self._early = [ffi.from_buffer("uint8_t[]", data) for data in early]
            for index, data in enumerate(early):
                job.lanes[index].early = self._early[index]
                job.lanes[index].early_bytes = len(data)

    @property
    def end(self) -> EngineEnd:
        """How it ended. For completed jobs, as the next three."""
        return _ENDS[self._job.end]

    @property
    def by(self) -> CloseBy:
        """Who ended it first."""
        return _BY[self._job.by]

    @property
    def offender(self) -> CloseBy:
        """After ``PROTOCOL_ERROR``: who broke the rule."""
        return CloseBy.LISTENER if self._job.offender else CloseBy.SENDER

    @property
    def error(self) -> int:
        """After ``REFUSED``: the errno."""
        return self._job.error


class Engine:
    """Threads that move jobs.

    Args:
      threads: 1 to :data:`THREADS_MAX`.
      buffers: receive buffers, shared out among the threads, at least one each.
      buffer_bytes: size of each, 4 096 to 2^24.

    Raises:
      LocalProtocolError: numbers out of range, or no engine on this system.
      MemoryError: memory, descriptors or threads were refused.
    """

    __slots__ = ("_engine", "_handle", "_is_shut", "_statistics", "_tokens")

    def __init__(self, *, threads: int, buffers: int, buffer_bytes: int = 65_536) -> None:
        handle = ffi.new("struct rc_engine **")
        if not (0 < threads <= THREADS_MAX and 0 < buffers <= lib.RC_POOL_BUFFERS_MAX and buffer_bytes >= 0):
            raise LocalProtocolError(f"no engine of {threads} threads and {buffers} buffers", section="rc_engine.h")
        result = lib.rc_engine_open(handle, threads, buffers, min(buffer_bytes, 1 << 31))
        if result == lib.RC_ENOMEM:
            raise MemoryError(f"{threads} threads with {buffers} buffers of {buffer_bytes} bytes")
        if result < 0:
            raise LocalProtocolError(
                f"no engine of {threads} threads and {buffers} buffers of {buffer_bytes} bytes", section="rc_engine.h"
            )
        self._handle = handle
        self._is_shut = False
        self._engine = ffi.gc(handle[0], lib.rc_engine_free)
        self._tokens = ffi.new("uint64_t[]", BATCH)
        self._statistics = ffi.new("struct rc_engine_statistics *")

    def fileno(self) -> int:
        """A descriptor that is readable while completions wait; the engine's own, for waiting only."""
        return lib.rc_engine_fd(self._engine)

    def submit(self, job: Job) -> None:
        """Hand a job over.

        Raises:
          LocalProtocolError: the engine was shut.
        """
        if self._is_shut:
            raise LocalProtocolError("a job for an engine that was shut", section="rc_engine.h")
        lib.rc_engine_submit(self._engine, job._job)

    def close(self, job: Job, code: int, reason: bytes) -> None:
        """Send both legs a Close at their next frame boundary, and cut them when they do not answer in time.

        Raises:
          LocalProtocolError: code or reason may not stand in a Close frame.
        """
        view = ffi.from_buffer("uint8_t[]", reason)
        if not 0 <= code <= 0xFFFF or lib.rc_engine_close(self._engine, job._job, code, view, len(reason)) < 0:
            raise LocalProtocolError(f"close code {code} with {len(reason)} bytes of reason", section="RFC 6455 5.5.1")
        if job._reason is None:  # the first close counts, and its text has to stay
            job._reason = view

    def cancel(self, job: Job) -> None:
        """Ask the engine to let go. It has done so when the token comes out of :meth:`completions`."""
        lib.rc_engine_cancel(self._engine, job._job)

    def completions(self) -> list[int]:
        """Tokens of jobs that have ended, in that order; at most 64, and fewer only when there are no more."""
        return ffi.unpack(self._tokens, lib.rc_engine_completions(self._engine, self._tokens, BATCH))

    def statistics(self) -> EngineStatistics:
        """Counters of all threads together."""
        sums = self._statistics
        lib.rc_engine_statistics(self._engine, sums)
        return EngineStatistics(
            jobs=sums.jobs,
            buffers_in_use=sums.buffers_in_use,
            starved=sums.starved,
            buffers_peak=sums.buffers_peak,
            exhausted=sums.exhausted,
            completed=sums.completed,
            turns=sums.turns,
            receives=sums.receives,
            sends=sums.sends,
            blocked=sums.blocked,
            waits=sums.waits,
            sleeps=sums.sleeps,
            commands=sums.commands,
            bytes_in=sums.bytes_in,
            bytes_out=sums.bytes_out,
        )

    def shut(self) -> None:
        """Cancel what is left, end the threads and wait for them: one turn. Tokens can be taken afterwards."""
        self._is_shut = True
        lib.rc_engine_shut(self._engine)
