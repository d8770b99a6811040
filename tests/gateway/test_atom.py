"""The Atom surface over a real store and real tokens; only the server around it is a stand-in."""

import random
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import data_contract_reader as reader
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import relaycore
from relaycore.broker.auth import Authorizer, find_credential
from relaycore.broker.model import RuleDefinition
from relaycore.gateway import atom
from relaycore.store.sqlite import open_sqlite
from relaycore.vocab import RefusalReason, Right
from relaycore.wire.atom_xml import ENTRY_MEDIA_TYPE, ERROR_MEDIA_TYPE, FEED_MEDIA_TYPE
from relaycore.wire.http1 import Headers, RequestHead
from relaycore.wire.sas import make_token

HOST = "contoso.example"
ATOM = "http://www.w3.org/2005/Atom"
CONNECT = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
ENDPOINT = '[{"key":"endpoint","value":"db.corp.local:1433"}]'
START_UNIX = 1_767_225_600
OTHER_KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
ALL = frozenset(Right)


class Context:
    """A server of one namespace: real store, real authorisation, listener counts as told."""

    tracking_id = "11111111-2222-3333-4444-555555555555_G0"
    base_url = f"wss://{HOST}"

    def __init__(self, store, clock):
        self.store = store
        self.clock = clock
        self.listeners = {}
        self._authorizer = Authorizer()

    @property
    def namespace(self):
        return self.store.snapshot.get_namespace("contoso")

    def now_unix(self):
        return self.clock.now.timestamp()

    def listener_count(self, path):
        return self.listeners.get(path, 0)

    def authorize(self, right, entity, path, headers, query_token):
        credential = find_credential(query_token, headers.get, may_use_authorization=True)
        return self._authorizer.check(self.namespace, entity, path, right, credential, self.now_unix())

    # What tests do with it --------------------------------------------------------------------------------------------

    def token(self, rule="RootManageSharedAccessKey", *, path=None, resource=f"http://{HOST}/", lifetime=600):
        holder = self.namespace if path is None else self.namespace.get_entity(path)
        key = holder.find_rule(rule).primary_key
        return make_token(resource, rule, key, int(self.now_unix()) + lifetime)

    async def ask(self, method, target, *, token=..., body=b"", headers=()):
        fields = [("Host", HOST), ("X-PROCESS-AT", "ServiceBus"), *headers]
        if token is ...:
            token = self.token()
        if token is not None:
            fields.append(("Authorization", token))
        request = atom.AtomRequest(method, target, Headers(fields), body, HOST, True)
        return await atom.handle(request, self)


class Clock:
    """Wall clock of the store and the tokens; each look at it costs a second."""

    def __init__(self):
        self.now = datetime.fromtimestamp(START_UNIX, UTC)

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
async def context():
    clock = Clock()
    async with await open_sqlite(":memory:", now=clock) as store:
        await store.ensure_namespace("contoso", (HOST,))
        for name, rights in (("send", {Right.SEND}), ("listen", {Right.LISTEN})):
            await store.put_rule("contoso", None, name, rights)
        yield Context(store, clock)


@pytest.fixture
async def sql(context):
    """The same with one hybrid connection, ``sql``, and three rules on it."""
    rules = [
        RuleDefinition("listenhere", frozenset({Right.LISTEN})),
        RuleDefinition("sendhere", frozenset({Right.SEND})),
        RuleDefinition("managehere", ALL),
    ]
    await context.store.create_entity("contoso", "sql", user_metadata=ENDPOINT, rules=rules)
    context.listeners["sql"] = 2
    return context


def put_body(members="", *, rules=""):
    return (
        f'<entry xmlns="{ATOM}"><title type="text">sql</title><content type="application/xml">'
        f'<HybridConnectionDescription xmlns="{CONNECT}" xmlns:i="http://www.w3.org/2001/XMLSchema-instance">'
        f"{rules}{members}</HybridConnectionDescription></content></entry>"
    ).encode()


def metadata(text):
    return f"<UserMetadata>{text}</UserMetadata>"


def rule_xml(name, rights, keys=""):
    granted = "".join(f"<AccessRights>{right}</AccessRights>" for right in rights)
    return (
        '<AuthorizationRule i:type="SharedAccessAuthorizationRule"><ClaimType>SharedAccessKey</ClaimType>'
        f"<ClaimValue>None</ClaimValue><Rights>{granted}</Rights><KeyName>{name}</KeyName>{keys}</AuthorizationRule>"
    )


def header(response, name):
    return dict(response.headers).get(name)


def error_of(response):
    assert header(response, "Content-Type") == ERROR_MEDIA_TYPE
    assert response.refused is not None
    root = ET.fromstring(response.body)
    assert [child.tag for child in root] == ["Code", "Detail"]
    return int(root[0].text), root[1].text


def assert_refused(response, status, words=""):
    code, detail = error_of(response)
    assert (response.status, code) == (status, status)
    assert words in detail
    return detail


# M01: the entry of one hybrid connection -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["listenhere", "sendhere", "managehere"])
async def test_any_right_reads_the_entry(sql, rule):
    """mgmt 7/M01, spec 16/entry: Listen, Send or Manage on the entity; nothing is lost to the .NET reader."""
    response = await sql.ask("GET", "/sql?api-version=2016-07", token=sql.token(rule, path="sql"))
    assert (response.status, response.reason) == (200, "OK")
    assert header(response, "Content-Type") == ENTRY_MEDIA_TYPE == "application/atom+xml;type=entry;charset=utf-8"
    assert header(response, "Server") == f"relaycore/{relaycore.__version__}"
    entity = sql.namespace.get_entity("sql")
    values = reader.read_entry(response.body)
    values.pop("AuthorizationRules")
    assert values == {
        "Path": "sql",
        "CreatedAt": entity.created_at,
        "UpdatedAt": entity.updated_at,
        "RequiresClientAuthorization": True,
        "UserMetadata": ENDPOINT,
        "ListenerCount": 2,
    }
    assert "Path" not in reader.read_entry(response.body, reader.RELAY_SDK_MEMBERS)
    assert len(reader.read_entry(response.body, reader.RELAY_SDK_MEMBERS)) == 5


@pytest.mark.parametrize(
    ("rule", "path"), [("listenhere", "sql"), ("sendhere", "sql"), ("listen", None), ("send", None)]
)
async def test_keys_are_not_shown_without_manage(sql, rule, path):
    """mgmt 7/rules-for-manage: keys in the entry of a Listen caller would turn Listen into Manage."""
    response = await sql.ask("GET", "/sql?api-version=2016-07", token=sql.token(rule, path=path))
    assert b"<AuthorizationRules/>" in response.body
    for known in sql.namespace.get_entity("sql").rules:
        assert known.name.encode() not in response.body
        assert known.primary_key.encode() not in response.body
        assert known.secondary_key.encode() not in response.body


@pytest.mark.parametrize(("rule", "path"), [("managehere", "sql"), ("RootManageSharedAccessKey", None)])
async def test_keys_are_shown_to_callers_with_manage(sql, rule, path):
    """mgmt 7/rules-for-manage: each rule of the hybrid connection, none of the namespace."""
    response = await sql.ask("GET", "/sql?api-version=2016-07", token=sql.token(rule, path=path))
    rules = reader.read_entry(response.body)["AuthorizationRules"]
    shown = {item.find(reader.CONNECT + "KeyName").text: item for item in rules}
    stored = {known.name: known for known in sql.namespace.get_entity("sql").rules}
    assert shown.keys() == stored.keys()
    for name, item in shown.items():
        assert item.find(reader.CONNECT + "PrimaryKey").text == stored[name].primary_key
        assert item.find(reader.CONNECT + "SecondaryKey").text == stored[name].secondary_key
        rights = [right.text for right in item.find(reader.CONNECT + "Rights")]
        assert rights == sorted(right.value for right in stored[name].rights)
    assert header(response, "Cache-Control") == "no-store"


@pytest.mark.parametrize(
    "resource",
    [
        f"sb://{HOST}/sql",
        f"https://{HOST}/",
        f"http://{HOST}/sql/?api-version=2017-04",
        f"http://{HOST.upper()}:9443/SQL",
    ],
)
async def test_resources_of_all_clients_are_accepted(sql, resource):
    """mgmt 7/sr-forms, spec 16/sr: scheme, port, query, final slash and the case of the host say nothing."""
    token = sql.token(resource=resource)
    assert (await sql.ask("GET", "/sql?api-version=2016-07", token=token)).status == 200


@pytest.mark.parametrize("resource", [f"http://{HOST}/other", f"http://{HOST}/sq", "http://fabrikam.example/sql"])
async def test_resources_of_others_are_not_accepted(sql, resource):
    """mgmt 7/sr-forms: the entity's path or a prefix of it at a slash, and a host of ours."""
    token = sql.token(resource=resource)
    assert_refused(await sql.ask("GET", "/sql?api-version=2016-07", token=token), 401)


@pytest.mark.parametrize("target", ["/sql/?api-version=2017-04", "/SQL?api-version=2016-07", f"http://{HOST}/sql"])
async def test_the_path_is_found_in_each_form(sql, target):
    """mgmt 7/trailing-slash: a slash before the query and another case lead to the same hybrid connection."""
    response = await sql.ask("GET", target)
    assert reader.read_entry(response.body)["Path"] == "sql"


async def test_a_name_of_several_segments_may_come_escaped(sql):
    """mgmt 7/M01: split or percent-encoded, the path is the same."""
    await sql.store.create_entity("contoso", "dept/site/42")
    for target in ("/dept/site/42?api-version=2016-07", "/dept%2Fsite%2f42?api-version=2016-07"):
        assert reader.read_entry((await sql.ask("GET", target)).body)["Path"] == "dept/site/42"


async def test_an_entry_names_itself_by_the_address_that_the_caller_used(sql):
    """mgmt 7/entry-layout: id and self link; the api-version is the caller's."""
    sql.base_url = "ws://127.0.0.1:8080/"
    entry = ET.fromstring((await sql.ask("GET", "/sql?api-version=2017-04")).body)
    assert entry.find(reader.ATOM + "id").text == "http://127.0.0.1:8080/sql?api-version=2017-04"
    assert entry.find(reader.ATOM + "link").get("href") == "http://127.0.0.1:8080/sql?api-version=2017-04"
    assert entry.find(reader.ATOM + "author")[0].text == "contoso"


async def test_headers_of_old_clients_change_nothing(sql):
    """mgmt 7/unused-headers: accepted and unused."""
    headers = [
        ("TrackingId", "abc"),
        ("X-MS-ISANONYMOUSACCESSIBLE", "False"),
        ("ServiceBusSupplementaryAuthorization", "x"),
        ("User-Agent", "SERVICEBUS/2017-04(api-origin=DotNetSdk)"),
    ]
    plain = await sql.ask("GET", "/sql?api-version=2016-07")
    assert await sql.ask("GET", "/sql?api-version=2016-07", headers=headers) == plain


async def test_an_anonymous_entity_is_described_to_holders_of_keys_only(context):
    """mgmt 7/M01: senders need no token there, readers of its description do."""
    await context.store.create_entity("contoso", "open", requires_client_authorization=False)
    assert_refused(await context.ask("GET", "/open?api-version=2016-07", token=None), 401)
    response = await context.ask("GET", "/open?api-version=2016-07")
    assert reader.read_entry(response.body)["RequiresClientAuthorization"] is False
    assert b"UserMetadata" not in response.body


async def test_a_token_may_come_in_the_query_and_in_the_header_of_the_libraries(sql):
    """mgmt 7/M01: each place where a token may be."""
    headers = Headers([("Host", HOST), ("ServiceBusAuthorization", sql.token())])
    request = atom.AtomRequest("GET", "/sql?api-version=2016-07", headers, b"", HOST, True)
    assert (await atom.handle(request, sql)).status == 200
    encoded = sql.token().replace("%", "%25").replace(" ", "+").replace("&", "%26")
    request = atom.AtomRequest(
        "GET", f"/sql?sb-hc-token={encoded}&api-version=2016-07", Headers([("Host", HOST)]), b"", HOST, True
    )
    assert (await atom.handle(request, sql)).status == 200


# M02: paths without a hybrid connection ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["listen", "send", "RootManageSharedAccessKey"])
async def test_an_unknown_path_is_an_empty_feed(sql, rule):
    """mgmt 7/M02, spec 16/unknown-path: 200 and ``type=feed``, which .NET reads as "no such entity"."""
    for target in ("/nosuch?api-version=2016-07", "/sql/deeper?api-version=2016-07", "/?api-version=2016-07"):
        response = await sql.ask("GET", target, token=sql.token(rule))
        assert response.status == 200
        assert header(response, "Content-Type") == FEED_MEDIA_TYPE == "application/atom+xml;type=feed;charset=utf-8"
        assert reader.read_feed(response.body) == []


async def test_a_key_of_another_entity_learns_nothing(sql):
    """mgmt 7/rights-first: a key of one path opens no other, and does not even learn whether there is one."""
    await sql.store.create_entity("contoso", "other")
    token = sql.token("managehere", path="sql")
    answers = [await sql.ask("GET", f"/{path}?api-version=2016-07", token=token) for path in ("other", "never")]
    known, unknown = (assert_refused(answer, 401) for answer in answers)
    assert known.replace("other", "never") == unknown


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("token", [None, "SharedAccessSignature sr=x", "Bearer a.b.c", "wrong-key"])
async def test_without_a_good_token_all_paths_look_alike(sql, method, token):
    """mgmt 7/rights-first: no credential, a bad one or a foreign one gives one answer, and no body is read for it."""
    if token == "wrong-key":
        token = make_token(f"http://{HOST}/", "RootManageSharedAccessKey", OTHER_KEY, START_UNIX + 9_999)
    details = [
        assert_refused(await sql.ask(method, f"/{path}?api-version=2016-07", token=token, body=b"not xml"), 401)
        for path in ("sql", "nil")
    ]
    assert details[0].replace("sql", "nil") == details[1]
    assert sql.namespace.entities.keys() == {"sql"}


# Missing rights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/new?api-version=2016-07"),
        ("PUT", "/sql?api-version=2016-07"),
        ("DELETE", "/sql?api-version=2016-07"),
        ("DELETE", "/nosuch?api-version=2016-07"),
        ("GET", "/$Resources/HybridConnections?api-version=2016-07"),
        ("GET", "/$Resources/Relays?api-version=2016-07"),
        ("GET", "/$Resources/Queues?api-version=2016-07"),
    ],
)
@pytest.mark.parametrize("rule", ["listen", "send"])
async def test_a_missing_right_is_401_here(sql, method, target, rule):
    """mgmt 7/missing-right-401: .NET reads 403 as "quota exceeded"; writing and listing take Manage."""
    response = await sql.ask(method, target, token=sql.token(rule), body=put_body())
    assert_refused(response, 401)
    assert response.refused.reason is RefusalReason.RIGHT_MISSING
    assert sql.namespace.entities.keys() == {"sql"}


async def test_manage_on_one_entity_is_not_manage_on_the_namespace(sql):
    """mgmt 7/M03, mgmt 7/M06: a key of an entity neither creates others nor lists them, but it deletes its own."""
    token = sql.token("managehere", path="sql")
    assert_refused(await sql.ask("PUT", "/sql2?api-version=2016-07", token=token, body=put_body()), 401)
    assert_refused(await sql.ask("GET", "/$Resources/HybridConnections", token=token), 401)
    assert (await sql.ask("DELETE", "/sql?api-version=2016-07", token=token)).status == 200


# M03: creation -------------------------------------------------------------------------------------------------------


async def test_a_put_creates(context):
    """mgmt 7/M03: 201 with the entry, and a second one is 409."""
    response = await context.ask("PUT", "/Dept/Sql?api-version=2016-07", body=put_body(metadata(ENDPOINT)))
    assert (response.status, response.reason) == (201, "Created")
    assert header(response, "Content-Type") == ENTRY_MEDIA_TYPE
    values = reader.read_entry(response.body)
    assert (values["Path"], values["UserMetadata"], values["ListenerCount"]) == ("Dept/Sql", ENDPOINT, 0)
    assert values["RequiresClientAuthorization"] is True
    assert context.namespace.get_entity("dept/sql").rules == ()
    again = await context.ask("PUT", "/dept/sql?api-version=2016-07", body=put_body())
    assert_refused(again, 409)
    assert context.namespace.get_entity("dept/sql").user_metadata == ENDPOINT


async def test_what_was_put_is_what_is_got(context):
    """mgmt 7/M03, mgmt 3.6/byte-for-byte: entry and ETag are the same for the one who wrote and the one who reads."""
    members = f"<RequiresClientAuthorization>false</RequiresClientAuthorization>{metadata('a&#xD;&#10;&lt;b&gt; é')}"
    created = await context.ask("PUT", "/x?api-version=2016-07", body=put_body(members))
    read = await context.ask("GET", "/x?api-version=2016-07")
    assert created.body == read.body
    assert header(created, "ETag") == header(read, "ETag")
    assert reader.read_entry(read.body)["UserMetadata"] == "a\r\n<b> é"
    assert reader.read_entry(read.body)["RequiresClientAuthorization"] is False


@pytest.mark.parametrize("path", ["a/b", "a"])
async def test_a_path_that_would_hide_another_is_refused(context, path):
    """mgmt 3.2/no-prefix: ``a`` and ``a/b`` cannot both be; 409 whichever comes second."""
    await context.store.create_entity("contoso", {"a/b": "a", "a": "a/b"}[path])
    assert_refused(await context.ask("PUT", f"/{path}?api-version=2016-07", body=put_body()), 409)


@pytest.mark.parametrize("path", ["-x", "x-", "a//b", "a/./b", "x" * 261, "a%20b", "%C3%A9", "%24hc", ""])
async def test_bad_names_are_refused(context, path):
    """mgmt 3.2/names: 1 to 260 letters, digits, ``.-_/``, a letter or digit at both ends, no empty segment."""
    assert_refused(await context.ask("PUT", f"/{path}?api-version=2016-07", body=put_body()), 400)
    assert context.namespace.entities == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not well-formed"),
        (b"<!DOCTYPE entry><entry/>", "document type"),
        (put_body(metadata("&#1;")), "not well-formed"),
        (put_body(metadata("m" * 1025)), "1024"),
        (put_body("<RequiresClientAuthorization>True</RequiresClientAuthorization>"), "true or false"),
    ],
)
async def test_bad_bodies_are_refused(context, body, words):
    """mgmt 7/put-body: 400 with the reason, and nothing is created."""
    assert_refused(await context.ask("PUT", "/x?api-version=2016-07", body=body), 400, words)
    assert context.namespace.entities == {}


async def test_metadata_of_the_longest_kind_is_kept(context):
    """mgmt 9/metadata: 1024 characters."""
    text = "é" * 1024
    await context.ask("PUT", "/x?api-version=2016-07", body=put_body(metadata(text)))
    assert context.namespace.get_entity("x").user_metadata == text


async def test_rules_may_come_with_the_creation(context):
    """mgmt 7/put-rules: a primary key that the client chose is kept, a missing secondary key is made."""
    keys = f"<PrimaryKey>{OTHER_KEY}</PrimaryKey>"
    rules = rule_xml("mine", ["Listen", "Send"], keys) + rule_xml("yours", ["send"])
    response = await context.ask(
        "PUT",
        "/x?api-version=2016-07",
        body=put_body(rules=f"<AuthorizationRules>{rules}</AuthorizationRules>"),
    )
    assert response.status == 201
    mine, yours = context.namespace.get_entity("x").rules
    assert (mine.name, mine.primary_key, mine.rights) == ("mine", OTHER_KEY, {Right.LISTEN, Right.SEND})
    assert (yours.name, yours.rights) == ("yours", {Right.SEND})
    made = [mine.secondary_key, yours.primary_key, yours.secondary_key]
    assert len({OTHER_KEY, *made}) == 4
    assert all(len(key) == 44 for key in made)
    token = make_token(f"http://{HOST}/x", "mine", OTHER_KEY, int(context.now_unix()) + 600)
    assert (await context.ask("GET", "/x?api-version=2016-07", token=token)).status == 200


@pytest.mark.parametrize(
    "rules",
    [
        rule_xml("r", []),
        rule_xml("r", ["Manage"]),
        rule_xml("r", ["Send", "Send"]),
        rule_xml("-r", ["Send"]),
        rule_xml("r" * 51, ["Send"]),
        rule_xml("r", ["Send"], "<PrimaryKey>short</PrimaryKey>"),
    ],
)
async def test_bad_rules_are_refused(context, rules):
    """mgmt 3.4/rights, mgmt 3.4/names, mgmt 3.5/chosen-keys: 400, and the hybrid connection is not created either."""
    body = put_body(rules=f"<AuthorizationRules>{rules}</AuthorizationRules>")
    assert_refused(await context.ask("PUT", "/x?api-version=2016-07", body=body), 400)
    assert context.namespace.entities == {}


async def test_a_thirteenth_rule_is_refused(context):
    """mgmt 9/rules: 12 per entity; 409."""
    rules = "".join(rule_xml(f"r{n}", ["Send"]) for n in range(13))
    body = put_body(rules=f"<AuthorizationRules>{rules}</AuthorizationRules>")
    assert_refused(await context.ask("PUT", "/x?api-version=2016-07", body=body), 409)
    assert context.namespace.entities == {}


# M04: replacement ----------------------------------------------------------------------------------------------------


async def test_a_put_with_if_match_replaces(sql):
    """mgmt 7/M04: 200 with the new entry; the keys stay."""
    before = sql.namespace.get_entity("sql")
    response = await sql.ask(
        "PUT", "/sql?api-version=2016-07", headers=[("If-Match", "*")], body=put_body(metadata("new"))
    )
    assert response.status == 200
    after = sql.namespace.get_entity("sql")
    assert reader.read_entry(response.body)["UserMetadata"] == after.user_metadata == "new"
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at
    assert after.rules == before.rules


async def test_a_put_without_metadata_clears_it(sql):
    """mgmt 3.2/put-replaces: that is what PUT means here."""
    await sql.ask("PUT", "/sql?api-version=2016-07", headers=[("If-Match", "*")], body=put_body())
    assert sql.namespace.get_entity("sql").user_metadata is None


async def test_a_put_that_changes_nothing_leaves_no_trace(sql):
    """mgmt 3.2/unchanged: ``UpdatedAt`` and the ETag stay."""
    before = sql.namespace.get_entity("sql")
    entry = (await sql.ask("GET", "/sql?api-version=2016-07")).body
    response = await sql.ask("PUT", "/sql?api-version=2016-07", headers=[("If-Match", "*")], body=entry)
    assert response.status == 200
    assert response.body == entry
    assert sql.namespace.get_entity("sql") == before


async def test_an_update_of_nothing_is_404(context):
    """mgmt 7/M04: ``If-Match`` creates nothing."""
    response = await context.ask("PUT", "/x?api-version=2016-07", headers=[("If-Match", "*")], body=put_body())
    assert_refused(response, 404, "Endpoint does not exist")
    assert context.namespace.entities == {}


async def test_the_immutable_member_is_not_changed(sql):
    """mgmt 3.2/immutable, mgmt 7/M04: the other value is 400, the same value or none is fine."""
    other = put_body("<RequiresClientAuthorization>false</RequiresClientAuthorization>")
    same = put_body("<RequiresClientAuthorization>true</RequiresClientAuthorization>")
    headers = [("If-Match", "*")]
    assert_refused(await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=other), 400)
    assert sql.namespace.get_entity("sql").user_metadata == ENDPOINT
    assert (await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=same)).status == 200


async def test_the_etag_is_the_hex_of_the_last_update(sql):
    """mgmt 7/etag: quoted, and another after each change."""
    response = await sql.ask("GET", "/sql?api-version=2016-07")
    tag = header(response, "ETag")
    assert re.fullmatch('"[0-9a-f]+"', tag)
    micros = (sql.namespace.get_entity("sql").updated_at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6
    assert int(tag.strip('"'), 16) == micros


@pytest.mark.parametrize("form", ["{tag}", '"0", {tag}', "*"])
async def test_the_right_etag_lets_a_put_through(sql, form):
    """mgmt 7/etag: one of a list is enough."""
    tag = header(await sql.ask("GET", "/sql?api-version=2016-07"), "ETag")
    headers = [("If-Match", form.format(tag=tag))]
    response = await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=put_body(metadata("new")))
    assert response.status == 200
    assert header(response, "ETag") != tag


@pytest.mark.parametrize("form", ['"0"', "{bare}", "W/{tag}", "", '"0", "1"'])
async def test_another_etag_is_412(sql, form):
    """mgmt 7/etag: a stale, weak, unquoted or empty tag matches nothing; PUT and DELETE change nothing."""
    tag = header(await sql.ask("GET", "/sql?api-version=2016-07"), "ETag")
    headers = [("If-Match", form.format(tag=tag, bare=tag.strip('"')))]
    for method in ("PUT", "DELETE"):
        response = await sql.ask(method, "/sql?api-version=2016-07", headers=headers, body=put_body())
        assert_refused(response, 412)
        assert response.refused.reason is RefusalReason.PRECONDITION
    assert sql.namespace.get_entity("sql").user_metadata == ENDPOINT


async def test_the_condition_holds_at_the_moment_of_writing(sql):
    """mgmt 7/etag: of two writers with the same ETag one wins, also when the snapshot that both looked at is old."""
    tag = header(await sql.ask("GET", "/sql?api-version=2016-07"), "ETag")
    stale = sql.namespace

    class Stale(Context):
        namespace = stale

    late = Stale(sql.store, sql.clock)
    headers = [("If-Match", tag)]
    first = await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=put_body(metadata("first")))
    second = await late.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=put_body(metadata("second")))
    assert first.status == 200
    assert_refused(second, 412)
    assert sql.namespace.get_entity("sql").user_metadata == "first"


async def test_rules_of_a_replacement_replace(sql):
    """mgmt 7/put-rules: those that stay keep their keys; no rules in the body means that they are left alone."""
    before = {rule.name: rule for rule in sql.namespace.get_entity("sql").rules}
    rules = rule_xml("sendhere", ["Listen", "Send"]) + rule_xml("fresh", ["Listen"])
    headers = [("If-Match", "*")]
    body = put_body(rules=f"<AuthorizationRules>{rules}</AuthorizationRules>")
    assert (await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=body)).status == 200
    after = {rule.name: rule for rule in sql.namespace.get_entity("sql").rules}
    assert after.keys() == {"sendhere", "fresh"}
    assert after["sendhere"].keys == before["sendhere"].keys
    assert after["sendhere"].rights == {Right.LISTEN, Right.SEND}
    body = put_body(rules="<AuthorizationRules/>")
    assert (await sql.ask("PUT", "/sql?api-version=2016-07", headers=headers, body=body)).status == 200
    assert {rule.name for rule in sql.namespace.get_entity("sql").rules} == {"sendhere", "fresh"}


# M05: deletion -------------------------------------------------------------------------------------------------------


async def test_delete_deletes_once(sql):
    """mgmt 7/M05: 200, then 404; a form content type makes no difference."""
    headers = [("Content-Type", "application/x-www-form-urlencoded")]
    response = await sql.ask("DELETE", "/SQL/?api-version=2017-04", headers=headers)
    assert (response.status, response.body) == (200, b"")
    assert sql.namespace.entities == {}
    assert_refused(await sql.ask("DELETE", "/sql?api-version=2016-07"), 404, "Endpoint does not exist: sql")


async def test_delete_with_the_right_etag(sql):
    """mgmt 7/etag: a DELETE may be conditional too."""
    tag = header(await sql.ask("GET", "/sql?api-version=2016-07"), "ETag")
    assert (await sql.ask("DELETE", "/sql?api-version=2016-07", headers=[("If-Match", tag)])).status == 200


# M06 to M08: lists ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def many(context):
    for number in range(105):
        await context.store.create_entity("contoso", f"hc{number:03}")
    return context


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", range(100)),
        ("?$skip=100", range(100, 105)),
        ("?$skip=3&$top=2", range(3, 5)),
        ("?%24skip=3&%24top=2", range(3, 5)),
        ("?$top=2147483647", range(105)),
        ("?$skip=2147483647&$top=2147483647", range(0)),
        ("?$top=0", range(0)),
    ],
)
async def test_hybrid_connections_are_listed_by_pages(many, query, expected):
    """mgmt 7/M06: in order of their names; ``$skip`` defaults to 0 and ``$top`` to 100."""
    response = await many.ask("GET", f"/$Resources/HybridConnections{query}")
    assert response.status == 200
    assert header(response, "Content-Type") == FEED_MEDIA_TYPE
    assert [item["Path"] for item in reader.read_feed(response.body)] == [f"hc{number:03}" for number in expected]


@pytest.mark.parametrize("query", ["$skip=-1", "$top=x", "$top=", "$skip=1.5", "$top=99999999999"])
async def test_bad_pages_are_refused(many, query):
    """mgmt 7/M06: counts are whole numbers from 0 on."""
    assert_refused(await many.ask("GET", f"/$Resources/HybridConnections?{query}"), 400)


async def test_a_long_feed_lets_others_run(many):
    """mgmt 7/M06: a feed of many entries is built with checkpoints between, a short one at once."""
    with trio.testing.assert_checkpoints():
        await many.ask("GET", "/$Resources/HybridConnections?$top=1000")
    with trio.testing.assert_no_checkpoints():
        await many.ask("GET", "/$Resources/HybridConnections?$top=10")
        await many.ask("GET", "/hc000?api-version=2016-07")


async def test_entries_of_a_list_carry_their_rules(sql):
    """mgmt 7/M06: the caller has Manage, so keys are there; the listener count is live."""
    response = await sql.ask("GET", "/$resources/hybridconnections?api-version=2017-04")
    (item,) = reader.read_feed(response.body)
    assert len(item["AuthorizationRules"]) == 3
    assert (item["UserMetadata"], item["ListenerCount"]) == (ENDPOINT, 2)
    assert b'href="https://contoso.example/sql?api-version=2017-04"' in response.body


@pytest.mark.parametrize("kind", ["Relays", "Queues", "Topics", "EventHubs", "NotificationHubs", "Whatever"])
async def test_other_kinds_are_empty_feeds(sql, kind):
    """mgmt 7/M07, mgmt 7/M08: explorers ask for all of them; this relay has none."""
    response = await sql.ask("GET", f"/$Resources/{kind}?$skip=0&$top=2147483647&api-version=2017-04")
    assert response.status == 200
    assert header(response, "Content-Type") == FEED_MEDIA_TYPE
    assert reader.read_feed(response.body) == []
    assert ET.fromstring(response.body).find(reader.ATOM + "title").text == kind


# Errors --------------------------------------------------------------------------------------------------------------


async def test_an_error_is_told_in_xml(sql):
    """mgmt 7/errors: code and detail, with tracking id, tracker and time."""
    response = await sql.ask("GET", "/sql?api-version=2016-07", token=None)
    assert response.reason == "Unauthorized"
    detail = assert_refused(response, 401)
    assert re.search(
        r"\. TrackingId:11111111-2222-3333-4444-555555555555_G0, SystemTracker:sb://contoso\.example/sql, "
        r"Timestamp:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$",
        detail,
    )
    assert response.body.startswith(b"<Error><Code>401</Code><Detail>")


async def test_an_expired_token_is_told_as_such(sql):
    """mgmt 7/errors: .NET shows the detail, so it must say what is wrong."""
    assert_refused(
        await sql.ask("GET", "/sql?api-version=2016-07", token=sql.token(lifetime=-301)), 401, "ExpiredToken"
    )


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/sql", "GET, PUT, DELETE"),
        ("PUT", "/$Resources/HybridConnections", "GET"),
        ("DELETE", "/$Resources/x", "GET"),
        ("HEAD", "/$Resources/HybridConnections", "GET"),
    ],
)
async def test_other_methods_are_refused(sql, method, target, allowed):
    """mgmt 7/methods: 405, naming what would do."""
    response = await sql.ask(method, target, body=put_body())
    assert_refused(response, 405)
    assert header(response, "Allow") == allowed


@pytest.mark.parametrize("target", ["/%ff", "/a?" + "x=1&" * 101, "http://[::1/-x", "/%00"])
async def test_unreadable_targets_are_answered(sql, target):
    """mgmt 7/errors: with 400, or as a path that is not there."""
    response = await sql.ask("PUT", target, body=put_body())
    assert_refused(response, 400)


async def test_a_busy_store_is_503(sql, monkeypatch):
    """mgmt 7/errors: .NET reads 503 as "server busy" and tries again."""
    from relaycore.errors import ServerBusy

    async def busy(*args, **kwargs):
        raise ServerBusy("The store is busy")

    monkeypatch.setattr(sql.store, "create_entity", busy)
    assert_refused(await sql.ask("PUT", "/new?api-version=2016-07", body=put_body()), 503, "The store is busy")


async def test_who_was_let_in_is_known_for_the_audit(sql):
    """mgmt 3.5/audit: the rule's name goes with the answer, and no key is in its repr."""
    response = await sql.ask("GET", "/sql?api-version=2016-07")
    assert response.grant.rule_name == "RootManageSharedAccessKey"
    for rule in (*sql.namespace.rules, *sql.namespace.get_entity("sql").rules):
        assert rule.primary_key not in repr(response)


# Which requests are ours ---------------------------------------------------------------------------------------------


SERVICE_BUS = ("X-PROCESS-AT", "ServiceBus")


def is_ours(context, method, target, *headers):
    head = RequestHead(method=method, target=target, http_version="1.1", headers=Headers([("Host", HOST), *headers]))
    return atom.is_management_request(head, context.namespace)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "mark",
    [
        SERVICE_BUS,
        ("x-process-at", "servicebus"),
        ("Accept", "application/atom+xml"),
        ("Accept", "text/html, Application/Atom+XML;type=entry;charset=utf-8;q=0.5"),
        ("Content-Type", "application/atom+xml;type=entry;charset=utf-8"),
    ],
)
async def test_marked_requests_are_ours(sql, method, mark):
    """mgmt 7/telling-apart, spec 16/told-apart: year and month, and one of the marks; the path need not exist."""
    assert is_ours(sql, method, "/sql?api-version=2016-07", mark)
    assert is_ours(sql, method, "/nosuch/deep?x=1&api-version=2017-04", mark)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/sql?api-version=abc", [SERVICE_BUS]),
        ("/sql?api-version=2016-07-01", [SERVICE_BUS]),
        ("/sql", [SERVICE_BUS]),
        ("/sql?api-version=2016-07", []),
        ("/sql?api-version=2016-07", [("X-PROCESS-AT", "Somewhere")]),
        ("/sql?api-version=2016-07", [("Accept", "application/atom+xmlx")]),
        ("/sql?api-version=2016-07", [("Accept", "application/xml")]),
        ("/$hc/sql?api-version=2016-07", [SERVICE_BUS]),
        ("/%24hc/sql?api-version=2016-07", [SERVICE_BUS]),
        ("/sql?api-version=2016-07&" + "x=1&" * 100, [SERVICE_BUS]),
    ],
)
async def test_other_requests_are_the_listeners(sql, target, headers):
    """mgmt 7/telling-apart, spec 16/told-apart: ``api-version`` alone, or a mark alone, is application data."""
    assert not is_ours(sql, "GET", target, *headers)


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PATCH"])
async def test_other_methods_are_the_listeners(sql, method):
    """mgmt 7/telling-apart: M01 to M05 are GET, PUT and DELETE."""
    assert not is_ours(sql, method, "/sql?api-version=2016-07", SERVICE_BUS)


async def test_a_known_key_marks_a_request_for_exactly_an_entity(sql):
    """mgmt 7/telling-apart: of the entity or the namespace, expired or not; a foreign key or a longer path does not."""
    version = "?api-version=2016-07"
    for token in (
        sql.token(),
        sql.token("listenhere", path="sql"),
        sql.token(lifetime=-86_400),
        sql.token(resource="http://elsewhere.example/"),
    ):
        assert is_ours(sql, "GET", f"/sql{version}", ("Authorization", token))
        assert is_ours(sql, "GET", f"/SQL/{version}", ("Authorization", token))
        assert not is_ours(sql, "GET", f"/sql/more{version}", ("Authorization", token))
        assert not is_ours(sql, "GET", f"/nosuch{version}", ("Authorization", token))
        assert not is_ours(sql, "GET", "/sql", ("Authorization", token))
        assert not is_ours(sql, "GET", f"/sql{version}", ("ServiceBusAuthorization", token))
    foreign = make_token(f"http://{HOST}/", "RootManageSharedAccessKey", OTHER_KEY, START_UNIX + 600)
    unknown = make_token(f"http://{HOST}/", "nosuchrule", OTHER_KEY, START_UNIX + 600)
    for authorization in (foreign, unknown, "Bearer a.b.c", "Basic x", "SharedAccessSignature sr=1"):
        assert not is_ours(sql, "GET", f"/sql{version}", ("Authorization", authorization))


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "HEAD"])
async def test_resources_are_always_ours(sql, method):
    """mgmt 7/telling-apart: no entity's name has a dollar sign."""
    for target in ("/$Resources/HybridConnections", "/%24resources/x?$top=1", "/$Resources"):
        assert is_ours(sql, method, target)


# Anything at all -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data())
async def test_no_request_raises(data):
    """mgmt 7/errors: whatever comes, the answer is one of the statuses that are written down."""
    rng = random.Random(data.draw(st.integers()))
    clock = Clock()
    async with await open_sqlite(":memory:", now=clock) as store:
        await store.ensure_namespace("contoso", (HOST,))
        await store.create_entity("contoso", "sql")
        context = Context(store, clock)
        for _ in range(4):
            method = data.draw(st.sampled_from(["GET", "PUT", "DELETE", "POST"]))
            target = data.draw(
                st.sampled_from(["/sql", "/new", "/$Resources/HybridConnections"])
                | st.text(st.characters(codec="latin-1", categories=("L", "N", "P", "S")), max_size=20).map("/".__add__)
            )
            query = data.draw(st.sampled_from(["", "?api-version=2016-07", "?$top=1", "?%", "?a;b&&=&$skip=x"]))
            body = data.draw(st.sampled_from([put_body(), put_body(metadata("x"))]) | st.binary(max_size=50))
            headers = data.draw(st.sampled_from([[], [("If-Match", "*")], [("If-Match", '"1"')]]))
            token = rng.choice([context.token(), None, "SharedAccessSignature sr=%&sig=%&se=1&skn=%"])
            response = await context.ask(method, target + query, token=token, body=body, headers=headers)
            assert response.status in {200, 201, 400, 401, 404, 405, 409, 412}
            assert (response.refused is None) == (response.status < 300)
            if response.body:
                ET.fromstring(response.body)
