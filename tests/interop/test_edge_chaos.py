"""Managers, forwarders, endpoints and relays that die, hang, come back and change under load: real processes of all.

Who led a client is told by the server, since each manager has its own; see `edge_world`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
from endpoints import silent_port
from interop.edge_chain import run
from interop.edge_world import (
    PATIENCE,
    Load,
    Visit,
    World,
    address_of,
    end_all,
    open_world,
    relay_process,
    shares,
    visit,
    visits,
    without_ours,
)
from interop.endpoint_servers import free_port

from relaycore.config import Config
from relaycore.testing import Relay, open_relay
from relaycore.wire.connection_string import parse_connection_string
from relaycore.wire.limits import ACCEPT_DOUBT, SIGN_OF_LIFE_TIMEOUT

RULE: Final = "RootManageSharedAccessKey"

LIMITS: Final = "[hcm.connection.limits]\ndrain_timeout = 20\n"
NO_PROBE: Final = '[hcm.connection.health]\nprobe = "none"\n'
PROBE_S: Final = 0.2
FALL: Final = 2
RISE: Final = 2

AT_ONCE: Final = "connect = { timeout = 10, attempts = 1 }\n"
"""For forwards whose programs are to see the first refusal."""

SLACK_S: Final = 5.0
"""Seconds beside configured times that a busy machine may take."""


def probes(on_down: str = "reject", *, keep_last: bool = True) -> str:
    return (
        f"[hcm.connection.health]\ninterval = {PROBE_S}\ntimeout = 0.5\nrise = {RISE}\nfall = {FALL}\n"
        f'on_down = "{on_down}"\nkeep_last = {str(keep_last).lower()}\n'
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="rc-") as name:
        yield Path(name)


@asynccontextmanager
async def world_of(relay: Relay, folder: Path, *paths: str) -> AsyncIterator[World]:
    for path in paths:
        await relay.create_entity(path)
    rule = relay.server.namespace.find_rule(RULE)
    assert rule is not None
    async with open_world(folder, relay.port, RULE, rule.primary_key) as world:
        yield world


async def until_listening(relay: Relay, count: int) -> None:
    with trio.fail_after(PATIENCE):
        while relay.server.statistics().listeners != count:
            await trio.sleep(0.01)


def are_fair(found: list[Visit]) -> bool:
    """Whether both had a part that chance allows: of 100, fewer than 25 come once in some million times."""
    counts = shares(found)
    return not any(one.error for one in found) and min(counts["A"], counts["B"]) * 4 >= len(found)


# Two managers ---------------------------------------------------------------------------------------------------------


async def test_a_killed_manager_costs_its_own_connections_and_comes_back(folder: Path):
    """Load is shared; SIGKILL of one breaks what ran through it, at once and visibly, and delays nobody by a second."""
    async with open_relay() as relay, world_of(relay, folder, "orders") as world, AsyncExitStack() as stack:
        a, b = await world.place("A"), await world.place("B")
        killed = await stack.enter_async_context(
            world.manager("a", world.manages("orders", a, NO_PROBE + LIMITS), dies=True)
        )
        staying = await stack.enter_async_context(world.manager("b", world.manages("orders", b, NO_PROBE + LIMITS)))
        await until_listening(relay, 2)
        connect = await stack.enter_async_context(world.forwarder(world.forwards("orders", free_port())))
        address = address_of(await connect.wait("orders", state="Listening"))
        assert are_fair(await visits(address, 200))

        streams = await world.streams(address, 3, "A", "B")
        async with Load.running(address) as load:
            await load.more(30)
            before = trio.current_time()
            await killed.kill()
            after = trio.current_time()
            # Each is told, and by a reset: an end would look as if all had been said.
            assert {await stream.wait() for stream in streams["A"]} == {"ConnectionResetError"}
            await load.more(100)
            for stream in streams["B"]:
                await stream.more()
        assert all(one.by in ("A", "") and one.began <= after and one.ended >= before for one in load.failures)
        assert {one.by for one in load.since(after)} == {"B"}
        assert load.longest_gap() < 1.0
        assert await end_all(streams["B"]) == ["whole"] * len(streams["B"])
        assert a.reset >= len(streams["A"])  # the servers are told as well
        status = await connect.status("orders")
        assert len(streams["A"]) <= status["lost"] <= len(streams["A"]) + len(load.failures)
        assert status["refused"] == 0
        assert status["last_error"].startswith("an open connection broke: ")
        status = await staying.status("orders")
        assert (status["status"], status["lost"], status["rejected"]) == ("Connected", 0, {})

        again = await stack.enter_async_context(world.manager("a"))
        await again.wait("orders", status="Connected", listeners_here=1, listeners_total=2)
        assert are_fair(await visits(address, 100))


async def test_a_manager_that_is_told_to_end_lets_its_connections_end(folder: Path):
    """SIGTERM under load: no error anywhere, new connections go to the other at once, and it leaves when it is done."""
    async with open_relay() as relay, world_of(relay, folder, "orders") as world:
        a, b = await world.place("A"), await world.place("B")
        async with (
            world.manager("a", world.manages("orders", a, NO_PROBE + LIMITS)) as ending,
            world.manager("b", world.manages("orders", b, NO_PROBE + LIMITS)),
            world.forwarder(world.forwards("orders", free_port())) as connect,
        ):
            await until_listening(relay, 2)
            address = address_of(await connect.wait("orders", state="Listening"))
            streams = await world.streams(address, 3, "A", "B")
            async with Load.running(address) as load:
                await load.more(30)
                ending.process.terminate()
                await until_listening(relay, 1)
                left_at = trio.current_time()
                status = await ending.wait("orders", status="Draining")
                assert (status["relay_leg"], status["listeners_here"]) == ("Stopped", 0)
                await load.more(60)
                for stream in [*streams["A"], *streams["B"]]:
                    await stream.more()
                assert await end_all(streams["A"]) == ["whole"] * len(streams["A"])
                with trio.fail_after(SLACK_S):  # long before the drain timeout
                    assert await ending.process.wait() == 0
            assert load.failures == []
            assert {one.by for one in load.since(left_at)} == {"B"}
            assert load.longest_gap() < 1.0
            assert await end_all(streams["B"]) == ["whole"] * len(streams["B"])
            status = await connect.status("orders")
            assert (status["lost"], status["refused"], status["left"]) == (0, 0, 0)


async def test_a_manager_that_hangs_delays_senders_for_bounded_times(folder: Path):
    """SIGSTOP of one: senders that meet it wait no longer than they are told to, and go to the other once the relay
    misses its signs of life; when it wakes, it finds out, comes back, and what ran through it goes on.
    """
    ping_interval = 1.0
    config = Config()
    config = msgspec.structs.replace(
        config, timeouts=msgspec.structs.replace(config.timeouts, ping_interval=ping_interval)
    )
    async with open_relay(config=config) as relay, world_of(relay, folder, "orders") as world:
        a, b = await world.place("A"), await world.place("B")
        hasty_s = 0.7
        hasty = world.forwards(
            "hasty", free_port(), f'path = "orders"\nconnect = {{ timeout = {hasty_s}, attempts = 1 }}\n'
        )
        async with (
            world.manager("a", world.manages("orders", a, NO_PROBE + LIMITS)) as hanging,
            world.manager("b", world.manages("orders", b, NO_PROBE + LIMITS)),
            world.forwarder(world.forwards("orders", free_port()), hasty) as connect,
        ):
            await until_listening(relay, 2)
            address = address_of(await connect.wait("orders", state="Listening"))
            hasty_address = address_of(await connect.wait("hasty", state="Listening"))
            streams = await world.streams(address, 2, "A", "B")
            await hanging.wait("orders", status="Connected")
            hanging.process.send_signal(signal.SIGSTOP)

            # One attempt of a short time: half of them meet the one that hangs, and are reset when that is over.
            found = await visits(hasty_address, 16, at_once=16)
            assert {one.by for one in found if not one.error} <= {"B"}
            refused = [one for one in found if one.error]
            assert {one.error for one in refused} == {"ConnectionResetError"}
            assert max(one.seconds for one in found) < hasty_s + SLACK_S
            status = await connect.status("hasty")
            assert status["refused"] == len(refused)
            assert "orders at 127.0.0.1" in status["last_error"]

            # With the usual patience nobody is refused.
            found = await visits(address, 20, at_once=20)
            assert shares(found) == {"B": 20}
            assert not any(one.error for one in found)
            # Three intervals until the relay is sure, less than one attempt's share of 15 s.
            assert max(one.seconds for one in found) < 3 * ping_interval + SLACK_S
            await until_listening(relay, 1)
            found = await visits(address, 20)
            assert shares(found) == {"B": 20}
            assert max(one.seconds for one in found) < SLACK_S
            for stream in streams["B"]:
                await stream.more()

            hanging.process.send_signal(signal.SIGCONT)
            lost = await hanging.event("disconnected")
            assert "closed the control channel" in lost or "127.0.0.1" in lost
            await hanging.wait("orders", status="Connected", listeners_here=1)
            await until_listening(relay, 2)
            for stream in streams["A"]:
                await stream.more()
            assert are_fair(await visits(address, 100))
            everything = streams["A"] + streams["B"]
            assert await end_all(everything) == ["whole"] * len(everything)


async def test_a_manager_that_hangs_is_found_out_by_its_first_senders(folder: Path):
    """SIGSTOP of one, and a relay that would ping it in a minute: the first senders that it leaves waiting have it
    pinged at once, none of them is refused, and those who come after that do not meet it.
    """
    async with open_relay() as relay, world_of(relay, folder, "orders") as world:
        a, b = await world.place("A"), await world.place("B")
        async with (
            world.manager("a", world.manages("orders", a, NO_PROBE + LIMITS)) as hanging,
            world.manager("b", world.manages("orders", b, NO_PROBE + LIMITS)),
            world.forwarder(world.forwards("orders", free_port())) as connect,
        ):
            await until_listening(relay, 2)
            address = address_of(await connect.wait("orders", state="Listening"))
            hanging.process.send_signal(signal.SIGSTOP)
            began = trio.current_time()
            found = await visits(address, 20, at_once=20)
            assert shares(found) == {"B": 20}
            assert not any(one.error for one in found)
            assert trio.current_time() - began < ACCEPT_DOUBT + SIGN_OF_LIFE_TIMEOUT + SLACK_S
            found = await visits(address, 20)
            assert shares(found) == {"B": 20}
            assert max(one.seconds for one in found) < SLACK_S

            hanging.process.send_signal(signal.SIGCONT)
            assert "No sign of life" in await hanging.event("disconnected")
            await hanging.wait("orders", status="Connected", listeners_here=1)
            await until_listening(relay, 2)
            assert are_fair(await visits(address, 100))


# Endpoints ------------------------------------------------------------------------------------------------------------


async def test_senders_learn_what_is_wrong_with_an_endpoint(folder: Path):
    """Refusing, silent and unknown endpoints: status and reason at the sender; down and up again within the times of
    the settings, with both legs in the status, which the commands show.
    """
    paths = ("app", "closed", "silent", "gone")
    async with open_relay() as relay, world_of(relay, folder, *paths) as world:
        app = await world.place("A")
        ignore = '[hcm.connection.health]\nprobe = "none"\non_down = "ignore"\n'
        with silent_port() as silent:
            async with (
                world.manager(
                    "a",
                    world.manages("app", app, probes()),
                    world.manages("closed", free_port(), ignore),
                    world.manages("silent", silent, ignore + "[hcm.connection.dial]\ntimeout = 0.3\n"),
                    world.manages("gone", "gone.invalid:5432", ignore),
                    '[hcm.metrics]\nlisten = "unix:' + str(folder / "pages") + '"\n',
                ) as manager,
                world.forwarder(*(world.forwards(path, free_port(), AT_ONCE) for path in paths)) as connect,
            ):
                for path in paths:
                    await manager.wait(path, relay_leg="Connected")
                for path, code, words in (
                    ("closed", "502", "refused"),
                    ("silent", "504", "does not answer within 0.3 s"),
                    ("gone", "502", "gone.invalid"),
                ):
                    found = await visit(address_of(await connect.wait(path, state="Listening")))
                    assert (found.by, found.error) == ("", "ConnectionResetError"), path
                    assert found.seconds < SLACK_S
                    text = await connect.event("refused", name=path, has=code)
                    assert words in text
                    assert (await connect.status(path))["last_error"] == text
                    status = await manager.status(path)
                    assert words in status["last_error"]
                    assert sum(status["rejected"].values()) == 1
                    # Nobody asks, so it is known from senders only, and never thought to be down.
                    legs = status["status"], status["relay_leg"], status["endpoint_leg"]
                    assert legs == ("Degraded", "Connected", "Degraded")

                # Down: the relay's leg stays, the endpoint's turns, senders are told without a dial.
                up = await manager.wait("app", status="Connected", endpoint_leg="Up")
                address = address_of(await connect.wait("app", state="Listening"))
                assert (await visit(address)).by == "A"
                app.down()
                status = await manager.wait(
                    "app", (FALL + 1) * (PROBE_S + 0.5) + SLACK_S, status="Degraded", endpoint_leg="Down"
                )
                assert (status["relay_leg"], status["listeners_here"]) == ("Connected", 1)
                assert status["health"] == "down"
                assert "refused" in status["last_error"]
                assert status["since_unix"] > up["since_unix"]
                assert (await visit(address)).error == "ConnectionResetError"
                text = await connect.event("refused", name="app", has="503 the endpoint is down")
                assert "refused" in text
                assert str(app.port) in text
                shown = json.loads(await manager.command("status", "--once", "--json"))
                entry = next(one for one in shown["connections"] if one["name"] == "app")
                assert (entry["relay_leg"], entry["endpoint_leg"]) == ("Connected", "Down")
                assert entry["rejected"] == {"endpoint-down": 1}
                shown = json.loads(await connect.command("status", "--json"))
                assert next(one for one in shown["forwards"] if one["name"] == "app")["last_error"] == text
                assert "503" in await page(folder / "pages", "/readyz")

                await world.nursery.start(app.serve)
                await manager.wait("app", (RISE + 1) * (PROBE_S + 0.5) + SLACK_S, status="Connected", endpoint_leg="Up")
                assert (await visit(address)).by == "A"
                assert "200" in await page(folder / "pages", "/readyz")


async def page(path: Path, name: str) -> str:
    """The first line of an answer."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(f"GET {name} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        async for data in stream:
            answer += data
    return answer.split(b"\r\n", 1)[0].decode()


async def test_a_manager_withdraws_unless_it_is_the_last(folder: Path):
    """on_down = "withdraw": with company, the others get the senders without an error; the last one stays and tells
    the reason; both come back.
    """
    async with open_relay() as relay, world_of(relay, folder, "orders") as world:
        a, b = await world.place("A"), await world.place("B")
        async with (
            world.manager("a", world.manages("orders", a, probes("withdraw"))) as first,
            world.manager("b", world.manages("orders", b, probes("withdraw"))) as second,
            world.forwarder(world.forwards("orders", free_port())) as connect,
        ):
            await first.wait("orders", status="Connected", endpoint_leg="Up")
            await second.wait("orders", status="Connected", endpoint_leg="Up")
            address = address_of(await connect.wait("orders", state="Listening"))
            bound = (FALL + 1) * (PROBE_S + 0.5) + SLACK_S
            async with Load.running(address) as load:
                await load.more(20)
                a.down()
                status = await first.wait("orders", bound, status="Withdrawn", listeners_here=0)
                assert (status["relay_leg"], status["endpoint_leg"]) == ("Withdrawn", "Down")
                await until_listening(relay, 1)
                moment = trio.current_time()
                await load.more(30)
                assert {one.by for one in load.since(moment)} == {"B"}
            # A refusal sends the sender to the other listener, so that nobody sees one; a program that A served while
            # its server went sees a broken connection, as it would without a relay, and perhaps before its first byte.
            assert all(one.by in ("A", "") and one.began < moment for one in load.failures)

            b.down()
            status = await second.wait("orders", bound, status="Degraded", endpoint_leg="Down")
            assert (status["relay_leg"], status["listeners_here"]) == ("Connected", 1)
            assert (await visit(address)).error == "ConnectionResetError"
            assert "503 the endpoint is down" in await connect.event("refused")
            assert relay.server.statistics().listeners == 1  # it stays, to say so

            for place in (a, b):
                await world.nursery.start(place.serve)
            bound = (RISE + 1) * (PROBE_S + 0.5) + SLACK_S
            for manager in (first, second):
                await manager.wait("orders", bound, status="Connected", endpoint_leg="Up")
            await until_listening(relay, 2)
            assert are_fair(await visits(address, 100))


# The relay ------------------------------------------------------------------------------------------------------------


async def test_both_programs_come_back_behind_a_relay_that_was_killed(folder: Path):
    """Open connections break visibly, status tells the truth meanwhile, and neither program is touched."""
    store = str(folder / "relay.db")
    port = free_port()
    async with AsyncExitStack() as stack:
        relay, ready = await stack.enter_async_context(relay_process(folder, port))
        await run(
            sys.executable, "-m", "relaycore", "entity", "create", "orders", "--store", store, environ=without_ours()
        )
        parsed = parse_connection_string(ready["connection_string"])
        assert parsed.key_name is not None
        world = await stack.enter_async_context(open_world(folder, port, parsed.key_name, parsed.key or ""))
        place = await world.place("A")
        manager = await stack.enter_async_context(world.manager("a", world.manages("orders", place, probes())))
        connect = await stack.enter_async_context(world.forwarder(world.forwards("orders", free_port(), AT_ONCE)))
        await manager.wait("orders", status="Connected", endpoint_leg="Up")
        address = address_of(await connect.wait("orders", state="Listening"))
        streams = (await world.streams(address, 3, "A"))["A"]

        relay.send_signal(signal.SIGKILL)
        assert {await stream.wait() for stream in streams} == {"ConnectionResetError"}
        status = await manager.wait("orders", status="Reconnecting", open=0, lost=3)
        assert (status["relay_leg"], status["endpoint_leg"], status["listeners_here"]) == ("Reconnecting", "Up", 0)
        await manager.wait("orders", attempts=lambda count: count and count >= 2)
        text = (await manager.status("orders"))["last_error"]
        assert f"127.0.0.1:{port}" in text
        assert place.reset >= 3
        assert (await visit(address)).error == "ConnectionResetError"
        text = await connect.event("refused")
        assert f"127.0.0.1:{port}" in text
        assert "refused" in text
        status = await connect.status("orders")
        assert (status["open"], status["lost"], status["refused"], status["last_error"]) == (0, 3, 1, text)

        await stack.enter_async_context(relay_process(folder, port))
        # Back-off by then: at most five seconds between two attempts.
        status = await manager.wait("orders", 5 + SLACK_S, status="Connected", listeners_here=1, attempts=0)
        assert status["detail"] == ""
        found = await visits(address, 20)
        assert shares(found) == {"A": 20}
        assert not any(one.error for one in found)


# The sender's side ----------------------------------------------------------------------------------------------------


async def test_a_killed_forwarder_resets_its_programs_and_comes_back_at_the_same_addresses(folder: Path):
    """Nobody takes the end of a killed forwarder for the end of the data, neither programs nor servers."""
    async with open_relay() as relay, world_of(relay, folder, "orders", "files") as world, AsyncExitStack() as stack:
        a, b = await world.place("A"), await world.place("B")
        manager = await stack.enter_async_context(
            world.manager("m", world.manages("orders", a, NO_PROBE), world.manages("files", b, NO_PROBE))
        )
        connect = await stack.enter_async_context(
            world.forwarder(world.forwards("orders", free_port()), world.forwards("files", free_port()), dies=True)
        )
        await until_listening(relay, 2)
        names = ("orders", "files")
        addresses = [address_of(await connect.wait(name, state="Listening")) for name in names]
        streams = [await world.stream(address) for address in addresses for _ in range(3)]
        for stream in streams:
            await stream.more()
        idle = [await trio.open_tcp_stream(*addresses[0]) for _ in range(3)]
        for one in idle:
            assert await one.receive_some(1) == b"A"

        await connect.kill()
        assert {await stream.wait() for stream in streams} == {"ConnectionResetError"}
        for one in idle:
            with pytest.raises(trio.BrokenResourceError):
                await one.receive_some()
            await one.aclose()
        for name, place, count in (("orders", a, 6), ("files", b, 3)):
            await manager.wait(name, open=0, lost=count, status="Connected")
            with trio.fail_after(PATIENCE):
                while place.reset < count:
                    await trio.sleep(0.01)

        again = await stack.enter_async_context(world.forwarder())
        assert [address_of(await again.wait(name, state="Listening")) for name in names] == addresses
        assert [(await visit(address)).by for address in addresses] == ["A", "B"]


# Settings and keys ----------------------------------------------------------------------------------------------------


async def test_new_settings_touch_only_what_they_change(folder: Path):
    """Streams run while entries come, change and go in both programs: those that stay see nothing, those that go drain
    or are cut when that takes too long, changed ones count for new connections, and wrong ones change nothing.
    """
    paths = ("stays", "moves", "goes", "stuck", "comes")
    async with open_relay() as relay, world_of(relay, folder, *paths) as world:
        a, b = await world.place("A"), await world.place("B")
        ports = {path: free_port() for path in paths}
        short = NO_PROBE + "[hcm.connection.limits]\ndrain_timeout = 0.5\n"
        managed = {path: world.manages(path, a, short if path == "stuck" else NO_PROBE + LIMITS) for path in paths}
        forwarded = {path: world.forwards(path, ports[path]) for path in paths}
        old = paths[:4]
        async with (
            world.manager("m", *(managed[path] for path in old)) as manager,
            world.forwarder(*(forwarded[path] for path in old)) as connect,
        ):
            await until_listening(relay, 4)
            addresses = {path: address_of(await connect.wait(path, state="Listening")) for path in old}
            streams = {path: await world.stream(addresses[path]) for path in old}
            for stream in streams.values():
                await stream.more()
            before = await manager.status("stays"), await connect.status("stays")

            new = (managed["stays"], world.manages("moves", b, NO_PROBE + LIMITS), managed["comes"])
            manager.settings(world.relay_settings() + "\n".join(new))
            manager.process.send_signal(signal.SIGHUP)
            for path, kind in (("goes", "removed"), ("stuck", "removed"), ("moves", "changed"), ("comes", "connected")):
                await manager.event(kind, name=path)
            await until_listening(relay, 3)
            status = await manager.wait("goes", status="Draining", open=1)
            assert status["listeners_here"] == 0
            assert await streams["stuck"].wait() == "ConnectionResetError"
            await manager.wait("stuck", status=None)
            for path in ("stays", "moves", "goes"):
                await streams[path].more()
            assert await streams["goes"].end() == "whole"
            await manager.wait("goes", status=None)
            assert (await visit(addresses["goes"])).error == "ConnectionResetError"
            assert (await visit(addresses["moves"])).by == "B"
            assert (await streams["moves"].end(), streams["moves"].by) == ("whole", "A")

            going = await world.stream(addresses["moves"])
            await going.more()
            connect.settings(world.relay_settings() + "\n".join((forwarded["stays"], forwarded["comes"])))
            connect.process.send_signal(signal.SIGHUP)
            for path, kind in (("moves", "removed"), ("comes", "listening")):
                await connect.event(kind, name=path)
            assert (await visit(address_of(await connect.status("comes")))).by == "A"
            assert (await visit(addresses["moves"])).error == "ConnectionRefusedError"
            await going.more()
            assert (await connect.status("moves"))["state"] == "Draining"
            assert await going.end() == "whole"
            await connect.wait("moves", state=None)

            # Files are looked at by themselves, too; wrong ones leave everything as it is.
            for program, table in ((manager, "hcm.connection"), (connect, "connect.forward")):
                program.settings(world.relay_settings() + f'[[{table}]]\nname = "stays"\nendpiont = "x"\n')
            for program in (manager, connect):
                assert "endpiont" in await program.event("reload-failed")
            assert (await visit(addresses["stays"])).by == "A"
            await streams["stays"].more()
            assert await streams["stays"].end() == "whole"
            after = await manager.status("stays"), await connect.status("stays")
            for one, other in zip(before, after, strict=True):
                assert one["since_unix"] == other["since_unix"]
                assert one["last_error"] == other["last_error"] == ""
            assert (after[0]["listeners_here"], after[0]["accepted"]) == (1, 2)


async def test_a_key_is_renewed_in_its_file(folder: Path):
    """The relay has a new key: open connections and the control channel go on, new ones are refused with the reason
    until the file has it too; then both programs go on by themselves.
    """
    async with open_relay() as relay, world_of(relay, folder, "orders") as world:
        place = await world.place("A")
        async with (
            world.manager("m", world.manages("orders", place, NO_PROBE)) as manager,
            world.forwarder(world.forwards("orders", free_port())) as connect,
        ):
            await manager.wait("orders", status="Connected")
            address = address_of(await connect.wait("orders", state="Listening"))
            stream = await world.stream(address)
            namespace = relay.server.namespace.name
            rule = await relay.store.regenerate_key(namespace, None, RULE, "primary")
            assert (await visit(address)).error == "ConnectionResetError"
            text = await connect.event("refused", has="401")
            assert RULE in text
            assert (await connect.status("orders"))["retries"] == 0  # another listener would not help
            assert (await manager.status("orders"))["status"] == "Connected"
            await manager.command("restart", "orders")
            text = await manager.event("unauthorized")
            assert RULE in text
            status = await manager.wait("orders", status="Unauthorized", listeners_here=0)
            assert RULE in status["last_error"]
            await stream.more()

            write_key(world.key_file, rule.primary_key)
            # The next attempt would be a minute away, but the file has changed.
            await manager.wait("orders", SLACK_S, status="Connected")
            assert (await visit(address)).by == "A"
            await stream.more()
            assert await stream.end() == "whole"


def write_key(path: Path, key: str) -> None:
    made = path.with_suffix(".new")
    made.touch(mode=0o600)
    made.write_text(key)
    os.replace(made, path)
