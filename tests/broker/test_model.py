from __future__ import annotations

import base64
import dataclasses
from datetime import UTC, datetime

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore.broker import model
from relaycore.broker.model import (
    EMPTY_SNAPSHOT,
    AuthorizationRule,
    HybridConnection,
    Namespace,
    RuleDefinition,
    Snapshot,
)
from relaycore.errors import EndpointNotFound, Refused
from relaycore.vocab import RefusalReason, Right

WHEN = datetime(2026, 1, 31, 9, 15, 2, 943_000, tzinfo=UTC)
KEY = base64.b64encode(bytes(range(32))).decode()


def make_rule(name: str, *rights: Right) -> AuthorizationRule:
    return AuthorizationRule(name, frozenset(rights), KEY, KEY[::-1], WHEN, WHEN)


def make_entity(path: str, *rules: AuthorizationRule) -> HybridConnection:
    return HybridConnection(path, True, None, WHEN, WHEN, rules=rules)


def make_namespace(
    *paths: str, name: str = "default", hosts: tuple[str, ...] = (), rules: tuple[AuthorizationRule, ...] = ()
) -> Namespace:
    return Namespace(name, hosts, rules, {model.fold(path): make_entity(path) for path in paths}, WHEN, WHEN)


class TestNames:
    def test_folding_touches_ascii_letters_only(self):
        kelvin = "\u212a"  # str.lower makes a "k" of it
        assert model.fold("Ab/Ç" + kelvin) == "ab/Ç" + kelvin

    @given(st.text())
    def test_folding_keeps_the_length_so_that_a_suffix_is_cut_in_the_right_place(self, text):
        folded = model.fold(text)
        assert len(folded) == len(text)
        assert model.fold(folded) == folded

    @pytest.mark.parametrize(
        ("text", "host"),
        [
            ("Relay.Example", "relay.example"),
            ("localhost:9443", "localhost"),
            (" localhost ", "localhost"),
            ("relay.example.", "relay.example"),
            ("[::1]:8080", "::1"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("::1", "::1"),
            ("", ""),
        ],
    )
    def test_a_host_header_gives_the_host(self, text, host):
        """spec 4: `Host` comes with or without a port."""
        assert model.host_name(text) == host

    def test_ancestors_are_the_proper_prefixes(self):
        assert list(model.ancestors("a/b/c")) == ["a", "a/b"]
        assert list(model.ancestors("a")) == []

    def test_a_shown_path_is_bounded(self):
        assert model.shown_path("a" * 300) == "a" * 300
        assert model.shown_path("a" * 301) == "a" * 300 + "..."

    def test_an_unknown_path_is_refused_with_the_text_and_the_path(self):
        """spec 3: unknown entity is 404 with `Endpoint does not exist` and the path."""
        refusal = model.endpoint_not_found("nobody/here")
        assert isinstance(refusal, EndpointNotFound)
        assert refusal.http_status == 404
        assert str(refusal) == "Endpoint does not exist: nobody/here"


class TestRules:
    def test_keys_are_in_no_repr(self):
        rule = make_rule("r", Right.SEND)
        definition = RuleDefinition("r", frozenset(), KEY, KEY)
        namespace = Namespace("n", (), (rule,), {"e": make_entity("e", rule)}, WHEN, WHEN)
        for value in (rule, definition, make_entity("e", rule), namespace, Snapshot(1, (namespace,))):
            assert KEY not in repr(value)
            assert KEY[::-1] not in repr(value)

    def test_the_primary_key_is_tried_first(self):
        """spec 5.2: primary key, then secondary."""
        assert make_rule("r").keys == (KEY, KEY[::-1])

    def test_manage_implies_the_other_rights(self):
        """spec 1: `Manage` implies the other two."""
        assert make_rule("r", Right.MANAGE).effective_rights == frozenset(Right)
        assert make_rule("r", Right.SEND).effective_rights == {Right.SEND}

    def test_a_rule_is_found_without_regard_to_case(self):
        """mgmt 2.1: resource names compare case-insensitively."""
        rule = make_rule("Sender", Right.SEND)
        assert make_entity("e", make_rule("other"), rule).find_rule("sENDER") is rule
        assert make_namespace(rules=(rule,)).find_rule("SENDER") is rule
        assert make_entity("e", rule).find_rule("Sende") is None

    def test_definitions_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            make_rule("r").name = "s"  # type: ignore[misc]


class TestFindingEntities:
    @pytest.mark.parametrize(
        ("asked", "path", "suffix"),
        [
            ("hyco", "hyco", ""),
            ("HYCO", "hyco", ""),
            ("/hyco/", "hyco", ""),
            ("hyco/Suffix/x y", "hyco", "Suffix/x y"),
            ("hyco//x", "hyco", "/x"),
            ("A1.Linux/b", "a1.linux", "b"),
            ("dept/SITE/42/Path", "Dept/Site/42", "Path"),
        ],
    )
    def test_a_sender_path_leads_to_an_entity_and_its_suffix(self, asked, path, suffix):
        """spec 3: longest registered prefix on segment borders, without regard to case; the rest is the suffix."""
        found = make_namespace("hyco", "a1.linux", "Dept/Site/42").find_entity(asked)
        assert found is not None
        assert (found[0].path, found[1]) == (path, suffix)

    @pytest.mark.parametrize("asked", ["", "/", "hyc", "hycos", "hycos/x", "x/hyco", "dept/site", "hyco%2Fx"])
    def test_other_paths_lead_nowhere(self, asked):
        """spec 3: prefixes count on segment borders only."""
        assert make_namespace("hyco", "Dept/Site/42").find_entity(asked) is None

    def test_the_longest_of_several_wins(self):
        """spec 3: longest registered prefix."""
        namespace = make_namespace("a", "a/b", "a/b/c/d")
        for asked, path in [("a/x", "a"), ("a/b/c", "a/b"), ("a/b/c/d/e", "a/b/c/d")]:
            found = namespace.find_entity(asked)
            assert found is not None
            assert found[0].path == path

    def test_an_entity_of_the_longest_name_is_found_behind_any_suffix(self):
        name = "a" * 129 + "/" + "b" * 130
        found = make_namespace(name).find_entity(name + "/" + "s" * 5_000)
        assert found is not None
        assert found[1] == "s" * 5_000
        assert make_namespace(name).find_entity("a" * 5_000) is None

    def test_a_path_of_slashes_costs_no_more_than_the_longest_name(self):
        class Counting(dict):
            lookups = 0

            def get(self, key, default=None):
                self.lookups += 1
                return super().get(key, default)

        entities = Counting()
        namespace = Namespace("n", (), (), entities, WHEN, WHEN)
        assert namespace.find_entity("x/" * 50_000 + "x") is None
        assert entities.lookups <= 260

    @given(strategies.entity_paths, st.lists(st.text(min_size=1), max_size=4))
    def test_a_path_and_its_suffix_are_parted_where_they_were_joined(self, path, rest):
        suffix = "/".join(rest)
        found = make_namespace(path).find_entity(f"{path.swapcase()}/{suffix}")
        assert found is not None
        assert found[0].path == path
        assert found[1].strip("/") == suffix.strip("/")

    def test_a_listener_names_the_entity_exactly(self):
        """spec 3: for `listen` the path must name the entity exactly."""
        namespace = make_namespace("Dept/Site")
        assert namespace.get_entity("/dept/site/") is namespace.entities["dept/site"]
        assert namespace.get_entity("dept/site/42") is None
        assert namespace.get_entity("dept") is None


class TestFindingNamespaces:
    def test_a_host_leads_to_its_namespace_and_any_other_to_the_one_for_any(self):
        own = make_namespace(name="Own", hosts=("own.example", "alias.example"))
        rest = make_namespace(name="rest")
        snapshot = Snapshot(3, (own, rest))
        assert snapshot.find_namespace("OWN.example:443") is own
        assert snapshot.find_namespace("alias.example") is own
        assert snapshot.find_namespace("other.example") is rest
        assert snapshot.get_namespace("oWN") is own
        assert snapshot.get_namespace("none") is None

    def test_without_a_namespace_for_any_host_a_strange_host_leads_nowhere(self):
        assert Snapshot(1, (make_namespace(hosts=("own.example",)),)).find_namespace("other.example") is None
        assert EMPTY_SNAPSHOT.find_namespace("own.example") is None

    def test_a_namespace_knows_its_hosts(self):
        """spec 5.4: the host must be one of the namespace's names; without names each host is."""
        assert make_namespace(hosts=("own.example",)).has_host("OWN.EXAMPLE.")
        assert not make_namespace(hosts=("own.example",)).has_host("other.example")
        assert make_namespace().has_host("whatever")


class TestValidation:
    @pytest.mark.parametrize("path", ["a", "Z9", "a1.linux", "dept/site/42", "a-_.b", "a" * 260, "a/b/c", "a..b"])
    def test_good_entity_names(self, path):
        """mgmt 3.2: 1-260 characters, letters, digits, `.` `-` `_` `/`."""
        assert model.validate_entity_path(path) == path

    @pytest.mark.parametrize(
        ("path", "word"),
        [
            ("", "1 to 260"),
            ("a" * 261, "261"),
            ("-x", "begins"),
            ("x-", "begins"),
            ("/x", "begins"),
            ("x/", "begins"),
            ("a//b", "empty"),
            ("a/../b", "'..'"),
            ("a/./b", "'.'"),
            ("a b", "consists"),
            ("$hc", "consists"),
            ("é", "consists"),
            ("a\n", "consists"),
        ],
    )
    def test_bad_entity_names_are_refused_with_the_rule(self, path, word):
        """mgmt 3.2: first and last a letter or digit, no empty segment."""
        with pytest.raises(Refused, match=word) as caught:
            model.validate_entity_path(path)
        assert caught.value.http_status == 400
        assert caught.value.reason is RefusalReason.BAD_REQUEST

    @given(strategies.entity_paths.filter(lambda path: len(path) <= 260))
    def test_entity_names_of_all_kinds(self, path):
        assert model.validate_entity_path(path) == path

    @pytest.mark.parametrize("name", ["r", "RootManageSharedAccessKey", "a.b-c_d", "x" * 50])
    def test_good_rule_names(self, name):
        """mgmt 3.4: 1-50 characters, letters, digits, `.` `-` `_`."""
        assert model.validate_rule_name(name) == name

    @pytest.mark.parametrize("name", ["", "x" * 51, "a/b", ".a", "a_", "a b", "ü"])
    def test_bad_rule_names(self, name):
        """mgmt 3.4: first and last alphanumeric."""
        with pytest.raises(Refused) as caught:
            model.validate_rule_name(name)
        assert caught.value.http_status == 400

    @pytest.mark.parametrize("name", ["", "a b", "x" * 254, "a/b"])
    def test_bad_namespace_names(self, name):
        with pytest.raises(Refused):
            model.validate_namespace_name(name)

    def test_a_namespace_may_have_a_short_or_long_name(self):
        """spec 15: the length of a namespace name is not enforced."""
        assert model.validate_namespace_name("a") == "a"
        assert model.validate_namespace_name("relay.example.com") == "relay.example.com"

    def test_rights_come_in_any_case_and_any_form(self):
        """mgmt 3.4: input any case."""
        assert model.validate_rights(["SEND", Right.LISTEN]) == {Right.SEND, Right.LISTEN}
        assert model.validate_rights(["manage", "Send", "lisTEN"]) == frozenset(Right)

    @pytest.mark.parametrize(
        "rights", [[], ["Manage"], ["Manage", "Send"], ["Foo"], ["Send", "send"], [""], ["Send", Right.SEND]]
    )
    def test_bad_rights(self, rights):
        """mgmt 3.4: non-empty, unique, known; Manage demands the other two."""
        with pytest.raises(Refused) as caught:
            model.validate_rights(rights)
        assert caught.value.http_status == 400

    def test_rights_have_an_order(self):
        """mgmt 3.4: sorted Listen, Manage, Send."""
        assert model.rights_in_order(frozenset(Right)) == (Right.LISTEN, Right.MANAGE, Right.SEND)
        assert model.rights_in_order([Right.SEND]) == (Right.SEND,)

    @given(st.binary(min_size=32, max_size=32))
    def test_good_keys(self, secret):
        """mgmt 3.5: Base64 of 32 bytes, 44 characters."""
        key = base64.b64encode(secret).decode()
        assert len(key) == 44
        assert model.validate_key(key) == key

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "secret",
            base64.b64encode(bytes(31)).decode(),
            base64.b64encode(bytes(33)).decode(),
            KEY[:-1],
            KEY + "\n",
            KEY[:-2] + "9=",  # the same bytes in another spelling: bits that do not count are set
            "é" * 44,
        ],
    )
    def test_bad_keys_are_refused_without_being_shown(self, key):
        """mgmt 3.5: a caller's key must be Base64 of 32 bytes, else 400."""
        with pytest.raises(Refused) as caught:
            model.validate_key(key)
        assert caught.value.http_status == 400
        assert not key or key not in str(caught.value)

    def test_metadata_is_free_text_up_to_a_length(self):
        """mgmt 3.2: userMetadata has at most 1024 characters."""
        assert model.validate_user_metadata(None) is None
        assert model.validate_user_metadata("") == ""
        assert model.validate_user_metadata("é" * 1024) == "é" * 1024
        with pytest.raises(Refused, match="1025"):
            model.validate_user_metadata("a" * 1025)
        with pytest.raises(Refused, match="UTF-8"):
            model.validate_user_metadata("\ud800")
