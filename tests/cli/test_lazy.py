"""Groups whose commands are loaded when they are called."""

from __future__ import annotations

import sys

import click
import pytest
from click.testing import CliRunner

from relaycore.cli.lazy import LazyCommands

GROUP = LazyCommands(
    name="group",
    commands_by_name={
        "version": ("relaycore.cli.version:command", "Show versions."),
        "broken": ("relaycore.cli.there_is_no_such_module:command", "Never loaded."),
    },
    no_args_is_help=True,
)


def test_help_loads_nothing():
    result = CliRunner().invoke(GROUP, ["--help"])
    assert result.exit_code == 0
    assert "version  Show versions." in result.output
    assert "relaycore.cli.there_is_no_such_module" not in sys.modules


def test_a_command_is_loaded_and_run():
    assert CliRunner().invoke(GROUP, ["version", "--json"]).output.startswith('{"relaycore"')


def test_a_name_that_is_misspelt_is_led_to_the_nearest():
    result = CliRunner().invoke(GROUP, ["versoin"])
    assert result.exit_code == 2
    assert "Did you mean 'version'?" in result.output


def test_completion_knows_the_names():
    with click.Context(GROUP) as context:
        assert [item.value for item in GROUP.shell_complete(context, "ve")] == ["version"]
        assert GROUP.get_command(context, "other") is None
        with pytest.raises(ModuleNotFoundError):
            GROUP.get_command(context, "broken")
