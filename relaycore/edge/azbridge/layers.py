"""azbridge's settings in layers, and what they come to together.

::

    environment  <  machine file  <  user file, service file or -f FILE  <  -o KEY:VALUE  <  flags

What comes later wins; the lists of forwards add up, unless ``ClearAllForwardings`` empties what came before. A
connection string replaces endpoint, key and signature of its own layer and of those before it (connection manager
3.1, 3.3, 3.4).

Deviations, each where azbridge is broken or silent: ``GatewayPorts``, ``ConnectTimeout``, ``ConnectionAttempts``,
``AddressFamily`` and the variable ``AZURE_BRIDGE_CONNECTIONSTRING`` work; text behind the second colon of ``-o`` is
kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ...errors import ConfigError
from ..config.secret import Secret
from ..config.strings import SignIn, parse_endpoint_url, parse_entity_string
from .expressions import HttpBinding, LocalBinding, RemoteBinding

__all__ = [
    "LOCAL_BINDING_KEYS",
    "LOCAL_KEYS",
    "REMOTE_BINDING_KEYS",
    "REMOTE_KEYS",
    "TOP_KEYS",
    "BridgeSettings",
    "Layer",
    "LocalForward",
    "RemoteForward",
    "combine",
    "environment_layer",
    "nearest",
    "option_layer",
    "unwrapped",
]


@dataclass(frozen=True, slots=True)
class LocalForward:
    """One entry of ``LocalForward``, or one ``-L``.

    Attributes:
      hosts: names of the remote service, for information.
      connection_string: instead of the global one; ``""`` for none.
      is_anonymous: sign nothing.
      source: ``FILE:LINE`` or the flag.
    """

    relay: str
    bindings: tuple[LocalBinding, ...]
    hosts: tuple[str, ...] = ()
    connection_string: str = field(default="", repr=False)
    is_anonymous: bool = False
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RemoteForward:
    """One entry of ``RemoteForward``, or one ``-T``, ``-R`` or ``-H``."""

    relay: str
    bindings: tuple[RemoteBinding, ...] = ()
    http: tuple[HttpBinding, ...] = ()
    connection_string: str = field(default="", repr=False)
    source: str = field(default="", compare=False)


@dataclass
class Layer:
    """What one source says.

    Attributes:
      values: by key, with the place where it stands. Keys may be secret values' names; see `BridgeSettings`.
      clears: forget the forwards of the layers before.
      warnings: one line each, for people.
    """

    values: dict[str, tuple[Any, str]] = field(default_factory=dict, repr=False)
    local: list[LocalForward] = field(default_factory=list)
    remote: list[RemoteForward] = field(default_factory=list)
    clears: bool = False
    warnings: list[str] = field(default_factory=list)

    def set(self, key: str, text: str, source: str) -> None:
        """Take a top-level value as text, such as that of ``-o``.

        Raises:
          ConfigError: the key is unknown, or takes something else.
        """
        known = TOP_KEYS.get(key)
        if known is None:
            raise ConfigError(f"unknown key{nearest(key, TOP_KEYS)}", source=source, key=key)
        try:
            value = known(unwrapped(text))
        except ConfigError as error:
            raise ConfigError(str(error), source=source, key=key) from None
        if key == "ClearAllForwardings":
            self.clears = self.clears or value
        else:
            self.values[key] = value, source


@dataclass(frozen=True)
class BridgeSettings:
    """All layers together; what azbridge calls the same, without its abbreviations.

    Attributes:
      sign_in: where the relay is and how to sign; None if nothing says it.
      connect_timeout_s: for dialling either way; None is the usual one.
      exits_on_failure: end the program if a forward cannot be set up.
    """

    sign_in: SignIn | None = None
    local: tuple[LocalForward, ...] = ()
    remote: tuple[RemoteForward, ...] = ()
    family: Literal["any", "ipv4", "ipv6"] = "any"
    bind_address: str | None = None
    connection_attempts: int = 3
    connect_timeout_s: float | None = None
    keep_alive_s: float = 30.0
    exits_on_failure: bool = True
    is_gateway: bool = False
    log_level: str = ""
    log_file: str = ""
    warnings: tuple[str, ...] = ()


# Values --------------------------------------------------------------------------------------------------------------


def unwrapped(text: str) -> str:
    """Without blanks and one pair of quotes around it, as azbridge trims its values."""
    text = text.strip()
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _flag(text: str) -> bool:
    found = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text.lower())
    if found is None:
        raise ConfigError("expected true or false")
    return found


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and low <= int(text) <= high):
            raise ConfigError(f"expected a whole number from {low} to {high}")
        return int(text)

    return parse


def _word(**words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ConfigError(f"expected {', '.join(words)}")
        return words[text.lower()]

    return parse


def _endpoint(text: str) -> str:
    return parse_endpoint_url(text)


def _connection_string(text: str) -> str:
    if text:
        parse_entity_string(text)
    return text


_LEVELS: Final = {
    "none": "none",
    "quiet": "none",
    "fatal": "error",
    "error": "error",
    "info": "info",
    "verbose": "debug",
    "debug": "debug",
    "debug1": "debug",
    "debug2": "debug",
    "debug3": "debug",
}

TOP_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "AddressFamily": _word(any="any", inet="ipv4", inet6="ipv6"),
    "AzureRelayConnectionString": _connection_string,
    "AzureRelayEndpoint": _endpoint,
    "AzureRelaySharedAccessKeyName": str,
    "AzureRelaySharedAccessKey": str,
    "AzureRelaySharedAccessSignature": str,
    "BindAddress": str,
    "ClearAllForwardings": _flag,
    "ConnectionAttempts": _whole(1, 10),
    "ConnectTimeout": _whole(0, 120),
    "ExitOnForwardFailure": _flag,
    "GatewayPorts": _flag,
    "KeepAliveInterval": _whole(1, 86_400),
    "LogLevel": _word(**_LEVELS),
    "LogFileName": str,
}

LOCAL_BINDING_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "BindAddress": str,
    "BindPort": _whole(-65_535, 65_535),
    "BindLocalSocket": str,
    "PortName": str,
    "HostName": str,
}
LOCAL_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "RelayName": str,
    "ConnectionString": _connection_string,
    "NoAuthentication": _flag,
    **LOCAL_BINDING_KEYS,
}
REMOTE_BINDING_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "Host": str,
    "HostPort": _whole(-65_535, 65_535),
    "PortName": str,
    "LocalSocket": str,
    "Http": _flag,
    "Insecure": _flag,
    "Path": str,
}
REMOTE_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "RelayName": str,
    "ConnectionString": _connection_string,
    **REMOTE_BINDING_KEYS,
}


def nearest(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key; ``""`` where nothing is like it."""
    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower(), by_folded, n=1, cutoff=0.5)
    return f"; the nearest known one is {by_folded[near[0]]}" if near else ""


# Layers --------------------------------------------------------------------------------------------------------------


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """What the environment says: ``AZURE_BRIDGE_CONNECTIONSTRING``, which azbridge documents and does not read.

    Raises:
      ConfigError: it is no connection string.
    """
    layer = Layer()
    name = "AZURE_BRIDGE_CONNECTIONSTRING"
    if environ.get(name):
        layer.set("AzureRelayConnectionString", environ[name], name)
    return layer


def option_layer(options: Iterable[str]) -> Layer:
    """What ``-o KEY:VALUE`` says.

    Raises:
      ConfigError: a key is unknown, or its value is wrong.
    """
    layer = Layer()
    for option in options:
        key, colon, value = option.partition(":")
        if not colon:
            raise ConfigError("expected KEY:VALUE", source="-o", key=key[:60])
        layer.set(key.strip(), value, "-o")
    return layer


def combine(layers: Iterable[Layer]) -> BridgeSettings:
    """Put layers together, the strongest last.

    Raises:
      ConfigError: key, name of the rule and endpoint do not fit together.
    """
    values: dict[str, tuple[Any, str]] = {}
    access = _Access()
    local: list[LocalForward] = []
    remote: list[RemoteForward] = []
    warnings: list[str] = []
    for layer in layers:
        if layer.clears:
            local.clear()
            remote.clear()
        local += layer.local
        remote += layer.remote
        warnings += layer.warnings
        values |= layer.values
        access.take(layer)

    def value(key: str, usual: Any) -> Any:  # noqa: ANN401 - of the key's own type
        return values[key][0] if key in values else usual

    return BridgeSettings(
        sign_in=access.sign_in(),
        local=tuple(local),
        remote=tuple(remote),
        family=value("AddressFamily", "any"),
        bind_address=value("BindAddress", "") or None,
        connection_attempts=value("ConnectionAttempts", BridgeSettings.connection_attempts),
        connect_timeout_s=value("ConnectTimeout", 0) or None,
        keep_alive_s=float(value("KeepAliveInterval", BridgeSettings.keep_alive_s)),
        exits_on_failure=value("ExitOnForwardFailure", True),
        is_gateway=value("GatewayPorts", False),
        log_level=value("LogLevel", ""),
        log_file=value("LogFileName", ""),
        warnings=tuple(warnings),
    )


class _Access:
    """Endpoint and credentials, as one layer after the other sets them."""

    def __init__(self) -> None:
        self._endpoint: str | None = None
        self._key_name = ""
        self._key: Secret | None = None
        self._token: Secret | None = None
        self._is_emulator = False

    def take(self, layer: Layer) -> None:
        values = layer.values
        if "AzureRelayEndpoint" in values:
            self._endpoint, self._is_emulator = values["AzureRelayEndpoint"][0], False
        if "AzureRelaySharedAccessKeyName" in values:
            self._key_name = values["AzureRelaySharedAccessKeyName"][0]
        if "AzureRelaySharedAccessKey" in values:
            key, source = values["AzureRelaySharedAccessKey"]
            self._key, self._token = (Secret("inline", key, source) if key else None), None
        if "AzureRelaySharedAccessSignature" in values:
            token, source = values["AzureRelaySharedAccessSignature"]
            self._token = Secret("inline", token, source) if token else None
        text, source = values.get("AzureRelayConnectionString", ("", ""))
        if text:
            found = parse_entity_string(text, source=source)
            self._endpoint, self._is_emulator = found.endpoint, found.is_emulator
            self._key_name, self._key, self._token = found.key_name, found.key, found.token

    def sign_in(self) -> SignIn | None:
        if self._endpoint is None:
            return None
        if self._token is not None:
            return SignIn(self._endpoint, "", "", None, self._token, self._is_emulator)
        if self._key is not None and not self._key_name:
            raise ConfigError("a key needs the name of its rule (-K, AzureRelaySharedAccessKeyName)")
        if self._key is None and self._key_name:
            raise ConfigError(f"the rule {self._key_name} needs its key (-k, AzureRelaySharedAccessKey)")
        return SignIn(self._endpoint, "", self._key_name, self._key, None, self._is_emulator)
