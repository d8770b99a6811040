"""What may stand behind a key: how it is read, and how it is written again.

A reader gets a `Raw` value and returns the checked one, or raises `ConfigError` without a place: whoever calls it knows
the key and adds that. A text that is, or may hold, a secret is never repeated in an error.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from .texts import format_bytes, format_rate, format_seconds, parse_bytes, parse_rate, parse_seconds

__all__ = [
    "BOOL",
    "ENTITY",
    "NAME",
    "RATE",
    "SIZE",
    "TEXT",
    "WHOLE_SECONDS",
    "Kind",
    "Raw",
    "Source",
    "choice",
    "count",
    "enumeration",
    "listed",
    "read_text",
    "several",
    "span",
    "text_of",
    "value_of_text",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value stood.

    Attributes:
      text: for people: ``FILE:LINE``, a variable, or ``-o``.
      file: that it stood in, or None.
      is_private: only the owner of the file may read it; or it is no regular file, and has no readers of its own.
      variable: of the environment that it stood in, or ``""``.
      environ: for names of directories in paths.
    """

    text: str
    file: Path | None = None
    is_private: bool = False
    variable: str = ""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_visible(self) -> bool:
        """On a command line everybody can read it."""
        return self.file is None and not self.variable


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as it was found: of TOML's types, or with `is_text` a text that stands for one."""

    value: Any = field(repr=False)
    source: Source
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Attributes:
      read: from what was found; raises `ConfigError`.
      write: to what TOML can say; `read` makes the same of that again. Secrets come out as they are.
      show: as `write`, but without secrets.
      has_parts: it may be a table, so that the environment can name what is in it.
    """

    read: Callable[[Raw], Any]
    write: Callable[[Any], Any] = lambda value: value
    show: Callable[[Any], Any] | None = None
    has_parts: bool = False


def text_of(raw: Raw, expected: str = "a text") -> str:
    """A text without blanks at its ends, and without control characters."""
    if not isinstance(raw.value, str):
        raise ConfigError(f"expected {expected} in quotes (found {raw.value!r:.60})")
    if any(ord(character) < 0x20 or character == "\x7f" for character in raw.value):
        raise ConfigError(f"expected {expected} without control characters")
    return raw.value.strip()


def read_text(raw: Raw) -> str:
    """As `text_of`, and not empty."""
    text = text_of(raw)
    if not text:
        raise ConfigError("expected a text, found an empty one")
    return text


def _read_name(raw: Raw) -> str:
    text = read_text(raw)
    if any(character.isspace() for character in text) or len(text) > 260:
        raise ConfigError(f"expected a name of at most 260 characters without blanks (found {text!r:.60})")
    return text


def _read_path_of_entity(raw: Raw) -> str:
    text = _read_name(raw).strip("/")
    if not text or ";" in text:  # which ends it in a connection string
        raise ConfigError("expected the path of a hybrid connection")
    return text


TEXT: Final = Kind(read_text)
NAME: Final = Kind(_read_name)
ENTITY: Final = Kind(_read_path_of_entity)


def _read_bool(raw: Raw) -> bool:
    value = {"true": True, "false": False}.get(raw.value.lower()) if raw.is_text else raw.value
    if not isinstance(value, bool):
        raise ConfigError(f"expected true or false (found {raw.value!r:.60})")
    return value


BOOL: Final = Kind(_read_bool)


def count(low: int, high: int) -> Kind:
    """A whole number within bounds."""

    def read(raw: Raw) -> int:
        value = raw.value
        if raw.is_text and isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit():
            value = int(value[:20])
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"expected a whole number from {low} to {high} (found {raw.value!r:.60})")
        return value

    return Kind(read)


def span(*, low: float = 0.0, high: float = 86_400.0) -> Kind:
    """Seconds within bounds, from a text with a unit or a bare number."""

    def read(raw: Raw) -> float:
        value = raw.value
        if isinstance(value, str):
            value = parse_seconds(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"expected a span such as 30s, 500ms or 2m (found {raw.value!r:.60})")
        if not low <= value <= high:
            raise ConfigError(
                f"expected between {format_seconds(low)} and {format_seconds(high)} (found {raw.value!r:.60})"
            )
        return float(value)

    return Kind(read, format_seconds)


WHOLE_SECONDS: Final = Kind(lambda raw: round(span().read(raw)), lambda value: format_seconds(float(value)))


def _number(parse: Callable[[str], int], low: int) -> Callable[[Raw], int]:
    def read(raw: Raw) -> int:
        value = parse(raw.value) if isinstance(raw.value, str) else raw.value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << 50:
            raise ConfigError(f"expected a size such as 1MiB, {low} or more (found {raw.value!r:.60})")
        return value

    return read


SIZE: Final = Kind(_number(parse_bytes, 1), format_bytes)
RATE: Final = Kind(_number(parse_rate, 0), format_rate)


def choice(*words: str) -> Kind:
    """One of a few words."""

    def read(raw: Raw) -> str:
        if raw.value not in words:
            raise ConfigError(f"expected {' or '.join(words)} (found {raw.value!r:.60})")
        return str(raw.value)

    return Kind(read)


def enumeration(words: type[enum.StrEnum]) -> Kind:
    """A member of an enumeration, by its value."""
    return Kind(lambda raw: words(choice(*(word.value for word in words)).read(raw)), lambda value: value.value)


def listed(raw: Raw) -> list[Raw]:
    """The elements of a list; one value alone is a list of one, and a text may have commas between several."""
    value = raw.value
    if raw.is_text and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif not isinstance(value, list):
        value = [value]
    return [Raw(item, raw.source, raw.is_text) for item in value]


def several(kind: Kind, *, low: int = 0) -> Kind:
    """A list of values."""

    def read(raw: Raw) -> tuple[Any, ...]:
        found = tuple(kind.read(item) for item in listed(raw))
        if len(found) < low:
            raise ConfigError(f"expected at least {low}")
        return found

    return Kind(read, lambda values: [kind.write(value) for value in values])


def value_of_text(text: str) -> tuple[object, bool]:
    """A text from the environment or ``-o``: what TOML makes of a list, a table or quotes, else the text itself.

    Returns: the value, and whether it is a text that stands for some other type.
    """
    if text.strip()[:1] in ("[", "{", '"', "'"):
        try:
            return tomllib.loads(f"x = {text.strip()}")["x"], False
        except tomllib.TOMLDecodeError:  # [::1]:53 begins like a list
            pass
    return text, True
