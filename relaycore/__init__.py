"""A self-hosted relay that speaks the Azure Relay Hybrid Connections protocol, and its Trio listener and sender.

The names here are the public library. They are imported when they are first used, so that ``import relaycore`` and the
commands that need no event loop stay quick.
"""

from __future__ import annotations

__version__ = "0.1.0"
