"""What the daemon answers to words that no command of ours says."""

from __future__ import annotations

import pytest

from relaycore.edge.control.client import ControlClient
from relaycore.edge.control.protocol import ControlError


async def test_calls_of_others(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon():
            await world.settled("orders", status="Connected")
            client = ControlClient(world.directory / "run" / "relaycore" / "hcm.sock", "")
            about = await client.call("about")
            assert about["files"] == [str(world.directory / "relaycore.toml")]
            assert "relaycore" in about["versions"]
            for call, arguments, text, code in (
                ("add", {"connection": {"name": "a", "key": {"value": "SECRET"}}}, "is no connection", 3),
                ("add", {}, "is no connection", 3),
                ("pause", {}, "name: needs a string", 3),
                ("pause", {"name": "other"}, "no connection is called 'other'", 3),
                ("logs", {"lines": "many"}, "lines: needs a number", 3),
                ("stop", {}, "has no call 'stop'", 2),
            ):
                with pytest.raises(ControlError, match=text) as caught:
                    await client.call(call, **arguments)
                assert caught.value.exit_code == code
                assert "SECRET" not in str(caught.value)
            assert (await client.call("status"))["connections"][0]["status"] == "Connected"
