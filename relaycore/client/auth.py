"""Signed requests with a common HTTP client: an object that puts a fresh token into each request.

It is made for clients that keep their own connections, such as requests and httpx, and needs neither of them.

Which header carries the token
------------------------------
The relay takes it from two (wire contract 5.1, 10). ``ServiceBusAuthorization`` it always removes. ``Authorization`` it
removes when that was the credential, and passes on as application data otherwise: beside the other header, and on a
hybrid connection that wants no token. So by default

- a request without an ``Authorization`` of its own gets the token there, because clients take exactly this field out
  when a redirect leads to another host;
- a request that has one keeps it for the application, and the token goes into ``ServiceBusAuthorization``.

A hybrid connection without client authorization needs none of this; where the same code has to talk to both kinds, say
``header="ServiceBusAuthorization"``, or the listener gets to see the token.

Where a token must not go
-------------------------
A token is put only into requests to the relay's scheme, host and port and to the hybrid connection's own path. What is
left is a redirect, which clients follow by copying headers without asking us again:

- requests: a response hook takes the token out if the redirect leads elsewhere, whichever header it is in.
- httpx: ``Authorization`` is left to the client, which keeps it for redirects within the relay's scheme, host and port:
  a redirect to another hybrid connection of the same relay takes the token along. ``ServiceBusAuthorization`` is
  written where only the transport looks, behind the fields that a redirect copies, so no redirected request has it, one
  to the same relay neither.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote, urljoin

from ..errors import ConfigError
from ..wire.address import decode_path, strip_query
from ..wire.connection_string import ConnectionString
from ..wire.sas import SCHEME_WORD
from .credentials import AUTHORIZATION_HEADER, Credential, TokenProvider, TokenSource, token_source
from .endpoint import resolve_endpoint

__all__ = ["SenderAuth", "auth"]

STANDARD_HEADER: Final = "Authorization"

_RENEWED_AFTER: Final = 0.5
"""The part of a token's life after which it is replaced: a request may wait before it leaves, and clocks differ."""

_ISSUED_KEPT: Final = 16
"""Tokens that are still recognised as ours when a client sends a request once more."""

_SAFE_IN_PATH: Final = "-._~!$&'()*+,;=:@/"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# No user names, no backslashes, no blanks: nothing that two parsers could take for different hosts.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#\\\s]*)?(?=[?#]|\Z)",
    re.IGNORECASE,
)


class _Request(Protocol):
    """What a request of requests and one of httpx have in common."""

    @property
    def url(self) -> Any: ...  # noqa: ANN401 - a text there, an object here

    headers: Any


R = TypeVar("R", bound=_Request)


class SenderAuth:
    """Puts tokens into requests; made by `auth`. May be shared by threads and by tasks.

    Attributes:
      path: the hybrid connection.
    """

    def __init__(
        self,
        path: str,
        base_url: str,
        source: TokenSource,
        header: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self._base_url = base_url
        self._source = source
        self._header = header
        self._clock = clock
        self._origin = _origin_of(base_url)
        self._segments = decode_path(path).split("/")
        # Guarded by _lock.
        self._lock = threading.Lock()
        self._current: Credential | None = None
        self._renew_at_unix = 0.0
        self._issued: deque[str] = deque(maxlen=_ISSUED_KEPT)

    def __repr__(self) -> str:
        return f"<SenderAuth {self.url()}>"

    def url(self, suffix: str = "", query: str = "") -> str:
        """The URL to call.

        Args:
          suffix: what the listener sees behind the path, as text; it is percent-encoded here. A slash at its end stays.
          query: what the listener sees as query, already encoded, without ``?``.
        """
        path = quote(self.path, safe=_SAFE_IN_PATH)
        if suffix:
            path += "/" + quote(suffix.removeprefix("/"), safe=_SAFE_IN_PATH)
        query = strip_query(query)
        return f"{self._base_url}/{path}{'?' if query else ''}{query}"

    def token(self) -> str:
        """A token that is good for a while: the one from last time, or a new one after half of its life.

        One whose end cannot be read is asked for each time. Blocks as long as a token provider does, and other threads
        that need a new token with it.

        Raises:
          ConfigError: the provider is async, or returned something else than a text.
          whatever the provider raises.
        """
        with self._lock:
            now = self._clock()
            if self._current is None or now >= self._renew_at_unix:
                self._current = self._source.fetch_nowait()
                expires = self._current.expires_unix
                if not self._source.is_renewable:
                    self._renew_at_unix = float("inf")
                elif expires is None:
                    self._renew_at_unix = now
                else:
                    self._renew_at_unix = now + max(0.0, expires - now) * _RENEWED_AFTER
                if self._current.text not in self._issued:
                    self._issued.append(self._current.text)
            return self._current.text

    def headers(self) -> dict[str, str]:
        """The one header field that a request needs, with a fresh token. For clients that take no ``auth`` object."""
        return {self._header or STANDARD_HEADER: self.token()}

    def __call__(self, request: R) -> R:
        """Put a token into a request, if it is meant for the relay. Called by the HTTP client; returns its argument.

        Raises: as `token`.
        """
        if not self._covers(str(request.url)):
            return request
        token = self.token()
        name = self._header or (AUTHORIZATION_HEADER if self._has_own(request) else STANDARD_HEADER)
        if hasattr(request, "register_hook"):
            request.headers[name] = token
            request.register_hook("response", self._redirect_guard(name, token))
        elif name.lower() == STANDARD_HEADER.lower() or not hasattr(request.headers, "raw"):
            request.headers[name] = token
        else:
            request.headers.pop(name, None)
            request.headers = _with_unseen_field(request.headers, name, token)
        return request

    def _has_own(self, request: _Request) -> bool:
        """Whether the application uses ``Authorization`` itself. A token from an earlier attempt is not that."""
        value = request.headers.get(STANDARD_HEADER)
        if value is None:
            return False
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        return not text.startswith(SCHEME_WORD + " ") and text not in self._issued

    def _covers(self, url: str) -> bool:
        """Whether a URL belongs to our hybrid connection at our relay."""
        match = _URL.match(url)
        if match is None or _origin(match) != self._origin:
            return False
        segments = decode_path(match["path"] or "").split("/")
        if "." in segments or ".." in segments:
            return False
        return [part.casefold() for part in segments[: len(self._segments)]] == [
            part.casefold() for part in self._segments
        ]

    def _redirect_guard(self, name: str, token: str) -> Callable[..., None]:
        """Make the hook that requests calls before it copies the header fields for a redirected request."""

        def guard(response: Any, **_: object) -> None:  # noqa: ANN401 - a response of requests
            location = response.headers.get("Location")
            headers = response.request.headers
            if location is None or headers.get(name) != token:
                return
            if not self._covers(urljoin(response.url, location)):
                del headers[name]

        return guard


def _origin_of(url: str) -> tuple[str, str, int]:
    match = _URL.match(url)
    if match is None:
        raise ConfigError(f"cannot be called over HTTP: {url}", key="Endpoint")
    return _origin(match)


def _origin(match: re.Match[str]) -> tuple[str, str, int]:
    scheme, host = match["scheme"].lower(), match["host"].lower()
    if host.startswith("["):
        with contextlib.suppress(ValueError):  # what is no address equals itself only
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
    return scheme, host, int(match["port"]) if match["port"] is not None else _DEFAULT_PORTS[scheme]


def _with_unseen_field(headers: Any, name: str, value: str) -> Any:  # noqa: ANN401 - whichever httpx it is
    """Copy httpx ``Headers`` with one field more in ``raw``, which is what transports send.

    Further copies are made from the fields alone, and redirects from such copies.
    """
    kind: Any = type(headers)
    copy = _unseen_field_class(getattr(kind, "plain_class", kind))(headers, headers.encoding)
    copy.unseen = (name.encode("ascii"), value.encode("ascii"))
    return copy


@functools.cache
def _unseen_field_class(base: Any) -> Any:  # noqa: ANN401
    class UnseenField(base):  # type: ignore[misc]
        plain_class = base
        unseen: tuple[bytes, bytes] | None = None

        @property
        def raw(self) -> list[tuple[bytes, bytes]]:
            fields: list[tuple[bytes, bytes]] = super().raw
            return fields if self.unseen is None else [*fields, self.unseen]

    return UnseenField


def auth(
    connection_string: str | ConnectionString,
    *,
    path: str | None = None,
    token: str | TokenProvider | None = None,
    header: str | None = None,
    tls: bool = True,
    clock: Callable[[], float] = time.time,
) -> SenderAuth:
    """Make an object that signs HTTP requests to a hybrid connection.

    ::

        auth = relaycore.auth(connection_string)
        requests.get(auth.url("orders/7"), auth=auth)
        async with httpx.AsyncClient(auth=auth) as client:
            await client.get(auth.url("orders", "page=2"))
        urllib.request.Request(auth.url(), headers=auth.headers())

    Tokens are made ahead of their time and kept meanwhile. None is ever put into a request to another scheme, host,
    port or path than those of the hybrid connection. Clients that follow redirects by themselves may carry one on to
    another path of the same relay (httpx does, with ``Authorization``), never to another host.

    Args:
      connection_string: ``Endpoint=sb://...``; needs a right to send.
      path: the hybrid connection, if the connection string has no ``EntityPath``, or instead of it.
      token: instead of the connection string's key: a token that is sent as it is, or a plain function that makes them,
        see `TokenProvider`.
      header: the field that carries the token, ``Authorization`` or ``ServiceBusAuthorization``. Without it that is
        ``Authorization``, or the other one for requests that have an ``Authorization`` of their own. The relay passes
        ``Authorization`` on to the listener of a hybrid connection that wants no token.
      tls: False calls plain ``http``, for a relay behind something else that encrypts.
      clock: wall clock in seconds.

    Raises:
      ConfigError: the arguments do not fit together, or there is neither key nor token.
    """
    endpoint = resolve_endpoint(connection_string, path, cafile=None, ssl_context=None, tls=tls)
    source = token_source(endpoint.settings, token, clock=clock)
    if source is None:
        raise ConfigError("nothing to sign with: a key or a token is needed", key="SharedAccessKey")
    known = {name.lower(): name for name in (STANDARD_HEADER, AUTHORIZATION_HEADER)}
    if header is not None and header.lower() not in known:
        raise ConfigError(f"expected {' or '.join(known.values())}", key="header")
    return SenderAuth(
        endpoint.path,
        "http" + endpoint.base_url.removeprefix("ws"),
        source,
        None if header is None else known[header.lower()],
        clock,
    )
