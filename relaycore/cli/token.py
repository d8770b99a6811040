"""``relaycore token``: make a shared access signature, or say what is in one."""

from __future__ import annotations

import math
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import click

from ..errors import AuthorizationFailed, ConfigError
from ..wire import limits
from ..wire.connection_string import ConnectionString
from ..wire.sas import Token, looks_like_jwt, make_token, parse_token, signature_matches
from .exits import ExitCode
from .options import TOKEN_VARIABLE, connection_options, find_connection_string, need_connection_string, read_secret

__all__ = ["command", "parse_span"]

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SPAN: Final = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>[smhd]?)")


def parse_span(text: str) -> int:
    """Seconds of a span such as ``90``, ``90s``, ``15m``, ``12h`` or ``30d``.

    Raises:
      ValueError: it is none, or is nothing.
    """
    match = _SPAN.fullmatch(text.strip().lower())
    seconds = int(match["count"]) * _UNITS[match["unit"]] if match else 0
    if seconds <= 0:
        raise ValueError(text)
    return seconds


def _ttl(ctx: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_span(value)
    except ValueError:
        raise click.BadParameter("expected a time such as 90s, 15m, 12h or 30d.", ctx, parameter) from None


@click.group("token")
def command() -> None:
    """Make a shared access signature, or explain one."""


@command.command("make")
@click.option("--entity", "entity_path", metavar="PATH", help="Good for this hybrid connection, and what follows it.")
@click.option(
    "--resource", metavar="URI", help="Good for exactly this resource, such as http://relay.example/orders/sub."
)
@click.option(
    "--ttl", metavar="TIME", default="1h", show_default=True, callback=_ttl, help="Lifetime: 90s, 15m, 12h, 30d."
)
@connection_options
def make(
    entity_path: str | None,
    resource: str | None,
    ttl: int,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> None:
    """Make a token with the key of the connection string, and print it.

    It is good for the connection string's hybrid connection, or for all of the namespace where that names none.
    """
    if entity_path is not None and resource is not None:
        raise click.UsageError("--entity and --resource exclude each other.")
    connection = need_connection_string(connection_string_file, connection_string_dash)
    if connection.key_name is None or connection.key is None:
        raise ConfigError("holds no key to sign with, but a finished token", source="connection string")
    if resource is None:
        resource = _resource(connection, entity_path)
    click.echo(make_token(resource, connection.key_name, connection.key, math.floor(time.time()) + ttl))


def _resource(connection: ConnectionString, entity_path: str | None) -> str:
    if entity_path is None:
        return connection.audience
    return f"http://{connection.host.lower()}/{quote(entity_path.strip('/'), safe='/')}/"


@command.command("explain")
@click.option(
    "--token-file",
    metavar="FILE",
    help=f"Read the token from FILE ('-': standard input). Without it: from {TOKEN_VARIABLE}, else standard input.",
)
@connection_options
def explain(
    token_file: str | None,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> None:
    """Say what a token is good for, and whether it still is.

    With a connection string at hand, also whether its key made the signature. Leaves with 5 when a relay would refuse
    the token for its time or its signature. Never shows the signature.
    """
    source = token_file or ("" if os.environ.get(TOKEN_VARIABLE, "").strip() else "-")
    if source == "-" and "-" in (connection_string_file, connection_string_dash):
        raise click.UsageError("Token and connection string cannot both come from standard input.")
    text = read_secret(source, "token") if source else os.environ[TOKEN_VARIABLE].strip()
    connection = find_connection_string(connection_string_file, connection_string_dash)
    if looks_like_jwt(text):
        raise ConfigError("this is a JWT, not a shared access signature")
    try:
        token = parse_token(text)
    except AuthorizationFailed as error:
        raise ConfigError(error.message.removeprefix("MalformedToken: ")) from error
    now = time.time()
    click.echo(f"resource   {unquote(token.resource)}")
    click.echo(f"rule       {token.rule_name}")
    click.echo(f"expires    {describe_expiry(token.expiry_unix, now)}")
    is_good = token.expiry_unix + limits.TOKEN_ALLOWANCE > now
    if connection is not None and connection.key is not None:
        matches = signature_matches(token, [connection.key])
        click.echo(f"signature  {_describe_signature(token, connection, matches)}")
        is_good = is_good and matches
    else:
        click.echo("signature  not checked: no key at hand")
    if not is_good:
        raise click.exceptions.Exit(ExitCode.AUTHORIZATION)


def _describe_signature(token: Token, connection: ConnectionString, matches: bool) -> str:
    if matches:
        return f"made with the key of {connection.key_name}"
    other = "" if token.rule_name == connection.key_name else f", and the token names the rule {token.rule_name}"
    return f"not made with the key of {connection.key_name}{other}"


def describe_expiry(expiry_unix: int, now: float) -> str:
    """Local time with its offset, and how far away that is."""
    try:
        local = datetime.fromtimestamp(expiry_unix).astimezone().isoformat(sep=" ")
    except (ValueError, OverflowError, OSError):
        local = f"{expiry_unix} s after 1970"
    distance = _describe_span(abs(expiry_unix - now))
    if expiry_unix > now:
        return f"{local} (in {distance})"
    allowance = "; relays allow five minutes" if now - expiry_unix < limits.TOKEN_ALLOWANCE else ""
    return f"{local} ({distance} ago{allowance})"


def _describe_span(seconds: float) -> str:
    """The two largest units, such as ``2 d 4 h``."""
    rest = int(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
