"""Senders that run in the test's own Trio loop: the packages websockets and trio-websocket.

They do what a plan says and report as the drivers in ``node/`` do, so that one test serves them all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
import trio_websocket
import websockets.exceptions
import websockets.trio.client
from interop.payloads import describe, payload
from interop.peers import Reports, Target

Message = str | bytes


class Ended(Exception):
    """The connection is over: by a Close with a code and a reason, or (no code) without one."""

    def __init__(self, code: int | None = None, reason: str | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason or ""

    def as_report(self) -> dict[str, object]:
        return {"event": "lost"} if self.code is None else {"event": "close", "code": self.code, "reason": self.reason}


class Connection(Protocol):
    """What every package can do, in one spelling."""

    protocol: str | None
    reads_while_sending: bool
    """Whether receive() gets on while send() is held up by back-pressure."""

    async def send(self, message: Message) -> None: ...

    async def receive(self) -> Message:
        """Raises: Ended."""

    async def close(self, code: int, reason: str) -> Ended:
        """Send a Close, wait for the peer's, and return that."""


class Refused(Exception):
    """The handshake was answered with another status than 101."""

    def __init__(self, status: int, reason: str | None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


async def carry_out(plan: Mapping[str, Any], connection: Connection, reports: Reports) -> None:
    """Send the plan's messages at once if the package can, await an echo of each, then end as the plan wants it."""
    messages = [payload(message["kind"], message["bytes"]) for message in plan["messages"]]

    async def send_all() -> None:
        for message in messages:
            await connection.send(message)

    try:
        async with trio.open_nursery() as nursery:
            if connection.reads_while_sending:
                nursery.start_soon(send_all)
            for message in messages:
                if not connection.reads_while_sending:
                    await connection.send(message)
                reports.add({"event": "message", **describe(await connection.receive())})
        if plan["last"]:
            await connection.send(plan["last"])
        if plan["close"]:
            raise await connection.close(plan["close"]["code"], plan["close"]["reason"])
        message = await connection.receive()
        raise AssertionError(f"an unexpected message: {describe(message)}")
    except* Ended as group:
        [ended] = group.exceptions
        assert isinstance(ended, Ended)
        reports.add(ended.as_report())


@asynccontextmanager
async def in_background(
    name: str, opening: AbstractAsyncContextManager[Connection], plan: Mapping[str, Any]
) -> AsyncIterator[Reports]:
    """Carry out a plan in a task of its own while the block lasts."""
    reports = Reports(name)

    async def run() -> None:
        try:
            async with opening as connection:
                reports.add({"event": "open", "protocol": connection.protocol})
                await carry_out(plan, connection, reports)
        except Refused as refused:
            reports.add({"event": "refused", "status": refused.status, "reason": refused.reason})
        finally:
            reports.add(is_last=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield reports
        nursery.cancel_scope.cancel("the test needs the sender no more")


# ---------------------------------------------------------------------------------------------------------- websockets


class _Websockets:
    # Its reader takes the lock that a held-up send() holds, so with an echo of more than the sockets' buffers neither
    # gets on.
    reads_while_sending = False

    def __init__(self, connection: websockets.trio.client.ClientConnection) -> None:
        self._connection = connection
        self.protocol = connection.subprotocol

    async def send(self, message: Message) -> None:
        await self._connection.send(message)

    async def receive(self) -> Message:
        try:
            return await self._connection.recv()
        except websockets.exceptions.ConnectionClosed as closed:
            raise (Ended() if closed.rcvd is None else Ended(closed.rcvd.code, closed.rcvd.reason)) from None

    async def close(self, code: int, reason: str) -> Ended:
        await self._connection.aclose(code, reason)
        received = self._connection.protocol.close_rcvd
        return Ended() if received is None else Ended(received.code, received.reason)


@asynccontextmanager
async def _open_websockets(target: Target, path: str, query: str, plan: Mapping[str, Any]) -> AsyncIterator[Connection]:
    # Compression is on by default: the offer must be declined, or these frames would not be understood.
    connecting = websockets.trio.client.connect(
        target.connect_url(path, query, token=plan["token"]),
        additional_headers=target.connect_headers(path, token=plan["token"]),
        subprotocols=plan["protocols"],
        ssl=target.ssl_context,
        max_size=None,
    )
    try:
        async with connecting as connection:
            assert connection.protocol.extensions == []
            yield _Websockets(connection)
    except websockets.exceptions.InvalidStatus as error:
        raise Refused(error.response.status_code, error.response.reason_phrase) from None


# ------------------------------------------------------------------------------------------------------ trio-websocket


class _TrioWebSocket:
    reads_while_sending = True

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self.protocol = connection.subprotocol

    async def send(self, message: Message) -> None:
        await self._connection.send_message(message)

    async def receive(self) -> Message:
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None

    async def close(self, code: int, reason: str) -> Ended:
        await self._connection.aclose(code, reason)
        return self._ended()

    def _ended(self) -> Ended:
        closed = self._connection.closed
        assert closed is not None
        return Ended() if closed.code == 1006 else Ended(int(closed.code), closed.reason)


@asynccontextmanager
async def _open_trio_websocket(
    target: Target, path: str, query: str, plan: Mapping[str, Any]
) -> AsyncIterator[Connection]:
    url = urlsplit(target.connect_url(path, query, token=plan["token"]))
    assert url.hostname is not None
    assert url.port is not None
    stream: trio.abc.Stream = await trio.open_tcp_stream(url.hostname, url.port)
    if (context := target.ssl_context) is not None:
        stream = trio.SSLStream(stream, context, server_hostname=url.hostname)
    headers = [
        (name.encode(), value.encode()) for name, value in target.connect_headers(path, token=plan["token"]).items()
    ]
    # The stream is opened here because the package leaves it open when the other side closed first.
    try:
        async with trio.open_nursery() as nursery:
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                url.netloc,
                f"{url.path}?{url.query}",
                subprotocols=plan["protocols"],
                extra_headers=headers,
                max_message_size=1 << 24,
            )
            async with connection:
                yield _TrioWebSocket(connection)
    except* trio_websocket.ConnectionRejected as group:
        [rejected] = group.exceptions
        raise Refused(rejected.status_code, None) from None  # it does not keep the reason phrase
    finally:
        await trio.aclose_forcefully(stream)


def websockets_sender(
    target: Target, path: str, query: str, plan: Mapping[str, Any]
) -> AbstractAsyncContextManager[Reports]:
    """A sender on websockets at work on a plan."""
    return in_background("websockets sender", _open_websockets(target, path, query, plan), plan)


def trio_websocket_sender(
    target: Target, path: str, query: str, plan: Mapping[str, Any]
) -> AbstractAsyncContextManager[Reports]:
    """A sender on trio-websocket at work on a plan."""
    return in_background("trio-websocket sender", _open_trio_websocket(target, path, query, plan), plan)
