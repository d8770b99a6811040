import pytest

from bench.figures import Spread, figures_of, is_lower_better, paired_ratios, percentiles_us


def result(**job):
    whole = {
        "kind": "sink",
        "size": 1 << 20,
        "count": 1,
        "seconds": 2.0,
        "bytes": 4 << 20,
        "messages": 4,
        "latency": [],
    }
    return {
        "jobs": [{**whole, **job}],
        "seconds": 2.0,
        "own_cpu_seconds": 0.5,
        "watched_cpu_seconds": [1.0, 0.25],
        "watched_waited_seconds": [0.5, 0.125],
        "watched_switches": [8, 1000],
        "watched_open_bytes": [1 << 20, 0],
        "watched_stalled_bytes": [3 << 20, 1 << 30],
    }


def test_rates_come_from_confirmed_payload_and_time():
    figures = figures_of(result(), under_test=1)
    assert figures["MiB/s"] == 2.0
    assert figures["messages/s"] == 2.0
    assert figures["CPU µs/message"] == 250_000
    assert figures["CPU s/GiB"] == 256.0
    assert figures["busy"] == 0.5
    assert figures["load busy"] == 0.375
    assert figures["starved"] == 0.25
    assert figures["switches/message"] == 2.0


@pytest.mark.parametrize("kind", ["echo", "ping"])
def test_an_echo_crosses_twice(kind):
    figures = figures_of(result(kind=kind), under_test=1)
    assert figures["MiB/s"] == 2.0
    assert figures["CPU µs/message"] == 125_000
    assert figures["CPU s/GiB"] == 128.0


def test_nothing_under_test_has_no_price():
    figures = figures_of(result(), under_test=0)
    assert "CPU s/GiB" not in figures
    assert "CPU µs/message" not in figures
    assert figures["busy"] == 0
    assert figures["load busy"] == 0.875


def test_jobs_beside_the_first_give_their_rate():
    both = result(kind="ping", bytes=0, latency=[[1000, 1]])
    both["jobs"].append({"kind": "sink", "size": 1, "seconds": 4.0, "bytes": 8 << 20, "messages": 8, "latency": []})
    figures = figures_of(both, under_test=1)
    assert figures["beside MiB/s"] == 2.0
    assert figures["p50 µs"] == pytest.approx(1.0, rel=0.01)


def test_paced_pings_tell_how_late_they_were_sent():
    late = figures_of(result(kind="ping", latency=[[9_000, 100]], late=[[1_000, 98], [5_000, 2]]), under_test=1)
    assert late["late p99 µs"] == pytest.approx(5.0, rel=0.01)
    assert "late p99 µs" not in figures_of(result(kind="ping", latency=[[9_000, 100]]), under_test=1)


def test_stalled_streams_are_in_no_rate_and_have_a_price():
    both = result()
    both["jobs"].append({"kind": "stall", "size": 1, "count": 8, "seconds": 9.0, "bytes": 1 << 30, "messages": 8})
    figures = figures_of(both, under_test=1)
    assert "beside MiB/s" not in figures
    assert figures["CPU s/GiB"] == 256.0
    assert figures["KiB/stalled"] == 256.0
    assert "KiB/stalled" not in figures_of(both, under_test=0)


def test_shares_are_of_what_is_fair():
    figures = figures_of(result(count=4, least_bytes=1 << 19, most_bytes=2 << 20), under_test=1)
    assert (figures["least share"], figures["most share"]) == (0.5, 2.0)
    assert "least share" not in figures_of(result(least_bytes=1, most_bytes=1), under_test=1)


def test_requests_cross_once_with_their_answers():
    figures = figures_of(result(kind="http"), under_test=1)
    assert figures["CPU µs/request"] == 250_000
    assert figures["switches/request"] == 2.0


def test_percentiles_weigh_by_count():
    counts = [(1_000, 98), (50_000, 1), (900_000, 1)]
    assert percentiles_us(counts, (50, 99, 100)) == pytest.approx([1.0, 50.0, 900.0], rel=0.002)


def test_percentiles_take_what_lies_outside_the_scale():
    assert percentiles_us([(0, 1)], (50,)) == pytest.approx([0.001], rel=0.01)
    assert percentiles_us([(10**18, 1)], (50,)) == pytest.approx([600e6], rel=0.01)


def test_spread_is_median_and_ends():
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_ratios_pair_rounds_and_leave_out_what_has_no_partner():
    assert paired_ratios({0: 2.0, 1: 9.0, 2: 8.0}, {0: 4.0, 2: 2.0, 3: 1.0}) == [0.5, 4.0]
    assert paired_ratios({0: 1.0}, {0: 0.0}) == []


def test_direction_of_figures():
    assert is_lower_better("p99.9 µs")
    assert is_lower_better("CPU s/GiB")
    assert not is_lower_better("MiB/s")
    assert not is_lower_better("messages/s")
