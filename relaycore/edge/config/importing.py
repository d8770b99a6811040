"""Settings of other tools, taken over: Hybrid Connection Manager (both generations), App Service, and a small proxy.

Each reader takes the text of a file and returns entries, with remarks on what could not be carried over. Keys come
along as they stand, so what is made of them belongs into files that only their owner can read. No error repeats one.
azbridge's files have a room of their own, `edge.azbridge`.

Source: connection manager 1.5 (HCM), 2 (App Service), 5 (HybridConnectionClientProxy).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from ...errors import ConfigError
from ...net.proxy import parse_proxy_url
from .secret import Secret
from .settings import Forward, HcmConnection, ListenAt, RelaySettings
from .strings import SignIn, parse_endpoint_url, parse_entity_string
from .texts import parse_target

__all__ = [
    "FORMS",
    "Imported",
    "guess_form",
    "read_any",
    "read_arm_json",
    "read_connection_proxy_list",
    "read_hcm_classic_config",
    "read_hcm_json",
    "read_website_relays",
]

_MAX_BYTES: Final = 8 << 20

Entry = HcmConnection | Forward


class Imported(NamedTuple):
    """What was found.

    Attributes:
      entries: names are unique among those of one type.
      remarks: what was left out or needs a hand, one sentence each.
    """

    entries: list[Entry]
    remarks: list[str]


@dataclass(slots=True)
class _Finds:
    """Collects entries and gives them names of their own."""

    source: str
    entries: list[Entry] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def error(self, message: str, key: str = "") -> ConfigError:
        return ConfigError(message, source=self.source, key=key)

    def remark(self, key: str, message: str) -> None:
        self.remarks.append(f"{key}: {message}")

    def add(self, key: str, entry: Entry) -> None:
        name, number = entry.name, 2
        if name in self.names:  # the same path at another relay, or one that is listed twice
            host = urlsplit(entry.relay.endpoint).hostname or ""
            name = f"{entry.name}-{host.partition('.')[0]}"
        while name in self.names:
            name, number = f"{entry.name}-{number}", number + 1
        if name != entry.name:
            self.remark(key, f"is called {name} here: the name {entry.name} is taken")
        self.names.add(name)
        self.entries.append(replace(entry, name=name))

    def result(self) -> Imported:
        return Imported(self.entries, self.remarks)


def read_hcm_json(text: str, *, source: str = "") -> Imported:
    """The new Hybrid Connection Manager's ``connections.json``.

    The endpoints in it are what the hybrid connections' own texts said at some time; ours reads these texts itself.

    Raises:
      ConfigError: it is no such file.
    """
    finds = _Finds(source)
    for key, item in _items(_json(text, finds), finds):
        uri, name = _word(item, "Uri"), _word(item, "Name")
        if not uri or not name:
            finds.remark(key, "is left out: it has no Uri or no Name")
            continue
        parts = _split_uri(uri)
        if parts is None:
            finds.remark(key, "is left out: its Uri is not sb://HOST[:PORT]/PATH")
            continue
        endpoint, path = parts
        key_name, secret = _word(item, "KeyName"), _word(item, "KeyValue")
        if not secret or not key_name:
            finds.remark(key, f"{name} has no key; add key_name and key")
        has_key = bool(secret and key_name)
        finds.add(
            key,
            HcmConnection(
                name=_plain_name(path or name),
                relay=RelaySettings("", endpoint),
                path=path or name,
                key_name=key_name if has_key else "",
                key=Secret("inline", secret, source) if has_key else None,
            ),
        )
    return finds.result()


def read_hcm_classic_config(text: str, *, source: str = "") -> Imported:
    """The classic manager's ``Microsoft.HybridConnectionManager.Listener.exe.config``.

    Raises:
      ConfigError: it is no such file.
    """
    finds = _Finds(source)
    root = _xml(text, finds)
    sections = [element for element in root.iter() if _local(element.tag) == "hybridconnections"]
    if not sections:
        raise finds.error("has no section hybridConnections")
    entries = [
        (attributes["connectionstring"], element)
        for section in sections
        for element in section.iter()
        if "connectionstring" in (attributes := {name.lower(): value for name, value in element.attrib.items()})
    ]
    proxy = _default_proxy(root, finds)
    for number, (string, _) in enumerate(entries):
        key = f"connectionStrings[{number}]"
        signer = _sign_in(string, finds, key)
        if signer is not None:
            entry = HcmConnection(**_identity(signer))
            finds.add(key, replace(entry, relay=replace(entry.relay, proxy=proxy)))
    return finds.result()


def _default_proxy(root: ElementTree.Element, finds: _Finds) -> str:
    """What .NET takes for all connections: ``<system.net><defaultProxy><proxy proxyaddress=.../>``. Returns: the proxy
    as settings name it."""
    for outer in (element for element in root.iter() if _local(element.tag) == "defaultproxy"):
        attributes = {name.lower(): value for name, value in outer.attrib.items()}
        if attributes.get("enabled", "true").lower() == "false":
            return "none"
        if attributes.get("usedefaultcredentials", "false").lower() == "true":
            finds.remark(
                "defaultProxy", "its useDefaultCredentials are left out; put USER:PASSWORD@ into the proxy's URL"
            )
        for inner in outer:
            own = {name.lower(): value.strip() for name, value in inner.attrib.items()}
            address = own.get("proxyaddress", "")
            if _local(inner.tag) == "bypasslist" and len(inner):
                finds.remark("defaultProxy", 'its bypasslist is left out; set proxy = "none" where it is meant')
            if _local(inner.tag) == "proxy" and address:
                try:
                    parse_proxy_url(address.rstrip("/"))
                except ConfigError:
                    finds.remark("defaultProxy", "its proxyaddress is left out: it is not http://HOST:PORT; set proxy")
                    return "env"
                return address.rstrip("/")
            if _local(inner.tag) == "proxy" and own:
                finds.remark("defaultProxy", "the system's own proxy is left out; set proxy, or HTTPS_PROXY")
    return "env"


def read_arm_json(text: str, *, source: str = "") -> Imported:
    """What the App Service API answers: one hybrid connection of an app, or a list of them.

    Raises:
      ConfigError: it is no such text.
    """
    finds = _Finds(source)
    for key, item in _items(_json(text, finds), finds):
        properties = item.get("properties", item)
        if not isinstance(properties, Mapping):
            finds.remark(key, "is left out: its properties are no object")
            continue
        namespace, relay = _word(properties, "serviceBusNamespace"), _word(properties, "relayName")
        host, port = _word(properties, "hostName"), properties.get("port")
        suffix = _word(properties, "serviceBusSuffix") or ".servicebus.windows.net"
        try:
            endpoint = parse_endpoint_url(f"sb://{namespace}{suffix if suffix.startswith('.') else f'.{suffix}'}/")
            target = parse_target(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except ConfigError as error:
            finds.remark(key, f"is left out: {error}")
            continue
        if not relay:
            finds.remark(key, "is left out: it has no relayName")
            continue
        key_name, secret = _word(properties, "sendKeyName"), _word(properties, "sendKeyValue")
        if not secret:
            finds.remark(key, f"{relay} has no sendKeyValue, which the API does not always tell; add key_name and key")
        finds.add(
            key,
            Forward(
                name=_plain_name(relay),
                relay=RelaySettings("", endpoint),
                path=relay,
                key_name=(key_name or "defaultSender") if secret else "",
                key=Secret("inline", secret, source) if secret else None,
                hosts=(target.host.lower(),),
                port=target.port,
            ),
        )
    return finds.result()


def read_website_relays(text: str, *, source: str = "") -> Imported:
    """The variable ``WEBSITE_RELAYS`` of an app's sandbox: Base64 of UTF-16LE XML.

    Its ports are those of the sandbox's own listeners, which programs never see; here a forward listens at an address
    of its own, with the endpoint's port.

    Raises:
      ConfigError: it is no such text.
    """
    finds = _Finds(source)
    text = text.strip().removeprefix("WEBSITE_RELAYS=").strip().strip("\"'")
    if not text.startswith("<"):
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
            text = data.decode("utf-16-le").removeprefix("\ufeff")
        except (binascii.Error, UnicodeDecodeError, ValueError) as error:
            raise finds.error("is not Base64 of UTF-16LE XML") from error
    root = _xml(text, finds)
    if _local(root.tag) != "bindings":
        raise finds.error("is not <Bindings>")
    for number, binding in enumerate(element for element in root.iter() if _local(element.tag) == "binding"):
        key = f"Binding[{number}]"
        fields = {_local(child.tag): (child.text or "").strip() for child in binding}
        if fields.get("isv2", "true").lower() == "false":
            finds.remark(key, "is left out: it is one of the discontinued kind, of before hybrid connections")
            continue
        signer = _sign_in(fields.get("connectionstring", ""), finds, key)
        if signer is not None:
            finds.add(key, Forward(**_identity(signer)))
    return finds.result()


def read_connection_proxy_list(text: str, *, source: str = "") -> Imported:
    """HybridConnectionClientProxy's ``appsettings.json``, or the list in it.

    Raises:
      ConfigError: it is no such file.
    """
    finds = _Finds(source)
    document = _json(text, finds)
    for name in ("AppSettings", "Proxies"):
        if isinstance(document, Mapping):
            document = _find(document, name, document)
    for key, item in _items(document, finds):
        signer = _sign_in(_word(item, "HybridConnectionString"), finds, key)
        if signer is None:
            continue
        address, port = _word(item, "ListenIPAddress") or "127.0.0.1", _find(item, "ListenPort", None)
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            finds.remark(key, f"listens on 127.0.0.1: {address!r} is no address")
            address = "127.0.0.1"
        if not isinstance(port, int) or not 0 < port < 65_536:
            finds.remark(key, "is left out: its ListenPort is not between 1 and 65535")
            continue
        own = _word(item, "Name")
        identity = _identity(signer) | ({"name": _plain_name(own)} if own else {})
        finds.add(key, Forward(**identity, listen=(ListenAt("tcp", address, port),)))
    return finds.result()


FORMS: Final[Mapping[str, Callable[..., Imported]]] = {
    "hcm": read_hcm_json,
    "hcm-classic": read_hcm_classic_config,
    "arm": read_arm_json,
    "website-relays": read_website_relays,
    "connection-proxy": read_connection_proxy_list,
}
"""Each reader of texts by the name of its form; ``azbridge`` is the one that reads files."""


def guess_form(text: str) -> str:
    """The form of a text, ``azbridge`` where it is none of `FORMS`."""
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("<"):
        return "website-relays" if "<bindings" in start[:4096].lower() else "hcm-classic"
    if start.startswith(("{", "[")):
        for word, form in (
            ('"hybridconnectionstring"', "connection-proxy"),
            ('"relayname"', "arm" if '"servicebusnamespace"' in start.lower() else "azbridge"),
            ('"keyvalue"', "hcm"),
            ('"endpointhost"', "hcm"),
        ):
            if word in start.lower():
                return form
    try:
        base64.b64decode("".join(start.removeprefix("WEBSITE_RELAYS=").split()), validate=True)
    except ValueError:
        return "azbridge"
    return "website-relays" if start else "azbridge"


def read_any(path: Path, form: str | None = None) -> Imported:
    """Read a file of another tool. Blocks.

    Args:
      form: one of `FORMS`, or ``azbridge``; None guesses.

    Raises:
      ConfigError: it cannot be read, or is of no known form.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"is longer than {_MAX_BYTES} bytes", source=str(path))
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("is neither UTF-8 nor UTF-16", source=str(path)) from error
    form = form or guess_form(text)
    if form == "azbridge":
        from ..azbridge.files import read

        return Imported(*read(path))
    if form not in FORMS:
        raise ConfigError(f"there is no form {form}; there are {', '.join(FORMS)}, azbridge")
    return FORMS[form](text, source=str(path))


def _json(text: str, finds: _Finds) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        raise finds.error(f"is not JSON{f' (line {line})' if line else ''}") from error


def _items(document: Any, finds: _Finds) -> list[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401 - whatever it was
    if isinstance(document, Mapping) and isinstance(document.get("value"), list):
        document = document["value"]
    items = document if isinstance(document, list) else [document]
    if not all(isinstance(item, Mapping) for item in items):
        raise finds.error("is not a list of objects")
    return [(f"[{number}]", item) for number, item in enumerate(items)]


def _find(item: Mapping[str, Any], name: str, default: Any) -> Any:  # noqa: ANN401 - whatever stands there
    """By name without regard to case, as .NET reads its settings."""
    return next((value for key, value in item.items() if key.lower() == name.lower()), default)


def _word(item: Mapping[str, Any], name: str) -> str:
    value = _find(item, name, "")
    return value.strip() if isinstance(value, str) else ""


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types, and with them every entity of the file's own making."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ConfigError("has a document type; neither it nor entities are allowed")


def _xml(text: str, finds: _Finds) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        # The parser believes the declaration, and the text is no longer in that encoding.
        parser.feed(text.partition("?>")[2] if text.lstrip().startswith("<?xml") else text)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        raise finds.error(f"is not XML (line {error.position[0]})") from error
    except ConfigError as error:
        raise finds.error(str(error)) from None
    return root


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2].lower()


def _split_uri(uri: str) -> tuple[str, str] | None:
    """Endpoint and path of ``sb://HOST[:PORT]/PATH``."""
    try:
        parts = urlsplit(uri)
        return parse_endpoint_url(f"{parts.scheme or 'sb'}://{parts.netloc}/"), unquote(parts.path).strip("/")
    except (ConfigError, ValueError):
        return None


def _sign_in(string: str, finds: _Finds, key: str) -> SignIn | None:
    try:
        found = parse_entity_string(string, source=finds.source)
    except ConfigError as error:
        finds.remark(key, f"is left out: {error}")
        return None
    if not found.path:
        finds.remark(key, "is left out: it names no hybrid connection, only a namespace")
        return None
    if found.key_name and found.key is None:
        finds.remark(key, f"{found.path} has no key; add key_name and key")
        return replace(found, key_name="")
    return found


def _identity(found: SignIn) -> dict[str, Any]:
    return {
        "name": _plain_name(found.path),
        "relay": found.relay(),
        "path": found.path,
        "key_name": found.key_name,
        "key": found.key,
        "token": found.token,
    }


def _plain_name(name: str) -> str:
    """A name without blanks."""
    return "-".join(name.split())
