"""The XML of the management surface, judged by a reader of its own: tests/data_contract_reader.py."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta, timezone

import data_contract_reader as reader
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.errors import RemoteProtocolError
from relaycore.vocab import Right
from relaycore.wire import atom_xml
from relaycore.wire.atom_xml import EntityDescription, PutBody, RuleDescription, SubmittedRule

ATOM = "http://www.w3.org/2005/Atom"
CONNECT = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

CREATED = datetime(2026, 1, 31, 9, 15, 2, 105810, tzinfo=UTC)
UPDATED = datetime(2026, 2, 1, 0, 0, 0, 0, tzinfo=UTC)
ENDPOINT = '[{"key":"endpoint","value":"db.corp.local:1433"}]'

xml_characters = st.characters(codec="utf-8", exclude_categories=("Cs",)).filter(
    lambda c: c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff")
)
metadata_texts = st.text(xml_characters, max_size=60)


def describe(**changes):
    values = {
        "path": "sql",
        "created_at": CREATED,
        "updated_at": UPDATED,
        "requires_client_authorization": True,
        "user_metadata": ENDPOINT,
        "listener_count": 2,
    }
    return EntityDescription(**(values | changes))


def build(**changes):
    return atom_xml.build_entry(describe(**changes), url="https://contoso/sql?api-version=2016-07", author="contoso")


def put_body(description, *, root="entry", atom=ATOM):
    content = f'<title type="text">x</title><content type="application/xml">{description}</content>'
    return f'<{root} xmlns="{atom}">{content}</{root}>'.encode()


def description(members, *, name="HybridConnectionDescription", namespace=CONNECT):
    return f'<{name} xmlns="{namespace}" xmlns:i="{INSTANCE}">{members}</{name}>'


def parse(members, **changes):
    return atom_xml.parse_put_body(put_body(description(members, **changes)))


# Entries -------------------------------------------------------------------------------------------------------------


def test_an_entry_is_written_to_the_letter():
    """mgmt 7/entry-layout: the entry of the contract, character by character, without declaration and mark."""
    assert build() == (
        '<entry xmlns="http://www.w3.org/2005/Atom"><id>https://contoso/sql?api-version=2016-07</id>'
        '<title type="text">sql</title><published>2026-01-31T09:15:02.105810Z</published>'
        "<updated>2026-02-01T00:00:00.000000Z</updated><author><name>contoso</name></author>"
        '<link rel="self" href="https://contoso/sql?api-version=2016-07"/>'
        '<content type="application/xml"><HybridConnectionDescription'
        ' xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"'
        ' xmlns:i="http://www.w3.org/2001/XMLSchema-instance">'
        "<Path>sql</Path><CreatedAt>2026-01-31T09:15:02.105810Z</CreatedAt>"
        "<UpdatedAt>2026-02-01T00:00:00.000000Z</UpdatedAt>"
        "<RequiresClientAuthorization>true</RequiresClientAuthorization><AuthorizationRules/>"
        "<UserMetadata>[{&quot;key&quot;:&quot;endpoint&quot;,&quot;value&quot;:&quot;db.corp.local:1433&quot;}]"
        "</UserMetadata><ListenerCount>2</ListenerCount></HybridConnectionDescription></content></entry>"
    )


@pytest.mark.parametrize("members", [reader.NAMESPACE_MANAGER_MEMBERS, reader.RELAY_SDK_MEMBERS])
def test_the_data_contract_reader_loses_no_member(members):
    """mgmt 7/element-order: nothing comes out of the order in which .NET reads."""
    everything = {
        "Path": "sql",
        "CreatedAt": CREATED,
        "UpdatedAt": UPDATED,
        "RequiresClientAuthorization": True,
        "AuthorizationRules": [],
        "UserMetadata": ENDPOINT,
        "ListenerCount": 2,
    }
    assert reader.read_entry(build(), members) == {name: everything[name] for name in members}


def test_the_reader_of_these_tests_drops_what_comes_out_of_order():
    """mgmt 7/element-order: the judge itself would notice ``ListenerCount`` in front of ``UserMetadata``."""
    wrong = build().replace("<ListenerCount>2</ListenerCount>", "")
    wrong = wrong.replace("<UserMetadata>", "<ListenerCount>2</ListenerCount><UserMetadata>")
    assert "UserMetadata" not in reader.read_entry(wrong)
    assert reader.read_entry(wrong)["ListenerCount"] == 2


@pytest.mark.parametrize(("old", "new"), [(">true<", ">True<"), (".105810Z<", ".105810+00:00<"), ("connect", "other")])
def test_the_reader_of_these_tests_is_as_strict_as_dotnet(old, new):
    """mgmt 7/booleans-and-dates: capital booleans, other time forms and other namespaces would be noticed."""
    with pytest.raises(reader.DataContractError):
        reader.read_entry(build().replace(old, new))


def test_booleans_are_lower_case():
    """mgmt 7/booleans-and-dates: ``True`` makes .NET raise."""
    assert "<RequiresClientAuthorization>false</RequiresClientAuthorization>" in build(
        requires_client_authorization=False
    )


def test_times_are_utc_whatever_zone_they_came_in():
    """mgmt 7/booleans-and-dates: dates end in ``Z``."""
    moment = datetime(2026, 1, 31, 10, 0, tzinfo=timezone(timedelta(hours=1)))
    assert atom_xml.format_time(moment) == "2026-01-31T09:00:00.000000Z"


def test_metadata_that_was_never_set_is_left_out():
    """mgmt 7/metadata-unset: no element at all, and an empty one when it was set to nothing."""
    assert "UserMetadata" not in build(user_metadata=None)
    assert reader.read_entry(build(user_metadata=""))["UserMetadata"] == ""


@given(metadata_texts)
def test_metadata_survives_escaping_character_by_character(text):
    """mgmt 3.6/byte-for-byte: what a PUT brings is what a GET shows, carriage returns and brackets included."""
    shown = reader.read_entry(build(user_metadata=text))["UserMetadata"]
    assert shown == text
    assert parse(f"<UserMetadata>{atom_xml._escape(text)}</UserMetadata>").user_metadata == text


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_stored_text_gives_well_formed_xml(metadata, path):
    """mgmt 7/control-characters: text that XML 1.0 cannot carry is shown with U+FFFD, never as broken XML."""
    shown = reader.read_entry(build(user_metadata=metadata, path=path))["UserMetadata"]
    assert len(shown) == len(metadata)
    assert all(s == m or s == "\ufffd" for s, m in zip(shown, metadata, strict=True))


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x1f", "\ud800", "\ufffe", "\uffff"])
def test_characters_outside_xml_become_the_replacement_character(character):
    """mgmt 7/control-characters: a lone surrogate may come in through a command line."""
    assert reader.read_entry(build(user_metadata=f"a{character}b"))["UserMetadata"] == "a\ufffdb"


def test_rules_have_the_shape_of_the_data_contract():
    """mgmt 7/rules-for-manage: item by item, rights sorted, keys where they belong."""
    rule = RuleDescription("both", frozenset({Right.SEND, Right.LISTEN}), "K1=", "K2=", CREATED, UPDATED)
    assert (
        "<AuthorizationRules>"
        '<AuthorizationRule i:type="SharedAccessAuthorizationRule"><ClaimType>SharedAccessKey</ClaimType>'
        "<ClaimValue>None</ClaimValue><Rights><AccessRights>Listen</AccessRights><AccessRights>Send</AccessRights>"
        "</Rights><CreatedTime>2026-01-31T09:15:02.105810Z</CreatedTime>"
        "<ModifiedTime>2026-02-01T00:00:00.000000Z</ModifiedTime><KeyName>both</KeyName><PrimaryKey>K1=</PrimaryKey>"
        "<SecondaryKey>K2=</SecondaryKey></AuthorizationRule></AuthorizationRules>"
    ) in build(rules=(rule,))
    assert reader.read_entry(build(rules=(rule,)))["ListenerCount"] == 2


def test_keys_stay_out_of_reprs():
    rule = RuleDescription("r", frozenset({Right.SEND}), "PRIMARY", "SECONDARY", CREATED, UPDATED)
    submitted = SubmittedRule("r", (Right.SEND,), "PRIMARY", "SECONDARY")
    for text in (repr(rule), repr(submitted), repr(describe(rules=(rule,)))):
        assert "PRIMARY" not in text
        assert "SECONDARY" not in text


# Feeds and errors ----------------------------------------------------------------------------------------------------


def test_an_empty_feed_has_title_id_time_and_link():
    """mgmt 7/feed: the frame of a feed, without entries."""
    feed = atom_xml.build_feed("nowhere", [], url="https://contoso/nowhere?a=1&b=2", updated=CREATED)
    assert feed == (
        '<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">nowhere</title>'
        "<id>https://contoso/nowhere?a=1&amp;b=2</id><updated>2026-01-31T09:15:02.105810Z</updated>"
        '<link rel="self" href="https://contoso/nowhere?a=1&amp;b=2"/></feed>'
    )
    assert reader.read_feed(feed) == []


def test_entries_keep_their_order_in_a_feed():
    """mgmt 7/feed: an entry inside a feed reads like one that stands alone."""
    entries = [build(path="a"), build(path="b", user_metadata=None)]
    feed = atom_xml.build_feed("HybridConnections", entries, url="https://contoso/", updated=CREATED)
    assert [item["Path"] for item in reader.read_feed(feed)] == ["a", "b"]


def test_an_error_carries_code_and_detail():
    """mgmt 7/errors: .NET shows the detail."""
    assert atom_xml.build_error(401, 'a <b> & "c"\x00') == (
        "<Error><Code>401</Code><Detail>a &lt;b&gt; &amp; &quot;c&quot;\ufffd</Detail></Error>"
    )


# PUT bodies ----------------------------------------------------------------------------------------------------------


def test_an_empty_description_says_nothing():
    """mgmt 7/put-body: every member is optional."""
    assert parse("") == PutBody(None, None, None)


def test_members_are_read_in_any_order():
    """mgmt 7/put-body: .NET writes them in order, others need not."""
    body = parse(
        f"<UserMetadata>{ENDPOINT}</UserMetadata><AuthorizationRules/>"
        "<RequiresClientAuthorization> false\n</RequiresClientAuthorization>"
    )
    assert body == PutBody(False, ENDPOINT, ())


def test_what_we_write_can_be_put_back():
    """mgmt 7/put-body: a client that reads an entry, changes a member and sends it back is understood."""
    rule = RuleDescription("r", frozenset(Right), "K1=", "K2=", CREATED, UPDATED)
    body = atom_xml.parse_put_body(build(rules=(rule,)).encode())
    assert body == PutBody(
        True, ENDPOINT, (SubmittedRule("r", (Right.LISTEN, Right.MANAGE, Right.SEND), "K1=", "K2="),)
    )
    assert body.rules[0].primary_key == "K1="


def test_namespaces_count_and_prefixes_do_not():
    """mgmt 7/put-body: parsed with namespaces."""
    body = atom_xml.parse_put_body(
        f'<a:entry xmlns:a="{ATOM}" xmlns:s="{CONNECT}"><a:content><s:HybridConnectionDescription>'
        "<s:UserMetadata>m</s:UserMetadata><UserMetadata>not ours</UserMetadata>"
        "</s:HybridConnectionDescription></a:content></a:entry>".encode()
    )
    assert body.user_metadata == "m"


def test_unknown_elements_are_ignored_with_all_they_hold():
    """mgmt 7/put-body: also those that repeat or hold members' names."""
    body = parse(
        "<Path>other</Path><New><UserMetadata>no</UserMetadata></New><New/><UserMetadata>yes</UserMetadata>"
        "<ListenerCount>77</ListenerCount>"
    )
    assert body == PutBody(None, "yes", None)


def test_nil_counts_as_absent():
    """mgmt 7/put-body: .NET writes a null that way."""
    assert parse('<UserMetadata i:nil="true"/><RequiresClientAuthorization i:nil="1"/>') == PutBody()
    assert parse('<UserMetadata i:nil="false"></UserMetadata>') == PutBody(user_metadata="")


def test_rules_may_leave_keys_to_the_relay():
    """mgmt 7/put-rules: a missing or empty key is ``None``."""
    body = parse(
        '<AuthorizationRules><AuthorizationRule i:type="d4p1:SharedAccessAuthorizationRule">'
        "<Rights><AccessRights>send</AccessRights></Rights><KeyName>s</KeyName><PrimaryKey> K= </PrimaryKey>"
        "<SecondaryKey/></AuthorizationRule><AuthorizationRule><Rights/><KeyName>t</KeyName></AuthorizationRule>"
        "</AuthorizationRules>"
    )
    assert body.rules == (
        SubmittedRule("s", (Right.SEND,), "K=", None),
        SubmittedRule("t", (), None, None),
    )


@pytest.mark.parametrize("data", ["\ufeff{}".encode(), b"\xff\xfe", b""])
def test_byte_order_marks_are_understood(data):
    """mgmt 7/put-body: UTF-8 with or without a mark, UTF-16 with one, whatever the declaration says."""
    text = '<?xml version="1.0" encoding="utf-16"?>' + put_body(description("<UserMetadata>é</UserMetadata>")).decode()
    encoded = {
        b"\xff\xfe": b"\xff\xfe" + text.encode("utf-16-le"),
        b"": text.encode(),
    }.get(data, b"\xef\xbb\xbf" + text.encode())
    assert atom_xml.parse_put_body(encoded).user_metadata == "é"


BILLION_LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + b"".join(
        b'<!ENTITY lol%d "%s">' % (n, b"&lol%s;" % (b"" if n == 1 else b"%d" % (n - 1)) * 10) for n in range(1, 10)
    )
    + b"]><entry>&lol9;</entry>"
)


@pytest.mark.parametrize(
    "body",
    [
        BILLION_LAUGHS,
        b'<!DOCTYPE entry SYSTEM "file:///etc/passwd"><entry/>',
        b'<!DOCTYPE entry [<!ENTITY x SYSTEM "http://127.0.0.1/">]><entry>&x;</entry>',
        b"<!DOCTYPE entry><entry/>",
    ],
)
def test_document_types_are_refused(body):
    """mgmt 7/no-dtd: no entity is ever expanded, no file ever read."""
    with pytest.raises(RemoteProtocolError, match="document type") as caught:
        atom_xml.parse_put_body(body)
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    "reference", ["&#0;", "&#x1;", "&#x1F;", "&#xFFFE;", "&#xD800;", "\x01", "\x0b", "&undefined;"]
)
def test_control_characters_are_refused(reference):
    """mgmt 7/control-characters: XML 1.0 cannot carry them, not even as references; the PUT is answered 400."""
    with pytest.raises(RemoteProtocolError, match="not well-formed"):
        parse(f"<UserMetadata>{reference}</UserMetadata>")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no element found"),
        (b"{}", "not well-formed"),
        (b"<entry/>", "not an Atom entry"),
        (put_body("", root="feed"), "not an Atom entry"),
        (put_body(description(""), atom="urn:other"), "not an Atom entry"),
        (put_body(""), "no HybridConnectionDescription"),
        (put_body(description("", namespace="urn:other")), "no HybridConnectionDescription"),
        (put_body(description("", name="RelayDescription")), "holds hybrid connections only"),
        (put_body(description("") * 2), "twice"),
        (put_body(description("<UserMetadata/><UserMetadata/>")), "'UserMetadata' twice"),
        (put_body(description("<UserMetadata>a<b/>c</UserMetadata>")), "where text is expected"),
        (put_body(description("<RequiresClientAuthorization>True</RequiresClientAuthorization>")), "true or false"),
        (put_body(description("<RequiresClientAuthorization/>")), "true or false"),
        (put_body(description("<AuthorizationRules><AuthorizationRule/></AuthorizationRules>")), "no KeyName"),
        (
            put_body(description('<AuthorizationRules><AuthorizationRule i:type="AllowRule"/></AuthorizationRules>')),
            "'AllowRule' is not supported",
        ),
        (
            put_body(
                description(
                    "<AuthorizationRules><AuthorizationRule><Rights><AccessRights>Own</AccessRights></Rights>"
                    "</AuthorizationRule></AuthorizationRules>"
                )
            ),
            "Listen, Send or Manage",
        ),
        (put_body(description("<a>" * 40 + "</a>" * 40)), "too deeply nested"),
        (put_body(description("<a/>" * 10_001)), "too many"),
        (b"<entry>\xff</entry>", "neither UTF-8 nor UTF-16"),
        (b"\xff\xfe\x00\xd8", "neither UTF-8 nor UTF-16"),
    ],
)
def test_other_bodies_are_refused(body, message):
    """mgmt 7/put-body: each with 400 and words that name what is wrong."""
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        atom_xml.parse_put_body(body)
    assert caught.value.http_status == 400
    assert len(str(caught.value)) < 200


def test_long_names_do_not_make_long_messages():
    with pytest.raises(RemoteProtocolError) as caught:
        parse(f"<UserMetadata><{'x' * 5000}/></UserMetadata>")
    assert len(str(caught.value)) < 200


VALID = put_body(
    description(
        f"<RequiresClientAuthorization>true</RequiresClientAuthorization><AuthorizationRules><AuthorizationRule>"
        f"<Rights><AccessRights>Send</AccessRights></Rights><KeyName>s</KeyName></AuthorizationRule>"
        f"</AuthorizationRules><UserMetadata>{ENDPOINT}</UserMetadata>"
    )
)


def outcome(data):
    """The parsed body, or the status of the refusal; anything else is a failure of the test."""
    try:
        return atom_xml.parse_put_body(data)
    except RemoteProtocolError as exc:
        return exc.http_status


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_undocumented(data):
    """mgmt 7/put-body: any bytes are an answer or a refusal with 400."""
    assert outcome(data) == 400


@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.binary(max_size=6), st.integers(0, 12)), max_size=4))
def test_no_damaged_entry_raises_anything_undocumented(edits):
    """mgmt 7/put-body: the same around a body that is nearly right."""
    data = VALID
    for position, replacement, removed in edits:
        data = data[:position] + replacement + data[position + removed :]
    result = outcome(data)
    assert result == 400 or isinstance(result, PutBody)


def test_a_body_is_taken_in_any_bytes_like_form():
    for data in (bytearray(VALID), memoryview(VALID)):
        assert atom_xml.parse_put_body(data).user_metadata == ENDPOINT


def test_entries_are_well_formed_for_an_ordinary_parser():
    entry = ET.fromstring(build())
    assert entry.find(f"{{{ATOM}}}link").get("href") == "https://contoso/sql?api-version=2016-07"
    assert entry.find(f"{{{ATOM}}}author/{{{ATOM}}}name").text == "contoso"
