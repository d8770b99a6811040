"""The commands beside the daemon, and without one."""

from __future__ import annotations

import json
import signal
from functools import partial

import pytest
import trio
import trustme
from programs import run_program

import relaycore
from relaycore.edge.control.server import serve_control


def key_of(string):
    return string.partition("SharedAccessKey=")[2].partition(";")[0]


# add -----------------------------------------------------------------------------------------------------------------


async def test_add_shows_each_step_and_saves(world_of):
    async with world_of("orders") as world:
        async with world.daemon():
            code, out, err = await world.hcm("add", "-", data=world.string("orders").encode())
            assert code == 0, out
            lines = out.splitlines()
            assert all(line.startswith(" ok ") for line in lines[:-1]), out
            assert any("token accepted (rule TestListen: Listen)" in line for line in lines)
            assert any(f"endpoint from metadata: {world.endpoint.address}" in line for line in lines)
            assert any("listening (1 listener now, 1 of them here)" in line for line in lines)
            file = world.directory / "relaycore.d" / "orders.toml"
            assert lines[-1] == f"orders is saved in {file}, and this daemon listens on it"
            assert file.stat().st_mode & 0o777 == 0o600
            assert err == ""
            assert await world.echoes("orders")
        async with world.daemon():  # it is there the next time
            await world.settled("orders", status="Connected")


async def test_add_without_a_daemon_saves_and_says_so(world_of):
    async with world_of("orders") as world:
        out = await world.ok("add", "-", "--endpoint", world.endpoint.address, data=world.string("orders").encode())
        assert f"endpoint {world.endpoint.address}: connected to 127.0.0.1" in out
        assert "no daemon runs here, start it with: relaycore hcm run" in out
        assert "SharedAccessKey" not in out
        listed = await world.json("list")
        assert listed[0]["Name"] == "orders"
        assert listed[0]["Endpoint"] == world.endpoint.address
        assert listed[0]["Status"] == "Disconnected"


async def test_add_without_a_daemon_dials_what_the_metadata_names(world_of):
    async with world_of("orders") as world:
        out = await world.ok("add", "-", data=world.string("orders").encode())
        assert f"endpoint from metadata: {world.endpoint.address}" in out
        assert f"endpoint {world.endpoint.address}: connected to 127.0.0.1" in out
        assert f"endpoint {world.endpoint.address}: connected" in await world.ok("test", "orders")


async def test_add_takes_a_key_from_its_file_and_warns_of_one_on_the_command_line(world_of):
    async with world_of("orders", "files") as world, world.daemon():
        string = world.string("orders")
        (world.directory / "key").write_text(key_of(string))
        (world.directory / "key").chmod(0o600)
        keyless = ";".join(part for part in string.split(";") if not part.startswith("SharedAccessKey="))
        _, out, err = await world.hcm("add", keyless, "--key-file", "key")
        assert "this daemon listens on it" in out
        assert err == ""
        saved = (world.directory / "relaycore.d" / "orders.toml").read_text()
        assert key_of(string) not in saved
        code, out, err = await world.hcm("add", world.string("files"))
        assert code == 0
        assert "warning: everybody on this machine can read a key on a command line" in err


async def test_add_says_which_step_failed_and_keeps_what_it_was_given(world_of):
    async with world_of("orders") as world, world.daemon():
        string = world.string("orders")
        wrong = string.replace(key_of(string), "A" * 43 + "=")
        code, out, _ = await world.hcm("add", "-", data=wrong.encode())
        assert code == 4
        assert " fail wrong key" in out
        assert "orders is saved in" in out
        assert (await world.status("orders"))["status"] == "Unauthorized"
        code, out, _ = await world.hcm("add", "-", "--name", "later", data=world.string("nothing").encode())
        assert code == 6
        assert "knows no hybrid connection nothing" in out
        assert (await world.status("later"))["status"] == "NotFound"
        code, _, err = await world.hcm("add", "-", data=string.encode())
        assert code == 16
        assert "there is a connection 'orders' already" in err
        code, out, _ = await world.hcm("add", "-", "--replace", data=string.encode())
        assert code == 0, out
        assert await world.echoes("orders")


async def test_add_warns_of_an_endpoint_that_is_down(world_of):
    async with world_of("orders") as world, world.daemon():
        world.endpoint.down()
        code, out, _ = await world.hcm("add", "-", data=world.string("orders").encode())
        assert code == 0
        assert " warn " in out
        assert "ECONNREFUSED" in out
        assert "Senders are refused until the endpoint answers." in out


async def test_an_endpoint_that_nobody_knows_is_told_everywhere(world_of):
    """8.3, 8.11, 8.12: no command and no page says that all is well while every sender is refused."""
    async with world_of() as world:
        await world.relay.create_entity("orders")
        world.write('[hcm.metrics]\nlisten = "127.0.0.1:0"')
        async with world.daemon() as daemon:
            code, out, _ = await world.hcm("add", "-", data=world.string("orders").encode())
            assert code == 3
            assert "metadata names no endpoint" in out
            assert "Start the service" not in out
            assert "relaycore entity update" in out
            with pytest.raises(relaycore.ServerBusy, match="the endpoint is not known"):
                await world.echoes("orders")
            assert " Degraded " in await world.ok("list")
            one = await world.status("orders")
            assert (one["status"], one["relay_leg"]) == ("Degraded", "Connected")
            assert one["rejected"] == {"no-endpoint": 1}
            (address,) = json.loads(bytes(daemon.out))["metrics"]
            assert await fetch_page(address, "/readyz") == 503
            code, out, _ = await world.hcm("doctor", "orders")
            assert code == 3
            assert " warn last error" in out
            code, out, _ = await world.hcm("test", "orders")
            assert code == 7
            assert "relaycore entity update" in out


async def fetch_page(address, path):
    """The status of one of the daemon's pages."""
    host, _, port = address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return int(bytes(await stream.receive_some()).split()[1])


async def test_the_table_says_why_the_status_is_so(world_of):
    """8.11: the endpoint is down as well, but that is not why it is Unauthorized."""
    async with world_of("orders") as world:
        string = world.string("orders")
        world.write(
            world.entry("orders", more='health = { interval = "0.1s", fall = 1 }').replace(
                key_of(string), "A" * 43 + "="
            )
        )
        async with world.daemon():
            world.endpoint.down()
            await world.settled("orders", status="Unauthorized", endpoint_leg="Down")
            out = await world.ok("status", "--once")
            assert "did not take the token" in out
            assert "ECONNREFUSED" not in out
            one = await world.status("orders")
            assert "did not take the token" in one["relay_error"]
            assert "ECONNREFUSED" in one["endpoint_error"]
            _, out, _ = await world.hcm("doctor", "orders")
            assert "last error" in out
            assert "did not take the token" in out.partition("last error")[2]


async def test_add_hands_paths_to_the_daemon(world_of):
    """A certificate authority is a path, which JSON has no type for."""
    async with world_of("orders") as world, world.daemon():
        authority = world.directory / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(authority))
        key = world.directory / "key"
        key.touch(mode=0o600)
        string = world.string("orders")
        key.write_text(key_of(string))
        without_key = string.replace(f"SharedAccessKey={key_of(string)};", "")
        options = ("--cafile", str(authority), "--key-file", str(key))
        code, out, err = await world.hcm("add", "-", *options, data=without_key.encode())
        assert code == 0, (out, err)
        saved = (world.directory / "relaycore.d" / "orders.toml").read_text()
        assert f'ca_file = "{authority}"' in saved
        assert f'file = "{key}"' in saved
        assert await world.echoes("orders")


async def test_add_refuses_what_is_no_connection_string(world_of):
    async with world_of() as world:
        for text in ("nonsense", "Endpoint=sb://relay.example/"):
            code, _, err = await world.hcm("add", "-", data=text.encode())
            assert code == 3, err
        code, _, _ = await world.hcm("add", "-", "--key-file", "a", "--key-env", "B")
        assert code == 2
        assert not (world.directory / "relaycore.d").exists()


async def test_add_json_is_as_hcm_prints_it(world_of):
    async with world_of("orders") as world, world.daemon():
        found = json.loads(await world.ok("add", "-", "--json", data=world.string("orders").encode()))
        assert list(found)[:8] == [
            "Namespace",
            "Name",
            "Endpoint",
            "Status",
            "NumberOfListeners",
            "ServiceBusEndpoint",
            "CreatedOn",
            "LastUpdated",
        ]
        assert found["Status"] == "Connected"
        assert found["CreatedOn"].endswith("Z")
        assert all(finding["level"] == "ok" for finding in found["findings"])


# remove --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [True, False], ids=["daemon", "none"])
async def test_remove_takes_out_what_was_added(world_of, runs):
    async with world_of("orders", "files") as world:
        path = world.write(world.entry("files"))
        await world.ok("add", "-", "--no-wait", data=world.string("orders").encode())

        async def remove():
            out = await world.ok("remove", "-ns", "127.0.0.1", "-n", "orders")
            assert out == f"orders is removed from {world.directory}/relaycore.d/orders.toml\n"
            code, _, err = await world.hcm("remove", "files")
            assert code == 3
            assert f"'files' stands at {path}:" in err
            code, _, err = await world.hcm("remove", "filez")
            assert code == 3
            assert "did you mean 'files'?" in err

        if not runs:
            await remove()
        else:
            async with world.daemon():
                await world.settled("orders", status="Connected")
                await remove()
                assert [one["name"] for one in (await world.json("status"))["connections"]] == ["files"]
                assert not await world.is_served("orders")
        assert [one["Name"] for one in await world.json("list")] == ["files"]


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("remove", "the daemon takes orders out of its settings and leaves the relay; where the relay does not answer"),
        ("drain", "waiting for open connections to end, until the drain timeout cuts them"),
        ("pause", "waiting for the daemon to answer"),
    ],
)
async def test_what_takes_long_says_what_it_waits_for(tmp_path, verb, said):
    """8.11. A relay that is mute, connections that stay, a daemon that hangs."""
    may_answer = trio.Event()

    async def wait(arguments, emit):
        await may_answer.wait()
        return {"name": "orders", "file": "a.toml"} if verb == "remove" else ["orders"]

    path = tmp_path / "hcm.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, path, {verb: wait}))
        async with run_program("hcm", verb, "orders", "--socket", str(path)) as command:
            await command.wait_err(said)
            may_answer.set()
            assert await command.exit_code() == 0
            assert command.out.startswith(b"orders")
        nursery.cancel_scope.cancel()


# pause, resume, restart, drain ---------------------------------------------------------------------------------------


async def test_pause_and_resume(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon():
            await world.settled("orders", status="Connected")
            async with world.sender("orders") as stream:
                assert "orders: takes no new connections" in await world.ok("pause", "orders")
                await world.settled("orders", status="Paused", listeners_here=0)
                assert not await world.is_served("orders")
                await stream.send_all(b"still")
                assert await stream.receive_some() == b"still"
            await world.ok("resume", "--all")
            await world.settled("orders", status="Connected")
            assert await world.echoes("orders")
            await world.ok("restart", "-n", "orders")
            await world.settled("orders", status="Connected")
            assert await world.echoes("orders")


async def test_drain_waits_for_the_open_connections(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon():
            await world.settled("orders", status="Connected")
            drained = []
            async with trio.open_nursery() as nursery:

                async def drain():
                    drained.append(await world.ok("drain", "orders"))

                async with world.sender("orders") as stream:
                    await stream.send_all(b"still")
                    assert await stream.receive_some() == b"still"
                    nursery.start_soon(drain)
                    await world.settled("orders", status="Draining", open=1)
                    assert not drained
            assert drained == ["orders: takes no new connections, and no old one is open\n"]


async def test_steering_needs_a_name_or_all(world_of):
    async with world_of() as world:
        for words in (["pause"], ["pause", "a", "--all"], ["show"]):
            code, _, err = await world.hcm(*words)
            assert code == 2, err
        code, _, err = await world.hcm("pause", "a")
        assert code == 1
        assert "there is no running program" in err


# list, show ----------------------------------------------------------------------------------------------------------


async def test_show_and_list(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon():
            await world.settled("orders", status="Connected", endpoint_leg="Up")
            async with world.sender("orders") as stream:
                await stream.send_all(b"hello")
                await stream.receive_some()
                text = await world.ok("show", "orders")
                assert "relay leg          Connected, 1 of 1 listener here" in text
                assert f"{world.endpoint.address}" in text.splitlines()[-1]
                found = json.loads(await world.ok("show", "-ns", "127", "-n", "ORDERS", "--json"))
                assert found["Status"] == found["status"] == "Connected"
                assert found["sessions"][0]["endpoint"] == world.endpoint.address
            assert "orders" in await world.ok("list")
            code, _, err = await world.hcm("show", "order")
            assert code == 3
            assert "did you mean 'orders'?" in err


async def test_show_writes_other_forms_and_import_reads_them(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        key = key_of(world.string("orders"))
        hidden = await world.ok("show", "orders", "--as", "hcm")
        assert key not in hidden
        text = await world.ok("show", "orders", "--as", "hcm", "--with-key")
        assert key in text
        world.write("")
        (world.directory / "connections.json").write_text(text)
        out = await world.ok("import", "connections.json", "--dry-run")
        assert out.startswith("orders: ")
        assert await world.json("list") == []
        await world.ok("import", "connections.json")
        assert [one["Name"] for one in await world.json("list")] == ["orders"]


# test, doctor --------------------------------------------------------------------------------------------------------


async def test_test_dials_the_endpoint(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        assert "connected to 127.0.0.1" in await world.ok("test", world.endpoint.address)
        assert "connected to 127.0.0.1" in await world.ok("test", "orders")
        async with world.daemon():
            assert f"endpoint {world.endpoint.address}: 127.0.0.1 answered in" in await world.ok("test", "orders")
            world.endpoint.down()
            code, out, _ = await world.hcm("test", "orders")
            assert code == 7
            assert "ECONNREFUSED" in out
            code, out, _ = await world.hcm("test", world.endpoint.address)
            assert code == 7
            code, _, err = await world.hcm("test", "other")
            assert code == 3
            assert "no connection is called 'other'" in err
        code, out, _ = await world.hcm("test", "nothing.invalid")
        assert code == 5
        assert "nothing.invalid" in out


async def test_doctor_looks_at_everything(world_of):
    async with world_of("orders", "files") as world:
        world.write(world.entry("orders"), world.entry("files", path="missing"))
        code, out, _ = await world.hcm("doctor", "orders")
        assert code == 0, out
        assert " warn there is no running program" in out
        assert f"a firewall has to let out: TCP 127.0.0.1:{world.relay.port}, TCP {world.endpoint.address}" in out
        async with world.daemon():
            await world.settled("files", status="NotFound")
            bundle = world.directory / "bundle"
            code, out, _ = await world.hcm("doctor", "--bundle", str(bundle))
            assert code == 6
            assert "knows no hybrid connection missing" in out
            for said in (f"the relay's version: relaycore {relaycore.__version__}", "limits: none are set"):
                assert said in out
                assert said in bundle.read_text()
            assert out.index("orders:") < out.index("files:")
        world.write("[hcm]\nx = 1")
        code, out, _ = await world.hcm("doctor")
        assert code == 3


# events, logs --------------------------------------------------------------------------------------------------------


async def test_events_and_logs_follow(world_of):
    from programs import run_program

    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            async with (
                run_program("hcm", "events", "--json", "orders", environ=world.environ) as events,
                run_program("hcm", "logs", "-f", environ=world.environ) as logs,
            ):
                await events.wait_out('"connected"')
                await logs.wait_out("connected")
                await world.ok("pause", "orders")
                await events.wait_out('"paused"')
                await logs.wait_out("paused")
                logs.signal(signal.SIGINT)
                assert await logs.exit_code() == 130
                daemon.signal(signal.SIGTERM)
                await events.exit_code()
            kinds = [json.loads(line)["kind"] for line in events.out.decode().splitlines()]
            assert kinds[0] == "added"
            assert "paused" in kinds
            assert "Traceback" not in events.err.decode()
