"""Helpers for the tests of programs that use relaycore: a whole relay in the same process, and one that plays a script.

::

    async with relaycore.testing.open_relay() as relay:
        await relay.create_entity("orders")
        async with relaycore.open_listener(relay.connection_string("orders")) as listener:
            ...
"""

from .fake_relay import FakeRelay, FakeRequest, open_fake_relay
from .relay import Relay, open_relay

__all__ = ["FakeRelay", "FakeRequest", "Relay", "open_fake_relay", "open_relay"]
