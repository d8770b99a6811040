"""One ``accept`` message: who waits, the decision about it, and the way to tell the relay."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..errors import LocalProtocolError, Refused, RemoteProtocolError
from ..net.connect import open_websocket, parse_ws_url
from ..net.proxy import Proxy
from ..wire.address import build_reject_url, decode_path, split_target, strip_query
from ..wire.http1 import Headers
from ..wire.messages import Accept as AcceptMessage
from ..wire.messages import RemoteEndpoint
from .connection import Connection, ConnectionInfo

__all__ = ["FIRST_OFFERED", "Accept", "AcceptHandler", "IncomingConnection", "Invitation", "Reject"]

FIRST_OFFERED: Final = ""
"""Stands for the sub-protocol that the sender offered first, or none if it offered none: what the vendor's .NET and
Node listeners take. Cannot be mistaken for one, as a sub-protocol is never empty."""

_GONE: Final = 410  # the relay's answer to a handshake that carries a rejection (7.3)


@dataclass(frozen=True, slots=True)
class IncomingConnection:
    """A sender that waits to be accepted.

    Attributes:
      path: the hybrid connection, as named in our connection string.
      suffix: what the sender's path has behind it, percent-decoded; usually ``""``.
      query: the sender's own query, as sent, without ``?`` and without what was meant for the relay.
      headers: the sender's request headers; tokens for the relay are not among them.
      remote_endpoint: where the sender dialled from, as the relay saw it; None if the relay does not say.
      subprotocols: as offered by the sender, the preferred one first.
      tracking_id: names this connection in the relay's logs.
      target: path and query as the sender sent them, still percent-encoded, without ``/$hc`` and without what was meant
        for the relay: where slashes at the end, or escaped ones, matter.
    """

    path: str
    suffix: str
    query: str
    headers: Headers = field(repr=False)
    remote_endpoint: RemoteEndpoint | None
    subprotocols: tuple[str, ...]
    tracking_id: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Accept:
    """An accept handler's yes.

    Attributes:
      subprotocol: one that the sender offered; None for none, which browsers that offered some take as a failure.
    """

    subprotocol: str | None = FIRST_OFFERED


@dataclass(frozen=True, slots=True)
class Reject:
    """An accept handler's no. The sender sees exactly this status and this text.

    Attributes:
      status: 400 to 599.
      description: one line; characters outside Latin-1 become ``?``.
    """

    status: int = 400
    description: str = "Rejected by user code"

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise LocalProtocolError(f"a rejection has a status of 400 to 599, not {self.status}", section="7.3")


AcceptHandler: TypeAlias = Callable[[IncomingConnection], Accept | Reject | Awaitable[Accept | Reject | None] | None]
"""Decides about one sender; may be async. None means `Accept()`."""


class Invitation:
    """What a relay asks of us with one ``accept`` message.

    Args:
      message: as it came.
      path: the hybrid connection we listen on.
      is_tls: whether it came over TLS. The rendezvous then has to use TLS too: whoever can forge the address could
        otherwise strip it off.
      ssl_context: for the rendezvous; None is the system's store.
      proxy: for the rendezvous.
      max_message_bytes: see `Connection.messages`.

    Raises:
      RemoteProtocolError: the address is no WebSocket URL with a query, or drops TLS. The text does not repeat it: an
        address is a secret.
    """

    def __init__(
        self,
        message: AcceptMessage,
        *,
        path: str,
        is_tls: bool,
        ssl_context: ssl.SSLContext | None,
        max_message_bytes: int,
        proxy: Proxy | None = None,
    ) -> None:
        self._address = message.address
        self._url = parse_ws_url(message.address)
        if is_tls and not self._url.is_tls:
            raise RemoteProtocolError("the rendezvous address drops TLS", section="7.1")
        if "?" not in self._url.resource:
            raise RemoteProtocolError("the rendezvous address has no query", section="7.1")
        self._ssl_context = ssl_context
        self._proxy = proxy
        self._max_message_bytes = max_message_bytes
        raw_path, raw_query = split_target(self._url.resource)
        # The relay found our entity at the front of this path, so the suffix begins as many segments further on.
        segments = decode_path(raw_path).removeprefix("$hc/").split("/")
        headers = Headers(message.connectHeaders.items())
        query = strip_query(raw_query)
        self.incoming = IncomingConnection(
            path=path,
            suffix="/".join(segments[path.count("/") + 1 :]),
            query=query,
            headers=headers,
            remote_endpoint=message.remoteEndpoint,
            subprotocols=tuple(headers.members("Sec-WebSocket-Protocol")),
            tracking_id=message.id,
            target="/" + raw_path.removeprefix("/").partition("/")[2] + (f"?{query}" if query else ""),
        )

    async def decide(self, handler: AcceptHandler | None) -> Accept | Reject:
        """Ask the accept handler, and check what it says.

        Raises:
          LocalProtocolError: it returned something else, or a sub-protocol that was not offered.
          whatever the handler raises.
        """
        found = None if handler is None else handler(self.incoming)
        decision = await found if inspect.isawaitable(found) else found
        if decision is None:
            decision = Accept()
        if not isinstance(decision, Accept | Reject):
            raise LocalProtocolError(f"an accept handler returns Accept, Reject or None, not {type(decision).__name__}")
        return self.check(decision)

    def check(self, decision: Accept | Reject) -> Accept | Reject:
        """Put the sub-protocol in that `FIRST_OFFERED` stands for.

        Raises:
          LocalProtocolError: a sub-protocol that was not offered.
        """
        if isinstance(decision, Accept):
            offered = self.incoming.subprotocols
            if decision.subprotocol == FIRST_OFFERED:
                return Accept(offered[0] if offered else None)
            if decision.subprotocol is not None and decision.subprotocol not in offered:
                raise LocalProtocolError(f"the sender did not offer the sub-protocol {decision.subprotocol!r}")
        return decision

    async def accept(self, subprotocol: str | None) -> Connection:
        """Open the rendezvous. Raises as `open_websocket`."""
        opened = await open_websocket(
            self._url,
            ssl_context=self._ssl_context,
            proxy=self._proxy,
            protocols=() if subprotocol is None else (subprotocol,),
            max_message_bytes=self._max_message_bytes,
        )
        incoming = self.incoming
        info = ConnectionInfo(
            path=incoming.path,
            suffix=incoming.suffix,
            query=incoming.query,
            headers=incoming.headers,
            remote_endpoint=incoming.remote_endpoint,
            subprotocol=opened.protocol,
            tracking_id=incoming.tracking_id,
        )
        return Connection(opened.leg, info)

    async def reject(self, rejection: Reject) -> None:
        """Tell the relay to refuse the sender (7.3).

        Raises:
          RemoteProtocolError: the relay took it for something else.
          Refused: another answer than 410; ConnectionLost: as `open_websocket`.
        """
        url = parse_ws_url(build_reject_url(self._address, rejection.status, rejection.description))
        try:
            opened = await open_websocket(url, ssl_context=self._ssl_context, proxy=self._proxy)
        except Refused as error:
            if error.http_status != _GONE:
                raise
            return
        await opened.leg.aclose()
        raise RemoteProtocolError("the relay accepted a rejection", section="7.3")
