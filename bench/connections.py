"""Asks what a connection costs: memory of each idle one, and how many can be joined in a second."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .loadgen import Job, Load, Route, client_settings
from .processes import BenchError, ending, raise_open_files_limit, resident_bytes
from .topologies import Stage, relay_headers
from .workload import Workload

WORKLOADS = (
    Workload(
        "joins-32",
        "32 at a time: dial, be joined, close, wait for the other side's Close, again; the time is dial to 101",
        (Job("join", 64, count=32),),
        headline="messages/s",
        shows=("p50 µs", "p99 µs", "CPU µs/message", "busy", "far busy", "client busy"),
        counted=True,
    ),
)

LISTENERS_PER_ENTITY = 25
"""The quota of an entity; more listeners need more entities."""

WARMING = 20
"""Sessions opened and closed before the first reading."""

STEPS = 4
"""Readings between none and all."""

SETTLE_S = 1.0
"""Pause before a reading, so that tasks of the relay have come to rest."""

HOLD_LIMIT_S = 1_800
"""Nobody holds anything longer, whatever happens."""

DIAL_LIMIT_S = 300
"""For a quarter of the sessions to be joined."""

SPARE_FILES = 100
"""What a relay has open beside its connections, and some more."""


@dataclass(frozen=True)
class Growth:
    """Resident private memory of the relay as connections are added, none released.

    Attributes:
      readings: (connections open, bytes), the first with none.
      each_bytes: slope of the least-squares line through the readings.
    """

    readings: tuple[tuple[int, int], ...]
    each_bytes: float

    @classmethod
    def of(cls, readings: Sequence[tuple[int, int]]) -> Growth:
        slope = statistics.linear_regression([count for count, _ in readings], [held for _, held in readings]).slope
        return cls(tuple(readings), slope)


@dataclass(frozen=True)
class Held:
    """What holding cost, and that all of it was alive at the end.

    Attributes:
      asked_sessions: more than were held where no more files may be open.
    """

    listeners: Growth
    sessions: Growth
    answered_sessions: int
    answered_entities: int
    dial_seconds: float
    asked_sessions: int


def stepwise(count: int) -> list[int]:
    """How many to add before each reading; together ``count``."""
    return [count * step // STEPS - count * (step - 1) // STEPS for step in range(1, STEPS + 1)]


def most(count: int, files_each: int) -> int:
    """``count``, or as many as one process may have files open for."""
    allowed = raise_open_files_limit(count * files_each + SPARE_FILES)
    return min(count, (allowed - SPARE_FILES) // files_each)


class _Relay:
    """One relay with some entities, and the load around it. A context manager."""

    def __init__(self, entities: Sequence[str], connections: int, settings: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        self._entities = entities
        room = [f"server.max_connections={connections}", f"limits.connections_per_namespace={connections}"]
        self._settings = [*room, *settings]

    def __enter__(self) -> _Relay:
        with contextlib.ExitStack() as stack:
            self._stage = stack.enter_context(Stage("connections"))
            options = [option for path in self._entities for option in ("--entity", path)]
            options += [f"--set={setting}" for setting in self._settings]
            relay, announced = self._stage.run_python("bench.relays.relay", *options)
            self._pid = relay.pid
            self._headers = relay_headers(announced)
            self._port = announced["port"]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def listen(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Add listeners: so many for each path."""
        lines = [f"address 127.0.0.1 {self._port} /$hc/{path}?sb-hc-action=listen {number}" for path, number in wanted]
        self._stage.load("listener", [*lines, *(f"header {header}" for header in self._headers)])

    def client(self, path: str, job: Job, *, keep: bool) -> Load:
        route = Route("127.0.0.1", self._port, f"/$hc/{path}?sb-hc-action=connect", (self._pid,), (), self._headers)
        settings = client_settings(route, [job], warm_s=0, measured_s=0, limit_s=HOLD_LIMIT_S, hold=keep)
        load = Load("client", settings)
        self._stack.enter_context(ending(load.process))
        return load

    def echoes(self, path: str, count: int = 1) -> int:
        """Dial, echo once on each session, close. Returns how many answered."""
        client = self.client(path, Job("idle", 64, count=count), keep=False)
        answered: int = client.answer(DIAL_LIMIT_S)["jobs"][0]["messages"]
        client.wait_ended(DIAL_LIMIT_S)
        return answered

    def settled_bytes(self) -> int:
        time.sleep(SETTLE_S)
        return resident_bytes(self._pid)


def hold_listeners(
    count: int, say: Callable[[str], None], settings: Sequence[str] = ()
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Hold idle listeners on a relay of their own. At the end every entity takes a sender, and its echo comes back.

    Some sessions are opened and used before the first reading: what a relay allocates once is not the price of a
    connection.

    Returns: readings, and how many entities answered.
    """
    entities = [f"idle-{number}" for number in range(-(-count // LISTENERS_PER_ENTITY))]
    places = [entities[number // LISTENERS_PER_ENTITY] for number in range(count)]
    with _Relay([*entities, "busy"], count + SPARE_FILES, settings) as relay:
        relay.listen([("busy", 1)])
        relay.echoes("busy", WARMING)
        readings, opened = [(0, relay.settled_bytes())], 0
        for step in stepwise(count):
            chunk = places[opened : opened + step]
            relay.listen([(path, chunk.count(path)) for path in dict.fromkeys(chunk)])
            opened += step
            readings.append((opened, relay.settled_bytes()))
            say(f"{opened} idle listeners: relay holds {readings[-1][1] / 1024:,.0f} KiB")
        answered = sum(relay.echoes(path) for path in entities)
    if answered != len(entities):
        raise BenchError(f"{answered} of {len(entities)} entities answered")
    return tuple(readings), answered


def hold_sessions(
    count: int, say: Callable[[str], None], settings: Sequence[str] = ()
) -> tuple[tuple[tuple[int, int], ...], int, float]:
    """Hold idle joined sessions on a relay of their own. At the end each carries an echo.

    Returns: readings, how many answered, and the seconds it took to join them.
    """
    with _Relay(["busy"], 2 * count + SPARE_FILES, settings) as relay:
        relay.listen([("busy", 1)])
        relay.echoes("busy", WARMING)
        readings, opened = [(0, relay.settled_bytes())], 0
        clients, dial_seconds = [], 0.0
        for step in stepwise(count):
            clients.append(relay.client("busy", Job("idle", 64, count=step), keep=True))
            dial_seconds += clients[-1].answer(DIAL_LIMIT_S)["dial_seconds"]
            opened += step
            readings.append((opened, relay.settled_bytes()))
            say(f"{opened} idle joined sessions: relay holds {readings[-1][1] / 1024:,.0f} KiB")
        answered = 0
        for held in clients:
            held.tell("finish")
            answered += held.answer(DIAL_LIMIT_S)["jobs"][0]["messages"]
    if answered != count:
        raise BenchError(f"{answered} of {count} sessions answered")
    return tuple(readings), answered, dial_seconds


def hold(listeners: int, sessions: int, say: Callable[[str], None], settings: Sequence[str] = ()) -> Held:
    """Hold idle listeners on one relay, then idle joined sessions on another.

    At the end every session carries an echo, and every entity takes a fresh sender, so nothing that died silently
    is counted.

    Args:
      settings: of the relays, each ``NAME=JSON``.

    Raises:
      BenchError: something was refused, lost or answered wrongly.
    """
    listener_readings, answered_entities = hold_listeners(most(listeners, 1), say, settings)
    session_readings, answered_sessions, dial_seconds = hold_sessions(most(sessions, 2), say, settings)
    return Held(
        Growth.of(listener_readings),
        Growth.of(session_readings),
        answered_sessions,
        answered_entities,
        dial_seconds,
        sessions,
    )


def held_text(held: Held) -> str:
    """Lines for the report."""

    def line(what: str, growth: Growth) -> str:
        count, last = growth.readings[-1]
        mean = (last - growth.readings[0][1]) / count
        return (
            f"- {count} {what}: {growth.each_bytes / 1024:.1f} KiB each by the slope of "
            f"{len(growth.readings)} readings, {mean / 1024:.1f} KiB by last less first"
        )

    short = held.asked_sessions - held.sessions.readings[-1][0]
    return "\n".join(
        [
            *([f"- {short} sessions fewer than asked: a process may open no more files (ulimit -n)"] if short else []),
            f"- relay before any: {held.listeners.readings[0][1] / 1024 / 1024:.1f} MiB private resident memory",
            line("idle listeners", held.listeners),
            line("idle joined sessions", held.sessions),
            f"- alive at the end: {held.answered_sessions} sessions carried an echo, {held.answered_entities} entities "
            "took a new sender",
            f"- opening the sessions took {held.dial_seconds:.1f} s, "
            f"{held.sessions.readings[-1][0] / held.dial_seconds:,.0f} a second, 64 at a time",
        ]
    )
