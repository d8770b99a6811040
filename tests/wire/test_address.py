"""Addresses: what is read from a target, what a listener gets to see, and text that the strictest parser takes."""

from __future__ import annotations

import re
import time
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from stripping import STRIPPING

from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.vocab import Action
from relaycore.wire import address
from relaycore.wire.address import parse_target

GUID = "12345678-1234-1234-1234-1234567890ab"

# RFC 2396: uric without the brackets that RFC 2732 added; Java's URI class refuses everything else.
STRICT = re.compile(
    r"wss?://[A-Za-z0-9.\-:\[\]]+/(?:[A-Za-z0-9\-_.!~*'():@&=+$,;/]|%[0-9A-Fa-f]{2})*"
    r"\?(?:[A-Za-z0-9\-_.!~*'();/?:@&=+$,]|%[0-9A-Fa-f]{2})*"
)


# 2.4 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "seen"), STRIPPING)
def test_stripping_table(sent, seen):
    """spec 2.4: the table of required results."""
    stripped = address.strip_query(sent.removeprefix("?"))
    assert (f"?{stripped}" if stripped else "") == seen


@pytest.mark.parametrize(("sent", "seen"), STRIPPING)
def test_stripping_table_in_a_request_target(sent, seen):
    """spec 2.4: the table of required results, for a relayed request."""
    asked = address.parse_http_target(f"/hyco/x{sent}")
    assert address.request_target(asked.raw_path, asked.user_query, raw=False) == f"/hyco/x{seen}"


@pytest.mark.parametrize("name", ["sb-hc-id", "SB-HC-ID", "Sb-Hc-Anything", "%73b-hc-id", "sb%2Dhc%2Did", "sb-hc-"])
def test_stripping_decodes_the_name(name):
    """spec 2.4: the decoded name counts, in any case."""
    assert address.strip_query(f"a=1&{name}=2&b") == "a=1&b"


@given(strategies.raw_queries)
def test_stripping_leaves_the_rest_byte_for_byte(query):
    """spec 2.4: every other piece stays as it was, in order, and stripping twice changes nothing."""
    stripped = address.strip_query(query)
    kept = [
        piece
        for piece in query.split("&")
        if "=" not in piece or not unquote_plus(piece.split("=")[0]).lower().startswith("sb-hc-")
    ]
    assert stripped == "&".join(kept)
    assert address.strip_query(stripped) == stripped


# 2.1 - 2.3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_actions(action, change):
    """spec 2.2: the four actions, compared without regard to case."""
    parsed = parse_target(f"/$hc/hyco?sb-hc-action={change(action.value)}&sb-hc-rid=x")
    assert parsed.action is action


@pytest.mark.parametrize(
    "target", ["/$hc/hyco", "/$hc/hyco?", "/$hc/hyco?a=b", "/$hc/hyco?sb-hc-token=t", "/$hc/a?sb-hc-action"]
)
def test_missing_action_means_connect(target):
    """spec 2.3: the .NET tests dial without sb-hc-action."""
    assert parse_target(target).action is Action.CONNECT


@pytest.mark.parametrize("action", ["", "create", "listen2", "connect%20", "\u0130"])
def test_unknown_action(action):
    """spec 12: an unknown action is answered 400."""
    with pytest.raises(RemoteProtocolError, match="action") as caught:
        parse_target(f"/$hc/hyco?sb-hc-action={action}")
    assert caught.value.http_status == 400


@pytest.mark.parametrize("prefix", ["/$hc/", "/%24hc/", "wss://relay.example:9443/$hc/", "http://h/%24hc/", "/$HC/"])
def test_prefix(prefix):
    """spec 2.1: $hc arrives unescaped; %24hc is accepted as well, and absolute-form targets."""
    target = prefix + "hyco/x?sb-hc-action=listen"
    assert address.is_hybrid_target(target)
    assert parse_target(target).path == "hyco/x"


@pytest.mark.parametrize(
    "target", ["/hyco", "/", "*", "/$hcx/a", "/a/$hc/b", "/%24%68c/a", "http://h/a?/$hc/", "/?/$hc/a", "relay:443", ""]
)
def test_other_targets_are_not_hybrid(target):
    """spec 9.1: anything on a path without /$hc/ is an HTTP request."""
    assert not address.is_hybrid_target(target)
    with pytest.raises(RemoteProtocolError) as caught:
        parse_target(target)
    assert caught.value.http_status == 400


def test_without_an_entity():
    """spec 3: /$hc alone is a hybrid address that names no entity."""
    assert address.is_hybrid_target("/$hc")
    assert address.is_hybrid_target("/$hc?a")
    assert parse_target("/$hc?a").path == ""
    assert list(address.entity_candidates(parse_target("/$hc/").path)) == []


@pytest.mark.parametrize("blank", ["+", "%20"])
def test_token_is_form_decoded(blank):
    """spec 2.2: .NET tests write a blank as +, Node and Python as %20; %252B is the token's own %2B."""
    sent = f"SharedAccessSignature{blank}sr%3Dhttp%253A%252F%252Fh%252F%26sig%3Da%252Bb%253D%26se%3D1%26skn%3Dn"
    parsed = parse_target(f"/$hc/hyco?x=1&sb-hc-token={sent}&y=2")
    assert parsed.token == "SharedAccessSignature sr=http%3A%2F%2Fh%2F&sig=a%2Bb%3D&se=1&skn=n"
    assert parsed.user_query == "x=1&y=2"


@pytest.mark.parametrize("name", ["sb-hc-id", "SB-HC-ID", "sb-hc-Id", "%73b-hc-id"])
def test_parameter_names_without_regard_to_case(name):
    """spec 2.2: names are compared without regard to case, values keep theirs."""
    assert parse_target(f"/$hc/hyco?{name}=AbC").id == "AbC"


def test_reject_parameters():
    """spec 7.3: status and description of a rejection, + for a blank."""
    target = "/$hc/a?sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=401&sb-hc-statusDescription=No+entry%21"
    parsed = parse_target(target)
    assert (parsed.status_code, parsed.status_description) == (401, "No entry!")
    assert (parsed.rendezvous, parsed.user_query) == ("r", "")
    assert parse_target(target.lower()).status_code == 401


@pytest.mark.parametrize(
    "query",
    [
        "sb-hc-action=accept",
        "sb-hc-action=request&sb-hc-id=x",
        "sb-hc-action=accept&sb-hc-rid=",
        "sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=x",
        "sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=-1",
        "sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=",
        "sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=\u0664\u0660\u0660",
        "sb-hc-action=accept&sb-hc-rid=r&sb-hc-statusCode=" + "4" * 5_000,
    ],
)
def test_malformed_rendezvous(query):
    """spec 12: a malformed rendezvous URL is answered 400."""
    with pytest.raises(RemoteProtocolError) as caught:
        parse_target("/$hc/hyco?" + query)
    assert caught.value.http_status == 400


def test_sas_key_parameters_are_never_acted_on():
    """spec 2.2: sb-hc-sas-key-name and sb-hc-sas-key are stripped and otherwise without effect."""
    parsed = parse_target("/$hc/hyco?sb-hc-sas-key-name=n&sb-hc-sas-key=k&a=1")
    assert parsed == parse_target("/$hc/hyco?a=1")


def test_of_a_repeated_parameter_the_first_counts():
    """spec 2.2: names differing in case are the same parameter."""
    parsed = parse_target("/$hc/hyco?sb-hc-id=1&SB-HC-ID=2&sb-hc-action=listen&sb-hc-action=connect")
    assert (parsed.id, parsed.action) == ("1", Action.LISTEN)


def test_empty_values_count_as_absent():
    """spec 5.1: an empty token is no token."""
    parsed = parse_target("/$hc/hyco?sb-hc-id=&sb-hc-token=")
    assert (parsed.id, parsed.token) == (None, None)


def test_question_mark_of_node():
    """spec 2.3: ?null&sb-hc-token=... still parses, ?null?sb-hc-token=... carries no token."""
    assert parse_target("/$hc/hyco?null&sb-hc-token=t").token == "t"
    assert parse_target("/$hc/hyco?null?sb-hc-token=t").token is None


@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        ("hyco", "hyco"),
        ("hyco/", "hyco"),
        ("/hyco//", "hyco"),
        ("a1.linux/suffix/x%20y", "a1.linux/suffix/x y"),
        ("hyco/%c3%a4", "hyco/\xe4"),
        ("hyco/a+b", "hyco/a+b"),
        ("hyco%2Fx", "hyco/x"),
        ("hyco/%ff", "hyco/\\xff"),
        ("hyco/\ud800", "hyco/?"),
        ("hyco/%", "hyco/%"),
        ("", ""),
    ],
)
def test_paths(raw_path, path):
    """spec 3: the path is compared percent-decoded and shown as it was sent."""
    parsed = parse_target(f"/$hc/{raw_path}?q")
    assert (parsed.raw_path, parsed.path) == (raw_path, path)


def test_wire_sample():
    """spec 21: the connect of the samples."""
    parsed = parse_target(f"/$hc/a2/suffix/x%20y?foo=bar&sb-hc-action=connect&sb-hc-id={GUID}")
    assert parsed == address.Address(Action.CONNECT, "a2/suffix/x y", "a2/suffix/x%20y", "foo=bar", GUID)


# Relayed requests ---------------------------------------------------------------------------------------------------


def relayed(target, *, raw=False):
    asked = address.parse_http_target(target)
    return address.request_target(asked.raw_path, asked.user_query, raw=raw)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("/hyco", "/hyco"),
        ("/hyco/", "/hyco/"),
        ("/hyco/extra%20Path/extra%20%20Path2", "/hyco/extra Path/extra  Path2"),
        ("/hyco/a+b%2Bc", "/hyco/a+b%2Bc"),
        ("/hyco/%2f%2F%c3%A4%25%3f%23", "/hyco/%2f%2F%c3%A4%25%3f%23"),
        ("/hyco/%2520", "/hyco/%2520"),
        ("/hyco/%", "/hyco/%"),
        ("/hyco/a?b=%20&c=+", "/hyco/a?b=%20&c=+"),
        ("/hyco%20?a%20b", "/hyco ?a%20b"),
        ("/hyco/./../x", "/hyco/./../x"),
        ("/hyco//x", "/hyco//x"),
        ("/hyco?a?b", "/hyco?a?b"),
    ],
)
def test_escapes_in_a_request_target(sent, seen):
    """spec 9.4: %20 in the path becomes a blank, every other escape and the whole query stay as sent."""
    assert relayed(sent) == seen
    assert relayed(sent, raw=True) == sent


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("//hyco/x", "/hyco/x"),
        ("///hyco", "/hyco"),
        ("/", "/"),
        ("", "/"),
        ("*", "/"),
        ("?a", "/?a"),
        ("https://relay.example/hyco/x?a", "/hyco/x?a"),
        ("HTTP://relay.example:8080//hyco", "/hyco"),
        ("http://relay.example", "/"),
        ("http://relay.example?a", "/?a"),
    ],
)
def test_a_request_target_is_in_origin_form(sent, seen):
    """spec 9.3: origin form with the entity path, starting with one slash."""
    assert relayed(sent) == relayed(sent, raw=True) == seen


def test_what_a_request_asks_for():
    """spec 2.1: a relayed request may carry a token and an id in its query."""
    asked = address.parse_http_target(
        f"//hyco/%c3%a4%20/?a=1&sb-hc-id={GUID}&SB-hc-token=a%252Bb+c&sb-hc-action=listen&&b"
    )
    assert asked == address.HttpTarget("hyco/\xe4 ", "hyco/%c3%a4%20/", "a=1&&b", GUID, "a%2Bb c")
    assert "%2Bb" not in repr(asked)
    assert address.parse_http_target("/hyco?sb-hc-id=1&sb-hc-id=2&sb-hc-token=").id == "1"
    assert address.parse_http_target("/hyco?sb-hc-token=").token is None


def test_asterisk_names_no_entity():
    """RFC 9112 3.2.4: the asterisk is about the server itself."""
    assert address.parse_http_target("*") == address.HttpTarget("", "", "", None, None)


@given(path=strategies.unescaped_paths, query=strategies.raw_queries)
def test_a_request_reaches_the_path_that_was_meant(path, query):
    """spec 9.4: whatever is handed over unescaped, it names the same resource, and its rendezvous can be dialled."""
    asked = address.parse_http_target(f"/{quote(path, safe='/')}?{query}")
    assert asked.path == path.strip("/")
    shown, _, shown_query = address.request_target(asked.raw_path, asked.user_query, raw=False).partition("?")
    assert address.decode_path(shown) == path.strip("/")
    assert "%20" not in shown
    assert shown_query == address.strip_query(query)
    assert STRICT.fullmatch(build(raw_path=asked.raw_path, user_query=asked.user_query))


@given(strategies.hostile_text)
def test_any_text_is_an_http_target(text):
    """spec 9.1: what a sender asks for is never an error of the address; it may name nothing."""
    for target in (text, "/" + text, "/a?" + text):
        asked = address.parse_http_target(target)
        shown = address.request_target(asked.raw_path, asked.user_query, raw=True)
        assert shown.startswith("/")
        assert not shown.startswith("//")


def test_nothing_secret_in_the_repr():
    """spec 5.4: the rendezvous address is itself the secret; it and the token stay out of logs."""
    text = repr(parse_target("/$hc/a?sb-hc-action=accept&sb-hc-rid=s3cret&sb-hc-token=t0ken"))
    assert "s3cret" not in text
    assert "t0ken" not in text


# 3 ------------------------------------------------------------------------------------------------------------------


def test_candidates_longest_first():
    """spec 3: the longest prefix on segment borders; the rest is the suffix."""
    assert list(address.entity_candidates("a/b.c/d")) == [("a/b.c/d", ""), ("a/b.c", "d"), ("a", "b.c/d")]
    assert list(address.entity_candidates("a")) == [("a", "")]
    assert list(address.entity_candidates("a//b")) == [("a//b", ""), ("a/", "b"), ("a", "/b")]


def test_candidates_of_a_hostile_path():
    """failures: thousands of segments cost no more than an entity's name can have."""
    start = time.process_time()
    found = list(address.entity_candidates("/".join("a" * 32_000)))
    assert max(len(entity) for entity, _ in found) <= 260
    assert len(found) == 130
    assert time.process_time() - start < 1


@given(strategies.entity_paths, strategies.unescaped_paths)
def test_the_entity_is_among_the_candidates(entity, suffix):
    """spec 3: whatever follows the entity, it is found with the rest as suffix."""
    assert (entity, suffix) in set(address.entity_candidates(f"{entity}/{suffix}"))


# 7.1 ----------------------------------------------------------------------------------------------------------------


def build(raw_path="hyco", user_query="", base_url="wss://relay.example:9443", action=Action.ACCEPT, rid="secret"):
    return address.build_rendezvous(base_url, raw_path, user_query, action, f"{GUID}_G0", rid)


def test_rendezvous_form():
    """spec 7.1: /$hc/ + entity + suffix, the sender's query, then action, id and secret."""
    assert build("a2/suffix/x%20y", "foo=bar") == (
        f"wss://relay.example:9443/$hc/a2/suffix/x%20y?foo=bar&sb-hc-action=accept&sb-hc-id={GUID}_G0&sb-hc-rid=secret"
    )
    assert build(action=Action.REQUEST) == (
        f"wss://relay.example:9443/$hc/hyco?sb-hc-action=request&sb-hc-id={GUID}_G0&sb-hc-rid=secret"
    )


@pytest.mark.parametrize(
    ("base_url", "start"),
    [
        ("ws://h", "ws://h/$hc/"),
        ("wss://h:1/", "wss://h:1/$hc/"),
        ("https://[::1]:1", "wss://[::1]:1/$hc/"),
        ("HTTP://h", "ws://h/$hc/"),
    ],
)
def test_rendezvous_scheme_and_host(base_url, start):
    """spec 7.1: scheme, host and port are those the listener itself used."""
    assert build(base_url=base_url).startswith(start)


@pytest.mark.parametrize("base_url", ["relay.example", "ftp://h", "wss://", "wss://h/path", "wss://h?q"])
def test_other_base_urls(base_url):
    """spec 7.1: a base URL is scheme, host and port."""
    with pytest.raises(LocalProtocolError):
        build(base_url=base_url)


@pytest.mark.parametrize("rid", ["", "a=b", "a%3Db", "a b", "a&b", "\xe4", "a\n"])
def test_own_values_never_hold_an_equals_sign(rid):
    """spec 7.1: own parameters must not contain '=' even percent-encoded; Java splits after decoding."""
    with pytest.raises(LocalProtocolError):
        build(rid=rid)


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a b", "a%20b"),
        ('"', "%22"),
        ("|<>{}^`\\", "%7C%3C%3E%7B%7D%5E%60%5C"),
        ("[]", "%5B%5D"),
        ("#", "%23"),
        ("\xe4\u20ac", "%C3%A4%E2%82%AC"),
        ("%2f%3A%zz%", "%2f%3A%25zz%25"),
        ("!$&'()*+,;=:@-._~/", "!$&'()*+,;=:@-._~/"),
        ("\r\n\0\ud800", "%0D%0A%00%3F"),
    ],
)
def test_raw_characters_are_escaped(raw, escaped):
    """spec 7.1: strict RFC 2396 text; what a sender sent raw is re-escaped, its own escapes keep their case."""
    built = build(raw_path=raw, user_query=raw)
    assert built.startswith(f"wss://relay.example:9443/$hc/{escaped}?{escaped}&sb-hc-action=")
    assert STRICT.fullmatch(built)


def test_question_mark_in_a_path_is_escaped():
    """spec 7.1: the address has one '?' where its query begins; a second one belongs to the query."""
    assert build(raw_path="a?b", user_query="c?d").split("?") == [
        "wss://relay.example:9443/$hc/a%3Fb",
        "c",
        f"d&sb-hc-action=accept&sb-hc-id={GUID}_G0&sb-hc-rid=secret",
    ]


def own_pieces(built):
    return [piece for piece in built.partition("?")[2].split("&") if piece.startswith("sb-hc-")]


@given(path=st.text(max_size=20) | strategies.unescaped_paths, query=strategies.raw_queries | st.text(max_size=20))
def test_any_sender_makes_an_address_that_java_takes(path, query):
    """spec 7.1: strict text, contains '?', own names lower-case, and stripping gives the sender's query back."""
    stripped = address.strip_query(query)
    built = build(raw_path=path, user_query=stripped)
    assert STRICT.fullmatch(built)
    assert own_pieces(built)[-3:] == ["sb-hc-action=accept", f"sb-hc-id={GUID}_G0", "sb-hc-rid=secret"]
    assert "=" not in unquote(built.rpartition("&")[2].partition("=")[2])
    if all("!" <= character <= "~" and character not in '"<>[]\\^`{|}#%' for character in stripped):
        assert address.strip_query(built.partition("?")[2]) == stripped


@given(path=strategies.unescaped_paths, query=strategies.raw_queries)
def test_build_then_parse(path, query):
    """spec 7.1: the address we mint comes back as the same path, query and secret."""
    stripped = address.strip_query(query)
    raw_path = quote(path)
    built = build(raw_path=raw_path, user_query=stripped)
    parsed = parse_target(built[len("wss://relay.example:9443") :])
    assert parsed == parse_target(built)
    assert (parsed.action, parsed.id, parsed.rendezvous) == (Action.ACCEPT, f"{GUID}_G0", "secret")
    assert (parsed.raw_path, parsed.path) == (raw_path, path.strip("/"))
    assert unquote(parsed.user_query) == unquote(stripped)


@given(code=st.integers(400, 599), text=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_reject_url_then_parse(code, text):
    """spec 7.3: status and description come back as they went in."""
    parsed = parse_target(address.build_reject_url(build(), code, text))
    assert (parsed.status_code, parsed.status_description, parsed.rendezvous) == (code, text, "secret")


# The library's own URLs ---------------------------------------------------------------------------------------------


def test_listen_url():
    """spec 2.1: the listen form; the token is not in it."""
    assert address.build_listen_url("wss://h:1", "a1.linux/x y", id=GUID) == (
        f"wss://h:1/$hc/a1.linux/x%20y?sb-hc-action=listen&sb-hc-id={GUID}"
    )
    assert address.build_listen_url("ws://h", "/a/") == "ws://h/$hc/a?sb-hc-action=listen"


def test_connect_url():
    """spec 2.3: action and id come last, after a user query."""
    assert address.build_connect_url("wss://h", "a/100%", query="x=1&sb-hc-id=2&y", id=GUID) == (
        f"wss://h/$hc/a/100%25?x=1&y&sb-hc-action=connect&sb-hc-id={GUID}"
    )
    assert address.build_connect_url("wss://h", "a", query="sb-hc-id=1") == "wss://h/$hc/a?sb-hc-action=connect"


@given(path=strategies.unescaped_paths, query=strategies.raw_queries)
def test_library_urls_then_parse(path, query):
    """spec 2.1: a relay reads our own URLs back as what was meant."""
    listen = parse_target(address.build_listen_url("wss://h", path, id=GUID))
    assert (listen.action, listen.path, listen.id, listen.user_query) == (Action.LISTEN, path.strip("/"), GUID, "")
    url = address.build_connect_url("wss://h", path, query=query, id=GUID)
    connect = parse_target(url)
    assert (connect.action, connect.path, connect.id) == (Action.CONNECT, path.strip("/"), GUID)
    assert unquote(connect.user_query) == unquote(address.strip_query(query))
    assert STRICT.fullmatch(url)
    assert urlsplit(url).netloc == "h"


@given(strategies.hostile_text)
def test_no_input_raises_anything_undocumented(text):
    """spec 2: any target is an address or a 400."""
    for target in (text, "/$hc/" + text, "/$hc/a?" + text, "/$hc/a?sb-hc-token=" + quote_plus(text, errors="replace")):
        address.is_hybrid_target(target)
        try:
            parsed = parse_target(target)
        except RemoteProtocolError as error:
            assert error.http_status == 400  # noqa: PT017
            continue
        assert STRICT.fullmatch(build(raw_path=parsed.raw_path, user_query=parsed.user_query))
        parsed.path.encode("utf-8", "surrogatepass")
