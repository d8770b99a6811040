"""``relaycore entity``: hybrid connections, in the local store or behind a relay."""

from __future__ import annotations

import json

import click

from ..store.base import KEEP, Keep
from .definitions import EntityView, Switches, Where, open_definitions, where_options
from .options import run

__all__ = ["command"]


@click.group("entity")
def command() -> None:
    """Create, show and delete hybrid connections.

    On the store of this machine, the one that `serve` would use; a running relay notices within a second. With
    RELAYCORE_CONNECTION_STRING or --connection-string-file: behind that relay, by a rule with Manage.
    """


@command.command("create")
@click.argument("path")
@click.option("--anonymous", is_flag=True, help="Let senders in without a token. Cannot be changed later.")
@click.option("--user-metadata", metavar="TEXT", help="Free text, at most 1024 characters.")
@click.option("--no-websocket", is_flag=True, help="No WebSocket senders: published Node HTTP listeners die of them.")
@click.option("--no-http", is_flag=True, help="No HTTP senders: published Node WebSocket listeners die of them.")
@click.option("--raw-target", is_flag=True, help="Listeners get the path of HTTP requests as sent, its %20 included.")
@click.option("--json", "as_json", is_flag=True, help="Show what was made as JSON.")
@where_options
def create(
    path: str,
    anonymous: bool,
    user_metadata: str | None,
    no_websocket: bool,
    no_http: bool,
    raw_target: bool,
    as_json: bool,
    where: Where,
) -> None:
    """Create the hybrid connection PATH."""
    # What is not asked for stays unsaid: over the network no switch can be set.
    switches = Switches(False if no_websocket else None, False if no_http else None, raw_target or None)

    async def act() -> EntityView:
        async with open_definitions(where, may_create_store=True) as definitions:
            return await definitions.create_entity(
                path, anonymous=anonymous, user_metadata=user_metadata, switches=switches
            )

    created = run(act)
    click.echo(json.dumps(created.as_json()) if as_json else f"created {created.path}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
@where_options
def list_(as_json: bool, where: Where) -> None:
    """List all hybrid connections."""

    async def act() -> list[EntityView]:
        async with open_definitions(where) as definitions:
            return await definitions.list_entities()

    found = run(act)
    if as_json:
        click.echo(json.dumps([entity.as_json() for entity in found]))
        return
    for entity in found:
        click.echo("  ".join([entity.path, *_remarks(entity)]))


def _remarks(entity: EntityView) -> list[str]:
    """What is out of the ordinary about a hybrid connection, for one line of a list."""
    remarks = []
    if not entity.requires_client_authorization:
        remarks.append("anonymous")
    if entity.websocket is False:
        remarks.append("no websocket")
    if entity.http is False:
        remarks.append("no http")
    if entity.raw_target:
        remarks.append("raw target")
    if entity.listener_count is not None:
        remarks.append(f"{entity.listener_count} listener{'' if entity.listener_count == 1 else 's'}")
    return remarks


@command.command("show")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@where_options
def show(path: str, as_json: bool, where: Where) -> None:
    """Show the hybrid connection PATH."""

    async def act() -> EntityView:
        async with open_definitions(where) as definitions:
            return await definitions.get_entity(path)

    _show(run(act), as_json)


def _show(entity: EntityView, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(entity.as_json()))
        return
    for name, value in entity.as_json().items():
        if name == "rules":
            text = ", ".join(f"{rule} ({' '.join(rights)})" for rule, rights in entity.rules) or "none"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = str(value)
        click.echo(f"{name.replace('_', ' '):<30} {text}")


@command.command("update")
@click.argument("path")
@click.option("--user-metadata", metavar="TEXT", help="New free text.")
@click.option("--clear-user-metadata", is_flag=True, help="Take the free text away.")
@click.option("--websocket/--no-websocket", default=None, help="Let WebSocket senders in, or not.")
@click.option("--http/--no-http", default=None, help="Let HTTP senders in, or not.")
@click.option("--raw-target/--no-raw-target", default=None, help="Hand paths of HTTP requests over as sent, or not.")
@click.option("--json", "as_json", is_flag=True, help="Show the outcome as JSON.")
@where_options
def update(
    path: str,
    user_metadata: str | None,
    clear_user_metadata: bool,
    websocket: bool | None,
    http: bool | None,
    raw_target: bool | None,
    as_json: bool,
    where: Where,
) -> None:
    """Change the hybrid connection PATH. Whether senders need a token cannot be changed."""
    if clear_user_metadata and user_metadata is not None:
        raise click.UsageError("--user-metadata and --clear-user-metadata exclude each other.")
    text: str | Keep | None = user_metadata if user_metadata is not None or clear_user_metadata else KEEP
    switches = Switches(websocket, http, raw_target)
    if text is KEEP and not switches.is_any_given:
        raise click.UsageError("Nothing to change: give one of the options.")

    async def act() -> EntityView:
        async with open_definitions(where) as definitions:
            return await definitions.update_entity(path, user_metadata=text, switches=switches)

    _show(run(act), as_json)


@command.command("delete")
@click.argument("path")
@where_options
def delete(path: str, where: Where) -> None:
    """Delete the hybrid connection PATH. Its listeners and sessions end at once."""

    async def act() -> None:
        async with open_definitions(where) as definitions:
            await definitions.delete_entity(path)

    run(act)
    click.echo(f"deleted {path}")
