"""``relaycore listen`` and ``relaycore send`` as programs, through a relay in this process."""

from __future__ import annotations

import functools
import hashlib
import os
import pty
import signal
import subprocess

import pytest
import trio
import trio.testing
from programs import finish, run_program

import relaycore
from relaycore.cli.exits import ExitCode
from relaycore.config import Config, ServerConfig
from relaycore.gateway.server import serve
from relaycore.store.sqlite import open_sqlite
from relaycore.testing import open_relay

VARIABLE = "RELAYCORE_CONNECTION_STRING"


@pytest.fixture
async def relay():
    async with open_relay() as relay:
        await relay.create_entity("demo")
        yield relay


@pytest.fixture
def environ(relay):
    return {VARIABLE: relay.connection_string()}


def key_of(relay) -> str:
    return relay.server.namespace.find_rule("RootManageSharedAccessKey").primary_key


# Bytes and their ends ------------------------------------------------------------------------------------------------


async def test_an_echo_comes_back_whole(environ):
    data = os.urandom(3_000_001)
    async with run_program("listen", "demo", environ=environ) as listener:
        await listener.wait_err("online")
        assert await finish("send", "demo", data=data, environ=environ) == (0, data, "")
        assert await finish("send", "demo", data=b"", environ=environ) == (0, b"", "")
        await listener.wait_err("connection 2 ended")


async def test_a_reply_after_the_end_of_the_request_arrives(environ):
    """failures: half-close loses the reply."""
    data = os.urandom(1_000_000)
    async with run_program("listen", "demo", "--exec", "sha256sum -", environ=environ) as listener:
        await listener.wait_err("online")
        code, out, _ = await finish("send", "demo", data=data, environ=environ)
        assert (code, out.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())
        await listener.wait_err("command left with 0")


async def test_the_end_of_a_command_ends_its_connection(environ):
    async with run_program("listen", "demo", "--exec", "sh -c 'echo bye; exit 3'", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", environ=environ) as sender:
            await sender.wait_out("bye\n")
            await sender.close_input()
            assert await sender.exit_code() == 0
        await listener.wait_err("command left with 3")


async def test_a_command_gets_no_key(environ, relay):
    async with run_program("listen", "demo", "--exec", "env", environ=environ) as listener:
        await listener.wait_err("online")
        _, out, _ = await finish("send", "demo", environ=environ)
        assert b"HOME=" in out
        assert VARIABLE.encode() not in out


async def test_standard_streams_both_ways(environ):
    async with run_program("listen", "demo", "--stdio", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", environ=environ) as sender:
            await sender.write(b"question")
            await listener.wait_out("question")
            await sender.close_input()
            await listener.write(b"answer")
            await sender.wait_out("answer")
            await listener.close_input()
            assert await sender.exit_code() == 0
        assert await listener.exit_code() == 0


async def test_the_listener_may_end_first(environ):
    """A listener without input, as in a service, still receives: its end is only the end of its own direction."""
    async with run_program("listen", "demo", "--stdio", stdin=subprocess.DEVNULL, environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", environ=environ) as sender:
            await listener.wait_err("connection from")
            await sender.write(b"late")
            await sender.close_input()
            assert await sender.exit_code() == 0
        assert await listener.exit_code() == 0
        assert bytes(listener.out) == b"late"


async def test_an_interrupted_sender_leaves_without_a_word(environ):
    async with run_program("listen", "demo", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", environ=environ) as sender:
            await sender.write(b"a")
            await sender.wait_out("a")
            sender.signal(signal.SIGINT)
            assert await sender.exit_code() == ExitCode.INTERRUPTED
            assert bytes(sender.err) == b""


async def test_one_connection_only_for_standard_streams(environ):
    async with run_program("listen", "demo", "--stdio", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", environ=environ):
            await listener.wait_err("connection from")
            code, _, err = await finish("send", "demo", environ=environ)
            assert code == ExitCode.REFUSED
            assert "takes one connection only" in err


async def test_a_sender_that_left_is_not_the_one_connection(relay, environ):
    async with run_program("listen", "demo", "--stdio", "-v", stdin=subprocess.DEVNULL, environ=environ) as listener:
        await listener.wait_err("online: ")
        listener.signal(signal.SIGSTOP)  # so that the sender has left before its invitation is read
        with trio.move_on_after(0.2):
            async with relaycore.open_stream(relay.connection_string("demo")):
                pytest.fail("accepted by a process that is stopped")
        listener.signal(signal.SIGCONT)
        await listener.wait_err("the rendezvous for")  # ... failed
        assert await finish("send", "demo", data=b"x", environ=environ) == (0, b"", "")
        assert await listener.exit_code() == 0
        assert bytes(listener.out) == b"x"


async def test_a_relay_that_stops_is_no_end_of_data(relay, environ):
    """A file that was cut off must not look complete, on either side."""
    async with run_program("listen", "demo", "--stdio", environ=environ) as listener:
        await listener.wait_err("online: ")
        async with run_program("send", "demo", environ=environ) as sender:
            await sender.write(b"all but the end")
            await listener.wait_out("all but the end")
            await relay.server.stop(5)
            assert await sender.exit_code() == ExitCode.CONNECTION
            assert await listener.exit_code() == ExitCode.CONNECTION
            assert "closed with 1001: The relay is shutting down" in sender.err.decode()


async def test_on_a_terminal_the_other_side_s_end_is_enough(environ):
    controlling, terminal = pty.openpty()
    try:
        async with run_program("listen", "demo", "--exec", "true", environ=environ) as listener:
            await listener.wait_err("online")
            async with run_program("send", "demo", stdin=terminal, environ=environ) as sender:
                assert await sender.exit_code() == 0  # nobody typed anything
            assert os.get_blocking(terminal)
    finally:
        os.close(controlling)
        os.close(terminal)


async def test_output_that_nobody_reads_any_more(environ):
    reading, writing = os.pipe()
    os.close(reading)
    async with run_program("listen", "demo", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", stdout=writing, environ=environ) as sender:
            os.close(writing)
            await sender.write(b"x" * 100_000)
            assert await sender.exit_code() == ExitCode.BROKEN_PIPE
            assert bytes(sender.err) == b""


# Messages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "kind"), [("--text", str), ("--lines", bytes)])
async def test_lines_are_messages(relay, environ, option, kind):
    async with relaycore.open_listener(relay.connection_string("demo")) as listener, trio.open_nursery() as nursery:
        results = []

        async def send():
            results.append(
                await finish("send", "demo", option, data="eins\nzw\u00f6\r\n\ndrei".encode(), environ=environ)
            )

        nursery.start_soon(send)
        async with await listener.accept() as connection:
            channel = connection.messages()
            received = [message async for message in channel]
            await channel.send("text")
            await channel.send(b"binary")
    assert received == [kind(b, "utf-8") if kind is bytes else b for b in ("eins", "zw\u00f6", "", "drei")]
    assert results == [(0, b"text\nbinary\n", "")]


async def test_a_listener_echoes_messages_as_they_came(relay, environ):
    async with run_program("listen", "demo", "--text", environ=environ) as listener:
        await listener.wait_err("online")
        async with relaycore.open_stream(relay.connection_string("demo")) as stream:
            channel = stream.messages()
            for message in ("text", b"binary", "", b""):
                await channel.send(message)
                assert await channel.receive() == message


async def test_a_line_that_is_no_text(environ):
    async with run_program("listen", "demo", environ=environ) as listener:
        await listener.wait_err("online")
        code, _, err = await finish("send", "demo", "--text", data=b"\xff\n", environ=environ)
        assert code == ExitCode.FAILED
        assert "use --lines" in err


# What the listener sees ----------------------------------------------------------------------------------------------


async def test_suffix_query_headers_and_subprotocol(relay, environ):
    words = ("--suffix", "a b/c", "--query", "x=1&y=%20", "--header", "X-One: 1:1", "--header", "x-two:2")
    async with relaycore.open_listener(relay.connection_string("demo")) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: finish("send", "demo", *words, "--subprotocol", "p1", "--subprotocol", "p2", environ=environ)
        )
        async with await listener.accept() as connection:
            assert (connection.suffix, connection.query) == ("a b/c", "x=1&y=%20")
            assert connection.headers.get("X-One") == "1:1"
            assert connection.headers.get("X-Two") == "2"
            assert connection.subprotocol == "p1"
            await connection.send_eof()


async def test_a_path_may_come_from_the_connection_string(relay):
    environ = {VARIABLE: relay.connection_string("demo")}
    async with run_program("listen", environ=environ) as listener:
        await listener.wait_err("online: demo at")
        assert await finish("send", data=b"x", environ=environ) == (0, b"x", "")


# Keys and tokens -----------------------------------------------------------------------------------------------------


async def test_no_key_shows_in_ps_or_in_what_is_printed(relay, environ):
    """failures: secrets never in argv, logs or URLs."""
    async with run_program("listen", "demo", "-vv", environ=environ) as listener:
        await listener.wait_err("online")
        async with run_program("send", "demo", "-vv", environ=environ) as sender:
            await sender.write(b"x")
            await sender.wait_out("x")
            printed = listener.command_line + sender.command_line
            await sender.close_input()
            await sender.exit_code()
        listener.signal(signal.SIGTERM)
        await listener.exit_code()
        for program in (listener, sender):
            printed += program.err.decode()
    assert key_of(relay) not in printed
    assert "sig=" not in printed
    assert "sb-hc-rid=" not in printed.replace("sb-hc-rid=[removed]", "")


async def test_tokens_instead_of_keys(relay, tmp_path):
    token = (await finish("token", "make", "--entity", "demo", environ={VARIABLE: relay.connection_string()}))[
        1
    ].decode()
    (tmp_path / "token").write_text(token)
    keyless = {VARIABLE: relay.connection_string("demo", rights=())}
    async with run_program("listen", "--token-file", "token", environ=keyless) as listener:
        await listener.wait_err("online")
        done = await finish("send", data=b"x", environ={**keyless, "RELAYCORE_TOKEN": token})
        assert done == (0, b"x", "")


async def test_an_anonymous_sender(relay):
    await relay.create_entity("open", requires_client_authorization=False)
    environ = {VARIABLE: relay.connection_string()}
    with relay.trace.recorded() as events:
        async with run_program("listen", "open", environ=environ) as listener:
            await listener.wait_err("online")
            assert await finish("send", "open", "--anonymous", data=b"x", environ=environ) == (0, b"x", "")
    joined = next(event for event in events if event.name == "session.joined")
    assert joined.fields["rule"] in (None, "", "anonymous")


# Losing and coming back ----------------------------------------------------------------------------------------------


async def test_a_listener_says_when_the_relay_goes_and_comes_back(tmp_path):
    async with await open_sqlite(":memory:") as store:
        port = 0

        async def start(nursery):
            config = Config(server=ServerConfig(port=port))
            return await nursery.start(functools.partial(serve, config, store=store))

        async with trio.open_nursery() as nursery:
            server = await start(nursery)
            port = server.addresses[0][1]
            await store.create_entity("default", "demo")
            key = server.namespace.find_rule("RootManageSharedAccessKey").primary_key
            text = (
                f"Endpoint=sb://127.0.0.1:{port}/;SharedAccessKeyName=RootManageSharedAccessKey;"
                f"SharedAccessKey={key};UseDevelopmentEmulator=true"
            )
            async with run_program("listen", "demo", environ={VARIABLE: text}) as listener:
                await listener.wait_err("online")
                await server.stop(0)
                await listener.wait_err("offline: ")
                await listener.wait_err("reconnecting in ")
                server = await start(nursery)
                await listener.wait_err("online: ", times=2)
                listener.signal(signal.SIGINT)
                assert await listener.exit_code() == 0
            await server.stop(0)


async def test_sigterm_deregisters_first(relay, environ):
    async with run_program("listen", "demo", environ=environ) as listener:
        await listener.wait_err("online")
        assert relay.server.statistics().listeners == 1
        with relay.trace.recorded() as events:
            listener.signal(signal.SIGTERM)
            assert await listener.exit_code() == 0
            await trio.testing.wait_all_tasks_blocked()
        lost = next(event for event in events if event.name == "listener.lost")
        assert lost.fields["by"] == "listener"


async def test_a_relay_that_is_not_there_yet_can_be_waited_for(relay, environ):
    async with run_program("listen", "later", "--keep-trying", environ=environ) as listener:
        await listener.wait_err("reconnecting in ")
        await relay.create_entity("later")
        await listener.wait_err("online")


async def test_quiet_is_quiet(environ):
    async with run_program("listen", "demo", "--quiet", environ=environ) as listener:
        for _ in range(100):
            code, out, _ = await finish("send", "demo", data=b"x", environ=environ)
            if code == 0:
                break
        assert (code, out) == (0, b"x")
        listener.signal(signal.SIGTERM)
        await listener.exit_code()
        assert bytes(listener.err) == b""


# Failures have codes -------------------------------------------------------------------------------------------------


NOBODY_THERE = "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true"


@pytest.mark.parametrize(
    ("args", "which", "code", "said"),
    [
        (("send", "demo"), "good", ExitCode.NOT_FOUND, "no listeners"),
        (("send", "nope"), "good", ExitCode.NOT_FOUND, "Endpoint does not exist"),
        (("send", "demo"), "wrong", ExitCode.AUTHORIZATION, "InvalidSignature"),
        (("send", "demo"), "nobody", ExitCode.CONNECTION, "127.0.0.1:1"),
        (("send",), "good", ExitCode.CONFIG, "no hybrid connection is named"),
        (("send", "demo"), "none", ExitCode.CONFIG, VARIABLE),
        (("listen", "nope"), "good", ExitCode.NOT_FOUND, "Endpoint does not exist"),
        (("listen", "demo"), "wrong", ExitCode.AUTHORIZATION, "InvalidSignature"),
        (("listen", "demo"), "sender", ExitCode.AUTHORIZATION, "relaycore: "),
        (("listen", "demo"), "nobody", ExitCode.CONNECTION, "127.0.0.1:1"),
        (("listen", "demo"), "none", ExitCode.CONFIG, VARIABLE),
    ],
)
async def test_each_failure_has_its_exit_code(relay, args, which, code, said):
    good = relay.connection_string()
    strings = {
        "good": good,
        "wrong": good.replace("SharedAccessKey=", "SharedAccessKey=x"),
        "nobody": NOBODY_THERE,
        "sender": relay.connection_string(rights=["Send"]),
        "none": "",
    }
    found, out, err = await finish(*args, environ={VARIABLE: strings[which]})
    assert (found, out) == (code, b""), err
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


async def test_a_listener_s_own_words_reach_the_user(relay, environ):
    """spec 7.3: exactly that status and that description."""

    def decide(incoming):
        return relaycore.Reject(418, "No coffee here")

    async with relaycore.open_listener(relay.connection_string("demo"), accept=decide):
        assert await finish("send", "demo", environ=environ) == (ExitCode.REFUSED, b"", "relaycore: No coffee here\n")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("send", "demo", "--connection-string", "-"), ExitCode.USAGE, "Standard input is the data"),
        (("send", "demo", "--token-file", "-"), ExitCode.USAGE, "Standard input is the data"),
        (("send", "demo", "--text", "--lines"), ExitCode.USAGE, "exclude each other"),
        (("send", "demo", "--anonymous", "--token-file", "x"), ExitCode.USAGE, "exclude each other"),
        (("send", "demo", "--header", "nothing"), ExitCode.USAGE, "Name: value"),
        (("listen", "demo", "--stdio", "--connection-string-file", "-"), ExitCode.USAGE, "Standard input is the data"),
        (("listen", "demo", "--stdio", "--exec", "cat"), ExitCode.USAGE, "exclude each other"),
        (("listen", "demo", "--exec", ""), ExitCode.USAGE, "needs a command"),
        (("listen", "demo", "--exec", "'"), ExitCode.USAGE, "No closing quotation"),
        (("listen", "demo", "--exec", "no-such-command-here"), ExitCode.CONFIG, "no-such-command-here"),
    ],
)
def test_a_wrong_command_line(invoke, args, code, said):
    result = invoke(*args)
    assert result.exit_code == code
    assert said in result.stderr
