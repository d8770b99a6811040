"""What ``relaycore`` offers to its users: that each public name is there, is lazy and says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import relaycore
from relaycore import errors

EXPECTED = {
    "open_listener",
    "open_stream",
    "serve_http",
    "HttpRequest",
    "HttpResponder",
    "HttpResponse",
    "Listener",
    "Connection",
    "IncomingConnection",
    "Accept",
    "Reject",
    "ListenerStatus",
}

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(relaycore.__path__, "relaycore.")
    if not found.name.endswith(("__main__", "._rc")) and not found.name.rpartition(".")[2].startswith("_rc")
)


def test_the_public_names_are_there():
    assert set(relaycore.__all__) >= EXPECTED


def test_every_error_that_a_user_can_meet_is_public():
    inside_the_relay_only = {"NativeError", "EndpointAlreadyExists", "RendezvousGone"}
    assert set(errors.__all__) - inside_the_relay_only <= set(relaycore.__all__)


@pytest.mark.parametrize("name", relaycore.__all__)
def test_each_public_name_leads_somewhere_and_is_documented(name):
    found = getattr(relaycore, name)
    if inspect.isclass(found) or inspect.isroutine(found):
        assert inspect.getdoc(found)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="relaycore"):
        relaycore.open_lisener  # noqa: B018


def test_dir_shows_the_public_names():
    assert set(dir(relaycore)) >= set(relaycore.__all__)


def test_importing_the_package_loads_no_event_loop():
    """Commands that need none stay quick."""
    code = "import sys, relaycore; print([m for m in ('trio', 'msgspec', 'httptools', 'ssl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_each_module_says_what_it_is_for(module):
    assert (importlib.import_module(module).__doc__ or "").strip()


@pytest.mark.parametrize("module", MODULES)
def test_each_name_in_all_exists(module):
    found = importlib.import_module(module)
    missing = [name for name in getattr(found, "__all__", []) if not hasattr(found, name)]
    assert not missing
