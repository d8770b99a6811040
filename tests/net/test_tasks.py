"""Exceptions out of nurseries, and deadlines that count as a loss."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from relaycore.errors import ConnectionLost
from relaycore.net.tasks import alone, bounded, leaves


async def fail(error: BaseException) -> None:
    await trio.lowlevel.cancel_shielded_checkpoint()
    raise error


async def fail_in_nursery(*errors: BaseException) -> None:
    with alone():
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            for error in errors:
                inner.start_soon(fail, error)


async def test_one_error_comes_out_as_it_was():
    cause = OSError("why")
    error = ValueError("what")
    error.__cause__ = cause
    with pytest.raises(ValueError, match="what") as caught:
        await fail_in_nursery(error)
    assert caught.value is error
    assert caught.value.__cause__ is cause


async def test_two_errors_stay_a_group():
    with pytest.RaisesGroup(pytest.RaisesGroup(ValueError, KeyError)) as caught:
        await fail_in_nursery(ValueError(), KeyError())
    assert {type(error) for error in leaves(caught.value)} == {ValueError, KeyError}


async def test_a_cancellation_passes_through(autojump_clock: MockClock):
    with trio.move_on_after(1) as scope:
        await fail_in_nursery()
    assert scope.cancelled_caught


async def test_a_passed_deadline_is_a_lost_connection(autojump_clock: MockClock):
    with pytest.raises(ConnectionLost, match="3 s"), bounded(3):
        await trio.sleep_forever()
    with bounded(3):
        await trio.sleep(1)
