"""Starts the three processes, asks for every measurement in turn, and makes a table's figures of the answers.

Order: every measure direct and through the relay, one right after the other; then the next measure; then the next
round. Ratios are made of such pairs, because machines are faster in one minute than in another.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import RelayError
from ..wire.sas import make_token
from .link import Route

__all__ = ["FIGURES", "Figure", "Limit", "Measure", "Outcome", "Pace", "SelfCheck", "open_selfcheck", "usable_cores"]

START_TIMEOUT: Final = 30.0
"""Seconds for a process to start on a busy machine."""

ANSWER_TIMEOUT: Final = 30.0
"""Seconds beyond the measured time after which a measurement has failed."""

BUSY: Final = 0.85
"""Share of a core from which on a process was the limit of a figure."""

_END_TIMEOUT: Final = 5.0
_TOKEN_LIFETIME: Final = 3_600
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Measure:
    """One order to the client.

    ``together``: all processes on one core, since waking another one takes longer than any relay.
    """

    order: dict[str, Any]
    together: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: which of a measure's answers it is made of, and how."""

    name: str
    unit: str
    measure: Measure
    value: Callable[[dict[str, Any]], float]
    lower_is_better: bool = False


_BULK: Final = Measure({"do": "bulk", "size": 65_536})
_SMALL: Final = Measure({"do": "bulk", "size": 128})
_PING: Final = Measure({"do": "ping", "size": 64}, together=True)
_JOINS: Final = Measure({"do": "joins"})
MEASURES: Final = (_BULK, _SMALL, _PING, _JOINS)


def _rate(answer: dict[str, Any]) -> float:
    return float(answer["messages"] / answer["seconds"])


FIGURES: Final = (
    Figure("one stream, messages of 64 KiB", "MiB/s", _BULK, lambda answer: _rate(answer) * 65_536 / _MIB),
    Figure("one stream, messages of 128 B", "messages/s", _SMALL, _rate),
    Figure("ping-pong of 64 B, p50", "µs", _PING, lambda answer: float(answer["p50"]), lower_is_better=True),
    Figure("ping-pong of 64 B, p99", "µs", _PING, lambda answer: float(answer["p99"]), lower_is_better=True),
    Figure("sessions opened and closed", "sessions/s", _JOINS, _rate),
)


class Limit(enum.Enum):
    """What kept a figure from being higher."""

    RELAY = "relay"  # its core was busy: the figure is its own
    LOAD = "load"  # client and far end were busy: the relay can do more
    NEITHER = "neither"  # everybody waited: for each other, or for a machine that was busy with something else
    UNKNOWN = "unknown"  # all on one core: shares say nothing


@dataclass(frozen=True, slots=True)
class Pace:
    """How often everything is measured, and for how many seconds each time."""

    rounds: int
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What all rounds said about one figure: one value each, direct and through the relay; and shares of a core."""

    figure: Figure
    direct: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    relay_busy: list[float] = field(default_factory=list)
    load_busy: list[float] = field(default_factory=list)
    shares_count: bool = True

    @property
    def ratio(self) -> float:
        """Through the relay over direct: the median of the rounds' own ratios."""
        return statistics.median(ours / base for ours, base in zip(self.relay, self.direct, strict=True))

    @property
    def limit(self) -> Limit:
        """What kept the relay's figure from being higher."""
        if not self.shares_count:
            return Limit.UNKNOWN
        if statistics.median(self.relay_busy) >= BUSY:
            return Limit.RELAY
        return Limit.LOAD if statistics.median(self.load_busy) >= BUSY else Limit.NEITHER


class _Child:
    """A process of ours: orders in, answers out, and its complaints kept for when something goes wrong."""

    def __init__(self, role: str, environment: dict[str, str]) -> None:
        self.role = role
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relaycore.selfcheck", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment,
        )
        self._text = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, order: dict[str, Any], timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises:
          RelayError: the child failed, ended, or took longer than `timeout` seconds.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer says why
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        return self.answer(timeout)

    def answer(self, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """The next line that the child says; errors as :meth:`ask`."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise RelayError(f"the {self.role} of the self-check gave no answer within {timeout:g} s")
            chunk = os.read(pipe, 65_536)
            if not chunk:
                raise RelayError(f"the {self.role} of the self-check ended early{self._last_words()}")
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RelayError(f"the self-check failed: {answer['error']}")
        return answer

    def check(self) -> None:
        """Raise what the child said, or that it has ended, without having been asked."""
        assert self._process.stdout is not None
        if self._text or select.select([self._process.stdout.fileno()], [], [], 0)[0]:
            self.answer(0.1)

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def cpu(self) -> float:
        """CPU seconds that the child has used so far."""
        return float(self.ask({"do": "cpu"})["cpu"])

    def end(self) -> None:
        """Close its input, by which it ends; kill it if it does not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._complaints.close()


def _place(child: _Child, cores: Sequence[int]) -> None:
    """Keep every thread of a child on these cores, where the system lets us."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{child.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def usable_cores() -> list[int]:
    """Numbers of the cores that we may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class SelfCheck:
    """Three running processes, and what can be asked of them. See :func:`open_selfcheck`."""

    def __init__(self, relay: _Child, far_end: _Child, client: _Child, *, mover: str, routes: dict[str, Route]) -> None:
        self._relay, self._far_end, self._client = relay, far_end, client
        self._routes = routes
        self._cores = usable_cores()
        self.mover = mover

    def measure(self, measure: Measure, topology: str, seconds: float) -> tuple[dict[str, Any], float, float]:
        """Measure once, ``direct`` or through the ``relay``.

        Returns: the client's answer; the share of a core that the relay used, and that client and far end used.
        """
        if self._cores:
            _place(self._relay, self._cores[:1] if measure.together else self._cores[-1:])
            for child in (self._far_end, self._client):
                _place(child, self._cores[:1])
        relay_before, load_before = self._relay.cpu(), self._far_end.cpu() + self._client.cpu()
        started = time.monotonic()
        order = {**measure.order, "route": self._routes[topology].plain(), "seconds": seconds}
        try:
            answer = self._client.ask(order, seconds + ANSWER_TIMEOUT)
        except RelayError:
            self._far_end.check()  # what the client saw may only be the consequence
            self._relay.check()
            raise
        elapsed = time.monotonic() - started
        load = self._far_end.cpu() + self._client.cpu() - load_before
        return answer, (self._relay.cpu() - relay_before) / elapsed, load / elapsed

    def run(self, pace: Pace, progress: Callable[[str], object]) -> list[Outcome]:
        """Measure everything, in rounds.

        Args:
          pace: how often and how long.
          progress: gets a line before each round.
        """
        outcomes = [Outcome(figure) for figure in FIGURES]
        for number in range(pace.rounds):
            progress(f"round {number + 1} of {pace.rounds}")
            for measure in MEASURES:
                direct, _, _ = self.measure(measure, "direct", pace.seconds)
                relay, relay_busy, load_busy = self.measure(measure, "relay", pace.seconds)
                for outcome in (each for each in outcomes if each.figure.measure is measure):
                    outcome.direct.append(outcome.figure.value(direct))
                    outcome.relay.append(outcome.figure.value(relay))
                    outcome.relay_busy.append(relay_busy)
                    outcome.load_busy.append(load_busy)
                    outcome.shares_count = len(self._cores) > 1 and not measure.together
        return outcomes


@contextlib.contextmanager
def open_selfcheck() -> Iterator[SelfCheck]:
    """Start a relay, a far end that listens on it, and a client; end them again.

    Raises:
      RelayError: one of them did not start.
    """
    # Settings of the user's relay, and the connection string of another one, must not reach into this.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RELAYCORE_")}
    with contextlib.ExitStack() as stack:
        children = []
        for role in ("relay", "far-end", "client"):
            children.append(_Child(role, environment))
            stack.callback(children[-1].end)
        relay, far_end, client = children
        relay_ready, far_end_ready = relay.answer(), far_end.answer()
        client.answer()
        token = make_token(
            "http://127.0.0.1/", relay_ready["key_name"], relay_ready["key"], int(time.time()) + _TOKEN_LIFETIME
        )
        headers = (f"ServiceBusAuthorization: {token}",)
        path = f"/$hc/{relay_ready['entity']}?sb-hc-action="
        listen = Route("127.0.0.1", relay_ready["port"], f"{path}listen", headers)
        routes = {
            "direct": Route("127.0.0.1", far_end_ready["port"], "/"),
            "relay": Route("127.0.0.1", relay_ready["port"], f"{path}connect", headers),
        }
        far_end.ask({"do": "listen", "route": listen.plain()})
        yield SelfCheck(relay, far_end, client, mover=relay_ready["mover"], routes=routes)
