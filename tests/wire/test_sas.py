"""Shared access signatures: every client's spelling is read, and nothing is signed but what stands in the token."""

from __future__ import annotations

import contextlib
import time
from urllib.parse import quote, unquote_plus

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore.errors import AuthorizationFailed
from relaycore.vocab import RefusalReason
from relaycore.wire import sas

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
EXPIRY = 1_767_225_600

VECTORS = [
    ("http%3A%2F%2Flocalhost%2Fauthenticated%2F", "gy6PowuBl62F+gzPT1Xk5J0+SoI3W3L1HEeOoKvDDfA="),
    ("http%3a%2f%2flocalhost%2fauthenticated%2f", "bMrdtpdesr4J1M4d++uMzTtL0lFpx5x2G5Q+DK6qDtM="),
    ("sb%3A%2F%2Flocalhost%3A9443%2Fauthenticated", "9us1j1+xKK5tgl2WmCoQIf78O2kiHTa+uufWtsVHN80="),
    ("sb%3A%2F%2Flocalhost%3A9443", "gOqL3f5ViVN2xhfDMErLHdwz7LMqno5JaaJG4coftxs="),
    ("http%3A%2F%2Flocalhost%3A443%2Fa2", "uHX30V4dFs5YpfBr00lyP+C94ZH7n6vankBdIpDUz6s="),
]


def token_text(sr="http%3A%2F%2Flocalhost%2F", sig="abc%3D", se=str(EXPIRY), skn="rule"):
    return f"SharedAccessSignature sr={sr}&sig={sig}&se={se}&skn={skn}"


@pytest.mark.parametrize(("resource", "signature"), VECTORS)
def test_test_vectors(resource, signature):
    """spec 5.2: HMAC-SHA256 over sr, LF, se as they stand, keyed with the UTF-8 bytes of the key text."""
    assert sas.sign(resource, EXPIRY, KEY) == signature
    token = sas.parse_token(token_text(sr=resource, sig=quote(signature, safe="")))
    assert token.resource == resource
    assert token.signature == signature
    assert sas.signature_matches(token, [KEY])


def test_make_token_writes_the_first_vector():
    """spec 5.2: our own tokens escape as .NET does, upper-case hex."""
    resource, signature = VECTORS[0]
    text = sas.make_token("http://localhost/authenticated/", "My Rule", KEY, EXPIRY)
    sig = quote(signature, safe="")
    assert text == f"SharedAccessSignature sr={resource}&sig={sig}&se={EXPIRY}&skn=My+Rule"


def test_expiry_is_signed_as_it_stands():
    """spec 5.2: se is part of the signed text as it stands, so a leading zero is not normalised away."""
    signature = sas.sign("r", f"0{EXPIRY}", KEY)
    token = sas.parse_token(token_text(sr="r", sig=quote(signature, safe=""), se=f"0{EXPIRY}"))
    assert token.expiry_unix == EXPIRY
    assert sas.signature_matches(token, [KEY])


def test_hex_case_of_the_resource_is_part_of_what_is_signed():
    """spec 5.2: never decode and re-encode sr; the two hex cases have two signatures."""
    assert sas.sign(VECTORS[0][0], EXPIRY, KEY) != sas.sign(VECTORS[1][0], EXPIRY, KEY)


@pytest.mark.parametrize("scheme", ["SharedAccessSignature", "sharedaccesssignature", "SHAREDACCESSSIGNATURE"])
def test_scheme_word_in_any_case(scheme):
    """spec 5.2: the scheme word in any case, then one blank."""
    assert sas.parse_token(f"{scheme} sr=r&sig=s&se=1&skn=n").rule_name == "n"


def test_fields_in_any_order():
    """spec 5.2: name=value pairs in any order; some documents put sig first."""
    token = sas.parse_token("SharedAccessSignature sig=s&skn=n&se=1&sr=r")
    assert (token.resource, token.signature, token.expiry_unix, token.rule_name) == ("r", "s", 1, "n")


def test_values_are_split_on_the_first_equals_sign_only():
    """spec 5.2: each pair is split on its first '=', so an unescaped signature survives."""
    assert sas.parse_token(token_text(sig="abc=")).signature == "abc="


@pytest.mark.parametrize("written", ["a%2Bb%2Fc%3D", "a%2bb%2fc%3d", "a+b/c=", "a b/c=", "a%20b/c="])
def test_signature_keeps_its_plus_signs(written):
    """spec 5.2: in sig a plus sign stays one, and a blank was one before one form-decoding too many."""
    assert sas.parse_token(token_text(sig=written)).signature == "a+b/c="


def test_token_from_a_query_decoded_once():
    """spec 2.2: the token's own %2B arrives as %252B in sb-hc-token and is %2B after one form-decoding."""
    signature = VECTORS[0][1]
    in_header = token_text(sr=VECTORS[0][0], sig=quote(signature, safe=""))
    assert sas.signature_matches(sas.parse_token(unquote_plus(quote(in_header, safe=""))), [KEY])
    assert sas.signature_matches(sas.parse_token(unquote_plus(in_header)), [KEY]) is False  # sr was decoded with it
    bare = token_text(sr="r", sig=quote(sas.sign("r", EXPIRY, KEY), safe=""))
    assert sas.signature_matches(sas.parse_token(unquote_plus(bare)), [KEY])


@pytest.mark.parametrize("written", ["My%20Rule", "My+Rule", "My Rule"])
def test_rule_name_form_encoded_or_raw(written):
    """spec 5.2: skn is form-encoded by .NET and Java, raw by Node."""
    assert sas.parse_token(token_text(skn=written)).rule_name == "My Rule"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SharedAccessSignature",
        "SharedAccessSignature ",
        "Bearer abc",
        "SharedAccessSignaturesr=r&sig=s&se=1&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=1",
        "SharedAccessSignature sr=&sig=s&se=1&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=1&skn=n&",
        "SharedAccessSignature sr=r&sr=r&sig=s&se=1&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=-1&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=1e9&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=1767225600.5&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=\u0661&skn=n",
        "SharedAccessSignature sr=r&sig=s&se=" + "9" * 5_000 + "&skn=n",
    ],
)
def test_malformed_tokens(text):
    """spec 12: a token that cannot be parsed is answered 401 MalformedToken."""
    with pytest.raises(AuthorizationFailed, match="MalformedToken: ") as caught:
        sas.parse_token(text)
    assert caught.value.http_status == 401
    assert caught.value.reason is RefusalReason.MALFORMED_TOKEN


def test_unknown_fields_are_ignored():
    """spec 5.2: only sr, sig, se and skn have a meaning."""
    assert sas.parse_token(token_text() + "&other=1").rule_name == "rule"


def test_secondary_key_counts_and_every_key_is_tried():
    """spec 5.2: the primary key is tried, then the secondary; timing does not tell which one fitted."""
    token = sas.parse_token(sas.make_token("http://h/", "n", KEY, 1))
    tried = []

    def keys():
        for key in (KEY, "other"):
            tried.append(key)
            yield key

    assert sas.signature_matches(token, keys())
    assert tried == [KEY, "other"]
    assert sas.signature_matches(token, ["other", KEY])
    assert not sas.signature_matches(token, ["other"])
    assert not sas.signature_matches(token, [])


def test_signatures_are_compared_in_constant_time(monkeypatch):
    """spec 5.2: the comparison is hmac.compare_digest, one call for each key."""
    calls = []
    real = sas.hmac.compare_digest
    monkeypatch.setattr(sas.hmac, "compare_digest", lambda a, b: calls.append((a, b)) or real(a, b))
    token = sas.parse_token(sas.make_token("http://h/", "n", KEY, 1))
    sas.signature_matches(token, ["x", "y", KEY])
    assert len(calls) == 3


def test_signature_outside_ascii_is_a_mismatch():
    """spec 5.2: a signature of any text is compared, never an error."""
    assert not sas.signature_matches(sas.parse_token(token_text(sig="%C3%A4\udc80")), [KEY])


@pytest.mark.parametrize(
    ("decoded", "segments"),
    [
        ("http://relay.example/hyco/", ("hyco",)),  # .NET listen, connect, management, tests over HTTP
        ("http://relay.example/", ()),  # .NET tests with a raw WebSocket; Node README
        ("sb://relay.example:9443/hyco", ("hyco",)),  # Java listen
        ("sb://relay.example:9443", ()),  # Java connect: the path is lost by a bug
        ("http://relay.example:443/hyco", ("hyco",)),  # Node from a WebSocket URI
        ("http://relay.example/hyco", ("hyco",)),  # Node from an https URI; Python sample
        ("http://RELAY.Example/Hyco", ("hyco",)),
        ("https://user:pw@relay.example:1/a.b/C/#x", ("a.b", "c")),
        ("relay.example:9443/hyco", ("hyco",)),
        ("//relay.example/hyco?x", ("hyco",)),
    ],
)
@pytest.mark.parametrize("lower", [False, True])
def test_resource_forms(decoded, segments, lower):
    """spec 5.3: what each client writes into sr; scheme, user info, port, query and fragment are dropped (5.4)."""
    sr = quote(decoded, safe="")
    assert sas.parse_resource(sr.lower() if lower else sr) == ("relay.example", segments)


def test_resource_of_the_java_http_tests():
    """spec 5.3: Java signs the whole request URL, blanks as %2520."""
    sr = "https%3A%2F%2Frelay.example%3A9443%2Fhyco%2Fextra%2520Path%2FextraPath2%3Fa%3Db%20c"
    assert sas.parse_resource(sr) == ("relay.example", ("hyco", "extra path", "extrapath2"))


def test_resource_with_an_ipv6_host():
    """spec 5.4: the port is dropped behind a bracketed address too."""
    assert sas.parse_resource("http%3A%2F%2F%5B%3A%3A1%5D%3A443%2Fa") == ("[::1]", ("a",))


@pytest.mark.parametrize("sr", ["%2Fhyco", "http%3A%2F%2F%2Fhyco", "http%3A%2F%2F%3A443%2F", "http%3A%2F%2Fuser%40%2F"])
def test_resource_without_a_host(sr):
    """spec 5.4: without a host the audience is wrong, whatever names the namespace has."""
    with pytest.raises(AuthorizationFailed, match="InvalidAudience") as caught:
        sas.parse_resource(sr)
    assert caught.value.reason is RefusalReason.INVALID_AUDIENCE


@pytest.mark.parametrize(
    ("text", "is_jwt"),
    [
        ("eyJhbGciOi.eyJhdWQi.c2lnbmF0dXJl", True),
        ("Bearer eyJhbGciOi.eyJhdWQi.c2ln-_", True),
        ("bearer  a.b.c", True),
        ("a.b", False),
        ("a.b.c.d", False),
        ("a..c", False),
        ("a.b.c=", False),
        (token_text(), False),
        ("", False),
    ],
)
def test_jwt_by_shape(text, is_jwt):
    """spec 5.5: three dot-separated base64url parts, bare or behind Bearer."""
    assert sas.looks_like_jwt(text) is is_jwt


def test_nothing_secret_in_the_repr():
    """spec 5: a token's text and signature stay out of logs."""
    token = sas.parse_token(sas.make_token("http://h/", "rule", KEY, 1))
    assert token.signature not in repr(token)
    assert token.raw not in repr(token)
    assert "rule" in repr(token)


@given(host=strategies.host_names, path=strategies.unescaped_paths, rule=strategies.rule_names, key=strategies.keys,
       expiry=st.integers(0, 10**11))  # fmt: skip
def test_made_tokens_verify(host, path, rule, key, expiry):
    """spec 5.2: make, parse, verify gives back what went in, and only that key fits."""
    token = sas.parse_token(sas.make_token(f"http://{host}/{quote(path)}/", rule, key, expiry))
    assert (token.rule_name, token.expiry_unix) == (rule, expiry)
    assert sas.signature_matches(token, [key])
    assert not sas.signature_matches(token, [key + "x"])
    parsed_host, segments = sas.parse_resource(token.resource)
    assert parsed_host == host
    assert "/".join(segments) == path.strip("/").casefold()


@given(strategies.hostile_text)
def test_no_input_raises_anything_undocumented(text):
    """spec 5.2: any text is a token, a resource, or an AuthorizationFailed."""
    for candidate in (text, "SharedAccessSignature " + text, token_text(sr=text, sig=text, skn=text)):
        try:
            token = sas.parse_token(candidate)
        except AuthorizationFailed:
            continue
        sas.signature_matches(token, [KEY])
    with contextlib.suppress(AuthorizationFailed):
        sas.parse_resource(text)
    sas.looks_like_jwt(text)


def test_hostile_lengths_cost_no_time():
    """failures: many fields or a long run of near misses must not burn seconds."""
    start = time.process_time()
    with pytest.raises(AuthorizationFailed):
        sas.parse_token("SharedAccessSignature " + "a=1&" * 20_000)
    assert not sas.looks_like_jwt("bearer" + " " * 60_000 + "a." * 30_000)
    sas.parse_resource("a%2F" * 20_000)
    assert time.process_time() - start < 2
