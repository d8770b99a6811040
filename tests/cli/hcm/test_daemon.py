"""The daemon as a program: what it serves, what it is told by signals and files, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import partial

import pytest
import trio

import relaycore


async def test_it_serves_tells_and_ends(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            ready = json.loads(bytes(daemon.out))
            assert ready["connections"] == 1
            assert ready["pid"] == daemon.process.pid
            await daemon.wait_err("orders: added: ")
            await world.settled("orders", status="Connected", endpoint_leg="Up")
            assert await world.echoes("orders")
            table = (await world.ok("status")).splitlines()
            assert "1 connection" in table[0]
            assert table[1].split()[:3] == ["NAME", "STATUS", "LISTENERS"]
            assert table[2].split()[:5] == ["orders", "Connected", "1", "(1", "here)"]
            daemon.signal(signal.SIGTERM)
            assert await daemon.exit_code() == 0
        code, _, err = await world.hcm("status")
        assert code == 1
        assert "start it with: relaycore hcm run" in err


async def test_an_open_connection_may_end_after_sigterm(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            async with world.sender("orders") as stream:
                await stream.send_all(b"one")
                assert await stream.receive_some() == b"one"
                daemon.signal(signal.SIGTERM)
                await daemon.wait_err("stopping")
                await stream.send_all(b"two")
                assert await stream.receive_some() == b"two"
                code, _, err = await world.hcm("reload")
                assert code == 1
                assert "the daemon is stopping" in err
                while await world.is_served("orders"):  # it leaves the relay
                    pass
                assert daemon.process.returncode is None
            assert await daemon.exit_code() == 0


async def test_a_second_signal_ends_it_at_once(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            async with world.sender("orders") as stream:
                await stream.send_all(b"one")
                await stream.receive_some()
                daemon.signal(signal.SIGINT)
                await daemon.wait_err("stopping")
                await trio.sleep(0.6)  # within half a second, a signal says the same again
                daemon.signal(signal.SIGINT)
                assert await daemon.exit_code() == 130


@pytest.mark.parametrize("how", ["signal", "file", "command"])
async def test_settings_are_read_anew(world_of, how):
    async with world_of("orders", "files") as world:
        world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            before = await world.settled("orders", status="Connected")
            world.write(world.entry("orders"), world.entry("files"))
            if how == "signal":
                daemon.signal(signal.SIGHUP)
            elif how == "command":
                out = await world.ok("reload")
                assert out.splitlines() in (
                    ["+ files"],
                    ["nothing has changed"],
                )  # the change of the file may come first
            await world.settled("files", status="Connected")
            assert (await world.settled("orders"))["since_unix"] == before["since_unix"]
            assert await world.echoes("files")


async def test_wrong_settings_leave_those_in_force(world_of):
    async with world_of("orders") as world:
        path = world.write(world.entry("orders"))
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            world.write(world.entry("orders", more="listenerz = 2"))
            await daemon.wait_err("reload-failed")
            code, _, err = await world.hcm("reload")
            assert code == 3
            assert f"{path}:5" in err
            assert "listeners" in err
            assert (await world.settled("orders"))["status"] == "Connected"
            world.write(world.entry("orders", more="listeners = 2"))
            await world.settled("orders", listeners_here=2)


async def test_a_second_daemon_is_told_of_the_first(world_of):
    async with world_of() as world, world.daemon() as daemon:
        code, _, err = await world.hcm("run")
        assert code == 3
        assert f"process {daemon.process.pid} already answers" in err


async def test_wrong_settings_are_no_start(world_of):
    async with world_of() as world:
        world.write("[hcm]\nconnectoin = 1")
        code, _, err = await world.hcm("run")
        assert code == 3
        assert "connection" in err


async def test_a_port_for_metrics_that_is_taken_is_no_start(world_of):
    async with world_of() as world:
        world.write(f'[hcm.metrics]\nlisten = "{world.endpoint.address}"')
        code, _, err = await world.hcm("run")
        assert code == 9
        assert "another program listens there" in err


async def get(address, path):
    host, _, port = address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        kept = b""
        async for piece in stream:
            kept += piece
    head, _, body = kept.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def test_metrics_and_health(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"), '[hcm.metrics]\nlisten = "127.0.0.1:0"')
        async with world.daemon() as daemon:
            (address,) = json.loads(bytes(daemon.out))["metrics"]
            await world.settled("orders", status="Connected", endpoint_leg="Up")
            assert await get(address, "/healthz") == (200, "ok\n")
            assert await get(address, "/readyz") == (200, "1 of 1 connection Connected\norders: Connected\n")
            assert await world.echoes("orders")
            await world.settled("orders", open=0)
            status, text = await get(address, "/metrics")
            assert status == 200
            assert 'relaycore_edge_relay_up{name="orders"} 1.0\n' in text
            assert 'relaycore_edge_connections_total{name="orders",result="closed"} 1.0\n' in text
            assert 'relaycore_edge_dial_seconds_count{name="orders"} 1.0\n' in text
            assert 'relaycore_edge_rendezvous_seconds_count{name="orders"} 1.0\n' in text
            assert 'relaycore_edge_token_expires_seconds{name="orders"}' in text
            assert f'relaycore_edge_endpoint_up{{name="orders",target="{world.endpoint.address}"}} 1.0\n' in text
            await world.ok("pause", "orders")
            assert (await get(address, "/readyz"))[0] == 503
            # Its own address may change while it runs.
            path = world.directory / "pages.sock"
            world.write(world.entry("orders"), f'[hcm.metrics]\nlisten = "unix:{path}"')
            await world.ok("reload")
            while not path.exists():
                await trio.sleep(0.01)
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_events_are_posted_and_the_webhook_may_move(world_of):
    """connection manager 6 (relay 86)."""
    got: list[bytes] = []

    async def take(stream: trio.SocketStream) -> None:
        kept = b""
        while b"}" not in kept and (piece := await stream.receive_some()):
            kept += piece
        got.append(kept)
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with world_of("orders") as world, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        hook = f'[hcm.webhook]\nurl = "{url}/one"\nevents = ["connected", "paused"]'
        world.write(world.entry("orders"), hook)
        async with world.daemon():
            await world.settled("orders", status="Connected")
            while len(got) < 1:
                await trio.sleep(0.01)
            head, _, body = got[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /one ")
            assert json.loads(body)["kind"] == "connected"
            world.write(world.entry("orders"), hook.replace("/one", "/two"))
            await world.ok("reload")
            while not any(post.startswith(b"POST /two ") for post in got):
                await world.ok("pause", "orders")
                await world.ok("resume", "orders")
        nursery.cancel_scope.cancel()


async def test_the_last_events_are_posted_before_it_ends(world_of):
    """connection manager 6 (relay 86): the end of a program is what one wants to hear of."""
    got: list[str] = []

    async def take(stream: trio.SocketStream) -> None:
        kept = b""
        while b"}" not in kept and (piece := await stream.receive_some()):
            kept += piece
        await trio.sleep(0.02)
        got.append(json.loads(kept.partition(b"\r\n\r\n")[2])["kind"])
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with world_of("orders") as world, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        kinds = ["stopping", "drained", "stopped"]
        world.write(world.entry("orders"), f'[hcm.webhook]\nurl = "{url}"\nevents = {kinds}')
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            daemon.signal(signal.SIGTERM)
            assert await daemon.exit_code() == 0
            assert b"stopped: the relay is left" in daemon.err
        assert got == kinds
        nursery.cancel_scope.cancel()


async def test_a_webhook_that_is_silent_does_not_keep_it(world_of):
    async def hear(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    async with world_of("orders") as world, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, hear, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        world.write(world.entry("orders"), f'[hcm.webhook]\nurl = "{url}"\ntimeout = "60s"')
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            daemon.signal(signal.SIGTERM)
            assert await daemon.exit_code() == 0
            assert b"events are lost" in daemon.err
        nursery.cancel_scope.cancel()


async def test_the_service_manager_is_told(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(world.directory / "notify"))
            manager.setblocking(False)
            world.environ |= {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"}

            async def hear(wanted: str) -> str:
                while True:
                    await trio.lowlevel.wait_readable(manager)
                    text = manager.recv(4096).decode()
                    if wanted in text:
                        return text

            async with world.daemon() as daemon:
                assert (await hear("READY=1")).startswith("READY=1\nSTATUS=")
                await hear("WATCHDOG=1")
                await hear("STATUS=1 of 1 connection Connected")
                daemon.signal(signal.SIGHUP)
                assert "MONOTONIC_USEC=" in await hear("RELOADING=1")
                await hear("READY=1")
                daemon.signal(signal.SIGTERM)
                await hear("STOPPING=1")
                assert await daemon.exit_code() == 0


async def test_it_needs_no_file_but_only_the_environment(world_of):
    async with world_of("orders") as world:
        del world.environ["RELAYCORE_CONFIG"]
        keyless, _, key = world.string("orders").partition("SharedAccessKey=")
        key, _, rest = key.partition(";")
        world.environ |= {
            "HOME": "/nonexistent",
            "ORDERS_KEY": key,
            "RELAYCORE__HCM__CONNECTION__0__KEY__ENV": "ORDERS_KEY",
            "XDG_CONFIG_HOME": str(world.directory / "none"),
            "RELAYCORE__HCM__CONNECTION__0__NAME": "orders",
            "RELAYCORE__HCM__CONNECTION__0__CONNECTION_STRING": keyless + rest,
            "RELAYCORE__HCM__CONNECTION__0__ENDPOINT": world.endpoint.address,
        }
        async with world.daemon() as daemon:
            await world.settled("orders", status="Connected")
            assert await world.echoes("orders")
            assert key.encode() not in bytes(daemon.err)


async def test_no_secret_is_in_what_it_says(world_of):
    async with world_of("orders") as world:
        world.write(world.entry("orders"))
        key = world.string("orders").partition("SharedAccessKey=")[2].partition(";")[0]
        async with world.daemon("--log-level", "debug") as daemon:
            await world.settled("orders", status="Connected", endpoint_leg="Up")
            assert await world.echoes("orders")
            said = bytes(daemon.out + daemon.err).decode()
            for words in (
                ["status", "--json"], ["list", "--json"], ["show", "orders"], ["events", "--recent"], ["logs"],
                ["config", "show", "--effective", "--origin"], ["doctor", "--bundle", "bundle.txt"],
            ):  # fmt: skip
                said += await world.ok(*words)
            said += (world.directory / "bundle.txt").read_text()
            assert os.stat(world.directory / "bundle.txt").st_mode & 0o777 == 0o600
        assert key not in said
        assert "sig=" not in said


async def test_log_lines_have_names_and_the_tracking_id(world_of):
    """manager 8.10: stable event names, and the id under which the relay logs a connection; joins at DEBUG."""
    identity = "0d5c4a9e-6f0f-4d6e-8f1a-3b1f0f3f7a11"
    async with world_of("orders", "dead") as world:
        down = 'dial = { timeout = "1s" }\nhealth = { probe = "none" }'
        world.write(world.entry("orders"), world.entry("dead", "127.0.0.1:9", more=down))
        async with world.daemon("--log-format", "json", "--log-level", "debug") as daemon:
            await world.settled("orders", status="Connected")
            await world.settled("dead", relay_leg="Connected")
            async with relaycore.open_stream(world.string("orders", "Send"), tracking_id=identity) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
            with pytest.raises(relaycore.Refused):
                async with relaycore.open_stream(world.string("dead", "Send"), tracking_id=identity):
                    pass
            await daemon.wait_err("hcm.ended")
            await daemon.wait_err("hcm.refused")
            lines = [json.loads(line) for line in bytes(daemon.err).splitlines()]
            found = {line["event"]: line for line in lines if line.get("event", "").startswith("hcm.")}
            joined, ended, refused = found["hcm.joined"], found["hcm.ended"], found["hcm.refused"]
            assert all(line["tracking_id"].startswith(identity) for line in (joined, ended, refused))
            assert (joined["level"], joined["name"], joined["endpoint"]) == ("debug", "orders", world.endpoint.address)
            assert (ended["bytes_in"], ended["bytes_out"]) == (5, 5)
            assert (refused["level"], refused["name"]) == ("warning", "dead")
            assert "127.0.0.1" in refused["text"]
            told = [json.loads(line) for line in (await world.ok("events", "--json", "--recent")).splitlines()]
            assert [one["tracking_id"] for one in told if one["kind"] == "refused"] == [refused["tracking_id"]]
            assert not {"joined", "ended"} & {one["kind"] for one in told}
