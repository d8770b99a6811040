"""Closing a connection so that the last words arrive."""

from __future__ import annotations

import contextlib
import struct

import trio

__all__ = ["allow_end", "close_gently", "cut", "is_reset", "reset", "reset_when_dropped"]

_TIMEOUT = 2.0
"""Seconds that the peer may take to close after us."""

_BYTES = 1 << 20
"""How much of what it still sends is thrown away before it is cut anyway."""


_TCP_CLOSE = 7
"""``tcpi_state`` of a connection that is over, from ``netinet/tcp.h``."""


def _below(stream: trio.abc.Stream) -> trio.abc.Stream:
    """What carries the bytes: below TLS, or below another wrapper that names it as `trio.SSLStream` does."""
    found = getattr(stream, "transport_stream", stream)
    return found if isinstance(found, trio.abc.Stream) else stream


def is_reset(stream: trio.abc.Stream) -> bool:
    """Whether the peer has reset the TCP connection below a stream, without reading from it.

    For streams that nobody reads at the moment. Where the system does not tell (Linux does), the answer is no, and so
    it is for a stream that this side has closed: whoever asks about many may meet one whose owner is letting go of it.
    """
    stream = _below(stream)
    if not isinstance(stream, trio.SocketStream) or not hasattr(trio.socket, "TCP_INFO"):
        return False
    if stream.socket.fileno() < 0:
        return False
    state: bytes = stream.socket.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_INFO, 1)
    return state[0] == _TCP_CLOSE


def reset_when_dropped(stream: trio.abc.Stream) -> None:
    """From here on a TCP peer sees a reset whoever closes the stream: the system, too, for a process that was killed.

    What an end says by itself, that all has been said, must not be said by accident. An end of one direction is sent as
    ever. Not a checkpoint.
    """
    _set_linger(stream, is_on=True)


def allow_end(stream: trio.abc.Stream) -> None:
    """Take back `reset_when_dropped`, before an orderly close: what is still on its way goes on then."""
    _set_linger(stream, is_on=False)


def _set_linger(stream: trio.abc.Stream, *, is_on: bool) -> None:
    socket = _below(stream)
    if isinstance(socket, trio.SocketStream):
        with contextlib.suppress(OSError):
            socket.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", is_on, 0))


async def cut(*streams: trio.abc.Stream) -> None:
    """Close streams at once, without a goodbye, also when the caller is being cancelled.

    Never blocks, and is a checkpoint only where a stream is no plain socket.
    """
    others = [stream for stream in streams if not isinstance(stream, trio.SocketStream)]
    for stream in streams:
        if isinstance(stream, trio.SocketStream):
            # All that closing it comes to; the way through aclose_forcefully makes two scopes and gives a turn away.
            stream.socket.close()
    if others:
        # aclose_forcefully raises in a cancelled task once it has closed its stream; a second one would stay open.
        with trio.CancelScope(shield=True):
            for stream in others:
                await trio.aclose_forcefully(stream)


async def reset(stream: trio.abc.Stream) -> None:
    """Close a stream so that its peer cannot take the end for a proper one: with a reset, where it is a TCP socket.

    For what cannot say otherwise that it is not whole, such as a body that goes on until the connection closes. Never
    blocks; a checkpoint all the same.
    """
    reset_when_dropped(stream)
    await cut(stream)


async def close_gently(stream: trio.abc.Stream) -> None:
    """End a stream behind what was sent, in at most two seconds.

    Closing a socket in whose receive buffer something waits resets the connection, and the reset can overtake what was
    sent before. So our side ends first, the peer's leavings are read up to a bound, and then it is closed. Under TLS
    that is done with the socket below, whose bytes nobody needs to read any more. A peer that is gone already is no
    error. A checkpoint.
    """
    socket = _below(stream)
    try:
        with trio.move_on_after(_TIMEOUT):
            if isinstance(socket, trio.SocketStream):
                await socket.send_eof()
                budget = _BYTES
                while budget > 0 and (data := await socket.receive_some(65_536)):
                    budget -= len(data)
            await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    finally:
        # aclose is forceful once it is cancelled, but the timeout may have come before it was called.
        await cut(stream)  # noqa: ASYNC102 - shields itself
