"""How a client proves who it is: a rule's key, a ready token, somebody else's token source, or nothing at all.

A token travels in the ``ServiceBusAuthorization`` header and, renewed, on the control channel; never in a URL.
"""

from __future__ import annotations

import base64
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..errors import AuthorizationFailed, ConfigError
from ..wire.connection_string import ConnectionString
from ..wire.limits import TOKEN_LIFETIME
from ..wire.sas import looks_like_jwt, make_token, parse_token

__all__ = ["AUTHORIZATION_HEADER", "Credential", "TokenProvider", "TokenSource", "token_source"]

AUTHORIZATION_HEADER: Final = "ServiceBusAuthorization"

TokenProvider: TypeAlias = Callable[[str], str | Awaitable[str]]
"""Gets the audience (``http://HOST/ENTITY/``) and returns a token: a shared access signature or a JWT. May be async. It
is called again before the token runs out, which is read from the token itself."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One token and when it runs out. ``expires_unix`` is None if that cannot be read from the token."""

    text: str = field(repr=False)
    expires_unix: float | None


class TokenSource:
    """Gets tokens for one audience.

    Attributes:
      is_renewable: a later token may differ from this one. A static token is sent as it is, and never again.
    """

    def __init__(self, provide: TokenProvider, audience: str, *, is_renewable: bool) -> None:
        self._provide = provide
        self._audience = audience
        self.is_renewable = is_renewable

    async def fetch(self) -> Credential:
        """Get a token. Blocks as long as a token provider does.

        Raises:
          ConfigError: the provider returned something else than a text.
          whatever the provider raises.
        """
        found = self._provide(self._audience)
        return _credential(await found if inspect.isawaitable(found) else found)

    def fetch_nowait(self) -> Credential:
        """Get a token where nothing can be awaited, as in a client for threads. Raises as `fetch`."""
        found = self._provide(self._audience)
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise ConfigError("the token provider must be a plain function here, not an async one", key="token")
        return _credential(found)


def _credential(text: object) -> Credential:
    if not isinstance(text, str) or not text:
        raise ConfigError("the token provider must return a token as text", key="token")
    if not text.isascii() or not text.isprintable():
        raise ConfigError("the token holds characters that cannot stand in a header", key="token")
    return Credential(text, _expiry_of(text))


def _expiry_of(text: str) -> float | None:
    try:
        return float(parse_token(text).expiry_unix)
    except AuthorizationFailed:
        pass
    if not looks_like_jwt(text):
        return None
    # Read for its clock only; who checks the signature is the relay.
    try:
        payload = text.rpartition(" ")[2].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        return None


def token_source(
    settings: ConnectionString,
    token: str | TokenProvider | None,
    *,
    clock: Callable[[], float] = time.time,
) -> TokenSource | None:
    """Choose where tokens come from; None for an anonymous client.

    Args:
      settings: names the audience; its key or signature counts if ``token`` is None.
      token: a static token or a provider; goes before the connection string.
      clock: wall clock in seconds.
    """
    audience = settings.audience
    if callable(token):
        return TokenSource(token, audience, is_renewable=True)
    static = token if token is not None else settings.signature
    if static is not None:
        return TokenSource(lambda _: static, audience, is_renewable=False)
    key_name, key = settings.key_name, settings.key
    if key_name is None or key is None:
        return None

    def sign(audience: str) -> str:
        return make_token(audience, key_name, key, int(clock() + TOKEN_LIFETIME))

    return TokenSource(sign, audience, is_renewable=True)
