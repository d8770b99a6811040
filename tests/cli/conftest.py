"""What the tests of commands share: a home of their own, and no settings from outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import relaycore
from relaycore.cli.app import cli

ROOT = Path(relaycore.__file__).parent.parent

sys.path.insert(0, str(Path(__file__).parent))  # for programs.py


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty home directory, and an environment without any of our variables."""
    for name in list(os.environ):
        if name.startswith("RELAYCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for `python -m relaycore` from any directory
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def invoke():
    """Runs a command in this process: ``invoke("entity", "list", input=...)``."""

    def call(*args: str, **kwargs) -> Result:
        return CliRunner().invoke(cli, list(args), **kwargs)

    return call
