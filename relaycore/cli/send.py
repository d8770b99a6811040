"""``relaycore send``: a sender between standard input and standard output."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from ..client.sender import open_stream
from ..wire.connection_string import ConnectionString
from .copying import copy_standard_streams
from .options import (
    TOKEN_VARIABLE,
    Form,
    check_stdin_is_free,
    connection_options,
    form_options,
    need_connection_string,
    read_secret,
    run,
    trust,
    verbose_option,
)
from .stdio import StandardInput, StandardOutput

__all__ = ["command"]


def _headers(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, colon, text = value.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter("expected 'Name: value'.", ctx, parameter)
        pairs.append((name.strip(), text.strip()))
    return pairs


@click.command("send")
@click.argument("path", required=False)
@form_options
@click.option("--suffix", default="", metavar="PATH", help="What the listener sees behind the path.")
@click.option("--query", default="", metavar="QUERY", help="What the listener sees as query, such as a=1&b=2.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    callback=_headers,
    help="What the listener sees as header; repeatable.",
)
@click.option(
    "--subprotocol", "subprotocols", multiple=True, metavar="NAME", help="WebSocket subprotocol to offer; repeatable."
)
@click.option("--anonymous", is_flag=True, help="Send no token, for a hybrid connection that needs none.")
@click.option(
    "--token-file", metavar="FILE", help=f"Use the token in FILE. Without a key, {TOKEN_VARIABLE} counts too."
)
@connection_options
@verbose_option
def command(
    path: str | None,
    form: Form,
    suffix: str,
    query: str,
    headers: list[tuple[str, str]],
    subprotocols: tuple[str, ...],
    anonymous: bool,
    token_file: str | None,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> None:
    """Connect to the hybrid connection PATH: standard input to it, its answer to standard output.

    The end of standard input ends only this direction; the command leaves when the other side has ended too. PATH may
    be left out where the connection string names one. Keys and tokens come from RELAYCORE_CONNECTION_STRING or files.
    """
    if anonymous and token_file is not None:
        raise click.UsageError("--anonymous and --token-file exclude each other.")
    check_stdin_is_free(token_file, connection_string_file, connection_string_dash)
    connection_string = need_connection_string(connection_string_file, connection_string_dash)
    if anonymous:
        connection_string = dataclasses.replace(connection_string, key_name=None, key=None, signature=None)
    token = None if anonymous else find_token(token_file, connection_string)
    ssl_context = trust(cafile)

    async def act() -> None:
        source, sink = StandardInput(), StandardOutput()
        async with open_stream(
            connection_string,
            path=path,
            suffix=suffix,
            query=query,
            headers=headers,
            subprotocols=subprotocols,
            token=token,
            ssl_context=ssl_context,
        ) as connection:
            await copy_standard_streams(connection, form, source, sink, ends_together=os.isatty(0))

    run(act)


def find_token(token_file: str | None, connection_string: ConnectionString) -> str | None:
    """The ready token that counts instead of a key: from the file, or from the environment where there is no key."""
    if token_file is not None:
        return read_secret(token_file, "token")
    has_own = connection_string.key is not None or connection_string.signature is not None
    return None if has_own else os.environ.get(TOKEN_VARIABLE, "").strip() or None
