"""Measures relaycore beside other ways of joining two streams.

Knows processes, counters and tables. Nothing in the product imports it.
"""
