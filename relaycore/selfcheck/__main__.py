"""``python -m relaycore.selfcheck ROLE``: one of the processes of a self-check. For ``relaycore bench`` to start."""

from __future__ import annotations

import importlib
import sys

from ..errors import RelayError
from .roles import say

ROLES = {"relay": "relay", "far-end": "far_end", "client": "client"}


def main() -> None:
    """Play the role that is named."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in ROLES:
        sys.exit(f"roles: {', '.join(ROLES)}; `relaycore bench` starts them")
    try:
        importlib.import_module(f".{ROLES[name]}", __package__).main()
    except (RelayError, OSError) as error:
        say({"error": f"{name}: {error or type(error).__name__}"})
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # whoever measures says what there is to say


if __name__ == "__main__":
    main()
