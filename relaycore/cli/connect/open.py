"""``relaycore connect open``: standard input and output become a connection to the endpoint."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..copying import copy_standard_streams
from ..edge_options import edge_options, load_edge
from ..options import Form, run, verbose_option
from ..stdio import StandardInput, StandardOutput
from .common import NotCarried, look_up, port_of

__all__ = ["command"]


@click.command("open")
@click.argument("name")
@click.argument("port", type=click.IntRange(0, 65_535), required=False)
@edge_options
@verbose_option
def command(name: str, port: int | None, config_files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Join standard input and output to the endpoint of NAME: a forward, or a host that leads to one, with its PORT.

    In ~/.ssh/config: ProxyCommand relaycore connect open %h %p. The end of standard input ends only that direction;
    the command leaves when the other side has ended too. No running `relaycore connect` is needed; hosts that only a
    hybrid connection's own text names are asked of it, or else of the relay.
    """
    loaded = load_edge(config_files, overrides, is_quiet=True)
    from ...edge.access import RelayAccess
    from ...edge.connect.attempt import open_connection
    from ...errors import RelayError

    async def act() -> None:
        forward = await look_up(loaded, name, port)
        access = RelayAccess.of(forward)
        source, sink = StandardInput(), StandardOutput()
        try:
            opened = await open_connection(access, forward, port=port_of(forward) or port or 0)
        except (RelayError, OSError) as error:
            raise NotCarried(error, access, forward) from error
        async with opened.connection as connection:
            await copy_standard_streams(connection, Form.BYTES, source, sink, ends_together=os.isatty(0))

    run(act)
