"""``relaycore connect config``: as of all edge programs."""

from __future__ import annotations

from ..edge_options import config_group

__all__ = ["command"]

command = config_group()
