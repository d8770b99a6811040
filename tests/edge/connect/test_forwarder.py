"""Programs' connections on local addresses, through a real relay, to a real listener and its endpoint."""

from __future__ import annotations

import os
import socket

import pytest
import trio
from links import (
    PORT,
    address_of,
    changed,
    echo,
    next_event,
    open_link,
    open_server,
    receive_all,
    reset,
    running,
)

import relaycore
from relaycore.client.management import Entity, ManagementClient
from relaycore.edge.config.settings import ConnectSettings, Forward, ListenAt, RelaySettings, RetrySettings
from relaycore.edge.connect.forwarder import Forwarder, open_connect
from relaycore.edge.connect.status import ForwardState
from relaycore.errors import ConfigError

BLOB = os.urandom(700_001)


async def test_bytes_both_ways_and_the_reply_after_a_half_close():
    """manager 8.6: the end of a program's data is passed on alone, and the reply to it arrives."""

    async def reply_to_the_end(stream: trio.SocketStream) -> None:
        async with stream:
            got = await receive_all(stream)
            await stream.send_all(b"%d bytes and the end" % len(got))
            await stream.send_eof()

    async with open_link() as link, open_server(reply_to_the_end) as endpoint:
        await link.publish("sql", endpoint)
        async with running(link.forward("sql")) as forwarder:
            async with await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program:
                await program.send_all(BLOB)
                await program.send_eof()
                assert await receive_all(program) == b"700001 bytes and the end"
            await settled(forwarder)
            [status] = forwarder.status().forwards
            assert (status.accepted, status.open, status.refused, status.lost) == (1, 0, 0, 0)
            assert (status.bytes_out, status.bytes_in) == (len(BLOB), 24)
            assert status.state is ForwardState.LISTENING
            assert status.handshake_s is not None
            assert status.last_error == ""


async def settled(forwarder: Forwarder) -> None:
    while any(status.open or status.dialling for status in forwarder.status().forwards):
        await trio.sleep(0.001)


async def test_the_endpoints_end_comes_alone_too():
    heard = trio.Event()

    async def end_first(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"that is all")
            await stream.send_eof()
            assert await receive_all(stream) == BLOB
            heard.set()

    async with open_link() as link, open_server(end_first) as endpoint:
        await link.publish("sql", endpoint)
        async with (
            running(link.forward("sql")) as forwarder,
            await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program,
        ):
            assert await receive_all(program) == b"that is all"
            await program.send_all(BLOB)
            await program.send_eof()
            await heard.wait()


async def test_a_reset_of_the_program_reaches_the_endpoint():
    broken = trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        await stream.send_all(b"go on")
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stream)
        broken.set()

    async with open_link() as link, open_server(watch) as endpoint:
        await link.publish("sql", endpoint)
        async with running(link.forward("sql")) as forwarder:
            events = forwarder.events()
            program = await trio.open_tcp_stream(*address_of(forwarder, "sql"))
            assert await program.receive_some() == b"go on"
            await reset(program)
            await broken.wait()
            event = await next_event(events, "lost")
            assert event.name == "sql"
            assert "the first stream was lost" in event.text
            await settled(forwarder)
            [status] = forwarder.status().forwards
            assert (status.lost, status.refused) == (1, 0)


async def test_a_reset_of_the_endpoint_reaches_the_program():
    async def hang_up(stream: trio.SocketStream) -> None:
        assert await stream.receive_some() == b"hello"
        await reset(stream)

    async with open_link() as link, open_server(hang_up) as endpoint:
        await link.publish("sql", endpoint)
        async with (
            running(link.forward("sql")) as forwarder,
            await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program,
        ):
            await program.send_all(b"hello")
            with pytest.raises(trio.BrokenResourceError):
                await program.receive_some()


@pytest.mark.parametrize("fail_fast", [True, False])
async def test_a_refusal_resets_the_program_and_says_why(fail_fast):
    """manager 8.6: what cannot be carried is reset; the reason stands in events and status."""
    async with open_link() as link:
        await link.relay.create_entity("sql")
        forward = link.forward("sql", fail_fast=fail_fast, retry=RetrySettings(timeout_s=5.0, attempts=1))
        async with running(forward) as forwarder:
            events = forwarder.events()
            async with await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program:
                event = await next_event(events, "refused")
                if not fail_fast:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await program.send_all(b"x")
                with pytest.raises(trio.BrokenResourceError):
                    await program.receive_some()
            assert event.text.startswith(f"connecting to sql at 127.0.0.1:{link.relay.port}: 404 ")
            assert "nobody listens there" in event.text
            [status] = forwarder.status().forwards
            assert status.last_error == event.text
            assert (status.accepted, status.refused, status.open, status.dialling) == (1, 1, 0, 0)


async def test_stopping_resets_a_program_that_was_refused_and_has_not_spoken():
    """A socket left open would warn, and warnings are errors."""
    async with open_link() as link:
        await link.relay.create_entity("sql")
        forward = link.forward("sql", fail_fast=False, retry=RetrySettings(timeout_s=5.0, attempts=1))
        async with running(forward) as forwarder:
            events = forwarder.events()
            async with await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program:
                await next_event(events, "refused")
                await forwarder.stop(0)
                with pytest.raises(trio.BrokenResourceError):
                    await program.receive_some()


async def test_a_wrong_key_and_a_missing_right_are_told_apart_and_not_tried_again():
    async with open_link() as link:
        await link.relay.create_entity("sql")
        wrong = link.forward("sql")
        wrong = changed(wrong, name="wrong", key=type(wrong.key)("inline", "d3Jvbmc="))
        listen_only = changed(link.forward("sql", rights=("Listen",)), name="right")
        async with running(wrong, listen_only, link.forward("nowhere")) as forwarder:
            for name, words in (
                ("wrong", ("401", "does not take rule TestSend")),
                ("right", ("rule TestListen", "no right to send")),
                ("nowhere", ("404", "knows no nowhere")),
            ):
                events = forwarder.events()
                async with await trio.open_tcp_stream(*address_of(forwarder, name)) as program:
                    with pytest.raises(trio.BrokenResourceError):
                        await program.receive_some()
                text = (await next_event(events, "refused")).text
                assert all(word in text for word in words), text
            assert {status.retries for status in forwarder.status().forwards} == {0}


async def test_another_listener_gets_a_second_attempt():
    """manager 8.6: a refusal with 503 is met with another attempt at once."""
    refusals = 1

    async def moody(invitation: relaycore.IncomingConnection) -> relaycore.Accept | relaycore.Reject:
        nonlocal refusals
        refusals -= 1
        return relaycore.Reject(503, "not now") if refusals >= 0 else relaycore.Accept()

    async with open_link() as link, open_server(echo):
        await link.relay.create_entity("sql")
        async with (
            relaycore.open_listener(link.relay.connection_string("sql"), accept=moody) as listener,
            running(link.forward("sql")) as forwarder,
        ):
            events = forwarder.events()
            async with (
                await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program,
                await listener.accept() as connection,
            ):
                await program.send_all(b"still here")
                await program.send_eof()
                assert await receive_all(connection) == b"still here"
            event = await next_event(events, "retry")
            assert "503 not now" in event.text
            assert event.text.endswith("trying again at once")
            await settled(forwarder)
            [status] = forwarder.status().forwards
            assert (status.retries, status.refused, status.accepted) == (1, 0, 1)


async def test_a_program_that_leaves_while_it_waits_ends_the_attempt():
    async with open_link() as link:
        await link.relay.create_entity("sql")
        invited = trio.Event()

        async def never(invitation: relaycore.IncomingConnection) -> relaycore.Accept:
            invited.set()
            await trio.sleep_forever()
            raise AssertionError

        async with (
            relaycore.open_listener(link.relay.connection_string("sql"), accept=never),
            running(link.forward("sql")) as forwarder,
        ):
            events = forwarder.events()
            program = await trio.open_tcp_stream(*address_of(forwarder, "sql"))
            await invited.wait()
            await reset(program)
            assert (await next_event(events, "left")).name == "sql"
            [status] = forwarder.status().forwards
            assert (status.left, status.dialling, status.refused) == (1, 0, 0)


async def test_many_forwards_share_a_port():
    """manager 7: each has an address of its own, so that all have the endpoint's port."""
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        forwards = [changed(link.forward("sql"), name=f"copy{number}") for number in range(200)]
        async with running(*forwards) as forwarder:
            addresses = {address_of(forwarder, forward.name) for forward in forwards}
            assert len(addresses) == 200
            assert {port for _, port in addresses} == {PORT}
            for address in sorted(addresses)[:3]:
                async with await trio.open_tcp_stream(*address) as program:
                    await program.send_all(b"hello")
                    assert await program.receive_some() == b"hello"


async def test_a_unix_socket_has_its_mode_and_its_file_goes_with_it(tmp_path):
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        path = tmp_path / "sql.sock"
        forward = link.forward("sql", listen=(ListenAt("unix", path=str(path), mode=0o660),))
        async with running(forward) as forwarder:
            assert path.stat().st_mode & 0o777 == 0o660
            assert forwarder.status().forwards[0].listen == (f"unix:{path}",)
            async with await trio.open_unix_socket(path) as program:
                await program.send_all(b"hello")
                await program.send_eof()
                assert await receive_all(program) == b"hello"
        assert not path.exists()


async def test_addresses_are_the_same_after_a_restart(tmp_path):
    async with open_link() as link:
        file = tmp_path / "state" / "loopback.json"
        names = [f"f{number}" for number in range(5)]
        async with running(*(link.forward(name) for name in names), state_file=file) as forwarder:
            first = {name: address_of(forwarder, name) for name in names}
        async with running(*(link.forward(name) for name in reversed(names)), state_file=file) as forwarder:
            assert {name: address_of(forwarder, name) for name in names} == first


async def test_names_lead_to_forwards():
    async with open_link() as link:
        sql = link.forward("sql", hosts=("SQL.corp.test", "sql"))
        web = link.forward("web", hosts=("*.web.test",), port=0, listen=(ListenAt("tcp", "auto", PORT + 1),))
        async with running(sql, web) as forwarder:
            for host in ("sql.corp.test", "sql.CORP.test.", "sql", address_of(forwarder, "sql")[0]):
                assert forwarder.lookup(host, PORT) == sql
            assert forwarder.lookup("sql", PORT + 1) is None
            assert forwarder.lookup("elsewhere", PORT) is None
            assert forwarder.lookup("a.b.web.test", PORT + 1) == web
            assert forwarder.lookup("web.test", PORT + 1) is None
            assert [(item.host, item.port) for item in forwarder.redirections()] == [
                ("sql.corp.test", PORT),
                ("sql", PORT),
                ("*.web.test", PORT + 1),
            ]


async def shout(stream: trio.SocketStream) -> None:
    """Send everything back in capitals."""
    async for data in stream:
        await stream.send_all(data.upper())


async def test_ports_of_one_name_are_reached_at_its_one_address(tmp_path):
    """App Service tells hybrid connections apart by host and port together. Without the other it is as it was."""
    async with open_link() as link, open_server(echo) as endpoint, open_server(shout) as other:
        await link.publish("ssh", endpoint)
        await link.publish("web", other)
        ssh = link.forward("ssh", hosts=("box.test",))
        web = link.forward("web", hosts=("Box.test.",), port=PORT + 1)
        async with running(web) as forwarder:
            own = address_of(forwarder, "web")
        async with running(ssh, web) as forwarder:
            [(address, _), (again, _)] = [(one.address, one.port) for one in forwarder.redirections()]
            assert address == again == address_of(forwarder, "ssh")[0]
            for port, answer in ((PORT, b"hello"), (PORT + 1, b"HELLO")):
                async with await trio.open_tcp_stream(address, port) as program:
                    await program.send_all(b"hello")
                    assert await program.receive_some() == answer
            assert (forwarder.lookup(address, PORT), forwarder.lookup(address, PORT + 1)) == (ssh, web)
            assert [set(one.names.values()) for one in forwarder.status().forwards] == [{address}] * 2
            assert address_of(forwarder, "web") == own
            # Whoever has its own port and name is left where he is.
            events = forwarder.events()
            forwarder.reload(ConnectSettings(forwards=(web,)))
            await next_event(events, "removed")
            assert [one.address for one in forwarder.redirections()] == [own[0]]
            await trio.testing.wait_all_tasks_blocked()
            assert forwarder.status().forwards[0].listen == (f"{own[0]}:{own[1]}",)
            forwarder.reload(ConnectSettings(forwards=(ssh, web)))
            assert [one.address for one in forwarder.redirections()] == [address] * 2
            async for event in events:
                if event.kind == "listening" and event.text == f"on {address}:{PORT + 1}":
                    break


async def test_a_forward_that_comes_to_a_name_leaves_its_address(tmp_path):
    """Wherever it stands in the settings: hosts files have the address."""
    async with open_link() as link:
        web = link.forward("web", hosts=("box.test",))
        ssh = link.forward("ssh", hosts=("box.test",), port=PORT + 1)
        async with running(web, state_file=tmp_path / "loopback.json") as forwarder:
            [before] = forwarder.redirections()
            forwarder.reload(ConnectSettings(forwards=(ssh, web)))
            assert {one.address for one in forwarder.redirections()} == {before.address}
        async with running(ssh, web, state_file=tmp_path / "loopback.json") as forwarder:
            assert {one.address for one in forwarder.redirections()} == {before.address}


async def test_a_name_of_the_relays_own_text_shares_its_address(tmp_path):
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("ssh", endpoint)
        text = f'[{{"key":"endpoint","value":"box.test:{PORT + 1}"}}]'
        await link.relay.create_entity("web", user_metadata=text)
        ssh = link.forward("ssh", hosts=("box.test",))
        web = link.forward("web", hosts=(), port=0)
        async with running(web, ssh) as forwarder:
            [address] = {one.address for one in forwarder.redirections()}
            listening = {shown for one in forwarder.status().forwards for shown in one.listen}
            assert {f"{address}:{PORT}", f"{address}:{PORT + 1}"} <= listening


async def test_names_lead_where_the_settings_listen(tmp_path):
    """And nowhere, where that is a Unix socket; the proxy port knows the name all the same."""
    async with open_link() as link:
        fixed = link.forward("fixed", listen=(ListenAt("tcp", "127.0.9.7", PORT),))
        unix = link.forward("unix", listen=(ListenAt("unix", path=str(tmp_path / "s")),))
        async with running(fixed, unix) as forwarder:
            assert [(one.host, one.address) for one in forwarder.redirections()] == [("fixed.test", "127.0.9.7")]
            assert [str(target) for target in forwarder.targets()] == [f"fixed.test:{PORT}", f"unix.test:{PORT}"]
            assert forwarder.lookup("unix.test", PORT) == unix


async def test_a_reload_touches_only_what_has_changed():
    """manager 8.4: parse, diff, apply; unchanged forwards are not touched, removed ones drain."""
    async with open_link() as link, open_server(echo) as endpoint:
        for name in ("stays", "goes", "moves"):
            await link.publish(name, endpoint)
        stays, goes, moves = (link.forward(name) for name in ("stays", "goes", "moves"))
        async with running(stays, goes, moves) as forwarder:
            programs = [
                await trio.open_tcp_stream(*address_of(forwarder, forward.name)) for forward in (stays, goes, moves)
            ]
            for program in programs:
                await program.send_all(b"before")
                assert await program.receive_some() == b"before"
            gone = address_of(forwarder, "goes")
            old = address_of(forwarder, "moves")
            events = forwarder.events()
            plan = forwarder.reload(
                ConnectSettings(forwards=(stays, changed(moves, port=PORT + 2), link.forward("comes")))
            )
            assert (plan.added, plan.removed, plan.unchanged) == (("comes",), ("goes",), ("stays",))
            assert plan.changed == {"moves": ("port",)}
            assert plan.lines() == [
                "+ comes",
                "- goes: no new connections, those that are open go on",
                "~ moves: port",
            ]
            while (await next_event(events, "listening")).name != "moves":
                pass
            assert address_of(forwarder, "moves") == (old[0], PORT + 2)
            for address in (gone, old):
                with pytest.raises(OSError, match=r"."):
                    await trio.open_tcp_stream(*address)
            for program in programs:
                await program.send_all(b"after")
                assert await program.receive_some() == b"after"
            assert {status.name: status.state for status in forwarder.status().forwards}["goes"] is (
                ForwardState.DRAINING
            )
            for program in programs:
                await program.aclose()
            await settled(forwarder)
            assert "goes" not in {status.name for status in forwarder.status().forwards}


async def test_settings_that_cannot_work_leave_the_old_ones_in_force(tmp_path):
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        sql = link.forward("sql")
        async with running(sql) as forwarder:
            bad = changed(sql, relay=changed(sql.relay, cafile=tmp_path / "missing.pem"))
            with pytest.raises(ConfigError):
                forwarder.reload(ConnectSettings(forwards=(bad, link.forward("other"))))
            with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8"):
                forwarder.reload(ConnectSettings(forwards=(sql,), pool="10.0.0.0/8"))
            assert forwarder.forwards == (sql,)
            assert [event.kind for event in forwarder.recent_events].count("reload-failed") == 2
            async with await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program:
                await program.send_all(b"hello")
                assert await program.receive_some() == b"hello"


async def test_the_first_settings_have_to_work():
    with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8"):
        await Forwarder().run(ConnectSettings(pool="10.0.0.0/8"))


async def test_a_port_that_is_taken_is_opened_once_it_is_free(autojump_clock):
    relay = RelaySettings("main", "sb://127.0.0.1:1/", proxy="none", is_emulator=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = ListenAt("tcp", "127.0.0.1", taken.getsockname()[1])
        forward = Forward("sql", relay, "sql", hosts=("sql.test",), port=at.port, listen=(at,))
        async with running(forward) as forwarder:
            [status] = forwarder.status().forwards
            assert status.state is ForwardState.FAILED
            assert "another program listens there" in status.last_error
            events = forwarder.events()
            with trio.move_on_after(120):
                await next_event(events, "listening")
            assert [event.kind for event in forwarder.recent_events] == ["not-listening"]
            taken.close()
            await next_event(events, "listening")
            assert address_of(forwarder, "sql") == ("127.0.0.1", at.port)
            [status] = forwarder.status().forwards
            assert status.state is ForwardState.LISTENING


async def test_where_nothing_is_configured_the_relays_own_text_counts():
    """manager 1.4.2, 8.4: hosts and port come from the hybrid connection's user metadata."""
    text = '[{"key":"endpoint","value":"SqlDb.corp.test:27099"}]'
    async with open_link() as link, open_server(echo) as endpoint:
        await link.relay.create_entity("sql", user_metadata=text)
        await link.publish("sql", endpoint)
        forward = link.forward("sql", hosts=(), port=0, listen=())
        async with running(forward) as forwarder:
            assert address_of(forwarder, "sql")[1] == 27_099
            assert forwarder.lookup("sqldb.corp.test", 27_099) == forward
            async with await trio.open_tcp_stream(*address_of(forwarder, "sql")) as program:
                await program.send_all(b"hello")
                assert await program.receive_some() == b"hello"


@pytest.mark.parametrize("can_be_called_off", [True, False])
async def test_an_answer_about_old_settings_is_dropped(monkeypatch: pytest.MonkeyPatch, can_be_called_off: bool):
    """A reload while the relay is being asked: what it says of the old path is none of the new one's business."""
    original = ManagementClient.get_entity
    asked, may_answer = trio.Event(), trio.Event()

    async def get_entity(self: ManagementClient, path: str) -> Entity:
        found = await original(self, path)
        if path == "old":
            asked.set()
            with trio.CancelScope(shield=not can_be_called_off):
                await may_answer.wait()
        return found

    async with open_link() as link:
        for path in ("first", "old", "new"):
            text = f'[{{"key":"endpoint","value":"{path}.test:27098"}}]'
            await link.relay.create_entity(path, user_metadata=text)
        first = link.forward("first", name="sql", hosts=(), port=0)
        old, new = (changed(link.forward(path), name="sql", hosts=(), port=0) for path in ("old", "new"))
        async with running(first, listens=False) as forwarder:
            monkeypatch.setattr(ManagementClient, "get_entity", get_entity)
            events = forwarder.events()
            forwarder.reload(ConnectSettings(forwards=(old,)))
            await asked.wait()
            forwarder.reload(ConnectSettings(forwards=(new,)))
            if not can_be_called_off:
                may_answer.set()
            assert (await next_event(events, "resolved")).text == "new.test port 27098"
            [status] = forwarder.status().forwards
            assert (status.hosts, status.port) == (("new.test",), 27_098)
            assert "unresolved" not in [event.kind for event in forwarder.recent_events]


async def test_stop_lets_connections_end_and_cuts_what_stays():
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        forwarder = Forwarder(environ={})
        async with trio.open_nursery() as nursery:
            await nursery.start(forwarder.run, ConnectSettings(forwards=(link.forward("sql"),)))
            address = address_of(forwarder, "sql")
            programs = [await trio.open_tcp_stream(*address) for _ in range(2)]
            for program in programs:
                await program.send_all(b"x")
                assert await program.receive_some() == b"x"
            events = forwarder.events()
            nursery.start_soon(forwarder.stop, 0.5)
            await next_event(events, "stopping")
            with pytest.raises(OSError, match=r"."):
                await trio.open_tcp_stream(*address)
            await programs[0].send_all(b"last")
            await programs[0].send_eof()
            assert await receive_all(programs[0]) == b"last"
            with pytest.raises(trio.BrokenResourceError):
                await programs[1].receive_some()
            for program in programs:
                await program.aclose()
        assert [event.kind async for event in events][-1] == "stopped"


async def test_embedded_a_forward_is_dialled_by_name():
    """manager 8.1: a stream with an end of its own, from a name."""
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        async with open_connect(ConnectSettings(forwards=(link.forward("sql"),))) as connect:
            async with await connect.dial("sql") as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await receive_all(stream) == b"hello"
            assert connect.status().forwards[0].listen == ()
            with pytest.raises(ConfigError, match=r"no forward is called 'other'; there are: sql"):
                await connect.dial("other")


async def test_join_tells_both_outcomes_to_who_asks():
    async with open_link() as link, open_server(echo) as endpoint:
        await link.publish("sql", endpoint)
        await link.relay.create_entity("dead")
        told: list[object] = []

        async def note(error: Exception | None = None) -> None:
            told.append(error)

        dead = link.forward("dead", retry=RetrySettings(attempts=1))
        async with running(link.forward("sql"), dead) as forwarder, trio.open_nursery() as nursery:
            near, far = trio.testing.memory_stream_pair()

            async def join(name: str, stream) -> None:
                forward = forwarder.find(name)
                assert forward is not None
                await forwarder.join(stream, forward, early=b"early ", on_open=note, on_refused=note)

            nursery.start_soon(join, "sql", near)
            await far.send_all(b"and late")
            await far.send_eof()
            assert await receive_all(far) == b"early and late"
            near, far = trio.testing.memory_stream_pair()
            await join("dead", near)
            assert await receive_all(far) == b""
            assert told[0] is None
            assert isinstance(told[1], relaycore.NoListener)


async def test_a_forward_that_has_gone_refuses_who_still_knows_it():
    async with open_link() as link, running() as forwarder:
        near, far = trio.testing.memory_stream_pair()
        await forwarder.join(near, link.forward("gone"))
        assert await far.receive_some() == b""
        assert forwarder.recent_events[-1].kind == "refused"


async def test_names_of_relays_and_proxies_never_lead_to_us():
    """Else each connection of ours would come back to us and make the next."""
    relay = RelaySettings("own", "sb://Relay.corp.example:1433/", proxy="http://proxy.corp.example:3128")
    hosts = ("*.corp.example", "relay.corp.example", "sql.corp.example")
    forward = Forward("sql", relay, "sql", hosts=hosts, port=PORT)
    async with running(forward) as forwarder:
        assert forwarder.dialled_hosts() == {"relay.corp.example", "proxy.corp.example"}
        assert [found.host for found in forwarder.redirections()] == ["*.corp.example", "sql.corp.example"]
