"""How commands wait for the daemon."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from relaycore.cli.hcm.asking import patience
from relaycore.errors import ConfigError


async def test_only_what_takes_long_is_explained(autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]):
    async with patience("waiting for the relay"):
        await trio.sleep(0.9)
    assert capsys.readouterr() == ("", "")
    async with patience("waiting for the relay"):
        await trio.sleep(1.1)
        assert capsys.readouterr() == ("", "relaycore: waiting for the relay\n")
        await trio.sleep(60)
    assert capsys.readouterr() == ("", "")


async def test_what_goes_wrong_meanwhile_comes_out_as_it_is(autojump_clock: MockClock):
    async def ask() -> None:
        async with patience("waiting for the relay"):
            await trio.sleep(0.5)
            raise ConfigError("no such connection")

    with pytest.raises(ConfigError, match="no such connection"):
        await ask()
