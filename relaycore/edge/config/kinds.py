"""What may stand behind a key: how it is read, and how it is written again.

A reader gets a `Raw` value and returns the checked one, or raises `ConfigError` without a place: whoever calls it knows
the key and adds that. A text that is, or may hold, a secret is never repeated in an error.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ...errors import ConfigError
from ...net.proxy import parse_proxy_url
from .places import runtime_directory
from .secret import Secret
from .settings import ListenAt, Probe, Target
from .strings import SignIn, parse_entity_string
from .texts import (
    check_pattern,
    format_bytes,
    format_listen,
    format_probe,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_listen,
    parse_probe,
    parse_rate,
    parse_seconds,
    parse_target,
)

__all__ = ["Kind", "Raw", "Source"]

T = TypeVar("T")

HIDDEN: Final = "(hidden)"
"""Stands where a secret would."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value stood.

    Attributes:
      text: for people: ``FILE:LINE``, a variable, or ``-o``.
      file: that it stood in, or None.
      variable: of the environment that it stood in, or ``""``.
      environ: for names of directories in paths.
    """

    text: str
    file: Path | None = None
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


def _text_of(raw: Raw, expected: str = "a text") -> str:
    if not isinstance(raw.value, str):
        raise ConfigError(f"expected {expected} in quotes (found {raw.value!r:.60})")
    if any(ord(character) < 0x20 or character == "\x7f" for character in raw.value):
        raise ConfigError(f"expected {expected} without control characters")
    return raw.value.strip()


def _read_text(raw: Raw) -> str:
    text = _text_of(raw)
    if not text:
        raise ConfigError("expected a text, found an empty one")
    return text


def _read_name(raw: Raw) -> str:
    text = _read_text(raw)
    if any(character.isspace() for character in text) or len(text) > 260:
        raise ConfigError(f"expected a name of at most 260 characters without blanks (found {text!r:.60})")
    return text


def _read_path_of_entity(raw: Raw) -> str:
    text = _read_name(raw).strip("/")
    if not text:
        raise ConfigError("expected the path of a hybrid connection")
    return text


TEXT: Final = Kind(_read_text)
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


def _expand(text: str, source: Source) -> str:
    """``~/`` is the home directory, ``$RUNTIME_DIR`` that of sockets."""
    if text.startswith("~/"):
        text = os.path.join(source.environ.get("HOME", "") or os.path.expanduser("~"), text[2:])
    for name in ("$RUNTIME_DIRECTORY", "$RUNTIME_DIR"):
        if name in text:
            text = text.replace(name, str(runtime_directory(source.environ)))
    return text


def file_path(text: str, source: Source) -> Path:
    """A file's path; a relative one counts from the folder of the settings file, else from the working directory."""
    folder = Path() if source.file is None else source.file.parent
    return folder / _expand(text, source)


FILE: Final = Kind(lambda raw: file_path(_read_text(raw), raw.source), str)


def check_private(source: Source, what: str) -> None:
    """A secret stands in the settings themselves: only their owner may read them.

    Raises:
      ConfigError: others may.
    """
    if source.is_visible:
        raise ConfigError(
            f"{what} does not belong on a command line, which everybody can read with ps; name its place:"
            " .file=FILE, .env=VARIABLE or .credential=NAME"
        )
    if source.file is None:
        return
    try:
        mode = source.file.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{source.file} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise ConfigError(
            f"{what} stands in a file that others can read (mode {mode & 0o777:03o}); chmod 600 {source.file},"
            " or name its place: { file = FILE }, { env = VARIABLE } or { credential = NAME }"
        )


def _read_secret(raw: Raw) -> Secret:
    places = ("file", "env", "credential")
    expected = "expected one of { file = FILE }, { env = VARIABLE }, { credential = NAME }, or the text itself"
    source = raw.source
    if isinstance(raw.value, str):
        if not raw.value.strip():
            raise ConfigError(f"{expected}; found an empty text")
        if source.variable:
            return Secret("env", source.variable, source.text)
        check_private(source, "a secret")
        return Secret("inline", raw.value.strip(), source.text)
    if not isinstance(raw.value, dict) or len(raw.value) != 1:
        raise ConfigError(expected)
    (place, text), *_ = raw.value.items()
    if place not in places or not isinstance(text, str) or not text.strip():
        raise ConfigError(expected)
    match place:
        case "file":
            return Secret("file", str(file_path(text, source)), source.text)
        case "env":
            return Secret("env", text, source.text)
        case _:
            return Secret("credential", text, source.text)


def _write_secret(secret: Secret) -> object:
    return secret.value if secret.kind == "inline" else {secret.kind: secret.value}


SECRET: Final = Kind(
    _read_secret,
    _write_secret,
    lambda secret: HIDDEN if secret.kind == "inline" else _write_secret(secret),
    has_parts=True,
)


def _read_proxy(raw: Raw) -> str:
    text = _text_of(raw, "env, none, or the URL of a proxy")
    if text not in ("env", "none"):
        try:
            proxy = parse_proxy_url(text)
        except ConfigError:
            raise ConfigError("expected env, none, http://HOST:PORT or socks5://HOST:PORT") from None
        if proxy.password is not None:
            check_private(raw.source, "a proxy's password")
    return text


def _show_proxy(text: str) -> str:
    if text in ("env", "none"):
        return text
    proxy = parse_proxy_url(text)
    if proxy.user is None:
        return text
    password = "" if proxy.password is None else f":{HIDDEN}"
    return str(proxy).replace("://", f"://{proxy.user}{password}@", 1)


PROXY: Final = Kind(_read_proxy, show=_show_proxy)


def _read_connection_string(raw: Raw) -> SignIn:
    if not isinstance(raw.value, str):
        raise ConfigError("expected a connection string in quotes")
    found = parse_entity_string(raw.value, source=raw.source.text)
    if found.key is not None or found.token is not None:
        check_private(raw.source, "a connection string with a key")
    return found


CONNECTION_STRING: Final = Kind(_read_connection_string)


def _read_endpoint(raw: Raw) -> tuple[Target, ...] | str:
    """Targets; or a text that is no target: ``metadata``, or the URL of an HTTP server."""
    if isinstance(raw.value, str) and (text := raw.value.strip()):
        if text.lower() == "metadata":
            return "metadata"
        if text.lower().startswith(("http://", "https://")):
            from ..origin import parse_origin_url

            parse_origin_url(text)
            return text
        raw = Raw(text, raw.source, is_text=True)
    return several(TARGET, low=1).read(raw)  # type: ignore[no-any-return]


def _write_endpoint(value: tuple[Target, ...] | str) -> object:
    if isinstance(value, str):
        return value
    texts = [str(target) for target in value]
    return texts[0] if len(texts) == 1 else texts


def _parsed(parse: Callable[[str], T], *, is_path: bool = False) -> Callable[[Raw], T]:
    return lambda raw: parse(_expand(_text_of(raw), raw.source) if is_path else _text_of(raw))


TARGET: Final = Kind(_parsed(parse_target, is_path=True), str)
ENDPOINT: Final = Kind(_read_endpoint, _write_endpoint)


def _read_listen(raw: Raw) -> ListenAt:
    if isinstance(raw.value, dict):
        unknown = set(raw.value) - {"unix", "mode"}
        path, mode = raw.value.get("unix"), raw.value.get("mode", "600")
        if unknown or not isinstance(path, str) or not isinstance(mode, str):
            raise ConfigError('expected { unix = "/PATH", mode = "660" }')
        return parse_listen(f"unix:{_expand(path, raw.source)},mode={mode}")
    return parse_listen(_expand(_text_of(raw), raw.source))


LISTEN: Final = Kind(_read_listen, format_listen)


def _read_listens(raw: Raw) -> tuple[ListenAt, ...]:
    found: list[ListenAt] = []
    for item in listed(raw):
        # The comma of ``,mode=660`` is not one between two places.
        if raw.is_text and found and isinstance(item.value, str) and item.value.startswith("mode="):
            found[-1] = parse_listen(f"unix:{found[-1].path},{item.value}")
        else:
            found.append(_read_listen(item))
    return tuple(found)


LISTENS: Final = Kind(_read_listens, lambda values: [format_listen(value) for value in values])


def _read_address(raw: Raw) -> str:
    text = _text_of(raw, "an address")
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ConfigError(f"expected an address of this machine (found {text!r:.60})") from None


ADDRESS: Final = Kind(_read_address)


def _read_pool(raw: Raw) -> str:
    text = _text_of(raw, "a network")
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"expected a network such as 127.77.0.0/16: {error}") from None
    if not network.subnet_of(ipaddress.IPv4Network("127.0.0.0/8")) or network.prefixlen > 30:
        raise ConfigError(f"expected a network within 127.0.0.0/8 that has room, /30 or larger (found {text!r})")
    return str(network)


POOL: Final = Kind(_read_pool)
PATTERNS: Final = several(Kind(_parsed(check_pattern)))


def _read_probe(raw: Raw) -> Probe:
    if isinstance(raw.value, str):
        return parse_probe(raw.value)
    if isinstance(raw.value, dict):
        if set(raw.value) == {"command"} and (command := several(TEXT).read(Raw(raw.value["command"], raw.source))):
            return Probe("command", command=command)
        if raw.value and set(raw.value) <= {"send", "expect"}:
            data = {name: _bytes_of(value) for name, value in raw.value.items()}
            return Probe("exchange", send=data.get("send", b""), expect=data.get("expect", b""))
    return parse_probe("")


def _bytes_of(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Sequence) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        return bytes(value)
    raise ConfigError("expected a text, or a list of numbers from 0 to 255")


PROBE: Final = Kind(_read_probe, format_probe, has_parts=True)


def _read_host(raw: Raw) -> str:
    text = _text_of(raw, "a name")
    return parse_target(f"[{text}]:1" if ":" in text else f"{text}:1").host.lower().rstrip(".")


HOSTS: Final = several(Kind(_read_host))


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
