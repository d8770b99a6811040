"""Connection strings: ``Endpoint=sb://HOST[:PORT]/;SharedAccessKeyName=..;SharedAccessKey=..;EntityPath=..``.

Source: wire contract 5.8. One name is our own, borrowed from the emulators of the vendor's family:
``UseDevelopmentEmulator=true`` means plain ``ws`` without TLS, and is taken only with a loopback host.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from ..errors import ConfigError
from .limits import DEFAULT_OPERATION_TIMEOUT, MAX_CREDENTIAL_CHARS

__all__ = ["ConnectionString", "format_connection_string", "parse_connection_string"]

_NAMES: Final = {
    name.lower(): name
    for name in (
        "Endpoint",
        "SharedAccessKeyName",
        "SharedAccessKey",
        "SharedAccessSignature",
        "EntityPath",
        "OperationTimeout",
        "Authentication",
        "UseDevelopmentEmulator",
    )
}
_ENDPOINT = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/?"
)
# .NET writes a TimeSpan, [d.]hh:mm:ss[.fraction]; Java whole seconds.
_TIME_SPAN = re.compile(
    r"(?:(?P<days>[0-9]{1,5})\.)?(?P<hours>[0-9]{1,2}):(?P<minutes>[0-5]?[0-9]):(?P<seconds>[0-5]?[0-9](?:\.[0-9]{1,7})?)"
)
_WHOLE_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """Where a relay is and how to sign in there.

    Attributes:
      host: host name or IP address; an IPv6 address has its brackets.
      port: ``None`` when the string names none: 443, or 80 with ``is_emulator``.
      key_name: the authorization rule; together with ``key`` or not at all.
      key: the rule's key, as text.
      signature: a ready token instead of name and key.
      entity_path: the hybrid connection, without slashes at its ends.
      operation_timeout: seconds.
      is_emulator: plain ``ws`` on a loopback host.
    """

    host: str
    port: int | None = None
    key_name: str | None = None
    key: str | None = field(default=None, repr=False)
    signature: str | None = field(default=None, repr=False)
    entity_path: str | None = None
    operation_timeout: float = DEFAULT_OPERATION_TIMEOUT
    is_emulator: bool = False

    @property
    def base_url(self) -> str:
        """``wss://host[:port]``, or ``ws://`` for an emulator; no slash at the end."""
        scheme = "ws" if self.is_emulator else "wss"
        return f"{scheme}://{self.host}" if self.port is None else f"{scheme}://{self.host}:{self.port}"

    @property
    def audience(self) -> str:
        """The resource to sign, in the form of .NET: scheme http, no port, slash at the end (wire contract 5.3)."""
        path = "" if self.entity_path is None else quote(self.entity_path, safe="/") + "/"
        return f"http://{self.host.lower()}/{path}"


def _error(key: str, message: str) -> ConfigError:
    return ConfigError(message, source="connection string", key=key)


def parse_connection_string(text: str) -> ConnectionString:
    """Read a connection string.

    Raises:
      ConfigError: names the field and what was expected, and never repeats a key or a signature.
    """
    fields = _split(text)
    _check_credentials(fields)
    host, port = _parse_endpoint(fields.get("Endpoint", ""))
    is_emulator = _parse_emulator(fields.get("UseDevelopmentEmulator", "false"), host)
    entity_path = fields.get("EntityPath", "").strip("/")
    timeout = fields.get("OperationTimeout")
    return ConnectionString(
        host=host,
        port=port,
        key_name=fields.get("SharedAccessKeyName"),
        key=fields.get("SharedAccessKey"),
        signature=fields.get("SharedAccessSignature"),
        entity_path=entity_path or None,
        operation_timeout=DEFAULT_OPERATION_TIMEOUT if timeout is None else _parse_timeout(timeout),
        is_emulator=is_emulator,
    )


def _split(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for number, pair in enumerate(text.split(";"), start=1):
        if not pair.strip():
            continue
        given, equals, value = pair.partition("=")
        # What stands without "=", or under an unknown name, may be a piece of a key: it is counted, not shown.
        if not equals:
            raise _error("", f"part {number} has no '='; expected Name=Value pairs separated by ';'")
        name = _NAMES.get(given.strip().lower())
        if name is None:
            raise _error("", f"part {number} has an unknown name; known are {', '.join(_NAMES.values())}")
        if name in fields:
            raise _error(name, "given twice")
        if not value.strip():
            raise _error(name, "has no value")
        fields[name] = value.strip()
    return fields


def _check_credentials(fields: dict[str, str]) -> None:
    if "Authentication" in fields:
        raise _error("Authentication", "managed identities are not available; give a key or a signature instead")
    has_name, has_key = "SharedAccessKeyName" in fields, "SharedAccessKey" in fields
    if "SharedAccessSignature" in fields and (has_name or has_key):
        raise _error("SharedAccessSignature", "excludes SharedAccessKeyName and SharedAccessKey")
    if has_name != has_key:
        absent = "SharedAccessKey" if has_name else "SharedAccessKeyName"
        raise _error(absent, "missing; SharedAccessKeyName and SharedAccessKey go together")
    for name in ("SharedAccessKeyName", "SharedAccessKey"):
        if len(fields.get(name, "")) > MAX_CREDENTIAL_CHARS:
            raise _error(name, f"longer than {MAX_CREDENTIAL_CHARS} characters")


def _parse_endpoint(endpoint: str) -> tuple[str, int | None]:
    if not endpoint:
        raise _error("Endpoint", "missing; expected Endpoint=sb://HOST[:PORT]/")
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or match["scheme"].lower() != "sb":
        raise _error("Endpoint", "expected sb://HOST[:PORT]/, without a path")
    if match["port"] is None:
        return match["host"], None
    port = int(match["port"])
    if not 0 < port < 65_536:
        raise _error("Endpoint", "the port is not between 1 and 65535")
    return match["host"], port


def _parse_emulator(value: str, host: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise _error("UseDevelopmentEmulator", "expected true or false")
    if value.lower() == "false":
        return False
    if not _is_loopback(host):
        raise _error("UseDevelopmentEmulator", "goes without TLS, so only localhost or a loopback address is allowed")
    return True


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _parse_timeout(text: str) -> float:
    span = _TIME_SPAN.fullmatch(text)
    if span is not None:
        seconds = float(span["seconds"]) + 60 * int(span["minutes"]) + 3_600 * int(span["hours"])
        seconds += 86_400 * int(span["days"] or 0)
    elif _WHOLE_SECONDS.fullmatch(text) is not None:
        seconds = float(text)
    else:
        raise _error("OperationTimeout", "expected hh:mm:ss or whole seconds")
    if seconds <= 0:
        raise _error("OperationTimeout", "must be longer than nothing")
    return seconds


def format_connection_string(
    host: str,
    key_name: str,
    key: str,
    *,
    port: int | None = None,
    entity_path: str | None = None,
    is_emulator: bool = False,
) -> str:
    """Write a connection string, in the order that programs which read it by position expect.

    The slash after the host stays: Java joins ``Endpoint`` and ``EntityPath`` as text. Hybrid Connection Manager takes
    nothing behind ``EntityPath``, so ``is_emulator`` is for our own library.

    Args:
      port: left out of the text when ``None``, or when it is 443 and ``is_emulator`` is off.
    """
    shown_port = "" if port is None or (port == 443 and not is_emulator) else f":{port}"
    parts = [f"Endpoint=sb://{host}{shown_port}/", f"SharedAccessKeyName={key_name}", f"SharedAccessKey={key}"]
    if entity_path is not None:
        parts.append(f"EntityPath={entity_path}")
    if is_emulator:
        parts.append("UseDevelopmentEmulator=true")
    return ";".join(parts)
