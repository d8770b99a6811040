"""Where connections come in: listening sockets, and TLS contexts that are renewed while the server runs.

Trio hands over one connection per turn of the event loop. A relay whose clients dial a thousand times a second takes
all that have come in one turn.

A renewed certificate serves new handshakes only; a connection keeps the context with which it began. The new pair
is loaded into a context of its own and swapped in when it is whole, because loading it into the live one can leave
a mismatched pair behind.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import trio

from ..errors import ConfigError
from .keepalive import keep_alive

__all__ = ["PASSING_ERRNOS", "Listener", "TlsContext", "open_listeners"]

PASSING_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
        getattr(errno, "ENONET", errno.EPROTO),
    }
)
"""What accept(2) says of a connection that went wrong before it was taken, which is no fault of ours."""


class Listener(trio.abc.AsyncResource):
    """A listening socket.

    Args:
      listening: bound, listening and non-blocking; owned by this object from here on.

    Attributes:
      address: ``(host, port)`` where it listens.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.address: tuple[str, int] = listening.getsockname()[:2]

    async def wait(self) -> None:
        """Wait until `accept_nowait` may find a connection. A checkpoint.

        Raises:
          trio.ClosedResourceError: the listener was closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("this listener was closed")
        await trio.lowlevel.wait_readable(self._socket)

    def accept_nowait(self) -> tuple[trio.SocketStream, tuple[str, int]] | None:
        """Take a connection, which belongs to the caller, and the address of its peer.

        Returns: None when there is none, or the listener was closed.

        Raises:
          OSError: there are no descriptors or no memory left.
        """
        while self._socket.fileno() >= 0:
            try:
                accepted, name = self._socket.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in PASSING_ERRNOS:
                    raise
            else:
                return trio.SocketStream(trio.socket.from_stdlib_socket(accepted)), (name[0], name[1])
        return None

    async def aclose(self) -> None:
        """Close it; connections that nobody has taken are reset. May be called again. A checkpoint."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()


async def open_listeners(host: str, port: int, *, backlog: int) -> list[Listener]:
    """Bind and listen on every address of ``host``.

    Args:
      host: name or address; ``0.0.0.0`` or ``::`` for every interface.
      port: TCP port; 0 takes a free one, the same for all addresses of a name.

    Raises:
      ConfigError: the address cannot be bound; says which and why.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
        if port == 0 and len(listeners) > 1:
            port = listeners[0].socket.getsockname()[1]
            for listener in listeners[1:]:
                await listener.aclose()
            rest = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
            await listeners[0].aclose()
            listeners = rest
    except OSError as error:
        where = f"{host}:{port}"
        if isinstance(error, PermissionError):
            advice = "ports below 1024 need a privilege; choose another one, or allow it to this program"
        elif error.errno is not None and os.strerror(error.errno) == "Address already in use":
            advice = "another program listens there; choose another port, or stop that one"
        else:
            advice = "choose an address of this machine"
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror or error}; {advice}", key="server.port"
        ) from error
    return [_own(listener) for listener in listeners]


def _own(listener: trio.SocketListener) -> Listener:
    listening = socket.socket(fileno=os.dup(listener.socket.fileno()))
    listening.setblocking(False)
    keep_alive(listening)
    listener.socket.close()
    return Listener(listening)


class TlsContext:
    """The server's certificate: loaded from two PEM files, and again whenever they change.

    Args:
      cert: certificate and chain.
      key: its unencrypted private key.

    Raises:
      ConfigError: a file cannot be read, or they do not belong together.
    """

    def __init__(self, cert: str | Path, key: str | Path) -> None:
        self._cert = Path(cert)
        self._key = Path(key)
        self._stamp = self._read_stamp()
        self._context = self._load()

    @property
    def current(self) -> ssl.SSLContext:
        """The context for the next handshake."""
        return self._context

    def reload(self) -> None:
        """Load both files anew for the handshakes to come.

        Raises:
          ConfigError: they cannot be used; the old pair stays.
        """
        self._stamp = self._read_stamp()
        self._context = self._load()

    async def watch(self, interval: float, on_reload: Callable[[ConfigError | None], None]) -> None:
        """Reload whenever a file has changed; runs until cancelled.

        Args:
          interval: seconds between two looks.
          on_reload: told of each attempt, with the error if it failed. A failed pair is tried again when it changes
          again.
        """
        while True:
            await trio.sleep(interval)
            try:
                stamp = self._read_stamp()
            except ConfigError:
                continue  # between the removal of the old file and the arrival of the new one
            if stamp == self._stamp:
                continue
            try:
                self.reload()
            except ConfigError as error:
                on_reload(error)
            else:
                on_reload(None)

    def _read_stamp(self) -> tuple[object, ...]:
        stamp: list[object] = []
        for name, path in (("tls.cert", self._cert), ("tls.key", self._key)):
            try:
                status = path.stat()
            except OSError as error:
                raise ConfigError(f"cannot read {path}: {error.strerror}", key=name) from error
            stamp.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamp)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Browsers offer h2, and nothing here works over it (4).
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        try:
            # The empty password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            raise ConfigError(
                f"cannot use the certificate {self._cert} with the key {self._key}: {reason}; both must be PEM, "
                "the key unencrypted, and belong together",
                key="tls.cert",
            ) from error
        return context
