"""Writes the reference of docs/edge-configuration.md from the table of keys that the loader reads by.

    python docs/edge_keys.py            write the page
    python docs/edge_keys.py --check    leave with 1 if it is out of date; write nothing

The part of the page above the marker is written by hand and stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT_FOLDER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT_FOLDER))  # for a working copy that is not installed

from relaycore.edge.config.keys import ROOT, Key, Section  # noqa: E402
from relaycore.edge.config.toml_text import format_value  # noqa: E402

PAGE = ROOT_FOLDER / "docs" / "edge-configuration.md"
MARKER = "<!-- Below: made by docs/edge_keys.py from the loader's table of keys. -->"


def default_text(section: Section, key: Key) -> str:
    """The default of a key as the page shows it."""
    if key.default:
        return key.default
    return f"`{format_value(key.kind.write(section.default_of(key)))}`"


def render() -> str:
    """All tables of keys."""
    return "\n".join(_sections(ROOT, ()))


def _sections(section: Section, path: tuple[str, ...]) -> Iterator[str]:
    if section.keys:
        dotted = ".".join(path)
        title = {"list": f"[[{dotted}]]", "names": f"[{dotted}.NAME]"}.get(section.many, f"[{dotted}]")
        yield f"## {title}\n\n{section.text}\n\n| key | default | |\n| --- | --- | --- |"
        for key in section.keys:
            yield f"| `{key.name}` | {default_text(section, key)} | {key.text} |"
        yield ""
    for name, below in section.below.items():
        yield from _sections(below, (*path, name))


def page(old: str) -> str:
    """The page with the tables as they should be."""
    prose, marker, _ = old.partition(MARKER)
    if not marker:
        raise ValueError(f"{PAGE} has lost its marker")
    return f"{prose}{MARKER}\n\n{render()}"


def main() -> int:
    """The command line; see the top."""
    old = PAGE.read_text()
    new = page(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print("docs/edge-configuration.md is out of date: run python docs/edge_keys.py")
        return int(new != old)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
