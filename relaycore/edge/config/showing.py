"""From settings back to a document: for ``config show`` without secrets, for files that commands write with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .keys import RELAY_KEYS, ROOT, Key, Section, section_at
from .settings import METADATA, EdgeSettings, Forward, HcmConnection, Profile, RelaySettings
from .toml_text import KeyPath, dotted, write_document

__all__ = ["entry_document", "show_document"]


def show_document(settings: EdgeSettings, given: Collection[str], notes: Mapping[str, str], *, effective: bool) -> str:
    """The whole as TOML, secrets hidden.

    Args:
      given: dotted paths of what was set; these are shown whether they differ from their default or not.
      notes: comments by dotted path.
      effective: show all.
    """
    writer = _Writer(given, effective, is_secret_shown=False)
    document: dict[str, object] = {}
    if settings.relays:
        document["relay"] = {
            relay.name: writer.table(ROOT.below["relay"], relay, ("relay", relay.name)) for relay in settings.relays
        }
    for name, value in (("hcm", settings.hcm), ("connect", settings.connect)):
        found = writer.table(ROOT.below[name], value, (name,))
        if name == "connect" and (effective or "connect.pool.loopback" in given):
            found["pool"] = {"loopback": settings.connect.pool}
        if found:
            document[name] = found
    return write_document(document, has_header, notes)


def entry_document(entry: HcmConnection | Forward) -> dict[str, object]:
    """One entry as a table, with its secrets: what differs from its default."""
    path: KeyPath = ("hcm", "connection", 0) if isinstance(entry, HcmConnection) else ("connect", "forward", 0)
    section = section_at(path)
    assert section is not None
    return _Writer((), is_all=False, is_secret_shown=True).table(section, entry, path)


def has_header(path: KeyPath) -> bool:
    """Whether a table stands under a header of its own."""
    return (section_at(path) is not None and path[-1:] != ("connect",)) or path == ("connect",)


class _Writer:
    def __init__(self, given: Collection[str], is_all: bool, *, is_secret_shown: bool) -> None:
        self._given = given
        self._is_all = is_all
        self._is_secret_shown = is_secret_shown

    def _write(self, key: Key, value: Any) -> object:  # noqa: ANN401 - of the key's own kind
        if self._is_secret_shown or key.kind.show is None:
            return key.kind.write(value)
        return key.kind.show(value)

    def table(self, section: Section, value: Any, path: KeyPath) -> dict[str, object]:  # noqa: ANN401 - any setting
        if isinstance(value, HcmConnection | Forward):
            found = self._sign_in(section, value, path)
        else:
            found = self._keys(section, value, path)
        for name, below in section.below.items():
            inner = getattr(value, below.field or name, None)
            here = (*path, name)
            if inner is None or (below.value is None and not below.below):
                continue
            if below.many == "list":
                tables = [self.table(below, item, (*here, index)) for index, item in enumerate(inner)]
                if tables:
                    found[name] = tables
            elif table := self.table(below, inner, here):
                found[name] = table
        return found

    def _keys(self, section: Section, value: Any, path: KeyPath, *, without: Collection[str] = ()) -> dict[str, object]:  # noqa: ANN401 - any setting
        found: dict[str, object] = {}
        for key in section.keys:
            if key.attribute is None or key.name in without:
                continue
            item = getattr(value, key.attribute)
            is_given = self._is_all or dotted((*path, key.name)) in self._given
            if item is None or (item == section.default_of(key) and not is_given) or item == "" == key.default:
                continue
            if item == "" or (item == () == section.default_of(key) and key.default):
                continue  # unset; an empty list that is not, such as an allow list, says something
            found[key.name] = self._write(key, item)
        return found

    def _sign_in(self, section: Section, entry: HcmConnection | Forward, path: KeyPath) -> dict[str, object]:
        found: dict[str, object] = {"name": entry.name}
        relay = entry.relay
        if relay.name:
            found["relay"] = relay.name
        else:
            # Without the key, which stands beside it and may be kept elsewhere.
            text = f"Endpoint={relay.endpoint};EntityPath={entry.path}"
            found["connection_string"] = f"{text};UseDevelopmentEmulator=true" if relay.is_emulator else text
            found |= self._relay_keys(relay)
        if entry.path != entry.name and relay.name:
            found["path"] = entry.path
        rest = self._keys(section, entry, path, without=("name", "path"))
        if isinstance(entry, HcmConnection):
            endpoint = self._endpoint(entry, path)
            if endpoint is not None:
                key = section.key("endpoint")
                assert key is not None
                rest["endpoint"] = self._write(key, endpoint)
        return found | rest

    def _relay_keys(self, relay: RelaySettings) -> dict[str, object]:
        found: dict[str, object] = {}
        for key in RELAY_KEYS:
            assert key.attribute is not None
            value = getattr(relay, key.attribute)
            if value is not None and value != ROOT.below["relay"].default_of(key):
                found[key.name] = self._write(key, value)
        return found

    def _endpoint(self, entry: HcmConnection, path: KeyPath) -> object:
        if entry.profile is Profile.HTTP:
            return entry.http_url
        if entry.ports:
            return None
        is_shown = self._is_all or dotted((*path, "endpoint")) in self._given
        return None if entry.targets == METADATA and not is_shown else entry.targets
