"""A whole relay in the process of a test: on 127.0.0.1, at a port of its own, with definitions kept in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import trio

from ..broker.model import HybridConnection
from ..config import Config, ServerConfig, TlsConfig
from ..errors import RelayError
from ..gateway.server import Server, serve
from ..net.tasks import alone
from ..store.base import Store
from ..store.sqlite import open_sqlite
from ..trace import Trace
from ..vocab import Right
from ..wire.connection_string import format_connection_string

__all__ = ["Relay", "open_relay"]

_RULES: Final = {
    frozenset({Right.LISTEN}): "TestListen",
    frozenset({Right.SEND}): "TestSend",
    frozenset({Right.LISTEN, Right.SEND}): "TestListenSend",
    frozenset({Right.LISTEN, Right.SEND, Right.MANAGE}): "RootManageSharedAccessKey",
}
"""Rules of the namespace, by what they allow."""

_DRAIN_TIMEOUT: Final = 2.0
"""Seconds that connections have to end once the test is over; then they are cut."""


@dataclass(frozen=True)
class Relay:
    """A running relay; see `open_relay`.

    Attributes:
      server: for its statistics, and to stop it on the way.
      store: its definitions, for what has no helper here.
      trace: its events; ``with relay.trace.recorded() as events`` collects them.
    """

    server: Server
    store: Store
    trace: Trace

    @property
    def base_url(self) -> str:
        """``ws://127.0.0.1:PORT``, or ``wss://`` with TLS."""
        return self.server.base_url

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1."""
        return self.server.addresses[0][1]

    async def create_entity(
        self, path: str, *, requires_client_authorization: bool = True, user_metadata: str | None = None
    ) -> HybridConnection:
        """Create a hybrid connection; errors as `Store.create_entity`."""
        return await self.store.create_entity(
            self.server.namespace.name,
            path,
            requires_client_authorization=requires_client_authorization,
            user_metadata=user_metadata,
        )

    async def delete_entity(self, path: str) -> bool:
        """Delete a hybrid connection; those who use it are closed with 1001. Returns: whether it was there."""
        return await self.store.delete_entity(self.server.namespace.name, path)

    def connection_string(self, path: str | None = None, *, rights: Iterable[Right | str] | None = None) -> str:
        """Return one for this relay.

        Args:
          path: the hybrid connection, which need not exist; None leaves it out.
          rights: exactly these, such as ``["Listen"]``; all of them without it, and a string without a key for ``()``.

        Raises:
          ValueError: ``Manage`` without the two that it implies.
        """
        is_tls = self.server.is_tls
        host = "localhost" if is_tls else "127.0.0.1"
        if rights is not None and not (wanted := frozenset(map(Right, rights))):
            entity = f";EntityPath={path}" if path else ""
            emulator = "" if is_tls else ";UseDevelopmentEmulator=true"
            return f"Endpoint=sb://{host}:{self.port}/{entity}{emulator}"
        name = "RootManageSharedAccessKey" if rights is None else _RULES.get(wanted)
        if name is None:
            raise ValueError("Manage implies Listen and Send; name them too")
        rule = self.server.namespace.find_rule(name)
        assert rule is not None
        return format_connection_string(
            host, rule.name, rule.primary_key, port=self.port, entity_path=path, is_emulator=not is_tls
        )


@asynccontextmanager
async def open_relay(
    *,
    config: Config | None = None,
    tls: TlsConfig | None = None,
    trace: Trace | None = None,
    now_unix: Callable[[], float] = time.time,
) -> AsyncIterator[Relay]:
    """Run a relay for as long as the ``async with`` block lasts.

    ::

        async with relaycore.testing.open_relay() as relay:
            await relay.create_entity("orders")
            async with relaycore.open_listener(relay.connection_string("orders")) as listener:
                ...

    When the block ends well, the relay is stopped and its books are checked: a connection, session or buffer that it
    still counts fails the test. It uses real sockets and a thread for its store, so with an autojump clock virtual time
    may pass during any call to it.

    Args:
      config: other settings; address and store are the helper's own.
      tls: certificate, good for ``localhost``, and key; connection strings then lead to ``localhost``.
      trace: where events go; one of its own without it.
      now_unix: wall clock, which tokens are measured by.

    Raises:
      RelayError: at the end, if the books do not balance.
    """
    config = msgspec.structs.replace(
        config or Config(), server=ServerConfig(host="127.0.0.1", port=0), tls=tls or TlsConfig()
    )
    trace = trace or Trace()
    async with await open_sqlite(":memory:") as store:
        with alone():
            async with trio.open_nursery() as nursery:
                server: Server = await nursery.start(
                    partial(serve, config, store=store, trace=trace, now_unix=now_unix)
                )
                for rights, name in _RULES.items():
                    await store.put_rule(server.namespace.name, None, name, rights)
                yield Relay(server, store, trace)
                await server.stop(_DRAIN_TIMEOUT)
        problems = server.check_consistency()
        if problems:
            raise RelayError("the relay's books do not balance: " + "; ".join(problems))
