"""Where a hybrid connection leads, as its own text at the relay says."""

from __future__ import annotations

from typing import Final

import trio

from ...errors import RelayError
from ..access import RelayAccess
from ..config.settings import Target

__all__ = ["find_target"]

_READ_TIMEOUT: Final = 20.0


async def find_target(access: RelayAccess, path: str) -> Target | RelayError | OSError | trio.TooSlowError:
    """Read where a hybrid connection leads, or return why that cannot be known. A checkpoint; at most 20 s."""
    from ..hcm.metadata import parse_endpoint_metadata

    try:
        with trio.fail_after(_READ_TIMEOUT):
            found = await access.management().get_entity(path)
        return parse_endpoint_metadata(found.user_metadata or "")
    except (RelayError, OSError, trio.TooSlowError) as error:
        return error
