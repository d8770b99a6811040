"""The book of open connections."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from relaycore.client.invitation import IncomingConnection
from relaycore.edge.hcm.sessions import SessionBook, sender_of
from relaycore.wire.http1 import Headers
from relaycore.wire.messages import RemoteEndpoint


def incoming(address: str | None = "203.0.113.7") -> IncomingConnection:
    peer = None if address is None else RemoteEndpoint(address, 51234)
    return IncomingConnection("sql", "", "", Headers(), peer, (), "t")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("203.0.113.7", "203.0.113.7:51234"),
        ("2001:db8::7", "[2001:db8::7]:51234"),
        ("[2001:db8::7]", "[2001:db8::7]:51234"),
        (None, ""),
    ],
)
def test_senders_are_shown_as_addresses_are_written(address: str | None, shown: str):
    assert sender_of(incoming(address)) == shown


async def test_what_is_open_is_counted_and_what_was_is_added():
    book = SessionBook(now_unix=lambda: 7.0)
    with book.entered(incoming(), "db:1") as session:
        session.note_carried(3, 4)
        assert len(book) == 1
        assert book.carried() == (3, 4)
        [shown] = book.snapshot("sql")
        assert (shown.name, shown.endpoint, shown.since_unix, shown.bytes_in, shown.bytes_out) == (
            "sql",
            "db:1",
            7.0,
            3,
            4,
        )
    with book.entered(incoming()) as session:
        session.note_carried(1, 1)
    assert (len(book), book.accepted, book.carried()) == (0, 2, (4, 5))


async def test_a_drain_waits_and_then_cuts(autojump_clock: MockClock):
    book = SessionBook()
    ended: list[str] = []

    async def hold(name: str, seconds: float) -> None:
        with book.entered(incoming()):
            await trio.sleep(seconds)
            ended.append(name)
        ended.append(f"{name} is out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, "short", 1)
        nursery.start_soon(hold, "long", 3600)
        await wait_all_tasks_blocked()
        assert await book.drain(10) == 1
        assert ended == ["short", "short is out", "long is out"]
        assert trio.current_time() < 20
        assert await book.drain(10) == 0


async def test_an_error_inside_comes_out():
    book = SessionBook()
    with pytest.raises(KeyError), book.entered(incoming()):
        raise KeyError
    assert len(book) == 0
