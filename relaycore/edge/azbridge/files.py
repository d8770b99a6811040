"""azbridge's YAML and JSON files: which of them count, and what they say (connection manager 3.3, 3.4).

Keys that azbridge does not know are warnings with the nearest known one; it refuses the whole file. A key that it knows
and that has no effect here is a warning too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from ..config.settings import Forward, HcmConnection
from .expressions import HttpBinding, LocalBinding, RemoteBinding, check_port_name, check_relay_name
from .layers import (
    LOCAL_BINDING_KEYS,
    LOCAL_KEYS,
    REMOTE_BINDING_KEYS,
    REMOTE_KEYS,
    TOP_KEYS,
    Layer,
    LocalForward,
    RemoteForward,
    combine,
    nearest,
    unwrapped,
)
from .translate import edge_settings
from .yaml_subset import Node, YamlList, YamlMap, YamlScalar, parse_yaml

__all__ = ["default_files", "parse_file", "read"]

_MAX_FILE_BYTES: Final = 1 << 20


def default_files(environ: Mapping[str, str], *, is_service: bool = False, chosen: Path | None = None) -> list[Path]:
    """The files that count, in their order; of each pair ours goes before azbridge's. Only existing ones are named.

    Args:
      is_service: take the service's file instead of the user's.
      chosen: ``-f``; it takes the place of the user's, and need not exist here.
    """
    home = Path(environ.get("HOME", "/"))
    ours = Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "relaycore")
    machine = (Path("/etc/relaycore/bridge.yml"), Path("/etc/azbridge/azbridge_config.machine.yml"))
    user = (ours / "bridge.yml", home / ".azbridge/azbridge_config.yml")
    service = (Path("/etc/relaycore/bridge.svc.yml"), Path("/etc/azbridge/azbridge_config.svc.yml"))
    found = [path for path in machine if path.is_file()][:1]
    if chosen is not None:
        return [*found, chosen]
    return found + [path for path in (service if is_service else user) if path.is_file()][:1]


def parse_file(path: Path) -> Layer:
    """Read one file. Blocks.

    Raises:
      ConfigError: it cannot be read, or is wrong; names file, line and key. No secret is repeated.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"is longer than {_MAX_FILE_BYTES} bytes", source=str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8", source=str(path)) from error
    layer = _Reader(str(path)).read(parse_yaml(text, source=str(path)))
    if _has_secret(layer) and path.stat().st_mode & 0o077:
        layer.warnings.append(f"{path}: holds a key and can be read by others; chmod 600 it")
    return layer


def _has_secret(layer: Layer) -> bool:
    names = ("AzureRelayConnectionString", "AzureRelaySharedAccessKey", "AzureRelaySharedAccessSignature")
    strings = [forward.connection_string for forward in layer.local]
    strings += [forward.connection_string for forward in layer.remote]
    return any(name in layer.values for name in names) or any(strings)


class _Reader:
    """Turns a document into a layer."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._layer = Layer()

    def _where(self, node: Node) -> str:
        return f"{self._source}:{node.line}"

    def read(self, document: Node) -> Layer:
        if isinstance(document, YamlScalar) and document.is_null:
            return self._layer
        if not isinstance(document, YamlMap):
            raise ConfigError("expected KEY: VALUE lines", source=self._where(document))
        for key, node in document.items:
            if key.text in ("LocalForward", "RemoteForward"):
                for item in self._list(key, node):
                    if key.text == "LocalForward":
                        self._layer.local.append(self._local(item))
                    else:
                        self._layer.remote.append(self._remote(item))
            elif key.text in TOP_KEYS:
                text = self._text(key, node)
                if text is not None:
                    self._layer.set(key.text, text, self._where(key))
            else:
                self._warn(key, ("LocalForward", "RemoteForward", *TOP_KEYS))
        return self._layer

    def _warn(self, key: YamlScalar, known: Iterable[str]) -> None:
        near = nearest(key.text, known)
        self._layer.warnings.append(f"{self._where(key)}: {key.text[:60]}: unknown key, it has no effect{near}")

    def _list(self, key: YamlScalar, node: Node) -> Sequence[Node]:
        if isinstance(node, YamlList):
            return node.items
        if isinstance(node, YamlScalar) and node.is_null:
            return ()
        raise ConfigError("expected a list, each entry with a dash", source=self._where(node), key=key.text)

    def _text(self, key: YamlScalar, node: Node) -> str | None:
        if not isinstance(node, YamlScalar):
            raise ConfigError("expected one value", source=self._where(node), key=key.text)
        return None if node.is_null else node.text

    def _table(self, node: Node, known: Mapping[str, Callable[[str], Any]]) -> tuple[dict[str, Any], Sequence[Node]]:
        """The values of an entry, and its ``Bindings``."""
        if not isinstance(node, YamlMap):
            raise ConfigError("expected KEY: VALUE lines", source=self._where(node))
        found: dict[str, Any] = {}
        bindings: Sequence[Node] = ()
        for key, value in node.items:
            if key.text == "Bindings" and "RelayName" in known:
                bindings = self._list(key, value)
                continue
            parse = known.get(key.text)
            if parse is None:
                self._warn(key, known)
                continue
            text = self._text(key, value)
            if text is None:
                continue
            try:
                found[key.text] = parse(unwrapped(text))
            except ConfigError as error:
                raise ConfigError(str(error), source=self._where(key), key=key.text) from None
        return found, bindings

    def _local(self, node: Node) -> LocalForward:
        found, below = self._table(node, LOCAL_KEYS)
        relay = self._relay(found, node)
        bindings, hosts = [], []
        tables = [(found, node)] if LOCAL_BINDING_KEYS.keys() & found.keys() else []
        for table, place in tables + [(self._table(item, LOCAL_BINDING_KEYS)[0], item) for item in below]:
            bindings.append(self._local_binding(table, place))
            if "HostName" in table:
                hosts.append(table["HostName"])
        if not bindings:
            raise ConfigError("has no binding: add BindPort or BindLocalSocket", source=self._where(node), key=relay)
        return LocalForward(
            relay,
            tuple(bindings),
            hosts=tuple(dict.fromkeys(hosts)),
            connection_string=found.get("ConnectionString", ""),
            is_anonymous=found.get("NoAuthentication", False),
            source=self._where(node),
        )

    def _local_binding(self, table: dict[str, Any], node: Node) -> LocalBinding:
        port, socket = table.get("BindPort", 0), table.get("BindLocalSocket", "")
        name = self._port_name(table, port, socket, node, "BindPort or BindLocalSocket")
        if socket:
            return LocalBinding(name, socket=socket)
        return LocalBinding(name, host=table.get("BindAddress", ""), port=abs(port), is_udp=port < 0)

    def _remote(self, node: Node) -> RemoteForward:
        found, below = self._table(node, REMOTE_KEYS)
        relay = self._relay(found, node)
        bindings: list[RemoteBinding] = []
        http: list[HttpBinding] = []
        tables = [(found, node)] if REMOTE_BINDING_KEYS.keys() & found.keys() else []
        for table, place in tables + [(self._table(item, REMOTE_BINDING_KEYS)[0], item) for item in below]:
            if table.get("Http"):
                http.append(self._http_binding(table, place))
            else:
                bindings.append(self._remote_binding(table, place))
        if not bindings and not http:
            raise ConfigError("has no binding: add HostPort or LocalSocket", source=self._where(node), key=relay)
        return RemoteForward(
            relay,
            tuple(bindings),
            tuple(http),
            connection_string=found.get("ConnectionString", ""),
            source=self._where(node),
        )

    def _remote_binding(self, table: dict[str, Any], node: Node) -> RemoteBinding:
        port, socket = table.get("HostPort", 0), table.get("LocalSocket", "")
        name = self._port_name(table, port, socket, node, "HostPort or LocalSocket")
        if socket:
            return RemoteBinding(name, socket=socket)
        return RemoteBinding(name, host=table.get("Host") or "localhost", port=abs(port), is_udp=port < 0)

    def _http_binding(self, table: dict[str, Any], node: Node) -> HttpBinding:
        scheme = table.get("PortName", "http").lower()
        if scheme not in ("http", "https"):
            raise ConfigError("with Http: true it is http or https", source=self._where(node), key="PortName")
        if table.get("Insecure"):
            self._layer.warnings.append(
                f"{self._where(node)}: Insecure: has no effect, certificates are verified; trust the server's"
                " authority with --cafile"
            )
        path = table.get("Path", "").strip("/")
        return HttpBinding(
            "http" if scheme == "http" else "https",
            table.get("Host") or "localhost",
            abs(table.get("HostPort", 0)) or (80 if scheme == "http" else 443),
            f"/{path}/" if path else "/",
        )

    def _relay(self, table: dict[str, Any], node: Node) -> str:
        if not table.get("RelayName"):
            raise ConfigError("is missing", source=self._where(node), key="RelayName")
        try:
            return check_relay_name(table["RelayName"])
        except ConfigError as error:
            raise ConfigError(str(error), source=self._where(node), key="RelayName") from None

    def _port_name(self, table: dict[str, Any], port: int, socket: str, node: Node, wanted: str) -> str:
        if bool(port) is bool(socket):
            raise ConfigError(f"has to have either {wanted}", source=self._where(node))
        usual = socket or (f"{-port}U" if port < 0 else str(port))
        try:
            return check_port_name(table.get("PortName") or usual)
        except ConfigError as error:
            raise ConfigError(str(error), source=self._where(node), key="PortName") from None


def read(path: Path) -> tuple[list[HcmConnection | Forward], list[str]]:
    """Import one of azbridge's files: its entries, and remarks on what was not carried over. Blocks.

    Raises:
      ConfigError: as `parse_file` and `edge_settings`.
    """
    settings = combine([parse_file(path)])
    found = edge_settings(settings, directory=path.resolve().parent)
    remarks = list(settings.warnings)
    if settings.log_file or settings.log_level:
        remarks.append(f"{path}: LogLevel and LogFileName are not carried over; the service's journal has the log")
    return [*found.hcm.connections, *found.connect.forwards], remarks
