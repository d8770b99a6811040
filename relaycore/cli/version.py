"""``relaycore version``: what runs here."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

__all__ = ["command", "relaycore_version"]


def relaycore_version() -> str:
    """The version of this package; ``unknown`` where it runs from a source tree that was never installed."""
    return _version_of("relaycore")


def _version_of(distribution: str) -> str:
    # Read from the installed metadata, since importing Trio only to ask it takes a tenth of a second.
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _mask_implementation() -> str:
    try:
        from .._native import mask_implementation
    except ImportError:
        return "not built"
    return mask_implementation()


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(as_json: bool) -> None:
    """Show versions."""
    versions = {
        "relaycore": relaycore_version(),
        "python": platform.python_version(),
        "trio": _version_of("trio"),
        "cffi": _version_of("cffi"),
        "mask": _mask_implementation(),
    }
    if as_json:
        click.echo(json.dumps(versions))
    else:
        for name, value in versions.items():
            click.echo(f"{name:<10} {value}")
