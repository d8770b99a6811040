"""What commands with a listener have in common: they say where it stands, and leave if it cannot even begin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.parse import quote

from ..client.listener import Listener
from ..client.status import ListenerEvent, ListenerState, Offline, Online, Reconnecting
from ..wire.connection_string import ConnectionString

__all__ = ["STATUS_LINES", "describe", "public_url", "report", "report_events"]

STATUS_LINES: Final = 1_000
"""Status lines waiting for a slow standard error; more are dropped and counted."""


async def report(listener: Listener, where: str, say: Callable[[str], None], *, keeps_trying: bool) -> None:
    """As `report_events`, for a listener that began earlier."""
    events = listener.events()
    status = listener.status
    if status.last_error is not None and status.state is ListenerState.CONNECTING and not keeps_trying:
        raise status.last_error  # before anybody could subscribe
    await report_events(events, where, say, keeps_trying=keeps_trying)


async def report_events(
    events: AsyncIterator[ListenerEvent], where: str, say: Callable[[str], None], *, keeps_trying: bool
) -> None:
    """Say what a listener tells, until it is closed.

    Args:
      events: of the listener, from its beginning.
      where: what is online.
      say: takes a line.
      keeps_trying: whether a first attempt that fails is a line like any other.

    Raises:
      RelayError, OSError: the first attempt to register failed.
    """
    has_been_online = False
    async for event in events:
        match event:
            case Online():
                has_been_online = True
                say(f"online: {where}")
            case Offline(cause):
                say(f"offline: {describe(cause)}")
            case Reconnecting(cause, delay_s):
                if not has_been_online and not keeps_trying:
                    raise cause
                say(f"reconnecting in {delay_s:.1f} s: {describe(cause)}")


def describe(cause: BaseException | None) -> str:
    """Why a listener is offline, or a connection failed."""
    return "closed here" if cause is None else str(cause) or type(cause).__name__


def public_url(connection_string: ConnectionString, path: str) -> str:
    """Where HTTP senders find a hybrid connection. With a slash at the end, so that relative links work from there."""
    host = connection_string.base_url.partition("://")[2]
    scheme = "https" if connection_string.base_url.startswith("wss:") else "http"
    return f"{scheme}://{host}/{quote(path.strip('/'))}/"
