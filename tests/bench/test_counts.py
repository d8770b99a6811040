"""The engine's exact counts. A change here is a change of design: say in the commit why more is needed."""

from __future__ import annotations

import pytest

from bench.counts import ROUND_TRIPS, count_everything, crossings, lockstep, preloaded, python_blocks
from relaycore._native import engine_is_available

pytestmark = pytest.mark.skipif(not engine_is_available(), reason="no engine on this system")


def test_a_small_message_takes_one_wait_one_receive_and_one_send():
    each_way = 2 * ROUND_TRIPS
    assert set(lockstep().values()) == {each_way}


def test_bulk_is_received_once_and_sent_once():
    counts = preloaded("bulk", 65_536, 2)
    assert counts["bulk, receives"] == counts["bulk, sends"] == counts["bulk, turns"] == 3
    assert counts["bulk, bytes in"] == 2 * (65_536 + 14)
    assert counts["bulk, bytes out"] == 2 * (65_536 + 10)


def test_a_thousand_small_messages_share_three_receives_and_three_sends():
    counts = preloaded("small", 128, 1_000)
    assert counts["small, receives"] == counts["small, sends"] == 3
    assert counts["small, bytes in"] == 1_000 * (128 + 8)


def test_python_keeps_nothing_for_bytes_that_the_engine_moves():
    (kept,) = python_blocks().values()
    assert kept == 0


def test_messages_never_cross_into_python():
    counts = crossings()
    assert counts["crossings for 190 more messages"] == 0
    assert counts["crossings per session"] == 5


def test_every_part_is_counted():
    assert len(count_everything()) == 17
