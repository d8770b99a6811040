"""``relaycore keys``: authorization rules and their keys, of the namespace or of one hybrid connection."""

from __future__ import annotations

import json

import click

from ..broker.model import validate_rights
from ..errors import Refused
from ..vocab import Right
from .definitions import Address, KeysView, Where, Which, open_definitions, where_options
from .exits import ExitCode
from .options import run

__all__ = ["command"]

_entity_option = click.option(
    "--entity", "entity_path", metavar="PATH", help="The rules of this hybrid connection, not those of the namespace."
)


@click.group("keys")
def command() -> None:
    """Show, make and renew keys.

    Of the namespace, or with --entity of one hybrid connection. On the store of this machine; with
    RELAYCORE_CONNECTION_STRING or --connection-string-file behind that relay, where only hybrid connections have rules
    that can be reached.
    """


@command.command("list")
@click.argument("rule", required=False)
@_entity_option
@click.option("--json", "as_json", is_flag=True, help="As a JSON array, in the form of the service's listKeys.")
@where_options
def list_(rule: str | None, entity_path: str | None, as_json: bool, where: Where) -> None:
    """Show the keys and connection strings of all rules, or of RULE."""

    async def act() -> tuple[list[KeysView], Address]:
        async with open_definitions(where) as definitions:
            return await definitions.list_keys(entity_path), definitions.address

    found, address = run(act)
    if rule is not None:
        found = [keys for keys in found if keys.rule.lower() == rule.lower()]
        if not found:
            click.echo(f"relaycore: there is no rule {rule!r} on {entity_path or 'the namespace'}", err=True)
            raise click.exceptions.Exit(ExitCode.NOT_FOUND)
    _show(found, address, as_json)


def _show(found: list[KeysView], address: Address, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([keys.as_json(address) for keys in found]))
        return
    for keys in found:
        click.echo(f"{keys.rule} ({', '.join(keys.rights)})")
        click.echo(f"  primary    {keys.connection_string(address, 'primary')}")
        click.echo(f"  secondary  {keys.connection_string(address, 'secondary')}")


def _parse_rights(ctx: click.Context, parameter: click.Parameter, value: str) -> frozenset[Right]:
    try:
        return validate_rights(part.strip() for part in value.split(","))
    except Refused as error:
        raise click.BadParameter(f"{error.message}.", ctx, parameter) from error


@command.command("create")
@click.argument("rule")
@click.option(
    "--rights", metavar="RIGHT,...", callback=_parse_rights, required=True, help="listen, send, or listen,send,manage."
)
@_entity_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@where_options
def create(rule: str, rights: frozenset[Right], entity_path: str | None, as_json: bool, where: Where) -> None:
    """Make RULE with two fresh keys. An existing rule keeps its keys and gets these rights."""

    async def act() -> tuple[KeysView, Address]:
        async with open_definitions(where, may_create_store=True) as definitions:
            return await definitions.create_rule(entity_path, rule, rights), definitions.address

    keys, address = run(act)
    _show([keys], address, as_json)


@command.command("regenerate")
@click.argument("rule")
@click.option("--primary", "which", flag_value="primary", default=True, help="Renew the primary key (the default).")
@click.option("--secondary", "which", flag_value="secondary", help="Renew the secondary key.")
@_entity_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@where_options
def regenerate(rule: str, which: str, entity_path: str | None, as_json: bool, where: Where) -> None:
    """Give RULE a new key in one of its two places. Tokens of the old key fail at once; open connections stay."""

    async def act() -> tuple[KeysView, Address]:
        async with open_definitions(where) as definitions:
            place: Which = "secondary" if which == "secondary" else "primary"
            return await definitions.regenerate_key(entity_path, rule, place), definitions.address

    keys, address = run(act)
    _show([keys], address, as_json)


@command.command("delete")
@click.argument("rule")
@_entity_option
@where_options
def delete(rule: str, entity_path: str | None, where: Where) -> None:
    """Take RULE away. Its tokens fail at once; open connections stay."""

    async def act() -> None:
        async with open_definitions(where) as definitions:
            await definitions.delete_rule(entity_path, rule)

    run(act)
    click.echo(f"deleted {rule}")
