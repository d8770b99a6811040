"""Client of the Atom surface on the namespace host: hybrid connections and their rules, with a Manage key.

Source: management contract 7. One TCP connection per request; a handful of requests is all that a command makes.

Facts about that surface, and what follows:

- A PUT replaces. An entry without ``UserMetadata`` clears it, so an update sends back what it does not change, and with
  ``If-Match`` and the entry's ETag, so that a change made meanwhile is not undone.
- Rules in a PUT are the whole set; one that stays keeps every key that is not named. No rules at all mean "leave them",
  so the last rule of a hybrid connection cannot be taken away here.
- Rules of the namespace are not reachable.
- An unknown path answers an empty feed, not 404.
"""

from __future__ import annotations

import base64
import os
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote
from xml.etree import ElementTree

import trio

from ..errors import ConfigError, ConnectionLost, EndpointAlreadyExists, EndpointNotFound, Refused, RemoteProtocolError
from ..net.connect import open_transport, parse_ws_url
from ..net.proxy import Proxy
from ..vocab import Right
from ..wire.connection_string import ConnectionString
from ..wire.http1 import ResponseHead, ResponseReader, build_request
from ..wire.sas import make_token
from ..wire.status import parse_reason, refused_from_status
from .credentials import TokenProvider, TokenSource

__all__ = ["Entity", "ManagementClient", "Rule", "new_key"]

API_VERSION: Final = "2017-04"
"""Any year and month will do for the relay; this is what the last NamespaceManager sends."""

TOKEN_LIFETIME: Final = 600.0
"""Seconds; .NET's management tokens live as long (wire contract 14)."""

MAX_RESPONSE_BYTES: Final = 64 * 1_048_576
"""A page of 1 000 entries with twelve rules each stays below 10 MiB."""

PAGE_ENTRIES: Final = 1_000

_ATOM: Final = "{http://www.w3.org/2005/Atom}"
_CONNECT_NAMESPACE: Final = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
_CONNECT: Final = f"{{{_CONNECT_NAMESPACE}}}"
_TYPE: Final = "{http://www.w3.org/2001/XMLSchema-instance}type"


@dataclass(frozen=True, slots=True)
class Rule:
    """An authorization rule of a hybrid connection. A key that is None is left to the relay."""

    name: str
    rights: tuple[Right, ...]
    primary_key: str | None = field(default=None, repr=False)
    secondary_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Entity:
    """A hybrid connection as the relay describes it.

    Attributes:
      rules: with keys for a caller with Manage, empty for others.
      etag: names this state, for :meth:`ManagementClient.update_entity`; ``""`` when it came out of a list.
      server: what the relay calls itself, such as ``relaycore/0.1.0``; ``""`` when it does not, and out of a list.
    """

    path: str
    requires_client_authorization: bool
    user_metadata: str | None
    listener_count: int
    created_at: datetime | None
    updated_at: datetime | None
    rules: tuple[Rule, ...] = ()
    etag: str = ""
    server: str = ""

    def find_rule(self, name: str) -> Rule | None:
        """The rule of that name, without regard to case."""
        return next((rule for rule in self.rules if rule.name.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class _Answer:
    head: ResponseHead
    body: bytes = field(repr=False)


class ManagementClient:
    """Reads and changes hybrid connections of one relay.

    Every method raises, besides what it lists:

      AuthorizationFailed: the token is refused, or its rule has no Manage.
      ConnectionLost: the relay cannot be reached, the connection broke, or no answer came within the connection
        string's ``OperationTimeout``.
      RemoteProtocolError: the answer is not one of this surface.
      Refused: any other no.

    Args:
      connection: where and with which key; needs a rule with Manage. Its entity path plays no part here.
      token: makes tokens, instead of the connection string's key.
      ssl_context: trust for ``wss``; the system's by default.
      proxy: to dial through.
      now_unix: wall clock, for tokens.
    """

    def __init__(
        self,
        connection: ConnectionString,
        *,
        token: TokenProvider | None = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        now_unix: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._url = parse_ws_url(f"{connection.base_url}/")
        self._provider = token
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._now_unix = now_unix

    async def list_entities(self) -> list[Entity]:
        """All hybrid connections, in the order of their names."""
        found: list[Entity] = []
        while True:
            query = f"$skip={len(found)}&$top={PAGE_ENTRIES}&api-version={API_VERSION}"
            answer = await self._request("GET", "$Resources/HybridConnections", query=query)
            page = [_read_entity(entry) for entry in _parse(answer.body).findall(f"{_ATOM}entry")]
            found += page
            if len(page) < PAGE_ENTRIES:
                return found

    async def get_entity(self, path: str) -> Entity:
        """One hybrid connection.

        Raises:
          EndpointNotFound: there is none of that path.
        """
        answer = await self._request("GET", path)
        root = _parse(answer.body)
        if root.tag == f"{_ATOM}feed":
            raise EndpointNotFound(f"Endpoint does not exist: {path}")
        return _read_entity(root, answer.head)

    async def create_entity(
        self,
        path: str,
        *,
        requires_client_authorization: bool = True,
        user_metadata: str | None = None,
        rules: Iterable[Rule] = (),
    ) -> Entity:
        """Create a hybrid connection.

        Raises:
          EndpointAlreadyExists: this path, one that it would hide, or one that would hide it, is taken.
        """
        body = _build_entry(path, requires_client_authorization, user_metadata, rules)
        answer = await self._request("PUT", path, body=body)
        return _read_entity(_parse(answer.body), answer.head)

    async def update_entity(
        self, entity: Entity, *, user_metadata: str | None = None, rules: Iterable[Rule] | None = None
    ) -> Entity:
        """Replace text and rules of a hybrid connection, provided that nobody changed it since `entity` was read.

        Args:
          entity: as :meth:`get_entity` gave it.
          user_metadata: the new text; None clears it.
          rules: the whole new set, at least one; None leaves them.

        Raises:
          EndpointNotFound: it is gone.
          Refused: 412, somebody changed it meanwhile.
        """
        body = _build_entry(entity.path, entity.requires_client_authorization, user_metadata, rules or ())
        answer = await self._request("PUT", entity.path, body=body, headers=[("If-Match", entity.etag or "*")])
        return _read_entity(_parse(answer.body), answer.head)

    async def delete_entity(self, path: str) -> None:
        """Delete a hybrid connection; its listeners and sessions end.

        Raises:
          EndpointNotFound: there is none of that path.
        """
        await self._request("DELETE", path)

    # One request -----------------------------------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: str = f"api-version={API_VERSION}",
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> _Answer:
        fields = [
            ("Host", self._url.host_header),
            ("Authorization", await self._token(path)),
            ("X-PROCESS-AT", "ServiceBus"),  # tells us from a request that is to be relayed (wire contract 16)
            ("Accept", "application/atom+xml"),
            ("Connection", "close"),
            *headers,
        ]
        if method == "PUT":
            fields.append(("Content-Type", "application/atom+xml;type=entry;charset=utf-8"))
            fields.append(("Content-Length", str(len(body))))
        request = build_request(method, f"/{quote(path, safe='/$')}?{query}", fields) + body
        timeout = self._connection.operation_timeout
        try:
            with trio.fail_after(timeout):
                answer = await self._exchange(request)
        except trio.TooSlowError as error:
            raise ConnectionLost(f"no answer from {self._url.host_header} within {timeout:g} s") from error
        if not 200 <= answer.head.status < 300:
            raise _refusal(answer)
        return answer

    async def _token(self, path: str) -> str:
        """A token for just this path: should it leak, it is good for nothing else."""
        connection = self._connection
        # The list stands above all hybrid connections: only the namespace's own resource covers it.
        resource = f"http://{connection.host.lower()}/{'' if path.startswith('$') else quote(path, safe='/') + '/'}"
        if self._provider is not None:
            return (await TokenSource(self._provider, resource, is_renewable=True).fetch()).text
        if connection.signature is not None:
            return connection.signature
        if connection.key_name is None or connection.key is None:
            raise ConfigError("holds neither a key nor a signature", source="connection string")
        return make_token(resource, connection.key_name, connection.key, int(self._now_unix() + TOKEN_LIFETIME))

    async def _exchange(self, request: bytes) -> _Answer:
        async with await open_transport(self._url, self._ssl_context, self._proxy) as stream:
            try:
                await stream.send_all(request)
                return await self._read_answer(stream)
            except trio.BrokenResourceError as error:
                raise ConnectionLost(f"the connection to {self._url.host_header} broke") from error

    async def _read_answer(self, stream: trio.abc.Stream) -> _Answer:
        reader = ResponseReader()
        while (head := reader.next_event()) is None:
            reader.receive_data(await self._receive(stream))
        body = bytearray()
        _extend(body, reader.trailing)
        if "Transfer-Encoding" in head.headers:
            # We asked for Connection: close, so the end of the connection is the end of the chunks.
            while data := await stream.receive_some():
                _extend(body, data)
            return _Answer(head, _join_chunks(bytes(body)))
        length = _read_count(head.headers.get("Content-Length") or "0")
        while len(body) < length:
            _extend(body, await self._receive(stream))
        return _Answer(head, bytes(body[:length]))

    async def _receive(self, stream: trio.abc.Stream) -> bytes:
        data = bytes(await stream.receive_some())
        if not data:
            raise ConnectionLost(f"{self._url.host_header} closed the connection within its answer")
        return data


def _extend(body: bytearray, data: bytes | bytearray) -> None:
    body += data
    if len(body) > MAX_RESPONSE_BYTES:
        raise RemoteProtocolError("the answer is longer than any honest one", section="management 7")


def _join_chunks(body: bytes) -> bytes:
    """The content of a chunked body that is complete (RFC 9112 7.1)."""
    parts: list[bytes] = []
    at = 0
    while True:
        line, end, _ = body[at : at + 64].partition(b"\r\n")
        size = line.partition(b";")[0].strip()
        if not end or not size or size.strip(b"0123456789abcdefABCDEF"):
            raise RemoteProtocolError("the answer ends within a chunk, or its size is none", section="RFC 9112 7.1")
        length = int(size, 16)
        at += len(line) + 2
        if length == 0:
            return b"".join(parts)
        if len(body) < at + length + 2:
            raise RemoteProtocolError("the answer ends within a chunk", section="RFC 9112 7.1")
        parts.append(body[at : at + length])
        at += length + 2


def _refusal(answer: _Answer) -> Refused:
    """The exception for an answer that is no success, with the words of its ``Detail``."""
    detail = answer.head.reason
    if (answer.head.headers.get("Content-Type") or "").startswith("application/xml"):
        with suppress(RemoteProtocolError):  # the status still says what happened
            detail = _parse(answer.body).findtext("Detail") or detail
    message, tracking_id = parse_reason(detail)
    match answer.head.status:
        case 404:
            return EndpointNotFound(message, tracking_id=tracking_id)
        case 409:
            return EndpointAlreadyExists(message, tracking_id=tracking_id)
        case 401 | 403 | 503:
            return refused_from_status(answer.head.status, detail)
        case status:
            return Refused(message, http_status=status, tracking_id=tracking_id)


# XML -----------------------------------------------------------------------------------------------------------------


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types, and with them every entity of the sender's own making."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise RemoteProtocolError("the answer has a document type; neither it nor entities are allowed")


def _parse(body: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(body)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        raise RemoteProtocolError(f"the answer is not XML: {error}", section="management 7") from error
    return root


def _read_entity(entry: ElementTree.Element, head: ResponseHead | None = None) -> Entity:
    description = entry.find(f"{_ATOM}content/{_CONNECT}HybridConnectionDescription")
    if entry.tag != f"{_ATOM}entry" or description is None:
        raise RemoteProtocolError("the answer describes no hybrid connection", section="management 7")
    path = description.findtext(f"{_CONNECT}Path") or entry.findtext(f"{_ATOM}title") or ""
    rules = description.iterfind(f"{_CONNECT}AuthorizationRules/{_CONNECT}AuthorizationRule")
    return Entity(
        path=path,
        requires_client_authorization=_text(description, "RequiresClientAuthorization", "true") == "true",
        user_metadata=description.findtext(f"{_CONNECT}UserMetadata"),
        listener_count=_read_count(_text(description, "ListenerCount", "0")),
        created_at=_read_time(_text(description, "CreatedAt", "")),
        updated_at=_read_time(_text(description, "UpdatedAt", "")),
        rules=tuple(_read_rule(rule) for rule in rules),
        etag=(head.headers.get("ETag") or "") if head is not None else "",
        server=(head.headers.get("Server") or "") if head is not None else "",
    )


def _read_rule(rule: ElementTree.Element) -> Rule:
    names = {right.value: right for right in Right}
    rights = tuple(
        names[text]
        for element in rule.iterfind(f"{_CONNECT}Rights/{_CONNECT}AccessRights")
        if (text := (element.text or "").strip()) in names
    )
    primary, secondary = _text(rule, "PrimaryKey", ""), _text(rule, "SecondaryKey", "")
    return Rule(_text(rule, "KeyName", ""), rights, primary or None, secondary or None)


def _text(parent: ElementTree.Element, name: str, default: str) -> str:
    return (parent.findtext(f"{_CONNECT}{name}") or default).strip()


def _read_count(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _read_time(text: str) -> datetime | None:
    """An instant; .NET writes seven fractional digits, one more than Python reads before 3.12."""
    whole, dot, fraction = text.removesuffix("Z").partition(".")
    try:
        return datetime.fromisoformat(whole + dot + fraction[:6]).replace(tzinfo=UTC)
    except ValueError:
        return None


def _build_entry(path: str, requires: bool, metadata: str | None, rules: Iterable[Rule]) -> bytes:
    """The body of a PUT. ElementTree escapes; members stand in the order of the data contract."""
    entry = ElementTree.Element(f"{_ATOM}entry")
    title = ElementTree.SubElement(entry, f"{_ATOM}title", {"type": "text"})
    title.text = path
    content = ElementTree.SubElement(entry, f"{_ATOM}content", {"type": "application/xml"})
    description = ElementTree.SubElement(content, f"{_CONNECT}HybridConnectionDescription")
    _add(description, "RequiresClientAuthorization", "true" if requires else "false")
    listed = list(rules)
    if listed:
        parent = ElementTree.SubElement(description, f"{_CONNECT}AuthorizationRules")
        for rule in listed:
            _add_rule(parent, rule)
    if metadata is not None:
        _add(description, "UserMetadata", metadata)
    data: bytes = ElementTree.tostring(entry, encoding="utf-8", xml_declaration=False)
    return data


def _add(parent: ElementTree.Element, name: str, text: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, f"{_CONNECT}{name}")
    element.text = text
    return element


def _add_rule(parent: ElementTree.Element, rule: Rule) -> None:
    element = ElementTree.SubElement(parent, f"{_CONNECT}AuthorizationRule", {_TYPE: "SharedAccessAuthorizationRule"})
    _add(element, "ClaimType", "SharedAccessKey")
    _add(element, "ClaimValue", "None")
    rights = ElementTree.SubElement(element, f"{_CONNECT}Rights")
    for right in rule.rights:
        _add(rights, "AccessRights", right.value)
    _add(element, "KeyName", rule.name)
    if rule.primary_key is not None:
        _add(element, "PrimaryKey", rule.primary_key)
    if rule.secondary_key is not None:
        _add(element, "SecondaryKey", rule.secondary_key)


def new_key() -> str:
    """A fresh key: base64 of 32 random bytes (management contract 3.5)."""
    return base64.b64encode(os.urandom(32)).decode("ascii")
