"""The client: opens sessions as it is told, and measures what the far end confirms."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any, Final

from ..errors import RelayError
from .link import SOCKET_TIMEOUT, Route, connect, dial, head_end, is_101, receive_exactly, request_head
from .roles import Orders, say
from .script import PRELUDE_MESSAGES, Side, read_count

__all__ = ["main"]

_OURS: Final = Side(masked=True)
_THEIRS: Final = Side(masked=False)

_JOINS_AT_ONCE: Final = 16
"""Sessions being opened at one time: enough that nobody waits for a single one."""


def _open(route: Route, kind: str, size: int) -> socket.socket:
    """A session whose first messages have arrived unchanged."""
    link = dial(route)
    link.sendall(_OURS.order(kind, size))
    if kind == "sink":
        link.sendall(_OURS.message(size) * PRELUDE_MESSAGES)
        if receive_exactly(link, len(_THEIRS.ready)) != _THEIRS.ready:
            raise RelayError("messages did not arrive as they were sent")
    return link


def _close(link: socket.socket) -> None:
    with link:
        link.sendall(_OURS.close)
        if receive_exactly(link, len(_THEIRS.close)) != _THEIRS.close:
            raise RelayError("a Close was not answered with a Close")


def bulk(order: dict[str, Any]) -> dict[str, Any]:
    """One stream as fast as it goes.

    Returns: messages that arrived, and the seconds from the first byte to the far end's word that it has them all.
    """
    size, seconds = order["size"], order["seconds"]
    link = _open(Route.of(order["route"]), "sink", size)
    blob = _OURS.blob(size)
    send, clock, blobs = link.sendall, time.perf_counter, 0
    started = clock()
    until = started + seconds
    while clock() < until:
        send(blob)
        blobs += 1
    send(_OURS.done)
    confirmed = read_count(receive_exactly(link, len(_THEIRS.count(0))))
    elapsed = clock() - started
    messages = blobs * (len(blob) // len(_OURS.message(size)))
    if confirmed != messages:
        raise RelayError(f"{messages} messages were sent, {confirmed} arrived")
    _close(link)
    return {"messages": messages, "seconds": elapsed}


def ping(order: dict[str, Any]) -> dict[str, Any]:
    """One small message at a time. Returns: percentiles of the round trip in microseconds."""
    link = _open(Route.of(order["route"]), "ping", order["size"])
    there, back = _OURS.message(order["size"]), _THEIRS.message(order["size"])
    send, receive, clock, length = link.sendall, link.recv, time.perf_counter_ns, len(back)
    trips: list[int] = []
    for _ in range(20):  # the first ones find cold caches
        send(there)
        receive_exactly(link, length)
    now = clock()
    until = now + int(order["seconds"] * 1e9)
    while now < until:
        send(there)
        answer = receive(length)
        if answer != back and answer + receive_exactly(link, length - len(answer)) != back:
            raise RelayError("an echo came back changed")
        then, now = now, clock()
        trips.append(now - then)
    _close(link)
    trips.sort()
    return {"p50": trips[len(trips) // 2] / 1e3, "p99": trips[len(trips) * 99 // 100] / 1e3, "messages": len(trips)}


def joins(order: dict[str, Any]) -> dict[str, Any]:
    """Sessions opened, closed and closed back, some at a time. Returns: how many, and the seconds they took."""
    route, clock, done = Route.of(order["route"]), time.perf_counter, 0
    request, goodbye, answer = request_head(route), _OURS.close, _THEIRS.close
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            link = connect(route)
            link.sendall(request)
            selector.register(link, selectors.EVENT_READ, bytearray())

        started = clock()
        until = started + order["seconds"]
        for _ in range(_JOINS_AT_ONCE):
            begin()
        while selector.get_map():
            ready = selector.select(SOCKET_TIMEOUT)
            if not ready:
                raise RelayError("a session was not joined")
            for key, _ in ready:
                link, got = key.fileobj, key.data
                assert isinstance(link, socket.socket)
                chunk = link.recv(4_096)
                if chunk:
                    was_open = bool(head_end(got))
                    got += chunk
                    if not was_open and (end := head_end(got)):
                        is_101(got[:end])
                        link.sendall(goodbye)
                    continue
                if got[head_end(got) :] != answer:
                    raise RelayError("a session ended without its Close")
                selector.unregister(link)
                link.close()
                done += 1
                if clock() < until:
                    begin()
        return {"messages": done, "seconds": clock() - started}


def main() -> None:
    """Take orders until standard input ends."""
    orders = Orders({"bulk": bulk, "ping": ping, "joins": joins})
    say({"event": "ready"})
    while orders.read():
        pass
