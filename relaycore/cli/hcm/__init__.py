"""``relaycore hcm``: the connection manager as a daemon, and the commands that talk to it. The room knows the manager's
library, its control socket and its settings; it must not know how connections are served."""

from .group import command

__all__ = ["command"]
