"""Tables and numbers for people."""

from __future__ import annotations

import msgspec
import pytest
from statuses import connection, manager

from relaycore.cli.hcm.live import View
from relaycore.cli.hcm.table import Rates, Sort, detail_lines, headline, table_lines
from relaycore.cli.hcm.words import clean, clip, columns, size, span, times


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "-"), (0.4, "-"), (1, "1"), (999, "999"), (1_000, "1.0 k"), (9_940, "9.9 k"), (9_960, "10 k"),
        (999_499, "999 k"), (999_600, "1.0 M"), (1_200_000_000, "1.2 G"), (3e15, "3.0 P"), (3e19, "30000 P"),
    ],
)  # fmt: skip
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_599, "59 min"), (3_600, "1h00"), (11_100, "3h05"),
     (86_400, "1d00h"), (273_600, "3d04h")],
)  # fmt: skip
def test_spans(seconds, text):
    assert span(seconds) == text


def test_words():
    assert (times(1, "listener"), times(2, "listener")) == ("1 listener", "2 listeners")
    assert (clip("abc", 3), clip("abcd", 3), clip("a", 0)) == ("abc", "ab…", "")
    assert clean("a\x1b[2J\nb\u202ec\x9b\x00") == "a [2J b c"
    assert columns([("A", "B"), ("1", "22"), ("333", "4")], right=(1,)) == ["A     B", "1    22", "333   4"]
    assert columns([]) == []


def test_the_table():
    status = manager(
        connection("orders-sql", open=14, bytes_in=1_200_000_000, bytes_out=310_000_000, since_unix=-273_600.0),
        connection(
            "erp", status="Reconnecting", detail="try 4 in 6 s", listeners_here=0, listeners_total=None, health=""
        ),
    )
    assert headline(status, 60.0) == "relaycore hcm on edge-a   2 connections   relay.example   up 1 min"
    rates = Rates()
    rates.note(status, 10.0)
    more = msgspec.structs.replace(status.connections[0], bytes_in=1_204_200_000)
    status = manager(more, status.connections[1])
    rates.note(status, 12.0)
    assert table_lines(status, 0.0, rates=rates) == [
        "NAME        STATUS        LISTENERS   ENDPOINT  HEALTH     OPEN  IN / OUT       RATE     SINCE",
        "erp         Reconnecting  0 (0 here)  db:1433   -             0  -              -        try 4 in 6 s",
        "orders-sql  Connected     2 (1 here)  db:1433   up 1.9 ms    14  1.2 G / 310 M  2.1 M/s  3d04h",
    ]


def test_an_empty_table_says_what_to_do():
    assert table_lines(manager(), 0.0) == ["no connections yet; add one with: relaycore hcm add CONNECTION_STRING"]


def test_orders():
    status = manager(
        connection("a", open=1, bytes_in=5),
        connection("b", open=3, status="NotFound"),
        connection("c", open=2, bytes_in=9),
    )

    def names(sort):
        return [line.split()[0] for line in table_lines(status, 0.0, sort=sort)[1:]]

    assert names(Sort.NAME) == ["a", "b", "c"]
    assert names(Sort.STATUS) == ["b", "a", "c"]
    assert names(Sort.OPEN) == ["b", "c", "a"]
    assert names(Sort.BYTES) == ["c", "a", "b"]


def test_details_have_no_control_characters():
    both = {"relay_error": "no key", "endpoint_error": "is down", "last_error": "is down"}
    lines = detail_lines(connection("a", status="Unauthorized", **both))
    assert "relay error        no key" in lines
    assert "endpoint error     is down" in lines
    assert not any(line.startswith("last error") for line in lines)
    lines = detail_lines(connection("a", last_error="bad \x1b[2J", last_error_unix=0.0, rejected={"refused": 2}))
    assert "refused            2 refused" in lines
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("leg", "health", "shown"),
    [
        ("Up", "up 1.9 ms", "Up 1.9 ms"),
        ("Down", "down", "Down"),
        ("Degraded", "2 of 5 failed", "Degraded 2 of 5 failed"),
        ("Unknown", "unknown", "Unknown"),
        ("Unknown", "not probed", "Unknown not probed"),
        ("Up", "", "Up"),
    ],
)
def test_no_word_is_said_twice(leg: str, health: str, shown: str):
    lines = detail_lines(connection("a", endpoint_leg=leg, health=health))
    assert f"endpoint leg       {shown}" in lines


def test_a_view_keeps_to_its_screen():
    view = View()
    assert view.lines(20, 5, 0.0) == ["asking..."]
    view.note(manager(*(connection(f"name-{number:02}") for number in range(30))), 0.0)
    for _ in range(20):
        view.move(1)
    for height in (1, 2, 4, 10, 50):
        lines = view.lines(40, height, 0.0)
        assert len(lines) <= height
        bare = [line.replace("\x1b[", "").replace("0m", "") for line in lines]
        assert all(len(line) <= 40 + 12 for line in bare)
    assert any("name-20" in line and "\x1b[7m" in line for line in view.lines(80, 10, 0.0))
    view.move(100)
    assert view.current.name == "name-29"
    view.next_sort()
    view.shows_details = True
    assert any("hybrid connection  name-29" in line for line in view.lines(80, 24, 0.0))
    view.trouble = "gone"
    assert any("gone" in line for line in view.lines(80, 24, 0.0))
