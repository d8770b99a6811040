"""``relaycore completion SHELL``: the script that makes a shell complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  relaycore completion bash > ~/.local/share/bash-completion/completions/relaycore
    zsh:   relaycore completion zsh > "${fpath[1]}/_relaycore"
    fish:  relaycore completion fish > ~/.config/fish/completions/relaycore.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None  # the three that click brings along
    # The script is for the installed program, by whatever path this run was started.
    click.echo(completion(ctx.find_root().command, {}, "relaycore", "_RELAYCORE_COMPLETE").source())
