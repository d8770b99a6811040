"""Events for whoever cannot keep a stream open: each is posted to a URL as one JSON object.

The program never waits for it: events go into a bounded queue, whose oldest one makes room when it is full. One event
is under way at a time, so that they arrive in order; what cannot be delivered in a few attempts is given up.

Source: connection manager 6 (relay 86), 9.
"""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter, deque
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

__all__ = ["QUEUE", "Webhook"]

QUEUE: Final = 256
"""Events that wait; beyond, the oldest is dropped."""

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
      counts: gets ``sent``, ``dropped`` (the queue was full) and ``failed`` (given up).

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
        self._is_failing = False

    @property
    def queued(self) -> int:
        """Events that wait."""
        return len(self._waiting)

    async def run(self, events: EventStream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Post the events of a stream until it ends, or until cancelled; what waits then is lost. Raises nothing else.

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
                nursery.cancel_scope.cancel()
        finally:
            events.close()

    def _put(self, event: Event) -> None:
        if len(self._waiting) == QUEUE:
            self._waiting.popleft()
            self._counts["dropped"] += 1
        self._waiting.append(event)
        self._lot.unpark()

    async def _post_all(self) -> None:
        while True:
            while not self._waiting:
                await self._lot.park()
            event = self._waiting.popleft()
            try:
                is_sent = await self._post(event)
            except Exception as error:  # our bug: it costs this event, and not the program
                _log.error("! an event could not be posted", exc_info=error)
                is_sent = False
            self._counts["sent" if is_sent else "failed"] += 1

    async def _post(self, event: Event) -> bool:
        """Returns: whether it was taken."""
        body = msgspec.json.encode(
            {"program": self._program, "host": socket.gethostname(), **msgspec.structs.asdict(event)}
        )
        for pause in (*_PAUSES_S, None):
            try:
                await self._try(body)
            except _Failed as failure:
                if not self._is_failing:
                    self._is_failing = True
                    _log.warning("the webhook %s does not take events: %s", self.shown, failure)
                if failure.is_final or pause is None:
                    return False
                await trio.sleep(pause * self._rng.uniform(0.8, 1.2))
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
