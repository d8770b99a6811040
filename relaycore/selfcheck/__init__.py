"""The load of ``relaycore bench``: a relay, a far end and a client, each a process of its own, and what they measured.

It needs nothing but the installed package. The room knows `gateway`, `wire` and `_native`; it must not know the command
line, nor ``bench/``, whose load generator in C says more and is not installed.
"""
