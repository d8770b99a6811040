"""From azbridge's settings to those of a manager and a forwarder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from ...errors import ConfigError
from ..config.secret import Secret
from ..config.settings import (
    ConnectSettings,
    DialSettings,
    EdgeSettings,
    Forward,
    HcmConnection,
    HcmSettings,
    ListenAt,
    PortBinding,
    Profile,
    RelaySettings,
    RetrySettings,
    Target,
)
from ..config.strings import SignIn, parse_entity_string
from .expressions import LocalBinding, RemoteBinding
from .layers import BridgeSettings, LocalForward, RemoteForward

__all__ = ["edge_settings"]

_MAX_DIAL_S: Final = 25.0
"""Below the 30 s that an accept has."""


def edge_settings(
    settings: BridgeSettings, *, cafile: Path | None = None, directory: Path | None = None
) -> EdgeSettings:
    """What a manager and a forwarder are given.

    Args:
      cafile: authorities to trust besides the system's.
      directory: where bare names of sockets are; the working directory without it.

    Raises:
      ConfigError: nothing says where the relay is or how to sign, or forwards exclude each other.
    """
    made = _Maker(settings, cafile, directory or Path.cwd())
    for remote in settings.remote:
        made.add_remote(remote)
    for local in settings.local:
        made.add_local(local)
    return made.done()


class _Maker:
    def __init__(self, settings: BridgeSettings, cafile: Path | None, directory: Path) -> None:
        self._settings = settings
        self._cafile = cafile
        self._directory = directory
        self._dial = DialSettings(
            timeout_s=min(settings.connect_timeout_s or DialSettings().timeout_s, _MAX_DIAL_S),
            family=settings.family,
            source=settings.bind_address,
        )
        self._connections: dict[tuple[RelaySettings, str], HcmConnection] = {}
        self._forwards: dict[tuple[RelaySettings, str, str, bool, Secret | None], Forward] = {}

    def _sign_in(self, connection_string: str, source: str) -> SignIn:
        found = self._settings.sign_in
        if connection_string:
            found = parse_entity_string(connection_string, source=source)
        if found is None:
            raise ConfigError(
                "nothing says where the relay is: give -x CONNECTION-STRING, or -e sb://HOST/ with -K and -k",
                source=source,
            )
        return found

    def _relay(self, sign_in: SignIn) -> RelaySettings:
        return replace(sign_in.relay(), cafile=self._cafile, keep_alive_s=self._settings.keep_alive_s)

    def _target(self, binding: RemoteBinding) -> Target:
        if binding.socket:
            return Target(path=str(self._directory / binding.socket))
        return Target(binding.host, binding.port)

    def add_remote(self, forward: RemoteForward) -> None:
        sign_in = self._sign_in(forward.connection_string, forward.source)
        if sign_in.key is None and sign_in.token is None:
            raise ConfigError("listening needs a key or a token: -K and -k, or -s", source=forward.source)
        relay = self._relay(sign_in)
        known = self._connections.get((relay, forward.relay))
        ports = () if known is None else known.ports
        url = "" if known is None else known.http_url
        if forward.bindings:
            ports += tuple(PortBinding(item.port_name, (self._target(item),), item.is_udp) for item in forward.bindings)
        for item in forward.http:
            if url and url != item.url:
                raise ConfigError(
                    f"{forward.relay} leads to {url} already; one hybrid connection leads to one HTTP server",
                    source=forward.source,
                )
            url = item.url
        if url and ports:
            raise ConfigError(
                f"{forward.relay} is for HTTP and for ports at once; use a hybrid connection for each",
                source=forward.source,
            )
        names = [port.name for port in ports]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{forward.relay} has the port name {twice} twice", source=forward.source)
        self._connections[relay, forward.relay] = HcmConnection(
            name=forward.relay if known is None else known.name,
            relay=relay,
            path=forward.relay,
            key_name=sign_in.key_name,
            key=sign_in.key,
            token=sign_in.token,
            profile=Profile.HTTP if url else Profile.AZBRIDGE,
            ports=ports,
            http_url=url,
            dial=self._dial,
        )

    def add_local(self, forward: LocalForward) -> None:
        sign_in = self._sign_in(forward.connection_string, forward.source)
        relay = self._relay(sign_in)
        if forward.is_anonymous:
            sign_in = replace(sign_in, key_name="", key=None, token=None)
        for binding in forward.bindings:
            place = relay, forward.relay, binding.port_name, binding.is_udp, sign_in.key or sign_in.token
            listen = tuple(self._listen(binding))
            known = self._forwards.get(place)
            if known is not None:
                self._forwards[place] = replace(known, listen=(*known.listen, *listen))
                continue
            self._forwards[place] = Forward(
                name=f"{forward.relay}:{binding.port_name}",
                relay=relay,
                path=forward.relay,
                key_name=sign_in.key_name,
                key=sign_in.key,
                token=sign_in.token,
                profile=Profile.AZBRIDGE,
                hosts=forward.hosts,
                port=binding.port,
                listen=listen,
                port_name=binding.port_name,
                retry=RetrySettings(
                    self._settings.connect_timeout_s or RetrySettings().timeout_s, self._settings.connection_attempts
                ),
            )

    def _listen(self, binding: LocalBinding) -> Iterable[ListenAt]:
        if binding.socket:
            yield ListenAt("unix", path=str(self._directory / binding.socket))
            return
        kind: Literal["tcp", "udp"] = "udp" if binding.is_udp else "tcp"
        family = self._settings.family
        host = binding.host or ("*" if self._settings.is_gateway else "localhost")
        if host == "*":
            if family != "ipv6":
                yield ListenAt(kind, "0.0.0.0", binding.port)
            if family != "ipv4":
                yield ListenAt(kind, "::", binding.port)
        elif host == "localhost" and (family == "ipv4" or (binding.is_udp and family == "any")):
            yield ListenAt(kind, "127.0.0.1", binding.port)
        elif host == "localhost" and family == "ipv6":
            yield ListenAt(kind, "::1", binding.port)
        else:
            yield ListenAt(kind, host, binding.port)

    def done(self) -> EdgeSettings:
        taken: set[str] = set()
        connections = tuple(replace(item, name=_unused(item.name, taken)) for item in self._connections.values())
        taken.clear()
        forwards = tuple(replace(item, name=_unused(item.name, taken)) for item in self._forwards.values())
        return EdgeSettings(hcm=HcmSettings(connections), connect=ConnectSettings(forwards))


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it where that is taken."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found)
    return found
