"""The examples run, against a real relay."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx2
import pytest
import trio

import relaycore
from relaycore.errors import Refused
from relaycore.testing import Relay, open_relay

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with open_relay() as relay:
        await relay.create_entity("orders")
        yield relay


async def registered(relay: Relay) -> None:
    """Wait for a listener that somebody else has started."""
    with trio.fail_after(30):
        while True:
            if relay.server.statistics().listeners:
                return
            await trio.sleep(0.01)


async def test_echo_and_send(relay: Relay):
    text = relay.connection_string("orders")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load("echo_listener").main, text)
        await registered(relay)
        assert await load("send").main(text, b"hello " * 20_000) == b"hello " * 20_000
        nursery.cancel_scope.cancel()


async def test_the_choosy_listener(relay: Relay, capsys: pytest.CaptureFixture[str]):
    text = relay.connection_string("orders")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load("choosy_listener").main, text)
        await registered(relay)
        with pytest.raises(Refused, match=r"Which room\?") as caught:
            async with relaycore.open_stream(text):
                pytest.fail("accepted without a room")
        assert caught.value.http_status == 404
        async with relaycore.open_stream(text, suffix="kitchen") as stream:
            messages = stream.messages()
            assert await messages.receive() == "welcome to kitchen"
            await messages.send("knock")
            assert await messages.receive() == "knock"
            await trio.aclose_forcefully(stream)
        async with relaycore.open_stream(text, suffix="hall") as stream:  # the loss of one ends nothing else
            assert await stream.messages().receive() == "welcome to hall"
        nursery.cancel_scope.cancel()
    assert "Online" in capsys.readouterr().out


async def test_hello_over_http(relay: Relay):
    text = relay.connection_string("orders")
    url = relay.base_url.replace("ws://", "http://") + "/orders"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load("hello_http").main, text)
        await registered(relay)
        async with httpx2.AsyncClient(auth=relaycore.auth(text), trust_env=False) as client:
            assert (await client.get(url)).text == "hello world\n"
            assert (await client.get(url + "/moon")).text == "hello moon\n"
            assert (
                await client.put(url, content=bytes(100_000))
            ).text == f"{hashlib.sha256(bytes(100_000)).hexdigest()}\n"
            assert (await client.get(url + "/clock")).text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            answer = await client.delete(url)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, PUT")
        nursery.cancel_scope.cancel()


async def test_a_program_under_test():
    await load("test_with_relay").test_it_shouts()
