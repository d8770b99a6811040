"""``relaycore version``: what runs here."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

import relaycore

__all__ = ["command", "versions"]


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


def versions() -> dict[str, str]:
    """What runs here, by name."""
    return {
        "relaycore": relaycore.__version__,
        "python": platform.python_version(),
        "trio": _version_of("trio"),
        "cffi": _version_of("cffi"),
        "mask": _mask_implementation(),
    }


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(as_json: bool) -> None:
    """Show versions."""
    found = versions()
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, value in found.items():
            click.echo(f"{name:<10} {value}")
