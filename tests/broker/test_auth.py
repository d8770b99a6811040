from __future__ import annotations

import base64
import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.broker.auth import ANONYMOUS, Authorizer, Credential, find_credential
from relaycore.broker.model import AuthorizationRule, HybridConnection, Namespace, fold
from relaycore.errors import AuthorizationFailed
from relaycore.vocab import RefusalReason, Right
from relaycore.wire import sas

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = 1_767_225_600.0
EXPIRY = int(NOW) + 3_600
HOST = "relay.example"


def key(name: str) -> str:
    return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


def rule(name: str, *rights: Right, keys: str | None = None) -> AuthorizationRule:
    base = keys if keys is not None else name
    return AuthorizationRule(name, frozenset(rights), key(base + "1"), key(base + "2"), WHEN, WHEN)


ALL = (Right.LISTEN, Right.SEND, Right.MANAGE)
HYCO = HybridConnection(
    "Hyco", True, None, WHEN, WHEN, rules=(rule("sender", Right.SEND), rule("listener", Right.LISTEN))
)
OTHER = HybridConnection(
    "other", True, None, WHEN, WHEN, rules=(rule("listener", Right.LISTEN, keys="other listener"),)
)
DEEP = HybridConnection("dept/site/42", True, None, WHEN, WHEN)
OPEN = dataclasses.replace(HYCO, path="open", requires_client_authorization=False)
NAMESPACE = Namespace(
    "default",
    (HOST, "alias.example"),
    (rule("root", *ALL), rule("ns-listen", Right.LISTEN)),
    {fold(entity.path): entity for entity in (HYCO, OTHER, DEEP, OPEN)},
    WHEN,
    WHEN,
)
ANY_HOST = dataclasses.replace(NAMESPACE, hosts=())


def token(
    uri: str = f"http://{HOST}/hyco/", name: str = "root", signed_with: str | None = None, expiry: int = EXPIRY
) -> Credential:
    base = signed_with if signed_with is not None else name + "1"
    return Credential(sas.make_token(uri, name, key(base), expiry), "ServiceBusAuthorization")


def check(credential: Credential | None, right: Right | None = Right.SEND, **changes: Any):
    arguments: dict[str, Any] = {
        "namespace": NAMESPACE,
        "entity": HYCO,
        "requested_path": "hyco",
        "now_unix": NOW,
        "authorizer": Authorizer(),
    } | changes
    authorizer = arguments.pop("authorizer")
    return authorizer.check(right=right, credential=credential, **arguments)


def refused(credential: Credential | None, right: Right | None = Right.SEND, **changes: Any) -> AuthorizationFailed:
    with pytest.raises(AuthorizationFailed) as caught:
        check(credential, right, **changes)
    return caught.value


class TestFindCredential:
    HEADERS = {"servicebusauthorization": "own", "authorization": "standard"}  # noqa: RUF012

    def get(self, name: str) -> str | None:
        return self.HEADERS.get(name.lower())

    def test_the_order_of_precedence(self):
        """spec 5.1: query, then ServiceBusAuthorization, then Authorization."""
        assert find_credential("query", self.get, may_use_authorization=True) == Credential("query", "query")
        assert find_credential(None, self.get, may_use_authorization=True) == Credential(
            "own", "ServiceBusAuthorization"
        )
        only = {"Authorization": " standard "}
        assert find_credential(None, only.get, may_use_authorization=True) == Credential("standard", "Authorization")

    def test_authorization_is_application_data_unless_it_may_be_used(self):
        """spec 5.1: `Authorization` is looked at only when the entity requires authorization."""
        assert find_credential(None, {"Authorization": "Bearer x"}.get, may_use_authorization=False) is None

    @pytest.mark.parametrize("empty", [None, "", "  "])
    def test_an_empty_credential_is_none(self, empty):
        """spec 5.1: what is not present is passed over."""
        headers = {"ServiceBusAuthorization": empty, "Authorization": empty}
        assert find_credential(empty, headers.get, may_use_authorization=True) is None

    def test_the_token_is_in_no_repr(self):
        assert "secret" not in repr(Credential("secret", "query"))


class TestResource:
    @pytest.mark.parametrize(
        "uri",
        [
            f"http://{HOST}/hyco/",  # .NET
            f"http://{HOST}/",  # .NET tests, raw WebSocket; Node README
            f"sb://{HOST}:9443/Hyco",  # Java listen
            f"sb://{HOST}:9443",  # Java connect: the path is lost by a bug
            f"http://{HOST}:443/hyco",  # Node
            f"https://{HOST.upper()}/HYCO",
            f"https://{HOST}:443/hyco?x=y#z",
            "http://ALIAS.example/hyco",
            f"http://{HOST}./hyco",
        ],
    )
    def test_the_forms_that_clients_write(self, uri):
        """spec 5.3: scheme, port and query say nothing; host and path compare without case."""
        assert check(token(uri)).rule_name == "root"

    @pytest.mark.parametrize("uri", ["http://elsewhere.example/hyco", "http://relay.example.evil/hyco", "http:///hyco"])
    def test_another_host_is_a_wrong_audience(self, uri):
        """spec 5.4, spec 12/wrong-audience: another host than the namespace's is 401 InvalidAudience."""
        refusal = refused(token(uri))
        assert refusal.http_status == 401
        assert refusal.reason is RefusalReason.INVALID_AUDIENCE
        assert str(refusal) == "InvalidAudience: The authorization header contains a token with a wrong audience"

    def test_a_namespace_for_any_host_takes_any_host_of_a_token(self):
        """spec 5.4: with no host names given, each host is the namespace's."""
        assert check(token("http://elsewhere.example/hyco"), namespace=ANY_HOST).rule_name == "root"

    @pytest.mark.parametrize(
        ("path", "asked", "good"),
        [
            ("hyco/extraPath", "hyco/extraPath/extraPath2", True),
            ("hyco/extraPath", "hyco", False),
            ("hyco/extraPath", "hyco/extraPath2", False),
            ("hyc", "hyco", False),
            ("hyco2", "hyco", False),
            ("other", "hyco", False),
            ("HYCO/EXTRAPATH/", "/hyco/extrapath", True),
            ("", "hyco/whatever", True),
            ("hyco/é", "hyco/É/x", True),
            ("hyco/a%2520b", "hyco/a b", True),  # Java, HTTP
        ],
    )
    def test_the_path_is_a_segment_wise_prefix_of_the_requested_one(self, path, asked, good):
        """spec 5.4: segment-wise prefix of the full requested path including the suffix."""
        text = f"SharedAccessSignature sr={quote(f'http://{HOST}/', safe='')}{quote(path, safe='%')}"
        resource = text.partition("sr=")[2]
        credential = Credential(
            f"{text}&sig={quote(sas.sign(resource, EXPIRY, key('root1')), safe='')}&se={EXPIRY}&skn=root", "query"
        )
        if good:
            assert check(credential, requested_path=asked).rule_name == "root"
        else:
            assert refused(credential, requested_path=asked).reason is RefusalReason.INVALID_AUDIENCE

    @given(st.lists(st.sampled_from("ab"), max_size=4), st.lists(st.sampled_from("abAB"), min_size=1, max_size=4))
    def test_prefix_means_prefix(self, covered, asked):
        credential = token(f"http://{HOST}/{'/'.join(covered)}")
        if covered == [segment.lower() for segment in asked[: len(covered)]]:
            check(credential, requested_path="/".join(asked))
        else:
            refused(credential, requested_path="/".join(asked))


class TestRules:
    def test_a_rule_of_the_entity(self):
        """spec 5.4: find the rule on the entity first, then on the namespace."""
        grant = check(token(name="sender"))
        assert grant.rule_name == "sender"
        assert grant.rights == {Right.SEND}
        assert grant.expiry_unix == EXPIRY
        assert not grant.anonymous

    def test_a_rule_of_the_entity_with_a_namespace_level_token(self):
        """spec 5.4: with an entity rule, a namespace-level `sr` is still accepted for that entity (Java senders)."""
        assert check(token(f"sb://{HOST}:9443", "sender")).rule_name == "sender"

    def test_a_rule_of_the_namespace_covers_its_entities(self):
        """spec 5.4: then on the namespace."""
        assert check(token(name="ns-listen"), Right.LISTEN).rights == {Right.LISTEN}

    def test_a_rule_of_the_entity_hides_the_namespace_rule_of_that_name(self):
        """spec 5.4: on the entity first."""
        entity = dataclasses.replace(HYCO, rules=(rule("root", Right.SEND, keys="own"),))
        assert check(token(signed_with="own1"), entity=entity).rights == {Right.SEND}
        assert refused(token(), entity=entity).reason is RefusalReason.INVALID_SIGNATURE

    def test_rule_names_compare_without_case(self):
        """mgmt 2.1: resource names compare case-insensitively."""
        assert check(token(name="SENDER", signed_with="sender1")).rule_name == "sender"

    def test_either_key_signs(self):
        """spec 5.2: primary key, then secondary key."""
        assert check(token(signed_with="root2")).rule_name == "root"

    def test_a_bad_signature_and_an_unknown_rule_get_one_answer(self):
        """spec 5.4: 401 InvalidSignature for both, so that rule names cannot be probed; spec 12: with the path."""
        answers = [
            refused(token(signed_with="guess"), requested_path="hyco/Suffix"),
            refused(token(name="nobody"), requested_path="hyco/Suffix"),
            refused(token(name="nobody", signed_with="root1"), requested_path="hyco/Suffix"),
        ]
        for refusal in answers:
            assert refusal.http_status == 401
            assert refusal.reason is RefusalReason.INVALID_SIGNATURE
            assert str(refusal) == "InvalidSignature: The token has an invalid signature: hyco/Suffix"

    def test_an_empty_key_opens_nothing(self):
        resource = quote(f"http://{HOST}/hyco", safe="")
        text = f"SharedAccessSignature sr={resource}&sig={quote(sas.sign(resource, EXPIRY, ''))}&se={EXPIRY}&skn=nobody"
        assert refused(Credential(text, "query")).reason is RefusalReason.INVALID_SIGNATURE

    def test_an_unknown_rule_costs_as_many_signatures_as_a_known_one(self, monkeypatch):
        """spec 5.4: rule names cannot be probed, not by the time of the answer either."""
        tried = []
        real = sas.signature_matches
        monkeypatch.setattr(sas, "signature_matches", lambda token, keys: tried.append(len(keys)) or real(token, keys))
        refused(token(name="nobody"))
        refused(token(signed_with="guess"))
        assert tried == [2, 2]


class TestTimeAndRights:
    @pytest.mark.parametrize("late", [0.0, 1.0, 300.0])
    def test_a_token_counts_until_its_allowance_is_over(self, late):
        """spec 5.6: an allowance of 5 minutes, for channels and as clock skew for new handshakes."""
        assert check(token(), now_unix=EXPIRY + late).expiry_unix == EXPIRY

    def test_an_expired_token(self):
        """spec 12: expired is 401 ExpiredToken."""
        refusal = refused(token(), now_unix=EXPIRY + 300.5)
        assert refusal.http_status == 401
        assert refusal.reason is RefusalReason.EXPIRED_TOKEN
        assert str(refusal).startswith("ExpiredToken: ")
        assert refused(token(), now_unix=EXPIRY + 1.0, allowance_s=0.0).reason is RefusalReason.EXPIRED_TOKEN

    def test_the_signature_is_looked_at_before_the_expiry(self):
        """spec 5.4: step 5 before step 6."""
        assert refused(token(signed_with="guess"), now_unix=EXPIRY + 1e6).reason is RefusalReason.INVALID_SIGNATURE

    def test_manage_implies_the_others(self):
        """spec 1: `Manage` implies the other two."""
        entity = dataclasses.replace(HYCO, rules=(rule("boss", Right.MANAGE),))
        for right in (*Right, None):
            assert check(token(name="boss"), right, entity=entity).rights == frozenset(Right)

    @pytest.mark.parametrize("name", ["sender", "listener", "root"])
    def test_any_right_will_do_for_a_management_get(self, name):
        """spec 5.4: any one of the rights for the management GET."""
        assert check(token(name=name), None).rule_name == name

    @pytest.mark.parametrize(
        ("name", "right"), [("sender", Right.LISTEN), ("listener", Right.SEND), ("sender", Right.MANAGE)]
    )
    def test_a_missing_right(self, name, right):
        """spec 5.4: missing right is 403."""
        refusal = refused(token(name=name), right)
        assert refusal.http_status == 403
        assert refusal.reason is RefusalReason.RIGHT_MISSING
        assert right.value in str(refusal)
        assert "hyco" in str(refusal)


class TestPermissionsPerEntity:
    """Every entry point asks with a right: LISTEN for listen and renewToken, SEND for connect and HTTP."""

    def test_a_send_key_does_not_listen(self):
        """failures: a send-only key may not listen."""
        authorizer = Authorizer()
        check(token(name="sender"), Right.SEND, authorizer=authorizer)
        assert refused(token(name="sender"), Right.LISTEN, authorizer=authorizer).http_status == 403

    @pytest.mark.parametrize("uri", [f"http://{HOST}/hyco", f"http://{HOST}/other", f"http://{HOST}/"])
    def test_a_listen_key_of_one_path_does_not_serve_another(self, uri):
        """failures: a listen key of path A may not serve B, whatever `sr` its holder writes."""
        credential = token(uri, "listener")
        assert refused(credential, Right.LISTEN, entity=OTHER, requested_path="other").http_status == 401

    def test_a_remembered_token_of_one_path_does_not_serve_another(self):
        """failures: permission is checked per channel, not once per token."""
        authorizer = Authorizer()
        everywhere = token(f"http://{HOST}/", "listener")
        check(everywhere, Right.LISTEN, authorizer=authorizer)
        assert (
            refused(everywhere, Right.LISTEN, entity=OTHER, requested_path="other", authorizer=authorizer).reason
            is RefusalReason.INVALID_SIGNATURE
        )
        narrow = token(f"http://{HOST}/hyco", "root")
        check(narrow, Right.LISTEN, authorizer=authorizer)
        assert (
            refused(narrow, Right.LISTEN, entity=OTHER, requested_path="other", authorizer=authorizer).reason
            is RefusalReason.INVALID_AUDIENCE
        )
        check(everywhere, Right.LISTEN, authorizer=authorizer)

    def test_an_entity_rule_does_not_open_the_namespace(self):
        """failures: the namespace itself is opened by its own rules only."""
        everywhere = token(f"http://{HOST}/", "listener")
        assert refused(everywhere, None, entity=None, requested_path="").reason is RefusalReason.INVALID_SIGNATURE
        assert check(token(f"http://{HOST}/"), None, entity=None, requested_path="").rule_name == "root"


class TestAnonymousSenders:
    @pytest.mark.parametrize("credential", [None, Credential("garbage", "query"), token(signed_with="guess")])
    def test_senders_need_no_token_and_theirs_is_not_evaluated(self, credential):
        """spec 5.7: requiresClientAuthorization=false needs no token; one that is present is not evaluated."""
        grant = check(credential, Right.SEND, entity=OPEN, requested_path="open")
        assert grant is ANONYMOUS
        assert grant.rights == {Right.SEND}
        assert grant.anonymous

    @pytest.mark.parametrize("right", [Right.LISTEN, Right.MANAGE, None])
    def test_everything_else_does(self, right):
        """spec 5.1: for `listen` a token is always required, also on an anonymous entity."""
        assert refused(None, right, entity=OPEN, requested_path="open").reason is RefusalReason.MISSING_TOKEN
        assert check(token(f"http://{HOST}/open"), right, entity=OPEN, requested_path="open").rule_name == "root"


class TestUnreadable:
    def test_no_token(self):
        """spec 12: no token is 401 MissingToken."""
        refusal = refused(None)
        assert refusal.http_status == 401
        assert refusal.reason is RefusalReason.MISSING_TOKEN
        assert str(refusal).startswith("MissingToken: ")

    @pytest.mark.parametrize("text", ["x", "SharedAccessSignature ", "SharedAccessSignature sr=a&sig=b&se=c&skn=d"])
    def test_no_sense(self, text):
        """spec 12: not parseable is 401 MalformedToken."""
        refusal = refused(Credential(text, "query"))
        assert refusal.http_status == 401
        assert refusal.reason is RefusalReason.MALFORMED_TOKEN
        assert str(refusal).startswith("MalformedToken: ")

    @pytest.mark.parametrize("text", ["eyJh.eyJi.c2ln", "Bearer eyJh.eyJi.c2ln"])
    def test_a_json_web_token(self, text):
        """spec 5.5: recognised by shape, bare or after Bearer; without configuration JWTs get 401."""
        refusal = refused(Credential(text, "Authorization"))
        assert refusal.http_status == 401
        assert refusal.reason is RefusalReason.MALFORMED_TOKEN
        assert text not in str(refusal)

    @given(st.text())
    def test_any_text_gets_an_answer(self, text):
        assert refused(Credential(text, "query")).http_status == 401

    def test_a_surrogate_gets_an_answer(self):
        assert refused(Credential("\ud800", "query")).http_status == 401
        text = token().text.replace("skn=root", "skn=\ud800")
        assert refused(Credential(text, "query")).reason is RefusalReason.INVALID_SIGNATURE


class TestMemory:
    def test_a_token_is_verified_once(self):
        authorizer = Authorizer()
        for _ in range(3):
            check(token(), authorizer=authorizer)
        statistics = authorizer.statistics()
        assert (statistics.remembered, statistics.hits, statistics.misses) == (1, 2, 1)

    def test_a_changed_key_counts_at_once(self):
        """mgmt 3.5: only the named key changes, at once; new tokens signed by the old key fail."""
        authorizer = Authorizer()
        root = NAMESPACE.rules[0]
        renewed = dataclasses.replace(NAMESPACE, rules=(dataclasses.replace(root, primary_key=key("new")),))
        check(token(), authorizer=authorizer)
        assert refused(token(), namespace=renewed, authorizer=authorizer).reason is RefusalReason.INVALID_SIGNATURE
        check(token(signed_with="root2"), namespace=renewed, authorizer=authorizer)
        check(token(), authorizer=authorizer)

    def test_a_deleted_rule_counts_at_once(self):
        authorizer = Authorizer()
        check(token(), authorizer=authorizer)
        without = dataclasses.replace(NAMESPACE, rules=())
        assert refused(token(), namespace=without, authorizer=authorizer).reason is RefusalReason.INVALID_SIGNATURE

    def test_changed_rights_count_at_once(self):
        authorizer = Authorizer()
        check(token(name="sender"), authorizer=authorizer)
        entity = dataclasses.replace(HYCO, rules=(rule("sender", Right.LISTEN),))
        assert refused(token(name="sender"), entity=entity, authorizer=authorizer).http_status == 403

    def test_memory_does_not_outlive_the_expiry(self):
        """spec 5.6: the same allowance for a token that was seen before."""
        authorizer = Authorizer()
        check(token(), authorizer=authorizer)
        late = EXPIRY + 301.0
        assert refused(token(), now_unix=late, authorizer=authorizer).reason is RefusalReason.EXPIRED_TOKEN
        assert authorizer.statistics().remembered == 0

    def test_the_memory_is_bounded_and_forgets_the_quietest(self):
        authorizer = Authorizer(max_remembered=2)
        first, second, third = (token(expiry=EXPIRY + n) for n in range(3))
        for credential in (first, second, first, third, first):
            check(credential, authorizer=authorizer)
        assert authorizer.statistics().remembered == 2
        assert authorizer.statistics().hits == 2
        check(second, authorizer=authorizer)
        assert authorizer.statistics().misses == 4

    def test_bad_tokens_are_not_remembered(self):
        authorizer = Authorizer()
        refused(token(signed_with="guess"), authorizer=authorizer)
        refused(token(), now_unix=EXPIRY + 1e6, authorizer=authorizer)
        assert authorizer.statistics().remembered == 0

    @given(st.data())
    def test_memory_never_changes_an_answer(self, data):
        """A check with a memory and one without agree, whatever was asked before."""
        authorizer = Authorizer(max_remembered=2)
        for _ in range(data.draw(st.integers(1, 6))):
            credential = token(
                f"http://{HOST}/{data.draw(st.sampled_from(['', 'hyco', 'other']))}",
                data.draw(st.sampled_from(["root", "sender", "listener"])),
                data.draw(st.sampled_from(["root1", "sender1", "listener1", "other listener1"])),
            )
            changes = {
                "entity": data.draw(st.sampled_from([HYCO, OTHER, OPEN])),
                "namespace": data.draw(st.sampled_from([NAMESPACE, dataclasses.replace(NAMESPACE, rules=())])),
                "now_unix": data.draw(st.sampled_from([NOW, EXPIRY + 299.0, EXPIRY + 301.0])),
                "right": data.draw(st.sampled_from([Right.LISTEN, Right.SEND, None])),
            }
            changes["requested_path"] = changes["entity"].path
            answers = []
            for one in (authorizer, Authorizer()):
                try:
                    answers.append(check(credential, authorizer=one, **changes))
                except AuthorizationFailed as refusal:
                    answers.append((refusal.http_status, refusal.reason, str(refusal)))
            assert answers[0] == answers[1]
