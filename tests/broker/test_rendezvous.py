from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from relaycore.broker import rendezvous
from relaycore.broker.rendezvous import (
    GONE_TEXT,
    TRANSITIONS,
    Pending,
    RendezvousEvent,
    RendezvousState,
    RendezvousTable,
    not_accepted,
)
from relaycore.errors import LocalProtocolError, RemoteProtocolError, RendezvousGone, ServerBusy
from relaycore.vocab import Action, RefusalReason


def ids(prefix: str = ""):
    numbers = itertools.count()
    return lambda: f"{prefix}{next(numbers):032x}"


@pytest.fixture
def table():
    table = RendezvousTable()
    yield table
    assert table.check_consistency() == []


def mint(table: RendezvousTable, new_id=None, **changes) -> Pending:
    arguments = {
        "sender": object(),
        "namespace": "default",
        "entity_path": "hyco",
        "now": 100.0,
        "deadline": 130.0,
        "new_id": new_id or ids(),
    } | changes
    return table.mint(arguments.pop("sender"), **arguments)


class TestTheTable:
    def test_an_address_leaves_minted_once_and_there_is_no_other_way(self):
        """spec 5.4: a rendezvous address is single-use."""
        for state, event in itertools.product(RendezvousState, RendezvousEvent):
            if state is RendezvousState.MINTED:
                assert TRANSITIONS[state, event] is not RendezvousState.MINTED
            else:
                assert (state, event) not in TRANSITIONS

    def test_each_end_has_one_cause(self):
        ends = list(TRANSITIONS.values())
        assert sorted(state.value for state in ends) == ["cancelled", "claimed", "expired", "rejected"]

    def test_the_picture_shows_what_the_table_says(self):
        picture = (rendezvous.__doc__ or "").splitlines()
        for (_, event), state in TRANSITIONS.items():
            arrow = next(n for n, line in enumerate(picture) if state.name in line)
            assert event.value in picture[arrow - 1]


class TestMinting:
    def test_a_pending_says_what_it_was_minted_for(self, table):
        sender = object()
        pending = table.mint(
            sender,
            namespace="default",
            entity_path="hyco",
            action=Action.REQUEST,
            raw_path="hyco/x%20y",
            user_query="?a=b",
            tracking_id="t",
            now=1.0,
            deadline=31.0,
            new_id=lambda: "s" * 22,
        )
        assert pending.sender is sender
        assert (pending.id, pending.action, pending.state) == ("s" * 22, Action.REQUEST, RendezvousState.MINTED)
        assert (pending.raw_path, pending.user_query, pending.tracking_id) == ("hyco/x%20y", "?a=b", "t")
        assert (pending.minted_at, pending.deadline) == (1.0, 31.0)

    def test_the_secret_is_in_no_repr(self, table):
        assert mint(table, lambda: "s" * 22).id not in repr(mint(table))

    @pytest.mark.parametrize("id", ["", "s" * 21, "s" * 129, "=" * 32, "a b" * 10, "%41" * 10, "é" * 32])
    def test_a_secret_is_long_enough_and_needs_no_escaping(self, table, id):
        """spec 5.4: at least 128 bits; spec 7.1: no `=` in an address, even escaped."""
        with pytest.raises(LocalProtocolError):
            mint(table, lambda: id)

    def test_a_secret_is_fresh(self, table):
        """spec 5.4: the address itself is the secret."""
        mint(table, lambda: "s" * 32)
        with pytest.raises(LocalProtocolError):
            mint(table, lambda: "s" * 32)

    @pytest.mark.parametrize("action", [Action.LISTEN, Action.CONNECT])
    def test_only_rendezvous_have_addresses(self, table, action):
        with pytest.raises(LocalProtocolError):
            mint(table, action=action)

    def test_the_number_of_waiting_senders_is_bounded(self):
        table = RendezvousTable(max_waiting=2)
        new_id = ids()
        first, _ = mint(table, new_id), mint(table, new_id)
        with pytest.raises(ServerBusy) as caught:
            mint(table, new_id)
        assert caught.value.http_status == 503
        table.cancel(first)
        mint(table, new_id)
        assert table.statistics().waiting == 2


class TestClaiming:
    def test_a_sender_is_claimed_once(self, table):
        """spec 7.2: second use is 403."""
        pending = mint(table)
        assert table.claim(pending.id, Action.ACCEPT, 100.1) is pending
        assert pending.state is RendezvousState.CLAIMED
        with pytest.raises(RendezvousGone):
            table.claim(pending.id, Action.ACCEPT, 100.2)

    def test_one_answer_whatever_the_cause(self, table):
        """spec 7.2: second use, unknown or expired address, sender gone: 403, and the peer is not told which."""
        new_id = ids()
        used, rejected, late, cancelled = (mint(table, new_id) for _ in range(4))
        table.claim(used.id, Action.ACCEPT, 101.0)
        table.reject(rejected.id, Action.ACCEPT, 101.0)
        table.cancel(cancelled)
        seen = set()
        for id in (used.id, rejected.id, cancelled.id, late.id, "unknown", "", "\ud800"):
            for take in (table.claim, table.reject):
                with pytest.raises(RendezvousGone) as caught:
                    take(id, Action.ACCEPT, 130.0)
                seen.add((caught.value.http_status, caught.value.reason, str(caught.value)))
        assert seen == {(403, RefusalReason.RENDEZVOUS_GONE, GONE_TEXT)}
        assert late.state is RendezvousState.EXPIRED

    @pytest.mark.parametrize(("minted", "asked"), [(Action.ACCEPT, Action.REQUEST), (Action.REQUEST, Action.ACCEPT)])
    def test_the_wrong_action(self, table, minted, asked):
        """spec 7.2: wrong action on an address is 400; the address stays open."""
        pending = mint(table, action=minted)
        for take in (table.claim, table.reject):
            with pytest.raises(RemoteProtocolError) as caught:
                take(pending.id, asked, 101.0)
            assert caught.value.http_status == 400
        assert table.claim(pending.id, minted, 101.0) is pending

    def test_a_rejected_sender_is_handed_over_too(self, table):
        """spec 7.3: same address; the relay answers the sender with the listener's words."""
        pending = mint(table)
        assert table.reject(pending.id, Action.ACCEPT, 101.0) is pending
        assert pending.state is RendezvousState.REJECTED

    @pytest.mark.parametrize(("now", "is_good"), [(129.9, True), (130.0, False), (1e9, False)])
    def test_the_deadline(self, table, now, is_good):
        """spec 7.2: the relay waits 30 s in all."""
        pending = mint(table)
        if is_good:
            assert table.claim(pending.id, Action.ACCEPT, now) is pending
        else:
            with pytest.raises(RendezvousGone):
                table.claim(pending.id, Action.ACCEPT, now)
            assert table.expire(now) == []

    def test_nobody_accepted(self):
        """spec 7.2: no listener took it within 30 s: 404 with its text."""
        refusal = not_accepted()
        assert refusal.http_status == 404
        assert refusal.reason is RefusalReason.ACCEPT_TIMEOUT
        assert str(refusal) == "None of the connected listeners accepted the connection within the allowed timeout"


class TestEnding:
    def test_a_sender_that_goes_closes_its_address(self, table):
        """spec 7.2: if the sender went away meanwhile: 403."""
        pending = mint(table)
        assert table.cancel(pending) is True
        assert table.cancel(pending) is False
        with pytest.raises(RendezvousGone):
            table.claim(pending.id, Action.ACCEPT, 101.0)

    def test_who_was_claimed_cannot_be_cancelled(self, table):
        pending = mint(table)
        table.claim(pending.id, Action.ACCEPT, 101.0)
        assert table.cancel(pending) is False
        assert pending.state is RendezvousState.CLAIMED

    def test_addresses_expire_in_the_order_of_their_deadlines(self, table):
        """spec 14: accept, from message to rendezvous, 30 s."""
        new_id = ids()
        late, soon, claimed, later = (mint(table, new_id, deadline=at) for at in (20.0, 10.0, 15.0, 30.0))
        table.claim(claimed.id, Action.ACCEPT, 1.0)
        assert table.next_deadline() == 10.0
        assert table.expire(9.9) == []
        assert table.expire(20.0) == [soon, late]
        assert {soon.state, late.state} == {RendezvousState.EXPIRED}
        assert table.next_deadline() == 30.0
        table.cancel(later)
        assert table.next_deadline() is None
        assert table.expire(1e9) == []

    def test_what_is_gone_is_forgotten(self):
        table = RendezvousTable()
        new_id = ids()
        keeper = mint(table, new_id, deadline=1e9)
        for _ in range(1_000):
            table.cancel(mint(table, new_id, deadline=1e8))
        assert len(table._deadlines) <= 2 * 1 + 16 + 1
        assert table.check_consistency() == []
        assert table.claim(keeper.id, Action.ACCEPT, 1.0) is keeper

    def test_senders_of_an_entity_can_be_found(self, table):
        new_id = ids()
        one = mint(table, new_id, entity_path="Hyco")
        mint(table, new_id, entity_path="other")
        assert table.waiting("DEFAULT", "hYCO") == [one]

    def test_the_counts(self, table):
        new_id = ids()
        for end in (table.cancel, lambda p: table.claim(p.id, Action.ACCEPT, 101.0)):
            end(mint(table, new_id))
        table.reject(mint(table, new_id).id, Action.ACCEPT, 101.0)
        mint(table, new_id)
        table.expire(130.0)
        mint(table, new_id)
        statistics = table.statistics()
        assert (statistics.waiting, statistics.minted) == (1, 5)
        assert (statistics.claimed, statistics.rejected, statistics.expired, statistics.cancelled) == (1, 1, 1, 1)

    @given(st.lists(st.floats(0, 100), max_size=30), st.lists(st.floats(0, 100), max_size=5))
    def test_expiry_takes_exactly_what_is_due(self, deadlines, moments):
        table = RendezvousTable()
        new_id = ids()
        left = [mint(table, new_id, deadline=deadline) for deadline in deadlines]
        for now in sorted(moments):
            due = [pending for pending in left if pending.deadline <= now]
            assert sorted(p.id for p in table.expire(now)) == sorted(p.id for p in due)
            left = [pending for pending in left if pending.deadline > now]
            assert table.check_consistency() == []


class TestTheRecount:
    def test_it_notices_what_does_not_fit(self):
        table = RendezvousTable(max_waiting=1)
        pending = mint(table)
        pending.state = RendezvousState.CLAIMED
        assert "kept as claimed" in table.check_consistency()[0]
        pending.state = RendezvousState.MINTED
        table._counts[RendezvousState.CLAIMED] += 1
        assert "minted addresses" in table.check_consistency()[0]
        table._counts[RendezvousState.CLAIMED] -= 1
        table._deadlines.clear()
        assert "deadlines" in table.check_consistency()[0]
        table._deadlines.append((pending.deadline, pending.id))
        table._max_waiting = 0
        assert table.check_consistency() == ["more addresses wait than may"]


class LifeOfRendezvous(RuleBasedStateMachine):
    """Senders wait, listeners come in time, late, twice, for the wrong thing or not at all; the clock goes on."""

    addresses: Bundle[Pending] = Bundle("addresses")
    LIMIT = 5

    def __init__(self) -> None:
        super().__init__()
        self.table = RendezvousTable(max_waiting=self.LIMIT)
        self.new_id = ids()
        self.now = 0.0
        self.open: dict[str, Pending] = {}
        self.taken: list[str] = []

    @rule(target=addresses, lifetime=st.floats(0.1, 60), action=st.sampled_from([Action.ACCEPT, Action.REQUEST]))
    def mint(self, lifetime, action):
        try:
            pending = mint(self.table, self.new_id, now=self.now, deadline=self.now + lifetime, action=action)
        except ServerBusy:
            assert len(self.open) == self.LIMIT
            return multiple()
        self.open[pending.id] = pending
        return pending

    @rule(
        pending=addresses,
        action=st.sampled_from([Action.ACCEPT, Action.REQUEST]),
        verb=st.sampled_from(["claim", "reject"]),
    )
    def take(self, pending, action, verb):
        is_open = pending.id in self.open
        is_late = self.now >= pending.deadline
        try:
            taken = getattr(self.table, verb)(pending.id, action, self.now)
        except RendezvousGone:
            assert not is_open or is_late
            self.open.pop(pending.id, None)
        except RemoteProtocolError:
            assert is_open
            assert not is_late
            assert action is not pending.action
        else:
            assert taken is pending
            assert is_open
            assert not is_late
            assert action is pending.action
            del self.open[pending.id]
            self.taken.append(pending.id)

    @rule(pending=addresses)
    def cancel(self, pending):
        assert self.table.cancel(pending) is (self.open.pop(pending.id, None) is not None)

    @rule(step=st.floats(0, 30))
    def time_goes_on(self, step):
        self.now += step

    @precondition(lambda self: self.open)
    @rule()
    def time_goes_on_to_the_next_deadline(self):
        deadline = self.table.next_deadline()
        assert deadline == min(pending.deadline for pending in self.open.values())
        self.now = max(self.now, deadline)

    @rule()
    def expire(self):
        due = {id for id, pending in self.open.items() if pending.deadline <= self.now}
        assert {pending.id for pending in self.table.expire(self.now)} == due
        for id in due:
            del self.open[id]
        deadline = self.table.next_deadline()
        assert deadline is None or deadline > self.now, "an id outlived its deadline"

    @invariant()
    def claimed_at_most_once(self):
        assert len(self.taken) == len(set(self.taken))

    @invariant()
    def books_balance(self):
        assert self.table.check_consistency() == []
        statistics = self.table.statistics()
        assert statistics.waiting == len(self.open) <= self.LIMIT
        assert statistics.claimed + statistics.rejected == len(self.taken)


TestLifeOfRendezvous = LifeOfRendezvous.TestCase
TestLifeOfRendezvous.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=40)
