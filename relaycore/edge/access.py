"""From settings to the relay: which arguments a listener or a sender of the library gets.

Keys are read when a token is made, not when the program starts, so that a renewed one needs no restart.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.connection import Connection
from ..client.credentials import TokenProvider
from ..client.sender import dial_stream, open_stream
from ..errors import ConfigError
from ..net.connect import client_ssl_context
from ..net.proxy import Proxy, choose_proxy
from ..wire.connection_string import ConnectionString, parse_connection_string
from ..wire.limits import TOKEN_LIFETIME
from ..wire.sas import make_token
from .config.secret import Secret
from .config.settings import Forward, HcmConnection

if TYPE_CHECKING:
    from ..client.listener import Listener
    from ..client.management import ManagementClient

__all__ = ["RelayAccess"]


@dataclass(frozen=True)
class RelayAccess:
    """One hybrid connection at one relay, and how to get there.

    Attributes:
      connection_string: endpoint and path; never a key.
      token: makes tokens; None for an anonymous sender.
      ssl_context: None is the system's store.
      proxy: to dial through; None dials directly.
    """

    connection_string: ConnectionString
    token: TokenProvider | None = field(repr=False)
    ssl_context: ssl.SSLContext | None
    proxy: Proxy | None
    keep_alive_s: float

    @classmethod
    def of(cls, settings: HcmConnection | Forward, *, now_unix: Callable[[], float] = time.time) -> RelayAccess:
        """Put it together. Reads the certificates, not the key.

        Raises:
          ConfigError: endpoint, proxy or certificates are wrong.
        """
        relay = settings.relay
        text = f"Endpoint={relay.endpoint};EntityPath={settings.path}"
        parsed = parse_connection_string(text + (";UseDevelopmentEmulator=true" if relay.is_emulator else ""))
        return cls(
            connection_string=parsed,
            token=_provider(settings.key_name, settings.key, settings.token, now_unix),
            ssl_context=None if relay.cafile is None else _trust(relay.cafile),
            proxy=choose_proxy(relay.proxy, parsed.host),
            keep_alive_s=relay.keep_alive_s,
        )

    def listen(self, **options: Any) -> AbstractAsyncContextManager[Listener]:  # noqa: ANN401 - passed through
        """`open_listener` with all that is known here."""
        from ..client.listener import open_listener  # what only sends is quick to start

        return open_listener(
            self.connection_string,
            token=self.token,
            ssl_context=self.ssl_context,
            proxy=self.proxy,
            keep_alive_s=self.keep_alive_s,
            **options,
        )

    def connect(self, **options: Any) -> AbstractAsyncContextManager[Connection]:  # noqa: ANN401 - passed through
        """`open_stream` with all that is known here."""
        return open_stream(
            self.connection_string, token=self.token, ssl_context=self.ssl_context, proxy=self.proxy, **options
        )

    async def dial(self, **options: Any) -> Connection:  # noqa: ANN401 - passed through
        """`dial_stream` with all that is known here: as `connect`, and the caller closes the connection."""
        return await dial_stream(
            self.connection_string, token=self.token, ssl_context=self.ssl_context, proxy=self.proxy, **options
        )

    def management(self) -> ManagementClient:
        """A client for the hybrid connection's own text; a right to listen or to send is enough to read it (4.2)."""
        from ..client.management import ManagementClient

        return ManagementClient(
            self.connection_string, token=self.token, ssl_context=self.ssl_context, proxy=self.proxy
        )


def _trust(cafile: Path) -> ssl.SSLContext:
    """The file's authorities and the system's."""
    context = client_ssl_context(cafile)
    context.load_default_certs()
    return context


def _provider(
    key_name: str, key: Secret | None, token: Secret | None, now_unix: Callable[[], float]
) -> TokenProvider | None:
    if token is not None:
        return lambda _: token.read()
    if key is None:
        return None
    if not key_name:
        raise ConfigError("a key needs the name of its rule beside it", source=key.source, key="key_name")
    return functools.partial(_sign, key_name, key, now_unix)


def _sign(key_name: str, key: Secret, now_unix: Callable[[], float], audience: str) -> str:
    return make_token(audience, key_name, key.read(), int(now_unix() + TOKEN_LIFETIME))
