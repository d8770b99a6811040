"""What a listener and a sender need to know before they dial: which relay, which hybrid connection, which TLS,
which proxy."""

from __future__ import annotations

import dataclasses
import os
import ssl
from dataclasses import dataclass

from ..errors import ConfigError
from ..net.connect import client_ssl_context
from ..net.proxy import Proxy, choose_proxy
from ..wire.connection_string import ConnectionString, parse_connection_string

__all__ = ["RelayEndpoint", "resolve_endpoint"]


@dataclass(frozen=True, slots=True)
class RelayEndpoint:
    """One hybrid connection at one relay.

    Attributes:
      settings: the connection string, with ``entity_path`` filled in.
      path: the hybrid connection, without slashes at its ends.
      base_url: ``wss://HOST[:PORT]`` or ``ws://...``.
      ssl_context: for every ``wss`` connection, rendezvous included; None is the system's store.
      proxy: for every connection, rendezvous included; None dials directly.
    """

    settings: ConnectionString
    path: str
    base_url: str
    ssl_context: ssl.SSLContext | None
    proxy: Proxy | None = None


def resolve_endpoint(
    connection_string: str | ConnectionString,
    path: str | None,
    *,
    cafile: str | os.PathLike[str] | None,
    ssl_context: ssl.SSLContext | None,
    tls: bool,
    proxy: str | Proxy | None = None,
) -> RelayEndpoint:
    """Put the arguments of `open_listener` and `open_stream` together.

    Raises:
      ConfigError: the connection string is wrong, no hybrid connection is named, TLS is asked for in two ways, or the
        proxy's URL is none.
    """
    # What an unset variable of the environment gives, or two arguments in the wrong order; neither is shown: the other
    # one may be the connection string.
    if not isinstance(connection_string, str | ConnectionString):
        raise ConfigError(f"expected a connection string, not {type(connection_string).__name__}")
    if path is not None and not isinstance(path, str):
        raise ConfigError(f"expected text, not {type(path).__name__}", key="path")
    if isinstance(connection_string, str):
        connection_string = parse_connection_string(connection_string)
    path = (path if path is not None else connection_string.entity_path or "").strip("/")
    if not path:
        raise ConfigError(
            "no hybrid connection is named: put EntityPath into the connection string, or give its path beside it",
            key="EntityPath",
        )
    if ssl_context is not None and cafile is not None:
        raise ConfigError("give ssl_context or cafile, not both", key="cafile")
    if ssl_context is not None and (ssl_context.verify_mode is not ssl.CERT_REQUIRED or not ssl_context.check_hostname):
        raise ConfigError("the ssl_context does not verify certificate and host name", key="ssl_context")
    base_url = connection_string.base_url
    if not tls:
        base_url = "ws://" + base_url.partition("://")[2]
    return RelayEndpoint(
        settings=dataclasses.replace(connection_string, entity_path=path),
        path=path,
        base_url=base_url,
        ssl_context=client_ssl_context(cafile) if cafile is not None else ssl_context,
        proxy=choose_proxy(proxy, connection_string.host) if isinstance(proxy, str) else proxy,
    )
