"""The Atom surface of the management plane, on the host and port of the data plane (management contract 7).

::

    GET    /ENTITY?api-version=YYYY-MM                     M01  entry; M02  empty feed where there is none
    PUT    /ENTITY                                         M03  create: 201 entry, 409
    PUT    /ENTITY            If-Match: * or an ETag       M04  replace: 200 entry, 404, 412, 400 on an immutable member
    DELETE /ENTITY                                         M05  200, 404
    GET    /$Resources/HybridConnections?$skip=&$top=      M06  feed
    GET    /$Resources/...                                 M07, M08  empty feed: there are no WCF relays, queues, ...

Its clients are the .NET library, Hybrid Connection Manager and the clones of the Service Bus NamespaceManager. Facts
about them, and what follows:

- .NET takes ``type=feed``, 404 and 204 all for "no such entity". Where the two contracts differ on an unknown path
  (empty feed; 404), both read the same to it; the younger text says feed, and explorers that list want feeds.
- .NET takes 403 for a quota. So a missing right is a 401 here, unlike anywhere else, and 403 is left to quotas.
- Keys in an entry would turn Listen into Manage: they are written for callers with Manage only.

Rights come first. Who may not ask gets the same 401 whether the path exists or not, and no body is parsed for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qsl, quote

import trio

import relaycore

from ..broker.auth import Grant
from ..broker.model import HybridConnection, Namespace, RuleDefinition, endpoint_not_found, validate_rights
from ..errors import AuthorizationFailed, Refused, RemoteProtocolError
from ..store.base import Store
from ..vocab import RefusalReason, Right, TrackingId
from ..wire.address import decode_path, is_hybrid_target, split_target
from ..wire.atom_xml import (
    ENTRY_MEDIA_TYPE,
    ERROR_MEDIA_TYPE,
    FEED_MEDIA_TYPE,
    EntityDescription,
    RuleDescription,
    SubmittedRule,
    build_entry,
    build_error,
    build_feed,
    parse_put_body,
)
from ..wire.http1 import Headers, RequestHead
from ..wire.sas import parse_token, signature_matches
from ..wire.status import refusal_reason_phrase, standard_phrase

__all__ = ["AtomContext", "AtomRequest", "AtomResponse", "handle", "is_management_request"]

DEFAULT_PAGE_ENTRIES: Final = 100
"""Entries of a feed when ``$top`` does not say (management contract 7)."""

SERVER: Final = f"relaycore/{relaycore.__version__}"
"""``Server`` for those who may ask; a refusal does not say what runs here. Neither contract asks for the header or
forbids it, and the clients of this surface do not read it."""

_ENTRIES_PER_TURN: Final = 100
"""Entries built between two checkpoints: about 2 ms, so that a feed of 10 000 does not hold the other connections."""

_MAX_QUERY_FIELDS: Final = 100
_MAY_BE_MANAGEMENT: Final = re.compile(r"[$%]|api-version", re.IGNORECASE)
_RESOURCES: Final = "$resources"
_METHODS: Final = frozenset({"GET", "PUT", "DELETE"})
_API_VERSION: Final = re.compile(r"\d{4}-\d{2}", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,10}", re.ASCII)
_ATOM_TYPE: Final = "application/atom+xml"


@dataclass(frozen=True, slots=True)
class AtomRequest:
    """A request of this surface, with its whole body.

    Attributes:
      target: the request target as sent, origin form or absolute form.
      host: the ``Host`` header.
      body: at most ``limits.management_body_bytes``; the caller has refused longer ones.
    """

    method: str
    target: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    host: str
    is_tls: bool


@dataclass(frozen=True, slots=True)
class AtomResponse:
    """What goes back. ``headers`` do not hold ``Content-Length``.

    ``refused`` is what the body says in XML, for the caller's log, counters and rate limit; None for a success.
    ``grant`` is who was let in, for the audit line; None where nobody was.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)
    refused: Refused | RemoteProtocolError | None = None
    grant: Grant | None = None


class AtomContext(Protocol):
    """What this room needs of the server that it stands in."""

    @property
    def store(self) -> Store:
        """Where definitions are changed."""

    @property
    def namespace(self) -> Namespace:
        """The namespace that the request's host belongs to, as it stands now."""

    @property
    def tracking_id(self) -> TrackingId:
        """The id of this request, shown in each refusal."""

    @property
    def base_url(self) -> str:
        """Scheme, host and port by which the caller reached us; ``ws`` and ``wss`` count as ``http`` and ``https``."""

    def listener_count(self, path: str) -> int:
        """Control channels that are open on a hybrid connection now."""

    def authorize(
        self,
        right: Right | None,
        entity: HybridConnection | None,
        path: str,
        headers: Headers,
        query_token: str | None,
    ) -> Grant:
        """Check the request's credential for ``right``, or for any right when None.

        A credential is demanded even where the hybrid connection lets anonymous senders in.

        Raises:
          AuthorizationFailed: no credential, a bad one, or not the right.
        """

    def now_unix(self) -> float:
        """Wall clock, seconds since 1970."""


# Which requests are ours ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """A request target, taken apart. ``path`` is decoded, without slashes around it; ``query`` has folded names."""

    path: str
    query: Mapping[str, str]

    @property
    def resources(self) -> str | None:
        """What stands after ``$Resources/``, folded; None for any other path."""
        first, _, rest = self.path.partition("/")
        return rest.casefold() if first.casefold() == _RESOURCES else None

    @property
    def api_version(self) -> str | None:
        """Year and month; None when the parameter is missing or has another form."""
        version = self.query.get("api-version", "")
        return version if _API_VERSION.fullmatch(version) else None


def _parse_target(target: str) -> _Target:
    """Take a target apart.

    Raises:
      RemoteProtocolError: 400; so many query fields that no honest client has sent them.
    """
    raw_path, raw_query = split_target(target)
    try:
        fields = parse_qsl(raw_query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise _bad_request(f"The query has more than {_MAX_QUERY_FIELDS} fields") from None
    query: dict[str, str] = {}
    for name, value in fields:
        query.setdefault(name.casefold(), value)
    return _Target(decode_path(raw_path), query)


def _bad_request(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, section="management 7", http_status=400)


def is_management_request(head: RequestHead, namespace: Namespace) -> bool:
    """Whether a request on the shared URL space is for this surface and not for a listener.

    ``/$Resources/`` is, whatever the method: a dollar sign is in no entity's name. Anything else must be one of M01 to
    M05 by its method, carry an ``api-version`` of year and month, and show in one of three ways that it means us: the
    header ``X-PROCESS-AT: ServiceBus``, an Atom media type in ``Accept`` or ``Content-Type``, or a SAS token in
    ``Authorization`` that a key of exactly this hybrid connection or of the namespace has signed. Nothing is decided
    about that token here; an expired one still shows what is meant.

    Source: management contract 7; wire contract 16 (``?api-version=abc`` is relayed).
    """
    # Most requests are for a listener, and hold nothing that could say otherwise, escaped or not.
    if not _MAY_BE_MANAGEMENT.search(head.target) or is_hybrid_target(head.target):
        return False
    try:
        target = _parse_target(head.target)
    except RemoteProtocolError:
        return False
    if target.resources is not None:
        return True
    if head.method not in _METHODS or target.api_version is None:
        return False
    headers = head.headers
    if any(value.strip().casefold() == "servicebus" for value in headers.get_all("X-PROCESS-AT")):
        return True
    if any(_names_atom(value) for name in ("Accept", "Content-Type") for value in headers.get_all(name)):
        return True
    entity = namespace.get_entity(target.path)
    return entity is not None and _is_key_known(headers.get("Authorization"), entity, namespace)


def _names_atom(header: str) -> bool:
    return any(item.partition(";")[0].strip().casefold() == _ATOM_TYPE for item in header.split(","))


def _is_key_known(authorization: str | None, entity: HybridConnection, namespace: Namespace) -> bool:
    if authorization is None:
        return False
    try:
        token = parse_token(authorization)
    except AuthorizationFailed:
        return False
    rules = (entity.find_rule(token.rule_name), namespace.find_rule(token.rule_name))
    return signature_matches(token, [key for rule in rules if rule is not None for key in rule.keys])


# Answers -------------------------------------------------------------------------------------------------------------


async def handle(request: AtomRequest, context: AtomContext) -> AtomResponse:
    """Answer one request. Changes are durable when this returns.

    A refusal, whoever raised it, is an answer and not an exception; what escapes is a fault of ours. A checkpoint
    where it writes or builds a long feed, not otherwise.

    Source: management contract 7.
    """
    path = ""
    try:
        target = _parse_target(request.target)
        path = target.path
        if target.resources is not None:
            return await _list_resources(request, target, context)
        match request.method:
            case "GET":
                return _get(request, target, context)
            case "PUT":
                return await _put(request, target, context)
            case "DELETE":
                return await _delete(request, target, context)
            case _:
                return _method_not_allowed(request, path, context, "GET, PUT, DELETE")
    except AuthorizationFailed as refusal:
        # 403 would read as "quota exceeded" in .NET.
        return _refuse(refusal, 401, refusal.message, request, path, context)
    except Refused as refusal:
        return _refuse(refusal, refusal.http_status, refusal.message, request, path, context)
    except RemoteProtocolError as refusal:
        return _refuse(refusal, refusal.http_status, str(refusal), request, path, context)


def _get(request: AtomRequest, target: _Target, context: AtomContext) -> AtomResponse:
    entity = context.namespace.get_entity(target.path)
    grant = _authorize(None, entity, request, target, context)
    if entity is None:
        return _feed(target.path, [], target, context, grant)
    return _entry(HTTPStatus.OK, entity, target, context, grant)


async def _put(request: AtomRequest, target: _Target, context: AtomContext) -> AtomResponse:
    entity = context.namespace.get_entity(target.path)
    grant = _authorize(Right.MANAGE, entity, request, target, context)
    body = parse_put_body(request.body)
    rules = None if not body.rules else tuple(map(_rule_definition, body.rules))
    if_match = request.headers.joined("If-Match")
    if if_match is None:
        requires = body.requires_client_authorization
        created = await context.store.create_entity(
            context.namespace.name,
            target.path,
            requires_client_authorization=True if requires is None else requires,
            user_metadata=body.user_metadata,
            rules=rules or (),
        )
        return _entry(HTTPStatus.CREATED, created, target, context, grant)
    if entity is None:
        raise endpoint_not_found(target.path)
    updated = await context.store.update_entity(
        context.namespace.name,
        entity.path,
        requires_client_authorization=body.requires_client_authorization,
        user_metadata=body.user_metadata,
        rules=rules,
        if_updated_at=_check_match(if_match, entity),
    )
    return _entry(HTTPStatus.OK, updated, target, context, grant)


async def _delete(request: AtomRequest, target: _Target, context: AtomContext) -> AtomResponse:
    entity = context.namespace.get_entity(target.path)
    grant = _authorize(Right.MANAGE, entity, request, target, context)
    if_match = request.headers.joined("If-Match")
    if entity is not None and if_match is not None:
        _check_match(if_match, entity)
    if entity is None or not await context.store.delete_entity(context.namespace.name, entity.path):
        raise endpoint_not_found(target.path)
    return AtomResponse(HTTPStatus.OK, HTTPStatus.OK.phrase, [("Server", SERVER)], b"", grant=grant)


async def _list_resources(request: AtomRequest, target: _Target, context: AtomContext) -> AtomResponse:
    if request.method != "GET":
        return _method_not_allowed(request, target.path, context, "GET")
    grant = _authorize(Right.MANAGE, None, request, target, context)
    skip, top = _count(target, "$skip", 0), _count(target, "$top", DEFAULT_PAGE_ENTRIES)
    entries: list[str] = []
    if target.resources == "hybridconnections":
        namespace = context.namespace
        for path in sorted(namespace.entities)[skip : skip + top]:
            if len(entries) % _ENTRIES_PER_TURN == _ENTRIES_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
            entity = namespace.entities[path]
            entries.append(_build_entry(entity, _url(context, entity.path, target.api_version), context, grant))
    return _feed(target.path.partition("/")[2], entries, target, context, grant)


def _authorize(
    right: Right | None, entity: HybridConnection | None, request: AtomRequest, target: _Target, context: AtomContext
) -> Grant:
    return context.authorize(right, entity, target.path, request.headers, target.query.get("sb-hc-token"))


def _count(target: _Target, name: str, default: int) -> int:
    text = target.query.get(name)
    if text is None:
        return default
    if not _COUNT.fullmatch(text):
        raise _bad_request(f"{name} must be a whole number from 0 on")
    return int(text)


def _check_match(if_match: str, entity: HybridConnection) -> datetime | None:
    """Compare ``If-Match``; the instant is the condition that the store has to check once more, None for ``*``."""
    tags = [tag.strip() for tag in if_match.split(",")]
    if "*" in tags:
        return None
    if _etag(entity) not in tags:
        raise Refused(
            "PreconditionFailed: the hybrid connection is not in the state that If-Match names",
            http_status=HTTPStatus.PRECONDITION_FAILED,
            reason=RefusalReason.PRECONDITION,
        )
    return entity.updated_at


def _etag(entity: HybridConnection) -> str:
    """Quoted hex of the microseconds from 1970 to the last change."""
    return f'"{(entity.updated_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1):x}"'


def _rule_definition(rule: SubmittedRule) -> RuleDefinition:
    return RuleDefinition(rule.name, validate_rights(rule.rights), rule.primary_key, rule.secondary_key)


def _url(context: AtomContext, path: str, api_version: str | None) -> str:
    scheme, _, rest = context.base_url.rstrip("/").partition("://")
    web_scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    query = f"?api-version={api_version}" if api_version else ""
    return f"{web_scheme}://{rest}/{quote(path, safe='/$')}{query}"


def _build_entry(entity: HybridConnection, url: str, context: AtomContext, grant: Grant) -> str:
    rules = tuple(
        RuleDescription(rule.name, rule.rights, rule.primary_key, rule.secondary_key, rule.created_at, rule.updated_at)
        for rule in (entity.rules if Right.MANAGE in grant.rights else ())
    )
    description = EntityDescription(
        path=entity.path,
        created_at=entity.created_at,
        updated_at=entity.updated_at,
        requires_client_authorization=entity.requires_client_authorization,
        user_metadata=entity.user_metadata,
        listener_count=context.listener_count(entity.path),
        rules=rules,
    )
    return build_entry(description, url=url, author=context.namespace.name)


def _entry(
    status: HTTPStatus, entity: HybridConnection, target: _Target, context: AtomContext, grant: Grant
) -> AtomResponse:
    text = _build_entry(entity, _url(context, entity.path, target.api_version), context, grant)
    headers = [
        ("Content-Type", ENTRY_MEDIA_TYPE),
        ("ETag", _etag(entity)),
        ("Cache-Control", "no-store"),
        ("Server", SERVER),
    ]
    return AtomResponse(status, status.phrase, headers, text.encode(), grant=grant)


def _feed(title: str, entries: list[str], target: _Target, context: AtomContext, grant: Grant) -> AtomResponse:
    now = datetime.fromtimestamp(context.now_unix(), UTC)
    text = build_feed(title, entries, url=_url(context, target.path, target.api_version), updated=now)
    headers = [("Content-Type", FEED_MEDIA_TYPE), ("Cache-Control", "no-store"), ("Server", SERVER)]
    return AtomResponse(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, text.encode(), grant=grant)


def _method_not_allowed(request: AtomRequest, path: str, context: AtomContext, allowed: str) -> AtomResponse:
    refusal = Refused(
        f"The method {request.method[:20]} is not supported here",
        http_status=HTTPStatus.METHOD_NOT_ALLOWED,
        reason=RefusalReason.NOT_SUPPORTED,
    )
    response = _refuse(refusal, refusal.http_status, refusal.message, request, path, context)
    response.headers.append(("Allow", allowed))
    return response


def _refuse(
    refusal: Refused | RemoteProtocolError,
    status: int,
    message: str,
    request: AtomRequest,
    path: str,
    context: AtomContext,
) -> AtomResponse:
    tracker = f"sb://{request.host}/{path}"
    detail = refusal_reason_phrase(message, context.tracking_id, tracker, context.now_unix())
    headers = [("Content-Type", ERROR_MEDIA_TYPE)]
    body = build_error(status, detail).encode()
    return AtomResponse(status, standard_phrase(status), headers, body, refused=refusal)
