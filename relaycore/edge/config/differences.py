"""What differs between two entries, by the keys that settings have for it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, Final

from .keys import ROOT, Section
from .settings import Forward, HcmConnection

__all__ = ["changed_keys"]

_SECTIONS: Final = {
    HcmConnection: ROOT.below["hcm"].below["connection"],
    Forward: ROOT.below["connect"].below["forward"],
}

_ENDPOINT: Final = frozenset({"targets", "http_url"})
"""Fields that one key makes."""


def changed_keys(old: HcmConnection | Forward, new: HcmConnection | Forward) -> tuple[str, ...]:
    """The dotted keys of what differs, such as ``limits.max_open``. Values are left out: some are secret."""
    return tuple(dict.fromkeys(_changed(old, new, _SECTIONS[type(old)])))


def _changed(old: Any, new: Any, section: Section) -> list[str]:  # noqa: ANN401 - values of the section's type
    found: list[str] = []
    for item in fields(old):
        mine, yours = getattr(old, item.name), getattr(new, item.name)
        if mine == yours:
            continue
        name, below = _place_of(item.name, section)
        if below is not None and is_dataclass(mine) and type(mine) is type(yours):
            found += [f"{name}.{inner}" for inner in _changed(mine, yours, below)]
        else:
            found.append(name)
    return found


def _place_of(field: str, section: Section) -> tuple[str, Section | None]:
    """What a field is called in the settings, and the table that it is, if it is one."""
    if field == "relay":
        return field, ROOT.below["relay"]
    if field in _ENDPOINT:
        return "endpoint", None
    for name, below in section.below.items():
        if (below.field or name) == field:
            return name, below if not below.many else None
    return next((key.name for key in section.keys if key.attribute == field), field), None
