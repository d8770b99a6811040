"""What the command lines take: numbers that mean something, and files that can be written.

Each is a ``type`` of argparse and complains before anything is measured, not after half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path


def positive(text: str) -> float:
    """A finite number above 0.

    Raises:
      argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def count(text: str) -> int:
    """A whole number from 1 on.

    Raises:
      argparse.ArgumentTypeError: it is none.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def setting(text: str) -> str:
    """A setting of a relay, ``NAME=JSON``, as it stands. The relay itself knows whether there is one of that name.

    Raises:
      argparse.ArgumentTypeError: it has another form.
    """
    name, _, value = text.partition("=")
    try:
        json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no NAME=JSON, such as {name or "log.level"}="info"') from error
    return text


def output_file(text: str) -> Path:
    """A file that can be written, as far as that can be known beforehand; it is not touched yet.

    Raises:
      argparse.ArgumentTypeError: its directory is missing, or it may not be written.
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text} is a directory" if path.is_dir() else f"{text}: there is no directory {path.parent}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} may not be written")
    return path
