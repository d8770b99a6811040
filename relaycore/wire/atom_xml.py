"""The XML of the management surface: entries, feeds and errors out, the body of a PUT in. Text and values only.

Facts about the readers, and what follows from them (management contract, 7):

- .NET reads a description with a data-contract reader. It walks forward through the member names in their fixed
  order and drops, without a word, whatever stands before the member that it has already reached. So the order of
  elements below is part of the contract; elements unknown to a reader may stand between.
- One client wants the body to begin with the characters ``<entry``. So there is no XML declaration, no byte order
  mark and no white space in front.
- ``True`` makes .NET raise, and so does another namespace. Booleans are lower case, times end in ``Z``.
- ``UserMetadata`` that was never set is left out; set to nothing, it is an empty element.

XML 1.0 cannot carry most control characters, not even escaped. A PUT that tries is not well-formed and is refused.
Metadata that came into the store another way is shown with U+FFFD in the place of each such character: the rest
stays readable, which is worth more to a reader that looks for the endpoint in it than no metadata at all.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from xml.parsers import expat

from ..errors import RemoteProtocolError
from ..vocab import BytesLike, Right

__all__ = [
    "ENTRY_MEDIA_TYPE",
    "ERROR_MEDIA_TYPE",
    "FEED_MEDIA_TYPE",
    "EntityDescription",
    "PutBody",
    "RuleDescription",
    "SubmittedRule",
    "build_entry",
    "build_error",
    "build_feed",
    "format_time",
    "parse_put_body",
]

ENTRY_MEDIA_TYPE: Final = "application/atom+xml;type=entry;charset=utf-8"
FEED_MEDIA_TYPE: Final = "application/atom+xml;type=feed;charset=utf-8"
ERROR_MEDIA_TYPE: Final = "application/xml; charset=utf-8"

_ATOM: Final = "http://www.w3.org/2005/Atom"
_CONNECT: Final = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
_INSTANCE: Final = "http://www.w3.org/2001/XMLSchema-instance"

MAX_XML_DEPTH: Final = 32
"""Open elements of a PUT body (management contract 9 allows JSON the same depth; an honest body needs seven)."""

MAX_XML_ELEMENTS: Final = 10_000
"""Elements of a PUT body: twelve rules take 150, and a megabyte of empty ones would hold the loop for 0.1 s."""


# Values out ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RuleDescription:
    """An authorization rule with its keys, for callers with Manage only. Times are UTC."""

    name: str
    rights: frozenset[Right]
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class EntityDescription:
    """What an entry says about one hybrid connection. ``rules`` is empty for a caller without Manage."""

    path: str
    created_at: datetime
    updated_at: datetime
    requires_client_authorization: bool
    user_metadata: str | None
    listener_count: int
    rules: tuple[RuleDescription, ...] = ()


_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES: Final = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        '"': "&quot;",
        "\r": "&#xD;",  # XML 1.0, 2.11: a bare CR would reach the reader as LF
    }
)


def _escape(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text).translate(_ESCAPES)


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC with six fractional digits and ``Z``, as .NET reads it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def build_entry(description: EntityDescription, *, url: str, author: str) -> str:
    """One Atom entry, from its first character ``<entry`` on; it may stand alone or inside a feed.

    Args:
      description: the hybrid connection; its rules, with keys, are written as they are given.
      url: absolute address of the entry, used as ``id`` and as the ``self`` link.
      author: name of the namespace.

    Source: management contract 7; the order of members is that of the .NET data contract.
    """
    link = _escape(url)
    created, updated = format_time(description.created_at), format_time(description.updated_at)
    path = _escape(description.path)
    metadata = description.user_metadata
    return "".join(
        (
            f'<entry xmlns="{_ATOM}"><id>{link}</id><title type="text">{path}</title>',
            f"<published>{created}</published><updated>{updated}</updated>",
            f'<author><name>{_escape(author)}</name></author><link rel="self" href="{link}"/>',
            '<content type="application/xml">',
            f'<HybridConnectionDescription xmlns="{_CONNECT}" xmlns:i="{_INSTANCE}">',
            f"<Path>{path}</Path><CreatedAt>{created}</CreatedAt><UpdatedAt>{updated}</UpdatedAt>",
            f"<RequiresClientAuthorization>{_boolean(description.requires_client_authorization)}",
            "</RequiresClientAuthorization>",
            _rules(description.rules),
            "" if metadata is None else f"<UserMetadata>{_escape(metadata)}</UserMetadata>",
            f"<ListenerCount>{description.listener_count}</ListenerCount>",
            "</HybridConnectionDescription></content></entry>",
        )
    )


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _rules(rules: Iterable[RuleDescription]) -> str:
    items = "".join(map(_rule, rules))
    return f"<AuthorizationRules>{items}</AuthorizationRules>" if items else "<AuthorizationRules/>"


def _rule(rule: RuleDescription) -> str:
    rights = sorted(right.value for right in rule.rights)
    return "".join(
        (
            '<AuthorizationRule i:type="SharedAccessAuthorizationRule">',
            "<ClaimType>SharedAccessKey</ClaimType><ClaimValue>None</ClaimValue><Rights>",
            *(f"<AccessRights>{right}</AccessRights>" for right in rights),
            f"</Rights><CreatedTime>{format_time(rule.created_at)}</CreatedTime>",
            f"<ModifiedTime>{format_time(rule.updated_at)}</ModifiedTime>",
            f"<KeyName>{_escape(rule.name)}</KeyName>",
            f"<PrimaryKey>{_escape(rule.primary_key)}</PrimaryKey>",
            f"<SecondaryKey>{_escape(rule.secondary_key)}</SecondaryKey></AuthorizationRule>",
        )
    )


def build_feed(title: str, entries: Iterable[str], *, url: str, updated: datetime) -> str:
    """An Atom feed around finished entries. With none it is what .NET reads as "no such entity".

    Source: management contract 7.
    """
    link = _escape(url)
    return "".join(
        (
            f'<feed xmlns="{_ATOM}"><title type="text">{_escape(title)}</title><id>{link}</id>',
            f'<updated>{format_time(updated)}</updated><link rel="self" href="{link}"/>',
            *entries,
            "</feed>",
        )
    )


def build_error(status: int, detail: str) -> str:
    """The body of a refusal; .NET shows ``Detail`` as the message of its exception (management contract 7)."""
    return f"<Error><Code>{status}</Code><Detail>{_escape(detail)}</Detail></Error>"


# Values in -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmittedRule:
    """A rule in a PUT body. Nobody has checked name, set of rights and keys yet; a key may be missing."""

    name: str
    rights: tuple[Right, ...]
    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class PutBody:
    """What a PUT body says. ``None``: it says nothing about that. ``rules`` is ``None`` or as many as were sent."""

    requires_client_authorization: bool | None = None
    user_metadata: str | None = None
    rules: tuple[SubmittedRule, ...] | None = None


class _Place(enum.Enum):
    """Where in the body the parser stands."""

    DOCUMENT = enum.auto()
    ENTRY = enum.auto()
    CONTENT = enum.auto()
    DESCRIPTION = enum.auto()
    REQUIRES_CLIENT_AUTHORIZATION = enum.auto()
    USER_METADATA = enum.auto()
    RULES = enum.auto()
    RULE = enum.auto()
    RIGHTS = enum.auto()
    RIGHT = enum.auto()
    KEY_NAME = enum.auto()
    PRIMARY_KEY = enum.auto()
    SECONDARY_KEY = enum.auto()
    IGNORED = enum.auto()


_CHILDREN: Final[Mapping[tuple[_Place, str], _Place]] = {
    (_Place.DOCUMENT, f"{_ATOM}}}entry"): _Place.ENTRY,
    (_Place.ENTRY, f"{_ATOM}}}content"): _Place.CONTENT,
    (_Place.CONTENT, f"{_CONNECT}}}HybridConnectionDescription"): _Place.DESCRIPTION,
    (_Place.DESCRIPTION, f"{_CONNECT}}}RequiresClientAuthorization"): _Place.REQUIRES_CLIENT_AUTHORIZATION,
    (_Place.DESCRIPTION, f"{_CONNECT}}}UserMetadata"): _Place.USER_METADATA,
    (_Place.DESCRIPTION, f"{_CONNECT}}}AuthorizationRules"): _Place.RULES,
    (_Place.RULES, f"{_CONNECT}}}AuthorizationRule"): _Place.RULE,
    (_Place.RULE, f"{_CONNECT}}}Rights"): _Place.RIGHTS,
    (_Place.RULE, f"{_CONNECT}}}KeyName"): _Place.KEY_NAME,
    (_Place.RULE, f"{_CONNECT}}}PrimaryKey"): _Place.PRIMARY_KEY,
    (_Place.RULE, f"{_CONNECT}}}SecondaryKey"): _Place.SECONDARY_KEY,
    (_Place.RIGHTS, f"{_CONNECT}}}AccessRights"): _Place.RIGHT,
}
"""Everything that is read. Whatever is not here is ignored with all that it holds."""

_TEXT_PLACES: Final = frozenset(
    {
        _Place.REQUIRES_CLIENT_AUTHORIZATION,
        _Place.USER_METADATA,
        _Place.RIGHT,
        _Place.KEY_NAME,
        _Place.PRIMARY_KEY,
        _Place.SECONDARY_KEY,
    }
)
_REPEATABLE: Final = frozenset({_Place.RULE, _Place.RIGHT, _Place.IGNORED})
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_RIGHTS: Final = {right.value.casefold(): right for right in Right}


def _bad(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, section="management 7", http_status=400)


class _PutParser:
    """Callbacks of one parse. The stack holds, per open element, its place and what was already seen inside it."""

    def __init__(self) -> None:
        self.found: PutBody | None = None
        self._stack: list[tuple[_Place, set[_Place], bool]] = [(_Place.DOCUMENT, set(), False)]
        self._elements = 0
        self._text: list[str] = []
        self._requires: bool | None = None
        self._metadata: str | None = None
        self._rules: list[SubmittedRule] | None = None
        self._rights: list[Right] = []
        self._rule_text: dict[_Place, str] = {}

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_XML_ELEMENTS or len(self._stack) > MAX_XML_DEPTH:
            raise _bad("The request body has too many or too deeply nested elements.")
        parent, seen, _ = self._stack[-1]
        if parent in _TEXT_PLACES:
            raise _bad(f"The request body has an element {_local(name)!r} where text is expected.")
        place = _CHILDREN.get((parent, name), _Place.IGNORED)
        if parent is _Place.DOCUMENT and place is not _Place.ENTRY:
            raise _bad("The request body is not an Atom entry.")
        if parent is _Place.CONTENT and place is _Place.IGNORED and name.startswith(f"{_CONNECT}}}"):
            raise _bad(f"A {_local(name)} cannot be stored here; this relay holds hybrid connections only.")
        if place in seen and place not in _REPEATABLE:
            raise _bad(f"The request body has {_local(name)!r} twice.")
        seen.add(place)
        if place is _Place.RULE:
            kind = _local(attributes.get(f"{_INSTANCE}}}type", "SharedAccessAuthorizationRule"), separator=":")
            if kind.strip() != "SharedAccessAuthorizationRule":
                raise _bad(f"An authorization rule of the type {kind!r} is not supported.")
            self._rights, self._rule_text = [], {}
        elif place is _Place.RULES:
            self._rules = []
        is_nil = _BOOLEANS.get(attributes.get(f"{_INSTANCE}}}nil", "false").strip(), False)
        self._text.clear()
        self._stack.append((place, set(), is_nil))

    def text(self, data: str) -> None:
        if self._stack[-1][0] in _TEXT_PLACES:
            self._text.append(data)

    def end(self, name: str) -> None:
        place, _, is_nil = self._stack.pop()
        text = "".join(self._text)
        match place:
            case _ if is_nil and place in _TEXT_PLACES:
                pass
            case _Place.REQUIRES_CLIENT_AUTHORIZATION:
                self._requires = _BOOLEANS.get(text.strip())
                if self._requires is None:
                    raise _bad(f"{_local(name)} must be true or false.")
            case _Place.USER_METADATA:
                self._metadata = text
            case _Place.RIGHT:
                right = _RIGHTS.get(text.strip().casefold())
                if right is None:
                    raise _bad("AccessRights must be Listen, Send or Manage.")
                self._rights.append(right)
            case _Place.KEY_NAME | _Place.PRIMARY_KEY | _Place.SECONDARY_KEY:
                self._rule_text[place] = text.strip()
            case _Place.RULE:
                self._end_rule()
            case _Place.DESCRIPTION:
                rules = None if self._rules is None else tuple(self._rules)
                self.found = PutBody(self._requires, self._metadata, rules)
            case _:
                pass

    def _end_rule(self) -> None:
        name = self._rule_text.get(_Place.KEY_NAME)
        if not name:
            raise _bad("An authorization rule has no KeyName.")
        assert self._rules is not None  # a rule opens inside the rules only
        # An empty key element is what a client writes that leaves the choice to the relay.
        primary, secondary = (self._rule_text.get(key) or None for key in (_Place.PRIMARY_KEY, _Place.SECONDARY_KEY))
        self._rules.append(SubmittedRule(name, tuple(self._rights), primary, secondary))


def _local(name: str, *, separator: str = "}") -> str:
    """The name without its namespace, cut to what fits into a message."""
    return name.rpartition(separator)[2][:64]


def _refuse_doctype(*_: object) -> None:
    raise _bad("The request body has a document type; neither it nor entities are allowed.")


def parse_put_body(data: BytesLike) -> PutBody:
    """Read the Atom entry of a PUT.

    Title and ``Path`` are not read: the URL names the hybrid connection. Unknown elements are ignored, members may
    come in any order, ``i:nil`` counts as absent. The bytes are UTF-8, or UTF-16 behind a byte order mark, whatever a
    declaration says: .NET programs are known to declare one and send the other.

    Raises:
      RemoteProtocolError: with status 400, for everything that is not such an entry: not well-formed, a document
        type (and with it every entity of the sender's own), too deep, too many elements, a member twice, a boolean or
        a right that is none, a rule without a name.

    Source: management contract 7.
    """
    raw = bytes(data)
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        raise _bad("The request body is neither UTF-8 nor UTF-16.") from None
    handlers = _PutParser()
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    parser.StartElementHandler = handlers.start
    parser.EndElementHandler = handlers.end
    parser.CharacterDataHandler = handlers.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as exc:
        problem = expat.ErrorString(exc.code)
        raise _bad(f"The request body is not well-formed XML: {problem} in line {exc.lineno}.") from None
    if handlers.found is None:
        raise _bad("The request body has no HybridConnectionDescription.")
    return handlers.found
