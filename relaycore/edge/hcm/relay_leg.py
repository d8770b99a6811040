"""The relay leg of one entry: the control channels that this process holds, and how they stand.

The library's listener stays registered by itself, whatever comes. What is added here is the meaning: which of the
relay's answers is a matter of keys, which one of a hybrid connection that is not there, and what to do about it.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from ...client.listener import Listener
from ...client.reconnect import ReconnectPolicy
from ...client.status import Offline, Online, Reconnecting
from ...errors import AuthorizationFailed, ConfigError, EndpointNotFound, NoListener, RelayError
from ...net.errors import StreamClosed, StreamLost
from ..config.settings import HcmConnection
from ..relay_way import way_failed
from .retry import RetrySchedule
from .status import RelayLeg

__all__ = ["Registration", "explain"]

_KEY_LOOK_S: Final = 1.0
"""Seconds between two looks at a key that the relay did not take."""

_SEVERITY: Final = (RelayLeg.CONNECTED, RelayLeg.UNAUTHORIZED, RelayLeg.NOT_FOUND, RelayLeg.RECONNECTING)
"""Which channel speaks for several: the first of these that one of them is in; Connecting if there is none."""

_log = logging.getLogger("relaycore.edge")

Emit: TypeAlias = Callable[[str, str], None]
"""Notes an event: its kind and its text."""


def explain(cause: BaseException | None, settings: HcmConnection) -> tuple[RelayLeg | None, str]:
    """Say what the end of a control channel, or an attempt that failed, means.

    Returns: the leg, if the cause settles it; and a line for people: what came back, what it means, what to do.
    """
    relay = settings.relay.endpoint
    rule = f"rule {settings.key_name!r}" if settings.key_name else "the configured token"
    said = str(cause) or type(cause).__name__
    match cause:
        case AuthorizationFailed(http_status=403) if said.startswith("ListenersPerEntity"):
            return None, f"{relay} refused this listener: {said}; another one has to leave first"
        case AuthorizationFailed(http_status=403):
            return RelayLeg.UNAUTHORIZED, (
                f"{relay} refused {rule} at {settings.path!r}: {said}; give that rule the right Listen, or use another"
            )
        case AuthorizationFailed():
            return RelayLeg.UNAUTHORIZED, (
                f"{relay} did not take the token of {rule}: {said}; check the key, and this machine's clock"
            )
        case EndpointNotFound() | NoListener():
            return RelayLeg.NOT_FOUND, (
                f"{relay} knows no hybrid connection {settings.path!r}: {said}; "
                "it will be found when it is created, or correct the path"
            )
        case StreamClosed(code=code, reason=reason):
            return None, f"{relay} closed the control channel ({code}{' ' + reason if reason else ''})"
        case StreamLost():
            return None, f"the control channel at {relay} broke: {said}; it is opened anew"
        case ConfigError():
            return RelayLeg.UNAUTHORIZED, f"cannot sign in at {relay}: {said}"
        case RelayError() | OSError():
            tried = f"listening on {settings.path!r} at {relay}"
            way = way_failed(cause, relay.partition("://")[2].rstrip("/") or relay)
            if way is None:
                return None, f"{tried}: {said}; it is tried again"
            return None, f"{tried}: {way.text}; {way.advice}; `relaycore hcm doctor {settings.name}` tells more"
    return None, f"{relay}: signing in failed ({type(cause).__name__})"


def _reason(cause: BaseException, leg: RelayLeg | None) -> str:
    match leg, cause:
        case RelayLeg.UNAUTHORIZED, _:
            return "unauthorized"
        case RelayLeg.NOT_FOUND, _:
            return "not-found"
        case _, StreamClosed(code=1008):  # how the relay ends a channel whose token has run out (6.4)
            return "unauthorized"
        case _, StreamClosed():
            return "closed"
    return "lost"


@dataclass
class _Channel:
    """One listener's state. ``next_try_unix`` is None while nothing is waited for; ``waits_until`` is Trio's time."""

    schedule: RetrySchedule
    leg: RelayLeg = RelayLeg.CONNECTING
    attempts: int = 0
    next_try_unix: float | None = None
    listener: Listener | None = None
    waits_until: float = -math.inf
    tried_key: str = field(default="", repr=False)
    key_refused: trio.Event = field(default_factory=trio.Event)


OpenListener: TypeAlias = Callable[[ReconnectPolicy], AbstractAsyncContextManager[Listener]]
"""Makes a listener that begins without waiting for the relay, and whatever belongs to it."""


class Registration:
    """Holds the control channels of an entry from `hold` to `leave`. For one time only.

    Args:
      settings: which relay, how many.
      open_listener: called for each channel.
      emit: gets ``connected``, ``disconnected``, ``retrying``, ``unauthorized`` and ``not-found``.
      on_change: called when anything here has changed.
      rng: where the jitter of the waits between attempts comes from.

    Attributes:
      last_error: the last end or failure in words; ``""`` if there was none.
      requests_served: HTTP requests that listeners answered which are closed by now.
      tokens_renewed, tokens_failed: theirs, too.
      reconnects: channels that were lost, by reason; see `ConnectionStatus`.
    """

    def __init__(
        self,
        settings: HcmConnection,
        open_listener: OpenListener,
        emit: Emit,
        on_change: Callable[[], None],
        *,
        rng: random.Random | None = None,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self.last_error = ""
        self.last_error_unix: float | None = None
        self.requests_served = 0
        self.tokens_renewed = 0
        self.tokens_failed = 0
        self.reconnects: Counter[str] = Counter()
        self._settings = settings
        self._open_listener = open_listener
        self._emit = emit
        self._on_change = on_change
        self._now_unix = now_unix
        rng = rng or random.Random()
        self._channels = [_Channel(RetrySchedule(self._is_no, rng)) for _ in range(settings.listeners)]
        self._leaving = trio.Event()

    @property
    def leg(self) -> RelayLeg:
        """How the channels stand, as one word."""
        legs = {channel.leg for channel in self._channels}
        return next((leg for leg in _SEVERITY if leg in legs), RelayLeg.CONNECTING)

    @property
    def online(self) -> int:
        """Channels that are up."""
        return sum(channel.leg is RelayLeg.CONNECTED for channel in self._channels)

    @property
    def attempts(self) -> int:
        """Failed attempts of the channel that had the most."""
        return max((channel.attempts for channel in self._channels), default=0)

    @property
    def next_try_unix(self) -> float | None:
        """When the next attempt is due; None while all channels are up, or being opened."""
        return min((channel.next_try_unix for channel in self._channels if channel.next_try_unix), default=None)

    @property
    def has_failed(self) -> bool:
        """Whether there was an attempt that came to nothing."""
        return bool(self.last_error)

    @property
    def listeners(self) -> list[Listener]:
        """Those there are now."""
        return [channel.listener for channel in self._channels if channel.listener is not None]

    def _is_no(self, cause: Exception) -> bool:
        return explain(cause, self._settings)[0] is not None

    def leave(self) -> None:
        """Have `hold` deregister and return. Not a checkpoint."""
        self._leaving.set()

    async def hold(self) -> None:
        """Be registered until `leave`, then deregister in order, which a silent relay can delay for ten seconds."""
        async with trio.open_nursery() as nursery:
            for channel in self._channels:
                nursery.start_soon(self._keep, channel)

    async def _keep(self, channel: _Channel) -> None:
        while not self._leaving.is_set():
            try:
                async with self._open_listener(channel.schedule) as listener:
                    channel.listener = listener
                    await self._follow(channel, listener)
            except Exception as error:  # settings that are of no use, or our bug: neither ends the others
                if not isinstance(error, RelayError | OSError):
                    _log.error("! a listener of %s failed", self._settings.name, exc_info=error)
                delay_s = channel.schedule.next_delay(error)
                self._note_failure(channel, error, delay_s)
                with trio.move_on_after(delay_s):
                    await self._leaving.wait()
            finally:
                if channel.listener is not None:
                    found = channel.listener.status
                    self.requests_served += found.requests_served
                    self.tokens_renewed += found.tokens_renewed
                    self.tokens_failed += found.tokens_failed
                channel.listener = None

    async def _follow(self, channel: _Channel, listener: Listener) -> None:
        channel.tried_key = self._read_key()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed, channel, listener)
            nursery.start_soon(self._watch_key, channel, listener)
            await self._leaving.wait()
            nursery.cancel_scope.cancel()

    async def _heed(self, channel: _Channel, listener: Listener) -> None:
        events = listener.events()
        if (missed := listener.status.last_error) is not None:
            # A first attempt that needs no network, as one without a key, may be over before anybody could subscribe.
            self._note_failure(channel, missed, channel.schedule.delay_s)
        async for event in events:
            match event:
                case Online():
                    channel.leg, channel.attempts, channel.next_try_unix = RelayLeg.CONNECTED, 0, None
                    self._emit("connected", f"listening at {self._settings.relay.endpoint} on {self._settings.path!r}")
                    self._on_change()
                case Offline(cause) if cause is not None:
                    leg, text = explain(cause, self._settings)
                    channel.leg = RelayLeg.RECONNECTING
                    self.reconnects[_reason(cause, leg)] += 1
                    self._note_error(text)
                    self._emit("disconnected", text)
                    self._on_change()
                case Reconnecting(cause, delay_s):
                    self._note_failure(channel, cause, delay_s)

    async def _watch_key(self, channel: _Channel, listener: Listener) -> None:
        """While the relay refuses a key: try at once when there is another one, such as in a file that was changed.

        What is there when a refusal comes may not be what was refused. So a key counts as tried only when an attempt
        begins after it was seen; one that changes while an attempt is under way is tried after that.
        """
        while True:
            await channel.key_refused.wait()
            channel.key_refused = trio.Event()
            while channel.leg is RelayLeg.UNAUTHORIZED:
                await trio.sleep(_KEY_LOOK_S)
                is_waiting = trio.current_time() < channel.waits_until
                if is_waiting and (key := self._read_key()) != channel.tried_key:
                    channel.tried_key, channel.waits_until = key, -math.inf
                    channel.next_try_unix = self._now_unix()
                    listener.hurry()

    def _read_key(self) -> str:
        """The key as it is now; ``""`` if there is none, or none that can be read."""
        secret = self._settings.token or self._settings.key
        try:
            return "" if secret is None else secret.read()
        except ConfigError:
            return ""

    def _note_failure(self, channel: _Channel, cause: BaseException, delay_s: float) -> None:
        leg, text = explain(cause, self._settings)
        was_lost = channel.leg is RelayLeg.RECONNECTING and channel.attempts == 0
        if leg is not None:
            channel.leg = leg
        elif channel.leg is not RelayLeg.CONNECTING:
            channel.leg = RelayLeg.RECONNECTING
        channel.attempts = channel.schedule.attempts
        if channel.leg is RelayLeg.UNAUTHORIZED:
            channel.key_refused.set()
        channel.next_try_unix = self._now_unix() + delay_s
        channel.waits_until = trio.current_time() + delay_s
        self._note_error(text)
        kind = {RelayLeg.UNAUTHORIZED: "unauthorized", RelayLeg.NOT_FOUND: "not-found"}.get(channel.leg, "retrying")
        again = f"try {channel.attempts + 1} in {delay_s:.1f} s"
        self._emit(kind, again if was_lost and kind == "retrying" else f"{text}; {again}")
        self._on_change()

    def _note_error(self, text: str) -> None:
        self.last_error, self.last_error_unix = text, self._now_unix()
