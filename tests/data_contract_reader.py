"""Reads a description as .NET's data-contract reader does, written from its published behaviour and not from ours.

The reader keeps an index into the member names in their declared order. For each child element it looks for the name
*behind* that index only; when it finds it there, the index moves, otherwise the element is skipped without an error.
A member that comes too early or too late is lost, and nobody is told.
"""

import re
import xml.etree.ElementTree as ET
from datetime import datetime

ATOM = "{http://www.w3.org/2005/Atom}"
CONNECT = "{http://schemas.microsoft.com/netservices/2010/10/servicebus/connect}"

NAMESPACE_MANAGER_MEMBERS = (
    "Path",
    "CreatedAt",
    "UpdatedAt",
    "RequiresClientAuthorization",
    "AuthorizationRules",
    "UserMetadata",
    "ListenerCount",
)
RELAY_SDK_MEMBERS = ("CreatedAt", "UpdatedAt", "RequiresClientAuthorization", "UserMetadata", "ListenerCount")


class DataContractError(Exception):
    """What .NET raises for: another root, another namespace, a value that the type cannot be made of."""


def read_children(element, members):
    """Values by member name of those children that come in order; the others are dropped as .NET drops them."""
    found, index = {}, -1
    for child in element:
        for position in range(index + 1, len(members)):
            if child.tag == CONNECT + members[position]:
                found[members[position]] = child
                index = position
                break
    return found


def read_boolean(text):
    values = {"true": True, "false": False, "1": True, "0": False}
    if text not in values:
        raise DataContractError(f"boolean {text!r}")
    return values[text]


def read_time(text):
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?Z", text or ""):
        raise DataContractError(f"time {text!r}")
    return datetime.fromisoformat(text)


def read_description(element, members=NAMESPACE_MANAGER_MEMBERS):
    """A dict of the members that survive."""
    if element.tag != CONNECT + "HybridConnectionDescription":
        raise DataContractError(f"root {element.tag}")
    readers = {
        "Path": lambda e: e.text or "",
        "CreatedAt": lambda e: read_time(e.text),
        "UpdatedAt": lambda e: read_time(e.text),
        "RequiresClientAuthorization": lambda e: read_boolean(e.text),
        "AuthorizationRules": list,
        "UserMetadata": lambda e: e.text or "",
        "ListenerCount": lambda e: int(e.text),
    }
    return {name: readers[name](child) for name, child in read_children(element, members).items()}


def read_entry(body, members=NAMESPACE_MANAGER_MEMBERS):
    """The description in an Atom entry that must begin at once, as one client wants it."""
    text = body.decode() if isinstance(body, bytes) else body
    if not text.startswith("<entry"):
        raise DataContractError("the body does not begin with <entry")
    entry = ET.fromstring(text)
    if entry.tag != ATOM + "entry":
        raise DataContractError(f"not an entry: {entry.tag}")
    return read_description(description_of(entry), members)


def description_of(entry):
    content = entry.find(ATOM + "content")
    if content is None or content.get("type") != "application/xml" or not len(content):
        raise DataContractError("no content")
    return content[0]


def read_feed(body):
    """The descriptions of a feed, in order."""
    text = body.decode() if isinstance(body, bytes) else body
    feed = ET.fromstring(text)
    if feed.tag != ATOM + "feed":
        raise DataContractError(f"not a feed: {feed.tag}")
    return [read_description(description_of(entry)) for entry in feed.findall(ATOM + "entry")]
