"""Entries as other tools keep them: Hybrid Connection Manager, the App Service API, azbridge.

A key is left out unless it is asked for: what is exported is mostly looked at, or sent to somebody.

Source: connection manager 1.5, 2, 3.4.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Final
from urllib.parse import urlsplit

from ...errors import ConfigError
from ...wire.connection_string import format_connection_string, parse_connection_string
from .settings import Forward, HcmConnection, ListenAt, PortBinding, Profile, Target

__all__ = ["FORMS", "export", "remarks"]

FORMS: Final = ("hcm", "arm", "azbridge")

_HIDDEN: Final = "***"


def export(entry: HcmConnection | Forward, form: str, *, with_key: bool = False) -> str:
    """An entry in another tool's form.

    Args:
      form: ``hcm``: ``connections.json``; ``arm``: the body of a PUT to the App Service API; ``azbridge``: YAML.
      with_key: read the key and write it too; else asterisks stand in its place. The file then has to be kept as one.

    Raises:
      ConfigError: the form cannot say it, or the key cannot be read.
    """
    match form:
        case "hcm":
            return _json([_as_hcm(entry, _key(entry, with_key))])
        case "arm":
            return _json(_as_arm(entry, _key(entry, with_key)))
        case "azbridge":
            return _as_azbridge(entry, _key(entry, with_key))
    raise ConfigError(f"there is no form {form}; there are {', '.join(FORMS)}")


def remarks(entry: HcmConnection | Forward, form: str) -> list[str]:
    """What `export` cannot carry over of the way to the relay, one sentence each."""
    if form != "arm":
        return []
    found: list[str] = []
    host, port = _host(entry), urlsplit(entry.relay.endpoint).port
    if not _has_domain(host):
        found.append(
            f"the relay's host {host} is no NAMESPACE.SUFFIX, and the form arm has no other place for it;"
            " write the two by hand"
        )
    if port not in (None, 443):
        found.append(f"the form arm has no place for the relay's port {port}; readers will take 443")
    if entry.relay.is_emulator:
        found.append("the form arm cannot say that the relay is reached without TLS")
    return found


def _has_domain(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." in host
    return False


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _key(entry: HcmConnection | Forward, with_key: bool) -> str:
    if entry.key is None:
        return ""
    return entry.key.read() if with_key else _HIDDEN


def _host(entry: HcmConnection | Forward) -> str:
    return urlsplit(entry.relay.endpoint).hostname or ""


def _where(entry: HcmConnection | Forward) -> tuple[str, int]:
    """Host and port of the endpoint; nothing where only the hybrid connection's own text says them."""
    if isinstance(entry, Forward):
        return (entry.hosts[0] if entry.hosts else "", entry.port)
    if entry.http_url:
        parts = urlsplit(entry.http_url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    targets = entry.targets if isinstance(entry.targets, tuple) else ()
    return (targets[0].host, targets[0].port) if targets else ("", 0)


def _as_hcm(entry: HcmConnection | Forward, key: str) -> dict[str, Any]:
    if not isinstance(entry, HcmConnection):
        raise ConfigError("a forward is the sender's side; the form hcm is of listeners", key=entry.name)
    if entry.profile is not Profile.RAW:
        raise ConfigError(f"the form hcm knows the profile raw only, not {entry.profile}", key=entry.name)
    host, port = _where(entry)
    return {
        "Namespace": _host(entry).partition(".")[0] if _has_domain(_host(entry)) else _host(entry),
        "Name": entry.path,
        "Uri": f"{entry.relay.endpoint}{entry.path}",
        "KeyName": entry.key_name,
        "KeyValue": key,
        "EndpointHost": host,
        "EndpointPort": port,
        "ResourceGroup": "",
        "SubscriptionId": "",
        "Status": "Disconnected",
        "CreatedOn": "",
        "LastUpdated": "",
        "NumberOfListeners": 0,
    }


def _as_arm(entry: HcmConnection | Forward, key: str) -> dict[str, Any]:
    host, port = _where(entry)
    if not host or not port:
        raise ConfigError(
            "the form arm needs the endpoint's name and port, and the settings do not say them", key=entry.name
        )
    name = _host(entry)
    namespace, _, suffix = name.partition(".") if _has_domain(name) else (name, "", "")
    properties: dict[str, Any] = {
        "serviceBusNamespace": namespace,
        "relayName": entry.path,
        "hostName": host,
        "port": port,
        # A listener's key is no use to a sender.
        "sendKeyName": entry.key_name if isinstance(entry, Forward) else "defaultSender",
        "sendKeyValue": key if isinstance(entry, Forward) else "",
    }
    if suffix and suffix != "servicebus.windows.net":
        properties["serviceBusSuffix"] = f".{suffix}"
    return {"properties": properties}


def _as_azbridge(entry: HcmConnection | Forward, key: str) -> str:
    lines = ["RemoteForward:" if isinstance(entry, HcmConnection) else "LocalForward:"]
    lines.append(f"  - RelayName: {_scalar(entry.path)}")
    if entry.key is not None:
        lines.append(f"    ConnectionString: {_scalar(_connection_string(entry, key))}")
    bindings = _remote_bindings(entry) if isinstance(entry, HcmConnection) else _local_bindings(entry)
    lines.append("    Bindings:")
    for binding in bindings:
        for number, (name, value) in enumerate(binding.items()):
            lines.append(f"      {'- ' if number == 0 else '  '}{name}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # YAML reads JSON's texts, numbers and booleans


def _connection_string(entry: HcmConnection | Forward, key: str) -> str:
    relay = parse_connection_string(f"Endpoint={entry.relay.endpoint}")
    return format_connection_string(relay.host, entry.key_name, key, port=relay.port, entity_path=entry.path)


def _remote_bindings(entry: HcmConnection) -> list[dict[str, object]]:
    if entry.profile is Profile.HTTP:
        parts = urlsplit(entry.http_url)
        host, port = _where(entry)
        binding: dict[str, object] = {"Host": host, "HostPort": port, "PortName": parts.scheme, "Http": True}
        return [binding | ({"Path": parts.path} if parts.path.strip("/") else {})]
    if entry.profile is not Profile.AZBRIDGE:
        raise ConfigError("azbridge has a framing of its own; this connection's profile is raw", key=entry.name)
    return [_remote_binding(entry, port) for port in entry.ports]


def _remote_binding(entry: HcmConnection, port: PortBinding) -> dict[str, object]:
    if len(port.targets) > 1:
        raise ConfigError(f"azbridge has one endpoint for a port, and {port.name} has several", key=entry.name)
    target: Target = port.targets[0]
    if target.path:
        return {"LocalSocket": target.path, "PortName": port.name}
    return {"Host": target.host, "HostPort": -target.port if port.is_udp else target.port, "PortName": port.name}


def _local_bindings(entry: Forward) -> list[dict[str, object]]:
    if entry.profile is not Profile.AZBRIDGE:
        raise ConfigError("azbridge has a framing of its own; this forward's profile is raw", key=entry.name)
    listen = entry.listen or (ListenAt("tcp", "auto", entry.port),)
    return [_local_binding(entry, at) for at in listen]


def _local_binding(entry: Forward, at: ListenAt) -> dict[str, object]:
    name = {"PortName": entry.port_name} if entry.port_name else {}
    if at.kind == "unix":
        if not entry.port_name:
            raise ConfigError("azbridge needs a port_name with a Unix socket", key=entry.name)
        return {"BindLocalSocket": at.path, **name}
    port = at.port or entry.port
    if not port:
        raise ConfigError("azbridge needs the port, and the settings do not say it", key=entry.name)
    address = "127.0.0.1" if at.host == "auto" else at.host  # it has no pool of addresses
    host = {"HostName": entry.hosts[0]} if entry.hosts else {}
    return {"BindAddress": address, "BindPort": -port if at.kind == "udp" else port, **host, **name}
