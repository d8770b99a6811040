"""websockify with a thread for each stream, in one process.

Its usual engine forks for each stream, and the CPU time of a child is not that of the process that is watched. Both
engines run the same loop over one stream. The arguments are those of websockify.
"""

from __future__ import annotations

from websockify.websocketproxy import LibProxyServer, websockify_init  # type: ignore[import-not-found]

if __name__ == "__main__":
    LibProxyServer.unix_listen = None  # 0.13.0 reads it and never sets it
    websockify_init()
