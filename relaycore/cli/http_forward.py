"""``relaycore http-forward``: publishes a local HTTP server through the relay.

Tasks: one prints what the listener tells about itself, one heeds signals, the rest is the forwarder. SIGINT and SIGTERM
end the command in order: the listener finishes what is under way and deregisters, WebSockets are closed with 1001.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from ..client.listener import DEFAULT_MAX_CONCURRENT, Listener, open_listener
from ..edge.http_forward import HttpForwarder
from ..edge.mapping import ForwardSettings, is_host
from ..edge.origin import Origin, parse_origin_url
from ..errors import ConfigError
from ..trace import LogWriter, redact
from .exits import ExitCode
from .online import STATUS_LINES, public_url, report_events
from .options import Seconds, listener_options, need_connection_string, run, trust
from .send import find_token

__all__ = ["command"]

_SAME_SIGNAL_S: Final = 0.5
"""A terminal and a shell may both pass on one Ctrl-C; a second wish comes later than that."""


def _origin(ctx: click.Context, parameter: click.Parameter, value: str) -> Origin:
    try:
        return parse_origin_url(value)
    except ConfigError as error:
        raise click.BadParameter(f"{value!r}: {str(error).removeprefix('URL: ')}.", ctx, parameter) from error


def _host(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_host(value):
        raise click.BadParameter("expected HOST[:PORT], or 'auto'.", ctx, parameter)
    return value


@click.command("http-forward")
@click.argument("origin", metavar="URL", callback=_origin)
@click.option(
    "--path", metavar="PATH", help="The hybrid connection, where the connection string names none, or instead."
)
@click.option("--keep-path", is_flag=True, help="The server sees /PATH in front of each path, as senders wrote it.")
@click.option(
    "--host-header",
    metavar="HOST|auto",
    callback=_host,
    help="What the server sees as Host; 'auto': that of URL.  [default: what the sender sent]",
)
@click.option(
    "--forwarded", is_flag=True, help="Tell the server about the sender: X-Forwarded-For, -Proto, -Host and -Prefix."
)
@click.option(
    "--connect-timeout",
    metavar="SECONDS",
    type=Seconds(min=0, min_open=True, max=20),
    default=10.0,
    show_default=True,
    help="How long the server may take to accept a connection.",
)
@click.option(
    "--limit-concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_CONCURRENT,
    show_default=True,
    help="Requests at one time; further ones get 503.",
)
@listener_options
def command(
    origin: Origin,
    path: str | None,
    keep_path: bool,
    host_header: str | None,
    forwarded: bool,
    connect_timeout: float,
    limit_concurrency: int,
    keep_trying: bool,
    quiet: bool,
    token_file: str | None,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> int:
    """Publish the HTTP server at URL, such as http://127.0.0.1:3000, through the relay, WebSockets included.

    Answers pass as they are: redirects are not followed, cookies not kept. PATH is taken off the front of each path.
    The certificate of an https URL is verified, with the authorities of --cafile too.
    """
    connection_string = need_connection_string(connection_string_file, connection_string_dash)
    token = find_token(token_file, connection_string)
    ssl_context = trust(cafile)
    entity = path if path is not None else connection_string.entity_path or ""
    url = public_url(connection_string, entity)
    settings = ForwardSettings(
        origin,
        sender_scheme=url.partition(":")[0],
        keeps_path=keep_path,
        host=origin.authority if host_header == "auto" else host_header,
        adds_forwarded=forwarded,
        connect_timeout=connect_timeout,
    )
    writer = LogWriter(lambda line: click.echo(line, nl=False, err=True), queue_lines=STATUS_LINES)

    def say(text: str) -> None:
        if not quiet:
            writer.put_nowait(redact(f"relaycore: {' '.join(text.split())}"))

    ending = _Ending(say)

    async def act() -> None:
        forwarder = HttpForwarder(settings, entity, ssl_context)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, ending.scope:
            async with open_listener(
                connection_string,
                path=path,
                accept=forwarder.accept,
                on_request=forwarder.serve,
                token=token,
                ssl_context=ssl_context,
                wait_online=False,
                max_concurrent=limit_concurrency,
            ) as listener:
                events = listener.events()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ending.heed, signals, listener)
                    nursery.start_soon(
                        partial(report_events, events, f"{url} -> {origin}", say, keeps_trying=keep_trying)
                    )
                    await forwarder.run(listener)
                    nursery.cancel_scope.cancel()

    try:
        run(act)
    finally:
        writer.close()
    return ExitCode.INTERRUPTED if ending.is_hasty else ExitCode.OK


class _Ending:
    """Ends the command: in order with the first signal, at once with the second."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.scope = trio.CancelScope()
        self.is_hasty = False
        self._say = say

    async def heed(self, signals: AsyncIterator[int], listener: Listener) -> None:
        stopping_since: float | None = None
        async with trio.open_nursery() as nursery:
            async for _ in signals:
                if stopping_since is None:
                    stopping_since = trio.current_time()
                    nursery.start_soon(listener.aclose)
                elif trio.current_time() - stopping_since >= _SAME_SIGNAL_S:
                    self.is_hasty = True
                    self.scope.cancel()
