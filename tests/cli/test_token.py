"""``relaycore token``: tokens are made from keys that came in quietly, and explained without their signature."""

from __future__ import annotations

import time
import urllib.parse

import pytest

from relaycore.cli.exits import ExitCode
from relaycore.cli.token import describe_expiry, parse_span
from relaycore.wire.sas import make_token, parse_token, signature_matches

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
NAMESPACE = f"Endpoint=sb://Relay.example:9443/;SharedAccessKeyName=root;SharedAccessKey={KEY}"
ENTITY = f"{NAMESPACE};EntityPath=orders"


@pytest.fixture
def relay(monkeypatch):
    monkeypatch.setenv("RELAYCORE_CONNECTION_STRING", NAMESPACE)


def resource_of(output: str) -> str:
    token = parse_token(output.strip())
    assert signature_matches(token, [KEY])
    assert token.rule_name == "root"
    return urllib.parse.unquote(token.resource)


def test_a_token_for_the_namespace(invoke, relay):
    """spec 5.3: scheme http, port dropped, trailing slash, as .NET writes it."""
    result = invoke("token", "make")
    assert resource_of(result.stdout) == "http://relay.example/"
    assert abs(parse_token(result.stdout.strip()).expiry_unix - time.time() - 3600) < 60


@pytest.mark.parametrize(
    ("args", "resource"),
    [
        (("--entity", "orders"), "http://relay.example/orders/"),
        (("--entity", "/dept/site 42/"), "http://relay.example/dept/site%2042/"),
        (("--resource", "sb://relay.example:9443/orders/sub"), "sb://relay.example:9443/orders/sub"),
    ],
)
def test_a_token_for_something_narrower(invoke, relay, args, resource):
    assert resource_of(invoke("token", "make", *args).stdout) == resource


def test_the_path_of_the_connection_string_narrows_too(invoke, tmp_path):
    (tmp_path / "cs").write_text(ENTITY + "\n")
    assert (
        resource_of(invoke("token", "make", "--connection-string-file", "cs").stdout) == "http://relay.example/orders/"
    )


def test_the_connection_string_may_come_from_standard_input(invoke):
    for option in (("--connection-string", "-"), ("--connection-string-file", "-")):
        assert resource_of(invoke("token", "make", *option, input=NAMESPACE).stdout) == "http://relay.example/"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12H", 43_200), ("30d", 2_592_000)]
)
def test_spans(invoke, relay, text, seconds):
    assert parse_span(text) == seconds
    token = parse_token(invoke("token", "make", "--ttl", text).stdout.strip())
    assert abs(token.expiry_unix - time.time() - seconds) < 60


@pytest.mark.parametrize("text", ["", "0", "-5", "1w", "h", "1.5h"])
def test_a_span_that_is_none(invoke, relay, text):
    result = invoke("token", "make", f"--ttl={text}")
    assert result.exit_code == ExitCode.USAGE
    assert "such as 90s" in result.stderr


def test_without_a_connection_string_it_says_where_to_put_one(invoke):
    result = invoke("token", "make")
    assert result.exit_code == ExitCode.CONFIG
    assert "RELAYCORE_CONNECTION_STRING" in result.stderr


def test_a_key_on_the_command_line_is_refused_and_not_repeated(invoke):
    result = invoke("token", "make", "--connection-string", NAMESPACE)
    assert result.exit_code == ExitCode.USAGE
    assert "ps" in result.stderr
    assert KEY not in result.output


def test_other_misuse(invoke, relay, tmp_path):
    assert invoke("token", "make", "--entity", "a", "--resource", "b").exit_code == ExitCode.USAGE
    (tmp_path / "cs").write_text("Endpoint=sb://h/;SharedAccessSignature=SharedAccessSignature sr=a&sig=b&se=1&skn=c")
    result = invoke("token", "make", "--connection-string-file", "cs")
    assert result.exit_code == ExitCode.CONFIG
    assert "no key to sign with" in result.stderr


# explain -------------------------------------------------------------------------------------------------------------


def token_for(seconds: float, key: str = KEY) -> str:
    return make_token("http://relay.example/orders/", "root", key, int(time.time() + seconds))


def test_a_good_token_is_explained(invoke, relay):
    token = token_for(7_300)
    result = invoke("token", "explain", input=token)
    assert result.exit_code == 0
    assert "resource   http://relay.example/orders/\n" in result.stdout
    assert "rule       root\n" in result.stdout
    assert "(in 2 h " in result.stdout
    assert "signature  made with the key of root\n" in result.stdout


@pytest.mark.parametrize(
    ("life", "key", "code", "said"),
    [
        (-9_930, KEY, ExitCode.AUTHORIZATION, "2 h 45 min ago)"),
        (-60, KEY, ExitCode.OK, "relays allow five minutes"),
        (600, "other", ExitCode.AUTHORIZATION, "not made with the key of root"),
    ],
)
def test_a_token_that_is_no_good_is_told_apart(invoke, relay, life, key, code, said):
    result = invoke("token", "explain", input=token_for(life, key))
    assert said in result.stdout
    assert result.exit_code == code


def test_a_token_of_another_rule_is_named(invoke, relay):
    result = invoke("token", "explain", input=make_token("http://h/", "rule2", "other", 2_000_000_000))
    assert "names the rule rule2" in result.stdout


def test_without_a_key_the_signature_is_not_judged(invoke, monkeypatch, tmp_path):
    monkeypatch.setenv("RELAYCORE_TOKEN", token_for(60))
    assert "not checked" in invoke("token", "explain").stdout
    (tmp_path / "token").write_text(token_for(60))
    assert "not checked" in invoke("token", "explain", "--token-file", "token").stdout


def test_the_signature_is_never_shown(invoke, relay):
    for token in (
        token_for(60),
        token_for(-9_999),
        token_for(60, key="other"),
        token_for(60).replace("sr=", "xx="),
        "junk",
    ):
        result = invoke("token", "explain", input=token)
        signature = urllib.parse.unquote(token.partition("sig=")[2].partition("&")[0])
        for text in (signature, urllib.parse.quote(signature, safe=""), KEY):
            assert not text or text not in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eyJhbGciOiJub25lIn0.eyJhIjoxfQ.c2ln", "JWT"),
        ("Bearer eyJhbGciOiJub25lIn0.eyJhIjoxfQ.c2ln", "JWT"),
        ("SharedAccessSignature sr=a&se=1&skn=c", "no sig"),
        ("nothing of that kind", "not a shared access signature"),
        ("", "holds no token"),
        ("x" * 70_000, "too long"),
    ],
)
def test_something_else_is_named(invoke, text, said):
    result = invoke("token", "explain", input=text)
    assert result.exit_code == ExitCode.CONFIG
    assert said in result.stderr


def test_two_things_cannot_come_from_standard_input(invoke):
    result = invoke("token", "explain", "--connection-string", "-", input="x")
    assert result.exit_code == ExitCode.USAGE


def test_expiry_in_words():
    assert describe_expiry(1_767_225_600, 1_767_225_600 - 90_061).endswith("(in 1 d 1 h)")
    assert describe_expiry(1_767_225_600, 1_767_225_600).endswith("(0 s ago; relays allow five minutes)")
    assert "s after 1970" in describe_expiry(999_999_999_999, 0)
