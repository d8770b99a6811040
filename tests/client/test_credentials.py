"""Where tokens come from, and what is known about them."""

from __future__ import annotations

import base64
import json

import pytest
import trio

from relaycore.client.credentials import Credential, token_source
from relaycore.errors import ConfigError
from relaycore.wire.connection_string import parse_connection_string
from relaycore.wire.sas import make_token, parse_token, signature_matches

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
WITH_KEY = parse_connection_string(
    f"Endpoint=sb://relay.example:9443/;SharedAccessKeyName=listen;SharedAccessKey={KEY};EntityPath=a/b"
)
WITHOUT = parse_connection_string("Endpoint=sb://relay.example/;EntityPath=orders")


def jwt(**claims) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


async def test_a_key_makes_tokens_of_an_hour():
    """spec 5.3, 14: .NET's form of the resource (http, no port, slash at the end), 60 minutes."""
    source = token_source(WITH_KEY, None, clock=lambda: 1_000_000.0)
    assert source is not None
    assert source.is_renewable
    credential = await source.fetch()
    token = parse_token(credential.text)
    assert token.resource == "http%3A%2F%2Frelay.example%2Fa%2Fb%2F"
    assert (token.rule_name, token.expiry_unix, credential.expires_unix) == ("listen", 1_003_600, 1_003_600.0)
    assert signature_matches(token, [KEY])


async def test_a_static_token_is_sent_as_it_is():
    """spec 5.6: a static token string is never renewed."""
    text = make_token("http://relay.example/", "rule", KEY, 1_767_225_600)
    given = parse_connection_string(f"Endpoint=sb://relay.example/;SharedAccessSignature={text};EntityPath=orders")
    for source in (token_source(given, None), token_source(WITH_KEY, text)):
        assert source is not None
        assert not source.is_renewable
        assert await source.fetch() == Credential(text, 1_767_225_600.0)


async def test_providers_plain_and_async():
    audiences = []

    def plain(audience: str) -> str:
        audiences.append(audience)
        return jwt(exp=123)

    async def slow(audience: str) -> str:
        await trio.lowlevel.checkpoint()
        return plain(audience)

    for provider in (plain, slow):
        source = token_source(WITH_KEY, provider)
        assert source is not None
        assert source.is_renewable
        assert (await source.fetch()).expires_unix == 123
    assert audiences == ["http://relay.example/a/b/"] * 2


@pytest.mark.parametrize("text", ["opaque", jwt(sub="nobody"), jwt(exp="soon"), "a.b.c", "SharedAccessSignature sr=x"])
async def test_an_expiry_that_cannot_be_read_is_none(text: str):
    source = token_source(WITHOUT, text)
    assert source is not None
    assert (await source.fetch()).expires_unix is None


async def test_a_bearer_jwt_has_an_expiry_too():
    """spec 5.5: bare, or behind the word Bearer."""
    source = token_source(WITHOUT, f"Bearer {jwt(exp=77.5)}")
    assert source is not None
    assert (await source.fetch()).expires_unix == 77.5


@pytest.mark.parametrize("bad", ["", None, 5, "token\r\nHost: evil", "töken"])
async def test_what_a_provider_may_not_return(bad: object):
    source = token_source(WITHOUT, lambda _: bad)  # type: ignore[arg-type,return-value]
    assert source is not None
    with pytest.raises(ConfigError):
        await source.fetch()


def test_without_anything_a_client_is_anonymous():
    """spec 5.7: a sender may come without a token."""
    assert token_source(WITHOUT, None) is None


def test_secrets_stay_out_of_sight():
    assert "secret" not in repr(Credential("secret", None))
