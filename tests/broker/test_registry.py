from __future__ import annotations

import dataclasses
import random

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from relaycore.broker import registry as registry_module
from relaycore.broker.registry import ListenerEntry, Registry, listener_id, parse_listener_filter
from relaycore.errors import LocalProtocolError, NoListener, QuotaExceeded
from relaycore.vocab import RefusalReason

GUID = "12345678-1234-1234-1234-1234567890ab"


def entry(id: str = "a", path: str = "hyco", namespace: str = "default") -> ListenerEntry:
    return ListenerEntry(listener_id(id), namespace, path, handle=object())


def filled(*ids: str, limit: int = 25) -> tuple[Registry, list[ListenerEntry]]:
    registry = Registry(max_per_entity=limit)
    entries = [entry(id) for id in ids]
    for one in entries:
        registry.register("default", "hyco", one)
    return registry, entries


def choose(registry: Registry, path: str = "hyco", seed: int = 0, **options) -> ListenerEntry:
    return registry.choose("default", path, rng=random.Random(seed), **options)


class FakeHeaders:
    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = pairs

    def get_all(self, name: str) -> list[str]:
        return [value for other, value in self.pairs if other.lower() == name.lower()]


class TestIds:
    @pytest.mark.parametrize("text", [GUID, GUID.upper(), GUID + "_G0", f" {GUID}_G12 "])
    def test_an_id_is_the_guid(self, text):
        """spec 11: compare GUIDs without case and without suffix."""
        assert listener_id(text) == GUID

    @given(strategies.tracking_ids)
    def test_a_tracking_id_names_its_guid(self, text):
        assert listener_id(text) == text[:36]


class TestFilters:
    def test_without_headers_everybody_is_allowed(self):
        """spec 11: without the two headers the choice is not restricted."""
        assert parse_listener_filter(FakeHeaders()) == (None, frozenset())

    def test_lists_of_ids(self):
        """spec 11: `guid[,guid...]`, compared without case and without suffix."""
        headers = FakeHeaders(
            ("microsoft-relay-allowedlisteners", f"{GUID.upper()}_G0, b,,"),
            ("Microsoft-Relay-AllowedListeners", "c"),
            ("MICROSOFT-RELAY-DISALLOWEDLISTENERS", "D"),
        )
        assert parse_listener_filter(headers) == ({GUID, "b", "c"}, {"d"})

    def test_a_header_that_allows_nobody_means_it(self):
        """spec 11: the header restricts the choice to who is named."""
        allowed, _ = parse_listener_filter(FakeHeaders(("Microsoft-Relay-AllowedListeners", " , ")))
        assert allowed == frozenset()


class TestRegistering:
    def test_names_compare_without_case(self):
        """spec 3: entity names compare without regard to case."""
        registry = Registry()
        one = entry()
        registry.register("Default", "Dept/Hyco", one)
        assert registry.count("dEFAULT", "/dept/hYCO/") == 1
        assert registry.choose("default", "DEPT/HYCO", rng=random.Random(0)) is one
        assert registry.count("default", "dept") == 0
        assert registry.count("other", "dept/hyco") == 0

    def test_25_listeners_and_no_more(self):
        """spec 15: 25 listeners per entity; spec 12: 403 to a listener, with the name of the quota."""
        registry, entries = filled(*(f"id{n}" for n in range(25)), limit=Registry()._max_per_entity)
        late = entry("late")
        with pytest.raises(QuotaExceeded, match="ListenersPerEntity") as caught:
            registry.register("default", "hyco", late)
        assert caught.value.http_status == 403
        assert caught.value.reason is RefusalReason.LISTENER_QUOTA
        assert registry.count("default", "hyco") == 25
        registry.register("default", "other", late)
        registry.deregister(entries[7])
        registry.register("default", "hyco", entry("next"))
        assert registry.check_consistency() == []

    def test_an_entry_is_registered_once(self):
        registry, (one,) = filled("a")
        with pytest.raises(LocalProtocolError):
            registry.register("default", "other", one)

    def test_letting_go_twice_does_nothing(self):
        """spec 6.1: deregister before the Close is answered; nothing is sent there from then on."""
        registry, (one, two) = filled("a", "b")
        assert registry.deregister(one) is True
        assert registry.deregister(one) is False
        assert [choose(registry, seed=seed) for seed in range(5)] == [two] * 5
        assert registry.deregister(two) is True
        assert registry.count("default", "hyco") == 0
        assert registry.statistics() == registry_module.RegistryStatistics(0, 0, 0)

    def test_what_is_there_can_be_listed(self):
        registry, (one, two) = filled("a", "b")
        other = entry(path="other")
        registry.register("default", "other", other)
        assert set(registry.listeners("default", "hyco")) == {one, two}
        assert registry.listeners("default", "nobody") == ()
        assert set(registry.all_listeners()) == {one, two, other}
        assert registry.statistics() == registry_module.RegistryStatistics(posts=2, listeners=3, reserve=0)

    def test_entries_are_compared_by_identity(self):
        one = entry()
        assert one != dataclasses.replace(one)
        assert "object at" not in repr(one)


class TestChoosing:
    def test_everybody_gets_some(self):
        """spec 11: random; with two listeners and 100 requests both must get some."""
        registry, entries = filled("a", "b")
        rng = random.Random(1)
        chosen = [registry.choose("default", "hyco", rng=rng) for _ in range(100)]
        assert set(chosen) == set(entries)

    @pytest.mark.parametrize("status", [404, 502])
    def test_nobody_listens(self, status):
        """spec 12: no listener is 404 to a WebSocket sender and 502 to an HTTP sender, same text."""
        with pytest.raises(NoListener) as caught:
            choose(Registry(), no_listener_status=status)
        assert caught.value.http_status == status
        assert caught.value.reason is RefusalReason.NO_LISTENER
        assert str(caught.value) == "There are no listeners connected for the endpoint"

    def test_filters_restrict_the_choice(self):
        """spec 11: AllowedListeners restricts, DisallowedListeners excludes."""
        registry, (a, b, c) = filled("a", "b", "c")
        chosen = {choose(registry, seed=seed, allowed={"a", "b"}) for seed in range(30)}
        assert chosen == {a, b}
        assert choose(registry, allowed={"a", "b"}, disallowed={"a"}) is b
        assert choose(registry, disallowed={"a", "b"}) is c

    @pytest.mark.parametrize("options", [{"allowed": {"z"}}, {"disallowed": {"a", "b"}}, {"allowed": frozenset()}])
    def test_filters_leave_nobody(self, options):
        """spec 11: nothing left is 404 with its own text, for HTTP senders as well."""
        registry, _ = filled("a", "b")
        with pytest.raises(NoListener) as caught:
            choose(registry, no_listener_status=502, **options)
        assert caught.value.http_status == 404
        assert caught.value.reason is RefusalReason.LISTENER_FILTER
        assert (
            str(caught.value)
            == "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
        )

    def test_a_filter_where_nobody_listens_is_not_to_blame(self):
        with pytest.raises(NoListener, match="no listeners connected"):
            choose(Registry(), allowed={"a"})

    def test_another_listener_is_tried(self):
        """spec 11: a listener that fails to take an accept: try another."""
        registry, entries = filled("a", "b", "c")
        tried: list[ListenerEntry] = []
        for _ in entries:
            tried.append(choose(registry, excluded=tried))
        assert set(tried) == set(entries)
        with pytest.raises(NoListener, match="no listeners connected"):
            choose(registry, excluded=tried)

    def test_the_choice_comes_from_the_random_source_alone(self):
        registry, _ = filled(*"abcdefgh")
        assert [choose(registry, seed=5) for _ in range(3)] == [choose(registry, seed=5)] * 3


class TestTheSameIdTwice:
    """What the top of the module promises."""

    def test_a_stale_channel_does_not_shadow_the_new_one(self):
        """failures: listener silently deaf while "connected"; a half-open channel must not get the senders."""
        registry, (stale, other) = filled("a", "b")
        fresh = entry("A_G0")
        assert registry.register("default", "hyco", fresh) == (stale,)
        assert {choose(registry, seed=seed) for seed in range(30)} == {fresh, other}
        assert registry.count("default", "hyco") == 2
        assert set(registry.listeners("default", "hyco")) == {stale, fresh, other}
        assert registry.check_consistency() == []

    def test_a_full_reserve_names_the_channel_that_is_overdue(self):
        """failures: half-open link: re-login blocks; the listener behind it must not use up its own places."""
        registry = Registry(max_per_entity=2)
        first, second, third, fourth = (entry("a") for _ in range(4))
        for channel in (first, second, third):
            assert registry.find_overdue("default", "hyco", channel) is None
            registry.register("default", "hyco", channel)
        assert registry.find_overdue("default", "hyco", entry("b")) is None
        assert registry.find_overdue("default", "hyco", fourth) is first
        registry.deregister(first)
        assert registry.find_overdue("default", "hyco", fourth) is None
        assert registry.register("default", "hyco", fourth) == (second, third)
        assert registry.check_consistency() == []

    def test_the_end_of_the_stale_one_leaves_the_new_one_alone(self):
        registry, (stale,) = filled("a")
        fresh = entry("a")
        registry.register("default", "hyco", fresh)
        assert registry.deregister(stale) is True
        assert choose(registry) is fresh
        assert registry.count("default", "hyco") == 1

    def test_the_end_of_the_new_one_brings_the_old_one_back(self):
        registry, (oldest,) = filled("a")
        older, fresh = entry("a"), entry("a")
        registry.register("default", "hyco", older)
        assert registry.register("default", "hyco", fresh) == (oldest, older)
        registry.deregister(fresh)
        assert choose(registry) is older
        registry.deregister(older)
        assert choose(registry) is oldest
        assert registry.count("default", "hyco") == 1
        assert registry.check_consistency() == []

    def test_it_is_tried_when_nobody_else_is_left(self):
        registry, (stale,) = filled("a")
        fresh = entry("a")
        registry.register("default", "hyco", fresh)
        assert choose(registry, excluded={fresh}) is stale
        with pytest.raises(NoListener, match="no listeners connected"):
            choose(registry, excluded={fresh, stale})
        with pytest.raises(NoListener, match="criteria"):
            choose(registry, excluded={fresh}, disallowed={"a"})

    def test_both_work_once_the_older_has_been_heard(self):
        registry, (older,) = filled("a")
        newer = entry("a")
        registry.register("default", "hyco", newer)
        assert registry.confirm(older) is True
        assert registry.confirm(older) is True
        assert {choose(registry, seed=seed) for seed in range(30)} == {older, newer}
        assert registry.count("default", "hyco") == 2
        registry.deregister(newer)
        assert choose(registry) is older
        assert registry.check_consistency() == []

    def test_a_third_sends_both_to_the_reserve(self):
        registry, (first,) = filled("a")
        second, third = entry("a"), entry("a")
        registry.register("default", "hyco", second)
        registry.confirm(first)
        assert set(registry.register("default", "hyco", third)) == {first, second}
        assert {choose(registry, seed=seed) for seed in range(9)} == {third}

    def test_a_stranger_is_not_confirmed(self):
        assert Registry().confirm(entry()) is False

    def test_a_full_house_comes_back_after_a_lost_network(self):
        """spec 15: 25 listeners; those that have lost their network do not keep themselves out."""
        registry, stale = filled("a", "b", "c", limit=3)
        fresh = [entry(id) for id in "abc"]
        for one in fresh:
            registry.register("default", "hyco", one)
        assert registry.count("default", "hyco") == 3
        assert {choose(registry, seed=seed) for seed in range(50)} == set(fresh)
        assert registry.confirm(stale[0]) is False
        assert registry.check_consistency() == []

    def test_the_reserve_is_bounded_too(self):
        registry, _ = filled("a", "a", "a", limit=2)
        assert registry.statistics() == registry_module.RegistryStatistics(posts=1, listeners=1, reserve=2)
        with pytest.raises(QuotaExceeded):
            registry.register("default", "hyco", entry("a"))
        assert registry.check_consistency() == []


class TestTheRecount:
    def test_it_notices_what_does_not_fit(self):
        registry, (one, two) = filled("a", "b", limit=2)
        post = registry._posts["default", "hyco"]
        assert registry.check_consistency() == []
        post.current.remove(one)
        assert "index" in registry.check_consistency()[0]
        post.current.extend([one, two])
        assert {"has more listeners" in line or "twice" in line for line in registry.check_consistency()} == {True}
        registry, (one, two) = filled("a", "a")
        registry._where[two] = ("default", "elsewhere")
        registry._posts["default", "hyco"].current.clear()
        registry._posts["default", "gone"] = registry_module._Post()
        text = " ".join(registry.check_consistency())
        for word in ("without a listener", "in reserve for nobody"):
            assert word in text
        registry, (one,) = filled("a")
        registry._where[one] = ("default", "elsewhere")
        assert "stands under" in registry.check_consistency()[0]


class LifeOfARegistry(RuleBasedStateMachine):
    """Listeners come, go, come back and are heard from; senders choose. A plain list of who is there is the oracle."""

    listeners: Bundle[ListenerEntry] = Bundle("listeners")
    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(max_per_entity=self.LIMIT)
        self.there: list[ListenerEntry] = []
        self.rng = random.Random(0)

    @rule(target=listeners, id=st.sampled_from("abcd"), path=st.sampled_from(["x", "y"]))
    def register(self, id, path):
        one = entry(id, path)
        is_known = any(other.id == one.id and other.entity_path == path for other in self.there)
        is_full = self.registry.count("default", path) >= self.LIMIT
        try:
            in_doubt = self.registry.register("default", path, one)
        except QuotaExceeded:
            assert is_full or is_known
            return multiple()
        assert is_known or not is_full
        assert set(in_doubt) <= {other for other in self.there if other.id == one.id and other.entity_path == path}
        self.there.append(one)
        # No older channel of that id is chosen beside it until it has been heard.
        assert self.registry.choose("default", path, allowed={one.id}, rng=self.rng) is one
        return one

    @rule(one=consumes(listeners))
    def deregister(self, one):
        assert self.registry.deregister(one) is (one in self.there)
        assert self.registry.deregister(one) is False
        self.there.remove(one)

    @rule(one=listeners)
    def confirm(self, one):
        if self.registry.confirm(one):
            assert one in self.there
            only = [other for other in self.there if other is not one]
            assert self.registry.choose("default", one.entity_path, excluded=only, rng=self.rng) is one

    @rule(
        path=st.sampled_from(["x", "y"]),
        allowed=st.none() | st.sets(st.sampled_from("abcd")),
        disallowed=st.sets(st.sampled_from("abcd")),
        picks=st.sets(st.integers(0, 9)),
    )
    def choose(self, path, allowed, disallowed, picks):
        excluded = {one for n, one in enumerate(self.there) if n in picks}
        left = [one for one in self.there if one.entity_path == path and one not in excluded]
        fitting = [one for one in left if (allowed is None or one.id in allowed) and one.id not in disallowed]
        options = {"allowed": allowed, "disallowed": disallowed, "excluded": excluded, "rng": self.rng}
        if fitting:
            assert self.registry.choose("default", path, **options) in fitting
        else:
            with pytest.raises(NoListener) as caught:
                self.registry.choose("default", path, **options)
            assert (caught.value.reason is RefusalReason.LISTENER_FILTER) is bool(left)

    @invariant()
    def books_balance(self):
        assert self.registry.check_consistency() == []
        assert set(self.registry.all_listeners()) == set(self.there)
        for path in ("x", "y"):
            here = [one for one in self.there if one.entity_path == path]
            assert set(self.registry.listeners("default", path)) == set(here)
            assert len({one.id for one in here}) <= self.registry.count("default", path) <= min(len(here), self.LIMIT)


TestLifeOfARegistry = LifeOfARegistry.TestCase
TestLifeOfARegistry.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)
