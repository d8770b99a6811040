"""Connection strings as the edge programs take them: the path may stand in the URL, and the key is kept apart.

The vendor's connection managers write ``Endpoint=sb://HOST/PATH``, or name the path by ``EntityPath`` (connection
manager 1.5); its new one takes the fields in one order only. Here any order will do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ...errors import ConfigError
from ...wire.connection_string import ConnectionString, parse_connection_string
from .secret import Secret
from .settings import METADATA, Forward, HcmConnection, PortBinding, Profile, RelaySettings, Target
from .texts import parse_target

__all__ = [
    "SignIn",
    "endpoint_fields",
    "forward_from_string",
    "hcm_connection_from_string",
    "parse_endpoint_url",
    "parse_entity_string",
]

_PATH_IN_URL = re.compile(r"(?P<head>\s*[A-Za-z][A-Za-z0-9+.-]*://[^/]*)/(?P<path>[^?#]*?)/*\s*")
_MADE_UP: Final = "connection string"


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a connection string says.

    Attributes:
      endpoint: ``sb://HOST[:PORT]/``.
      path: of the hybrid connection; ``""`` where the string is one of a namespace.
    """

    endpoint: str
    path: str
    key_name: str
    key: Secret | None = field(repr=False)
    token: Secret | None = field(repr=False)
    is_emulator: bool

    def relay(self) -> RelaySettings:
        """The relay, without a name."""
        return RelaySettings(name="", endpoint=self.endpoint, is_emulator=self.is_emulator)


def _endpoint_of(parsed: ConnectionString) -> str:
    return f"sb://{parsed.host}/" if parsed.port is None else f"sb://{parsed.host}:{parsed.port}/"


def parse_endpoint_url(text: str) -> str:
    """``sb://HOST[:PORT]/``, also without its scheme, in one form.

    Raises:
      ConfigError: it is none.
    """
    text = text.strip()
    url = text if "://" in text else f"sb://{text}"
    try:
        return _endpoint_of(parse_connection_string(f"Endpoint={url}"))
    except ConfigError:
        raise ConfigError(f"expected sb://HOST[:PORT]/ (found {text!r:.100})") from None


def parse_entity_string(text: str, *, source: str = _MADE_UP) -> SignIn:
    """Read a connection string; the fields may stand in any order, the path in ``EntityPath`` or in the URL. The name
    of a rule may stand without its key, which is then kept elsewhere.

    Raises:
      ConfigError: names the field; never repeats a key or a signature.
    """
    fields, names, in_url = [], set(), ""
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        names.add(name.strip().lower())
        if equals and name.strip().lower() == "endpoint" and (match := _PATH_IN_URL.fullmatch(value)) is not None:
            in_url = match["path"].strip("/")
            part = f"{name}={match['head']}/"
        fields.append(part)
    is_keyless = "sharedaccesskeyname" in names and "sharedaccesskey" not in names
    parsed = parse_connection_string(";".join([*fields, "SharedAccessKey=-"] if is_keyless else fields))
    if in_url and parsed.entity_path and in_url != parsed.entity_path:
        raise ConfigError(f"names two hybrid connections: {in_url} in the URL, and {parsed.entity_path}")
    return SignIn(
        endpoint=_endpoint_of(parsed),
        path=parsed.entity_path or in_url,
        key_name=parsed.key_name or "",
        key=None if parsed.key is None or is_keyless else Secret("inline", parsed.key, source),
        token=None if parsed.signature is None else Secret("inline", parsed.signature, source),
        is_emulator=parsed.is_emulator,
    )


def _resolve(text: str, name: str | None, path: str | None, key: Secret | None) -> tuple[SignIn, str, str]:
    found = parse_entity_string(text)
    path = (path or found.path or name or "").strip("/")
    if not path:
        raise ConfigError("names no hybrid connection; add EntityPath=NAME, or give a name", source=_MADE_UP)
    if key is not None:
        if not found.key_name:
            raise ConfigError("a key needs its rule: add SharedAccessKeyName=RULE", source=_MADE_UP)
        found = replace(found, key=key)
    elif found.key_name and found.key is None:
        raise ConfigError("has a rule and no key; add SharedAccessKey=KEY", source=_MADE_UP)
    return found, name or path, path


def endpoint_fields(profile: Profile, endpoint: tuple[Target, ...] | str | None) -> dict[str, object]:
    """The fields of `HcmConnection` that say where connections lead.

    Raises:
      ConfigError: the profile does not go with the endpoint.
    """
    is_url = isinstance(endpoint, str) and endpoint != METADATA
    if profile is Profile.HTTP:
        if not is_url:
            raise ConfigError("the profile http needs the URL of a server, such as http://localhost:8080")
        return {"http_url": endpoint}
    if is_url:
        raise ConfigError(f"a URL goes with the profile http; with {profile} it is HOST:PORT or unix:/PATH")
    if profile is Profile.AZBRIDGE and isinstance(endpoint, tuple):
        # Alone it is reached by any number (connection manager 3.2); its own one is what people will say.
        first = endpoint[0]
        return {"ports": (PortBinding(str(first.port) if first.port else first.path, endpoint),)}
    return {"targets": METADATA if endpoint is None else endpoint}


def hcm_connection_from_string(
    connection_string: str,
    *,
    name: str | None = None,
    endpoint: str | None = None,
    profile: Profile | str = Profile.RAW,
    key: Secret | None = None,
    path: str | None = None,
    cafile: Path | None = None,
) -> HcmConnection:
    """A connection from its connection string, as ``hcm add`` takes it.

    Args:
      connection_string: of the hybrid connection; or of its namespace, and then `path` or `name` is its path.
      name: what it is called here; its path by default.
      endpoint: ``metadata``, ``HOST:PORT``, ``unix:/PATH``, several of these with commas, or a URL for the profile
        http; None is ``metadata``.
      key: instead of the string's own.
      cafile: PEM file of the authorities to trust besides the system's.

    Raises:
      ConfigError: something is wrong; never repeats a key.
    """
    found, name, path = _resolve(connection_string, name, path, key)
    profile = _profile(profile)
    where: tuple[Target, ...] | str | None = endpoint
    if endpoint is not None and endpoint != METADATA and "://" not in endpoint:
        where = tuple(parse_target(part) for part in endpoint.split(","))
    fields: dict[str, object] = {
        "name": name,
        "path": path,
        "relay": _trusting(found.relay(), cafile),
        "key_name": found.key_name,
        "key": found.key,
        "token": found.token,
        "profile": profile,
    }
    return HcmConnection(**fields, **endpoint_fields(profile, where))  # type: ignore[arg-type]


def forward_from_string(
    connection_string: str,
    *,
    name: str | None = None,
    hosts: tuple[str, ...] = (),
    port: int = 0,
    profile: Profile | str = Profile.RAW,
    port_name: str = "",
    key: Secret | None = None,
    path: str | None = None,
    cafile: Path | None = None,
) -> Forward:
    """A forward from its connection string, as ``connect add`` takes it; the arguments as those of
    `hcm_connection_from_string`, and of `Forward`.

    Raises:
      ConfigError: something is wrong; never repeats a key.
    """
    found, name, path = _resolve(connection_string, name, path, key)
    profile = _profile(profile)
    if profile is Profile.HTTP:
        raise ConfigError("a forward carries bytes; send HTTP requests to the relay's own address", key="profile")
    return Forward(
        name=name,
        relay=_trusting(found.relay(), cafile),
        path=path,
        key_name=found.key_name,
        key=found.key,
        token=found.token,
        profile=profile,
        hosts=hosts,
        port=port,
        port_name=port_name,
    )


def _trusting(relay: RelaySettings, cafile: Path | None) -> RelaySettings:
    return replace(relay, cafile=cafile)


def _profile(word: Profile | str) -> Profile:
    try:
        return Profile(word)
    except ValueError:
        raise ConfigError(f"expected {' or '.join(Profile)} (found {word!r:.40})", key="profile") from None
