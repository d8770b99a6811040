"""From values as they were found to checked settings: each by its kind, then the rules between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ...errors import ConfigError
from .kinds import Raw, Source
from .settings import (
    ConnectSettings,
    EdgeSettings,
    Forward,
    HcmConnection,
    HcmSettings,
    PortBinding,
    Profile,
    RelaySettings,
)
from .sources import Problems, Table, nearest
from .strings import SignIn, endpoint_fields, parse_endpoint_url, parse_entity_string
from .toml_text import KeyPath

__all__ = ["build"]

_RELAY_FIELDS: Final = {"ca_file": "cafile", "proxy": "proxy", "keepalive": "keep_alive_s"}


def build(root: Table, problems: Problems) -> EdgeSettings:
    """The settings. What is wrong goes to `problems`, and then the result is of no use."""
    return _Builder(problems).build(root)


@dataclass(slots=True)
class _Builder:
    problems: Problems

    def build(self, root: Table) -> EdgeSettings:
        # None is one that is wrong: those who name it are not.
        relays = {name: self._relay(name, table) for name, table in root.named.get("relay", {}).items()}
        hcm, connect = root.below.get("hcm"), root.below.get("connect")
        return EdgeSettings(
            relays=tuple(relay for relay in relays.values() if relay is not None),
            hcm=HcmSettings() if hcm is None else self._hcm(hcm, relays),
            connect=ConnectSettings() if connect is None else self._connect(connect, relays),
        )

    def _read(self, table: Table, path: KeyPath) -> dict[str, Any]:
        """The values of a table by their keys; those that are wrong are left out."""
        found: dict[str, Any] = {}
        for name, raw in table.leaves.items():
            key = table.section.key(name)
            assert key is not None
            try:
                found[name] = key.kind.read(raw)
            except ConfigError as error:
                self.problems.add(str(error), raw.source, (*path, name))
        return found

    def _fields(self, table: Table, path: KeyPath, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a table says, by the fields of its value, tables below it included."""
        values = self._read(table, path) if values is None else values
        fields: dict[str, Any] = {}
        for name, value in values.items():
            key = table.section.key(name)
            assert key is not None
            if key.attribute is not None:
                fields[key.attribute] = value
        for name, below in table.below.items():
            section = below.section
            if section.value is not None:
                fields[section.field or name] = section.value(**self._fields(below, (*path, name)))
        return fields

    def _source(self, table: Table, key: str) -> Source:
        raw = table.leaves.get(key)
        return table.source if raw is None else raw.source

    def _relay(self, name: str, table: Table) -> RelaySettings | None:
        path = ("relay", name)
        fields = self._fields(table, path)
        if "endpoint" not in table.leaves:
            self.problems.add("a relay needs its endpoint: sb://HOST[:PORT]/", table.source, (*path, "endpoint"))
        if "endpoint" not in fields:
            return None
        try:
            fields["endpoint"] = parse_endpoint_url(fields["endpoint"])
            if fields.get("is_emulator"):
                parse_entity_string(f"Endpoint={fields['endpoint']};UseDevelopmentEmulator=true")
        except ConfigError as error:
            key = "emulator" if fields.get("is_emulator") and "UseDevelopment" in str(error) else "endpoint"
            self.problems.add(str(error), self._source(table, key), (*path, key))
            return None
        return RelaySettings(name=name, **fields)

    # -- entries --------------------------------------------------------------------------------------------------

    def _sign_in(
        self, table: Table, path: KeyPath, values: dict[str, Any], relays: Mapping[str, RelaySettings | None]
    ) -> dict[str, Any] | None:
        """The fields that say which hybrid connection, and who signs; None where that cannot be said."""
        before = len(self.problems.errors)
        string = self._string(table, path, values)
        relay = string.relay() if string is not None else self._named_relay(table, path, values, relays)
        own = {field: values[key] for key, field in _RELAY_FIELDS.items() if key in values}
        if relay is not None and own:
            relay = replace(relay, name="", **own)  # no longer quite the one that others mean by the name
        entity = values.get("path") or (string.path if string is not None else "") or values.get("name", "")
        entity = entity.strip("/")
        if string is not None and string.path and "path" in values and string.path != values["path"]:
            self.problems.add(
                f"the connection string names another hybrid connection: {string.path}",
                self._source(table, "path"),
                (*path, "path"),
            )
        name = values.get("name", entity)
        if not name and len(self.problems.errors) == before:
            self.problems.add("needs a name", table.source, (*path, "name"))
        signer = self._signer(table, path, values, string)
        if relay is None or len(self.problems.errors) > before:
            return None
        return {"name": name, "relay": relay, "path": entity, **signer}

    def _string(self, table: Table, path: KeyPath, values: dict[str, Any]) -> SignIn | None:
        string: SignIn | None = values.get("connection_string")
        raw = table.leaves.get("relay")
        if raw is None or "relay" not in values:
            return string
        if string is not None:
            self.problems.add("stands beside connection_string; one of them says it all", raw.source, (*path, "relay"))
            return string
        if "=" not in values["relay"]:
            return None
        try:
            key = table.section.key("connection_string")
            assert key is not None
            found: SignIn = key.kind.read(Raw(values["relay"], raw.source, raw.is_text))
        except ConfigError as error:
            self.problems.add(str(error), raw.source, (*path, "relay"))
            return None
        return found

    def _named_relay(
        self, table: Table, path: KeyPath, values: dict[str, Any], relays: Mapping[str, RelaySettings | None]
    ) -> RelaySettings | None:
        if {"relay", "connection_string"} & (set(table.leaves) - set(values)) or "=" in values.get("relay", ""):
            return None  # said already
        name = values.get("relay")
        if name is None:
            if len(relays) == 1:
                return next(iter(relays.values()))
            message = "which relay? Name one of" if relays else "needs relay = NAME with a [relay.NAME], or"
            rest = f" {', '.join(relays)}" if relays else " a connection_string"
            self.problems.add(message + rest, table.source, (*path, "relay"))
            return None
        if name not in relays:
            self.problems.add(
                f"there is no [relay.{name}]{nearest(name, relays)}", self._source(table, "relay"), (*path, "relay")
            )
        return relays.get(name)

    def _signer(self, table: Table, path: KeyPath, values: dict[str, Any], string: SignIn | None) -> dict[str, Any]:
        key, token = values.get("key"), values.get("token")
        key_name = values.get("key_name", "")
        if string is not None:
            key_name = key_name or string.key_name
            key, token = key or string.key, token or (None if key is not None else string.token)
        if key is not None and token is not None:
            self.problems.add("stands beside a key; one of them signs", self._source(table, "token"), (*path, "token"))
        elif key is not None and not key_name:
            self.problems.add(
                "needs the name of its rule beside it: key_name", self._source(table, "key"), (*path, "key")
            )
        elif key_name and key is None and token is None and "key" not in table.leaves:
            self.problems.add(
                "needs the rule's key beside it: key = { file = FILE }", self._source(table, "key_name"), (*path, "key")
            )
        return {"key_name": key_name, "key": key, "token": token}

    # -- the connection manager -----------------------------------------------------------------------------------

    def _hcm(self, table: Table, relays: Mapping[str, RelaySettings | None]) -> HcmSettings:
        found: list[HcmConnection] = []
        for index, entry in enumerate(table.lists.get("connection", ())):
            connection = self._connection(entry, ("hcm", "connection", index), relays)
            if connection is not None:
                found.append(connection)
        self._check_unique(table.lists.get("connection", []), ("hcm", "connection"))
        self._check_webhook(table, ("hcm", "webhook"))
        return HcmSettings(connections=tuple(found), **self._fields(table, ("hcm",)))

    def _connection(
        self, table: Table, path: KeyPath, relays: Mapping[str, RelaySettings | None]
    ) -> HcmConnection | None:
        before = len(self.problems.errors)
        values = self._read(table, path)
        sign_in = self._sign_in(table, path, values, relays)
        fields = self._fields(table, path, values)
        profile = fields.get("profile", Profile.RAW)
        ports = self._ports(table, path)
        has_ports = bool(table.lists.get("port"))
        if has_ports and profile is not Profile.AZBRIDGE:
            if "profile" in fields or "profile" not in table.leaves:
                source = table.lists["port"][0].source
                self.problems.add('ports go with profile = "azbridge"', source, (*path, "port"))
        elif has_ports and "endpoint" in values:
            source = self._source(table, "endpoint")
            self.problems.add("stands beside ports; one of them says it", source, (*path, "endpoint"))
        elif profile is Profile.AZBRIDGE and not has_ports and "endpoint" not in table.leaves:
            message = "the profile azbridge needs [[hcm.connection.port]], or an endpoint"
            self.problems.add(message, table.source, (*path, "endpoint"))
        if not has_ports:
            try:
                fields |= endpoint_fields(profile, values.get("endpoint"))
            except ConfigError as error:
                if "endpoint" in values or "endpoint" not in table.leaves:
                    self.problems.add(str(error), self._source(table, "endpoint"), (*path, "endpoint"))
        self._check_numbers(table, path)
        if sign_in is None or len(self.problems.errors) > before:
            return None
        return HcmConnection(**(fields | sign_in | ({"ports": tuple(ports)} if ports else {})))

    def _ports(self, table: Table, path: KeyPath) -> list[PortBinding]:
        found: dict[str, tuple[PortBinding, Source]] = {}
        for number, port in enumerate(table.lists.get("port", ())):
            here = (*path, "port", number)
            for key in ("name", "endpoint"):
                if key not in port.leaves:
                    self.problems.add(f"needs {key}", port.source, (*here, key))
            fields = self._fields(port, here)
            if not {"name", "targets"} <= set(fields):
                continue
            binding, source = PortBinding(**fields), self._source(port, "name")
            if len(binding.name.encode()) > 255:
                self.problems.add("is longer than 255 bytes", source, (*here, "name"))
            if binding.name in found:
                self.problems.add(f"is named at {found[binding.name][1].text} too", source, (*here, "name"))
            found[binding.name] = (binding, source)
        return [binding for binding, _ in found.values()]

    def _check_numbers(self, table: Table, path: KeyPath) -> None:
        limits, health = table.below.get("limits"), table.below.get("health")
        if limits is not None:
            here = (*path, "limits")
            if "weight" in limits.leaves:
                self.problems.warn("has no effect yet", limits.leaves["weight"].source, (*here, "weight"))
            if "queue" in limits.leaves and "max_open" not in limits.leaves:
                self.problems.warn("has no effect without max_open", limits.leaves["queue"].source, (*here, "queue"))
        if health is not None and {"interval", "timeout"} <= set(health.leaves):
            found = self._fields_quietly(health)
            if found.get("timeout_s", 0) > found.get("interval_s", 1 << 30):
                source = health.leaves["timeout"].source
                self.problems.warn("is longer than the interval", source, (*path, "health", "timeout"))

    def _fields_quietly(self, table: Table) -> dict[str, Any]:
        return _Builder(Problems())._fields(table, ())

    # -- the forwarder --------------------------------------------------------------------------------------------

    def _connect(self, table: Table, relays: Mapping[str, RelaySettings | None]) -> ConnectSettings:
        found: list[Forward] = []
        entries = table.lists.get("forward", [])
        for index, entry in enumerate(entries):
            forward = self._forward(entry, ("connect", "forward", index), relays)
            if forward is not None:
                found.append(forward)
        self._check_unique(entries, ("connect", "forward"))
        self._check_listeners(found, entries)
        self._check_webhook(table, ("connect", "webhook"))
        fields = self._fields(table, ("connect",))
        pool, proxy = table.below.get("pool"), table.below.get("proxy")
        if pool is not None and "loopback" in (values := self._read(pool, ("connect", "pool"))):
            fields["pool"] = values["loopback"]
        if proxy is not None and self._fields_and_keys(proxy).get("allow_unconfigured"):
            fields["proxy"] = replace(fields["proxy"], bypass=("*:*",))
        return ConnectSettings(forwards=tuple(found), **fields)

    def _fields_and_keys(self, table: Table) -> dict[str, Any]:
        return _Builder(Problems())._read(table, ())

    def _forward(self, table: Table, path: KeyPath, relays: Mapping[str, RelaySettings | None]) -> Forward | None:
        before = len(self.problems.errors)
        values = self._read(table, path)
        sign_in = self._sign_in(table, path, values, relays)
        fields = self._fields(table, path, values)
        if "profile" in fields:
            fields["profile"] = Profile(fields["profile"])
        profile = fields.get("profile", Profile.RAW)
        if profile is Profile.RAW and "port_name" in fields:
            self.problems.warn(
                'has no effect without profile = "azbridge"', self._source(table, "port_name"), (*path, "port_name")
            )
        if profile is Profile.RAW and any(listen.kind == "udp" for listen in fields.get("listen", ())):
            self.problems.add('UDP goes with profile = "azbridge"', self._source(table, "listen"), (*path, "listen"))
        for host in fields.get("hosts", ()):
            if ":" in host or host.rpartition(".")[2].isdigit():
                self.problems.warn(
                    f"{host} is an address: programs that dial it look nothing up, and reach the relay by the proxy"
                    " port only",
                    self._source(table, "hosts"),
                    (*path, "hosts"),
                )
        if sign_in is None or len(self.problems.errors) > before:
            return None
        return Forward(**(fields | sign_in))

    def _check_listeners(self, forwards: list[Forward], entries: list[Table]) -> None:
        if len(forwards) != len(entries):
            return  # some are wrong, and the numbers of the rest say nothing
        places: dict[object, Source] = {}
        names: dict[tuple[str, int], Source] = {}
        for index, (forward, entry) in enumerate(zip(forwards, entries, strict=True)):
            path: KeyPath = ("connect", "forward", index)
            source = self._source(entry, "listen")
            for listen in forward.listen:
                place = (listen.kind, listen.host, listen.port, listen.path)
                if place in places and listen.host != "auto" and (listen.port or listen.path):
                    self.problems.add(f"{listen} is taken by {places[place].text}", source, (*path, "listen"))
                places[place] = source
            for host in forward.hosts:
                if (host, forward.port) in names and forward.port:
                    self.problems.warn(
                        f"{host}:{forward.port} leads elsewhere at {names[host, forward.port].text} too",
                        self._source(entry, "hosts"),
                        (*path, "hosts"),
                    )
                names[host, forward.port] = self._source(entry, "hosts")

    def _check_webhook(self, table: Table, path: KeyPath) -> None:
        webhook = table.below.get("webhook")
        if webhook is None:
            return
        header = webhook.below.get("header")
        if "url" not in webhook.leaves and ("events" in webhook.leaves or header is not None):
            self.problems.add("needs its url", webhook.source, (*path, "url"))
        if header is None:
            return
        for key in ("name", "value"):
            if key not in header.leaves:
                self.problems.add(f"a header needs its {key}", header.source, (*path, "header", key))

    def _check_unique(self, entries: list[Table], path: KeyPath) -> None:
        seen: dict[str, Source] = {}
        for index, entry in enumerate(entries):
            values = _Builder(Problems())._read(entry, ())
            string: SignIn | None = values.get("connection_string")
            name = values.get("name") or values.get("path") or (string.path if string is not None else "")
            source = self._source(entry, "name")
            if name and name in seen:
                self.problems.add(f"the name {name} stands at {seen[name].text} too", source, (*path, index, "name"))
            seen.setdefault(name, source)
