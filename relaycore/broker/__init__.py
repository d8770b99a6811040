"""Decisions: who may meet whom, once, and how many of them.

Knows namespaces, hybrid connections, rules, listeners and rendezvous addresses. Must not know sockets, bytes on
the wire, ``await``, clocks, random sources or logs: ``now``, ``rng`` and ``new_id`` come in as arguments, and what
happened goes out as a value or a :class:`relaycore.errors.Refused`.
"""
