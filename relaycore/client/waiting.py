"""A sender that waits while a handler finds out whether it can be served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ..errors import LocalProtocolError
from .connection import Connection
from .invitation import FIRST_OFFERED, Accept, IncomingConnection, Invitation, Reject

__all__ = ["SenderHandler", "WaitingSender"]


class WaitingSender:
    """A sender that neither was accepted nor refused yet: what a listener's ``on_sender`` is called with.

    ::

        async def serve(waiting: WaitingSender) -> None:
            try:
                endpoint = await trio.open_tcp_stream("localhost", 5432)
            except OSError as error:
                await waiting.reject(502, f"localhost:5432: {error}")
            else:
                sessions.start_soon(splice, endpoint, await waiting.accept())

    Its sender has 30 seconds from the beginning. Either method may be called, once.

    Attributes:
      incoming: who waits.
    """

    def __init__(
        self,
        invitation: Invitation,
        accept: Callable[[str | None], Awaitable[Connection]],
        refuse: Callable[[Reject], Awaitable[None]],
        on_answered: Callable[[], None],
    ) -> None:
        self.incoming: IncomingConnection = invitation.incoming
        self._invitation = invitation
        self._accept = accept
        self._refuse = refuse
        self._on_answered = on_answered
        self._is_begun = False
        self._is_answered = False

    def __repr__(self) -> str:
        return f"<WaitingSender {self.incoming.path!r} {self.incoming.tracking_id[:64]}>"

    @property
    def is_waiting(self) -> bool:
        """True until `accept` or `reject` is called."""
        return not self._is_begun

    @property
    def is_answered(self) -> bool:
        """True once `accept` or `reject` has ended, well or not, but for a cancellation."""
        return self._is_answered

    async def accept(self, subprotocol: str | None = FIRST_OFFERED) -> Connection:
        """Open the rendezvous: the sender's handshake ends well.

        Args:
          subprotocol: as in `Accept`.

        Returns: a connection that is the caller's from here on, and lives on when the listener is closed.

        Raises:
          LocalProtocolError: it was answered before; or the sub-protocol was not offered, and it goes on waiting.
          RelayError: the rendezvous could not be opened; the sender may have left, or waited for too long.

        A checkpoint.
        """
        decision = self._invitation.check(Accept(subprotocol))
        assert isinstance(decision, Accept)
        self._begin()
        try:
            connection = await self._accept(decision.subprotocol)
        except Exception:
            self._end()
            raise
        self._end()
        return connection

    async def reject(self, status: int, description: str) -> None:
        """Refuse the sender, which sees exactly this status, 400 to 599, and this line of text.

        Raises:
          LocalProtocolError: another status, or it was answered before.

        A relay that cannot be told is counted and logged, and no error. A checkpoint.
        """
        rejection = Reject(status, description)
        self._begin()
        await self._refuse(rejection)
        self._end()

    def _begin(self) -> None:
        if self._is_begun:
            raise LocalProtocolError("this sender was answered before")
        self._is_begun = True

    def _end(self) -> None:
        self._is_answered = True
        self._on_answered()


SenderHandler: TypeAlias = Callable[[WaitingSender], Awaitable[None]]
"""Takes care of one sender. Whoever is neither accepted nor rejected by its end is refused with 502."""
