"""``relaycore http-forward`` as a program: a relay and an origin in this process, raw senders, signals, exit codes."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
from pathlib import Path

import pytest
import trio
import trustme
from programs import finish, run_program

import relaycore
from relaycore.cli.exits import ExitCode
from relaycore.config import TlsConfig
from relaycore.testing import Relay, open_relay

sys.path.insert(0, str(Path(__file__).parent.parent / "edge"))

from origins import OK, Seen, Visitor, accept_101, open_origin
from peers import HttpAnswer, WirePeer, http_head, http_request

from relaycore.net.linger import cut
from relaycore.net.websocket import WebSocketLeg
from relaycore.wire.frames import Close

VARIABLE = "RELAYCORE_CONNECTION_STRING"


@pytest.fixture
async def relay():
    async with open_relay() as relay:
        await relay.create_entity("web", requires_client_authorization=False)
        yield relay


@pytest.fixture
def environ(relay):
    return {VARIABLE: relay.connection_string()}


async def ask(relay: Relay, target: str = "/web", fields=()) -> HttpAnswer:
    peer = await WirePeer.open(relay.port)
    try:
        await peer.send(http_request("GET", target, fields))
        return await peer.read_http()
    finally:
        await cut(peer.stream)  # noqa: ASYNC102 - shields itself


async def test_a_local_server_is_published(relay, environ):
    async with open_origin() as origin, run_program("http-forward", origin.url, "--path", "web", environ=environ) as it:
        shown = await it.wait_err("online: ")
        assert shown == f"relaycore: online: http://127.0.0.1:{relay.port}/web/ -> {origin.url}\n"
        assert (await ask(relay, "/web/a?b=c")).body == b"ok"
        assert origin.seen[0].line == "GET /a?b=c HTTP/1.1"
        assert [name for name, _ in origin.seen[0].fields] == ["Host", "Via"]
        it.signal(signal.SIGTERM)
        assert await it.exit_code() == 0
        assert it.err.decode().endswith("relaycore: offline: closed here\n")
        assert relay.server.statistics().listeners == 0


async def test_options(relay):
    environ = {VARIABLE: relay.connection_string("web")}
    async with open_origin() as origin:
        options = ("--keep-path", "--forwarded", "--host-header", "auto", "--quiet", "--verbose", "-v")
        async with run_program("http-forward", origin.url + "/base", *options, environ=environ) as it:
            await it.wait_err("client.online")
            assert (await ask(relay, "/web/a?secret=s")).body == b"ok"
            assert origin.seen[0].target == "/base/web/a?secret=s"
            assert origin.seen[0].values("Host") == [f"127.0.0.1:{origin.port}"]
            assert origin.seen[0].values("X-Forwarded-Host") == ["relay.test"]
            shown = await it.wait_err("GET /base/web/a: 200")
            assert "secret" not in shown
            assert "relaycore: online" not in shown


async def test_several_for_one_hybrid_connection(relay, environ):
    """spec 11: with two listeners and 100 requests both get some."""
    async with (
        open_origin() as first,
        open_origin() as second,
        run_program("http-forward", first.url, "--path", "web", environ=environ) as one,
        run_program("http-forward", second.url, "--path", "web", environ=environ) as two,
    ):
        await one.wait_err("online")
        await two.wait_err("online")
        for _ in range(50):
            assert (await ask(relay)).status == 200
        assert first.seen
        assert second.seen


async def test_what_is_under_way_is_finished(relay, environ):
    """SIGTERM: the answer still comes whole, a WebSocket is closed with 1001, and then the program leaves."""
    asked, go_on = trio.Event(), trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> bytes | None:
        if seen.values("Upgrade"):
            await visitor.send(accept_101(seen))
            leg = WebSocketLeg(visitor.stream, role="server")
            assert await leg.receive() == Close(1001, "The forwarder stops")
            await leg.close(1001)
            return None
        if seen.target == "/slow":
            asked.set()
            await go_on.wait()
        return OK

    async with (
        open_origin(script) as origin,
        run_program("http-forward", origin.url, "--path", "web", environ=environ) as it,
    ):
        await it.wait_err("online")
        async with relaycore.open_stream(relay.connection_string("web")) as stream:
            peer = await WirePeer.open(relay.port)
            await peer.send(http_head("GET", "/web/slow"))
            await asked.wait()
            it.signal(signal.SIGINT)
            while (await ask(relay)).status != 503:
                pass
            go_on.set()
            assert (await peer.read_http()).body == b"ok"
            await cut(peer.stream)
            with pytest.raises(relaycore.StreamClosed, match="1001"):
                await stream.receive_some()
        assert await it.exit_code() == 0


async def test_a_second_signal_leaves_at_once(relay, environ):
    asked = trio.Event()

    async def script(visitor: Visitor, seen: Seen) -> None:
        asked.set()
        await visitor.wait_gone()

    async with (
        open_origin(script) as origin,
        run_program("http-forward", origin.url, "--path", "web", environ=environ) as it,
    ):
        await it.wait_err("online")
        peer = await WirePeer.open(relay.port)
        await peer.send(http_head("GET", "/web"))
        await asked.wait()
        it.signal(signal.SIGINT)
        await trio.sleep(0.6)  # what comes sooner is taken for the same wish
        it.signal(signal.SIGINT)
        assert await it.exit_code() == ExitCode.INTERRUPTED
        await cut(peer.stream)


async def test_an_https_server_is_verified(tmp_path):
    """With the authorities of --cafile, which the relay's certificate is verified with too."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def serve(plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        try:
            visitor = Visitor(stream, 1)
            while (seen := await visitor.head()) is not None:
                assert seen.values("X-Forwarded-Proto") == ["https"]
                await stream.send_all(OK)
        except trio.BrokenResourceError:
            pass
        finally:
            await cut(stream)  # noqa: ASYNC102 - shields itself

    tls = TlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    async with trio.open_nursery() as nursery, open_relay(tls=tls) as relay:
        await relay.create_entity("web")
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        url = f"https://localhost:{listener.socket.getsockname()[1]}"
        environ = {VARIABLE: relay.connection_string("web")}
        trust = ("--cafile", str(tmp_path / "ca.pem"))
        async with run_program("http-forward", url, "--forwarded", *trust, environ=environ) as it:
            shown = await it.wait_err("online: https://localhost:")
            assert shown.endswith(f"/web/ -> {url}\n")
            import httpx2

            auth = relaycore.auth(relay.connection_string("web"))
            client_tls = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            async with httpx2.AsyncClient(auth=auth, verify=client_tls, trust_env=False) as client:
                answer = await client.get(auth.url("x"))
                assert (answer.status_code, answer.content) == (200, b"ok")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), ExitCode.USAGE, "Missing argument 'URL'"),
        (("localhost:3000",), ExitCode.USAGE, "such as http://127.0.0.1:3000"),
        (("http://user:pass@h/",), ExitCode.USAGE, "expected http://HOST"),
        (("http://h", "--host-header", "a b"), ExitCode.USAGE, "HOST[:PORT], or 'auto'"),
        (("http://h", "--connect-timeout", "0"), ExitCode.USAGE, "--connect-timeout"),
        (("http://h", "--path", "web"), ExitCode.CONFIG, VARIABLE),
    ],
)
def test_a_wrong_command_line(invoke, args, code, said):
    result = invoke("http-forward", *args)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("path", "which", "code", "said"),
    [
        ("nope", "good", ExitCode.NOT_FOUND, "Endpoint does not exist"),
        ("web", "wrong", ExitCode.AUTHORIZATION, "InvalidSignature"),
        ("web", "nobody", ExitCode.CONNECTION, "127.0.0.1:1"),
        (None, "good", ExitCode.CONFIG, "no hybrid connection is named"),
    ],
)
async def test_each_failure_has_its_exit_code(relay, path, which, code, said):
    good = relay.connection_string()
    strings = {
        "good": good,
        "wrong": good.replace("SharedAccessKey=", "SharedAccessKey=x"),
        "nobody": "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true",
    }
    options = () if path is None else ("--path", path)
    found, out, err = await finish("http-forward", "http://127.0.0.1:1", *options, environ={VARIABLE: strings[which]})
    assert (found, out) == (code, b""), err
    assert said in err
    assert err.count("\n") == 1


async def test_a_server_that_is_not_there_yet_is_no_reason_to_leave(relay, environ):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{holder.getsockname()[1]}"
        async with run_program("http-forward", url, "--path", "web", environ=environ) as it:
            await it.wait_err("online")
            answer = await ask(relay)
            assert answer.status == 502
            assert url in answer.body.decode()
            it.signal(signal.SIGTERM)
            assert await it.exit_code() == 0
