"""What may stand between a sender and the far end.

A topology is one function in a module here, and that is all it takes to add one. It gets a :class:`Stage`, starts what
it needs, and returns the :class:`~bench.loadgen.Route` that a client dials. The stage ends everything again.
They are listed in the order of the imports below.
"""

# ruff: noqa: I001
from .base import TOPOLOGIES, Stage, Topology
from . import direct, floor, proxies, tunnels, edges, python, relay  # noqa: F401
from .relay import open_relay, relay_headers

__all__ = ["TOPOLOGIES", "Stage", "Topology", "open_relay", "relay_headers"]
