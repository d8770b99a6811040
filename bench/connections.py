"""Asks what a connection costs: memory of each idle one, and how many can be joined in a second."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .loadgen import Job, Load, Route, client_settings
from .processes import BenchError, ending, resident_bytes
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

STEPS = 4
"""Readings between none and all."""

SETTLE_S = 1.0
"""Pause before a reading, so that tasks of the relay have come to rest."""

HOLD_LIMIT_S = 240


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
    """What holding cost, and that all of it was alive at the end."""

    listeners: Growth
    sessions: Growth
    answered_sessions: int
    answered_entities: int
    dial_seconds: float


def _settled(pid: int) -> int:
    time.sleep(SETTLE_S)
    return resident_bytes(pid)


def hold(count: int, say: Callable[[str], None]) -> Held:
    """Hold ``count`` idle listeners, then ``count`` idle joined sessions beside them, on one relay.

    Some are opened and used before the first reading: what a relay allocates once is not the price of a connection.
    At the end every session carries an echo, and every entity takes a fresh sender, so nothing that died silently
    is counted.

    Raises:
      BenchError: something was refused, lost or answered wrongly.
    """
    steps = [count * step // STEPS - count * (step - 1) // STEPS for step in range(1, STEPS + 1)]
    entities = [f"idle-{number}" for number in range(-(-count // LISTENERS_PER_ENTITY))]
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(Stage("connections"))
        options = [option for path in [*entities, "busy"] for option in ("--entity", path)]
        relay, announced = stage.run_python("bench.relays.relay", *options)
        headers = relay_headers(announced)
        port = announced["port"]

        def listener(wanted: Sequence[tuple[str, int]]) -> Load:
            lines = [f"address 127.0.0.1 {port} /$hc/{path}?sb-hc-action=listen {number}" for path, number in wanted]
            return stage.load("listener", [*lines, *(f"header {header}" for header in headers)])[0]

        def client(path: str, jobs: Sequence[Job], *, keep: bool) -> Load:
            route = Route("127.0.0.1", port, f"/$hc/{path}?sb-hc-action=connect", (relay.pid,), (), headers)
            settings = client_settings(route, jobs, warm_s=0, measured_s=0, limit_s=HOLD_LIMIT_S, hold=keep)
            load = Load("client", settings)
            stack.enter_context(ending(load.process))
            return load

        listener([("busy", 1)])
        client("busy", [Job("idle", 64, count=20)], keep=False).answer(30)

        places = [entities[number // LISTENERS_PER_ENTITY] for number in range(count)]
        listener_readings, opened = [(0, _settled(relay.pid))], 0
        for step in steps:
            chunk = places[opened : opened + step]
            listener([(path, chunk.count(path)) for path in dict.fromkeys(chunk)])
            opened += step
            listener_readings.append((opened, _settled(relay.pid)))
            say(f"{opened} idle listeners: relay holds {listener_readings[-1][1] / 1024:,.0f} KiB")

        session_readings, opened, clients = [(0, listener_readings[-1][1])], 0, []
        dial_seconds = 0.0
        for step in steps:
            held = client("busy", [Job("idle", 64, count=step)], keep=True)
            dial_seconds += held.answer(120)["dial_seconds"]
            clients.append(held)
            opened += step
            session_readings.append((opened, _settled(relay.pid)))
            say(f"{opened} idle joined sessions: relay holds {session_readings[-1][1] / 1024:,.0f} KiB")

        answered_entities = sum(
            client(path, [Job("idle", 64)], keep=False).answer(30)["jobs"][0]["messages"] for path in entities
        )
        answered_sessions = 0
        for held in clients:
            held.tell("finish")
            answered_sessions += held.answer(60)["jobs"][0]["messages"]
    if answered_sessions != count or answered_entities != len(entities):
        raise BenchError(
            f"{answered_sessions} of {count} sessions and {answered_entities} of {len(entities)} entities answered"
        )
    return Held(
        Growth.of(listener_readings), Growth.of(session_readings), answered_sessions, answered_entities, dial_seconds
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

    return "\n".join(
        [
            f"- relay before any: {held.listeners.readings[0][1] / 1024 / 1024:.1f} MiB private resident memory",
            line("idle listeners", held.listeners),
            line("idle joined sessions", held.sessions),
            f"- alive at the end: {held.answered_sessions} sessions carried an echo, {held.answered_entities} entities "
            "took a new sender",
            f"- opening the sessions took {held.dial_seconds:.1f} s, "
            f"{held.sessions.readings[-1][0] / held.dial_seconds:,.0f} a second, 64 at a time",
        ]
    )
