"""Shared access signatures: read, make and check them.

::

    SharedAccessSignature sr=<SR>&sig=<SIG>&se=<SE>&skn=<SKN>

``SIG`` is the Base64 of HMAC-SHA256 over ``SR`` + LF + ``SE``, keyed with the UTF-8 bytes of the key text. Clients
differ in the hex case of their escapes and in which characters they escape, so ``SR`` and ``SE`` are kept and signed
exactly as they stand in the token; nothing here decodes and re-encodes them.

Source: wire contract, section 5.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from ..errors import AuthorizationFailed
from ..vocab import RefusalReason

__all__ = ["Token", "looks_like_jwt", "make_token", "parse_resource", "parse_token", "sign", "signature_matches"]

SCHEME_WORD: Final = "SharedAccessSignature"

_SCHEME_WORD = re.compile(SCHEME_WORD + " ", re.IGNORECASE)
_FIELDS: Final = ("sr", "sig", "se", "skn")
# Twelve digits reach past the year 33000; more would only feed a big-integer conversion.
_EXPIRY = re.compile(r"[0-9]{1,12}")
_JWT = re.compile(r"(?:bearer +)?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.IGNORECASE)
_SCHEME_PREFIX = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")


@dataclass(frozen=True, slots=True)
class Token:
    """A shared access signature, read and not yet believed.

    Attributes:
      resource: ``sr`` as it stands in the token, still percent-encoded.
      signature: ``sig``, decoded to Base64 text.
      expiry_unix: ``se``, seconds since 1970.
      rule_name: ``skn``, decoded.
      raw: the whole token text.
      expiry_text: ``se`` as it stands in the token; this is what was signed.
    """

    resource: str
    signature: str = field(repr=False)
    expiry_unix: int
    rule_name: str
    raw: str = field(repr=False)
    expiry_text: str = field(repr=False)


def _malformed(what: str) -> AuthorizationFailed:
    return AuthorizationFailed(f"MalformedToken: {what}", reason=RefusalReason.MALFORMED_TOKEN)


def parse_token(text: str) -> Token:
    """Read a token. Nothing is verified.

    Args:
      text: the token as it came from a header, or from the query once form-decoded.

    Raises:
      AuthorizationFailed: 401 ``MALFORMED_TOKEN``: another scheme, a field missing or twice, an expiry that is no
        number. The message never repeats a part of the token.

    Source: wire contract 5.2.
    """
    scheme = _SCHEME_WORD.match(text)
    if scheme is None:
        raise _malformed("The token is not a shared access signature")
    fields: dict[str, str] = {}
    for pair in text[scheme.end() :].split("&"):
        name, equals, value = pair.partition("=")
        if not equals:
            raise _malformed("The token has a field without a value")
        if name in fields:
            raise _malformed("The token has a field twice")
        fields[name] = value
    missing = [name for name in _FIELDS if not fields.get(name)]
    if missing:
        raise _malformed(f"The token has no {missing[0]}")
    if _EXPIRY.fullmatch(fields["se"]) is None:
        raise _malformed("The token's expiry is not a time in seconds")
    return Token(
        resource=fields["sr"],
        # Base64 has plus signs and no blanks: a blank here was a plus sign before one form-decoding too many.
        signature=unquote(fields["sig"]).replace(" ", "+"),
        expiry_unix=int(fields["se"]),
        # .NET and Java form-encode the name, Node writes it raw; a rule's name holds neither blank nor plus sign.
        rule_name=unquote_plus(fields["skn"]),
        raw=text,
        expiry_text=fields["se"],
    )


def sign(resource_as_in_token: str, expiry: int | str, key: str) -> str:
    """Return the signature as Base64 text, not yet percent-encoded.

    Args:
      resource_as_in_token: ``sr`` exactly as it stands, or will stand, in the token.
      expiry: ``se`` likewise; a number is written in decimal.
      key: the key as text. Its Base64 is not decoded: the UTF-8 bytes of the text are the key.

    Source: wire contract 5.2, with test vectors.
    """
    signed = f"{resource_as_in_token}\n{expiry}".encode("utf-8", "surrogatepass")
    digest = hmac.digest(key.encode("utf-8"), signed, hashlib.sha256)
    return base64.b64encode(digest).decode("ascii")


def make_token(resource_uri: str, rule_name: str, key: str, expiry_unix: int) -> str:
    """Write a token for a resource such as ``http://relay.example/hyco/``, in the escaping that .NET uses."""
    resource = quote(resource_uri, safe="")
    signature = quote(sign(resource, expiry_unix, key), safe="")
    return f"{SCHEME_WORD} sr={resource}&sig={signature}&se={expiry_unix}&skn={quote_plus(rule_name)}"


def signature_matches(token: Token, keys: Iterable[str]) -> bool:
    """Return whether one of the keys signed the token.

    Every key is tried and each comparison takes constant time, so the answer's timing tells neither how much of a
    signature was right nor which key it was.

    Source: wire contract 5.2.
    """
    presented = token.signature.encode("utf-8", "surrogatepass")
    matches = False
    for key in keys:
        expected = sign(token.resource, token.expiry_text, key).encode("ascii")
        matches |= hmac.compare_digest(expected, presented)
    return matches


def parse_resource(sr: str) -> tuple[str, tuple[str, ...]]:
    """Split a token's resource into the host and the path segments that it covers, both case-folded.

    Scheme, user info, port, query and fragment say nothing and are dropped; an empty path covers the whole namespace.

    Args:
      sr: the resource as it stands in the token, percent-encoded.

    Raises:
      AuthorizationFailed: 401 ``INVALID_AUDIENCE`` when there is no host in it.

    Source: wire contract 5.4, steps 1 and 3; forms seen, 5.3.
    """
    uri = unquote(sr)
    scheme = _SCHEME_PREFIX.match(uri)
    rest = re.split(r"[?#]", uri[scheme.end() if scheme else 0 :], maxsplit=1)[0]
    authority, _, path = rest.partition("/")
    host_port = authority.rpartition("@")[2]
    is_ipv6 = host_port.startswith("[")
    host = host_port.partition("]")[0] + "]" if is_ipv6 else host_port.partition(":")[0]
    if not host:
        raise AuthorizationFailed(
            "InvalidAudience: The authorization header contains a token with a wrong audience",
            reason=RefusalReason.INVALID_AUDIENCE,
        )
    # A Java sender escapes the request URL twice, so the path holds escapes of its own after the first decoding.
    trimmed = unquote(path).strip("/").casefold()
    return host.casefold(), tuple(trimmed.split("/")) if trimmed else ()


def looks_like_jwt(text: str) -> bool:
    """Return whether a credential has the shape of a JWT, bare or behind the word ``Bearer`` (wire contract 5.5)."""
    return _JWT.fullmatch(text) is not None
