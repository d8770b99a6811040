"""Statuses made by hand."""

from __future__ import annotations

from relaycore.edge.hcm.status import ConnectionStatus, ManagerStatus


def connection(name: str, **others) -> ConnectionStatus:
    values = {
        "status": "Connected", "detail": "", "relay_leg": "Connected", "endpoint_leg": "Up", "relay": "relay.example",
        "path": name, "profile": "raw", "listeners_here": 1, "listeners_wanted": 1, "listeners_total": 2,
        "listeners_unix": 0.0, "endpoint": "db:1433", "endpoint_from": "settings", "health": "up 1.9 ms",
        "latency_ms": 1.9, "open": 0, "queued": 0, "bytes_in": 0, "bytes_out": 0, "accepted": 0, "lost": 0,
        "rejected": {}, "since_unix": 0.0, "attempts": 0, "next_try_unix": None, "last_error": "",
        "last_error_unix": None, "created_unix": None, "updated_unix": None,
    } | others  # fmt: skip
    return ConnectionStatus(name=name, **values)


def manager(*connections: ConnectionStatus) -> ManagerStatus:
    return ManagerStatus(host="edge-a", since_unix=0.0, relay="relay.example", connections=connections)
