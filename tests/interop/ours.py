"""Our own library as listener and as sender, reporting as the other peers do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import trio
from interop.peers import Reports, Target
from interop.senders import Ended, Message, Refused, in_background

import relaycore
from relaycore import Connection
from relaycore.net.errors import StreamClosed, StreamLost

MAX_MESSAGE_BYTES = 1 << 25  # Autobahn sends 16 MiB


class Channel:
    """The message view of a connection, with every end as an `Ended`."""

    reads_while_sending = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages = connection.messages(max_message_bytes=MAX_MESSAGE_BYTES)
        self.protocol = connection.subprotocol

    async def send(self, message: Message) -> None:
        await self._messages.send(message)

    async def receive(self) -> Message:
        try:
            return await self._messages.receive()
        except trio.EndOfChannel:
            raise self._end() from None
        except StreamClosed as closed:
            raise Ended(closed.code, closed.reason) from None
        except StreamLost:
            raise Ended() from None

    async def close(self, code: int, reason: str) -> Ended:
        """Close in the library's own words, whatever the plan says."""
        await self._messages.aclose()
        return self._end()

    async def abort(self) -> None:
        """End the connection without a Close: what the library does when closing it is cancelled."""
        await trio.aclose_forcefully(self._connection)

    def _end(self) -> Ended:
        # The library takes 1000 and none for an orderly end alike and does not tell which; its leg knows.
        close = self._connection._leg.close_received
        return Ended() if close is None else Ended(close.code or 1005, close.reason)


def connection_string(target: Target, path: str | None = None) -> str:
    url = urlsplit(target.base_url)
    pieces = [f"Endpoint=sb://{url.netloc}/", f"SharedAccessKeyName={target.key_name}", f"SharedAccessKey={target.key}"]
    if path is not None:
        pieces.append(f"EntityPath={path}")
    if target.ca_file is None:
        pieces.append("UseDevelopmentEmulator=true")
    return ";".join(pieces)


async def _echo(connection: Connection, reports: Reports) -> None:
    query = f"?{connection.query}" if connection.query else ""
    suffix = f"/{connection.suffix}" if connection.suffix else ""
    reports.add(
        {"event": "connection", "path": f"{connection.path}{suffix}{query}"},
        {"event": "open", "protocol": connection.subprotocol},
    )
    channel = Channel(connection)
    async with connection:
        try:
            while True:
                message = await channel.receive()
                if message == "abort":
                    await channel.abort()
                    raise Ended()
                if isinstance(message, str) and message.startswith("close "):
                    raise await channel.close(*message.split(" ", 2)[1:])
                await channel.send(message)
        except Ended as ended:
            reports.add(ended.as_report())
        except (StreamLost, relaycore.RemoteProtocolError):
            reports.add({"event": "lost"})


@asynccontextmanager
async def our_listener(target: Target, path: str) -> AsyncIterator[Reports]:
    """An echo listener on our library that is registered when the block begins."""
    reports = Reports("our listener")
    async with (
        relaycore.open_listener(connection_string(target, path), cafile=target.ca_file) as listener,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(trio.serve_listeners, lambda connection: _echo(connection, reports), [listener])
        yield reports
        nursery.cancel_scope.cancel("the test needs the listener no more")


@asynccontextmanager
async def _open(target: Target, path: str, query: str, plan: Mapping[str, Any]) -> AsyncIterator[Channel]:
    entity, _, suffix = path.partition("/")
    try:
        async with relaycore.open_stream(
            connection_string(target, entity),
            suffix=unquote(suffix),
            query=query.removesuffix("&"),
            subprotocols=plan["protocols"] or (),
            cafile=target.ca_file,
        ) as connection:
            yield Channel(connection)
    except relaycore.Refused as refused:
        raise Refused(refused.http_status, str(refused)) from None


def our_sender(target: Target, path: str, query: str, plan: Mapping[str, Any]) -> AbstractAsyncContextManager[Reports]:
    """A sender on our library at work on a plan. Its token always goes into the header."""
    return in_background("our sender", _open(target, path, query, plan), plan)
