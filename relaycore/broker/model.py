"""What is defined: namespaces, their hybrid connections, and the rules that guard both.

All of it is frozen. A change makes a new :class:`Snapshot` that shares everything unchanged with the one before, so
a reader keeps whatever it has read for as long as it likes, and comparing two snapshots by identity is enough to
find what changed.

Names keep the case of their creation and are compared without it. They are folded by :func:`fold`, which touches
ASCII letters only: names hold nothing else, and a folding that may change the length of a text (as ``str.lower``
does for some letters) would cut the suffix of a requested path in the wrong place.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import string
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from ..errors import EndpointNotFound, Refused
from ..vocab import Right
from ..wire import limits

ROOT_RULE_NAME: Final = "RootManageSharedAccessKey"
"""The rule that each namespace is born with (management contract 3.1)."""

KEY_BYTES: Final = 32
"""Random bytes behind a key; its text is their Base64, 44 characters (management contract 3.5)."""

MAX_NAMESPACE_NAME_CHARS: Final = 253
"""A namespace's name may be a whole host name (RFC 1035 2.3.4); the service's 6-50 is not enforced (spec 15)."""

RIGHTS_IN_ORDER: Final = (Right.LISTEN, Right.MANAGE, Right.SEND)
"""The order in which rights are shown (management contract 3.4)."""

_ALL_RIGHTS: Final = frozenset(Right)
_RIGHT_BY_FOLDED_NAME: Final = {right.value.lower(): right for right in Right}
_ALPHANUMERIC: Final = frozenset(string.ascii_letters + string.digits)
_RULE_NAME_CHARS: Final = _ALPHANUMERIC | frozenset(".-_")
_ENTITY_PATH_CHARS: Final = _RULE_NAME_CHARS | frozenset("/")
_FOLD_TABLE: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SHOWN_PATH_CHARS: Final = 300


def fold(text: str) -> str:
    """Lower the ASCII letters of a name, so that names compare without case. Keeps the length."""
    # Nearly every name is ASCII, and for those str.lower says the same in a tenth of the time.
    return text.lower() if text.isascii() else text.translate(_FOLD_TABLE)


def host_name(text: str) -> str:
    """The folded host of ``text``, which may be a ``Host`` header: a port, brackets and one final dot fall away."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return fold(host.removesuffix("."))


def shown_path(path: str) -> str:
    """``path`` as error texts show it: bounded, because a peer chooses its length."""
    return path if len(path) <= _SHOWN_PATH_CHARS else path[:_SHOWN_PATH_CHARS] + "..."


def endpoint_not_found(path: str) -> EndpointNotFound:
    """The refusal for a path that no hybrid connection has.

    Source: wire contract 12; the same whether or not a token is good (3).
    """
    return EndpointNotFound(f"Endpoint does not exist: {shown_path(path)}")


def ancestors(folded_path: str) -> Iterator[str]:
    """The proper prefixes of a path on segment borders, shortest first: ``a/b/c`` gives ``a`` and ``a/b``."""
    at = folded_path.find("/")
    while at != -1:
        yield folded_path[:at]
        at = folded_path.find("/", at + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class AuthorizationRule:
    """A named pair of keys and the rights that a token signed with either of them carries.

    The HMAC key is the text of a key as it stands, not what its Base64 decodes to (wire contract 5.2).
    """

    name: str
    rights: frozenset[Right]
    primary_key: str = dataclasses.field(repr=False)
    secondary_key: str = dataclasses.field(repr=False)
    created_at: datetime
    updated_at: datetime

    @property
    def keys(self) -> tuple[str, str]:
        """Primary key, then secondary key: the order in which signatures are tried."""
        return (self.primary_key, self.secondary_key)

    @property
    def effective_rights(self) -> frozenset[Right]:
        """The rights with what ``Manage`` implies (wire contract 1)."""
        return _ALL_RIGHTS if Right.MANAGE in self.rights else self.rights


@dataclasses.dataclass(frozen=True, slots=True)
class RuleDefinition:
    """A rule as somebody asks for it: a key that is ``None`` is made by the store, or kept where the rule exists."""

    name: str
    rights: frozenset[Right]
    primary_key: str | None = dataclasses.field(default=None, repr=False)
    secondary_key: str | None = dataclasses.field(default=None, repr=False)


def _find_rule(rules: tuple[AuthorizationRule, ...], name: str) -> AuthorizationRule | None:
    # At most twelve, so a walk is as good as a table.
    wanted = fold(name)
    for rule in rules:
        if fold(rule.name) == wanted:
            return rule
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class HybridConnection:
    """A named rendezvous point of a namespace.

    ``path`` keeps the case of its creation. ``websocket`` and ``http`` switch the two kinds of sender off, because
    a published Node listener dies of the kind that it does not know (wire contract 18). ``raw_target`` hands a
    request's path to the listener without the unescaping of 9.4. ``rules`` stand in the order of their creation.
    """

    path: str
    requires_client_authorization: bool
    user_metadata: str | None
    created_at: datetime
    updated_at: datetime
    websocket: bool = True
    http: bool = True
    raw_target: bool = False
    rules: tuple[AuthorizationRule, ...] = ()

    def find_rule(self, name: str) -> AuthorizationRule | None:
        """The rule of that name on this hybrid connection itself, without regard to case."""
        return _find_rule(self.rules, name)


@dataclasses.dataclass(frozen=True, slots=True)
class Namespace:
    """The host names that clients dial, with the hybrid connections and rules behind them.

    ``hosts`` are folded; empty means that any host name will do. ``entities`` maps a folded path to its hybrid
    connection, in no promised order.
    """

    name: str
    hosts: tuple[str, ...]
    rules: tuple[AuthorizationRule, ...]
    entities: Mapping[str, HybridConnection] = dataclasses.field(repr=False)
    created_at: datetime
    updated_at: datetime

    def find_rule(self, name: str) -> AuthorizationRule | None:
        """The rule of that name on the namespace itself, without regard to case."""
        return _find_rule(self.rules, name)

    def get_entity(self, path: str) -> HybridConnection | None:
        """The hybrid connection of exactly this decoded path, without regard to case: what a listener names."""
        return self.entities.get(fold(path.strip("/")))

    def find_entity(self, decoded_path: str) -> tuple[HybridConnection, str] | None:
        """The hybrid connection that a sender's path leads to, and the rest of the path.

        The longest registered prefix on segment borders wins. Slashes around the path do not count.

        Returns: the hybrid connection and the suffix without its leading slash (``""``: none), or ``None``.

        Source: wire contract 3.
        """
        path = decoded_path.strip("/")
        folded = fold(path)
        # A name has a longest length, so a path of thousands of slashes costs no more than a name of them.
        end = len(folded)
        if end > limits.MAX_ENTITY_NAME_CHARS:
            end = folded.rfind("/", 0, limits.MAX_ENTITY_NAME_CHARS + 1)
        while end > 0:
            entity = self.entities.get(folded[:end])
            if entity is not None:
                return entity, path[end + 1 :]
            end = folded.rfind("/", 0, end)
        return None

    def has_host(self, host: str) -> bool:
        """Whether ``host`` is one of the names of this namespace. With no names given, each host is."""
        return not self.hosts or host_name(host) in self.hosts


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is defined, at one moment. ``version`` grows with each committed change."""

    version: int
    namespaces: tuple[Namespace, ...]
    _by_host: Mapping[str, Namespace] = dataclasses.field(init=False, repr=False, compare=False)
    _by_name: Mapping[str, Namespace] = dataclasses.field(init=False, repr=False, compare=False)
    _any_host: Namespace | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_host = {host: namespace for namespace in self.namespaces for host in namespace.hosts}
        # The store admits one namespace without host names; with more, the first stays the one.
        any_host = next((namespace for namespace in self.namespaces if not namespace.hosts), None)
        object.__setattr__(self, "_by_host", by_host)
        object.__setattr__(self, "_by_name", {fold(namespace.name): namespace for namespace in self.namespaces})
        object.__setattr__(self, "_any_host", any_host)

    def find_namespace(self, host: str) -> Namespace | None:
        """The namespace that answers to ``host`` (a ``Host`` header will do), else the one for any host, else none."""
        return self._by_host.get(host_name(host), self._any_host)

    def get_namespace(self, name: str) -> Namespace | None:
        """The namespace of that name, without regard to case."""
        return self._by_name.get(fold(name))


EMPTY_SNAPSHOT: Final = Snapshot(0, ())

# Validation ----------------------------------------------------------------------------------------------------------


def _check_name(kind: str, name: str, longest: int, allowed: frozenset[str], words: str) -> None:
    if not 1 <= len(name) <= longest:
        raise Refused(f"The name of a {kind} has 1 to {longest} characters, this one has {len(name)}")
    if not allowed.issuperset(name):
        raise Refused(f"The name of a {kind} consists of letters, digits, {words}")
    if name[0] not in _ALPHANUMERIC or name[-1] not in _ALPHANUMERIC:
        raise Refused(f"The name of a {kind} begins and ends with a letter or a digit")


def validate_entity_path(path: str) -> str:
    """Check the name of a hybrid connection and give it back.

    Raises:
      Refused: 400, naming the rule that is broken. Segments ``.`` and ``..`` are refused as well, although their
        characters are allowed: clients resolve them before they ask, so such a name could never be reached.

    Source: management contract 3.2.
    """
    _check_name("hybrid connection", path, limits.MAX_ENTITY_NAME_CHARS, _ENTITY_PATH_CHARS, "'.', '-', '_' and '/'")
    segments = path.split("/")
    if "" in segments:
        raise Refused("The name of a hybrid connection has no empty path segment")
    if "." in segments or ".." in segments:
        raise Refused("The name of a hybrid connection has no path segment '.' or '..'")
    return path


def validate_rule_name(name: str) -> str:
    """Check the name of an authorization rule and give it back.

    Raises:
      Refused: 400, naming the rule that is broken.

    Source: management contract 3.4.
    """
    _check_name("authorization rule", name, limits.MAX_RULE_NAME_CHARS, _RULE_NAME_CHARS, "'.', '-' and '_'")
    return name


def validate_namespace_name(name: str) -> str:
    """Check the name of a namespace and give it back.

    Raises:
      Refused: 400, naming the rule that is broken.
    """
    _check_name("namespace", name, MAX_NAMESPACE_NAME_CHARS, _RULE_NAME_CHARS, "'.', '-' and '_'")
    return name


def validate_rights(rights: Iterable[Right | str]) -> frozenset[Right]:
    """Check a set of rights, whose names may come in any case.

    Raises:
      Refused: 400; none at all, one that does not exist, one twice, or ``Manage`` without the other two.

    Source: management contract 3.4.
    """
    found: list[Right] = []
    for right in rights:
        known = right if isinstance(right, Right) else _RIGHT_BY_FOLDED_NAME.get(fold(right))
        if known is None:
            raise Refused("A right is one of Listen, Manage and Send")
        found.append(known)
    unique = frozenset(found)
    if not unique:
        raise Refused("An authorization rule has at least one right")
    if len(unique) != len(found):
        raise Refused("An authorization rule names each right once")
    if Right.MANAGE in unique and unique != _ALL_RIGHTS:
        raise Refused("An authorization rule with Manage has Listen and Send too")
    return unique


def rights_in_order(rights: Iterable[Right]) -> tuple[Right, ...]:
    """Rights in the order in which they are shown: Listen, Manage, Send (management contract 3.4)."""
    present = frozenset(rights)
    return tuple(right for right in RIGHTS_IN_ORDER if right in present)


def validate_key(key: str) -> str:
    """Check a key that a caller chose and give it back.

    Raises:
      Refused: 400, never naming the key.

    Source: management contract 3.5: Base64 of 32 bytes.
    """
    try:
        decoded = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    # Written back and compared, so that each set of bytes has one text: the text is what signs.
    if len(decoded) != KEY_BYTES or base64.b64encode(decoded).decode("ascii") != key:
        raise Refused(f"A key is the Base64 text of {KEY_BYTES} bytes")
    return key


def validate_user_metadata(text: str | None) -> str | None:
    """Check the free text of a hybrid connection and give it back.

    Raises:
      Refused: 400 above 1024 characters, or if it cannot be written as UTF-8.

    Source: management contract 3.2.
    """
    if text is None:
        return None
    if len(text) > limits.MAX_USER_METADATA_CHARS:
        raise Refused(f"userMetadata has at most {limits.MAX_USER_METADATA_CHARS} characters, this one has {len(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("userMetadata is not a text that UTF-8 can hold") from None
    return text
