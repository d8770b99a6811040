"""``relaycore asgi``: finding the application, serving it as a program, and its end."""

from __future__ import annotations

import signal
import sys

import httpx2
import pytest
import trio
from programs import finish, run_program

import relaycore
from relaycore.cli.asgi import load_app, public_url
from relaycore.cli.exits import ExitCode
from relaycore.errors import ConfigError
from relaycore.testing import open_relay
from relaycore.wire.connection_string import parse_connection_string

VARIABLE = "RELAYCORE_CONNECTION_STRING"

APPLICATION = """
import trio

class App:
    def __init__(self):
        self.state = {}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("shutdown", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": scope["root_path"]})
            await receive()
        elif scope["path"].endswith("fail"):
            raise ZeroDivisionError
        else:
            if scope["path"].endswith("slow"):
                print("slow", flush=True)
                await trio.sleep_forever()
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": scope["path"].encode()})

app = App()

def make():
    return app

def wsgi(environ, start_response):
    return []

async def broken_lifespan(scope, receive, send):
    await send({"type": "lifespan.startup.failed", "message": "no database"})

not_callable = 1
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Working directory with modules to serve; what is imported from it is forgotten afterwards."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "failing.py").write_text("import shop\n\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "slip.py").write_text("def app(:\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "inner.py").write_text(APPLICATION)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("shop", "failing", "needy", "slip", "inner"):
            del sys.modules[name]


@pytest.fixture
async def relay():
    async with open_relay() as relay:
        await relay.create_entity("web", requires_client_authorization=False)
        yield relay


@pytest.fixture
def environ(relay):
    return {VARIABLE: relay.connection_string("web")}


# Finding the application ---------------------------------------------------------------------------------------------


def test_applications_that_are_found(project):
    import_path = len(sys.path)
    app = load_app("shop:app", project)
    assert type(app).__name__ == "App"
    assert load_app("shop:make", project, is_factory=True) is app
    assert load_app("shop:app.__call__", project)
    assert load_app("inner:app", project / "src")
    assert load_app("src.inner:app", project)
    assert len(sys.path) > import_path
    assert sys.path[0] == str(project)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shop", "did you mean 'shop:app'"),
        ("shop:", "did you mean 'shop:app'"),
        (":app", "did you mean 'main:app'"),
        ("src/inner.py", "did you mean 'src.inner:app'"),
        ("./shop.py:make", "did you mean 'shop:make'"),
        ("shopp:app", "there is no module 'shopp'"),
        ("shopp:app", "did you mean 'shop'"),
        ("inner:app", "--app-dir"),
        ("shop.deep:app", "there is no module"),
        ("shop:ap", "did you mean 'app'"),
        ("shop:xyzzy", "did you mean 'app' or 'broken_lifespan'"),
        ("shop:app.nothing", "there is no 'nothing' in shop:app.nothing"),
        ("shop:not_callable", "of type int"),
        ("shop:App", "is a class"),
        ("shop:wsgi", "WSGI"),
        ("shop:make", "--factory"),
        ("failing:app", "importing failing failed: ZeroDivisionError: division by zero ("),
        ("failing:app", "failing.py:3)"),
        ("needy:app", "importing needy failed: ModuleNotFoundError"),
        ("needy:app", "a_module_that_is_not_there"),
        ("slip:app", "slip.py:1)"),
    ],
)
def test_what_is_wrong_with_a_name(project, text, said):
    with pytest.raises(ConfigError) as caught:
        load_app(text, project)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("shop:not_callable", "leave --factory out"), ("shop:wsgi", "shop:wsgi() failed: TypeError")]
)
def test_what_is_wrong_with_a_factory(project, text, said):
    with pytest.raises(ConfigError) as caught:
        load_app(text, project, is_factory=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "path", "url"),
    [
        ("sb://relay.example/", "web", "https://relay.example/web/"),
        ("sb://relay.example:8443/", "/dept/a b/", "https://relay.example:8443/dept/a%20b/"),
        ("sb://127.0.0.1:8080/;UseDevelopmentEmulator=true", "web", "http://127.0.0.1:8080/web/"),
    ],
)
def test_the_url_to_call(endpoint, path, url):
    settings = parse_connection_string(f"Endpoint={endpoint};SharedAccessKeyName=a;SharedAccessKey=b")
    assert public_url(settings, path) == url


# Serving it ----------------------------------------------------------------------------------------------------------


async def test_it_serves_says_where_and_ends_in_order(relay, environ):
    async with run_program("asgi", "shop:app", "-v", environ=environ) as program:
        said = await program.wait_err("online: ")
        url = said.partition("online: ")[2].split()[0]
        assert url == f"http://127.0.0.1:{relay.port}/web/"
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"{url}a?secret=1")).text == "/web/a"
            assert (await http.get(f"{url}fail")).status_code == 500
        async with relaycore.open_stream(relay.connection_string("web")) as stream:
            assert await stream.messages().receive() == "/web"
        said = await program.wait_err("'/web/a': 200")
        assert "secret" not in said
        await program.wait_err("ZeroDivisionError")
        program.signal(signal.SIGTERM)
        assert await program.exit_code() == ExitCode.OK
        assert bytes(program.out) == b"shutdown\n"


async def test_options_reach_the_server(relay):
    await relay.create_entity("other", requires_client_authorization=False)
    environ = {VARIABLE: relay.connection_string()}
    arguments = ["inner:make", "--factory", "--app-dir", "src", "--path", "other", "--root-path", "", "--quiet"]
    async with run_program("asgi", *arguments, environ=environ) as program:
        with trio.fail_after(30):
            while not relay.server.statistics().listeners:
                await trio.sleep(0.01)
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"http://127.0.0.1:{relay.port}/other/a")).text == "/a"
        program.signal(signal.SIGINT)
        assert await program.exit_code() == ExitCode.OK
        assert bytes(program.err) == b""


async def test_a_second_signal_leaves_at_once(environ, relay):
    async with run_program("asgi", "shop:app", environ=environ) as program, trio.open_nursery() as nursery:
        await program.wait_err("online: ")

        async def ask():
            async with httpx2.AsyncClient(timeout=30) as http:
                assert (await http.get(f"http://127.0.0.1:{relay.port}/web/slow")).status_code == 502

        nursery.start_soon(ask)
        await program.wait_out("slow")
        program.signal(signal.SIGTERM)
        await program.wait_err("once more to leave at once")
        with trio.fail_after(30):
            while program.process.returncode is None:
                await trio.sleep(0.6)
                program.signal(signal.SIGTERM)
        assert await program.exit_code() == ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope:app"], ExitCode.CONFIG, "there is no module 'nope'"),
        (["shop:app", "--path", "nope"], ExitCode.NOT_FOUND, "Endpoint does not exist"),
        (["shop:app", "--root-path", "x"], ExitCode.CONFIG, "begins with a slash"),
        (["shop:broken_lifespan"], ExitCode.FAILED, "the application did not start: no database"),
        (["shop:app", "--lifespan", "maybe"], ExitCode.USAGE, "--lifespan"),
        ([], ExitCode.USAGE, "MODULE:ATTRIBUTE"),
    ],
)
async def test_failures_have_their_exit_codes(environ, arguments, code, said):
    found, _, err = await finish("asgi", *arguments, environ=environ)
    assert (found, said in err) == (code, True), err
    assert "Traceback" not in err


async def test_without_a_relay(relay):
    nobody = (
        "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=b;EntityPath=web;UseDevelopmentEmulator=true"
    )
    assert (await finish("asgi", "shop:app", environ={VARIABLE: nobody}))[0] == ExitCode.CONNECTION
    assert (await finish("asgi", "shop:app", environ={VARIABLE: ""}))[0] == ExitCode.CONFIG
    environ = {VARIABLE: relay.connection_string("later")}
    async with run_program("asgi", "shop:app", "--keep-trying", environ=environ) as program:
        await program.wait_err("reconnecting in ")
        await relay.create_entity("later")
        await program.wait_err("online: ")
