"""What is found out about connections and forwards: printed as it comes, and kept for a file that others may see."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from ..errors import ConfigError
from .hcm.findings import exit_code_of, finding_lines

if TYPE_CHECKING:
    from ..edge.config.settings import Forward, HcmConnection
    from ..edge.diagnose.steps import Finding

__all__ = ["Printer", "known_secrets", "write_private"]


class Printer:
    """Prints findings as they come.

    Args:
      as_json: each as one JSON object on a line of its own.

    Attributes:
      findings: so far.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.findings: list[Finding] = []
        self._as_json = as_json

    @property
    def exit_code(self) -> int:
        """See `exit_code_of`."""
        return exit_code_of(self.findings)

    def note(self, finding: Finding) -> None:
        """Print one."""
        self.findings.append(finding)
        click.echo(json.dumps(asdict(finding)) if self._as_json else "\n".join(finding_lines(finding)))

    async def emit(self, finding: Finding) -> None:
        """As `note`. A checkpoint."""
        self.note(finding)
        await trio.lowlevel.checkpoint()

    async def emit_all(self, findings: AsyncGenerator[Finding, None]) -> None:
        """Print all of them, and close where they come from."""
        async with aclosing(findings):
            async for finding in findings:
                self.note(finding)


def known_secrets(entries: Iterable[HcmConnection | Forward]) -> list[str]:
    """Return the secrets that can be read here, to be taken out of a report wherever they stand."""
    found: list[str] = []
    for entry in entries:
        for secret in (entry.key, entry.token):
            if secret is not None:
                try:
                    found.append(secret.read())
                except ConfigError:
                    continue
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read.

    Raises:
      ConfigError: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(path)) from error
