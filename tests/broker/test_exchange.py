"""Whose answer a listener's messages are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.broker.exchange import Answer, Replies, RequestIds, control_body_room
from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.wire.messages import Response


def response(id: str, *, body: bool = False, status: int = 200) -> Response:
    return Response(requestId=id, statusCode=status, body=body)


@pytest.mark.parametrize(("message", "room"), [(0, 65_536), (536, 65_000), (65_535, 1), (65_536, 0), (70_000, 0)])
def test_message_and_body_share_the_room(message, room) -> None:
    """spec 9.2: a body goes over the control channel while JSON and body are 64 KiB together."""
    assert control_body_room(message) == room


def test_a_response_without_body_is_an_answer_at_once() -> None:
    """spec 9.7: missing or false ``body`` means that nothing follows."""
    replies: Replies[str] = Replies()
    replies.expect("a", "A")
    assert "a" in replies
    assert replies.receive_response(response("a"), 100) == Answer("A", response("a"), None)
    assert len(replies) == 0


def test_bodies_come_in_the_order_of_their_responses() -> None:
    """spec 9.7: the next binary message is the body, also when another response came between."""
    replies: Replies[str] = Replies()
    for id in "abc":
        replies.expect(id, id.upper())
    assert replies.receive_response(response("b", body=True), 100) is None
    assert replies.receive_response(response("c"), 100) == Answer("C", response("c"), None)
    assert replies.receive_response(response("a", body=True), 100) is None
    assert replies.receive_body(b"of b") == Answer("B", response("b", body=True), b"of b")
    assert replies.receive_body(b"") == Answer("A", response("a", body=True), b"")


def test_a_late_response_is_swallowed_with_its_body() -> None:
    """spec 9.7: unknown or late id: swallow message and body."""
    replies: Replies[str] = Replies()
    replies.expect("a", "A")
    replies.forget("a")
    replies.forget("a")
    replies.expect("b", "B")
    assert replies.receive_response(response("a", body=True), 100) is None
    assert replies.receive_response(response("b", body=True), 100) is None
    assert replies.receive_response(response("never"), 100) is None
    assert replies.receive_body(b"of a") is None
    assert replies.receive_body(b"of b") == Answer("B", response("b", body=True), b"of b")


def test_a_request_is_answered_once() -> None:
    """spec 9.7: the second response of one request is late."""
    replies: Replies[str] = Replies()
    replies.expect("a", "A")
    assert replies.receive_response(response("a", status=201), 100) is not None
    assert replies.receive_response(response("a", status=202), 100) is None


def test_a_body_that_nobody_announced_is_a_fault() -> None:
    """spec 9.7: a binary message without a response before it is the listener's fault (1002)."""
    replies: Replies[str] = Replies()
    with pytest.raises(RemoteProtocolError) as caught:
        replies.receive_body(b"x")
    assert caught.value.close_code == 1002


def test_an_empty_message_behind_a_response_without_body_is_passed_over() -> None:
    """spec 18: hyco-https ends HEAD, 204 and 304 with one, though it said that there is no body."""
    replies: Replies[str] = Replies()
    for id in "ab":
        replies.expect(id, id.upper())
    replies.receive_response(response("b", body=True), 100)
    assert replies.receive_response(response("a"), 100) is not None
    assert replies.receive_body(b"") is None
    assert replies.receive_body(b"") == Answer("B", response("b", body=True), b"")
    assert replies.receive_response(response("c"), 100) is None
    with pytest.raises(RemoteProtocolError):
        replies.receive_body(b"x")


def test_promised_bodies_have_a_bound() -> None:
    """failures: attacker-set counts have a bound."""
    replies: Replies[str] = Replies()
    for _ in range(1_024):
        replies.receive_response(response("x", body=True), 65_536)  # nobody waits for it, so it is not kept
    with pytest.raises(RemoteProtocolError):
        replies.receive_response(response("x", body=True), 1)


def test_promised_answers_have_a_bound_in_bytes() -> None:
    """failures: a listener must not make the relay hold hundreds of MiB of promises."""
    replies: Replies[str] = Replies()
    replies.expect("a", "A")
    for _ in range(16):
        replies.receive_response(response("a", body=True), 65_536)
    with pytest.raises(RemoteProtocolError):
        replies.receive_response(response("a", body=True), 1)
    assert replies.receive_body(b"x") == Answer("A", response("a", body=True), b"x")
    assert replies.receive_body(b"y") is None
    assert replies.receive_response(response("b", body=True), 65_536) is None


def test_an_id_stands_for_one_request() -> None:
    """spec 9.3: unique per request."""
    replies: Replies[str] = Replies()
    replies.expect("a", "A")
    with pytest.raises(LocalProtocolError):
        replies.expect("a", "B")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans())))
def test_every_body_reaches_its_own_request(life) -> None:
    """spec 9.7: whatever the order, a body is that of the oldest response without one."""
    replies: Replies[str] = Replies()
    waiting = set("abcdef")
    for id in waiting:
        replies.expect(id, id)
    due: list[str] = []
    was_bodiless = False
    for id, has_body, body_first in life:
        if body_first and due and not was_bodiless:
            owner = due.pop(0)
            answer = replies.receive_body(owner.encode())
            assert (answer.exchange if answer else None) == (owner if owner in waiting else None)
            waiting.discard(owner)
        answer = replies.receive_response(response(id, body=has_body), 100)
        was_bodiless = not has_body
        if has_body:
            due.append(id)
            assert answer is None
        else:
            assert (answer is not None) == (id in waiting)
            waiting.discard(id)


def test_an_id_is_free_again_once_it_was_answered() -> None:
    """spec 9.3: unique per request; a sender may choose the same id for its next one."""
    ids = RequestIds()
    ids.take("a")
    assert len(ids) == 1
    assert not ids.is_free("a")
    with pytest.raises(LocalProtocolError):
        ids.take("a")
    ids.give_back("a", is_answered=True)
    assert ids.is_free("a")


def test_an_id_without_answer_stays_spent_for_a_while() -> None:
    """spec 9.7: a late answer to the first request is not one to the second."""
    ids = RequestIds()
    ids.take("a")
    ids.give_back("a", is_answered=False)
    assert len(ids) == 0
    assert not ids.is_free("a")
    for number in range(10_000):
        ids.take(str(number))
        ids.give_back(str(number), is_answered=False)
    assert ids.is_free("a")
    assert not ids.is_free("0")
