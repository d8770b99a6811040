"""Events for whoever cannot keep a stream open: each is posted to a URL as one JSON object.

The program does not wait for it: events go into a bounded queue, whose oldest one makes room when it is full. One event
is under way at a time, so that they arrive in order; what cannot be delivered in a few attempts is given up. Only an
orderly end waits, and that not for long: the last events say how the program ended.

Source: connection manager 6 (relay 86), 9.
"""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import trio

from ..errors import ConfigError, LocalProtocolError, RelayError
from ..net.connect import WebSocketUrl, open_transport, parse_ws_url
from ..net.linger import cut
from ..net.proxy import choose_proxy
from ..wire.http1 import ResponseHead, ResponseReader, build_request
from .config.settings import WebhookSettings
from .events import Event, EventStream

__all__ = ["FLUSH_S", "QUEUE", "Webhook", "Webhooks"]

QUEUE: Final = 256
"""Events that wait; beyond, the oldest is dropped."""

FLUSH_S: Final = 3.0
"""Seconds that are left for what waits when the events end; a service manager, who waits too, should not grow
impatient. Each event has one attempt then."""

_PAUSES_S: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds between attempts, give or take a fifth; then the event is given up."""

_RECEIVE_BYTES: Final = 16_384

_AGAIN: Final = frozenset({408, 425, 429})
"""Refusals that may end by themselves; so may those from 500 on."""

_log = logging.getLogger("relaycore.edge")


class _Failed(Exception):
    """An attempt came to nothing. The text never holds the URL's path, its query or the header."""

    def __init__(self, text: str, *, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class Webhook:
    """Posts events to one URL; see `run`.

    Args:
      settings: with a URL.
      program: ``hcm`` or ``connect``, as the posts say.
      counts: gets ``sent``, ``dropped`` (the queue was full, or the events ended) and ``failed`` (given up).

    Attributes:
      shown: the URL's scheme, host and port; what stands behind that may be a secret.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        program: Literal["hcm", "connect"],
        counts: Counter[str],
        *,
        rng: random.Random | None = None,
    ) -> None:
        # http and https are to ws and wss what they are here, too.
        self._url: WebSocketUrl = parse_ws_url("ws" + settings.url[len("http") :])
        self.shown = f"{'https' if self._url.is_tls else 'http'}://{self._url.host_header}"
        self._settings = settings
        self._program = program
        self._counts = counts
        self._rng = rng or random.Random()
        self._waiting: deque[Event] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._has_ended = trio.Event()
        self._is_failing = False

    @property
    def queued(self) -> int:
        """Events that wait."""
        return len(self._waiting)

    async def run(self, events: EventStream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Post the events of a stream until it ends, and then what waits, for `FLUSH_S` at most. Cancelled, what waits
        is lost. Raises nothing else.

        Args:
          events: is closed at the end.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._post_all)
                task_status.started()
                async for event in events:
                    if not self._settings.events or event.kind in self._settings.events:
                        self._put(event)
                self._has_ended.set()
                self._lot.unpark()
                nursery.cancel_scope.deadline = trio.current_time() + FLUSH_S
            if self._waiting:
                self._counts["dropped"] += len(self._waiting)
                _log.warning("the webhook %s got no more: the last %d events are lost", self.shown, len(self._waiting))
        finally:
            events.close()

    def _put(self, event: Event) -> None:
        if len(self._waiting) == QUEUE:
            self._waiting.popleft()
            self._counts["dropped"] += 1
        self._waiting.append(event)
        self._lot.unpark()

    async def _post_all(self) -> None:
        while self._waiting or not self._has_ended.is_set():
            if not self._waiting:
                await self._lot.park()
                continue
            event = self._waiting.popleft()
            is_sent = False
            try:
                is_sent = await self._post(event)
            except trio.Cancelled:
                self._waiting.appendleft(event)
                raise
            except Exception as error:  # our bug: it costs this event, and not the program
                _log.error("! an event could not be posted", exc_info=error)
            self._counts["sent" if is_sent else "failed"] += 1

    async def _post(self, event: Event) -> bool:
        """Returns: whether it was taken."""
        body = msgspec.json.encode(
            {"program": self._program, "host": socket.gethostname(), **msgspec.structs.asdict(event)}
        )
        for pause in (*_PAUSES_S, None):
            is_last = pause is None or self._has_ended.is_set()
            try:
                await self._try(body)
            except _Failed as failure:
                if not self._is_failing:
                    self._is_failing = True
                    _log.warning("the webhook %s does not take events: %s", self.shown, failure)
                if failure.is_final or is_last:
                    return False
                assert pause is not None
                with trio.move_on_after(pause * self._rng.uniform(0.8, 1.2)):
                    await self._has_ended.wait()
            else:
                if self._is_failing:
                    self._is_failing = False
                    _log.info("the webhook %s takes events again", self.shown)
                return True
        raise AssertionError("the last attempt returns")

    async def _try(self, body: bytes) -> None:
        """One attempt.

        Raises:
          _Failed: it was not taken.
        """
        timeout = self._settings.timeout_s
        try:
            with trio.fail_after(timeout):
                status = (await self._exchange(self._head(len(body)) + body)).status
        except trio.TooSlowError:
            raise _Failed(f"no answer within {timeout:g} s") from None
        except (RelayError, OSError, trio.BrokenResourceError) as error:
            raise _Failed(str(error) or "the connection broke") from error
        if not 200 <= status < 300:
            raise _Failed(f"it answered {status}", is_final=status < 500 and status not in _AGAIN)

    def _head(self, length: int) -> bytes:
        headers = [
            ("Host", self._url.host_header),
            ("Content-Type", "application/json"),
            ("Content-Length", str(length)),
            ("Connection", "close"),
        ]
        header = self._settings.header
        try:
            if header.name and header.value is not None:
                headers.append((header.name, header.value.read()))
            return build_request("POST", self._url.resource, headers)
        except (ConfigError, LocalProtocolError) as error:  # neither says the secret
            raise _Failed(str(error)) from None

    async def _exchange(self, request: bytes) -> ResponseHead:
        stream = await open_transport(self._url, None, choose_proxy("env", self._url.host))
        try:
            await stream.send_all(request)
            reader = ResponseReader(request_method="POST")
            while True:
                event = reader.next_event()
                if isinstance(event, ResponseHead):
                    return event
                data = await stream.receive_some(_RECEIVE_BYTES)
                if not data:
                    raise _Failed("it closed the connection without an answer")
                reader.receive_data(data)
        finally:
            await cut(stream)  # noqa: ASYNC102 - shields itself


class Webhooks:
    """The webhook that a program's settings name at the time, if they name one; see `run`.

    Args:
      program, counts: as of `Webhook`.
      subscribe: begins a stream of the program's events.

    Attributes:
      shown: of the webhook that is posted to now; ``""`` if there is none.
    """

    def __init__(
        self, program: Literal["hcm", "connect"], subscribe: Callable[[], EventStream], counts: Counter[str]
    ) -> None:
        self.shown = ""
        self._program = program
        self._subscribe = subscribe
        self._counts = counts
        self._settings = WebhookSettings()
        self._nursery: trio.Nursery | None = None
        self._events: EventStream | None = None
        self._has_ended = trio.Event()

    async def run(
        self, settings: WebhookSettings, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Post until the program's events have ended and the last ones are posted, or given up. Started once no event
        is missed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._begin(settings)
                task_status.started()
        finally:
            self._nursery = None
            self._has_ended.set()

    def change(self, settings: WebhookSettings) -> bool:
        """Post further events as other settings say; what waits still goes where the old ones said. Not a checkpoint.

        Returns: whether they are others.
        """
        if self._nursery is None or settings == self._settings:
            return False
        assert self._events is not None
        self._events.close()
        self._begin(settings)
        return True

    async def wait_ended(self) -> None:
        """Wait until `run` has ended. A checkpoint."""
        await self._has_ended.wait()

    def _begin(self, settings: WebhookSettings) -> None:
        assert self._nursery is not None
        self._settings = settings
        self._events = self._subscribe()
        if settings.url:
            webhook = Webhook(settings, self._program, self._counts)
            self.shown = webhook.shown
            self._nursery.start_soon(webhook.run, self._events)
        else:
            self.shown = ""
            self._nursery.start_soon(_pass_over, self._events)


async def _pass_over(events: EventStream) -> None:
    """Wait for their end."""
    async for _ in events:
        pass
