"""The manager as a whole: commands, reloads, several managers, both legs of the status; against a real relay."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme
from managed import NO_PROBE, QUICK_PROBE, World, ask, closed_port, open_world, status, until, with_target

import relaycore
from relaycore import NoListener, Refused, StreamLost
from relaycore.config import Config, LimitsConfig, TlsConfig
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    HcmSettings,
    HealthSettings,
    LimitSettings,
    OnDown,
    PolicySettings,
    ProcessLimits,
    Profile,
    RelaySettings,
    Target,
)
from relaycore.edge.hcm import agent, retry
from relaycore.edge.hcm.agent import Agent
from relaycore.edge.hcm.manager import Manager, open_hcm
from relaycore.edge.hcm.plan import UnknownConnection
from relaycore.edge.hcm.sessions import SessionBook
from relaycore.errors import ConfigError

BAD_KEY = "bm90IHRoZSBrZXkgYXQgYWxsLCBidXQgYXMgbG9uZyE="


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as world:
        yield world


async def refusal_of(world: World) -> Refused:
    with pytest.raises(Refused) as caught:
        async with world.dial():
            pass
    return caught.value


def kinds(manager: Manager) -> list[str]:
    return [event.kind for event in manager.recent_events()]


def listeners(world: World) -> int:
    """How many the relay counts."""
    return world.relay.server.statistics().listeners


# Commands ------------------------------------------------------------------------------------------------------------


async def test_pause_and_resume(world: World):
    """8.3 Paused: no new connections; old ones go on."""
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            manager.pause("orders")
            assert status(manager).status == "Paused"
            await until(lambda: not status(manager).listeners_here)
            assert isinstance(await refusal_of(world), NoListener)
            assert await ask(sender) == b"ping"
            manager.resume("orders")
            await until(lambda: status(manager).status == "Connected")
            assert await ask(sender) == b"ping"
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        assert [kind for kind in kinds(manager) if kind in ("paused", "resumed")] == ["paused", "resumed"]


async def test_an_entry_may_begin_paused(world: World):
    endpoint = await world.endpoint()
    async with world.manager(world.connection(endpoint.target, is_paused=True)) as manager:
        assert (await manager.wait_settled("orders")).status == "Paused"
        assert isinstance(await refusal_of(world), NoListener)


async def test_restart_registers_anew_and_leaves_connections_alone(world: World):
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        manager.restart("orders")
        await until(lambda: kinds(manager).count("connected") == 2)
        assert await ask(sender) == b"ping"
        async with world.dial() as other:
            assert await ask(other) == b"ping"


async def test_drain_waits_for_connections(world: World):
    """8.3 Draining: no new connections, old ones finish; then it is paused."""
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager, trio.open_nursery() as nursery:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            drained = trio.Event()

            async def drain() -> None:
                await manager.drain("orders")
                drained.set()

            nursery.start_soon(drain)
            await until(lambda: status(manager).status == "Draining" and not status(manager).listeners_here)
            assert status(manager).detail == "1 open"
            assert isinstance(await refusal_of(world), NoListener)
            assert await ask(sender) == b"ping"
            assert not drained.is_set()
        await drained.wait()
        assert status(manager).status == "Paused"
        assert status(manager).lost == 0


async def test_a_drain_cuts_what_does_not_end(world: World):
    endpoint = await world.endpoint()
    limits = LimitSettings(drain_timeout_s=0.1)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        await manager.drain("orders")
        assert status(manager).status == "Paused"
        assert status(manager).open == 0
        with pytest.raises(StreamLost):
            await sender.receive_some()


async def test_what_is_paused_can_be_drained(world: World):
    endpoint = await world.endpoint()
    limits = LimitSettings(drain_timeout_s=0.1)
    async with world.serving(world.connection(endpoint.target, limits=limits)) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        manager.pause("orders")
        await until(lambda: not status(manager).listeners_here)
        assert status(manager).open == 1
        await manager.drain("orders")
        assert (status(manager).status, status(manager).open) == ("Paused", 0)


async def test_resume_calls_a_drain_off(world: World):
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.drain, "orders")
            await until(lambda: status(manager).status == "Draining" and not status(manager).listeners_here)
            manager.resume("orders")
        await until(lambda: status(manager).status == "Connected")
        assert await ask(sender) == b"ping"


async def test_remove_forgets_and_drains(world: World):
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            await manager.remove("orders")
            assert manager.names == ()
            assert listeners(world) == 0
            assert [connection.status for connection in manager.status().connections] == ["Draining"]
            assert await ask(sender) == b"ping"
        await until(lambda: not manager.status().connections)


async def test_names_that_are_not_there(world: World):
    async with world.manager() as manager:
        for command in (manager.pause, manager.resume, manager.restart, manager.connection_status, manager.sessions):
            with pytest.raises(UnknownConnection):
                command("orders")
        for command in (manager.drain, manager.remove, manager.test, manager.wait_settled):
            with pytest.raises(UnknownConnection):
                await command("orders")


async def test_the_endpoint_can_be_tested(world: World):
    endpoint = await world.endpoint()
    port = closed_port()
    async with world.manager(world.connection(endpoint.target, Target("127.0.0.1", port))) as manager:
        up, down = await manager.test("orders")
        assert (up.is_up, up.target, up.kind) == (True, str(endpoint.target), "")
        assert (down.is_up, down.kind) == (False, "refused")
        assert "ECONNREFUSED" in down.text


async def test_stopping_lets_connections_end(world: World):
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
            manager.stop()
            await until(lambda: not listeners(world))
            assert await ask(sender) == b"ping"
        await manager.wait_stopped()


async def test_it_can_be_embedded(world: World):
    endpoint = await world.endpoint()
    async with open_hcm(HcmSettings((world.connection(endpoint.target),))) as manager:
        assert (await manager.wait_settled("orders")).status == "Connected"
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
    assert listeners(world) == 0


async def test_events_are_told_as_they_come(world: World):
    endpoint = await world.endpoint()
    async with world.manager() as manager:
        seen = []
        events = manager.events()
        manager.reload(HcmSettings((world.connection(endpoint.target),)))
        async for event in events:
            seen.append((event.name, event.kind))
            if event.kind == "connected":
                break
        events.close()
        assert seen == [("orders", "added"), ("orders", "connected")]


# Reload --------------------------------------------------------------------------------------------------------------


async def test_a_reload_leaves_alone_what_is_the_same(world: World):
    """8.4 hot reload: unchanged ones are not touched, new ones come, removed ones drain."""
    for path in ("gone", "new"):
        await world.relay.create_entity(path)
    endpoint = await world.endpoint()
    same = world.connection(endpoint.target)
    gone = world.connection(endpoint.target, name="gone", path="gone")
    new = world.connection(endpoint.target, name="new", path="new")
    async with world.serving(same, gone) as manager, world.dial() as kept, world.dial("gone") as left:
        assert await ask(kept) == await ask(left) == b"ping"
        since = status(manager).since_unix
        manager.pause("orders")
        manager.resume("orders")
        await until(lambda: status(manager).relay_leg == "Connected")
        before = kinds(manager).count("connected")
        plan = manager.reload(HcmSettings((new, same)))
        assert (plan.added, plan.removed, plan.changed, plan.unchanged) == (("new",), ("gone",), {}, ("orders",))
        assert manager.names == ("new", "orders")
        await until(lambda: status(manager, "new").relay_leg == "Connected")
        await until(lambda: listeners(world) == 2)
        assert kinds(manager).count("connected") == before + 1
        assert status(manager).since_unix >= since
        assert await ask(kept) == await ask(left) == b"ping"


async def test_a_changed_endpoint_is_for_new_connections(world: World):
    """8.4 hot reload: and the control channel stays."""
    first, second = await world.endpoint(), await world.endpoint()
    connection = world.connection(first.target)
    async with world.serving(connection) as manager, world.dial() as old:
        assert await ask(old) == b"ping"
        plan = manager.reload(HcmSettings((with_target(connection, second.target),)))
        assert plan.changed == {"orders": ("endpoint",)}
        assert status(manager).endpoint == str(second.target)
        async with world.dial() as new:
            assert await ask(new) == await ask(old) == b"ping"
        assert (first.connections, second.connections) == (1, 1)
        assert kinds(manager).count("connected") == 1


async def test_a_changed_path_is_registered_anew(world: World):
    await world.relay.create_entity("other")
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    async with world.serving(connection) as manager, world.dial() as old:
        assert await ask(old) == b"ping"
        manager.reload(HcmSettings((replace(connection, path="other"),)))
        await until(lambda: kinds(manager).count("connected") == 2)
        async with world.dial("other") as new:
            assert await ask(new) == await ask(old) == b"ping"
        assert isinstance(await refusal_of(world), NoListener)


async def test_changed_limits_count_at_once(world: World):
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    async with world.serving(connection) as manager, world.dial() as sender:
        assert await ask(sender) == b"ping"
        manager.reload(HcmSettings((replace(connection, limits=LimitSettings(max_open=1)),)))
        assert (await refusal_of(world)).http_status == 503
        assert await ask(sender) == b"ping"


async def test_a_changed_policy_counts_at_once(world: World):
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    async with world.serving(connection) as manager:
        plan = manager.reload(HcmSettings((connection,), policy=PolicySettings(allow=())))
        assert plan.general == ("policy",)
        assert (await refusal_of(world)).http_status == 403
        assert kinds(manager).count("connected") == 1


async def test_settings_that_do_not_fit_leave_those_in_force(world: World):
    """8.4: an invalid file leaves the old one in force, with an error event."""
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    async with world.serving(connection) as manager:
        for wrong in (
            HcmSettings((connection, connection)),
            HcmSettings((), policy=PolicySettings(deny=("not a pattern",))),
            HcmSettings((replace(connection, profile=Profile.HTTP, http_url="ftp://no"),)),
        ):
            with pytest.raises(ConfigError):
                manager.reload(wrong)
            assert kinds(manager)[-1] == "reload-failed"
            assert manager.names == ("orders",)
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


# The relay leg -------------------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_unauthorized_until_it_is_renewed_in_its_file(world: World, tmp_path: Path):
    """8.3 Unauthorized: the file is read again, and it recovers by itself."""
    file = tmp_path / "key"
    file.write_text(BAD_KEY)
    file.chmod(0o600)
    endpoint = await world.endpoint()
    async with world.manager(world.connection(endpoint.target, key=Secret("file", str(file)))) as manager:
        found = await manager.wait_settled("orders")
        assert (found.status, found.hcm_status, found.listeners_here) == ("Unauthorized", "Disconnected", 0)
        assert "rule 'TestListen'" in found.last_error
        assert "check the key" in found.last_error
        assert found.detail.startswith("try ")
        assert BAD_KEY not in repr(manager.status()) + repr(manager.recent_events())
        file.write_text(world.key("TestListen"))
        await until(lambda: status(manager).status == "Connected")
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


async def test_a_missing_right_is_named(world: World):
    endpoint = await world.endpoint()
    sender_only = replace(
        world.connection(endpoint.target, key=Secret("inline", world.key("TestSend"))), key_name="TestSend"
    )
    async with world.manager(sender_only) as manager:
        found = await manager.wait_settled("orders")
        assert found.status == "Unauthorized"
        assert "the right Listen" in found.last_error


async def test_a_first_attempt_that_fails_at_once_is_told_at_once(world: World, tmp_path: Path):
    """8.3: whichever task comes first. Without a key nothing is waited for, and the listener is quicker than we are."""
    entry = world.connection((await world.endpoint()).target, key=Secret("file", str(tmp_path / "none")))
    for _ in range(8):
        async with world.manager(entry) as manager:
            with trio.fail_after(5):
                assert (await manager.wait_settled("orders")).status == "Unauthorized"
            kinds_of_leg = [kind for kind in kinds(manager) if kind in ("unauthorized", "retrying", "disconnected")]
            assert kinds_of_leg == ["unauthorized"]


async def test_a_key_that_cannot_be_read_is_told(world: World, tmp_path: Path):
    endpoint = await world.endpoint()
    missing = tmp_path / "key"
    async with world.manager(world.connection(endpoint.target, key=Secret("file", str(missing)))) as manager:
        found = await manager.wait_settled("orders")
        assert found.status == "Unauthorized"
        assert str(missing) in found.last_error
        missing.touch(0o600)
        missing.write_text(world.key("TestListen"))
        await until(lambda: status(manager).status == "Connected")


async def test_each_leg_has_an_error_of_its_own(world: World, tmp_path: Path):
    """8.3, 8.11: what is shown beside a status is why it is so, and not what went wrong last."""
    endpoint = await world.endpoint()
    missing = tmp_path / "key"
    entry = world.connection(endpoint.target, key=Secret("file", str(missing)), health=QUICK_PROBE)
    async with world.manager(entry) as manager:
        await manager.wait_settled("orders")
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        found = status(manager)
        assert found.status == "Unauthorized"
        assert str(missing) in found.relay_error
        assert "ECONNREFUSED" in found.endpoint_error
        assert found.error_behind == (found.relay_error, found.relay_error_unix)
        assert found.last_error == found.endpoint_error
        missing.touch(0o600)
        missing.write_text(world.key("TestListen"))
        await until(lambda: status(manager).status == "Degraded")
        assert status(manager).error_behind[0] == found.endpoint_error
        await world.up(endpoint)
        await until(lambda: status(manager).status == "Connected")
        assert status(manager).error_behind[0] == status(manager).last_error


async def test_what_is_not_found_is_found_when_it_is_created(world: World, monkeypatch: pytest.MonkeyPatch):
    """8.3 NotFound, complaint 13: never final."""
    monkeypatch.setattr(retry, "REFUSED_S", 0.1)
    endpoint = await world.endpoint()
    later = world.connection(endpoint.target, path="later")
    async with world.manager(later) as manager:
        found = await manager.wait_settled("orders")
        assert (found.status, found.hcm_status) == ("NotFound", "NotFound")
        assert "'later'" in found.last_error
        await world.relay.create_entity("later")
        await until(lambda: status(manager).status == "Connected")
        async with world.dial("later") as sender:
            assert await ask(sender) == b"ping"


async def test_a_deleted_hybrid_connection_is_not_found_and_comes_back(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "REFUSED_S", 0.1)
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        await world.relay.delete_entity("orders")
        await until(lambda: status(manager).status == "NotFound")
        await world.relay.create_entity("orders")
        await until(lambda: status(manager).status == "Connected")


async def test_a_relay_that_is_not_there_is_told(world: World):
    port = closed_port()
    endpoint = await world.endpoint()
    nowhere = RelaySettings("main", f"sb://127.0.0.1:{port}/", is_emulator=True, proxy="none")
    async with world.manager(world.connection(endpoint.target, relay=nowhere)) as manager:
        found = await manager.wait_settled("orders")
        assert (found.status, found.hcm_status) == ("Connecting", "Disconnected")
        said = f"listening on 'orders' at sb://127.0.0.1:{port}/: the relay 127.0.0.1:{port} refused the connection "
        assert found.last_error.startswith(f"{said}(ECONNREFUSED); start the relay, ")
        assert "relaycore hcm doctor orders" in found.last_error
        assert found.attempts >= 1


async def test_a_key_in_new_settings_is_used_at_once(world: World):
    endpoint = await world.endpoint()
    right = world.connection(endpoint.target)
    async with world.manager(replace(right, key=Secret("inline", BAD_KEY))) as manager:
        assert (await manager.wait_settled("orders")).status == "Unauthorized"
        plan = manager.reload(HcmSettings((right,)))
        assert plan.changed == {"orders": ("key",)}
        assert (await manager.wait_settled("orders")).status == "Connected"


async def test_a_full_hybrid_connection_is_told():
    """8.3, 8.11: too many listeners is no matter of keys, though the relay says 403."""
    config = Config(limits=LimitsConfig(listeners_per_entity=1))
    async with open_world(config=config) as world:
        endpoint = await world.endpoint()
        connection = world.connection(endpoint.target)
        async with world.serving(connection) as first, world.manager(connection) as second:
            found = await second.wait_settled("orders")
            assert found.status == "Connecting"
            assert "another one has to leave first" in found.last_error
            first.pause("orders")
            await until(lambda: status(second).status == "Connected", 40)


async def test_over_tls_with_an_authority_of_ones_own(tmp_path: Path):
    """8.4 ca_file; and without it the relay is not trusted, which is said."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = TlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    async with open_world(tls=tls) as world:
        endpoint = await world.endpoint()
        relay = RelaySettings("main", f"sb://localhost:{world.relay.port}/", proxy="none")
        trusting = world.connection(endpoint.target, relay=replace(relay, cafile=tmp_path / "ca.pem"))
        async with world.manager(world.connection(endpoint.target, relay=relay)) as manager:
            found = await manager.wait_settled("orders")
            assert found.status == "Connecting"
            assert "the certificate of localhost:" in found.last_error
            assert " is not trusted here: " in found.last_error
            assert "ca_file" in found.last_error
            manager.reload(HcmSettings((trusting,)))
            await until(lambda: status(manager).status == "Connected")
            text = world.relay.connection_string("orders")
            async with relaycore.open_stream(text, cafile=tmp_path / "ca.pem") as sender:
                assert await ask(sender, b"x" * 100_000) == b"x" * 100_000
                await sender.send_eof()
                assert await sender.receive_some() == b""
            await until(lambda: not status(manager).open)
            assert (status(manager).bytes_in, status(manager).lost) == (100_000, 0)


async def test_several_channels_at_once(world: World):
    endpoint = await world.endpoint()
    async with world.manager(world.connection(endpoint.target, listeners=3)) as manager:
        await until(lambda: status(manager).listeners_here == 3)
        await until(lambda: status(manager).listeners_total == 3)
        assert listeners(world) == 3


async def test_several_entries_in_one_process(world: World):
    await world.relay.create_entity("other")
    first, second = await world.endpoint(), await world.endpoint()
    bad = world.connection(first.target, name="bad", path="nowhere")
    async with world.serving(
        world.connection(first.target), world.connection(second.target, name="other", path="other")
    ) as manager:
        manager.reload(HcmSettings((*manager.settings.connections, bad)))
        async with world.dial() as one, world.dial("other") as two:
            assert await ask(one) == await ask(two) == b"ping"
        assert (first.connections, second.connections) == (1, 1)
        await until(lambda: status(manager, "bad").status == "NotFound")
        found = manager.status()
        assert [each.status for each in found.connections] == ["Connected", "Connected", "NotFound"]
        assert found.relay == f"127.0.0.1:{world.relay.port}"


# Several managers ----------------------------------------------------------------------------------------------------


async def test_two_managers_share_and_one_is_killed(world: World):
    """Complaint 10: errors only on connections through the one that died; new ones go on within a second."""
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target)
    victim = Manager()
    power = trio.CancelScope()
    stop = trio.Event()
    lost: list[bool] = []

    async def run_victim() -> None:
        with power:
            await victim.run(HcmSettings((connection,)))

    async def talk() -> None:
        async with world.dial() as sender:
            try:
                while not stop.is_set():
                    assert await ask(sender) == b"ping"
                    await trio.sleep(0.005)
            except StreamLost:
                lost.append(True)
            else:
                lost.append(False)

    async with (
        world.serving(connection, metadata_interval_s=0.05) as survivor,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_victim)
        await until(lambda: (status(survivor).listeners_total, status(survivor).listeners_here) == (2, 1))
        for _ in range(20):
            nursery.start_soon(talk)
        await until(lambda: status(survivor).open + status(victim).open == 20)
        through_victim = status(victim).open
        assert 0 < through_victim < 20
        power.cancel()
        died = trio.current_time()
        has_come_through = False
        while not has_come_through:
            try:
                async with world.dial() as sender:
                    has_come_through = await ask(sender) == b"ping"
            except (Refused, StreamLost):
                assert trio.current_time() - died < 1
        assert trio.current_time() - died < 1
        await until(lambda: len(lost) == through_victim)
        stop.set()
        await until(lambda: len(lost) == 20)
        assert lost.count(True) == through_victim
        await until(lambda: status(survivor).listeners_total == 1)


# The endpoint leg ----------------------------------------------------------------------------------------------------


async def test_down_and_up_with_reject(world: World):
    """8.3 Degraded: registered, senders are refused with 503 and the reason, until the endpoint is up again."""
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target, health=QUICK_PROBE)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        found = status(manager)
        assert found.status == "Connected"
        assert found.health.startswith("up ")
        assert found.latency_ms is not None
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        found = status(manager)
        assert (found.status, found.relay_leg, found.hcm_status) == ("Degraded", "Connected", "Connected")
        assert "ECONNREFUSED" in found.last_error
        error = await refusal_of(world)
        assert error.http_status == 503
        assert "the endpoint is down" in error.message
        assert "ECONNREFUSED" in error.message
        assert status(manager).rejected["endpoint-down"] == 1
        await world.up(endpoint)
        await until(lambda: status(manager).status == "Connected")
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        assert kinds(manager).count("connected") == 1
        assert [kind for kind in kinds(manager) if kind in ("endpoint-down", "endpoint-up")][:2] == [
            "endpoint-up",
            "endpoint-down",
        ]


def withdrawing(keep_last: bool) -> HealthSettings:
    return replace(QUICK_PROBE, on_down=OnDown.WITHDRAW, keep_last=keep_last)


async def test_down_and_up_with_withdraw(world: World):
    """8.3 Withdrawn, 8.5.6: the listener leaves the relay and comes back; open connections stay."""
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target, health=withdrawing(False))) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).status == "Withdrawn" and not status(manager).listeners_here)
        assert isinstance(await refusal_of(world), NoListener)
        await world.up(endpoint)
        await until(lambda: status(manager).status == "Connected")
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        assert [kind for kind in kinds(manager) if kind in ("withdrawn", "returned")] == ["withdrawn", "returned"]


async def test_the_last_listener_stays_to_tell_the_reason(world: World):
    """8.5.6 keep_last; and leaves as soon as somebody else listens."""
    endpoint, other = await world.endpoint(), await world.endpoint()
    settings = world.connection(endpoint.target, health=withdrawing(True))
    async with world.serving(settings, metadata_interval_s=0.05) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        assert (await refusal_of(world)).http_status == 503
        assert status(manager).status == "Degraded"
        async with world.serving(world.connection(other.target)):
            await until(lambda: status(manager).status == "Withdrawn" and not status(manager).listeners_here)
            async with world.dial() as sender:
                assert await ask(sender) == b"ping"
        assert other.connections == 1


async def test_another_manager_with_a_good_endpoint_gets_the_senders(world: World):
    """8.5.6, complaint 10: one manager's endpoint dies, and the other one gets the senders."""
    dead, alive = await world.endpoint(), await world.endpoint()
    async with (
        world.serving(world.connection(dead.target, health=withdrawing(True)), metadata_interval_s=0.05) as first,
        world.serving(world.connection(alive.target, health=QUICK_PROBE)),
    ):
        await until(lambda: status(first).endpoint_leg == "Up")
        dead.down()
        await until(lambda: status(first).status == "Withdrawn" and not status(first).listeners_here)
        for _ in range(10):
            async with world.dial() as sender:
                assert await ask(sender) == b"ping"


async def test_who_withdrew_comes_back_when_nobody_is_left(world: World, monkeypatch: pytest.MonkeyPatch):
    """8.5.6 keep_last: the other one goes away later, and senders are told the reason instead of "no listener"."""
    monkeypatch.setattr(agent, "_LOOK_S", 0.1)
    endpoint, other = await world.endpoint(), await world.endpoint()
    settings = world.connection(endpoint.target, health=withdrawing(True))
    async with world.serving(settings) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        async with world.serving(world.connection(other.target)):
            endpoint.down()
            await until(lambda: status(manager).status == "Withdrawn" and not status(manager).listeners_here)
            async with world.dial() as sender:
                assert await ask(sender) == b"ping"
            looked = status(manager).listeners_unix
            await until(lambda: status(manager).listeners_unix > looked)
            assert status(manager).status == "Withdrawn"
        await until(lambda: status(manager).status == "Degraded" and status(manager).listeners_here)
        refusal = await refusal_of(world)
        assert refusal.http_status == 503
        assert "the endpoint is down" in refusal.message
        assert (
            "nobody else listens" in [event for event in manager.recent_events() if event.kind == "returned"][-1].text
        )
        # And it leaves again for the next one.
        monkeypatch.setattr(agent, "_FRESH_S", 0.0)
        async with world.serving(world.connection(other.target)):
            manager.look_again()
            await until(lambda: status(manager).status == "Withdrawn" and not status(manager).listeners_here)


class Drawn(random.Random):
    """Draws this part of what it is given."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self._part = part

    def uniform(self, a: float, b: float) -> float:
        return a + self._part * (b - a)


async def test_two_that_withdraw_at_the_same_moment(world: World, monkeypatch: pytest.MonkeyPatch):
    """8.5.6 keep_last: each thinks that the other one stays; one of them comes back, and that is the end of it."""
    monkeypatch.setattr(agent, "_LOOK_S", 1.0)
    endpoint = await world.endpoint()
    settings = world.connection(endpoint.target, health=withdrawing(True))
    both_asked = trio.Event()
    asked: list[Agent] = []
    count_others = Agent._count_others

    async def count_together(self: Agent) -> int | None:
        found = await count_others(self)
        if not both_asked.is_set():
            asked.append(self)
            if len(asked) == 2:
                both_asked.set()
            await both_asked.wait()
        return found

    async with world.serving(settings, rng=Drawn(0.0)) as first, world.serving(settings, rng=Drawn(1.0)) as second:
        managers = first, second
        await until(lambda: all(status(manager).endpoint_leg == "Up" for manager in managers))
        monkeypatch.setattr(Agent, "_count_others", count_together)
        endpoint.down()
        await until(lambda: all(status(manager).status == "Withdrawn" for manager in managers))
        await until(lambda: status(first).status == "Degraded")
        assert status(second).status == "Withdrawn"
        for _ in range(5):
            assert (await refusal_of(world)).http_status == 503
        await world.up(endpoint)
        await until(lambda: all(status(manager).status == "Connected" for manager in managers))


async def test_who_watches_sees_fresh_numbers(world: World, monkeypatch: pytest.MonkeyPatch):
    """8.2 LISTENERS: what is shown to somebody who looks is seconds old, not a minute."""
    monkeypatch.setattr(agent, "_FRESH_S", 0.1)
    endpoint = await world.endpoint()
    async with world.serving(world.connection(endpoint.target)) as manager:
        await until(lambda: status(manager).listeners_total == 1)
        async with world.serving(world.connection(endpoint.target)):

            def look() -> bool:
                manager.look_again()
                return status(manager).listeners_total == 2

            await until(look)


async def test_down_and_ignored(world: World):
    """on_down = ignore: each sender's own dial decides."""
    endpoint = await world.endpoint()
    health = replace(QUICK_PROBE, on_down=OnDown.IGNORE)
    async with world.serving(world.connection(endpoint.target, health=health)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Up")
        endpoint.down()
        await until(lambda: status(manager).endpoint_leg == "Down")
        assert (await refusal_of(world)).http_status == 502
        await world.up(endpoint)
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"


async def test_an_endpoint_that_is_slow_is_told(world: World):
    """A service that accepts and says nothing fails a probe that wants an answer, by its time."""

    async def ponder(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    endpoint = await world.endpoint(ponder)
    slow = replace(
        QUICK_PROBE,
        timeout_s=0.05,
        probe=replace(QUICK_PROBE.probe, kind="exchange", send=b"PING", expect=b"PONG"),
    )
    async with world.serving(world.connection(endpoint.target, health=slow)) as manager:
        await until(lambda: status(manager).endpoint_leg == "Down")
        assert "0.05 s" in status(manager).last_error
        assert (await refusal_of(world)).http_status == 503

        async def pong(stream: trio.SocketStream) -> None:
            await stream.send_all(b"PONG")

        endpoint.handler = pong
        await until(lambda: status(manager).status == "Connected")


async def test_without_probes_dials_tell_about_the_endpoint(world: World):
    """8.5.6: passive signs never close the door, as nobody would open it again."""
    endpoint = await world.endpoint()
    connection = world.connection(endpoint.target, health=NO_PROBE)
    async with world.serving(connection) as manager:
        assert status(manager).endpoint_leg == "Unknown"
        endpoint.down()
        for _ in range(5):
            assert (await refusal_of(world)).http_status == 502
        assert status(manager).endpoint_leg == "Degraded"
        await world.up(endpoint)
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        assert status(manager).endpoint_leg == "Up"


async def test_an_endpoint_that_nobody_names(world: World):
    async with world.serving(world.connection()) as manager:
        error = await refusal_of(world)
        assert error.http_status == 503
        assert "metadata names no endpoint: it is empty" in error.message
        found = status(manager)
        assert (found.endpoint, found.endpoint_from) == ("", "metadata")
        assert "metadata names no endpoint" in found.last_error
        # No limit was met: it is not overloaded.
        assert found.rejected == {"no-endpoint": 1}


async def test_where_nobody_knows_the_endpoint_it_is_no_more_than_degraded(world: World):
    """8.3: the word for tables is the truth about both legs; 8.12: readyz goes by it."""
    async with world.serving(world.connection(), metadata_interval_s=0.05) as manager:
        assert (status(manager).status, status(manager).relay_leg) == ("Degraded", "Connected")
        assert manager.shown() == [("orders", "Degraded")]
        assert not status(manager).is_serving
        endpoint = await world.endpoint()
        await world.describe(json.dumps([{"key": "endpoint", "value": str(endpoint.target)}]))
        await until(lambda: status(manager).status == "Connected")
        async with world.dial() as sender:
            assert await ask(sender) == b"ping"
        await world.describe("")  # who was led somewhere goes on being led there
        await until(lambda: "is kept" in manager.recent_events()[-1].text)
        assert status(manager).status == "Connected"


async def test_words_are_told_without_a_look_at_all_connections(world: World, monkeypatch):
    """The daemon asks with every event, of which ten thousand may come at once when a relay goes."""
    endpoint = await world.endpoint()
    entries = (world.connection(endpoint.target), world.connection(endpoint.target, name="also", is_paused=True))
    async with world.manager(*entries) as manager:
        await manager.wait_settled("orders")
        assert manager.shown() == [(one.name, one.status) for one in manager.status().connections]
        with monkeypatch.context() as without:
            without.setattr(SessionBook, "carried", None)
            assert manager.shown() == [("orders", "Connected"), ("also", "Paused")]


async def test_entries_share_the_rates_of_the_process(world: World):
    """manager 8.5.5: token buckets per process; a reload counts for new connections, and touches no entry."""
    endpoint = await world.endpoint()
    await world.relay.create_entity("files")
    connections = (
        world.connection(endpoint.target),
        world.connection(endpoint.target, name="files", path="files"),
    )
    limits = ProcessLimits(rate_in=20_000, burst=1000)
    async with world.serving(*connections, limits=limits) as manager:

        async def carry(path: str) -> None:
            async with world.dial(path) as sender:
                for _ in range(2):
                    assert await ask(sender, bytes(5000)) == bytes(5000)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for path in ("orders", "files"):
                nursery.start_soon(carry, path)
        assert trio.current_time() - began > 0.4  # 20 000 bytes less the last piece, at 20 000 a second
        waited = [status(manager, name).throttled_in_s for name in ("orders", "files")]
        assert all(seconds > 0 for seconds in waited)
        assert [status(manager, name).throttled_out_s for name in ("orders", "files")] == [0, 0]

        plan = manager.reload(HcmSettings(connections))
        assert (plan.general, plan.changed, plan.unchanged) == (("limits",), {}, ("orders", "files"))
        await carry("orders")
        assert status(manager).throttled_in_s == waited[0]
