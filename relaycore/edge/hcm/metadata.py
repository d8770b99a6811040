"""The endpoint that a hybrid connection's own text names, as the vendor's connection manager has it.

::

    [{"key": "endpoint", "value": "sqldb.corp.example:1433"}]

Source: connection manager 1.4.2, 4.2.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Final

import trio

from ...client.management import Entity
from ...errors import ConfigError, EndpointNotFound, RelayError
from ..access import RelayAccess
from ..config.settings import Target
from ..config.texts import parse_target

__all__ = ["METADATA_INTERVAL", "MetadataWatch", "parse_endpoint_metadata"]

METADATA_INTERVAL: Final = 60.0
"""Seconds between two reads. A changed endpoint counts for new connections after a minute at most."""

_RETRY: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until a read that failed is made again; then it is the interval."""

_LEAST_GAP: Final = 0.2
"""Seconds between two reads, however often somebody asks for one: a control channel may come and go quickly."""

_WANTED: Final = '[{"key": "endpoint", "value": "HOST:PORT"}]'


def parse_endpoint_metadata(text: str | None) -> Target:
    """Read the endpoint out of a hybrid connection's user metadata.

    Small and large letters do not matter, and other keys beside ``endpoint`` are left alone. IPv6 addresses stand in
    brackets. A Unix socket is not taken: whoever may write this text should not choose files of this machine.

    Raises:
      ConfigError: there is none; the message says what was found, and what should stand there.
    """
    if text is None or not text.strip():
        raise _no_endpoint("it is empty")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_endpoint(f"it is not JSON: {text.strip()!r:.100}", text.strip()) from error
    if isinstance(found, dict):
        values = [value for key, value in found.items() if key.lower() == "endpoint"]
        shown = "one object that is not in a list"
        if {key.lower() for key in found} == {"key", "value"}:
            values = [value for key, value in found.items() if key.lower() == "value"]
        raise _no_endpoint(f"it is {shown}", values[0] if len(values) == 1 else None)
    if not isinstance(found, list):
        raise _no_endpoint(f"it is {_kind(found)}", found)
    values = []
    keys = []
    for item in found:
        pairs = {key.lower(): value for key, value in item.items()} if isinstance(item, dict) else {}
        key = pairs.get("key")
        if not isinstance(key, str):
            continue
        keys.append(key)
        if key.strip().lower() == "endpoint":
            values.append(pairs.get("value"))
    if not values:
        named = f"only the keys {', '.join(repr(key) for key in keys[:5])}" if keys else "no key and value at all"
        raise _no_endpoint(f"its list has {named}")
    if len({str(value).lower() for value in values}) > 1:
        raise _no_endpoint("its list has several endpoints")
    return _target(values[0])


def _target(value: object) -> Target:
    if not isinstance(value, str):
        raise _no_endpoint(f"the endpoint is {_kind(value)}")
    if value.strip().lower().startswith("unix:"):
        raise _no_endpoint("the endpoint is a Unix socket, which only the settings of this machine can name")
    if "://" in value:
        raise _no_endpoint(f"the endpoint is a URL, {value!r:.100}", value.partition("://")[2].partition("/")[0])
    try:
        return parse_target(value.lower())
    except ConfigError as error:
        raise _no_endpoint(f"the endpoint is {value!r:.100}, which is not HOST:PORT") from error


def _no_endpoint(found: str, value: object = None) -> ConfigError:
    """The error, with the text as it should be: with the endpoint that was probably meant, if there is one."""
    wanted = _WANTED
    if isinstance(value, str):
        with contextlib.suppress(ConfigError):
            wanted = json.dumps([{"key": "endpoint", "value": str(parse_target(value))}])
    return ConfigError(f"the hybrid connection's metadata names no endpoint: {found}; it should be {wanted}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return f"the text {value!r:.100}"
    return "a list" if isinstance(value, list) else "an object"


class MetadataWatch:
    """Reads what the relay says about a hybrid connection, again and again, and keeps the last thing known.

    Args:
      access: where and as whom.
      on_change: called when any attribute has changed.

    Attributes:
      entity: as the relay described it last; None before the first answer.
      entity_unix: when that was.
      target: the endpoint that its text names, or named last; None if it never did.
      error: why the last read failed, or why the text names no endpoint; ``""`` when all is well.
      is_new_error: the last read had another outcome than the one before, and not a good one.
    """

    def __init__(
        self,
        access: RelayAccess,
        on_change: Callable[[], None],
        *,
        interval_s: float = METADATA_INTERVAL,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self.entity: Entity | None = None
        self.entity_unix: float | None = None
        self.target: Target | None = None
        self.error = ""
        self.is_new_error = False
        self._access = access
        self._on_change = on_change
        self._interval_s = interval_s
        self._now_unix = now_unix
        self._wanted = trio.Event()
        self._asked_at = -math.inf
        self._failures = 0

    def adopt(self, other: MetadataWatch) -> None:
        """Go on with what another one knew."""
        self.entity, self.entity_unix, self.target = other.entity, other.entity_unix, other.target

    @property
    def path(self) -> str:
        """The hybrid connection."""
        return self._access.connection_string.entity_path or ""

    def refresh(self, *, older_than_s: float = 0.0) -> None:
        """Have it read again soon, if the last time is as long ago as that. Not a checkpoint."""
        if trio.current_time() - self._asked_at >= older_than_s:
            self._wanted.set()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self._wanted = trio.Event()
            await self.read()
            await trio.sleep(_LEAST_GAP)
            with trio.move_on_after(self._delay()):
                await self._wanted.wait()

    @property
    def is_current(self) -> bool:
        """Whether the last read brought an answer."""
        return self.entity is not None and not self._failures

    def _delay(self) -> float:
        if 0 < self._failures <= len(_RETRY):
            return min(_RETRY[self._failures - 1], self._interval_s)
        return self._interval_s

    async def read(self) -> None:
        """Read once, now. Errors end up in `error`. A checkpoint."""
        before = self.entity, self.target, self.error
        self._asked_at = trio.current_time()
        try:
            entity = await self._access.management().get_entity(self.path)
        except EndpointNotFound:
            self._note_failure(f"the relay knows no hybrid connection {self.path!r}")
        except (RelayError, OSError) as error:
            self._note_failure(f"the hybrid connection's metadata cannot be read: {error}")
        else:
            self.entity, self.entity_unix = entity, self._now_unix()
            self.error = ""
            self._failures = 0
            try:
                self.target = parse_endpoint_metadata(entity.user_metadata)
            except ConfigError as error:
                self.error = str(error)
        self.is_new_error = bool(self.error) and self.error != before[2]
        if (self.entity, self.target, self.error) != before:
            self._on_change()

    def _note_failure(self, text: str) -> None:
        self.error = text
        self._failures += 1
