"""What may stand behind a key, continued: files and secrets, endpoints and listeners."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from ...errors import ConfigError, RemoteProtocolError
from ...net.proxy import parse_proxy_url
from .kinds import TEXT, Kind, Raw, Source, listed, read_text, several, text_of
from .places import runtime_directory
from .secret import Secret
from .settings import ListenAt, Probe, Target
from .strings import SignIn, parse_entity_string
from .texts import check_pattern, format_listen, format_probe, parse_listen, parse_probe, parse_target, unix_place

__all__ = [
    "ADDRESS",
    "CONNECTION_STRING",
    "ENDPOINT",
    "FILE",
    "HOSTS",
    "LISTEN",
    "LISTENS",
    "PATTERNS",
    "POOL",
    "PROBE",
    "PROXY",
    "SECRET",
    "TARGET",
]

T = TypeVar("T")

_HIDDEN: Final = "(hidden)"
"""Stands where a secret would."""


def _expand(text: str, source: Source) -> str:
    """``~/`` is the home directory, ``$RUNTIME_DIR`` that of sockets."""
    if text.startswith("~/"):
        text = os.path.join(source.environ.get("HOME", "") or os.path.expanduser("~"), text[2:])
    for name in ("$RUNTIME_DIRECTORY", "$RUNTIME_DIR"):
        if name in text:
            text = text.replace(name, str(runtime_directory(source.environ)))
    return text


def _file_path(text: str, source: Source) -> Path:
    """A file's path; a relative one counts from the folder of the settings file, else from the working directory."""
    folder = Path() if source.file is None else source.file.parent
    return folder / _expand(text, source)


FILE: Final = Kind(lambda raw: _file_path(read_text(raw), raw.source), str)


def _check_private(source: Source, what: str) -> None:
    """A secret stands in the settings themselves: only their owner may read them.

    Raises:
      ConfigError: others may.
    """
    if source.is_visible:
        raise ConfigError(
            f"{what} does not belong on a command line, which everybody can read with ps; name its place:"
            " .file=FILE, .env=VARIABLE or .credential=NAME"
        )
    if source.file is not None and not source.is_private:
        raise ConfigError(
            f"{what} stands in a file that others can read; chmod 600 {source.file}, or name its"
            " place: { file = FILE }, { env = VARIABLE } or { credential = NAME }"
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
        _check_private(source, "a secret")
        return Secret("inline", raw.value.strip(), source.text)
    if not isinstance(raw.value, dict) or len(raw.value) != 1:
        raise ConfigError(expected)
    (place, text), *_ = raw.value.items()
    if place not in places or not isinstance(text, str) or not text.strip():
        raise ConfigError(expected)
    match place:
        case "file":
            return Secret("file", str(_file_path(text, source)), source.text)
        case "env":
            return Secret("env", text, source.text)
        case _:
            return Secret("credential", text, source.text)


def _write_secret(secret: Secret) -> object:
    return secret.value if secret.kind == "inline" else {secret.kind: secret.value}


SECRET: Final = Kind(
    _read_secret,
    _write_secret,
    lambda secret: _HIDDEN if secret.kind == "inline" else _write_secret(secret),
    has_parts=True,
)


def _read_proxy(raw: Raw) -> str:
    text = text_of(raw, "env, none, or the URL of a proxy")
    if text not in ("env", "none"):
        try:
            proxy = parse_proxy_url(text)
        except ConfigError:
            raise ConfigError("expected env, none, http://HOST:PORT or socks5://HOST:PORT") from None
        if proxy.password is not None:
            _check_private(raw.source, "a proxy's password")
    return text


def _show_proxy(text: str) -> str:
    if text in ("env", "none"):
        return text
    proxy = parse_proxy_url(text)
    if proxy.user is None:
        return text
    password = "" if proxy.password is None else f":{_HIDDEN}"
    return str(proxy).replace("://", f"://{proxy.user}{password}@", 1)


PROXY: Final = Kind(_read_proxy, show=_show_proxy)


def _read_webhook(raw: Raw) -> str:
    from ...net.connect import parse_ws_url

    text = text_of(raw)
    scheme = text.partition("://")[0].lower()
    try:
        if scheme not in ("http", "https"):
            raise RemoteProtocolError("another scheme")
        parse_ws_url("ws" + text[len("http") :])
    except RemoteProtocolError:  # the text may be a secret
        raise ConfigError("expected https://HOST[:PORT]/PATH or http://...") from None
    return scheme + text[len(scheme) :]


def _show_webhook(url: str) -> str:
    """What stands behind the host may be a secret, as it is with the hooks of chat programs."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority}{slash}{_HIDDEN if path else ''}"


WEBHOOK: Final = Kind(_read_webhook, show=_show_webhook)


_OWN_HEADERS: Final = ("host", "content-type", "content-length", "connection", "transfer-encoding")


def _read_header_name(raw: Raw) -> str:
    from ...wire.http1 import is_token

    text = read_text(raw)
    if not is_token(text) or text.lower() in _OWN_HEADERS:
        raise ConfigError(f"expected the name of a header, such as Authorization (found {text!r:.60})")
    return text


HEADER_NAME: Final = Kind(_read_header_name)


def _read_connection_string(raw: Raw) -> SignIn:
    if not isinstance(raw.value, str):
        raise ConfigError("expected a connection string in quotes")
    found = parse_entity_string(raw.value, source=raw.source.text)
    if found.key is not None or found.token is not None:
        _check_private(raw.source, "a connection string with a key")
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
    return lambda raw: parse(_expand(text_of(raw), raw.source) if is_path else text_of(raw))


TARGET: Final = Kind(_parsed(parse_target, is_path=True), str)
ENDPOINT: Final = Kind(_read_endpoint, _write_endpoint)


def _read_listen(raw: Raw) -> ListenAt:
    if isinstance(raw.value, dict):
        options = dict(raw.value)
        path = options.pop("unix", None)
        if not isinstance(path, str) or not all(isinstance(value, str) for value in options.values()):
            raise ConfigError('expected { unix = "/PATH", mode = "660", owner = "NAME", group = "NAME" }')
        return unix_place(_expand(path, raw.source), options)
    return parse_listen(_expand(text_of(raw), raw.source))


LISTEN: Final = Kind(_read_listen, format_listen)


_SOCKET_OPTION = re.compile(r"[A-Za-z][A-Za-z_-]*=")


def _read_listens(raw: Raw) -> tuple[ListenAt, ...]:
    items: list[Raw] = []
    for item in listed(raw):
        # The comma of ``,mode=660`` is not one between two places.
        if raw.is_text and items and isinstance(item.value, str) and _SOCKET_OPTION.match(item.value):
            items[-1] = replace(items[-1], value=f"{items[-1].value},{item.value}")
        else:
            items.append(item)
    return tuple(_read_listen(item) for item in items)


LISTENS: Final = Kind(_read_listens, lambda values: [format_listen(value) for value in values])


def _read_address(raw: Raw) -> str:
    text = text_of(raw, "an address")
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ConfigError(f"expected an address of this machine (found {text!r:.60})") from None


ADDRESS: Final = Kind(_read_address)


def _read_pool(raw: Raw) -> str:
    text = text_of(raw, "a network")
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
    text = text_of(raw, "a name, or *.SUFFIX")
    prefix, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        host = parse_target(f"[{name}]:1" if ":" in name else f"{name}:1").host
    except ConfigError:
        raise ConfigError(f"expected a name without a port, or *.SUFFIX (found {text!r:.100})") from None
    return prefix + host.lower().rstrip(".")


HOSTS: Final = several(Kind(_read_host))
