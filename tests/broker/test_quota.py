from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.broker.quota import ByteBudget, ConnectionQuota, SourceLimiter, source_key
from relaycore.errors import QuotaExceeded
from relaycore.vocab import RefusalReason


class TestConnections:
    def test_the_namespace_is_counted_without_regard_to_case(self):
        quota = ConnectionQuota()
        lease = quota.acquire("Default")
        assert lease.namespace == "Default"
        assert quota.count("dEFAULT") == 1
        assert quota.count("other") == 0

    def test_at_the_limit_the_quota_is_named(self):
        """spec 12: namespace quota is 403 to a listener and 503 to a sender, with the name of the quota."""
        quota = ConnectionQuota(2)
        quota.acquire("a")
        quota.acquire("a")
        quota.acquire("b")
        for status, arguments in ((503, {}), (403, {"http_status": 403})):
            with pytest.raises(QuotaExceeded, match="ConnectionsPerNamespace") as caught:
                quota.acquire("a", **arguments)
            assert caught.value.http_status == status
            assert caught.value.reason is RefusalReason.CONNECTION_QUOTA

    def test_the_default_limit(self):
        """spec 15: 5 000 concurrent connections per namespace."""
        assert ConnectionQuota().limit == 5_000

    def test_a_release_counts_once(self):
        quota = ConnectionQuota()
        first, second = quota.acquire("a"), quota.acquire("a")
        assert first.release() is True
        assert first.release() is False
        assert quota.count("a") == 1
        assert second.release() is True
        assert quota.count("a") == 0

    def test_a_lease_ends_with_its_block(self):
        quota = ConnectionQuota()

        def fail() -> None:
            with quota.acquire("a"):
                assert quota.count("a") == 1
                raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            fail()
        assert quota.count("a") == 0

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 9))))
    def test_the_books_balance(self, steps):
        quota = ConnectionQuota(3)
        held: list = []
        for namespace, takes, which in steps:
            if takes:
                if quota.count(namespace) < 3:
                    held.append(quota.acquire(namespace))
            elif held:
                lease = held[which % len(held)]
                lease.release()
                held = [other for other in held if other is not lease]
            assert quota.check_consistency() == []
            for name in "ab":
                assert quota.count(name) == sum(lease.namespace == name for lease in held)

    def test_the_recount_notices(self):
        quota = ConnectionQuota(2)
        quota.acquire("a")
        quota.acquire("a")
        quota.limit = 1
        assert quota.check_consistency() == ["a has 2 connections and may have 1"]


class TestSources:
    def test_a_burst_is_answered_at_once_then_at_the_rate_then_not_at_all(self):
        """spec 18: a Node client retries a refused listen without pause; delayed answers per source."""
        limiter = SourceLimiter(10.0, 3, max_delay_s=0.35)
        delays = [limiter.note_refusal("192.0.2.1", 0.0) for _ in range(9)]
        assert delays[:3] == [0.0, 0.0, 0.0]
        assert delays[3:6] == pytest.approx([0.1, 0.2, 0.3])
        assert delays[6:] == [None, None, None]

    def test_what_was_cut_costs_nothing_later(self):
        limiter = SourceLimiter(10.0, 1, max_delay_s=0.2)
        for _ in range(1_000):
            limiter.note_refusal("192.0.2.1", 0.0)
        assert limiter.note_refusal("192.0.2.1", 0.1) == pytest.approx(0.2)

    def test_time_gives_back_up_to_the_burst(self):
        limiter = SourceLimiter(10.0, 2, max_delay_s=1.0)
        for _ in range(4):
            limiter.note_refusal("192.0.2.1", 0.0)
        assert limiter.note_refusal("192.0.2.1", 0.4) == 0.0
        for _ in range(2):
            assert limiter.note_refusal("192.0.2.1", 100.0) == 0.0
        assert limiter.note_refusal("192.0.2.1", 100.0) == pytest.approx(0.1)

    def test_a_clock_that_stands_or_goes_back_gives_nothing(self):
        limiter = SourceLimiter(10.0, 1, max_delay_s=1.0)
        assert limiter.note_refusal("192.0.2.1", 5.0) == 0.0
        assert limiter.note_refusal("192.0.2.1", 4.0) == pytest.approx(0.1)
        assert limiter.note_refusal("192.0.2.1", 5.0) == pytest.approx(0.2)

    def test_one_source_does_not_pay_for_another(self):
        limiter = SourceLimiter(1.0, 1, max_delay_s=0.0)
        assert limiter.note_refusal("192.0.2.1", 0.0) == 0.0
        assert limiter.note_refusal("192.0.2.1", 0.0) is None
        assert limiter.note_refusal("192.0.2.2", 0.0) == 0.0

    def test_the_memory_is_bounded_and_forgets_the_quietest(self):
        limiter = SourceLimiter(1.0, 1, 2, max_delay_s=0.0)
        limiter.note_refusal("192.0.2.1", 0.0)
        limiter.note_refusal("192.0.2.2", 0.0)
        assert limiter.note_refusal("192.0.2.1", 0.0) is None
        limiter.note_refusal("192.0.2.3", 0.0)
        assert len(limiter) == 2
        assert limiter.note_refusal("192.0.2.1", 0.0) is None
        assert limiter.note_refusal("192.0.2.2", 0.0) == 0.0

    @pytest.mark.parametrize(
        ("source", "key"),
        [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("unix", "unix"),
            ("", ""),
        ],
    )
    def test_an_ipv6_source_is_its_64(self, source, key):
        assert source_key(source) == key

    @given(
        st.lists(st.tuples(st.floats(0, 2), st.integers(0, 4)), max_size=60),
        st.floats(0.5, 50),
        st.integers(1, 10),
    )
    def test_no_source_is_answered_faster_than_its_rate(self, steps, rate, burst):
        limiter = SourceLimiter(rate, burst, 3, max_delay_s=1.0)
        now = 0.0
        answered = []
        for pause, count in steps:
            now += pause
            for _ in range(count):
                delay = limiter.note_refusal("2001:db8::1", now)
                if delay is not None:
                    assert 0.0 <= delay <= 1.0
                    answered.append(now + delay)
        for n, moment in enumerate(answered):
            for later, other in enumerate(answered[n:], start=1):
                assert later <= burst + 1 + rate * (other - moment) + 1e-6


def test_bytes_are_given_whole_or_not_at_all() -> None:
    """failures: everything held has a bound, and it is kept exactly."""
    budget = ByteBudget(100)
    first, second = budget.take(60), budget.take(40)
    assert first is not None
    assert second is not None
    assert budget.take(1) is None
    assert budget.take(0) is not None
    first.release()
    first.release()
    assert (budget.held, budget.peak) == (40, 100)
    assert budget.take(61) is None
    assert budget.take(60) is not None
    assert budget.check_consistency() == []


def test_some_leave_room_for_others() -> None:
    """failures: what has another way must not take the room of what has none."""
    budget = ByteBudget(100)
    lease = budget.take(10, keep_free=50)
    assert lease is not None
    assert not lease.grow(41, keep_free=50)
    assert lease.grow(40, keep_free=50)
    assert budget.take(1, keep_free=50) is None
    assert budget.take(50) is not None
    assert budget.held == 100
    lease.release()
    assert not lease.grow(1)
    assert budget.held == 50
    assert budget.check_consistency() == []


def test_a_wrong_book_of_bytes_is_noticed() -> None:
    """failures: the consistency check sees what it is there for."""
    budget = ByteBudget(10)
    budget.take(5)
    budget.held = 11
    assert len(budget.check_consistency()) == 2
