"""The native engine as a Trio citizen: sessions over sockets, moved by threads of C.

Theory of operation
-------------------

::

      run(session)                    C threads                      one Trio task for all sessions
      ────────────                    ─────────                      ───────────────────────────────
      submit ───────────────────────▶ move bytes
      park                            ... for hours, and no Python wakes
                                      done: token, eventfd ────────▶ wait_readable ─▶ tokens of one crossing
      wake  ◀──────────────────────────────────────────────────────── reschedule each task
      close both streams

      cancelled while parked: cancel ▶ let go at once ─────────────▶ reschedule with the cancellation

A descriptor never has two owners: a parked task is woken by nothing but its own completion, so whoever cancels it
waits for C to let go. That takes one round of a thread, which never blocks. The task that takes completions is out of
the reach of such a cancellation for the same reason: Trio has it run beside the main task. Nor may a
KeyboardInterrupt come between a submission and its parking, or between a token and its task; Trio keeps it away from
what is marked so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Final, NoReturn

import trio

from .._native import Engine as Native
from .._native import EngineEnd, EngineStatistics, Job, engine_is_available
from .._native.engine import BATCH, THREADS_MAX
from .session import EndReason, Session, SessionResult

__all__ = ["Engine", "EngineStatistics", "engine_is_available", "open_engine", "shared_engine"]

DEFAULT_BUFFERS: Final = 1_024
DEFAULT_BUFFER_BYTES: Final = 258_048
"""With its head-room, 64 pages."""

_SHARED_BUFFERS: Final = 64
"""Of a program that splices here and there: 16 MiB, touched only when as many directions are stalled at once."""

_REASONS: Final = {
    EngineEnd.CLOSED: EndReason.CLOSED,
    EngineEnd.ABORTED: EndReason.ABORTED,
    EngineEnd.PROTOCOL_ERROR: EndReason.PROTOCOL_ERROR,
    EngineEnd.HALF_CLOSED_TIMEOUT: EndReason.HALF_CLOSED_TIMEOUT,
    EngineEnd.IDLE_TIMEOUT: EndReason.IDLE_TIMEOUT,
    EngineEnd.RELAY_CLOSED: EndReason.RELAY_CLOSED,
    EngineEnd.CANCELLED: EndReason.RELAY_CLOSED,  # the engine was shut below it
}


class _Running:
    """A session in the engine; its driver."""

    __slots__ = ("_cancel", "_native", "close", "job", "task")

    def __init__(self, native: Native, job: Job) -> None:
        self._native = native
        self.job = job
        self.task = trio.lowlevel.current_task()
        self.close: tuple[int, bytes] | None = None
        self._cancel: Callable[[], NoReturn] | None = None

    def close_nowait(self, code: int, reason: bytes) -> None:
        self._native.close(self.job, code, reason)
        self.close = code, reason

    def check_sources_nowait(self) -> None:
        pass  # epoll tells the engine

    def abort(self, cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        """Trio wants the task to stop waiting."""
        self._cancel = cancel
        self._native.cancel(self.job)
        return trio.lowlevel.Abort.FAILED

    def wake(self) -> None:
        """C has let go."""
        trio.lowlevel.reschedule(self.task)

    def raise_cancelled(self) -> None:
        """In the task, once it is awake: whoever was let go of because of a cancellation raises it."""
        if self._cancel is not None and self.job.end is EngineEnd.CANCELLED:
            self._cancel()


class Engine:
    """Runs sessions whose legs are both sockets. From `open_engine`; for one Trio run."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self._running: dict[int, _Running] = {}
        self._next_token = 0
        self._is_shut = False

    def can_run(self, session: Session) -> bool:
        """Whether both legs are plain sockets, and the engine has not ended."""
        if self._is_shut:
            return False
        return isinstance(session.sender.stream, trio.SocketStream) and isinstance(
            session.listener.stream, trio.SocketStream
        )

    async def run(self, session: Session) -> SessionResult:
        """Move bytes until both sides are done, then close both streams.

        Both streams are closed when this returns or raises; cancelling it cuts both legs. When it returns or raises, C
        touches neither descriptor.

        Raises:
          OSError: the system does not let the engine watch the sockets.
          trio.ClosedResourceError: the engine has ended before.
        """
        try:
            result = await self.carry(session)
        except (OSError, trio.ClosedResourceError):
            await session.part(None)  # noqa: ASYNC120 - shields itself
            raise
        return result

    @trio.lowlevel.enable_ki_protection
    async def carry(self, session: Session) -> SessionResult:
        """As `run`, but on these two errors nothing was read or sent, and the legs are the caller's as they were."""
        if self._is_shut:
            raise trio.ClosedResourceError("the engine has ended")
        sender, listener = session.sender, session.listener
        assert isinstance(sender.stream, trio.SocketStream)
        assert isinstance(listener.stream, trio.SocketStream)
        token = self._next_token = self._next_token + 1
        try:
            job = Job(
                session.brain,
                token,
                sender.stream.socket.fileno(),
                listener.stream.socket.fileno(),
                early=(sender.early, listener.early),
                half_closed=session.half_closed_timeout,
                close=session.close_timeout,
                idle=session.idle_timeout,
            )
        except BaseException:
            await session.part(None)  # noqa: ASYNC102, ASYNC120 - shields itself
            raise
        running = self._running[token] = _Running(self._native, job)
        session.driver = running
        self._native.submit(job)
        reason = None
        is_refused = False
        try:
            await trio.lowlevel.wait_task_rescheduled(running.abort)
            running.raise_cancelled()
            is_refused = job.end is EngineEnd.REFUSED
            if not is_refused:
                reason = _REASONS[job.end]
        finally:
            if not is_refused:
                # Shields itself.
                await session.part(reason, offender=job.offender)  # noqa: ASYNC102
        if is_refused:
            session.driver = None
            if running.close is not None:
                session.brain.close(*running.close)
            raise OSError(job.error, os.strerror(job.error))
        assert reason is not None
        return SessionResult(reason, job.by, session.statistics())

    @trio.lowlevel.enable_ki_protection
    async def watch(self, scope: trio.CancelScope) -> None:
        """Wake tasks until the scope is cancelled. For who has opened the engine."""
        fd = self._native.fileno()
        try:
            with scope:
                while True:
                    await trio.lowlevel.wait_readable(fd)
                    self.take_completions()
        except (Exception, KeyboardInterrupt):
            # It ends the program, which waits for its tasks; and nobody else would wake those.
            self.shut()
            raise

    @trio.lowlevel.enable_ki_protection
    def shut(self) -> None:
        """End the threads, and cut what still runs. For who has opened the engine. Waits for a round of each thread."""
        self._is_shut = True
        self._native.shut()
        try:
            self.take_completions()
        finally:
            while self._running:  # nobody but those whose tokens were lost with an error
                self._running.popitem()[1].wake()

    def take_completions(self) -> None:
        """Wake the tasks of sessions that have ended."""
        is_more = True
        while is_more:
            tokens = self._native.completions()
            is_more = len(tokens) == BATCH
            for token in tokens:
                self._running.pop(token).wake()

    def statistics(self) -> EngineStatistics:
        """Counters of all threads; not a checkpoint."""
        return self._native.statistics()

    def check_consistency(self) -> list[str]:
        """Recount: what C holds beside what runs here.

        Returns: one sentence for each thing that does not fit.
        """
        counts = self._native.statistics()
        problems = []
        if counts.jobs > len(self._running):
            problems.append(f"the engine holds {counts.jobs} sessions, but {len(self._running)} run")
        if not self._running and counts.buffers_in_use:
            problems.append(f"{counts.buffers_in_use} of the engine's buffers are out, and no session runs")
        return problems


@contextlib.asynccontextmanager
async def open_engine(
    *, threads: int = 0, buffers: int = DEFAULT_BUFFERS, buffer_bytes: int = DEFAULT_BUFFER_BYTES
) -> AsyncIterator[Engine]:
    """Start the engine's threads; they end with the block, and cut what still runs then.

    Args:
      threads: how many; 0 is one for each core that this process may use, up to 64.
      buffers: receive buffers, shared out among the threads. A direction borrows one from a receive to the complete
        send; while none is free it goes on with a reserve of 4 KiB ones, four for each.
      buffer_bytes: size of each; what one receive can take.

    Raises:
      LocalProtocolError: numbers out of range, or no engine on this system; see `engine_is_available`.
      MemoryError: memory, descriptors or threads were refused.
    """
    engine = _start(threads, buffers, buffer_bytes)
    scope = trio.CancelScope()
    # Whoever is cancelled in the block waits for its completion; so who brings that must not be cancelled with it. And
    # a nursery here would wrap what the block raises.
    trio.lowlevel.spawn_system_task(engine.watch, scope)
    try:
        await trio.lowlevel.checkpoint()
        yield engine
    finally:
        scope.cancel()
        engine.shut()


def _start(threads: int, buffers: int, buffer_bytes: int) -> Engine:
    cores = min(len(os.sched_getaffinity(0)), THREADS_MAX) if engine_is_available() else 1
    return Engine(Native(threads=threads or cores, buffers=buffers, buffer_bytes=buffer_bytes))


_shared: trio.lowlevel.RunVar[Engine | None] = trio.lowlevel.RunVar("relaycore shared engine", None)


def shared_engine() -> Engine | None:
    """The engine of those in this Trio run who bring none of their own; None where the system has not what it needs.

    It starts when it is first asked for, with a thread for each core, and ends with the run. Not a checkpoint.

    Raises:
      MemoryError: memory, descriptors or threads were refused.
    """
    engine = _shared.get()
    if engine is None and engine_is_available():
        engine = _start(0, _SHARED_BUFFERS, DEFAULT_BUFFER_BYTES)
        _shared.set(engine)
        trio.lowlevel.spawn_system_task(_keep, engine)
    return engine


async def _keep(engine: Engine) -> None:
    """Trio cancels system tasks when the main task, and with it every session, has ended."""
    try:
        await engine.watch(trio.CancelScope())
    finally:
        engine.shut()
