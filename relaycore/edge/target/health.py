"""How an endpoint is: probes at an interval, and what senders' own dials tell in between.

::

               first result        `fall` failures in a row
    Unknown ───────────────▶ Up ─────────────────────────────▶ Down
                              ▲                                 │
                              └──────── `rise` successes ───────┘

Degraded is Up with something wrong: the last probe failed, or one of several targets is down. Only a probe brings an
endpoint back from Down, as no sender is let through to it then; so without probes it never gets there.

Source: connection manager 8.3, 8.5.6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import random
import signal
import ssl
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from ...errors import RemoteProtocolError
from ...wire.http1 import ResponseHead, ResponseReader, build_request
from ..config.settings import DialSettings, HealthSettings, Probe, Target
from .dial import DialFailed, Dialled, TargetOrder, dial
from .policy import Policy

__all__ = ["EndpointHealth", "EndpointState", "ProbeResult", "TargetHealth", "probe"]

_EXPECT_WITHIN: Final = 4096
"""Bytes of an answer in which the expected ones have to occur."""

_REMEMBERED: Final = 5
"""Results of which a summary tells how many failed."""

_HURRY_S: Final = 1.0
"""A failed dial brings the next probe as near as this."""

_STDERR_BYTES: Final = 200
"""Of a command's complaint that are repeated."""

_STDERR_KEPT: Final = 4096
"""Of what it says in all; the end counts."""

_LAST_WORDS_S: Final = 0.2
"""Seconds for the rest of it, once the command has ended."""


class EndpointState(enum.Enum):
    """What to think of an endpoint."""

    UNKNOWN = "Unknown"
    UP = "Up"
    DEGRADED = "Degraded"
    DOWN = "Down"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found.

    Attributes:
      error: one line; ``""`` when all is well.
      seconds: it took.
      address: that answered, if one did.
    """

    error: str
    seconds: float
    address: str = ""


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """A snapshot of one target.

    Attributes:
      is_up: None before the first result.
      latency_s: of the last probe that went well.
      recent: the last results, True for good ones.
      last_error: the last failure's text, also after it has passed.
    """

    target: Target
    is_up: bool | None
    latency_s: float | None
    recent: tuple[bool, ...]
    last_error: str


class _Watched:
    """One target's books."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.is_up: bool | None = None
        self.latency_s: float | None = None
        self.recent: deque[bool] = deque(maxlen=_REMEMBERED)
        self.last_error = ""
        self._streak = 0  # results in a row that speak against is_up

    def note(self, ok: bool, error: str, settings: HealthSettings) -> None:
        self.recent.append(ok)
        if not ok:
            self.last_error = error
        if self.is_up is None:
            self.is_up = ok or settings.probe.kind == "none"
        elif ok is self.is_up:
            self._streak = 0
        else:
            self._streak += 1
            if self._streak >= (settings.rise if ok else settings.fall) and (ok or settings.probe.kind != "none"):
                self.is_up = ok
                self._streak = 0

    def snapshot(self) -> TargetHealth:
        return TargetHealth(self.target, self.is_up, self.latency_s, tuple(self.recent), self.last_error)


class EndpointHealth:
    """Watches the targets of one connection entry.

    Args:
      targets: may be replaced later by `change`.
      settings: what to probe, and what counts.
      dial_settings: how the entry dials; a probe has its own timeout.
      policy: what it forbids is not probed either.
      order_state: is told which targets are down, to try them last.
      rng: from 0 to 1, spreads the probes of many programs.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        settings: HealthSettings,
        *,
        dial_settings: DialSettings | None = None,
        policy: Policy | None = None,
        order_state: TargetOrder | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._dial = dial_settings or DialSettings()
        self._policy = policy
        self._order = order_state
        self._rng = rng
        self._watched = [_Watched(target) for target in targets]
        self._state = EndpointState.UNKNOWN
        self._changed = trio.Event()
        self._next_probe_at = 0.0
        self._hurry = trio.Event()

    @property
    def state(self) -> EndpointState:
        return self._state

    @property
    def is_down(self) -> bool:
        """Whether senders would be refused by every target."""
        return self._state is EndpointState.DOWN

    @property
    def targets(self) -> tuple[TargetHealth, ...]:
        """A snapshot of each."""
        return tuple(watched.snapshot() for watched in self._watched)

    @property
    def last_error(self) -> str:
        """The text of what is wrong now; ``""`` when nothing is."""
        wrong = [
            each.last_error for each in self._watched if each.is_up is False or (each.recent and not each.recent[-1])
        ]
        return "; ".join(dict.fromkeys(wrong))

    @property
    def latency(self) -> float | None:
        """Seconds of the last probe that went well: the least of the targets' that are up."""
        return min(
            (each.latency_s for each in self._watched if each.is_up and each.latency_s is not None), default=None
        )

    @property
    def summary(self) -> str:
        """A few words for a table: ``up 1.9 ms``, ``2 of 5 failed``, ``1 of 2 down``, ``down``."""
        down = sum(each.is_up is False for each in self._watched)
        match self._state:
            case EndpointState.UNKNOWN:
                return "not probed" if self._settings.probe.kind == "none" else "unknown"
            case EndpointState.DOWN:
                return "down"
            case EndpointState.DEGRADED if down:
                return f"{down} of {len(self._watched)} down"
            case EndpointState.DEGRADED:
                worst = max(self._watched, key=lambda each: each.recent.count(False))
                return f"{worst.recent.count(False)} of {len(worst.recent)} failed"
            case EndpointState.UP:
                return "up" if self.latency is None else f"up {self.latency * 1000:.1f} ms"

    def refusal(self) -> DialFailed:
        """What a sender is told while the endpoint is down."""
        return DialFailed(503, f"the endpoint is down: {self.last_error or 'it failed its probes'}", "other")

    def change(self, targets: Sequence[Target], settings: HealthSettings | None = None) -> None:
        """Watch other targets from now on; what is known of those that stay is kept."""
        known = {watched.target: watched for watched in self._watched}
        self._watched = [known.get(target) or _Watched(target) for target in targets]
        self._settings = settings or self._settings
        self._update()
        self._come_sooner(0)

    def note_dial(self, ok: bool, error: str = "", target: Target | None = None) -> None:
        """Count a sender's dial. Only for dials that say something about the endpoint: a policy's no does not.

        Args:
          target: which one; None after a failure of them all.
        """
        for watched in self._watched:
            if target is not None and watched.target != target:
                continue
            # Where a probe asks for more than a connection, only the probe can say that all is well again.
            if not ok or watched.is_up is not False or self._settings.probe.kind == "tcp":
                watched.note(ok, error, self._settings)
        self._update()
        if not ok:
            self._come_sooner(_HURRY_S)

    async def wait_changed(self, seen: EndpointState | None = None) -> EndpointState:
        """Wait for another state. A checkpoint.

        Args:
          seen: what the caller knows; if the state is another one by now, there is no wait.
        """
        if seen is not None and seen is not self._state:
            await trio.lowlevel.checkpoint()
            return self._state
        await self._changed.wait()
        return self._state

    async def check_now(self) -> list[tuple[Target, ProbeResult]]:
        """Probe each target once, now, and count the results. A checkpoint.

        With the probe ``none``, targets are connected to all the same: somebody has asked.
        """
        watched = list(self._watched)
        found: list[ProbeResult | None] = [None] * len(watched)
        kind = self._settings.probe if self._settings.probe.kind != "none" else Probe("tcp")

        async def one(index: int) -> None:
            found[index] = result = await probe(
                watched[index].target, kind, self._dial, timeout_s=self._settings.timeout_s, policy=self._policy
            )
            if not result.error:
                watched[index].latency_s = result.seconds
            watched[index].note(not result.error, result.error, self._settings)

        async with trio.open_nursery() as nursery:
            for index in range(len(watched)):
                nursery.start_soon(one, index)
        self._update()
        return [(each.target, result) for each, result in zip(watched, found, strict=True) if result is not None]

    async def run(self) -> None:
        """Probe at the interval, forever. A failing probe is no error."""
        self._next_probe_at = trio.current_time()
        while True:
            if self._settings.probe.kind == "none" or not self._watched:
                await self._hurry.wait()
                self._hurry = trio.Event()
                continue
            while (left := self._next_probe_at - trio.current_time()) > 0:
                with trio.move_on_after(left):
                    await self._hurry.wait()
                    self._hurry = trio.Event()
            # A tenth either way, lest many managers of one endpoint keep step.
            self._next_probe_at = trio.current_time() + self._settings.interval_s * (0.9 + 0.2 * self._rng())
            await self.check_now()

    def _come_sooner(self, seconds: float) -> None:
        self._next_probe_at = min(self._next_probe_at, trio.current_time() + seconds)
        self._hurry.set()

    def _update(self) -> None:
        if self._order is not None:
            self._order.down = frozenset(each.target for each in self._watched if each.is_up is False)
        state = self._judged()
        if state is not self._state:
            self._state = state
            self._changed.set()
            self._changed = trio.Event()

    def _judged(self) -> EndpointState:
        ups = [each.is_up for each in self._watched]
        if not any(up is not None for up in ups):
            return EndpointState.UNKNOWN
        if True not in ups:
            return EndpointState.DOWN if None not in ups else EndpointState.UNKNOWN
        if False in ups or any(each.recent and not each.recent[-1] for each in self._watched):
            return EndpointState.DEGRADED
        return EndpointState.UP


async def probe(
    target: Target, kind: Probe, settings: DialSettings, *, timeout_s: float, policy: Policy | None = None
) -> ProbeResult:
    """Ask one target how it is. Raises nothing but what cancels it. A checkpoint."""
    began = trio.current_time()
    address = ""
    error = ""
    try:
        if kind.kind == "command":
            with trio.fail_after(timeout_s):
                await _run_command(target, kind)
        else:
            dialled = await dial([target], dataclasses.replace(settings, timeout_s=timeout_s), policy=policy)
            address = dialled.address
            try:
                with trio.fail_at(began + timeout_s):
                    await _ask(dialled, kind)
            finally:
                # Nothing of a probe is worth a goodbye.
                dialled.stream.socket.close()
    except trio.TooSlowError:
        what = (
            f"{kind.command[0]} took" if kind.kind == "command" else f"{target} ({address}) gave no {kind.kind} answer:"
        )
        error = f"{what} more than {timeout_s:g} s"
    except DialFailed as failed:
        error = failed.text
    except _Unwell as unwell:
        error = f"{target}{f' ({address})' if address and address != target.host else ''} {unwell}"
    return ProbeResult(error, trio.current_time() - began, address)


class _Unwell(Exception):
    """The target is there, and not as it should be. The message goes on where the target's name ends."""


async def _ask(dialled: Dialled, kind: Probe) -> None:
    stream = dialled.stream
    try:
        match kind.kind:
            case "tls":
                await _shake_hands(stream, dialled.target)
            case "http":
                await _get(stream, dialled.target, kind.path)
            case "exchange":
                await _exchange(stream, kind)
            case _:
                pass
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError):
            raise _Unwell(f"does not speak TLS: {(cause.reason or str(cause)).replace('_', ' ').lower()}") from error
        said = (cause.strerror or "").lower() if isinstance(cause, OSError) else ""
        raise _Unwell(f"broke the connection off{': ' + said if said else ''}") from error


async def _shake_hands(stream: trio.SocketStream, target: Target) -> None:
    # Whether to trust the certificate is the sender's question, whose bytes go through here unread.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = trio.SSLStream(stream, context, server_hostname=target.host or None)
    await tls.do_handshake()


async def _get(stream: trio.SocketStream, target: Target, path: str) -> None:
    host = str(target) if target.host else "localhost"
    headers = [("Host", host), ("User-Agent", "relaycore-probe"), ("Connection", "close")]
    await stream.send_all(build_request("GET", path, headers))
    reader: ResponseReader[ResponseHead] = ResponseReader()
    try:
        while (head := reader.next_event()) is None:
            data = await stream.receive_some(65_536)
            if not data:
                raise _Unwell(f"closed the connection without an answer to GET {path}")
            reader.receive_data(data)
    except RemoteProtocolError as error:
        raise _Unwell(f"does not speak HTTP: {error}") from error
    if head.status >= 400:
        raise _Unwell(f"answered GET {path} with {head.status} {head.reason}".rstrip())


async def _exchange(stream: trio.SocketStream, kind: Probe) -> None:
    if kind.send:
        await stream.send_all(kind.send)
    got = bytearray()
    while kind.expect not in got:
        data = await stream.receive_some(_EXPECT_WITHIN - len(got)) if len(got) < _EXPECT_WITHIN else b""
        if not data:
            raise _Unwell(f"sent {bytes(got[:40])!r} and not the {kind.expect!r} that is expected")
        got += data


async def _run_command(target: Target, kind: Probe) -> None:
    environ = {
        **os.environ,
        "RELAYCORE_HOST": target.host,
        "RELAYCORE_PORT": str(target.port) if target.port else "",
        "RELAYCORE_PATH": target.path,
    }
    name = kind.command[0]
    try:
        process = await trio.lowlevel.open_process(
            kind.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        raise _Unwell(f"was not probed: {name} cannot be started: {error.strerror}") from error
    assert process.stderr is not None
    complaint = bytearray()
    try:
        async with process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(_keep_end, process.stderr, complaint)
            await process.wait()
            _kill_group(process)  # what it has left behind may hold its stderr
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS_S
    finally:
        if process.returncode is None:
            _kill_group(process)
            with trio.CancelScope(shield=True):
                await process.wait()
    if process.returncode:
        said = complaint.decode(errors="replace").strip().rpartition("\n")[2][-_STDERR_BYTES:]
        raise _Unwell(f"is not well: {name} ended with {process.returncode}{': ' + said if said else ''}")


async def _keep_end(stream: trio.abc.ReceiveStream, end: bytearray) -> None:
    async for data in stream:
        end += data
        del end[:-_STDERR_KEPT]


def _kill_group(process: trio.Process) -> None:
    """End a command and what it has started: a probe has nothing to put in order."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
