"""Whether a token opens a resource: the steps of wire contract 5.4, in their order.

Each entry point asks here: listen, connect, HTTP, renewToken and the management surface. The answer is a
:class:`Grant` or an :class:`~relaycore.errors.AuthorizationFailed` whose text is the one of section 12.

A busy sender presents one token many times, so the expensive facts about a token (what it says, and that a key signed
it) are remembered. Neither ever becomes untrue: who the key belongs to, what the rule allows, whether the token covers
the path and whether its time has come are asked anew each time. Therefore a changed key, a deleted rule or an expired
token counts from the next call on, and there is nothing to invalidate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from ..errors import AuthorizationFailed
from ..vocab import RefusalReason, Right
from ..wire import limits, sas
from .model import AuthorizationRule, HybridConnection, Namespace, shown_path

CredentialSource: TypeAlias = Literal["query", "ServiceBusAuthorization", "Authorization"]

TOKENS_REMEMBERED: Final = 4_096
"""Verified tokens kept by default, a kilobyte or two each: more than the listeners and busy senders of one gateway."""


@dataclasses.dataclass(frozen=True, slots=True)
class Credential:
    """A token as it was presented, and where: a header that held it is not passed on."""

    text: str = dataclasses.field(repr=False)
    source: CredentialSource


def find_credential(
    query_token: str | None, headers_get: Callable[[str], str | None], *, may_use_authorization: bool
) -> Credential | None:
    """Find the token of a request: query, then ``ServiceBusAuthorization``, then ``Authorization``.

    Args:
      query_token: decoded value of ``sb-hc-token``.
      headers_get: value of a header by name without regard to case, or ``None``.
      may_use_authorization: whether ``Authorization`` may be the credential: for a listen always, for senders where
        the hybrid connection requires authorization. Otherwise it is application data.

    Returns: the credential, or ``None`` where there is none. An empty one counts as none.

    Source: wire contract 5.1.
    """
    if query_token is not None and query_token.strip():
        return Credential(query_token.strip(), "query")
    own_header = headers_get("ServiceBusAuthorization")
    if own_header is not None and own_header.strip():
        return Credential(own_header.strip(), "ServiceBusAuthorization")
    if may_use_authorization:
        standard_header = headers_get("Authorization")
        if standard_header is not None and standard_header.strip():
            return Credential(standard_header.strip(), "Authorization")
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do, by which rule and until when.

    ``expiry_unix`` is the token's own, in seconds since 1970; the allowance comes on top of it. An anonymous grant has
    no rule, the right to send, and no end.
    """

    rule_name: str
    rights: frozenset[Right]
    expiry_unix: float
    anonymous: bool


ANONYMOUS: Final = Grant(rule_name="", rights=frozenset({Right.SEND}), expiry_unix=math.inf, anonymous=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _ReadToken:
    """What a token says, and the keys of the rule that signed it (``None``: not checked yet)."""

    token: sas.Token = dataclasses.field(repr=False)
    host: str
    segments: tuple[str, ...]
    keys: tuple[str, str] | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class AuthorizerStatistics:
    """Tokens remembered now, and how many checks found theirs or had to compute a signature."""

    remembered: int
    hits: int
    misses: int


def _refuse(reason: RefusalReason, message: str, http_status: int = 401) -> AuthorizationFailed:
    return AuthorizationFailed(message, http_status=http_status, reason=reason)


class Authorizer:
    """Checks tokens against resources.

    Args:
      max_remembered: bound of the memory; at the bound the token that was not presented for the longest time is
        forgotten, and costs a signature when it comes again. Only tokens that a key signed are remembered, so bad ones
        cannot push good ones out.
    """

    def __init__(self, *, max_remembered: int = TOKENS_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._remembered: OrderedDict[bytes, _ReadToken] = OrderedDict()
        self._hits = 0
        self._misses = 0

    def statistics(self) -> AuthorizerStatistics:
        """Counts as of now."""
        return AuthorizerStatistics(len(self._remembered), self._hits, self._misses)

    def check(
        self,
        namespace: Namespace,
        entity: HybridConnection | None,
        requested_path: str,
        right: Right | None,
        credential: Credential | None,
        now_unix: float,
        *,
        allowance_s: float = limits.TOKEN_ALLOWANCE,
    ) -> Grant:
        """Decide whether a credential opens a path for a right.

        Args:
          namespace: the namespace that was addressed, as it stands now.
          entity: the hybrid connection that was found, or ``None`` for the namespace itself.
          requested_path: the decoded path as asked for, with its suffix.
          right: what is needed; ``None`` means any right will do.
          credential: from :func:`find_credential`.
          now_unix: seconds since 1970.
          allowance_s: how long after its expiry a token still counts, for late renewals and for skewed clocks (5.6).

        Raises:
          AuthorizationFailed: 401 for a token that is missing, unreadable, not meant for this path, not signed by a
            key that is known here, or too old; 403 for a good one without the right.

        Source: wire contract 5.4, 5.6, 5.7; texts, 12.
        """
        if right is Right.SEND and entity is not None and not entity.requires_client_authorization:
            return ANONYMOUS
        if credential is None:
            raise _refuse(RefusalReason.MISSING_TOKEN, "MissingToken: A security token is required")
        digest = hashlib.sha256(credential.text.encode("utf-8", "surrogatepass")).digest()
        read = self._remembered.get(digest) or _read(credential.text)
        if not namespace.has_host(read.host) or not _covers(read.segments, requested_path):
            raise _refuse(
                RefusalReason.INVALID_AUDIENCE,
                "InvalidAudience: The authorization header contains a token with a wrong audience",
            )
        rule = _find_rule(namespace, entity, read.token.rule_name)
        if rule is not None and rule.keys == read.keys:
            self._hits += 1
        else:
            self._misses += 1
            # An unknown rule costs its signatures as well: otherwise the time of the answer would name the rules.
            keys = rule.keys if rule is not None else _NO_KEYS
            if not sas.signature_matches(read.token, keys) or rule is None:
                raise _refuse(
                    RefusalReason.INVALID_SIGNATURE,
                    f"InvalidSignature: The token has an invalid signature: {shown_path(requested_path)}",
                )
            read = dataclasses.replace(read, keys=rule.keys)
        if now_unix > read.token.expiry_unix + allowance_s:
            self._remembered.pop(digest, None)
            raise _refuse(RefusalReason.EXPIRED_TOKEN, "ExpiredToken: The token has expired")
        self._remember(digest, read)
        rights = rule.effective_rights
        if right is not None and right not in rights:
            raise _refuse(
                RefusalReason.RIGHT_MISSING,
                f"The token does not carry the right {right.value}: {shown_path(requested_path)}",
                http_status=403,
            )
        return Grant(rule_name=rule.name, rights=rights, expiry_unix=float(read.token.expiry_unix), anonymous=False)

    def _remember(self, digest: bytes, read: _ReadToken) -> None:
        self._remembered[digest] = read
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _read(text: str) -> _ReadToken:
    if sas.looks_like_jwt(text):
        # 5.5: issuers are configured by the operator, and there is no such setting yet.
        raise _refuse(RefusalReason.MALFORMED_TOKEN, "MalformedToken: No issuer of JSON web tokens is configured")
    token = sas.parse_token(text)
    host, segments = sas.parse_resource(token.resource)
    return _ReadToken(token, host, segments)


# Keys that sign nothing: two of them, as a rule has, so that the same work is done.
_NO_KEYS: Final = ("", "")


def _find_rule(namespace: Namespace, entity: HybridConnection | None, name: str) -> AuthorizationRule | None:
    # 5.4 step 4. A rule of the hybrid connection hides the namespace's rule of the same name.
    found = entity.find_rule(name) if entity is not None else None
    return found if found is not None else namespace.find_rule(name)


def _covers(segments: tuple[str, ...], requested_path: str) -> bool:
    """Whether a token's path is a prefix of the requested one, segment by segment and without regard to case."""
    if not segments:
        return True
    asked = requested_path.strip("/").casefold().split("/")
    return tuple(asked[: len(segments)]) == segments
