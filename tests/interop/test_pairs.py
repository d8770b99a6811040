"""Every sender with every listener, over ws and over wss: what one side sends the other receives, an end is an end."""

from __future__ import annotations

import pytest
import trio
from interop.payloads import all_messages, described
from interop.peers import ListenerKind, SenderKind, Target

pytestmark = pytest.mark.interop

BY_SENDER = {"code": 3001, "reason": "done — ¡adiós!"}
BY_LISTENER = {"code": 4999, "reason": "that was all"}
ORDER_TO_CLOSE = "close 4999 that was all"
ORDER_TO_ABORT = "abort"


async def test_messages_of_every_size(target: Target, listen: ListenerKind, send: SenderKind) -> None:
    """spec 8.1: text and binary of 1 B to 8 MiB come back as they were, in order, under the first sub-protocol."""
    messages = all_messages()
    with trio.fail_after(60):
        async with listen(target, "echo") as listener:
            plan = {"messages": messages, "protocols": ["p1", "p2", "p3"], "close": BY_SENDER}
            async with send(target, "echo", plan) as sender:
                await sender.wait("close")
                assert sender.all("message") == described(messages)
                assert await listener.wait("close") == send.close_sent_for(BY_SENDER)
                for side in (sender, listener):
                    assert [report["protocol"] for report in side.all("open")] == ["p1"]


async def test_listener_closes(target: Target, listen: ListenerKind, send: SenderKind) -> None:
    """spec 8.7: the listener's Close reaches the sender with code and reason; no sub-protocol offered means none."""
    with trio.fail_after(30):
        async with listen(target, "echo") as listener, send(target, "echo", {"last": ORDER_TO_CLOSE}) as sender:
            assert await sender.wait("close") == listen.close_sent_for(BY_LISTENER)
            await listener.wait("close")
            for side in (sender, listener):
                assert [report["protocol"] for report in side.all("open")] == [None]


async def test_listener_aborts(target: Target, listen: ListenerKind, send: SenderKind) -> None:
    """spec 8.8: a listener that is lost without a Close is an abort for the sender, never a Close."""
    with trio.fail_after(30):
        async with listen(target, "echo"), send(target, "echo", {"last": ORDER_TO_ABORT}) as sender:
            await sender.wait("lost")
            assert sender.all("close") == []


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("a=1&a=2&sb-hc-id=0d6f4b5c-58a1-4b36-9a5e-3f5f5a0f9c11&", "?a=1&a=2"),
        ("name=%2f%3a%3d%26&sb-hc-undefined=true&flag&", "?name=%2f%3a%3d%26&flag"),
        ("", ""),
    ],
)
async def test_listener_sees_path_and_user_query(
    plain_target: Target, listen: ListenerKind, send: SenderKind, query: str, seen: str
) -> None:
    """spec 2.4: the listener sees the suffix and the user's query byte for byte, and none of the relay's parameters."""
    with trio.fail_after(30):
        async with listen(plain_target, "echo") as listener:
            plan = {"token": "query", "close": BY_SENDER}
            async with send(plain_target, "echo/a/b%20c", plan, query=query) as sender:
                await sender.wait("close")
            assert listener.all("connection") == [{"path": f"echo/a/b c{seen}"}]


async def test_bad_token_is_refused(plain_target: Target, send: SenderKind) -> None:
    """spec 12: a token with a wrong signature is 401, with the reason where the client shows one."""
    impostor = plain_target.with_key("bm90IHRoZSBrZXk=")
    with trio.fail_after(30):
        async with send(impostor, "echo", {}) as sender:
            refused = await sender.wait("refused")
    assert refused["status"] == 401
    assert refused["reason"] is None or "token has an invalid signature" in refused["reason"]


async def test_no_listener_is_refused(plain_target: Target, send: SenderKind) -> None:
    """spec 12: an entity without a listener is 404 for a WebSocket sender."""
    with trio.fail_after(30):
        async with send(plain_target, "echo", {}) as sender:
            refused = await sender.wait("refused")
    assert refused["status"] == 404
    assert refused["reason"] is None or "no listeners connected" in refused["reason"]
